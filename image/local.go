package image

import (
	"errors"
	"fmt"
	"io/fs"
	"runtime"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Open reads an image that is a file or a directory of this machine, for an
// engine that unpacks it itself. A tarball is an image of one layer, for this
// program's platform; from several, the one of that platform is chosen. What is
// not there is [ErrNotFound]; images of a registry, and dir:, are
// [errors.ErrUnsupported].
func (r Reference) Open() (v1.Image, error) {
	img, err := r.open()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	return img, err
}

func (r Reference) open() (v1.Image, error) {
	switch r.scheme {
	case SchemeDockerArchive:
		var tag *name.Tag
		if r.tag != "" {
			t, err := name.NewTag(r.tag)
			if err != nil {
				return nil, fmt.Errorf("%w: %w", ErrInvalidReference, err)
			}
			tag = &t
		}
		return tarball.ImageFromPath(r.Path(), tag)
	case SchemeTar:
		layer, err := tarball.LayerFromFile(r.Path())
		if err != nil {
			return nil, err
		}
		img, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{OS: "linux", Architecture: runtime.GOARCH, RootFS: v1.RootFS{Type: "layers"}})
		if err != nil {
			return nil, err
		}
		return mutate.AppendLayers(img, layer)
	case SchemeOCI:
		index, err := layout.ImageIndexFromPath(r.Path())
		if err != nil {
			return nil, err
		}
		manifest, err := index.IndexManifest()
		if err != nil {
			return nil, err
		}
		platform, err := wantPlatform("")
		if err != nil {
			return nil, err
		}
		d, err := chooseInLayout(manifest.Manifests, r, platform)
		if err != nil {
			return nil, err
		}
		for _, m := range manifest.Manifests {
			if m.Digest == d.Digest {
				d = m // where only the digest was asked for
			}
		}
		if !d.MediaType.IsIndex() {
			return index.Image(d.Digest)
		}
		nested, err := index.ImageIndex(d.Digest)
		if err != nil {
			return nil, err
		}
		if manifest, err = nested.IndexManifest(); err != nil {
			return nil, err
		}
		if d, err = choose(manifest.Manifests, platform); err != nil {
			return nil, err
		}
		return nested.Image(d.Digest)
	}
	return nil, fmt.Errorf("%w: %s is not an image of this machine", errors.ErrUnsupported, r)
}
