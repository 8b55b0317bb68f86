//go:build linux

package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// errLocked: another process, or another part of this one, holds the lock.
var errLocked = errors.New("locked")

// A fileLock is an flock(2). The kernel drops it with its process, however that ends.
type fileLock struct{ f *os.File }

// tryLock takes a lock or returns errLocked.
func tryLock(path string, exclusive bool) (*fileLock, error) {
	how := unix.LOCK_SH
	if exclusive {
		how = unix.LOCK_EX
	}
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return nil, err
		}
		switch err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB); err {
		case nil:
		case unix.EINTR:
			f.Close()
			continue
		case unix.EWOULDBLOCK:
			f.Close()
			return nil, errLocked
		default:
			f.Close()
			return nil, &os.PathError{Op: "flock", Path: path, Err: err}
		}
		// Whoever removes unused lock files may have done it between the two calls above; then
		// this lock excludes nobody.
		mine, err := f.Stat()
		if err != nil {
			f.Close()
			return nil, err
		}
		if there, err := os.Stat(path); err == nil && os.SameFile(mine, there) {
			return &fileLock{f}, nil
		}
		f.Close()
	}
}

// lock waits for a lock. It asks again and again rather than sleep in flock(2), which could not
// be cancelled.
func lock(ctx context.Context, path string, exclusive bool) (*fileLock, error) {
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		l, err := tryLock(path, exclusive)
		if err != errLocked {
			return l, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for the lock %s: %w", path, context.Cause(ctx))
		case <-time.After(wait):
		}
	}
}

func (l *fileLock) unlock() { l.f.Close() }
