//go:build linux

package build

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/image"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/source"
	srctypes "github.com/moby/buildkit/source/types"
)

// localRegistry is where Dockerfiles find the builds of this engine, as
// daytona.local/build@sha256:…. No request ever leaves for it.
const localRegistry = "daytona.local"

// LocalName is what a Dockerfile, or a spec, calls a built image with @ and its
// digest.
const LocalName = localRegistry + "/build"

// holder is the owner, in the image store, of what the build that is going on
// reads from it.
const holder = "builder"

// bases answers BuildKit's requests for images from this machine where it has
// them, and sends the others on. It sees what is asked for after all variables
// have got their values, wherever it stood in the Dockerfile; and it takes a name
// for nothing but one of a registry, so that none can be a path.
type bases struct {
	e    *engine
	opts Options
	dir  string // of the builder
	next http.RoundTripper
}

// blob is something that a registry would have.
type blob struct {
	mediaType string
	size      int64
	open      func(ctx context.Context) (io.ReadCloser, error)
}

// shelf is what the build that is going on has found on this machine so far.
type shelf struct {
	given map[string]image.Reference // BuildOptions.Bases, by what BuildKit makes of their names
	mu    sync.Mutex
	blobs map[string]blob   // by digest
	tags  map[string]string // digests of manifests, by reference
}

// shelfOf checks what the caller has named for the Dockerfile.
func shelfOf(opts daytona.BuildOptions) (*shelf, error) {
	s := &shelf{given: map[string]image.Reference{}, blobs: map[string]blob{}, tags: map[string]string{}}
	for name, to := range opts.Bases {
		refuse := func(kind daytona.Kind, value, message string, err error) error {
			return &daytona.Error{Kind: kind, Op: op, Field: "Bases", Value: value, Message: message, Err: err}
		}
		n, err := image.ParseReference("docker://" + name)
		if err != nil || n.Digest() != "" || name == "scratch" {
			return nil, refuse(daytona.KindInvalid, name, "the name must be like one of an image in a registry", err)
		}
		ref, err := image.ParseReference(to)
		if err != nil {
			return nil, refuse(daytona.KindInvalid, to, "", err)
		}
		if ref.Scheme() == image.SchemeDir {
			return nil, refuse(daytona.KindUnsupported, to, "a directory in place cannot be built on; give an image or a tarball", nil)
		}
		s.given[n.String()] = ref
	}
	return s, nil
}

// RoundTrip implements http.RoundTripper.
func (b *bases) RoundTrip(r *http.Request) (*http.Response, error) {
	host := r.URL.Host
	if host == "registry-1.docker.io" {
		host = "docker.io"
	}
	now, err := b.e.running()
	if err != nil {
		return nil, err
	}
	repo, what, id := splitPath(r.URL.Path)
	if what != "" && (r.Method == http.MethodGet || r.Method == http.MethodHead) {
		digest, found, ok, err := b.find(r.Context(), now, host, repo, what, id)
		if err != nil {
			return nil, err
		}
		if ok {
			return answer(r, digest, found)
		}
	}
	if host == localRegistry {
		return response(r, http.StatusNotFound, http.Header{}, nil, 0), nil
	}
	resp, err := b.next.RoundTrip(r)
	if err == nil && resp.StatusCode == http.StatusRequestedRangeNotSatisfiable && r.Method == http.MethodGet && r.Header.Get("Range") != "" {
		return b.again(r, resp)
	}
	if err == nil && what != "" && r.Method == http.MethodGet && resp.StatusCode == http.StatusOK {
		if err := refuseURLs(resp); err != nil {
			resp.Body.Close()
			return nil, err
		}
	}
	return resp, err
}

// maxManifest bounds what may be a manifest, in bytes. BuildKit reads none that is
// as large.
const maxManifest = 16 << 20

// refuseURLs refuses a manifest that names other places for its layers: BuildKit
// would ask there, wherever that is, with a client of its own.
func refuseURLs(resp *http.Response) error {
	body := bufio.NewReader(resp.Body)
	closer := resp.Body
	resp.Body = struct {
		io.Reader
		io.Closer
	}{body, closer}
	begin, _ := body.Peek(512)
	if begin = bytes.TrimLeft(begin, " \t\r\n"); len(begin) > 0 && begin[0] != '{' {
		return nil // a layer
	}
	data, err := io.ReadAll(io.LimitReader(body, maxManifest))
	resp.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(data), errReader{err}, body), closer}
	type descriptor struct {
		URLs []string `json:"urls"`
	}
	var m struct {
		Config    descriptor   `json:"config"`
		Layers    []descriptor `json:"layers"`
		Manifests []descriptor `json:"manifests"`
	}
	if json.Unmarshal(data, &m) != nil {
		return nil
	}
	for _, d := range append(append(m.Layers, m.Manifests...), m.Config) {
		if len(d.URLs) > 0 {
			return &daytona.Error{Kind: daytona.KindUnsupported, Op: op, Field: "FROM", Value: d.URLs[0], Message: "a layer that lies elsewhere than in the image's registry is not supported"}
		}
	}
	return nil
}

// errReader ends with an error, if there is one.
type errReader struct{ err error }

func (e errReader) Read([]byte) (int, error) {
	if e.err == nil {
		return 0, io.EOF
	}
	return 0, e.err
}

// again asks for the whole of what a registry knows no parts of. BuildKit goes on
// with a layer where it broke off, and would fail there for ever.
func (b *bases) again(r *http.Request, refused *http.Response) (*http.Response, error) {
	n, ok := rangeStart(r)
	if !ok {
		return refused, nil
	}
	refused.Body.Close()
	whole := r.Clone(r.Context())
	whole.Header.Del("Range")
	resp, err := b.next.RoundTrip(whole)
	if err != nil || resp.StatusCode != http.StatusOK {
		return resp, err
	}
	if _, err := io.CopyN(io.Discard, resp.Body, n); err != nil {
		resp.Body.Close()
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	if resp.ContentLength >= 0 {
		resp.Header.Set("Content-Length", strconv.FormatInt(resp.ContentLength-n, 10))
		resp.Header.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", n, resp.ContentLength-1, resp.ContentLength))
		resp.ContentLength -= n
	}
	resp.StatusCode, resp.Status = http.StatusPartialContent, "206 Partial Content"
	return resp, nil
}

// rangeStart is the N of a request for "bytes=N-".
func rangeStart(r *http.Request) (int64, bool) {
	from, _ := strings.CutPrefix(r.Header.Get("Range"), "bytes=")
	start, _, ok := strings.Cut(from, "-")
	n, err := strconv.ParseInt(start, 10, 64)
	return n, ok && err == nil && n > 0
}

// splitPath takes /v2/<repository>/manifests/<tag or digest> and
// /v2/<repository>/blobs/<digest> apart.
func splitPath(p string) (repo, what, id string) {
	rest, ok := strings.CutPrefix(p, "/v2/")
	if !ok {
		return "", "", ""
	}
	for _, kind := range []string{"manifests", "blobs"} {
		if i := strings.LastIndex(rest, "/"+kind+"/"); i > 0 {
			return rest[:i], kind, rest[i+len(kind)+2:]
		}
	}
	return "", "", ""
}

func response(r *http.Request, status int, h http.Header, body io.ReadCloser, size int64) *http.Response {
	if body == nil {
		body = http.NoBody
	}
	return &http.Response{StatusCode: status, Status: strconv.Itoa(status) + " " + http.StatusText(status), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: h, Body: body, ContentLength: size, Request: r}
}

func answer(r *http.Request, digest string, found blob) (*http.Response, error) {
	h := http.Header{"Content-Type": {found.mediaType}, "Docker-Content-Digest": {digest}, "Content-Length": {strconv.FormatInt(found.size, 10)}}
	if r.Method == http.MethodHead {
		return response(r, http.StatusOK, h, nil, found.size), nil
	}
	body, err := found.open(r.Context())
	if err != nil {
		return nil, err
	}
	if n, ok := rangeStart(r); ok && n <= found.size {
		if _, err := io.CopyN(io.Discard, body, n); err != nil {
			body.Close()
			return nil, err
		}
		h.Set("Content-Length", strconv.FormatInt(found.size-n, 10))
		h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", n, found.size-1, found.size))
		return response(r, http.StatusPartialContent, h, body, found.size-n), nil
	}
	return response(r, http.StatusOK, h, body, found.size), nil
}

// find finds a manifest or another blob on this machine.
func (b *bases) find(ctx context.Context, now *running, host, repo, what, id string) (digest string, _ blob, ok bool, err error) {
	s := now.shelf
	s.mu.Lock()
	defer s.mu.Unlock()
	if strings.HasPrefix(id, "sha256:") || strings.HasPrefix(id, "sha512:") {
		if found, ok := s.blobs[id]; ok {
			return id, found, true, nil
		}
		if host != localRegistry || repo != "build" {
			return "", blob{}, false, nil
		}
		if what == "manifests" {
			ref, err := image.ParseReference("oci:" + filepath.Join(b.dir, "oci") + "@" + id)
			if err != nil {
				return "", blob{}, false, nil
			}
			img, err := ref.Open()
			if err != nil {
				return "", blob{}, false, nil // it is not there
			}
			digest, err = s.put(img)
			return digest, s.blobs[digest], err == nil, err
		}
		algorithm, hex, _ := strings.Cut(id, ":")
		if strings.Trim(hex, "0123456789abcdef") != "" {
			return "", blob{}, false, nil
		}
		file := filepath.Join(b.dir, "oci", "blobs", algorithm, hex)
		st, err := os.Stat(file)
		if err != nil {
			return "", blob{}, false, nil
		}
		return id, blob{"application/octet-stream", st.Size(), func(context.Context) (io.ReadCloser, error) { return os.Open(file) }}, true, nil
	}
	if what != "manifests" || host == localRegistry {
		return "", blob{}, false, nil
	}
	// Never anything but a name in a registry, whatever it looks like.
	ref, err := image.ParseReference("docker://" + host + "/" + repo + ":" + id)
	if err != nil {
		return "", blob{}, false, nil
	}
	if d, ok := s.tags[ref.String()]; ok {
		return d, s.blobs[d], true, nil
	}
	if given, isGiven := s.given[ref.String()]; isGiven {
		digest, err = b.open(ctx, s, given)
	} else if now.opts.Pull {
		return "", blob{}, false, nil
	} else {
		var img *image.Image
		if img, err = b.opts.Store.Resolve(ctx, ref, image.PullNever, &image.PullOptions{HoldFor: holder}); errors.Is(err, image.ErrNotFound) {
			return "", blob{}, false, nil
		}
		if err == nil {
			digest, err = b.pack(ctx, s, img)
		}
	}
	if err != nil {
		return "", blob{}, false, err
	}
	s.tags[ref.String()] = digest
	return digest, s.blobs[digest], true, nil
}

// open puts what the caller has named on the shelf.
func (b *bases) open(ctx context.Context, s *shelf, ref image.Reference) (string, error) {
	if ref.Scheme() == image.SchemeOCI {
		img, err := ref.Open()
		if err != nil {
			return "", err
		}
		return s.put(img)
	}
	img, err := b.opts.Store.Resolve(ctx, ref, image.PullIfMissing, &image.PullOptions{HoldFor: holder, Keychain: b.opts.Keychain})
	if err != nil {
		return "", err
	}
	return b.pack(ctx, s, img)
}

func inMemory(mediaType types.MediaType, data []byte) blob {
	return blob{string(mediaType), int64(len(data)), func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }}
}

// put puts an image that is packed already on the shelf. The caller holds s.mu.
func (s *shelf) put(img v1.Image) (string, error) {
	raw, err := img.RawManifest()
	if err != nil {
		return "", err
	}
	manifest, err := img.Manifest()
	if err != nil {
		return "", err
	}
	digest, err := img.Digest()
	if err != nil {
		return "", err
	}
	config, err := img.RawConfigFile()
	if err != nil {
		return "", err
	}
	layers, err := img.Layers()
	if err != nil {
		return "", err
	}
	for _, l := range layers {
		d, err := l.Digest()
		if err != nil {
			return "", err
		}
		size, err := l.Size()
		if err != nil {
			return "", err
		}
		s.blobs[d.String()] = blob{"application/octet-stream", size, func(context.Context) (io.ReadCloser, error) { return l.Compressed() }}
	}
	s.blobs[manifest.Config.Digest.String()] = inMemory(manifest.Config.MediaType, config)
	s.blobs[digest.String()] = inMemory(manifest.MediaType, raw)
	return digest.String(), nil
}

// packed is how a layer of the store looks as an archive.
type packed struct {
	Digest string `json:"digest"`
	Size   int64  `json:"size"`
}

// pack puts an image of the store on the shelf. The store keeps layers unpacked:
// they are packed as they are read, and once before that to know their digests.
// The caller holds s.mu.
func (b *bases) pack(ctx context.Context, s *shelf, img *image.Image) (string, error) {
	c := img.Config
	config := v1.ConfigFile{OS: "linux", Architecture: c.Architecture, Created: v1.Time{Time: c.Created}, RootFS: v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{}}}
	if config.Architecture == "" {
		config.Architecture = ownArchitecture
	}
	config.Config = v1.Config{Env: c.Env, Entrypoint: c.Entrypoint, Cmd: c.Cmd, WorkingDir: c.WorkingDir, User: c.User, Labels: c.Labels, StopSignal: c.StopSignal,
		OnBuild: c.OnBuild, Shell: c.Shell, Healthcheck: c.Healthcheck, ExposedPorts: set(c.ExposedPorts), Volumes: set(c.Volumes)}
	manifest := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Layers: []v1.Descriptor{}}
	for _, l := range img.Layers {
		p, err := b.measure(ctx, l)
		if err != nil {
			return "", err
		}
		h, err := v1.NewHash(p.Digest)
		if err != nil {
			return "", err
		}
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, h)
		manifest.Layers = append(manifest.Layers, v1.Descriptor{MediaType: types.OCIUncompressedLayer, Digest: h, Size: p.Size})
		s.blobs[p.Digest] = blob{string(types.OCIUncompressedLayer), p.Size, func(ctx context.Context) (io.ReadCloser, error) {
			r, w := io.Pipe()
			go func() {
				diffID, _, err := image.ExportLayer(ctx, l.Dir, w, nil)
				if err == nil && diffID != p.Digest {
					os.Remove(b.record(l))
					err = fmt.Errorf("layer %s of the image store is not what it was; build again", l.DiffID)
				}
				w.CloseWithError(err)
			}()
			return r, nil
		}}
	}
	rawConfig, err := json.Marshal(config)
	if err != nil {
		return "", err
	}
	if manifest.Config.Digest, manifest.Config.Size, err = v1.SHA256(bytes.NewReader(rawConfig)); err != nil {
		return "", err
	}
	manifest.Config.MediaType = types.OCIConfigJSON
	raw, err := json.Marshal(manifest)
	if err != nil {
		return "", err
	}
	digest, _, err := v1.SHA256(bytes.NewReader(raw))
	if err != nil {
		return "", err
	}
	s.blobs[manifest.Config.Digest.String()] = inMemory(manifest.Config.MediaType, rawConfig)
	s.blobs[digest.String()] = inMemory(manifest.MediaType, raw)
	return digest.String(), nil
}

func set(names []string) map[string]struct{} {
	if len(names) == 0 {
		return nil
	}
	m := map[string]struct{}{}
	for _, n := range names {
		m[n] = struct{}{}
	}
	return m
}

// record is where the measures of a layer are kept.
func (b *bases) record(l image.Layer) string {
	return filepath.Join(b.dir, "packed", strings.ReplaceAll(l.DiffID, ":", "-")+".json")
}

// measure tells a layer's digest and size as an archive.
func (b *bases) measure(ctx context.Context, l image.Layer) (p packed, err error) {
	file := b.record(l)
	if data, err := os.ReadFile(file); err == nil && json.Unmarshal(data, &p) == nil && p.Digest != "" {
		return p, nil
	}
	if p.Digest, p.Size, err = image.ExportLayer(ctx, l.Dir, io.Discard, nil); err != nil {
		return p, err
	}
	data, err := json.Marshal(p)
	if err != nil {
		return p, err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return p, err
	}
	if err := os.WriteFile(file+".new", data, 0o600); err != nil {
		return p, err
	}
	return p, os.Rename(file+".new", file)
}

// refusedSource takes the place of BuildKit's own sources that a Dockerfile must
// not reach: git, which runs the host's git with the host's network, and layouts
// and blobs, which are no images of a registry.
type refusedSource struct{}

func (refusedSource) Schemes() []string {
	return []string{srctypes.GitScheme, srctypes.OCIScheme, srctypes.DockerImageBlobScheme, srctypes.OCIBlobScheme}
}

func (refusedSource) Identifier(scheme, ref string, _ map[string]string, _ *pb.Platform) (source.Identifier, error) {
	if scheme == srctypes.GitScheme {
		return nil, fmt.Errorf("ADD of a git repository (%s) is not supported: clone it in a RUN step", ref)
	}
	return nil, fmt.Errorf("a source %s://%s is not supported: name an image of a registry", scheme, ref)
}

func (refusedSource) Resolve(context.Context, source.Identifier, *session.Manager, solver.Vertex) (source.SourceInstance, error) {
	return nil, errors.ErrUnsupported
}
