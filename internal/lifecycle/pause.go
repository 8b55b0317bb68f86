//go:build linux

package lifecycle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/failpoint"
	"github.com/daytona-go/daytona/toolbox/wire"
	"golang.org/x/sys/unix"
)

// The operations of the optional capabilities as they are called in errors.
const (
	PauseOp    = "pause sandbox"
	ResumeOp   = "resume sandbox"
	ResizeOp   = "resize sandbox"
	ForkOp     = "fork sandbox"
	ArchiveOp  = "archive sandbox"
	RestoreOp  = "restore sandbox"
	SnapshotOp = "create snapshot"
)

// Freezer is an [Engine] that can keep the processes of a sandbox from running.
type Freezer[T any] interface {
	// CanFreeze says why it cannot on this machine; nil if it can.
	CanFreeze() error
	// Freeze freezes all processes and returns when none runs any more. It must
	// not block for ever; on error none is frozen. It may be called again.
	Freeze(ctx context.Context, r *Record[T]) error
	// Thaw lets them go on. It may be called for what is not frozen, and must
	// not wait for processes.
	Thaw(r *Record[T]) error
}

// Holder is an [Engine] that can stop the processes of a sandbox for a moment
// where it cannot freeze them. What it stops must go on if this process dies.
type Holder[T any] interface {
	// Hold returns when none runs any more; release lets them go on.
	Hold(ctx context.Context, op string, r *Record[T]) (release func(), err error)
}

// Recoverer is an [Engine] whose steps have to be finished or undone if the
// process that was at them dies.
type Recoverer[T any] interface {
	// Recover brings what the sandbox has into line with the record, whose State
	// names the step that was cut off: resizing, forking, snapshotting,
	// archiving or restoring. It may change the record, but not its State, and
	// may be called again.
	Recover(r *Record[T]) error
}

// stateError says that a sandbox is not in a state for an operation.
func stateError[T any](op string, r *Record[T], hint string) error {
	return &daytona.Error{Kind: daytona.KindState, Op: op, Subject: r.Name, Message: fmt.Sprintf("it is %s; %s", r.State, hint)}
}

// freezes says why sandboxes cannot be frozen; nil if they can.
func (k *Keeper[T]) freezes() error {
	f, ok := k.engine.(Freezer[T])
	if !ok {
		return fmt.Errorf("the %s backend cannot pause", k.name)
	}
	return f.CanFreeze()
}

func (k *Keeper[T]) thaw(r *Record[T]) error {
	if f, ok := k.engine.(Freezer[T]); ok {
		return f.Thaw(r)
	}
	return nil
}

// undo takes back, or finishes, a step that whoever was at it did not finish.
func (k *Keeper[T]) undo(r *Record[T]) error {
	if rec, ok := k.engine.(Recoverer[T]); ok {
		switch r.State {
		case daytona.StatePausing, daytona.StateResuming:
		case daytona.StateArchiving:
			if p, ok := k.engine.(Packer[T]); ok && r.Packed {
				return k.discardPacked(context.Background(), p, r)
			}
			fallthrough
		default:
			if err := rec.Recover(r); err != nil {
				return err
			}
		}
	}
	switch r.State {
	case daytona.StateArchiving:
		r.State = daytona.StateStopped
	case daytona.StateRestoring:
		r.State = daytona.StateArchived
	case daytona.StatePausing, daytona.StateResuming:
		r.State = daytona.StateStarted
	default:
		r.State = r.Was
		if r.State == "" {
			r.State = daytona.StateStopped
		}
	}
	r.Was = ""
	if r.State == daytona.StateStarted && k.engine.Running(r) {
		if err := k.thaw(r); err != nil {
			return err
		}
		k.unmark(r.ID)
	}
	return k.Save(r, true)
}

// Step does a step of an operation on a record, whose lock is held: the state
// that names it is written down before, and the state that it began in is
// afterwards its state again. What f makes of the record is saved.
func (k *Keeper[T]) Step(r *Record[T], state daytona.State, f func() error) error {
	r.Was, r.State = r.State, state
	if err := k.Save(r, true); err != nil {
		r.State, r.Was = r.Was, ""
		return err
	}
	failpoint.Kill("lifecycle/step/intended")
	err := f()
	failpoint.Kill("lifecycle/step/done")
	r.State, r.Was = r.Was, ""
	return errors.Join(err, k.Save(r, true))
}

// Frozen runs f while the processes of a started sandbox, if it is, do not run.
// Its lock is held.
func (k *Keeper[T]) Frozen(ctx context.Context, op string, r *Record[T], f func() error) error {
	if !k.engine.Running(r) {
		return f()
	}
	if err := k.freezes(); err != nil {
		h, ok := k.engine.(Holder[T])
		if !ok {
			return &daytona.Error{Kind: daytona.KindUnsupported, Op: op, Subject: r.Name, Message: err.Error() + "; stop the sandbox first"}
		}
		release, err := h.Hold(ctx, op, r)
		if err != nil {
			return err
		}
		defer release()
		return f()
	}
	if err := k.engine.(Freezer[T]).Freeze(ctx, r); err != nil {
		return err
	}
	err := f()
	return errors.Join(err, k.thaw(r))
}

// Pausing is for an engine that is a [Freezer] to embed: with it, it has all of
// daytona.Pauser.
type Pausing[T any] struct{ Keeper *Keeper[T] }

// Pause implements daytona.Pauser.
func (p Pausing[T]) Pause(ctx context.Context, id string, opts daytona.PauseOptions) (daytona.Info, error) {
	k := p.Keeper
	if opts.Disk {
		return daytona.Info{}, &daytona.Error{Kind: daytona.KindUnsupported, Op: PauseOp, Field: "Disk", Value: true,
			Message: "the isolation of the " + k.name + " backend cannot write the memory of processes to disk; pause without Disk, or stop the sandbox"}
	}
	if err := k.freezes(); err != nil {
		return daytona.Info{}, &daytona.Error{Kind: daytona.KindUnsupported, Op: PauseOp, Subject: id, Message: err.Error()}
	}
	return k.Change(ctx, PauseOp, id, func(r *Record[T]) error {
		switch r.State {
		case daytona.StatePaused:
			return nil
		case daytona.StateStarted:
			return k.pause(ctx, r, nil)
		}
		return stateError(PauseOp, r, "only a started one can be paused")
	})
}

// Resume implements daytona.Pauser.
func (p Pausing[T]) Resume(ctx context.Context, id string) (daytona.Info, error) {
	k := p.Keeper
	return k.Change(ctx, ResumeOp, id, func(r *Record[T]) error {
		switch r.State {
		case daytona.StateStarted:
			return nil
		case daytona.StatePaused:
			return k.resume(ctx, r)
		}
		return stateError(ResumeOp, r, "only a paused one can be resumed")
	})
}

// pause pauses a started sandbox, unless still, asked when no request can come
// any more, says that there is something going on.
func (k *Keeper[T]) pause(ctx context.Context, r *Record[T], still func() bool) error {
	undo := func() {
		r.State = daytona.StateStarted
		k.unmark(r.ID)
		_ = k.Save(r, true)
	}
	r.State = daytona.StatePausing
	if err := k.Save(r, false); err != nil {
		r.State = daytona.StateStarted
		return err
	}
	failpoint.Kill("lifecycle/pause/intended")
	// From here on requests are refused: one that the frozen agent got would
	// hang.
	if err := os.WriteFile(k.pausedFile(r.ID), nil, 0o600); err != nil {
		undo()
		return err
	}
	if still != nil && !still() {
		undo()
		return nil
	}
	err := failpoint.Fail("lifecycle/pause/marked")
	if err == nil {
		err = k.engine.(Freezer[T]).Freeze(ctx, r)
	}
	if err != nil {
		undo()
		return err
	}
	failpoint.Kill("lifecycle/pause/frozen")
	r.State, r.StoppedAt = daytona.StatePaused, time.Now().UTC()
	return k.Save(r, true)
}

// resume lets a paused sandbox go on.
func (k *Keeper[T]) resume(_ context.Context, r *Record[T]) error {
	r.State = daytona.StateResuming
	if err := k.Save(r, false); err != nil {
		r.State = daytona.StatePaused
		return err
	}
	failpoint.Kill("lifecycle/resume/intended")
	if err := k.thaw(r); err != nil {
		r.State = daytona.StatePaused
		return errors.Join(err, k.Save(r, true))
	}
	failpoint.Kill("lifecycle/resume/thawed")
	k.unmark(r.ID)
	failpoint.Kill("lifecycle/resume/unmarked")
	r.State, r.StartedAt = daytona.StateStarted, time.Now().UTC()
	return k.Save(r, true)
}

// pauseIdle pauses a sandbox that has had no request for as long as AutoPause
// says; else again is when it could be so.
func (k *Keeper[T]) pauseIdle(ctx context.Context, r *Record[T], again *time.Duration) error {
	if err := k.freezes(); err != nil {
		return err
	}
	left := func() (time.Duration, error) {
		a, err := k.activity(ctx, r.ID)
		if err != nil {
			return time.Minute, err
		}
		if a.Open > 0 {
			return r.AutoPause, nil
		}
		// Not before the resume of one that was paused.
		idle := min(time.Duration(a.IdleMilliseconds)*time.Millisecond, time.Since(r.StartedAt))
		return r.AutoPause - idle, nil
	}
	wait, err := left()
	if err != nil || wait > 0 {
		*again = max(wait, 10*time.Millisecond)
		return err
	}
	return k.pause(ctx, r, func() bool {
		wait, err := left()
		*again = max(wait, 10*time.Millisecond)
		return err == nil && wait <= 0
	})
}

// activity asks an agent how idle it is.
func (k *Keeper[T]) activity(ctx context.Context, id string) (a wire.Activity, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent"+wire.ActivityPath, nil)
	if err != nil {
		return a, err
	}
	req.Header.Set(wire.HeaderSkipActivity, "true")
	t := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return k.engine.Dial(ctx, id) }}
	resp, err := t.RoundTrip(req)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return a, fmt.Errorf("agent: %s to %s", resp.Status, wire.ActivityPath)
	}
	return a, json.NewDecoder(io.LimitReader(resp.Body, 4096)).Decode(&a)
}

func (k *Keeper[T]) pausedFile(id string) string { return k.File(id, "paused") }

// unmark ends the refusing of requests.
func (k *Keeper[T]) unmark(id string) {
	if err := os.Remove(k.pausedFile(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		k.log.Warn("the mark of a paused sandbox could not be removed", "sandbox", id, "err", err)
	}
}

// refusePaused is the error for a request to a sandbox that is paused; nil if it
// is not.
func (k *Keeper[T]) refusePaused(id string) error {
	if !ValidID(id) || unix.Access(k.pausedFile(id), unix.F_OK) != nil {
		return nil
	}
	r, err := k.Load(id)
	if err != nil {
		return nil
	}
	return stateError(DialOp, r, "resume it first")
}

// agentConn is a connection to an agent on which no request begins while the
// sandbox is paused: a frozen agent would let it hang. A request begins with the
// first thing that is written, or written after something was read.
type agentConn struct {
	net.Conn
	refuse func() error
	within atomic.Bool // of a request
}

func (c *agentConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.within.Store(false)
	}
	return n, err
}

func (c *agentConn) Write(p []byte) (int, error) {
	if !c.within.Swap(true) {
		if err := c.refuse(); err != nil {
			return 0, err
		}
	}
	return c.Conn.Write(p)
}

// CloseWrite ends what is written, where the connection can.
func (c *agentConn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return errors.ErrUnsupported
}
