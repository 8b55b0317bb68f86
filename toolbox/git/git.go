// Package git serves the git routes of the toolbox API. Each request is carried
// out by a helper, a process of the sandbox's user that ends with it: what git
// takes in memory is given back, what a repository breaks is broken there, and
// a client that goes away ends the work. Package repository is what runs in the
// helper; this package does not link it, and must not know what a repository
// looks like.
package git

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"

	"github.com/daytona-go/daytona/toolbox/process"
	"github.com/daytona-go/daytona/toolbox/wire"
)

const (
	// maxBody bounds a request's JSON, in bytes.
	maxBody = 32 << 20
	// maxHead bounds the first line of a helper's answer, in bytes.
	maxHead = 64 << 10
	// maxLog bounds what is kept of what a helper says to nobody.
	maxLog = 4 << 10
	// maxHelpers is how many helpers run at a time; more requests wait.
	maxHelpers = 16
)

// Helper is the name that the agent's program dispatches on.
const Helper = "git"

// Options configure a [Service].
type Options struct {
	// Spawner starts the helpers. Required.
	Spawner *process.Spawner
	// Logger defaults to none.
	Logger *slog.Logger
}

// Service serves the git routes.
type Service struct {
	spawner *process.Spawner
	logger  *slog.Logger
	slots   chan struct{}

	mu      sync.Mutex
	closed  bool
	running map[*process.Process]struct{}
}

// New returns a Service.
func New(opts Options) *Service {
	s := &Service{spawner: opts.Spawner, logger: opts.Logger, slots: make(chan struct{}, maxHelpers), running: map[*process.Process]struct{}{}}
	if s.logger == nil {
		s.logger = slog.New(slog.DiscardHandler)
	}
	return s
}

// Close kills the helpers that still run.
func (s *Service) Close() {
	s.mu.Lock()
	s.closed = true
	var running []*process.Process
	for p := range s.running {
		running = append(running, p)
	}
	s.mu.Unlock()
	for _, p := range running {
		p.KillTree()
	}
}

// Register adds the routes to mux.
func (s *Service) Register(mux *http.ServeMux) {
	for route, op := range map[string]string{
		"POST /git/clone": "clone", "POST /git/init": "init", "POST /git/add": "add", "POST /git/commit": "commit",
		"POST /git/branches": "create-branch", "DELETE /git/branches": "delete-branch", "POST /git/checkout": "checkout",
		"POST /git/push": "push", "POST /git/pull": "pull", "POST /git/reset": "reset", "POST /git/restore": "restore",
		"POST /git/remotes": "add-remote", "POST /git/config": "set-config", "POST /git/config/user": "configure-user",
		"POST /git/credentials": "authenticate",
	} {
		mux.HandleFunc(route, func(w http.ResponseWriter, r *http.Request) { s.post(w, r, op) })
	}
	for route, op := range map[string]string{
		"GET /git/status": "status", "GET /git/history": "history", "GET /git/branches": "branches", "GET /git/remotes": "remotes",
		"GET /git/config": "get-config",
	} {
		mux.HandleFunc(route, func(w http.ResponseWriter, r *http.Request) { s.get(w, r, op) })
	}
}

// request is what a helper reads.
type request struct {
	Op      string          `json:"op"`
	Dir     string          `json:"dir"`
	WorkDir string          `json:"workDir"`
	User    user            `json:"user"`
	Limit   int             `json:"limit,omitempty"`
	Body    json.RawMessage `json:"body,omitempty"`
}

type user struct{ Name, Home string }

// answer is the first line of what a helper writes.
type answer struct {
	Status        int
	Code, Message string
	Body          bool
}

// withoutPath are the operations that need no repository.
var withoutPath = map[string]bool{"get-config": true, "set-config": true, "configure-user": true, "authenticate": true}

func (s *Service) post(w http.ResponseWriter, r *http.Request, op string) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			wire.WriteError(w, r, http.StatusRequestEntityTooLarge, wire.CodeInvalidBody, fmt.Sprintf("invalid body request: more than %d bytes", maxBody))
			return
		}
		wire.WriteError(w, r, http.StatusBadRequest, wire.CodeInvalidBody, "invalid body request: "+err.Error())
		return
	}
	var common struct {
		Path string `json:"path"`
	}
	if err := json.Unmarshal(body, &common); err != nil {
		wire.WriteError(w, r, http.StatusBadRequest, wire.CodeInvalidBody, "invalid body request: "+err.Error())
		return
	}
	s.run(w, r, common.Path, request{Op: op, Body: body})
}

func (s *Service) get(w http.ResponseWriter, r *http.Request, op string) {
	// Read to its end, for net/http to notice that the client goes away.
	_, _ = io.Copy(io.Discard, http.MaxBytesReader(w, r.Body, maxBody))
	query := r.URL.Query()
	q := request{Op: op}
	if text := query.Get(wire.GitHistoryLimit); text != "" && op == "history" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 0 {
			wire.WriteError(w, r, http.StatusBadRequest, "", "bad request: limit is not a number from 0")
			return
		}
		q.Limit = n
	}
	if op == "get-config" {
		if query.Get("key") == "" {
			wire.WriteError(w, r, http.StatusBadRequest, "", "bad request: key is required")
			return
		}
		q.Body, _ = json.Marshal(wire.GitConfigRequest{Key: query.Get("key"), Scope: query.Get("scope")})
	}
	s.run(w, r, query.Get("path"), q)
}

// run starts a helper for a request and passes its answer on.
func (s *Service) run(w http.ResponseWriter, r *http.Request, dir string, q request) {
	if dir == "" && !withoutPath[q.Op] {
		wire.WriteError(w, r, http.StatusBadRequest, "", "bad request: path is required")
		return
	}
	if strings.IndexByte(dir, 0) >= 0 {
		wire.WriteError(w, r, http.StatusBadRequest, "", "bad request: path has a NUL byte")
		return
	}
	q.WorkDir = s.spawner.WorkDir()
	if q.Dir = dir; dir != "" {
		if !path.IsAbs(dir) {
			dir = path.Join(q.WorkDir, dir)
		}
		q.Dir = path.Clean(dir)
	}
	account := s.spawner.Account()
	q.User = user{Name: account.Name, Home: account.Home}
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-r.Context().Done():
		return
	}
	h, err := s.start(r.Context(), q)
	if err != nil {
		s.logger.Error("the git helper cannot be started", "error", err)
		wire.WriteError(w, r, http.StatusInternalServerError, "", "internal server error: the git helper cannot be started: "+err.Error())
		return
	}
	defer h.end()
	head, err := h.head()
	if err != nil {
		status := h.end()
		if r.Context().Err() != nil {
			return
		}
		s.logger.Error("the git helper ended without an answer", "operation", q.Op, "code", status.Code, "signal", status.Signal, "stderr", h.log())
		what := fmt.Sprintf("exit code %d", status.Code)
		if status.Signal != "" {
			what = status.Signal + ", perhaps for want of memory"
		}
		wire.WriteError(w, r, http.StatusInternalServerError, "", "internal server error: the git helper ended without an answer: "+what)
		return
	}
	if head.Status >= 400 {
		wire.WriteError(w, r, head.Status, head.Code, head.Message)
		return
	}
	if !head.Body {
		w.WriteHeader(head.Status)
		return
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(head.Status)
	_, err = io.Copy(w, h.out)
	if status := h.end(); err != nil || status.Code != 0 {
		s.logger.Warn("an answer of git is cut off", "operation", q.Op, "error", err, "code", status.Code, "stderr", h.log())
		panic(http.ErrAbortHandler)
	}
}

// helper is a running one.
type helper struct {
	service *Service
	process *process.Process
	out     *bufio.Reader
	pipes   []*os.File
	logged  chan []byte
	tail    []byte
	stop    func() bool
	once    sync.Once
	status  process.Status
}

func (s *Service) start(ctx context.Context, q request) (_ *helper, err error) {
	input, err := json.Marshal(q)
	if err != nil {
		return nil, err
	}
	var pipes [6]*os.File
	defer func() {
		for i, f := range pipes {
			// The helper's ends in any case, the agent's if it has not started.
			if f != nil && (err != nil || i == 0 || i == 3 || i == 5) {
				f.Close()
			}
		}
	}()
	for i := 0; i < 6; i += 2 {
		if pipes[i], pipes[i+1], err = os.Pipe(); err != nil {
			return nil, err
		}
	}
	spec := s.spawner.Helper(Helper)
	spec.Dir = "/" // not one that somebody may have removed
	spec.Stdin, spec.Stdout, spec.Stderr = int(pipes[0].Fd()), int(pipes[3].Fd()), int(pipes[5].Fd())
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil, errors.New("the agent is ending")
	}
	p, err := s.spawner.Start(spec)
	if err == nil {
		s.running[p] = struct{}{}
	}
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	stdin, stdout, stderr := pipes[1], pipes[2], pipes[4]
	h := &helper{service: s, process: p, out: bufio.NewReaderSize(stdout, maxHead), pipes: []*os.File{stdin, stdout, stderr}, logged: make(chan []byte, 1)}
	go func() {
		_, _ = stdin.Write(input)
		stdin.Close()
	}()
	go func() {
		var b bytes.Buffer
		_, _ = io.Copy(&b, io.LimitReader(stderr, maxLog))
		_, _ = io.Copy(io.Discard, stderr)
		h.logged <- b.Bytes()
	}()
	h.stop = context.AfterFunc(ctx, p.KillTree)
	return h, nil
}

// head reads the first line of the answer.
func (h *helper) head() (answer, error) {
	var a answer
	line, err := h.out.ReadSlice('\n')
	if err != nil {
		return a, err
	}
	if err := json.Unmarshal(line, &a); err != nil {
		return a, err
	}
	if a.Status < 200 || a.Status > 599 {
		return a, fmt.Errorf("status %d", a.Status)
	}
	return a, nil
}

// end waits for the helper, which has nothing more to say or to be asked.
func (h *helper) end() process.Status {
	h.once.Do(func() {
		h.pipes[1].Close()
		h.status = h.process.Wait()
		h.stop()
		h.tail = <-h.logged
		for _, f := range h.pipes {
			f.Close()
		}
		h.service.mu.Lock()
		delete(h.service.running, h.process)
		h.service.mu.Unlock()
	})
	return h.status
}

func (h *helper) log() string { return strings.ToValidUTF8(string(h.tail), "�") }
