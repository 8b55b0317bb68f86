//go:build linux

package containerd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteserrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/image"
	"github.com/daytona-go/daytona/internal/lifecycle"
)

const (
	// importName is what images are called that did not come from a registry.
	importName = "daytona.local/import"
	// usedLabel says when such an image was last used, to the day.
	usedLabel = "io.github.daytona-go.used"
	// keepUnused is how long it is kept without any sandbox made of it.
	keepUnused = 7 * 24 * time.Hour
)

// prepare sees to it that containerd has the image, unpacked, and puts into the
// record what the image decides.
func (b *backend) prepare(ctx context.Context, r *record, progress func(daytona.Progress)) error {
	const op = lifecycle.CreateOp
	ctx = b.context(ctx)
	ref, err := image.ParseReference(r.Image)
	if err != nil {
		return &daytona.Error{Kind: daytona.KindInvalid, Op: op, Field: "Image", Value: r.Image, Err: err}
	}
	if progress == nil {
		progress = func(daytona.Progress) {}
	}
	var img client.Image
	switch ref.Scheme() {
	case image.SchemeRegistry:
		img, err = b.fetch(ctx, ref, r.Image, progress)
	case image.SchemeDir:
		return &daytona.Error{Kind: daytona.KindUnsupported, Op: op, Field: "Image", Value: r.Image,
			Message: "a container cannot be made of a directory in place: give a tarball or an image"}
	default:
		img, err = b.load(ctx, ref, r.Image, progress)
	}
	if err != nil {
		return err
	}
	if ok, err := img.IsUnpacked(ctx, b.opts.Snapshotter); err != nil {
		return b.explain(op, r.Image, err)
	} else if !ok {
		progress(daytona.Progress{Stage: "unpacking " + r.Image})
		if err := img.Unpack(ctx, b.opts.Snapshotter); err != nil {
			return b.refuse(ctx, r.Image, "unpack", daytona.KindInvalid, err) // the image is at fault
		}
	}
	spec, err := img.Spec(ctx)
	if err != nil {
		return b.explain(op, r.Image, err)
	}
	r.Own.Snapshotter, r.Own.Transport = b.opts.Snapshotter, b.opts.Transport
	r.Own.Image, r.Own.Digest = img.Name(), img.Target().Digest.String()
	r.Own.Config = image.Config{Env: spec.Config.Env, Entrypoint: spec.Config.Entrypoint, Cmd: spec.Config.Cmd,
		WorkingDir: spec.Config.WorkingDir, User: spec.Config.User}
	r.User, r.Own.AddUser = lifecycle.UserOf(r.SpecUser, r.Own.Config)
	r.WorkDir = r.SpecWorkDir
	if r.WorkDir == "" {
		r.WorkDir = r.Own.Config.WorkingDir
	}
	r.Entrypoint = lifecycle.EntrypointOf(r.Entrypoint, r.Own.Config)
	return nil
}

// refuse turns an error of containerd over an image into one of the library, of
// a kind that depends on what it was at, unless the error says better.
func (b *backend) refuse(ctx context.Context, asked, what string, kind daytona.Kind, err error) error {
	var status remoteserrors.ErrUnexpectedStatus
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errdefs.IsUnavailable(err):
		kind = daytona.KindUnavailable
	case errors.Is(err, docker.ErrInvalidAuthorization), errdefs.IsUnauthorized(err), errdefs.IsPermissionDenied(err),
		errors.As(err, &status) && (status.StatusCode == http.StatusUnauthorized || status.StatusCode == http.StatusForbidden):
		kind = daytona.KindUnauthorized
	case strings.Contains(err.Error(), syscall.ENOSPC.Error()): // over the wire it is a text only
		kind = daytona.KindNoSpace
	}
	return &daytona.Error{Kind: kind, Op: lifecycle.CreateOp, Field: "Image", Value: asked, Message: "containerd cannot " + what + " it", Err: err}
}

// fetch is an image of a registry, pulled if containerd lacks it.
func (b *backend) fetch(ctx context.Context, ref image.Reference, asked string, progress func(daytona.Progress)) (client.Image, error) {
	tag := strings.TrimPrefix(ref.String(), "docker://")
	img, err := b.api.GetImage(ctx, tag)
	if err == nil {
		return img, nil
	}
	if !isNotFound(err) {
		return nil, b.explain(lifecycle.CreateOp, asked, err)
	}
	stage := "pulling " + asked
	progress(daytona.Progress{Stage: stage})
	watched := watchPull(ctx, b.api.ContentStore(), func(done, total int64) {
		progress(daytona.Progress{Stage: stage, Done: done, Total: total})
	})
	img, err = b.api.Pull(ctx, tag,
		client.WithResolver(docker.NewResolver(docker.ResolverOptions{Hosts: docker.ConfigureDefaultRegistries(
			docker.WithPlainHTTP(docker.MatchLocalhost),
			docker.WithAuthorizer(docker.NewDockerAuthorizer(docker.WithAuthCreds(b.credentials))),
		)})),
		client.WithImageHandler(watched))
	watched.stop()
	if err == nil {
		return img, nil
	}
	// Also where the registry cannot be reached: so the image is not to be had.
	return nil, b.refuse(ctx, asked, "pull", daytona.KindNotFound, err)
}

// credentials are those for a registry.
func (b *backend) credentials(host string) (user, secret string, err error) {
	if host == "registry-1.docker.io" {
		host = name.DefaultRegistry
	}
	reg, err := name.NewRegistry(host)
	if err != nil {
		return "", "", err
	}
	auth, err := b.opts.Keychain.Resolve(reg)
	if err != nil {
		return "", "", err
	}
	c, err := auth.Authorization()
	if err != nil {
		return "", "", err
	}
	if c.IdentityToken != "" {
		return "", c.IdentityToken, nil
	}
	return c.Username, c.Password, nil
}

// pullWatch adds up how much of an image has been fetched: what it is made of
// shows as it is handled, what is there is asked of the content store.
type pullWatch struct {
	parts chan ocispec.Descriptor
	stop  func() // reports for the last time
}

// Handle implements images.Handler.
func (w pullWatch) Handle(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
	select {
	case w.parts <- d:
	case <-ctx.Done():
	}
	return nil, nil
}

var _ images.Handler = pullWatch{}

func watchPull(ctx context.Context, store content.Store, report func(done, total int64)) pullWatch {
	finish, ended := make(chan struct{}), make(chan struct{})
	w := pullWatch{parts: make(chan ocispec.Descriptor), stop: func() { close(finish); <-ended }}
	go func() {
		defer close(ended)
		sizes := map[string]int64{}
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for last := false; !last; {
			select {
			case <-ctx.Done():
				return
			case d := <-w.parts:
				sizes[d.Digest.String()] = d.Size
				continue
			case <-tick.C:
			case <-finish:
				last = true
			}
			if done, total, err := fetched(ctx, store, sizes); err == nil {
				report(done, total)
			}
		}
	}()
	return w
}

// fetched counts how many bytes are there of contents with these digests and
// sizes, and of how many.
func fetched(ctx context.Context, store content.Store, sizes map[string]int64) (done, total int64, err error) {
	missing := maps.Clone(sizes)
	for _, size := range sizes {
		total += size
	}
	active, err := store.ListStatuses(ctx)
	if err != nil {
		return 0, 0, err
	}
	for _, a := range active {
		// Ingests are called "layer-sha256:…" and the like.
		_, digest, _ := strings.Cut(a.Ref, "-")
		if _, ours := missing[digest]; ours {
			done += a.Offset
			delete(missing, digest)
		}
	}
	err = store.Walk(ctx, func(i content.Info) error {
		if size, ours := missing[i.Digest.String()]; ours {
			done += size
		}
		return nil
	})
	return done, total, err
}

// load gives containerd an image that is a file or a directory of this machine,
// unless it has it already.
func (b *backend) load(ctx context.Context, ref image.Reference, asked string, progress func(daytona.Progress)) (client.Image, error) {
	src, err := ref.Open()
	if err != nil {
		return nil, lifecycle.ImageError(lifecycle.CreateOp, asked, err)
	}
	id, err := src.ConfigName()
	if err != nil {
		return nil, lifecycle.ImageError(lifecycle.CreateOp, asked, err)
	}
	tag := importName + ":" + id.Hex
	used := map[string]string{usedLabel: time.Now().UTC().Format(time.DateOnly)}
	img, err := b.api.GetImage(ctx, tag)
	if err == nil && img.Labels()[usedLabel] != used[usedLabel] {
		_, err = b.api.ImageService().Update(ctx, images.Image{Name: tag, Labels: used}, "labels."+usedLabel)
	}
	if err == nil || !isNotFound(err) { // also if it was collected just now
		return img, b.explain(lifecycle.CreateOp, asked, err)
	}
	named, err := name.NewTag(tag)
	if err != nil {
		return nil, err
	}
	progress(daytona.Progress{Stage: "importing " + asked})
	r, w := io.Pipe()
	go func() { w.CloseWithError(tarball.Write(named, src, w)) }()
	defer r.Close()
	if _, err := b.api.Import(ctx, r, client.WithImageLabels(used)); err != nil {
		return nil, b.refuse(ctx, asked, "import", daytona.KindInvalid, err)
	}
	img, err = b.api.GetImage(ctx, tag)
	return img, b.explain(lifecycle.CreateOp, asked, err)
}

// collect removes imported images that nobody has used for long.
func (b *backend) collect(ctx context.Context) error {
	list, err := b.api.ImageService().List(ctx, fmt.Sprintf("name~=%q", "^"+importName+":"))
	if err != nil {
		return err
	}
	before := time.Now().Add(-keepUnused).UTC().Format(time.DateOnly)
	for _, img := range list {
		if used := img.Labels[usedLabel]; used == "" || used >= before {
			continue
		}
		users, err := b.api.ContainerService().List(ctx, fmt.Sprintf("image==%q", img.Name))
		if err != nil {
			return err
		}
		if len(users) > 0 {
			continue
		}
		if err := b.api.ImageService().Delete(ctx, img.Name); err != nil && !isNotFound(err) {
			return err
		}
	}
	return nil
}
