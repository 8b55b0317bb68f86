package organization

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/uptrace/bun"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/display"
	"github.com/daytona-go/daytona/server/identity"
	"github.com/daytona-go/daytona/server/store"
)

// DefaultScope is what a provider is asked for.
const DefaultScope = "openid email profile"

// Provider is an OIDC provider of an organization, by which its people log in.
type Provider struct {
	bun.BaseModel `bun:"table:identity_providers,alias:provider"`

	ID             string `bun:"id,pk"`
	OrganizationID string `bun:"organization_id,notnull"`
	Name           string `bun:"name,notnull"`
	IssuerURL      string `bun:"issuer_url,notnull"`
	ClientID       string `bun:"client_id,notnull"`
	// ClientSecret is sealed; see [Service.ClientSecret].
	ClientSecret string `bun:"client_secret,notnull"`
	Scope        string `bun:"scope,notnull"`
	// EmailDomains are those of the addresses that the provider may speak for.
	EmailDomains []string `bun:"email_domains,notnull"`
	// AllowAnyDomain lets it speak for every address.
	AllowAnyDomain bool `bun:"allow_any_domain,notnull"`
	// TrustEmailVerified takes an address as verified that the provider says
	// nothing about.
	TrustEmailVerified bool      `bun:"trust_email_verified,notnull"`
	DefaultRoleIDs     []string  `bun:"default_role_ids,notnull"`
	Enabled            bool      `bun:"enabled,notnull"`
	CreatedAt          time.Time `bun:"created_at,notnull"`
	UpdatedAt          time.Time `bun:"updated_at,notnull"`
}

// ProviderChange is what is to be changed of a provider: nil leaves a field as
// it is, or at its default.
type ProviderChange struct {
	Name, IssuerURL, ClientID, ClientSecret, Scope *string
	EmailDomains, DefaultRoleIDs                   []string
	AllowAnyDomain, TrustEmailVerified, Enabled    *bool
}

var domain = regexp.MustCompile(`^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z][a-z0-9-]{0,61}[a-z0-9]$`)

func set[T any](to *T, v *T) {
	if v != nil {
		*to = *v
	}
}

// apply makes p what c says, and checks it.
func (s *Service) apply(ctx context.Context, p *Provider, c ProviderChange) error {
	if s.config.Outbound == nil {
		return &daytona.Error{Kind: daytona.KindUnavailable, Message: "Identity providers are not configured on this server"}
	}
	set(&p.Name, c.Name)
	set(&p.IssuerURL, c.IssuerURL)
	set(&p.ClientID, c.ClientID)
	set(&p.Scope, c.Scope)
	set(&p.AllowAnyDomain, c.AllowAnyDomain)
	set(&p.TrustEmailVerified, c.TrustEmailVerified)
	set(&p.Enabled, c.Enabled)
	p.Name = strings.TrimSpace(p.Name)
	if err := display.Name("name", p.Name); err != nil {
		return err
	}
	if err := s.config.Outbound.Check("issuerUrl", p.IssuerURL); err != nil {
		return err
	}
	if p.ClientID == "" || len(p.ClientID) > 512 {
		return invalid("clientId must have 1 to 512 characters")
	}
	if len(p.Scope) > 512 || !slices.Contains(strings.Fields(p.Scope), "openid") {
		return invalid("scope must contain openid")
	}
	if c.ClientSecret != nil {
		if *c.ClientSecret == "" || len(*c.ClientSecret) > 4096 {
			return invalid("clientSecret must have 1 to 4096 characters")
		}
		p.ClientSecret = s.config.Box.Seal(*c.ClientSecret, "identity-provider/"+p.ID)
	}
	if c.EmailDomains != nil {
		if len(c.EmailDomains) > 100 {
			return invalid("emailDomains must have at most 100 domains")
		}
		p.EmailDomains = []string{}
		for _, d := range c.EmailDomains {
			d = strings.ToLower(strings.TrimSpace(d))
			if !domain.MatchString(d) || len(d) > 253 {
				return invalid("emailDomains must have domains, such as company.com, not %q", d[:min(len(d), 64)])
			}
			if !slices.Contains(p.EmailDomains, d) {
				p.EmailDomains = append(p.EmailDomains, d)
			}
		}
	}
	if !p.AllowAnyDomain && len(p.EmailDomains) == 0 {
		return invalid("emailDomains must not be empty unless allowAnyDomain is true")
	}
	if c.DefaultRoleIDs != nil {
		var err error
		if p.DefaultRoleIDs, err = s.checkRoles(ctx, p.OrganizationID, identity.Member, c.DefaultRoleIDs); err != nil {
			return err
		}
	}
	p.UpdatedAt = store.Now()
	return nil
}

// sso locks an organization that may have identity providers.
func (s *Service) sso(ctx context.Context, organizationID string) error {
	o, err := s.lock(ctx, organizationID)
	if err == nil && !o.SSOEnabled {
		return forbidden("SSO is not enabled for this organization")
	}
	return err
}

// CreateProvider adds an identity provider.
func (s *Service) CreateProvider(ctx context.Context, organizationID string, c ProviderChange) (*Provider, error) {
	p := &Provider{
		ID: uuid.NewString(), OrganizationID: organizationID, Scope: DefaultScope, EmailDomains: []string{}, DefaultRoleIDs: []string{},
		Enabled: true, CreatedAt: store.Now(),
	}
	err := s.db.Tx(ctx, func(ctx context.Context) error {
		if err := s.sso(ctx, organizationID); err != nil {
			return err
		}
		if err := s.apply(ctx, p, c); err != nil {
			return err
		}
		if p.ClientSecret == "" {
			return invalid("clientSecret must have 1 to 4096 characters")
		}
		if n, err := s.db.In(ctx, organizationID).Select((*Provider)(nil)).Count(ctx); err != nil {
			return err
		} else if n >= maxProviders {
			return invalid("Identity provider quota exceeded. Maximum allowed: %d", maxProviders)
		}
		_, err := s.db.All(ctx).NewInsert().Model(p).Exec(ctx)
		if store.IsUnique(err) {
			return conflict("Identity provider with name %s already exists", p.Name)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return p, nil
}

// Providers returns the identity providers of an organization.
func (s *Service) Providers(ctx context.Context, organizationID string) ([]Provider, error) {
	var all []Provider
	err := s.db.In(ctx, organizationID).Select(&all).OrderExpr("created_at, id").Scan(ctx)
	return all, err
}

// Provider returns one.
func (s *Service) Provider(ctx context.Context, organizationID, id string) (*Provider, error) {
	p := &Provider{}
	err := s.db.In(ctx, organizationID).Select(p).Where("id = ?", id).Scan(ctx)
	if store.IsNone(err) {
		return nil, notFound("Identity provider with ID %s not found", id)
	}
	return p, err
}

// SpeaksFor reports whether a provider may say whose an address is.
func (p *Provider) SpeaksFor(email string) bool {
	at := strings.LastIndexByte(email, '@')
	return at > 0 && (p.AllowAnyDomain || slices.Contains(p.EmailDomains, strings.ToLower(email[at+1:])))
}

// logins selects the providers by which people may log in, of all
// organizations: who logs in is in none yet.
func (s *Service) logins(ctx context.Context, to any) *bun.SelectQuery {
	return s.db.All(ctx).NewSelect().Model(to).Where("provider.enabled = ?", true).
		Where("EXISTS (SELECT 1 FROM organizations AS o WHERE o.id = provider.organization_id AND o.sso_enabled = ?)", true)
}

// lookupTimeout bounds how long the DNS may take to say whose a domain is.
const lookupTimeout = 5 * time.Second

// ProviderFor returns the provider by which somebody with an address logs in:
// of several that name its domain, the first whose organization has shown that
// the domain is its own, by a TXT record of _daytona.DOMAIN that says
// "organization=ID". [daytona.ErrNotFound] if none does; one that speaks for
// every address is nobody's by address.
func (s *Service) ProviderFor(ctx context.Context, email string) (*Provider, error) {
	of := strings.ToLower(email[strings.LastIndexByte(email, '@')+1:])
	var all []*Provider
	if domain.MatchString(of) {
		q := s.logins(ctx, &all).Where(`provider.email_domains LIKE ? ESCAPE '\'`, `%"`+store.Escape(of)+`"%`)
		if err := q.OrderExpr("created_at, id").Scan(ctx); err != nil {
			return nil, err
		}
	}
	if len(all) > 0 && s.config.TrustDomains {
		return all[0], nil
	}
	if len(all) > 0 {
		ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
		defer cancel()
		// What a name server fails to say is not said.
		records, _ := s.config.LookupTXT(ctx, "_daytona."+of)
		for _, p := range all {
			if slices.Contains(records, "organization="+p.OrganizationID) {
				return p, nil
			}
		}
	}
	return nil, notFound("No identity provider for %s", of)
}

// LoginProvider returns a provider if people may log in by it.
func (s *Service) LoginProvider(ctx context.Context, id string) (*Provider, error) {
	p := &Provider{}
	err := s.logins(ctx, p).Where("provider.id = ?", id).Scan(ctx)
	if store.IsNone(err) {
		return nil, notFound("Identity provider with ID %s not found", id)
	}
	return p, err
}

// JoinBy makes a user who has logged in by a provider a member of its
// organization, with its default roles, unless they are one.
func (s *Service) JoinBy(ctx context.Context, p *Provider, userID string) error {
	return s.db.Tx(ctx, func(ctx context.Context) error {
		if _, err := s.lock(ctx, p.OrganizationID); err != nil {
			return err
		}
		if _, err := s.member(ctx, p.OrganizationID, userID); !errors.Is(err, daytona.ErrNotFound) {
			return err
		}
		// Roles that have been deleted since are not there to be given.
		roles, err := s.rolesOf(ctx, p.OrganizationID, p.DefaultRoleIDs)
		if err != nil {
			return err
		}
		ids := []string{}
		for _, r := range roles {
			ids = append(ids, r.ID)
		}
		return s.addMember(ctx, p.OrganizationID, userID, identity.Member, ids)
	})
}

// ClientSecret returns what the server proves itself to a provider with.
func (s *Service) ClientSecret(p *Provider) (string, error) {
	return s.config.Box.Open(p.ClientSecret, "identity-provider/"+p.ID)
}

// UpdateProvider changes one.
func (s *Service) UpdateProvider(ctx context.Context, organizationID, id string, c ProviderChange) (*Provider, error) {
	var p *Provider
	err := s.db.Tx(ctx, func(ctx context.Context) error {
		if err := s.sso(ctx, organizationID); err != nil {
			return err
		}
		var err error
		if p, err = s.Provider(ctx, organizationID, id); err != nil {
			return err
		}
		// Another issuer must not be given the secret that this one knows.
		if c.IssuerURL != nil && *c.IssuerURL != p.IssuerURL && c.ClientSecret == nil {
			return invalid("clientSecret must be sent with a new issuerUrl")
		}
		if err := s.apply(ctx, p, c); err != nil {
			return err
		}
		_, err = s.db.In(ctx, organizationID).Update(p).WherePK().Exec(ctx)
		if store.IsUnique(err) {
			return conflict("Identity provider with name %s already exists", p.Name)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return p, nil
}

// DeleteProvider removes one.
func (s *Service) DeleteProvider(ctx context.Context, organizationID, id string) error {
	return s.db.Tx(ctx, func(ctx context.Context) error {
		if _, err := s.Provider(ctx, organizationID, id); err != nil {
			return err
		}
		_, err := s.db.In(ctx, organizationID).Delete((*Provider)(nil)).Where("id = ?", id).Exec(ctx)
		return err
	})
}

// maxDiscovery is the largest discovery document that is read, in bytes.
const maxDiscovery = 256 << 10

// TestProvider asks an issuer for its discovery document and returns the
// issuer it names. What is wrong with it is a message for whoever asked, and
// says no more of what the server met than that: it can be pointed anywhere.
func (s *Service) TestProvider(ctx context.Context, issuer string) (found, problem string) {
	if s.config.Outbound == nil {
		return "", "Identity providers are not configured on this server"
	}
	if err := s.config.Outbound.Check("issuerUrl", issuer); err != nil {
		return "", err.Error()
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(issuer, "/")+"/.well-known/openid-configuration", nil)
	if err != nil {
		return "", "issuerUrl must be a URL"
	}
	r.Header.Set("Accept", "application/json")
	resp, err := s.config.Outbound.Client(10 * time.Second).Do(r)
	if err != nil {
		return "", "The issuer cannot be reached"
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return "", "The issuer has no OIDC discovery document"
	}
	var doc struct {
		Issuer        string `json:"issuer"`
		Authorization string `json:"authorization_endpoint"`
		Token         string `json:"token_endpoint"`
		Keys          string `json:"jwks_uri"`
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxDiscovery)).Decode(&doc); err != nil || doc.Issuer == "" {
		return "", "The issuer has no OIDC discovery document"
	}
	if strings.TrimSuffix(doc.Issuer, "/") != strings.TrimSuffix(issuer, "/") {
		return "", "The discovery document is that of another issuer"
	}
	for _, u := range []string{doc.Authorization, doc.Token, doc.Keys} {
		if s.config.Outbound.Check("endpoint", u) != nil {
			return "", "The discovery document lacks an endpoint, or names one that can't be used"
		}
	}
	return doc.Issuer, ""
}
