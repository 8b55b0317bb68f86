//go:build linux

package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// noise is a body that does not compress, always the same for a seed.
func noise(seed uint64, n int) string {
	b := make([]byte, n)
	chacha := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	chacha.Read(b)
	return string(b)
}

func twoLayers(t testing.TB) v1.Image {
	return imageOf(t,
		layerOf(t, makeTar(t, dir("etc"), file("etc/os", "one"), file("big", noise(1, 1<<20)))),
		zstdLayer(t, makeTar(t, file("etc/os", "two"))))
}

func TestResolveFromRegistry(t *testing.T) {
	reg := newRegistry(t)
	src := twoLayers(t)
	ref := reg.push(t, "team/app:v1", src)
	s := newStore(t, nil)

	if _, err := s.Resolve(t.Context(), ref, PullNever, nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("Never, before: %v", err)
	}
	var last Progress
	var stages []Stage
	img, err := s.Resolve(t.Context(), ref, PullIfMissing, &PullOptions{Progress: func(p Progress) {
		if len(stages) == 0 || stages[len(stages)-1] != p.Stage {
			stages = append(stages, p.Stage)
		}
		last = p
	}})
	if err != nil {
		t.Fatal(err)
	}
	manifest, _ := src.Manifest()
	total := manifest.Layers[0].Size + manifest.Layers[1].Size
	if want := (Progress{StageDone, 2, 2, total, total}); last != want {
		t.Errorf("progress ended with %+v, want %+v", last, want)
	}
	if !slices.Equal(stages, []Stage{StageResolving, StagePulling, StageDone}) {
		t.Errorf("stages %v", stages)
	}
	digest, _ := src.Digest()
	if img.Digest != digest.String() || img.Reference != ref || len(img.Layers) != 2 {
		t.Errorf("image %+v", img)
	}
	if img.Size != int64(1<<20+len("one")+len("two")) {
		t.Errorf("size %d", img.Size)
	}
	for i, want := range []string{"one", "two"} {
		b, err := os.ReadFile(filepath.Join(img.Layers[i].Dir, "etc/os"))
		if string(b) != want || err != nil {
			t.Errorf("layer %d: %q, %v", i, b, err)
		}
	}
	want := Config{
		Env: []string{"PATH=/bin", "A=b"}, Entrypoint: []string{"/entry"}, Cmd: []string{"one", "two"},
		WorkingDir: "/srv", User: "app:app", Labels: map[string]string{"k": "v"}, StopSignal: "SIGINT",
		ExposedPorts: []string{"53/udp", "80/tcp"}, Volumes: []string{"/data"},
		OS: "linux", Architecture: runtime.GOARCH,
	}
	got := img.Config
	got.Created = want.Created
	if !reflect.DeepEqual(got, want) {
		t.Errorf("config %+v, want %+v", got, want)
	}
	if n := reg.fetched(); n != 3 {
		t.Errorf("%d blobs fetched, want the configuration and two layers", n)
	}

	// What the store has is not fetched again; IfMissing does not even ask.
	if _, err := s.Resolve(t.Context(), ref, PullAlways, nil); err != nil {
		t.Fatal(err)
	}
	if n := reg.fetched(); n != 1 {
		t.Errorf("Always fetched %d blobs, want the configuration", n)
	}
	reg.around = func(w http.ResponseWriter, r *http.Request) bool {
		t.Errorf("unexpected %s %s", r.Method, r.URL)
		return false
	}
	for _, policy := range []PullPolicy{PullIfMissing, PullNever} {
		again, err := s.Resolve(t.Context(), ref, policy, nil)
		if err != nil || !reflect.DeepEqual(again, img) {
			t.Errorf("%v: %+v, %v", policy, again, err)
		}
	}
	again, err := s.Get(t.Context(), img.Digest)
	if err != nil || !reflect.DeepEqual(again.Layers, img.Layers) {
		t.Errorf("Get: %+v, %v", again, err)
	}
	reg.around = nil

	// A tag that moved.
	reg.push(t, "team/app:v1", imageOf(t, layerOf(t, makeTar(t, file("etc/os", "three")))))
	if old, err := s.Resolve(t.Context(), ref, PullIfMissing, nil); err != nil || old.Digest != img.Digest {
		t.Errorf("IfMissing after the tag moved: %v, %v", old, err)
	}
	moved, err := s.Resolve(t.Context(), ref, PullAlways, nil)
	if err != nil || moved.Digest == img.Digest {
		t.Errorf("Always after the tag moved: %v, %v", moved, err)
	}
	pinned, err := s.Resolve(t.Context(), mustParse(t, reg.host+"/team/app@"+img.Digest), PullIfMissing, nil)
	if err != nil || pinned.Digest != img.Digest {
		t.Errorf("pinned: %v, %v", pinned, err)
	}
}

func TestResolveChoosesPlatform(t *testing.T) {
	reg := newRegistry(t)
	idx := v1.ImageIndex(empty.Index)
	for _, p := range []v1.Platform{
		{OS: "linux", Architecture: "s390x"}, {OS: "windows", Architecture: runtime.GOARCH},
		{OS: "linux", Architecture: runtime.GOARCH, Variant: "v99"}, {OS: "linux", Architecture: runtime.GOARCH}, {OS: "unknown", Architecture: "unknown"},
	} {
		img := imageOf(t, layerOf(t, makeTar(t, file("platform", p.String()))))
		cf, _ := img.ConfigFile()
		cf = cf.DeepCopy()
		cf.OS, cf.Architecture = p.OS, p.Architecture
		img, _ = mutate.ConfigFile(img, cf)
		idx = mutate.AppendManifests(idx, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &p}})
	}
	ref := reg.pushIndex(t, "multi:1", idx)
	s := newStore(t, nil)
	for platform, want := range map[string]string{"": "linux/" + runtime.GOARCH, "linux/s390x": "linux/s390x", "linux/" + runtime.GOARCH + "/v99": "linux/" + runtime.GOARCH + "/v99"} {
		for _, policy := range []PullPolicy{PullIfMissing, PullNever} {
			img, err := s.Resolve(t.Context(), ref, policy, &PullOptions{Platform: platform})
			if err != nil {
				t.Fatalf("%q: %v", platform, err)
			}
			if b, _ := os.ReadFile(filepath.Join(img.Layers[0].Dir, "platform")); string(b) != want {
				t.Errorf("%q: got the image for %s", platform, b)
			}
		}
	}
	_, err := s.Resolve(t.Context(), ref, PullIfMissing, &PullOptions{Platform: "linux/mips"})
	if !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "linux/s390x") {
		t.Errorf("linux/mips: %v", err)
	}
	if _, err := s.Resolve(t.Context(), ref, PullIfMissing, &PullOptions{Platform: "linux"}); err == nil {
		t.Error("platform linux without an architecture was accepted")
	}
	// One that is for another platform only, and says so only in its configuration.
	other := imageOf(t)
	cf, _ := other.ConfigFile()
	cf = cf.DeepCopy()
	cf.Architecture = "s390x"
	other, _ = mutate.ConfigFile(other, cf)
	if _, err := s.Resolve(t.Context(), reg.push(t, "other:1", other), PullIfMissing, nil); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("image for s390x: %v", err)
	}
}

func TestResolveErrors(t *testing.T) {
	reg := newRegistry(t)
	s := newStore(t, nil)
	good := reg.push(t, "good:1", twoLayers(t))
	check := func(what string, ref Reference, opts *PullOptions, want error, says string) {
		t.Helper()
		img, err := s.Resolve(t.Context(), ref, PullAlways, opts)
		if !errors.Is(err, want) {
			t.Errorf("%s: got %v, %v; want %v", what, img, err, want)
			return
		}
		if !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), ref.String()) {
			t.Errorf("%s: %v; want it to name the image and %q", what, err, says)
		}
	}
	check("no such repository", mustParse(t, reg.host+"/none:1"), nil, ErrNotFound, "NAME_UNKNOWN")
	check("no such tag", mustParse(t, reg.host+"/good:2"), nil, ErrNotFound, "MANIFEST_UNKNOWN")
	check("no such digest", mustParse(t, reg.host+"/good@sha256:"+strings.Repeat("0", 64)), nil, ErrNotFound, "")
	if _, err := s.Resolve(t.Context(), Reference{}, PullAlways, nil); !errors.Is(err, ErrInvalidReference) {
		t.Errorf("zero reference: %v", err)
	}

	reg.around = func(w http.ResponseWriter, r *http.Request) bool {
		if user, pass, _ := r.BasicAuth(); user == "u" && pass == "p" {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
		w.WriteHeader(http.StatusUnauthorized)
		io.WriteString(w, `{"errors":[{"code":"UNAUTHORIZED","message":"who are you"}]}`)
		return true
	}
	check("no credentials", good, &PullOptions{Keychain: authn.NewMultiKeychain()}, ErrUnauthorized, "who are you")
	check("wrong credentials", good, &PullOptions{Auth: &authn.Basic{Username: "u", Password: "x"}}, ErrUnauthorized, "credentials")
	if _, err := s.Resolve(t.Context(), good, PullAlways, &PullOptions{Auth: &authn.Basic{Username: "u", Password: "p"}}); err != nil {
		t.Errorf("right credentials: %v", err)
	}
	keychain := keychainFunc(func(r authn.Resource) (authn.Authenticator, error) {
		if r.RegistryStr() != reg.host {
			return authn.Anonymous, nil
		}
		return &authn.Basic{Username: "u", Password: "p"}, nil
	})
	if _, err := s.Resolve(t.Context(), good, PullAlways, &PullOptions{Keychain: keychain}); err != nil {
		t.Errorf("keychain: %v", err)
	}
	reg.around = nil

	s = newStore(t, nil) // without layers
	answerBlobs := func(body []byte) {
		reg.around = func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "/blobs/") || r.Method != http.MethodGet {
				return false
			}
			w.Write(body)
			return true
		}
	}
	answerBlobs([]byte("{}"))
	check("configuration replaced", good, nil, ErrDigestMismatch, "")
	reg.around = nil
	lie := func(what string, img v1.Image, want error) {
		t.Helper()
		check(what, reg.push(t, strings.ReplaceAll(what, " ", "-")+":1", img), nil, want, "")
	}
	// A configuration whose diffID is not the layer's.
	img := twoLayers(t)
	cf, _ := img.ConfigFile()
	cf = cf.DeepCopy()
	cf.RootFS.DiffIDs[1].Hex = strings.Repeat("1", 64)
	wrong, err := mutate.ConfigFile(img, cf)
	if err != nil {
		t.Fatal(err)
	}
	lie("wrong diff id", wrong, ErrDigestMismatch)
	cf = cf.DeepCopy()
	cf.RootFS.DiffIDs = cf.RootFS.DiffIDs[:1]
	wrong, _ = mutate.ConfigFile(img, cf)
	lie("missing diff id", wrong, ErrUnsafeLayer)
	cf = cf.DeepCopy()
	cf.Config.Cmd = []string{"a\x00b"}
	wrong, _ = mutate.ConfigFile(img, cf)
	lie("nul in command", wrong, ErrUnsafeLayer)
	lie("not an image", mutate.ConfigMediaType(img, "application/vnd.cncf.helm.config.v1+json"), errors.ErrUnsupported)
	lie("unknown layer type", imageOf(t, layerOf(t, makeTar(t), tarball.WithMediaType("application/x-other"))), errors.ErrUnsupported)
	lie("foreign layer", imageOf(t, layerOf(t, makeTar(t), tarball.WithMediaType(types.DockerForeignLayer))), errors.ErrUnsupported)

	// Layers that are not what the manifest says.
	manifest, _ := good2(t, reg)
	for what, change := range map[string]func([]byte) []byte{
		"flipped":  func(b []byte) []byte { b = bytes.Clone(b); b[len(b)/2] ^= 1; return b },
		"longer":   func(b []byte) []byte { return append(bytes.Clone(b), "more"...) },
		"replaced": func(b []byte) []byte { return bytes.Repeat([]byte("x"), len(b)) },
		"shorter":  func(b []byte) []byte { return b[:len(b)-1] },
	} {
		raw := manifest.blob
		reg.around = func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, manifest.digest) {
				return false
			}
			w.Write(change(raw))
			return true
		}
		check(what, manifest.ref, nil, ErrDigestMismatch, "layer 1 of 1")
	}
	reg.around = nil
	// Nothing half done is left behind, and now it works.
	assertClean(t, s)
	if _, err := s.Resolve(t.Context(), manifest.ref, PullIfMissing, nil); err != nil {
		t.Error(err)
	}
}

type keychainFunc func(authn.Resource) (authn.Authenticator, error)

func (f keychainFunc) Resolve(r authn.Resource) (authn.Authenticator, error) { return f(r) }

type oneLayer struct {
	ref    Reference
	digest string
	blob   []byte
}

// good2 pushes an image of one layer and returns that layer as it is in the registry.
func good2(t testing.TB, reg *testRegistry) (oneLayer, v1.Image) {
	t.Helper()
	img := imageOf(t, layerOf(t, makeTar(t, file("f", noise(7, 300_000)))))
	layers, _ := img.Layers()
	digest, _ := layers[0].Digest()
	rc, err := layers[0].Compressed()
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	raw, err := io.ReadAll(rc)
	if err != nil {
		t.Fatal(err)
	}
	return oneLayer{reg.push(t, "one:1", img), digest.String(), raw}, img
}

// assertClean fails if the store has temporary files, or a layer that is not whole.
func assertClean(t testing.TB, s *Store) {
	t.Helper()
	tmp, err := os.ReadDir(s.path("tmp"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range tmp {
		t.Errorf("left in tmp: %s", e.Name())
	}
	layers, err := os.ReadDir(s.path("layers"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range layers {
		if _, ok, err := s.readLayer("sha256:" + e.Name()); !ok || err != nil {
			t.Errorf("layer %s: %v, %v", e.Name(), ok, err)
		}
	}
}

func TestResolveRetries(t *testing.T) {
	reg := newRegistry(t)
	one, _ := good2(t, reg)
	var broken atomic.Int32
	reg.around = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, one.digest) || broken.Add(1) > 1 {
			return false
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(one.blob)))
		w.Write(one.blob[:len(one.blob)/2])
		panic(http.ErrAbortHandler) // the connection breaks
	}
	s := newStore(t, nil)
	var last Progress
	img, err := s.Resolve(t.Context(), one.ref, PullIfMissing, &PullOptions{Progress: func(p Progress) { last = p }})
	if err != nil {
		t.Fatal(err)
	}
	if n := broken.Load(); n < 2 || n > 3 || last.Done != last.Total || img.Size != 300_000 {
		t.Errorf("%d fetches, progress %+v, size %d", broken.Load(), last, img.Size)
	}
	assertClean(t, s)
}

func TestResolveCancel(t *testing.T) {
	reg := newRegistry(t)
	one, _ := good2(t, reg)
	reg.around = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, one.digest) {
			return false
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(one.blob)))
		w.Write(one.blob[:len(one.blob)/2])
		w.(http.Flusher).Flush()
		<-r.Context().Done() // never the rest
		return true
	}
	s := newStore(t, nil)
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("changed my mind")
	_, err := s.Resolve(ctx, one.ref, PullIfMissing, &PullOptions{Progress: func(p Progress) {
		if p.Done > 0 {
			cancel(why)
		}
	}})
	if !errors.Is(err, why) {
		t.Errorf("got %v", err)
	}
	assertClean(t, s)
	// Somebody who waits for the same layer can give up too.
	l, err := tryLock(s.path("locks", fileID(layerID(t, one))), true)
	if err != nil {
		t.Fatal(err)
	}
	defer l.unlock()
	ctx, cancel = context.WithCancelCause(t.Context())
	_, err = s.Resolve(ctx, one.ref, PullIfMissing, &PullOptions{Progress: func(p Progress) {
		if p.Stage == StagePulling {
			cancel(why)
		}
	}})
	if !errors.Is(err, why) {
		t.Errorf("waiting: got %v", err)
	}
}

func layerID(t testing.TB, one oneLayer) string {
	t.Helper()
	zr, err := gzip.NewReader(bytes.NewReader(one.blob))
	if err != nil {
		t.Fatal(err)
	}
	h, _, err := v1.SHA256(zr)
	if err != nil {
		t.Fatal(err)
	}
	return h.String()
}

func TestResolveTogether(t *testing.T) {
	reg := newRegistry(t)
	var layers []v1.Layer
	for i := range uint64(4) {
		layers = append(layers, layerOf(t, makeTar(t, file(fmt.Sprint("f", i), noise(i, 200_000)))))
	}
	layers = append(layers, layers[0]) // the same layer twice is legal
	a := reg.push(t, "a:1", imageOf(t, layers...))
	b := reg.push(t, "b:1", imageOf(t, layers[2], layers[1]))
	first := newStore(t, nil)
	second, err := OpenStore(first.Dir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	reg.fetched()
	var wg sync.WaitGroup
	images := make([]*Image, 12)
	for i := range images {
		s, ref := first, a
		if i%2 == 1 {
			s = second
		}
		if i%3 == 2 {
			ref = b
		}
		wg.Go(func() {
			img, err := s.Resolve(t.Context(), ref, PullAlways, nil)
			if err != nil {
				t.Error(err)
			}
			images[i] = img
		})
	}
	wg.Go(func() { // and somebody cleans up all the time
		for range 20 {
			if _, err := second.Prune(t.Context()); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Wait()
	if t.Failed() {
		return
	}
	for i, img := range images {
		if len(img.Layers) != len(images[i%3].Layers) || img.Digest != images[i%3].Digest {
			t.Errorf("image %d: %+v", i, img)
		}
		for _, l := range img.Layers {
			if entries, err := os.ReadDir(l.Dir); err != nil || len(entries) != 1 {
				t.Errorf("layer %s: %v, %v", l.Dir, entries, err)
			}
		}
	}
	perBlob := map[string]int{}
	for len(reg.blobs) > 0 {
		perBlob[<-reg.blobs]++
	}
	for _, l := range layers[:4] {
		d, _ := l.Digest()
		n := 0
		for p, c := range perBlob {
			if strings.HasSuffix(p, d.String()) {
				n += c
			}
		}
		if n != 1 {
			t.Errorf("layer %s was fetched %d times", d, n)
		}
	}
	assertClean(t, first)
}

func TestResolveLimits(t *testing.T) {
	reg := newRegistry(t)
	zeros := string(make([]byte, 1<<20))
	small := reg.push(t, "small:1", imageOf(t, layerOf(t, makeTar(t, file("a", zeros))), layerOf(t, makeTar(t, file("b", zeros)))))
	for what, opts := range map[string]*StoreOptions{
		"bytes of all layers":   {MaxBytes: 3 << 19},
		"entries of all layers": {MaxEntries: 1},
		"layers":                {MaxLayers: 1},
	} {
		s := newStore(t, opts)
		for range 2 { // the second time the first layer may be there already
			if _, err := s.Resolve(t.Context(), small, PullIfMissing, nil); !errors.Is(err, ErrTooLarge) {
				t.Errorf("%s: %v", what, err)
			}
		}
		assertClean(t, s)
	}
	if testing.Short() {
		return
	}
	// Zeros beyond the slack, a thousand times larger than their compressed form.
	var buf bytes.Buffer
	zw := gzip.NewWriter(&buf)
	tw := tar.NewWriter(zw)
	if err := tw.WriteHeader(&tar.Header{Name: "zeros", Typeflag: tar.TypeReg, Mode: 0o644, Size: 300 << 20}); err != nil {
		t.Fatal(err)
	}
	for range 300 {
		io.WriteString(tw, zeros)
	}
	tw.Close()
	zw.Close()
	p := filepath.Join(tempDir(t), "bomb.tar.gz")
	if err := os.WriteFile(p, buf.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	s := newStore(t, nil)
	if _, err := s.Resolve(t.Context(), mustParse(t, "tar:"+p), PullIfMissing, nil); !errors.Is(err, ErrTooLarge) || !strings.Contains(err.Error(), "MaxRatio") {
		t.Errorf("bomb: %v", err)
	}
	assertClean(t, s)
}

// TestResolveRefusesTraps: images made to lead the mounts of a runtime astray.
func TestResolveRefusesTraps(t *testing.T) {
	reg := newRegistry(t)
	s := newStore(t, nil)
	n := 0
	resolve := func(layers ...[]byte) error {
		n++
		var ls []v1.Layer
		for _, l := range layers {
			ls = append(ls, layerOf(t, l))
		}
		ref := reg.push(t, fmt.Sprint("trap:", n), imageOf(t, ls...))
		_, err := s.Resolve(t.Context(), ref, PullIfMissing, nil)
		if _, again := s.Resolve(t.Context(), ref, PullNever, nil); err != nil && again == nil {
			t.Errorf("refused with %v, but then in the store", err)
		}
		return err
	}
	for what, layers := range map[string][][]byte{
		"/proc is a symlink":                 {makeTar(t, symlink("proc", "tmp/x"))},
		"/sys is a symlink":                  {makeTar(t, symlink("sys", "/etc"))},
		"/dev is a symlink":                  {makeTar(t, symlink("dev", "/proc/self/fd"))},
		"/proc is a file":                    {makeTar(t, file("proc", ""))},
		"/dev is a symlink, below":           {makeTar(t, symlink("dev", "/proc")), makeTar(t, file("x", ""))},
		"/dev becomes a symlink":             {makeTar(t, dir("dev")), makeTar(t, symlink("dev", "/proc"))},
		"/dev/null is a symlink":             {makeTar(t, symlink("dev/null", "/proc/sys/kernel/core_pattern"))},
		"/dev/console is a symlink":          {makeTar(t, symlink("dev/console", "../etc/x"))},
		"/dev/pts is a symlink":              {makeTar(t, symlink("dev/pts", "/proc"))},
		"/dev/null is a symlink, merged":     {makeTar(t, symlink("dev/null", "/proc/x")), makeTar(t, dir("dev"), file("dev/x", ""))},
		"/dev is a symlink under a comeback": {makeTar(t, dir("dev")), makeTar(t, file(".wh.dev", "")), makeTar(t, symlink("dev", "x"))},
	} {
		if err := resolve(layers...); !errors.Is(err, ErrUnsafeLayer) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for what, layers := range map[string][][]byte{
		"ordinary links":        {makeTar(t, dir("dev"), symlink("dev/fd", "/proc/self/fd"), symlink("dev/stdout", "/proc/self/fd/1"), symlink("dev/core", "/proc/kcore"), symlink("dev/ptmx", "pts/ptmx"), symlink("dev/shm", "/run/shm"))},
		"symlink replaced":      {makeTar(t, symlink("dev", "/proc")), makeTar(t, dir("dev"))},
		"symlink removed":       {makeTar(t, symlink("proc", "/x")), makeTar(t, file(".wh.proc", ""))},
		"hidden by opaque":      {makeTar(t, symlink("dev/null", "/proc/x")), makeTar(t, file("dev/.wh..wh..opq", ""))},
		"hidden by opaque root": {makeTar(t, symlink("dev", "/proc")), makeTar(t, file(".wh..wh..opq", ""))},
		"nothing at all":        {},
	} {
		if err := resolve(layers...); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}

	d := tempDir(t)
	if err := os.Symlink("/proc", filepath.Join(d, "dev")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Resolve(t.Context(), mustParse(t, "dir:"+d), PullIfMissing, nil); !errors.Is(err, ErrUnsafeLayer) {
		t.Errorf("dir: %v", err)
	}

	img, err := s.Resolve(t.Context(), reg.push(t, "mounts:1", imageOf(t, layerOf(t, makeTar(t, dir("a/b"), symlink("a/l", "b"), file("f", ""))))), PullIfMissing, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := img.CheckMountPoints("/a/b", "/a/b/new/er", "/none", "/"); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{"/a/l", "/a/l/x", "/f", "/f/x", "a/b", "/a/../a", ""} {
		if err := img.CheckMountPoints(bad); err == nil {
			t.Errorf("mount point %q was accepted", bad)
		}
	}
}

func TestResolveOCILayout(t *testing.T) {
	d := filepath.Join(tempDir(t), "lay:out"[:3])
	one, two := twoLayers(t), imageOf(t, layerOf(t, makeTar(t, file("f", "two"))))
	p, err := layout.Write(d, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	s := newStore(t, nil)
	resolve := func(suffix string) (*Image, error) {
		return s.Resolve(t.Context(), mustParse(t, "oci:"+d+suffix), PullIfMissing, nil)
	}
	if _, err := resolve(""); !errors.Is(err, ErrNotFound) {
		t.Errorf("empty layout: %v", err)
	}
	if err := p.AppendImage(one, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "one"})); err != nil {
		t.Fatal(err)
	}
	digest, _ := one.Digest()
	for _, suffix := range []string{"", ":one", "@" + digest.String()} {
		img, err := resolve(suffix)
		if err != nil || img.Digest != digest.String() || len(img.Layers) != 2 || img.Config.User != "app:app" {
			t.Errorf("%q: %+v, %v", suffix, img, err)
		}
	}
	if err := p.AppendImage(two, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "example.com/two:2"})); err != nil {
		t.Fatal(err)
	}
	if _, err := resolve(""); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "example.com/two:2") {
		t.Errorf("which one? %v", err)
	}
	img, err := resolve(":example.com/two:2")
	if err != nil || img.Size != 3 {
		t.Errorf("two: %+v, %v", img, err)
	}
	if _, err := resolve(":three"); !errors.Is(err, ErrNotFound) {
		t.Errorf("three: %v", err)
	}
	// The same as an archive.
	archive := filepath.Join(tempDir(t), "layout.tar")
	if err := os.WriteFile(archive, tarOf(t, d), 0o600); err != nil {
		t.Fatal(err)
	}
	other := newStore(t, nil)
	img, err = other.Resolve(t.Context(), mustParse(t, "oci-archive:"+archive+":one"), PullIfMissing, nil)
	if err != nil || img.Digest != digest.String() || len(img.Layers) != 2 {
		t.Errorf("archive: %+v, %v", img, err)
	}
	assertClean(t, other)

	// A layer that was changed after the fact, and one that is no file.
	layers, _ := one.Layers()
	h, _ := layers[1].Digest()
	blob := filepath.Join(d, "blobs", "sha256", h.Hex)
	raw, err := os.ReadFile(blob)
	if err != nil {
		t.Fatal(err)
	}
	raw[len(raw)-1] ^= 1
	if err := os.WriteFile(blob, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	fresh := newStore(t, nil)
	if _, err := fresh.Resolve(t.Context(), mustParse(t, "oci:"+d+":one"), PullIfMissing, nil); !errors.Is(err, ErrDigestMismatch) {
		t.Errorf("changed layer: %v", err)
	}
	if err := os.Remove(blob); err != nil {
		t.Fatal(err)
	}
	if _, err := fresh.Resolve(t.Context(), mustParse(t, "oci:"+d+":one"), PullIfMissing, nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("missing layer: %v", err)
	}
	if err := os.Symlink("/etc/passwd", blob); err != nil {
		t.Fatal(err)
	}
	if _, err := fresh.Resolve(t.Context(), mustParse(t, "oci:"+d+":one"), PullIfMissing, nil); err == nil {
		t.Error("a blob that links out of the layout was read")
	}
	for _, bad := range []string{"oci:/none/such", "oci:" + tempDir(t), "oci-archive:/none.tar", "docker-archive:/none.tar", "tar:/none.tar", "dir:/none"} {
		if _, err := fresh.Resolve(t.Context(), mustParse(t, bad), PullIfMissing, nil); !errors.Is(err, ErrNotFound) {
			t.Errorf("%s: %v", bad, err)
		}
	}
	assertClean(t, fresh)
}

// tarOf archives a directory of regular files.
func tarOf(t testing.TB, root string) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	if err := w.AddFS(os.DirFS(root)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func TestResolveDockerArchive(t *testing.T) {
	p := filepath.Join(tempDir(t), "save.tar")
	one, two := twoLayers(t), imageOf(t, layerOf(t, makeTar(t, file("f", "two"))))
	tagOne, _ := name.NewTag("debian:12")
	tagTwo, _ := name.NewTag("example.com/two:2")
	if err := tarball.MultiWriteToFile(p, map[name.Tag]v1.Image{tagOne: one}); err != nil {
		t.Fatal(err)
	}
	s := newStore(t, nil)
	resolve := func(suffix string) (*Image, error) {
		return s.Resolve(t.Context(), mustParse(t, "docker-archive:"+p+suffix), PullIfMissing, nil)
	}
	id, _ := one.ConfigName()
	for _, suffix := range []string{"", ":debian:12", ":docker.io/library/debian:12"} {
		img, err := resolve(suffix)
		if err != nil || img.Digest != id.String() || len(img.Layers) != 2 || img.Config.WorkingDir != "/srv" {
			t.Errorf("%q: %+v, %v", suffix, img, err)
		}
	}
	if _, err := resolve(":debian:13"); !errors.Is(err, ErrNotFound) {
		t.Errorf("debian:13: %v", err)
	}
	if err := tarball.MultiWriteToFile(p, map[name.Tag]v1.Image{tagOne: one, tagTwo: two}); err != nil {
		t.Fatal(err)
	}
	if _, err := resolve(""); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "example.com/two:2") {
		t.Errorf("which one? %v", err)
	}
	if img, err := resolve(":example.com/two:2"); err != nil || img.Size != 3 {
		t.Errorf("two: %+v, %v", img, err)
	}

	// As Docker writes it: layers uncompressed, and a layer used twice is a link. Gzipped.
	layer := makeTar(t, file("f", "docker"))
	h, _, _ := v1.SHA256(bytes.NewReader(layer))
	config, _ := json.Marshal(v1.ConfigFile{OS: "linux", Architecture: runtime.GOARCH, RootFS: v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{h, h}}})
	manifest, _ := json.Marshal([]dockerManifest{{Config: "config.json", Layers: []string{"aa/layer.tar", "bb/layer.tar"}}})
	var buf bytes.Buffer
	zw := gzip.NewWriter(&buf)
	zw.Write(makeTar(t, file("aa/layer.tar", string(layer)), symlink("bb/layer.tar", "../aa/layer.tar"),
		file("config.json", string(config)), file("manifest.json", string(manifest))))
	zw.Close()
	if err := os.WriteFile(p, buf.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	img, err := resolve("")
	if err != nil || len(img.Layers) != 2 || img.Layers[0] != img.Layers[1] || img.Layers[0].DiffID != h.String() {
		t.Errorf("docker save: %+v, %v", img, err)
	}

	for what, data := range map[string][]byte{
		"member is a link to a file of this machine": makeTar(t, symlink("manifest.json", "/etc/passwd")),
		"link to itself": makeTar(t, symlink("manifest.json", "manifest.json")),
		"no manifest":    makeTar(t, file("x", "")),
	} {
		if err := os.WriteFile(p, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := resolve(""); !errors.Is(err, ErrNotFound) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := os.WriteFile(p, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := resolve(""); !errors.Is(err, ErrUnsafeLayer) {
		t.Errorf("not an archive: %v", err)
	}
	assertClean(t, s)
}

func TestResolveTarAndDir(t *testing.T) {
	d := tempDir(t)
	data := makeTar(t, dir("etc"), file("etc/x", "1"))
	var zipped bytes.Buffer
	zw := gzip.NewWriter(&zipped)
	zw.Write(data)
	zw.Close()
	plain, gz := filepath.Join(d, "root.tar"), filepath.Join(d, "root.tar.gz")
	for _, err := range []error{os.WriteFile(plain, data, 0o600), os.WriteFile(gz, zipped.Bytes(), 0o600)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	s := newStore(t, nil)
	a, err := s.Resolve(t.Context(), mustParse(t, "tar:"+plain), PullIfMissing, nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.Resolve(t.Context(), mustParse(t, "tar:"+gz), PullIfMissing, nil)
	if err != nil {
		t.Fatal(err)
	}
	if a.Digest == b.Digest || a.Layers[0] != b.Layers[0] {
		t.Errorf("plain %+v and gzipped %+v share a layer, not a digest", a, b)
	}
	before, err := os.Stat(filepath.Join(a.Layers[0].Dir, "etc"))
	if err != nil {
		t.Fatal(err)
	}
	for _, policy := range []PullPolicy{PullIfMissing, PullAlways, PullNever} {
		again, err := s.Resolve(t.Context(), mustParse(t, "tar:"+plain), policy, nil)
		if err != nil || again.Digest != a.Digest {
			t.Errorf("%v: %+v, %v", policy, again, err)
		}
	}
	if after, err := os.Stat(filepath.Join(a.Layers[0].Dir, "etc")); err != nil || !os.SameFile(before, after) {
		t.Errorf("unpacked again: %v", err)
	}
	if err := os.WriteFile(plain, makeTar(t, file("etc/x", "22")), 0o600); err != nil {
		t.Fatal(err)
	}
	changed, err := s.Resolve(t.Context(), mustParse(t, "tar:"+plain), PullIfMissing, nil)
	if err != nil || changed.Digest == a.Digest || changed.Size != 2 {
		t.Errorf("changed file: %+v, %v", changed, err)
	}
	if _, err := s.Resolve(t.Context(), mustParse(t, "tar:"+d), PullIfMissing, nil); err == nil {
		t.Error("a directory passed for an archive")
	}

	// A directory is used in place, whoever prunes.
	for _, policy := range []PullPolicy{PullIfMissing, PullAlways, PullNever} {
		img, err := s.Resolve(t.Context(), mustParse(t, "dir:"+d), policy, &PullOptions{HoldFor: "x"})
		if err != nil || len(img.Layers) != 1 || img.Layers[0].Dir != d || img.Digest != "" {
			t.Errorf("%v: %+v, %v", policy, img, err)
		}
		if err := img.Hold(t.Context(), "x"); err != nil {
			t.Error(err)
		}
	}
	if leases, err := s.Leases(t.Context()); len(leases) != 0 || err != nil {
		t.Errorf("leases %v, %v", leases, err)
	}
	if _, err := s.Resolve(t.Context(), mustParse(t, "dir:"+plain), PullIfMissing, nil); err == nil {
		t.Error("a file passed for a directory")
	}
	if _, err := os.Stat(plain); errors.Is(err, fs.ErrNotExist) {
		t.Error("the source is gone")
	}
}
