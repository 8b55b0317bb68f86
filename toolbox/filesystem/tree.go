package filesystem

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

func (s *Service) remove(w http.ResponseWriter, r *http.Request) error {
	p, err := s.queryPath(r, "path")
	if err != nil {
		return err
	}
	recursive, err := queryBool(r, "recursive")
	if err != nil {
		return err
	}
	if below(path.Clean("/"+s.account.Home), p) {
		return invalidPath("%s: holds the user's home directory %s and is not removed", p, s.account.Home)
	}
	err = s.account.Do(func() error {
		at, err := s.place(p)
		if err != nil {
			return err
		}
		defer at.close()
		var st unix.Stat_t
		if err := unix.Fstatat(at.dir, at.name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return pathError("remove", p, err)
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return pathError("remove", p, unix.Unlinkat(at.dir, at.name, 0))
		}
		if recursive {
			return s.removeTree(r.Context(), at)
		}
		err = unix.Unlinkat(at.dir, at.name, unix.AT_REMOVEDIR)
		if errors.Is(err, unix.ENOTEMPTY) {
			return fmt.Errorf("%w; give recursive=true to remove what is in it", pathError("remove", p, err))
		}
		return pathError("remove", p, err)
	})
	if err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// below tells whether a clean absolute path is strictly below dir.
func below(p, dir string) bool {
	return p != dir && (dir == "/" || strings.HasPrefix(p, dir+"/"))
}

// remover removes a tree. It never leaves the file system (mount) that the
// tree's top is on, and follows no link.
type remover struct {
	service *Service
	ctx     context.Context
	top     int      // the top directory
	lifted  []string // names in top: directories moved there from too deep
	first   error
}

// removeDepth is how many directories are open at once. Deeper ones are first
// moved up: a tree can be deeper than any limit on open files.
const removeDepth = 64

// removeTree removes the directory at a place and everything below it. What
// cannot be removed is left, the rest is gone, and the first reason returned.
func (s *Service) removeTree(ctx context.Context, at *place) error {
	r := &remover{service: s, ctx: ctx, top: -1}
	r.directory(at.dir, at.name, at.path, 0)
	return r.first
}

func (r *remover) fail(p string, err error) {
	if r.first == nil {
		r.first = pathError("remove", p, err)
	}
}

func (r *remover) directory(dir int, name, shown string, depth int) {
	if err := r.ctx.Err(); err != nil {
		r.fail(shown, err)
		return
	}
	fd, err := r.enter(dir, name, depth == 0)
	switch {
	case errors.Is(err, unix.ENOENT):
		return
	case errors.Is(err, unix.EXDEV):
		r.fail(shown, fmt.Errorf("is a mount point: %w", unix.EBUSY))
		return
	case errors.Is(err, unix.EACCES):
		// One that is empty can go unread.
		if rmdir := unix.Unlinkat(dir, name, unix.AT_REMOVEDIR); rmdir != nil {
			r.fail(shown, err)
		}
		return
	case err != nil:
		r.fail(shown, err)
		return
	}
	defer unix.Close(fd)
	if depth == 0 {
		r.top = fd
	}
	// Others may add files meanwhile, but not for ever.
	for range 8 {
		r.content(fd, shown, depth)
		if depth == 0 {
			for len(r.lifted) > 0 {
				next := r.lifted[0]
				r.lifted = r.lifted[1:]
				r.directory(fd, next, shown+"/"+next, 1)
			}
		}
		if err = unix.Unlinkat(dir, name, unix.AT_REMOVEDIR); !errors.Is(err, unix.ENOTEMPTY) || r.first != nil {
			break
		}
	}
	if err != nil && !errors.Is(err, unix.ENOENT) {
		r.fail(shown, err)
	}
}

// enter opens a directory without leaving the mount.
func (r *remover) enter(dir int, name string, top bool) (int, error) {
	flags := unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_NONBLOCK
	fd, err := r.service.open.resolve(dir, name, flags, 0, unix.RESOLVE_NO_XDEV|unix.RESOLVE_NO_SYMLINKS)
	if err != nil || !r.service.open.old || top {
		return fd, err
	}
	var a, b unix.Stat_t
	if unix.Fstat(fd, &a) == nil && unix.Fstat(dir, &b) == nil && a.Dev == b.Dev {
		return fd, nil
	}
	unix.Close(fd)
	return -1, unix.EXDEV
}

func (r *remover) content(fd int, shown string, depth int) {
	if _, err := unix.Seek(fd, 0, 0); err != nil {
		r.fail(shown, err)
		return
	}
	names, err := readNames(fd)
	if err != nil {
		r.fail(shown, err)
		return
	}
	for i, name := range names {
		if i%256 == 0 && r.ctx.Err() != nil {
			r.fail(shown, r.ctx.Err())
			return
		}
		err := unix.Unlinkat(fd, name, 0)
		if err == nil || errors.Is(err, unix.ENOENT) {
			continue
		}
		var st unix.Stat_t
		if unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
			r.fail(shown+"/"+name, err)
			continue
		}
		if depth < removeDepth {
			r.directory(fd, name, shown+"/"+name, depth+1)
			continue
		}
		lifted := ".daytona-remove-" + rand.Text()
		if err := unix.Renameat(fd, name, r.top, lifted); err != nil {
			r.fail(shown+"/"+name, err)
			continue
		}
		r.lifted = append(r.lifted, lifted)
	}
}

func (s *Service) move(w http.ResponseWriter, r *http.Request) error {
	source, err := s.queryPath(r, "source")
	if err != nil {
		return err
	}
	destination, err := s.queryPath(r, "destination")
	if err != nil {
		return err
	}
	if below(destination, source) {
		return invalidPath("move %s to %s: a directory cannot go into itself", source, destination)
	}
	if err := s.account.Do(func() error { return s.rename(r.Context(), source, destination) }); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

func (s *Service) rename(ctx context.Context, source, destination string) error {
	from, err := s.place(source)
	if err != nil {
		return err
	}
	defer from.close()
	to, err := s.place(destination)
	if err != nil {
		return err
	}
	defer to.close()
	// Asked first for the better message.
	var st unix.Stat_t
	if err := unix.Fstatat(from.dir, from.name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return pathError("move", source, err)
	}
	err = renameNew(from.dir, from.name, to.dir, to.name)
	if errors.Is(err, unix.EXDEV) {
		err = s.moveAcross(ctx, from, to)
	}
	if errors.Is(err, unix.EEXIST) {
		return &failure{http.StatusConflict, "", fmt.Sprintf("move %s to %s: the destination exists", source, destination)}
	}
	if _, ok := err.(unix.Errno); ok {
		return fmt.Errorf("move %s to %s: %w", source, destination, err)
	}
	return err
}

// renameNew renames unless the new name is taken.
func renameNew(fromDir int, from string, toDir int, to string) error {
	err := unix.Renameat2(fromDir, from, toDir, to, unix.RENAME_NOREPLACE)
	if err == unix.EINVAL || err == unix.ENOSYS {
		// Not every file system has RENAME_NOREPLACE.
		var st unix.Stat_t
		if unix.Fstatat(toDir, to, &st, unix.AT_SYMLINK_NOFOLLOW) == nil {
			return unix.EEXIST
		}
		return unix.Renameat(fromDir, from, toDir, to)
	}
	return err
}

// moveAcross moves between file systems: a copy beside the destination, its
// rename, and the removal of the source. What fails before the rename leaves
// the source alone and no copy.
func (s *Service) moveAcross(ctx context.Context, from, to *place) error {
	var st unix.Stat_t
	if unix.Fstatat(to.dir, to.name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil {
		return unix.EEXIST
	}
	temp := &place{dir: to.dir, name: ".daytona-move-" + rand.Text(), path: to.path}
	buf := s.buffers.Get().(*[bufferSize]byte)
	defer s.buffers.Put(buf)
	c := &copier{service: s, ctx: ctx, buf: buf[:]}
	err := c.copy(from.dir, from.name, temp.dir, temp.name, from.path)
	if err == nil {
		err = renameNew(temp.dir, temp.name, to.dir, to.name)
	}
	if err != nil {
		// Even if the caller is gone.
		s.removeAny(context.WithoutCancel(ctx), temp)
		return err
	}
	if err := s.removeAny(context.WithoutCancel(ctx), from); err != nil {
		return fmt.Errorf("moved to %s, but the source could not be removed: %w", to.path, err)
	}
	return nil
}

func (s *Service) removeAny(ctx context.Context, at *place) error {
	err := unix.Unlinkat(at.dir, at.name, 0)
	var st unix.Stat_t
	if err != nil && unix.Fstatat(at.dir, at.name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return s.removeTree(ctx, at)
	}
	return pathError("remove", at.path, err)
}

// copier copies a tree with modes, times and, where the user may set them,
// owners.
type copier struct {
	service *Service
	ctx     context.Context
	buf     []byte
}

func (c *copier) copy(fromDir int, from string, toDir int, to, shown string) error {
	if err := c.ctx.Err(); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(fromDir, from, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return pathError("copy", shown, err)
	}
	var err error
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return c.file(fromDir, from, toDir, to, shown)
	case unix.S_IFDIR:
		return c.directory(fromDir, from, toDir, to, shown)
	case unix.S_IFLNK:
		var buf [unix.PathMax]byte
		var n int
		if n, err = unix.Readlinkat(fromDir, from, buf[:]); err == nil {
			err = unix.Symlinkat(string(buf[:n]), toDir, to)
		}
	default:
		err = unix.Mknodat(toDir, to, st.Mode, int(st.Rdev))
	}
	if err != nil {
		return pathError("copy", shown, fmt.Errorf("%s: %w", kindOf(st.Mode), err))
	}
	_ = unix.Fchownat(toDir, to, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW)
	return pathError("copy", shown, unix.UtimesNanoAt(toDir, to, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW))
}

func (c *copier) file(fromDir int, from string, toDir int, to, shown string) error {
	in, err := c.service.open.at(fromDir, from, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return pathError("open", shown, err)
	}
	defer unix.Close(in)
	var st unix.Stat_t
	if err := unix.Fstat(in, &st); err != nil {
		return pathError("stat", shown, err)
	}
	if err := notRegular(shown, st.Mode); err != nil {
		return err
	}
	out, err := c.service.open.at(toDir, to, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return pathError("create", shown, err)
	}
	defer unix.Close(out)
	for {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		n, err := ignoringEINTR(func() (int, error) { return unix.Read(in, c.buf) })
		if err != nil {
			return pathError("read", shown, err)
		}
		if n == 0 {
			break
		}
		for b := c.buf[:n]; len(b) > 0; {
			n, err := ignoringEINTR(func() (int, error) { return unix.Write(out, b) })
			if err != nil {
				return pathError("write", shown, err)
			}
			b = b[n:]
		}
	}
	return pathError("copy", shown, keep(out, &st))
}

func (c *copier) directory(fromDir int, from string, toDir int, to, shown string) error {
	in, err := c.service.openDirectory(fromDir, from, shown, unix.O_NOFOLLOW)
	if err != nil {
		return err
	}
	defer in.close()
	var st unix.Stat_t
	if err := unix.Fstat(in.fd, &st); err != nil {
		return pathError("stat", shown, err)
	}
	if err := unix.Mkdirat(toDir, to, 0o700); err != nil {
		return pathError("mkdir", shown, err)
	}
	out, err := c.service.open.at(toDir, to, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return pathError("open", shown, err)
	}
	defer unix.Close(out)
	for _, name := range in.names {
		if err := c.copy(in.fd, name, out, name, shown+"/"+name); err != nil {
			return err
		}
	}
	return pathError("copy", shown, keep(out, &st))
}

// keep gives an open file the owner (if possible), mode and times of another.
func keep(fd int, st *unix.Stat_t) error {
	mode := st.Mode & 0o7777
	if unix.Fchown(fd, int(st.Uid), int(st.Gid)) != nil {
		// Not ours to give: nobody gets set-id rights of another user.
		mode &^= unix.S_ISUID | unix.S_ISGID
	}
	if err := unix.Fchmod(fd, mode); err != nil {
		return err
	}
	// Without procfs the times are lost, which is better than the file.
	_ = unix.UtimesNanoAt(unix.AT_FDCWD, procFD(fd), []unix.Timespec{st.Atim, st.Mtim}, 0)
	return nil
}

func ignoringEINTR(f func() (int, error)) (int, error) {
	for {
		n, err := f()
		if err != unix.EINTR {
			return n, err
		}
	}
}
