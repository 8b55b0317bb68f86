//go:build linux

package docker

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/client"
	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/failpoint"
	"github.com/daytona-go/daytona/internal/lifecycle"
)

// volumeLabel is that of volumes that users have made, and says which one.
const volumeLabel = "io.github.daytona-go.volume"

// A volume is one of the engine's, or a bucket (see bucket.go), and a record in
// the state directory (volumes/<id>.json) that is written when it is ready: what
// the engine has besides is of a process that was killed.

const (
	createVolumeOp = "create volume"
	deleteVolumeOp = "delete volume"
)

// volumeName is what the engine calls a volume.
func (b *backend) volumeName(id string) string { return "daytona-" + b.tag + "-volume-" + id }

func (b *backend) volumeFile(id string) string { return filepath.Join(b.Dir("volumes"), id+".json") }

func (b *backend) lockVolumes() (*os.File, error) {
	return lifecycle.LockFile(b.Dir("volumes.lock"), true)
}

// CreateVolume implements daytona.VolumeManager.
func (b *backend) CreateVolume(ctx context.Context, spec daytona.VolumeSpec) (_ daytona.Volume, err error) {
	if err := spec.Validate(); err != nil {
		return daytona.Volume{}, err
	}
	refuse := func(field string, value any, why string) (daytona.Volume, error) {
		return daytona.Volume{}, &daytona.Error{Kind: daytona.KindUnsupported, Op: createVolumeOp, Field: field, Value: value, Message: why}
	}
	if spec.Kind == daytona.VolumeS3 {
		if why := b.refuseBuckets(); why != "" {
			return refuse("Kind", spec.Kind, why)
		}
	}
	if spec.Quota != 0 {
		return refuse("Quota", spec.Quota, "the engine gives its volumes no limit that holds")
	}
	if err := ctx.Err(); err != nil {
		return daytona.Volume{}, err
	}
	lock, err := b.lockVolumes()
	if err != nil {
		return daytona.Volume{}, lifecycle.KernelError(createVolumeOp, spec.Name, err)
	}
	defer lock.Close()
	if v, err := b.GetVolume(ctx, spec.Name); err == nil {
		return daytona.Volume{}, &daytona.Error{Kind: daytona.KindConflict, Op: createVolumeOp, Field: "Name", Value: spec.Name, Message: "volume " + v.ID + " has this name"}
	}
	v := daytona.Volume{ID: lifecycle.NewID(), Name: spec.Name, Kind: cmp.Or(spec.Kind, daytona.VolumeDirectory), CreatedAt: time.Now().UTC()}
	defer func() {
		if err != nil {
			uncut, cancel := uncut(ctx)
			defer cancel()
			_ = b.removeVolume(uncut, v)
			err = b.explain(createVolumeOp, v.Name, err)
		}
	}()
	uncut, cancel := uncut(ctx)
	defer cancel()
	if v.Kind == daytona.VolumeS3 {
		data, err := json.Marshal(spec.S3)
		if err == nil {
			err = replaceFile(b.bucketFile(v.ID), data)
		}
		if err != nil {
			return daytona.Volume{}, err
		}
	} else if err := b.makeVolume(uncut, v.ID); err != nil {
		return daytona.Volume{}, err
	}
	data, err := json.Marshal(v)
	if err != nil {
		return daytona.Volume{}, err
	}
	return v, replaceFile(b.volumeFile(v.ID), data)
}

// makeVolume makes one of the engine's volumes.
func (b *backend) makeVolume(ctx context.Context, id string) error {
	if _, err := b.api.VolumeCreate(ctx, client.VolumeCreateOptions{Name: b.volumeName(id), Driver: "local",
		Labels: map[string]string{stateLabel: b.tag, dirLabel: b.Root, volumeLabel: id}}); err != nil {
		return err
	}
	if err := failpoint.Fail("docker/volume-create/made"); err != nil {
		return err
	}
	if err := b.openVolume(ctx, id); err != nil {
		return err
	}
	return failpoint.Fail("docker/volume-create/opened")
}

// newPrefix begins the names of files that are being written.
const newPrefix = ".new-"

// replaceFile writes a file so that a reader sees the old or the new one, whole.
func replaceFile(name string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(name), newPrefix)
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	failpoint.Kill("docker/volume-create/written")
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	return err
}

// openVolume lets any user of a sandbox write into a new volume, by way of a
// container that is never started.
func (b *backend) openVolume(ctx context.Context, id string) (err error) {
	image, err := b.nothing(ctx)
	if err != nil {
		return err
	}
	// It bears the labels of a sandbox that does not exist, so that it is reaped
	// if this process is killed.
	opener := b.containerName(lifecycle.NewID())
	const place = "/volume"
	config := &container.Config{Image: image, Entrypoint: []string{"none"}, Labels: b.labels(opener[len(opener)-20:])}
	host := &container.HostConfig{NetworkMode: "none", Mounts: []mount.Mount{b.volumeMount(id, place+"/data", false)}}
	defer func() { err = errors.Join(err, b.removeContainer(ctx, opener)) }()
	if _, err := b.api.ContainerCreate(ctx, client.ContainerCreateOptions{Config: config, HostConfig: host, Name: opener}); err != nil {
		return err
	}
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	if err := w.WriteHeader(&tar.Header{Name: "data/", Typeflag: tar.TypeDir, Mode: 0o777}); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	failpoint.Kill("docker/volume-create/opener-made")
	_, err = b.api.CopyToContainer(ctx, opener, client.CopyToContainerOptions{DestinationPath: place, Content: &archive})
	return err
}

// emptyName is that of an image without files.
const emptyName = importName + ":empty"

// nothing is an image without files, for containers that are never started.
func (b *backend) nothing(ctx context.Context) (string, error) {
	if found, err := b.api.ImageInspect(ctx, emptyName); err == nil {
		return found.ID, nil
	}
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	if err := w.WriteHeader(&tar.Header{Name: "volume/", Typeflag: tar.TypeDir, Mode: 0o755}); err != nil {
		return "", err
	}
	if err := w.Close(); err != nil {
		return "", err
	}
	resp, err := b.api.ImageImport(ctx, client.ImageImportSource{Source: &archive, SourceName: "-"}, importName, client.ImageImportOptions{Tag: "empty"})
	if err != nil {
		return "", err
	}
	defer resp.Close()
	if _, err := io.Copy(io.Discard, resp); err != nil {
		return "", err
	}
	found, err := b.api.ImageInspect(ctx, emptyName)
	return found.ID, err
}

func (b *backend) volumeMount(id, where string, readOnly bool) mount.Mount {
	return mount.Mount{Type: mount.TypeVolume, Source: b.volumeName(id), Target: where, ReadOnly: readOnly,
		VolumeOptions: &mount.VolumeOptions{NoCopy: true}}
}

func (b *backend) loadVolume(id string) (daytona.Volume, error) {
	var v daytona.Volume
	data, err := os.ReadFile(b.volumeFile(id))
	if err == nil {
		err = json.Unmarshal(data, &v)
	}
	return v, err
}

// GetVolume implements daytona.VolumeManager.
func (b *backend) GetVolume(ctx context.Context, idOrName string) (daytona.Volume, error) {
	if lifecycle.ValidID(idOrName) {
		if v, err := b.loadVolume(idOrName); err == nil {
			return v, nil
		}
	}
	for v, err := range b.ListVolumes(ctx) {
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
func (b *backend) ListVolumes(ctx context.Context) iter.Seq2[daytona.Volume, error] {
	return func(yield func(daytona.Volume, error) bool) {
		entries, err := os.ReadDir(b.Dir("volumes"))
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			yield(daytona.Volume{}, lifecycle.KernelError("list volumes", b.Root, err))
			return
		}
		var all []daytona.Volume
		for _, e := range entries {
			id, ok := strings.CutSuffix(e.Name(), ".json")
			if !ok || !lifecycle.ValidID(id) {
				continue
			}
			if v, err := b.loadVolume(id); err == nil {
				all = append(all, v)
			}
		}
		slices.SortFunc(all, func(a, b daytona.Volume) int { return a.CreatedAt.Compare(b.CreatedAt) })
		for _, v := range all {
			if !yield(v, nil) {
				return
			}
		}
	}
}

// DeleteVolume implements daytona.VolumeManager.
func (b *backend) DeleteVolume(ctx context.Context, idOrName string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	lock, err := b.lockVolumes()
	if err != nil {
		return lifecycle.KernelError(deleteVolumeOp, idOrName, err)
	}
	defer lock.Close()
	v, err := b.GetVolume(ctx, idOrName)
	if err != nil {
		return err
	}
	ids, err := b.IDs()
	if err != nil {
		return lifecycle.KernelError(deleteVolumeOp, v.Name, err)
	}
	for _, id := range ids {
		r, err := b.Load(id)
		if err != nil || r.Phase == lifecycle.PhaseDeleting {
			continue
		}
		for _, m := range r.Volumes {
			if m.Volume == v.ID || m.Volume == v.Name {
				return &daytona.Error{Kind: daytona.KindConflict, Op: deleteVolumeOp, Subject: v.Name, Message: "sandbox " + r.Name + " uses it; delete that first"}
			}
		}
	}
	uncut, cancel := uncut(ctx)
	defer cancel()
	// The engine first: it may yet say that a container has it.
	if err := b.removeVolume(uncut, v); err != nil {
		return b.explain(deleteVolumeOp, v.Name, err)
	}
	failpoint.Kill("docker/volume-delete/removed")
	return lifecycle.KernelError(deleteVolumeOp, v.Name, os.Remove(b.volumeFile(v.ID)))
}

func (b *backend) removeVolume(ctx context.Context, v daytona.Volume) error {
	if v.Kind == daytona.VolumeS3 {
		return b.removeBucket(v.ID)
	}
	_, err := b.api.VolumeRemove(ctx, b.volumeName(v.ID), client.VolumeRemoveOptions{})
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// reapVolumes removes what a process that was killed in the middle of the making or the removal
// of a volume has left.
func (b *backend) reapVolumes(ctx context.Context) error {
	lock, err := b.lockVolumes()
	if err != nil {
		return err
	}
	defer lock.Close()
	all, err := b.api.VolumeList(ctx, client.VolumeListOptions{Filters: make(client.Filters).Add("label", stateLabel+"="+b.tag).Add("label", volumeLabel)})
	if err != nil {
		return err
	}
	// Files that were being written, and buckets whose record was not yet, or is no more.
	entries, err := os.ReadDir(b.Dir("volumes"))
	if err != nil {
		return err
	}
	there := map[string]bool{}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), newPrefix) {
			os.Remove(filepath.Join(b.Dir("volumes"), e.Name()))
		}
		id, suffix, _ := strings.Cut(e.Name(), ".")
		if !lifecycle.ValidID(id) || suffix != bucketSuffix[1:] && suffix != spoolSuffix[1:] {
			continue
		}
		there[id] = true
		if _, err := os.Stat(b.volumeFile(id)); errors.Is(err, fs.ErrNotExist) {
			if err := b.removeBucket(id); err != nil {
				return err
			}
		}
	}
	for _, v := range all.Items {
		id := v.Labels[volumeLabel]
		there[id] = true
		if _, err := os.Stat(b.volumeFile(id)); lifecycle.ValidID(id) && errors.Is(err, fs.ErrNotExist) {
			if _, err := b.api.VolumeRemove(ctx, v.Name, client.VolumeRemoveOptions{}); err != nil && !errdefs.IsNotFound(err) {
				return err
			}
		}
	}
	for v, err := range b.ListVolumes(ctx) {
		if err == nil && !there[v.ID] {
			b.log.Warn("a volume's files are gone: somebody else has removed it from the engine", "volume", v.Name)
			err = os.Remove(b.volumeFile(v.ID))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// findVolumes looks up the volumes of a new sandbox.
func (b *backend) findVolumes(ctx context.Context, r *record) error {
	r.Own.Volumes = nil
	for i, m := range r.Volumes {
		v, err := b.GetVolume(ctx, m.Volume)
		if errors.Is(err, daytona.ErrNotFound) {
			return &daytona.Error{Kind: daytona.KindNotFound, Op: lifecycle.CreateOp, Field: fmt.Sprintf("Volumes[%d].Volume", i), Value: m.Volume,
				Message: "there is no volume with this id or name"}
		}
		if err != nil {
			return err
		}
		r.Own.Volumes = append(r.Own.Volumes, v.ID)
	}
	return nil
}

// useVolumes notes that a sandbox has started with its volumes.
func (b *backend) useVolumes(r *record) {
	for _, id := range r.Own.Volumes {
		lock, err := b.lockVolumes()
		if err != nil {
			continue
		}
		if v, err := b.loadVolume(id); err == nil {
			v.LastUsedAt = time.Now().UTC()
			if data, err := json.Marshal(v); err == nil {
				err = replaceFile(b.volumeFile(id), data)
				if err != nil {
					b.log.Warn("when a volume was used could not be written down", "volume", v.Name, "err", err)
				}
			}
		}
		lock.Close()
	}
}

// places, in a sandbox's directory, has a directory for each of its volumes that
// is in a bucket or mounted with a Subpath. There the engine finds what to mount while it starts
// the container, and nothing at other times.
const places = "volumes"

func (b *backend) place(r *record, i int) string {
	return filepath.Join(b.File(r.ID, places), strconv.Itoa(i))
}

// placed reports whether a volume is mounted by way of its place.
func (b *backend) placed(r *record, i int) bool {
	return r.Volumes[i].Subpath != "" || b.isBucket(r.Own.Volumes[i])
}

// mountsOf are the mounts of a sandbox's volumes.
func (b *backend) mountsOf(r *record) []mount.Mount {
	var all []mount.Mount
	for i, m := range r.Volumes {
		if !b.placed(r, i) {
			all = append(all, b.volumeMount(r.Own.Volumes[i], m.MountPath, m.ReadOnly))
			continue
		}
		all = append(all, mount.Mount{Type: mount.TypeBind, Source: b.place(r, i), Target: m.MountPath, ReadOnly: m.ReadOnly})
	}
	return all
}

// makePlaces makes the directories that a container is made with.
func (b *backend) makePlaces(r *record) error {
	for i, m := range r.Volumes {
		// The engine would make one that is not there.
		if _, err := b.loadVolume(r.Own.Volumes[i]); err != nil {
			return &daytona.Error{Kind: daytona.KindNotFound, Op: lifecycle.StartOp, Field: fmt.Sprintf("Volumes[%d].Volume", i), Value: m.Volume,
				Message: "the volume is not here (any more)"}
		}
		if !b.placed(r, i) {
			continue
		}
		if err := os.MkdirAll(b.place(r, i), 0o700); err != nil {
			return err
		}
	}
	return nil
}

// fillPlaces mounts there what the engine is to mount. Whoever has a volume in
// another sandbox can change what is in it at any time: so the path in it is
// walked here, without following links. clear takes the mounts away again, once
// the container has its own.
func (b *backend) fillPlaces(ctx context.Context, r *record) (clear func(), err error) {
	b.clearPlaces(r) // of a start that was killed
	for i := range r.Volumes {
		if !b.placed(r, i) {
			continue
		}
		fill := b.fillPlace
		if b.isBucket(r.Own.Volumes[i]) {
			fill = b.fillBucket
		}
		if err := fill(ctx, r, i); err != nil {
			b.clearPlaces(r)
			return nil, err
		}
	}
	return func() { b.clearPlaces(r) }, nil
}

func (b *backend) fillPlace(ctx context.Context, r *record, i int) error {
	v, err := b.api.VolumeInspect(ctx, b.volumeName(r.Own.Volumes[i]), client.VolumeInspectOptions{})
	if err != nil {
		return err
	}
	data, subpath := v.Volume.Mountpoint, r.Volumes[i].Subpath
	if err := lifecycle.MakeSubpath(data, subpath); err != nil {
		return err
	}
	from, err := lifecycle.OpenSubpath(data, subpath)
	if err != nil {
		return err
	}
	defer from.Close()
	if err := os.MkdirAll(b.place(r, i), 0o700); err != nil {
		return err
	}
	if err := unix.Mount("/proc/self/fd/"+strconv.Itoa(int(from.Fd())), b.place(r, i), "", unix.MS_BIND, ""); err != nil {
		return &fs.PathError{Op: "mount", Path: b.place(r, i), Err: err}
	}
	return nil
}

func (b *backend) clearPlaces(r *record) { unmountAll(b.File(r.ID, places)) }

// unmountAll unmounts what is mounted on the directories in a directory.
func unmountAll(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		for unix.Unmount(filepath.Join(dir, e.Name()), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) == nil {
		}
	}
}

// sharesMounts reports whether the engine sees what this process mounts.
func (b *backend) sharesMounts(ctx context.Context) bool {
	path, ok := strings.CutPrefix(b.api.DaemonHost(), "unix://")
	if !ok || !b.sharesFiles() {
		return false
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return false
	}
	defer c.Close()
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return false
	}
	pid := 0
	err = raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(cred.Pid)
		}
	})
	if err != nil || pid <= 0 {
		return false
	}
	own, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return false
	}
	its, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/ns/mnt")
	return err == nil && own == its
}
