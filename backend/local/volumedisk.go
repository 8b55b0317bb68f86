package local

import (
	"context"
	"errors"
	"os"
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
	d, err := shareDisk(path)
	if err != nil {
		return nil, err
	}
	return d.mount, nil
}
