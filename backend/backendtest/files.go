package backendtest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"iter"
	"math/rand/v2"
	"path"
	"runtime"
	"strings"
	"sync"
	"testing/fstest"
	"time"

	"github.com/daytona-go/daytona"
)

func fileChecks() []check {
	return []check{
		{name: "FileReadWrite", run: checkFileReadWrite},
		{name: "FileErrors", run: checkFileErrors},
		{name: "FilePermissions", run: checkFilePermissions},
		{name: "FileNames", run: checkFileNames},
		{name: "FileDirectories", run: checkFileDirectories},
		{name: "FileRename", run: checkFileRename},
		{name: "FileSymlinks", needs: []Capability{Symlinks, Shell}, run: checkFileSymlinks},
		{name: "FileBulk", run: checkFileBulk},
		{name: "FileSearch", run: checkFileSearch},
		{name: "FileBig", limit: 2 * time.Minute, run: checkFileBig},
		{name: "FileBounded", needs: []Capability{Streaming}, limit: 2 * time.Minute, run: checkFileBounded},
		{name: "FileCancel", run: checkFileCancel},
		{name: "FileParallel", run: checkFileParallel},
		{name: "FileWatch", needs: []Capability{AgentAPI, Shell}, run: checkFileWatch},
		{name: "FileFS", run: checkFileFS},
	}
}

func checkFileWatch(c *env) {
	sb := c.create()
	fsys := sb.FileSystem()
	c.sh(sb, "mkdir -p d/e && : > d/e/old")
	w, err := fsys.Watch(c.ctx, "d", &daytona.WatchOptions{Exclude: []string{"*.tmp"}, Window: c.slow(500 * time.Millisecond)})
	c.try("watch", err)
	defer w.Close()
	next, stop := iter.Pull2(w.Events())
	defer stop()
	top := sb.Info().WorkDir + "/d/"
	want := func(kind daytona.FileEventType, name string) {
		c.Helper()
		e, err, _ := next()
		c.try("wait for "+name, err)
		equal(c, "event", fmt.Sprint(e.Type, " ", strings.TrimPrefix(e.Path, top)), fmt.Sprint(kind, " ", name))
	}
	c.sh(sb, "echo x > d/e/new && : > d/e/x.tmp")
	want(daytona.FileCreated, "e/new")
	c.try("write", fsys.WriteFile(c.ctx, "d/f/g/h", []byte("x"), 0))
	want(daytona.FileCreated, "f")
	want(daytona.FileCreated, "f/g")
	want(daytona.FileCreated, "f/g/h")
	c.sh(sb, "mv d/f/g d/e/moved")
	want(daytona.FileRenamed, "e/moved")
	c.sh(sb, "echo y >> d/e/moved/h")
	want(daytona.FileWritten, "e/moved/h")
	c.try("remove", fsys.Remove(c.ctx, "d/e/old"))
	want(daytona.FileRemoved, "e/old")
	c.try("remove all", fsys.RemoveAll(c.ctx, "d"))
	for err == nil {
		_, err, _ = next()
	}
	c.wantKind("watch what was removed", err, daytona.KindNotFound)
}

func checkFileReadWrite(c *env) {
	sb := c.create()
	fsys := sb.FileSystem()
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	for name, content := range map[string][]byte{"empty": {}, "text": []byte("hello\n"), "binary": all, "crlf": []byte("a\r\nb\r\n--boundary\r\n")} {
		c.try("WriteFile", fsys.WriteFile(c.ctx, name, content, 0))
		got, err := fsys.ReadFile(c.ctx, name)
		c.try("ReadFile "+name, err)
		equal(c, "content of "+name, string(got), string(content))
		fi, err := fsys.Stat(c.ctx, name)
		c.try("Stat", err)
		equal(c, "Size", fi.Size(), int64(len(content)))
		equal(c, "Name", fi.Name(), name)
		equal(c, "IsDir", fi.IsDir(), false)
		if d := time.Since(fi.ModTime()); d < -time.Minute || d > time.Minute {
			c.Errorf("ModTime = %v, but it is %v", fi.ModTime(), time.Now())
		}
		var buf bytes.Buffer
		n, err := fsys.Download(c.ctx, name, &buf)
		c.try("Download", err)
		equal(c, "bytes downloaded", n, int64(len(content)))
		equal(c, "downloaded content", buf.String(), string(content))
	}
	equal(c, "a file as a program sees it", c.sh(sb, "cat text"), "hello")

	// Shorter content replaces longer without remains.
	c.try("WriteFile", fsys.WriteFile(c.ctx, "text", []byte("x"), 0))
	got, err := fsys.ReadFile(c.ctx, "text")
	c.try("ReadFile", err)
	equal(c, "replaced content", string(got), "x")

	n, err := fsys.Upload(c.ctx, "made/on/the way/up", strings.NewReader("uploaded"))
	c.try("Upload with missing parents", err)
	equal(c, "bytes uploaded", n, int64(8))
	c.try("WriteFile with missing parents", fsys.WriteFile(c.ctx, "other/missing/parent", nil, 0))

	// What Create wrote is visible only once it is complete.
	c.try("WriteFile", fsys.WriteFile(c.ctx, "created", []byte("before"), 0))
	for _, name := range []string{"created", "new/created"} {
		w, err := fsys.Create(c.ctx, name)
		c.try("Create", err)
		_, err = io.WriteString(w, "part one, ")
		c.try("Write", err)
		got, err := fsys.ReadFile(c.ctx, name)
		if name == "created" && (err != nil || string(got) != "before") && !errors.Is(err, fs.ErrNotExist) {
			c.Errorf("before Close the file reads %q, %v; want what was there before", got, err)
		}
		if name != "created" && !errors.Is(err, fs.ErrNotExist) {
			c.Errorf("before Close the new file reads %q, %v; want fs.ErrNotExist", got, err)
		}
		_, err = io.WriteString(w, "part two")
		c.try("Write", err)
		c.try("Close", w.Close())
		got, err = fsys.ReadFile(c.ctx, name)
		c.try("ReadFile", err)
		equal(c, "content after Close", string(got), "part one, part two")
	}

	f, err := fsys.Open(c.ctx, "created")
	c.try("Open", err)
	equal(c, "File.Size", f.Size(), int64(18))
	fi, err := f.Stat()
	c.try("File.Stat", err)
	equal(c, "Size", fi.Size(), int64(18))
	equal(c, "Name", fi.Name(), "created")
	b, err := io.ReadAll(f)
	c.try("read an open file", err)
	equal(c, "content", string(b), "part one, part two")
	c.try("close", f.Close())

	wd, err := sb.WorkDir(c.ctx)
	c.try("WorkDir", err)
	got, err = fsys.ReadFile(c.ctx, path.Join(wd, "created"))
	c.try("a relative path resolves against the working directory", err)
	equal(c, "content", string(got), "part one, part two")
	_, err = fsys.ReadFile(c.ctx, "./new/../created")
	c.try("a path with dots", err)
}

// wantPathError demands both faces of an error about a path.
func (c *env) wantPathError(what string, err, std error, kind daytona.Kind) {
	c.Helper()
	c.wantKind(what, err, kind)
	if err == nil {
		return
	}
	if std != nil && !errors.Is(err, std) {
		c.Errorf("%s: %v is not %v", what, err, std)
	}
	if pe, ok := errors.AsType[*fs.PathError](err); !ok {
		c.Errorf("%s: a %T, want a *fs.PathError", what, err)
	} else if pe.Path == "" || pe.Op == "" {
		c.Errorf("%s: PathError with Op %q and Path %q, want both", what, pe.Op, pe.Path)
	}
}

func checkFileErrors(c *env) {
	sb := c.create()
	fsys := sb.FileSystem()
	c.try("mkdir", fsys.Mkdir(c.ctx, "dir/sub", 0))
	c.try("write", fsys.WriteFile(c.ctx, "file", []byte("x"), 0))
	for what, f := range map[string]func(p string) error{
		"Open": func(p string) error {
			f, err := fsys.Open(c.ctx, p)
			if err == nil {
				f.Close()
			}
			return err
		},
		"ReadFile": func(p string) error { _, err := fsys.ReadFile(c.ctx, p); return err },
		"Download": func(p string) error { _, err := fsys.Download(c.ctx, p, io.Discard); return err },
		"Stat":     func(p string) error { _, err := fsys.Stat(c.ctx, p); return err },
		"ReadDir":  func(p string) error { _, err := fsys.ReadDir(c.ctx, p); return err },
		"Remove":   func(p string) error { return fsys.Remove(c.ctx, p) },
		"Rename":   func(p string) error { return fsys.Rename(c.ctx, p, "elsewhere") },
		"Chmod":    func(p string) error { return fsys.Chmod(c.ctx, p, 0o600) },
		"Chown":    func(p string) error { return fsys.Chown(c.ctx, p, "0", "0") },
		"Glob":     func(p string) error { _, err := fsys.Glob(c.ctx, p, "*"); return err },
		"Grep":     func(p string) error { _, err := fsys.Grep(c.ctx, p, "x"); return err },
	} {
		for _, p := range []string{"missing", "dir/missing", "missing/parent"} {
			c.wantPathError(what+" "+p, f(p), fs.ErrNotExist, daytona.KindNotFound)
		}
		if err := f("nul\x00byte"); err == nil {
			c.Errorf("%s with a NUL in the path gave no error", what)
		}
		if err := f(strings.Repeat("o", 300)); err == nil {
			c.Errorf("%s with an overlong name gave no error", what)
		}
	}
	for what, err := range map[string]error{
		"ReadFile of a directory":             second(fsys.ReadFile(c.ctx, "dir")),
		"ReadDir of a file":                   second(fsys.ReadDir(c.ctx, "file")),
		"WriteFile onto a directory":          fsys.WriteFile(c.ctx, "dir", []byte("x"), 0),
		"Upload onto a directory":             second(fsys.Upload(c.ctx, "dir", strings.NewReader("x"))),
		"WriteFile below a file":              fsys.WriteFile(c.ctx, "file/below", []byte("x"), 0),
		"Mkdir onto a file":                   fsys.Mkdir(c.ctx, "file", 0),
		"Remove of a directory that is full":  fsys.Remove(c.ctx, "dir"),
		"WriteFile with a NUL in the path":    fsys.WriteFile(c.ctx, "nul\x00", nil, 0),
		"WriteFile with an overlong name":     fsys.WriteFile(c.ctx, strings.Repeat("o", 300), nil, 0),
		"Chown to a user that does not exist": fsys.Chown(c.ctx, "file", "no_such_user", ""),
	} {
		if err == nil {
			c.Errorf("%s gave no error", what)
		} else if pe, ok := errors.AsType[*fs.PathError](err); !ok || daytona.KindOf(err) == daytona.KindInternal {
			c.Errorf("%s: %T of kind %s (%v), want a *fs.PathError %v with a kind other than internal", what, err, daytona.KindOf(err), err, pe)
		}
	}
	c.try("RemoveAll of what is missing", fsys.RemoveAll(c.ctx, "missing"))
	c.try("Mkdir of what is there", fsys.Mkdir(c.ctx, "dir", 0))
	b, err := fsys.ReadFile(c.ctx, "file")
	c.try("read", err)
	equal(c, "content after all errors", string(b), "x")
	entries, err := fsys.ReadDir(c.ctx, ".")
	c.try("readdir", err)
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "nul") || strings.HasPrefix(e.Name(), "ooo") || e.Name() == "elsewhere" || e.Name() == "missing" {
			c.Errorf("a refused operation left %q", e.Name())
		}
	}
}

func second[T any](_ T, err error) error { return err }

func checkFilePermissions(c *env) {
	sb := c.create()
	fsys := sb.FileSystem()
	mode := func(p string) fs.FileMode {
		c.Helper()
		fi, err := fsys.Stat(c.ctx, p)
		c.try("Stat "+p, err)
		return fi.Mode()
	}
	c.try("write", fsys.WriteFile(c.ctx, "default", nil, 0))
	equal(c, "mode of WriteFile with perm 0", mode("default"), 0o644)
	for _, perm := range []fs.FileMode{0o600, 0o755, 0o777, 0o400, 0o666} {
		name := fmt.Sprintf("f%o", perm)
		c.try("write", fsys.WriteFile(c.ctx, name, []byte("x"), perm))
		equal(c, "mode of WriteFile "+name, mode(name), perm)
		c.try("chmod", fsys.Chmod(c.ctx, name, 0o640))
		equal(c, "mode after Chmod", mode(name), 0o640)
	}
	c.try("replace", fsys.WriteFile(c.ctx, "f600", []byte("y"), 0o644))
	equal(c, "mode after WriteFile gave another", mode("f600"), 0o644)
	c.try("mkdir", fsys.Mkdir(c.ctx, "d", 0))
	equal(c, "mode of Mkdir with perm 0", mode("d"), fs.ModeDir|0o755)
	c.try("mkdir", fsys.Mkdir(c.ctx, "p/q", 0o700))
	equal(c, "mode of Mkdir with perm 0700", mode("p/q"), fs.ModeDir|0o700)
	fi, err := fsys.Stat(c.ctx, "default")
	c.try("stat", err)
	for _, id := range []string{fi.Owner, fi.Group} {
		if id == "" || strings.Trim(id, "0123456789") != "" {
			c.Errorf("owner %q, group %q: want decimal numbers", fi.Owner, fi.Group)
		}
	}
	c.try("chown to the owner that it has", fsys.Chown(c.ctx, "default", fi.Owner, fi.Group))
	c.try("chown with nothing to change", fsys.Chown(c.ctx, "default", "", ""))
	if c.has(Shell) {
		equal(c, "uid that owns what FileSystem wrote", fi.Owner, c.sh(sb, "id -u"))
		c.sh(sb, "test -w default && printf '#!/bin/sh\necho ran\n' > prog")
		c.try("chmod", fsys.Chmod(c.ctx, "prog", 0o755))
		equal(c, "a file that Chmod made executable", c.sh(sb, "./prog"), "ran")
	}
	if c.has(Ownership) && fi.Owner != "0" {
		c.try("write", fsys.WriteFile(c.ctx, "locked/f", []byte("x"), 0))
		c.try("chmod", fsys.Chmod(c.ctx, "locked/f", 0))
		_, err := fsys.ReadFile(c.ctx, "locked/f")
		c.wantPathError("read a file of mode 0", err, fs.ErrPermission, daytona.KindForbidden)
		c.wantPathError("write into /etc as an ordinary user", fsys.WriteFile(c.ctx, "/etc/planted", []byte("x"), 0), nil, daytona.KindForbidden)
		c.wantPathError("chown to root as an ordinary user", fsys.Chown(c.ctx, "default", "0", ""), nil, daytona.KindForbidden)
	}
}

func checkFileNames(c *env) {
	sb := c.create()
	fsys := sb.FileSystem()
	names := []string{
		"with space", " leading", "trailing ", "-rf", "--", "~", "$HOME", "`id`", "a;b", "a&b", "a|b", "a?b=c", "a#b", "a%b", "%2e%2e%2f", "..%2f..%2fx",
		"quote'", `quote"`, `back\slash`, "*", "[x]", "{a,b}", "..hidden", ".hidden", "...", "grüße", "日本語", "🙂", "e\u0301", "tab\there",
		"new\nline", "cr\rhere", "esc\x1b[31m", "a:b", "a,b", "a+b", "<x>", "con", strings.Repeat("l", 255),
	}
	for _, n := range names {
		c.try(fmt.Sprintf("WriteFile %q", n), fsys.WriteFile(c.ctx, "odd/"+n, []byte(n), 0))
		b, err := fsys.ReadFile(c.ctx, "odd/"+n)
		c.try(fmt.Sprintf("ReadFile %q", n), err)
		equal(c, fmt.Sprintf("content of %q", n), string(b), n)
		fi, err := fsys.Stat(c.ctx, "odd/"+n)
		c.try(fmt.Sprintf("Stat %q", n), err)
		equal(c, "Stat's name", fi.Name(), n)
	}
	entries, err := fsys.ReadDir(c.ctx, "odd")
	c.try("ReadDir", err)
	equal(c, "number of entries", len(entries), len(names))
	seen := map[string]bool{}
	for i, e := range entries {
		seen[e.Name()] = true
		if i > 0 && entries[i-1].Name() >= e.Name() {
			c.Errorf("ReadDir is not sorted: %q before %q", entries[i-1].Name(), e.Name())
		}
	}
	for _, n := range names {
		if !seen[n] {
			c.Errorf("ReadDir does not list %q", n)
		}
		c.try(fmt.Sprintf("Rename %q", n), fsys.Rename(c.ctx, "odd/"+n, "odd/renamed"))
		c.try(fmt.Sprintf("Rename to %q", n), fsys.Rename(c.ctx, "odd/renamed", "odd/"+n))
		c.try(fmt.Sprintf("Remove %q", n), fsys.Remove(c.ctx, "odd/"+n))
	}
	entries, err = fsys.ReadDir(c.ctx, "odd")
	c.try("ReadDir", err)
	equal(c, "number of entries after removing each", len(entries), 0)
	deep := strings.Repeat("d/", 60) + "f"
	c.try("WriteFile deep down", fsys.WriteFile(c.ctx, deep, []byte("deep"), 0))
	b, err := fsys.ReadFile(c.ctx, deep)
	c.try("ReadFile deep down", err)
	equal(c, "content", string(b), "deep")
}

func checkFileDirectories(c *env) {
	fsys := c.create().FileSystem()
	for _, n := range []string{"d/b", "d/a", "d/sub/x", "d/sub/y/z"} {
		c.try("write", fsys.WriteFile(c.ctx, n, []byte(n), 0))
	}
	entries, err := fsys.ReadDir(c.ctx, "d")
	c.try("ReadDir", err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	equalList(c, "names, sorted", names, []string{"a", "b", "sub"})
	if len(entries) == 3 {
		equal(c, "IsDir of a directory", entries[2].IsDir(), true)
		equal(c, "Type of a directory", entries[2].Type(), fs.ModeDir)
		equal(c, "Size of a file", entries[0].Size(), int64(3))
	}
	c.try("Mkdir", fsys.Mkdir(c.ctx, "empty/in/side", 0))
	entries, err = fsys.ReadDir(c.ctx, "empty/in/side")
	c.try("ReadDir of an empty directory", err)
	equal(c, "entries", len(entries), 0)
	c.try("Remove an empty directory", fsys.Remove(c.ctx, "empty/in/side"))
	if err := fsys.Remove(c.ctx, "d/sub"); err == nil {
		c.Error("Remove removed a directory with files in it")
	}
	c.try("RemoveAll", fsys.RemoveAll(c.ctx, "d/sub"))
	_, err = fsys.Stat(c.ctx, "d/sub/y/z")
	c.wantPathError("Stat of what RemoveAll removed", err, fs.ErrNotExist, daytona.KindNotFound)
	_, err = fsys.Stat(c.ctx, "d/a")
	c.try("RemoveAll leaves the siblings", err)
	c.try("RemoveAll of a file", fsys.RemoveAll(c.ctx, "d/a"))
	fi, err := fsys.Stat(c.ctx, "/")
	c.try("Stat /", err)
	equal(c, "IsDir of /", fi.IsDir(), true)
	const many = 1000
	files := make([]daytona.FileUpload, many)
	for i := range files {
		files[i] = daytona.FileUpload{Path: fmt.Sprintf("many/%04d", i), Content: strings.NewReader("x")}
	}
	c.try("upload 1000 files", fsys.UploadFiles(c.ctx, files))
	entries, err = fsys.ReadDir(c.ctx, "many")
	c.try("ReadDir", err)
	equal(c, "entries of a big directory", len(entries), many)
}

func checkFileRename(c *env) {
	fsys := c.create().FileSystem()
	c.try("write", fsys.WriteFile(c.ctx, "a", []byte("a"), 0o600))
	c.try("write", fsys.WriteFile(c.ctx, "b", []byte("b"), 0))
	c.wantPathError("Rename onto a file", fsys.Rename(c.ctx, "a", "b"), fs.ErrExist, daytona.KindConflict)
	for n, want := range map[string]string{"a": "a", "b": "b"} {
		b, err := fsys.ReadFile(c.ctx, n)
		c.try("read", err)
		equal(c, "content of "+n+" after a refused Rename", string(b), want)
	}
	c.try("mkdir", fsys.Mkdir(c.ctx, "d", 0))
	c.wantPathError("Rename onto a directory", fsys.Rename(c.ctx, "a", "d"), fs.ErrExist, daytona.KindConflict)
	c.try("Rename", fsys.Rename(c.ctx, "a", "d/moved"))
	fi, err := fsys.Stat(c.ctx, "d/moved")
	c.try("stat", err)
	equal(c, "mode is kept", fi.Mode().Perm(), 0o600)
	_, err = fsys.Stat(c.ctx, "a")
	c.wantPathError("Stat of the old name", err, fs.ErrNotExist, daytona.KindNotFound)
	c.try("Rename a directory", fsys.Rename(c.ctx, "d", "e"))
	b, err := fsys.ReadFile(c.ctx, "e/moved")
	c.try("read", err)
	equal(c, "content", string(b), "a")
	if err := fsys.Rename(c.ctx, "e", "e/inside"); err == nil {
		c.Error("a directory was moved into itself")
	}
}

func checkFileSymlinks(c *env) {
	sb := c.create()
	fsys := sb.FileSystem()
	c.try("write", fsys.WriteFile(c.ctx, "d/target", []byte("t"), 0))
	c.sh(sb, "ln -s d/target link; ln -s d dirlink; ln -s nowhere dangling; ln -s loop loop")
	b, err := fsys.ReadFile(c.ctx, "link")
	c.try("read through a link", err)
	equal(c, "content", string(b), "t")
	fi, err := fsys.Stat(c.ctx, "link")
	c.try("stat", err)
	equal(c, "Stat follows: type", fi.Mode().Type(), 0)
	equal(c, "Stat follows: size", fi.Size(), int64(1))
	_, err = fsys.Stat(c.ctx, "dangling")
	c.wantPathError("Stat of a dangling link", err, fs.ErrNotExist, daytona.KindNotFound)
	if _, err = fsys.Stat(c.ctx, "loop"); err == nil {
		c.Error("Stat of a link to itself gave no error")
	}
	c.try("Remove a dangling link", fsys.Remove(c.ctx, "dangling"))
	c.try("Remove a link", fsys.Remove(c.ctx, "link"))
	c.try("RemoveAll of a link to a directory", fsys.RemoveAll(c.ctx, "dirlink"))
	_, err = fsys.Stat(c.ctx, "d/target")
	c.try("the target of removed links is still there", err)
	c.sh(sb, "mkdir tree && ln -s ../d tree/link")
	c.try("RemoveAll of a tree with a link in it", fsys.RemoveAll(c.ctx, "tree"))
	_, err = fsys.Stat(c.ctx, "d/target")
	c.try("RemoveAll does not follow links", err)
	entries, err := fsys.ReadDir(c.ctx, ".")
	c.try("readdir", err)
	for _, e := range entries {
		if e.Name() == "loop" && e.Type()&fs.ModeSymlink == 0 {
			c.Errorf("ReadDir gives a symbolic link the type %v", e.Type())
		}
	}
}

func checkFileBulk(c *env) {
	fsys := c.create().FileSystem()
	c.try("mkdir", fsys.Mkdir(c.ctx, "is-dir", 0))
	err := fsys.UploadFiles(c.ctx, []daytona.FileUpload{
		{Path: "one", Content: strings.NewReader("1")},
		{Path: "is-dir", Content: strings.NewReader("cannot")},
		{Path: "sub/two", Content: bytes.NewReader(bytes.Repeat([]byte("2"), 1<<20))},
		{Path: "empty", Content: strings.NewReader("")},
	})
	if err == nil {
		c.Error("UploadFiles onto a directory gave no error")
	} else if !strings.Contains(err.Error(), "is-dir") {
		c.Errorf("the error of UploadFiles does not name the file: %v", err)
	}
	want := map[string]int{"one": 1, "sub/two": 1 << 20, "empty": 0}
	paths := []string{"sub/two", "missing", "one", "is-dir", "empty"}
	var order []string
	err = fsys.DownloadFiles(c.ctx, paths, func(p string, r io.Reader, err error) error {
		order = append(order, p)
		n, ok := want[p]
		if !ok {
			if err == nil {
				c.Errorf("DownloadFiles gave no error for %s", p)
			} else if p == "missing" {
				c.wantPathError("DownloadFiles of "+p, err, fs.ErrNotExist, daytona.KindNotFound)
			}
			return nil
		}
		if err != nil {
			c.Errorf("DownloadFiles of %s: %v", p, err)
			return nil
		}
		b, err := io.ReadAll(r)
		if err != nil || len(b) != n {
			c.Errorf("DownloadFiles of %s: %d bytes, %v; want %d", p, len(b), err, n)
		}
		return nil
	})
	c.try("DownloadFiles", err)
	equalList(c, "order of DownloadFiles", order, paths)

	stop := errors.New("enough")
	calls := 0
	err = fsys.DownloadFiles(c.ctx, []string{"one", "sub/two"}, func(string, io.Reader, error) error { calls++; return stop })
	if !errors.Is(err, stop) || calls != 1 {
		c.Errorf("an error of the callback: DownloadFiles returned %v after %d calls, want the error after 1", err, calls)
	}
	c.try("DownloadFiles that reads nothing", fsys.DownloadFiles(c.ctx, []string{"sub/two", "one"}, func(_ string, _ io.Reader, err error) error { return err }))
	c.try("UploadFiles of nothing", fsys.UploadFiles(c.ctx, nil))
	c.try("DownloadFiles of nothing", fsys.DownloadFiles(c.ctx, nil, func(string, io.Reader, error) error { return errors.New("called") }))
}

func checkFileSearch(c *env) {
	fsys := c.create().FileSystem()
	for n, content := range map[string]string{
		"s/a.txt":     "first\nneedle one\nlast needle\n",
		"s/b.md":      "no match; need.le\n",
		"s/sub/c.txt": "needle at the end",
		"s/sub/d.bin": "needle\x00\x01\x02",
		"s/sub/e.TXT": "NEEDLE\n",
	} {
		c.try("write", fsys.WriteFile(c.ctx, n, []byte(content), 0))
	}
	found, err := fsys.Glob(c.ctx, "s", "*.txt")
	c.try("Glob", err)
	c.samePaths("Glob *.txt", found, []string{"s/a.txt", "s/sub/c.txt"})
	found, err = fsys.Glob(c.ctx, "s", "[bd].??*")
	c.try("Glob", err)
	c.samePaths("Glob with brackets", found, []string{"s/b.md", "s/sub/d.bin"})
	found, err = fsys.Glob(c.ctx, "s", "none*")
	c.try("Glob without match", err)
	equal(c, "matches", len(found), 0)
	if _, err = fsys.Glob(c.ctx, "s", "[unclosed"); daytona.KindOf(err) != daytona.KindInvalid {
		c.Errorf("Glob with a malformed pattern: %v, want an error of kind invalid", err)
	}
	m, err := fsys.Grep(c.ctx, "s", "needle")
	c.try("Grep", err)
	type hit struct {
		path string
		line int
		text string
	}
	want := []hit{{"s/a.txt", 2, "needle one"}, {"s/a.txt", 3, "last needle"}, {"s/sub/c.txt", 1, "needle at the end"}}
	if len(m) != len(want) {
		c.Errorf("Grep found %+v, want %+v", m, want)
	} else {
		for i, w := range want {
			if !strings.HasSuffix("/"+m[i].Path, "/"+w.path) || m[i].Line != w.line || m[i].Text != w.text {
				c.Errorf("match %d of Grep = %+v, want %+v", i, m[i], w)
			}
		}
	}
	m, err = fsys.Grep(c.ctx, "s/b.md", "need.le")
	c.try("Grep in a file", err)
	equal(c, "Grep takes the text literally: matches", len(m), 1)
	m, err = fsys.Grep(c.ctx, "s/a.txt", "need.le")
	c.try("Grep", err)
	equal(c, "Grep takes the text literally: matches", len(m), 0)

	paths := []string{"s/a.txt", "s/missing", "s/b.md"}
	r, err := fsys.Replace(c.ctx, paths, "needle", "$1 pin")
	c.try("Replace", err)
	if len(r) != 3 {
		c.Fatalf("Replace returned %d results, want one a file", len(r))
	}
	for i, x := range r {
		if !strings.HasSuffix("/"+x.Path, "/"+paths[i]) {
			c.Errorf("result %d of Replace is about %s, want %s", i, x.Path, paths[i])
		}
		if (x.Err != nil) != (i == 1) {
			c.Errorf("Replace in %s: %v", x.Path, x.Err)
		}
	}
	b, err := fsys.ReadFile(c.ctx, "s/a.txt")
	c.try("read", err)
	equal(c, "content after Replace", string(b), "first\n$1 pin one\nlast $1 pin\n")
	_, err = fsys.Stat(c.ctx, "s/missing")
	c.wantPathError("Stat of a file that Replace did not find", err, fs.ErrNotExist, daytona.KindNotFound)
}

// samePaths compares paths that may come back absolute.
func (c *env) samePaths(what string, got, want []string) {
	c.Helper()
	ok := len(got) == len(want)
	for i := 0; ok && i < len(got); i++ {
		ok = strings.HasSuffix("/"+got[i], "/"+want[i])
	}
	if !ok {
		c.Errorf("%s = %q, want %q in this order", what, got, want)
	}
}

// noise yields n reproducible bytes that do not compress.
func noise(n int64) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte{1}), n)
}

func sumOf(r io.Reader) (hash.Hash, int64, error) {
	h := sha256.New()
	n, err := io.Copy(h, r)
	return h, n, err
}

func checkFileBig(c *env) {
	sb := c.create()
	fsys := sb.FileSystem()
	const size = 64 << 20
	want, _, _ := sumOf(noise(size))
	n, err := fsys.Upload(c.ctx, "big", noise(size))
	c.try("upload 64 MiB", err)
	equal(c, "bytes uploaded", n, int64(size))
	got := sha256.New()
	n, err = fsys.Download(c.ctx, "big", got)
	c.try("download 64 MiB", err)
	equal(c, "bytes downloaded", n, int64(size))
	if !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
		c.Error("64 MiB came back changed")
	}
	if c.has(Shell) {
		equal(c, "sha256 inside the sandbox", strings.Fields(c.sh(sb, "sha256sum big"))[0], fmt.Sprintf("%x", want.Sum(nil)))
	}
	// Reading a little of a big file and closing it is quick and harmless.
	for range 5 {
		f, err := fsys.Open(c.ctx, "big")
		c.try("open", err)
		_, err = io.ReadFull(f, make([]byte, 1000))
		c.try("read a little", err)
		c.try("close", f.Close())
	}
	equal(c, "a command after reads that were broken off", c.sh(sb, "echo ok"), "ok")
	w, err := fsys.Create(c.ctx, "created")
	c.try("create", err)
	_, err = io.Copy(w, noise(8<<20))
	c.try("write", err)
	c.try("close", w.Close())
	fi, err := fsys.Stat(c.ctx, "created")
	c.try("stat", err)
	equal(c, "size", fi.Size(), int64(8<<20))
}

// heapMeter notes the greatest live heap seen while data flows through it.
type heapMeter struct {
	base, top uint64
	next, n   int64
}

func liveHeap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func newHeapMeter() *heapMeter { return &heapMeter{base: liveHeap()} }

func (h *heapMeter) Write(p []byte) (int, error) {
	if h.n += int64(len(p)); h.n >= h.next {
		h.next = h.n + 16<<20
		h.top = max(h.top, liveHeap())
	}
	return len(p), nil
}

func (h *heapMeter) grown() int64 { return int64(h.top) - int64(h.base) }

func checkFileBounded(c *env) {
	fsys := c.create().FileSystem()
	const size, allowed = 128 << 20, 24 << 20
	m := newHeapMeter()
	_, err := fsys.Upload(c.ctx, "big", io.TeeReader(zeros(size), m))
	c.try("upload", err)
	if m.grown() > allowed {
		c.Errorf("the live heap grew by %d MiB while 128 MiB were uploaded; transfers must be streamed", m.grown()>>20)
	}
	m = newHeapMeter()
	_, err = fsys.Download(c.ctx, "big", m)
	c.try("download", err)
	if m.grown() > allowed {
		c.Errorf("the live heap grew by %d MiB while 128 MiB were downloaded; transfers must be streamed", m.grown()>>20)
	}
}

func checkFileCancel(c *env) {
	sb := c.create()
	fsys := sb.FileSystem()
	ctx, cancel := context.WithCancel(c.ctx)
	r, w := io.Pipe()
	defer w.Close()
	done := make(chan error, 1)
	go func() { _, err := fsys.Upload(ctx, "half", r); done <- err }()
	_, err := w.Write(make([]byte, 100_000))
	c.try("feed an upload", err)
	cancel()
	select {
	case err := <-done:
		if !errors.Is(err, context.Canceled) {
			c.Errorf("a cancelled upload: %v, want an error that is context.Canceled", err)
		}
	case <-time.After(c.slow(5 * time.Second)):
		c.Error("a cancelled upload whose reader blocks has not returned within 5s")
	}
	_, err = fsys.Stat(c.ctx, "half")
	c.wantPathError("Stat of a cancelled upload", err, fs.ErrNotExist, daytona.KindNotFound)

	broken := errors.New("the source broke")
	_, err = fsys.Upload(c.ctx, "half", io.MultiReader(strings.NewReader("some"), errReader{broken}))
	if !errors.Is(err, broken) {
		c.Errorf("upload from a reader that fails: %v, want its error", err)
	}
	_, err = fsys.Stat(c.ctx, "half")
	c.wantPathError("Stat of an upload whose source broke", err, fs.ErrNotExist, daytona.KindNotFound)
	equal(c, "a command afterwards", c.sh(sb, "echo ok"), "ok")
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

func checkFileParallel(c *env) {
	fsys := c.create().FileSystem()
	var wg sync.WaitGroup
	errs := make([]error, 24)
	for i := range errs {
		wg.Go(func() {
			p, content := fmt.Sprintf("par/%d", i), strings.Repeat(fmt.Sprint(i), 10_000)
			if errs[i] = fsys.WriteFile(c.ctx, p, []byte(content), 0); errs[i] != nil {
				return
			}
			b, err := fsys.ReadFile(c.ctx, p)
			if err == nil && string(b) != content {
				err = fmt.Errorf("%s has other content", p)
			}
			errs[i] = err
		})
	}
	// Writers of one file do not mix: the last to finish wins whole.
	for i := range 8 {
		wg.Go(func() {
			if err := fsys.WriteFile(c.ctx, "one", bytes.Repeat([]byte{byte('a' + i)}, 100_000), 0); err != nil {
				c.Errorf("one of many writers: %v", err)
			}
		})
	}
	wg.Wait()
	c.try("parallel writes and reads", errors.Join(errs...))
	b, err := fsys.ReadFile(c.ctx, "one")
	c.try("read", err)
	if len(b) != 100_000 || len(bytes.Trim(b, string(b[:1]))) != 0 {
		c.Errorf("a file with many writers has %d bytes of a mixture", len(b))
	}
}

func checkFileFS(c *env) {
	files := c.create().FileSystem()
	content := map[string]string{"hello.txt": "hello", "dir/a": "a", "dir/b": "bb", "dir/deep/c": "ccc", "dir with space/ü": "x", "empty": ""}
	var names []string
	for n, s := range content {
		c.try("write", files.WriteFile(c.ctx, "tree/"+n, []byte(s), 0))
		names = append(names, n)
	}
	c.try("mkdir", files.Mkdir(c.ctx, "tree/emptydir", 0))
	fsys := files.FS(c.ctx, "tree")
	c.try("testing/fstest.TestFS", fstest.TestFS(fsys, append(names, "emptydir")...))
	for name, ok := range map[string]bool{
		"fs.StatFS": is[fs.StatFS](fsys), "fs.ReadDirFS": is[fs.ReadDirFS](fsys), "fs.ReadFileFS": is[fs.ReadFileFS](fsys), "fs.SubFS": is[fs.SubFS](fsys),
	} {
		if !ok {
			c.Errorf("what FS returns does not implement %s", name)
		}
	}
	sub, err := fs.Sub(fsys, "dir")
	c.try("Sub", err)
	b, err := fs.ReadFile(sub, "deep/c")
	c.try("ReadFile of a Sub", err)
	equal(c, "content", string(b), "ccc")
	for _, bad := range []string{"/hello.txt", "../tree/hello.txt", "dir/../hello.txt", "./hello.txt", "dir/"} {
		if _, err := fsys.Open(bad); !errors.Is(err, fs.ErrInvalid) {
			c.Errorf("Open(%q) of an fs.FS: %v, want fs.ErrInvalid", bad, err)
		}
	}
	_, err = fs.Stat(fsys, "missing")
	c.wantPathError("Stat of a missing file through FS", err, fs.ErrNotExist, daytona.KindNotFound)
	ctx, cancel := context.WithCancel(c.ctx)
	gone := files.FS(ctx, "tree")
	cancel()
	if _, err := fs.ReadFile(gone, "hello.txt"); !errors.Is(err, context.Canceled) {
		c.Errorf("use of an FS whose context is cancelled: %v", err)
	}
}

func is[T any](v any) bool { _, ok := v.(T); return ok }
