package filesystem

import (
	"context"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/daytona-go/daytona/toolbox/account"
	"github.com/daytona-go/daytona/toolbox/wire"
)

// TestRenamedBeforeSeen: what is in a new directory is told of, although the
// directory had another name by the time it could be looked into; and what is in
// an old one is not.
func TestRenamedBeforeSeen(t *testing.T) {
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	s, err := New(Options{Account: account.Current(), WorkDir: dir})
	must(err)
	at := func(name string) string { return filepath.Join(dir, name) }
	must(os.Mkdir(at("old"), 0o755))
	must(os.WriteFile(at("old/b"), nil, 0o644))
	w, err := s.newWatcher(t.Context(), dir, true, nil)
	must(err)
	defer w.close()
	// All of it before the first event is read.
	must(os.Mkdir(at("new"), 0o755))
	must(os.WriteFile(at("new/a"), nil, 0o644))
	must(os.Mkdir(at("new/sub"), 0o755))
	must(os.WriteFile(at("new/sub/c"), nil, 0o644))
	must(os.Rename(at("new"), at("newer")))
	must(os.Rename(at("newer"), at("newest")))
	must(os.Rename(at("old"), at("older")))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); w.run(ctx) }()
	defer func() { cancel(); <-done }()
	var got []string
	await := func(all ...string) {
		t.Helper()
		missing := func(change string) bool { return !slices.Contains(got, change) }
		for deadline := time.After(20 * time.Second); slices.ContainsFunc(all, missing); {
			select {
			case <-w.changes.ready:
			case <-deadline:
				t.Fatalf("%q", got)
			}
			list, _ := w.changes.take()
			for _, c := range list {
				got = append(got, c.Type+" "+strings.TrimPrefix(c.Path, dir+"/"))
			}
		}
	}
	await("create newest/sub/c", "create newest/a")
	// Where two are in one directory, either may come first.
	slices.Sort(got)
	// The old one's rename may still come.
	got = slices.DeleteFunc(got, func(s string) bool { return s == "rename older" })
	if want := []string{"create new", "create newest/a", "create newest/sub", "create newest/sub/c", "rename newer", "rename newest"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	must(os.WriteFile(at("newest/sub/d"), nil, 0o644))
	await("create newest/sub/d")
	if slices.Contains(got, "create older/b") {
		t.Errorf("what was there before is told of: %q", got)
	}
}

// FuzzChanges makes and removes files, and demands that a client that knows
// nothing but the changes, however they are cut into windows, knows in the end
// which files there are.
func FuzzChanges(f *testing.F) {
	f.Add("aAbBraRab/wa/mb/")
	f.Add("a.A.a/wa/Ra/b.rab.Ab.")
	f.Fuzz(func(t *testing.T, script string) {
		c := changes{ready: make(chan struct{}, 1), ended: make(chan struct{})}
		there, told := map[string]bool{}, map[string]bool{}
		apply := func() {
			list, _ := c.take()
			for _, e := range list {
				switch e.Type {
				case wire.ChangeCreate:
					told[e.Path] = true
				case wire.ChangeRemove:
					// It may be of a file that was renamed to there and removed.
					delete(told, e.Path)
				case wire.ChangeRename:
					if !told[e.OldPath] {
						t.Fatalf("%q was not there: %+v", e.OldPath, list)
					}
					delete(told, e.OldPath)
					told[e.Path] = true
				default:
					if !told[e.Path] {
						t.Fatalf("%q is not there: %+v", e.Path, list)
					}
				}
			}
		}
		names := []string{"/x", "/y", "/z"}
		for i := 0; i+1 < len(script); i += 2 {
			a, b := names[int(script[i+1])%3], names[int(script[i+1]/3)%3]
			switch script[i] % 6 {
			case 0, 1:
				if !there[a] {
					there[a] = true
					c.add(wire.FileChange{Type: wire.ChangeCreate, Path: a})
				}
			case 2:
				if there[a] {
					delete(there, a)
					c.add(wire.FileChange{Type: wire.ChangeRemove, Path: a})
				}
			case 3:
				if there[a] && a != b {
					delete(there, a)
					there[b] = true
					c.add(wire.FileChange{Type: wire.ChangeRename, OldPath: a, Path: b})
				}
			case 4:
				if there[a] {
					c.add(wire.FileChange{Type: []string{wire.ChangeWrite, wire.ChangeAttributes}[i%2], Path: a})
				}
			case 5:
				apply()
			}
		}
		apply()
		for _, name := range names {
			if there[name] != told[name] {
				t.Errorf("%s: there is %v, told was %v, after %q", name, there[name], told[name], script)
			}
		}
	})
}

func FuzzCommon(f *testing.F) {
	f.Add("/a/b", "/a/bc")
	f.Add("/", "/x")
	f.Fuzz(func(t *testing.T, a, b string) {
		a, b = path.Clean("/"+a), path.Clean("/"+b)
		got := common(a, b)
		for _, p := range []string{a, b} {
			if p != got && !strings.HasPrefix(p, strings.TrimSuffix(got, "/")+"/") {
				t.Errorf("common(%q, %q) = %q", a, b, got)
			}
		}
	})
}
