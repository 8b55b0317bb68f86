package interpreter_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/toolbox/account"
	"github.com/daytona-go/daytona/toolbox/client"
	"github.com/daytona-go/daytona/toolbox/interpreter"
	"github.com/daytona-go/daytona/toolbox/process"
)

// agent is the part of an agent that runs code, served on a socket.
type agent struct {
	daytona.Interpreter
	t      testing.TB
	socket string
	dir    string // the working directory
	mux    http.Handler
}

// pythonPath is a PATH whose python3 is the system's: it may have matplotlib.
// Where the language servers for tests are, there is a compiler for TypeScript.
var pythonPath = "PATH=/usr/bin:/bin:/usr/local/bin:" + os.Getenv("DAYTONA_TEST_LSP")

func needs(t testing.TB, program string, args ...string) {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Env = append(os.Environ(), pythonPath)
	if p, err := exec.LookPath("/usr/bin/" + program); err == nil {
		cmd.Path, cmd.Err = p, nil
	}
	if err := cmd.Run(); err != nil {
		t.Skipf("needs %s %s: %v", program, strings.Join(args, " "), err)
	}
}

// startAgent serves until the end of the test. As root, programs run as
// somebody else.
func startAgent(t testing.TB, env ...string) *agent {
	t.Helper()
	dir, err := os.MkdirTemp("", "in")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	a := &agent{t: t, socket: filepath.Join(dir, "s"), dir: filepath.Join(dir, "work")}
	if err := os.Mkdir(a.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	user := account.Current()
	if os.Getuid() == 0 {
		if user, err = account.Lookup("65534:65534"); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(a.dir, user.UID, user.GID); err != nil {
			t.Fatal(err)
		}
	}
	env = append([]string{pythonPath, "HOME=" + a.dir}, env...)
	processes := process.New(process.Options{Account: user, WorkDir: a.dir, Environ: func() []string { return env }})
	t.Cleanup(processes.Close)
	service := interpreter.New(interpreter.Options{Spawner: processes.Spawner()})
	t.Cleanup(service.Close)
	mux := http.NewServeMux()
	service.Register(mux)
	processes.Register(mux)
	l, err := net.Listen("unix", a.socket)
	if err != nil {
		t.Fatal(err)
	}
	a.mux = mux
	srv := &http.Server{Handler: mux}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	tb := client.New(func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", a.socket)
	}, nil)
	t.Cleanup(func() { tb.Close() })
	a.Interpreter = tb.Interpreter()
	return a
}

// run runs code that must run.
func (a *agent) run(code string, o *daytona.InterpreterOptions) daytona.InterpreterResult {
	a.t.Helper()
	r, err := a.Run(a.t.Context(), code, o)
	if err != nil {
		a.t.Fatalf("run %q: %v", code, err)
	}
	return r
}

// prints checks what code prints.
func (a *agent) prints(o *daytona.InterpreterOptions, code, want string) {
	a.t.Helper()
	if r := a.run(code, o); r.Stdout != want || r.Stderr != "" || r.Err != nil {
		a.t.Errorf("%s: printed %q, %q, %+v; want %q", code, r.Stdout, r.Stderr, r.Err, want)
	}
}

func wantKind(t testing.TB, err error, kind daytona.Kind) {
	t.Helper()
	if e, ok := errors.AsType[*daytona.Error](err); !ok || e.Kind != kind {
		t.Errorf("error %v (%T), want kind %q", err, err, kind)
	}
}

func TestState(t *testing.T) {
	needs(t, "python3", "-c", "pass")
	a := startAgent(t)
	a.prints(nil, "x = 41", "")
	a.prints(nil, "x += 1\nprint(x)", "42\n")
	a.prints(nil, "def f():\n    return x\nclass C: pass", "")
	a.prints(nil, "print(f(), C.__module__, __name__)", "42 __main__ __main__\n")
	a.prints(nil, "import pickle; print(type(pickle.loads(pickle.dumps(C()))) is C)", "True\n")
	a.prints(nil, "from __future__ import annotations\nprint('é ☺')", "é ☺\n")
	a.prints(nil, "import asyncio\nv = await asyncio.sleep(0, 'awaited')\nprint(v)", "awaited\n")
	a.prints(nil, "print(await asyncio.sleep(0, 'again'))", "again\n")
	a.prints(nil, "import os; os.chdir('/'); os.write(1, b'raw\\n'); os.system('echo child');", "raw\nchild\n")
	a.prints(nil, "print(os.getcwd(), 'end', end='')", "/ end")
	a.prints(nil, "import sys; print(sys.argv, sys.stdin.read() == '')", "[''] True\n")
	// Another one knows nothing of it.
	c, err := a.CreateContext(t.Context(), &daytona.InterpreterContextOptions{Dir: "/usr"})
	if err != nil {
		t.Fatal(err)
	}
	if c.Dir != "/usr" || c.Language != "python" || !c.Active || time.Since(c.CreatedAt) > time.Minute {
		t.Errorf("%+v", c)
	}
	own := &daytona.InterpreterOptions{Context: c.ID}
	a.prints(own, "import os; print(os.getcwd(), os.environ['PWD'], 'x' in globals())", "/usr /usr False\n")
	list, err := a.Contexts(t.Context())
	if err != nil || len(list) != 1 || list[0].ID != c.ID {
		t.Errorf("%+v, %v", list, err)
	}
	if err := a.DeleteContext(t.Context(), c.ID); err != nil {
		t.Error(err)
	}
	_, err = a.Run(t.Context(), "1", own)
	wantKind(t, err, daytona.KindNotFound)
	wantKind(t, a.DeleteContext(t.Context(), c.ID), daytona.KindNotFound)
	wantKind(t, a.DeleteContext(t.Context(), daytona.DefaultInterpreterContext), daytona.KindInvalid)
	a.prints(nil, "print(x)", "42\n")
}

func TestEnv(t *testing.T) {
	needs(t, "python3", "-c", "pass")
	a := startAgent(t, "BASE=b")
	env := &daytona.InterpreterOptions{Env: map[string]string{"E": "v", "BASE": "changed"}}
	a.prints(env, "import os; os.environ['OWN'] = 'o'; print(os.environ['E'], os.environ['BASE']); os.system('echo $E $BASE');", "v changed\nv changed\n")
	a.prints(nil, "print('E' in os.environ, os.environ['BASE'], os.environ['OWN'])", "False b o\n")
	_, err := a.Run(t.Context(), "1", &daytona.InterpreterOptions{Env: map[string]string{"1X": ""}})
	wantKind(t, err, daytona.KindInvalid)
}

func TestExceptions(t *testing.T) {
	needs(t, "python3", "-c", "pass")
	a := startAgent(t)
	a.prints(nil, "def broken(d):\n    return d['on purpose']", "")
	for _, c := range []struct{ code, name, value, trace string }{
		{"print('out')\nbroken({})", "KeyError", "'on purpose'",
			"Traceback (most recent call last):\n  File \"<cell 2>\", line 2, in <module>\n    broken({})\n  File \"<cell 1>\", line 2, in broken\n    return d['on purpose']\n"},
		{"x = (", "SyntaxError", "'(' was never closed (<cell 3>, line 1)", "  File \"<cell 3>\", line 1\n"},
		{"import sys; sys.exit(3)", "SystemExit", "3", "SystemExit: 3"},
		{"import sys; sys.exit('no')", "SystemExit", "no", "SystemExit: no"},
		{"raise KeyboardInterrupt", "KeyboardInterrupt", "", "KeyboardInterrupt"},
		{"try:\n    1/0\nexcept Exception as e:\n    raise ValueError('v') from e", "ValueError", "v", "ZeroDivisionError: division by zero\n\nThe above exception was the direct cause"},
		{"class Bad(Exception):\n    def __str__(self): raise TypeError\nraise Bad()", "Bad", "<exception without a text form>", "Bad: <exception str() failed>"},
		{"def r(): r()\nr()", "RecursionError", "maximum recursion depth exceeded", "Previous line repeated"},
		{"'\\x00'; eval('\\x00')", "ValueError", "source code string cannot contain null bytes", "<cell"},
		{"await None", "TypeError", "object NoneType can't be used in 'await' expression", "<cell"},
	} {
		r := a.run(c.code, nil)
		if r.Err == nil || r.Err.Name != c.name || !strings.HasPrefix(r.Err.Value, c.value) || !strings.Contains(r.Err.Traceback, c.trace) || strings.Contains(r.Err.Traceback, "<daytona>") || r.Stderr != "" {
			t.Errorf("%s: %+v %q", c.code, r.Err, r.Stderr)
		}
	}
	a.prints(nil, "import sys; sys.exit()", "")
	r := a.run("import sys; print('e', file=sys.stderr); print('o')", nil)
	if r.Stdout != "o\n" || r.Stderr != "e\n" {
		t.Errorf("%+v", r)
	}
}

func TestResults(t *testing.T) {
	needs(t, "python3", "-c", "pass")
	a := startAgent(t)
	text := func(r daytona.InterpreterResult) string {
		var all []string
		for _, d := range r.Results {
			all = append(all, d.Text())
		}
		return strings.Join(all, "|")
	}
	for _, c := range []struct{ code, want string }{
		{"1 + 1", "2"}, {"x = 1", ""}, {"None", ""}, {"'a'", "'a'"}, {"1; 2", "2"}, {"3;", ""}, {"for i in range(2): i", ""},
		{"display(1, 'b')\n2", "1|'b'|2"}, {"_", "2"},
		{"class N:\n    def __repr__(self): raise ValueError\nN()", "<N without a text form: ValueError>"},
	} {
		if r := a.run(c.code, nil); text(r) != c.want || r.Err != nil || r.Stdout != "" {
			t.Errorf("%s: %q %+v", c.code, text(r), r)
		}
	}
	r := a.run(`
class Rich:
    def __repr__(self): return "plain"
    def _repr_html_(self): return "<b>rich</b>"
    def _repr_png_(self): return b"\x89PNG\r\n\x1a\nrest"
    def _repr_json_(self): return {"a": [1]}
    def _repr_svg_(self): raise ValueError
Rich()`, nil)
	if len(r.Results) != 1 {
		t.Fatalf("%+v", r)
	}
	for media, want := range map[string]string{"text/plain": "plain", "text/html": "<b>rich</b>", "image/png": "\x89PNG\r\n\x1a\nrest", "application/json": `{"a": [1]}`} {
		if got := string(r.Results[0][media]); got != want {
			t.Errorf("%s is %q, want %q", media, got, want)
		}
	}
	// As it comes, and bounded.
	var live []string
	r = a.run("display(1)\nclass L:\n    def __repr__(self): return 'x' * (3 << 20)\n    def _repr_html_(self): return 'y' * (20 << 20)\nL()", &daytona.InterpreterOptions{
		Result: func(d daytona.InterpreterData) { live = append(live, d.Text()) },
	})
	if len(live) != 2 || live[0] != "1" || len(live[1]) < 1<<20 || len(live[1]) > 1<<20+10 || !strings.Contains(r.Stderr, "write it to a file") || r.Err != nil {
		t.Errorf("%d results, %q, %+v", len(live), r.Stderr, r.Err)
	}
}

// Output comes as it is printed, also from two streams into one writer.
func TestOutputIsLive(t *testing.T) {
	needs(t, "python3", "-c", "pass")
	a := startAgent(t)
	out := make(chan string, 10)
	w := writerFunc(func(p []byte) (int, error) { out <- string(p); return len(p), nil })
	if out, err := exec.Command("mkfifo", "-m", "666", filepath.Join(a.dir, "go")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	done := make(chan error)
	go func() {
		r, err := a.Run(t.Context(), "import time\nprint('first', end='')\nopen('go').read()\nprint('last')", &daytona.InterpreterOptions{Stdout: w, Stderr: w})
		if err == nil && (r.Stdout != "" || r.Err != nil) {
			err = fmt.Errorf("%+v", r)
		}
		done <- err
	}()
	if got := <-out; got != "first" {
		t.Errorf("%q", got)
	}
	a.run("open('go', 'w').close()", own(a, "python"))
	if err := <-done; err != nil {
		t.Error(err)
	}
	if got := <-out; got != "last" && got != "last\n" {
		t.Errorf("%q", got)
	}
	_, err := a.Run(t.Context(), "while True: print('x')", &daytona.InterpreterOptions{Stdout: writerFunc(func([]byte) (int, error) { return 0, errors.New("full") })})
	if err == nil || !strings.Contains(err.Error(), "full") {
		t.Errorf("error of the writer: %v", err)
	}
	a.prints(nil, "print('still here')", "still here\n")
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// closing closes a channel at the first output.
func closing(began chan struct{}) writerFunc {
	var once sync.Once
	return func(p []byte) (int, error) {
		once.Do(func() { close(began) })
		return len(p), nil
	}
}

// own makes a context of its own for a language.
func own(a *agent, language string) *daytona.InterpreterOptions {
	a.t.Helper()
	c, err := a.CreateContext(a.t.Context(), &daytona.InterpreterContextOptions{Language: language})
	if err != nil {
		a.t.Fatal(err)
	}
	return &daytona.InterpreterOptions{Context: c.ID}
}

// Whatever code does, it comes to an end, other contexts do not notice, and
// the next run in its own works.
func TestHostileCode(t *testing.T) {
	needs(t, "python3", "-c", "pass")
	a := startAgent(t)
	other := own(a, "python")
	a.run("kept = 1", other)
	const exited = daytona.InterpreterExited
	for name, c := range map[string]struct {
		code string
		want string // the name of the exception
		kept bool   // the state
	}{
		"exit":              {"import os; print('before', flush=True); os._exit(3)", exited, false},
		"crash":             {"import ctypes; ctypes.string_at(0)", exited, false},
		"killed":            {"import os, signal; os.kill(os.getpid(), signal.SIGKILL)", exited, false},
		"all closed":        {"import os; os.closerange(0, 65536); import time; time.sleep(60)", exited, false},
		"some closed":       {"import os; os.closerange(0, 100)", "", true},
		"streams closed":    {"import sys; sys.stdout.close(); sys.stderr.close(); sys.stdin.close()", "", true},
		"streams gone":      {"import sys; del sys.stdout; sys.stderr = None", "", true},
		"forged end":        {forge(`{"type":"done","id":0}`), "", true},
		"forged frame":      {forge(`{"type":"nonsense"}`) + "\nimport time; time.sleep(60)", exited, false},
		"forged length":     {forge("") + "\nimport time; os.write(fd, b'\\xff\\xff\\xff\\xffxx'); time.sleep(60)", exited, false},
		"half a frame":      {forge("") + "\nos.write(fd, b'\\x00\\x00\\x01\\x00xx'); os._exit(0)", exited, false},
		"fork":              {"import os\nif os.fork() == 0: print('child')\nelse: os.wait()", "", true},
		"fork and raise":    {"import os\nif os.fork() == 0: raise ValueError('child')\nos.wait();", "", true},
		"forks":             {"import os\nfor i in range(5): os.fork()", "", true},
		"daemon":            {"import os\nif os.fork() == 0:\n    os.setsid()\n    os.execv('/bin/sleep', ['sleep', '300'])", "", true},
		"multiprocessing":   {"import multiprocessing as m\nwith m.get_context('fork').Pool(2) as p: print(p.map(abs, [-1]))", "", true},
		"modules gone":      {"import sys; sys.modules.clear()", "", false},
		"builtins gone":     {"import builtins; builtins.print = None; builtins.len = None", "", false},
		"recursion in C":    {"import sys; sys.setrecursionlimit(10**6)\ndef f(_): return list(map(f, [0]))\nf(0)", "", false},
		"memory":            {"import resource; resource.setrlimit(resource.RLIMIT_AS, (1<<29, 1<<29)); x = 'x' * (1<<30)", "MemoryError", true},
		"deep source":       {"eval('(' * 100000)", "", false},
		"much source":       {"exec('x = 1\\n' * 100000)", "", true},
		"threads":           {"import threading, time\ndef f():\n    while True: print('thread'); time.sleep(0.001)\nfor i in range(5): threading.Thread(target=f, daemon=True).start()", "", true},
		"handler":           {"import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)", "", true},
		"exit handlers":     {"import atexit, time; atexit.register(time.sleep, 60)", "", true},
		"no more output":    {"import os; os.dup2(os.open('/dev/null', os.O_WRONLY), 1)", "", true},
		"exception of many": {"raise Exception('x' * (30 << 20))", "Exception", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := &agent{Interpreter: a.Interpreter, t: t}
			o := own(a, "python")
			a.run("y = 1", o)
			o.Timeout = time.Minute
			r, err := a.Run(t.Context(), c.code, o)
			if err != nil {
				t.Fatalf("%v %+v", err, r)
			}
			if c.want != "" && (r.Err == nil || r.Err.Name != c.want) || c.want == "" && r.Err != nil && c.kept {
				t.Errorf("%+v", r)
			}
			if name == "exit" && (r.Stdout != "before\n" || r.Err == nil || !strings.Contains(r.Err.Value, "code 3")) {
				t.Errorf("%+v %+v", r, r.Err)
			}
			if c.want == exited || c.kept {
				// One write, which the threads' own don't come between.
				again := a.run("print(str('y' in globals()) + '\\n', end='')", o)
				if name == "no more output" {
					a.run("import os", o)
				} else if want := map[bool]string{true: "True\n", false: "False\n"}[c.kept]; !strings.Contains(again.Stdout, want) || again.Err != nil {
					t.Errorf("the next run: %+v %+v", again, again.Err)
				}
			}
			if err := a.DeleteContext(t.Context(), o.Context); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(func() {
		a := &agent{Interpreter: a.Interpreter, t: t}
		r, err := a.Run(context.Background(), "print(kept)", other)
		if err != nil || r.Stdout != "1\n" {
			t.Errorf("another context: %+v %v", r, err)
		}
	})
}

// forge writes a frame to the interpreter's own descriptor.
func forge(frame string) string {
	return fmt.Sprintf(`
import os, stat
for fd in sorted(map(int, os.listdir('/proc/self/fd'))):
    try:
        if fd > 2 and stat.S_ISSOCK(os.fstat(fd).st_mode): break
    except OSError: pass
b = %q.encode()
if b: os.write(fd, len(b).to_bytes(4, 'big') + b)
`, frame)
}

func TestTimeout(t *testing.T) {
	needs(t, "python3", "-c", "pass")
	a := startAgent(t)
	short := &daytona.InterpreterOptions{Timeout: 200 * time.Millisecond}
	for _, c := range []struct {
		code string
		kept bool
	}{
		{"print('begun')\nwhile True: pass", true},
		{"print('begun')\nimport time; time.sleep(60)", true},
		{"print('begun')\nimport subprocess; subprocess.run(['sleep', '60'])", true},
		{"print('begun')\nimport asyncio; await asyncio.sleep(60)", true},
		{"print('begun')\nwhile True:\n    try: time.sleep(60)\n    except KeyboardInterrupt: break\nwhile True:\n    try: time.sleep(60)\n    except KeyboardInterrupt: break", true},
		{"print('begun')\nimport time\nwhile True:\n    try: time.sleep(60)\n    except BaseException: pass", false},
		{"print('begun')\nimport os, signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT]); import time; time.sleep(60)", false},
	} {
		a.run("x = 1", nil)
		begin := time.Now()
		r, err := a.Run(t.Context(), c.code, short)
		wantKind(t, err, daytona.KindTimeout)
		if !strings.HasPrefix(r.Stdout, "begun") || time.Since(begin) > 20*time.Second {
			t.Errorf("%s: %+v after %v", c.code, r, time.Since(begin))
		}
		if r := a.run("print('x' in globals())", nil); (r.Stdout == "True\n") != c.kept || r.Err != nil {
			t.Errorf("%s: the state: %+v %+v", c.code, r, r.Err)
		}
	}
}

// Processes that multiply end with their context at the latest, and others go
// on meanwhile.
func TestForkBomb(t *testing.T) {
	needs(t, "python3", "-c", "pass")
	a := startAgent(t)
	bomb := own(a, "python")
	bomb.Timeout = 300 * time.Millisecond
	_, err := a.Run(t.Context(), "import os, resource; resource.setrlimit(resource.RLIMIT_NPROC, (100, 100))\nwhile True:\n    try: os.fork()\n    except BaseException: pass", bomb)
	wantKind(t, err, daytona.KindTimeout)
	a.prints(nil, "print(1)", "1\n")
	if err := a.DeleteContext(t.Context(), bomb.Context); err != nil {
		t.Error(err)
	}
	if n := len(slices.DeleteFunc(workDirs(t), func(dir string) bool { return dir != a.dir })); n > 2 {
		t.Errorf("%d processes are left", n) // the implicit context's and a spare one
	}
}

// workDirs are the working directories of all processes that can be seen.
func workDirs(t *testing.T) (dirs []string) {
	t.Helper()
	links, err := filepath.Glob("/proc/[0-9]*/cwd")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if dir, err := os.Readlink(l); err == nil {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

// TestInterruptAtOnce interrupts code that has only just begun, which the agent
// may not have noticed having sent: it is the code that ends, not the
// interpreter.
func TestInterruptAtOnce(t *testing.T) {
	needs(t, "python3", "-c", "pass")
	a := startAgent(t)
	a.run("x = 1", nil)
	for i := range 100 {
		began := make(chan struct{})
		done := make(chan daytona.InterpreterResult)
		go func() {
			r, _ := a.Run(t.Context(), "print('begun', flush=True)\nwhile True: pass", &daytona.InterpreterOptions{Timeout: -1, Stdout: closing(began)})
			done <- r
		}()
		<-began
		if err := a.Interrupt(t.Context(), daytona.DefaultInterpreterContext); err != nil {
			t.Fatal(err)
		}
		if r := <-done; !r.Interrupted || r.Err == nil || r.Err.Name != "KeyboardInterrupt" {
			t.Fatalf("run %d: %+v %+v", i, r, r.Err)
		}
	}
	if r := a.run("print(x)", nil); r.Stdout != "1\n" {
		t.Errorf("%+v", r)
	}
}

func TestInterrupt(t *testing.T) {
	needs(t, "python3", "-c", "pass")
	a := startAgent(t)
	for _, how := range []string{"route", "context"} {
		a.run("x = 1", nil)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		began := make(chan struct{})
		type outcome struct {
			r   daytona.InterpreterResult
			err error
		}
		done := make(chan outcome)
		go func() {
			r, err := a.Run(ctx, "print('begun')\nwhile True: pass", &daytona.InterpreterOptions{Timeout: -1, Stdout: closing(began)})
			done <- outcome{r, err}
		}()
		<-began
		if how == "route" {
			if err := a.Interrupt(t.Context(), daytona.DefaultInterpreterContext); err != nil {
				t.Error(err)
			}
			if o := <-done; o.err != nil || !o.r.Interrupted || o.r.Err == nil || o.r.Err.Name != "KeyboardInterrupt" || !strings.Contains(o.r.Err.Traceback, "<cell ") || strings.Contains(o.r.Err.Traceback, "<daytona>") {
				t.Errorf("%+v %+v", o, o.r.Err)
			}
		} else {
			cancel()
			if o := <-done; !errors.Is(o.err, context.Canceled) {
				t.Errorf("%+v", o)
			}
		}
		a.prints(nil, "print(x)", "1\n")
	}
	if err := a.Interrupt(t.Context(), "default"); err != nil {
		t.Error(err)
	}
	wantKind(t, a.Interrupt(t.Context(), "nothing"), daytona.KindNotFound)
}

// Runs in one context queue; other contexts do not wait.
func TestRunsQueue(t *testing.T) {
	needs(t, "python3", "-c", "pass")
	a := startAgent(t)
	a.run("import os, time; os.mkfifo('go'); n = 0", nil)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() { a.run("v = n; time.sleep(0.002); n = v + 1", nil) })
	}
	wg.Wait()
	a.prints(nil, "print(n)", "20\n")
	// One that waits goes away when its client does.
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	began := make(chan struct{})
	wg.Go(func() {
		a.run("print('begun'); open('go').read()", &daytona.InterpreterOptions{Stdout: closing(began)})
	})
	<-began
	if _, err := a.Run(ctx, "n = 'must not run'", nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	a.run("open('go', 'w').close()", own(a, "python"))
	wg.Wait()
	a.prints(nil, "print(n)", "20\n")
}

// The agent's memory and the client's do not grow with the output.
func TestHugeOutput(t *testing.T) {
	needs(t, "python3", "-c", "pass")
	size := 256 << 20
	if testing.Short() {
		size = 64 << 20
	}
	a := startAgent(t)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	n := 0
	r := a.run(fmt.Sprintf("import sys\nfor i in range(%d): sys.stdout.write('x' * (1 << 20))", size>>20), &daytona.InterpreterOptions{
		Stdout: writerFunc(func(p []byte) (int, error) { n += len(p); return len(p), nil }),
	})
	runtime.ReadMemStats(&after)
	if n != size || r.Err != nil {
		t.Errorf("%d bytes, %+v", n, r.Err)
	}
	if grown := int64(after.HeapSys) - int64(before.HeapSys); grown > 64<<20 {
		t.Errorf("the heap grew by %d MiB", grown>>20)
	}
	// Not with a writer: what is kept is bounded.
	r = a.run("sys.stdout.write('é' * (40 << 20));", nil)
	if len(r.Stdout) != 64<<20 || !r.Truncated {
		t.Errorf("%d bytes, truncated %v", len(r.Stdout), r.Truncated)
	}
}

func TestRefuses(t *testing.T) {
	needs(t, "python3", "-c", "pass")
	a := startAgent(t)
	_, err := a.Run(t.Context(), " \n", nil)
	wantKind(t, err, daytona.KindInvalid)
	_, err = a.Run(t.Context(), "1", &daytona.InterpreterOptions{Language: "cobol"})
	wantKind(t, err, daytona.KindInvalid)
	_, err = a.Run(t.Context(), strings.Repeat("#", 17<<20), nil)
	wantKind(t, err, daytona.KindInvalid)
	for _, o := range []daytona.InterpreterContextOptions{{Dir: "/no/such"}, {Dir: "/etc/passwd"}, {Dir: "/proc/self/fd"}, {Language: "cobol"}, {Dir: "a\x00b"}} {
		_, err := a.CreateContext(t.Context(), &o)
		wantKind(t, err, daytona.KindInvalid)
	}
	if list, err := a.Contexts(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("%v, %v", list, err)
	}
	a.prints(nil, "print(1)", "1\n")
	missing := startAgent(t, "PATH=/nowhere")
	_, err = missing.CreateContext(t.Context(), nil)
	wantKind(t, err, daytona.KindInvalid)
	_, err = missing.Run(t.Context(), "1", nil)
	if wantKind(t, err, daytona.KindInvalid); !strings.Contains(fmt.Sprint(err), "python3") {
		t.Errorf("%v", err)
	}
}

func TestCharts(t *testing.T) {
	needs(t, "python3", "-c", "import matplotlib")
	a := startAgent(t)
	r := a.run(`
import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt, datetime
print("before")
plt.plot([1, 2, 3], [4, 5, float("nan")], label="L"); plt.title("Line"); plt.xlabel("X"); plt.ylabel("Y"); plt.show()
plt.scatter([1, 2], [3, 4], label="S"); plt.title("Scatter"); plt.show()
plt.bar(["a", "b"], [3, 7]); plt.title("Bar"); plt.show()
plt.pie([1, 3], labels=["p", "q"]); plt.title("Pie"); plt.show()
plt.boxplot([[1, 2, 3, 4, 50], [2, 3, 4]]); plt.title("Box"); plt.show()
fig, (l, r) = plt.subplots(1, 2); l.plot([1, 2]); r.bar(["x"], [1]); fig.suptitle("Both"); plt.show()
print("after")
`, nil)
	if r.Err != nil || r.Stdout != "before\nafter\n" || len(r.Charts) != 6 {
		t.Fatalf("%+v %+v", r, r.Err)
	}
	want := []daytona.Chart{
		{Type: daytona.LineChart, Title: "Line", XLabel: "X", YLabel: "Y", XScale: "linear", Elements: []daytona.ChartElement{{Label: "L", Points: [][2]float64{{1, 4}, {2, 5}}}}},
		{Type: daytona.ScatterChart, Title: "Scatter", XScale: "linear", Elements: []daytona.ChartElement{{Label: "S", Points: [][2]float64{{1, 3}, {2, 4}}}}},
		{Type: daytona.BarChart, Title: "Bar", Elements: []daytona.ChartElement{{Label: "a", Value: "3"}, {Label: "b", Value: "7"}}},
		{Type: daytona.PieChart, Title: "Pie", Elements: []daytona.ChartElement{{Label: "p", Angle: 90, Radius: 1}, {Label: "q", Angle: 270, Radius: 1}}},
		{Type: daytona.BoxChart, Title: "Box", Elements: []daytona.ChartElement{
			{Label: "1", Min: 1, FirstQuartile: 2, Median: 3, ThirdQuartile: 4, Max: 4, Outliers: []float64{50}},
			{Label: "2", Min: 2, FirstQuartile: 2.5, Median: 3, ThirdQuartile: 3.5, Max: 4}}},
		{Type: daytona.CompositeChart, Title: "Both"},
	}
	for i, c := range r.Charts {
		w := want[i]
		if c.Type != w.Type || c.Title != w.Title || c.XLabel != w.XLabel || c.YLabel != w.YLabel || c.XScale != w.XScale || !strings.HasPrefix(string(c.PNG), "\x89PNG") {
			t.Errorf("chart %d: %+v", i, c)
		}
		if len(w.Elements) > 0 && !slices.EqualFunc(c.Elements, w.Elements, func(a, b daytona.ChartElement) bool { return fmt.Sprint(a) == fmt.Sprint(b) }) {
			t.Errorf("chart %d: %+v, want %+v", i, c.Elements, w.Elements)
		}
	}
	if both := r.Charts[5].Elements; len(both) != 2 || both[0].Chart == nil || both[0].Chart.Type != daytona.LineChart || both[1].Chart == nil || both[1].Chart.Elements[0].Value != "1" {
		t.Errorf("%+v", both)
	}
	// A figure is a chart, too, where a value is shown.
	var live []daytona.ChartType
	r = a.run("fig, ax = plt.subplots(); ax.plot([1, 2]); display(fig)\nfig", &daytona.InterpreterOptions{Chart: func(c daytona.Chart) { live = append(live, c.Type) }})
	if len(r.Charts) != 2 || len(live) != 2 || live[0] != daytona.LineChart || len(r.Results) != 0 {
		t.Errorf("%+v", r)
	}
}

func TestJavaScript(t *testing.T) {
	needs(t, "node", "--version")
	a := startAgent(t)
	o := own(a, "javascript")
	for _, c := range []struct{ code, want, result, err string }{
		{"const x = 41; let y; function f() { return x + 1 }", "", "", ""},
		{"console.log(f(), typeof y, this === globalThis)", "42 undefined true\n", "", ""},
		{"const x = 1; x", "", "1", ""},
		{"await new Promise((r) => setTimeout(r, 5, 'awaited'))", "", "'awaited'", ""},
		{"let {a} = {a: await 7}; a;", "", "7", ""},
		{"console.error('e'); process.stdout.write('no newline')", "no newline", "true", ""},
		{"throw new TypeError('on purpose')", "", "", "TypeError: on purpose"},
		{"throw 5", "", "", "Error: 5"},
		{"await Promise.reject(new RangeError('later'))", "", "", "RangeError: later"},
		{"null.x", "", "", "TypeError: Cannot read properties of null (reading 'x')"},
		{"let z = ;", "", "", "SyntaxError: Unexpected token ';'"},
		{"import os, { EOL as eol } from 'node:os'\nimport * as path from 'path';\nimport {\n  join,\n} from \"path\"\nconsole.log(eol === '\\n', os.EOL === eol, path.sep, join('a', 'b'))", "true true / a/b\n", "", ""},
		{"(await import('fs')).existsSync('/')", "", "true", ""},
		{"require('fs').writeFileSync('m.mjs', 'export const v = 3; export default 4'); import('./m.mjs').then(m => m.v + m.default)", "", "", ""},
		{"await import('./m.mjs').then(m => m.v + m.default)", "", "7", ""},
		{"({a: [1, {b: 2n}], s: Symbol('q')})", "", "{ a: [ 1, { b: 2n } ], s: Symbol(q) }", ""},
		{"[NaN, -0, 10n ** 20n]", "", "[ NaN, -0, 100000000000000000000n ]", ""},
		{"10n ** 20n", "", "100000000000000000000n", ""},
		{"NaN", "", "NaN", ""}, {"undefined", "", "", ""}, {"null", "", "null", ""},
		{"process.exit(0)", "", "", ""},
		{"process.exit(3)", "", "", "SystemExit: 3"},
		{"display(1); display({b: 2}); 3", "", "1|{ b: 2 }|3", ""},
		{"require('child_process').execSync('echo child; pwd', {stdio: 'inherit'}); process.cwd() === process.env.PWD", "child\n" + a.dir + "\n", "true", ""},
		{"setTimeout(() => { throw new Error('late') }, 1); await new Promise(r => setTimeout(r, 30))", "", "", ""},
		{"x", "", "1", ""},
	} {
		r := a.run(c.code, o)
		var results []string
		for _, d := range r.Results {
			results = append(results, d.Text())
		}
		var err string
		if r.Err != nil {
			err = r.Err.Error()
		}
		if c.code == "import('./m.mjs').then(m => m.v + m.default)" || strings.Contains(c.code, "writeFileSync") {
			results = nil // a promise
		}
		if r.Stdout != c.want || strings.Join(results, "|") != c.result || err != c.err {
			t.Errorf("%s: %q %q %q; stderr %q", c.code, r.Stdout, results, err, r.Stderr)
		}
	}
	r := a.run("function deep() { throw new Error('d') }\ndeep()", o)
	if r.Err == nil || !strings.Contains(r.Err.Traceback, "at deep (<cell-") || strings.Contains(r.Err.Traceback, "daytona") || strings.Contains(r.Err.Traceback, "node:") {
		t.Errorf("%+v", r.Err)
	}
	env := *o
	env.Env = map[string]string{"E": "v"}
	a.prints(&env, "console.log(process.env.E)", "v\n")
	a.prints(o, "console.log(process.env.E)", "undefined\n")
	r = a.run("Buffer.from('89504e470d0a1a0a00', 'hex')", o)
	if len(r.Results) != 1 || string(r.Results[0]["image/png"]) != "\x89PNG\r\n\x1a\n\x00" {
		t.Errorf("%+v", r)
	}
	r = a.run("for (let i = 0; i < 2000; i++) console.log('x'.repeat(10000))", o)
	if len(r.Stdout) != 2000*10001 {
		t.Errorf("%d bytes", len(r.Stdout))
	}
	// The implicit context of the language, and the end of one.
	a.prints(&daytona.InterpreterOptions{Language: "javascript"}, "console.log(typeof x)", "undefined\n")
	if r := a.run("process.kill(process.pid, 'SIGKILL'); while (true);", o); r.Err == nil || r.Err.Name != daytona.InterpreterExited {
		t.Errorf("%+v", r)
	}
	a.prints(o, "console.log(typeof f)", "undefined\n")
	short := *o
	short.Timeout = 300 * time.Millisecond
	for _, code := range []string{"w = 1; while (true);", "w = 1; await new Promise(() => {})", "w = 1; await new Promise((r) => setTimeout(r, 60000))"} {
		_, err := a.Run(t.Context(), code, &short)
		wantKind(t, err, daytona.KindTimeout)
		a.prints(o, "console.log(w)", "1\n")
	}
	_, err := a.Run(t.Context(), "await 0; while (true);", &short)
	wantKind(t, err, daytona.KindTimeout)
	a.prints(o, "console.log(1)", "1\n")
}

func TestTypeScript(t *testing.T) {
	needs(t, "node", "--version")
	a := startAgent(t)
	o := own(a, "typescript")
	if r := a.run("const n: number = 1", o); r.Err != nil && strings.Contains(r.Err.Value, "npm install -g typescript") {
		t.Skip("needs a compiler for TypeScript: ", r.Err.Value)
	}
	a.prints(o, "interface P { x: number }\nenum E { A, B }\nimport fs from 'fs'\nimport type { Stats } from 'fs'", "")
	a.prints(o, "const p: P = { x: E.B }; console.log(p.x + n, fs.existsSync('/'))", "2 true\n")
	a.prints(o, "const later = async <T,>(v: T): Promise<T> => v\nconsole.log(await later<string>('v') satisfies string)", "v\n")
	if r := a.run("let q: = 1", o); r.Err == nil || r.Err.Name != "SyntaxError" {
		t.Errorf("%+v", r.Err)
	}
	if r := a.run("p as any", o); len(r.Results) != 1 || r.Results[0].Text() != "{ x: 1 }" {
		t.Errorf("%+v %+v", r, r.Err)
	}
}

func TestAgentEnds(t *testing.T) {
	needs(t, "python3", "-c", "pass")
	var a *agent
	t.Run("with one at work", func(t *testing.T) {
		a = startAgent(t)
		began := make(chan struct{})
		go a.Run(context.Background(), "print('begun')\nwhile True:\n    try:\n        while True: pass\n    except BaseException: pass", &daytona.InterpreterOptions{Stdout: closing(began)})
		<-began
	})
	if slices.Contains(workDirs(t), a.dir) {
		t.Error("an interpreter is left behind")
	}
}
