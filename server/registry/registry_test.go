package registry_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/objects"
	"github.com/daytona-go/daytona/internal/wire"
	"github.com/daytona-go/daytona/server/api"
	"github.com/daytona-go/daytona/server/identity"
	"github.com/daytona-go/daytona/server/registry"
	"github.com/daytona-go/daytona/server/store"
	"github.com/daytona-go/daytona/server/store/storetest"
)

// box seals so that a test can see what was sealed, and where for.
type box struct{}

func (box) Seal(plain, place string) string {
	return "sealed:" + place + ":" + hex.EncodeToString([]byte(plain))
}
func (box) Open(sealed, place string) (string, error) {
	text, ok := strings.CutPrefix(sealed, "sealed:"+place+":")
	if !ok {
		return "", errors.New("sealed for another place")
	}
	plain, err := hex.DecodeString(text)
	return string(plain), err
}

type env struct {
	*registry.Service
	t      *testing.T
	db     *store.DB
	api    *httptest.Server
	server *httptest.Server
	host   string
	dir    string
	offset time.Duration
}

func start(t *testing.T, db *store.DB) *env {
	t.Helper()
	e := &env{t: t, db: db, dir: t.TempDir()}
	var handler http.Handler
	e.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { handler.ServeHTTP(w, r) }))
	t.Cleanup(e.server.Close)
	e.host = strings.TrimPrefix(e.server.URL, "http://")
	e.Service = registry.New(registry.Config{
		DB: db, Sealer: box{}, Host: e.host, Now: func() time.Time { return time.Now().Add(e.offset) },
		Check: func(field, rawURL string) error {
			u, err := url.Parse(rawURL)
			if err != nil || strings.HasPrefix(u.Host, "10.") || u.Hostname() == "localhost" {
				return &daytona.Error{Kind: daytona.KindInvalid, Message: field + " must be reachable from the internet"}
			}
			return nil
		},
	})
	dir, err := objects.OpenDir(filepath.Join(e.dir, "objects"))
	if err != nil {
		t.Fatal(err)
	}
	h, err := registry.NewHandler(e.Service, dir, filepath.Join(e.dir, "uploads"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	h.MaxBlob = 1 << 20
	handler = h
	a := api.New(api.Config{Authenticator: e, Log: slog.New(slog.DiscardHandler)})
	api.RegisterRegistries(a, e.Service)
	e.api = httptest.NewServer(a)
	t.Cleanup(e.api.Close)
	return e
}

func (e *env) Authenticate(ctx context.Context, bearer string) (*identity.Principal, error) {
	org, permission, limited := strings.Cut(bearer, "/")
	p := &identity.Principal{Kind: identity.Key, OrganizationID: org, Permissions: identity.Permissions(), Admin: org == "admin"}
	if limited {
		p.Permissions = []identity.Permission{identity.Permission(permission)}
	}
	return p, nil
}

func (e *env) Join(_ context.Context, p *identity.Principal, _ string) (*identity.Principal, error) {
	return p, nil
}

func (e *env) call(bearer, method, path string, body, out any) (int, string) {
	e.t.Helper()
	data, err := json.Marshal(body)
	if err != nil {
		e.t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(e.t.Context(), method, e.api.URL+"/api"+path, bytes.NewReader(data))
	if err != nil {
		e.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+bearer)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		e.t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		e.t.Fatal(err)
	}
	if resp.StatusCode >= 300 {
		var w wire.Error
		json.Unmarshal(answer, &w)
		return resp.StatusCode, w.Message
	}
	if out != nil {
		if err := json.Unmarshal(answer, out); err != nil {
			e.t.Fatalf("%q: %v", answer, err)
		}
	}
	return resp.StatusCode, string(answer)
}

type fields map[string]any

func TestRegistries(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		e := start(t, db)
		good := fields{"name": "Ours", "url": "https://registry.example.com", "username": "robot", "password": "s3cret", "project": "team"}
		var r wire.DockerRegistry
		status, body := e.call("org", "POST", "/docker-registry", good, &r)
		if status != 201 || r.RegistryType != "organization" || r.Project != "team" || strings.Contains(body, "s3cret") || strings.Contains(body, "password") {
			t.Fatalf("%d %s", status, body)
		}
		with := func(k string, v any) fields {
			f := fields{}
			for k, v := range good {
				f[k] = v
			}
			f[k] = v
			return f
		}
		for what, x := range map[string]struct {
			bearer, method, path string
			body                 fields
			status               int
			msg                  string
		}{
			"no name":                 {"org", "POST", "", with("name", ""), 400, "name should not be empty"},
			"HTML":                    {"org", "POST", "", with("name", "<i>"), 400, "name must not contain HTML tags"},
			"a private address":       {"org", "POST", "", with("url", "http://10.0.0.1"), 400, "url must be reachable from the internet"},
			"this machine":            {"org", "POST", "", with("url", "localhost:5000"), 400, "url must be reachable from the internet"},
			"this server's own":       {"org", "POST", "", with("url", "http://"+e.host), 400, "own registry"},
			"with credentials":        {"org", "POST", "", with("url", "https://u:p@registry.example.com"), 400, "url must be"},
			"a file":                  {"org", "POST", "", with("url", "file:///etc/passwd"), 400, "url must be"},
			"no password":             {"org", "POST", "", with("password", ""), 400, "password should not be empty"},
			"a long username":         {"org", "POST", "", with("username", strings.Repeat("x", 2000)), 400, "username must have at most"},
			"no permission":           {"org/write:snapshots", "POST", "", good, 403, "Access denied"},
			"another's":               {"other", "GET", "/" + r.ID, nil, 404, "Docker registry with ID " + r.ID + " not found"},
			"another's to change":     {"other", "PATCH", "/" + r.ID, good, 404, ""},
			"another's to delete":     {"other", "DELETE", "/" + r.ID, nil, 404, ""},
			"a new host":              {"org", "PATCH", "/" + r.ID, fields{"name": "Ours", "url": "https://evil.example.com", "username": "robot"}, 400, "password is required"},
			"no permission to delete": {"org/write:registries", "DELETE", "/" + r.ID, nil, 403, "Access denied"},
		} {
			if status, msg := e.call(x.bearer, x.method, "/docker-registry"+x.path, x.body, nil); status != x.status || !strings.Contains(msg, x.msg) {
				t.Errorf("%s: %d %q", what, status, msg)
			}
		}
		if status, _ := e.call("org", "POST", "/admin/docker-registry/"+r.ID+"/set-default", nil, nil); status != 403 {
			t.Error(status)
		}
		if status, msg := e.call("admin", "POST", "/admin/docker-registry/"+r.ID+"/set-default", nil, nil); status != 200 {
			t.Error(status, msg)
		}
		// Not in the database, either.
		var rows []map[string]any
		if err := db.All(t.Context()).NewRaw("SELECT * FROM registries").Scan(t.Context(), &rows); err != nil {
			t.Fatal(err)
		}
		if text := fmt.Sprint(rows); strings.Contains(text, "s3cret") || !strings.Contains(text, "sealed:registry/"+r.ID) {
			t.Errorf("%s", text)
		}
		credentials := func(org, image string) string {
			t.Helper()
			c, err := e.Credentials(t.Context(), org, image)
			if err != nil {
				t.Fatal(err)
			}
			if c == nil {
				return "none"
			}
			return c.Username + ":" + c.Password
		}
		e.call("org", "POST", "/docker-registry", fields{"name": "all", "url": "registry.example.com", "username": "all", "password": "p", "project": ""}, nil)
		e.call("org", "POST", "/docker-registry", fields{"name": "hub", "url": "https://index.docker.io/v1/", "username": "hub", "password": "p"}, nil)
		e.call("org", "POST", "/docker-registry", fields{"name": "port", "url": "https://registry.example.com:5000", "username": "port", "password": "p"}, nil)
		for image, want := range map[string]string{
			"registry.example.com/team/app:1":      "robot:s3cret",
			"Registry.Example.com/team/app:1":      "robot:s3cret",
			"registry.example.com/teams/app:1":     "all:p",
			"registry.example.com:5000/team/app:1": "port:p",
			"ubuntu:22.04":                         "hub:p",
			"docker.io/library/ubuntu:22.04":       "hub:p",
			"team/app:1":                           "hub:p",
			"registry.example.com.evil.org/app:1":  "none",
			"ghcr.io/x/y:1":                        "none",
		} {
			if got := credentials("org", image); got != want {
				t.Errorf("%s: %s, want %s", image, got, want)
			}
		}
		if got := credentials("other", "registry.example.com/team/app:1"); got != "none" {
			t.Errorf("another organization gets %s", got)
		}
		// A change without a password keeps it.
		if status, msg := e.call("org", "PATCH", "/docker-registry/"+r.ID, fields{"name": "Renamed", "url": "https://registry.example.com/", "username": "robot2"}, &r); status != 200 || r.Name != "Renamed" || r.Project != "team" {
			t.Errorf("%d %s", status, msg)
		}
		if got := credentials("org", "registry.example.com/team/app:1"); got != "robot2:s3cret" {
			t.Error(got)
		}
		if status, body := e.call("org", "DELETE", "/docker-registry/"+r.ID, nil, nil); status != 204 || body != "" {
			t.Errorf("%d %q", status, body)
		}
		var list []wire.DockerRegistry
		e.call("org", "GET", "/docker-registry", nil, &list)
		if len(list) != 3 {
			t.Errorf("%+v", list)
		}
		if _, body := e.call("other", "GET", "/docker-registry", nil, nil); body != "[]\n" {
			t.Errorf("%q", body)
		}
	})
}

// push returns what an organization pushes with.
func (e *env) push(org string) wire.RegistryPushAccess {
	e.t.Helper()
	var p wire.RegistryPushAccess
	if status, msg := e.call(org, "GET", "/docker-registry/registry-push-access?regionId=us", nil, &p); status != 200 {
		e.t.Fatalf("%d %s", status, msg)
	}
	return p
}

func auth(p wire.RegistryPushAccess) remote.Option {
	return remote.WithAuth(&authn.Basic{Username: p.Username, Password: p.Secret})
}

func status(err error) int {
	if err == nil {
		return 200
	}
	if e, ok := errors.AsType[*transport.Error](err); ok {
		return e.StatusCode
	}
	return -1
}

// What one organization pushes, its runners pull, and nobody else.
func TestPush(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		e := start(t, db)
		p, other := e.push("org-a"), e.push("org-b")
		if p.RegistryURL != e.host || p.Project != "org-a" || p.RegistryID == "" {
			t.Fatalf("%+v", p)
		}
		if expires, err := time.Parse(time.RFC3339, p.ExpiresAt); err != nil || time.Until(expires) > time.Hour || time.Until(expires) < 59*time.Minute {
			t.Fatalf("%s %v", p.ExpiresAt, err)
		}
		ref := func(s string) name.Reference {
			t.Helper()
			r, err := name.ParseReference(e.host+"/"+s, name.Insecure)
			if err != nil {
				t.Fatal(err)
			}
			return r
		}
		img, err := random.Image(50<<10, 3)
		if err != nil {
			t.Fatal(err)
		}
		for _, tag := range []string{"org-a/app:1", "org-a/app:1", "org-a/deep/er/app:_2.x-Y"} {
			if err := remote.Write(ref(tag), img, auth(p)); err != nil {
				t.Fatal(err)
			}
		}
		index := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}}})
		if err := remote.WriteIndex(ref("org-a/app:index"), index, auth(p)); err != nil {
			t.Fatal(err)
		}
		// As a runner pulls it.
		c, err := e.Credentials(t.Context(), "org-a", e.host+"/org-a/app:1")
		if err != nil || c.Project != "org-a" {
			t.Fatalf("%+v %v", c, err)
		}
		pull := remote.WithAuth(&authn.Basic{Username: c.Username, Password: c.Password})
		for _, tag := range []string{"org-a/app:1", "org-a/app:index", "org-a/deep/er/app:_2.x-Y"} {
			got, err := remote.Image(ref(tag), pull)
			if err != nil {
				t.Fatal(err)
			}
			want, _ := img.Digest()
			if d, err := got.Digest(); err != nil || d != want {
				t.Fatalf("%s: %v %v", tag, d, err)
			}
			layers, err := got.Layers()
			if err != nil || len(layers) != 3 {
				t.Fatal(err)
			}
			for _, l := range layers {
				r, err := l.Compressed()
				if err != nil {
					t.Fatal(err)
				}
				_, err = io.Copy(io.Discard, r) // go-containerregistry checks the digest
				r.Close()
				if err != nil {
					t.Fatal(err)
				}
			}
		}
		repo, err := name.NewRepository(e.host+"/org-a/app", name.Insecure)
		if err != nil {
			t.Fatal(err)
		}
		if tags, err := remote.List(repo, pull); err != nil || fmt.Sprint(tags) != "[1 index]" {
			t.Errorf("%v %v", tags, err)
		}
		if _, err := e.Credentials(t.Context(), "org-b", e.host+"/org-a/app:1"); !errors.Is(err, daytona.ErrForbidden) {
			t.Error(err)
		}
		imageErr := func(s string, o remote.Option) error { _, err := remote.Image(ref(s), o); return err }
		layer, _ := img.Layers()
		d, _ := layer[0].Digest()
		blobErr := func(s string, o remote.Option) error {
			r, err := name.NewDigest(e.host+"/"+s+"@"+d.String(), name.Insecure)
			if err != nil {
				t.Fatal(err)
			}
			l, err := remote.Layer(r, o)
			if err == nil {
				_, err = l.Size()
			}
			return err
		}
		for what, x := range map[string]struct {
			err    error
			status int
		}{
			"another's image":         {imageErr("org-a/app:1", auth(other)), 403},
			"another's layer":         {blobErr("org-a/app", auth(other)), 403},
			"a layer by its digest":   {blobErr("org-b/app", auth(other)), 404},
			"to another's project":    {remote.Write(ref("org-a/app:2"), img, auth(other)), 403},
			"beside":                  {remote.Write(ref("org-a-x/app:2"), img, auth(p)), 403},
			"with what only pulls":    {remote.Write(ref("org-a/app:2"), img, pull), 403},
			"nothing there":           {imageErr("org-a/app:none", pull), 404},
			"without a credential":    {imageErr("org-a/app:1", remote.WithAuth(authn.Anonymous)), 401},
			"with a wrong credential": {imageErr("org-a/app:1", remote.WithAuth(&authn.Basic{Username: p.Username, Password: other.Secret})), 401},
		} {
			if got := status(x.err); got != x.status {
				t.Errorf("%s: %v", what, x.err)
			}
		}
		if err := e.Revoke(t.Context(), "org-b"); err != nil {
			t.Fatal(err)
		}
		if _, err := e.allowed(other); !errors.Is(err, daytona.ErrUnauthorized) {
			t.Error(err)
		}
		if _, err := e.allowed(p); err != nil {
			t.Error(err)
		}
		e.offset = time.Hour + time.Second
		if _, err := e.allowed(p); !errors.Is(err, daytona.ErrUnauthorized) {
			t.Error(err)
		}
	})
}

// allowed is what a credential allows.
func (e *env) allowed(p wire.RegistryPushAccess) (registry.Access, error) {
	return e.Service.Authenticate(e.t.Context(), p.Username, p.Secret)
}

// The protocol itself, as docker speaks it, and as nobody should.
func TestProtocol(t *testing.T) {
	t.Parallel()
	e := start(t, storetest.Open(t, storetest.SQLite(t)))
	p := e.push("org-a")
	do := func(method, path, body string, header map[string]string) *http.Response {
		t.Helper()
		if strings.HasPrefix(path, "/") {
			path = e.server.URL + path
		}
		req, err := http.NewRequest(method, path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		for k, v := range header {
			req.Header.Set(k, v)
		}
		req.SetBasicAuth(p.Username, p.Secret)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		data, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		resp.Body = io.NopCloser(bytes.NewReader(data))
		return resp
	}
	sum := func(s string) string {
		h := sha256.Sum256([]byte(s))
		return "sha256:" + hex.EncodeToString(h[:])
	}
	begin := func() string {
		t.Helper()
		r := do("POST", "/v2/org-a/app/blobs/uploads/", "", nil)
		if r.StatusCode != 202 {
			t.Fatal(r.Status)
		}
		return r.Header.Get("Location")
	}
	if r := do("GET", "/v2/", "", nil); r.StatusCode != 200 || r.Header.Get("Docker-Distribution-Api-Version") != "registry/2.0" {
		t.Fatal(r.Status)
	}
	// In chunks, with one that is sent twice, and the answer to where it is.
	at := begin()
	if r := do("PATCH", at, "hello ", nil); r.StatusCode != 202 || r.Header.Get("Range") != "0-5" {
		t.Fatal(r.Status, r.Header)
	}
	if r := do("PATCH", at, "hello ", map[string]string{"Content-Range": "0-5"}); r.StatusCode != 416 {
		t.Fatal(r.Status)
	}
	if r := do("GET", at, "", nil); r.StatusCode != 204 || r.Header.Get("Range") != "0-5" {
		t.Fatal(r.Status, r.Header)
	}
	if r := do("PUT", at+"?digest="+sum("hello world"), "world", map[string]string{"Content-Range": "6-10"}); r.StatusCode != 201 || r.Header.Get("Docker-Content-Digest") != sum("hello world") {
		t.Fatal(r.Status)
	}
	if r := do("GET", "/v2/org-a/app/blobs/"+sum("hello world"), "", nil); r.StatusCode != 200 || r.ContentLength != 11 {
		t.Fatal(r.Status)
	}
	if r := do("POST", "/v2/org-a/app/blobs/uploads/?digest="+sum("{}"), "{}", nil); r.StatusCode != 201 {
		t.Fatal(r.Status)
	}
	if r := do("POST", "/v2/org-a/other/blobs/uploads/?mount="+sum("hello world")+"&from=org-a/app", "", nil); r.StatusCode != 201 {
		t.Fatal(r.Status)
	}
	// What is not what it says.
	at = begin()
	if r := do("PUT", at+"?digest="+sum("this"), "that", nil); r.StatusCode != 400 {
		t.Error(r.Status)
	}
	if r := do("PATCH", at, "x", nil); r.StatusCode != 404 {
		t.Errorf("an upload that has failed goes on: %s", r.Status)
	}
	at = begin()
	if r := do("PATCH", at, strings.Repeat("x", 1<<20+1), nil); r.StatusCode != 413 {
		t.Errorf("too large: %s", r.Status)
	}
	if r := do("DELETE", at, "", nil); r.StatusCode != 204 {
		t.Error(r.Status)
	}
	if files, _ := filepath.Glob(filepath.Join(e.dir, "uploads", "*")); len(files) != 0 {
		t.Errorf("%q is left", files)
	}
	const oci = "application/vnd.oci.image.manifest.v1+json"
	manifest := func(layer string) string {
		return `{"schemaVersion":2,"mediaType":"` + oci + `","config":{"digest":"` + sum("{}") + `"},"layers":[{"digest":"` + layer + `"}]}`
	}
	for what, x := range map[string]struct {
		method, path, body, mediaType string
		status                        int
	}{
		"good":                     {"PUT", "org-a/app/manifests/v1", manifest(sum("hello world")), oci, 201},
		"a missing layer":          {"PUT", "org-a/app/manifests/v2", manifest(sum("missing")), oci, 404},
		"a digest that climbs":     {"PUT", "org-a/app/manifests/v2", manifest("sha256:../../x"), oci, 400},
		"another type":             {"PUT", "org-a/app/manifests/v2", manifest(sum("hello world")), "text/html", 400},
		"no JSON":                  {"PUT", "org-a/app/manifests/v2", "<html>", oci, 400},
		"another digest":           {"PUT", "org-a/app/manifests/" + sum("x"), manifest(sum("hello world")), oci, 400},
		"too large":                {"PUT", "org-a/app/manifests/v2", strings.Repeat(" ", 4<<20+1), oci, 413},
		"a tag that climbs":        {"PUT", "org-a/app/manifests/..", manifest(sum("hello world")), oci, 404},
		"a tag with an escape":     {"PUT", "org-a/app/manifests/%2e%2e", manifest(sum("hello world")), oci, 400},
		"a name that climbs":       {"GET", "org-a/%2e%2e/org-b/app/manifests/v1", "", "", 400},
		"a name in capitals":       {"GET", "org-a/App/manifests/v1", "", "", 400},
		"an empty part":            {"GET", "org-a//app/manifests/v1", "", "", 400},
		"ours":                     {"GET", "org-a/_blobs/manifests/v1", "", "", 400},
		"only the organization":    {"GET", "org-a/manifests/v1", "", "", 400},
		"an upload of nobody":      {"PATCH", "org-a/app/blobs/uploads/abcdefghijklmnopqrstuvwxyz", "", "", 404},
		"an upload that climbs":    {"PATCH", "org-a/app/blobs/uploads/%2e%2e%2fx", "", "", 400},
		"a method":                 {"DELETE", "org-a/app/blobs/" + sum("hello world"), "", "", 405},
		"the list of repositories": {"GET", "_catalog", "", "", 404},
	} {
		r := do(x.method, "/v2/"+x.path, x.body, map[string]string{"Content-Type": x.mediaType})
		if r.StatusCode != x.status && !(x.status == 400 && r.StatusCode == 404) && !(x.status == 404 && r.StatusCode == 400) {
			t.Errorf("%s: %s", what, r.Status)
		}
	}
	if r := do("DELETE", "/v2/org-a/app/manifests/v1", "", nil); r.StatusCode != 202 {
		t.Error(r.Status)
	}
	if r := do("HEAD", "/v2/org-a/app/manifests/v1", "", nil); r.StatusCode != 404 {
		t.Error(r.Status)
	}
}
