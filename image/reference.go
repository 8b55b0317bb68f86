package image

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Scheme says where a [Reference] leads.
type Scheme string

const (
	// SchemeRegistry is an image in a registry: the only scheme that names nothing on this
	// machine, and so the only one to accept from a stranger.
	SchemeRegistry Scheme = "docker"
	// SchemeOCI is an OCI image layout directory.
	SchemeOCI Scheme = "oci"
	// SchemeOCIArchive is an OCI image layout in a tar file.
	SchemeOCIArchive Scheme = "oci-archive"
	// SchemeDockerArchive is a tar file as `docker save` writes it.
	SchemeDockerArchive Scheme = "docker-archive"
	// SchemeDir is a root filesystem directory, used in place.
	SchemeDir Scheme = "dir"
	// SchemeTar is a root filesystem in a tar file, compressed or not.
	SchemeTar Scheme = "tar"
)

func localSchemes() []Scheme {
	return []Scheme{SchemeOCI, SchemeOCIArchive, SchemeDockerArchive, SchemeDir, SchemeTar}
}

// Reference names an image. It is comparable; the zero value names nothing.
// [ParseReference] makes one.
type Reference struct {
	scheme Scheme
	base   string // registry/repository, or a clean absolute path
	tag    string
	digest string // "sha256:…" or "sha512:…"
}

// Grammar of the distribution specification, stricter than go-containerregistry's own checks,
// which would let "a/../b" into a URL.
// https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md#pulling-manifests
var (
	reRepository = regexp.MustCompile(`^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$`)
	reTag        = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$`)
	reRegistry   = regexp.MustCompile(`^(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*|\[[0-9a-fA-F:.]+\])(?::[0-9]{1,5})?$`)
	// What the value of org.opencontainers.image.ref.name and a RepoTag may hold.
	reLayoutName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._/:@+-]{0,511}$`)
)

const maxReferenceLength = 4096

// ParseReference reads a reference:
//
//	debian                          a registry image; the registry defaults to docker.io, the
//	debian:12                       repository to library/…, the tag to latest
//	ghcr.io/owner/name:tag
//	localhost:5000/name@sha256:…    a digest; a tag before it is ignored
//	docker://debian:12              the same, said outright
//	oci:/path/to/layout[:name]      an OCI image layout; name is the value of its annotation
//	oci:/path/to/layout@sha256:…    org.opencontainers.image.ref.name, needed if there are several
//	oci-archive:/path.tar[:name]    the same in a tar file, also with @sha256:…
//	docker-archive:/path.tar[:tag]  what `docker save` writes, optionally gzipped; tag as in its
//	                                RepoTags, say debian:12, needed if there are several images
//	dir:/path                       a root filesystem directory
//	tar:/path.tar                   a root filesystem in a tar file, also .tar.gz and .tar.zst
//
// Paths must be absolute. The path of oci:, oci-archive: and docker-archive: ends at the first
// colon. One of the prefixes above always wins: for an image called oci on Docker Hub write
// docker.io/library/oci:latest.
//
// Everything but [SchemeRegistry] reads this machine's files with the caller's rights: a service
// that takes references from strangers must refuse those whose [Reference.Local] is true.
//
// The error wraps [ErrInvalidReference] and names the string and the rule it breaks.
func ParseReference(s string) (Reference, error) {
	ref, err := parseReference(s)
	if err != nil {
		shown := s
		if len(shown) > 256 {
			shown = shown[:256] + "…"
		}
		return Reference{}, fmt.Errorf("%w %q: %w", ErrInvalidReference, shown, err)
	}
	return ref, nil
}

func parseReference(s string) (Reference, error) {
	switch {
	case s == "":
		return Reference{}, fmt.Errorf("it is empty; want something like debian:12")
	case len(s) > maxReferenceLength:
		return Reference{}, fmt.Errorf("it has %d bytes, more than %d", len(s), maxReferenceLength)
	case strings.ContainsRune(s, 0):
		return Reference{}, fmt.Errorf("it contains a NUL byte")
	}
	if rest, ok := strings.CutPrefix(s, "docker://"); ok {
		return parseRegistry(rest)
	}
	prefix, rest, found := strings.Cut(s, ":")
	switch scheme := Scheme(prefix); {
	case !found:
	case scheme == SchemeDir || scheme == SchemeTar:
		return parsePath(Reference{scheme: scheme}, rest)
	case scheme == SchemeOCI || scheme == SchemeOCIArchive || scheme == SchemeDockerArchive:
		return parseLayout(Reference{scheme: scheme}, rest)
	case strings.HasPrefix(rest, "//"):
		return Reference{}, fmt.Errorf("unknown scheme %q; want a registry reference, docker://, oci:, oci-archive:, docker-archive:, dir: or tar:", prefix)
	}
	if strings.HasPrefix(s, "/") || strings.HasPrefix(s, ".") {
		return Reference{}, fmt.Errorf("it looks like a path; write dir:, tar:, oci:, oci-archive: or docker-archive: and an absolute path")
	}
	return parseRegistry(s)
}

func parsePath(ref Reference, p string) (Reference, error) {
	if !strings.HasPrefix(p, "/") {
		return ref, fmt.Errorf("the path %q is not absolute", p)
	}
	ref.base = path.Clean(p)
	if ref.base == "/" {
		return ref, fmt.Errorf("/ is this machine's own root filesystem")
	}
	return ref, nil
}

func parseLayout(ref Reference, s string) (Reference, error) {
	p := s
	if base, digest, ok := cutDigest(s); ok {
		p, ref.digest = base, digest
		if ref.scheme == SchemeDockerArchive {
			return ref, fmt.Errorf("images in a docker-archive are chosen by tag, not by digest")
		}
		if strings.Contains(p, ":") {
			return ref, fmt.Errorf("give either a name or a digest, not both")
		}
	} else if base, tag, ok := strings.Cut(s, ":"); ok {
		if !reLayoutName.MatchString(tag) {
			return ref, fmt.Errorf("the name %q after the path must begin with a letter, a digit or _ and hold only those and . _ / : @ + -", tag)
		}
		p, ref.tag = base, tag
	}
	return parsePath(ref, p)
}

// cutDigest splits s at an "@sha256:…" that ends it.
func cutDigest(s string) (base, digest string, ok bool) {
	i := strings.LastIndexByte(s, '@')
	if i < 0 {
		return s, "", false
	}
	if h, err := v1.NewHash(s[i+1:]); err != nil || h.String() != s[i+1:] {
		return s, "", false
	}
	return s[:i], s[i+1:], true
}

func parseRegistry(s string) (Reference, error) {
	ref := Reference{scheme: SchemeRegistry}
	rest := s
	if strings.Contains(s, "@") {
		var ok bool
		if rest, ref.digest, ok = cutDigest(s); !ok || strings.Contains(rest, "@") {
			return ref, fmt.Errorf("after @ must come sha256: and 64, or sha512: and 128, lower-case hexadecimal digits")
		}
	}
	tag, err := name.NewTag(rest)
	if err != nil {
		// The message repeats the name, which ParseReference gives already; the rule is what counts.
		return ref, fmt.Errorf("want [registry/]repository[:tag][@digest]: %w", err)
	}
	registry, repository := tag.RegistryStr(), tag.RepositoryStr()
	switch {
	case !reRegistry.MatchString(registry):
		return ref, fmt.Errorf("%q is not a host name, optionally with a port", registry)
	case !reRepository.MatchString(repository):
		return ref, fmt.Errorf("the repository %q must be lower-case letters and digits, separated by single . or _, by __, by - or by /", repository)
	case !reTag.MatchString(tag.TagStr()):
		return ref, fmt.Errorf("the tag %q must be at most 128 letters, digits, _, . and -, and begin with neither . nor -", tag.TagStr())
	}
	if registry == name.DefaultRegistry {
		registry = "docker.io"
	}
	ref.base = registry + "/" + repository
	if ref.digest == "" {
		ref.tag = tag.TagStr()
	}
	return ref, nil
}

// Scheme says where the reference leads.
func (r Reference) Scheme() Scheme { return r.scheme }

// Local reports whether the reference names files of this machine. A service must refuse such a
// reference from a client.
func (r Reference) Local() bool { return r.scheme != SchemeRegistry }

// IsZero reports whether the reference names nothing.
func (r Reference) IsZero() bool { return r == Reference{} }

// Path returns the absolute path of a local reference, and "" for an image in a registry.
func (r Reference) Path() string {
	if !r.Local() {
		return ""
	}
	return r.base
}

// Registry returns the host, and the port if there is one, of an image in a registry, for
// instance docker.io. It is "" for a local reference.
func (r Reference) Registry() string {
	if r.Local() {
		return ""
	}
	host, _, _ := strings.Cut(r.base, "/")
	return host
}

// Repository returns the repository of an image within its registry, for instance
// library/debian. It is "" for a local reference.
func (r Reference) Repository() string {
	if r.Local() {
		return ""
	}
	_, repository, _ := strings.Cut(r.base, "/")
	return repository
}

// Tag returns the tag of an image in a registry, or the name within a layout or an archive.
// It is "" if the reference has a digest.
func (r Reference) Tag() string { return r.tag }

// Digest returns the digest that the reference pins, as "sha256:…", or "".
func (r Reference) Digest() string { return r.digest }

// String returns the reference in full: docker.io/library/debian:12. ParseReference reads it back
// as the same value.
func (r Reference) String() string {
	if r.IsZero() {
		return ""
	}
	s := r.base
	if r.Local() {
		s = string(r.scheme) + ":" + s
	} else if host, _, ok := strings.Cut(s, ":"); ok && slices.Contains(localSchemes(), Scheme(host)) {
		s = "docker://" + s // a registry host called, say, tar, with a port
	}
	if r.tag != "" {
		s += ":" + r.tag
	}
	if r.digest != "" {
		s += "@" + r.digest
	}
	return s
}

// MarshalText makes a reference a string in JSON.
func (r Reference) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads what MarshalText wrote, with the rules of [ParseReference].
func (r *Reference) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*r = Reference{}
		return nil
	}
	ref, err := ParseReference(string(text))
	if err != nil {
		return err
	}
	*r = ref
	return nil
}
