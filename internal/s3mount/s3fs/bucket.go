//go:build linux

package s3fs

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/daytona-go/daytona/internal/objects/s3"
	"github.com/daytona-go/daytona/internal/s3mount"
	"github.com/minio/minio-go/v7"
	"golang.org/x/sys/unix"
)

const (
	// requestTimeout limits all but the transfer of a file's content, which is
	// given up when nothing moves any more.
	requestTimeout = 30 * time.Second
	// maxRequests is how many requests to the service run at once, and
	// maxTransfers how many of lists, and how many of files to be stored: those
	// take memory.
	maxRequests  = 16
	maxTransfers = 4
	// maxEntries is how many names of a directory can be listed.
	maxEntries = 100_000
	// blockSize is how much is read at once, and maxBlocks how many of these are
	// kept.
	blockSize = 4 << 20
	maxBlocks = 16

	freedTimeout = time.Second
	quietTime    = 10 * time.Second // between two messages of what fails

	maxName = 255
	maxKey  = 1024
)

// bucket is what all files and directories have in common.
type bucket struct {
	s3mount.Config
	store  *s3.Store
	client *minio.Client
	name   string
	prefix string // "" or ends with "/"
	log    *slog.Logger
	start  time.Time
	// slow is client for what a service thinks about for longer than it may be
	// silent otherwise.
	slow            *minio.Client
	requests, lists chan struct{}
	uploads         chan struct{}
	freed           chan struct{} // there may be room in the spool again
	blocks          blocks

	mu      sync.Mutex
	warned  time.Time
	silent  int            // messages since then
	spooled int64          // bytes reserved for what is not stored
	unsaved map[*file]bool // with something that is not stored
}

func newBucket(c s3mount.Config, log *slog.Logger) (*bucket, error) {
	store, err := s3.Open(c.Location, &s3.Options{Attempts: attempts, Stall: stall})
	if err != nil {
		return nil, err
	}
	slow, err := s3.Open(c.Location, &s3.Options{Attempts: attempts, Stall: slowStall})
	if err != nil {
		return nil, err
	}
	b := &bucket{Config: c, store: store, log: log, start: time.Now(), unsaved: map[*file]bool{},
		requests: make(chan struct{}, maxRequests), lists: make(chan struct{}, maxTransfers), uploads: make(chan struct{}, maxTransfers), freed: make(chan struct{}, 1)}
	b.slow, _, _ = slow.Raw()
	b.client, b.name, b.prefix = store.Raw()
	b.blocks.data = map[blockKey]*list.Element{}
	return b, nil
}

// check looks whether the bucket can be read.
func (b *bucket) check(ctx context.Context) error {
	for o := range b.client.ListObjectsIter(ctx, b.name, minio.ListObjectsOptions{Prefix: b.prefix, MaxKeys: 1}) {
		if o.Err != nil {
			return b.store.Explain("list objects", "", o.Err)
		}
		break
	}
	return ctx.Err()
}

// turn waits for a turn to ask the service.
func turn(ctx context.Context, slots chan struct{}) (done func(), err error) {
	select {
	case slots <- struct{}{}:
		return func() { <-slots }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// errno is what a program inside gets for an error. asked is the context of its
// request, which ends when the program is interrupted.
func (b *bucket) errno(asked context.Context, what, key string, err error) syscall.Errno {
	if err == nil {
		return 0
	}
	if asked.Err() != nil {
		return syscall.EINTR
	}
	if e, ok := errors.AsType[syscall.Errno](err); ok && (e == syscall.ENOSPC || e == syscall.EDQUOT || e == syscall.EFBIG || e == syscall.EOVERFLOW) {
		return e
	}
	resp, _ := errors.AsType[minio.ErrorResponse](err)
	switch resp.Code {
	case "NoSuchKey", "NotFound":
		return syscall.ENOENT
	case "AccessDenied", "AllAccessDisabled":
		return syscall.EACCES
	case "PreconditionFailed":
		return syscall.ESTALE
	case "QuotaExceeded", "XMinioStorageFull", "StorageFull":
		return syscall.ENOSPC
	case "KeyTooLongError":
		return syscall.ENAMETOOLONG
	}
	switch resp.StatusCode {
	case http.StatusNotFound:
		if resp.Code != "NoSuchBucket" {
			return syscall.ENOENT
		}
	case http.StatusForbidden:
		return syscall.EACCES
	case http.StatusPreconditionFailed:
		return syscall.ESTALE
	}
	b.warn("the object storage fails", "what", what, "key", key, "err", b.store.Explain(what, key, err))
	return syscall.EIO
}

// warn logs, but not all that a program inside can make happen.
func (b *bucket) warn(msg string, args ...any) {
	b.mu.Lock()
	b.silent++
	n := b.silent
	quiet := time.Since(b.warned) < quietTime
	if !quiet {
		b.warned, b.silent = time.Now(), 0
	}
	b.mu.Unlock()
	if !quiet {
		b.log.Warn(msg, append(args, "times", n)...)
	}
}

// checkName reports what is wrong with a name in a directory, whose key is dir.
func (b *bucket) checkName(dir, name string) syscall.Errno {
	switch {
	case len(name) > maxName || len(b.prefix)+len(dir)+len(name)+1 > maxKey:
		return syscall.ENAMETOOLONG
	case !utf8.ValidString(name):
		return syscall.EILSEQ
	case !validName(name):
		return syscall.EINVAL
	}
	return 0
}

// validName reports whether part of a key can be a name.
func validName(name string) bool {
	return name != "" && name != "." && name != ".." && len(name) <= maxName && utf8.ValidString(name) && !strings.ContainsAny(name, "/\x00")
}

// attr is what is known of an object.
type attr struct {
	size  int64
	mtime time.Time
	etag  string
}

func (b *bucket) stat(ctx context.Context, key string) (attr, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	done, err := turn(ctx, b.requests)
	if err != nil {
		return attr{}, err
	}
	defer done()
	o, err := b.client.StatObject(ctx, b.name, b.prefix+key, minio.StatObjectOptions{})
	if err != nil {
		return attr{}, err
	}
	return attr{size: o.Size, mtime: o.LastModified, etag: o.ETag}, nil
}

// entry is a name in a directory.
type entry struct {
	attr
	dir bool
}

// list lists up to limit names of a directory, whose key is "" or ends with "/";
// marked says that it has an object of its own, with any that there is at all.
func (b *bucket) list(ctx context.Context, key string, limit int) (names map[string]entry, marked bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	done, err := turn(ctx, b.lists)
	if err != nil {
		return nil, false, err
	}
	defer done()
	names = map[string]entry{}
	opts := minio.ListObjectsOptions{Prefix: b.prefix + key}
	if limit < 1000 {
		opts.MaxKeys = limit + 1
	}
	for o := range b.client.ListObjectsIter(ctx, b.name, opts) {
		if o.Err != nil {
			return nil, false, o.Err
		}
		name, below := strings.CutPrefix(o.Key, b.prefix+key)
		if !below {
			continue
		}
		if name == "" {
			marked = true
			continue
		}
		name, isDir := strings.CutSuffix(name, "/")
		if !validName(name) || names[name].dir { // a directory hides the file of its name
			continue
		}
		names[name] = entry{dir: isDir, attr: attr{size: o.Size, mtime: o.LastModified, etag: o.ETag}}
		if len(names) >= limit {
			break
		}
	}
	return names, marked, ctx.Err()
}

// any reports whether a directory has anything below it, or is there itself.
func (b *bucket) any(ctx context.Context, key string) (some, marked bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	done, err := turn(ctx, b.requests)
	if err != nil {
		return false, false, err
	}
	defer done()
	for o := range b.client.ListObjectsIter(ctx, b.name, minio.ListObjectsOptions{Prefix: b.prefix + key, Recursive: true, MaxKeys: 2}) {
		if o.Err != nil {
			return false, false, o.Err
		}
		if o.Key == b.prefix+key {
			marked = true
			continue
		}
		some = true
		break
	}
	return some, marked, ctx.Err()
}

// mark makes the object of a directory.
func (b *bucket) mark(ctx context.Context, key string) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	done, err := turn(ctx, b.requests)
	if err != nil {
		return err
	}
	defer done()
	_, err = b.client.PutObject(ctx, b.name, b.prefix+key, strings.NewReader(""), 0, minio.PutObjectOptions{ContentType: "application/x-directory", SendContentMd5: true})
	return err
}

func (b *bucket) remove(ctx context.Context, key string) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	done, err := turn(ctx, b.requests)
	if err != nil {
		return err
	}
	defer done()
	err = b.client.RemoveObject(ctx, b.name, b.prefix+key, minio.RemoveObjectOptions{})
	if resp, ok := errors.AsType[minio.ErrorResponse](err); ok && resp.Code == "NoSuchKey" {
		return nil
	}
	return err
}

// copy copies an object in the service. It may take a while.
func (b *bucket) copy(ctx context.Context, from, to string, a attr) error {
	done, err := turn(ctx, b.requests)
	if err != nil {
		return err
	}
	defer done()
	src := minio.CopySrcOptions{Bucket: b.name, Object: b.prefix + from}
	dst := minio.CopyDestOptions{Bucket: b.name, Object: b.prefix + to}
	const maxCopy = 5 << 30
	if a.size < maxCopy {
		_, err = b.slow.CopyObject(ctx, dst, src)
	} else {
		_, err = b.slow.ComposeObject(ctx, dst, src)
	}
	return err
}

// upload stores what is spooled.
func (b *bucket) upload(ctx context.Context, key string, from io.ReaderAt, size int64) (attr, error) {
	done, err := turn(ctx, b.uploads)
	if err != nil {
		return attr{}, err
	}
	defer done()
	info, err := b.slow.PutObject(ctx, b.name, b.prefix+key, io.NewSectionReader(from, 0, size), size,
		minio.PutObjectOptions{ContentType: "application/octet-stream", SendContentMd5: true, PartSize: 16 << 20, NumThreads: 2})
	if err != nil {
		return attr{}, err
	}
	when := info.LastModified
	if when.IsZero() {
		when = time.Now()
	}
	return attr{size: size, mtime: when, etag: info.ETag}, nil
}

// fetch reads part of an object as it was at a time, which its etag names.
func (b *bucket) fetch(ctx context.Context, key, etag string, off, n int64) ([]byte, error) {
	done, err := turn(ctx, b.requests)
	if err != nil {
		return nil, err
	}
	defer done()
	var opts minio.GetObjectOptions
	if etag != "" {
		if err := opts.SetMatchETag(etag); err != nil {
			return nil, err
		}
	}
	if err := opts.SetRange(off, off+n-1); err != nil {
		return nil, err
	}
	var data []byte
	for try := 0; ; try++ {
		data, err = b.get(ctx, key, etag, opts, n)
		if err == nil || ctx.Err() != nil || try+1 >= attempts {
			return data, err
		}
		if _, answered := errors.AsType[minio.ErrorResponse](err); answered {
			return nil, err
		}
	}
}

func (b *bucket) get(ctx context.Context, key, etag string, opts minio.GetObjectOptions, n int64) ([]byte, error) {
	body, info, _, err := (&minio.Core{Client: b.client}).GetObject(ctx, b.name, b.prefix+key, opts)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	if etag != "" && info.ETag != etag { // a service that takes no conditions, or looks twice
		return nil, minio.ErrorResponse{Code: "PreconditionFailed", Message: "the object has been replaced"}
	}
	data := make([]byte, n)
	if _, err := io.ReadFull(body, data); err != nil {
		return nil, fmt.Errorf("read: %w", err)
	}
	return data, nil
}

// newSpool makes a file without a name.
func (b *bucket) newSpool() (*os.File, error) {
	fd, err := unix.Openat(s3mount.SpoolFD, ".", unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, os.NewSyscallError("make a file", err)
	}
	return os.NewFile(uintptr(fd), "spool"), nil
}

// reserve takes room for what is to be stored, or gives it back. The kernel tells
// of files that are closed a moment later, so where there is no room it waits for
// that.
func (b *bucket) reserve(n int64) error {
	var late <-chan time.Time
	for {
		b.mu.Lock()
		fits := n <= 0 || n <= b.MaxSpool-b.spooled
		if fits {
			b.spooled += n
		}
		b.mu.Unlock()
		switch {
		case fits && n < 0:
			select {
			case b.freed <- struct{}{}:
			default:
			}
			return nil
		case fits:
			return nil
		case n > b.MaxSpool:
			return syscall.ENOSPC
		case late == nil:
			late = time.After(freedTimeout)
		}
		select {
		case <-b.freed:
		case <-late:
			return syscall.ENOSPC
		}
	}
}

func (b *bucket) setUnsaved(f *file, unsaved bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if unsaved {
		b.unsaved[f] = true
	} else {
		delete(b.unsaved, f)
	}
}

// storeAll stores what is not stored yet.
func (b *bucket) storeAll(ctx context.Context) {
	b.mu.Lock()
	var files []*file
	for f := range b.unsaved {
		files = append(files, f)
	}
	b.mu.Unlock()
	for _, f := range files {
		f.mu.Lock()
		if errno := f.save(ctx); errno != 0 {
			b.warn("a file could not be stored and is lost", "key", f.key, "err", errno)
		}
		f.mu.Unlock()
	}
}

// blocks are parts of objects that were read, the most recently used first.
type blocks struct {
	mu   sync.Mutex
	used list.List
	data map[blockKey]*list.Element
}

type blockKey struct {
	key, etag string
	index     int64
}

type block struct {
	blockKey
	data []byte
}

func (c *blocks) get(k blockKey) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.data[k]
	if e == nil {
		return nil
	}
	c.used.MoveToFront(e)
	return e.Value.(*block).data
}

func (c *blocks) put(k blockKey, data []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.data[k]; e != nil {
		c.used.MoveToFront(e)
		return
	}
	c.data[k] = c.used.PushFront(&block{k, data})
	for c.used.Len() > maxBlocks {
		last := c.used.Back()
		c.used.Remove(last)
		delete(c.data, last.Value.(*block).blockKey)
	}
}

// read reads from an object.
func (b *bucket) read(ctx context.Context, key string, a attr, p []byte, off int64) (int, error) {
	n := 0
	for n < len(p) && off < a.size {
		k := blockKey{key, a.etag, off / blockSize}
		data := b.blocks.get(k)
		if data == nil {
			from := k.index * blockSize
			var err error
			if data, err = b.fetch(ctx, key, a.etag, from, min(blockSize, a.size-from)); err != nil {
				return n, err
			}
			b.blocks.put(k, data)
		}
		m := copy(p[n:], data[off-k.index*blockSize:])
		n, off = n+m, off+int64(m)
	}
	return n, nil
}
