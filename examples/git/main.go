// Work on a repository in a sandbox: commit, branch, push, clone, look back. It
// takes no git there, and for remotes elsewhere only their URL.
//
//	go run ./examples/git -backend local://
package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"log"
	"os"

	"github.com/daytona-go/daytona"
	_ "github.com/daytona-go/daytona/backend/all"
)

func main() {
	backend := flag.String("backend", cmp.Or(os.Getenv("DAYTONA_BACKEND"), "local://"), "`URL` of where sandboxes live")
	flag.Parse()
	if err := run(context.Background(), *backend); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, backend string) error {
	client, err := daytona.Open(ctx, backend)
	if err != nil {
		return err
	}
	defer client.Close()
	sb, err := client.Create(ctx, daytona.Spec{Network: daytona.NetworkPolicy{Block: true}})
	if err != nil {
		return err
	}
	git := sb.Git()
	// A remote is a URL, with CloneOptions.Credentials if it wants some; or a
	// path in the sandbox, as here.
	if err := git.Init(ctx, "origin.git", &daytona.GitInitOptions{Bare: true, Branch: "main"}); err != nil {
		return err
	}
	if _, err := git.Clone(ctx, "origin.git", "project", nil); err != nil {
		return err
	}
	for _, step := range []struct{ branch, line string }{{"main", "Roses are red\n"}, {"second", "Violets are blue\n"}} {
		if step.branch != "main" {
			if err := git.CreateBranch(ctx, "project", step.branch); err != nil {
				return err
			}
		}
		if err := sb.FileSystem().WriteFile(ctx, "project/poem.txt", []byte(step.line), 0); err != nil {
			return err
		}
		status, err := git.Status(ctx, "project")
		if err != nil {
			return err
		}
		fmt.Printf("%s on %s: %s\n", status.Files[0].Path, status.Branch, status.Files[0].Worktree)
		if err := git.Add(ctx, "project", "."); err != nil {
			return err
		}
		if _, err := git.Commit(ctx, "project", daytona.Commit{Message: step.line, Author: "Ada", Email: "ada@example.com"}); err != nil {
			return err
		}
	}
	if err := git.Push(ctx, "project", nil); err != nil {
		return err
	}
	// Somebody else gets what was pushed.
	clone, err := git.Clone(ctx, "origin.git", "elsewhere", &daytona.CloneOptions{Branch: "second"})
	if err != nil {
		return err
	}
	history, err := git.Log(ctx, "elsewhere", nil)
	for _, c := range history {
		fmt.Printf("%s by %s: %s", clone.Branch, c.Author, c.Message)
	}
	return err
}
