package toolbox_test

import (
	"os"
	"testing"

	"github.com/daytona-go/daytona/toolbox/git"
	"github.com/daytona-go/daytona/toolbox/git/repository"
	"github.com/daytona-go/daytona/toolbox/process"
)

// This program is also the helpers of the agents in it.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == process.HelperCommand {
		if os.Args[2] == git.Helper {
			os.Exit(repository.Main(os.Args[3:]))
		}
		os.Exit(2)
	}
	os.Exit(m.Run())
}
