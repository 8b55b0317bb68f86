// Package registrytest serves images to tests from a registry of this process.
package registrytest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// Registry is a registry on the loopback interface, without TLS and passwords.
type Registry struct{ server *httptest.Server }

// Start starts a registry without images. The caller must Close it.
func Start() *Registry {
	return &Registry{httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))}
}

// Push puts the first image of the OCI layout in dir into a repository, and returns
// its reference.
func (r *Registry) Push(ctx context.Context, repository, dir string) (string, error) {
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return "", err
	}
	m, err := index.IndexManifest()
	if err != nil {
		return "", err
	}
	if len(m.Manifests) == 0 {
		return "", errors.New(dir + " has no image")
	}
	img, err := index.Image(m.Manifests[0].Digest)
	if err != nil {
		return "", err
	}
	text := "localhost:" + r.server.URL[strings.LastIndex(r.server.URL, ":")+1:] + "/" + repository + ":1"
	ref, err := name.ParseReference(text)
	if err == nil {
		err = remote.Write(ref, img, remote.WithContext(ctx))
	}
	if err != nil {
		return "", fmt.Errorf("push %s: %w", dir, err)
	}
	return text, nil
}

// Close ends the registry and forgets what was pushed to it.
func (r *Registry) Close() { r.server.Close() }
