// Package client turns a connection to the agent inside a sandbox into the
// interfaces of package daytona: it is the only implementation of files,
// programs, sessions and terminals, and every backend uses it.
//
// It speaks the protocol of package wire and knows nothing else of the agent,
// nor how the connection comes about: a backend supplies a dialer. Whatever
// an agent answers is taken to be hostile: answers held in memory are
// bounded, everything else is streamed.
package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/portproxy"
	"github.com/daytona-go/daytona/toolbox/wire"
)

const (
	// maxAnswer bounds an answer that is held in memory, in bytes. It leaves
	// room for the largest output an agent gives back (100 MiB) as JSON.
	maxAnswer = 256 << 20
	// maxErrorBody bounds the body of an error answer, in bytes.
	maxErrorBody = 64 << 10
	// maxReadFile bounds ReadFile, in bytes.
	maxReadFile = 1 << 30
	// copyBuffer is the size of the pieces in which files are streamed. It is
	// several times the size of a socket's buffer, so that a piece costs few
	// system calls.
	copyBuffer = 256 << 10
	// parallel is how many idle connections are kept.
	parallel = 64
	// idleTimeout is how long they are. It must be the client who closes them: a
	// request that comes as the agent does so is lost, and nobody knows whether it
	// was carried out.
	idleTimeout = wire.FirstRequestTimeout * 2 / 3
)

// Options refine [New].
type Options struct {
	// Language is what Process.RunCode runs unless told otherwise. Defaults
	// to "python".
	Language string
	// Token is sent as a bearer token with every request. Defaults to none.
	Token string
	// SDKVersion is the client version that the agent is told; answers depend
	// on it. Defaults to "0.205.0". It must not be below 0.167.0, from which
	// on agents keep standard output and error apart.
	SDKVersion string
	// BaseURL is where the toolbox API begins, such as
	// "https://proxy.example.com/toolbox/4c1f". Defaults to the root of
	// whatever the dialer connects to.
	BaseURL string
	// Locate, if set, is asked for BaseURL before each request, for those who
	// do not know it yet. An error is returned by the toolbox's methods as it is.
	// It should answer from memory. Defaults to nil.
	Locate func(ctx context.Context) (string, error)
	// Explain, if set, is asked about an answer that is an error, or no answer at
	// all (status 0), and returns err or what is known better: where there is a
	// proxy between, it may be the proxy that answers for a sandbox that is
	// stopped. Defaults to nil.
	Explain func(ctx context.Context, status int, err error) error
	// TLS is for https URLs. Defaults to the system's certificates.
	TLS *tls.Config
	// Header is sent with every request. Defaults to none.
	Header http.Header
	// Logger gets what nobody can be told by an error. Defaults to nothing.
	Logger *slog.Logger
}

// toolbox implements daytona.Toolbox.
type toolbox struct {
	dialer   func(ctx context.Context) (net.Conn, error)
	base     string
	locate   func(ctx context.Context) (string, error)
	explain  func(ctx context.Context, status int, err error) error
	tls      *tls.Config
	header   http.Header
	language string
	log      *slog.Logger

	// pooled keeps connections. single dials one for each request: those
	// whose body can be sent only once, lest it be lost on a connection that
	// the agent has just closed.
	pooled, single *http.Transport
	buffers        sync.Pool

	// proxied connects to servers in the sandbox; see ports.Proxy.
	proxied func() *portproxy.Transport
}

var _ daytona.Toolbox = (*toolbox)(nil)

// New returns the toolbox of the agent that dial connects to; nil options are
// defaults. It does not block: dial is called when a connection is needed,
// also anew after the agent has been restarted. An [*daytona.Error] of dial is
// returned by the toolbox's methods as it is. A nil dial connects to the host
// of Options.BaseURL. Closing the toolbox closes its idle connections.
//
// New panics if there is neither a dial nor a BaseURL, or if BaseURL is not an
// HTTP URL: both are mistakes of the caller.
func New(dial func(ctx context.Context) (net.Conn, error), opts *Options) daytona.Toolbox {
	var o Options
	if opts != nil {
		o = *opts
	}
	if dial == nil && o.BaseURL == "" && o.Locate == nil {
		panic("client.New: neither a dialer nor Options.BaseURL nor Options.Locate")
	}
	if o.BaseURL == "" {
		o.BaseURL = "http://sandbox"
	}
	if u, err := url.Parse(o.BaseURL); err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		panic("client.New: Options.BaseURL is not an http or https URL: " + o.BaseURL)
	}
	if o.SDKVersion == "" {
		o.SDKVersion = "0.205.0"
	}
	if o.Language == "" {
		o.Language = "python"
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	t := &toolbox{
		dialer:   dial,
		base:     strings.TrimRight(o.BaseURL, "/"),
		locate:   o.Locate,
		explain:  o.Explain,
		tls:      o.TLS,
		header:   http.Header{"User-Agent": {"daytona-go"}},
		language: o.Language,
		log:      o.Logger,
	}
	for k, v := range o.Header {
		t.header[http.CanonicalHeaderKey(k)] = v
	}
	t.header.Set(wire.HeaderSDKVersion, o.SDKVersion)
	if o.Token != "" {
		t.header.Set("Authorization", "Bearer "+o.Token)
	}
	t.buffers.New = func() any { b := make([]byte, copyBuffer); return &b }

	connect := (&net.Dialer{Timeout: 30 * time.Second}).DialContext
	if dial != nil {
		connect = func(ctx context.Context, _, _ string) (net.Conn, error) {
			c, err := dial(ctx)
			if err != nil {
				return nil, &dialError{err}
			}
			return c, nil
		}
	}
	t.pooled = &http.Transport{
		DialContext:         connect,
		TLSClientConfig:     o.TLS,
		MaxIdleConns:        parallel,
		MaxIdleConnsPerHost: parallel,
		IdleConnTimeout:     idleTimeout,
		TLSHandshakeTimeout: 30 * time.Second,
		DisableCompression:  true,
		ReadBufferSize:      64 << 10,
		WriteBufferSize:     64 << 10,
		Protocols:           new(http.Protocols),
	}
	t.pooled.Protocols.SetHTTP1(true)
	t.single = t.pooled.Clone()
	t.single.DisableKeepAlives = true
	t.proxied = sync.OnceValue(func() *portproxy.Transport { return portproxy.NewTransport(t.DialPort) })
	return t
}

func (t *toolbox) FileSystem() daytona.FileSystem   { return &fileSystem{t} }
func (t *toolbox) Process() daytona.Process         { return &process{t} }
func (t *toolbox) Git() daytona.Git                 { return git{t} }
func (t *toolbox) Interpreter() daytona.Interpreter { return &interpreter{t} }
func (t *toolbox) ComputerUse() daytona.ComputerUse { return computerUse{t} }
func (t *toolbox) Ports() daytona.Ports             { return ports{t} }

func (t *toolbox) LSPServer(language, projectPath string) daytona.LSPServer {
	return &lspServer{t, wire.LSPServer{LanguageID: language, PathToProject: projectPath}}
}

func (t *toolbox) HomeDir(ctx context.Context) (string, error) {
	return t.directory(ctx, "get home directory", "/user-home-dir")
}

func (t *toolbox) WorkDir(ctx context.Context) (string, error) {
	return t.directory(ctx, "get working directory", "/work-dir")
}

func (t *toolbox) directory(ctx context.Context, op, path string) (string, error) {
	var d wire.Dir
	err := t.call(ctx, request{op: op, method: http.MethodGet, path: path}, &d)
	return d.Dir, err
}

func (t *toolbox) Metrics(ctx context.Context) (daytona.Metrics, error) {
	const op = "get metrics"
	var m wire.SystemMetrics
	if err := t.call(ctx, request{op: op, method: http.MethodGet, path: "/system/metrics"}, &m); err != nil {
		return daytona.Metrics{}, err
	}
	at, err := time.Parse(time.RFC3339, m.Timestamp)
	if err != nil {
		at = time.Unix(m.TimestampUnix, 0)
	}
	return daytona.Metrics{
		CPUPercent: m.CPUUsedPct, CPUCount: m.CPUCount,
		MemoryUsed: m.MemUsed, MemoryTotal: m.MemTotal, MemoryCache: m.MemCache,
		DiskUsed: m.DiskUsed, DiskTotal: m.DiskTotal, DiskFree: m.DiskFree,
		Time: at,
	}, nil
}

func (t *toolbox) Dial(ctx context.Context) (net.Conn, error) {
	const op = "connect to agent"
	if t.dialer == nil {
		return nil, &daytona.Error{Kind: daytona.KindUnsupported, Op: op, Subject: t.base,
			Message: "the agent is reached through a proxy, which gives no raw connection"}
	}
	c, err := t.dialer(ctx)
	if err != nil {
		return nil, lost(ctx, op, "", &dialError{err})
	}
	return c, nil
}

// Close closes idle connections. The toolbox stays usable: what a deleted
// sandbox answers is for the dialer to say.
func (t *toolbox) Close() error {
	t.pooled.CloseIdleConnections()
	t.proxied().Close()
	return nil
}

// url is where a path of the API is.
func (t *toolbox) url(ctx context.Context, path string, q url.Values) (string, error) {
	base := t.base
	if t.locate != nil {
		found, err := t.locate(ctx)
		if err != nil {
			return "", err
		}
		base = strings.TrimRight(found, "/")
	}
	if len(q) > 0 {
		path += "?" + q.Encode()
	}
	return base + path, nil
}

// explained is err, or what is known better; see Options.Explain.
func (t *toolbox) explained(ctx context.Context, status int, err error) error {
	if t.explain == nil || err == nil || ctx.Err() != nil {
		return err
	}
	return t.explain(ctx, status, err)
}

// request is a request to the agent.
type request struct {
	op, subject  string // for errors
	file         bool   // errors are about a file: give them a cause of package io/fs
	method, path string // path is escaped already
	query        url.Values
	in           any // becomes a JSON body

	// body is a raw body instead, of length bytes, or of unknown length if
	// that is negative: an upload or a *bytes.Reader.
	body        io.Reader
	length      int64
	contentType string

	// idempotent says that the request may be repeated on a new connection
	// when an old one breaks. It is implied by GET.
	idempotent bool
}

// do sends a request and returns the answer, whatever its status.
func (t *toolbox) do(ctx context.Context, r request) (*http.Response, error) {
	target, err := t.url(ctx, r.path, r.query)
	if err != nil {
		return nil, lost(ctx, r.op, r.subject, &dialError{err})
	}
	body := r.body
	if r.in != nil {
		b, err := json.Marshal(r.in)
		if err != nil {
			return nil, &daytona.Error{Kind: daytona.KindInvalid, Op: r.op, Subject: r.subject, Message: "cannot be encoded as JSON", Err: err}
		}
		body = bytes.NewReader(b)
		r.length, r.contentType = int64(len(b)), "application/json"
	}
	req, err := http.NewRequestWithContext(ctx, r.method, target, body)
	if err != nil {
		return nil, &daytona.Error{Kind: daytona.KindInvalid, Op: r.op, Subject: r.subject, Message: "not a valid request", Err: err}
	}
	if body != nil {
		req.ContentLength = r.length
		if r.length == 0 {
			req.Body = http.NoBody
		}
	}
	for k, v := range t.header {
		req.Header[k] = v
	}
	if r.contentType != "" {
		req.Header.Set("Content-Type", r.contentType)
	}
	if r.idempotent {
		// An empty value is not sent; it tells net/http that it may repeat
		// the request (see http.Transport).
		req.Header["Idempotency-Key"] = []string{}
	}
	// Not an http.Client: redirects must not be followed, an agent could
	// point anywhere.
	if u, ok := body.(*upload); ok {
		resp, err := t.stream(req, u)
		if err != nil {
			return nil, t.explained(ctx, 0, lost(ctx, r.op, r.subject, err))
		}
		return resp, nil
	}
	resp, err := t.pooled.RoundTrip(req)
	for range 3 {
		if err == nil || !closedIdle(err) || ctx.Err() != nil {
			break
		}
		// The agent had closed the connection before it got the request, most
		// likely because the sandbox was stopped and started: there will be
		// more such connections. net/http repeats only what is idempotent.
		t.pooled.CloseIdleConnections()
		if req.GetBody != nil {
			if req.Body, err = req.GetBody(); err != nil {
				break
			}
		}
		resp, err = t.pooled.RoundTrip(req)
	}
	if err != nil {
		return nil, t.explained(ctx, 0, lost(ctx, r.op, r.subject, err))
	}
	return resp, nil
}

// stream sends a request whose body is u. net/http waits for a read of the
// body that is under way, which may be for ever; stream does not wait longer
// than cancelGrace after the context has ended.
func (t *toolbox) stream(req *http.Request, u *upload) (*http.Response, error) {
	type result struct {
		resp *http.Response
		err  error
	}
	done := make(chan result, 1)
	go func() {
		resp, err := t.single.RoundTrip(req)
		done <- result{resp, err}
	}()
	ctx := req.Context()
	select {
	case r := <-done:
		return r.resp, r.err
	case <-ctx.Done():
	}
	u.stopped.Store(true)
	grace := time.NewTimer(cancelGrace)
	defer grace.Stop()
	select {
	case r := <-done:
		return r.resp, r.err
	case <-grace.C:
		go func() {
			if r := <-done; r.err == nil {
				r.resp.Body.Close()
			}
		}()
		return nil, ctx.Err()
	}
}

// open sends a request and returns the answer if its status is one of
// success.
func (t *toolbox) open(ctx context.Context, r request) (*http.Response, error) {
	resp, err := t.do(ctx, r)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode >= 200 && resp.StatusCode < 300 {
		return resp, nil
	}
	err, _ = t.refused(ctx, r, resp)
	return nil, err
}

// call sends a request and decodes the JSON answer into out, if out is not
// nil.
func (t *toolbox) call(ctx context.Context, r request, out any) error {
	resp, err := t.open(ctx, r)
	if err != nil {
		return err
	}
	return decode(ctx, r, resp, out)
}

func decode(ctx context.Context, r request, resp *http.Response, out any) error {
	defer resp.Body.Close()
	if out == nil {
		// Read to the end for the connection to be used again.
		_, _ = io.CopyN(io.Discard, resp.Body, maxErrorBody)
		return nil
	}
	b, err := readAnswer(ctx, r, resp)
	if err != nil {
		return err
	}
	if o, ok := out.(*optional); ok {
		if len(bytes.TrimSpace(b)) == 0 {
			return nil
		}
		out = o.out
	}
	if err := json.Unmarshal(b, out); err != nil {
		return malformed(r.op, r.subject, err)
	}
	return nil
}

// optional is what an answer is decoded into unless it is empty: what the public
// API does not say, but our agents do.
type optional struct{ out any }

// readAnswer reads an answer of a bounded size.
func readAnswer(ctx context.Context, r request, resp *http.Response) ([]byte, error) {
	b, err := readAll(resp.Body, resp.ContentLength, maxAnswer)
	if errors.Is(err, errTooLarge) {
		return nil, &daytona.Error{Kind: daytona.KindInvalid, Op: r.op, Subject: r.subject,
			Message: "the answer is larger than 256 MiB; use an operation that streams, such as Command, Follow or Open"}
	}
	if err != nil {
		return nil, lost(ctx, r.op, r.subject, err)
	}
	return b, nil
}

var errTooLarge = errors.New("too large")

// readAll reads r, of which at most limit bytes are taken. announced is the
// length to expect, or negative; it is not trusted.
func readAll(r io.Reader, announced, limit int64) ([]byte, error) {
	if announced > limit {
		return nil, errTooLarge
	}
	size := int64(512)
	if announced >= 0 {
		size = min(announced+1, 16<<20) // one more, to see the end without growing
	}
	b := make([]byte, 0, size)
	for {
		if len(b) == cap(b) {
			b = append(b, 0)[:len(b)]
		}
		n, err := r.Read(b[len(b):min(int64(cap(b)), limit+1)])
		b = b[:len(b)+n]
		if err == io.EOF {
			return b, nil
		}
		if err != nil {
			return b, err
		}
		if int64(len(b)) > limit {
			return nil, errTooLarge
		}
	}
}

// refused turns an answer that is no success into an error. It closes the
// body and returns what was read of it.
func (t *toolbox) refused(ctx context.Context, r request, resp *http.Response) (error, []byte) {
	limit := int64(maxErrorBody)
	if resp.StatusCode == http.StatusRequestTimeout {
		limit = maxAnswer // it carries output
	}
	b, _ := io.ReadAll(io.LimitReader(resp.Body, limit))
	resp.Body.Close()
	if err := ctx.Err(); err != nil && len(b) == 0 {
		return lost(ctx, r.op, r.subject, err), nil
	}
	return t.explained(ctx, resp.StatusCode, answerError(r.op, r.subject, r.file, resp.StatusCode, b)), b
}

// mediaType is the media type of an answer with its parameters.
func mediaType(resp *http.Response) (string, map[string]string) {
	t, params, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil {
		return "", nil
	}
	return t, params
}

// segment checks an id and escapes it as one segment of a path.
func segment(op, field, id string) (string, error) {
	if id == "" || id == "." || id == ".." {
		return "", &daytona.Error{Kind: daytona.KindInvalid, Op: op, Field: field, Value: id, Message: `must not be empty, "." or ".."`}
	}
	return url.PathEscape(id), nil
}

// seconds is d as the wire counts time limits: whole seconds, rounded up.
func seconds(op string, d time.Duration) (int, error) {
	if d < 0 {
		return 0, &daytona.Error{Kind: daytona.KindInvalid, Op: op, Field: "Timeout", Value: d, Message: "must not be negative; 0 is none"}
	}
	return int((d + time.Second - 1) / time.Second), nil
}
