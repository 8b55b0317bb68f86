// Package proxy is the way into sandboxes for HTTP: the toolbox of a sandbox
// below /toolbox/{id}/, its ports under host names of their own, and the logs
// of builds. It decides who may, passes on what they ask, both ways as streams,
// and sees to it that what they prove themselves with never gets to the
// programs of a sandbox, which are hostile.
//
// It knows sandboxes, people and connections by the interfaces of [Config]
// only. What it has said yes to it remembers for a few seconds, and forgets at
// once when a topic tells that something has changed; what is open then is asked
// for again, and ended.
package proxy

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/identity"
	"github.com/daytona-go/daytona/server/live"
	"github.com/daytona-go/daytona/server/observe"
)

// Sandbox is what the proxy has to know of one.
type Sandbox struct {
	ID             string
	OrganizationID string
	RegionID       string
	// State is the state that the wire shows, such as "started".
	State string
	// Public says that its ports are open to anybody.
	Public bool
	// Warning says that browsers are to be warned, once a day, before they are
	// shown what it serves.
	Warning bool
}

// Sandboxes finds sandboxes and knows the tokens that open them.
type Sandboxes interface {
	// ProxySandbox finds a sandbox of any organization by its id; ErrNotFound if
	// there is none, ErrGone if it has been destroyed (with the Sandbox all the
	// same, so that members can be told).
	ProxySandbox(ctx context.Context, id string) (Sandbox, error)
	// ValidPreviewToken reports whether a token is the one of a sandbox, in
	// constant time.
	ValidPreviewToken(ctx context.Context, sandboxID, token string) (bool, error)
	// SignedPreview returns the sandbox that a signed token opens at a port, and
	// until when. It gives ErrForbidden for a token that is not known, is for
	// another port or has been revoked, but not for one that is over.
	SignedPreview(ctx context.Context, token string, port int) (sandboxID string, expires time.Time, err error)
	// SigningKey returns the key that URLs of a sandbox's files are signed with.
	SigningKey(ctx context.Context, sandboxID string) (string, error)
}

// Authenticator finds out who sent a credential; it is the API's.
type Authenticator interface {
	// Authenticate returns who has a bearer token; ErrUnauthorized if nobody has.
	Authenticate(ctx context.Context, bearer string) (*identity.Principal, error)
	// Join returns p as a member of an organization; ErrForbidden if p is not one.
	Join(ctx context.Context, p *identity.Principal, organizationID string) (*identity.Principal, error)
}

// Dialer connects to the agents of sandboxes.
type Dialer interface {
	// Dial opens a connection to a sandbox's agent, which speaks HTTP on it and
	// takes whoever comes that way for one who may.
	Dial(ctx context.Context, sandboxID string) (net.Conn, error)
}

// Builds has the logs of builds.
type Builds interface {
	// SnapshotLogs returns what the build of a snapshot of an organization has
	// written, SandboxLogs that of a sandbox; with follow until it ends.
	SnapshotLogs(ctx context.Context, organizationID, idOrName string, follow bool) (io.ReadCloser, error)
	SandboxLogs(ctx context.Context, organizationID, idOrName string, follow bool) (io.ReadCloser, error)
}

// Config says what a Proxy is made of.
type Config struct {
	// Sandboxes, Authenticator and Dialer are required.
	Sandboxes     Sandboxes
	Authenticator Authenticator
	Dialer        Dialer
	// Builds defaults to none: 404.
	Builds Builds
	// Touch is told that a sandbox is in use: when a request begins, and every
	// 50 s while one is open, but at most every 5 s for one sandbox. It must not
	// block. Defaults to nothing.
	Touch func(sandboxID string)
	// Domains are those that previews are served below, without a port:
	// "{port}-{id}.{domain}". None of them may be one that anything else is
	// served under: pages of sandboxes can set cookies for all of it. Defaults to
	// none: there are no previews.
	Domains []string
	// Protocol of the URLs that browsers use: "https" or "http". Defaults to https.
	Protocol string
	// Key seals cookies: 32 random bytes or more, the same in all servers and
	// after a restart. Required.
	Key []byte
	// Login is where browsers that have no token are sent. Defaults to none: 401.
	Login *Login
	// Version is what /health says. Defaults to "0.0.0-dev".
	Version string
	// ToolboxOnly serves previews of port 2280 only.
	ToolboxOnly bool
	// TrustedProxies are those whose X-Forwarded-For is passed on. Defaults to none.
	TrustedProxies []netip.Prefix
	// Log is told of what goes wrong here. Defaults to [slog.Default].
	Log *slog.Logger
	// Tracer makes a span of each request to an agent, which the agent is told of.
	// Defaults to none.
	Tracer *observe.Tracer
	// Clock tells the time. Defaults to [time.Now].
	Clock func() time.Time
}

const (
	// remember is how long a yes is kept, sandboxFor a sandbox that has started,
	// where no topic tells otherwise.
	remember   = 10 * time.Second
	sandboxFor = 2 * time.Second
	// remembered bounds how many there are of each.
	remembered = 1 << 14
	// touchEvery is between two tellings of one open request, touchGap of one
	// sandbox.
	touchEvery = 50 * time.Second
	touchGap   = 5 * time.Second
	// smallBody is what is read before it is passed on, so that it can be sent
	// again when the agent has just closed the connection that was to carry it.
	smallBody     = 64 << 10
	smallBodyTime = time.Minute
	// dialTime bounds connecting to an agent.
	dialTime = 30 * time.Second
)

// Proxy is an http.Handler.
type Proxy struct {
	config  Config
	log     *slog.Logger
	set     *live.Set
	pool    *pool
	agents  http.RoundTripper // the pool's, with spans
	seal    *sealer
	login   *login
	buffers sync.Pool
	allowed *memory[[32]byte, []string] // the ids that a yes hangs on
	found   *memory[string, Sandbox]
	touched *memory[string, struct{}]
}

// New returns a Proxy. It fails if something required is missing.
func New(c Config) (*Proxy, error) {
	if c.Sandboxes == nil || c.Authenticator == nil || c.Dialer == nil {
		return nil, errors.New("proxy: Sandboxes, Authenticator and Dialer are required")
	}
	if c.Protocol == "" {
		c.Protocol = "https"
	}
	if c.Protocol != "https" && c.Protocol != "http" {
		return nil, &daytona.Error{Kind: daytona.KindInvalid, Op: "make proxy", Field: "Protocol", Value: c.Protocol, Message: "must be https or http"}
	}
	if c.Version == "" {
		c.Version = "0.0.0-dev"
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Touch == nil {
		c.Touch = func(string) {}
	}
	if c.Clock == nil {
		c.Clock = time.Now
	}
	c.Domains = slices.Clone(c.Domains)
	for i, d := range c.Domains {
		name, _, _ := strings.Cut(strings.ToLower(d), ":")
		c.Domains[i] = strings.Trim(name, ".")
	}
	seal, err := newSealer(c.Key)
	if err != nil {
		return nil, err
	}
	p := &Proxy{
		config: c, log: c.Log, set: live.New(0), seal: seal, pool: newPool(c.Dialer),
		allowed: newMemory[[32]byte, []string](c.Clock), found: newMemory[string, Sandbox](c.Clock), touched: newMemory[string, struct{}](c.Clock),
	}
	if c.Login != nil {
		p.login = newLogin(*c.Login)
	}
	p.agents = c.Tracer.Transport("agent", p.pool.transport)
	p.buffers.New = func() any { return new(make([]byte, 32<<10)) }
	p.set.OnChange(p.forget)
	return p, nil
}

// Connections is how many connections to agents there are, for metrics.
func (p *Proxy) Connections() int { return p.pool.size() }

// Run listens to the topics by which the rest of the server tells of what has
// changed (keys, members, sandboxes; see package live), until ctx ends. Without
// it everything works, but a change takes seconds to be seen, and what is open
// stays so.
func (p *Proxy) Run(ctx context.Context, topics live.Topics, names ...string) {
	defer p.pool.close()
	p.set.Run(ctx, topics, names...)
}

// forget drops what hangs on ids, or everything, and the connections to
// sandboxes that have ended.
func (p *Proxy) forget(ids []string) {
	if len(ids) == 0 {
		p.allowed.clear()
		p.found.clear()
		return
	}
	p.allowed.drop(func(_ [32]byte, on []string) bool {
		return slices.ContainsFunc(ids, func(id string) bool { return slices.Contains(on, id) })
	})
	p.found.drop(func(id string, s Sandbox) bool {
		return slices.Contains(ids, id) || slices.Contains(ids, s.OrganizationID)
	})
	for _, id := range ids {
		if !p.pool.has(id) {
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), dialTime)
		s, err := p.config.Sandboxes.ProxySandbox(ctx, id)
		cancel()
		if live.Refused(err) || err == nil && !running(s.State) {
			p.pool.drop(id)
		}
	}
}

// Preview reports whether a request is for the host of a preview.
func (p *Proxy) Preview(r *http.Request) bool {
	_, ok := parseHost(r.Host, p.config.Domains)
	return ok
}

// Matches reports whether a request is one that the proxy serves and the API
// does not, where both listen at one address.
func (p *Proxy) Matches(r *http.Request) bool {
	path := r.URL.Path
	return p.Preview(r) || path == "/callback" || strings.HasPrefix(path, "/toolbox/") ||
		(strings.HasPrefix(path, "/snapshots/") || strings.HasPrefix(path, "/sandboxes/")) && strings.HasSuffix(path, "/build-logs")
}

// ServeHTTP serves previews by host and everything else by path.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q := &request{Proxy: p, w: &recorder{ResponseWriter: w}, r: r, began: p.config.Clock()}
	w = q.w
	defer func() { q.done(recover()) }()
	if r.URL.Host != "" || r.URL.Scheme != "" || !strings.HasPrefix(r.URL.Path, "/") {
		// This is no forward proxy, and no front of it may take it for one.
		q.fail(http.StatusBadRequest, "", "the target of the request must be a path")
		return
	}
	if h, ok := parseHost(r.Host, p.config.Domains); ok {
		q.host = &h
		q.preview()
		return
	}
	switch path := r.URL.EscapedPath(); {
	case path == "/health" && get(r):
		writeJSON(w, http.StatusOK, map[string]string{"status": "ok", "version": p.config.Version})
	case path == "/callback" && get(r):
		q.callback()
	case strings.HasPrefix(path, "/toolbox/"):
		q.toolbox(strings.TrimPrefix(path, "/toolbox/"))
	case strings.HasPrefix(path, "/snapshots/") && strings.HasSuffix(path, "/build-logs"),
		strings.HasPrefix(path, "/sandboxes/") && strings.HasSuffix(path, "/build-logs"):
		q.buildLogs(path)
	default:
		q.fail(http.StatusNotFound, "", "there is no "+r.Method+" "+path)
	}
}

func get(r *http.Request) bool { return r.Method == http.MethodGet || r.Method == http.MethodHead }

// request is one request on its way.
type request struct {
	*Proxy
	w     *recorder
	r     *http.Request
	began time.Time
	// host is that of a preview, nil for everything else.
	host *host
	// sandboxID and how are for the log: how the caller proved itself.
	sandboxID, how string
	err            error
}

// done tells of a request.
func (q *request) done(panicked any) {
	if panicked != nil && panicked != http.ErrAbortHandler {
		q.log.Error("proxy panicked", "panic", fmt.Sprint(panicked))
		if q.w.status == 0 {
			q.fail(http.StatusInternalServerError, "", "an unexpected error occurred")
			panicked = nil
		} else {
			panicked = http.ErrAbortHandler
		}
	}
	kind := "other"
	switch {
	case q.host != nil:
		kind = "preview"
	case q.sandboxID != "":
		kind = "toolbox"
	}
	if seen := observe.From(q.r.Context()); q.how != "api" {
		seen.Operation, seen.By, seen.SandboxID, seen.Err = kind, q.how, q.sandboxID, q.err
	} else {
		seen.SandboxID = q.sandboxID
	}
	if panicked != nil {
		panic(panicked)
	}
}

// toolbox serves /toolbox/{id}/{path}; rest is what follows /toolbox/, escaped.
func (q *request) toolbox(rest string) {
	if q.preflight() {
		return
	}
	id, target, _ := strings.Cut(rest, "/")
	id = strings.ToLower(id)
	if !isLabel(id) || len(id) > maxLabel {
		q.fail(http.StatusNotFound, "", "there is no "+q.r.Method+" /toolbox/"+id)
		return
	}
	g, err := q.authorize(id, 0)
	if err != nil {
		q.refuse(err)
		return
	}
	q.pass(g, "/"+target, "/toolbox/"+id)
}

// ServeToolbox passes a request that has been authorized to the toolbox of a
// sandbox: target is the escaped path there. It is how the API serves the
// deprecated routes of its own. An error says that nothing has been written.
func (p *Proxy) ServeToolbox(w http.ResponseWriter, r *http.Request, organizationID, sandboxID, target string) error {
	s, err := p.sandbox(r.Context(), sandboxID)
	if err != nil || s.OrganizationID != organizationID {
		if err == nil || live.Refused(err) {
			err = &daytona.Error{Kind: daytona.KindNotFound, Message: "Sandbox with ID or name " + sandboxID + " not found"}
		}
		return err
	}
	if !running(s.State) {
		return &daytona.Error{Kind: daytona.KindState, Message: "Sandbox is not running"}
	}
	q := &request{Proxy: p, w: &recorder{ResponseWriter: w}, r: r, began: p.config.Clock(), sandboxID: s.ID, how: "api"}
	defer func() { q.done(recover()) }()
	q.pass(&grant{sandbox: s, ids: []string{s.ID, s.OrganizationID}, check: func(context.Context) error { return nil }, authorization: true, api: true}, target, "")
	return nil
}

// running reports whether a sandbox in this state has an agent that answers.
func running(state string) bool {
	switch state {
	case "started", "resizing", "snapshotting", "forking":
		return true
	}
	return false
}

// sandbox finds a sandbox that may be remembered to be running.
func (p *Proxy) sandbox(ctx context.Context, id string) (Sandbox, error) {
	if s, ok := p.found.get(id); ok {
		return s, nil
	}
	epoch := p.found.epoch()
	s, err := p.config.Sandboxes.ProxySandbox(ctx, id)
	if err == nil && running(s.State) {
		p.found.put(epoch, id, s, sandboxFor)
	}
	return s, err
}

// touch tells that a sandbox is in use.
func (p *Proxy) touch(id string) {
	if _, ok := p.touched.get(id); ok {
		return
	}
	p.touched.put(p.touched.epoch(), id, struct{}{}, touchGap)
	p.config.Touch(id)
}

// use tells that a sandbox is in use now, and from time to time until stop.
func (p *Proxy) use(id string) (stop func()) {
	p.touch(id)
	var mu sync.Mutex
	var timer *time.Timer
	stopped := false
	mu.Lock()
	defer mu.Unlock()
	timer = time.AfterFunc(touchEvery, func() {
		mu.Lock()
		defer mu.Unlock()
		if !stopped {
			p.touch(id)
			timer.Reset(touchEvery)
		}
	})
	return func() {
		mu.Lock()
		defer mu.Unlock()
		stopped = true
		timer.Stop()
	}
}

// buildLogs serves the log of a build to members of the organization that it is
// of.
func (q *request) buildLogs(path string) {
	if q.preflight() {
		return
	}
	parts := strings.Split(strings.Trim(path, "/"), "/")
	id := ""
	if len(parts) == 3 {
		id, _ = url.PathUnescape(parts[1])
	}
	if id == "" || !utf8.ValidString(id) || strings.ContainsRune(id, 0) || !get(q.r) || q.config.Builds == nil {
		q.fail(http.StatusNotFound, "", "there is no "+q.r.Method+" "+path)
		return
	}
	bearer := bearerOf(q.r)
	if bearer == "" {
		q.refuse(unauthorized("missing authentication: send a bearer token"))
		return
	}
	ctx, cancel := context.WithCancel(q.r.Context())
	defer cancel()
	var organization string
	check := func(ctx context.Context) error {
		principal, err := q.config.Authenticator.Authenticate(ctx, bearer)
		if err != nil {
			return asUnauthorized(err)
		}
		if organization == "" {
			organization = principal.OrganizationID
		}
		if organization == "" {
			organization = q.r.Header.Get("X-Daytona-Organization-ID")
		}
		if organization == "" && parts[0] == "sandboxes" {
			s, err := q.config.Sandboxes.ProxySandbox(ctx, id)
			if err != nil {
				return err
			}
			organization = s.OrganizationID
		}
		_, err = q.member(ctx, principal, organization)
		return err
	}
	logs, what := q.config.Builds.SnapshotLogs, "Snapshot"
	if parts[0] == "sandboxes" {
		logs, what = q.config.Builds.SandboxLogs, "Sandbox"
	}
	follow := q.r.URL.Query().Get("follow") == "true"
	var body io.ReadCloser
	err := check(ctx)
	if err == nil {
		body, err = logs(ctx, organization, id, follow)
	}
	if err != nil {
		if errors.Is(err, daytona.ErrForbidden) || errors.Is(err, daytona.ErrNotFound) && what == "Sandbox" {
			err = &daytona.Error{Kind: daytona.KindNotFound, Message: what + " with ID or name " + id + " not found"}
		}
		q.refuse(err)
		return
	}
	defer body.Close()
	sum := sha256.Sum256([]byte(bearer))
	defer q.set.Add([]string{organization, hex.EncodeToString(sum[:])}, check, func(error) { cancel(); body.Close() })()
	q.cors(q.w.Header())
	q.w.Header().Set("Content-Type", "application/octet-stream")
	q.w.Header().Set("X-Content-Type-Options", "nosniff")
	out := flusher{q.w, http.NewResponseController(q.w)}
	if follow {
		// A client that waits for what comes next must know that it may.
		q.w.WriteHeader(http.StatusOK)
		_ = out.c.Flush()
	}
	if _, err := io.Copy(out, body); err != nil {
		q.err = err
		panic(http.ErrAbortHandler) // the log must not look complete
	}
}

// flusher sends what is written at once.
type flusher struct {
	w io.Writer
	c *http.ResponseController
}

func (f flusher) Write(b []byte) (int, error) {
	n, err := f.w.Write(b)
	if err == nil {
		err = f.c.Flush()
	}
	return n, err
}

// replayable makes a small body one that can be sent twice.
func replayable(w http.ResponseWriter, r *http.Request) error {
	if r.Body == nil || r.ContentLength <= 0 || r.ContentLength > smallBody || r.Header.Get("Upgrade") != "" {
		return nil
	}
	c := http.NewResponseController(w)
	_ = c.SetReadDeadline(time.Now().Add(smallBodyTime)) // what can't have one has none
	defer func() { _ = c.SetReadDeadline(time.Time{}) }()
	b := make([]byte, r.ContentLength)
	if _, err := io.ReadFull(r.Body, b); err != nil {
		return err
	}
	r.Body.Close()
	r.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }
	r.Body, _ = r.GetBody()
	return nil
}
