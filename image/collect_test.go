//go:build linux

package image

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"sync"
	"testing"
	"time"
)

// stocked is a store of images with 1000 bytes each and a shared layer, the first used longest ago.
func stocked(t testing.TB, n int) (*Store, []Reference, []*Image) {
	t.Helper()
	reg := newRegistry(t)
	s := newStore(t, nil)
	shared := layerOf(t, makeTar(t, file("shared", noise(1, 500))))
	var refs []Reference
	var images []*Image
	for i := range n {
		ref := reg.push(t, fmt.Sprintf("i%d:1", i), imageOf(t, shared, layerOf(t, makeTar(t, file("f", noise(uint64(10+i), 1000))))))
		img, err := s.Resolve(t.Context(), ref, PullIfMissing, nil)
		if err != nil {
			t.Fatal(err)
		}
		refs, images = append(refs, ref), append(images, img)
		s.age(t, img, time.Duration(n-i)*24*time.Hour)
	}
	return s, refs, images
}

// age makes an image unused for so long.
func (s *Store) age(t testing.TB, img *Image, d time.Duration) {
	t.Helper()
	then := time.Now().Add(-d)
	if err := os.Chtimes(s.imagePath(img.Digest), then, then); err != nil {
		t.Fatal(err)
	}
}

func (r CollectReport) digests() (all []string) {
	for _, img := range r.Images {
		all = append(all, img.Digest)
	}
	return all
}

func TestCollect(t *testing.T) {
	ctx := t.Context()
	s, refs, images := stocked(t, 5) // used 5, 4, 3, 2, 1 days ago
	collect := func(what string, opts CollectOptions, missed bool, want ...*Image) CollectReport {
		t.Helper()
		report, err := s.Collect(ctx, opts)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		var digests []string
		for _, img := range want {
			digests = append(digests, img.Digest)
		}
		if !slices.Equal(report.digests(), digests) || report.Missed != missed {
			t.Errorf("%s: removed %v, missed %v; want %v", what, report.digests(), report.Missed, digests)
		}
		return report
	}
	collect("no limits", CollectOptions{}, false)
	collect("young enough", CollectOptions{MaxAge: 6 * 24 * time.Hour}, false)
	if err := images[0].Hold(ctx, "sandbox"); err != nil {
		t.Fatal(err)
	}
	s.age(t, images[0], 9*24*time.Hour)
	report := collect("by age", CollectOptions{MaxAge: 84 * time.Hour}, false, images[1])
	if report.Size != 1000 || len(report.Layers) != 1 || report.Images[0].Reason != "MaxAge" || !slices.Equal(report.Images[0].References, []string{refs[1].String()}) {
		t.Errorf("report %+v", report)
	}
	// 4500 bytes are left of four images: 3500 of the three others.
	collect("by size", CollectOptions{MaxBytes: 3500}, false, images[2])
	collect("more than there is", CollectOptions{MinFree: 1 << 60, Grace: 48*time.Hour + time.Minute}, true)
	// Use renews.
	if _, err := s.Resolve(ctx, refs[3], PullIfMissing, nil); err != nil {
		t.Fatal(err)
	}
	collect("used just now", CollectOptions{MaxAge: time.Hour}, false, images[4])
	collect("nearly everything", CollectOptions{HighWatermark: 1e-9, LowWatermark: 1e-9, Grace: -1}, true, images[3])
	// Held for long, and released: only now its time begins.
	if err := s.Release(ctx, "sandbox"); err != nil {
		t.Fatal(err)
	}
	collect("just released", CollectOptions{MaxAge: time.Hour}, false)
	s.age(t, images[0], 2*time.Hour)
	collect("the last", CollectOptions{MaxAge: time.Hour}, false, images[0])
	for _, d := range []string{"layers", "images", "refs", "leases", "tmp"} {
		if entries, err := os.ReadDir(s.path(d)); len(entries) != 0 || err != nil {
			t.Errorf("left in %s: %v, %v", d, entries, err)
		}
	}
	for _, opts := range []CollectOptions{{MaxAge: -1}, {MaxBytes: -1}, {MinFree: -1}, {HighWatermark: 2}, {LowWatermark: 0.5}} {
		if _, err := s.Collect(ctx, opts); err == nil {
			t.Errorf("%+v was accepted", opts)
		}
	}
}

func TestCollectTogether(t *testing.T) {
	s, refs, _ := stocked(t, 6)
	var wg sync.WaitGroup
	for i := range 4 {
		other, err := OpenStore(s.Dir(), nil)
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			for j := range 20 {
				if i%2 == 0 {
					if _, err := other.Collect(t.Context(), CollectOptions{MaxBytes: 1, Grace: -1}); err != nil {
						t.Error(err)
					}
					continue
				}
				owner := fmt.Sprint(i)
				img, err := other.Resolve(t.Context(), refs[j%6], PullIfMissing, &PullOptions{HoldFor: owner})
				if err != nil {
					t.Error(err)
					continue
				}
				for _, l := range img.Layers {
					if _, err := os.Stat(l.Dir); err != nil {
						t.Errorf("held, and gone: %v", err)
					}
				}
				if err := other.Release(t.Context(), owner); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if _, err := s.Collect(t.Context(), CollectOptions{MaxBytes: 1, Grace: -1}); err != nil {
		t.Error(err)
	}
	assertClean(t, s)
}

// TestCollectKilled kills processes that collect; what is left is whole, and the next finishes.
func TestCollectKilled(t *testing.T) {
	rounds := 30
	if testing.Short() {
		rounds = 5
	}
	s, refs, _ := stocked(t, 4)
	for i := range rounds {
		for _, ref := range refs {
			if _, err := s.Resolve(t.Context(), ref, PullIfMissing, nil); err != nil {
				t.Fatal(err)
			}
		}
		cmd := exec.Command(os.Args[0], s.Dir())
		cmd.Env = append(os.Environ(), childVariable+"=collect")
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		out.Read(make([]byte, 1)) // it begins
		spin := time.Now()
		for time.Since(spin) < time.Duration(i)*100*time.Microsecond {
		}
		cmd.Process.Kill()
		cmd.Wait()
		list, err := s.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, img := range list {
			for _, l := range img.Layers {
				if _, err := os.Stat(l.Dir); err != nil {
					t.Errorf("listed, and gone: %v", err)
				}
			}
		}
	}
	if _, err := s.Collect(t.Context(), CollectOptions{MaxBytes: 1, Grace: -1}); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"layers", "images", "refs", "tmp"} {
		if entries, err := os.ReadDir(s.path(d)); len(entries) != 0 || err != nil {
			t.Errorf("left in %s: %v, %v", d, entries, err)
		}
	}
}
