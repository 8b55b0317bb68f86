// Package terminal serves the pseudo-terminals of a sandbox: shells that
// clients create over HTTP and attach to over WebSockets, of both generations
// of the public API.
//
// It starts the shells through a [process.Spawner] and knows the wire types.
// It must not know of authentication nor of the other parts of the agent.
package terminal

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona/toolbox/process"
	"github.com/daytona-go/daytona/toolbox/wire"
)

const (
	defaultCols, defaultRows = 80, 24
	maxSize                  = 1000
	// inputLimit is the greatest length of an input message in bytes.
	inputLimit = 64 << 10
	// missedLimit is how many bytes of output are kept, the last ones, while
	// no client is attached. The next one to attach gets them.
	missedLimit = 64 << 10
	// clientQueue is how many bytes wait for one client. When they are full
	// the shell waits, but no longer than stallLimit: then the client is
	// closed with 1008.
	clientQueue = 1 << 20
	stallLimit  = 5 * time.Second
	// inputGrace is how long the input of a client that takes no more output
	// is waited for.
	inputGrace = time.Second
	// settleTime is how long after the shell's end the terminal is still
	// read while something in the background holds it.
	settleTime = 100 * time.Millisecond
	bodyLimit  = 1 << 20
)

// Options configure a [Service].
type Options struct {
	// Spawner starts the shells. Required.
	Spawner *process.Spawner
	// Logger defaults to none.
	Logger *slog.Logger
}

// Service serves the PTY routes of the toolbox API.
type Service struct {
	spawner *process.Spawner
	logger  *slog.Logger

	mu       sync.Mutex
	closed   bool
	sessions map[string]*session
	order    []*session
}

// New returns a Service.
func New(opts Options) *Service {
	s := &Service{spawner: opts.Spawner, logger: opts.Logger, sessions: make(map[string]*session)}
	if s.logger == nil {
		s.logger = slog.New(slog.DiscardHandler)
	}
	return s
}

// Register adds the routes to mux.
func (s *Service) Register(mux *http.ServeMux) {
	mux.HandleFunc("POST /process/pty", s.create)
	mux.HandleFunc("GET /process/pty", s.list)
	mux.HandleFunc("GET /process/pty/create-connect", s.createConnect)
	mux.HandleFunc("GET /process/pty/{sessionId}", s.get)
	mux.HandleFunc("DELETE /process/pty/{sessionId}", s.delete)
	mux.HandleFunc("GET /process/pty/{sessionId}/connect", s.connect)
	mux.HandleFunc("POST /process/pty/{sessionId}/resize", s.resize)
}

// Close kills all shells with what they started.
func (s *Service) Close() {
	s.mu.Lock()
	s.closed = true
	sessions := s.order
	s.mu.Unlock()
	var wg sync.WaitGroup
	for _, ss := range sessions {
		wg.Go(func() { s.kill(ss) })
	}
	wg.Wait()
}

// session is one terminal.
type session struct {
	id        string
	cwd       string
	envs      map[string]string
	lazy      bool
	createdAt time.Time

	mu         sync.Mutex
	cols, rows int
	shell      *process.Process
	master     *os.File
	clients    []*client
	missed     []byte
	exit       *wire.PTYExit
	// ended is closed when the shell and its output have ended, or when a
	// lazy one was deleted before its start.
	ended chan struct{}
}

// client is one attached WebSocket.
type client struct {
	sock        *process.Socket
	exitControl bool

	mu      sync.Mutex
	changed sync.Cond
	queue   [][]byte
	queued  int
	// slow says that it is to be closed with 1008, last that nothing follows
	// the queue.
	slow, last, gone bool
}

func fail(w http.ResponseWriter, r *http.Request, status int, format string, args ...any) {
	body := wire.NewError(r, status, "", fmt.Sprintf(format, args...))
	body.Error = body.Message
	wire.WriteJSON(w, status, body)
}

func decode(w http.ResponseWriter, r *http.Request, into any) bool {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, bodyLimit))
	if err == nil {
		err = json.Unmarshal(body, into)
	}
	if err != nil {
		fail(w, r, http.StatusBadRequest, "invalid body request: %v", err)
	}
	return err == nil
}

// apiError is an error with its status.
type apiError struct {
	status  int
	message string
}

func (e *apiError) Error() string { return e.message }

func statusOf(err error) int {
	if e, ok := errors.AsType[*apiError](err); ok {
		return e.status
	}
	return http.StatusInternalServerError
}

func refuse(status int, format string, args ...any) error {
	return &apiError{status, fmt.Sprintf(format, args...)}
}

// add checks a request and makes the session known, started unless it is
// lazy.
func (s *Service) add(req *wire.PTYCreateRequest) (*session, error) {
	switch {
	case req.ID == "":
		return nil, refuse(http.StatusBadRequest, "id is required")
	case len(req.ID) > 255 || strings.ContainsAny(req.ID, "/\x00"):
		return nil, refuse(http.StatusBadRequest, "id %q: at most 255 bytes, without slash", req.ID)
	case req.Cols < 0 || req.Cols > maxSize:
		return nil, refuse(http.StatusBadRequest, "cols %d: must be from 1 to %d", req.Cols, maxSize)
	case req.Rows < 0 || req.Rows > maxSize:
		return nil, refuse(http.StatusBadRequest, "rows %d: must be from 1 to %d", req.Rows, maxSize)
	case strings.ContainsRune(req.Cwd, 0):
		return nil, refuse(http.StatusBadRequest, "cwd must not contain NUL bytes")
	}
	if err := process.CheckEnv(req.Envs); err != nil {
		return nil, refuse(http.StatusBadRequest, "%v", err)
	}
	ss := &session{
		id: req.ID, cwd: req.Cwd, envs: req.Envs, lazy: req.LazyStart, createdAt: time.Now().UTC(),
		cols: req.Cols, rows: req.Rows, ended: make(chan struct{}),
	}
	if ss.cols == 0 {
		ss.cols = defaultCols
	}
	if ss.rows == 0 {
		ss.rows = defaultRows
	}
	if ss.cwd == "" {
		ss.cwd = s.spawner.WorkDir()
	}
	// Nobody sees it before it has started, or failed to.
	ss.mu.Lock()
	defer ss.mu.Unlock()
	s.mu.Lock()
	switch {
	case s.closed:
		s.mu.Unlock()
		return nil, refuse(http.StatusServiceUnavailable, "the agent is shutting down")
	case s.sessions[ss.id] != nil:
		s.mu.Unlock()
		return nil, refuse(http.StatusConflict, "PTY session %q exists already", ss.id)
	}
	s.sessions[ss.id] = ss
	s.order = append(s.order, ss)
	s.mu.Unlock()
	if !ss.lazy {
		if err := s.start(ss); err != nil {
			s.abort(ss, err)
			return nil, err
		}
	}
	return ss, nil
}

// start starts the shell. The caller holds ss.mu.
func (s *Service) start(ss *session) error {
	master, slave, err := s.spawner.OpenTerminal(ss.cols, ss.rows)
	if err != nil {
		return err
	}
	defer slave.Close()
	env := map[string]string{"TERM": "xterm-256color"}
	for name, value := range ss.envs {
		env[name] = value
	}
	fd := int(slave.Fd())
	shell := s.spawner.Account().Shell
	if shell == "" || unix.Access(shell, unix.X_OK) != nil {
		shell = "/bin/sh"
	}
	p, err := s.spawner.Start(&process.Spec{
		Args: shellArgs(shell), Path: shell, Dir: ss.cwd, Env: env,
		Stdin: fd, Stdout: fd, Stderr: fd, Terminal: true,
	})
	if err != nil {
		master.Close()
		if _, ok := errors.AsType[*process.DirError](err); ok {
			return refuse(http.StatusBadRequest, "start PTY session %q: %v", ss.id, err)
		}
		return fmt.Errorf("start PTY session %q: %w", ss.id, err)
	}
	ss.shell, ss.master = p, master
	go s.serve(ss)
	return nil
}

// shellArgs make a shell an interactive login shell.
func shellArgs(shell string) []string {
	name := shell[strings.LastIndexByte(shell, '/')+1:]
	return []string{name, "-i", "-l"}
}

// abort ends a session whose shell did not start: it can be created again with
// other options. The caller holds ss.mu.
func (s *Service) abort(ss *session, err error) {
	ss.exit = &wire.PTYExit{ExitCode: -1, Error: err.Error()}
	close(ss.ended)
	s.remove(ss)
}

func (s *Service) remove(ss *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sessions[ss.id] == ss {
		delete(s.sessions, ss.id)
		s.order = slices.DeleteFunc(s.order, func(o *session) bool { return o == ss })
	}
}

func (s *Service) find(id string) (*session, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ss := s.sessions[id]; ss != nil {
		return ss, nil
	}
	return nil, refuse(http.StatusNotFound, "PTY session %q not found", id)
}

// serve copies the terminal's output to the clients until the shell ends.
func (s *Service) serve(ss *session) {
	go func() {
		ss.shell.Wait()
		process.Settle(ss.master, settleTime)
	}()
	_, _ = process.CopyOutput(ss.master, make([]byte, 32<<10), func(p []byte) error {
		ss.broadcast(p)
		return nil
	})
	status := ss.shell.Wait()
	// The terminal hangs up on what the shell left on it.
	ss.mu.Lock()
	exit := describeExit(status)
	ss.exit = &exit
	clients := ss.clients
	ss.clients = nil
	ss.master.Close()
	ss.mu.Unlock()
	s.remove(ss)
	close(ss.ended)
	for _, c := range clients {
		c.finish()
	}
}

// describeExit words how a shell ended as the public API does.
func describeExit(status process.Status) wire.PTYExit {
	exit := wire.PTYExit{ExitCode: status.Code}
	switch {
	case status.Code == 0:
	case status.Code == 130:
		exit.ExitReason = "Ctrl+C"
	case status.Code == 137:
		exit.ExitReason = "SIGKILL"
	case status.Code == 143:
		exit.ExitReason = "SIGTERM"
	case status.Code > 128 && status.Code <= 128+64:
		exit.ExitReason = fmt.Sprintf("signal %d", status.Code-128)
	default:
		exit.ExitReason = "non-zero exit"
	}
	return exit
}

// broadcast gives output to every client, or keeps it for the next one.
func (ss *session) broadcast(p []byte) {
	ss.mu.Lock()
	clients := ss.clients
	if len(clients) == 0 {
		ss.missed = append(ss.missed, p...)
		if over := len(ss.missed) - missedLimit; over > 0 {
			ss.missed = append(ss.missed[:0], ss.missed[over:]...)
		}
	}
	ss.mu.Unlock()
	if len(clients) == 0 {
		return
	}
	p = slices.Clone(p)
	for _, c := range clients {
		if !c.push(p) {
			ss.detach(c)
		}
	}
}

// attach adds a client, which begins with what was missed. It returns false
// if the shell has ended.
func (ss *session) attach(c *client) bool {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if ss.exit != nil {
		return false
	}
	if len(ss.missed) > 0 {
		c.push(ss.missed)
		ss.missed = nil
	}
	// A new slice: broadcast works on the old one without the lock.
	ss.clients = append(slices.Clone(ss.clients), c)
	return true
}

func (ss *session) detach(c *client) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if i := slices.Index(ss.clients, c); i >= 0 {
		ss.clients = slices.Delete(slices.Clone(ss.clients), i, i+1)
	}
}

// push queues output. While the queue is full it waits for the client to read
// something; if that takes too long the client is given up.
func (c *client) push(p []byte) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.queued+len(p) > clientQueue && c.queued > 0 {
		before := c.queued
		expired := false
		timer := time.AfterFunc(stallLimit, func() {
			c.mu.Lock()
			expired = true
			c.mu.Unlock()
			c.changed.Broadcast()
		})
		defer timer.Stop()
		for c.queued+len(p) > clientQueue && c.queued > 0 && !c.gone && !(expired && c.queued == before) {
			if c.queued < before {
				before, expired = c.queued, false
				timer.Reset(stallLimit)
			}
			c.changed.Wait()
		}
		if c.queued == before && expired {
			c.slow = true
			c.changed.Broadcast()
			// If it begins to read again it is told why; if not, this ends the
			// write that is stuck.
			time.AfterFunc(stallLimit, c.sock.Drop)
			return false
		}
	}
	if c.gone {
		return false
	}
	c.queue = append(c.queue, p)
	c.queued += len(p)
	c.changed.Broadcast()
	return true
}

// finish says that nothing follows.
func (c *client) finish() {
	c.mu.Lock()
	c.last = true
	c.mu.Unlock()
	c.changed.Broadcast()
}

// leave says that the client is gone.
func (c *client) leave() {
	c.mu.Lock()
	c.gone = true
	c.mu.Unlock()
	c.changed.Broadcast()
}

// write sends the queue to the client until its end.
func (c *client) write(ss *session) {
	for {
		c.mu.Lock()
		for len(c.queue) == 0 && !c.slow && !c.last && !c.gone {
			c.changed.Wait()
		}
		switch {
		case c.gone:
			// The socket stays open: what the client typed may be unread.
			c.mu.Unlock()
			return
		case c.slow:
			c.mu.Unlock()
			c.sock.Close(1008, "slow consumer")
			return
		case len(c.queue) == 0:
			c.mu.Unlock()
			c.farewell(ss)
			return
		}
		p := c.queue[0]
		c.queue[0] = nil
		c.queue = c.queue[1:]
		c.mu.Unlock()
		err := c.sock.WriteBinary(p)
		c.mu.Lock()
		c.queued -= len(p)
		if err != nil {
			c.gone = true
		}
		c.mu.Unlock()
		c.changed.Broadcast()
	}
}

// farewell tells the exit status.
func (c *client) farewell(ss *session) {
	ss.mu.Lock()
	exit := *ss.exit
	ss.mu.Unlock()
	if c.exitControl {
		b, _ := json.Marshal(wire.PTYControl{Type: "control", Status: "exited", ExitCode: &exit.ExitCode, ExitReason: exit.ExitReason})
		_ = c.sock.WriteText(b)
	}
	code := 1000
	if exit.ExitCode != 0 {
		code = 1011
	}
	reason, _ := json.Marshal(exit)
	c.sock.Close(code, string(reason))
}

// kill ends a session and waits until its clients have been told.
func (s *Service) kill(ss *session) {
	ss.mu.Lock()
	shell := ss.shell
	if shell == nil && ss.exit == nil {
		// A lazy one that nobody connected to.
		exit := describeExit(process.Status{Code: 137})
		ss.exit = &exit
		close(ss.ended)
	}
	ss.mu.Unlock()
	s.remove(ss)
	if shell != nil {
		shell.KillTree()
	}
	<-ss.ended
}

func (ss *session) info() wire.PTYInfo {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	envs := ss.envs
	if envs == nil {
		envs = map[string]string{}
	}
	return wire.PTYInfo{
		ID: ss.id, Cwd: ss.cwd, Envs: envs, Cols: ss.cols, Rows: ss.rows, LazyStart: ss.lazy,
		CreatedAt: ss.createdAt.Format(time.RFC3339Nano), Active: ss.shell != nil && ss.exit == nil,
	}
}

// create serves POST /process/pty.
func (s *Service) create(w http.ResponseWriter, r *http.Request) {
	var req wire.PTYCreateRequest
	if !decode(w, r, &req) {
		return
	}
	ss, err := s.add(&req)
	if err != nil {
		fail(w, r, statusOf(err), "%v", err)
		return
	}
	wire.WriteJSON(w, http.StatusCreated, wire.PTYCreateResponse{SessionID: ss.id})
}

// list serves GET /process/pty.
func (s *Service) list(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	order := slices.Clone(s.order)
	s.mu.Unlock()
	list := wire.PTYList{Sessions: make([]wire.PTYInfo, 0, len(order))}
	for _, ss := range order {
		list.Sessions = append(list.Sessions, ss.info())
	}
	wire.WriteJSON(w, http.StatusOK, list)
}

// get serves GET /process/pty/{sessionId}.
func (s *Service) get(w http.ResponseWriter, r *http.Request) {
	ss, err := s.find(r.PathValue("sessionId"))
	if err != nil {
		fail(w, r, statusOf(err), "%v", err)
		return
	}
	wire.WriteJSON(w, http.StatusOK, ss.info())
}

// delete serves DELETE /process/pty/{sessionId}.
func (s *Service) delete(w http.ResponseWriter, r *http.Request) {
	ss, err := s.find(r.PathValue("sessionId"))
	if err != nil {
		fail(w, r, statusOf(err), "%v", err)
		return
	}
	s.kill(ss)
	wire.WriteJSON(w, http.StatusOK, map[string]string{"message": "PTY session deleted"})
}

// resize serves POST /process/pty/{sessionId}/resize.
func (s *Service) resize(w http.ResponseWriter, r *http.Request) {
	var req wire.PTYResizeRequest
	if !decode(w, r, &req) {
		return
	}
	ss, err := s.find(r.PathValue("sessionId"))
	if err != nil {
		fail(w, r, statusOf(err), "%v", err)
		return
	}
	if req.Cols < 1 || req.Cols > maxSize || req.Rows < 1 || req.Rows > maxSize {
		fail(w, r, http.StatusBadRequest, "cols %d, rows %d: both must be from 1 to %d", req.Cols, req.Rows, maxSize)
		return
	}
	ss.mu.Lock()
	if ss.shell == nil || ss.exit != nil {
		ss.mu.Unlock()
		fail(w, r, http.StatusGone, "PTY session %q is not active", ss.id)
		return
	}
	err = process.ResizeTerminal(ss.master, req.Cols, req.Rows)
	if err == nil {
		ss.cols, ss.rows = req.Cols, req.Rows
	}
	ss.mu.Unlock()
	if err != nil {
		fail(w, r, http.StatusInternalServerError, "resize PTY session %q: %v", ss.id, err)
		return
	}
	wire.WriteJSON(w, http.StatusOK, ss.info())
}

// connect serves GET /process/pty/{sessionId}/connect.
func (s *Service) connect(w http.ResponseWriter, r *http.Request) {
	s.socket(w, r, func() (*session, error) {
		ss, err := s.find(r.PathValue("sessionId"))
		if err != nil {
			return nil, err
		}
		ss.mu.Lock()
		defer ss.mu.Unlock()
		if ss.shell == nil && ss.exit == nil {
			if err := s.start(ss); err != nil {
				s.abort(ss, err)
				return nil, err
			}
		}
		return ss, nil
	})
}

// createConnect serves GET /process/pty/create-connect of the newer
// generation: create and connect in one.
func (s *Service) createConnect(w http.ResponseWriter, r *http.Request) {
	s.socket(w, r, func() (*session, error) {
		q := r.URL.Query()
		req := wire.PTYCreateRequest{ID: q.Get("id"), Cwd: q.Get("cwd")}
		for name, to := range map[string]*int{"cols": &req.Cols, "rows": &req.Rows} {
			v := q.Get(name)
			if v == "" {
				continue
			}
			n, err := parseSize(v)
			if err != nil {
				return nil, refuse(http.StatusBadRequest, "%s %q: must be from 1 to %d", name, v, maxSize)
			}
			*to = n
		}
		var err error
		if req.Envs, err = wire.OfferedPTYEnvs(r.Header); err != nil {
			return nil, refuse(http.StatusBadRequest, "%v", err)
		}
		return s.add(&req)
	})
}

// parseSize reads a number from 1 to maxSize.
func parseSize(s string) (int, error) {
	n := 0
	for _, c := range s {
		if c < '0' || c > '9' || n > maxSize {
			return 0, errors.New("not a size")
		}
		n = 10*n + int(c-'0')
	}
	if n < 1 || n > maxSize {
		return 0, errors.New("not a size")
	}
	return n, nil
}

// socket upgrades the connection and attaches it to what open returns. An
// error is told in a frame, because a WebSocket's client cannot see the body
// of a refused handshake.
func (s *Service) socket(w http.ResponseWriter, r *http.Request, open func() (*session, error)) {
	if !process.IsUpgrade(r) {
		w.Header().Set("Upgrade", "websocket")
		fail(w, r, http.StatusUpgradeRequired, "this operation is a WebSocket: ask for the upgrade")
		return
	}
	sock, err := process.AcceptSocket(w, r, inputLimit)
	if err != nil {
		s.logger.Debug("PTY socket", "error", err)
		return
	}
	defer sock.Drop()
	ss, err := open()
	if err != nil {
		s.refuseSocket(sock, err)
		return
	}
	hello, _ := json.Marshal(wire.PTYControl{Type: "control", Status: "connected"})
	if sock.WriteText(hello) != nil {
		return
	}
	c := &client{sock: sock, exitControl: wire.OffersExitControl(r.Header)}
	c.changed.L = &c.mu
	if !ss.attach(c) {
		sock.Discard()
		c.farewell(ss)
		return
	}
	typed := make(chan struct{})
	go func() {
		defer close(typed)
		ss.input(sock)
		c.leave()
	}()
	c.write(ss)
	ss.detach(c)
	// What the client typed before it went away is on its way still.
	select {
	case <-typed:
	case <-time.After(inputGrace):
	}
}

func (s *Service) refuseSocket(sock *process.Socket, err error) {
	sock.Discard()
	message := fmt.Sprintf("Failed to connect to PTY session: %v", err)
	b, _ := json.Marshal(wire.PTYControl{Type: "control", Status: "error", Error: message})
	_ = sock.WriteText(b)
	code := 1011
	if statusOf(err) < http.StatusInternalServerError {
		code = 1008
	}
	sock.Close(code, message)
}

// input types what the client sends, until it goes away. Several clients may
// type at once.
func (ss *session) input(sock *process.Socket) {
	frames := make(chan []byte, 16)
	go func() {
		for p := range frames {
			if _, err := ss.master.Write(p); err != nil {
				// The terminal is closed: the rest of the input is for nobody.
				for range frames {
				}
				return
			}
		}
	}()
	defer close(frames)
	for {
		_, p, err := sock.Read()
		if err != nil {
			return
		}
		if len(p) == 0 {
			continue
		}
		select {
		case frames <- p:
			continue
		default:
		}
		// The program does not read. The client has to wait, but that it goes
		// away must be noticed.
		wait, stop := sock.Hangup()
		gone := make(chan struct{})
		go func() {
			if wait() {
				close(gone)
			}
		}()
		select {
		case frames <- p:
			stop()
		case <-gone:
			stop()
			return
		}
	}
}
