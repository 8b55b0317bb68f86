package client

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"

	"github.com/coder/websocket"

	"github.com/daytona-go/daytona"
)

// maxHeader bounds the header of a handshake's answer, in bytes.
const maxHeader = 64 << 10

// handshake is the transport of one WebSocket handshake: on a new connection,
// which takes no goroutines, and never repeated. It keeps what the websocket
// package would lose, the whole answer of a refusal.
type handshake struct {
	t      *toolbox
	err    error // no answer
	status int
	body   []byte
}

func (h *handshake) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := h.roundTrip(req)
	h.err = err
	return resp, err
}

func (h *handshake) roundTrip(req *http.Request) (_ *http.Response, err error) {
	ctx := req.Context()
	conn, err := h.t.connect(ctx, req.URL)
	if err != nil {
		return nil, err
	}
	keep := false
	defer func() {
		if !keep {
			conn.Close()
		}
	}()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if err := req.Write(conn); err != nil {
		return nil, err
	}
	limited := &io.LimitedReader{R: conn, N: maxHeader}
	br := bufio.NewReaderSize(limited, 2<<10)
	var resp *http.Response
	for range 5 { // skip informational answers
		if resp, err = http.ReadResponse(br, req); err != nil {
			if err == io.ErrUnexpectedEOF && limited.N <= 0 {
				err = errors.New("the header of the answer is longer than 64 KiB")
			}
			return nil, err
		}
		if resp.StatusCode >= 200 || resp.StatusCode == http.StatusSwitchingProtocols {
			break
		}
	}
	h.status = resp.StatusCode
	if resp.StatusCode != http.StatusSwitchingProtocols {
		limited.N = maxErrorBody
		h.body, _ = io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
		resp.Body = http.NoBody
		return resp, nil
	}
	if !stop() {
		return nil, ctx.Err()
	}
	keep = true
	early, _ := br.Peek(br.Buffered())
	resp.Body = &upgraded{Conn: conn, early: early}
	return resp, nil
}

// upgraded is a connection after its handshake. early is what was read with
// the handshake's answer.
type upgraded struct {
	net.Conn
	early []byte
}

func (u *upgraded) Read(p []byte) (int, error) {
	if len(u.early) > 0 {
		n := copy(p, u.early)
		u.early = u.early[n:]
		return n, nil
	}
	return u.Conn.Read(p)
}

// connect opens a connection for a URL, with TLS if it says so.
func (t *toolbox) connect(ctx context.Context, u *url.URL) (net.Conn, error) {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	conn, err := t.pooled.DialContext(ctx, "tcp", net.JoinHostPort(u.Hostname(), port))
	if err != nil || u.Scheme == "http" {
		return conn, err
	}
	config := t.tls.Clone()
	if config == nil {
		config = &tls.Config{}
	}
	if config.ServerName == "" {
		config.ServerName = u.Hostname()
	}
	config.NextProtos = []string{"http/1.1"}
	secure := tls.Client(conn, config)
	if err := secure.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	return secure, nil
}

// websocket opens a WebSocket. ctx governs the handshake only. limit is the greatest size
// of a message in bytes. The handshake is returned for its status.
func (t *toolbox) websocket(ctx context.Context, op, subject, path string, q url.Values, limit int64, protocols ...string) (*websocket.Conn, *handshake, error) {
	h := &handshake{t: t}
	target, err := t.url(ctx, path, q)
	if err != nil {
		return nil, h, lost(ctx, op, subject, &dialError{err})
	}
	conn, _, err := websocket.Dial(ctx, target, &websocket.DialOptions{
		HTTPClient: &http.Client{
			Transport:     h,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		HTTPHeader:      t.header,
		Subprotocols:    protocols,
		CompressionMode: websocket.CompressionDisabled,
	})
	switch {
	case err == nil:
		conn.SetReadLimit(limit)
		return conn, h, nil
	case h.err != nil:
		return nil, h, t.explained(ctx, 0, lost(ctx, op, subject, h.err))
	case h.status == 0:
		return nil, h, lost(ctx, op, subject, err)
	case h.status == http.StatusSwitchingProtocols || h.status < 300:
		return nil, h, malformed(op, subject, err)
	}
	return nil, h, t.explained(ctx, h.status, answerError(op, subject, false, h.status, h.body))
}

// broken is the error for a WebSocket that ended with err before its time.
func broken(ctx context.Context, op, subject string, err error) error {
	if c, ok := errors.AsType[websocket.CloseError](err); ok && c.Reason != "" && ctx.Err() == nil {
		return &daytona.Error{Kind: daytona.KindUnavailable, Op: op, Subject: subject, Message: "the sandbox's agent closed the connection: " + c.Reason, Err: err}
	}
	return lost(ctx, op, subject, err)
}
