//go:build embedagent

package agentbin

import _ "embed"

// The Makefile builds these before it builds a release.
//
//go:embed bin/daytona-agent
var agent []byte

//go:embed bin/daytona-net
var network []byte

//go:embed bin/daytona-s3fs
var s3fs []byte

func embedded(name string) []byte {
	switch name {
	case Agent:
		return agent
	case Net:
		return network
	case S3FS:
		return s3fs
	}
	return nil
}
