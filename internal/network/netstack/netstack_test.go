package netstack_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona/internal/network/guest"
	"github.com/daytona-go/daytona/internal/network/netstack"
	"github.com/daytona-go/daytona/internal/network/nl"
	"github.com/daytona-go/daytona/internal/network/policy"
	"github.com/daytona-go/daytona/internal/network/userspace"
)

// As in package network, the tests run in a network namespace that plays the machine, wired to
// one that plays the world and has every address that a test tries to reach. The sandbox is a
// process of an ordinary user in namespaces of its own, and its network a third process.

const (
	roleMachine = "as-machine"
	roleGuest   = "as-guest"
	roleNet     = "as-network"
	nobody      = 65534
)

func TestMain(m *testing.M) {
	role := ""
	if len(os.Args) > 1 {
		role = os.Args[1]
	}
	switch role {
	case roleMachine:
		os.Args = append(os.Args[:1], os.Args[2:]...)
		os.Exit(m.Run())
	case roleGuest:
		if err := playGuest(); err != nil {
			fmt.Fprintln(os.Stderr, "guest:", err)
			os.Exit(1)
		}
		os.Exit(0)
	case roleNet:
		if err := netstack.Run(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, "network:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	cmd := exec.Command("/proc/self/exe", append([]string{roleMachine}, os.Args[1:]...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}}
	}
	if err := cmd.Run(); err != nil {
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			os.Exit(exit.ExitCode())
		}
		fmt.Fprintln(os.Stderr, "SKIP: cannot make a network namespace to test in:", err)
	}
	os.Exit(0)
}

// command is what a test has the guest do; its answer is a line: "ok", or the error.
type command struct {
	Do, Network, Address string
	Bytes                int
}

// playGuest is the sandbox: it sets its network up, sends the device away, and does as told.
func playGuest() error {
	dev, err := guest.Setup()
	if err != nil {
		return err
	}
	if err := unix.Sendmsg(3, []byte(dev.Kind), unix.UnixRights(dev.FD), nil, 0); err != nil {
		return fmt.Errorf("send the device: %w", err)
	}
	unix.Close(dev.FD)
	unix.Close(3)
	held := map[string]net.Conn{}
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		var c command
		if err := json.Unmarshal(in.Bytes(), &c); err != nil {
			return err
		}
		answer := "ok"
		if text, err := obey(c, held); err != nil {
			answer = "error: " + err.Error()
		} else if text != "" {
			answer = text
		}
		fmt.Println(strings.ReplaceAll(answer, "\n", " "))
	}
	return nil
}

const reachTimeout = 3 * time.Second

func obey(c command, held map[string]net.Conn) (string, error) {
	switch c.Do {
	case "ping": // connect and exchange a line
		conn, err := net.DialTimeout(c.Network, c.Address, reachTimeout)
		if err != nil {
			return "", err
		}
		defer conn.Close()
		return "", exchange(conn)
	case "hold": // the same, and keep the connection
		conn, err := net.DialTimeout(c.Network, c.Address, reachTimeout)
		if err != nil {
			return "", err
		}
		held[c.Address] = conn
		return "", exchange(conn)
	case "again": // use a kept connection
		return "", exchange(held[c.Address])
	case "many": // open connections until one is refused
		for i := range c.Bytes {
			conn, err := net.DialTimeout(c.Network, c.Address, reachTimeout)
			if err != nil {
				return strconv.Itoa(i), nil
			}
			held[fmt.Sprint("many", i)] = conn
		}
		return strconv.Itoa(c.Bytes), nil
	case "flood": // send datagrams until the guest ends
		conn, err := net.Dial("udp4", c.Address)
		if err != nil {
			return "", err
		}
		go func() {
			for {
				// Refused now and then, by the answers to the ones before.
				_, _ = conn.Write([]byte("hello"))
			}
		}()
		return "", nil
	case "upload", "download": // how long a number of bytes takes, in nanoseconds
		conn, err := net.DialTimeout(c.Network, c.Address, reachTimeout)
		if err != nil {
			return "", err
		}
		defer conn.Close()
		start := time.Now()
		if c.Do == "upload" {
			buf := make([]byte, 128<<10)
			for sent := 0; sent < c.Bytes; sent += len(buf) {
				if _, err := conn.Write(buf); err != nil {
					return "", err
				}
			}
			_ = conn.(*net.TCPConn).CloseWrite()
			_, err = io.Copy(io.Discard, conn)
		} else {
			var n int64
			if n, err = io.Copy(io.Discard, conn); err == nil && n < int64(c.Bytes) {
				err = io.ErrUnexpectedEOF
			}
		}
		return strconv.FormatInt(time.Since(start).Nanoseconds(), 10), err
	case "resolve":
		r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, c.Network, guest.Resolver().String()+":53")
		}}
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		addrs, err := r.LookupNetIP(ctx, "ip4", c.Address)
		return fmt.Sprint(addrs), err
	case "icmp":
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP)
		if err != nil {
			return "", err
		}
		defer unix.Close(fd)
		tv := unix.NsecToTimeval(reachTimeout.Nanoseconds())
		_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
		to := netip.MustParseAddr(c.Address).As4()
		if err := unix.Sendto(fd, []byte{8, 0, 0, 0, 0, 1, 0, 1, 'h', 'i'}, 0, &unix.SockaddrInet4{Addr: to}); err != nil {
			return "", err
		}
		_, _, err = unix.Recvfrom(fd, make([]byte, 128), 0)
		return "", err
	}
	return "", fmt.Errorf("unknown command %q", c.Do)
}

func exchange(c net.Conn) error {
	if c == nil {
		return errors.New("no such connection")
	}
	_ = c.SetDeadline(time.Now().Add(reachTimeout))
	if _, err := c.Write([]byte("hello\n")); err != nil {
		return err
	}
	_, err := c.Read(make([]byte, 64))
	return err
}

// sandbox is a guest with its network.
type sandbox struct {
	t       testing.TB
	cmd     *exec.Cmd
	net     *exec.Cmd
	in      io.WriteCloser
	out     *bufio.Scanner
	control string
	kind    string
}

func (s *sandbox) do(c command) (string, error) {
	s.t.Helper()
	line, err := json.Marshal(c)
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := s.in.Write(append(line, '\n')); err != nil {
		s.t.Fatalf("the guest is gone: %v", err)
	}
	if !s.out.Scan() {
		s.t.Fatal("the guest is gone")
	}
	if text, bad := strings.CutPrefix(s.out.Text(), "error: "); bad {
		return "", errors.New(text)
	}
	return s.out.Text(), nil
}

func (s *sandbox) ping(network, address string) error {
	s.t.Helper()
	_, err := s.do(command{Do: "ping", Network: network, Address: address})
	return err
}

func start(t testing.TB, p policy.Policy, change func(*userspace.Options)) *sandbox {
	t.Helper()
	return startAs(t, user(), p, change)
}

func startAs(t testing.TB, user int, p policy.Policy, change func(*userspace.Options)) *sandbox {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "ours"), os.NewFile(uintptr(pair[1]), "theirs")
	defer ours.Close()
	s := &sandbox{t: t, control: filepath.Join(controlDir(t), "control")}
	s.cmd = exec.Command("/proc/self/exe", roleGuest)
	s.cmd.Stderr = os.Stderr
	s.cmd.ExtraFiles = []*os.File{theirs}
	s.cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{HostID: user, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: user, Size: 1}},
		Credential:  &syscall.Credential{Uid: 0, Gid: 0, NoSetGroups: true},
		Pdeathsig:   syscall.SIGKILL,
	}
	if s.in, err = s.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	s.out = bufio.NewScanner(out)
	if err := s.cmd.Start(); err != nil {
		t.Fatalf("start the guest: %v", err)
	}
	theirs.Close()
	t.Cleanup(func() { s.in.Close(); _ = s.cmd.Process.Kill(); _ = s.cmd.Wait() })
	kind, oob := make([]byte, 16), make([]byte, 64)
	n, oobn, _, _, err := unix.Recvmsg(int(ours.Fd()), kind, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil || n == 0 {
		t.Fatalf("the guest sends no device: %v", err)
	}
	s.kind = string(kind[:n])
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(msgs) != 1 {
		t.Fatalf("the guest sends no device: %v", err)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil {
		t.Fatal(err)
	}
	device := os.NewFile(uintptr(fds[0]), "device")
	defer device.Close()
	options := userspace.Options{
		Command: []string{"/proc/self/exe", roleNet}, Device: device, Kind: s.kind, Policy: p,
		Resolvers: []netip.Addr{netip.MustParseAddr("127.0.0.1")}, Control: s.control, Stderr: os.Stderr,
		Start: func(c *exec.Cmd) error {
			if user != 0 {
				c.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(user), Gid: uint32(user)}
			}
			return c.Start()
		},
	}
	if path := os.Getenv("DAYTONA_NET_BINARY"); path != "" {
		options.Command = []string{path}
	}
	if change != nil {
		change(&options)
	}
	if s.net, err = userspace.Start(t.Context(), options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = s.net.Process.Kill()
		_ = s.net.Wait()
	})
	return s
}

// user is who sandboxes belong to.
func user() int {
	status, err := os.ReadFile("/proc/self/uid_map")
	if err == nil && strings.Fields(string(status))[2] != "4294967295" {
		return 0 // the test itself runs as an ordinary user, mapped to root
	}
	return nobody
}

func controlDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "net")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// world is the namespace with everything that is not the machine.
func world(t testing.TB) {
	t.Helper()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer home.Close()
	errs := make(chan error, 1)
	var closers []io.Closer
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends here
		errs <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return err
			}
			rt, err := nl.Dial(unix.NETLINK_ROUTE)
			if err != nil {
				return err
			}
			defer rt.Close()
			msgs := []nl.Message{nl.AddVeth(nl.VethEnd{Name: "world", Index: 50}, nl.VethEnd{Name: "up0", Index: 50}, int(home.Fd())), nl.LinkUp(1)}
			for _, a := range []string{"192.0.2.1/24", "9.9.9.9/32", "9.9.9.10/32", "10.1.2.3/32", "100.64.0.5/32", "100.100.100.200/32",
				"168.63.129.16/32", "169.254.169.254/32", "172.16.5.5/32", "192.0.0.192/32", "192.168.7.7/32", "198.18.0.5/32",
				"198.51.100.9/32", "203.0.113.9/32"} {
				msgs = append(msgs, nl.AddAddr(50, netip.MustParsePrefix(a)))
			}
			if err := rt.Do(append(msgs, nl.LinkUp(50))...); err != nil {
				return err
			}
			for _, port := range []int{8080, 53} {
				opened, err := echo(port)
				if err != nil {
					return err
				}
				closers = append(closers, opened...)
			}
			opened, err := bulk(9000, 9001)
			closers = append(closers, opened...)
			return err
		}()
	}()
	if err := <-errs; err != nil {
		t.Fatalf("make the world: %v", err)
	}
	rt, err := nl.Dial(unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := rt.Do(nl.DelLink(50)); err != nil {
			t.Error(err)
		}
		rt.Close()
		for _, c := range closers {
			c.Close()
		}
	})
	_ = rt.Do(nl.LinkUp(1))
	if err := rt.Do(
		nl.AddAddr(50, netip.MustParsePrefix("192.0.2.2/24")),
		nl.AddAddr(50, netip.MustParsePrefix("9.9.8.2/32")),
		nl.AddAddr(50, netip.MustParsePrefix("10.99.0.2/32")),
		nl.LinkUp(50),
		nl.AddRoute(50, netip.MustParsePrefix("0.0.0.0/0"), netip.MustParseAddr("192.0.2.1")),
	); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(5 * time.Second); ; {
		link, err := rt.LinkByName("up0")
		if err == nil && link.Operational {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the machine's link does not come up: %v", err)
		}
	}
	// The machine answers too: that a sandbox cannot reach it must not be for want of a server.
	opened, err := echo(8080)
	if err != nil {
		t.Fatal(err)
	}
	closers = append(closers, opened...)
	if c, err := net.DialTimeout("tcp", "9.9.9.9:8080", 3*time.Second); err != nil {
		t.Fatalf("the machine cannot reach the world: %v", err)
	} else {
		c.Close()
	}
}

// echo answers on a port of all addresses, in the namespace of the calling thread.
func echo(port int) ([]io.Closer, error) {
	ln, err := net.Listen("tcp4", fmt.Sprintf(":%d", port))
	if err != nil {
		return nil, err
	}
	pc, err := net.ListenUDP("udp4", &net.UDPAddr{Port: port})
	if err != nil {
		return nil, err
	}
	raw, err := pc.SyscallConn()
	if err != nil {
		return nil, err
	}
	_ = raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1) })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); _, _ = io.Copy(c, c) }()
		}
	}()
	go func() {
		buf, oob := make([]byte, 2048), make([]byte, 256)
		for {
			n, on, _, from, err := pc.ReadMsgUDP(buf, oob)
			if err != nil {
				return
			}
			_, _, _ = pc.WriteMsgUDP(buf[:n], oob[:on], from)
		}
	}()
	return []io.Closer{ln, pc}, nil
}

const bulkSize = 256 << 20

// bulk swallows data on one port and gives bulkSize bytes on the other.
func bulk(sink, source int) ([]io.Closer, error) {
	in, err := net.Listen("tcp4", fmt.Sprintf(":%d", sink))
	if err != nil {
		return nil, err
	}
	out, err := net.Listen("tcp4", fmt.Sprintf(":%d", source))
	if err != nil {
		return nil, err
	}
	serve := func(l net.Listener, fn func(net.Conn)) {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); fn(c) }()
		}
	}
	go serve(in, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
	go serve(out, func(c net.Conn) {
		buf := make([]byte, 128<<10)
		for sent := 0; sent < bulkSize; sent += len(buf) {
			if _, err := c.Write(buf); err != nil {
				return
			}
		}
	})
	return []io.Closer{in, out}, nil
}

func allowList(t testing.TB, list ...string) policy.Policy {
	t.Helper()
	if list == nil {
		list = []string{}
	}
	p, err := policy.Parse(false, list)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestDefaultPolicy(t *testing.T) {
	world(t)
	s := start(t, policy.Policy{}, nil)
	for _, network := range []string{"tcp", "udp"} {
		for _, address := range []string{"9.9.9.9:8080", "9.9.9.10:53"} {
			if err := s.ping(network, address); err != nil {
				t.Errorf("%s to %s: %v", network, address, err)
			}
		}
		for name, host := range map[string]string{
			"metadata": "169.254.169.254", "Alibaba metadata": "100.100.100.200", "Azure host agent": "168.63.129.16",
			"Oracle metadata": "192.0.0.192", "private 10/8": "10.1.2.3", "private 172.16/12": "172.16.5.5",
			"private 192.168/16": "192.168.7.7", "carrier NAT": "100.64.0.5", "benchmarking": "198.18.0.5",
			"documentation 1": "192.0.2.1", "documentation 2": "198.51.100.9", "documentation 3": "203.0.113.9",
			"host uplink": "192.0.2.2", "host public address": "9.9.8.2", "host private address": "10.99.0.2",
			"the stack's gateway": guest.Gateway().String(), "the virtual resolver": guest.Resolver().String(),
			"broadcast": "255.255.255.255", "multicast": "224.0.0.1", "reserved": "240.0.0.9",
			"mapped metadata": "[::ffff:169.254.169.254]", "mapped private": "[::ffff:10.1.2.3]",
			"IPv6 metadata": "[fd00:ec2::254]", "IPv6 link-local": "[fe80::1%eth0]", "IPv6 public": "[2620:fe::fe]",
			"IPv6 NAT64": "[64:ff9b::a9fe:a9fe]", "IPv6 6to4": "[2002:a9fe:a9fe::1]",
		} {
			if err := s.ping(network, host+":8080"); err == nil {
				t.Errorf("%s to %s (%s) is open", network, name, host)
			}
		}
	}
	// A denied connection is refused, not left to time out.
	began := time.Now()
	if err := s.ping("tcp", "10.1.2.3:8080"); err == nil || time.Since(began) > reachTimeout/2 {
		t.Errorf("refusal took %v: %v", time.Since(began), err)
	}
	// A port that nobody listens on is refused as such.
	if err := s.ping("tcp", "9.9.9.9:81"); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("a closed port: %v", err)
	}
	if _, err := s.do(command{Do: "icmp", Address: guest.Gateway().String()}); err != nil {
		t.Errorf("ping of the gateway: %v", err)
	}
	for _, address := range []string{"9.9.9.9", "169.254.169.254", "9.9.8.2"} {
		if _, err := s.do(command{Do: "icmp", Address: address}); err == nil {
			t.Errorf("ping of %s is answered, though nothing asked it", address)
		}
	}
}

func TestTUN(t *testing.T) {
	tun, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("needs a user who may open /dev/net/tun: %v", err)
	}
	tun.Close()
	world(t)
	s := startAs(t, 0, policy.Policy{}, nil)
	if s.kind != guest.TUN {
		t.Errorf("the device is of kind %q, want %q", s.kind, guest.TUN)
	}
	for _, network := range []string{"tcp", "udp"} {
		if err := s.ping(network, "9.9.9.9:8080"); err != nil {
			t.Errorf("%s: %v", network, err)
		}
		if s.ping(network, "10.1.2.3:8080") == nil {
			t.Errorf("%s to a private address is open", network)
		}
	}
	if err := s.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	waitEnd(t, s)
}

func TestAllowList(t *testing.T) {
	world(t)
	for name, test := range map[string]struct {
		policy       policy.Policy
		open, closed []string
	}{
		"one address": {allowList(t, "9.9.9.9"), []string{"9.9.9.9:8080"}, []string{"9.9.9.10:8080", "10.1.2.3:8080"}},
		"private":     {allowList(t, "10.0.0.0/8"), []string{"10.1.2.3:8080"}, []string{"10.99.0.2:8080", "10.0.2.2:8080", "9.9.9.9:8080"}},
		"host":        {allowList(t, "192.0.2.0/24", "9.9.8.0/24"), []string{"192.0.2.1:8080"}, []string{"192.0.2.2:8080", "9.9.8.2:8080"}},
		"empty":       {allowList(t), nil, []string{"9.9.9.9:8080", "9.9.9.10:53"}},
		"none":        {policy.Policy{Mode: policy.None}, nil, []string{"9.9.9.9:8080"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, test.policy, nil)
			for _, network := range []string{"tcp", "udp"} {
				for _, address := range test.open {
					if err := s.ping(network, address); err != nil {
						t.Errorf("%s to %s: %v", network, address, err)
					}
				}
				for _, address := range test.closed {
					if s.ping(network, address) == nil {
						t.Errorf("%s to %s is open", network, address)
					}
				}
			}
		})
	}
}

// An address that the host gets while the sandbox runs is the host's at once.
func TestNewHostAddress(t *testing.T) {
	world(t)
	s := start(t, policy.Policy{}, nil)
	if err := s.ping("tcp", "9.9.9.9:8080"); err != nil { // and the list of addresses is fresh
		t.Fatal(err)
	}
	rt, err := nl.Dial(unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer rt.Close()
	if err := rt.Do(nl.AddAddr(50, netip.MustParsePrefix("9.9.7.7/32"))); err != nil {
		t.Fatal(err)
	}
	if c, err := net.DialTimeout("tcp", "9.9.7.7:8080", time.Second); err != nil {
		t.Fatalf("the test proves nothing: %v", err)
	} else {
		c.Close()
	}
	if s.ping("tcp", "9.9.7.7:8080") == nil || s.ping("udp", "9.9.7.7:8080") == nil {
		t.Error("a new address of the host is reachable")
	}
}

func TestSetPolicy(t *testing.T) {
	world(t)
	s := start(t, policy.Policy{}, nil)
	for _, address := range []string{"9.9.9.9:8080", "9.9.9.10:8080"} {
		if _, err := s.do(command{Do: "hold", Network: "tcp", Address: address}); err != nil {
			t.Fatal(err)
		}
	}
	if err := userspace.SetPolicy(t.Context(), s.control, allowList(t, "9.9.9.10")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.do(command{Do: "again", Address: "9.9.9.9:8080"}); err == nil {
		t.Error("a connection survives the policy that forbids it")
	}
	if _, err := s.do(command{Do: "again", Address: "9.9.9.10:8080"}); err != nil {
		t.Errorf("a connection that stays allowed: %v", err)
	}
	if s.ping("tcp", "9.9.9.9:8080") == nil || s.ping("udp", "9.9.9.9:8080") == nil {
		t.Error("what the new policy forbids is open")
	}
	if err := s.ping("udp", "9.9.9.10:8080"); err != nil {
		t.Errorf("what the new policy allows: %v", err)
	}
	got, err := userspace.CurrentPolicy(t.Context(), s.control)
	if err != nil || !got.Equal(allowList(t, "9.9.9.10")) {
		t.Errorf("the policy in force is %v (%v)", got, err)
	}
	bad := policy.Policy{Mode: policy.AllowList, Allow: []netip.Prefix{netip.MustParsePrefix("fd00::/8")}}
	if err := userspace.SetPolicy(t.Context(), s.control, bad); !errors.Is(err, policy.ErrInvalid) {
		t.Errorf("an invalid policy: %v", err)
	}
}

// nameserver answers every question for an IPv4 address with 9.9.9.9 on the machine's loopback
// interface, over UDP and TCP.
func nameserver(t testing.TB) *atomic.Int32 {
	t.Helper()
	var asked atomic.Int32
	answer := func(q []byte) []byte {
		asked.Add(1)
		end := 12
		for end < len(q) && q[end] != 0 {
			end += int(q[end]) + 1
		}
		end += 5
		if end > len(q) {
			return nil
		}
		a := append([]byte{}, q[:end]...)
		a[2], a[3] = 0x81, 0x80
		a[6], a[7], a[8], a[9], a[10], a[11] = 0, 1, 0, 0, 0, 0
		return append(a, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 9, 9, 9, 9)
	}
	pc, err := net.ListenPacket("udp4", "127.0.0.1:53")
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp4", "127.0.0.1:53")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pc.Close(); ln.Close() })
	go func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = pc.WriteTo(answer(buf[:n]), from)
		}
	}()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				buf := make([]byte, 2048)
				n, err := c.Read(buf)
				if err != nil || n < 14 {
					return
				}
				a := answer(buf[2:n])
				_, _ = c.Write(append([]byte{byte(len(a) >> 8), byte(len(a))}, a...))
			}()
		}
	}()
	return &asked
}

func TestDNS(t *testing.T) {
	world(t)
	nameserver(t)
	for _, network := range []string{"udp", "tcp"} {
		// The first resolver does not answer (nobody is there), the second does.
		s := start(t, allowList(t, "9.9.9.10"), func(o *userspace.Options) {
			o.Resolvers = []netip.Addr{netip.MustParseAddr("127.0.0.9"), netip.MustParseAddr("127.0.0.1")}
		})
		got, err := s.do(command{Do: "resolve", Network: network, Address: "example.com."})
		if err != nil || got != "[9.9.9.9]" {
			t.Errorf("over %s: %q, %v", network, got, err)
		}
		if s.ping("tcp", guest.Resolver().String()+":8080") == nil {
			t.Error("another port of the resolver address is open")
		}
		p := allowList(t, "9.9.9.10")
		p.NoDNS = true
		if err := userspace.SetPolicy(t.Context(), s.control, p); err != nil {
			t.Fatal(err)
		}
		if got, err := s.do(command{Do: "resolve", Network: network, Address: "example.org."}); err == nil {
			t.Errorf("over %s with DNS off: %q", network, got)
		}
	}
}

func TestFlowLimit(t *testing.T) {
	world(t)
	s := start(t, policy.Policy{}, func(o *userspace.Options) { o.MaxFlows = 20 })
	got, err := s.do(command{Do: "many", Network: "tcp", Address: "9.9.9.9:8080", Bytes: 60})
	if err != nil || got != "20" {
		t.Errorf("%s connections were possible (%v), want 20", got, err)
	}
}

func TestEndsWithTheSandbox(t *testing.T) {
	world(t)
	s := start(t, policy.Policy{}, nil)
	if err := s.ping("tcp", "9.9.9.9:8080"); err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	waitEnd(t, s)
	if err := userspace.SetPolicy(t.Context(), s.control, policy.Policy{}); err == nil {
		t.Error("the policy of a network that is gone was changed")
	}
}

func TestEndsWithTheLifeline(t *testing.T) {
	world(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	s := start(t, policy.Policy{}, func(o *userspace.Options) { o.Lifeline = r })
	if err := s.ping("tcp", "9.9.9.9:8080"); err != nil {
		t.Fatal(err)
	}
	w.Close()
	waitEnd(t, s)
}

// TestEndsWhileReading: the end waited for the reader of the device, which reads on while packets
// come, and waited itself for a lock that the end held.
func TestEndsWhileReading(t *testing.T) {
	world(t)
	for range 5 {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		defer w.Close()
		s := start(t, policy.Policy{}, func(o *userspace.Options) { o.Lifeline = r })
		// Refused, and told so: the answer looks for a route, which wants the stack's lock.
		if _, err := s.do(command{Do: "flood", Address: "10.9.9.9:9"}); err != nil {
			t.Fatal(err)
		}
		w.Close()
		waitEnd(t, s)
	}
}

func waitEnd(t *testing.T, s *sandbox) {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- s.net.Wait() }()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("the network process ends badly: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the network process outlives the sandbox")
	}
}

func TestStartRefuses(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	_, err = userspace.Start(t.Context(), userspace.Options{Command: []string{"/proc/self/exe", roleNet}, Device: r, Kind: "tap"})
	if err == nil || !strings.Contains(err.Error(), "tap") {
		t.Errorf("an unknown kind of device: %v", err)
	}
	if _, err = userspace.Start(t.Context(), userspace.Options{Command: []string{"/bin/true"}, Device: r, Kind: guest.TUN}); err == nil {
		t.Error("a program that is not the network was taken for it")
	}
}

func TestParallelSandboxes(t *testing.T) {
	world(t)
	var group sync.WaitGroup
	sandboxes := make([]*sandbox, 4)
	for i := range sandboxes {
		sandboxes[i] = start(t, policy.Policy{}, nil)
	}
	for _, s := range sandboxes {
		group.Go(func() {
			for range 50 {
				if err := s.ping("tcp", "9.9.9.9:8080"); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
}

func BenchmarkThroughput(b *testing.B) {
	world(b)
	s := start(b, policy.Policy{}, nil)
	b.Logf("device: %s; resident: %s when idle", s.kind, resident(s.net.Process.Pid))
	for _, do := range []string{"upload", "download"} {
		port := map[string]string{"upload": "9000", "download": "9001"}[do]
		b.Run(do, func(b *testing.B) {
			b.SetBytes(bulkSize)
			for b.Loop() {
				if _, err := s.do(command{Do: do, Network: "tcp", Address: "9.9.9.9:" + port, Bytes: bulkSize}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("connect", func(b *testing.B) {
		for b.Loop() {
			if err := s.ping("tcp", "9.9.9.9:8080"); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Logf("resident: %s after load", resident(s.net.Process.Pid))
}

func resident(pid int) string {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return err.Error()
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			return strings.TrimSpace(value)
		}
	}
	return "unknown"
}
