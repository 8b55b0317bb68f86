// Mount the whole service into a program that has pages of its own.
//
//	go run ./examples/mount
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"

	"github.com/daytona-go/daytona"
	_ "github.com/daytona-go/daytona/backend/local"
	_ "github.com/daytona-go/daytona/backend/remote"
	"github.com/daytona-go/daytona/server"
)

func main() {
	if err := run(context.Background()); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "mount-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	client, err := daytona.Open(ctx, "local://")
	if err != nil {
		return err
	}
	defer client.Close()
	mux := http.NewServeMux()
	web := httptest.NewServer(mux)
	defer web.Close()
	// No http.StripPrefix: the path is part of the URL. Unenforced is for users who may not set limits.
	service, err := server.New(ctx, server.Config{URL: web.URL + "/sandboxes", Dir: dir, Client: client, Unenforced: []string{"cpu", "memory", "disk"}})
	if err != nil {
		return err
	}
	defer service.Close()
	mux.Handle("/sandboxes/", service)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if service.Preview(r) { // the host of a sandbox's port, whatever the path
			service.ServeHTTP(w, r)
			return
		}
		fmt.Fprintln(w, "a page of ours")
	})
	ctx, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- service.Run(ctx) }()
	defer func() { stop(); <-ended }()
	if err := service.Ready(ctx); err != nil {
		return err
	}
	// What others do, with a browser and with any SDK.
	if page, err := http.Get(web.URL); err == nil {
		io.Copy(os.Stdout, page.Body)
		page.Body.Close()
	}
	os.Setenv("DAYTONA_API_KEY", service.AdminKey())
	theirs, err := daytona.Open(ctx, "remote+"+web.URL+"/sandboxes/api")
	if err != nil {
		return err
	}
	defer theirs.Close() // and with it the sandbox
	sb, err := theirs.Create(ctx, daytona.Spec{})
	if err != nil {
		return err
	}
	r, err := sb.Process().Exec(ctx, "echo a sandbox of theirs", nil)
	fmt.Print(r.Output)
	return err
}
