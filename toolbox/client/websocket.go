package client

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"

	"github.com/coder/websocket"

	"github.com/daytona-go/daytona"
)

// handshake is the transport of one WebSocket handshake. It keeps what the
// websocket package would lose: the whole answer of a refusal.
type handshake struct {
	next   http.RoundTripper
	err    error // no answer
	status int
	body   []byte
}

func (h *handshake) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := h.next.RoundTrip(req)
	if err != nil {
		h.err = err
		return nil, err
	}
	h.status = resp.StatusCode
	if resp.StatusCode != http.StatusSwitchingProtocols {
		h.body, _ = io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
		resp.Body.Close()
		resp.Body = http.NoBody
	}
	return resp, nil
}

// websocket opens a WebSocket, on a connection of its own: its handshake is
// never repeated. ctx governs the handshake only. limit is the greatest size
// of a message in bytes. The handshake is returned for its status.
func (t *toolbox) websocket(ctx context.Context, op, subject, path string, q url.Values, limit int64, protocols ...string) (*websocket.Conn, *handshake, error) {
	target := t.base + path
	if len(q) > 0 {
		target += "?" + q.Encode()
	}
	h := &handshake{next: t.fresh}
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
		return nil, h, lost(ctx, op, subject, h.err)
	case h.status == 0:
		return nil, h, lost(ctx, op, subject, err)
	case h.status == http.StatusSwitchingProtocols || h.status < 300:
		return nil, h, malformed(op, subject, err)
	}
	return nil, h, answerError(op, subject, false, h.status, h.body)
}

// broken is the error for a WebSocket that ended with err before its time.
func broken(ctx context.Context, op, subject string, err error) error {
	if c, ok := errors.AsType[websocket.CloseError](err); ok && c.Reason != "" && ctx.Err() == nil {
		return &daytona.Error{Kind: daytona.KindUnavailable, Op: op, Subject: subject, Message: "the sandbox's agent closed the connection: " + c.Reason, Err: err}
	}
	return lost(ctx, op, subject, err)
}
