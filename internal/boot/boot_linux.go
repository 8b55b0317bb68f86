package boot

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"github.com/daytona-go/daytona/internal/network/guest"
	"github.com/daytona-go/daytona/internal/tree"
	"golang.org/x/sys/unix"
)

// stepError says which step of the plan went wrong.
type stepError struct {
	step string
	err  error
}

// imageError is something in the image that must not be there.
type imageError string

func (e imageError) Error() string { return string(e) }

func (e *stepError) Error() string { return e.step + ": " + e.err.Error() }
func (e *stepError) Unwrap() error { return e.err }

func step(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return &stepError{fmt.Sprintf(format, args...), err}
}

// Main is the whole life of the process before the agent: it receives the
// plan on FDSync, carries it out and executes the agent. It returns only if
// something went wrong, after telling the engine.
func Main() error {
	// Namespaces, rights and the seccomp filter are the thread's; execve keeps
	// those of the thread that calls it.
	runtime.LockOSThread()
	b := &booter{}
	err := b.run()
	m := Message{Step: "boot", Error: err.Error()}
	if s, ok := errors.AsType[*stepError](err); ok {
		m.Step, m.Error = s.step, s.err.Error()
	}
	if n, ok := errors.AsType[unix.Errno](err); ok {
		m.Errno = int(n)
		// Links, and files where directories are needed, come from the image.
		m.Image = n == unix.ELOOP || n == unix.ENOTDIR || n == unix.EXDEV
	}
	if _, ok := errors.AsType[imageError](err); ok {
		m.Image = true
	}
	b.send(m, -1)
	return err
}

type booter struct {
	plan   Plan
	mounts []int // detached mounts, by Source.Mount-1
	root   int   // O_PATH descriptor of the new root
}

func (b *booter) run() error {
	for fd := FDListener; fd <= FDAgent; fd++ {
		unix.CloseOnExec(fd)
	}
	if err := b.receive(); err != nil {
		return step(err, "receive the plan")
	}
	p := &b.plan
	if err := b.setUpNetwork(); err != nil {
		return step(err, "set up the %s network", p.Network)
	}
	if err := unix.Sethostname([]byte(p.Hostname)); err != nil {
		return step(err, "set the host name")
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return step(err, "make mounts private")
	}
	if err := b.mountRoot(); err != nil {
		return err
	}
	if err := b.populate(); err != nil {
		return err
	}
	if err := b.mountSystem(); err != nil {
		return err
	}
	for _, bind := range p.Binds {
		if err := b.bind(bind); err != nil {
			return step(err, "mount %s", bind.Target)
		}
	}
	// Last, as the engine may still be at work on the cgroups.
	if err := b.mountSys(); err != nil {
		return err
	}
	if err := b.pivot(); err != nil {
		return err
	}
	return b.becomeAgent()
}

// receive reads the plan and the detached mounts that come with it.
func (b *booter) receive() error {
	buf := make([]byte, 1<<20)
	oob := make([]byte, unix.CmsgSpace(253*4))
	n, oobn, flags, _, err := unix.Recvmsg(FDSync, buf, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return err
	}
	if n == 0 {
		return errors.New("the engine went away")
	}
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		return errors.New("the plan is larger than 1 MiB or has too many mounts")
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return err
	}
	for _, m := range msgs {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			return err
		}
		b.mounts = append(b.mounts, fds...)
	}
	return json.Unmarshal(buf[:n], &b.plan)
}

func (b *booter) send(m Message, fd int) error {
	body, err := json.Marshal(m)
	if err != nil {
		return err
	}
	var oob []byte
	if fd >= 0 {
		oob = unix.UnixRights(fd)
	}
	return unix.Sendmsg(FDSync, body, oob, nil, unix.MSG_NOSIGNAL)
}

func (b *booter) setUpNetwork() error {
	switch b.plan.Network {
	case "joined":
		return nil
	case "loopback":
		return guest.SetupLoopback()
	case "userspace":
		return b.setUpUserspace()
	}
	return fmt.Errorf("unknown network mode %q", b.plan.Network)
}

// --- the root file system -------------------------------------------------

// mountRoot builds the overlays on a private tmpfs over the stage directory.
func (b *booter) mountRoot() error {
	for _, c := range b.plan.Clones {
		m, err := c.mount()
		if err != nil {
			return step(err, "clone the mount of a directory")
		}
		b.mounts = append(b.mounts, m)
	}
	stage := b.plan.Stage
	if err := unix.Mount("tmpfs", stage, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0700,size=4m"); err != nil {
		return step(err, "mount a tmpfs on %s", stage)
	}
	for i, fd := range b.mounts {
		dir := b.mountDir(i + 1)
		if err := unix.Mkdir(dir, 0o700); err != nil {
			return step(err, "make %s", dir)
		}
		if err := moveMount(fd, unix.AT_FDCWD, dir); err != nil {
			return step(err, "attach mount %d", i+1)
		}
		unix.Close(fd)
	}
	root := path.Join(stage, "root")
	if err := unix.Mkdir(root, 0o755); err != nil {
		return step(err, "make %s", root)
	}
	for i, o := range b.plan.Overlays {
		fd, err := b.overlay(o)
		if err != nil {
			return step(err, "mount the overlay for %s", o.Target)
		}
		if i == 0 {
			err = moveMount(fd, unix.AT_FDCWD, root)
			unix.Close(fd)
			if err != nil {
				return step(err, "attach the root overlay")
			}
			if b.root, err = unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
				return step(err, "open the root")
			}
			continue
		}
		if o.Staged {
			dir := b.overlayDir(i + 1)
			if err = unix.Mkdir(dir, 0o700); err == nil {
				err = moveMount(fd, unix.AT_FDCWD, dir)
			}
		} else {
			err = b.attach(fd, o.Target, true)
		}
		unix.Close(fd)
		if err != nil {
			return step(err, "attach the overlay for %s", o.Target)
		}
	}
	return nil
}

// mount makes the detached mount.
func (c Clone) mount() (int, error) {
	fd, err := unix.Open(c.Dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	for name := range strings.SplitSeq(path.Clean(c.Sub), "/") {
		if name == "" || name == "." {
			continue
		}
		sub, err := openOrMake(fd, name)
		unix.Close(fd)
		if err != nil {
			return -1, err
		}
		fd = sub
	}
	defer unix.Close(fd)
	return unix.OpenTree(fd, "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
}

// openOrMake opens a directory in another, which everybody may write if it has
// to be made. It follows no link.
func openOrMake(dir int, name string) (int, error) {
	const flags = unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(dir, name, flags, 0)
	if !errors.Is(err, unix.ENOENT) {
		return fd, err
	}
	if err := unix.Mkdirat(dir, name, 0o777); err != nil && !errors.Is(err, unix.EEXIST) {
		return -1, err
	}
	if err := unix.Fchmodat(dir, name, 0o777, 0); err != nil {
		return -1, err
	}
	return unix.Openat(dir, name, flags, 0)
}

func (b *booter) mountDir(n int) string { return path.Join(b.plan.Stage, "m"+strconv.Itoa(n)) }

func (b *booter) overlayDir(n int) string { return path.Join(b.plan.Stage, "o"+strconv.Itoa(n)) }

func (b *booter) source(s Source) string {
	if s.Overlay != 0 {
		return path.Join(b.overlayDir(s.Overlay), s.Path)
	}
	if s.Mount == 0 {
		return s.Path
	}
	return path.Join(b.mountDir(s.Mount), s.Path)
}

// overlay makes a detached overlay mount. The layers are given one by one
// ("lowerdir+", Linux 6.5) since the option string is limited to a page; older
// kernels get the string.
func (b *booter) overlay(o Overlay) (int, error) {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fs)
	set := func(key, value string) error {
		if err := unix.FsconfigSetString(fs, key, value); err != nil {
			return fmt.Errorf("%s=%s: %w%s", key, value, err, fsLog(fs))
		}
		return nil
	}
	if len(o.Lower) == 1 {
		err = set("lowerdir", escapeLower(b.source(o.Lower[0])))
	} else {
		for i, l := range o.Lower {
			err = set("lowerdir+", b.source(l))
			if i == 0 && errors.Is(err, unix.EINVAL) {
				all := make([]string, len(o.Lower))
				for j, l := range o.Lower {
					all[j] = escapeLower(b.source(l))
				}
				err = set("lowerdir", strings.Join(all, ":"))
				break
			}
			if err != nil {
				break
			}
		}
	}
	if err != nil {
		return -1, err
	}
	if o.Upper.Path != "" || o.Upper.Mount != 0 {
		if err := set("upperdir", b.source(o.Upper)); err != nil {
			return -1, err
		}
		if err := set("workdir", b.source(o.Work)); err != nil {
			return -1, err
		}
	}
	if err := unix.FsconfigSetFlag(fs, "userxattr"); err != nil {
		return -1, fmt.Errorf("userxattr: %w%s", err, fsLog(fs))
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("%w%s", err, fsLog(fs))
	}
	return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOSUID)
}

// escapeLower escapes the separators of the lowerdir option.
func escapeLower(p string) string {
	return strings.NewReplacer(`\`, `\\`, ":", `\:`).Replace(p)
}

// fsLog returns the kernel's explanation of a failed fsconfig, if it has one.
func fsLog(fs int) string {
	buf := make([]byte, 512)
	n, err := unix.Read(fs, buf)
	if err != nil || n <= 0 {
		return ""
	}
	return " (" + strings.TrimSpace(string(buf[:n])) + ")"
}

// resolve opens a path beneath the new root. Nothing in the root, hostile as
// it may be, leads outside: symbolic links resolve within it, magic links not
// at all.
func (b *booter) resolve(p string, flags int, resolve uint64) (int, error) {
	return unix.Openat2(b.root, strings.TrimPrefix(path.Clean(p), "/"), &unix.OpenHow{
		Flags: uint64(flags | unix.O_CLOEXEC), Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | resolve,
	})
}

// parent opens the directory of p, making what is missing.
func (b *booter) parent(p string) (dir int, base string, err error) {
	p = path.Clean("/" + p)
	if p == "/" {
		return -1, "", errors.New("the root is not a name in a directory")
	}
	d := path.Dir(p)
	if d == "/" {
		fd, err := unix.Openat(b.root, ".", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		return fd, path.Base(p), err
	}
	fd, err := b.resolve(d, unix.O_PATH|unix.O_DIRECTORY, 0)
	if errors.Is(err, unix.ENOENT) {
		up, name, err := b.parent(d)
		if err != nil {
			return -1, "", err
		}
		err = unix.Mkdirat(up, name, 0o755)
		unix.Close(up)
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return -1, "", err
		}
		fd, err = b.resolve(d, unix.O_PATH|unix.O_DIRECTORY, 0)
		return fd, path.Base(p), err
	}
	return fd, path.Base(p), err
}

// attach puts a detached mount on a target, making the mount point if it is
// missing. The mount point itself must not be a symbolic link: an image that
// makes /proc or /dev one is refused (CVE-2025-31133 and its relatives).
func (b *booter) attach(mount int, target string, dir bool) error {
	at, err := b.mountPoint(target, dir)
	if err != nil {
		return err
	}
	defer unix.Close(at)
	return moveMountFD(mount, at)
}

func (b *booter) mountPoint(target string, dir bool) (int, error) {
	up, name, err := b.parent(target)
	if err != nil {
		return -1, err
	}
	defer unix.Close(up)
	for range 2 {
		at, err := unix.Openat(up, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err == nil {
			var st unix.Stat_t
			if err := unix.Fstat(at, &st); err != nil {
				unix.Close(at)
				return -1, err
			}
			isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
			switch {
			case st.Mode&unix.S_IFMT == unix.S_IFLNK:
				err = imageError(target + " is a symbolic link in the image: a mount point must not be one")
			case isDir != dir:
				err = imageError(target + " is a file in the image where a directory is needed, or the other way round")
			default:
				return at, nil
			}
			unix.Close(at)
			return -1, err
		}
		if !errors.Is(err, unix.ENOENT) {
			return -1, err
		}
		if dir {
			err = unix.Mkdirat(up, name, 0o755)
		} else {
			var fd int
			if fd, err = unix.Openat(up, name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o644); err == nil {
				unix.Close(fd)
			}
		}
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return -1, err
		}
	}
	return -1, unix.ENOENT
}

// populate makes directories, links, files and the user.
func (b *booter) populate() error {
	for _, d := range b.plan.Dirs {
		if err := b.mkdir(d); err != nil {
			return step(err, "make directory %s", d.Path)
		}
	}
	for _, link := range sortedKeys(b.plan.Symlinks) {
		up, name, err := b.parent(link)
		if err != nil {
			return step(err, "make link %s", link)
		}
		err = unix.Symlinkat(b.plan.Symlinks[link], up, name)
		unix.Close(up)
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return step(err, "make link %s", link)
		}
	}
	for _, f := range b.plan.Files {
		if err := b.writeFile(f); err != nil {
			return step(err, "write %s", f.Path)
		}
	}
	if err := b.renew(); err != nil {
		return step(err, "replace the machine's identity")
	}
	if u := b.plan.EnsureUser; u != nil {
		if err := b.ensureUser(*u); err != nil {
			return step(err, "add user %s", u.Name)
		}
	}
	for file, name := range map[string]string{"/etc/passwd": b.plan.NeedUser, "/etc/group": b.plan.NeedGroup} {
		if _, err := strconv.Atoi(name); name == "" || err == nil {
			continue
		}
		entries, err := b.readFile(file)
		if err == nil && !hasEntry(entries, name) {
			err = fmt.Errorf("the image has no %q in %s", name, file)
		}
		if err != nil {
			return step(err, StepUser)
		}
	}
	return nil
}

// renew replaces what identifies the machine that the files are a copy of.
func (b *booter) renew() error {
	if b.plan.MachineID == "" {
		return nil
	}
	for _, p := range []string{"/etc/machine-id", "/var/lib/dbus/machine-id"} {
		fd, err := b.resolve(p, unix.O_PATH|unix.O_NOFOLLOW, 0)
		if err != nil {
			continue // there is none
		}
		var st unix.Stat_t
		err = unix.Fstat(fd, &st)
		unix.Close(fd)
		if err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size == 0 {
			continue
		}
		if err := b.writeFile(File{Path: p, Mode: 0o444, Content: b.plan.MachineID + "\n"}); err != nil {
			return err
		}
	}
	fd, err := b.resolve("/etc/ssh", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil
	}
	dir := os.NewFile(uintptr(fd), "/etc/ssh")
	defer dir.Close()
	names, err := dir.Readdirnames(4096)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	for _, name := range names {
		if !strings.HasPrefix(name, "ssh_host_") || !strings.Contains(name, "_key") {
			continue
		}
		if err := unix.Unlinkat(fd, name, 0); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EISDIR) {
			return err
		}
	}
	return nil
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func (b *booter) mkdir(d Dir) error {
	up, name, err := b.parent(d.Path)
	if err != nil {
		return err
	}
	defer unix.Close(up)
	if err := unix.Mkdirat(up, name, d.Mode&0o777); err != nil {
		if errors.Is(err, unix.EEXIST) {
			return nil
		}
		return err
	}
	if err := unix.Fchownat(up, name, d.UID, d.GID, unix.AT_SYMLINK_NOFOLLOW); err != nil && !b.singleUser(err) {
		return err
	}
	if d.Mode&^0o777 != 0 {
		fd, err := unix.Openat(up, name, unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Fchmod(fd, d.Mode)
	}
	return nil
}

// singleUser reports whether err only says that the user namespace has but
// one user (EINVAL: the id is not mapped), so that nothing can be chowned.
func (b *booter) singleUser(err error) bool {
	return !b.plan.SetGroups && errors.Is(err, unix.EINVAL)
}

// writeFile replaces a file; a link in its place is removed, not followed.
func (b *booter) writeFile(f File) error {
	up, name, err := b.parent(f.Path)
	if err != nil {
		return err
	}
	defer unix.Close(up)
	if err := unix.Unlinkat(up, name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	fd, err := unix.Openat(up, name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, f.Mode)
	if err != nil {
		return err
	}
	w := os.NewFile(uintptr(fd), f.Path)
	defer w.Close()
	if _, err := w.WriteString(f.Content); err != nil {
		return err
	}
	return w.Chmod(os.FileMode(f.Mode))
}

func (b *booter) readFile(p string) ([]byte, error) {
	fd, err := b.resolve(p, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	r := os.NewFile(uintptr(fd), p)
	defer r.Close()
	return io.ReadAll(io.LimitReader(r, 4<<20))
}

// AddUser adds a user to the root file system that this process is in, unless
// there is one of its name.
func AddUser(u User) error {
	// Not all users may be mapped, but then those that are missing are no error.
	return inside(func(b *booter) error { return b.ensureUser(u) })
}

// WriteFile replaces a file in the root file system that this process is in; a
// link in its place is removed, not followed.
func WriteFile(f File) error {
	return inside(func(b *booter) error { return b.writeFile(f) })
}

func inside(f func(b *booter) error) error {
	root, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(root)
	return f(&booter{root: root})
}

// DropCapabilities takes capabilities away from this thread and what it
// executes, for good. It takes CAP_SETPCAP if it has any of them.
func DropCapabilities(caps ...uintptr) error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return fmt.Errorf("read the capabilities: %w", err)
	}
	for _, c := range caps {
		// One that is not in the set needs no dropping, and no CAP_SETPCAP for it.
		if held, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, c, 0, 0, 0); err != nil || held != 0 {
			if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil {
				return fmt.Errorf("drop capability %d from the bounding set: %w", c, err)
			}
		}
		bit := uint32(1) << (c % 32)
		d := &data[c/32]
		d.Effective &^= bit
		d.Permitted &^= bit
		d.Inheritable &^= bit
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("clear the ambient capabilities: %w", err)
	}
	if err := unix.Capset(&hdr, &data[0]); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	return nil
}

// ensureUser adds a user as useradd would, but for the password files.
func (b *booter) ensureUser(u User) error {
	passwd, err := b.readFile("/etc/passwd")
	if err != nil {
		return err
	}
	if u.Fixed && hasID(passwd, u.UID) {
		return nil
	}
	if u.Fixed && hasEntry(passwd, u.Name) {
		u.Name += strconv.Itoa(u.UID)
	}
	if !hasEntry(passwd, u.Name) {
		for hasID(passwd, u.UID) {
			u.UID++
		}
		group, err := b.readFile("/etc/group")
		if err != nil {
			return err
		}
		for !u.Fixed && !hasEntry(group, u.Name) && hasID(group, u.GID) {
			u.GID++
		}
		shell := "/bin/sh"
		if fd, err := b.resolve("/bin/bash", unix.O_PATH, 0); err == nil {
			unix.Close(fd)
			shell = "/bin/bash"
		}
		line := fmt.Sprintf("%s:x:%d:%d::%s:%s\n", u.Name, u.UID, u.GID, u.Home, shell)
		if err := b.writeFile(File{Path: "/etc/passwd", Mode: 0o644, Content: withNewline(passwd) + line}); err != nil {
			return err
		}
		if !hasEntry(group, u.Name) && !hasID(group, u.GID) {
			line := fmt.Sprintf("%s:x:%d:\n", u.Name, u.GID)
			if err := b.writeFile(File{Path: "/etc/group", Mode: 0o644, Content: withNewline(group) + line}); err != nil {
				return err
			}
		}
	}
	return b.mkdir(Dir{Path: u.Home, Mode: 0o755, UID: u.UID, GID: u.GID})
}

func withNewline(b []byte) string {
	if len(b) > 0 && b[len(b)-1] != '\n' {
		return string(b) + "\n"
	}
	return string(b)
}

func hasEntry(file []byte, name string) bool {
	for line := range bytes.Lines(file) {
		if bytes.HasPrefix(line, []byte(name+":")) {
			return true
		}
	}
	return false
}

// hasID reports whether the third field of any entry is id.
func hasID(file []byte, id int) bool {
	for line := range bytes.Lines(file) {
		if f := bytes.Split(line, []byte{':'}); len(f) > 2 && string(f[2]) == strconv.Itoa(id) {
			return true
		}
	}
	return false
}

// --- system mounts ----------------------------------------------------------

// devices are the nodes of /dev, with their numbers, so that a strange host
// /dev is noticed.
var devices = []struct {
	name         string
	major, minor uint32
}{{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0}}

// readOnlyPaths and maskedPaths are those of the container runtimes (the
// defaults of Docker and containerd), and what else tells about the host.
var (
	readOnlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
	maskedPaths   = []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kallsyms", "/proc/kcore", "/proc/keys",
		"/proc/key-users", "/proc/kmsg", "/proc/kpagecgroup", "/proc/kpagecount", "/proc/kpageflags",
		"/proc/latency_stats", "/proc/modules", "/proc/sched_debug", "/proc/scsi", "/proc/slabinfo",
		"/proc/timer_list", "/proc/timer_stats", "/proc/vmallocinfo",
	}
)

// MaskedPaths are what a sandbox sees nothing of; ReadOnlyPaths what it may not
// write.
func MaskedPaths() []string   { return slices.Clone(maskedPaths) }
func ReadOnlyPaths() []string { return slices.Clone(readOnlyPaths) }

func (b *booter) mountSystem() error {
	if err := b.mountNew("proc", "/proc", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC, nil); err != nil {
		return step(err, "mount /proc")
	}
	// The limits are the namespace's own, and /proc/sys is read-only below.
	for _, name := range sortedKeys(b.plan.UserLimits) {
		if err := b.writeProc("sys/user/"+name, b.plan.UserLimits[name]); err != nil {
			return step(err, "set user.%s", name)
		}
	}
	for _, p := range readOnlyPaths {
		if err := b.makeReadOnly(p); err != nil {
			return step(err, "make %s read-only", p)
		}
	}
	for _, p := range maskedPaths {
		if err := b.mask(p); err != nil {
			return step(err, "mask %s", p)
		}
	}
	if err := b.mountDev(); err != nil {
		return err
	}
	if b.plan.Step != nil { // what a step writes there belongs to the image
		return nil
	}
	err := b.mountNew("tmpfs", "/run", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV, map[string]string{"mode": "0755", "size": "64m", "nr_inodes": "65536"})
	return step(err, "mount /run")
}

func (b *booter) writeProc(name, value string) error {
	fd, err := b.resolve("/proc/"+name, unix.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.Write(fd, []byte(value))
	return err
}

// newMount makes a detached mount of a new file system.
func newMount(fstype string, attrs int, opts map[string]string) (int, error) {
	fs, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fs)
	for _, k := range sortedKeys(opts) {
		if v := opts[k]; v == "" {
			err = unix.FsconfigSetFlag(fs, k)
		} else {
			err = unix.FsconfigSetString(fs, k, v)
		}
		if err != nil {
			return -1, fmt.Errorf("option %s=%s: %w%s", k, opts[k], err, fsLog(fs))
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("%w%s", err, fsLog(fs))
	}
	return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attrs)
}

func (b *booter) mountNew(fstype, target string, attrs int, opts map[string]string) error {
	m, err := newMount(fstype, attrs, opts)
	if err != nil {
		return err
	}
	defer unix.Close(m)
	return b.attach(m, target, true)
}

// makeReadOnly binds a path over itself, read-only. A missing path is fine.
func (b *booter) makeReadOnly(p string) error {
	fd, err := b.resolve(p, unix.O_PATH, unix.RESOLVE_NO_SYMLINKS)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	m, err := unix.OpenTree(fd, "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(m)
	if err := setAttrs(m, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC); err != nil {
		return err
	}
	return moveMountFD(m, fd)
}

func setAttrs(mount int, attrs uint64) error {
	return unix.MountSetattr(mount, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: attrs})
}

// mask hides a path: a directory behind an empty read-only one, a file behind
// /dev/null. A missing path is fine.
func (b *booter) mask(p string) error {
	fd, err := b.resolve(p, unix.O_PATH, unix.RESOLVE_NO_SYMLINKS)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	var m int
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		m, err = newMount("tmpfs", unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC,
			map[string]string{"mode": "0555", "size": "4k", "nr_inodes": "1"})
	} else {
		m, err = openDevice("null", 1, 3)
	}
	if err != nil {
		return err
	}
	defer unix.Close(m)
	return moveMountFD(m, fd)
}

// openDevice clones the mount of one of the host's device nodes.
func openDevice(name string, major, minor uint32) (int, error) {
	m, err := unix.OpenTree(unix.AT_FDCWD, "/dev/"+name, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return -1, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(m, &st); err != nil {
		unix.Close(m)
		return -1, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || unix.Major(st.Rdev) != major || unix.Minor(st.Rdev) != minor {
		unix.Close(m)
		return -1, fmt.Errorf("the host's /dev/%s is not character device %d:%d", name, major, minor)
	}
	return m, nil
}

func (b *booter) mountDev() error {
	if err := b.mountNew("tmpfs", "/dev", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC, map[string]string{"mode": "0755", "size": "64k", "nr_inodes": "128"}); err != nil {
		return step(err, "mount /dev")
	}
	for _, d := range devices {
		m, err := openDevice(d.name, d.major, d.minor)
		if err != nil {
			return step(err, "open the host's /dev/%s", d.name)
		}
		err = b.attach(m, "/dev/"+d.name, false)
		unix.Close(m)
		if err != nil {
			return step(err, "mount /dev/%s", d.name)
		}
	}
	pts := map[string]string{"newinstance": "", "ptmxmode": "0666", "mode": "0620"}
	if b.plan.SetGroups {
		pts["gid"] = "5"
	}
	if err := b.mountNew("devpts", "/dev/pts", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC, pts); err != nil {
		return step(err, "mount /dev/pts")
	}
	if err := b.mountNew("tmpfs", "/dev/shm", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC, map[string]string{"mode": "1777", "size": "64m"}); err != nil {
		return step(err, "mount /dev/shm")
	}
	if err := b.mountNew("mqueue", "/dev/mqueue", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC, nil); err != nil && !errors.Is(err, unix.ENODEV) {
		return step(err, "mount /dev/mqueue")
	}
	dev, err := b.resolve("/dev", unix.O_PATH|unix.O_DIRECTORY, unix.RESOLVE_NO_SYMLINKS)
	if err != nil {
		return step(err, "open /dev")
	}
	defer unix.Close(dev)
	for name, to := range map[string]string{"ptmx": "pts/ptmx", "fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"} {
		if err := unix.Symlinkat(to, dev, name); err != nil {
			return step(err, "make /dev/%s", name)
		}
	}
	return nil
}

// mountSys gives programs the few facts below /sys that they look for, and
// nothing of the host's hardware.
func (b *booter) mountSys() error {
	sys, err := newMount("tmpfs", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC, map[string]string{"mode": "0755", "size": "16k", "nr_inodes": "64"})
	if err != nil {
		return step(err, "mount /sys")
	}
	defer unix.Close(sys)
	if err := b.attach(sys, "/sys", true); err != nil {
		return step(err, "mount /sys")
	}
	for _, p := range b.plan.SysPaths {
		var st unix.Stat_t
		if err := unix.Stat(p, &st); err != nil {
			continue
		}
		m, err := unix.OpenTree(unix.AT_FDCWD, p, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
		if err != nil {
			return step(err, "open the host's %s", p)
		}
		if err = setAttrs(m, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC); err == nil {
			err = b.attach(m, p, st.Mode&unix.S_IFMT == unix.S_IFDIR)
		}
		unix.Close(m)
		if err != nil {
			return step(err, "mount %s", p)
		}
	}
	return b.mountCgroups(sys)
}

const cgroupAttrs = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC

// mountCgroups shows the sandbox its own cgroups: so programs see their
// limits, and the agent can make a group for each command.
func (b *booter) mountCgroups(sys int) error {
	if len(b.plan.CgroupsV1) > 0 || (b.plan.Cgroup != "" && b.plan.Cgroup != "/sys/fs/cgroup") {
		if err := b.mountNew("tmpfs", "/sys/fs/cgroup", cgroupAttrs, map[string]string{"mode": "0755", "size": "16k", "nr_inodes": "32"}); err != nil {
			return step(err, "mount /sys/fs/cgroup")
		}
	}
	for _, c := range sortedKeys(b.plan.CgroupsV1) {
		m, err := unix.OpenTree(unix.AT_FDCWD, b.plan.CgroupsV1[c], unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			return step(err, "open the %s cgroup", c)
		}
		if err = setAttrs(m, cgroupAttrs|unix.MOUNT_ATTR_RDONLY); err == nil {
			err = b.attach(m, "/sys/fs/cgroup/"+c, true)
		}
		unix.Close(m)
		if err != nil {
			return step(err, "mount the %s cgroup", c)
		}
	}
	if b.plan.AwaitCgroups {
		if n, err := unix.Read(FDSync, make([]byte, 8)); err != nil || n == 0 {
			return step(errors.Join(err, errors.New("the engine went away")), "wait for the cgroups")
		}
	}
	// This process is in its cgroups now, which so become the roots of what it
	// sees.
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return step(err, "make a cgroup namespace")
	}
	if b.plan.Cgroup != "" {
		if err := b.mountNew("cgroup2", b.plan.Cgroup, cgroupAttrs, nil); err != nil {
			return step(err, "mount %s", b.plan.Cgroup)
		}
	}
	return step(setAttrs(sys, unix.MOUNT_ATTR_RDONLY), "make /sys read-only")
}

// openSource opens what is to be bound. What is in a mount may come from a
// sandbox or an image: no link leads out of it.
func (b *booter) openSource(s Source) (int, error) {
	within := s
	within.Path = ""
	dir, err := unix.Open(b.source(within), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(dir)
	return unix.Openat2(dir, cmp.Or(strings.TrimPrefix(path.Clean("/"+s.Path), "/"), "."), &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
}

// bindStep mounts for a step of a build, where targets may be links as well:
// they lead to another place in the root.
func (b *booter) bindStep(bind Bind) error {
	var m int
	dir := true
	if bind.Tmpfs != 0 {
		var err error
		opts := map[string]string{"mode": "1777", "size": strconv.FormatInt(bind.Tmpfs, 10)}
		if m, err = newMount("tmpfs", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV, opts); err != nil {
			return err
		}
	} else {
		src, err := b.openSource(bind.Source)
		if err != nil {
			return fmt.Errorf("source %s: %w", bind.Source.Path, err)
		}
		defer unix.Close(src)
		var st unix.Stat_t
		if err := unix.Fstat(src, &st); err != nil {
			return err
		}
		dir = st.Mode&unix.S_IFMT == unix.S_IFDIR
		if m, err = unix.OpenTree(src, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH); err != nil {
			return err
		}
	}
	defer unix.Close(m)
	attrs := uint64(unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV)
	if bind.ReadOnly {
		attrs |= unix.MOUNT_ATTR_RDONLY
	}
	if err := setAttrs(m, attrs); err != nil {
		return err
	}
	at, err := b.resolve(bind.Target, unix.O_PATH, 0)
	if errors.Is(err, unix.ENOENT) {
		return b.attach(m, bind.Target, dir)
	}
	if err != nil {
		return err
	}
	defer unix.Close(at)
	return moveMountFD(m, at)
}

func (b *booter) bind(bind Bind) error {
	if b.plan.Step != nil {
		return b.bindStep(bind)
	}
	src := b.source(bind.Source)
	var st unix.Stat_t
	if err := unix.Stat(src, &st); err != nil {
		return fmt.Errorf("source: %w", err)
	}
	flags, setFlags := uint(unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW), uint(unix.AT_EMPTY_PATH)
	if bind.Recursive {
		flags |= unix.AT_RECURSIVE
		setFlags |= unix.AT_RECURSIVE
	}
	m, err := unix.OpenTree(unix.AT_FDCWD, src, flags)
	if err != nil {
		return err
	}
	defer unix.Close(m)
	attrs := uint64(unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV)
	if bind.ReadOnly {
		attrs |= unix.MOUNT_ATTR_RDONLY
	}
	if err := unix.MountSetattr(m, "", setFlags, &unix.MountAttr{Attr_set: attrs}); err != nil {
		return err
	}
	return b.attach(m, bind.Target, st.Mode&unix.S_IFMT == unix.S_IFDIR)
}

func moveMount(mount, dir int, target string) error {
	return unix.MoveMount(mount, "", dir, target, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

func moveMountFD(mount, at int) error {
	return unix.MoveMount(mount, "", at, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
}

// pivot makes the new root the root and lets go of the host's.
func (b *booter) pivot() error {
	if err := unix.Fchdir(b.root); err != nil {
		return step(err, "enter the root")
	}
	// Both on the same directory: the old root ends up on top of the new one
	// and is unmounted from there (pivot_root(2), "pivot_root(".", ".")").
	if err := unix.PivotRoot(".", "."); err != nil {
		return step(err, "pivot_root")
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return step(err, "let go of the host's root")
	}
	return step(unix.Chdir("/"), "enter /")
}

// --- rights -----------------------------------------------------------------

const lastCapability = 63 // of the 64 bits that capset(2) has

func (b *booter) becomeAgent() error {
	p := &b.plan
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte(strconv.Itoa(p.OOMScoreAdj)), 0)
	for _, l := range p.Rlimits {
		if err := unix.Setrlimit(l.Resource, &unix.Rlimit{Cur: l.Soft, Max: l.Max}); err != nil {
			return step(err, "set resource limit %d", l.Resource)
		}
	}
	unix.Umask(0o022)
	if _, err := unix.Setsid(); err != nil && !errors.Is(err, unix.EPERM) {
		return step(err, "start a session")
	}
	for c := range lastCapability {
		if p.Capabilities&(1<<c) != 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err != nil {
			if errors.Is(err, unix.EINVAL) { // past the kernel's last capability
				break
			}
			return step(err, "drop capability %d", c)
		}
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return step(err, "clear ambient capabilities")
	}
	// All but those of this thread stay as they are; execve ends the others.
	if p.Step != nil {
		// With all rights: the directory may be closed to the command's user.
		if err := unix.Chdir(p.Step.Dir); err != nil {
			return step(err, "enter %s", p.Step.Dir)
		}
	}
	if p.SetGroups {
		var groups []uint32
		if p.Step != nil {
			for _, g := range p.Step.Groups {
				groups = append(groups, uint32(g))
			}
		}
		if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(unsafe.SliceData(groups))), 0); errno != 0 {
			return step(errno, "set the supplementary groups")
		}
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(p.GID), uintptr(p.GID), uintptr(p.GID)); errno != 0 {
		return step(errno, "become gid %d", p.GID)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(p.UID), uintptr(p.UID), uintptr(p.UID)); errno != 0 {
		return step(errno, "become uid %d", p.UID)
	}
	if err := b.setCapabilities(p.Capabilities); err != nil {
		return step(err, "reduce capabilities")
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return step(err, "set no_new_privs")
	}
	if p.DieWithParent {
		if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
			return step(err, "die with the engine")
		}
		// The engine may have died before: its end of the socket tells.
		if dead, err := hungUp(FDSync); err != nil || dead {
			return step(errors.Join(err, errors.New("the engine went away")), "die with the engine")
		}
	}
	argv, err := syscall.SlicePtrFromStrings(p.Argv)
	if err != nil {
		return step(err, "arguments")
	}
	env, err := syscall.SlicePtrFromStrings(p.Env)
	if err != nil {
		return step(err, "environment")
	}
	if p.Step != nil {
		return b.becomeCommand(argv, env)
	}
	empty := []byte{0}
	// FDSync closes with the exec, which is how the engine learns of it.
	for _, fd := range []int{FDListener, FDConfig} {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0); err != nil {
			return step(err, "keep descriptor %d", fd)
		}
	}
	if err := unix.CloseRange(FDAgent+1, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return step(err, "close descriptors")
	}
	if err := loadSeccomp(p.Seccomp); err != nil {
		return step(err, "load the seccomp filter")
	}
	_, _, errno := unix.RawSyscall6(unix.SYS_EXECVEAT, FDAgent, uintptr(unsafe.Pointer(&empty[0])),
		uintptr(unsafe.Pointer(&argv[0])), uintptr(unsafe.Pointer(&env[0])), unix.AT_EMPTY_PATH, 0)
	return step(errno, "execute the agent")
}

// becomeCommand executes the command of a step, found as execvp(3) does.
func (b *booter) becomeCommand(argv, env []*byte) error {
	p := &b.plan
	name := p.Argv[0]
	paths := []string{name}
	if !strings.Contains(name, "/") {
		paths = nil
		for _, kv := range p.Env {
			if dirs, ok := strings.CutPrefix(kv, "PATH="); ok {
				paths = nil
				for dir := range strings.SplitSeq(dirs, ":") {
					paths = append(paths, path.Join(cmp.Or(dir, "."), name))
				}
			}
		}
	}
	if err := unix.CloseRange(FDListener, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return step(err, "close descriptors")
	}
	if err := loadSeccomp(p.Seccomp); err != nil {
		return step(err, "load the seccomp filter")
	}
	found := error(unix.ENOENT)
	for _, file := range paths {
		f, err := unix.BytePtrFromString(file)
		if err != nil {
			return step(err, StepCommand)
		}
		_, _, errno := unix.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(f)), uintptr(unsafe.Pointer(&argv[0])), uintptr(unsafe.Pointer(&env[0])))
		if errno != unix.ENOENT && errno != unix.ENOTDIR {
			found = errno
		}
	}
	return step(fmt.Errorf("%s: %w", name, found), StepCommand)
}

func (b *booter) setCapabilities(mask uint64) error {
	if b.plan.UID != 0 {
		mask = 0
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{
		{Effective: uint32(mask), Permitted: uint32(mask)},
		{Effective: uint32(mask >> 32), Permitted: uint32(mask >> 32)},
	}
	return unix.Capset(&hdr, &data[0])
}

func hungUp(fd int) (bool, error) {
	p := []unix.PollFd{{Fd: int32(fd)}}
	_, err := unix.Poll(p, 0)
	return p[0].Revents&unix.POLLHUP != 0, err
}

// loadSeccomp installs the filter on this thread; execve carries it on.
func loadSeccomp(prog []byte) error {
	if len(prog) == 0 || len(prog)%8 != 0 {
		return fmt.Errorf("a program of %d bytes is not one", len(prog))
	}
	fprog := unix.SockFprog{Len: uint16(len(prog) / 8), Filter: (*unix.SockFilter)(unsafe.Pointer(&prog[0]))}
	_, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&fprog)))
	runtime.KeepAlive(prog)
	if errno != 0 {
		return errno
	}
	return nil
}

// removeTree removes a directory and all below it, giving itself the right to
// enter directories that it owns where it has to. It follows no links.
func removeTree(root *os.Root, name string) error {
	err := root.RemoveAll(name)
	if err == nil {
		return nil
	}
	if st, serr := root.Lstat(name); serr != nil || !st.IsDir() {
		return err
	}
	if err := root.Chmod(name, 0o700); err != nil {
		return err
	}
	sub, err := root.OpenRoot(name)
	if err != nil {
		return err
	}
	defer sub.Close()
	d, err := sub.Open(".")
	if err != nil {
		return err
	}
	names, err := d.Readdirnames(-1)
	d.Close()
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := removeTree(sub, n); err != nil {
			return err
		}
	}
	return root.Remove(name)
}

// AsRoot is the life of a process that the engine starts as root of a user
// namespace, to work on files of the sandboxes' users. It waits until the
// namespace has its mapping: the end of descriptor 3.
func AsRoot(args []string) error {
	if _, err := io.Copy(io.Discard, os.NewFile(3, "go")); err != nil {
		return err
	}
	if len(args) == 2 && args[0] == "remove" {
		root, err := os.OpenRoot(path.Dir(args[1]))
		if err != nil {
			return err
		}
		defer root.Close()
		return removeTree(root, path.Base(args[1]))
	}
	if len(args) == 4 && args[0] == "copy" {
		_, err := tree.Copy(context.Background(), args[1], args[2], args[3], nil)
		return err
	}
	if len(args) > 4 && args[0] == "merge" { // DST WORK NUMBER BELOW… SRC…
		n, err := strconv.Atoi(args[3])
		if err != nil || n < 0 || n > len(args)-4 {
			return fmt.Errorf("merge: %q below", args[3])
		}
		_, err = tree.Merge(context.Background(), args[1], args[2], args[4:4+n], args[4+n:])
		return err
	}
	return fmt.Errorf("unknown command %q", args)
}
