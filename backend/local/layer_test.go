package local

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
)

func openEngine(t *testing.T, dir string) (*engine, *daytona.Client) {
	t.Helper()
	e, err := newEngine(t.Context(), &Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	c := daytona.New(e)
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return e, c
}

func sh(t *testing.T, sb daytona.Sandbox, line string) string {
	t.Helper()
	r, err := sb.Process().Exec(t.Context(), line, nil)
	if err != nil || r.ExitCode != 0 {
		t.Fatalf("%s: %d %s, %v", line, r.ExitCode, r.Output, err)
	}
	return strings.TrimSpace(string(r.Output))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func layersOf(t *testing.T, e *engine) int {
	t.Helper()
	entries, err := os.ReadDir(e.Dir("layers"))
	must(t, err)
	return len(entries)
}

// TestLayers forks and keeps stopped and started sandboxes, and demands that
// layers go with the last who has them.
func TestLayers(t *testing.T) {
	ctx := t.Context()
	e, c := openEngine(t, t.TempDir())
	sb, err := c.Create(ctx, daytona.Spec{})
	must(t, err)
	sh(t, sb, "cd ~; echo one > f; mkdir -m 700 d; ln -s f l; mkfifo p; ln f h; echo x > gone")
	must(t, sb.Stop(ctx, nil))
	for round := range 3 {
		children, err := sb.Fork(ctx, &daytona.ForkOptions{Names: []string{"", "", ""}})
		must(t, err)
		for _, child := range children {
			if got := sh(t, child, "cd ~; cat f; stat -c %a d; readlink l; test -p p && stat -c %h f"); got != "one\n700\nf\n2" {
				t.Errorf("round %d: the child has %q", round, got)
			}
			must(t, child.Delete(ctx))
		}
	}
	if n := layersOf(t, e); n != 1 {
		t.Errorf("%d layers after three forks of a stopped sandbox that did not change, want 1", n)
	}
	must(t, sb.Start(ctx))
	sh(t, sb, "cd ~; test $(cat f) = one; rm gone; rm -r d; mkdir d; echo two > d/new; truncate -s 1G sparse")
	children, err := sb.Fork(ctx, nil)
	must(t, err)
	if got := sh(t, children[0], "cd ~; ls; cat d/new; stat -c %b sparse"); got != "d\nf\nh\nl\np\nsparse\ntwo\n0" {
		t.Errorf("the child of a started one has %q", got)
	}
	if children[0].Info().Parent != sb.ID() {
		t.Errorf("Parent = %q", children[0].Info().Parent)
	}
	snap, err := children[0].CreateSnapshot(ctx, "s")
	must(t, err)
	if snap.SizeBytes == 0 || snap.Sandbox != children[0].ID() {
		t.Errorf("snapshot %+v", snap)
	}
	must(t, sb.Delete(ctx))
	must(t, children[0].Delete(ctx))
	s, err := c.Snapshots()
	must(t, err)
	if _, err := s.SetSnapshotActive(ctx, "s", false); err != nil {
		t.Error(err)
	}
	if _, err := c.Create(ctx, daytona.Spec{Snapshot: "s"}); !errors.Is(err, daytona.ErrState) {
		t.Errorf("Create from an inactive snapshot: %v", err)
	}
	_, err = s.SetSnapshotActive(ctx, "s", true)
	must(t, err)
	from, err := c.Create(ctx, daytona.Spec{Snapshot: snap.ID})
	must(t, err)
	must(t, s.DeleteSnapshot(ctx, "s"))
	if got := sh(t, from, "cd ~; cat d/new f"); got != "two\none" {
		t.Errorf("a sandbox of a deleted snapshot has %q", got)
	}
	must(t, from.Stop(ctx, nil))
	must(t, from.Start(ctx))
	if got := sh(t, from, "cd ~; cat d/new f"); got != "two\none" {
		t.Errorf("after a restart it has %q", got)
	}
	must(t, from.Delete(ctx))
	if n := layersOf(t, e); n != 0 {
		t.Errorf("%d layers are left of nobody", n)
	}
}

// TestIdentity demands that a fork is a machine of its own.
func TestIdentity(t *testing.T) {
	ctx := t.Context()
	_, c := openEngine(t, t.TempDir())
	sb, err := c.Create(ctx, daytona.Spec{User: "root"})
	must(t, err)
	sh(t, sb, "echo 0123456789abcdef0123456789abcdef > /etc/machine-id; mkdir -p /etc/ssh /var/lib/dbus; ln -s /etc/machine-id /var/lib/dbus/machine-id; echo k > /etc/ssh/ssh_host_rsa_key; echo c > /etc/ssh/sshd_config")
	seen := map[string]bool{sh(t, sb, "cat /etc/machine-id; hostname"): true}
	children, err := sb.Fork(ctx, &daytona.ForkOptions{Names: []string{"a", "b"}})
	must(t, err)
	for _, child := range children {
		id := sh(t, child, "cat /etc/machine-id; hostname")
		if len(id) < 33 || seen[id] || strings.HasPrefix(id, "0123456789") {
			t.Errorf("machine id %q", id)
		}
		seen[id] = true
		if got := sh(t, child, "ls /etc/ssh; cat /var/lib/dbus/machine-id"); got != "sshd_config\n"+id[:32] {
			t.Errorf("%q", got)
		}
		must(t, child.Stop(ctx, nil))
		must(t, child.Start(ctx))
		if again := sh(t, child, "cat /etc/machine-id; hostname"); again != id {
			t.Errorf("after a restart it is %q, was %q", again, id)
		}
	}
}

// TestForkFails demands that no child is left if one cannot be made.
func TestForkFails(t *testing.T) {
	ctx := t.Context()
	e, c := openEngine(t, t.TempDir())
	sb, err := c.Create(ctx, daytona.Spec{Name: "parent"})
	must(t, err)
	if _, err := sb.Fork(ctx, &daytona.ForkOptions{Names: []string{"x", "y", "parent", "z"}}); !errors.Is(err, daytona.ErrConflict) {
		t.Fatalf("fork with a taken name: %v", err)
	}
	if _, err := sb.Fork(ctx, &daytona.ForkOptions{Memory: true}); !errors.Is(err, errors.ErrUnsupported) {
		t.Fatalf("fork of the memory: %v", err)
	}
	n := 0
	for range c.List(ctx, nil) {
		n++
	}
	if n != 1 || layersOf(t, e) != 0 {
		t.Errorf("%d sandboxes and %d layers are left", n, layersOf(t, e))
	}
	sh(t, sb, "true")
}

func needsFreezer(t *testing.T, e *engine) {
	t.Helper()
	if err := e.cgroups.canFreeze(); err != nil {
		t.Skip(err)
	}
}

// TestPausedOutlivesEngine pauses a persistent sandbox and finds it, paused, with
// another engine.
func TestPausedOutlivesEngine(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	first, err := newEngine(ctx, &Options{Dir: dir})
	must(t, err)
	defer first.Close()
	needsFreezer(t, first)
	sb, err := daytona.New(first).Create(ctx, daytona.Spec{Name: "p", Persistent: true})
	must(t, err)
	sh(t, sb, "sleep 1000 >/dev/null 2>&1 & echo $! > /var/tmp/pid")
	must(t, sb.Pause(ctx, nil))
	must(t, sb.Pause(ctx, nil))
	// Over the connection that is there, and by one who knows nothing of it.
	e, c := openEngine(t, dir)
	other, err := c.Get(ctx, "p")
	must(t, err)
	for _, s := range []daytona.Sandbox{sb, other} {
		begin := time.Now()
		if _, err := s.Process().Exec(ctx, "true", nil); !errors.Is(err, daytona.ErrState) {
			t.Errorf("a command in a paused sandbox: %v", err)
		}
		if took := time.Since(begin); took > time.Second {
			t.Errorf("it was refused after %v", took)
		}
	}
	must(t, first.Close())
	if other.Info().State != daytona.StatePaused {
		t.Errorf("State = %s", other.Info().State)
	}
	must(t, other.Start(ctx))
	sh(t, other, "kill -0 $(cat /var/tmp/pid)")
	must(t, other.Pause(ctx, nil))
	must(t, other.Stop(ctx, nil))
	if got := other.Info().State; got != daytona.StateStopped {
		t.Errorf("State after the stop of a paused one = %s", got)
	}
	must(t, other.Start(ctx))
	must(t, other.Pause(ctx, nil))
	must(t, other.Delete(ctx))
	if ids := e.cgroups.ids(); len(ids) > 0 {
		t.Errorf("cgroups are left: %v", ids)
	}
}

// TestResizeLimits looks for the limits where programs feel them.
func TestResizeLimits(t *testing.T) {
	ctx := t.Context()
	e, c := openEngine(t, t.TempDir())
	needsFreezer(t, e)
	if !e.root || canLimitDisk() != "" {
		t.Skip("it takes root to limit disks")
	}
	sb, err := c.Create(ctx, daytona.Spec{Resources: daytona.Resources{Memory: 1, Disk: 0.125}})
	must(t, err)
	sh(t, sb, "head -c 300M /dev/zero | tail >/dev/null")
	for _, m := range []float64{0.5, 2, 0.25, 4} {
		must(t, sb.Resize(ctx, daytona.Resources{Memory: m, CPU: 0.5, Processes: 100}))
	}
	// It holds 200 MiB of memory: less is refused.
	sh(t, sb, "setsid python3 -c 'import time; x = bytearray(200<<20); open(\"/var/tmp/up\", \"w\"); time.sleep(1000)' >/dev/null 2>&1 & while ! test -e /var/tmp/up; do sleep 0.1; done")
	if err := sb.Resize(ctx, daytona.Resources{Memory: 0.125}); !errors.Is(err, daytona.ErrConflict) {
		t.Errorf("less memory than is in use: %v", err)
	}
	if i, err := sb.Refresh(ctx); err != nil || i.Resources.Memory != 4 || i.Resources.CPU != 0.5 || i.State != daytona.StateStarted {
		t.Errorf("after a refused change: %+v, %v", i.Resources, err)
	}
	if err := sb.Resize(ctx, daytona.Resources{Disk: 0.25}); !errors.Is(err, daytona.ErrState) {
		t.Errorf("the disk of a started one: %v", err)
	}
	children, err := sb.Fork(ctx, nil)
	must(t, err)
	sh(t, children[0], "test -e /var/tmp/up && echo more > /var/tmp/more")
	must(t, sb.Stop(ctx, nil))
	if err := sb.Resize(ctx, daytona.Resources{Disk: 0.0625}); !errors.Is(err, daytona.ErrInvalid) {
		t.Errorf("a smaller disk: %v", err)
	}
	must(t, sb.Resize(ctx, daytona.Resources{Disk: 0.5}))
	must(t, sb.Start(ctx))
	sh(t, sb, "test -e /var/tmp/up && head -c 300M /dev/zero > /var/tmp/big")
	must(t, sb.Stop(ctx, nil))
	again, err := sb.Fork(ctx, nil)
	must(t, err)
	sh(t, again[0], "test $(stat -c %s /var/tmp/big) = 314572800 && head -c 300M /dev/zero > /var/tmp/mine")
}

// TestDropLayer can be repeated from any point.
func TestDropLayer(t *testing.T) {
	e, _ := openEngine(t, t.TempDir())
	id := strings.Repeat("a", 20)
	must(t, e.newLayer(id, "one"))
	must(t, e.holdLayer(id, "two"))
	for _, user := range []string{"one", "one", "three"} {
		must(t, e.dropLayer(id, user))
	}
	if _, err := os.Stat(e.layer(id)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		must(t, e.dropLayer(id, "two"))
	}
	if _, err := os.Stat(filepath.Join(e.layer(id))); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if err := e.holdLayer(id, "four"); err == nil {
		t.Error("a layer that is gone was taken")
	}
}

// TestDefaultMemoryIsAsEnforced: half of the machine's memory need not be whole
// pages, which is all that the kernel limits it to.
func TestDefaultMemoryIsAsEnforced(t *testing.T) {
	ctx := t.Context()
	e, c := openEngine(t, t.TempDir())
	e.memory = 2*(1<<30) + 4096 // whose half is half a page too much
	sb, err := c.Create(ctx, daytona.Spec{})
	must(t, err)
	if !e.cgroups.has("memory") {
		if got := sb.Info().Resources.Memory; got != 0 {
			t.Errorf("nothing limits it, and the sandbox says %v GiB", got)
		}
		return
	}
	m, err := sb.Metrics(ctx)
	must(t, err)
	if want := sb.Info().Resources.MemoryBytes(); m.MemoryTotal != want || want != 1<<30 {
		t.Errorf("the limit is %d bytes, and the sandbox says %d", m.MemoryTotal, want)
	}
}
