package process_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/daytona-go/daytona/toolbox/process"
	"github.com/daytona-go/daytona/toolbox/wire"
)

func needs(t *testing.T, program string, args ...string) {
	t.Helper()
	if err := exec.Command(program, args...).Run(); err != nil {
		t.Skipf("needs %s %s: %v", program, strings.Join(args, " "), err)
	}
}

// startPython is startAgent for code that may import matplotlib, which prints
// warnings where it finds no place for its caches.
func startPython(t *testing.T) *agent {
	t.Helper()
	cache := passable(t)
	env := []string{"PATH=" + os.Getenv("PATH"), "HOME=" + cache, "MPLCONFIGDIR=" + cache}
	fill := exec.Command("python3", "-c", "import matplotlib.pyplot")
	fill.Env = env
	_ = fill.Run() // it need not be there
	return startAgent(t, process.Options{Environ: func() []string { return env }})
}

func (a *agent) code(req wire.CodeRunRequest) wire.CodeRunResponse {
	a.t.Helper()
	status, body := a.call("POST", "/process/code-run", req)
	if status != 200 {
		a.t.Fatalf("%+v: %d %s", req, status, body)
	}
	return parse[wire.CodeRunResponse](a.t, body)
}

func TestCodeRunPython(t *testing.T) {
	needs(t, "python3", "-c", "pass")
	a := startAgent(t, process.Options{})
	for _, c := range []struct {
		code, want string
		exit       int
	}{
		{"print('hi'); import sys; print('err', file=sys.stderr); sys.exit(3)", "hi\nerr\n", 3},
		{"import sys, os; print(sys.argv[1:], os.environ['FOO'], __name__)", "['a b', '$x'] bar __main__\n", 0},
		{"print('é \\u2028 \\x00')", "é \u2028 \x00\n", 0},
		{"dtn = 'dtn_artifact_k39fd2:{\"type\":\"chart\",\"value\":{}}'\nprint(dtn)", "dtn_artifact_k39fd2:{\"type\":\"chart\",\"value\":{}}\n", 0},
	} {
		got := a.code(wire.CodeRunRequest{Code: c.code, Language: "python", Argv: []string{"a b", "$x"}, Envs: map[string]string{"FOO": "bar"}})
		if got.Result != c.want || got.ExitCode != c.exit || got.Artifacts != nil {
			t.Errorf("%s: %+v", c.code, got)
		}
	}
	if got := a.code(wire.CodeRunRequest{Code: "print(", Language: "python"}); got.ExitCode == 0 || !strings.Contains(got.Result, "SyntaxError") {
		t.Errorf("syntax error: %+v", got)
	}
	if got := a.code(wire.CodeRunRequest{Code: "input()", Language: "python"}); got.ExitCode == 0 || !strings.Contains(got.Result, "EOFError") {
		t.Errorf("input: %+v", got)
	}
	begin := time.Now()
	status, body := a.call("POST", "/process/code-run", wire.CodeRunRequest{Code: "print('partial')\nimport time\ntime.sleep(100)", Language: "python", Timeout: 5})
	if e := parse[wire.TimeoutResponse](t, body); status != 408 || e.Result != "partial\n" || e.Code != wire.CodeProcessTimeout || time.Since(begin) > 10*time.Second {
		t.Errorf("timeout: %d %s", status, body)
	}
}

// The wrapper for charts must not change what the code sees of itself,
// whether there is matplotlib or not.
func TestCodeRunWrapped(t *testing.T) {
	needs(t, "python3", "-c", "pass")
	a := startPython(t)
	got := a.code(wire.CodeRunRequest{Language: "python", Argv: []string{"x"}, Code: `
# coding comment é
import sys
try:
    import matplotlib
except ImportError:
    pass
def f(): return g()
def g(): return sys.argv[1] + __name__
print(f(), '_daytona_run' in globals())
raise ValueError("boom")
`})
	if got.ExitCode != 1 || !strings.HasPrefix(got.Result, "x__main__ False\nTraceback (most recent call last):\n  File \"<stdin>\", line 11, in <module>\n") ||
		!strings.HasSuffix(got.Result, "ValueError: boom\n") {
		t.Errorf("%d %s", got.ExitCode, got.Result)
	}
	// Lines that look like charts and are none stay where they are.
	got = a.code(wire.CodeRunRequest{Language: "python", Code: "# import matplotlib\n" + `
if False: import matplotlib
print("dtn_artifact_k39fd2:not json")
print("a"); print('dtn_artifact_k39fd2:{"type":"chart","value":{"type":"line","title":"T"}}'); print("b")
print("dtn_artifact_k39fd2:", end="")
`})
	if got.Result != "dtn_artifact_k39fd2:not json\na\nb\ndtn_artifact_k39fd2:" || got.Artifacts == nil || len(got.Artifacts.Charts) != 1 || parse[map[string]any](t, string(got.Artifacts.Charts[0]))["title"] != "T" {
		t.Errorf("%+v", got)
	}
}

func TestCodeRunCharts(t *testing.T) {
	needs(t, "python3", "-c", "import matplotlib")
	a := startPython(t)
	got := a.code(wire.CodeRunRequest{Language: "python", Code: `
import matplotlib.pyplot as plt
import datetime
print("before")
plt.plot([1, 2, 3], [4, 5, float("nan")], label="L"); plt.title("Line"); plt.xlabel("X"); plt.ylabel("Y"); plt.show()
plt.scatter([1, 2], [3, 4], label="S"); plt.title("Scatter"); plt.show()
plt.bar(["a", "b"], [3, 7]); plt.title("Bar"); plt.show()
plt.pie([1, 3], labels=["p", "q"]); plt.title("Pie"); plt.show()
plt.boxplot([[1, 2, 3, 4, 50], [2, 3, 4]]); plt.title("Box"); plt.show()
fig, (l, r) = plt.subplots(1, 2); l.plot([1, 2]); r.bar(["x"], [1]); fig.suptitle("Both"); plt.show()
plt.plot([datetime.datetime(2026, 1, 1), datetime.datetime(2026, 1, 2)], [1, 2]); plt.title("Dates"); plt.show()
print("after")
`})
	if got.ExitCode != 0 || got.Result != "before\nafter\n" || got.Artifacts == nil {
		t.Fatalf("%d %s", got.ExitCode, got.Result)
	}
	var types []string
	var charts []map[string]any
	for _, raw := range got.Artifacts.Charts {
		c := parse[map[string]any](t, string(raw))
		charts = append(charts, c)
		types = append(types, c["type"].(string)+" "+c["title"].(string))
		if png, _ := c["png"].(string); !strings.HasPrefix(png, "iVBOR") {
			t.Errorf("%v has no png: %.20s", c["type"], png)
		}
	}
	if s := strings.Join(types, ","); s != "line Line,scatter Scatter,bar Bar,pie Pie,box_and_whisker Box,composite_chart Both,line Dates" {
		t.Fatalf("charts: %s", s)
	}
	elements := func(i int) string {
		b, _ := json.Marshal(charts[i]["elements"])
		return string(b)
	}
	for i, want := range []string{
		`[{"label":"L","points":[[1,4],[2,5]]}]`,
		`[{"label":"S","points":[[1,3],[2,4]]}]`,
		`"label":"a","value":"3"`,
		`"label":"q"`,
		`"median":3,"min":1,"outliers":[50]`,
		`"type":"bar"`,
		`[[1767225600,1],[1767312000,2]]`,
	} {
		if e := elements(i); !strings.Contains(e, want) {
			t.Errorf("chart %d: %s lacks %s", i, e, want)
		}
	}
}

func TestCodeRunJavaScript(t *testing.T) {
	needs(t, "node", "--version")
	a := startAgent(t, process.Options{})
	for _, c := range []struct {
		code, want string
		exit       int
	}{
		{"console.log(process.argv.slice(1), process.env.FOO); process.exit(4)", "[ 'a b', 'c' ] bar\n", 4},
		{"'use strict'; try { x = 1 } catch (e) { console.log(e.name) }", "ReferenceError\n", 0},
		{"#!/usr/bin/env node\nconsole.log('script')", "script\n", 0},
	} {
		got := a.code(wire.CodeRunRequest{Code: c.code, Language: "javascript", Argv: []string{"a b", "c"}, Envs: map[string]string{"FOO": "bar"}})
		if got.Result != c.want || got.ExitCode != c.exit {
			t.Errorf("%s: %+v", c.code, got)
		}
	}
}

func TestCodeRunTypeScript(t *testing.T) {
	// A runtime of our own, so that it does not matter what is installed: it
	// shows how it was called.
	dir := passable(t)
	runtime := filepath.Join(dir, "ts-node")
	if err := os.WriteFile(runtime, []byte("#!/bin/sh\nshift 3\ncat \"$1\"; shift; echo; echo \"$@\"; ls -d /tmp/code-run-*\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, opts := range identities(t) {
		t.Run(name, func(t *testing.T) {
			opts.Environ = func() []string { return []string{"PATH=" + dir + ":/usr/bin:/bin"} }
			a := startAgent(t, opts)
			got := a.code(wire.CodeRunRequest{Code: "let x: number = 1", Language: "typescript", Argv: []string{"a", "b"}})
			if got.ExitCode != 0 || !strings.HasPrefix(got.Result, "process.argv.splice(1, 1);let x: number = 1\na b\n/tmp/code-run-") {
				t.Errorf("%+v", got)
			}
			left := strings.Fields(got.Result)
			if _, err := os.Stat(left[len(left)-1]); err == nil {
				t.Errorf("%s is left behind", left[len(left)-1])
			}
		})
	}
	a := startAgent(t, process.Options{Environ: func() []string { return []string{"PATH=/nowhere"} }})
	if got := a.code(wire.CodeRunRequest{Code: "1", Language: "typescript"}); got.ExitCode != -1 || !strings.Contains(got.Result, "install ts-node") {
		t.Errorf("without a runtime: %+v", got)
	}
}

func TestCodeRunRefuses(t *testing.T) {
	a := startAgent(t, process.Options{})
	for body, message := range map[string]string{
		`{"code":"","language":"python"}`:                      "bad request: code is required",
		`{"code":"1","language":"cobol"}`:                      `bad request: language "cobol"`,
		`{"code":"1","language":"python","envs":{"":"x"}}`:     `bad request: invalid environment variable name ""`,
		`{"code":"1","language":"python","argv":["a\u0000b"]}`: "bad request: argv[0]",
		`{`: "invalid body request: ",
	} {
		status, got := a.call("POST", "/process/code-run", body)
		if e := parse[wire.ErrorResponse](t, got); status != 400 || !strings.HasPrefix(e.Message, message) {
			t.Errorf("%s: %d %s", body, status, got)
		}
	}
}

// Output beyond the limit is left out and said to be; the agent's memory does
// not grow with it.
func TestOutputLimit(t *testing.T) {
	a := startAgent(t, process.Options{OutputLimit: 1 << 20})
	got := a.sh("yes | head -c 3000000")
	want := strings.Repeat("y\n", 1<<19) + "\n[output truncated: 1951424 bytes left out]\n"
	if got.ExitCode != 0 || got.Result != want {
		t.Errorf("%d, %d bytes, end %q", got.ExitCode, len(got.Result), got.Result[max(0, len(got.Result)-60):])
	}
}
