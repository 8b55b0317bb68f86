//go:build linux

package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// randomTree fills dir with what an upper directory may hold.
func randomTree(t testing.TB, r *rand.Rand, dir string, depth int) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var files []string
	for i := range 1 + r.IntN(8) {
		name := fmt.Sprintf("%c%d", "aé \n\\=%"[r.IntN(3)], i)
		p := filepath.Join(dir, name)
		switch r.IntN(9) {
		case 0, 1:
			must(os.WriteFile(p, []byte(noise(r.Uint64(), r.IntN(20_000))), 0o600))
			must(os.Chmod(p, os.FileMode(0o400|r.IntN(0o400))))
			files = append(files, p)
		case 2:
			must(os.Symlink([]string{"/etc/passwd", "../../..", name, "nowhere"}[r.IntN(4)], p))
		case 3:
			must(unix.Mkfifo(p, 0o640))
		case 4:
			must(unix.Mknod(p, unix.S_IFCHR, 0))
		case 5:
			if len(files) > 0 {
				must(os.Link(files[r.IntN(len(files))], p))
			}
		case 6:
			f, err := os.Create(p)
			must(err)
			must(f.Truncate(int64(r.IntN(1 << 20))))
			_, err = f.WriteAt([]byte("end"), 100_000)
			must(err)
			must(f.Close())
			must(unix.Setxattr(p, "user.k\n", []byte{0, 1, 2, '='}, 0))
		default:
			must(os.Mkdir(p, 0o755))
			if depth > 0 {
				randomTree(t, r, p, depth-1)
			}
			if r.IntN(3) == 0 {
				must(unix.Setxattr(p, opaqueXattr, []byte("y"), 0))
			}
			must(os.Chmod(p, os.FileMode(0o700|r.IntN(0o100))))
			must(os.Chtimes(p, time.Time{}, time.Unix(r.Int64N(2_000_000_000), r.Int64N(1e9))))
		}
	}
}

func export(t testing.TB, dir string) ([]byte, string) {
	t.Helper()
	var buf bytes.Buffer
	diffID, size, err := ExportLayer(t.Context(), dir, &buf, nil)
	if err != nil {
		t.Fatal(err)
	}
	if size != int64(buf.Len()) {
		t.Errorf("size %d of %d", size, buf.Len())
	}
	return buf.Bytes(), diffID
}

// unpackDir unpacks an archive into a new directory.
func unpackDir(t testing.TB, data []byte) string {
	t.Helper()
	dir := filepath.Join(tempDir(t), "fs")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	src := &stream{ctx: t.Context(), raw: bytes.NewReader(data), size: -1, diffHash: discardHash{}}
	if err := src.open(); err != nil {
		t.Fatal(err)
	}
	defer src.close()
	if _, err := unpack(t.Context(), dir, src, &budget{maxEntries: 1 << 20, maxBytes: 1 << 30}, ownership{root: os.Geteuid() == 0}); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestExportRoundTrip(t *testing.T) {
	for seed := range uint64(30) {
		dir := tempDir(t)
		randomTree(t, rand.New(rand.NewPCG(seed, 1)), dir, 4)
		data, diffID := export(t, dir)
		if again, id := export(t, dir); !bytes.Equal(again, data) || id != diffID {
			t.Fatalf("seed %d: exporting twice gives %s and %s", seed, diffID, id)
		}
		back := unpackDir(t, data)
		if want, got := fingerprint(t, dir), fingerprint(t, back); got != want {
			t.Fatalf("seed %d:\n%s\nbecame\n%s", seed, want, got)
		}
		// Attributes and nanoseconds, which the fingerprint leaves out, are in the bytes.
		if again, id := export(t, back); !bytes.Equal(again, data) || id != diffID {
			t.Fatalf("seed %d: exporting what was unpacked gives %s, not %s", seed, id, diffID)
		}
	}
}

// names lists the entries of an archive.
func names(t testing.TB, data []byte) []string {
	t.Helper()
	var all []string
	for r := tar.NewReader(bytes.NewReader(data)); ; {
		h, err := r.Next()
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, h.Name)
	}
}

func TestExportWhiteouts(t *testing.T) {
	dir := tempDir(t)
	for _, err := range []error{
		os.Mkdir(filepath.Join(dir, "opaque"), 0o755),
		unix.Setxattr(filepath.Join(dir, "opaque"), opaqueXattr, []byte("y"), 0),
		unix.Setxattr(dir, opaqueXattr, []byte("y"), 0), // overlayfs does not look at it
		unix.Mknod(filepath.Join(dir, "gone"), unix.S_IFCHR, 0),
		os.Link(filepath.Join(dir, "gone"), filepath.Join(dir, "opaque", "gone")), // as overlayfs does
		os.Mkdir(filepath.Join(dir, "xwhite"), 0o755),
		unix.Setxattr(filepath.Join(dir, "xwhite"), opaqueXattr, []byte("x"), 0),
		os.WriteFile(filepath.Join(dir, "xwhite", "gone"), nil, 0o644),
		unix.Setxattr(filepath.Join(dir, "xwhite", "gone"), "user.overlay.whiteout", []byte("y"), 0),
		unix.Setxattr(dir, "user.overlay.impure", []byte("y"), 0),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	data, _ := export(t, dir)
	want := []string{"./", ".wh.gone", "opaque/", "opaque/.wh..wh..opq", "opaque/.wh.gone", "xwhite/", "xwhite/.wh.gone"}
	if got := names(t, data); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestExportHostile(t *testing.T) {
	try := func(what string, opts *ExportOptions, want error, make func(dir string) error) {
		t.Helper()
		dir := tempDir(t)
		if err := make(dir); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if _, _, err := ExportLayer(t.Context(), dir, io.Discard, opts); !errors.Is(err, want) {
			t.Errorf("%s: %v; want %v", what, err, want)
		}
	}
	put := func(name string, attribute string) func(string) error {
		return func(dir string) error {
			p := filepath.Join(dir, name)
			if err := os.WriteFile(p, []byte("1234567890"), 0o644); err != nil || attribute == "" {
				return err
			}
			return unix.Setxattr(p, attribute, []byte("/x"), 0)
		}
	}
	try("a name like a whiteout", nil, errors.ErrUnsupported, put(".wh.etc", ""))
	try("a metadata-only file", nil, errors.ErrUnsupported, put("f", "user.overlay.metacopy"))
	try("a redirect", nil, errors.ErrUnsupported, put("f", "user.overlay.redirect"))
	try("too many", &ExportOptions{MaxEntries: 1}, ErrTooLarge, put("f", ""))
	try("too large", &ExportOptions{MaxBytes: 9}, ErrTooLarge, put("f", ""))
	try("a sparse bomb", nil, ErrTooLarge, func(dir string) error {
		for i := range 3 {
			f, err := os.Create(filepath.Join(dir, fmt.Sprint(i)))
			if err != nil {
				return err
			}
			if err := errors.Join(f.Truncate(1<<43), f.Close()); err != nil {
				return err
			}
		}
		return nil
	})
	try("a deep tree", nil, ErrTooLarge, func(dir string) error {
		fd, err := openDirectory(dir)
		for i := 0; err == nil && i < 5000; i++ {
			var next int
			if err = unix.Mkdirat(fd, "d", 0o755); err == nil {
				next, err = unix.Openat(fd, "d", unix.O_PATH|unix.O_CLOEXEC, 0)
				unix.Close(fd)
				fd = next
			}
		}
		unix.Close(fd)
		return err
	})

	dir := tempDir(t)
	l, err := net.Listen("unix", filepath.Join(dir, "socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := os.Symlink("/etc", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	var skipped []string
	var buf bytes.Buffer
	if _, _, err := ExportLayer(t.Context(), dir, &buf, &ExportOptions{OnSkip: func(p, why string) { skipped = append(skipped, p+": "+why) }}); err != nil {
		t.Fatal(err)
	}
	if got := names(t, buf.Bytes()); !slices.Equal(got, []string{"./", "link"}) || !slices.Equal(skipped, []string{"socket: a socket"}) {
		t.Errorf("got %q, skipped %q", got, skipped)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := ExportLayer(ctx, dir, io.Discard, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestExportRaces exchanges what is exported for links out of the directory all the while.
func TestExportRaces(t *testing.T) {
	outside, dir := tempDir(t), tempDir(t)
	const secret = "what must not leave"
	for _, err := range []error{
		os.WriteFile(filepath.Join(outside, "f"), []byte(secret), 0o644),
		os.Mkdir(filepath.Join(dir, "d"), 0o755),
		os.WriteFile(filepath.Join(dir, "d", "f"), []byte("fine"), 0o644),
		os.Symlink(outside, filepath.Join(dir, "l")),
		os.WriteFile(filepath.Join(dir, "f"), []byte("fine"), 0o644),
		unix.Mkfifo(filepath.Join(dir, "p"), 0o644),
		os.Symlink(filepath.Join(outside, "f"), filepath.Join(dir, "q")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
			}
			for _, pair := range [][2]string{{"d", "l"}, {"f", "p"}, {"f", "q"}} {
				unix.Renameat2(unix.AT_FDCWD, filepath.Join(dir, pair[0]), unix.AT_FDCWD, filepath.Join(dir, pair[1]), unix.RENAME_EXCHANGE)
			}
		}
	}()
	worked := 0
	for range 2000 {
		var buf bytes.Buffer
		_, _, err := ExportLayer(t.Context(), dir, &buf, nil)
		if bytes.Contains(buf.Bytes(), []byte(secret)) {
			t.Fatal("a link was followed")
		}
		if err == nil {
			worked++
		} else if !strings.Contains(err.Error(), "changed") {
			t.Fatal(err)
		}
	}
	close(stop)
	<-stopped
	t.Logf("%d of 2000 exports succeeded", worked)
}

func FuzzExport(f *testing.F) {
	f.Add(makeTar(f, dir("d"), file("d/f", "x"), hardlink("h", "d/f"), symlink("l", "/"), file("d/.wh..wh..opq", ""), file(".wh.gone", "")))
	f.Fuzz(func(t *testing.T, data []byte) {
		c := newCage(t)
		if _, err := c.unpack(t.Context(), data); err != nil {
			return
		}
		// Whatever the unpacker makes is exported, and unpacks to the same.
		if _, _, err := ExportLayer(t.Context(), c.root, io.Discard, nil); errors.Is(err, ErrTooLarge) || errors.Is(err, os.ErrPermission) {
			return
		}
		first, id := export(t, c.root)
		if _, again := export(t, unpackDir(t, first)); again != id {
			t.Errorf("%s became %s", id, again)
		}
	})
}
