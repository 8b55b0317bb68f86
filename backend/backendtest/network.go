package backendtest

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/daytona-go/daytona"
)

// hostAddress is an address of this machine other than loopback, or invalid.
func hostAddress() netip.Addr {
	for _, a := range hostAddresses() {
		if a.Is4() && !a.IsLoopback() && !a.IsLinkLocalUnicast() {
			return a
		}
	}
	return netip.Addr{}
}

func hostAddresses() []netip.Addr {
	var out []netip.Addr
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			out = append(out, p.Addr())
		}
	}
	return out
}

// listen listens on one address of the host.
func (c *env) listen(a netip.Addr) (net.Listener, string) {
	c.Helper()
	ln, err := net.Listen("tcp", netip.AddrPortFrom(a, 0).String())
	c.try("listen", err)
	c.Cleanup(func() { ln.Close() })
	return ln, ln.Addr().String()
}

// trap listens for TCP and UDP on all addresses of the host and counts what
// arrives.
type trap struct {
	port     int
	tcp, udp atomic.Int64
	from     atomic.Value
}

func (c *env) trap() *trap {
	c.Helper()
	t := &trap{}
	ln, err := net.Listen("tcp", ":0")
	c.try("listen", err)
	c.Cleanup(func() { ln.Close() })
	t.port = ln.Addr().(*net.TCPAddr).Port
	pc, err := net.ListenPacket("udp", ":"+strconv.Itoa(t.port))
	c.try("listen", err)
	c.Cleanup(func() { pc.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			t.tcp.Add(1)
			t.from.Store(conn.RemoteAddr().String())
			conn.Close()
		}
	}()
	go func() {
		buf := make([]byte, 1500)
		for {
			_, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			t.udp.Add(1)
			t.from.Store(from.String())
		}
	}()
	// The trap must work, or its silence would prove nothing.
	conn, err := net.DialTimeout("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(t.port)), 5*time.Second)
	c.try("the trap answers the host", err)
	conn.Close()
	c.eventually(5*time.Second, "the trap counts", func() error {
		if t.tcp.Load() == 0 {
			return errors.New("nothing yet")
		}
		return nil
	})
	t.tcp.Store(0)
	return t
}

func (c *env) untouched(t *trap) {
	c.Helper()
	if n := t.tcp.Load(); n > 0 {
		c.Errorf("%d TCP connections from a sandbox reached the host, the last from %v", n, t.from.Load())
	}
	if n := t.udp.Load(); n > 0 {
		c.Errorf("%d datagrams from a sandbox reached the host, the last from %v", n, t.from.Load())
	}
}

// forbidden are the addresses that no default policy lets through: those of
// this machine, and of metadata services, which never leave the machine.
func forbidden(port int) []string {
	p := strconv.Itoa(port)
	out := []string{
		"169.254.169.254:80", "169.254.170.2:80", "[::ffff:169.254.169.254]:80", "[fd00:ec2::254]:80",
		"127.0.0.1:" + p, "127.1.2.3:" + p, "[::1]:" + p, "0.0.0.0:" + p, "[::]:" + p, "[::ffff:127.0.0.1]:" + p,
	}
	for _, a := range hostAddresses() {
		if a.IsLoopback() {
			continue
		}
		out = append(out, net.JoinHostPort(a.String(), p), net.JoinHostPort(a.String(), "22"))
		if a.Is4() {
			out = append(out, fmt.Sprintf("[::ffff:%s]:%s", a, p))
			// The gateway of the host's own network is its neighbour at most.
		}
	}
	return out
}

// gateways finds the routers in a sandbox's /proc/net/route, whose numbers
// are hexadecimal in host byte order.
func gateways(route string) []string {
	var out []string
	for line := range strings.Lines(route) {
		f := strings.Fields(line)
		if len(f) < 3 || len(f[2]) != 8 || f[2] == "00000000" {
			continue
		}
		if n, err := strconv.ParseUint(f[2], 16, 32); err == nil {
			out = append(out, netip.AddrFrom4([4]byte{byte(n), byte(n >> 8), byte(n >> 16), byte(n >> 24)}).String())
		}
	}
	return out
}

func checkNetworkDenied(c *env) {
	c.open()
	t := c.trap()
	neighbour := c.victim()
	serve, line := c.begin(neighbour, "serve", "18181", "100")
	if !strings.HasPrefix(line, "serving") {
		c.Fatalf("the neighbour does not serve: %q", line)
	}
	// Positive control: the neighbour reaches its own server.
	if r := c.attack(neighbour, "dial", "127.0.0.1:18181"); !r.Attempts[0].Worked {
		c.Errorf("a sandbox does not reach its own loopback: %s", r.Attempts[0].Err)
	}
	var theirs []string
	for a := range strings.FieldsSeq(strings.TrimPrefix(line, "serving")) {
		if p, err := netip.ParsePrefix(a); err == nil && !p.Addr().IsLoopback() && !p.Addr().IsLinkLocalUnicast() {
			theirs = append(theirs, net.JoinHostPort(p.Addr().String(), "18181"))
		}
	}
	c.Logf("the neighbour has %q", theirs)
	c.eachUser(func(c *env, sb daytona.Sandbox) {
		targets := append(forbidden(t.port), theirs...)
		first := c.attack(sb, "dial", "127.0.0.1:1")
		own := first.Facts["addresses"]
		for _, g := range gateways(first.Facts["routes"]) {
			targets = append(targets, net.JoinHostPort(g, strconv.Itoa(t.port)), net.JoinHostPort(g, "22"), net.JoinHostPort(g, "2375"))
		}
		c.Logf("the attacker has %q", own)
		// Sandboxes may each have the same address in their own network; what
		// is the attacker's own is no neighbour.
		targets = c.withoutOwn(targets, own)
		begin := time.Now()
		r := c.attack(sb, append([]string{"dial"}, targets...)...)
		if d := time.Since(begin); d > c.slow(8*time.Second) {
			c.Errorf("the denials took %v together", d)
		}
		c.noneWorked(r)
		c.attack(sb, append([]string{"udp", "attack"}, targets...)...)
	})
	c.sub("DialPortStaysIn", []Capability{Ports}, func(c *env) {
		// The way in must not lead on to the host's ports.
		if conn, err := neighbour.DialPort(c.ctx, t.port); err == nil {
			conn.Close()
			c.Error("DialPort reached a port of the host")
		}
	})
	c.kill(serve)
	c.untouched(t)
}

func (c *env) withoutOwn(targets []string, own string) []string {
	var out []string
	for _, t := range targets {
		host, port, err := net.SplitHostPort(t)
		if err == nil && port == "18181" {
			mine := false
			for a := range strings.FieldsSeq(own) {
				mine = mine || strings.HasPrefix(a, host+"/")
			}
			if mine {
				continue
			}
		}
		out = append(out, t)
	}
	return out
}

// checkNetworkPolicies has policies that deny everything deny everything.
func checkNetworkPolicies(c *env) {
	c.open()
	t := c.trap()
	for what, p := range map[string]daytona.NetworkPolicy{
		"Block":              {Block: true},
		"empty Allow":        {Allow: []netip.Prefix{}},
		"empty AllowDomains": {AllowDomains: []string{}},
		"other Allow":        {Allow: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}},
		"other AllowDomains": {AllowDomains: []string{"nothing.example"}},
	} {
		c.sub(strings.ReplaceAll(what, " ", "_"), nil, func(c *env) {
			sb, err := c.client.Create(c.ctx, c.spec(func(s *daytona.Spec) { s.Network = p }))
			if errors.Is(err, errors.ErrUnsupported) {
				c.Skipf("refused: %v", err)
			}
			c.try("create", err)
			c.Cleanup(func() { c.discard(sb) })
			c.installAttacker(sb)
			for round := range 2 {
				r := c.attack(sb, append([]string{"dial"}, forbidden(t.port)...)...)
				c.noneWorked(r)
				c.attack(sb, append([]string{"udp", "attack"}, forbidden(t.port)...)...)
				if p.Block && round == 0 {
					for a := range strings.FieldsSeq(r.Facts["addresses"]) {
						if !strings.HasPrefix(a, "127.") && !strings.HasPrefix(a, "::1/") && !strings.HasPrefix(a, "fe80") {
							c.Logf("a blocked sandbox has address %s", a)
						}
					}
				}
				if round == 0 {
					// The policy outlives a restart.
					c.try("stop", sb.Stop(c.ctx, nil))
					c.try("start", sb.Start(c.ctx))
					c.installAttacker(sb)
				}
			}
			if serve, line := c.begin(sb, "serve", "18282", "30"); strings.HasPrefix(line, "serving") {
				if c.has(Ports) {
					conn, err := sb.DialPort(c.ctx, 18282)
					if err != nil {
						c.Errorf("DialPort into a sandbox whose policy is %s: %v", what, err)
					} else {
						_, _ = bufio.NewReader(conn).ReadByte()
						conn.Close()
					}
				}
				c.kill(serve)
			}
		})
	}
	c.untouched(t)
}
