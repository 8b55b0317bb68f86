package archtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/daytona-go/daytona"

// pkg is what `go list -json` says of a package.
type pkg struct {
	ImportPath                         string
	Dir                                string
	Name                               string
	Standard                           bool
	Imports, Deps                      []string
	GoFiles, TestGoFiles, XTestGoFiles []string
	Module                             *struct{ Path string }
	Error                              *struct{ Err string }
}

// own reports whether the package is of this module.
func (p *pkg) own() bool { return p.Module != nil && p.Module.Path == module }

// rel is the import path relative to the module: "." for its root.
func rel(importPath string) (string, bool) {
	if importPath == module {
		return ".", true
	}
	return strings.CutPrefix(importPath, module+"/")
}

// graph lists every package of the module and all that they are made of.
func graph(t *testing.T) map[string]*pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-deps", "-json=ImportPath,Dir,Name,Standard,Imports,Deps,GoFiles,TestGoFiles,XTestGoFiles,Module,Error", module+"/...")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	all := map[string]*pkg{}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		p := &pkg{}
		if err := d.Decode(p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if p.Error != nil {
			t.Fatalf("%s: %s", p.ImportPath, p.Error.Err)
		}
		all[p.ImportPath] = p
	}
	if all[module] == nil {
		t.Fatalf("go list does not know %s", module)
	}
	return all
}

// under reports whether a path is one of the trees or below one. A tree "x"
// has x and x/…; "x/..." has only what is below x.
func under(p string, trees ...string) bool {
	for _, tree := range trees {
		if below, ok := strings.CutSuffix(tree, "/..."); ok {
			if strings.HasPrefix(p, below+"/") {
				return true
			}
		} else if p == tree || strings.HasPrefix(p, tree+"/") {
			return true
		}
	}
	return false
}

// heavy are the library families that an embedder must not have to compile.
// github.com/docker/cli is not one of them: package image uses its small
// config package to find credentials.
var heavy = []string{
	"github.com/docker/docker", "github.com/moby/moby", "github.com/moby/buildkit", "github.com/containerd/containerd",
	"google.golang.org/grpc", "go.opentelemetry.io", "gvisor.dev/gvisor", "k8s.io",
	"database/sql", "modernc.org/sqlite", "github.com/jackc/pgx", "github.com/minio/minio-go",
}

// rule limits what packages are made of, directly or through others.
type rule struct {
	name string
	// who the rule is for, and who of them it is not for; of this module.
	who, except []string
	// own lists the trees of this module that may be used besides the
	// package's own. nil is anything.
	own []string
	// forbidden lists trees of this module or import paths of others.
	forbidden []string
	// others lists all import paths outside of this module and the standard
	// library that may be used. nil is anything.
	others []string
	why    string
}

var rules = []rule{
	{
		name: "the root package stands alone",
		who:  []string{"."}, own: []string{"internal"},
		// What image descriptions read: a pyproject.toml, a .dockerignore. Neither is
		// made of anything but the standard library.
		others:    []string{"github.com/BurntSushi/toml", "github.com/moby/patternmatcher"},
		forbidden: []string{"internal/boot", "internal/network", "internal/agentbin"},
		why:       "every program that uses sandboxes compiles it, whatever the backend",
	},
	{
		name: "the agent is small",
		who:  []string{"toolbox", "cmd/daytona-agent"}, except: []string{"toolbox/client"},
		forbidden: slices.Concat(heavy, []string{
			".", "backend", "server", "image", "daytonatest", "toolbox/client", "internal/network/netstack", "internal/agentbin",
			"github.com/google/go-containerregistry", "github.com/spf13/cobra",
		}),
		why: "it is loaded into every sandbox",
	},
	{
		name: "the toolbox client works over any connection",
		who:  []string{"toolbox/client"},
		own:  []string{".", "toolbox/wire", "internal"},
		forbidden: slices.Concat(heavy, []string{
			"internal/boot", "internal/network", "internal/agentbin", "github.com/google/go-containerregistry",
		}),
		why: "backends of every kind share it",
	},
	{
		name: "a backend knows no server",
		who:  []string{"backend"}, forbidden: []string{"server", "cmd", "daytonatest", "examples"},
		why: "the server is made of backends, not the other way round",
	},
	{
		name: "the suites know package daytona only",
		who:  []string{"backend/backendtest"}, except: []string{"backend/backendtest/attacker"}, own: []string{".", "internal/fileurl", "backend/backendtest", "toolbox/client", "toolbox/wire"},
		why: "they judge backends from outside",
	},
	{
		name: "the embedded engine is light",
		who:  []string{"backend/local"}, except: []string{"backend/local/build"}, forbidden: slices.Concat(heavy, []string{"internal/network/netstack", "image/build"}),
		why: "an embedder compiles what it uses; the user-space network stack is a program of its own",
	},
	{
		name: "plugins bring gRPC and nothing else",
		who:  []string{"backend/plugin"}, own: []string{".", "toolbox/client", "toolbox/wire", "internal", "backend/plugin"},
		forbidden: slices.Concat(slices.DeleteFunc(slices.Clone(heavy), func(h string) bool { return h == "google.golang.org/grpc" }), []string{
			"internal/boot", "internal/network", "internal/agentbin",
		}),
		why: "a host or plugin has whatever backends it likes, and those only",
	},
	{
		name: "the client of a server is the wire and nothing else",
		who:  []string{"backend/remote"}, own: []string{".", "toolbox/client", "toolbox/wire", "internal"},
		forbidden: slices.Concat(slices.DeleteFunc(slices.Clone(heavy), func(h string) bool { return h == "github.com/minio/minio-go" }), []string{
			"internal/boot", "internal/network", "internal/agentbin", "internal/lifecycle", "github.com/minio/minio-go/v7/pkg/credentials",
		}),
		why: "a program that only asks a server compiles no engine",
	},
	{
		name: "images know no sandboxes",
		who:  []string{"image"}, except: []string{"image/build"}, own: []string{"image", "internal"}, forbidden: slices.Concat(heavy, []string{"internal/boot", "internal/network", "internal/agentbin"}),
		why: "they are of use to every backend",
	},
	{
		name: "builds know no engine",
		who:  []string{"image/build"}, own: []string{".", "image", "internal"}, forbidden: []string{"internal/boot", "internal/network", "internal/agentbin", "internal/lifecycle"},
		why: "who runs the steps of a build is behind an interface",
	},
	{
		name: "BuildKit is for those who build",
		who:  []string{".", "backend", "toolbox", "image", "internal", "daytonatest"}, except: []string{"backend/local/build", "backend/all", "backend/docker", "image/build"},
		forbidden: []string{"image/build", "github.com/moby/buildkit"},
		why:       "it is the largest dependency of all",
	},
	{
		name: "the docker backend reads Dockerfiles and builds with the engine",
		who:  []string{"backend/docker"},
		forbidden: []string{"image/build", "github.com/moby/buildkit/client", "github.com/moby/buildkit/control", "github.com/moby/buildkit/frontend/dockerui",
			"github.com/moby/buildkit/frontend/gateway", "github.com/moby/buildkit/session", "github.com/moby/buildkit/solver", "github.com/moby/buildkit/worker"},
		why: "BuildKit's parser is small, the rest of it is not",
	},
	{
		name: "features of the server know no other feature",
		who:  []string{"server/..."}, except: []string{"server/api", "server/ratelimit", "server/store"},
		own: []string{".", "internal", "toolbox/client", "toolbox/wire", "server/store", "server/identity", "server/cache", "server/display", "server/live", "server/observe", "server/seal"},
		why: "they meet in package server, through interfaces that the consumer declares",
	},
	{
		name: "the server picks no backend",
		who:  []string{"server"}, forbidden: []string{"backend", "cmd", "daytonatest", "examples"},
		why: "who starts it brings a client of one",
	},
	{
		name: "the shapes of the wire are shapes",
		who:  []string{"internal/wire"}, own: []string{"internal/wire"}, others: []string{},
		why: "the server and its clients share them",
	},
	{
		name: "boot is nothing but system calls",
		who:  []string{"internal/boot"}, own: []string{"internal/boot", "internal/network/guest", "internal/network/nl", "internal/tree"}, others: []string{"golang.org/x/sys"},
		why: "it is linked into the agent and runs before a sandbox is closed",
	},
	{
		name: "the life of a sandbox is the same on every engine",
		who:  []string{"internal/lifecycle"}, own: []string{".", "internal/failpoint", "internal/fileurl", "internal/lifecycle", "internal/network/policy", "internal/portproxy", "image", "toolbox/client", "toolbox/wire"},
		why: "a backend's own is what starts and ends processes",
	},
	{
		name: "the network knows namespaces and packets",
		who:  []string{"internal/network"}, own: []string{"internal/companion", "internal/network"},
		why: "what is in a namespace is none of its business",
	},
}

// TestImports checks each rule, direct and indirect imports alike.
func TestImports(t *testing.T) {
	all := graph(t)
	for _, r := range rules {
		t.Run(r.name, func(t *testing.T) {
			found := false
			for _, p := range all {
				self, ok := rel(p.ImportPath)
				if !ok || !p.own() || !slices.ContainsFunc(r.who, func(w string) bool { return w == self || w != "." && under(self, w) }) || under(self, r.except...) {
					continue
				}
				found = true
				for _, dep := range p.Deps {
					if why := r.broken(self, dep, all[dep]); why != "" {
						t.Errorf("%s is made of %s, %s (%s)\n\tby way of %s", self, dep, why, r.why, strings.Join(chain(all, p.ImportPath, dep), " → "))
					}
				}
			}
			if !found && r.who[0] != "server" {
				t.Errorf("the rule is about %v, of which nothing exists", r.who)
			}
		})
	}
}

// broken says what is wrong with a dependency; "" if nothing is.
func (r *rule) broken(self, dep string, p *pkg) string {
	if d, ok := rel(dep); ok {
		// "." forbids or allows the root package, not all that is below it.
		in := func(trees []string) bool {
			return slices.ContainsFunc(trees, func(tree string) bool { return tree == d || tree != "." && under(d, tree) })
		}
		switch {
		case in(r.forbidden):
			return "which it must not know"
		case r.own != nil && !in(r.own) && !under(d, self):
			return "which is not among what it may know of this module"
		}
		return ""
	}
	switch {
	case p != nil && p.Standard && under(dep, "image"):
		// Go's own, not the tree of this module that is called the same.
	case under(dep, r.forbidden...):
		return "which it must not need"
	case r.others != nil && p != nil && !p.Standard && !under(dep, r.others...):
		return "which is not among what it may need"
	}
	return ""
}

// chain finds the shortest way by which a package comes to be made of another.
func chain(all map[string]*pkg, from, to string) []string {
	back := map[string]string{from: ""}
	for queue := []string{from}; len(queue) > 0; queue = queue[1:] {
		at := queue[0]
		if at == to {
			var way []string
			for ; at != ""; at = back[at] {
				short := at
				if d, ok := rel(at); ok {
					short = d
				}
				way = append([]string{short}, way...)
			}
			return way
		}
		if p := all[at]; p != nil {
			for _, i := range p.Imports {
				if _, seen := back[i]; !seen {
					back[i] = at
					queue = append(queue, i)
				}
			}
		}
	}
	return []string{from, "…", to}
}

// TestBackendsAreStrangers checks that no backend is made of another.
func TestBackendsAreStrangers(t *testing.T) {
	all := graph(t)
	backendOf := func(importPath string) string {
		d, ok := rel(importPath)
		if d, below := strings.CutPrefix(d, "backend/"); ok && below {
			name, _, _ := strings.Cut(d, "/")
			return name
		}
		return ""
	}
	for _, p := range all {
		b := backendOf(p.ImportPath)
		if b == "" || b == "backendtest" || b == "all" {
			continue
		}
		for _, dep := range p.Deps {
			other := backendOf(dep)
			if other == "backendtest" && p.Name == "harness" {
				continue // it is for test programs
			}
			if other != "" && other != b {
				t.Errorf("backend %s is made of backend %s: %s", b, other, strings.Join(chain(all, p.ImportPath, dep), " → "))
			}
		}
	}
}

// drawers are names that say nothing.
var drawers = []string{"util", "utils", "common", "helper", "helpers", "manager", "misc", "shared", "base", "lib"}

// TestNames checks the names of packages and files.
func TestNames(t *testing.T) {
	for _, p := range graph(t) {
		if !p.own() {
			continue
		}
		d, _ := rel(p.ImportPath)
		for part := range strings.SplitSeq(d, "/") {
			if slices.Contains(drawers, part) {
				t.Errorf("package %s: %q says nothing; name it for what it provides", d, part)
			}
		}
		for _, f := range slices.Concat(p.GoFiles, p.TestGoFiles, p.XTestGoFiles) {
			for word := range strings.SplitSeq(strings.TrimSuffix(f, ".go"), "_") {
				if slices.Contains(drawers, word) {
					t.Errorf("%s/%s: %q says nothing; name it for what is in it", d, f, word)
				}
			}
		}
	}
}

// files parses the packages of the module, tests included if they are wanted.
func files(t *testing.T, tests bool, visit func(p *pkg, name string, f *ast.File, fset *token.FileSet)) {
	t.Helper()
	for _, p := range graph(t) {
		if !p.own() {
			continue
		}
		names := p.GoFiles
		if tests {
			names = slices.Concat(p.GoFiles, p.TestGoFiles, p.XTestGoFiles)
		}
		d, _ := rel(p.ImportPath)
		for _, n := range names {
			fset := token.NewFileSet()
			f, err := parser.ParseFile(fset, filepath.Join(p.Dir, n), nil, parser.ParseComments|parser.SkipObjectResolution)
			if err != nil {
				if errors.Is(err, fs.ErrNotExist) {
					continue // just now renamed
				}
				t.Fatal(err)
			}
			visit(p, path.Join(d, n), f, fset)
		}
	}
}

// TestPackageComments checks that every package says what it is for.
func TestPackageComments(t *testing.T) {
	const enough = 60 // characters: a sentence that says more than the name
	said := map[string]int{}
	files(t, true, func(p *pkg, name string, f *ast.File, _ *token.FileSet) {
		said[p.ImportPath] = max(said[p.ImportPath], len(f.Doc.Text()))
		if f.Doc != nil && f.Name.Name != "main" && !strings.HasSuffix(name, "_test.go") && !strings.HasPrefix(f.Doc.Text(), "Package "+f.Name.Name+" ") {
			t.Errorf("%s: the package comment must begin with %q", name, "Package "+f.Name.Name)
		}
	})
	for _, importPath := range slices.Sorted(maps.Keys(said)) {
		if said[importPath] < enough {
			t.Errorf("package %s has no comment that says what it is for and what it must not know", importPath)
		}
	}
}

// process lists what only programs may use: it is about the process that code
// finds itself in.
var process = map[string][]string{
	"os":      {"Exit", "Args", "Getenv", "LookupEnv", "Environ", "ExpandEnv", "Setenv", "Unsetenv", "Clearenv", "Chdir"},
	"log":     {"Fatal", "Fatalf", "Fatalln", "SetOutput"},
	"syscall": {"Exit", "Getenv", "Setenv"},
	"flag":    nil, // all of it
}

// exceptions are the places outside of programs that use them all the same.
var exceptions = map[string]string{
	"backend/local/local.go os.Getenv":              "XDG_DATA_HOME decides the default state directory; Options come first",
	"backend/docker/docker.go os.Getenv":            "as for the local backend",
	"internal/agentbin/agentbin.go os.Getenv":       "DAYTONA_AGENT is the agent's binary; options of backends come first",
	"internal/agentbin/agentbin.go os.Environ":      "the Go toolchain that builds the agent needs its environment",
	"backend/plugin/child.go os.Environ":            "a plugin gets the few variables that every program needs; which ones Options.Env lists",
	"backend/plugin/serve.go os.Getenv":             "Serve is the body of a plugin's main function, to which the host speaks through the environment",
	"internal/failpoint/failpoint.go os.Getenv":     "a test has a program die at a point without a word in its code; nobody else sets it",
	"toolbox/account/account.go os.Getenv":          "HOME is how the system tells a process its user's home",
	"backend/backendtest/harness.go os.Args":        "Main is the body of the main function of a backend's test program",
	"backend/backendtest/crash.go os.Args":          "the suite starts its own test program again, to kill it",
	"backend/backendtest/crash.go os.Exit":          "the copy that is to be killed dies like this where it is not killed",
	"backend/backendtest/history.go flag":           "package rapid takes the number of histories and the seed as flags of the test program only",
	"backend/backendtest/statecrash.go os.Args":     "the suite starts its own test program again, to kill it",
	"backend/backendtest/attack.go os.Environ":      "the Go toolchain that builds the attacker needs its environment",
	"backend/backendtest/security.go os.Args":       "the suite looks whether its own name is seen inside a sandbox",
	"backend/backendtest/lifecycle.go os.LookupEnv": "the suite sets a variable to see that no sandbox gets it",
	"backend/backendtest/lifecycle.go os.Setenv":    "as above",
	"backend/backendtest/lifecycle.go os.Unsetenv":  "as above",
	"backend/backendtest/security.go os.LookupEnv":  "as above",
	"backend/backendtest/security.go os.Setenv":     "as above",
	"backend/backendtest/security.go os.Unsetenv":   "as above",
	"backend/backendtest/registry.go os.Getenv":     "a credential helper is put on PATH, before what is there",
	"backend/containerd/containerd.go os.Getenv":    "CONTAINERD_ADDRESS is for every client of containerd, as DOCKER_HOST is for Docker's",
	"server/store/storetest/storetest.go os.Getenv": "it is for tests, which run where their machine has a PostgreSQL",
	"backend/remote/remote.go os.Getenv":            "DAYTONA_API_KEY is for every client of the API; keys are not for URLs, and options never read it",
	"internal/objects/s3/environment.go os.Getenv":  "the AWS_… variables are for every program that uses S3; credentials are not for URLs",
	"internal/s3mount/s3mount.go os.Getenv":         "the server of a bucket's files uses the proxy and the certificates that this process uses",
	"backend/backendtest/benchmark.go os.Getenv":    "BENCH_DOCKER_IMAGE names an image for the comparison with Docker",
	"backend/backendtest/benchtoolbox.go os.Getenv": "BENCH_TREE_FILES says how many files are searched",
	"toolbox/reexec/reexec.go os.Exit":              "Main is the body of the main function of a helper",
	"toolbox/reexec/reexec.go os.Getenv":            "DISPLAY and the like are how a helper is told which desktop it is for",
	"toolbox/reexec/reexec.go os.Environ":           "the helper of an SSH connection was given the environment that the user's programs get",
	"toolbox/git/repository/main.go os.Getenv":      "HOME is where git looks for a user's configuration, as its helper does",
	"toolbox/git/repository/pattern.go os.Getenv":   "as XDG_CONFIG_HOME",
	"toolbox/git/repository/auth.go os.Getenv":      "SSH_AUTH_SOCK is how programs find the user's SSH agent",
}

// TestProcessIsMains checks that only programs read arguments, flags and
// environment, and exit.
func TestProcessIsMains(t *testing.T) {
	used := map[string]bool{}
	files(t, false, func(p *pkg, name string, f *ast.File, fset *token.FileSet) {
		d, _ := rel(p.ImportPath)
		if p.Name == "main" || under(d, "cmd", "examples") {
			return
		}
		imports := map[string]string{} // local name → path
		for _, i := range f.Imports {
			target, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				continue
			}
			local := path.Base(target)
			if i.Name != nil {
				local = i.Name.Name
			}
			imports[local] = target
			if what, listed := process[target]; listed && what == nil {
				if _, known := exceptions[name+" "+target]; known {
					used[name+" "+target] = true
					continue
				}
				t.Errorf("%s: imports %s, which is for programs (cmd/…)", name, target)
			}
		}
		ast.Inspect(f, func(n ast.Node) bool {
			s, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			x, ok := s.X.(*ast.Ident)
			if !ok {
				return true
			}
			from := imports[x.Name]
			if !slices.Contains(process[from], s.Sel.Name) {
				return true
			}
			use := name + " " + from + "." + s.Sel.Name
			if _, known := exceptions[use]; known {
				used[use] = true
				return true
			}
			t.Errorf("%s: %s.%s is for programs (cmd/…); take it as an option, or list it with the reason", fset.Position(s.Pos()), from, s.Sel.Name)
			return true
		})
	})
	for use, why := range exceptions {
		if why == "" {
			t.Errorf("the exception %q gives no reason", use)
		}
		if !used[use] {
			t.Errorf("the exception %q is not made use of any more; remove it", use)
		}
	}
}

// TestInit checks that importing a package does nothing, but for backends,
// which register their URL scheme, for what registers places for archives, and generated code, which registers the
// messages of a protocol.
func TestInit(t *testing.T) {
	files(t, false, func(p *pkg, name string, f *ast.File, fset *token.FileSet) {
		if p.Name == "main" || strings.HasSuffix(name, ".pb.go") { // nobody imports it; or nobody wrote it
			return
		}
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || fn.Recv != nil || fn.Name.Name != "init" {
				continue
			}
			if under(name, "backend/...", "archive/...") && len(fn.Body.List) == 1 {
				if e, ok := fn.Body.List[0].(*ast.ExprStmt); ok {
					if c, ok := e.X.(*ast.CallExpr); ok {
						if s, ok := c.Fun.(*ast.SelectorExpr); ok && s.Sel.Name == "Register" {
							continue
						}
					}
				}
			}
			t.Errorf("%s: an init function that does more than to register a backend", fset.Position(fn.Pos()))
		}
	})
}

// TestDependenciesAreExplained checks that docs/dependencies.md names every
// module that the code of this one imports.
func TestDependenciesAreExplained(t *testing.T) {
	all := graph(t)
	doc, err := os.ReadFile(filepath.Join(all[module].Dir, "docs", "dependencies.md"))
	if err != nil {
		t.Fatal(err)
	}
	missing := map[string]string{}
	for _, p := range all {
		if !p.own() {
			continue
		}
		for _, i := range p.Imports {
			if d := all[i]; d != nil && d.Module != nil && !d.own() && !bytes.Contains(doc, []byte("`"+d.Module.Path+"`")) {
				missing[d.Module.Path] = p.ImportPath
			}
		}
	}
	for m, by := range missing {
		t.Errorf("docs/dependencies.md does not say why %s (imported by %s)", m, by)
	}
}

// capabilities are the optional interfaces of a backend.
var capabilities = []string{"Pauser", "Forker", "Snapshotter", "Resizer", "NetworkPolicer", "Archiver", "Updater", "VolumeManager", "Watcher"}

// TestCapabilitiesAreAsked checks that nobody asserts what daytona.As finds: the
// type of a backend does not tell.
func TestCapabilitiesAreAsked(t *testing.T) {
	files(t, true, func(p *pkg, name string, f *ast.File, fset *token.FileSet) {
		d, _ := rel(p.ImportPath)
		refuse := func(e ast.Expr) {
			x, ok := e.(*ast.Ident)
			if s, is := e.(*ast.SelectorExpr); is {
				from, _ := s.X.(*ast.Ident)
				x, ok = s.Sel, from != nil && from.Name == "daytona"
			} else if d != "." {
				return
			}
			if ok && slices.Contains(capabilities, x.Name) {
				t.Errorf("%s:%d: asserts a %s; ask daytona.As", name, fset.Position(e.Pos()).Line, x.Name)
			}
		}
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.TypeAssertExpr:
				refuse(n.Type)
			case *ast.TypeSwitchStmt:
				for _, c := range n.Body.List {
					for _, e := range c.(*ast.CaseClause).List {
						refuse(e)
					}
				}
			}
			return true
		})
	})
}
