package build_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/image"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

const corpus = "testdata/corpus"

// buildKitOnly marks Dockerfiles that Docker's classic builder cannot read: they
// say so in their first line.
const buildKitOnly = "# syntax="

// volatile are paths that differ between any two builds, and why.
var volatile = map[string]string{
	"etc/hostname":                 "Docker's own, written at each start",
	"var/lib/dpkg/status-old":      "depends on what was installed before in the same second",
	"var/cache/ldconfig/aux-cache": "has times and inode numbers",
	"etc/shadow-":                  "has the day of the change",
	"etc/shadow":                   "has the day of the change",
	"dev":                          "Docker's classic builder leaves mount points there",
	"proc":                         "as dev",
	"sys":                          "as dev",
}

// mirror lets steps reach Debian's mirror, which some networks have at an address
// of the range for documentation.
var mirror = daytona.NetworkPolicy{Allow: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("203.0.113.0/24")}}

// file is what is compared of a file.
type file struct {
	Type     byte
	Mode     int64
	UID, GID int
	Link     string
	Sum      string
	Xattrs   string
}

// flatten reads the files of an image.
func flatten(img v1.Image) (map[string]file, error) {
	r := mutate.Extract(img)
	defer r.Close()
	files := map[string]file{}
	links := map[string]string{}
	for t := tar.NewReader(r); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		name := path.Clean(strings.TrimPrefix(h.Name, "/"))
		if _, skip := volatile[name]; skip || strings.HasPrefix(name, "dev/") {
			continue
		}
		f := file{Type: h.Typeflag, Mode: h.Mode & 0o7777, UID: h.Uid, GID: h.Gid, Link: h.Linkname}
		xattrs := map[string]string{}
		for k, v := range h.PAXRecords {
			if x, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok {
				xattrs[x] = v
			}
		}
		for _, k := range slices.Sorted(maps.Keys(xattrs)) {
			f.Xattrs += k + "=" + xattrs[k] + ";"
		}
		switch h.Typeflag {
		case tar.TypeReg:
			sum := sha256.New()
			if _, err := io.Copy(sum, t); err != nil {
				return nil, err
			}
			f.Sum = fmt.Sprintf("%x", sum.Sum(nil))
		case tar.TypeLink:
			links[name] = path.Clean(strings.TrimPrefix(h.Linkname, "/"))
		case tar.TypeDir:
			f.Link = ""
		}
		files[name] = f
	}
	// Which of the names of a file comes first in a layer is chance.
	for name, to := range links {
		if f, ok := files[to]; ok {
			files[name] = f
		}
	}
	return files, nil
}

// configOf is what is compared of a configuration.
func configOf(img v1.Image) (string, error) {
	f, err := img.ConfigFile()
	if err != nil {
		return "", err
	}
	c := f.Config
	out, err := json.MarshalIndent(map[string]any{
		"Env": c.Env, "Entrypoint": c.Entrypoint, "Cmd": c.Cmd, "WorkingDir": strings.TrimSuffix(c.WorkingDir, "/"), "User": c.User, "Labels": c.Labels,
		"ExposedPorts": c.ExposedPorts, "Volumes": c.Volumes, "StopSignal": c.StopSignal, "Healthcheck": c.Healthcheck, "Shell": c.Shell,
	}, "", " ")
	return strings.ReplaceAll(strings.ReplaceAll(string(out), ": {}", ": null"), ": []", ": null"), err
}

// dockerBuild builds with the Docker engine of this machine.
func dockerBuild(ctx context.Context, dir, dockerfile string) (v1.Image, func(), error) {
	tag := fmt.Sprintf("daytona-corpus:%x", sha256.Sum256([]byte(dockerfile)))[:40]
	cmd := exec.CommandContext(ctx, "docker", "build", "-q", "--network", "host", "-t", tag, "-f", "-", dir)
	cmd.Env = append(os.Environ(), "DOCKER_BUILDKIT=0")
	if strings.HasPrefix(dockerfile, buildKitOnly) {
		cmd.Env = append(os.Environ(), "DOCKER_BUILDKIT=1")
		_, dockerfile, _ = strings.Cut(dockerfile, "\n") // the engine's own frontend, not one from the internet
	}
	cmd.Stdin = strings.NewReader(dockerfile)
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, nil, fmt.Errorf("docker build: %w: %s", err, out)
	}
	f, err := os.CreateTemp("", "corpus-*.tar")
	if err != nil {
		return nil, nil, err
	}
	f.Close()
	done := func() {
		os.Remove(f.Name())
		_ = exec.Command("docker", "rmi", tag).Run()
	}
	if out, err := exec.CommandContext(ctx, "docker", "save", "-o", f.Name(), tag).CombinedOutput(); err != nil {
		done()
		return nil, nil, fmt.Errorf("docker save: %w: %s", err, out)
	}
	img, err := tarball.ImageFromPath(f.Name(), nil)
	return img, done, err
}

// TestCorpus builds each Dockerfile of the corpus here and with Docker, and
// compares all files and the configuration. It rewrites the table of
// docs/builds.md when DAYTONA_UPDATE_DOCS is set, and checks it otherwise.
func TestCorpus(t *testing.T) {
	base := base(t)
	if out, err := exec.Command("docker", "version").CombinedOutput(); err != nil {
		t.Skipf("no Docker engine to compare with: %s", out)
	}
	names, err := filepath.Glob(corpus + "/*.Dockerfile")
	if err != nil || len(names) < 40 {
		t.Fatalf("%d Dockerfiles, %v", len(names), err)
	}
	c := open(t)
	rows := map[string]string{}
	for _, name := range names {
		short := strings.TrimSuffix(filepath.Base(name), ".Dockerfile")
		t.Run(short, func(t *testing.T) {
			data, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			text := strings.ReplaceAll(string(data), "debian:12", base)
			var l logs
			built, err := c.Build(t.Context(), daytona.NewImage(text, daytona.BuildContext{Source: corpus + "/context", Path: "."}), daytona.BuildOptions{OnLog: l.add, Network: mirror})
			if err != nil {
				t.Fatalf("%v\n%s", err, l.String())
			}
			ref, err := image.ParseReference(built.Ref)
			if err != nil {
				t.Fatal(err)
			}
			ours, err := ref.Open()
			if err != nil {
				t.Fatal(err)
			}
			have, err := flatten(ours)
			if err != nil {
				t.Fatal(err)
			}
			theirs, done, err := dockerBuild(t.Context(), corpus+"/context", text)
			if err != nil && strings.HasPrefix(text, buildKitOnly) && (strings.Contains(err.Error(), "buildx") || strings.Contains(err.Error(), "BuildKit")) {
				rows[short] = fmt.Sprintf("| `%s` | %d | builds; this Docker has no BuildKit to compare with |", short, len(have))
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer done()
			want, err := flatten(theirs)
			if err != nil {
				t.Fatal(err)
			}
			differences := 0
			for _, p := range slices.Sorted(maps.Keys(want)) {
				if have[p] != want[p] {
					differences++
					t.Errorf("%s: here %+v, Docker %+v", p, have[p], want[p])
				}
			}
			for _, p := range slices.Sorted(maps.Keys(have)) {
				if _, ok := want[p]; !ok {
					differences++
					t.Errorf("%s: only here: %+v", p, have[p])
				}
			}
			a, err := configOf(ours)
			if err != nil {
				t.Fatal(err)
			}
			b, err := configOf(theirs)
			if err != nil {
				t.Fatal(err)
			}
			if a != b {
				differences++
				t.Errorf("configuration: here %s, Docker %s", a, b)
			}
			if differences == 0 {
				rows[short] = fmt.Sprintf("| `%s` | %d | the same files and configuration |", short, len(have))
			}
		})
	}
	if t.Failed() || os.Getenv("DAYTONA_UPDATE_DOCS") == "" {
		for _, k := range slices.Sorted(maps.Keys(rows)) {
			t.Log(rows[k])
		}
		return
	}
	var table bytes.Buffer
	table.WriteString("| Dockerfile | files | compared with `docker build` |\n|---|---|---|\n")
	for _, k := range slices.Sorted(maps.Keys(rows)) {
		table.WriteString(rows[k] + "\n")
	}
	const begin, end = "<!-- corpus: begin -->\n", "<!-- corpus: end -->"
	doc := filepath.Join("..", "..", "docs", "builds.md")
	text, err := os.ReadFile(doc)
	if err != nil {
		t.Fatal(err)
	}
	pre, rest, ok := strings.Cut(string(text), begin)
	_, post, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the table", doc)
	}
	if err := os.WriteFile(doc, []byte(pre+begin+table.String()+end+post), 0o644); err != nil {
		t.Fatal(err)
	}
}
