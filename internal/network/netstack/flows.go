package netstack

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// destination is where the sandbox wants to go; for the stack, that is a local address.
func destination(id stack.TransportEndpointID) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4(id.LocalAddress.As4()), id.LocalPort)
}

// acceptTCP decides on a SYN. The sandbox's connection is accepted only when the host's is made,
// so that the sandbox sees what really happens. It runs in a goroutine of its own.
func (s *Stack) acceptTCP(r *tcp.ForwarderRequest) {
	target := destination(r.ID())
	f, over, err := s.begin(target, idleTCP)
	if err != nil {
		r.Complete(true)
		s.log.Debug("refused a TCP connection", "to", target, "reason", err)
		return
	}
	defer over()
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	go func() {
		select {
		case <-f.stop:
			cancel()
		case <-ctx.Done():
		}
	}()
	var conn net.Conn
	if f.dns {
		conn, err = s.dialResolver(ctx, "tcp")
	} else {
		conn, err = s.dial(ctx, "tcp4", target)
	}
	if err != nil {
		r.Complete(true)
		s.log.Debug("a TCP connection failed", "to", target, "reason", err)
		return
	}
	defer conn.Close()
	var queue waiter.Queue
	ep, refused := r.CreateEndpoint(&queue)
	if refused != nil {
		r.Complete(true)
		return
	}
	r.Complete(false)
	ep.SocketOptions().SetKeepAlive(true)
	keep := tcpip.KeepaliveIdleOption(time.Minute)
	_ = ep.SetSockOpt(&keep)
	inside := gonet.NewTCPConn(&queue, ep)
	defer inside.Close()

	errs := make(chan error, 2)
	go func() { errs <- stream(f, conn, inside) }()
	go func() { errs <- stream(f, inside, conn) }()
	left := 2
	for err == nil && left > 0 {
		select {
		case err = <-errs:
			left--
		case <-ctx.Done(): // the policy changed, the flow idled, or all is over
			err = ctx.Err()
		}
	}
	if err != nil {
		// Broken on one side is broken on the other: reset, so that nobody takes it for an end.
		ep.Abort()
		if c, ok := conn.(*net.TCPConn); ok {
			_ = c.SetLinger(0)
		}
	}
	conn.Close()
	inside.Close()
	for ; left > 0; left-- {
		<-errs
	}
}

// acceptUDP decides on a datagram that belongs to no flow. It runs where packets are read, and so
// must not wait.
func (s *Stack) acceptUDP(r *udp.ForwarderRequest) bool {
	target := destination(r.ID())
	f, over, err := s.begin(target, idleUDP)
	if err != nil {
		s.log.Debug("refused a datagram", "to", target, "reason", err)
		return false // the stack answers that the port is closed
	}
	var conn net.Conn
	if !f.dns {
		// Connecting a datagram socket sends nothing and does not wait.
		if conn, err = s.dial(s.ctx, "udp4", target); err != nil {
			over()
			s.log.Debug("refused a datagram", "to", target, "reason", err)
			return false
		}
	}
	var queue waiter.Queue
	ep, refused := r.CreateEndpoint(&queue)
	if refused != nil {
		over()
		if conn != nil {
			conn.Close()
		}
		return false
	}
	inside := gonet.NewUDPConn(&queue, ep)
	go func() {
		defer over()
		defer inside.Close()
		if f.dns {
			s.relayQueries(f, inside)
			return
		}
		defer conn.Close()
		s.relayDatagrams(f, inside, conn)
	}()
	return true
}

func (s *Stack) relayDatagrams(f *flow, inside, conn net.Conn) {
	var both sync.WaitGroup
	copyOver := func(to, from net.Conn) {
		defer f.end()
		buf := copyBuffers.Get().(*[]byte)
		defer copyBuffers.Put(buf)
		for {
			n, err := from.Read(*buf)
			if err != nil {
				return // closed, or the host's network reports that nobody is there
			}
			f.touch()
			// A datagram that cannot be sent is lost, as datagrams are.
			_, _ = to.Write((*buf)[:n])
		}
	}
	both.Go(func() { copyOver(conn, inside) })
	both.Go(func() { copyOver(inside, conn) })
	<-f.stop
	inside.Close()
	conn.Close()
	both.Wait()
}

// relayQueries answers the sandbox's DNS questions, several at once: a resolver library asks for
// both kinds of address without waiting in between.
func (s *Stack) relayQueries(f *flow, inside net.Conn) {
	var pending sync.WaitGroup
	defer pending.Wait()
	stopped := make(chan struct{})
	defer close(stopped)
	go func() {
		select {
		case <-f.stop:
		case <-stopped:
		}
		inside.Close()
	}()
	buf := make([]byte, 4096) // no question is longer
	for {
		n, err := inside.Read(buf)
		if err != nil {
			return
		}
		f.touch()
		if n < 12 { // shorter than a DNS header
			continue
		}
		select {
		case s.queries <- struct{}{}:
		default:
			continue // too many at once: the library asks again
		}
		query := append([]byte(nil), buf[:n]...)
		pending.Go(func() {
			defer func() { <-s.queries }()
			if answer := s.resolve(query); answer != nil {
				_, _ = inside.Write(answer)
			}
		})
	}
}

// resolve asks the host's resolvers one after the other.
func (s *Stack) resolve(query []byte) []byte {
	for _, r := range s.cfg.Resolvers {
		if answer := s.ask(netip.AddrPortFrom(r, 53), query); answer != nil {
			return answer
		}
		if s.ctx.Err() != nil {
			return nil
		}
	}
	return nil
}

func (s *Stack) ask(resolver netip.AddrPort, query []byte) []byte {
	conn, err := (&net.Dialer{}).DialContext(s.ctx, "udp", resolver.String())
	if err != nil {
		return nil
	}
	defer conn.Close()
	stop := context.AfterFunc(s.ctx, func() { conn.Close() })
	defer stop()
	_ = conn.SetDeadline(time.Now().Add(resolveTimeout))
	if _, err := conn.Write(query); err != nil {
		return nil
	}
	buf := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(buf)
	for {
		n, err := conn.Read(*buf)
		if err != nil {
			return nil
		}
		// The answer to this question, by its number; a forger would also have to guess the port.
		if n >= 12 && (*buf)[0] == query[0] && (*buf)[1] == query[1] {
			return append([]byte(nil), (*buf)[:n]...)
		}
	}
}
