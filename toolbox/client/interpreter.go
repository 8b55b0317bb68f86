package client

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/coder/websocket"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/toolbox/wire"
)

const (
	// runRequestLimit bounds the code of a run with its environment, in bytes:
	// what agents take.
	runRequestLimit = 16 << 20
	// runMessageLimit bounds a message about a run in bytes: a chart of 16 MiB.
	runMessageLimit = 24 << 20
	// keptOutput bounds each of the fields of a daytona.InterpreterResult.
	keptOutput = 64 << 20
	// maxForms bounds the forms of a value, chartObjects the JSON objects in a
	// chart: small ones take many times more memory than bytes.
	maxForms     = 64
	chartObjects = 100_000
)

// interpreter implements daytona.Interpreter.
type interpreter struct{ t *toolbox }

func (i *interpreter) Run(ctx context.Context, code string, opts *daytona.InterpreterOptions) (daytona.InterpreterResult, error) {
	const op = "run code in interpreter"
	var o daytona.InterpreterOptions
	if opts != nil {
		o = *opts
	}
	if strings.TrimSpace(code) == "" {
		return daytona.InterpreterResult{}, &daytona.Error{Kind: daytona.KindInvalid, Op: op, Field: "code", Message: "must not be empty"}
	}
	req := wire.InterpreterRequest{Code: code, ContextID: o.Context, Language: o.Language, Envs: o.Env}
	if o.Timeout != 0 {
		s := max(o.Timeout, 0).Seconds()
		req.Timeout = &s
	}
	b, err := json.Marshal(req)
	if err == nil && len(b) > runRequestLimit {
		err = errors.New("more than 16 MiB: upload it as a file")
	}
	if err != nil {
		return daytona.InterpreterResult{}, &daytona.Error{Kind: daytona.KindInvalid, Op: op, Field: "code", Message: err.Error()}
	}
	conn, _, err := i.t.websocket(ctx, op, o.Context, wire.InterpreterPath, nil, runMessageLimit)
	if err != nil {
		return daytona.InterpreterResult{}, err
	}
	// To go away interrupts a run that is not over.
	defer conn.CloseNow()
	r := run{op: op, o: &o}
	err = conn.Write(ctx, websocket.MessageText, b)
	for err == nil && !r.over {
		var data []byte
		if _, data, err = conn.Read(ctx); err == nil {
			err = r.take(data)
		}
	}
	return r.result(), r.outcome(ctx, err)
}

// run is what is known of a run.
type run struct {
	op             string
	o              *daytona.InterpreterOptions
	stdout, stderr kept
	got            daytona.InterpreterResult
	results        int
	charts         int
	refused        *daytona.Error
	over           bool
}

// kept is output up to a limit.
type kept struct {
	strings.Builder
	cut bool
}

func (k *kept) add(s string) {
	if room := keptOutput - k.Len(); len(s) > room {
		s, k.cut = s[:room], true
	}
	k.WriteString(s)
}

// callerError is an error of the caller's writer.
type callerError struct{ error }

func (e callerError) Unwrap() error { return e.error }

// take takes in a message.
func (r *run) take(data []byte) error {
	var m wire.InterpreterMessage
	if err := json.Unmarshal(data, &m); err != nil {
		return malformed(r.op, "", err)
	}
	deliver := func(w io.Writer, k *kept) error {
		if w == nil {
			k.add(m.Text)
			return nil
		}
		if _, err := io.WriteString(w, m.Text); err != nil {
			return callerError{err}
		}
		return nil
	}
	switch m.Type {
	case wire.InterpreterStdout:
		return deliver(r.o.Stdout, &r.stdout)
	case wire.InterpreterStderr:
		return deliver(r.o.Stderr, &r.stderr)
	case wire.InterpreterError:
		r.got.Err = &daytona.InterpreterError{Name: m.Name, Value: m.Value, Traceback: m.Traceback}
	case wire.InterpreterResult:
		d, err := decodeData(m.Data)
		if err != nil {
			return malformed(r.op, "", err)
		}
		if r.o.Result != nil {
			r.o.Result(d)
		}
		if r.results += len(m.Data); r.results > keptOutput {
			r.got.Truncated = true
			return nil
		}
		r.got.Results = append(r.got.Results, d)
	case wire.InterpreterChart:
		c, err := decodeChart(r.op, m.Chart)
		if err != nil {
			return err
		}
		if r.o.Chart != nil {
			r.o.Chart(c)
		}
		if r.charts += len(m.Chart); r.charts > keptOutput {
			r.got.Truncated = true
			return nil
		}
		r.got.Charts = append(r.got.Charts, c)
	case wire.InterpreterRefused:
		r.refused = &daytona.Error{Kind: kindOfCode(m.Name), Op: r.op, Subject: r.o.Context, Message: m.Text}
	case wire.InterpreterControl:
		r.over = true
		r.got.Interrupted = m.Text == wire.InterpreterInterrupted
	}
	return nil // others are of agents to come
}

func (r *run) result() daytona.InterpreterResult {
	r.got.Stdout, r.got.Stderr = r.stdout.String(), r.stderr.String()
	r.got.Truncated = r.got.Truncated || r.stdout.cut || r.stderr.cut
	return r.got
}

// outcome is the error of a run whose connection ended with err.
func (r *run) outcome(ctx context.Context, err error) error {
	if r.over {
		return nil
	}
	if e, ok := errors.AsType[callerError](err); ok {
		return fmt.Errorf("%s: deliver its output: %w", r.op, e.error)
	}
	c, closed := errors.AsType[websocket.CloseError](err)
	switch {
	case !closed || ctx.Err() != nil:
	case c.Code == websocket.StatusNormalClosure, c.Code == websocket.StatusGoingAway:
		return nil // an agent without control messages
	case c.Code == wire.CloseInterpreterTimeout:
		return &daytona.Error{Kind: daytona.KindTimeout, Op: r.op, Subject: r.o.Context, Message: cmp.Or(c.Reason, "the run exceeded its timeout")}
	case r.refused != nil:
		return r.refused
	case c.Code == wire.CloseInterpreterRefused:
		kind := daytona.KindInvalid
		if strings.Contains(c.Reason, "not found") {
			kind = daytona.KindNotFound
		}
		return &daytona.Error{Kind: kind, Op: r.op, Subject: r.o.Context, Message: cmp.Or(c.Reason, "the run was refused")}
	case c.Code == websocket.StatusMessageTooBig:
		return &daytona.Error{Kind: daytona.KindInvalid, Op: r.op, Field: "code", Message: "is too long for the sandbox's agent: upload it as a file"}
	}
	return broken(ctx, r.op, r.o.Context, err)
}

// kindOfCode is the kind of an error of which only the code is known: that of
// its status, where the code names one.
func kindOfCode(code string) daytona.Kind {
	for _, status := range []int{http.StatusBadRequest, http.StatusNotFound, http.StatusTooManyRequests, http.StatusServiceUnavailable} {
		if code == strings.ToUpper(strings.ReplaceAll(http.StatusText(status), " ", "_")) {
			return daytona.KindOfStatus(status)
		}
	}
	if code == wire.CodeCommandStart {
		return daytona.KindInvalid
	}
	return kindOf(http.StatusInternalServerError, code)
}

// decodeData decodes the forms of a value.
func decodeData(raw json.RawMessage) (daytona.InterpreterData, error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.New("the data of a result are no JSON object")
	}
	data := daytona.InterpreterData{}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return nil, err
		}
		media, _ := key.(string)
		form, err := d.Token()
		if err != nil {
			return nil, err
		}
		text, ok := form.(string)
		if !ok {
			return nil, fmt.Errorf("the form %.100q of a result is no string", media)
		}
		if len(data) == maxForms {
			return nil, fmt.Errorf("a result has more than %d forms", maxForms)
		}
		data[media] = []byte(text)
		if binaryMedia(media) {
			if b, err := base64.StdEncoding.DecodeString(text); err == nil {
				data[media] = b
			}
		}
	}
	return data, nil
}

// binaryMedia says whether a form is base64.
func binaryMedia(media string) bool {
	top, sub, _ := strings.Cut(media, "/")
	switch top {
	case "image", "audio", "video":
		return sub != "svg+xml"
	}
	return media == "application/pdf" || media == "application/octet-stream"
}

// decodeChart decodes a chart of the wire.
func decodeChart(op string, raw json.RawMessage) (c daytona.Chart, err error) {
	if n := bytes.Count(raw, []byte{'{'}); n > chartObjects {
		return c, malformed(op, "", fmt.Errorf("a chart of %d parts", n))
	}
	if err := json.Unmarshal(raw, &c); err != nil {
		return c, malformed(op, "", err)
	}
	return c, nil
}

func (i *interpreter) CreateContext(ctx context.Context, opts *daytona.InterpreterContextOptions) (daytona.InterpreterContext, error) {
	const op = "create interpreter context"
	var o daytona.InterpreterContextOptions
	if opts != nil {
		o = *opts
	}
	var c wire.InterpreterContext
	err := i.t.call(ctx, request{op: op, subject: o.Dir, method: http.MethodPost, path: wire.InterpreterContextsPath,
		in: wire.CreateInterpreterContextRequest{Cwd: o.Dir, Language: o.Language}}, &c)
	return interpreterContext(c), err
}

func interpreterContext(c wire.InterpreterContext) daytona.InterpreterContext {
	at, _ := time.Parse(time.RFC3339, c.CreatedAt) // zero if the agent does not say
	return daytona.InterpreterContext{ID: c.ID, Dir: c.Cwd, Language: c.Language, Active: c.Active, CreatedAt: at}
}

func (i *interpreter) Contexts(ctx context.Context) ([]daytona.InterpreterContext, error) {
	var list wire.InterpreterContexts
	if err := i.t.call(ctx, request{op: "list interpreter contexts", method: http.MethodGet, path: wire.InterpreterContextsPath}, &list); err != nil {
		return nil, err
	}
	contexts := make([]daytona.InterpreterContext, len(list.Contexts))
	for n, c := range list.Contexts {
		contexts[n] = interpreterContext(c)
	}
	return contexts, nil
}

func (i *interpreter) DeleteContext(ctx context.Context, id string) error {
	return i.at(ctx, "delete interpreter context", http.MethodDelete, id, "")
}

func (i *interpreter) Interrupt(ctx context.Context, id string) error {
	return i.at(ctx, "interrupt interpreter context", http.MethodPost, id, "/interrupt")
}

func (i *interpreter) at(ctx context.Context, op, method, id, action string) error {
	at, err := segment(op, "id", id)
	if err != nil {
		return err
	}
	return i.t.call(ctx, request{op: op, subject: id, method: method, path: wire.InterpreterContextsPath + "/" + at + action, idempotent: true}, nil)
}
