package api

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-chi/chi/v5"
	"github.com/google/uuid"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/identity"
	"github.com/daytona-go/daytona/server/observe"
)

// Messages that clients know.
const (
	msgCredentials = "Invalid credentials"
	msgContext     = "Invalid authentication context"
	msgDenied      = "Access denied"
	msgAuthDown    = "Temporary authentication service error"
	msgTooMany     = "ThrottlerException: Too Many Requests"
)

// request is what this package knows of a request on its way.
type request struct {
	began   time.Time
	url     string // as it was asked for
	address netip.Addr
	err     error
	target  string
	detail  map[string]any
	// replaced is the status of what was made of huma's own errors.
	replaced int
	// unread says that the body did not come as HTTP has it.
	unread bool
}

type requestKey struct{}

func withRequest(ctx context.Context, q *request) context.Context {
	return context.WithValue(ctx, requestKey{}, q)
}

func requestOf(ctx context.Context) *request {
	q, _ := ctx.Value(requestKey{}).(*request)
	return q
}

// recorder notes the status of an answer.
type recorder struct {
	http.ResponseWriter
	status int
}

func (r *recorder) WriteHeader(status int) {
	if r.status == 0 || r.status < 200 {
		r.status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(b []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	return r.ResponseWriter.Write(b)
}

func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// Hijack is for WebSockets.
func (r *recorder) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	if r.status == 0 {
		r.status = http.StatusSwitchingProtocols
	}
	return http.NewResponseController(r.ResponseWriter).Hijack()
}

// Flush is for libraries that ask for an http.Flusher.
func (r *recorder) Flush() { http.NewResponseController(r.ResponseWriter).Flush() }

// guard lets a request through to a route's handler if it may, and tells of it
// afterwards.
func (a *API) guard(route *Route, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q := requestOf(r.Context())
		if q == nil {
			q = &request{began: time.Now(), url: r.URL.RequestURI()}
			r = r.WithContext(withRequest(r.Context(), q))
		}
		q.address = a.address(r)
		seen := observe.From(r.Context())
		seen.Operation, seen.Route = route.ID, "/api"+route.Path
		rec := &recorder{ResponseWriter: w}
		var p *identity.Principal
		defer func() {
			if v := recover(); v != nil {
				if v == http.ErrAbortHandler {
					panic(v)
				}
				a.config.Log.Error("handler panicked", "route", route.ID, "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
				q.err = fmt.Errorf("panic: %v", v)
				if rec.status == 0 {
					writeError(rec, r, q.err)
				}
			}
			a.done(route, p, q, rec, r)
		}()
		err := checkText(maps.All(params(r)))
		if err == nil {
			p, err = a.admit(rec, r, route)
		}
		if err != nil {
			writeError(rec, r, err)
			return
		}
		next.ServeHTTP(rec, r.WithContext(identity.With(r.Context(), p)))
	})
}

// admit decides whether a request may be served, and for whom.
func (a *API) admit(w http.ResponseWriter, r *http.Request, route *Route) (*identity.Principal, error) {
	ctx, who := r.Context(), requestOf(r.Context()).address.String()
	const failed = "failed-auth"
	blocked := func(l Limit) error {
		w.Header().Set("Retry-After", seconds(l.Reset))
		observe.From(ctx).Limiter = failed
		return tooMany()
	}
	if l, ok := a.look(ctx, failed, who); ok && l.Exceeded {
		return nil, blocked(l)
	}
	if route.Access.Anyone {
		return &identity.Principal{}, a.take(w, ctx, "anonymous", who, nil)
	}
	p, err := a.identify(r, route)
	if err != nil {
		if errors.Is(err, daytona.ErrUnauthorized) && a.config.Limiter != nil {
			if l, ok := a.config.Limiter.Take(ctx, failed, who, nil); ok && l.Exceeded {
				return nil, blocked(l)
			}
		}
		return nil, err
	}
	if p.Kind&identity.User == 0 {
		return p, nil
	}
	limiter := string(route.Bucket)
	if limiter == "" {
		limiter = "authenticated"
	}
	who = "auth:user:" + p.UserID
	if p.OrganizationID != "" {
		who = "auth:org:" + p.OrganizationID
	}
	return p, a.take(w, ctx, limiter, who, p)
}

// identify finds out who sends a request and whether the route is for them.
func (a *API) identify(r *http.Request, route *Route) (*identity.Principal, error) {
	ctx, access := r.Context(), &route.Access
	scheme, bearer, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	bearer = strings.TrimSpace(bearer)
	if !strings.EqualFold(scheme, "Bearer") || bearer == "" {
		return nil, unauthorized()
	}
	p, err := a.config.Authenticator.Authenticate(ctx, bearer)
	switch {
	case errors.Is(err, daytona.ErrUnauthorized):
		return nil, unauthorized()
	case err != nil && ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil:
		a.config.Log.Error("authentication does not work", "err", err)
		return nil, &daytona.Error{Kind: daytona.KindUnavailable, Message: msgAuthDown, Err: err}
	case p.Kind&access.Services != 0:
		return p, nil
	case p.Kind&access.By == 0:
		// A key where only a token will do is a wrong credential; somebody who
		// can't ever be meant is a wrong caller.
		if p.Kind&identity.User != 0 && access.By&identity.User != 0 {
			return nil, unauthorized()
		}
		return nil, forbidden(msgDenied)
	}
	if access.Organization {
		named := pathValue(r, "organizationId")
		if p.Kind == identity.JWT && named == "" {
			named = r.Header.Get("X-Daytona-Organization-ID")
		}
		switch {
		case p.Kind == identity.Key && named != "" && named != p.OrganizationID,
			p.Kind == identity.JWT && named == "":
			return nil, forbidden(msgContext)
		case p.Kind == identity.JWT:
			p, err = a.config.Authenticator.Join(ctx, p, named)
			if errors.Is(err, daytona.ErrForbidden) || errors.Is(err, daytona.ErrNotFound) {
				return nil, forbidden(msgContext)
			} else if err != nil {
				return nil, err
			}
		}
	}
	if access.Admin && !p.Admin || access.Owner && p.Role != identity.Owner {
		return nil, forbidden(msgDenied)
	}
	for _, permission := range access.Permissions {
		if !p.May(permission) {
			return nil, forbidden(msgDenied)
		}
	}
	if len(access.Any) > 0 && !slices.ContainsFunc(access.Any, p.May) {
		return nil, forbidden(msgDenied)
	}
	return p, nil
}

// checkText refuses parameters that are not text: no database takes them for
// one, and none of what is stored has such a name.
func checkText(parameters iter.Seq2[string, string]) error {
	for name, v := range parameters {
		if !isText(name) || !isText(v) {
			return &daytona.Error{Kind: daytona.KindInvalid, Message: strings.ToValidUTF8(name, "?") + " must be text, in UTF-8 and without NUL"}
		}
	}
	return nil
}

func isText(s string) bool { return utf8.ValidString(s) && !strings.ContainsRune(s, 0) }

func unauthorized() error {
	return &daytona.Error{Kind: daytona.KindUnauthorized, Message: msgCredentials}
}

func forbidden(message string) error {
	return &daytona.Error{Kind: daytona.KindForbidden, Message: message}
}

func tooMany() error { return &daytona.Error{Kind: daytona.KindExhausted, Message: msgTooMany} }

func (a *API) look(ctx context.Context, limiter, who string) (Limit, bool) {
	if a.config.Limiter == nil {
		return Limit{}, false
	}
	return a.config.Limiter.Look(ctx, limiter, who)
}

// take counts a request and tells its sender what is left.
func (a *API) take(w http.ResponseWriter, ctx context.Context, limiter, who string, p *identity.Principal) error {
	if a.config.Limiter == nil {
		return nil
	}
	l, ok := a.config.Limiter.Take(ctx, limiter, who, p)
	if !ok {
		return nil
	}
	h := w.Header()
	h.Set("X-RateLimit-Limit-"+limiter, strconv.Itoa(l.Limit))
	h.Set("X-RateLimit-Remaining-"+limiter, strconv.Itoa(l.Remaining))
	h.Set("X-RateLimit-Reset-"+limiter, seconds(l.Reset))
	if l.Exceeded {
		h.Set("Retry-After-"+limiter, seconds(l.Reset))
		observe.From(ctx).Limiter = limiter
		return tooMany()
	}
	return nil
}

// seconds is d in whole seconds, and never too few.
func seconds(d time.Duration) string {
	return strconv.FormatInt(int64((d+time.Second-1)/time.Second), 10)
}

func (a *API) address(r *http.Request) netip.Addr { return ClientAddress(r, a.config.TrustedProxies) }

// ClientAddress is where a request came from: what the last proxy that is not
// trusted said, if there is one.
func ClientAddress(r *http.Request, proxies []netip.Prefix) netip.Addr {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		host = r.RemoteAddr
	}
	addr, _ := netip.ParseAddr(host)
	addr = addr.Unmap()
	trusted := func(x netip.Addr) bool {
		return slices.ContainsFunc(proxies, func(p netip.Prefix) bool { return p.Contains(x) })
	}
	hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for i := len(hops) - 1; i >= 0 && trusted(addr); i-- {
		next, err := netip.ParseAddr(strings.TrimSpace(hops[i]))
		if err != nil {
			break
		}
		addr = next.Unmap()
	}
	return addr
}

// done tells of a request that has been answered.
func (a *API) done(route *Route, p *identity.Principal, q *request, rec *recorder, r *http.Request) {
	if p == nil {
		p = &identity.Principal{}
	}
	e := Entry{
		Time: q.began, Duration: time.Since(q.began), Route: route, Principal: p, Params: params(r), Status: rec.status, Err: q.err,
		Address: q.address, Agent: r.UserAgent(), Source: r.Header.Get("X-Daytona-Source"), SDKVersion: r.Header.Get("X-Daytona-SDK-Version"),
		RequestID: observe.From(r.Context()).ID, Target: q.target, Detail: q.detail,
	}
	if e.Status == 0 {
		e.Status = http.StatusOK
	}
	seen := observe.From(r.Context())
	seen.Principal, seen.Err = p, q.err
	for _, name := range []string{"sandboxId", "sandboxIdOrName"} {
		// Names are the user's own affair.
		if id := e.Params[name]; uuid.Validate(id) == nil {
			seen.SandboxID = id
		}
	}
	if a.config.Done != nil {
		a.config.Done(e)
	}
}

func params(r *http.Request) map[string]string {
	c := chi.RouteContext(r.Context())
	if c == nil {
		return nil
	}
	m := make(map[string]string, len(c.URLParams.Keys))
	for _, k := range c.URLParams.Keys {
		m[k] = pathValue(r, k)
	}
	return m
}
