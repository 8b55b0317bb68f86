package local

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/failpoint"
	"github.com/daytona-go/daytona/internal/lifecycle"
	"github.com/daytona-go/daytona/internal/tree"
)

// A layer is what the files of a sandbox were at one moment: its overlay's upper
// directory, which nobody changes any more. It lies at layers/<id>/fs/upper and
// is a lower directory of all that were made from it. layers/<id>/refs has a file
// for each of them, named by its id; a layer goes with the last. Who adds one
// holds the lock of somebody who has one already.

// maxLayers bounds the layers of a sandbox, its image's included: the kernel
// stacks no more than 500.
const maxLayers = 400

func (e *engine) layer(id string) string      { return filepath.Join(e.Dir("layers"), id) }
func (e *engine) layerFiles(id string) string { return filepath.Join(e.layer(id), "fs", "upper") }

// lowers are the lower directories of a sandbox, the lowest first.
func (e *engine) lowers(r *record) []string {
	all := slices.Clone(r.Own.Lowers)
	for _, l := range r.Own.Layers {
		all = append(all, e.layerFiles(l))
	}
	return all
}

// rootMode is the mode of "/" of a sandbox that has no upper directory yet.
func (e *engine) rootMode(r *record) fs.FileMode {
	if n := len(r.Own.Layers); n > 0 {
		if st, err := os.Lstat(e.layerFiles(r.Own.Layers[n-1])); err == nil && st.IsDir() {
			return st.Mode().Perm() | st.Mode()&fs.ModeSticky
		}
	}
	return 0o755
}

// holdLayer notes that a layer, which somebody has, has another user.
func (e *engine) holdLayer(id, user string) error {
	f, err := os.OpenFile(filepath.Join(e.layer(id), "refs", user), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("use layer: %w", err)
	}
	return f.Close()
}

// dropLayer notes that a layer has one user less, and removes it with the last.
// It can be repeated; "" is no layer.
func (e *engine) dropLayer(id, user string) error {
	if id == "" {
		return nil
	}
	refs := filepath.Join(e.layer(id), "refs")
	if err := os.Remove(filepath.Join(refs, user)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	failpoint.Kill("local/layer/unreferenced")
	// The kernel decides who is the last: a directory that is not empty stays.
	if err := os.Remove(refs); err != nil && !errors.Is(err, fs.ErrNotExist) {
		if left, lerr := os.ReadDir(refs); lerr == nil && len(left) > 0 {
			return nil
		}
		return err
	}
	failpoint.Kill("local/layer/abandoned")
	return e.removeTree(e.layer(id))
}

// newLayer makes the place of a layer, with its first user.
func (e *engine) newLayer(id, user string) error {
	if err := os.MkdirAll(filepath.Join(e.layer(id), "refs"), 0o700); err != nil {
		return err
	}
	return e.holdLayer(id, user)
}

// capture keeps the present files of a sandbox as a layer, in a step that
// forking or snapshotting names. The files of a stopped one are the layer from
// then on, at no cost; those of a started one are copied while it does not run.
// layers are those that what is made from it has; release lets go of the new
// one as far as the sandbox itself does not have it.
func (e *engine) capture(ctx context.Context, op string, r *record) (layers []string, release func(), err error) {
	if n := len(r.Own.Lowers) + maxOwnLayers; n > maxLayers {
		return nil, nil, &daytona.Error{Kind: daytona.KindExhausted, Op: op, Subject: r.Name,
			Message: fmt.Sprintf("its image has %d layers; with the %d that forks may add, no more than %d are possible", len(r.Own.Lowers), maxOwnLayers, maxLayers)}
	}
	if r.Own.HasDisk && !e.canMap(e.Root) {
		return nil, nil, &daytona.Error{Kind: daytona.KindUnsupported, Op: op, Subject: r.Name,
			Message: "the state directory's file system takes no id mappings, so that files of a sandbox with a disk limit cannot be shared"}
	}
	if err := errors.Join(e.dropPending(r), e.dropFlat(r)); err != nil {
		return nil, nil, err
	}
	if r.Was == daytona.StateStopped && !r.Own.HasDisk {
		if _, err := os.Lstat(filepath.Join(e.File(r.ID, "fs"), "upper")); errors.Is(err, fs.ErrNotExist) {
			layers, err = e.shorten(ctx, r) // it has not been started since
			return layers, nil, err
		}
	}
	id := lifecycle.NewID()
	r.Own.Pending = id
	if err := e.Save(r, true); err != nil {
		return nil, nil, err
	}
	release = func() {
		if err := e.dropPending(r); err != nil {
			e.log.Warn("layer could not be removed; it will be tried again", "sandbox", r.ID, "layer", id, "err", err)
		}
	}
	defer func() {
		if err != nil {
			release()
		}
	}()
	if err := e.newLayer(id, r.ID); err != nil {
		return nil, release, err
	}
	if err := failpoint.Fail("local/capture/made"); err != nil {
		return nil, release, err
	}
	if r.Was == daytona.StateStopped && !r.Own.HasDisk {
		if err := os.Rename(e.File(r.ID, "fs"), filepath.Join(e.layer(id), "fs")); err != nil {
			return nil, release, err
		}
		failpoint.Kill("local/capture-stopped/moved")
		if err := e.adoptLayer(r); err != nil {
			return nil, release, err
		}
		layers, err = e.shorten(ctx, r)
		return layers, release, err
	}
	// Before it is frozen: its layers do not change anyway.
	layers, err = e.flatten(ctx, r, e.layerLimit()-1)
	if err != nil {
		return nil, release, err
	}
	err = e.Frozen(ctx, op, r, func() error {
		if err := failpoint.Fail("local/capture-started/frozen"); err != nil {
			return err
		}
		if err := e.copyLayer(ctx, r, id); err != nil {
			return err
		}
		return failpoint.Fail("local/capture-started/copied")
	})
	if err != nil {
		return nil, release, err
	}
	return append(layers, id), release, nil
}

// adoptLayer makes the pending layer, which a stopped sandbox's files have
// become, one that it has.
func (e *engine) adoptLayer(r *record) error {
	if err := os.Mkdir(e.File(r.ID, "fs"), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if !slices.Contains(r.Own.Layers, r.Own.Pending) {
		// Slices of its own: others may have read the record.
		r.Own.Layers = append(slices.Clone(e.swapFlat(r)), r.Own.Pending)
	}
	id := r.Own.Pending
	r.Own.Pending = ""
	if err := e.Save(r, true); err != nil {
		return err
	}
	failpoint.Kill("local/capture-stopped/adopted")
	if err := e.dropFlat(r); err != nil {
		e.log.Warn("layers that were merged could not be let go; it will be tried again", "sandbox", r.ID, "err", err)
	}
	// What the overlay needed to work with.
	if err := e.removeTree(filepath.Join(e.layer(id), "fs", "work")); err != nil {
		e.log.Warn("the work directory of a layer could not be removed", "layer", id, "err", err)
	}
	return nil
}

// recoverLayer finishes what capture was at when its process died, or takes it
// back.
func (e *engine) recoverLayer(r *record) error {
	if err := e.dropFlat(r); err != nil {
		return err
	}
	if r.Own.Pending == "" {
		return nil
	}
	if r.Was == daytona.StateStopped && !r.Own.HasDisk {
		if _, err := os.Stat(filepath.Join(e.layer(r.Own.Pending), "fs")); err == nil {
			return e.adoptLayer(r)
		}
	}
	return e.dropPending(r)
}

// dropPending lets go of a layer that the sandbox itself does not have.
func (e *engine) dropPending(r *record) error {
	if r.Own.Pending == "" {
		return nil
	}
	if err := e.dropLayer(r.Own.Pending, r.ID); err != nil {
		return err
	}
	r.Own.Pending = ""
	return nil
}

// copyLayer copies the upper directory of a sandbox that does not run.
func (e *engine) copyLayer(ctx context.Context, r *record, id string) error {
	from := e.File(r.ID, "fs")
	if r.Own.HasDisk {
		// A second mount of a file that is in use shows the same file system.
		d, err := shareDisk(e.File(r.ID, "disk.img"))
		if err != nil {
			return err
		}
		defer d.mount.Close()
		from = fdPath(d.mount)
	}
	to := filepath.Join(e.layer(id), "fs")
	for _, d := range []string{to, filepath.Join(to, "upper"), filepath.Join(to, "work")} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return err
		}
	}
	if _, err := os.Lstat(filepath.Join(from, "upper")); errors.Is(err, fs.ErrNotExist) {
		return os.Chmod(filepath.Join(to, "upper"), 0o755) // it never started
	}
	args := []string{filepath.Join(to, "upper"), filepath.Join(from, "upper"), filepath.Join(to, "work")}
	if !e.root {
		// Files of the sandbox's users are for its root alone to read.
		return e.runMapped(ctx, e.ids(r), append([]string{"copy"}, args...)...)
	}
	_, err := tree.Copy(ctx, args[0], args[1], args[2], nil)
	return err
}

// holdFiles makes the image and the layers that a record names its own.
func (e *engine) holdFiles(ctx context.Context, digest string, layers []string, user string) error {
	for _, l := range layers {
		if err := e.holdLayer(l, user); err != nil {
			return err
		}
	}
	if !strings.HasPrefix(digest, "sha256:") {
		return nil // the host's files, or a directory
	}
	img, err := e.images.Get(ctx, digest)
	if err != nil {
		return err
	}
	return img.Hold(ctx, user)
}

func newMachineID() string {
	b := make([]byte, 16)
	rand.Read(b)
	return hex.EncodeToString(b)
}
