//go:build linux

package lifecycle

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// RemoveCgroups removes control groups and those below them. Their processes
// must be dead; the kernel may need a moment to notice, so it tries for up to two
// seconds. Those that are not there are no error.
func RemoveCgroups(dirs ...string) error {
	deadline := time.Now().Add(2 * time.Second)
	for wait := 200 * time.Microsecond; ; wait *= 2 {
		var err error
		for _, d := range dirs {
			err = errors.Join(err, removeCgroup(d))
		}
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(wait)
	}
}

// removeCgroup removes a group and those below it, deepest first.
func removeCgroup(dir string) error {
	err := unix.Rmdir(dir)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	entries, readErr := os.ReadDir(dir)
	if readErr != nil {
		return readErr
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeCgroup(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
		return &fs.PathError{Op: "rmdir", Path: dir, Err: err}
	}
	return nil
}
