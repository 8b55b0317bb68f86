package server_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/backend/remote"
	"github.com/daytona-go/daytona/daytonatest"
	"github.com/daytona-go/daytona/server"
)

// newServer returns a server without a runner, which does not run.
func newServer(t *testing.T) *server.Server {
	t.Helper()
	s, err := server.New(t.Context(), server.Config{Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// running is a server that runs, at a URL.
type running struct {
	*server.Server
	URL, Key string
	stop     func()
}

// start starts a server whose runner has a client.
func start(t testing.TB, client *daytona.Client, change func(*server.Config)) *running {
	t.Helper()
	h := httptest.NewUnstartedServer(nil)
	url := "http://" + strings.Replace(h.Listener.Addr().String(), "127.0.0.1", "localhost", 1)
	c := server.Config{Dir: t.TempDir(), URL: url, Client: client, Log: slog.New(slog.NewTextHandler(logTo(), nil))}
	if change != nil {
		change(&c)
	}
	s, err := server.New(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	h.Config.Handler = s
	h.Start()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Run(ctx); err != nil && ctx.Err() == nil {
			t.Errorf("the server ended: %v", err)
		}
	})
	stop := sync.OnceFunc(func() {
		h.CloseClientConnections()
		h.Close()
		cancel()
		wg.Wait()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return &running{s, url, s.AdminKey(), stop}
}

// awaitRunner waits until the runner of the server has said that it is ready.
func (s *running) awaitRunner(t testing.TB) {
	t.Helper()
	if err := s.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// logTo is where the log of servers goes: the file that DAYTONA_TEST_LOG names.
func logTo() io.Writer {
	if name := os.Getenv("DAYTONA_TEST_LOG"); name != "" {
		if f, err := os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644); err == nil {
			return f
		}
	}
	return io.Discard
}

// TestReadyWithItsRunner: a server said that it was ready before the runner in its
// process was, and who then asked for a sandbox was told that there is no runner.
func TestReadyWithItsRunner(t *testing.T) {
	client := daytonatest.Client(t)
	const key = "a key of who balances load"
	s, err := server.New(t.Context(), server.Config{Dir: t.TempDir(), Client: client, Log: slog.New(slog.DiscardHandler), Services: server.ServicesConfig{HealthCheckKey: key}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	health := func() (int, string) {
		w := httptest.NewRecorder()
		q := httptest.NewRequest("GET", "http://localhost:3000/api/health/ready", nil)
		q.Header.Set("Authorization", "Bearer "+key)
		s.ServeHTTP(w, q)
		return w.Code, w.Body.String()
	}
	if status, text := health(); status != http.StatusServiceUnavailable || !strings.Contains(text, `"runner":{"status":"down"`) {
		t.Errorf("before its runner is: %d %s", status, text)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Run(ctx) })
	defer wg.Wait()
	defer cancel()
	if err := s.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	if status, text := health(); status != http.StatusOK || strings.Contains(text, "down") {
		t.Errorf("once its runner is: %d %s", status, text)
	}
}

// A sandbox that is made through the API by this library as its client lives
// as one does at a backend, and goes on while the server is away.
func TestLife(t *testing.T) {
	ctx := t.Context()
	local := daytonatest.Client(t)
	dir := t.TempDir()
	s := start(t, local, func(c *server.Config) { c.Dir = dir })
	if s.Key == "" {
		t.Fatal("the first start has no key")
	}
	s.awaitRunner(t)
	backend, err := remote.New(&remote.Options{URL: s.URL + "/api", Key: s.Key})
	if err != nil {
		t.Fatal(err)
	}
	c := daytona.New(backend)
	sb, err := c.Create(ctx, daytona.Spec{Name: "life", Labels: map[string]string{"a": "b"}, Persistent: true})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := sb.Process().Exec(ctx, "echo $((6*7)) | tee kept; sleep 300 >/dev/null 2>&1 &", nil); err != nil || r.Output != "42\n" {
		t.Fatalf("%+v %v", r, err)
	}
	if _, err := c.Create(ctx, daytona.Spec{Name: "life", Persistent: true}); !errors.Is(err, daytona.ErrConflict) {
		t.Errorf("a name that is taken: %v", err)
	}
	n := 0
	for info, err := range c.List(ctx, &daytona.Filter{Labels: map[string]string{"a": "b"}}) {
		if err != nil || info.Info().Name != "life" {
			t.Errorf("%v %v", info, err)
		}
		n++
	}
	if n != 1 {
		t.Errorf("%d are listed", n)
	}
	// Another server of the same directory: it gives no key, and knows the sandbox.
	s.stop()
	s2 := start(t, local, func(c *server.Config) { c.Dir = dir })
	if s2.Key != "" {
		t.Error("a later start has a key")
	}
	if backend, err = remote.New(&remote.Options{URL: s2.URL + "/api", Key: s.Key}); err != nil {
		t.Fatal(err)
	}
	c = daytona.New(backend)
	if sb, err = c.Get(ctx, "life"); err != nil {
		t.Fatal(err)
	}
	if r, err := sb.Process().Exec(ctx, "cat kept; pgrep -c sleep", nil); err != nil || r.Output != "42\n1\n" {
		t.Errorf("after a restart of the server: %+v %v", r, err)
	}
	if err := sb.Stop(ctx, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := sb.Process().Exec(ctx, "true", nil); err == nil {
		t.Error("a stopped sandbox runs programs")
	}
	if err := sb.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if r, err := sb.Process().Exec(ctx, "cat kept", nil); err != nil || r.Output != "42\n" {
		t.Errorf("after a stop: %+v %v", r, err)
	}
	if err := sb.Delete(ctx); err != nil {
		t.Fatal(err)
	}
	for _, err := range local.List(ctx, nil) {
		t.Errorf("the runner has something left: %v", err)
	}
	wrong, err := remote.New(&remote.Options{URL: s2.URL + "/api", Key: "dtn_wrong"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := daytona.New(wrong).Get(ctx, "life"); !errors.Is(err, daytona.ErrUnauthorized) {
		t.Errorf("a wrong key: %v", err)
	}
}
