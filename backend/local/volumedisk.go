package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// A volume with a quota is a file system in a sparse file, as a sandbox's disk
// is, but one that several sandboxes mount. Two loop devices for one file would
// ruin it; so whoever mounts it looks for the device that it has, however it
// came to that, under the lock of the volumes. Nothing has to be taken down when
// a process is killed: the device ends with its last mount.

// volumeDisks implements lifecycle.VolumeDisks.
type volumeDisks struct{}

func (volumeDisks) Refuse() string { return canLimitDisk() }

func (volumeDisks) Make(ctx context.Context, path string, size int64) error {
	if err := makeDisk(ctx, path, size); err != nil {
		return err
	}
	d, err := mountDisk(path)
	if err != nil {
		return err
	}
	defer d.mount.Close()
	root, err := os.OpenRoot(fdPath(d.mount))
	if err != nil {
		return err
	}
	defer root.Close()
	// A directory that mkfs makes for fsck, which is not the sandboxes'.
	if err := root.Remove("lost+found"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return root.Chmod(".", 0o777)
}

func (volumeDisks) Mount(_ context.Context, path string) (*os.File, error) {
	loop, name, err := deviceOf(path)
	if err != nil {
		return nil, err
	}
	if loop == nil {
		d, err := mountDisk(path)
		if err != nil {
			return nil, err
		}
		return d.mount, nil
	}
	defer loop.Close()
	d, err := mountDevice(path, loop, name)
	if err != nil {
		return nil, err
	}
	return d.mount, nil
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
