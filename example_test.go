package daytona_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"strings"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/daytonatest"
)

// open stands for daytona.Open(ctx, "local://"): the examples run on a backend
// in memory, so that they run everywhere.
func open(context.Context, string) (*daytona.Client, error) {
	return daytona.New(daytonatest.NewFake()), nil
}

func Example() {
	ctx := context.Background()
	client, err := open(ctx, "local://") // daytona.Open
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	sb, err := client.Create(ctx, daytona.Spec{Env: map[string]string{"GREETING": "hello"}})
	if err != nil {
		log.Fatal(err)
	}
	defer sb.Delete(ctx)

	out, err := sb.Process().Command(ctx, "sh", "-c", "echo $GREETING, world").Output()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s", out)
	// Output: hello, world
}

// A Cmd works as that of os/exec does.
func ExampleProcess_command() {
	ctx := context.Background()
	client, err := open(ctx, "local://")
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	sb, err := client.Create(ctx, daytona.Spec{})
	if err != nil {
		log.Fatal(err)
	}

	cmd := sb.Process().Command(ctx, "cat")
	cmd.Stdin = strings.NewReader("through and through\n")
	out, err := cmd.Output()
	fmt.Printf("%s%v\n", out, err)

	_, err = sb.Process().Command(ctx, "sh", "-c", "exit 3").Output()
	if exit, ok := errors.AsType[*daytona.ExitError](err); ok {
		fmt.Println("exit code", exit.ExitCode)
	}

	ctx, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	err = sb.Process().Command(ctx, "sleep", "60").Run()
	fmt.Println(errors.Is(err, context.DeadlineExceeded))
	// Output:
	// through and through
	// <nil>
	// exit code 3
	// true
}

// A spec that breaks a rule is refused with what it broke.
func ExampleError() {
	client, err := open(context.Background(), "local://")
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	_, err = client.Create(context.Background(), daytona.Spec{Name: "no spaces, please"})
	if e, ok := errors.AsType[*daytona.Error](err); ok {
		fmt.Println(e.Field, "|", e.Value, "|", errors.Is(err, daytona.ErrInvalid))
	}
	// Output: Name | no spaces, please | true
}
