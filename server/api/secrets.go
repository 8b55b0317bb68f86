package api

import (
	"context"

	"github.com/daytona-go/daytona/internal/wire"
	"github.com/daytona-go/daytona/server/secret"
)

// RegisterSecrets serves the secrets of organizations.
func RegisterSecrets(a *API, s *secret.Service) {
	type InSecret struct {
		ID string `path:"secretId"`
	}
	one := func(v *secret.Secret, err error) (wire.Secret, error) {
		if err != nil {
			return wire.Secret{}, err
		}
		return secretWire(v), nil
	}
	list := func(all []secret.Secret) []wire.Secret {
		out := make([]wire.Secret, len(all))
		for i := range all {
			out[i] = secretWire(&all[i])
		}
		return out
	}
	Handle(a, "createSecret", func(ctx context.Context, in *struct{ Body wire.CreateSecret }) (wire.Secret, error) {
		b := in.Body
		v, err := s.Create(ctx, orgID(ctx), secret.NewSecret{Name: b.Name, Value: b.Value, Description: b.Description, Hosts: b.Hosts})
		if err == nil {
			Note(ctx, v.ID, map[string]any{"name": v.Name, "hosts": v.Hosts})
		}
		return one(v, err)
	})
	Handle(a, "listSecrets", func(ctx context.Context, _ *struct{}) ([]wire.Secret, error) {
		all, err := s.All(ctx, orgID(ctx))
		return list(all), err
	})
	Handle(a, "listSecretsPaginated", func(ctx context.Context, in *struct {
		Cursor string `query:"cursor"`
		Limit  int    `query:"limit" minimum:"1" maximum:"200" default:"100"`
		Name   string `query:"name"`
		Sort   string `query:"sort" enum:"name,createdAt,updatedAt" default:"createdAt"`
		Order  string `query:"order" enum:"asc,desc" default:"desc"`
	}) (wire.ListSecretsResponse, error) {
		all, total, next, err := s.List(ctx, orgID(ctx), secret.Page{Cursor: in.Cursor, Limit: in.Limit, Name: in.Name, Sort: in.Sort, Order: in.Order})
		return wire.ListSecretsResponse{Items: list(all), Total: float64(total), NextCursor: ptr(next)}, err
	})
	Handle(a, "getSecret", func(ctx context.Context, in *InSecret) (wire.Secret, error) {
		return one(s.Get(ctx, orgID(ctx), in.ID))
	})
	Handle(a, "updateSecret", func(ctx context.Context, in *struct {
		InSecret
		Body wire.UpdateSecret
	}) (wire.Secret, error) {
		b := in.Body
		return one(s.Update(ctx, orgID(ctx), in.ID, secret.Change{Value: b.Value, Description: b.Description, Hosts: b.Hosts}))
	})
	Handle(a, "deleteSecret", func(ctx context.Context, in *InSecret) (None, error) {
		return None{}, s.Delete(ctx, orgID(ctx), in.ID)
	})
}

// secretWire is a secret as the wire has it: without its value.
func secretWire(v *secret.Secret) wire.Secret {
	return wire.Secret{
		ID: v.ID, Name: v.Name, Description: v.Description, Placeholder: v.Placeholder, Hosts: v.Hosts,
		CreatedAt: wire.Stamp(v.CreatedAt), UpdatedAt: wire.Stamp(v.UpdatedAt),
	}
}
