//go:build linux

package tree

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ErrFormat says that a stream is not one of [Pack].
var ErrFormat = errors.New("not a stream of a packed tree")

const xattrRecord = "SCHILY.xattr."

// Pack writes a tree as a tar stream that [Unpack] takes: the content of dir and
// dir itself, each directory before what is in it, with whiteouts as the devices
// that they are. What it keeps is what [Copy] keeps, sockets excepted.
func Pack(ctx context.Context, w io.Writer, dir string) error {
	p := &packer{copier: copier{ctx: ctx, max: 5_000_000}, out: tar.NewWriter(w), links: map[inode]string{}}
	if err := p.run(dir); err != nil {
		return fmt.Errorf("pack the files of a sandbox: %w", err)
	}
	return nil
}

type packer struct {
	copier
	out   *tar.Writer
	links map[inode]string
}

func (p *packer) run(dir string) error {
	fd, err := unix.Open(dir, dirFlags, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer func() { unix.Close(fd) }()
	var path []string
	l, err := p.enter(fd, ".")
	if err != nil {
		return err
	}
	stack := []level{l}
	for files := 0; ; {
		l := &stack[len(stack)-1]
		if len(l.names) == 0 {
			if stack = stack[:len(stack)-1]; len(stack) == 0 {
				return p.out.Close()
			}
			path = path[:len(path)-1]
			above, err := unix.Openat(fd, "..", dirFlags, 0)
			if err != nil {
				return err
			}
			unix.Close(fd)
			fd = above
			continue
		}
		name := l.names[len(l.names)-1]
		l.names = l.names[:len(l.names)-1]
		if err := p.ctx.Err(); err != nil {
			return err
		}
		if files++; files > p.max {
			return fmt.Errorf("%w: more than %d", ErrTooLarge, p.max)
		}
		var st unix.Stat_t
		if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return &os.PathError{Op: "stat", Path: name, Err: err}
		}
		full := strings.Join(append(path, name), "/")
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			if err := p.entry(fd, name, full, &st); err != nil {
				return &os.PathError{Op: "pack", Path: full, Err: err}
			}
			continue
		}
		sub, err := unix.Openat(fd, name, dirFlags, 0)
		if err != nil {
			return &os.PathError{Op: "open", Path: full, Err: err}
		}
		unix.Close(fd)
		fd = sub
		path = append(path, name)
		next, err := p.enter(fd, full)
		if err != nil {
			return err
		}
		stack = append(stack, next)
	}
}

func header(st *unix.Stat_t, name string) *tar.Header {
	return &tar.Header{Name: name, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid), ModTime: time.Unix(st.Mtim.Unix()),
		Format: tar.FormatPAX, PAXRecords: map[string]string{}}
}

// enter writes a directory and lists it.
func (p *packer) enter(fd int, name string) (level, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return level{}, err
	}
	h := header(&st, name+"/")
	h.Typeflag = tar.TypeDir
	if err := addXattrs(fd, h); err != nil {
		return level{}, err
	}
	if err := p.out.WriteHeader(h); err != nil {
		return level{}, err
	}
	return p.list(fd)
}

func (p *packer) entry(dir int, name, full string, st *unix.Stat_t) error {
	h := header(st, full)
	id := inode{st.Dev, st.Ino}
	if first, ok := p.links[id]; ok {
		h.Typeflag, h.Linkname = tar.TypeLink, first
		return p.out.WriteHeader(h)
	}
	if st.Nlink > 1 {
		p.links[id] = full
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		in, err := openRegular(dir, name, unix.O_RDONLY)
		if err != nil {
			return err
		}
		defer in.Close()
		h.Typeflag, h.Size = tar.TypeReg, st.Size
		if err := addXattrs(int(in.Fd()), h); err != nil {
			return err
		}
		if err := p.out.WriteHeader(h); err != nil {
			return err
		}
		_, err = io.Copy(p.out, io.LimitReader(in, st.Size))
		return err
	case unix.S_IFLNK:
		buf := make([]byte, unix.PathMax+1)
		n, err := unix.Readlinkat(dir, name, buf)
		if err != nil {
			return err
		}
		h.Typeflag, h.Linkname = tar.TypeSymlink, string(buf[:n])
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case unix.S_IFCHR:
		if st.Rdev != 0 {
			return nil
		}
		h.Typeflag = tar.TypeChar
	default:
		delete(p.links, id)
		return nil
	}
	return p.out.WriteHeader(h)
}

func addXattrs(fd int, h *tar.Header) error {
	size, err := unix.Flistxattr(fd, nil)
	if err == unix.EOPNOTSUPP || size == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	names := make([]byte, size)
	if size, err = unix.Flistxattr(fd, names); err != nil {
		return err
	}
	value := make([]byte, 64<<10)
	for name := range strings.SplitSeq(strings.TrimRight(string(names[:size]), "\x00"), "\x00") {
		// A record can hold neither of these; no program of ours sets any.
		if !strings.HasPrefix(name, "user.") || strings.ContainsAny(name, "=") {
			continue
		}
		skip := false
		for _, n := range notKept {
			skip = skip || n == name
		}
		n, err := unix.Fgetxattr(fd, name, value)
		if err == unix.ENODATA || skip {
			continue
		}
		if err != nil {
			return err
		}
		h.PAXRecords[xattrRecord+name] = string(value[:n])
	}
	return nil
}

// Unpack makes, in the empty directory dst, the tree that [Pack] wrote. Whoever
// wrote the stream, nothing is made or changed outside of dst.
func Unpack(ctx context.Context, r io.Reader, dst string) error {
	fd, err := unix.Open(dst, dirFlags, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: dst, Err: err}
	}
	u := &unpacker{root: fd, cur: -1}
	defer u.close()
	in := tar.NewReader(r)
	for files := 0; ; files++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		if files > 5_000_000 {
			return ErrTooLarge
		}
		h, err := in.Next()
		if err == io.EOF {
			break
		}
		if err == nil {
			err = u.entry(h, in)
		}
		if err != nil {
			return fmt.Errorf("unpack the files of a sandbox: %w", err)
		}
	}
	for len(u.path) > 0 {
		if err := u.leave(); err != nil {
			return err
		}
	}
	// It reads to the end: what is there must be checked by whoever gave r.
	if _, err := io.Copy(io.Discard, r); err != nil {
		return err
	}
	if u.top == nil {
		return fmt.Errorf("%w: it has no root", ErrFormat)
	}
	return setMeta(u.root, u.top)
}

type unpacker struct {
	root int
	top  *tar.Header // of the root
	cur  int         // the directory of path; -1 for the root
	path []string
	dirs []*tar.Header // of path; what they say is set when they are left
}

func (u *unpacker) close() {
	if u.cur >= 0 {
		unix.Close(u.cur)
	}
	unix.Close(u.root)
}

func (u *unpacker) dir() int {
	if u.cur >= 0 {
		return u.cur
	}
	return u.root
}

// leave goes up by one.
func (u *unpacker) leave() error {
	n := len(u.path) - 1
	if err := setMeta(u.cur, u.dirs[n]); err != nil {
		return err
	}
	above, err := unix.Openat(u.cur, "..", dirFlags, 0)
	if err != nil {
		return err
	}
	unix.Close(u.cur)
	u.cur, u.path, u.dirs = above, u.path[:n], u.dirs[:n]
	return nil
}

func parts(name string) ([]string, error) {
	all := strings.Split(strings.TrimSuffix(name, "/"), "/")
	for _, c := range all {
		if c == "" || c == "." || c == ".." || strings.ContainsRune(c, 0) {
			return nil, fmt.Errorf("%w: an entry is called %.128q", ErrFormat, name)
		}
	}
	return all, nil
}

func (u *unpacker) entry(h *tar.Header, content io.Reader) error {
	if h.Name == "./" && h.Typeflag == tar.TypeDir && u.top == nil {
		u.top = h
		return nil
	}
	path, err := parts(h.Name)
	if err != nil {
		return err
	}
	up, name := path[:len(path)-1], path[len(path)-1]
	// The order is that of a walk: an entry is in the directory where the last
	// one was, or in one above.
	for len(u.path) > len(up) {
		if err := u.leave(); err != nil {
			return err
		}
	}
	for i := range up {
		if i >= len(u.path) || u.path[i] != up[i] {
			return fmt.Errorf("%w: %.128q comes out of order", ErrFormat, h.Name)
		}
	}
	dir := u.dir()
	switch h.Typeflag {
	case tar.TypeDir:
		if err := unix.Mkdirat(dir, name, 0o700); err != nil {
			return err
		}
		fd, err := unix.Openat(dir, name, dirFlags, 0)
		if err != nil {
			return err
		}
		if u.cur >= 0 {
			unix.Close(u.cur)
		}
		u.cur, u.path, u.dirs = fd, append(u.path, name), append(u.dirs, h)
		return nil
	case tar.TypeLink:
		return u.link(h.Linkname, dir, name)
	case tar.TypeReg:
		return u.file(dir, name, h, content)
	case tar.TypeSymlink:
		err = unix.Symlinkat(h.Linkname, dir, name)
	case tar.TypeFifo:
		err = unix.Mknodat(dir, name, unix.S_IFIFO|0o600, 0)
	case tar.TypeChar:
		if h.Devmajor != 0 || h.Devminor != 0 {
			return fmt.Errorf("%w: a device", ErrFormat)
		}
		err = unix.Mknodat(dir, name, unix.S_IFCHR|0o600, 0)
	default:
		return fmt.Errorf("%w: type %q", ErrFormat, h.Typeflag)
	}
	if err == nil {
		err = unix.Fchownat(dir, name, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW)
	}
	if err == nil && h.Typeflag != tar.TypeSymlink {
		err = unix.Fchmodat(dir, name, uint32(h.Mode)&0o7777, 0)
	}
	if err == nil {
		err = unix.UtimesNanoAt(dir, name, times(h), unix.AT_SYMLINK_NOFOLLOW)
	}
	return err
}

func times(h *tar.Header) []unix.Timespec {
	ts := unix.NsecToTimespec(h.ModTime.UnixNano())
	return []unix.Timespec{ts, ts}
}

// link makes another name of a file that was unpacked before, found without
// following links.
func (u *unpacker) link(target string, dir int, name string) error {
	path, err := parts(target)
	if err != nil {
		return err
	}
	fd, err := unix.Openat(u.root, ".", dirFlags, 0)
	if err != nil {
		return err
	}
	for _, c := range path[:len(path)-1] {
		next, err := unix.Openat(fd, c, dirFlags, 0)
		unix.Close(fd)
		if err != nil {
			return err
		}
		fd = next
	}
	defer unix.Close(fd)
	return unix.Linkat(fd, path[len(path)-1], dir, name, 0)
}

func (u *unpacker) file(dir int, name string, h *tar.Header, content io.Reader) error {
	fd, err := unix.Openat(dir, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	// What is zero becomes a hole, as most of it was.
	buf, zero := make([]byte, 64<<10), make([]byte, 64<<10)
	for off := int64(0); ; {
		n, err := io.ReadFull(content, buf)
		if n > 0 && !bytes.Equal(buf[:n], zero[:n]) {
			if _, werr := f.WriteAt(buf[:n], off); werr != nil {
				return werr
			}
		}
		off += int64(n)
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			break
		}
		if err != nil {
			return err
		}
	}
	if err := f.Truncate(h.Size); err != nil {
		return err
	}
	return setMeta(fd, h)
}

func setMeta(fd int, h *tar.Header) error {
	if err := unix.Fchown(fd, h.Uid, h.Gid); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, uint32(h.Mode)&0o7777); err != nil {
		return err
	}
	for key, value := range h.PAXRecords {
		if name, ok := strings.CutPrefix(key, xattrRecord); ok && strings.HasPrefix(name, "user.") {
			if err := unix.Fsetxattr(fd, name, []byte(value), 0); err != nil {
				return err
			}
		}
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), times(h), 0)
}
