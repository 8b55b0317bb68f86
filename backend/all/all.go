// Package all registers every backend of this module with daytona.Open, for
// programs whose user says by URL where sandboxes live:
//
//	import _ "github.com/daytona-go/daytona/backend/all"
//
// It brings along whatever any of them needs. A program that knows its backend
// imports that one instead.
package all

import (
	_ "github.com/daytona-go/daytona/archive/s3"
	_ "github.com/daytona-go/daytona/backend/containerd"
	_ "github.com/daytona-go/daytona/backend/docker"
	_ "github.com/daytona-go/daytona/backend/local"
	_ "github.com/daytona-go/daytona/backend/local/build"
	_ "github.com/daytona-go/daytona/backend/plugin"
	_ "github.com/daytona-go/daytona/backend/remote"
)
