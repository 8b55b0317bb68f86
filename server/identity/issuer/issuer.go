// Package issuer is the OIDC provider that is built in, so that a server alone
// has users who can log in: in a browser (authorization code with PKCE), and
// from a terminal with the help of a browser elsewhere (device code). Users
// prove who they are with an address and a password, or by the OIDC provider
// of their organization.
//
// The protocol is that of zitadel/oidc; what is here is what it stores, the
// pages, and what ties a login to the browser that began it.
package issuer

import (
	"cmp"
	"context"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"

	"github.com/rs/cors"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/seal"
	"github.com/daytona-go/daytona/server/store"
)

// Users knows those who log in.
type Users interface {
	// Info returns what tokens say of a user; daytona.ErrNotFound if there is none.
	Info(ctx context.Context, userID string) (email, name string, verified bool, err error)
}

// Client is a program that users log in to.
type Client struct {
	// ID is its client_id, Name what users are told it is.
	ID, Name string
	// Secret is what a program proves itself with that can't do PKCE. Defaults
	// to none: then PKCE is demanded.
	Secret string
	// RedirectURIs are where users may be sent back to, exactly; one on
	// localhost or a loopback address stands for every port.
	RedirectURIs []string
	// LogoutURIs are where users may be sent after they have logged out.
	LogoutURIs []string
}

// Config says what an issuer is. Fields without a default are needed.
type Config struct {
	DB    *store.DB
	Users Users
	// URL is the issuer's, without a slash at the end, such as
	// "https://daytona.example.com/oidc". With http, cookies can't be protected
	// from others on the same network: it is for this machine.
	URL string
	// Audience is for whom access tokens are: the API.
	Audience string
	Clients  []Client
	// SSO logs users in by the providers of their organizations, which HTTP is
	// the way to. Defaults to none: users have passwords.
	SSO  SSO
	HTTP *http.Client
	// Secret protects the signing keys in the database; at least 32 bytes. Who
	// has another one can't use them, and makes new ones.
	Secret []byte
	// AccessTTL is how long an access token is good. Defaults to 1 h.
	AccessTTL time.Duration
	// RefreshTTL is how long a refresh token is good that is not used. Defaults
	// to 30 days.
	RefreshTTL time.Duration
	// SessionTTL is how long a browser stays logged in. Defaults to 12 h.
	SessionTTL time.Duration
	// RotateAfter is how long a key signs. Defaults to 90 days.
	RotateAfter time.Duration
	// Address is where a request comes from. Defaults to the other end of its
	// connection.
	Address func(*http.Request) netip.Addr
	// Log defaults to slog.Default.
	Log *slog.Logger
	// Now defaults to time.Now.
	Now func() time.Time
}

const (
	// loginWithin is how long somebody may take to log in.
	loginWithin = 15 * time.Minute
	// codeWithin is how long a code may take on its way.
	codeWithin = time.Minute
	// deviceWithin is how long a device waits for its user.
	deviceWithin = 15 * time.Minute
	// overlap is how long a refresh token that has been replaced is forgiven:
	// its client may have lost the answer, or run twice at once.
	overlap = 10 * time.Second
	// minSecret is the length of the shortest secret of a client, in bytes.
	minSecret = 16
	// maxQuery and maxForm bound what is read of a request, in bytes.
	maxQuery, maxForm = 8 << 10, 64 << 10
)

// Issuer is an http.Handler for everything below its URL.
type Issuer struct {
	config   Config
	db       *store.DB
	log      *slog.Logger
	now      func() time.Time
	prefix   string // the path of the URL, without a slash at the end
	secure   bool
	clients  map[string]*client
	keys     *keyring
	provider *op.Provider
	attempts *attempts
	origins  *http.CrossOriginProtection
	pages    http.Handler
	hashing  chan struct{}
	box      *seal.Box
	sso      *http.Client
}

// New returns an issuer.
func New(c Config) (*Issuer, error) {
	bad := func(field string, value any, rule string) error {
		return &daytona.Error{Kind: daytona.KindInvalid, Op: "set up issuer", Field: field, Value: value, Message: rule}
	}
	u, err := url.Parse(c.URL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || strings.HasSuffix(u.Path, "/") {
		return nil, bad("URL", c.URL, "must be like https://daytona.example.com/oidc")
	}
	if len(c.Secret) < 32 {
		return nil, bad("Secret", nil, "must have at least 32 bytes")
	}
	if c.Audience == "" {
		return nil, bad("Audience", c.Audience, "must say for whom tokens are")
	}
	for _, d := range []struct {
		v   *time.Duration
		def time.Duration
	}{{&c.AccessTTL, time.Hour}, {&c.RefreshTTL, 30 * 24 * time.Hour}, {&c.SessionTTL, 12 * time.Hour}, {&c.RotateAfter, 90 * 24 * time.Hour}} {
		if *d.v == 0 {
			*d.v = d.def
		}
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Address == nil {
		c.Address = func(r *http.Request) netip.Addr {
			host, _, _ := net.SplitHostPort(r.RemoteAddr)
			a, _ := netip.ParseAddr(host)
			return a.Unmap()
		}
	}
	i := &Issuer{
		config: c, db: c.DB, log: c.Log, now: c.Now, prefix: u.Path, secure: u.Scheme == "https",
		clients: map[string]*client{}, attempts: newAttempts(c.Now), origins: http.NewCrossOriginProtection(),
		hashing: make(chan struct{}, 2),
	}
	if err := i.origins.AddTrustedOrigin(u.Scheme + "://" + u.Host); err != nil {
		return nil, err
	}
	for _, cl := range c.Clients {
		if cl.ID == "" || i.clients[cl.ID] != nil {
			return nil, bad("Clients", cl.ID, "each needs an id of its own")
		}
		if cl.Secret != "" && len(cl.Secret) < minSecret {
			return nil, bad("Clients", cl.ID, fmt.Sprintf("its secret must have at least %d bytes", minSecret))
		}
		for _, r := range cl.RedirectURIs {
			ru, err := url.Parse(r)
			if err != nil || ru.Scheme != "http" && ru.Scheme != "https" || ru.Host == "" || ru.Fragment != "" {
				return nil, bad("RedirectURIs", r, "must be an http or https URL without a fragment")
			}
			if _, loopback := op.HTTPLoopbackOrLocalhost(r); ru.Scheme == "http" && !loopback && i.secure {
				return nil, bad("RedirectURIs", r, "must be https, or on this machine")
			}
		}
		i.clients[cl.ID] = &client{Client: cl, issuer: i}
	}
	if i.keys, err = newKeyring(c); err != nil {
		return nil, err
	}
	if i.box, err = newBox(c.Secret); err != nil {
		return nil, err
	}
	if c.SSO != nil {
		if c.HTTP == nil {
			return nil, bad("HTTP", nil, "is required with SSO")
		}
		i.sso = new(*c.HTTP)
		i.sso.Transport = short{cmp.Or(c.HTTP.Transport, http.DefaultTransport)}
	}
	crypto, err := derive(c.Secret, "codes")
	if err != nil {
		return nil, err
	}
	opts := []op.Option{op.WithCORSOptions(&cors.Options{
		// Any page may ask, as with the API: nothing here believes a cookie that
		// a page elsewhere made the browser send.
		AllowedOrigins: []string{"*"}, AllowedMethods: []string{http.MethodGet, http.MethodHead, http.MethodPost},
		AllowedHeaders: []string{"Accept", "Authorization", "Content-Type"},
	})}
	if !i.secure {
		opts = append(opts, op.WithAllowInsecure())
	}
	i.provider, err = op.NewProvider(&op.Config{
		CryptoKey: crypto, CodeMethodS256: true, AuthMethodPost: true, GrantTypeRefreshToken: true,
		DefaultLogoutRedirectURI: i.prefix + "/signed-out",
		SupportedScopes:          []string{oidc.ScopeOpenID, oidc.ScopeProfile, oidc.ScopeEmail, oidc.ScopeOfflineAccess},
		DeviceAuthorization: op.DeviceAuthorizationConfig{
			Lifetime: deviceWithin, PollInterval: 5 * time.Second, UserFormPath: i.prefix + "/device", UserCode: op.UserCodeBase20,
		},
	}, &storage{i}, op.StaticIssuer(c.URL), opts...)
	if err != nil {
		return nil, err
	}
	i.pages = i.routes()
	return i, nil
}

// derive makes a key for one purpose of a secret.
func derive(secret []byte, purpose string) (key [32]byte, err error) {
	b, err := hkdf.Key(sha256.New, secret, nil, "daytona issuer "+purpose, len(key))
	copy(key[:], b)
	return key, err
}

// random returns a string that nobody can guess.
func random() string {
	var b [32]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// digest is what is kept of a secret.
func digest(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// Run removes what has expired, every few minutes, until ctx is done.
func (i *Issuer) Run(ctx context.Context) error {
	t := time.NewTicker(5 * time.Minute)
	defer t.Stop()
	for {
		if err := i.Sweep(ctx); err != nil && ctx.Err() == nil {
			i.log.Warn("cannot remove old logins", "err", err)
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Sweep removes what has expired.
func (i *Issuer) Sweep(ctx context.Context) error {
	now := i.now().UTC()
	var errs []error
	for _, model := range []any{(*request)(nil), (*refresh)(nil), (*device)(nil), (*session)(nil)} {
		// Logins belong to no organization.
		_, err := i.db.All(ctx).NewDelete().Model(model).Where("expires_at < ?", now).Exec(ctx)
		errs = append(errs, err)
	}
	errs = append(errs, i.keys.sweep(ctx))
	return errors.Join(errs...)
}

// ServeHTTP serves everything below the issuer's URL.
func (i *Issuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path, ok := strings.CutPrefix(r.URL.Path, i.prefix)
	if !ok || path == "" || path[0] != '/' {
		http.NotFound(w, r)
		return
	}
	if len(r.URL.RawQuery) > maxQuery {
		http.Error(w, "the query is too long", http.StatusRequestURITooLong)
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	h := w.Header()
	h.Set("X-Content-Type-Options", "nosniff")
	// What is asked for has codes in its address: no page is told of them.
	h.Set("Referrer-Policy", "same-origin")
	if path != "/keys" && path != oidc.DiscoveryEndpoint {
		h.Set("Cache-Control", "no-store")
	}
	r2 := r.Clone(r.Context())
	r2.URL.Path, r2.URL.RawPath = path, ""
	i.pages.ServeHTTP(w, r2)
}

// client is a Client as the protocol has it.
type client struct {
	Client
	issuer *Issuer
}

func (c *client) GetID() string                    { return c.ID }
func (c *client) RedirectURIs() []string           { return c.Client.RedirectURIs }
func (c *client) PostLogoutRedirectURIs() []string { return c.LogoutURIs }

// ApplicationType is native for all: it is the one that knows that a program
// on the user's machine has no port until it runs.
func (c *client) ApplicationType() op.ApplicationType { return op.ApplicationTypeNative }

func (c *client) AuthMethod() oidc.AuthMethod {
	if c.Secret != "" {
		return oidc.AuthMethodPost
	}
	return oidc.AuthMethodNone
}

func (c *client) ResponseTypes() []oidc.ResponseType {
	return []oidc.ResponseType{oidc.ResponseTypeCode}
}

func (c *client) GrantTypes() []oidc.GrantType {
	return []oidc.GrantType{oidc.GrantTypeCode, oidc.GrantTypeRefreshToken, oidc.GrantTypeDeviceCode}
}

func (c *client) LoginURL(id string) string {
	return c.issuer.prefix + "/login?request=" + url.QueryEscape(id)
}

func (c *client) AccessTokenType() op.AccessTokenType { return op.AccessTokenTypeJWT }
func (c *client) IDTokenLifetime() time.Duration      { return c.issuer.config.AccessTTL }

// DevMode lets users be sent to http URLs, which [New] has checked.
func (c *client) DevMode() bool { return !c.issuer.secure }

func (c *client) RestrictAdditionalIdTokenScopes() func([]string) []string {
	return func(s []string) []string { return s }
}

func (c *client) RestrictAdditionalAccessTokenScopes() func([]string) []string {
	return func(s []string) []string { return s }
}

func (c *client) IsScopeAllowed(string) bool { return false }

// IDTokenUserinfoClaimsAssertion: clients show who has logged in without
// asking again.
func (c *client) IDTokenUserinfoClaimsAssertion() bool { return true }
func (c *client) ClockSkew() time.Duration             { return 0 }
