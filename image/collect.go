//go:build linux

package image

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// CollectOptions says which images [Store.Collect] removes. The zero value removes none.
type CollectOptions struct {
	// MaxAge removes images that have not been used for longer. Defaults to 0: no limit.
	MaxAge time.Duration
	// MaxBytes removes images until the files of the layers that are left have no more bytes.
	// Defaults to 0: no limit.
	MaxBytes int64
	// HighWatermark is the part of the store's file system, between 0 and 1, from which on images
	// are removed. Defaults to 0: the file system is not looked at.
	HighWatermark float64
	// LowWatermark is the part of the file system that removing stops at. Defaults to
	// HighWatermark.
	LowWatermark float64
	// MinFree removes images while the file system has fewer bytes free. Defaults to 0.
	MinFree int64
	// Grace spares images that were used more recently, whatever the other limits say, because
	// somebody may be about to hold them. Defaults to ten minutes; negative is none.
	Grace time.Duration
}

func (o CollectOptions) check() error {
	bad := func(field string, value any, rule string) error {
		return fmt.Errorf("CollectOptions.%s %v; %s", field, value, rule)
	}
	switch {
	case o.MaxAge < 0:
		return bad("MaxAge", o.MaxAge, "must not be negative")
	case o.MaxBytes < 0:
		return bad("MaxBytes", o.MaxBytes, "must not be negative")
	case o.MinFree < 0:
		return bad("MinFree", o.MinFree, "must not be negative")
	case !(o.HighWatermark >= 0 && o.HighWatermark <= 1):
		return bad("HighWatermark", o.HighWatermark, "must be between 0 and 1")
	case !(o.LowWatermark >= 0 && o.LowWatermark <= 1):
		return bad("LowWatermark", o.LowWatermark, "must be between 0 and 1")
	case o.LowWatermark > o.HighWatermark:
		return bad("LowWatermark", o.LowWatermark, fmt.Sprintf("must not be above HighWatermark, %v", o.HighWatermark))
	}
	return nil
}

// CollectReport says what [Store.Collect] removed.
type CollectReport struct {
	// Images are those that were removed for the limits, the least recently used first.
	Images []CollectedImage
	// PruneReport is everything that was removed, also what nobody referred to any more.
	PruneReport
	// Missed says that a limit is still exceeded, because what is left is held or was just used.
	Missed bool
}

// CollectedImage is an image that was removed.
type CollectedImage struct {
	Digest     string
	References []string
	LastUsed   time.Time
	// Reason is the option whose limit was exceeded: MaxAge, MaxBytes, HighWatermark or MinFree.
	Reason string
}

// touch records that an image is used, by the time of its record. The caller holds the store's
// lock. That it fails is no reason to fail.
func (s *Store) touch(digest string) {
	now := time.Now()
	os.Chtimes(s.imagePath(digest), now, now)
}

// Collect removes images that have not been used for long, or the least recently used ones until
// the store or its file system is below its limits, and what [Store.Prune] removes. Use is
// [Store.Resolve], [Store.Get], [Image.Hold] and [Store.Release]. What is held is never removed.
//
// Like everything here it may run in several processes at once, and be killed: references go
// first, then the image, then its layers, so that what is left is whole or found by the next run.
func (s *Store) Collect(ctx context.Context, opts CollectOptions) (CollectReport, error) {
	var report CollectReport
	if err := opts.check(); err != nil {
		return report, err
	}
	if opts.Grace == 0 {
		opts.Grace = 10 * time.Minute
	}
	// How much a layer takes on the disk is only known when it is gone, so look again after each
	// round. Each but the last removes at least one image.
	for {
		n := len(report.Images)
		again, err := s.collectOnce(ctx, opts, &report)
		if err != nil || !again || len(report.Images) == n {
			report.Missed = again
			return report, err
		}
	}
}

// KeepCollected runs [Store.Collect] at once and then at intervals until the context ends. What
// fails is logged and tried again at the next.
func (s *Store) KeepCollected(ctx context.Context, every time.Duration, opts CollectOptions) {
	for {
		report, err := s.Collect(ctx, opts)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			s.log.Warn("image store: collecting old images failed", "dir", s.dir, "error", err)
		case report.Missed:
			s.log.Warn("image store: more is in use than its limits allow", "dir", s.dir, "removed", len(report.Images))
		}
		for _, img := range report.Images {
			s.log.Info("image store: removed an image", "digest", img.Digest, "references", img.References, "lastUsed", img.LastUsed, "reason", img.Reason)
		}
		if pause(ctx, every) != nil {
			return
		}
	}
}

// storedImage is an image as the store lists it for removal.
type storedImage struct {
	rec  imageRecord
	path string
	used time.Time
	refs []refRecord
	held bool
	gone bool
}

// inventory is everything in a store. It is read under the exclusive lock.
type inventory struct {
	images []*storedImage // the least recently used first
	layers map[string]layerRecord
	dirs   map[string]string // of layers, by diffID
	wanted map[string]bool   // by running pulls
	size   int64             // of the layers that something needs
	users  map[string]int    // of a layer
}

func (s *Store) inventory(wanted map[string]bool) (*inventory, error) {
	inv := &inventory{layers: map[string]layerRecord{}, dirs: map[string]string{}, wanted: wanted, users: map[string]int{}}
	recs, err := s.refs()
	if err != nil {
		return nil, err
	}
	refs := map[string][]refRecord{}
	for _, rec := range recs {
		refs[rec.Digest] = append(refs[rec.Digest], rec)
	}
	leases, err := s.leases()
	if err != nil {
		return nil, err
	}
	held := map[string]bool{}
	for _, lease := range leases {
		held[lease.Digest] = true
	}
	paths, err := filepath.Glob(s.path("images", "*.json"))
	if err != nil {
		return nil, err
	}
	for _, p := range paths {
		img := &storedImage{path: p}
		fi, err := os.Stat(p)
		if err != nil {
			return nil, err
		}
		if err := readJSON(p, &img.rec); err != nil {
			return nil, err
		}
		img.used, img.refs, img.held = fi.ModTime(), refs[img.rec.Digest], held[img.rec.Digest]
		inv.images = append(inv.images, img)
	}
	slices.SortFunc(inv.images, func(a, b *storedImage) int {
		return cmp.Or(a.used.Compare(b.used), strings.Compare(a.rec.Digest, b.rec.Digest))
	})
	entries, err := os.ReadDir(s.path("layers"))
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		dir := s.path("layers", e.Name())
		var rec layerRecord
		if err := readJSON(filepath.Join(dir, "layer.json"), &rec); err != nil {
			return nil, err
		}
		inv.layers[rec.DiffID], inv.dirs[rec.DiffID] = rec, dir
	}
	for id := range wanted {
		inv.use(id)
	}
	for _, img := range inv.images {
		if len(img.refs) == 0 && !img.held {
			img.gone = true
			continue
		}
		for _, id := range img.layerIDs() {
			inv.use(id)
		}
	}
	return inv, nil
}

// layerIDs lists each layer once.
func (img *storedImage) layerIDs() []string {
	var ids []string
	for _, l := range img.rec.Layers {
		ids = append(ids, l.DiffID)
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

func (inv *inventory) use(id string) {
	if inv.users[id]++; inv.users[id] == 1 {
		inv.size += inv.layers[id].Size
	}
}

// drop takes an image out and returns how many bytes nobody needs any more.
func (inv *inventory) drop(img *storedImage) (freed int64) {
	img.gone = true
	for _, id := range img.layerIDs() {
		if inv.users[id]--; inv.users[id] == 0 {
			freed += inv.layers[id].Size
		}
	}
	inv.size -= freed
	return freed
}

// collectOnce removes images for the limits. again says that a limit is still exceeded, as far as
// can be told.
func (s *Store) collectOnce(ctx context.Context, opts CollectOptions, report *CollectReport) (again bool, err error) {
	err = s.sweep(ctx, &report.PruneReport, func(inv *inventory) error {
		now := time.Now()
		var victims []*storedImage
		for _, img := range inv.images {
			// A time to come is a clock that was wrong: treat it as just used.
			if !img.gone && !img.held && (opts.Grace < 0 || now.Sub(img.used) > opts.Grace) {
				victims = append(victims, img)
			}
		}
		var freed int64
		remove := func(img *storedImage, reason string) {
			freed += inv.drop(img)
			c := CollectedImage{Digest: img.rec.Digest, LastUsed: img.used.UTC(), Reason: reason}
			for _, rec := range img.refs {
				c.References = append(c.References, rec.Reference)
			}
			report.Images = append(report.Images, c)
		}
		for len(victims) > 0 && opts.MaxAge > 0 && now.Sub(victims[0].used) > opts.MaxAge {
			remove(victims[0], "MaxAge")
			victims = victims[1:]
		}
		for len(victims) > 0 && opts.MaxBytes > 0 && inv.size > opts.MaxBytes {
			remove(victims[0], "MaxBytes")
			victims = victims[1:]
		}
		excess, reason, err := s.excess(opts, len(report.Images) > 0)
		if err != nil {
			return err
		}
		for len(victims) > 0 && excess > freed {
			remove(victims[0], reason)
			victims = victims[1:]
		}
		again = (opts.MaxBytes > 0 && inv.size > opts.MaxBytes) || excess > 0
		return nil
	})
	return again, err
}

// excess returns how many bytes must become free, and for which option. Once removing has begun
// the mark to reach is the lower one.
func (s *Store) excess(opts CollectOptions, begun bool) (int64, string, error) {
	if opts.HighWatermark == 0 && opts.MinFree == 0 {
		return 0, "", nil
	}
	var st unix.Statfs_t
	if err := unix.Statfs(s.dir, &st); err != nil {
		return 0, "", &os.PathError{Op: "statfs", Path: s.dir, Err: err}
	}
	block := float64(st.Bsize)
	used, free := float64(st.Blocks-st.Bfree)*block, float64(st.Bavail)*block
	// What root keeps for itself is neither used nor free to others.
	total := used + free
	excess, reason := 0.0, ""
	if low := cmp.Or(opts.LowWatermark, opts.HighWatermark); opts.HighWatermark > 0 && (used > opts.HighWatermark*total || (begun && used > low*total)) {
		excess, reason = used-low*total, "HighWatermark"
	}
	if lack := float64(opts.MinFree) - free; lack > excess {
		excess, reason = lack, "MinFree"
	}
	return int64(excess), reason, nil
}

// Prune removes the images that no reference names and nobody holds, the layers that no remaining
// image has and no running pull wants, and what killed processes left.
func (s *Store) Prune(ctx context.Context) (PruneReport, error) {
	var report PruneReport
	err := s.sweep(ctx, &report, func(*inventory) error { return nil })
	return report, err
}

// sweep removes the images that are marked as gone, by choose or because nobody needs them, and
// the layers that nobody uses, and adds them to the report.
func (s *Store) sweep(ctx context.Context, report *PruneReport, choose func(*inventory) error) error {
	trash, err := s.begin(ctx)
	if err != nil {
		return err
	}
	defer trash.end() // and with it the layers, after the lock has been released
	var dead []*session
	defer func() {
		for _, ses := range dead {
			ses.end()
		}
	}()
	l, err := lock(ctx, s.path("lock"), true)
	if err != nil {
		return err
	}
	defer l.unlock()
	var wanted map[string]bool
	dead, wanted, err = s.sessions()
	if err != nil {
		return err
	}
	inv, err := s.inventory(wanted)
	if err != nil {
		return err
	}
	if err := choose(inv); err != nil {
		return err
	}
	for _, img := range inv.images {
		if !img.gone {
			continue
		}
		for _, rec := range img.refs {
			path := s.path("refs", hashID(rec.Reference+"\x00"+rec.Platform)+".json")
			if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		if err := os.Remove(img.path); err != nil {
			return err
		}
		report.Images = append(report.Images, img.rec.Digest)
	}
	for id, dir := range inv.dirs {
		if inv.users[id] > 0 {
			continue
		}
		if err := os.Rename(dir, filepath.Join(trash.dir, filepath.Base(dir))); err != nil {
			return err
		}
		report.Layers = append(report.Layers, id)
		report.Size += inv.layers[id].Size
	}
	locks, err := os.ReadDir(s.path("locks"))
	if err != nil {
		return err
	}
	for _, e := range locks {
		path := s.path("locks", e.Name())
		if unused, err := tryLock(path, true); err == nil {
			os.Remove(path)
			unused.unlock()
		}
	}
	return nil
}
