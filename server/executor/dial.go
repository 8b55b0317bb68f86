package executor

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/wire"
)

// toolbox is the connection to a sandbox's agent.
func (e *Executor) toolbox(ctx context.Context, id string) (daytona.Toolbox, error) {
	if sb, ok := e.sandboxes.Load(id); ok {
		return sb.(daytona.Sandbox).Toolbox(), nil
	}
	sb, err := e.find(ctx, id)
	if err != nil {
		return nil, err
	}
	return sb.Toolbox(), nil
}

// Dial connects to the HTTP API of a sandbox's agent, by the server's id of the
// sandbox: KindNotFound if it is not here, KindState if it is not started.
func (e *Executor) Dial(ctx context.Context, id string) (net.Conn, error) {
	return e.dial(ctx, id, func(t daytona.Toolbox) (net.Conn, error) { return t.Dial(ctx) })
}

// DialPort connects to a server inside a sandbox: KindUnavailable if none
// listens.
func (e *Executor) DialPort(ctx context.Context, id string, port int) (net.Conn, error) {
	return e.dial(ctx, id, func(t daytona.Toolbox) (net.Conn, error) { return t.DialPort(ctx, port) })
}

func (e *Executor) dial(ctx context.Context, id string, connect func(daytona.Toolbox) (net.Conn, error)) (net.Conn, error) {
	t, err := e.toolbox(ctx, id)
	if err != nil {
		return nil, err
	}
	c, err := connect(t)
	if errors.Is(err, daytona.ErrNotFound) {
		// It may have been made anew under the same name.
		e.sandboxes.Delete(id)
		if t, err = e.toolbox(ctx, id); err == nil {
			c, err = connect(t)
		}
	}
	return c, err
}

// Place says where a sandbox or a build is.
type Place struct {
	RunnerID string
	// URL and Key are those of the runner's Handler; not needed for a runner of
	// this process.
	URL, Key string
	// Dial connects to the runner. Defaults to a plain net.Dialer's; a runner that
	// is not the server's own may say any URL, and needs one that does not follow it
	// everywhere.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

func (p *Place) dial(ctx context.Context, address string) (net.Conn, error) {
	if p.Dial != nil {
		return p.Dial(ctx, "tcp", address)
	}
	return new(net.Dialer).DialContext(ctx, "tcp", address)
}

// Dialer connects to sandboxes, wherever they are. Its connections are not
// pooled: an http.Transport that dials with it does that. It is safe for
// concurrent use.
type Dialer struct {
	// Locate says where a sandbox is. Required.
	Locate func(ctx context.Context, sandboxID string) (Place, error)
	// Local returns the runner of this process that has an id, or nil. Defaults
	// to none.
	Local func(runnerID string) *Executor
	// TLS is for runners at https URLs. Defaults to the system's roots.
	TLS *tls.Config
	// Timeout of a connection that is being made. Defaults to 10 s.
	Timeout time.Duration
}

// Dial connects to the agent of a sandbox.
func (d *Dialer) Dial(ctx context.Context, sandboxID string) (net.Conn, error) {
	return d.dial(ctx, sandboxID, 0)
}

// DialPort connects to a server inside a sandbox.
func (d *Dialer) DialPort(ctx context.Context, sandboxID string, port int) (net.Conn, error) {
	if port < 1 || port > 65535 {
		return nil, &daytona.Error{Kind: daytona.KindInvalid, Op: "connect", Field: "port", Value: port, Message: "must be from 1 to 65535"}
	}
	return d.dial(ctx, sandboxID, port)
}

func (d *Dialer) dial(ctx context.Context, id string, port int) (net.Conn, error) {
	place, err := d.Locate(ctx, id)
	if err != nil {
		return nil, err
	}
	if e := d.local(place.RunnerID); e != nil {
		if port == 0 {
			return e.Dial(ctx, id)
		}
		return e.DialPort(ctx, id, port)
	}
	path := "/sandboxes/" + url.PathEscape(id) + "/connect"
	if port != 0 {
		path += "?port=" + strconv.Itoa(port)
	}
	return d.tunnel(ctx, place, path)
}

func (d *Dialer) local(runnerID string) *Executor {
	if d.Local == nil || runnerID == "" {
		return nil
	}
	return d.Local(runnerID)
}

// tunnel makes a connection to a runner one to what it upgrades it to.
func (d *Dialer) tunnel(ctx context.Context, place Place, path string) (_ net.Conn, err error) {
	const op = "connect to runner"
	u, err := url.Parse(place.URL)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, &daytona.Error{Kind: daytona.KindUnavailable, Op: op, Subject: place.RunnerID, Message: "it has not said where it is"}
	}
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(d.Timeout, 10*time.Second))
	defer cancel()
	host := u.Host
	if u.Port() == "" {
		host = net.JoinHostPort(u.Hostname(), map[string]string{"http": "80", "https": "443"}[u.Scheme])
	}
	away := func(err error) error {
		if ctx.Err() != nil && errors.Is(ctx.Err(), context.Canceled) {
			return ctx.Err()
		}
		return &daytona.Error{Kind: daytona.KindUnavailable, Op: op, Subject: place.RunnerID, Message: "it does not answer", Err: err}
	}
	c, err := place.dial(ctx, host)
	if err != nil {
		return nil, away(err)
	}
	defer func() {
		if err != nil {
			c.Close()
		}
	}()
	if u.Scheme == "https" {
		config := d.TLS.Clone()
		if config == nil {
			config = &tls.Config{}
		}
		config.NextProtos, config.ServerName = []string{"http/1.1"}, cmp.Or(config.ServerName, u.Hostname())
		t := tls.Client(c, config)
		c = t
		if err := t.HandshakeContext(ctx); err != nil {
			return nil, away(err)
		}
	}
	// Whoever cancels need not wait for the runner.
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	r, err := http.NewRequestWithContext(ctx, "GET", strings.TrimRight(place.URL, "/")+path, nil)
	if err != nil {
		return nil, away(err)
	}
	r.Header.Set("Connection", "Upgrade")
	r.Header.Set("Upgrade", tunnelProtocol)
	r.Header.Set(headerKey, "Bearer "+place.Key)
	if err := r.Write(c); err != nil {
		return nil, away(err)
	}
	br := bufio.NewReader(c)
	w, err := http.ReadResponse(br, r)
	if err != nil {
		return nil, away(err)
	}
	if w.StatusCode != http.StatusSwitchingProtocols {
		return nil, answered(op, place.RunnerID, w)
	}
	if !stop() {
		return nil, away(ctx.Err())
	}
	if err := c.SetDeadline(time.Time{}); err != nil {
		return nil, away(err)
	}
	return &tunnelConn{Conn: c, early: br}, nil
}

// answered is the error of an answer that is one.
func answered(op, subject string, w *http.Response) error {
	data, _ := io.ReadAll(io.LimitReader(w.Body, 64<<10))
	var e wire.Error
	if json.Unmarshal(data, &e) != nil || e.Message == "" {
		e.Message = w.Status
	}
	kind := daytona.KindOfStatus(w.StatusCode)
	if kind == daytona.KindUnauthorized { // not the caller's credentials
		kind = daytona.KindUnavailable
	}
	return &daytona.Error{Kind: kind, Op: op, Subject: subject, Message: e.Message}
}

// tunnelConn is a connection some of which has been read already.
type tunnelConn struct {
	net.Conn
	early *bufio.Reader // nil once it is empty
}

func (c *tunnelConn) Read(p []byte) (int, error) {
	if c.early != nil {
		if n := c.early.Buffered(); n > 0 {
			return c.early.Read(p[:min(len(p), n)])
		}
		c.early = nil
	}
	return c.Conn.Read(p)
}

// CloseWrite ends one direction.
func (c *tunnelConn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return c.Conn.Close()
}

// Logs returns what a build on a runner says; see [Executor.Logs].
func (d *Dialer) Logs(ctx context.Context, place Place, ref string, follow bool) (io.ReadCloser, error) {
	if e := d.local(place.RunnerID); e != nil {
		return e.Logs(ctx, ref, follow)
	}
	q := url.Values{"snapshotRef": {ref}, "follow": {strconv.FormatBool(follow)}}
	r, err := http.NewRequestWithContext(ctx, "GET", strings.TrimRight(place.URL, "/")+"/snapshots/logs?"+q.Encode(), nil)
	if err != nil {
		return nil, &daytona.Error{Kind: daytona.KindUnavailable, Op: "read build log", Subject: place.RunnerID, Message: "the runner has not said where it is"}
	}
	r.Header.Set(headerKey, "Bearer "+place.Key)
	connect := func(ctx context.Context, _, address string) (net.Conn, error) { return place.dial(ctx, address) }
	t := &http.Transport{DialContext: connect, TLSClientConfig: d.TLS, DisableKeepAlives: true, TLSHandshakeTimeout: 10 * time.Second, ResponseHeaderTimeout: 30 * time.Second}
	w, err := t.RoundTrip(r)
	if err != nil {
		return nil, &daytona.Error{Kind: daytona.KindUnavailable, Op: "read build log", Subject: place.RunnerID, Message: "the runner does not answer", Err: err}
	}
	if w.StatusCode != http.StatusOK {
		defer w.Body.Close()
		return nil, answered("read build log", place.RunnerID, w)
	}
	return w.Body, nil
}
