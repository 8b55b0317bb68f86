package toolbox_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/daytona-go/daytona/toolbox/process"
	"github.com/daytona-go/daytona/toolbox/wire"
)

// sdkLanguageServer has an SDK do all that it can with a language server, in a
// process of its own: paths become URIs in the SDK's own class. It says whether
// the server is on the path.
func sdkLanguageServer(t *testing.T, generation, sdk, base, dir, path string) bool {
	t.Helper()
	dir = filepath.Join(dir, "project")
	cmd := exec.CommandContext(t.Context(), "node", "../testdata/sdk/lsp.cjs", sdk, base, dir)
	program, files := "typescript-language-server", map[string]string{
		"shapes.ts": "export class Circle {\n  area(): number {\n    return 3;\n  }\n}\n",
		"main.ts":   "import { Circle } from \"./shapes\";\n\nconst circle = new Circle();\ncircle.\n", "tsconfig.json": "{}",
	}
	if generation == "py" {
		cmd = exec.CommandContext(t.Context(), sdk, "-W", "ignore", "../testdata/sdk/lsp.py", base, dir)
		program, files = "pyright-langserver", map[string]string{
			"shapes.py": "class Circle:\n    def area(self) -> float:\n        return 3\n",
			"main.py":   "from shapes import Circle\n\ncircle = Circle()\ncircle.\n",
		}
	}
	if _, err := process.LookPath(program, "/", []string{"PATH=" + path}); err != nil {
		t.Logf("DAYTONA_TEST_LSP does not say where language servers are: %v", err)
		return false
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("the SDK and a language server: %v", err)
	}
	var said struct {
		NotStarted, Stopped                       int
		Symbols, SandboxSymbols, WorkspaceSymbols []wire.LSPSymbol
		Completions, Triggered                    wire.LSPCompletionList
	}
	if err := json.Unmarshal(out, &said); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if said.NotStarted != 400 || said.Stopped != 400 {
		t.Errorf("one that is not started: %d, %d", said.NotStarted, said.Stopped)
	}
	const class, method = 5, 6
	symbol := func(list []wire.LSPSymbol, name string, kind int) bool {
		return slices.ContainsFunc(list, func(s wire.LSPSymbol) bool {
			return s.Name == name && s.Kind == kind && strings.HasPrefix(s.Location.URI, "file://"+dir+"/shapes.")
		})
	}
	if !symbol(said.Symbols, "Circle", class) || !symbol(said.Symbols, "area", method) || !symbol(said.SandboxSymbols, "Circle", class) || !symbol(said.WorkspaceSymbols, "Circle", class) {
		t.Errorf("symbols: %s", out)
	}
	for _, list := range []wire.LSPCompletionList{said.Completions, said.Triggered} {
		if !slices.ContainsFunc(list.Items, func(i wire.LSPCompletionItem) bool { return i.Label == "area" && i.Kind == 2 }) {
			t.Errorf("completions: %+v", list)
		}
	}
	return true
}
