// Use the example plugin the way any program would.
//
//	go test ./examples/plugin
package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/backend/local"
)

func TestPlugin(t *testing.T) {
	for _, f := range local.Diagnose(t.Context(), nil) {
		if f.Status == "missing" {
			t.Skipf("this machine cannot run sandboxes: %s: %s", f.Name, f.Detail)
		}
	}
	dir := t.TempDir()
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "daytona-backend-demo"), ".")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	agent := exec.Command("go", "build", "-o", dir+"/", "../../cmd/daytona-agent", "../../cmd/daytona-net", "../../cmd/daytona-s3fs")
	agent.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := agent.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))

	client, err := daytona.Open(t.Context(), "plugin:demo?dir="+t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	sb, err := client.Create(t.Context(), daytona.Spec{})
	if err != nil {
		t.Fatal(err)
	}
	out, err := sb.Process().Command(t.Context(), "echo", "Hello through a plugin").Output()
	if err != nil || string(out) != "Hello through a plugin\n" {
		t.Errorf("%q, %v", out, err)
	}
	if _, err := daytona.Open(t.Context(), "plugin:demo?dri=/typo"); !errors.Is(err, daytona.ErrInvalid) {
		t.Errorf("a setting that does not exist: %v", err)
	}
}
