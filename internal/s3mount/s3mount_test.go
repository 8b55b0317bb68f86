//go:build linux

package s3mount_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/agentbin"
	"github.com/daytona-go/daytona/internal/objects/s3test"
	"github.com/daytona-go/daytona/internal/s3mount"
)

// mounted is a mount that only this process has.
type mounted struct {
	*testing.T
	mount *os.File
	cmd   *exec.Cmd
	lock  string
}

func options(t *testing.T, where daytona.S3Location) s3mount.Options {
	t.Helper()
	if why := s3mount.Refuse(); why != "" {
		t.Skip(why)
	}
	path, err := agentbin.Find(t.Context(), agentbin.S3FS, "", agentbin.CacheDir(os.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { program.Close() })
	dir := t.TempDir()
	return s3mount.Options{Config: s3mount.Config{Location: where, Owner: 1234, MaxSpool: 1 << 30}, Program: program, Spool: filepath.Join(dir, "spool"), Lock: filepath.Join(dir, "lock"), Stderr: os.Stderr}
}

func mount(t *testing.T, o s3mount.Options) *mounted {
	t.Helper()
	m, cmd, err := s3mount.Mount(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close(); _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return &mounted{t, m, cmd, o.Lock}
}

func (m *mounted) path(name string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", m.mount.Fd(), name)
}

// end unmounts and waits for the program.
func (m *mounted) end() {
	m.Helper()
	m.mount.Close()
	done := make(chan struct{})
	go func() { m.cmd.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		m.Fatal("the program does not end with the mount")
	}
}

func random(t *testing.T, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	if _, err := rand.Read(b); err != nil {
		t.Fatal(err)
	}
	return b
}

// TestSpool checks that what is not stored yet is bounded, and is stored when the
// mount ends before the file is closed.
func TestSpool(t *testing.T) {
	server := s3test.Start(t)
	o := options(t, server.Location)
	o.MaxSpool = 3 << 20
	m := mount(t, o)
	if err := os.WriteFile(m.path("big"), make([]byte, 4<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("4 MiB of 3: %v", err)
	}
	for i := range 5 { // what is stored takes nothing
		if err := os.WriteFile(m.path(fmt.Sprint("f", i)), make([]byte, 2<<20), 0o600); err != nil {
			t.Errorf("file %d: %v", i, err)
		}
	}
	a, err := os.Create(m.path("a"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Write(make([]byte, 2<<20)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(m.path("b"), make([]byte, 2<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("beside another file: %v", err)
	}
	if err := a.Truncate(1 << 50); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("a petabyte: %v", err)
	}
	if err := os.Remove(m.path("a")); err != nil {
		t.Error(err)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(m.path("a")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that was removed before it was closed: %v", err)
	}
	// A program that goes on while its mount is taken away.
	want := random(t, 1<<20)
	last, err := os.Create(m.path("last"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := last.Write(want); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(server.Dir, "last")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("stored before it was closed: %v", err)
	}
	if err := last.Sync(); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(server.Dir, "last")); !bytes.Equal(got, want) {
		t.Errorf("synced: %d bytes, %v", len(got), err)
	}
	if err := last.Close(); err != nil {
		t.Error(err)
	}
	m.end()
	if left, err := os.ReadDir(o.Spool); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestServerDies kills the server while a file is stored.
func TestServerDies(t *testing.T) {
	server := s3test.Start(t)
	m := mount(t, options(t, server.Location))
	if err := os.WriteFile(m.path("f"), []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(m.path("f"), os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	want := random(t, 100<<20)
	if _, err := f.Write(want); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	killed := make(chan bool, 1)
	go func() {
		for ctx.Err() == nil {
			if parts, _ := filepath.Glob(filepath.Join(server.Dir, ".sgwtmp", "multipart", "*", "*", "*")); len(parts) > 0 {
				server.Kill(t)
				killed <- true
				return
			}
			time.Sleep(time.Millisecond)
		}
		killed <- false
	}()
	start := time.Now()
	err = f.Sync()
	cancel()
	if !<-killed {
		t.Fatalf("the server could not be killed in the middle: %v", err)
	}
	if !errors.Is(err, syscall.EIO) || time.Since(start) > time.Minute {
		t.Errorf("sync: %v after %s", err, time.Since(start))
	}
	if got, err := os.ReadFile(filepath.Join(server.Dir, "f")); string(got) != "old" {
		t.Errorf("the object is %d bytes, %v", len(got), err)
	}
	server.Restart(t)
	if err := f.Close(); err != nil { // which tries again
		t.Errorf("close: %v", err)
	}
	if got, err := os.ReadFile(filepath.Join(server.Dir, "f")); !bytes.Equal(got, want) {
		t.Errorf("the object is %d bytes, %v", len(got), err)
	}
}

// TestReplaced reads a file that another machine replaces meanwhile: never a
// mixture.
func TestReplaced(t *testing.T) {
	server := s3test.Start(t)
	one, two := mount(t, options(t, server.Location)), mount(t, options(t, server.Location))
	old := random(t, 20<<20)
	if err := os.WriteFile(one.path("f"), old, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(two.path("f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	head := make([]byte, 1<<20)
	if _, err := f.ReadAt(head, 0); err != nil || !bytes.Equal(head, old[:1<<20]) {
		t.Fatal(err)
	}
	fresh := random(t, 21<<20)
	if err := os.WriteFile(one.path("f"), fresh, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := f.ReadAt(head, 12<<20); !errors.Is(err, syscall.ESTALE) {
		t.Errorf("a replaced file: %v", err)
	}
	if got, err := os.ReadFile(two.path("f")); !bytes.Equal(got, fresh) {
		t.Errorf("opened again: %d bytes, %v", len(got), err)
	}
}

// TestTogether has many write files, rename them, list, read and remove them,
// through two mounts: each finds what it wrote.
func TestTogether(t *testing.T) {
	server := s3test.Start(t)
	mounts := []*mounted{mount(t, options(t, server.Location)), mount(t, options(t, server.Location))}
	if err := os.Mkdir(mounts[0].path("d"), 0o755); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 8 {
		m := mounts[i%2]
		wg.Go(func() {
			own, tmp := m.path(fmt.Sprint("d/f", i)), m.path(fmt.Sprint("d/tmp", i))
			for n := range 20 {
				want := bytes.Repeat([]byte{byte(i), byte(n)}, 1000*i+n)
				if err := os.WriteFile(tmp, want, 0o600); err != nil {
					t.Errorf("write: %v", err)
				}
				if err := os.Rename(tmp, own); err != nil {
					t.Errorf("rename: %v", err)
				}
				if data, err := os.ReadFile(own); !bytes.Equal(data, want) {
					t.Errorf("read: %d bytes of %d, %v", len(data), len(want), err)
				}
				_, err := os.ReadFile(m.path(fmt.Sprint("d/f", (i+n)%8)))
				if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ESTALE) {
					t.Errorf("read another's: %v", err)
				}
				entries, err := os.ReadDir(m.path("d"))
				if err != nil || !slices.ContainsFunc(entries, func(e os.DirEntry) bool { return e.Name() == filepath.Base(own) }) {
					t.Errorf("list: %v, %v", entries, err)
				}
				if n%10 == 9 {
					if err := os.Remove(own); err != nil {
						t.Errorf("remove: %v", err)
					}
					if _, err := os.Stat(own); !errors.Is(err, fs.ErrNotExist) {
						t.Errorf("removed: %v", err)
					}
				}
			}
		})
	}
	wg.Wait()
	if err := os.Remove(mounts[1].path("d")); err != nil {
		t.Error(err)
	}
	for _, m := range mounts {
		m.end()
	}
}

// TestKilled kills a program that waits for a service that does not answer.
func TestKilled(t *testing.T) {
	server := s3test.Start(t)
	m := mount(t, options(t, server.Location))
	if err := os.WriteFile(m.path("f"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	server.Freeze(t)
	cmd := exec.Command("cat", "/proc/self/fd/3/f")
	cmd.ExtraFiles = []*os.File{m.mount}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(300 * time.Millisecond) // so that it waits, most likely
	start := time.Now()
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil || time.Since(start) > 5*time.Second {
		t.Errorf("%v after %s", err, time.Since(start))
	}
}

// TestRefusals says at once what cannot work, without credentials.
func TestRefusals(t *testing.T) {
	server := s3test.Start(t)
	for name, x := range map[string]struct {
		change func(l *daytona.S3Location)
		kind   daytona.Kind
	}{
		"wrong secret":   {func(l *daytona.S3Location) { l.SecretKey = "geheim" }, daytona.KindUnauthorized},
		"no such bucket": {func(l *daytona.S3Location) { l.Bucket = "nothing" }, daytona.KindNotFound},
		"nobody there":   {func(l *daytona.S3Location) { l.Endpoint = "http://127.0.0.1:1" }, daytona.KindUnavailable},
		"a strange path": {func(l *daytona.S3Location) { l.Prefix = "a/../b" }, daytona.KindInvalid},
	} {
		o := options(t, server.Location)
		x.change(&o.Location)
		m, _, err := s3mount.Mount(t.Context(), o)
		if err == nil {
			m.Close()
		}
		if daytona.KindOf(err) != x.kind || strings.Contains(fmt.Sprint(err), "geheim") || strings.Contains(fmt.Sprint(err), server.Location.SecretKey) {
			t.Errorf("%s: %v (%s)", name, err, daytona.KindOf(err))
		}
	}
	server.Freeze(t)
	start := time.Now()
	if _, _, err := s3mount.Mount(t.Context(), options(t, server.Location)); !errors.Is(err, daytona.ErrUnavailable) {
		t.Errorf("a silent server: %v", err)
	}
	if d := time.Since(start); d > 30*time.Second {
		t.Errorf("a silent server holds it up for %s", d)
	}
}
