package filesystem

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// opener opens files without following the magic links of procfs.
type opener struct {
	old bool // no openat2(2), of Linux 5.6
}

// probe reports whether the kernel (and its system call filter) has openat2.
func (o *opener) probe() bool {
	fd, err := unix.Openat2(unix.AT_FDCWD, "/", &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_MAGICLINKS})
	if err == nil {
		unix.Close(fd)
	}
	o.old = err != nil
	return !o.old
}

// at is openat(2).
func (o *opener) at(dir int, p string, flags int, mode uint32) (int, error) {
	return o.resolve(dir, p, flags, mode, 0)
}

// resolve is at with further RESOLVE_ flags, which an old kernel ignores.
func (o *opener) resolve(dir int, p string, flags int, mode uint32, resolve uint64) (int, error) {
	flags |= unix.O_CLOEXEC
	for try := 0; ; try++ {
		var fd int
		var err error
		if o.old {
			fd, err = unix.Openat(dir, p, flags, mode)
		} else {
			how := unix.OpenHow{Flags: uint64(flags), Resolve: unix.RESOLVE_NO_MAGICLINKS | resolve}
			if flags&(unix.O_CREAT|unix.O_TMPFILE&^unix.O_DIRECTORY) != 0 {
				how.Mode = uint64(mode)
			}
			fd, err = unix.Openat2(dir, p, &how)
		}
		// openat2 answers EAGAIN when a rename crossed its way; so does
		// O_NONBLOCK on a file under a lease, which does not pass.
		if err != unix.EINTR && (err != unix.EAGAIN || try == 100) {
			return fd, err
		}
	}
}

// place is a name in an open directory: what a path means, held fast while
// others rename directories and swap links.
type place struct {
	dir  int // O_PATH
	name string
	path string // for messages
}

func (p *place) close() { unix.Close(p.dir) }

// place finds the directory of a path. The last name need not exist, and is
// not followed.
func (s *Service) place(p string) (*place, error) {
	return s.placeAt(unix.AT_FDCWD, p)
}

func (s *Service) placeAt(dir int, p string) (*place, error) {
	parent, name := path.Split(strings.TrimRight(p, "/"))
	if parent == "" {
		parent = "."
	}
	if name == "" || name == "." || name == ".." {
		return nil, isDirectory(p)
	}
	fd, err := s.open.at(dir, parent, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, pathError("open", strings.TrimRight(parent, "/"), err)
	}
	return &place{dir: fd, name: name, path: p}, nil
}

// follow finds the place that a path means once the links of its last name are
// followed; the file need not exist.
func (s *Service) follow(p string) (*place, error) {
	at, err := s.place(p)
	for hops := 0; err == nil; hops++ {
		var st unix.Stat_t
		err := unix.Fstatat(at.dir, at.name, &st, unix.AT_SYMLINK_NOFOLLOW)
		if err != nil || st.Mode&unix.S_IFMT != unix.S_IFLNK {
			return at, nil // what cannot be seen is left to the next step
		}
		var buf [unix.PathMax]byte
		n, err := unix.Readlinkat(at.dir, at.name, buf[:])
		if err == nil && hops == 40 { // the kernel's own limit
			err = unix.ELOOP
		}
		// What a magic link says is not where it leads.
		if fd, open := s.open.at(at.dir, at.name, unix.O_PATH, 0); open == nil {
			unix.Close(fd)
		} else if err == nil && errors.Is(open, unix.ELOOP) {
			err = open
		}
		if err != nil {
			at.close()
			return nil, pathError("readlink", p, err)
		}
		next, err := s.placeAt(at.dir, string(buf[:n]))
		at.close()
		if err != nil {
			return nil, err
		}
		next.path, at = p, next
	}
	return nil, err
}

// makeParents makes the missing directories above a path with mode 0755 and
// returns those it made, outermost first.
func (s *Service) makeParents(p string) (made []string, err error) {
	var missing []string
	for dir := path.Dir(p); ; dir = path.Dir(dir) {
		fd, err := s.open.at(unix.AT_FDCWD, dir, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err == nil {
			unix.Close(fd)
			break
		}
		if !errors.Is(err, unix.ENOENT) || dir == "/" {
			if errors.Is(err, unix.ENOTDIR) {
				return nil, invalidPath("%s: %s is a file, not a directory", p, dir)
			}
			return nil, pathError("open", dir, err)
		}
		missing = append(missing, dir)
	}
	for _, dir := range slices.Backward(missing) {
		at, err := s.place(dir)
		if err == nil {
			err = unix.Mkdirat(at.dir, at.name, 0o755)
			at.close()
			if err == nil {
				made = append(made, dir)
			} else if errors.Is(err, unix.EEXIST) {
				err = nil // made by somebody else meanwhile
			}
			err = pathError("mkdir", dir, err)
		}
		if err != nil {
			s.removeMade(made)
			return nil, err
		}
	}
	return made, nil
}

// removeMade takes back makeParents, as far as the directories are empty.
func (s *Service) removeMade(made []string) {
	for _, dir := range slices.Backward(made) {
		if at, err := s.place(dir); err == nil {
			_ = unix.Unlinkat(at.dir, at.name, unix.AT_REMOVEDIR)
			at.close()
		}
	}
}

// directory is an open directory and its names, sorted.
type directory struct {
	fd    int
	path  string
	names []string
}

func (d *directory) close() { unix.Close(d.fd) }

// openDirectory opens and reads a directory; shown is its path for messages.
func (s *Service) openDirectory(dir int, p, shown string, flags int) (*directory, error) {
	fd, err := s.open.at(dir, p, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK|flags, 0)
	if err != nil {
		if errors.Is(err, unix.ENOTDIR) && flags&unix.O_NOFOLLOW == 0 && s.exists(dir, p) {
			return nil, invalidPath("%s: is not a directory", shown)
		}
		return nil, pathError("open", shown, err)
	}
	names, err := readNames(fd)
	if err != nil {
		unix.Close(fd)
		return nil, pathError("read directory", shown, err)
	}
	return &directory{fd: fd, path: shown, names: names}, nil
}

func (s *Service) exists(dir int, p string) bool {
	fd, err := s.open.at(dir, p, unix.O_PATH, 0)
	if err == nil {
		unix.Close(fd)
	}
	return err == nil
}

// readNames reads a directory to its end. (Not with os.File, whose buffers
// are for its own use.)
func readNames(fd int) ([]string, error) {
	var names []string
	buf := make([]byte, 32<<10)
	for {
		n, err := unix.Getdents(fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		if n == 0 {
			slices.Sort(names)
			return names, nil
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
	}
}

// pseudo tells whether a file system makes its files up: their sizes mean
// nothing, and walking them finds the kernel's state, not the user's files.
func pseudo(fd int) bool {
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return false
	}
	switch uint32(st.Type) {
	case unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC,
		unix.DEBUGFS_MAGIC, unix.TRACEFS_MAGIC, unix.SECURITYFS_MAGIC, unix.BPF_FS_MAGIC,
		unix.PSTOREFS_MAGIC, unix.EFIVARFS_MAGIC, unix.DEVPTS_SUPER_MAGIC, unix.BINDERFS_SUPER_MAGIC,
		0x62656570 /* configfs */, 0x19800202 /* mqueue */, unix.NSFS_MAGIC:
		return true
	}
	return false
}

// notRegular says why a file cannot be read or written as bytes.
func notRegular(p string, mode uint32) error {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return nil
	case unix.S_IFDIR:
		return isDirectory(p)
	}
	return invalidPath("%s: is a %s, not a regular file", p, kindOf(mode))
}

func kindOf(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFBLK:
		return "block device"
	case unix.S_IFCHR:
		return "character device"
	case unix.S_IFIFO:
		return "named pipe"
	case unix.S_IFSOCK:
		return "socket"
	case unix.S_IFLNK:
		return "symbolic link"
	}
	return fmt.Sprintf("file of type %#o", mode&unix.S_IFMT)
}
