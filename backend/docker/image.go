//go:build linux

package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/client"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/image"
	"github.com/daytona-go/daytona/internal/lifecycle"
)

// importName is what images are called that did not come from a registry.
const importName = "daytona.local/import"

// prepare sees to it that the engine has the image, and puts into the record
// what the image decides.
func (b *backend) prepare(ctx context.Context, r *record, progress func(daytona.Progress)) error {
	const op = lifecycle.CreateOp
	ref, err := image.ParseReference(r.Image)
	if err != nil {
		return &daytona.Error{Kind: daytona.KindInvalid, Op: op, Field: "Image", Value: r.Image, Err: err}
	}
	if progress == nil {
		progress = func(daytona.Progress) {}
	}
	refuse := func(kind daytona.Kind, message string, err error) error {
		return &daytona.Error{Kind: kind, Op: op, Field: "Image", Value: r.Image, Message: message, Err: err}
	}
	tag := ref.String()
	switch ref.Scheme() {
	case image.SchemeRegistry:
		tag = strings.TrimPrefix(tag, "docker://")
	case image.SchemeDir:
		return refuse(daytona.KindUnsupported, "a container cannot be made of a directory in place: give a tarball or an image", nil)
	default:
		progress(daytona.Progress{Stage: "importing " + r.Image})
		if tag, err = b.load(ctx, ref); err != nil {
			return lifecycle.ImageError(op, r.Image, err)
		}
	}
	found, err := b.api.ImageInspect(ctx, tag)
	if errdefs.IsNotFound(err) && ref.Scheme() == image.SchemeRegistry {
		if err := b.pull(ctx, tag, r.Image, progress); err != nil {
			return err
		}
		found, err = b.api.ImageInspect(ctx, tag)
	}
	if err != nil {
		return b.explain(op, r.Image, err)
	}
	r.Own.Image = found.ID
	if c := found.Config; c != nil {
		r.Own.Config = image.Config{Env: c.Env, Entrypoint: c.Entrypoint, Cmd: c.Cmd, WorkingDir: c.WorkingDir, User: c.User}
	}
	r.User, r.Own.AddUser = lifecycle.UserOf(r.SpecUser, r.Own.Config)
	r.WorkDir = r.SpecWorkDir
	if r.WorkDir == "" {
		r.WorkDir = r.Own.Config.WorkingDir
	}
	r.Entrypoint = lifecycle.EntrypointOf(r.Entrypoint, r.Own.Config)
	return nil
}

// pull has the engine fetch an image.
func (b *backend) pull(ctx context.Context, tag, asked string, progress func(daytona.Progress)) error {
	fail := func(err error) error {
		kind := daytona.KindUnavailable
		text := err.Error()
		switch {
		case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
			return err
		case errdefs.IsNotFound(err), strings.Contains(text, "not found"), strings.Contains(text, "does not exist"):
			kind = daytona.KindNotFound
		case errdefs.IsUnauthorized(err), errdefs.IsPermissionDenied(err):
			kind = daytona.KindUnauthorized
		case errdefs.IsInvalidArgument(err):
			kind = daytona.KindInvalid
		default:
			// The engine cannot reach the registry: so the image is not to be had.
			kind = daytona.KindNotFound
		}
		return &daytona.Error{Kind: kind, Op: lifecycle.CreateOp, Field: "Image", Value: asked, Message: "the Docker engine cannot pull it", Err: err}
	}
	resp, err := b.api.ImagePull(ctx, tag, client.ImagePullOptions{})
	if err != nil {
		return fail(err)
	}
	defer resp.Close()
	layers := map[string][2]int64{}
	for m, err := range resp.JSONMessages(ctx) {
		if err != nil {
			return fail(err)
		}
		if m.Error != nil {
			return fail(m.Error)
		}
		if m.Progress != nil && m.ID != "" {
			layers[m.ID] = [2]int64{m.Progress.Current, m.Progress.Total}
		}
		p := daytona.Progress{Stage: "pulling " + asked}
		for _, l := range layers {
			p.Done += l[0]
			p.Total += l[1]
		}
		progress(p)
	}
	return nil
}

// load gives the engine an image that is a file or a directory of this machine,
// unless it has it already.
func (b *backend) load(ctx context.Context, ref image.Reference) (tag string, err error) {
	img, err := b.open(ref)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%w: %w", image.ErrNotFound, err)
	}
	if err != nil {
		return "", err
	}
	id, err := img.ConfigName()
	if err != nil {
		return "", err
	}
	tag = importName + ":" + id.Hex
	if _, err := b.api.ImageInspect(ctx, tag); err == nil {
		return tag, nil
	}
	named, err := name.NewTag(tag)
	if err != nil {
		return "", err
	}
	r, w := io.Pipe()
	go func() { w.CloseWithError(tarball.Write(named, img, w)) }()
	defer r.Close()
	resp, err := b.api.ImageLoad(ctx, r, client.ImageLoadWithQuiet(true))
	if err != nil {
		return "", err
	}
	defer resp.Close()
	// What is wrong with the archive, the engine says in its progress.
	for d := json.NewDecoder(resp); ; {
		var m jsonstream.Message
		if err := d.Decode(&m); err == io.EOF {
			return tag, nil
		} else if err != nil {
			return "", fmt.Errorf("import the image: %w", err)
		}
		if m.Error != nil {
			return "", fmt.Errorf("%w: the Docker engine does not take it: %w", image.ErrUnsafeLayer, m.Error)
		}
	}
}

// open reads an image that is a file or a directory of this machine.
func (b *backend) open(ref image.Reference) (v1.Image, error) {
	switch ref.Scheme() {
	case image.SchemeDockerArchive:
		return tarball.ImageFromPath(ref.Path(), nil)
	case image.SchemeTar:
		layer, err := tarball.LayerFromFile(ref.Path())
		if err != nil {
			return nil, err
		}
		return mutate.AppendLayers(empty.Image, layer)
	case image.SchemeOCI:
		index, err := layout.ImageIndexFromPath(ref.Path())
		if err != nil {
			return nil, err
		}
		manifest, err := index.IndexManifest()
		if err != nil {
			return nil, err
		}
		for _, m := range manifest.Manifests {
			if want := ref.Tag(); want != "" && m.Annotations["org.opencontainers.image.ref.name"] != want {
				continue
			}
			if want := ref.Digest(); want != "" && m.Digest.String() != want {
				continue
			}
			return index.Image(m.Digest)
		}
		return nil, fmt.Errorf("%w: the layout has no image of this name", image.ErrNotFound)
	}
	return nil, fmt.Errorf("%w: the docker backend cannot import %s", errors.ErrUnsupported, ref)
}
