package link

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// Stream is the near end of a relay's standard input and output.
type Stream interface {
	io.ReadWriteCloser
	// Said is the beginning of what the relay has written to standard error.
	Said() string
}

// Sessions are the sessions with the relays in containers, one a sandbox however
// many connections it takes, each begun when it is needed and again when it has
// broken. They are safe for concurrent use.
type Sessions struct {
	// Start runs a relay in a sandbox's container. Required.
	Start func(ctx context.Context, id string) (Stream, error)

	mu     sync.Mutex
	open   map[string]*running // by sandbox
	closed bool
}

// startTimeout bounds a start, which those who wait for it do not.
const startTimeout = time.Minute

type running struct {
	run     any           // of the container
	ready   chan struct{} // closed when what follows is there
	session *Session
	stream  Stream
	err     error
}

// Dial connects to the agent through the relay of a sandbox. run, a value that can
// be compared, tells the present run of its container from earlier ones.
func (ss *Sessions) Dial(ctx context.Context, id string, run any) (net.Conn, error) {
	for again := true; ; again = false {
		e, old := ss.get(id, run)
		select {
		case <-e.ready:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		err := e.err
		if err == nil {
			var c net.Conn
			if c, err = e.session.Dial(ctx); err == nil || ctx.Err() != nil {
				return c, err
			}
			select {
			case <-e.session.Done():
				if said := e.stream.Said(); said != "" {
					err = fmt.Errorf("%w: %s", err, said)
				}
			default:
				return nil, err // the relay is well, the agent is not
			}
		}
		ss.drop(id, e)
		if !again || !old {
			return nil, err
		}
	}
}

// get returns the relay of a sandbox's present run, and whether it was there.
func (ss *Sessions) get(id string, run any) (_ *running, old bool) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	e := ss.open[id]
	if e != nil && e.run == run {
		return e, true
	}
	if e != nil {
		go e.close()
	}
	e = &running{run: run, ready: make(chan struct{})}
	if ss.closed {
		e.err = errors.New("the backend is closed")
		close(e.ready)
		return e, false
	}
	if ss.open == nil {
		ss.open = map[string]*running{}
	}
	ss.open[id] = e
	go func() {
		defer close(e.ready)
		// Whoever asked first may go: others wait for the same.
		ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
		defer cancel()
		if e.stream, e.err = ss.Start(ctx, id); e.err != nil {
			return
		}
		if e.session, e.err = NewSession(e.stream); e.err != nil {
			e.stream.Close()
		}
	}()
	return e, false
}

// End ends the relay of a run of a sandbox's container, if there is one.
func (ss *Sessions) End(id string, run any) {
	ss.mu.Lock()
	e := ss.open[id]
	ss.mu.Unlock()
	if e != nil && e.run == run {
		ss.drop(id, e)
	}
}

// drop ends a relay.
func (ss *Sessions) drop(id string, e *running) {
	ss.mu.Lock()
	if ss.open[id] == e {
		delete(ss.open, id)
	}
	ss.mu.Unlock()
	e.close()
}

// Close ends all, and keeps others from beginning.
func (ss *Sessions) Close() {
	ss.mu.Lock()
	all := ss.open
	ss.open, ss.closed = nil, true
	ss.mu.Unlock()
	for _, e := range all {
		e.close()
	}
}

func (e *running) close() {
	<-e.ready
	if e.session != nil {
		e.session.Close()
	}
}
