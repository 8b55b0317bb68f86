// Package webterminal is a page with a terminal in it, and the WebSocket behind:
// what the public API has on port 22222 of a sandbox. It starts a shell for each
// WebSocket through a [process.Spawner].
//
// No port is open for it: the agent answers in the place of the port (see
// [Service.ServeProxy] and [Service.Register]), so that nothing in the sandbox
// can. It must not know of authentication, which is over when a request gets
// here, nor of the other parts of the agent.
package webterminal

//go:generate sh generate.sh

import (
	"bytes"
	"context"
	"crypto/rand"
	"embed"
	"encoding/json"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"github.com/daytona-go/daytona/internal/escape"
	"github.com/daytona-go/daytona/toolbox/process"
	"github.com/daytona-go/daytona/toolbox/wire"
)

const (
	// maxTerminals at a time.
	maxTerminals             = 64
	maxSize                  = 1000
	defaultCols, defaultRows = 80, 24
	// inputLimit is the greatest length of an input message in bytes.
	inputLimit = 64 << 10
	// frameSize is the greatest size of an output frame in bytes, before the
	// filter.
	frameSize = 16 << 10
	// outputRate, in bytes a second, is what a browser's terminal keeps up with:
	// it has no way to say that it does not, and what it has not shown yet takes
	// its memory.
	outputRate = 4 << 20
	settleTime = 100 * time.Millisecond
	// inputTime is how long input waits for a program to read it.
	inputTime = 5 * time.Second
)

//go:embed page xterm/*.mjs xterm/*.css xterm/LICENSE*
var files embed.FS

// Options configure a [Service].
type Options struct {
	// Spawner starts the shells. Required.
	Spawner *process.Spawner
	// Logger defaults to none.
	Logger *slog.Logger
}

// Service serves the page.
type Service struct {
	spawner *process.Spawner
	logger  *slog.Logger
	mux     *http.ServeMux
	server  *http.Server

	mu     sync.Mutex
	closed bool
	shells map[*process.Process]struct{}
	open   int
}

// New returns a Service.
func New(opts Options) *Service {
	s := &Service{spawner: opts.Spawner, logger: opts.Logger, mux: http.NewServeMux(), shells: make(map[*process.Process]struct{})}
	if s.logger == nil {
		s.logger = slog.New(slog.DiscardHandler)
	}
	s.mux.HandleFunc("GET /{$}", s.page)
	s.mux.HandleFunc("GET /ws", s.socket)
	for name, file := range map[string][2]string{
		"terminal.js": {"page", "text/javascript"}, "terminal.css": {"page", "text/css"},
		"xterm.mjs": {"xterm", "text/javascript"}, "addon-fit.mjs": {"xterm", "text/javascript"}, "xterm.css": {"xterm", "text/css"},
		"LICENSE": {"xterm", "text/plain"}, "LICENSE.addon-fit": {"xterm", "text/plain"},
	} {
		s.mux.HandleFunc("GET /"+name, func(w http.ResponseWriter, r *http.Request) {
			b, err := fs.ReadFile(files, file[0]+"/"+name)
			if err != nil {
				http.NotFound(w, r)
				return
			}
			w.Header().Set("Content-Type", file[1]+"; charset=utf-8")
			w.Header().Set("Cache-Control", "private, max-age=3600")
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
		})
	}
	s.server = &http.Server{Handler: s, ReadHeaderTimeout: 30 * time.Second, MaxHeaderBytes: 64 << 10, ErrorLog: slog.NewLogLogger(s.logger.Handler(), slog.LevelDebug)}
	return s
}

// Register adds the route of connections to the port to mux.
func (s *Service) Register(mux *http.ServeMux) {
	mux.HandleFunc("GET /port/"+strconv.Itoa(wire.WebTerminalPort)+"/connect", s.connect)
}

// ServeProxy answers what begins with Prefix.
func (s *Service) ServeProxy(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == strings.TrimSuffix(Prefix, "/") {
		// What the page refers to is relative.
		w.Header().Set("Location", strconv.Itoa(wire.WebTerminalPort)+"/")
		w.WriteHeader(http.StatusPermanentRedirect)
		return
	}
	http.StripPrefix(strings.TrimSuffix(Prefix, "/"), s).ServeHTTP(w, r)
}

// Prefix is where the agent's proxy has the page.
const Prefix = "/proxy/22222/"

// Close ends all terminals and kills what runs on them.
func (s *Service) Close() {
	s.mu.Lock()
	s.closed = true
	var shells []*process.Process
	for p := range s.shells {
		shells = append(shells, p)
	}
	s.mu.Unlock()
	_ = s.server.Close()
	var wg sync.WaitGroup
	for _, p := range shells {
		wg.Go(p.KillTree)
	}
	wg.Wait()
}

// ServeHTTP answers as port 22222 does.
func (s *Service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Content-Security-Policy", policy("'none'"))
	s.mux.ServeHTTP(w, r)
}

// policy lets the page load what is beside it, talk to where it comes from, and
// nothing else. Colours are in attributes.
func policy(styles string) string {
	return "default-src 'none'; script-src 'self'; style-src-elem 'self' " + styles + "; style-src-attr 'unsafe-inline'; connect-src 'self'; " +
		"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
}

func (s *Service) page(w http.ResponseWriter, r *http.Request) {
	b, err := fs.ReadFile(files, "page/index.html")
	if err != nil {
		http.NotFound(w, r)
		return
	}
	nonce := rand.Text()
	w.Header().Set("Content-Security-Policy", policy("'nonce-"+nonce+"'"))
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write(bytes.ReplaceAll(b, []byte("NONCE"), []byte(nonce)))
}

// ownPage says whether a WebSocket is wanted by a page from here, or by no page
// at all. Another page could be one that a program of the sandbox, or anybody,
// serves: a browser sends it the user's cookies all the same.
func ownPage(r *http.Request) bool {
	origin := r.Header.Get("Origin")
	if origin == "" {
		return true
	}
	u, err := url.Parse(origin)
	if err != nil || u.Host == "" {
		return false
	}
	return strings.EqualFold(u.Host, r.Host) || strings.EqualFold(u.Host, r.Header.Get("X-Forwarded-Host"))
}

// socket serves GET /ws: a shell on a terminal.
func (s *Service) socket(w http.ResponseWriter, r *http.Request) {
	if !process.IsUpgrade(r) {
		w.Header().Set("Upgrade", "websocket")
		wire.WriteError(w, r, http.StatusUpgradeRequired, "", "this operation is a WebSocket: ask for the upgrade")
		return
	}
	if !ownPage(r) {
		wire.WriteError(w, r, http.StatusForbidden, "", "forbidden: another page may not use the terminal")
		return
	}
	shell, master, err := s.start()
	if err != nil {
		status := http.StatusInternalServerError
		if err == errBusy || err == errClosed {
			status = http.StatusServiceUnavailable
		}
		wire.WriteError(w, r, status, "", err.Error())
		return
	}
	defer s.end(shell, master)
	sock, err := process.AcceptSocket(w, r, inputLimit)
	if err != nil {
		s.logger.Debug("web terminal", "error", err)
		return
	}
	defer sock.Drop()
	go receive(sock, shell, master)
	go func() {
		shell.Wait()
		process.Settle(master, settleTime)
	}()
	var filter escape.Filter
	var out []byte
	limit := rate.NewLimiter(outputRate, 4*frameSize)
	_, err = process.CopyOutput(master, make([]byte, frameSize), func(b []byte) error {
		if out = filter.Append(out[:0], b); len(out) == 0 {
			return nil
		}
		if err := limit.WaitN(context.Background(), min(len(out), limit.Burst())); err != nil {
			return err
		}
		return sock.WriteText(out)
	})
	if err == nil {
		status := shell.Wait()
		sock.Close(1000, "The shell has ended with exit code "+strconv.Itoa(status.Code)+".")
	}
}

// errors for which there is no terminal.
type refusal string

func (e refusal) Error() string { return string(e) }

const (
	errClosed = refusal("the agent is shutting down")
	errBusy   = refusal("there are too many terminals already: close some first")
)

// start starts a shell.
func (s *Service) start() (_ *process.Process, master *os.File, err error) {
	s.mu.Lock()
	switch {
	case s.closed:
		err = errClosed
	case s.open >= maxTerminals:
		err = errBusy
	default:
		s.open++
	}
	s.mu.Unlock()
	if err != nil {
		return nil, nil, err
	}
	shell, master, err := s.run()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.open--
		return nil, nil, err
	}
	s.shells[shell] = struct{}{}
	if s.closed {
		go shell.KillTree()
	}
	return shell, master, nil
}

func (s *Service) run() (*process.Process, *os.File, error) {
	master, slave, err := s.spawner.OpenTerminal(defaultCols, defaultRows)
	if err != nil {
		return nil, nil, err
	}
	defer slave.Close()
	path := s.spawner.Account().Shell
	if path == "" || unix.Access(path, unix.X_OK) != nil {
		path = "/bin/sh"
	}
	fd := int(slave.Fd())
	shell, err := s.spawner.Start(&process.Spec{
		Args: []string{path[strings.LastIndexByte(path, '/')+1:], "-i", "-l"}, Path: path, Env: map[string]string{"TERM": "xterm-256color"},
		Stdin: fd, Stdout: fd, Stderr: fd, Terminal: true,
	})
	if err != nil {
		master.Close()
		return nil, nil, err
	}
	return shell, master, nil
}

// end hangs up on what is left on the terminal.
func (s *Service) end(shell *process.Process, master *os.File) {
	_ = shell.Signal(syscall.SIGHUP)
	master.Close()
	go func() {
		shell.Wait()
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.shells, shell)
		s.open--
	}()
}

// receive takes what the client sends until it is gone.
func receive(sock *process.Socket, shell *process.Process, master *os.File) {
	for {
		text, data, err := sock.Read()
		if err != nil {
			_ = shell.Signal(syscall.SIGHUP)
			process.Settle(master, settleTime)
			return
		}
		if text {
			if cols, rows, ok := parseSize(data); ok {
				_ = process.ResizeTerminal(master, cols, rows)
				continue
			}
		}
		// What no program takes in this time is lost: a client that goes away
		// has to be noticed. If the shell has ended, the other direction says so.
		_ = master.SetWriteDeadline(time.Now().Add(inputTime))
		_, _ = master.Write(data)
	}
}

// parseSize tells a change of size from input: it is an object with nothing but
// rows and cols, which both make sense.
func parseSize(data []byte) (cols, rows int, ok bool) {
	if len(data) == 0 || len(data) > 256 || data[0] != '{' {
		return 0, 0, false
	}
	var size struct {
		Rows *int `json:"rows"`
		Cols *int `json:"cols"`
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if d.Decode(&size) != nil || d.More() || size.Rows == nil || size.Cols == nil {
		return 0, 0, false
	}
	cols, rows = *size.Cols, *size.Rows
	return cols, rows, cols >= 1 && cols <= maxSize && rows >= 1 && rows <= maxSize
}

// connect carries a connection to the port over a WebSocket, as package port
// does for others.
func (s *Service) connect(w http.ResponseWriter, r *http.Request) {
	if !process.IsUpgrade(r) {
		w.Header().Set("Upgrade", "websocket")
		wire.WriteError(w, r, http.StatusUpgradeRequired, "", "this operation is a WebSocket: ask for the upgrade")
		return
	}
	sock, err := process.AcceptSocket(w, r, 256<<10)
	if err != nil {
		s.logger.Debug("web terminal", "error", err)
		return
	}
	defer sock.Drop()
	ours, theirs := net.Pipe()
	defer ours.Close()
	l := &single{conn: make(chan net.Conn, 1), done: make(chan struct{})}
	l.conn <- theirs
	go func() { _ = s.server.Serve(l) }()
	defer l.Close()
	go func() {
		for {
			text, data, err := sock.Read()
			if err != nil || text || len(data) == 0 {
				// HTTP has no use for half a connection.
				ours.Close()
				return
			}
			if _, err := ours.Write(data); err != nil {
				return
			}
		}
	}()
	buf := make([]byte, 32<<10)
	for {
		n, err := ours.Read(buf)
		if n > 0 && sock.WriteBinary(buf[:n]) != nil {
			return
		}
		if err != nil {
			sock.Close(1000, "")
			return
		}
	}
}

// single is a listener with one connection.
type single struct {
	conn chan net.Conn
	done chan struct{}
	once sync.Once
}

func (l *single) Accept() (net.Conn, error) {
	select {
	case c := <-l.conn:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *single) Close() error   { l.once.Do(func() { close(l.done) }); return nil }
func (l *single) Addr() net.Addr { return &net.UnixAddr{Name: "web terminal", Net: "unix"} }
