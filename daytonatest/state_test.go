package daytonatest

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"path"
	"slices"
	"sync"
	"time"

	"github.com/daytona-go/daytona"
)

// Stateful is a Fake that pauses and has volumes as well, for the suite's own
// tests: it is what the checks and the histories of package backendtest pass,
// and, with a defect, fail.
type Stateful struct {
	*Fake
	kept *kept
	// Defect names what is wrong with it; see state_defect_test.go.
	Defect string
}

// kept is what outlives sandboxes, guarded by engine.mu.
type kept struct {
	volumes []*keptVolume
	made    int
	// files guards all trees, since a volume is a part of several.
	files *sync.RWMutex
}

type keptVolume struct {
	daytona.Volume
	root *node
}

// NewStateful returns an empty one.
func NewStateful(defect string) *Stateful {
	return &Stateful{NewFake(), &kept{files: new(sync.RWMutex)}, defect}
}

// Reopen is as that of a Fake.
func (f *Stateful) Reopen() *Stateful {
	n := &Stateful{f.Fake.Reopen(), f.kept, f.Defect}
	if f.Defect == "reopen resumes" {
		defer f.lock()()
		for _, sb := range f.engine.sandboxes {
			if sb.info.State == daytona.StatePaused {
				sb.info.State = daytona.StateStarted
			}
		}
	}
	return n
}

func (f *Stateful) lock() func() {
	f.engine.mu.Lock()
	f.kept.files.Lock()
	return func() {
		f.kept.files.Unlock()
		f.engine.mu.Unlock()
	}
}

func (f *Stateful) volume(op, key string) (*keptVolume, error) {
	for _, of := range []func(*keptVolume) string{func(v *keptVolume) string { return v.ID }, func(v *keptVolume) string { return v.Name }} {
		for _, v := range f.kept.volumes {
			if of(v) == key {
				return v, nil
			}
		}
	}
	return nil, f.error(daytona.KindNotFound, op, key, "there is no such volume")
}

// mount puts the volumes of a sandbox into its tree.
func (f *Stateful) mount(sb *fakeSandbox) error {
	sb.files.mu = f.kept.files
	for _, m := range sb.info.Volumes {
		v, err := f.volume("mount volume", m.Volume)
		if err != nil {
			return err
		}
		v.LastUsedAt = time.Now()
		root := v.root
		if m.Subpath != "" {
			t := &tree{root: root}
			if root, err = t.makeDirs("/"+m.Subpath, 0o755); err != nil {
				return err
			}
		}
		if err := graft(sb.files, m.MountPath, root); err != nil {
			return err
		}
	}
	return nil
}

// graft makes n what is at p.
func graft(t *tree, p string, n *node) error {
	dir, err := t.makeDirs(path.Dir(p), 0o755)
	if err == nil {
		dir.children[path.Base(p)] = n
	}
	return err
}

func (f *Stateful) Create(ctx context.Context, spec daytona.Spec) (daytona.Info, error) {
	const op = "create sandbox"
	for i, m := range spec.Volumes {
		if m.ReadOnly {
			return daytona.Info{}, &daytona.Error{Kind: daytona.KindUnsupported, Op: op, Field: fmt.Sprintf("Volumes[%d].ReadOnly", i), Value: true, Message: "the fake cannot"}
		}
	}
	volumes := slices.Clone(spec.Volumes)
	spec.Volumes = nil
	unlock := f.lock()
	for _, m := range volumes {
		if _, err := f.volume(op, m.Volume); err != nil {
			unlock()
			return daytona.Info{}, err
		}
	}
	sn := f.engine.snapshot(spec.Snapshot)
	if sn != nil && f.Defect == "inactive is used" {
		sn.State = daytona.SnapshotActive
	}
	unlock()
	info, err := f.Fake.Create(ctx, spec)
	if err != nil {
		return info, err
	}
	defer f.lock()()
	sb := f.engine.sandboxes[info.ID]
	if sn != nil && f.Defect == "snapshot is live" {
		sb.files.root = sn.files.root
	}
	sb.info.Volumes = volumes
	if err := f.mount(sb); err != nil {
		f.engine.remove(sb)
		return daytona.Info{}, err
	}
	return sb.snapshot(), nil
}

func (f *Stateful) Start(ctx context.Context, id string) (daytona.Info, error) {
	unlock := f.lock()
	if sb := f.engine.sandboxes[id]; sb != nil && sb.info.State == daytona.StatePaused {
		sb.info.State = daytona.StateStarted
		f.engine.changed()
	}
	unlock()
	return f.Fake.Start(ctx, id)
}

// Pause implements [daytona.Pauser].
func (f *Stateful) Pause(ctx context.Context, id string, o daytona.PauseOptions) (daytona.Info, error) {
	const op = "pause sandbox"
	if o.Disk {
		return daytona.Info{}, &daytona.Error{Kind: daytona.KindUnsupported, Op: op, Field: "Disk", Value: true, Message: "the fake has no disk"}
	}
	return f.with(ctx, op, id, func(_ *engine, sb *fakeSandbox) error {
		err := sb.state(op, daytona.StateStarted, daytona.StatePaused)
		if err == nil && f.Defect != "pause does nothing" {
			sb.info.State = daytona.StatePaused
		}
		return err
	})
}

// Resume implements [daytona.Pauser].
func (f *Stateful) Resume(ctx context.Context, id string) (daytona.Info, error) {
	const op = "resume sandbox"
	return f.with(ctx, op, id, func(e *engine, sb *fakeSandbox) error {
		states := []daytona.State{daytona.StateStarted, daytona.StatePaused}
		if f.Defect == "resume starts" {
			states = append(states, daytona.StateStopped)
		}
		err := sb.state(op, states...)
		if err == nil {
			sb.info.State = daytona.StateStarted
			e.touch(sb)
		}
		return err
	})
}

func (f *Stateful) Fork(ctx context.Context, id string, o daytona.ForkOptions) ([]daytona.Info, error) {
	if f.Defect == "half a fork" {
		for _, name := range o.Names[:max(len(o.Names)-1, 0)] {
			if _, err := f.Fork(ctx, id, daytona.ForkOptions{Names: []string{name}}); err != nil {
				return nil, err
			}
		}
		o.Names = o.Names[max(len(o.Names)-1, 0):]
	}
	children, err := f.Fake.Fork(ctx, id, o)
	if err != nil {
		return nil, err
	}
	defer f.lock()()
	for i, c := range children {
		child := f.engine.sandboxes[c.ID]
		switch f.Defect {
		case "forks are nobody's":
			child.info.Parent = ""
		case "fork shares files":
			child.files.root = f.engine.sandboxes[id].files.root
		}
		if err := f.mount(child); err != nil {
			return nil, err
		}
		children[i] = child.snapshot()
	}
	return children, nil
}

func (f *Stateful) CreateSnapshot(ctx context.Context, spec daytona.SnapshotSpec) (daytona.Snapshot, error) {
	name := spec.Name
	unlock := f.lock()
	if f.Defect == "snapshots of one name" && f.engine.snapshot(name) != nil {
		f.kept.made++
		spec.Name = fmt.Sprintf("another-%d", f.kept.made)
	}
	unlock()
	got, err := f.Fake.CreateSnapshot(ctx, spec)
	if err != nil {
		return got, err
	}
	defer f.lock()()
	s := f.engine.snapshot(got.ID)
	s.Name = name
	if sb := f.engine.sandboxes[s.Sandbox]; sb != nil {
		for _, m := range sb.info.Volumes {
			if err := graft(s.files, m.MountPath, newDir(0o755)); err != nil {
				return got, err
			}
		}
	}
	return s.Snapshot, nil
}

func (f *Stateful) DeleteSnapshot(ctx context.Context, key string) error {
	s, _ := f.GetSnapshot(ctx, key)
	err := f.Fake.DeleteSnapshot(ctx, key)
	if err == nil && f.Defect == "a snapshot takes its sandboxes along" {
		defer f.lock()()
		for _, sb := range f.engine.sandboxes {
			if sb.info.Snapshot == s.Name {
				sb.files.root = newDir(0o755)
			}
		}
	}
	return err
}

func (f *Stateful) Resize(ctx context.Context, id string, r daytona.Resources) (daytona.Info, error) {
	info, err := f.Fake.Resize(ctx, id, r)
	if err != nil || f.Defect != "zero fields are zero" {
		return info, err
	}
	return f.with(ctx, "resize sandbox", id, func(_ *engine, sb *fakeSandbox) error { sb.info.Resources = r; return nil })
}

// historyDirectory is where histories keep files.
const historyDirectory = "/var/tmp/history"

func (f *Stateful) Archive(ctx context.Context, id string) (daytona.Info, error) {
	unlock := f.lock()
	if sb := f.engine.sandboxes[id]; sb != nil {
		if f.Defect == "archives what runs" && sb.info.State == daytona.StateStarted {
			sb.info.State = daytona.StateStopped
		}
		if dir, err := sb.files.lookup(historyDirectory); err == nil && f.Defect == "an archive loses a file" && sb.info.State == daytona.StateStopped {
			clear(dir.children)
		}
	}
	unlock()
	return f.Fake.Archive(ctx, id)
}

func (f *Stateful) CreateVolume(ctx context.Context, spec daytona.VolumeSpec) (daytona.Volume, error) {
	const op = "create volume"
	if err := cmp.Or(ctx.Err(), spec.Validate()); err != nil {
		return daytona.Volume{}, err
	}
	for field, set := range map[string]bool{"Kind": spec.Kind == daytona.VolumeS3, "Quota": spec.Quota != 0} {
		if set {
			return daytona.Volume{}, &daytona.Error{Kind: daytona.KindUnsupported, Op: op, Field: field, Message: "the fake cannot"}
		}
	}
	defer f.lock()()
	if slices.ContainsFunc(f.kept.volumes, func(v *keptVolume) bool { return v.Name == spec.Name }) {
		return daytona.Volume{}, f.error(daytona.KindConflict, op, spec.Name, "the name is taken")
	}
	f.kept.made++
	v := &keptVolume{daytona.Volume{ID: fmt.Sprintf("volume-%d", f.kept.made), Name: spec.Name, Kind: daytona.VolumeDirectory, CreatedAt: time.Now()}, newDir(0o777)}
	f.kept.volumes = append(f.kept.volumes, v)
	return v.Volume, nil
}

func (f *Stateful) GetVolume(_ context.Context, key string) (daytona.Volume, error) {
	defer f.lock()()
	v, err := f.volume("get volume", key)
	if err != nil {
		return daytona.Volume{}, err
	}
	return v.Volume, nil
}

func (f *Stateful) ListVolumes(context.Context) iter.Seq2[daytona.Volume, error] {
	unlock := f.lock()
	all := slices.Clone(f.kept.volumes)
	unlock()
	return func(yield func(daytona.Volume, error) bool) {
		for _, v := range all {
			if !yield(v.Volume, nil) {
				return
			}
		}
	}
}

func (f *Stateful) DeleteVolume(_ context.Context, key string) error {
	const op = "delete volume"
	defer f.lock()()
	v, err := f.volume(op, key)
	if err != nil {
		return err
	}
	for _, sb := range f.engine.sandboxes {
		for _, m := range sb.info.Volumes {
			if (m.Volume == v.ID || m.Volume == v.Name) && f.Defect != "volumes in use are deleted" {
				return f.error(daytona.KindConflict, op, v.Name, "sandbox "+sb.info.Name+" uses it")
			}
		}
	}
	f.kept.volumes = slices.DeleteFunc(f.kept.volumes, func(x *keptVolume) bool { return x == v })
	return nil
}

// Leftovers lists the sandboxes and snapshots that there are.
func (f *Stateful) Leftovers() []string {
	defer f.lock()()
	left := slices.Clone(f.engine.order)
	for _, s := range f.engine.snapshots {
		left = append(left, "snapshot "+s.Name)
	}
	return left
}

var (
	_ daytona.Pauser        = (*Stateful)(nil)
	_ daytona.VolumeManager = (*Stateful)(nil)
)
