package remote_test

import (
	"context"
	"fmt"
	"log"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/backend/remote"
)

func Example() {
	ctx := context.Background()
	// A server of this process, in the place of one of yours.
	server, stop, err := serve("", "")
	if err != nil {
		log.Fatal(err)
	}
	defer stop()

	// Programs that let their users choose a backend say instead, with the key in
	// DAYTONA_API_KEY: daytona.Open(ctx, "https://daytona.example.com/api")
	backend, err := remote.New(&remote.Options{URL: server.url, Key: server.key})
	if err != nil {
		log.Fatal(err)
	}
	client := daytona.New(backend)
	defer client.Close()

	sb, err := client.Create(ctx, daytona.Spec{Name: "hello", Env: map[string]string{"GREETING": "hello"}, Labels: map[string]string{"for": "example"}})
	if err != nil {
		log.Fatal(err)
	}
	r, err := sb.Process().Exec(ctx, `echo "$GREETING, world" | tee said`, nil)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Print(r.Output)
	for found, err := range client.List(ctx, &daytona.Filter{Labels: map[string]string{"for": "example"}}) {
		if err != nil {
			log.Fatal(err)
		}
		said, err := found.FileSystem().ReadFile(ctx, "said")
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s is %s, and has said %q\n", found.Name(), found.Info().State, said)
	}
	// Output:
	// hello, world
	// hello is started, and has said "hello, world\n"
}
