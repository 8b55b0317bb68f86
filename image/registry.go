//go:build linux

package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

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

func fromRegistry(ctx context.Context, ref Reference, platform v1.Platform, opts *PullOptions) (*source, error) {
	var nameOpts []name.Option
	if opts.PlainHTTP {
		nameOpts = append(nameOpts, name.Insecure)
	}
	target := ref.base
	if ref.digest != "" {
		target += "@" + ref.digest
	} else {
		target += ":" + ref.tag
	}
	nref, err := name.ParseReference(target, nameOpts...)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalidReference, err)
	}
	remoteOpts := []remote.Option{remote.WithContext(ctx), remote.WithUserAgent("daytona"), remote.WithPlatform(platform)}
	switch {
	case opts.Auth != nil:
		remoteOpts = append(remoteOpts, remote.WithAuth(opts.Auth))
	case opts.Keychain != nil:
		remoteOpts = append(remoteOpts, remote.WithAuthFromKeychain(opts.Keychain))
	default:
		remoteOpts = append(remoteOpts, remote.WithAuthFromKeychain(authn.DefaultKeychain))
	}
	if opts.Transport != nil {
		remoteOpts = append(remoteOpts, remote.WithTransport(opts.Transport))
	}
	puller, err := remote.NewPuller(remoteOpts...)
	if err != nil {
		return nil, err
	}
	desc, err := puller.Get(ctx, nref)
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
	r := &registry{puller: puller, repo: nref.Context(), first: digest, firstRaw: desc.Manifest}
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
		return err
	}
	switch answer.StatusCode {
	case http.StatusNotFound:
		return fmt.Errorf("%w: the registry answered: %w", ErrNotFound, err)
	case http.StatusUnauthorized, http.StatusForbidden:
		return fmt.Errorf("%w: check the name and the credentials; the registry answered: %w", ErrUnauthorized, err)
	}
	return err
}
