// Command daytona-agent is the agent inside a sandbox; see package toolbox.
package main

import (
	"fmt"
	"os"
	"runtime"

	"github.com/daytona-go/daytona/internal/boot"
	"github.com/daytona-go/daytona/toolbox/process"
)

// version is set by the linker.
var version = "v0.0.0-dev"

// Only a main goroutine that is locked from the start stays on the process's
// first thread. Boot needs that for what it sets up, and serve keeps everything
// off that thread: the signal that ends the agent with its parent
// (PR_SET_PDEATHSIG) is the thread's own, and Linux forgets it when the thread
// takes on another identity, as package account does.
func init() { runtime.LockOSThread() }

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	command := "help"
	if len(args) > 0 {
		command, args = args[0], args[1:]
	}
	switch command {
	case "boot": // by the engine, in new namespaces: package boot
		return fail(boot.Main())
	case "boot-as-root":
		return fail(boot.AsRoot(args))
	case "container": // by a container engine, as the first process
		return container(args)
	case "relay": // by a container engine, beside the agent
		return fail(relay(args))
	case "serve":
		code := make(chan int)
		go func() { code <- serve(args) }()
		return <-code
	case process.HelperCommand: // by itself
		return helper(args)
	case "version":
		fmt.Println(version)
		return 0
	case "help", "-h", "--help":
		fmt.Println("usage: daytona-agent serve [--config-fd N] [--listen-fd N | --listen unix:///PATH | --listen tcp://ADDRESS:PORT]\n       daytona-agent version")
		return 0
	}
	fmt.Fprintf(os.Stderr, "daytona-agent: unknown command %q; there are serve and version\n", command)
	return 2
}

func fail(err error) int {
	if err != nil {
		fmt.Fprintln(os.Stderr, "daytona-agent:", err)
		return 1
	}
	return 0
}
