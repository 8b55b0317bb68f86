package proxy_test

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"math/big"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/daytona-go/daytona/server/identity"
	"github.com/daytona-go/daytona/server/proxy"
)

// provider is an OpenID Connect provider at which everybody is user.
type provider struct {
	*httptest.Server
	key   *rsa.PrivateKey
	mu    sync.Mutex
	codes map[string]url.Values // the request that a code is for
	user  string
}

func newProvider(t *testing.T) *provider {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p := &provider{key: key, codes: map[string]url.Values{}, user: "user-a"}
	mux := http.NewServeMux()
	b64 := base64.RawURLEncoding.EncodeToString
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, r *http.Request) {
		json.NewEncoder(w).Encode(map[string]any{"issuer": p.URL, "authorization_endpoint": p.URL + "/authorize", "token_endpoint": p.URL + "/token",
			"jwks_uri": p.URL + "/keys", "id_token_signing_alg_values_supported": []string{"RS256"}})
	})
	mux.HandleFunc("GET /keys", func(w http.ResponseWriter, r *http.Request) {
		json.NewEncoder(w).Encode(map[string]any{"keys": []any{map[string]any{"kty": "RSA", "alg": "RS256", "use": "sig", "kid": "1",
			"n": b64(key.N.Bytes()), "e": b64(big.NewInt(int64(key.E)).Bytes())}}})
	})
	mux.HandleFunc("GET /authorize", func(w http.ResponseWriter, r *http.Request) {
		code := rand.Text()
		p.mu.Lock()
		p.codes[code] = r.URL.Query()
		p.mu.Unlock()
		http.Redirect(w, r, r.URL.Query().Get("redirect_uri")+"?"+url.Values{"code": {code}, "state": {r.URL.Query().Get("state")}}.Encode(), http.StatusFound)
	})
	mux.HandleFunc("POST /token", func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		q := p.codes[r.PostFormValue("code")]
		delete(p.codes, r.PostFormValue("code"))
		p.mu.Unlock()
		sum := sha256.Sum256([]byte(r.PostFormValue("code_verifier")))
		if q == nil || q.Get("code_challenge") != b64(sum[:]) || q.Get("code_challenge_method") != "S256" || q.Get("redirect_uri") != r.PostFormValue("redirect_uri") {
			http.Error(w, `{"error":"invalid_grant"}`, http.StatusBadRequest)
			return
		}
		claims, _ := json.Marshal(map[string]any{"iss": p.URL, "aud": q.Get("client_id"), "sub": p.user, "exp": time.Now().Add(time.Hour).Unix(), "iat": time.Now().Unix(), "nonce": q.Get("nonce")})
		signed := b64([]byte(`{"alg":"RS256","kid":"1"}`)) + "." + b64(claims)
		hash := sha256.Sum256([]byte(signed))
		sig, _ := rsa.SignPKCS1v15(rand.Reader, key, 5 /* SHA-256 */, hash[:])
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(map[string]any{"access_token": "access-of-" + p.user, "token_type": "Bearer", "expires_in": 3600, "id_token": signed + "." + b64(sig)})
	})
	p.Server = httptest.NewServer(mux)
	t.Cleanup(p.Close)
	return p
}

// browser follows redirects, keeps cookies and finds the provider as well as
// all hosts of the proxy.
func (w *world) browser(p *provider) *http.Client {
	jar, _ := cookiejar.New(nil)
	return &http.Client{Jar: jar, Transport: split{p.Listener.Addr().String(), w.client.Transport}}
}

type split struct {
	provider string
	proxy    http.RoundTripper
}

func (s split) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Host == s.provider {
		return http.DefaultTransport.RoundTrip(r)
	}
	return s.proxy.RoundTrip(r)
}

func loginWorld(t *testing.T) (*world, *provider, *hostile, string) {
	p := newProvider(t)
	w := newWorld(t, func(c *proxy.Config) {
		c.Login = &proxy.Login{Issuer: p.URL, ClientID: "daytona", Audience: "daytona-api"}
	})
	w.change(func() {
		w.keys["access-of-user-a"] = &identity.Principal{Kind: identity.JWT, UserID: "user-a"}
		w.keys["access-of-user-b"] = &identity.Principal{Kind: identity.JWT, UserID: "user-b"}
	})
	h := &hostile{}
	return w, p, h, at(app(t, h.ServeHTTP), sandboxA)
}

func TestLogin(t *testing.T) {
	w, p, h, own := loginWorld(t)
	// The first step, as it is on the wire.
	a := w.call("GET", own+"/deep/page?x=1", "")
	to, err := url.Parse(a.header.Get("Location"))
	if err != nil || a.status != 307 || !strings.HasPrefix(to.String(), p.URL+"/authorize?") {
		t.Fatalf("%d %v", a.status, a.header)
	}
	q := to.Query()
	if q.Get("redirect_uri") != "https://"+domain+"/callback" || q.Get("audience") != "daytona-api" || q.Get("scope") != "openid profile" || q.Get("code_challenge_method") != "S256" || q.Get("client_id") != "daytona" {
		t.Errorf("%v", q)
	}
	var state struct{ State, ReturnTo, SandboxID string }
	b, err := base64.RawURLEncoding.DecodeString(q.Get("state"))
	if err != nil || json.Unmarshal(b, &state) != nil || state.SandboxID != sandboxA || !strings.HasPrefix(state.ReturnTo, own) || len(state.State) < 20 {
		t.Errorf("%s %v", b, err)
	}
	cookie := (&http.Response{Header: a.header}).Cookies()[0]
	if !strings.HasPrefix(cookie.Name, "__Host-daytona-login-") || !cookie.HttpOnly || !cookie.Secure || cookie.Domain != "" || strings.Contains(cookie.Value, state.State) {
		t.Errorf("%+v", cookie)
	}
	// All of it.
	browser := w.browser(p)
	resp, err := browser.Get(own + "/deep/page?x=1")
	if err != nil || resp.StatusCode != 200 || resp.Request.URL.String() != own+"/deep/page?x=1" {
		t.Fatalf("%v %v", resp, err)
	}
	if strings.Contains(h.text(), "daytona-") || !strings.HasPrefix(h.text(), "GET /deep/page?x=1\n") {
		t.Errorf("the sandbox sees\n%s", h.text())
	}
	if resp, err = browser.Get(own + "/again"); err != nil || resp.StatusCode != 200 || !strings.HasPrefix(h.text(), "GET /again\n") {
		t.Errorf("%v %v", resp, err)
	}
	// The membership ends, and the cookie with it.
	w.change(func() { delete(w.members, "user-a") })
	w.proxy.Forget()
	hits := h.hits.Load()
	if resp, err = browser.Get(own + "/after"); err != nil || resp.StatusCode != 404 || h.hits.Load() != hits {
		t.Errorf("%v %v", resp, err)
	}
	// Somebody who is no member is told nothing of it; nor of one that is not there.
	p.user = "user-b"
	for _, url := range []string{own, strings.Replace(own, sandboxA, unknown, 1)} {
		if resp, err := w.browser(p).Get(url); err != nil || resp.StatusCode != 404 {
			t.Errorf("%v %v", resp, err)
		}
	}
	// What asks for no page is not sent anywhere.
	if a := w.call("POST", own+"/", ""); a.status != 401 {
		t.Errorf("%d", a.status)
	}
	if a := w.call("GET", w.base()+"/toolbox/"+sandboxA+"/version", ""); a.status != 401 {
		t.Errorf("%d", a.status)
	}
	if strings.Contains(w.log.String(), "access-of-") {
		t.Error("a token is in the log")
	}
}

// Nobody but the browser that began a login can end it, and it leads to where
// it began.
func TestLoginIsBound(t *testing.T) {
	w, p, h, own := loginWorld(t)
	a := w.call("GET", own+"/", "")
	cookie := strings.Split(a.header.Get("Set-Cookie"), ";")[0]
	resp, err := (&http.Client{CheckRedirect: w.client.CheckRedirect}).Get(a.header.Get("Location"))
	if err != nil {
		t.Fatal(err)
	}
	back := resp.Header.Get("Location") // the callback, with a code
	step := w.call("GET", back, "")
	final := step.header.Get("Location")
	if step.status != 302 || !strings.HasPrefix(final, own+"/.daytona/callback?") {
		t.Fatalf("%d %v", step.status, step.header)
	}
	for name, header := range map[string][]string{
		"no cookie":    nil,
		"another's":    {"Cookie", strings.Split(w.call("GET", own+"/", "").header.Get("Set-Cookie"), ";")[0]},
		"a made one":   {"Cookie", strings.Split(cookie, "=")[0] + "=" + strings.Repeat("A", 100)},
		"of this name": {"Cookie", strings.Split(cookie, "=")[0] + "=" + strings.Split(strings.Split(w.call("GET", own+"/", "").header.Get("Set-Cookie"), ";")[0], "=")[1]},
	} {
		a := w.call("GET", final, "", header...)
		if a.status != 401 {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
		for _, c := range (&http.Response{Header: a.header}).Cookies() {
			if c.MaxAge >= 0 {
				t.Errorf("%s: %+v", name, c)
			}
		}
	}
	other := strings.Replace(final, sandboxA, sandboxB, 1)
	if a := w.call("GET", other, "", "Cookie", cookie); a.status != 401 {
		t.Errorf("at another host: %d", a.status)
	}
	a = w.call("GET", final, "", "Cookie", cookie)
	if a.status != 302 || a.header.Get("Location") != own+"/" {
		t.Errorf("%d %s %v", a.status, a.body, a.header)
	}
	if h.hits.Load() != 0 {
		t.Errorf("the sandbox was asked")
	}
	// The callback sends nobody anywhere else.
	enc := func(v any) string { b, _ := json.Marshal(v); return base64.RawURLEncoding.EncodeToString(b) }
	for _, to := range []string{"https://evil.test/", "https://" + domain + "/", "https://3000-" + sandboxB + "." + domain + "/", "http://3000-" + sandboxA + "." + domain + "/",
		"https://3000-" + sandboxA + "." + domain + "@evil.test/", "https://3000-" + sandboxA + "." + domain + ".evil.test/", "//evil.test", "javascript:x", ""} {
		a := w.call("GET", w.base()+"/callback?code=x&state="+enc(map[string]string{"state": "12345678", "returnTo": to, "sandboxId": sandboxA}), "")
		if a.status != 400 {
			t.Errorf("%s: %d %v", to, a.status, a.header)
		}
	}
	for _, state := range []string{"", "x", enc([]int{1}), strings.Repeat("A", 10000)} {
		if a := w.call("GET", w.base()+"/callback?code=x&state="+state, ""); a.status != 400 {
			t.Errorf("%.20s: %d", state, a.status)
		}
	}
	_ = p
}
