package backendtest

import (
	"archive/tar"
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/daytona-go/daytona"
)

func registryChecks() []check {
	return []check{{name: "Registry", needs: []Capability{Registries}, run: checkRegistry}}
}

// smallImageNoise is how many bytes of a SmallImage do not compress.
const smallImageNoise = 6 << 20

// SmallImage makes an image with a few megabytes that do not compress, and
// users, but no program: of the sandbox only the agent runs.
func SmallImage(t testing.TB) v1.Image {
	t.Helper()
	img, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{OS: "linux", Architecture: runtime.GOARCH, RootFS: v1.RootFS{Type: "layers"}})
	if err != nil {
		t.Fatal(err)
	}
	random := make([]byte, smallImageNoise)
	rand.Read(random)
	for _, files := range []map[string][]byte{
		{"etc/passwd": []byte("root:x:0:0::/:/bin/sh\n"), "etc/group": []byte("root:x:0:\n")},
		{"noise": random},
	} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for n, content := range files {
			if err := w.WriteHeader(&tar.Header{Name: n, Mode: 0o644, Size: int64(len(content))}); err != nil {
				t.Fatal(err)
			}
			w.Write(content)
		}
		w.Close()
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
		if err != nil {
			t.Fatal(err)
		}
		if img, err = mutate.AppendLayers(img, layer); err != nil {
			t.Fatal(err)
		}
	}
	return img
}

// PrivateRegistry is a registry of this process that wants a password, without
// TLS, as it is on the loopback interface.
type PrivateRegistry struct {
	Host           string
	Image          string // a SmallImage in it
	User, Password string
}

// NewPrivateRegistry starts one, until the test ends.
func NewPrivateRegistry(t testing.TB) *PrivateRegistry {
	t.Helper()
	r := &PrivateRegistry{User: "somebody", Password: "s3cret"}
	images := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if u, p, ok := req.BasicAuth(); !ok || u != r.User || p != r.Password {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusUnauthorized)
			fmt.Fprint(w, `{"errors":[{"code":"UNAUTHORIZED","message":"who are you?"}]}`)
			return
		}
		images.ServeHTTP(w, req)
	}))
	t.Cleanup(server.Close)
	r.Host = strings.TrimPrefix(server.URL, "http://")
	r.Image = r.Host + "/private/small:1"
	ref, err := name.ParseReference(r.Image)
	if err == nil {
		err = remote.Write(ref, SmallImage(t), remote.WithAuth(&authn.Basic{Username: r.User, Password: r.Password}))
	}
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// Login gives the current user's configuration what `docker login` would write.
func (r *PrivateRegistry) Login(t testing.TB, user, password string) {
	t.Helper()
	configureDocker(t, fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, r.Host, base64.StdEncoding.EncodeToString([]byte(user+":"+password))))
}

func configureDocker(t testing.TB, config string) {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("DOCKER_CONFIG", dir)
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
}

// checkRegistry pulls with and without the right credentials.
func checkRegistry(c *env) {
	reg := NewPrivateRegistry(c)
	forget := func() {
		if c.h.ForgetImage != nil {
			c.try("forget the image", c.h.ForgetImage(c.ctx, reg.Image))
		}
	}
	// A backend may read the configuration when it is opened.
	fresh := func() { c.client, c.state = nil, "" }
	create := func(image string, progress func(daytona.Progress)) error {
		sb, err := c.open().Create(c.ctx, c.spec(func(s *daytona.Spec) {
			s.Image, s.User, s.OnProgress = image, "root", progress
		}))
		if err != nil {
			return err
		}
		if info, err := sb.Refresh(c.ctx); err != nil || info.State != daytona.StateStarted {
			c.Errorf("%s, %v", info.State, err)
		}
		return sb.Delete(c.ctx)
	}

	reg.Login(c, reg.User, "guess")
	if err := create(reg.Image, nil); !errors.Is(err, daytona.ErrUnauthorized) || strings.Contains(err.Error(), "guess") {
		c.Errorf("with a wrong password: %v", err)
	}
	configureDocker(c, `{}`)
	fresh()
	if err := create(reg.Image, nil); !errors.Is(err, daytona.ErrUnauthorized) {
		c.Errorf("without a password: %v", err)
	}
	reg.Login(c, reg.User, reg.Password)
	fresh()
	if err := create(reg.Host+"/private/none:1", nil); !errors.Is(err, daytona.ErrNotFound) ||
		!strings.Contains(strings.ToLower(err.Error()), "unknown") && !strings.Contains(err.Error(), "not found") {
		c.Errorf("an image that there is not: %v; want what the registry says", err)
	}
	var seen []daytona.Progress
	c.try("create from the registry", create(reg.Image, func(p daytona.Progress) { seen = append(seen, p) }))
	last, pulling := daytona.Progress{}, 0
	for _, p := range seen {
		if !strings.Contains(p.Stage, "pulling "+reg.Image) {
			continue
		}
		pulling++
		if p.Done < last.Done || p.Total < last.Total || p.Total > 0 && p.Done > p.Total {
			c.Errorf("progress %+v after %+v", p, last)
		}
		last = p
	}
	if last.Done < smallImageNoise || last.Done != last.Total || pulling < 2 {
		c.Errorf("after the pull the progress is %+v, in %d steps", last, pulling)
	}
	forget()

	bin := c.TempDir()
	script := fmt.Sprintf("#!/bin/sh\necho '{\"Username\":%q,\"Secret\":%q}'\n", reg.User, reg.Password)
	c.try("write", os.WriteFile(filepath.Join(bin, "docker-credential-daytonatest"), []byte(script), 0o755))
	c.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	configureDocker(c, fmt.Sprintf(`{"credHelpers":{%q:"daytonatest"}}`, reg.Host))
	fresh()
	c.try("create with a credential helper", create(reg.Image, nil))
	forget()
}
