// Talk to a server inside a sandbox. Nothing is published on this machine.
//
//	go run ./examples/ports
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"time"

	"github.com/daytona-go/daytona"
	_ "github.com/daytona-go/daytona/backend/local"
)

const port = 8000

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
	if err := sb.FileSystem().WriteFile(ctx, "site/index.html", []byte("Hello from the inside\n"), 0); err != nil {
		return err
	}
	server := sb.Process().Command(ctx, "python3", "-m", "http.server", fmt.Sprint(port))
	server.Dir = "site"
	if err := server.Start(); err != nil {
		return err
	}

	// DialPort gives a net.Conn, so that any Go client reaches the server.
	web := http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx, sb) },
	}}
	response, err := web.Get("http://sandbox/")
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	fmt.Printf("%s: %s", response.Status, body)
	return nil
}

// dial waits for the server to be up.
func dial(ctx context.Context, sb daytona.Sandbox) (net.Conn, error) {
	for {
		conn, err := sb.DialPort(ctx, port)
		if !errors.Is(err, daytona.ErrUnavailable) || ctx.Err() != nil {
			return conn, err
		}
		time.Sleep(20 * time.Millisecond)
	}
}
