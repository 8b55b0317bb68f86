package authn_test

import (
	"context"
	"crypto"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/identity"
	"github.com/daytona-go/daytona/server/identity/authn"
)

// provider is an OIDC provider elsewhere.
type provider struct {
	*httptest.Server
	mu      sync.Mutex
	keys    map[string]*rsa.PrivateKey
	public  string // what it calls itself; its URL if empty
	down    bool
	fetched atomic.Int64
}

func newProvider(t *testing.T) *provider {
	t.Helper()
	p := &provider{keys: map[string]*rsa.PrivateKey{}}
	mux := http.NewServeMux()
	mux.HandleFunc("/.well-known/openid-configuration", func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.down {
			http.Error(w, "down", http.StatusBadGateway)
			return
		}
		json.NewEncoder(w).Encode(map[string]string{"issuer": p.issuer(), "jwks_uri": p.issuer() + "/keys"})
	})
	mux.HandleFunc("/keys", func(w http.ResponseWriter, r *http.Request) {
		p.fetched.Add(1)
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.down {
			http.Error(w, "down", http.StatusBadGateway)
			return
		}
		var set jose.JSONWebKeySet
		for id, k := range p.keys {
			set.Keys = append(set.Keys, jose.JSONWebKey{Key: &k.PublicKey, KeyID: id, Algorithm: "RS256", Use: "sig"})
		}
		json.NewEncoder(w).Encode(set)
	})
	p.Server = httptest.NewServer(mux)
	t.Cleanup(p.Close)
	p.rotate(t, "1")
	return p
}

func (p *provider) issuer() string {
	if p.public != "" {
		return p.public
	}
	return p.URL
}

func (p *provider) rotate(t *testing.T, id string) {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.keys[id] = k
}

func part(v any) string {
	b, _ := json.Marshal(v)
	return base64.RawURLEncoding.EncodeToString(b)
}

// token signs claims, with what is usual where they say nothing.
func (p *provider) token(key string, claims map[string]any) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := map[string]any{"iss": p.issuer(), "aud": "api", "sub": "user-1", "exp": time.Now().Add(time.Hour).Unix(), "iat": time.Now().Unix()}
	for k, v := range claims {
		if v == nil {
			delete(all, k)
		} else {
			all[k] = v
		}
	}
	text := part(map[string]string{"alg": "RS256", "kid": key}) + "." + part(all)
	sum := sha256.Sum256([]byte(text))
	sig, _ := rsa.SignPKCS1v15(rand.Reader, p.keys[key], crypto.SHA256, sum[:])
	return text + "." + base64.RawURLEncoding.EncodeToString(sig)
}

// users provisions everybody and knows those of a list.
type users struct {
	mu   sync.Mutex
	seen []identity.Claims
	err  error
}

func (u *users) Fill(_ context.Context, p *identity.Principal) error {
	if u.err != nil {
		return u.err
	}
	if p.UserID == "gone" {
		return &daytona.Error{Kind: daytona.KindNotFound}
	}
	p.Name, p.Admin = "Name of "+p.UserID, p.UserID == "root"
	return nil
}

func (u *users) Provision(_ context.Context, c identity.Claims) (*identity.Principal, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.seen = append(u.seen, c)
	return &identity.Principal{UserID: c.Subject, Email: c.Email}, nil
}

// others knows keys of all kinds, and fails for the one that is called after
// it.
type others struct{}

func (others) Validate(_ context.Context, key string) (*identity.Principal, error) {
	switch key {
	case "dtn_user", "dtn_root", "dtn_gone":
		return &identity.Principal{Kind: identity.Key, UserID: strings.TrimPrefix(key, "dtn_"), OrganizationID: "org"}, nil
	case "keys fail":
		return nil, errors.New("database is down")
	}
	return nil, &daytona.Error{Kind: daytona.KindUnauthorized}
}

func (others) RunnerByKey(_ context.Context, key string) (string, string, error) {
	switch key {
	case "dtn_runner":
		return "runner-1", "eu", nil
	case "runners fail":
		return "", "", errors.New("database is down")
	}
	return "", "", &daytona.Error{Kind: daytona.KindNotFound}
}

func (others) RegionByKey(_ context.Context, key string) (string, identity.Kind, error) {
	switch key {
	case "dtn_proxy":
		return "eu", identity.RegionProxy, nil
	case "dtn_gateway":
		return "eu", identity.RegionSSHGateway, nil
	case "regions fail":
		return "", 0, errors.New("database is down")
	}
	return "", 0, &daytona.Error{Kind: daytona.KindNotFound}
}

func (others) Member(_ context.Context, organizationID, userID string) (identity.Role, []identity.Permission, error) {
	switch {
	case organizationID == "org" && userID == "u":
		return identity.Member, []identity.Permission{identity.ReadVolumes}, nil
	case organizationID == "fails":
		return "", nil, errors.New("database is down")
	}
	return "", nil, &daytona.Error{Kind: daytona.KindNotFound}
}

const proxyKey, sshKey, healthKey = "key of the proxy 1234", "key of the gateway 123", "key of the health check"

func authenticator(t *testing.T, tokens *authn.Tokens, u *users) *authn.Authenticator {
	t.Helper()
	a, err := authn.New(authn.Config{
		Services: map[identity.Kind]string{identity.Proxy: proxyKey, identity.SSHGateway: sshKey, identity.HealthCheck: healthKey, identity.Collector: ""},
		Tokens:   tokens, Keys: others{}, Users: u, Members: others{}, Runners: others{}, Regions: others{},
	})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func tokens(t *testing.T, c authn.TokensConfig) *authn.Tokens {
	t.Helper()
	if c.Audience == "" {
		c.Audience = "api"
	}
	c.Log = slog.New(slog.DiscardHandler)
	v, err := authn.NewTokens(c)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestAuthenticate(t *testing.T) {
	p := newProvider(t)
	a := authenticator(t, tokens(t, authn.TokensConfig{Issuer: p.URL}), &users{})
	for bearer, want := range map[string]identity.Principal{
		proxyKey:                       {Kind: identity.Proxy},
		sshKey:                         {Kind: identity.SSHGateway},
		healthKey:                      {Kind: identity.HealthCheck},
		"dtn_user":                     {Kind: identity.Key, UserID: "user", OrganizationID: "org", Name: "Name of user"},
		"dtn_root":                     {Kind: identity.Key, UserID: "root", OrganizationID: "org", Name: "Name of root", Admin: true},
		"dtn_runner":                   {Kind: identity.Runner, RunnerID: "runner-1", RegionID: "eu"},
		"dtn_proxy":                    {Kind: identity.RegionProxy, RegionID: "eu"},
		"dtn_gateway":                  {Kind: identity.RegionSSHGateway, RegionID: "eu"},
		p.token("1", map[string]any{}): {Kind: identity.JWT, UserID: "user-1"},
	} {
		got, err := a.Authenticate(t.Context(), bearer)
		if err != nil || fmt.Sprintf("%+v", *got) != fmt.Sprintf("%+v", want) {
			t.Errorf("%.20s: %+v %v", bearer, got, err)
		}
	}
	for _, bearer := range []string{"", "nothing", "dtn_gone", proxyKey[1:], proxyKey + " ", strings.Repeat("x", 1<<20), "eyJ.eyJ.x", "eyJhbGciOiJub25lIn0.eyJzdWIiOiJyb290In0."} {
		if got, err := a.Authenticate(t.Context(), bearer); !errors.Is(err, daytona.ErrUnauthorized) {
			t.Errorf("%.20s: %+v %v", bearer, got, err)
		} else if bearer != "" && len(bearer) < 100 && strings.Contains(err.Error(), bearer) {
			t.Errorf("the error has the credential: %v", err)
		}
	}
	for _, bearer := range []string{"keys fail", "runners fail", "regions fail"} {
		if _, err := a.Authenticate(t.Context(), bearer); err == nil || errors.Is(err, daytona.ErrUnauthorized) {
			t.Errorf("%s: %v", bearer, err)
		}
	}
	// Nothing is known: nobody is let in.
	none, err := authn.New(authn.Config{})
	if err != nil {
		t.Fatal(err)
	}
	for _, bearer := range []string{"", "x", proxyKey, p.token("1", nil)} {
		if _, err := none.Authenticate(t.Context(), bearer); !errors.Is(err, daytona.ErrUnauthorized) {
			t.Error(err)
		}
	}
}

func TestNew(t *testing.T) {
	for _, services := range []map[identity.Kind]string{
		{identity.Proxy: "short"},
		{identity.Proxy: proxyKey, identity.Collector: proxyKey},
	} {
		if _, err := authn.New(authn.Config{Services: services}); !errors.Is(err, daytona.ErrInvalid) || strings.Contains(err.Error(), proxyKey) {
			t.Error(err)
		}
	}
}

func TestJoin(t *testing.T) {
	a := authenticator(t, nil, &users{})
	u := &identity.Principal{Kind: identity.JWT, UserID: "u", Email: "e"}
	got, err := a.Join(t.Context(), u, "org")
	if err != nil || got.OrganizationID != "org" || got.Role != identity.Member || !got.May(identity.ReadVolumes) || got.May(identity.WriteVolumes) || got.Email != "e" || u.OrganizationID != "" {
		t.Errorf("%+v %v", got, err)
	}
	for _, c := range []struct {
		p   identity.Principal
		org string
	}{
		{*u, "other"}, {*u, ""}, {*u, strings.Repeat("o", 65)}, {identity.Principal{Kind: identity.JWT, UserID: "x"}, "org"},
		{identity.Principal{Kind: identity.JWT}, "org"}, {identity.Principal{Kind: identity.Key, UserID: "u"}, "org"},
	} {
		if got, err := a.Join(t.Context(), &c.p, c.org); !errors.Is(err, daytona.ErrForbidden) {
			t.Errorf("%+v: %+v %v", c, got, err)
		}
	}
	if _, err := a.Join(t.Context(), u, "fails"); err == nil || errors.Is(err, daytona.ErrForbidden) {
		t.Error(err)
	}
}

// Every way in which a token can be wrong.
func TestTokens(t *testing.T) {
	p, stranger := newProvider(t), newProvider(t)
	v := tokens(t, authn.TokensConfig{Issuer: p.URL, Reserved: []string{"daytona-admin"}})
	good := p.token("1", map[string]any{"email": "a@example.com", "email_verified": true, "name": "Ada", "username": "ada", "aud": []string{"other", "api"}})
	c, err := v.Verify(t.Context(), good)
	if want := (identity.Claims{Subject: "user-1", Email: "a@example.com", EmailVerified: true, Name: "Ada", Username: "ada"}); err != nil || c != want {
		t.Errorf("%+v %v", c, err)
	}
	// Okta's.
	c, err = v.Verify(t.Context(), p.token("1", map[string]any{"cid": "client", "uid": "00u1", "sub": "ada@example.com", "email_verified": "true"}))
	if err != nil || c.Subject != "00u1" || c.Email != "ada@example.com" || !c.EmailVerified {
		t.Errorf("%+v %v", c, err)
	}
	parts := strings.Split(good, ".")
	hs := part(map[string]string{"alg": "HS256", "kid": "1"}) + "." + parts[1]
	mac := hmac.New(sha256.New, p.keys["1"].PublicKey.N.Bytes())
	io.WriteString(mac, hs)
	for name, token := range map[string]string{
		"expired":                  p.token("1", map[string]any{"exp": time.Now().Add(-time.Second).Unix()}),
		"without an end":           p.token("1", map[string]any{"exp": nil}),
		"not yet":                  p.token("1", map[string]any{"nbf": time.Now().Add(time.Hour).Unix()}),
		"for another audience":     p.token("1", map[string]any{"aud": "other"}),
		"for no audience":          p.token("1", map[string]any{"aud": nil}),
		"of another issuer":        p.token("1", map[string]any{"iss": "https://evil.example"}),
		"of a stranger":            stranger.token("1", nil),
		"of a stranger, as ours":   stranger.token("1", map[string]any{"iss": p.URL}),
		"signature of another":     parts[0] + "." + part(map[string]any{"iss": p.URL, "aud": "api", "sub": "root", "exp": time.Now().Add(time.Hour).Unix()}) + "." + parts[2],
		"no signature":             parts[0] + "." + parts[1] + ".",
		"alg none":                 part(map[string]string{"alg": "none"}) + "." + parts[1] + ".",
		"alg HS256 with the key":   hs + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil)),
		"alg RS512":                part(map[string]string{"alg": "RS512", "kid": "1"}) + "." + parts[1] + "." + parts[2],
		"a reserved user":          p.token("1", map[string]any{"sub": "daytona-admin"}),
		"a reserved user, by Okta": p.token("1", map[string]any{"sub": "x", "cid": "c", "uid": "daytona-admin"}),
		"no JSON":                  "eyJ.eyJ.eyJ",
		"nothing":                  "",
	} {
		if c, err := v.Verify(t.Context(), token); !errors.Is(err, daytona.ErrUnauthorized) {
			t.Errorf("%s: %+v %v", name, c, err)
		}
	}
}

// Keys are fetched once, again for one that is new, and not as often as
// somebody sends rubbish.
func TestTokensRotation(t *testing.T) {
	p := newProvider(t)
	v := tokens(t, authn.TokensConfig{Issuer: p.URL})
	for range 3 {
		if _, err := v.Verify(t.Context(), p.token("1", nil)); err != nil {
			t.Fatal(err)
		}
	}
	if n := p.fetched.Load(); n != 1 {
		t.Errorf("fetched %d times", n)
	}
	parts := strings.Split(p.token("1", nil), ".")
	for range 100 {
		bad := parts[0] + "." + parts[1] + "." + part("rubbish")
		if _, err := v.Verify(t.Context(), bad); !errors.Is(err, daytona.ErrUnauthorized) {
			t.Fatal(err)
		}
	}
	if n := p.fetched.Load(); n > 2 {
		t.Errorf("a hundred bad tokens made it fetch %d times", n)
	}
	w := tokens(t, authn.TokensConfig{Issuer: p.URL})
	p.rotate(t, "2")
	for _, key := range []string{"2", "1"} {
		if _, err := w.Verify(t.Context(), p.token(key, nil)); err != nil {
			t.Errorf("%s: %v", key, err)
		}
	}
}

// A provider that is down is no reason to tell users that their tokens are
// wrong, and is asked again when it is back.
func TestTokensDown(t *testing.T) {
	p := newProvider(t)
	set := func(down bool) { p.mu.Lock(); defer p.mu.Unlock(); p.down = down }
	set(true)
	v := tokens(t, authn.TokensConfig{Issuer: p.URL})
	for range 2 {
		if _, err := v.Verify(t.Context(), p.token("1", nil)); !errors.Is(err, daytona.ErrUnavailable) {
			t.Error(err)
		}
	}
	set(false)
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		_, err := v.Verify(t.Context(), p.token("1", nil))
		if err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
	// What is known already needs no provider.
	set(true)
	if _, err := v.Verify(t.Context(), p.token("1", nil)); err != nil {
		t.Error(err)
	}
}

// A server may reach the provider by another URL than users do.
func TestTokensPublicIssuer(t *testing.T) {
	p := newProvider(t)
	p.public = "https://login.example.com"
	v := tokens(t, authn.TokensConfig{Issuer: p.URL, PublicIssuer: "https://login.example.com/"})
	if c, err := v.Verify(t.Context(), p.token("1", nil)); err != nil || c.Subject != "user-1" {
		t.Errorf("%+v %v", c, err)
	}
	// A provider that calls itself something else is not believed.
	w := tokens(t, authn.TokensConfig{Issuer: p.URL})
	if _, err := w.Verify(t.Context(), p.token("1", map[string]any{"iss": p.URL})); !errors.Is(err, daytona.ErrUnavailable) {
		t.Error(err)
	}
}

// noKeys has no keys.
type noKeys struct{}

func (noKeys) VerifySignature(context.Context, string) ([]byte, error) {
	return nil, errors.New("signed by nobody")
}
