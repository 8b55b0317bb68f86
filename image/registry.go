//go:build linux

package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// registry reads one repository.
type registry struct {
	puller *remote.Puller
	repo   name.Repository
	// The manifest that the reference led to; fetched once.
	first    v1.Hash
	firstRaw []byte
}

// endpoint is a place where the images of a registry are: itself, or a mirror.
type endpoint struct {
	mirror bool
	host   string
	prefix string // of repositories, with the slash at its end
	plain  bool
}

// parseMirror reads host[:port][/prefix], optionally with http:// or https:// before it.
func parseMirror(s string) (endpoint, error) {
	e := endpoint{mirror: true}
	rest := s
	if after, ok := strings.CutPrefix(s, "http://"); ok {
		rest, e.plain = after, true
	} else {
		rest = strings.TrimPrefix(s, "https://")
	}
	host, prefix, nested := strings.Cut(strings.TrimSuffix(rest, "/"), "/")
	if !reRegistry.MatchString(host) || (nested && !reRepository.MatchString(prefix)) {
		return e, fmt.Errorf("the mirror %s; want host[:port][/prefix], optionally after http:// or https://", quoted(s))
	}
	if e.host = host; nested {
		e.prefix = prefix + "/"
	}
	return e, nil
}

func parseMirrors(mirrors map[string][]string) (map[string][]endpoint, error) {
	parsed := map[string][]endpoint{}
	for registry, list := range mirrors {
		if !reRegistry.MatchString(registry) {
			return nil, fmt.Errorf("mirrors of %s: want the registry's host, like docker.io", quoted(registry))
		}
		for _, m := range list {
			e, err := parseMirror(m)
			if err != nil {
				return nil, fmt.Errorf("mirrors of %s: %w", registry, err)
			}
			parsed[registry] = append(parsed[registry], e)
		}
	}
	return parsed, nil
}

// endpoints lists where to look for a reference, the registry itself last.
func (s *Store) endpoints(ref Reference, opts *PullOptions) ([]endpoint, error) {
	mirrors := s.mirrors
	if opts.Mirrors != nil {
		var err error
		if mirrors, err = parseMirrors(opts.Mirrors); err != nil {
			return nil, fmt.Errorf("PullOptions.Mirrors: %w", err)
		}
	}
	return append(slices.Clone(mirrors[ref.Registry()]), endpoint{host: ref.Registry(), plain: opts.PlainHTTP}), nil
}

// access is what of PullOptions and PushOptions says how to talk to a registry.
type access struct {
	auth      authn.Authenticator
	keychain  authn.Keychain
	plainHTTP bool
	transport http.RoundTripper
	stall     time.Duration
}

func (o *PullOptions) access() access {
	return access{o.Auth, o.Keychain, o.PlainHTTP, o.Transport, o.StallTimeout}
}

// remoteOptions returns what go-containerregistry needs to know to talk to one host.
func (s *Store) remoteOptions(ctx context.Context, host string, a access) []remote.Option {
	var always []string
	if a.plainHTTP {
		always = append(always, host)
	}
	o := []remote.Option{
		remote.WithContext(ctx), remote.WithUserAgent("daytona"),
		remote.WithTransport(newWire(a.transport, a.stall, plainHosts(s.opts.PlainHTTP, always...), s.log)),
	}
	switch {
	case a.auth != nil:
		return append(o, remote.WithAuth(a.auth))
	case a.keychain != nil:
		return append(o, remote.WithAuthFromKeychain(a.keychain))
	}
	return append(o, remote.WithAuthFromKeychain(authn.DefaultKeychain))
}

func (s *Store) nameOptions(host string, plain bool) []name.Option {
	if plain || isLoopback(host) || slices.Contains(s.opts.PlainHTTP, host) {
		return []name.Option{name.Insecure}
	}
	return nil
}

// at returns how to read the reference's repository at an endpoint, without asking it anything.
func (s *Store) at(ctx context.Context, ref Reference, e endpoint, platform v1.Platform, opts *PullOptions) (*registry, name.Reference, error) {
	target := e.host + "/" + e.prefix + ref.Repository()
	if ref.digest != "" {
		target += "@" + ref.digest
	} else {
		target += ":" + ref.tag
	}
	nref, err := name.ParseReference(target, s.nameOptions(e.host, e.plain)...)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrInvalidReference, err)
	}
	a := opts.access()
	a.plainHTTP = e.plain
	if e.mirror {
		// The credentials of a registry are not its mirrors'.
		if a.auth != nil && a.keychain == nil {
			a.auth = authn.Anonymous
		} else {
			a.auth = nil
		}
	}
	puller, err := remote.NewPuller(append(s.remoteOptions(ctx, e.host, a), remote.WithPlatform(platform))...)
	if err != nil {
		return nil, nil, err
	}
	return &registry{puller: puller, repo: nref.Context()}, nref, nil
}

func (s *Store) fromRegistry(ctx context.Context, ref Reference, platform v1.Platform, opts *PullOptions) (*source, error) {
	endpoints, err := s.endpoints(ref, opts)
	if err != nil {
		return nil, err
	}
	for i, e := range endpoints {
		src, err := s.fromEndpoint(ctx, ref, e, platform, opts)
		last := i == len(endpoints)-1
		if err != nil && !last && ctx.Err() == nil {
			s.log.Warn("image store: a mirror does not help", "mirror", e.host, "image", ref, "error", err)
			continue
		}
		if err != nil {
			return nil, err
		}
		// A mirror that has the manifest may lack a layer, or break.
		for _, e := range endpoints[i+1:] {
			r, _, err := s.at(ctx, ref, e, platform, opts)
			if err != nil {
				return nil, err
			}
			for j, b := range src.layers {
				h, err := v1.NewHash(b.digest)
				if err != nil {
					return nil, err
				}
				src.layers[j].elsewhere = append(src.layers[j].elsewhere, func(ctx context.Context) (io.ReadCloser, error) {
					return r.blob(ctx, v1.Descriptor{Digest: h, Size: b.size})
				})
			}
		}
		return src, nil
	}
	panic("unreachable: the registry itself is an endpoint")
}

func (s *Store) fromEndpoint(ctx context.Context, ref Reference, e endpoint, platform v1.Platform, opts *PullOptions) (*source, error) {
	r, nref, err := s.at(ctx, ref, e, platform, opts)
	if err != nil {
		return nil, err
	}
	desc, err := r.puller.Get(ctx, nref)
	if err != nil {
		return nil, registryError(ctx, err)
	}
	digest := desc.Digest
	if ref.digest != "" {
		// Whatever the answer claims to be, it must be what was asked for.
		if digest, err = v1.NewHash(ref.digest); err != nil {
			return nil, err
		}
	}
	r.first, r.firstRaw = digest, desc.Manifest
	return sourceOf(ctx, r, v1.Descriptor{Digest: digest, MediaType: desc.MediaType, Size: desc.Size}, platform)
}

func (r *registry) document(ctx context.Context, d v1.Descriptor) ([]byte, error) {
	if d.Digest == r.first {
		return r.firstRaw, nil
	}
	desc, err := r.puller.Get(ctx, r.repo.Digest(d.Digest.String()))
	if err != nil {
		return nil, registryError(ctx, err)
	}
	return desc.Manifest, nil
}

// blob fetches from the repository only. Descriptors may list other addresses, which an image
// could use to make this machine send requests to anywhere.
func (r *registry) blob(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	layer, err := r.puller.Layer(ctx, r.repo.Digest(d.Digest.String()))
	if err != nil {
		return nil, registryError(ctx, err)
	}
	rc, err := layer.Compressed()
	if err != nil {
		return nil, registryError(ctx, err)
	}
	return verifyingReader{rc}, nil
}

// verifyingReader gives the failures of go-containerregistry's own check, which has an internal
// type, their kind.
type verifyingReader struct{ io.ReadCloser }

func (v verifyingReader) Read(p []byte) (int, error) {
	n, err := v.ReadCloser.Read(p)
	if err != nil && err != io.EOF && strings.HasPrefix(err.Error(), "error verifying ") {
		err = fmt.Errorf("%w: %w", ErrDigestMismatch, err)
	}
	return n, err
}

func (r *registry) remote() bool { return true }

// registryError gives the registry's answer its kind.
func registryError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	answer, ok := errors.AsType[*transport.Error](err)
	if !ok {
		if strings.Contains(err.Error(), "does not match requested digest") { // has no type
			return fmt.Errorf("%w: %w", ErrDigestMismatch, err)
		}
		for _, known := range []error{ErrUnavailable, ErrRateLimited, ErrDigestMismatch, ErrNotFound} {
			if errors.Is(err, known) {
				return err
			}
		}
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	switch answer.StatusCode {
	case http.StatusNotFound:
		return fmt.Errorf("%w: the registry answered: %w", ErrNotFound, err)
	case http.StatusUnauthorized, http.StatusForbidden:
		return fmt.Errorf("%w: check the name and the credentials; the registry answered: %w", ErrUnauthorized, err)
	case http.StatusTooManyRequests:
		return fmt.Errorf("%w: it answered: %w", ErrRateLimited, err)
	}
	if answer.StatusCode >= 500 {
		return fmt.Errorf("%w: it answered: %w", ErrUnavailable, err)
	}
	return err
}
