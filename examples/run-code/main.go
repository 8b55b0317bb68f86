// Run code, shell lines and programs in a sandbox, and survive what goes wrong;
// wherever sandboxes live.
//
//	go run ./examples/run-code
//	go run ./examples/run-code -backend 'docker://?image=python:3'
//	DAYTONA_BACKEND=plugin:demo go run ./examples/run-code
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/daytona-go/daytona"
	_ "github.com/daytona-go/daytona/backend/all"
)

func main() {
	// What the daytona command does, too: flag, else variable, else this machine.
	backend := flag.String("backend", cmp.Or(os.Getenv("DAYTONA_BACKEND"), "local://"), "`URL` of where sandboxes live")
	flag.Parse()
	if err := run(context.Background(), *backend); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, backend string) error {
	client, err := daytona.Open(ctx, backend)
	if err != nil {
		return err
	}
	defer client.Close() // deletes the sandbox, too

	// Resources.Memory and others limit it, too, where the machine can.
	sb, err := client.Create(ctx, daytona.Spec{
		Resources: daytona.Resources{Processes: 64},
		Network:   daytona.NetworkPolicy{Block: true},
	})
	if err != nil {
		return err
	}

	// A program text, in Spec.Language: Python unless said otherwise.
	result, err := sb.Process().RunCode(ctx, "print(sum(range(10)))", nil)
	if err != nil {
		return err
	}
	fmt.Print("code: ", result.Output)

	// A line for the shell. An exit code is a result, not an error.
	line, err := sb.Process().Exec(ctx, "echo to a pipe | tr a-z A-Z; exit 3", nil)
	if err != nil {
		return err
	}
	fmt.Printf("shell: %s(exit code %d)\n", line.Output, line.ExitCode)

	// A program, in the manner of os/exec, with its streams kept apart.
	_, err = sb.Process().Command(ctx, "ls", "/no/such/directory").Output()
	if exit, ok := errors.AsType[*daytona.ExitError](err); ok {
		fmt.Printf("program: exit code %d, it said: %s", exit.ExitCode, exit.Stderr)
	}

	// Code that never ends, does.
	result, err = sb.Process().RunCode(ctx, "print('thinking…', flush=True)\nwhile True: pass",
		&daytona.CodeOptions{Timeout: time.Second})
	if errors.Is(err, daytona.ErrTimeout) {
		fmt.Printf("endless: stopped after %q\n", result.Output)
	}
	return nil
}
