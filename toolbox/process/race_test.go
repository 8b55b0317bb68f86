//go:build race

package process_test

// The race detector keeps several bytes for each byte that is used.
func init() { memoryBound = 160 << 20 }
