//go:build linux

package docker_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/backend/backendtest"
	"github.com/daytona-go/daytona/backend/docker"
)

// engine is a Docker engine of the test's own, in a network namespace of its
// own, so that it does not see to the machine's bridges and firewall. It can be
// killed and started again.
type engine struct {
	t         *testing.T
	dir, host string
	opts      engineOptions
	network   *exec.Cmd // holds the namespace
	dockerd   *exec.Cmd
	log       *backendtest.LockedBuffer
}

type engineOptions struct {
	args []string // for dockerd
	hide string   // a directory that it cannot look into
}

// newEngine starts one with its files below dir, on a file system that the
// engine can have overlays on.
func newEngine(t *testing.T, dir string, opts engineOptions) *engine {
	t.Helper()
	if why := missing(); why != "" {
		t.Skip(why)
	}
	for _, program := range []string{"dockerd", "unshare", "nsenter", "ip"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("an engine of its own: %v", err)
		}
	}
	e := &engine{t: t, dir: dir, host: "unix://" + filepath.Join(dir, "s"), opts: opts, log: &backendtest.LockedBuffer{}}
	e.network = exec.Command("unshare", "-n", "sh", "-c", "ip link set lo up && echo && exec sleep infinity")
	up, err := e.network.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := e.network.Start(); err != nil {
		t.Skipf("a network namespace: %v", err)
	}
	if n, err := up.Read(make([]byte, 1)); n != 1 {
		t.Fatalf("a network namespace: %v", err)
	}
	t.Cleanup(e.close)
	e.Start()
	return e
}

func (e *engine) Start() {
	e.t.Helper()
	args := []string{"-n", "-t", strconv.Itoa(e.network.Process.Pid)}
	if e.opts.hide != "" {
		args = append(args, "unshare", "-m", "sh", "-c", `mount -t tmpfs none "$0" && exec "$@"`, e.opts.hide)
	}
	// Nothing of what the machine's own engine is told, or has.
	config := filepath.Join(e.dir, "daemon.json")
	if err := os.WriteFile(config, []byte("{}"), 0o600); err != nil {
		e.t.Fatal(err)
	}
	args = append(args, "dockerd", "--config-file", config, "--containerd-namespace", fmt.Sprintf("test-%d", e.network.Process.Pid), "--host", e.host, "--data-root", filepath.Join(e.dir, "data"),
		"--exec-root", filepath.Join(e.dir, "exec"), "--pidfile", filepath.Join(e.dir, "pid"))
	e.dockerd = exec.Command("nsenter", append(args, e.opts.args...)...)
	e.dockerd.Stdout, e.dockerd.Stderr = e.log, e.log
	if err := e.dockerd.Start(); err != nil {
		e.t.Fatal(err)
	}
	for deadline := time.Now().Add(60 * time.Second); exec.Command("docker", "-H", e.host, "info").Run() != nil; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			e.t.Fatalf("the engine does not start:\n%s", e.log.Tail())
		}
	}
}

// Kill is SIGKILL for the engine, and with it for its containerd, which it has
// the kernel kill when it dies itself. Containers go on.
func (e *engine) Kill() {
	_ = e.dockerd.Process.Kill()
	_ = e.dockerd.Wait()
	// An engine takes one that is dead, but that nobody has waited for, for a
	// containerd that it can use.
	file := filepath.Join(e.dir, "exec", "containerd", "containerd.pid")
	pid, err := os.ReadFile(file)
	if err != nil {
		return // it uses the machine's
	}
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		stat, err := os.ReadFile(filepath.Join("/proc", strings.TrimSpace(string(pid)), "stat"))
		if err != nil || bytes.Contains(stat, []byte(") Z ")) {
			os.Remove(file)
			return
		}
	}
	e.t.Error("the engine's containerd outlives it")
}

func (e *engine) docker(args ...string) string {
	e.t.Helper()
	out, err := exec.Command("docker", append([]string{"-H", e.host}, args...)...).CombinedOutput()
	if err != nil {
		e.t.Fatalf("docker %q: %v: %s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// processes are those of containers: their root is below the engine's directory.
// (Not the engine's shims: of 20.10 one stays, without a process in it, when the
// engine is killed after it has started it and before it has written that down.
// Nobody can reach it through the API.)
func (e *engine) processes() []string {
	var found []string
	entries, _ := os.ReadDir("/proc")
	for _, d := range entries {
		mounts, err := os.ReadFile(filepath.Join("/proc", d.Name(), "mounts"))
		if err != nil {
			continue
		}
		root, _, _ := strings.Cut(string(mounts), "\n")
		if strings.HasPrefix(root, "overlay / ") && strings.Contains(root, e.dir+"/") {
			line, _ := os.ReadFile(filepath.Join("/proc", d.Name(), "cmdline"))
			found = append(found, fmt.Sprintf("%s %q", d.Name(), strings.ReplaceAll(string(line), "\x00", " ")))
		}
	}
	return found
}

// shims are the engine's own processes beside it.
func (e *engine) shims() []int {
	var found []int
	entries, _ := os.ReadDir("/proc")
	for _, d := range entries {
		line, _ := os.ReadFile(filepath.Join("/proc", d.Name(), "cmdline"))
		program, _, _ := strings.Cut(string(line), "\x00")
		if pid, err := strconv.Atoi(d.Name()); err == nil && strings.HasPrefix(filepath.Base(program), "containerd-shim") && strings.Contains(string(line), e.dir+"/") {
			found = append(found, pid)
		}
	}
	return found
}

func (e *engine) close() {
	if e.dockerd != nil {
		_ = e.dockerd.Process.Signal(syscall.SIGTERM)
		_ = e.dockerd.Wait()
	}
	for _, pid := range e.shims() {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	_ = e.network.Process.Kill()
	_ = e.network.Wait()
	mounts, _ := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[1], e.dir+"/") {
			_ = unix.Unmount(f[1], unix.MNT_DETACH)
		}
	}
	if e.t.Failed() {
		e.t.Logf("the engine's log ends with:\n%s", e.log.Tail())
	}
}

// smallLayout is backendtest.SmallImage as a file of this machine.
func smallLayout(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	l, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.AppendImage(backendtest.SmallImage(t), layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "small"})); err != nil {
		t.Fatal(err)
	}
	return "oci:" + dir + ":small"
}

// archive writes backendtest.SmallImage as `docker save` would.
func archive(t *testing.T, path string) {
	t.Helper()
	tag, err := name.NewTag("small:latest")
	if err == nil {
		err = tarball.WriteToFile(path, tag, backendtest.SmallImage(t))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestCollected is about what stays in the engine: an image from a file goes when
// it has not been used for long enough and no container is made of it, and there
// is one volume with the agent, also after somebody has removed it.
func TestCollected(t *testing.T) {
	e := newEngine(t, t.TempDir(), engineOptions{})
	c := opened(t, docker.Options{Host: e.host, Image: "none", KeepImported: time.Nanosecond})
	var made []daytona.Sandbox
	tags := func() int { return len(strings.Fields(e.docker("images", "-q", "daytona.local/import"))) }
	for range 2 {
		made = append(made, created(t, c, daytona.Spec{Image: smallLayout(t), User: "root"}))
	}
	if n := tags(); n != 2 {
		t.Errorf("%d images of two sandboxes", n)
	}
	if err := made[0].Delete(t.Context()); err != nil {
		t.Fatal(err)
	}
	created(t, c, daytona.Spec{Image: smallLayout(t), User: "root"})
	if n := tags(); n != 2 {
		t.Errorf("%d images, want those of the two sandboxes that are left", n)
	}
	volumes := func() []string {
		return strings.Fields(e.docker("volume", "ls", "-q", "--filter", "label=io.github.daytona-go.agent"))
	}
	before := volumes()
	for sb, err := range c.List(t.Context(), nil) {
		if err == nil {
			err = sb.Delete(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	e.docker(append([]string{"volume", "rm"}, before...)...)
	created(t, c, daytona.Spec{Image: smallLayout(t), User: "root"})
	if after := volumes(); len(before) != 1 || len(after) != 1 || after[0] == before[0] {
		t.Errorf("volumes with the agent: %q, after they were removed %q", before, after)
	}
}

// TestEngineKilled kills the engine with SIGKILL in the middle of operations,
// and starts it again: nothing may be lost, nothing may be left, and nothing may
// wait for ever.
func TestEngineKilled(t *testing.T) {
	for _, live := range []bool{false, true} {
		name, args := "containers die with it", []string(nil)
		if live {
			name, args = "live restore", []string{"--live-restore"}
		}
		t.Run(name, func(t *testing.T) { testEngineKilled(t, engineOptions{args: args}) })
	}
}

func testEngineKilled(t *testing.T, opts engineOptions) {
	e := newEngine(t, t.TempDir(), opts)
	h := harness()
	h.Open = func(ctx context.Context, state string) (daytona.Backend, error) {
		return docker.New(ctx, &docker.Options{Host: e.host, Dir: state, Transport: os.Getenv(transportVariable)})
	}
	h.Spec.Image = smallLayout(t)
	h.Leftovers = func(_ context.Context, state string) ([]string, error) {
		left, err := filepath.Glob(filepath.Join(state, "sandboxes", "*"))
		if err != nil {
			return nil, err
		}
		for id := range strings.FieldsSeq(e.docker("ps", "-a", "-q")) {
			left = append(left, "container "+id)
		}
		return append(left, e.processes()...), nil
	}
	backendtest.RunEngineCrash(t, h, e)
	if out := e.docker("images", "--format", "{{.Repository}}"); out != "daytona.local/import" {
		t.Errorf("images %q", out)
	}
}
