package backendtest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/daytona-go/daytona"
)

func processChecks() []check {
	return []check{
		{name: "Command", run: checkCommand},
		{name: "CommandExitCodes", run: checkCommandExitCodes},
		{name: "CommandSignals", run: checkCommandSignals},
		{name: "CommandEnvAndDir", run: checkCommandEnvAndDir},
		{name: "CommandStdin", run: checkCommandStdin},
		{name: "CommandPipes", run: checkCommandPipes},
		{name: "CommandBinary", run: checkCommandBinary},
		{name: "CommandBadInput", run: checkCommandBadInput},
		{name: "CommandTimeout", run: checkCommandTimeout},
		{name: "CommandCancel", run: checkCommandCancel},
		{name: "CommandTree", needs: []Capability{Shell}, run: checkCommandTree},
		{name: "CommandOutputBounded", needs: []Capability{Shell, Streaming}, limit: 2 * time.Minute, run: checkCommandOutputBounded},
		{name: "CommandTTY", needs: []Capability{Terminals, Shell}, run: checkCommandTTY},
		{name: "CommandParallel", run: checkCommandParallel},
		{name: "Exec", run: checkExec},
		{name: "ExecShell", needs: []Capability{Shell}, run: checkExecShell},
		{name: "ExecTimeout", run: checkExecTimeout},
		{name: "RunCodePython", needs: []Capability{Python}, run: checkRunCodePython},
		{name: "RunCodeJavaScript", needs: []Capability{JavaScript}, run: checkRunCodeJavaScript},
		{name: "RunCodeTypeScript", needs: []Capability{TypeScript}, run: checkRunCodeTypeScript},
	}
}

func checkCommand(c *env) {
	p := c.create().Process()
	out, err := p.Command(c.ctx, "echo", "hello", "two  words", `$HOME "*"`).Output()
	c.try("echo", err)
	equal(c, "output; arguments are not subject to a shell", string(out), "hello two  words $HOME \"*\"\n")
	cmd := p.Command(c.ctx, "sh", "-c", "echo out; echo err >&2")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	c.try("run", cmd.Run())
	equal(c, "standard output", stdout.String(), "out\n")
	equal(c, "standard error", stderr.String(), "err\n")
	if cmd.PID() <= 0 {
		c.Errorf("PID() = %d", cmd.PID())
	}
	both, err := p.Command(c.ctx, "sh", "-c", "echo out; echo err >&2").CombinedOutput()
	c.try("CombinedOutput", err)
	if s := string(both); !strings.Contains(s, "out\n") || !strings.Contains(s, "err\n") {
		c.Errorf("CombinedOutput = %q, want both streams", s)
	}
	_, err = p.Command(c.ctx, "sh", "-c", "echo reason >&2; exit 3").Output()
	e, ok := errors.AsType[*daytona.ExitError](err)
	if !ok {
		c.Fatalf("exit 3: %v, want an *ExitError", err)
	}
	equal(c, "ExitCode", e.ExitCode, 3)
	equal(c, "Stderr of the ExitError", string(e.Stderr), "reason\n")
	c.wantKind("run a Cmd twice", cmd.Run(), daytona.KindState)
	c.try("output to nowhere", p.Command(c.ctx, "echo", "x").Run())

	broken := errors.New("the writer broke")
	cmd = p.Command(c.ctx, "echo", "x")
	cmd.Stdout = errWriter{broken}
	if err := c.within(10*time.Second, cmd.Run); !errors.Is(err, broken) {
		c.Errorf("a writer that fails: %v, want its error", err)
	}
}

type errWriter struct{ err error }

func (w errWriter) Write([]byte) (int, error) { return 0, w.err }

// exitCode runs a shell line and returns how it ended.
func exitCode(c *env, p daytona.Process, line string) daytona.ExitError {
	c.Helper()
	err := p.Command(c.ctx, "sh", "-c", line).Run()
	if err == nil {
		return daytona.ExitError{}
	}
	e, ok := errors.AsType[*daytona.ExitError](err)
	if !ok {
		c.Fatalf("%s: %v, want an *ExitError", line, err)
	}
	return *e
}

func checkCommandExitCodes(c *env) {
	p := c.create().Process()
	for code := range 256 {
		if c.h.Slow > 4 && code > 3 && code < 250 && code%25 != 0 {
			continue
		}
		e := exitCode(c, p, fmt.Sprintf("exit %d", code))
		if e.ExitCode != code || e.Signal != "" || e.TimedOut {
			c.Errorf("exit %d: code %d, signal %q, timed out %v", code, e.ExitCode, e.Signal, e.TimedOut)
		}
	}
	c.try("true", p.Command(c.ctx, "true").Run())
	if e, ok := errors.AsType[*daytona.ExitError](p.Command(c.ctx, "false").Run()); !ok || e.ExitCode != 1 {
		c.Errorf("false: %v, want exit code 1", e)
	}
}

func checkCommandSignals(c *env) {
	p := c.create().Process()
	for _, s := range []struct {
		name string
		num  int
	}{{"SIGTERM", 15}, {"SIGKILL", 9}, {"SIGINT", 2}, {"SIGUSR1", 10}} {
		cmd := p.Command(c.ctx, "sleep", "1000")
		c.try("start", cmd.Start())
		c.try("signal", cmd.Signal(c.ctx, s.name))
		var err error
		if werr := c.within(10*time.Second, func() error { err = cmd.Wait(); return nil }); werr != nil {
			c.Errorf("Wait after %s: %v", s.name, werr)
			continue
		}
		e, ok := errors.AsType[*daytona.ExitError](err)
		if !ok || e.ExitCode != 128+s.num || e.Signal != s.name {
			c.Errorf("after %s: %#v, want exit code %d and the signal's name", s.name, err, 128+s.num)
		}
	}
	cmd := p.Command(c.ctx, "sleep", "1000")
	c.try("start", cmd.Start())
	c.wantKind("an unknown signal", cmd.Signal(c.ctx, "SIGBOGUS"), daytona.KindInvalid)
	c.try("kill", cmd.Signal(c.ctx, "SIGKILL"))
	_ = cmd.Wait()
	if err := cmd.Signal(c.ctx, "SIGTERM"); err == nil {
		c.Error("a signal to a program that has ended gave no error")
	}
	if c.has(Shell) {
		e := exitCode(c, p, "kill -TERM $$")
		equal(c, "a program that kills itself: code", e.ExitCode, 143)
		equal(c, "a program that kills itself: signal", e.Signal, "SIGTERM")
		cmd := p.Command(c.ctx, "sh", "-c", `trap 'echo caught; exit 7' INT; echo up; while :; do sleep 0.02; done`)
		out, err := cmd.StdoutPipe()
		c.try("pipe", err)
		c.try("start", cmd.Start())
		br := bufio.NewReader(out)
		line, err := br.ReadString('\n')
		c.try("read", err)
		equal(c, "first line", line, "up\n")
		c.try("signal", cmd.Signal(c.ctx, "SIGINT"))
		line, err = br.ReadString('\n')
		c.try("read", err)
		equal(c, "line of the handler", line, "caught\n")
		go io.Copy(io.Discard, br)
		if e, ok := errors.AsType[*daytona.ExitError](c.within(10*time.Second, cmd.Wait)); !ok || e.ExitCode != 7 || e.Signal != "" {
			c.Errorf("a program that handles its signal ended with %v, want code 7", e)
		}
	}
}

func checkCommandEnvAndDir(c *env) {
	sb := c.create(func(s *daytona.Spec) { s.Env["FROM_SPEC"] = "spec"; s.Env["OVER"] = "spec" })
	cmd := sb.Process().Command(c.ctx, "sh", "-c", `echo "$FROM_SPEC/$OVER/$ADDED"; pwd`)
	cmd.Env = map[string]string{"OVER": "cmd", "ADDED": "a b"}
	cmd.Dir = "/"
	out, err := cmd.Output()
	c.try("run", err)
	equal(c, "output", string(out), "spec/cmd/a b\n/\n")
	cmd = sb.Process().Command(c.ctx, "pwd")
	cmd.Dir = "/no/such/dir"
	err = cmd.Run()
	if _, isExit := errors.AsType[*daytona.ExitError](err); err == nil || isExit {
		c.Errorf("a directory that does not exist: %v, want an error from Start", err)
	}
}

func checkCommandStdin(c *env) {
	p := c.create().Process()
	cmd := p.Command(c.ctx, "cat")
	var out []byte
	var err error
	c.try("cat without input", c.within(10*time.Second, func() error { out, err = cmd.Output(); return err }))
	equal(c, "output", string(out), "")
	cmd = p.Command(c.ctx, "cat")
	cmd.Stdin = strings.NewReader("fed\nlines")
	out, err = cmd.Output()
	c.try("cat", err)
	equal(c, "output", string(out), "fed\nlines")
	// A program that ends without reading its endless input.
	cmd = p.Command(c.ctx, "true")
	cmd.Stdin = zeroReader{}
	c.try("true with endless input", c.within(10*time.Second, cmd.Run))
	// A reader that never returns must not hold up Wait.
	r, w := io.Pipe()
	defer w.Close()
	cmd = p.Command(c.ctx, "true")
	cmd.Stdin = r
	c.try("true with input that blocks", c.within(10*time.Second, cmd.Run))
}

func checkCommandPipes(c *env) {
	p := c.create().Process()
	cmd := p.Command(c.ctx, "cat")
	in, err := cmd.StdinPipe()
	c.try("StdinPipe", err)
	out, err := cmd.StdoutPipe()
	c.try("StdoutPipe", err)
	c.try("start", cmd.Start())
	r := bufio.NewReader(out)
	for i := range 5 {
		line := fmt.Sprintf("line %d\n", i)
		_, err := io.WriteString(in, line)
		c.try("write", err)
		var got string
		c.try("a line comes back while the program runs", c.within(10*time.Second, func() (err error) { got, err = r.ReadString('\n'); return err }))
		equal(c, "echo", got, line)
	}
	c.try("close", in.Close())
	// The pipe ends when Wait has returned, so it runs beside the reader.
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	var rest []byte
	c.try("read to the end", c.within(10*time.Second, func() (err error) { rest, err = io.ReadAll(r); return err }))
	equal(c, "rest", string(rest), "")
	c.try("wait", c.within(10*time.Second, func() error { return <-done }))
}

func checkCommandBinary(c *env) {
	p := c.create().Process()
	const size = 8 << 20
	want, _, _ := sumOf(noise(size))
	cmd := p.Command(c.ctx, "cat")
	cmd.Stdin = noise(size)
	out, err := cmd.Output()
	c.try("cat 8 MiB", err)
	got, n, _ := sumOf(bytes.NewReader(out))
	equal(c, "bytes", n, int64(size))
	equal(c, "sha256", fmt.Sprintf("%x", got.Sum(nil)), fmt.Sprintf("%x", want.Sum(nil)))
}

func checkCommandBadInput(c *env) {
	p := c.create().Process()
	for what, spec := range map[string]daytona.CommandSpec{
		"no program":               {},
		"an empty program":         {Args: []string{""}},
		"a program with NUL":       {Args: []string{"echo\x00"}},
		"an argument with NUL":     {Args: []string{"echo", "a\x00b"}},
		"a bad variable name":      {Args: []string{"echo"}, Env: map[string]string{"A=B": "c"}},
		"a variable with NUL":      {Args: []string{"echo"}, Env: map[string]string{"A": "\x00"}},
		"a directory with NUL":     {Args: []string{"echo"}, Dir: "/\x00"},
		"a negative timeout":       {Args: []string{"echo"}, Timeout: -time.Second},
		"a terminal without size":  {Args: []string{"echo"}, TTY: &daytona.TTYSize{Cols: -1, Rows: 5}},
		"a terminal beyond bounds": {Args: []string{"echo"}, TTY: &daytona.TTYSize{Cols: 100_000, Rows: 5}},
	} {
		if spec.TTY != nil && !c.has(Terminals) {
			continue
		}
		r, err := p.StartCommand(c.ctx, spec)
		if err == nil {
			_, _ = r.Wait()
		}
		c.wantKind("StartCommand with "+what, err, daytona.KindInvalid)
	}
	cmd := p.Command(c.ctx, "no-such-program-anywhere")
	if err := cmd.Run(); err == nil {
		c.Error("a program that does not exist gave no error")
	} else if !strings.Contains(err.Error(), "no-such-program-anywhere") {
		c.Errorf("the error does not name the program: %v", err)
	}
	if _, err := p.Exec(c.ctx, "echo a\x00b", nil); daytona.KindOf(err) != daytona.KindInvalid {
		c.Errorf("Exec with NUL: %v, want an error of kind invalid", err)
	}
	if _, err := p.Exec(c.ctx, "echo", &daytona.ExecOptions{Env: map[string]string{"": "x"}}); daytona.KindOf(err) != daytona.KindInvalid {
		c.Errorf("Exec with a bad variable name: %v, want an error of kind invalid", err)
	}
	_, err := p.RunCode(c.ctx, "x", &daytona.CodeOptions{Language: "cobol"})
	if k := daytona.KindOf(err); k != daytona.KindInvalid && k != daytona.KindUnsupported {
		c.Errorf("RunCode with an unknown language: %v, want an error of kind invalid", err)
	}
}

func checkCommandTimeout(c *env) {
	p := c.create().Process()
	var out bytes.Buffer
	cmd := p.Command(c.ctx, "sh", "-c", "echo before; sleep 1000; echo after")
	cmd.Stdout, cmd.Timeout = &out, time.Second
	begin := time.Now()
	err := c.within(10*time.Second, cmd.Run)
	took := time.Since(begin)
	if !errors.Is(err, daytona.ErrTimeout) {
		c.Errorf("a command beyond its timeout: %v, want an error that is ErrTimeout", err)
	}
	if e, ok := errors.AsType[*daytona.ExitError](err); !ok || !e.TimedOut {
		c.Errorf("a command beyond its timeout: %#v, want an *ExitError with TimedOut", err)
	}
	equal(c, "the output until the timeout", out.String(), "before\n")
	if took < 900*time.Millisecond || took > c.slow(4*time.Second) {
		c.Errorf("a timeout of 1s took %v", took)
	}
	cmd = p.Command(c.ctx, "echo", "quick")
	cmd.Timeout = time.Minute
	o, err := cmd.Output()
	c.try("a command within its timeout", err)
	equal(c, "output", string(o), "quick\n")
}

func checkCommandCancel(c *env) {
	sb := c.create()
	ctx, cancel := context.WithCancel(c.ctx)
	cmd := sb.Process().Command(ctx, "sleep", "1000")
	c.try("start", cmd.Start())
	cancel()
	if err := c.within(10*time.Second, cmd.Wait); !errors.Is(err, context.Canceled) {
		c.Errorf("Wait of a cancelled command: %v, want context.Canceled", err)
	}
	if err := sb.Process().Command(ctx, "echo").Run(); !errors.Is(err, context.Canceled) {
		c.Errorf("Run with a cancelled context: %v, want context.Canceled", err)
	}
	ctx, cancel = context.WithTimeout(c.ctx, 300*time.Millisecond)
	defer cancel()
	if _, err := sb.Process().Exec(ctx, "sleep 1000", nil); !errors.Is(err, context.DeadlineExceeded) {
		c.Errorf("Exec with a context that runs out: %v, want context.DeadlineExceeded", err)
	}
	equal(c, "a command afterwards", c.sh(sb, "echo ok"), "ok")
}

// family starts a tree of processes that try to get away. All of them sleep a
// number of seconds that begins with mark.
func family(mark string) string {
	return strings.NewReplacer("MARK", mark).Replace(`
(sleep MARK1 & )
( ( sleep MARK2 & ) & )
if command -v setsid >/dev/null; then setsid sleep MARK3 & setsid sh -c '( sleep MARK4 & ); sleep MARK5' & fi
if command -v nohup >/dev/null; then nohup sleep MARK6 >/dev/null 2>&1 & fi
sh -c 'trap "" TERM INT HUP; sleep MARK7; sleep MARK8' &
echo started
wait
sleep MARK9`)
}

func (c *env) wantGone(sb daytona.Sandbox, mark, when string) {
	c.Helper()
	c.eventually(2*time.Second, when+": the whole tree of processes is gone", func() error {
		if l := c.processesLike(sb, "sleep "+mark); len(l) > 0 {
			return fmt.Errorf("still there: %q", l)
		}
		return nil
	})
}

func checkCommandTree(c *env) {
	sb := c.create()
	p := sb.Process()
	start := func(ctx context.Context, mark string, timeout time.Duration) *daytona.Cmd {
		cmd := p.Command(ctx, "sh", "-c", family(mark))
		cmd.Timeout = timeout
		out, err := cmd.StdoutPipe()
		c.try("pipe", err)
		c.try("start", cmd.Start())
		r := bufio.NewReader(out)
		line, err := r.ReadString('\n')
		c.try("read", err)
		equal(c, "first line", line, "started\n")
		go io.Copy(io.Discard, r)
		c.eventually(5*time.Second, "the tree is up", func() error {
			if l := c.processesLike(sb, "sleep "+mark); len(l) < 4 {
				return fmt.Errorf("only %q", l)
			}
			return nil
		})
		return cmd
	}
	ctx, cancel := context.WithCancel(c.ctx)
	cmd := start(ctx, "5150", 0)
	cancel()
	_ = c.within(10*time.Second, cmd.Wait)
	c.wantGone(sb, "5150", "after the context was cancelled")

	cmd = start(c.ctx, "5160", 2*time.Second)
	if err := c.within(15*time.Second, cmd.Wait); !errors.Is(err, daytona.ErrTimeout) {
		c.Errorf("Wait: %v, want ErrTimeout", err)
	}
	c.wantGone(sb, "5160", "after the timeout of a command")

	r, err := p.Exec(c.ctx, family("5170"), &daytona.ExecOptions{Timeout: time.Second})
	c.wantKind("Exec beyond its timeout", err, daytona.KindTimeout)
	equal(c, "partial output", r.Output, "started\n")
	c.wantGone(sb, "5170", "after the timeout of Exec")
}

func checkCommandOutputBounded(c *env) {
	sb := c.create()
	const size = 100_000_000
	m := newHeapMeter()
	cmd := sb.Process().Command(c.ctx, "head", "-c", fmt.Sprint(size), "/dev/zero")
	cmd.Stdout = m
	c.try("100 MB of output", cmd.Run())
	equal(c, "bytes", m.n, int64(size))
	if m.grown() > 24<<20 {
		c.Errorf("the live heap grew by %d MiB while 100 MB of output were read", m.grown()>>20)
	}
	// A reader that is slow holds the program up; nothing is lost or kept.
	slow := newHeapMeter()
	cmd = sb.Process().Command(c.ctx, "head", "-c", "20000000", "/dev/zero")
	out, err := cmd.StdoutPipe()
	c.try("pipe", err)
	c.try("start", cmd.Start())
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	time.Sleep(300 * time.Millisecond) // the slowness under test, not a wait
	n, err := io.Copy(slow, out)
	c.try("read", err)
	equal(c, "bytes", n, int64(20_000_000))
	c.try("wait", <-done)
	if slow.grown() > 24<<20 {
		c.Errorf("the live heap grew by %d MiB while the reader was slow", slow.grown()>>20)
	}
}

func checkCommandTTY(c *env) {
	p := c.create().Process()
	cmd := p.Command(c.ctx, "sh", "-c", "test -t 0 && test -t 1 && test -t 2 && stty size; echo err >&2")
	cmd.TTY = &daytona.TTYSize{Cols: 91, Rows: 37}
	out, err := cmd.Output()
	c.try("run on a terminal", err)
	equal(c, "output", strings.ReplaceAll(string(out), "\r\n", "\n"), "37 91\nerr\n")
	cmd = p.Command(c.ctx, "sh", "-c", "trap 'stty size; exit' WINCH; echo up; while :; do sleep 0.02; done")
	cmd.TTY = &daytona.TTYSize{Cols: 80, Rows: 24}
	pipe, err := cmd.StdoutPipe()
	c.try("pipe", err)
	c.try("start", cmd.Start())
	r := bufio.NewReader(pipe)
	_, err = r.ReadString('\n')
	c.try("read", err)
	c.try("resize", cmd.Resize(c.ctx, daytona.TTYSize{Cols: 132, Rows: 50}))
	line, err := r.ReadString('\n')
	c.try("read", err)
	equal(c, "size after Resize", strings.TrimSpace(line), "50 132")
	go io.Copy(io.Discard, r)
	_ = c.within(10*time.Second, cmd.Wait)

	cmd = p.Command(c.ctx, "sleep", "1000")
	c.try("start", cmd.Start())
	c.wantKind("Resize without a terminal", cmd.Resize(c.ctx, daytona.TTYSize{Cols: 80, Rows: 24}), daytona.KindState)
	c.try("kill", cmd.Signal(c.ctx, "SIGKILL"))
	_ = cmd.Wait()
	out, err = p.Command(c.ctx, "sh", "-c", "test -t 1 || echo none").Output()
	c.try("run", err)
	equal(c, "without TTY", string(out), "none\n")
}

func checkCommandParallel(c *env) {
	p := c.create().Process()
	var wg sync.WaitGroup
	errs := make([]error, 20)
	for i := range errs {
		wg.Go(func() {
			out, err := p.Command(c.ctx, "echo", fmt.Sprint(i)).Output()
			if err == nil && string(out) != fmt.Sprintf("%d\n", i) {
				err = fmt.Errorf("command %d printed %q", i, out)
			}
			errs[i] = err
		})
	}
	wg.Wait()
	c.try("20 commands in parallel", errors.Join(errs...))
}

func checkExec(c *env) {
	sb := c.create()
	p := sb.Process()
	for line, want := range map[string]daytona.ExecResult{
		"echo hello":                  {Output: "hello\n"},
		"echo 'a  b' \"c  d\"":        {Output: "a  b c  d\n"},
		"echo out; echo err >&2":      {Output: "out\nerr\n"},
		"exit 7":                      {ExitCode: 7},
		"false":                       {ExitCode: 1},
		"true && echo yes":            {Output: "yes\n"},
		"false || echo no":            {Output: "no\n"},
		"echo one\necho two\n":        {Output: "one\ntwo\n"},
		"cat":                         {}, // the end of file at once, no hanging
		"X=1; echo \"x is $X\"":       {Output: "x is 1\n"},
		"echo 'grüße' # a comment":    {Output: "grüße\n"},
		"echo in-file > f; cat f":     {Output: "in-file\n"},
		"echo more >> f; cat f; cd /": {Output: "in-file\nmore\n"},
	} {
		if strings.Contains(line, ">>") {
			continue // needs the file of another entry; below
		}
		var r daytona.ExecResult
		var err error
		c.try(fmt.Sprintf("exec %q", line), c.within(15*time.Second, func() error { r, err = p.Exec(c.ctx, line, nil); return err }))
		if r != want {
			c.Errorf("exec %q = %+v, want %+v", line, r, want)
		}
	}
	equal(c, "appending", c.sh(sb, "echo more >> f; cat f; cd /"), "in-file\nmore")
	wd, err := sb.WorkDir(c.ctx)
	c.try("WorkDir", err)
	equal(c, "pwd; a cd before does not last", c.sh(sb, "pwd"), wd)
	// No command at all is either one that does nothing or bad input.
	r, err := p.Exec(c.ctx, "", nil)
	if err == nil {
		equal(c, "exec of nothing", r, daytona.ExecResult{})
	} else {
		c.wantKind("exec of nothing", err, daytona.KindInvalid)
	}
	r, err = p.Exec(c.ctx, "no-such-program-anywhere", nil)
	c.try("exec of a missing program", err)
	equal(c, "exit code", r.ExitCode, 127)
	if !strings.Contains(r.Output, "no-such-program-anywhere") {
		c.Errorf("output %q does not name the missing program", r.Output)
	}
	r, err = p.Exec(c.ctx, "pwd", &daytona.ExecOptions{Dir: "/no/such/dir"})
	if err == nil && r.ExitCode == 0 {
		c.Errorf("exec in a directory that does not exist gave %+v", r)
	}
}

func checkExecShell(c *env) {
	p := c.create().Process()
	for line, want := range map[string]daytona.ExecResult{
		"for i in 1 2 3; do echo $i; done":               {Output: "1\n2\n3\n"},
		"cat <<EOF\nhere $((40+2))\n'doc'\nEOF":          {Output: "here 42\n'doc'\n"},
		"f() { echo in-$1; }; f x | tr a-z A-Z":          {Output: "IN-X\n"},
		"kill -KILL $$":                                  {ExitCode: 137},
		"printf 'no newline'":                            {Output: "no newline"},
		"echo a; echo b >&2; echo c; echo d >&2; exit 9": {ExitCode: 9, Output: "a\nb\nc\nd\n"},
		"read x; echo \"got [$x] $?\"":                   {Output: "got [] 1\n"},
		"set -e; false; echo not-reached":                {ExitCode: 1},
	} {
		var r daytona.ExecResult
		var err error
		c.try(fmt.Sprintf("exec %q", line), c.within(15*time.Second, func() error { r, err = p.Exec(c.ctx, line, nil); return err }))
		if line == "read x; echo \"got [$x] $?\"" {
			r.Output = strings.Replace(r.Output, "] 0", "] 1", 1) // shells differ
		}
		if r != want {
			c.Errorf("exec %q = %+v, want %+v", line, r, want)
		}
	}
	r, err := p.Exec(c.ctx, "head -c 3000000 /dev/zero | tr '\\0' x", nil)
	c.try("exec", err)
	equal(c, "length of long output", len(r.Output), 3_000_000)
	long := "echo " + strings.Repeat("x", 100_000)
	r, err = p.Exec(c.ctx, long, nil)
	c.try("a long line", err)
	equal(c, "length of its output", len(r.Output), 100_001)
	r, err = p.Exec(c.ctx, `printf '\377\376 bytes'`, nil)
	c.try("output that is not UTF-8", err)
	if !strings.Contains(r.Output, "bytes") {
		c.Errorf("output that is not UTF-8 came as %q", r.Output)
	}
}

func checkExecTimeout(c *env) {
	p := c.create().Process()
	begin := time.Now()
	var r daytona.ExecResult
	var err error
	c.try("exec returns", c.within(15*time.Second, func() error {
		r, err = p.Exec(c.ctx, "echo before; sleep 1000; echo after", &daytona.ExecOptions{Timeout: 500 * time.Millisecond})
		return nil
	}))
	c.wantKind("exec beyond its timeout", err, daytona.KindTimeout)
	equal(c, "partial output", r.Output, "before\n")
	// The wire's unit is the second, rounded up.
	if d := time.Since(begin); d > c.slow(4*time.Second) {
		c.Errorf("a timeout of 1s took %v", d)
	}
	r, err = p.Exec(c.ctx, "echo quick", &daytona.ExecOptions{Timeout: time.Minute})
	c.try("exec within its timeout", err)
	equal(c, "output", r.Output, "quick\n")
}

func checkRunCode(c *env, lang, hello, args, env, fail, forever string) {
	sb := c.create(func(s *daytona.Spec) { s.Language = lang })
	p := sb.Process()
	equal(c, "Info.Language", sb.Info().Language, lang)
	run := func(code string, o *daytona.CodeOptions) daytona.CodeResult {
		c.Helper()
		r, err := p.RunCode(c.ctx, code, o)
		c.try(fmt.Sprintf("run %q", code), err)
		return r
	}
	r := run(hello, nil)
	equal(c, "ExitCode", r.ExitCode, 0)
	equal(c, "Output", r.Output, "hello 'quoted' \"text\" $HOME ü\n")
	r = run(args, &daytona.CodeOptions{Args: []string{"one", "two words", "$(id)"}})
	equal(c, "Output with Args", r.Output, "one|two words|$(id)\n")
	r = run(env, &daytona.CodeOptions{Env: map[string]string{"MORE": "a  b"}})
	equal(c, "Output with Env", r.Output, "a  b\n")
	r = run(fail, nil)
	equal(c, "ExitCode of code that fails", r.ExitCode, 1)
	if !strings.Contains(r.Output, "on purpose") {
		c.Errorf("output of code that fails: %q, want the message", r.Output)
	}
	begin := time.Now()
	r, err := p.RunCode(c.ctx, forever, &daytona.CodeOptions{Timeout: time.Second})
	c.wantKind("code beyond its timeout", err, daytona.KindTimeout)
	if !strings.HasPrefix(r.Output, "before") {
		c.Errorf("partial output = %q, want before", r.Output)
	}
	if d := time.Since(begin); d > c.slow(5*time.Second) {
		c.Errorf("a timeout of 1s took %v", d)
	}
	// No code at all is either a program that does nothing or bad input.
	if r, err = p.RunCode(c.ctx, "", nil); err == nil {
		equal(c, "ExitCode of no code", r.ExitCode, 0)
	} else {
		c.wantKind("no code", err, daytona.KindInvalid)
	}
}

func checkRunCodePython(c *env) {
	checkRunCode(c, "python",
		`print("hello 'quoted' \"text\" $HOME ü")`,
		`import sys; print("|".join(sys.argv[1:]))`,
		`import os; print(os.environ["MORE"])`,
		`raise ValueError("on purpose")`,
		"import time\nprint('before', flush=True)\ntime.sleep(1000)")
	p := c.create().Process()
	r, err := p.RunCode(c.ctx, "def f(x):\n    return x * 2\n\nfor i in range(3):\n    print(f(i))\n", nil)
	c.try("python is the default language", err)
	equal(c, "Output", r.Output, "0\n2\n4\n")
	r, err = p.RunCode(c.ctx, "import sys; sys.exit(42)", nil)
	c.try("exit", err)
	equal(c, "ExitCode", r.ExitCode, 42)
}

func checkRunCodeJavaScript(c *env) {
	checkRunCode(c, "javascript",
		`console.log("hello 'quoted' \"text\" $HOME ü")`,
		`console.log(process.argv.slice(-3).join("|"))`,
		`console.log(process.env.MORE)`,
		`throw new Error("on purpose")`,
		`console.log("before"); setInterval(() => {}, 1000)`)
}

func checkRunCodeTypeScript(c *env) {
	checkRunCode(c, "typescript",
		`const s: string = "hello 'quoted' \"text\" $HOME ü"; console.log(s)`,
		`const a: string[] = process.argv.slice(-3); console.log(a.join("|"))`,
		`console.log(process.env.MORE as string)`,
		`throw new Error("on purpose")`,
		`console.log("before"); setInterval(() => {}, 1000)`)
}
