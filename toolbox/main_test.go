package toolbox_test

import (
	"os"
	"testing"

	"github.com/daytona-go/daytona/toolbox/reexec"
)

// This program is also the helpers of the agents in it.
func TestMain(m *testing.M) {
	reexec.Main(os.Args[1:])
	os.Exit(m.Run())
}
