package daytona

import (
	"context"
	"iter"
	"net"
	"net/http"
	"net/netip"
)

// Ports are the TCP ports of a sandbox that programs in it listen on. Nothing
// of them is published anywhere: Dial and Proxy are the way in.
type Ports interface {
	// List returns who listens, sorted by port and address.
	List(ctx context.Context) ([]Listener, error)
	// Watch yields first a PortOpened for everybody who listens, and then what
	// changes, as it does, without end. A connection that is lost is made anew,
	// and what was missed meanwhile is yielded; the sequence ends, with an
	// error, when ctx ends, when the sandbox is stopped, or when its agent cannot
	// be reached for half a minute. nil options are defaults. Agents that do not
	// know of it give KindUnsupported.
	Watch(ctx context.Context, opts *WatchPortsOptions) iter.Seq2[PortEvent, error]
	// Dial opens a TCP connection to a server that listens on a port of the
	// sandbox's loopback interface, IPv4 or IPv6, or on all interfaces. It gives
	// KindUnavailable if nothing listens there.
	Dial(ctx context.Context, port int) (net.Conn, error)
	// Proxy returns a reverse proxy to the server on a port, which need not
	// listen yet: requests that find nobody are answered with status 502.
	// WebSockets and other upgrades pass through; requests of HTTP/2 do if the
	// http.Server speaks it, and gRPC reaches its server by HTTP/2. nil options
	// are defaults.
	//
	// What is behind it is not to be trusted: serve it under a host name of its
	// own, lest its pages act as yours, and take what is secret (cookies,
	// Authorization) out of requests before they get here.
	Proxy(port int, opts *ProxyOptions) http.Handler
}

// Listener is a TCP socket in a sandbox that waits for connections.
type Listener struct {
	Port int
	// Addr is the address it is bound to: the unspecified address of IPv4 for
	// all of its interfaces, that of IPv6 for all of IPv4 and IPv6, unless the
	// program wants IPv6 alone.
	Addr netip.Addr
	// UID is the numerical user that the socket belongs to.
	UID int
	// PID is the process that has the socket, within the sandbox; the one with
	// the lowest number if several do. 0 if that is not known.
	PID int
	// Process is its name, as the kernel has it (15 bytes at most), and Command
	// its arguments, cut to 4 KiB. Both are whatever the process says.
	Process string
	Command []string
}

// PortEventType says what happened to a port.
type PortEventType string

// The events of [Ports].Watch.
const (
	PortOpened PortEventType = "open"
	PortClosed PortEventType = "close"
)

// PortEvent is a change of who listens. When another program takes over a port,
// there is a PortClosed and then a PortOpened.
type PortEvent struct {
	Type     PortEventType
	Listener Listener
	// Cursor is where to go on after this event; see [WatchPortsOptions]. It is
	// empty where there is more to come that belongs to it.
	Cursor string
}

// WatchPortsOptions say how to watch.
type WatchPortsOptions struct {
	// Cursor of an event of an earlier Watch: only what happened after it is
	// yielded, as far as the agent still knows; if it does not, then everybody
	// who listens, as without. Defaults to none.
	Cursor string
}

// Protocols of [ProxyOptions].
const (
	ProtocolHTTP1 = "http/1.1"
	ProtocolH2C   = "h2c" // HTTP/2 without TLS and without asking first
)

// ProxyOptions say how to proxy.
type ProxyOptions struct {
	// Protocol that the server speaks. Defaults to h2c for gRPC (that is, for
	// the content types application/grpc and application/grpc+…) and HTTP/1.1 for
	// everything else.
	Protocol string
	// TrustForwarded leaves the headers Forwarded and X-Forwarded-* of requests as
	// they are, for a proxy that is behind another. Defaults to false: X-Forwarded-*
	// are set to what this proxy sees.
	TrustForwarded bool
}
