//go:build linux

package lifecycle

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/failpoint"
	"golang.org/x/sys/unix"
)

// Volumes are directories below the state directory, whose files are kept with the
// ids that they have inside the sandboxes. An engine that can mount them embeds
// it, and has with it all of daytona.VolumeManager.
type Volumes[T any] struct {
	// Keeper keeps the sandboxes that use them; "volumes" is among its Options.Dirs.
	Keeper *Keeper[T]
	// Disks keep quotas. Defaults to nil: there are none.
	Disks VolumeDisks
	// RefuseS3 says why volumes of kind s3 cannot be mounted here; "" if they can,
	// by [Volumes.OpenBucket]. Defaults to nil: the engine knows none.
	RefuseS3 func() string
}

// VolumeDisks give a volume a file system of its own, in a file. The file has the
// size of the quota and takes what place it needs.
type VolumeDisks interface {
	// Refuse says why there can be none; "" if there can.
	Refuse() string
	// Make makes the file with a file system whose root is empty and open to all.
	Make(ctx context.Context, path string, size int64) error
	// Mount mounts it, detached; the caller closes it. It may be mounted any
	// number of times, by any number of processes: all see the same files. It is
	// called by one at a time for each state directory.
	Mount(ctx context.Context, path string) (*os.File, error)
}

// CreateVolume implements daytona.VolumeManager.
func (s Volumes[T]) CreateVolume(ctx context.Context, spec daytona.VolumeSpec) (daytona.Volume, error) {
	const op = "create volume"
	if err := spec.Validate(); err != nil {
		return daytona.Volume{}, err
	}
	name := spec.Name
	refuse := func(field string, value any, why string) (daytona.Volume, error) {
		return daytona.Volume{}, &daytona.Error{Kind: daytona.KindUnsupported, Op: op, Field: field, Value: value, Message: why}
	}
	if spec.Kind == daytona.VolumeS3 {
		if s.RefuseS3 == nil {
			return refuse("Kind", spec.Kind, "the "+s.Keeper.name+" backend has volumes of kind directory only")
		}
		if why := s.RefuseS3(); why != "" {
			return refuse("Kind", spec.Kind, why)
		}
		if spec.Quota != 0 {
			return refuse("Quota", spec.Quota, "a volume in a bucket has no quota; limit the bucket")
		}
	}
	if spec.Quota != 0 && s.Disks == nil {
		return refuse("Quota", spec.Quota, "the "+s.Keeper.name+" backend cannot limit volumes")
	}
	if spec.Quota != 0 {
		if why := s.Disks.Refuse(); why != "" {
			return refuse("Quota", spec.Quota, why)
		}
	}
	lock, err := LockFile(s.Keeper.Dir("volumes.lock"), true)
	if err != nil {
		return daytona.Volume{}, KernelError(op, name, err)
	}
	defer lock.Close()
	s.sweep()
	if v, err := s.GetVolume(ctx, name); err == nil {
		return daytona.Volume{}, &daytona.Error{Kind: daytona.KindConflict, Op: op, Field: "name", Value: name, Message: "volume " + v.ID + " has this name"}
	}
	v := daytona.Volume{ID: NewID(), Name: name, Kind: cmp.Or(spec.Kind, daytona.VolumeDirectory), Quota: spec.Quota, CreatedAt: time.Now().UTC()}
	data, err := json.Marshal(v)
	if err != nil {
		return daytona.Volume{}, err
	}
	tmp, err := os.MkdirTemp(s.Keeper.Dir("volumes"), newPrefix)
	if err != nil {
		return daytona.Volume{}, KernelError(op, name, err)
	}
	defer os.RemoveAll(tmp)
	failpoint.Kill("lifecycle/volume-create/directory-made")
	if err := writeAtomic(filepath.Join(tmp, "volume.json"), data, true); err != nil {
		return daytona.Volume{}, KernelError(op, name, err)
	}
	if err := failpoint.Fail("lifecycle/volume-create/recorded"); err != nil {
		return daytona.Volume{}, KernelError(op, name, err)
	}
	if spec.Kind == daytona.VolumeS3 {
		if data, err = json.Marshal(spec.S3); err == nil {
			err = writeAtomic(filepath.Join(tmp, bucketFile), data, true)
		}
	} else if v.Quota != 0 {
		err = s.Disks.Make(ctx, filepath.Join(tmp, diskFile), int64(v.Quota*daytona.GiB))
	} else if err = os.Mkdir(filepath.Join(tmp, "data"), 0o755); err == nil {
		// Whatever user a sandbox has may write.
		err = os.Chmod(filepath.Join(tmp, "data"), 0o777)
	}
	if err == nil {
		err = failpoint.Fail("lifecycle/volume-create/made")
	}
	if err == nil {
		err = os.Rename(tmp, s.dir(v.ID))
	}
	failpoint.Kill("lifecycle/volume-create/renamed")
	return v, KernelError(op, name, err)
}

func (s Volumes[T]) load(id string) (daytona.Volume, error) {
	var v daytona.Volume
	data, err := os.ReadFile(filepath.Join(s.dir(id), "volume.json"))
	if err == nil {
		err = json.Unmarshal(data, &v)
	}
	if st, serr := os.Stat(filepath.Join(s.dir(id), usedFile)); serr == nil {
		v.LastUsedAt = st.ModTime().UTC()
	}
	return v, err
}

// GetVolume implements daytona.VolumeManager.
func (s Volumes[T]) GetVolume(ctx context.Context, idOrName string) (daytona.Volume, error) {
	if ValidID(idOrName) {
		if v, err := s.load(idOrName); err == nil {
			return v, nil
		}
	}
	for v, err := range s.ListVolumes(ctx) {
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
func (s Volumes[T]) ListVolumes(ctx context.Context) iter.Seq2[daytona.Volume, error] {
	return func(yield func(daytona.Volume, error) bool) {
		entries, err := os.ReadDir(s.Keeper.Dir("volumes"))
		if err != nil {
			yield(daytona.Volume{}, KernelError("list volumes", s.Keeper.Root, err))
			return
		}
		var all []daytona.Volume
		for _, d := range entries {
			if v, err := s.load(d.Name()); err == nil && ValidID(d.Name()) {
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
func (s Volumes[T]) DeleteVolume(ctx context.Context, idOrName string) error {
	const op = "delete volume"
	lock, err := LockFile(s.Keeper.Dir("volumes.lock"), true)
	if err != nil {
		return KernelError(op, idOrName, err)
	}
	defer lock.Close()
	s.sweep()
	v, err := s.GetVolume(ctx, idOrName)
	if err != nil {
		return err
	}
	ids, err := s.Keeper.IDs()
	if err != nil {
		return KernelError(op, idOrName, err)
	}
	for _, id := range ids {
		r, err := s.Keeper.Load(id)
		if err != nil || r.Phase == PhaseDeleting {
			continue
		}
		for _, m := range r.Volumes {
			if m.Volume == v.ID || m.Volume == v.Name {
				return &daytona.Error{Kind: daytona.KindConflict, Op: op, Subject: v.Name, Message: "sandbox " + r.Name + " uses it; delete that first"}
			}
		}
	}
	gone := filepath.Join(s.Keeper.Dir("volumes"), gonePrefix+v.ID)
	if err := os.Rename(s.dir(v.ID), gone); err != nil {
		return KernelError(op, v.Name, err)
	}
	failpoint.Kill("lifecycle/volume-delete/renamed")
	return KernelError(op, v.Name, s.Keeper.engine.RemoveTree(gone))
}

// dir is the directory of a volume.
func (s Volumes[T]) dir(id string) string { return filepath.Join(s.Keeper.Dir("volumes"), id) }

// OpenVolume opens a volume for a sandbox that starts: mount is where its files
// are, detached and the caller's to close, or nil if they are in dir.
func (s Volumes[T]) OpenVolume(ctx context.Context, idOrName string) (dir string, mount *os.File, err error) {
	lock, err := LockFile(s.Keeper.Dir("volumes.lock"), true)
	if err != nil {
		return "", nil, err
	}
	defer lock.Close()
	v, err := s.GetVolume(ctx, idOrName)
	if err != nil {
		return "", nil, err
	}
	if v.Kind != daytona.VolumeDirectory {
		return "", nil, &daytona.Error{Kind: daytona.KindUnsupported, Op: CreateOp, Field: "Volumes", Value: idOrName,
			Message: "the " + s.Keeper.name + " backend cannot mount volumes of kind " + string(v.Kind) + " here"}
	}
	if v.Quota != 0 {
		if s.Disks == nil {
			return "", nil, &daytona.Error{Kind: daytona.KindUnsupported, Op: CreateOp, Field: "Volumes", Value: idOrName,
				Message: "the " + s.Keeper.name + " backend cannot mount volumes with a quota"}
		}
		if mount, err = s.Disks.Mount(ctx, filepath.Join(s.dir(v.ID), diskFile)); err != nil {
			return "", nil, err
		}
	}
	s.used(v)
	return filepath.Join(s.dir(v.ID), "data"), mount, nil
}

// OpenBucket says where a volume of kind s3 is, for a sandbox that starts, and
// where what is written may wait to be stored.
func (s Volumes[T]) OpenBucket(v daytona.Volume) (where daytona.S3Location, spool string, err error) {
	data, err := os.ReadFile(filepath.Join(s.dir(v.ID), bucketFile))
	if err == nil {
		err = json.Unmarshal(data, &where)
	}
	if err != nil {
		return where, "", err
	}
	s.used(v)
	return where, filepath.Join(s.dir(v.ID), "spool"), nil
}

// used writes down that a sandbox starts with a volume.
func (s Volumes[T]) used(v daytona.Volume) {
	if err := touch(filepath.Join(s.dir(v.ID), usedFile)); err != nil { // no reason not to start
		s.Keeper.log.Warn("when a volume was last used could not be written down", "volume", v.Name, "err", err)
	}
}

// diskFile is what a volume with a quota has instead of data/, bucketFile what
// one in a bucket has, and usedFile was last written when a sandbox last started
// with it.
const (
	diskFile   = "disk.img"
	bucketFile = "s3.json"
	usedFile   = "used"
)

// touch sets the time of an empty file, which is made if it is missing.
func touch(name string) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	now := time.Now()
	return os.Chtimes(name, now, now)
}

// RecoverVolumes removes what killed processes have left. It is called when the
// keeper is open.
func (s Volumes[T]) RecoverVolumes() error {
	lock, err := LockFile(s.Keeper.Dir("volumes.lock"), false)
	if errors.Is(err, ErrLocked) {
		return nil // whoever has it does so
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	s.sweep()
	return nil
}

// sweep removes what killed processes have left of volumes that they made or
// deleted. The lock is held.
func (s Volumes[T]) sweep() {
	entries, _ := os.ReadDir(s.Keeper.Dir("volumes"))
	for _, d := range entries {
		if !strings.HasPrefix(d.Name(), newPrefix) && !strings.HasPrefix(d.Name(), gonePrefix) {
			continue
		}
		if err := s.Keeper.engine.RemoveTree(filepath.Join(s.Keeper.Dir("volumes"), d.Name())); err != nil {
			s.Keeper.log.Warn("what is left of a volume could not be removed; it will be tried again", "dir", d.Name(), "err", err)
		}
	}
}

// newPrefix and gonePrefix begin the names of volumes that are not there yet or
// not any more.
const (
	newPrefix  = ".new-"
	gonePrefix = ".gone-"
)

// MakeSubpath makes the directories of a mount's subpath in the directory of its
// volume, for root. The content of the volume is hostile, so no link is followed.
func MakeSubpath(data, subpath string) error {
	if subpath == "" {
		return nil
	}
	root, err := os.OpenRoot(data)
	if err != nil {
		return err
	}
	defer root.Close()
	for i, c := range subpath + "/" {
		if c != '/' {
			continue
		}
		// Whatever user a sandbox has may write, as in the volume itself.
		if err := root.Mkdir(subpath[:i], 0o777); err == nil {
			_ = root.Chmod(subpath[:i], 0o777)
		}
	}
	dir, err := OpenSubpath(data, subpath)
	if err != nil {
		return err
	}
	return dir.Close()
}

// OpenSubpath opens (O_PATH) a directory of a volume without following links.
func OpenSubpath(data, subpath string) (*os.File, error) {
	d, err := os.Open(data)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	if subpath == "" {
		subpath = "."
	}
	fd, err := unix.Openat2(int(d.Fd()), subpath, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, &daytona.Error{Kind: daytona.KindInvalid, Op: CreateOp, Field: "Volumes.Subpath", Value: subpath,
			Message: "must lead through directories of the volume only", Err: err}
	}
	return os.NewFile(uintptr(fd), subpath), nil
}
