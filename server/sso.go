package server

import (
	"context"
	"errors"
	"strings"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/identity/issuer"
	"github.com/daytona-go/daytona/server/organization"
	"github.com/daytona-go/daytona/server/user"
)

// ssoLogin is how people log in by the identity provider of their organization.
type ssoLogin struct{ s *Server }

func (l ssoLogin) ProviderFor(ctx context.Context, email string) (*issuer.Provider, error) {
	return l.provider(l.s.organizations.ProviderFor(ctx, email))
}

func (l ssoLogin) Provider(ctx context.Context, id string) (*issuer.Provider, error) {
	return l.provider(l.s.organizations.LoginProvider(ctx, id))
}

func (l ssoLogin) provider(p *organization.Provider, err error) (*issuer.Provider, error) {
	if errors.Is(err, daytona.ErrNotFound) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	secret, err := l.s.organizations.ClientSecret(p)
	if err != nil {
		return nil, err
	}
	return &issuer.Provider{ID: p.ID, Name: p.Name, IssuerURL: p.IssuerURL, ClientID: p.ClientID, ClientSecret: secret, Scopes: issuer.Scopes(p.Scope)}, nil
}

// Admit finds the user of an account, who is a member of the provider's
// organization from then on. An address that is a user's already makes nobody
// that user: they are asked first. Nor does it become that of a new user: which
// domains are whose is what organizations say of themselves, and invitations go
// by addresses.
func (l ssoLogin) Admit(ctx context.Context, providerID string, a issuer.Account) (userID, problem string, err error) {
	err = l.s.organizations.Together(ctx, func(ctx context.Context) error {
		userID, problem = "", ""
		p, err := l.s.organizations.LoginProvider(ctx, providerID)
		if err != nil {
			return err
		}
		verified := p.TrustEmailVerified
		if a.EmailVerified != nil {
			verified = *a.EmailVerified
		}
		if a.Subject == "" || !verified || !p.SpeaksFor(a.Email) {
			problem = "Your organization's login says of no address of yours that it is yours."
			return nil
		}
		id, err := l.s.users.ByAccount(ctx, p.ID, a.Subject)
		if errors.Is(err, daytona.ErrNotFound) {
			var owner string
			if owner, err = l.s.users.ByEmail(ctx, a.Email); err == nil {
				_, err = l.s.users.Pend(ctx, user.PendingAccount{UserID: owner, OrganizationID: p.OrganizationID, Provider: p.ID, ProviderName: p.Name,
					ProviderUserID: a.Subject, ProviderEmail: &a.Email})
				problem = "There is an account with this address already. Log in as you do, and confirm that " + p.Name + " may log you in."
				return err
			} else if !errors.Is(err, daytona.ErrNotFound) {
				return err
			}
			name, _, _ := strings.Cut(a.Email, "@")
			id, err = l.s.users.CreateFor(ctx, user.Account{Provider: p.ID, ProviderUserID: a.Subject}, a.Name, name)
		}
		if err != nil {
			return err
		}
		userID = id
		return l.s.organizations.JoinBy(ctx, p, id)
	})
	return userID, problem, err
}
