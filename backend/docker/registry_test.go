//go:build linux

package docker_test

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
	"os/exec"
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
	"github.com/daytona-go/daytona/backend/docker"
)

// smallImage has a few megabytes that do not compress, and users.
func smallImage(t *testing.T) v1.Image {
	t.Helper()
	img, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{OS: "linux", Architecture: runtime.GOARCH, RootFS: v1.RootFS{Type: "layers"}})
	if err != nil {
		t.Fatal(err)
	}
	noise := make([]byte, 6<<20)
	rand.Read(noise)
	for _, files := range []map[string][]byte{
		{"etc/passwd": []byte("root:x:0:0::/:/bin/sh\n"), "etc/group": []byte("root:x:0:\n")},
		{"noise": noise},
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

// TestRegistry pulls from a registry that wants a password. (The engine takes
// one on the loopback interface without TLS.)
func TestRegistry(t *testing.T) {
	if why := missing(); why != "" {
		t.Skip(why)
	}
	const user, password = "somebody", "s3cret"
	images := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if u, p, ok := r.BasicAuth(); !ok || u != user || p != password {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusUnauthorized)
			fmt.Fprint(w, `{"errors":[{"code":"UNAUTHORIZED","message":"who are you?"}]}`)
			return
		}
		images.ServeHTTP(w, r)
	}))
	defer server.Close()
	host := strings.TrimPrefix(server.URL, "http://")
	ref, err := name.ParseReference(host + "/private/small:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, smallImage(t), remote.WithAuth(&authn.Basic{Username: user, Password: password})); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { exec.Command("docker", "rmi", "-f", ref.String()).Run() })

	// configure writes what `docker login` would.
	configure := func(t *testing.T, config string) {
		dir := t.TempDir()
		t.Setenv("DOCKER_CONFIG", dir)
		if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	login := func(u, p string) string {
		return fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, host, base64.StdEncoding.EncodeToString([]byte(u+":"+p)))
	}
	create := func(t *testing.T, image string, progress func(daytona.Progress), keychain authn.Keychain) error {
		c, err := docker.Open(t.Context(), &docker.Options{Dir: t.TempDir(), Keychain: keychain})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		sb, err := c.Create(t.Context(), daytona.Spec{Image: image, User: "root", OnProgress: progress})
		if err != nil {
			return err
		}
		if info, err := sb.Refresh(t.Context()); err != nil || info.State != daytona.StateStarted {
			t.Errorf("%s, %v", info.State, err)
		}
		return sb.Delete(t.Context())
	}
	forget := func(t *testing.T) {
		if out, err := exec.Command("docker", "rmi", "-f", ref.String()).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}

	t.Run("wrong password", func(t *testing.T) {
		configure(t, login(user, "guess"))
		if err := create(t, ref.String(), nil, nil); !errors.Is(err, daytona.ErrUnauthorized) || strings.Contains(err.Error(), "guess") {
			t.Errorf("%v", err)
		}
	})
	t.Run("no password", func(t *testing.T) {
		configure(t, `{}`)
		if err := create(t, ref.String(), nil, nil); !errors.Is(err, daytona.ErrUnauthorized) {
			t.Errorf("%v", err)
		}
	})
	t.Run("password", func(t *testing.T) {
		configure(t, login(user, password))
		if err := create(t, host+"/private/none:1", nil, nil); !errors.Is(err, daytona.ErrNotFound) || !strings.Contains(strings.ToLower(err.Error()), "unknown") {
			t.Errorf("an image that there is not: %v; want what the registry says", err)
		}
		var seen []daytona.Progress
		if err := create(t, ref.String(), func(p daytona.Progress) { seen = append(seen, p) }, nil); err != nil {
			t.Fatal(err)
		}
		last, pulling := daytona.Progress{}, 0
		for _, p := range seen {
			if !strings.Contains(p.Stage, "pulling "+ref.String()) {
				continue
			}
			pulling++
			if p.Done < last.Done || p.Total < last.Total || p.Done > p.Total {
				t.Errorf("progress %+v after %+v", p, last)
			}
			last = p
		}
		if last.Done < 6<<20 || last.Done != last.Total || pulling < 3 {
			t.Errorf("after the pull the progress is %+v, in %d steps", last, pulling)
		}
		forget(t)
	})
	t.Run("helper", func(t *testing.T) {
		bin := t.TempDir()
		script := fmt.Sprintf("#!/bin/sh\necho '{\"Username\":%q,\"Secret\":%q}'\n", user, password)
		if err := os.WriteFile(filepath.Join(bin, "docker-credential-daytonatest"), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
		t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
		configure(t, fmt.Sprintf(`{"credHelpers":{%q:"daytonatest"}}`, host))
		if err := create(t, ref.String(), nil, nil); err != nil {
			t.Fatal(err)
		}
		forget(t)
		// What a service has set counts, and nothing else.
		if err := create(t, ref.String(), nil, authn.NewMultiKeychain()); !errors.Is(err, daytona.ErrUnauthorized) {
			t.Errorf("without a keychain: %v", err)
		}
	})
}
