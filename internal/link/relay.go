package link

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/yamux"
)

// A connection over a stream begins with what the relay has to say: a zero byte
// once it has connected to the agent, or a byte that is not, and why not.
const (
	connected = 0
	refused   = 1
)

// reasonLimit bounds the reason, in bytes.
const reasonLimit = 1 << 10

// dialTimeout bounds how long the other end may take to connect.
const dialTimeout = 30 * time.Second

// lingerTimeout bounds how long a relay that ends waits for the near end to end
// first, which may not have noticed yet that all it sent has arrived.
const lingerTimeout = 5 * time.Second

// window is how much of a connection may be under way, in bytes.
const window = 1 << 20

func muxConfig() *yamux.Config {
	c := yamux.DefaultConfig()
	c.EnableKeepAlive = false // whoever carries the stream knows when it breaks
	c.MaxStreamWindowSize = window
	c.ConnectionWriteTimeout = time.Minute
	c.LogOutput = io.Discard
	return c
}

// Relay connects what comes over a stream to the agent, by dial, until the
// stream ends, or until drain is closed and no connection is left.
func Relay(stream io.ReadWriteCloser, dial func() (net.Conn, error), drain <-chan struct{}) error {
	mux, err := yamux.Server(stream, muxConfig())
	if err != nil {
		return err
	}
	defer mux.Close()
	var mu sync.Mutex
	active, draining := 0, false
	// done lets the near end close the stream once nobody needs it any more: it
	// takes a write for lost if the session ends before it knows of its success.
	done := func(change func()) {
		mu.Lock()
		change()
		end := draining && active == 0
		mu.Unlock()
		if !end {
			return
		}
		late := time.AfterFunc(lingerTimeout, func() { mux.Close() })
		defer late.Stop()
		if mux.GoAway() == nil {
			<-mux.CloseChan()
		}
		mux.Close()
	}
	go func() {
		select {
		case <-mux.CloseChan():
		case <-drain:
			done(func() { draining = true })
		}
	}()
	for {
		c, err := mux.AcceptStream()
		if err == io.EOF || errors.Is(err, yamux.ErrSessionShutdown) {
			return nil
		}
		if err != nil {
			return err
		}
		mu.Lock()
		active++
		mu.Unlock()
		go func() {
			relay(c, dial)
			done(func() { active-- })
		}()
	}
}

func relay(c net.Conn, dial func() (net.Conn, error)) {
	defer c.Close()
	agent, err := dial()
	if err != nil {
		reason := err.Error()
		_, _ = c.Write(append([]byte{refused}, reason[:min(len(reason), reasonLimit)]...))
		return
	}
	defer agent.Close()
	if _, err := c.Write([]byte{connected}); err != nil {
		return
	}
	// HTTP never closes one direction alone: when either side is done, both are.
	go func() {
		_, _ = io.Copy(agent, c)
		agent.Close()
		_ = c.SetWriteDeadline(time.Unix(1, 0)) // nobody reads what is left
	}()
	_, _ = io.Copy(c, agent)
}

// Session is the near end of a stream whose far end is a [Relay].
type Session struct {
	mux *yamux.Session

	mu    sync.Mutex
	open  int  // connections
	ended bool // the relay takes no more
}

// NewSession begins a session over a stream, which it closes in the end.
func NewSession(stream io.ReadWriteCloser) (*Session, error) {
	s := &Session{}
	s.mu.Lock()
	defer s.mu.Unlock() // the relay may end before mux is there
	mux, err := yamux.Client(&guarded{ReadWriteCloser: stream, goAway: func() { s.change(0, true) }}, muxConfig())
	if err != nil {
		return nil, err
	}
	s.mux = mux
	return s, nil
}

// change counts connections, and ends the session after the last one if the
// relay wants to end.
func (s *Session) change(by int, ended bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open += by
	s.ended = s.ended || ended
	if s.ended && s.open == 0 {
		go s.mux.Close() // which waits for whoever reads, and that may be the caller
	}
}

// connection is one that the session counts.
type connection struct {
	*yamux.Stream
	closed sync.Once
	s      *Session
}

func (c *connection) Close() error {
	defer c.closed.Do(func() { c.s.change(-1, false) })
	return c.Stream.Close()
}

// Done is closed when the session has ended: the stream broke, or Close.
func (s *Session) Done() <-chan struct{} { return s.mux.CloseChan() }

// Close ends the session and all its connections.
func (s *Session) Close() error { return s.mux.Close() }

// Dial connects to the agent.
func (s *Session) Dial(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	type opened struct {
		c   *connection
		err error
	}
	ch := make(chan opened, 1)
	go func() {
		s.change(1, false)
		c, err := s.mux.OpenStream()
		if err != nil {
			s.change(-1, false)
		}
		ch <- opened{&connection{Stream: c, s: s}, err}
	}()
	var o opened
	select {
	case o = <-ch:
	case <-ctx.Done():
		go func() {
			if o := <-ch; o.err == nil {
				o.c.Close()
			}
		}()
		return nil, ctx.Err()
	}
	if o.err != nil {
		return nil, fmt.Errorf("the stream to the sandbox: %w", o.err)
	}
	stop := context.AfterFunc(ctx, func() { _ = o.c.SetReadDeadline(time.Unix(1, 0)) })
	err := answer(o.c)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		o.c.Close()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, err
	}
	return o.c, nil
}

// answer reads what a relay begins a connection with.
func answer(c io.Reader) error {
	var first [1]byte
	if _, err := io.ReadFull(c, first[:]); err != nil {
		return fmt.Errorf("the relay in the sandbox gave no answer: %w", err)
	}
	if first[0] == connected {
		return nil
	}
	reason, _ := io.ReadAll(io.LimitReader(c, reasonLimit))
	return fmt.Errorf("the relay in the sandbox does not reach the agent: %q", reason)
}

// guarded lets through what a relay sends, and ends the stream at anything else.
// A far end that is not ours any more could have this one start a goroutine with
// each ping, and keep a queue of connections that nobody accepts.
type guarded struct {
	io.ReadWriteCloser
	goAway func() // called when the far end wants to end
	once   sync.Once
	header [12]byte
	have   int    // of the header
	body   uint32 // what is left of the frame
	broken error
}

var errViolation = errors.New("what came from the sandbox is no frame of a relay")

func (g *guarded) Read(p []byte) (int, error) {
	if g.broken != nil {
		return 0, g.broken
	}
	n, err := g.ReadWriteCloser.Read(p)
	for rest := p[:n]; len(rest) > 0; {
		if g.body > 0 {
			skip := min(uint64(g.body), uint64(len(rest)))
			g.body -= uint32(skip)
			rest = rest[skip:]
			continue
		}
		k := copy(g.header[g.have:], rest)
		g.have += k
		rest = rest[k:]
		if g.have < len(g.header) {
			break
		}
		g.have = 0
		if g.broken = g.check(); g.broken != nil {
			return 0, g.broken
		}
	}
	return n, err
}

// The parts of a frame, as yamux has them.
const (
	typeData   = 0
	typeWindow = 1
	typeGoAway = 3
	flagSYN    = 1
)

func (g *guarded) check() error {
	kind, flags := g.header[1], binary.BigEndian.Uint16(g.header[2:])
	switch {
	case g.header[0] != 0, flags&flagSYN != 0:
		return errViolation
	case kind == typeData:
		if g.body = binary.BigEndian.Uint32(g.header[8:]); g.body > window {
			return errViolation
		}
		return nil
	case kind == typeWindow:
		return nil
	case kind == typeGoAway:
		g.goAway()
		return nil
	}
	return errViolation
}

func (g *guarded) Close() (err error) {
	g.once.Do(func() { err = g.ReadWriteCloser.Close() })
	return err
}
