package remote_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/backend/backendtest"
	"github.com/daytona-go/daytona/backend/local"
	_ "github.com/daytona-go/daytona/backend/local/build"
	"github.com/daytona-go/daytona/backend/remote"
	"github.com/daytona-go/daytona/internal/registrytest"
	"github.com/daytona-go/daytona/server"
	"github.com/daytona-go/daytona/toolbox/reexec"
)

// A server to run the suites against; without it, they have one of their own.
const (
	urlVariable   = "DAYTONA_TEST_API_URL"
	keyVariable   = "DAYTONA_TEST_API_KEY"
	imageVariable = "DAYTONA_TEST_API_IMAGE" // what sandboxes are made from; a registry's
)

// service is a server that suites are run against.
type service struct {
	url, key, image string
	desktop         string          // an image with one; "" for none
	engine          *daytona.Client // of a server in this process
}

// endServer ends what inProcess has started.
var endServer = func() error { return nil }

// inProcess is a server with the local engine and a registry with the images of
// DAYTONA_TEST_IMAGES. All tests share it; TestMain ends it.
var inProcess = sync.OnceValues(func() (*service, error) {
	s, stop, err := serve(testImage("default"), testImage("desktop"))
	if err == nil {
		endServer = stop
	}
	return s, err
})

// serve starts a server in this process whose sandboxes are made from the image of
// an OCI layout, which a registry of this process has, as that with a desktop, if
// any; with "", from the files of this machine, and without limits.
func serve(image, desktop string) (_ *service, _ func() error, err error) {
	var undo []func() error
	stop := func() (err error) {
		for len(undo) > 0 {
			err = errors.Join(err, undo[len(undo)-1]())
			undo = undo[:len(undo)-1]
		}
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, stop())
		}
	}()
	dir, err := os.MkdirTemp("", "daytona-remote-")
	if err != nil {
		return nil, nil, err
	}
	undo = append(undo, func() error { return os.RemoveAll(dir) })
	log := slog.New(slog.DiscardHandler)
	if name := os.Getenv("DAYTONA_TEST_LOG"); name != "" {
		f, err := os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			return nil, nil, err
		}
		undo = append(undo, f.Close)
		log = slog.New(slog.NewTextHandler(f, nil))
	}
	ctx := context.Background()
	config := server.Config{Dir: filepath.Join(dir, "server"), Log: log, AllowedAddresses: []string{"localhost"}}
	if image != "" {
		images := registrytest.Start()
		undo = append(undo, func() error { images.Close(); return nil })
		if config.Defaults.Image, err = images.Push(ctx, "sandbox", image); err != nil {
			return nil, nil, err
		}
		if desktop != "" {
			if desktop, err = images.Push(ctx, "desktop", desktop); err != nil {
				return nil, nil, err
			}
		}
	} else {
		config.Unenforced = []string{"cpu", "memory", "disk"}
	}
	if config.Client, err = local.Open(ctx, &local.Options{Dir: filepath.Join(dir, "engine"), Logger: log}); err != nil {
		return nil, nil, err
	}
	undo = append(undo, config.Client.Close)
	h := httptest.NewUnstartedServer(nil)
	config.URL = "http://" + strings.Replace(h.Listener.Addr().String(), "127.0.0.1", "localhost", 1)
	srv, err := server.New(ctx, config)
	if err != nil {
		h.Listener.Close()
		return nil, nil, err
	}
	undo = append(undo, srv.Close)
	h.Config.Handler = srv
	h.Start()
	running, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- srv.Run(running) }()
	undo = append(undo, func() error {
		h.CloseClientConnections()
		h.Close()
		cancel()
		if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
			return err
		}
		return nil
	})
	s := &service{url: config.URL + "/api", key: srv.AdminKey(), image: config.Defaults.Image, desktop: desktop, engine: config.Client}
	if err := srv.Ready(ctx); err != nil {
		return nil, nil, err
	}
	return s, stop, s.await(ctx)
}

// await waits until sandboxes can be made from the default snapshot.
func (s *service) await(ctx context.Context) error {
	for ; ; time.Sleep(20 * time.Millisecond) {
		q, err := http.NewRequestWithContext(ctx, "GET", s.url+"/snapshots/default", nil)
		if err != nil {
			return err
		}
		q.Header.Set("Authorization", "Bearer "+s.key)
		r, err := http.DefaultClient.Do(q)
		if err != nil {
			return err
		}
		var v struct{ State, ErrorReason string }
		err = json.NewDecoder(io.LimitReader(r.Body, 1<<20)).Decode(&v)
		r.Body.Close()
		switch {
		case err != nil || v.State == "error":
			return fmt.Errorf("the default snapshot: %+v, %w", v, err)
		case v.State == "active":
			return nil
		}
	}
}

// leftovers are the sandboxes of the server's engine.
func (s *service) leftovers(ctx context.Context, _ string) (found []string, err error) {
	for sb, err := range s.engine.List(ctx, nil) {
		if err != nil {
			return nil, err
		}
		found = append(found, "the engine's sandbox "+sb.Name())
	}
	return found, nil
}

// testImage is the directory of one of the images, "" if it is not there.
func testImage(variant string) string {
	dir, _ := strings.CutPrefix(strings.TrimSuffix(backendtest.ImageNamed(os.Getenv("DAYTONA_TEST_IMAGES"), variant), ":"+variant), "oci:")
	return dir
}

// underTest is the server that the environment names, or else inProcess.
func underTest(t testing.TB) *service {
	if url := os.Getenv(urlVariable); url != "" {
		return &service{url: url, key: os.Getenv(keyVariable), image: os.Getenv(imageVariable)}
	}
	if os.Geteuid() != 0 {
		t.Skip("the server's engine has all that this takes as root only; set " + urlVariable + " and " + keyVariable)
	}
	if testImage("default") == "" {
		t.Skip("DAYTONA_TEST_IMAGES has no default image for the server's sandboxes")
	}
	s, err := inProcess()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func harness(t testing.TB) *backendtest.Harness {
	s := underTest(t)
	h := &backendtest.Harness{
		// All sandboxes of an organization are one backend's: the state says nothing.
		Open: func(context.Context, string) (daytona.Backend, error) {
			return remote.New(&remote.Options{URL: s.url, Key: s.key})
		},
		Spec:         daytona.Spec{Image: s.image},
		DesktopImage: s.desktop,
		Whole:        true,
		KeepsParents: true,
		Slow:         5,
		Lacks: map[backendtest.Capability]string{
			backendtest.TarImages:  "a server does not see files of this machine",
			backendtest.Registries: "a server has the credentials of registries, not its client",
			backendtest.Processes:  "the wire has no limit of processes",
			backendtest.Timers:     "the wire counts in minutes",
		},
	}
	if s.engine != nil {
		h.Label = "remote (local)"
		h.Leftovers = s.leftovers
	}
	return h
}

// TestMain is also the agent's helpers: the agents of these tests are in this process.
func TestMain(m *testing.M) {
	reexec.Main(os.Args[1:])
	code := backendtest.Main(m, &backendtest.Harness{})
	if err := endServer(); err != nil {
		fmt.Fprintln(os.Stderr, "the server's end:", err)
		code = 1
	}
	os.Exit(code)
}

func TestConformance(t *testing.T) { backendtest.RunConformance(t, harness(t)) }

func TestSecurity(t *testing.T) { backendtest.RunSecurity(t, harness(t)) }
