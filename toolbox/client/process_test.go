package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/toolbox/port"
	"github.com/daytona-go/daytona/toolbox/process"
	"github.com/daytona-go/daytona/toolbox/terminal"
)

// programAgent serves the real routes for programs and ports.
func programAgent(t testing.TB) daytona.Toolbox {
	t.Helper()
	service := process.New(process.Options{
		WorkDir: t.TempDir(),
		LogDir:  t.TempDir(),
		Environ: func() []string { return []string{"SANDBOX=yes"} },
	})
	t.Cleanup(service.Close)
	mux := http.NewServeMux()
	service.Register(mux)
	terminals := terminal.New(terminal.Options{Spawner: service.Spawner()})
	t.Cleanup(terminals.Close)
	terminals.Register(mux)
	ports := port.New(port.Options{})
	t.Cleanup(ports.Close)
	ports.Register(mux)
	return serve(t, mux, nil)
}

func TestExec(t *testing.T) {
	p := programAgent(t).Process()
	ctx := t.Context()
	r, err := p.Exec(ctx, "echo out; echo err >&2; echo $SANDBOX $EXTRA; pwd; exit 7", &daytona.ExecOptions{Dir: "/", Env: map[string]string{"EXTRA": "e"}})
	if err != nil || r.ExitCode != 7 || r.Output != "out\nerr\nyes e\n/\n" {
		t.Errorf("Exec = %+v, %v", r, err)
	}
	r, err = p.Exec(ctx, "echo before; sleep 60", &daytona.ExecOptions{Timeout: time.Second})
	wantKind(t, err, daytona.KindTimeout)
	if r.Output != "before\n" {
		t.Errorf("output until the timeout: %q", r.Output)
	}
	_, err = p.Exec(ctx, "true", &daytona.ExecOptions{Env: map[string]string{"1bad": "x"}})
	wantKind(t, err, daytona.KindInvalid)
	_, err = p.RunCode(ctx, "x", &daytona.CodeOptions{Language: "cobol"})
	wantKind(t, err, daytona.KindInvalid)
}

func TestExecParallel(t *testing.T) {
	p := programAgent(t).Process()
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			r, err := p.Exec(t.Context(), "echo "+strconv.Itoa(i), nil)
			if err != nil || r.Output != fmt.Sprintln(i) {
				t.Errorf("Exec %d = %+v, %v", i, r, err)
			}
		})
		wg.Go(func() {
			out, err := p.Command(t.Context(), "echo", strconv.Itoa(i)).Output()
			if err != nil || string(out) != fmt.Sprintln(i) {
				t.Errorf("Command %d = %q, %v", i, out, err)
			}
		})
	}
	wg.Wait()
}

func TestCommand(t *testing.T) {
	p := programAgent(t).Process()
	ctx := t.Context()

	cmd := p.Command(ctx, "sh", "-c", "echo out; echo err >&2; echo $SANDBOX $EXTRA; pwd; exit 3")
	cmd.Dir, cmd.Env = "/", map[string]string{"EXTRA": "e"}
	out, err := cmd.Output()
	if e, ok := errors.AsType[*daytona.ExitError](err); !ok || e.ExitCode != 3 || string(e.Stderr) != "err\n" {
		t.Errorf("Output: %v", err)
	}
	if string(out) != "out\nyes e\n/\n" || cmd.PID() <= 0 {
		t.Errorf("Output = %q, PID %d", out, cmd.PID())
	}

	cmd = p.Command(ctx, "cat")
	input := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	cmd.Stdin = bytes.NewReader(input)
	if out, err := cmd.Output(); err != nil || !bytes.Equal(out, input) {
		t.Errorf("cat gave %d bytes of %d, %v", len(out), len(input), err)
	}

	// Without Stdin the program sees its end.
	if out, err := p.Command(ctx, "cat").Output(); err != nil || len(out) != 0 {
		t.Errorf("cat of nothing: %q, %v", out, err)
	}

	// One writer for both streams gets one call at a time.
	out, err = p.Command(ctx, "sh", "-c", "for i in 1 2 3 4 5 6 7 8; do echo o; echo e >&2; done").CombinedOutput()
	if err != nil || strings.Count(string(out), "o\n") != 8 || strings.Count(string(out), "e\n") != 8 {
		t.Errorf("CombinedOutput = %q, %v", out, err)
	}

	wantKind(t, p.Command(ctx, "no-such-program").Run(), daytona.KindNotFound)
	cmd = p.Command(ctx, "sleep", "60")
	cmd.Timeout = 50 * time.Millisecond
	if err := cmd.Run(); !errors.Is(err, daytona.ErrTimeout) {
		t.Errorf("timeout: %v", err)
	}

	cmd = p.Command(ctx, "sh", "-c", "trap 'echo caught; exit 9' INT; echo ready; while :; do sleep 0.01; done")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	waited := make(chan error, 1)
	go func() { waited <- cmd.Wait() }()
	line := make([]byte, len("ready\n"))
	if _, err := io.ReadFull(stdout, line); err != nil {
		t.Fatal(err)
	}
	wantKind(t, cmd.Resize(ctx, daytona.TTYSize{Cols: 1, Rows: 1}), daytona.KindState)
	if err := cmd.Signal(ctx, "SIGINT"); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(stdout); string(rest) != "caught\n" || err != nil {
		t.Errorf("after the signal: %q, %v", rest, err)
	}
	if e, ok := errors.AsType[*daytona.ExitError](<-waited); !ok || e.ExitCode != 9 {
		t.Errorf("Wait: %v", e)
	}
	wantKind(t, cmd.Signal(ctx, "SIGINT"), daytona.KindGone)
}

func TestCommandTerminal(t *testing.T) {
	p := programAgent(t).Process()
	cmd := p.Command(t.Context(), "sh", "-c", "stty size; read x; stty size; echo got $x")
	cmd.TTY = &daytona.TTYSize{Cols: 100, Rows: 30}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	waited := make(chan error, 1)
	go func() { waited <- cmd.Wait() }()
	line := make([]byte, len("30 100\r\n"))
	if _, err := io.ReadFull(stdout, line); err != nil || string(line) != "30 100\r\n" {
		t.Fatalf("%q, %v", line, err)
	}
	if err := cmd.Resize(t.Context(), daytona.TTYSize{Cols: 90, Rows: 20}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(stdin, "word\n"); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(stdout)
	if err != nil || !strings.Contains(string(rest), "20 90") || !strings.Contains(string(rest), "got word") {
		t.Errorf("%q, %v", rest, err)
	}
	if err := <-waited; err != nil {
		t.Error(err)
	}
}

func TestCommandCancelKillsTree(t *testing.T) {
	p := programAgent(t).Process()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	cmd := p.Command(ctx, "sh", "-c", "sleep 600 & echo $!; setsid sleep 600 & echo $!; wait")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdin = os.Stdin // must not make Wait hang
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pids [2]int
	if _, err := fmt.Fscan(stdout, &pids[0], &pids[1]); err != nil {
		t.Fatal(err)
	}
	cancel()
	go io.Copy(io.Discard, stdout)
	if err := cmd.Wait(); !errors.Is(err, context.Canceled) {
		t.Errorf("Wait = %v", err)
	}
	// The agent notices on its own time.
	deadline := time.Now().Add(10 * time.Second)
	for _, pid := range append(pids[:], cmd.PID()) {
		for alive(pid) && time.Now().Before(deadline) {
			time.Sleep(5 * time.Millisecond)
		}
		if alive(pid) {
			t.Errorf("process %d is still there", pid)
		}
	}
}

// alive reports whether a process runs; a zombie does not.
func alive(pid int) bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return false
	}
	_, after, _ := strings.Cut(string(b), ") ")
	return !strings.HasPrefix(after, "Z") && !strings.HasPrefix(after, "X")
}

type failingWriter struct{ err error }

func (w failingWriter) Write([]byte) (int, error) { return 0, w.err }

func TestCommandWriterFails(t *testing.T) {
	p := programAgent(t).Process()
	full := errors.New("writer is full")
	cmd := p.Command(t.Context(), "yes")
	cmd.Stdout = failingWriter{full}
	if err := cmd.Run(); !errors.Is(err, full) {
		t.Errorf("Run = %v", err)
	}
	// Nor does an input that fails go unnoticed.
	cmd = p.Command(t.Context(), "cat")
	cmd.Stdin = io.MultiReader(strings.NewReader("begin"), errReader{full})
	out, err := cmd.Output()
	if string(out) != "begin" || !errors.Is(err, full) {
		t.Errorf("Output = %q, %v", out, err)
	}
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

func TestSession(t *testing.T) {
	p := programAgent(t).Process()
	ctx := t.Context()
	s, err := p.CreateSession(ctx, "main")
	if err != nil {
		t.Fatal(err)
	}
	_, err = p.CreateSession(ctx, "main")
	wantKind(t, err, daytona.KindConflict)
	_, err = p.Session(ctx, "none")
	wantKind(t, err, daytona.KindNotFound)
	if ids, err := p.Sessions(ctx); err != nil || len(ids) != 1 || ids[0] != "main" {
		t.Errorf("Sessions = %q, %v", ids, err)
	}

	if r, err := s.Run(ctx, "cd /; export X=1; echo o; echo e >&2"); err != nil || r.ExitCode != 0 || r.Stdout != "o\n" || r.Stderr != "e\n" {
		t.Errorf("Run = %+v, %v", r, err)
	}
	r, err := s.Run(ctx, "pwd; echo $X; (exit 5)")
	if err != nil || r.ExitCode != 5 || r.Stdout != "/\n1\n" {
		t.Errorf("Run = %+v, %v", r, err)
	}
	c, err := s.Command(ctx, r.CommandID)
	if err != nil {
		t.Fatal(err)
	}
	if stdout, stderr, err := c.Logs(ctx); err != nil || stdout != "/\n1\n" || stderr != "" {
		t.Errorf("Logs = %q, %q, %v", stdout, stderr, err)
	}
	_, err = s.Command(ctx, "none")
	wantKind(t, err, daytona.KindNotFound)

	run, err := s.Start(ctx, "echo begin; read line; echo \"line: $line\"; echo problem >&2; (exit 4)", &daytona.SessionOptions{SuppressInputEcho: true})
	if err != nil {
		t.Fatal(err)
	}
	if info, err := run.Info(ctx); err != nil || info.ID != run.ID() || info.ExitCode != nil {
		t.Errorf("Info = %+v, %v", info, err)
	}
	following := make(chan error, 1)
	var out, errs bytes.Buffer
	begun := make(chan struct{})
	go func() {
		following <- run.Follow(ctx, io.MultiWriter(&out, &signalWriter{want: "begin", seen: begun}), &errs)
	}()
	<-begun
	if err := run.SendInput(ctx, "hello"); err != nil {
		t.Fatal(err)
	}
	if err := <-following; err != nil || out.String() != "begin\nline: hello\n" || errs.String() != "problem\n" {
		t.Errorf("Follow: %q, %q, %v", out.String(), errs.String(), err)
	}
	if code, err := run.Wait(ctx); code != 4 || err != nil {
		t.Errorf("Wait = %d, %v", code, err)
	}
	wantKind(t, run.SendInput(ctx, "late"), daytona.KindGone)

	long, err := s.Start(ctx, "sleep 600", nil)
	if err != nil {
		t.Fatal(err)
	}
	stop, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if _, err := long.Wait(stop); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Wait = %v", err)
	}
	if list, err := s.Commands(ctx); err != nil || len(list) != 4 || list[0].ExitCode == nil || list[3].ExitCode != nil {
		t.Errorf("Commands = %+v, %v", list, err)
	}
	if err := s.Delete(ctx); err != nil {
		t.Fatal(err)
	}
	wantKind(t, s.Delete(ctx), daytona.KindNotFound)
}

// signalWriter closes seen when want has been written.
type signalWriter struct {
	want string
	seen chan struct{}
	got  []byte
	once sync.Once
}

func (w *signalWriter) Write(p []byte) (int, error) {
	w.got = append(w.got, p...)
	if bytes.Contains(w.got, []byte(w.want)) {
		w.once.Do(func() { close(w.seen) })
	}
	return len(p), nil
}

func TestPTY(t *testing.T) {
	p := programAgent(t).Process()
	ctx := t.Context()
	term, err := p.CreatePTY(ctx, daytona.PTYOptions{ID: "main", Size: daytona.TTYSize{Cols: 100, Rows: 30}, Dir: "/", Env: map[string]string{"PS1": "", "EXTRA": "e"}})
	if err != nil {
		t.Fatal(err)
	}
	defer term.Close()
	if term.ID() != "main" {
		t.Errorf("ID = %q", term.ID())
	}
	_, err = p.CreatePTY(ctx, daytona.PTYOptions{ID: "main"})
	wantKind(t, err, daytona.KindConflict)
	_, err = p.ConnectPTY(ctx, "none")
	wantKind(t, err, daytona.KindNotFound)
	if list, err := p.PTYs(ctx); err != nil || len(list) != 1 || list[0].ID != "main" || !list[0].Active || list[0].Dir != "/" ||
		list[0].Size != (daytona.TTYSize{Cols: 100, Rows: 30}) || list[0].CreatedAt.IsZero() {
		t.Errorf("PTYs = %+v, %v", list, err)
	}
	var shown lockedBuffer
	reading := make(chan error, 1)
	go func() { _, err := io.Copy(&shown, term); reading <- err }()
	expect := func(command, want string) {
		t.Helper()
		if _, err := io.WriteString(term, command+"\n"); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(20 * time.Second); !strings.Contains(shown.String(), want); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: %q is not in %q", command, want, shown.String())
			}
		}
	}
	// The arithmetic keeps the echo of what is typed from matching.
	expect("echo $EXTRA$((40+2)) $(pwd) $TERM", "e42 / xterm-256color")
	expect("stty size", "30 100")
	if err := term.Resize(ctx, daytona.TTYSize{Cols: 90, Rows: 20}); err != nil {
		t.Fatal(err)
	}
	expect("stty size", "20 90")

	// A second one sees the same, and its going leaves the shell.
	second, err := p.ConnectPTY(ctx, "main")
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(second, "echo second$((1+1))\n")
	expect("", "second2")
	if err := second.Close(); err != nil {
		t.Error(err)
	}
	if _, err := second.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("Read after Close: %v", err)
	}
	_, err = second.Wait(ctx)
	wantKind(t, err, daytona.KindState)

	stop, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	if _, err := term.Wait(stop); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Wait = %v", err)
	}
	io.WriteString(term, "exit 7\n")
	if status, err := term.Wait(ctx); err != nil || status.ExitCode != 7 || status.Signal != "" {
		t.Errorf("Wait = %+v, %v", status, err)
	}
	if err := <-reading; err != nil {
		t.Errorf("Read: %v", err)
	}
	if _, err := term.Write([]byte("x")); !errors.Is(err, daytona.ErrGone) {
		t.Errorf("Write after the end: %v", err)
	}
	if err := term.Kill(ctx); err != nil {
		t.Errorf("Kill after the end: %v", err)
	}

	killed, err := p.CreatePTY(ctx, daytona.PTYOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer killed.Close()
	if err := killed.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	go io.Copy(io.Discard, killed)
	if status, err := killed.Wait(ctx); err != nil || status.ExitCode != 137 || status.Signal != "SIGKILL" {
		t.Errorf("Wait = %+v, %v", status, err)
	}
}

// lockedBuffer is written by one goroutine and read by another.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestPorts(t *testing.T) {
	tb := programAgent(t)
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				b, _ := io.ReadAll(c) // until the other side's half-close
				fmt.Fprintf(c, "got %d", len(b))
			}()
		}
	}()
	number := l.Addr().(*net.TCPAddr).Port
	found := false
	list, err := tb.Process().Ports(t.Context())
	for _, p := range list {
		found = found || p == number
	}
	if err != nil || !found {
		t.Errorf("Ports = %v, %v; want %d among them", list, err, number)
	}
	c, err := tb.DialPort(t.Context(), number)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write(make([]byte, 100000)); err != nil {
		t.Fatal(err)
	}
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(c); string(b) != "got 100000" || err != nil {
		t.Errorf("answer %q, %v", b, err)
	}
	l.Close()
	_, err = tb.DialPort(t.Context(), number)
	wantKind(t, err, daytona.KindUnavailable)
}

func BenchmarkExec(b *testing.B) {
	p := programAgent(b).Process()
	for b.Loop() {
		if _, err := p.Exec(b.Context(), "true", nil); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCommand(b *testing.B) {
	p := programAgent(b).Process()
	for b.Loop() {
		if err := p.Command(b.Context(), "true").Run(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCommandOutput(b *testing.B) {
	p := programAgent(b).Process()
	const size = 256 << 20
	b.SetBytes(size)
	for b.Loop() {
		cmd := p.Command(b.Context(), "head", "-c", strconv.Itoa(size), "/dev/zero")
		cmd.Stdout = io.Discard
		if err := cmd.Run(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCommandInput(b *testing.B) {
	p := programAgent(b).Process()
	const size = 256 << 20
	b.SetBytes(size)
	for b.Loop() {
		cmd := p.Command(b.Context(), "cat")
		cmd.Stdin, cmd.Stdout = &zeros{size, make([]byte, 1<<20)}, io.Discard
		if err := cmd.Run(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRoundTrip is what the client and a connection cost without an
// agent's work.
func BenchmarkRoundTrip(b *testing.B) {
	tb := serve(b, answer(200, "application/json", `{"exitCode":0,"result":""}`), nil)
	for b.Loop() {
		if _, err := tb.Process().Exec(b.Context(), "true", nil); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkCommandRoundTrip is the same for a command.
func BenchmarkCommandRoundTrip(b *testing.B) {
	tb := serve(b, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			b.Error(err)
			return
		}
		c.Write(r.Context(), websocket.MessageText, []byte(`{"pid":1}`))
		c.Write(r.Context(), websocket.MessageText, []byte(`{"exit":{"code":0}}`))
		c.CloseNow()
	}), nil)
	for b.Loop() {
		if err := tb.Process().Command(b.Context(), "true").Run(); err != nil {
			b.Fatal(err)
		}
	}
}
