package process_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/daytona-go/daytona/toolbox/process"
	"github.com/daytona-go/daytona/toolbox/wire"
)

// dialCommand starts a program through GET /process/command.
func (a *agent) dialCommand(req wire.CommandRequest, opts *websocket.DialOptions) (*websocket.Conn, *http.Response, error) {
	spec, err := wire.EncodeCommandSpec(req)
	if err != nil {
		a.t.Fatal(err)
	}
	return a.dial(wire.CommandPath+"?spec="+spec, opts)
}

// remote is a program that a test runs.
type remote struct {
	t  testing.TB
	ws *websocket.Conn
	// PID is of its first event.
	PID            int
	stdout, stderr bytes.Buffer
	// seen is where until goes on.
	seen int
	// sink, if not nil, gets the output instead.
	sink func(stream byte, p []byte)
}

func (a *agent) command(req wire.CommandRequest) *remote {
	a.t.Helper()
	ws, resp, err := a.dialCommand(req, nil)
	if err != nil {
		a.t.Fatalf("%v: %v %v", req.Args, err, resp)
	}
	c := &remote{t: a.t, ws: ws}
	a.t.Cleanup(func() { ws.CloseNow() })
	typ, p, err := ws.Read(context.Background())
	var e wire.CommandEvent
	if err != nil || typ != websocket.MessageText || json.Unmarshal(p, &e) != nil || e.PID <= 1 {
		a.t.Fatalf("first frame: %v %q %v", typ, p, err)
	}
	c.PID = e.PID
	return c
}

func (c *remote) stdin(s string) {
	c.t.Helper()
	if err := c.ws.Write(context.Background(), websocket.MessageBinary, append([]byte{wire.FrameStdin}, s...)); err != nil {
		c.t.Fatal(err)
	}
}

func (c *remote) control(ctl wire.CommandControl) {
	c.t.Helper()
	b, _ := json.Marshal(ctl)
	if err := c.ws.Write(context.Background(), websocket.MessageText, b); err != nil {
		c.t.Fatal(err)
	}
}

// wait reads to the end and returns the exit status.
func (c *remote) wait() wire.CommandExit {
	c.t.Helper()
	var exit *wire.CommandExit
	for {
		typ, p, err := c.ws.Read(context.Background())
		if websocket.CloseStatus(err) == websocket.StatusNormalClosure && exit != nil {
			return *exit
		}
		switch {
		case err != nil:
			c.t.Fatalf("read: %v", err)
		case exit != nil:
			c.t.Fatalf("a frame after the last: %q", p)
		case typ == websocket.MessageText:
			var e wire.CommandEvent
			if json.Unmarshal(p, &e) != nil || e.Exit == nil {
				c.t.Fatalf("event %s", p)
			}
			exit = e.Exit
		case len(p) < 2 || len(p) > wire.CommandFrameLimit:
			c.t.Fatalf("frame of %d bytes", len(p))
		case c.sink != nil:
			c.sink(p[0], p[1:])
		case p[0] == wire.FrameStdout:
			c.stdout.Write(p[1:])
		case p[0] == wire.FrameStderr:
			c.stderr.Write(p[1:])
		default:
			c.t.Fatalf("frame of kind %d", p[0])
		}
	}
}

// until reads until the output contains s, after what was found before.
func (c *remote) until(s string) {
	c.t.Helper()
	for {
		if i := strings.Index(c.stdout.String()[c.seen:], s); i >= 0 {
			c.seen += i + len(s)
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		_, p, err := c.ws.Read(ctx)
		cancel()
		if err != nil || p[0] != wire.FrameStdout {
			c.t.Fatalf("waiting for %q after %q: %q, %v", s, c.stdout.String(), p, err)
		}
		c.stdout.Write(p[1:])
	}
}

func TestCommand(t *testing.T) {
	for name, opts := range identities(t) {
		t.Run(name, func(t *testing.T) {
			a := startAgent(t, opts)
			c := a.command(wire.CommandRequest{Args: []string{"sh", "-c", `echo out $FOO; echo err >&2; pwd; cat; exit 5`}, Cwd: "/usr", Envs: map[string]string{"FOO": "x y"}})
			if exit := c.wait(); exit != (wire.CommandExit{Code: 5}) || c.stdout.String() != "out x y\n/usr\n" || c.stderr.String() != "err\n" {
				t.Errorf("%+v %q %q", exit, c.stdout.String(), c.stderr.String())
			}
			c = a.command(wire.CommandRequest{Args: []string{"cat"}, Stdin: true})
			c.stdin("hello ")
			c.stdin("world")
			c.stdin("")
			if exit := c.wait(); exit.Code != 0 || c.stdout.String() != "hello world" {
				t.Errorf("cat: %+v %q", exit, c.stdout.String())
			}
			c = a.command(wire.CommandRequest{Args: []string{"true"}})
			if exit := c.wait(); exit != (wire.CommandExit{}) {
				t.Errorf("true: %+v", exit)
			}
			c = a.command(wire.CommandRequest{Args: []string{"ls", "/proc/self/fd"}, Stdin: true})
			if c.wait(); c.stdout.String() != "0\n1\n2\n3\n" {
				t.Errorf("descriptors: %q", c.stdout.String())
			}
		})
	}
}

func TestCommandSignals(t *testing.T) {
	a := startAgent(t, process.Options{})
	c := a.command(wire.CommandRequest{Args: []string{"sh", "-c", `trap 'echo caught; exit 9' INT; echo ready; while :; do sleep 0.05; done`}})
	c.until("ready\n")
	c.control(wire.CommandControl{Signal: "SIGINT"})
	if exit := c.wait(); exit != (wire.CommandExit{Code: 9}) || c.stdout.String() != "ready\ncaught\n" {
		t.Errorf("%+v %q", exit, c.stdout.String())
	}
	c = a.command(wire.CommandRequest{Args: []string{"sleep", "1000"}})
	c.control(wire.CommandControl{Signal: "no such signal"})
	c.control(wire.CommandControl{Signal: "TERM"})
	if exit := c.wait(); exit != (wire.CommandExit{Code: 143, Signal: "SIGTERM"}) {
		t.Errorf("%+v", exit)
	}
}

func TestCommandTimeout(t *testing.T) {
	file := filepath.Join(passable(t), "pids")
	a := startAgent(t, process.Options{})
	begin := time.Now()
	c := a.command(wire.CommandRequest{Args: []string{"bash", "-c", "echo begun; (setsid sh -c 'echo $$ >>" + file + "; exec sleep 1000' &); sleep 1000"}, Timeout: 300})
	exit := c.wait()
	if exit != (wire.CommandExit{Code: 137, Signal: "SIGKILL", TimedOut: true}) || c.stdout.String() != "begun\n" {
		t.Errorf("%+v %q", exit, c.stdout.String())
	}
	if took := time.Since(begin); took < 300*time.Millisecond || took > 1300*time.Millisecond {
		t.Errorf("took %v", took)
	}
	for _, pid := range readPIDs(t, file, 1) {
		if alive(pid) {
			t.Errorf("process %d is alive", pid)
		}
	}
}

func TestCommandClientGoesAway(t *testing.T) {
	a := startAgent(t, process.Options{})
	for _, stdin := range []bool{false, true} {
		file := filepath.Join(passable(t), "pids")
		c := a.command(wire.CommandRequest{Args: []string{"bash", "-c", "setsid sh -c 'echo $$ >>" + file + "; exec sleep 1000' & echo $$ >>" + file + "; sleep 1000"}, Stdin: stdin})
		pids := readPIDs(t, file, 2)
		if stdin {
			// More than the agent holds for a program that does not read: it
			// has stopped reading from us when we go away.
			frame := make([]byte, 60_000)
			for {
				ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
				err := c.ws.Write(ctx, websocket.MessageBinary, frame)
				cancel()
				if err != nil {
					break
				}
			}
		}
		c.ws.CloseNow()
		waitDead(t, pids)
	}
}

func TestCommandStartErrors(t *testing.T) {
	a := startAgent(t, process.Options{})
	dir := passable(t)
	plain := filepath.Join(dir, "plain")
	noInterpreter := filepath.Join(dir, "no-interpreter")
	garbage := filepath.Join(dir, "garbage")
	os.WriteFile(plain, []byte("x"), 0o644)
	os.WriteFile(noInterpreter, []byte("#!/no/such/interpreter\n"), 0o755)
	os.WriteFile(garbage, []byte("\x7fELFgarbage"), 0o755)
	for _, c := range []struct {
		req     wire.CommandRequest
		status  int
		code    string
		message string
	}{
		{wire.CommandRequest{Args: []string{"no-such-program"}, Envs: map[string]string{"PATH": "/opt/x:/opt/y"}}, 404, wire.CodeCommandStart, "/opt/x:/opt/y"},
		{wire.CommandRequest{Args: []string{"/no/such"}}, 404, wire.CodeCommandStart, "/no/such"},
		{wire.CommandRequest{Args: []string{plain}}, 403, wire.CodeCommandStart, "permission denied"},
		{wire.CommandRequest{Args: []string{"plain"}, Envs: map[string]string{"PATH": dir}}, 403, wire.CodeCommandStart, "not executable"},
		{wire.CommandRequest{Args: []string{noInterpreter}}, 404, wire.CodeCommandStart, "interpreter"},
		{wire.CommandRequest{Args: []string{garbage}}, 422, wire.CodeCommandStart, "neither a program"},
		{wire.CommandRequest{Args: []string{"true"}, Cwd: "/no/such"}, 404, wire.CodeCommandStart, "/no/such"},
		{wire.CommandRequest{Args: []string{"true"}, Cwd: "/proc/self/fd/0"}, 403, wire.CodeCommandStart, "/proc"},
		{wire.CommandRequest{}, 400, "BAD_REQUEST", "args"},
		{wire.CommandRequest{Args: []string{"true"}, Envs: map[string]string{"a b": ""}}, 400, "BAD_REQUEST", `"a b"`},
		{wire.CommandRequest{Args: []string{"true"}, Cols: 80}, 400, "BAD_REQUEST", "rows"},
		{wire.CommandRequest{Args: []string{"true"}, Timeout: -1}, 400, "BAD_REQUEST", "timeout"},
	} {
		ws, resp, err := a.dialCommand(c.req, nil)
		if err == nil {
			ws.CloseNow()
			t.Errorf("%+v was started", c.req)
			continue
		}
		var e wire.ErrorResponse
		json.NewDecoder(resp.Body).Decode(&e)
		if resp.StatusCode != c.status || e.Code != c.code || !strings.Contains(e.Message, c.message) {
			t.Errorf("%+v: %d %+v", c.req, resp.StatusCode, e)
		}
	}
	if status, body := a.call("GET", wire.CommandPath+"?spec=%%%", nil); status != 400 {
		t.Errorf("bad spec: %d %s", status, body)
	}
	spec, _ := wire.EncodeCommandSpec(wire.CommandRequest{Args: []string{"touch", dir + "/started"}})
	if status, body := a.call("GET", wire.CommandPath+"?spec="+spec, nil); status != 426 {
		t.Errorf("without upgrade: %d %s", status, body)
	}
	if _, err := os.Stat(dir + "/started"); err == nil {
		t.Error("a program was started without a connection")
	}
}

func TestCommandTerminal(t *testing.T) {
	for name, opts := range identities(t) {
		t.Run(name, func(t *testing.T) {
			a := startAgent(t, opts)
			c := a.command(wire.CommandRequest{Args: []string{"bash", "--norc", "-i"}, Cols: 100, Rows: 30, Envs: map[string]string{"PS1": "> "}})
			c.until("> ")
			c.stdin("stty size; tty; : > /dev/tty && echo owned\n")
			c.until("30 100\r\n")
			c.until("/dev/pts/")
			c.until("\nowned")
			// The prompt is there when readline has prepared the terminal: it
			// reads the size and sets what it read (set_winsize of its
			// rltty.c), so that a size set between the two is lost.
			c.until("> ")
			c.control(wire.CommandControl{Cols: 40, Rows: 20})
			c.stdin("stty size\n")
			c.until("20 40\r\n")
			c.stdin("sh -c 'echo slee''ping; exec sleep 1000'\n")
			c.until("sleeping\r\n")
			c.stdin("\x03")
			c.until("^C")
			c.until("> ")
			c.stdin("exit 6\n")
			if exit := c.wait(); exit.Code != 6 || c.stderr.Len() != 0 {
				t.Errorf("%+v %q", exit, c.stderr.String())
			}
		})
	}
	a := startAgent(t, process.Options{})
	c := a.command(wire.CommandRequest{Args: []string{"cat"}, Cols: 80, Rows: 24})
	c.stdin("line\n")
	c.until("line\r\nline\r\n")
	c.stdin("") // the end of file
	if exit := c.wait(); exit.Code != 0 {
		t.Errorf("%+v", exit)
	}
}

// The exit of the program ends the command although a child of its holds the
// pipes, and the child goes on.
func TestCommandBackground(t *testing.T) {
	file := filepath.Join(passable(t), "pids")
	a := startAgent(t, process.Options{})
	begin := time.Now()
	c := a.command(wire.CommandRequest{Args: []string{"sh", "-c", "sh -c 'echo $$ >" + file + "; while echo tick; do sleep 0.01; done' & echo main"}})
	if exit := c.wait(); exit.Code != 0 || !strings.Contains(c.stdout.String(), "main\n") {
		t.Errorf("%+v %q", exit, c.stdout.String())
	}
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("took %v", took)
	}
	pid := readPIDs(t, file, 1)[0]
	defer syscall.Kill(pid, syscall.SIGKILL)
	for range 100 {
		a.sh("true")
	}
	if !alive(pid) {
		t.Error("the background process is dead")
	}
}

// A client that does not read stops the program; nothing is buffered without
// bound, nothing is lost.
func TestCommandBackpressure(t *testing.T) {
	a := startAgent(t, process.Options{})
	progress := filepath.Join(passable(t), "progress")
	c := a.command(wire.CommandRequest{Args: []string{"bash", "-c", `block=$(head -c 65535 /dev/zero | tr '\0' x); for ((i=0;i<400;i++)); do echo "$block"; echo $i >` + progress + `; done`}})
	last := ""
	for still := 0; still < 20; {
		time.Sleep(20 * time.Millisecond)
		b, _ := os.ReadFile(progress)
		if string(b) == last && last != "" {
			still++
		} else {
			still, last = 0, string(b)
		}
	}
	var n int
	fmt.Sscan(last, &n)
	if n > 100 {
		t.Errorf("the program wrote %d KiB although nobody reads", n*64)
	}
	total := 0
	c.sink = func(_ byte, p []byte) { total += len(p) }
	if exit := c.wait(); exit.Code != 0 || total != 400*65536 {
		t.Errorf("%+v, %d bytes", exit, total)
	}
}

// Pings are answered although the program does not read what it is sent, and
// once a blocked write is through.
func TestCommandPing(t *testing.T) {
	a := startAgent(t, process.Options{})
	c := a.command(wire.CommandRequest{Args: []string{"sleep", "1000"}, Stdin: true})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	reading := make(chan error, 1)
	go func() {
		_, _, err := c.ws.Read(ctx)
		reading <- err
	}()
	c.stdin(strings.Repeat("x", 60_000))
	c.stdin(strings.Repeat("x", 60_000))
	for range 3 {
		if err := c.ws.Ping(ctx); err != nil {
			t.Fatal(err)
		}
	}
	c.ws.CloseNow()
	<-reading

	c = a.command(wire.CommandRequest{Args: []string{"head", "-c", "50000000", "/dev/zero"}})
	pong := make(chan error, 1)
	go func() { pong <- c.ws.Ping(ctx) }()
	time.Sleep(200 * time.Millisecond) // the agent's write is blocked by now
	c.sink = func(byte, []byte) {}
	if exit := c.wait(); exit.Code != 0 {
		t.Errorf("%+v", exit)
	}
	if err := <-pong; err != nil {
		t.Errorf("ping while a write was blocked: %v", err)
	}
}

func TestCommandLargeOutput(t *testing.T) {
	a := startAgent(t, process.Options{})
	before := memory(t)
	c := a.command(wire.CommandRequest{Args: []string{"head", "-c", "1000000000", "/dev/zero"}})
	total := 0
	c.sink = func(_ byte, p []byte) { total += len(p) }
	begin := time.Now()
	c.wait()
	t.Logf("%.0f MiB/s", float64(total)/time.Since(begin).Seconds()/(1<<20))
	if total != 1_000_000_000 {
		t.Errorf("%d bytes", total)
	}
	// The test's own garbage included.
	if grown := memory(t) - before; grown > 128<<20 {
		t.Errorf("memory grew by %d MiB", grown>>20)
	}
}

func TestCommandParallel(t *testing.T) {
	a := startAgent(t, process.Options{})
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			ws, _, err := a.dialCommand(wire.CommandRequest{Args: []string{"sh", "-c", fmt.Sprintf("cat; echo %d >&2; exit %d", i, i)}, Stdin: true}, nil)
			if err != nil {
				t.Error(err)
				return
			}
			defer ws.CloseNow()
			ws.Write(context.Background(), websocket.MessageBinary, append([]byte{0}, fmt.Sprintf("in %d", i)...))
			ws.Write(context.Background(), websocket.MessageBinary, []byte{0})
			var all strings.Builder
			for {
				_, p, err := ws.Read(context.Background())
				if err != nil {
					break
				}
				fmt.Fprintf(&all, "%q ", p)
			}
			if s := all.String(); !strings.Contains(s, fmt.Sprintf(`"\x01in %d"`, i)) || !strings.Contains(s, fmt.Sprintf(`"\x02%d\n"`, i)) || !strings.Contains(s, fmt.Sprintf(`\"code\":%d}`, i)) {
				t.Errorf("command %d: %s", i, s)
			}
		})
	}
	wg.Wait()
}

func BenchmarkCommandThroughput(b *testing.B) {
	a := startAgent(b, process.Options{})
	b.SetBytes(256 << 20)
	for b.Loop() {
		c := a.command(wire.CommandRequest{Args: []string{"head", "-c", fmt.Sprint(256 << 20), "/dev/zero"}})
		c.sink = func(byte, []byte) {}
		c.wait()
	}
}

// The agent as PID 1 of a namespace: 10,000 orphans are buried and no exit
// code is lost.
func TestReaperAsPID1(t *testing.T) {
	if os.Getenv("AGENT_TEST_PID1") == "" {
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestReaperAsPID1$", "-test.v")
		cmd.Env = append(os.Environ(), "AGENT_TEST_PID1=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWPID | syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
			Pdeathsig:   syscall.SIGKILL,
		}
		out, err := cmd.CombinedOutput()
		if cmd.Process == nil {
			t.Skipf("needs user and pid namespaces: %v", err)
		}
		if err != nil || !bytes.Contains(out, []byte("--- PASS")) {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	if os.Getpid() != 1 {
		t.Fatalf("pid %d", os.Getpid())
	}
	if err := syscall.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		t.Fatal(err)
	}
	r, err := process.NewReaper(process.ReaperOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	a := startAgent(t, process.Options{Reaper: r})
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			if got := a.sh(fmt.Sprintf("exit %d", i%256)); got.ExitCode != i%256 {
				t.Errorf("exit code %d, want %d", got.ExitCode, i%256)
			}
			if err := exec.Command("false").Run(); err == nil || err.Error() != "exit status 1" {
				t.Errorf("os/exec in the agent: %v", err)
			}
		}
	})
	var orphans sync.WaitGroup
	for range 10 {
		orphans.Go(func() {
			if got := a.sh("for i in {1..1000}; do (true &); done; exit 7"); got.ExitCode != 7 {
				t.Errorf("exit code %d", got.ExitCode)
			}
		})
	}
	// A child of another part of the agent that is dead and that nobody has
	// waited for yet must not be in the way.
	held := exec.Command("sh", "-c", "exit 3")
	if err := held.Start(); err != nil {
		t.Fatal(err)
	}
	orphans.Wait()
	close(stop)
	wg.Wait()
	deadline := time.Now().Add(10 * time.Second)
	for zombies(1) > 1 {
		if time.Now().After(deadline) {
			t.Fatalf("%d zombies are left", zombies(1))
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := held.Wait(); err == nil || err.Error() != "exit status 3" {
		t.Errorf("child that was waited for late: %v", err)
	}
}

// Frames that are no part of the protocol end the connection, and the program,
// with the reason.
func TestCommandBadFrames(t *testing.T) {
	a := startAgent(t, process.Options{})
	for _, x := range []struct {
		kind  websocket.MessageType
		frame string
		want  string
	}{
		{websocket.MessageText, `{"signal":`, "control requests"},
		{websocket.MessageText, `{"cols":"many"}`, "control requests"},
		{websocket.MessageBinary, "\x07hello", "standard input"},
		{websocket.MessageBinary, "", "standard input"},
	} {
		c := a.command(wire.CommandRequest{Args: []string{"sleep", "1000"}})
		if err := c.ws.Write(t.Context(), x.kind, []byte(x.frame)); err != nil {
			t.Fatal(err)
		}
		_, _, err := c.ws.Read(t.Context())
		var closed websocket.CloseError
		if !errors.As(err, &closed) || closed.Code != websocket.StatusUnsupportedData || !strings.Contains(closed.Reason, x.want) {
			t.Errorf("%q: %v", x.frame, err)
		}
		for deadline := time.Now().Add(10 * time.Second); alive(c.PID); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%q: the program lives on", x.frame)
			}
		}
	}
}
