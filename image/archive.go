//go:build linux

package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
)

// unixStat is what os.FileInfo.Sys returns.
type unixStat = syscall.Stat_t

// openRegular opens a file of the caller's for reading, and does not get stuck on a FIFO.
func openRegular(path string) (*os.File, fs.FileInfo, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, localError(err)
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = &os.PathError{Op: "read", Path: path, Err: errors.New("not a regular file")}
	}
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, fi, nil
}

func writeNewJSON(path string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o600)
}

// files is a read-only set of named files: a layout directory, or an archive.
type files interface {
	open(name string) (rc io.ReadCloser, size int64, err error)
	close()
}

type dirFiles struct{ root *os.Root }

func (d dirFiles) open(name string) (io.ReadCloser, int64, error) {
	f, err := d.root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, localError(err)
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = &os.PathError{Op: "read", Path: name, Err: errors.New("not a regular file")}
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, fi.Size(), nil
}

func (d dirFiles) close() { d.root.Close() }

// maxArchiveEntries bounds the table of contents of an image archive, which is kept in memory.
const maxArchiveEntries = 100_000

// tarFiles reads the members of an uncompressed archive where they are.
type tarFiles struct {
	f       *os.File
	members map[string]tarMember
}

type tarMember struct {
	offset, size int64
	link         string // clean path within the archive; "" for a file
}

func (t *tarFiles) close() { t.f.Close() }

func (t *tarFiles) open(name string) (io.ReadCloser, int64, error) {
	m, ok := t.members[path.Clean(name)]
	for i := 0; ok && m.link != "" && i < 8; i++ { // docker save links to layers that it has written before
		m, ok = t.members[m.link]
	}
	if !ok || m.link != "" {
		return nil, 0, fmt.Errorf("%w: %s has no file %s", ErrNotFound, t.f.Name(), quoted(name))
	}
	return io.NopCloser(io.NewSectionReader(t.f, m.offset, m.size)), m.size, nil
}

// openArchive reads the table of contents of an archive of an image. A compressed one is unpacked
// into the session first, because its members are read in another order than they come.
func (s *Store) openArchive(ctx context.Context, ses *session, name string) (_ *tarFiles, err error) {
	f, fi, err := openRegular(name)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	magic := make([]byte, 4)
	if _, err := f.ReadAt(magic, 0); err != nil && err != io.EOF {
		return nil, err
	}
	if bytes.HasPrefix(magic, []byte{0x1f, 0x8b}) || bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}) {
		plain, err := s.decompress(ctx, ses, f, fi.Size())
		if err != nil {
			return nil, err
		}
		f.Close()
		f = plain
	}
	t := &tarFiles{f: f, members: map[string]tarMember{}}
	r := tar.NewReader(f)
	for {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		h, err := r.Next()
		if err == io.EOF {
			return t, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %s is no image archive: %w", ErrUnsafeLayer, name, err)
		}
		if len(t.members) >= maxArchiveEntries {
			return nil, fmt.Errorf("%w: %s has more than %d members", ErrTooLarge, name, maxArchiveEntries)
		}
		// tar.Reader reads header by header, so the file stands where the contents begin.
		offset, err := f.Seek(0, io.SeekCurrent)
		if err != nil {
			return nil, err
		}
		member := path.Clean(h.Name)
		switch h.Typeflag {
		case tar.TypeReg:
			if isSparse(h) {
				continue
			}
			t.members[member] = tarMember{offset: offset, size: h.Size}
		case tar.TypeSymlink:
			t.members[member] = tarMember{link: path.Join(path.Dir(member), h.Linkname)}
		case tar.TypeLink:
			t.members[member] = tarMember{link: path.Clean(h.Linkname)}
		}
	}
}

// isSparse reports whether the contents in the archive are not the file's as they stand.
func isSparse(h *tar.Header) bool {
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}

func (s *Store) decompress(ctx context.Context, ses *session, f *os.File, size int64) (_ *os.File, err error) {
	src := &stream{
		ctx: ctx, raw: f, size: size, diffHash: discardHash{},
		budget: &budget{maxBytes: s.opts.MaxBytes}, maxRatio: s.opts.MaxRatio,
	}
	if err := src.open(); err != nil {
		return nil, err
	}
	defer src.close()
	plain, err := os.CreateTemp(ses.dir, "archive-")
	if err != nil {
		return nil, err
	}
	if _, err := io.Copy(plain, src.plain); err != nil {
		plain.Close()
		return nil, src.corrupt(err)
	}
	if _, err := plain.Seek(0, io.SeekStart); err != nil {
		plain.Close()
		return nil, err
	}
	return plain, nil
}

// discardHash is for streams whose digest nobody needs.
type discardHash struct{}

func (discardHash) Write(p []byte) (int, error) { return len(p), nil }
func (discardHash) Sum(b []byte) []byte         { return b }
func (discardHash) Reset()                      {}
func (discardHash) Size() int                   { return 0 }
func (discardHash) BlockSize() int              { return 1 }

func readAll(f files, name string) ([]byte, error) {
	rc, size, err := f.open(name)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	if size > maxDocument {
		return nil, fmt.Errorf("%w: %s has %d bytes; at most %d are read", ErrTooLarge, quoted(name), size, maxDocument)
	}
	return io.ReadAll(io.LimitReader(rc, maxDocument))
}

// sniffIndex tells an index from a manifest by its contents; either may lack a media type.
func sniffIndex(raw []byte) (bool, error) {
	var probe struct {
		SchemaVersion int               `json:"schemaVersion"`
		Manifests     []json.RawMessage `json:"manifests"`
		Config        json.RawMessage   `json:"config"`
	}
	if err := json.Unmarshal(raw, &probe); err != nil {
		return false, fmt.Errorf("not JSON: %w", err)
	}
	switch {
	case probe.SchemaVersion == 1:
		return false, fmt.Errorf("the format before Docker 1.10, schema 1: %w", errors.ErrUnsupported)
	case probe.Config != nil && probe.Manifests != nil:
		// https://github.com/opencontainers/image-spec/security/advisories/GHSA-77vh-xpmg-72qh
		return false, fmt.Errorf("%w: it is a manifest and an index at once", ErrUnsafeLayer)
	case probe.Config == nil && probe.Manifests == nil:
		return false, fmt.Errorf("neither an image manifest nor an index: %w", errors.ErrUnsupported)
	}
	return probe.Manifests != nil, nil
}

// layoutFetcher reads the blobs of an OCI image layout.
// https://github.com/opencontainers/image-spec/blob/v1.1.1/image-layout.md
type layoutFetcher struct{ files }

func blobName(h v1.Hash) string { return path.Join("blobs", h.Algorithm, h.Hex) }

func (l layoutFetcher) document(_ context.Context, d v1.Descriptor) ([]byte, error) {
	return readAll(l.files, blobName(d.Digest))
}

func (l layoutFetcher) blob(_ context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	rc, _, err := l.open(blobName(d.Digest))
	return rc, err
}

func (l layoutFetcher) remote() bool { return false }

// layoutNames are the annotations by which tools name the images of a layout.
func layoutName(d v1.Descriptor) string {
	for _, key := range []string{"org.opencontainers.image.ref.name", "io.containerd.image.name"} {
		if n := d.Annotations[key]; n != "" {
			return n
		}
	}
	return ""
}

func (s *Store) fromLayout(ctx context.Context, ses *session, ref Reference, platform v1.Platform) (_ *source, err error) {
	f, index, err := s.openLayout(ctx, ses, ref)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.close()
		}
	}()
	desc, err := chooseInLayout(index.Manifests, ref, platform)
	if err != nil {
		return nil, err
	}
	src, err := sourceOf(ctx, layoutFetcher{f}, desc, platform)
	if err != nil {
		return nil, err
	}
	src.close = f.close
	return src, nil
}

// openLayout opens a layout, a directory or an archive, and reads its index.
func (s *Store) openLayout(ctx context.Context, ses *session, ref Reference) (_ files, _ *v1.IndexManifest, err error) {
	var f files
	if ref.scheme == SchemeOCIArchive {
		f, err = s.openArchive(ctx, ses, ref.base)
	} else {
		var root *os.Root
		root, err = os.OpenRoot(ref.base)
		f = dirFiles{root}
		err = localError(err)
	}
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			f.close()
		}
	}()
	raw, err := readAll(f, "index.json")
	if err != nil {
		return nil, nil, fmt.Errorf("%s is no OCI image layout: %w", ref.base, err)
	}
	index, err := v1.ParseIndexManifest(bytes.NewReader(raw))
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %s: index.json: %w", ErrUnsafeLayer, ref.base, err)
	}
	return f, index, nil
}

func chooseInLayout(manifests []v1.Descriptor, ref Reference, platform v1.Platform) (v1.Descriptor, error) {
	if ref.digest != "" {
		// Not only what index.json lists: it may be within an index.
		h, err := v1.NewHash(ref.digest)
		return v1.Descriptor{Digest: h}, err
	}
	var names []string
	var matching []v1.Descriptor
	for _, d := range manifests {
		n := layoutName(d)
		names = append(names, n)
		if ref.tag == "" || ref.tag == n || ref.tag == d.Annotations["io.containerd.image.name"] {
			matching = append(matching, d)
		}
	}
	slices.Sort(names)
	names = slices.Compact(names)
	switch {
	case len(matching) == 0 && ref.tag == "":
		return v1.Descriptor{}, fmt.Errorf("%w: the layout is empty", ErrNotFound)
	case len(matching) == 0:
		return v1.Descriptor{}, fmt.Errorf("%w: the layout names no image %q, only %q", ErrNotFound, ref.tag, names)
	case ref.tag == "" && len(names) > 1:
		return v1.Descriptor{}, fmt.Errorf("%w: the layout holds several images, %q; add a colon and the name of one", ErrNotFound, names)
	}
	return choose(matching, platform)
}

// dockerManifest is manifest.json in what docker save writes.
// https://github.com/moby/docker-image-spec/blob/v1.3.1/spec.md#combined-image-json--filesystem-changeset-format
type dockerManifest struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func (s *Store) fromDockerArchive(ctx context.Context, ses *session, ref Reference, platform v1.Platform) (_ *source, err error) {
	f, err := s.openArchive(ctx, ses, ref.base)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.close()
		}
	}()
	raw, err := readAll(f, "manifest.json")
	if err != nil {
		return nil, fmt.Errorf("%s is no Docker archive: %w", ref.base, err)
	}
	var manifests []dockerManifest
	if err := json.Unmarshal(raw, &manifests); err != nil {
		return nil, fmt.Errorf("%w: %s: manifest.json: %w", ErrUnsafeLayer, ref.base, err)
	}
	m, err := chooseInArchive(manifests, ref.tag)
	if err != nil {
		return nil, err
	}
	rawConfig, err := readAll(f, m.Config)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	hash, _, err := v1.SHA256(bytes.NewReader(rawConfig))
	if err != nil {
		return nil, err
	}
	// The file is named after its digest: <hex>.json, or blobs/sha256/<hex> since Docker 25.
	if stated, err := v1.NewHash("sha256:" + strings.TrimSuffix(path.Base(m.Config), ".json")); err == nil {
		if err := verifyBytes(rawConfig, stated); err != nil {
			return nil, fmt.Errorf("configuration: %w", err)
		}
	}
	config, diffIDs, err := parseConfig(rawConfig, platform)
	if err != nil {
		return nil, err
	}
	if len(diffIDs) != len(m.Layers) {
		return nil, fmt.Errorf("%w: manifest.json lists %d layers, the configuration %d", ErrUnsafeLayer, len(m.Layers), len(diffIDs))
	}
	src := &source{digest: hash.String(), config: config, close: f.close}
	for i, layer := range m.Layers {
		rc, size, err := f.open(layer)
		if err != nil {
			return nil, fmt.Errorf("layer %d of %d: %w", i+1, len(m.Layers), err)
		}
		rc.Close()
		src.layers = append(src.layers, blob{diffID: diffIDs[i], size: size, open: func(context.Context) (io.ReadCloser, error) {
			rc, _, err := f.open(layer)
			return rc, err
		}})
	}
	return src, nil
}

func chooseInArchive(manifests []dockerManifest, tag string) (dockerManifest, error) {
	canonical := func(s string) string {
		if ref, err := name.NewTag(s); err == nil {
			return ref.Name()
		}
		return s
	}
	var have []string
	for _, m := range manifests {
		have = append(have, m.RepoTags...)
		if tag != "" && slices.ContainsFunc(m.RepoTags, func(t string) bool { return canonical(t) == canonical(tag) }) {
			return m, nil
		}
	}
	switch {
	case len(manifests) == 0:
		return dockerManifest{}, fmt.Errorf("%w: the archive is empty", ErrNotFound)
	case tag != "":
		return dockerManifest{}, fmt.Errorf("%w: the archive has no image %q, only %q", ErrNotFound, tag, have)
	case len(manifests) > 1:
		return dockerManifest{}, fmt.Errorf("%w: the archive holds several images, %q; add a colon and the tag of one", ErrNotFound, have)
	}
	return manifests[0], nil
}
