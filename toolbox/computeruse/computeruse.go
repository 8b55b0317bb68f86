// Package computeruse gives a sandbox a desktop: an X server without a screen, a
// window manager, a VNC server and noVNC, which it starts and keeps running, and
// recordings of what is on the screen.
//
// Everything that looks at the desktop or touches it is done by helpers
// (package desktop, which this one does not know), to which requests are passed on: one of them lives while
// there is something to do and for a minute after, and is ended with all that it
// holds when a request takes too long. Programs and helpers run as the sandbox's
// account.
//
// The package knows the wire types, the account and the environment that the
// agent gives to programs. It must not know of authentication nor of the other
// parts of the agent.
package computeruse

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/daytona-go/daytona/toolbox/computeruse/display"
	"github.com/daytona-go/daytona/toolbox/environment"
	"github.com/daytona-go/daytona/toolbox/process"
	"github.com/daytona-go/daytona/toolbox/wire"
)

const (
	// startTime is how long a part of the desktop may take to be there.
	startTime = 15 * time.Second
	// bodyLimit of the requests handled here, in bytes.
	bodyLimit = 1 << 20
	// most is the greatest width and height of a screen, in pixels.
	most = 8192
)

// Options configure a [Service].
type Options struct {
	// Spawner starts programs and helpers. Required.
	Spawner *process.Spawner
	// Env is the environment of the sandbox's programs. DISPLAY, VNC_RESOLUTION,
	// VNC_PORT, NO_VNC_PORT and DAYTONA_RECORDINGS_DIR are read from it, and
	// programs started while the desktop runs are told by it where that is.
	// Required.
	Env *environment.Env
	// Logger defaults to none.
	Logger *slog.Logger
}

// Service serves the computer-use routes of the toolbox API.
type Service struct {
	spawner *process.Spawner
	env     *environment.Env
	logger  *slog.Logger
	helpers *helpers
	films   *films

	// changing is held while the desktop starts or stops.
	changing chan struct{}
	// input is held by the one request that uses mouse and keyboard.
	input chan struct{}

	mu     sync.Mutex
	closed bool
	run    *session // nil if the desktop is stopped
}

// session is a desktop from its start to its stop.
type session struct {
	display string // such as ":0"
	dir     string // for the session bus; removed at the end
	env     map[string]string
	programs
	ready *gate // open while the X server is there
	// set are the variables that programs have been told, for them to be taken
	// back.
	set []string
	// ended says that it has been stopped; Service.mu guards it.
	ended bool
}

// New returns a Service. It starts nothing.
func New(opts Options) *Service {
	s := &Service{spawner: opts.Spawner, env: opts.Env, logger: opts.Logger, changing: make(chan struct{}, 1), input: make(chan struct{}, 1)}
	if s.logger == nil {
		s.logger = slog.New(slog.DiscardHandler)
	}
	s.helpers = newHelpers(s)
	s.films = newFilms(s)
	return s
}

// Register adds the routes to mux.
func (s *Service) Register(mux *http.ServeMux) {
	mux.HandleFunc("POST /computeruse/start", s.start)
	mux.HandleFunc("POST /computeruse/stop", s.stop)
	mux.HandleFunc("GET /computeruse/status", s.status)
	mux.HandleFunc("GET /computeruse/process-status", s.status)
	mux.HandleFunc("GET /computeruse/process/{processName}/status", s.processStatus)
	mux.HandleFunc("GET /computeruse/process/{processName}/logs", s.processLogs)
	mux.HandleFunc("GET /computeruse/process/{processName}/errors", s.processErrors)
	mux.HandleFunc("POST /computeruse/process/{processName}/restart", s.restartProcess)
	s.films.register(mux)
	for _, pattern := range []string{
		"GET /computeruse/screenshot", "GET /computeruse/screenshot/region", "GET /computeruse/screenshot/compressed",
		"GET /computeruse/screenshot/region/compressed", "GET /computeruse/mouse/position", "GET /computeruse/display/info",
		"GET /computeruse/display/windows",
	} {
		mux.HandleFunc(pattern, s.forward(30*time.Second, false))
	}
	for _, name := range []string{"mouse/move", "mouse/click", "mouse/drag", "mouse/scroll", "keyboard/key", "keyboard/hotkey"} {
		mux.HandleFunc("POST /computeruse/"+name, s.forward(30*time.Second, true))
	}
	// The text is typed within TypingLimit, or refused.
	mux.HandleFunc("POST /computeruse/keyboard/type", s.forward(display.TypingLimit+time.Minute, true))
	for _, pattern := range []string{
		"GET /computeruse/a11y/tree", "POST /computeruse/a11y/find", "POST /computeruse/a11y/node/focus",
		"POST /computeruse/a11y/node/invoke", "POST /computeruse/a11y/node/value",
	} {
		mux.HandleFunc(pattern, s.forward(time.Minute, false))
	}
}

// Close ends the desktop and everything that runs for it.
func (s *Service) Close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	// A start under way sees that, and gives up.
	s.changing <- struct{}{}
	defer func() { <-s.changing }()
	s.films.finish()
	s.halt()
	s.helpers.close()
}

// refusal is an error with its place on the wire.
type refusal struct {
	status  int
	code    string
	message string
	// word is the error's name of old. Defaults to the message.
	word string
}

func (e *refusal) Error() string { return e.message }

func refuse(status int, code, format string, args ...any) error {
	return &refusal{status: status, code: code, message: fmt.Sprintf(format, args...)}
}

func fail(w http.ResponseWriter, r *http.Request, err error) {
	e, ok := errors.AsType[*refusal](err)
	switch {
	case ok:
	case errors.Is(err, context.DeadlineExceeded):
		e = &refusal{status: http.StatusRequestTimeout, message: "request timeout: the desktop takes too long"}
	default:
		e = &refusal{status: http.StatusInternalServerError, message: "internal server error: " + err.Error()}
	}
	body := wire.NewError(r, e.status, e.code, e.message)
	if body.Error = e.word; e.word == "" {
		body.Error = e.message
	}
	wire.WriteJSON(w, e.status, body)
}

// decode reads a request's JSON body; an empty one is that of an empty object.
func decode(r *http.Request, into any) error {
	body, err := io.ReadAll(io.LimitReader(r.Body, bodyLimit+1))
	if err == nil && len(body) > bodyLimit {
		return refuse(http.StatusRequestEntityTooLarge, wire.CodeInvalidBody, "invalid body request: longer than %d bytes", bodyLimit)
	}
	if err == nil && len(body) > 0 {
		err = json.Unmarshal(body, into)
	}
	if err != nil {
		return refuse(http.StatusBadRequest, wire.CodeInvalidBody, "invalid body request: %v", err)
	}
	return nil
}

// acquire takes a place in a channel that holds one.
func acquire(ctx context.Context, place chan struct{}) (release func(), err error) {
	select {
	case place <- struct{}{}:
		return func() { <-place }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// running is the desktop that there is.
func (s *Service) running() (*session, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.run == nil {
		return nil, refuse(http.StatusServiceUnavailable, wire.CodeDesktopStopped, "the desktop is not running: start it (POST /computeruse/start)")
	}
	return s.run, nil
}

// settings are what the environment says about the desktop.
type settings struct {
	display                 string
	number                  int
	width, height, vnc, web int
}

func (s *Service) settings() (settings, error) {
	c := settings{display: ":0", width: 1024, height: 768, vnc: 5901, web: 6080}
	wrong := func(name, want string) error {
		return refuse(http.StatusBadRequest, "", "bad request: the sandbox's variable %s is %.100q: %s", name, s.env.Get(name), want)
	}
	if d := s.env.Get("DISPLAY"); d != "" {
		c.display = strings.TrimSuffix(d, ".0")
	}
	var err error
	if c.number, err = display.Parse(c.display); err != nil || c.number > 999 {
		return c, wrong("DISPLAY", "want :N, a display of the sandbox itself")
	}
	if v := s.env.Get("VNC_RESOLUTION"); v != "" {
		parts := strings.Split(v, "x")
		if len(parts) == 3 && parts[2] == "24" {
			parts = parts[:2] // the depth is no other
		}
		if len(parts) == 2 {
			c.width, _ = strconv.Atoi(parts[0])
			c.height, _ = strconv.Atoi(parts[1])
		}
		if len(parts) != 2 || c.width < 64 || c.height < 64 || c.width > most || c.height > most {
			return c, wrong("VNC_RESOLUTION", fmt.Sprintf("want WIDTHxHEIGHT, each from 64 to %d", most))
		}
	}
	for name, to := range map[string]*int{"VNC_PORT": &c.vnc, "NO_VNC_PORT": &c.web} {
		if v := s.env.Get(name); v != "" {
			if *to, err = strconv.Atoi(v); err != nil || *to < 1 || *to > 65535 {
				return c, wrong(name, "want a port")
			}
		}
	}
	return c, nil
}

// start serves POST /computeruse/start.
func (s *Service) start(w http.ResponseWriter, r *http.Request) {
	release, err := acquire(r.Context(), s.changing)
	if err != nil {
		fail(w, r, err)
		return
	}
	defer release()
	run, err := s.running()
	if err != nil {
		if run, err = s.launch(r.Context()); err != nil {
			fail(w, r, err)
			return
		}
	}
	message := "the desktop runs"
	if lacks := run.missing(); len(lacks) > 0 {
		message += ", without " + strings.Join(lacks, " and ")
	}
	wire.WriteJSON(w, http.StatusOK, wire.DesktopChange{Message: message, Status: run.states()})
}

// launch starts the desktop. The caller holds changing.
func (s *Service) launch(ctx context.Context) (_ *session, err error) {
	s.mu.Lock()
	closed := s.closed
	s.mu.Unlock()
	if closed {
		return nil, refuse(http.StatusServiceUnavailable, "", "the agent is shutting down")
	}
	c, err := s.settings()
	if err != nil {
		return nil, err
	}
	if err := s.clearDisplay(ctx, c); err != nil {
		return nil, err
	}
	run := &session{display: c.display, ready: newGate(), env: map[string]string{"DISPLAY": c.display, "QT_LINUX_ACCESSIBILITY_ALWAYS_ON": "1"}}
	if err := s.spawner.Account().Do(func() (err error) {
		run.dir, err = os.MkdirTemp(os.TempDir(), "desktop-")
		return err
	}); err != nil {
		return nil, fmt.Errorf("make a directory for the desktop: %w", err)
	}
	if s.env.Get("XDG_RUNTIME_DIR") == "" {
		run.env["XDG_RUNTIME_DIR"] = run.dir
	}
	if err := s.define(run, c); err != nil {
		s.removeDir(run)
		return nil, err
	}
	begin := time.Now()
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	run.start()
	if err := run.ready.wait(ctx, run.find("xvfb")); err != nil {
		said := run.find("xvfb").tail()
		s.abandon(run)
		return nil, fmt.Errorf("the X server did not start (%w): %s", err, said)
	}
	// Programs come after the window manager, lest it does not see their first
	// windows. That the others take long is no error: they are kept running.
	var wg sync.WaitGroup
	if m := run.find("xfce4"); m.missing == "" {
		wg.Go(func() {
			if err := s.helpers.awaitManager(ctx, run); err != nil {
				s.logger.Warn("the desktop has no window manager yet", "error", err)
			}
		})
	}
	for name, port := range map[string]int{"x11vnc": c.vnc, "novnc": c.web} {
		if m := run.find(name); m.missing == "" {
			wg.Go(func() { awaitPort(ctx, port) })
		}
	}
	wg.Wait()
	if err := ctx.Err(); errors.Is(err, context.Canceled) {
		s.abandon(run)
		return nil, err
	}
	set := map[string]string{}
	for name, value := range run.env {
		if s.env.Get(name) == "" {
			set[name] = value
			run.set = append(run.set, name)
		}
	}
	if err := s.env.Update(set, nil, ""); err != nil {
		s.logger.Error("programs are not told of the desktop", "error", err)
	}
	s.mu.Lock()
	s.run = run
	s.mu.Unlock()
	s.logger.Info("the desktop runs", "display", c.display, "in", time.Since(begin))
	return run, nil
}

// abandon ends a desktop that did not come to be.
func (s *Service) abandon(run *session) {
	s.mu.Lock()
	run.ended = true
	s.mu.Unlock()
	s.helpers.dismiss()
	run.stop()
	s.removeDir(run)
}

// stop serves POST /computeruse/stop.
func (s *Service) stop(w http.ResponseWriter, r *http.Request) {
	release, err := acquire(r.Context(), s.changing)
	if err != nil {
		fail(w, r, err)
		return
	}
	defer release()
	message, states := "the desktop was not running", map[string]wire.DesktopProcess{}
	if run := s.halt(); run != nil {
		message, states = "the desktop has stopped", run.states()
	}
	wire.WriteJSON(w, http.StatusOK, wire.DesktopChange{Message: message, Status: states})
}

// halt stops the desktop, if there is one. The caller holds changing.
func (s *Service) halt() *session {
	s.mu.Lock()
	run := s.run
	s.run = nil
	if run != nil {
		run.ended = true
	}
	s.mu.Unlock()
	if run == nil {
		return nil
	}
	s.films.finish()
	s.helpers.dismiss()
	if err := s.env.Update(nil, run.set, ""); err != nil {
		s.logger.Error("programs are still told of the desktop", "error", err)
	}
	run.programs.stop()
	s.removeDir(run)
	return run
}

func (s *Service) removeDir(run *session) {
	err := s.spawner.Account().Do(func() error {
		root, err := os.OpenRoot(os.TempDir())
		if err != nil {
			return err
		}
		defer root.Close()
		return root.RemoveAll(run.dir[strings.LastIndexByte(run.dir, '/')+1:])
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.logger.Warn("the desktop's directory stays behind", "dir", run.dir, "error", err)
	}
}

// needed are the programs that make a desktop complete.
var needed = []string{"xvfb", "xfce4", "x11vnc", "novnc"}

// status serves GET /computeruse/status and /process-status.
func (s *Service) status(w http.ResponseWriter, r *http.Request) {
	word := "inactive"
	if run, err := s.running(); err == nil {
		up := 0
		for _, name := range needed {
			if run.find(name).state().Running {
				up++
			}
		}
		switch {
		case up == len(needed):
			word = "active"
		case !run.find("xvfb").state().Running:
			word = "error"
		default:
			word = "partial"
		}
	}
	wire.WriteJSON(w, http.StatusOK, wire.DesktopStatus{Status: word})
}

// processOf is the program that a request names; nil, without an error, if the
// desktop is stopped.
func (s *Service) processOf(r *http.Request) (string, *managed, error) {
	name := r.PathValue("processName")
	if !slices.Contains(names, name) {
		return "", nil, refuse(http.StatusNotFound, "", "not found: process %.100q: there are %s", name, strings.Join(names, ", "))
	}
	run, err := s.running()
	if err != nil {
		return name, nil, nil
	}
	return name, run.find(name), nil
}

func (s *Service) processStatus(w http.ResponseWriter, r *http.Request) {
	name, m, err := s.processOf(r)
	if err != nil {
		fail(w, r, err)
		return
	}
	wire.WriteJSON(w, http.StatusOK, wire.DesktopProcessStatus{ProcessName: name, Running: m != nil && m.state().Running})
}

func (s *Service) processLogs(w http.ResponseWriter, r *http.Request) {
	name, m, err := s.processOf(r)
	if err != nil {
		fail(w, r, err)
		return
	}
	answer := wire.DesktopProcessLogs{ProcessName: name}
	if m != nil {
		answer.Logs = m.stdout.text()
	}
	wire.WriteJSON(w, http.StatusOK, answer)
}

func (s *Service) processErrors(w http.ResponseWriter, r *http.Request) {
	name, m, err := s.processOf(r)
	if err != nil {
		fail(w, r, err)
		return
	}
	answer := wire.DesktopProcessErrors{ProcessName: name}
	if m != nil {
		answer.Errors = m.stderr.text()
	}
	wire.WriteJSON(w, http.StatusOK, answer)
}

func (s *Service) restartProcess(w http.ResponseWriter, r *http.Request) {
	name, m, err := s.processOf(r)
	if err == nil && m == nil {
		if _, err = s.running(); err == nil {
			err = refuse(http.StatusNotFound, "", "not found: the desktop does without its own %s", name)
		}
	}
	if err == nil {
		ctx, cancel := context.WithTimeout(r.Context(), startTime)
		defer cancel()
		err = m.restart(ctx)
	}
	if err != nil {
		fail(w, r, err)
		return
	}
	wire.WriteJSON(w, http.StatusOK, wire.DesktopProcessRestart{Message: "process " + name + " has been restarted", ProcessName: name})
}
