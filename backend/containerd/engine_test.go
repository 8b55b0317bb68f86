//go:build linux

package containerd_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/backend/backendtest"
	"github.com/daytona-go/daytona/backend/containerd"
)

// daemon is a containerd of the test's own, which can be killed and started
// again.
type daemon struct {
	t   *testing.T
	dir string
	cmd *exec.Cmd
	log *backendtest.LockedBuffer
}

// newDaemon starts one with its files below dir.
func newDaemon(t *testing.T, dir string) *daemon {
	t.Helper()
	if why := missing(t.Context()); why != "" {
		t.Skip(why)
	}
	if _, err := exec.LookPath("containerd"); err != nil {
		t.Skipf("a containerd of its own: %v", err)
	}
	d := &daemon{t: t, dir: dir, log: &backendtest.LockedBuffer{}}
	// Of the daemon's configuration, versions 2 and 3 have these in common.
	config := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = %q\n",
		filepath.Join(dir, "root"), filepath.Join(dir, "state"), d.address())
	if err := os.WriteFile(filepath.Join(dir, "config.toml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.close)
	d.Start()
	return d
}

func (d *daemon) address() string { return filepath.Join(d.dir, "s") }

func (d *daemon) Start() {
	d.t.Helper()
	d.cmd = exec.Command("containerd", "--config", filepath.Join(d.dir, "config.toml"))
	d.cmd.Stdout, d.cmd.Stderr = d.log, d.log
	if err := d.cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		c, err := client.New(d.address(), client.WithTimeout(time.Second))
		if err == nil {
			_, err = c.Version(d.t.Context())
			c.Close()
		}
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			d.t.Fatalf("containerd does not start: %v\n%s", err, d.log.Tail())
		}
	}
}

func (d *daemon) Kill() {
	_ = d.cmd.Process.Kill()
	_ = d.cmd.Wait()
}

func (d *daemon) close() {
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	_ = d.cmd.Wait()
	mounts, _ := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[1], d.dir+"/") {
			_ = unix.Unmount(f[1], unix.MNT_DETACH)
		}
	}
	if d.t.Failed() {
		d.t.Logf("containerd's log ends with:\n%s", d.log.Tail())
	}
}

// TestEngineKilled: containerd is killed in the middle of operations, and comes
// back.
func TestEngineKilled(t *testing.T) {
	d := newDaemon(t, t.TempDir())
	h := harness()
	h.Open = func(ctx context.Context, state string) (daytona.Backend, error) {
		o := options(state)
		o.Address = d.address()
		return containerd.New(ctx, o)
	}
	h.Leftovers = func(ctx context.Context, state string) ([]string, error) { return leftoversOf(ctx, d.address(), state) }
	backendtest.RunEngineCrash(t, h, d)
}

// TestWithoutEngine: programs in a sandbox need no containerd.
func TestWithoutEngine(t *testing.T) {
	d := newDaemon(t, t.TempDir())
	o := options(t.TempDir())
	o.Address = d.address()
	c, err := containerd.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	sb, err := c.Create(t.Context(), daytona.Spec{})
	if err != nil {
		t.Fatal(err)
	}
	d.Kill()
	if r, err := sb.Process().Exec(t.Context(), "echo still here", nil); err != nil || r.Output != "still here\n" {
		t.Errorf("%+v, %v", r, err)
	}
	if err := sb.Stop(t.Context(), nil); err != nil {
		t.Errorf("stop: %v", err)
	}
	d.Start()
	if err := sb.Start(t.Context()); err != nil {
		t.Errorf("start: %v", err)
	}
	if err := sb.Delete(t.Context()); err != nil {
		t.Error(err)
	}
}
