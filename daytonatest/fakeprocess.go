package daytonatest

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/daytona-go/daytona"
)

// fakeProcess implements daytona.Process.
type fakeProcess struct{ c *fakeConn }

func (p fakeProcess) Command(ctx context.Context, name string, args ...string) *daytona.Cmd {
	return daytona.NewCmd(ctx, p, name, args...)
}

// gate passes writes on until it is shut, so that a program that is killed
// and does not notice cannot write any more.
type gate struct {
	mu  *sync.Mutex
	w   io.Writer
	err *error // the first failure of a writer
	end context.CancelCauseFunc
}

var errShut = errors.New("the program has ended")

func (g *gate) Write(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if *g.err != nil {
		return 0, *g.err
	}
	if g.w == nil {
		return len(p), nil
	}
	n, err := g.w.Write(p)
	if err != nil {
		*g.err = err
		g.end(err)
	}
	return n, err
}

// running implements daytona.RunningCommand.
type running struct {
	pid    int
	cancel context.CancelCauseFunc
	done   chan struct{}
	mu     sync.Mutex
	over   bool
	status daytona.ExitStatus
	err    error
}

var signals = map[string]int{"SIGHUP": 1, "SIGINT": 2, "SIGQUIT": 3, "SIGKILL": 9, "SIGUSR1": 10, "SIGUSR2": 12, "SIGTERM": 15}

func (r *running) PID() int { return r.pid }

func (r *running) Signal(_ context.Context, signal string) error {
	n, ok := signals[signal]
	if !ok {
		return &daytona.Error{Kind: daytona.KindInvalid, Op: "signal command", Field: "signal", Value: signal, Message: "no such signal"}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over {
		return &daytona.Error{Kind: daytona.KindGone, Op: "signal command", Message: "the command has ended"}
	}
	r.cancel(&ended{signal: signal, number: n})
	return nil
}

func (r *running) Resize(context.Context, daytona.TTYSize) error {
	return &daytona.Error{Kind: daytona.KindState, Op: "resize terminal", Message: "the command has no terminal"}
}

func (r *running) Wait() (daytona.ExitStatus, error) {
	<-r.done
	return r.status, r.err
}

func invalid(op, field string, value any, message string) error {
	return &daytona.Error{Kind: daytona.KindInvalid, Op: op, Field: field, Value: value, Message: message}
}

func (p fakeProcess) StartCommand(ctx context.Context, spec daytona.CommandSpec) (daytona.RunningCommand, error) {
	const op = "run command"
	sb, err := p.c.started(ctx, op)
	if err != nil {
		return nil, err
	}
	switch {
	case len(spec.Args) == 0 || spec.Args[0] == "":
		return nil, invalid(op, "Args", spec.Args, "must start with a program")
	case slices.ContainsFunc(append([]string{spec.Dir}, spec.Args...), func(a string) bool { return strings.ContainsRune(a, 0) }):
		return nil, invalid(op, "Args", spec.Args, "must not contain NUL")
	case spec.Timeout < 0:
		return nil, invalid(op, "Timeout", spec.Timeout, "must not be negative")
	case spec.TTY != nil:
		return nil, &daytona.Error{Kind: daytona.KindUnsupported, Op: op, Field: "TTY", Message: "the fake backend has no terminals"}
	}
	if err := daytona.ValidateEnv(op, "Env", spec.Env); err != nil {
		return nil, err
	}
	dir := resolve(sb.info.WorkDir, cmp.Or(spec.Dir, "."))
	if fi, err := sb.files.stat(dir); err != nil || !fi.IsDir() {
		return nil, &daytona.Error{Kind: daytona.KindNotFound, Op: op, Field: "Dir", Value: spec.Dir, Message: "no such directory"}
	}
	program := p.c.f.engine.program(spec.Args[0])
	if program == nil {
		return nil, &daytona.Error{Kind: daytona.KindNotFound, Op: op, Subject: spec.Args[0], Message: "no such program; see Fake.HandleCommand"}
	}
	e := p.c.f.engine
	e.mu.Lock()
	life := sb.life
	e.made++
	r := &running{pid: 100 + e.made, done: make(chan struct{})}
	e.mu.Unlock()

	run, cancel := context.WithCancelCause(ctx)
	r.cancel = cancel
	unlink := context.AfterFunc(life, func() { cancel(&ended{signal: "SIGKILL", number: 9}) })
	var timer *time.Timer
	if spec.Timeout > 0 {
		timer = time.AfterFunc(spec.Timeout, func() { cancel(&ended{signal: "SIGKILL", number: 9, timedOut: true}) })
	}
	var mu sync.Mutex
	var writeErr error
	out := &gate{&mu, spec.Stdout, &writeErr, cancel}
	errOut := &gate{&mu, spec.Stderr, &writeErr, cancel}
	c := &FakeCommand{
		Args: slices.Clone(spec.Args), Dir: dir, Env: sb.environment(spec.Env), Stdin: spec.Stdin, Stdout: out, Stderr: errOut,
		Files: fakeFS(p), engine: e,
	}
	if c.Stdin == nil {
		c.Stdin = strings.NewReader("")
	}
	exit := make(chan int, 1)
	go func() { exit <- program(run, c) & 255 }()
	go func() {
		defer close(r.done)
		defer unlink()
		select {
		case code := <-exit:
			r.status.ExitCode = code
		case <-run.Done():
		}
		if timer != nil {
			timer.Stop()
		}
		cause := context.Cause(run)
		mu.Lock()
		r.err = writeErr
		writeErr = cmp.Or(writeErr, errShut)
		mu.Unlock()
		r.mu.Lock()
		r.over = true
		r.mu.Unlock()
		if e, ok := errors.AsType[*ended](cause); ok {
			r.status = daytona.ExitStatus{ExitCode: 128 + e.number, Signal: e.signal, TimedOut: e.timedOut}
		} else if cause != nil && r.err == nil {
			r.status = daytona.ExitStatus{ExitCode: 137, Signal: "SIGKILL"}
		}
		cancel(nil)
	}()
	return r, nil
}

// wholeSeconds rounds up as the wire does.
func wholeSeconds(d time.Duration) time.Duration {
	return (d + time.Second - 1).Truncate(time.Second)
}

// output runs a command to its end and returns both streams as they came.
func (p fakeProcess) output(ctx context.Context, op string, spec daytona.CommandSpec) (int, string, error) {
	var mu sync.Mutex
	var buf bytes.Buffer
	w := writerFunc(func(b []byte) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		return buf.Write(b)
	})
	spec.Stdout, spec.Stderr, spec.Timeout = w, w, wholeSeconds(spec.Timeout)
	r, err := p.StartCommand(ctx, spec)
	if err != nil {
		return -1, "", err
	}
	status, err := r.Wait()
	mu.Lock()
	out := buf.String()
	mu.Unlock()
	switch {
	case ctx.Err() != nil:
		return -1, out, ctx.Err()
	case err != nil:
		return -1, out, err
	case status.TimedOut:
		return status.ExitCode, out, &daytona.Error{Kind: daytona.KindTimeout, Op: op, Subject: p.c.id, Message: "the command ran past its time limit and was killed"}
	}
	return status.ExitCode, out, nil
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func (p fakeProcess) Exec(ctx context.Context, command string, opts *daytona.ExecOptions) (daytona.ExecResult, error) {
	var o daytona.ExecOptions
	if opts != nil {
		o = *opts
	}
	code, out, err := p.output(ctx, "exec", daytona.CommandSpec{Args: []string{"sh", "-c", command}, Dir: o.Dir, Env: o.Env, Timeout: o.Timeout})
	return daytona.ExecResult{ExitCode: code, Output: out}, err
}

// RunCode runs the program python3, node or tsx, which [Fake.HandleCommand]
// must have supplied, with the code as its second argument after "-c" or "-e".
func (p fakeProcess) RunCode(ctx context.Context, text string, opts *daytona.CodeOptions) (daytona.CodeResult, error) {
	const op = "run code"
	sb, err := p.c.started(ctx, op)
	if err != nil {
		return daytona.CodeResult{ExitCode: -1}, err
	}
	var o daytona.CodeOptions
	if opts != nil {
		o = *opts
	}
	lang := cmp.Or(o.Language, sb.info.Language)
	program := map[string][]string{"python": {"python3", "-c"}, "javascript": {"node", "-e"}, "typescript": {"tsx", "-e"}}[lang]
	if program == nil {
		return daytona.CodeResult{ExitCode: -1}, invalid(op, "Language", lang, "must be python, typescript or javascript")
	}
	if p.c.f.engine.program(program[0]) == nil {
		return daytona.CodeResult{ExitCode: -1}, &daytona.Error{Kind: daytona.KindUnsupported, Op: op, Field: "Language", Value: lang, Message: "supply the program " + program[0] + " with Fake.HandleCommand"}
	}
	code, out, err := p.output(ctx, op, daytona.CommandSpec{Args: slices.Concat(program, []string{text}, o.Args), Env: o.Env, Timeout: o.Timeout})
	return daytona.CodeResult{ExitCode: code, Output: out}, err
}

func (p fakeProcess) Ports(ctx context.Context) ([]int, error) {
	if _, err := p.c.started(ctx, "list ports"); err != nil {
		return nil, err
	}
	p.c.f.engine.mu.Lock()
	defer p.c.f.engine.mu.Unlock()
	return slices.Sorted(maps.Keys(p.c.f.engine.ports)), nil
}

func (p fakeProcess) CreatePTY(ctx context.Context, _ daytona.PTYOptions) (daytona.PTY, error) {
	if _, err := p.c.started(ctx, "create PTY"); err != nil {
		return nil, err
	}
	return nil, p.c.unsupported("create PTY")
}

func (p fakeProcess) ConnectPTY(ctx context.Context, id string) (daytona.PTY, error) {
	if _, err := p.c.started(ctx, "connect to PTY"); err != nil {
		return nil, err
	}
	return nil, p.c.f.error(daytona.KindNotFound, "connect to PTY", id, "there is no such terminal")
}

func (p fakeProcess) PTYs(ctx context.Context) ([]daytona.PTYInfo, error) {
	_, err := p.c.started(ctx, "list PTYs")
	return nil, err
}

// fakeSession is a shell. Its commands run one at a time; run guards the
// shell, mu the rest.
type fakeSession struct {
	id    string
	p     fakeProcess
	run   sync.Mutex
	shell *shell
	life  context.Context
	end   context.CancelFunc

	mu       sync.Mutex
	commands []*fakeSessionCommand
}

func (p fakeProcess) CreateSession(ctx context.Context, id string) (daytona.Session, error) {
	const op = "create session"
	sb, err := p.c.started(ctx, op)
	if err != nil {
		return nil, err
	}
	if id == "" || id == "entrypoint" || strings.ContainsAny(id, "/\x00") {
		return nil, invalid(op, "id", id, `must not be empty or "entrypoint" and must not contain "/"`)
	}
	e := p.c.f.engine
	e.mu.Lock()
	defer e.mu.Unlock()
	if sb.sessions[id] != nil {
		return nil, p.c.f.error(daytona.KindConflict, op, id, "the id is taken")
	}
	s := &fakeSession{id: id, p: p}
	s.life, s.end = context.WithCancel(sb.life)
	s.shell = &shell{c: FakeCommand{Dir: sb.info.WorkDir, Files: fakeFS(p), engine: e}, vars: sb.environment(nil), exported: map[string]bool{}}
	for k := range s.shell.vars {
		s.shell.exported[k] = true
	}
	sb.sessions[id] = s
	return s, nil
}

func (p fakeProcess) Session(ctx context.Context, id string) (daytona.Session, error) {
	const op = "get session"
	sb, err := p.c.started(ctx, op)
	if err != nil {
		return nil, err
	}
	p.c.f.engine.mu.Lock()
	defer p.c.f.engine.mu.Unlock()
	if s := sb.sessions[id]; s != nil {
		return s, nil
	}
	return nil, p.c.f.error(daytona.KindNotFound, op, id, "there is no such session")
}

func (p fakeProcess) Sessions(ctx context.Context) ([]string, error) {
	sb, err := p.c.started(ctx, "list sessions")
	if err != nil {
		return nil, err
	}
	p.c.f.engine.mu.Lock()
	defer p.c.f.engine.mu.Unlock()
	return slices.Sorted(maps.Keys(sb.sessions)), nil
}

func (s *fakeSession) ID() string { return s.id }

// alive demands that s is still the session of its id.
func (s *fakeSession) alive(ctx context.Context, op string) (*fakeSandbox, error) {
	sb, err := s.p.c.started(ctx, op)
	if err != nil {
		return nil, err
	}
	s.p.c.f.engine.mu.Lock()
	defer s.p.c.f.engine.mu.Unlock()
	if sb.sessions[s.id] != s {
		return nil, s.p.c.f.error(daytona.KindNotFound, op, s.id, "the session is deleted")
	}
	return sb, nil
}

func (s *fakeSession) start(ctx context.Context, command string, stdin io.ReadCloser, in *io.PipeWriter) (*fakeSessionCommand, error) {
	if _, err := s.alive(ctx, "run in session"); err != nil {
		return nil, err
	}
	if strings.ContainsRune(command, 0) {
		return nil, invalid("run in session", "command", command, "must not contain NUL")
	}
	s.mu.Lock()
	cmd := &fakeSessionCommand{id: fmt.Sprintf("%s-%d", s.id, len(s.commands)+1), command: command, in: in, done: make(chan struct{}), more: make(chan struct{})}
	s.commands = append(s.commands, cmd)
	s.mu.Unlock()
	queued := make(chan struct{})
	go func() {
		s.run.Lock()
		close(queued)
		defer s.run.Unlock()
		s.shell.c.Stdin = stdin
		s.shell.c.Stdout = cmd.writer(&cmd.stdout)
		s.shell.c.Stderr = cmd.writer(&cmd.stderr)
		s.shell.exited = false
		code := s.shell.run(s.life, command)
		stdin.Close()
		cmd.finish(code)
	}()
	return cmd, nil
}

func (s *fakeSession) Run(ctx context.Context, command string) (daytona.SessionResult, error) {
	cmd, err := s.start(ctx, command, io.NopCloser(strings.NewReader("")), nil)
	if err != nil {
		return daytona.SessionResult{}, err
	}
	code, err := cmd.Wait(ctx)
	if err != nil {
		return daytona.SessionResult{}, err
	}
	stdout, stderr, err := cmd.Logs(ctx)
	return daytona.SessionResult{CommandID: cmd.id, ExitCode: code, Stdout: stdout, Stderr: stderr}, err
}

func (s *fakeSession) Start(ctx context.Context, command string, _ *daytona.SessionOptions) (daytona.SessionCommand, error) {
	r, w := io.Pipe()
	cmd, err := s.start(ctx, command, r, w)
	if err != nil {
		return nil, err
	}
	return cmd, nil
}

func (s *fakeSession) Command(ctx context.Context, id string) (daytona.SessionCommand, error) {
	const op = "get session command"
	if _, err := s.alive(ctx, op); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.commands {
		if c.id == id {
			return c, nil
		}
	}
	return nil, s.p.c.f.error(daytona.KindNotFound, op, id, "there is no such command")
}

func (s *fakeSession) Commands(ctx context.Context) ([]daytona.SessionCommandInfo, error) {
	if _, err := s.alive(ctx, "list session commands"); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []daytona.SessionCommandInfo
	for _, c := range s.commands {
		i, _ := c.Info(ctx)
		out = append(out, i)
	}
	return out, nil
}

func (s *fakeSession) Delete(ctx context.Context) error {
	sb, err := s.alive(ctx, "delete session")
	if err != nil {
		return err
	}
	s.end()
	s.p.c.f.engine.mu.Lock()
	defer s.p.c.f.engine.mu.Unlock()
	delete(sb.sessions, s.id)
	return nil
}

// fakeSessionCommand is a command of a session; mu guards what changes.
type fakeSessionCommand struct {
	id, command string
	in          *io.PipeWriter
	done        chan struct{}

	mu             sync.Mutex
	stdout, stderr bytes.Buffer
	code           *int
	more           chan struct{} // closed at the next output
}

func (c *fakeSessionCommand) writer(b *bytes.Buffer) io.Writer {
	return writerFunc(func(p []byte) (int, error) {
		c.mu.Lock()
		defer c.mu.Unlock()
		close(c.more)
		c.more = make(chan struct{})
		return b.Write(p)
	})
}

func (c *fakeSessionCommand) finish(code int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.code = &code
	if c.in != nil {
		c.in.Close()
	}
	close(c.done)
}

func (c *fakeSessionCommand) ID() string { return c.id }

func (c *fakeSessionCommand) Info(context.Context) (daytona.SessionCommandInfo, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return daytona.SessionCommandInfo{ID: c.id, Command: c.command, ExitCode: c.code}, nil
}

func (c *fakeSessionCommand) Logs(context.Context) (string, string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stdout.String(), c.stderr.String(), nil
}

func (c *fakeSessionCommand) Follow(ctx context.Context, stdout, stderr io.Writer) error {
	var seenOut, seenErr int
	for {
		c.mu.Lock()
		out, errOut := c.stdout.String()[seenOut:], c.stderr.String()[seenErr:]
		over, more := c.code != nil, c.more
		c.mu.Unlock()
		for _, x := range []struct {
			w io.Writer
			s string
		}{{stdout, out}, {stderr, errOut}} {
			if x.w != nil && x.s != "" {
				if _, err := io.WriteString(x.w, x.s); err != nil {
					return err
				}
			}
		}
		seenOut, seenErr = seenOut+len(out), seenErr+len(errOut)
		if over {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-more:
		case <-c.done:
		}
	}
}

func (c *fakeSessionCommand) SendInput(ctx context.Context, data string) error {
	select {
	case <-c.done:
		return &daytona.Error{Kind: daytona.KindGone, Op: "send input", Subject: c.id, Message: "the command has ended"}
	default:
	}
	if !strings.HasSuffix(data, "\n") {
		data += "\n"
	}
	if c.in == nil {
		return &daytona.Error{Kind: daytona.KindState, Op: "send input", Subject: c.id, Message: "the command was started without input"}
	}
	sent := make(chan error, 1)
	go func() { _, err := io.WriteString(c.in, data); sent <- err }()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case err := <-sent:
		if err != nil {
			return &daytona.Error{Kind: daytona.KindGone, Op: "send input", Subject: c.id, Message: "the command has ended", Err: err}
		}
		return nil
	}
}

func (c *fakeSessionCommand) Wait(ctx context.Context) (int, error) {
	select {
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-c.done:
		c.mu.Lock()
		defer c.mu.Unlock()
		return *c.code, nil
	}
}
