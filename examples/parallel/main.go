// Try several answers of an AI at once, each in a sandbox of its own.
//
//	go run ./examples/parallel
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/daytona-go/daytona"
	_ "github.com/daytona-go/daytona/backend/local"
)

// candidates should print the sum of the squares below 10.
var candidates = []string{
	"print(sum(i * i for i in range(10)))",
	"print(sum(i ^ 2 for i in range(10)))",
	"print(sum(squares))",
	"while True: pass",
}

func main() {
	if err := run(context.Background()); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context) error {
	client, err := daytona.Open(ctx, "local://")
	if err != nil {
		return err
	}
	defer client.Close()

	verdicts := make([]string, len(candidates))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(4)
	for i, code := range candidates {
		group.Go(func() (err error) {
			verdicts[i], err = judge(ctx, client, code)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for i, v := range verdicts {
		fmt.Printf("%-40s %s\n", candidates[i], v)
	}
	return nil
}

// judge runs code where it can harm nobody.
func judge(ctx context.Context, client *daytona.Client, code string) (string, error) {
	sb, err := client.Create(ctx, daytona.Spec{
		Resources: daytona.Resources{Processes: 32},
		Network:   daytona.NetworkPolicy{Block: true},
	})
	if err != nil {
		return "", err
	}
	defer sb.Delete(context.WithoutCancel(ctx))
	result, err := sb.Process().RunCode(ctx, code, &daytona.CodeOptions{Timeout: 5 * time.Second})
	switch {
	case errors.Is(err, daytona.ErrTimeout):
		return "never ends", nil
	case err != nil:
		return "", err
	case result.ExitCode != 0:
		return "broken", nil
	case result.Output == "285\n":
		return "right", nil
	}
	return "wrong", nil
}
