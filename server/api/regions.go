package api

import (
	"context"

	"github.com/daytona-go/daytona/internal/wire"
	"github.com/daytona-go/daytona/server/region"
)

// RegisterRegions serves regions.
func RegisterRegions(a *API, s *region.Service) {
	type inRegion struct {
		ID string `path:"id"`
	}
	list := func(all []region.Region, err error) ([]wire.Region, error) {
		if err != nil {
			return nil, err
		}
		return wireAll(all, func(r *region.Region) (wire.Region, error) { return regionWire(r), nil })
	}
	Handle(a, "listSharedRegions", func(ctx context.Context, _ *struct{}) ([]wire.Region, error) { return list(s.AllShared(ctx)) })
	Handle(a, "listAvailableRegions", func(ctx context.Context, _ *struct{}) ([]wire.Region, error) {
		return list(s.Available(ctx, orgID(ctx)))
	})
	Handle(a, "getRegionById", func(ctx context.Context, in *inRegion) (wire.Region, error) {
		r, err := s.Visible(ctx, orgID(ctx), in.ID)
		if err != nil {
			return wire.Region{}, err
		}
		return regionWire(r), nil
	})
	Handle(a, "createRegion", func(ctx context.Context, in *struct{ Body wire.CreateRegion }) (wire.CreateRegionResponse, error) {
		b := in.Body
		r, k, err := s.Create(ctx, orgID(ctx), b.Name, region.Change{
			ProxyURL: b.ProxyURL, SSHGatewayURL: b.SSHGatewayURL, SnapshotManagerURL: b.SnapshotManagerURL, OTelEndpoint: b.OTelEndpoint,
		})
		if err != nil {
			return wire.CreateRegionResponse{}, err
		}
		Note(ctx, r.ID, map[string]any{"name": r.Name})
		w := wire.CreateRegionResponse{ID: r.ID, ProxyAPIKey: ptr(k.Proxy), SSHGatewayAPIKey: ptr(k.SSHGateway), SnapshotManagerPassword: ptr(k.SnapshotManager)}
		if k.SnapshotManager != "" {
			w.SnapshotManagerUsername = new(region.SnapshotManagerUser)
		}
		return w, nil
	})
	Handle(a, "updateRegion", func(ctx context.Context, in *struct {
		ID      string `path:"id"`
		Body    wire.UpdateRegion
		RawBody []byte
	}) (None, error) {
		b := in.Body
		c := region.Change{ProxyURL: b.ProxyURL, SSHGatewayURL: b.SSHGatewayURL, SnapshotManagerURL: b.SnapshotManagerURL, OTelEndpoint: b.OTelEndpoint}
		// A null removes what is there.
		sent := sentFields(in.RawBody)
		for field, v := range map[string]**string{
			"proxyUrl": &c.ProxyURL, "sshGatewayUrl": &c.SSHGatewayURL, "snapshotManagerUrl": &c.SnapshotManagerURL, "otelEndpoint": &c.OTelEndpoint,
		} {
			if _, ok := sent[field]; ok && *v == nil {
				*v = new("")
			}
		}
		_, err := s.Update(ctx, orgID(ctx), in.ID, c)
		return None{}, err
	})
	Handle(a, "deleteRegion", func(ctx context.Context, in *inRegion) (None, error) {
		return None{}, s.Delete(ctx, orgID(ctx), in.ID)
	})
	Handle(a, "regenerateProxyApiKey", func(ctx context.Context, in *inRegion) (wire.RegenerateAPIKeyResponse, error) {
		key, err := s.RegenerateProxyKey(ctx, orgID(ctx), in.ID)
		return wire.RegenerateAPIKeyResponse{APIKey: key}, err
	})
	Handle(a, "regenerateSshGatewayApiKey", func(ctx context.Context, in *inRegion) (wire.RegenerateAPIKeyResponse, error) {
		key, err := s.RegenerateSSHGatewayKey(ctx, orgID(ctx), in.ID)
		return wire.RegenerateAPIKeyResponse{APIKey: key}, err
	})
	Handle(a, "regenerateSnapshotManagerCredentials", func(ctx context.Context, in *inRegion) (wire.SnapshotManagerCredentials, error) {
		password, err := s.RegenerateSnapshotManager(ctx, orgID(ctx), in.ID)
		return wire.SnapshotManagerCredentials{Username: region.SnapshotManagerUser, Password: password}, err
	})
}

func regionWire(r *region.Region) wire.Region {
	return wire.Region{
		ID: r.ID, Name: r.Name, OrganizationID: ptr(r.OrganizationID), RegionType: r.Type, CreatedAt: wire.Stamp(r.CreatedAt), UpdatedAt: wire.Stamp(r.UpdatedAt),
		ProxyURL: ptr(r.ProxyURL), SSHGatewayURL: ptr(r.SSHGatewayURL), SnapshotManagerURL: ptr(r.SnapshotManagerURL), OTelEndpoint: ptr(r.OTelEndpoint),
	}
}
