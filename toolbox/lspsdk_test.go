package toolbox_test

import (
	"bytes"
	"encoding/json"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/daytona-go/daytona/toolbox"
	"github.com/daytona-go/daytona/toolbox/process"
	"github.com/daytona-go/daytona/toolbox/wire"
)

// TestLanguageServersOfSDKs has the official SDKs do all that they can with a
// language server, at a whole agent.
func TestLanguageServersOfSDKs(t *testing.T) {
	testdata, err := filepath.Abs("../testdata/sdk")
	if err != nil {
		t.Fatal(err)
	}
	path := os.Getenv("DAYTONA_TEST_LSP") + ":" + os.Getenv("PATH")
	for _, c := range []struct {
		name, variable, program string
		files                   map[string]string
	}{
		{"ts", "DAYTONA_TEST_SDK_TS", "typescript-language-server", map[string]string{
			"shapes.ts": "export class Circle {\n  constructor(readonly radius: number) {}\n  area(): number {\n    return 3;\n  }\n}\n",
			"main.ts":   "import { Circle } from \"./shapes\";\n\nconst circle = new Circle(2);\ncircle.\n", "tsconfig.json": "{}",
		}},
		{"ts190", "DAYTONA_TEST_SDK_TS190", "typescript-language-server", map[string]string{
			"shapes.ts": "export class Circle {\n  area(): number {\n    return 3;\n  }\n}\n",
			"main.ts":   "import { Circle } from \"./shapes\";\n\nconst circle = new Circle();\ncircle.\n", "tsconfig.json": "{}",
		}},
		{"py", "DAYTONA_TEST_SDK_PY", "pyright-langserver", map[string]string{
			"shapes.py": "class Circle:\n    def area(self) -> float:\n        return 3\n",
			"main.py":   "from shapes import Circle\n\ncircle = Circle()\ncircle.\n",
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			where := os.Getenv(c.variable)
			if where == "" {
				t.Skipf("%s does not say where the SDK is", c.variable)
			}
			if _, err := process.LookPath(c.program, "/", []string{"PATH=" + path}); err != nil {
				t.Skipf("DAYTONA_TEST_LSP does not say where language servers are: %v", err)
			}
			dir := t.TempDir()
			for name, text := range c.files {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			// What an SDK cannot say, the sandbox's environment does.
			s, err := toolbox.New(t.Context(), toolbox.Config{WorkDir: dir, Env: map[string]string{"PATH": path, "DAYTONA_LSP_PYTHON": "pyright-langserver --stdio"}}, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			srv := httptest.NewServer(s.Handler())
			defer srv.Close()
			cmd := exec.Command("node", filepath.Join(testdata, "lsp.cjs"), where, srv.URL, dir)
			if c.name == "py" {
				cmd = exec.Command(where, filepath.Join(testdata, "lsp.py"), srv.URL, dir)
			}
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			out, err := cmd.Output()
			if err != nil {
				t.Fatalf("%v: %s", err, stderr.String())
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
		})
	}
}
