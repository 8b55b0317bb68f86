package client_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/daytona-go/daytona/toolbox/client"
	"github.com/daytona-go/daytona/toolbox/wire"
)

// pipes is a listener for the ends of pipes.
type pipes chan net.Conn

func (p pipes) Accept() (net.Conn, error) {
	c, ok := <-p
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}
func (p pipes) Close() error   { return nil }
func (p pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "unix"} }

// closing notes that it was closed.
type closing struct {
	net.Conn
	closed *atomic.Int32
	once   sync.Once
}

func (c *closing) Close() error {
	c.once.Do(func() { c.closed.Add(1) })
	return c.Conn.Close()
}

// TestIdleConnections has many callers at once leave a connection that was made
// for a request which then got another. The agent waits shorter for the first
// request on it than for further ones; a command that came as the agent closed it
// would be lost, with "connection reset by peer".
func TestIdleConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ours, theirs, dials atomic.Int32
		second, answer := make(chan struct{}), make(chan struct{})
		l := make(pipes)
		server := &http.Server{
			ReadHeaderTimeout: wire.FirstRequestTimeout, IdleTimeout: 2 * time.Minute,
			Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				<-answer
				fmt.Fprint(w, `{"exitCode":0,"result":""}`)
			}),
		}
		done := make(chan error)
		go func() { done <- server.Serve(l) }()
		tb := client.New(func(context.Context) (net.Conn, error) {
			if dials.Add(1) == 2 {
				<-second
			}
			a, b := net.Pipe()
			l <- &closing{Conn: b, closed: &theirs}
			return &closing{Conn: a, closed: &ours}, nil
		}, nil)
		run := func() {
			if _, err := tb.Process().Exec(t.Context(), "true", nil); err != nil {
				t.Error(err)
			}
		}
		var both sync.WaitGroup
		both.Go(run)
		synctest.Wait()
		both.Go(run) // dials, and waits
		synctest.Wait()
		close(answer) // it gets the first one's connection
		both.Wait()
		close(second)
		synctest.Wait()
		if dials.Load() != 2 || ours.Load()+theirs.Load() != 0 {
			t.Fatalf("%d connections made, %d and %d closed", dials.Load(), ours.Load(), theirs.Load())
		}
		time.Sleep(wire.FirstRequestTimeout - time.Second)
		synctest.Wait()
		if ours.Load() != 2 {
			t.Errorf("the client has closed %d connections out of 2 a second before the agent does", ours.Load())
		}
		run()
		tb.Close()
		close(l)
		server.Close()
		<-done
	})
}
