// Keep a shell's state from command to command, and drive a terminal.
//
//	go run ./examples/sessions
package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log"
	"os"
	"strings"

	"github.com/daytona-go/daytona"
	_ "github.com/daytona-go/daytona/backend/all"
)

func main() {
	if err := run(context.Background()); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context) error {
	client, err := daytona.Open(ctx, cmp.Or(os.Getenv("DAYTONA_BACKEND"), "local://"))
	if err != nil {
		return err
	}
	defer client.Close()
	sb, err := client.Create(ctx, daytona.Spec{})
	if err != nil {
		return err
	}
	// A session is one shell: what a command sets, the next one sees.
	session, err := sb.Process().CreateSession(ctx, "work")
	if err != nil {
		return err
	}
	for _, line := range []string{"cd /tmp && NAME=Ada", `echo "$NAME is in $PWD"`} {
		result, err := session.Run(ctx, line)
		if err != nil {
			return err
		}
		fmt.Print(result.Stdout)
	}

	// A command in the background takes input; its output can be followed.
	quiet := &daytona.SessionOptions{SuppressInputEcho: true}
	cmd, err := session.Start(ctx, `read line; echo "it read: $line"`, quiet)
	if err != nil {
		return err
	}
	if err := cmd.SendInput(ctx, "a line"); err != nil {
		return err
	}
	if err := cmd.Follow(ctx, os.Stdout, os.Stderr); err != nil {
		return err
	}

	// A PTY is a shell on a terminal, for programs that want one.
	pty, err := sb.Process().CreatePTY(ctx, daytona.PTYOptions{Size: daytona.TTYSize{Cols: 100, Rows: 30}})
	if err != nil {
		return err
	}
	defer pty.Close()
	if _, err := io.WriteString(pty, "stty size; exit 7\n"); err != nil {
		return err
	}
	screen, err := io.ReadAll(pty)
	if err != nil {
		return err
	}
	status, err := pty.Wait(ctx)
	if err != nil {
		return err
	}
	fmt.Printf("size as asked for: %t, exit code %d\n", strings.Contains(string(screen), "30 100"), status.ExitCode)
	return nil
}
