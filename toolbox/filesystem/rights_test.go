package filesystem_test

import (
	"bytes"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona/toolbox/wire"
)

// TestRights has root serve another user.
func TestRights(t *testing.T) {
	a := other(t)
	s := serve(t, a)
	outside := filepath.Dir(s.dir) // root's
	secret := filepath.Join(outside, "secret")
	must(t, os.WriteFile(secret, []byte("secret"), 0o600))
	must(t, os.WriteFile(filepath.Join(outside, "readable"), []byte("readable"), 0o644))
	must(t, os.Mkdir(filepath.Join(outside, "closed"), 0o700))
	must(t, os.WriteFile(filepath.Join(outside, "closed", "inner"), nil, 0o666))

	s.upload("made/file", "x")
	s.want(201, "", "POST", route("/files/folder", "path", "folder/sub"), nil, nil)
	for _, name := range []string{"made", "made/file", "folder", "folder/sub"} {
		info, err := os.Stat(s.path(name))
		must(t, err)
		if st := info.Sys().(*syscall.Stat_t); int(st.Uid) != a.UID || int(st.Gid) != a.GID {
			t.Errorf("%s belongs to %d:%d, want %d:%d", name, st.Uid, st.Gid, a.UID, a.GID)
		}
	}
	const denied = wire.CodeFileAccessDenied
	up := func(p string) string { return route("/files/upload-v2", "path", p) }
	s.want(403, denied, "GET", route("/files/download", "path", secret), nil, nil)
	s.want(403, denied, "POST", up(secret), strings.NewReader("x"), nil)
	s.want(403, denied, "POST", up(filepath.Join(outside, "readable")), strings.NewReader("x"), nil)
	s.want(403, denied, "POST", up(filepath.Join(outside, "new")), strings.NewReader("x"), nil)
	s.want(403, denied, "POST", up(filepath.Join(outside, "newdir", "new")), strings.NewReader("x"), nil)
	s.want(403, denied, "DELETE", route("/files", "path", filepath.Join(outside, "readable")), nil, nil)
	s.want(403, denied, "GET", route("/files", "path", filepath.Join(outside, "closed")), nil, nil)
	s.want(403, denied, "GET", route("/files/info", "path", filepath.Join(outside, "closed", "inner")), nil, nil)
	s.want(403, denied, "POST", route("/files/permissions", "path", secret, "mode", "0666"), nil, nil)
	s.want(403, denied, "POST", route("/files/permissions", "path", "made/file", "owner", "0"), nil, nil)
	s.want(403, denied, "POST", route("/files/move", "source", secret, "destination", "mine"), nil, nil)
	s.want(403, denied, "POST", route("/files/folder", "path", filepath.Join(outside, "dir")), nil, nil)
	s.want(403, denied, "GET", route("/files/download", "path", "/proc/self/environ"), nil, nil)
	var results []wire.ReplaceResult
	s.want(200, "", "POST", route("/files/replace"), strings.NewReader(`{"files":["`+secret+`"],"pattern":"secret","newValue":""}`), &results)
	if results[0].Success {
		t.Error("replaced in a file of root's")
	}
	if b := s.want(200, "", "GET", route("/files/find", "path", outside, "pattern", "secret"), nil, nil); strings.TrimSpace(string(b)) != "[]" {
		t.Errorf("found %s", b)
	}
	if b := s.want(200, "", "POST", route("/files/bulk-download"), strings.NewReader(`{"paths":["`+secret+`"]}`), nil); !bytes.Contains(b, []byte(`"code":"FILE_ACCESS_DENIED"`)) {
		t.Errorf("bulk download: %s", b)
	}
	if b, _ := os.ReadFile(secret); string(b) != "secret" {
		t.Errorf("the secret is now %q", b)
	}

	// A file of root's that all may write, in a directory that the user may
	// not: in place, and still root's.
	open := filepath.Join(outside, "open")
	must(t, os.WriteFile(open, []byte("long old content"), 0o666))
	must(t, os.Chmod(open, 0o666))
	s.upload(open, "new")
	s.want(200, "", "POST", route("/files/replace"), strings.NewReader(`{"files":["`+open+`"],"pattern":"new","newValue":"newer"}`), &results)
	if b, _ := os.ReadFile(open); string(b) != "newer" || !results[0].Success {
		t.Errorf("open file has %q; %+v", b, results)
	}
	info, _ := os.Stat(open)
	if st := info.Sys().(*syscall.Stat_t); st.Uid != 0 || info.Mode() != 0o666 {
		t.Errorf("open file now has owner %d and mode %v", st.Uid, info.Mode())
	}
	// This takes away what is the user's, and nothing else.
	s.want(403, denied, "DELETE", route("/files", "path", outside, "recursive", "true"), nil, nil)
	if b, _ := os.ReadFile(secret); string(b) != "secret" {
		t.Errorf("the secret is now %q", b)
	}
	s.expectNames(".")
	// The test's own threads are root again.
	if err := os.WriteFile(filepath.Join(outside, "closed", "root"), nil, 0o600); err != nil {
		t.Error(err)
	}
}

// TestSwappedLinks swaps a directory and a file for links to what the user may
// not touch, as fast as it can, while the API works there.
func TestSwappedLinks(t *testing.T) {
	s := serve(t, other(t))
	outside := filepath.Join(filepath.Dir(s.dir), "outside")
	must(t, os.Mkdir(outside, 0o700))
	precious := filepath.Join(outside, "f")
	must(t, os.WriteFile(precious, []byte("precious"), 0o600))
	visible := filepath.Join(filepath.Dir(s.dir), "visible") // may be read, not written
	must(t, os.Mkdir(visible, 0o755))
	must(t, os.WriteFile(filepath.Join(visible, "f"), []byte("visible"), 0o644))

	must(t, os.Chmod(s.dir, 0o777))
	for _, name := range []string{"d", "own"} {
		must(t, os.Mkdir(s.path(name), 0o777))
		must(t, os.Chmod(s.path(name), 0o777))
	}
	must(t, os.Symlink(outside, s.path("to-outside")))
	must(t, os.Symlink(visible, s.path("to-visible")))
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var swaps atomic.Int64
	wg.Go(func() {
		for {
			for _, link := range []string{"to-outside", "to-visible"} {
				select {
				case <-stop:
					return
				default:
				}
				// d is the user's directory, then a link, then the directory.
				_ = unix.Renameat2(unix.AT_FDCWD, s.path("d"), unix.AT_FDCWD, s.path(link), unix.RENAME_EXCHANGE)
				_ = unix.Renameat2(unix.AT_FDCWD, s.path("d"), unix.AT_FDCWD, s.path(link), unix.RENAME_EXCHANGE)
				swaps.Add(1)
			}
		}
	})
	deadline := time.Now().Add(1500 * time.Millisecond)
	if testing.Short() {
		deadline = time.Now().Add(300 * time.Millisecond)
	}
	for i := range 4 {
		wg.Go(func() {
			for time.Now().Before(deadline) {
				for _, r := range []struct{ method, url, body string }{
					{"POST", route("/files/upload-v2", "path", "d/f"), "mine"},
					{"GET", route("/files/download", "path", "d/f"), ""},
					{"POST", route("/files/permissions", "path", "d/f", "mode", "0666"), ""},
					{"POST", route("/files/replace"), `{"files":["d/f"],"pattern":"precious","newValue":"stolen"}`},
					{"POST", route("/files/move", "source", "d/f", "destination", "own/f"), ""},
					{"DELETE", route("/files", "path", "own", "recursive", "true"), ""},
					{"GET", route("/files/find", "path", "d", "pattern", "precious"), ""},
					{"DELETE", route("/files", "path", []string{"d/f", "d/sub"}[i%2], "recursive", "true"), ""},
					{"POST", route("/files/folder", "path", "d/sub"), ""},
				} {
					req, _ := http.NewRequest(r.method, r.url, strings.NewReader(r.body))
					resp, err := s.Do(req)
					if err != nil {
						t.Error(err)
						return
					}
					b, _ := io.ReadAll(resp.Body)
					resp.Body.Close()
					if resp.StatusCode < 300 && bytes.Contains(b, []byte("precious")) {
						t.Errorf("%s %s gave %q", r.method, r.url, b)
						return
					}
				}
			}
		})
	}
	time.AfterFunc(time.Until(deadline), func() { close(stop) })
	wg.Wait()
	if swaps.Load() < 100 {
		t.Errorf("only %d swaps", swaps.Load())
	}
	for p, want := range map[string]string{precious: "precious", filepath.Join(visible, "f"): "visible"} {
		b, err := os.ReadFile(p)
		if err != nil || string(b) != want {
			t.Errorf("%s: %q, %v", p, b, err)
		}
		info, err := os.Stat(p)
		must(t, err)
		if st := info.Sys().(*syscall.Stat_t); info.Mode()&0o066 != map[string]os.FileMode{precious: 0, filepath.Join(visible, "f"): 0o044}[p] || st.Uid != 0 {
			t.Errorf("%s has mode %v and owner %d", p, info.Mode(), st.Uid)
		}
	}
	for _, dir := range []string{outside, visible} {
		entries, _ := os.ReadDir(dir)
		if len(entries) != 1 {
			t.Errorf("%s: %v", dir, entries)
		}
	}
}
