//go:build linux

package image

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// cage is a root to unpack into, with things beside it that must not change.
type cage struct {
	dir, root, canary string
	before            string
}

func newCage(t testing.TB) *cage {
	t.Helper()
	d := tempDir(t)
	c := &cage{dir: d, root: filepath.Join(d, "root"), canary: filepath.Join(d, "canary")}
	for _, err := range []error{
		os.Mkdir(c.root, 0o700), os.WriteFile(c.canary, []byte("alive"), 0o640),
		os.Mkdir(filepath.Join(d, "outside"), 0o755), os.WriteFile(filepath.Join(d, "outside", "file"), []byte("alive"), 0o600),
		os.Symlink("canary", filepath.Join(d, "link")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	c.before = c.outside(t)
	return c
}

// outside describes everything but the root. It includes link counts, modes, times and contents.
func (c *cage) outside(t testing.TB) string {
	t.Helper()
	return fingerprint(t, c.dir, "root")
}

func (c *cage) check(t testing.TB) {
	t.Helper()
	if after := c.outside(t); after != c.before {
		t.Errorf("ESCAPE: outside the root there was\n%s\nand now there is\n%s", c.before, after)
	}
}

func testLimits() *budget { return &budget{maxEntries: 2_000, maxBytes: 64 << 20} }

func (c *cage) unpack(ctx context.Context, data []byte) (layerStats, error) {
	b := testLimits()
	src := &stream{ctx: ctx, raw: bytes.NewReader(data), size: int64(len(data)), budget: b, maxRatio: 200, diffHash: sha256.New()}
	if err := src.open(); err != nil {
		return layerStats{}, err
	}
	defer src.close()
	stats, err := unpack(ctx, c.root, src, b, ownership{root: os.Geteuid() == 0})
	if err == nil {
		_, err = src.finish("")
	}
	return stats, err
}

// replaceInTar changes a name in an archive after the fact, to one that tar.Writer would not
// write, and repairs the checksum.
func replaceInTar(t testing.TB, data []byte, old, new string) []byte {
	t.Helper()
	i := bytes.Index(data, []byte(old))
	if i < 0 || len(old) != len(new) {
		t.Fatalf("cannot replace %q", old)
	}
	data = bytes.Clone(data)
	copy(data[i:], new)
	h := data[i/512*512:][:512]
	copy(h[148:156], "        ")
	sum := 0
	for _, b := range h {
		sum += int(b)
	}
	copy(h[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return data
}

func TestUnpackHostile(t *testing.T) {
	long := strings.Repeat("x", 300)
	for _, tc := range []struct {
		name string
		data func(c *cage) []byte
		// want is the kind of error; nil means that the layer is unpacked, confined to the root,
		// and then inside must exist below it.
		want   error
		inside string
	}{
		{name: "dotdot", want: ErrUnsafeLayer, data: func(c *cage) []byte { return makeTar(t, file("../canary", "dead")) }},
		{name: "dotdot in the middle", want: ErrUnsafeLayer, data: func(c *cage) []byte { return makeTar(t, dir("a"), file("a/../../canary", "dead")) }},
		{name: "dotdot directory", want: ErrUnsafeLayer, data: func(c *cage) []byte { return makeTar(t, entry{name: "../", typ: tar.TypeDir, mode: 0}) }},
		{name: "absolute name", inside: "CANARY", data: func(c *cage) []byte { return makeTar(t, file(c.canary, "dead")) }},
		{name: "file through absolute symlink", inside: "OUTSIDE/evil", data: func(c *cage) []byte {
			return makeTar(t, symlink("a", filepath.Join(c.dir, "outside")), file("a/evil", "dead"))
		}},
		{name: "file through relative symlink", inside: "outside/file", data: func(c *cage) []byte {
			return makeTar(t, symlink("a", "../outside"), file("a/file", "dead"))
		}},
		{name: "file through a chain of symlinks", inside: "outside/file", data: func(c *cage) []byte {
			return makeTar(t, dir("d"), symlink("d/a", "../.."), symlink("b", "d/a/outside"), file("b/file", "dead"))
		}},
		{name: "directory through symlink changes no mode", inside: "outside", data: func(c *cage) []byte {
			return makeTar(t, symlink("a", "../"), entry{name: "a/outside/", typ: tar.TypeDir, mode: 0o777})
		}},
		{name: "file over symlink to outside", inside: "a", data: func(c *cage) []byte {
			return makeTar(t, symlink("a", "../canary"), file("a", "mine"))
		}},
		{name: "directory over symlink to outside", inside: "a/x", data: func(c *cage) []byte {
			return makeTar(t, symlink("a", "../outside"), entry{name: "a/", typ: tar.TypeDir, mode: 0o777}, file("a/x", ""))
		}},
		{name: "symlink loop", want: ErrUnsafeLayer, data: func(c *cage) []byte {
			return makeTar(t, symlink("a", "b"), symlink("b", "a"), file("a/x", "dead"))
		}},
		{name: "symlink to /proc/self/root", inside: "proc/self/root", data: func(c *cage) []byte {
			return makeTar(t, symlink("a", "/proc/self/root"), file("a"+c.canary, "dead"))
		}},
		{name: "hardlink to outside", want: ErrUnsafeLayer, data: func(c *cage) []byte { return makeTar(t, hardlink("a", "../canary")) }},
		{name: "hardlink to absolute outside", want: ErrUnsafeLayer, data: func(c *cage) []byte { return makeTar(t, hardlink("a", c.canary)) }},
		{name: "hardlink through symlink", want: ErrUnsafeLayer, data: func(c *cage) []byte {
			return makeTar(t, symlink("s", ".."), hardlink("a", "s/canary"), file("a", "dead"))
		}},
		{name: "hardlink to symlink, then written", inside: "a", data: func(c *cage) []byte {
			return makeTar(t, symlink("s", c.canary), hardlink("a", "s"), file("a", "dead"))
		}},
		{name: "hardlink over symlink to outside", inside: "s", data: func(c *cage) []byte {
			return makeTar(t, file("f", "mine"), symlink("s", "../canary"), hardlink("s", "f"))
		}},
		{name: "hardlink to a directory", want: ErrUnsafeLayer, data: func(c *cage) []byte { return makeTar(t, dir("d"), hardlink("a", "d")) }},
		{name: "hardlink to a whiteout", want: ErrUnsafeLayer, data: func(c *cage) []byte { return makeTar(t, file(".wh.x", ""), hardlink("a", "x")) }},
		{name: "hardlink to the root", want: ErrUnsafeLayer, data: func(c *cage) []byte { return makeTar(t, hardlink("a", "./")) }},
		{name: "hardlink to what it replaces", want: ErrUnsafeLayer, data: func(c *cage) []byte { return makeTar(t, file("d/f", "x"), hardlink("d", "d/f")) }},
		{name: "hardlink to nothing", want: ErrUnsafeLayer, data: func(c *cage) []byte { return makeTar(t, hardlink("a", "b")) }},
		{name: "device nodes", inside: "after", data: func(c *cage) []byte {
			return makeTar(t, entry{name: "sda", typ: tar.TypeBlock, mode: 0o666}, entry{name: "mem", typ: tar.TypeChar, mode: 0o666},
				entry{name: "dev/kmem", typ: tar.TypeChar, mode: 0o666}, file("after", ""))
		}},
		{name: "whiteout of dot", want: ErrUnsafeLayer, data: func(c *cage) []byte { return makeTar(t, file("d/.wh..", "")) }},
		{name: "whiteout of dotdot", want: ErrUnsafeLayer, data: func(c *cage) []byte { return makeTar(t, file("d/.wh...", "")) }},
		{name: "whiteout of nothing", want: ErrUnsafeLayer, data: func(c *cage) []byte { return makeTar(t, file("d/.wh.", "")) }},
		{name: "whiteout with a slash", want: ErrUnsafeLayer, data: func(c *cage) []byte { return makeTar(t, file(".wh./canary", "")) }},
		{name: "whiteout as a directory", want: ErrUnsafeLayer, data: func(c *cage) []byte { return makeTar(t, file(".wh.x/y", "")) }},
		{name: "whiteout through symlink", inside: "s", data: func(c *cage) []byte { return makeTar(t, symlink("s", ".."), file("s/.wh.canary", "")) }},
		{name: "opaque through symlink", inside: "outside", data: func(c *cage) []byte { return makeTar(t, symlink("s", "../outside"), file("s/.wh..wh..opq", "")) }},
		{name: "opaque as a directory", want: ErrUnsafeLayer, data: func(c *cage) []byte { return makeTar(t, file(".wh..wh..opq/x", "")) }},
		{name: "root that is a symlink", want: ErrUnsafeLayer, data: func(c *cage) []byte { return makeTar(t, symlink("./", "..")) }},
		{name: "root that is a file", want: ErrUnsafeLayer, data: func(c *cage) []byte { return makeTar(t, file("/.", "x")) }},
		{name: "file as a directory", want: ErrUnsafeLayer, data: func(c *cage) []byte { return makeTar(t, file("a", ""), file("a/b", "")) }},
		{name: "overlong component", want: ErrUnsafeLayer, data: func(c *cage) []byte { return makeTar(t, file(long, "")) }},
		{name: "overlong path", want: ErrUnsafeLayer, data: func(c *cage) []byte { return makeTar(t, file(strings.Repeat("abcdefg/", 600)+"x", "")) }},
		{name: "overlong link target", want: ErrUnsafeLayer, data: func(c *cage) []byte { return makeTar(t, symlink("a", strings.Repeat("/x", 3000))) }},
		{name: "empty name", want: ErrUnsafeLayer, data: func(c *cage) []byte { return replaceInTar(t, makeTar(t, file("Q", "")), "Q", "\x00") }},
		{name: "NUL in a PAX name", want: ErrUnsafeLayer, data: func(c *cage) []byte {
			return bytes.Replace(makeTar(t, file("ä/QQ/../canary", "")), []byte("QQ"), []byte("Q\x00"), -1)
		}},
		{name: "unknown type", want: ErrUnsafeLayer, data: func(c *cage) []byte {
			return replaceInTar(t, makeTar(t, file("a", "")), "0\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", "Y\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")
		}},
		{name: "not an archive", want: ErrUnsafeLayer, data: func(c *cage) []byte { return bytes.Repeat([]byte("nonsense"), 200) }},
		{name: "cut off", want: ErrUnsafeLayer, data: func(c *cage) []byte { return makeTar(t, file("a", strings.Repeat("x", 5000)))[:2000] }},
		{name: "too many entries", want: ErrTooLarge, data: func(c *cage) []byte {
			return makeTar(t, slices.Repeat([]entry{file("same", "")}, 2_001)...)
		}},
		{name: "too many implied directories", want: ErrTooLarge, data: func(c *cage) []byte {
			var entries []entry
			for i := range 6 {
				entries = append(entries, file(fmt.Sprint(i)+strings.Repeat("/d", 400), ""))
			}
			return makeTar(t, entries...)
		}},
		{name: "too large", want: ErrTooLarge, data: func(c *cage) []byte {
			return makeTar(t, file("a", strings.Repeat("x", 40<<20)), file("b", strings.Repeat("y", 40<<20)))
		}},
		{name: "sparse bomb", want: ErrTooLarge, data: sparseBomb(t)},
		{name: "duplicate names", inside: "a/b", data: func(c *cage) []byte {
			return makeTar(t, file("a", "1"), symlink("a", "../outside"), hardlink("h", "a"), dir("a"), file("a/b", "2"), file("a/b", "3"))
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newCage(t)
			_, err := c.unpack(t.Context(), tc.data(c))
			c.check(t)
			if !errors.Is(err, tc.want) || (tc.want == nil && err != nil) {
				t.Fatalf("got error %v, want %v", err, tc.want)
			}
			if tc.want == nil {
				inside := strings.NewReplacer("CANARY", c.canary, "OUTSIDE", filepath.Join(c.dir, "outside")).Replace(tc.inside)
				if _, err := os.Lstat(filepath.Join(c.root, inside)); err != nil {
					t.Errorf("not confined to the root: %v\n%s", err, fingerprint(t, c.root))
				}
			}
			noDevices(t, c.root)
		})
	}
}

// noDevices fails if the tree has a device node that is not a whiteout.
func noDevices(t testing.TB, root string) {
	t.Helper()
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.Type()&fs.ModeDevice != 0 {
			fi, err := d.Info()
			if err != nil {
				return err
			}
			if fi.Sys().(*syscall.Stat_t).Rdev != 0 {
				t.Errorf("device node %s", p)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// sparseBomb is a file of 1 GiB, all hole, in 2 KiB (GNU sparse format 1.0).
func sparseBomb(t testing.TB) func(*cage) []byte {
	return func(*cage) []byte {
		body := "1\n1073741824\n0\n"
		body += strings.Repeat("\x00", 512-len(body))
		data := makeTar(t, entry{name: "GNUSparseFile.0/bomb", typ: tar.TypeReg, mode: 0o644, body: body, pax: map[string]string{
			"X.sparse.major": "1", "X.sparse.minor": "0", "X.sparse.name": "bomb", "X.sparse.realsize": "1073741824",
		}})
		// tar.Writer refuses to write these records itself; "GNU" is two bytes longer, and so is
		// the length that begins each record.
		return fixPAX(data)
	}
}

// fixPAX renames X.sparse. records to GNU.sparse. within the first PAX header.
func fixPAX(data []byte) []byte {
	size := 0
	fmt.Sscanf(string(data[124:135]), "%o", &size)
	var body strings.Builder
	for line := range strings.Lines(string(data[512 : 512+size])) {
		_, rest, _ := strings.Cut(line, " ")
		rest = strings.Replace(rest, "X.sparse.", "GNU.sparse.", 1)
		n := len(rest) + 3
		if n > 99 {
			n++
		}
		fmt.Fprintf(&body, "%d %s", n, rest)
	}
	out := bytes.Clone(data[:512])
	copy(out[124:136], fmt.Sprintf("%011o\x00", body.Len()))
	copy(out[148:156], "        ")
	sum := 0
	for _, b := range out {
		sum += int(b)
	}
	copy(out[148:156], fmt.Sprintf("%06o\x00 ", sum))
	out = append(out, body.String()...)
	out = append(out, make([]byte, (512-body.Len()%512)%512)...)
	return append(out, data[512+(size+511)/512*512:]...)
}

func TestUnpackKeepsWhatCounts(t *testing.T) {
	old := time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC)
	c := newCage(t)
	stats, err := c.unpack(t.Context(), makeTar(t,
		entry{name: "./", typ: tar.TypeDir, mode: 0o750, mtime: old},
		entry{name: "ro/", typ: tar.TypeDir, mode: 0o555, mtime: old},
		entry{name: "ro/f", body: "hello", typ: tar.TypeReg, mode: 0o400, mtime: old, uid: os.Geteuid() * 7},
		entry{name: "closed/", typ: tar.TypeDir, mode: 0o000, mtime: old},
		entry{name: "closed/in/", typ: tar.TypeDir, mode: 0o000, mtime: old},
		entry{name: "tmp/", typ: tar.TypeDir, mode: 0o1777},
		entry{name: "su", typ: tar.TypeReg, mode: 0o6755},
		entry{name: "owned", typ: tar.TypeReg, mode: 0o644, uid: 33, gid: 44},
		entry{name: "fifo", typ: tar.TypeFifo, mode: 0o622, mtime: old},
		entry{name: "link", typ: tar.TypeSymlink, link: "/etc/x y", mtime: old},
		hardlink("hard", "ro/f"),
		hardlink("hardlink-to-link", "link"),
		entry{name: "x", typ: tar.TypeReg, mode: 0o444, pax: map[string]string{
			"SCHILY.xattr.user.note": "kept", "SCHILY.xattr.user.overlay.opaque": "y", "SCHILY.xattr.user.overlay.redirect": "/etc",
			"SCHILY.xattr.trusted.overlay.opaque": "y", "SCHILY.xattr.trusted.x": "y", "SCHILY.xattr.security.selinux": "x",
			"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
		}},
		entry{name: "xd/", typ: tar.TypeDir, mode: 0o500, pax: map[string]string{"SCHILY.xattr.user.note": "dir", "SCHILY.xattr.user.overlay.opaque": "y"}},
		file("im/plicit/f", "z"),
		file("\xff\xfe", "not UTF-8"),
		entry{name: "far", typ: tar.TypeReg, mode: 0o644, mtime: time.Unix(1<<33, 0)},
	))
	if err != nil {
		t.Fatal(err)
	}
	c.check(t)
	root := os.Geteuid() == 0
	stat := func(name string) *syscall.Stat_t {
		t.Helper()
		fi, err := os.Lstat(filepath.Join(c.root, name))
		if err != nil {
			t.Fatal(err)
		}
		return fi.Sys().(*syscall.Stat_t)
	}
	for name, want := range map[string]uint32{
		".": 0o40750, "ro": 0o40555, "ro/f": 0o100400, "closed": 0o40000, "tmp": 0o41777,
		"fifo": 0o10622, "im/plicit": 0o40755, "im": 0o40755, "hard": 0o100400, "xd": 0o40500,
	} {
		if got := stat(name).Mode; got != want {
			t.Errorf("%s has mode %o, want %o", name, got, want)
		}
	}
	for _, name := range []string{".", "ro", "ro/f", "closed", "fifo", "link"} {
		if got := stat(name).Mtim.Sec; got != old.Unix() {
			t.Errorf("%s has time %v, want %v", name, time.Unix(got, 0), old)
		}
	}
	if got := stat("far").Mtim.Sec; got != 1<<33 {
		t.Errorf("far has time %d", got)
	}
	wantSU := uint32(0o100755)
	if root {
		wantSU = 0o106755
		if st := stat("owned"); st.Uid != 33 || st.Gid != 44 {
			t.Errorf("owned belongs to %d:%d", st.Uid, st.Gid)
		}
	} else if st := stat("owned"); int(st.Uid) != os.Geteuid() {
		t.Errorf("owned belongs to %d", st.Uid)
	}
	if got := stat("su").Mode; got != wantSU {
		t.Errorf("su has mode %o, want %o", got, wantSU)
	}
	if stat("hard").Ino != stat("ro/f").Ino || stat("hardlink-to-link").Ino != stat("link").Ino {
		t.Error("hard links are not links")
	}
	if l, err := os.Readlink(filepath.Join(c.root, "link")); l != "/etc/x y" || err != nil {
		t.Errorf("link leads to %q, %v", l, err)
	}
	attrs := func(name string) []string {
		buf := make([]byte, 4096)
		n, err := unix.Llistxattr(filepath.Join(c.root, name), buf)
		if err != nil {
			t.Fatal(err)
		}
		list := strings.Split(strings.TrimRight(string(buf[:n]), "\x00"), "\x00")
		slices.Sort(list)
		return slices.DeleteFunc(list, func(s string) bool { return s == "security.selinux" || s == "" })
	}
	want := []string{"user.note"}
	if root {
		want = []string{"security.capability", "user.note"}
	}
	if got := attrs("x"); !slices.Equal(got, want) {
		t.Errorf("x has attributes %q, want %q", got, want)
	}
	if got := attrs("xd"); !slices.Equal(got, []string{"user.note"}) {
		t.Errorf("xd has attributes %q", got)
	}
	if stats.Size != int64(len("hello")+len("z")+len("not UTF-8")) || stats.Entries != 19 {
		t.Errorf("stats %+v", stats)
	}
	if err := RemoveAll(c.root); err != nil {
		t.Errorf("cannot be removed: %v", err)
	}
	if _, err := os.Lstat(c.root); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after RemoveAll: %v", err)
	}
}

// TestOverlay lets the kernel be the judge of whiteouts and opaque directories.
func TestOverlay(t *testing.T) {
	base := makeTar(t, dir("keep"), file("keep/a", "1"), file("keep/b", "1"), dir("gone"), file("gone/x", "1"),
		dir("fresh"), file("fresh/old", "1"), dir("again"), file("again/old", "1"), file("file", "1"), dir("auf"), file("auf/x", "1"))
	top := makeTar(t,
		file("keep/.wh.a", ""), file("keep/c", "2"),
		file(".wh.gone", ""),
		dir("fresh"), file("fresh/.wh..wh..opq", ""), file("fresh/new", "2"),
		file(".wh.again", ""), file("again/new", "2"), // removed and made anew
		file("file", "2"), file(".wh.file", ""), // does not hide its own layer's file
		file(".wh..wh.plnk/1.2", ""), file("auf/.wh..wh.aufs", ""), // of AUFS, to be ignored
	)
	late := makeTar(t, file("fresh/.wh.new", ""), file("auf/.wh.none", ""), dir("gone"), file("gone/y", "3"))
	want := []string{"again/", "again/new=2", "auf/", "auf/x=1", "file=2", "fresh/", "gone/", "gone/y=3", "keep/", "keep/b=1", "keep/c=2"}

	s := newStore(t, nil)
	reg := newRegistry(t)
	ref := reg.push(t, "overlay:1", imageOf(t, layerOf(t, base), zstdLayer(t, top), layerOf(t, late)))
	img, err := s.Resolve(t.Context(), ref, PullIfMissing, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := mergedTree(t, img); !slices.Equal(got, want) {
		t.Errorf("merged\n%q, want\n%q", got, want)
	}

	// overlayfs ignores the opaque attribute on a layer's root; the lower layers must go instead.
	root := makeTar(t, file(".wh..wh..opq", ""), file("only", "4"))
	img, err = s.Resolve(t.Context(), reg.push(t, "overlay:2", imageOf(t, layerOf(t, base), layerOf(t, root))), PullIfMissing, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := mergedTree(t, img); !slices.Equal(got, []string{"only=4"}) {
		t.Errorf("merged %q", got)
	}
}

func TestMapOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("giving files away needs root")
	}
	s := newStore(t, &StoreOptions{MapOwner: func(uid, gid int) (int, int) {
		if uid == 5 {
			return -1, -1
		}
		return 200_000 + uid, 300_000 + gid
	}})
	p := filepath.Join(tempDir(t), "root.tar")
	data := makeTar(t, dir("d"), entry{name: "d/f", typ: tar.TypeReg, mode: 0o4755, uid: 1, gid: 2}, file("i/f", ""),
		entry{name: "five", typ: tar.TypeReg, mode: 0o644, uid: 5})
	if err := os.WriteFile(p, data, 0o600); err != nil {
		t.Fatal(err)
	}
	img, err := s.Resolve(t.Context(), mustParse(t, "tar:"+p), PullIfMissing, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{".": "200000:300000", "d": "200000:300000", "i": "200000:300000", "d/f": "200001:300002", "five": "0:0"} {
		fi, err := os.Lstat(filepath.Join(img.Layers[0].Dir, name))
		if err != nil {
			t.Fatal(err)
		}
		st := fi.Sys().(*syscall.Stat_t)
		if got := fmt.Sprintf("%d:%d", st.Uid, st.Gid); got != want {
			t.Errorf("%s belongs to %s, want %s", name, got, want)
		}
		if name == "d/f" && st.Mode&unix.S_ISUID == 0 {
			t.Error("set-user-ID bit lost")
		}
	}
	if _, err := OpenStore(s.Dir(), nil); err == nil || !strings.Contains(err.Error(), "another directory") {
		t.Errorf("opened with another mapping: %v", err)
	}
}

func TestUnpackStopsWhenCancelled(t *testing.T) {
	c := newCage(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.unpack(ctx, makeTar(t, file("a", "x"))); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestRemoveAll(t *testing.T) {
	d := tempDir(t)
	victim := filepath.Join(d, "victim")
	if err := os.MkdirAll(filepath.Join(victim, "closed", "in"), 0o755); err != nil {
		t.Fatal(err)
	}
	// Deeper than a path can say, and than a process may have open files.
	parent, err := openDirectory(victim)
	if err != nil {
		t.Fatal(err)
	}
	for range 1500 {
		if err := unix.Mkdirat(parent, "d", 0o700); err != nil {
			t.Fatal(err)
		}
		next, err := openBeneath(parent, "d", unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(parent)
		parent = next
	}
	unix.Close(parent)
	for i := range 1200 {
		if err := os.WriteFile(filepath.Join(victim, fmt.Sprint("f", i)), nil, 0o400); err != nil {
			t.Fatal(err)
		}
	}
	canary := filepath.Join(d, "canary")
	for _, err := range []error{
		os.Mkdir(canary, 0o700), os.WriteFile(filepath.Join(canary, "f"), nil, 0o600),
		os.Symlink(canary, filepath.Join(victim, "link")), os.Symlink(canary, filepath.Join(victim, "closed", "link")),
		os.Chmod(filepath.Join(victim, "closed", "in"), 0), os.Chmod(filepath.Join(victim, "closed"), 0), os.Chmod(victim, 0o500),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := RemoveAll(victim); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(victim); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("still there: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(canary, "f")); err != nil {
		t.Errorf("followed a link: %v", err)
	}
	if err := RemoveAll(victim); err != nil {
		t.Errorf("the second time: %v", err)
	}
	link := filepath.Join(d, "toplink")
	if err := os.Symlink(canary, link); err != nil {
		t.Fatal(err)
	}
	if err := RemoveAll(link); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(filepath.Join(canary, "f")); err != nil {
		t.Errorf("followed the link it was given: %v", err)
	}
	for _, bad := range []string{"/", "", ".", ".."} {
		if err := RemoveAll(bad); err == nil {
			t.Errorf("RemoveAll(%q) did something", bad)
		}
	}
}

// TestRemoveAllStopsAtMounts needs root to mount something.
// TestRemoveAllAtOnce: those who remove the same tree do not fail each other.
func TestRemoveAllAtOnce(t *testing.T) {
	d := tempDir(t)
	victim := filepath.Join(d, "victim")
	for range 30 {
		for i := range 10 {
			dir := filepath.Join(victim, strconv.Itoa(i), "a", "b", "c")
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, "f"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() {
				if err := RemoveAll(victim); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if _, err := os.Lstat(victim); !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
}

func TestRemoveAllStopsAtMounts(t *testing.T) {
	d := tempDir(t)
	mnt := filepath.Join(d, "victim", "mnt")
	if err := os.MkdirAll(mnt, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", mnt, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("mounting needs root: %v", err)
	}
	defer unix.Unmount(mnt, unix.MNT_DETACH)
	if err := os.WriteFile(filepath.Join(mnt, "precious"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := RemoveAll(filepath.Join(d, "victim")); err == nil || !strings.Contains(err.Error(), "mounted") {
		t.Errorf("got %v", err)
	}
	if _, err := os.Lstat(filepath.Join(mnt, "precious")); err != nil {
		t.Errorf("emptied the mount: %v", err)
	}
}

// FuzzUnpack: no bytes whatever reach outside the root. Coverage varies with the file system, so
// give it -fuzzminimizetime 5x, or it minimizes all the time; and a TMPDIR on a tmpfs.
func FuzzUnpack(f *testing.F) {
	seeds := [][]byte{
		makeTar(f, dir("a"), file("a/b", "x"), symlink("a/l", "../../canary"), hardlink("h", "a/b")),
		makeTar(f, symlink("s", ".."), file("s/canary", "dead"), file("s/.wh.canary", "")),
		makeTar(f, file(".wh..wh..opq", ""), file("d/.wh.x", ""), dir("d/x"), entry{name: "p", typ: tar.TypeFifo}),
		makeTar(f, symlink("a", "b"), symlink("b", "c/.."), file("a/x/../y", "")),
		makeTar(f, entry{name: "x", typ: tar.TypeReg, pax: map[string]string{"SCHILY.xattr.user.a": "b"}}),
		makeTar(f, dir("a"), symlink("a", "/proc/self/cwd"), hardlink("b", "a/../canary"), file("a/canary", "")),
		sparseBomb(f)(nil),
		{0x1f, 0x8b, 8}, {0x28, 0xb5, 0x2f, 0xfd, 0},
	}
	for _, s := range seeds {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c := newCage(t)
		_, err := c.unpack(t.Context(), data)
		c.check(t)
		noDevices(t, c.root)
		if err == nil {
			// What was accepted can be taken away again.
			dir, err := os.Stat(c.dir)
			if err != nil {
				t.Fatal(err)
			}
			if err := RemoveAll(c.root); err != nil {
				t.Error(err)
			}
			// It is in the root's parent that the removal shows.
			if err := os.Chtimes(c.dir, dir.ModTime(), dir.ModTime()); err != nil {
				t.Fatal(err)
			}
			c.check(t)
		}
	})
}
