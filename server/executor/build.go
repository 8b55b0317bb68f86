package executor

import (
	"archive/tar"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/minio/minio-go/v7"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/objects/s3"
	"github.com/daytona-go/daytona/internal/registryauth"
	"github.com/daytona-go/daytona/internal/wire"
)

// Bounds of what a build copies: of all its contexts together.
const (
	maxContexts       = 256
	maxContextBytes   = 16 << 30
	maxContextEntries = 1_000_000
)

// A key that the server gives away: nothing that leads elsewhere in a bucket.
var keyPart = regexp.MustCompile(`^[A-Za-z0-9_-]{1,128}$`)

// S3Contexts returns the contexts of a bucket, where they are at
// <organization>/<hash>/context.tar. It connects to nothing.
func S3Contexts(l daytona.S3Location) (Contexts, error) {
	store, err := s3.Open(l, nil)
	if err != nil {
		return nil, err
	}
	return s3Contexts{store}, nil
}

type s3Contexts struct{ store *s3.Store }

func (c s3Contexts) OpenContext(ctx context.Context, organizationID, hash string) (io.ReadCloser, error) {
	client, bucket, prefix := c.store.Raw()
	o, err := client.GetObject(ctx, bucket, prefix+organizationID+"/"+hash+"/context.tar", minio.GetObjectOptions{})
	if err == nil {
		_, err = o.Stat()
	}
	if err != nil {
		if o != nil {
			o.Close()
		}
		if r := minio.ToErrorResponse(err); r.StatusCode == 404 {
			return nil, &daytona.Error{Kind: daytona.KindNotFound, Op: "open context", Subject: hash, Message: "it has not been uploaded"}
		}
		// Not the cause: it may name the storage's keys.
		return nil, &daytona.Error{Kind: daytona.KindUnavailable, Op: "open context", Subject: hash, Message: "the object storage does not answer as it should"}
	}
	return o, nil
}

// build builds an image from a Dockerfile and keeps it under a reference. What
// it says goes to a log.
func (e *Executor) build(ctx context.Context, ref string, p *wire.JobSnapshot) (_ any, err error) {
	ref = cmp.Or(ref, p.Snapshot)
	snapshots, err := e.c.Client.Snapshots()
	if err != nil {
		return nil, err
	}
	log, err := e.logs.create(ref)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil && ctx.Err() == nil {
			log.line("ERROR: " + err.Error())
		}
		log.end()
	}()
	if s, err := e.existing(ctx, snapshots, ref); err == nil {
		log.line("The image has been built before.")
		return resultOf(s), nil
	}
	dir, err := os.MkdirTemp(filepath.Join(e.c.Dir, "contexts"), "build-")
	if err != nil {
		return nil, &daytona.Error{Kind: daytona.KindUnavailable, Op: "build image", Err: err}
	}
	defer os.RemoveAll(dir)
	var contexts []daytona.BuildContext
	if len(p.Context) > 0 {
		if err := e.fetchContexts(ctx, dir, p); err != nil {
			return nil, err
		}
		contexts = []daytona.BuildContext{{Source: dir, Path: "."}}
	}
	built, err := e.c.Client.Build(ctx, daytona.NewImage(p.Dockerfile, contexts...), daytona.BuildOptions{
		// Bases come from their registries, with the credentials of this job: what
		// others have pulled is theirs.
		OnLog: log.build, Pull: !e.c.SharedImages, Bases: e.bases(),
	})
	if err != nil {
		return nil, err
	}
	s, err := e.c.Client.CreateSnapshot(ctx, daytona.SnapshotSpec{Name: ref, Image: built.Ref})
	if errors.Is(err, daytona.ErrConflict) {
		s, err = e.existing(ctx, snapshots, ref)
	}
	if err != nil {
		return nil, err
	}
	r := resultOf(s)
	r.Hash = cmp.Or(built.Digest, r.Hash)
	return r, nil
}

// fetchContexts unpacks what a Dockerfile copies into one directory.
func (e *Executor) fetchContexts(ctx context.Context, dir string, p *wire.JobSnapshot) error {
	const op = "fetch context"
	urls := p.ContextURLs
	if e.c.Contexts == nil && len(urls) != len(p.Context) {
		return &daytona.Error{Kind: daytona.KindUnsupported, Op: op, Message: "this runner has no object storage to fetch files from"}
	}
	if len(p.Context) > maxContexts {
		return &daytona.Error{Kind: daytona.KindInvalid, Op: op, Field: "context", Value: len(p.Context), Message: fmt.Sprintf("must be at most %d hashes", maxContexts)}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	u := &unpacker{root: root, bytes: maxContextBytes, entries: maxContextEntries}
	for i, hash := range p.Context {
		if !keyPart.MatchString(hash) || !keyPart.MatchString(p.OrganizationID) {
			return &daytona.Error{Kind: daytona.KindInvalid, Op: op, Field: "context", Value: hash, Message: `hashes, and the organization's id, must be letters, digits, "_" and "-"`}
		}
		var r io.ReadCloser
		if e.c.Contexts != nil {
			r, err = e.c.Contexts.OpenContext(ctx, p.OrganizationID, hash)
		} else {
			r, err = download(ctx, hash, urls[i])
		}
		if err != nil {
			return err
		}
		err = u.unpack(ctx, r)
		r.Close()
		if err != nil {
			return fmt.Errorf("unpack context %s: %w", hash, err)
		}
	}
	return nil
}

// download reads a context from where the server says that it is.
func download(ctx context.Context, hash, from string) (io.ReadCloser, error) {
	r, err := http.NewRequestWithContext(ctx, "GET", from, nil)
	if err == nil {
		var w *http.Response
		if w, err = http.DefaultClient.Do(r); err == nil {
			if w.StatusCode == http.StatusOK {
				return w.Body, nil
			}
			w.Body.Close()
			err = errors.New(w.Status)
		}
	}
	if e, ok := errors.AsType[*url.Error](err); ok {
		err = e.Err // the URL is a credential
	}
	return nil, &daytona.Error{Kind: daytona.KindUnavailable, Op: "fetch context", Subject: hash, Err: err}
}

// sweepContexts removes what builds of an earlier process have left.
func (e *Executor) sweepContexts() {
	dir := filepath.Join(e.c.Dir, "contexts")
	left, _ := os.ReadDir(dir)
	for _, d := range left {
		if err := os.RemoveAll(filepath.Join(dir, d.Name())); err != nil {
			e.log.Warn("what a build has left can't be removed", "dir", d.Name(), "err", err)
		}
	}
}

// unpacker writes archives beneath a directory, wherever they want to go.
type unpacker struct {
	root           *os.Root
	bytes, entries int64
}

func (u *unpacker) unpack(ctx context.Context, r io.Reader) error {
	bad := func(name, rule string) error {
		return &daytona.Error{Kind: daytona.KindInvalid, Field: "entry", Value: name, Message: rule}
	}
	for t := tar.NewReader(r); ; {
		h, err := t.Next()
		if err == io.EOF {
			return nil
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		if u.entries--; u.entries < 0 {
			return bad(h.Name, fmt.Sprintf("is one too many: there may be %d", maxContextEntries))
		}
		// As in a build context: "/" is its root, and ".." does not lead out of it.
		at := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
		if at == "" {
			continue
		}
		if dir := path.Dir(at); dir != "." {
			if err := u.root.MkdirAll(dir, 0o755); err != nil {
				return err
			}
		}
		mode := h.FileInfo().Mode().Perm()
		switch h.Typeflag {
		case tar.TypeDir:
			if err := u.root.MkdirAll(at, 0o755); err != nil {
				return err
			}
			if err := u.root.Chmod(at, mode|0o700); err != nil {
				return err
			}
		case tar.TypeReg:
			if u.bytes -= h.Size; u.bytes < 0 {
				return bad(h.Name, fmt.Sprintf("is too much: there may be %d bytes", int64(maxContextBytes)))
			}
			if err := u.file(at, mode, t); err != nil {
				return err
			}
		case tar.TypeSymlink:
			if err := u.root.Remove(at); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			// It may lead anywhere: whoever follows it does so beneath the root.
			if err := u.root.Symlink(h.Linkname, at); err != nil {
				return err
			}
		case tar.TypeXGlobalHeader:
		default:
			return bad(h.Name, "is neither a file, a directory nor a symbolic link")
		}
	}
}

func (u *unpacker) file(at string, mode fs.FileMode, r io.Reader) error {
	if st, err := u.root.Lstat(at); err == nil && !st.IsDir() {
		if err := u.root.Remove(at); err != nil {
			return err
		}
	}
	f, err := u.root.OpenFile(at, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	if err == nil {
		err = f.Chmod(mode)
	}
	return errors.Join(err, f.Close())
}

// bases are the images of the configuration, for Dockerfiles.
func (e *Executor) bases() map[string]string {
	m := map[string]string{}
	for name, own := range e.c.Images {
		if own != daytona.ImageHost { // which is no image that a build could begin with
			m[name] = own
		}
	}
	return m
}

// mayPull asks the registry whether it shows an image to who has the
// credentials of ctx: the backend, which has it already perhaps, does not.
func (e *Executor) mayPull(ctx context.Context, ref string) error {
	if _, own := e.c.Images[ref]; own || e.c.SharedImages {
		return nil
	}
	parsed, options, err := e.remote(ctx, ref)
	if err != nil {
		return err
	}
	if _, err = remote.Head(parsed, options...); err != nil {
		_, err = remote.Get(parsed, options...) // some know no HEAD
	}
	return registryError(ref, err)
}

// remote is a reference as the client of registries has it.
func (e *Executor) remote(ctx context.Context, ref string) (name.Reference, []remote.Option, error) {
	image, err := e.image(ref)
	if err != nil {
		return nil, nil, err
	}
	parsed, err := name.ParseReference(image)
	if err != nil {
		return nil, nil, &daytona.Error{Kind: daytona.KindInvalid, Op: "inspect image", Field: "snapshot", Value: ref, Message: "is not the name of an image"}
	}
	keys := registryauth.Keychain(ctx)
	if keys == nil {
		keys = authn.DefaultKeychain
	}
	return parsed, []remote.Option{remote.WithContext(ctx), remote.WithAuthFromKeychain(keys), remote.WithUserAgent("daytona")}, nil
}

func registryError(ref string, err error) error {
	if err == nil {
		return nil
	}
	e := &daytona.Error{Kind: daytona.KindUnavailable, Op: "inspect image", Subject: ref, Message: "the registry can't be asked", Err: err}
	if t, ok := errors.AsType[*transport.Error](err); ok {
		switch t.StatusCode {
		case http.StatusNotFound:
			e.Kind, e.Message = daytona.KindNotFound, "the registry does not have it"
		case http.StatusUnauthorized, http.StatusForbidden:
			e.Kind, e.Message = daytona.KindForbidden, "the registry does not have it, or does not show it with these credentials"
		}
	}
	return e
}

// inspect says what a registry has under a name.
func (e *Executor) inspect(ctx context.Context, ref string) (any, error) {
	parsed, options, err := e.remote(ctx, ref)
	if err != nil {
		return nil, err
	}
	img, err := remote.Image(parsed, options...)
	if err != nil {
		return nil, registryError(ref, err)
	}
	digest, err := img.Digest()
	if err != nil {
		return nil, err
	}
	m, err := img.Manifest()
	if err != nil {
		return nil, err
	}
	r := wire.JobSnapshotResult{Hash: digest.String(), SizeGB: float64(m.Config.Size) / daytona.GiB}
	for _, l := range m.Layers {
		r.SizeGB += float64(l.Size) / daytona.GiB
	}
	return r, nil
}
