package server_test

import (
	"context"
	"encoding/json"
	"html"
	"io"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/oauth2"

	"github.com/daytona-go/daytona/internal/wire"
	"github.com/daytona-go/daytona/server"
	"github.com/daytona-go/daytona/server/identity/issuer"
	"github.com/daytona-go/daytona/server/store/storetest"
)

const ssoPassword = "correct horse battery"

// corp is an OIDC provider elsewhere: its users are those whose id is the part
// of their address before the @; mallory's address is nobody's that is known.
type corp struct {
	*issuer.Issuer
	url string
}

type corpUsers struct{}

func (corpUsers) Info(_ context.Context, id string) (email, name string, verified bool, err error) {
	switch id {
	case "mallory":
		return "mallory@corp.example", "Mallory", false, nil
	case "eve":
		return "eve@other.example", "Eve", true, nil
	}
	return id + "@corp.example", strings.ToUpper(id), true, nil
}

func newCorp(t *testing.T, callback string) *corp {
	t.Helper()
	c := &corp{}
	h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { c.ServeHTTP(w, r) }))
	t.Cleanup(h.Close)
	c.url = h.URL + "/oidc"
	var err error
	c.Issuer, err = issuer.New(issuer.Config{
		DB: storetest.Open(t, storetest.SQLite(t)), Users: corpUsers{}, URL: c.url, Audience: "corp", Secret: []byte(strings.Repeat("s", 32)),
		Clients: []issuer.Client{{ID: "daytona", Secret: "a secret of this client", RedirectURIs: []string{callback}}}, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"ada", "admin", "mallory", "eve"} {
		if err := c.SetPassword(t.Context(), id, id+"@login.example", ssoPassword); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// visitor is somebody with a browser.
type visitor struct {
	t *testing.T
	s *running
	*http.Client
	jar  *cookiejar.Jar
	page string
	at   *url.URL
	code string // where the browser has come back to the program with one
}

func (s *running) visitor(t *testing.T) *visitor {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	v := &visitor{t: t, s: s, jar: jar}
	v.Client = &http.Client{Jar: jar, CheckRedirect: func(r *http.Request, _ []*http.Request) error {
		if "http://"+r.URL.Host == s.URL && strings.HasPrefix(r.URL.Path, "/dashboard") {
			v.code = r.URL.Query().Get("code")
			return http.ErrUseLastResponse
		}
		return nil
	}}
	return v
}

func (v *visitor) read(r *http.Response, err error) {
	v.t.Helper()
	if err != nil {
		v.t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		v.t.Fatal(err)
	}
	v.page, v.at = string(b), r.Request.URL
}

var hidden = regexp.MustCompile(`<input type="hidden" name="([^"]*)" value="([^"]*)"`)

// send fills in the form that the visitor sees.
func (v *visitor) send(fields ...string) {
	v.t.Helper()
	form := url.Values{}
	for _, m := range hidden.FindAllStringSubmatch(v.page, -1) {
		form.Set(m[1], html.UnescapeString(m[2]))
	}
	if form.Get("csrf") == "" {
		v.t.Fatalf("no form at %s: %s", v.at, v.page)
	}
	for i := 0; i < len(fields); i += 2 {
		form.Set(fields[i], fields[i+1])
	}
	v.read(v.PostForm(v.at.Scheme+"://"+v.at.Host+"/oidc/login", form))
}

// begin opens the login; done returns the token that it ended with, or "".
func (v *visitor) begin() (done func() string) {
	v.t.Helper()
	verifier := oauth2.GenerateVerifier()
	c := oauth2.Config{ClientID: "daytona", RedirectURL: v.s.URL + "/dashboard", Scopes: []string{"openid", "profile", "email"},
		Endpoint: oauth2.Endpoint{AuthURL: v.s.URL + "/oidc/authorize", TokenURL: v.s.URL + "/oidc/oauth/token", AuthStyle: oauth2.AuthStyleInParams}}
	v.code = ""
	v.read(v.Get(c.AuthCodeURL("state", oauth2.S256ChallengeOption(verifier))))
	return func() string {
		v.t.Helper()
		if v.code == "" {
			return ""
		}
		token, err := c.Exchange(v.t.Context(), v.code, oauth2.VerifierOption(verifier))
		if err != nil {
			v.t.Fatal(err)
		}
		return token.AccessToken
	}
}

// bySSO logs in by the provider, as a user of it.
func (v *visitor) bySSO(email, as string) string {
	v.t.Helper()
	done := v.begin()
	v.send("email", email, "sso", "1")
	if v.at.Hostname() != "127.0.0.1" {
		v.t.Fatalf("the browser was not sent to the provider: %s %s", v.at, v.page)
	}
	v.send("email", as+"@login.example", "password", ssoPassword)
	return done()
}

// as makes a request with a token.
func (s *running) as(t *testing.T, token, method, path, body string, out any) int {
	t.Helper()
	other := &running{URL: s.URL, Key: token}
	status, text := other.call(t, method, path, body, out)
	if status >= 400 {
		t.Logf("%s %s: %d %s", method, path, status, text)
	}
	return status
}

// People of an organization log in by its OIDC provider, and are members then;
// who is a user already is asked first; whom the provider does not vouch for is
// refused.
func TestSSO(t *testing.T) {
	s := start(t, nil, func(c *server.Config) {
		c.Admin.Email, c.Admin.Password, c.OIDC.TrustDomains = "admin@corp.example", ssoPassword, true
		c.AllowedAddresses = []string{"127.0.0.1"}
	})
	provider := newCorp(t, s.URL+"/oidc/sso/callback")
	owner := s.visitor(t)
	done := owner.begin()
	owner.send("email", "admin@corp.example", "password", ssoPassword)
	admin := done()
	if admin == "" {
		t.Fatal(owner.page)
	}
	// There is none yet.
	early := s.visitor(t)
	early.begin()
	if early.send("email", "ada@corp.example", "sso", "1"); !strings.Contains(early.page, "No organization has a login for this address.") {
		t.Fatal(early.page)
	}
	var org wire.Organization
	if status := s.as(t, admin, "POST", "/organizations", `{"name":"Corp","defaultRegionId":"us"}`, &org); status != 201 {
		t.Fatal(status)
	}
	if status := s.as(t, admin, "POST", "/organizations/"+org.ID+"/sso-enabled", `{"ssoEnabled":true}`, nil); status != 204 {
		t.Fatal(status)
	}
	idp, err := json.Marshal(map[string]any{"name": "Corp login", "emailDomains": []string{"corp.example"},
		"oidcConfig": map[string]string{"issuerUrl": provider.url, "clientId": "daytona", "clientSecret": "a secret of this client"}})
	if err != nil {
		t.Fatal(err)
	}
	var made wire.IdentityProvider
	if status := s.as(t, admin, "POST", "/organizations/"+org.ID+"/identity-providers", string(idp), &made); status != 201 {
		t.Fatal(status)
	}
	// Somebody new, twice.
	first := ""
	for range 2 {
		token := s.visitor(t).bySSO("ada@corp.example", "ada")
		if token == "" {
			t.Fatal("ada is not logged in")
		}
		var me wire.User
		var all []wire.Organization
		if s.as(t, token, "GET", "/users/me", "", &me); me.Name != "ADA" || me.Email != "" || first != "" && me.ID != first {
			t.Errorf("%+v", me)
		}
		first = me.ID
		if s.as(t, token, "GET", "/organizations", "", &all); len(all) != 2 || !all[0].Personal || all[1].ID != org.ID {
			t.Errorf("%+v", all)
		}
	}
	// One whose address is a user's already is not that user, until they say so.
	link := s.visitor(t)
	if token := link.bySSO("admin@corp.example", "admin"); token != "" || !strings.Contains(link.page, "There is an account with this address already") {
		t.Fatalf("%q %s", token, link.page)
	}
	var pending []wire.PendingSSOLink
	if s.as(t, admin, "GET", "/users/me/pending-sso-links", "", &pending); len(pending) != 1 || pending[0].IdPName != "Corp login" {
		t.Fatalf("%+v", pending)
	}
	if status := s.as(t, admin, "POST", "/users/me/pending-sso-links/"+pending[0].ID+"/confirm", "", nil); status >= 300 {
		t.Fatal(status)
	}
	var me wire.User
	if s.as(t, s.visitor(t).bySSO("admin@corp.example", "admin"), "GET", "/users/me", "", &me); me.ID != "daytona-admin" {
		t.Errorf("%+v", me)
	}
	for _, as := range []string{"mallory", "eve"} { // an address that is not verified, and one of another domain
		v := s.visitor(t)
		if token := v.bySSO("x@corp.example", as); token != "" || !strings.Contains(v.page, "says of no address of yours") {
			t.Errorf("%s: %q %s", as, token, v.page)
		}
	}
	// What comes back to another browser, or with another's state, is nothing.
	v := s.visitor(t)
	done = v.begin()
	v.send("email", "ada@corp.example", "sso", "1")
	state := strings.Repeat("0", 64)
	if v.read(v.Get(s.URL + "/oidc/sso/callback?code=x&state=" + state)); done() != "" || !strings.Contains(v.page, "begin anew") {
		t.Errorf("a wrong state: %s", v.page)
	}
	other := s.visitor(t)
	if other.read(other.Get(s.URL + "/oidc/sso/callback?code=x&state=" + state)); !strings.Contains(other.page, "begin anew") {
		t.Errorf("no login: %s", other.page)
	}
	// With the provider, the login ends.
	if status := s.as(t, admin, "PATCH", "/organizations/"+org.ID+"/identity-providers/"+made.ID, `{"enabled":false}`, nil); status != 200 {
		t.Fatal(status)
	}
	last := s.visitor(t)
	last.begin()
	if last.send("email", "ada@corp.example", "sso", "1"); !strings.Contains(last.page, "No organization has a login for this address.") {
		t.Error(last.page)
	}
}
