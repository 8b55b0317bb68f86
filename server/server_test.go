package server_test

import (
	"context"
	"io"
	"log/slog"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/daytona-go/daytona"
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
	t.Cleanup(func() {
		h.CloseClientConnections()
		h.Close()
		cancel()
		wg.Wait()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return &running{s, url, s.AdminKey()}
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
