// Ship a backend as an executable of its own. This one serves the embedded
// engine; yours serves whatever implements daytona.Backend.
//
//	go build -o /usr/local/bin/daytona-backend-demo ./examples/plugin
//
// Any program that imports backend/plugin then uses it by name or by path, and
// hands it the query as its configuration:
//
//	client, err := daytona.Open(ctx, "plugin:demo?dir=/srv/sandboxes")
//	client, err := daytona.Open(ctx, "plugin:///usr/local/bin/daytona-backend-demo")
package main

import (
	"context"
	"log"
	"log/slog"
	"net/url"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/backend/local"
	"github.com/daytona-go/daytona/backend/plugin"
)

func main() {
	// It returns when the program that started this one is done with it.
	if err := plugin.ServeFunc(open); err != nil {
		log.Fatal(err)
	}
}

// open opens the backend with the configuration that the other program gave.
// What is logged goes to that program's logger.
func open(ctx context.Context, config url.Values) (daytona.Backend, error) {
	opts := &local.Options{Logger: slog.Default()}
	for key, values := range config {
		switch key {
		case "dir":
			opts.Dir = values[0]
		default: // a typing error must not pass for a setting
			return nil, &daytona.Error{Kind: daytona.KindInvalid, Op: "open demo plugin", Field: key, Value: values[0], Message: `there is only "dir"`}
		}
	}
	return local.New(ctx, opts)
}
