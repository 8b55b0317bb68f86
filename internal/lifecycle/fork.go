//go:build linux

package lifecycle

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/failpoint"
)

// parallelForks bounds the children that are made at a time.
const parallelForks = 8

// ForkInto makes a child of a sandbox for each name, in the state forking. capture
// keeps the present files of the parent, whose lock is held; release, if it is not
// nil, is called when all children are made or removed. prepare makes the files of
// a child, as in [Keeper.Make].
func (k *Keeper[T]) ForkInto(ctx context.Context, id string, opts daytona.ForkOptions, capture func(parent *Record[T]) (release func(), err error),
	prepare func(ctx context.Context, parent, child *Record[T]) error) ([]daytona.Info, error) {
	if opts.Memory {
		return nil, &daytona.Error{Kind: daytona.KindUnsupported, Op: ForkOp, Field: "Memory", Value: true,
			Message: "the isolation of the " + k.name + " backend cannot copy running processes; fork without Memory: children boot afresh"}
	}
	if k.Closed() {
		return nil, &daytona.Error{Kind: daytona.KindState, Op: ForkOp, Message: "the engine is closed"}
	}
	names := opts.Names
	if len(names) == 0 {
		names = []string{""}
	}
	children := make([]*Record[T], len(names))
	_, err := k.Change(ctx, ForkOp, id, func(parent *Record[T]) error {
		if parent.State != daytona.StateStarted && parent.State != daytona.StateStopped {
			return stateError(ForkOp, parent, "only a started or stopped one can be forked")
		}
		return k.Step(parent, daytona.StateForking, func() error {
			release, err := capture(parent)
			if release != nil {
				defer release()
			}
			if err != nil {
				return err
			}
			if err := failpoint.Fail("lifecycle/fork/captured"); err != nil {
				return err
			}
			if err := k.makeChildren(ctx, parent, names, children, prepare); err != nil {
				for _, child := range children {
					if child != nil {
						k.discard(child.ID)
					}
				}
				return err
			}
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	infos := make([]daytona.Info, len(children))
	for i, child := range children {
		infos[i] = child.Info
	}
	return infos, nil
}

// makeChildren makes a child for each name, as far as that goes: those that are
// there are in children. On success they are live, all at once to whoever comes
// after this process: they are in PhaseForked until the record of the parent
// names them.
func (k *Keeper[T]) makeChildren(ctx context.Context, parent *Record[T], names []string, children []*Record[T], prepare func(ctx context.Context, parent, child *Record[T]) error) error {
	final := PhaseForked
	if len(names) == 1 {
		final = PhaseLive // there is nobody to wait for
	}
	making, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	slots := make(chan struct{}, parallelForks)
	for i, name := range names {
		child := k.childOf(parent, name)
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			err := context.Cause(making)
			if err == nil {
				err = k.Make(making, child, final, func(ctx context.Context) error { return prepare(ctx, parent, child) })
			}
			if err == nil {
				children[i] = child
				err = failpoint.Fail("lifecycle/fork/child-made")
			}
			if err != nil {
				cancel(err) // the first counts; the others are not to go on
			}
		})
	}
	wg.Wait()
	if err := context.Cause(making); err != nil || final == PhaseLive {
		return err
	}
	for _, child := range children {
		parent.Forked = append(parent.Forked, child.ID)
	}
	failpoint.Kill("lifecycle/fork/all-made")
	err := k.Save(parent, true)
	failpoint.Kill("lifecycle/fork/all-recorded")
	if err == nil {
		err = k.finishFork(parent)
	}
	if err != nil {
		parent.Forked = nil
		return err
	}
	for _, child := range children {
		child.Phase = PhaseLive
	}
	return nil
}

// finishFork makes the children live that a record, whose lock is held, names.
// The caller saves it.
func (k *Keeper[T]) finishFork(parent *Record[T]) error {
	errs := make([]error, len(parent.Forked))
	var wg sync.WaitGroup
	slots := make(chan struct{}, parallelForks) // each waits for the disk
	for i, id := range parent.Forked {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			child, unlock, err := k.Locked(id, true)
			if err != nil {
				return // its time has come already
			}
			defer unlock()
			if child.Phase != PhaseForked {
				return
			}
			child.Phase = PhaseLive
			if errs[i] = k.Save(child, true); errs[i] == nil {
				k.schedule(child)
				failpoint.Kill("lifecycle/fork/child-live")
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	parent.Forked = nil
	return nil
}

// born reports whether a child in PhaseForked, whose lock is held, is one of a
// fork that was finished but for its own record: its parent's names it until all
// children are live.
func (k *Keeper[T]) born(child *Record[T]) bool {
	parent, err := k.Load(child.Parent)
	return err == nil && slices.Contains(parent.Forked, child.ID)
}

// discard removes a sandbox that is not to be handed out after all.
func (k *Keeper[T]) discard(id string) {
	r, unlock, err := k.Locked(id, true)
	if err != nil {
		return
	}
	defer unlock()
	k.tryRemove(r)
}

// childOf is the record of a fork: the parent's but for what is its own.
func (k *Keeper[T]) childOf(parent *Record[T], name string) *Record[T] {
	r := *parent
	// What the parent has is not the child's: a removal must not take it.
	var none T
	r.Own = none
	r.ID, r.Name, r.State, r.Phase, r.Owner, r.Parent = NewID(), name, daytona.StateCreating, PhaseCreating, k.id, parent.ID
	if r.Name == "" {
		r.Name = "sandbox-" + r.ID
	}
	r.Env, r.Labels = maps.Clone(r.Env), maps.Clone(r.Labels)
	r.Volumes, r.Entrypoint = slices.Clone(r.Volumes), slices.Clone(r.Entrypoint)
	r.Was, r.Archive, r.Reason, r.Forked, r.Fresh = "", "", "", nil, true
	r.CreatedAt, r.StartedAt, r.StoppedAt = time.Now().UTC(), time.Time{}, time.Time{}
	return &r
}

// ChangeResources changes the limits of a sandbox. apply puts them in force, for
// a sandbox that runs or, with the disk, for one that is stopped; it is called
// again if it is cut off, through [Recoverer], and with what was before if the
// record cannot be written.
func (k *Keeper[T]) ChangeResources(ctx context.Context, id string, want daytona.Resources, apply func(r *Record[T], before daytona.Resources) error) (daytona.Info, error) {
	if err := want.Validate(ResizeOp); err != nil {
		return daytona.Info{}, err
	}
	return k.Change(ctx, ResizeOp, id, func(r *Record[T]) error {
		if r.State != daytona.StateStarted && r.State != daytona.StateStopped {
			return stateError(ResizeOp, r, "only a started or stopped one can be resized")
		}
		before, after := r.Resources, Merge(want, r.Resources)
		if after == before {
			return nil
		}
		if after.Disk != before.Disk {
			switch {
			case before.Disk == 0:
				return &daytona.Error{Kind: daytona.KindUnsupported, Op: ResizeOp, Field: "Disk", Value: want.Disk,
					Message: "a sandbox that was made without a disk limit cannot get one; fork it or make a new one"}
			case r.State != daytona.StateStopped:
				return &daytona.Error{Kind: daytona.KindState, Op: ResizeOp, Subject: r.Name, Field: "Disk", Value: want.Disk, Message: "stop it first: a disk in use cannot be resized"}
			case after.Disk < before.Disk:
				return &daytona.Error{Kind: daytona.KindInvalid, Op: ResizeOp, Field: "Disk", Value: want.Disk, Message: "a disk can only grow"}
			}
		}
		// Written down before: whoever comes next puts in force what the record
		// says.
		r.Resources = after
		err := k.Step(r, daytona.StateResizing, func() error {
			err := apply(r, before)
			if err == nil {
				err = failpoint.Fail("lifecycle/resize/applied")
			}
			if err != nil {
				r.Resources = before
				_ = apply(r, after) // back, as far as that goes
			}
			return err
		})
		return err
	})
}

// Merge is want with the fields that are zero taken from have.
func Merge(want, have daytona.Resources) daytona.Resources {
	if want.CPU == 0 {
		want.CPU = have.CPU
	}
	if want.Memory == 0 {
		want.Memory = have.Memory
	}
	if want.Disk == 0 {
		want.Disk = have.Disk
	}
	if want.GPU == 0 {
		want.GPU = have.GPU
	}
	if want.Processes == 0 {
		want.Processes = have.Processes
	}
	if want.DiskBandwidth == 0 {
		want.DiskBandwidth = have.DiskBandwidth
	}
	return want
}
