package image

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

func TestParseReference(t *testing.T) {
	hex := strings.Repeat("0a", 32)
	for _, tc := range []struct {
		in, out string
		scheme  Scheme
	}{
		{"debian", "docker.io/library/debian:latest", SchemeRegistry},
		{"debian:12", "docker.io/library/debian:12", SchemeRegistry},
		{"docker://debian:12", "docker.io/library/debian:12", SchemeRegistry},
		{"index.docker.io/owner/name", "docker.io/owner/name:latest", SchemeRegistry},
		{"ghcr.io/x/y@sha256:" + hex, "ghcr.io/x/y@sha256:" + hex, SchemeRegistry},
		{"ghcr.io/x/y:tag@sha256:" + hex, "ghcr.io/x/y@sha256:" + hex, SchemeRegistry},
		{"localhost:5000/a/b:c", "localhost:5000/a/b:c", SchemeRegistry},
		{"[::1]:5000/a", "[::1]:5000/a:latest", SchemeRegistry},
		{"registry:2", "docker.io/library/registry:2", SchemeRegistry},
		{"docker.io/library/oci:latest", "docker.io/library/oci:latest", SchemeRegistry},
		{"docker://tar:5000/x", "docker://tar:5000/x:latest", SchemeRegistry},
		{"oci:/a/b", "oci:/a/b", SchemeOCI},
		{"oci:/a//b/../c/:v1", "oci:/a/c:v1", SchemeOCI},
		{"oci:/a:docker.io/library/debian:12", "oci:/a:docker.io/library/debian:12", SchemeOCI},
		{"oci:/a@sha256:" + hex, "oci:/a@sha256:" + hex, SchemeOCI},
		{"oci-archive:/a.tar:x", "oci-archive:/a.tar:x", SchemeOCIArchive},
		{"docker-archive:/a.tar:debian:12", "docker-archive:/a.tar:debian:12", SchemeDockerArchive},
		{"dir:/a/b:c", "dir:/a/b:c", SchemeDir},
		{"tar:/a.tar.zst", "tar:/a.tar.zst", SchemeTar},
	} {
		ref, err := ParseReference(tc.in)
		if err != nil {
			t.Errorf("%s: %v", tc.in, err)
			continue
		}
		if ref.String() != tc.out || ref.Scheme() != tc.scheme || ref.Local() != (tc.scheme != SchemeRegistry) {
			t.Errorf("%s: got %s, scheme %s, local %v", tc.in, ref, ref.Scheme(), ref.Local())
		}
		if again, err := ParseReference(ref.String()); err != nil || again != ref {
			t.Errorf("%s: %s reads back as %s, %v", tc.in, ref, again, err)
		}
		data, err := json.Marshal(ref)
		var back Reference
		if err != nil || json.Unmarshal(data, &back) != nil || back != ref {
			t.Errorf("%s: JSON %s reads back as %s", tc.in, data, back)
		}
	}
	ref, _ := ParseReference("ghcr.io/x/y:tag")
	if ref.Registry() != "ghcr.io" || ref.Repository() != "x/y" || ref.Tag() != "tag" || ref.Digest() != "" || ref.Path() != "" {
		t.Errorf("parts of %s: %q %q %q", ref, ref.Registry(), ref.Repository(), ref.Tag())
	}
}

func TestParseReferenceRefuses(t *testing.T) {
	for _, tc := range []struct{ in, why string }{
		{"", "empty"},
		{"Debian", "can only contain"},
		{"debian:", "tag"},
		{"debian:a b", "tag"},
		{"debian:-x", "tag"},
		{"debian@sha256:12", "sha256"},
		{"debian@sha256:" + strings.Repeat("Z", 64), "sha256"},
		{"a/../b", "repository"},
		{"ghcr.io/a//b", "repository"},
		{"ghcr.io/../x", "repository"},
		{"user:pass@host/x", "sha256"},
		{"host:99999999/x", "host name"},
		{"/etc/passwd", "dir:"},
		{"./rootfs", "dir:"},
		{"https://ghcr.io/x", "scheme"},
		{"dir:relative", "absolute"},
		{"dir:/", "own root"},
		{"dir:/x/..", "own root"},
		{"tar:", "absolute"},
		{"oci:/x:", "name"},
		{"oci:/x:a b", "name"},
		{"oci:/x:tag@sha256:" + strings.Repeat("0", 64), "both"},
		{"docker-archive:/x@sha256:" + strings.Repeat("0", 64), "by tag"},
		{"dir:/x\x00y", "NUL"},
		{strings.Repeat("a", 5000), "5000"},
	} {
		ref, err := ParseReference(tc.in)
		if !errors.Is(err, ErrInvalidReference) {
			t.Errorf("%.80q: got %s, %v; want ErrInvalidReference", tc.in, ref, err)
		} else if !strings.Contains(err.Error(), tc.why) {
			t.Errorf("%.80q: %v; want it to mention %q", tc.in, err, tc.why)
		}
	}
}

func FuzzParseReference(f *testing.F) {
	for _, s := range []string{"debian:12", "oci:/a:b", "dir:/x", "tar:5000/x", "docker://tar:5000/x", "docker-archive:/x:y:z", "a@sha256:00", "[::1]:1/x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ref, err := ParseReference(s)
		if err != nil {
			if !errors.Is(err, ErrInvalidReference) {
				t.Fatalf("%q: untyped error %v", s, err)
			}
			return
		}
		again, err := ParseReference(ref.String())
		if err != nil || again != ref {
			t.Fatalf("%q: %s reads back as %s, %v", s, ref, again, err)
		}
		if ref.Local() != strings.HasPrefix(ref.Path(), "/") {
			t.Fatalf("%q: local %v with path %q", s, ref.Local(), ref.Path())
		}
		if !ref.Local() && strings.Contains(ref.Repository(), "..") {
			t.Fatalf("%q: repository %q", s, ref.Repository())
		}
	})
}
