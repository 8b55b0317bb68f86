package computeruse

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona/toolbox/computeruse/display"
	"github.com/daytona-go/daytona/toolbox/process"
	"github.com/daytona-go/daytona/toolbox/wire"
)

const (
	// atOnce is how many helpers there may be: more requests wait.
	atOnce = 4
	// helperIdle is how long a helper without work lives.
	helperIdle = time.Minute
	// helperGrace is how long one may take to let go of keys and buttons.
	helperGrace = 3 * time.Second
	// answerLimit of an answer that is passed on, in bytes.
	answerLimit = 256 << 20
	// answerHeader bounds its header, in bytes.
	answerHeader = 16 << 10
)

// helpers are connections to helper processes: each is one.
type helpers struct {
	s         *Service
	transport *http.Transport

	mu     sync.Mutex
	all    map[*helperConn]struct{}
	closed bool
}

func newHelpers(s *Service) *helpers {
	h := &helpers{s: s, all: make(map[*helperConn]struct{})}
	h.transport = &http.Transport{
		DialContext:            func(ctx context.Context, _, _ string) (net.Conn, error) { return h.launch(ctx) },
		MaxConnsPerHost:        atOnce,
		MaxIdleConnsPerHost:    1,
		IdleConnTimeout:        helperIdle,
		DisableCompression:     true,
		MaxResponseHeaderBytes: answerHeader,
		Protocols:              new(http.Protocols),
	}
	h.transport.Protocols.SetHTTP1(true)
	return h
}

type sessionKey struct{}

// launch starts a helper.
func (h *helpers) launch(ctx context.Context) (net.Conn, error) {
	run, ok := ctx.Value(sessionKey{}).(*session)
	if !ok {
		return nil, errors.New("no desktop to start a helper for")
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make a pair of sockets: %w", err)
	}
	defer unix.Close(fds[1])
	f := os.NewFile(uintptr(fds[0]), "helper")
	conn, err := net.FileConn(f) // a copy
	f.Close()
	if err != nil {
		return nil, err
	}
	spec := h.s.spawner.Helper(display.Helper)
	spec.Env, spec.Stdin = run.env, fds[1]
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed || h.s.stale(run) {
		conn.Close()
		return nil, refuse(http.StatusServiceUnavailable, wire.CodeDesktopStopped, "the desktop has just been stopped")
	}
	p, err := h.s.spawner.Start(spec)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("start the helper: %w", err)
	}
	c := &helperConn{Conn: conn, proc: p, gone: make(chan struct{})}
	h.all[c] = struct{}{}
	go func() {
		p.Wait()
		h.mu.Lock()
		delete(h.all, c)
		h.mu.Unlock()
		close(c.gone)
	}()
	return c, nil
}

// helperConn ends its helper when it is closed.
type helperConn struct {
	net.Conn
	proc *process.Process
	gone chan struct{}
}

func (c *helperConn) Close() error {
	err := c.Conn.Close()
	time.AfterFunc(helperGrace, func() {
		select {
		case <-c.gone:
		default:
			c.proc.KillTree()
		}
	})
	return err
}

// dismiss ends all helpers, and returns when they have ended.
func (h *helpers) dismiss() {
	h.mu.Lock()
	var all []*helperConn
	for c := range h.all {
		all = append(all, c)
	}
	h.mu.Unlock()
	for _, c := range all {
		_ = c.Close()
	}
	for _, c := range all {
		<-c.gone
	}
	h.transport.CloseIdleConnections()
}

func (h *helpers) close() {
	h.mu.Lock()
	h.closed = true
	h.mu.Unlock()
	h.dismiss()
}

// stale says whether a desktop has been stopped.
func (s *Service) stale(run *session) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return run.ended
}

// ask sends a request to a helper.
func (h *helpers) ask(ctx context.Context, run *session, method, target string, body io.Reader, length int64) (*http.Response, error) {
	req, err := http.NewRequestWithContext(context.WithValue(ctx, sessionKey{}, run), method, "http://desktop"+target, body)
	if err != nil {
		return nil, err
	}
	req.ContentLength = length
	if length == 0 {
		req.Body = http.NoBody
	}
	return h.transport.RoundTrip(req)
}

// awaitManager returns when the desktop has a window manager.
func (h *helpers) awaitManager(ctx context.Context, run *session) error {
	resp, err := h.ask(ctx, run, http.MethodGet, display.ManagerPath, nil, 0)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, _ = io.CopyN(io.Discard, resp.Body, answerHeader)
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the helper answered %s", resp.Status)
	}
	return nil
}

// forward answers a request with what a helper answers. Input is one request's
// at a time: keys of two would make words of neither.
func (s *Service) forward(limit time.Duration, input bool) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), limit)
		defer cancel()
		run, err := s.running()
		if err == nil && input {
			var release func()
			if release, err = acquire(ctx, s.input); err == nil {
				defer release()
			}
		}
		var body []byte
		if err == nil {
			body, err = io.ReadAll(io.LimitReader(r.Body, bodyLimit+1))
			if err == nil && len(body) > bodyLimit {
				err = refuse(http.StatusRequestEntityTooLarge, wire.CodeInvalidBody, "invalid body request: longer than %d bytes", bodyLimit)
			}
		}
		var resp *http.Response
		if err == nil {
			resp, err = s.helpers.send(ctx, run, r, body)
		}
		if err != nil {
			if ctx.Err() != nil {
				err = ctx.Err()
			}
			fail(w, r, err)
			return
		}
		defer resp.Body.Close()
		// Only these: a helper is no more to be believed than the sandbox is.
		w.Header().Set("Content-Type", "application/json; charset=utf-8")
		if resp.ContentLength >= 0 {
			w.Header().Set("Content-Length", strconv.FormatInt(resp.ContentLength, 10))
		}
		status := resp.StatusCode
		if status < 200 || status > 599 {
			status = http.StatusBadGateway
		}
		w.WriteHeader(status)
		if _, err := io.Copy(w, io.LimitReader(resp.Body, answerLimit)); err != nil {
			// What has been sent is not all of it, and the client must see that.
			panic(http.ErrAbortHandler)
		}
	}
}

func (h *helpers) send(ctx context.Context, run *session, r *http.Request, body []byte) (*http.Response, error) {
	target := r.URL.EscapedPath()
	if r.URL.RawQuery != "" {
		target += "?" + r.URL.RawQuery
	}
	resp, err := h.ask(ctx, run, r.Method, target, bytes.NewReader(body), int64(len(body)))
	if err == nil {
		return resp, nil
	}
	if _, ok := errors.AsType[*refusal](err); ok || ctx.Err() != nil {
		return nil, err
	}
	if s, ok := errors.AsType[*process.StartError](err); ok {
		return nil, fmt.Errorf("start the helper: %w", s)
	}
	if h.s.stale(run) {
		return nil, refuse(http.StatusServiceUnavailable, wire.CodeDesktopStopped, "the desktop has been stopped meanwhile")
	}
	return nil, fmt.Errorf("the helper ended without an answer: %w", err)
}
