package client

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/toolbox/wire"
)

const (
	ptysPath = "/process/pty"
	// ptyInputLimit is the size of the messages in which input is sent, in
	// bytes; agents take at most 64 KiB.
	ptyInputLimit = 32 << 10
	ptyReadLimit  = 4 << 20
)

func (t *toolbox) createPTY(ctx context.Context, opts daytona.PTYOptions) (daytona.PTY, error) {
	const op = "create terminal"
	if opts.ID == "" {
		opts.ID = "pty-" + strings.ToLower(rand.Text())
	}
	if _, err := segment(op, "ID", opts.ID); err != nil {
		return nil, err
	}
	if opts.Size == (daytona.TTYSize{}) {
		opts.Size = daytona.TTYSize{Cols: 80, Rows: 24}
	}
	if !validSize(opts.Size) {
		return nil, &daytona.Error{Kind: daytona.KindInvalid, Op: op, Subject: opts.ID, Field: "Size", Value: opts.Size, Message: "columns and rows must be 1 to 1000"}
	}
	// The shell starts when it is connected to, so that nothing it prints is
	// missed.
	if err := t.call(ctx, request{op: op, subject: opts.ID, method: http.MethodPost, path: ptysPath, in: wire.PTYCreateRequest{
		ID: opts.ID, Cwd: opts.Dir, Envs: opts.Env, Cols: opts.Size.Cols, Rows: opts.Size.Rows, LazyStart: true,
	}}, nil); err != nil {
		return nil, err
	}
	p, err := t.connectPTY(ctx, opts.ID)
	if err != nil {
		// Leave nothing behind, even if ctx has ended.
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		_ = t.call(undo, request{op: "remove terminal", subject: opts.ID, method: http.MethodDelete, path: ptysPath + "/" + url.PathEscape(opts.ID)}, nil)
		return nil, err
	}
	return p, nil
}

func (t *toolbox) connectPTY(ctx context.Context, id string) (daytona.PTY, error) {
	const op = "connect to terminal"
	at, err := segment(op, "id", id)
	if err != nil {
		return nil, err
	}
	p := &terminal{t: t, id: id, path: ptysPath + "/" + at, done: make(chan struct{})}
	conn, _, err := t.websocket(ctx, op, id, p.path+"/connect", nil, ptyReadLimit, wire.ProtocolPTYExitControl)
	if err != nil {
		return nil, err
	}
	p.conn = conn
	stop := context.AfterFunc(ctx, func() { conn.CloseNow() })
	control, err := p.greeting()
	if !stop() && err == nil {
		err = ctx.Err()
	}
	switch {
	case err != nil:
		conn.CloseNow()
		return nil, broken(ctx, op, id, err)
	case control.Status == "connected":
		return p, nil
	}
	conn.CloseNow()
	// The text says why; what kind of error it is, asking for the terminal
	// tells.
	if err := t.call(ctx, request{op: op, subject: id, method: http.MethodGet, path: p.path}, nil); err != nil {
		return nil, err
	}
	return nil, &daytona.Error{Kind: daytona.KindUnavailable, Op: op, Subject: id, Message: control.Error}
}

// terminal implements daytona.PTY.
type terminal struct {
	t    *toolbox
	id   string
	path string
	conn *websocket.Conn

	reading sync.Mutex
	message io.Reader // the rest of the current message

	once   sync.Once
	done   chan struct{} // closed when one of these is known
	status daytona.ExitStatus
	err    error // why there is no status
	closed bool  // by Close
}

// greeting reads the first message, which says whether there is such a
// terminal.
func (p *terminal) greeting() (wire.PTYControl, error) {
	kind, r, err := p.conn.Reader(context.Background())
	if err != nil {
		return wire.PTYControl{}, err
	}
	if kind != websocket.MessageText {
		return wire.PTYControl{}, malformed("", "", errors.New("the first message is not a control message"))
	}
	return readControl(r)
}

func readControl(r io.Reader) (wire.PTYControl, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxErrorBody))
	if err != nil {
		return wire.PTYControl{}, err
	}
	var c wire.PTYControl
	if err := json.Unmarshal(b, &c); err != nil {
		return c, malformed("", "", err)
	}
	return c, nil
}

func (p *terminal) ID() string { return p.id }

func (p *terminal) Read(b []byte) (int, error) {
	p.reading.Lock()
	defer p.reading.Unlock()
	if len(b) == 0 {
		return 0, nil
	}
	for {
		select {
		case <-p.done:
			return 0, p.end()
		default:
		}
		if p.message == nil {
			kind, r, err := p.conn.Reader(context.Background())
			if err != nil {
				p.finish(err)
				return 0, p.end()
			}
			if kind == websocket.MessageText {
				c, err := readControl(r)
				if err != nil {
					p.finish(err)
					return 0, p.end()
				}
				if c.Status == "exited" {
					code := 0
					if c.ExitCode != nil {
						code = *c.ExitCode
					}
					p.exit(wire.PTYExit{ExitCode: code, ExitReason: c.ExitReason, Error: c.Error})
					return 0, p.end()
				}
				continue
			}
			p.message = r
		}
		n, err := p.message.Read(b)
		if err != nil {
			p.message = nil
			if err != io.EOF {
				p.finish(err)
			}
		}
		if n > 0 {
			return n, nil
		}
	}
}

// end is what Read returns when all is over.
func (p *terminal) end() error {
	if p.err != nil && !p.closed {
		return p.err
	}
	return io.EOF
}

func (p *terminal) settle(status daytona.ExitStatus, err error, closed bool) {
	p.once.Do(func() {
		p.status, p.err, p.closed = status, err, closed
		close(p.done)
	})
	p.conn.CloseNow()
}

// finish takes note of the error that ended reading: an exit status is in the
// close frame's reason.
func (p *terminal) finish(err error) {
	if c, ok := errors.AsType[websocket.CloseError](err); ok {
		var e wire.PTYExit
		if json.Unmarshal([]byte(c.Reason), &e) == nil && strings.Contains(c.Reason, "exitCode") {
			p.exit(e)
			return
		}
	}
	p.settle(daytona.ExitStatus{ExitCode: -1}, broken(context.Background(), "read terminal", p.id, err), false)
}

func (p *terminal) exit(e wire.PTYExit) {
	p.settle(daytona.ExitStatus{ExitCode: e.ExitCode, Signal: signalOf(e)}, nil, false)
}

// signalNames are Linux's, from 1: the sandbox is Linux whatever the host is.
const signalNames = "HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD CONT STOP TSTP TTIN TTOU URG XCPU XFSZ VTALRM PROF WINCH IO PWR SYS"

// signalOf is the name of the signal that an exit reason tells of, or empty.
func signalOf(e wire.PTYExit) string {
	switch r := e.ExitReason; {
	case r == "Ctrl+C":
		return "SIGINT"
	case strings.HasPrefix(r, "SIG"):
		return r
	case strings.HasPrefix(r, "signal "):
		n, err := strconv.Atoi(r[len("signal "):])
		if names := strings.Fields(signalNames); err == nil && n >= 1 && n <= len(names) {
			return "SIG" + names[n-1]
		}
		return r
	}
	return ""
}

func (p *terminal) Write(b []byte) (int, error) {
	total := 0
	for len(b) > 0 {
		n := min(len(b), ptyInputLimit)
		if err := p.conn.Write(context.Background(), websocket.MessageBinary, b[:n]); err != nil {
			select {
			case <-p.done:
				return total, &daytona.Error{Kind: daytona.KindGone, Op: "write to terminal", Subject: p.id, Message: "the shell has ended or the connection was closed"}
			default:
				return total, broken(context.Background(), "write to terminal", p.id, err)
			}
		}
		total += n
		b = b[n:]
	}
	return total, nil
}

func (p *terminal) Close() error {
	p.settle(daytona.ExitStatus{ExitCode: -1}, &daytona.Error{Kind: daytona.KindState, Op: "wait for terminal", Subject: p.id,
		Message: "the connection was closed before the shell ended; connect again to wait for it"}, true)
	return nil
}

func (p *terminal) Resize(ctx context.Context, size daytona.TTYSize) error {
	const op = "resize terminal"
	if !validSize(size) {
		return &daytona.Error{Kind: daytona.KindInvalid, Op: op, Subject: p.id, Field: "size", Value: size, Message: "columns and rows must be 1 to 1000"}
	}
	return p.t.call(ctx, request{op: op, subject: p.id, method: http.MethodPost, path: p.path + "/resize", idempotent: true,
		in: wire.PTYResizeRequest{Cols: size.Cols, Rows: size.Rows}}, nil)
}

func (p *terminal) Kill(ctx context.Context) error {
	err := p.t.call(ctx, request{op: "kill terminal", subject: p.id, method: http.MethodDelete, path: p.path}, nil)
	if errors.Is(err, daytona.ErrNotFound) {
		return nil // the shell has ended already
	}
	return err
}

func (p *terminal) Wait(ctx context.Context) (daytona.ExitStatus, error) {
	select {
	case <-p.done:
		return p.status, p.err
	default:
	}
	select {
	case <-p.done:
		return p.status, p.err
	case <-ctx.Done():
		return daytona.ExitStatus{ExitCode: -1}, ended("wait for terminal", p.id, ctx.Err())
	}
}
