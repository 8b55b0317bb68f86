package local_test

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/backend/local"
)

// Real programs with test suites of their own must give the same result inside
// as outside.

func realSandbox(t *testing.T, spec daytona.Spec) (context.Context, daytona.Sandbox) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	t.Cleanup(cancel)
	client, err := local.Open(ctx, &local.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	})
	sb, err := client.Create(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	return ctx, sb
}

// TestRealInputCPython runs parts of CPython's own test suite.
func TestRealInputCPython(t *testing.T) {
	const python = "/usr/bin/python3"
	if err := exec.Command(python, "-c", "import test.test_json, test.test_subprocess").Run(); err != nil {
		t.Skip("CPython's test suite is not installed (Debian: apt-get install libpython3.11-testsuite)")
	}
	args := []string{"-m", "test", "test_json", "test_re", "test_string", "test_itertools", "test_tarfile", "test_threading", "test_subprocess"}
	if testing.Short() {
		args = args[:5]
	}
	if os.Geteuid() != 0 && !hasRange() {
		// With one user only, becoming another is EINVAL, where these tests,
		// not being root's, want EPERM.
		args = append(args, "-i", "*test_user*", "-i", "*test_group*", "-i", "*test_extra_groups*")
	}
	run := exec.Command(python, args...)
	run.Dir = t.TempDir()
	outside, err := run.CombinedOutput()
	if err != nil {
		t.Skipf("the suite fails on this machine outside of any sandbox: %v\n%s", err, outside)
	}
	ctx, sb := realSandbox(t, daytona.Spec{})
	inside, err := sb.Process().Command(ctx, python, args...).CombinedOutput()
	if err != nil {
		t.Errorf("inside: %v", err)
	}
	if got, want := pythonOutcome(inside), pythonOutcome(outside); got != want {
		t.Errorf("inside:\n%s\noutside:\n%s\noutput inside:\n%s", got, want, inside)
	}
}

// pythonOutcome is what regrtest says at the end, but for times.
func pythonOutcome(out []byte) string {
	_, tail, _ := strings.Cut(string(out), "== Tests result")
	return regexp.MustCompile(`(?m)^Total duration.*\n`).ReplaceAllString(tail, "")
}

// TestRealInputGoModule uploads a Go module and runs its tests with the Go
// toolchain of the host.
func TestRealInputGoModule(t *testing.T) {
	goTool, err := exec.LookPath("go")
	if err != nil {
		t.Skip("no Go toolchain")
	}
	root, err := exec.Command(goTool, "env", "GOROOT").Output()
	if err != nil || !strings.HasPrefix(string(root), "/usr/") && !strings.HasPrefix(string(root), "/opt/") {
		t.Skipf("the Go toolchain is in %q, which sandboxes do not see; they see /usr and /opt", strings.TrimSpace(string(root)))
	}
	inside := filepath.Join(strings.TrimSpace(string(root)), "bin", "go")
	// A dependency of this module that needs no other for its tests.
	const module = "github.com/spf13/pflag"
	out, err := exec.Command(goTool, "list", "-m", "-f", "{{.Dir}}", module).Output()
	dir := strings.TrimSpace(string(out))
	if err != nil || dir == "" {
		t.Skipf("%s is not in the module cache: %v", module, err)
	}
	want := goTest(t, func() *exec.Cmd {
		c := exec.Command(goTool, "test", "-json", "-count=1", ".")
		c.Dir = copyOf(t, dir)
		c.Env = append(os.Environ(), "GOFLAGS=-mod=mod", "GOPROXY=off", "GOWORK=off")
		return c
	}().Output)

	ctx, sb := realSandbox(t, daytona.Spec{WorkDir: "/home/daytona/module"})
	var files []daytona.FileUpload
	err = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(p)
		if err != nil {
			return err
		}
		t.Cleanup(func() { f.Close() })
		rel, err := filepath.Rel(dir, p)
		files = append(files, daytona.FileUpload{Path: rel, Content: f})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := sb.FileSystem().UploadFiles(ctx, files); err != nil {
		t.Fatal(err)
	}
	cmd := sb.Process().Command(ctx, inside, "test", "-json", "-count=1", ".")
	cmd.Env = map[string]string{"GOFLAGS": "-mod=mod", "GOPROXY": "off", "GOWORK": "off", "GOTOOLCHAIN": "local"}
	got := goTest(t, cmd.Output)
	if !maps.Equal(got, want) {
		for _, name := range slices.Sorted(maps.Keys(want)) {
			if got[name] != want[name] {
				t.Errorf("%s: %q inside, %q outside", name, got[name], want[name])
			}
		}
	}
	if len(want) < 100 {
		t.Errorf("only %d tests ran outside", len(want))
	}
}

// goTest runs "go test -json" and returns the outcome of each test.
func goTest(t *testing.T, run func() ([]byte, error)) map[string]string {
	t.Helper()
	out, err := run()
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		t.Logf("%s", e.Stderr)
	}
	results := map[string]string{}
	for line := range strings.Lines(string(out)) {
		var e struct{ Action, Test string }
		if json.Unmarshal([]byte(line), &e) == nil && e.Test != "" && (e.Action == "pass" || e.Action == "fail" || e.Action == "skip") {
			results[e.Test] = e.Action
		}
	}
	if len(results) == 0 {
		t.Fatalf("no test ran: %v\n%s", err, out)
	}
	return results
}

// copyOf copies a directory of the module cache, which is read-only.
func copyOf(t *testing.T, dir string) string {
	t.Helper()
	to := t.TempDir()
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return to
}
