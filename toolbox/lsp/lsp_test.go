package lsp_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona/toolbox/account"
	"github.com/daytona-go/daytona/toolbox/lsp"
	"github.com/daytona-go/daytona/toolbox/process"
	"github.com/daytona-go/daytona/toolbox/wire"
)

// agent is a Service behind HTTP.
type agent struct {
	t       *testing.T
	service *lsp.Service
	url     string
	home    string
	env     []string
}

func startAgent(t *testing.T, opts lsp.Options) *agent {
	t.Helper()
	a := &agent{t: t, home: t.TempDir(), env: []string{"PATH=" + os.Getenv("PATH")}}
	user := *account.Current()
	user.Home = a.home
	spawner, err := process.NewSpawner(process.Options{Account: &user, WorkDir: a.home, Environ: func() []string { return a.env }})
	if err != nil {
		t.Fatal(err)
	}
	opts.Spawner = spawner
	a.service = lsp.New(opts)
	mux := http.NewServeMux()
	a.service.Register(mux)
	srv := httptest.NewServer(mux)
	a.url = srv.URL
	t.Cleanup(func() {
		a.service.Close()
		srv.Close()
		spawner.Close()
	})
	return a
}

// call sends a request; a body is JSON, the answer's status and body are
// returned.
func (a *agent) call(method, path string, body any) (int, string) {
	a.t.Helper()
	var r io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			a.t.Fatal(err)
		}
		r = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(a.t.Context(), method, a.url+path, r)
	if err != nil {
		a.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		a.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		a.t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// project is a directory with files, and a server for it.
type project struct {
	*agent
	dir string
	id  object
}

func (a *agent) project(files map[string]string) *project {
	a.t.Helper()
	p := &project{agent: a, dir: filepath.Join(a.home, fmt.Sprintf("p%d", time.Now().UnixNano()))}
	p.id = object{"languageId": "broken", "pathToProject": p.dir}
	if err := os.Mkdir(p.dir, 0o755); err != nil {
		a.t.Fatal(err)
	}
	for name, text := range files {
		p.write(name, text)
	}
	return p
}

func (p *project) write(name, text string) {
	p.t.Helper()
	if err := os.WriteFile(filepath.Join(p.dir, name), []byte(text), 0o644); err != nil {
		p.t.Fatal(err)
	}
}

func (p *project) post(route string, fields object) (int, string) {
	p.t.Helper()
	body := object{}
	for name, v := range p.id {
		body[name] = v
	}
	for name, v := range fields {
		body[name] = v
	}
	return p.call("POST", "/lsp/"+route, body)
}

// want is post, but the answer must have this status and contain a text.
func (p *project) want(status int, text, route string, fields object) string {
	p.t.Helper()
	got, body := p.post(route, fields)
	if got != status || !strings.Contains(body, text) {
		p.t.Fatalf("%s %v: %d %s; want %d with %q", route, fields, got, body, status, text)
	}
	return body
}

func self(t *testing.T) []string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return []string{exe}
}

func (p *project) start(how string) {
	p.t.Helper()
	p.want(200, "", "start", object{"command": self(p.t), "envs": object{behaviour: how}})
}

func (p *project) hover(what int) (int, string) {
	p.t.Helper()
	return p.post("hover", object{"uri": "file://a", "position": object{"line": what, "character": 0}})
}

// documents are what the server has open, as "name text version" each.
func (p *project) documents() []string {
	p.t.Helper()
	q := url.Values{"query": {""}, "languageId": {"broken"}, "pathToProject": {p.dir}}
	status, body := p.call("GET", "/lsp/workspacesymbols?"+q.Encode(), nil)
	var list []wire.LSPSymbol
	if err := json.Unmarshal([]byte(body), &list); err != nil || status != 200 {
		p.t.Fatalf("%d %s", status, body)
	}
	var out []string
	for _, s := range list {
		out = append(out, fmt.Sprintf("%s %q %d", s.Location.URI[strings.LastIndexByte(s.Location.URI, '/')+1:], s.Name, s.Kind))
	}
	return out
}

func (p *project) wantDocuments(want ...string) {
	p.t.Helper()
	if got := p.documents(); !slices.Equal(got, want) {
		p.t.Fatalf("the server has %q open, want %q", got, want)
	}
}

// short are limits that broken servers reach soon.
var short = lsp.Options{RequestTimeout: 2 * time.Second, WriteTimeout: 2 * time.Second, DiagnosticsTimeout: 4 * time.Second}

// TestMisbehaviour has a server do all that it must not. The agent answers, and
// the next request finds a server, with the documents open.
func TestMisbehaviour(t *testing.T) {
	if len(behaviourNames) != behaviours {
		t.Fatal("a behaviour has no name")
	}
	type want struct {
		status int
		text   string // in the answer
		runs   int    // of the server until the next request is answered
	}
	wants := map[int]want{
		fine: {200, "fine", 1}, ignore: {504, "it hangs, and is replaced", 2}, hang: {504, "it hangs, and is replaced", 2},
		deaf: {504, "within 2s", 2}, crash: {503, "ended with exit code 3; its last words:  [31mI crash", 3},
		flood: {200, "fine", 1}, floodErrors: {200, "fine", 1},
		tooLong: {504, "LSP_TIMEOUT", 2}, tooShort: {503, "broke the protocol", 3}, huge: {503, "a message of 1073741824 bytes", 3},
		negative: {503, `the Content-Length \"-1\"`, 3}, twice: {503, "two Content-Lengths", 3}, noLength: {503, "without Content-Length", 3},
		endless: {503, "a header of more than 4096 bytes", 3}, noise: {503, `where a header is due`, 3},
		notJSON: {503, "where a message is due", 3}, noMessage: {503, "neither method nor id", 3}, oddID: {503, "broke the protocol", 3},
		deepNesting: {503, "broke the protocol", 3}, manyElements: {500, "more than 20000 elements", 1},
		wrongID: {200, "fine", 1}, twoAnswers: {200, "fine", 1}, questions: {503, "", 3},
		closeOutput: {503, "closed its output", 3}, leaveChild: {503, "exit code 4", 3}, questionOddID: {200, "fine", 1},
	}
	for what, name := range behaviourNames {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := wants[what]
			opts := lsp.Options{RequestTimeout: 5 * time.Minute} // only slow machines need that long
			if w.status == 504 {
				opts = short
			}
			p := startAgent(t, opts).project(map[string]string{"a": "text of a"})
			p.start("normal")
			p.want(200, "", "did-open", object{"uri": "file://" + p.dir + "/a"})
			p.want(200, "text is text of a", "diagnostics", object{"uri": "file://a"}) // it says nothing by itself from here on
			if status, body := p.hover(what); status != w.status || !strings.Contains(body, w.text) {
				t.Errorf("%d %s; want %d with %q", status, body, w.status, w.text)
			}
			if what == deaf { // it is busy, not hung, until it has missed three
				for _, text := range []string{"within 2s", "it hangs, and is replaced"} {
					if status, body := p.hover(fine); status != 504 || !strings.Contains(body, text) {
						t.Errorf("%d %s; want %q", status, body, text)
					}
				}
			}
			p.wantDocuments(fmt.Sprintf("a %q %d", "text of a", w.runs))
		})
	}
}

// TestChildren: nothing that a server started outlives it.
func TestChildren(t *testing.T) {
	p := startAgent(t, lsp.Options{}).project(map[string]string{"a": ""})
	p.start("normal")
	p.hover(leaveChild)
	p.want(200, "", "stop", nil)
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		if b, _ := os.ReadFile(f); string(b) == "sleep\x003600.25\x00" {
			if stat, _ := os.ReadFile(filepath.Dir(f) + "/stat"); !bytes.Contains(stat, []byte(") Z ")) {
				t.Errorf("%s is still there", f)
			}
		}
	}
}

// TestMemory: what a server says does not pile up in the agent.
func TestMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("the race detector's memory says nothing")
	}
	p := startAgent(t, lsp.Options{}).project(map[string]string{"a": ""})
	p.start("normal")
	p.hover(fine)
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for _, what := range []int{flood, floodErrors, manyElements} {
		p.hover(what)
	}
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapSys) - int64(before.HeapSys); grown > 96<<20 {
		t.Errorf("the agent's memory grew by %d MiB", grown>>20)
	} else {
		t.Logf("%d MiB", grown>>20)
	}
}

// TestLifecycle: start, stop and what is between them.
func TestLifecycle(t *testing.T) {
	a := startAgent(t, lsp.Options{StartTimeout: 20 * time.Second})
	p := a.project(map[string]string{"a": "1"})
	for _, route := range []string{"did-open", "did-close", "completions", "diagnostics", "hover", "definition", "references", "rename", "formatting", "code-actions", "execute-command", "did-change", "did-change-files"} {
		p.want(400, "server not initialized", route, object{"uri": "file://a", "uris": []string{"file://a"}, "text": "", "newName": "x", "command": "x"})
	}
	for _, route := range []string{"document-symbols?uri=file://a&", "workspacesymbols?query=x&", "workspace-symbols?query=x&"} {
		if status, body := a.call("GET", "/lsp/"+route+"languageId=broken&pathToProject="+p.dir, nil); status != 400 || !strings.Contains(body, `"code":"LSP_NOT_STARTED"`) {
			t.Errorf("%s: %d %s", route, status, body)
		}
	}
	p.want(200, "{}", "stop", nil)

	// Refused starts leave nothing behind.
	for _, c := range []struct {
		fields object
		status int
		text   string
	}{
		{nil, 400, `unsupported language \"broken\"`},
		{object{"languageId": ""}, 400, "languageId is required"},
		{object{"pathToProject": ""}, 400, "pathToProject is required"},
		{object{"languageId": strings.Repeat("x", 65)}, 400, "at most 64 bytes"},
		{object{"command": []string{""}}, 400, "must not be empty"},
		{object{"command": []string{"x\x00"}}, 400, "NUL"},
		{object{"envs": object{"1x": ""}, "command": self(t)}, 400, "invalid environment variable name"},
		{object{"command": []string{"no-such-program"}}, 500, `"code":"LSP_SERVER_NOT_FOUND"`},
		{object{"command": []string{"/etc/passwd"}}, 500, `"code":"LSP_SERVER_FAILED"`},
		{object{"pathToProject": p.dir + "/nowhere", "command": self(t)}, 400, "create it first"},
		{object{"pathToProject": "/proc/self/fd", "command": self(t)}, 400, "/proc"},
		{object{"command": self(t), "envs": object{behaviour: "say:nonsense\n"}}, 500, "where a header is due"},
		{object{"command": self(t), "envs": object{behaviour: "say:"}}, 500, "ended with exit code 7; its last words: I was told so"},
		{object{"command": self(t), "envs": object{behaviour: "say:Content-Length: 2\r\n\r\n{"}}, 500, "exit code 7"},
	} {
		p.want(c.status, c.text, "start", c.fields)
		p.want(400, "server not initialized", "hover", object{"uri": "file://a"})
	}

	p.start("normal")
	p.start("normal") // again is nothing
	p.want(200, "", "start", nil)
	p.want(409, "stop it first", "start", object{"command": self(t), "envs": object{behaviour: "poor"}})
	if status, body := p.hover(fine); status != 200 {
		t.Errorf("%d %s", status, body)
	}
	// Another project has another server.
	other := a.project(map[string]string{"a": "2"})
	other.start("normal")
	other.want(200, "", "did-open", object{"uri": "file://a"})
	p.wantDocuments(`a "1" 1`)
	other.wantDocuments(`a "2" 1`)
	// A relative path is the sandbox's.
	p.id["pathToProject"] = filepath.Base(p.dir) + "/."
	if status, _ := p.hover(fine); status != 200 {
		t.Error("a relative project is another one")
	}
	p.want(200, "{}", "stop", nil)
	p.want(200, "{}", "stop", nil)
	p.want(400, "server not initialized", "hover", object{"uri": "file://a"})
	p.start("normal")
	p.wantDocuments()
	other.wantDocuments(`a "2" 1`)

	// One that cannot.
	poor := a.project(map[string]string{"a": ""})
	poor.start("poor")
	poor.want(501, `"code":"NOT_SUPPORTED"`, "hover", object{"uri": "file://a"})
	poor.want(501, "does not have textDocument/completion", "completions", object{"uri": "file://a"})
	poor.want(501, "does not have workspace/executeCommand", "execute-command", object{"command": "x"})
}

// TestMute: a server that does not get ready is ended, or was not wanted any
// more.
func TestMute(t *testing.T) {
	a := startAgent(t, lsp.Options{StartTimeout: 300 * time.Millisecond})
	for _, how := range []string{"mute", "sleep"} {
		p := a.project(nil)
		p.want(500, "no answer to initialize", "start", object{"command": self(t), "envs": object{behaviour: how}})
	}
	a = startAgent(t, lsp.Options{})
	p := a.project(nil)
	started := make(chan string)
	go func() {
		for { // the other may be there at that moment, if only until it is found to be none
			if status, body := p.post("start", object{"command": self(t), "envs": object{behaviour: "mute"}}); status != 409 {
				started <- body
				return
			}
		}
	}()
	for { // until it is there
		if status, _ := p.post("start", object{"command": []string{"other"}}); status == 409 {
			break
		}
	}
	p.want(200, "{}", "stop", nil)
	if body := <-started; !strings.Contains(body, "server not initialized") {
		t.Error(body)
	}
}

// TestCrashLoop: a server that cannot be started again is given up, and tried
// anew when a client wants it.
func TestCrashLoop(t *testing.T) {
	p := startAgent(t, lsp.Options{}).project(map[string]string{"a": "", "b": "poison"})
	p.start("normal")
	for n := 0; ; n++ {
		status, body := p.hover(crash)
		if status == 500 && strings.Contains(body, "is not started again") && strings.Contains(body, "exit code 3") {
			break
		}
		if n > 5 || status != 503 {
			t.Fatalf("%d: %d %s", n, status, body)
		}
	}
	p.start("normal")
	if status, body := p.hover(fine); status != 200 {
		t.Errorf("%d %s", status, body)
	}
	// A document that ends it ends with that.
	if status, body := p.post("did-open", object{"uri": "file://b"}); status != 200 && status < 500 {
		t.Errorf("%d %s", status, body)
	}
	for range 8 {
		if status, body := p.hover(fine); strings.Contains(body, "is not started again") {
			break
		} else if status == 200 {
			t.Fatal("the poison did nothing")
		}
	}
	once := startAgent(t, lsp.Options{}).project(map[string]string{"a": ""})
	once.start("once")
	if status, body := once.hover(crash); status != 500 || !strings.Contains(body, "not again") {
		t.Errorf("%d %s", status, body)
	}
}

// TestDocuments: what is open is as on the disk, unless a client says otherwise.
func TestDocuments(t *testing.T) {
	p := startAgent(t, lsp.Options{}).project(map[string]string{"a": "a1", "b b%20.x": "b1", "big": strings.Repeat("x", 4<<20+1), "bin": "\xff\xfe"})
	p.start("normal")
	p.want(200, "{}", "did-open", object{"uri": "file://" + p.dir + "/a"})
	p.wantDocuments(`a "a1" 1`)
	p.want(200, "{}", "did-open", object{"uri": "file://a"})
	p.wantDocuments(`a "a1" 1`)
	p.write("a", "a2")
	p.hover(fine)
	p.wantDocuments(`a "a2" 2`)
	p.want(200, "{}", "did-change", object{"uri": "file://a", "text": "mine"})
	p.write("a", "a3")
	p.hover(fine)
	p.wantDocuments(`a "mine" 3`)
	p.want(200, "{}", "did-open", object{"uri": "file://a"})
	p.wantDocuments(`a "a3" 4`)
	p.want(200, "{}", "did-change", object{"uri": "file://a", "text": "unsaved"})
	p.hover(crash) // and what is not saved is not lost
	p.wantDocuments(`a "unsaved" 7`)
	p.want(200, "{}", "did-close", object{"uri": "file://a"})
	p.want(200, "{}", "did-close", object{"uri": "file://a"})
	p.wantDocuments()

	// The same file, however it is written.
	for _, uri := range []string{"file://" + p.dir + "/b b%20.x", "file://" + p.dir + "/b%20b%2520.x", "b b%20.x", "file://./b b%20.x"} {
		p.want(200, "{}", "did-open", object{"uri": uri})
	}
	p.wantDocuments(`b%20b%2520.x "b1" 1`)
	p.want(200, "{}", "did-close", object{"uri": "b b%20.x"})

	if err := unix.Mkfifo(filepath.Join(p.dir, "fifo"), 0o666); err != nil {
		t.Fatal(err)
	}
	for uri, text := range map[string]string{
		"file://nowhere": wire.CodeFileNotFound, "file://a/x": wire.CodeFileNotFound, "file://" + p.dir: "not a regular file", "file://fifo": "not a regular file",
		"file:///proc/self/environ": "not a regular file", "file:///dev/zero": "not a regular file", "": "uri is required", "file://": "uri is required",
		"https://example.com/a": "only files", "file://a\x00": "NUL", "file://" + strings.Repeat("x", 20000): "at most",
	} {
		p.want(400, text, "did-open", object{"uri": uri})
		p.want(400, text, "hover", object{"uri": uri})
	}
	p.want(413, "more than 4194304 bytes", "did-open", object{"uri": "file://big"})
	p.want(413, "at most 4194304", "did-change", object{"uri": "file://a", "text": strings.Repeat("x", 4<<20+1)})
	p.want(400, "text is required", "did-change", object{"uri": "file://a"})
	p.wantDocuments()
	p.want(200, "", "did-open", object{"uri": "file://bin"})
	p.wantDocuments(`bin "` + "\uFFFD" + `" 1`)

	// A file that goes away while it is open.
	if err := os.Remove(filepath.Join(p.dir, "bin")); err != nil {
		t.Fatal(err)
	}
	p.want(400, wire.CodeFileNotFound, "hover", object{"uri": "file://bin"})
	p.wantDocuments()

	// Of those that were only asked about, the last ones stay open.
	for i := range 70 {
		name := fmt.Sprintf("i%02d", i)
		p.write(name, "x")
		p.want(200, "fine", "hover", object{"uri": "file://" + name})
	}
	if got := p.documents(); len(got) != 64 || !strings.HasPrefix(got[0], "i06 ") {
		t.Errorf("%d open, first %v", len(got), got[0])
	}
	for i := range 256 {
		name := fmt.Sprintf("o%03d", i)
		p.want(200, "", "did-change", object{"uri": "file://" + name, "text": "x"})
	}
	p.want(429, "256 documents are open", "did-open", object{"uri": "file://a"})
	for i := range 4 {
		p.want(200, "", "did-change", object{"uri": fmt.Sprintf("file://o%03d", i), "text": strings.Repeat("x", 4<<20-100)})
	}
	p.want(413, "all unsaved documents", "did-change", object{"uri": "file://o005", "text": strings.Repeat("x", 1000)})
}

// TestBeyond: what is not of the public API.
func TestBeyond(t *testing.T) {
	p := startAgent(t, short).project(map[string]string{"a": "first", "q": "quiet"})
	p.start("normal")
	for _, text := range []string{"first", "second"} {
		p.write("a", text)
		p.want(200, `"isIncomplete":false,"items":[{"range":{"start":{"line":0,"character":0},"end":{"line":0,"character":1}},"severity":2,"code":"17","message":"text is `+text, "diagnostics", object{"uri": "file://a"})
	}
	p.want(200, `{"isIncomplete":true,"items":[]}`, "diagnostics", object{"uri": "file://q"})
	at := object{"uri": "file://a", "range": span(0, 0, 0, 0)}
	p.want(200, `[{"title":"lazy","edit":{"changes":[{"kind":"create","uri":"file:///new"},{"kind":"edit","uri":"file:///new","edits":[{"range":{"start":{"line":0,"character":0},"end":{"line":0,"character":0}},"newText":"new"}]},{"kind":"rename","uri":"file:///a","newUri":"file:///b"},{"kind":"delete","uri":"file:///c"}]}},{"title":"bare","command":{"title":"bare","command":"c","arguments":[1]}},{"title":"no","disabled":"not now"}]`, "code-actions", at)
	p.want(200, `{"changes":[{"kind":"edit","uri":"file:///x","edits":[{"range":{"start":{"line":0,"character":0},"end":{"line":0,"character":0}},"newText":"n"}]}]}`, "execute-command", object{"command": "edit"})
	p.want(200, `{"changes":[]}`, "execute-command", object{"command": "nothing"})
	p.want(400, "the language server says: no textDocument/rename", "rename", object{"uri": "file://a", "newName": "x"})
	p.want(400, "newName", "rename", object{"uri": "file://a"})
	p.want(400, "from 0 to", "hover", object{"uri": "file://a", "position": object{"line": -1}})
	p.want(400, "ends before it starts", "code-actions", object{"uri": "file://a", "range": span(1, 0, 0, 9)})
	p.want(400, "tabSize", "formatting", object{"uri": "file://a", "tabSize": 65})

	// Files that are not open: two there, one gone.
	p.want(200, "{}", "did-change-files", object{"uris": []string{"file://a", "file://q", "file://gone"}})
	q := url.Values{"query": {""}, "languageId": {"broken"}, "pathToProject": {p.dir}}
	if _, body := p.call("GET", "/lsp/workspacesymbols?"+q.Encode(), nil); !strings.Contains(body, `"character":7`) {
		t.Error(body)
	}
	p.want(400, "uris", "did-change-files", nil)
}

// TestRights: a server is the sandbox's user's, and so is what is read for it.
func TestRights(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to be another user")
	}
	user, err := account.Lookup("65534:65534")
	if err != nil {
		t.Fatal(err)
	}
	a := startAgent(t, lsp.Options{})
	spawner, err := process.NewSpawner(process.Options{Account: user, WorkDir: a.home, Environ: func() []string { return a.env }})
	if err != nil {
		t.Fatal(err)
	}
	defer spawner.Close()
	service := lsp.New(lsp.Options{Spawner: spawner})
	defer service.Close()
	mux := http.NewServeMux()
	service.Register(mux)
	srv := httptest.NewServer(mux)
	defer srv.Close()
	a.url = srv.URL
	p := a.project(map[string]string{"secret": "s", "server.py": `import sys, json, os
open("been", "w")
while True:
    n = 0
    while (line := sys.stdin.buffer.readline()) != b"\r\n":
        n = int(line.split(b":")[1])
    m = json.loads(sys.stdin.buffer.read(n))
    if "id" in m:
        b = json.dumps({"id": m["id"], "result": {"capabilities": {"hoverProvider": True}}}).encode()
        sys.stdout.buffer.write(b"Content-Length: %d\r\n\r\n" % len(b) + b)
        sys.stdout.buffer.flush()
`})
	for dir := p.dir; dir != "/"; dir = filepath.Dir(dir) {
		if dir == os.TempDir() {
			break
		}
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(p.dir, "secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.want(200, "", "start", object{"command": []string{"/usr/bin/python3", "server.py"}})
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(p.dir, "been"), &st); err != nil || st.Uid != 65534 {
		t.Errorf("the server ran as %d, %v", st.Uid, err)
	}
	p.want(400, wire.CodeFileAccessDenied, "did-open", object{"uri": "file://secret"})
	p.want(400, wire.CodeFileAccessDenied, "hover", object{"uri": "file://secret"})
	p.want(200, "", "did-open", object{"uri": "file://server.py"})
}

// TestEnvironment: a variable of the sandbox names the program of a language.
func TestEnvironment(t *testing.T) {
	a := startAgent(t, lsp.Options{})
	a.env = append(a.env, "DAYTONA_LSP_BROKEN="+self(t)[0]+" -x", behaviour+"=normal")
	p := a.project(map[string]string{"a": ""})
	p.want(200, "", "start", nil)
	if status, body := p.hover(fine); status != 200 {
		t.Errorf("%d %s", status, body)
	}
	p.id["languageId"] = "go"
	a.env = []string{"PATH=/nonexistent"}
	p.want(500, "install one", "start", nil)
}

// TestConcurrent has many clients ask a server that crashes now and then.
func TestConcurrent(t *testing.T) {
	p := startAgent(t, lsp.Options{}).project(map[string]string{"a": "text"})
	p.start("normal")
	p.want(200, "", "did-open", object{"uri": "file://a"})
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for j := range 20 {
				what := fine
				if i == 0 && j == 10 {
					what = crash
				}
				status, body := p.hover(what)
				if status != 200 && !(status == 503 && strings.Contains(body, "exit code 3")) {
					t.Errorf("%d %s", status, body)
				}
			}
		})
	}
	wg.Wait()
	p.wantDocuments(`a "text" 3`)
}
