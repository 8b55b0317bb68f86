package interpreter

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/daytona-go/daytona/toolbox/wire"
)

const (
	// waitingLimit bounds how many runs wait for one context.
	waitingLimit = 100
	// spareTime is how long an interpreter is kept for the next context.
	spareTime = 10 * time.Minute
)

// Causes that end a run.
var (
	errTimeout     = errors.New("the run has exceeded its time limit")
	errInterrupted = errors.New("the run was interrupted")
	errGone        = errors.New("the client has gone away")
	errDeleted     = errors.New("the context was deleted")
	errBusy        = errors.New("too many runs wait for this context")
)

// scope is a context of the API: a name for the state of an interpreter, which
// it outlives.
type scope struct {
	service   *Service
	id        string
	cwd       string
	language  string
	createdAt time.Time
	implicit  bool

	// turn is held by the run that is under way; Go serves waiters in order.
	turn    chan struct{}
	waiting atomic.Int32
	deleted chan struct{}

	mu sync.Mutex
	// stop ends the run that is under way.
	stop   context.CancelCauseFunc
	worker *worker
	closed bool
}

func (s *Service) newScope(id, cwd, language string, implicit bool) *scope {
	return &scope{
		service: s, id: id, cwd: cwd, language: language, implicit: implicit, createdAt: time.Now().UTC(),
		turn: make(chan struct{}, 1), deleted: make(chan struct{}),
	}
}

func (c *scope) describe() wire.InterpreterContext {
	c.mu.Lock()
	defer c.mu.Unlock()
	return wire.InterpreterContext{
		ID: c.id, Cwd: c.cwd, Language: c.language, CreatedAt: c.createdAt.Format(time.RFC3339Nano),
		Active: c.worker != nil && !c.worker.dead(),
	}
}

// begin waits for this run's turn.
func (c *scope) begin(ctx context.Context) error {
	if c.waiting.Add(1) > waitingLimit {
		c.waiting.Add(-1)
		return errBusy
	}
	defer c.waiting.Add(-1)
	select {
	case <-c.deleted:
		return errDeleted
	default:
	}
	select {
	case c.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-c.deleted:
		return errDeleted
	}
}

func (c *scope) end() { <-c.turn }

// run runs code when its turn has come. The error is nil where the code has
// run, be it to an exception, or the cause that ended it.
func (c *scope) run(ctx context.Context, req *wire.InterpreterRequest, limit time.Duration, to sink) error {
	if err := c.begin(ctx); err != nil {
		return err
	}
	defer c.end()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	if limit > 0 {
		timer := time.AfterFunc(limit, func() { stop(errTimeout) })
		defer timer.Stop()
	}
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return errDeleted
	}
	c.stop = stop
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		c.stop = nil
		c.mu.Unlock()
	}()
	w, err := c.interpreter(ctx)
	if err != nil {
		return err
	}
	w.run(ctx, c.language, req.Code, req.Envs, to)
	if c.language == python {
		c.service.keepSpare()
	}
	return context.Cause(ctx)
}

// interpreter returns the one that runs, or a new one. The caller has the turn.
func (c *scope) interpreter(ctx context.Context) (*worker, error) {
	c.mu.Lock()
	w := c.worker
	c.mu.Unlock()
	if w != nil && !w.dead() {
		return w, nil
	}
	if w != nil {
		<-w.exited
	}
	w, err := c.service.interpreter(ctx, c.language, c.cwd)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		w.kill("its context was deleted")
		return nil, errDeleted
	}
	c.worker = w
	return w, nil
}

// interrupt interrupts the run under way and says whether there is one.
func (c *scope) interrupt() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stop == nil {
		return false
	}
	c.stop(errInterrupted)
	return true
}

// close ends the interpreter, at once if it runs something.
func (c *scope) close() {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return
	}
	c.closed = true
	close(c.deleted)
	w, busy := c.worker, c.stop != nil
	if busy {
		c.stop(errDeleted)
	}
	c.mu.Unlock()
	if w == nil {
		return
	}
	if busy {
		w.kill(errDeleted.Error())
	}
	w.close()
}

// interpreter returns a ready one that runs in a directory: the spare one or a
// new one.
func (s *Service) interpreter(ctx context.Context, language, dir string) (*worker, error) {
	if language == python {
		if w := s.takeSpare(); w != nil {
			if _, err := s.spawner.CheckDir(dir); err != nil {
				w.kill("it is of no use")
				return nil, err
			}
			if err := w.setup(ctx, dir); err != nil {
				return nil, err
			}
			return w, nil
		}
	}
	w, err := s.start(language, dir)
	if err != nil {
		return nil, err
	}
	if err := w.ready(ctx); err != nil {
		return nil, err
	}
	return w, nil
}

// keepSpare has an interpreter started for the context after this one, which
// then begins as quickly as one that has run before.
func (s *Service) keepSpare() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.noSpare || s.spare != nil || s.spareComes {
		return
	}
	s.spareComes = true
	s.background.Go(func() {
		w, err := s.start(python, "")
		if err == nil {
			err = w.ready(context.Background())
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.spareComes = false
		if err != nil {
			s.logger.Debug("no spare interpreter", "error", err)
			return
		}
		if s.closed {
			w.kill("the agent ends")
			return
		}
		s.spare = w
		time.AfterFunc(spareTime, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.spare == w {
				s.spare = nil
				w.kill("nobody needs it")
			}
		})
	})
}

// takeSpare returns the spare interpreter if it is as good as a new one.
func (s *Service) takeSpare() *worker {
	s.mu.Lock()
	w := s.spare
	s.spare = nil
	s.mu.Unlock()
	if w == nil || w.dead() {
		return nil
	}
	now := s.spawner.Environ(nil, "")
	if len(now) != len(w.environ) || strings.Join(sorted(now), "\x00") != strings.Join(sorted(w.environ), "\x00") {
		w.kill("the sandbox's environment has changed")
		return nil
	}
	return w
}

func sorted(list []string) []string {
	list = slices.Clone(list)
	slices.Sort(list)
	return list
}
