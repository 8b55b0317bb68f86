// Package netstack is the network of a rootless sandbox, outside of it: a TCP/IP stack in user
// space that takes the sandbox's packets, ends its connections, and makes new ones on the host in
// their place if the policy allows.
//
// It is the wall. Everything that comes out of the descriptor is hostile, so that what a sandbox
// can make this process do is bounded: how many connections it has, how long they idle, how much
// they buffer. It runs in a process of its own with no rights to speak of; see Run. It must not
// know how the sandbox is made or by whom.
package netstack

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/fdbased"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"github.com/daytona-go/daytona/internal/network/guest"
	"github.com/daytona-go/daytona/internal/network/policy"
)

// DefaultMaxFlows is how many connections a sandbox may have at a time unless told otherwise.
const DefaultMaxFlows = 1024

const (
	dialTimeout    = 15 * time.Second
	idleTCP        = 2 * time.Hour // at least this by RFC 5382
	idleUDP        = 2 * time.Minute
	resolveTimeout = 2 * time.Second
	maxQueries     = 64
	// The stack's own link has no latency to bridge, so that small buffers are enough.
	maxBuffer = 256 << 10
)

// Config is what a Stack needs.
type Config struct {
	// FD is the sandbox's packets, from guest.Setup. It stays the caller's, who must not close
	// it while Serve runs. It is made non-blocking.
	FD int
	// Kind is the kind of FD: guest.TUN or guest.Packet.
	Kind string
	// Policy is what the sandbox may reach.
	Policy policy.Policy
	// Resolvers answer what the sandbox asks guest.Resolver, in order of preference. Any
	// address of a nameserver that the host can reach is good, also a loopback one.
	Resolvers []netip.Addr
	// MaxFlows is how many connections the sandbox may have at a time; more are refused.
	// Defaults to DefaultMaxFlows.
	MaxFlows int
	// Log receives refused and failed connections at level debug. Defaults to discarding them.
	Log *slog.Logger
}

// rules are a policy and what follows from it.
type rules struct {
	policy  policy.Policy
	allowed policy.Ranges
}

// Stack is a sandbox's network. It is safe for concurrent use.
type Stack struct {
	cfg     Config
	log     *slog.Logger
	net     *stack.Stack
	gone    chan error
	rules   atomic.Pointer[rules]
	own     ownAddresses
	queries chan struct{}
	ctx     context.Context
	cancel  context.CancelFunc
	work    sync.WaitGroup

	mu    sync.Mutex
	flows map[*flow]struct{}
}

// flow is one connection, from the sandbox through to the host's network.
type flow struct {
	target netip.AddrPort
	dns    bool
	idle   time.Duration
	active atomic.Int64 // when something last went through, in Unix seconds
	once   sync.Once
	stop   chan struct{} // closed to end it
}

func (f *flow) touch() { f.active.Store(time.Now().Unix()) }
func (f *flow) end()   { f.once.Do(func() { close(f.stop) }) }

const nic = 1

// Open makes a stack, which carries packets from then on; Serve says for how long.
func Open(cfg Config) (*Stack, error) {
	if err := cfg.Policy.Validate(); err != nil {
		return nil, err
	}
	if cfg.Kind != guest.TUN && cfg.Kind != guest.Packet {
		return nil, fmt.Errorf("unknown kind of network device %q: want %q or %q", cfg.Kind, guest.TUN, guest.Packet)
	}
	if len(cfg.Resolvers) > policy.MaxResolvers {
		cfg.Resolvers = cfg.Resolvers[:policy.MaxResolvers]
	}
	cfg.MaxFlows = cmp.Or(cfg.MaxFlows, DefaultMaxFlows)
	s := &Stack{
		cfg: cfg, log: cmp.Or(cfg.Log, slog.New(slog.DiscardHandler)),
		gone: make(chan error, 1), queries: make(chan struct{}, maxQueries),
		flows: map[*flow]struct{}{},
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.rules.Store(&rules{cfg.Policy, cfg.Policy.Compile(nil)})
	if err := s.build(); err != nil {
		s.net.Close()
		return nil, fmt.Errorf("make the user-space network stack: %w", err)
	}
	return s, nil
}

func failed(what string, err tcpip.Error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %s", what, err)
}

func (s *Stack) build() error {
	s.net = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4},
	})
	sack := tcpip.TCPSACKEnabled(true)
	moderate := tcpip.TCPModerateReceiveBufferOption(true)
	receive := tcpip.TCPReceiveBufferSizeRangeOption{Min: 4 << 10, Default: 128 << 10, Max: maxBuffer}
	send := tcpip.TCPSendBufferSizeRangeOption{Min: 4 << 10, Default: 128 << 10, Max: maxBuffer}
	for _, option := range []tcpip.SettableTransportProtocolOption{&sack, &moderate, &receive, &send} {
		if err := s.net.SetTransportProtocolOption(tcp.ProtocolNumber, option); err != nil {
			return failed("set TCP options", err)
		}
	}
	ep, err := fdbased.New(&fdbased.Options{
		FDs:            []int{s.cfg.FD},
		MTU:            guest.MTU,
		EthernetHeader: s.cfg.Kind == guest.Packet,
		Address:        tcpip.LinkAddress("\x52\x55\x0a\x00\x02\x02"),
		// What the sandbox's kernel sends over a veth pair or TUN has its checksums left out:
		// it never crosses a wire.
		RXChecksumOffload:    true,
		PacketDispatchMode:   fdbased.RecvMMsg,
		ProcessorsPerChannel: 1,
		ClosedFunc: func(err tcpip.Error) {
			select {
			case s.gone <- failed("the sandbox's network device is gone", err):
			default:
			}
		},
	})
	if err != nil {
		return err
	}
	forwardTCP := tcp.NewForwarder(s.net, 0, min(256, s.cfg.MaxFlows), s.acceptTCP)
	s.net.SetTransportProtocolHandler(tcp.ProtocolNumber, forwardTCP.HandlePacket)
	forwardUDP := udp.NewForwarder(s.net, s.acceptUDP)
	s.net.SetTransportProtocolHandler(udp.ProtocolNumber, forwardUDP.HandlePacket)
	// Only the gateway itself answers a ping: the stack would answer for the whole world.
	s.net.SetTransportProtocolHandler(icmp.ProtocolNumber4, func(id stack.TransportEndpointID, _ *stack.PacketBuffer) bool {
		return id.LocalAddress != tcpip.AddrFrom4(guest.Gateway().As4())
	})
	// From here on packets come in.
	if err := s.net.CreateNIC(nic, ep); err != nil {
		return failed("attach the device", err)
	}
	gateway := tcpip.ProtocolAddress{
		Protocol: ipv4.ProtocolNumber,
		AddressWithPrefix: tcpip.AddressWithPrefix{
			Address: tcpip.AddrFrom4(guest.Gateway().As4()), PrefixLen: guest.Addr().Bits(),
		},
	}
	if err := s.net.AddProtocolAddress(nic, gateway, stack.AddressProperties{}); err != nil {
		return failed("set the gateway address", err)
	}
	// The resolver is on the sandbox's link, and so must answer ARP.
	resolver := gateway
	resolver.AddressWithPrefix.Address = tcpip.AddrFrom4(guest.Resolver().As4())
	if err := s.net.AddProtocolAddress(nic, resolver, stack.AddressProperties{}); err != nil {
		return failed("set the resolver address", err)
	}
	// Take packets to any address, answer from any address.
	if err := s.net.SetPromiscuousMode(nic, true); err != nil {
		return failed("take packets to all addresses", err)
	}
	if err := s.net.SetSpoofing(nic, true); err != nil {
		return failed("answer from all addresses", err)
	}
	s.net.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: nic}})

	return nil
}

// Serve carries packets until the context is done (nil) or the device is gone, which is what
// happens when the sandbox ends (an error). It is called once, at the end of a process.
func (s *Stack) Serve(ctx context.Context) error {
	s.work.Go(s.sweep)
	var err error
	select {
	case <-ctx.Done():
	case err = <-s.gone:
		if err == nil {
			err = errors.New("the sandbox's network device is gone")
		}
	}
	s.cancel()
	s.endFlows(func(*flow) bool { return true })
	s.work.Wait()
	s.net.Close()
	// The device is read until the process ends: whoever reads it ends only when no packet waits,
	// so that a sandbox could keep us here by sending on.
	return err
}

// Policy is the policy in force.
func (s *Stack) Policy() policy.Policy { return s.rules.Load().policy }

// SetPolicy puts another policy in force and cuts the connections that it does not allow.
func (s *Stack) SetPolicy(p policy.Policy) error {
	if err := p.Validate(); err != nil {
		return err
	}
	s.rules.Store(&rules{p, p.Compile(nil)})
	s.endFlows(func(f *flow) bool { return !s.permits(f.target, f.dns) })
	return nil
}

func (s *Stack) endFlows(which func(*flow) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for f := range s.flows {
		if which(f) {
			f.end()
		}
	}
}

// sweep ends idle flows.
func (s *Stack) sweep() {
	tick := time.NewTicker(idleUDP / 8)
	defer tick.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case now := <-tick.C:
			s.endFlows(func(f *flow) bool { return now.Sub(time.Unix(f.active.Load(), 0)) > f.idle })
		}
	}
}

// begin registers a flow if the policy and the limit allow it. The caller calls the function
// when the flow is over.
func (s *Stack) begin(target netip.AddrPort, idle time.Duration) (*flow, func(), error) {
	f := &flow{target: target, idle: idle, stop: make(chan struct{})}
	f.dns = target == netip.AddrPortFrom(guest.Resolver(), 53)
	f.touch()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return nil, nil, context.Canceled
	}
	// Under the lock, so that a flow is either judged by a new policy or seen by SetPolicy.
	if !s.permits(target, f.dns) {
		return nil, nil, errDenied
	}
	if len(s.flows) >= s.cfg.MaxFlows {
		return nil, nil, fmt.Errorf("the sandbox has %d connections already", len(s.flows))
	}
	s.flows[f] = struct{}{}
	s.work.Add(1)
	return f, func() {
		s.mu.Lock()
		delete(s.flows, f)
		s.mu.Unlock()
		s.work.Done()
	}, nil
}

var errDenied = errors.New("the network policy denies it")

func (s *Stack) permits(target netip.AddrPort, dns bool) bool {
	r := s.rules.Load()
	if dns {
		return r.policy.DNS() && len(s.cfg.Resolvers) > 0
	}
	addr := target.Addr()
	return target.Port() != 0 && r.allowed.Contains(addr) && !guest.Addr().Contains(addr) && !s.own.contains(addr)
}

// dial connects on the host in the sandbox's stead, to an address that permits has let pass.
func (s *Stack) dial(ctx context.Context, network string, target netip.AddrPort) (net.Conn, error) {
	conn, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, network, target.String())
	if err != nil {
		return nil, err
	}
	// A connection to one of the host's own addresses comes from that address: the kernel says
	// so itself, however new the address is.
	local, err := netip.ParseAddrPort(conn.LocalAddr().String())
	if err != nil || local.Addr().Unmap() == target.Addr() {
		conn.Close()
		return nil, errDenied
	}
	return conn, nil
}

// dialResolver connects to the first resolver that can be reached.
func (s *Stack) dialResolver(ctx context.Context, network string) (net.Conn, error) {
	var errs error
	for _, r := range s.cfg.Resolvers {
		conn, err := (&net.Dialer{Timeout: resolveTimeout}).DialContext(ctx, network, netip.AddrPortFrom(r, 53).String())
		if err == nil {
			return conn, nil
		}
		errs = errors.Join(errs, err)
	}
	return nil, errs
}

// ownAddresses are the addresses of this machine, as of a moment ago.
type ownAddresses struct {
	mu    sync.Mutex
	until time.Time
	addrs []netip.Prefix
}

// The interval bounds how long a new address of the host could be missed; dial catches it even
// then.
const ownInterval = time.Second

func (o *ownAddresses) contains(addr netip.Addr) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if now := time.Now(); now.After(o.until) {
		addrs, err := hostPrefixes()
		if err != nil {
			return true // better deny too much
		}
		o.addrs, o.until = addrs, now.Add(ownInterval)
	}
	for _, p := range o.addrs {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}

// hostPrefixes are the addresses of the machine's interfaces, and the two addresses of each link
// to a sandbox of the kernel kind (named dtn…, see package network).
func hostPrefixes() ([]netip.Prefix, error) {
	links, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	var prefixes []netip.Prefix
	for _, link := range links {
		addrs, err := link.Addrs()
		if err != nil {
			continue // gone meanwhile
		}
		for _, a := range addrs {
			p, err := netip.ParsePrefix(a.String())
			if err != nil || !p.Addr().Is4() {
				continue
			}
			if len(link.Name) < 3 || link.Name[:3] != "dtn" {
				p = netip.PrefixFrom(p.Addr(), 32)
			}
			prefixes = append(prefixes, p.Masked())
		}
	}
	return prefixes, nil
}

// copyBuffers are for packets and streams alike.
var copyBuffers = sync.Pool{New: func() any { b := make([]byte, 64<<10); return &b }}

// stream copies one direction of a connection.
func stream(f *flow, to, from net.Conn) error {
	buf := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(buf)
	for {
		n, err := from.Read((*buf)[:32<<10])
		if n > 0 {
			f.touch()
			if _, err := to.Write((*buf)[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			if half, ok := to.(interface{ CloseWrite() error }); ok {
				return half.CloseWrite()
			}
			return nil
		}
		if err != nil {
			return err
		}
	}
}
