package toolbox_test

import (
	"bytes"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/daytona-go/daytona/toolbox"
)

// operation is one of testdata/operations.txt.
type operation struct {
	name        string // method and path
	id          string
	generations []string
}

// readOperations reads the operations of both generations' specs.
func readOperations(t *testing.T) (ops []operation) {
	t.Helper()
	for _, line := range readList(t, "operations.txt") {
		f := strings.Fields(line)
		if len(f) != 4 {
			t.Fatalf("operations.txt: %q", line)
		}
		ops = append(ops, operation{f[0] + " " + f[1], f[2], strings.Split(f[3], ",")})
	}
	if len(ops) < 100 {
		t.Fatalf("only %d operations in the list", len(ops))
	}
	return ops
}

func readList(t *testing.T, name string) (lines []string) {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			lines = append(lines, line)
		}
	}
	return lines
}

var parameter = regexp.MustCompile(`\{[^}]*\}`)

// TestOperations asks for every operation of both generations of the API, and
// of ours.
func TestOperations(t *testing.T) {
	a := start(t, "unix", toolbox.Config{Env: desktopEnv(t)})
	ask := func(name string) (served bool) {
		t.Helper()
		method, path, _ := strings.Cut(name, " ")
		status, h, b := a.call(method, parameter.ReplaceAllString(path, "5000"), "")
		if status == 500 {
			t.Errorf("%s: %d %s", name, status, b)
		}
		if kind := h.Get("Content-Type"); status >= 400 && !strings.HasPrefix(kind, "application/json") && !strings.HasPrefix(kind, "text/plain") {
			t.Errorf("%s: %d with content type %s", name, status, kind)
		}
		if status == 501 && !bytes.Contains(b, []byte(`"code":"NOT_SUPPORTED"`)) {
			t.Errorf("%s: %d %s", name, status, b)
		}
		return status != 501 && status != 405 && !(status == 404 && bytes.Contains(b, []byte("there is no route")))
	}
	names := readList(t, "extensions.txt")
	for _, op := range readOperations(t) {
		names = append(names, op.name)
	}
	for _, name := range names {
		if !ask(name) {
			t.Errorf("%s is not served", name)
		}
	}
}
