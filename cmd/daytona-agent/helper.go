package main

import (
	"fmt"
	"os"

	"github.com/daytona-go/daytona/toolbox/ssh"
)

// helpers are what the agent starts itself again for, as the sandbox's user; see
// (*process.Spawner).Helper.
func helpers() map[string]func(args []string) int {
	return map[string]func(args []string) int{
		ssh.HelperName: ssh.Helper,
	}
}

// helper runs one and returns its exit code.
func helper(args []string) int {
	if len(args) == 0 {
		fmt.Fprintln(os.Stderr, "daytona-agent: helper: the agent starts this for itself")
		return 2
	}
	run, ok := helpers()[args[0]]
	if !ok {
		fmt.Fprintf(os.Stderr, "daytona-agent: helper: there is no %q\n", args[0])
		return 2
	}
	// Not on the first thread, which main keeps to itself.
	code := make(chan int)
	go func() { code <- run(args[1:]) }()
	return <-code
}
