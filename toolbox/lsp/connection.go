package lsp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"

	"github.com/sourcegraph/jsonrpc2"
	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona/toolbox/process"
	"github.com/daytona-go/daytona/toolbox/wire"
)

const (
	// unansweredLimit is how many requests a server may leave unanswered,
	// those included that nobody waits for any more.
	unansweredLimit = 256
	// owedLimit is how many answers to a server's own requests wait for it to
	// take them.
	owedLimit = 256
	// tailLimit is how many bytes of a server's standard error are kept.
	tailLimit = 4 << 10
	// grace is how long a server may take to end by itself, and to say
	// something after its time is up.
	grace = 2 * time.Second
	// strikes are how many requests in a row a server may let time out while
	// it still says something.
	strikes = 3
	// diagnosticsBytes bounds the diagnostics that are kept of one server.
	diagnosticsBytes = 8 << 20
)

// errLost is the error of what was asked of a server that has ended since.
var errLost = errors.New("the language server has ended")

// timeoutError says that a server did not answer in time.
type timeoutError struct {
	method string
	after  time.Duration
	hung   bool
}

func (e *timeoutError) Error() string {
	text := fmt.Sprintf("the language server did not answer %s within %v", e.method, e.after)
	if e.hung {
		return text + ": it hangs, and is replaced"
	}
	return text
}

// connection is one run of a server's program.
type connection struct {
	logger   *slog.Logger
	program  string
	process  *process.Process
	rpc      *jsonrpc2.Conn
	stream   *stream
	tail     *tail
	can      capabilities
	settings json.RawMessage

	ids        atomic.Uint64
	unanswered atomic.Int64
	missed     atomic.Int64 // timeouts in a row
	owed       chan *jsonrpc2.Response

	// done is closed when the program and all that it started have ended;
	// reason is then why.
	done   chan struct{}
	reason string

	mu     sync.Mutex
	killed string // why it was decided to end it
	// published is by path; there is an entry for each open document.
	published map[string]*published
	kept      int           // bytes of diagnostics
	news      chan struct{} // closed at the next diagnostics
	executing bool          // a command of the client's
	edits     []json.RawMessage
}

// published are the diagnostics of a document.
type published struct {
	version int  // of the document
	fresh   bool // the server has spoken since it has this version
	whole   bool // all were kept
	raw     json.RawMessage
	at      time.Time
}

// tail keeps the end of what is written to it.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p[max(0, len(p)-tailLimit):]...)
	if over := len(t.buf) - tailLimit; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	return len(p), nil
}

// String is the last lines, on one, without what would mean something to a
// terminal.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	lines := strings.FieldsFunc(string(bytes.TrimSpace(t.buf)), func(r rune) bool { return r == '\n' || r == '\r' })
	text := strings.Join(lines[max(0, len(lines)-8):], " | ")
	return clip(strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, text[max(0, len(text)-1<<10):]), 2<<10)
}

// launch starts a server's program and connects to it. It does not introduce
// itself yet.
func launch(spawner *process.Spawner, logger *slog.Logger, argv []string, dir string, envs map[string]string, settings json.RawMessage, patience time.Duration) (*connection, error) {
	var files []*os.File
	closeAll := func(list ...*os.File) {
		for _, f := range list {
			f.Close()
		}
	}
	for range 3 {
		r, w, err := os.Pipe()
		if err != nil {
			closeAll(files...)
			return nil, fmt.Errorf("make a pipe: %w", err)
		}
		files = append(files, r, w)
	}
	stdin, in, out, stdout, errs, stderr := files[0], files[1], files[2], files[3], files[4], files[5]
	var fds [3]int
	for i, f := range []*os.File{stdin, stdout, stderr} {
		fds[i] = int(f.Fd())
		_ = unix.SetNonblock(fds[i], false) // as programs expect; the agent's ends wait in the netpoller
	}
	p, err := spawner.Start(&process.Spec{Args: argv, Dir: dir, Env: envs, Stdin: fds[0], Stdout: fds[1], Stderr: fds[2]})
	closeAll(stdin, stdout, stderr)
	if err != nil {
		closeAll(in, out, errs)
		return nil, err
	}
	c := &connection{
		logger: logger, program: argv[0], process: p, tail: &tail{}, settings: settings,
		owed: make(chan *jsonrpc2.Response, owedLimit), done: make(chan struct{}),
		published: make(map[string]*published), news: make(chan struct{}),
	}
	c.stream = newStream(in, out, patience)
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		_, _ = io.Copy(c.tail, errs)
	}()
	exited := make(chan process.Status, 1)
	go func() { exited <- p.Wait() }()
	c.rpc = jsonrpc2.NewConn(context.Background(), c.stream, c, jsonrpc2.OnRecv(c.stream.received), jsonrpc2.SetLogger(silent{}))
	go c.answer()
	go c.watch(exited, errs, drained)
	return c, nil
}

// silent is for jsonrpc2, which would write to standard error.
type silent struct{}

func (silent) Printf(string, ...any) {}

// watch waits for the end of the program or of the connection, whichever comes
// first, and sees to that of the other.
func (c *connection) watch(exited <-chan process.Status, errs *os.File, drained <-chan struct{}) {
	var status process.Status
	ended := false
	select {
	case status = <-exited:
		ended = true
	case <-c.rpc.DisconnectNotify():
		// If it ends by itself, its exit code says more than that its output
		// ended, or its input.
		c.mu.Lock()
		killed := c.killed != ""
		c.mu.Unlock()
		if _, bad := errors.AsType[*frameError](c.stream.cause()); !bad && !killed {
			select {
			case status = <-exited:
				ended = true
			case <-time.After(grace):
			}
		}
	}
	c.process.KillTree() // what it started, too
	if !ended {
		status = <-exited
	}
	_ = c.rpc.Close()
	select {
	case <-drained:
	case <-time.After(100 * time.Millisecond): // something has escaped, with our pipe
	}
	errs.Close()
	<-drained

	cause := c.stream.cause()
	said := c.tail.String()
	c.mu.Lock()
	switch _, bad := errors.AsType[*frameError](cause); {
	case c.killed != "":
		c.reason = c.killed
	case bad:
		c.reason = "broke the protocol: " + cause.Error()
	case ended && status.Signal != "":
		c.reason = "was ended by " + status.Signal
	case ended:
		c.reason = fmt.Sprintf("ended with exit code %d", status.Code)
	default:
		c.reason = "closed its output"
	}
	if said != "" {
		c.reason += "; its last words: " + said
	}
	c.mu.Unlock()
	close(c.done)
}

// end kills the program with all that it started, for a reason, and waits
// until it is gone.
func (c *connection) end(reason string) {
	c.mu.Lock()
	if c.killed == "" {
		c.killed = reason
	}
	c.mu.Unlock()
	_ = c.rpc.Close()
	<-c.done
}

// alive says whether the program may be asked something.
func (c *connection) alive() bool {
	select {
	case <-c.done:
		return false
	case <-c.rpc.DisconnectNotify():
		return false
	default:
		return true
	}
}

// shutdown asks the server to end, and ends it if it does not.
func (c *connection) shutdown() {
	if c.alive() {
		ctx, cancel := context.WithTimeout(context.Background(), grace)
		if _, err := c.request(ctx, "shutdown", nil, grace); err == nil {
			_ = c.notify("exit", nil)
			select {
			case <-c.done:
			case <-ctx.Done():
			}
		}
		cancel()
	}
	c.end("was stopped")
}

// notify sends a notification.
func (c *connection) notify(method string, params any) error {
	if err := c.rpc.Notify(context.Background(), method, params); err != nil {
		return errLost
	}
	return nil
}

// request asks the server something. It returns when ctx ends; the server then
// is told that nobody waits any more, but judged all the same if it does not
// answer within limit: see hangs.
func (c *connection) request(ctx context.Context, method string, params any, limit time.Duration) (json.RawMessage, error) {
	if !c.alive() {
		return nil, errLost
	}
	if c.unanswered.Add(1) > unansweredLimit {
		go c.end(fmt.Sprintf("left %d requests unanswered", unansweredLimit))
		return nil, errLost
	}
	begin := c.stream.messages.Load()
	id := jsonrpc2.ID{Num: c.ids.Add(1)}
	waiter, err := c.rpc.DispatchCall(context.Background(), method, params, jsonrpc2.PickID(id))
	if err != nil {
		return nil, errLost
	}
	type result struct {
		raw json.RawMessage
		err error
	}
	answer := make(chan result, 1)
	go func() {
		var r result
		timer, stop := context.WithTimeout(context.Background(), limit)
		defer stop()
		if r.err = waiter.Wait(timer, &r.raw); r.err == context.DeadlineExceeded {
			e := &timeoutError{method: method, after: limit}
			if c.alive() {
				c.cancel(id)
				late, stop := context.WithTimeout(context.Background(), grace)
				err := waiter.Wait(late, nil)
				stop()
				if e.hung = err == context.DeadlineExceeded && c.hangs(begin); err != context.DeadlineExceeded {
					c.unanswered.Add(-1)
				}
			}
			if e.hung {
				c.end(fmt.Sprintf("hung: no answer to %s within %v", method, limit))
			}
			r.err = e
		} else {
			c.unanswered.Add(-1)
			c.missed.Store(0)
		}
		if r.err == jsonrpc2.ErrClosed {
			r.err = errLost
		}
		answer <- r
	}()
	select {
	case r := <-answer:
		return r.raw, r.err
	case <-ctx.Done():
		go c.cancel(id)
		return nil, ctx.Err()
	}
}

func (c *connection) cancel(id jsonrpc2.ID) {
	_ = c.notify("$/cancelRequest", object{"id": id})
}

// hangs decides about a server that has not answered: one that has said
// nothing at all since hangs; one that has is busy, but not for ever.
func (c *connection) hangs(begin int64) bool {
	missed := c.missed.Add(1)
	return c.stream.messages.Load() == begin || missed >= strikes
}

// Handle implements [jsonrpc2.Handler]: what the server asks and tells. It
// must not block: nothing is read meanwhile.
func (c *connection) Handle(_ context.Context, _ *jsonrpc2.Conn, req *jsonrpc2.Request) {
	var params json.RawMessage
	if req.Params != nil {
		params = *req.Params
	}
	if req.Notif {
		if req.Method == "textDocument/publishDiagnostics" {
			c.publish(params)
		}
		return
	}
	resp := &jsonrpc2.Response{ID: req.ID}
	result := any(nil)
	switch req.Method {
	case "workspace/configuration":
		result = c.configuration(params)
	case "workspace/applyEdit":
		result = object{"applied": c.wants(params)}
	case "client/registerCapability", "client/unregisterCapability", "window/workDoneProgress/create", "window/showMessageRequest",
		"workspace/codeLens/refresh", "workspace/semanticTokens/refresh", "workspace/inlayHint/refresh", "workspace/diagnostic/refresh", "workspace/workspaceFolders":
	default:
		resp.Error = &jsonrpc2.Error{Code: jsonrpc2.CodeMethodNotFound, Message: "this client does not know " + req.Method}
	}
	if resp.Error == nil {
		_ = resp.SetResult(result) // made here
	}
	select {
	case c.owed <- resp:
	default:
		go c.end(fmt.Sprintf("asked %d times without taking the answers", owedLimit))
	}
}

// answer sends the answers to the server's requests.
func (c *connection) answer() {
	for {
		select {
		case resp := <-c.owed:
			_ = c.rpc.SendResponse(context.Background(), resp)
		case <-c.rpc.DisconnectNotify():
			return
		}
	}
}

// configuration answers workspace/configuration from the settings.
func (c *connection) configuration(params json.RawMessage) []json.RawMessage {
	var p struct {
		Items json.RawMessage `json:"items"`
	}
	_ = json.Unmarshal(params, &p)
	budget := 1_000
	items, _ := array[struct {
		Section string `json:"section"`
	}](p.Items, &budget)
	out := make([]json.RawMessage, len(items))
	for i, item := range items {
		value := c.settings
		if item.Section != "" {
			for name := range strings.SplitSeq(item.Section, ".") {
				var section map[string]json.RawMessage
				_ = json.Unmarshal(value, &section)
				value = section[name]
			}
		}
		if out[i] = value; value == nil {
			out[i] = json.RawMessage("null")
		}
	}
	return out
}

// wants takes an edit that the server wants to be applied. Only what a command
// of the client's leads to is, by the client.
func (c *connection) wants(params json.RawMessage) bool {
	var p struct {
		Edit json.RawMessage `json:"edit"`
	}
	if json.Unmarshal(params, &p) != nil {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.executing || len(c.edits) == 16 {
		return false
	}
	c.edits = append(c.edits, p.Edit)
	return true
}

// execute has the server execute a command and returns the edits that it wants
// meanwhile.
func (c *connection) execute(ctx context.Context, command wire.LSPCommand, limit time.Duration) ([]json.RawMessage, error) {
	c.mu.Lock()
	if c.executing {
		c.mu.Unlock()
		return nil, errExecuting
	}
	c.executing = true
	c.mu.Unlock()
	params := object{"command": command.Command}
	if len(command.Arguments) > 0 {
		params["arguments"] = command.Arguments
	}
	_, err := c.request(ctx, "workspace/executeCommand", params, limit)
	c.mu.Lock()
	defer c.mu.Unlock()
	edits := c.edits
	c.edits, c.executing = nil, false
	return edits, err
}

var errExecuting = errors.New("the language server executes another command: wait for its end")

// expect says that a document is open with a version: diagnostics are due.
func (c *connection) expect(path string, version int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.published[path]
	if p == nil {
		p = &published{}
		c.published[path] = p
	}
	p.version, p.fresh = version, false
}

// forget says that a document is closed.
func (c *connection) forget(path string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p := c.published[path]; p != nil {
		c.kept -= len(p.raw)
		delete(c.published, path)
	}
}

// publish takes the diagnostics of an open document.
func (c *connection) publish(params json.RawMessage) {
	var p struct {
		URI         string          `json:"uri"`
		Version     *int            `json:"version"`
		Diagnostics json.RawMessage `json:"diagnostics"`
	}
	if json.Unmarshal(params, &p) != nil {
		return
	}
	path, ok := filePath(p.URI)
	if !ok {
		return
	}
	c.store(path, p.Version, p.Diagnostics)
}

// store keeps the diagnostics of a document, unless they are of an older
// version than it has.
func (c *connection) store(path string, version *int, raw json.RawMessage) {
	c.mu.Lock()
	defer c.mu.Unlock()
	have := c.published[path]
	if have == nil || version != nil && *version < have.version {
		return
	}
	c.kept -= len(have.raw)
	have.raw, have.fresh, have.at = nil, true, time.Now()
	if have.whole = c.kept+len(raw) <= diagnosticsBytes; have.whole {
		have.raw = bytes.Clone(raw)
		c.kept += len(raw)
	}
	close(c.news)
	c.news = make(chan struct{})
}

// diagnosticsOf waits until the server has said what it has to say about an
// open document: something for its version, and nothing more for as long as
// settle.
func (c *connection) diagnosticsOf(ctx context.Context, path string, settle time.Duration) (published, error) {
	for {
		c.mu.Lock()
		news := c.news
		var p published
		if have := c.published[path]; have != nil {
			p = *have
		}
		c.mu.Unlock()
		var quiet <-chan time.Time
		if p.fresh {
			rest := time.Until(p.at.Add(settle))
			if rest <= 0 {
				return p, nil
			}
			quiet = time.After(rest)
		}
		select {
		case <-quiet:
		case <-news:
		case <-c.done:
			return p, errLost
		case <-ctx.Done():
			return p, ctx.Err()
		}
	}
}
