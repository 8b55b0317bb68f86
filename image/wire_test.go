//go:build linux

package image

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
)

func isBlob(r *http.Request, digest string) bool {
	return r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") && strings.Contains(r.URL.Path, digest)
}

func TestRateLimit(t *testing.T) {
	reg := newRegistry(t)
	around := reg.switchable()
	one, _ := good2(t, reg)
	var limited atomic.Int32
	around(func(w http.ResponseWriter, r *http.Request) bool {
		if limited.Add(1)%2 == 0 {
			return false
		}
		w.Header().Set("Retry-After", "0")
		w.WriteHeader(http.StatusTooManyRequests)
		return true
	})
	if _, err := newStore(t, nil).Resolve(t.Context(), one.ref, PullIfMissing, nil); err != nil {
		t.Error(err)
	}
	for _, after := range []string{"7200", time.Now().Add(3 * time.Hour).UTC().Format(http.TimeFormat)} {
		around(func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Retry-After", after)
			w.WriteHeader(http.StatusTooManyRequests)
			return true
		})
		s := newStore(t, nil)
		if _, err := s.Resolve(t.Context(), one.ref, PullIfMissing, nil); !errors.Is(err, ErrRateLimited) || !strings.Contains(err.Error(), "429") {
			t.Errorf("Retry-After %s: %v", after, err)
		}
		assertClean(t, s)
	}
	// Whoever waits can give up.
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	around(func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Retry-After", "60")
		w.WriteHeader(http.StatusTooManyRequests)
		cancel(why)
		return true
	})
	if _, err := newStore(t, nil).Resolve(ctx, one.ref, PullIfMissing, nil); !errors.Is(err, why) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestResume(t *testing.T) {
	for _, ranges := range []bool{true, false} {
		reg := newRegistry(t)
		one, _ := good2(t, reg)
		var sent, asked atomic.Int64
		reg.around = func(w http.ResponseWriter, r *http.Request) bool {
			if !isBlob(r, one.digest) {
				return false
			}
			asked.Add(1)
			body, status := one.blob, http.StatusOK
			var from int
			if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from); err == nil && ranges {
				body, status = body[from:], http.StatusPartialContent
				w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(one.blob)-1, len(one.blob)))
			}
			w.Header().Set("Content-Length", fmt.Sprint(len(body)))
			w.WriteHeader(status)
			n := len(body)
			if asked.Load() < 4 {
				n = len(body) / 2
			}
			sent.Add(int64(n))
			w.Write(body[:n])
			if n < len(body) {
				panic(http.ErrAbortHandler)
			}
			return true
		}
		s := newStore(t, nil)
		if _, err := s.Resolve(t.Context(), one.ref, PullIfMissing, nil); err != nil {
			t.Errorf("ranges %v: %v", ranges, err)
		}
		if got, size := sent.Load(), int64(len(one.blob)); asked.Load() != 4 || (ranges && got != size) {
			t.Errorf("ranges %v: %d requests, %d bytes of %d", ranges, asked.Load(), got, size)
		}
		assertClean(t, s)
	}
	// The rest of something else is found out.
	reg := newRegistry(t)
	one, _ := good2(t, reg)
	reg.around = func(w http.ResponseWriter, r *http.Request) bool {
		if !isBlob(r, one.digest) {
			return false
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(one.blob)))
		if r.Header.Get("Range") == "" {
			w.Write(one.blob[:len(one.blob)/2])
			panic(http.ErrAbortHandler)
		}
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %s%d/%d", strings.TrimPrefix(r.Header.Get("Range"), "bytes="), len(one.blob)-1, len(one.blob)))
		rest := make([]byte, len(one.blob)-len(one.blob)/2)
		w.Header().Set("Content-Length", fmt.Sprint(len(rest)))
		w.WriteHeader(http.StatusPartialContent)
		w.Write(rest)
		return true
	}
	s := newStore(t, nil)
	if _, err := s.Resolve(t.Context(), one.ref, PullIfMissing, nil); !errors.Is(err, ErrDigestMismatch) {
		t.Errorf("another rest: %v", err)
	}
	assertClean(t, s)
}

func TestStall(t *testing.T) {
	reg := newRegistry(t)
	around := reg.switchable()
	one, _ := good2(t, reg)
	for what, hang := range map[string]func(r *http.Request) bool{
		"at once":     func(r *http.Request) bool { return true },
		"at the blob": func(r *http.Request) bool { return isBlob(r, one.digest) },
	} {
		around(func(w http.ResponseWriter, r *http.Request) bool {
			if !hang(r) {
				return false
			}
			if isBlob(r, one.digest) {
				w.Header().Set("Content-Length", fmt.Sprint(len(one.blob)))
				if r.Header.Get("Range") == "" {
					w.Write(one.blob[:100])
				}
				w.(http.Flusher).Flush()
			}
			<-r.Context().Done()
			panic(http.ErrAbortHandler)
		})
		s := newStore(t, nil)
		ref := one.ref
		if what == "at the blob" && testing.Short() {
			continue
		}
		_, err := s.Resolve(t.Context(), ref, PullIfMissing, &PullOptions{StallTimeout: 50 * time.Millisecond})
		if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "silent") {
			t.Errorf("%s: %v", what, err)
		}
		assertClean(t, s)
	}
}

func TestMirrors(t *testing.T) {
	origin, bad, good := newRegistry(t), newRegistry(t), newRegistry(t)
	one, img := good2(t, origin)
	bad.push(t, "cache/one:1", img)
	good.push(t, "hub/x/one:1", img)
	var authorized atomic.Int32
	bad.around = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") != "" {
			authorized.Add(1)
		}
		if isBlob(r, one.digest) { // it has the manifest and breaks the layer
			w.Write(make([]byte, len(one.blob)))
			return true
		}
		return false
	}
	opts := &StoreOptions{Mirrors: map[string][]string{origin.host: {"127.0.0.1:1", bad.host + "/cache", "http://" + good.host + "/hub/x"}}}
	origin.fetched()
	good.fetched()
	s := newStore(t, opts)
	if _, err := s.Resolve(t.Context(), one.ref, PullIfMissing, &PullOptions{Auth: &authn.Basic{Username: "u", Password: "p"}}); err != nil {
		t.Fatal(err)
	}
	if n, m := good.fetched(), origin.fetched(); n != 1 || m != 0 {
		t.Errorf("%d blobs of the good mirror, %d of the registry", n, m)
	}
	if authorized.Load() != 0 {
		t.Error("a mirror was sent the registry's credentials")
	}
	assertClean(t, s)
	// What no mirror has is the registry's.
	only := origin.push(t, "only:1", twoLayers(t))
	if _, err := s.Resolve(t.Context(), only, PullIfMissing, nil); err != nil {
		t.Error(err)
	}
	if _, err := s.Resolve(t.Context(), mustParse(t, origin.host+"/none:1"), PullIfMissing, nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("nowhere: %v", err)
	}
	// No mirrors for this call.
	bad.fetched()
	if _, err := s.Resolve(t.Context(), one.ref, PullAlways, &PullOptions{Mirrors: map[string][]string{}}); err != nil || bad.fetched() != 0 {
		t.Errorf("without mirrors: %v", err)
	}
	// A digest is checked whoever answers.
	other := good.push(t, "hub/x/pinned:1", twoLayers(t))
	digest, _ := img.Digest()
	good.around = func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/manifests/sha256:") {
			r.URL.Path = "/v2/" + other.Repository() + "/manifests/1"
		}
		return false
	}
	pinned := mustParse(t, good.host+"/hub/x/pinned:1@"+digest.String())
	if _, err := s.Resolve(t.Context(), pinned, PullAlways, nil); !errors.Is(err, ErrDigestMismatch) {
		t.Errorf("another manifest: %v", err)
	}
	for _, m := range []map[string][]string{{"docker.io": {"ftp://x"}}, {"docker.io": {"x/../y"}}, {"docker.io/library": {"x"}}, {"docker.io": {""}}} {
		if _, err := OpenStore(tempDir(t), &StoreOptions{Mirrors: m}); err == nil {
			t.Errorf("%v was accepted", m)
		}
	}
}

func TestPlainHTTP(t *testing.T) {
	for host, want := range map[string]bool{
		"localhost": true, "localhost:5000": true, "x.localhost:1": true, "127.0.0.1:5000": true, "127.9.9.9": true, "[::1]:5000": true, "[::1]": true,
		"10.0.0.1:5000": false, "192.168.1.1": false, "registry:5000": true, "registry": false, "localhost.example.com": false, "127.0.0.1.example.com": false,
	} {
		if got := plainHosts([]string{"registry:5000"})(host); got != want {
			t.Errorf("%s: %v", host, got)
		}
	}
	asked := false
	spy := roundTripper(func(r *http.Request) (*http.Response, error) {
		if r.URL.Scheme == "http" {
			asked = true
		}
		return nil, errors.New("no network")
	})
	ref := mustParse(t, "10.1.2.3:5000/a:1")
	s := newStore(t, nil)
	if _, err := s.Resolve(t.Context(), ref, PullAlways, &PullOptions{Transport: spy}); !errors.Is(err, ErrUnavailable) || asked {
		t.Errorf("private address: %v, asked without TLS: %v", err, asked)
	}
	if _, err := s.Resolve(t.Context(), ref, PullAlways, &PullOptions{Transport: spy, PlainHTTP: true}); !errors.Is(err, ErrUnavailable) || !asked {
		t.Errorf("permitted: %v, asked without TLS: %v", err, asked)
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestVariants(t *testing.T) {
	reg := newRegistry(t)
	idx := mutate.IndexMediaType(empty.Index, "application/vnd.oci.image.index.v1+json")
	for _, p := range []v1.Platform{{OS: "linux", Architecture: "arm", Variant: "v6"}, {OS: "linux", Architecture: "arm64"}, {OS: "linux", Architecture: "arm", Variant: "v7"}} {
		img := imageOf(t, layerOf(t, makeTar(t, file(p.Architecture+p.Variant, ""))))
		cf, _ := img.ConfigFile()
		cf = cf.DeepCopy()
		cf.Architecture, cf.Variant = p.Architecture, p.Variant
		img, err := mutate.ConfigFile(img, cf)
		if err != nil {
			t.Fatal(err)
		}
		idx = mutate.AppendManifests(idx, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &p}})
	}
	ref := reg.pushIndex(t, "many:1", idx)
	s := newStore(t, nil)
	for platform, want := range map[string]string{"linux/arm64/v8": "arm64", "linux/arm64": "arm64", "linux/arm/v7": "armv7", "linux/arm/v6": "armv6"} {
		img, err := s.Resolve(t.Context(), ref, PullAlways, &PullOptions{Platform: platform})
		if err != nil {
			t.Errorf("%s: %v", platform, err)
		} else if got := fingerprint(t, img.Layers[0].Dir); !strings.Contains(got, want+" ") {
			t.Errorf("%s: %s", platform, got)
		}
	}
	_, err := s.Resolve(t.Context(), ref, PullAlways, &PullOptions{Platform: "linux/s390x"})
	if !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "linux/arm/v6, linux/arm/v7, linux/arm64") {
		t.Errorf("on %s: %v", runtime.GOARCH, err)
	}
}
