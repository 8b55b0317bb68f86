// Ask a language server about code in a sandbox, which has one for Python (pip
// install python-lsp-server): what may be written, what is wrong; and rename it.
//
//	go run ./examples/lsp
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"strings"

	"github.com/daytona-go/daytona"
	_ "github.com/daytona-go/daytona/backend/all"
)

const code = `class Circle:
    def area(self, radius):
        return 3 * radius ** 2


circle = Circle()
print(circle.area(2), sqaure)
`

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
	sb, err := client.Create(ctx, daytona.Spec{Network: daytona.NetworkPolicy{Block: true}})
	if err != nil {
		return err
	}
	if err := sb.FileSystem().WriteFile(ctx, "project/main.py", []byte(code), 0); err != nil {
		return err
	}
	server := sb.LSPServer("python", "project")
	if err := server.Start(ctx, nil); errors.Is(err, daytona.ErrNotFound) {
		fmt.Println("there is no language server for Python in the sandbox")
		return nil
	} else if err != nil {
		return err
	}
	// Positions count from 0: here, what may follow "circle.".
	list, err := server.Completions(ctx, "main.py", daytona.Position{Line: 6, Character: 13})
	if err != nil {
		return err
	}
	for _, c := range list.Items {
		fmt.Println("completion:", c.Label)
	}
	diagnostics, err := server.Diagnostics(ctx, "main.py")
	if err != nil {
		return err
	}
	for _, d := range diagnostics.Items {
		fmt.Println(d)
	}
	edit, err := server.Rename(ctx, "main.py", daytona.Position{Line: 1, Character: 8}, "surface")
	if err != nil {
		return err
	}
	if err := edit.Apply(ctx, sb.FileSystem()); err != nil {
		return err
	}
	changed, err := sb.FileSystem().ReadFile(ctx, "project/main.py")
	fmt.Printf("renamed in %d places\n", strings.Count(string(changed), "surface"))
	return err
}
