// Command daytona-s3fs serves the files of one bucket to one sandbox. The engine starts it, and it
// ends with the mount; see package s3fs. It is not meant to be run by hand.
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"os"

	"github.com/daytona-go/daytona/internal/s3mount/s3fs"
)

func main() {
	if len(os.Args) > 1 {
		fmt.Fprintln(os.Stderr, "daytona-s3fs: takes no arguments: the engine starts it, with a configuration on standard input and the mount on descriptor 3")
		os.Exit(2)
	}
	log.SetOutput(io.Discard) // what net/http has to say of odd answers
	if err := s3fs.Run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "daytona-s3fs:", err)
		os.Exit(1)
	}
}
