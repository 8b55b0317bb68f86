// Package api is the public HTTP API below /api: its routes, what each of them
// demands of its caller, and the OpenAPI document that is made of them. A file
// has the handlers of one resource: they take what the wire says, call the
// feature that has the rules, and say on the wire what came of it.
//
// It knows no SQL and no backend. Handlers see one organization only, that of
// [identity.From], which [API] has checked before they are called.
package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/go-chi/chi/v5"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/identity"
)

// Authenticator finds out who sent a credential.
type Authenticator interface {
	// Authenticate returns who has a bearer token; [daytona.ErrUnauthorized] if
	// nobody has. Any other error is a fault of the server's.
	Authenticate(ctx context.Context, bearer string) (*identity.Principal, error)
	// Join returns p as a member of an organization, with its role and
	// permissions there; [daytona.ErrForbidden] if p is not one.
	Join(ctx context.Context, p *identity.Principal, organizationID string) (*identity.Principal, error)
}

// Limiter counts requests.
type Limiter interface {
	// Take counts one for who in a limiter and says what is left. ok is false
	// if there is no such limiter.
	Take(ctx context.Context, limiter, who string, p *identity.Principal) (l Limit, ok bool)
	// Look is Take that counts nothing.
	Look(ctx context.Context, limiter, who string) (l Limit, ok bool)
}

// Limit is the state of a limiter.
type Limit struct {
	Limit, Remaining int
	// Reset is the time until the count begins anew.
	Reset time.Duration
	// Exceeded says that this request is one too many.
	Exceeded bool
}

// Entry is what is known of a request once it has been answered.
type Entry struct {
	Time      time.Time
	Duration  time.Duration
	Route     *Route
	Principal *identity.Principal
	// Params are the parameters of the path.
	Params     map[string]string
	Status     int
	Err        error
	Address    netip.Addr
	Agent      string // the header User-Agent
	Source     string // the header X-Daytona-Source
	SDKVersion string
	RequestID  string
	// Target and Detail are what the handler said with [Note].
	Target string
	Detail map[string]any
}

// Config says what an API is made of. All fields but Authenticator have
// defaults.
type Config struct {
	Authenticator Authenticator
	// Limiter defaults to none.
	Limiter Limiter
	// Version is what the header X-Daytona-Api-Version says. Defaults to "0.0.0-dev".
	Version string
	// Log is told of what goes wrong here. Defaults to [slog.Default].
	Log *slog.Logger
	// Done gets every request that was answered, for the audit log and metrics.
	// It must not block.
	Done func(Entry)
	// Maintenance answers every request with 503. Defaults to never.
	Maintenance func() bool
	// TrustedProxies are those whose X-Forwarded-For is believed. Defaults to none.
	TrustedProxies []netip.Prefix
	// MaxBody is the largest body of a request in bytes, but for routes that
	// stream. Defaults to 8 MiB: a Dockerfile with files in it is one string.
	MaxBody int64
	// BodyTimeout is the longest that a body may take to arrive. Defaults to 30 s.
	BodyTimeout time.Duration
}

// API serves the routes that have a handler.
type API struct {
	config Config
	routes map[string]*Route
	served map[string]bool
	mux    *chi.Mux
	huma   huma.API
}

// New returns an API without handlers.
func New(c Config) *API {
	if c.Version == "" {
		c.Version = "0.0.0-dev"
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.MaxBody == 0 {
		c.MaxBody = 8 << 20
	}
	if c.BodyTimeout == 0 {
		c.BodyTimeout = 30 * time.Second
	}
	a := &API{config: c, routes: map[string]*Route{}, served: map[string]bool{}, mux: chi.NewMux()}
	for _, r := range Routes() {
		a.routes[r.ID] = &r
	}
	a.huma = newHuma(a)
	a.mux.NotFound(func(w http.ResponseWriter, r *http.Request) {
		path := r.URL.Path
		if q := requestOf(r.Context()); q != nil {
			path, _, _ = strings.Cut(q.url, "?")
		}
		writeError(w, r, &daytona.Error{Kind: daytona.KindNotFound, Message: "Cannot " + r.Method + " " + path})
	})
	// The API's clients are told of a method that a path does not have as of a
	// path that is not there.
	a.mux.MethodNotAllowed(a.mux.NotFoundHandler())
	return a
}

// Routes returns all routes of the API, in the order of the document.
func Routes() []Route { return slices.Concat(routeTable, toolboxRoutes()) }

// Unserved returns the ids of routes without a handler.
func (a *API) Unserved() []string {
	var ids []string
	for _, r := range Routes() {
		if !a.served[r.ID] {
			ids = append(ids, r.ID)
		}
	}
	return ids
}

// OpenAPI returns the document of the routes that are served.
func (a *API) OpenAPI() *huma.OpenAPI { return a.huma.OpenAPI() }

// ServeHTTP serves a request below /api.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("X-Daytona-Api-Version", a.config.Version)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	// Any page may ask: it has to bring a credential of its own, since a browser
	// adds none here.
	if origin := r.Header.Get("Origin"); origin != "" {
		h.Add("Vary", "Origin")
		h.Set("Access-Control-Allow-Origin", origin)
		h.Set("Access-Control-Expose-Headers", "*")
		if r.Method == http.MethodOptions && r.Header.Get("Access-Control-Request-Method") != "" {
			h.Set("Access-Control-Allow-Methods", "GET,HEAD,PUT,PATCH,POST,DELETE,OPTIONS")
			if asked := r.Header.Get("Access-Control-Request-Headers"); asked != "" {
				h.Set("Access-Control-Allow-Headers", asked)
			}
			h.Set("Access-Control-Max-Age", "600")
			w.WriteHeader(http.StatusNoContent)
			return
		}
	}
	path := r.URL.Path
	if rest, ok := strings.CutPrefix(path, "/api"); ok && (rest == "" || rest[0] == '/') {
		r2 := r.Clone(withRequest(r.Context(), &request{began: time.Now(), url: r.URL.RequestURI()}))
		r2.URL.Path = rest
		r2.URL.RawPath = strings.TrimPrefix(r.URL.RawPath, "/api")
		if rest == "" {
			r2.URL.Path = "/"
		}
		r = r2
	}
	if a.config.Maintenance != nil && a.config.Maintenance() {
		writeError(w, r, &daytona.Error{Kind: daytona.KindUnavailable, Message: "Service is currently under maintenance. Please try again later."})
		return
	}
	a.mux.ServeHTTP(w, r)
}

// None is the answer of a handler that has none: an empty body.
type None struct{}

// Text is an answer that is bare text, as the wire has for single strings,
// numbers and booleans.
type Text string

// Handle serves a route. The fields of I are parameters ("path", "query" and
// "header" tags) and the body (a field Body); of O, the JSON of the answer is
// made, unless it is [None] or [Text]. A [daytona.Error] that h returns
// becomes the answer for its kind.
func Handle[I, O any](a *API, id string, h func(context.Context, *I) (O, error)) {
	op := operation(a.claim(id))
	documentAnswer(a.huma, &op, reflect.TypeFor[O]())
	huma.Register(a.huma, op, func(ctx context.Context, in *I) (*answer, error) {
		out, err := h(ctx, in)
		if err != nil {
			return nil, problem(err)
		}
		return &answer{func(c huma.Context) { writeAnswer(c, out) }}, nil
	})
}

// Stream serves a route whose bodies are not JSON: logs, WebSockets, what is
// passed on. The handler has what [API] has checked, no limit on bodies and
// their time, and [Param]. An error that it returns before it has written
// becomes the answer.
func Stream(a *API, id string, h func(http.ResponseWriter, *http.Request) error) {
	r := a.claim(id)
	op := operation(r)
	for _, name := range pathParams(r.Path) {
		op.Parameters = append(op.Parameters, &huma.Param{Name: name, In: "path", Required: true, Schema: &huma.Schema{Type: "string"}})
	}
	op.Responses = map[string]*huma.Response{fmt.Sprint(r.Status): {Description: http.StatusText(r.Status)}}
	a.huma.OpenAPI().AddOperation(&op)
	a.mux.Method(r.Method, r.Path, a.guard(r, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if err := h(w, req); err != nil {
			if rec, ok := w.(*recorder); ok && rec.status != 0 {
				requestOf(req.Context()).err = err
				return
			}
			writeError(w, req, err)
		}
	})))
}

// claim returns the route of an id. It panics if there is none, or if it is
// served already: both are mistakes that no user makes.
func (a *API) claim(id string) *Route {
	r := a.routes[id]
	if r == nil {
		panic("api: no route " + id)
	}
	if a.served[id] {
		panic("api: route " + id + " is served twice")
	}
	a.served[id] = true
	return r
}

// Param returns a parameter of the path of a request that [Stream] serves.
func Param(r *http.Request, name string) string { return pathValue(r, name) }

// Note says for the audit log what a request is about: the id of what it
// names, and details that are no secrets.
func Note(ctx context.Context, target string, detail map[string]any) {
	if q := requestOf(ctx); q != nil {
		q.target, q.detail = target, detail
	}
}

// Address returns the address that the request of a context came from.
func Address(ctx context.Context) netip.Addr {
	if q := requestOf(ctx); q != nil {
		return q.address
	}
	return netip.Addr{}
}

// problem makes a *Error of any error, so that huma has nothing to make of it.
func problem(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*statusError](err); ok {
		return err
	}
	return &statusError{status: statusOf(err), err: err}
}
