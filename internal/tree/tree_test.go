//go:build linux

package tree

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func dirs(t *testing.T) (dst, src, work string) {
	t.Helper()
	base := t.TempDir()
	for _, d := range []string{"dst", "src", "work"} {
		if err := os.Mkdir(filepath.Join(base, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(base, "dst"), filepath.Join(base, "src"), filepath.Join(base, "work")
}

// describe lists a tree with all that a copy has to keep.
func describe(t *testing.T, dir string) string {
	t.Helper()
	cmd := exec.Command("find", ".", "-printf", `%p %y %m %U %G %s %n %T@ %l\n`)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	lines := strings.Split(string(out), "\n")
	for i, l := range lines {
		// The size of a directory is the file system's affair.
		if f := strings.Fields(l); len(f) > 5 && f[1] == "d" {
			f[5] = "-"
			lines[i] = strings.Join(f, " ")
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func TestCopy(t *testing.T) {
	dst, src, work := dirs(t)
	outside := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(outside, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	script := `set -e
		mkdir -m 0 closed; mkdir -m 1777 sticky; mkdir -p 'a/b c/d'
		printf x > "a/$(printf 'new\nline')"; printf y > a/-rf
		echo hello > a/f; chmod 4751 a/f; ln a/f a/g; ln a/f closed/h 2>/dev/null || true
		mkfifo fifo; ln fifo fifo2
		ln -s ` + outside + ` link; ln -s ../../../../etc up; ln -s nowhere a/dangling
		truncate -s 64M sparse; printf tail >> sparse; printf middle | dd of=sparse bs=1M seek=32 conv=notrunc status=none
		: > empty; chmod 0 empty
		touch -h -d '2001-02-03 04:05:06.789' a/f link a/b\ c/d fifo`
	cmd := exec.Command("sh", "-c", script)
	cmd.Dir = src
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := unix.Setxattr(filepath.Join(src, "a"), "user.overlay.opaque", []byte("y"), 0); err != nil {
		t.Skip("no attributes here:", err)
	}
	if err := unix.Setxattr(filepath.Join(src, "a"), "user.overlay.origin", []byte("x"), 0); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mknod(filepath.Join(src, "whiteout"), unix.S_IFCHR, 0); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		if err := os.Lchown(filepath.Join(src, "a/f"), 1234, 5678); err != nil {
			t.Fatal(err)
		}
		if err := os.Lchown(filepath.Join(src, "link"), 1234, 5678); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Join(src, "a/f"), 0o751|os.ModeSetuid); err != nil {
			t.Fatal(err)
		}
	} else {
		os.RemoveAll(filepath.Join(src, "closed"))
		os.Remove(filepath.Join(src, "empty"))
	}
	want := describe(t, src)
	if _, err := Copy(t.Context(), dst, src, work, nil); err != nil {
		t.Fatal(err)
	}
	if got := describe(t, dst); got != want {
		t.Errorf("the copy is\n%s\nwant\n%s", got, want)
	}
	if out, err := exec.Command("cmp", filepath.Join(src, "sparse"), filepath.Join(dst, "sparse")).CombinedOutput(); err != nil {
		t.Errorf("%s", out)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(dst, "sparse"), &st); err != nil || st.Blocks*512 > 1<<20 {
		t.Errorf("a file of holes takes %d bytes, %v", st.Blocks*512, err)
	}
	if err := unix.Lstat(filepath.Join(dst, "whiteout"), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != 0 {
		t.Errorf("the whiteout: mode %o, device %d, %v", st.Mode, st.Rdev, err)
	}
	buf := make([]byte, 16)
	if n, err := unix.Getxattr(filepath.Join(dst, "a"), "user.overlay.opaque", buf); err != nil || string(buf[:n]) != "y" {
		t.Errorf("the opaque directory: %q, %v", buf[:max(n, 0)], err)
	}
	if _, err := unix.Getxattr(filepath.Join(dst, "a"), "user.overlay.origin", buf); !errors.Is(err, unix.ENODATA) {
		t.Errorf("the origin was copied: %v", err)
	}
	if left, _ := os.ReadDir(work); len(left) > 0 {
		t.Errorf("left in work: %v", left)
	}
	size, err := Size(t.Context(), dst, 1000)
	if err != nil || size <= 0 || size > 1<<20 {
		t.Errorf("Size = %d, %v", size, err)
	}
}

// TestCopyDeep copies a tree whose paths are longer than any path may be.
func TestCopyDeep(t *testing.T) {
	dst, src, work := dirs(t)
	const depth = 3000
	fd, err := unix.Open(src, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	name := strings.Repeat("d", 100)
	for i := range depth {
		if err := unix.Mkdirat(fd, name, 0o755); err != nil {
			t.Fatal(i, err)
		}
		next, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			t.Fatal(i, err)
		}
		unix.Close(fd)
		fd = next
	}
	unix.Close(fd)
	t.Cleanup(func() { _ = exec.Command("rm", "-rf", src, dst).Run() })
	stats, err := Copy(t.Context(), dst, src, work, nil)
	if err != nil || stats.Files != depth {
		t.Fatalf("%+v, %v", stats, err)
	}
}

func TestCopyBounds(t *testing.T) {
	dst, src, work := dirs(t)
	for i := range 100 {
		if err := os.WriteFile(filepath.Join(src, fmt.Sprint(i)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Copy(t.Context(), dst, src, work, &Options{MaxFiles: 99}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("99 of 100 files: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	dst, _, work = dirs(t)
	if _, err := Copy(ctx, dst, src, work, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	// A root that is a link is not entered.
	dst, _, work = dirs(t)
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(src, link); err != nil {
		t.Fatal(err)
	}
	if _, err := Copy(t.Context(), dst, link, work, nil); err == nil {
		t.Error("a link was followed")
	}
}

// TestPack demands that what is unpacked is what was packed.
func TestPack(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("owners take root")
	}
	dst, src, _ := dirs(t)
	cmd := exec.Command("sh", "-c", `set -e
		mkdir -m 0 closed; mkdir -m 1777 sticky; mkdir -p 'a/b c/d'; printf x > "a/$(printf 'new\nline')"; printf '\377' > "a/$(printf '\377\376')"
		echo hello > a/f; ln a/f z; ln a/f a/b\ c/g; mkfifo fifo; ln -s ../../etc up; truncate -s 8M sparse; printf tail >> sparse
		chown 1234:5678 a/f; chmod 4751 a/f; touch -h -d '2001-02-03 04:05:06.789' a/f up a/b\ c/d fifo`)
	cmd.Dir = src
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := unix.Setxattr(filepath.Join(src, "a"), "user.overlay.opaque", []byte("y"), 0); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mknod(filepath.Join(src, "whiteout"), unix.S_IFCHR, 0); err != nil {
		t.Fatal(err)
	}
	var stream bytes.Buffer
	if err := Pack(t.Context(), &stream, src); err != nil {
		t.Fatal(err)
	}
	if err := Unpack(t.Context(), bytes.NewReader(stream.Bytes()), dst); err != nil {
		t.Fatal(err)
	}
	if got, want := describe(t, dst), describe(t, src); got != want {
		t.Errorf("unpacked\n%s\nwant\n%s", got, want)
	}
	buf := make([]byte, 16)
	if n, err := unix.Getxattr(filepath.Join(dst, "a"), "user.overlay.opaque", buf); err != nil || string(buf[:n]) != "y" {
		t.Errorf("the opaque directory: %v", err)
	}
}

// TestUnpackHostile gives streams that nobody packed.
func TestUnpackHostile(t *testing.T) {
	outside := t.TempDir()
	root := tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o755}
	for name, entries := range map[string][]tar.Header{
		"dotdot":         {root, {Name: "../x", Typeflag: tar.TypeDir}},
		"absolute":       {root, {Name: "/x", Typeflag: tar.TypeDir}},
		"dot within":     {root, {Name: "a/./x", Typeflag: tar.TypeDir}},
		"through link":   {root, {Name: "l", Typeflag: tar.TypeSymlink, Linkname: outside}, {Name: "l/x", Typeflag: tar.TypeDir}},
		"link out":       {root, {Name: "l", Typeflag: tar.TypeSymlink, Linkname: outside}, {Name: "h", Typeflag: tar.TypeLink, Linkname: "l/secret"}},
		"link dotdot":    {root, {Name: "h", Typeflag: tar.TypeLink, Linkname: "../secret"}},
		"device":         {root, {Name: "d", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}},
		"block":          {root, {Name: "d", Typeflag: tar.TypeBlock}},
		"out of order":   {root, {Name: "a/b", Typeflag: tar.TypeDir}},
		"twice":          {root, {Name: "a", Typeflag: tar.TypeDir}, {Name: "a", Typeflag: tar.TypeSymlink, Linkname: outside}},
		"no root":        {},
		"root is a link": {{Name: ".", Typeflag: tar.TypeSymlink, Linkname: outside}},
	} {
		var stream bytes.Buffer
		w := tar.NewWriter(&stream)
		for _, h := range entries {
			h.Uid, h.Gid = os.Getuid(), os.Getgid()
			if err := w.WriteHeader(&h); err != nil {
				t.Fatal(name, err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(outside, "secret"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := Unpack(t.Context(), &stream, t.TempDir()); err == nil {
			t.Errorf("%s: was unpacked", name)
		}
		if got, _ := os.ReadDir(outside); len(got) != 1 {
			t.Errorf("%s: outside there is %v", name, got)
		}
	}
}
