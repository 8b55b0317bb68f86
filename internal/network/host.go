package network

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona/internal/network/nl"
	"github.com/daytona-go/daytona/internal/network/policy"
)

const (
	// tableName is the name of our firewall table, on the host and in each sandbox's namespace.
	tableName = "daytona"
	// linkPrefix begins the name of the host's end of every veth pair. The rest is the
	// sandbox's gateway address in hexadecimal, so that the kernel itself, by refusing a name
	// that is taken, keeps all engines on a machine from using an address twice.
	linkPrefix = "dtn"
	// insideName is the name of the sandbox's end.
	insideName = "eth0"
	// insideIndex is the interface number of the sandbox's end. Low numbers may be taken by the
	// fallback devices that tunnel modules put into every namespace.
	insideIndex = 100
)

// Errors that callers can act on.
var (
	// ErrUnsupported is a machine, or a user, that cannot have kernel networking.
	ErrUnsupported = errors.New("kernel networking is not available")
	// ErrNoPrefix is a machine whose routes overlap every address range that we would use.
	ErrNoPrefix = errors.New("no free address range for sandboxes")
	// ErrExhausted is an address range with no free address left.
	ErrExhausted = errors.New("all sandbox addresses are in use")
	// ErrNoInterface is a namespace that was created with mode None, and so cannot be given a
	// network later.
	ErrNoInterface = errors.New("the sandbox was created without a network")
	// ErrClosed is a Host or Namespace used after Close.
	ErrClosed = errors.New("closed")
)

// HostOptions configures OpenHost. The zero value is good.
type HostOptions struct {
	// Prefix is the IPv4 range that sandbox addresses come from, two to a sandbox; between /8
	// and /29. Defaults to the first of 10.200.0.0/16 … 10.239.0.0/16 that overlaps no route,
	// address or resolver of the host.
	Prefix netip.Prefix
	// Resolvers are the nameservers that sandboxes may ask. Defaults to the host's own, see
	// Resolvers.
	Resolvers []netip.Addr
	// Uplinks are interfaces, besides those of the default routes, through which sandboxes
	// reach something: a VPN, say, that an allow list names addresses behind. Forwarding is
	// switched on for them.
	Uplinks []string
	// Ready is how many namespaces are kept ready, with the default policy, so that Create
	// takes no time. Defaults to none.
	Ready int
	// ReadyOffline is the same for mode None. Defaults to none.
	ReadyOffline int
	// MaxFlows is how many connections through the host one sandbox may have at a time, so that
	// it cannot fill the host's connection table. Defaults to 4096. The table is shared by all
	// engines on the machine: the last one opened decides.
	MaxFlows uint32
	// Log receives what is worth knowing. Defaults to discarding it.
	Log *slog.Logger
}

// Host is the host's side of kernel networking. It is safe for concurrent use, and any number of
// them, in any number of processes, may be open at once.
type Host struct {
	opts      HostOptions
	log       *slog.Logger
	home      *os.File // the host's network namespace
	prefix    netip.Prefix
	resolvers []netip.Addr
	next      atomic.Uint32 // where to look for a free slot
	noEgress  atomic.Bool   // the kernel has no egress hook

	mu sync.Mutex // guards the sockets
	rt *nl.Conn
	nf *nl.Conn

	cancel  context.CancelFunc
	ctx     context.Context
	workers sync.WaitGroup
	ready   *pool
	offline *pool
}

// OpenHost prepares the host for sandboxes, and leaves alone what is prepared already. What it
// changes is listed in docs/network.md: the firewall table "daytona", IPv4 forwarding on the
// uplinks, and, where Docker filters forwarded packets, two rules in Docker's chain for that
// purpose. It needs root (CAP_NET_ADMIN and CAP_SYS_ADMIN); without, the error is ErrUnsupported.
func OpenHost(ctx context.Context, opts *HostOptions) (*Host, error) {
	h := &Host{}
	if opts != nil {
		h.opts = *opts
	}
	if h.log = h.opts.Log; h.log == nil {
		h.log = slog.New(slog.DiscardHandler)
	}
	if h.opts.MaxFlows == 0 {
		h.opts.MaxFlows = 4096
	}
	if err := h.open(ctx); err != nil {
		h.Close()
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
			return nil, fmt.Errorf("%w: %w (it needs root; run as root or use rootless networking)", ErrUnsupported, err)
		}
		return nil, err
	}
	return h, nil
}

func (h *Host) open(ctx context.Context) error {
	h.ctx, h.cancel = context.WithCancel(context.WithoutCancel(ctx))
	var err error
	if h.home, err = ownNamespace(); err != nil {
		return err
	}
	if h.rt, err = nl.Dial(unix.NETLINK_ROUTE); err != nil {
		return err
	}
	if h.nf, err = nl.Dial(unix.NETLINK_NETFILTER); err != nil {
		return fmt.Errorf("%w: %w (is the kernel built with nftables?)", ErrUnsupported, err)
	}
	if h.resolvers = slices.Clone(h.opts.Resolvers); h.resolvers == nil {
		if h.resolvers, err = Resolvers(); err != nil {
			return err
		}
	}
	for _, r := range h.resolvers {
		if !r.Is4() || r.IsLoopback() || r.IsUnspecified() || r.IsMulticast() {
			return fmt.Errorf("resolver %s cannot be reached from a sandbox: give IPv4 unicast addresses that are not loopback", r)
		}
	}
	if err := h.choosePrefix(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := h.install(); err != nil {
		return err
	}
	if err := h.enableForwarding(); err != nil {
		return err
	}
	for _, warning := range h.passForeignFirewalls() {
		h.log.Warn("sandboxes may have no network", "reason", warning)
	}
	h.next.Store(rand.Uint32())
	h.ready = newPool(h, Policy{}, h.opts.Ready)
	h.offline = newPool(h, Policy{Mode: None}, h.opts.ReadyOffline)
	h.workers.Go(h.guardRules)
	return nil
}

// Prefix is the range that sandbox addresses come from.
func (h *Host) Prefix() netip.Prefix { return h.prefix }

// Resolvers are the nameservers that sandboxes may ask.
func (h *Host) Resolvers() []netip.Addr { return slices.Clone(h.resolvers) }

// ResolvConf is the content of /etc/resolv.conf for a sandbox with the policy.
func (h *Host) ResolvConf(p Policy) string {
	if !p.DNS() {
		return ""
	}
	return policy.ResolvConf(h.resolvers)
}

// Close stops the background work and lets go of the namespaces that nobody has taken. Sandboxes
// that run keep their network, and the host stays prepared for the next engine; RemoveHostRules
// undoes that.
func (h *Host) Close() error {
	if h.cancel == nil {
		return nil
	}
	h.cancel()
	h.workers.Wait()
	h.ready.drain()
	h.offline.drain()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.rt != nil {
		h.rt.Close()
		h.rt = nil
	}
	if h.nf != nil {
		h.nf.Close()
		h.nf = nil
	}
	// home stays open for namespaces still in use; the last reference closes it.
	return nil
}

// Resolvers are the nameservers of this host that a sandbox can reach: those of
// /etc/resolv.conf (of systemd-resolved's own file where that names only its stub) that are IPv4
// and not an address of the host itself. If there is none: 1.1.1.1 and 8.8.8.8.
func Resolvers() ([]netip.Addr, error) {
	own, err := hostAddresses()
	if err != nil {
		return nil, err
	}
	for _, file := range []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"} {
		conf, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		usable := slices.DeleteFunc(policy.ParseNameservers(conf), func(a netip.Addr) bool {
			return !a.Is4() || a.IsLoopback() || a.IsUnspecified() || a.IsMulticast() || slices.Contains(own, a)
		})
		if len(usable) > 0 {
			return usable[:min(len(usable), policy.MaxResolvers)], nil
		}
	}
	return policy.PublicResolvers(), nil
}

// hostAddresses are all addresses of this machine's interfaces.
func hostAddresses() ([]netip.Addr, error) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("list this host's addresses: %w", err)
	}
	var own []netip.Addr
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			own = append(own, p.Addr().Unmap())
		}
	}
	return own, nil
}

func (h *Host) choosePrefix() error {
	taken, err := h.takenPrefixes()
	if err != nil {
		return err
	}
	if p := h.opts.Prefix; p.IsValid() {
		if !p.Addr().Is4() || p.Bits() < 8 || p.Bits() > 29 || p.Masked() != p {
			return fmt.Errorf("sandbox address range %s: it must be an IPv4 network between /8 and /29", p)
		}
		for _, t := range taken {
			if t.Overlaps(p) {
				return fmt.Errorf("%w: %s overlaps %s, which this host uses already; choose another range", ErrNoPrefix, p, t)
			}
		}
		h.prefix = p
		return nil
	}
	for second := byte(200); second < 240; second++ {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, second, 0, 0}), 16)
		if !slices.ContainsFunc(taken, p.Overlaps) {
			h.prefix = p
			return nil
		}
	}
	return fmt.Errorf("%w: the routes of this host overlap each of 10.200.0.0/16 to 10.239.0.0/16; give a range that is free", ErrNoPrefix)
}

// takenPrefixes are what the host's routes, addresses and resolvers occupy, other than sandboxes.
func (h *Host) takenPrefixes() ([]netip.Prefix, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	links, err := h.rt.Links()
	if err != nil {
		return nil, err
	}
	sandboxes := map[int32]bool{}
	for _, l := range links {
		if strings.HasPrefix(l.Name, linkPrefix) {
			sandboxes[l.Index] = true
		}
	}
	var taken []netip.Prefix
	routes, err := h.rt.Routes()
	if err != nil {
		return nil, err
	}
	for _, r := range routes {
		// A default route, also one in halves as VPNs write it, takes no range.
		if !sandboxes[r.Index] && r.To.Bits() > 1 {
			taken = append(taken, r.To)
		}
	}
	addrs, err := h.rt.Addrs()
	if err != nil {
		return nil, err
	}
	for _, a := range addrs {
		if !sandboxes[a.Index] {
			taken = append(taken, a.Prefix.Masked())
		}
	}
	for _, r := range h.resolvers {
		taken = append(taken, netip.PrefixFrom(r, 32))
	}
	return taken, nil
}

// denied are the addresses that no policy opens, besides those that no policy opens anywhere.
func (h *Host) denied() ([]netip.Prefix, error) {
	own, err := hostAddresses()
	if err != nil {
		return nil, err
	}
	denied := []netip.Prefix{h.prefix}
	for _, a := range own {
		// The gateway addresses of sandboxes lie within the prefix; with thousands of them
		// the list must not grow.
		if a.Is4() && !h.prefix.Contains(a) {
			denied = append(denied, netip.PrefixFrom(a, 32))
		}
	}
	return denied, nil
}

// hostRules is the static table of the host.
func (h *Host) hostRules() *batch {
	const (
		from     = "from_sandbox"
		toHost   = "to_host"
		outbound = "outbound"
		inbound  = "inbound"
		flows    = "flows"
	)
	any := linkPrefix + "*"
	b := &batch{}
	b.table(familyInet, tableName)
	b.deleteTable(familyInet, tableName)
	b.table(familyInet, tableName)
	b.flowSet(familyInet, tableName, flows)
	for _, name := range []string{from, toHost, outbound, inbound} {
		b.chain(familyInet, tableName, name, nil)
	}
	add := func(chain string, parts ...[]expr.Any) { b.rule(familyInet, tableName, chain, parts...) }

	// Before anybody's destination NAT: a port that Docker publishes on the host's address would
	// otherwise be rewritten to a container's before it could be seen to be the host's.
	b.chain(familyInet, tableName, "prerouting", &hook{kind: "filter", number: hookPrerouting, priority: priorityMangle, verdict: verdictAccept})
	add("prerouting", ifname(expr.MetaKeyIIFNAME, any), jump(from))
	add(from, ipv6Only(), drop())
	add(from, unroutableSource(), drop())
	add(from, ctReply(), accept())
	add(from, notUnicast(), drop())
	// A cloud's resolver may sit on its metadata address; which resolvers are open on port 53 is
	// for the rules in the sandbox's namespace to say.
	add(from, protocol(unix.IPPROTO_UDP), port(2, 53), accept())
	add(from, protocol(unix.IPPROTO_TCP), port(2, 53), accept())
	add(from, ipIn(ipDestination, b.ranges(familyInet, tableName, policy.Never())), drop())

	b.chain(familyInet, tableName, "input", &hook{kind: "filter", number: hookInput, priority: priorityFilter, verdict: verdictAccept})
	add("input", ifname(expr.MetaKeyIIFNAME, any), jump(toHost))
	add(toHost, ctReply(), accept())
	add(toHost, drop())

	b.chain(familyInet, tableName, "forward", &hook{kind: "filter", number: hookForward, priority: priorityFilter, verdict: verdictAccept})
	add("forward", ifname(expr.MetaKeyIIFNAME, any), jump(outbound))
	add("forward", ifname(expr.MetaKeyOIFNAME, any), jump(inbound))
	add(outbound, ifname(expr.MetaKeyOIFNAME, any), drop())
	add(outbound, ipv6Only(), drop())
	add(outbound, ctState(expr.CtStateBitINVALID), drop())
	add(outbound, ctState(expr.CtStateBitNEW), tooManyFlows(flows, h.opts.MaxFlows), drop())
	add(inbound, ctReply(), accept())
	add(inbound, ctState(expr.CtStateBitRELATED), protocol(unix.IPPROTO_ICMP), accept())
	add(inbound, drop())

	b.chain(familyInet, tableName, "postrouting", &hook{kind: "nat", number: hookPostrouting, priority: prioritySNAT, verdict: verdictAccept})
	add("postrouting", ifname(expr.MetaKeyIIFNAME, any), []expr.Any{&expr.Masq{}})
	// The mark says that all of this, in this version, is there: see installed.
	b.chain(familyInet, tableName, markName(b), nil)
	return b
}

// markName is the name of an empty chain that tells which rules a table holds.
func markName(b *batch) string {
	sum := fnv.New64a()
	for _, m := range b.msgs {
		fmt.Fprintf(sum, "%d %d ", m.Type, m.Flags)
		sum.Write(m.Body)
	}
	return fmt.Sprintf("rules_%016x", sum.Sum64())
}

// install puts the static table on the host unless it is there. All engines of one version
// write the same rules, so it does not matter who comes first or whether two come at once; of
// two versions the last one opened wins.
func (h *Host) install() error {
	rules := h.hostRules()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.nf == nil {
		return fmt.Errorf("install the host's firewall rules: %w", ErrClosed)
	}
	last := rules.msgs[len(rules.msgs)-1]
	get := nl.Message{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETCHAIN, Body: last.Body}
	err := h.nf.Do(get)
	if err == nil {
		return nil
	}
	if !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("look at the host's firewall rules: %w", err)
	}
	if err := rules.commit(h.nf); err != nil {
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT) {
			return fmt.Errorf("%w: install the host's firewall rules: %w (the kernel needs nftables with nat, masquerade, fib, ct and connlimit; load nf_tables and its modules)", ErrUnsupported, err)
		}
		return fmt.Errorf("install the host's firewall rules: %w", err)
	}
	return nil
}

func (h *Host) reinstall() error {
	var body nl.Buffer
	body.String(unix.NFTA_TABLE_NAME, tableName)
	h.mu.Lock()
	if h.nf == nil {
		h.mu.Unlock()
		return nil
	}
	err := h.nf.Do(nl.Message{
		Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETTABLE,
		Body: append([]byte{familyInet, unix.NFNETLINK_V0, 0, 0}, body.Bytes()...),
	})
	h.mu.Unlock()
	if !errors.Is(err, unix.ENOENT) {
		return err
	}
	h.log.Warn("somebody removed the host's firewall rules for sandboxes; putting them back")
	return h.install()
}

// guardRules puts the host's table back when somebody flushes the firewall. Until it is back
// sandboxes have no way out, since nothing masquerades them, and their own rules hold as before.
func (h *Host) guardRules() {
	var watch *nl.Conn
	err := away(h.home, func() (err error) {
		if err := unix.Setns(int(h.home.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		watch, err = nl.Dial(unix.NETLINK_NETFILTER)
		return err
	})
	if err != nil {
		h.log.Warn("cannot watch the host's firewall rules", "error", err)
		return
	}
	defer watch.Close()
	if err := unix.SetsockoptInt(watch.FD(), unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, unix.NFNLGRP_NFTABLES); err != nil {
		h.log.Warn("cannot watch the host's firewall rules", "error", err)
		return
	}
	wake, closing, err := os.Pipe()
	if err != nil {
		h.log.Warn("cannot watch the host's firewall rules", "error", err)
		return
	}
	defer wake.Close()
	context.AfterFunc(h.ctx, func() { closing.Close() })
	buf := make([]byte, 64<<10)
	for {
		fds := []unix.PollFd{{Fd: int32(watch.FD()), Events: unix.POLLIN}, {Fd: int32(wake.Fd()), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
			h.log.Warn("stopped watching the host's firewall rules", "error", err)
			return
		}
		if h.ctx.Err() != nil {
			return
		}
		if fds[0].Revents == 0 {
			continue
		}
		// What changed does not matter (and with ENOBUFS is not even known): look at the result.
		for {
			if _, _, err := unix.Recvfrom(watch.FD(), buf, unix.MSG_DONTWAIT); err != nil {
				break
			}
		}
		// Only when there is no table at all: two versions of this program, or two settings,
		// would take turns for ever otherwise.
		if err := h.reinstall(); err != nil {
			h.log.Error("sandboxes have no network: the host's firewall rules are gone", "error", err)
		}
	}
}

const confDir = "/proc/sys/net/ipv4/conf"

// enableForwarding lets packets in from the uplinks and out to sandboxes. It is switched on for
// single interfaces, not for the whole machine (net.ipv4.ip_forward stays as it is).
func (h *Host) enableForwarding() error {
	uplinks, err := h.uplinks()
	if err != nil {
		return err
	}
	for name, index := range uplinks {
		file := filepath.Join(confDir, name, "forwarding")
		now, err := os.ReadFile(file)
		if err == nil && strings.TrimSpace(string(now)) == "1" {
			continue
		}
		if err := os.WriteFile(file, []byte("1"), 0); err != nil {
			// In a container /proc/sys is often read-only while netlink works.
			h.mu.Lock()
			netlinkErr := h.rt.Do(nl.LinkConf(index, map[uint16]uint32{nl.ConfForwarding: 1}))
			h.mu.Unlock()
			if netlinkErr != nil {
				return fmt.Errorf("enable IPv4 forwarding on %s: %w", name, errors.Join(err, netlinkErr))
			}
		}
		h.log.Info("enabled IPv4 forwarding", "interface", name)
	}
	return nil
}

// uplinks are the interfaces that lead out, by name.
func (h *Host) uplinks() (map[string]int32, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	links, err := h.rt.Links()
	if err != nil {
		return nil, err
	}
	routes, err := h.rt.Routes()
	if err != nil {
		return nil, err
	}
	uplinks := map[string]int32{}
	for _, l := range links {
		if strings.HasPrefix(l.Name, linkPrefix) {
			continue
		}
		named := slices.Contains(h.opts.Uplinks, l.Name)
		leadsOut := slices.ContainsFunc(routes, func(r nl.Route) bool { return r.To.Bits() <= 1 && r.Index == l.Index })
		if named || leadsOut {
			uplinks[l.Name] = l.Index
		}
	}
	for _, name := range h.opts.Uplinks {
		if _, ok := uplinks[name]; !ok {
			return nil, fmt.Errorf("uplink %q: this host has no such interface", name)
		}
	}
	return uplinks, nil
}

// RemoveHostRules takes the firewall table and Docker's two rules off the host again, for an
// uninstall. It refuses while any sandbox of any engine has a network. Forwarding stays on for
// the interfaces that it was switched on for: something else may have come to need it.
func RemoveHostRules(ctx context.Context) error {
	rt, err := nl.Dial(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer rt.Close()
	links, err := rt.Links()
	if err != nil {
		return err
	}
	for _, l := range links {
		if strings.HasPrefix(l.Name, linkPrefix) {
			return fmt.Errorf("remove the host's firewall rules: interface %s belongs to a sandbox that still runs; stop all sandboxes first", l.Name)
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	nf, err := nl.Dial(unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	defer nf.Close()
	if err := removeForeignRules(nf); err != nil {
		return err
	}
	b := &batch{}
	b.table(familyInet, tableName)
	b.deleteTable(familyInet, tableName)
	return b.commit(nf)
}

// writeSysctls sets what it can of the network settings of the calling thread's namespace.
// None of them is a wall: the rules are.
func writeSysctls(log *slog.Logger) {
	for _, s := range []struct{ name, value string }{
		{"net/ipv6/conf/all/disable_ipv6", "1"},
		{"net/ipv6/conf/default/disable_ipv6", "1"},
		{"net/ipv6/conf/lo/disable_ipv6", "0"}, // programs that listen on ::1 are common
		{"net/ipv4/ip_unprivileged_port_start", "0"},
		{"net/ipv4/ping_group_range", "0 2147483647"},
	} {
		err := os.WriteFile("/proc/sys/"+s.name, []byte(s.value), 0)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			log.Debug("a network setting of the sandbox stays at its default", "name", s.name, "error", err)
		}
	}
}

// settle is how long the pool waits after a failure before it tries again.
const settle = time.Second
