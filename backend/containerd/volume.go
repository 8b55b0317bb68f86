//go:build linux

package containerd

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona/internal/lifecycle"
)

// places, in a sandbox's directory, is where the OCI runtime finds the volumes to
// mount while a task is made, and nothing at other times.
const places = "volumes"

// placeVolumes mounts the sandbox's volumes where the OCI runtime finds them.
// Whoever has a volume in another sandbox can change what is in it at any time:
// so a path in it is walked here, without following links, and the runtime gets
// one that nobody else has. release takes them away again, once the task has its
// own mounts.
func (b *backend) placeVolumes(ctx context.Context, r *record) (mounts []specs.Mount, release func(), err error) {
	dir := b.File(r.ID, places)
	if err := removePlaces(dir); err != nil { // of a start that was killed
		return nil, nil, err
	}
	if len(r.Volumes) == 0 {
		return nil, func() {}, nil
	}
	remove := func() {
		if err := removePlaces(dir); err != nil {
			b.log.Warn("the mounts that a task was made with could not be removed; it will be tried again", "sandbox", r.ID, "err", err)
		}
	}
	defer func() {
		if err != nil {
			remove()
		}
	}()
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, nil, err
	}
	for i, v := range r.Volumes {
		data, _, err := b.OpenVolume(ctx, v.Volume)
		if err == nil {
			err = lifecycle.MakeSubpath(data, v.Subpath)
		}
		if err != nil {
			return nil, nil, err
		}
		place := filepath.Join(dir, strconv.Itoa(i))
		if err := placeVolume(data, v.Subpath, place); err != nil {
			return nil, nil, err
		}
		m := specs.Mount{Destination: v.MountPath, Type: "bind", Source: place, Options: []string{"bind", "nosuid", "nodev"}}
		if v.ReadOnly {
			m.Options = append(m.Options, "ro")
		}
		mounts = append(mounts, m)
	}
	return mounts, remove, nil
}

func placeVolume(data, subpath, place string) error {
	from, err := lifecycle.OpenSubpath(data, subpath)
	if err != nil {
		return err
	}
	defer from.Close()
	if err := os.Mkdir(place, 0o700); err != nil {
		return err
	}
	if err := unix.Mount("/proc/self/fd/"+strconv.Itoa(int(from.Fd())), place, "", unix.MS_BIND, ""); err != nil {
		return &fs.PathError{Op: "mount", Path: place, Err: err}
	}
	return nil
}

// removePlaces takes away what is mounted in a directory, and the directory. It
// removes empty directories only: what is mounted is the volumes' files.
func removePlaces(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		place := filepath.Join(dir, e.Name())
		for unix.Unmount(place, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) == nil {
		}
		if err := unix.Rmdir(place); err != nil {
			return &fs.PathError{Op: "rmdir", Path: place, Err: err}
		}
	}
	return os.Remove(dir)
}
