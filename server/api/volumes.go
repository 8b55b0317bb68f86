package api

import (
	"context"

	"github.com/daytona-go/daytona/internal/wire"
	"github.com/daytona-go/daytona/server/volume"
)

// VolumeWire is a volume as the wire has it.
func VolumeWire(v *volume.Volume) wire.Volume {
	w := wire.Volume{
		ID: v.ID, Name: v.Name, OrganizationID: v.OrganizationID, State: string(v.State),
		CreatedAt: wire.Stamp(v.CreatedAt), UpdatedAt: wire.Stamp(v.UpdatedAt), LastUsedAt: wire.StampOf(v.LastUsedAt),
	}
	if v.Reason != "" {
		w.ErrorReason = &v.Reason
	}
	return w
}

func oneVolume(v *volume.Volume, err error) (wire.Volume, error) {
	if err != nil {
		return wire.Volume{}, err
	}
	return VolumeWire(v), nil
}

// RegisterVolumes serves the routes of volumes.
func RegisterVolumes(a *API, s *volume.Service) {
	type byID struct {
		ID string `path:"volumeId"`
	}

	Handle(a, "listVolumes", func(ctx context.Context, in *struct {
		Deleted bool `query:"includeDeleted"`
	}) ([]wire.Volume, error) {
		list, err := s.List(ctx, orgID(ctx), in.Deleted)
		out := make([]wire.Volume, len(list))
		for i := range list {
			out[i] = VolumeWire(&list[i])
		}
		return out, err
	})

	Handle(a, "createVolume", func(ctx context.Context, in *struct{ Body wire.CreateVolume }) (wire.Volume, error) {
		v, err := s.Create(ctx, orgID(ctx), in.Body.Name)
		if err == nil {
			Note(ctx, v.ID, map[string]any{"name": v.Name})
		}
		return oneVolume(v, err)
	})

	Handle(a, "getVolume", func(ctx context.Context, in *byID) (wire.Volume, error) {
		return oneVolume(s.Get(ctx, orgID(ctx), in.ID))
	})

	Handle(a, "getVolumeByName", func(ctx context.Context, in *struct {
		Name string `path:"name"`
	}) (wire.Volume, error) {
		return oneVolume(s.ByName(ctx, orgID(ctx), in.Name))
	})

	Handle(a, "deleteVolume", func(ctx context.Context, in *byID) (None, error) {
		Note(ctx, in.ID, nil)
		return None{}, s.Delete(ctx, orgID(ctx), in.ID)
	})
}
