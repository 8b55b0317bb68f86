//go:build linux

package image

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ExportOptions adjusts [ExportLayer]. The zero value, and nil, mean the defaults.
type ExportOptions struct {
	// MapOwner gives the owner that the layer states for what belongs to uid and gid on this
	// machine: the reverse of [StoreOptions.MapOwner]. Defaults to the identity for root and to
	// 0:0 for everybody else, to whom everything in the directory belongs.
	MapOwner func(uid, gid int) (int, int)
	// MaxEntries limits the files, directories and links. Defaults to 2,000,000.
	MaxEntries int64
	// MaxBytes limits the sum of the sizes of the files, in bytes, holes included. Defaults to
	// 64 GiB.
	MaxBytes int64
	// OnSkip, if set, is told the path of each entry that is left out, and why. Defaults to nil.
	OnSkip func(path, reason string)
}

// exporter writes one directory as one archive.
type exporter struct {
	ctx   context.Context
	opts  ExportOptions
	root  int // O_PATH descriptor
	w     *tar.Writer
	buf   []byte
	links map[inode]string // the first name of a file with several
	n     int64
	bytes int64
}

type inode struct{ dev, ino uint64 }

// ExportLayer writes the directory dir to w as an uncompressed layer, and returns the digest and
// the size of what it wrote. dir is in the form that this package unpacks to and that overlayfs
// leaves in an upper directory: whiteouts and opaque directories become those of the OCI format.
// The same tree gives the same bytes: entries are sorted, and only modification times are kept.
//
// Left out are sockets, device nodes other than whiteouts, and extended attributes other than
// user.* and, for root, security.capability. Refused with [errors.ErrUnsupported] are names that
// begin with .wh., which a layer would take for whiteouts, redirected and metadata-only entries
// of overlayfs, and what is mounted within dir; with [ErrTooLarge] what exceeds the limits, and
// paths of more than 4095 bytes. Holes of sparse files are written as zeros.
//
// The tree may be hostile and may change meanwhile: nothing is read that is not beneath dir, no
// link is followed, and no FIFO opened. A file that changes while it is read is an error. What has
// been written by then is of no use.
func ExportLayer(ctx context.Context, dir string, w io.Writer, opts *ExportOptions) (diffID string, size int64, err error) {
	e := &exporter{ctx: ctx, buf: make([]byte, 256<<10), links: map[inode]string{}}
	if opts != nil {
		e.opts = *opts
	}
	if e.opts.MaxEntries == 0 {
		e.opts.MaxEntries = 2_000_000
	}
	if e.opts.MaxBytes == 0 {
		e.opts.MaxBytes = 64 << 30
	}
	if e.opts.MapOwner == nil {
		root := os.Geteuid() == 0
		e.opts.MapOwner = func(uid, gid int) (int, int) {
			if root {
				return uid, gid
			}
			return 0, 0
		}
	}
	fail := func(err error) (string, int64, error) {
		return "", 0, fmt.Errorf("export layer %s: %w", dir, err)
	}
	if e.root, err = openDirectory(dir); err != nil {
		return fail(err)
	}
	defer unix.Close(e.root)
	h := sha256.New()
	counter := &countingWriter{w: io.MultiWriter(w, h)}
	e.w = tar.NewWriter(counter)
	if err := e.directory(""); err != nil {
		return fail(err)
	}
	if err := e.w.Close(); err != nil {
		return fail(err)
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil)), counter.n, nil
}

type countingWriter struct {
	w io.Writer
	n int64
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

func exportError(path string, err error) error {
	return fmt.Errorf("%s: %w", quoted(cmpPath(path)), err)
}

func cmpPath(path string) string {
	if path == "" {
		return "."
	}
	return path
}

func (e *exporter) skip(path, reason string) {
	if e.opts.OnSkip != nil {
		e.opts.OnSkip(path, reason)
	}
}

func (e *exporter) open(path string, flags int) (int, error) {
	fd, err := openBeneath(e.root, cmpPath(path), flags|unix.O_NOFOLLOW, unix.RESOLVE_NO_XDEV)
	if err == unix.EXDEV {
		return -1, fmt.Errorf("something is mounted there: %w", errors.ErrUnsupported)
	}
	return fd, err
}

// directory writes a directory and what is in it: first what is not a directory, with the
// directory open, and then the directories, with nothing open, so that depth costs no descriptors.
// They are found again by their paths, which lead nowhere else whatever happens to them meanwhile.
func (e *exporter) directory(path string) error {
	if len(path) >= maxName {
		return fmt.Errorf("%w: %s has a path of more than %d bytes", ErrTooLarge, quoted(path), maxName)
	}
	fd, err := e.open(path, unix.O_RDONLY|unix.O_DIRECTORY)
	switch {
	case err == unix.ENOENT && path != "":
		return nil // gone meanwhile
	case err == unix.ENOTDIR, err == unix.ELOOP:
		return exportError(path, errChanged)
	case err != nil:
		return exportError(path, err)
	}
	f := os.NewFile(uintptr(fd), "layer")
	dirs, err := e.contents(f, path)
	f.Close()
	if err != nil {
		return err
	}
	for _, name := range dirs {
		if err := e.directory(join(path, name)); err != nil {
			return err
		}
	}
	return nil
}

func (e *exporter) contents(f *os.File, path string) (dirs []string, err error) {
	fd := int(f.Fd())
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, exportError(path, err)
	}
	h, err := e.header(path+"/", &st)
	if err != nil {
		return nil, err
	}
	if path == "" {
		h.Name = "./"
	}
	h.Typeflag = tar.TypeDir
	marks, err := e.xattrs(fd, h)
	if err != nil {
		return nil, exportError(path, err)
	}
	if err := e.write(h); err != nil {
		return nil, exportError(path, err)
	}
	// overlayfs does not look at the root's.
	if marks.opaque == "y" && path != "" {
		if err := e.write(&tar.Header{Typeflag: tar.TypeReg, Name: path + "/" + whiteoutOpaque, Mode: 0o644, ModTime: time.Unix(0, 0), Format: tar.FormatPAX}); err != nil {
			return nil, exportError(path, err)
		}
	}
	var names []string
	for {
		batch, err := f.Readdirnames(4096)
		names = append(names, batch...)
		if int64(len(names)) > e.opts.MaxEntries {
			return nil, e.tooMany()
		}
		if err == io.EOF || (err == nil && len(batch) == 0) {
			break
		}
		if err != nil {
			return nil, exportError(path, err)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		if e.ctx.Err() != nil {
			return nil, context.Cause(e.ctx)
		}
		isDir, err := e.entry(fd, name, join(path, name), marks.opaque == "x")
		if err != nil {
			return nil, exportError(join(path, name), err)
		}
		if isDir {
			dirs = append(dirs, name)
		}
	}
	return dirs, nil
}

func (e *exporter) tooMany() error {
	return fmt.Errorf("%w: more than %d entries (ExportOptions.MaxEntries)", ErrTooLarge, e.opts.MaxEntries)
}

// write begins an entry.
func (e *exporter) write(h *tar.Header) error {
	if e.n++; e.n > e.opts.MaxEntries {
		return e.tooMany()
	}
	return e.w.WriteHeader(h)
}

func (e *exporter) header(path string, st *unix.Stat_t) (*tar.Header, error) {
	if len(path) > maxName {
		return nil, fmt.Errorf("%w: %s has a path of more than %d bytes", ErrTooLarge, quoted(path), maxName)
	}
	uid, gid := e.opts.MapOwner(int(st.Uid), int(st.Gid))
	if uid < 0 || gid < 0 {
		return nil, exportError(path, fmt.Errorf("it belongs to %d:%d, for which ExportOptions.MapOwner has no owner", st.Uid, st.Gid))
	}
	return &tar.Header{
		Name: path, Mode: int64(st.Mode & 0o7777), Uid: uid, Gid: gid,
		ModTime: time.Unix(st.Mtim.Sec, st.Mtim.Nsec), Format: tar.FormatPAX,
	}, nil
}

// entry writes what is not a directory.
func (e *exporter) entry(parent int, name, path string, xattrWhiteouts bool) (dir bool, err error) {
	st, err := lstatAt(parent, name)
	if err == unix.ENOENT {
		return false, nil // gone meanwhile
	}
	if err != nil {
		return false, err
	}
	if strings.HasPrefix(name, whiteoutPrefix) {
		return false, fmt.Errorf("a layer would take a name that begins with %s for a whiteout: %w", whiteoutPrefix, errors.ErrUnsupported)
	}
	if isWhiteout(&st) {
		return false, e.whiteout(parent, path, name)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return true, nil
	case unix.S_IFCHR, unix.S_IFBLK:
		e.skip(path, "a device node")
		return false, nil
	case unix.S_IFSOCK:
		e.skip(path, "a socket")
		return false, nil
	case unix.S_IFREG:
		return false, e.file(parent, name, path, xattrWhiteouts)
	case unix.S_IFLNK, unix.S_IFIFO:
	default:
		e.skip(path, "of an unknown type")
		return false, nil
	}
	h, err := e.header(path, &st)
	if err != nil {
		return false, err
	}
	if e.linked(h, &st) {
		return false, e.write(h)
	}
	if h.Typeflag = tar.TypeFifo; isSymlink(&st) {
		h.Typeflag, h.Mode = tar.TypeSymlink, 0o777
		switch h.Linkname, err = readlinkAt(parent, name); err {
		case nil:
		case unix.EINVAL, unix.ENOENT:
			return false, errChanged
		default:
			return false, err
		}
	}
	return false, e.write(h)
}

func (e *exporter) whiteout(parent int, path, name string) error {
	hidden := strings.TrimSuffix(path, name) + whiteoutPrefix + name
	if len(hidden) > maxName || len(whiteoutPrefix+name) > maxComponent {
		return fmt.Errorf("%w: the whiteout of a name of %d bytes", ErrTooLarge, len(name))
	}
	return e.write(&tar.Header{Typeflag: tar.TypeReg, Name: hidden, Mode: 0o644, ModTime: time.Unix(0, 0), Format: tar.FormatPAX})
}

// linked makes the header a hard link if the file has been written under another name.
func (e *exporter) linked(h *tar.Header, st *unix.Stat_t) bool {
	if st.Nlink < 2 {
		return false
	}
	id := inode{uint64(st.Dev), st.Ino}
	if first, ok := e.links[id]; ok {
		h.Typeflag, h.Linkname = tar.TypeLink, first
		return true
	}
	e.links[id] = h.Name
	return false
}

func (e *exporter) file(parent int, name, path string, xattrWhiteouts bool) error {
	// O_NONBLOCK: it may have become a FIFO.
	fd, err := openBeneath(parent, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY, unix.RESOLVE_NO_XDEV)
	switch err {
	case nil:
	case unix.ENOENT:
		return nil
	case unix.EXDEV:
		return fmt.Errorf("something is mounted there: %w", errors.ErrUnsupported)
	case unix.ELOOP, unix.ENXIO:
		return errChanged
	default:
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return errChanged
	}
	h, err := e.header(path, &st)
	if err != nil {
		return err
	}
	h.Typeflag = tar.TypeReg
	marks, err := e.xattrs(fd, h)
	if err != nil {
		return err
	}
	if marks.whiteout && xattrWhiteouts {
		return e.whiteout(parent, path, name)
	}
	if e.linked(h, &st) {
		h.PAXRecords = nil
		return e.write(h)
	}
	if e.bytes += st.Size; e.bytes > e.opts.MaxBytes || e.bytes < 0 {
		return fmt.Errorf("%w: with this file of %d bytes, more than %d (ExportOptions.MaxBytes)", ErrTooLarge, st.Size, e.opts.MaxBytes)
	}
	h.Size = st.Size
	if err := e.write(h); err != nil {
		return err
	}
	for left := st.Size; left > 0; {
		if e.ctx.Err() != nil {
			return context.Cause(e.ctx)
		}
		n, err := unix.Read(fd, e.buf[:min(left, int64(len(e.buf)))])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return errChanged
		}
		if _, err := e.w.Write(e.buf[:n]); err != nil {
			return err
		}
		left -= int64(n)
	}
	return nil
}

// errChanged: the tree is not at rest.
var errChanged = errors.New("it changed while it was read; stop or pause who writes there")

// marks is what overlayfs notes in attributes.
type marks struct {
	opaque   string
	whiteout bool
}

// xattrs puts the attributes to keep into the header.
func (e *exporter) xattrs(fd int, h *tar.Header) (m marks, err error) {
	list := make([]byte, 64<<10) // XATTR_LIST_MAX
	n, err := unix.Flistxattr(fd, list)
	if err == unix.ENOTSUP || (err == nil && n == 0) {
		return m, nil
	}
	if err != nil {
		return m, err
	}
	var value []byte
	for raw := range bytes.SplitSeq(list[:n], []byte{0}) {
		name := string(raw)
		own, overlay := strings.CutPrefix(name, "user.overlay.")
		if !overlay {
			own, overlay = strings.CutPrefix(name, "trusted.overlay.")
		}
		switch {
		case overlay && (own == "redirect" || own == "metacopy"):
			return m, fmt.Errorf("overlayfs keeps a part of it elsewhere (%s): %w", name, errors.ErrUnsupported)
		case overlay && own == "whiteout":
			m.whiteout = true
			continue
		case overlay && own == "opaque":
		case overlay:
			continue
		case strings.HasPrefix(name, "user."), name == "security.capability" && os.Geteuid() == 0:
			if strings.Contains(name, "=") {
				e.skip(h.Name, "the extended attribute "+quoted(name)+", whose name an archive cannot hold")
				continue
			}
		default:
			continue
		}
		if value == nil {
			value = make([]byte, 64<<10) // XATTR_SIZE_MAX
		}
		n, err := unix.Fgetxattr(fd, name, value)
		if err == unix.ENODATA {
			continue
		}
		if err != nil {
			return m, fmt.Errorf("read the extended attribute %s: %w", quoted(name), err)
		}
		v := bytes.Clone(value[:n])
		if overlay {
			m.opaque = string(v)
			continue
		}
		if name == "security.capability" {
			v = capabilityOfRoot(v)
		}
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords[paxXattr+name] = string(v)
	}
	return m, nil
}

// capabilityOfRoot makes of capabilities that hold in one user namespace, revision 3 of struct
// vfs_cap_data, those that hold wherever the image is unpacked, revision 2.
func capabilityOfRoot(v []byte) []byte {
	if len(v) == 24 && v[3] == 3 {
		v[3] = 2
		return v[:20]
	}
	return v
}
