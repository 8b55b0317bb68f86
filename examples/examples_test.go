// Package examples checks that the examples are short, run, and print what
// they promise.
package examples

import (
	"context"
	"fmt"
	"maps"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
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
	"watch": `^create report
create a
rename final
(open .*\n)*open 8000 python3
$`,
	"lsp": `^(there is no language server for Python in the sandbox|(.*\n)*completion: area(\(radius\))?
(.*\n)*7:23: error: undefined name 'sqaure'
(.*\n)*renamed in 2 places)
$`,
	"git": `^poem\.txt on main: Untracked
poem\.txt on second: Modified
second by Ada: Violets are blue
second by Ada: Roses are red
$`,
	"ssh": `^SHOUT
heard through the door: hello
$`,
	"fork": `^pear, fig, apple
$`,
	"interpreter": `^6 words
value: True
exception: ZeroDivisionError: division by zero, line 2, in ratio
timeout: true
still 6
then InterpreterExited
context: \('/', False, 'Ada'\)
$`,
	"charts": `^(the code failed: ModuleNotFoundError: .*|composite_chart: A composite chart
  line: Stations, 2 elements
  bar: Cars, 3 elements
pie: Budget
  rent: 162°
  food: 108°
  rest: 90°)
$`,
	"desktop": `^window: Example
written: Grüße vom Desktop
$`,
	"mount": `^a page of ours
a sandbox of theirs
$`,
	"parallel": `^print\(sum\(i \* i .* right
print\(sum\(i \^ 2 .* wrong
print\(sum\(squares\)\) .* broken
while True: pass .* never ends
$`,
}

// inImage are examples that run in engines of images, too, and the variants of
// image/sandbox that have what each needs.
var inImage = map[string][]string{
	"charts":      {"default", "desktop"},
	"desktop":     {"desktop"},
	"git":         {"slim", "default", "desktop"},
	"interpreter": {"slim", "default", "desktop"},
	"lsp":         {"default", "desktop"},
	"sessions":    {"slim", "default", "desktop"},
}

// lacking is what examples say on a machine that lacks what they are about; an
// image that is said to fit must not make them say it.
const lacking = "ModuleNotFoundError|there is no language server"

func TestExamples(t *testing.T) {
	bin := build(t)
	for name := range want {
		t.Run(name, func(t *testing.T) {
			if why := noLocal(t); why != "" {
				t.Skip(why)
			}
			if name == "desktop" {
				for _, program := range []string{"Xvfb", "icewm", "xterm"} {
					if _, err := exec.LookPath(program); err != nil {
						t.Skipf("this machine has no %s", program)
					}
				}
			}
			check(t, bin, name, nil)
		})
	}
	for name := range inImage {
		cmd := exec.Command(filepath.Join(bin, name))
		cmd.Env = append(os.Environ(), "DAYTONA_BACKEND=none://")
		if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "none") {
			t.Errorf("%s does not ask DAYTONA_BACKEND: %v %s", name, err, out)
		}
	}
	t.Run("every backend", func(t *testing.T) { everyBackend(t, bin) })
}

// everyBackend runs one and the same program on all backends, said by flag or by
// variable. The flag comes first. Programs that need more than that one run where
// an image has it.
func everyBackend(t *testing.T, bin string) {
	images := strings.Split(os.Getenv("DAYTONA_TEST_IMAGES"), ",")
	first := images[0]
	for _, x := range []struct {
		name    string
		url     func(dir, image string) string
		missing func() string
		// also are examples to run in an image that has what they need, and args what
		// these then take beside the URL.
		also []string
		args func(image string) []string
	}{
		{"local", func(dir, _ string) string { return "local://" + dir }, func() string { return noLocal(t) },
			[]string{"desktop"}, func(image string) []string { return []string{"-image", image} }},
		{"docker", func(dir, image string) string { return "docker://" + dir + "?image=" + url.QueryEscape(image) }, func() string { return noEngine(first, "docker", "info") },
			slices.Sorted(maps.Keys(inImage)), func(string) []string { return nil }},
		{"containerd", func(dir, image string) string {
			return "containerd://" + dir + "?namespace=daytona-test&image=" + url.QueryEscape(image)
		}, func() string { return noEngine(first, "ctr", "version") }, nil, nil},
		{"plugin", func(dir, _ string) string { return "plugin://" + bin + "/plugin?dir=" + dir }, func() string { return noLocal(t) }, nil, nil},
	} {
		t.Run(x.name, func(t *testing.T) {
			if why := x.missing(); why != "" {
				t.Skip(why)
			}
			t.Run("by flag", func(t *testing.T) {
				check(t, bin, "run-code", []string{"DAYTONA_BACKEND=none://"}, "-backend", x.url(t.TempDir(), first))
			})
			t.Run("by variable", func(t *testing.T) {
				check(t, bin, "run-code", []string{"DAYTONA_BACKEND=" + x.url(t.TempDir(), first)})
			})
			for _, name := range x.also {
				t.Run(name, func(t *testing.T) {
					i := slices.IndexFunc(images, func(ref string) bool { return slices.Contains(inImage[name], ref[strings.LastIndexByte(ref, ':')+1:]) })
					if i < 0 {
						t.Skipf("DAYTONA_TEST_IMAGES lists no image of these variants: %q", inImage[name])
					}
					out := check(t, bin, name, []string{"DAYTONA_BACKEND=" + x.url(t.TempDir(), images[i])}, x.args(images[i])...)
					if said := regexp.MustCompile(lacking).FindString(out); said != "" {
						t.Errorf("in %s it says: %s", images[i], said)
					}
				})
			}
		})
	}
}

// noLocal says why the local backend does not run on this machine; "" if it
// does.
func noLocal(t *testing.T) string {
	for _, f := range local.Diagnose(t.Context(), nil) {
		if f.Status == "missing" {
			return fmt.Sprintf("this machine cannot run sandboxes: %s: %s", f.Name, f.Detail)
		}
	}
	return ""
}

// noEngine says why an engine that a command asks for cannot be used.
func noEngine(image, command string, args ...string) string {
	switch {
	case os.Geteuid() != 0:
		return "this backend needs root"
	case exec.Command(command, args...).Run() != nil:
		return fmt.Sprintf("no engine answers (%s %s)", command, strings.Join(args, " "))
	case image == "":
		return "no image: run `make image` and set DAYTONA_TEST_IMAGES to what it prints"
	}
	return ""
}

// build compiles the examples, and what backends look for beside a program.
func build(t *testing.T) string {
	t.Helper()
	bin := t.TempDir()
	build := exec.Command("go", "build", "-o", bin+"/", "./...", "../cmd/daytona-agent", "../cmd/daytona-net", "../cmd/daytona-s3fs")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return bin
}

// check runs an example, which must print what it promises, and returns that. An
// image may have to be unpacked first.
func check(t *testing.T, bin, name string, env []string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(bin, name), args...)
	cmd.Dir = t.TempDir()
	cmd.Env = append(os.Environ(), env...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s\n%s", err, out, stderr.String())
	}
	if !regexp.MustCompile(want[name]).Match(out) {
		t.Errorf("printed:\n%swant a match of:\n%s", out, want[name])
	}
	return string(out)
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
