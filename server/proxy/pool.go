package proxy

import (
	"context"
	"net"
	"net/http"
	"sync"
	"time"
)

// pool keeps connections to agents, to be used again, and can close those of
// one sandbox.
type pool struct {
	transport *http.Transport
	mu        sync.Mutex
	open      map[string]map[*conn]struct{}
}

// conn is a connection of a pool.
type conn struct {
	net.Conn
	pool *pool
	id   string
	once sync.Once
}

func (c *conn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() {
		c.pool.mu.Lock()
		defer c.pool.mu.Unlock()
		delete(c.pool.open[c.id], c)
		if len(c.pool.open[c.id]) == 0 {
			delete(c.pool.open, c.id)
		}
	})
	return err
}

// dialError marks an error of connecting to an agent.
type dialError struct{ err error }

func (e *dialError) Error() string { return "connect to the sandbox: " + e.err.Error() }
func (e *dialError) Unwrap() error { return e.err }

func newPool(d Dialer) *pool {
	p := &pool{open: map[string]map[*conn]struct{}{}}
	p.transport = &http.Transport{
		// The host of a request is the id of a sandbox.
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			id, _, err := net.SplitHostPort(addr)
			if err != nil {
				return nil, err
			}
			ctx, cancel := context.WithTimeout(ctx, dialTime)
			defer cancel()
			inner, err := d.Dial(ctx, id)
			if err != nil {
				return nil, &dialError{err}
			}
			c := &conn{Conn: inner, pool: p, id: id}
			p.mu.Lock()
			defer p.mu.Unlock()
			if p.open[id] == nil {
				p.open[id] = map[*conn]struct{}{}
			}
			p.open[id][c] = struct{}{}
			return c, nil
		},
		DisableCompression:  true, // the client decides
		MaxIdleConns:        4096,
		MaxIdleConnsPerHost: 32,
		IdleConnTimeout:     time.Minute, // less than the agent's
		// Their own buffers are small: a connection may be idle for long, and what is
		// copied goes past them.
		ReadBufferSize:  4 << 10,
		WriteBufferSize: 4 << 10,
		Protocols:       new(http.Protocols),
	}
	p.transport.Protocols.SetHTTP1(true)
	return p
}

// has reports whether there are connections to a sandbox.
func (p *pool) has(id string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.open[id]) > 0
}

// size is how many connections there are.
func (p *pool) size() (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, of := range p.open {
		n += len(of)
	}
	return n
}

// drop closes all connections to a sandbox.
func (p *pool) drop(id string) {
	p.mu.Lock()
	var all []*conn
	for c := range p.open[id] {
		all = append(all, c)
	}
	p.mu.Unlock()
	for _, c := range all {
		c.Close()
	}
}

func (p *pool) close() { p.transport.CloseIdleConnections() }
