package client_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/toolbox/account"
	"github.com/daytona-go/daytona/toolbox/client"
	"github.com/daytona-go/daytona/toolbox/filesystem"
)

// serve serves h on a Unix socket and returns a toolbox for it.
func serve(t testing.TB, h http.Handler, opts *client.Options) daytona.Toolbox {
	t.Helper()
	socket := socketPath(t)
	stop := listen(t, socket, h)
	t.Cleanup(stop)
	tb := client.New(dialer(socket), opts)
	t.Cleanup(func() { tb.Close() })
	return tb
}

func socketPath(t testing.TB) string {
	t.Helper()
	// Not t.TempDir: socket paths must be short.
	dir, err := os.MkdirTemp("", "tb")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "s")
}

func dialer(socket string) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}
}

// listen serves h on a socket until stop, which breaks all connections.
func listen(t testing.TB, socket string, h http.Handler) (stop func()) {
	t.Helper()
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h}
	done := make(chan struct{})
	go func() { defer close(done); srv.Serve(l) }()
	return func() { srv.Close(); <-done }
}

// fileAgent serves the real file routes, relative to a fresh directory.
func fileAgent(t testing.TB) (daytona.FileSystem, string) {
	t.Helper()
	dir := t.TempDir()
	service, err := filesystem.New(filesystem.Options{Account: account.Current(), WorkDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	service.Register(mux)
	return serve(t, mux, nil).FileSystem(), dir
}

func wantKind(t *testing.T, err error, kind daytona.Kind) {
	t.Helper()
	if err == nil || daytona.KindOf(err) != kind {
		t.Fatalf("error %v has kind %q, want %q", err, daytona.KindOf(err), kind)
	}
	if _, ok := errors.AsType[*daytona.Error](err); !ok {
		t.Fatalf("error %v (%T) is no *daytona.Error", err, err)
	}
}
