// Package toolbox is the agent inside every sandbox: one HTTP API over files,
// programs, terminals and ports, under the identity of the sandbox's user. It
// puts the parts together, decides who may call, and when the sandbox has been
// idle for too long. It must not know of backends or of the server.
package toolbox

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona/internal/fileurl"
	"github.com/daytona-go/daytona/toolbox/account"
	"github.com/daytona-go/daytona/toolbox/environment"
	"github.com/daytona-go/daytona/toolbox/filesystem"
	"github.com/daytona-go/daytona/toolbox/port"
	"github.com/daytona-go/daytona/toolbox/system"
	"github.com/daytona-go/daytona/toolbox/telemetry"
	"github.com/daytona-go/daytona/toolbox/webterminal"
	"github.com/daytona-go/daytona/toolbox/wire"
)

// Config is what an agent is told when it starts.
type Config = wire.AgentConfig

// Errors that end Serve.
var (
	ErrIdle    = errors.New("no request for the idle time of the sandbox")
	ErrExpired = errors.New("the sandbox's time to live is over")
)

// Registrar is a part of the API.
type Registrar interface{ Register(*http.ServeMux) }

// Server is an agent.
type Server struct {
	config   Config
	logger   *slog.Logger
	account  *account.Account
	workDir  string
	env      *environment.Env
	ports    *port.Service
	programs *programs
	exporter *telemetry.Exporter // nil if nothing is exported
	exported chan struct{}       // closed when all of the entrypoint's output is
	mux      *http.ServeMux
	// late are the routes of parts that few sandboxes use, by the first segment of
	// their path: made when they are first asked for.
	late     map[string]func() *http.ServeMux
	activity *activity
	// shutdown is closed when a client wants the sandbox to end.
	shutdown     chan struct{}
	shutdownOnce sync.Once
	expired      chan struct{}
	ttl          *time.Timer

	tokenMu sync.Mutex
	token   *[sha256.Size]byte // hash; nil if none is wanted
	// signingKey of file URLs; "" if none are taken.
	signingKey string
}

// New makes an agent ready to serve; ctx governs only that. Close it.
func New(ctx context.Context, config Config, logger *slog.Logger) (*Server, error) {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	if config.IdleTimeout < 0 || config.TTL < 0 {
		return nil, fmt.Errorf("agent configuration: idle timeout %v and time to live %v must not be negative", config.IdleTimeout, config.TTL)
	}
	if config.Version == "" {
		config.Version = "v0.0.0-dev"
	}
	s := &Server{config: config, logger: logger, expired: make(chan struct{})}
	var err error
	if s.account = account.Current(); config.User != "" {
		if s.account, err = account.Lookup(config.User); err != nil {
			return nil, fmt.Errorf("agent configuration: %w", err)
		}
	}
	vars := map[string]string{}
	if config.SandboxID != "" {
		vars["DAYTONA_SANDBOX_ID"] = config.SandboxID
	}
	if s.env, err = environment.New(vars); err == nil {
		err = s.env.Update(config.Env, nil, "")
	}
	if err != nil {
		return nil, fmt.Errorf("agent configuration: %w", err)
	}
	if s.workDir, err = workDir(config.WorkDir, s.account); err != nil {
		return nil, fmt.Errorf("agent configuration: %w", err)
	}
	files, err := filesystem.New(filesystem.Options{Account: s.account, WorkDir: s.workDir, Logger: logger})
	if err != nil {
		return nil, err
	}
	s.setToken(config.Token)
	s.signingKey = config.SigningKey
	s.ports = port.New(port.Options{Account: s.account, Logger: logger})
	if s.programs, err = newPrograms(s); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		s.programs.close()
		return nil, err
	}
	machine := system.New("/", logger)
	if err := s.export(machine); err != nil {
		s.programs.close()
		return nil, fmt.Errorf("agent configuration: %w", err)
	}
	s.mux = http.NewServeMux()
	for _, part := range []Registrar{files, s.ports, machine, s.programs} {
		part.Register(s.mux)
	}
	s.late = s.programs.late()
	s.register()
	s.activity = newActivity(config.IdleTimeout)
	s.shutdown = make(chan struct{})
	if config.TTL > 0 {
		s.ttl = time.AfterFunc(config.TTL, func() { close(s.expired) })
	}
	return s, nil
}

// OnQuiet has do called, on a goroutine of its own, whenever there was no request
// for the time, once each: to give back what nobody needs at the moment. Requests
// that are no activity do not count. Call it before Serve, and once.
func (s *Server) OnQuiet(after time.Duration, do func()) { s.activity.onQuiet(after, do) }

// WorkDir is the sandbox's working directory.
func (s *Server) WorkDir() string { return s.workDir }

// workDir returns the working directory, and makes it with the user's rights,
// or, where these do not suffice, for the user.
func workDir(dir string, a *account.Account) (string, error) {
	if dir == "" {
		dir = a.Home
	}
	if !path.IsAbs(dir) {
		dir = path.Join("/", a.Home, dir)
	}
	dir = path.Clean(dir)
	if strings.IndexByte(dir, 0) >= 0 {
		return "", fmt.Errorf("working directory %q: has a NUL byte", dir)
	}
	if err := a.Do(func() error { return os.MkdirAll(dir, 0o755) }); err == nil {
		return dir, nil
	}
	missing := []string{}
	for p := dir; ; p = path.Dir(p) {
		if _, err := os.Stat(p); err == nil {
			break
		}
		missing = append(missing, p)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make the working directory: %w", err)
	}
	if len(missing) > 0 {
		// Only what was made here; never through a link.
		if err := os.Lchown(dir, a.UID, a.GID); err != nil {
			return "", fmt.Errorf("give the working directory to %s: %w", a.Name, err)
		}
	}
	return dir, nil
}

// maxBody of the requests handled here, in bytes.
const maxBody = 16 << 20

// register adds the agent's own routes.
func (s *Server) register() {
	dir := func(dir string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { wire.WriteJSON(w, http.StatusOK, wire.Dir{Dir: dir}) }
	}
	s.mux.HandleFunc("GET /version", func(w http.ResponseWriter, r *http.Request) {
		wire.WriteJSON(w, http.StatusOK, wire.Version{Version: s.config.Version})
	})
	s.mux.HandleFunc("GET /user-home-dir", dir(s.account.Home))
	s.mux.HandleFunc("GET /work-dir", dir(s.workDir))
	s.mux.HandleFunc("GET /project-dir", dir(s.workDir)) // its name of old
	s.mux.HandleFunc("POST /init", s.initialize)
	s.mux.HandleFunc("POST /env", s.updateEnv)
	s.mux.HandleFunc("POST "+wire.SigningKeyPath, s.setSigningKey)
	s.mux.HandleFunc("POST "+wire.IdleTimeoutPath, s.setIdleTimeout)
	s.mux.HandleFunc("GET "+wire.ActivityPath, func(w http.ResponseWriter, r *http.Request) {
		wire.WriteJSON(w, http.StatusOK, s.activity.now())
	})
	s.mux.HandleFunc("POST "+wire.ShutdownPath, s.shutDown)
}

// initialize replaces the token that requests must bear.
func (s *Server) initialize(w http.ResponseWriter, r *http.Request) {
	var request wire.InitializeRequest
	if !decode(w, r, &request) {
		return
	}
	if request.Token == "" {
		wire.WriteError(w, r, http.StatusBadRequest, "", "token is empty")
		return
	}
	s.setToken(request.Token)
	if s.exporter != nil {
		s.exporter.SetHeader(wire.HeaderSandboxToken, request.Token)
	}
	wire.WriteJSON(w, http.StatusOK, map[string]string{"message": "token set"})
}

func (s *Server) setSigningKey(w http.ResponseWriter, r *http.Request) {
	var request wire.SigningKeyRequest
	if !decode(w, r, &request) {
		return
	}
	s.tokenMu.Lock()
	s.signingKey = request.Key
	s.tokenMu.Unlock()
	wire.WriteJSON(w, http.StatusOK, map[string]string{"message": "signing key set"})
}

// signed checks the signature of a request for a single file; ok is false if it
// bears none. What else such a request asks for was not signed, and is taken out,
// as is the signature.
func (s *Server) signed(r *http.Request) (ok bool, err error) {
	method := fileurl.MethodOf(r.URL.Path)
	if method == "" || !strings.Contains(r.URL.RawQuery, "signature=") {
		return false, nil
	}
	s.tokenMu.Lock()
	key := s.signingKey
	s.tokenMu.Unlock()
	query := r.URL.Query()
	if key == "" || !query.Has("signature") || r.Method != method && (r.Method != http.MethodHead || method != http.MethodGet) {
		return false, nil
	}
	file, err := fileurl.Verify(key, method, query, time.Now())
	r.URL.RawQuery = url.Values{"path": {file}}.Encode()
	return true, err
}

func (s *Server) shutDown(w http.ResponseWriter, r *http.Request) {
	wire.WriteJSON(w, http.StatusAccepted, struct{}{})
	s.shutdownOnce.Do(func() { close(s.shutdown) })
}

func (s *Server) setIdleTimeout(w http.ResponseWriter, r *http.Request) {
	var request wire.IdleTimeoutRequest
	if !decode(w, r, &request) {
		return
	}
	if request.Milliseconds < 0 {
		wire.WriteError(w, r, http.StatusBadRequest, "", fmt.Sprintf("milliseconds is %d; it must be 0 (never) or more", request.Milliseconds))
		return
	}
	s.activity.set(time.Duration(request.Milliseconds) * time.Millisecond)
	wire.WriteJSON(w, http.StatusOK, request)
}

func (s *Server) updateEnv(w http.ResponseWriter, r *http.Request) {
	var request wire.UpdateEnvRequest
	if !decode(w, r, &request) {
		return
	}
	if err := s.env.Update(request.Set, request.Unset, request.UnsetValuePrefix); err != nil {
		wire.WriteError(w, r, http.StatusBadRequest, "", "bad request: "+err.Error())
		return
	}
	wire.WriteJSON(w, http.StatusOK, map[string]string{"message": "environment updated"})
}

func decode(w http.ResponseWriter, r *http.Request, into any) bool {
	err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(into)
	if err == nil {
		return true
	}
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		wire.WriteError(w, r, http.StatusRequestEntityTooLarge, "", fmt.Sprintf("request body: more than %d bytes", maxBody))
	} else {
		wire.WriteError(w, r, http.StatusBadRequest, wire.CodeInvalidBody, "invalid body request: "+err.Error())
	}
	return false
}

func (s *Server) setToken(token string) {
	var hash *[sha256.Size]byte
	if token != "" {
		sum := sha256.Sum256([]byte(token))
		hash = &sum
	}
	s.tokenMu.Lock()
	s.token = hash
	s.tokenMu.Unlock()
}

// allowed checks the token of a request, and takes it out: what is behind
// /proxy must not see it.
func (s *Server) allowed(r *http.Request) bool {
	s.tokenMu.Lock()
	want := s.token
	s.tokenMu.Unlock()
	if addr, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); want == nil || ok && addr.Network() == "unix" {
		return true
	}
	given := r.Header.Get(wire.HeaderAgentToken)
	from := wire.HeaderAgentToken
	if given == "" {
		scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		if strings.EqualFold(scheme, "Bearer") {
			given, from = strings.TrimSpace(token), "Authorization"
		}
	}
	// Hashes are of equal length, so that the comparison tells nothing.
	hash := sha256.Sum256([]byte(given))
	if subtle.ConstantTimeCompare(hash[:], want[:]) != 1 {
		return false
	}
	r.Header.Del(from)
	return true
}

// Handler returns the API.
func (s *Server) Handler() http.Handler { return http.HandlerFunc(s.serveHTTP) }

func (s *Server) serveHTTP(w http.ResponseWriter, r *http.Request) {
	out := &response{ResponseWriter: w}
	defer func() {
		v := recover()
		if v == nil {
			return
		}
		if v == http.ErrAbortHandler {
			panic(v)
		}
		s.logger.Error("a request made the agent panic", "method", r.Method, "route", r.URL.Path, "panic", v, "stack", string(debug.Stack()))
		if out.begun {
			panic(http.ErrAbortHandler)
		}
		wire.WriteError(w, r, http.StatusInternalServerError, "", "internal server error: a fault of the agent, see its log")
	}()
	signed, err := s.signed(r)
	if err != nil {
		code := wire.CodeInvalidSignature
		if errors.Is(err, fileurl.ErrExpired) {
			code = wire.CodeURLExpired
		}
		wire.WriteError(out, r, http.StatusForbidden, code, "forbidden: "+err.Error())
		return
	}
	if !signed && !s.allowed(r) {
		w.Header().Set("WWW-Authenticate", "Bearer")
		wire.WriteError(out, r, http.StatusUnauthorized, "", "unauthorized: the agent's token is missing or wrong")
		return
	}
	if r.Header.Get(wire.HeaderSkipActivity) != "true" {
		defer s.activity.begin()()
	}
	if s.exporter != nil {
		begin := time.Now()
		defer func() { s.exporter.Span(r, s.route(r), out.status, begin) }()
	}
	if strings.HasPrefix(r.URL.Path+"/", webterminal.Prefix) {
		s.programs.web.ServeProxy(out, r)
		return
	}
	// Not through the mux, which would redirect to a cleaned path.
	if strings.HasPrefix(r.URL.Path, "/proxy/") {
		s.ports.ServeProxy(out, r)
		return
	}
	mux := s.muxOf(r)
	if h, pattern := mux.Handler(r); pattern == "" {
		s.noRoute(out, r, h)
		return
	}
	mux.ServeHTTP(out, r)
}

// muxOf returns the routes that a request's is among.
func (s *Server) muxOf(r *http.Request) *http.ServeMux {
	// Clean, as a mux redirects to it.
	first, _, _ := strings.Cut(strings.TrimPrefix(path.Clean(r.URL.Path), "/"), "/")
	if late, ok := s.late[first]; ok {
		return late()
	}
	return s.mux
}

// noRoute answers as the mux would, but in JSON.
func (s *Server) noRoute(w http.ResponseWriter, r *http.Request, h http.Handler) {
	answer := &verdict{header: http.Header{}}
	h.ServeHTTP(answer, r)
	if answer.status == http.StatusMethodNotAllowed {
		w.Header()["Allow"] = answer.header["Allow"]
		wire.WriteError(w, r, http.StatusMethodNotAllowed, "", "this route knows "+answer.header.Get("Allow")+", not "+clip(r.Method))
		return
	}
	wire.WriteError(w, r, http.StatusNotFound, "", "not found: there is no route "+clip(r.Method+" "+r.URL.Path))
}

func clip(s string) string { return wire.Clip(s, 256) }

// verdict keeps only status and header of an answer.
type verdict struct {
	header http.Header
	status int
}

func (v *verdict) Header() http.Header         { return v.header }
func (v *verdict) WriteHeader(status int)      { v.status = status }
func (v *verdict) Write(b []byte) (int, error) { return len(b), nil }

// response knows whether an answer has begun.
type response struct {
	http.ResponseWriter
	begun  bool
	status int
}

func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *response) WriteHeader(status int) {
	w.begun = true
	if w.status < 200 { // what came before was informational
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *response) Write(b []byte) (int, error) {
	w.begun = true
	if w.status < 200 {
		w.status = http.StatusOK
	}
	return w.ResponseWriter.Write(b)
}

// FlushError is what an http.ResponseController calls.
func (w *response) FlushError() error {
	w.begun = true
	return http.NewResponseController(w.ResponseWriter).Flush()
}

func (w *response) Flush() { _ = w.FlushError() }

// shutdownGrace is how long requests may take after the programs have ended.
const shutdownGrace = 2 * time.Second

// Serve answers requests until ctx ends or a client asks for it (nil), the sandbox was idle for too
// long (ErrIdle), its time is over (ErrExpired), or l fails. It closes l. Where
// the agent is the sandbox's init, all processes get SIGTERM, and SIGKILL five
// seconds later, before it returns. It
// refuses a listener that others than this machine can reach if there is no
// Token.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	defer l.Close()
	if l.Addr().Network() != "unix" && s.config.Token == "" {
		addr, err := netip.ParseAddrPort(l.Addr().String())
		if err != nil || !addr.Addr().Unmap().IsLoopback() {
			return fmt.Errorf("listen on %s: an agent that the network can reach needs a token", l.Addr())
		}
	}
	server := &http.Server{
		Handler:           s.Handler(),
		ReadHeaderTimeout: wire.FirstRequestTimeout,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    256 << 10, // terminals get their environment in a header
		Protocols:         new(http.Protocols),
		ErrorLog:          slog.NewLogLogger(s.logger.Handler(), slog.LevelWarn),
	}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetUnencryptedHTTP2(true) // gRPC to what is behind /proxy
	if s.config.SSHAddress != "" {
		ssh, err := net.Listen("tcp", s.config.SSHAddress)
		if err != nil {
			return fmt.Errorf("agent configuration: listen for SSH: %w", err)
		}
		tcp := ssh.(*net.TCPListener)
		defer func() {
			// A program that is being started has a copy of the listener until its
			// exec, so that closing it is not yet the end of the port.
			if raw, err := tcp.SyscallConn(); err == nil {
				_ = raw.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_RDWR) })
			}
			tcp.Close()
		}()
		go func() {
			if err := s.programs.ssh.Serve(ctx, tcp); err != nil {
				s.logger.Error("no more SSH connections", "error", err)
			}
		}()
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	var cause error
	select {
	case err := <-done:
		return fmt.Errorf("serve on %s: %w", l.Addr(), err)
	case <-ctx.Done():
	case <-s.shutdown:
	case <-s.activity.idle:
		cause = ErrIdle
	case <-s.expired:
		cause = ErrExpired
	}
	// No new requests; those under way end with the programs they wait for.
	grace, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- server.Shutdown(grace) }()
	s.programs.terminate()
	late := time.AfterFunc(shutdownGrace, cancel)
	defer late.Stop()
	if err := <-ended; err != nil {
		_ = server.Close()
	}
	return cause
}

// Close ends everything that the agent runs for requests and sessions.
func (s *Server) Close() error {
	if s.ttl != nil {
		s.ttl.Stop()
	}
	s.activity.close()
	s.ports.Close()
	err := s.programs.close()
	if s.exporter != nil {
		// The last lines; not those of a collector that takes none.
		select {
		case <-s.exported:
		case <-time.After(time.Second):
		}
		s.exporter.Close()
	}
	return err
}
