package policy

import (
	"bufio"
	"bytes"
	"net/netip"
	"slices"
	"strings"
)

// MaxResolvers is how many nameservers are used: as many as the C library looks at (MAXNS of
// resolv.h).
const MaxResolvers = 3

// ParseNameservers reads the nameserver lines of a resolv.conf, in order and without repetition.
// What it cannot read it passes over, as the C library does.
func ParseNameservers(conf []byte) []netip.Addr {
	var found []netip.Addr
	lines := bufio.NewScanner(bytes.NewReader(conf))
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		addr, err := netip.ParseAddr(fields[1])
		if err != nil {
			continue
		}
		if addr = addr.Unmap(); !slices.Contains(found, addr) {
			found = append(found, addr)
		}
	}
	return found
}

// PublicResolvers are used where the host names none that a sandbox could reach.
func PublicResolvers() []netip.Addr {
	return []netip.Addr{netip.AddrFrom4([4]byte{1, 1, 1, 1}), netip.AddrFrom4([4]byte{8, 8, 8, 8})}
}

// ResolvConf is the content of a sandbox's /etc/resolv.conf. The search list of the host is left
// out: it would send every name to the host's domains first.
func ResolvConf(resolvers []netip.Addr) string {
	var b strings.Builder
	for _, r := range resolvers {
		b.WriteString("nameserver " + r.String() + "\n")
	}
	if len(resolvers) > 0 {
		// Sandboxes have no IPv6: a resolver that loses one of two simultaneous questions (A and
		// AAAA over one socket, common behind NAT) would cost five seconds otherwise.
		b.WriteString("options timeout:2 attempts:3 single-request-reopen\n")
	}
	return b.String()
}
