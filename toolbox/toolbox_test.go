package toolbox_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/daytona-go/daytona/toolbox"
	"github.com/daytona-go/daytona/toolbox/account"
	"github.com/daytona-go/daytona/toolbox/wire"
)

// agent is one that serves on a Unix or TCP socket.
type agent struct {
	*http.Client
	t     *testing.T
	done  chan error // what Serve returned
	stop  func()
	log   *lockedBuffer
	token string
}

type lockedBuffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Write(p)
}

func start(t *testing.T, network string, config toolbox.Config) *agent {
	t.Helper()
	address := "127.0.0.1:0"
	if network == "unix" {
		dir, err := os.MkdirTemp("", "agent") // short: a socket's path has 107 bytes
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		address = filepath.Join(dir, "s")
	}
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	a := &agent{t: t, done: make(chan error, 1), log: &lockedBuffer{}, token: config.Token}
	if config.WorkDir == "" {
		config.WorkDir = t.TempDir()
	}
	s, err := toolbox.New(t.Context(), config, slog.New(slog.NewTextHandler(a.log, nil)))
	if err != nil {
		l.Close()
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	a.stop = cancel
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		a.done <- s.Serve(ctx, l)
	}()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, l.Addr().String())
	}}
	a.Client = &http.Client{Transport: transport}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		cancel()
		<-ended
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return a
}

// call returns status, header and body.
func (a *agent) call(method, path, body string, header ...string) (int, http.Header, []byte) {
	a.t.Helper()
	r, err := http.NewRequestWithContext(a.t.Context(), method, "http://agent"+path, strings.NewReader(body))
	if err != nil {
		a.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := a.Do(r)
	if err != nil {
		a.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		a.t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, b
}

func TestInfo(t *testing.T) {
	dir := t.TempDir()
	a := start(t, "unix", toolbox.Config{Version: "v1.2.3", WorkDir: dir + "/made/here", SandboxID: "sb-1", Env: map[string]string{"GREETING": "hello"}})
	for path, want := range map[string]string{
		"/version":       `{"version":"v1.2.3"}`,
		"/user-home-dir": `{"dir":"` + account.Current().Home + `"}`,
		"/work-dir":      `{"dir":"` + dir + `/made/here"}`,
		"/project-dir":   `{"dir":"` + dir + `/made/here"}`,
	} {
		if status, _, b := a.call("GET", path, ""); status != 200 || strings.TrimSpace(string(b)) != want {
			t.Errorf("%s: %d %s, want %s", path, status, b, want)
		}
	}
	result := func(command string) string {
		t.Helper()
		q, _ := json.Marshal(wire.ExecuteRequest{Command: command})
		status, _, b := a.call("POST", "/process/execute", string(q))
		var r wire.ExecuteResponse
		if err := json.Unmarshal(b, &r); err != nil || status != 200 || r.ExitCode != 0 {
			t.Fatalf("execute: %d %s", status, b)
		}
		return r.Result
	}
	if got, want := result("pwd; echo $GREETING $DAYTONA_SANDBOX_ID"), dir+"/made/here\nhello sb-1\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	// The environment changes for what starts later.
	if status, _, b := a.call("POST", "/env", `{"set":{"GREETING":"bye","S":"secret:1"},"unset":["DAYTONA_SANDBOX_ID"]}`); status != 200 {
		t.Errorf("env: %d %s", status, b)
	}
	if got, want := result("echo $GREETING $DAYTONA_SANDBOX_ID $S"), "bye secret:1\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if status, _, b := a.call("POST", "/env", `{"unsetValuePrefix":"secret:"}`); status != 200 {
		t.Errorf("env: %d %s", status, b)
	}
	if got, want := result("echo $GREETING $S"), "bye\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	for _, body := range []string{`{"set":{"A=B":"x"}}`, `{`, ``} {
		if status, _, _ := a.call("POST", "/env", body); status != 400 {
			t.Errorf("env %q: %d", body, status)
		}
	}
	if status, _, _ := a.call("POST", "/env", `{"unset":["`+strings.Repeat("x", 17<<20)+`"]}`); status != 413 {
		t.Errorf("a huge body: %d", status)
	}
	// One part's files are where another's programs look.
	a.call("POST", "/files/upload-v2?path=f&mode=0755", "#!/bin/sh\necho from a file\n", "Content-Type", "application/octet-stream")
	if got, want := result("./f"), "from a file\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestEntrypoint(t *testing.T) {
	dir := t.TempDir()
	a := start(t, "unix", toolbox.Config{WorkDir: dir, Entrypoint: []string{"/bin/sh", "-c", "echo up > ready; exec sleep 600"}})
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, err := os.Stat(dir + "/ready"); err == nil {
			break
		} else if time.Now().After(deadline) {
			t.Fatal("the entrypoint did not run")
		}
	}
	if status, _, b := a.call("GET", "/process/session/entrypoint", ""); status != 200 || !bytes.Contains(b, []byte("entrypoint_command")) {
		t.Errorf("%d %s", status, b)
	}
	start(t, "unix", toolbox.Config{Entrypoint: []string{"/no/such/program"}}).call("GET", "/version", "")
}

func TestConfigErrors(t *testing.T) {
	for name, c := range map[string]toolbox.Config{
		"user": {User: "no-such-user"}, "uid": {User: "-1"}, "env": {Env: map[string]string{"A-B": ""}}, "idle": {IdleTimeout: -1},
		"work dir": {WorkDir: "/dev/null/x"}, "NUL": {WorkDir: "/a\x00"},
	} {
		if s, err := toolbox.New(t.Context(), c, nil); err == nil {
			s.Close()
			t.Errorf("%s: taken", name)
		}
	}
}

func TestWorkDirIsTheUsers(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can act as another user")
	}
	dir := t.TempDir()
	s, err := toolbox.New(t.Context(), toolbox.Config{User: "65534:65534", WorkDir: dir + "/a/b"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	info, err := os.Stat(dir + "/a/b")
	if err != nil || info.Sys().(*syscall.Stat_t).Uid != 65534 {
		t.Errorf("%v, %v", info, err)
	}
}

var parameter = regexp.MustCompile(`\{[^}]*\}`)

// TestOperations asks for every operation of both generations of the API.
func TestOperations(t *testing.T) {
	f, err := os.Open("testdata/operations.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	a := start(t, "unix", toolbox.Config{Env: map[string]string{"DISPLAY": fmt.Sprintf(":%d", 60+os.Getpid()%500), "DAYTONA_RECORDINGS_DIR": t.TempDir()}})
	n := 0
	for scanner := bufio.NewScanner(f); scanner.Scan(); {
		method, path, ok := strings.Cut(scanner.Text(), " ")
		if !ok || method == "#" {
			continue
		}
		n++
		status, h, b := a.call(method, parameter.ReplaceAllString(path, "5000"), "")
		if status == 405 || status == 404 && bytes.Contains(b, []byte("there is no route")) || status == 500 {
			t.Errorf("%s %s: %d %s", method, path, status, b)
		}
		if status >= 400 && !strings.HasPrefix(h.Get("Content-Type"), "application/json") && !strings.HasPrefix(h.Get("Content-Type"), "text/plain") {
			t.Errorf("%s %s: %d with content type %s", method, path, status, h.Get("Content-Type"))
		}
		missing := strings.HasPrefix(path, "/git/") || strings.HasPrefix(path, "/lsp/") || strings.HasPrefix(path, "/process/interpreter/")
		if missing != (status == 501) || missing && !bytes.Contains(b, []byte(`"code":"NOT_SUPPORTED"`)) {
			t.Errorf("%s %s: %d %s", method, path, status, b)
		}
	}
	if n < 100 {
		t.Errorf("only %d operations in the list", n)
	}
}

func TestUnknownRoutes(t *testing.T) {
	a := start(t, "unix", toolbox.Config{})
	for _, c := range []struct {
		method, path, code, allow string
		status                    int
	}{
		{"GET", "/nothing", "NOT_FOUND", "", 404}, {"POST", "/", "NOT_FOUND", "", 404}, {"GET", "/files/nothing/at/all", "NOT_FOUND", "", 404},
		{"PUT", "/files", "METHOD_NOT_ALLOWED", "DELETE, GET, HEAD", 405}, {"GET", "/env", "METHOD_NOT_ALLOWED", "POST", 405},
	} {
		status, h, b := a.call(c.method, c.path, "")
		var e wire.ErrorResponse
		if err := json.Unmarshal(b, &e); err != nil || status != c.status || e.StatusCode != c.status || e.Code != c.code || e.Path != c.path || e.Method != c.method || h.Get("Allow") != c.allow {
			t.Errorf("%s %s: %d %v %s", c.method, c.path, status, h, b)
		}
	}
}

func TestToken(t *testing.T) {
	a := start(t, "tcp", toolbox.Config{Token: "the-token"})
	for _, h := range [][]string{
		{}, {"Authorization", "Bearer wrong"}, {"Authorization", "the-token"}, {"Authorization", "Basic the-token"}, {"Authorization", "Bearer"},
		{wire.HeaderAgentToken, "wrong"}, {wire.HeaderAgentToken, "wrong", "Authorization", "Bearer the-token"},
	} {
		if status, _, b := a.call("GET", "/version", "", h...); status != 401 || !bytes.Contains(b, []byte(`"code":"UNAUTHORIZED"`)) {
			t.Errorf("%q: %d %s", h, status, b)
		}
		if status, _, _ := a.call("GET", "/nothing", "", h...); status != 401 {
			t.Errorf("%q: the routes show", h)
		}
	}
	for _, h := range [][]string{{"Authorization", "Bearer the-token"}, {"Authorization", "bearer  the-token"}, {wire.HeaderAgentToken, "the-token"}} {
		if status, _, b := a.call("GET", "/version", "", h...); status != 200 {
			t.Errorf("%q: %d %s", h, status, b)
		}
	}
	// What is behind the proxy does not see it, but sees its own.
	seen := make(chan http.Header, 1)
	port := backend(t, func(w http.ResponseWriter, r *http.Request) { seen <- r.Header })
	a.call("GET", fmt.Sprintf("/proxy/%d/", port), "", wire.HeaderAgentToken, "the-token", "Authorization", "Bearer its-own")
	if h := <-seen; h.Get("Authorization") != "Bearer its-own" || strings.Contains(fmt.Sprint(h), "the-token") {
		t.Errorf("the program saw %v", h)
	}
	a.call("GET", fmt.Sprintf("/proxy/%d/", port), "", "Authorization", "Bearer the-token")
	if h := <-seen; strings.Contains(fmt.Sprint(h), "the-token") {
		t.Errorf("the program saw %v", h)
	}
	if status, _, _ := a.call("POST", "/init", `{"token":"another"}`, wire.HeaderAgentToken, "the-token"); status != 200 {
		t.Errorf("init: %d", status)
	}
	if status, _, _ := a.call("GET", "/version", "", wire.HeaderAgentToken, "the-token"); status != 401 {
		t.Errorf("the old token still works: %d", status)
	}
	if status, _, _ := a.call("GET", "/version", "", wire.HeaderAgentToken, "another"); status != 200 {
		t.Errorf("the new token does not work: %d", status)
	}
	if strings.Contains(a.log.String(), "the-token") {
		t.Error("the token is in the log")
	}
	// A Unix socket has its own protection.
	if status, _, _ := start(t, "unix", toolbox.Config{Token: "x"}).call("GET", "/version", ""); status != 200 {
		t.Errorf("unix socket: %d", status)
	}
	// A listener that others can reach needs a token.
	s, err := toolbox.New(t.Context(), toolbox.Config{WorkDir: t.TempDir()}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Serve(t.Context(), l); err == nil || !strings.Contains(err.Error(), "token") {
		t.Errorf("served without a token: %v", err)
	}
	if _, err := net.Dial("tcp", l.Addr().String()); err == nil {
		t.Error("the refused listener is still open")
	}
}

// backend is a program in the sandbox: an HTTP server on loopback.
func backend(t *testing.T, h http.HandlerFunc) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return l.Addr().(*net.TCPAddr).Port
}

func TestIdle(t *testing.T) {
	const timeout = 300 * time.Millisecond
	a := start(t, "unix", toolbox.Config{IdleTimeout: timeout})
	begin := time.Now()
	// A request that takes longer than the timeout keeps the sandbox up, and
	// so does an open WebSocket.
	if status, _, _ := a.call("POST", "/process/execute", `{"command":"sleep 0.7"}`); status != 200 {
		t.Errorf("status %d", status)
	}
	ws, _, err := websocket.Dial(t.Context(), "ws://agent"+wire.CommandPath+"?spec="+spec(`{"args":["sleep","0.7"]}`), &websocket.DialOptions{HTTPClient: a.Client})
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, _, err := ws.Read(t.Context()); err != nil {
			break
		}
	}
	busy := time.Since(begin)
	if busy < 1400*time.Millisecond {
		t.Errorf("requests took only %v", busy)
	}
	// One that says not to count does not.
	polled := make(chan struct{})
	go func() {
		defer close(polled)
		for range 100 {
			r, _ := http.NewRequest("GET", "http://agent/version", nil)
			r.Header.Set(wire.HeaderSkipActivity, "true")
			resp, err := a.Do(r)
			if err != nil {
				return
			}
			resp.Body.Close()
			time.Sleep(20 * time.Millisecond)
		}
	}()
	err = <-a.done
	a.done <- err
	if !errors.Is(err, toolbox.ErrIdle) || time.Since(begin) < busy+timeout {
		t.Errorf("ended after %v with %v", time.Since(begin), err)
	}
	<-polled
}

func spec(json string) string { return base64.RawURLEncoding.EncodeToString([]byte(json)) }

func TestTTL(t *testing.T) {
	a := start(t, "unix", toolbox.Config{TTL: 200 * time.Millisecond, IdleTimeout: time.Hour})
	begin := time.Now()
	err := <-a.done
	a.done <- err
	if !errors.Is(err, toolbox.ErrExpired) || time.Since(begin) > 5*time.Second {
		t.Errorf("ended after %v with %v", time.Since(begin), err)
	}
}

func TestStop(t *testing.T) {
	a := start(t, "unix", toolbox.Config{IdleTimeout: time.Hour})
	a.call("GET", "/version", "")
	a.stop()
	err := <-a.done
	a.done <- err
	if err != nil {
		t.Errorf("ended with %v", err)
	}
}

func TestProxy(t *testing.T) {
	a := start(t, "unix", toolbox.Config{})
	port := backend(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/events":
			fmt.Fprint(w, "first")
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		case "/ws":
			ws, err := websocket.Accept(w, r, nil)
			if err != nil {
				return
			}
			kind, b, err := ws.Read(r.Context())
			if err == nil {
				_ = ws.Write(r.Context(), kind, append([]byte("echo "), b...))
			}
			ws.Close(websocket.StatusNormalClosure, "")
		default:
			b, _ := io.ReadAll(r.Body)
			w.Header().Set("Location", "/elsewhere")
			w.WriteHeader(http.StatusTeapot)
			fmt.Fprintf(w, "%s %s %s %s %s", r.Method, r.RequestURI, r.Host, r.Header.Get("X-Forwarded-Host"), b)
		}
	})
	base := fmt.Sprintf("/proxy/%d", port)
	for path, want := range map[string]string{
		"/a//b/../c%2Fd?x=1;y": "/a//b/../c%2Fd?x=1;y", "/": "/", "": "/", "?q": "/?q", "/é%00": "/%C3%A9%00",
	} {
		status, h, b := a.call("PATCH", base+path, "body", "X-Forwarded-Host", "preview.example")
		if want = "PATCH " + want + " agent preview.example body"; status != 418 || string(b) != want || h.Get("Location") != "/elsewhere" {
			t.Errorf("%s: %d %v %q, want %q", path, status, h, b, want)
		}
	}
	// Streams are not held back.
	ctx, cancel := context.WithCancel(t.Context())
	r, _ := http.NewRequestWithContext(ctx, "GET", "http://agent"+base+"/events", nil)
	resp, err := a.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 5)
	if _, err := io.ReadFull(resp.Body, b); err != nil || string(b) != "first" {
		t.Errorf("%q, %v", b, err)
	}
	cancel()
	resp.Body.Close()
	ws, _, err := websocket.Dial(t.Context(), "ws://agent"+base+"/ws", &websocket.DialOptions{HTTPClient: a.Client})
	if err != nil {
		t.Fatal(err)
	}
	defer ws.CloseNow()
	if err := ws.Write(t.Context(), websocket.MessageText, []byte("hi")); err != nil {
		t.Fatal(err)
	}
	if _, b, err := ws.Read(t.Context()); err != nil || string(b) != "echo hi" {
		t.Errorf("%q, %v", b, err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := l.Addr().(*net.TCPAddr).Port
	l.Close()
	if status, _, b := a.call("GET", fmt.Sprintf("/proxy/%d/", closed), ""); status != 502 || !bytes.Contains(b, []byte(wire.CodeNotListening)) {
		t.Errorf("%d %s", status, b)
	}
	for _, bad := range []string{"0", "65536", "x", "-1", "127.0.0.1:80", ""} {
		if status, _, b := a.call("GET", "/proxy/"+bad+"/", ""); status != 400 {
			t.Errorf("port %q: %d %s", bad, status, b)
		}
	}
}
