package local_test

import (
	"archive/tar"
	"bytes"
	"io"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/backend/local"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// smallImage is an image with one static program, which prints a version, in
// two layers.
func smallImage(t *testing.T) v1.Image {
	t.Helper()
	program := filepath.Join(t.TempDir(), "hello")
	build := exec.Command("go", "build", "-o", program, "github.com/daytona-go/daytona/cmd/daytona-agent")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	content, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	layer := func(entries ...tar.Header) v1.Layer {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range entries {
			data := []byte("old")
			if h.Name == "bin/hello" {
				data = content
			}
			if h.Typeflag != tar.TypeReg {
				data = nil
			}
			h.Size = int64(len(data))
			if err := w.WriteHeader(&h); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write(data); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	img, err := mutate.AppendLayers(empty.Image,
		layer(tar.Header{Name: "bin/", Typeflag: tar.TypeDir, Mode: 0o755}, tar.Header{Name: "bin/hello", Typeflag: tar.TypeReg, Mode: 0o755},
			tar.Header{Name: "old", Typeflag: tar.TypeReg, Mode: 0o644}),
		layer(tar.Header{Name: ".wh.old", Typeflag: tar.TypeReg, Mode: 0o644}))
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", "amd64"
	if out, err := exec.Command("go", "env", "GOARCH").Output(); err == nil {
		config.Architecture = strings.TrimSpace(string(out))
	}
	config.Config.Env = []string{"PATH=/bin", "FROM_IMAGE=yes"}
	config.Config.WorkingDir = "/srv/work"
	config.Config.Entrypoint = []string{"/bin/hello"}
	config.Config.Cmd = []string{"version"}
	if img, err = mutate.ConfigFile(img, config); err != nil {
		t.Fatal(err)
	}
	return img
}

// TestImages runs a program of an image from a registry and from an OCI layout:
// its layers, environment, working directory and entrypoint.
func TestImages(t *testing.T) {
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("no Go toolchain to build the image's program with")
	}
	img := smallImage(t)
	server := httptest.NewServer(registry.New())
	defer server.Close()
	ref := strings.TrimPrefix(server.URL, "http://") + "/small:1"
	tag, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(tag, img); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	path, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := path.AppendImage(img); err != nil {
		t.Fatal(err)
	}
	for kind, ref := range map[string]string{"registry": ref, "layout": "oci:" + dir} {
		t.Run(kind, func(t *testing.T) {
			var stages []string
			ctx, sb := realSandbox(t, daytona.Spec{
				Image: ref, Network: daytona.NetworkPolicy{Block: true},
				OnProgress: func(p daytona.Progress) { stages = append(stages, p.Stage) },
			})
			out, err := sb.Process().Command(ctx, "hello", "version").Output()
			if err != nil || len(out) == 0 {
				t.Errorf("the image's program: %q, %v", out, err)
			}
			if got := sb.Info().WorkDir; got != "/srv/work" {
				t.Errorf("WorkDir = %q, want the image's", got)
			}
			if _, err := sb.FileSystem().Stat(ctx, "/old"); daytona.KindOf(err) != daytona.KindNotFound {
				t.Errorf("a file that an upper layer deletes: %v, want not found", err)
			}
			if kind == "registry" && len(stages) == 0 {
				t.Error("no progress was told")
			}
			s, err := sb.Process().Session(ctx, "entrypoint")
			if err != nil {
				t.Fatal(err)
			}
			commands, err := s.Commands(ctx)
			if err != nil || len(commands) != 1 {
				t.Fatalf("commands of the entrypoint session: %v, %v", commands, err)
			}
			c, err := s.Command(ctx, commands[0].ID)
			if err != nil {
				t.Fatal(err)
			}
			if code, err := c.Wait(ctx); code != 0 || err != nil {
				t.Errorf("the entrypoint ended with %d, %v", code, err)
			}
			stdout, _, err := c.Logs(ctx)
			if err != nil || stdout != string(out) {
				t.Errorf("log of the entrypoint: %q, %v, want %q", stdout, err, out)
			}
			// It starts again from its layers.
			if err := sb.Stop(ctx, nil); err != nil {
				t.Fatal(err)
			}
			if err := sb.Start(ctx); err != nil {
				t.Fatal(err)
			}
			if again, err := sb.Process().Command(ctx, "hello", "version").Output(); err != nil || string(again) != string(out) {
				t.Errorf("after a restart: %q, %v", again, err)
			}
		})
	}
}

// TestImageWithALayerTwice: two steps of a build that change nothing, or the
// same, make the same layer.
func TestImageWithALayerTwice(t *testing.T) {
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("no Go toolchain to build the image's program with")
	}
	img := smallImage(t)
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	last := layers[len(layers)-1]
	if img, err = mutate.AppendLayers(img, last, layers[0], last, last); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	path, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := path.AppendImage(img); err != nil {
		t.Fatal(err)
	}
	ctx, sb := realSandbox(t, daytona.Spec{Image: "oci:" + dir})
	if _, err := sb.FileSystem().Stat(ctx, "/bin/hello"); err != nil {
		t.Error(err)
	}
	if _, err := sb.FileSystem().Stat(ctx, "/old"); daytona.KindOf(err) != daytona.KindNotFound {
		t.Errorf("a file that the highest layer deletes: %v, want not found", err)
	}
}

// TestDiskBandwidth writes past the page cache and takes as long as the limit
// says.
func TestDiskBandwidth(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("it takes root to limit I/O")
	}
	spec := daytona.Spec{Resources: daytona.Resources{DiskBandwidth: 8}, Network: daytona.NetworkPolicy{Block: true}}
	ctx, sb := realSandbox(t, spec)
	out, err := sb.Process().Command(ctx, "sh", "-c", "dd if=/dev/zero of=f bs=1M count=16 oflag=direct 2>&1 | tail -1").Output()
	if err != nil {
		t.Fatal(err)
	}
	var seconds float64
	fields := strings.Fields(string(out))
	for i, f := range fields {
		if f == "s," {
			seconds, err = strconv.ParseFloat(fields[i-1], 64)
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	if seconds < 1 {
		t.Errorf("16 MiB at 8 MiB a second took %v s: %s", seconds, out)
	}
}

// imagesVariable lists images made by image/sandbox, with commas between.
const imagesVariable = "DAYTONA_TEST_IMAGES"

// TestSandboxImages runs code of each language in the images that sandboxes are
// meant to start from, which `make image` makes.
func TestSandboxImages(t *testing.T) {
	list := os.Getenv(imagesVariable)
	if list == "" {
		t.Skip("no images: run `make image` and set " + imagesVariable + " to what it prints")
	}
	client, err := local.Open(t.Context(), &local.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for ref := range strings.SplitSeq(list, ",") {
		variant := ref[strings.LastIndexByte(ref, ':')+1:]
		t.Run(variant, func(t *testing.T) {
			sb, err := client.Create(t.Context(), daytona.Spec{Image: ref})
			if err != nil {
				t.Fatal(err)
			}
			if info := sb.Info(); info.User != "daytona" || info.WorkDir != "/home/daytona" {
				t.Errorf("user %q in %q", info.User, info.WorkDir)
			}
			for _, c := range []struct{ language, code, want string }{
				{"python", "import ssl, sqlite3\nprint(sum(range(10)))", "45\n"},
				{"javascript", "console.log([1, 2, 3].map(x => x * x).join())", "1,4,9\n"},
				// An enumeration cannot be run by removing types.
				{"typescript", "enum Color { Red = 1, Green }\nconst c: Color = Color.Green\nconsole.log(c, Color[c])", "2 Green\n"},
			} {
				r, err := sb.Process().RunCode(t.Context(), c.code, &daytona.CodeOptions{Language: c.language})
				if err != nil || r.ExitCode != 0 || r.Output != c.want {
					t.Errorf("%s: %+v, %v", c.language, r, err)
				}
			}
			tools := []string{"git --version", "ps --version", "node --version"}
			if variant != "slim" {
				tools = append(tools, "python3 -c 'import matplotlib; print(matplotlib.__version__)'", "npm --version", "npx --version", "pip --version", "python3 -m venv /tmp/venv", "tsc --version",
					"typescript-language-server --version", "pylsp --help", "curl --version", "cc --version", "jq --version", "rg --version")
			}
			if variant == "desktop" {
				tools = append(tools, "command -v Xvfb icewm xterm x11vnc dbus-daemon mousepad", "ffmpeg -version", "cat /usr/local/lib/node_modules/@novnc/novnc/package.json")
			}
			for _, tool := range tools {
				if r, err := sb.Process().Exec(t.Context(), tool, nil); err != nil || r.ExitCode != 0 || r.Output == "" && !strings.Contains(tool, "venv") {
					t.Errorf("%s: %+v, %v", tool, r, err)
				}
			}
		})
	}
}

// TestSnapshotElsewhereOverImage exchanges snapshots that were made over an
// image: one of a registry is pulled again, one of this machine is in the snapshot.
func TestSnapshotElsewhereOverImage(t *testing.T) {
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("no Go toolchain to build the image's program with")
	}
	ctx := t.Context()
	must := func(t *testing.T, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	img := smallImage(t)
	server := httptest.NewServer(registry.New())
	defer server.Close()
	ref := strings.TrimPrefix(server.URL, "http://") + "/small:1"
	tag, err := name.ParseReference(ref)
	must(t, err)
	must(t, remote.Write(tag, img))
	dir := t.TempDir()
	path, err := layout.Write(dir, empty.Index)
	must(t, err)
	must(t, path.AppendImage(img))
	open := func() (daytona.SnapshotMover, *daytona.Client) {
		c, err := daytona.Open(ctx, "local://"+t.TempDir())
		must(t, err)
		t.Cleanup(func() { must(t, c.Close()) })
		m, ok := daytona.As[daytona.SnapshotMover](c.Backend())
		if !ok {
			t.Skip("what a sandbox's files belong to means nothing on another machine")
		}
		return m, c
	}
	a, ca := open()
	b, cb := open()
	for kind, ref := range map[string]string{"registry": ref, "layout": "oci:" + dir} {
		sb, err := ca.Create(ctx, daytona.Spec{Image: ref, User: "0", Network: daytona.NetworkPolicy{Block: true}})
		must(t, err)
		must(t, sb.FileSystem().WriteFile(ctx, "/kept", []byte(kind), 0o644))
		_, err = ca.CreateSnapshot(ctx, daytona.SnapshotSpec{Name: kind, Sandbox: sb.ID()})
		must(t, err)
		var out, again bytes.Buffer
		must(t, a.ExportSnapshot(ctx, kind, &out))
		must(t, sb.Delete(ctx))
		size := out.Len()
		if small := size < 1<<20; small != (kind == "registry") {
			t.Errorf("%s: %d bytes", kind, size)
		}
		if kind == "layout" {
			must(t, os.RemoveAll(dir))
		}
		_, err = b.ImportSnapshot(ctx, kind, &out)
		must(t, err)
		check := func(c *daytona.Client, snapshot string) daytona.Sandbox {
			sb, err := c.Create(ctx, daytona.Spec{Snapshot: snapshot, User: "0", Network: daytona.NetworkPolicy{Block: true}})
			must(t, err)
			if data, err := sb.FileSystem().ReadFile(ctx, "/kept"); err != nil || string(data) != kind {
				t.Errorf("%s: %q %v", kind, data, err)
			}
			if out, err := sb.Process().Command(ctx, "hello", "version").Output(); err != nil || len(out) == 0 {
				t.Errorf("%s: the image's program: %q, %v", kind, out, err)
			}
			if _, err := sb.FileSystem().Stat(ctx, "/old"); daytona.KindOf(err) != daytona.KindNotFound {
				t.Errorf("%s: what the image has removed: %v", kind, err)
			}
			return sb
		}
		there := check(cb, kind)
		// And back, of a sandbox that never had the image itself.
		_, err = cb.CreateSnapshot(ctx, daytona.SnapshotSpec{Name: kind + "-back", Sandbox: there.ID()})
		must(t, err)
		must(t, there.Delete(ctx))
		must(t, b.ExportSnapshot(ctx, kind+"-back", &again))
		_, err = a.ImportSnapshot(ctx, kind+"-back", &again)
		must(t, err)
		must(t, check(ca, kind+"-back").Delete(ctx))
	}
}
