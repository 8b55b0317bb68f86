package authn

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/identity"
)

// TokensConfig says whose tokens are believed.
type TokensConfig struct {
	// Issuer is the URL at which the server finds the provider's
	// .well-known/openid-configuration.
	Issuer string
	// PublicIssuer is what users and tokens call the issuer, where that is
	// another URL than Issuer. Defaults to Issuer.
	PublicIssuer string
	// Audience must be among those that a token is for.
	Audience string
	// KeySet has the provider's keys, where it is in this process: then nothing
	// is fetched. Defaults to those that the provider publishes.
	KeySet oidc.KeySet
	// Reserved are users who exist without the provider, such as the first
	// administrator. No token of a provider elsewhere may be about them: who has
	// which subject there is not ours to say.
	Reserved []string
	// Client fetches what the provider publishes. Defaults to one that gives up
	// after 10 s.
	Client *http.Client
	// Log defaults to slog.Default.
	Log *slog.Logger
}

// Tokens verifies JWTs of one OIDC provider, signed with RS256.
type Tokens struct {
	config TokensConfig
	client *http.Client

	mu       sync.Mutex
	verifier *oidc.IDTokenVerifier
	// failed is when the provider was last asked for its configuration in vain.
	failed time.Time
	err    error
}

const (
	// retryAfter is how long a provider that did not answer is left alone.
	retryAfter = time.Second
	// refetchAfter is how long keys that were fetched are believed to be all
	// there are: a token with a wrong signature makes the library look for new
	// ones, and anybody can send one.
	refetchAfter = 5 * time.Second
	// maxFetched bounds what a provider may answer, in bytes.
	maxFetched = 1 << 20
)

// NewTokens returns a verifier. The provider is asked nothing until there is a
// token.
func NewTokens(c TokensConfig) (*Tokens, error) {
	if c.Issuer == "" || c.Audience == "" {
		return nil, &daytona.Error{Kind: daytona.KindInvalid, Op: "set up OIDC", Message: "it needs an issuer and an audience"}
	}
	if c.PublicIssuer == "" {
		c.PublicIssuer = c.Issuer
	}
	if c.Client == nil {
		c.Client = &http.Client{Timeout: 10 * time.Second}
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	client := *c.Client
	client.Transport = &sparing{next: client.Transport, last: map[string]fetched{}}
	return &Tokens{config: c, client: &client}, nil
}

// Verify returns what a token says; [daytona.ErrUnauthorized] if it is not to
// be believed. Any other error says that this could not be found out.
func (t *Tokens) Verify(ctx context.Context, token string) (identity.Claims, error) {
	var c identity.Claims
	if !t.plausible(token) {
		return c, unauthorized()
	}
	v, err := t.ready(ctx)
	if err != nil {
		return c, err
	}
	var fault error
	parsed, err := v.Verify(context.WithValue(ctx, faultKey{}, &fault), token)
	if fault != nil {
		return c, &daytona.Error{Kind: daytona.KindUnavailable, Op: "verify token", Message: "the keys of the OIDC provider can't be had", Err: fault}
	}
	if err != nil {
		return c, unauthorized()
	}
	var claims struct {
		Email    string `json:"email"`
		Verified any    `json:"email_verified"`
		Name     string `json:"name"`
		Username string `json:"username"`
		Cid      string `json:"cid"`
		UID      string `json:"uid"`
	}
	if err := parsed.Claims(&claims); err != nil {
		return c, unauthorized()
	}
	c = identity.Claims{Subject: parsed.Subject, Email: claims.Email, Name: claims.Name, Username: claims.Username}
	// Some providers write it as a string.
	c.EmailVerified = claims.Verified == true || claims.Verified == "true"
	if claims.Cid != "" && claims.UID != "" {
		// Okta's access tokens have the user's address for a subject.
		c.Subject, c.Email = claims.UID, parsed.Subject
	}
	if t.config.KeySet == nil {
		for _, id := range t.config.Reserved {
			if c.Subject == id {
				t.config.Log.Warn("the OIDC provider has a user with a reserved id, who can't log in", "user", id)
				return c, unauthorized()
			}
		}
	}
	return c, nil
}

// plausible reports whether a token says of itself that it is of this issuer
// and signed as it must be: one that does not, costs nothing more.
func (t *Tokens) plausible(token string) bool {
	head, rest, _ := strings.Cut(token, ".")
	body, _, _ := strings.Cut(rest, ".")
	var h struct {
		Alg string `json:"alg"`
	}
	var b struct {
		Iss string  `json:"iss"`
		Exp float64 `json:"exp"`
	}
	for part, v := range map[string]any{head: &h, body: &b} {
		data, err := decode(part)
		if err != nil || json.Unmarshal(data, v) != nil {
			return false
		}
	}
	issuer := strings.TrimSuffix(t.config.PublicIssuer, "/")
	return h.Alg == oidc.RS256 && strings.TrimSuffix(b.Iss, "/") == issuer && b.Exp > float64(time.Now().Unix())
}

// ready returns the verifier, for which the provider is asked what it is.
func (t *Tokens) ready(ctx context.Context) (*oidc.IDTokenVerifier, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.verifier != nil {
		return t.verifier, nil
	}
	c := &oidc.Config{ClientID: t.config.Audience, SupportedSigningAlgs: []string{oidc.RS256}}
	if t.config.KeySet != nil {
		t.verifier = oidc.NewVerifier(t.config.PublicIssuer, &keySet{t.config.KeySet}, c)
		return t.verifier, nil
	}
	if time.Since(t.failed) < retryAfter {
		return nil, t.err
	}
	// What is fetched is for all who come after, whatever becomes of this one.
	ctx = oidc.ClientContext(context.WithoutCancel(ctx), t.client)
	issuer, keys, err := t.discover(ctx)
	if err != nil {
		t.failed = time.Now()
		t.err = &daytona.Error{Kind: daytona.KindUnavailable, Op: "ask OIDC provider", Subject: t.config.Issuer, Err: err}
		return nil, t.err
	}
	t.verifier = oidc.NewVerifier(issuer, &keySet{oidc.NewRemoteKeySet(ctx, keys)}, c)
	return t.verifier, nil
}

func (t *Tokens) discover(ctx context.Context) (issuer, keys string, err error) {
	url := strings.TrimSuffix(t.config.Issuer, "/") + "/.well-known/openid-configuration"
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", "", err
	}
	res, err := t.client.Do(req)
	if err != nil {
		return "", "", err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return "", "", fmt.Errorf("it answers %s with %s", url, res.Status)
	}
	var d struct {
		Issuer string `json:"issuer"`
		Keys   string `json:"jwks_uri"`
	}
	if err := json.NewDecoder(res.Body).Decode(&d); err != nil {
		return "", "", err
	}
	// Some write a slash at the end in one place and not in the other.
	public := strings.TrimSuffix(t.config.PublicIssuer, "/")
	if strings.TrimSuffix(d.Issuer, "/") != public {
		return "", "", fmt.Errorf("it is the issuer %q, not %q", d.Issuer, t.config.PublicIssuer)
	}
	if d.Keys == "" {
		return "", "", fmt.Errorf("%s has no jwks_uri", url)
	}
	if rest, ok := strings.CutPrefix(d.Keys, public); ok && t.config.Issuer != t.config.PublicIssuer {
		d.Keys = strings.TrimSuffix(t.config.Issuer, "/") + rest
	}
	return d.Issuer, d.Keys, nil
}

type faultKey struct{}

// keySet tells a signature that is wrong from keys that can't be had.
type keySet struct{ next oidc.KeySet }

func (k *keySet) VerifySignature(ctx context.Context, token string) ([]byte, error) {
	payload, err := k.next.VerifySignature(ctx, token)
	if err != nil && strings.HasPrefix(err.Error(), "fetching keys") {
		if fault, ok := ctx.Value(faultKey{}).(*error); ok {
			*fault = err
		}
	}
	return payload, err
}

// sparing is a transport that asks the same thing once every few seconds and
// repeats the answer meanwhile. It is for small answers.
type sparing struct {
	next http.RoundTripper
	mu   sync.Mutex
	last map[string]fetched
}

type fetched struct {
	at     time.Time
	status int
	header http.Header
	body   []byte
	err    error
}

func (s *sparing) RoundTrip(r *http.Request) (*http.Response, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	url := r.URL.String()
	f, ok := s.last[url]
	if !ok || time.Since(f.at) > refetchAfter || (f.err != nil || f.status != http.StatusOK) && time.Since(f.at) > retryAfter {
		f = s.fetch(r)
		if len(s.last) > 16 {
			clear(s.last)
		}
		s.last[url] = f
	}
	if f.err != nil {
		return nil, f.err
	}
	return &http.Response{
		Status: fmt.Sprintf("%d %s", f.status, http.StatusText(f.status)), StatusCode: f.status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: f.header.Clone(), Body: io.NopCloser(bytes.NewReader(f.body)), ContentLength: int64(len(f.body)), Request: r,
	}, nil
}

func (s *sparing) fetch(r *http.Request) fetched {
	next := s.next
	if next == nil {
		next = http.DefaultTransport
	}
	f := fetched{at: time.Now()}
	res, err := next.RoundTrip(r)
	if err != nil {
		f.err = err
		return f
	}
	defer res.Body.Close()
	f.status, f.header = res.StatusCode, res.Header
	f.body, f.err = io.ReadAll(io.LimitReader(res.Body, maxFetched))
	return f
}
