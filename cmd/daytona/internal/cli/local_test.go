package cli_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/cmd/daytona/internal/cli"
)

// builtDir is what built returned, for TestMain to remove.
var builtDir string

// built is the directory of the real program with its helpers beside it.
var built = sync.OnceValues(func() (dir string, err error) {
	if dir, err = os.MkdirTemp("", "daytona-cli-test-"); err != nil {
		return "", err
	}
	builtDir = dir
	const module = "github.com/daytona-go/daytona/cmd/"
	cmd := exec.Command("go", "build", "-o", dir+"/", module+"daytona", module+"daytona-agent", module+"daytona-net", module+"daytona-s3fs")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return dir, fmt.Errorf("build: %w\n%s", err, out)
	}
	// A sandbox's user must be able to get to its files.
	return dir, os.Chmod(dir, 0o755)
})

// localShell runs the real program over the embedded backend, or skips the
// test where this machine has no sandboxes.
func localShell(t *testing.T) *shell {
	t.Helper()
	bin, err := built()
	if err != nil {
		t.Fatal(err)
	}
	s := &shell{t: t, program: filepath.Join(bin, "daytona"), dir: t.TempDir(), env: []string{
		"DAYTONA_BACKEND=local://" + t.TempDir(),
		"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "TERM=xterm-test",
	}}
	var findings []cli.Finding
	r := s.run("doctor", "-o", "json")
	if err := json.Unmarshal([]byte(r.stdout), &findings); err != nil {
		t.Fatal(err, r)
	}
	var missing []string
	for _, f := range findings {
		if f.Status == "missing" {
			missing = append(missing, f.Name+": "+f.Detail)
		}
		if f.Name == "memory limit" {
			s.memory = f.Status == "ok"
		}
	}
	if len(missing) > 0 {
		t.Skip("this machine cannot run sandboxes: " + strings.Join(missing, "; "))
	}
	t.Cleanup(func() { s.cleanup() })
	return s
}

// cleanup deletes what a failed test left.
func (s *shell) cleanup() {
	cmd := exec.CommandContext(context.Background(), s.program, "sandbox", "delete", "--all", "--force")
	cmd.Env = s.env
	if out, err := cmd.CombinedOutput(); err != nil {
		s.t.Errorf("clean up: %v\n%s", err, out)
	}
}

// TestDetached: a program in the background outlives its command, and its
// output is there to be read.
func TestDetached(t *testing.T) {
	s := localShell(t)
	s.write("count.sh", "for i in 1 2 3; do echo line $i; echo error $i >&2; sleep 0.2; done; cat; exit 3\n", 0o644)
	if got := s.ok("run", "-d", "--name", "job", "--", "sh", "count.sh"); got != "job\n" {
		t.Fatalf("got %q", got)
	}
	r := s.run("sandbox", "logs", "-f", "job")
	if r.code != 0 || r.stdout != "line 1\nline 2\nline 3\n" || r.stderr != "error 1\nerror 2\nerror 3\n" {
		t.Error(r)
	}
	r = s.run("sandbox", "logs", "job")
	if r.code != 0 || r.stdout != "line 1\nline 2\nline 3\n" {
		t.Error(r)
	}
	if r := s.run("sandbox", "logs", "--session", "other", "job"); r.code != 125 || !strings.Contains(r.stderr, "run") {
		t.Error(r)
	}
	if got := s.ok("__complete", "sandbox", "logs", "job", "--session", ""); !strings.HasPrefix(got, "run\n") && !strings.Contains(got, "\nrun\n") {
		t.Errorf("completion: %q", got)
	}
	s.ok("sandbox", "delete", "job")
	s.nothingLeft()
}

// TestEntrypoint: the program of a kept sandbox runs whenever it does.
func TestEntrypoint(t *testing.T) {
	s := localShell(t)
	s.ok("sandbox", "create", "--name", "web", "--", "sh", "-c", "echo up; exec sleep 600")
	cmd := s.command("sandbox", "logs", "-f", "web")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 3)
	if _, err := out.Read(b); err != nil || string(b) != "up\n" {
		t.Errorf("got %q, %v", b, err)
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if code := exitCode(t, cmd.Wait()); code != 130 {
		t.Errorf("exit code %d", code)
	}
	s.ok("sandbox", "delete", "web")
}

// TestVolumeMount: a volume carries files from one run to the next.
func TestVolumeMount(t *testing.T) {
	s := localShell(t)
	s.ok("volume", "create", "data")
	s.ok("run", "-v", "data:/data", "--", "sh", "-c", "echo kept > /data/file")
	if got := s.ok("run", "-v", "data:/data:ro", "--", "cat", "/data/file"); got != "kept\n" {
		t.Errorf("got %q", got)
	}
	if r := s.run("run", "-v", "data:/data:ro", "--", "touch", "/data/other"); r.code != 1 {
		t.Error(r)
	}
	if r := s.run("run", "-v", "nowhere:/data", "--", "true"); r.code != 125 || !strings.Contains(r.stderr, "daytona volume create") {
		t.Error(r)
	}
	s.ok("volume", "delete", "data")
	s.nothingLeft()
}

// TestKilled: not even kill -9 leaves a sandbox behind.
func TestKilled(t *testing.T) {
	s := localShell(t)
	cmd := s.command("run", "--", "sh", "-c", "echo ready; sleep 600")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var errs bytes.Buffer
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 6)); err != nil {
		t.Fatal(err, errs.String())
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed, of course
	s.nothingLeft()
}

// TestIsolated: a run sees neither this machine's files nor its programs.
func TestIsolated(t *testing.T) {
	s := localShell(t)
	s.write("secret", "s", 0o644)
	if r := s.run("run", "--no-auto-upload", "--", "cat", filepath.Join(s.dir, "secret")); r.code != 1 || r.stdout != "" {
		t.Error(r)
	}
	if got := s.ok("run", "--net", "none", "--", "sh", "-c", "ls /sys/class/net 2>/dev/null | grep -v '^lo$'; ps ax 2>/dev/null | grep -c '[c]li.test'"+"; true"); strings.TrimSpace(got) != "0" && strings.TrimSpace(got) != "" {
		t.Errorf("got %q", got)
	}
	var info daytona.Info
	s.ok("sandbox", "create", "--name", "small", "--net", "none", "--pids", "64")
	if err := json.Unmarshal([]byte(s.ok("sandbox", "info", "small", "-o", "json")), &info); err != nil || !info.Network.Block || info.Resources.Processes != 64 {
		t.Errorf("%+v, %v", info, err)
	}
	s.ok("sandbox", "delete", "small")
}
