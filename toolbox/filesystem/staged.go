package filesystem

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// staged is a file that is being written and not yet there. After begin,
// either commit or abort must be called, once.
type staged struct {
	service *Service
	path    string
	at      *place
	made    []string // directories made on the way
	mode    uint32   // to be
	file    *os.File // written to
	temp    string   // its name in at.dir; "" if it has none
	old     int      // the file that exists, open for writing; -1 if none can be
	exists  bool
	inPlace bool // file is the one that exists
}

// begin prepares a file to be written. wanted is its mode; if hasMode is
// false, that of the file that exists, or 0644.
func (s *Service) begin(p string, wanted uint32, hasMode, parents bool) (*staged, error) {
	t := &staged{service: s, path: p, mode: 0o644, old: -1}
	err := s.account.Do(func() error { return t.prepare(hasMode, parents) })
	if err != nil {
		t.abort()
		return nil, err
	}
	if hasMode {
		t.mode = wanted
	}
	return t, nil
}

func (t *staged) prepare(hasMode, parents bool) (err error) {
	s := t.service
	if t.at, err = s.follow(t.path); parents && (errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR)) {
		if t.made, err = s.makeParents(t.path); err == nil {
			t.at, err = s.follow(t.path)
		}
	}
	if err != nil {
		return err
	}
	var st unix.Stat_t
	switch err := unix.Fstatat(t.at.dir, t.at.name, &st, unix.AT_SYMLINK_NOFOLLOW); {
	case err == nil:
		t.exists = true
	case !errors.Is(err, unix.ENOENT):
		return pathError("open", t.path, err)
	}
	if t.exists {
		if err := notRegular(t.path, st.Mode); err != nil {
			return err
		}
		t.old, err = s.open.at(t.at.dir, t.at.name, unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
		// A program that runs can be replaced, though not overwritten; the
		// kernel says so after it has checked the permission.
		if err != nil && err != unix.ETXTBSY {
			t.old = -1
			return pathError("open", t.path, err)
		}
		if err != nil {
			t.old = -1
		} else {
			if err := unix.Fstat(t.old, &st); err != nil {
				return pathError("open", t.path, err)
			}
			if err := notRegular(t.path, st.Mode); err != nil {
				return err
			}
			_ = unix.SetNonblock(t.old, false)
		}
		if !hasMode {
			t.mode = st.Mode & 0o777
		}
	}
	// Several names mean that others expect to see the change under theirs.
	if st.Nlink > 1 || t.old >= 0 && pseudo(t.old) {
		return t.overwrite()
	}
	err = t.temporary()
	if err == nil && t.exists {
		if fd := int(t.file.Fd()); !sameOwner(fd, &st) {
			err = unix.Fchown(fd, int(st.Uid), int(st.Gid))
		}
	}
	if err != nil && t.old >= 0 && !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
		t.discard()
		return t.overwrite()
	}
	return pathError("create", t.path, err)
}

func sameOwner(fd int, st *unix.Stat_t) bool {
	var now unix.Stat_t
	return unix.Fstat(fd, &now) == nil && now.Uid == st.Uid && now.Gid == st.Gid
}

// temporary makes the new file in the directory of the place: without a name
// if the file system can, so that nobody sees it and a crash leaves nothing.
func (t *staged) temporary() error {
	open := &t.service.open
	fd, err := open.at(t.at.dir, ".", unix.O_TMPFILE|unix.O_RDWR, 0o600)
	if err == nil {
		// It gets its name through procfs.
		var st unix.Stat_t
		if unix.Stat(procFD(fd), &st) == nil {
			t.file = os.NewFile(uintptr(fd), t.path)
			return nil
		}
		unix.Close(fd)
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return err
	}
	name := ".daytona-upload-" + rand.Text()
	fd, err = open.at(t.at.dir, name, unix.O_CREAT|unix.O_EXCL|unix.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	t.temp = name
	t.file = os.NewFile(uintptr(fd), t.path)
	return nil
}

// overwrite makes the file that exists the one that is written to. It is
// truncated by copyFrom.
func (t *staged) overwrite() error {
	if t.old < 0 {
		return pathError("open", t.path, unix.ETXTBSY)
	}
	t.file, t.old, t.inPlace = os.NewFile(uintptr(t.old), t.path), -1, true
	return nil
}

// copyFrom fills the file. An error of r is returned as a *sourceError.
func (t *staged) copyFrom(r io.Reader) (int64, error) {
	buf := t.service.buffers.Get().(*[bufferSize]byte)
	defer t.service.buffers.Put(buf)
	var total int64
	if t.inPlace {
		// Not all files of procfs can be truncated, nor need to be.
		if err := t.file.Truncate(0); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EPERM) {
			return 0, cleaned("truncate", t.path, err)
		}
	}
	for {
		n, readErr := fill(r, buf[:])
		if n > 0 {
			written, err := t.file.Write(buf[:n])
			total += int64(written)
			if err != nil {
				return total, cleaned("write", t.path, err)
			}
		}
		if readErr == io.EOF {
			return total, nil
		}
		if readErr != nil {
			return total, &sourceError{readErr}
		}
	}
}

// fill is io.ReadFull that keeps the error of r: a body that was cut off says
// io.ErrUnexpectedEOF itself.
func fill(r io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var m int
		m, err = r.Read(buf[n:])
		n += m
	}
	return n, err
}

// sourceError is an error of what was to be written.
type sourceError struct{ error }

func (e *sourceError) Unwrap() error { return e.error }

// cleaned replaces the context that package os put around an errno by ours.
func cleaned(op, p string, err error) error {
	if errno, ok := errors.AsType[unix.Errno](err); ok {
		err = errno
	}
	return pathError(op, p, err)
}

// commit makes the file visible.
func (t *staged) commit(hasMode bool) error {
	err := t.service.account.Do(func() error {
		if t.inPlace {
			if hasMode {
				return unix.Fchmod(int(t.file.Fd()), t.mode)
			}
			return nil
		}
		if err := unix.Fchmod(int(t.file.Fd()), t.mode); err != nil {
			return err
		}
		err := t.publish()
		if err != nil && t.old >= 0 && slices.Contains([]error{unix.EBUSY, unix.EPERM, unix.EACCES, unix.EXDEV, unix.ETXTBSY}, err) {
			return t.copyOver()
		}
		return err
	})
	if err == nil {
		// Some file systems tell only now that the space ran out.
		if err = t.file.Close(); err == nil {
			t.file, t.temp, t.made = nil, "", nil
		}
	}
	t.abort()
	return cleaned("write", t.path, err)
}

// publish gives the new file its name, replacing the old.
func (t *staged) publish() error {
	dir := t.at.dir
	if t.temp == "" {
		fd := procFD(int(t.file.Fd()))
		if !t.exists {
			err := unix.Linkat(unix.AT_FDCWD, fd, dir, t.at.name, unix.AT_SYMLINK_FOLLOW)
			if !errors.Is(err, unix.EEXIST) {
				return err
			}
		}
		// A link replaces nothing, a rename does.
		name := ".daytona-upload-" + rand.Text()
		if err := unix.Linkat(unix.AT_FDCWD, fd, dir, name, unix.AT_SYMLINK_FOLLOW); err != nil {
			return err
		}
		t.temp = name
	}
	err := unix.Renameat(dir, t.temp, dir, t.at.name)
	if err == nil {
		t.temp = ""
	}
	return err
}

// copyOver overwrites the old file by the new one, where a rename cannot.
func (t *staged) copyOver() error {
	if _, err := t.file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if err := unix.Ftruncate(t.old, 0); err != nil {
		return err
	}
	old := os.NewFile(uintptr(t.old), t.path)
	t.old = -1
	buf := t.service.buffers.Get().(*[bufferSize]byte)
	defer t.service.buffers.Put(buf)
	// Behind plain interfaces: no splice, which may leave this thread.
	_, err := io.CopyBuffer(struct{ io.Writer }{old}, struct{ io.Reader }{t.file}, buf[:])
	if err == nil {
		err = unix.Fchmod(int(old.Fd()), t.mode)
	}
	return errors.Join(err, old.Close())
}

// abort takes everything back that commit did not make visible.
func (t *staged) abort() {
	_ = t.service.account.Do(func() error {
		t.discard()
		t.service.removeMade(t.made)
		return nil
	})
	if t.old >= 0 {
		unix.Close(t.old)
		t.old = -1
	}
	if t.at != nil {
		t.at.close()
		t.at = nil
	}
}

// discard gives up the new file.
func (t *staged) discard() {
	if t.file != nil {
		t.file.Close()
		t.file = nil
	}
	if t.temp != "" {
		_ = unix.Unlinkat(t.at.dir, t.temp, 0)
		t.temp = ""
	}
}

// store writes a whole file from r.
func (s *Service) store(p string, r io.Reader, mode uint32, hasMode bool) (int64, error) {
	t, err := s.begin(p, mode, hasMode, true)
	if err != nil {
		return 0, err
	}
	n, err := t.copyFrom(r)
	if err != nil {
		t.abort()
		if _, ok := errors.AsType[*sourceError](err); ok {
			return n, fmt.Errorf("upload of %s ended after %d bytes: %w", p, n, err)
		}
		return n, err
	}
	return n, t.commit(hasMode)
}
