package client

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/toolbox/wire"
)

const (
	// maxSpec bounds the encoded description of a program, in bytes. It
	// travels in the URL, for which HTTP servers have 1 MiB.
	maxSpec = 768 << 10
	// commandReadLimit is the greatest message an agent may send, in bytes.
	commandReadLimit = 1 << 20
	// outputBuffer is the size of the pieces in which output is delivered.
	outputBuffer = 32 << 10
	// cancelGrace is how long, after a context has ended, the caller's reader
	// or writer is waited for, which may be in use or stuck.
	cancelGrace = 100 * time.Millisecond
)

func (p *process) StartCommand(ctx context.Context, spec daytona.CommandSpec) (daytona.RunningCommand, error) {
	const op = "start command"
	invalid := func(field string, value any, rule string) error {
		return &daytona.Error{Kind: daytona.KindInvalid, Op: op, Field: field, Value: value, Message: rule}
	}
	if len(spec.Args) == 0 || spec.Args[0] == "" {
		return nil, invalid("Args", spec.Args, "must begin with the program to run")
	}
	subject := strconv.Quote(spec.Args[0])
	if spec.Timeout < 0 {
		return nil, invalid("Timeout", spec.Timeout, "must not be negative; 0 is none")
	}
	req := wire.CommandRequest{
		Args: spec.Args, Cwd: spec.Dir, Envs: spec.Env, Stdin: spec.Stdin != nil,
		Timeout: int64((spec.Timeout + time.Millisecond - 1) / time.Millisecond),
	}
	if spec.TTY != nil {
		req.Cols, req.Rows = spec.TTY.Cols, spec.TTY.Rows
		if !validSize(*spec.TTY) {
			return nil, invalid("TTY", *spec.TTY, "columns and rows must be 1 to 1000")
		}
	}
	text, err := wire.EncodeCommandSpec(req)
	if err != nil {
		return nil, &daytona.Error{Kind: daytona.KindInvalid, Op: op, Subject: subject, Message: "cannot be encoded as JSON", Err: err}
	}
	if len(text) > maxSpec {
		return nil, invalid("Args and Env", len(text)/4*3, "arguments and environment must not be longer than 576 KiB in all; write them to a file or to standard input")
	}
	// The WebSocket is closed by the AfterFunc below; this context ends only
	// the handshake.
	conn, h, err := p.t.websocket(ctx, op, subject, wire.CommandPath, url.Values{"spec": {text}}, commandReadLimit)
	if err != nil {
		if lacksCommands(h) {
			return nil, &daytona.Error{Kind: daytona.KindUnsupported, Op: op, Subject: subject,
				Message: "the sandbox's agent does not have " + wire.CommandPath + ", which keeps the streams of a program apart; use Exec or a Session"}
		}
		return nil, err
	}
	c := &command{t: p.t, ctx: ctx, conn: conn, subject: subject, tty: spec.TTY != nil,
		started: make(chan struct{}), done: make(chan struct{})}
	c.stop = context.AfterFunc(ctx, func() { conn.CloseNow() })
	stdout, stderr := spec.Stdout, spec.Stderr
	if stdout == nil {
		stdout = io.Discard
	}
	if stderr == nil {
		stderr = io.Discard
	}
	go c.receive(stdout, stderr)
	if spec.Stdin != nil {
		// Nobody waits for it: it may be stuck in a read for ever, such as
		// that of a terminal.
		go c.feed(spec.Stdin)
	}
	return c, nil
}

func validSize(s daytona.TTYSize) bool {
	return s.Cols >= 1 && s.Cols <= 1000 && s.Rows >= 1 && s.Rows <= 1000
}

// lacksCommands reports whether a refused handshake is that of an agent
// without the extension.
func lacksCommands(h *handshake) bool {
	switch h.status {
	case http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusNotImplemented:
		var e wire.ErrorResponse
		_ = json.Unmarshal(h.body, &e)
		return e.Code != wire.CodeCommandStart
	}
	return false
}

// command implements daytona.RunningCommand.
type command struct {
	t       *toolbox
	ctx     context.Context
	conn    *websocket.Conn
	subject string
	tty     bool
	stop    func() bool

	started chan struct{} // closed when pid is known
	pid     int
	done    chan struct{} // closed when status and err are known
	status  daytona.ExitStatus
	err     error

	stdinErr  atomic.Pointer[error]
	abandoned atomic.Bool // no further call of a writer
}

const waitOp = "wait for command"

// receive delivers output until the program ends.
func (c *command) receive(stdout, stderr io.Writer) {
	defer close(c.done)
	// The agent needs no close handshake, and kills what is left of a program
	// that has not ended.
	defer c.conn.CloseNow()
	defer c.stop()
	status, err := c.deliver(make([]byte, outputBuffer), stdout, stderr)
	c.status, c.err = status, err
	if err == nil {
		if p := c.stdinErr.Load(); p != nil {
			c.err = *p
		}
	}
}

func (c *command) deliver(buf []byte, stdout, stderr io.Writer) (daytona.ExitStatus, error) {
	failed := daytona.ExitStatus{ExitCode: -1}
	const limit = wire.CommandFrameLimit
	started := false
	for {
		// A context that never ends makes reads cheap; c.stop closes conn.
		kind, r, err := c.conn.Reader(context.Background())
		if err != nil {
			return failed, broken(c.ctx, waitOp, c.subject, err)
		}
		if kind == websocket.MessageText {
			text, err := io.ReadAll(io.LimitReader(r, limit))
			if err != nil {
				return failed, broken(c.ctx, waitOp, c.subject, err)
			}
			var e wire.CommandEvent
			if err := json.Unmarshal(text, &e); err != nil {
				return failed, malformed(waitOp, c.subject, err)
			}
			if e.PID != 0 && !started {
				started = true
				c.pid = e.PID
				close(c.started)
			}
			if e.Exit != nil {
				return daytona.ExitStatus{ExitCode: e.Exit.Code, Signal: e.Exit.Signal, TimedOut: e.Exit.TimedOut}, nil
			}
			continue
		}
		if _, err := io.ReadFull(r, buf[:1]); err != nil {
			if errors.Is(err, io.EOF) {
				return failed, malformed(waitOp, c.subject, errors.New("empty frame"))
			}
			return failed, broken(c.ctx, waitOp, c.subject, err)
		}
		var w io.Writer
		switch buf[0] {
		case wire.FrameStdout:
			w = stdout
		case wire.FrameStderr:
			w = stderr
		default:
			return failed, malformed(waitOp, c.subject, errors.New("frame for stream "+strconv.Itoa(int(buf[0]))))
		}
		for {
			n, err := r.Read(buf)
			if n > 0 {
				if c.abandoned.Load() {
					return failed, ended(waitOp, c.subject, c.ctx.Err())
				}
				if wrote, werr := w.Write(buf[:n]); werr != nil || wrote < n {
					if werr == nil {
						werr = io.ErrShortWrite
					}
					return failed, &daytona.Error{Kind: daytona.KindOf(werr), Op: waitOp, Subject: c.subject,
						Message: "its output could not be written; it was killed", Err: werr}
				}
			}
			if err == io.EOF {
				break
			}
			if err != nil {
				return failed, broken(c.ctx, waitOp, c.subject, err)
			}
		}
	}
}

// feed copies standard input to the program, and then its end.
func (c *command) feed(stdin io.Reader) {
	buf := make([]byte, wire.CommandFrameLimit/2)
	buf[0] = wire.FrameStdin
	for {
		n, err := stdin.Read(buf[1:])
		select {
		case <-c.done:
			return
		default:
		}
		// Write errors mean that the program or the connection has ended, of
		// which receive tells.
		if n > 0 && c.conn.Write(context.Background(), websocket.MessageBinary, buf[:1+n]) != nil {
			return
		}
		if err != nil {
			if err != io.EOF && !errors.Is(err, io.ErrClosedPipe) {
				err = error(&daytona.Error{Kind: daytona.KindOf(err), Op: waitOp, Subject: c.subject, Message: "its input could not be read", Err: err})
				c.stdinErr.Store(&err)
			}
			_ = c.conn.Write(context.Background(), websocket.MessageBinary, buf[:1])
			return
		}
	}
}

// PID waits until the agent has told the process id, which it does at once.
func (c *command) PID() int {
	select {
	case <-c.started:
		return c.pid
	case <-c.done:
	}
	select {
	case <-c.started:
		return c.pid
	default:
		return 0
	}
}

func (c *command) Signal(ctx context.Context, signal string) error {
	const op = "signal command"
	if signal == "" {
		return &daytona.Error{Kind: daytona.KindInvalid, Op: op, Subject: c.subject, Field: "signal", Value: signal, Message: `must be the name of a signal, such as "SIGINT"`}
	}
	if !slices.Contains(signals, signal) {
		return &daytona.Error{Kind: daytona.KindInvalid, Op: op, Field: "signal", Value: signal, Message: "must be the name of a Linux signal, such as SIGINT"}
	}
	return c.control(ctx, op, wire.CommandControl{Signal: signal})
}

func (c *command) Resize(ctx context.Context, size daytona.TTYSize) error {
	const op = "resize terminal"
	if !c.tty {
		return &daytona.Error{Kind: daytona.KindState, Op: op, Subject: c.subject, Message: "the command does not run on a terminal; set TTY to start it on one"}
	}
	if !validSize(size) {
		return &daytona.Error{Kind: daytona.KindInvalid, Op: op, Subject: c.subject, Field: "size", Value: size, Message: "columns and rows must be 1 to 1000"}
	}
	return c.control(ctx, op, wire.CommandControl{Cols: size.Cols, Rows: size.Rows})
}

func (c *command) control(ctx context.Context, op string, m wire.CommandControl) error {
	gone := &daytona.Error{Kind: daytona.KindGone, Op: op, Subject: c.subject, Message: "the command has ended"}
	select {
	case <-c.done:
		return gone
	default:
	}
	b, err := json.Marshal(m)
	if err != nil {
		return &daytona.Error{Kind: daytona.KindInvalid, Op: op, Subject: c.subject, Message: "cannot be encoded as JSON", Err: err}
	}
	// A write that ctx interrupts would cost the connection, and so the
	// program its life: let it go on alone.
	sent := make(chan error, 1)
	go func() { sent <- c.conn.Write(context.Background(), websocket.MessageText, b) }()
	select {
	case err := <-sent:
		if err != nil {
			select {
			case <-c.done:
				return gone
			default:
				return broken(ctx, op, c.subject, err)
			}
		}
		return nil
	case <-ctx.Done():
		return ended(op, c.subject, ctx.Err())
	}
}

func (c *command) Wait() (daytona.ExitStatus, error) {
	select {
	case <-c.done:
		return c.status, c.err
	case <-c.ctx.Done():
	}
	grace := time.NewTimer(cancelGrace)
	defer grace.Stop()
	select {
	case <-c.done:
		return c.status, c.err
	case <-grace.C:
		// A writer is stuck.
		c.abandoned.Store(true)
		return daytona.ExitStatus{ExitCode: -1}, ended(waitOp, c.subject, c.ctx.Err())
	}
}

// signals are those of Linux (signal(7)), whatever system this client runs on.
var signals = []string{
	"SIGHUP", "SIGINT", "SIGQUIT", "SIGILL", "SIGTRAP", "SIGABRT", "SIGBUS", "SIGFPE", "SIGKILL", "SIGUSR1", "SIGSEGV",
	"SIGUSR2", "SIGPIPE", "SIGALRM", "SIGTERM", "SIGSTKFLT", "SIGCHLD", "SIGCONT", "SIGSTOP", "SIGTSTP", "SIGTTIN", "SIGTTOU",
	"SIGURG", "SIGXCPU", "SIGXFSZ", "SIGVTALRM", "SIGPROF", "SIGWINCH", "SIGIO", "SIGPWR", "SIGSYS",
}
