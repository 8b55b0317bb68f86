package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/image"
	"github.com/daytona-go/daytona/internal/failpoint"
	"github.com/daytona-go/daytona/internal/lifecycle"
	"github.com/daytona-go/daytona/internal/tree"
)

// Fork implements daytona.Forker.
func (e *engine) Fork(ctx context.Context, id string, opts daytona.ForkOptions) ([]daytona.Info, error) {
	var layers []string
	return e.ForkInto(ctx, id, opts, func(parent *record) (release func(), err error) {
		layers, release, err = e.capture(ctx, lifecycle.ForkOp, parent)
		return release, err
	}, func(ctx context.Context, parent, child *record) error {
		child.Own = parent.Own
		child.Own.ProcessID, child.Own.Pending, child.Own.Flat, child.Own.HasDisk = lifecycle.ProcessID{}, "", flat{}, false
		child.Own.Lowers = slices.Clone(parent.Own.Lowers)
		return e.fillFrom(ctx, child, layers)
	})
}

// fillFrom makes the files of a sandbox out of layers that others have.
func (e *engine) fillFrom(ctx context.Context, r *record, layers []string) error {
	r.Own.Layers = slices.Clone(layers)
	if e.root && e.canMap(e.Root) {
		r.Own.UIDBase = e.uidBase(r.ID)
	}
	// Written down before it is held, so that a removal finds it.
	if err := e.Save(r, false); err != nil {
		return err
	}
	if err := e.holdFiles(ctx, r.Own.Digest, r.Own.Layers, r.ID); err != nil {
		return err
	}
	if err := failpoint.Fail("local/fill/held"); err != nil {
		return err
	}
	return e.makeFiles(ctx, r)
}

// ownSnapshot is what this engine keeps of a snapshot.
type ownSnapshot struct {
	Image   string       `json:"image"`
	Digest  string       `json:"digest,omitempty"`
	Lowers  []string     `json:"lowers,omitempty"`
	Layers  []string     `json:"layers,omitempty"`
	UIDBase int          `json:"uidBase,omitempty"`
	Config  image.Config `json:"config"`
}

// maxSized bounds the files that are looked at for the size of a snapshot.
const maxSized = 1_000_000

// CreateSnapshot implements daytona.Snapshotter.
func (e *engine) CreateSnapshot(ctx context.Context, spec daytona.SnapshotSpec) (daytona.Snapshot, error) {
	if err := ctx.Err(); err != nil {
		return daytona.Snapshot{}, err
	}
	if spec.Build != nil {
		return daytona.Snapshot{}, &daytona.Error{Kind: daytona.KindUnsupported, Op: lifecycle.SnapshotOp, Field: "Build", Message: "the local backend cannot build images; use Image"}
	}
	if err := e.admit(&daytona.Spec{Resources: spec.Resources}); err != nil {
		return daytona.Snapshot{}, err
	}
	if spec.Sandbox != "" {
		var s daytona.Snapshot
		_, err := e.Change(ctx, lifecycle.SnapshotOp, spec.Sandbox, func(r *record) error {
			if r.State != daytona.StateStarted && r.State != daytona.StateStopped {
				return &daytona.Error{Kind: daytona.KindState, Op: lifecycle.SnapshotOp, Subject: r.Name, Message: fmt.Sprintf("it is %s; only a started or stopped one can be kept", r.State)}
			}
			var err error
			s, err = e.snapshotOf(ctx, spec, r)
			return err
		})
		return s, err
	}
	return e.Snapshots.MakeSnapshot(ctx, spec, func(s *lifecycle.SnapshotRecord[ownSnapshot]) error {
		fs, err := e.resolveImage(ctx, lifecycle.SnapshotOp, spec.Image, s.ID, spec.OnProgress)
		if err != nil {
			return err
		}
		failpoint.Kill("local/snapshot-image/held")
		s.Own = ownSnapshot{Image: spec.Image, Digest: fs.digest, Lowers: fs.lowers, Config: fs.config}
		if len(s.Entrypoint) == 0 {
			s.Entrypoint = lifecycle.EntrypointOf(nil, fs.config)
		}
		return e.measure(ctx, s)
	})
}

// snapshotOf keeps the files of a sandbox whose lock is held.
func (e *engine) snapshotOf(ctx context.Context, spec daytona.SnapshotSpec, r *record) (daytona.Snapshot, error) {
	var made daytona.Snapshot
	err := e.Step(r, daytona.StateSnapshotting, func() (err error) {
		made, err = e.fillSnapshot(ctx, spec, r)
		return err
	})
	return made, err
}

func (e *engine) fillSnapshot(ctx context.Context, spec daytona.SnapshotSpec, r *record) (daytona.Snapshot, error) {
	return e.Snapshots.MakeSnapshot(ctx, spec, func(s *lifecycle.SnapshotRecord[ownSnapshot]) error {
		layers, release, err := e.capture(ctx, lifecycle.SnapshotOp, r)
		if release != nil {
			defer release()
		}
		if err != nil {
			return err
		}
		s.Sandbox, s.Image = r.ID, r.Image
		s.Resources = lifecycle.Merge(s.Resources, r.Resources)
		if len(s.Entrypoint) == 0 {
			s.Entrypoint = r.Entrypoint
		}
		s.Own = ownSnapshot{Image: r.Image, Digest: r.Own.Digest, Lowers: slices.Clone(r.Own.Lowers), Layers: layers, UIDBase: r.Own.UIDBase, Config: r.Own.Config}
		if err := failpoint.Fail("local/snapshot/captured"); err != nil {
			return err
		}
		if err := e.Snapshots.SaveSnapshot(s); err != nil {
			return err
		}
		failpoint.Kill("local/snapshot/recorded")
		if err := e.holdFiles(ctx, s.Own.Digest, layers, s.ID); err != nil {
			return err
		}
		if err := failpoint.Fail("local/snapshot/held"); err != nil {
			return err
		}
		return e.measure(ctx, s)
	})
}

// measure finds out what the files of a snapshot take.
func (e *engine) measure(ctx context.Context, s *lifecycle.SnapshotRecord[ownSnapshot]) error {
	s.SizeBytes = 0
	dirs := slices.Clone(s.Own.Lowers)
	for _, l := range s.Own.Layers {
		dirs = append(dirs, e.layerFiles(l))
	}
	for _, dir := range dirs {
		n, err := tree.Size(ctx, dir, maxSized)
		if err != nil && ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil && !e.root {
			err = nil // what belongs to a sandbox's users is not for us to read
		}
		if err != nil {
			return err
		}
		s.SizeBytes += n
	}
	return nil
}

// freeSnapshot gives up what a snapshot has.
func (e *engine) freeSnapshot(ctx context.Context, s *lifecycle.SnapshotRecord[ownSnapshot]) error {
	for _, l := range s.Own.Layers {
		if err := e.dropLayer(l, s.ID); err != nil {
			return err
		}
	}
	return e.images.Release(ctx, s.ID)
}

// createFrom makes a sandbox from a snapshot.
func (e *engine) createFrom(ctx context.Context, spec daytona.Spec) (daytona.Info, error) {
	s, done, err := e.Snapshots.UseSnapshot(createOp, spec.Snapshot)
	if err != nil {
		return daytona.Info{}, err
	}
	defer done()
	if len(spec.Entrypoint) == 0 {
		spec.Entrypoint = s.Entrypoint
	}
	spec.Resources = lifecycle.Merge(spec.Resources, s.Resources)
	spec.Image = s.Own.Image
	if err := e.admit(&spec); err != nil {
		return daytona.Info{}, err
	}
	r := e.NewRecord(spec)
	if r.Image == "" {
		r.Image = daytona.ImageHost
	}
	r.Snapshot, r.Fresh = s.Name, len(s.Own.Layers) > 0
	r.Own.UIDBase = e.uidBase(r.ID)
	if !e.canMap(e.Root) && s.Own.UIDBase != 0 {
		r.Own.UIDBase = s.Own.UIDBase
	}
	err = e.Make(ctx, r, lifecycle.PhaseLive, func(ctx context.Context) error {
		e.describe(r, &rootfs{digest: s.Own.Digest, lowers: s.Own.Lowers, config: s.Own.Config})
		return lifecycle.KernelError(createOp, r.Name, e.fillFrom(ctx, r, s.Own.Layers))
	})
	if err != nil {
		return daytona.Info{}, err
	}
	return r.Info, nil
}

// Resize implements daytona.Resizer.
func (e *engine) Resize(ctx context.Context, id string, want daytona.Resources) (daytona.Info, error) {
	refuse := func(field string, value any, why string) (daytona.Info, error) {
		return daytona.Info{}, &daytona.Error{Kind: daytona.KindUnsupported, Op: lifecycle.ResizeOp, Field: field, Value: value, Message: why}
	}
	const noCgroup = "this machine gives the engine no writable cgroup with the %s controller"
	switch {
	case want.GPU != 0:
		return refuse("GPU", want.GPU, "the local backend gives no access to GPUs")
	case want.DiskBandwidth != 0:
		return refuse("DiskBandwidth", want.DiskBandwidth, "the bandwidth of a sandbox is set when it is made")
	case want.CPU != 0 && !e.cgroups.has("cpu"):
		return refuse("CPU", want.CPU, fmt.Sprintf(noCgroup, "cpu"))
	case want.Memory != 0 && !e.cgroups.has("memory"):
		return refuse("Memory", want.Memory, fmt.Sprintf(noCgroup, "memory"))
	case want.Processes != 0 && !e.cgroups.has("pids"):
		return refuse("Processes", want.Processes, fmt.Sprintf(noCgroup, "pids"))
	}
	return e.ChangeResources(ctx, id, want, func(r *record, before daytona.Resources) error { return e.applyResources(ctx, r, before) })
}

// applyResources puts in force what a record says.
func (e *engine) applyResources(ctx context.Context, r *record, before daytona.Resources) error {
	if r.Own.Running() {
		return e.cgroups.group(r.ID).change(ctx, r.Resources, before)
	}
	if r.Own.HasDisk {
		return growDisk(ctx, e.File(r.ID, "disk.img"), r.Resources.DiskBytes())
	}
	return nil
}

// growDisk gives the file system of a file that is not in use more room. It can
// be repeated, and does nothing if there is enough.
func growDisk(ctx context.Context, path string, size int64) error {
	st, err := os.Stat(path)
	if err != nil || st.Size() > size {
		return err
	}
	if st.Size() < size {
		if err := os.Truncate(path, size); err != nil {
			return err
		}
	}
	if err := failpoint.Fail("local/grow/sized"); err != nil {
		return err
	}
	// The first leaves a file system that needed no repair with 0, one that did
	// with 1 (e2fsck(8)).
	check := exec.CommandContext(ctx, "e2fsck", "-f", "-p", path)
	check.Env = append(check.Environ(), "LC_ALL=C")
	out, err := check.CombinedOutput()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() == 1 {
		err = nil
	}
	if err != nil {
		return toolError("e2fsck", path, out, err)
	}
	failpoint.Kill("local/grow/checked")
	grow := exec.CommandContext(ctx, "resize2fs", path)
	grow.Env = append(grow.Environ(), "LC_ALL=C")
	if out, err := grow.CombinedOutput(); err != nil {
		return toolError("resize2fs", path, out, err)
	}
	return nil
}
