package issuer

import (
	"context"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"html/template"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/zitadel/oidc/v3/pkg/client/rp"
	"github.com/zitadel/oidc/v3/pkg/oidc"
	"golang.org/x/oauth2"

	"github.com/daytona-go/daytona/server/seal"
)

// Provider is an OIDC provider that vouches for the users of an organization.
type Provider struct {
	ID, Name, IssuerURL, ClientID, ClientSecret string
	Scopes                                      []string
}

// Account is who a provider says has logged in there.
type Account struct {
	Subject, Name, Email string
	// EmailVerified is nil if the provider says nothing of it.
	EmailVerified *bool
}

// SSO knows the providers of organizations, and whose their accounts are.
type SSO interface {
	// ProviderFor returns the one by which somebody with an address logs in;
	// nil if there is none.
	ProviderFor(ctx context.Context, email string) (*Provider, error)
	// Provider returns one by its id; nil if nobody may log in by it (any more).
	Provider(ctx context.Context, id string) (*Provider, error)
	// Admit returns the user that an account is, or says to them why it is
	// nobody's.
	Admit(ctx context.Context, providerID string, a Account) (userID, problem string, err error)
}

const ssoCookie = "daytona_sso"

// journey is what is known here of a login that is on its way through a
// provider. It is in a cookie, sealed: it is one browser's.
type journey struct {
	Request  string    `json:"r,omitempty"`
	UserCode string    `json:"u,omitempty"`
	Provider string    `json:"p"`
	State    string    `json:"s"` // a digest
	Nonce    string    `json:"n"`
	Verifier string    `json:"v"`
	Expires  time.Time `json:"e"`
}

// newBox returns what seals journeys; place is the browser they belong to.
func newBox(secret []byte) (*seal.Box, error) {
	key, err := derive(secret, "sso")
	if err != nil {
		return nil, err
	}
	return seal.New(hex.EncodeToString(key[:]))
}

// maxAnswer is the longest answer of a provider that is read, in bytes.
const maxAnswer = 1 << 20

// short is a way to providers whose answers end.
type short struct{ http.RoundTripper }

func (s short) RoundTrip(r *http.Request) (*http.Response, error) {
	w, err := s.RoundTripper.RoundTrip(r)
	if err == nil {
		w.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(w.Body, maxAnswer), w.Body}
	}
	return w, err
}

// party is this server as a client of a provider.
func (i *Issuer) party(ctx context.Context, p *Provider, nonce string) (rp.RelyingParty, error) {
	return rp.NewRelyingPartyOIDC(ctx, p.IssuerURL, p.ClientID, p.ClientSecret, i.config.URL+"/sso/callback", p.Scopes,
		rp.WithHTTPClient(i.sso), rp.WithSigningAlgsFromDiscovery(), rp.WithVerifierOpts(rp.WithNonce(func(context.Context) string { return nonce })))
}

// beginSSO sends a browser to the provider of an address. It reports false if
// there is none.
func (i *Issuer) beginSSO(w http.ResponseWriter, r *http.Request, page *template.Template, cookie string, q *request, code, email string) bool {
	ctx := r.Context()
	p, err := i.config.SSO.ProviderFor(ctx, normal(email))
	if err != nil {
		i.broken(w, page, err)
		return true
	}
	if p == nil {
		return false
	}
	state := random()
	j := journey{UserCode: code, Provider: p.ID, State: digest(state), Nonce: random(), Verifier: oauth2.GenerateVerifier(), Expires: i.now().Add(loginWithin)}
	if q != nil {
		j.Request = q.ID
	}
	party, err := i.party(ctx, p, j.Nonce)
	if err != nil {
		i.log.Warn("a provider can't be asked", "provider", p.ID, "err", err)
		i.unreachable(w, page)
		return true
	}
	to := rp.AuthURL(state, party, rp.WithCodeChallenge(oidc.NewSHACodeChallenge(j.Verifier)), rp.AuthURLOpt(rp.WithURLParam("nonce", j.Nonce)),
		rp.AuthURLOpt(rp.WithURLParam("login_hint", normal(email))))
	if u, err := url.Parse(to); err != nil || u.Scheme != "https" && u.Scheme != "http" {
		i.unreachable(w, page)
		return true
	}
	text, err := json.Marshal(j)
	if err != nil {
		i.broken(w, page, err)
		return true
	}
	i.setCookie(w, ssoCookie, i.box.Seal(string(text), "sso "+digest(cookie)), loginWithin)
	http.Redirect(w, r, to, http.StatusSeeOther)
	return true
}

func (i *Issuer) unreachable(w http.ResponseWriter, page *template.Template) {
	i.show(w, page, http.StatusBadGateway, view{Title: "Log in", Error: "Your organization's login can't be reached, or is not what it should be. Try again later."})
}

// endSSO takes a browser that comes back from a provider.
func (i *Issuer) endSSO(w http.ResponseWriter, r *http.Request, page *template.Template) {
	ctx := r.Context()
	cookie := i.cookie(r, browserCookie)
	if i.config.SSO == nil {
		http.NotFound(w, r)
		return
	}
	if !i.attempts.take("sso "+i.where(r), 30, 5*time.Minute) {
		tooMany(w)
		return
	}
	j := i.journey(r, cookie)
	// It is used once, however it ends.
	i.setCookie(w, ssoCookie, "", -time.Second)
	if j == nil || subtle.ConstantTimeCompare([]byte(digest(r.FormValue("state"))), []byte(j.State)) != 1 {
		i.gone(w, page)
		return
	}
	var q *request
	if j.UserCode == "" {
		var err error
		if q, err = i.pending(ctx, j.Request, digest(cookie)); err != nil {
			i.broken(w, page, err)
			return
		}
		if q == nil || q.CodeHash != nil {
			i.gone(w, page)
			return
		}
	}
	refuse := func(text string) {
		i.show(w, page, http.StatusForbidden, view{Title: "Log in", Error: text})
	}
	if r.FormValue("error") != "" {
		refuse("Your organization's login did not let you in.")
		return
	}
	p, err := i.config.SSO.Provider(ctx, j.Provider)
	if err != nil {
		i.broken(w, page, err)
		return
	}
	if p == nil {
		i.gone(w, page)
		return
	}
	party, err := i.party(ctx, p, j.Nonce)
	if err != nil {
		i.log.Warn("a provider can't be asked", "provider", p.ID, "err", err)
		i.unreachable(w, page)
		return
	}
	tokens, err := rp.CodeExchange[*oidc.IDTokenClaims](ctx, r.FormValue("code"), party, rp.WithCodeVerifier(j.Verifier))
	if err != nil {
		i.log.Warn("a login by a provider was refused", "provider", p.ID, "address", i.where(r), "err", err)
		refuse("Your organization's login did not let you in.")
		return
	}
	claims := tokens.IDTokenClaims
	a := Account{Subject: claims.Subject, Name: claims.Name, Email: normal(claims.Email)}
	if _, said := claims.Claims["email_verified"]; said {
		a.EmailVerified = new(bool(claims.EmailVerified))
	}
	userID, problem, err := i.config.SSO.Admit(ctx, p.ID, a)
	if err != nil {
		i.broken(w, page, err)
		return
	}
	if userID == "" {
		refuse(problem)
		return
	}
	i.finish(w, r, page, cookie, q, j.UserCode, userID)
}

// journey is the one that a browser is on; nil if it is on none.
func (i *Issuer) journey(r *http.Request, cookie string) *journey {
	c, err := r.Cookie(i.cookieName(ssoCookie))
	if err != nil || cookie == "" {
		return nil
	}
	text, err := i.box.Open(c.Value, "sso "+digest(cookie))
	if err != nil {
		return nil
	}
	j := &journey{}
	if json.Unmarshal([]byte(text), j) != nil || !i.now().Before(j.Expires) {
		return nil
	}
	return j
}

// Scopes are those of a text, openid among them.
func Scopes(text string) []string {
	list := strings.Fields(text)
	if !slices.Contains(list, oidc.ScopeOpenID) {
		list = append(list, oidc.ScopeOpenID)
	}
	return list
}
