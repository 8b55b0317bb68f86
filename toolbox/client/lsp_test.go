package client_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/toolbox/account"
	"github.com/daytona-go/daytona/toolbox/filesystem"
	"github.com/daytona-go/daytona/toolbox/lsp"
	"github.com/daytona-go/daytona/toolbox/process"
)

// languageServers is the variable that says where language servers are, as
// testdata/lsp/install.sh prints it. Those in PATH will do, too.
const languageServers = "DAYTONA_TEST_LSP"

func serverPath() string { return os.Getenv(languageServers) + ":" + os.Getenv("PATH") }

// needServer skips a test if a server is not there.
func needServer(t testing.TB, program string) {
	t.Helper()
	if _, err := process.LookPath(program, "/", []string{"PATH=" + serverPath()}); err != nil {
		t.Skipf("%s does not say where language servers are: %v", languageServers, err)
	}
}

// languageAgent serves the real files and language servers, in a directory
// with a project in it.
func languageAgent(t testing.TB, files map[string]string) (tb daytona.Toolbox, dir string) {
	t.Helper()
	dir = t.TempDir()
	writeProject(t, dir, files)
	user := *account.Current()
	env := []string{"PATH=" + serverPath(), "GOFLAGS=-mod=mod", "GOPROXY=off", "GOTOOLCHAIN=local"}
	if cache, err := exec.Command("go", "env", "GOCACHE").Output(); err == nil {
		env = append(env, "GOCACHE="+strings.TrimSpace(string(cache))) // the standard library's, at least
	}
	spawner, err := process.NewSpawner(process.Options{Account: &user, WorkDir: dir, Environ: func() []string { return env }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(spawner.Close)
	// Machines that run tests are slow.
	languages := lsp.New(lsp.Options{Spawner: spawner, StartTimeout: 3 * time.Minute, RequestTimeout: 3 * time.Minute, DiagnosticsTimeout: 2 * time.Minute})
	t.Cleanup(languages.Close)
	storage, err := filesystem.New(filesystem.Options{Account: account.Current(), WorkDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	languages.Register(mux)
	storage.Register(mux)
	return serve(t, mux, nil), dir
}

func writeProject(t testing.TB, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		p := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
}

// place is where the mark | is in a line that contains text.
func place(t testing.TB, file, text string) daytona.Position {
	t.Helper()
	before, after, ok := strings.Cut(text, "|")
	for n, line := range strings.Split(file, "\n") {
		if i := strings.Index(line, before+after); ok && i >= 0 {
			return daytona.Position{Line: n, Character: i + len(before)}
		}
	}
	t.Fatalf("there is no %q", text)
	return daytona.Position{}
}

var pythonProject = map[string]string{
	"shapes.py": `"""Shapes."""


class Circle:
    """A round one."""

    def __init__(self, radius: float) -> None:
        self.radius = radius

    def area(self) -> float:
        return 3 * self.radius ** 2
`,
	"main.py": `import os
from shapes import Circle

circle = Circle(2)
print(circle.area(),undefined_name)
`,
}

var typescriptProject = map[string]string{
	"tsconfig.json": `{"compilerOptions": {"strict": true, "target": "es2022", "module": "es2022", "types": []}, "include": ["*.ts"]}`,
	"shapes.ts": `/** A round one. */
export class Circle {
  constructor(readonly radius: number) {}
  area(): number {
    return 3 * this.radius ** 2;
  }
}
`,
	"main.ts": `import { Circle } from "./shapes";

const circle = new Circle(2);
const   text: string = circle.area();
`,
}

var goProject = map[string]string{
	"go.mod": "module example.com/shapes\n\ngo 1.26\n",
	"shapes.go": `package main

// Circle is a round one.
type Circle struct{ Radius float64 }

// Area is how much it covers.
func (c Circle) Area() float64 { return 3 * c.Radius * c.Radius }
`,
	"main.go": `package main

import "fmt"

func main() {
	circle := Circle{2}
	var text string = circle.Area()
	fmt.Println( text)
}
`,
}

// languageCase is a real server, with a project that is about the same in each
// language, and what it cannot do.
type languageCase struct {
	name, language, program string
	options                 *daytona.LSPOptions
	project                 map[string]string
	shapes, main            string    // files
	class, method           string    // symbols of shapes
	use, wrong              string    // a place in main, and what is wrong there
	right                   [2]string // what is to be replaced, and by what
	definition              string    // place in shapes
	// "references without declaration": pyright gives the declaration alone,
	// typescript-language-server all the same.
	lacks []string
}

var languageCases = []languageCase{
	{name: "pylsp", language: "python", program: "pylsp", project: pythonProject, shapes: "shapes.py", main: "main.py", class: "Circle", method: "area",
		use: "circle.|area(", wrong: "undefined", right: [2]string{",undefined_name", ",2"}, definition: "def |area", lacks: []string{"workspace symbols", "code actions"}},
	{name: "pyright", language: "python", program: "pyright-langserver", options: &daytona.LSPOptions{Command: []string{"pyright-langserver", "--stdio"},
		Settings: map[string]any{"python": map[string]any{"analysis": map[string]any{"diagnosticMode": "openFilesOnly"}}}},
		project: pythonProject, shapes: "shapes.py", main: "main.py", class: "Circle", method: "area",
		use: "circle.|area(", wrong: "undefined", right: [2]string{",undefined_name", ",2"}, definition: "def |area", lacks: []string{"format", "code actions", "references without declaration"}},
	{name: "typescript-language-server", language: "typescript", program: "typescript-language-server", project: typescriptProject, shapes: "shapes.ts", main: "main.ts", class: "Circle", method: "area",
		use: "circle.|area(", wrong: "not assignable", right: [2]string{": string", ": number"}, definition: "  |area()", lacks: []string{"references without declaration"}},
	{name: "javascript", language: "javascript", program: "typescript-language-server", project: typescriptProject, shapes: "shapes.ts", main: "main.ts", class: "Circle", method: "area",
		use: "circle.|area(", wrong: "not assignable", right: [2]string{": string", ": number"}, definition: "  |area()", lacks: []string{"references without declaration"}},
	{name: "gopls", language: "go", program: "gopls", project: goProject, shapes: "shapes.go", main: "main.go", class: "Circle", method: "Area",
		use: "circle.|Area(", wrong: "cannot use", right: [2]string{"text string", "text float64"}, definition: ") |Area()"},
}

// writing is main with a line at its end, or at that of its function, that is
// being written, and where that is.
func (c languageCase) writing() (text string, at daytona.Position) {
	text, end := strings.TrimSuffix(c.project[c.main], "}\n"), ""
	line := "circle."
	if text != c.project[c.main] {
		line, end = "\tcircle.", "}\n"
	}
	return text + line + "\n" + end, daytona.Position{Line: strings.Count(text, "\n"), Character: len(line)}
}

// TestLanguageServers has real servers do everything.
func TestLanguageServers(t *testing.T) {
	for _, c := range languageCases {
		t.Run(c.name, func(t *testing.T) {
			needServer(t, c.program)
			if c.language == "go" {
				needServer(t, "go")
			}
			checkLanguage(t, c)
		})
	}
}

func checkLanguage(t *testing.T, c languageCase) {
	tb, dir := languageAgent(t, c.project)
	ctx, files := t.Context(), tb.FileSystem()
	server := tb.LSPServer(c.language, dir)
	try := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	text := c.project[c.main]
	lacks := func(what string) bool { return slices.Contains(c.lacks, what) }
	_, err := server.Completions(ctx, c.main, daytona.Position{})
	wantKind(t, err, daytona.KindState)
	try("start", server.Start(ctx, c.options))
	try("start again", server.Start(ctx, c.options))
	try("open", server.DidOpen(ctx, c.main))

	// While a line is being written, in an editor that does not save.
	writing, member := c.writing()
	try("change", server.DidChange(ctx, c.main, writing))
	list, err := server.Completions(ctx, c.main, member)
	try("completions", err)
	if !slices.ContainsFunc(list.Items, func(i daytona.Completion) bool {
		return strings.HasPrefix(i.Label, c.method) && (i.Kind.String() == "method" || i.Kind.String() == "function")
	}) {
		t.Errorf("completions %+v lack %s", list, c.method)
	}
	try("give that up", server.DidOpen(ctx, c.main))

	symbols, err := server.DocumentSymbols(ctx, c.shapes)
	try("document symbols", err)
	var class, method *daytona.Symbol
	for i, s := range symbols {
		switch {
		case s.Name == c.class && class == nil:
			class = &symbols[i]
		case strings.HasSuffix(s.Name, c.method):
			method = &symbols[i]
		}
	}
	if class == nil || method == nil || class.Path() != filepath.Join(dir, c.shapes) || class.Kind.String() != "class" && class.Kind.String() != "struct" || method.Kind.String() != "method" {
		t.Errorf("symbols %+v", symbols)
	}
	symbols, err = server.WorkspaceSymbols(ctx, c.class)
	if lacks("workspace symbols") {
		wantKind(t, err, daytona.KindUnsupported)
	} else if try("workspace symbols", err); !slices.ContainsFunc(symbols, func(s daytona.Symbol) bool {
		return strings.HasSuffix(s.Name, c.class) && s.Path() == filepath.Join(dir, c.shapes)
	}) {
		t.Errorf("workspace symbols %+v", symbols)
	}

	diagnostics, err := server.Diagnostics(ctx, c.main)
	try("diagnostics", err)
	wrong := func(d daytona.Diagnostic) bool { return strings.Contains(d.Message, c.wrong) }
	if diagnostics.Incomplete || !slices.ContainsFunc(diagnostics.Items, wrong) {
		t.Errorf("diagnostics %+v lack %q", diagnostics, c.wrong)
	}

	use := place(t, text, c.use)
	hover, err := server.Hover(ctx, c.main, use)
	try("hover", err)
	if !strings.Contains(hover.Text, c.method) {
		t.Errorf("hover %+v", hover)
	}
	if hover, err = server.Hover(ctx, c.shapes, daytona.Position{Line: 1}); err != nil && daytona.KindOf(err) != daytona.KindInvalid {
		t.Errorf("hover of nothing: %+v, %v", hover, err)
	}
	want := daytona.Location{URI: "file://" + filepath.Join(dir, c.shapes)}
	want.Range.Start = place(t, c.project[c.shapes], c.definition)
	definition, err := server.Definition(ctx, c.main, use)
	try("definition", err)
	if len(definition) != 1 || definition[0].URI != want.URI || definition[0].Range.Start != want.Range.Start {
		t.Errorf("definition %+v, want %+v", definition, want)
	}
	for _, declaration := range []bool{true, false} {
		references, err := server.References(ctx, c.main, use, declaration)
		try("references", err)
		in := func(file string) bool {
			return slices.ContainsFunc(references, func(l daytona.Location) bool { return l.Path() == filepath.Join(dir, file) })
		}
		if !declaration && lacks("references without declaration") {
			continue
		}
		if !in(c.main) || in(c.shapes) != declaration {
			t.Errorf("references, declaration %v: %+v", declaration, references)
		}
	}

	// The line is complete, but not saved, then saved.
	complete := strings.NewReplacer("circle.\n", "circle."+c.method+"()\n", c.right[0], c.right[1]).Replace(writing)
	try("change", server.DidChange(ctx, c.main, complete))
	references, err := server.References(ctx, c.main, use, false)
	try("references of what is not saved", err)
	if !slices.ContainsFunc(references, func(l daytona.Location) bool {
		return l.Path() == filepath.Join(dir, c.main) && l.Range.Start.Line == member.Line
	}) {
		t.Errorf("references of what is not saved: %+v", references)
	}
	try("save", files.WriteFile(ctx, filepath.Join(dir, c.main), []byte(complete), 0))
	try("follow the file again", server.DidOpen(ctx, c.main))

	edit, err := server.Rename(ctx, c.main, place(t, complete, c.use), "Surface")
	try("rename", err)
	try("apply", edit.Apply(ctx, files))
	for _, file := range []string{c.main, c.shapes} {
		b, err := files.ReadFile(ctx, filepath.Join(dir, file))
		try("read", err)
		if got := strings.Count(string(b), "Surface("); got != map[string]int{c.main: 2, c.shapes: 1}[file] || strings.Contains(string(b), c.method+"(") {
			t.Errorf("after the rename %s is\n%s", file, b)
		}
	}
	edit, err = server.Format(ctx, c.main, nil)
	if lacks("format") {
		wantKind(t, err, daytona.KindUnsupported)
	} else {
		try("format", err)
		if len(edit.Changes) != 1 {
			t.Fatalf("nothing to format: %+v", edit)
		}
		try("apply", edit.Apply(ctx, files))
		b, err := files.ReadFile(ctx, filepath.Join(dir, c.main))
		try("read", err)
		if strings.Contains(string(b), "const   ") || strings.Contains(string(b), "( ") || strings.Contains(string(b), ",2") || !strings.Contains(string(b), "Surface()") {
			t.Errorf("formatted:\n%s", b)
		}
		if edit, err = server.Format(ctx, c.main, &daytona.FormatOptions{TabSize: 4}); err != nil {
			t.Errorf("format again: %v", err)
		}
	}

	// A file that others make.
	extra := map[string]string{"python": "from shapes import Circle\n\n\nclass Extra(Circle):\n    pass\n", "go": "package main\n\ntype Extra struct{ Circle }\n"}[c.language]
	if extra == "" {
		extra = "import { Circle } from \"./shapes\";\n\nexport class Extra extends Circle {}\n"
	}
	name := "extra" + filepath.Ext(c.main)
	try("write", files.WriteFile(ctx, filepath.Join(dir, name), []byte(extra), 0))
	try("tell of a file", server.FilesChanged(ctx, name))
	symbols, err = server.DocumentSymbols(ctx, name)
	try("symbols of a new file", err)
	if !slices.ContainsFunc(symbols, func(s daytona.Symbol) bool { return s.Name == "Extra" }) {
		t.Errorf("symbols of a new file: %+v", symbols)
	}

	all := daytona.Range{End: daytona.Position{Line: 4}}
	actions, err := server.CodeActions(ctx, c.main, all)
	try("code actions", err)
	if len(actions) == 0 && !lacks("code actions") {
		t.Error("no code actions")
	}

	try("close", server.DidClose(ctx, c.main))
	try("stop", server.Stop(ctx))
	try("stop again", server.Stop(ctx))
	_, err = server.DocumentSymbols(ctx, c.shapes)
	wantKind(t, err, daytona.KindState)
}

// TestCodeActions applies some that real servers offer: by an edit, and by a
// command.
func TestCodeActions(t *testing.T) {
	for _, c := range []struct {
		name, language, program, file, text, action string
		kind                                        string
		want                                        string // in the file
	}{
		{"by edit", "go", "gopls", "main.go", "package main\n\nfunc main() { fmt.Println() }\n", "Organize Imports", "source.organizeImports", `import "fmt"`},
		{"by command", "typescript", "typescript-language-server", "main.ts", "export function f(a: number) {\n  return a;\n}\nlet unused = 1;\nexport {};\nimport { readFileSync } from \"fs\";\n", "Organize Imports", "source.organizeImports.ts", "export { };"},
	} {
		t.Run(c.name, func(t *testing.T) {
			needServer(t, c.program)
			tb, dir := languageAgent(t, map[string]string{c.file: c.text, "go.mod": "module x\n\ngo 1.26\n", "tsconfig.json": "{}"})
			server := tb.LSPServer(c.language, dir)
			ctx := t.Context()
			if err := server.Start(ctx, nil); err != nil {
				t.Fatal(err)
			}
			if _, err := server.Diagnostics(ctx, c.file); err != nil {
				t.Fatal(err)
			}
			actions, err := server.CodeActions(ctx, c.file, daytona.Range{}, c.kind)
			if err != nil || len(actions) == 0 {
				t.Fatalf("%+v, %v", actions, err)
			}
			a := actions[0]
			if a.Edit != nil {
				err = a.Edit.Apply(ctx, tb.FileSystem())
			}
			if err == nil && a.Command != nil {
				var edit daytona.WorkspaceEdit
				if edit, err = server.Execute(ctx, *a.Command); err == nil {
					err = edit.Apply(ctx, tb.FileSystem())
				}
			}
			b, _ := os.ReadFile(filepath.Join(dir, c.file))
			if err != nil || !strings.Contains(string(b), c.want) {
				t.Errorf("%+v: %v\n%s", actions, err, b)
			}
		})
	}
}

// TestLanguageServerCrash kills a real server, with its children: the next
// request has it again, with what was not saved.
func TestLanguageServerCrash(t *testing.T) {
	needServer(t, "typescript-language-server")
	tb, dir := languageAgent(t, typescriptProject)
	server, ctx := tb.LSPServer("typescript", dir), t.Context()
	if err := server.Start(ctx, nil); err != nil {
		t.Fatal(err)
	}
	if err := server.DidChange(ctx, "unsaved.ts", "export const treasure = 1;\n"); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(ctx, "pkill", "-9", "-P", strconv.Itoa(os.Getpid()), "node").CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	symbols, err := server.DocumentSymbols(ctx, "unsaved.ts")
	if err != nil || len(symbols) != 1 || symbols[0].Name != "treasure" {
		t.Fatalf("%+v, %v", symbols, err)
	}
}

// TestLanguageServerErrors: what went wrong is told by kind.
func TestLanguageServerErrors(t *testing.T) {
	tb, dir := languageAgent(t, map[string]string{"a": ""})
	ctx := t.Context()
	wantKind(t, tb.LSPServer("cobol", dir).Start(ctx, nil), daytona.KindInvalid)
	wantKind(t, tb.LSPServer("", dir).Start(ctx, nil), daytona.KindInvalid)
	wantKind(t, tb.LSPServer("cobol", dir).Start(ctx, &daytona.LSPOptions{Command: []string{"no-such-server"}}), daytona.KindNotFound)
	wantKind(t, tb.LSPServer("cobol", dir).Start(ctx, &daytona.LSPOptions{Command: []string{"false"}}), daytona.KindUnavailable)
	wantKind(t, tb.LSPServer("cobol", dir+"/nowhere").Start(ctx, &daytona.LSPOptions{Command: []string{"cat"}}), daytona.KindInvalid)
	wantKind(t, tb.LSPServer("cobol", dir).Start(ctx, &daytona.LSPOptions{Settings: func() {}}), daytona.KindInvalid)
	server := tb.LSPServer("cobol", dir)
	_, err := server.Hover(ctx, "", daytona.Position{})
	wantKind(t, err, daytona.KindInvalid)
	_, err = server.Execute(ctx, daytona.LSPCommand{})
	wantKind(t, err, daytona.KindInvalid)
	wantKind(t, server.DidOpen(ctx, "a"), daytona.KindState)
	wantKind(t, server.FilesChanged(ctx, "a"), daytona.KindState)
	if err := server.FilesChanged(ctx); err != nil {
		t.Error(err)
	}

	needServer(t, "pylsp")
	server = tb.LSPServer("python", dir)
	if err := server.Start(ctx, nil); err != nil {
		t.Fatal(err)
	}
	wantKind(t, server.Start(ctx, &daytona.LSPOptions{Command: []string{"other"}}), daytona.KindConflict)
	wantKind(t, server.DidOpen(ctx, "nowhere.py"), daytona.KindNotFound)
	_, err = server.WorkspaceSymbols(ctx, "x")
	wantKind(t, err, daytona.KindUnsupported)
	_, err = server.Rename(ctx, "a", daytona.Position{}, "")
	wantKind(t, err, daytona.KindInvalid)
	_, err = server.Rename(ctx, "a", daytona.Position{Line: 100}, "x")
	if err == nil || daytona.KindOf(err) == daytona.KindUnavailable {
		t.Errorf("rename of nothing: %v", err)
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := server.Hover(ended, "a", daytona.Position{}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// BenchmarkCompletion measures completions of real servers, through the agent
// and, as its peer, by a client that is as good as there can be: one that only
// writes a request to the server's pipe and reads the answer.
func BenchmarkCompletion(b *testing.B) {
	for _, c := range languageCases {
		if c.name == "javascript" {
			continue
		}
		b.Run(c.name, func(b *testing.B) {
			needServer(b, c.program)
			tb, dir := languageAgent(b, c.project)
			ctx := b.Context()
			text, at := c.writing()
			writeProject(b, dir, map[string]string{c.main: text})
			b.Run("agent", func(b *testing.B) {
				server := tb.LSPServer(c.language, dir)
				if err := server.Start(ctx, c.options); err != nil {
					b.Fatal(err)
				}
				defer server.Stop(ctx)
				if _, err := server.Completions(ctx, c.main, at); err != nil { // the first one loads the project
					b.Fatal(err)
				}
				for b.Loop() {
					list, err := server.Completions(ctx, c.main, at)
					if err != nil || len(list.Items) == 0 {
						b.Fatal(list, err)
					}
				}
			})
			b.Run("pipe", func(b *testing.B) {
				argv := []string{c.program}
				if c.options != nil {
					argv = c.options.Command
				} else if c.language == "typescript" {
					argv = append(argv, "--stdio")
				}
				peer := newPeer(b, argv, dir)
				peer.open(filepath.Join(dir, c.main), c.language, text)
				params := fmt.Sprintf(`{"textDocument":{"uri":"file://%s"},"position":{"line":%d,"character":%d},"context":{"triggerKind":1}}`, filepath.Join(dir, c.main), at.Line, at.Character)
				peer.call("textDocument/completion", params)
				for b.Loop() {
					peer.call("textDocument/completion", params)
				}
			})
		})
	}
}
