// Bring files into a sandbox, find and change them there, and get them out.
//
//	go run ./examples/files
package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"os"
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
	sb, err := client.Create(ctx, daytona.Spec{})
	if err != nil {
		return err
	}
	files := sb.FileSystem()

	// Small files from memory, large ones from any io.Reader: an upload is
	// streamed. Missing directories are made.
	if err := files.WriteFile(ctx, "notes/todo.txt", []byte("buy milk\ncall Ada\n"), 0o600); err != nil {
		return err
	}
	n, err := files.Upload(ctx, "data/numbers.csv", strings.NewReader(strings.Repeat("1,2,3\n", 1000)))
	if err != nil {
		return err
	}
	fmt.Println("uploaded", n, "bytes")

	// The sandbox's files are an fs.FS: whatever walks one walks the other.
	err = fs.WalkDir(files.FS(ctx, "."), ".", func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.Contains(path, "/") {
			fmt.Println("found", path)
		}
		return err
	})
	if err != nil {
		return err
	}

	matches, err := files.Grep(ctx, "notes", "milk")
	if err != nil {
		return err
	}
	for _, m := range matches {
		fmt.Printf("line %d: %s\n", m.Line, m.Text)
	}
	if _, err := files.Replace(ctx, []string{"notes/todo.txt"}, "milk", "oat milk"); err != nil {
		return err
	}
	if _, err := files.Download(ctx, "notes/todo.txt", os.Stdout); err != nil {
		return err
	}

	if _, err := files.Stat(ctx, "nowhere"); errors.Is(err, fs.ErrNotExist) {
		fmt.Println("nowhere does not exist")
	}
	return nil
}
