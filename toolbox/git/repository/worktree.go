package repository

import (
	"crypto/sha1"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"
	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona/toolbox/wire"
)

// checkout writes files of trees into the working tree.
type checkout struct {
	r *Repository
	x *index
	// force overwrites what is in the way.
	force bool
	attrs *attributes
	// real are directories that have been seen to be such.
	real map[string]bool
	// pointers counts files that are pointers of Git LFS.
	pointers int
	umask    os.FileMode
}

// checkout prepares for writing; blobs returns the content that attributes
// files will have.
func (r *Repository) checkout(x *index, files map[string]treeEntry, force bool) *checkout {
	c := &checkout{r: r, x: x, force: force, real: map[string]bool{"": true}, umask: umask()}
	work := r.worktreeAttributes(x)
	c.attrs = r.attributes(func(dir string) string {
		if e, ok := files[dir+".gitattributes"]; ok && e.mode != modeLink {
			return string(r.blob(e.hash))
		}
		return work.read(dir)
	})
	return c
}

// errObstructed says what is in the way of a path.
type errObstructed struct{ path string }

func (e errObstructed) Error() string { return e.path + " is in the way" }

// parents makes sure that all directories above a path are such, and no links.
func (c *checkout) parents(p string, make bool) error {
	for i := 0; ; i++ {
		n := strings.IndexByte(p[i:], '/')
		if n < 0 {
			return nil
		}
		i += n
		dir := p[:i]
		if c.real[dir] {
			continue
		}
		full := c.r.dir + "/" + dir
		info, err := os.Lstat(full)
		if err == nil && !info.IsDir() {
			if !make || !c.force {
				return errObstructed{dir}
			}
			if err := os.Remove(full); err != nil {
				return err
			}
			err = fs.ErrNotExist
			info = nil
		}
		if info == nil {
			if !make {
				return fs.ErrNotExist
			}
			if err := os.Mkdir(full, 0o777); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
		} else if err != nil {
			return err
		}
		c.real[dir] = true
	}
}

// lstat looks at a path without following any link on the way.
func (c *checkout) lstat(p string) (unix.Stat_t, error) {
	var st unix.Stat_t
	if err := c.parents(p, false); err != nil {
		return st, err
	}
	err := unix.Lstat(c.r.dir+"/"+p, &st)
	if err == unix.ENOTDIR {
		err = unix.ENOENT
	}
	return st, err
}

// remove deletes a tracked file, and the directories that this leaves empty.
func (c *checkout) remove(p string, mode uint32) error {
	if err := c.parents(p, false); err != nil {
		return nil // it is not there
	}
	full := c.r.dir + "/" + p
	err := os.Remove(full)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		if info, lerr := os.Lstat(full); lerr == nil && info.IsDir() {
			return nil // a submodule's files, or what is not tracked, stay
		}
		return fileError(err)
	}
	for dir := filepath.Dir(p); dir != "."; dir = filepath.Dir(dir) {
		if os.Remove(c.r.dir+"/"+dir) != nil {
			break
		}
		delete(c.real, dir)
	}
	return nil
}

// write writes a file and returns its entry of the index.
func (c *checkout) write(p string, e treeEntry) (*entry, error) {
	if err := checkPath(p, e.mode); err != nil {
		return nil, err
	}
	if err := c.parents(p, true); err != nil {
		return nil, c.obstructed(err)
	}
	full := c.r.dir + "/" + p
	out := &entry{path: p, hash: e.hash, mode: e.mode, fresh: true}
	info, err := os.Lstat(full)
	if err == nil && info.IsDir() {
		if e.mode == modeModule {
			return out, nil
		}
		// Empty by now, unless there is something that is not tracked.
		if err := os.Remove(full); err != nil {
			if !c.force {
				return nil, c.obstructed(errObstructed{p})
			}
			if err := os.RemoveAll(full); err != nil {
				return nil, fileError(err)
			}
		}
		for dir := range c.real {
			if dir == p || strings.HasPrefix(dir, p+"/") {
				delete(c.real, dir)
			}
		}
	} else if err == nil {
		if err := os.Remove(full); err != nil {
			return nil, fileError(err)
		}
	}
	switch e.mode {
	case modeModule:
		return out, fileError(os.Mkdir(full, 0o777))
	case modeLink:
		target, err := c.r.object(plumbing.BlobObject, e.hash, unix.PathMax)
		if err != nil {
			return nil, err
		}
		if err := os.Symlink(string(target), full); err != nil {
			return nil, fileError(err)
		}
	default:
		if err := c.file(full, p, e); err != nil {
			return nil, fileError(err)
		}
	}
	var st unix.Stat_t
	if err := unix.Lstat(full, &st); err != nil {
		return nil, fileError(err)
	}
	out.stat = statOf(&st)
	return out, nil
}

func (c *checkout) obstructed(err error) error {
	if e, ok := errors.AsType[errObstructed](err); ok {
		return failf(409, wire.CodeGitDirtyWorktree, "%s is in the way: move it or remove it", clip(e.path))
	}
	return fileError(err)
}

func (c *checkout) file(full, p string, e treeEntry) error {
	perm := os.FileMode(0o666)
	if e.mode == modeExec {
		perm = 0o777
	}
	f, err := os.OpenFile(full, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, perm)
	if err != nil {
		return err
	}
	if err := c.fill(f, p, e); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

func (c *checkout) fill(f *os.File, p string, e treeEntry) error {
	r := c.r
	conv := r.conversion(c.attrs, p)
	r.objects.Lock()
	o, err := r.store.EncodedObject(plumbing.BlobObject, e.hash)
	r.objects.Unlock()
	if err != nil {
		return fmt.Errorf("%s: blob %s: %w", p, e.hash, err)
	}
	if conv.eol == eolKeep && !conv.ident || o.Size() > maxConverted {
		rd, err := o.Reader()
		if err != nil {
			return err
		}
		defer rd.Close()
		if o.Size() < 1024 {
			b, err := io.ReadAll(rd)
			if err != nil {
				return err
			}
			if lfsPointer(b) {
				c.pointers++
			}
			_, err = f.Write(b)
			return err
		}
		_, err = io.CopyN(f, rd, o.Size())
		return err
	}
	b, err := r.object(plumbing.BlobObject, e.hash, maxConverted)
	if err != nil {
		return err
	}
	_, err = f.Write(conv.smudge(b, e.hash))
	return err
}

// Ways to go from one tree to another.
const (
	moveSafe  = iota // git checkout: what has been changed is kept or in the way
	moveForce        // git reset --hard
	moveMerge        // git reset --merge
	moveKeep         // git reset --keep
)

// conflictsShown is how many files an error names.
const conflictsShown = 10

// move brings index and working tree from one tree to another. It changes
// nothing if anything is in the way.
func (r *Repository) move(x *index, from, to plumbing.Hash, how int) (pointers int, err error) {
	files, cached, err := r.flatten(to)
	if err != nil {
		return 0, err
	}
	next := make(map[string]treeEntry, len(files))
	for _, f := range files {
		next[f.name] = f
	}
	before := map[string]treeEntry{}
	if how == moveSafe || how == moveKeep {
		old, _, err := r.flatten(from)
		if err != nil {
			return 0, err
		}
		for _, f := range old {
			before[f.name] = f
		}
	}
	c := r.checkout(x, next, how == moveForce)
	s := &scanner{r: r, x: x, fileMode: r.config.bool("core", "", "filemode", true), trustCtime: r.config.bool("core", "", "trustctime", true), attrs: r.worktreeAttributes(x)}
	// clean says whether the file is as its entry says, or missing.
	dirty := func(e *entry) (bool, error) {
		st, err := c.lstat(e.path)
		if err != nil {
			if _, ok := errors.AsType[errObstructed](err); ok || errors.Is(err, fs.ErrNotExist) {
				return false, nil
			}
			return false, fileError(err)
		}
		kind, err := s.compare(e, &st)
		if kind == changeDeleted && modeOf(&st) == modeDir {
			return false, nil // see inTheWay
		}
		return kind == changeModified, err
	}
	var conflicts []string
	var writes []treeEntry
	var removes []*entry
	kept := map[string]*entry{} // instead of what the tree says; nil for none
	var g *ignores
	if how != moveForce {
		g = r.ignoreRoot()
	}

	paths := make(map[string]struct{}, len(next))
	for p := range next {
		paths[p] = struct{}{}
	}
	for i := range x.entries {
		paths[x.entries[i].path] = struct{}{}
	}
	for p := range before {
		paths[p] = struct{}{}
	}
	for _, p := range sortedKeys(paths) {
		n, inNext := next[p]
		o, inOld := before[p]
		lo, hi := x.span(p)
		unmerged := hi-lo > 0 && x.entries[lo].stage() != 0
		var e *entry
		if hi-lo == 1 && !unmerged {
			e = &x.entries[lo]
		}
		sameIndex := !unmerged && (e == nil && !inNext || e != nil && inNext && e.hash == n.hash && e.mode == n.mode && !e.intentToAdd())
		write := func() {
			if inNext {
				writes = append(writes, n)
			} else if hi > lo {
				removes = append(removes, &x.entries[lo])
			}
		}
		// unlessDirty writes if the file is as the index says, or untracked and
		// of no interest.
		unlessDirty := func() error {
			if e == nil {
				if !inNext {
					return nil
				}
				way, err := r.inTheWay(c, p, n, g, x)
				if err != nil {
					return err
				}
				if way {
					conflicts = append(conflicts, p)
					return nil
				}
				write()
				return nil
			}
			bad, err := dirty(e)
			if err != nil {
				return err
			}
			if !bad {
				if st, lerr := c.lstat(p); lerr == nil && modeOf(&st) == modeDir && n.mode != modeModule && e.mode != modeModule {
					if bad, err = r.inTheWay(c, p, n, g, x); err != nil {
						return err
					}
				}
			}
			if bad {
				conflicts = append(conflicts, p)
				return nil
			}
			write()
			return nil
		}
		switch how {
		case moveForce:
			if sameIndex && e != nil {
				st, err := c.lstat(p)
				if err == nil {
					kind, err := s.compare(e, &st)
					if err != nil {
						return 0, err
					}
					if kind == 0 || e.mode == modeModule {
						kept[p] = e
						continue
					}
				}
			}
			write()
		case moveSafe:
			sameTrees := inOld == inNext && (!inOld || o.hash == n.hash && o.mode == n.mode)
			sameOld := !unmerged && (e == nil && !inOld || e != nil && inOld && e.hash == o.hash && e.mode == o.mode && !e.intentToAdd())
			switch {
			case unmerged:
				conflicts = append(conflicts, p)
			case sameTrees || sameIndex:
				kept[p] = e
			case !sameOld:
				conflicts = append(conflicts, p)
			default:
				if err := unlessDirty(); err != nil {
					return 0, err
				}
			}
		case moveKeep:
			sameTrees := inOld == inNext && (!inOld || o.hash == n.hash && o.mode == n.mode)
			if unmerged {
				conflicts = append(conflicts, p)
				continue
			}
			if sameTrees {
				// The index goes back to the tree, the file stays.
				switch {
				case sameIndex:
					kept[p] = e
				case inNext:
					kept[p] = &entry{path: p, hash: n.hash, mode: n.mode}
				}
				continue
			}
			if (e != nil) != inOld && !sameIndex || e != nil && inOld && (e.hash != o.hash || e.mode != o.mode) && !sameIndex {
				conflicts = append(conflicts, p)
				continue
			}
			if err := unlessDirty(); err != nil {
				return 0, err
			}
		case moveMerge:
			switch {
			case sameIndex:
				kept[p] = e
			case unmerged:
				write()
			default:
				if err := unlessDirty(); err != nil {
					return 0, err
				}
			}
		}
	}
	if len(conflicts) > 0 {
		more := ""
		if n := len(conflicts) - conflictsShown; n > 0 {
			conflicts, more = conflicts[:conflictsShown], fmt.Sprintf(" and %d more", n)
		}
		for i := range conflicts {
			conflicts[i] = clip(conflicts[i])
		}
		return 0, failf(409, wire.CodeGitDirtyWorktree, "local changes would be overwritten: commit them, or move or remove the files: %s%s", strings.Join(conflicts, ", "), more)
	}
	// What goes makes room for what comes.
	for _, e := range removes {
		if err := c.remove(e.path, e.mode); err != nil {
			return 0, err
		}
	}
	entries := make([]entry, 0, len(files))
	differ := []string{}
	for p, e := range kept {
		n, ok := next[p]
		if e != nil {
			entries = append(entries, *e)
		}
		if (e != nil) != ok || e != nil && (e.hash != n.hash || e.mode != n.mode || e.intentToAdd()) {
			differ = append(differ, p)
		}
	}
	for _, n := range writes {
		e, err := c.write(n.name, n)
		if err != nil {
			return 0, err
		}
		entries = append(entries, *e)
	}
	slices.SortFunc(entries, func(a, b entry) int { return compareEntries(&a, &b) })
	x.entries, x.tree, x.undo = entries, cached, nil
	for _, p := range differ {
		x.tree.invalidate(p)
	}
	return c.pointers, nil
}

func sortedKeys(m map[string]struct{}) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// inTheWay says whether something that is not tracked is where a file is to be
// written: it would be lost.
func (r *Repository) inTheWay(c *checkout, p string, n treeEntry, g *ignores, x *index) (bool, error) {
	st, err := c.lstat(p)
	if err != nil {
		if e, ok := errors.AsType[errObstructed](err); ok {
			// A tracked file in a directory's place is seen to by itself.
			lo, hi := x.span(e.path)
			return lo == hi && !r.ignoredAt(g, e.path), nil
		}
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		return false, fileError(err)
	}
	mode := modeOf(&st)
	if mode == modeDir {
		if n.mode == modeModule {
			return false, nil
		}
		// Fine if all that is in it is tracked, and so goes.
		found := false
		err := filepath.WalkDir(r.dir+"/"+p, func(full string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			name := strings.TrimPrefix(full, r.dir+"/")
			if lo, hi := x.span(name); lo == hi {
				found = true
				return filepath.SkipAll
			}
			return nil
		})
		return found, fileError(err)
	}
	return !r.ignoredAt(g, p), nil
}

// ignoredAt says whether an untracked file is ignored, by itself or with a
// directory that it is in.
func (r *Repository) ignoredAt(g *ignores, p string) bool {
	for i := 0; ; {
		n := strings.IndexByte(p[i:], '/')
		if n < 0 {
			return g.match(p, false)
		}
		i += n
		if g.match(p[:i], true) {
			return true
		}
		i++
		g = r.ignoreFile(g, p[:i])
	}
}

// pathspec chooses files.
type pathspec struct {
	text  string // relative to the repository; "" is all
	glob  bool
	found bool
}

// pathspecs checks what a request names.
func (r *Repository) pathspecs(files []string) ([]pathspec, error) {
	if len(files) == 0 {
		return nil, invalid("files is empty: name some, or . for all")
	}
	var specs []pathspec
	for _, f := range files {
		if f == "" || strings.IndexByte(f, 0) >= 0 {
			return nil, invalid("files has an empty name or one with a NUL byte")
		}
		if strings.HasPrefix(f, ":") {
			return nil, unsupported("%q: patterns that begin with a colon are not supported", clip(f))
		}
		p := f
		if filepath.IsAbs(p) {
			rel, err := filepath.Rel(r.dir, p)
			if err != nil {
				return nil, invalid("%q is outside of the repository", clip(f))
			}
			p = rel
		}
		p = filepath.Clean(p)
		if p == ".." || strings.HasPrefix(p, "../") {
			return nil, invalid("%q is outside of the repository", clip(f))
		}
		if p == "." {
			p = ""
		}
		specs = append(specs, pathspec{text: p, glob: strings.ContainsAny(p, `*?[\`)})
	}
	return specs, nil
}

// matches says whether one of specs is for a path, and notes which.
func matches(specs []pathspec, p string) bool {
	p = strings.TrimSuffix(p, "/")
	hit := false
	for i := range specs {
		s := &specs[i]
		if s.text == "" || p == s.text || strings.HasPrefix(p, s.text) && p[len(s.text)] == '/' || s.glob && wildmatch(s.text, p, false) {
			s.found, hit = true, true
		}
	}
	return hit
}

// unmatched is an error if one of specs was for no path.
func unmatched(specs []pathspec) error {
	for _, s := range specs {
		if !s.found && s.text != "" {
			return invalid("%q matches no file that git knows", clip(s.text))
		}
	}
	return nil
}

// Add is git add: what is below the names is in the index as it is in the
// working tree, deletions included.
func (r *Repository) Add(files []string) error {
	if err := r.needWorktree(); err != nil {
		return err
	}
	specs, err := r.pathspecs(files)
	if err != nil {
		return err
	}
	return r.lockedIndex(func(x *index) error {
		changes, _, err := r.scan(x, true, 0)
		if err != nil {
			return err
		}
		attrs := r.worktreeAttributes(x)
		c := &checkout{r: r, real: map[string]bool{"": true}}
		next := map[string]*entry{}
		stage := func(p string) error {
			e, err := r.stage(c, attrs, x, strings.TrimSuffix(p, "/"))
			next[strings.TrimSuffix(p, "/")] = e
			return err
		}
		for _, ch := range changes {
			if !matches(specs, ch.path) {
				continue
			}
			if ch.kind == changeDeleted {
				next[ch.path] = nil
			} else if err := stage(ch.path); err != nil {
				return err
			}
		}
		for i := range x.entries {
			e := &x.entries[i]
			if !matches(specs, e.path) || e.stage() == 0 {
				continue
			}
			if _, ok := next[e.path]; ok {
				continue
			}
			if _, err := c.lstat(e.path); err != nil {
				next[e.path] = nil
			} else if err := stage(e.path); err != nil {
				return err
			}
		}
		g := r.ignoreRoot()
		for _, s := range specs {
			if s.found || s.text == "" {
				continue
			}
			st, err := c.lstat(s.text)
			if err != nil {
				return invalid("%q matches no file", clip(s.text))
			}
			if r.ignoredAt(g, s.text) || modeOf(&st) == modeDir && g.match(s.text, true) {
				return invalid("%q is ignored by a .gitignore file", clip(s.text))
			}
		}
		x.change(next)
		return nil
	})
}

// stage writes a file's blob and returns its entry.
func (r *Repository) stage(c *checkout, attrs *attributes, x *index, p string) (*entry, error) {
	st, err := c.lstat(p)
	if err != nil {
		return nil, fileError(err)
	}
	mode := modeOf(&st)
	if err := checkPath(p, mode); err != nil {
		return nil, err
	}
	e := &entry{path: p, mode: mode, fresh: true}
	old := x.get(p)
	if mode == modeDir {
		sub, err := Open(r.dir+"/"+p, r.user)
		if err != nil {
			return nil, err
		}
		defer sub.Close()
		if _, e.hash, err = sub.head(); err != nil {
			return nil, err
		}
		if e.hash == plumbing.ZeroHash {
			return nil, invalid("%q is a repository without a commit: it cannot be added", clip(p))
		}
		e.mode = modeModule
		return e, nil
	}
	if mode == 0 {
		return nil, invalid("%q is neither a file, a link nor a directory", clip(p))
	}
	if old != nil && !r.config.bool("core", "", "filemode", true) && mode&0o170000 == 0o100000 && old.mode&0o170000 == 0o100000 {
		e.mode = old.mode
	}
	conv := r.conversion(attrs, p)
	if mode == modeLink {
		conv = conversion{}
	}
	if conv.encoding != "" {
		return nil, unsupported("%q has the working-tree-encoding %s, which the agent cannot convert: use git in the sandbox", clip(p), clip(conv.encoding))
	}
	if conv.filter != "" {
		return nil, unsupported("%q goes through the filter %q, a program that the agent does not run: use git in the sandbox", clip(p), clip(conv.filter))
	}
	b, f, err := r.content(p, &st, conv, func() []byte {
		if old == nil {
			return nil
		}
		return r.blob(old.hash)
	})
	if err != nil {
		return nil, fileError(err)
	}
	e.stat = statOf(&st)
	if f == nil {
		e.hash, err = r.write(plumbing.BlobObject, b)
		return e, fileError(err)
	}
	defer f.Close()
	if st.Size <= largeObject {
		if b, err = io.ReadAll(io.LimitReader(f, st.Size)); err == nil {
			e.hash, err = r.write(plumbing.BlobObject, b)
		}
		return e, fileError(err)
	}
	e.hash, err = r.writeLarge(f, st.Size)
	return e, fileError(err)
}

// writeLarge writes a blob that is not to be held in memory.
func (r *Repository) writeLarge(f *os.File, size int64) (plumbing.Hash, error) {
	h := sha1.New()
	fmt.Fprintf(h, "blob %d\x00", size)
	n, err := io.Copy(h, io.LimitReader(f, size))
	if err == nil && n != size {
		err = errors.New("the file became shorter while it was read")
	}
	if err != nil {
		return plumbing.ZeroHash, err
	}
	hash := plumbing.Hash(h.Sum(nil))
	if r.has(hash) {
		return hash, nil
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return hash, err
	}
	r.objects.Lock()
	defer r.objects.Unlock()
	w, header, err := r.store.LazyWriter()
	if err != nil {
		return hash, err
	}
	if err = header(plumbing.BlobObject, size); err == nil {
		_, err = io.CopyN(w, f, size)
	}
	return hash, errors.Join(err, w.Close())
}

// Reset is git reset.
func (r *Repository) Reset(mode, target string, files []string) error {
	if target == "" {
		target = "HEAD"
	}
	if mode == "" {
		mode = "mixed"
	}
	if !slices.Contains([]string{"soft", "mixed", "hard", "merge", "keep"}, mode) {
		return invalid("mode is %q; there are soft, mixed, hard, merge and keep", clip(mode))
	}
	if mode != "soft" {
		if err := r.needWorktree(); err != nil {
			return err
		}
	}
	branch, head, err := r.head()
	if err != nil {
		return err
	}
	var to plumbing.Hash
	if head != plumbing.ZeroHash || target != "HEAD" {
		if to, err = r.revision(target); err != nil {
			return err
		}
	}
	tree, err := r.treeOf(to)
	if err != nil {
		return err
	}
	if len(files) > 0 {
		if mode != "mixed" {
			return invalid("mode is %q: with files it can only be mixed", mode)
		}
		specs, err := r.pathspecs(files)
		if err != nil {
			return err
		}
		// One that matches nothing is none of the index: there is nothing to do.
		return r.lockedIndex(func(x *index) error { return r.unstage(x, tree, specs) })
	}
	before, err := r.treeOf(head)
	if err != nil {
		return err
	}
	point := func() error {
		if to == plumbing.ZeroHash {
			return nil
		}
		if head != plumbing.ZeroHash {
			_ = locked(r.gitDir+"/ORIG_HEAD", 0o666&^umask(), func(w io.Writer) error {
				_, err := io.WriteString(w, head.String()+"\n")
				return err
			})
		}
		reason := "reset: moving to " + target
		if branch == "" {
			return r.setHead("", to, reason)
		}
		return r.setRef(branch, to, &head, reason)
	}
	if mode == "soft" {
		if r.dir != "" {
			x, err := readIndex(r.gitDir + "/index")
			if err != nil {
				return err
			}
			if slices.ContainsFunc(x.entries, func(e entry) bool { return e.stage() != 0 }) {
				return failf(409, wire.CodeGitMergeConflict, "a merge has conflicts: a soft reset would lose what it is about")
			}
		}
		return point()
	}
	err = r.lockedIndex(func(x *index) error {
		switch mode {
		case "mixed":
			if err := r.unstage(x, tree, []pathspec{{}}); err != nil {
				return err
			}
		default:
			how := map[string]int{"hard": moveForce, "merge": moveMerge, "keep": moveKeep}[mode]
			if _, err := r.move(x, before, tree, how); err != nil {
				return err
			}
		}
		return point()
	})
	if err == nil {
		r.forgetMerge()
	}
	return err
}

// unstage makes the index what a tree is, for some paths.
func (r *Repository) unstage(x *index, tree plumbing.Hash, specs []pathspec) error {
	files, cached, err := r.flatten(tree)
	if err != nil {
		return err
	}
	next := map[string]*entry{}
	wanted := make(map[string]bool, len(files))
	for _, f := range files {
		wanted[f.name] = true
		if !matches(specs, f.name) {
			continue
		}
		if e := x.get(f.name); e == nil || e.hash != f.hash || e.mode != f.mode || e.intentToAdd() {
			next[f.name] = &entry{path: f.name, hash: f.hash, mode: f.mode}
		}
	}
	for i := range x.entries {
		if e := &x.entries[i]; !wanted[e.path] && matches(specs, e.path) {
			next[e.path] = nil
		}
	}
	x.change(next)
	if len(specs) == 1 && specs[0].text == "" {
		x.tree, x.undo = cached, nil
	}
	// Files that have not changed are known to be so at once.
	if _, _, err := r.scan(x, false, 0); err != nil {
		return err
	}
	return nil
}

// Restore is git restore.
func (r *Repository) Restore(files []string, source string, staged, worktree bool) error {
	if err := r.needWorktree(); err != nil {
		return err
	}
	specs, err := r.pathspecs(files)
	if err != nil {
		return err
	}
	if !staged && !worktree {
		worktree = true
	}
	if source == "" && staged {
		source = "HEAD"
	}
	tree := plumbing.ZeroHash
	if source != "" {
		_, head, err := r.head()
		if err != nil {
			return err
		}
		at := plumbing.ZeroHash
		if source != "HEAD" || head != plumbing.ZeroHash {
			if at, err = r.revision(source); err != nil {
				return err
			}
		}
		if tree, err = r.treeOf(at); err != nil {
			return err
		}
	}
	return r.lockedIndex(func(x *index) error {
		if staged && !worktree {
			if err := r.unstage(x, tree, specs); err != nil {
				return err
			}
			return unmatched(specs)
		}
		// What the files are to be.
		want := map[string]treeEntry{}
		if source == "" {
			for i := range x.entries {
				e := &x.entries[i]
				if !matches(specs, e.path) {
					continue
				}
				if e.stage() != 0 {
					return failf(409, wire.CodeGitMergeConflict, "%s is unmerged", clip(e.path))
				}
				if !e.intentToAdd() {
					want[e.path] = treeEntry{e.path, e.mode, e.hash}
				}
			}
		} else {
			all, _, err := r.flatten(tree)
			if err != nil {
				return err
			}
			for _, f := range all {
				if matches(specs, f.name) {
					want[f.name] = f
				}
			}
			for i := range x.entries {
				matches(specs, x.entries[i].path)
			}
		}
		if err := unmatched(specs); err != nil {
			return err
		}
		c := r.checkout(x, want, true)
		s := &scanner{r: r, x: x, fileMode: true, trustCtime: true, attrs: r.worktreeAttributes(x)}
		next := map[string]*entry{}
		// With a source, files that it lacks go.
		if source != "" {
			for i := range x.entries {
				e := &x.entries[i]
				if _, ok := want[e.path]; ok || !matches(specs, e.path) {
					continue
				}
				if err := c.remove(e.path, e.mode); err != nil {
					return err
				}
				if staged {
					next[e.path] = nil
				}
			}
		}
		names := make([]string, 0, len(want))
		for p := range want {
			names = append(names, p)
		}
		slices.Sort(names)
		for _, p := range names {
			w, e := want[p], x.get(p)
			if e != nil && e.hash == w.hash && e.mode == w.mode {
				if st, err := c.lstat(p); err == nil {
					if kind, err := s.compare(e, &st); err == nil && kind == 0 {
						continue
					}
				}
			}
			written, err := c.write(p, w)
			if err != nil {
				return err
			}
			if staged || e != nil && e.hash == w.hash && e.mode == w.mode {
				next[p] = written
			}
		}
		// Entries that stay the same keep the cache tree.
		for p, n := range next {
			if e := x.get(p); e != nil && n != nil && e.hash == n.hash && e.mode == n.mode {
				*e = *n
				delete(next, p)
			}
		}
		x.change(next)
		return nil
	})
}

// forgetMerge removes what git keeps of an operation that has ended.
func (r *Repository) forgetMerge() {
	for _, name := range []string{"MERGE_HEAD", "MERGE_MSG", "MERGE_MODE", "CHERRY_PICK_HEAD", "REVERT_HEAD", "SQUASH_MSG", "AUTO_MERGE"} {
		_ = os.Remove(r.gitDir + "/" + name)
	}
}
