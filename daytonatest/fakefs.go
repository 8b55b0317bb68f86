package daytonatest

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/daytona-go/daytona"
)

// node is a file or directory. Its fields are guarded by tree.mu; data is
// replaced whole, never changed in place, so that readers need no lock.
type node struct {
	mode     fs.FileMode
	modified time.Time
	uid, gid string
	data     []byte
	children map[string]*node // of a directory
}

func (n *node) isDir() bool { return n.mode.IsDir() }

func (n *node) info(name string) daytona.FileInfo {
	return daytona.FileInfo{FileName: name, Bytes: int64(len(n.data)), FileMode: n.mode, Modified: n.modified, Owner: n.uid, Group: n.gid}
}

// tree is the files of one sandbox.
type tree struct {
	mu    *sync.RWMutex
	root  *node
	used  int64
	limit int64 // in bytes; 0 is none
}

func newTree(limit int64, dirs ...string) *tree {
	t := &tree{mu: new(sync.RWMutex), root: newDir(0o755), limit: limit}
	for _, d := range dirs {
		_ = t.mkdir(d, 0o755)
	}
	return t
}

func newDir(perm fs.FileMode) *node {
	return &node{mode: fs.ModeDir | perm, modified: time.Now(), uid: fakeUID, gid: fakeUID, children: map[string]*node{}}
}

// fakeUID is the number of the fake's only user.
const fakeUID = "1000"

var (
	errNotDir   = errors.New("not a directory")
	errIsDir    = errors.New("is a directory")
	errNotEmpty = errors.New("directory not empty")
	errNoSpace  = errors.New("the sandbox's disk limit is reached")
	errTooLong  = errors.New("file name too long")
	errUser     = errors.New("unknown user or group")
)

// pathError makes the two-faced error that daytona.FileSystem promises.
func pathError(op, name string, err error) error {
	if err == nil {
		return nil
	}
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		err = pe.Err
	}
	if _, ok := errors.AsType[*daytona.Error](err); ok || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return &fs.PathError{Op: op, Path: name, Err: err}
	}
	kind, msg := daytona.KindInvalid, ""
	switch {
	case errors.Is(err, fs.ErrNotExist):
		kind, msg = daytona.KindNotFound, "check the path"
	case errors.Is(err, fs.ErrExist):
		kind = daytona.KindConflict
	case errors.Is(err, fs.ErrPermission):
		kind = daytona.KindForbidden
	case errors.Is(err, errNoSpace):
		kind = daytona.KindNoSpace
	}
	return &fs.PathError{Op: op, Path: name, Err: &daytona.Error{Kind: kind, Op: op, Subject: name, Message: msg, Err: err}}
}

// split checks a clean absolute path and returns its elements.
func split(p string) ([]string, error) {
	if strings.ContainsRune(p, 0) {
		return nil, fmt.Errorf("path with NUL: %w", fs.ErrInvalid)
	}
	var out []string
	for e := range strings.SplitSeq(strings.Trim(p, "/"), "/") {
		if e == "" {
			continue
		}
		if len(e) > 255 {
			return nil, errTooLong
		}
		out = append(out, e)
	}
	return out, nil
}

// lookup finds a node. The caller holds t.mu.
func (t *tree) lookup(p string) (*node, error) {
	elems, err := split(p)
	if err != nil {
		return nil, err
	}
	n := t.root
	for _, e := range elems {
		if !n.isDir() {
			return nil, errNotDir
		}
		if n = n.children[e]; n == nil {
			return nil, fs.ErrNotExist
		}
	}
	return n, nil
}

// makeDirs is lookup that makes what is missing. The caller holds t.mu.
func (t *tree) makeDirs(p string, perm fs.FileMode) (*node, error) {
	elems, err := split(p)
	if err != nil {
		return nil, err
	}
	n := t.root
	for i, e := range elems {
		next := n.children[e]
		if next == nil {
			next = newDir(0o755)
			if i == len(elems)-1 {
				next.mode = fs.ModeDir | perm
			}
			n.children[e], n.modified = next, time.Now()
		}
		if !next.isDir() {
			return nil, errNotDir
		}
		n = next
	}
	return n, nil
}

func (t *tree) mkdir(p string, perm fs.FileMode) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, err := t.makeDirs(p, perm)
	return err
}

// check tells whether a file may be written at p, before its content comes.
func (t *tree) check(p string) error {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if p == "/" {
		return errIsDir
	}
	n, err := t.lookup(p)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil && n.isDir() {
		return errIsDir
	}
	return err
}

// room returns how many more bytes the limit lets in, or -1 for any number.
func (t *tree) room() int64 {
	if t.limit == 0 {
		return -1
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	return max(t.limit-t.used, 0)
}

// put makes or replaces a file. A nil perm keeps that of a file that exists.
func (t *tree) put(p string, data []byte, perm *fs.FileMode) error {
	if err := t.check(p); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	dir, err := t.makeDirs(path.Dir(p), 0o755)
	if err != nil {
		return err
	}
	old := dir.children[path.Base(p)]
	n := &node{mode: 0o644, modified: time.Now(), uid: fakeUID, gid: fakeUID, data: data}
	grow := int64(len(data))
	if old != nil {
		if old.isDir() {
			return errIsDir
		}
		n.mode, n.uid, n.gid = old.mode, old.uid, old.gid
		grow -= int64(len(old.data))
	}
	if t.limit > 0 && t.used+grow > t.limit {
		return errNoSpace
	}
	t.used += grow
	if perm != nil {
		n.mode = *perm
	}
	dir.children[path.Base(p)], dir.modified = n, time.Now()
	return nil
}

func (t *tree) stat(p string) (daytona.FileInfo, error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	n, err := t.lookup(p)
	if err != nil {
		return daytona.FileInfo{}, err
	}
	return n.info(path.Base(p)), nil
}

func (t *tree) read(p string) ([]byte, daytona.FileInfo, error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	n, err := t.lookup(p)
	if err != nil {
		return nil, daytona.FileInfo{}, err
	}
	if n.isDir() {
		return nil, daytona.FileInfo{}, errIsDir
	}
	return n.data, n.info(path.Base(p)), nil
}

func (t *tree) readDir(p string) ([]daytona.FileInfo, error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	n, err := t.lookup(p)
	if err != nil {
		return nil, err
	}
	if !n.isDir() {
		return nil, errNotDir
	}
	out := make([]daytona.FileInfo, 0, len(n.children))
	for _, name := range slices.Sorted(maps.Keys(n.children)) {
		out = append(out, n.children[name].info(name))
	}
	return out, nil
}

func (n *node) size() int64 {
	s := int64(len(n.data))
	for _, c := range n.children {
		s += c.size()
	}
	return s
}

func (t *tree) remove(p string, all bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	n, err := t.lookup(p)
	if err != nil {
		return err
	}
	if n == t.root {
		return fs.ErrPermission
	}
	if n.isDir() && len(n.children) > 0 && !all {
		return errNotEmpty
	}
	dir, err := t.lookup(path.Dir(p))
	if err != nil {
		return err
	}
	delete(dir.children, path.Base(p))
	t.used -= n.size()
	dir.modified = time.Now()
	return nil
}

func (t *tree) rename(from, to string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	n, err := t.lookup(from)
	if err != nil {
		return err
	}
	if n == t.root || strings.HasPrefix(to+"/", from+"/") {
		return fs.ErrInvalid
	}
	if _, err := t.lookup(to); err == nil {
		return fs.ErrExist
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	dst, err := t.lookup(path.Dir(to))
	if err != nil {
		return err
	}
	if !dst.isDir() {
		return errNotDir
	}
	src, _ := t.lookup(path.Dir(from))
	delete(src.children, path.Base(from))
	dst.children[path.Base(to)] = n
	src.modified, dst.modified = time.Now(), time.Now()
	return nil
}

// fakeFS implements daytona.FileSystem over a tree.
type fakeFS struct{ c *fakeConn }

// abs checks the sandbox's state and makes a path absolute and clean.
func (f fakeFS) abs(ctx context.Context, op, name string) (*tree, string, error) {
	sb, err := f.c.started(ctx, op)
	if err != nil {
		return nil, "", &fs.PathError{Op: op, Path: name, Err: err}
	}
	if strings.ContainsRune(name, 0) {
		return nil, "", pathError(op, name, fmt.Errorf("path with NUL: %w", fs.ErrInvalid))
	}
	if name == "" {
		return nil, "", pathError(op, name, fmt.Errorf("empty path: %w", fs.ErrInvalid))
	}
	return sb.files, resolve(sb.info.WorkDir, name), nil
}

func resolve(dir, name string) string {
	if !path.IsAbs(name) {
		name = path.Join(dir, name)
	}
	return path.Clean(name)
}

func (f fakeFS) Open(ctx context.Context, name string) (daytona.File, error) {
	t, p, err := f.abs(ctx, "open", name)
	if err != nil {
		return nil, err
	}
	data, info, err := t.read(p)
	if err != nil {
		return nil, pathError("open", name, err)
	}
	return &openFile{Reader: bytes.NewReader(data), info: info, ctx: ctx}, nil
}

// openFile is a file as it was when it was opened.
type openFile struct {
	*bytes.Reader
	info   daytona.FileInfo
	ctx    context.Context
	closed bool
}

func (o *openFile) Size() int64                { return o.info.Bytes }
func (o *openFile) Stat() (fs.FileInfo, error) { return o.info, nil }

func (o *openFile) Read(p []byte) (int, error) {
	if o.closed {
		return 0, &fs.PathError{Op: "read", Path: o.info.FileName, Err: fs.ErrClosed}
	}
	if err := o.ctx.Err(); err != nil {
		return 0, err
	}
	return o.Reader.Read(p)
}

func (o *openFile) Close() error {
	if o.closed {
		return &fs.PathError{Op: "close", Path: o.info.FileName, Err: fs.ErrClosed}
	}
	o.closed = true
	return nil
}

func (f fakeFS) Create(ctx context.Context, name string) (io.WriteCloser, error) {
	t, p, err := f.abs(ctx, "create", name)
	if err != nil {
		return nil, err
	}
	if err := t.check(p); err != nil {
		return nil, pathError("create", name, err)
	}
	return &creator{ctx: ctx, t: t, path: p, name: name}, nil
}

// creator gathers what is written and puts it in place on Close.
type creator struct {
	ctx        context.Context
	t          *tree
	path, name string
	buf        bytes.Buffer
	err        error
	closed     bool
}

func (w *creator) Write(p []byte) (int, error) {
	if w.err == nil {
		if w.err = w.ctx.Err(); w.err == nil {
			if room := w.t.room(); room >= 0 && int64(w.buf.Len()+len(p)) > room {
				w.err = pathError("write", w.name, errNoSpace)
			}
		}
	}
	if w.err != nil {
		return 0, w.err
	}
	return w.buf.Write(p)
}

func (w *creator) Close() error {
	if w.closed {
		return &fs.PathError{Op: "close", Path: w.name, Err: fs.ErrClosed}
	}
	w.closed = true
	if w.err != nil {
		return w.err
	}
	if err := w.ctx.Err(); err != nil {
		return err
	}
	return pathError("close", w.name, w.t.put(w.path, w.buf.Bytes(), nil))
}

func (f fakeFS) ReadFile(ctx context.Context, name string) ([]byte, error) {
	t, p, err := f.abs(ctx, "read", name)
	if err != nil {
		return nil, err
	}
	data, _, err := t.read(p)
	if err != nil {
		return nil, pathError("read", name, err)
	}
	return append([]byte{}, data...), nil
}

func (f fakeFS) WriteFile(ctx context.Context, name string, data []byte, perm fs.FileMode) error {
	t, p, err := f.abs(ctx, "write", name)
	if err != nil {
		return err
	}
	perm = cmp.Or(perm.Perm(), 0o644)
	return pathError("write", name, t.put(p, bytes.Clone(data), &perm))
}

func (f fakeFS) Upload(ctx context.Context, name string, r io.Reader) (int64, error) {
	w, err := f.Create(ctx, name)
	if err != nil {
		return 0, err
	}
	type result struct {
		n   int64
		err error
	}
	// The reader may block for longer than ctx lives.
	done := make(chan result, 1)
	go func() {
		n, err := io.Copy(w, r)
		done <- result{n, err}
	}()
	select {
	case <-ctx.Done():
		return 0, ctx.Err()
	case res := <-done:
		if res.err != nil {
			return res.n, res.err
		}
		return res.n, w.Close()
	}
}

func (f fakeFS) Download(ctx context.Context, name string, w io.Writer) (int64, error) {
	r, err := f.Open(ctx, name)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	return io.Copy(w, struct{ io.Reader }{r})
}

func (f fakeFS) UploadFiles(ctx context.Context, files []daytona.FileUpload) error {
	var errs []error
	for _, u := range files {
		if _, err := f.Upload(ctx, u.Path, u.Content); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (f fakeFS) DownloadFiles(ctx context.Context, paths []string, each func(string, io.Reader, error) error) error {
	for _, p := range paths {
		if err := ctx.Err(); err != nil {
			return err
		}
		r, err := f.Open(ctx, p)
		if err != nil {
			err = each(p, nil, err)
		} else {
			err = each(p, r, nil)
			r.Close()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (f fakeFS) Stat(ctx context.Context, name string) (daytona.FileInfo, error) {
	t, p, err := f.abs(ctx, "stat", name)
	if err != nil {
		return daytona.FileInfo{}, err
	}
	fi, err := t.stat(p)
	return fi, pathError("stat", name, err)
}

func (f fakeFS) ReadDir(ctx context.Context, name string) ([]daytona.FileInfo, error) {
	t, p, err := f.abs(ctx, "readdir", name)
	if err != nil {
		return nil, err
	}
	l, err := t.readDir(p)
	return l, pathError("readdir", name, err)
}

func (f fakeFS) Mkdir(ctx context.Context, name string, perm fs.FileMode) error {
	t, p, err := f.abs(ctx, "mkdir", name)
	if err != nil {
		return err
	}
	return pathError("mkdir", name, t.mkdir(p, cmp.Or(perm.Perm(), 0o755)))
}

func (f fakeFS) Remove(ctx context.Context, name string) error {
	t, p, err := f.abs(ctx, "remove", name)
	if err != nil {
		return err
	}
	return pathError("remove", name, t.remove(p, false))
}

func (f fakeFS) RemoveAll(ctx context.Context, name string) error {
	t, p, err := f.abs(ctx, "remove", name)
	if err != nil {
		return err
	}
	if err = t.remove(p, true); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return pathError("remove", name, err)
}

func (f fakeFS) Rename(ctx context.Context, oldPath, newPath string) error {
	t, from, err := f.abs(ctx, "rename", oldPath)
	if err != nil {
		return err
	}
	_, to, err := f.abs(ctx, "rename", newPath)
	if err != nil {
		return err
	}
	return pathError("rename", oldPath, t.rename(from, to))
}

// change changes a node in place.
func (f fakeFS) change(ctx context.Context, op, name string, do func(*node) error) error {
	t, p, err := f.abs(ctx, op, name)
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	n, err := t.lookup(p)
	if err == nil {
		err = do(n)
	}
	return pathError(op, name, err)
}

func (f fakeFS) Chmod(ctx context.Context, name string, mode fs.FileMode) error {
	return f.change(ctx, "chmod", name, func(n *node) error {
		n.mode = n.mode.Type() | mode.Perm()
		return nil
	})
}

func (f fakeFS) Chown(ctx context.Context, name, owner, group string) error {
	return f.change(ctx, "chown", name, func(n *node) error {
		ids := map[string]string{"": "", "root": "0", "daytona": fakeUID}
		for _, s := range []string{owner, group} {
			if _, err := strconv.ParseUint(s, 10, 32); err == nil {
				ids[s] = s
			} else if _, ok := ids[s]; !ok {
				return fmt.Errorf("%q: %w", s, errUser)
			}
		}
		n.uid, n.gid = cmp.Or(ids[owner], n.uid), cmp.Or(ids[group], n.gid)
		return nil
	})
}

// walk calls visit for everything below p, in lexical order, by paths that
// begin with name.
func (t *tree) walk(p, name string, visit func(name string, n *node)) error {
	t.mu.RLock()
	defer t.mu.RUnlock()
	n, err := t.lookup(p)
	if err != nil {
		return err
	}
	var down func(n *node, name string)
	down = func(n *node, name string) {
		visit(name, n)
		for _, e := range slices.Sorted(maps.Keys(n.children)) {
			down(n.children[e], path.Join(name, e))
		}
	}
	down(n, name)
	return nil
}

func (f fakeFS) Glob(ctx context.Context, dir, pattern string) ([]string, error) {
	t, p, err := f.abs(ctx, "glob", dir)
	if err != nil {
		return nil, err
	}
	if _, err := path.Match(pattern, ""); err != nil {
		return nil, pathError("glob", pattern, err)
	}
	var out []string
	err = t.walk(p, p, func(name string, _ *node) {
		if ok, _ := path.Match(pattern, path.Base(name)); ok && name != p {
			out = append(out, name)
		}
	})
	return out, pathError("glob", dir, err)
}

func (f fakeFS) Grep(ctx context.Context, name, text string) ([]daytona.Match, error) {
	t, p, err := f.abs(ctx, "grep", name)
	if err != nil {
		return nil, err
	}
	var out []daytona.Match
	err = t.walk(p, p, func(name string, n *node) {
		if n.isDir() || bytes.IndexByte(n.data, 0) >= 0 || !utf8.Valid(n.data) {
			return
		}
		i := 0
		for line := range strings.Lines(string(n.data)) {
			if i++; strings.Contains(line, text) {
				out = append(out, daytona.Match{Path: name, Line: i, Text: strings.TrimSuffix(line, "\n")})
			}
		}
	})
	return out, pathError("grep", name, err)
}

func (f fakeFS) Replace(ctx context.Context, paths []string, old, new string) ([]daytona.Replaced, error) {
	if _, err := f.c.started(ctx, "replace"); err != nil {
		return nil, err
	}
	var out []daytona.Replaced
	for _, name := range paths {
		t, p, err := f.abs(ctx, "replace", name)
		if err == nil {
			var data []byte
			if data, _, err = t.read(p); err == nil {
				err = t.put(p, bytes.ReplaceAll(data, []byte(old), []byte(new)), nil)
			}
			err = pathError("replace", name, err)
		}
		out = append(out, daytona.Replaced{Path: name, Err: err})
	}
	return out, nil
}

func (f fakeFS) FS(ctx context.Context, dir string) fs.FS { return subFS{f, ctx, dir} }

// subFS is the tree below dir as an fs.FS.
type subFS struct {
	files fakeFS
	ctx   context.Context
	dir   string
}

func (s subFS) path(op, name string) (string, error) {
	if !fs.ValidPath(name) {
		return "", &fs.PathError{Op: op, Path: name, Err: fs.ErrInvalid}
	}
	if err := s.ctx.Err(); err != nil {
		return "", &fs.PathError{Op: op, Path: name, Err: err}
	}
	return path.Join(s.dir, name), nil
}

// renamed makes an error tell the name that the caller used.
func renamed(err error, name string) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return &fs.PathError{Op: pe.Op, Path: name, Err: pe.Err}
	}
	return err
}

func (s subFS) Open(name string) (fs.File, error) {
	p, err := s.path("open", name)
	if err != nil {
		return nil, err
	}
	fi, err := s.Stat(name)
	if err != nil {
		return nil, err
	}
	if fi.IsDir() {
		entries, err := s.ReadDir(name)
		return &openDir{info: fi, entries: entries, name: name}, err
	}
	f, err := s.files.Open(s.ctx, p)
	return f, renamed(err, name)
}

func (s subFS) Stat(name string) (fs.FileInfo, error) {
	p, err := s.path("stat", name)
	if err != nil {
		return nil, err
	}
	fi, err := s.files.Stat(s.ctx, p)
	if name == "." {
		fi.FileName = "."
	}
	return fi, renamed(err, name)
}

func (s subFS) ReadFile(name string) ([]byte, error) {
	p, err := s.path("read", name)
	if err != nil {
		return nil, err
	}
	b, err := s.files.ReadFile(s.ctx, p)
	return b, renamed(err, name)
}

func (s subFS) ReadDir(name string) ([]fs.DirEntry, error) {
	p, err := s.path("readdir", name)
	if err != nil {
		return nil, err
	}
	l, err := s.files.ReadDir(s.ctx, p)
	out := make([]fs.DirEntry, len(l))
	for i, e := range l {
		out[i] = e
	}
	return out, renamed(err, name)
}

func (s subFS) Sub(name string) (fs.FS, error) {
	p, err := s.path("sub", name)
	return subFS{s.files, s.ctx, p}, err
}

// openDir is an open directory of an fs.FS.
type openDir struct {
	info    fs.FileInfo
	entries []fs.DirEntry
	name    string
}

func (d *openDir) Stat() (fs.FileInfo, error) { return d.info, nil }
func (d *openDir) Close() error               { return nil }
func (d *openDir) Read([]byte) (int, error) {
	return 0, &fs.PathError{Op: "read", Path: d.name, Err: errIsDir}
}

func (d *openDir) ReadDir(n int) ([]fs.DirEntry, error) {
	if n > 0 && len(d.entries) == 0 {
		return nil, io.EOF
	}
	if n <= 0 || n > len(d.entries) {
		n = len(d.entries)
	}
	out := d.entries[:n]
	d.entries = d.entries[n:]
	return out, nil
}

var (
	_ fs.StatFS      = subFS{}
	_ fs.ReadDirFS   = subFS{}
	_ fs.ReadFileFS  = subFS{}
	_ fs.SubFS       = subFS{}
	_ fs.ReadDirFile = (*openDir)(nil)
)
