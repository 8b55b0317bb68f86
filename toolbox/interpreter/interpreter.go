// Package interpreter serves the code interpreter: contexts in which code of
// Python, JavaScript or TypeScript is run one piece after the other, with its
// variables kept, its output streamed, and its values and charts sent apart.
//
// Each context is a process of the sandbox's user that runs a small program of
// this package ([driver.py], [driver.js]). It talks to the agent over a
// descriptor of its own and is at the mercy of the code in it, so whatever it
// says is taken to be hostile: what breaks the protocol costs the context its
// state and nothing else. The package starts interpreters through a
// [process.Spawner] and knows the wire types. It must not know of
// authentication nor of the other parts of the agent.
package interpreter

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/daytona-go/daytona/toolbox/process"
	"github.com/daytona-go/daytona/toolbox/wire"
)

const (
	python     = "python"
	javaScript = "javascript"
	typeScript = "typescript"
)

const (
	// requestLimit bounds a run's request, with its code, in bytes.
	requestLimit = 16 << 20
	// requestTime bounds the wait for it.
	requestTime = 30 * time.Second
	bodyLimit   = 1 << 20
	// contextLimit bounds how many contexts there are: each is a process of
	// some 10 MiB, 40 for node.
	contextLimit = 100
	// stallLimit is how long the output of a run that was ended waits for a
	// client that does not read.
	stallLimit = 5 * time.Second
)

// Options configure a [Service].
type Options struct {
	// Spawner starts the interpreters. Required.
	Spawner *process.Spawner
	// Logger defaults to none.
	Logger *slog.Logger
	// NoSpare says that no interpreter is kept ready for the next context.
	NoSpare bool
}

// Service serves the interpreter routes of the toolbox API.
type Service struct {
	spawner *process.Spawner
	logger  *slog.Logger
	noSpare bool

	// background are the starts of spare interpreters.
	background sync.WaitGroup

	mu         sync.Mutex
	closed     bool
	scopes     map[string]*scope
	order      []*scope
	spare      *worker
	spareComes bool
}

// New returns a Service. It starts nothing before there is something to run.
func New(opts Options) *Service {
	s := &Service{spawner: opts.Spawner, logger: opts.Logger, noSpare: opts.NoSpare, scopes: make(map[string]*scope)}
	if s.logger == nil {
		s.logger = slog.New(slog.DiscardHandler)
	}
	return s
}

// Register adds the routes to mux.
func (s *Service) Register(mux *http.ServeMux) {
	mux.HandleFunc("POST "+wire.InterpreterContextsPath, s.create)
	mux.HandleFunc("GET "+wire.InterpreterContextsPath, s.list)
	mux.HandleFunc("DELETE "+wire.InterpreterContextsPath+"/{id}", s.delete)
	mux.HandleFunc("POST "+wire.InterpreterContextsPath+"/{id}/interrupt", s.interrupt)
	mux.HandleFunc("GET "+wire.InterpreterPath, s.execute)
}

// Close ends all interpreters with what they started.
func (s *Service) Close() {
	s.mu.Lock()
	s.closed = true
	scopes, spare := s.order, s.spare
	s.order, s.spare = nil, nil
	s.mu.Unlock()
	var wg sync.WaitGroup
	for _, c := range scopes {
		wg.Go(func() {
			c.mu.Lock()
			if c.worker != nil {
				c.worker.kill("the agent ends")
			}
			c.mu.Unlock()
			c.close()
		})
	}
	if spare != nil {
		spare.kill("the agent ends")
		wg.Go(func() { <-spare.exited })
	}
	s.background.Wait()
	wg.Wait()
}

// apiError is an error with what the wire calls it.
type apiError struct {
	status  int
	code    string
	message string
}

func (e *apiError) Error() string { return e.message }

func refuse(status int, code, format string, args ...any) *apiError {
	return &apiError{status, code, fmt.Sprintf(format, args...)}
}

// classify finds the status and the code of an error.
func classify(err error) *apiError {
	if e, ok := errors.AsType[*apiError](err); ok {
		return e
	}
	if e, ok := errors.AsType[*process.DirError](err); ok {
		return refuse(http.StatusBadRequest, "", "%v", e)
	}
	if e, ok := errors.AsType[*process.StartError](err); ok {
		return refuse(http.StatusUnprocessableEntity, wire.CodeCommandStart, "%v", e)
	}
	switch {
	case errors.Is(err, errBusy):
		return refuse(http.StatusTooManyRequests, "", "%v: at most %d", err, waitingLimit)
	case errors.Is(err, errDeleted):
		return refuse(http.StatusNotFound, "", "%v", err)
	}
	return refuse(http.StatusInternalServerError, "", "%v", err)
}

func fail(w http.ResponseWriter, r *http.Request, err error) {
	e := classify(err)
	body := wire.NewError(r, e.status, e.code, e.message)
	body.Error = body.Message // the older generation's
	wire.WriteJSON(w, e.status, body)
}

func (s *Service) create(w http.ResponseWriter, r *http.Request) {
	var req wire.CreateInterpreterContextRequest
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, bodyLimit))
	if err == nil {
		err = json.Unmarshal(body, &req)
	}
	if err != nil {
		fail(w, r, refuse(http.StatusBadRequest, wire.CodeInvalidBody, "invalid body request: %v", err))
		return
	}
	language, err := languageOf(req.Language)
	if err == nil && strings.ContainsRune(req.Cwd, 0) {
		err = refuse(http.StatusBadRequest, "", "cwd must not contain NUL bytes")
	}
	if err != nil {
		fail(w, r, err)
		return
	}
	dir, err := s.spawner.CheckDir(req.Cwd)
	if err != nil {
		fail(w, r, err)
		return
	}
	c := s.newScope(newID(), dir, language, false)
	s.mu.Lock()
	err = s.add(c)
	s.mu.Unlock()
	if err != nil {
		fail(w, r, err)
		return
	}
	// Started now, so that what is wrong with it is known now, and its first
	// run is quick.
	err = c.begin(r.Context())
	if err == nil {
		_, err = c.interpreter(r.Context())
		c.end()
	}
	if err != nil {
		s.remove(c)
		c.close()
		fail(w, r, err)
		return
	}
	wire.WriteJSON(w, http.StatusOK, c.describe())
}

func languageOf(name string) (string, error) {
	switch l := strings.ToLower(name); l {
	case "":
		return python, nil
	case python, javaScript, typeScript:
		return l, nil
	}
	return "", refuse(http.StatusBadRequest, "", "language %.100q: not one of python, javascript, typescript", name)
}

func newID() string { return strings.ToLower(rand.Text()) }

// add makes a context known. The caller holds s.mu.
func (s *Service) add(c *scope) error {
	switch {
	case s.closed:
		return refuse(http.StatusServiceUnavailable, "", "the agent is shutting down")
	case len(s.order) >= contextLimit:
		return refuse(http.StatusTooManyRequests, "", "there are %d interpreter contexts already: delete one", len(s.order))
	}
	s.scopes[c.id] = c
	s.order = append(s.order, c)
	return nil
}

func (s *Service) remove(c *scope) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.scopes[c.id] == c {
		delete(s.scopes, c.id)
		s.order = slices.DeleteFunc(s.order, func(o *scope) bool { return o == c })
	}
}

// find returns a context. The implicit ones come into being by that.
func (s *Service) find(id, language string) (*scope, error) {
	language, err := languageOf(language)
	if err != nil {
		return nil, err
	}
	implicit := map[string]string{wire.DefaultInterpreterContext: python}
	for _, l := range []string{javaScript, typeScript} {
		implicit[wire.DefaultInterpreterContext+"-"+l] = l
	}
	if id == "" {
		id = wire.DefaultInterpreterContext
		if language != python {
			id += "-" + language
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.scopes[id]; c != nil {
		return c, nil
	}
	language, ok := implicit[id]
	if !ok {
		return nil, refuse(http.StatusNotFound, "", "context %.100q not found", id)
	}
	c := s.newScope(id, s.spawner.WorkDir(), language, true)
	if err := s.add(c); err != nil {
		return nil, err
	}
	return c, nil
}

func (s *Service) list(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	scopes := slices.Clone(s.order)
	s.mu.Unlock()
	answer := wire.InterpreterContexts{Contexts: []wire.InterpreterContext{}}
	for _, c := range scopes {
		if !c.implicit {
			answer.Contexts = append(answer.Contexts, c.describe())
		}
	}
	wire.WriteJSON(w, http.StatusOK, answer)
}

func (s *Service) delete(w http.ResponseWriter, r *http.Request) {
	if id := r.PathValue("id"); id == wire.DefaultInterpreterContext || strings.HasPrefix(id, wire.DefaultInterpreterContext+"-") {
		fail(w, r, refuse(http.StatusBadRequest, "", "the default context cannot be deleted"))
		return
	}
	s.mu.Lock()
	c := s.scopes[r.PathValue("id")]
	s.mu.Unlock()
	if c == nil {
		fail(w, r, refuse(http.StatusNotFound, "", "context %.100q not found", r.PathValue("id")))
		return
	}
	s.remove(c)
	c.close()
	wire.WriteJSON(w, http.StatusOK, map[string]string{"message": "context deleted"})
}

func (s *Service) interrupt(w http.ResponseWriter, r *http.Request) {
	c, err := s.find(r.PathValue("id"), "")
	if err != nil {
		fail(w, r, err)
		return
	}
	message := "nothing runs in this context"
	if c.interrupt() {
		message = "interrupted"
	}
	wire.WriteJSON(w, http.StatusOK, map[string]string{"message": message})
}

// execute serves the WebSocket that runs code; see [wire.InterpreterPath].
func (s *Service) execute(w http.ResponseWriter, r *http.Request) {
	if !process.IsUpgrade(r) {
		w.Header().Set("Upgrade", "websocket")
		wire.WriteError(w, r, http.StatusUpgradeRequired, "", "this operation is a WebSocket: ask for the upgrade")
		return
	}
	sock, err := process.AcceptSocket(w, r, requestLimit)
	if err != nil {
		s.logger.Debug("interpreter socket", "error", err)
		return
	}
	defer sock.Drop()
	timer := time.AfterFunc(requestTime, func() { sock.Close(wire.CloseInterpreterRefused, "no request came") })
	_, data, err := sock.Read()
	if !timer.Stop() || err != nil {
		return
	}
	req, limit, err := wire.DecodeInterpreterRequest(data)
	if errors.Is(err, wire.ErrNotJSON) {
		end(sock, wire.CloseInterpreterMalformed, refuse(http.StatusBadRequest, "", "%v", err))
		return
	}
	if err == nil {
		err = process.CheckEnv(req.Envs)
	}
	if err != nil {
		end(sock, wire.CloseInterpreterRefused, refuse(http.StatusBadRequest, "", "%v", err))
		return
	}
	c, err := s.find(req.ContextID, req.Language)
	if err != nil {
		end(sock, wire.CloseInterpreterRefused, classify(err))
		return
	}

	ctx, stop := context.WithCancelCause(context.Background())
	defer stop(nil)
	gone := sock.Discard()
	go func() {
		<-gone
		stop(errGone)
	}()
	out := &client{sock: sock, lost: func() { stop(errGone) }}
	err = c.run(ctx, &req, limit, out)
	out.finish(err, limit)
}
