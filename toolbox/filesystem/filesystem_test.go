package filesystem_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona/toolbox/account"
	"github.com/daytona-go/daytona/toolbox/filesystem"
	"github.com/daytona-go/daytona/toolbox/wire"
)

// server is the real service behind a Unix socket.
type server struct {
	*http.Client
	t   testing.TB
	dir string // its working directory
}

// serve starts the service for an account, the test's own if nil.
func serve(t testing.TB, a *account.Account) *server {
	t.Helper()
	if a == nil {
		a = account.Current()
	}
	// Not t.TempDir, through which another user could not pass.
	dir, err := os.MkdirTemp("", "files")
	if err != nil {
		t.Fatal(err)
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("left behind: %v", err)
		}
	})
	must(t, os.Chmod(dir, 0o755))
	work := filepath.Join(dir, "work")
	must(t, os.Mkdir(work, 0o755))
	if os.Getuid() == 0 {
		must(t, os.Chown(work, a.UID, a.GID))
	}
	s, err := filesystem.New(filesystem.Options{Account: a, WorkDir: work})
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	s.Register(mux)
	socket := filepath.Join(dir, "socket")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	h := &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}
	go h.Serve(l)
	t.Cleanup(func() { h.Close() })
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
		DisableCompression: true,
		WriteBufferSize:    256 << 10, ReadBufferSize: 256 << 10,
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &server{Client: &http.Client{Transport: transport}, t: t, dir: work}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// other is an account that is not the test's own.
func other(t testing.TB) *account.Account {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can act as another user")
	}
	a, err := account.Lookup("65534:65534")
	must(t, err)
	return a
}

func route(path string, query ...string) string {
	q := url.Values{}
	for i := 0; i < len(query); i += 2 {
		q.Set(query[i], query[i+1])
	}
	return "http://agent" + path + "?" + q.Encode()
}

// call returns status and body.
func (s *server) call(method, url, contentType string, body io.Reader) (int, []byte, http.Header) {
	s.t.Helper()
	r, err := http.NewRequestWithContext(context.Background(), method, url, body)
	must(s.t, err)
	if contentType != "" {
		r.Header.Set("Content-Type", contentType)
	}
	resp, err := s.Do(r)
	must(s.t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	must(s.t, err)
	return resp.StatusCode, b, resp.Header
}

// want calls and checks the status, and the code of an error; it decodes the
// answer into out if not nil.
func (s *server) want(status int, code, method, url string, body io.Reader, out any) []byte {
	s.t.Helper()
	got, b, _ := s.call(method, url, "application/json", body)
	if got != status {
		s.t.Fatalf("%s %s: status %d, want %d: %s", method, url, got, status, b)
	}
	if status >= 400 {
		var e wire.ErrorResponse
		must(s.t, json.Unmarshal(b, &e))
		if e.Code != code || e.StatusCode != status || e.Message == "" || e.Source != wire.Source || e.Timestamp == "" || e.Path == "" {
			s.t.Errorf("%s %s: error %+v, want code %s", method, url, e, code)
		}
	} else if out != nil {
		must(s.t, json.Unmarshal(b, out))
	}
	return b
}

func (s *server) upload(p, content string, query ...string) {
	s.t.Helper()
	status, b, _ := s.call("POST", route("/files/upload-v2", append([]string{"path", p}, query...)...), "application/octet-stream", strings.NewReader(content))
	if status != http.StatusOK {
		s.t.Fatalf("upload of %s: status %d: %s", p, status, b)
	}
}

func (s *server) path(names ...string) string {
	return filepath.Join(append([]string{s.dir}, names...)...)
}

func (s *server) write(name, content string) string {
	s.t.Helper()
	p := s.path(name)
	must(s.t, os.MkdirAll(filepath.Dir(p), 0o755))
	must(s.t, os.WriteFile(p, []byte(content), 0o644))
	return p
}

func (s *server) content(name, want string) {
	s.t.Helper()
	b, err := os.ReadFile(s.path(name))
	must(s.t, err)
	if string(b) != want {
		s.t.Errorf("%s has %q, want %q", name, clip(b), clip([]byte(want)))
	}
}

func clip(b []byte) []byte { return b[:min(len(b), 100)] }

// names of a directory, hidden ones too.
func (s *server) names(dir string) []string {
	s.t.Helper()
	entries, err := os.ReadDir(s.path(dir))
	must(s.t, err)
	names := []string{}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func (s *server) expectNames(dir string, want ...string) {
	s.t.Helper()
	if got := s.names(dir); !slices.Equal(got, want) {
		s.t.Errorf("%s has %q, want %q", dir, got, want)
	}
}

func TestInfoAndList(t *testing.T) {
	s := serve(t, nil)
	s.write("b/file", "12345")
	must(t, os.Chmod(s.path("b/file"), 0o640))
	at := time.Unix(1700000000, 123456789)
	must(t, os.Chtimes(s.path("b/file"), at, at))
	must(t, os.Symlink("file", s.path("b/link")))
	must(t, os.Mkdir(s.path("b/dir"), 0o755))
	must(t, os.Chmod(s.path("b/dir"), 0o777|fs.ModeSticky))
	must(t, unix.Mkfifo(s.path("b/pipe"), 0o600))
	s.write("b/dir/inner", "")

	var info wire.FileInfo
	for _, name := range []string{"b/file", "b/link", "b/../b/./file", s.path("b/file")} {
		s.want(200, "", "GET", route("/files/info", "path", name), nil, &info)
		want := wire.FileInfo{Name: filepath.Base(name), Path: s.path("b", filepath.Base(name)), Size: 5, Mode: "-rw-r-----", Permissions: "0640",
			ModTime: at.String(), ModifiedAt: "2023-11-14T22:13:20.123456789Z", Owner: strconv.Itoa(os.Getuid()), Group: strconv.Itoa(os.Getgid())}
		if filepath.IsAbs(name) {
			want.Path = name
		}
		if info != want {
			t.Errorf("info of %s:\n%+v, want\n%+v", name, info, want)
		}
	}
	s.want(200, "", "GET", route("/files/info", "path", "b/link", "follow", "false"), nil, &info)
	if info.Mode != "Lrwxrwxrwx" {
		t.Errorf("link has mode %s", info.Mode)
	}

	var list []wire.FileInfo
	for _, base := range []string{"/files", "/files/"} {
		s.want(200, "", "GET", route(base, "path", "b"), nil, &list)
		var got []string
		for _, i := range list {
			got = append(got, i.Name+" "+i.Mode+" "+i.Permissions+" "+fmt.Sprint(i.IsDir)+" "+i.Path)
		}
		want := []string{
			"dir dtrwxrwxrwx 1777 true " + s.path("b/dir"), "file -rw-r----- 0640 false " + s.path("b/file"),
			"link Lrwxrwxrwx 0777 false " + s.path("b/link"), "pipe prw------- 0600 false " + s.path("b/pipe"),
		}
		if !slices.Equal(got, want) {
			t.Errorf("list:\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
	s.want(200, "", "GET", "http://agent/files", nil, &list)
	if len(list) != 1 || list[0].Name != "b" {
		t.Errorf("list of the working directory: %+v", list)
	}
	s.want(200, "", "GET", route("/files", "depth", "3"), nil, &list)
	var got []string
	for _, i := range list {
		rel, _ := filepath.Rel(s.dir, i.Path)
		got = append(got, rel)
	}
	if want := []string{"b", "b/dir", "b/dir/inner", "b/file", "b/link", "b/pipe"}; !slices.Equal(got, want) {
		t.Errorf("list of depth 3: %q, want %q", got, want)
	}
	must(t, os.Mkdir(s.path("empty"), 0o755))
	if b := s.want(200, "", "GET", route("/files", "path", "empty"), nil, nil); string(b) != "[]\n" {
		t.Errorf("empty directory: %q", b)
	}
	s.want(404, wire.CodeFileNotFound, "GET", route("/files", "path", "none"), nil, nil)
	s.want(404, wire.CodeFileNotFound, "GET", route("/files/info", "path", "none"), nil, nil)
	s.want(404, wire.CodeFileNotFound, "GET", route("/files/info", "path", "b/file/x"), nil, nil)
	s.want(400, wire.CodeInvalidFilePath, "GET", route("/files", "path", "b/file"), nil, nil)
	for _, depth := range []string{"0", "-1", "x"} {
		s.want(400, "BAD_REQUEST", "GET", route("/files", "depth", depth), nil, nil)
	}
}

// TestManyFiles lists more files than a batch has.
func TestManyFiles(t *testing.T) {
	s := serve(t, nil)
	var want []string
	for i := range 1000 {
		name := fmt.Sprintf("f%04d", i)
		want = append(want, name)
		s.write(name, name)
	}
	var list []wire.FileInfo
	s.want(200, "", "GET", route("/files", "path", "."), nil, &list)
	var got []string
	for _, i := range list {
		got = append(got, i.Name)
	}
	if !slices.Equal(got, want) {
		t.Errorf("%d names, want %d in order", len(got), len(want))
	}
}

func TestBadPaths(t *testing.T) {
	s := serve(t, nil)
	bad := map[string]string{
		"NUL": "a\x00b", "empty": "", "long name": strings.Repeat("a", 256), "long path": strings.Repeat("a/", 2100),
		"magic link": "/proc/self/fd/0", "magic directory": "/proc/self/root/etc/passwd", "own directory": "/proc/self/cwd/x", "thread": "/proc/thread-self/fd/1",
	}
	for what, p := range bad {
		t.Run(what, func(t *testing.T) {
			s := *s
			s.t = t
			for _, r := range []struct{ method, url string }{
				{"GET", route("/files/info", "path", p)}, {"GET", route("/files/download", "path", p)}, {"POST", route("/files/upload-v2", "path", p)},
				{"GET", route("/files", "path", p)}, {"GET", route("/files/search", "path", p, "pattern", "*")},
				{"GET", route("/files/find", "path", p, "pattern", "x")}, {"POST", route("/files/permissions", "path", p, "mode", "0644")},
			} {
				if p == "" && strings.Contains(r.url, "/files?") {
					continue
				}
				s.want(400, wire.CodeInvalidFilePath, r.method, r.url, nil, nil)
			}
		})
	}
	s.write("f", "")
	for _, mode := range []string{"rw", "0888", "10000", "-1"} {
		s.want(400, "BAD_REQUEST", "POST", route("/files/permissions", "path", "f", "mode", mode), nil, nil)
	}
	s.want(400, wire.CodeInvalidBody, "POST", route("/files/replace"), strings.NewReader("{"), nil)
	s.want(413, "REQUEST_ENTITY_TOO_LARGE", "POST", route("/files/replace"), strings.NewReader(`{"pattern":"`+strings.Repeat("x", 17<<20)+`"}`), nil)
}

func TestFolder(t *testing.T) {
	s := serve(t, nil)
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	s.want(201, "", "POST", route("/files/folder", "path", "a/b/c", "mode", "0777"), nil, nil)
	s.want(201, "", "POST", route("/files/folder", "path", "a/b/c", "mode", "0700"), nil, nil) // exists: stays
	s.want(201, "", "POST", route("/files/folder", "path", "closed", "mode", "311"), nil, nil)
	s.want(201, "", "POST", route("/files/folder", "path", "plain"), nil, nil)
	for name, want := range map[string]fs.FileMode{"a/b/c": 0o777, "closed": 0o311, "plain": 0o755} {
		info, err := os.Stat(s.path(name))
		must(t, err)
		if info.Mode() != want|fs.ModeDir {
			t.Errorf("%s has mode %v, want %v", name, info.Mode(), want)
		}
	}
	s.write("file", "")
	s.want(409, "CONFLICT", "POST", route("/files/folder", "path", "file"), nil, nil)
	s.want(400, wire.CodeInvalidFilePath, "POST", route("/files/folder", "path", "file/x/y"), nil, nil)
	s.content("file", "")
}

func TestPermissions(t *testing.T) {
	s := serve(t, nil)
	s.write("f", "")
	must(t, os.Symlink("f", s.path("link")))
	s.want(200, "", "POST", route("/files/permissions", "path", "link", "mode", "4711", "owner", strconv.Itoa(os.Getuid()), "group", strconv.Itoa(os.Getgid())), nil, nil)
	info, err := os.Stat(s.path("f"))
	must(t, err)
	if info.Mode() != 0o711|fs.ModeSetuid {
		t.Errorf("mode %v", info.Mode())
	}
	s.want(400, "BAD_REQUEST", "POST", route("/files/permissions", "path", "f", "owner", "no-such-user"), nil, nil)
	s.want(400, "BAD_REQUEST", "POST", route("/files/permissions", "path", "f", "group", "-1"), nil, nil)
	s.want(404, wire.CodeFileNotFound, "POST", route("/files/permissions", "path", "none", "mode", "644"), nil, nil)
	if os.Getuid() == 0 {
		s.want(200, "", "POST", route("/files/permissions", "path", "f", "owner", "12", "group", "34"), nil, nil)
		info, _ := os.Stat(s.path("f"))
		if st := info.Sys().(*syscall.Stat_t); st.Uid != 12 || st.Gid != 34 {
			t.Errorf("owner %d:%d", st.Uid, st.Gid)
		}
	}
}

func TestDelete(t *testing.T) {
	s := serve(t, nil)
	outside := t.TempDir()
	must(t, os.WriteFile(filepath.Join(outside, "precious"), nil, 0o644))
	s.write("file", "")
	s.write("dir/a/b/c", "")
	s.write("dir/d", "")
	must(t, os.Symlink(outside, s.path("dir/a/link")))
	must(t, os.Symlink(outside, s.path("link")))
	must(t, os.Mkdir(s.path("empty"), 0o755))

	s.want(204, "", "DELETE", route("/files", "path", "file"), nil, nil)
	s.want(404, wire.CodeFileNotFound, "DELETE", route("/files", "path", "file"), nil, nil)
	s.want(404, wire.CodeFileNotFound, "DELETE", route("/files", "path", "file", "recursive", "true"), nil, nil)
	s.want(400, wire.CodeNotEmpty, "DELETE", route("/files", "path", "dir"), nil, nil)
	s.want(400, wire.CodeNotEmpty, "DELETE", route("/files/", "path", "dir", "recursive", "false"), nil, nil)
	s.want(204, "", "DELETE", route("/files", "path", "empty"), nil, nil)
	s.want(204, "", "DELETE", route("/files", "path", "link", "recursive", "true"), nil, nil)
	s.want(204, "", "DELETE", route("/files", "path", "dir", "recursive", "true"), nil, nil)
	s.expectNames(".")
	if _, err := os.Stat(filepath.Join(outside, "precious")); err != nil {
		t.Errorf("deletion followed a link: %v", err)
	}
	s.want(400, wire.CodeInvalidFilePath, "DELETE", route("/files", "path", "/", "recursive", "true"), nil, nil)
	if home := account.Current().Home; filepath.Dir(home) != "/" {
		s.want(400, wire.CodeInvalidFilePath, "DELETE", route("/files", "path", filepath.Dir(home), "recursive", "true"), nil, nil)
	}
}

// TestDeleteDeep removes a tree deeper than a path can say and than files can
// be open at once.
func TestDeleteDeep(t *testing.T) {
	s := serve(t, nil)
	var limit unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	defer unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)
	fd, err := unix.Open(s.dir, unix.O_DIRECTORY, 0)
	must(t, err)
	const depth = 3000
	for range depth {
		must(t, unix.Mkdirat(fd, "deep", 0o755))
		file, err := unix.Openat(fd, "file", unix.O_CREAT|unix.O_WRONLY, 0o644)
		must(t, err)
		unix.Close(file)
		next, err := unix.Openat(fd, "deep", unix.O_DIRECTORY, 0)
		must(t, err)
		unix.Close(fd)
		fd = next
	}
	unix.Close(fd)
	low := limit
	low.Cur = 256
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &low))
	s.want(204, "", "DELETE", route("/files", "path", "deep", "recursive", "true"), nil, nil)
	s.expectNames(".", "file")
}

// mountTmpfs mounts a small file system, or skips the test.
func mountTmpfs(t *testing.T, at, options string) {
	t.Helper()
	must(t, os.MkdirAll(at, 0o755))
	if err := unix.Mount("tmpfs", at, "tmpfs", 0, options); err != nil {
		t.Skipf("mounting a tmpfs needs root: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
}

func TestDeleteStaysOnMount(t *testing.T) {
	s := serve(t, nil)
	s.write("dir/file", "")
	mountTmpfs(t, s.path("dir/volume"), "")
	s.write("dir/volume/precious", "x")
	bind := s.path("dir/bind")
	s.write("source/precious", "x")
	must(t, os.Mkdir(bind, 0o755))
	must(t, unix.Mount(s.path("source"), bind, "", unix.MS_BIND, ""))
	defer unix.Unmount(bind, unix.MNT_DETACH)

	s.want(409, "CONFLICT", "DELETE", route("/files", "path", "dir", "recursive", "true"), nil, nil)
	s.content("dir/volume/precious", "x")
	s.content("source/precious", "x")
	s.expectNames("dir", "bind", "volume")
}

func TestMove(t *testing.T) {
	s := serve(t, nil)
	s.write("a", "A")
	s.write("b", "B")
	s.write("dir/x", "X")
	s.want(409, "CONFLICT", "POST", route("/files/move", "source", "a", "destination", "b"), nil, nil)
	s.want(409, "CONFLICT", "POST", route("/files/move", "source", "a", "destination", "dir"), nil, nil)
	s.want(404, wire.CodeFileNotFound, "POST", route("/files/move", "source", "none", "destination", "c"), nil, nil)
	s.want(404, wire.CodeFileNotFound, "POST", route("/files/move", "source", "a", "destination", "none/c"), nil, nil)
	s.want(400, wire.CodeInvalidFilePath, "POST", route("/files/move", "source", "dir", "destination", "dir/y/z"), nil, nil)
	s.want(200, "", "POST", route("/files/move", "source", "a", "destination", "c"), nil, nil)
	s.want(200, "", "POST", route("/files/move", "source", "dir", "destination", "moved"), nil, nil)
	s.content("c", "A")
	s.content("b", "B")
	s.content("moved/x", "X")
	s.expectNames(".", "b", "c", "moved")
}

func TestMoveAcrossFileSystems(t *testing.T) {
	s := serve(t, nil)
	mountTmpfs(t, s.path("volume"), "size=4m")
	s.write("tree/script", "#!")
	must(t, os.Chmod(s.path("tree/script"), 0o750))
	at := time.Unix(1600000000, 0)
	must(t, os.Chtimes(s.path("tree/script"), at, at))
	must(t, os.Symlink("../elsewhere", s.path("tree/link")))
	must(t, unix.Mkfifo(s.path("tree/pipe"), 0o600))
	must(t, os.Chmod(s.path("tree"), 0o700))
	s.write("volume/taken", "T")

	s.want(409, "CONFLICT", "POST", route("/files/move", "source", "tree", "destination", "volume/taken"), nil, nil)
	s.want(200, "", "POST", route("/files/move", "source", "tree", "destination", "volume/tree"), nil, nil)
	s.content("volume/tree/script", "#!")
	info, err := os.Stat(s.path("volume/tree/script"))
	must(t, err)
	if info.Mode() != 0o750 || !info.ModTime().Equal(at) {
		t.Errorf("copied with mode %v and time %v", info.Mode(), info.ModTime())
	}
	if target, _ := os.Readlink(s.path("volume/tree/link")); target != "../elsewhere" {
		t.Errorf("link to %q", target)
	}
	s.expectNames("volume/tree", "link", "pipe", "script")

	// What does not fit stays where it is and leaves nothing.
	s.write("big", strings.Repeat("x", 8<<20))
	s.want(507, wire.CodeNoSpace, "POST", route("/files/move", "source", "big", "destination", "volume/big"), nil, nil)
	s.expectNames("volume", "taken", "tree")
	s.expectNames(".", "big", "volume")
}

func TestUpload(t *testing.T) {
	s := serve(t, nil)
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	s.upload("new/deep/file", "one")
	s.content("new/deep/file", "one")
	s.upload("script", "x", "mode", "0755")
	s.upload("keep", "x", "mode", "0604")
	s.upload("keep", "changed")
	must(t, os.Symlink("target/file", s.path("link")))
	must(t, os.Mkdir(s.path("target"), 0o755))
	s.upload("link", "through")
	must(t, os.Symlink(s.path("link"), s.path("link2")))
	s.upload("link2", "through two")
	s.upload("hard1", "1")
	must(t, os.Link(s.path("hard1"), s.path("hard2")))
	s.upload("hard1", "2")
	s.content("hard2", "2")
	s.content("target/file", "through two")
	for name, want := range map[string]fs.FileMode{"new/deep/file": 0o644, "new/deep": 0o700 | fs.ModeDir, "script": 0o755, "keep": 0o604, "link": 0o777 | fs.ModeSymlink} {
		info, err := os.Lstat(s.path(name))
		must(t, err)
		if info.Mode() != want {
			t.Errorf("%s has mode %v, want %v", name, info.Mode(), want)
		}
	}
	s.content("keep", "changed")

	must(t, os.Symlink("loop", s.path("loop")))
	must(t, unix.Mkfifo(s.path("pipe"), 0o600))
	for name, code := range map[string]string{"target": wire.CodeDirectoryInPlace, "loop": wire.CodeInvalidFilePath, "pipe": wire.CodeInvalidFilePath,
		"/dev/zero": wire.CodeInvalidFilePath, "keep/x": wire.CodeInvalidFilePath, "keep/x/y": wire.CodeInvalidFilePath} {
		s.want(400, code, "POST", route("/files/upload-v2", "path", name), strings.NewReader("x"), nil)
	}
	s.want(400, "BAD_REQUEST", "POST", route("/files/upload-v2", "path", "m", "mode", "9"), strings.NewReader("x"), nil)
	// An error is answered although the body is long, and the connection
	// lives on.
	s.want(400, wire.CodeDirectoryInPlace, "POST", route("/files/upload-v2", "path", "target"), strings.NewReader(strings.Repeat("x", 10<<20)), nil)
	s.expectNames(".", "hard1", "hard2", "keep", "link", "link2", "loop", "new", "pipe", "script", "target")

	// A program that runs can be replaced.
	true, err := os.ReadFile("/bin/sleep")
	must(t, err)
	s.upload("program", string(true), "mode", "0755")
	p, err := os.StartProcess(s.path("program"), []string{"sleep", "60"}, &os.ProcAttr{})
	must(t, err)
	defer p.Wait()
	defer p.Kill()
	s.upload("program", "new")
	s.content("program", "new")
}

// TestUploadForm uploads as clients of 0.190 do.
func TestUploadForm(t *testing.T) {
	s := serve(t, nil)
	body := "--xyz\r\nContent-Disposition: form-data; name=\"other\"\r\n\r\nignored\r\n" +
		"--xyz\r\nContent-Disposition: form-data; name=\"file\"; filename=\"x\"\r\nContent-Type: application/octet-stream\r\n\r\nline\r\n--xy\r\n\x00\r\n--xyz--\r\n"
	for _, path := range []string{"/files/upload", "/files/upload-v2"} {
		status, b, _ := s.call("POST", route(path, "path", "sub/up"), "multipart/form-data; boundary=xyz", strings.NewReader(body))
		var up wire.UploadedFile
		must(t, json.Unmarshal(b, &up))
		if status != 200 || up != (wire.UploadedFile{Name: "up", Path: s.path("sub/up"), Type: "file"}) {
			t.Errorf("status %d: %s", status, b)
		}
		s.content("sub/up", "line\r\n--xy\r\n\x00")
	}
	for name, bad := range map[string]string{
		"no file": "--xyz\r\nContent-Disposition: form-data; name=\"other\"\r\n\r\nx\r\n--xyz--\r\n", "cut off": body[:len(body)-12], "no form": "hello",
	} {
		status, b, _ := s.call("POST", route("/files/upload", "path", "sub2/up"), "multipart/form-data; boundary=xyz", strings.NewReader(bad))
		if status != 400 {
			t.Errorf("%s: status %d: %s", name, status, b)
		}
	}
	s.expectNames(".", "sub")
	s.expectNames("sub", "up")
}

// failingReader ends with an error.
type failingReader struct{ left int }

func (r *failingReader) Read(b []byte) (int, error) {
	if r.left == 0 {
		return 0, errors.New("the client breaks off")
	}
	n := min(len(b), r.left)
	r.left -= n
	return n, nil
}

func TestUploadBrokenOff(t *testing.T) {
	s := serve(t, nil)
	s.write("old", "old")
	for _, name := range []string{"old", "new", "made/for/it"} {
		for _, length := range []int64{-1, 20 << 20} {
			r, err := http.NewRequestWithContext(t.Context(), "POST", route("/files/upload-v2", "path", name), &failingReader{left: 10 << 20})
			must(t, err)
			r.ContentLength = length
			if resp, err := s.Do(r); err == nil {
				resp.Body.Close()
				t.Errorf("broken upload was answered with %s", resp.Status)
			}
		}
	}
	// The agent learns of it a moment later.
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if names := s.names("."); slices.Equal(names, []string{"old"}) {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("left behind: %q", names)
		}
	}
	s.content("old", "old")
}

func TestNoSpace(t *testing.T) {
	s := serve(t, nil)
	mountTmpfs(t, s.path("small"), "size=1m")
	big := strings.Repeat("x", 4<<20)
	s.want(507, wire.CodeNoSpace, "POST", route("/files/upload-v2", "path", "small/dir/f"), strings.NewReader(big), nil)
	s.expectNames("small")
	s.upload("small/f", "fits")
	s.want(507, wire.CodeNoSpace, "POST", route("/files/upload-v2", "path", "small/f"), strings.NewReader(big), nil)
	s.content("small/f", "fits")
	form := "--xyz\r\nContent-Disposition: form-data; name=\"files[0].path\"\r\n\r\nsmall/g\r\n--xyz\r\nContent-Disposition: form-data; name=\"files[0].file\"; filename=\"x\"\r\n\r\n" +
		big + "\r\n--xyz\r\nContent-Disposition: form-data; name=\"files[1].path\"\r\n\r\nsmall/h\r\n--xyz\r\nContent-Disposition: form-data; name=\"files[1].file\"; filename=\"x\"\r\n\r\nH\r\n--xyz--\r\n"
	status, b, _ := s.call("POST", route("/files/bulk-upload"), "multipart/form-data; boundary=xyz", strings.NewReader(form))
	var up wire.BulkUploadResponse
	must(t, json.Unmarshal(b, &up))
	if status != 507 || len(up.Errors) != 1 || !slices.Equal(up.Files, []wire.UploadedPath{{Path: "small/h", Bytes: 1}}) {
		t.Errorf("status %d: %s", status, b)
	}
	s.expectNames("small", "f", "h")
	mountTmpfs(t, s.path("inodes"), "nr_inodes=1")
	s.want(507, wire.CodeNoSpace, "POST", route("/files/upload-v2", "path", "inodes/f"), strings.NewReader("x"), nil)
}

func TestBulkUpload(t *testing.T) {
	part := func(name, filename, value string) string {
		extra := ""
		if filename != "" {
			extra = `; filename="` + filename + "\"\r\nContent-Type: application/octet-stream"
		}
		return "--b0\r\nContent-Disposition: form-data; name=\"" + name + `"` + extra + "\r\n\r\n" + value + "\r\n"
	}
	binary := string([]byte{0, 1, '\r', '\n', '-', '-', 'b', 0xff}) + strings.Repeat("\r\n--b", 50_000)
	interleaved := part("files[0].path", "", "one/a.txt") + part("files[0].file", "one/a.txt", "A") +
		part("files[1].path", "", "ünï/b") + part("files[1].file", "x", binary) + "--b0--\r\n"
	pathsFirst := part("files[0].path", "", "one/a.txt") + part("files[1].path", "", "ünï/b") +
		part("files[0].file", "one/a.txt", "A") + part("files[1].file", "x", binary) + "--b0--"
	for name, body := range map[string]string{"interleaved": interleaved, "paths first": pathsFirst} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, nil)
			status, b, _ := s.call("POST", route("/files/bulk-upload"), "multipart/form-data; boundary=b0", strings.NewReader(body))
			if want := fmt.Sprintf(`{"files":[{"path":"one/a.txt","bytes":1},{"path":"ünï/b","bytes":%d}]}`, len(binary)); status != 200 || strings.TrimSpace(string(b)) != want {
				t.Errorf("status %d: %s, want %s", status, b, want)
			}
			s.content("one/a.txt", "A")
			s.content("ünï/b", binary)
		})
	}

	t.Run("errors", func(t *testing.T) {
		s := serve(t, nil)
		must(t, os.Mkdir(s.path("dir"), 0o755))
		body := part("files[0].file", "x", "early") +
			part("files[1].path", "", "dir") + part("files[1].file", "x", strings.Repeat("y", 3<<20)) +
			part("files[2].path", "", "good") + part("files[2].file", "x", "G") +
			part("files[3].path", "", strings.Repeat("p", 10000)) + part("files[3].file", "x", "L") +
			part("files[4].path", "", "lonely") + part("unknown", "", "u") + "--b0--\r\n"
		status, b, _ := s.call("POST", route("/files/bulk-upload"), "multipart/form-data; boundary=b0", strings.NewReader(body))
		var up wire.BulkUploadResponse
		must(t, json.Unmarshal(b, &up))
		if status != 400 || len(up.Errors) != 4 || !slices.Equal(up.Files, []wire.UploadedPath{{Path: "good", Bytes: 1}}) {
			t.Errorf("status %d: %s", status, b)
		}
		s.expectNames(".", "dir", "good")
		// A form that is cut off: what was complete stays.
		cut := part("files[0].path", "", "whole") + part("files[0].file", "x", "W") + part("files[1].path", "", "half") + part("files[1].file", "x", "H")
		status, b, _ = s.call("POST", route("/files/bulk-upload"), "multipart/form-data; boundary=b0", strings.NewReader(cut[:len(cut)-3]))
		if status != 400 || !strings.Contains(string(b), `"files":[{"path":"whole"`) {
			t.Errorf("status %d: %s", status, b)
		}
		s.expectNames(".", "dir", "good", "whole")
		status, b, _ = s.call("POST", route("/files/bulk-upload"), "text/plain", strings.NewReader("x"))
		if status != 400 || !strings.Contains(string(b), `"files":[]`) || !strings.Contains(string(b), `"errors":["`) {
			t.Errorf("status %d: %s", status, b)
		}
	})
}

func TestDownload(t *testing.T) {
	s := serve(t, nil)
	name := "a \"q\"\\é\n.txt"
	s.write(name, "0123456789")
	status, b, h := s.call("GET", route("/files/download", "path", name), "", nil)
	if status != 200 || string(b) != "0123456789" || h.Get("Content-Type") != "application/octet-stream" || h.Get("Content-Length") != "10" {
		t.Errorf("status %d, %q, %v", status, b, h)
	}
	if got, want := h.Get("Content-Disposition"), `attachment; filename="a \"q\"\\é%0A.txt"; filename*=utf-8''a%20%22q%22%5C%C3%A9%0A.txt`; got != want {
		t.Errorf("disposition %s, want %s", got, want)
	}
	r, _ := http.NewRequestWithContext(t.Context(), "GET", route("/files/download", "path", name), nil)
	r.Header.Set("Range", "bytes=3-5")
	resp, err := s.Do(r)
	must(t, err)
	b, _ = io.ReadAll(resp.Body)
	resp.Body.Close()
	if resp.StatusCode != 206 || string(b) != "345" || resp.Header.Get("Content-Range") != "bytes 3-5/10" {
		t.Errorf("range: status %d, %q, %v", resp.StatusCode, b, resp.Header)
	}
	s.write("empty", "")
	if status, b, h := s.call("GET", route("/files/download", "path", "empty"), "", nil); status != 200 || len(b) != 0 || h.Get("Content-Length") != "0" {
		t.Errorf("empty file: status %d, %q, %v", status, b, h)
	}
	must(t, unix.Mkfifo(s.path("pipe"), 0o600))
	l, err := net.Listen("unix", s.path("sock"))
	must(t, err)
	defer l.Close()
	for _, name := range []string{"pipe", "sock", "/dev/zero", "/dev/null"} {
		s.want(400, wire.CodeInvalidFilePath, "GET", route("/files/download", "path", name), nil, nil)
	}
	s.want(400, wire.CodeDirectoryInPlace, "GET", route("/files/download", "path", "."), nil, nil)
	s.want(404, wire.CodeFileNotFound, "GET", route("/files/download", "path", "none"), nil, nil)
	want, _ := os.ReadFile("/proc/cpuinfo")
	status, b, h = s.call("GET", route("/files/download", "path", "/proc/cpuinfo"), "", nil)
	if status != 200 || len(b) == 0 || len(b)/100 != len(want)/100 || h.Get("Content-Length") != "" {
		t.Errorf("procfs: status %d, %d bytes, want %d; %v", status, len(b), len(want), h)
	}
	// More than a terabyte of nothing: bounded, and broken off visibly.
	if os.Getuid() == 0 {
		resp, err := s.Get(route("/files/download", "path", "/proc/kcore"))
		must(t, err)
		defer resp.Body.Close()
		if resp.StatusCode == 200 {
			n, err := io.Copy(io.Discard, resp.Body)
			if err == nil || n > 65<<20 {
				t.Errorf("kcore gave %d bytes, then %v", n, err)
			}
		}
	}
}

// TestDownloadCancel leaves in the middle of a sparse file of a terabyte.
func TestDownloadCancel(t *testing.T) {
	s := serve(t, nil)
	p := s.write("sparse", "")
	must(t, os.Truncate(p, 1<<40))
	before := openFiles(t, p)
	ctx, cancel := context.WithCancel(t.Context())
	r, _ := http.NewRequestWithContext(ctx, "GET", route("/files/download", "path", "sparse"), nil)
	resp, err := s.Do(r)
	must(t, err)
	_, err = io.CopyN(io.Discard, resp.Body, 10<<20)
	must(t, err)
	cancel()
	resp.Body.Close()
	for deadline := time.Now().Add(10 * time.Second); openFiles(t, p) != before; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the agent still reads the file")
		}
	}
}

func openFiles(t *testing.T, p string) (n int) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	for _, e := range entries {
		if target, _ := os.Readlink("/proc/self/fd/" + e.Name()); target == p {
			n++
		}
	}
	return n
}

func TestBulkDownload(t *testing.T) {
	s := serve(t, nil)
	s.write("a.txt", "A\r\n--DAYTONA")
	s.write(`q"x`, "")
	big := strings.Repeat("0123456789abcdef", 100_000)
	s.write("big.bin", big)
	must(t, os.Mkdir(s.path("dir"), 0o755))
	status, b, h := s.call("POST", route("/files/bulk-download"), "application/json", strings.NewReader(`{"paths":["a.txt","./q\"x","none","dir","big.bin"]}`))
	if status != 200 || h.Get("Content-Type") != "multipart/form-data; boundary=DAYTONA-FILE-BOUNDARY" {
		t.Fatalf("status %d, %v", status, h)
	}
	// The bytes, but for the error parts.
	const line = "\r\n--DAYTONA-FILE-BOUNDARY\r\n"
	parts := strings.Split("\r\n"+string(b), line)
	if len(parts) != 6 || parts[0] != "" {
		t.Fatalf("%d parts: %q", len(parts), clip(b))
	}
	disposition := func(name, file, encoded string) string {
		return `Content-Disposition: form-data; name="` + name + `"; filename="` + file + `"; filename*=utf-8''` + encoded + "\r\n"
	}
	for i, want := range map[int]string{
		1: disposition("file", "a.txt", "a.txt") + "Content-Type: text/plain; charset=utf-8\r\nContent-Length: 12\r\n\r\nA\r\n--DAYTONA",
		2: disposition("file", `./q\"x`, ".%2Fq%22x") + "Content-Type: application/octet-stream\r\nContent-Length: 0\r\n\r\n",
		5: disposition("file", "big.bin", "big.bin") + "Content-Type: application/octet-stream\r\nContent-Length: 1600000\r\n\r\n" + big + "\r\n--DAYTONA-FILE-BOUNDARY--\r\n",
	} {
		if parts[i] != want {
			t.Errorf("part %d is %q, want %q", i, clip([]byte(parts[i])), clip([]byte(want)))
		}
	}
	for i, want := range map[int]struct {
		name, code string
		status     int
	}{3: {"none", "FILE_NOT_FOUND", 404}, 4: {"dir", "INVALID_FILE_PATH", 400}} {
		head, body, _ := strings.Cut(parts[i], "\r\n\r\n")
		if wantHead := disposition("error", want.name, want.name) + "Content-Type: application/json\r\nContent-Length: " + strconv.Itoa(len(body)); head != wantHead {
			t.Errorf("part %d has header %q, want %q", i, head, wantHead)
		}
		var e wire.ErrorResponse
		must(t, json.Unmarshal([]byte(body), &e))
		if e.StatusCode != want.status || e.Code != want.code || e.Message == "" {
			t.Errorf("part %d: %+v", i, e)
		}
	}
	status, b, _ = s.call("POST", route("/files/bulk-download"), "application/json", strings.NewReader(`{"paths":[]}`))
	if status != 400 || !strings.Contains(string(b), `"error":"`) {
		t.Errorf("no paths: %d %s", status, b)
	}
	boundary := strings.Repeat("Z", 26)
	_, b, h = s.call("POST", route("/files/bulk-download", "boundary", boundary), "application/json", strings.NewReader(`{"paths":["a.txt"]}`))
	if h.Get("Content-Type") != "multipart/form-data; boundary="+boundary || !bytes.HasPrefix(b, []byte("--"+boundary+"\r\n")) {
		t.Errorf("own boundary: %v %q", h, b)
	}
	s.want(400, "BAD_REQUEST", "POST", route("/files/bulk-download", "boundary", "short"), strings.NewReader(`{"paths":["a.txt"]}`), nil)
}

func TestSearch(t *testing.T) {
	s := serve(t, nil)
	s.write("src/a.go", "")
	s.write("src/b/c.go", "")
	s.write("src/b/d.txt", "")
	must(t, os.Symlink("/", s.path("src/b/root")))
	must(t, os.Symlink("b", s.path("src/z.go")))
	for _, c := range []struct {
		path, pattern string
		want          []string
	}{
		{"src", "*.go", []string{"src/a.go", "src/b/c.go", "src/z.go"}},
		{"src", "**/*.go", []string{"src/a.go", "src/b/c.go", "src/z.go"}},
		{"./src/", "[ab]", []string{"src/b"}},
		{s.path("src"), "d.*", []string{s.path("src/b/d.txt")}},
		{"src", "none", []string{}},
		{".", "c.go", []string{"src/b/c.go"}},
	} {
		var got wire.SearchFilesResponse
		s.want(200, "", "GET", route("/files/search", "path", c.path, "pattern", c.pattern), nil, &got)
		if got.Files == nil || !slices.Equal(got.Files, c.want) {
			t.Errorf("%s in %s: %q, want %q", c.pattern, c.path, got.Files, c.want)
		}
	}
	s.want(400, "BAD_REQUEST", "GET", route("/files/search", "path", ".", "pattern", "[a"), nil, nil)
	s.want(400, "BAD_REQUEST", "GET", route("/files/search", "path", "."), nil, nil)
	s.want(404, wire.CodeFileNotFound, "GET", route("/files/search", "path", "none", "pattern", "*"), nil, nil)
	// The kernel's file systems are not the user's files.
	var got wire.SearchFilesResponse
	s.want(200, "", "GET", route("/files/search", "path", "/", "pattern", "meminfo"), nil, &got)
	if slices.Contains(got.Files, "/proc/meminfo") {
		t.Error("a search from / went into /proc")
	}
	s.want(200, "", "GET", route("/files/search", "path", "/proc/sys/kernel", "pattern", "ostype"), nil, &got)
	if !slices.Equal(got.Files, []string{"/proc/sys/kernel/ostype"}) {
		t.Errorf("a search that starts in /proc: %q", got.Files)
	}
}

func TestFind(t *testing.T) {
	s := serve(t, nil)
	s.write("d/a", "one\r\ntwo.*\nthree two.*")
	s.write("d/binary", "two.*\x00")
	long := strings.Repeat("é", 300_000) + "two.*" + strings.Repeat("y", 600_000) + "two.*"
	s.write("d/long", "x\n"+long+"\ntwo.*\n")
	s.write("d/sub/b", "two\n")
	must(t, unix.Mkfifo(s.path("d/pipe"), 0o600))
	must(t, os.Symlink("a", s.path("d/link")))
	var got []wire.Match
	s.want(200, "", "GET", route("/files/find", "path", "d", "pattern", "two.*"), nil, &got)
	var lines []string
	for _, m := range got {
		lines = append(lines, fmt.Sprint(m.File, ":", m.Line, ":", len(m.Content)))
		if m.File == "d/a" && m.Line == 2 && m.Content != "two.*" {
			t.Errorf("content %q", m.Content)
		}
	}
	if want := []string{"d/a:2:5", "d/a:3:11", "d/long:2:4096", "d/long:3:5"}; !slices.Equal(lines, want) {
		t.Errorf("found %q, want %q", lines, want)
	}
	s.want(200, "", "GET", route("/files/find", "path", "d/a", "pattern", "one"), nil, &got)
	if len(got) != 1 || got[0] != (wire.Match{File: "d/a", Line: 1, Content: "one"}) {
		t.Errorf("in one file: %+v", got)
	}
	if b := s.want(200, "", "GET", route("/files/find", "path", "d", "pattern", "nowhere"), nil, nil); strings.TrimSpace(string(b)) != "[]" {
		t.Errorf("nothing found: %s", b)
	}
}

func TestReplace(t *testing.T) {
	s := serve(t, nil)
	body := strings.Repeat("abcabd", 100_000)
	s.write("a", body)
	must(t, os.Chmod(s.path("a"), 0o640))
	s.write("none", "xyz")
	s.write("hard", "1 abd 2")
	must(t, os.Link(s.path("hard"), s.path("hard2")))
	must(t, os.Mkdir(s.path("dir"), 0o755))
	before, _ := os.Stat(s.path("none"))
	request := `{"files":["a","none","missing","dir","hard"],"pattern":"abd","newValue":"<new value>"}`
	var got []wire.ReplaceResult
	s.want(200, "", "POST", route("/files/replace"), strings.NewReader(request), &got)
	if len(got) != 5 || !got[0].Success || !got[1].Success || got[2].Success || got[2].Error == "" || got[3].Success || !got[4].Success || got[2].File != "missing" {
		t.Errorf("%+v", got)
	}
	s.content("a", strings.ReplaceAll(body, "abd", "<new value>"))
	s.content("hard2", "1 <new value> 2")
	if info, _ := os.Stat(s.path("a")); info.Mode() != 0o640 {
		t.Errorf("mode %v", info.Mode())
	}
	if after, _ := os.Stat(s.path("none")); !os.SameFile(before, after) || !before.ModTime().Equal(after.ModTime()) {
		t.Error("a file without the text was written")
	}
	s.want(400, "BAD_REQUEST", "POST", route("/files/replace"), strings.NewReader(`{"files":["a"],"pattern":"","newValue":"x"}`), nil)
	s.expectNames(".", "a", "dir", "hard", "hard2", "none")
}
