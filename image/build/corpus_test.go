package build_test

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
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
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/image"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

const corpus = "testdata/corpus"

// buildKitOnly marks Dockerfiles that Docker's classic builder cannot read: they
// say so in their first line. <name>.classic says the same in words that it can.
const buildKitOnly = "# syntax="

var update = flag.Bool("update", false, "write the table of the corpus in docs/builds.md instead of checking it")

// Results that the table of docs/builds.md has.
const (
	same        = "the same files and configuration"
	sameClassic = "the same files and configuration, as Docker's classic builder makes them of `%s.classic`"
)

// instructionsOf lists what of the language a Dockerfile uses.
func instructionsOf(text string) (string, error) {
	parsed, err := parser.Parse(strings.NewReader(text))
	if err != nil {
		return "", err
	}
	seen := map[string]bool{}
	var list []string
	add := func(s string) {
		if !seen[s] {
			seen[s] = true
			list = append(list, s)
		}
	}
	for _, n := range parsed.AST.Children {
		word := strings.ToUpper(n.Value)
		for _, f := range n.Flags {
			name, value, _ := strings.Cut(f, "=")
			if name == "--mount" {
				kind, _, _ := strings.Cut(value, ",")
				name += "=" + kind
			}
			word += " " + name
		}
		if len(n.Heredocs) > 0 {
			word += " <<"
		}
		if n.Attributes["json"] {
			word += " […]"
		}
		add("`" + word + "`")
	}
	return strings.Join(list, ", "), nil
}

// corpusFiles reads the Dockerfiles, by name.
func corpusFiles(t testing.TB) map[string]string {
	t.Helper()
	names, err := filepath.Glob(corpus + "/*.Dockerfile")
	if err != nil || len(names) < 40 {
		t.Fatalf("%d Dockerfiles, %v", len(names), err)
	}
	files := map[string]string{}
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		files[strings.TrimSuffix(filepath.Base(name), ".Dockerfile")] = string(data)
	}
	return files
}

// rowOf is a Dockerfile's row in the table.
func rowOf(t testing.TB, name, text, result string) string {
	t.Helper()
	used, err := instructionsOf(text)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("| `%s` | %s | %s |", name, used, result)
}

// classicOf is what Docker is given in place of a Dockerfile, and the result if
// it makes the same of it.
func classicOf(t testing.TB, name, text string) (classic, result string) {
	t.Helper()
	if !strings.HasPrefix(text, buildKitOnly) {
		return text, same
	}
	data, err := os.ReadFile(filepath.Join(corpus, name+".classic"))
	if err != nil {
		t.Fatal(err)
	}
	return string(data), fmt.Sprintf(sameClassic, name)
}

// docTable is the file of the table, and what is before, in and after it.
func docTable(t testing.TB) (doc, pre, table, post string) {
	t.Helper()
	const begin, end = "<!-- corpus: begin -->\n", "<!-- corpus: end -->"
	doc = filepath.Join("..", "..", "docs", "builds.md")
	text, err := os.ReadFile(doc)
	if err != nil {
		t.Fatal(err)
	}
	pre, rest, ok := strings.Cut(string(text), begin)
	table, post, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the table", doc)
	}
	return doc, pre + begin, table, end + post
}

const tableHead = "| Dockerfile | instructions | compared with `docker build` |\n|---|---|---|\n"

// TestCorpusTable: the table has a row for each Dockerfile, with what is in it
// and that it gave the same as Docker. It takes no engine. TestCorpus checks the
// results; with -update it writes the table.
func TestCorpusTable(t *testing.T) {
	if *update {
		t.Skip("TestCorpus writes it")
	}
	files := corpusFiles(t)
	want := tableHead
	for _, name := range slices.Sorted(maps.Keys(files)) {
		_, result := classicOf(t, name, files[name])
		want += rowOf(t, name, files[name], result) + "\n"
	}
	if doc, _, have, _ := docTable(t); have != want {
		t.Errorf("the table in %s is stale; run: go test ./image/build -run TestCorpus -update", doc)
		for line := range strings.Lines(want) {
			if !strings.Contains(have, line) {
				t.Errorf("it lacks: %s", line)
			}
		}
	}
}

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

// layers are the files of layers, by the digest of their content: the bases of
// the corpus are read once.
type layers map[v1.Hash][]entry

// entry is a file in a layer.
type entry struct {
	name   string
	file   file
	linked string // for a hard link, the other name
}

// flatten tells the files of an image: the last layer that has one counts.
func (l layers) flatten(img v1.Image) (map[string]file, error) {
	stack, err := img.Layers()
	if err != nil {
		return nil, err
	}
	config, err := img.ConfigFile() // a layer would have to be read to tell
	if err != nil {
		return nil, err
	}
	if len(config.RootFS.DiffIDs) != len(stack) {
		return nil, fmt.Errorf("%d layers, %d digests of them", len(stack), len(config.RootFS.DiffIDs))
	}
	files := map[string]file{}
	links := map[string]string{}
	remove := func(name string, itself bool) {
		for p := range files {
			if p == name && itself || strings.HasPrefix(p, name+"/") || name == "." && p != "." {
				delete(files, p)
				delete(links, p)
			}
		}
	}
	for i, layer := range stack {
		entries, err := l.read(config.RootFS.DiffIDs[i], layer)
		if err != nil {
			return nil, err
		}
		// What a layer removes is of those below it, wherever in it that stands.
		for _, e := range entries {
			dir, base := path.Split(e.name)
			if base == ".wh..wh..opq" {
				remove(path.Clean(dir), false)
			} else if removed, ok := strings.CutPrefix(base, ".wh."); ok {
				remove(path.Join(dir, removed), true)
			} else if below, ok := files[e.name]; ok && below.Type == tar.TypeDir && e.file.Type != tar.TypeDir {
				remove(e.name, true)
			}
		}
		for _, e := range entries {
			if strings.HasPrefix(path.Base(e.name), ".wh.") {
				continue
			}
			files[e.name] = e.file
			delete(links, e.name)
			if e.linked != "" {
				links[e.name] = e.linked
			}
		}
	}
	// Which of the names of a file comes first in a layer is chance.
	for name, to := range links {
		if f, ok := files[to]; ok {
			files[name] = f
		}
	}
	maps.DeleteFunc(files, func(name string, _ file) bool {
		_, skip := volatile[name]
		return skip || strings.HasPrefix(name, "dev/")
	})
	return files, nil
}

func (l layers) read(id v1.Hash, layer v1.Layer) ([]entry, error) {
	if entries, ok := l[id]; ok {
		return entries, nil
	}
	r, err := layer.Uncompressed()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	var entries []entry
	for t := tar.NewReader(r); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		e := entry{name: path.Clean(strings.TrimPrefix(h.Name, "/"))}
		e.file = file{Type: h.Typeflag, Mode: h.Mode & 0o7777, UID: h.Uid, GID: h.Gid, Link: h.Linkname}
		xattrs := map[string]string{}
		for k, v := range h.PAXRecords {
			if x, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok {
				xattrs[x] = v
			}
		}
		for _, k := range slices.Sorted(maps.Keys(xattrs)) {
			e.file.Xattrs += k + "=" + xattrs[k] + ";"
		}
		switch h.Typeflag {
		case tar.TypeReg:
			sum := sha256.New()
			if _, err := io.Copy(sum, t); err != nil {
				return nil, err
			}
			e.file.Sum = fmt.Sprintf("%x", sum.Sum(nil))
		case tar.TypeLink:
			e.linked = path.Clean(strings.TrimPrefix(h.Linkname, "/"))
		case tar.TypeDir:
			e.file.Link = ""
		}
		entries = append(entries, e)
	}
	l[id] = entries
	return entries, nil
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
// compares all files and the configuration. With -update it writes the table of
// docs/builds.md; without, each result must be what the table says.
func TestCorpus(t *testing.T) {
	base := base(t)
	if out, err := exec.Command("docker", "version").CombinedOutput(); err != nil {
		t.Skipf("no Docker engine to compare with: %s", out)
	}
	files := corpusFiles(t)
	doc, _, table, _ := docTable(t)
	c := open(t)
	known := layers{}
	rows := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		t.Run(name, func(t *testing.T) {
			result := compareWithDocker(t, c, known, base, name, files[name])
			rows[name] = rowOf(t, name, files[name], result)
			if !*update && !strings.Contains(table, rows[name]+"\n") {
				t.Errorf("the table in %s is stale: it has no row\n%s", doc, rows[name])
			}
		})
	}
	if !*update {
		return
	}
	if len(rows) != len(files) {
		t.Fatalf("%d of %d rows: -update takes the whole corpus", len(rows), len(files))
	}
	_, pre, _, post := docTable(t) // somebody may have edited it meanwhile
	table = tableHead
	for _, name := range slices.Sorted(maps.Keys(rows)) {
		table += rows[name] + "\n"
	}
	if err := os.WriteFile(doc, []byte(pre+table+post), 0o644); err != nil {
		t.Fatal(err)
	}
}

// compareWithDocker builds a Dockerfile of the corpus twice and tells the result
// for the table. Differences are errors of the test.
func compareWithDocker(t *testing.T, c *daytona.Client, known layers, base, name, text string) string {
	onBase := func(text string) string { return strings.ReplaceAll(text, "debian:12", base) }
	begin := time.Now()
	lap := func() time.Duration { d := time.Since(begin).Round(time.Millisecond); begin = time.Now(); return d }
	var l logs
	built, err := c.Build(t.Context(), daytona.NewImage(onBase(text), daytona.BuildContext{Source: corpus + "/context", Path: "."}), daytona.BuildOptions{OnLog: l.add, Network: mirror})
	if err != nil {
		t.Fatalf("%v\n%s", err, l.String())
	}
	building := lap()
	ref, err := image.ParseReference(built.Ref)
	if err != nil {
		t.Fatal(err)
	}
	ours, err := ref.Open()
	if err != nil {
		t.Fatal(err)
	}
	have, err := known.flatten(ours)
	if err != nil {
		t.Fatal(err)
	}
	reading := lap()
	classic, result := classicOf(t, name, text)
	theirs, done, err := dockerBuild(t.Context(), corpus+"/context", onBase(classic))
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	docker := lap()
	want, err := known.flatten(theirs)
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
	t.Logf("%d files; built in %v, read in %v; Docker's in %v and %v", len(have), building, reading, docker, lap())
	if differences > 0 {
		return fmt.Sprintf("%d differences", differences)
	}
	return result
}
