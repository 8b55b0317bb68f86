package proxy_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/identity"
	"github.com/daytona-go/daytona/server/proxy"
	"github.com/daytona-go/daytona/server/store"
	"github.com/daytona-go/daytona/server/store/storetest"
	"github.com/daytona-go/daytona/toolbox"
	"github.com/daytona-go/daytona/toolbox/reexec"
)

// This program is also the helpers of the agents in it.
func TestMain(m *testing.M) {
	reexec.Main(os.Args[1:])
	os.Exit(m.Run())
}

const (
	sandboxA = "aaaaaaaa-0000-4000-8000-000000000001"
	sandboxB = "bbbbbbbb-0000-4000-8000-000000000002"
	unknown  = "cccccccc-0000-4000-8000-000000000003"
	orgA     = "org-a"
	orgB     = "org-b"
	keyA     = "dtn_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	keyB     = "dtn_bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
	tokenA   = "tokentokentokentokentokentokenaa"
	domain   = "preview.test"
)

// sandboxes are the sandboxes of a test, and people.
type sandboxes struct {
	mu      sync.Mutex
	all     map[string]proxy.Sandbox
	tokens  map[string]string // of sandboxes
	signed  map[string]signedToken
	keys    map[string]*identity.Principal
	members map[string]string // organization of a user
	sockets map[string]string
	asked   int
}

type signedToken struct {
	sandbox string
	port    int
	expires time.Time
}

func (s *sandboxes) ProxySandbox(_ context.Context, id string) (proxy.Sandbox, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	sb, ok := s.all[id]
	if !ok {
		return sb, daytona.ErrNotFound
	}
	if sb.State == "destroyed" {
		return sb, daytona.ErrGone
	}
	return sb, nil
}

func (s *sandboxes) ValidPreviewToken(_ context.Context, id, token string) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tokens[id] != "" && s.tokens[id] == token, nil
}

func (s *sandboxes) SignedPreview(_ context.Context, token string, port int) (string, time.Time, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, ok := s.signed[token]
	if !ok || t.port != port {
		return "", time.Time{}, daytona.ErrForbidden
	}
	return t.sandbox, t.expires, nil
}

func (s *sandboxes) SigningKey(_ context.Context, id string) (string, error) {
	return "signing-key-of-" + id, nil
}

func (s *sandboxes) Authenticate(_ context.Context, bearer string) (*identity.Principal, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.keys[bearer]; p != nil {
		return new(*p), nil
	}
	return nil, daytona.ErrUnauthorized
}

func (s *sandboxes) Join(_ context.Context, p *identity.Principal, organization string) (*identity.Principal, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.members[p.UserID] != organization {
		return nil, daytona.ErrForbidden
	}
	p = new(*p)
	p.OrganizationID = organization
	return p, nil
}

func (s *sandboxes) Dial(ctx context.Context, id string) (net.Conn, error) {
	s.mu.Lock()
	socket := s.sockets[id]
	s.mu.Unlock()
	if socket == "" {
		return nil, errors.New("no such agent")
	}
	return new(net.Dialer).DialContext(ctx, "unix", socket)
}

func (s *sandboxes) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

func (s *sandboxes) set(id string, f func(*proxy.Sandbox)) {
	s.change(func() {
		sb := s.all[id]
		f(&sb)
		s.all[id] = sb
	})
}

// agent starts an agent and returns its socket.
func agent(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "px") // short: a socket's path has 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s, err := toolbox.New(t.Context(), toolbox.Config{WorkDir: t.TempDir()}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(ctx, l) }()
	t.Cleanup(func() { cancel(); <-done; _ = s.Close() })
	return socket
}

// world is a proxy that serves, and what is around it.
type world struct {
	*sandboxes
	t       testing.TB
	proxy   *proxy.Proxy
	db      *store.DB
	log     *logBuffer
	server  *httptest.Server
	client  *http.Client // does not follow redirects
	touched chan string
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func newWorld(t testing.TB, change func(*proxy.Config)) *world {
	t.Helper()
	w := &world{t: t, log: &logBuffer{}, touched: make(chan string, 100), sandboxes: &sandboxes{
		all: map[string]proxy.Sandbox{
			sandboxA: {ID: sandboxA, OrganizationID: orgA, State: "started"},
			sandboxB: {ID: sandboxB, OrganizationID: orgB, State: "started"},
		},
		tokens: map[string]string{sandboxA: tokenA, sandboxB: "b"},
		signed: map[string]signedToken{},
		keys: map[string]*identity.Principal{
			keyA: {Kind: identity.Key, UserID: "user-a", OrganizationID: orgA, KeyID: "key-a"},
			keyB: {Kind: identity.Key, UserID: "user-b", OrganizationID: orgB, KeyID: "key-b"},
		},
		members: map[string]string{"user-a": orgA, "user-b": orgB},
		sockets: map[string]string{sandboxA: agent(t)},
	}}
	w.db = storetest.Open(t, storetest.SQLite(t))
	c := proxy.Config{
		Sandboxes: w, Authenticator: w, Dialer: w, Domains: []string{domain}, Protocol: "https", Key: []byte(strings.Repeat("k", 32)),
		Log: slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug})), Version: "1.2.3",
		Touch: func(id string) {
			select {
			case w.touched <- id:
			default:
			}
		},
	}
	if change != nil {
		change(&c)
	}
	p, err := proxy.New(c)
	if err != nil {
		t.Fatal(err)
	}
	w.proxy = p
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); p.Run(ctx, w.db, "changed") }()
	t.Cleanup(func() { cancel(); <-done })
	w.server = httptest.NewUnstartedServer(p)
	w.server.Config.ErrorLog = slog.NewLogLogger(slog.NewTextHandler(w.log, nil), slog.LevelError)
	w.server.EnableHTTP2 = true
	w.server.StartTLS()
	t.Cleanup(w.server.Close)
	w.client = w.clientOf(false)
	return w
}

// clientOf returns a client that finds all hosts at the proxy.
func (w *world) clientOf(http2 bool) *http.Client {
	tr := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", w.server.Listener.Addr().String())
		},
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: http2, DisableCompression: true,
	}
	w.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// answer is what came of a request.
type answer struct {
	status int
	header http.Header
	body   string
}

// call makes a request; header are pairs.
func (w *world) call(method, url, body string, header ...string) answer {
	w.t.Helper()
	r, err := http.NewRequestWithContext(w.t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	resp, err := w.client.Do(r)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, string(b)}
}

// base is the address of the proxy itself.
func (w *world) base() string { return "https://" + domain }

// at is the address of a port of a sandbox, or of a signed token.
func at(port int, label string) string {
	return "https://" + strconv.Itoa(port) + "-" + label + "." + domain
}

// app serves h on a port of the host that the agents are on.
func app(t testing.TB, h http.HandlerFunc) (port int) {
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.Listener.Addr().(*net.TCPAddr).Port
}
