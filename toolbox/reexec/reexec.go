// Package reexec is what the agent's own program does when the agent has started
// it again, as the sandbox's user: the helpers that
// [github.com/daytona-go/daytona/toolbox/process.Spawner.Helper] starts. It links
// all of them; the agent itself must not import it, but its program, and the
// programs of tests that have an agent within.
package reexec

import (
	"fmt"
	"os"

	"github.com/daytona-go/daytona/toolbox/computeruse/desktop"
	"github.com/daytona-go/daytona/toolbox/computeruse/display"
	"github.com/daytona-go/daytona/toolbox/git"
	"github.com/daytona-go/daytona/toolbox/git/repository"
	"github.com/daytona-go/daytona/toolbox/process"
	"github.com/daytona-go/daytona/toolbox/ssh"
)

// Main runs the helper that args, those of the program without its name, ask
// for, and ends the process with its exit code. It returns if they ask for none.
func Main(args []string) {
	if len(args) == 0 || args[0] != process.HelperCommand {
		return
	}
	os.Exit(run(args[1:]))
}

func run(args []string) int {
	if len(args) == 0 {
		fmt.Fprintln(os.Stderr, "daytona-agent: helper: the agent starts this for itself")
		return 2
	}
	switch name, args := args[0], args[1:]; name {
	case git.Helper:
		return repository.Main(args)
	case display.Helper:
		return desktop.Main(os.Getenv)
	case display.WebHelper:
		return desktop.WebMain(args)
	case ssh.HelperName:
		return ssh.Helper(os.Environ)
	default:
		fmt.Fprintf(os.Stderr, "daytona-agent: helper: there is no %q\n", name)
		return 2
	}
}
