package issuer

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	_ "embed"
	"html/template"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/maypok86/otter/v2"
	"github.com/zitadel/oidc/v3/pkg/oidc"

	"github.com/daytona-go/daytona/server/store"
)

//go:embed page.html
var pageHTML string

// browser is what cookies say of the browser that sent a request: hashes of
// the one that ties a login to it and of the one of its session, or "".
type browser struct{ hash, session string }

type browserKey struct{}

func browserOf(ctx context.Context) browser {
	b, _ := ctx.Value(browserKey{}).(browser)
	return b
}

const (
	browserCookie = "daytona_browser"
	sessionCookie = "daytona_session"
)

// cookieName is that of a cookie which no other host, and nothing without
// TLS, can set for this one.
func (i *Issuer) cookieName(name string) string {
	if i.secure {
		return "__Host-" + name
	}
	return name
}

func (i *Issuer) setCookie(w http.ResponseWriter, name, value string, d time.Duration) {
	http.SetCookie(w, &http.Cookie{
		Name: i.cookieName(name), Value: value, Path: "/", MaxAge: int(d / time.Second),
		Secure: i.secure, HttpOnly: true, SameSite: http.SameSiteLaxMode,
	})
}

// cookie returns the value of a cookie that can be one of ours.
func (i *Issuer) cookie(r *http.Request, name string) string {
	c, err := r.Cookie(i.cookieName(name))
	if err != nil || len(c.Value) != 64 {
		return ""
	}
	return c.Value
}

// routes are those of the pages and of the protocol.
func (i *Issuer) routes() http.Handler {
	page := template.Must(template.New("page").Parse(pageHTML))
	mux := http.NewServeMux()
	mux.HandleFunc("GET /login", func(w http.ResponseWriter, r *http.Request) { i.getLogin(w, r, page) })
	mux.HandleFunc("POST /login", func(w http.ResponseWriter, r *http.Request) { i.postLogin(w, r, page) })
	mux.HandleFunc("GET /sso/callback", func(w http.ResponseWriter, r *http.Request) { i.endSSO(w, r, page) })
	mux.HandleFunc("GET /device", func(w http.ResponseWriter, r *http.Request) { i.getDevice(w, r, page) })
	mux.HandleFunc("POST /device", func(w http.ResponseWriter, r *http.Request) { i.postDevice(w, r, page) })
	mux.HandleFunc("GET /signed-out", func(w http.ResponseWriter, r *http.Request) {
		i.show(w, page, http.StatusOK, view{Title: "Logged out", Message: "You have logged out."})
	})
	protocol := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b := browser{session: digestOf(i.cookie(r, sessionCookie)), hash: digestOf(i.cookie(r, browserCookie))}
		switch r.URL.Path {
		case "/authorize", "/device_authorization":
			// Each leaves something in the database.
			if !i.attempts.take("begin "+i.where(r), 120, time.Minute) {
				tooMany(w)
				return
			}
			if r.URL.Path == "/authorize" && b.hash == "" {
				value := random()
				i.setCookie(w, browserCookie, value, loginWithin)
				b.hash = digest(value)
			}
		case "/authorize/callback":
			q, err := i.pending(r.Context(), r.FormValue("id"), b.hash)
			if err != nil {
				i.broken(w, page, err)
				return
			}
			if q == nil || q.CodeHash != nil {
				i.gone(w, page)
				return
			}
		case "/end_session":
			i.setCookie(w, sessionCookie, "", -time.Second)
		}
		i.provider.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), browserKey{}, b)))
	})
	for _, p := range []string{oidc.DiscoveryEndpoint, "/authorize", "/authorize/callback", "/oauth/token", "/userinfo", "/revoke", "/end_session", "/keys", "/device_authorization"} {
		mux.Handle(p, protocol)
	}
	return mux
}

func digestOf(value string) string {
	if value == "" {
		return ""
	}
	return digest(value)
}

func tooMany(w http.ResponseWriter) {
	w.Header().Set("Retry-After", "60")
	http.Error(w, "Too many requests. Try again in a minute.", http.StatusTooManyRequests)
}

// view is what a page shows.
type view struct {
	Title, Message, Error string
	// Login asks for an address and a password, for a Request or a Device's
	// user code; Code asks for a user code, Confirm whether Client may log in
	// with one.
	Login, Code, Confirm, SSO                    bool
	Request, UserCode, Client, Email, CSRF, Self string
	Nonce                                        string
}

func (i *Issuer) show(w http.ResponseWriter, page *template.Template, status int, v view) {
	v.Nonce = rand.Text()
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	// form-action would forbid the redirects that follow a login.
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'nonce-"+v.Nonce+"'; frame-ancestors 'none'; base-uri 'none'")
	h.Set("X-Frame-Options", "DENY")
	w.WriteHeader(status)
	if err := page.Execute(w, v); err != nil {
		i.log.Debug("page was not shown", "err", err)
	}
}

// csrf is what a form has to bring with the cookie it belongs to.
func csrf(cookie string) string { return digest("form " + cookie) }

// genuine reports whether a form was sent by a page of ours, in this browser.
func (i *Issuer) genuine(r *http.Request, cookie string) bool {
	return i.origins.Check(r) == nil && cookie != "" &&
		subtle.ConstantTimeCompare([]byte(r.PostFormValue("csrf")), []byte(csrf(cookie))) == 1
}

func (i *Issuer) gone(w http.ResponseWriter, page *template.Template) {
	i.show(w, page, http.StatusBadRequest, view{Title: "Log in", Error: "This login is over, or was begun in another browser. Go back to where you came from and begin anew."})
}

func (i *Issuer) broken(w http.ResponseWriter, page *template.Template, err error) {
	i.log.Error("login does not work", "err", err)
	i.show(w, page, http.StatusInternalServerError, view{Title: "Log in", Error: "Something went wrong here. Try again."})
}

// getLogin shows the form, unless the browser is logged in already.
func (i *Issuer) getLogin(w http.ResponseWriter, r *http.Request, page *template.Template) {
	cookie := i.cookie(r, browserCookie)
	v := view{Title: "Log in", Login: true, SSO: i.config.SSO != nil, Self: i.prefix + "/login"}
	if code := r.FormValue("user_code"); code != "" {
		if cookie == "" {
			cookie = random()
			i.setCookie(w, browserCookie, cookie, loginWithin)
		}
		v.UserCode = userCode(code)
	} else {
		q, err := i.pending(r.Context(), r.FormValue("request"), digestOf(cookie))
		if err != nil {
			i.broken(w, page, err)
			return
		}
		if q == nil || q.CodeHash != nil {
			i.gone(w, page)
			return
		}
		if q.Done() {
			http.Redirect(w, r, i.callback(q.ID), http.StatusSeeOther)
			return
		}
		v.Request, v.Email, v.Client = q.ID, q.Asked.LoginHint, i.clients[q.ClientID].Name
	}
	v.CSRF = csrf(cookie)
	i.show(w, page, http.StatusOK, v)
}

// callback is where a login that is done goes on.
func (i *Issuer) callback(id string) string {
	return i.prefix + "/authorize/callback?id=" + url.QueryEscape(id)
}

func (i *Issuer) postLogin(w http.ResponseWriter, r *http.Request, page *template.Template) {
	cookie := i.cookie(r, browserCookie)
	if !i.genuine(r, cookie) {
		i.show(w, page, http.StatusForbidden, view{Title: "Log in", Error: "This form was not sent by this page, or is too old. Begin anew."})
		return
	}
	ctx := r.Context()
	code := userCode(r.PostFormValue("user_code"))
	var q *request
	if code == "" {
		var err error
		if q, err = i.pending(ctx, r.PostFormValue("request"), digest(cookie)); err != nil {
			i.broken(w, page, err)
			return
		}
		if q == nil || q.CodeHash != nil {
			i.gone(w, page)
			return
		}
	}
	email := r.PostFormValue("email")
	where := i.where(r)
	// One address can't try many passwords, nor many addresses the same user's.
	if !i.attempts.take("login "+where, 30, 5*time.Minute) || !i.attempts.take("login "+digest(normal(email))+" "+where, 10, 5*time.Minute) ||
		!i.attempts.take("login "+digest(normal(email)), 100, time.Hour) {
		tooMany(w)
		return
	}
	again := func(problem string) {
		v := view{Title: "Log in", Login: true, SSO: i.config.SSO != nil, Self: i.prefix + "/login", Error: problem, Email: email, UserCode: code, CSRF: csrf(cookie)}
		if q != nil {
			v.Request, v.Client = q.ID, i.clients[q.ClientID].Name
		}
		i.show(w, page, http.StatusUnauthorized, v)
	}
	if i.config.SSO != nil && r.PostFormValue("sso") != "" {
		if !i.beginSSO(w, r, page, cookie, q, code, email) {
			again("No organization has a login for this address.")
		}
		return
	}
	userID, err := i.login(ctx, email, r.PostFormValue("password"))
	if err != nil {
		i.broken(w, page, err)
		return
	}
	if userID == "" {
		i.log.Info("login refused", "address", where)
		again("The address or the password is wrong.")
		return
	}
	i.finish(w, r, page, cookie, q, code, userID)
}

// finish goes on with a login, or a device's, as a user who has proved who they
// are.
func (i *Issuer) finish(w http.ResponseWriter, r *http.Request, page *template.Template, cookie string, q *request, code, userID string) {
	ctx, where := r.Context(), i.where(r)
	// Nothing that the browser had before stands for the user: whoever put it
	// there knows it.
	fresh, login, now := random(), random(), i.now().UTC()
	err := i.db.Tx(ctx, func(ctx context.Context) error {
		if old := i.cookie(r, sessionCookie); old != "" {
			if _, err := i.db.All(ctx).NewDelete().Model((*session)(nil)).Where("hash = ?", digest(old)).Exec(ctx); err != nil {
				return err
			}
		}
		if _, err := i.db.All(ctx).NewInsert().Model(&session{
			Hash: digest(login), UserID: userID, AuthTime: now, ExpiresAt: now.Add(i.config.SessionTTL),
		}).Exec(ctx); err != nil {
			return err
		}
		if q == nil {
			return nil
		}
		return store.Changed(i.db.All(ctx).NewUpdate().Model((*request)(nil)).
			Set("user_id = ?", userID).Set("auth_time = ?", now).Set("browser_hash = ?", digest(fresh)).
			Where("id = ? AND browser_hash = ? AND code_hash IS NULL", q.ID, digest(cookie)).Exec(ctx))
	})
	if err != nil {
		i.broken(w, page, err)
		return
	}
	i.setCookie(w, browserCookie, fresh, loginWithin)
	i.setCookie(w, sessionCookie, login, i.config.SessionTTL)
	i.log.Info("login", "user", userID, "address", where)
	next := i.prefix + "/device?user_code=" + url.QueryEscape(code)
	if q != nil {
		next = i.callback(q.ID)
	}
	http.Redirect(w, r, next, http.StatusSeeOther)
}

// userCode returns a user code as it is stored, or "" if it can't be one.
func userCode(text string) string {
	text = strings.Map(func(c rune) rune {
		if c >= 'a' && c <= 'z' {
			return c - 'a' + 'A'
		}
		if c >= 'A' && c <= 'Z' {
			return c
		}
		return -1
	}, text)
	if len(text) != 8 {
		return ""
	}
	return text[:4] + "-" + text[4:]
}

// waiting returns the device that waits with a user code, or nil.
func (i *Issuer) waiting(ctx context.Context, code string) (*device, error) {
	d := &device{}
	err := i.db.All(ctx).NewSelect().Model(d).
		Where("user_code = ? AND user_id = '' AND denied = ? AND expires_at > ?", code, false, i.now().UTC()).Scan(ctx)
	if store.IsNone(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return d, nil
}

// getDevice asks a user who is logged in whether a device may be, too.
func (i *Issuer) getDevice(w http.ResponseWriter, r *http.Request, page *template.Template) {
	v := view{Title: "Log in a device", Self: i.prefix + "/device"}
	code := userCode(r.FormValue("user_code"))
	if code == "" {
		v.Code = true
		if r.FormValue("user_code") != "" {
			v.Error = "A code has eight letters."
		}
		i.show(w, page, http.StatusOK, v)
		return
	}
	cookie := i.cookie(r, sessionCookie)
	login, err := i.session(r.Context(), digestOf(cookie))
	if err != nil {
		i.broken(w, page, err)
		return
	}
	if login == nil {
		http.Redirect(w, r, i.prefix+"/login?user_code="+url.QueryEscape(code), http.StatusSeeOther)
		return
	}
	if !i.attempts.take("code "+i.where(r), 20, 5*time.Minute) {
		tooMany(w)
		return
	}
	d, err := i.waiting(r.Context(), code)
	if err != nil {
		i.broken(w, page, err)
		return
	}
	if d == nil {
		v.Code, v.Error = true, "No device waits with this code. It may be too old, or mistyped."
		i.show(w, page, http.StatusNotFound, v)
		return
	}
	v.Confirm, v.UserCode, v.Client, v.CSRF = true, code, i.clientName(d.ClientID), csrf(cookie)
	v.Email, _, _, _ = i.config.Users.Info(r.Context(), login.UserID)
	i.show(w, page, http.StatusOK, v)
}

func (i *Issuer) clientName(id string) string {
	if c := i.clients[id]; c != nil && c.Name != "" {
		return c.Name
	}
	return id
}

func (i *Issuer) postDevice(w http.ResponseWriter, r *http.Request, page *template.Template) {
	v := view{Title: "Log in a device"}
	cookie := i.cookie(r, sessionCookie)
	if !i.genuine(r, cookie) {
		v.Error = "This form was not sent by this page, or is too old. Begin anew."
		i.show(w, page, http.StatusForbidden, v)
		return
	}
	login, err := i.session(r.Context(), digest(cookie))
	if err != nil {
		i.broken(w, page, err)
		return
	}
	if login == nil {
		v.Error = "You are not logged in any more."
		i.show(w, page, http.StatusForbidden, v)
		return
	}
	code, agreed := userCode(r.PostFormValue("user_code")), r.PostFormValue("answer") == "yes"
	q := i.db.All(r.Context()).NewUpdate().Model((*device)(nil)).
		Where("user_code = ? AND user_id = '' AND denied = ? AND expires_at > ?", code, false, i.now().UTC())
	if agreed {
		q = q.Set("user_id = ?", login.UserID).Set("auth_time = ?", login.AuthTime)
	} else {
		q = q.Set("denied = ?", true)
	}
	res, err := q.Exec(r.Context())
	if err != nil {
		i.broken(w, page, err)
		return
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		v.Error = "No device waits with this code any more."
		i.show(w, page, http.StatusNotFound, v)
		return
	}
	i.log.Info("device login answered", "user", login.UserID, "agreed", agreed)
	v.Message = "The device has been refused."
	if agreed {
		v.Message = "The device is logged in. You can close this page."
	}
	i.show(w, page, http.StatusOK, v)
}

// where is what a request is counted under: its address, or, with IPv6, the
// network that its sender has to itself.
func (i *Issuer) where(r *http.Request) string {
	a := i.config.Address(r)
	if a.Is6() {
		if p, err := a.WithZone("").Prefix(64); err == nil {
			return p.String()
		}
	}
	return a.String()
}

// attempts counts what may not be tried too often, in memory, and no more
// than it has room for.
type attempts struct {
	now    func() time.Time
	counts *otter.Cache[string, *attempt]
}

type attempt struct {
	mu    sync.Mutex
	n     int
	until time.Time
}

func newAttempts(now func() time.Time) *attempts {
	return &attempts{now, otter.Must(&otter.Options[string, *attempt]{MaximumSize: 100_000})}
}

// take counts one and reports whether there are not more than limit in a time.
func (a *attempts) take(what string, limit int, within time.Duration) bool {
	c, _ := a.counts.ComputeIfAbsent(what, func() (*attempt, bool) { return &attempt{}, false })
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := a.now(); !now.Before(c.until) {
		c.n, c.until = 0, now.Add(within)
	}
	c.n++
	return c.n <= limit
}
