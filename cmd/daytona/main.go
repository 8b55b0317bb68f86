// Command daytona runs programs in isolated sandboxes from a shell. All of it
// is in package internal/cli; here it only meets this process and the
// backends that a build includes.
package main

import (
	"os"

	"github.com/daytona-go/daytona/cmd/daytona/internal/cli"
)

func main() {
	os.Exit(cli.Main(cli.Config{
		Args:   os.Args[1:],
		Stdin:  os.Stdin,
		Stdout: os.Stdout,
		Stderr: os.Stderr,
	}))
}
