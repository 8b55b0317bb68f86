//go:build linux

package image

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// StagePushing is what [Store.Push] and [Store.Commit] do after StageResolving.
const StagePushing Stage = "pushing"

// PushOptions adjusts one [Store.Push]. The zero value, and nil, mean the defaults.
type PushOptions struct {
	// Source says how to read an image of a registry: credentials, platform, transport. Mirrors
	// are not asked. Defaults to the defaults of [PullOptions].
	Source *PullOptions
	// AllPlatforms pushes an image for several platforms as it is, rather than the part for one
	// platform. The source must be in a registry. Defaults to false.
	AllPlatforms bool
	// Auth, Keychain, PlainHTTP, Transport and StallTimeout are about the destination, with the
	// meanings and the defaults that they have in [PullOptions].
	Auth         authn.Authenticator
	Keychain     authn.Keychain
	PlainHTTP    bool
	Transport    http.RoundTripper
	StallTimeout time.Duration
	// Progress is called now and then while bytes are sent. Blobs that the destination has, or
	// takes over from another of its repositories, are not sent and so never counted as done.
	Progress func(Progress)
}

// Push copies an image from where src says to the registry repository and tag dest, and returns
// the digest that it has there. Blobs are copied as they are: an image keeps its digest, except
// from docker-archive: and tar:, which have none. What the destination has is not sent, and what
// another repository of the same registry has is mounted from there. The manifest comes last, so
// that a push that fails leaves the tag as it was.
//
// The unpacked layers of the store are not what is pushed: packing them again would give other
// digests.
func (s *Store) Push(ctx context.Context, src, dest Reference, opts *PushOptions) (string, error) {
	if opts == nil {
		opts = &PushOptions{}
	}
	digest, err := s.push(ctx, src, dest, opts)
	if err != nil {
		return "", fmt.Errorf("push image %s to %s: %w", src, dest, err)
	}
	return digest, nil
}

// checkTarget refuses what cannot be pushed to.
func checkTarget(dest Reference) error {
	switch {
	case dest.IsZero() || dest.scheme != SchemeRegistry:
		return fmt.Errorf("%w: want a repository of a registry as the destination", ErrInvalidReference)
	case dest.digest != "":
		return fmt.Errorf("%w: want a tag at the destination; the digest is what the image's is", ErrInvalidReference)
	}
	return nil
}

func (s *Store) push(ctx context.Context, src, dest Reference, opts *PushOptions) (string, error) {
	if err := checkTarget(dest); err != nil {
		return "", err
	}
	meter := &meter{report: opts.Progress}
	meter.stage(StageResolving)
	ses, err := s.begin(ctx)
	if err != nil {
		return "", err
	}
	defer ses.end()
	what, done, err := s.readable(ctx, ses, src, opts.Source, opts.AllPlatforms)
	if err != nil {
		return "", err
	}
	defer done()
	return s.upload(ctx, what, dest, opts, meter)
}

// pushable is a v1.Image or a v1.ImageIndex.
type pushable interface {
	remote.Taggable
	Digest() (v1.Hash, error)
}

func (s *Store) upload(ctx context.Context, what pushable, dest Reference, opts *PushOptions, meter *meter) (string, error) {
	nref, err := name.NewTag(dest.base+":"+dest.tag, s.nameOptions(dest.Registry(), opts.PlainHTTP)...)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrInvalidReference, err)
	}
	if img, ok := what.(v1.Image); ok {
		layers, err := img.Layers()
		if err != nil {
			return "", err
		}
		meter.layers = len(layers)
	}
	meter.stage(StagePushing)
	updates, finished := make(chan v1.Update, 64), make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case u, open := <-updates:
				if !open {
					return
				}
				if u.Error == nil {
					meter.mu.Lock()
					meter.done, meter.total = u.Complete, u.Total
					meter.send()
					meter.mu.Unlock()
				}
			case <-finished: // it never came to closing the channel
				return
			}
		}
	}()
	a := access{opts.Auth, opts.Keychain, opts.PlainHTTP, opts.Transport, opts.StallTimeout}
	err = remote.Push(nref, what, append(s.remoteOptions(ctx, dest.Registry(), a), remote.WithProgress(updates))...)
	close(finished)
	<-ended
	if err != nil {
		return "", registryError(ctx, err)
	}
	digest, err := what.Digest()
	if err != nil {
		return "", err
	}
	meter.stage(StageDone)
	return digest.String(), nil
}

// readable finds the image that a reference names, to copy it.
func (s *Store) readable(ctx context.Context, ses *session, ref Reference, opts *PullOptions, all bool) (pushable, func(), error) {
	if opts == nil {
		opts = &PullOptions{}
	}
	platform, err := wantPlatform(opts.Platform)
	if err != nil {
		return nil, nil, err
	}
	if all && ref.scheme != SchemeRegistry {
		return nil, nil, fmt.Errorf("all platforms of what is not in a registry: %w", errors.ErrUnsupported)
	}
	nothing := func() {}
	switch ref.scheme {
	case SchemeRegistry:
		img, err := s.readableRemote(ctx, ref, platform, opts, all)
		return img, nothing, err
	case SchemeOCI, SchemeOCIArchive:
		f, index, err := s.openLayout(ctx, ses, ref)
		if err != nil {
			return nil, nil, err
		}
		img, err := readableLayout(ctx, layoutFetcher{f}, index, ref, platform)
		if err != nil {
			f.close()
			return nil, nil, err
		}
		return img, f.close, nil
	case SchemeDockerArchive, SchemeTar:
		img, err := ref.Open()
		return img, nothing, err
	}
	return nil, nil, fmt.Errorf("%s is no image that has blobs: %w", ref, errors.ErrUnsupported)
}

func (s *Store) readableRemote(ctx context.Context, ref Reference, platform v1.Platform, opts *PullOptions, all bool) (pushable, error) {
	r, nref, err := s.at(ctx, ref, endpoint{host: ref.Registry(), plain: opts.PlainHTTP}, platform, opts)
	if err != nil {
		return nil, err
	}
	for range 4 {
		desc, err := r.puller.Get(ctx, nref)
		if err != nil {
			return nil, registryError(ctx, err)
		}
		isIndex, err := sniffIndex(desc.Manifest)
		switch {
		case err != nil:
			return nil, err
		case isIndex && all:
			return desc.ImageIndex()
		case !isIndex:
			return desc.Image()
		}
		index, err := v1.ParseIndexManifest(bytes.NewReader(desc.Manifest))
		if err != nil {
			return nil, err
		}
		d, err := choose(index.Manifests, platform)
		if err != nil {
			return nil, err
		}
		nref = r.repo.Digest(d.Digest.String())
	}
	return nil, fmt.Errorf("indexes within indexes within indexes: %w", errors.ErrUnsupported)
}

// layoutImage is an image of a layout, read beneath the layout.
type layoutImage struct {
	ctx      context.Context
	f        layoutFetcher
	desc     v1.Descriptor
	raw      []byte
	manifest *v1.Manifest
}

func readableLayout(ctx context.Context, f layoutFetcher, index *v1.IndexManifest, ref Reference, platform v1.Platform) (v1.Image, error) {
	d, err := chooseInLayout(index.Manifests, ref, platform)
	if err != nil {
		return nil, err
	}
	for range 4 {
		raw, err := f.document(ctx, d)
		if err != nil {
			return nil, fmt.Errorf("manifest %s: %w", d.Digest, err)
		}
		if err := verifyBytes(raw, d.Digest); err != nil {
			return nil, fmt.Errorf("manifest: %w", err)
		}
		isIndex, err := sniffIndex(raw)
		if err != nil {
			return nil, err
		}
		if isIndex {
			nested, err := v1.ParseIndexManifest(bytes.NewReader(raw))
			if err != nil {
				return nil, err
			}
			if d, err = choose(nested.Manifests, platform); err != nil {
				return nil, err
			}
			continue
		}
		m, err := v1.ParseManifest(bytes.NewReader(raw))
		if err != nil {
			return nil, fmt.Errorf("manifest: %w", err)
		}
		if d.MediaType = m.MediaType; d.MediaType == "" {
			d.MediaType = types.OCIManifestSchema1
		}
		return partial.CompressedToImage(&layoutImage{ctx, f, d, raw, m})
	}
	return nil, fmt.Errorf("indexes within indexes within indexes: %w", errors.ErrUnsupported)
}

func (i *layoutImage) RawManifest() ([]byte, error)        { return i.raw, nil }
func (i *layoutImage) MediaType() (types.MediaType, error) { return i.desc.MediaType, nil }
func (i *layoutImage) RawConfigFile() (raw []byte, err error) {
	return readDocument(i.ctx, i.f, i.manifest.Config)
}

func (i *layoutImage) LayerByDigest(h v1.Hash) (partial.CompressedLayer, error) {
	if h == i.manifest.Config.Digest {
		return &layoutLayer{i, i.manifest.Config}, nil
	}
	for _, d := range i.manifest.Layers {
		if d.Digest == h {
			return &layoutLayer{i, d}, nil
		}
	}
	return nil, fmt.Errorf("%w: the manifest has no blob %s", ErrNotFound, h)
}

type layoutLayer struct {
	image *layoutImage
	desc  v1.Descriptor
}

func (l *layoutLayer) Digest() (v1.Hash, error)            { return l.desc.Digest, nil }
func (l *layoutLayer) Size() (int64, error)                { return l.desc.Size, nil }
func (l *layoutLayer) MediaType() (types.MediaType, error) { return l.desc.MediaType, nil }
func (l *layoutLayer) Compressed() (io.ReadCloser, error) {
	rc, err := l.image.f.blob(l.image.ctx, l.desc)
	if err != nil {
		return nil, err
	}
	// The registry checks too, but may say so in any words.
	src := &stream{ctx: l.image.ctx, raw: rc, size: l.desc.Size, digest: l.desc.Digest.String()}
	if src.rawHash, err = v1.Hasher(l.desc.Digest.Algorithm); err != nil {
		rc.Close()
		return nil, err
	}
	return &checkedBlob{rawSide{src}, rc}, nil
}

// checkedBlob ends in an error if it is not the blob that it should be.
type checkedBlob struct {
	rawSide
	io.Closer
}

func (c *checkedBlob) Read(p []byte) (int, error) {
	n, err := c.rawSide.Read(p)
	if err == io.EOF {
		if err := c.checkBlob(); err != nil {
			return n, err
		}
	}
	return n, err
}

// Compression is how a layer that [Store.Commit] makes is compressed.
type Compression string

const (
	Gzip Compression = "gzip" // every program reads it
	Zstd Compression = "zstd" // faster and smaller; needs the OCI format
)

// CommitOptions adjusts one [Store.Commit]. The zero value, and nil, mean the defaults.
type CommitOptions struct {
	// Push says how to read the base and how to reach the destination. AllPlatforms has no
	// meaning here.
	Push PushOptions
	// Export says how the directory is read.
	Export ExportOptions
	// Compression of the new layer. Defaults to Gzip.
	Compression Compression
	// Config, if set, changes how the image wants to be run. Defaults to what the base has.
	Config func(*v1.Config)
	// Created is when the image says it was made. Defaults to the zero time, so that the same
	// base and the same tree are the same image.
	Created time.Time
	// Comment is for the image's history. Defaults to "".
	Comment string
}

// Commit makes an image of a base and of the changes to it that are in upper, an upper directory of
// overlayfs over that base, at rest ([ExportLayer]). The base's own blobs are copied from where
// base says, as [Store.Push] does; give it with its digest lest it be another by now.
//
// dest is a repository and tag of a registry, or oci:/path:name for a layout, which must not
// exist. Commit returns the image's digest. If it fails there is no image at dest.
func (s *Store) Commit(ctx context.Context, base Reference, upper string, dest Reference, opts *CommitOptions) (string, error) {
	if opts == nil {
		opts = &CommitOptions{}
	}
	digest, err := s.commitImage(ctx, base, upper, dest, opts)
	if err != nil {
		return "", fmt.Errorf("commit %s over %s as %s: %w", upper, base, dest, err)
	}
	return digest, nil
}

func (s *Store) commitImage(ctx context.Context, base Reference, upper string, dest Reference, opts *CommitOptions) (string, error) {
	if dest.scheme == SchemeOCI {
		if _, err := os.Lstat(dest.base); err == nil {
			return "", fmt.Errorf("there is something at %s already, and adding to a layout: %w", dest.base, errors.ErrUnsupported)
		}
		if dest.digest != "" {
			return "", fmt.Errorf("%w: the digest is what the image's is", ErrInvalidReference)
		}
	} else if err := checkTarget(dest); err != nil {
		return "", err
	}
	meter := &meter{report: opts.Push.Progress}
	meter.stage(StageResolving)
	ses, err := s.begin(ctx)
	if err != nil {
		return "", err
	}
	defer ses.end()
	found, done, err := s.readable(ctx, ses, base, opts.Push.Source, false)
	if err != nil {
		return "", fmt.Errorf("base: %w", err)
	}
	defer done()
	img, ok := found.(v1.Image)
	if !ok {
		return "", fmt.Errorf("the base is no image: %w", errors.ErrUnsupported)
	}
	layer, err := s.packLayer(ctx, ses, upper, opts, img)
	if err != nil {
		return "", err
	}
	mediaType, err := layer.MediaType()
	if err != nil {
		return "", err
	}
	img, err = mutate.Append(img, mutate.Addendum{
		Layer: layer, MediaType: mediaType,
		History: v1.History{Created: v1.Time{Time: opts.Created.UTC()}, CreatedBy: "daytona commit", Comment: opts.Comment},
	})
	if err != nil {
		return "", err
	}
	cf, err := img.ConfigFile()
	if err != nil {
		return "", err
	}
	cf = cf.DeepCopy()
	cf.Created = v1.Time{Time: opts.Created.UTC()}
	if opts.Config != nil {
		opts.Config(&cf.Config)
	}
	if img, err = mutate.ConfigFile(img, cf); err != nil {
		return "", err
	}
	if dest.scheme != SchemeOCI {
		return s.upload(ctx, img, dest, &opts.Push, meter)
	}
	meter.stage(StagePushing)
	digest, err := writeLayout(img, dest)
	if err == nil {
		meter.stage(StageDone)
	}
	return digest, err
}

// writeLayout makes a layout appear whole.
func writeLayout(img v1.Image, dest Reference) (_ string, err error) {
	tmp, err := os.MkdirTemp(filepath.Dir(dest.base), ".layout-")
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, RemoveAll(tmp)) }()
	work := filepath.Join(tmp, "layout")
	l, err := layout.Write(work, empty.Index)
	if err != nil {
		return "", err
	}
	var annotations []layout.Option
	if dest.tag != "" {
		annotations = append(annotations, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": dest.tag}))
	}
	if err := l.AppendImage(img, annotations...); err != nil {
		return "", err
	}
	digest, err := img.Digest()
	if err != nil {
		return "", err
	}
	// rename(2) would replace an empty directory that somebody made meanwhile, which is no loss.
	return digest.String(), os.Rename(work, dest.base)
}

// packedLayer is a layer in a file of the session.
type packedLayer struct {
	path           string
	digest, diffID v1.Hash
	size           int64
	mediaType      types.MediaType
}

func (l *packedLayer) Digest() (v1.Hash, error)            { return l.digest, nil }
func (l *packedLayer) DiffID() (v1.Hash, error)            { return l.diffID, nil }
func (l *packedLayer) Size() (int64, error)                { return l.size, nil }
func (l *packedLayer) MediaType() (types.MediaType, error) { return l.mediaType, nil }
func (l *packedLayer) Compressed() (io.ReadCloser, error)  { return os.Open(l.path) }

func (s *Store) packLayer(ctx context.Context, ses *session, upper string, opts *CommitOptions, base v1.Image) (v1.Layer, error) {
	baseType, err := base.MediaType()
	if err != nil {
		return nil, err
	}
	l := &packedLayer{path: filepath.Join(ses.dir, "layer.tar"), mediaType: types.OCILayer}
	if baseType == types.DockerManifestSchema2 {
		l.mediaType = types.DockerLayer
	}
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h, err := v1.Hasher("sha256")
	if err != nil {
		return nil, err
	}
	out := &countingWriter{w: io.MultiWriter(f, h)}
	var zw io.WriteCloser
	switch opts.Compression {
	case "", Gzip:
		zw = gzip.NewWriter(out)
	case Zstd:
		if baseType == types.DockerManifestSchema2 {
			return nil, fmt.Errorf("a zstd layer over a base in Docker's format: %w", errors.ErrUnsupported)
		}
		l.mediaType = types.OCILayerZStd
		// One thread, for the same bytes everywhere.
		if zw, err = zstd.NewWriter(out, zstd.WithEncoderConcurrency(1)); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("CommitOptions.Compression %q; want %q or %q", opts.Compression, Gzip, Zstd)
	}
	diffID, _, err := ExportLayer(ctx, upper, zw, &opts.Export)
	if err := errors.Join(err, zw.Close(), f.Close()); err != nil {
		return nil, err
	}
	if l.diffID, err = v1.NewHash(diffID); err != nil {
		return nil, err
	}
	l.digest, l.size = v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(h.Sum(nil))}, out.n
	return partial.CompressedToLayer(l)
}
