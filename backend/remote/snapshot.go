package remote

import (
	"context"
	"iter"
	"net/http"
	"net/url"
	"slices"
	"strconv"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/wire"
)

const snapshotOp = "create snapshot"

// sizeOf is a snapshot's size in bytes; the wire has GiB.
func sizeOf(s wire.Snapshot) int64 {
	if s.Size == nil {
		return 0
	}
	return int64(*s.Size * daytona.GiB)
}

func snapshotInfo(s wire.Snapshot) daytona.Snapshot {
	i := daytona.Snapshot{
		ID: s.ID, Name: s.Name, State: daytona.SnapshotState(s.State), Entrypoint: s.Entrypoint,
		Resources: daytona.Resources{CPU: s.CPU, Memory: s.Mem, Disk: s.Disk, GPU: int(s.GPU)},
		SizeBytes: sizeOf(s), CreatedAt: timeOf(&s.CreatedAt), UpdatedAt: timeOf(&s.UpdatedAt), LastUsedAt: timeOf(s.LastUsedAt),
	}
	if s.ErrorReason != nil {
		i.Reason = *s.ErrorReason
	}
	if s.SourceSandboxID != nil {
		i.Sandbox = *s.SourceSandboxID
	}
	switch {
	case s.ImageName != nil && *s.ImageName != "":
		i.Image = *s.ImageName
	case s.BuildInfo != nil:
		i.Image = s.BuildInfo.SnapshotRef
	}
	return i
}

func (b *backend) snapshot(ctx context.Context, op, idOrName string) (s wire.Snapshot, err error) {
	if idOrName == "" {
		return s, &daytona.Error{Kind: daytona.KindNotFound, Op: op, Message: "there is no snapshot without a name"}
	}
	err = b.do(ctx, call{op: op, subject: idOrName, method: http.MethodGet, path: "/snapshots/" + segment(idOrName), out: &s})
	return s, err
}

// settleSnapshot waits until a snapshot is active. An error state is an error of
// KindInternal.
func (b *backend) settleSnapshot(ctx context.Context, op string, s wire.Snapshot) (wire.Snapshot, error) {
	id, subject := s.ID, s.Name
	err := poll(ctx, op, subject, func() (bool, error) {
		switch s.State {
		case wire.SnapshotStateActive, wire.SnapshotStateInactive:
			return true, nil
		case wire.SnapshotStateError, wire.SnapshotStateBuildFailed:
			reason := "the server gives no reason"
			if s.ErrorReason != nil && *s.ErrorReason != "" {
				reason = *s.ErrorReason
			}
			return true, &daytona.Error{Kind: daytona.KindInternal, Op: op, Subject: subject, Message: reason}
		case wire.SnapshotStateRemoving:
			return true, &daytona.Error{Kind: daytona.KindNotFound, Op: op, Subject: subject, Message: "the snapshot was removed meanwhile"}
		}
		next, err := b.snapshot(ctx, op, id)
		if err != nil {
			return true, err
		}
		s = next
		return false, nil
	})
	return s, err
}

func (b *backend) CreateSnapshot(ctx context.Context, spec daytona.SnapshotSpec) (daytona.Snapshot, error) {
	if spec.Sandbox != "" {
		return b.snapshotOf(ctx, spec)
	}
	r, err := resourcesOf(snapshotOp, spec.Resources)
	if err != nil {
		return daytona.Snapshot{}, err
	}
	in := wire.CreateSnapshot{Name: spec.Name, CPU: r.cpu, Memory: r.memory, Disk: r.disk, GPU: r.gpu}
	if b.opts.Target != "" {
		in.RegionID = new(b.opts.Target)
	}
	if builtRef.MatchString(spec.Image) {
		if in.BuildInfo, err = b.buildOf(ctx, snapshotOp, spec.Image); err != nil {
			return daytona.Snapshot{}, err
		}
		more, err := instructions(daytona.Spec{Entrypoint: spec.Entrypoint}) // which a build may not have apart
		if err != nil {
			return daytona.Snapshot{}, err
		}
		in.BuildInfo.DockerfileContent += more
	} else {
		if _, err := fromImage(snapshotOp, spec.Image); err != nil {
			return daytona.Snapshot{}, err
		}
		in.ImageName, in.Entrypoint = new(spec.Image), spec.Entrypoint
	}
	var s wire.Snapshot
	if err := b.do(ctx, call{op: snapshotOp, subject: spec.Name, method: http.MethodPost, path: "/snapshots", in: in, out: &s}); err != nil {
		return daytona.Snapshot{}, missing(err)
	}
	if spec.OnProgress != nil {
		spec.OnProgress(daytona.Progress{Stage: "the server makes " + spec.Name})
	}
	return b.finish(ctx, s)
}

// finish waits for a snapshot, and removes it if it has failed.
func (b *backend) finish(ctx context.Context, s wire.Snapshot) (daytona.Snapshot, error) {
	done, err := b.settleSnapshot(ctx, snapshotOp, s)
	if err != nil {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
		defer cancel()
		if gone := b.removeSnapshot(clean, snapshotOp, s); gone != nil && daytonaKind(gone) != daytona.KindNotFound {
			b.log.Error("a snapshot that failed is left behind", "snapshot", s.Name, "error", gone)
		}
		return daytona.Snapshot{}, missing(err)
	}
	return snapshotInfo(done), nil
}

// snapshotOf makes a snapshot of a sandbox. The wire says of it when it is done,
// and that only by name.
func (b *backend) snapshotOf(ctx context.Context, spec daytona.SnapshotSpec) (daytona.Snapshot, error) {
	switch {
	case len(spec.Entrypoint) > 0:
		return daytona.Snapshot{}, unsupported(snapshotOp, "Entrypoint", spec.Entrypoint, "a snapshot of a sandbox has the sandbox's")
	case spec.Resources != daytona.Resources{}:
		return daytona.Snapshot{}, unsupported(snapshotOp, "Resources", nil, "a snapshot of a sandbox has the sandbox's")
	}
	// A snapshot of that name that is there already would be taken for the new one.
	if _, err := b.snapshot(ctx, snapshotOp, spec.Name); err == nil {
		return daytona.Snapshot{}, &daytona.Error{Kind: daytona.KindConflict, Op: snapshotOp, Subject: spec.Name, Message: "there is a snapshot of that name"}
	} else if daytonaKind(err) != daytona.KindNotFound {
		return daytona.Snapshot{}, err
	}
	before, err := b.get(ctx, snapshotOp, spec.Sandbox)
	if err != nil {
		return daytona.Snapshot{}, err
	}
	err = b.free(ctx, snapshotOp, spec.Sandbox, func() error {
		return b.do(ctx, call{op: snapshotOp, subject: spec.Sandbox, method: http.MethodPost, path: "/sandbox/" + segment(before.ID) + "/snapshot", in: wire.CreateSandboxSnapshot{Name: spec.Name}})
	})
	if err != nil {
		return daytona.Snapshot{}, err
	}
	// It is done when the sandbox is what it was; only then does a snapshot that is
	// not there mean that it has failed.
	settled := false
	var s wire.Snapshot
	err = poll(ctx, snapshotOp, spec.Name, func() (bool, error) {
		var err error
		if s, err = b.snapshot(ctx, snapshotOp, spec.Name); err == nil {
			return true, nil
		}
		if daytonaKind(err) != daytona.KindNotFound {
			return true, err
		}
		if settled {
			return true, &daytona.Error{Kind: daytona.KindInternal, Op: snapshotOp, Subject: spec.Name, Message: "the server made no snapshot"}
		}
		now, err := b.get(ctx, snapshotOp, before.ID)
		if err != nil {
			return true, err
		}
		if info := b.info(now); info.State == daytona.StateError {
			return true, &daytona.Error{Kind: daytona.KindInternal, Op: snapshotOp, Subject: spec.Name, Message: "the sandbox is in an error state: " + info.Reason}
		} else {
			settled = info.State == daytona.StateStarted || info.State == daytona.StateStopped
		}
		return false, nil
	})
	if err != nil {
		return daytona.Snapshot{}, err
	}
	made, err := b.finish(ctx, s)
	if err != nil {
		return made, err
	}
	if now, err := b.get(ctx, snapshotOp, before.ID); err == nil {
		if _, err := b.settle(ctx, snapshotOp, now, daytona.StateStarted, daytona.StateStopped, daytona.StatePaused); err != nil {
			return made, err
		}
	}
	return made, nil
}

func (b *backend) GetSnapshot(ctx context.Context, idOrName string) (daytona.Snapshot, error) {
	s, err := b.snapshot(ctx, "get snapshot", idOrName)
	if err != nil {
		return daytona.Snapshot{}, err
	}
	return snapshotInfo(s), nil
}

// ListSnapshots reads all pages first: the server's order has those of others
// at its end.
func (b *backend) ListSnapshots(ctx context.Context) iter.Seq2[daytona.Snapshot, error] {
	return func(yield func(daytona.Snapshot, error) bool) {
		var all []daytona.Snapshot
		for page := 1; ; page++ {
			var p wire.PaginatedSnapshots
			query := url.Values{"page": {strconv.Itoa(page)}, "limit": {"200"}, "sort": {"createdAt"}, "order": {"asc"}}
			if err := b.do(ctx, call{op: "list snapshots", method: http.MethodGet, path: "/snapshots", query: query, out: &p}); err != nil {
				yield(daytona.Snapshot{}, err)
				return
			}
			for _, s := range p.Items {
				all = append(all, snapshotInfo(s))
			}
			if len(p.Items) == 0 || page >= int(p.TotalPages) {
				break
			}
		}
		slices.SortStableFunc(all, func(a, b daytona.Snapshot) int { return a.CreatedAt.Compare(b.CreatedAt) })
		all = slices.CompactFunc(all, func(a, b daytona.Snapshot) bool { return a.ID == b.ID })
		for _, s := range all {
			if !yield(s, nil) {
				return
			}
		}
	}
}

func (b *backend) DeleteSnapshot(ctx context.Context, idOrName string) error {
	const op = "delete snapshot"
	s, err := b.snapshot(ctx, op, idOrName)
	if err != nil {
		return err
	}
	return b.removeSnapshot(ctx, op, s)
}

// removeSnapshot deletes a snapshot and waits until it is gone.
func (b *backend) removeSnapshot(ctx context.Context, op string, s wire.Snapshot) error {
	if s.State != wire.SnapshotStateRemoving {
		if err := b.do(ctx, call{op: op, subject: s.Name, method: http.MethodDelete, path: "/snapshots/" + segment(s.ID)}); err != nil {
			return err
		}
	}
	b.mu.Lock()
	delete(b.builds, s.Name)
	b.mu.Unlock()
	return poll(ctx, op, s.Name, func() (bool, error) {
		_, err := b.snapshot(ctx, op, s.ID)
		if daytonaKind(err) == daytona.KindNotFound {
			return true, nil
		}
		return err != nil, err
	})
}

func (b *backend) SetSnapshotActive(ctx context.Context, idOrName string, active bool) (daytona.Snapshot, error) {
	const op = "set snapshot active"
	s, err := b.snapshot(ctx, op, idOrName)
	if err != nil {
		return daytona.Snapshot{}, err
	}
	want, verb := wire.SnapshotStateInactive, "deactivate"
	if active {
		want, verb = wire.SnapshotStateActive, "activate"
	}
	if s.State == want {
		return snapshotInfo(s), nil
	}
	if err := b.do(ctx, call{op: op, subject: s.Name, method: http.MethodPost, path: "/snapshots/" + segment(s.ID) + "/" + verb}); err != nil {
		return daytona.Snapshot{}, err
	}
	err = poll(ctx, op, s.Name, func() (bool, error) {
		if s, err = b.snapshot(ctx, op, s.ID); err != nil {
			return true, err
		}
		if s.State == wire.SnapshotStateError {
			_, err := b.settleSnapshot(ctx, op, s)
			return true, err
		}
		return s.State == want, nil
	})
	if err != nil {
		return daytona.Snapshot{}, err
	}
	return snapshotInfo(s), nil
}
