package plugin

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/daytona-go/daytona"
	pb "github.com/daytona-go/daytona/backend/plugin/proto"
	"github.com/daytona-go/daytona/toolbox/client"
)

// Connect gives the toolbox over connections through the plugin.
func (b *backend) Connect(id string) daytona.Toolbox {
	dial := func(ctx context.Context) (net.Conn, error) { return b.dial(ctx, id) }
	return &toolbox{Toolbox: client.New(dial, &client.Options{Logger: b.log}), backend: b, id: id}
}

// toolbox is what package client makes, but knows the sandbox's language: to
// ask for it takes a call, which Connect must not wait for.
type toolbox struct {
	daytona.Toolbox
	backend *backend
	id      string

	mu       sync.Mutex
	language string
}

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
		t := p.toolbox
		t.mu.Lock()
		o.Language = t.language
		t.mu.Unlock()
		if o.Language == "" {
			info, err := t.backend.Get(ctx, t.id)
			if err != nil {
				return daytona.CodeResult{}, err
			}
			o.Language = info.Language
			t.mu.Lock()
			t.language = info.Language // for good: it does not change
			t.mu.Unlock()
		}
	}
	return p.Process.RunCode(ctx, code, &o)
}

// dial opens a connection to the agent of a sandbox: the plugin connects and
// gives a ticket, for which it carries the bytes.
func (b *backend) dial(ctx context.Context, id string) (net.Conn, error) {
	const op = "connect to agent"
	for repeat := true; ; repeat = false {
		if err := ctx.Err(); err != nil {
			return nil, ended(op, id, err)
		}
		p, err := b.acquire(ctx)
		if err != nil {
			return nil, err
		}
		c, err := b.connect(ctx, p, id)
		if err == nil {
			return c, nil
		}
		err = b.callError(ctx, p, op, id, err)
		if !repeat || !p.isDead() || ctx.Err() != nil {
			return nil, err
		}
		// Nothing has been sent to the agent.
	}
}

func (b *backend) connect(ctx context.Context, p *child, id string) (*conn, error) {
	r, err := p.rpc.Connect(ctx, &pb.SandboxRequest{Id: id})
	if err != nil {
		return nil, err
	}
	if len(r.GetTicket()) != ticketSize {
		return nil, &daytona.Error{Kind: daytona.KindInternal, Message: "the plugin gave a malformed ticket"}
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", filepath.Join(p.sockets, agentsSocket))
	if err != nil {
		return nil, err
	}
	// It fits into the socket's buffer.
	if _, err := io.WriteString(c, r.GetTicket()); err != nil {
		c.Close()
		return nil, err
	}
	return &conn{UnixConn: c.(*net.UnixConn), lost: func(err error) error {
		if p.isDead() {
			return b.callError(context.Background(), p, "connection to agent", id, err)
		}
		return err
	}}, nil
}

// conn is a connection to an agent. It says what has become of the plugin,
// once that is known.
type conn struct {
	*net.UnixConn
	lost func(error) error
}

func (c *conn) Read(p []byte) (int, error) {
	n, err := c.UnixConn.Read(p)
	if err == io.EOF || errors.Is(err, syscall.ECONNRESET) {
		err = c.lost(err)
	}
	return n, err
}

func (c *conn) Write(p []byte) (int, error) {
	n, err := c.UnixConn.Write(p)
	if errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
		err = c.lost(err)
	}
	return n, err
}

// agents is the plugin's side of connections to agents.
type agents struct {
	listener net.Listener

	mu      sync.Mutex
	tickets map[[sha256.Size]byte]net.Conn // by the ticket's hash
	conns   map[net.Conn]struct{}
	closed  bool
	pumps   sync.WaitGroup
}

const (
	agentsSocket = "agents.sock"
	// ticketSize is that of rand.Text.
	ticketSize = 26
	// ticketLife is how long a host may take from the answer of Connect to the
	// connection.
	ticketLife = 10 * time.Second
	// lingering bounds the time in which what a host sent before it closed
	// still reaches the agent.
	lingering = 5 * time.Second
	// pumpBuffer is the size of the pieces in which bytes are carried. Every
	// connection has two, idle ones too.
	pumpBuffer = 64 << 10
)

func listenForHost(dir string) (*agents, error) {
	l, err := net.Listen("unix", filepath.Join(dir, agentsSocket))
	if err != nil {
		return nil, err
	}
	a := &agents{listener: l, tickets: map[[sha256.Size]byte]net.Conn{}, conns: map[net.Conn]struct{}{}}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go a.serve(c.(*net.UnixConn))
		}
	}()
	return a, nil
}

// offer keeps a connection to an agent for whoever has the ticket.
func (a *agents) offer(raw net.Conn) (ticket string, err error) {
	ticket = rand.Text()
	key := sha256.Sum256([]byte(ticket))
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		raw.Close()
		return "", &daytona.Error{Kind: daytona.KindUnavailable, Op: "connect to agent", Message: "the plugin is closed"}
	}
	a.tickets[key] = raw
	time.AfterFunc(ticketLife, func() {
		if raw := a.take(key); raw != nil {
			raw.Close()
		}
	})
	return ticket, nil
}

func (a *agents) take(key [sha256.Size]byte) net.Conn {
	a.mu.Lock()
	defer a.mu.Unlock()
	raw := a.tickets[key]
	delete(a.tickets, key)
	return raw
}

// hold registers a connection to be closed with the others.
func (a *agents) hold(conns ...net.Conn) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		for _, c := range conns {
			c.Close()
		}
		return false
	}
	a.pumps.Add(1)
	for _, c := range conns {
		a.conns[c] = struct{}{}
	}
	return true
}

func (a *agents) letGo(conns ...net.Conn) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, c := range conns {
		c.Close()
		delete(a.conns, c)
	}
	a.pumps.Done()
}

// close ends all connections.
func (a *agents) close() {
	a.listener.Close()
	a.mu.Lock()
	a.closed = true
	for key, raw := range a.tickets {
		raw.Close()
		delete(a.tickets, key)
	}
	for c := range a.conns {
		c.Close()
	}
	a.mu.Unlock()
	a.pumps.Wait()
}

// serve carries the bytes of one connection.
func (a *agents) serve(host *net.UnixConn) {
	if !a.hold(host) {
		return
	}
	defer a.letGo(host)
	_ = host.SetReadDeadline(time.Now().Add(ticketLife))
	var ticket [ticketSize]byte
	if _, err := io.ReadFull(host, ticket[:]); err != nil {
		return
	}
	raw := a.take(sha256.Sum256(ticket[:]))
	if raw == nil || !a.hold(raw) {
		return
	}
	defer a.letGo(raw)
	_ = host.SetReadDeadline(time.Time{})

	done := make(chan struct{})
	go func() {
		defer close(done)
		if _, err := pump(raw, host); err != nil {
			// The agent takes no more, but may have something to say, which a
			// socket that is closed with unread bytes would lose.
			_ = host.CloseRead()
			_, _ = pump(io.Discard, host)
			return
		}
		// The host has ended its direction or, with an error or not, has gone.
		if half, ok := raw.(interface{ CloseWrite() error }); ok {
			_ = half.CloseWrite()
		} else {
			raw.Close()
		}
	}()
	switch readErr, writeErr := pump(host, raw); {
	case writeErr != nil:
		// The host has closed. What it had sent still arrives, as it would
		// over a socket, if the agent takes it; what the agent writes does not.
		if half, ok := raw.(interface{ CloseRead() error }); ok {
			_ = half.CloseRead()
		}
		_ = raw.SetWriteDeadline(time.Now().Add(lingering))
	case readErr != nil: // the agent has gone
		host.Close()
	default:
		_ = host.CloseWrite()
	}
	<-done
}

// pump copies until the end of src, and says which side failed.
func pump(dst io.Writer, src io.Reader) (readErr, writeErr error) {
	buf := make([]byte, pumpBuffer)
	for {
		n, err := src.Read(buf)
		if n > 0 {
			if _, err := dst.Write(buf[:n]); err != nil {
				return nil, err
			}
		}
		if err == io.EOF {
			return nil, nil
		}
		if err != nil {
			return err, nil
		}
	}
}
