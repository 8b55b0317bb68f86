//go:build linux

package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/moby/moby/api/pkg/authconfig"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/client"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/image"
	"github.com/daytona-go/daytona/internal/failpoint"
	"github.com/daytona-go/daytona/internal/lifecycle"
)

// importName is what images are called that did not come from a registry.
const importName = "daytona.local/import"

// prepare sees to it that the engine has the image, and puts into the record
// what the image decides.
func (b *backend) prepare(ctx context.Context, r *record, snapshot string, progress func(daytona.Progress)) error {
	if err := b.findVolumes(ctx, r); err != nil {
		return err
	}
	failpoint.Kill("docker/create/volumes-found")
	var err error
	if snapshot != "" {
		err = b.fromSnapshot(r, snapshot)
	} else {
		err = b.findImage(ctx, lifecycle.CreateOp, r, progress)
	}
	if err != nil {
		return err
	}
	if err := failpoint.Fail("docker/create/image-found"); err != nil {
		return err
	}
	r.User, r.Own.AddUser = lifecycle.UserOf(r.SpecUser, r.Own.Config)
	r.WorkDir = r.SpecWorkDir
	if r.WorkDir == "" {
		r.WorkDir = r.Own.Config.WorkingDir
	}
	r.Entrypoint = lifecycle.EntrypointOf(r.Entrypoint, r.Own.Config)
	return nil
}

// findImage sees to it that the engine has the image.
func (b *backend) findImage(ctx context.Context, op string, r *record, progress func(daytona.Progress)) error {
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
			// A file that ends too early looks the same as an engine that does.
			if _, perr := b.api.Ping(ctx, client.PingOptions{}); lost(err) && perr != nil {
				return b.explain(op, r.Image, err)
			}
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
	return nil
}

// pull has the engine fetch an image, with the credentials that there are for
// its registry.
func (b *backend) pull(ctx context.Context, tag, asked string, progress func(daytona.Progress)) error {
	fail := func(kind daytona.Kind, message string, err error) error {
		return &daytona.Error{Kind: kind, Op: lifecycle.CreateOp, Field: "Image", Value: asked, Message: message, Err: err}
	}
	auth, err := b.credentials(ctx, tag)
	if err != nil {
		return fail(daytona.KindUnauthorized, "find the credentials for its registry", err)
	}
	refused := func(err error) error {
		if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
			return err
		}
		return fail(pullKind(err), "the Docker engine cannot pull it", err)
	}
	resp, err := b.api.ImagePull(ctx, tag, client.ImagePullOptions{RegistryAuth: auth})
	if err != nil {
		return refused(err)
	}
	defer resp.Close()
	type layer struct{ done, total int64 }
	layers := map[string]layer{}
	for m, err := range resp.JSONMessages(ctx) {
		if err != nil {
			return refused(err)
		}
		if m.Error != nil {
			return refused(m.Error)
		}
		// The same layers are unpacked after that, which counts from the
		// beginning.
		switch l := layers[m.ID]; m.Status {
		case "Downloading":
			if m.Progress != nil {
				layers[m.ID] = layer{max(l.done, m.Progress.Current), max(l.total, m.Progress.Total)}
			}
		case "Download complete", "Pull complete":
			layers[m.ID] = layer{l.total, l.total}
		}
		p := daytona.Progress{Stage: "pulling " + asked}
		for _, l := range layers {
			p.Done += l.done
			p.Total += l.total
		}
		progress(p)
	}
	return nil
}

// pullKind is the kind of an error of the engine, or of the registry in the
// engine's words: what went wrong while it was pulling, it says in no other way.
func pullKind(err error) daytona.Kind {
	text := strings.ToLower(err.Error())
	says := func(any ...string) bool {
		return slices.ContainsFunc(any, func(s string) bool { return strings.Contains(text, s) })
	}
	switch {
	case errdefs.IsNotFound(err), says("not found", "does not exist", "manifest unknown", "name unknown"):
		return daytona.KindNotFound
	case errdefs.IsUnauthorized(err), errdefs.IsPermissionDenied(err), says("unauthorized", "no basic auth credentials", "authentication required", "access denied", "access forbidden"):
		return daytona.KindUnauthorized
	case errdefs.IsInvalidArgument(err):
		return daytona.KindInvalid
	case lost(err):
		return daytona.KindUnavailable
	}
	// The engine cannot reach the registry: so the image is not to be had.
	return daytona.KindNotFound
}

// credentials are those for the registry of an image, as the engine wants them;
// "" if there are none.
func (b *backend) credentials(ctx context.Context, tag string) (string, error) {
	ref, err := name.ParseReference(tag)
	if err != nil {
		return "", err
	}
	keychain := b.opts.Keychain
	if keychain == nil {
		keychain = authn.DefaultKeychain
	}
	found, err := authn.Resolve(ctx, keychain, ref.Context())
	if err != nil || found == authn.Anonymous {
		return "", err
	}
	c, err := authn.Authorization(ctx, found)
	if err != nil {
		return "", err
	}
	return authconfig.Encode(registry.AuthConfig{
		Username: c.Username, Password: c.Password, Auth: c.Auth, IdentityToken: c.IdentityToken, RegistryToken: c.RegistryToken,
		ServerAddress: ref.Context().RegistryStr(),
	})
}

// load gives the engine an image that is a file or a directory of this machine,
// unless it has it already.
func (b *backend) load(ctx context.Context, ref image.Reference) (tag string, err error) {
	img, err := ref.Open()
	if err != nil {
		return "", err
	}
	id, err := img.ConfigName()
	if err != nil {
		return "", err
	}
	tag = importName + ":" + id.Hex
	// The engine notes when that was: see collect.
	used := func() error {
		_, err := b.api.ImageTag(ctx, client.ImageTagOptions{Source: tag, Target: tag})
		return err
	}
	if used() == nil {
		return tag, nil
	}
	defer func() {
		if err == nil {
			failpoint.Kill("docker/import/loaded")
			err = used()
			b.collect(ctx, tag)
		}
	}()
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

// collect removes the imported images that have not been used for a while, but
// for one. The engine keeps those that a container is made of.
func (b *backend) collect(ctx context.Context, but string) {
	keep := b.opts.KeepImported
	if keep == 0 {
		keep = 7 * 24 * time.Hour
	}
	warn := func(tag string, err error) {
		if err != nil && ctx.Err() == nil && !errdefs.IsNotFound(err) && !errdefs.IsConflict(err) {
			b.log.Warn("an image that was imported could not be removed", "image", tag, "err", err)
		}
	}
	all, err := b.api.ImageList(ctx, client.ImageListOptions{Filters: make(client.Filters).Add("reference", importName)})
	if err != nil {
		warn(importName, err)
		return
	}
	for _, i := range all.Items {
		for _, tag := range i.RepoTags {
			if tag == but || !strings.HasPrefix(tag, importName+":") {
				continue
			}
			found, err := b.api.ImageInspect(ctx, tag)
			if used := found.Metadata.LastTagTime; err == nil && !used.IsZero() && time.Since(used) > keep {
				_, err = b.api.ImageRemove(ctx, tag, client.ImageRemoveOptions{PruneChildren: true})
			}
			warn(tag, err)
		}
	}
}
