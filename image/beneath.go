//go:build linux

package image

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// openBeneath opens path, which must be relative, beneath dirfd. No component may be a symbolic
// link (ELOOP) and nothing may lead out of dirfd (EXDEV). openat2(2), Linux 5.6.
func openBeneath(dirfd int, path string, flags int, resolve uint64) (int, error) {
	how := unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC),
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | resolve,
	}
	for range 128 {
		fd, err := unix.Openat2(dirfd, path, &how)
		// EAGAIN: something was renamed or mounted meanwhile, somewhere.
		if err == unix.EINTR || err == unix.EAGAIN {
			continue
		}
		return fd, err
	}
	return -1, unix.EAGAIN
}

func openDirectory(path string) (int, error) {
	for {
		fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return -1, &os.PathError{Op: "open", Path: path, Err: err}
		}
		return fd, nil
	}
}

func lstatAt(dirfd int, name string) (unix.Stat_t, error) {
	var st unix.Stat_t
	err := unix.Fstatat(dirfd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	return st, err
}

func isDir(st *unix.Stat_t) bool     { return st.Mode&unix.S_IFMT == unix.S_IFDIR }
func isSymlink(st *unix.Stat_t) bool { return st.Mode&unix.S_IFMT == unix.S_IFLNK }

// isWhiteout reports whether st is what overlayfs takes for a removed name.
func isWhiteout(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}

func readlinkAt(dirfd int, name string) (string, error) {
	buf := make([]byte, unix.PathMax+1)
	n, err := unix.Readlinkat(dirfd, name, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// RemoveAll removes path and everything in it, like [os.RemoveAll], but also what an image or a
// sandbox can leave behind: directories that their owner may not read or search get mode 0700
// first, and depth is no obstacle. It follows no symbolic link, and stops with an error before a
// mount point instead of emptying what is mounted there. A path that does not exist is no error.
func RemoveAll(path string) error {
	path = filepath.Clean(path)
	name := filepath.Base(path)
	if name == "." || name == ".." || name == "/" {
		return fmt.Errorf("remove %q: want the path of something within a directory", path)
	}
	parent, err := openDirectory(filepath.Dir(path))
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(parent)
	if err := removeAt(parent, name); err != nil {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	return nil
}

// maxRemoveDepth bounds the directories that removeAt keeps open at a time.
const maxRemoveDepth = 64

func removeAt(parent int, name string) error {
	err := unlinkAt(parent, name, 0)
	if err == nil || err == unix.ENOENT {
		return nil
	}
	st, staterr := lstatAt(parent, name)
	if staterr == unix.ENOENT {
		return nil
	}
	if staterr != nil || !isDir(&st) {
		return err
	}
	r := remover{top: -1}
	return r.remove(parent, name, 0)
}

func unlinkAt(parent int, name string, flags int) error {
	for {
		if err := unix.Unlinkat(parent, name, flags); err != unix.EINTR {
			return err
		}
	}
}

// remover removes one tree. Directories below maxRemoveDepth are moved up to its top and removed
// from there, so that neither the stack nor the open files grow with the depth.
type remover struct {
	top   int
	moved int
}

func (r *remover) remove(parent int, name string, depth int) error {
	fd, err := openForRemoval(parent, name)
	if err == unix.ENOENT {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%q: %w", name, err)
	}
	dir := os.NewFile(uintptr(fd), name)
	defer dir.Close()
	if depth == 0 {
		r.top = fd
	}
	// Names are listed again after each round: removing while listing may skip some, and below
	// the top directories are added.
	for {
		names, err := dir.Readdirnames(512)
		for _, child := range names {
			if err := r.child(fd, child, depth); err != nil {
				return fmt.Errorf("%s/%w", name, err)
			}
		}
		if errors.Is(err, unix.ENOENT) {
			return nil // another has removed it since
		}
		if err == io.EOF || (err == nil && len(names) == 0) {
			err := unlinkAt(parent, name, unix.AT_REMOVEDIR)
			if err == nil || err == unix.ENOENT {
				return nil
			}
			if err != unix.ENOTEMPTY && err != unix.EEXIST {
				return fmt.Errorf("%q: %w", name, err)
			}
			if _, err := dir.Seek(0, io.SeekStart); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
	}
}

func (r *remover) child(parent int, name string, depth int) error {
	err := unlinkAt(parent, name, 0)
	if err == nil || err == unix.ENOENT {
		return nil
	}
	st, staterr := lstatAt(parent, name)
	if staterr == unix.ENOENT {
		return nil
	}
	if staterr != nil || !isDir(&st) {
		return fmt.Errorf("%q: %w", name, err)
	}
	if depth+1 < maxRemoveDepth {
		return r.remove(parent, name, depth+1)
	}
	fd, err := openForRemoval(parent, name) // renaming a directory needs write permission in it
	if err == unix.ENOENT {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%q: %w", name, err)
	}
	unix.Close(fd)
	for {
		r.moved++
		err := unix.Renameat2(parent, name, r.top, ".removed-"+strconv.Itoa(r.moved), unix.RENAME_NOREPLACE)
		if err == unix.EEXIST || err == unix.EINTR {
			continue
		}
		if err != nil && err != unix.ENOENT {
			return fmt.Errorf("%q: %w", name, err)
		}
		return nil
	}
}

// openForRemoval opens a directory and makes sure that its owner may empty it.
func openForRemoval(parent int, name string) (int, error) {
	fd, err := openBeneath(parent, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, unix.RESOLVE_NO_XDEV)
	if err == unix.EXDEV {
		return -1, fmt.Errorf("something is mounted here; unmount it first: %w", err)
	}
	if err != nil {
		return -1, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return -1, err
	}
	if st.Mode&0o700 != 0o700 {
		// fchmod refuses an O_PATH descriptor; the magic link of one is the directory itself.
		if err := unix.Chmod("/proc/self/fd/"+strconv.Itoa(fd), 0o700); err != nil && err != unix.EPERM {
			return -1, err
		}
	}
	return openBeneath(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
}
