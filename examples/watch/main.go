// See what happens to a sandbox's files and ports, as it happens.
//
//	go run ./examples/watch
package main

import (
	"context"
	"fmt"
	"log"
	"path"
	"time"

	"github.com/daytona-go/daytona"
	_ "github.com/daytona-go/daytona/backend/local"
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := run(ctx); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context) error {
	client, err := daytona.Open(ctx, "local://")
	if err != nil {
		return err
	}
	defer client.Close()
	sb, err := client.Create(ctx, daytona.Spec{})
	if err != nil {
		return err
	}

	// From here on nothing is missed.
	watch, err := sb.FileSystem().Watch(ctx, ".", &daytona.WatchOptions{Exclude: []string{"*.tmp"}, Window: time.Second})
	if err != nil {
		return err
	}
	defer watch.Close()
	if _, err := sb.Process().Exec(ctx, "mkdir report; echo draft > report/a; : > x.tmp", nil); err != nil {
		return err
	}
	for event, err := range watch.Events() {
		if err != nil {
			return err
		}
		fmt.Println(event.Type, path.Base(event.Path))
		if event.Type == daytona.FileCreated && path.Base(event.Path) == "a" {
			if _, err := sb.Process().Exec(ctx, "mv report final", nil); err != nil {
				return err
			}
		}
		if event.Type == daytona.FileRenamed {
			break
		}
	}

	// A server is known as soon as it listens: nobody asks again and again.
	server := sb.Process().Command(ctx, "python3", "-m", "http.server", "8000")
	if err := server.Start(); err != nil {
		return err
	}
	for event, err := range sb.Ports().Watch(ctx, nil) {
		if err != nil {
			return err
		}
		fmt.Println(event.Type, event.Listener.Port, event.Listener.Process)
		if event.Listener.Port == 8000 {
			return nil
		}
	}
	return nil
}
