package plugin_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/daytona-go/daytona"
)

// builder is a fake that builds, behind a plugin, and the directory of the
// plugin's own files.
func builder(t *testing.T) (daytona.ImageBuilder, string) {
	b := open(t, url.Values{"capable": {""}})
	dir := socketDir(t, thePlugin(t))
	t.Cleanup(func() {
		// Whatever became of a build, its files are gone.
		eventually(t, 10*time.Second, "the files of builds are removed", func() error {
			left, err := filepath.Glob(filepath.Join(dir, "*", "build-*"))
			if err == nil && len(left) > 0 {
				err = fmt.Errorf("left: %v", left)
			}
			return err
		})
	})
	return as[daytona.ImageBuilder](t, b), dir
}

// TestBuild: what a Dockerfile copies arrives as it is.
func TestBuild(t *testing.T) {
	b, _ := builder(t)
	dir := t.TempDir()
	then := time.Date(2020, 1, 2, 3, 4, 5, 678, time.UTC)
	big := bytes.Repeat([]byte("0123456789abcdef"), 100_000)
	var errs []error
	for _, f := range []struct {
		name string
		mode fs.FileMode
		data []byte
	}{{"src/run.sh", 0o755, []byte("#!/bin/sh\n")}, {"src/set", 0o755 | fs.ModeSetuid, nil}, {"src/deep/big", 0o640, big}, {"src/deep/" + strings.Repeat("n", 200), 0o600, nil}, {"src/ä", 0o444, []byte("a")}} {
		p := filepath.Join(dir, f.name)
		errs = append(errs, os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, f.data, 0o600), os.Chmod(p, f.mode), os.Chtimes(p, then, then))
	}
	errs = append(errs, os.Symlink("/etc/passwd", dir+"/src/away"), os.Symlink("deep", dir+"/src/inside"), os.Symlink("src/run.sh", dir+"/link"),
		os.Mkdir(dir+"/src/empty", 0o700), os.Chmod(dir+"/src/deep", 0o550|fs.ModeSticky))
	socket, err := net.Listen("unix", dir+"/src/socket")
	if err := errors.Join(append(errs, err)...); err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	t.Cleanup(func() { os.Chmod(dir+"/src/deep", 0o700) })
	img := daytona.NewImage("list",
		daytona.BuildContext{Source: dir + "/src", Path: "."},
		daytona.BuildContext{Source: dir + "/link", Path: "bin/run"},
		daytona.BuildContext{Files: fstest.MapFS{"x/y": {Data: []byte("a"), Mode: 0o604, ModTime: then}, "l": {Data: []byte("x"), Mode: 0o777 | fs.ModeSymlink}}, Path: "mem"},
	)
	built, err := b.BuildImage(t.Context(), img, daytona.BuildOptions{})
	if err != nil {
		t.Fatal(err)
	}
	sum := func(data []byte) string { return fmt.Sprintf("2020-01-02T03:04:05.000000678 %x", sha256.Sum256(data)) }
	want := []string{
		"at .", ". drwxr-xr-x", "away Lrwxrwxrwx -> /etc/passwd", "deep dtr-xr-x---", "deep/big -rw-r----- " + sum(big),
		"deep/" + strings.Repeat("n", 200) + " -rw------- " + sum(nil), "empty drwx------", "inside Lrwxrwxrwx -> deep",
		"run.sh -rwxr-xr-x " + sum([]byte("#!/bin/sh\n")), "set urwxr-xr-x " + sum(nil), "ä -r--r--r-- " + sum([]byte("a")),
		"at bin/run", ". -rwxr-xr-x " + sum([]byte("#!/bin/sh\n")),
		"at mem", ". dr-xr-xr-x", "l Lrwxrwxrwx -> x", "x dr-xr-xr-x", "x/y -rw----r-- " + sum([]byte("a")),
	}
	if built.Ref != strings.Join(want, "\n") || built.Digest != "sha256:x" {
		t.Errorf("the plugin has\n%s\nwant\n%s", built.Ref, strings.Join(want, "\n"))
	}
	built, err = b.BuildImage(t.Context(), daytona.NewImage("options"), daytona.BuildOptions{
		Args: map[string]string{"A": "b"}, Secrets: map[string][]byte{"s": {1, 0xff}}, Platform: "linux/arm64", Target: "t", NoCache: true, Pull: true,
		Network: daytona.NetworkPolicy{Block: true}, Resources: daytona.Resources{Memory: 2}, StepTimeout: time.Minute,
	})
	if want := "map[A:b] map[s:[1 255]] linux/arm64 t true true true 2 1m0s"; err != nil || built.Ref != want || built.SizeBytes != 5 || !built.Cached {
		t.Errorf("%+v, %v, want %s", built, err, want)
	}
}

// TestBuildLogs: no line is lost, and all are there when BuildImage returns.
func TestBuildLogs(t *testing.T) {
	b, _ := builder(t)
	n := 0
	_, err := b.BuildImage(t.Context(), daytona.NewImage("chatty"), daytona.BuildOptions{OnLog: func(l daytona.BuildLog) {
		if l.Line != strconv.Itoa(n) || l.Name != "RUN" || l.Step != 1 {
			t.Errorf("line %d is %+v", n, l)
		}
		n++
	}})
	if err != nil || n != 20_000 {
		t.Errorf("%d lines, %v", n, err)
	}
	var seen []string
	_, err = b.BuildImage(t.Context(), daytona.NewImage("fails"), daytona.BuildOptions{OnLog: func(l daytona.BuildLog) { seen = append(seen, l.Line) }})
	if e, ok := errors.AsType[*daytona.BuildError](err); !ok || e.Line != 7 || e.ExitCode != 2 || daytona.KindOf(err) != daytona.KindExhausted || len(seen) != 1 {
		t.Errorf("%#v, told %q", err, seen)
	}
}

// endless is a directory with one file, whose end never comes.
type endless struct{ read *int64 }

func (e endless) Open(name string) (fs.File, error) {
	m := fstest.MapFS{"f": {Mode: 0o644}}
	f, err := m.Open(name)
	if err == nil && name == "f" {
		return endlessFile{f, e.read}, nil
	}
	return f, err
}

func (e endless) Lstat(name string) (fs.FileInfo, error) {
	st, err := fstest.MapFS{"f": {Mode: 0o644}}.Lstat(name)
	if name == "f" {
		return hugeInfo{st}, nil
	}
	return st, err
}

func (e endless) ReadLink(string) (string, error) { return "", fs.ErrInvalid }

type endlessFile struct {
	fs.File
	read *int64
}

func (f endlessFile) Read(p []byte) (int, error) { *f.read += int64(len(p)); return len(p), nil }

type hugeInfo struct{ fs.FileInfo }

func (hugeInfo) Size() int64 { return 1 << 50 }

// TestBuildEnds: whatever ends a build, BuildImage returns soon, with the
// reason, and reads no file any more.
func TestBuildEnds(t *testing.T) {
	b, dir := builder(t)
	within(t, 10*time.Second, "a cancelled build", func() error {
		ctx, cancel := context.WithCancel(t.Context())
		_, err := b.BuildImage(ctx, daytona.NewImage("slow"), daytona.BuildOptions{OnLog: func(daytona.BuildLog) { cancel() }})
		if !errors.Is(err, context.Canceled) {
			return fmt.Errorf("got %v", err)
		}
		return nil
	})
	within(t, 20*time.Second, "a build cancelled while its files are sent", func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		var read int64
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := b.BuildImage(ctx, daytona.NewImage("list", daytona.BuildContext{Files: endless{&read}, Path: "."}), daytona.BuildOptions{})
		runtime.ReadMemStats(&after)
		n := read // no longer written to, or the race detector says so
		if !errors.Is(err, context.DeadlineExceeded) || n == 0 {
			return fmt.Errorf("got %v after %d bytes", err, n)
		}
		if grown := int64(after.Sys) - int64(before.Sys); grown > 64<<20 {
			return fmt.Errorf("the memory of this program grew by %d bytes", grown)
		}
		return nil
	})
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]daytona.BuildContext{
		"a file that is not there": {Source: "/no/such/file", Path: "f"},
		"a FIFO":                   {Source: fifo, Path: "f"},
		"a directory with a FIFO":  {Source: filepath.Dir(fifo), Path: "."},
		"a file that gets shorter": {Files: shorter{fstest.MapFS{"f": {Data: []byte("a")}}}, Path: "."},
	} {
		within(t, 10*time.Second, what, func() error {
			_, err := b.BuildImage(t.Context(), daytona.NewImage("list", c), daytona.BuildOptions{})
			if e, ok := errors.AsType[*daytona.Error](err); !ok || e.Kind != daytona.KindInvalid || e.Field != "Contexts" {
				return fmt.Errorf("got %v", err)
			}
			return nil
		})
	}
	_, err := b.BuildImage(t.Context(), daytona.NewImage("dies"), daytona.BuildOptions{})
	wantKind(t, "a build whose plugin dies", err, daytona.KindUnavailable)
	eventually(t, 10*time.Second, "the dead plugin's files are removed", func() error {
		// With the next call.
		if _, err := b.BuildImage(t.Context(), daytona.NewImage("list"), daytona.BuildOptions{}); err != nil {
			return err
		}
		if _, err := os.Stat(dir); err == nil {
			return fmt.Errorf("%s is there", dir)
		}
		return nil
	})
}

type shorter struct{ fstest.MapFS }

func (s shorter) Lstat(name string) (fs.FileInfo, error) {
	st, err := s.MapFS.Lstat(name)
	if name == "f" {
		return hugeInfo{st}, nil
	}
	return st, err
}
