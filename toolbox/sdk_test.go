package toolbox_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/daytona-go/daytona/toolbox"
	"github.com/daytona-go/daytona/toolbox/wire"
)

// sdkClient is the generated toolbox client of an official SDK, in a process of
// its own.
type sdkClient struct {
	*testing.T
	generation string
	in         io.WriteCloser
	out        *bufio.Reader
}

// startSDK starts the client of the SDK in a directory.
func startSDK(t *testing.T, where, generation, base string) *sdkClient {
	t.Helper()
	driver, err := filepath.Abs("../testdata/sdk/toolbox.cjs")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute) // a client that hangs says nothing
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, "node", driver, where, base)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil && t.Context().Err() == nil {
			t.Errorf("the SDK's process: %v", err)
		}
	})
	return &sdkClient{T: t, generation: generation, in: in, out: bufio.NewReader(out)}
}

// call calls a method of the client, which must be answered with a status, and
// decodes the answer into out unless that is nil.
func (c *sdkClient) call(status int, api, method string, out any, args ...any) {
	c.Helper()
	request, err := json.Marshal(map[string]any{"api": api, "method": method, "args": args})
	if err != nil {
		c.Fatal(err)
	}
	if _, err := c.in.Write(append(request, '\n')); err != nil {
		c.Fatal(err)
	}
	line, err := c.out.ReadBytes('\n')
	if err != nil {
		c.Fatalf("%s.%s: %v", api, method, err)
	}
	var answer struct {
		Status int
		Data   json.RawMessage
		Error  string
	}
	if err := json.Unmarshal(line, &answer); err != nil || answer.Error != "" {
		c.Fatalf("%s.%s: %v %s", api, method, err, answer.Error)
	}
	if answer.Status != status {
		c.Fatalf("%s.%s: status %d, want %d: %s", api, method, answer.Status, status, answer.Data)
	}
	if out != nil {
		if err := json.Unmarshal(answer.Data, out); err != nil {
			c.Fatalf("%s.%s: %v: %s", api, method, err, answer.Data)
		}
	}
}

// options is the last argument of a method.
func options(o map[string]any) map[string]any { return map[string]any{"$options": o} }

type object = map[string]any

// upgrade is the last argument of a method whose answer is a WebSocket. The
// client cannot speak it: it asks for the handshake, and sees that it is granted.
var upgrade = object{"$upgrade": object{
	"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}}

// TestSDKClients calls the agent through the generated clients of both
// generations' SDKs. Every operation of their specs must have been called, and
// answered with success. The Python SDK only has what is most its own: the paths
// that it makes URIs of.
func TestSDKClients(t *testing.T) {
	ops := readOperations(t)
	var mu sync.Mutex
	proven := map[string]bool{}
	all := true
	for _, sdk := range []struct{ variable, generation string }{{"DAYTONA_TEST_SDK_TS", "0.205"}, {"DAYTONA_TEST_SDK_TS190", "0.190"}, {"DAYTONA_TEST_SDK_PY", "py"}} {
		where := os.Getenv(sdk.variable)
		ran := t.Run(sdk.generation, func(t *testing.T) {
			if where == "" {
				t.Skipf("%s does not say where the SDK is", sdk.variable)
			}
			dir, home := t.TempDir(), t.TempDir()
			path := os.Getenv("DAYTONA_TEST_LSP") + ":" + os.Getenv("PATH")
			s, err := toolbox.New(t.Context(), toolbox.Config{
				Version: "v1.2.3", WorkDir: dir, Entrypoint: []string{"/bin/sh", "-c", "echo from the entrypoint"},
				// What an SDK cannot say, the sandbox's environment does.
				Env: map[string]string{"HOME": home, "PATH": path, "DAYTONA_LSP_PYTHON": "pyright-langserver --stdio"},
			}, nil)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { s.Close() })
			handler := s.Handler()
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				note := &statusWriter{ResponseWriter: w}
				defer func() {
					if name := operationOf(ops, r); name != "" && note.status < 400 {
						mu.Lock()
						proven[name] = true
						mu.Unlock()
					}
				}()
				handler.ServeHTTP(note, r)
			}))
			t.Cleanup(server.Close)
			all = sdkLanguageServer(t, sdk.generation, where, server.URL, dir, path) && all
			if sdk.generation == "py" {
				return
			}
			c := startSDK(t, where, sdk.generation, server.URL)
			sdkInfo(c, dir)
			sdkFiles(c, dir)
			sdkProcesses(c)
			sdkPTYs(c)
			sdkInterpreter(c)
			sdkGit(c, dir, home)
			sdkPorts(c)
			all = sdkDesktop(c, server.URL) && all
			if sdk.generation == "0.205" {
				sdkFileURLs(c, server.URL)
			}
			// Last: from now on requests need the token, which this client does not have.
			c.call(200, "ServerApi", "initialize", nil, object{"token": "secret"})
			c.call(401, "InfoApi", "getVersion", nil)
		})
		all = all && ran && where != ""
	}
	if !all {
		return
	}
	for _, op := range ops {
		if !proven[op.name] {
			t.Errorf("no SDK's client called %s with success", op.name)
		}
	}
}

// statusWriter notes the status of an answer.
type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// operationOf finds the operation that a request is for: the one with the most
// names of its own.
func operationOf(ops []operation, r *http.Request) (found string) {
	have := strings.Split(strings.TrimSuffix(r.URL.Path, "/"), "/")
	most := -1
	for _, op := range ops {
		method, path, _ := strings.Cut(op.name, " ")
		want := strings.Split(path, "/")
		if method != r.Method || len(want) != len(have) {
			continue
		}
		own := 0
		for i := range want {
			if want[i] == have[i] {
				own++
			} else if !strings.HasPrefix(want[i], "{") {
				own = -1 << 10
			}
		}
		if own > most && own >= 0 {
			found, most = op.name, own
		}
	}
	return found
}

func sdkInfo(c *sdkClient, dir string) {
	var d wire.Dir
	var v wire.Version
	c.call(200, "InfoApi", "getVersion", &v)
	if v.Version != "v1.2.3" {
		c.Errorf("version %q", v.Version)
	}
	c.call(200, "InfoApi", "getUserHomeDir", &d)
	if !strings.HasPrefix(d.Dir, "/") {
		c.Errorf("home %q", d.Dir)
	}
	c.call(200, "InfoApi", "getWorkDir", &d)
	if d.Dir != dir {
		c.Errorf("working directory %q, want %q", d.Dir, dir)
	}
	if c.generation == "0.205" {
		c.call(200, "ServerApi", "updateEnv", nil, object{"set": object{"FROM_SDK": "yes"}})
		var r wire.ExecuteResponse
		c.call(200, "ProcessApi", "executeCommand", &r, object{"command": "printenv FROM_SDK"})
		if r.Result != "yes\n" {
			c.Errorf("the variable is %q", r.Result)
		}
		c.call(400, "ServerApi", "updateEnv", nil, object{"set": object{"A=B": ""}})
		var m wire.SystemMetrics
		c.call(200, "SystemApi", "getSystemMetrics", &m)
		if m.CPUCount < 1 || m.MemTotal <= 0 || m.MemUsed <= 0 || m.DiskTotal <= 0 || m.TimestampUnix == 0 {
			c.Errorf("metrics %+v", m)
		}
	}
	var e wire.ErrorResponse
	c.call(400, "ServerApi", "initialize", &e, object{"token": ""})
	if e.StatusCode != 400 || e.Code != "BAD_REQUEST" {
		c.Errorf("error %+v", e)
	}
}

func sdkFiles(c *sdkClient, dir string) {
	const api = "FileSystemApi"
	c.call(201, api, "createFolder", nil, "d", "0750")
	c.call(200, api, "uploadFile", nil, "d/a.txt", object{"$file": "one two\nthree\n"})
	b, err := os.ReadFile(dir + "/d/a.txt")
	if err != nil || string(b) != "one two\nthree\n" {
		c.Errorf("uploaded: %q %v", b, err)
	}
	var text string
	c.call(200, api, "downloadFile", &text, "d/a.txt", options(object{"responseType": "text"}))
	if text != "one two\nthree\n" {
		c.Errorf("downloaded: %q", text)
	}
	var e wire.ErrorResponse
	c.call(404, api, "downloadFile", &e, "nothing", options(object{"responseType": "json"}))
	if e.Code != wire.CodeFileNotFound {
		c.Errorf("error %+v", e)
	}
	var infos []wire.FileInfo
	list := []any{"d"}
	c.call(200, api, "listFiles", &infos, list...)
	if len(infos) != 1 || infos[0].Name != "a.txt" || infos[0].Size != 14 {
		c.Errorf("list: %+v", infos)
	}
	var info wire.FileInfo
	c.call(200, api, "getFileInfo", &info, "d/a.txt")
	if info.Permissions != "0644" || info.IsDir {
		c.Errorf("info: %+v", info)
	}
	c.call(200, api, "setFilePermissions", nil, "d/a.txt", nil, nil, "0600")
	c.call(200, api, "getFileInfo", &info, "d/a.txt")
	if info.Permissions != "0600" {
		c.Errorf("after chmod: %+v", info)
	}
	var found wire.SearchFilesResponse
	c.call(200, api, "searchFiles", &found, "d", "*.txt")
	if len(found.Files) != 1 || !strings.HasSuffix(found.Files[0], "d/a.txt") {
		c.Errorf("search: %+v", found)
	}
	var matches []wire.Match
	c.call(200, api, "findInFiles", &matches, "d", "three")
	if len(matches) != 1 || matches[0].Line != 2 || matches[0].Content != "three" {
		c.Errorf("find: %+v", matches)
	}
	var replaced []wire.ReplaceResult
	c.call(200, api, "replaceInFiles", &replaced, object{"files": []string{"d/a.txt", "none"}, "pattern": "two", "newValue": "2"})
	if len(replaced) != 2 || !replaced[0].Success || replaced[1].Success {
		c.Errorf("replace: %+v", replaced)
	}
	c.call(200, api, "downloadFiles", &text, object{"paths": []string{"d/a.txt"}}, options(object{"responseType": "text"}))
	if !strings.Contains(text, "one 2\nthree\n") || !strings.Contains(text, wire.DownloadBoundary) {
		c.Errorf("bulk download: %q", text)
	}
	// The generated method has no parameter for the files: the SDK gives the form as the body.
	c.call(200, api, "uploadFiles", nil, options(object{
		"headers": object{"Content-Type": "multipart/form-data; boundary=xyz"},
		"data": "--xyz\r\nContent-Disposition: form-data; name=\"files[0].path\"\r\n\r\nd/b.txt\r\n" +
			"--xyz\r\nContent-Disposition: form-data; name=\"files[0].file\"; filename=\"b\"\r\n\r\nb\r\n--xyz--\r\n",
	}))
	if b, err := os.ReadFile(dir + "/d/b.txt"); err != nil || string(b) != "b" {
		c.Errorf("bulk upload: %q %v", b, err)
	}
	c.call(200, api, "moveFile", nil, "d/b.txt", "c.txt")
	c.call(409, api, "moveFile", nil, "c.txt", "d/a.txt")
	c.call(204, api, "deleteFile", nil, "c.txt")
	c.call(400, api, "deleteFile", nil, "d")
	c.call(204, api, "deleteFile", nil, "d", true)
}

func sdkProcesses(c *sdkClient) {
	const api = "ProcessApi"
	var r wire.ExecuteResponse
	c.call(200, api, "executeCommand", &r, object{"command": "echo out; echo err >&2; exit 3"})
	if r.ExitCode != 3 || r.Result != "out\nerr\n" {
		c.Errorf("execute: %+v", r)
	}
	c.call(408, api, "executeCommand", nil, object{"command": "sleep 60", "timeout": 1})
	c.call(400, api, "executeCommand", nil, object{"command": ""})
	c.call(200, api, "codeRun", &r, object{"code": "print(6*7)", "language": "python"})
	if r.ExitCode != 0 || strings.TrimSpace(r.Result) != "42" {
		c.Errorf("code: %+v", r)
	}

	c.call(201, api, "createSession", nil, object{"sessionId": "s"})
	c.call(409, api, "createSession", nil, object{"sessionId": "s"})
	var done struct {
		CmdID    string `json:"cmdId"`
		Stdout   string
		ExitCode *int
	}
	c.call(200, api, "sessionExecuteCommand", &done, "s", object{"command": "echo hello"})
	if done.ExitCode == nil || *done.ExitCode != 0 || done.CmdID == "" {
		c.Errorf("session exec: %+v", done)
	}
	var logs json.RawMessage
	c.call(200, api, "getSessionCommandLogs", &logs, "s", done.CmdID)
	if !strings.Contains(string(logs), "hello") {
		c.Errorf("logs: %s", logs)
	}
	c.call(202, api, "sessionExecuteCommand", &done, "s", object{"command": "read x; echo got $x", "runAsync": true})
	c.call(204, api, "sendInput", nil, "s", done.CmdID, object{"data": "a line"})
	var sessions []struct{ SessionID string }
	c.call(200, api, "listSessions", &sessions)
	if !slices.ContainsFunc(sessions, func(s struct{ SessionID string }) bool { return s.SessionID == "s" }) {
		c.Errorf("sessions: %+v", sessions)
	}
	var session struct{ Commands []struct{ Command string } }
	c.call(200, api, "getSession", &session, "s")
	if len(session.Commands) != 2 || session.Commands[0].Command != "echo hello" {
		c.Errorf("session: %+v", session)
	}
	var command struct{ ID, Command string }
	c.call(200, api, "getSessionCommand", &command, "s", done.CmdID)
	if command.ID != done.CmdID {
		c.Errorf("command: %+v", command)
	}
	c.call(204, api, "deleteSession", nil, "s")
	c.call(404, api, "getSession", nil, "s")

	c.call(200, api, "getEntrypointSession", nil)
	c.call(200, api, "getEntrypointLogs", &logs)
}

func sdkPTYs(c *sdkClient) {
	const api = "ProcessApi"
	c.call(201, api, "createPtySession", nil, object{"id": "p", "cols": 90, "rows": 30, "lazyStart": false})
	c.call(409, api, "createPtySession", nil, object{"id": "p"})
	var info wire.PTYInfo
	c.call(200, api, "getPtySession", &info, "p")
	if info.Cols != 90 || info.Rows != 30 || !info.Active {
		c.Errorf("terminal: %+v", info)
	}
	var list struct{ Sessions []wire.PTYInfo }
	c.call(200, api, "listPtySessions", &list)
	if len(list.Sessions) != 1 {
		c.Errorf("terminals: %+v", list)
	}
	c.call(200, api, "resizePtySession", &info, "p", object{"cols": 100, "rows": 40})
	if info.Cols != 100 || info.Rows != 40 {
		c.Errorf("resized: %+v", info)
	}
	c.call(101, api, "connectPtySession", nil, "p", upgrade)
	c.call(200, api, "deletePtySession", nil, "p")
	c.call(404, api, "getPtySession", nil, "p")
}

func sdkInterpreter(c *sdkClient) {
	const api = "InterpreterApi"
	var made wire.InterpreterContext
	c.call(200, api, "createInterpreterContext", &made, object{"language": "python", "cwd": "/"})
	if made.ID == "" || made.Cwd != "/" || made.Language != "python" || !made.Active {
		c.Errorf("context: %+v", made)
	}
	c.call(400, api, "createInterpreterContext", nil, object{"language": "cobol"})
	var list wire.InterpreterContexts
	c.call(200, api, "listInterpreterContexts", &list)
	if len(list.Contexts) != 1 || list.Contexts[0].ID != made.ID {
		c.Errorf("contexts: %+v", list)
	}
	c.call(101, api, "executeInterpreterCode", nil, upgrade)
	c.call(426, api, "executeInterpreterCode", nil)
	c.call(200, api, "deleteInterpreterContext", nil, made.ID)
	c.call(404, api, "deleteInterpreterContext", nil, made.ID)
}

func sdkPorts(c *sdkClient) {
	var l net.Listener
	var port int
	for port = 3100; l == nil && port < 9000; port++ {
		l, _ = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	}
	if l == nil {
		c.Fatal("no port is free")
	}
	defer l.Close()
	port--
	var ports wire.PortList
	c.call(200, "PortApi", "getPorts", &ports)
	if !slices.Contains(ports.Ports, port) {
		c.Errorf("ports %v lack %d", ports.Ports, port)
	}
	var used wire.IsPortInUse
	c.call(200, "PortApi", "isPortInUse", &used, port)
	if !used.IsInUse {
		c.Errorf("port %d is not in use", port)
	}
	c.call(400, "PortApi", "isPortInUse", nil, 80)
}

// sdkFileURLs has the agent take what the SDK signs.
func sdkFileURLs(c *sdkClient, base string) {
	c.call(200, "ProcessApi", "executeCommand", nil, object{"command": "mkdir 'a b'; echo signed > 'a b/ü&'"})
	post := func(path, body string) {
		resp, err := http.Post(base+path, "application/json", strings.NewReader(body))
		if err != nil || resp.StatusCode != 200 {
			c.Fatalf("%s: %v %v", path, resp, err)
		}
		resp.Body.Close()
	}
	post(wire.SigningKeyPath, `{"key":"the-key"}`)
	for ttl, want := range map[int]int{0: 200, 60: 200} {
		var url string
		c.call(200, "fileUrlSigning", "buildSignedFileUrl", &url, base, ".", "/files/download", "GET", "a b/ü&", "the-key", ttl)
		resp, err := http.Get(strings.Replace(url, "/./", "/", 1))
		if err != nil {
			c.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != want || string(b) != "signed\n" {
			c.Errorf("ttl %d: %d %s", ttl, resp.StatusCode, b)
		}
	}
	var url string
	c.call(200, "fileUrlSigning", "buildSignedFileUrl", &url, base, ".", "/files/upload-v2", "POST", "new", "the-key", 60)
	post(strings.TrimPrefix(strings.Replace(url, "/./", "/", 1), base), "content")
	c.call(200, "fileUrlSigning", "buildSignedFileUrl", &url, base, ".", "/files/upload-v2", "POST", "new", "another key", 60)
	if resp, err := http.Post(strings.Replace(url, "/./", "/", 1), "text/plain", nil); err != nil || resp.StatusCode != 403 {
		c.Errorf("with another key: %v %v", resp, err)
	} else {
		resp.Body.Close()
	}
}
