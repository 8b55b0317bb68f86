//go:build linux

// Package tree copies the file trees of sandboxes, which may hold anything: it
// follows no link, and neither depth nor names nor kinds of files matter to it.
package tree

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrTooLarge says that a tree has more files than [Options.MaxFiles].
var ErrTooLarge = errors.New("the tree has too many files")

// Options of [Copy].
type Options struct {
	// MaxFiles that are copied. Defaults to 5,000,000.
	MaxFiles int
}

// Stats is what [Copy] copied.
type Stats struct {
	Files int
	// Bytes that the files take, holes not counted.
	Bytes int64
}

// Copy copies what is in the directory src, and what is known of that directory
// itself, into the empty directory dst: the upper directory of an overlay, with
// its whiteouts. It keeps owners, modes, times, extended attributes, holes and
// hard links, and shares blocks where the file system can. work is an empty
// directory of the same file system as dst, which it leaves empty unless it
// fails. Nobody may change src meanwhile; whoever does spoils only the copy.
func Copy(ctx context.Context, dst, src, work string, opts *Options) (Stats, error) {
	c := &copier{ctx: ctx, max: 5_000_000, links: map[inode]bool{}, clone: true}
	if opts != nil && opts.MaxFiles > 0 {
		c.max = opts.MaxFiles
	}
	err := c.run(dst, src, work)
	if err != nil {
		err = fmt.Errorf("copy the files of a sandbox: %w", err)
	}
	return c.stats, err
}

type inode struct{ dev, ino uint64 }

type copier struct {
	ctx   context.Context
	max   int
	stats Stats
	work  int
	links map[inode]bool // those with several names, of which the first is in work
	clone bool           // the file system may share blocks
	buf   []byte
	under bool // dst has a tree, which what is copied lies below; see Merge
}

const dirFlags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC

// level is a directory whose content is being copied.
type level struct {
	names []string
	dev   uint64
	ino   uint64
	// above is what the destination was, if it was there before.
	above *unix.Stat_t
}

func (c *copier) run(dst, src, work string) (err error) {
	open := func(p string) (fd int) {
		if err == nil {
			if fd, err = unix.Open(p, dirFlags, 0); err != nil {
				err = &os.PathError{Op: "open", Path: p, Err: err}
			}
		}
		return fd
	}
	from, to := open(src), open(dst)
	c.work = open(work)
	if err != nil {
		return err
	}
	defer func() { unix.Close(from); unix.Close(to); unix.Close(c.work) }()
	l, err := c.list(from)
	if err != nil {
		return err
	}
	if c.under {
		l.above = new(unix.Stat_t)
		if err := unix.Fstat(to, l.above); err != nil {
			return err
		}
	}
	// Only two directories are open at a time: a way back up is "..", which is
	// checked to be where it came from.
	stack := []level{l}
	for {
		l := &stack[len(stack)-1]
		if len(l.names) == 0 {
			if l.above == nil {
				err = c.directoryMeta(from, to)
			} else {
				err = restoreTimes(to, l.above)
			}
			if err != nil {
				return err
			}
			stack = stack[:len(stack)-1]
			if len(stack) == 0 {
				break
			}
			if from, to, err = up(from, to, stack[len(stack)-1]); err != nil {
				return err
			}
			continue
		}
		name := l.names[len(l.names)-1]
		l.names = l.names[:len(l.names)-1]
		if err := c.ctx.Err(); err != nil {
			return err
		}
		if c.stats.Files++; c.stats.Files > c.max {
			return fmt.Errorf("%w: more than %d", ErrTooLarge, c.max)
		}
		var st unix.Stat_t
		if err := unix.Fstatat(from, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return &os.PathError{Op: "stat", Path: name, Err: err}
		}
		var above *unix.Stat_t
		if c.under {
			done, err := hidden(from, to, name, &st, &above)
			if err != nil {
				return &os.PathError{Op: "merge", Path: name, Err: err}
			}
			if done {
				continue
			}
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			if err := c.file(from, to, name, &st); err != nil {
				return &os.PathError{Op: "copy", Path: name, Err: err}
			}
			continue
		}
		if above == nil {
			if err := unix.Mkdirat(to, name, 0o700); err != nil {
				return &os.PathError{Op: "mkdir", Path: name, Err: err}
			}
		}
		subFrom, err := unix.Openat(from, name, dirFlags, 0)
		if err != nil {
			return &os.PathError{Op: "open", Path: name, Err: err}
		}
		subTo, err := unix.Openat(to, name, dirFlags, 0)
		if err != nil {
			unix.Close(subFrom)
			return &os.PathError{Op: "open", Path: name, Err: err}
		}
		unix.Close(from)
		unix.Close(to)
		from, to = subFrom, subTo
		sub, err := c.list(from)
		if err != nil {
			return err
		}
		sub.above = above
		stack = append(stack, sub)
	}
	for i := range c.links {
		if err := unix.Unlinkat(c.work, i.name(), 0); err != nil {
			return err
		}
	}
	return nil
}

func (i inode) name() string {
	return strconv.FormatUint(i.dev, 16) + "-" + strconv.FormatUint(i.ino, 16)
}

// up replaces two directories by those above; the source must be what it was.
func up(from, to int, l level) (int, int, error) {
	above, err := unix.Openat(from, "..", dirFlags, 0)
	if err != nil {
		return from, to, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(above, &st); err != nil || st.Dev != l.dev || st.Ino != l.ino {
		unix.Close(above)
		return from, to, errors.Join(errors.New("a directory was moved meanwhile"), err)
	}
	aboveTo, err := unix.Openat(to, "..", dirFlags, 0)
	if err != nil {
		unix.Close(above)
		return from, to, err
	}
	unix.Close(from)
	unix.Close(to)
	return above, aboveTo, nil
}

// list reads a directory without moving the offset of dir.
func (c *copier) list(dir int) (level, error) {
	var st unix.Stat_t
	if err := unix.Fstat(dir, &st); err != nil {
		return level{}, err
	}
	fd, err := unix.Openat(dir, ".", dirFlags, 0)
	if err != nil {
		return level{}, err
	}
	f := os.NewFile(uintptr(fd), "directory")
	defer f.Close()
	l := level{dev: st.Dev, ino: st.Ino}
	for {
		names, err := f.Readdirnames(4096)
		l.names = append(l.names, names...)
		if len(l.names) > c.max {
			return l, fmt.Errorf("%w: more than %d in a directory", ErrTooLarge, c.max)
		}
		if err == io.EOF {
			return l, nil
		}
		if err != nil {
			return l, err
		}
	}
}

func (c *copier) file(from, to int, name string, st *unix.Stat_t) error {
	id := inode{st.Dev, st.Ino}
	if c.links[id] {
		return unix.Linkat(c.work, id.name(), to, name, 0)
	}
	var err error
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		err = c.regular(from, to, name, st)
	case unix.S_IFLNK:
		err = symlink(from, to, name, st)
	case unix.S_IFIFO, unix.S_IFSOCK:
		err = unix.Mknodat(to, name, st.Mode&unix.S_IFMT|0o600, 0)
	case unix.S_IFCHR:
		if st.Rdev != 0 {
			return nil // no sandbox can have made it, nor use it
		}
		err = unix.Mknodat(to, name, unix.S_IFCHR|0o600, 0) // a whiteout
	default:
		return nil
	}
	if err != nil {
		return err
	}
	if err := unix.Fchownat(to, name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK, unix.S_IFREG:
	default:
		if err := unix.Fchmodat(to, name, st.Mode&0o7777, 0); err != nil {
			return err
		}
	}
	if st.Mode&unix.S_IFMT == unix.S_IFREG { // after the owner, whose change takes away bits and capabilities
		if err := regularMeta(from, to, name, st); err != nil {
			return err
		}
	}
	if err := unix.UtimesNanoAt(to, name, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Nlink > 1 {
		if err := unix.Linkat(to, name, c.work, id.name(), 0); err != nil {
			return err
		}
		c.links[id] = true
	}
	return nil
}

func symlink(from, to int, name string, st *unix.Stat_t) error {
	buf := make([]byte, unix.PathMax+1)
	n, err := unix.Readlinkat(from, name, buf)
	if err != nil {
		return err
	}
	return unix.Symlinkat(string(buf[:n]), to, name)
}

// openRegular opens a file that was seen to be regular. One that has become
// something else is not waited for.
func openRegular(dir int, name string, flags int) (*os.File, error) {
	fd, err := unix.Openat(dir, name, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		unix.Close(fd)
		return nil, errors.Join(errors.New("a file was replaced meanwhile"), err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

func regularMeta(from, to int, name string, st *unix.Stat_t) error {
	in, err := openRegular(from, name, unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := openRegular(to, name, unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer out.Close()
	if err := unix.Fchmod(int(out.Fd()), st.Mode&0o7777); err != nil {
		return err
	}
	return copyXattrs(int(in.Fd()), int(out.Fd()))
}

func (c *copier) regular(from, to int, name string, st *unix.Stat_t) error {
	in, err := openRegular(from, name, unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer in.Close()
	fd, err := unix.Openat(to, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	out := os.NewFile(uintptr(fd), name)
	defer out.Close()
	if st.Size == 0 {
		return out.Close()
	}
	if c.clone {
		switch err := unix.IoctlFileClone(fd, int(in.Fd())); err {
		case nil:
			c.stats.Bytes += st.Blocks * 512
			return out.Close()
		case unix.EOPNOTSUPP, unix.ENOTTY, unix.EXDEV, unix.EINVAL, unix.ENOSYS, unix.EPERM:
			c.clone = false
		}
	}
	if err := unix.Ftruncate(fd, st.Size); err != nil {
		return err
	}
	for off := int64(0); off < st.Size; {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		data, err := unix.Seek(int(in.Fd()), off, unix.SEEK_DATA)
		if err == unix.ENXIO {
			break // a hole up to the end
		}
		if err != nil {
			return err
		}
		hole, err := unix.Seek(int(in.Fd()), data, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		if err := c.span(in, out, data, min(hole, st.Size)); err != nil {
			return err
		}
		off = hole
	}
	return out.Close()
}

// span copies the bytes from one offset to another.
func (c *copier) span(in, out *os.File, off, end int64) error {
	for off < end {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		a, b := off, off
		n, err := unix.CopyFileRange(int(in.Fd()), &a, int(out.Fd()), &b, int(min(end-off, 64<<20)), 0)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EXDEV, err == unix.EINVAL, err == unix.EOPNOTSUPP, err == unix.ENOSYS:
			if c.buf == nil {
				c.buf = make([]byte, 1<<20)
			}
			n, err = in.ReadAt(c.buf[:min(int64(len(c.buf)), end-off)], off)
			if n > 0 {
				_, err = out.WriteAt(c.buf[:n], off)
			} else if err == io.EOF {
				return nil
			}
			if err != nil {
				return err
			}
		case err != nil:
			return err
		case n == 0:
			return nil // it has become shorter
		}
		off += int64(n)
		c.stats.Bytes += int64(n)
	}
	return nil
}

// directoryMeta gives a directory, whose content is there, what the source has.
func (c *copier) directoryMeta(from, to int) error {
	var st unix.Stat_t
	if err := unix.Fstat(from, &st); err != nil {
		return err
	}
	if err := unix.Fchown(to, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := unix.Fchmod(to, st.Mode&0o7777); err != nil {
		return err
	}
	if err := copyXattrs(from, to); err != nil {
		return err
	}
	return unix.UtimesNanoAt(to, ".", []unix.Timespec{st.Atim, st.Mtim}, 0)
}

// notKept are attributes with which an overlay keeps track of its upper
// directory: of no meaning in a copy.
var notKept = []string{"user.overlay.origin", "user.overlay.impure", "user.overlay.nlink", "user.overlay.upper", "user.overlay.uuid"}

func copyXattrs(from, to int) error {
	size, err := unix.Flistxattr(from, nil)
	if err != nil || size == 0 {
		if err == unix.EOPNOTSUPP {
			return nil
		}
		return err
	}
	names := make([]byte, size)
	if size, err = unix.Flistxattr(from, names); err != nil {
		return err
	}
	value := make([]byte, 64<<10) // XATTR_SIZE_MAX
	for name := range strings.SplitSeq(strings.TrimRight(string(names[:size]), "\x00"), "\x00") {
		if name == "" || slices.Contains(notKept, name) {
			continue
		}
		n, err := unix.Fgetxattr(from, name, value)
		if err == unix.ENODATA {
			continue
		}
		if err != nil {
			return fmt.Errorf("attribute %s: %w", name, err)
		}
		// security.* and trusted.* are the kernel's and this machine's.
		if err := unix.Fsetxattr(to, name, value[:n], 0); err != nil && strings.HasPrefix(name, "user.") {
			return fmt.Errorf("attribute %s: %w", name, err)
		}
	}
	return nil
}

// Size is what a tree takes on disk, in bytes, as far as max files tell.
func Size(ctx context.Context, dir string, max int) (int64, error) {
	c := &copier{ctx: ctx, max: max}
	var total int64
	fd, err := unix.Open(dir, dirFlags, 0)
	if err != nil {
		return 0, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer func() { unix.Close(fd) }()
	l, err := c.list(fd)
	if err != nil {
		return 0, err
	}
	stack := []level{l}
	for files := 0; len(stack) > 0; {
		l := &stack[len(stack)-1]
		if len(l.names) == 0 {
			if stack = stack[:len(stack)-1]; len(stack) == 0 {
				break
			}
			above, err := unix.Openat(fd, "..", dirFlags, 0)
			if err != nil {
				return total, err
			}
			unix.Close(fd)
			fd = above
			continue
		}
		name := l.names[len(l.names)-1]
		l.names = l.names[:len(l.names)-1]
		if err := ctx.Err(); err != nil {
			return total, err
		}
		if files++; files > max {
			break
		}
		var st unix.Stat_t
		if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			continue
		}
		total += st.Blocks * 512 / shares(int64(st.Nlink), st.Mode&unix.S_IFMT == unix.S_IFREG)
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			continue
		}
		sub, err := unix.Openat(fd, name, dirFlags, 0)
		if err != nil {
			continue // not readable for us
		}
		unix.Close(fd)
		fd = sub
		next, err := c.list(fd)
		if err != nil {
			return total, err
		}
		stack = append(stack, next)
	}
	return total, nil
}

// shares is by how many names the blocks of a file are shared.
func shares(nlink int64, regular bool) int64 {
	if !regular || nlink < 1 {
		return 1
	}
	return nlink
}
