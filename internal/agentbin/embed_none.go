//go:build !embedagent

package agentbin

func embedded(string) []byte { return nil }
