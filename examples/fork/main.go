// Prepare a sandbox once, try several things from there, and keep the best.
//
//	go run ./examples/fork
package main

import (
	"context"
	"fmt"
	"log"
	"strings"

	"github.com/daytona-go/daytona"
	_ "github.com/daytona-go/daytona/backend/local"
)

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
	parent, err := client.Create(ctx, daytona.Spec{})
	if err != nil {
		return err
	}
	if err := parent.FileSystem().WriteFile(ctx, "fruit.txt", []byte("pear\napple\nfig\n"), 0o644); err != nil {
		return err
	}

	// A stopped sandbox is forked without copying a byte. Each child has the
	// files, and an identity of its own.
	if err := parent.Stop(ctx, nil); err != nil {
		return err
	}
	children, err := parent.Fork(ctx, &daytona.ForkOptions{Names: []string{"fork-sorted", "fork-reversed"}})
	if err != nil {
		return err
	}
	for i, command := range []string{"sort -o fruit.txt fruit.txt", "sort -r -o fruit.txt fruit.txt"} {
		if _, err := children[i].Process().Exec(ctx, command, nil); err != nil {
			return err
		}
	}

	// A snapshot keeps the files of one under a name, for any number of
	// sandboxes to come.
	snapshots, err := client.Snapshots()
	if err != nil {
		return err
	}
	if _, err := children[1].CreateSnapshot(ctx, "fork-example"); err != nil {
		return err
	}
	defer snapshots.DeleteSnapshot(context.WithoutCancel(ctx), "fork-example")
	for _, child := range children {
		if err := child.Delete(ctx); err != nil {
			return err
		}
	}
	later, err := client.Create(ctx, daytona.Spec{Snapshot: "fork-example"})
	if err != nil {
		return err
	}
	fruit, err := later.FileSystem().ReadFile(ctx, "fruit.txt")
	if err != nil {
		return err
	}
	fmt.Println(strings.Join(strings.Fields(string(fruit)), ", "))
	return nil
}
