//go:build linux

package image

import (
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"
)

// layoutOf writes an image to a new layout.
func layoutOf(t testing.TB, img v1.Image) (Reference, string) {
	t.Helper()
	dir := filepath.Join(tempDir(t), "layout")
	l, err := layout.Write(dir, empty.Index)
	if err == nil {
		err = l.AppendImage(img)
	}
	if err != nil {
		t.Fatal(err)
	}
	return mustParse(t, "oci:"+dir), dir
}

func TestPush(t *testing.T) {
	ctx := t.Context()
	from, to := newRegistry(t), newRegistry(t)
	img := twoLayers(t)
	digest, _ := img.Digest()
	inLayout, dir := layoutOf(t, img)
	archive := filepath.Join(tempDir(t), "image.tar")
	if err := os.WriteFile(archive, tarOf(t, dir), 0o600); err != nil {
		t.Fatal(err)
	}
	docker := filepath.Join(tempDir(t), "docker.tar")
	tag, _ := name.NewTag("a:1")
	if err := tarball.WriteToFile(docker, tag, img); err != nil {
		t.Fatal(err)
	}
	s := newStore(t, nil)
	for repository, src := range map[string]Reference{
		"layout": inLayout, "archive": mustParse(t, "oci-archive:"+archive), "registry": from.push(t, "a:1", img),
		"docker": mustParse(t, "docker-archive:"+docker),
	} {
		dest := mustParse(t, to.host+"/"+repository+":new")
		var last Progress
		got, err := s.Push(ctx, src, dest, &PushOptions{Progress: func(p Progress) { last = p }})
		if err != nil {
			t.Errorf("%s: %v", repository, err)
			continue
		}
		if repository != "docker" && got != digest.String() {
			t.Errorf("%s: pushed as %s, not %s", repository, got, digest)
		}
		if last.Stage != StageDone || last.Layers != 2 {
			t.Errorf("%s: progress %+v", repository, last)
		}
		back, err := s.Resolve(ctx, dest, PullAlways, nil)
		if err != nil || back.Digest != got || len(back.Layers) != 2 {
			t.Errorf("%s: pulled %+v, %v", repository, back, err)
		}
	}

	// Within a registry blobs are mounted, not sent; again, nothing is.
	var sent, mounted atomic.Int32
	to.around = func(w http.ResponseWriter, r *http.Request) bool {
		switch {
		case r.Method == http.MethodPost && r.URL.Query().Get("mount") != "":
			mounted.Add(1)
		case r.Method == http.MethodPatch:
			sent.Add(1)
		}
		return false
	}
	for range 2 {
		if _, err := s.Push(ctx, mustParse(t, to.host+"/layout:new"), mustParse(t, to.host+"/copy:1"), nil); err != nil {
			t.Error(err)
		}
	}
	if sent.Load() != 0 {
		t.Errorf("%d blobs sent, %d mounted", sent.Load(), mounted.Load())
	}

	// All platforms are kept together.
	idx := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "riscv64"}}})
	all := from.pushIndex(t, "all:1", idx)
	want, _ := idx.Digest()
	if got, err := s.Push(ctx, all, mustParse(t, to.host+"/all:1"), &PushOptions{AllPlatforms: true}); err != nil || got != want.String() {
		t.Errorf("all platforms: %s, %v", got, err)
	}
	if _, err := s.Push(ctx, inLayout, mustParse(t, to.host+"/x:1"), &PushOptions{AllPlatforms: true}); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("all platforms of a layout: %v", err)
	}
	for _, dest := range []string{"oci:/x:y", to.host + "/x@" + digest.String()} {
		if _, err := s.Push(ctx, inLayout, mustParse(t, dest), nil); !errors.Is(err, ErrInvalidReference) {
			t.Errorf("to %s: %v", dest, err)
		}
	}
	if _, err := s.Push(ctx, mustParse(t, "dir:/tmp"), mustParse(t, to.host+"/x:1"), nil); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("a directory: %v", err)
	}
	assertClean(t, s)
}

func TestPushFails(t *testing.T) {
	reg := newRegistry(t)
	around := reg.switchable()
	img := twoLayers(t)
	src, dir := layoutOf(t, img)
	dest := mustParse(t, reg.host+"/a:1")
	s := newStore(t, nil)
	try := func(what string, want error, opts *PushOptions) {
		t.Helper()
		if _, err := s.Push(t.Context(), src, dest, opts); !errors.Is(err, want) {
			t.Errorf("%s: %v; want %v", what, err, want)
		}
		around(nil)
		if _, err := s.Resolve(t.Context(), dest, PullAlways, nil); !errors.Is(err, ErrNotFound) {
			t.Errorf("%s: the tag is there: %v", what, err)
		}
	}
	around(func(w http.ResponseWriter, r *http.Request) bool {
		if user, _, _ := r.BasicAuth(); user == "u" {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	try("credentials", ErrUnauthorized, &PushOptions{Auth: &authn.Basic{Username: "x", Password: "p"}})
	around(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPatch {
			return false
		}
		io.Copy(io.Discard, r.Body) // only then does the server notice that the client is gone
		<-r.Context().Done()
		panic(http.ErrAbortHandler)
	})
	try("silence", ErrUnavailable, &PushOptions{StallTimeout: 50 * time.Millisecond})
	// A layer that is not what it says, and one that is a link out of the layout.
	layers, _ := img.Layers()
	h, _ := layers[1].Digest()
	blob := filepath.Join(dir, "blobs", h.Algorithm, h.Hex)
	data, err := os.ReadFile(blob)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if err := os.WriteFile(blob, data, 0o600); err != nil {
		t.Fatal(err)
	}
	try("damage", ErrDigestMismatch, nil)
	if err := errors.Join(os.Remove(blob), os.Symlink("/etc/passwd", blob)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Push(t.Context(), src, dest, nil); err == nil {
		t.Error("a link out of the layout was followed")
	}
	// A registry that limits requests.
	src, _ = layoutOf(t, img)
	var n atomic.Int32
	around(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPost || n.Add(1) > 2 {
			return false
		}
		w.Header().Set("Retry-After", "0")
		w.WriteHeader(http.StatusTooManyRequests)
		return true
	})
	if _, err := s.Push(t.Context(), src, dest, nil); err != nil {
		t.Errorf("after a limit: %v", err)
	}
	assertClean(t, s)
}

func TestCommit(t *testing.T) {
	ctx := t.Context()
	reg := newRegistry(t)
	s := newStore(t, nil)
	below := imageOf(t, layerOf(t, makeTar(t, dir("d"), file("d/old", "1"), file("gone", "2"), file("kept", "3"))))
	docker, _ := layoutOf(t, below)
	oci, _ := layoutOf(t, mutate.ConfigMediaType(mutate.MediaType(below, types.OCIManifestSchema1), types.OCIConfigJSON))
	upper := tempDir(t)
	for _, err := range []error{
		os.Chmod(upper, 0o755),
		os.Mkdir(filepath.Join(upper, "d"), 0o755),
		unix.Setxattr(filepath.Join(upper, "d"), opaqueXattr, []byte("y"), 0),
		os.WriteFile(filepath.Join(upper, "d", "new"), []byte("4"), 0o644),
		unix.Mknod(filepath.Join(upper, "gone"), unix.S_IFCHR, 0),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	want := []string{"d/", "d/new=4", "kept=3"}
	made := map[string]string{}
	for _, c := range []struct {
		name        string
		base        Reference
		compression Compression
		layer       types.MediaType
	}{
		{"docker", docker, "", types.DockerLayer},
		{"oci", oci, Gzip, types.OCILayer},
		{"zstd", oci, Zstd, types.OCILayerZStd},
	} {
		for _, to := range []string{reg.host + "/made:" + c.name, "oci:" + filepath.Join(tempDir(t), "out") + ":made"} {
			dest := mustParse(t, to)
			t.Run(c.name+" to "+string(dest.Scheme()), func(t *testing.T) {
				opts := &CommitOptions{Compression: c.compression, Config: func(cf *v1.Config) { cf.Cmd = []string{"changed"} }}
				digest, err := s.Commit(ctx, c.base, upper, dest, opts)
				if err != nil {
					t.Fatal(err)
				}
				if before, ok := made[c.name]; ok && before != digest {
					t.Errorf("the same commit gave %s and %s", before, digest)
				}
				made[c.name] = digest
				img, err := s.Resolve(ctx, dest, PullAlways, nil)
				if err != nil {
					t.Fatal(err)
				}
				if img.Digest != digest || len(img.Layers) != 2 || !slices.Equal(img.Config.Cmd, []string{"changed"}) || img.Config.User != "app:app" {
					t.Errorf("%+v", img)
				}
				if got := mergedTree(t, img); !slices.Equal(got, want) {
					t.Errorf("got %q, want %q", got, want)
				}
				if dest.Scheme() == SchemeOCI {
					if _, err := s.Commit(ctx, c.base, upper, dest, opts); !errors.Is(err, errors.ErrUnsupported) {
						t.Errorf("over a layout: %v", err)
					}
					written, err := dest.Open()
					if err != nil {
						t.Fatal(err)
					}
					if layers, err := written.Layers(); err != nil || len(layers) != 2 {
						t.Errorf("%d layers, %v", len(layers), err)
					} else if kind, err := layers[1].MediaType(); err != nil || kind != c.layer {
						t.Errorf("the layer is %s, %v, want %s", kind, err, c.layer)
					}
				}
			})
		}
	}
	if _, err := s.Commit(ctx, docker, upper, mustParse(t, reg.host+"/made:none"), &CommitOptions{Compression: Zstd}); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("zstd in Docker's format: %v", err)
	}
	if err := os.WriteFile(filepath.Join(upper, ".wh.x"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(tempDir(t), "out")
	if _, err := s.Commit(ctx, docker, upper, mustParse(t, "oci:"+out), nil); !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), ".wh.") {
		t.Errorf("what cannot be: %v", err)
	}
	if _, err := os.Lstat(out); err == nil {
		t.Error("a failed commit left a layout")
	}
	assertClean(t, s)
}
