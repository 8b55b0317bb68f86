//go:build linux

// Package plugintest_test runs the suites on the docker backend in a process of
// its own. It is a package of its own to run beside the tests of the backend,
// which take as long.
package plugintest_test

import (
	"context"
	"log"
	"log/slog"
	"net/url"
	"os"
	"testing"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/backend/backendtest"
	"github.com/daytona-go/daytona/backend/docker"
	suites "github.com/daytona-go/daytona/backend/docker/internal/harness"
	"github.com/daytona-go/daytona/backend/plugin"
)

// servePlugin as the test binary's only argument makes it the plugin.
const servePlugin = "daytona-docker-test-plugin"

func serve() {
	err := plugin.ServeFunc(func(ctx context.Context, config url.Values) (daytona.Backend, error) {
		return docker.New(ctx, &docker.Options{Dir: config.Get("dir"), Image: config.Get("image"), Logger: slog.Default()})
	})
	if err != nil {
		log.Fatal(err)
	}
	os.Exit(0)
}

// harness describes the backend behind a plugin: nothing changes but how it is
// opened.
func harness() *backendtest.Harness {
	image := suites.Image(os.Getenv(suites.ImagesVariable))
	h := suites.New(os.Getenv(suites.ImagesVariable), "")
	h.Label = "plugin (docker)"
	h.Open = func(ctx context.Context, state string) (daytona.Backend, error) {
		return plugin.New(ctx, &plugin.Options{
			Path: os.Args[0], Args: []string{servePlugin}, Config: url.Values{"dir": {state}, "image": {image}},
			Env:    []string{"DOCKER_HOST=" + os.Getenv("DOCKER_HOST"), "DOCKER_CONFIG=" + os.Getenv("DOCKER_CONFIG")},
			Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
		})
	}
	return h
}

func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == servePlugin {
		serve()
	}
	os.Exit(backendtest.Main(m, harness()))
}

// TestConformance: the programs that use a backend cannot tell whether it is a
// plugin.
func TestConformance(t *testing.T) {
	if why := suites.Missing(os.Getenv(suites.ImagesVariable)); why != "" {
		t.Skip(why)
	}
	backendtest.RunConformance(t, harness())
}
