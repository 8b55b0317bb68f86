package local_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"strings"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/backend/local"
)

func Example() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "daytona-example-")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	client, err := local.Open(ctx, &local.Options{Dir: dir})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	sb, err := client.Create(ctx, daytona.Spec{Env: map[string]string{"GREETING": "hello"}})
	if err != nil {
		log.Fatal(err)
	}
	defer sb.Delete(ctx)
	cmd := sb.Process().Command(ctx, "sh", "-c", "read name; echo $GREETING, $name; id -un")
	cmd.Stdin = strings.NewReader("world\n")
	out, err := cmd.Output()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Print(string(out))
	// Output:
	// hello, world
	// daytona
}
