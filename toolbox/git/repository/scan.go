package repository

import (
	"bytes"
	"crypto/sha1"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"slices"
	"sort"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/go-git/go-git/v5/plumbing"
	"golang.org/x/sys/unix"
)

var errNoSpace = unix.ENOSPC

func umask() os.FileMode {
	// There is no other way to ask, and nobody else to disturb: a helper makes
	// files in one goroutine.
	old := unix.Umask(0)
	unix.Umask(old)
	return os.FileMode(old)
}

// What a scan finds.
const (
	changeModified  = 'M'
	changeDeleted   = 'D'
	changeUntracked = '?'
	changeNew       = 'A' // announced by git add -N
)

// change is a file that is not as the index says.
type change struct {
	path string // with a slash at the end for a repository of its own
	kind byte
}

// scanner compares the working tree with the index, directory by directory,
// several at a time.
type scanner struct {
	r         *Repository
	x         *index
	untracked bool
	depth     int // of submodules

	fileMode, trustCtime, minimal bool

	mu      sync.Mutex
	found   []change
	failure error
	queue   []scanTask
	busy    int
	wake    *sync.Cond
	attrs   *attributes

	refreshed atomic.Int64
}

// scanTask is a directory: its path with a slash at the end, or "", and the
// entries of the index that are below it.
type scanTask struct {
	dir     string
	lo, hi  int
	ignores *ignores
	ignored bool
	depth   int
}

// scan returns what has changed, in the order of paths. It notes in the index
// what it had to read to find it unchanged.
func (r *Repository) scan(x *index, untracked bool, depth int) ([]change, bool, error) {
	s := &scanner{r: r, x: x, untracked: untracked, depth: depth}
	s.wake = sync.NewCond(&s.mu)
	s.fileMode = r.config.bool("core", "", "filemode", true)
	s.trustCtime = r.config.bool("core", "", "trustctime", true)
	check, _ := r.config.get("core", "", "checkstat")
	s.minimal = check == "minimal"
	s.attrs = r.worktreeAttributes(x)
	var g *ignores
	if untracked {
		g = r.ignoreRoot()
	}
	s.queue = []scanTask{{hi: len(x.entries), ignores: g}}
	var wg sync.WaitGroup
	for range max(2, runtime.GOMAXPROCS(0)) {
		wg.Go(s.work)
	}
	wg.Wait()
	if s.failure != nil {
		return nil, false, s.failure
	}
	slices.SortFunc(s.found, func(a, b change) int { return strings.Compare(a.path, b.path) })
	return s.found, s.refreshed.Load() > 0, nil
}

func (s *scanner) work() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		for len(s.queue) == 0 {
			if s.busy == 0 {
				s.wake.Broadcast()
				return
			}
			s.wake.Wait()
		}
		t := s.queue[len(s.queue)-1]
		s.queue = s.queue[:len(s.queue)-1]
		if s.failure != nil {
			continue
		}
		s.busy++
		s.mu.Unlock()
		tasks, found, err := s.directory(t)
		s.mu.Lock()
		s.busy--
		s.found = append(s.found, found...)
		if err != nil && s.failure == nil {
			s.failure = err
		}
		s.queue = append(s.queue, tasks...)
		if len(tasks) > 0 || s.busy == 0 {
			s.wake.Broadcast()
		}
	}
}

// group returns where the entries of the name that i begins with end.
func (s *scanner) group(t scanTask, i int) (name string, end int, dir bool) {
	rest := s.x.entries[i].path[len(t.dir):]
	name, _, dir = strings.Cut(rest, "/")
	if !dir {
		end = i + 1
		for end < t.hi && len(s.x.entries[end].path) == len(s.x.entries[i].path) && s.x.entries[end].path == s.x.entries[i].path {
			end++
		}
		return name, end, false
	}
	bound := t.dir + name + "0"
	return name, i + sort.Search(t.hi-i, func(k int) bool { return s.x.entries[i+k].path >= bound }), true
}

func (s *scanner) deleted(lo, hi int, found []change) []change {
	for i := lo; i < hi; i++ {
		if e := &s.x.entries[i]; e.stage() == 0 && e.extended&flagSkipWorktree == 0 && e.flags&flagAssumeValid == 0 {
			found = append(found, change{e.path, changeDeleted})
		}
	}
	return found
}

func (s *scanner) directory(t scanTask) (tasks []scanTask, found []change, err error) {
	if t.depth > maxDepth {
		return nil, nil, failf(422, "", "directories are nested more than %d deep at %s", maxDepth, clip(t.dir))
	}
	where := s.r.dir + "/" + t.dir
	f, err := os.OpenFile(where, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			return nil, s.deleted(t.lo, t.hi, nil), nil
		}
		if errors.Is(err, fs.ErrPermission) && t.lo == t.hi {
			return nil, nil, nil // git warns
		}
		return nil, nil, fileError(err)
	}
	defer f.Close()
	names, err := f.ReadDir(-1)
	if err != nil {
		return nil, nil, fileError(err)
	}
	fd := int(f.Fd())
	g := t.ignores
	if s.untracked && t.dir != "" && slices.ContainsFunc(names, func(d fs.DirEntry) bool { return d.Name() == ".gitignore" }) {
		g = s.r.ignoreFile(g, t.dir)
	}
	tracked := make(map[string]bool, len(names)) // by name; whether it is a directory
	dirs := map[string]scanTask{}
	for i := t.lo; i < t.hi; {
		name, end, dir := s.group(t, i)
		if dir {
			dirs[name] = scanTask{dir: t.dir + name + "/", lo: i, hi: end, ignores: g, depth: t.depth + 1}
			i = end
			continue
		}
		e := &s.x.entries[i]
		tracked[name] = false
		if e.stage() == 0 && e.extended&flagSkipWorktree == 0 && e.flags&flagAssumeValid == 0 {
			kind, other, err := s.file(fd, name, e)
			if err != nil {
				return nil, nil, err
			}
			if kind != 0 {
				found = append(found, change{e.path, kind})
			}
			if other {
				delete(tracked, name) // a directory in its place
			}
		}
		i = end
	}
	for _, d := range names {
		name := d.Name()
		if _, ok := tracked[name]; ok {
			continue
		}
		mode := d.Type()
		if task, ok := dirs[name]; ok && mode.IsDir() {
			task.ignored = t.ignored || s.untracked && g.match(t.dir+name, true)
			tasks = append(tasks, task)
			delete(dirs, name)
			continue
		}
		if !s.untracked || t.ignored || name == ".git" || !(mode.IsDir() || mode.IsRegular() || mode&fs.ModeSymlink != 0) {
			continue
		}
		p := t.dir + name
		if g.match(p, mode.IsDir()) {
			continue
		}
		if !mode.IsDir() {
			found = append(found, change{p, changeUntracked})
			continue
		}
		if nested(where + name) {
			found = append(found, change{p + "/", changeUntracked})
			continue
		}
		tasks = append(tasks, scanTask{dir: p + "/", lo: t.lo, hi: t.lo, ignores: g, depth: t.depth + 1})
	}
	for _, task := range dirs { // not there, or no directories
		found = s.deleted(task.lo, task.hi, found)
	}
	return tasks, found, nil
}

// nested says whether a directory is a repository of its own.
func nested(dir string) bool {
	_, err := os.Lstat(dir + "/.git")
	if err != nil {
		return false
	}
	r, err := Open(dir, User{})
	if err != nil {
		return false
	}
	r.Close()
	return true
}

// file compares one file with its entry. other says that there is a directory.
func (s *scanner) file(fd int, name string, e *entry) (kind byte, other bool, err error) {
	var st unix.Stat_t
	for {
		if err = unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != unix.EINTR {
			break
		}
	}
	if err != nil {
		if err == unix.ENOENT || err == unix.ENOTDIR {
			return changeDeleted, false, nil
		}
		return 0, false, fileError(&fs.PathError{Op: "lstat", Path: e.path, Err: err})
	}
	kind, err = s.compare(e, &st)
	return kind, kind == changeDeleted && st.Mode&unix.S_IFMT == unix.S_IFDIR, err
}

func (s *scanner) compare(e *entry, st *unix.Stat_t) (byte, error) {
	mode := modeOf(st)
	if e.mode == modeModule {
		if mode != modeDir {
			return changeDeleted, nil
		}
		return s.r.module(e, s.depth)
	}
	if mode == modeDir {
		return changeDeleted, nil
	}
	if e.intentToAdd() {
		return changeNew, nil
	}
	if !s.fileMode && e.mode&0o170000 == 0o100000 && mode&0o170000 == 0o100000 {
		mode = e.mode
	}
	if mode != e.mode {
		return changeModified, nil
	}
	now := statOf(st)
	if s.same(&e.stat, &now) && !s.x.racy(e) {
		return 0, nil
	}
	if e.stat.size != 0 && e.stat.size != now.size {
		return changeModified, nil
	}
	hash, err := s.r.hashFile(e.path, st, s.conversionOf(e.path), func() []byte { return s.r.blob(e.hash) })
	if errors.Is(err, fs.ErrNotExist) {
		return changeDeleted, nil
	}
	if err != nil {
		return 0, fileError(err)
	}
	if hash != e.hash {
		return changeModified, nil
	}
	e.stat, e.fresh = now, true
	s.refreshed.Add(1)
	return 0, nil
}

func (s *scanner) same(a, b *stat) bool {
	if a.size != b.size || a.mtime != b.mtime || a.mtimeNsec != 0 && b.mtimeNsec != 0 && a.mtimeNsec != b.mtimeNsec {
		return false
	}
	if s.minimal {
		return true
	}
	if s.trustCtime && (a.ctime != b.ctime || a.ctimeNsec != 0 && b.ctimeNsec != 0 && a.ctimeNsec != b.ctimeNsec) {
		return false
	}
	return a.ino == b.ino && a.uid == b.uid && a.gid == b.gid
}

func (s *scanner) conversionOf(p string) conversion {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.r.conversion(s.attrs, p)
}

// worktreeAttributes are for what comes from the working tree: of the files
// there, or, where they are missing, of the index.
func (r *Repository) worktreeAttributes(x *index) *attributes {
	return r.attributes(func(dir string) string {
		f, err := openRegular(r.dir+"/"+dir+".gitattributes", unix.O_NOFOLLOW)
		if err == nil {
			defer f.Close()
			b, err := io.ReadAll(io.LimitReader(f, maxPatterns))
			if err != nil {
				return ""
			}
			return string(b)
		}
		if e := x.get(dir + ".gitattributes"); e != nil && e.mode != modeLink {
			return string(r.blob(e.hash))
		}
		return ""
	})
}

// maxConverted is the size above which content is never converted, in bytes;
// git's core.bigFileThreshold.
const maxConverted = 512 << 20

// blob is the content of a blob, nothing if it is not there or too large to be
// looked at.
func (r *Repository) blob(hash plumbing.Hash) []byte {
	b, err := r.object(plumbing.BlobObject, hash, maxConverted)
	if err != nil {
		return nil
	}
	return b
}

// content opens a file of the working tree as what it is in the repository: as
// bytes where it had to be converted, else as a file of the size in st, which is
// brought up to date.
func (r *Repository) content(p string, st *unix.Stat_t, c conversion, blob func() []byte) ([]byte, *os.File, error) {
	full := r.dir + "/" + p
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		target, err := os.Readlink(full)
		return []byte(target), nil, err
	}
	f, err := openRegular(full, unix.O_NOFOLLOW)
	if err != nil {
		return nil, nil, err
	}
	if err := unix.Fstat(int(f.Fd()), st); err != nil {
		f.Close()
		return nil, nil, err
	}
	if c.filter == "lfs" {
		defer f.Close()
		b, err := lfsClean(f, st.Size)
		return b, nil, err
	}
	if c.eol == eolKeep && !c.ident || st.Size > maxConverted {
		return nil, f, nil
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxConverted))
	if err != nil {
		return nil, nil, err
	}
	return c.clean(b, blob), nil, nil
}

// lfsClean is what Git LFS puts into the repository for a file.
func lfsClean(f *os.File, size int64) ([]byte, error) {
	if size < 1024 {
		b, err := io.ReadAll(f)
		if err != nil || lfsPointer(b) || len(b) == 0 {
			return b, err
		}
		sum := sha256.Sum256(b)
		return fmt.Appendf(nil, "version https://git-lfs.github.com/spec/v1\noid sha256:%x\nsize %d\n", sum, len(b)), nil
	}
	h := sha256.New()
	n, err := io.Copy(h, f)
	return fmt.Appendf(nil, "version https://git-lfs.github.com/spec/v1\noid sha256:%x\nsize %d\n", h.Sum(nil), n), err
}

// hashFile is the name that a file's content would have as a blob.
func (r *Repository) hashFile(p string, st *unix.Stat_t, c conversion, blob func() []byte) (plumbing.Hash, error) {
	b, f, err := r.content(p, st, c, blob)
	if err != nil {
		return plumbing.ZeroHash, err
	}
	var rd io.Reader = bytes.NewReader(b)
	size := int64(len(b))
	if f != nil {
		defer f.Close()
		rd, size = io.LimitReader(f, st.Size), st.Size
	}
	h := sha1.New()
	fmt.Fprintf(h, "blob %d\x00", size)
	if _, err := io.Copy(h, rd); err != nil {
		return plumbing.ZeroHash, err
	}
	return plumbing.Hash(h.Sum(nil)), nil
}

// maxModules bounds how deep repositories are nested in repositories.
const maxModules = 8

// module compares a submodule with its entry. One that has not been checked out
// is unchanged.
func (r *Repository) module(e *entry, depth int) (byte, error) {
	dir := r.dir + "/" + e.path
	if _, err := os.Lstat(dir + "/.git"); err != nil || depth >= maxModules {
		return 0, nil
	}
	sub, err := Open(dir, r.user)
	if err != nil {
		return 0, nil
	}
	defer sub.Close()
	_, head, err := sub.head()
	if err != nil || sub.dir == "" {
		return 0, nil
	}
	if head != e.hash {
		return changeModified, nil
	}
	x, err := readIndex(sub.gitDir + "/index")
	if err != nil {
		return 0, nil
	}
	if c, err := sub.commit(head); err == nil {
		if staged, err := sub.diffIndex(c.tree, x); err == nil && len(staged) > 0 {
			return changeModified, nil
		}
	}
	if changes, _, err := sub.scan(x, true, depth+1); err == nil && len(changes) > 0 {
		return changeModified, nil
	}
	return 0, nil
}

// lockedIndex reads the index, and writes it once change has returned without
// an error, under git's lock.
func (r *Repository) lockedIndex(change func(*index) error) error {
	file := r.gitDir + "/index"
	return locked(file, 0o666&^umask(), func(w io.Writer) error {
		x, err := readIndex(file)
		if err != nil {
			return err
		}
		if err := change(x); err != nil {
			return err
		}
		return x.write(w)
	})
}

// refresh saves what a scan has learned, if nobody else is at the index.
func (r *Repository) refresh(x *index) {
	file := r.gitDir + "/index"
	if x.written.IsZero() {
		return
	}
	_ = locked(file, 0o666&^umask(), func(w io.Writer) error {
		if info, err := os.Stat(file); err != nil || !info.ModTime().Equal(x.written) {
			return errors.New("changed meanwhile")
		}
		return x.write(w)
	})
}
