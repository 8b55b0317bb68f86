package issuer_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"io"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/identity/authn"
	"github.com/daytona-go/daytona/server/identity/issuer"
	"github.com/daytona-go/daytona/server/store"
	"github.com/daytona-go/daytona/server/store/storetest"
)

// The library that speaks the protocol logs to slog's default.
func TestMain(m *testing.M) {
	slog.SetDefault(slog.New(slog.DiscardHandler))
	m.Run()
}

// users are two.
type users struct{}

func (users) Info(_ context.Context, id string) (email, name string, verified bool, err error) {
	switch id {
	case "ada":
		return "ada@example.com", "Ada", true, nil
	case "bob":
		return "bob@example.com", "Bob", false, nil
	}
	return "", "", false, &daytona.Error{Kind: daytona.KindNotFound}
}

// site is an issuer on a server of its own.
type site struct {
	*issuer.Issuer
	*httptest.Server
	db  *store.DB
	mu  sync.Mutex
	add time.Duration // to the time that it is
	log *lines
}

// lines is a log that a test can read.
type lines struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (s *site) clock() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Now().Add(s.add)
}

func (s *site) pass(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.add += d
}

const (
	secret   = "0123456789abcdef0123456789abcdef"
	password = "correct horse battery"
	app      = "https://app.example/callback"
)

func open(t *testing.T, db *store.DB, change ...func(*issuer.Config)) *site {
	t.Helper()
	s := &site{db: db, log: &lines{}}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.Issuer.ServeHTTP(w, r) }))
	s.StartTLS()
	t.Cleanup(s.Server.Close)
	c := issuer.Config{
		DB: db, Users: users{}, URL: s.Server.URL + "/oidc", Audience: "daytona", Secret: []byte(secret), Now: s.clock,
		Log: slog.New(slog.NewTextHandler(s.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Clients: []issuer.Client{
			{ID: "app", Name: "The App", RedirectURIs: []string{app, "http://localhost/callback"}, LogoutURIs: []string{"https://app.example/"}},
			{ID: "old-cli", Secret: "not so secret as it seems", RedirectURIs: []string{"http://localhost:3009/callback"}},
		},
	}
	for _, f := range change {
		f(&c)
	}
	var err error
	if s.Issuer, err = issuer.New(c); err != nil {
		t.Fatal(err)
	}
	for id, email := range map[string]string{"ada": "Ada@Example.com", "bob": "bob@example.com"} {
		if ok, err := s.HasPassword(t.Context(), id); err != nil || ok {
			continue
		}
		if err := s.SetPassword(t.Context(), id, email, password); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// browser is one with cookies, that stops where it is sent elsewhere.
type browser struct {
	*http.Client
	t *testing.T
	s *site
}

func (s *site) browser(t *testing.T) *browser {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	c := *s.Client()
	c.Jar = jar
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &browser{&c, t, s}
}

// page is what a browser got.
type page struct {
	status   int
	header   http.Header
	location string
	body     string
}

func (b *browser) do(req *http.Request) page {
	b.t.Helper()
	res, err := b.Do(req)
	if err != nil {
		b.t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	return page{res.StatusCode, res.Header, res.Header.Get("Location"), string(body)}
}

// get gets a page; path may be a whole URL.
func (b *browser) get(path string) page {
	b.t.Helper()
	if strings.HasPrefix(path, "/") {
		path = b.s.URL + path
	}
	req, err := http.NewRequestWithContext(b.t.Context(), "GET", path, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	return b.do(req)
}

// send fills in the form of a page, with the hidden fields that it has.
func (b *browser) send(p page, fields map[string]string, headers ...string) page {
	b.t.Helper()
	form := url.Values{}
	for _, m := range regexp.MustCompile(`<input type="hidden" name="([^"]*)" value="([^"]*)"`).FindAllStringSubmatch(p.body, -1) {
		form.Set(m[1], html.UnescapeString(m[2]))
	}
	for k, v := range fields {
		form.Set(k, v)
	}
	action := regexp.MustCompile(`<form method="post" action="([^"]*)"`).FindStringSubmatch(p.body)
	if action == nil {
		b.t.Fatalf("no form: %d %s", p.status, p.body)
	}
	req, err := http.NewRequestWithContext(b.t.Context(), "POST", b.s.URL+action[1], strings.NewReader(form.Encode()))
	if err != nil {
		b.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Origin", b.s.URL)
	req.Header.Set("Sec-Fetch-Site", "same-origin")
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Set(name, value)
	}
	return b.do(req)
}

func login(email, text string) map[string]string {
	return map[string]string{"email": email, "password": text}
}

// client is the app's side.
type client struct {
	oauth2.Config
	verifier string
	provider *oidc.Provider
	ctx      context.Context
}

func (s *site) app(t *testing.T) *client {
	t.Helper()
	ctx := oidc.ClientContext(t.Context(), s.Client())
	p, err := oidc.NewProvider(ctx, s.URL+"/oidc")
	if err != nil {
		t.Fatal(err)
	}
	return &client{oauth2.Config{
		ClientID: "app", Endpoint: p.Endpoint(), RedirectURL: app,
		Scopes: []string{"openid", "profile", "email", "offline_access"},
	}, oauth2.GenerateVerifier(), p, ctx}
}

func (c *client) begin(more ...oauth2.AuthCodeOption) string {
	return c.AuthCodeURL("state-1", append([]oauth2.AuthCodeOption{oauth2.S256ChallengeOption(c.verifier), oidc.Nonce("nonce-1")}, more...)...)
}

// follow goes on from page to page of the issuer until it is shown one or sent
// elsewhere.
func (b *browser) follow(p page) page {
	b.t.Helper()
	for range 5 {
		if p.location == "" || strings.HasPrefix(p.location, "https://app.example") {
			return p
		}
		p = b.get(p.location)
	}
	b.t.Fatal("sent in circles")
	return p
}

func (b *browser) code(p page) string {
	b.t.Helper()
	u, err := url.Parse(p.location)
	if err != nil || !strings.HasPrefix(p.location, app+"?") || u.Query().Get("state") != "state-1" || u.Query().Get("code") == "" {
		b.t.Fatalf("%d, sent to %q: %s", p.status, p.location, p.body)
	}
	return u.Query().Get("code")
}

// logIn logs a user in and returns the code.
func (b *browser) logIn(c *client) string {
	b.t.Helper()
	return b.code(b.follow(b.send(b.follow(b.get(c.begin())), login("ada@example.com", password))))
}

func (c *client) exchange(code string) (*oauth2.Token, error) {
	return c.Exchange(c.ctx, code, oauth2.VerifierOption(c.verifier))
}

func (c *client) refresh(token string) (*oauth2.Token, error) {
	return c.TokenSource(c.ctx, &oauth2.Token{RefreshToken: token}).Token()
}

// From a page to tokens that the API takes.
func TestLogin(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		s := open(t, db)
		c, b := s.app(t), s.browser(t)
		p := b.follow(b.get(c.begin()))
		if p.status != 200 || !strings.Contains(p.body, "The App") || p.header.Get("Cache-Control") != "no-store" ||
			!strings.Contains(p.header.Get("Content-Security-Policy"), "default-src 'none'") || !strings.Contains(p.header.Get("Content-Security-Policy"), "frame-ancestors 'none'") {
			t.Errorf("%+v", p)
		}
		p = b.send(p, login(" ADA@example.com ", password))
		for _, v := range p.header.Values("Set-Cookie") {
			if !strings.HasPrefix(v, "__Host-") || !strings.Contains(v, "; Path=/;") || !strings.Contains(v, "HttpOnly") || !strings.Contains(v, "Secure") ||
				!strings.Contains(v, "SameSite=Lax") || strings.Contains(v, "Domain") {
				t.Error(v)
			}
		}
		code := b.code(b.follow(p))
		token, err := c.exchange(code)
		if err != nil {
			t.Fatal(err)
		}
		if token.RefreshToken == "" || token.TokenType != "Bearer" || time.Until(token.Expiry) < 59*time.Minute {
			t.Errorf("%+v", token)
		}
		id, err := c.provider.Verifier(&oidc.Config{ClientID: "app"}).Verify(c.ctx, token.Extra("id_token").(string))
		if err != nil {
			t.Fatal(err)
		}
		var claims struct{ Email, Name, Nonce string }
		if err := id.Claims(&claims); err != nil || id.Subject != "ada" || claims.Email != "ada@example.com" || claims.Name != "Ada" || claims.Nonce != "nonce-1" || id.VerifyAccessToken(token.AccessToken) != nil {
			t.Errorf("%+v %+v %v", id, claims, err)
		}
		info, err := c.provider.UserInfo(c.ctx, oauth2.StaticTokenSource(token))
		if err != nil || info.Subject != "ada" || info.Email != "ada@example.com" || !info.EmailVerified {
			t.Errorf("%+v %v", info, err)
		}
		// The API, in this process or in another.
		for name, config := range map[string]authn.TokensConfig{
			"here":      {Issuer: s.URL + "/oidc", Audience: "daytona", KeySet: s.Issuer, Reserved: []string{"ada"}},
			"elsewhere": {Issuer: s.URL + "/oidc", Audience: "daytona", Client: s.Client()},
		} {
			v, err := authn.NewTokens(config)
			if err != nil {
				t.Fatal(err)
			}
			who, err := v.Verify(t.Context(), token.AccessToken)
			if err != nil || who.Subject != "ada" || who.Email != "ada@example.com" || who.Name != "Ada" || !who.EmailVerified {
				t.Errorf("%s: %+v %v", name, who, err)
			}
			if name == "here" {
				if who, err := v.Verify(t.Context(), token.Extra("id_token").(string)); !errors.Is(err, daytona.ErrUnauthorized) {
					t.Errorf("an ID token is a credential: %+v %v", who, err)
				}
			}
		}
		// Nothing of it is in the database as it is, or in the log.
		var dump strings.Builder
		for _, table := range []string{"passwords", "sessions", "requests", "refresh_tokens", "keys"} {
			var rows []map[string]any
			if err := db.All(t.Context()).NewRaw("SELECT * FROM issuer_"+table).Scan(t.Context(), &rows); err != nil || len(rows) == 0 {
				t.Errorf("%s: %v", table, err)
			}
			fmt.Fprintln(&dump, rows)
		}
		secrets := []string{code, token.RefreshToken, token.AccessToken, password}
		u, _ := url.Parse(s.URL)
		for _, k := range b.Jar.Cookies(u) {
			secrets = append(secrets, k.Value)
		}
		for _, v := range secrets {
			if strings.Contains(dump.String(), v) {
				t.Errorf("the database has %s", v)
			}
			if strings.Contains(s.log.String(), v) {
				t.Errorf("the log has %s", v)
			}
		}
		if strings.Contains(dump.String(), "PRIVATE") {
			t.Error("the database has a signing key")
		}
	})
}

// A code is good once, for who asked for it, for a minute.
func TestCode(t *testing.T) {
	s := open(t, storetest.Open(t, storetest.SQLite(t)))
	b := s.browser(t)
	for name, c := range map[string]struct {
		change func(c *client, code string) (*oauth2.Token, error)
	}{
		"wrong verifier": {func(c *client, code string) (*oauth2.Token, error) {
			return c.Exchange(c.ctx, code, oauth2.VerifierOption(oauth2.GenerateVerifier()))
		}},
		"no verifier": {func(c *client, code string) (*oauth2.Token, error) { return c.Exchange(c.ctx, code) }},
		"another redirect": {func(c *client, code string) (*oauth2.Token, error) {
			c.RedirectURL = "http://localhost/callback"
			return c.exchange(code)
		}},
		"another client": {func(c *client, code string) (*oauth2.Token, error) {
			c.ClientID, c.ClientSecret = "old-cli", "not so secret as it seems"
			return c.exchange(code)
		}},
		"another code": {func(c *client, code string) (*oauth2.Token, error) { return c.exchange(code + "x") }},
		"too late": {func(c *client, code string) (*oauth2.Token, error) {
			s.pass(61 * time.Second)
			return c.exchange(code)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			a := s.app(t)
			code := b.code(b.follow(b.send(b.follow(b.get(a.begin(oauth2.SetAuthURLParam("prompt", "login")))), login("ada@example.com", password))))
			good := *a
			if token, err := c.change(a, code); err == nil {
				t.Errorf("%+v", token)
			}
			if name == "another code" {
				return
			}
			// Somebody has tried: the code is used up.
			if token, err := good.exchange(code); err == nil {
				t.Errorf("%+v", token)
			}
		})
	}
	// A code that comes twice ends what came of it the first time.
	a := s.app(t)
	code := b.code(b.follow(b.get(a.begin())))
	token, err := a.exchange(code)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.exchange(code); err == nil {
		t.Error("a code is good twice")
	}
	if _, err := a.refresh(token.RefreshToken); err == nil {
		t.Error("tokens of a stolen code are good")
	}
}

// Only S256 counts as PKCE; a program that has a secret instead need not have
// it.
func TestPKCE(t *testing.T) {
	s := open(t, storetest.Open(t, storetest.SQLite(t)))
	b, c := s.browser(t), s.app(t)
	for name, u := range map[string]string{
		"none":  c.AuthCodeURL("state-1"),
		"plain": c.AuthCodeURL("state-1", oauth2.SetAuthURLParam("code_challenge", c.verifier), oauth2.SetAuthURLParam("code_challenge_method", "plain")),
		"bare":  c.AuthCodeURL("state-1", oauth2.SetAuthURLParam("code_challenge", c.verifier)),
	} {
		p := b.get(u)
		if at, _ := url.Parse(p.location); at.Query().Get("error") != "invalid_request" {
			t.Errorf("%s: %d %s", name, p.status, p.location)
		}
	}
	old := *c
	old.ClientID, old.ClientSecret, old.RedirectURL = "old-cli", "not so secret as it seems", "http://localhost:3009/callback"
	p := b.send(b.follow(b.get(old.AuthCodeURL("state-1"))), login("ada@example.com", password))
	p = b.get(p.location)
	at, err := url.Parse(p.location)
	if err != nil || at.Host != "localhost:3009" {
		t.Fatalf("%d %s", p.status, p.location)
	}
	wrong := old
	wrong.ClientSecret = "guessed"
	if _, err := wrong.Exchange(c.ctx, at.Query().Get("code")); err == nil {
		t.Error("a wrong secret is taken")
	}
}

// A login belongs to the browser that began it.
func TestOtherBrowser(t *testing.T) {
	s := open(t, storetest.Open(t, storetest.SQLite(t)))
	c := s.app(t)
	attacker, victim := s.browser(t), s.browser(t)
	p := attacker.get(c.begin())
	begun := p.location // what the attacker sends the victim
	id := begun[strings.Index(begun, "=")+1:]
	for _, path := range []string{begun, "/oidc/authorize/callback?id=" + id} {
		if p := victim.get(path); p.status != 400 || p.location != "" {
			t.Errorf("%s: %d %s", path, p.status, p.location)
		}
	}
	// The victim's own form, with the attacker's login in it.
	form := victim.follow(victim.get(c.begin()))
	mine := form.body
	form.body = regexp.MustCompile(`name="request" value="[^"]*"`).ReplaceAllString(form.body, `name="request" value="`+id+`"`)
	if p := victim.send(form, login("ada@example.com", password)); p.status != 400 {
		t.Errorf("%d %s", p.status, p.location)
	}
	form.body = mine
	p = victim.send(form, login("ada@example.com", password))
	if p.status != 303 {
		t.Fatal(p.status)
	}
	// The attacker can't go on with the victim's.
	if q := attacker.get(p.location); q.status != 400 || q.location != "" {
		t.Errorf("%d %s", q.status, q.location)
	}
	code := victim.code(victim.follow(p))
	// Nor can anybody a second time.
	if q := victim.get(p.location); q.status != 400 {
		t.Errorf("%d %s", q.status, q.location)
	}
	if _, err := c.exchange(code); err != nil {
		t.Error(err)
	}
}

// Cookies that somebody has put into a browser before it logs in stand for
// nobody afterwards.
func TestFixation(t *testing.T) {
	s := open(t, storetest.Open(t, storetest.SQLite(t)))
	c := s.app(t)
	u, _ := url.Parse(s.URL)
	planted := strings.Repeat("ab", 32)
	plant := func(b *browser) {
		var cookies []*http.Cookie
		for _, name := range []string{"__Host-daytona_browser", "__Host-daytona_session"} {
			cookies = append(cookies, &http.Cookie{Name: name, Value: planted, Path: "/", Secure: true})
		}
		b.Jar.SetCookies(u, cookies)
	}
	victim, attacker := s.browser(t), s.browser(t)
	plant(victim)
	plant(attacker)
	p := victim.send(victim.follow(victim.get(c.begin())), login("ada@example.com", password))
	if p.status != 303 {
		t.Fatal(p.status, p.body)
	}
	for _, k := range victim.Jar.Cookies(u) {
		if k.Value == planted {
			t.Errorf("%s is what it was", k.Name)
		}
	}
	if q := attacker.get(p.location); q.status != 400 || q.location != "" {
		t.Errorf("who planted the cookie goes on: %d %s", q.status, q.location)
	}
	if q := attacker.follow(attacker.get(c.begin())); q.location != "" {
		t.Errorf("who planted the cookie is logged in: %s", q.location)
	}
	victim.code(victim.follow(p))
}

// Nobody is sent anywhere but where a client has said.
func TestRedirects(t *testing.T) {
	s := open(t, storetest.Open(t, storetest.SQLite(t)))
	b := s.browser(t)
	for _, to := range []string{
		"https://evil.example/", "https://app.example/callback/", "https://app.example/callback?x=1", "https://app.example.evil/callback", "https://app.example@evil.example/callback",
		"http://app.example/callback", "//evil.example", "javascript:alert(1)", "https://app.example/callback#x", "http://localhost.evil.example/callback", "http://localhost/other", "",
	} {
		c := s.app(t)
		c.RedirectURL = to
		if p := b.get(c.begin()); p.status != 400 || p.location != "" {
			t.Errorf("%q: %d, sent to %q", to, p.status, p.location)
		}
		if to == "" {
			continue
		}
		q := url.Values{"post_logout_redirect_uri": {to}, "client_id": {"app"}}
		if p := b.get("/oidc/end_session?" + q.Encode()); p.status == 302 && strings.Contains(p.location, "evil") {
			t.Errorf("%q: %d, sent to %q", to, p.status, p.location)
		}
	}
	for _, to := range []string{app, "http://localhost:54321/callback", "http://127.0.0.1:1/callback"} {
		c := s.app(t)
		c.RedirectURL = to
		if p := b.get(c.begin()); p.status != 302 || !strings.HasPrefix(p.location, "/oidc/login?request=") {
			t.Errorf("%q: %d %s", to, p.status, p.location)
		}
	}
	c := s.app(t)
	c.ClientID = "nobody"
	if p := b.get(c.begin()); p.status != 400 || p.location != "" {
		t.Errorf("%d %s", p.status, p.location)
	}
	p := b.get("/oidc/end_session?" + url.Values{"post_logout_redirect_uri": {"https://app.example/"}, "client_id": {"app"}}.Encode())
	if p.location != "https://app.example/" {
		t.Errorf("%d %s", p.status, p.location)
	}
	if p := b.get("/oidc/end_session"); p.location != "/oidc/signed-out" || b.get(p.location).status != 200 {
		t.Errorf("%d %s", p.status, p.location)
	}
}

// Forms are sent by the pages here, in the browser that was shown them.
func TestCSRF(t *testing.T) {
	s := open(t, storetest.Open(t, storetest.SQLite(t)))
	c := s.app(t)
	for name, f := range map[string]func(b *browser, form page) page{
		"no token": func(b *browser, form page) page {
			return b.send(form, map[string]string{"csrf": "", "email": "ada@example.com", "password": password})
		},
		"wrong token": func(b *browser, form page) page {
			return b.send(form, map[string]string{"csrf": strings.Repeat("0", 64), "email": "ada@example.com", "password": password})
		},
		"another site": func(b *browser, form page) page {
			return b.send(form, login("ada@example.com", password), "Sec-Fetch-Site: cross-site", "Origin: https://evil.example")
		},
		"old browser": func(b *browser, form page) page {
			return b.send(form, login("ada@example.com", password), "Sec-Fetch-Site: ", "Origin: https://evil.example")
		},
		"other browser": func(b *browser, form page) page { return s.browser(t).send(form, login("ada@example.com", password)) },
	} {
		b := s.browser(t)
		p := f(b, b.follow(b.get(c.begin())))
		if p.status != 403 || p.location != "" || len(p.header.Values("Set-Cookie")) > 0 {
			t.Errorf("%s: %d %s", name, p.status, p.location)
		}
	}
}

// A wrong password, one of nobody, and too many of either.
func TestWrongPassword(t *testing.T) {
	s := open(t, storetest.Open(t, storetest.SQLite(t)))
	b := s.browser(t)
	form := b.follow(b.get(s.app(t).begin()))
	var says []string
	for _, l := range []map[string]string{
		login("ada@example.com", "wrong"), login("nobody@example.com", password), login("", ""), login("ada@example.com", ""),
		login(strings.Repeat("a", 300), password), login("ada@example.com", strings.Repeat("a", 2000)), login(`"><script>alert(1)</script>`, "x"),
	} {
		p := b.send(form, l)
		if p.status != 401 || p.location != "" || len(p.header.Values("Set-Cookie")) > 0 || strings.Contains(p.body, "<script") {
			t.Errorf("%.30v: %d %s", l, p.status, p.body)
		}
		m := regexp.MustCompile(`role="alert">([^<]*)<`).FindStringSubmatch(p.body)
		if m == nil {
			t.Fatal(p.body)
		}
		says = append(says, m[1])
	}
	if slices.Sort(says); len(slices.Compact(says)) != 1 {
		t.Errorf("it can be told who is there: %q", says)
	}
	tooMany := 0
	for range 12 {
		if b.send(form, login("ada@example.com", "wrong")).status == 429 {
			tooMany++
		}
	}
	if tooMany == 0 || b.send(form, login("ada@example.com", password)).status != 429 {
		t.Error("passwords can be tried for ever")
	}
	// Somebody else is not kept out, and after a while nobody is.
	if p := b.send(b.follow(b.get(s.app(t).begin())), login("bob@example.com", password)); p.status != 303 {
		t.Error(p.status)
	}
	s.pass(5 * time.Minute)
	fresh := s.browser(t)
	if p := fresh.send(fresh.follow(fresh.get(s.app(t).begin())), login("ada@example.com", password)); p.status != 303 {
		t.Error(p.status)
	}
}

// Who has logged in need not again, unless a client wants it.
func TestSession(t *testing.T) {
	s := open(t, storetest.Open(t, storetest.SQLite(t)))
	b, c := s.browser(t), s.app(t)
	prompt := func(v string) oauth2.AuthCodeOption { return oauth2.SetAuthURLParam("prompt", v) }
	p := b.get(c.begin(prompt("none")))
	if u, _ := url.Parse(p.location); u.Query().Get("error") != "login_required" || u.Query().Get("state") != "state-1" {
		t.Errorf("%d %s", p.status, p.location)
	}
	b.logIn(c)
	for _, o := range [][]oauth2.AuthCodeOption{nil, {prompt("none")}, {oauth2.SetAuthURLParam("max_age", "3600")}} {
		if _, err := c.exchange(b.code(b.follow(b.get(c.begin(o...))))); err != nil {
			t.Error(err)
		}
	}
	s.pass(time.Second)
	for _, o := range []oauth2.AuthCodeOption{prompt("login"), prompt("select_account"), oauth2.SetAuthURLParam("max_age", "1")} {
		if p := b.follow(b.get(c.begin(o))); p.location != "" || !strings.Contains(p.body, "Password") {
			t.Errorf("%d %s", p.status, p.location)
		}
	}
	// Logging out ends it, and the client's refresh tokens.
	token, err := c.exchange(b.code(b.follow(b.get(c.begin()))))
	if err != nil {
		t.Fatal(err)
	}
	if p := b.get("/oidc/end_session?" + url.Values{"id_token_hint": {token.Extra("id_token").(string)}}.Encode()); p.status != 302 {
		t.Error(p.status)
	}
	if p := b.follow(b.get(c.begin())); p.location != "" {
		t.Error("still logged in")
	}
	if _, err := c.refresh(token.RefreshToken); err == nil {
		t.Error("a refresh token is good after a logout")
	}
	// A session ends by itself.
	b.logIn(c)
	s.pass(12 * time.Hour)
	if p := b.follow(b.get(c.begin())); p.location != "" {
		t.Error("still logged in")
	}
}

// A refresh token is replaced by each use; one that comes back later has been
// stolen, and ends them all.
func TestRefresh(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		s := open(t, db)
		b, c := s.browser(t), s.app(t)
		first, err := c.exchange(b.logIn(c))
		if err != nil {
			t.Fatal(err)
		}
		second, err := c.refresh(first.RefreshToken)
		if err != nil || second.RefreshToken == first.RefreshToken || second.AccessToken == first.AccessToken {
			t.Fatal(second, err)
		}
		// An answer that was lost, or a client that runs twice.
		again, err := c.refresh(first.RefreshToken)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.refresh(again.RefreshToken); err != nil {
			t.Error(err)
		}
		s.pass(11 * time.Second)
		if _, err := c.refresh(first.RefreshToken); err == nil {
			t.Error("a stolen token is good")
		}
		if _, err := c.refresh(second.RefreshToken); err == nil {
			t.Error("what came of a stolen token is good")
		}
		// Another client's, one that is none, and one that is too old.
		other := *c
		other.ClientID, other.ClientSecret = "old-cli", "not so secret as it seems"
		token, err := c.exchange(b.code(b.follow(b.get(c.begin()))))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := other.refresh(token.RefreshToken); err == nil {
			t.Error("another client's token is good")
		}
		if _, err := c.refresh(strings.Repeat("0", 64)); err == nil {
			t.Error("no token is good")
		}
		if _, err := c.refresh(token.AccessToken); err == nil {
			t.Error("an access token refreshes")
		}
		s.pass(30 * 24 * time.Hour)
		if _, err := c.refresh(token.RefreshToken); err == nil {
			t.Error("an old token is good")
		}
		if err := s.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		var n int
		if err := db.All(t.Context()).NewRaw("SELECT count(*) FROM issuer_refresh_tokens").Scan(t.Context(), &n); err != nil || n != 0 {
			t.Error(n, err)
		}
	})
}

func TestRevoke(t *testing.T) {
	s := open(t, storetest.Open(t, storetest.SQLite(t)))
	b, c := s.browser(t), s.app(t)
	token, err := c.exchange(b.logIn(c))
	if err != nil {
		t.Fatal(err)
	}
	revoke := func(client string) int {
		res, err := s.Client().PostForm(s.URL+"/oidc/revoke", url.Values{"token": {token.RefreshToken}, "client_id": {client}})
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		return res.StatusCode
	}
	if status := revoke("old-cli"); status < 400 {
		t.Error(status)
	}
	if status := revoke("app"); status != 200 {
		t.Error(status)
	}
	if _, err := c.refresh(token.RefreshToken); err == nil {
		t.Error("a revoked token is good")
	}
}

// A program without a browser logs in with the help of one.
func TestDevice(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		s := open(t, db)
		c, b := s.app(t), s.browser(t)
		ask := func() *oauth2.DeviceAuthResponse {
			t.Helper()
			d, err := c.DeviceAuth(c.ctx)
			if err != nil {
				t.Fatal(err)
			}
			return d
		}
		poll := func(d *oauth2.DeviceAuthResponse, client string) (map[string]any, string) {
			t.Helper()
			res, err := s.Client().PostForm(s.URL+"/oidc/oauth/token", url.Values{
				"grant_type": {"urn:ietf:params:oauth:grant-type:device_code"}, "device_code": {d.DeviceCode}, "client_id": {client},
			})
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			var m map[string]any
			if err := json.NewDecoder(res.Body).Decode(&m); err != nil {
				t.Fatal(err)
			}
			e, _ := m["error"].(string)
			return m, e
		}
		d := ask()
		if d.VerificationURI != s.URL+"/oidc/device" || !strings.HasPrefix(d.VerificationURIComplete, d.VerificationURI+"?user_code=") || len(d.UserCode) != 9 {
			t.Errorf("%+v", d)
		}
		if _, e := poll(d, "app"); e != "authorization_pending" {
			t.Error(e)
		}
		// By hand: the page asks for the code, the browser for a login.
		if p := b.get("/oidc/device"); p.status != 200 || !strings.Contains(p.body, "user_code") {
			t.Errorf("%+v", p)
		}
		p := b.follow(b.get("/oidc/device?user_code=" + strings.ToLower(strings.ReplaceAll(d.UserCode, "-", ""))))
		if !strings.Contains(p.body, "Password") {
			t.Fatalf("%+v", p)
		}
		if p := b.send(p, login("ada@example.com", "wrong")); p.status != 401 || !strings.Contains(p.body, d.UserCode) {
			t.Errorf("%+v", p)
		}
		p = b.follow(b.send(p, login("ada@example.com", password)))
		if !strings.Contains(p.body, "The App") || !strings.Contains(p.body, d.UserCode) || !strings.Contains(p.body, "ada@example.com") {
			t.Fatalf("%+v", p)
		}
		if _, e := poll(d, "app"); e != "authorization_pending" {
			t.Error("logged in before the user has agreed:", e)
		}
		// Not by another site, nor by another browser.
		if q := b.send(p, map[string]string{"answer": "yes", "csrf": ""}); q.status != 403 {
			t.Error(q.status)
		}
		if q := b.send(p, map[string]string{"answer": "yes"}, "Sec-Fetch-Site: cross-site", "Origin: https://evil.example"); q.status != 403 {
			t.Error(q.status)
		}
		if q := s.browser(t).send(p, map[string]string{"answer": "yes"}); q.status != 403 {
			t.Error(q.status)
		}
		if q := b.send(p, map[string]string{"answer": "yes"}); q.status != 200 {
			t.Errorf("%+v", q)
		}
		if _, e := poll(d, "old-cli"); e == "" {
			t.Error("another client gets the tokens")
		}
		m, e := poll(d, "app")
		if e != "" || m["access_token"] == "" || m["refresh_token"] == nil || m["id_token"] == nil {
			t.Fatalf("%v", m)
		}
		v, err := authn.NewTokens(authn.TokensConfig{Issuer: s.URL + "/oidc", Audience: "daytona", KeySet: s.Issuer})
		if err != nil {
			t.Fatal(err)
		}
		if who, err := v.Verify(t.Context(), m["access_token"].(string)); err != nil || who.Subject != "ada" {
			t.Error(who, err)
		}
		if _, err := c.refresh(m["refresh_token"].(string)); err != nil {
			t.Error(err)
		}
		if m, e := poll(d, "app"); e == "" {
			t.Errorf("a device code is good twice: %v", m)
		}
		// One that is refused, one that is too late, one that is mistyped.
		d = ask()
		p = b.get(d.VerificationURIComplete)
		if q := b.send(p, map[string]string{"answer": "no"}); q.status != 200 {
			t.Errorf("%+v", q)
		}
		if _, e := poll(d, "app"); e != "access_denied" {
			t.Error(e)
		}
		if q := b.send(p, map[string]string{"answer": "yes"}); q.status != 404 {
			t.Error("what was refused is allowed:", q.status)
		}
		d = ask()
		p = b.get(d.VerificationURIComplete)
		s.pass(16 * time.Minute)
		if q := b.send(p, map[string]string{"answer": "yes"}); q.status != 404 {
			t.Error(q.status)
		}
		for _, code := range []string{"BBBB-BBBB", "BBBB", "<script>"} {
			if q := b.get("/oidc/device?user_code=" + url.QueryEscape(code)); q.status == 303 || strings.Contains(q.body, "<script") || !strings.Contains(q.body, `role="alert"`) {
				t.Errorf("%s: %+v", code, q)
			}
		}
		tooMany := false
		for range 30 {
			tooMany = tooMany || b.get("/oidc/device?user_code=BBBB-BBBB").status == 429
		}
		if !tooMany {
			t.Error("codes can be guessed for ever")
		}
	})
}

// Signing keys last, are replaced, and are of use to nobody without the
// secret.
func TestKeys(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		s := open(t, db)
		b, c := s.browser(t), s.app(t)
		token, err := c.exchange(b.logIn(c))
		if err != nil {
			t.Fatal(err)
		}
		kid := func(token string) string {
			v, err := authn.NewTokens(authn.TokensConfig{Issuer: s.URL + "/oidc", Audience: "daytona", KeySet: s.Issuer})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := v.Verify(t.Context(), token); err != nil {
				t.Error(err)
			}
			return strings.Split(token, ".")[0]
		}
		keys := func(s *site) int {
			res, err := s.Client().Get(s.URL + "/oidc/keys")
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			var set struct{ Keys []map[string]any }
			if err := json.NewDecoder(res.Body).Decode(&set); err != nil {
				t.Fatal(err)
			}
			for _, k := range set.Keys {
				if k["d"] != nil || k["p"] != nil || k["alg"] != "RS256" {
					t.Errorf("%v", k)
				}
			}
			return len(set.Keys)
		}
		first := kid(token.AccessToken)
		// Another server of the same database and secret.
		other := open(t, db)
		if _, err := other.VerifySignature(t.Context(), token.AccessToken); err != nil {
			t.Error(err)
		}
		stranger := open(t, db, func(c *issuer.Config) { c.Secret = []byte(strings.Repeat("x", 32)) })
		if _, err := stranger.VerifySignature(t.Context(), token.AccessToken); err == nil {
			t.Error("the keys are open to another secret")
		}
		s.pass(91 * 24 * time.Hour)
		token2, err := c.exchange(b.logIn(c))
		if err != nil {
			t.Fatal(err)
		}
		if kid(token2.AccessToken) == first {
			t.Error("the key is not replaced")
		}
		s.pass(-91 * 24 * time.Hour)
		if n := keys(s); n < 1 {
			t.Error(n)
		}
		s.pass(200 * 24 * time.Hour)
		if err := s.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.pass(time.Minute)
		if _, err := s.VerifySignature(t.Context(), token.AccessToken); err == nil {
			t.Error("an old key is good for ever")
		}
	})
}

func TestSetPassword(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		s := open(t, db)
		ctx := t.Context()
		for _, c := range []struct {
			id, email, text string
			want            error
		}{
			{"ada", "ada@example.com", "short", daytona.ErrInvalid}, {"ada", "", password, daytona.ErrInvalid}, {"", "x@example.com", password, daytona.ErrInvalid},
			{"ada", "ada@example.com", strings.Repeat("x", 1025), daytona.ErrInvalid}, {"ada", "BOB@example.com", password, daytona.ErrConflict},
		} {
			err := s.SetPassword(ctx, c.id, c.email, c.text)
			if !errors.Is(err, c.want) || strings.Contains(err.Error(), c.text) {
				t.Errorf("%v: %v", c, err)
			}
		}
		b, c := s.browser(t), s.app(t)
		token, err := c.exchange(b.logIn(c))
		if err != nil {
			t.Fatal(err)
		}
		const changed = "another password"
		if err := s.SetPassword(ctx, "ada", "ada@example.com", changed); err != nil {
			t.Fatal(err)
		}
		if _, err := c.refresh(token.RefreshToken); err == nil {
			t.Error("who was logged in still is")
		}
		p := b.follow(b.get(c.begin()))
		if p.location != "" {
			t.Fatal("the browser is still logged in")
		}
		if q := b.send(p, login("ada@example.com", password)); q.status != 401 {
			t.Error(q.status)
		}
		if q := b.send(p, login("ada@example.com", changed)); q.status != 303 {
			t.Error(q.status)
		}
		if err := s.RemovePassword(ctx, "ada"); err != nil {
			t.Fatal(err)
		}
		if ok, err := s.HasPassword(ctx, "ada"); ok || err != nil {
			t.Error(ok, err)
		}
	})
}

func TestNew(t *testing.T) {
	db := storetest.Open(t, storetest.SQLite(t))
	good := func() issuer.Config {
		return issuer.Config{DB: db, Users: users{}, URL: "https://x.example/oidc", Audience: "api", Secret: []byte(secret), Clients: []issuer.Client{{ID: "a", RedirectURIs: []string{app}}}}
	}
	for name, change := range map[string]func(*issuer.Config){
		"no URL":          func(c *issuer.Config) { c.URL = "" },
		"slash":           func(c *issuer.Config) { c.URL += "/" },
		"other scheme":    func(c *issuer.Config) { c.URL = "ftp://x" },
		"short secret":    func(c *issuer.Config) { c.Secret = c.Secret[:31] },
		"no audience":     func(c *issuer.Config) { c.Audience = "" },
		"same client":     func(c *issuer.Config) { c.Clients = append(c.Clients, c.Clients[0]) },
		"guessable":       func(c *issuer.Config) { c.Clients[0].Secret = "guess" },
		"client of no id": func(c *issuer.Config) { c.Clients[0].ID = "" },
		"http":            func(c *issuer.Config) { c.Clients[0].RedirectURIs = []string{"http://app.example/callback"} },
		"no redirect":     func(c *issuer.Config) { c.Clients[0].RedirectURIs = []string{"/callback"} },
	} {
		c := good()
		change(&c)
		if _, err := issuer.New(c); !errors.Is(err, daytona.ErrInvalid) || strings.Contains(err.Error(), secret[:31]) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := issuer.New(good()); err != nil {
		t.Error(err)
	}
	// On this machine without TLS, cookies are as safe as they can be.
	c := good()
	c.URL, c.Clients[0].RedirectURIs = "http://localhost:3000/oidc", []string{"http://localhost:3000"}
	i, err := issuer.New(c)
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	i.ServeHTTP(w, httptest.NewRequest("GET", "http://localhost:3000/oidc/authorize?client_id=a", nil))
	if v := w.Header().Get("Set-Cookie"); strings.Contains(v, "Secure") || strings.HasPrefix(v, "__Host") || !strings.Contains(v, "HttpOnly") {
		t.Error(v)
	}
	for _, path := range []string{"/", "/oidc", "/other", "/oidc/healthz", "/oidc/oauth/introspect", "/oidc/../oidc/keys/x"} {
		w := httptest.NewRecorder()
		i.ServeHTTP(w, httptest.NewRequest("GET", "http://localhost:3000"+path, nil))
		if w.Code != 404 && w.Code != 301 && w.Code != 307 {
			t.Errorf("%s: %d", path, w.Code)
		}
	}
	w = httptest.NewRecorder()
	i.ServeHTTP(w, httptest.NewRequest("GET", "http://localhost:3000/oidc/authorize?state="+strings.Repeat("x", 9000), nil))
	if w.Code != 414 {
		t.Error(w.Code)
	}
}
