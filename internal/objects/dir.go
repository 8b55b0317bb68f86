package objects

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"io/fs"
	"iter"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona/internal/failpoint"
)

// Dir keeps objects as files of a directory, which may be on a file system that
// several machines share. A key is a path in it. After its content a file has
// the content's SHA-256 digest and a mark, so that both appear at once.
type Dir struct{ root string }

// OpenDir makes the directory if it is missing.
func OpenDir(dir string) (*Dir, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	return &Dir{root: dir}, nil
}

// The end of a file: "\nsha256:" and 64 hexadecimal digits.
const (
	trailerMark = "\nsha256:"
	trailerSize = len(trailerMark) + 2*sha256.Size
)

// newPrefix begins the names of files that are being written. No key has it.
const newPrefix = ".new-"

func (d *Dir) file(key string) string { return filepath.Join(d.root, filepath.FromSlash(key)) }

// Put implements [Store].
func (d *Dir) Put(ctx context.Context, key string, r io.Reader) (err error) {
	if err := CheckKey(key); err != nil {
		return err
	}
	name := d.file(key)
	// A Delete may remove a directory that it leaves empty.
	var f *os.File
	for range 16 {
		if err = os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			return err
		}
		if f, err = createLocked(filepath.Dir(name)); !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	if err != nil {
		return err
	}
	defer func() {
		f.Close()
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	sum := sha256.New()
	if _, err := io.Copy(io.MultiWriter(f, sum), &contextReader{ctx, r}); err != nil {
		return err
	}
	if _, err := f.WriteString(trailerMark + hex.EncodeToString(sum.Sum(nil))); err != nil {
		return err
	}
	if err := failpoint.Fail("objects/put/written"); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), name); err != nil {
		return err
	}
	failpoint.Kill("objects/put/renamed")
	for dir := filepath.Dir(name); ; dir = filepath.Dir(dir) {
		if err := syncDir(dir); err != nil || dir == d.root || len(dir) <= len(d.root) {
			return err
		}
	}
}

// createLocked makes a file that is locked for as long as it is open, so that
// others see whether the process that writes it lives.
func createLocked(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, newPrefix)
	if err != nil {
		return nil, err
	}
	var a, b unix.Stat_t
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH); err != nil {
		f.Close()
		os.Remove(f.Name())
		return nil, &fs.PathError{Op: "lock", Path: f.Name(), Err: err}
	}
	// Somebody may have taken it for one of the dead before it was locked.
	if unix.Fstat(int(f.Fd()), &a) != nil || unix.Stat(f.Name(), &b) != nil || a.Ino != b.Ino {
		f.Close()
		return nil, &fs.PathError{Op: "create", Path: f.Name(), Err: fs.ErrNotExist}
	}
	return f, nil
}

// maxSwept is how many entries of a directory are looked at for files of the
// dead. Those of one archive are few.
const maxSwept = 64

// sweep removes the files in a directory that killed processes were writing.
func sweep(dir string) {
	d, err := os.Open(dir)
	if err != nil {
		return
	}
	defer d.Close()
	entries, _ := d.ReadDir(maxSwept)
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), newPrefix) || !e.Type().IsRegular() {
			continue
		}
		name := filepath.Join(dir, e.Name())
		f, err := os.Open(name)
		if err != nil {
			continue
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			os.Remove(name)
		}
		f.Close()
	}
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// contextReader ends with its context.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// Get implements [Store].
func (d *Dir) Get(ctx context.Context, key string) (io.ReadCloser, error) {
	if err := CheckKey(key); err != nil {
		return nil, err
	}
	f, err := os.Open(d.file(key))
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = &fs.PathError{Op: "get", Path: key, Err: fs.ErrNotExist}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	size := st.Size() - int64(trailerSize)
	if size < 0 {
		f.Close()
		return nil, &fs.PathError{Op: "get", Path: key, Err: ErrCorrupt}
	}
	return &dirReader{contextReader: contextReader{ctx, io.LimitReader(f, size)}, file: f, key: key, left: size, sum: sha256.New()}, nil
}

// dirReader checks the digest at the end.
type dirReader struct {
	contextReader
	file *os.File
	key  string
	left int64
	sum  hash.Hash
	end  error // what the end was, once it was read
}

func (r *dirReader) Read(p []byte) (int, error) {
	if r.end != nil {
		return 0, r.end
	}
	n, err := r.contextReader.Read(p)
	r.sum.Write(p[:n])
	r.left -= int64(n)
	if err != io.EOF {
		return n, err
	}
	trailer := make([]byte, trailerSize)
	_, readErr := io.ReadFull(r.file, trailer)
	if r.left != 0 || readErr != nil || !bytes.Equal(trailer, []byte(trailerMark+hex.EncodeToString(r.sum.Sum(nil)))) {
		r.end = &fs.PathError{Op: "get", Path: r.key, Err: ErrCorrupt}
		return n, r.end
	}
	r.end = io.EOF
	return n, io.EOF
}

func (r *dirReader) Close() error { return r.file.Close() }

// List implements [Store].
func (d *Dir) List(ctx context.Context, prefix string) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		var found []Entry
		// Only the directory that the prefix names can have what begins with it.
		below, _ := path.Split(prefix)
		below = strings.TrimSuffix(below, "/")
		if below != "" && CheckKey(below) != nil {
			return // no key begins so
		}
		err := filepath.WalkDir(d.file(below), func(p string, e fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // removed meanwhile
			}
			if err == nil {
				err = ctx.Err()
			}
			if err != nil || !e.Type().IsRegular() || strings.HasPrefix(e.Name(), ".") {
				return err
			}
			key, err := filepath.Rel(d.root, p)
			if err != nil {
				return err
			}
			if key = filepath.ToSlash(key); !strings.HasPrefix(key, prefix) || CheckKey(key) != nil {
				return nil
			}
			st, err := e.Info()
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
			found = append(found, Entry{Key: key, Size: max(0, st.Size()-int64(trailerSize))})
			return nil
		})
		if err != nil {
			yield(Entry{}, err)
			return
		}
		slices.SortFunc(found, func(a, b Entry) int { return strings.Compare(a.Key, b.Key) })
		for _, e := range found {
			if !yield(e, nil) {
				return
			}
		}
	}
}

// Delete implements [Store].
func (d *Dir) Delete(_ context.Context, key string) error {
	if err := CheckKey(key); err != nil {
		return err
	}
	if err := os.Remove(d.file(key)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// Directories that are empty now, as far as they are.
	for dir := path.Dir(key); dir != "."; dir = path.Dir(dir) {
		if os.Remove(d.file(dir)) == nil {
			continue
		}
		sweep(d.file(dir))
		if err := os.Remove(d.file(dir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	return nil
}
