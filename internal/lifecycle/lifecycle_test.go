//go:build linux

package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
)

// The suites of package backendtest try this package through the engines that
// use it, with owners that are killed. Here an engine of the simplest kind
// stands in: each sandbox is one process.

type sleeper struct {
	PID int `json:"pid"`
}

type sleepers struct {
	k       *Keeper[sleeper]
	failing error // of Boot
	away    atomic.Bool
}

type sleep struct {
	pid  int
	done chan struct{}
}

func (s *sleep) Done() <-chan struct{}      { return s.done }
func (s *sleep) Is(r *Record[sleeper]) bool { return r.Own.PID == s.pid }
func (s *sleep) Kill()                      { _ = syscall.Kill(s.pid, syscall.SIGKILL); <-s.done }
func (s *sleep) Close()                     {}

func (e *sleepers) Boot(_ context.Context, _ string, r *Record[sleeper]) (Proc[sleeper], error) {
	if e.failing != nil {
		return nil, e.failing
	}
	cmd := exec.Command("sleep", "600")
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s := &sleep{pid: cmd.Process.Pid, done: make(chan struct{})}
	go func() { _ = cmd.Wait(); close(s.done) }()
	r.Own.PID = s.pid
	return s, e.k.Save(r, false)
}

func (e *sleepers) Running(r *Record[sleeper]) bool {
	return r.Own.PID > 0 && syscall.Kill(r.Own.PID, 0) == nil
}

func (e *sleepers) Adopt(r *Record[sleeper]) (Proc[sleeper], error) {
	s := &sleep{pid: r.Own.PID, done: make(chan struct{})}
	go func() {
		for syscall.Kill(s.pid, 0) == nil {
			time.Sleep(time.Millisecond)
		}
		close(s.done)
	}()
	return s, nil
}

func (e *sleepers) Clear(r *Record[sleeper]) error {
	if e.away.Load() {
		return &daytona.Error{Kind: daytona.KindUnavailable, Op: StopOp, Message: "the engine is away"}
	}
	r.Own.PID = 0
	return nil
}
func (e *sleepers) Release(context.Context, *Record[sleeper]) error { return nil }
func (e *sleepers) RemoveTree(dir string) error                     { return os.RemoveAll(dir) }
func (e *sleepers) Reap(func(string) bool)                          {}
func (e *sleepers) Dial(context.Context, string) (net.Conn, error) {
	return nil, errors.New("it has no agent")
}
func (e *sleepers) create(spec daytona.Spec) (*Record[sleeper], error) {
	r := e.k.NewRecord(spec)
	return r, e.k.Make(context.Background(), r, PhaseLive, func(context.Context) error { return nil })
}

// open opens a keeper; it is not closed.
func open(t *testing.T, dir string) *sleepers {
	t.Helper()
	k, err := New[sleeper](Options{Name: "sleep", Dir: dir, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	e := &sleepers{k: k}
	if err := k.Open(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.Shut(); k.Free() })
	return e
}

// abandon does to a keeper what kill -9 does: its lock is gone, nothing else.
func (e *sleepers) abandon() {
	e.k.Shut()
	e.k.lock.Close()
}

func files(t *testing.T, dir string) string {
	t.Helper()
	var list []string
	for _, d := range []string{"sandboxes", "names"} {
		entries, err := os.ReadDir(filepath.Join(dir, d))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			list = append(list, d+"/"+e.Name())
		}
	}
	return strings.Join(list, " ")
}

func TestRecover(t *testing.T) {
	dir := t.TempDir()
	first := open(t, dir)
	kept, err := first.create(daytona.Spec{Name: "kept", Persistent: true})
	if err != nil {
		t.Fatal(err)
	}
	lost, err := first.create(daytona.Spec{Name: "lost"})
	if err != nil {
		t.Fatal(err)
	}
	// A creation, a deletion and a directory that their owner did not come to
	// the end of.
	half := first.k.NewRecord(daytona.Spec{Name: "half"})
	unlock, err := first.k.enroll(half)
	if err != nil {
		t.Fatal(err)
	}
	if err := first.k.TakeName(half); err != nil {
		t.Fatal(err)
	}
	unlock()
	going, err := first.create(daytona.Spec{Name: "going", Persistent: true})
	if err != nil {
		t.Fatal(err)
	}
	going.Phase, going.Owner = PhaseDeleting, first.k.id
	if err := first.k.Save(going, false); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(first.k.Sandbox(first.k.newDir(NewID())), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := first.create(daytona.Spec{Name: "kept"}); daytona.KindOf(err) != daytona.KindConflict {
		t.Errorf("a name that is taken: %v", err)
	}

	// Beside a living owner another sees all that is whole, and touches nothing.
	second := open(t, dir)
	if _, err := second.k.Get(t.Context(), "lost"); err != nil {
		t.Errorf("the sandbox of another that lives: %v", err)
	}
	if _, err := second.k.Get(t.Context(), "half"); !errors.Is(err, daytona.ErrNotFound) {
		t.Errorf("a sandbox that is being made: %v", err)
	}
	if _, err := os.Stat(first.k.Sandbox(half.ID)); err != nil {
		t.Errorf("of a creation under way: %v", err)
	}

	first.abandon()
	third := open(t, dir)
	if got, want := files(t, dir), "sandboxes/"+kept.ID+" names/kept"; got != want {
		t.Errorf("after the owner's death there are %s, want %s", got, want)
	}
	if lost.Own.PID == 0 || syscall.Kill(lost.Own.PID, 0) == nil {
		t.Error("the process of a dead owner's sandbox lives")
	}
	info, err := third.k.Get(t.Context(), "kept")
	if err != nil || info.State != daytona.StateStarted || info.ID != kept.ID {
		t.Errorf("the persistent one: %+v, %v", info, err)
	}
	if info, err = third.k.Stop(t.Context(), kept.ID, daytona.StopOptions{Force: true}); err != nil || info.State != daytona.StateStopped {
		t.Errorf("%+v, %v", info, err)
	}
	third.failing = errors.New("no more")
	if _, err := third.k.Start(t.Context(), kept.ID); !errors.Is(err, third.failing) {
		t.Errorf("a start that fails: %v", err)
	}
	if info, err := third.k.Get(t.Context(), kept.ID); err != nil || info.State != daytona.StateStopped {
		t.Errorf("after it: %+v, %v", info, err)
	}
	if _, err := third.create(daytona.Spec{Name: "new"}); !errors.Is(err, third.failing) {
		t.Errorf("a creation that fails: %v", err)
	}
	if err := third.k.Delete(t.Context(), "kept"); err != nil {
		t.Error(err)
	}
	if got := files(t, dir); got != "" {
		t.Errorf("left: %s", got)
	}
}

// TestProcessEnds has a sandbox's process end by itself.
func TestProcessEnds(t *testing.T) {
	e := open(t, t.TempDir())
	stays, err := e.create(daytona.Spec{})
	if err != nil {
		t.Fatal(err)
	}
	goes, err := e.create(daytona.Spec{Ephemeral: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []*Record[sleeper]{stays, goes} {
		if err := syscall.Kill(r.Own.PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		r, err := e.k.Load(stays.ID)
		_, gone := e.k.Load(goes.ID)
		if err == nil && r.State == daytona.StateStopped && errors.Is(gone, fs.ErrNotExist) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%+v, %v; %v", r, err, gone)
		}
	}
	if err := e.k.Delete(t.Context(), stays.ID); err != nil {
		t.Error(err)
	}
}

// TestDamagedRecord: what a crash of the machine left is removed, and is no
// obstacle.
func TestDamagedRecord(t *testing.T) {
	dir := t.TempDir()
	first := open(t, dir)
	r, err := first.create(daytona.Spec{Name: "a", Persistent: true})
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Kill(r.Own.PID, syscall.SIGKILL)
	if err := os.WriteFile(first.k.File(r.ID, "record.json"), []byte("{\"id\":"), 0o600); err != nil {
		t.Fatal(err)
	}
	first.abandon()
	second := open(t, dir)
	if got := files(t, dir); got != "" {
		t.Errorf("left: %s", got)
	}
	if _, err := second.k.Get(t.Context(), r.ID); !errors.Is(err, daytona.ErrNotFound) {
		t.Error(err)
	}
}

func TestLock(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "sandbox")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, "lock")
	f, err := LockFile(name, false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := LockFile(name, false); !errors.Is(err, ErrLocked) {
		t.Errorf("a second lock: %v", err)
	}
	got := make(chan error, 1)
	go func() {
		g, err := openLock(name, true)
		if err == nil {
			g.Close()
		}
		got <- err
	}()
	// Whoever waits for the lock of what is removed meanwhile must see it.
	if err := os.Rename(dir, dir+"-gone"); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if err := <-got; !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the lock of a removed sandbox: %v", err)
	}
}

// TestDialBeneath: the directory of a sandbox's socket may be the sandbox's to
// write.
func TestDialBeneath(t *testing.T) {
	host, dir := t.TempDir(), filepath.Join(t.TempDir(), strings.Repeat("long", 30))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	secret, err := net.Listen("unix", filepath.Join(host, "engine.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer secret.Close()
	for name, plant := range map[string]func(path string) error{
		"link":          func(p string) error { return os.Symlink(secret.Addr().String(), p) },
		"linked up":     func(p string) error { return os.Symlink("../"+filepath.Base(host), p) },
		"file":          func(p string) error { return os.WriteFile(p, nil, 0o600) },
		"pipe":          func(p string) error { return syscall.Mkfifo(p, 0o600) },
		"nothing":       func(string) error { return nil },
		"dead listener": func(p string) error { return syscall.Mknod(p, syscall.S_IFSOCK|0o600, 0) },
	} {
		if err := plant(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		if c, err := DialBeneath(t.Context(), dir, name); err == nil {
			c.Close()
			t.Errorf("%s: connected", name)
		}
	}
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	l, err := net.Listen("unix", fmt.Sprintf("/proc/self/fd/%d/agent.sock", d.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := DialBeneath(t.Context(), dir, "agent.sock")
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

func TestKeepFile(t *testing.T) {
	from, dir := filepath.Join(t.TempDir(), "program"), t.TempDir()
	if err := os.WriteFile(from, []byte("one"), 0o755); err != nil {
		t.Fatal(err)
	}
	first, err := KeepFile(from, dir)
	if err != nil {
		t.Fatal(err)
	}
	again, err := KeepFile(from, dir)
	if err != nil || again != first {
		t.Errorf("%s, then %s, %v", first, again, err)
	}
	if err := os.WriteFile(from, []byte("two"), 0o755); err != nil {
		t.Fatal(err)
	}
	other, err := KeepFile(from, dir)
	if err != nil || other == first {
		t.Errorf("another file: %s, %v", other, err)
	}
	if b, err := os.ReadFile(first); string(b) != "one" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 {
		t.Errorf("%d files, %v", len(entries), err)
	}
	if st, err := os.Stat(first); err != nil || st.Mode().Perm() != 0o555 {
		t.Errorf("%v, %v", st, err)
	}
}

// TestEngineAway: what an engine that does not answer cannot confirm is not taken
// for done, and is done once it is back.
func TestEngineAway(t *testing.T) {
	e := open(t, t.TempDir())
	defer e.abandon()
	r, err := e.create(daytona.Spec{Name: "a", Persistent: true})
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	e.away.Store(true)
	for range 2 {
		if _, err := e.k.Stop(ctx, r.ID, daytona.StopOptions{Force: true}); !errors.Is(err, daytona.ErrUnavailable) {
			t.Errorf("stop: %v", err)
		}
	}
	if info, err := e.k.Get(ctx, r.ID); err != nil || info.State != daytona.StateStopping {
		t.Errorf("%s, %v; want it stopping", info.State, err)
	}
	e.away.Store(false)
	if info, err := e.k.Get(ctx, r.ID); err != nil || info.State != daytona.StateStopped {
		t.Errorf("%s, %v; want it stopped", info.State, err)
	}

	e.away.Store(true)
	for range 2 {
		if err := e.k.Delete(ctx, "a"); !errors.Is(err, daytona.ErrUnavailable) {
			t.Errorf("delete: %v", err)
		}
	}
	e.away.Store(false)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if _, err := os.Stat(e.k.Sandbox(r.ID)); errors.Is(err, fs.ErrNotExist) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a removal that has failed is not repeated")
		}
	}
	if err := e.k.Delete(ctx, "a"); !errors.Is(err, daytona.ErrNotFound) {
		t.Errorf("delete: %v", err)
	}
}

// TestNamesOfTheDead: a process that died while it made something keeps no name
// from those who were there already.
func TestNamesOfTheDead(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"snapshots", "snapshot-names"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	first, second := open(t, dir), open(t, dir)
	snapshots := func(e *sleepers) Snapshots[sleeper, struct{}] {
		return Snapshots[sleeper, struct{}]{Keeper: e.k, Free: func(context.Context, *SnapshotRecord[struct{}]) error { return nil }}
	}
	// It had given a sandbox of its pool another name, and not written it down.
	pooled := first.k.NewRecord(daytona.Spec{})
	pooled.Phase = PhaseWarm
	unlock, err := first.k.enroll(pooled)
	if err != nil {
		t.Fatal(err)
	}
	pooled.Name = "claimed"
	if err := first.k.TakeName(pooled); err != nil {
		t.Fatal(err)
	}
	unlock()
	half := &SnapshotRecord[struct{}]{Phase: PhaseCreating, Owner: first.k.id, Snapshot: daytona.Snapshot{ID: NewID(), Name: "half"}}
	lock, err := snapshots(first).enroll(half)
	if err != nil {
		t.Fatal(err)
	}
	if err := snapshots(first).claim(t.Context(), half); err != nil {
		t.Fatal(err)
	}
	lock.Close()
	made := func(*SnapshotRecord[struct{}]) error { return nil }
	if _, err := second.create(daytona.Spec{Name: "claimed"}); !errors.Is(err, daytona.ErrConflict) {
		t.Errorf("the name of a sandbox whose owner lives: %v", err)
	}
	if _, err := snapshots(second).MakeSnapshot(t.Context(), daytona.SnapshotSpec{Name: "half"}, made); !errors.Is(err, daytona.ErrConflict) {
		t.Errorf("the name of a snapshot whose maker lives: %v", err)
	}
	first.abandon()
	if _, err := second.create(daytona.Spec{Name: "claimed"}); err != nil {
		t.Error(err)
	}
	if _, err := snapshots(second).MakeSnapshot(t.Context(), daytona.SnapshotSpec{Name: "half"}, made); err != nil {
		t.Error(err)
	}
	if _, err := snapshots(second).MakeSnapshot(t.Context(), daytona.SnapshotSpec{Name: "half"}, made); !errors.Is(err, daytona.ErrConflict) {
		t.Errorf("a second one of the name: %v", err)
	}
}
