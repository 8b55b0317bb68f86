package executor

import (
	"context"
	"errors"
	"io"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/objects/s3"
	"github.com/daytona-go/daytona/internal/wire"
)

// A parcel is a snapshot in the server's object storage, by which other runners
// have it.

// mover is the backend as far as it can send and receive parcels.
func (e *Executor) mover() (daytona.SnapshotMover, error) {
	m, ok := daytona.As[daytona.SnapshotMover](e.c.Client.Backend())
	if !ok {
		return nil, &daytona.Error{Kind: daytona.KindUnsupported, Message: "the backend " + e.c.Client.Backend().Name() + " can't exchange snapshots with other machines"}
	}
	return m, nil
}

func openParcel(p *wire.JobParcel) (*s3.Store, error) {
	return s3.Open(daytona.S3Location{
		Endpoint: p.S3.Endpoint, Region: p.S3.Region, Bucket: p.S3.Bucket, Prefix: p.S3.Prefix,
		AccessKey: p.S3.AccessKey, SecretKey: p.S3.SecretKey, SessionToken: p.S3.SessionToken,
	}, nil)
}

// send puts a snapshot into the object storage. What is there of an earlier try
// is replaced.
func (e *Executor) send(ctx context.Context, ref string, p *wire.JobParcel) error {
	m, err := e.mover()
	if err != nil {
		return err
	}
	store, err := openParcel(p)
	if err != nil {
		return err
	}
	in, out := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := m.ExportSnapshot(ctx, ref, out)
		out.CloseWithError(err)
		done <- err
	}()
	err = store.Put(ctx, p.Key, in)
	in.CloseWithError(errors.New("it is not read any more"))
	if exported := <-done; err == nil {
		err = exported
	}
	return err
}

// fetch makes sure that the backend has a snapshot, of a parcel if it has none.
func (e *Executor) fetch(ctx context.Context, ref string, p *wire.JobParcel) (any, error) {
	snapshots, err := e.c.Client.Snapshots()
	if err != nil {
		return nil, err
	}
	s, err := e.existing(ctx, snapshots, ref)
	if errors.Is(err, daytona.ErrNotFound) {
		s, err = e.receive(ctx, ref, p)
		if errors.Is(err, daytona.ErrConflict) {
			if have, getErr := e.existing(ctx, snapshots, ref); getErr == nil {
				s, err = have, nil
			}
		}
	}
	if err != nil {
		return nil, err
	}
	return resultOf(s), nil
}

func (e *Executor) receive(ctx context.Context, ref string, p *wire.JobParcel) (daytona.Snapshot, error) {
	m, err := e.mover()
	if err != nil {
		return daytona.Snapshot{}, err
	}
	store, err := openParcel(p)
	if err != nil {
		return daytona.Snapshot{}, err
	}
	r, err := store.Get(ctx, p.Key)
	if err != nil {
		return daytona.Snapshot{}, err
	}
	defer r.Close()
	return m.ImportSnapshot(e.credentials(ctx, p.Registries...), ref, r)
}

// backup keeps a sandbox's present files, in the object storage if the job says
// where.
func (e *Executor) backup(ctx context.Context, id string, p *wire.JobBackup) (any, error) {
	r, err := e.keep(ctx, id, p.Snapshot)
	if err != nil || p.Parcel == nil {
		return r, err
	}
	err = e.send(ctx, p.Snapshot, p.Parcel)
	// Nobody needs it here any more; if it failed, the next backup is a new one.
	if gone := e.removeSnapshot(context.WithoutCancel(ctx), p.Snapshot); err == nil && gone != nil {
		e.log.Warn("what is kept elsewhere can't be removed from this machine", "snapshot", p.Snapshot, "err", gone)
	}
	r.Parcelled = true
	return r, err
}

// capture makes a snapshot of a sandbox, and puts it into the object storage as
// well if the job says where; if that fails, it is on this runner only.
func (e *Executor) capture(ctx context.Context, id, ref string, p *wire.JobParcel) (any, error) {
	r, err := e.keep(ctx, id, ref)
	if err != nil || p == nil {
		return r, err
	}
	if err := e.send(ctx, ref, p); err != nil {
		if ctx.Err() != nil {
			return nil, err
		}
		e.log.Warn("a snapshot can't be put where other runners have it", "snapshot", ref, "err", err)
		return r, nil
	}
	r.Parcelled = true
	return r, nil
}
