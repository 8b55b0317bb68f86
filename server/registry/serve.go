package registry

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/objects"
)

// Handler is the registry of this server, below /v2/: the distribution protocol,
// as far as pushing and pulling images needs it. Everything is an object of a
// store, below the organization's id: its layers once, its manifests by digest,
// and its tags, which name them. What is being uploaded is a file in a directory
// of this process's machine until it is whole and has the digest that was said.
type Handler struct {
	service *Service
	store   objects.Store
	root    *os.Root
	dir     string
	log     *slog.Logger
	// MaxBlob is the largest layer in bytes. Defaults to 20 GiB.
	MaxBlob int64
	// Stall is how long a client may be silent. Defaults to 1 minute.
	Stall time.Duration
}

const (
	maxManifest = 4 << 20
	maxTags     = 10000
	// uploadAge is how long an upload that nobody goes on with is kept.
	uploadAge = 24 * time.Hour
	// minFree is what is left to the rest of the machine, in bytes.
	minFree = 256 << 20
)

// NewHandler returns a Handler that keeps its objects in a store and its uploads
// in a directory, which it makes.
func NewHandler(s *Service, store objects.Store, dir string, log *slog.Logger) (*Handler, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	if log == nil {
		log = slog.Default()
	}
	return &Handler{service: s, store: store, root: root, dir: dir, log: log, MaxBlob: 20 << 30, Stall: time.Minute}, nil
}

// Close frees what the Handler has open.
func (h *Handler) Close() error { return h.root.Close() }

// problem is an error of the protocol's.
type problem struct {
	status        int
	code, message string
}

func (p *problem) Error() string { return p.code + ": " + p.message }

var (
	nameRule   = regexp.MustCompile(`^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)+$`)
	tagRule    = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$`)
	digestRule = regexp.MustCompile(`^sha256:[a-f0-9]{64}$`)
	uploadRule = regexp.MustCompile(`^[a-z0-9]{26}$`)
)

// request is one request that has been let in.
type request struct {
	h      *Handler
	w      http.ResponseWriter
	r      *http.Request
	access Access
	name   string // of the repository
}

// ServeHTTP implements [http.Handler].
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	err := h.serve(w, r)
	if err == nil {
		return
	}
	p, ok := errors.AsType[*problem](err)
	switch {
	case ok:
	case errors.Is(err, fs.ErrNotExist):
		p = &problem{404, "BLOB_UNKNOWN", "there is no such thing"}
	case errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT):
		p = &problem{507, "TOOMANYREQUESTS", "the disk is full"}
	default:
		if r.Context().Err() == nil {
			h.log.Error("registry", "method", r.Method, "err", err)
		}
		p = &problem{500, "UNKNOWN", "an unexpected error occurred"}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(p.status)
	json.NewEncoder(w).Encode(map[string]any{"errors": []map[string]string{{"code": p.code, "message": p.message}}})
}

func (h *Handler) serve(w http.ResponseWriter, r *http.Request) error {
	user, secret, _ := r.BasicAuth()
	access, err := h.service.Authenticate(r.Context(), user, secret)
	if errors.Is(err, daytona.ErrUnauthorized) {
		w.Header().Set("WWW-Authenticate", `Basic realm="daytona"`)
		return &problem{401, "UNAUTHORIZED", "authentication required"}
	} else if err != nil {
		return err
	}
	rest, ok := strings.CutPrefix(r.URL.Path, "/v2/")
	if !ok && r.URL.Path != "/v2" {
		return &problem{404, "UNSUPPORTED", "not a path of a registry"}
	}
	if rest == "" {
		w.WriteHeader(http.StatusOK)
		return nil
	}
	q := &request{h: h, w: w, r: r, access: access}
	parts := strings.Split(rest, "/")
	// From the end: a repository may be called "blobs", too.
	n := len(parts)
	switch {
	case n >= 4 && parts[n-3] == "blobs" && parts[n-2] == "uploads":
		return q.at(parts[:n-3], func() error { return q.upload(parts[n-1]) })
	case n >= 3 && parts[n-2] == "blobs" && parts[n-1] == "uploads":
		return q.at(parts[:n-2], func() error { return q.upload("") })
	case n >= 3 && parts[n-2] == "blobs":
		return q.at(parts[:n-2], func() error { return q.blob(parts[n-1]) })
	case n >= 3 && parts[n-2] == "manifests":
		return q.at(parts[:n-2], func() error { return q.manifest(parts[n-1]) })
	case n >= 3 && parts[n-2] == "tags" && parts[n-1] == "list":
		return q.at(parts[:n-2], q.tags)
	}
	return &problem{404, "UNSUPPORTED", "not a path of a registry"}
}

// at runs f for a repository that the caller may use.
func (q *request) at(name []string, f func() error) error {
	q.name = strings.Join(name, "/")
	if len(q.name) > 255 || !nameRule.MatchString(q.name) {
		return &problem{400, "NAME_INVALID", "invalid repository name"}
	}
	reads := q.r.Method == http.MethodGet || q.r.Method == http.MethodHead
	if !strings.HasPrefix(q.name, q.access.OrganizationID+"/") || !reads && !q.access.Push {
		return &problem{403, "DENIED", "requested access to the resource is denied"}
	}
	return f()
}

// Keys of objects. No part of a repository's name begins with "_".
func (q *request) blobKey(digest string) string {
	hash := strings.TrimPrefix(digest, "sha256:")
	return q.access.OrganizationID + "/_blobs/" + hash[:2] + "/" + hash
}

func (q *request) manifestKey(digest string) string {
	return q.name + "/_manifests/" + strings.TrimPrefix(digest, "sha256:")
}

func (q *request) tagKey(tag string) string { return q.name + "/_tags/" + tagPrefix + tag }

// tagPrefix makes any tag a part of a key.
const tagPrefix = "t-"

// size returns the size of an object; fs.ErrNotExist if there is none.
func (q *request) size(key string) (int64, error) {
	for e, err := range q.h.store.List(q.r.Context(), key) {
		if err != nil {
			return 0, err
		}
		if e.Key == key {
			return e.Size, nil
		}
	}
	return 0, fs.ErrNotExist
}

func (q *request) blob(digest string) error {
	if !digestRule.MatchString(digest) {
		return &problem{400, "DIGEST_INVALID", "must be sha256:<64 hexadecimal digits>"}
	}
	if q.r.Method != http.MethodGet && q.r.Method != http.MethodHead {
		return &problem{405, "UNSUPPORTED", "the operation is unsupported"}
	}
	size, err := q.size(q.blobKey(digest))
	if err != nil {
		return err
	}
	return q.send(q.blobKey(digest), digest, "application/octet-stream", size)
}

func (q *request) send(key, digest, mediaType string, size int64) error {
	h := q.w.Header()
	set := func() {
		h.Set("Content-Type", mediaType)
		h.Set("Content-Length", strconv.FormatInt(size, 10))
		h.Set("Docker-Content-Digest", digest)
		h.Set("ETag", `"`+digest+`"`)
	}
	if q.r.Method == http.MethodHead {
		set()
		q.w.WriteHeader(http.StatusOK)
		return nil
	}
	o, err := q.h.store.Get(q.r.Context(), key)
	if err != nil {
		return err
	}
	defer o.Close()
	set()
	q.w.WriteHeader(http.StatusOK)
	if _, err := io.Copy(q.w, o); err != nil {
		// The answer has begun: its end shows that it is not whole.
		panic(http.ErrAbortHandler)
	}
	return nil
}

// uploadName is the file of an upload, which is an organization's.
func (q *request) uploadName(id string) string { return q.access.OrganizationID + "." + id }

func (q *request) upload(id string) error {
	if id == "" {
		if q.r.Method != http.MethodPost {
			return &problem{405, "UNSUPPORTED", "the operation is unsupported"}
		}
		return q.start()
	}
	if !uploadRule.MatchString(id) {
		return &problem{404, "BLOB_UPLOAD_UNKNOWN", "there is no such upload"}
	}
	f, err := q.h.root.OpenFile(q.uploadName(id), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return &problem{404, "BLOB_UPLOAD_UNKNOWN", "there is no such upload"}
	} else if err != nil {
		return err
	}
	defer f.Close()
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		return &problem{409, "BLOB_UPLOAD_INVALID", "another request writes to the upload"}
	}
	switch q.r.Method {
	case http.MethodGet:
		st, err := f.Stat()
		if err != nil {
			return err
		}
		q.progress(id, st.Size())
		q.w.WriteHeader(http.StatusNoContent)
		return nil
	case http.MethodDelete:
		if err := q.h.root.Remove(q.uploadName(id)); err != nil {
			return err
		}
		q.w.WriteHeader(http.StatusNoContent)
		return nil
	case http.MethodPatch:
		n, err := q.add(f)
		if err != nil {
			return err
		}
		q.progress(id, n)
		q.w.WriteHeader(http.StatusAccepted)
		return nil
	case http.MethodPut:
		return q.finish(f, id)
	}
	return &problem{405, "UNSUPPORTED", "the operation is unsupported"}
}

func (q *request) progress(id string, n int64) {
	h := q.w.Header()
	h.Set("Location", "/v2/"+q.name+"/blobs/uploads/"+id)
	h.Set("Docker-Upload-UUID", id)
	h.Set("Range", fmt.Sprintf("0-%d", max(0, n-1)))
	h.Set("Content-Length", "0")
}

func (q *request) start() error {
	// A layer that another repository of the organization has needs no upload.
	if mount := q.r.URL.Query().Get("mount"); digestRule.MatchString(mount) {
		if _, err := q.size(q.blobKey(mount)); err == nil {
			return q.created("/blobs/"+mount, mount)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	q.h.sweep()
	id := strings.ToLower(rand.Text())
	f, err := q.h.root.OpenFile(q.uploadName(id), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if q.r.URL.Query().Has("digest") { // all of it at once
		return q.finish(f, id)
	}
	q.progress(id, 0)
	q.w.WriteHeader(http.StatusAccepted)
	return nil
}

// sweep removes uploads that nobody goes on with.
func (h *Handler) sweep() {
	entries, err := fs.ReadDir(h.root.FS(), ".")
	if err != nil {
		return
	}
	for _, e := range entries {
		if st, err := e.Info(); err == nil && time.Since(st.ModTime()) > uploadAge {
			h.root.Remove(e.Name())
		}
	}
}

// add writes the body of a request to the end of a file.
func (q *request) add(f *os.File) (int64, error) {
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, err
	}
	if v := q.r.Header.Get("Content-Range"); v != "" {
		first, _, _ := strings.Cut(strings.TrimPrefix(v, "bytes "), "-")
		if n, err := strconv.ParseInt(first, 10, 64); err != nil || n != end {
			return 0, &problem{416, "BLOB_UPLOAD_INVALID", fmt.Sprintf("the next byte is %d", end)}
		}
	}
	var st unix.Statfs_t
	if err := unix.Statfs(q.h.dir, &st); err == nil && uint64(st.Bavail)*uint64(st.Bsize) < minFree {
		return 0, unix.ENOSPC
	}
	n, err := io.Copy(f, io.LimitReader(q.body(), q.h.MaxBlob-end+1))
	if err == nil && end+n > q.h.MaxBlob {
		err = &problem{413, "SIZE_INVALID", fmt.Sprintf("a layer may have at most %d bytes", q.h.MaxBlob)}
	}
	if err != nil && n > 0 {
		// What came is not kept, so that the client can send it again.
		if truncErr := f.Truncate(end); truncErr != nil {
			return 0, truncErr
		}
	}
	return end + n, err
}

// body is the body of the request, whose sender must not be silent for long.
func (q *request) body() io.Reader {
	c := http.NewResponseController(q.w)
	var next time.Time
	return readerFunc(func(p []byte) (int, error) {
		if now := time.Now(); now.After(next) {
			next = now.Add(q.h.Stall / 4)
			c.SetReadDeadline(now.Add(q.h.Stall)) // an answer that can't have one has none
		}
		n, err := q.r.Body.Read(p)
		if err == io.EOF {
			c.SetReadDeadline(time.Time{})
		}
		return n, err
	})
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func (q *request) finish(f *os.File, id string) error {
	digest := q.r.URL.Query().Get("digest")
	if !digestRule.MatchString(digest) {
		return &problem{400, "DIGEST_INVALID", "must be sha256:<64 hexadecimal digits>"}
	}
	if _, err := q.add(f); err != nil {
		return err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return err
	}
	if "sha256:"+hex.EncodeToString(sum.Sum(nil)) != digest {
		q.h.root.Remove(q.uploadName(id))
		return &problem{400, "DIGEST_INVALID", "what was uploaded has another digest"}
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if err := q.h.store.Put(q.r.Context(), q.blobKey(digest), f); err != nil {
		return err
	}
	q.h.root.Remove(q.uploadName(id)) // or sweep does
	return q.created("/blobs/"+digest, digest)
}

func (q *request) created(path, digest string) error {
	h := q.w.Header()
	h.Set("Location", "/v2/"+q.name+path)
	h.Set("Docker-Content-Digest", digest)
	h.Set("Content-Length", "0")
	q.w.WriteHeader(http.StatusCreated)
	return nil
}

// stored is a manifest as it is kept: its type in a line, then itself.
func stored(mediaType string, data []byte) []byte {
	return append([]byte(mediaType+"\n"), data...)
}

func (q *request) read(ctx context.Context, key string) ([]byte, error) {
	o, err := q.h.store.Get(ctx, key)
	if err != nil {
		return nil, err
	}
	defer o.Close()
	return io.ReadAll(io.LimitReader(o, maxManifest+1024))
}

func (q *request) manifest(ref string) error {
	byDigest := digestRule.MatchString(ref)
	if !byDigest && !tagRule.MatchString(ref) {
		return &problem{400, "TAG_INVALID", "invalid tag or digest"}
	}
	ctx := q.r.Context()
	unknown := &problem{404, "MANIFEST_UNKNOWN", "manifest unknown"}
	switch q.r.Method {
	case http.MethodGet, http.MethodHead:
		digest := ref
		if !byDigest {
			data, err := q.read(ctx, q.tagKey(ref))
			if errors.Is(err, fs.ErrNotExist) {
				return unknown
			} else if err != nil {
				return err
			}
			digest = string(data)
		}
		data, err := q.read(ctx, q.manifestKey(digest))
		if errors.Is(err, fs.ErrNotExist) {
			return unknown
		} else if err != nil {
			return err
		}
		mediaType, body, _ := bytes.Cut(data, []byte("\n"))
		h := q.w.Header()
		h.Set("Content-Type", string(mediaType))
		h.Set("Content-Length", strconv.Itoa(len(body)))
		h.Set("Docker-Content-Digest", digest)
		q.w.WriteHeader(http.StatusOK)
		if q.r.Method == http.MethodGet {
			q.w.Write(body)
		}
		return nil
	case http.MethodPut:
		return q.putManifest(ref, byDigest)
	case http.MethodDelete:
		key := q.tagKey(ref)
		if byDigest {
			key = q.manifestKey(ref)
		}
		if _, err := q.size(key); errors.Is(err, fs.ErrNotExist) {
			return unknown
		} else if err != nil {
			return err
		}
		if err := q.h.store.Delete(ctx, key); err != nil {
			return err
		}
		q.w.WriteHeader(http.StatusAccepted)
		return nil
	}
	return &problem{405, "UNSUPPORTED", "the operation is unsupported"}
}

// types are those of manifests and of lists of them.
var types = []string{
	"application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json",
	"application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json",
}

func (q *request) putManifest(ref string, byDigest bool) error {
	data, err := io.ReadAll(io.LimitReader(q.body(), maxManifest+1))
	if err != nil {
		return err
	}
	if len(data) > maxManifest {
		return &problem{413, "SIZE_INVALID", fmt.Sprintf("a manifest may have at most %d bytes", maxManifest)}
	}
	mediaType, _, _ := strings.Cut(q.r.Header.Get("Content-Type"), ";")
	mediaType = strings.TrimSpace(mediaType)
	type descriptor struct {
		MediaType string   `json:"mediaType"`
		Digest    string   `json:"digest"`
		URLs      []string `json:"urls"`
	}
	var m struct {
		MediaType string       `json:"mediaType"`
		Config    *descriptor  `json:"config"`
		Layers    []descriptor `json:"layers"`
		Manifests []descriptor `json:"manifests"`
	}
	if err := json.Unmarshal(data, &m); err != nil {
		return &problem{400, "MANIFEST_INVALID", "the manifest is no JSON"}
	}
	if !slices.Contains(types, mediaType) || m.MediaType != "" && m.MediaType != mediaType {
		return &problem{400, "MANIFEST_INVALID", "the type of the manifest is not supported"}
	}
	sum := sha256.Sum256(data)
	digest := "sha256:" + hex.EncodeToString(sum[:])
	if byDigest && ref != digest {
		return &problem{400, "DIGEST_INVALID", "the manifest has another digest"}
	}
	blobs := m.Layers
	if m.Config != nil {
		blobs = append(blobs, *m.Config)
	}
	for i, b := range append(slices.Clone(blobs), m.Manifests...) {
		if !digestRule.MatchString(b.Digest) {
			return &problem{400, "MANIFEST_INVALID", "the manifest names something without a digest"}
		}
		key := q.manifestKey(b.Digest)
		if i < len(blobs) {
			key = q.blobKey(b.Digest)
		}
		if _, err := q.size(key); errors.Is(err, fs.ErrNotExist) {
			if len(b.URLs) > 0 {
				continue // of those that are elsewhere
			}
			return &problem{404, "MANIFEST_BLOB_UNKNOWN", "the manifest names what is not there: " + b.Digest}
		} else if err != nil {
			return err
		}
	}
	ctx := q.r.Context()
	if err := q.h.store.Put(ctx, q.manifestKey(digest), bytes.NewReader(stored(mediaType, data))); err != nil {
		return err
	}
	if !byDigest {
		if err := q.h.store.Put(ctx, q.tagKey(ref), strings.NewReader(digest)); err != nil {
			return err
		}
	}
	return q.created("/manifests/"+digest, digest)
}

func (q *request) tags() error {
	if q.r.Method != http.MethodGet {
		return &problem{405, "UNSUPPORTED", "the operation is unsupported"}
	}
	tags := []string{}
	for e, err := range q.h.store.List(q.r.Context(), q.name+"/_tags/") {
		if err != nil {
			return err
		}
		if tag, ok := strings.CutPrefix(path.Base(e.Key), tagPrefix); ok && len(tags) < maxTags {
			tags = append(tags, tag)
		}
	}
	slices.Sort(tags)
	q.w.Header().Set("Content-Type", "application/json")
	return json.NewEncoder(q.w).Encode(map[string]any{"name": q.name, "tags": tags})
}
