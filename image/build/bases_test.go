package build_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/image"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// tarOf is an archive of files.
func tarOf(t testing.TB, files map[string]string) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for name, content := range files {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content)), Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// TestFromHostPath: no Dockerfile reads this machine's files, wherever it names
// them and with whatever variables.
func TestFromHostPath(t *testing.T) {
	base := base(t)
	c := open(t)
	given := firstImage()
	for _, text := range []string{
		"FROM " + given + "\nLABEL a=b\n",
		"FROM dir:/etc\nLABEL a=b\n",
		"FROM docker-archive:/tmp/x.tar\nLABEL a=b\n",
		"FROM oci-archive:/tmp/x.tar\nLABEL a=b\n",
		"FROM tar:/tmp/x.tar\nLABEL a=b\n",
		"FROM /etc\nLABEL a=b\n",
		"ARG X=" + given + "\nFROM $X\nLABEL a=b\n",
		"ARG P=oci\nARG X=${P}:/tmp/img/slim\nFROM ${X}:slim\nLABEL a=b\n",
		"FROM " + base + "\nCOPY --from=" + given + " /etc/passwd /p\n",
		"FROM " + base + "\nCOPY --from=dir:/etc passwd /p\n",
		"FROM " + base + "\nRUN --mount=type=bind,from=" + given + ",target=/m true\n",
		"FROM oci-layout://x@sha256:0123456789012345678901234567890123456789012345678901234567890123\nLABEL a=b\n",
	} {
		_, err := c.Build(t.Context(), daytona.NewImage(text), daytona.BuildOptions{})
		if !errors.Is(err, daytona.ErrUnsupported) || !strings.Contains(err.Error(), "of this machine") {
			t.Errorf("%q: %T %v", text, err, err)
		} else if b, ok := errors.AsType[*daytona.BuildError](err); !ok || b.Line == 0 {
			t.Errorf("%q: no line: %v", text, err)
		}
	}
	// BuildKit takes no variables there.
	if _, err := c.Build(t.Context(), daytona.NewImage("FROM "+base+"\nARG X=dir:/etc\nRUN --mount=type=bind,from=$X,target=/m true\n"), daytona.BuildOptions{}); !errors.Is(err, daytona.ErrInvalid) {
		t.Errorf("a mount with a variable: %v", err)
	}
	if _, err := c.Build(t.Context(), daytona.NewImage("ARG X\nFROM $X\nLABEL a=b\n"), daytona.BuildOptions{Args: map[string]string{"X": given}}); !errors.Is(err, daytona.ErrUnsupported) {
		t.Errorf("in an argument: %v", err)
	}
}

// TestFromWhatIsThere builds on what this machine has: a build, an image in the
// store, whose registry is gone, and what the caller names.
func TestFromWhatIsThere(t *testing.T) {
	from := base(t)
	given := firstImage()
	dir := stateDir(t)
	c := openDir(t, dir)
	build := func(text string, opts daytona.BuildOptions) daytona.BuiltImage {
		t.Helper()
		var l logs
		opts.OnLog = l.add
		built, err := c.Build(t.Context(), daytona.NewImage(text), opts)
		if err != nil {
			t.Fatalf("%s%v\n%s", text, err, l.String())
		}
		return built
	}
	first := build("FROM "+from+"\nRUN echo one > /one; mkfifo /pipe; ln /one /two; chown 7:8 /one\nENV A=1\nONBUILD RUN echo $A > /triggered\n", daytona.BuildOptions{})
	name1 := "daytona.local/build@" + first.Digest
	text := "FROM " + name1 + "\nRUN test $(cat /one) = one && test $(cat /triggered) = 1 && test \"$(stat -c %u:%g:%h /one)\" = 7:8:2 && test -p /pipe\n"
	second := build(text, daytona.BuildOptions{})
	if again := build(text, daytona.BuildOptions{}); !again.Cached || again.Digest != second.Digest {
		t.Errorf("again: %+v, first %+v", again, second)
	}
	build("FROM scratch\nCOPY --from="+name1+" /one /\n", daytona.BuildOptions{})
	if _, err := c.Build(t.Context(), daytona.NewImage("FROM daytona.local/build@sha256:"+strings.Repeat("0", 64)+"\nLABEL a=b\n"), daytona.BuildOptions{}); !errors.Is(err, daytona.ErrNotFound) {
		t.Errorf("a build that is not: %v", err)
	}

	// What a sandbox was made of, whose registry has it no more.
	store, err := image.OpenStore(filepath.Join(dir, "images"), nil)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := image.ParseReference(first.Ref)
	if err != nil {
		t.Fatal(err)
	}
	img, err := ref.Open()
	if err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag(strings.Replace(from, "debian:12", "gone:1", 1))
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(tag, img); err != nil {
		t.Fatal(err)
	}
	pulled, err := image.ParseReference(tag.String())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Resolve(t.Context(), pulled, image.PullAlways, nil); err != nil {
		t.Fatal(err)
	}
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	for _, gone := range []string{tag.String(), tag.Context().Digest(digest.String()).String()} {
		r, err := name.ParseReference(gone)
		if err != nil {
			t.Fatal(err)
		}
		if err := remote.Delete(r); err != nil {
			t.Logf("delete %s: %v", gone, err)
		}
	}
	text = "ARG X\nFROM $X\nRUN test \"$(cat /one)\" = one && test \"$(cat /triggered)\" = 1 && test \"$(stat -c %u:%g:%h /one)\" = 7:8:2 && test -p /pipe\n"
	third := build(text, daytona.BuildOptions{Args: map[string]string{"X": tag.String()}})
	if again := build(text, daytona.BuildOptions{Args: map[string]string{"X": tag.String()}}); !again.Cached || again.Digest != third.Digest {
		t.Errorf("again: %+v, first %+v", again, third)
	}
	if leases, err := store.Leases(context.Background()); err != nil || len(leases) != 0 {
		t.Errorf("still held: %v, %v", leases, err)
	}

	// What the caller names.
	archive := filepath.Join(t.TempDir(), "a.tar")
	if err := os.WriteFile(archive, tarOf(t, map[string]string{"hello": "there\n"}), 0o600); err != nil {
		t.Fatal(err)
	}
	bases := map[string]string{"base": given, "files:1": "tar:" + archive}
	build("FROM base\nUSER root\nCOPY --from=files:1 /hello /\nRUN --mount=type=bind,from=files:1,target=/m test \"$(cat /hello /m/hello | sort -u)\" = there\n", daytona.BuildOptions{Bases: bases})
	for _, bad := range []map[string]string{{"base": "dir:/etc"}, {"scratch": given}, {"x@y": given}, {"base": ""}} {
		if _, err := c.Build(t.Context(), daytona.NewImage("FROM scratch\nLABEL a=b\n"), daytona.BuildOptions{Bases: bad}); daytona.KindOf(err) != daytona.KindInvalid && daytona.KindOf(err) != daytona.KindUnsupported {
			t.Errorf("%v: %v", bad, err)
		}
	}
	// And a sandbox, by the name that Dockerfiles have.
	sb, err := c.Create(t.Context(), daytona.Spec{Image: "daytona.local/build@" + second.Digest})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := sb.Process().Exec(t.Context(), "cat /one", nil); err != nil || r.Output != "one\n" {
		t.Errorf("%+v, %v", r, err)
	}
	if err := sb.Delete(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestFromPrivateRegistry: the credentials are those that Docker has for this
// user, and a wrong one is not taken for an image that does not exist.
func TestFromPrivateRegistry(t *testing.T) {
	from := base(t)
	upstream := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: strings.TrimSuffix(from, "/debian:12")})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "me" || password != "secret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			http.Error(w, "who are you", http.StatusUnauthorized)
			return
		}
		upstream.ServeHTTP(w, r)
	}))
	defer srv.Close()
	host := strings.TrimPrefix(srv.URL, "http://")
	text := "FROM " + host + "/debian:12\nLABEL a=b\n"
	c := open(t)
	if _, err := c.Build(t.Context(), daytona.NewImage(text), daytona.BuildOptions{}); !errors.Is(err, daytona.ErrUnauthorized) {
		t.Errorf("without credentials: %v", err)
	}
	dir := t.TempDir()
	t.Setenv("DOCKER_CONFIG", dir)
	config := fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, host, base64.StdEncoding.EncodeToString([]byte("me:secret")))
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Build(t.Context(), daytona.NewImage(text), daytona.BuildOptions{}); err != nil {
		t.Error(err)
	}
}

// TestFromForeignLayer: a manifest that names another place for a layer gets no
// request sent there.
func TestFromForeignLayer(t *testing.T) {
	from := base(t)
	asked := make(chan string, 100)
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { asked <- r.URL.Path }))
	defer elsewhere.Close()
	upstream := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: strings.TrimSuffix(from, "/debian:12")})
	for _, padding := range []string{"", strings.Repeat(" ", 2000)} {
		manifest := padding + fmt.Sprintf(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",
			"config":{"mediaType":"application/vnd.oci.image.config.v1+json","size":2,"digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","urls":[%[1]q]},
			"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","size":1024,"digest":"sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef","urls":[%[1]q]}]}`, elsewhere.URL+"/secret")
		digest := fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(manifest)))
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !strings.Contains(r.URL.Path, "/manifests/") {
				upstream.ServeHTTP(w, r)
				return
			}
			w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
			w.Header().Set("Docker-Content-Digest", digest)
			w.Header().Set("Content-Length", fmt.Sprint(len(manifest)))
			if r.Method == http.MethodGet {
				_, _ = io.WriteString(w, manifest)
			}
		}))
		_, err := open(t).Build(t.Context(), daytona.NewImage("FROM "+strings.TrimPrefix(srv.URL, "http://")+"/evil:1\nRUN true\n"), daytona.BuildOptions{})
		srv.Close()
		if daytona.KindOf(err) != daytona.KindUnsupported || !strings.Contains(err.Error(), elsewhere.URL) {
			t.Errorf("%v", err)
		}
	}
	if len(asked) > 0 {
		t.Errorf("it was asked for %s", <-asked)
	}
}
