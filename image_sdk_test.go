package daytona_test

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/daytona-go/daytona"
)

var update = flag.Bool("update", false, "write testdata/sdk/golden.json anew, from SDKs named by environment variables")

// sdkCases is testdata/sdk/cases.json: files, and definitions of images that
// the SDKs and this package are both given.
type sdkCases struct {
	Files       map[string]string `json:"files"`
	Directories []string          `json:"directories"`
	Links       map[string]string `json:"links"`
	Modes       map[string]uint32 `json:"modes"`
	Cases       []struct {
		Name string              `json:"name"`
		Same []string            `json:"same"` // the SDKs that must say the same; all others must not
		Live bool                `json:"live"` // depends on where the files are, so is not in golden.json
		Ops  [][]json.RawMessage `json:"ops"`
	} `json:"cases"`
}

// described is what an SDK makes of a definition.
type described struct {
	Dockerfile string             `json:"dockerfile,omitempty"`
	Contexts   []describedContext `json:"contexts,omitempty"`
	Error      string             `json:"error,omitempty"`
}

type describedContext struct {
	ArchivePath string   `json:"archivePath"`
	Hash        string   `json:"hash"`
	Tar         []string `json:"tar,omitempty"` // "type name [target] size"; of the TypeScript SDKs only
}

// sdks are the variables that say where an SDK is: the directory of the npm
// package, or the Python interpreter that has it installed.
var sdks = map[string]string{
	"ts":    "DAYTONA_TEST_SDK_TS",    // @daytona/sdk
	"ts190": "DAYTONA_TEST_SDK_TS190", // @daytonaio/sdk@0.190.1
	"py":    "DAYTONA_TEST_SDK_PY",    // daytona
}

// TestImageIsThatOfTheSDKs compares Dockerfiles, archive paths, hashes and the
// entries of archives with what the SDKs said when testdata/sdk/generate.sh
// asked them, and with what they say now where they are installed.
func TestImageIsThatOfTheSDKs(t *testing.T) {
	testdata, err := filepath.Abs("testdata/sdk")
	if err != nil {
		t.Fatal(err)
	}
	var cases sdkCases
	readJSON(t, filepath.Join(testdata, "cases.json"), &cases)
	dir := cases.write(t)
	golden := map[string]map[string]described{}
	if !*update {
		readJSON(t, filepath.Join(testdata, "golden.json"), &golden)
	}

	for _, sdk := range []string{"ts", "ts190", "py"} {
		t.Run(sdk+"/golden", func(t *testing.T) {
			if *update {
				t.Skip("being written")
			}
			cases.compare(t, dir, sdk, golden[sdk], false)
		})
		t.Run(sdk+"/live", func(t *testing.T) {
			where := os.Getenv(sdks[sdk])
			if where == "" {
				t.Skipf("%s does not say where the SDK is", sdks[sdk])
			}
			cmd := exec.Command("node", filepath.Join(testdata, "describe.cjs"), where, filepath.Join(testdata, "cases.json"))
			if sdk == "py" {
				cmd = exec.Command(where, filepath.Join(testdata, "describe.py"), filepath.Join(testdata, "cases.json"))
			}
			cmd.Dir = dir
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			out, err := cmd.Output()
			if err != nil {
				t.Fatalf("%v: %s", err, stderr.String())
			}
			said := map[string]described{}
			if err := json.Unmarshal(out, &said); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			cases.compare(t, dir, sdk, said, true)
			for _, c := range cases.Cases {
				if c.Live {
					delete(said, c.Name)
				}
			}
			golden[sdk] = said
		})
	}
	if *update {
		if len(golden) != len(sdks) {
			t.Fatal("all of the SDKs must be there to write golden.json")
		}
		data, err := json.MarshalIndent(golden, "", " ")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(testdata, "golden.json"), append(data, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func readJSON(t *testing.T, name string, to any) {
	t.Helper()
	data, err := os.ReadFile(name)
	if err == nil {
		err = json.Unmarshal(data, to)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// write makes the files, in the test's current directory from now on.
func (s sdkCases) write(t *testing.T) string {
	dir := t.TempDir()
	t.Chdir(dir)
	check := func(err error) {
		if err != nil {
			t.Helper()
			t.Fatal(err)
		}
	}
	for _, d := range s.Directories {
		check(os.MkdirAll(d, 0o755))
	}
	for name, text := range s.Files {
		check(os.MkdirAll(filepath.Dir(name), 0o755))
		check(os.WriteFile(name, []byte(text), 0o644))
	}
	for name, target := range s.Links {
		check(os.Symlink(target, name))
	}
	for name, mode := range s.Modes {
		check(os.Chmod(name, os.FileMode(mode)))
	}
	return dir
}

func (s sdkCases) compare(t *testing.T, dir, sdk string, said map[string]described, live bool) {
	if len(said) == 0 {
		t.Fatalf("%s says nothing", sdk)
	}
	for _, c := range s.Cases {
		if c.Live && !live {
			continue
		}
		t.Run(c.Name, func(t *testing.T) {
			want, ok := said[c.Name]
			if !ok {
				t.Fatal("not described; run testdata/sdk/generate.sh")
			}
			img := (*daytona.Image)(nil)
			for _, op := range c.Ops {
				img = apply(t, img, dir, op)
			}
			got := describe(t, img, sdk != "py")
			// The order of a wildcard's matches is nobody's concern.
			byPath := func(a, b describedContext) int { return strings.Compare(a.ArchivePath+a.Hash, b.ArchivePath+b.Hash) }
			slices.SortStableFunc(got.Contexts, byPath)
			slices.SortStableFunc(want.Contexts, byPath)
			switch same := indented(got) == indented(want); {
			case same && !slices.Contains(c.Same, sdk):
				t.Errorf("is the same as that of %s, though it is said to differ", sdk)
			case !same && slices.Contains(c.Same, sdk):
				t.Errorf("differs from %s:\n got %s\nwant %s", sdk, indented(got), indented(want))
			case !same:
				t.Logf("differs from %s:\n ours %s\ntheirs %s", sdk, indented(got), indented(want))
			}
		})
	}
}

func indented(v any) string {
	b, _ := json.MarshalIndent(v, "", "  ")
	return string(b)
}

// describe is what an image looks like from outside.
func describe(t *testing.T, img *daytona.Image, archives bool) described {
	t.Helper()
	if err := img.Err(); err != nil {
		return described{Error: err.Error()}
	}
	d := described{Dockerfile: img.Dockerfile()}
	for _, c := range img.Contexts() {
		hash, err := c.Hash()
		if err != nil {
			t.Fatal(err)
		}
		one := describedContext{ArchivePath: c.ArchivePath, Hash: hash}
		if archives {
			one.Tar = entries(t, c)
		}
		d.Contexts = append(d.Contexts, one)
	}
	if _, err := img.Ref(); err != nil {
		t.Fatal(err)
	}
	return d
}

// entries lists a context's archive.
func entries(t *testing.T, c daytona.BuildContext) (list []string) {
	t.Helper()
	var b bytes.Buffer
	if err := c.WriteTar(&b); err != nil {
		t.Fatal(err)
	}
	kinds := map[byte]string{tar.TypeReg: "File", tar.TypeDir: "Directory", tar.TypeSymlink: "SymbolicLink"}
	for r := tar.NewReader(&b); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		line := kinds[h.Typeflag] + " " + h.Name
		if h.Linkname != "" {
			line += " " + h.Linkname
		}
		list = append(list, fmt.Sprintf("%s %d", line, h.Size))
	}
	slices.Sort(list)
	return list
}

// apply does one step of a definition.
func apply(t *testing.T, img *daytona.Image, dir string, op []json.RawMessage) *daytona.Image {
	t.Helper()
	arg := func(i int, to any) {
		t.Helper()
		if err := json.Unmarshal(op[i], to); err != nil {
			t.Fatal(err)
		}
	}
	str := func(i int) (s string) {
		t.Helper()
		arg(i, &s)
		return strings.Replace(s, "$DIR", dir, 1)
	}
	rest := func() (words []string) {
		for i := range op[1:] {
			words = append(words, str(i+1))
		}
		return words
	}
	list := func(i int) (l []string) { arg(i, &l); return l }
	pip := func(i int) daytona.PipOptions {
		var o struct {
			FindLinks, ExtraIndexURLs []string
			IndexURL, ExtraOptions    string
			Pre                       bool
		}
		arg(i, &o)
		return daytona.PipOptions{FindLinks: o.FindLinks, IndexURL: o.IndexURL, ExtraIndexURLs: o.ExtraIndexURLs, Pre: o.Pre, ExtraOptions: o.ExtraOptions}
	}
	switch name := str(0); name {
	case "base":
		return daytona.Base(str(1))
	case "debianSlim":
		return daytona.DebianSlim(str(1))
	case "fromDockerfile":
		return daytona.FromDockerfile(str(1))
	case "pipInstall":
		return img.PipInstallWith(pip(2), list(1)...)
	case "requirements":
		return img.PipInstallRequirements(str(1), pip(2))
	case "pyproject":
		return img.PipInstallPyproject(str(1), pip(2), list(3)...)
	case "addLocalFile":
		return img.AddLocalFile(str(1), str(2))
	case "addLocalDir":
		return img.AddLocalDir(str(1), str(2))
	case "run":
		return img.RunCommands(rest()...)
	case "runWords":
		return img.RunWords(rest()...)
	case "env":
		var e map[string]string
		arg(1, &e)
		return img.Env(e)
	case "workdir":
		return img.WorkDir(str(1))
	case "entrypoint":
		return img.Entrypoint(rest()...)
	case "cmd":
		return img.Cmd(rest()...)
	case "commands":
		return img.DockerfileCommands(list(1), str(2))
	default:
		t.Fatalf("unknown step %q", name)
		return nil
	}
}
