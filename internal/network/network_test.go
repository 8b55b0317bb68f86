package network

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona/internal/network/nl"
	"github.com/daytona-go/daytona/internal/network/policy"
)

const (
	webPort = "8080"
	dnsPort = "53"
)

func allowList(t testing.TB, list ...string) Policy {
	t.Helper()
	if list == nil {
		list = []string{}
	}
	p, err := ParsePolicy(false, list)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// deniedByDefault are destinations that the default policy denies. Each of them answers: the
// world has it, or the machine, or (IPv6) it would take a route that a sandbox must not have.
var deniedByDefault = map[string]string{
	"metadata":                 "169.254.169.254",
	"Alibaba metadata":         "100.100.100.200",
	"Azure host agent":         "168.63.129.16",
	"Oracle metadata":          "192.0.0.192",
	"link-local":               "169.254.1.1",
	"private 10/8":             "10.1.2.3",
	"private 172.16/12":        "172.16.5.5",
	"private 172.16/12 end":    "172.31.255.254",
	"private 192.168/16":       "192.168.7.7",
	"carrier NAT":              "100.64.0.5",
	"benchmarking":             "198.18.0.5",
	"benchmarking end":         "198.19.255.5",
	"documentation 1":          "192.0.2.1",
	"documentation 2":          "198.51.100.9",
	"documentation 3":          "203.0.113.9",
	"6to4 relay":               "192.88.99.1",
	"reserved":                 "240.0.0.9",
	"broadcast":                "255.255.255.255",
	"multicast":                "224.0.0.1",
	"host uplink":              "192.0.2.2",
	"host public address":      "9.9.8.2",
	"host private address":     "10.99.0.2",
	"mapped metadata":          "[::ffff:169.254.169.254]",
	"mapped private":           "[::ffff:10.1.2.3]",
	"mapped host":              "[::ffff:192.0.2.2]",
	"IPv6 metadata":            "[fd00:ec2::254]",
	"IPv6 unique local":        "[fc00::1]",
	"IPv6 link-local":          "[fe80::1%eth0]",
	"IPv6 multicast":           "[ff02::1%eth0]",
	"IPv6 NAT64":               "[64:ff9b::a9fe:a9fe]",
	"IPv6 6to4":                "[2002:a9fe:a9fe::1]",
	"IPv6 Teredo":              "[2001:0:a9fe:a9fe::1]",
	"IPv6 public":              "[2620:fe::fe]",
	"IPv6 documentation":       "[2001:db8::1]",
	"IPv4-compatible metadata": "[::a9fe:a9fe]",
}

func TestDefaultPolicy(t *testing.T) {
	m := newMachine(t)
	m.echo(t, m.world, 8080)
	m.echo(t, m.world, 53)
	m.echo(t, m.home, 8080)
	m.echo(t, m.home, 53)
	h := openHost(t, nil)
	n := create(t, h, Policy{})
	other := create(t, h, Policy{})
	m.echo(t, other.File(), 8080)

	for name, target := range map[string]string{
		"a public address":       "9.9.9.9:" + webPort,
		"another":                "203.0.114.7:" + webPort,
		"a public DNS server":    "8.8.8.8:" + dnsPort,
		"the resolver's port 53": "10.1.2.3:" + dnsPort,
	} {
		if err := m.tcp(n.File(), target); err != nil {
			t.Errorf("TCP to %s (%s): %v", name, target, err)
		}
		if err := m.udp(n.File(), target); err != nil {
			t.Errorf("UDP to %s (%s): %v", name, target, err)
		}
	}
	denied := map[string]string{
		"gateway":       n.Gateway().String(),
		"other sandbox": other.Addr().String(),
		"other gateway": other.Gateway().String(),
	}
	for name, host := range deniedByDefault {
		denied[name] = host
	}
	for name, host := range denied {
		ports := []string{webPort, dnsPort}
		if host == "10.1.2.3" || host == "[::ffff:10.1.2.3]" {
			ports = ports[:1] // the resolver
		}
		for _, port := range ports {
			if err := m.tcpRefused(n.File(), host+":"+port); err == nil {
				t.Errorf("TCP to %s (%s:%s) is open", name, host, port)
			}
			if err := m.udpRefused(n.File(), host+":"+port); err == nil {
				t.Errorf("UDP to %s (%s:%s) is open", name, host, port)
			}
		}
	}
	// The targets do answer those that are allowed to ask.
	for name, host := range denied {
		if strings.HasPrefix(host, "[") || host == "224.0.0.1" || host == "255.255.255.255" || host == "240.0.0.9" || name == "other gateway" || name == "gateway" {
			continue
		}
		if err := m.tcp(m.home, host+":"+webPort); err != nil {
			t.Errorf("the test proves nothing: %s (%s) does not answer the machine itself: %v", name, host, err)
		}
	}
}

// The host's walls must hold without the rules inside the sandbox's namespace.
func TestHostHoldsAlone(t *testing.T) {
	m := newMachine(t)
	m.echo(t, m.world, 8080)
	m.echo(t, m.home, 8080)
	h := openHost(t, nil)
	n, other := create(t, h, Policy{}), create(t, h, Policy{})
	m.echo(t, other.File(), 8080)
	for _, ns := range []*Namespace{n, other} {
		if err := inside(m.home, ns.File(), func() error {
			nf, err := nl.Dial(unix.NETLINK_NETFILTER)
			if err != nil {
				return err
			}
			defer nf.Close()
			b := &batch{}
			b.deleteTable(familyInet, tableName)
			b.deleteTable(familyNetdev, tableName)
			return b.commit(nf)
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.tcp(n.File(), "9.9.9.9:"+webPort); err != nil {
		t.Errorf("a public address: %v", err)
	}
	if err := m.tcp(n.File(), "10.1.2.3:"+webPort); err != nil {
		t.Errorf("without rules inside, a private address must be open or this test proves nothing: %v", err)
	}
	for name, host := range map[string]string{
		"gateway":              n.Gateway().String(),
		"other sandbox":        other.Addr().String(),
		"other gateway":        other.Gateway().String(),
		"metadata":             "169.254.169.254",
		"link-local":           "169.254.1.1",
		"host uplink":          "192.0.2.2",
		"host public address":  "9.9.8.2",
		"host private address": "10.99.0.2",
	} {
		if err := m.tcpRefused(n.File(), host+":"+webPort); err == nil {
			t.Errorf("TCP to %s (%s) is open", name, host)
		}
		if err := m.udpRefused(n.File(), host+":"+webPort); err == nil {
			t.Errorf("UDP to %s (%s) is open", name, host)
		}
	}
}

func TestAllowList(t *testing.T) {
	m := newMachine(t)
	m.echo(t, m.world, 8080)
	m.echo(t, m.world, 53)
	h := openHost(t, nil)
	noDNS := allowList(t, "9.9.9.9")
	noDNS.NoDNS = true
	var many []string
	for i := range policy.MaxAllow - 1 {
		many = append(many, fmt.Sprintf("11.%d.%d.0/24", i/128, 2*(i%128)))
	}
	for _, test := range []struct {
		name         string
		policy       Policy
		open, closed []string
	}{
		{"one address", allowList(t, "9.9.9.9"), []string{"9.9.9.9:8080", "10.1.2.3:53"}, []string{"9.9.9.10:8080", "8.8.8.8:53", "10.1.2.3:8080"}},
		{"without DNS", noDNS, []string{"9.9.9.9:8080"}, []string{"10.1.2.3:53"}},
		{"a private range by name", allowList(t, "192.168.0.0/16"), []string{"192.168.7.7:8080"}, []string{"9.9.9.9:8080", "172.16.5.5:8080"}},
		{"everything is the internet only", allowList(t, "0.0.0.0/0"), []string{"9.9.9.9:8080"}, []string{"10.1.2.3:8080", "192.168.7.7:8080", "169.254.169.254:8080", "192.0.2.2:8080"}},
		{"the host's own range", allowList(t, "10.0.0.0/8", "9.9.8.0/24", "192.0.2.0/24"), []string{"10.1.2.3:8080"}, []string{"10.99.0.2:8080", "9.9.8.2:8080", "192.0.2.2:8080", "9.9.9.9:8080"}},
		{"as long as it may be", allowList(t, append(many, "9.9.9.9")...), []string{"9.9.9.9:8080"}, []string{"9.9.9.10:8080", "10.1.2.3:8080"}},
		{"empty", allowList(t), nil, []string{"9.9.9.9:8080", "10.1.2.3:53", "8.8.8.8:53"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := create(t, h, test.policy)
			for _, target := range test.open {
				if err := errors.Join(m.tcp(n.File(), target), m.udp(n.File(), target)); err != nil {
					t.Errorf("%s: %v", target, err)
				}
			}
			for _, target := range test.closed {
				if m.tcpRefused(n.File(), target) == nil || m.udpRefused(n.File(), target) == nil {
					t.Errorf("%s is open", target)
				}
			}
		})
	}
	// Allowing the sandboxes' range does not open another sandbox.
	other := create(t, h, Policy{})
	m.echo(t, other.File(), 8080)
	n := create(t, h, allowList(t, "10.0.0.0/8"))
	if m.tcpRefused(n.File(), other.Addr().String()+":8080") == nil {
		t.Error("another sandbox is reachable through an allow list")
	}
}

func TestNone(t *testing.T) {
	m := newMachine(t)
	m.echo(t, m.world, 8080)
	h := openHost(t, nil)
	n := create(t, h, Policy{Mode: None})
	if n.Addr().IsValid() || n.LinkName() != "" {
		t.Errorf("a sandbox without network has address %v, link %q", n.Addr(), n.LinkName())
	}
	err := inside(m.home, n.File(), func() error {
		links, err := net.Interfaces()
		if err != nil {
			return err
		}
		if len(links) != 1 || links[0].Name != "lo" || links[0].Flags&net.FlagUp == 0 {
			return fmt.Errorf("interfaces: %v", links)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if m.tcpRefused(n.File(), "9.9.9.9:8080") == nil {
		t.Error("the internet is open")
	}
	if err := n.SetPolicy(t.Context(), Policy{}); !errors.Is(err, ErrNoInterface) {
		t.Errorf("SetPolicy on a sandbox without network: %v", err)
	}
}

func TestSetPolicyCutsConnections(t *testing.T) {
	m := newMachine(t)
	m.echo(t, m.world, 8080)
	h := openHost(t, nil)
	n := create(t, h, Policy{})
	dial := func() net.Conn {
		var c net.Conn
		if err := inside(m.home, n.File(), func() (err error) {
			c, err = (&net.Dialer{Timeout: time.Second}).Dial("tcp", "9.9.9.9:8080")
			return err
		}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		if err := ping(c); err != nil {
			t.Fatal(err)
		}
		return c
	}
	c := dial()
	// An engine that did not create the namespace does it.
	adopted := adopt(t, h, n)
	if adopted.Addr() != n.Addr() {
		t.Errorf("adopted address %v, want %v", adopted.Addr(), n.Addr())
	}
	if err := adopted.SetPolicy(t.Context(), allowList(t, "9.9.9.10")); err != nil {
		t.Fatal(err)
	}
	if err := ping(c); err == nil {
		t.Error("an established connection survives the policy that forbids it")
	} else if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("the connection was to be reset, not left hanging: %v", err)
	}
	if m.tcpRefused(n.File(), "9.9.9.9:8080") == nil {
		t.Error("a new connection is still possible")
	}
	if err := m.tcp(n.File(), "9.9.9.10:8080"); err != nil {
		t.Errorf("the newly allowed address: %v", err)
	}
	if err := n.SetPolicy(t.Context(), Policy{}); err != nil {
		t.Fatal(err)
	}
	// A policy that goes on allowing a connection does not disturb it.
	c = dial()
	if err := n.SetPolicy(t.Context(), allowList(t, "9.9.9.0/24")); err != nil {
		t.Fatal(err)
	}
	if err := ping(c); err != nil {
		t.Errorf("a connection that stays allowed: %v", err)
	}
	if err := n.SetPolicy(t.Context(), Policy{Mode: None}); err != nil {
		t.Fatal(err)
	}
	if ping(c) == nil || m.tcpRefused(n.File(), "9.9.9.9:8080") == nil || m.udpRefused(n.File(), "10.1.2.3:53") == nil {
		t.Error("mode None leaves something open")
	}
}

func adopt(t *testing.T, h *Host, n *Namespace) *Namespace {
	t.Helper()
	fd, err := unix.FcntlInt(n.File().Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	adopted, err := h.OpenNamespace(t.Context(), os.NewFile(uintptr(fd), "netns"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { adopted.Close() })
	return adopted
}

// While policies change, nothing that all of them deny may get through, and what all of them
// allow keeps flowing.
func TestSetPolicyLeavesNoWindow(t *testing.T) {
	m := newMachine(t)
	m.echo(t, m.world, 8080)
	h := openHost(t, nil)
	n := create(t, h, Policy{})
	ctx, cancel := context.WithCancel(t.Context())
	var changer sync.WaitGroup
	changer.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			p := Policy{}
			if i%2 == 1 {
				p = Policy{Mode: AllowList, Allow: []netip.Prefix{netip.MustParsePrefix("9.9.9.9/32")}}
			}
			if err := n.SetPolicy(ctx, p); err != nil && ctx.Err() == nil {
				t.Error(err)
				return
			}
		}
	})
	for range 300 {
		if err := m.tcp(n.File(), "9.9.9.9:8080"); err != nil {
			t.Errorf("an address that every policy allows: %v", err)
			break
		}
		if m.tcpRefused(n.File(), "192.0.0.192:8080") == nil || m.tcpRefused(n.File(), "172.16.5.5:8080") == nil {
			t.Error("an address that every policy denies was reached")
			break
		}
	}
	cancel()
	changer.Wait()
}

// sendRaw sends an IP packet with a source address of one's choice, past the output hook when
// frames is set.
func (m *machine) sendRaw(n *Namespace, from, to netip.Addr, port uint16, frames bool) error {
	link, err := net.InterfaceByName(n.LinkName())
	if err != nil {
		return err
	}
	router := link.HardwareAddr
	return inside(m.home, n.File(), func() error {
		packet := udpPacket(from, to, port)
		if !frames {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			return unix.Sendto(fd, packet, 0, &unix.SockaddrInet4{Addr: to.As4()})
		}
		// The sender claims to send ARP, which is let through, and says in the frame that it is IP.
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		frame := append(append([]byte{}, router...), 2, 0, 0, 0, 0, 1, 8, 0)
		frame = append(frame, packet...)
		return unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: insideIndex, Protocol: 0x0608, Halen: 6})
	})
}

func udpPacket(from, to netip.Addr, port uint16) []byte {
	src, dst := from.As4(), to.As4()
	p := make([]byte, 28+4)
	p[0], p[8], p[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	copy(p[12:], src[:])
	copy(p[16:], dst[:])
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(p[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(p[10:], ^uint16(sum))
	binary.BigEndian.PutUint16(p[20:], 40000)
	binary.BigEndian.PutUint16(p[22:], port)
	binary.BigEndian.PutUint16(p[24:], 12)
	copy(p[28:], "hiya")
	return p
}

// listen counts the datagrams that reach a port in a namespace, by source.
func (m *machine) listen(t *testing.T, ns *os.File, port int) func() map[string]int {
	t.Helper()
	var mu sync.Mutex
	seen := map[string]int{}
	err := inside(m.home, ns, func() error {
		pc, err := net.ListenUDP("udp4", &net.UDPAddr{Port: port})
		if err != nil {
			return err
		}
		t.Cleanup(func() { pc.Close() })
		go func() {
			buf := make([]byte, 2048)
			for {
				_, from, err := pc.ReadFromUDP(buf)
				if err != nil {
					return
				}
				mu.Lock()
				seen[from.IP.String()]++
				mu.Unlock()
			}
		}()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return func() map[string]int {
		mu.Lock()
		defer mu.Unlock()
		out := map[string]int{}
		for k, v := range seen {
			out[k] = v
		}
		return out
	}
}

func TestForgedPackets(t *testing.T) {
	m := newMachine(t)
	h := openHost(t, nil)
	n, other := create(t, h, Policy{}), create(t, h, Policy{})
	world := m.listen(t, m.world, 7000)
	public, private := netip.MustParseAddr("9.9.9.9"), netip.MustParseAddr("172.16.5.5")
	forged := []netip.Addr{other.Addr(), n.Gateway(), netip.MustParseAddr("9.9.9.10"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("10.1.2.3")}
	strip := func(t *testing.T) {
		if err := inside(m.home, n.File(), func() error {
			nf, err := nl.Dial(unix.NETLINK_NETFILTER)
			if err != nil {
				return err
			}
			defer nf.Close()
			b := &batch{}
			b.deleteTable(familyInet, tableName)
			b.deleteTable(familyNetdev, tableName)
			return b.commit(nf)
		}); err != nil {
			t.Fatal(err)
		}
	}
	waitFor := func(t *testing.T, count int) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		for world()["192.0.2.2"] < count {
			select {
			case <-ctx.Done():
				t.Fatalf("honest packets do not arrive: %v", world())
			case <-time.After(time.Millisecond):
			}
		}
	}
	try := func(t *testing.T, rules bool, honest int) {
		for _, frames := range []bool{false, true} {
			for _, from := range forged {
				_ = m.sendRaw(n, from, public, 7000, frames)
			}
			if rules {
				_ = m.sendRaw(n, n.Addr(), private, 7000, frames)
			}
			// Sent after the others on the same path, so when it is there they would be.
			if err := m.sendRaw(n, n.Addr(), public, 7000, frames); err != nil {
				t.Fatalf("frames %v: %v", frames, err)
			}
			honest++
			waitFor(t, honest)
		}
		for from, count := range world() {
			if from != "192.0.2.2" || count != honest {
				t.Errorf("%d packets from %s arrived, want %d honest ones only", count, from, honest)
			}
		}
	}
	t.Run("rules inside", func(t *testing.T) { try(t, true, 0) })
	t.Run("host alone", func(t *testing.T) { strip(t); try(t, false, 2) })
}

func TestHostReachesSandbox(t *testing.T) {
	m := newMachine(t)
	h := openHost(t, nil)
	n := create(t, h, allowList(t))
	m.echo(t, n.File(), 8080)
	if err := m.tcp(m.home, n.Addr().String()+":8080"); err != nil {
		t.Errorf("the host cannot connect to a sandbox: %v", err)
	}
	if m.tcpRefused(m.world, n.Addr().String()+":8080") == nil {
		t.Error("the world can connect to a sandbox")
	}
	// Routed straight at the sandbox, as a neighbour on the host's network could.
	if err := inside(m.home, m.world, func() error {
		rt, err := nl.Dial(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer rt.Close()
		return rt.Do(nl.AddRoute(50, h.Prefix(), netip.MustParseAddr("192.0.2.2")))
	}); err != nil {
		t.Fatal(err)
	}
	if m.tcpRefused(m.world, n.Addr().String()+":8080") == nil {
		t.Error("a neighbour of the host can connect to a sandbox")
	}
}

func TestSettingsInside(t *testing.T) {
	m := newMachine(t)
	h := openHost(t, nil)
	for _, p := range []Policy{{}, {Mode: None}} {
		n := create(t, h, p)
		err := inside(m.home, n.File(), func() error {
			for name, want := range map[string]string{
				"net/ipv4/ip_unprivileged_port_start": "0",
				"net/ipv6/conf/default/disable_ipv6":  "1",
			} {
				got, err := os.ReadFile("/proc/sys/" + name)
				if errors.Is(err, os.ErrNotExist) {
					continue
				}
				if err != nil || strings.TrimSpace(string(got)) != want {
					t.Errorf("%v: %s is %q (%v), want %s", p.Mode, name, got, err, want)
				}
			}
			addrs, err := net.InterfaceAddrs()
			if err != nil {
				return err
			}
			for _, a := range addrs {
				ip := a.(*net.IPNet).IP
				if ip.To4() == nil && !ip.IsLoopback() {
					t.Errorf("%v: the sandbox has the IPv6 address %s", p.Mode, ip)
				}
			}
			ln, err := net.Listen("tcp", "[::1]:0")
			if err == nil {
				ln.Close()
			} else if _, err := os.Stat("/proc/net/if_inet6"); err == nil {
				t.Errorf("%v: no IPv6 loopback: %v", p.Mode, err)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
}

func TestParallelCreate(t *testing.T) {
	m := newMachine(t)
	m.echo(t, m.world, 8080)
	// Two engines with overlapping ranges, as two versions or two users might run.
	hosts := []*Host{
		openHost(t, nil),
		openHost(t, &HostOptions{Prefix: netip.MustParsePrefix("10.200.0.0/23"), MaxFlows: 100}),
	}
	var mu sync.Mutex
	seen := map[netip.Addr]bool{}
	var group sync.WaitGroup
	for i := range 50 {
		group.Go(func() {
			n, err := hosts[i%2].Create(t.Context(), Policy{})
			if err != nil {
				t.Error(err)
				return
			}
			t.Cleanup(func() { n.Close() })
			mu.Lock()
			if seen[n.Addr()] {
				t.Errorf("address %v given twice", n.Addr())
			}
			seen[n.Addr()] = true
			mu.Unlock()
			if err := m.tcp(n.File(), "9.9.9.9:8080"); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
}

func TestExhausted(t *testing.T) {
	newMachine(t)
	h := openHost(t, &HostOptions{Prefix: netip.MustParsePrefix("10.211.0.0/29")})
	create(t, h, Policy{})
	n := create(t, h, Policy{})
	if _, err := h.Create(t.Context(), Policy{}); !errors.Is(err, ErrExhausted) {
		t.Fatalf("a third sandbox where two fit: %v", err)
	}
	n.Close()
	waitNoLinks(t, sandboxLinksBut(t, n)...)
	create(t, h, Policy{})
}

func sandboxLinksBut(t *testing.T, n *Namespace) []string {
	var names []string
	for _, name := range sandboxLinks(t) {
		if name != n.LinkName() {
			names = append(names, name)
		}
	}
	return names
}

func TestPool(t *testing.T) {
	m := newMachine(t)
	m.echo(t, m.world, 8080)
	h := openHost(t, &HostOptions{Ready: 2, ReadyOffline: 1})
	waitReady := func() {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		for len(h.ready.ready) < 2 || len(h.offline.ready) < 1 {
			select {
			case <-ctx.Done():
				t.Fatal("the pool does not fill")
			case <-time.After(time.Millisecond):
			}
		}
	}
	waitReady()
	if n := create(t, h, Policy{}); m.tcp(n.File(), "9.9.9.9:8080") != nil {
		t.Error("a namespace from the pool has no network")
	}
	if n := create(t, h, allowList(t, "9.9.9.10")); m.tcpRefused(n.File(), "9.9.9.9:8080") == nil || m.tcp(n.File(), "9.9.9.10:8080") != nil {
		t.Error("a namespace from the pool does not have the policy it was asked for")
	}
	if n := create(t, h, Policy{Mode: None}); n.Addr().IsValid() {
		t.Error("a namespace without network has an address")
	}
	waitReady()
	if got := h.ready.misses.Load() + h.offline.misses.Load(); got != 0 {
		t.Errorf("%d creations missed the pool", got)
	}
	h.Close()
	if _, err := h.Create(t.Context(), Policy{}); !errors.Is(err, ErrClosed) {
		t.Errorf("Create after Close: %v", err)
	}
}

func TestRulesComeBack(t *testing.T) {
	m := newMachine(t)
	m.echo(t, m.world, 8080)
	h := openHost(t, nil)
	n := create(t, h, Policy{})
	nf, err := nl.Dial(unix.NETLINK_NETFILTER)
	if err != nil {
		t.Fatal(err)
	}
	defer nf.Close()
	b := &batch{}
	b.deleteTable(familyInet, tableName)
	if err := b.commit(nf); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for m.tcpRefused(n.File(), "9.9.9.9:8080") != nil {
		if ctx.Err() != nil {
			t.Fatal("the host's rules did not come back")
		}
	}
}

func TestRemoveHostRules(t *testing.T) {
	newMachine(t)
	h := openHost(t, nil)
	n := create(t, h, Policy{})
	if err := RemoveHostRules(t.Context()); err == nil {
		t.Error("the host's rules were removed under a sandbox")
	}
	n.Close()
	h.Close()
	waitNoLinks(t)
	if err := RemoveHostRules(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := tables(t); len(got) != 0 {
		t.Errorf("tables left: %v", got)
	}
}

func tables(t *testing.T) []string {
	t.Helper()
	nf, err := nl.Dial(unix.NETLINK_NETFILTER)
	if err != nil {
		t.Fatal(err)
	}
	defer nf.Close()
	var names []string
	err = nf.Get(nl.Message{
		Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETTABLE, Flags: unix.NLM_F_DUMP,
		Body: []byte{unix.AF_UNSPEC, 0, 0, 0},
	}, func(_ uint16, body []byte) error {
		for typ, value := range nl.Attributes(body[4:]) {
			if typ == unix.NFTA_TABLE_NAME {
				names = append(names, strings.TrimRight(string(value), "\x00"))
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestDocker(t *testing.T) {
	m := newMachine(t)
	m.echo(t, m.world, 8080)
	nf, err := nl.Dial(unix.NETLINK_NETFILTER)
	if err != nil {
		t.Fatal(err)
	}
	defer nf.Close()
	// What Docker sets up by way of iptables: forwarding dropped by default, its chain first.
	b := &batch{}
	b.table(unix.NFPROTO_IPV4, "filter")
	b.chain(unix.NFPROTO_IPV4, "filter", "FORWARD", &hook{kind: "filter", number: hookForward, priority: 0, verdict: verdictDrop})
	b.chain(unix.NFPROTO_IPV4, "filter", "DOCKER-USER", nil)
	b.rule(unix.NFPROTO_IPV4, "filter", "FORWARD", jump("DOCKER-USER"))
	b.rule(unix.NFPROTO_IPV4, "filter", "DOCKER-USER", verdict(expr.VerdictReturn)) // return
	if err := b.commit(nf); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		nf, err := nl.Dial(unix.NETLINK_NETFILTER)
		if err != nil {
			t.Fatal(err)
		}
		defer nf.Close()
		b := &batch{}
		b.deleteTable(unix.NFPROTO_IPV4, "filter")
		if err := b.commit(nf); err != nil {
			t.Error(err)
		}
	})
	h := openHost(t, nil)
	openHost(t, nil)
	n := create(t, h, Policy{})
	if err := m.tcp(n.File(), "9.9.9.9:8080"); err != nil {
		t.Errorf("beside Docker: %v", err)
	}
	count := func() (total int) {
		for _, key := range []expr.MetaKey{expr.MetaKeyIIFNAME, expr.MetaKeyOIFNAME} {
			handles, err := findRules(nf, key)
			if err != nil {
				t.Fatal(err)
			}
			total += len(handles)
		}
		return total
	}
	if got := count(); got != 2 {
		t.Errorf("%d rules in Docker's chain after opening twice, want 2", got)
	}
	if err := removeForeignRules(nf); err != nil {
		t.Fatal(err)
	}
	if got := count(); got != 0 {
		t.Errorf("%d rules left in Docker's chain", got)
	}
	if m.tcpRefused(n.File(), "9.9.9.9:8080") == nil {
		t.Error("the test proves nothing: forwarding works without the rules in Docker's chain")
	}
}

// testRole makes the test binary play another process.
const testRole = "DAYTONA_NETWORK_TEST_ROLE"

func playRole(role string) {
	if role == "meddler" {
		if err := meddle(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if role != "engine" {
		os.Exit(3)
	}
	h, err := OpenHost(context.Background(), &HostOptions{Resolvers: []netip.Addr{netip.MustParseAddr("10.1.2.3")}, Ready: 4})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	for range 5 {
		if _, err := h.Create(context.Background(), Policy{}); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	fmt.Println("ready")
	select {}
}

func TestKillLeavesNothing(t *testing.T) {
	newMachine(t)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), testRole+"=engine")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, _ := bufio.NewReader(out).ReadString('\n')
	if line != "ready\n" {
		t.Fatalf("the engine says %q", line)
	}
	if len(sandboxLinks(t)) < 5 {
		t.Fatalf("links while the engine lives: %v", sandboxLinks(t))
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	waitNoLinks(t)
}

func TestOpenHostRefuses(t *testing.T) {
	newMachine(t)
	for name, opts := range map[string]*HostOptions{
		"range in use":      {Prefix: netip.MustParsePrefix("192.0.2.0/24")},
		"range too small":   {Prefix: netip.MustParsePrefix("10.0.0.0/30")},
		"range not masked":  {Prefix: netip.MustParsePrefix("10.0.0.1/24")},
		"IPv6 range":        {Prefix: netip.MustParsePrefix("fd00::/64")},
		"loopback resolver": {Resolvers: []netip.Addr{netip.MustParseAddr("127.0.0.53")}},
		"IPv6 resolver":     {Resolvers: []netip.Addr{netip.MustParseAddr("fd00::1")}},
		"unknown uplink":    {Uplinks: []string{"nosuch0"}},
	} {
		if opts.Resolvers == nil {
			opts.Resolvers = []netip.Addr{netip.MustParseAddr("9.9.9.9")}
		}
		if h, err := OpenHost(t.Context(), opts); err == nil {
			h.Close()
			t.Errorf("%s: accepted", name)
		}
	}
	h := openHost(t, nil)
	if _, err := h.Create(t.Context(), Policy{Mode: Mode(9)}); !errors.Is(err, ErrInvalidPolicy) {
		t.Errorf("unknown mode: %v", err)
	}
	home, err := ownNamespace()
	if err != nil {
		t.Fatal(err)
	}
	if n, err := h.OpenNamespace(t.Context(), home); err == nil {
		n.Close()
		t.Error("the host's own namespace was adopted as a sandbox's")
	}
}

func TestPing(t *testing.T) {
	m := newMachine(t)
	h := openHost(t, nil)
	n := create(t, h, Policy{})
	echoRequest := func(to string) error {
		return inside(m.home, n.File(), func() error {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			tv := unix.NsecToTimeval(reachTimeout.Nanoseconds())
			if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
				return err
			}
			if err := unix.Sendto(fd, []byte{8, 0, 0, 0, 0, 1, 0, 1}, 0, &unix.SockaddrInet4{Addr: netip.MustParseAddr(to).As4()}); err != nil {
				return err
			}
			_, _, err = unix.Recvfrom(fd, make([]byte, 64), 0)
			return err
		})
	}
	err := echoRequest("9.9.9.9")
	if errors.Is(err, unix.EACCES) {
		t.Skip("in a user namespace the kernel does not let ping sockets be enabled for all groups")
	}
	if err != nil {
		t.Errorf("ping of a public address: %v", err)
	}
	for _, to := range []string{"169.254.169.254", "10.1.2.3", "192.0.2.2", n.Gateway().String()} {
		if echoRequest(to) == nil {
			t.Errorf("ping of %s is answered", to)
		}
	}
}

func TestFlowLimit(t *testing.T) {
	m := newMachine(t)
	m.echo(t, m.world, 8080)
	const limit = 10
	h := openHost(t, &HostOptions{MaxFlows: limit})
	n, other := create(t, h, Policy{}), create(t, h, Policy{})
	open := 0
	for range limit + 3 {
		_ = inside(m.home, n.File(), func() error {
			c, err := (&net.Dialer{Timeout: reachTimeout}).Dial("tcp", "9.9.9.9:8080")
			if err == nil {
				open++
				t.Cleanup(func() { c.Close() })
			}
			return nil
		})
	}
	if open != limit {
		t.Errorf("%d connections were possible, want %d", open, limit)
	}
	if err := m.tcp(other.File(), "9.9.9.9:8080"); err != nil {
		t.Errorf("another sandbox suffers from it: %v", err)
	}
}

// A sandbox that is root, in a user namespace of its own, has no say over its rules.
func TestSandboxCannotMeddle(t *testing.T) {
	m := newMachine(t)
	m.echo(t, m.world, 8080)
	h := openHost(t, nil)
	n := create(t, h, Policy{})
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), testRole+"=meddler")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{HostID: 0, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: 0, Size: 1}},
	}
	var out []byte
	if err := inside(m.home, n.File(), func() (err error) {
		out, err = cmd.CombinedOutput()
		return err
	}); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if m.tcpRefused(n.File(), "10.1.2.3:8080") == nil || m.tcp(n.File(), "9.9.9.9:8080") != nil {
		t.Error("the rules have changed")
	}
}

// meddle tries whatever root could do to the network, and tells what worked.
func meddle() error {
	nf, err := nl.Dial(unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	rt, err := nl.Dial(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	rules := &batch{}
	rules.deleteTable(familyInet, tableName)
	_, raw := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
	for what, err := range map[string]error{
		"delete the rules":     rules.commit(nf),
		"add an address":       rt.Do(nl.AddAddr(insideIndex, netip.MustParsePrefix("10.9.9.9/32"))),
		"remove the interface": rt.Do(nl.DelLink(insideIndex)),
		"open a packet socket": raw,
	} {
		if !errors.Is(err, unix.EPERM) {
			return fmt.Errorf("%s: %v, want EPERM", what, err)
		}
	}
	return nil
}

func TestDiagnose(t *testing.T) {
	newMachine(t)
	found := Diagnose(t.Context(), &HostOptions{Resolvers: []netip.Addr{netip.MustParseAddr("9.9.9.9")}})
	if len(found) < 5 {
		t.Errorf("only %d findings", len(found))
	}
	for _, f := range found {
		if f.Name == "" || f.Detail == "" && !f.OK {
			t.Errorf("a finding says nothing: %+v", f)
		}
		if !f.OK {
			t.Errorf("%s: %s", f.Name, f.Detail)
		}
	}
	waitNoLinks(t)
	// Somebody else's firewall in the way is found and named.
	nf, err := nl.Dial(unix.NETLINK_NETFILTER)
	if err != nil {
		t.Fatal(err)
	}
	defer nf.Close()
	b := &batch{}
	b.table(familyInet, "theirs")
	b.chain(familyInet, "theirs", "fence", &hook{kind: "filter", number: hookForward, verdict: verdictDrop})
	if err := b.commit(nf); err != nil {
		t.Fatal(err)
	}
	defer func() {
		b := &batch{}
		b.deleteTable(familyInet, "theirs")
		if err := b.commit(nf); err != nil {
			t.Error(err)
		}
	}()
	named := false
	for _, f := range Diagnose(t.Context(), nil) {
		named = named || !f.OK && strings.Contains(f.Detail, "inet theirs fence")
	}
	if !named {
		t.Error("a firewall that drops forwarded packets is not named")
	}
	waitNoLinks(t)
}

func BenchmarkCreate(b *testing.B) {
	newMachine(b)
	for name, p := range map[string]Policy{"internet": {}, "none": {Mode: None}} {
		b.Run("cold/"+name, func(b *testing.B) {
			h := openHost(b, nil)
			for b.Loop() {
				n, err := h.Create(b.Context(), p)
				if err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				n.Close()
				b.StartTimer()
			}
		})
	}
	for name, p := range map[string]Policy{
		"default":      {},
		"other-policy": {Mode: AllowList, Allow: []netip.Prefix{netip.MustParsePrefix("9.9.9.0/24")}},
	} {
		b.Run("warm/"+name, func(b *testing.B) {
			h := openHost(b, &HostOptions{Ready: 64})
			for b.Loop() {
				b.StopTimer()
				for len(h.ready.ready) == 0 {
					time.Sleep(time.Millisecond)
				}
				b.StartTimer()
				n, err := h.Create(b.Context(), p)
				if err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				n.Close()
				b.StartTimer()
			}
		})
	}
	b.Run("set-policy", func(b *testing.B) {
		h := openHost(b, nil)
		n := create(b, h, Policy{})
		for b.Loop() {
			if err := n.SetPolicy(b.Context(), Policy{}); err != nil {
				b.Fatal(err)
			}
		}
	})
}
