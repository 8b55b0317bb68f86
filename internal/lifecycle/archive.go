//go:build linux

package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/failpoint"
)

// Packer is an [Engine] that can move the files of sandboxes to object storage.
// Its Recover is called for a sandbox in StateArchiving, of which nothing may
// stay in object storage, and in StateRestoring, of which nothing may stay here.
type Packer[T any] interface {
	// Pack stores the files of a stopped sandbox and its record under the name
	// r.Archive, and returns when what is stored has been verified.
	Pack(ctx context.Context, r *Record[T]) error
	// Discard removes the files here of a sandbox that is archived. It may be
	// called again.
	Discard(ctx context.Context, r *Record[T]) error
	// Unpack brings them back, checked.
	Unpack(ctx context.Context, r *Record[T]) error
	// Forget removes what is stored under r.Archive. It may be called again.
	Forget(ctx context.Context, r *Record[T]) error
	// Fetch finds the record of an archived sandbox that is not here; an error
	// that matches fs.ErrNotExist if there is none.
	Fetch(ctx context.Context, id string) (*Record[T], error)
}

func (k *Keeper[T]) archives() bool {
	_, ok := k.engine.(Packer[T])
	return ok
}

// archive moves the files of a stopped sandbox to object storage.
func (k *Keeper[T]) archive(ctx context.Context, r *Record[T]) error {
	p := k.engine.(Packer[T])
	if r.Archive != "" { // an earlier one's that could not be removed
		if err := p.Forget(ctx, r); err != nil {
			return err
		}
	}
	r.State, r.Archive = daytona.StateArchiving, NewID()
	if err := k.Save(r, true); err != nil {
		r.State, r.Archive = daytona.StateStopped, ""
		return err
	}
	failpoint.Kill("lifecycle/archive/intended")
	err := p.Pack(ctx, r)
	if err == nil {
		err = failpoint.Fail("lifecycle/archive/packed")
	}
	if err != nil {
		k.forget(context.WithoutCancel(ctx), p, r)
		r.State = daytona.StateStopped
		return errors.Join(err, k.Save(r, true))
	}
	// From here on the archive is what counts.
	r.Packed = true
	if err := k.Save(r, true); err != nil {
		return err
	}
	failpoint.Kill("lifecycle/archive/archived")
	return k.discardPacked(ctx, p, r)
}

// discardPacked removes the files here of a sandbox whose archive is complete.
func (k *Keeper[T]) discardPacked(ctx context.Context, p Packer[T], r *Record[T]) error {
	if err := p.Discard(context.WithoutCancel(ctx), r); err != nil {
		return err
	}
	failpoint.Kill("lifecycle/archive/discarded")
	r.State, r.Packed = daytona.StateArchived, false
	return k.Save(r, true)
}

// restore brings the files of an archived sandbox back and leaves it stopped.
func (k *Keeper[T]) restore(ctx context.Context, op string, r *Record[T]) error {
	p, ok := k.engine.(Packer[T])
	if !ok {
		return &daytona.Error{Kind: daytona.KindUnsupported, Op: op, Subject: r.Name, Message: fmt.Sprintf("the %s backend cannot restore", k.name)}
	}
	r.State = daytona.StateRestoring
	if err := k.Save(r, true); err != nil {
		return err
	}
	failpoint.Kill("lifecycle/restore/intended")
	err := p.Unpack(ctx, r)
	if err == nil {
		err = failpoint.Fail("lifecycle/restore/unpacked")
	}
	if err != nil {
		derr := p.Discard(context.WithoutCancel(ctx), r)
		r.State = daytona.StateArchived
		return errors.Join(err, derr, k.Save(r, true))
	}
	r.State = daytona.StateStopped
	if err := k.Save(r, true); err != nil {
		return err
	}
	failpoint.Kill("lifecycle/restore/restored")
	if k.forget(ctx, p, r); r.Archive != "" {
		return nil
	}
	failpoint.Kill("lifecycle/restore/forgotten")
	return k.Save(r, true)
}

// forget removes what is stored of a sandbox that has its files here. What cannot
// be removed now, as the object storage is away, is by the next process that
// opens the state directory, or when the sandbox is archived again or deleted.
func (k *Keeper[T]) forget(ctx context.Context, p Packer[T], r *Record[T]) {
	if err := p.Forget(ctx, r); err != nil {
		k.log.Warn("what is stored of a sandbox that is not archived could not be removed; it will be tried again", "sandbox", r.ID, "archive", r.Archive, "err", err)
		return
	}
	r.Archive = ""
}

// RecoverArchiving is what an engine's Recover does in StateArchiving.
func (k *Keeper[T]) RecoverArchiving(ctx context.Context, p Packer[T], r *Record[T]) {
	k.forget(ctx, p, r)
}

// Archiving is for an engine that is a [Packer] to embed: with it, it has all of
// daytona.Archiver.
type Archiving[T any] struct{ Keeper *Keeper[T] }

// Archive implements daytona.Archiver.
func (a Archiving[T]) Archive(ctx context.Context, id string) (daytona.Info, error) {
	k := a.Keeper
	return k.Change(ctx, ArchiveOp, id, func(r *Record[T]) error {
		switch r.State {
		case daytona.StateArchived:
			return nil
		case daytona.StateStopped:
			return k.archive(ctx, r)
		}
		return stateError(ArchiveOp, r, "stop it first")
	})
}

// Restore implements daytona.Archiver.
func (a Archiving[T]) Restore(ctx context.Context, id string) (daytona.Info, error) {
	k := a.Keeper
	if _, err := k.Find(ctx, RestoreOp, id); errors.Is(err, daytona.ErrNotFound) && ValidID(id) {
		if err := k.fetch(ctx, id); err != nil {
			return daytona.Info{}, KernelError(RestoreOp, id, err)
		}
	}
	return k.Change(ctx, RestoreOp, id, func(r *Record[T]) error {
		switch r.State {
		case daytona.StateStopped:
			return nil
		case daytona.StateArchived:
			return k.restore(ctx, RestoreOp, r)
		}
		return stateError(RestoreOp, r, "only an archived one can be restored")
	})
}

// fetch makes a sandbox that another backend archived one of this state
// directory.
func (k *Keeper[T]) fetch(ctx context.Context, id string) error {
	r, err := k.engine.(Packer[T]).Fetch(ctx, id)
	if errors.Is(err, fs.ErrNotExist) {
		return notFound(RestoreOp, id)
	}
	if err != nil {
		return err
	}
	r.ID, r.Phase, r.State, r.Owner, r.Backend = id, PhaseCreating, daytona.StateArchived, k.id, k.name
	if _, err := os.Stat(k.Sandbox(id)); err == nil {
		return notFound(RestoreOp, id) // it is being removed
	}
	// Until it is live a removal must not take the archive with it.
	kept := r.Archive
	r.Archive = ""
	unlock, err := k.enroll(r)
	if err != nil {
		return err
	}
	defer unlock()
	if err := k.TakeName(r); err != nil {
		return errors.Join(err, k.Remove(r))
	}
	failpoint.Kill("lifecycle/fetch/named")
	r.Archive, r.Phase = kept, PhaseLive
	return k.Save(r, true)
}
