package local

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/image"
	"github.com/daytona-go/daytona/internal/failpoint"
	"github.com/daytona-go/daytona/internal/lifecycle"
	"github.com/daytona-go/daytona/internal/tree"
)

// A snapshot on its way to another machine is, compressed with zstd,
//
//	an exportedSnapshot, JSON
//	each layer, the lowest first: a stream of tree.Pack
//	the SHA-256 of all before it
//
// All but the last are in chunks, each its length in four bytes, big-endian, and
// as many bytes; one of length 0 ends a part.

// exportedSnapshot says what follows.
type exportedSnapshot struct {
	Version    int               `json:"version"`
	Image      string            `json:"image"`
	Digest     string            `json:"digest"`
	Config     image.Config      `json:"config"`
	Sandbox    string            `json:"sandbox,omitempty"`
	Entrypoint []string          `json:"entrypoint,omitempty"`
	Resources  daytona.Resources `json:"resources"`
	Layers     int               `json:"layers"`
}

const (
	exportVersion = 1
	maxChunk      = 1 << 20
	// digestLayers is in the place of an image's digest where the image's files
	// are layers of the snapshot's own.
	digestLayers = "layers"
	exportOp     = "export snapshot"
	importOp     = "import snapshot"
)

// ExportSnapshot implements daytona.SnapshotMover. An image of a registry, or of
// the machine's own files, is named; one that is nowhere else, such as that of a
// build, is in it.
func (e *engine) ExportSnapshot(ctx context.Context, idOrName string, w io.Writer) (err error) {
	s, done, err := e.Snapshots.UseSnapshot(exportOp, idOrName)
	if err != nil {
		return err
	}
	defer done()
	defer func() { err = lifecycle.KernelError(exportOp, idOrName, err) }()
	var dirs []string
	h := exportedSnapshot{
		Version: exportVersion, Image: s.Own.Image, Digest: s.Own.Digest, Config: s.Own.Config, Sandbox: s.Sandbox, Entrypoint: s.Entrypoint, Resources: s.Resources,
	}
	if strings.HasPrefix(s.Own.Digest, "sha256:") {
		if ref, err := image.ParseReference(s.Own.Image); err != nil || ref.Scheme() != image.SchemeRegistry || ref.Registry() == "daytona.local" {
			h.Digest, dirs = digestLayers, slices.Clone(s.Own.Lowers)
		}
	}
	for _, l := range s.Own.Layers {
		dirs = append(dirs, e.layerFiles(l))
	}
	h.Layers = len(dirs)
	sum := sha256.New()
	z, err := zstd.NewWriter(w, zstd.WithEncoderConcurrency(1))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, z.Close()) }()
	out := chunkWriter{io.MultiWriter(z, sum)}
	data, err := json.Marshal(h)
	if err != nil {
		return err
	}
	if _, err := out.Write(data); err != nil {
		return err
	}
	if err := out.end(); err != nil {
		return err
	}
	for _, dir := range dirs {
		if err := tree.Pack(ctx, out, dir); err != nil {
			return err
		}
		if err := out.end(); err != nil {
			return err
		}
	}
	_, err = z.Write(sum.Sum(nil))
	return err
}

// ImportSnapshot implements daytona.SnapshotMover.
func (e *engine) ImportSnapshot(ctx context.Context, name string, r io.Reader) (daytona.Snapshot, error) {
	bad := func(message string, err error) error {
		return &daytona.Error{Kind: daytona.KindInvalid, Op: importOp, Subject: name, Message: message, Err: err}
	}
	z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(64<<20))
	if err != nil {
		return daytona.Snapshot{}, err
	}
	defer z.Close()
	in := &chunkReader{r: z, sum: sha256.New()}
	data, err := io.ReadAll(io.LimitReader(in, maxManifest))
	if err != nil {
		return daytona.Snapshot{}, bad("it can't be read", err)
	}
	var h exportedSnapshot
	if err := json.Unmarshal(data, &h); err != nil || !in.next() {
		return daytona.Snapshot{}, bad("it is not what was exported", err)
	}
	switch {
	case h.Version != exportVersion:
		return daytona.Snapshot{}, &daytona.Error{Kind: daytona.KindUnsupported, Op: importOp, Subject: name,
			Message: fmt.Sprintf("its format is version %d, this program knows version %d", h.Version, exportVersion)}
	case h.Layers < 0 || h.Layers > maxLayers || h.Digest == digestLayers && h.Layers == 0:
		return daytona.Snapshot{}, bad("it makes no sense", nil)
	}
	spec := daytona.SnapshotSpec{Name: name, Image: h.Image, Entrypoint: h.Entrypoint, Resources: h.Resources}
	return e.Snapshots.MakeSnapshot(ctx, spec, func(s *lifecycle.SnapshotRecord[ownSnapshot]) error {
		s.Sandbox = h.Sandbox
		s.Own = ownSnapshot{Image: h.Image, Digest: h.Digest, Config: h.Config}
		if h.Digest != digestLayers {
			fs, err := e.exportedImage(ctx, &h, s.ID)
			if err != nil {
				return err
			}
			s.Own.Lowers = fs.lowers
		}
		for range h.Layers {
			s.Own.Layers = append(s.Own.Layers, lifecycle.NewID())
		}
		// Written down before they are made, so that a removal finds them.
		if err := e.Snapshots.SaveSnapshot(s); err != nil {
			return err
		}
		failpoint.Kill("local/snapshot-import/planned")
		for _, l := range s.Own.Layers {
			if err := e.newLayer(l, s.ID); err != nil {
				return err
			}
			if err := os.MkdirAll(e.layerFiles(l), 0o700); err != nil {
				return err
			}
			if err := tree.Unpack(ctx, in, e.layerFiles(l)); in.err != nil {
				return bad("it can't be read", in.err)
			} else if err != nil {
				return err
			}
			if _, err := io.Copy(io.Discard, in); err != nil {
				return bad("it can't be read", err)
			}
			if !in.next() {
				return bad("it is cut off", nil)
			}
		}
		want := in.sum.Sum(nil)
		got := make([]byte, len(want))
		if _, err := io.ReadFull(z, got); err != nil || !bytes.Equal(got, want) {
			return bad("its digest is another", err)
		}
		if err := failpoint.Fail("local/snapshot-import/unpacked"); err != nil {
			return err
		}
		return e.measure(ctx, s)
	})
}

// exportedImage finds the image that a snapshot of another machine is made over.
func (e *engine) exportedImage(ctx context.Context, h *exportedSnapshot, id string) (*rootfs, error) {
	ref := h.Image
	if strings.HasPrefix(h.Digest, "sha256:") {
		if img, err := e.images.Get(ctx, h.Digest); err == nil {
			return &rootfs{digest: h.Digest, lowers: layerDirs(img)}, img.Hold(ctx, id)
		} else if !errors.Is(err, image.ErrNotFound) {
			return nil, err
		}
		// Whatever its tag means by now.
		if parsed, err := image.ParseReference(ref); err == nil && parsed.Scheme() == image.SchemeRegistry {
			ref = parsed.Registry() + "/" + parsed.Repository() + "@" + h.Digest
		}
	}
	fs, err := e.resolveImage(ctx, importOp, ref, id, nil)
	if err != nil {
		return nil, err
	}
	if fs.digest != h.Digest {
		return nil, &daytona.Error{Kind: daytona.KindConflict, Op: importOp, Field: "Image", Value: h.Image,
			Message: fmt.Sprintf("here it is %s, and the snapshot was made over %s", fs.digest, h.Digest)}
	}
	return fs, nil
}

// chunkWriter divides what is written into chunks.
type chunkWriter struct{ w io.Writer }

func (c chunkWriter) Write(p []byte) (n int, err error) {
	for part := range slices.Chunk(p, maxChunk) {
		if err := c.size(len(part)); err != nil {
			return n, err
		}
		m, err := c.w.Write(part)
		n += m
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

func (c chunkWriter) size(n int) error {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], uint32(n))
	_, err := c.w.Write(b[:])
	return err
}

func (c chunkWriter) end() error { return c.size(0) }

// chunkReader reads one part after the other.
type chunkReader struct {
	r    io.Reader
	sum  hash.Hash
	left int
	over bool  // the part is
	err  error // what kept it from being read
}

func (c *chunkReader) Read(p []byte) (int, error) {
	n, err := c.read(p)
	if err != nil && err != io.EOF {
		c.err = err
	}
	return n, err
}

func (c *chunkReader) read(p []byte) (int, error) {
	if c.over {
		return 0, io.EOF
	}
	if c.left == 0 {
		var b [4]byte
		if _, err := io.ReadFull(c.r, b[:]); err != nil {
			return 0, cutOff(err)
		}
		c.sum.Write(b[:])
		n := binary.BigEndian.Uint32(b[:])
		if n > maxChunk {
			return 0, errors.New("a chunk is too long")
		}
		if c.left = int(n); n == 0 {
			c.over = true
			return 0, io.EOF
		}
	}
	n, err := c.r.Read(p[:min(len(p), c.left)])
	c.sum.Write(p[:n])
	c.left -= n
	if err != nil && (c.left > 0 || err != io.EOF) {
		return n, cutOff(err)
	}
	return n, nil
}

// next goes to the next part, if this one is over.
func (c *chunkReader) next() bool {
	if !c.over {
		_, err := io.Copy(io.Discard, c)
		if err != nil || !c.over {
			return false
		}
	}
	c.over = false
	return true
}

func cutOff(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
