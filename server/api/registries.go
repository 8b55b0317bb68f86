package api

import (
	"context"

	"github.com/daytona-go/daytona/internal/wire"
	"github.com/daytona-go/daytona/server/identity"
	"github.com/daytona-go/daytona/server/objects"
	"github.com/daytona-go/daytona/server/registry"
)

func registryOf(r *registry.Registry) wire.DockerRegistry {
	return wire.DockerRegistry{ID: r.ID, Name: r.Name, URL: r.URL, Username: r.Username, Project: r.Project, RegistryType: string(r.Type),
		CreatedAt: wire.Stamp(r.CreatedAt), UpdatedAt: wire.Stamp(r.UpdatedAt)}
}

func oneRegistry(r *registry.Registry, err error) (wire.DockerRegistry, error) {
	if err != nil {
		return wire.DockerRegistry{}, err
	}
	return registryOf(r), nil
}

// RegisterRegistries serves the routes of docker-registry.
func RegisterRegistries(a *API, s *registry.Service) {
	type byID struct {
		ID string `path:"id"`
	}

	Handle(a, "createRegistry", func(ctx context.Context, in *struct{ Body wire.CreateDockerRegistry }) (wire.DockerRegistry, error) {
		b := in.Body
		r, err := s.Create(ctx, orgID(ctx), registry.Fields{Name: b.Name, URL: b.URL, Username: b.Username, Password: &b.Password, Project: b.Project})
		if err == nil {
			Note(ctx, r.ID, map[string]any{"name": r.Name, "url": r.URL})
		}
		return oneRegistry(r, err)
	})

	Handle(a, "listRegistries", func(ctx context.Context, in *struct{}) ([]wire.DockerRegistry, error) {
		list, err := s.List(ctx, orgID(ctx))
		out := make([]wire.DockerRegistry, len(list))
		for i := range list {
			out[i] = registryOf(&list[i])
		}
		return out, err
	})

	Handle(a, "getRegistry", func(ctx context.Context, in *byID) (wire.DockerRegistry, error) {
		return oneRegistry(s.Get(ctx, orgID(ctx), in.ID))
	})

	Handle(a, "updateRegistry", func(ctx context.Context, in *struct {
		ID   string `path:"id"`
		Body wire.UpdateDockerRegistry
	}) (wire.DockerRegistry, error) {
		b := in.Body
		Note(ctx, in.ID, map[string]any{"name": b.Name, "url": b.URL})
		return oneRegistry(s.Update(ctx, orgID(ctx), in.ID, registry.Fields{Name: b.Name, URL: b.URL, Username: b.Username, Password: b.Password, Project: b.Project}))
	})

	Handle(a, "deleteRegistry", func(ctx context.Context, in *byID) (None, error) {
		Note(ctx, in.ID, nil)
		return None{}, s.Delete(ctx, orgID(ctx), in.ID)
	})

	Handle(a, "getTransientPushAccess", func(ctx context.Context, in *struct {
		Region string `query:"regionId" maxLength:"255"` // one registry for all of them
	}) (wire.RegistryPushAccess, error) {
		p, err := s.PushAccess(ctx, orgID(ctx))
		if err != nil {
			return wire.RegistryPushAccess{}, err
		}
		return wire.RegistryPushAccess{Username: p.Username, Secret: p.Secret, RegistryURL: p.URL, RegistryID: p.ID, Project: p.Project, ExpiresAt: wire.Stamp(p.Expires)}, nil
	})

	Handle(a, "adminSetDefaultRegistry", func(ctx context.Context, in *byID) (wire.DockerRegistry, error) {
		Note(ctx, in.ID, nil)
		return oneRegistry(s.SetDefault(ctx, in.ID))
	})
}

// RegisterObjects serves the routes of object-storage.
func RegisterObjects(a *API, s *objects.Service) {
	Handle(a, "getPushAccess", func(ctx context.Context, in *struct{}) (wire.StorageAccess, error) {
		organization := identity.From(ctx).OrganizationID
		p, err := s.PushAccess(ctx, organization)
		if err != nil {
			return wire.StorageAccess{}, err
		}
		return wire.StorageAccess{AccessKey: p.AccessKey, Secret: p.Secret, SessionToken: p.SessionToken, StorageURL: p.URL,
			OrganizationID: organization, Bucket: p.Bucket, Region: p.Region}, nil
	})
}
