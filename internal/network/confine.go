package network

import (
	"net/netip"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona/internal/network/nl"
	"github.com/daytona-go/daytona/internal/network/policy"
)

// Confine puts a policy in force inside the calling thread's own network namespace, in one
// transaction. It is for sandboxes whose namespace somebody else made, such as a container engine:
// whoever calls it must give up CAP_NET_ADMIN, and with it the way back, before anything of the
// sandbox runs there. denied is what no policy opens, the machine's own addresses above all.
//
// Names are resolved by resolvers, which are reached on port 53 while the policy allows DNS.
//
// agent is a TCP port that answers to the outside, whatever the policy, and not to the sandbox's own
// programs; 0 is none.
func Confine(p Policy, denied []netip.Prefix, resolvers []netip.Addr, agent uint16) error {
	if err := p.Validate(); err != nil {
		return err
	}
	nf, err := nl.Dial(unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	defer nf.Close()
	if !p.DNS() {
		resolvers = nil
	}
	return wrapRules(confinement(p.Compile(denied), resolvers, agent).commit(nf))
}

// confinement are the rules of Confine. As in insideRules, nothing is let through for belonging to
// a connection, but for answers to those from inside; and what is refused fails at once.
func confinement(allowed policy.Ranges, resolvers []netip.Addr, agent uint16) *batch {
	b := insideChains()
	add := func(chain string, parts ...[]expr.Any) { b.rule(familyInet, tableName, chain, parts...) }

	if agent != 0 {
		add(output, ifname(expr.MetaKeyOIFNAME, "lo"), protocol(unix.IPPROTO_TCP), port(2, agent), reject(unix.NFT_REJECT_TCP_RST, 0))
	}
	add(output, ifname(expr.MetaKeyOIFNAME, "lo"), accept())
	add(output, ipv6Only(), drop())
	if agent != 0 {
		add(output, protocol(unix.IPPROTO_TCP), port(0, agent), ctReply(), accept())
	}
	for _, r := range resolvers {
		add(output, ipEquals(ipDestination, r), protocol(unix.IPPROTO_UDP), port(2, 53), accept())
		add(output, ipEquals(ipDestination, r), protocol(unix.IPPROTO_TCP), port(2, 53), accept())
	}
	b.acceptRanges(familyInet, output, ipDestination, allowed, nil)
	add(output, notFirstTCP(), reject(unix.NFT_REJECT_TCP_RST, 0))
	add(output, reject(unix.NFT_REJECT_ICMPX_UNREACH, unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED))

	add(input, ifname(expr.MetaKeyIIFNAME, "lo"), accept())
	add(input, ipv6Only(), drop())
	if agent != 0 {
		add(input, protocol(unix.IPPROTO_TCP), port(2, agent), accept())
	}
	for _, r := range resolvers {
		add(input, ipEquals(ipSource, r), port(0, 53), ctReply(), accept())
	}
	b.acceptRanges(familyInet, input, ipSource, allowed, ctReply())
	add(input, ctState(expr.CtStateBitRELATED), protocol(unix.IPPROTO_ICMP), accept())
	return b
}

// HostAddresses are the addresses of this machine's interfaces, which no sandbox may reach.
func HostAddresses() ([]netip.Prefix, error) {
	addrs, err := hostAddresses()
	if err != nil {
		return nil, err
	}
	var own []netip.Prefix
	for _, a := range addrs {
		if a.Is4() {
			own = append(own, netip.PrefixFrom(a, 32))
		}
	}
	return own, nil
}
