package local

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/failpoint"
)

func needsArchive(t *testing.T, e *engine) {
	t.Helper()
	if why := e.canArchive(); why != "" {
		t.Skip(why)
	}
}

// TestArchiveElsewhere restores on another engine with the same object storage.
func TestArchiveElsewhere(t *testing.T) {
	ctx, store := t.Context(), t.TempDir()
	for name, r := range map[string]daytona.Resources{"directory": {}, "disk": {Disk: 0.125}} {
		t.Run(name, func(t *testing.T) {
			open := func() (*engine, *daytona.Client) {
				e, err := newEngine(ctx, &Options{Dir: t.TempDir(), Archive: store})
				must(t, err)
				t.Cleanup(func() { must(t, e.Close()) })
				return e, daytona.New(e)
			}
			a, ca := open()
			needsArchive(t, a)
			if r.Disk > 0 && canLimitDisk() != "" {
				t.Skip(canLimitDisk())
			}
			sb, err := ca.Create(ctx, daytona.Spec{Name: "moved", Resources: r, Labels: map[string]string{"k": "v"}})
			must(t, err)
			sh(t, sb, "cd ~; echo one > f; ln f g; mkdir -m 700 d; ln -s f l; mkfifo p; echo x > gone; truncate -s 100M sparse")
			must(t, sb.Stop(ctx, nil))
			children, err := sb.Fork(ctx, nil) // so that there is a layer
			must(t, err)
			must(t, children[0].Delete(ctx))
			must(t, sb.Start(ctx))
			sh(t, sb, "cd ~; rm gone; echo two > d/new")
			must(t, sb.Stop(ctx, nil))
			must(t, sb.Archive(ctx))
			must(t, sb.Archive(ctx))
			if _, err := os.Stat(a.File(sb.ID(), "fs")); !errors.Is(err, fs.ErrNotExist) || layersOf(t, a) != 0 {
				t.Errorf("files of an archived sandbox are still here: %v, %d layers", err, layersOf(t, a))
			}
			b, cb := open()
			i, err := b.Restore(ctx, sb.ID())
			must(t, err)
			if i.State != daytona.StateStopped || i.Name != "moved" || i.Labels["k"] != "v" {
				t.Errorf("restored: %+v", i)
			}
			there, err := cb.Get(ctx, "moved")
			must(t, err)
			must(t, there.Start(ctx))
			if got := sh(t, there, "cd ~; cat f d/new; stat -c '%h %U' f; stat -c %a d; ls; stat -c %b sparse"); got != "one\ntwo\n2 daytona\n700\nd\nf\ng\nl\np\nsparse\n0" {
				t.Errorf("it has %q", got)
			}
			// It is not the first engine's any more.
			if err := sb.Restore(ctx); !errors.Is(err, daytona.ErrNotFound) {
				t.Errorf("a second restore: %v", err)
			}
			must(t, sb.Delete(ctx))
			must(t, there.Stop(ctx, nil))
			must(t, there.Archive(ctx))
			must(t, there.Delete(ctx))
			if left, _ := filepath.Glob(filepath.Join(store, "sandboxes", "*")); len(left) > 0 {
				t.Errorf("left in object storage: %v", left)
			}
		})
	}
}

// TestArchiveDamaged demands that what is damaged is not restored, and stays.
func TestArchiveDamaged(t *testing.T) {
	ctx := t.Context()
	e, c := openEngine(t, t.TempDir())
	needsArchive(t, e)
	sb, err := c.Create(ctx, daytona.Spec{})
	must(t, err)
	must(t, sb.FileSystem().WriteFile(ctx, "/var/tmp/f", []byte("kept"), 0o644))
	must(t, sb.Stop(ctx, nil))
	must(t, sb.Archive(ctx))
	blobs, _ := filepath.Glob(filepath.Join(e.Dir("archive"), "sandboxes", sb.ID(), "*", "0"))
	if len(blobs) != 1 {
		t.Fatal(blobs)
	}
	whole, err := os.ReadFile(blobs[0])
	must(t, err)
	for _, at := range []int{0, len(whole) / 2, len(whole) - 1} {
		data := append([]byte{}, whole...)
		data[at] ^= 0x10
		must(t, os.WriteFile(blobs[0], data, 0o600))
		if err := sb.Start(ctx); daytona.KindOf(err) != daytona.KindInternal {
			t.Errorf("a bit at %d: %v", at, err)
		}
		if i, err := sb.Refresh(ctx); err != nil || i.State != daytona.StateArchived || layersOf(t, e) != 0 {
			t.Errorf("afterwards it is %s, %v, with %d layers", i.State, err, layersOf(t, e))
		}
	}
	must(t, os.WriteFile(blobs[0], whole, 0o600))
	must(t, sb.Start(ctx))
	if got := sh(t, sb, "cat /var/tmp/f"); got != "kept" {
		t.Errorf("it has %q", got)
	}
}

// TestCutOff leaves a sandbox in each state that a step passes through, as a
// process that dies there does, and demands that whoever looks next brings it to
// an end.
func TestCutOff(t *testing.T) {
	ctx := t.Context()
	e, c := openEngine(t, t.TempDir())
	needsArchive(t, e)
	needsFreezer(t, e)
	sb, err := c.Create(ctx, daytona.Spec{})
	must(t, err)
	must(t, sb.FileSystem().WriteFile(ctx, "/var/tmp/f", []byte("kept"), 0o644))
	leave := func(state daytona.State, f func(r *record)) daytona.State {
		t.Helper()
		r, unlock, err := e.Locked(sb.ID(), true)
		must(t, err)
		r.Was, r.State = r.State, state
		if f != nil {
			f(r)
		}
		must(t, e.Save(r, true))
		unlock()
		// The engine itself may be at it just now.
		for begin := time.Now(); ; time.Sleep(time.Millisecond) {
			i, err := sb.Refresh(ctx)
			must(t, err)
			if i.State != state || time.Since(begin) > 10*time.Second {
				return i.State
			}
		}
	}
	for _, state := range []daytona.State{daytona.StatePausing, daytona.StateResuming, daytona.StateForking, daytona.StateSnapshotting, daytona.StateResizing} {
		got := leave(state, func(r *record) {
			must(t, driver{e}.Freeze(ctx, r))
			must(t, os.WriteFile(e.File(r.ID, "paused"), nil, 0o600))
			r.Own.Pending = "aaaaaaaaaaaaaaaaaaaa"
			must(t, e.newLayer(r.Own.Pending, r.ID))
		})
		if got != daytona.StateStarted {
			t.Errorf("%s: it is %s", state, got)
		}
		if got := sh(t, sb, "cat /var/tmp/f"); got != "kept" {
			t.Errorf("%s: it has %q", state, got)
		}
	}
	must(t, sb.Stop(ctx, nil))
	if got := leave(daytona.StateArchiving, func(r *record) {
		r.Archive = "bbbbbbbbbbbbbbbbbbbb"
		must(t, packing{driver{e}}.Pack(ctx, r))
	}); got != daytona.StateStopped {
		t.Errorf("archiving: it is %s", got)
	}
	if left, _ := filepath.Glob(filepath.Join(e.Dir("archive"), "*")); len(left) > 0 {
		t.Errorf("left in object storage: %v", left)
	}
	must(t, sb.Archive(ctx))
	if got := leave(daytona.StateRestoring, func(r *record) { must(t, packing{driver{e}}.Unpack(ctx, r)) }); got != daytona.StateArchived {
		t.Errorf("restoring: it is %s", got)
	}
	if _, err := os.Stat(e.File(sb.ID(), "fs")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("half-restored files: %v", err)
	}
	must(t, sb.Start(ctx))
	if got := sh(t, sb, "cat /var/tmp/f"); got != "kept" {
		t.Errorf("it has %q", got)
	}
	must(t, sb.Delete(ctx))
	if n := layersOf(t, e); n != 0 {
		t.Errorf("%d layers are left", n)
	}
}

// TestFetchKilled kills the process that makes an archived sandbox of elsewhere
// its own: the archive is what there is of it.
func TestFetchKilled(t *testing.T) {
	const variable = "DAYTONA_TEST_FETCH"
	if args := strings.Split(os.Getenv(variable), " "); len(args) == 3 {
		ctx := context.Background()
		e, err := newEngine(ctx, &Options{Dir: args[0], Archive: args[1]})
		must(t, err)
		_, err = e.Restore(ctx, args[2])
		t.Fatalf("it lives on: %v", err)
	}
	ctx, store, dir := t.Context(), t.TempDir(), t.TempDir()
	open := func(dir string) (*engine, *daytona.Client) {
		e, err := newEngine(ctx, &Options{Dir: dir, Archive: store})
		must(t, err)
		t.Cleanup(func() { must(t, e.Close()) })
		return e, daytona.New(e)
	}
	a, ca := open(t.TempDir())
	needsArchive(t, a)
	sb, err := ca.Create(ctx, daytona.Spec{Name: "moved", Persistent: true})
	must(t, err)
	must(t, sb.FileSystem().WriteFile(ctx, "/var/tmp/f", []byte("kept"), 0o644))
	must(t, sb.Stop(ctx, nil))
	must(t, sb.Archive(ctx))
	for _, point := range []string{"lifecycle/create/enrolled", "lifecycle/fetch/named", "lifecycle/restore/intended", "lifecycle/restore/restored"} {
		cmd := exec.Command(os.Args[0], "-test.run=^TestFetchKilled$")
		cmd.Env = append(cmd.Environ(), variable+"="+dir+" "+store+" "+sb.ID(), failpoint.Variable+"="+point+"=kill")
		if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(err.Error(), "killed") {
			t.Fatalf("%s: %v: %s", point, err, out)
		}
	}
	b, cb := open(dir)
	if _, err := b.Restore(ctx, sb.ID()); err != nil {
		t.Fatal(err)
	}
	there, err := cb.Get(ctx, "moved")
	must(t, err)
	must(t, there.Start(ctx))
	if got := sh(t, there, "cat /var/tmp/f"); got != "kept" {
		t.Errorf("it has %q", got)
	}
	must(t, there.Delete(ctx))
	if left, _ := filepath.Glob(filepath.Join(store, "sandboxes", "*")); len(left) > 0 {
		t.Errorf("left in object storage: %v", left)
	}
}
