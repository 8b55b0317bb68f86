//go:build linux

package s3fs

import (
	"context"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// file is a file. What was written to it is in spool until it is closed.
type file struct {
	fs.Inode
	b *bucket

	mu      sync.Mutex
	key     string
	attr              // of the object, or of the spool if there is one
	asOf    time.Time // when the object was looked at
	spool   *os.File  // all of its content, if not nil
	dirty   bool      // the spool is not stored
	removed bool
	handles int
}

var _ interface {
	fs.NodeGetattrer
	fs.NodeSetattrer
	fs.NodeOpener
	fs.NodeStatfser
} = (*file)(nil)

func (f *file) Statfs(ctx context.Context, out *fuse.StatfsOut) syscall.Errno {
	return (&dir{b: f.b}).Statfs(ctx, out)
}

// fill says what is known. Everybody may do everything: modes and owners are not
// kept, and nobody else has the mount.
func (f *file) fill(out *fuse.Attr) {
	out.Mode = syscall.S_IFREG | 0o777
	out.Nlink = 1
	out.Uid, out.Gid = f.b.Owner, f.b.Owner
	out.Size = uint64(f.size)
	out.Blocks = (out.Size + 511) / 512
	out.Blksize = 128 << 10
	out.SetTimes(nil, &f.mtime, &f.mtime)
}

// local fills in what is known of a file that need not be looked for.
func (f *file) local(out *fuse.Attr) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.removed || f.spool == nil && time.Since(f.asOf) > fresh {
		return false
	}
	f.fill(out)
	return true
}

// learn takes what was found in the bucket; false if it is another file now.
func (f *file) learn(a attr, out *fuse.Attr) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.removed {
		return false
	}
	if f.spool == nil {
		f.attr, f.asOf = a, time.Now()
	}
	f.fill(out)
	return true
}

// pending reports whether the file has something that is not stored.
func (f *file) pending() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.dirty && !f.removed
}

func (f *file) Getattr(ctx context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	ctx, done := patient(ctx)
	defer done()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.spool == nil && !f.removed && time.Since(f.asOf) > fresh {
		if errno := f.refresh(ctx); errno != 0 && (errno != syscall.ENOENT || f.handles == 0) {
			return errno
		}
	}
	f.fill(&out.Attr)
	return 0
}

// refresh looks at the object. mu is held, as in all that follows.
func (f *file) refresh(ctx context.Context) syscall.Errno {
	a, err := f.b.stat(ctx, f.key)
	if err != nil {
		return f.b.errno(ctx, "look at", f.key, err)
	}
	f.attr, f.asOf = a, time.Now()
	return 0
}

// empty gives the file an empty spool.
func (f *file) empty() error {
	spool, err := f.b.newSpool()
	if err != nil {
		return err
	}
	f.drop()
	f.spool, f.attr = spool, attr{mtime: time.Now()}
	f.setDirty(true)
	return nil
}

func (f *file) setDirty(dirty bool) {
	f.dirty = dirty
	f.b.setUnsaved(f, dirty)
}

// drop lets go of the spool.
func (f *file) drop() {
	if f.spool != nil {
		f.spool.Close()
		_ = f.b.reserve(-f.size)
		f.spool = nil
	}
}

// load gives the file a spool with its content.
func (f *file) load(ctx context.Context) error {
	if f.spool != nil {
		return nil
	}
	spool, err := f.b.newSpool()
	if err != nil {
		return err
	}
	if err := f.b.reserve(f.size); err != nil {
		spool.Close()
		return err
	}
	for off := int64(0); off < f.size && err == nil; off += blockSize {
		var data []byte
		if data, err = f.b.fetch(ctx, f.key, f.etag, off, min(blockSize, f.size-off)); err == nil {
			_, err = spool.WriteAt(data, off)
		}
	}
	if err != nil {
		spool.Close()
		_ = f.b.reserve(-f.size)
		return err
	}
	f.spool = spool
	return nil
}

// resize changes the size of a spool.
func (f *file) resize(size int64) error {
	if err := f.b.reserve(size - f.size); err != nil {
		return err
	}
	if err := f.spool.Truncate(size); err != nil {
		_ = f.b.reserve(f.size - size)
		return err
	}
	f.size, f.mtime = size, time.Now()
	f.setDirty(true)
	return nil
}

// save stores the spool if it is not stored.
func (f *file) save(ctx context.Context) syscall.Errno {
	if !f.dirty || f.removed {
		return 0
	}
	a, err := f.b.upload(ctx, f.key, f.spool, f.size)
	if err != nil {
		return f.b.errno(ctx, "store", f.key, err)
	}
	f.attr, f.asOf = a, time.Now()
	f.setDirty(false)
	return 0
}

// discard forgets what is not stored, as the file is removed or replaced.
func (f *file) discard() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.removed = true
	f.setDirty(false)
}

// move gives the file another key.
func (f *file) move(ctx context.Context, key string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if key == f.key {
		return nil
	}
	old := f.key
	if f.dirty {
		a, err := f.b.upload(ctx, key, f.spool, f.size)
		if err != nil {
			return err
		}
		f.attr = a
		f.setDirty(false)
	} else if err := f.b.copy(ctx, old, key, f.attr); err != nil {
		return err
	}
	f.key = key
	if f.spool == nil {
		f.asOf = time.Time{} // the copy has a time, and may have a tag, of its own
		if a, err := f.b.stat(ctx, key); err == nil {
			f.attr, f.asOf = a, time.Now()
		}
	}
	return f.b.remove(ctx, old)
}

func (f *file) Setattr(ctx context.Context, _ fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	ctx, done := patient(ctx)
	defer done()
	if f.b.ReadOnly {
		return syscall.EROFS
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if size, ok := in.GetSize(); ok && !f.removed {
		if errno := f.truncate(ctx, int64(size)); errno != 0 {
			return errno
		}
	}
	f.fill(&out.Attr)
	return 0
}

func (f *file) truncate(ctx context.Context, size int64) syscall.Errno {
	if size < 0 {
		return syscall.EFBIG
	}
	var err error
	switch {
	case size == 0:
		err = f.empty()
	default:
		if f.spool == nil {
			if errno := f.refresh(ctx); errno != 0 {
				return errno
			}
		}
		if size == f.size {
			return 0
		}
		if err = f.load(ctx); err == nil {
			err = f.resize(size)
		}
	}
	if err != nil {
		return f.b.errno(ctx, "truncate", f.key, err)
	}
	if f.handles > 0 {
		return 0
	}
	errno := f.save(ctx)
	f.setDirty(false)
	f.drop()
	return errno
}

func (f *file) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	ctx, done := patient(ctx)
	defer done()
	writes := flags&syscall.O_ACCMODE != syscall.O_RDONLY
	if writes && f.b.ReadOnly {
		return nil, 0, syscall.EROFS
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.removed {
		return nil, 0, syscall.ENOENT
	}
	if f.spool == nil {
		if errno := f.refresh(ctx); errno != 0 {
			return nil, 0, errno
		}
	}
	if writes && flags&syscall.O_TRUNC != 0 {
		if err := f.empty(); err != nil {
			return nil, 0, f.b.errno(ctx, "open", f.key, err)
		}
	}
	f.handles++
	// Without the kernel's cache, which knows nothing of other machines.
	return &handle{file: f, appends: flags&syscall.O_APPEND != 0}, fuse.FOPEN_DIRECT_IO, 0
}

// handle is an open file.
type handle struct {
	*file
	appends bool
	began   bool // it has read; under mu
}

var _ interface {
	fs.FileReader
	fs.FileWriter
	fs.FileFlusher
	fs.FileFsyncer
	fs.FileReleaser
} = (*handle)(nil)

func (h *handle) Read(ctx context.Context, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	ctx, done := patient(ctx)
	defer done()
	f := h.file
	f.mu.Lock()
	defer f.mu.Unlock()
	var n int
	var err error
	if f.spool != nil {
		if n, err = f.spool.ReadAt(dest, off); err == io.EOF {
			err = nil
		}
	} else {
		n, err = f.b.read(ctx, f.key, f.attr, dest, off)
		// Replaced since it was opened; who has read nothing yet may have the new.
		if err != nil && !h.began && f.b.errno(ctx, "read", f.key, err) == syscall.ESTALE {
			if errno := f.refresh(ctx); errno == 0 {
				n, err = f.b.read(ctx, f.key, f.attr, dest, off)
			}
		}
	}
	h.began = true
	if err != nil {
		errno := f.b.errno(ctx, "read", f.key, err)
		if errno == syscall.ENOENT {
			errno = syscall.ESTALE // it was there when it was opened
		}
		return nil, errno
	}
	return fuse.ReadResultData(dest[:n]), 0
}

func (h *handle) Write(ctx context.Context, data []byte, off int64) (uint32, syscall.Errno) {
	ctx, done := patient(ctx)
	defer done()
	f := h.file
	if f.b.ReadOnly {
		return 0, syscall.EROFS
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	err := f.load(ctx)
	if err == nil {
		if h.appends {
			off = f.size
		}
		if end := off + int64(len(data)); end > f.size {
			err = f.resize(end)
		}
	}
	if err == nil {
		_, err = f.spool.WriteAt(data, off)
	}
	if err != nil {
		return 0, f.b.errno(ctx, "write", f.key, err)
	}
	f.mtime = time.Now()
	f.setDirty(!f.removed)
	return uint32(len(data)), 0
}

func (h *handle) Flush(ctx context.Context) syscall.Errno {
	ctx, done := patient(ctx)
	defer done()
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.save(ctx)
}

func (h *handle) Fsync(ctx context.Context, _ uint32) syscall.Errno { return h.Flush(ctx) }

// Release is the last of an open file. What could not be stored when it was
// closed is tried again: nobody hears of it any more.
func (h *handle) Release(context.Context) syscall.Errno {
	f := h.file
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.handles--; f.handles > 0 {
		return 0
	}
	ctx, cancel := context.WithTimeout(context.Background(), lastTimeout)
	defer cancel()
	errno := f.save(ctx)
	if errno != 0 {
		f.b.warn("a file could not be stored and is lost", "key", f.key, "err", errno)
	}
	f.setDirty(false)
	f.drop()
	f.asOf = time.Time{}
	return errno
}
