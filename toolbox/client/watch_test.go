package client_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
)

// watched reads the events of a watch.
type watched struct {
	*testing.T
	dir  string
	w    daytona.FileWatch
	next func() (daytona.FileEvent, error, bool)
}

func watch(t *testing.T, files daytona.FileSystem, dir, path string, opts *daytona.WatchOptions) *watched {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	w, err := files.Watch(ctx, path, opts)
	if err != nil {
		t.Fatal(err)
	}
	next, stop := iter.Pull2(w.Events())
	t.Cleanup(func() { stop(); w.Close(); cancel() })
	return &watched{t, dir, w, next}
}

// want demands these events next: "type path", with "old" between for renames,
// relative to the directory.
func (w *watched) want(events ...string) {
	w.Helper()
	for i, want := range events {
		e, err, _ := w.next()
		if err != nil {
			w.Fatalf("in place of %q: %v", want, err)
		}
		rel := func(p string) string { return strings.TrimPrefix(strings.TrimPrefix(p, w.dir), "/") }
		got := string(e.Type) + " "
		if e.OldPath != "" {
			got += rel(e.OldPath) + " "
		}
		got += rel(e.Path)
		if e.IsDir {
			got += "/"
		}
		if got != want {
			w.Fatalf("event %d is %q, want %q", i, got, want)
		}
	}
}

func try(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func write(name, content string) error { return os.WriteFile(name, []byte(content), 0o644) }

func TestWatch(t *testing.T) {
	files, dir := fileAgent(t)
	try(t, os.MkdirAll(dir+"/a/b", 0o755), os.MkdirAll(dir+"/skip/x", 0o755), write(dir+"/a/old", "1"))
	// A window that what belongs together fits into on a busy machine as well.
	w := watch(t, files, dir, ".", &daytona.WatchOptions{Exclude: []string{"skip", "*.tmp"}, Window: 300 * time.Millisecond})

	try(t, write(dir+"/a/b/f", "1"), write(dir+"/a/b/f", "2"), os.Chmod(dir+"/a/b/f", 0o600)) // one event: it is new
	w.want("create a/b/f")
	try(t, write(dir+"/a/b/f", "3"), os.Chmod(dir+"/a/b/f", 0o644))
	w.want("write a/b/f")
	try(t, os.Chmod(dir+"/a/b/f", 0o600))
	w.want("attributes a/b/f")
	// What is made and removed within the window was not there.
	try(t, write(dir+"/gone", ""), os.Remove(dir+"/gone"), write(dir+"/x.tmp", ""), write(dir+"/skip/x/f", ""), write(dir+"/marker", ""))
	w.want("create marker")
	// Written beside and renamed into place, as editors do.
	try(t, write(dir+"/a/.new", "2"), os.Rename(dir+"/a/.new", dir+"/a/old"))
	w.want("create a/old")
	try(t, os.Rename(dir+"/a/old", dir+"/a/b/new"))
	w.want("rename a/old a/b/new")

	// A tree that comes at once, and is watched from then on.
	try(t, os.MkdirAll(dir+"/n/e/w", 0o755), write(dir+"/n/e/w/f", ""))
	w.want("create n/", "create n/e/", "create n/e/w/", "create n/e/w/f")
	try(t, write(dir+"/n/e/w/f", "x"))
	w.want("write n/e/w/f")
	// It moves, and is still watched, under its new name.
	try(t, os.Rename(dir+"/n/e", dir+"/a/moved"))
	w.want("rename n/e a/moved/")
	try(t, write(dir+"/a/moved/w/f", "y"))
	w.want("write a/moved/w/f")
	// It moves away, and is not.
	outside := t.TempDir()
	try(t, os.Rename(dir+"/a/moved", outside+"/m"))
	w.want("remove a/moved/")
	try(t, write(outside+"/m/w/f", "z"), os.Rename(outside+"/m/w", dir+"/back"))
	w.want("create back/", "create back/f")
	try(t, os.RemoveAll(dir+"/back"))
	w.want("remove back/f", "remove back/")
	try(t, os.Mkdir(dir+"/back", 0o755))
	w.want("create back/")

	try(t, os.RemoveAll(dir+"/a/b/new"), os.Symlink("/etc", dir+"/link"))
	w.want("remove a/b/new", "create link")

	try(t, os.RemoveAll(dir))
	for {
		_, err, _ := w.next()
		if err != nil {
			wantKind(t, err, daytona.KindNotFound)
			if !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%v is no fs.ErrNotExist", err)
			}
			break
		}
	}
}

func TestWatchKinds(t *testing.T) {
	files, dir := fileAgent(t)
	try(t, os.MkdirAll(dir+"/d/sub", 0o755), write(dir+"/f", ""), write(dir+"/other", ""))
	shallow := watch(t, files, dir, dir, &daytona.WatchOptions{Shallow: true, Window: time.Millisecond})
	one := watch(t, files, dir, "f", nil)
	try(t, write(dir+"/d/sub/x", ""), os.Mkdir(dir+"/d2", 0o755), write(dir+"/d2/x", ""), write(dir+"/f", "1"), write(dir+"/other", "2"))
	shallow.want("create d2/", "write f", "write other")
	one.want("write f")
	try(t, os.Remove(dir+"/f"))
	one.want("remove f")
	try(t, write(dir+"/f", ""))
	one.want("create f")

	one.w.Close()
	if _, err, _ := one.next(); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	w, err := files.Watch(ctx, ".", nil)
	try(t, err)
	cancel()
	for _, err := range w.Events() {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("after the end of the context: %v", err)
		}
	}
	w.Close()

	_, err = files.Watch(t.Context(), "none", nil)
	wantKind(t, err, daytona.KindNotFound)
	for _, o := range []daytona.WatchOptions{{Window: time.Hour}, {Window: 1}, {Window: -1}, {Exclude: []string{"["}}, {Exclude: []string{"a/b"}}, {Exclude: make([]string, 100)}} {
		_, err = files.Watch(t.Context(), ".", &o)
		wantKind(t, err, daytona.KindInvalid)
	}
}

// TestWatchNothingIsLost makes many files and directories at once, and demands
// that each is told of once.
func TestWatchNothingIsLost(t *testing.T) {
	files, dir := fileAgent(t)
	w := watch(t, files, dir, ".", nil)
	const dirs, each = 50, 20
	go func() {
		for i := range dirs {
			d := filepath.Join(dir, fmt.Sprint(i%7), fmt.Sprint(i))
			_ = os.MkdirAll(d, 0o755)
			for j := range each {
				_ = write(filepath.Join(d, fmt.Sprint(j)), "x")
			}
		}
	}()
	seen := map[string]int{}
	for files := 0; files < dirs*each; {
		e, err, _ := w.next()
		try(t, err)
		if e.Type == daytona.FilesLost {
			t.Fatalf("%+v", e)
		}
		if e.Type != daytona.FileCreated {
			continue
		}
		if seen[e.Path]++; seen[e.Path] > 1 && e.IsDir {
			t.Errorf("%s is new for the %d. time", e.Path, seen[e.Path])
		}
		if !e.IsDir && seen[e.Path] == 1 {
			files++
		}
	}
}

// TestWatchOverflow makes changes faster than they are taken.
func TestWatchOverflow(t *testing.T) {
	files, dir := fileAgent(t)
	w := watch(t, files, dir, ".", &daytona.WatchOptions{Window: 2 * time.Second})
	for i := range 20000 {
		try(t, write(filepath.Join(dir, fmt.Sprint(i)), ""))
	}
	lost := false
	for !lost {
		e, err, _ := w.next()
		try(t, err)
		if lost = e.Type == daytona.FilesLost; lost && (e.Path != dir || e.Reason == "") {
			t.Errorf("%+v", e)
		}
	}
	// It goes on, also in directories that came while it was not looking.
	try(t, os.Mkdir(dir+"/later", 0o755), write(dir+"/later/f", ""))
	for path := ""; path != dir+"/later/f"; {
		e, err, _ := w.next()
		try(t, err)
		path = e.Path
	}
}

func TestWatchLimits(t *testing.T) {
	files, dir := fileAgent(t)
	var open []daytona.FileWatch
	defer func() {
		for _, w := range open {
			w.Close()
		}
	}()
	for {
		w, err := files.Watch(t.Context(), dir, nil)
		if err != nil {
			wantKind(t, err, daytona.KindExhausted)
			break
		}
		if open = append(open, w); len(open) > 100 {
			t.Fatal("there is no limit")
		}
	}
	for _, w := range open {
		w.Close()
	}
	open = nil
	// They are given back.
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		w, err := files.Watch(t.Context(), dir, nil)
		if err == nil {
			open = append(open, w)
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	if testing.Short() {
		return
	}
	for i := range 16400 {
		try(t, os.MkdirAll(fmt.Sprintf("%s/many/%d/%d", dir, i/200, i), 0o755))
	}
	_, err := files.Watch(t.Context(), dir, nil)
	wantKind(t, err, daytona.KindExhausted)
	list := []string{"many"}
	w, err := files.Watch(t.Context(), dir, &daytona.WatchOptions{Exclude: list})
	try(t, err)
	open = append(open, w)
	if !slices.Equal(list, []string{"many"}) {
		t.Error("the options changed")
	}
}
