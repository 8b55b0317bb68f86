//go:build linux

package docker_test

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
	"github.com/daytona-go/daytona/backend/plugin"
)

// servePlugin as the test binary's only argument makes it the plugin.
const servePlugin = "daytona-docker-test-plugin"

func servePluginMain() {
	err := plugin.ServeFunc(func(ctx context.Context, config url.Values) (daytona.Backend, error) {
		return docker.New(ctx, &docker.Options{Dir: config.Get("dir"), Image: config.Get("image"), Logger: slog.Default()})
	})
	if err != nil {
		log.Fatal(err)
	}
	os.Exit(0)
}

// pluginHarness describes the backend in a process of its own, to which nothing
// changes but how it is opened.
func pluginHarness() *backendtest.Harness {
	h := harness()
	h.Label = "plugin (docker)"
	h.Open = func(ctx context.Context, state string) (daytona.Backend, error) {
		return plugin.New(ctx, &plugin.Options{
			Path: os.Args[0], Args: []string{servePlugin}, Config: url.Values{"dir": {state}, "image": {sandboxImage()}},
			Env:    []string{"DOCKER_HOST=" + os.Getenv("DOCKER_HOST"), "DOCKER_CONFIG=" + os.Getenv("DOCKER_CONFIG")},
			Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
		})
	}
	return h
}

// TestPluginConformance: the programs that use a backend cannot tell whether it
// is a plugin.
func TestPluginConformance(t *testing.T) {
	if why := missing(); why != "" {
		t.Skip(why)
	}
	backendtest.RunConformance(t, pluginHarness())
}
