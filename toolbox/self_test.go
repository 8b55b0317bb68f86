package toolbox_test

import (
	"os"
	"testing"

	"github.com/daytona-go/daytona/toolbox/computeruse/desktop"
	"github.com/daytona-go/daytona/toolbox/computeruse/display"
	"github.com/daytona-go/daytona/toolbox/process"
)

// TestMain is the agent's helpers, too, as the agent's program is: the agent that
// a test is starts its own program again.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == process.HelperCommand {
		switch os.Args[2] {
		case display.Helper:
			os.Exit(desktop.Main(os.Getenv))
		case display.WebHelper:
			os.Exit(desktop.WebMain(os.Args[3:]))
		}
		os.Exit(2)
	}
	os.Exit(m.Run())
}
