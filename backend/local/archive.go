package local

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/image"
	"github.com/daytona-go/daytona/internal/failpoint"
	"github.com/daytona-go/daytona/internal/lifecycle"
	"github.com/daytona-go/daytona/internal/objects"
	"github.com/daytona-go/daytona/internal/tree"
	"github.com/klauspost/compress/zstd"
)

// An archive is, in object storage,
//
//	sandboxes/<id>/manifest.json             the manifest of the last archive
//	sandboxes/<id>/<archive>/manifest.json   the same
//	sandboxes/<id>/<archive>/0, 1, …         its own files: each layer, the lowest first, and what it wrote since; a stream of tree.Pack, compressed with zstd
//
// The image is not in it: it is found by its reference, and must be the same.

// manifest says what an archive consists of.
type manifest struct {
	Version int           `json:"version"`
	Archive string        `json:"archive"`
	Record  *record       `json:"record"`
	Files   []archiveFile `json:"files"`
}

// archiveFile is one stream. The last one's files are the upper directory.
type archiveFile struct {
	SHA256 string `json:"sha256"` // of the object
	Size   int64  `json:"size"`   // of the object, in bytes
}

const (
	archiveVersion = 1
	maxManifest    = 4 << 20
)

func archivePrefix(id, archive string) string { return "sandboxes/" + id + "/" + archive + "/" }
func manifestKey(id string) string            { return "sandboxes/" + id + "/manifest.json" }

// canArchive says why this engine cannot archive; "" if it can.
func (e *engine) canArchive() string {
	switch {
	case !e.root:
		return "it takes root to keep the owners of a sandbox's files in an archive"
	case !e.canMap(e.Root):
		return "the state directory's file system takes no id mappings, so that the owners of files mean nothing elsewhere"
	}
	return ""
}

// archives opens the object storage on first use.
func (e *engine) archives(ctx context.Context) (objects.Store, error) {
	e.archiveOnce.Lock()
	defer e.archiveOnce.Unlock()
	if e.archive != nil {
		return e.archive, nil
	}
	where := e.opts.Archive
	if where == "" {
		where = e.Dir("archive")
	}
	s, err := objects.Open(ctx, "Archive", where)
	if err != nil {
		return nil, fmt.Errorf("open the object storage %s: %w", where, err)
	}
	e.archive = s
	return s, nil
}

// packing is the engine where it can archive: a lifecycle.Packer.
type packing struct{ driver }

var _ lifecycle.Packer[own] = packing{}

// Pack implements lifecycle.Packer.
func (d packing) Pack(ctx context.Context, r *record) error {
	e := d.e
	store, err := e.archives(ctx)
	if err != nil {
		return err
	}
	m := manifest{Version: archiveVersion, Archive: r.Archive, Record: r}
	add := func(dir string) error {
		f, err := store1(ctx, store, fmt.Sprint(archivePrefix(r.ID, r.Archive), len(m.Files)), dir)
		m.Files = append(m.Files, f)
		if err == nil {
			err = failpoint.Fail("local/archive/stored")
		}
		return err
	}
	for _, l := range r.Own.Layers {
		if err := add(e.layerFiles(l)); err != nil {
			return err
		}
	}
	err = e.withUpper(r, func(dir string) error {
		upper := filepath.Join(dir, "upper")
		if _, err := os.Lstat(upper); err == nil {
			return add(upper)
		}
		m.Files = append(m.Files, archiveFile{}) // it was not started since
		return nil
	})
	if err != nil {
		return err
	}
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	for _, key := range []string{archivePrefix(r.ID, r.Archive) + "manifest.json", manifestKey(r.ID)} {
		if err := store.Put(ctx, key, bytes.NewReader(data)); err != nil {
			return err
		}
		failpoint.Kill("local/archive/listed")
	}
	// What is there now is read again before anything here is removed.
	for i, f := range m.Files {
		if f.SHA256 == "" {
			continue
		}
		if err := readArchived(ctx, store, fmt.Sprint(archivePrefix(r.ID, r.Archive), i), f, func(r io.Reader) error {
			_, err := io.Copy(io.Discard, r)
			return err
		}); err != nil {
			return err
		}
	}
	return nil
}

// store1 stores one directory.
func store1(ctx context.Context, store objects.Store, key, dir string) (archiveFile, error) {
	in, out := io.Pipe()
	sum := &counted{Hash: sha256.New()}
	done := make(chan error, 1)
	go func() {
		err := func() error {
			z, err := zstd.NewWriter(io.MultiWriter(out, sum), zstd.WithEncoderConcurrency(1))
			if err != nil {
				return err
			}
			if err := tree.Pack(ctx, z, dir); err != nil {
				return errors.Join(err, z.Close())
			}
			return z.Close()
		}()
		out.CloseWithError(err)
		done <- err
	}()
	err := store.Put(ctx, key, in)
	in.CloseWithError(err)
	if perr := <-done; err == nil {
		err = perr
	}
	return archiveFile{SHA256: hex.EncodeToString(sum.Sum(nil)), Size: sum.n}, err
}

// counted is a hash that counts.
type counted struct {
	hash.Hash
	n int64
}

func (c *counted) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return c.Hash.Write(p)
}

// damaged says that an archive is not what was stored.
func damaged(key string, err error) error {
	return &daytona.Error{Kind: daytona.KindInternal, Op: lifecycle.RestoreOp, Subject: key, Message: "the archive is damaged; it stays where it is", Err: err}
}

// readArchived gives f what an object has, and fails if that is not what the
// manifest says.
func readArchived(ctx context.Context, store objects.Store, key string, want archiveFile, f func(r io.Reader) error) error {
	in, err := store.Get(ctx, key)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, objects.ErrCorrupt) {
		return damaged(key, err)
	}
	if err != nil {
		return err
	}
	defer in.Close()
	sum := &counted{Hash: sha256.New()}
	r := io.TeeReader(io.LimitReader(in, want.Size+1), sum)
	ferr := f(r)
	if ferr == nil || !errors.Is(ferr, objects.ErrCorrupt) {
		_, err = io.Copy(io.Discard, r)
	}
	switch {
	case errors.Is(ferr, objects.ErrCorrupt), errors.Is(err, objects.ErrCorrupt):
		return damaged(key, errors.Join(ferr, err))
	case err != nil:
		return err
	case sum.n != want.Size || hex.EncodeToString(sum.Sum(nil)) != want.SHA256:
		return damaged(key, errors.Join(errors.New("its digest is not that of the manifest"), ferr))
	}
	return ferr
}

// withUpper gives f the directory that holds upper of a stopped sandbox.
func (e *engine) withUpper(r *record, f func(dir string) error) error {
	if !r.Own.HasDisk {
		return f(e.File(r.ID, "fs"))
	}
	d, err := shareDisk(e.File(r.ID, "disk.img"))
	if err != nil {
		return err
	}
	defer d.mount.Close()
	return f(fdPath(d.mount))
}

// Discard implements lifecycle.Packer.
func (d packing) Discard(ctx context.Context, r *record) error {
	for _, l := range append(r.Own.Layers, r.Own.Flat.all()...) {
		if err := d.e.dropLayer(l, r.ID); err != nil {
			return err
		}
	}
	failpoint.Kill("local/discard/layers-dropped")
	r.Own.Flat = flat{}
	if err := d.e.removeTree(d.e.File(r.ID, "fs")); err != nil {
		return err
	}
	if err := os.Remove(d.e.File(r.ID, "disk.img")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	failpoint.Kill("local/discard/removed")
	r.Own.Layers = nil
	return d.e.Save(r, true)
}

func readManifest(ctx context.Context, store objects.Store, key, id string) (*manifest, error) {
	in, err := store.Get(ctx, key)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	data, err := io.ReadAll(io.LimitReader(in, maxManifest))
	if err != nil {
		if errors.Is(err, objects.ErrCorrupt) {
			err = damaged(key, err)
		}
		return nil, err
	}
	m := &manifest{}
	if err := json.Unmarshal(data, m); err != nil {
		return nil, damaged(key, err)
	}
	if m.Version != archiveVersion {
		return nil, &daytona.Error{Kind: daytona.KindUnsupported, Op: lifecycle.RestoreOp, Subject: key,
			Message: fmt.Sprintf("the archive's format is version %d, this program knows version %d", m.Version, archiveVersion)}
	}
	if m.Record == nil || m.Record.ID != id || !lifecycle.ValidID(m.Archive) || len(m.Files) == 0 || len(m.Files) > maxLayers {
		return nil, damaged(key, errors.New("the manifest makes no sense"))
	}
	return m, nil
}

// Unpack implements lifecycle.Packer.
func (d packing) Unpack(ctx context.Context, r *record) error {
	e := d.e
	store, err := e.archives(ctx)
	if err != nil {
		return err
	}
	prefix := archivePrefix(r.ID, r.Archive)
	m, err := readManifest(ctx, store, prefix+"manifest.json", r.ID)
	if errors.Is(err, fs.ErrNotExist) {
		return &daytona.Error{Kind: daytona.KindNotFound, Op: lifecycle.RestoreOp, Subject: r.Name, Message: "its archive is gone; another backend may have restored it", Err: err}
	}
	if err != nil {
		return err
	}
	if err := e.sameImage(ctx, r); err != nil {
		return err
	}
	if err := packingClean(e, r); err != nil {
		return err
	}
	n := len(m.Files) - 1
	for range n {
		r.Own.Layers = append(r.Own.Layers, lifecycle.NewID())
	}
	if err := e.Save(r, true); err != nil {
		return err
	}
	failpoint.Kill("local/restore/planned")
	unpack := func(i int, dir string) error {
		return readArchived(ctx, store, fmt.Sprint(prefix, i), m.Files[i], func(in io.Reader) error {
			z, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(64<<20))
			if err != nil {
				return err
			}
			defer z.Close()
			return tree.Unpack(ctx, z, dir)
		})
	}
	for i, l := range r.Own.Layers {
		if err := e.newLayer(l, r.ID); err != nil {
			return err
		}
		if err := os.MkdirAll(e.layerFiles(l), 0o700); err != nil {
			return err
		}
		if err := unpack(i, e.layerFiles(l)); err != nil {
			return err
		}
	}
	if err := failpoint.Fail("local/restore/layers-unpacked"); err != nil {
		return err
	}
	if err := e.makeFiles(ctx, r); err != nil {
		return err
	}
	if m.Files[n].SHA256 == "" {
		return nil
	}
	return e.withUpper(r, func(dir string) error {
		upper := filepath.Join(dir, "upper")
		if err := os.Mkdir(upper, 0o700); err != nil {
			return err
		}
		if err := failpoint.Fail("local/restore/files-made"); err != nil {
			return err
		}
		return unpack(n, upper)
	})
}

// packingClean removes what an earlier attempt left.
func packingClean(e *engine, r *record) error {
	return packing{driver{e}}.Discard(context.Background(), r)
}

// sameImage sees to it that the image of a sandbox is here, and the same.
func (e *engine) sameImage(ctx context.Context, r *record) error {
	here := func(dir string) bool {
		st, err := os.Stat(dir)
		return err == nil && st.IsDir()
	}
	if r.Own.Digest == digestLayers {
		return nil // it is among its layers
	}
	if strings.HasPrefix(r.Own.Digest, "sha256:") {
		if img, err := e.images.Get(ctx, r.Own.Digest); err == nil {
			r.Own.Lowers = layerDirs(img)
			return img.Hold(ctx, r.ID)
		} else if !errors.Is(err, image.ErrNotFound) {
			return err
		}
	} else if len(r.Own.Lowers) > 0 && !slices.ContainsFunc(r.Own.Lowers, func(dir string) bool { return !here(dir) || !strings.HasPrefix(dir, e.Root+"/") }) {
		return nil
	}
	f, err := e.resolveImage(ctx, lifecycle.RestoreOp, r.Image, r.ID, nil)
	if err != nil {
		return err
	}
	if f.digest != r.Own.Digest {
		return &daytona.Error{Kind: daytona.KindConflict, Op: lifecycle.RestoreOp, Subject: r.Name, Field: "Image", Value: r.Image,
			Message: fmt.Sprintf("here it is %s, and the sandbox was made from %s", f.digest, r.Own.Digest)}
	}
	r.Own.Lowers = f.lowers
	return nil
}

// Forget implements lifecycle.Packer.
func (d packing) Forget(ctx context.Context, r *record) error {
	if r.Archive == "" {
		return nil
	}
	store, err := d.e.archives(ctx)
	if err != nil {
		return err
	}
	// The name that others find it by goes first, if it is still that of this
	// archive and not of a later one's.
	m, err := readManifest(ctx, store, manifestKey(r.ID), r.ID)
	switch {
	case err == nil && m.Archive == r.Archive:
		if err := store.Delete(ctx, manifestKey(r.ID)); err != nil {
			return err
		}
		failpoint.Kill("local/forget/unlisted")
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		if kind := daytona.KindOf(err); kind != daytona.KindInternal && kind != daytona.KindUnsupported {
			return err
		}
	}
	// Whether it is there or not: with it goes what a killed process was writing.
	if err := store.Delete(ctx, archivePrefix(r.ID, r.Archive)+"manifest.json"); err != nil {
		return err
	}
	for entry, err := range store.List(ctx, archivePrefix(r.ID, r.Archive)) {
		if err != nil {
			return err
		}
		if err := store.Delete(ctx, entry.Key); err != nil {
			return err
		}
	}
	return nil
}

// Fetch implements lifecycle.Packer.
func (d packing) Fetch(ctx context.Context, id string) (*record, error) {
	store, err := d.e.archives(ctx)
	if err != nil {
		return nil, err
	}
	m, err := readManifest(ctx, store, manifestKey(id), id)
	if err != nil {
		return nil, err
	}
	r := m.Record
	r.Archive, r.Was = m.Archive, ""
	r.Own.ProcessID, r.Own.Pending, r.Own.Flat, r.Own.Layers, r.Own.Lowers = lifecycle.ProcessID{}, "", flat{}, nil, nil
	r.Own.UIDBase = d.e.uidBase(id)
	return r, nil
}
