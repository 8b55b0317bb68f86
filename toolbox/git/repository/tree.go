package repository

import (
	"bytes"
	"fmt"
	"sort"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"
)

// treeEntry is a line of a tree.
type treeEntry struct {
	name string
	mode uint32
	hash plumbing.Hash
}

// key is what entries of a tree are sorted by.
func (e *treeEntry) key() string {
	if e.mode == modeDir {
		return e.name + "/"
	}
	return e.name
}

// maxFiles bounds a tree with all that is below it: a few objects can make up
// more files than any disk holds.
const maxFiles = 1_000_000

func (r *Repository) tree(hash plumbing.Hash) ([]treeEntry, error) {
	if hash == emptyTree {
		return nil, nil
	}
	b, err := r.object(plumbing.TreeObject, hash, maxTree)
	if err != nil {
		return nil, err
	}
	return parseTree(hash, b)
}

var emptyTree = plumbing.NewHash("4b825dc642cb6eb9a060e54bf8d69288fbee4904")

func parseTree(hash plumbing.Hash, b []byte) ([]treeEntry, error) {
	var entries []treeEntry
	text := string(b)
	for at := 0; at < len(b); {
		end := bytes.IndexByte(b[at:], 0)
		if end < 0 || len(b)-at-end-1 < 20 {
			return nil, failf(422, "", "tree %s is cut off", hash)
		}
		mode, name, ok := strings.Cut(text[at:at+end], " ")
		if !ok || name == "" {
			return nil, failf(422, "", "tree %s has an entry without a name", hash)
		}
		e := treeEntry{name: name}
		for _, c := range mode {
			if c < '0' || c > '7' || e.mode > 0o7777777 {
				return nil, failf(422, "", "tree %s has an entry with the mode %q", hash, clip(mode))
			}
			e.mode = e.mode<<3 | uint32(c-'0')
		}
		// As git reads modes of old.
		switch e.mode & 0o170000 {
		case 0o100000:
			if e.mode&0o100 != 0 {
				e.mode = modeExec
			} else {
				e.mode = modeFile
			}
		case modeDir, modeLink, modeModule:
			e.mode &= 0o170000
		default:
			return nil, failf(422, "", "tree %s has an entry with the mode %q", hash, clip(mode))
		}
		copy(e.hash[:], b[at+end+1:])
		at += end + 21
		if n := len(entries); n > 0 && entries[n-1].key() >= e.key() {
			return nil, failf(422, "", "tree %s is not sorted", hash)
		}
		if e.mode == modeDir {
			// The same name as a file, perhaps a link that leads elsewhere.
			if i := sort.Search(len(entries), func(i int) bool { return entries[i].key() >= e.name }); i < len(entries) && entries[i].key() == e.name {
				return nil, failf(422, "", "tree %s has %q twice", hash, clip(e.name))
			}
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// checkPath is git's verify_path: what may be in an index, and so be written to
// a working tree.
func checkPath(p string, mode uint32) error {
	for part := range strings.SplitSeq(p, "/") {
		switch part {
		case "", ".", "..":
			return failf(422, "", "the repository has a path %q, which could be outside of it", clip(p))
		}
		if isDotGit(part) {
			return failf(422, "", "the repository has a path %q, which is git's own", clip(p))
		}
		if mode == modeLink && strings.EqualFold(part, ".gitmodules") {
			return failf(422, "", "the repository has %q as a link", clip(p))
		}
	}
	if strings.IndexByte(p, 0) >= 0 || len(p) > 4095 {
		return failf(422, "", "the repository has a path of %d bytes, which no file can have", len(p))
	}
	return nil
}

// isDotGit says whether a file system may take a name for ".git": one that does
// not tell cases apart, NTFS with its short names and streams, or HFS+ with
// characters that it leaves out.
func isDotGit(name string) bool {
	if len(name) < 4 || name[0] != '.' && name[0] != 'g' && name[0] != 'G' && name[0] < 0x80 {
		return false
	}
	for part := range strings.SplitSeq(name, `\`) {
		stem, _, _ := strings.Cut(part, ":")
		stem = strings.TrimRight(stem, " .")
		if strings.EqualFold(stem, ".git") || strings.EqualFold(stem, "git~1") {
			return true
		}
	}
	visible := strings.Map(func(c rune) rune {
		if c >= 0x200c && c <= 0x200f || c >= 0x202a && c <= 0x202e || c >= 0x206a && c <= 0x206f || c == 0xfeff {
			return -1
		}
		return c
	}, name)
	return strings.EqualFold(visible, ".git")
}

// flatten lists all files of a tree in the order of an index, with the cache
// tree of an index that has just these.
func (r *Repository) flatten(hash plumbing.Hash) ([]treeEntry, *cacheTree, error) {
	var files []treeEntry
	if hash == plumbing.ZeroHash {
		return nil, nil, nil
	}
	// Counted first: a bomb is told by its few trees, not by its many files.
	if _, err := r.count(hash, map[plumbing.Hash]int{}, 0); err != nil {
		return nil, nil, err
	}
	t, err := r.flattenInto(&files, hash, "", 0)
	return files, t, err
}

// count returns how many files a tree has, or an error if they are too many.
func (r *Repository) count(hash plumbing.Hash, known map[plumbing.Hash]int, depth int) (int, error) {
	if n, ok := known[hash]; ok {
		return n, nil
	}
	if depth > maxDepth {
		return 0, failf(422, "", "the repository has directories nested more than %d deep", maxDepth)
	}
	entries, err := r.tree(hash)
	if err != nil {
		return 0, err
	}
	n := 0
	for _, e := range entries {
		more := 1
		if e.mode == modeDir {
			if more, err = r.count(e.hash, known, depth+1); err != nil {
				return 0, err
			}
		}
		if n += more; n > maxFiles {
			return 0, failf(422, "", "the repository has more than %d files", maxFiles)
		}
	}
	known[hash] = n
	return n, nil
}

func (r *Repository) flattenInto(files *[]treeEntry, hash plumbing.Hash, prefix string, depth int) (*cacheTree, error) {
	if depth > maxDepth {
		return nil, failf(422, "", "the repository has directories nested more than %d deep", maxDepth)
	}
	entries, err := r.tree(hash)
	if err != nil {
		return nil, err
	}
	t := &cacheTree{hash: hash}
	for _, e := range entries {
		e.name = prefix + e.name
		if e.mode == modeDir {
			if err := checkPath(e.name, e.mode); err != nil {
				return nil, err
			}
			sub, err := r.flattenInto(files, e.hash, e.name+"/", depth+1)
			if err != nil {
				return nil, err
			}
			sub.name = e.name[len(prefix):]
			t.subs = append(t.subs, sub)
			t.count += sub.count
			continue
		}
		if err := checkPath(e.name, e.mode); err != nil {
			return nil, err
		}
		*files = append(*files, e)
		t.count++
		if len(*files) > maxFiles {
			return nil, failf(422, "", "the repository has more than %d files", maxFiles)
		}
	}
	return t, nil
}

// difference is a path that is not the same in a tree and an index.
type difference struct {
	path string
	tree *treeEntry // nil if it is not there
	idx  *entry
}

// diffIndex compares a tree with an index. Trees that the index remembers are
// not even read.
func (r *Repository) diffIndex(hash plumbing.Hash, x *index) ([]difference, error) {
	d := &differ{r: r, x: x}
	if hash == plumbing.ZeroHash {
		hash = emptyTree
	}
	err := d.walk(hash, "", 0, len(x.entries), x.tree, 0)
	return d.found, err
}

type differ struct {
	r     *Repository
	x     *index
	found []difference
	files int
}

func (d *differ) add(lo, hi int) {
	for i := lo; i < hi; i++ {
		if e := &d.x.entries[i]; e.stage() == 0 && !e.intentToAdd() {
			d.found = append(d.found, difference{path: e.path, idx: e})
		}
	}
}

func (d *differ) walk(hash plumbing.Hash, prefix string, lo, hi int, known *cacheTree, depth int) error {
	if known != nil && known.count == hi-lo && known.hash == hash {
		return nil
	}
	if depth > maxDepth {
		return failf(422, "", "the repository has directories nested more than %d deep", maxDepth)
	}
	entries, err := d.r.tree(hash)
	if err != nil {
		return err
	}
	i := lo
	for n := range entries {
		e := entries[n]
		if d.files++; d.files > maxFiles {
			return failf(422, "", "the repository has more than %d files", maxFiles)
		}
		path := prefix + e.name
		full := path
		if e.mode == modeDir {
			full += "/"
		}
		start := i
		for i < hi && d.x.entries[i].path < full {
			i++
		}
		d.add(start, i)
		if e.mode == modeDir {
			end := i + sort.Search(hi-i, func(k int) bool { return d.x.entries[i+k].path >= path+"0" })
			if err := d.walk(e.hash, full, i, end, known.sub(e.name), depth+1); err != nil {
				return err
			}
			i = end
			continue
		}
		e.name = path
		start = i
		for i < hi && d.x.entries[i].path == path {
			i++
		}
		switch {
		case start == i:
			d.found = append(d.found, difference{path: path, tree: &e})
		case d.x.entries[start].stage() != 0:
		default:
			have := &d.x.entries[start]
			if have.intentToAdd() {
				d.found = append(d.found, difference{path: path, tree: &e})
			} else if have.hash != e.hash || have.mode != e.mode {
				d.found = append(d.found, difference{path: path, tree: &e, idx: have})
			}
		}
	}
	d.add(i, hi)
	return nil
}

// writeTree writes the trees that the index stands for. What has not changed
// since they were last written is not written again.
func (r *Repository) writeTree(x *index) (plumbing.Hash, error) {
	for i := range x.entries {
		if x.entries[i].stage() != 0 {
			return plumbing.ZeroHash, failf(409, "GIT_MERGE_CONFLICT", "%s is unmerged: resolve the conflict and add the file", clip(x.entries[i].path))
		}
	}
	t, err := r.writeTreeOf(x, 0, len(x.entries), "", x.tree, 0)
	if err != nil {
		return plumbing.ZeroHash, err
	}
	x.tree = t
	return t.hash, nil
}

func (r *Repository) writeTreeOf(x *index, lo, hi int, prefix string, known *cacheTree, depth int) (*cacheTree, error) {
	if known != nil && known.count == hi-lo && known.count >= 0 && r.has(known.hash) {
		return known, nil
	}
	if depth > maxDepth {
		return nil, failf(422, "", "the repository has directories nested more than %d deep", maxDepth)
	}
	t := &cacheTree{count: hi - lo}
	var entries []treeEntry
	for i := lo; i < hi; {
		e := &x.entries[i]
		rest := e.path[len(prefix):]
		name, _, dir := strings.Cut(rest, "/")
		if !dir {
			i++
			if e.intentToAdd() {
				t.count = -1
				continue
			}
			entries = append(entries, treeEntry{rest, e.mode, e.hash})
			continue
		}
		full := prefix + name + "/"
		end := i + sort.Search(hi-i, func(k int) bool { return x.entries[i+k].path >= prefix+name+"0" })
		sub, err := r.writeTreeOf(x, i, end, full, known.sub(name), depth+1)
		if err != nil {
			return nil, err
		}
		sub.name = name
		if sub.count < 0 {
			t.count = -1
		}
		t.subs = append(t.subs, sub)
		if sub.hash != emptyTree {
			entries = append(entries, treeEntry{name, modeDir, sub.hash})
		}
		i = end
	}
	var b bytes.Buffer
	sort.Slice(entries, func(i, j int) bool { return entries[i].key() < entries[j].key() })
	for _, e := range entries {
		fmt.Fprintf(&b, "%o %s\x00", e.mode, e.name)
		b.Write(e.hash[:])
	}
	var err error
	t.hash, err = r.write(plumbing.TreeObject, b.Bytes())
	return t, err
}

// has says whether an object is there.
func (r *Repository) has(hash plumbing.Hash) bool {
	r.objects.Lock()
	defer r.objects.Unlock()
	return r.store.HasEncodedObject(hash) == nil
}

// write writes an object that is not there yet.
func (r *Repository) write(kind plumbing.ObjectType, b []byte) (plumbing.Hash, error) {
	hash := plumbing.ComputeHash(kind, b)
	r.objects.Lock()
	defer r.objects.Unlock()
	if r.store.HasEncodedObject(hash) == nil {
		return hash, nil
	}
	o := &plumbing.MemoryObject{}
	o.SetType(kind)
	if _, err := o.Write(b); err != nil {
		return hash, err
	}
	_, err := r.store.SetEncodedObject(o)
	return hash, err
}
