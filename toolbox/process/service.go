package process

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona/toolbox/account"
	"github.com/daytona-go/daytona/toolbox/wire"
)

// Options configure a [Service] or a [Spawner]. The zero value is of use in
// tests: it runs programs as the calling user.
type Options struct {
	// Account is whom programs run as. Defaults to [account.Current].
	Account *account.Account
	// WorkDir is where programs run by default. Defaults to the account's
	// home.
	WorkDir string
	// Environ returns the environment of programs as "name=value"; it is
	// called for each. Defaults to nothing; HOME, USER, LOGNAME, SHELL, PATH
	// and PWD are added where missing.
	Environ func() []string
	// CgroupDir is a writable cgroup v2 directory in which each program gets
	// a cgroup of its own. Defaults to "": none.
	CgroupDir string
	// Logger defaults to none.
	Logger *slog.Logger
	// Reaper is the agent's. Defaults to none; required where the agent
	// adopts orphans.
	Reaper *Reaper

	// LogDir is where a directory is made for logs and large outputs, which
	// only the agent's user can read. The account must be able to pass through
	// it (mode 0711 does). Defaults to /run/daytona for root, if it can be made, else
	// to the directory for temporary files.
	LogDir string
	// LogLimit is how many bytes of each session command's output are kept,
	// the first half and the last half. Defaults to 64 MiB.
	LogLimit int64
	// OutputLimit is how many bytes of output an execute or code-run returns;
	// the rest is left out and said to be. Defaults to 100 MiB.
	OutputLimit int64
}

const (
	defaultLogLimit    = 64 << 20
	defaultOutputLimit = 100 << 20
	// bodyLimit bounds a request's JSON.
	bodyLimit = 32 << 20
	// settleTime is how long after a program's end its output is still waited
	// for while a background child holds it open.
	settleTime = 100 * time.Millisecond
	// terminateGrace is between SIGTERM and SIGKILL when a session is deleted.
	terminateGrace = 5 * time.Second
)

// Service serves the process routes of the toolbox API, terminals excepted.
type Service struct {
	spawner     *Spawner
	logger      *slog.Logger
	logLimit    int64
	outputLimit int64

	dirOnce sync.Once
	dirBase string
	dir     string
	dirErr  error

	mu       sync.Mutex
	closed   bool
	sessions map[string]*session
	order    []*session
	running  map[*Process]struct{}

	runtimes runtimes
}

// New returns a Service. It panics if the null device cannot be opened, without
// which nothing can be run.
func New(opts Options) *Service {
	spawner, err := NewSpawner(opts)
	if err != nil {
		panic(fmt.Sprintf("process: %v", err))
	}
	s := &Service{
		spawner: spawner, logger: spawner.logger, dirBase: opts.LogDir,
		logLimit: opts.LogLimit, outputLimit: opts.OutputLimit,
		sessions: make(map[string]*session), running: make(map[*Process]struct{}),
	}
	if s.logLimit <= 0 {
		s.logLimit = defaultLogLimit
	}
	if s.outputLimit <= 0 {
		s.outputLimit = defaultOutputLimit
	}
	return s
}

// Spawner returns the Service's Spawner, for other parts of the agent that
// start programs.
func (s *Service) Spawner() *Spawner { return s.spawner }

// Register adds the routes to mux.
func (s *Service) Register(mux *http.ServeMux) {
	mux.HandleFunc("POST /process/execute", s.execute)
	mux.HandleFunc("POST /process/code-run", s.codeRun)
	mux.HandleFunc("GET "+wire.CommandPath, s.command)
	mux.HandleFunc("POST /process/session", s.createSession)
	mux.HandleFunc("GET /process/session", s.listSessions)
	mux.HandleFunc("GET /process/session/{sessionId}", s.getSession)
	mux.HandleFunc("DELETE /process/session/{sessionId}", s.deleteSession)
	mux.HandleFunc("POST /process/session/{sessionId}/exec", s.sessionExec)
	mux.HandleFunc("GET /process/session/{sessionId}/command/{commandId}", s.getCommand)
	mux.HandleFunc("POST /process/session/{sessionId}/command/{commandId}/input", s.commandInput)
	mux.HandleFunc("GET /process/session/{sessionId}/command/{commandId}/logs", s.commandLogs)
	mux.HandleFunc("GET /process/session/entrypoint/logs", s.entrypointLogs)
}

// Close kills what still runs in sessions and for requests, and removes the
// logs. Background programs that finished commands left behind live on.
func (s *Service) Close() {
	s.mu.Lock()
	s.closed = true
	sessions := s.order
	s.order, s.sessions = nil, make(map[string]*session)
	var running []*Process
	for p := range s.running {
		running = append(running, p)
	}
	s.mu.Unlock()
	var wg sync.WaitGroup
	for _, ss := range sessions {
		wg.Go(func() { ss.end(0) })
	}
	for _, p := range running {
		wg.Go(p.KillTree)
	}
	wg.Wait()
	s.dirOnce.Do(func() { s.dirErr = os.ErrClosed })
	if s.dir != "" {
		_ = os.RemoveAll(s.dir)
	}
	s.spawner.Close()
}

// track notes a process that a request waits for. It kills the process if the
// service has been closed meanwhile.
func (s *Service) track(p *Process) (untrack func()) {
	s.mu.Lock()
	closed := s.closed
	s.running[p] = struct{}{}
	s.mu.Unlock()
	if closed {
		p.KillTree()
	}
	return func() {
		s.mu.Lock()
		delete(s.running, p)
		s.mu.Unlock()
	}
}

// logDir returns the directory for logs and makes it at first use.
func (s *Service) logDir() (string, error) {
	s.dirOnce.Do(func() {
		bases := []string{s.dirBase}
		if s.dirBase == "" {
			bases = []string{os.TempDir()}
			if os.Getuid() == 0 {
				bases = []string{"/run/daytona", os.TempDir()}
			}
		}
		for _, base := range bases {
			if s.dirErr = os.MkdirAll(base, 0o711); s.dirErr != nil {
				continue
			}
			if s.dir, s.dirErr = os.MkdirTemp(base, "process-"); s.dirErr == nil {
				// The account passes through to the FIFOs of its sessions.
				if s.dirErr = os.Chmod(s.dir, 0o711); s.dirErr == nil {
					s.dirErr = s.passable(s.dir)
				}
				if s.dirErr == nil {
					return
				}
				_ = os.Remove(s.dir)
				s.dir = ""
			}
		}
	})
	if s.dirErr != nil {
		return "", fmt.Errorf("make a directory for logs: %w", s.dirErr)
	}
	return s.dir, nil
}

// passable says whether the account may look into dir.
func (s *Service) passable(dir string) error {
	return s.spawner.account.Do(func() error {
		fd, err := unix.Open(dir+"/.", unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("user %s may not pass through %s: %w", s.spawner.account.Name, dir, err)
		}
		return unix.Close(fd)
	})
}

// tempFile opens a file that nobody else can find.
func (s *Service) tempFile() (*os.File, error) {
	dir, err := s.logDir()
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, newID()), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	_ = os.Remove(f.Name())
	return f, nil
}

// Prefixes of error messages on the wire, by status; see the public API.
func prefixOf(status int) string {
	switch status {
	case http.StatusBadRequest:
		return "bad request: "
	case http.StatusNotFound:
		return "not found: "
	case http.StatusConflict:
		return "conflict: "
	case http.StatusGone:
		return "gone: "
	case http.StatusRequestTimeout:
		return "request timeout: "
	case http.StatusForbidden:
		return "forbidden: "
	case http.StatusInternalServerError:
		return "internal server error: "
	}
	return ""
}

func fail(w http.ResponseWriter, r *http.Request, status int, code, format string, args ...any) {
	wire.WriteError(w, r, status, code, prefixOf(status)+fmt.Sprintf(format, args...))
}

// decode reads a request's JSON body to its end, which is also what lets
// net/http notice that the client goes away. It has answered if it returns
// false.
func decode(w http.ResponseWriter, r *http.Request, into any) bool {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, bodyLimit))
	if err != nil {
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			wire.WriteError(w, r, http.StatusRequestEntityTooLarge, "INVALID_REQUEST_BODY", fmt.Sprintf("invalid body request: longer than %d MiB: upload the data as a file", bodyLimit>>20))
			return false
		}
		wire.WriteError(w, r, http.StatusBadRequest, "INVALID_REQUEST_BODY", "invalid body request: "+err.Error())
		return false
	}
	if err := json.Unmarshal(body, into); err != nil {
		wire.WriteError(w, r, http.StatusBadRequest, "INVALID_REQUEST_BODY", "invalid body request: "+err.Error())
		return false
	}
	return true
}

// CheckEnv returns an error that names the first variable that cannot be set.
func CheckEnv(env map[string]string) error {
	for name, value := range env {
		if !isVariable(name) {
			return fmt.Errorf("invalid environment variable name %q: letters, digits and underscores, not beginning with a digit", name)
		}
		if strings.ContainsRune(value, 0) {
			return fmt.Errorf("environment variable %s: its value contains a NUL byte", name)
		}
	}
	return nil
}

// isVariable reports whether a shell can have a variable of this name.
func isVariable(name string) bool {
	for i := range len(name) {
		switch c := name[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c == '_', c >= '0' && c <= '9' && i > 0:
		default:
			return false
		}
	}
	return name != ""
}
