package local

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/failpoint"
	"golang.org/x/sys/unix"
)

// A disk limit is kept by giving the sandbox a file system of that size: an
// ext4 in a sparse file. Its mount is never attached on the host; the loop
// device detaches itself when the last mount of it is gone.

// canLimitDisk says why there can be no disk limit; "" if there can.
func canLimitDisk() string {
	if os.Geteuid() != 0 {
		return "it takes root to mount a file system of limited size"
	}
	if _, err := exec.LookPath("mkfs.ext4"); err != nil {
		return "mkfs.ext4 is missing (Debian: apt-get install e2fsprogs)"
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		return "the kernel has no loop devices (modprobe loop)"
	}
	return ""
}

// makeDisk makes the file with its file system.
func makeDisk(ctx context.Context, path string, size int64) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	err = f.Truncate(size)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if err := failpoint.Fail("local/disk/sized"); err != nil {
		return err
	}
	// No blocks kept for root and no time spent on zeroing: the file is sparse.
	cmd := exec.CommandContext(ctx, "mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard", "-O", "^resize_inode", path)
	cmd.Env = append(cmd.Environ(), "LC_ALL=C")
	if out, err := cmd.CombinedOutput(); err != nil {
		return toolError("mkfs.ext4", path, out, err)
	}
	return failpoint.Fail("local/disk/made")
}

// toolError is the error of a tool for file systems, which says only in words that
// there was no place.
func toolError(tool, path string, out []byte, err error) error {
	if bytes.Contains(out, []byte("No space left on device")) {
		err = errors.Join(unix.ENOSPC, err)
	}
	return fmt.Errorf("%s %s: %w: %s", tool, path, err, bytes.TrimSpace(out))
}

// mountDisk mounts the file, detached.
func mountDisk(path string) (*disk, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	loop, name, err := loopDevice(f)
	if err != nil {
		return nil, err
	}
	// The mount holds the device from here on.
	defer loop.Close()
	return mountDevice(name, path)
}

// shareDisk mounts the file once more if it is mounted, and else for the first
// time: two mounts of one device show the same file system.
func shareDisk(path string) (*disk, error) {
	loop, name, err := deviceOf(path)
	if err != nil {
		return nil, err
	}
	if loop == nil {
		return mountDisk(path)
	}
	defer loop.Close()
	return mountDevice(name, path)
}

// deviceOf opens the loop device that a file has; nil if it has none. As long as
// it is open, the device keeps the file.
func deviceOf(path string) (loop *os.File, name string, err error) {
	var file unix.Stat_t
	if err := unix.Stat(path, &file); err != nil {
		return nil, "", &os.PathError{Op: "stat", Path: path, Err: err}
	}
	// Without it nothing would be found, and nothing is what a file has that is
	// free to be mounted.
	if _, err := os.Stat("/sys/block"); err != nil {
		return nil, "", err
	}
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, "", err
	}
	// The kernel may know the file by another path, but not by another name.
	tail := filepath.Join(filepath.Base(filepath.Dir(path)), filepath.Base(path))
	for _, f := range files {
		backing, err := os.ReadFile(f)
		if err != nil || !strings.Contains(string(backing), tail) {
			continue
		}
		name := "/dev/" + strings.Split(f, "/")[3]
		loop, err := os.OpenFile(name, os.O_RDWR, 0)
		if errors.Is(err, os.ErrNotExist) { // no udev here that makes the node
			var n uint32
			if _, err := fmt.Sscanf(name, "/dev/loop%d", &n); err != nil {
				return nil, "", fmt.Errorf("%s is in use by %s: %w", path, name, err)
			}
			_ = unix.Mknod(name, unix.S_IFBLK|0o660, int(unix.Mkdev(7, n)))
			loop, err = os.OpenFile(name, os.O_RDWR, 0)
		}
		if err != nil {
			return nil, "", err
		}
		info, err := unix.IoctlLoopGetStatus64(int(loop.Fd()))
		if err == nil && info.Device == file.Dev && info.Inode == file.Ino {
			return loop, name, nil
		}
		loop.Close()
		if err != nil && !errors.Is(err, unix.ENXIO) { // ENXIO: it has just ended
			return nil, "", &os.PathError{Op: "LOOP_GET_STATUS64", Path: name, Err: err}
		}
	}
	return nil, "", nil
}

// mountDevice mounts the loop device that a file is bound to, detached.
func mountDevice(name, path string) (*disk, error) {
	var st unix.Stat_t
	if err := unix.Stat(name, &st); err != nil {
		return nil, os.NewSyscallError("stat "+name, err)
	}
	fsfd, err := unix.Fsopen("ext4", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("fsopen ext4", err)
	}
	defer unix.Close(fsfd)
	if err := unix.FsconfigSetString(fsfd, "source", name); err != nil {
		return nil, fmt.Errorf("mount %s: %w", path, err)
	}
	if err := unix.FsconfigCreate(fsfd); err != nil {
		return nil, fmt.Errorf("mount %s: %w", path, err)
	}
	m, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOATIME)
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", path, err)
	}
	return &disk{mount: os.NewFile(uintptr(m), path), device: fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))}, nil
}

// loopDevice binds a free loop device to a file. It detaches itself when its
// last user goes (LO_FLAGS_AUTOCLEAR).
func loopDevice(f *os.File) (*os.File, string, error) {
	ctl, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, "", err
	}
	defer ctl.Close()
	for range 64 {
		n, err := unix.IoctlRetInt(int(ctl.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, "", os.NewSyscallError("LOOP_CTL_GET_FREE", err)
		}
		name := "/dev/loop" + strconv.Itoa(n)
		if _, err := os.Stat(name); err != nil {
			// No udev here that makes the node.
			_ = unix.Mknod(name, unix.S_IFBLK|0o660, int(unix.Mkdev(7, uint32(n))))
		}
		loop, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			return nil, "", err
		}
		config := unix.LoopConfig{Fd: uint32(f.Fd())}
		config.Info.Flags = unix.LO_FLAGS_AUTOCLEAR
		err = unix.IoctlLoopConfigure(int(loop.Fd()), &config)
		if err == nil {
			return loop, name, nil
		}
		loop.Close()
		if !errors.Is(err, unix.EBUSY) { // somebody else was faster: take the next
			return nil, "", os.NewSyscallError("LOOP_CONFIGURE "+name, err)
		}
	}
	return nil, "", errors.New("no free loop device")
}

// openDisk gives the place of a sandbox's own files as a detached mount.
func (e *engine) openDisk(r *record) (*disk, error) {
	if r.Own.HasDisk {
		return mountDisk(e.File(r.ID, "disk.img"))
	}
	if !e.root {
		return &disk{}, nil
	}
	m, err := cloneMount(e.File(r.ID, "fs"))
	if err != nil {
		return nil, err
	}
	return &disk{mount: m, device: e.ioDevice}, nil
}

// ioDeviceOf finds the whole disk below a directory, as I/O limits count for
// whole disks only. "" if it is not on one.
func ioDeviceOf(dir string) string {
	var st unix.Stat_t
	if unix.Stat(dir, &st) != nil {
		return ""
	}
	dev := fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))
	sys := "/sys/dev/block/" + dev
	if _, err := os.Stat(sys); err != nil {
		return ""
	}
	if _, err := os.Stat(sys + "/partition"); err == nil {
		real, err := filepath.EvalSymlinks(sys)
		if err != nil {
			return ""
		}
		data, err := os.ReadFile(filepath.Join(filepath.Dir(real), "dev"))
		if err != nil {
			return ""
		}
		return string(bytes.TrimSpace(data))
	}
	return dev
}

// checkDisk refuses a disk limit that cannot be enforced.
func checkDisk(op string, size float64) error {
	if size == 0 {
		return nil
	}
	if why := canLimitDisk(); why != "" {
		return &daytona.Error{Kind: daytona.KindUnsupported, Op: op, Field: "Resources.Disk", Value: size, Message: why}
	}
	return nil
}
