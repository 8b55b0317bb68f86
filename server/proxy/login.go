package proxy

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/identity"
	"github.com/daytona-go/daytona/server/live"
)

// Login is the OpenID Connect provider where browsers log in to see previews
// that are not public. The provider must know {protocol}://{domain}/callback as
// a redirect URI, for each domain.
type Login struct {
	// Issuer is the provider's own name, as browsers reach it.
	Issuer string
	// Internal is where the server reaches it. Defaults to Issuer.
	Internal string
	ClientID string
	// ClientSecret defaults to none: a public client, which PKCE protects.
	ClientSecret string
	// Audience that tokens are to be for. Defaults to none: the client's own.
	Audience string
	// Client makes the requests to the provider. Defaults to one with a timeout
	// of 10 s.
	Client *http.Client
}

const (
	// loginPath is where a preview host takes what the provider said.
	loginPath = "/.daytona/callback"
	// loginTime is how long a login may take.
	loginTime = 5 * time.Minute
	// maxState bounds the state that comes back from a provider, in bytes.
	maxState = 8 << 10
)

// login is a Login that has been looked up.
type login struct {
	Login
	mu       sync.Mutex
	provider *oidc.Provider
}

func newLogin(l Login) *login {
	if l.Internal == "" {
		l.Internal = l.Issuer
	}
	if l.Client == nil {
		l.Client = &http.Client{Timeout: 10 * time.Second}
	}
	return &login{Login: l}
}

// find asks the provider about itself, until it has answered once.
func (l *login) find(ctx context.Context) (*oidc.Provider, *oauth2.Config, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.provider == nil {
		ctx := oidc.ClientContext(context.WithoutCancel(ctx), l.Client)
		if l.Internal != l.Issuer {
			ctx = oidc.InsecureIssuerURLContext(ctx, l.Issuer) // where it is asked, not what it says it is
		}
		p, err := oidc.NewProvider(ctx, l.Internal)
		if err != nil {
			return nil, nil, &daytona.Error{Kind: daytona.KindUnavailable, Message: "the login is not available just now", Err: err}
		}
		l.provider = p
	}
	e := l.provider.Endpoint()
	e.AuthURL = swap(e.AuthURL, l.Internal, l.Issuer)
	e.TokenURL = swap(e.TokenURL, l.Issuer, l.Internal)
	return l.provider, &oauth2.Config{ClientID: l.ClientID, ClientSecret: l.ClientSecret, Endpoint: e, Scopes: []string{oidc.ScopeOpenID, "profile"}}, nil
}

// swap changes the beginning of a URL.
func swap(u, from, to string) string {
	if rest, ok := strings.CutPrefix(u, strings.TrimRight(from, "/")); ok {
		return strings.TrimRight(to, "/") + rest
	}
	return u
}

// issued reports whether a bearer token says that it is of the provider: such a
// one is not for a sandbox.
func (l *login) issued(bearer string) bool {
	parts := strings.Split(bearer, ".")
	if len(parts) != 3 || len(bearer) > 16<<10 {
		return false
	}
	b, err := base64.RawURLEncoding.DecodeString(parts[1])
	var claims struct {
		Issuer string `json:"iss"`
	}
	return err == nil && json.Unmarshal(b, &claims) == nil && strings.TrimRight(claims.Issuer, "/") == strings.TrimRight(l.Issuer, "/")
}

// pending is a login under way, in a cookie of the preview host: nobody but the
// browser that began it can end it.
type pending struct {
	State    string `json:"s"`
	Nonce    string `json:"n"`
	Verifier string `json:"v"`
	Path     string `json:"p"`
	Until    int64  `json:"u"`
}

// state is what travels by the provider and the callback host.
type state struct {
	State     string `json:"state"`
	ReturnTo  string `json:"returnTo"`
	SandboxID string `json:"sandboxId"`
}

// callbackURL is where providers send browsers: at the domain, without a port
// and an id.
func (q *request) callbackURL(h *host) string {
	return q.config.Protocol + "://" + strings.TrimPrefix(h.suffix, ".") + "/callback"
}

// sendToLogin sends a browser to the provider.
func (q *request) sendToLogin() {
	_, c, err := q.login.find(q.r.Context())
	if err != nil {
		q.refuse(err)
		return
	}
	path := q.r.URL.EscapedPath()
	if query := withoutToken(q.r.URL.RawQuery); query != "" {
		path += "?" + query
	}
	if len(path) > 2<<10 {
		path = "/" // it has to fit in a cookie
	}
	l := pending{State: rand.Text(), Nonce: rand.Text(), Verifier: oauth2.GenerateVerifier(), Path: path, Until: q.config.Clock().Add(loginTime).Unix()}
	b, _ := json.Marshal(state{State: l.State, ReturnTo: q.config.Protocol + "://" + q.host.own() + "/", SandboxID: q.host.label})
	c.RedirectURL = q.callbackURL(q.host)
	options := []oauth2.AuthCodeOption{oauth2.S256ChallengeOption(l.Verifier), oidc.Nonce(l.Nonce)}
	if q.login.Audience != "" {
		options = append(options, oauth2.SetAuthURLParam("audience", q.login.Audience))
	}
	name := cookieLogin + l.State[:8]
	h := q.w.Header()
	h.Add("Set-Cookie", q.cookie(name, q.seal.seal(q.host.own(), name, l), loginTime).String())
	h.Set("Location", c.AuthCodeURL(base64.RawURLEncoding.EncodeToString(b), options...))
	h.Set("Cache-Control", "no-store")
	h.Set("Referrer-Policy", "no-referrer")
	q.w.WriteHeader(http.StatusTemporaryRedirect)
}

// callback takes what the provider says to the preview host that asked for it,
// which alone knows whether the browser is the one that began. Nothing but one
// of our own preview hosts is gone to, and nothing but its own path there.
func (q *request) callback() {
	query := q.r.URL.Query()
	text := query.Get("state")
	var s state
	b, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(text, "="))
	if q.login == nil || err != nil || len(text) > maxState || json.Unmarshal(b, &s) != nil {
		q.fail(http.StatusBadRequest, "", "the login was not begun here")
		return
	}
	u, err := url.Parse(s.ReturnTo)
	if err != nil || u.Scheme != q.config.Protocol || u.User != nil {
		q.fail(http.StatusBadRequest, "", "the login was not begun here")
		return
	}
	h, ok := parseHost(u.Host, q.config.Domains)
	if !ok || h.signed || h.label != s.SandboxID {
		q.fail(http.StatusBadRequest, "", "the login was not begun here")
		return
	}
	out := url.Values{"state": {s.State}}
	if code := query.Get("code"); code != "" {
		out.Set("code", code)
	} else {
		out.Set("error", query.Get("error"))
	}
	q.w.Header().Set("Location", q.config.Protocol+"://"+h.own()+loginPath+"?"+out.Encode())
	q.w.Header().Set("Cache-Control", "no-store")
	q.w.Header().Set("Referrer-Policy", "no-referrer")
	q.w.WriteHeader(http.StatusFound)
}

// finishLogin exchanges the code and lets the user in, if they are a member.
func (q *request) finishLogin() {
	query := q.r.URL.Query()
	given := query.Get("state")
	var l pending
	found := false
	if len(given) >= 8 {
		name := cookieLogin + given[:8]
		for _, v := range q.cookieValues(name) {
			if q.seal.open(q.host.own(), name, v, &l) && subtle.ConstantTimeCompare([]byte(l.State), []byte(given)) == 1 {
				found = true
				break
			}
		}
		q.w.Header().Add("Set-Cookie", q.cookie(name, "", 0).String())
	}
	if !found || q.config.Clock().Unix() >= l.Until {
		q.refuse(unauthorized("authentication failed: the login was not begun in this browser, or too long ago"))
		return
	}
	code := query.Get("code")
	if code == "" {
		q.refuse(unauthorized("authentication failed: the provider did not let you in"))
		return
	}
	principal, err := q.exchange(q.r.Context(), l, code)
	if err != nil {
		q.refuse(err)
		return
	}
	s, err := q.sandbox(q.r.Context(), q.host.label)
	if err == nil {
		_, err = q.member(q.r.Context(), principal, s.OrganizationID)
	}
	if err != nil {
		if live.Refused(err) {
			err = &daytona.Error{Kind: daytona.KindNotFound, Message: "Sandbox with ID or name " + q.host.label + " not found"}
		}
		q.refuse(err)
		return
	}
	q.sandboxID, q.how = s.ID, "login"
	t := &ticket{Kind: ticketUser, Sandbox: s.ID, Port: q.host.port, Value: principal.UserID, Until: q.config.Clock().Add(ticketTime).Unix()}
	h := q.w.Header()
	h.Add("Set-Cookie", q.ticketCookie(t).String())
	h.Set("Location", q.config.Protocol+"://"+q.host.own()+l.Path)
	h.Set("Cache-Control", "no-store")
	h.Set("Referrer-Policy", "no-referrer")
	q.w.WriteHeader(http.StatusFound)
}

// exchange finds out who the provider let in.
func (q *request) exchange(ctx context.Context, l pending, code string) (*identity.Principal, error) {
	failed := func(err error) error {
		return &daytona.Error{Kind: daytona.KindUnauthorized, Message: "authentication failed: the login could not be completed", Err: err}
	}
	provider, c, err := q.login.find(ctx)
	if err != nil {
		return nil, err
	}
	c.RedirectURL = q.callbackURL(q.host)
	ctx = oidc.ClientContext(ctx, q.login.Client)
	token, err := c.Exchange(ctx, code, oauth2.VerifierOption(l.Verifier))
	if err != nil {
		// The library's error may have the provider's answer in it.
		return nil, failed(errors.New("exchange of the code failed"))
	}
	bearers := []string{token.AccessToken}
	if raw, _ := token.Extra("id_token").(string); raw != "" {
		id, err := provider.VerifierContext(ctx, &oidc.Config{ClientID: q.login.ClientID}).Verify(ctx, raw)
		if err != nil || subtle.ConstantTimeCompare([]byte(id.Nonce), []byte(l.Nonce)) != 1 {
			return nil, failed(err)
		}
		bearers = append(bearers, raw)
	}
	for _, bearer := range bearers {
		// Some providers' access tokens say nothing to anybody but themselves.
		p, err := q.config.Authenticator.Authenticate(ctx, bearer)
		if err == nil && p.Kind == identity.JWT && p.UserID != "" {
			return p, nil
		}
		if err != nil && !errors.Is(err, daytona.ErrUnauthorized) {
			return nil, asUnauthorized(err)
		}
	}
	return nil, failed(nil)
}
