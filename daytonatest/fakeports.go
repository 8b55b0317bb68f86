package daytonatest

import (
	"context"
	"fmt"
	"io"
	"iter"
	"log"
	"net"
	"net/http"
	"net/netip"
	"strconv"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/portproxy"
)

// fakePorts are the ports of HandlePort, all on the loopback interface.
type fakePorts struct{ c *fakeConn }

func (c *fakeConn) Ports() daytona.Ports { return fakePorts{c} }

func (p fakePorts) Dial(ctx context.Context, port int) (net.Conn, error) {
	return p.c.DialPort(ctx, port)
}

func fakeListener(port int) daytona.Listener {
	return daytona.Listener{Port: port, Addr: netip.MustParseAddr("127.0.0.1"), Process: "fake"}
}

func (p fakePorts) List(ctx context.Context) ([]daytona.Listener, error) {
	ports, err := fakeProcess(p).Ports(ctx)
	if err != nil {
		return nil, err
	}
	list := make([]daytona.Listener, len(ports))
	for i, port := range ports {
		list[i] = fakeListener(port)
	}
	return list, nil
}

// Watch knows of no cursors: ports of a Fake only open.
func (p fakePorts) Watch(ctx context.Context, _ *daytona.WatchPortsOptions) iter.Seq2[daytona.PortEvent, error] {
	return func(yield func(daytona.PortEvent, error) bool) {
		e, said := p.c.f.engine, map[int]bool{}
		for {
			change := make(chan struct{})
			e.mu.Lock()
			e.waiting = append(e.waiting, change)
			e.mu.Unlock()
			list, err := p.List(ctx)
			if err != nil {
				yield(daytona.PortEvent{}, err)
				return
			}
			for _, l := range list {
				if said[l.Port] {
					continue
				}
				said[l.Port] = true
				if !yield(daytona.PortEvent{Type: daytona.PortOpened, Listener: l, Cursor: strconv.Itoa(len(said))}, nil) {
					return
				}
			}
			select {
			case <-ctx.Done():
				yield(daytona.PortEvent{}, fmt.Errorf("watch ports: %w", ctx.Err()))
				return
			case <-change:
			}
		}
	}
}

func (p fakePorts) Proxy(port int, opts *daytona.ProxyOptions) http.Handler {
	var o daytona.ProxyOptions
	if opts != nil {
		o = *opts
	}
	return &portproxy.Proxy{
		Transport: portproxy.NewTransport(p.c.DialPort), Port: port, Protocol: o.Protocol, Forwarded: o.TrustForwarded,
		Fail: func(w http.ResponseWriter, _ *http.Request, err error) {
			http.Error(w, err.Error(), http.StatusBadGateway)
		},
		Log: log.New(io.Discard, "", 0),
	}
}
