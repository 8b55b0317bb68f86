package local

import (
	"context"
	"encoding/json"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/lifecycle"
	"golang.org/x/sys/unix"
)

// A volume is a directory below the state directory. Its files are kept with
// the ids that they have inside the sandboxes.

// CreateVolume implements daytona.VolumeManager.
func (e *engine) CreateVolume(ctx context.Context, name string) (daytona.Volume, error) {
	const op = "create volume"
	if !daytona.ValidName(name) {
		return daytona.Volume{}, &daytona.Error{Kind: daytona.KindInvalid, Op: op, Field: "name", Value: name,
			Message: `must be 1 to 63 letters, digits, ".", "_" or "-" and start with a letter or digit`}
	}
	lock, err := lifecycle.LockFile(e.Dir("volumes.lock"), true)
	if err != nil {
		return daytona.Volume{}, lifecycle.KernelError(op, name, err)
	}
	defer lock.Close()
	if v, err := e.GetVolume(ctx, name); err == nil {
		return daytona.Volume{}, &daytona.Error{Kind: daytona.KindConflict, Op: op, Field: "name", Value: name, Message: "volume " + v.ID + " has this name"}
	}
	v := daytona.Volume{ID: lifecycle.NewID(), Name: name, CreatedAt: time.Now().UTC()}
	data, err := json.Marshal(v)
	if err != nil {
		return daytona.Volume{}, err
	}
	tmp, err := os.MkdirTemp(e.Dir("volumes"), ".new-")
	if err != nil {
		return daytona.Volume{}, lifecycle.KernelError(op, name, err)
	}
	defer os.RemoveAll(tmp)
	if err := os.WriteFile(filepath.Join(tmp, "volume.json"), data, 0o600); err != nil {
		return daytona.Volume{}, lifecycle.KernelError(op, name, err)
	}
	// Whatever user a sandbox has may write.
	if err = os.Mkdir(filepath.Join(tmp, "data"), 0o755); err == nil {
		err = os.Chmod(filepath.Join(tmp, "data"), 0o777)
	}
	if err == nil {
		err = os.Rename(tmp, e.volumeOf(v.ID))
	}
	return v, lifecycle.KernelError(op, name, err)
}

func (e *engine) loadVolume(id string) (daytona.Volume, error) {
	var v daytona.Volume
	data, err := os.ReadFile(filepath.Join(e.volumeOf(id), "volume.json"))
	if err == nil {
		err = json.Unmarshal(data, &v)
	}
	return v, err
}

// GetVolume implements daytona.VolumeManager.
func (e *engine) GetVolume(ctx context.Context, idOrName string) (daytona.Volume, error) {
	if lifecycle.ValidID(idOrName) {
		if v, err := e.loadVolume(idOrName); err == nil {
			return v, nil
		}
	}
	for v, err := range e.ListVolumes(ctx) {
		if err != nil {
			return daytona.Volume{}, err
		}
		if v.Name == idOrName {
			return v, nil
		}
	}
	return daytona.Volume{}, &daytona.Error{Kind: daytona.KindNotFound, Op: "get volume", Subject: idOrName, Message: "there is no volume with this id or name"}
}

// ListVolumes implements daytona.VolumeManager.
func (e *engine) ListVolumes(ctx context.Context) iter.Seq2[daytona.Volume, error] {
	return func(yield func(daytona.Volume, error) bool) {
		entries, err := os.ReadDir(e.Dir("volumes"))
		if err != nil {
			yield(daytona.Volume{}, lifecycle.KernelError("list volumes", e.Root, err))
			return
		}
		var all []daytona.Volume
		for _, d := range entries {
			if v, err := e.loadVolume(d.Name()); err == nil && lifecycle.ValidID(d.Name()) {
				all = append(all, v)
			}
		}
		slices.SortFunc(all, func(a, b daytona.Volume) int { return a.CreatedAt.Compare(b.CreatedAt) })
		for _, v := range all {
			if ctx.Err() != nil {
				yield(daytona.Volume{}, ctx.Err())
				return
			}
			if !yield(v, nil) {
				return
			}
		}
	}
}

// DeleteVolume implements daytona.VolumeManager.
func (e *engine) DeleteVolume(ctx context.Context, idOrName string) error {
	const op = "delete volume"
	lock, err := lifecycle.LockFile(e.Dir("volumes.lock"), true)
	if err != nil {
		return lifecycle.KernelError(op, idOrName, err)
	}
	defer lock.Close()
	v, err := e.GetVolume(ctx, idOrName)
	if err != nil {
		return err
	}
	ids, err := e.IDs()
	if err != nil {
		return lifecycle.KernelError(op, idOrName, err)
	}
	for _, id := range ids {
		r, err := e.Load(id)
		if err != nil || r.Phase == lifecycle.PhaseDeleting {
			continue
		}
		for _, m := range r.Volumes {
			if m.Volume == v.ID || m.Volume == v.Name {
				return &daytona.Error{Kind: daytona.KindConflict, Op: op, Subject: v.Name, Message: "sandbox " + r.Name + " uses it; delete that first"}
			}
		}
	}
	gone := filepath.Join(e.Dir("volumes"), ".gone-"+v.ID)
	if err := os.Rename(e.volumeOf(v.ID), gone); err != nil {
		return lifecycle.KernelError(op, v.Name, err)
	}
	return lifecycle.KernelError(op, v.Name, e.removeTree(gone))
}

// volumeDir is the directory of a volume's files. As root a subpath is made in
// it here (boot does it otherwise): its content is hostile, so no link is
// followed.
func (e *engine) volumeDir(ctx context.Context, m daytona.VolumeMount) (string, error) {
	v, err := e.GetVolume(ctx, m.Volume)
	if err != nil {
		return "", err
	}
	data := filepath.Join(e.volumeOf(v.ID), "data")
	if m.Subpath == "" || !e.root {
		return data, nil // boot makes it, with the rights of the sandbox's root
	}
	root, err := os.OpenRoot(data)
	if err != nil {
		return "", err
	}
	defer root.Close()
	for i, c := range m.Subpath + "/" {
		if c != '/' {
			continue
		}
		// Whatever user a sandbox has may write, as in the volume itself.
		if err := root.Mkdir(m.Subpath[:i], 0o777); err == nil {
			_ = root.Chmod(m.Subpath[:i], 0o777)
		}
	}
	dir, err := openBeneath(data, m.Subpath)
	if err != nil {
		return "", err
	}
	return data, dir.Close()
}

// openBeneath opens a directory beneath another without following links.
func openBeneath(dir, sub string) (*os.File, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	fd, err := unix.Openat2(int(d.Fd()), sub, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, &daytona.Error{Kind: daytona.KindInvalid, Op: createOp, Field: "Volumes.Subpath", Value: sub,
			Message: "must lead through directories of the volume only", Err: err}
	}
	return os.NewFile(uintptr(fd), sub), nil
}
