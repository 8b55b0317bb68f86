// Package ssh lets the programs of OpenSSH into a sandbox: shells, commands,
// files and forwarded connections. Clients reach it through the agent's own API
// (see [wire.SSHPath]), so that no port need be open, and on a port where the
// configuration wants one.
//
// The agent speaks no SSH itself. For each connection it starts a helper as the
// sandbox's user, which does all of it: what the helper may touch is what the
// user may, and whatever a client makes of it is over with the connection. The
// package must not know of authentication at the API, nor of the other parts of
// the agent.
package ssh

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona/toolbox/process"
	"github.com/daytona-go/daytona/toolbox/wire"
)

const (
	// maxConnections at a time: each is a process.
	maxConnections = 64
	// frameLimit is the greatest size of a client's frame, frameSize that of
	// the agent's, in bytes.
	frameLimit = 256 << 10
	frameSize  = 32 << 10
	// reasonLimit is how much is taken of what a helper says in the end, in
	// bytes.
	reasonLimit = 1 << 10
)

// Options configure a [Service].
type Options struct {
	// Spawner starts the helpers. Required.
	Spawner *process.Spawner
	// Active is called at the beginning of each connection to a listener, and
	// what it returns at its end. Defaults to nothing.
	Active func() (done func())
	// Logger defaults to none.
	Logger *slog.Logger
}

// Service serves the SSH routes of the toolbox API.
type Service struct {
	spawner *process.Spawner
	active  func() func()
	logger  *slog.Logger
	// key makes the host key at first use. It is kept nowhere: a sandbox that
	// starts, and so a fork and one made from a snapshot, has one of its own,
	// and no copy of its files has any.
	key func() ed25519.PrivateKey

	mu      sync.Mutex
	closed  bool
	open    int
	running map[*process.Process]struct{}
}

// New returns a Service.
func New(opts Options) *Service {
	s := &Service{spawner: opts.Spawner, active: opts.Active, logger: opts.Logger, running: make(map[*process.Process]struct{})}
	if s.logger == nil {
		s.logger = slog.New(slog.DiscardHandler)
	}
	if s.active == nil {
		s.active = func() func() { return func() {} }
	}
	s.key = sync.OnceValue(func() ed25519.PrivateKey {
		_, key, _ := ed25519.GenerateKey(rand.Reader) // it never fails
		return key
	})
	return s
}

// Register adds the routes to mux.
func (s *Service) Register(mux *http.ServeMux) {
	mux.HandleFunc("GET "+wire.SSHPath, s.connect)
	mux.HandleFunc("GET "+wire.SSHHostKeysPath, s.hostKeys)
}

// Close ends all connections and kills what still runs in them.
func (s *Service) Close() {
	s.mu.Lock()
	s.closed = true
	var running []*process.Process
	for p := range s.running {
		running = append(running, p)
	}
	s.mu.Unlock()
	var wg sync.WaitGroup
	for _, p := range running {
		wg.Go(p.KillTree)
	}
	wg.Wait()
}

func (s *Service) hostKeys(w http.ResponseWriter, r *http.Request) {
	public, err := ssh.NewPublicKey(s.key().Public())
	if err != nil {
		wire.WriteError(w, r, http.StatusInternalServerError, "", err.Error())
		return
	}
	wire.WriteJSON(w, http.StatusOK, wire.SSHHostKeys{Keys: []string{strings.TrimSpace(string(ssh.MarshalAuthorizedKey(public)))}})
}

// Errors that no helper is started for.
var (
	errClosed = errors.New("the agent is shutting down")
	errBusy   = fmt.Errorf("there are %d SSH connections already: close some first", maxConnections)
)

// connect serves GET /ssh/connect.
func (s *Service) connect(w http.ResponseWriter, r *http.Request) {
	config := helperConfig{}
	switch v := r.URL.Query().Get(wire.SSHAgentForwarding); v {
	case "", "false":
	case "true":
		config.AgentForwarding = true
	default:
		wire.WriteError(w, r, http.StatusBadRequest, "", fmt.Sprintf("bad request: query parameter %s is %.32q; it must be true or false", wire.SSHAgentForwarding, v))
		return
	}
	if !process.IsUpgrade(r) {
		w.Header().Set("Upgrade", "websocket")
		wire.WriteError(w, r, http.StatusUpgradeRequired, "", "this operation is a WebSocket: ask for the upgrade")
		return
	}
	ours, theirs, err := socketPair()
	if err != nil {
		wire.WriteError(w, r, http.StatusInternalServerError, "", "internal server error: "+err.Error())
		return
	}
	defer ours.Close()
	h, err := s.start(theirs, config)
	theirs.Close()
	if err != nil {
		status := http.StatusInternalServerError
		if errors.Is(err, errClosed) || errors.Is(err, errBusy) {
			status = http.StatusServiceUnavailable
		}
		wire.WriteError(w, r, status, "", err.Error())
		return
	}
	// The helper ends when its connection does; what it still has to do then is
	// its own affair.
	defer h.release()
	sock, err := process.AcceptSocket(w, r, frameLimit)
	if err != nil {
		s.logger.Debug("SSH socket", "error", err)
		return
	}
	defer sock.Drop()
	fault := make(chan string, 1)
	go func() { fault <- fromClient(sock, ours) }()
	buf := make([]byte, frameSize)
	for {
		n, err := ours.Read(buf)
		if n > 0 && sock.WriteBinary(buf[:n]) != nil {
			return
		}
		if err != nil {
			break
		}
	}
	select {
	case text := <-fault:
		if text != "" {
			sock.Close(1003, text)
			return
		}
	default:
	}
	reason := h.reason()
	code := 1000
	if reason != "" {
		code = 1002
		s.logger.Debug("SSH connection", "error", reason)
	}
	sock.Close(code, reason)
}

// fromClient copies to the helper, and returns what was wrong with the client's
// frames.
func fromClient(sock *process.Socket, to *net.UnixConn) string {
	for {
		text, data, err := sock.Read()
		switch {
		case err != nil:
			to.Close()
			return ""
		case text:
			to.Close()
			return "the frames of an SSH connection are binary"
		case len(data) == 0:
			_ = to.CloseWrite()
		default:
			if _, err := to.Write(data); err != nil {
				// It has ended, and the other direction says why. Somebody has to
				// read the control frames that come yet.
				continue
			}
		}
	}
}

// socketPair is a connection to a helper.
func socketPair() (ours *net.UnixConn, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a socket for the SSH helper: %w", err)
	}
	theirs = os.NewFile(uintptr(fds[1]), "helper")
	f := os.NewFile(uintptr(fds[0]), "socket")
	defer f.Close() // FileConn makes a copy
	conn, err := net.FileConn(f)
	if err != nil {
		theirs.Close()
		return nil, nil, fmt.Errorf("make a socket for the SSH helper: %w", err)
	}
	return conn.(*net.UnixConn), theirs, nil
}

// running is a helper at work.
type running struct {
	service *Service
	process *process.Process
	said    chan string
	once    sync.Once
}

// release gives the connection's place to another.
func (h *running) release() {
	h.once.Do(func() {
		h.service.mu.Lock()
		h.service.open--
		h.service.mu.Unlock()
	})
}

// reason is what the helper says about why it ended the connection: nothing if
// it was the client, or both agreed. It does not wait for it for long.
func (h *running) reason() string {
	select {
	case text := <-h.said:
		return text
	case <-time.After(time.Second):
		return ""
	}
}

// start starts the helper of a connection. The caller must release it.
func (s *Service) start(conn *os.File, config helperConfig) (_ *running, err error) {
	s.mu.Lock()
	switch {
	case s.closed:
		err = errClosed
	case s.open >= maxConnections:
		err = errBusy
	default:
		s.open++
	}
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	h := &running{service: s, said: make(chan string, 1)}
	defer func() {
		if err != nil {
			h.release()
		}
	}()
	config.HostKey, config.WorkDir = s.key().Seed(), s.spawner.WorkDir()
	text, err := json.Marshal(config)
	if err != nil {
		return nil, err
	}
	settings, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start an SSH helper: %w", err)
	}
	defer settings.Close()
	defer w.Close()
	// Less than a pipe holds: it does not block.
	if _, err := w.Write(text); err != nil {
		return nil, fmt.Errorf("start an SSH helper: %w", err)
	}
	stderr, says, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start an SSH helper: %w", err)
	}
	defer says.Close()
	spec := s.spawner.Helper(HelperName)
	spec.Stdin, spec.Stderr, spec.ExtraFD = int(conn.Fd()), int(says.Fd()), int(settings.Fd())
	if h.process, err = s.spawner.Start(spec); err != nil {
		stderr.Close()
		return nil, fmt.Errorf("start an SSH helper: %w", err)
	}
	s.mu.Lock()
	s.running[h.process] = struct{}{}
	closed := s.closed
	s.mu.Unlock()
	if closed {
		h.process.KillTree()
	}
	go func() {
		defer stderr.Close()
		line, _ := bufio.NewReader(io.LimitReader(stderr, reasonLimit)).ReadString('\n')
		h.said <- strings.ToValidUTF8(strings.TrimSpace(line), "")
		_, _ = io.Copy(io.Discard, stderr)
	}()
	go func() {
		h.process.Wait()
		s.mu.Lock()
		delete(s.running, h.process)
		s.mu.Unlock()
	}()
	return h, nil
}

// Serve speaks SSH with whoever connects to l as the gateways of the public API
// expect it: any public key, or [wire.SSHPassword], logs in. It is for listeners
// that nobody reaches but who may use the sandbox. It returns when l fails, is
// shut down or closed; ctx ends the connections.
func (s *Service) Serve(ctx context.Context, l *net.TCPListener) error {
	for {
		conn, err := l.AcceptTCP()
		if err != nil {
			if errors.Is(err, net.ErrClosed) || errors.Is(err, unix.EINVAL) { // EINVAL: it was shut down
				return nil
			}
			if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ECONNABORTED) {
				time.Sleep(10 * time.Millisecond)
				continue
			}
			return fmt.Errorf("serve SSH on %s: %w", l.Addr(), err)
		}
		if err := s.serveTCP(ctx, conn); err != nil {
			s.logger.Warn("SSH connection refused", "error", err)
		}
	}
}

func (s *Service) serveTCP(ctx context.Context, conn *net.TCPConn) error {
	defer conn.Close()
	f, err := conn.File()
	if err != nil {
		return err
	}
	defer f.Close()
	h, err := s.start(f, helperConfig{Gateway: true, AgentForwarding: true})
	if err != nil {
		return err
	}
	done := s.active()
	stop := context.AfterFunc(ctx, func() { _ = h.process.Signal(syscall.SIGTERM) })
	go func() {
		defer stop()
		defer done()
		defer h.release()
		if reason := <-h.said; reason != "" {
			s.logger.Debug("SSH connection", "error", reason)
		}
	}()
	return nil
}
