package repository

import (
	"bufio"
	"bytes"
	"crypto/sha1"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-git/go-git/v5/plumbing"
	"golang.org/x/sys/unix"
)

// go-git's index reads every field by reflection, has no cache tree and no
// lock: on 50,000 files that alone takes longer than all of git's status.

// Modes of entries.
const (
	modeDir    = 0o040000
	modeFile   = 0o100644
	modeExec   = 0o100755
	modeLink   = 0o120000
	modeModule = 0o160000
)

// Flags of entries.
const (
	flagAssumeValid  = 0x8000
	flagExtended     = 0x4000
	flagStage        = 0x3000
	flagSkipWorktree = 0x4000 // of the extended ones
	flagIntentToAdd  = 0x2000
)

// stat is what the index knows of a file, to tell that it is unchanged.
type stat struct {
	ctime, ctimeNsec, mtime, mtimeNsec, dev, ino, uid, gid, size uint32
}

type entry struct {
	path     string
	hash     plumbing.Hash
	mode     uint32
	flags    uint16
	extended uint16
	stat     stat
	// fresh says that the stat has just been taken of a file that is as the
	// entry says.
	fresh bool
}

func (e *entry) stage() int        { return int(e.flags&flagStage) >> 12 }
func (e *entry) intentToAdd() bool { return e.extended&flagIntentToAdd != 0 }

// index is the file .git/index.
type index struct {
	entries []entry // by path and stage
	tree    *cacheTree
	undo    []byte // the extension REUC as it is
	// written is when the file was, zero if there is none: what was changed
	// since cannot be told apart by its stat.
	written time.Time
}

// cacheTree remembers which trees the index would be written as.
type cacheTree struct {
	name  string
	count int // of entries; -1 if it is not known
	hash  plumbing.Hash
	subs  []*cacheTree
}

func (t *cacheTree) sub(name string) *cacheTree {
	if t == nil {
		return nil
	}
	for _, s := range t.subs {
		if s.name == name {
			return s
		}
	}
	return nil
}

// invalidate forgets the trees that a path is in.
func (t *cacheTree) invalidate(path string) {
	for t != nil {
		t.count = -1
		dir, rest, ok := strings.Cut(path, "/")
		if !ok {
			// A file may have taken a directory's place.
			t.subs = slices.DeleteFunc(t.subs, func(s *cacheTree) bool { return s.name == dir })
			return
		}
		t, path = t.sub(dir), rest
	}
}

const (
	// maxIndex bounds an index, in bytes: some ten million files.
	maxIndex = 1 << 30
	// maxDepth bounds how deep directories are nested.
	maxDepth = 1024
)

func readIndex(file string) (*index, error) {
	f, err := openRegular(file, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return &index{}, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() > maxIndex {
		return nil, fmt.Errorf("%s: more than %d bytes", file, maxIndex)
	}
	b := make([]byte, info.Size())
	if _, err := io.ReadFull(f, b); err != nil {
		return nil, err
	}
	idx, err := parseIndex(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	idx.written = info.ModTime()
	return idx, nil
}

var errIndex = errors.New("not a valid index")

// parseIndex reads the format of git's Documentation/gitformat-index.txt.
func parseIndex(b []byte) (*index, error) {
	if len(b) < 12+sha1.Size || string(b[:4]) != "DIRC" {
		return nil, errIndex
	}
	version := binary.BigEndian.Uint32(b[4:])
	if version < 2 || version > 4 {
		return nil, failf(501, "NOT_SUPPORTED", "the index has version %d; there are 2 to 4", version)
	}
	count := int(binary.BigEndian.Uint32(b[8:]))
	// index.skipHash leaves zeros.
	if sum := [sha1.Size]byte(b[len(b)-sha1.Size:]); sum != [sha1.Size]byte{} && sum != sha1.Sum(b[:len(b)-sha1.Size]) {
		return nil, errIndex
	}
	body := b[12 : len(b)-sha1.Size]
	if count > len(body)/62 && version < 4 || count > len(body)/20 {
		return nil, errIndex
	}
	idx := &index{entries: make([]entry, count)}
	// One string for all paths: fewer objects for the collector to look at.
	text := string(body)
	at := 0
	previous, nameless := "", false
	for i := range idx.entries {
		start := at
		if len(body)-at < 62 {
			return nil, errIndex
		}
		e := &idx.entries[i]
		f := body[at:]
		u := func(n int) uint32 { return binary.BigEndian.Uint32(f[4*n:]) }
		e.stat = stat{u(0), u(1), u(2), u(3), u(4), u(5), u(7), u(8), u(9)}
		e.mode = u(6)
		copy(e.hash[:], f[40:60])
		e.flags = binary.BigEndian.Uint16(f[60:])
		at += 62
		if e.flags&flagExtended != 0 {
			if version < 3 || len(body)-at < 2 {
				return nil, errIndex
			}
			e.extended = binary.BigEndian.Uint16(body[at:])
			at += 2
		}
		if version == 4 {
			strip, n := offsetInt(body[at:])
			if n == 0 || strip > len(previous) {
				return nil, errIndex
			}
			at += n
			end := bytes.IndexByte(body[at:], 0)
			if end < 0 {
				return nil, errIndex
			}
			e.path = previous[:len(previous)-strip] + text[at:at+end]
			at += end + 1
		} else {
			end := bytes.IndexByte(body[at:], 0)
			if end < 0 {
				return nil, errIndex
			}
			e.path = text[at : at+end]
			at = start + (at+end-start+8)&^7
			if at > len(body) {
				return nil, errIndex
			}
		}
		// Nameless ones are of a split index, which an extension says below.
		if e.path == "" {
			nameless = true
		} else if i > 0 && compareEntries(&idx.entries[i-1], e) >= 0 {
			return nil, errIndex
		}
		previous = e.path
	}
	for len(body)-at >= 8 {
		name, size := text[at:at+4], int(binary.BigEndian.Uint32(body[at+4:]))
		at += 8
		if size > len(body)-at {
			return nil, errIndex
		}
		data := body[at : at+size]
		at += size
		switch {
		case name == "TREE":
			if t, rest := parseCacheTree(data, 0); t != nil && len(rest) == 0 && t.name == "" && (t.count <= len(idx.entries)) {
				idx.tree = t
			}
		case name == "REUC":
			idx.undo = bytes.Clone(data)
		case name[0] < 'A' || name[0] > 'Z':
			// In lower case: not to be ignored. "link" is a split index, "sdir"
			// a sparse one.
			return nil, failf(501, "NOT_SUPPORTED", "the index has the extension %q, which the agent cannot read: run git update-index --no-split-index, or git sparse-checkout disable", name)
		}
	}
	if nameless {
		return nil, errIndex
	}
	return idx, nil
}

// offsetInt reads the variable width encoding of pack offsets; n is 0 if there
// is none.
func offsetInt(b []byte) (v, n int) {
	for n < len(b) && n < 5 {
		c := b[n]
		if n > 0 {
			v++
		}
		v = v<<7 | int(c&0x7f)
		n++
		if c&0x80 == 0 {
			return v, n
		}
	}
	return 0, 0
}

func parseCacheTree(b []byte, depth int) (*cacheTree, []byte) {
	end := bytes.IndexByte(b, 0)
	if end < 0 || depth > maxDepth {
		return nil, nil
	}
	t := &cacheTree{name: string(b[:end])}
	b = b[end+1:]
	line := bytes.IndexByte(b, '\n')
	if line < 0 {
		return nil, nil
	}
	count, subs, ok := strings.Cut(string(b[:line]), " ")
	n, err := strconv.Atoi(count)
	m, err2 := strconv.Atoi(subs)
	if !ok || err != nil || err2 != nil || m < 0 || m > len(b) {
		return nil, nil
	}
	b = b[line+1:]
	if t.count = max(n, -1); n >= 0 {
		if len(b) < sha1.Size {
			return nil, nil
		}
		copy(t.hash[:], b)
		b = b[sha1.Size:]
	}
	for range m {
		sub, rest := parseCacheTree(b, depth+1)
		if sub == nil {
			return nil, nil
		}
		t.subs = append(t.subs, sub)
		b = rest
	}
	return t, b
}

func appendCacheTree(b []byte, t *cacheTree) []byte {
	b = append(append(b, t.name...), 0)
	b = fmt.Appendf(b, "%d %d\n", t.count, len(t.subs))
	if t.count >= 0 {
		b = append(b, t.hash[:]...)
	}
	for _, s := range t.subs {
		b = appendCacheTree(b, s)
	}
	return b
}

func compareEntries(a, b *entry) int {
	if c := strings.Compare(a.path, b.path); c != 0 {
		return c
	}
	return a.stage() - b.stage()
}

// write writes the index. Entries whose files may have changed since the old
// index was written without their stat showing it get the size 0, as git does
// it, for them to be looked at again.
func (x *index) write(w io.Writer) error {
	version := uint32(2)
	for i := range x.entries {
		e := &x.entries[i]
		if e.extended != 0 {
			version = 3
		}
		if !e.fresh && x.racy(e) {
			e.stat.size = 0
		}
	}
	hash := sha1.New()
	out := bufio.NewWriterSize(io.MultiWriter(w, hash), 256<<10)
	var head [12]byte
	copy(head[:], "DIRC")
	binary.BigEndian.PutUint32(head[4:], version)
	binary.BigEndian.PutUint32(head[8:], uint32(len(x.entries)))
	out.Write(head[:])
	var buf []byte
	for i := range x.entries {
		e := &x.entries[i]
		s := &e.stat
		buf = buf[:0]
		for _, v := range [...]uint32{s.ctime, s.ctimeNsec, s.mtime, s.mtimeNsec, s.dev, s.ino, e.mode, s.uid, s.gid, s.size} {
			buf = binary.BigEndian.AppendUint32(buf, v)
		}
		buf = append(buf, e.hash[:]...)
		flags := e.flags&(flagAssumeValid|flagStage) | uint16(min(len(e.path), 0xfff))
		if e.extended != 0 {
			flags |= flagExtended
		}
		buf = binary.BigEndian.AppendUint16(buf, flags)
		if e.extended != 0 {
			buf = binary.BigEndian.AppendUint16(buf, e.extended)
		}
		buf = append(buf, e.path...)
		buf = append(buf, make([]byte, 8-len(buf)%8)...)
		out.Write(buf)
	}
	extension := func(name string, data []byte) {
		out.WriteString(name)
		out.Write(binary.BigEndian.AppendUint32(nil, uint32(len(data))))
		out.Write(data)
	}
	if x.tree != nil {
		extension("TREE", appendCacheTree(nil, x.tree))
	}
	if x.undo != nil {
		extension("REUC", x.undo)
	}
	if err := out.Flush(); err != nil {
		return err
	}
	_, err := w.Write(hash.Sum(nil))
	return err
}

// racy says that a file may have changed after its stat was taken although that
// is still the same: it was written when the index was.
func (x *index) racy(e *entry) bool {
	if x.written.IsZero() || e.mode == modeModule {
		return false
	}
	sec, nsec := x.written.Unix(), int64(x.written.Nanosecond())
	return int64(e.stat.mtime) > sec || int64(e.stat.mtime) == sec && (int64(e.stat.mtimeNsec) >= nsec || e.stat.mtimeNsec == 0)
}

// search returns where a path's first entry is or would be.
func (x *index) search(path string) (int, bool) {
	return slices.BinarySearchFunc(x.entries, path, func(e entry, p string) int {
		if c := strings.Compare(e.path, p); c != 0 {
			return c
		}
		// The first of several stages.
		return 0
	})
}

// span returns the entries of a path: several while it is unmerged.
func (x *index) span(path string) (lo, hi int) {
	lo, ok := x.search(path)
	if !ok {
		return lo, lo
	}
	for hi = lo + 1; hi < len(x.entries) && x.entries[hi].path == path; hi++ {
	}
	for lo > 0 && x.entries[lo-1].path == path {
		lo--
	}
	return lo, hi
}

// get is the entry of a merged path, or nil.
func (x *index) get(path string) *entry {
	lo, hi := x.span(path)
	if hi-lo == 1 && x.entries[lo].stage() == 0 {
		return &x.entries[lo]
	}
	return nil
}

// under returns the entries below a directory; "" is all.
func (x *index) under(dir string) (lo, hi int) {
	if dir == "" {
		return 0, len(x.entries)
	}
	lo, _ = slices.BinarySearchFunc(x.entries, dir+"/", func(e entry, p string) int { return strings.Compare(e.path, p) })
	hi, _ = slices.BinarySearchFunc(x.entries, dir+"0", func(e entry, p string) int { return strings.Compare(e.path, p) })
	return lo, hi
}

// change replaces the entries of paths; nil deletes. It takes out what is in
// the way: a file where a directory is now and the other way round.
func (x *index) change(changes map[string]*entry) {
	if len(changes) == 0 {
		return
	}
	drop := map[string]bool{}
	for path, e := range changes {
		x.tree.invalidate(path)
		if e == nil {
			continue
		}
		for i := strings.IndexByte(path, '/'); i >= 0; {
			parent := path[:i]
			if _, also := changes[parent]; !also {
				drop[parent] = true
			}
			next := strings.IndexByte(path[i+1:], '/')
			if next < 0 {
				break
			}
			i += 1 + next
		}
	}
	kept := x.entries[:0:0]
	kept = slices.Grow(kept, len(x.entries)+len(changes))
	for _, e := range x.entries {
		if _, ok := changes[e.path]; !ok && !drop[e.path] {
			kept = append(kept, e)
		} else if !ok {
			x.tree.invalidate(e.path)
		}
	}
	var files []string
	for path, e := range changes {
		if e != nil {
			kept = append(kept, *e)
			files = append(files, path)
		}
	}
	slices.SortFunc(kept, func(a, b entry) int { return compareEntries(&a, &b) })
	x.entries = kept
	// Whatever is below what has become a file.
	for _, path := range files {
		if lo, hi := x.under(path); lo < hi {
			for _, e := range x.entries[lo:hi] {
				x.tree.invalidate(e.path)
			}
			x.entries = slices.Delete(x.entries, lo, hi)
		}
	}
}

// statOf is what the index remembers of a file.
func statOf(st *unix.Stat_t) stat {
	return stat{
		ctime: uint32(st.Ctim.Sec), ctimeNsec: uint32(st.Ctim.Nsec), mtime: uint32(st.Mtim.Sec), mtimeNsec: uint32(st.Mtim.Nsec),
		dev: uint32(st.Dev), ino: uint32(st.Ino), uid: st.Uid, gid: st.Gid, size: uint32(st.Size),
	}
}

// modeOf is the mode of a file in the index, 0 if it cannot be there.
func modeOf(st *unix.Stat_t) uint32 {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		if st.Mode&0o100 != 0 {
			return modeExec
		}
		return modeFile
	case unix.S_IFLNK:
		return modeLink
	case unix.S_IFDIR:
		return modeDir
	}
	return 0
}

// openRegular opens a file for reading, unless it is a link at its last name
// where flag says O_NOFOLLOW, or anything but a regular file.
func openRegular(file string, flag int) (*os.File, error) {
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NONBLOCK|flag, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s: not a regular file", filepath.Base(file))
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
