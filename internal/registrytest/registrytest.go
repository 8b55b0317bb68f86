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
type Registry struct {
	// Image is the reference of the image that it was started with.
	Image  string
	server *httptest.Server
}

// Serve starts a registry with the first image of the OCI layout in dir. The
// caller must Close it.
func Serve(ctx context.Context, dir string) (*Registry, error) {
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return nil, err
	}
	m, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	if len(m.Manifests) == 0 {
		return nil, errors.New(dir + " has no image")
	}
	img, err := index.Image(m.Manifests[0].Digest)
	if err != nil {
		return nil, err
	}
	r := &Registry{server: httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))}
	r.Image = "localhost:" + r.server.URL[strings.LastIndex(r.server.URL, ":")+1:] + "/sandbox:1"
	ref, err := name.ParseReference(r.Image)
	if err == nil {
		err = remote.Write(ref, img, remote.WithContext(ctx))
	}
	if err != nil {
		r.Close()
		return nil, fmt.Errorf("push %s: %w", dir, err)
	}
	return r, nil
}

// Close ends the registry and forgets what was pushed to it.
func (r *Registry) Close() { r.server.Close() }
