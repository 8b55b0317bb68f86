// Command daytona-net is the network of one rootless sandbox. The engine starts it, and it ends
// with the sandbox; see package netstack. It is not meant to be run by hand.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/daytona-go/daytona/internal/network/netstack"
)

func main() {
	if len(os.Args) > 1 {
		fmt.Fprintln(os.Stderr, "daytona-net: takes no arguments: the engine starts it, with a configuration on standard input and the sandbox's packets on descriptor 3")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := netstack.Run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "daytona-net:", err)
		os.Exit(1)
	}
}
