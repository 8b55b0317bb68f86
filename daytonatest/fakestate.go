package daytonatest

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"
	"time"

	"github.com/daytona-go/daytona"
)

// clone copies a tree. Data is shared, as it is never changed in place.
func (t *tree) clone() *tree {
	t.mu.RLock()
	defer t.mu.RUnlock()
	c := newTree(t.limit)
	c.root, c.used = t.root.clone(), t.used
	return c
}

func (n *node) clone() *node {
	c := *n
	if n.children != nil {
		c.children = make(map[string]*node, len(n.children))
		for name, child := range n.children {
			c.children[name] = child.clone()
		}
	}
	return &c
}

// fakeSnapshot is a snapshot. Its fields are guarded by engine.mu.
type fakeSnapshot struct {
	daytona.Snapshot
	files *tree
}

// state is an error for a sandbox that is in none of the states.
func (sb *fakeSandbox) state(op string, states ...daytona.State) error {
	if slices.Contains(states, sb.info.State) {
		return nil
	}
	return &daytona.Error{Kind: daytona.KindState, Op: op, Subject: sb.info.ID, Message: fmt.Sprintf("the sandbox is %s, and must be one of %v", sb.info.State, states)}
}

// with calls do with a sandbox, and returns what is known of it afterwards.
func (f *Fake) with(ctx context.Context, op, id string, do func(e *engine, sb *fakeSandbox) error) (daytona.Info, error) {
	if err := cmp.Or(ctx.Err(), f.usable(op)); err != nil {
		return daytona.Info{}, err
	}
	e := f.engine
	e.mu.Lock()
	defer e.mu.Unlock()
	sb, err := e.find(op, id)
	if err == nil {
		err = do(e, sb)
	}
	if err != nil {
		return daytona.Info{}, err
	}
	e.changed()
	return sb.snapshot(), nil
}

// Fork implements [daytona.Forker]; it refuses Memory.
func (f *Fake) Fork(ctx context.Context, id string, opts daytona.ForkOptions) (children []daytona.Info, _ error) {
	const op = "fork sandbox"
	if opts.Memory {
		return nil, &daytona.Error{Kind: daytona.KindUnsupported, Op: op, Subject: id, Field: "Memory", Value: true, Message: "the fake backend does not support it"}
	}
	names := opts.Names
	if len(names) == 0 {
		names = []string{""}
	}
	_, err := f.with(ctx, op, id, func(e *engine, parent *fakeSandbox) error {
		if err := parent.state(op, daytona.StateStarted, daytona.StateStopped); err != nil {
			return err
		}
		for i, name := range names {
			if name != "" && (slices.Contains(names[:i], name) || e.named(name) != nil) {
				return e.taken(op, name)
			}
		}
		for _, name := range names {
			info := parent.snapshot()
			info.ID, info.Name, info.Parent = "", name, parent.info.ID
			child := e.add(f, info, parent.files.clone())
			children = append(children, child.snapshot())
		}
		return nil
	})
	return children, err
}

// Resize implements [daytona.Resizer].
func (f *Fake) Resize(ctx context.Context, id string, r daytona.Resources) (daytona.Info, error) {
	const op = "resize sandbox"
	if err := (daytona.Spec{Resources: r}).Validate(); err != nil {
		return daytona.Info{}, err
	}
	return f.with(ctx, op, id, func(e *engine, sb *fakeSandbox) error {
		if err := sb.state(op, daytona.StateStarted, daytona.StateStopped); err != nil {
			return err
		}
		have := &sb.info.Resources
		if r.Disk != 0 && r.Disk != have.Disk {
			if err := sb.state(op, daytona.StateStopped); err != nil {
				return err
			}
			if have.Disk == 0 || r.Disk < have.Disk {
				return &daytona.Error{Kind: daytona.KindInvalid, Op: op, Subject: id, Field: "Resources.Disk", Value: r.Disk, Message: "a disk can only grow"}
			}
		}
		*have = over(r, *have)
		sb.files.mu.Lock()
		sb.files.limit = have.DiskBytes()
		sb.files.mu.Unlock()
		return nil
	})
}

// over puts the fields of r that are set over those of below.
func over(r, below daytona.Resources) daytona.Resources {
	return daytona.Resources{
		CPU: cmp.Or(r.CPU, below.CPU), Memory: cmp.Or(r.Memory, below.Memory), Disk: cmp.Or(r.Disk, below.Disk), GPU: cmp.Or(r.GPU, below.GPU),
		Processes: cmp.Or(r.Processes, below.Processes), DiskBandwidth: cmp.Or(r.DiskBandwidth, below.DiskBandwidth),
	}
}

// Archive implements [daytona.Archiver]: the storage is this memory.
func (f *Fake) Archive(ctx context.Context, id string) (daytona.Info, error) {
	const op = "archive sandbox"
	return f.with(ctx, op, id, func(e *engine, sb *fakeSandbox) error {
		err := sb.state(op, daytona.StateStopped, daytona.StateArchived)
		if err == nil {
			sb.info.State = daytona.StateArchived
		}
		return err
	})
}

// Restore implements [daytona.Archiver].
func (f *Fake) Restore(ctx context.Context, id string) (daytona.Info, error) {
	const op = "restore sandbox"
	return f.with(ctx, op, id, func(e *engine, sb *fakeSandbox) error {
		err := sb.state(op, daytona.StateStopped, daytona.StateArchived)
		if err == nil {
			sb.info.State = daytona.StateStopped
		}
		return err
	})
}

// CreateSnapshot implements [daytona.Snapshotter].
func (f *Fake) CreateSnapshot(ctx context.Context, spec daytona.SnapshotSpec) (daytona.Snapshot, error) {
	const op = "create snapshot"
	if err := cmp.Or(ctx.Err(), f.usable(op)); err != nil {
		return daytona.Snapshot{}, err
	}
	for field, set := range map[string]bool{"Entrypoint": len(spec.Entrypoint) > 0, "Build": spec.Build != nil} {
		if set {
			return daytona.Snapshot{}, &daytona.Error{Kind: daytona.KindUnsupported, Op: op, Subject: spec.Name, Field: field, Message: "the fake backend does not support it"}
		}
	}
	e := f.engine
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.snapshot(spec.Name) != nil {
		return daytona.Snapshot{}, e.taken(op, spec.Name)
	}
	now := time.Now()
	sn := &fakeSnapshot{Snapshot: daytona.Snapshot{
		Name: spec.Name, State: daytona.SnapshotActive, Image: spec.Image, Resources: spec.Resources, CreatedAt: now, UpdatedAt: now,
	}}
	if spec.Sandbox == "" {
		sn.files = newTree(0, fakeDirs...)
	} else {
		sb := cmp.Or(e.sandboxes[spec.Sandbox], e.named(spec.Sandbox))
		if sb == nil {
			_, err := e.find(op, spec.Sandbox)
			return daytona.Snapshot{}, err
		}
		if err := sb.state(op, daytona.StateStarted, daytona.StateStopped); err != nil {
			return daytona.Snapshot{}, err
		}
		sn.files, sn.Image, sn.Sandbox, sn.Resources = sb.files.clone(), sb.info.Image, sb.info.ID, over(spec.Resources, sb.info.Resources)
	}
	sn.SizeBytes = sn.files.used
	e.made++
	sn.ID = fmt.Sprintf("fake-%08d", e.made)
	e.snapshots = append(e.snapshots, sn)
	return sn.Snapshot, nil
}

// snapshot finds one by id, or else by name. The caller holds e.mu.
func (e *engine) snapshot(idOrName string) *fakeSnapshot {
	for _, key := range []func(*fakeSnapshot) string{
		func(s *fakeSnapshot) string { return s.ID }, func(s *fakeSnapshot) string { return s.Name },
	} {
		for _, s := range e.snapshots {
			if key(s) == idOrName {
				return s
			}
		}
	}
	return nil
}

func (f *Fake) withSnapshot(ctx context.Context, op, idOrName string, do func(*engine, *fakeSnapshot)) (daytona.Snapshot, error) {
	if err := cmp.Or(ctx.Err(), f.usable(op)); err != nil {
		return daytona.Snapshot{}, err
	}
	e := f.engine
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.snapshot(idOrName)
	if s == nil {
		return daytona.Snapshot{}, &daytona.Error{Kind: daytona.KindNotFound, Op: op, Subject: idOrName, Message: "there is no such snapshot"}
	}
	do(e, s)
	return s.Snapshot, nil
}

// GetSnapshot implements [daytona.Snapshotter].
func (f *Fake) GetSnapshot(ctx context.Context, idOrName string) (daytona.Snapshot, error) {
	return f.withSnapshot(ctx, "get snapshot", idOrName, func(*engine, *fakeSnapshot) {})
}

// ListSnapshots implements [daytona.Snapshotter].
func (f *Fake) ListSnapshots(ctx context.Context) iter.Seq2[daytona.Snapshot, error] {
	return func(yield func(daytona.Snapshot, error) bool) {
		if err := cmp.Or(ctx.Err(), f.usable("list snapshots")); err != nil {
			yield(daytona.Snapshot{}, err)
			return
		}
		f.engine.mu.Lock()
		var all []daytona.Snapshot
		for _, s := range f.engine.snapshots {
			all = append(all, s.Snapshot)
		}
		f.engine.mu.Unlock()
		for _, s := range all {
			if !yield(s, nil) {
				return
			}
		}
	}
}

// DeleteSnapshot implements [daytona.Snapshotter].
func (f *Fake) DeleteSnapshot(ctx context.Context, idOrName string) error {
	_, err := f.withSnapshot(ctx, "delete snapshot", idOrName, func(e *engine, s *fakeSnapshot) {
		e.snapshots = slices.DeleteFunc(e.snapshots, func(o *fakeSnapshot) bool { return o == s })
	})
	return err
}

// SetSnapshotActive implements [daytona.Snapshotter].
func (f *Fake) SetSnapshotActive(ctx context.Context, idOrName string, active bool) (daytona.Snapshot, error) {
	return f.withSnapshot(ctx, "set snapshot active", idOrName, func(_ *engine, s *fakeSnapshot) {
		state := daytona.SnapshotInactive
		if active {
			state = daytona.SnapshotActive
		}
		if s.State != state {
			s.State, s.UpdatedAt = state, time.Now()
		}
	})
}

// named finds a sandbox by its name. The caller holds e.mu.
func (e *engine) named(name string) *fakeSandbox {
	for _, sb := range e.sandboxes {
		if sb.info.Name == name {
			return sb
		}
	}
	return nil
}

func (e *engine) taken(op, name string) error {
	return &daytona.Error{Kind: daytona.KindConflict, Op: op, Subject: name, Message: "the name is taken; delete what has it or choose another"}
}

// add makes a started sandbox of what is to be known of it and its files. The
// caller holds e.mu and has checked the name.
func (e *engine) add(owner *Fake, info daytona.Info, files *tree) *fakeSandbox {
	e.made++
	info.ID = fmt.Sprintf("fake-%08d", e.made)
	info.Name = cmp.Or(info.Name, info.ID)
	info.Env, info.Labels = maps.Clone(info.Env), maps.Clone(info.Labels)
	info.State, info.CreatedAt, info.StoppedAt = daytona.StateStarted, time.Now(), time.Time{}
	info.StartedAt = info.CreatedAt
	sb := &fakeSandbox{owner: owner, info: info, files: files, sessions: map[string]*fakeSession{}, timers: map[string]*time.Timer{}}
	sb.life, sb.end = context.WithCancel(context.Background())
	e.sandboxes[info.ID] = sb
	e.order = append(e.order, info.ID)
	if info.TTL > 0 {
		sb.timers["ttl"] = time.AfterFunc(info.TTL, func() { _ = e.delete(info.ID) })
	}
	e.touch(sb)
	e.changed()
	return sb
}

var (
	_ daytona.Forker      = (*Fake)(nil)
	_ daytona.Resizer     = (*Fake)(nil)
	_ daytona.Archiver    = (*Fake)(nil)
	_ daytona.Snapshotter = (*Fake)(nil)
)
