// Package authn finds out who sent a bearer token: a service of the system, a
// user with an API key or with a token of the OIDC provider, a runner, or what
// belongs to a region. Those who know these are given to it.
package authn

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/identity"
)

// maxBearer bounds what is looked at, in bytes.
const maxBearer = 16 << 10

// Keys knows the API keys of users.
type Keys interface {
	// Validate returns the user's id, organization and permissions of a key;
	// daytona.ErrUnauthorized if there is no such key.
	Validate(ctx context.Context, key string) (*identity.Principal, error)
}

// Users knows the users.
type Users interface {
	// Fill adds to p what is known of the user p.UserID; daytona.ErrNotFound if
	// there is none.
	Fill(ctx context.Context, p *identity.Principal) error
	// Provision returns the user that a token is about, who is made if need be.
	Provision(ctx context.Context, c identity.Claims) (*identity.Principal, error)
}

// Members knows who is in which organization.
type Members interface {
	// Member returns a user's role and the union of the permissions of their
	// roles; daytona.ErrNotFound if the user is not a member, or there is no
	// such organization.
	Member(ctx context.Context, organizationID, userID string) (identity.Role, []identity.Permission, error)
}

// Runners knows the keys of runners.
type Runners interface {
	// RunnerByKey returns the runner that has a key; daytona.ErrNotFound if none has.
	RunnerByKey(ctx context.Context, key string) (runnerID, regionID string, err error)
}

// Regions knows the keys of the proxies and SSH gateways of regions.
type Regions interface {
	// RegionByKey returns the region that a key belongs to and what it is for:
	// identity.RegionProxy or identity.RegionSSHGateway; daytona.ErrNotFound if
	// it belongs to none.
	RegionByKey(ctx context.Context, key string) (regionID string, kind identity.Kind, err error)
}

// Config says who there is. All fields may be nil: then there are none of
// these.
type Config struct {
	// Services are the keys of services. One that is empty is none.
	Services map[identity.Kind]string
	// Tokens verifies tokens that look like JWTs.
	Tokens  *Tokens
	Keys    Keys
	Users   Users
	Members Members
	Runners Runners
	Regions Regions
}

// Authenticator implements the interface of package api.
type Authenticator struct {
	config   Config
	services []service
}

type service struct {
	kind identity.Kind
	hash [sha256.Size]byte
}

// minServiceKey is the length of the shortest key of a service.
const minServiceKey = 16

// New returns an authenticator. It refuses keys of services that are too short
// to be secret, and the same key for two services.
func New(c Config) (*Authenticator, error) {
	a := &Authenticator{config: c}
	for kind, key := range c.Services {
		if key == "" {
			continue
		}
		if len(key) < minServiceKey {
			return nil, &daytona.Error{Kind: daytona.KindInvalid, Op: "set up authentication", Message: fmt.Sprintf("the key of a service must have at least %d characters", minServiceKey)}
		}
		s := service{kind, sha256.Sum256([]byte(key))}
		for _, other := range a.services {
			if other.hash == s.hash {
				return nil, &daytona.Error{Kind: daytona.KindInvalid, Op: "set up authentication", Message: "two services have the same key; each must have its own"}
			}
		}
		a.services = append(a.services, s)
	}
	return a, nil
}

// jwt is what a token of an OIDC provider looks like: the first two of its
// three parts are JSON objects.
var jwt = regexp.MustCompile(`^eyJ[A-Za-z0-9_-]*\.eyJ[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*$`)

// Authenticate returns who has a bearer token; [daytona.ErrUnauthorized] if
// nobody has.
func (a *Authenticator) Authenticate(ctx context.Context, bearer string) (*identity.Principal, error) {
	if bearer == "" || len(bearer) > maxBearer {
		return nil, unauthorized()
	}
	// Hashes have one length, and all are compared, so time tells nothing.
	sum, kind := sha256.Sum256([]byte(bearer)), identity.Kind(0)
	for _, s := range a.services {
		if subtle.ConstantTimeCompare(s.hash[:], sum[:]) == 1 {
			kind = s.kind
		}
	}
	if kind != 0 {
		return &identity.Principal{Kind: kind}, nil
	}
	if jwt.MatchString(bearer) {
		return a.token(ctx, bearer)
	}
	if a.config.Keys != nil {
		p, err := a.config.Keys.Validate(ctx, bearer)
		switch {
		case err == nil:
			return a.fill(ctx, p)
		case !errors.Is(err, daytona.ErrUnauthorized):
			return nil, err
		}
	}
	if a.config.Runners != nil {
		id, region, err := a.config.Runners.RunnerByKey(ctx, bearer)
		switch {
		case err == nil:
			return &identity.Principal{Kind: identity.Runner, RunnerID: id, RegionID: region}, nil
		case !nobody(err):
			return nil, err
		}
	}
	if a.config.Regions != nil {
		region, kind, err := a.config.Regions.RegionByKey(ctx, bearer)
		switch {
		case err == nil:
			return &identity.Principal{Kind: kind, RegionID: region}, nil
		case !nobody(err):
			return nil, err
		}
	}
	return nil, unauthorized()
}

func (a *Authenticator) token(ctx context.Context, bearer string) (*identity.Principal, error) {
	if a.config.Tokens == nil || a.config.Users == nil {
		return nil, unauthorized()
	}
	claims, err := a.config.Tokens.Verify(ctx, bearer)
	if err != nil {
		return nil, err
	}
	p, err := a.config.Users.Provision(ctx, claims)
	if err != nil {
		return nil, err
	}
	p.Kind = identity.JWT
	return p, nil
}

func (a *Authenticator) fill(ctx context.Context, p *identity.Principal) (*identity.Principal, error) {
	if a.config.Users == nil {
		return p, nil
	}
	if err := a.config.Users.Fill(ctx, p); nobody(err) {
		return nil, unauthorized() // the user is gone
	} else if err != nil {
		return nil, err
	}
	return p, nil
}

// Join returns p as a member of an organization, with its role and permissions
// there; [daytona.ErrForbidden] if p is not one.
func (a *Authenticator) Join(ctx context.Context, p *identity.Principal, organizationID string) (*identity.Principal, error) {
	if a.config.Members == nil || p.Kind != identity.JWT || p.UserID == "" || organizationID == "" || len(organizationID) > 64 ||
		!utf8.ValidString(organizationID) || strings.ContainsRune(organizationID, 0) {
		return nil, forbidden()
	}
	role, permissions, err := a.config.Members.Member(ctx, organizationID, p.UserID)
	if nobody(err) {
		return nil, forbidden()
	}
	if err != nil {
		return nil, err
	}
	joined := *p
	joined.OrganizationID, joined.Role, joined.Permissions = organizationID, role, permissions
	return &joined, nil
}

// nobody reports whether an error says that somebody is not there.
func nobody(err error) bool {
	return errors.Is(err, daytona.ErrNotFound) || errors.Is(err, daytona.ErrUnauthorized) || errors.Is(err, daytona.ErrForbidden)
}

func unauthorized() error {
	return &daytona.Error{Kind: daytona.KindUnauthorized, Message: "Invalid credentials"}
}

func forbidden() error {
	return &daytona.Error{Kind: daytona.KindForbidden, Message: "Invalid authentication context"}
}

// decode returns a part of a token.
func decode(part string) ([]byte, error) { return base64.RawURLEncoding.DecodeString(part) }
