//go:build linux

// Package lifecycle keeps the sandboxes of an engine that runs on this machine
// or drives one that does: which there are, whose they are, what state they are
// in, and when they must go. A [Keeper] has all operations of a daytona.Backend
// but Create, which an engine builds from [Keeper.Make]; what starts and ends
// processes is the engine's, behind the interface [Engine].
//
// All of it is on disk, in records that are rewritten before each step, under
// locks that the kernel frees with the process that holds them. Any number of
// processes may share a state directory, and each may be killed at any moment:
// whoever comes next finds the records of the dead and finishes what they
// began, removes what belonged to them, and adopts what was to outlive them.
//
// The package knows no engine: neither namespaces nor containers.
package lifecycle

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/failpoint"
	"github.com/daytona-go/daytona/toolbox/client"
	"github.com/daytona-go/daytona/toolbox/wire"
	"golang.org/x/sys/unix"
)

// The operations as they are called in errors.
const (
	CreateOp = "create sandbox"
	StartOp  = "start sandbox"
	StopOp   = "stop sandbox"
	DeleteOp = "delete sandbox"
	GetOp    = "get sandbox"
	ListOp   = "list sandboxes"
	UpdateOp = "update sandbox"
	DialOp   = "connect to sandbox"
)

// Proc is the running processes of a sandbox, as one.
type Proc[T any] interface {
	// Done is closed when they have ended.
	Done() <-chan struct{}
	// Is reports whether they are those that the record names.
	Is(r *Record[T]) bool
	// Kill ends them and waits for it.
	Kill()
	// Close frees what following them takes; they go on. Done need not be
	// closed any more.
	Close()
}

// Engine is what differs from one engine to another. T is what its records hold
// besides what all have. Every method may be called while another process is at
// other sandboxes; all that change a sandbox are called under its lock.
type Engine[T any] interface {
	// Boot starts the processes of a sandbox whose files are there, and returns
	// when its agent answers. Before there is anything that cannot be found from
	// the record's ID, it must put into r what finds it, and call [Keeper.Save].
	// On error nothing may run. It sets r.WorkDir to what the agent says.
	Boot(ctx context.Context, op string, r *Record[T]) (Proc[T], error)
	// Running reports whether the processes that r names run.
	Running(r *Record[T]) bool
	// Adopt follows processes that Boot started, here or in another process.
	Adopt(r *Record[T]) (Proc[T], error)
	// Clear kills what processes the sandbox may have that r does not name, and
	// removes what only running processes need. It is called when those that r
	// names have ended, and may be called again. It clears what r says of them.
	// An error of KindUnavailable says that nothing is known of the processes:
	// the sandbox keeps its state, and it is tried again.
	Clear(r *Record[T]) error
	// Release gives up what the sandbox holds outside its directory. It may be
	// called again.
	Release(ctx context.Context, r *Record[T]) error
	// RemoveTree removes a directory below the state directory, whatever modes
	// and owners a sandbox's files have. One that is not there is no error.
	RemoveTree(dir string) error
	// Reap removes what there is of sandboxes that have no directory any more;
	// exists tells which do.
	Reap(exists func(id string) bool)
	// Dial connects to a sandbox's agent.
	Dial(ctx context.Context, id string) (net.Conn, error)
}

// Options of a [Keeper].
type Options struct {
	// Name is the backend's, such as "local". Required.
	Name string
	// Dir is the state directory, absolute. Required.
	Dir string
	// Dirs are the engine's own directories in it, made if missing. Defaults to
	// none.
	Dirs []string
	// Log gets what nobody can be told by an error. Required.
	Log *slog.Logger
}

// Keeper keeps the sandboxes of one state directory for one engine. Its methods
// are safe for concurrent use, but for Open and Close.
type Keeper[T any] struct {
	State
	name   string
	log    *slog.Logger
	engine Engine[T]

	id   string   // names it in owners/
	lock *os.File // owners/<id>

	mu     sync.Mutex
	procs  map[string]Proc[T] // by sandbox: what this keeper follows
	timers map[string]*time.Timer
	later  map[string]time.Time // by sandbox: not before is an interval looked at again
	closed bool
	done   chan struct{} // closed with it
}

// New makes the state directory. The Keeper serves once Open has been called.
func New[T any](opts Options) (*Keeper[T], error) {
	k := &Keeper[T]{
		State: State{Root: opts.Dir}, name: opts.Name, log: opts.Log,
		procs: map[string]Proc[T]{}, timers: map[string]*time.Timer{}, later: map[string]time.Time{}, done: make(chan struct{}),
	}
	return k, k.makeDirs(opts.Dirs)
}

// Open takes note of what goes on, and finishes what dead processes left.
func (k *Keeper[T]) Open(ctx context.Context, engine Engine[T]) (err error) {
	k.engine = engine
	b := make([]byte, 8)
	rand.Read(b)
	k.id = hex.EncodeToString(b)
	if k.lock, err = LockFile(k.owner(k.id), false); err != nil {
		return err
	}
	return k.recover(ctx)
}

// Name is the backend's name.
func (k *Keeper[T]) Name() string { return k.name }

func (k *Keeper[T]) recover(ctx context.Context) error {
	ids, err := k.IDs()
	if err != nil {
		return err
	}
	for _, id := range ids {
		r, unlock, err := k.Locked(id, false)
		if errors.Is(err, ErrLocked) {
			// Somebody is at it, or has just died: a process that it was
			// starting may hold the lock for a moment longer.
			go k.Check(id, true)
			continue
		}
		if err != nil {
			continue
		}
		r = k.reconcile(r)
		if r != nil {
			if p, ok := k.engine.(Packer[T]); ok && r.State == daytona.StateStopped && r.Archive != "" {
				// The process that restored it did not come to that.
				if k.forget(ctx, p, r); r.Archive == "" {
					if err := k.Save(r, true); err != nil {
						k.log.Warn("that an archive is gone could not be written down; it will be tried again", "sandbox", r.ID, "err", err)
					}
				}
			}
			k.schedule(r)
		}
		unlock()
	}
	// Directories that were about to become sandboxes.
	entries, err := os.ReadDir(k.Dir("sandboxes"))
	if err != nil {
		return err
	}
	for _, d := range entries {
		if owner, ok := newDirOwner(d.Name()); ok && !k.alive(owner) {
			if err := k.engine.RemoveTree(k.Sandbox(d.Name())); err != nil {
				k.log.Warn("files of a removed sandbox could not be removed; it will be tried again", "dir", d.Name(), "err", err)
			}
		}
	}
	// Sandboxes whose directory somebody removed by hand.
	k.engine.Reap(func(id string) bool {
		_, err := os.Stat(k.Sandbox(id))
		return !errors.Is(err, fs.ErrNotExist)
	})
	names, err := os.ReadDir(k.Dir("names"))
	if err != nil {
		return err
	}
	for _, n := range names {
		id, err := k.lookupName(n.Name())
		if err != nil {
			continue
		}
		if _, err := os.Stat(k.Sandbox(id)); errors.Is(err, fs.ErrNotExist) {
			k.releaseName(n.Name(), id)
		}
	}
	owners, err := os.ReadDir(k.Dir("owners"))
	if err != nil {
		return err
	}
	for _, o := range owners {
		if !k.alive(o.Name()) {
			os.Remove(k.owner(o.Name()))
		}
	}
	return ctx.Err()
}

// Locked loads a record under its lock. With wait it waits for whoever has it;
// else [ErrLocked].
func (k *Keeper[T]) Locked(id string, wait bool) (*Record[T], func(), error) {
	if !ValidID(id) {
		return nil, nil, fs.ErrNotExist
	}
	f, err := openLock(k.File(id, "lock"), wait)
	if err != nil {
		return nil, nil, err
	}
	r, err := k.Load(id)
	if errors.Is(err, fs.ErrNotExist) {
		if _, statErr := os.Stat(k.Sandbox(id)); statErr == nil {
			// A directory without a record: what a removal had not come to.
			r, err = &Record[T]{Info: daytona.Info{ID: id}, Phase: PhaseDeleting}, nil
		}
	}
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return r, func() { f.Close() }, nil
}

// reconcile brings a record, whose lock is held, in line with what is: it
// removes the sandbox of a dead owner and one whose time has come, and marks
// one as stopped whose processes have ended. It returns nil if the sandbox is
// no more.
func (k *Keeper[T]) reconcile(r *Record[T]) *Record[T] {
	now := time.Now()
	ownerAlive := k.ownerAlive(r)
	if r.Phase == PhaseForked && !ownerAlive && k.born(r) {
		r.Phase = PhaseLive
		if err := k.Save(r, true); err != nil {
			k.log.Warn("the record of a fork could not be written; it will be tried again", "sandbox", r.ID, "err", err)
			return nil
		}
	}
	if len(r.Forked) > 0 {
		err := k.finishFork(r)
		if err == nil {
			err = k.Save(r, true)
		}
		if err != nil {
			k.log.Warn("a fork that was cut off could not be finished; it will be tried again", "sandbox", r.ID, "err", err)
			return r
		}
	}
	switch {
	case r.Phase == PhaseDeleting && (r.Owner == k.id || !ownerAlive), // nobody of ours is at it, as we hold the lock
		r.Phase != PhaseLive && r.Phase != PhaseDeleting && !ownerAlive,
		r.Phase == PhaseLive && !r.Persistent && !ownerAlive,
		r.Phase == PhaseLive && (r.expired(now) || r.deletable(now)):
		k.tryRemove(r)
		return nil
	case r.Phase != PhaseLive:
		return nil // somebody is at it
	}
	switch r.State {
	case daytona.StateStopping, daytona.StateStarting:
		// Whoever was at it is dead, as we hold the lock. A stop is finished; a
		// start cannot be, as it may have needed its engine, and is taken back.
		k.end(r)
	default:
		if between(r.State) {
			if err := k.undo(r); err != nil {
				k.log.Warn("a step that was cut off could not be undone; it will be tried again", "sandbox", r.ID, "state", r.State, "err", err)
				return r
			}
		}
		switch r.State {
		case daytona.StateStarted, daytona.StatePaused:
			if k.engine.Running(r) {
				k.watch(r)
				return r
			}
		default:
			return r
		}
	}
	if r.Ephemeral {
		k.tryRemove(r)
		return nil
	}
	if err := k.settle(r); err != nil {
		k.log.Warn("what has become of a sandbox cannot be told; it will be tried again", "sandbox", r.ID, "err", err)
	}
	return r
}

func (k *Keeper[T]) ownerAlive(r *Record[T]) bool { return r.Owner == k.id || k.alive(r.Owner) }

func (k *Keeper[T]) tryRemove(r *Record[T]) {
	if err := k.Remove(r); err != nil {
		k.log.Warn("sandbox could not be removed; it will be tried again", "sandbox", r.ID, "err", err)
	}
}

// settle marks a sandbox whose processes have ended as stopped.
func (k *Keeper[T]) settle(r *Record[T]) error {
	if err := k.engine.Clear(r); errors.Is(err, daytona.ErrUnavailable) {
		return err
	} else if err != nil {
		k.log.Warn("what a stopped sandbox had could not be removed", "sandbox", r.ID, "err", err)
	}
	failpoint.Kill("lifecycle/stop/cleared")
	r.State, r.StoppedAt = daytona.StateStopped, time.Now().UTC()
	k.unmark(r.ID)
	if err := k.Save(r, true); err != nil {
		k.log.Error("record could not be written", "sandbox", r.ID, "err", err)
	}
	k.schedule(r)
	return nil
}

// watch follows a sandbox's processes to their end, once.
func (k *Keeper[T]) watch(r *Record[T]) Proc[T] {
	k.mu.Lock()
	defer k.mu.Unlock()
	if p := k.procs[r.ID]; p != nil && p.Is(r) {
		return p
	}
	p, err := k.engine.Adopt(r)
	if err != nil {
		return nil
	}
	k.follow(r.ID, p)
	return p
}

// follow registers processes. k.mu is held.
func (k *Keeper[T]) follow(id string, p Proc[T]) {
	if k.closed {
		return
	}
	k.procs[id] = p
	go func() {
		select {
		case <-p.Done():
		case <-k.done:
			return
		}
		k.mu.Lock()
		current := k.procs[id] == p
		if current {
			delete(k.procs, id)
			p.Close()
		}
		k.mu.Unlock()
		if current {
			k.Check(id, true)
		}
	}()
}

// Check brings one sandbox in line with what is. Unless wait is set, it leaves
// alone one that somebody is at.
func (k *Keeper[T]) Check(id string, wait bool) {
	r, unlock, err := k.Locked(id, wait)
	if err != nil {
		return
	}
	defer unlock()
	if !k.Closed() {
		k.reconcile(r)
	}
}

// schedule sees to it that what intervals say is done when their time has come.
func (k *Keeper[T]) schedule(r *Record[T]) {
	var due time.Time
	at := func(t time.Time) {
		if due.IsZero() || t.Before(due) {
			due = t
		}
	}
	if r.TTL > 0 {
		at(r.CreatedAt.Add(r.TTL))
	}
	if r.AutoDelete > 0 && r.atRest() {
		at(r.StoppedAt.Add(r.AutoDelete))
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	later := func(t time.Time) time.Time {
		if l := k.later[r.ID]; l.After(t) {
			return l
		}
		return t
	}
	if r.AutoArchive > 0 && r.State == daytona.StateStopped {
		at(later(r.StoppedAt.Add(r.AutoArchive)))
	}
	if r.AutoPause > 0 && r.State == daytona.StateStarted {
		at(later(r.StartedAt.Add(r.AutoPause)))
	}
	if t := k.timers[r.ID]; t != nil {
		t.Stop()
		delete(k.timers, r.ID)
	}
	if due.IsZero() || k.closed {
		delete(k.later, r.ID)
		return
	}
	id := r.ID
	k.timers[id] = time.AfterFunc(time.Until(due)+time.Millisecond, func() { k.act(id) })
}

// act does what a sandbox's intervals say is due.
func (k *Keeper[T]) act(id string) {
	r, unlock, err := k.Locked(id, true)
	if err != nil {
		return
	}
	defer unlock()
	if k.Closed() {
		return
	}
	if r = k.reconcile(r); r == nil {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	defer context.AfterFunc(k.closing(), cancel)()
	// again is when to look next if nothing was done now.
	again, was := time.Minute, r.State
	switch now := time.Now(); {
	case r.State == daytona.StateStarted && r.AutoPause > 0:
		err = k.pauseIdle(ctx, r, &again)
	case r.State == daytona.StateStopped && r.AutoArchive > 0 && k.archives() && !now.Before(r.StoppedAt.Add(r.AutoArchive)):
		err = k.archive(ctx, r)
	}
	if err != nil && ctx.Err() == nil {
		k.log.Warn("what an interval says could not be done; it will be tried again", "sandbox", id, "state", r.State, "err", err)
	}
	k.mu.Lock()
	if k.later[id] = time.Now().Add(again); r.State != was {
		delete(k.later, id) // it was done
	}
	k.mu.Unlock()
	k.schedule(r)
}

// closing is a context that ends when the keeper is shut.
func (k *Keeper[T]) closing() context.Context { return shutContext{context.Background(), k.done} }

type shutContext struct {
	context.Context
	done chan struct{}
}

func (c shutContext) Done() <-chan struct{} { return c.done }

func (c shutContext) Err() error {
	select {
	case <-c.done:
		return context.Canceled
	default:
		return nil
	}
}

// Closed reports whether [Keeper.Shut] has been called.
func (k *Keeper[T]) Closed() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.closed
}

// Shut ends the following of processes and the timers. It returns false if it
// has been called before.
func (k *Keeper[T]) Shut() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return false
	}
	k.closed = true
	close(k.done)
	for _, t := range k.timers {
		t.Stop()
	}
	return true
}

// Close deletes what belongs to this keeper, after [Keeper.Shut], and lets go of
// the rest.
func (k *Keeper[T]) Close() error {
	var errs []error
	if ids, err := k.IDs(); err == nil {
		var wg sync.WaitGroup
		var mu sync.Mutex
		slots := make(chan struct{}, 8)
		for _, id := range ids {
			r, err := k.Load(id)
			if err != nil || r.Owner != k.id || (r.Phase == PhaseLive && r.Persistent) {
				continue
			}
			wg.Go(func() {
				slots <- struct{}{}
				defer func() { <-slots }()
				r, unlock, err := k.Locked(id, true)
				if err != nil {
					return
				}
				defer unlock()
				if err := k.Remove(r); err != nil {
					mu.Lock()
					errs = append(errs, err)
					mu.Unlock()
				}
			})
		}
		wg.Wait()
	}
	k.Free()
	return errors.Join(errs...)
}

// Free releases what this process holds, and removes nothing.
func (k *Keeper[T]) Free() {
	k.mu.Lock()
	for id, p := range k.procs {
		p.Close()
		delete(k.procs, id)
	}
	k.mu.Unlock()
	if k.lock != nil {
		os.Remove(k.lock.Name())
		k.lock.Close()
	}
}

// NewRecord is the record of a sandbox that is about to be made.
func (k *Keeper[T]) NewRecord(spec daytona.Spec) *Record[T] {
	r := &Record[T]{Phase: PhaseCreating, Owner: k.id, SpecUser: spec.User, SpecWorkDir: spec.WorkDir}
	r.Info = daytona.Info{
		ID: NewID(), Name: spec.Name, State: daytona.StateCreating, Backend: k.name, Image: spec.Image,
		Env: spec.Env, Labels: spec.Labels, Entrypoint: spec.Entrypoint, Language: spec.Language,
		Resources: spec.Resources, Network: spec.Network, Volumes: spec.Volumes,
		Persistent: spec.Persistent, Ephemeral: spec.Ephemeral,
		TTL: spec.TTL, AutoStop: spec.AutoStop, AutoPause: spec.AutoPause, AutoArchive: spec.AutoArchive, AutoDelete: spec.AutoDelete,
		CreatedAt: time.Now().UTC(),
	}
	if r.Language == "" {
		r.Language = "python"
	}
	if r.Name == "" {
		r.Name = "sandbox-" + r.ID
	}
	return r
}

// Make makes the sandbox of a new record and starts it. prepare makes its files,
// by the image, in its directory. On error nothing is left. final is the phase
// that it ends up in: live, forked, or warm, which has no name yet.
func (k *Keeper[T]) Make(ctx context.Context, r *Record[T], final Phase, prepare func(ctx context.Context) error) (err error) {
	unlock, err := k.enroll(r)
	if err != nil {
		return KernelError(CreateOp, r.Name, err)
	}
	defer unlock()
	defer func() {
		if err != nil {
			if rerr := k.Remove(r); rerr != nil {
				k.log.Warn("what a failed creation left could not be removed; it will be tried again", "sandbox", r.ID, "err", rerr)
			}
		}
	}()
	if final != PhaseWarm {
		if err := k.TakeName(r); err != nil {
			return err
		}
	}
	if err := failpoint.Fail("lifecycle/create/named"); err != nil {
		return KernelError(CreateOp, r.Name, err)
	}
	if err := prepare(ctx); err != nil {
		if _, typed := errors.AsType[*daytona.Error](err); !typed {
			err = KernelError(CreateOp, r.Name, err)
		}
		return err
	}
	if err := failpoint.Fail("lifecycle/create/prepared"); err != nil {
		return KernelError(CreateOp, r.Name, err)
	}
	p, err := k.engine.Boot(ctx, CreateOp, r)
	if err != nil {
		return err
	}
	failpoint.Kill("lifecycle/create/booted")
	k.mu.Lock()
	k.follow(r.ID, p)
	k.mu.Unlock()
	r.Phase, r.State, r.Fresh = final, daytona.StateStarted, false
	r.StartedAt = time.Now().UTC()
	if err := k.Save(r, true); err != nil {
		return KernelError(CreateOp, r.Name, err)
	}
	failpoint.Kill("lifecycle/create/live")
	k.schedule(r)
	return nil
}

// enroll makes the sandbox's directory with its record, locked. The directory
// appears under its name only when the record is in it.
func (k *Keeper[T]) enroll(r *Record[T]) (unlock func(), err error) {
	dir := k.newDir(r.ID)
	if err := os.Mkdir(k.Sandbox(dir), 0o700); err != nil {
		return nil, err
	}
	defer os.RemoveAll(k.Sandbox(dir))
	if err := failpoint.Fail("lifecycle/create/directory-made"); err != nil {
		return nil, err
	}
	data, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(k.File(dir, "record.json"), data, 0o600); err != nil {
		return nil, err
	}
	lock, err := LockFile(k.File(dir, "lock"), false)
	if err != nil {
		return nil, err
	}
	failpoint.Kill("lifecycle/create/recorded")
	if err := os.Rename(k.Sandbox(dir), k.Sandbox(r.ID)); err != nil {
		lock.Close()
		return nil, err
	}
	failpoint.Kill("lifecycle/create/enrolled")
	return func() { lock.Close() }, nil
}

// newDir is where a sandbox's directory is made before it gets its name.
func (k *Keeper[T]) newDir(id string) string { return ".new-" + k.id + "-" + id }

func newDirOwner(name string) (owner string, ok bool) {
	rest, ok := strings.CutPrefix(name, ".new-")
	owner, _, found := strings.Cut(rest, "-")
	return owner, ok && found
}

// TakeName makes the record's name its own.
func (k *Keeper[T]) TakeName(r *Record[T]) error {
	err := k.claimName(r.Name, r.ID)
	if errors.Is(err, fs.ErrExist) {
		// It may be the name of a sandbox whose time has come.
		if id, lerr := k.lookupName(r.Name); lerr == nil {
			k.Check(id, false)
			// A name is taken when the directory is there, and given back before it is
			// gone: one without was of a process that died between two names.
			if _, serr := os.Stat(k.Sandbox(id)); errors.Is(serr, fs.ErrNotExist) {
				k.releaseName(r.Name, id)
			}
			err = k.claimName(r.Name, r.ID)
		}
	}
	if errors.Is(err, fs.ErrExist) {
		return &daytona.Error{Kind: daytona.KindConflict, Op: CreateOp, Field: "Name", Value: r.Name, Message: "another sandbox has this name"}
	}
	return KernelError(CreateOp, r.Name, err)
}

// Remove ends a sandbox and removes all of it. Its lock is held. What has been
// removed already is no error, so it can be repeated from any point; and where it
// fails, it is, as long as this keeper is open.
func (k *Keeper[T]) Remove(r *Record[T]) error {
	err := k.remove(r)
	if err != nil {
		id := r.ID
		k.mu.Lock()
		if !k.closed {
			k.timers[id] = time.AfterFunc(removeAgain, func() { k.Check(id, true) })
		}
		k.mu.Unlock()
	}
	return err
}

// removeAgain is after how long a removal that has failed is tried again.
const removeAgain = 2 * time.Second

func (k *Keeper[T]) remove(r *Record[T]) error {
	if r.Phase != PhaseDeleting {
		r.Phase, r.State, r.Owner = PhaseDeleting, daytona.StateDestroying, k.id
		if err := k.Save(r, false); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	failpoint.Kill("lifecycle/delete/intended")
	k.mu.Lock()
	if t := k.timers[r.ID]; t != nil {
		t.Stop()
		delete(k.timers, r.ID)
	}
	k.mu.Unlock()
	k.end(r)
	failpoint.Kill("lifecycle/delete/ended")
	if err := k.engine.Clear(r); err != nil {
		return err
	}
	if err := failpoint.Fail("lifecycle/delete/cleared"); err != nil {
		return err
	}
	if r.Name != "" {
		k.releaseName(r.Name, r.ID)
	}
	failpoint.Kill("lifecycle/delete/unnamed")
	if err := k.engine.Release(context.Background(), r); err != nil {
		return err
	}
	if err := failpoint.Fail("lifecycle/delete/released"); err != nil {
		return err
	}
	// Out of the way first, so that a half-removed sandbox is not taken for
	// one; its lock and record go last.
	gone := filepath.Join(k.Dir("sandboxes"), ".new-"+k.id+"-gone-"+r.ID)
	if err := os.Rename(k.Sandbox(r.ID), gone); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	failpoint.Kill("lifecycle/delete/renamed")
	return k.engine.RemoveTree(gone)
}

// end kills the processes that r names and waits for them.
func (k *Keeper[T]) end(r *Record[T]) {
	k.mu.Lock()
	p := k.procs[r.ID]
	delete(k.procs, r.ID)
	k.mu.Unlock()
	if p == nil && k.engine.Running(r) {
		p, _ = k.engine.Adopt(r)
	}
	if p != nil {
		p.Kill()
		p.Close()
	}
}

// Get implements daytona.Backend.
func (k *Keeper[T]) Get(ctx context.Context, idOrName string) (daytona.Info, error) {
	r, err := k.Find(ctx, GetOp, idOrName)
	if err != nil {
		return daytona.Info{}, err
	}
	return r.Info, nil
}

func notFound(op, subject string) error {
	return &daytona.Error{Kind: daytona.KindNotFound, Op: op, Subject: subject, Message: "there is no sandbox with this id or name"}
}

// Find loads the record with an id or name, in line with what is.
func (k *Keeper[T]) Find(ctx context.Context, op, idOrName string) (*Record[T], error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	id := idOrName
	if !ValidID(id) {
		var err error
		if id, err = k.lookupName(idOrName); err != nil {
			return nil, notFound(op, idOrName)
		}
	}
	r, err := k.Load(id)
	if err != nil && id == idOrName {
		if id, err = k.lookupName(idOrName); err == nil {
			r, err = k.Load(id)
		}
	}
	if err != nil {
		return nil, notFound(op, idOrName)
	}
	if k.stale(r) {
		k.Check(id, false)
		if r, err = k.Load(id); err != nil {
			return nil, notFound(op, idOrName)
		}
	}
	if r.Phase != PhaseLive || (!r.Persistent && !k.ownerAlive(r)) {
		return nil, notFound(op, idOrName)
	}
	return r, nil
}

// stale reports whether a record is out of line with what is.
func (k *Keeper[T]) stale(r *Record[T]) bool {
	now := time.Now()
	return r.Phase == PhaseLive && (r.expired(now) || r.deletable(now) ||
		((r.State == daytona.StateStarted || r.State == daytona.StatePaused) && !k.engine.Running(r)) || between(r.State) ||
		(!r.Persistent && !k.ownerAlive(r)))
}

// List implements daytona.Backend.
func (k *Keeper[T]) List(ctx context.Context, filter daytona.Filter) iter.Seq2[daytona.Info, error] {
	return func(yield func(daytona.Info, error) bool) {
		ids, err := k.IDs()
		if err != nil {
			yield(daytona.Info{}, KernelError(ListOp, k.Root, err))
			return
		}
		var infos []daytona.Info
		for _, id := range ids {
			r, err := k.Find(ctx, ListOp, id)
			if ctx.Err() != nil {
				yield(daytona.Info{}, ctx.Err())
				return
			}
			if err == nil && filter.Match(r.Info) {
				infos = append(infos, r.Info)
			}
		}
		slices.SortFunc(infos, func(a, b daytona.Info) int {
			if c := a.CreatedAt.Compare(b.CreatedAt); c != 0 {
				return c
			}
			return strings.Compare(a.ID, b.ID)
		})
		for _, i := range infos {
			if !yield(i, nil) {
				return
			}
		}
	}
}

// Change runs f on a sandbox's record under its lock and saves what it made of
// it; f keeps it from being saved by returning [ErrRemoved].
func (k *Keeper[T]) Change(ctx context.Context, op, id string, f func(r *Record[T]) error) (daytona.Info, error) {
	r, err := k.Find(ctx, op, id)
	if err != nil {
		return daytona.Info{}, err
	}
	r, unlock, err := k.Locked(r.ID, true)
	if err != nil {
		return daytona.Info{}, notFound(op, id)
	}
	defer unlock()
	if r = k.reconcile(r); r == nil {
		return daytona.Info{}, notFound(op, id)
	}
	if err := f(r); err != nil {
		if errors.Is(err, ErrRemoved) {
			return r.Info, nil
		}
		return daytona.Info{}, KernelError(op, id, err)
	}
	if err := k.Save(r, true); err != nil {
		return daytona.Info{}, KernelError(op, id, err)
	}
	k.schedule(r)
	return r.Info, nil
}

// ErrRemoved tells [Keeper.Change] that there is no record any more.
var ErrRemoved = errors.New("removed")

// Start implements daytona.Backend.
func (k *Keeper[T]) Start(ctx context.Context, id string) (daytona.Info, error) {
	return k.Change(ctx, StartOp, id, func(r *Record[T]) error {
		switch r.State {
		case daytona.StateStarted:
			return nil
		case daytona.StatePaused:
			return k.resume(ctx, r)
		case daytona.StateArchived:
			if err := k.restore(ctx, StartOp, r); err != nil {
				return err
			}
		case daytona.StateStopped, daytona.StateStarting:
		default:
			return stateError(StartOp, r, "try again")
		}
		r.State = daytona.StateStarting
		if err := k.Save(r, false); err != nil {
			return err
		}
		failpoint.Kill("lifecycle/start/intended")
		p, err := k.engine.Boot(ctx, StartOp, r)
		if errors.Is(err, daytona.ErrUnavailable) && k.settle(r) != nil {
			return err // it may be running: who looks next settles it
		}
		if err != nil {
			r.State = daytona.StateStopped
			_ = k.Save(r, true)
			return err
		}
		failpoint.Kill("lifecycle/start/booted")
		k.mu.Lock()
		k.follow(r.ID, p)
		k.mu.Unlock()
		r.State, r.StartedAt, r.Fresh = daytona.StateStarted, time.Now().UTC(), false
		return nil
	})
}

// grace is how long processes have to end by themselves; the agent takes five
// seconds of it.
const grace = 6 * time.Second

// Stop implements daytona.Backend.
func (k *Keeper[T]) Stop(ctx context.Context, id string, opts daytona.StopOptions) (daytona.Info, error) {
	return k.Change(ctx, StopOp, id, func(r *Record[T]) error {
		switch r.State {
		case daytona.StateStarted:
		case daytona.StatePaused:
			// Its processes may have something to do before they end.
			if !opts.Force {
				if err := k.resume(ctx, r); err != nil {
					return err
				}
			}
		case daytona.StateStarting, daytona.StateStopping: // what has become of it could not be told
			return k.settle(r)
		default:
			return nil
		}
		r.State = daytona.StateStopping
		if err := k.Save(r, false); err != nil {
			return err
		}
		failpoint.Kill("lifecycle/stop/intended")
		if p := k.watch(r); p != nil && !opts.Force && k.Post(ctx, r.ID, wire.ShutdownPath, nil) == nil {
			t := time.NewTimer(grace)
			select {
			case <-p.Done():
			case <-t.C:
			case <-ctx.Done():
			}
			t.Stop()
		}
		k.end(r)
		failpoint.Kill("lifecycle/stop/ended")
		if r.Ephemeral {
			if err := k.Remove(r); err != nil {
				return err
			}
			r.State = daytona.StateDestroyed
			return ErrRemoved
		}
		return k.settle(r)
	})
}

// Delete implements daytona.Backend.
func (k *Keeper[T]) Delete(ctx context.Context, id string) error {
	if r := k.halfRemoved(id); r != nil {
		r, unlock, err := k.Locked(r.ID, true)
		if err != nil {
			return notFound(DeleteOp, id) // somebody has finished it
		}
		defer unlock()
		return KernelError(DeleteOp, id, k.Remove(r))
	}
	_, err := k.Change(ctx, DeleteOp, id, func(r *Record[T]) error {
		if err := k.Remove(r); err != nil {
			return err
		}
		return ErrRemoved
	})
	return err
}

// halfRemoved is the record of a sandbox whose removal by this keeper has failed
// half-way; nil if there is none.
func (k *Keeper[T]) halfRemoved(idOrName string) *Record[T] {
	id := idOrName
	if !ValidID(id) {
		var err error
		if id, err = k.lookupName(idOrName); err != nil {
			return nil
		}
	}
	if r, err := k.Load(id); err == nil && r.Phase == PhaseDeleting && r.Owner == k.id {
		return r
	}
	return nil
}

// Update implements daytona.Updater.
func (k *Keeper[T]) Update(ctx context.Context, id string, u daytona.Update) (daytona.Info, error) {
	return k.Change(ctx, UpdateOp, id, func(r *Record[T]) error {
		if u.AutoArchive != nil && *u.AutoArchive != 0 && !k.archives() {
			return &daytona.Error{Kind: daytona.KindUnsupported, Op: UpdateOp, Field: "AutoArchive", Value: *u.AutoArchive,
				Message: fmt.Sprintf("the %s backend cannot archive", k.name)}
		}
		if u.AutoPause != nil && *u.AutoPause != 0 {
			if err := k.freezes(); err != nil {
				return &daytona.Error{Kind: daytona.KindUnsupported, Op: UpdateOp, Field: "AutoPause", Value: *u.AutoPause, Message: err.Error()}
			}
			if u.AutoStop != nil && *u.AutoStop != 0 {
				return &daytona.Error{Kind: daytona.KindInvalid, Op: UpdateOp, Field: "AutoPause", Value: *u.AutoPause, Message: "must be 0 when AutoStop is not"}
			}
		}
		for field, d := range map[string]*time.Duration{"AutoStop": u.AutoStop, "AutoPause": u.AutoPause, "AutoArchive": u.AutoArchive, "AutoDelete": u.AutoDelete} {
			if d != nil && *d != 0 && *d < time.Second {
				return &daytona.Error{Kind: daytona.KindInvalid, Op: UpdateOp, Field: field, Value: *d, Message: "must be 0 (never) or at least 1s"}
			}
		}
		autoStop, autoPause := r.AutoStop, r.AutoPause
		if u.AutoStop != nil {
			if autoStop = *u.AutoStop; autoStop != 0 {
				autoPause = 0
			}
		}
		if u.AutoPause != nil {
			if autoPause = *u.AutoPause; autoPause != 0 {
				autoStop = 0
			}
		}
		if autoStop != r.AutoStop {
			switch r.State {
			case daytona.StateStarted:
				if err := k.Post(ctx, r.ID, wire.IdleTimeoutPath, wire.IdleTimeoutRequest{Milliseconds: autoStop.Milliseconds()}); err != nil {
					return err
				}
			case daytona.StatePaused: // its agent cannot be told
				return stateError(UpdateOp, r, "AutoStop can be changed once it is resumed")
			}
		}
		if u.Labels != nil {
			if _, empty := u.Labels[""]; empty {
				return &daytona.Error{Kind: daytona.KindInvalid, Op: UpdateOp, Field: "Labels", Value: "", Message: "keys must not be empty"}
			}
			r.Labels = maps.Clone(u.Labels)
		}
		r.AutoStop, r.AutoPause = autoStop, autoPause
		if u.AutoArchive != nil {
			r.AutoArchive = *u.AutoArchive
		}
		if u.AutoDelete != nil {
			r.AutoDelete = *u.AutoDelete
		}
		return nil
	})
}

// Connect implements daytona.Backend.
func (k *Keeper[T]) Connect(id string) daytona.Toolbox {
	opts := &client.Options{}
	if r, err := k.Load(id); err == nil {
		opts.Language = r.Language
	}
	return client.New(func(ctx context.Context) (net.Conn, error) {
		if err := k.refusePaused(id); err != nil {
			return nil, err
		}
		c, err := k.engine.Dial(ctx, id)
		if err == nil {
			return &agentConn{Conn: c, refuse: func() error { return k.refusePaused(id) }}, nil
		}
		if ctx.Err() != nil {
			return nil, err
		}
		// Why? Most likely the sandbox is not running.
		r, ferr := k.Find(ctx, DialOp, id)
		if ferr != nil {
			return nil, ferr
		}
		if r.State != daytona.StateStarted {
			return nil, &daytona.Error{Kind: daytona.KindState, Op: DialOp, Subject: r.Name, Message: fmt.Sprintf("it is %s; start it first", r.State)}
		}
		return nil, &daytona.Error{Kind: daytona.KindUnavailable, Op: DialOp, Subject: r.Name, Err: err}
	}, opts)
}

// Greet waits for the first answer of an agent that is starting: the working
// directory. ended is closed if its process ends before.
func (k *Keeper[T]) Greet(ctx context.Context, id string, ended <-chan struct{}) (workDir string, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-ended:
			cancel()
		case <-ctx.Done():
		}
	}()
	t := client.New(func(ctx context.Context) (net.Conn, error) { return k.engine.Dial(ctx, id) }, nil)
	defer t.Close()
	return t.WorkDir(ctx)
}

// Post sends a request of the engine's own to an agent.
func (k *Keeper[T]) Post(ctx context.Context, id, path string, body any) error {
	data, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://agent"+path, bytes.NewReader(data))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	t := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return k.engine.Dial(ctx, id) }}
	resp, err := t.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		msg, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
		return fmt.Errorf("agent: %s: %s", resp.Status, bytes.TrimSpace(msg))
	}
	return nil
}

// KernelError turns an error of the kernel into one of the library.
func KernelError(op, subject string, err error) error {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if e, ok := errors.AsType[*daytona.Error](err); ok && e.Op == op {
		return err
	}
	kind := daytona.KindOf(err)
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		kind = daytona.KindNoSpace
	case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOMEM):
		kind = daytona.KindExhausted
	}
	return &daytona.Error{Kind: kind, Op: op, Subject: subject, Err: err}
}
