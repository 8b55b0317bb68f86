package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona/internal/network/nl"
)

// The tests run in a network namespace of their own, which plays the machine: nothing that they
// do touches the real one, and no packet can leave it. A second namespace plays everything else:
// it has every address that a test tries to reach, public and private, so that whatever is not
// filtered is answered. In a user namespace an ordinary user can do all this too.

const insideMachine = "DAYTONA_NETWORK_TEST_MACHINE"

func TestMain(m *testing.M) {
	if os.Getenv(insideMachine) != "" {
		if role := os.Getenv(testRole); role != "" {
			playRole(role)
		}
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideMachine+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	if err := cmd.Run(); err != nil {
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			os.Exit(exit.ExitCode())
		}
		fmt.Fprintln(os.Stderr, "SKIP: cannot make a network namespace to test in:", err)
	}
	os.Exit(0)
}

// elsewhere are the addresses of the namespace that plays the rest of the world.
var elsewhere = []string{
	"192.0.2.1/24", // the machine's router
	"9.9.9.9/32", "9.9.9.10/32", "8.8.8.8/32", "203.0.114.7/32",
	"10.1.2.3/32", "100.64.0.5/32", "100.100.100.200/32", "168.63.129.16/32",
	"169.254.169.254/32", "169.254.1.1/32", "172.16.5.5/32", "172.31.255.254/32", "192.0.0.192/32",
	"192.168.7.7/32", "198.18.0.5/32", "198.19.255.5/32", "198.51.100.9/32", "203.0.113.9/32",
	"192.88.99.1/32", "240.0.0.9/32",
}

// machine is the test's machine, wired to the world.
type machine struct {
	home, world *os.File
}

// newMachine wires the machine up. Tests that use it cannot be parallel.
func newMachine(t testing.TB) *machine {
	t.Helper()
	home, err := ownNamespace()
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{home: home}
	t.Cleanup(func() { home.Close() })
	err = away(home, func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		m.world, err = ownNamespace()
		if err != nil {
			return err
		}
		rt, err := nl.Dial(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer rt.Close()
		if err := rt.Do(nl.AddVeth(nl.VethEnd{Name: "world", Index: 50}, nl.VethEnd{Name: "up0", Index: 50}, int(home.Fd()))); err != nil {
			return err
		}
		msgs := []nl.Message{nl.LinkUp(1)}
		for _, a := range elsewhere {
			msgs = append(msgs, nl.AddAddr(50, netip.MustParsePrefix(a)))
		}
		msgs = append(msgs, nl.LinkUp(50))
		return rt.Do(msgs...)
	})
	if err != nil {
		t.Fatalf("make the world: %v", err)
	}
	rt, err := nl.Dial(unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer rt.Close()
	t.Cleanup(func() {
		// While the world is still there to say goodbye to: a closed TCP connection keeps its
		// namespace until the other side has acknowledged that.
		waitNoLinks(t)
		rt, err := nl.Dial(unix.NETLINK_ROUTE)
		if err != nil {
			t.Fatal(err)
		}
		defer rt.Close()
		if err := rt.Do(nl.DelLink(50)); err != nil {
			t.Error(err)
		}
		m.world.Close()
	})
	err = rt.Do(
		nl.LinkUp(1),
		nl.AddAddr(50, netip.MustParsePrefix("192.0.2.2/24")),
		nl.AddAddr(50, netip.MustParsePrefix("9.9.8.2/32")),   // a public address of the machine's
		nl.AddAddr(50, netip.MustParsePrefix("10.99.0.2/32")), // and a private one
		nl.LinkUp(50),
		nl.AddRoute(50, netip.MustParsePrefix("0.0.0.0/0"), netip.MustParseAddr("192.0.2.1")),
	)
	if err != nil {
		if le := (*nl.Error)(nil); !errors.As(err, &le) || le.Errno != unix.EEXIST {
			t.Fatalf("wire the machine: %v", err)
		}
	}
	if err := rt.WaitOperational("up0"); err != nil {
		t.Fatal(err)
	}
	if err := inside(home, m.world, func() error {
		rt, err := nl.Dial(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer rt.Close()
		return rt.WaitOperational("world")
	}); err != nil {
		t.Fatal(err)
	}
	return m
}

// echo answers on a port of every address of a namespace, over TCP and UDP. UDP answers say who
// asked. A TCP connection echoes lines until it is closed.
func (m *machine) echo(t testing.TB, ns *os.File, portNumber int) {
	t.Helper()
	err := inside(m.home, ns, func() error {
		ln, err := net.Listen("tcp4", fmt.Sprintf(":%d", portNumber))
		if err != nil {
			return err
		}
		pc, err := net.ListenUDP("udp4", &net.UDPAddr{Port: portNumber})
		if err != nil {
			return err
		}
		// Answers must come from the address that was asked.
		raw, err := pc.SyscallConn()
		if err != nil {
			return err
		}
		_ = raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1) })
		t.Cleanup(func() { ln.Close(); pc.Close() })
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
				_ = n
				_, _, _ = pc.WriteMsgUDP([]byte(from.IP.String()), oob[:on], from)
			}
		}()
		return nil
	})
	if err != nil {
		t.Fatalf("answer on port %d: %v", portNumber, err)
	}
}

// How long to wait for what must be reachable, on a busy machine, and for what must not be: most
// of that is refused at once, but some is dropped.
const (
	patience     = 10 * time.Second
	reachTimeout = 400 * time.Millisecond
)

// tcp connects from within a namespace and exchanges a line.
func (m *machine) tcp(ns *os.File, address string) error { return m.try(ns, "tcp", address, patience) }

// udp exchanges a datagram from within a namespace.
func (m *machine) udp(ns *os.File, address string) error { return m.try(ns, "udp", address, patience) }

// tcpRefused and udpRefused are for what is not to be reachable: they give up sooner.
func (m *machine) tcpRefused(ns *os.File, address string) error {
	return m.try(ns, "tcp", address, reachTimeout)
}

func (m *machine) udpRefused(ns *os.File, address string) error {
	return m.try(ns, "udp", address, reachTimeout)
}

func (m *machine) try(ns *os.File, network, address string, wait time.Duration) error {
	return inside(m.home, ns, func() error {
		c, err := (&net.Dialer{Timeout: wait}).Dial(network, address)
		if err != nil {
			return err
		}
		defer c.Close()
		return exchange(c, wait)
	})
}

func ping(c net.Conn) error { return exchange(c, 2*time.Second) }

func exchange(c net.Conn, wait time.Duration) error {
	_ = c.SetDeadline(time.Now().Add(wait))
	if _, err := c.Write([]byte("hello\n")); err != nil {
		return err
	}
	buf := make([]byte, 64)
	n, err := c.Read(buf)
	if err == nil && n == 0 {
		err = io.ErrUnexpectedEOF
	}
	return err
}

func openHost(t testing.TB, opts *HostOptions) *Host {
	t.Helper()
	if opts == nil {
		opts = &HostOptions{}
	}
	if opts.Resolvers == nil {
		opts.Resolvers = []netip.Addr{netip.MustParseAddr("10.1.2.3")}
	}
	h, err := OpenHost(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		h.Close()
	})
	return h
}

func create(t testing.TB, h *Host, p Policy) *Namespace {
	t.Helper()
	n, err := h.Create(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

// sandboxLinks lists the machine's ends of sandbox links.
func sandboxLinks(t testing.TB) []string {
	t.Helper()
	rt, err := nl.Dial(unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer rt.Close()
	links, err := rt.Links()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, l := range links {
		if len(l.Name) > len(linkPrefix) && l.Name[:len(linkPrefix)] == linkPrefix {
			names = append(names, l.Name)
		}
	}
	return names
}

// waitNoLinks waits for the kernel to remove namespaces, which it does in its own time.
func waitNoLinks(t testing.TB, but ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second) // also after the test's own
	defer cancel()
	for {
		left := slices.DeleteFunc(sandboxLinks(t), func(name string) bool { return slices.Contains(but, name) })
		if len(left) == 0 {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("links are left behind: %v", left)
		case <-time.After(10 * time.Millisecond):
			runtime.Gosched()
		}
	}
}
