package process_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/daytona-go/daytona/toolbox/account"
	"github.com/daytona-go/daytona/toolbox/process"
	"github.com/daytona-go/daytona/toolbox/wire"
)

const newest = "0.190.0"

func (a *agent) createSession(id string, header ...string) {
	a.t.Helper()
	if status, body := a.call("POST", "/process/session", wire.CreateSessionRequest{SessionID: id}, header...); status != 201 {
		a.t.Fatalf("create session %q: %d %s", id, status, body)
	}
}

// run runs a command in a session and waits for it.
func (a *agent) run(id, command string) wire.SessionExecuteResponse {
	a.t.Helper()
	status, body := a.call("POST", "/process/session/"+id+"/exec", wire.SessionExecuteRequest{Command: command}, wire.HeaderSDKVersion, newest)
	if status != 200 {
		a.t.Fatalf("%q: %d %s", command, status, body)
	}
	return parse[wire.SessionExecuteResponse](a.t, body)
}

func (a *agent) begin(id, command string) string {
	a.t.Helper()
	status, body := a.call("POST", "/process/session/"+id+"/exec", wire.SessionExecuteRequest{Command: command, RunAsync: true})
	if status != 202 {
		a.t.Fatalf("%q: %d %s", command, status, body)
	}
	return parse[wire.SessionExecuteResponse](a.t, body).CommandID
}

func parse[T any](t testing.TB, body string) (v T) {
	t.Helper()
	if err := json.Unmarshal([]byte(body), &v); err != nil {
		t.Fatalf("%v: %.500s", err, body)
	}
	return v
}

// wait waits until a command has an exit code.
func (a *agent) wait(session, command string) int {
	a.t.Helper()
	a.followTo(io.Discard, session, command)
	_, body := a.call("GET", "/process/session/"+session+"/command/"+command, nil)
	c := parse[wire.Command](a.t, body)
	if c.ExitCode == nil {
		a.t.Fatalf("no exit code although the log has ended: %s", body)
	}
	return *c.ExitCode
}

func (a *agent) dial(path string, opts *websocket.DialOptions) (*websocket.Conn, *http.Response, error) {
	if opts == nil {
		opts = &websocket.DialOptions{}
	}
	opts.HTTPClient = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", a.socket)
	}}}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	ws, resp, err := websocket.Dial(ctx, "ws://agent"+path, opts)
	if ws != nil {
		ws.SetReadLimit(1 << 20)
	}
	return ws, resp, err
}

// follow reads a log over a WebSocket to its end.
func (a *agent) follow(session, command string, header ...string) string {
	a.t.Helper()
	var b strings.Builder
	a.followTo(&b, session, command, header...)
	return b.String()
}

func (a *agent) followTo(w io.Writer, session, command string, header ...string) {
	a.t.Helper()
	opts := &websocket.DialOptions{HTTPHeader: http.Header{}}
	opts.HTTPHeader.Set(wire.HeaderSDKVersion, newest)
	for i := 0; i+1 < len(header); i += 2 {
		opts.HTTPHeader.Set(header[i], header[i+1])
	}
	ws, _, err := a.dial("/process/session/"+session+"/command/"+command+"/logs?follow=true", opts)
	if err != nil {
		a.t.Fatal(err)
	}
	defer ws.CloseNow()
	for {
		typ, p, err := ws.Read(a.t.Context())
		if websocket.CloseStatus(err) == websocket.StatusNormalClosure {
			return
		}
		if err != nil || typ != websocket.MessageBinary {
			a.t.Fatalf("follow: %v, %v", typ, err)
		}
		w.Write(p)
	}
}

func TestSession(t *testing.T) {
	bash := account.Current()
	shells := map[string]process.Options{"self": {Account: bash}}
	for _, sh := range []string{"/bin/dash", "/usr/bin/busybox"} {
		if _, err := os.Stat(sh); err == nil {
			other := *bash
			other.Shell = sh
			shells[filepath.Base(sh)] = process.Options{Account: &other}
		}
	}
	for name, opts := range identities(t) {
		shells[name] = opts
	}
	for name, opts := range shells {
		t.Run(name, func(t *testing.T) {
			a := startAgent(t, opts)
			a.createSession("s")
			for _, c := range []struct {
				command, stdout, stderr string
				code                    int
			}{
				{"echo hello; echo error >&2", "hello\n", "error\n", 0},
				{"cd /usr; export FOO='a b'; BAR=c; f() { echo f $1; }", "", "", 0},
				{"pwd; echo $FOO $BAR; f x", "/usr\na b c\nf x\n", "", 0},
				{"(exit 7)", "", "", 7},
				{"echo $?", "0\n", "", 0}, // of the machinery, not of the command before
				{"cat <<'EOF'\nit's $HOME \"x\"\nEOF\necho after", "it's $HOME \"x\"\nafter\n", "", 0},
				{"cat <<EOF\nunterminated is fine too\nEOF", "unterminated is fine too\n", "", 0},
				{"cat; read x; echo \"<$x>\"", "<>\n", "", 0},
				{"printf 'no newline'", "no newline", "", 0},
				{"printf out; printf err >&2", "out", "err", 0},
				{"for i in 1 2 3\ndo\n  echo $i\ndone # comment", "1\n2\n3\n", "", 0},
				{"echo a \\\n  b", "a b\n", "", 0},
				{"printf '\\001\\001\\001\\002\\002\\002\\n'", "\x01\x01\x01\x02\x02\x02\n", "", 0},
				{"ls /proc/self/fd", "0\n1\n2\n3\n", "", 0},
				{"printf() { echo mine; }; echo() { :; }", "", "", 0},
				{"unset -f printf echo; echo back", "back\n", "", 0},
				{"set -u; set -C; IFS=0123456789; PATH=/nowhere", "", "", 0},
				{"PATH=/usr/bin:/bin; IFS=' '; set +u; echo ok", "ok\n", "", 0},
				{"exec 5>/dev/null; exec 9>/dev/null; echo x >&9", "", "", 0},
				{"echo y >&9; exec 5>&- 9>&-; exec >/dev/null; echo lost", "", "", 0},
				{"echo found", "found\n", "", 0},
			} {
				got := a.run("s", c.command)
				if *got.ExitCode != c.code || *got.Stdout != c.stdout || *got.Stderr != c.stderr {
					t.Errorf("%q: code %d, stdout %q, stderr %q; want %d, %q, %q", c.command, *got.ExitCode, *got.Stdout, *got.Stderr, c.code, c.stdout, c.stderr)
				}
			}
			if got := a.run("s", "if true; then"); *got.ExitCode == 0 || !strings.Contains(strings.ToLower(*got.Stderr), "syntax error") {
				t.Errorf("syntax error: %d %q", *got.ExitCode, *got.Stderr)
			}
			if got := a.run("s", "no-such-program"); *got.ExitCode != 127 || !strings.Contains(*got.Stderr, "not found") {
				t.Errorf("unknown program: %d %q", *got.ExitCode, *got.Stderr)
			}
			long := "echo begin\n" + strings.Repeat("# nothing\n", 20_000) + "LONG=yes; cat; (exit 9)"
			if got := a.run("s", long); *got.ExitCode != 9 || *got.Stdout != "begin\n" {
				t.Errorf("long command: %+v", got)
			}
			if got := a.run("s", "echo $LONG"); *got.Stdout != "yes\n" {
				t.Errorf("state after a long command: %q", *got.Stdout)
			}
			if opts.Account.UID != os.Getuid() {
				if got := a.run("s", "id -u"); *got.Stdout != fmt.Sprintln(opts.Account.UID) {
					t.Errorf("id: %q", *got.Stdout)
				}
			}
			_, body := a.call("GET", "/process/session/s", nil)
			if s := parse[wire.Session](t, body); s.SessionID != "s" || len(s.Commands) < 20 || s.Commands[0].Command != "echo hello; echo error >&2" {
				t.Errorf("session: %.300s", body)
			}
			if status, _ := a.call("DELETE", "/process/session/s", nil); status != 204 {
				t.Errorf("delete: %d", status)
			}
			if status, _ := a.call("GET", "/process/session/s", nil); status != 404 {
				t.Errorf("get after delete: %d", status)
			}
		})
	}
}

func TestSessionErrors(t *testing.T) {
	a := startAgent(t, process.Options{})
	a.createSession("s")
	for _, c := range []struct {
		method, path, body string
		status             int
		message            string
	}{
		{"POST", "/process/session", `{"sessionId":"s"}`, 409, "conflict: "},
		{"POST", "/process/session", `{"sessionId":"entrypoint"}`, 400, "bad request: "},
		{"POST", "/process/session", `{}`, 400, "bad request: "},
		{"POST", "/process/session", `{`, 400, "invalid body request: "},
		{"GET", "/process/session/none", "", 404, "not found: "},
		{"DELETE", "/process/session/none", "", 404, "not found: "},
		{"DELETE", "/process/session/entrypoint", "", 400, "bad request: "},
		{"POST", "/process/session/none/exec", `{"command":"true"}`, 404, "not found: "},
		{"POST", "/process/session/s/exec", `{"command":""}`, 400, "bad request: "},
		{"POST", "/process/session/entrypoint/exec", `{"command":"true"}`, 400, "bad request: "},
		{"GET", "/process/session/s/command/none", "", 404, "not found: "},
		{"GET", "/process/session/s/command/none/logs", "", 404, "not found: "},
		{"POST", "/process/session/s/command/none/input", `{"data":"x"}`, 404, "not found: "},
		{"GET", "/process/session/entrypoint", "", 404, "not found: "},
		{"GET", "/process/session/entrypoint/logs", "", 404, "not found: "},
	} {
		status, body := a.call(c.method, c.path, c.body)
		if e := parse[wire.ErrorResponse](t, body); status != c.status || !strings.HasPrefix(e.Message, c.message) {
			t.Errorf("%s %s %s: %d %s", c.method, c.path, c.body, status, body)
		}
	}
	if _, body := a.call("GET", "/process/session", nil); body != `[{"sessionId":"s","commands":[]}]`+"\n" {
		t.Errorf("list: %s", body)
	}
}

// The forms of logs for clients of different ages, byte for byte.
func TestLogFormats(t *testing.T) {
	a := startAgent(t, process.Options{})
	// The streams are separate pipes: each step waits until the one before is
	// in the log.
	const command = `step() { while [ ! -e $1 ]; do sleep 0.01; done; }; printf 'one\ntwo'; step DIR/1; printf 'err\n' >&2; step DIR/2; printf 'three\n'`
	const marked = "\x01\x01\x01one\n\x01\x01\x01two\x02\x02\x02err\n\x01\x01\x01three\n"
	const plain = "one\ntwoerr\nthree\n"
	jsonMarked := strings.NewReplacer("\x01", `\u0001`, "\x02", `\u0002`, "\n", `\n`).Replace(marked)
	jsonPlain := strings.ReplaceAll(plain, "\n", `\n`)
	apart := `,"stdout":"one\ntwothree\n","stderr":"err\n"`
	for i, c := range []struct {
		header    []string
		exec, log string
		follow    string
	}{
		{nil, `"output":"` + jsonPlain + `"`, plain, plain},
		{[]string{wire.HeaderSDKVersion, "0.26.9"}, `"output":"` + jsonPlain + `"`, plain, plain},
		{[]string{wire.HeaderSDKVersion, "nonsense"}, `"output":"` + jsonPlain + `"`, plain, plain},
		{[]string{wire.HeaderSplitOutput, "true"}, `"output":"` + jsonMarked + `"`, marked, marked},
		{[]string{wire.HeaderSDKVersion, "0.27.0-alpha.1"}, `"output":"` + jsonMarked + `"`, marked, marked},
		{[]string{wire.HeaderSDKVersion, "v0.100.3"}, `"output":"` + jsonMarked + `"`, marked, marked},
		{[]string{wire.HeaderSDKVersion, "0.166.99"}, `"output":"` + jsonMarked + `"`, marked, marked},
		{[]string{wire.HeaderSDKVersion, "0.167.0-alpha.1"}, `"output":"` + jsonMarked + `"` + apart, `{"output":"` + jsonMarked + `"` + apart + "}\n", marked},
		{[]string{wire.HeaderSDKVersion, "0.190.0"}, `"output":"` + jsonMarked + `"` + apart, `{"output":"` + jsonMarked + `"` + apart + "}\n", marked},
		{[]string{wire.HeaderSDKVersion, "0.0.0-dev"}, `"output":"` + jsonMarked + `"` + apart, `{"output":"` + jsonMarked + `"` + apart + "}\n", marked},
	} {
		t.Run(fmt.Sprint(c.header), func(t *testing.T) {
			id := fmt.Sprintf("s%d", i)
			a.createSession(id)
			dir := passable(t)
			go func() {
				for i, seen := range []string{"two", "err\n"} {
					for {
						_, body, err := a.try(t.Context(), "GET", "/process/session/"+id, nil)
						var s wire.Session
						if err != nil || json.Unmarshal([]byte(body), &s) != nil {
							return
						}
						if len(s.Commands) > 0 {
							_, log, err := a.try(t.Context(), "GET", "/process/session/"+id+"/command/"+s.Commands[0].ID+"/logs", nil)
							if err != nil {
								return
							}
							if strings.HasSuffix(log, seen) {
								break
							}
						}
					}
					os.WriteFile(fmt.Sprint(dir, "/", i+1), nil, 0o644)
				}
			}()
			_, body := a.call("POST", "/process/session/"+id+"/exec", wire.SessionExecuteRequest{Command: strings.ReplaceAll(command, "DIR", dir)}, c.header...)
			cmd := parse[wire.SessionExecuteResponse](t, body).CommandID
			if want := `{"cmdId":"` + cmd + `",` + c.exec + `,"exitCode":0}` + "\n"; body != want {
				t.Errorf("exec:\n got %s\nwant %s", body, want)
			}
			if _, log := a.call("GET", "/process/session/"+id+"/command/"+cmd+"/logs", nil, c.header...); log != c.log {
				t.Errorf("logs:\n got %q\nwant %q", log, c.log)
			}
			if _, log := a.call("GET", "/process/session/"+id+"/command/"+cmd+"/logs?follow=true", nil, c.header...); log != c.follow {
				t.Errorf("logs, follow without upgrade:\n got %q\nwant %q", log, c.follow)
			}
			header := append([]string{wire.HeaderSDKVersion, ""}, c.header...)
			if log := a.follow(id, cmd, header...); log != c.follow {
				t.Errorf("logs, WebSocket:\n got %q\nwant %q", log, c.follow)
			}
		})
	}
}

func TestSessionStartDirectory(t *testing.T) {
	user := *account.Current()
	user.Home = passable(t)
	a := startAgent(t, process.Options{Account: &user})
	for version, inHome := range map[string]bool{"0.102.9": true, "0.103.0-alpha": false, "0.190.0": false, "": false} {
		id := "s" + version
		a.createSession(id, wire.HeaderSDKVersion, version)
		if got := *a.run(id, "pwd").Stdout; (got == user.Home+"\n") != inHome {
			t.Errorf("version %q starts in %q", version, got)
		}
	}
}

func TestSessionInput(t *testing.T) {
	a := startAgent(t, process.Options{})
	a.createSession("s")
	input := func(cmd, data string) int {
		status, _ := a.call("POST", "/process/session/s/command/"+cmd+"/input", wire.SessionInputRequest{Data: data})
		return status
	}
	cmd := a.begin("s", `printf 'name? '; read name; echo "hello $name"; read age; echo "age $age"`)
	if status := input(cmd, "Ada"); status != 204 {
		t.Fatalf("input: %d", status)
	}
	if status := input(cmd, "36\n"); status != 204 {
		t.Fatalf("input: %d", status)
	}
	if code := a.wait("s", cmd); code != 0 {
		t.Errorf("exit code %d", code)
	}
	_, body := a.call("GET", "/process/session/s/command/"+cmd+"/logs", nil, wire.HeaderSDKVersion, newest)
	out := parse[wire.SessionLogs](t, body).Stdout
	for _, want := range []string{"name? ", "Ada\n", "hello Ada\n", "36\n", "age 36\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("log %q lacks %q", out, want)
		}
	}
	if status := input(cmd, "late"); status != 410 {
		t.Errorf("input after the end: %d", status)
	}
	_, body = a.call("POST", "/process/session/s/exec", wire.SessionExecuteRequest{Command: "read x; echo got $x", Async: true, SuppressInputEcho: true})
	cmd = parse[wire.SessionExecuteResponse](t, body).CommandID
	if body != `{"cmdId":"`+cmd+`"}`+"\n" {
		t.Errorf("async answer: %s", body)
	}
	input(cmd, "quiet")
	a.wait("s", cmd)
	_, body = a.call("GET", "/process/session/s/command/"+cmd+"/logs", nil, wire.HeaderSDKVersion, newest)
	if out := parse[wire.SessionLogs](t, body).Stdout; out != "got quiet\n" {
		t.Errorf("log with suppressed echo: %q", out)
	}
}

func TestSessionEnds(t *testing.T) {
	a := startAgent(t, process.Options{})
	a.createSession("s")
	if got := a.run("s", "echo bye; exit 3"); *got.ExitCode != 3 || *got.Stdout != "bye\n" {
		t.Errorf("exit 3: %+v", got)
	}
	status, body := a.call("POST", "/process/session/s/exec", wire.SessionExecuteRequest{Command: "true"})
	if e := parse[wire.ErrorResponse](t, body); status != 410 || e.Code != wire.CodeSessionEnded || !strings.HasPrefix(e.Message, "gone: ") {
		t.Errorf("command for an ended session: %d %s", status, body)
	}
	a.createSession("killed")
	if got := a.run("killed", "kill -9 $$"); *got.ExitCode != 137 {
		t.Errorf("shell killed by its command: %+v", got)
	}
	a.createSession("set-e")
	if got := a.run("set-e", "set -e; false; echo not here"); *got.ExitCode != 1 || *got.Stdout != "" {
		t.Errorf("set -e: %+v", got)
	}
}

func TestSessionDelete(t *testing.T) {
	a := startAgent(t, process.Options{})
	dir := passable(t)
	for name, script := range escapes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(dir, strings.ReplaceAll(name, " ", "-"))
			id := strings.ReplaceAll(name, " ", "-")
			a.createSession(id)
			result := make(chan string)
			go func() {
				_, body, err := a.try(context.Background(), "POST", "/process/session/"+id+"/exec", wire.SessionExecuteRequest{Command: strings.ReplaceAll(script, "PIDS", file)})
				result <- fmt.Sprint(body, err)
			}()
			pids := readPIDs(t, file, 1)
			begin := time.Now()
			if status, body := a.call("DELETE", "/process/session/"+id, nil); status != 204 {
				t.Errorf("delete: %d %s", status, body)
			}
			took := time.Since(begin)
			for _, pid := range pids {
				if alive(pid) {
					t.Errorf("process %d is alive after the deletion", pid)
					syscall.Kill(pid, syscall.SIGKILL)
				}
			}
			if name == "ignores signals" {
				if took < 4*time.Second || took > 7*time.Second {
					t.Errorf("deletion took %v: SIGTERM, 5 s, SIGKILL", took)
				}
			} else if took > 3*time.Second {
				t.Errorf("deletion took %v", took)
			}
			if got := <-result; !strings.Contains(got, "session cancelled") || !strings.Contains(got, `"statusCode":400`) {
				t.Errorf("waiting command: %s", got)
			}
		})
	}
}

// A queue of commands, a follower for each, and output of the background.
func TestSessionManyCommands(t *testing.T) {
	a := startAgent(t, process.Options{})
	a.createSession("s")
	a.run("s", "n=0; (sleep 0.3; echo late) &")
	var ids []string
	for i := range 100 {
		ids = append(ids, a.begin("s", fmt.Sprintf("n=$((n+1)); echo %d $n; echo e%d >&2; (exit %d)", i, i, i)))
	}
	var wg sync.WaitGroup
	for i, id := range ids {
		wg.Go(func() {
			if code := a.wait("s", id); code != i {
				t.Errorf("command %d: exit code %d", i, code)
			}
			_, body := a.call("GET", "/process/session/s/command/"+id+"/logs", nil, wire.HeaderSDKVersion, newest)
			if l := parse[wire.SessionLogs](t, body); l.Stdout != fmt.Sprintf("%d %d\n", i, i+1) || l.Stderr != fmt.Sprintf("e%d\n", i) {
				t.Errorf("command %d: %s", i, body)
			}
		})
	}
	wg.Wait()
}

// 100 MB through a session: all of it for a follower, the log bounded, and the
// agent's memory too.
func TestSessionLargeOutput(t *testing.T) {
	a := startAgent(t, process.Options{LogLimit: 8 << 20})
	a.createSession("s")
	before := memory(t)
	const lines = 100_000
	cmd := a.begin("s", fmt.Sprintf(`line=$(head -c 1000 /dev/zero | tr '\0' x); i=0; yes "$line" | head -n %d; printf 'end without newline'`, lines))
	ws, _, err := a.dial("/process/session/s/command/"+cmd+"/logs?follow=true", &websocket.DialOptions{HTTPHeader: http.Header{wire.HeaderSDKVersion: {newest}}})
	if err != nil {
		t.Fatal(err)
	}
	defer ws.CloseNow()
	total := 0
	for {
		_, p, err := ws.Read(t.Context())
		if websocket.CloseStatus(err) == websocket.StatusNormalClosure {
			break
		}
		if err != nil {
			t.Fatalf("after %d bytes: %v", total, err)
		}
		total += len(p)
	}
	t.Logf("followed %d bytes", total)
	if grown := memory(t) - before; grown > memoryBound {
		t.Errorf("memory grew by %d MiB", grown>>20)
	}
	_, body := a.call("GET", "/process/session/s/command/"+cmd+"/logs", nil, wire.HeaderSDKVersion, newest)
	l := parse[wire.SessionLogs](t, body)
	if len(l.Stdout) < 6<<20 || len(l.Stdout) > 9<<20 || !strings.HasPrefix(l.Stdout, "xxxx") || !strings.HasSuffix(l.Stdout, "\nend without newline") {
		t.Errorf("log of %d bytes, %.20q … %q", len(l.Stdout), l.Stdout, l.Stdout[max(0, len(l.Stdout)-30):])
	}
	if !strings.Contains(l.Stderr, "bytes left out") {
		t.Errorf("the log does not say what it lacks: %q", l.Stderr)
	}
}

// A log flood that nobody reads.
func TestLogFlood(t *testing.T) {
	opts := process.Options{LogLimit: 4 << 20, LogDir: passable(t)}
	a := startAgent(t, opts)
	a.createSession("s")
	before := memory(t)
	if code := a.wait("s", a.begin("s", "yes | head -c 500000000")); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if grown := memory(t) - before; grown > memoryBound {
		t.Errorf("memory grew by %d MiB", grown>>20)
	}
	var size int64
	filepath.WalkDir(opts.LogDir, func(_ string, d os.DirEntry, _ error) error {
		if i, err := d.Info(); err == nil && i.Mode().IsRegular() {
			size += i.Size()
		}
		return nil
	})
	if size > 5<<20 {
		t.Errorf("logs take %d bytes, limit %d", size, opts.LogLimit)
	}
}

// memoryBound is what this process, agent and client, may grow by while 100 MB
// and more pass through it.
var memoryBound int64 = 48 << 20

// memory is the agent's own (anonymous) memory in bytes.
func memory(t *testing.T) int64 {
	t.Helper()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	var kib int64
	_, rest, _ := strings.Cut(string(b), "RssAnon:")
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		t.Fatal(err)
	}
	return kib << 10
}

func TestEntrypoint(t *testing.T) {
	a := startAgent(t, process.Options{})
	if err := a.service.StartEntrypoint([]string{"sh", "-c", "echo up; echo oops >&2; cat; exit 4"}); err != nil {
		t.Fatal(err)
	}
	if code := a.wait(wire.EntrypointSession, wire.EntrypointCommand); code != 4 {
		t.Errorf("exit code %d", code)
	}
	_, body := a.call("GET", "/process/session/entrypoint", nil)
	if s := parse[wire.Session](t, body); len(s.Commands) != 1 || s.Commands[0].ID != wire.EntrypointCommand || *s.Commands[0].ExitCode != 4 {
		t.Errorf("session: %s", body)
	}
	_, body = a.call("GET", "/process/session/entrypoint/logs", nil, wire.HeaderSDKVersion, newest)
	if l := parse[wire.SessionLogs](t, body); l.Stdout != "up\n" || l.Stderr != "oops\n" {
		t.Errorf("logs: %s", body)
	}
	// Never combined.
	_, body = a.call("GET", "/process/session/entrypoint/logs", nil)
	if !strings.Contains(body, "\x01\x01\x01up\n") || !strings.Contains(body, "\x02\x02\x02oops\n") {
		t.Errorf("logs for an old client: %q", body)
	}
	for _, path := range []string{"/exec", "/command/entrypoint_command/input"} {
		if status, body := a.call("POST", "/process/session/entrypoint"+path, `{"command":"true","data":"x"}`); status != 400 {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
	if err := a.service.StartEntrypoint([]string{"true"}); err == nil {
		t.Error("a second entrypoint was started")
	}
	b := startAgent(t, process.Options{})
	if err := b.service.StartEntrypoint([]string{"/no/such"}); err == nil || !strings.Contains(err.Error(), "/no/such") {
		t.Errorf("bad entrypoint: %v", err)
	}
}

func TestLogSubprotocol(t *testing.T) {
	a := startAgent(t, process.Options{})
	a.createSession("s")
	a.run("s", "echo x")
	_, body := a.call("GET", "/process/session/s", nil)
	id := parse[wire.Session](t, body).Commands[0].ID
	ws, _, err := a.dial("/process/session/s/command/"+id+"/logs", &websocket.DialOptions{Subprotocols: []string{"other", wire.ProtocolSDKVersion + "0.190.0"}})
	if err != nil {
		t.Fatal(err)
	}
	defer ws.CloseNow()
	if ws.Subprotocol() != wire.ProtocolSDKVersion+"0.190.0" {
		t.Errorf("selected subprotocol %q", ws.Subprotocol())
	}
	_, p, err := ws.Read(t.Context())
	if err != nil || string(p) != "\x01\x01\x01x\n" {
		t.Errorf("%q, %v", p, err)
	}
	if _, _, err = ws.Read(t.Context()); websocket.CloseStatus(err) != 1000 {
		t.Errorf("end: %v", err)
	}
}
