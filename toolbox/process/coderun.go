package process

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona/toolbox/chart"
	"github.com/daytona-go/daytona/toolbox/wire"
)

// artifactPrefix begins a line of output that is a chart.
const artifactPrefix = "dtn_artifact_k39fd2:"

// runCode is the Python program that runs code which uses matplotlib; it
// begins with [chart.Source].
//
//go:embed runcode.py
var runCode string

// importsMatplotlib, as other tables, is made when it is first needed: each agent
// would make it as it starts, and few ever need it.
var importsMatplotlib = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`(?m)^[^#\n]*\b(import|from)\s+([\w., ]*,\s*)?matplotlib\b`)
})

// codeRun serves POST /process/code-run.
func (s *Service) codeRun(w http.ResponseWriter, r *http.Request) {
	var req wire.CodeRunRequest
	if !decode(w, r, &req) {
		return
	}
	timeout, err := checkExecute(req.Envs, req.Timeout)
	if err == nil && req.Code == "" {
		err = errors.New("code is required and must not be empty")
	}
	for i, a := range req.Argv {
		if strings.ContainsRune(a, 0) {
			err = fmt.Errorf("argv[%d] must not contain NUL bytes", i)
		}
	}
	var prepare func(context.Context, *wire.CodeRunRequest) (*program, error)
	switch strings.ToLower(req.Language) {
	case "python":
		prepare = s.python
	case "javascript":
		prepare = s.javaScript
	case "typescript":
		prepare = s.typeScript
	default:
		if err == nil {
			err = fmt.Errorf("language %q: not one of python, javascript, typescript", req.Language)
		}
	}
	if err != nil {
		fail(w, r, http.StatusBadRequest, "", "%v", err)
		return
	}
	out := &spool{open: s.tempFile, limit: s.outputLimit}
	defer out.close()
	var res result
	filter := &artifactFilter{out: out}
	prog, err := prepare(r.Context(), &req)
	if err == nil {
		defer prog.cleanup()
		spec := Spec{Args: prog.args, Stdin: prog.stdin, Env: req.Envs}
		var to io.Writer = out
		if prog.charts {
			to = filter
		}
		res, err = s.run(r.Context(), &spec, timeout, to)
		filter.flush()
	}
	if err != nil {
		res.status = Status{Code: -1}
		fmt.Fprintln(out, err)
	}
	s.answer(w, r, res, out, filter.charts)
}

// program is code made ready to run.
type program struct {
	args   []string
	stdin  int
	charts bool
	file   string
}

func (p *program) cleanup() {
	closeFDs(p.stdin)
	if p.file != "" {
		_ = os.RemoveAll(filepath.Dir(p.file))
	}
}

// python runs the code as "python3 -u -": from standard input, unbuffered.
func (s *Service) python(_ context.Context, req *wire.CodeRunRequest) (*program, error) {
	p := &program{args: append([]string{"python3", "-u", "-"}, req.Argv...)}
	code := req.Code
	if importsMatplotlib().MatchString(code) {
		p.charts = true
		// Base64, because no quoting of one language is quite that of another.
		code = chart.Source + strings.Replace(runCode, "__CODE__", base64.StdEncoding.EncodeToString([]byte(code)), 1)
	}
	var err error
	p.stdin, err = memoryFile("code", code)
	return p, err
}

// withoutScriptName makes process.argv the runtime followed by the arguments,
// as the public API has it, without moving any line and without ending a
// directive prologue.
func withoutScriptName(code string) string {
	const drop = `process.argv.splice(1, 1);`
	if t := strings.TrimSpace(code); strings.HasPrefix(t, `"use strict"`) || strings.HasPrefix(t, `'use strict'`) {
		return `"use strict";` + drop + code
	}
	if strings.HasPrefix(code, "#!") {
		return drop + "//" + code
	}
	return drop + code
}

// javaScript runs the code as "node -".
func (s *Service) javaScript(_ context.Context, req *wire.CodeRunRequest) (*program, error) {
	p := &program{args: append([]string{"node", "-"}, req.Argv...)}
	var err error
	p.stdin, err = memoryFile("code", withoutScriptName(req.Code))
	return p, err
}

// typeScript runs the code from a temporary file with the first runtime found
// of ts-node, tsx, bun, deno, and node (22.6 and later).
func (s *Service) typeScript(ctx context.Context, req *wire.CodeRunRequest) (*program, error) {
	runtime, err := s.runtimes.typeScript(ctx, s.spawner, req.Envs)
	if err != nil {
		return nil, err
	}
	p := &program{}
	// Readable by the account, and its name unknown before it exists.
	dir, err := os.MkdirTemp("", "code-run-")
	if err != nil {
		return nil, fmt.Errorf("make a directory for the code: %w", err)
	}
	p.file = filepath.Join(dir, "main.ts")
	err = os.Chmod(dir, 0o755)
	if err == nil {
		err = os.WriteFile(p.file, []byte(withoutScriptName(req.Code)), 0o644)
	}
	if err != nil {
		p.cleanup()
		return nil, fmt.Errorf("write the code to a file: %w", err)
	}
	p.args = append(append(append([]string{}, runtime...), p.file), req.Argv...)
	return p, nil
}

// runtimes remembers the option that makes node run TypeScript, by its path;
// "" if there is none.
type runtimes struct {
	mu    sync.Mutex
	nodes map[string]string
}

func (rt *runtimes) typeScript(ctx context.Context, s *Spawner, env map[string]string) ([]string, error) {
	environ := s.Environ(env, s.workDir)
	look := func(name string) string {
		local := filepath.Join(s.workDir, "node_modules", ".bin", name)
		if unix.Access(local, unix.X_OK) == nil {
			return local
		}
		path, err := LookPath(name, s.workDir, environ)
		if err != nil {
			return ""
		}
		return path
	}
	if p := look("ts-node"); p != "" {
		// Types are not checked: without @types/node they cannot be.
		return []string{p, "--transpile-only", "--compiler-options", `{"module":"CommonJS"}`}, nil
	}
	if p := look("tsx"); p != "" {
		return []string{p}, nil
	}
	if p := look("bun"); p != "" {
		return []string{p, "run"}, nil
	}
	if p := look("deno"); p != "" {
		return []string{p, "run", "--allow-all", "--no-check"}, nil
	}
	if p := look("node"); p != "" {
		if option := rt.nodeOption(ctx, s, p); option != "" {
			return []string{p, "--disable-warning=ExperimentalWarning", option}, nil
		}
	}
	return nil, errors.New("no runtime for TypeScript in the sandbox: install ts-node or tsx (npm install -g tsx), bun, deno, or Node.js 22.6 or later")
}

// nodeOption asks node which it has: one that compiles all of TypeScript (22.7
// and later), enumerations and parameter properties included, or one that only
// removes types (22.6 and later).
func (rt *runtimes) nodeOption(ctx context.Context, s *Spawner, node string) string {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	if option, ok := rt.nodes[node]; ok {
		return option
	}
	for _, option := range []string{"--experimental-transform-types", "--experimental-strip-types", ""} {
		if option != "" && !accepts(ctx, s, node, option) {
			continue
		}
		if ctx.Err() != nil {
			break
		}
		if rt.nodes == nil {
			rt.nodes = make(map[string]string)
		}
		rt.nodes[node] = option
		return option
	}
	return ""
}

// accepts reports whether a program takes an option before --version.
func accepts(ctx context.Context, s *Spawner, program, option string) bool {
	pipe, end, err := outputPipe()
	if err != nil {
		return false
	}
	defer pipe.Close()
	p, err := s.Start(&Spec{Args: []string{program, option, "--version"}, Path: program, Stdout: end})
	unix.Close(end)
	if err != nil {
		return false
	}
	stop := context.AfterFunc(ctx, p.KillTree)
	defer stop()
	return p.Wait().Code == 0
}

// artifactFilter takes the lines that are charts out of the output.
type artifactFilter struct {
	out    io.Writer
	charts []json.RawMessage
	size   int
	// line is the beginning of a line that is, or may yet be, a chart. inside
	// says that the present line is not.
	line   []byte
	inside bool
}

const (
	// artifactLineLimit and artifactLimit bound what is kept of charts.
	artifactLineLimit = 32 << 20
	artifactLimit     = 64 << 20
)

func (f *artifactFilter) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		if f.inside {
			end := bytes.IndexByte(p, '\n') + 1
			if end == 0 {
				end = len(p)
			} else {
				f.inside = false
			}
			if _, err := f.out.Write(p[:end]); err != nil {
				return 0, err
			}
			p = p[end:]
			continue
		}
		// At the beginning of a line, or within a possible chart.
		end := bytes.IndexByte(p, '\n') + 1
		whole := end > 0
		if !whole {
			end = len(p)
		}
		f.line = append(f.line, p[:end]...)
		p = p[end:]
		k := min(len(f.line), len(artifactPrefix))
		possible := string(f.line[:k]) == artifactPrefix[:k] && len(f.line) <= artifactLineLimit
		switch {
		case possible && !whole:
		case possible && f.chart(f.line):
			f.line = f.line[:0]
		default:
			if err := f.flush(); err != nil {
				return 0, err
			}
			f.inside = !whole
		}
	}
	return n, nil
}

// chart keeps a line if it is a chart.
func (f *artifactFilter) chart(line []byte) bool {
	body, ok := bytes.CutPrefix(bytes.TrimRight(line, "\r\n"), []byte(artifactPrefix))
	if !ok {
		return false
	}
	var a struct {
		Type  string          `json:"type"`
		Value json.RawMessage `json:"value"`
	}
	if json.Unmarshal(body, &a) != nil || a.Type != "chart" || len(a.Value) == 0 || a.Value[0] != '{' || f.size+len(a.Value) > artifactLimit {
		return false
	}
	f.size += len(a.Value)
	f.charts = append(f.charts, bytes.Clone(a.Value))
	return true
}

// flush writes out what was held back.
func (f *artifactFilter) flush() error {
	if len(f.line) == 0 {
		return nil
	}
	if f.chart(f.line) {
		f.line = nil
		return nil
	}
	_, err := f.out.Write(f.line)
	f.line = nil
	return err
}
