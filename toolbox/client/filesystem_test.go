package client_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"testing/iotest"

	"github.com/daytona-go/daytona"
)

func TestFS(t *testing.T) {
	files, dir := fileAgent(t)
	for name, content := range map[string]string{
		"a.txt": "alpha", "empty": "", "sub/b.txt": strings.Repeat("beta\n", 5000), "sub/deep/c": "\x00\x01\xff",
		"ünï cödé %20&=+#?.txt": "odd", "sub/-": "dash",
	} {
		p := filepath.Join(dir, "tree", name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(content), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "tree", "hollow"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("sub/b.txt", filepath.Join(dir, "tree", "link")); err != nil {
		t.Fatal(err)
	}
	for _, root := range []string{filepath.Join(dir, "tree"), "tree"} {
		tree := files.FS(t.Context(), root)
		if err := fstest.TestFS(tree, "a.txt", "empty", "sub/b.txt", "sub/deep/c", "ünï cödé %20&=+#?.txt", "sub/-", "hollow", "link"); err != nil {
			t.Error(err)
		}
		for _, name := range []string{"../a.txt", "/a.txt", "sub/../a.txt", "", "sub/"} {
			if _, err := tree.Open(name); !errors.Is(err, fs.ErrInvalid) {
				t.Errorf("Open(%q) = %v, want fs.ErrInvalid", name, err)
			}
		}
		_, err := fs.ReadFile(tree, "sub/none")
		var p *fs.PathError
		if !errors.As(err, &p) || p.Path != "sub/none" || !errors.Is(err, fs.ErrNotExist) || !errors.Is(err, daytona.ErrNotFound) {
			t.Errorf("ReadFile of a missing file: %v", err)
		}
	}
}

func TestFileRoundTrip(t *testing.T) {
	files, dir := fileAgent(t)
	ctx := t.Context()
	data := []byte("hello\x00world\n")
	if err := files.WriteFile(ctx, "new/dir/f", data, 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := files.ReadFile(ctx, "new/dir/f")
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("ReadFile = %q, %v", got, err)
	}
	info, err := files.Stat(ctx, "new/dir/f")
	if err != nil {
		t.Fatal(err)
	}
	host, err := os.Stat(filepath.Join(dir, "new/dir/f"))
	if err != nil {
		t.Fatal(err)
	}
	if info.Name() != "f" || info.Size() != int64(len(data)) || info.Mode() != 0o600 || !info.ModTime().Equal(host.ModTime()) || info.Owner != fmt.Sprint(os.Getuid()) {
		t.Errorf("Stat = %+v, host has %v", info, fs.FormatFileInfo(host))
	}
	if err := files.Chmod(ctx, "new/dir/f", 0o751); err != nil {
		t.Fatal(err)
	}
	if info, err := files.Stat(ctx, "new/dir/f"); err != nil || info.Mode() != 0o751 {
		t.Errorf("after Chmod: %v, %v", info, err)
	}
	if err := files.Chown(ctx, "new/dir/f", fmt.Sprint(os.Getuid()), ""); err != nil {
		t.Error(err)
	}
	if err := files.WriteFile(ctx, "zero", nil, 0); err != nil {
		t.Fatal(err)
	}
	if got, err := files.ReadFile(ctx, "zero"); err != nil || len(got) != 0 {
		t.Errorf("empty file: %q, %v", got, err)
	}

	// Open streams and knows the size.
	f, err := files.Open(ctx, "new/dir/f")
	if err != nil {
		t.Fatal(err)
	}
	if f.Size() != int64(len(data)) {
		t.Errorf("Size = %d", f.Size())
	}
	if err := iotest.TestReader(f, data); err != nil {
		t.Error(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if _, err := f.Read(make([]byte, 1)); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("Read after Close: %v", err)
	}

	// Create is visible only after Close.
	w, err := files.Create(ctx, "made/here")
	if err != nil {
		t.Fatal(err)
	}
	for range 1000 {
		if _, err := io.WriteString(w, "0123456789"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := files.Stat(ctx, "made/here"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("before Close: %v", err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("second Close: %v", err)
	}
	if got, err := files.ReadFile(ctx, "made/here"); err != nil || string(got) != strings.Repeat("0123456789", 1000) {
		t.Errorf("created file has %d bytes, %v", len(got), err)
	}

	n, err := files.Upload(ctx, "up", iotest.OneByteReader(strings.NewReader("uploaded")))
	if err != nil || n != 8 {
		t.Errorf("Upload = %d, %v", n, err)
	}
	var buf bytes.Buffer
	if n, err := files.Download(ctx, "up", &buf); err != nil || n != 8 || buf.String() != "uploaded" {
		t.Errorf("Download = %d, %v, %q", n, err, buf.String())
	}

	if err := files.Mkdir(ctx, "d/e", 0o711); err != nil {
		t.Fatal(err)
	}
	if err := files.Mkdir(ctx, "d/e", 0o711); err != nil {
		t.Errorf("Mkdir of a directory that exists: %v", err)
	}
	if err := files.Rename(ctx, "up", "d/moved"); err != nil {
		t.Fatal(err)
	}
	list, err := files.ReadDir(ctx, "d")
	if err != nil || len(list) != 2 || list[0].Name() != "e" || list[0].Mode() != fs.ModeDir|0o711 || list[1].Name() != "moved" {
		t.Errorf("ReadDir = %v, %v", list, err)
	}
	if err := files.Remove(ctx, "d"); err == nil {
		t.Error("Remove removed a directory that is not empty")
	}
	if err := files.Remove(ctx, "d/e"); err != nil {
		t.Errorf("Remove of an empty directory: %v", err)
	}
	if err := files.RemoveAll(ctx, "d"); err != nil {
		t.Error(err)
	}
	if err := files.RemoveAll(ctx, "d"); err != nil {
		t.Errorf("RemoveAll of nothing: %v", err)
	}
}

func TestFileErrors(t *testing.T) {
	files, dir := fileAgent(t)
	ctx := t.Context()
	for _, name := range []string{"file", "other"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(dir, "full/x"), 0o700); err != nil {
		t.Fatal(err)
	}
	drop := func(_ any, err error) error { return err }
	open := func(path string) error { _, err := files.Open(ctx, path); return err }
	create := func(path string) error {
		w, err := files.Create(ctx, path)
		if err != nil {
			return err
		}
		return w.Close()
	}
	download := func(path string) error { _, err := files.Download(ctx, path, io.Discard); return err }
	for _, c := range []struct {
		name  string
		err   error
		path  string
		kind  daytona.Kind
		cause error
	}{
		{"open missing", open("none"), "none", daytona.KindNotFound, fs.ErrNotExist},
		{"open directory", open("full"), "full", daytona.KindInvalid, fs.ErrInvalid},
		{"download missing", download("none"), "none", daytona.KindNotFound, fs.ErrNotExist},
		{"read missing", drop(files.ReadFile(ctx, "none")), "none", daytona.KindNotFound, fs.ErrNotExist},
		{"stat missing", drop(files.Stat(ctx, "none")), "none", daytona.KindNotFound, fs.ErrNotExist},
		{"readdir missing", drop(files.ReadDir(ctx, "none")), "none", daytona.KindNotFound, fs.ErrNotExist},
		{"readdir file", drop(files.ReadDir(ctx, "file")), "file", daytona.KindInvalid, fs.ErrInvalid},
		{"create over directory", create("full"), "full", daytona.KindInvalid, fs.ErrInvalid},
		{"write over directory", files.WriteFile(ctx, "full", nil, 0), "full", daytona.KindInvalid, fs.ErrInvalid},
		{"write below file", files.WriteFile(ctx, "file/x", nil, 0), "file/x", daytona.KindInvalid, fs.ErrInvalid},
		{"remove missing", files.Remove(ctx, "none"), "none", daytona.KindNotFound, fs.ErrNotExist},
		{"remove full directory", files.Remove(ctx, "full"), "full", daytona.KindInvalid, fs.ErrInvalid},
		{"rename missing", files.Rename(ctx, "none", "elsewhere"), "none", daytona.KindNotFound, fs.ErrNotExist},
		{"rename onto another", files.Rename(ctx, "file", "other"), "other", daytona.KindConflict, fs.ErrExist},
		{"chmod missing", files.Chmod(ctx, "none", 0o600), "none", daytona.KindNotFound, fs.ErrNotExist},
		{"chown to nobody known", files.Chown(ctx, "file", "no-such-user", ""), "file", daytona.KindInvalid, fs.ErrInvalid},
		{"grep missing", drop(files.Grep(ctx, "none", "x")), "none", daytona.KindNotFound, fs.ErrNotExist},
	} {
		t.Run(c.name, func(t *testing.T) {
			wantKind(t, c.err, c.kind)
			var p *fs.PathError
			if !errors.As(c.err, &p) || p.Path != c.path {
				t.Errorf("%v: want a *fs.PathError about %q", c.err, c.path)
			}
			if !errors.Is(c.err, c.cause) {
				t.Errorf("%v does not match %v", c.err, c.cause)
			}
		})
	}
	if os.Getuid() != 0 {
		wantKind(t, open("/etc/shadow"), daytona.KindForbidden)
		if !errors.Is(open("/etc/shadow"), fs.ErrPermission) {
			t.Error("open of /etc/shadow does not match fs.ErrPermission")
		}
	}
}

func TestManyFiles(t *testing.T) {
	files, dir := fileAgent(t)
	ctx := t.Context()
	if err := os.Mkdir(filepath.Join(dir, "taken"), 0o700); err != nil {
		t.Fatal(err)
	}
	big := bytes.Repeat([]byte("\r\n--DAYTONA-FILE-BOUNDARY--\r\n0123456789abcdef"), 10000)
	broken := errors.New("source is broken")
	err := files.UploadFiles(ctx, []daytona.FileUpload{
		{Path: "one", Content: strings.NewReader("1")},
		{Path: "taken", Content: strings.NewReader("not a directory")},
		{Path: "cut", Content: io.MultiReader(strings.NewReader("begins"), iotest.ErrReader(broken))},
		{Path: "sub/big", Content: bytes.NewReader(big)},
		{Path: "odd \"name\" \\ ü", Content: strings.NewReader("odd")},
		{Path: "none", Content: nil},
	})
	if err == nil || !errors.Is(err, broken) || !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("UploadFiles = %v, want the broken source and the directory", err)
	}
	var failed []string
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range joined.Unwrap() {
			if p, ok := errors.AsType[*fs.PathError](e); ok {
				failed = append(failed, p.Path)
			} else {
				t.Errorf("%v (%T) is no *fs.PathError", e, e)
			}
		}
	}
	if !slices.Equal(failed, []string{"taken", "cut"}) {
		t.Errorf("failed: %q", failed)
	}
	if _, err := os.Stat(filepath.Join(dir, "cut")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a truncated file was left behind: %v", err)
	}

	paths := []string{"one", "taken", "missing", "sub/big", "odd \"name\" \\ ü", "none", "one"}
	var got []string
	err = files.DownloadFiles(ctx, paths, func(path string, r io.Reader, err error) error {
		if path != paths[len(got)] {
			t.Errorf("file %d is %q", len(got), path)
		}
		if err != nil {
			got = append(got, string(daytona.KindOf(err)))
			return nil
		}
		if path == "sub/big" && len(got) == 3 {
			b, err := io.ReadAll(r)
			if !bytes.Equal(b, big) {
				t.Errorf("%s: %d bytes of %d, %v", path, len(b), len(big), err)
			}
			got = append(got, "big")
			return err
		}
		b, err := io.ReadAll(r)
		got = append(got, string(b))
		return err
	})
	if want := []string{"1", "invalid", "not_found", "big", "odd", "", "1"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("DownloadFiles: %q, %v", got, err)
	}
	stop := errors.New("stop")
	calls := 0
	err = files.DownloadFiles(ctx, paths, func(string, io.Reader, error) error { calls++; return stop })
	if !errors.Is(err, stop) || calls != 1 {
		t.Errorf("DownloadFiles stopped with %v after %d calls", err, calls)
	}
	// Unread content is skipped.
	calls = 0
	if err := files.DownloadFiles(ctx, []string{"sub/big", "one"}, func(_ string, r io.Reader, _ error) error {
		calls++
		return nil
	}); err != nil || calls != 2 {
		t.Errorf("DownloadFiles unread: %v after %d calls", err, calls)
	}
}

func TestSearch(t *testing.T) {
	files, _ := fileAgent(t)
	ctx := t.Context()
	for name, content := range map[string]string{"a.go": "package a\nfunc f()\n", "b/c.go": "func f()\n", "b/d.txt": "f() f()\n", "bin": "\x00f()\n"} {
		if err := files.WriteFile(ctx, "src/"+name, []byte(content), 0); err != nil {
			t.Fatal(err)
		}
	}
	found, err := files.Glob(ctx, "src", "*.go")
	if err != nil || len(found) != 2 || !strings.HasSuffix(found[0], "a.go") || !strings.HasSuffix(found[1], "b/c.go") {
		t.Errorf("Glob = %q, %v", found, err)
	}
	matches, err := files.Grep(ctx, "src", "func f()")
	if err != nil || len(matches) != 2 || matches[0].Line != 2 || matches[0].Text != "func f()" || matches[1].Line != 1 {
		t.Errorf("Grep = %+v, %v", matches, err)
	}
	replaced, err := files.Replace(ctx, []string{"src/b/d.txt", "src/none"}, "f()", "g()")
	if err != nil || len(replaced) != 2 || replaced[0].Err != nil || !errors.Is(replaced[1].Err, fs.ErrNotExist) {
		t.Errorf("Replace = %+v, %v", replaced, err)
	}
	if b, err := files.ReadFile(ctx, "src/b/d.txt"); string(b) != "g() g()\n" {
		t.Errorf("after Replace: %q, %v", b, err)
	}
}

// stream is n pseudo-random bytes, cheap to make.
type stream struct {
	left  int64
	block []byte
	sum   hash.Hash
}

func newStream(n int64) *stream {
	b := make([]byte, 1<<20)
	random := rand.NewChaCha8([32]byte{})
	random.Read(b)
	return &stream{left: n, block: b, sum: sha256.New()}
}

func (s *stream) Read(p []byte) (int, error) {
	if s.left == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(int64(len(p)), s.left)], s.block)
	s.left -= int64(n)
	s.sum.Write(p[:n])
	return n, nil
}

func TestLargeFileConstantMemory(t *testing.T) {
	size := int64(1 << 30)
	if testing.Short() {
		size = 64 << 20
	}
	files, _ := fileAgent(t)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	up := newStream(size)
	if n, err := files.Upload(t.Context(), "large", up); err != nil || n != size {
		t.Fatalf("Upload = %d, %v", n, err)
	}
	down := sha256.New()
	if n, err := files.Download(t.Context(), "large", down); err != nil || n != size {
		t.Fatalf("Download = %d, %v", n, err)
	}
	if !bytes.Equal(up.sum.Sum(nil), down.Sum(nil)) {
		t.Error("the file came back changed")
	}
	w, err := files.Create(t.Context(), "large")
	if err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(w, newStream(size/4)); err != nil || n != size/4 {
		t.Fatalf("Copy = %d, %v", n, err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	// Everything that was ever allocated, by the agent in this process too.
	if used := after.TotalAlloc - before.TotalAlloc; used > 32<<20 {
		t.Errorf("%d MiB were allocated to move files of %d MiB", used>>20, size>>20)
	}
}

func TestCancelUploadLeavesWhatWas(t *testing.T) {
	files, dir := fileAgent(t)
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	intact := func(t *testing.T) {
		t.Helper()
		if b, err := os.ReadFile(filepath.Join(dir, "f")); string(b) != "old" {
			t.Errorf("the file is %.20q now, %v", b, err)
		}
	}
	t.Run("Create", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		w, err := files.Create(ctx, "f")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
		cancel()
		if err := w.Close(); !errors.Is(err, context.Canceled) {
			t.Errorf("Close = %v", err)
		}
		intact(t)
	})
	t.Run("Upload stuck", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		stuck, hold := io.Pipe()
		defer hold.Close()
		go func() {
			hold.Write(make([]byte, 1<<20))
			cancel()
		}()
		if _, err := files.Upload(ctx, "f", stuck); !errors.Is(err, context.Canceled) {
			t.Errorf("Upload = %v", err)
		}
		intact(t)
	})
	t.Run("Upload broken", func(t *testing.T) {
		broken := errors.New("source is broken")
		_, err := files.Upload(t.Context(), "f", io.MultiReader(strings.NewReader("new"), iotest.ErrReader(broken)))
		if p, ok := errors.AsType[*fs.PathError](err); !ok || p.Path != "f" || !errors.Is(err, broken) {
			t.Errorf("Upload = %v", err)
		}
		intact(t)
	})
	t.Run("UploadFiles stuck", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		stuck, hold := io.Pipe()
		defer hold.Close()
		go func() {
			hold.Write(make([]byte, 1<<20))
			cancel()
		}()
		if err := files.UploadFiles(ctx, []daytona.FileUpload{{Path: "f", Content: stuck}}); !errors.Is(err, context.Canceled) {
			t.Errorf("UploadFiles = %v", err)
		}
		intact(t)
	})
	t.Run("Download", func(t *testing.T) {
		if err := os.WriteFile(filepath.Join(dir, "big"), make([]byte, 8<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		f, err := files.Open(ctx, "big")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := io.ReadFull(f, make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
		cancel()
		if _, err := io.Copy(io.Discard, f); !errors.Is(err, context.Canceled) {
			t.Errorf("Copy = %v", err)
		}
	})
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		if e.Name() != "f" && e.Name() != "big" {
			t.Errorf("%s was left behind", e.Name())
		}
	}
	if err != nil {
		t.Error(err)
	}
}

func BenchmarkUpload(b *testing.B) {
	files, _ := fileAgent(b)
	block := make([]byte, 1<<20)
	b.SetBytes(256 << 20)
	for b.Loop() {
		if _, err := files.Upload(b.Context(), "f", &zeros{256 << 20, block}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDownload(b *testing.B) {
	files, _ := fileAgent(b)
	if _, err := files.Upload(b.Context(), "f", &zeros{256 << 20, make([]byte, 1<<20)}); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(256 << 20)
	for b.Loop() {
		if _, err := files.Download(b.Context(), "f", io.Discard); err != nil {
			b.Fatal(err)
		}
	}
}

// zeros is a reader that costs next to nothing.
type zeros struct {
	left  int64
	block []byte
}

func (z *zeros) Read(p []byte) (int, error) {
	if z.left == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(int64(len(p)), z.left)], z.block)
	z.left -= int64(n)
	return n, nil
}
