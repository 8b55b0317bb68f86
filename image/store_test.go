//go:build linux

package image

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

func TestPruneAndLeases(t *testing.T) {
	ctx := t.Context()
	reg := newRegistry(t)
	shared := layerOf(t, makeTar(t, file("shared", "1")))
	a := reg.push(t, "a:1", imageOf(t, shared, layerOf(t, makeTar(t, file("a", "22")))))
	b := reg.push(t, "b:1", imageOf(t, shared, layerOf(t, makeTar(t, file("b", "333")))))
	s := newStore(t, nil)
	imgA, err := s.Resolve(ctx, a, PullIfMissing, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Resolve(ctx, b, PullIfMissing, &PullOptions{HoldFor: "sandbox-b"}); err != nil {
		t.Fatal(err)
	}
	list, err := s.List(ctx)
	if err != nil || len(list) != 2 || list[0].Reference != a || list[1].Reference != b || len(list[0].Layers) != 2 {
		t.Fatalf("list %+v, %v", list, err)
	}
	if report, err := s.Prune(ctx); err != nil || len(report.Layers)+len(report.Images) != 0 {
		t.Errorf("pruned %+v, %v; everything is referred to", report, err)
	}

	// Leases outlive their process: another Store sees them.
	other, err := OpenStore(s.Dir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := imgA.Hold(ctx, "sandbox-a"); err != nil {
		t.Fatal(err)
	}
	if err := imgA.Hold(ctx, "sandbox-a"); err != nil {
		t.Errorf("holding twice: %v", err)
	}
	leases, err := other.Leases(ctx)
	if err != nil || len(leases) != 2 || leases[0].Owner != "sandbox-a" || leases[0].Digest != imgA.Digest || leases[1].Owner != "sandbox-b" {
		t.Errorf("leases %+v, %v", leases, err)
	}
	for _, ref := range []Reference{a, b} {
		if err := other.Remove(ctx, ref); err != nil {
			t.Error(err)
		}
		if err := other.Remove(ctx, ref); !errors.Is(err, ErrNotFound) {
			t.Errorf("removing twice: %v", err)
		}
	}
	if list, err := s.List(ctx); len(list) != 0 || err != nil {
		t.Errorf("list %v, %v", list, err)
	}
	if report, err := other.Prune(ctx); err != nil || len(report.Layers)+len(report.Images) != 0 {
		t.Errorf("pruned %+v, %v; everything is held", report, err)
	}
	if err := other.Release(ctx, "sandbox-a"); err != nil {
		t.Error(err)
	}
	if err := other.Release(ctx, "sandbox-a"); err != nil {
		t.Errorf("releasing twice: %v", err)
	}
	report, err := other.Prune(ctx)
	if err != nil || len(report.Layers) != 1 || report.Layers[0] != imgA.Layers[1].DiffID || report.Size != 2 || len(report.Images) != 1 {
		t.Errorf("pruned %+v, %v; want the one layer that only a had", report, err)
	}
	if _, err := os.Stat(imgA.Layers[0].Dir); err != nil {
		t.Errorf("the shared layer: %v", err)
	}
	if err := imgA.Hold(ctx, "late"); !errors.Is(err, ErrNotFound) {
		t.Errorf("holding what was pruned: %v", err)
	}
	if _, err := s.Get(ctx, imgA.Digest); !errors.Is(err, ErrNotFound) {
		t.Errorf("getting what was pruned: %v", err)
	}
	if _, err := s.Get(ctx, "../../etc/passwd"); !errors.Is(err, ErrInvalidReference) {
		t.Errorf("getting nonsense: %v", err)
	}
	if err := other.Release(ctx, "sandbox-b"); err != nil {
		t.Error(err)
	}
	if report, err := other.Prune(ctx); err != nil || len(report.Layers) != 2 {
		t.Errorf("pruned %+v, %v; want the rest", report, err)
	}
	for _, d := range []string{"layers", "images", "refs", "leases", "tmp", "locks"} {
		if entries, err := os.ReadDir(s.path(d)); len(entries) != 0 || err != nil {
			t.Errorf("left in %s: %v, %v", d, entries, err)
		}
	}
	for _, owner := range []string{"", strings.Repeat("x", 513)} {
		if err := imgA.Hold(ctx, owner); err == nil {
			t.Errorf("owner of %d bytes was accepted", len(owner))
		}
	}
	img, err := s.Resolve(ctx, a, PullIfMissing, nil)
	if err != nil || img.Digest != imgA.Digest {
		t.Errorf("pulled again: %+v, %v", img, err)
	}
	odd := "own er/../../\x00\n" // a name is only a name
	if err := img.Hold(ctx, odd); err != nil {
		t.Error(err)
	}
	if leases, err := s.Leases(ctx); err != nil || len(leases) != 1 || leases[0].Owner != odd {
		t.Errorf("leases %+v, %v", leases, err)
	}
	if err := s.Release(ctx, odd); err != nil {
		t.Error(err)
	}
	if leases, _ := s.Leases(ctx); len(leases) != 0 {
		t.Errorf("leases %+v", leases)
	}
}

func TestPruneRemovesUnreadableLayers(t *testing.T) {
	ctx := t.Context()
	p := filepath.Join(tempDir(t), "root.tar")
	data := makeTar(t, entry{name: "./", typ: '5', mode: 0}, entry{name: "closed/", typ: '5', mode: 0},
		entry{name: "closed/ro/", typ: '5', mode: 0o500}, file("closed/ro/f", "x"))
	if err := os.WriteFile(p, data, 0o600); err != nil {
		t.Fatal(err)
	}
	s := newStore(t, nil)
	ref := mustParse(t, "tar:"+p)
	img, err := s.Resolve(ctx, ref, PullIfMissing, nil)
	if os.Geteuid() != 0 {
		// Not even its owner can look into such a root: refused, and gone at the next Prune.
		if !errors.Is(err, fs.ErrPermission) {
			t.Errorf("got %+v, %v", img, err)
		}
	} else if err != nil {
		t.Fatal(err)
	} else if err := s.Remove(ctx, ref); err != nil {
		t.Fatal(err)
	}
	if report, err := s.Prune(ctx); err != nil || len(report.Layers) != 1 {
		t.Errorf("%+v, %v", report, err)
	}
	assertClean(t, s)
}

// TestKill stops a pull with SIGKILL at several points. Whatever it had done, the store must then
// hold only whole layers and no leftovers, and pulling must give the same as without the kill.
func TestKill(t *testing.T) {
	reg := newRegistry(t)
	var layers []v1.Layer
	for i := range uint64(3) {
		entries := []entry{dir("d"), {name: "d/closed/", typ: '5', mode: 0}}
		for j := range uint64(20) {
			entries = append(entries, file(fmt.Sprintf("d/%d-%d", i, j), noise(i*100+j, 20_000)))
		}
		entries = append(entries, file("d/.wh.gone", ""), hardlink("d/hard", fmt.Sprintf("d/%d-3", i)))
		layers = append(layers, layerOf(t, makeTar(t, entries...)))
	}
	ref := reg.push(t, "kill:1", imageOf(t, layers...))
	clean := newStore(t, nil)
	want, err := clean.Resolve(t.Context(), ref, PullIfMissing, nil)
	if err != nil {
		t.Fatal(err)
	}
	whole := map[string]string{}
	for _, l := range want.Layers {
		whole[filepath.Base(filepath.Dir(l.Dir))] = treeOf(t, l.Dir)
	}

	for _, stopAt := range []int64{1, 100_000, 450_000, 800_000, 1_190_000, 1 << 40} {
		t.Run(fmt.Sprint("after ", stopAt, " bytes"), func(t *testing.T) {
			d := filepath.Join(tempDir(t), "store")
			cmd := exec.Command(os.Args[0], d, ref.String(), fmt.Sprint(stopAt))
			cmd.Env = append(os.Environ(), childVariable+"=pull")
			cmd.Stderr = os.Stderr
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			line, err := bufio.NewReader(out).ReadString('\n')
			if !strings.HasPrefix(line, "reached") {
				t.Fatalf("child said %q, %v", line, err)
			}
			// While it lives, nobody takes its work for garbage.
			busy, err := OpenStore(d, nil)
			if err != nil {
				t.Fatal(err)
			}
			before, _ := os.ReadDir(busy.path("tmp"))
			if _, err := busy.Prune(t.Context()); err != nil {
				t.Error(err)
			}
			after, _ := os.ReadDir(busy.path("tmp"))
			if stopAt < 1<<40 && (len(before) != 1 || len(after) != 1) {
				t.Errorf("the running pull has %v in tmp, and after Prune %v", before, after)
			}
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			cmd.Wait()

			s, err := OpenStore(d, nil)
			if err != nil {
				t.Fatal(err)
			}
			assertClean(t, s)
			entries, err := os.ReadDir(s.path("layers"))
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				if got := treeOf(t, s.path("layers", e.Name(), "fs")); got != whole[e.Name()] {
					t.Errorf("layer %s is\n%s\nwant\n%s", e.Name(), got, whole[e.Name()])
				}
			}
			got, err := s.Resolve(t.Context(), ref, PullIfMissing, nil)
			if err != nil {
				t.Fatal(err)
			}
			for i, l := range got.Layers {
				if treeOf(t, l.Dir) != whole[filepath.Base(filepath.Dir(l.Dir))] || l.DiffID != want.Layers[i].DiffID {
					t.Errorf("layer %d differs after the second pull", i)
				}
			}
			assertClean(t, s)
		})
	}
}

// treeOf is a fingerprint that does not look into d/closed.
func treeOf(t testing.TB, dir string) string {
	t.Helper()
	return fingerprint(t, dir, "d/closed")
}

func TestOpenStoreRefuses(t *testing.T) {
	d := tempDir(t)
	f := filepath.Join(d, "file")
	if err := os.WriteFile(f, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenStore(f, nil); err == nil {
		t.Error("a file was opened as a store")
	}
	if _, err := OpenStore("", nil); err == nil {
		t.Error("no name was opened as a store")
	}
	for _, opts := range []*StoreOptions{{MaxBytes: -1}, {MaxEntries: -1}, {Parallel: -1}, {DirMode: 0o777}, {DirMode: 0o100}} {
		if _, err := OpenStore(filepath.Join(d, "opts"), opts); err == nil {
			t.Errorf("%+v was accepted", opts)
		}
	}
	if _, err := os.Stat(filepath.Join(d, "opts")); err == nil {
		t.Error("something was made for refused options")
	}
	open := filepath.Join(d, "open")
	if err := os.Mkdir(open, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(open, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenStore(open, nil); err == nil || !strings.Contains(err.Error(), "0777") {
		t.Errorf("a directory that anybody can write to: %v", err)
	}
	later := filepath.Join(d, "later")
	s, err := OpenStore(later, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.path("store.json"), []byte(`{"version":99}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenStore(later, nil); err == nil || !strings.Contains(err.Error(), "99") {
		t.Errorf("a store of a later version: %v", err)
	}
}

func TestStoreIsPrivate(t *testing.T) {
	for mode, opts := range map[fs.FileMode]*StoreOptions{0o700: nil, 0o711: {DirMode: 0o711, Sync: true}} {
		s := newStore(t, opts)
		p := filepath.Join(tempDir(t), "root.tar")
		if err := os.WriteFile(p, makeTar(t, file("f", "x")), 0o600); err != nil {
			t.Fatal(err)
		}
		img, err := s.Resolve(t.Context(), mustParse(t, "tar:"+p), PullIfMissing, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range []string{s.Dir(), s.path("layers"), filepath.Dir(img.Layers[0].Dir)} {
			if fi, err := os.Stat(d); err != nil || fi.Mode().Perm() != mode {
				t.Errorf("%s: %v, %v; want %o", d, fi.Mode(), err, mode)
			}
		}
		for _, d := range []string{"tmp", "images", "refs", "leases", "locks"} {
			if fi, err := os.Stat(s.path(d)); err != nil || fi.Mode().Perm() != 0o700 {
				t.Errorf("%s: %v, %v", d, fi.Mode(), err)
			}
		}
	}
}
