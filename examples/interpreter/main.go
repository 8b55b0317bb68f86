// Run code piece by piece, as in a notebook: what one piece defines, the next
// has. In Python here; JavaScript and TypeScript are other contexts.
//
//	go run ./examples/interpreter
//	go run ./examples/interpreter -backend 'docker://?image=python:3'
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"strings"
	"time"

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
	in := sb.Interpreter()

	// Output comes as it is printed, the value of a last expression apart.
	r, err := in.Run(ctx, "words = 'to be or not to be'.split()\nprint(len(words), 'words')\nset(words) - {'or'} == {'to', 'be', 'not'}",
		&daytona.InterpreterOptions{Stdout: os.Stdout})
	if err != nil {
		return err
	}
	fmt.Println("value:", r.Results[0].Text())

	// An exception is a result: it says where, and the variables are still there.
	r, err = in.Run(ctx, "def ratio(a, b):\n    return a / b\n\nratio(len(words), words.count('maybe'))", nil)
	if err != nil {
		return err
	}
	at := r.Err.Traceback[strings.LastIndex(r.Err.Traceback, "line "):]
	fmt.Printf("exception: %v, %s\n", r.Err, at[:strings.Index(at, "\n")])

	// What never ends, does, and so does what ends its own interpreter.
	_, err = in.Run(ctx, "while True: pass", &daytona.InterpreterOptions{Timeout: time.Second})
	fmt.Println("timeout:", errors.Is(err, daytona.ErrTimeout))
	r, err = in.Run(ctx, "print(len(words))\nimport os; os._exit(1)", nil)
	if err != nil {
		return err
	}
	fmt.Printf("still %sthen %s\n", r.Stdout, r.Err.Name)

	// A context has variables of its own, and its own directory.
	c, err := in.CreateContext(ctx, &daytona.InterpreterContextOptions{Dir: "/"})
	if err != nil {
		return err
	}
	r, err = in.Run(ctx, "import os\nos.getcwd(), 'words' in globals(), os.environ['WHO']",
		&daytona.InterpreterOptions{Context: c.ID, Env: map[string]string{"WHO": "Ada"}})
	if err != nil {
		return err
	}
	fmt.Println("context:", r.Results[0].Text())
	return in.DeleteContext(ctx, c.ID)
}
