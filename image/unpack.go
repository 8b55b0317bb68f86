//go:build linux

package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	whiteoutPrefix = ".wh."         // https://github.com/opencontainers/image-spec/blob/v1.1.1/layer.md#whiteouts
	whiteoutMeta   = ".wh..wh."     // names that AUFS kept for itself; the spec keeps only the next one
	whiteoutOpaque = ".wh..wh..opq" // hides everything that lower layers have in this directory
	opaqueXattr    = "user.overlay.opaque"

	maxName      = unix.PathMax - 1
	maxComponent = 255 // NAME_MAX
	maxSymlinks  = 40  // as the kernel, path_resolution(7)

	// maxDirMemory bounds what is remembered of directories until the end of a layer. A million
	// directories of ordinary names fit.
	maxDirMemory = 256 << 20

	// maxSteps bounds the work of following a layer's links and making its missing directories:
	// two million entries, each behind forty links of four thousand bytes, would take days.
	maxSteps = 50_000_000

	paxXattr = "SCHILY.xattr."
)

// ownership decides whom the unpacked files belong to.
type ownership struct {
	root bool // the process may do everything: keep owners, set-ID bits and capabilities
	// mapOwner translates; nil means identity for root and nothing for others.
	mapOwner func(uid, gid int) (int, int)
}

// owner returns the owner to set, or ok=false to leave the caller's.
func (o ownership) owner(uid, gid int) (int, int, bool) {
	if o.mapOwner != nil {
		uid, gid = o.mapOwner(uid, gid)
		return uid, gid, uid >= 0 && gid >= 0
	}
	return uid, gid, o.root
}

func (o ownership) mode(h *tar.Header) uint32 {
	mode := uint32(h.Mode) & 0o7777
	if !o.root {
		mode &^= unix.S_ISUID | unix.S_ISGID
	}
	return mode
}

// layerStats is what is worth knowing of an unpacked layer.
type layerStats struct {
	Entries int64 `json:"entries"`
	// Bytes counts what the limits count: the archive, and the holes of sparse files.
	Bytes int64 `json:"bytes"`
	// Size is the sum of the sizes of the regular files.
	Size int64 `json:"size"`
	// OpaqueRoot says that the layer hides all lower ones. overlayfs does not look at the opaque
	// attribute of a layer's root, so the lower layers must not be mounted.
	OpaqueRoot bool `json:"opaqueRoot,omitempty"`
}

type dirMeta struct {
	mode     uint32
	uid, gid int
	mtime    time.Time
}

// unpacker turns one archive into one directory.
type unpacker struct {
	ctx    context.Context
	root   int // O_PATH descriptor
	src    *stream
	budget *budget
	owners ownership
	buf    []byte
	stats  layerStats

	// Modes and times of directories are set at the end: entries below would change the times,
	// and an unprivileged caller could not write into a read-only directory.
	dirs      map[string]dirMeta
	dirMemory int

	// The parent of the last entry, which is most often that of the next one.
	cached   string // as the archive names it
	cachedFD int
	real     string // where that is, without links; "" is the root

	steps int // taken by resolve
}

// unpack writes the archive in src into the empty directory dir.
func unpack(ctx context.Context, dir string, src *stream, b *budget, owners ownership) (_ layerStats, err error) {
	root, err := openDirectory(dir)
	if err != nil {
		return layerStats{}, err
	}
	defer unix.Close(root)
	u := &unpacker{
		ctx: ctx, root: root, src: src, budget: b, owners: owners,
		buf: make([]byte, 256<<10), dirs: map[string]dirMeta{}, cachedFD: -1,
	}
	defer u.forget()
	defer func() {
		if err != nil {
			b.entries.Add(-u.stats.Entries)
		}
	}()
	u.dirs["."] = dirMeta{mode: 0o755, mtime: time.Unix(0, 0)}
	r := tar.NewReader(src.plain)
	for {
		if err := ctx.Err(); err != nil {
			return u.stats, context.Cause(ctx)
		}
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return u.stats, src.corrupt(err)
		}
		if err := u.entry(h, r); err != nil {
			return u.stats, err
		}
	}
	if err := u.finishDirs(); err != nil {
		return u.stats, err
	}
	return u.stats, nil
}

// quoted shows a hostile name in a message.
func quoted(name string) string {
	if len(name) > 128 {
		return fmt.Sprintf("%q…", name[:128])
	}
	return fmt.Sprintf("%q", name)
}

func unsafeEntry(name, format string, args ...any) error {
	return fmt.Errorf("%w: entry %s: %w", ErrUnsafeLayer, quoted(name), fmt.Errorf(format, args...))
}

// entryError says what went wrong with one entry.
func entryError(name string, err error) error {
	switch {
	case errors.Is(err, ErrUnsafeLayer), errors.Is(err, ErrTooLarge), errors.Is(err, ErrDigestMismatch):
		return err
	case err == unix.ENAMETOOLONG:
		return unsafeEntry(name, "overlong path")
	case err == unix.EINVAL:
		return fmt.Errorf("unpack entry %s: %w (an owner that this user namespace does not map? see StoreOptions.MapOwner)", quoted(name), err)
	}
	return fmt.Errorf("unpack entry %s: %w", quoted(name), err)
}

// splitName splits the name of an entry or the target of a hard link into components.
func splitName(name string) ([]string, error) {
	switch {
	case name == "":
		return nil, errors.New("empty name")
	case len(name) > maxName:
		return nil, fmt.Errorf("a name of %d bytes; at most %d are possible", len(name), maxName)
	case strings.ContainsRune(name, 0):
		return nil, errors.New("a NUL byte in the name")
	}
	components := make([]string, 0, 8)
	for c := range strings.SplitSeq(name, "/") {
		switch {
		case c == "" || c == ".":
		case c == "..":
			return nil, errors.New("the name contains ..")
		case len(c) > maxComponent:
			return nil, fmt.Errorf("a component of %d bytes; at most %d are possible", len(c), maxComponent)
		default:
			components = append(components, c)
		}
	}
	return components, nil
}

func (u *unpacker) entry(h *tar.Header, r io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	if err := u.count(); err != nil {
		return err
	}
	components, err := splitName(h.Name)
	if err != nil {
		return unsafeEntry(h.Name, "%w", err)
	}
	if len(components) == 0 {
		if h.Typeflag != tar.TypeDir {
			return unsafeEntry(h.Name, "the root of a layer must be a directory")
		}
		if err := u.setXattrs(u.root, ".", h); err != nil {
			return entryError(h.Name, err)
		}
		return u.later(".", h)
	}
	parents, base := components[:len(components)-1], components[len(components)-1]
	for _, c := range parents {
		if strings.HasPrefix(c, whiteoutMeta) && c != whiteoutOpaque {
			return nil
		}
		if strings.HasPrefix(c, whiteoutPrefix) {
			return unsafeEntry(h.Name, "a whiteout is not a directory")
		}
	}
	if strings.HasPrefix(base, whiteoutPrefix) {
		return u.whiteout(h.Name, parents, base)
	}
	switch h.Typeflag {
	case tar.TypeChar, tar.TypeBlock:
		return nil
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse, tar.TypeDir, tar.TypeSymlink, tar.TypeLink, tar.TypeFifo:
	default:
		return unsafeEntry(h.Name, "unknown type %q", h.Typeflag)
	}
	parent, real, err := u.parent(h.Name, parents)
	if err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeDir:
		if err := u.directory(parent, base, h); err != nil {
			return entryError(h.Name, err)
		}
		return u.later(join(real, base), h)
	case tar.TypeSymlink:
		if h.Linkname == "" || len(h.Linkname) > maxName || strings.ContainsRune(h.Linkname, 0) {
			return unsafeEntry(h.Name, "a symbolic link to %s", quoted(h.Linkname))
		}
		err = u.place(parent, base, func() error { return unix.Symlinkat(h.Linkname, parent, base) })
	case tar.TypeLink:
		return u.hardlink(h, parent, base)
	case tar.TypeFifo:
		err = u.place(parent, base, func() error { return unix.Mknodat(parent, base, unix.S_IFIFO|0o600, 0) })
	default:
		return u.file(parent, base, h, r)
	}
	if err != nil {
		return entryError(h.Name, err)
	}
	if err := u.setMeta(parent, base, h); err != nil {
		return entryError(h.Name, err)
	}
	return nil
}

func (u *unpacker) count() error {
	u.stats.Entries++
	return u.budget.addEntries(1)
}

// later remembers what finishDirs has to do.
func (u *unpacker) later(path string, h *tar.Header) error {
	if _, ok := u.dirs[path]; !ok {
		if u.dirMemory += len(path) + 96; u.dirMemory > maxDirMemory {
			return fmt.Errorf("%w: the names of its directories take more than %d bytes", ErrTooLarge, maxDirMemory)
		}
	}
	u.dirs[path] = dirMeta{mode: u.owners.mode(h), uid: h.Uid, gid: h.Gid, mtime: h.ModTime}
	return nil
}

func (u *unpacker) forget() {
	if u.cachedFD >= 0 {
		unix.Close(u.cachedFD)
	}
	u.cached, u.cachedFD = "", -1
}

// parent returns a descriptor of the directory that holds an entry, made if need be. The
// descriptor is good until the next call, and not to be closed.
func (u *unpacker) parent(name string, components []string) (fd int, real string, err error) {
	if len(components) == 0 {
		return u.root, "", nil
	}
	path := strings.Join(components, "/")
	if u.cachedFD >= 0 && u.cached == path {
		return u.cachedFD, u.real, nil
	}
	fd, real, err = u.resolve(components, true)
	if err != nil {
		return -1, "", entryError(name, err)
	}
	u.forget()
	u.cached, u.cachedFD, u.real = path, fd, real
	return fd, real, nil
}

func join(dir, base string) string {
	if dir == "" {
		return base
	}
	return dir + "/" + base
}

// resolve opens a directory as a process chrooted into the layer would, and makes what is missing
// if create is set. It returns a descriptor, which the caller closes, and the path without links.
func (u *unpacker) resolve(components []string, create bool) (int, string, error) {
	const flags = unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW
	path := "."
	if len(components) > 0 {
		path = strings.Join(components, "/")
	}
	fd, err := openBeneath(u.root, path, flags, 0)
	switch err {
	case nil:
		return fd, strings.Join(components, "/"), nil
	case unix.ENOENT, unix.ENOTDIR, unix.ELOOP:
	default:
		return -1, "", err
	}
	// Something is missing, or is a link. Go step by step; real holds only directories.
	var real []string
	todo := slices.Clone(components)
	slices.Reverse(todo)
	links := 0
	dir, err := openBeneath(u.root, ".", flags, 0)
	if err != nil {
		return -1, "", err
	}
	defer func() {
		if dir >= 0 {
			unix.Close(dir)
		}
	}()
	enter := func(from int, path string) error {
		next, err := openBeneath(from, path, flags, 0)
		if err != nil {
			return err
		}
		unix.Close(dir)
		dir = next
		return nil
	}
	for len(todo) > 0 {
		if u.steps++; u.steps > maxSteps {
			return -1, "", fmt.Errorf("%w: its symbolic links take more than %d steps to follow", ErrTooLarge, maxSteps)
		}
		c := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		switch c {
		case "", ".":
			continue
		case "..":
			if len(real) == 0 {
				continue
			}
			real = real[:len(real)-1]
			if err := enter(u.root, strings.Join(append([]string{"."}, real...), "/")); err != nil {
				return -1, "", err
			}
			continue
		}
		st, err := lstatAt(dir, c)
		switch {
		case err == unix.ENOENT && create:
			if err := u.implicitDir(dir, c); err != nil {
				return -1, "", err
			}
		case err != nil:
			return -1, "", err
		case isDir(&st):
		case isSymlink(&st):
			if links++; links > maxSymlinks {
				return -1, "", fmt.Errorf("%w: %s leads through more than %d symbolic links", ErrUnsafeLayer, quoted(path), maxSymlinks)
			}
			target, err := readlinkAt(dir, c)
			if err != nil {
				return -1, "", err
			}
			if strings.HasPrefix(target, "/") {
				real = nil
				if err := enter(u.root, "."); err != nil {
					return -1, "", err
				}
			}
			steps := strings.Split(target, "/")
			slices.Reverse(steps)
			todo = append(todo, steps...)
			continue
		case isWhiteout(&st) && create:
			if err := unlinkAt(dir, c, 0); err != nil {
				return -1, "", err
			}
			if err := u.implicitDir(dir, c); err != nil {
				return -1, "", err
			}
			if err := setOpaque(dir, c); err != nil {
				return -1, "", err
			}
		case isWhiteout(&st):
			return -1, "", unix.ENOENT
		default:
			return -1, "", fmt.Errorf("%w: %s: %s is not a directory", ErrUnsafeLayer, quoted(path), quoted(strings.Join(append(real, c), "/")))
		}
		real = append(real, c)
		if err := enter(dir, c); err != nil {
			return -1, "", err
		}
	}
	fd, dir = dir, -1
	return fd, strings.Join(real, "/"), nil
}

// implicitDir makes a directory that the archive uses but does not describe.
func (u *unpacker) implicitDir(parent int, name string) error {
	if err := u.count(); err != nil {
		return err
	}
	if err := unix.Mkdirat(parent, name, 0o755); err != nil {
		return err
	}
	if uid, gid, ok := u.owners.owner(0, 0); ok {
		if err := unix.Fchownat(parent, name, uid, gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
	}
	// Against the umask. The name is a directory: it was made above and the tree is ours alone.
	return unix.Fchmodat(parent, name, 0o755, 0)
}

// setOpaque makes overlayfs hide what lower layers have in a directory.
func setOpaque(parent int, name string) error {
	fd, err := openBeneath(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Fsetxattr(fd, opaqueXattr, []byte("y"), 0); err != nil {
		return fmt.Errorf("set %s: %w; the file system of the store must keep user.* extended attributes (ext4, xfs and btrfs do, tmpfs since Linux 6.6)", opaqueXattr, err)
	}
	return nil
}

func (u *unpacker) whiteout(name string, parents []string, base string) error {
	if strings.HasPrefix(base, whiteoutMeta) && base != whiteoutOpaque {
		return nil
	}
	hidden := strings.TrimPrefix(base, whiteoutPrefix)
	if hidden == "" || hidden == "." || hidden == ".." {
		return unsafeEntry(name, "a whiteout of %q", hidden)
	}
	parent, real, err := u.parent(name, parents)
	if err != nil {
		return err
	}
	if base == whiteoutOpaque && real == "" {
		u.stats.OpaqueRoot = true
		return nil
	}
	if base == whiteoutOpaque {
		if err := setOpaque(parent, "."); err != nil {
			return entryError(name, err)
		}
		return nil
	}
	st, err := lstatAt(parent, hidden)
	switch {
	case err == unix.ENOENT:
		err = unix.Mknodat(parent, hidden, unix.S_IFCHR, 0)
		if err == unix.EPERM {
			err = fmt.Errorf("make a whiteout, a character device 0:0: %w; without privilege this needs Linux 5.8", err)
		}
	case err == nil && isDir(&st):
		// Whiteouts apply to lower layers only: this directory is the layer's own.
		err = setOpaque(parent, hidden)
	}
	if err != nil {
		return entryError(name, err)
	}
	return nil
}

// place creates something under a name that may be taken already.
func (u *unpacker) place(parent int, name string, create func() error) error {
	err := create()
	if err == unix.EEXIST {
		if _, err := u.clear(parent, name); err != nil {
			return err
		}
		err = create()
	}
	return err
}

// clear removes what an earlier entry put under a name.
func (u *unpacker) clear(parent int, name string) (wasWhiteout bool, err error) {
	st, err := lstatAt(parent, name)
	if err != nil {
		return false, err
	}
	if isDir(&st) || isSymlink(&st) {
		// The cached parent may lie within. parent may be that very descriptor, so it stays open
		// and only its name is forgotten; the next entry resolves afresh.
		u.cached = ""
	}
	return isWhiteout(&st), removeAt(parent, name)
}

func (u *unpacker) directory(parent int, name string, h *tar.Header) error {
	err := unix.Mkdirat(parent, name, 0o700)
	if err == unix.EEXIST {
		st, err := lstatAt(parent, name)
		if err != nil {
			return err
		}
		if !isDir(&st) {
			wasWhiteout, err := u.clear(parent, name)
			if err != nil {
				return err
			}
			if err := unix.Mkdirat(parent, name, 0o700); err != nil {
				return err
			}
			if wasWhiteout {
				if err := setOpaque(parent, name); err != nil {
					return err
				}
			}
		}
	} else if err != nil {
		return err
	}
	return u.setXattrs(parent, name, h)
}

func (u *unpacker) hardlink(h *tar.Header, parent int, base string) error {
	target, err := splitName(h.Linkname)
	if err != nil {
		return unsafeEntry(h.Name, "a hard link to %s: %w", quoted(h.Linkname), err)
	}
	if len(target) == 0 {
		return unsafeEntry(h.Name, "a hard link to the root of the layer")
	}
	dir, _, err := u.resolve(target[:len(target)-1], false)
	if err == nil {
		defer unix.Close(dir)
		var st, old unix.Stat_t
		name := target[len(target)-1]
		if st, err = lstatAt(dir, name); err == nil {
			switch {
			case isDir(&st):
				return unsafeEntry(h.Name, "a hard link to the directory %s", quoted(h.Linkname))
			case st.Mode&unix.S_IFMT == unix.S_IFCHR:
				err = unix.ENOENT // a whiteout: no file of this layer
			default:
				if old, err = lstatAt(parent, base); err == nil && old.Ino == st.Ino && old.Dev == st.Dev {
					return nil // to itself; removing the name first would lose the file
				}
				// No AT_SYMLINK_FOLLOW: a link to a symbolic link is that link.
				err = u.place(parent, base, func() error { return unix.Linkat(dir, name, parent, base, 0) })
			}
		}
	}
	switch {
	case err == nil:
		return nil
	case err == unix.ENOENT, err == unix.ENOTDIR:
		return unsafeEntry(h.Name, "a hard link to %s, which this layer does not have", quoted(h.Linkname))
	case err == unix.EMLINK:
		return unsafeEntry(h.Name, "more hard links than the file system allows")
	}
	return entryError(h.Name, err)
}

func (u *unpacker) file(parent int, name string, h *tar.Header, r io.Reader) error {
	fd := -1
	err := u.place(parent, name, func() (err error) {
		for {
			fd, err = unix.Openat(parent, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
			if err != unix.EINTR {
				return err
			}
		}
	})
	if err != nil {
		return entryError(h.Name, err)
	}
	defer unix.Close(fd)
	if err := u.copy(fd, h.Name, r); err != nil {
		return err
	}
	if err := u.setFileMeta(fd, parent, name, h); err != nil {
		return entryError(h.Name, err)
	}
	return nil
}

// copy writes the contents of one file.
func (u *unpacker) copy(fd int, name string, r io.Reader) error {
	var written, holes int64
	before := u.src.out
	for {
		n, rerr := r.Read(u.buf)
		for p := u.buf[:n]; len(p) > 0; {
			m, err := unix.Write(fd, p)
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				return entryError(name, err)
			}
			p = p[m:]
		}
		written += int64(n)
		// The archive's own bytes are accounted for by the stream; a sparse file has more.
		if excess := written - (u.src.out - before) - sparseSlack - holes; excess > 0 {
			holes += excess
			if err := u.src.hole(excess); err != nil {
				return err
			}
		}
		if rerr == io.EOF {
			u.stats.Size += written
			return nil
		}
		if rerr != nil {
			return u.src.corrupt(rerr)
		}
		if u.ctx.Err() != nil {
			return context.Cause(u.ctx)
		}
	}
}

// sparseSlack allows for what the reader had read ahead when a file began.
const sparseSlack = 1 << 20

func timespec(t time.Time) unix.Timespec {
	// Not UnixNano, which overflows for the years that an archive may state.
	return unix.Timespec{Sec: t.Unix(), Nsec: int64(t.Nanosecond())}
}

func (u *unpacker) setFileMeta(fd, parent int, name string, h *tar.Header) error {
	// In this order: changing the owner clears set-ID bits and capabilities, and attributes need
	// write permission, which the mode may take away.
	if uid, gid, ok := u.owners.owner(h.Uid, h.Gid); ok {
		if err := unix.Fchown(fd, uid, gid); err != nil {
			return fmt.Errorf("change the owner to %d:%d: %w", uid, gid, err)
		}
	}
	if err := u.fsetXattrs(fd, h); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, u.owners.mode(h)); err != nil {
		return err
	}
	ts := timespec(h.ModTime)
	return unix.UtimesNanoAt(parent, name, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}

// setMeta is for what cannot be opened: symbolic links and FIFOs, just made.
func (u *unpacker) setMeta(parent int, name string, h *tar.Header) error {
	if uid, gid, ok := u.owners.owner(h.Uid, h.Gid); ok {
		if err := unix.Fchownat(parent, name, uid, gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("change the owner to %d:%d: %w", uid, gid, err)
		}
	}
	if h.Typeflag == tar.TypeFifo {
		if err := unix.Fchmodat(parent, name, u.owners.mode(h), 0); err != nil {
			return err
		}
	}
	ts := timespec(h.ModTime)
	return unix.UtimesNanoAt(parent, name, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}

func (u *unpacker) setXattrs(parent int, name string, h *tar.Header) error {
	if len(h.PAXRecords) == 0 {
		return nil
	}
	fd, err := openBeneath(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return u.fsetXattrs(fd, h)
}

func (u *unpacker) fsetXattrs(fd int, h *tar.Header) error {
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, paxXattr)
		if !ok || !u.keepXattr(name) {
			continue
		}
		switch err := unix.Fsetxattr(fd, name, []byte(value), 0); err {
		case nil, unix.ENOTSUP, unix.EPERM:
			// Not here, or not for us; files without their attributes are still the files.
		case unix.ERANGE, unix.E2BIG, unix.EINVAL, unix.ENOSPC:
			return fmt.Errorf("%w: set the extended attribute %s of %d bytes: %w", ErrUnsafeLayer, quoted(name), len(value), err)
		default:
			return fmt.Errorf("set the extended attribute %s: %w", quoted(name), err)
		}
	}
	return nil
}

func (u *unpacker) keepXattr(name string) bool {
	if name == "security.capability" {
		return u.owners.root
	}
	// user.overlay. is how overlayfs talks to itself: whiteouts, redirects, metadata-only copies.
	return strings.HasPrefix(name, "user.") && !strings.HasPrefix(name, "user.overlay.")
}

// finishDirs gives directories their owners, modes and times, the deepest first.
func (u *unpacker) finishDirs() error {
	u.forget()
	paths := make([]string, 0, len(u.dirs))
	for p := range u.dirs {
		if p != "." {
			paths = append(paths, p)
		}
	}
	slices.SortFunc(paths, func(a, b string) int { return strings.Compare(b, a) })
	for i, p := range append(paths, ".") {
		if i%1024 == 0 && u.ctx.Err() != nil {
			return context.Cause(u.ctx)
		}
		if err := u.finishDir(p, u.dirs[p]); err != nil {
			return entryError(p, err)
		}
	}
	return nil
}

func (u *unpacker) finishDir(path string, meta dirMeta) error {
	fd, err := openBeneath(u.root, path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	switch err {
	case nil:
	case unix.ENOENT, unix.ENOTDIR, unix.ELOOP:
		return nil // a later entry replaced it
	default:
		return err
	}
	defer unix.Close(fd)
	if uid, gid, ok := u.owners.owner(meta.uid, meta.gid); ok {
		if err := unix.Fchown(fd, uid, gid); err != nil {
			return fmt.Errorf("change the owner to %d:%d: %w", uid, gid, err)
		}
	}
	ts := timespec(meta.mtime)
	if err := unix.UtimesNanoAt(fd, ".", []unix.Timespec{ts, ts}, 0); err != nil {
		return err
	}
	return unix.Fchmod(fd, meta.mode)
}
