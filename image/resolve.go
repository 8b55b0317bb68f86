//go:build linux

package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona/internal/failpoint"
)

// PullPolicy says when [Store.Resolve] may look beyond the store.
type PullPolicy int

const (
	// PullIfMissing takes a registry image from the store if the reference has been resolved
	// before, without asking the registry. Layouts and archives are looked at again, which costs
	// little; only layers that the store does not have are unpacked.
	PullIfMissing PullPolicy = iota
	// PullAlways asks what the reference means now. Layers that the store has are not fetched.
	PullAlways
	// PullNever takes what the store has, and touches neither the network nor an archive.
	PullNever
)

// String returns IfMissing, Always or Never.
func (p PullPolicy) String() string {
	switch p {
	case PullIfMissing:
		return "IfMissing"
	case PullAlways:
		return "Always"
	case PullNever:
		return "Never"
	}
	return fmt.Sprintf("PullPolicy(%d)", int(p))
}

// Stage is what a pull is doing.
type Stage string

const (
	StageResolving Stage = "resolving" // asking what the reference means
	StagePulling   Stage = "pulling"   // fetching and unpacking, which happen together
	StageDone      Stage = "done"
)

// Progress is the state of a pull.
type Progress struct {
	Stage Stage
	// Layers is how many layers the image has, LayersDone how many of them are unpacked.
	Layers, LayersDone int
	// Done and Total count bytes as they are fetched, that is compressed. Layers that the store
	// has already, or that another process fetches, count as done when they are there. Done
	// decreases when a fetch that broke off begins again.
	Done, Total int64
}

// PullOptions adjusts one [Store.Resolve]. The zero value, and nil, mean the defaults.
type PullOptions struct {
	// HoldFor is the owner of a lease taken on the image in the same step ([Image.Hold]), so that
	// no [Store.Prune] can come between. Defaults to none.
	HoldFor string
	// Platform is what to choose from an image for several: os/architecture[/variant].
	// Defaults to linux/ and the architecture of this program.
	Platform string
	// Auth is used for the registry. Takes precedence over Keychain.
	Auth authn.Authenticator
	// Keychain finds the credentials for a registry. Defaults to [authn.DefaultKeychain], which
	// reads the configuration of Docker and Podman of the current user and runs the credential
	// helpers named there. A service must set Auth or Keychain, if only to [authn.Anonymous].
	Keychain authn.Keychain
	// PlainHTTP permits to talk to the registry without TLS if it does not answer with it. This
	// is always permitted for registries at localhost and at loopback addresses, and for those
	// of [StoreOptions.PlainHTTP]. Defaults to false.
	PlainHTTP bool
	// Mirrors replaces [StoreOptions.Mirrors]; an empty map means none. Defaults to those.
	Mirrors map[string][]string
	// StallTimeout is how long a registry may keep silent while it is waited for. Defaults to one
	// minute.
	StallTimeout time.Duration
	// Transport carries the requests. Registries redirect: to keep a client of a service from
	// reaching into the service's network, dial through something that checks the address.
	// Defaults to one that honours HTTPS_PROXY and NO_PROXY.
	Transport http.RoundTripper
	// Progress is called when a stage begins and now and then while bytes arrive. Calls do not
	// overlap; they should return soon, because the pull waits for them.
	Progress func(Progress)
}

// maxDocument limits manifests and configurations. Registries accept at least 4 MiB.
const maxDocument = 16 << 20

// source is an image that has been found but not unpacked.
type source struct {
	digest string
	config Config
	layers []blob
	close  func()
}

// blob is one layer of a source.
type blob struct {
	diffID string
	digest string // "" if the source has none
	size   int64  // as it will be read
	open   func(context.Context) (io.ReadCloser, error)
	remote bool // trying again may help
	// elsewhere opens the same blob at other places, to try in order.
	elsewhere []func(context.Context) (io.ReadCloser, error)
}

// Resolve finds an image and makes sure that it is unpacked in the store. The errors wrap the
// kinds of this package: [ErrNotFound], [ErrUnauthorized], [ErrRateLimited], [ErrUnavailable],
// [ErrUnsafeLayer], [ErrTooLarge], [ErrDigestMismatch], or [errors.ErrUnsupported] for an image of another platform or format.
//
// Several calls for the same layers, in this process or others, fetch each layer once: one does
// the work and the others wait for it. A call that fails or is cancelled leaves the layers that it
// completed; [Store.Prune] removes them unless another call has used them meanwhile.
func (s *Store) Resolve(ctx context.Context, ref Reference, policy PullPolicy, opts *PullOptions) (*Image, error) {
	if opts == nil {
		opts = &PullOptions{}
	}
	if ref.IsZero() {
		return nil, fmt.Errorf("resolve image: %w: the zero Reference", ErrInvalidReference)
	}
	img, err := s.resolve(ctx, ref, policy, opts)
	if err != nil {
		return nil, fmt.Errorf("resolve image %s: %w", ref, err)
	}
	return img, nil
}

func (s *Store) resolve(ctx context.Context, ref Reference, policy PullPolicy, opts *PullOptions) (*Image, error) {
	if policy < PullIfMissing || policy > PullNever {
		return nil, fmt.Errorf("unknown policy %v", policy)
	}
	if len(opts.HoldFor) > maxOwner {
		return nil, fmt.Errorf("PullOptions.HoldFor has %d bytes; want at most %d", len(opts.HoldFor), maxOwner)
	}
	platform, err := wantPlatform(opts.Platform)
	if err != nil {
		return nil, err
	}
	meter := &meter{report: opts.Progress}
	meter.stage(StageResolving)

	if ref.scheme == SchemeDir {
		img, err := s.directoryImage(ref)
		if err == nil {
			meter.stage(StageDone)
		}
		return img, err
	}
	if policy == PullNever || (policy == PullIfMissing && ref.scheme == SchemeRegistry) {
		img, err := s.fromStore(ctx, ref, platform, opts.HoldFor, "")
		if err == nil {
			meter.stage(StageDone)
			return img, nil
		}
		if err != errIncomplete {
			return nil, err
		}
		if policy == PullNever {
			return nil, fmt.Errorf("%w, and the policy %v forbids looking elsewhere", notInStore("it"), policy)
		}
	}

	ses, err := s.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer ses.end()
	var img *Image
	if ref.scheme == SchemeTar {
		img, err = s.pullTar(ctx, ses, ref, platform, policy, opts, meter)
	} else {
		img, err = s.pull(ctx, ses, ref, platform, opts, meter)
	}
	if err != nil {
		return nil, err
	}
	meter.stage(StageDone)
	return img, nil
}

// wantPlatform returns the platform to choose.
func wantPlatform(s string) (v1.Platform, error) {
	if s == "" {
		return v1.Platform{OS: "linux", Architecture: runtime.GOARCH}, nil
	}
	p, err := v1.ParsePlatform(s)
	if err != nil || p.OS == "" || p.Architecture == "" || p.String() != s {
		return v1.Platform{}, fmt.Errorf("PullOptions.Platform %q; want os/architecture[/variant], like linux/arm64", s)
	}
	return *p, nil
}

func (s *Store) directoryImage(ref Reference) (*Image, error) {
	dir, err := filepath.EvalSymlinks(ref.base)
	if err == nil {
		var fi fs.FileInfo
		if fi, err = os.Stat(dir); err == nil && !fi.IsDir() {
			err = &os.PathError{Op: "use as root filesystem", Path: dir, Err: unix.ENOTDIR}
		}
	}
	if err != nil {
		return nil, localError(err)
	}
	if dir == "/" {
		return nil, fmt.Errorf("%w: it is a link to /, this machine's own root filesystem", ErrInvalidReference)
	}
	img := &Image{Reference: ref, Layers: []Layer{{Dir: dir}}, store: s}
	return img, img.checkRuntimePaths()
}

// localError gives a failure to read a local file its kind.
func localError(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	return err
}

// fromStore returns what the store has, or errIncomplete. With file, only what was read from that
// version of the file.
func (s *Store) fromStore(ctx context.Context, ref Reference, platform v1.Platform, owner, file string) (*Image, error) {
	l, err := lock(ctx, s.path("lock"), false)
	if err != nil {
		return nil, err
	}
	defer l.unlock()
	var rec refRecord
	if err := readJSON(s.refPath(ref, platform.String()), &rec); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, errIncomplete
		}
		return nil, err
	}
	if file != "" && rec.File != file {
		return nil, errIncomplete
	}
	img, _, err := s.readImage(ref, rec.Digest)
	if err != nil {
		return nil, err
	}
	s.touch(rec.Digest)
	if owner != "" {
		err = s.addLease(owner, rec.Digest)
	}
	return img, err
}

// commit makes an image whose layers are all there known. The session wants the layers, so that
// they have not been pruned since they were unpacked.
func (s *Store) commit(ctx context.Context, ref Reference, platform v1.Platform, rec *imageRecord, file, owner string) (*Image, error) {
	l, err := lock(ctx, s.path("lock"), false)
	if err != nil {
		return nil, err
	}
	defer l.unlock()
	img, err := s.assemble(ref, rec)
	if err == errIncomplete {
		return nil, fmt.Errorf("a layer of %s disappeared from the store %s while it was pulled: was something in there deleted by hand?", rec.Digest, s.dir)
	}
	if err != nil {
		return nil, err
	}
	if err := img.checkRuntimePaths(); err != nil {
		return nil, err
	}
	if err := s.writeJSON(s.imagePath(rec.Digest), rec); err != nil {
		return nil, err
	}
	if err := failpoint.Fail("image/import/recorded"); err != nil {
		return nil, err
	}
	if owner != "" {
		if err := s.addLease(owner, rec.Digest); err != nil {
			return nil, err
		}
	}
	if err := failpoint.Fail("image/import/held"); err != nil {
		return nil, err
	}
	err = s.writeJSON(s.refPath(ref, platform.String()), refRecord{
		Reference: ref.String(), Platform: platform.String(), Digest: rec.Digest, Resolved: time.Now().UTC(), File: file,
	})
	return img, err
}

// pull brings an image that consists of layers into the store.
func (s *Store) pull(ctx context.Context, ses *session, ref Reference, platform v1.Platform, opts *PullOptions, meter *meter) (*Image, error) {
	var src *source
	var err error
	switch ref.scheme {
	case SchemeRegistry:
		src, err = s.fromRegistry(ctx, ref, platform, opts)
	case SchemeOCI, SchemeOCIArchive:
		src, err = s.fromLayout(ctx, ses, ref, platform)
	case SchemeDockerArchive:
		src, err = s.fromDockerArchive(ctx, ses, ref, platform)
	default:
		err = fmt.Errorf("scheme %q: %w", ref.scheme, errors.ErrUnsupported)
	}
	if err != nil {
		return nil, err
	}
	if src.close != nil {
		defer src.close()
	}
	if len(src.layers) > s.opts.MaxLayers {
		return nil, fmt.Errorf("%w: it has %d layers, more than %d (StoreOptions.MaxLayers)", ErrTooLarge, len(src.layers), s.opts.MaxLayers)
	}
	rec := &imageRecord{Digest: src.digest, Config: src.config, Layers: []imageLayer{}}
	var diffIDs []string
	for _, b := range src.layers {
		rec.Layers = append(rec.Layers, imageLayer{b.diffID, b.digest})
		diffIDs = append(diffIDs, b.diffID)
		meter.total += b.size
	}
	meter.layers = len(src.layers)
	if err := ses.want(ctx, diffIDs); err != nil {
		return nil, err
	}
	meter.stage(StagePulling)
	limits := &budget{maxEntries: s.opts.MaxEntries, maxBytes: s.opts.MaxBytes}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(s.opts.Parallel)
	for i, b := range src.layers {
		if gctx.Err() != nil {
			break
		}
		g.Go(func() error {
			if err := s.ensureLayer(gctx, ses, b, limits, meter); err != nil {
				return fmt.Errorf("layer %d of %d: %w", i+1, len(src.layers), err)
			}
			meter.layerDone()
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return s.commit(ctx, ref, platform, rec, "", opts.HoldFor)
}

// readLayer returns what is known of a layer if it is in the store.
func (s *Store) readLayer(diffID string) (layerRecord, bool, error) {
	var rec layerRecord
	err := readJSON(filepath.Join(s.layerDir(diffID), "layer.json"), &rec)
	if errors.Is(err, fs.ErrNotExist) {
		return rec, false, nil
	}
	return rec, err == nil, err
}

// retryDelays are the pauses after fetches that broke off.
func retryDelays() []time.Duration {
	return []time.Duration{500 * time.Millisecond, 2 * time.Second, 5 * time.Second}
}

// ensureLayer returns when the layer is in the store.
func (s *Store) ensureLayer(ctx context.Context, ses *session, b blob, limits *budget, meter *meter) error {
	done := func() (bool, error) {
		rec, ok, err := s.readLayer(b.diffID)
		if err != nil || !ok {
			return false, err
		}
		if err := limits.addEntries(rec.Entries); err != nil {
			return false, err
		}
		if err := limits.addBytes(rec.Bytes); err != nil {
			return false, err
		}
		meter.add(b.size)
		return true, nil
	}
	if ok, err := done(); ok || err != nil {
		return err
	}
	l, err := lock(ctx, s.path("locks", fileID(b.diffID)), true)
	if err != nil {
		return err
	}
	defer l.unlock()
	if ok, err := done(); ok || err != nil {
		return err
	}
	err = s.fetchTried(ctx, ses, b, limits, meter)
	for _, open := range b.elsewhere {
		if err == nil || ctx.Err() != nil || errors.Is(err, ErrTooLarge) {
			break
		}
		_, broken := errors.AsType[*sourceError](err)
		if _, failed := errors.AsType[*openError](err); !broken && !failed && !errors.Is(err, ErrDigestMismatch) {
			break // the layer itself is at fault, and is the same everywhere
		}
		s.log.Warn("image store: fetching a layer elsewhere", "layer", b.diffID, "error", err)
		b.open = open
		err = s.fetchTried(ctx, ses, b, limits, meter)
	}
	return err
}

// An openError is a failure to begin with a blob.
type openError struct{ error }

func (e *openError) Unwrap() error { return e.error }

// fetchTried fetches a layer from one place, again if it breaks off.
func (s *Store) fetchTried(ctx context.Context, ses *session, b blob, limits *budget, meter *meter) error {
	for _, delay := range append(retryDelays(), 0) {
		err := s.fetchLayer(ctx, ses, b, limits, meter)
		if _, broken := errors.AsType[*sourceError](err); !broken || !b.remote || delay == 0 {
			return err
		}
		s.log.Warn("image store: fetching a layer again", "layer", b.diffID, "error", err, "delay", delay)
		if err := pause(ctx, delay); err != nil {
			return err
		}
	}
	panic("unreachable: the last delay is 0")
}

func (s *Store) fetchLayer(ctx context.Context, ses *session, b blob, limits *budget, meter *meter) error {
	raw, err := b.open(ctx)
	if err != nil {
		return &openError{err}
	}
	defer raw.Close()
	src := &stream{
		ctx: ctx, raw: raw, size: b.size, digest: b.digest, progress: meter.add,
		budget: limits, maxRatio: s.opts.MaxRatio, abort: func() { raw.Close() },
	}
	_, err = s.unpackLayer(ctx, ses, src, b.diffID, limits)
	return err
}

// unpackLayer unpacks into the session and moves the result to its place. It returns the diffID,
// which is compared with want unless that is "".
func (s *Store) unpackLayer(ctx context.Context, ses *session, src *stream, want string, limits *budget) (_ string, err error) {
	defer func() {
		if err != nil {
			src.refund()
		}
	}()
	src.diffHash = sha256.New()
	if h, err := v1.NewHash(want); err == nil {
		if src.diffHash, err = v1.Hasher(h.Algorithm); err != nil {
			return "", err
		}
	}
	stage, err := os.MkdirTemp(ses.dir, "layer-")
	if err != nil {
		return "", err
	}
	defer func() {
		if err := RemoveAll(stage); err != nil {
			s.log.Warn("image store: cannot remove a temporary directory yet", "dir", stage, "error", err)
		}
	}()
	root := filepath.Join(stage, "fs")
	if err := os.Mkdir(root, 0o700); err != nil {
		return "", err
	}
	if err := src.open(); err != nil {
		return "", err
	}
	defer src.close()
	stats, err := unpack(ctx, root, src, limits, s.owners)
	if err != nil {
		return "", err
	}
	diffID, err := src.finish(want)
	if err != nil {
		return "", err
	}
	stats.Bytes = src.out + src.extra
	// No lock: the session is ours, and the name appears with the directory.
	record := filepath.Join(stage, "layer.json")
	if err := writeNewJSON(record, layerRecord{diffID, stats}); err != nil {
		return "", err
	}
	if want == "" {
		if err := ses.want(ctx, []string{diffID}); err != nil {
			return "", err
		}
	}
	if s.opts.Sync {
		if err := syncFileSystem(stage); err != nil {
			return "", err
		}
	}
	if err := os.Chmod(stage, s.opts.DirMode); err != nil {
		return "", err
	}
	if err := failpoint.Fail("image/import/unpacked"); err != nil {
		return "", err
	}
	err = os.Rename(stage, s.layerDir(diffID))
	if errors.Is(err, fs.ErrExist) || errors.Is(err, unix.ENOTEMPTY) {
		return diffID, nil // somebody else was faster
	}
	failpoint.Kill("image/import/placed")
	if err == nil && s.opts.Sync {
		err = syncFileSystem(s.path("layers"))
	}
	return diffID, err
}

func syncFileSystem(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("sync the file system of %s: %w", dir, err)
	}
	return nil
}

// pullTar brings a root filesystem archive into the store, as an image of one layer.
func (s *Store) pullTar(ctx context.Context, ses *session, ref Reference, platform v1.Platform, policy PullPolicy, opts *PullOptions, meter *meter) (*Image, error) {
	f, fi, err := openRegular(ref.base)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	version := fileVersion(fi)
	if policy == PullIfMissing {
		if img, err := s.fromStore(ctx, ref, platform, opts.HoldFor, version); err != errIncomplete {
			return img, err
		}
	}
	h := sha256.New()
	if _, err := io.Copy(h, contextReader{ctx, f}); err != nil {
		return nil, err
	}
	digest := "sha256:" + hex.EncodeToString(h.Sum(nil))

	// The layer's name is known only when it has been unpacked, so this lock has the file's.
	l, err := lock(ctx, s.path("locks", "file-"+fileID(digest)), true)
	if err != nil {
		return nil, err
	}
	defer l.unlock()
	var rec imageRecord
	if err := readJSON(s.imagePath(digest), &rec); err == nil {
		var diffIDs []string
		for _, layer := range rec.Layers {
			diffIDs = append(diffIDs, layer.DiffID)
		}
		if err := ses.want(ctx, diffIDs); err != nil {
			return nil, err
		}
		if _, err := s.assemble(ref, &rec); err == nil {
			return s.commit(ctx, ref, platform, &rec, version, opts.HoldFor)
		} else if err != errIncomplete {
			return nil, err
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}

	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	meter.layers, meter.total = 1, fi.Size()
	meter.stage(StagePulling)
	limits := &budget{maxEntries: s.opts.MaxEntries, maxBytes: s.opts.MaxBytes}
	src := &stream{
		ctx: ctx, raw: f, size: fi.Size(), digest: digest, progress: meter.add,
		budget: limits, maxRatio: s.opts.MaxRatio,
	}
	diffID, err := s.unpackLayer(ctx, ses, src, "", limits)
	if err != nil {
		return nil, err
	}
	meter.layerDone()
	rec = imageRecord{Digest: digest, Layers: []imageLayer{{DiffID: diffID, Digest: digest}}}
	return s.commit(ctx, ref, platform, &rec, version, opts.HoldFor)
}

func fileVersion(fi fs.FileInfo) string {
	st, ok := fi.Sys().(*unixStat)
	if !ok {
		return ""
	}
	return fmt.Sprintf("dev=%d ino=%d size=%d mtime=%d.%09d ctime=%d.%09d", st.Dev, st.Ino, st.Size, st.Mtim.Sec, st.Mtim.Nsec, st.Ctim.Sec, st.Ctim.Nsec)
}

// contextReader stops reading when its context ends.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}

// platformOf shows a platform in a message.
func platformOf(os, arch string) string {
	if os == "" && arch == "" {
		return "unknown"
	}
	return os + "/" + arch
}

// normal says v8 of 64-bit ARM outright, which images leave out as often as not.
func normal(p v1.Platform) v1.Platform {
	if p.Architecture == "arm64" && p.Variant == "" {
		p.Variant = "v8"
	}
	return p
}

// choose picks the manifest for a platform from an index.
func choose(manifests []v1.Descriptor, want v1.Platform) (v1.Descriptor, error) {
	var fallback, unlabelled *v1.Descriptor
	var have []string
	for i, d := range manifests {
		if d.Platform == nil {
			if unlabelled == nil {
				unlabelled = &manifests[i]
			}
			continue
		}
		have = append(have, d.Platform.String())
		if !normal(*d.Platform).Satisfies(normal(want)) {
			continue
		}
		// Of several variants, the one that every machine of the architecture can run.
		switch d.Platform.Architecture + " " + d.Platform.Variant {
		case want.Architecture + " " + want.Variant, "amd64 v1", "arm64 v8":
			return d, nil
		}
		if fallback == nil {
			fallback = &manifests[i]
		}
	}
	switch {
	case fallback != nil:
		return *fallback, nil
	case unlabelled != nil:
		return *unlabelled, nil // its configuration says what it is for
	}
	slices.Sort(have)
	return v1.Descriptor{}, fmt.Errorf("%w: there is none for %s, only for: %s", ErrNotFound, want, strings.Join(slices.Compact(have), ", "))
}

// fetcher is where manifests and blobs come from: a repository or a layout.
type fetcher interface {
	// document reads a manifest or index. The result need not have been verified.
	document(ctx context.Context, d v1.Descriptor) ([]byte, error)
	// blob opens a blob.
	blob(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error)
	// remote says whether trying again may help.
	remote() bool
}

func verifyBytes(data []byte, want v1.Hash) error {
	h, err := v1.Hasher(want.Algorithm)
	if err != nil {
		return err
	}
	h.Write(data)
	if got := hex.EncodeToString(h.Sum(nil)); got != want.Hex {
		return fmt.Errorf("%w: got %s:%s, want %s", ErrDigestMismatch, want.Algorithm, got, want)
	}
	return nil
}

// sourceOf follows a descriptor through indexes to a manifest and its configuration.
func sourceOf(ctx context.Context, f fetcher, d v1.Descriptor, platform v1.Platform) (*source, error) {
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
			return nil, fmt.Errorf("manifest %s: %w", d.Digest, err)
		}
		if !isIndex {
			src, err := sourceOfManifest(ctx, f, raw, platform)
			if err != nil {
				return nil, err
			}
			src.digest = d.Digest.String()
			return src, nil
		}
		index, err := v1.ParseIndexManifest(bytes.NewReader(raw))
		if err != nil {
			return nil, fmt.Errorf("index %s: %w", d.Digest, err)
		}
		if d, err = choose(index.Manifests, platform); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("indexes within indexes within indexes: %w", errors.ErrUnsupported)
}

func sourceOfManifest(ctx context.Context, f fetcher, raw []byte, platform v1.Platform) (*source, error) {
	m, err := v1.ParseManifest(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	if !m.Config.MediaType.IsConfig() {
		return nil, fmt.Errorf("it is no container image: its configuration is of type %q: %w", m.Config.MediaType, errors.ErrUnsupported)
	}
	rawConfig, err := readDocument(ctx, f, m.Config)
	if err != nil {
		return nil, fmt.Errorf("configuration %s: %w", m.Config.Digest, err)
	}
	config, diffIDs, err := parseConfig(rawConfig, platform)
	if err != nil {
		return nil, err
	}
	if len(diffIDs) != len(m.Layers) {
		return nil, fmt.Errorf("%w: the manifest lists %d layers, the configuration %d", ErrUnsafeLayer, len(m.Layers), len(diffIDs))
	}
	src := &source{config: config}
	for i, d := range m.Layers {
		if !d.MediaType.IsLayer() || !d.MediaType.IsDistributable() {
			return nil, fmt.Errorf("layer %d of %d is of type %q: %w", i+1, len(m.Layers), d.MediaType, errors.ErrUnsupported)
		}
		if d.Size < 0 {
			return nil, fmt.Errorf("%w: the manifest states a size of %d for layer %d", ErrUnsafeLayer, d.Size, i+1)
		}
		src.layers = append(src.layers, blob{
			diffID: diffIDs[i], digest: d.Digest.String(), size: d.Size, remote: f.remote(),
			open: func(ctx context.Context) (io.ReadCloser, error) { return f.blob(ctx, d) },
		})
	}
	return src, nil
}

// readDocument reads a small blob whole and verifies it.
func readDocument(ctx context.Context, f fetcher, d v1.Descriptor) ([]byte, error) {
	if d.Size > maxDocument {
		return nil, fmt.Errorf("%w: %d bytes; at most %d are read", ErrTooLarge, d.Size, maxDocument)
	}
	rc, err := f.blob(ctx, d)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	raw, err := io.ReadAll(io.LimitReader(rc, maxDocument+1))
	if err != nil {
		return nil, err
	}
	return raw, verifyBytes(raw, d.Digest)
}

// parseConfig reads an image configuration and checks that the image can be run here.
func parseConfig(raw []byte, want v1.Platform) (Config, []string, error) {
	cf, err := v1.ParseConfigFile(bytes.NewReader(raw))
	if err != nil {
		return Config{}, nil, fmt.Errorf("%w: configuration: %w", ErrUnsafeLayer, err)
	}
	// Configurations made by old tools say nothing about the platform.
	if (cf.OS != "" && cf.OS != want.OS) || (cf.Architecture != "" && cf.Architecture != want.Architecture) {
		return Config{}, nil, fmt.Errorf("it is for %s, not for %s: %w", platformOf(cf.OS, cf.Architecture), want, errors.ErrUnsupported)
	}
	c := Config{
		Env: cf.Config.Env, Entrypoint: cf.Config.Entrypoint, Cmd: cf.Config.Cmd,
		WorkingDir: cf.Config.WorkingDir, User: cf.Config.User, Labels: cf.Config.Labels,
		StopSignal: cf.Config.StopSignal, OnBuild: cf.Config.OnBuild, Shell: cf.Config.Shell, Healthcheck: cf.Config.Healthcheck, OS: cf.OS, Architecture: cf.Architecture, Created: cf.Created.Time,
	}
	for p := range cf.Config.ExposedPorts {
		c.ExposedPorts = append(c.ExposedPorts, p)
	}
	for v := range cf.Config.Volumes {
		c.Volumes = append(c.Volumes, v)
	}
	slices.Sort(c.ExposedPorts)
	slices.Sort(c.Volumes)
	// JSON can say NUL; execve(2) and mount(2) would see a different string than a check did.
	for _, s := range slices.Concat(c.Env, c.Entrypoint, c.Cmd, c.Volumes, []string{c.WorkingDir, c.User, c.StopSignal}) {
		if strings.ContainsRune(s, 0) {
			return Config{}, nil, fmt.Errorf("%w: configuration: %s contains a NUL byte", ErrUnsafeLayer, quoted(s))
		}
	}
	var diffIDs []string
	for _, d := range cf.RootFS.DiffIDs {
		diffIDs = append(diffIDs, d.String())
	}
	return c, diffIDs, nil
}

// meter adds up progress and reports it.
type meter struct {
	report func(Progress)

	mu         sync.Mutex
	current    Stage
	layers     int
	layersDone int
	done       int64
	total      int64
	reported   int64
}

func (m *meter) send() {
	m.reported = m.done
	if m.report != nil {
		m.report(Progress{m.current, m.layers, m.layersDone, m.done, m.total})
	}
}

func (m *meter) stage(s Stage) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.current = s
	m.send()
}

func (m *meter) add(n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.done += n
	// A few hundred reports for a large image, none too far apart for a small one.
	if n < 0 || m.done-m.reported >= max(64<<10, m.total/256) {
		m.send()
	}
}

func (m *meter) layerDone() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.layersDone++
	m.send()
}
