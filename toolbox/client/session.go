package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"

	"github.com/coder/websocket"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/toolbox/wire"
)

// followReadLimit is the greatest message of a log, in bytes. It is streamed,
// not held.
const followReadLimit = 64 << 20

const sessionsPath = "/process/session"

func (p *process) CreateSession(ctx context.Context, id string) (daytona.Session, error) {
	const op = "create session"
	at, err := segment(op, "id", id)
	if err != nil {
		return nil, err
	}
	if err := p.t.call(ctx, request{op: op, subject: id, method: http.MethodPost, path: sessionsPath,
		in: wire.CreateSessionRequest{SessionID: id}}, nil); err != nil {
		return nil, err
	}
	return &session{p.t, id, sessionsPath + "/" + at}, nil
}

func (p *process) Session(ctx context.Context, id string) (daytona.Session, error) {
	const op = "get session"
	at, err := segment(op, "id", id)
	if err != nil {
		return nil, err
	}
	s := &session{p.t, id, sessionsPath + "/" + at}
	if _, err := s.get(ctx, op); err != nil {
		return nil, err
	}
	return s, nil
}

func (p *process) Sessions(ctx context.Context) ([]string, error) {
	var list []wire.Session
	if err := p.t.call(ctx, request{op: "list sessions", method: http.MethodGet, path: sessionsPath}, &list); err != nil {
		return nil, err
	}
	ids := make([]string, len(list))
	for i, s := range list {
		ids[i] = s.SessionID
	}
	return ids, nil
}

// session implements daytona.Session.
type session struct {
	t    *toolbox
	id   string
	path string
}

func (s *session) ID() string { return s.id }

func (s *session) get(ctx context.Context, op string) (wire.Session, error) {
	var w wire.Session
	err := s.t.call(ctx, request{op: op, subject: s.id, method: http.MethodGet, path: s.path}, &w)
	return w, err
}

func (s *session) exec(ctx context.Context, op string, r wire.SessionExecuteRequest) (wire.SessionExecuteResponse, error) {
	var w wire.SessionExecuteResponse
	err := s.t.call(ctx, request{op: op, subject: s.id, method: http.MethodPost, path: s.path + "/exec", in: r}, &w)
	if err == nil && w.CommandID == "" {
		err = malformed(op, s.id, errors.New("no command id"))
	}
	return w, err
}

func (s *session) Run(ctx context.Context, command string) (daytona.SessionResult, error) {
	const op = "run command in session"
	w, err := s.exec(ctx, op, wire.SessionExecuteRequest{Command: command})
	if err != nil {
		return daytona.SessionResult{}, err
	}
	if w.ExitCode == nil {
		return daytona.SessionResult{}, malformed(op, s.id, errors.New("no exit code"))
	}
	result := daytona.SessionResult{CommandID: w.CommandID, ExitCode: *w.ExitCode}
	if w.Stdout == nil && w.Stderr == nil && w.Output != nil {
		result.Stdout, result.Stderr = split([]byte(*w.Output))
		return result, nil
	}
	if w.Stdout != nil {
		result.Stdout = *w.Stdout
	}
	if w.Stderr != nil {
		result.Stderr = *w.Stderr
	}
	return result, nil
}

// split takes a whole log apart.
func split(log []byte) (stdout, stderr string) {
	var out, errs bytes.Buffer
	d := newDemux(&out, &errs)
	_, _ = d.Write(log) // buffers do not fail
	_ = d.Flush()
	return out.String(), errs.String()
}

func (s *session) Start(ctx context.Context, command string, opts *daytona.SessionOptions) (daytona.SessionCommand, error) {
	const op = "start command in session"
	r := wire.SessionExecuteRequest{Command: command, RunAsync: true}
	if opts != nil {
		r.SuppressInputEcho = opts.SuppressInputEcho
	}
	w, err := s.exec(ctx, op, r)
	if err != nil {
		return nil, err
	}
	return s.command(op, w.CommandID)
}

func (s *session) command(op, id string) (*sessionCommand, error) {
	at, err := segment(op, "command id", id)
	if err != nil {
		return nil, err
	}
	return &sessionCommand{s, id, s.path + "/command/" + at}, nil
}

func (s *session) Command(ctx context.Context, id string) (daytona.SessionCommand, error) {
	const op = "get command of session"
	c, err := s.command(op, id)
	if err != nil {
		return nil, err
	}
	if _, err := c.info(ctx, op); err != nil {
		return nil, err
	}
	return c, nil
}

func (s *session) Commands(ctx context.Context) ([]daytona.SessionCommandInfo, error) {
	w, err := s.get(ctx, "list commands of session")
	if err != nil {
		return nil, err
	}
	infos := make([]daytona.SessionCommandInfo, len(w.Commands))
	for i, c := range w.Commands {
		infos[i] = daytona.SessionCommandInfo(c)
	}
	return infos, nil
}

func (s *session) Delete(ctx context.Context) error {
	return s.t.call(ctx, request{op: "delete session", subject: s.id, method: http.MethodDelete, path: s.path}, nil)
}

// sessionCommand implements daytona.SessionCommand.
type sessionCommand struct {
	s    *session
	id   string
	path string
}

func (c *sessionCommand) ID() string      { return c.id }
func (c *sessionCommand) subject() string { return c.s.id + "/" + c.id }

// logs is the path of the command's log.
func (c *sessionCommand) logs() string {
	if c.s.id == wire.EntrypointSession {
		return c.s.path + "/logs"
	}
	return c.path + "/logs"
}

func (c *sessionCommand) Info(ctx context.Context) (daytona.SessionCommandInfo, error) {
	return c.info(ctx, "get command of session")
}

func (c *sessionCommand) info(ctx context.Context, op string) (daytona.SessionCommandInfo, error) {
	if c.s.id == wire.EntrypointSession {
		// It has no route for its command.
		w, err := c.s.get(ctx, op)
		if err != nil {
			return daytona.SessionCommandInfo{}, err
		}
		for _, known := range w.Commands {
			if known.ID == c.id {
				return daytona.SessionCommandInfo(known), nil
			}
		}
		return daytona.SessionCommandInfo{}, &daytona.Error{Kind: daytona.KindNotFound, Op: op, Subject: c.subject(), Message: "the session has no such command"}
	}
	var w wire.Command
	err := c.s.t.call(ctx, request{op: op, subject: c.subject(), method: http.MethodGet, path: c.path}, &w)
	return daytona.SessionCommandInfo(w), err
}

func (c *sessionCommand) Logs(ctx context.Context) (stdout, stderr string, err error) {
	r := request{op: "get log of command", subject: c.subject(), method: http.MethodGet, path: c.logs()}
	resp, err := c.s.t.open(ctx, r)
	if err != nil {
		return "", "", err
	}
	defer resp.Body.Close()
	b, err := readAnswer(ctx, r, resp)
	if err != nil {
		return "", "", err
	}
	if kind, _ := mediaType(resp); kind != "application/json" {
		stdout, stderr = split(b)
		return stdout, stderr, nil
	}
	var w wire.SessionLogs
	if err := json.Unmarshal(b, &w); err != nil {
		return "", "", malformed(r.op, r.subject, err)
	}
	return w.Stdout, w.Stderr, nil
}

func (c *sessionCommand) Follow(ctx context.Context, stdout, stderr io.Writer) error {
	const op = "follow log of command"
	conn, _, err := c.s.t.websocket(ctx, op, c.subject(), c.logs(), url.Values{"follow": {"true"}}, followReadLimit)
	if err != nil {
		return err
	}
	defer conn.CloseNow()
	stop := context.AfterFunc(ctx, func() { conn.CloseNow() })
	defer stop()
	d := newDemux(stdout, stderr)
	buf := make([]byte, outputBuffer)
	for {
		_, r, err := conn.Reader(context.Background())
		if err != nil {
			switch websocket.CloseStatus(err) {
			case websocket.StatusNormalClosure, websocket.StatusGoingAway:
				return d.Flush()
			}
			return broken(ctx, op, c.subject(), err)
		}
		for {
			n, err := r.Read(buf)
			if _, werr := d.Write(buf[:n]); werr != nil {
				return &daytona.Error{Kind: daytona.KindOf(werr), Op: op, Subject: c.subject(), Message: "the log could not be written", Err: werr}
			}
			if err == io.EOF {
				break
			}
			if err != nil {
				return broken(ctx, op, c.subject(), err)
			}
		}
	}
}

func (c *sessionCommand) SendInput(ctx context.Context, data string) error {
	return c.s.t.call(ctx, request{op: "send input to command", subject: c.subject(), method: http.MethodPost,
		path: c.path + "/input", in: wire.SessionInputRequest{Data: data}}, nil)
}

// Wait follows the log, whose end is that of the command, rather than asking
// again and again.
func (c *sessionCommand) Wait(ctx context.Context) (int, error) {
	const op = "wait for command of session"
	info, err := c.info(ctx, op)
	if err != nil {
		return 0, err
	}
	if info.ExitCode == nil {
		if err := c.Follow(ctx, nil, nil); err != nil {
			return 0, err
		}
		if info, err = c.info(ctx, op); err != nil {
			return 0, err
		}
	}
	if info.ExitCode == nil {
		return 0, &daytona.Error{Kind: daytona.KindGone, Op: op, Subject: c.subject(), Message: "the session's shell ended before the command gave an exit code"}
	}
	return *info.ExitCode, nil
}
