package daytonatest

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"maps"
	"path"
	"slices"
	"sync"
	"time"

	"github.com/daytona-go/daytona"
)

// Stateful is a Fake with the capabilities of state, for the suite's own tests:
// it is what the checks and the histories of package backendtest pass, and, with
// a defect, fail.
type Stateful struct {
	*Fake
	kept *kept
	// Defect names what is wrong with it; see state_defect_test.go.
	Defect string
}

// kept is what outlives sandboxes, guarded by engine.mu.
type kept struct {
	snapshots []*keptSnapshot
	volumes   []*keptVolume
	archives  map[string]*node // by the sandbox's id
	made      int
	// files guards all trees, since a volume is a part of several.
	files *sync.RWMutex
}

type keptSnapshot struct {
	daytona.Snapshot
	root *node
}

type keptVolume struct {
	daytona.Volume
	root *node
}

// NewStateful returns an empty one.
func NewStateful(defect string) *Stateful {
	return &Stateful{NewFake(), &kept{archives: map[string]*node{}, files: new(sync.RWMutex)}, defect}
}

// Reopen is as that of a Fake.
func (f *Stateful) Reopen() *Stateful {
	n := &Stateful{f.Fake.Reopen(), f.kept, f.Defect}
	if f.Defect == "reopen resumes" {
		for _, sb := range f.engine.sandboxes {
			if sb.info.State == daytona.StatePaused {
				sb.info.State = daytona.StateStarted
			}
		}
	}
	return n
}

// copyTree copies what is at and below n, but volumes.
func copyTree(n *node, except map[*node]bool) *node {
	c := *n
	if n.children != nil {
		c.children = map[string]*node{}
		for name, child := range n.children {
			if except[child] {
				child = newDir(0o755)
			}
			c.children[name] = copyTree(child, except)
		}
	}
	return &c
}

func (k *kept) volumeRoots() map[*node]bool {
	roots := map[*node]bool{}
	for _, v := range k.volumes {
		roots[v.root] = true
		for _, child := range v.root.children {
			if child.isDir() {
				roots[child] = true // a Subpath
			}
		}
	}
	return roots
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
	for _, v := range f.kept.volumes {
		if v.ID == key {
			return v, nil
		}
	}
	for _, v := range f.kept.volumes {
		if v.Name == key {
			return v, nil
		}
	}
	return nil, f.error(daytona.KindNotFound, op, key, "there is no such volume")
}

func (f *Stateful) snapshotOf(op, key string) (*keptSnapshot, error) {
	for _, s := range f.kept.snapshots {
		if s.ID == key {
			return s, nil
		}
	}
	for _, s := range f.kept.snapshots {
		if s.Name == key {
			return s, nil
		}
	}
	return nil, f.error(daytona.KindNotFound, op, key, "there is no such snapshot")
}

// mount puts the volumes of a sandbox into its tree.
func (f *Stateful) mount(sb *fakeSandbox) error {
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
		dir, err := sb.files.makeDirs(path.Dir(m.MountPath), 0o755)
		if err != nil {
			return err
		}
		dir.children[path.Base(m.MountPath)] = root
	}
	return nil
}

func (f *Stateful) Create(ctx context.Context, spec daytona.Spec) (daytona.Info, error) {
	const op = "create sandbox"
	for i, m := range spec.Volumes {
		if m.ReadOnly {
			return daytona.Info{}, &daytona.Error{Kind: daytona.KindUnsupported, Op: op, Field: fmt.Sprintf("Volumes[%d].ReadOnly", i), Value: true, Message: "the fake cannot"}
		}
	}
	volumes, snapshot := spec.Volumes, spec.Snapshot
	spec.Volumes, spec.Snapshot = nil, ""
	unlock := f.lock()
	var root *node
	var of *keptSnapshot
	for _, m := range volumes {
		if _, err := f.volume(op, m.Volume); err != nil {
			unlock()
			return daytona.Info{}, err
		}
	}
	if snapshot != "" {
		sn, err := f.snapshotOf(op, snapshot)
		if err == nil && sn.State != daytona.SnapshotActive && f.Defect != "inactive is used" {
			err = f.error(daytona.KindState, op, snapshot, "the snapshot is inactive; activate it first")
		}
		if err != nil {
			unlock()
			return daytona.Info{}, err
		}
		of, root = sn, copyTree(sn.root, nil)
		if f.Defect == "snapshot is live" {
			root = sn.root
		}
		if spec.Resources.Memory == 0 {
			spec.Resources.Memory = sn.Resources.Memory
		}
		if spec.Resources.CPU == 0 {
			spec.Resources.CPU = sn.Resources.CPU
		}
		if spec.Resources.Processes == 0 {
			spec.Resources.Processes = sn.Resources.Processes
		}
	}
	unlock()
	info, err := f.Fake.Create(ctx, spec)
	if err != nil {
		return info, err
	}
	defer f.lock()()
	sb := f.engine.sandboxes[info.ID]
	sb.files.mu = f.kept.files
	if of != nil {
		sb.files.root = root
		sb.info.Snapshot = of.Name
		of.LastUsedAt = time.Now()
		_, _ = sb.files.makeDirs(sb.info.WorkDir, 0o755)
	}
	sb.info.Volumes = slices.Clone(volumes)
	if err := f.mount(sb); err != nil {
		f.engine.remove(sb)
		return daytona.Info{}, err
	}
	return sb.snapshot(), nil
}

func (f *Stateful) Start(ctx context.Context, id string) (daytona.Info, error) {
	unlock := f.lock()
	if sb := f.engine.sandboxes[id]; sb != nil {
		switch sb.info.State {
		case daytona.StateArchived:
			f.unarchive(sb)
		case daytona.StatePaused:
			sb.info.State = daytona.StateStarted
			f.engine.changed()
		}
	}
	unlock()
	return f.Fake.Start(ctx, id)
}

func (f *Stateful) Stop(ctx context.Context, id string, o daytona.StopOptions) (daytona.Info, error) {
	unlock := f.lock()
	if sb := f.engine.sandboxes[id]; sb != nil && sb.info.State == daytona.StateArchived {
		defer unlock()
		return sb.snapshot(), nil
	}
	unlock()
	return f.Fake.Stop(ctx, id, o)
}

func (f *Stateful) Delete(ctx context.Context, id string) error {
	unlock := f.lock()
	delete(f.kept.archives, id)
	unlock()
	return f.Fake.Delete(ctx, id)
}

// in finds a sandbox in one of the states.
func (f *Stateful) in(op, id string, states ...daytona.State) (*fakeSandbox, error) {
	if err := f.usable(op); err != nil {
		return nil, err
	}
	sb, err := f.engine.find(op, id)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(states, sb.info.State) {
		return nil, f.error(daytona.KindState, op, id, "the sandbox is "+string(sb.info.State))
	}
	return sb, nil
}

func (f *Stateful) Pause(ctx context.Context, id string, o daytona.PauseOptions) (daytona.Info, error) {
	const op = "pause sandbox"
	if err := ctx.Err(); err != nil {
		return daytona.Info{}, err
	}
	if o.Disk {
		return daytona.Info{}, &daytona.Error{Kind: daytona.KindUnsupported, Op: op, Field: "Disk", Value: true, Message: "the fake has no disk"}
	}
	defer f.lock()()
	sb, err := f.in(op, id, daytona.StateStarted, daytona.StatePaused)
	if err != nil {
		return daytona.Info{}, err
	}
	if sb.info.State == daytona.StateStarted && f.Defect != "pause does nothing" {
		sb.info.State, sb.info.StoppedAt = daytona.StatePaused, time.Now()
		f.engine.changed()
	}
	return sb.snapshot(), nil
}

func (f *Stateful) Resume(ctx context.Context, id string) (daytona.Info, error) {
	defer f.lock()()
	states := []daytona.State{daytona.StateStarted, daytona.StatePaused}
	if f.Defect == "resume starts" {
		states = append(states, daytona.StateStopped)
	}
	sb, err := f.in("resume sandbox", id, states...)
	if err != nil {
		return daytona.Info{}, err
	}
	sb.info.State = daytona.StateStarted
	f.engine.touch(sb)
	f.engine.changed()
	return sb.snapshot(), nil
}

func (f *Stateful) Fork(ctx context.Context, id string, o daytona.ForkOptions) ([]daytona.Info, error) {
	const op = "fork sandbox"
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if o.Memory {
		return nil, &daytona.Error{Kind: daytona.KindUnsupported, Op: op, Field: "Memory", Value: true, Message: "the fake has no memory"}
	}
	defer f.lock()()
	sb, err := f.in(op, id, daytona.StateStarted, daytona.StateStopped)
	if err != nil {
		return nil, err
	}
	e := f.engine
	taken := func(name string) bool {
		return slices.ContainsFunc(slices.Collect(maps.Values(e.sandboxes)), func(sb *fakeSandbox) bool { return sb.info.Name == name })
	}
	if len(o.Names) == 0 {
		o.Names = []string{""}
	}
	var children []daytona.Info
	for _, name := range o.Names {
		if name != "" && taken(name) {
			if f.Defect == "half a fork" {
				return nil, f.error(daytona.KindConflict, op, name, "the name is taken")
			}
			for _, c := range children {
				e.remove(e.sandboxes[c.ID])
			}
			return nil, f.error(daytona.KindConflict, op, name, "the name is taken")
		}
		e.made++
		childID := fmt.Sprintf("fake-%08d", e.made)
		child := &fakeSandbox{owner: f.Fake, info: sb.snapshot(), sessions: map[string]*fakeSession{}, timers: map[string]*time.Timer{}}
		child.info.ID, child.info.Name, child.info.Parent = childID, cmp.Or(name, childID), id
		child.info.State, child.info.CreatedAt, child.info.StartedAt, child.info.StoppedAt = daytona.StateStarted, time.Now(), time.Now(), time.Time{}
		child.life, child.end = context.WithCancel(context.Background())
		if f.Defect == "forks are nobody's" {
			child.info.Parent = ""
		}
		root := copyTree(sb.files.root, f.kept.volumeRoots())
		if f.Defect == "fork shares files" {
			root = sb.files.root
		}
		child.files = &tree{mu: f.kept.files, root: root, used: sb.files.used, limit: sb.files.limit}
		e.sandboxes[childID] = child
		e.order = append(e.order, childID)
		if err := f.mount(child); err != nil {
			return nil, err
		}
		children = append(children, child.snapshot())
	}
	e.changed()
	return children, nil
}

func (f *Stateful) CreateSnapshot(ctx context.Context, spec daytona.SnapshotSpec) (daytona.Snapshot, error) {
	const op = "create snapshot"
	if err := cmp.Or(ctx.Err(), f.usable(op)); err != nil {
		return daytona.Snapshot{}, err
	}
	defer f.lock()()
	if slices.ContainsFunc(f.kept.snapshots, func(s *keptSnapshot) bool { return s.Name == spec.Name }) && f.Defect != "snapshots of one name" {
		return daytona.Snapshot{}, f.error(daytona.KindConflict, op, spec.Name, "the name is taken")
	}
	f.kept.made++
	now := time.Now()
	s := &keptSnapshot{Snapshot: daytona.Snapshot{
		ID: fmt.Sprintf("snapshot-%d", f.kept.made), Name: spec.Name, State: daytona.SnapshotActive,
		Image: spec.Image, Entrypoint: spec.Entrypoint, Resources: spec.Resources, SizeBytes: 1, CreatedAt: now, UpdatedAt: now,
	}}
	if spec.Sandbox != "" {
		var sb *fakeSandbox
		for _, x := range f.engine.sandboxes {
			if x.info.ID == spec.Sandbox || x.info.Name == spec.Sandbox {
				sb = x
			}
		}
		if sb == nil {
			return daytona.Snapshot{}, f.error(daytona.KindNotFound, op, spec.Sandbox, "there is no such sandbox")
		}
		if _, err := f.in(op, sb.info.ID, daytona.StateStarted, daytona.StateStopped); err != nil {
			return daytona.Snapshot{}, err
		}
		s.root = copyTree(sb.files.root, f.kept.volumeRoots())
		s.Image, s.Sandbox = sb.info.Image, sb.info.ID
		r := sb.info.Resources
		s.Resources.CPU = cmp.Or(spec.Resources.CPU, r.CPU)
		s.Resources.Memory = cmp.Or(spec.Resources.Memory, r.Memory)
		s.Resources.Processes = cmp.Or(spec.Resources.Processes, r.Processes)
		s.Resources.Disk = cmp.Or(spec.Resources.Disk, r.Disk)
	} else {
		s.root = newTree(0, "/etc", "/tmp", "/var/tmp", "/usr/bin", fakeHome).root
	}
	f.kept.snapshots = append(f.kept.snapshots, s)
	return s.Snapshot, nil
}

func (f *Stateful) GetSnapshot(_ context.Context, key string) (daytona.Snapshot, error) {
	defer f.lock()()
	s, err := f.snapshotOf("get snapshot", key)
	if err != nil {
		return daytona.Snapshot{}, err
	}
	return s.Snapshot, nil
}

func (f *Stateful) ListSnapshots(context.Context) iter.Seq2[daytona.Snapshot, error] {
	unlock := f.lock()
	all := slices.Clone(f.kept.snapshots)
	unlock()
	return func(yield func(daytona.Snapshot, error) bool) {
		for _, s := range all {
			if !yield(s.Snapshot, nil) {
				return
			}
		}
	}
}

func (f *Stateful) DeleteSnapshot(_ context.Context, key string) error {
	defer f.lock()()
	s, err := f.snapshotOf("delete snapshot", key)
	if err != nil {
		return err
	}
	f.kept.snapshots = slices.DeleteFunc(f.kept.snapshots, func(x *keptSnapshot) bool { return x == s })
	if f.Defect == "a snapshot takes its sandboxes along" {
		for _, sb := range f.engine.sandboxes {
			if sb.info.Snapshot == s.Name {
				sb.files.root = newDir(0o755)
			}
		}
	}
	return nil
}

func (f *Stateful) SetSnapshotActive(_ context.Context, key string, active bool) (daytona.Snapshot, error) {
	defer f.lock()()
	s, err := f.snapshotOf("set snapshot active", key)
	if err != nil {
		return daytona.Snapshot{}, err
	}
	s.State = daytona.SnapshotInactive
	if active {
		s.State = daytona.SnapshotActive
	}
	return s.Snapshot, nil
}

func (f *Stateful) Resize(_ context.Context, id string, r daytona.Resources) (daytona.Info, error) {
	const op = "resize sandbox"
	defer f.lock()()
	sb, err := f.in(op, id, daytona.StateStarted, daytona.StateStopped)
	if err != nil {
		return daytona.Info{}, err
	}
	now := &sb.info.Resources
	if r.Disk != 0 && r.Disk != now.Disk {
		if sb.info.State != daytona.StateStopped {
			return daytona.Info{}, f.error(daytona.KindState, op, id, "the disk can be changed when it is stopped")
		}
		if r.Disk < now.Disk || now.Disk == 0 {
			return daytona.Info{}, &daytona.Error{Kind: daytona.KindInvalid, Op: op, Field: "Resources.Disk", Value: r.Disk, Message: "a disk can only grow"}
		}
		now.Disk, sb.files.limit = r.Disk, r.DiskBytes()
	}
	if f.Defect == "zero fields are zero" {
		*now = r
	}
	now.CPU, now.Memory, now.Processes = cmp.Or(r.CPU, now.CPU), cmp.Or(r.Memory, now.Memory), cmp.Or(r.Processes, now.Processes)
	return sb.snapshot(), nil
}

func (f *Stateful) Archive(_ context.Context, id string) (daytona.Info, error) {
	defer f.lock()()
	states := []daytona.State{daytona.StateStopped, daytona.StateArchived}
	if f.Defect == "archives what runs" {
		states = append(states, daytona.StateStarted)
	}
	sb, err := f.in("archive sandbox", id, states...)
	if err != nil {
		return daytona.Info{}, err
	}
	if sb.info.State != daytona.StateArchived {
		root := copyTree(sb.files.root, f.kept.volumeRoots())
		if f.Defect == "an archive loses a file" {
			if dir, err := (&tree{root: root}).lookup(historyDirectory); err == nil && len(dir.children) > 1 {
				delete(dir.children, slices.Sorted(maps.Keys(dir.children))[0])
			}
		}
		f.kept.archives[id], sb.files.root, sb.info.State = root, newDir(0o755), daytona.StateArchived
		f.engine.changed()
	}
	return sb.snapshot(), nil
}

// historyDirectory is where histories keep files.
const historyDirectory = "/var/tmp/history"

func (f *Stateful) unarchive(sb *fakeSandbox) {
	sb.files.root, sb.info.State = f.kept.archives[sb.info.ID], daytona.StateStopped
	delete(f.kept.archives, sb.info.ID)
	_ = f.mount(sb)
	f.engine.changed()
}

func (f *Stateful) Restore(_ context.Context, id string) (daytona.Info, error) {
	defer f.lock()()
	sb, err := f.in("restore sandbox", id, daytona.StateArchived)
	if err != nil {
		return daytona.Info{}, err
	}
	f.unarchive(sb)
	return sb.snapshot(), nil
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

// Leftovers lists what is kept for sandboxes that there are not.
func (f *Stateful) Leftovers() []string {
	defer f.lock()()
	var left []string
	for id := range f.kept.archives {
		left = append(left, "archive of "+id)
	}
	for _, s := range f.kept.snapshots {
		left = append(left, "snapshot "+s.Name)
	}
	return left
}

var (
	_ daytona.Pauser        = (*Stateful)(nil)
	_ daytona.Forker        = (*Stateful)(nil)
	_ daytona.Snapshotter   = (*Stateful)(nil)
	_ daytona.Resizer       = (*Stateful)(nil)
	_ daytona.Archiver      = (*Stateful)(nil)
	_ daytona.VolumeManager = (*Stateful)(nil)
)
