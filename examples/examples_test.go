// Package examples checks that the examples are short, run, and print what
// they promise.
package examples

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/daytona-go/daytona/backend/local"
)

// want is what each example prints, as a regular expression.
var want = map[string]string{
	"run-code": `^code: 45
shell: TO A PIPE
\(exit code 3\)
program: exit code 2, it said: ls: .*/no/such/directory.*
endless: stopped after "thinking…\\n"
$`,
	"files": `^uploaded 6000 bytes
(found .*\n)*found data/numbers\.csv
(found .*\n)*found notes/todo\.txt
(found .*\n)*line 1: buy milk
buy oat milk
call Ada
nowhere does not exist
$`,
	"sessions": `^Ada is in /tmp
it read: a line
size as asked for: true, exit code 7
$`,
	"ports": `^200 OK: Hello from the inside
$`,
	"parallel": `^print\(sum\(i \* i .* right
print\(sum\(i \^ 2 .* wrong
print\(sum\(squares\)\) .* broken
while True: pass .* never ends
$`,
}

func TestExamples(t *testing.T) {
	for _, f := range local.Diagnose(t.Context(), nil) {
		if f.Status == "missing" {
			t.Skipf("this machine cannot run sandboxes: %s: %s", f.Name, f.Detail)
		}
	}
	bin := t.TempDir()
	build := exec.Command("go", "build", "-o", bin+"/", "./...", "../cmd/daytona-agent", "../cmd/daytona-net")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	for name, output := range want {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, filepath.Join(bin, name))
			cmd.Dir = t.TempDir()
			var stderr strings.Builder
			cmd.Stderr = &stderr
			out, err := cmd.Output()
			if err != nil {
				t.Fatalf("%v\n%s\n%s", err, out, stderr.String())
			}
			if !regexp.MustCompile(output).Match(out) {
				t.Errorf("printed:\n%swant a match of:\n%s", out, output)
			}
		})
	}
}

// TestExamplesAreShort: an example fits a page, and says first what it shows.
func TestExamplesAreShort(t *testing.T) {
	files, err := filepath.Glob("*/*.go")
	if err != nil || len(files) < len(want) {
		t.Fatalf("found %v, %v", files, err)
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(text), "\n"); n > 80 {
			t.Errorf("%s has %d lines, more than 80", f, n)
		}
		if !strings.HasPrefix(string(text), "// ") || !strings.Contains(string(text), "//\tgo ") {
			t.Errorf("%s does not begin with what it shows and how to run it", f)
		}
	}
}
