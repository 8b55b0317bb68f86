package api

import (
	"context"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/wire"
	"github.com/daytona-go/daytona/server/identity"
	users "github.com/daytona-go/daytona/server/user"
)

// Accounts is what an identity provider can do for users beside logging them
// in.
type Accounts interface {
	// Providers returns those whose accounts can be linked to a user.
	Providers(ctx context.Context) ([]wire.AccountProvider, error)
	// Link makes an account of a provider a user's, if the provider says that
	// both are the same person's.
	Link(ctx context.Context, userID, provider, providerUserID string) error
	// EnrollSMS returns the URL at which a user sets up a second factor.
	EnrollSMS(ctx context.Context, userID string) (string, error)
}

// PersonalQuota sets the quota of a personal organization.
type PersonalQuota interface {
	// Together runs f so that all it does with its context is done, or nothing.
	Together(ctx context.Context, f func(ctx context.Context) error) error
	SetPersonalQuota(ctx context.Context, organizationID string, q wire.CreateOrganizationQuota) error
}

// RegisterUsers serves users to themselves. accounts may be nil, where the
// identity provider does nothing but log users in.
func RegisterUsers(a *API, s *users.Service, accounts Accounts) {
	Handle(a, "getAuthenticatedUser", func(ctx context.Context, _ *struct{}) (wire.User, error) {
		u, err := s.Get(ctx, identity.From(ctx).UserID)
		if err != nil {
			return wire.User{}, err
		}
		return wireUser(u), nil
	})
	Handle(a, "getAvailableAccountProviders", func(ctx context.Context, _ *struct{}) ([]wire.AccountProvider, error) {
		if accounts == nil {
			return []wire.AccountProvider{}, nil
		}
		return accounts.Providers(ctx)
	})
	Handle(a, "linkAccount", func(ctx context.Context, in *struct{ Body wire.CreateLinkedAccount }) (None, error) {
		if accounts == nil {
			return None{}, &daytona.Error{Kind: daytona.KindNotFound, Message: "Account linking is not enabled"}
		}
		Note(ctx, in.Body.UserID, map[string]any{"provider": in.Body.Provider})
		return None{}, accounts.Link(ctx, identity.From(ctx).UserID, in.Body.Provider, in.Body.UserID)
	})
	Handle(a, "unlinkAccount", func(ctx context.Context, in *struct {
		Provider       string `path:"provider"`
		ProviderUserID string `path:"providerUserId"`
	}) (None, error) {
		Note(ctx, in.ProviderUserID, map[string]any{"provider": in.Provider})
		return None{}, s.Unlink(ctx, identity.From(ctx).UserID, in.Provider, in.ProviderUserID)
	})
	Handle(a, "enrollInSmsMfa", func(ctx context.Context, _ *struct{}) (Text, error) {
		if accounts == nil {
			return "", &daytona.Error{Kind: daytona.KindNotFound, Message: "SMS MFA is not enabled"}
		}
		url, err := accounts.EnrollSMS(ctx, identity.From(ctx).UserID)
		return Text(url), err
	})
	Handle(a, "listPendingSsoLinks", func(ctx context.Context, _ *struct{}) ([]wire.PendingSSOLink, error) {
		list, err := s.Pending(ctx, identity.From(ctx).UserID)
		if err != nil {
			return nil, err
		}
		out := make([]wire.PendingSSOLink, len(list))
		for i, p := range list {
			out[i] = wire.PendingSSOLink{
				ID: p.ID, IdPName: p.ProviderName, OrganizationID: p.OrganizationID, ProviderEmail: p.ProviderEmail,
				CreatedAt: wire.Stamp(p.CreatedAt), ExpiresAt: wire.Stamp(p.ExpiresAt),
			}
		}
		return out, nil
	})
	type byID struct {
		ID string `path:"id"`
	}
	Handle(a, "confirmPendingSsoLink", func(ctx context.Context, in *byID) (None, error) {
		Note(ctx, in.ID, nil)
		return None{}, s.Confirm(ctx, identity.From(ctx).UserID, in.ID)
	})
	Handle(a, "dismissPendingSsoLink", func(ctx context.Context, in *byID) (None, error) {
		Note(ctx, in.ID, nil)
		return None{}, s.Dismiss(ctx, identity.From(ctx).UserID, in.ID)
	})
}

// RegisterAdminUsers serves all users to administrators. quota may be nil:
// then one that is asked for is refused.
func RegisterAdminUsers(a *API, s *users.Service, quota PersonalQuota) {
	Handle(a, "adminCreateUser", func(ctx context.Context, in *struct{ Body wire.CreateUser }) (wire.User, error) {
		b := in.Body
		if b.PersonalOrganizationQuota != nil && quota == nil {
			return wire.User{}, &daytona.Error{Kind: daytona.KindUnsupported, Message: "personalOrganizationQuota can't be set here; set the quota of the organization"}
		}
		n := users.NewUser{ID: value(b.ID), Name: b.Name, Email: value(b.Email), EmailVerified: value(b.EmailVerified), Role: users.Role(value(b.Role)), DefaultRegionID: value(b.PersonalOrganizationDefaultRegionID)}
		var u *users.User
		create := func(ctx context.Context) error {
			var organizationID string
			var err error
			if u, organizationID, err = s.Create(ctx, n); err != nil || b.PersonalOrganizationQuota == nil {
				return err
			}
			return quota.SetPersonalQuota(ctx, organizationID, *b.PersonalOrganizationQuota)
		}
		together := create
		if quota != nil {
			together = func(ctx context.Context) error { return quota.Together(ctx, create) }
		}
		if err := together(ctx); err != nil {
			return wire.User{}, err
		}
		Note(ctx, u.ID, map[string]any{"role": u.Role})
		return wireUser(u), nil
	})
	Handle(a, "adminListUsers", func(ctx context.Context, _ *struct{}) ([]wire.User, error) {
		list, err := s.List(ctx)
		if err != nil {
			return nil, err
		}
		out := make([]wire.User, len(list))
		for i := range list {
			out[i] = wireUser(&list[i])
		}
		return out, nil
	})
	type byID struct {
		ID string `path:"id"`
	}
	Handle(a, "adminGetUser", func(ctx context.Context, in *byID) (wire.User, error) {
		u, err := s.Get(ctx, in.ID)
		if err != nil {
			return wire.User{}, err
		}
		return wireUser(u), nil
	})
	Handle(a, "adminRegenerateKeyPair", func(ctx context.Context, in *byID) (wire.UserKeyPair, error) {
		Note(ctx, in.ID, nil)
		u, private, err := s.RegenerateKeyPair(ctx, in.ID)
		if err != nil {
			return wire.UserKeyPair{}, err
		}
		return wire.UserKeyPair{User: wireUser(u), PrivateKey: private}, nil
	})
}

func value[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}

func wireUser(u *users.User) wire.User {
	out := wire.User{
		ID: u.ID, Name: u.Name, Email: u.Email, EmailVerified: u.EmailVerified,
		PublicKeys: []wire.UserPublicKey{}, CreatedAt: wire.Stamp(u.CreatedAt),
	}
	for _, k := range u.PublicKeys {
		out.PublicKeys = append(out.PublicKeys, wire.UserPublicKey{Key: k.Key, Name: k.Name})
	}
	return out
}
