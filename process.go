package daytona

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strconv"
	"sync"
	"time"
)

// Process runs programs in a sandbox. All of them run as the sandbox's user
// with the sandbox's environment ([Spec.Env]), never with anything of the
// host's.
type Process interface {
	// Command returns a program to be run, in the manner of [os/exec].
	// Cancelling ctx kills it with everything it started.
	Command(ctx context.Context, name string, args ...string) *Cmd
	// StartCommand starts a program; it is what [Cmd] is made of.
	StartCommand(ctx context.Context, spec CommandSpec) (RunningCommand, error)

	// Exec runs a line (or a script of many lines) in the sandbox's shell and
	// returns its output, standard output and error interleaved. An exit code
	// other than 0 is a result, not an error. nil options are defaults. A
	// timeout gives KindTimeout and, in the result, what was printed so far.
	Exec(ctx context.Context, command string, opts *ExecOptions) (ExecResult, error)
	// RunCode runs a program text. nil options are defaults. Exit codes and
	// timeouts are treated as by Exec.
	RunCode(ctx context.Context, code string, opts *CodeOptions) (CodeResult, error)

	// CreateSession starts a long-lived shell; KindConflict if the id is
	// taken.
	CreateSession(ctx context.Context, id string) (Session, error)
	// Session returns an existing session; KindNotFound if there is none. The
	// session "entrypoint" is the one of [Spec.Entrypoint]; it can only be
	// read.
	Session(ctx context.Context, id string) (Session, error)
	// Sessions lists the sessions' ids.
	Sessions(ctx context.Context) ([]string, error)

	// CreatePTY starts a shell on a new pseudo-terminal and connects to it.
	// KindConflict if the id is taken.
	CreatePTY(ctx context.Context, opts PTYOptions) (PTY, error)
	// ConnectPTY connects to a running one; several may be connected at once.
	ConnectPTY(ctx context.Context, id string) (PTY, error)
	// PTYs lists the running ones.
	PTYs(ctx context.Context) ([]PTYInfo, error)

	// Ports lists the TCP ports that programs in the sandbox listen on; the Ports
	// of a sandbox know more of them.
	Ports(ctx context.Context) ([]int, error)
}

// ExecOptions refine [Process.Exec].
type ExecOptions struct {
	// Dir is the directory to run in. Defaults to the working directory.
	Dir string
	// Env is added to the sandbox's environment. Defaults to none.
	Env map[string]string
	// Timeout kills the command with everything it started. Rounded up to
	// whole seconds, the wire's unit. Defaults to 0: none.
	Timeout time.Duration
}

// ExecResult is the outcome of [Process.Exec].
type ExecResult struct {
	// ExitCode is -1 if the command could not be started.
	ExitCode int
	// Output is standard output and error as they came.
	Output string
}

// CodeOptions refine [Process.RunCode].
type CodeOptions struct {
	// Language is "python", "typescript" or "javascript". Defaults to the
	// sandbox's ([Spec.Language]).
	Language string
	// Args are the program's arguments. Defaults to none.
	Args []string
	// Env is added to the sandbox's environment. Defaults to none.
	Env map[string]string
	// Timeout is as in [ExecOptions].
	Timeout time.Duration
}

// CodeResult is the outcome of [Process.RunCode].
type CodeResult struct {
	ExitCode int
	Output   string
	// Charts are the figures that Python code showed with matplotlib.
	Charts []Chart
}

// CommandSpec describes a program to start.
type CommandSpec struct {
	// Args is the program, looked up in the sandbox's PATH, and its
	// arguments. Required.
	Args []string
	// Dir is the directory to run in. Defaults to the working directory.
	Dir string
	// Env is added to the sandbox's environment. Defaults to none.
	Env map[string]string
	// Stdin is what the program reads. Defaults to nothing: it sees the end
	// of file at once.
	Stdin io.Reader
	// Stdout and Stderr get what it writes. Default to nowhere. They may be
	// the same writer, which then gets one call at a time.
	Stdout, Stderr io.Writer
	// TTY runs it on a terminal of this size; all output goes to Stdout.
	// Defaults to none.
	TTY *TTYSize
	// Timeout kills the program with everything it started. Defaults to 0:
	// none.
	Timeout time.Duration
}

// TTYSize is the size of a terminal in characters.
type TTYSize struct{ Cols, Rows int }

// RunningCommand is a program that [Process.StartCommand] started.
type RunningCommand interface {
	// PID is its process id inside the sandbox.
	PID() int
	// Signal sends a signal such as "SIGINT" to it and its children in the
	// same process group.
	Signal(ctx context.Context, signal string) error
	// Resize changes the size of its terminal; KindState without one.
	Resize(ctx context.Context, size TTYSize) error
	// Wait waits for it to end and for its output to be delivered. err is nil
	// whatever the exit status; it tells of a lost connection or of a writer
	// that failed.
	Wait() (ExitStatus, error)
}

// ExitStatus says how a program ended.
type ExitStatus struct {
	// ExitCode is 128 plus the signal's number when a signal ended it.
	ExitCode int
	// Signal names the signal that ended it. Empty if none did.
	Signal string
	// TimedOut says that CommandSpec.Timeout ended it.
	TimedOut bool
}

// Err returns nil for exit code 0 and an [*ExitError] for any other.
func (s ExitStatus) Err() error {
	if s.ExitCode == 0 && s.Signal == "" && !s.TimedOut {
		return nil
	}
	return &ExitError{ExitCode: s.ExitCode, Signal: s.Signal, TimedOut: s.TimedOut}
}

// Cmd is a program to be run in a sandbox, made by [Process.Command]. It
// works as [os/exec.Cmd] does: set its fields, then call Run, Output,
// CombinedOutput, or Start and Wait, once.
//
// A program that ends with a code other than 0 makes them return an
// [*ExitError].
type Cmd struct {
	CommandSpec

	ctx     context.Context
	process Process
	running RunningCommand
	err     error
	// pipes are closed when the program has ended.
	pipes []io.Closer
	// stdin is the reading end of StdinPipe.
	stdin *io.PipeReader
}

// NewCmd returns a Cmd that p.StartCommand will start. Implementations of
// [Process] use it for Command.
func NewCmd(ctx context.Context, p Process, name string, args ...string) *Cmd {
	return &Cmd{ctx: ctx, process: p, CommandSpec: CommandSpec{Args: append([]string{name}, args...)}}
}

const cmdOp = "run command"

// Start starts the program and does not wait for it.
func (c *Cmd) Start() error {
	if c.running != nil || c.err != nil {
		return &Error{Kind: KindState, Op: cmdOp, Subject: strconv.Quote(c.Args[0]), Message: "a Cmd can be started only once"}
	}
	if err := c.ctx.Err(); err != nil {
		c.err = err
		return err
	}
	r, err := c.process.StartCommand(c.ctx, c.CommandSpec)
	if err != nil {
		c.err = err
		c.closePipes(err)
		return err
	}
	c.running = r
	return nil
}

// Wait waits for a started program to end and for its output to be delivered.
func (c *Cmd) Wait() error {
	if c.running == nil {
		return &Error{Kind: KindState, Op: cmdOp, Subject: strconv.Quote(c.Args[0]), Message: "Wait before a successful Start"}
	}
	status, err := c.running.Wait()
	c.closePipes(io.EOF)
	if ctxErr := c.ctx.Err(); ctxErr != nil && (err != nil || status.Signal != "") {
		return ctxErr
	}
	if err != nil {
		return err
	}
	return status.Err()
}

func (c *Cmd) closePipes(err error) {
	for _, p := range c.pipes {
		if w, ok := p.(*io.PipeWriter); ok {
			w.CloseWithError(err)
		} else {
			p.Close()
		}
	}
	if c.stdin != nil {
		c.stdin.Close()
	}
}

// Run starts the program and waits for it.
func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

// Output runs the program and returns its standard output. If Stderr is nil,
// its last 32 KiB are in the ExitError.
func (c *Cmd) Output() ([]byte, error) {
	if c.Stdout != nil {
		return nil, &Error{Kind: KindState, Op: cmdOp, Message: "Output: Stdout is set already"}
	}
	var out bytes.Buffer
	c.Stdout = &out
	var tail *tailBuffer
	if c.Stderr == nil {
		tail = &tailBuffer{max: 32 << 10}
		c.Stderr = tail
	}
	err := c.Run()
	if tail != nil {
		if e, ok := errors.AsType[*ExitError](err); ok {
			e.Stderr = tail.Bytes()
		}
	}
	return out.Bytes(), err
}

// CombinedOutput runs the program and returns its standard output and error
// as they came.
func (c *Cmd) CombinedOutput() ([]byte, error) {
	if c.Stdout != nil || c.Stderr != nil {
		return nil, &Error{Kind: KindState, Op: cmdOp, Message: "CombinedOutput: Stdout or Stderr is set already"}
	}
	var out bytes.Buffer
	w := &lockedWriter{w: &out}
	c.Stdout, c.Stderr = w, w
	err := c.Run()
	return out.Bytes(), err
}

// StdinPipe returns a pipe to the program's standard input. Close it for the
// program to see the end of file.
func (c *Cmd) StdinPipe() (io.WriteCloser, error) {
	if c.Stdin != nil {
		return nil, &Error{Kind: KindState, Op: cmdOp, Message: "StdinPipe: Stdin is set already"}
	}
	r, w := io.Pipe()
	c.Stdin, c.stdin = r, r
	return w, nil
}

// StdoutPipe returns a pipe with the program's standard output. Read it to
// its end, from another goroutine than the one in Wait: unlike in os/exec,
// Wait returns only when the output has been read.
func (c *Cmd) StdoutPipe() (io.ReadCloser, error) {
	if c.Stdout != nil {
		return nil, &Error{Kind: KindState, Op: cmdOp, Message: "StdoutPipe: Stdout is set already"}
	}
	r, w := io.Pipe()
	c.Stdout, c.pipes = w, append(c.pipes, w)
	return r, nil
}

// StderrPipe is StdoutPipe for standard error.
func (c *Cmd) StderrPipe() (io.ReadCloser, error) {
	if c.Stderr != nil {
		return nil, &Error{Kind: KindState, Op: cmdOp, Message: "StderrPipe: Stderr is set already"}
	}
	r, w := io.Pipe()
	c.Stderr, c.pipes = w, append(c.pipes, w)
	return r, nil
}

// PID is the process id inside the sandbox, 0 before Start.
func (c *Cmd) PID() int {
	if c.running == nil {
		return 0
	}
	return c.running.PID()
}

// Signal sends a signal such as "SIGINT" to a started program and its
// children in the same process group.
func (c *Cmd) Signal(ctx context.Context, signal string) error {
	if c.running == nil {
		return &Error{Kind: KindState, Op: "signal command", Message: "the command has not been started"}
	}
	return c.running.Signal(ctx, signal)
}

// Resize changes the size of a started program's terminal.
func (c *Cmd) Resize(ctx context.Context, size TTYSize) error {
	if c.running == nil {
		return &Error{Kind: KindState, Op: "resize terminal", Message: "the command has not been started"}
	}
	return c.running.Resize(ctx, size)
}

// tailBuffer keeps the last max bytes written.
type tailBuffer struct {
	max int
	buf []byte
}

func (t *tailBuffer) Write(p []byte) (int, error) {
	n := len(p)
	if n >= t.max {
		t.buf = append(t.buf[:0], p[n-t.max:]...)
		return n, nil
	}
	if over := len(t.buf) + n - t.max; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	t.buf = append(t.buf, p...)
	return n, nil
}

func (t *tailBuffer) Bytes() []byte { return t.buf }

// lockedWriter lets two streams write to one writer.
type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}
