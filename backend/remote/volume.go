package remote

import (
	"context"
	"iter"
	"net/http"
	"slices"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/wire"
)

const volumeOp = "create volume"

func volumeInfo(v wire.Volume) daytona.Volume {
	return daytona.Volume{ID: v.ID, Name: v.Name, Kind: daytona.VolumeDirectory, CreatedAt: timeOf(&v.CreatedAt), LastUsedAt: timeOf(v.LastUsedAt)}
}

// CreateVolume makes a volume. Where its files are, the server decides: to those
// who mount it, it is a directory.
func (b *backend) CreateVolume(ctx context.Context, spec daytona.VolumeSpec) (daytona.Volume, error) {
	if err := spec.Validate(); err != nil {
		return daytona.Volume{}, err
	}
	switch {
	case spec.Kind == daytona.VolumeS3:
		return daytona.Volume{}, unsupported(volumeOp, "Kind", string(spec.Kind), "where the files of a volume are, the server decides")
	case spec.Quota != 0:
		return daytona.Volume{}, unsupported(volumeOp, "Quota", spec.Quota, "the wire has none")
	}
	var v wire.Volume
	if err := b.do(ctx, call{op: volumeOp, subject: spec.Name, method: http.MethodPost, path: "/volumes", in: wire.CreateVolume{Name: spec.Name}, out: &v}); err != nil {
		return daytona.Volume{}, err
	}
	id := v.ID
	err := poll(ctx, volumeOp, spec.Name, func() (bool, error) {
		switch v.State {
		case wire.VolumeStateReady:
			return true, nil
		case wire.VolumeStateError:
			reason := "the server gives no reason"
			if v.ErrorReason != nil {
				reason = *v.ErrorReason
			}
			return true, &daytona.Error{Kind: daytona.KindInternal, Op: volumeOp, Subject: spec.Name, Message: reason}
		}
		var err error
		v, err = b.volume(ctx, volumeOp, id, "")
		return err != nil, err
	})
	if err != nil {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
		defer cancel()
		if gone := b.removeVolume(clean, volumeOp, id); gone != nil && daytonaKind(gone) != daytona.KindNotFound {
			b.log.Error("a volume that failed is left behind", "volume", spec.Name, "error", gone)
		}
		return daytona.Volume{}, err
	}
	return volumeInfo(v), nil
}

// volume finds a volume by id, unless that is empty, or else by name.
func (b *backend) volume(ctx context.Context, op, id, byName string) (v wire.Volume, err error) {
	subject, err := id, error(&daytona.Error{Kind: daytona.KindNotFound, Op: op, Subject: byName, Message: "there is no volume without a name"})
	if id != "" {
		err = b.do(ctx, call{op: op, subject: subject, method: http.MethodGet, path: "/volumes/" + segment(id), out: &v})
	}
	// What is no id may be refused as such.
	if k := daytonaKind(err); byName != "" && (k == daytona.KindNotFound || k == daytona.KindInvalid) {
		err = b.do(ctx, call{op: op, subject: byName, method: http.MethodGet, path: "/volumes/by-name/" + segment(byName), out: &v})
	}
	if err == nil && v.State == wire.VolumeStateDeleted {
		err = &daytona.Error{Kind: daytona.KindNotFound, Op: op, Subject: subject, Message: "the volume is deleted"}
	}
	return v, err
}

func (b *backend) GetVolume(ctx context.Context, idOrName string) (daytona.Volume, error) {
	v, err := b.volume(ctx, "get volume", idOrName, idOrName)
	if err != nil {
		return daytona.Volume{}, err
	}
	return volumeInfo(v), nil
}

func (b *backend) ListVolumes(ctx context.Context) iter.Seq2[daytona.Volume, error] {
	return func(yield func(daytona.Volume, error) bool) {
		var list []wire.Volume
		if err := b.do(ctx, call{op: "list volumes", method: http.MethodGet, path: "/volumes", out: &list}); err != nil {
			yield(daytona.Volume{}, err)
			return
		}
		slices.SortStableFunc(list, func(a, b wire.Volume) int { return timeOf(&a.CreatedAt).Compare(timeOf(&b.CreatedAt)) })
		for _, v := range list {
			if v.State != wire.VolumeStateDeleted && !yield(volumeInfo(v), nil) {
				return
			}
		}
	}
}

func (b *backend) DeleteVolume(ctx context.Context, idOrName string) error {
	const op = "delete volume"
	v, err := b.volume(ctx, op, idOrName, idOrName)
	if err != nil {
		return err
	}
	return b.removeVolume(ctx, op, v.ID)
}

// removeVolume deletes a volume and waits until it is gone.
func (b *backend) removeVolume(ctx context.Context, op, id string) error {
	if err := b.do(ctx, call{op: op, subject: id, method: http.MethodDelete, path: "/volumes/" + segment(id)}); err != nil {
		return err
	}
	return poll(ctx, op, id, func() (bool, error) {
		v, err := b.volume(ctx, op, id, "")
		switch {
		case daytonaKind(err) == daytona.KindNotFound:
			return true, nil
		case err == nil && v.State == wire.VolumeStateError:
			return true, &daytona.Error{Kind: daytona.KindInternal, Op: op, Subject: id, Message: "the server failed"}
		}
		return err != nil, err
	})
}
