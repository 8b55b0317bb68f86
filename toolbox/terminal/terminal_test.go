package terminal_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/daytona-go/daytona/toolbox/account"
	"github.com/daytona-go/daytona/toolbox/process"
	"github.com/daytona-go/daytona/toolbox/terminal"
	"github.com/daytona-go/daytona/toolbox/wire"
)

// agent is a Service behind a Unix socket.
type agent struct {
	t      *testing.T
	socket string
	client *http.Client
	home   string
}

func startAgent(t *testing.T, a *account.Account) *agent {
	t.Helper()
	home, err := os.MkdirTemp("", "terminal-test-")
	if err != nil {
		t.Fatal(err)
	}
	os.Chmod(home, 0o777)
	t.Cleanup(func() { os.RemoveAll(home) })
	if a == nil {
		a = account.Current()
	}
	user := *a
	user.Home = home
	user.Shell = "/bin/bash"
	if _, err := os.Stat(user.Shell); err != nil {
		t.Skipf("needs bash: %v", err)
	}
	spawner, err := process.NewSpawner(process.Options{
		Account: &user, WorkDir: home,
		Environ: func() []string { return []string{"PATH=" + os.Getenv("PATH"), "PS1=$ ", "BASE=base"} },
	})
	if err != nil {
		t.Fatal(err)
	}
	service := terminal.New(terminal.Options{Spawner: spawner})
	mux := http.NewServeMux()
	service.Register(mux)
	ag := &agent{t: t, socket: filepath.Join(t.TempDir(), "agent.sock"), home: home}
	l, err := net.Listen("unix", ag.socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: mux}
	go srv.Serve(l)
	ag.client = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", ag.socket)
	}}}
	t.Cleanup(func() {
		service.Close()
		srv.Close()
		spawner.Close()
	})
	return ag
}

func (a *agent) call(method, path string, body any) (int, string) {
	a.t.Helper()
	var rd io.Reader
	if s, ok := body.(string); ok {
		rd = strings.NewReader(s)
	} else if body != nil {
		b, _ := json.Marshal(body)
		rd = bytes.NewReader(b)
	}
	req, err := http.NewRequest(method, "http://agent"+path, rd)
	if err != nil {
		a.t.Fatal(err)
	}
	resp, err := a.client.Do(req)
	if err != nil {
		a.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b)
}

// pty is a connection to a terminal.
type pty struct {
	t      *testing.T
	ws     *websocket.Conn
	out    strings.Builder
	seen   int
	exited *wire.PTYControl
}

func (a *agent) connect(path string, protocols ...string) *pty {
	a.t.Helper()
	p, first := a.open(path, protocols...)
	if first != `{"type":"control","status":"connected"}` {
		a.t.Fatalf("first frame of %s: %s", path, first)
	}
	return p
}

func (a *agent) open(path string, protocols ...string) (*pty, string) {
	a.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	ws, _, err := websocket.Dial(ctx, "ws://agent"+path, &websocket.DialOptions{HTTPClient: a.client, Subprotocols: protocols})
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { ws.CloseNow() })
	typ, b, err := ws.Read(ctx)
	if err != nil || typ != websocket.MessageText {
		a.t.Fatalf("first frame of %s: %v %q %v", path, typ, b, err)
	}
	ws.SetReadLimit(1 << 20)
	return &pty{t: a.t, ws: ws}, string(b)
}

// create makes a terminal and connects to it.
func (a *agent) create(req wire.PTYCreateRequest, protocols ...string) *pty {
	a.t.Helper()
	status, body := a.call("POST", "/process/pty", req)
	if status != 201 || body != `{"sessionId":"`+req.ID+`"}`+"\n" {
		a.t.Fatalf("create: %d %s", status, body)
	}
	return a.connect("/process/pty/"+req.ID+"/connect", protocols...)
}

func (p *pty) typeIn(s string) {
	p.t.Helper()
	if err := p.ws.Write(context.Background(), websocket.MessageBinary, []byte(s)); err != nil {
		p.t.Fatal(err)
	}
}

func (p *pty) read(ctx context.Context) error {
	typ, b, err := p.ws.Read(ctx)
	if err != nil {
		return err
	}
	if typ == websocket.MessageText {
		p.exited = new(wire.PTYControl)
		return json.Unmarshal(b, p.exited)
	}
	p.out.Write(b)
	return nil
}

// until reads until the terminal shows s, after what was found before.
func (p *pty) until(s string) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for {
		if i := strings.Index(p.out.String()[p.seen:], s); i >= 0 {
			p.seen += i + len(s)
			return
		}
		if err := p.read(ctx); err != nil {
			p.t.Fatalf("waiting for %q after %q: %v", s, p.out.String(), err)
		}
	}
}

// exit reads to the end and returns the close frame.
func (p *pty) exit() (websocket.StatusCode, string) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for {
		if err := p.read(ctx); err != nil {
			var e websocket.CloseError
			if !errors.As(err, &e) {
				p.t.Fatalf("end: %v after %q", err, p.out.String())
			}
			return e.Code, e.Reason
		}
	}
}

func TestPTY(t *testing.T) {
	users := map[string]*account.Account{"self": account.Current()}
	if os.Getuid() == 0 {
		nobody, err := account.Lookup("65534:65534")
		if err != nil {
			t.Fatal(err)
		}
		users["nobody"] = nobody
	}
	for name, user := range users {
		t.Run(name, func(t *testing.T) {
			a := startAgent(t, user)
			p := a.create(wire.PTYCreateRequest{ID: "p", Cols: 100, Rows: 30, Envs: map[string]string{"FOO": "bar baz"}})
			p.typeIn("stty size; echo \"$FOO-$BASE-$TERM\"; pwd; id -u; shopt -q login_shell && echo login\n")
			p.until("30 100\r\n")
			p.until("bar baz-base-xterm-256color\r\n")
			p.until(a.home + "\r\n")
			p.until(fmt.Sprintf("%d\r\n", user.UID))
			p.until("login\r\n")
			status, body := a.call("POST", "/process/pty/p/resize", wire.PTYResizeRequest{Cols: 40, Rows: 20})
			var info wire.PTYInfo
			if json.Unmarshal([]byte(body), &info); status != 200 || info.Cols != 40 || info.Rows != 20 || !info.Active || info.ID != "p" || info.Cwd != a.home || info.Envs["FOO"] != "bar baz" {
				t.Errorf("resize: %d %s", status, body)
			}
			if _, err := time.Parse(time.RFC3339, info.CreatedAt); err != nil {
				t.Errorf("createdAt: %v", err)
			}
			p.typeIn("stty size\n")
			p.until("20 40\r\n")
			p.typeIn("sh -c 'echo slee''ping; exec sleep 1000'\n")
			p.until("sleeping\r\n")
			p.typeIn("\x03")
			p.until("^C")
			p.until("\x1b[?2004h") // readline is back
			p.typeIn("exit 3\n")
			if code, reason := p.exit(); code != 1011 || reason != `{"exitCode":3,"exitReason":"non-zero exit"}` {
				t.Errorf("close: %d %s", code, reason)
			}
			if status, body := a.call("GET", "/process/pty", nil); status != 200 || body != `{"sessions":[]}`+"\n" {
				t.Errorf("list after the end: %d %s", status, body)
			}
		})
	}
}

func TestPTYExits(t *testing.T) {
	a := startAgent(t, nil)
	for _, c := range []struct {
		input  string
		code   websocket.StatusCode
		reason string
	}{
		{"exit\n", 1000, `{"exitCode":0}`},
		{"exit 130\n", 1011, `{"exitCode":130,"exitReason":"Ctrl+C"}`},
		{"kill -9 $$\n", 1011, `{"exitCode":137,"exitReason":"SIGKILL"}`},
		{"exec sh -c 'kill -15 $$'\n", 1011, `{"exitCode":143,"exitReason":"SIGTERM"}`},
		{"exec sh -c 'kill -6 $$'\n", 1011, `{"exitCode":134,"exitReason":"signal 6"}`},
	} {
		for _, control := range []bool{false, true} {
			var protocols []string
			if control {
				protocols = []string{wire.ProtocolPTYExitControl}
			}
			p := a.create(wire.PTYCreateRequest{ID: "x"}, protocols...)
			p.typeIn(c.input)
			code, reason := p.exit()
			if code != c.code || reason != c.reason {
				t.Errorf("%q: %d %s", c.input, code, reason)
			}
			if control {
				b, _ := json.Marshal(p.exited)
				if want := `{"type":"control","status":"exited",` + c.reason[1:]; string(b) != want {
					t.Errorf("%q: exit control %s, want %s", c.input, b, want)
				}
			} else if p.exited != nil {
				t.Errorf("%q: exit control %+v although it was not asked for", c.input, p.exited)
			}
		}
	}
}

func TestPTYDelete(t *testing.T) {
	a := startAgent(t, nil)
	p := a.create(wire.PTYCreateRequest{ID: "p"})
	file := filepath.Join(a.home, "pids")
	p.typeIn("set +m; trap '' HUP TERM; (setsid sh -c 'trap \"\" HUP; echo $$ >" + file + "; exec sleep 1000' &)\n")
	var pid int
	for deadline := time.Now().Add(10 * time.Second); pid == 0 && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		b, _ := os.ReadFile(file)
		if strings.HasSuffix(string(b), "\n") {
			fmt.Sscan(string(b), &pid)
		}
	}
	if pid == 0 {
		t.Fatal("the background process did not start")
	}
	closed := make(chan string)
	go func() {
		code, reason := p.exit()
		closed <- fmt.Sprint(code, reason)
	}()
	status, body := a.call("DELETE", "/process/pty/p", nil)
	if status != 200 || !strings.Contains(body, `"message"`) {
		t.Errorf("delete: %d %s", status, body)
	}
	if err := syscall.Kill(pid, 0); err == nil {
		if b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); !bytes.Contains(b, []byte(") Z ")) {
			t.Errorf("process %d is alive after the deletion", pid)
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	if got := <-closed; got != `StatusInternalError{"exitCode":137,"exitReason":"SIGKILL"}` {
		t.Errorf("close: %s", got)
	}
	if status, _ := a.call("GET", "/process/pty/p", nil); status != 404 {
		t.Errorf("get after delete: %d", status)
	}
}

func TestPTYLazy(t *testing.T) {
	a := startAgent(t, nil)
	a.call("POST", "/process/pty", wire.PTYCreateRequest{ID: "lazy", LazyStart: true})
	_, body := a.call("GET", "/process/pty/lazy", nil)
	var info wire.PTYInfo
	if json.Unmarshal([]byte(body), &info); info.Active || !info.LazyStart || info.Cols != 80 || info.Rows != 24 || info.Envs == nil {
		t.Errorf("before: %s", body)
	}
	if status, body := a.call("POST", "/process/pty/lazy/resize", wire.PTYResizeRequest{Cols: 10, Rows: 10}); status != 410 {
		t.Errorf("resize before the start: %d %s", status, body)
	}
	p := a.connect("/process/pty/lazy/connect")
	p.typeIn("echo o''k\n")
	p.until("ok\r\n")
	if _, body := a.call("GET", "/process/pty/lazy", nil); !strings.Contains(body, `"active":true`) {
		t.Errorf("after: %s", body)
	}
	a.call("POST", "/process/pty", wire.PTYCreateRequest{ID: "never", LazyStart: true})
	if status, body := a.call("DELETE", "/process/pty/never", nil); status != 200 {
		t.Errorf("delete of one that never started: %d %s", status, body)
	}
	a.call("POST", "/process/pty", wire.PTYCreateRequest{ID: "bad", LazyStart: true, Cwd: "/no/such"})
	if _, first := a.open("/process/pty/bad/connect"); !strings.Contains(first, `"status":"error"`) || !strings.Contains(first, "Failed to connect to PTY session: ") || !strings.Contains(first, "/no/such") {
		t.Errorf("first frame: %s", first)
	}
}

func TestPTYClients(t *testing.T) {
	a := startAgent(t, nil)
	p := a.create(wire.PTYCreateRequest{ID: "p"})
	q := a.connect("/process/pty/p/connect")
	p.typeIn("echo from''p\n")
	p.until("fromp\r\n")
	q.until("fromp\r\n")
	// Text frames are input too.
	q.ws.Write(context.Background(), websocket.MessageText, []byte("echo from''q\n"))
	p.until("fromq\r\n")
	q.until("fromq\r\n")
	q.ws.Close(1000, "")
	p.typeIn("echo al''one\n")
	p.until("alone\r\n")
	// The shell lives on without clients, and the next one gets what was
	// missed.
	p.typeIn("sleep 0.2; echo mis''sed; : >written\n")
	p.ws.CloseNow()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if _, err := os.Stat(filepath.Join(a.home, "written")); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the shell did not go on")
		}
	}
	r := a.connect("/process/pty/p/connect")
	r.until("missed\r\n")
}

// A client that does not read gets 1008; the others see everything.
func TestPTYSlowConsumer(t *testing.T) {
	a := startAgent(t, nil)
	fast := a.create(wire.PTYCreateRequest{ID: "p"})
	slow := a.connect("/process/pty/p/connect")
	fast.typeIn("seq 1 1000000 | tr '\\n' ' '; echo; echo do''ne\n")
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	for !strings.Contains(fast.out.String()[max(0, fast.out.Len()-200):], "done\r\n") {
		if err := fast.read(ctx); err != nil {
			t.Fatalf("fast client: %v", err)
		}
	}
	if out := fast.out.String(); !strings.Contains(out, " 999999 1000000") {
		t.Error("output was lost for the fast client")
	}
	if code, reason := slow.exit(); code != 1008 || reason != "slow consumer" {
		t.Errorf("slow client: %d %q", code, reason)
	}
}

func TestPTYCreateConnect(t *testing.T) {
	a := startAgent(t, nil)
	envs := wire.ProtocolPTYEnvs + base64.RawURLEncoding.EncodeToString([]byte(`{"FOO":"é x"}`))
	for _, c := range []struct {
		offered []string
		want    string
	}{
		{[]string{envs, wire.ProtocolPTYExitControl}, wire.ProtocolPTYExitControl},
		{[]string{envs}, envs},
		{[]string{envs, wire.ProtocolPTYExitControl, wire.ProtocolSDKVersion + "0.218.0"}, wire.ProtocolSDKVersion + "0.218.0"},
	} {
		p := a.connect("/process/pty/create-connect?id=cc&cols=90&rows=33&cwd=/usr", c.offered...)
		if p.ws.Subprotocol() != c.want {
			t.Errorf("%q: selected %q", c.offered, p.ws.Subprotocol())
		}
		p.typeIn("stty size; pwd; echo $FOO\n")
		p.until("33 90\r\n/usr\r\né x\r\n")
		// Another of the same id is refused, in a frame.
		if _, first := a.open("/process/pty/create-connect?id=cc"); !strings.Contains(first, "Failed to connect to PTY session: ") || !strings.Contains(first, "exists") {
			t.Errorf("duplicate: %s", first)
		}
		p.typeIn("exit\n")
		p.exit()
	}
	for _, query := range []string{"", "id=x&cols=0", "id=x&cols=1001", "id=x&rows=-1", "id=x&rows=abc", "id=x&cwd=/no/such", "id=x&cwd=/proc/self/fd/3"} {
		if _, first := a.open("/process/pty/create-connect?" + query); !strings.Contains(first, `"status":"error"`) {
			t.Errorf("%q: %s", query, first)
		}
	}
	if _, first := a.open("/process/pty/create-connect?id=x", wire.ProtocolPTYEnvs+"AAAA"); !strings.Contains(first, `"status":"error"`) {
		t.Errorf("bad environment: %s", first)
	}
	if _, body := a.call("GET", "/process/pty", nil); body != `{"sessions":[]}`+"\n" {
		t.Errorf("refused ones are left behind: %s", body)
	}
}

func TestPTYErrors(t *testing.T) {
	a := startAgent(t, nil)
	a.create(wire.PTYCreateRequest{ID: "p"})
	for _, c := range []struct {
		method, path, body string
		status             int
	}{
		{"POST", "/process/pty", `{}`, 400},
		{"POST", "/process/pty", `{`, 400},
		{"POST", "/process/pty", `{"id":"x","cols":1001}`, 400},
		{"POST", "/process/pty", `{"id":"x","rows":-1}`, 400},
		{"POST", "/process/pty", `{"id":"x/y"}`, 400},
		{"POST", "/process/pty", `{"id":"x","envs":{"a b":"c"}}`, 400},
		{"POST", "/process/pty", `{"id":"x","cwd":"/no/such"}`, 400},
		{"POST", "/process/pty", `{"id":"p"}`, 409},
		{"GET", "/process/pty/none", "", 404},
		{"DELETE", "/process/pty/none", "", 404},
		{"POST", "/process/pty/none/resize", `{"cols":1,"rows":1}`, 404},
		{"POST", "/process/pty/p/resize", `{"cols":0,"rows":1}`, 400},
		{"POST", "/process/pty/p/resize", `{"cols":1,"rows":1001}`, 400},
		{"GET", "/process/pty/p/connect", "", 426},
	} {
		status, body := a.call(c.method, c.path, c.body)
		var e struct {
			Error   string
			Message string
		}
		if json.Unmarshal([]byte(body), &e); status != c.status || e.Error == "" || e.Error != e.Message {
			t.Errorf("%s %s %s: %d %s", c.method, c.path, c.body, status, body)
		}
	}
	if _, first := a.open("/process/pty/none/connect"); !strings.HasPrefix(first, `{"type":"control","status":"error","error":"Failed to connect to PTY session: `) {
		t.Errorf("connect to none: %s", first)
	}
}

// TestTypedBeforeGoing: a client typed and went away while output was on its way
// to it. That output could not be written, and the connection was dropped with
// what had been typed still in it.
func TestTypedBeforeGoing(t *testing.T) {
	a := startAgent(t, nil)
	p := a.create(wire.PTYCreateRequest{ID: "p"})
	p.typeIn("while :; do echo noise; done & echo go''ing\n")
	p.until("going\r\n")
	for i := range 20 {
		file := filepath.Join(a.home, fmt.Sprint("written", i))
		p.typeIn(": >" + file + "\n")
		p.ws.CloseNow()
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			if _, err := os.Stat(file); err == nil {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("what client %d typed did not arrive", i)
			}
		}
		p = a.connect("/process/pty/p/connect")
	}
	a.call("DELETE", "/process/pty/p", nil)
}
