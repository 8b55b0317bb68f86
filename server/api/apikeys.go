package api

import (
	"context"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/wire"
	"github.com/daytona-go/daytona/server/apikey"
	"github.com/daytona-go/daytona/server/identity"
)

// RegisterAPIKeys serves the API keys of users.
func RegisterAPIKeys(a *API, s *apikey.Service) {
	Handle(a, "createApiKey", func(ctx context.Context, in *struct{ Body wire.CreateAPIKey }) (wire.APIKeyResponse, error) {
		n := apikey.NewKey{Name: in.Body.Name}
		for _, p := range in.Body.Permissions {
			n.Permissions = append(n.Permissions, identity.Permission(p))
		}
		if in.Body.ExpiresAt != nil {
			t, err := time.Parse(time.RFC3339, *in.Body.ExpiresAt)
			if err != nil {
				return wire.APIKeyResponse{}, &daytona.Error{Kind: daytona.KindInvalid, Message: "expiresAt must be a date in ISO 8601 format: " + *in.Body.ExpiresAt}
			}
			n.ExpiresAt = &t
		}
		k, value, err := s.Create(ctx, identity.From(ctx), n)
		if err != nil {
			return wire.APIKeyResponse{}, err
		}
		Note(ctx, k.Name, map[string]any{"permissions": k.Permissions})
		return wire.APIKeyResponse{
			Name: k.Name, Value: value, CreatedAt: wire.Stamp(k.CreatedAt), Permissions: permissionNames(k), ExpiresAt: wire.StampOf(k.ExpiresAt),
		}, nil
	})
	Handle(a, "listApiKeys", func(ctx context.Context, _ *struct{}) ([]wire.APIKeyList, error) {
		keys, err := s.List(ctx, identity.From(ctx))
		if err != nil {
			return nil, err
		}
		out := make([]wire.APIKeyList, len(keys))
		for i := range keys {
			out[i] = apiKey(&keys[i])
		}
		return out, nil
	})
	Handle(a, "getCurrentApiKey", func(ctx context.Context, _ *struct{}) (wire.APIKeyList, error) {
		k, err := s.Current(ctx, identity.From(ctx))
		if err != nil {
			return wire.APIKeyList{}, err
		}
		return apiKey(k), nil
	})
	type named struct {
		Name string `path:"name"`
	}
	Handle(a, "getApiKey", func(ctx context.Context, in *named) (wire.APIKeyList, error) {
		k, err := s.Get(ctx, identity.From(ctx), in.Name)
		if err != nil {
			return wire.APIKeyList{}, err
		}
		return apiKey(k), nil
	})
	Handle(a, "deleteApiKey", func(ctx context.Context, in *named) (None, error) {
		p := identity.From(ctx)
		Note(ctx, in.Name, nil)
		return None{}, s.Delete(ctx, p, p.UserID, in.Name)
	})
	Handle(a, "deleteApiKeyForUser", func(ctx context.Context, in *struct {
		UserID string `path:"userId"`
		Name   string `path:"name"`
	}) (None, error) {
		Note(ctx, in.Name, map[string]any{"userId": in.UserID})
		return None{}, s.Delete(ctx, identity.From(ctx), in.UserID, in.Name)
	})
}

func permissionNames(k *apikey.Key) []string {
	out := make([]string, len(k.Permissions))
	for i, p := range k.Permissions {
		out[i] = string(p)
	}
	return out
}

func apiKey(k *apikey.Key) wire.APIKeyList {
	return wire.APIKeyList{
		Name: k.Name, Value: k.Masked(), CreatedAt: wire.Stamp(k.CreatedAt), Permissions: permissionNames(k),
		LastUsedAt: wire.StampOf(k.LastUsedAt), ExpiresAt: wire.StampOf(k.ExpiresAt), UserID: k.UserID,
	}
}
