package remote

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/wire"
	"github.com/daytona-go/daytona/toolbox/client"
)

// Connect gives the toolbox of a sandbox through the server's proxy. Where that
// is, the sandbox says; it is asked when it is first needed.
func (b *backend) Connect(id string) daytona.Toolbox {
	t := &toolbox{backend: b, id: id}
	h := b.header()
	h.Del("Authorization")
	h.Del("X-Daytona-Sdk-Version")
	t.Toolbox = client.New(nil, &client.Options{
		Token: b.opts.Key, SDKVersion: sdkVersion, Header: h, Logger: b.log, TLS: b.opts.TLS,
		Locate: t.base, Explain: t.explain,
	})
	return t
}

// toolbox is what package client makes, but for what depends on the sandbox: its
// language, and its state where it is the proxy that answers.
type toolbox struct {
	daytona.Toolbox
	backend *backend
	id      string
}

// place is where the toolbox is and what its language is.
func (t *toolbox) place(ctx context.Context) (place, error) {
	b := t.backend
	b.mu.Lock()
	p, ok := b.known[t.id]
	b.mu.Unlock()
	if !ok {
		s, err := b.get(ctx, "connect to sandbox", t.id)
		if err != nil {
			return place{}, err
		}
		b.info(s)
		p = place{toolbox: s.ToolboxProxyURL, language: b.info(s).Language}
	}
	if p.toolbox == "" { // a server that leaves it out tells when asked
		var at wire.ToolboxProxyURL
		if err := b.do(ctx, call{op: "connect to sandbox", subject: t.id, method: http.MethodGet, path: "/sandbox/" + segment(t.id) + "/toolbox-proxy-url", out: &at}); err != nil {
			return place{}, err
		}
		p.toolbox = at.URL
		b.mu.Lock()
		p.workDir = b.known[t.id].workDir
		b.known[t.id] = p
		b.mu.Unlock()
	}
	return p, nil
}

// placed is i with the working directory, which the wire does not say: the agent of
// a sandbox that runs is asked, once. An agent that can't be asked is no error.
func (b *backend) placed(ctx context.Context, i daytona.Info) daytona.Info {
	if i.WorkDir != "" || i.State != daytona.StateStarted {
		return i
	}
	t := b.Connect(i.ID)
	defer t.Close()
	dir, err := t.WorkDir(ctx)
	if err != nil {
		b.log.Debug("the working directory is not known", "sandbox", i.ID, "error", err)
		return i
	}
	i.WorkDir = dir
	b.mu.Lock()
	if p, ok := b.known[i.ID]; ok {
		p.workDir = dir
		b.known[i.ID] = p
	}
	b.mu.Unlock()
	return i
}

// base is where the toolbox API of the sandbox begins.
func (t *toolbox) base(ctx context.Context) (string, error) {
	p, err := t.place(ctx)
	if err != nil {
		return "", err
	}
	u, err := url.Parse(p.toolbox)
	if err != nil || u.Host == "" {
		return "", &daytona.Error{Kind: daytona.KindInternal, Op: "connect to sandbox", Subject: t.id, Message: "the server does not say where its proxy is", Err: err}
	}
	if err := t.backend.trusts(u); err != nil {
		return "", err
	}
	return u.JoinPath(t.id).String(), nil
}

// explain looks at the sandbox where the proxy may have answered in its place:
// what a proxy says of a sandbox that is stopped, servers differ in.
func (t *toolbox) explain(ctx context.Context, status int, err error) error {
	e, ok := errors.AsType[*daytona.Error](err)
	if !ok {
		return err
	}
	switch status {
	case 0, http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusConflict, http.StatusGone,
		http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
	default:
		return err
	}
	if fromAgent(e) {
		return err
	}
	s, asked := t.backend.get(ctx, e.Op, t.id)
	switch {
	case daytonaKind(asked) == daytona.KindNotFound:
		t.backend.drop(t.id)
		return asked
	case asked != nil:
		return err
	}
	switch state := t.backend.info(s).State; state {
	case daytona.StateStarted, daytona.StateResizing, daytona.StateSnapshotting, daytona.StateForking: // its agent runs
		return err
	default:
		return &daytona.Error{Kind: daytona.KindState, Op: e.Op, Subject: t.id, Message: "the sandbox is " + string(state) + ", not started", Err: err}
	}
}

// fromAgent reports whether an error is the agent's for sure: files that are not
// there are asked for all the time. What a proxy says has the sandbox in it.
func fromAgent(e *daytona.Error) bool {
	return e.Err != nil && e.Kind != daytona.KindUnavailable && !strings.Contains(strings.ToLower(e.Message), "sandbox")
}

// Process gives the programs, with the sandbox's language.
func (t *toolbox) Process() daytona.Process { return &programs{t.Toolbox.Process(), t} }

type programs struct {
	daytona.Process
	toolbox *toolbox
}

func (p *programs) RunCode(ctx context.Context, code string, opts *daytona.CodeOptions) (daytona.CodeResult, error) {
	var o daytona.CodeOptions
	if opts != nil {
		o = *opts
	}
	if o.Language == "" {
		at, err := p.toolbox.place(ctx)
		if err != nil {
			return daytona.CodeResult{}, err
		}
		o.Language = at.language
	}
	return p.Process.RunCode(ctx, code, &o)
}

// DialPort needs an agent that connects to ports, as that of this module does,
// and a proxy that lets it.
func (t *toolbox) DialPort(ctx context.Context, port int) (net.Conn, error) {
	c, err := t.Toolbox.DialPort(ctx, port)
	if daytonaKind(err) == daytona.KindNotFound {
		if _, gone := t.backend.get(ctx, "dial sandbox port", t.id); gone == nil {
			return nil, &daytona.Error{Kind: daytona.KindUnsupported, Op: "dial sandbox port", Subject: t.id, Field: "DialPort", Value: port,
				Message: "the server gives no connections to ports; use a preview URL", Err: err}
		}
	}
	return c, err
}

// Dial gives a connection to the agent's API. There is none as such: what is sent
// over it is passed on to the proxy, with the key.
func (t *toolbox) Dial(ctx context.Context) (net.Conn, error) {
	const op = "connect to agent"
	s, err := t.backend.get(ctx, op, t.id)
	if err != nil {
		return nil, err
	}
	if state := t.backend.info(s).State; state != daytona.StateStarted {
		return nil, &daytona.Error{Kind: daytona.KindState, Op: op, Subject: t.id, Message: "the sandbox is " + string(state) + ", not started"}
	}
	base, err := t.base(ctx)
	if err != nil {
		return nil, err
	}
	to, err := url.Parse(base)
	if err != nil {
		return nil, err
	}
	key := "Bearer " + t.backend.opts.Key
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(to)
			for k, v := range t.backend.header() {
				if k != "X-Daytona-Sdk-Version" || r.Out.Header.Get(k) == "" {
					r.Out.Header[k] = v
				}
			}
			r.Out.Header.Set("Authorization", key)
		},
		Transport:     t.backend.proxied,
		FlushInterval: -1,
		ErrorLog:      slog.NewLogLogger(t.backend.log.Handler(), slog.LevelWarn),
	}
	near, far := net.Pipe()
	go func() {
		l := &single{conn: far, done: make(chan struct{})}
		server := &http.Server{Handler: proxy, ErrorLog: slog.NewLogLogger(t.backend.log.Handler(), slog.LevelDebug), ConnState: func(_ net.Conn, s http.ConnState) {
			if s == http.StateClosed || s == http.StateHijacked {
				l.Close() // there is no other connection
			}
		}}
		_ = server.Serve(l)
	}()
	return near, nil
}

// single is a listener of one connection.
type single struct {
	conn net.Conn
	once sync.Once
	done chan struct{}
}

func (l *single) Accept() (net.Conn, error) {
	if c := l.conn; c != nil {
		l.conn = nil
		return c, nil
	}
	<-l.done
	return nil, io.EOF
}

func (l *single) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *single) Addr() net.Addr { return pipeAddr{} }

type pipeAddr struct{}

func (pipeAddr) Network() string { return "pipe" }
func (pipeAddr) String() string  { return "sandbox" }
