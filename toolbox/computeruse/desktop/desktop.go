// Package desktop is what the agent's helper for computer use does: pictures of
// the screen, mouse and keyboard, displays and windows over the X protocol; what
// programs tell screen readers over D-Bus (AT-SPI); and the web page and the
// WebSocket through which a browser shows the desktop.
//
// It runs in a process of its own with the rights of the sandbox's user, and
// believes neither the X server nor any program, which may both be the
// sandbox's: what they make go wrong here goes wrong in that process only, which
// the agent ends when it takes too long. It knows the wire types, and nothing of
// how the desktop is started.
package desktop

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/jezek/xgb"

	"github.com/daytona-go/daytona/toolbox/computeruse/display"
	"github.com/daytona-go/daytona/toolbox/wire"
)

// bodyLimit of a request, in bytes.
const bodyLimit = 1 << 20

// Main answers the agent's requests, HTTP on the socket that is standard input,
// until its end. The variables DISPLAY and DBUS_SESSION_BUS_ADDRESS say where the
// desktop is. It returns the exit code.
func Main(getenv func(string) string) int {
	xgb.Logger = log.New(io.Discard, "", 0) // the same is in the errors
	conn, err := net.FileConn(os.Stdin)
	if err != nil {
		fmt.Fprintln(os.Stderr, "daytona-agent: helper desktop: standard input is no socket:", err)
		return 2
	}
	Serve(conn, getenv)
	return 0
}

// Serve answers the requests on conn, and returns when it has been closed and
// what was under way has had a moment to end.
func Serve(conn net.Conn, getenv func(string) string) {
	l := &oneConn{ended: make(chan struct{})}
	l.conn = &watched{Conn: conn, ended: l.ended}
	server := &http.Server{Handler: Handler(getenv), ErrorLog: log.New(io.Discard, "", 0), ReadHeaderTimeout: time.Minute}
	_ = server.Serve(l)
	// Keys and buttons that a request holds are let go when its context ends,
	// which has just happened.
	grace, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	_ = server.Shutdown(grace)
}

// oneConn is a listener that has one connection to give.
type oneConn struct {
	conn  net.Conn
	taken sync.Once
	ended chan struct{}
}

func (l *oneConn) Accept() (conn net.Conn, err error) {
	l.taken.Do(func() { conn = l.conn })
	if conn != nil {
		return conn, nil
	}
	<-l.ended
	return nil, net.ErrClosed
}

func (l *oneConn) Close() error   { return nil }
func (l *oneConn) Addr() net.Addr { return l.conn.LocalAddr() }

// watched tells when there is nothing more to read: net/http reads on while a
// handler runs.
type watched struct {
	net.Conn
	once  sync.Once
	ended chan struct{}
}

func (c *watched) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	// A deadline of the past is how net/http ends a read of its own.
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		c.once.Do(func() { close(c.ended) })
	}
	return n, err
}

func (c *watched) Close() error {
	c.once.Do(func() { close(c.ended) })
	return c.Conn.Close()
}

// Handler serves the routes of the toolbox API that need the desktop.
func Handler(getenv func(string) string) http.Handler {
	mux := http.NewServeMux()
	x := func(pattern string, f func(s *screen, r *http.Request) (any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			answer(w, r, func() (any, error) {
				s, err := open(r.Context(), getenv("DISPLAY"))
				if err != nil {
					return nil, err
				}
				defer s.close()
				return f(s, r)
			})
		})
	}
	x("GET /computeruse/screenshot", func(s *screen, r *http.Request) (any, error) { return s.screenshot(r, false, false) })
	x("GET /computeruse/screenshot/region", func(s *screen, r *http.Request) (any, error) { return s.screenshot(r, true, false) })
	x("GET /computeruse/screenshot/compressed", func(s *screen, r *http.Request) (any, error) { return s.screenshot(r, false, true) })
	x("GET /computeruse/screenshot/region/compressed", func(s *screen, r *http.Request) (any, error) { return s.screenshot(r, true, true) })
	x("GET /computeruse/mouse/position", func(s *screen, _ *http.Request) (any, error) { return s.pointer() })
	x("POST /computeruse/mouse/move", withBody((*screen).move))
	x("POST /computeruse/mouse/click", withBody((*screen).click))
	x("POST /computeruse/mouse/drag", withBody((*screen).drag))
	x("POST /computeruse/mouse/scroll", withBody((*screen).scroll))
	x("POST /computeruse/keyboard/type", withBody((*screen).typeText))
	x("POST /computeruse/keyboard/key", withBody((*screen).press))
	x("POST /computeruse/keyboard/hotkey", withBody((*screen).hotkey))
	x("GET /computeruse/display/info", func(s *screen, _ *http.Request) (any, error) { return s.displays(), nil })
	x("GET /computeruse/display/windows", func(s *screen, _ *http.Request) (any, error) { return s.windows() })
	x("GET "+display.ManagerPath, func(s *screen, _ *http.Request) (any, error) { return struct{}{}, s.awaitManager() })

	a11y := func(pattern string, f func(b *bus, r *http.Request) (any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			answer(w, r, func() (any, error) {
				b, err := openBus(r.Context(), getenv("DBUS_SESSION_BUS_ADDRESS"))
				if err != nil {
					return nil, err
				}
				defer b.close()
				return f(b, r)
			})
		})
	}
	a11y("GET /computeruse/a11y/tree", (*bus).serveTree)
	a11y("POST /computeruse/a11y/find", withBody((*bus).serveFind))
	a11y("POST /computeruse/a11y/node/focus", withBody((*bus).focus))
	a11y("POST /computeruse/a11y/node/invoke", withBody((*bus).invoke))
	a11y("POST /computeruse/a11y/node/value", withBody((*bus).setValue))
	return mux
}

// withBody decodes a request's body for f.
func withBody[S, B any](f func(S, *B) (any, error)) func(S, *http.Request) (any, error) {
	return func(s S, r *http.Request) (any, error) {
		body, err := io.ReadAll(io.LimitReader(r.Body, bodyLimit+1))
		if err == nil && len(body) > bodyLimit {
			err = fmt.Errorf("longer than %d bytes", bodyLimit)
		}
		v := new(B)
		if err == nil {
			err = json.Unmarshal(body, v)
		}
		if err != nil {
			return nil, &refusal{http.StatusBadRequest, wire.CodeInvalidBody, "invalid body request: " + err.Error()}
		}
		return f(s, v)
	}
}

// refusal is an error with its place on the wire.
type refusal struct {
	status  int
	code    string
	message string
}

func (e *refusal) Error() string { return e.message }

func bad(format string, args ...any) error {
	return &refusal{http.StatusBadRequest, "", "bad request: " + fmt.Sprintf(format, args...)}
}

func answer(w http.ResponseWriter, r *http.Request, f func() (any, error)) {
	v, err := f()
	if err == nil {
		wire.WriteJSON(w, http.StatusOK, v)
		return
	}
	e, ok := errors.AsType[*refusal](err)
	if !ok {
		e = &refusal{http.StatusInternalServerError, "", "internal server error: " + err.Error()}
	}
	body := wire.NewError(r, e.status, e.code, e.message)
	body.Error = e.message
	wire.WriteJSON(w, e.status, body)
}
