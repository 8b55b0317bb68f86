//go:build linux

package lifecycle

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/failpoint"
)

// SnapshotRecord is what is kept of a snapshot. Own is the engine's.
type SnapshotRecord[S any] struct {
	daytona.Snapshot
	Phase Phase  `json:"phase"`           // creating, live or deleting
	Owner string `json:"owner,omitempty"` // the keeper that is making it
	Own   S      `json:"own"`
}

// Snapshots is the store of an engine's snapshots in the state directory:
//
//	snapshots/<id>/record.json   one snapshot
//	snapshots/<id>/lock          locked by whoever makes, uses or removes it
//	snapshots/.new-…             one that has no record yet
//	snapshot-names/<digest>      a file with the id of the snapshot of that name
//
// "snapshots" and "snapshot-names" are among the keeper's Options.Dirs. An
// engine embeds it for the methods that list and find; making is [Snapshots.MakeSnapshot].
type Snapshots[T, S any] struct {
	Keeper *Keeper[T]
	// Free gives up what a snapshot holds outside its directory. It may be called
	// again.
	Free func(ctx context.Context, s *SnapshotRecord[S]) error
}

// SnapshotDir is the directory of a snapshot.
func (s State) SnapshotDir(id string) string { return filepath.Join(s.Root, "snapshots", id) }

func (s State) snapshotName(name string) string {
	sum := sha256.Sum256([]byte(name))
	return filepath.Join(s.Root, "snapshot-names", hex.EncodeToString(sum[:]))
}

const snapshotOp = "get snapshot"

func (s Snapshots[T, S]) notFound(op, key string) error {
	return &daytona.Error{Kind: daytona.KindNotFound, Op: op, Subject: key, Message: "there is no snapshot with this id or name"}
}

func (s Snapshots[T, S]) load(id string) (*SnapshotRecord[S], error) {
	if !ValidID(id) {
		return nil, fs.ErrNotExist
	}
	data, err := os.ReadFile(filepath.Join(s.Keeper.SnapshotDir(id), "record.json"))
	if err != nil {
		return nil, err
	}
	r := &SnapshotRecord[S]{}
	if err := json.Unmarshal(data, r); err != nil || r.ID != id {
		r = &SnapshotRecord[S]{Snapshot: daytona.Snapshot{ID: id}, Phase: PhaseDeleting}
	}
	return r, nil
}

// SaveSnapshot writes a snapshot's record.
func (s Snapshots[T, S]) SaveSnapshot(r *SnapshotRecord[S]) error {
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return rewrite(filepath.Join(s.Keeper.SnapshotDir(r.ID), "record.json"), data, true)
}

// FindSnapshot loads a snapshot by id, or else by name.
func (s Snapshots[T, S]) FindSnapshot(op, key string) (*SnapshotRecord[S], error) {
	r, err := s.load(key)
	if err != nil {
		data, rerr := os.ReadFile(s.Keeper.snapshotName(key))
		if rerr != nil {
			return nil, s.notFound(op, key)
		}
		if r, err = s.load(string(data)); err != nil || r.Name != key {
			return nil, s.notFound(op, key)
		}
	}
	if r.Phase != PhaseLive {
		return nil, s.notFound(op, key)
	}
	return r, nil
}

// locked finds a snapshot and locks it.
func (s Snapshots[T, S]) locked(op, key string) (*SnapshotRecord[S], func(), error) {
	r, err := s.FindSnapshot(op, key)
	if err != nil {
		return nil, nil, err
	}
	lock, err := openLock(filepath.Join(s.Keeper.SnapshotDir(r.ID), "lock"), true)
	if err != nil {
		return nil, nil, s.notFound(op, key)
	}
	if r, err = s.FindSnapshot(op, r.ID); err != nil {
		lock.Close()
		return nil, nil, err
	}
	return r, func() { lock.Close() }, nil
}

// UseSnapshot finds an active snapshot to make a sandbox from, and keeps it from being
// removed until done is called.
func (s Snapshots[T, S]) UseSnapshot(op, key string) (r *SnapshotRecord[S], done func(), err error) {
	r, unlock, err := s.locked(op, key)
	if err != nil {
		return nil, nil, err
	}
	if r.State != daytona.SnapshotActive {
		unlock()
		return nil, nil, &daytona.Error{Kind: daytona.KindState, Op: op, Field: "Snapshot", Value: key, Message: fmt.Sprintf("it is %s; activate it first", r.State)}
	}
	r.LastUsedAt = time.Now().UTC()
	_ = s.SaveSnapshot(r) // when it was used last is not worth a failure
	return r, unlock, nil
}

// MakeSnapshot makes a snapshot: fill sees to what it consists of and completes the
// record. On error nothing is left.
func (s Snapshots[T, S]) MakeSnapshot(ctx context.Context, spec daytona.SnapshotSpec, fill func(r *SnapshotRecord[S]) error) (_ daytona.Snapshot, err error) {
	k := s.Keeper
	now := time.Now().UTC()
	r := &SnapshotRecord[S]{Phase: PhaseCreating, Owner: k.id, Snapshot: daytona.Snapshot{ID: NewID(), Name: spec.Name, State: daytona.SnapshotSnapshotting,
		Image: spec.Image, Entrypoint: spec.Entrypoint, Resources: spec.Resources, CreatedAt: now, UpdatedAt: now}}
	if _, err := s.FindSnapshot(SnapshotOp, spec.Name); err == nil {
		return daytona.Snapshot{}, s.conflict(spec.Name)
	}
	lock, err := s.enroll(r)
	if err != nil {
		return daytona.Snapshot{}, KernelError(SnapshotOp, spec.Name, err)
	}
	defer lock.Close()
	defer func() {
		if err != nil {
			if rerr := s.remove(context.WithoutCancel(ctx), r); rerr != nil {
				k.log.Warn("what a failed snapshot left could not be removed; it will be tried again", "snapshot", r.ID, "err", rerr)
			}
			err = KernelError(SnapshotOp, spec.Name, err)
		}
	}()
	if err := failpoint.Fail("lifecycle/snapshot/recorded"); err != nil {
		return daytona.Snapshot{}, err
	}
	if err := s.claim(ctx, r); err != nil {
		return daytona.Snapshot{}, err
	}
	if err := failpoint.Fail("lifecycle/snapshot/named"); err != nil {
		return daytona.Snapshot{}, err
	}
	if err := fill(r); err != nil {
		return daytona.Snapshot{}, err
	}
	if err := failpoint.Fail("lifecycle/snapshot/filled"); err != nil {
		return daytona.Snapshot{}, err
	}
	r.Phase, r.State, r.Owner, r.UpdatedAt = PhaseLive, daytona.SnapshotActive, "", time.Now().UTC()
	if err := s.SaveSnapshot(r); err != nil {
		return daytona.Snapshot{}, err
	}
	failpoint.Kill("lifecycle/snapshot/live")
	return r.Snapshot, nil
}

// enroll makes the snapshot's directory with its record, locked. The directory
// appears under its name only when the record is in it.
func (s Snapshots[T, S]) enroll(r *SnapshotRecord[S]) (lock *os.File, err error) {
	k := s.Keeper
	dir := k.SnapshotDir(k.newDir(r.ID))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	failpoint.Kill("lifecycle/snapshot/directory-made")
	data, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "record.json"), data, 0o600); err != nil {
		return nil, err
	}
	if lock, err = LockFile(filepath.Join(dir, "lock"), false); err != nil {
		return nil, err
	}
	if err := os.Rename(dir, k.SnapshotDir(r.ID)); err != nil {
		lock.Close()
		return nil, err
	}
	return lock, nil
}

func (s Snapshots[T, S]) conflict(name string) error {
	return &daytona.Error{Kind: daytona.KindConflict, Op: SnapshotOp, Field: "Name", Value: name, Message: "another snapshot has this name"}
}

func (s Snapshots[T, S]) claim(ctx context.Context, r *SnapshotRecord[S]) error {
	tmp := filepath.Join(s.Keeper.SnapshotDir(r.ID), "name")
	if err := os.WriteFile(tmp, []byte(r.ID), 0o600); err != nil {
		return err
	}
	defer os.Remove(tmp)
	failpoint.Kill("lifecycle/snapshot/name-written")
	err := os.Link(tmp, s.Keeper.snapshotName(r.Name))
	if errors.Is(err, fs.ErrExist) {
		// It may be the name of one whose maker has died.
		if data, rerr := os.ReadFile(s.Keeper.snapshotName(r.Name)); rerr == nil && string(data) != r.ID && ValidID(string(data)) {
			s.recoverSnapshot(ctx, string(data))
			err = os.Link(tmp, s.Keeper.snapshotName(r.Name))
		}
	}
	if errors.Is(err, fs.ErrExist) {
		return s.conflict(r.Name)
	}
	return err
}

// remove removes a snapshot, whose lock is held. It can be repeated.
func (s Snapshots[T, S]) remove(ctx context.Context, r *SnapshotRecord[S]) error {
	if r.Phase != PhaseDeleting {
		r.Phase, r.State = PhaseDeleting, daytona.SnapshotRemoving
		if err := s.SaveSnapshot(r); err != nil {
			return err
		}
	}
	failpoint.Kill("lifecycle/snapshot-delete/intended")
	if name := s.Keeper.snapshotName(r.Name); r.Name != "" {
		if data, err := os.ReadFile(name); err == nil && string(data) == r.ID {
			if err := os.Remove(name); err != nil {
				return err
			}
		}
	}
	failpoint.Kill("lifecycle/snapshot-delete/unnamed")
	if err := s.Free(ctx, r); err != nil {
		return err
	}
	if err := failpoint.Fail("lifecycle/snapshot-delete/freed"); err != nil {
		return err
	}
	return os.RemoveAll(s.Keeper.SnapshotDir(r.ID))
}

// RecoverSnapshots removes what dead processes left half made or half removed. It is
// called when the keeper is open.
func (s Snapshots[T, S]) RecoverSnapshots(ctx context.Context) error {
	k := s.Keeper
	entries, err := os.ReadDir(k.Dir("snapshots"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if owner, ok := newDirOwner(e.Name()); ok && !k.alive(owner) {
			if err := os.RemoveAll(k.SnapshotDir(e.Name())); err != nil {
				return err
			}
		}
		if ValidID(e.Name()) {
			s.recoverSnapshot(ctx, e.Name())
		}
	}
	names, err := os.ReadDir(k.Dir("snapshot-names"))
	if err != nil {
		return err
	}
	for _, n := range names {
		path := filepath.Join(k.Dir("snapshot-names"), n.Name())
		if data, err := os.ReadFile(path); err == nil {
			if _, err := os.Stat(k.SnapshotDir(string(data))); errors.Is(err, fs.ErrNotExist) {
				os.Remove(path)
			}
		}
	}
	return ctx.Err()
}

// recoverSnapshot removes a snapshot if a dead process left it half made or half
// removed.
func (s Snapshots[T, S]) recoverSnapshot(ctx context.Context, id string) {
	k := s.Keeper
	lock, err := openLock(filepath.Join(k.SnapshotDir(id), "lock"), false)
	if err != nil {
		return // somebody is at it
	}
	defer lock.Close()
	r, err := s.load(id)
	if errors.Is(err, fs.ErrNotExist) {
		// What a removal had not come to.
		r, err = &SnapshotRecord[S]{Snapshot: daytona.Snapshot{ID: id}, Phase: PhaseDeleting}, nil
	}
	if err == nil && (r.Phase == PhaseDeleting || r.Phase == PhaseCreating && !k.alive(r.Owner)) {
		if err := s.remove(ctx, r); err != nil {
			k.log.Warn("snapshot could not be removed; it will be tried again", "snapshot", id, "err", err)
		}
	}
}

// GetSnapshot implements daytona.Snapshotter.
func (s Snapshots[T, S]) GetSnapshot(ctx context.Context, idOrName string) (daytona.Snapshot, error) {
	if err := ctx.Err(); err != nil {
		return daytona.Snapshot{}, err
	}
	r, err := s.FindSnapshot(snapshotOp, idOrName)
	if err != nil {
		return daytona.Snapshot{}, err
	}
	return r.Snapshot, nil
}

// ListSnapshots implements daytona.Snapshotter.
func (s Snapshots[T, S]) ListSnapshots(ctx context.Context) iter.Seq2[daytona.Snapshot, error] {
	return func(yield func(daytona.Snapshot, error) bool) {
		entries, err := os.ReadDir(s.Keeper.Dir("snapshots"))
		if err != nil {
			yield(daytona.Snapshot{}, KernelError("list snapshots", "", err))
			return
		}
		var all []daytona.Snapshot
		for _, e := range entries {
			if r, err := s.load(e.Name()); err == nil && r.Phase == PhaseLive {
				all = append(all, r.Snapshot)
			}
		}
		slices.SortFunc(all, func(a, b daytona.Snapshot) int {
			if c := a.CreatedAt.Compare(b.CreatedAt); c != 0 {
				return c
			}
			return strings.Compare(a.ID, b.ID)
		})
		for _, sn := range all {
			if err := ctx.Err(); err != nil {
				yield(daytona.Snapshot{}, err)
				return
			}
			if !yield(sn, nil) {
				return
			}
		}
	}
}

// DeleteSnapshot implements daytona.Snapshotter.
func (s Snapshots[T, S]) DeleteSnapshot(ctx context.Context, idOrName string) error {
	const op = "delete snapshot"
	if err := ctx.Err(); err != nil {
		return err
	}
	r, unlock, err := s.locked(op, idOrName)
	if err != nil {
		return err
	}
	defer unlock()
	return KernelError(op, idOrName, s.remove(context.WithoutCancel(ctx), r))
}

// SetSnapshotActive implements daytona.Snapshotter.
func (s Snapshots[T, S]) SetSnapshotActive(ctx context.Context, idOrName string, active bool) (daytona.Snapshot, error) {
	const op = "change snapshot"
	if err := ctx.Err(); err != nil {
		return daytona.Snapshot{}, err
	}
	r, unlock, err := s.locked(op, idOrName)
	if err != nil {
		return daytona.Snapshot{}, err
	}
	defer unlock()
	state := daytona.SnapshotInactive
	if active {
		state = daytona.SnapshotActive
	}
	if r.State == state {
		return r.Snapshot, nil
	}
	r.State, r.UpdatedAt = state, time.Now().UTC()
	if err := s.SaveSnapshot(r); err != nil {
		return daytona.Snapshot{}, KernelError(op, idOrName, err)
	}
	failpoint.Kill("lifecycle/snapshot-change/saved")
	return r.Snapshot, nil
}
