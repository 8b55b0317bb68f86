package network

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona/internal/network/nl"
	"github.com/daytona-go/daytona/internal/network/policy"
)

// Namespace is the network namespace of one sandbox. It exists as long as a process is in it or a
// descriptor of it is open, whichever is longer; there is nothing else to clean up.
type Namespace struct {
	host *Host
	file *os.File
	addr netip.Addr // invalid without network

	mu     sync.Mutex
	closed bool
}

// File is the namespace's descriptor, to pass to a child or to setns. It stays the Namespace's
// and is closed by Close.
func (n *Namespace) File() *os.File { return n.file }

// Addr is the sandbox's own address; invalid if it has no network.
func (n *Namespace) Addr() netip.Addr { return n.addr }

// Gateway is the host's end of the sandbox's link; invalid if the sandbox has no network. It is
// also the address that connections which the host opens to the sandbox come from.
func (n *Namespace) Gateway() netip.Addr {
	if !n.addr.IsValid() {
		return netip.Addr{}
	}
	return n.addr.Prev()
}

// LinkName is the name of the host's end of the link; empty if the sandbox has no network.
func (n *Namespace) LinkName() string {
	if !n.addr.IsValid() {
		return ""
	}
	return linkName(n.Gateway())
}

// Close lets go of the namespace. The processes in it keep it; without any, the kernel removes
// it.
func (n *Namespace) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return nil
	}
	n.closed = true
	return n.file.Close()
}

func linkName(gateway netip.Addr) string {
	b := gateway.As4()
	return fmt.Sprintf("%s%08x", linkPrefix, binary.BigEndian.Uint32(b[:]))
}

// Create makes a namespace with the policy in force. The rules are in place before its interface
// comes up.
func (h *Host) Create(ctx context.Context, p Policy) (*Namespace, error) {
	if err := p.Validate(); err != nil {
		return nil, err
	}
	if err := h.usable(ctx); err != nil {
		return nil, fmt.Errorf("create a network namespace: %w", err)
	}
	if p.Mode == None {
		if n := h.offline.take(); n != nil {
			return n, nil
		}
		return h.make(ctx, p)
	}
	if n := h.ready.take(); n != nil {
		if p.Equal(h.ready.policy) {
			return n, nil
		}
		if err := n.SetPolicy(ctx, p); err != nil {
			n.Close()
			return nil, err
		}
		return n, nil
	}
	return h.make(ctx, p)
}

func (h *Host) usable(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if h.ctx.Err() != nil {
		return ErrClosed
	}
	return nil
}

func (h *Host) make(ctx context.Context, p Policy) (*Namespace, error) {
	n := &Namespace{host: h}
	denied, err := h.denied()
	if err != nil {
		return nil, err
	}
	err = away(h.home, func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("create a network namespace: %w", err)
		}
		var err error
		if n.file, err = ownNamespace(); err != nil {
			return err
		}
		writeSysctls(h.log)
		rt, err := nl.Dial(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer rt.Close()
		if p.Mode == None {
			return rt.Do(nl.LinkUp(1))
		}
		gateway, err := h.addLink(ctx, rt)
		if err != nil {
			return err
		}
		n.addr = gateway.Next()
		if err := h.applyInside(n.addr, p, denied); err != nil {
			return err
		}
		if err := rt.Do(
			nl.LinkUp(1),
			nl.AddAddr(insideIndex, netip.PrefixFrom(n.addr, 31)),
			nl.LinkUp(insideIndex),
			nl.AddRoute(insideIndex, netip.PrefixFrom(netip.IPv4Unspecified(), 0), gateway),
		); err != nil {
			return err
		}
		if err := h.raise(gateway); err != nil {
			return err
		}
		return rt.WaitOperational(insideName)
	})
	if err != nil {
		if n.file != nil {
			n.file.Close() // and with it everything that was made
		}
		return nil, fmt.Errorf("create a sandbox's network: %w", err)
	}
	return n, nil
}

// addLink makes the veth pair of the first free slot, from within the sandbox's namespace, and
// returns the gateway address. Both ends are down.
func (h *Host) addLink(ctx context.Context, rt *nl.Conn) (netip.Addr, error) {
	base := h.prefix.Addr().As4()
	slots := uint32(1) << (31 - h.prefix.Bits())
	// Addresses are used in turn, to keep answers to a sandbox that is gone from reaching the
	// next one. The first and the last are left out: they look like a network's own addresses.
	for range slots {
		slot := h.next.Add(1) % slots
		if slot == 0 || slot == slots-1 {
			continue
		}
		if err := ctx.Err(); err != nil {
			return netip.Addr{}, err
		}
		var a [4]byte
		binary.BigEndian.PutUint32(a[:], binary.BigEndian.Uint32(base[:])+2*slot)
		gateway := netip.AddrFrom4(a)
		err := rt.Do(nl.AddVeth(
			nl.VethEnd{Name: insideName, Index: insideIndex},
			nl.VethEnd{Name: linkName(gateway)}, int(h.home.Fd())))
		if err == nil {
			return gateway, nil
		}
		if !errors.Is(err, unix.EEXIST) {
			if errors.Is(err, unix.EOPNOTSUPP) {
				return netip.Addr{}, fmt.Errorf("%w: %w (load the kernel module veth)", ErrUnsupported, err)
			}
			return netip.Addr{}, err
		}
	}
	return netip.Addr{}, fmt.Errorf("%w: all %d of %s; choose a larger range", ErrExhausted, slots-2, h.prefix)
}

// raise brings the host's end of a link up.
func (h *Host) raise(gateway netip.Addr) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.rt == nil {
		return ErrClosed
	}
	link, err := h.rt.LinkByName(linkName(gateway))
	if err != nil {
		return err
	}
	// Refused without IPv6 in the kernel, and then not needed.
	_ = h.rt.Do(nl.LinkNoIPv6LinkLocal(link.Index))
	if err := h.rt.Do(
		nl.AddAddr(link.Index, netip.PrefixFrom(gateway, 31)),
		nl.LinkConf(link.Index, map[uint16]uint32{
			nl.ConfForwarding:      1,
			nl.ConfRPFilter:        1, // strict
			nl.ConfARPIgnore:       1, // answer for the gateway address only
			nl.ConfAcceptRedirects: 0,
			nl.ConfSendRedirects:   0,
		}),
		nl.LinkUp(link.Index),
	); err != nil {
		return err
	}
	return h.rt.WaitOperational(link.Name)
}

// applyInside puts the rules of a policy into the calling thread's namespace, in one transaction.
// Nothing is ever let through for belonging to a connection that was once allowed: each packet,
// in both directions, is judged by its address, so that a new policy ends old connections.
func (h *Host) applyInside(addr netip.Addr, p Policy, denied []netip.Prefix) error {
	nf, err := nl.Dial(unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	// Closing a firewall socket waits until replaced rules are freed, which takes some 10 ms (an
	// RCU grace period) and is nobody's business here: the new rules are in force.
	defer func() { go nf.Close() }()
	var resolvers []netip.Addr
	if p.DNS() {
		resolvers = h.resolvers
	}
	allowed := p.Compile(denied)
	if !h.noEgress.Load() {
		err = insideRules(addr, allowed, resolvers, true).commit(nf)
		// Kernels before 5.16 have no egress hook.
		if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return wrapRules(err)
		}
	}
	plain := insideRules(addr, allowed, resolvers, false).commit(nf)
	if plain == nil && h.noEgress.CompareAndSwap(false, true) {
		h.log.Warn("the kernel cannot filter raw frames (it has no netdev egress hook, Linux 5.16): a sandbox must not have CAP_NET_RAW", "error", err)
	}
	return wrapRules(plain)
}

func wrapRules(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("set the sandbox's firewall rules: %w", err)
}

// The chains of a namespace's own rules.
const (
	output = "output"
	input  = "input"
	frames = "egress"
)

// insideChains begins the rules of a namespace: two empty chains that let nothing through.
func insideChains() *batch {
	b := &batch{}
	b.table(familyInet, tableName)
	b.chain(familyInet, tableName, output, &hook{kind: "filter", number: hookOutput, priority: priorityFilter, verdict: verdictDrop})
	b.chain(familyInet, tableName, input, &hook{kind: "filter", number: hookInput, priority: priorityFilter, verdict: verdictDrop})
	b.flush(familyInet, tableName, output)
	b.flush(familyInet, tableName, input)
	return b
}

func insideRules(addr netip.Addr, allowed policy.Ranges, resolvers []netip.Addr, egress bool) *batch {
	gateway := addr.Prev()
	b := insideChains()
	add := func(chain string, parts ...[]expr.Any) { b.rule(familyInet, tableName, chain, parts...) }

	add(output, ifname(expr.MetaKeyOIFNAME, "lo"), accept())
	add(output, ipv6Only(), drop())
	add(output, ipDiffers(ipSource, addr), drop())
	for _, r := range resolvers {
		add(output, ipEquals(ipDestination, r), protocol(unix.IPPROTO_UDP), port(2, 53), accept())
		add(output, ipEquals(ipDestination, r), protocol(unix.IPPROTO_TCP), port(2, 53), accept())
	}
	add(output, ipEquals(ipDestination, gateway), ctReply(), accept())
	b.acceptRanges(familyInet, output, ipDestination, allowed, nil)
	// Refuse rather than swallow: programs fail at once instead of waiting, and connections that
	// a new policy forbids end.
	add(output, notFirstTCP(), reject(unix.NFT_REJECT_TCP_RST, 0))
	add(output, reject(unix.NFT_REJECT_ICMPX_UNREACH, unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED))

	add(input, ifname(expr.MetaKeyIIFNAME, "lo"), accept())
	add(input, ipv6Only(), drop())
	add(input, ipEquals(ipSource, gateway), accept())
	for _, r := range resolvers {
		add(input, ipEquals(ipSource, r), port(0, 53), ctReply(), accept())
	}
	b.acceptRanges(familyInet, input, ipSource, allowed, ctReply())
	// Routers on the way report from whatever address they have.
	add(input, ctState(expr.CtStateBitRELATED), protocol(unix.IPPROTO_ICMP), accept())

	if !egress {
		return b
	}
	// The same once more at the interface, for frames of packet sockets, which never see the
	// output hook.
	b.table(familyNetdev, tableName)
	b.chain(familyNetdev, tableName, frames, &hook{kind: "filter", number: hookEgress, device: insideName, priority: priorityFilter, verdict: verdictDrop})
	b.flush(familyNetdev, tableName, frames)
	add = func(chain string, parts ...[]expr.Any) { b.rule(familyNetdev, tableName, chain, parts...) }
	add(frames, etherType(expr.CmpOpEq, unix.ETH_P_ARP), accept())
	add(frames, etherType(expr.CmpOpNeq, unix.ETH_P_IP), drop())
	add(frames, ipDiffers(ipSource, addr), drop())
	for _, r := range resolvers {
		add(frames, ipEquals(ipDestination, r), protocol(unix.IPPROTO_UDP), port(2, 53), accept())
		add(frames, ipEquals(ipDestination, r), protocol(unix.IPPROTO_TCP), port(2, 53), accept())
	}
	add(frames, ipEquals(ipDestination, gateway), accept()) // the host drops what is no answer
	b.acceptRanges(familyNetdev, frames, ipDestination, allowed, nil)
	return b
}

// SetPolicy puts another policy in force, atomically: every packet meets either the old rules or
// the new ones. Connections that the new policy does not allow are cut. A namespace that was
// created with mode None has no interface and can only stay that way (ErrNoInterface); one that
// has an interface keeps it in mode None, with everything denied.
func (n *Namespace) SetPolicy(ctx context.Context, p Policy) error {
	if err := p.Validate(); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return fmt.Errorf("set a sandbox's network policy: %w", ErrClosed)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if !n.addr.IsValid() {
		if p.Mode == None {
			return nil
		}
		return fmt.Errorf("set network policy %q: %w; create a new sandbox with the policy", p.Mode, ErrNoInterface)
	}
	denied, err := n.host.denied()
	if err != nil {
		return err
	}
	return inside(n.host.home, n.file, func() error { return n.host.applyInside(n.addr, p, denied) })
}

// OpenNamespace adopts the namespace behind a descriptor (of /proc/<pid>/ns/net, say) that this
// or another engine created. It takes the file over, also when it fails.
func (h *Host) OpenNamespace(ctx context.Context, file *os.File) (*Namespace, error) {
	n := &Namespace{host: h, file: file}
	if err := h.usable(ctx); err != nil {
		file.Close()
		return nil, fmt.Errorf("adopt a network namespace: %w", err)
	}
	err := inside(h.home, file, func() error {
		if same, err := sameFile(file, h.home); err != nil || same {
			if err == nil {
				err = errors.New("it is the host's own")
			}
			return err
		}
		rt, err := nl.Dial(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer rt.Close()
		link, err := rt.LinkByName(insideName)
		if errors.Is(err, unix.ENODEV) {
			return nil // mode None
		}
		if err != nil {
			return err
		}
		addrs, err := rt.Addrs()
		if err != nil {
			return err
		}
		for _, a := range addrs {
			// Ours are always the odd one of a pair.
			if a.Index == link.Index && a.Prefix.Bits() == 31 && a.Prefix.Masked().Addr() != a.Prefix.Addr() {
				n.addr = a.Prefix.Addr()
				return nil
			}
		}
		return fmt.Errorf("its interface %s has no sandbox address; was it made by this engine?", insideName)
	})
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("adopt a network namespace: %w", err)
	}
	return n, nil
}

// OpenProcess adopts the namespace that a process is in. The caller makes sure that pid is still
// the process it means, by holding a pidfd or being its parent.
func (h *Host) OpenProcess(ctx context.Context, pid int) (*Namespace, error) {
	file, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return nil, fmt.Errorf("adopt the network namespace of process %d: %w", pid, err)
	}
	return h.OpenNamespace(ctx, file)
}

func sameFile(a, b *os.File) (bool, error) {
	x, err := a.Stat()
	if err != nil {
		return false, err
	}
	y, err := b.Stat()
	if err != nil {
		return false, err
	}
	return os.SameFile(x, y), nil
}
