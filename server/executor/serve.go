package executor

import (
	"bufio"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/wire"
)

const (
	// tunnelProtocol is what the Upgrade header of a tunnel says.
	tunnelProtocol = "daytona-tunnel"
	headerKey      = "X-Daytona-Authorization"
	// idleAgent is how long a connection to an agent is kept: less than the
	// agent keeps it.
	idleAgent = 15 * time.Second
	maxBody   = 8 << 20
)

// Handler is the runner's own HTTP surface, for the proxy, the SSH gateway and
// who steers runners without jobs. All of it but GET / takes the runner's key
// or the one that [runnerkey.Access] makes of it.
func (e *Executor) Handler() http.Handler {
	m := http.NewServeMux()
	m.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		answerJSON(w, http.StatusOK, map[string]string{"status": "ok", "version": e.c.Version})
	})
	handle := func(pattern string, h func(w http.ResponseWriter, r *http.Request) error) {
		m.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if !e.admit(r) {
				answerError(w, r, &daytona.Error{Kind: daytona.KindUnauthorized, Message: "Invalid credentials"})
				return
			}
			if err := h(w, r); err != nil {
				answerError(w, r, err)
			}
		})
	}
	handle("GET /info", e.serveInfo)
	handle("GET /metrics", e.serveMetrics)
	handle("GET /snapshots/logs", e.serveLogs)
	handle("GET /sandboxes/{id}", e.serveState)
	handle("GET /sandboxes/{id}/connect", e.serveTunnel)
	handle("/sandboxes/{id}/toolbox/{path...}", e.serveToolbox)
	// The control of runners that do not ask for jobs: the same jobs.
	handle("POST /sandboxes", e.serveCreate)
	for action, jobType := range map[string]string{
		"start": wire.JobTypeStartSandbox, "stop": wire.JobTypeStopSandbox, "destroy": wire.JobTypeDestroySandbox, "resize": wire.JobTypeResizeSandbox,
		"recover": wire.JobTypeRecoverSandbox, "backup": wire.JobTypeCreateBackup, "network-settings": wire.JobTypeUpdateSandboxNetworkSettings,
	} {
		handle("POST /sandboxes/{id}/"+action, func(w http.ResponseWriter, r *http.Request) error {
			return e.serveJob(w, r, jobType, r.PathValue("id"), http.StatusOK)
		})
	}
	return m
}

// admit reports whether a request has one of the keys, and takes it away: it is
// not for the sandbox.
func (e *Executor) admit(r *http.Request) bool {
	from := headerKey
	if r.Header.Get(from) == "" {
		from = "Authorization"
	}
	scheme, given, _ := strings.Cut(r.Header.Get(from), " ")
	r.Header.Del(from)
	ok := 0
	sum := sha256.Sum256([]byte(strings.TrimSpace(given)))
	for _, key := range e.keys {
		have := sha256.Sum256([]byte(key))
		ok |= subtle.ConstantTimeCompare(sum[:], have[:])
	}
	return ok == 1 && strings.EqualFold(scheme, "Bearer")
}

func answerJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v)
}

func answerError(w http.ResponseWriter, r *http.Request, err error) {
	status := daytona.KindOf(err).HTTPStatus()
	message := err.Error()
	if f := failure(err); f != message { // as the API wants recoverable ones
		status, message = http.StatusBadRequest, f
	}
	answerJSON(w, status, &wire.Error{
		Path: r.URL.Path, Timestamp: wire.Stamp(time.Now()), StatusCode: status, Error: http.StatusText(status), Message: message,
	})
}

func (e *Executor) serveInfo(w http.ResponseWriter, r *http.Request) error {
	h := e.health(r.Context())
	answerJSON(w, http.StatusOK, map[string]any{"metrics": h.Metrics, "serviceHealth": h.ServiceHealth, "appVersion": h.AppVersion})
	return nil
}

// serveMetrics writes the figures as Prometheus reads them.
func (e *Executor) serveMetrics(w http.ResponseWriter, r *http.Request) error {
	m, err := e.metrics(r.Context())
	if err != nil {
		return err
	}
	e.mu.Lock()
	running := len(e.known) - len(e.finished)
	e.mu.Unlock()
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	for _, g := range []struct {
		name, help string
		value      float64
	}{
		{"cpu_cores", "CPU cores of the machine.", m.CPU},
		{"cpu_usage_ratio", "How busy they are.", m.CurrentCPUUsagePercentage / 100},
		{"load1", "Load average of a minute.", m.CurrentCPULoadAverage},
		{"memory_bytes", "Memory of the machine.", m.MemoryGiB * daytona.GiB},
		{"memory_usage_ratio", "Memory that is in use.", m.CurrentMemoryUsagePercentage / 100},
		{"disk_bytes", "Size of the file system with the sandboxes.", m.DiskGiB * daytona.GiB},
		{"disk_usage_ratio", "How full it is.", m.CurrentDiskUsagePercentage / 100},
		{"allocated_cpu_cores", "CPU cores that running sandboxes may use.", m.CurrentAllocatedCPU},
		{"allocated_memory_bytes", "Memory that running sandboxes may use.", m.CurrentAllocatedMemoryGiB * daytona.GiB},
		{"allocated_disk_bytes", "Disk that sandboxes may use.", m.CurrentAllocatedDiskGiB * daytona.GiB},
		{"snapshots", "Snapshots on this machine.", m.CurrentSnapshotCount},
		{"sandboxes_started", "Sandboxes that run.", m.CurrentStartedSandboxes},
		{"jobs_running", "Jobs that have begun and not ended.", float64(running)},
	} {
		fmt.Fprintf(w, "# HELP daytona_runner_%s %s\n# TYPE daytona_runner_%s gauge\ndaytona_runner_%s %g\n", g.name, g.help, g.name, g.name, g.value)
	}
	return nil
}

func (e *Executor) serveState(w http.ResponseWriter, r *http.Request) error {
	sb, err := e.find(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	info := sb.Info()
	answerJSON(w, http.StatusOK, map[string]any{
		"state": info.State, "backupState": "", "backupError": "", "backupSnapshot": "", "daemonVersion": e.c.Version, "recoverable": info.State == daytona.StateError,
	})
	return nil
}

func (e *Executor) serveCreate(w http.ResponseWriter, r *http.Request) error {
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		return &daytona.Error{Kind: daytona.KindInvalid, Message: "the body can't be read", Err: err}
	}
	var p wire.JobSandbox
	if err := json.Unmarshal(data, &p); err != nil || !daytona.ValidName(p.ID) {
		return &daytona.Error{Kind: daytona.KindInvalid, Message: "the body must be a sandbox with an id"}
	}
	r.Body = io.NopCloser(strings.NewReader(string(data)))
	return e.serveJob(w, r, wire.JobTypeCreateSandbox, p.ID, http.StatusCreated)
}

// serveJob does a job for who waits for it.
func (e *Executor) serveJob(w http.ResponseWriter, r *http.Request, jobType, id string, status int) error {
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		return &daytona.Error{Kind: daytona.KindInvalid, Message: "the body can't be read", Err: err}
	}
	unlock, err := e.lock(r.Context(), id)
	if err != nil {
		return err
	}
	defer unlock()
	defer e.touch(id)
	result, err := e.guarded(r.Context(), wire.Job{ID: "direct", Type: jobType, ResourceID: id, Payload: new(string(data))})
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	if result == nil {
		result = new("{}")
	}
	io.WriteString(w, *result)
	return nil
}

func (e *Executor) serveLogs(w http.ResponseWriter, r *http.Request) error {
	follow, _ := strconv.ParseBool(r.URL.Query().Get("follow"))
	logs, err := e.Logs(r.Context(), r.URL.Query().Get("snapshotRef"), follow)
	if err != nil {
		return err
	}
	defer logs.Close()
	w.Header().Set("Content-Type", "application/octet-stream")
	w.WriteHeader(http.StatusOK)
	c := http.NewResponseController(w)
	c.Flush()
	for buffer := make([]byte, 32<<10); ; {
		n, err := logs.Read(buffer)
		if n > 0 {
			if _, err := w.Write(buffer[:n]); err != nil {
				return nil // it has gone
			}
			c.Flush()
		}
		if err != nil {
			return nil
		}
	}
}

// proxyTransport reaches agents: the host of a URL is the sandbox's id.
func (e *Executor) proxyTransport() *http.Transport {
	return &http.Transport{
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			id, _, err := net.SplitHostPort(addr)
			if err != nil {
				return nil, err
			}
			return e.Dial(ctx, id)
		},
		DisableCompression: true, MaxIdleConnsPerHost: 16, IdleConnTimeout: idleAgent,
	}
}

func (e *Executor) serveToolbox(w http.ResponseWriter, r *http.Request) error {
	id := r.PathValue("id")
	if !daytona.ValidName(id) {
		return errNone(id)
	}
	_, rest, _ := strings.Cut(r.URL.EscapedPath(), "/toolbox/")
	path, err := url.PathUnescape("/" + rest)
	if err != nil {
		return &daytona.Error{Kind: daytona.KindInvalid, Message: "the path can't be read"}
	}
	p := &httputil.ReverseProxy{
		Transport:     e.proxy,
		FlushInterval: -1,
		Rewrite: func(p *httputil.ProxyRequest) {
			p.Out.URL.Scheme, p.Out.URL.Host, p.Out.Host = "http", id, "sandbox"
			p.Out.URL.Path, p.Out.URL.RawPath = path, "/"+rest
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			if _, ok := errors.AsType[*daytona.Error](err); !ok {
				err = &daytona.Error{Kind: daytona.KindUnavailable, Message: "the sandbox's agent does not answer", Err: err}
			}
			answerError(w, r, err)
		},
	}
	p.ServeHTTP(w, r)
	return nil
}

// serveTunnel makes a connection of a request: to the agent, or to a port.
func (e *Executor) serveTunnel(w http.ResponseWriter, r *http.Request) error {
	if !strings.EqualFold(r.Header.Get("Upgrade"), tunnelProtocol) {
		return &daytona.Error{Kind: daytona.KindInvalid, Message: "the request must have the header Upgrade: " + tunnelProtocol}
	}
	id := r.PathValue("id")
	var inner net.Conn
	var err error
	if text := r.URL.Query().Get("port"); text != "" {
		port, convErr := strconv.Atoi(text)
		if convErr != nil || port < 1 || port > 65535 {
			return &daytona.Error{Kind: daytona.KindInvalid, Field: "port", Value: text, Message: "must be a port"}
		}
		inner, err = e.DialPort(r.Context(), id, port)
	} else {
		inner, err = e.Dial(r.Context(), id)
	}
	if err != nil {
		return err
	}
	outer, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		inner.Close()
		return &daytona.Error{Kind: daytona.KindInvalid, Message: "a tunnel takes HTTP/1.1", Err: err}
	}
	outer.SetDeadline(time.Time{})
	if _, err := io.WriteString(outer, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+tunnelProtocol+"\r\n\r\n"); err != nil {
		outer.Close()
		inner.Close()
		return nil
	}
	// Whoever serves may end before a tunnel does by itself.
	defer context.AfterFunc(r.Context(), func() { outer.Close(); inner.Close() })()
	splice(outer, buffered.Reader, inner)
	return nil
}

// splice passes bytes in both directions until both have ended, or one of them
// with an error.
func splice(outer net.Conn, early *bufio.Reader, inner net.Conn) {
	defer outer.Close()
	defer inner.Close()
	done := make(chan error, 2)
	pass := func(to net.Conn, from io.Reader) {
		_, err := io.Copy(to, from)
		if err == nil {
			// The other direction may go on.
			if c, ok := to.(interface{ CloseWrite() error }); ok {
				err = c.CloseWrite()
			} else {
				err = net.ErrClosed
			}
		}
		done <- err
	}
	var from io.Reader = outer
	if n := early.Buffered(); n > 0 {
		from = io.MultiReader(io.LimitReader(early, int64(n)), outer)
	}
	go pass(inner, from)
	go pass(outer, inner)
	if <-done == nil {
		<-done
	}
}
