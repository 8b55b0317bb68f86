package client

import (
	"context"
	"errors"
	"io"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/coder/websocket"

	"github.com/daytona-go/daytona"
)

// portFrame is the size of the frames in which a connection's bytes are sent.
const portFrame = 32 << 10

func (t *toolbox) DialPort(ctx context.Context, port int) (net.Conn, error) {
	const op = "dial sandbox port"
	subject := strconv.Itoa(port)
	if port < 1 || port > 65535 {
		return nil, &daytona.Error{Kind: daytona.KindInvalid, Op: op, Field: "port", Value: port, Message: "must be 1 to 65535"}
	}
	ws, _, err := t.websocket(ctx, op, subject, "/port/"+subject+"/connect", nil, commandReadLimit)
	if err != nil {
		return nil, err
	}
	return newStream(ws, "sandbox port", subject), nil
}

// newStream is the connection to what, as subject, that ws carries.
func newStream(ws *websocket.Conn, what, subject string) net.Conn {
	c := &portConn{ws: ws, what: what, subject: subject, sent: make(chan struct{})}
	c.in, c.fromAgent = net.Pipe()
	c.out, c.toAgent = net.Pipe()
	go c.receive()
	go c.send()
	return c
}

// portConn is a connection through a WebSocket. Between it and the socket
// there is a pipe in each direction, which has the deadlines of a net.Conn: a
// deadline must interrupt a read and not, as it would with the WebSocket, end
// the connection.
type portConn struct {
	ws            *websocket.Conn
	what, subject string

	in, fromAgent net.Conn // what Read reads
	out, toAgent  net.Conn // what Write writes
	sent          chan struct{}

	mu     sync.Mutex
	err    error // why the connection broke
	closed bool
}

func (c *portConn) fail(err error) {
	c.mu.Lock()
	if c.err == nil && !c.closed {
		c.err = broken(context.Background(), c.what, c.subject, err)
	}
	c.mu.Unlock()
}

// receive copies from the agent until the end of that direction, and goes on
// reading for the close frame.
func (c *portConn) receive() {
	defer c.fromAgent.Close()
	buf := make([]byte, portFrame)
	ended := false
	for {
		kind, r, err := c.ws.Reader(context.Background())
		if err != nil {
			switch websocket.CloseStatus(err) {
			case websocket.StatusNormalClosure, websocket.StatusGoingAway:
			default:
				c.fail(err)
			}
			// Nobody takes what is written any more.
			c.toAgent.Close()
			c.ws.CloseNow()
			return
		}
		if kind != websocket.MessageBinary {
			c.fail(errors.New("text frame"))
			c.toAgent.Close()
			c.ws.CloseNow()
			return
		}
		empty := true
		for {
			n, err := r.Read(buf)
			if n > 0 {
				empty = false
				if !ended {
					// An error means that the reader has closed.
					_, _ = c.fromAgent.Write(buf[:n])
				}
			}
			if err == io.EOF {
				break
			}
			if err != nil {
				c.fail(err)
				c.toAgent.Close()
				c.ws.CloseNow()
				return
			}
		}
		if empty && !ended {
			ended = true
			c.fromAgent.Close()
		}
	}
}

// send copies to the agent until CloseWrite or Close.
func (c *portConn) send() {
	defer close(c.sent)
	defer c.toAgent.Close()
	buf := make([]byte, portFrame)
	for {
		n, err := c.toAgent.Read(buf)
		if n > 0 {
			if werr := c.ws.Write(context.Background(), websocket.MessageBinary, buf[:n]); werr != nil {
				c.fail(werr)
				return
			}
		}
		if err != nil {
			_ = c.ws.Write(context.Background(), websocket.MessageBinary, nil)
			return
		}
	}
}

// explain puts the cause in the place of what a pipe says.
func (c *portConn) explain(err error) error {
	if err != io.EOF && !errors.Is(err, io.ErrClosedPipe) {
		return err // nil, or a deadline
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
		return net.ErrClosed
	case c.err != nil:
		return c.err
	}
	return err
}

func (c *portConn) Read(p []byte) (int, error) {
	n, err := c.in.Read(p)
	return n, c.explain(err)
}

func (c *portConn) Write(p []byte) (int, error) {
	n, err := c.out.Write(p)
	return n, c.explain(err)
}

// CloseWrite ends the outgoing direction; the other stays open.
func (c *portConn) CloseWrite() error { return c.out.Close() }

// Close sends what has been written and closes the connection, without
// waiting for the other side.
func (c *portConn) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return net.ErrClosed
	}
	c.closed = true
	c.mu.Unlock()
	c.out.Close()
	c.in.Close()
	go func() {
		select {
		case <-c.sent:
			_ = c.ws.Close(websocket.StatusNormalClosure, "")
		case <-time.After(5 * time.Second):
			_ = c.ws.CloseNow()
		}
	}()
	return nil
}

func (c *portConn) SetDeadline(t time.Time) error {
	return errors.Join(c.in.SetDeadline(t), c.out.SetDeadline(t))
}
func (c *portConn) SetReadDeadline(t time.Time) error  { return c.in.SetReadDeadline(t) }
func (c *portConn) SetWriteDeadline(t time.Time) error { return c.out.SetWriteDeadline(t) }

func (c *portConn) LocalAddr() net.Addr  { return portAddr("toolbox") }
func (c *portConn) RemoteAddr() net.Addr { return portAddr("sandbox:" + c.subject) }

// portAddr is the address of an end of a portConn.
type portAddr string

func (portAddr) Network() string  { return "sandbox" }
func (a portAddr) String() string { return string(a) }
