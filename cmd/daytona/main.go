// Command daytona runs programs in isolated sandboxes from a shell. All of it
// is in package internal/cli; here it only meets this process and the
// backends that a build includes.
package main

import (
	"context"
	"fmt"
	"net/url"
	"os"

	_ "github.com/daytona-go/daytona/backend/all"
	"github.com/daytona-go/daytona/backend/local"
	"github.com/daytona-go/daytona/cmd/daytona/internal/cli"
)

// version is set by the linker in release builds.
var version string

func main() {
	os.Exit(cli.Main(cli.Config{
		Args:     os.Args[1:],
		Stdin:    os.Stdin,
		Stdout:   os.Stdout,
		Stderr:   os.Stderr,
		Version:  version,
		Diagnose: diagnose,
	}))
}

// diagnose examines this machine for the local backend that a URL names.
func diagnose(ctx context.Context, backend string) ([]cli.Finding, error) {
	u, err := url.Parse(backend)
	if err != nil {
		return nil, err
	}
	if u.Scheme != "local" {
		return nil, fmt.Errorf("sandboxes of the backend %s are not on this machine; to examine this machine: daytona doctor --backend local://", backend)
	}
	var findings []cli.Finding
	for _, f := range local.Diagnose(ctx, &local.Options{Dir: u.Path, Agent: u.Query().Get("agent")}) {
		findings = append(findings, cli.Finding{Name: f.Name, Status: string(f.Status), Detail: f.Detail, Remedy: f.Remedy})
	}
	return findings, nil
}
