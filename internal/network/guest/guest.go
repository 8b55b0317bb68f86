// Package guest sets up the network of a rootless sandbox from inside it.
//
// It runs in the boot process, in the sandbox's new user and network namespaces, before anything
// hostile does. It makes an interface whose packets come out of a descriptor; the boot process
// sends that descriptor to the engine, which hands it to a user-space network stack (package
// netstack). Nothing here enforces anything: what a sandbox may reach is decided where its packets
// arrive.
//
// It depends on golang.org/x/sys alone, to keep the boot binary small, and must not know policies.
package guest

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona/internal/network/nl"
)

// Kinds of device. The kind travels with the descriptor, since what is read from it differs.
const (
	// TUN is a descriptor of /dev/net/tun: one IP packet a read.
	TUN = "tun"
	// Packet is a packet socket on the far end of a veth pair: one Ethernet frame a read.
	Packet = "packet"
)

// MTU is the largest packet. Large packets make up for the cost of handling each one in user
// space; they never leave the machine as such.
const MTU = 65520

// The addresses are the same in every sandbox, each being alone on its network.

// Addr is the sandbox's address.
func Addr() netip.Prefix { return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 2, 100}), 24) }

// Gateway is the address of the network stack outside.
func Gateway() netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 2, 2}) }

// Resolver is the address where the network stack answers DNS.
func Resolver() netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 2, 3}) }

const (
	insideName  = "eth0"
	insideIndex = 100
)

// Device is the sandbox's connection to the outside.
type Device struct {
	// FD is the descriptor that packets come out of and go into. The caller closes it once it
	// has been sent away.
	FD int
	// Kind is TUN or Packet.
	Kind string
}

// SetupLoopback brings lo up, which is all the network that a sandbox with none has.
func SetupLoopback() error {
	writeSysctls()
	rt, err := nl.Dial(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer rt.Close()
	return rt.Do(nl.LinkUp(1))
}

// Setup gives the calling process's network namespace an interface, an address and a default
// route. It needs CAP_NET_ADMIN, CAP_NET_RAW and CAP_SYS_ADMIN there, as the first process of a
// new user namespace has. It uses a TUN device where the user may open one, and otherwise a veth
// pair with its far end in a second namespace that only the descriptor keeps alive.
//
// The descriptor does not keep the sandbox's namespace alive: when the last process in it ends,
// reading fails.
func Setup() (Device, error) {
	writeSysctls()
	rt, err := nl.Dial(unix.NETLINK_ROUTE)
	if err != nil {
		return Device{}, err
	}
	defer rt.Close()
	// The namespace of this process, by way of a socket in it: /proc may not be there.
	home, err := unix.IoctlRetInt(rt.FD(), unix.SIOCGSKNS)
	if err != nil {
		return Device{}, fmt.Errorf("open the sandbox's network namespace: %w", err)
	}
	defer unix.Close(home)
	dev := Device{FD: -1}
	err = elsewhere(home, func() error {
		var tunErr, vethErr error
		if dev, tunErr = openTUN(rt, home); tunErr == nil {
			return nil
		}
		if dev, vethErr = openVeth(rt, home); vethErr == nil {
			return nil
		}
		return fmt.Errorf("neither a TUN device (%w) nor a veth pair (%w) can be made", tunErr, vethErr)
	})
	if err == nil {
		err = rt.Do(
			nl.LinkUp(1),
			nl.AddRoute(insideIndex, netip.PrefixFrom(netip.IPv4Unspecified(), 0), Gateway()),
		)
	}
	if err != nil {
		if dev.FD >= 0 {
			unix.Close(dev.FD)
		}
		return Device{}, err
	}
	return dev, nil
}

// elsewhere runs fn on a thread in a new network namespace, and brings the thread back home.
func elsewhere(home int, fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("create a network namespace for the outer end: %w", err)
			return
		}
		err := fn()
		if back := unix.Setns(home, unix.CLONE_NEWNET); back == nil {
			runtime.UnlockOSThread()
		} // otherwise the thread stays locked, and ends with the goroutine
		done <- err
	}()
	return <-done
}

// raise brings the sandbox's end up, with its address.
func raise(rt *nl.Conn) error {
	_ = rt.Do(nl.LinkNoIPv6LinkLocal(insideIndex)) // refused without IPv6, and then not needed
	return rt.Do(
		nl.LinkMTU(insideIndex, MTU),
		nl.AddAddr(insideIndex, Addr()),
		nl.LinkUp(insideIndex),
	)
}

// openTUN makes a TUN device in the calling thread's namespace and moves it home. Made at home,
// its descriptor would keep the sandbox's namespace alive for ever.
func openTUN(rt *nl.Conn, home int) (Device, error) {
	none := Device{FD: -1}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return none, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	err = func() error {
		req, err := unix.NewIfreq(insideName)
		if err != nil {
			return err
		}
		// The number is only settable before the device has a name.
		if err := unix.IoctlSetPointerInt(fd, unix.TUNSETIFINDEX, insideIndex); err != nil {
			return fmt.Errorf("number the TUN device: %w", err)
		}
		req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
			return fmt.Errorf("create the TUN device: %w", err)
		}
		outer, err := nl.Dial(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer outer.Close()
		if err := outer.Do(nl.MoveLink(insideIndex, home)); err != nil {
			return err
		}
		return raise(rt)
	}()
	if err != nil {
		unix.Close(fd)
		return none, err
	}
	return Device{FD: fd, Kind: TUN}, nil
}

// openVeth makes a veth pair between the calling thread's namespace and home, and opens a packet
// socket on the end that is here. The socket keeps the namespace here alive, and no other.
func openVeth(rt *nl.Conn, home int) (Device, error) {
	none := Device{FD: -1}
	outer, err := nl.Dial(unix.NETLINK_ROUTE)
	if err != nil {
		return none, err
	}
	defer outer.Close()
	const (
		outerName  = "outer"
		outerIndex = 2
	)
	if err := outer.Do(nl.AddVeth(
		nl.VethEnd{Name: outerName, Index: outerIndex, MTU: MTU},
		nl.VethEnd{Name: insideName, Index: insideIndex, MTU: MTU}, home)); err != nil {
		return none, err
	}
	// This end is nobody's: no address, and nothing answers but the network stack.
	_ = outer.Do(nl.LinkNoIPv6LinkLocal(outerIndex))
	_ = os.WriteFile("/proc/sys/net/ipv6/conf/all/disable_ipv6", []byte("1"), 0)
	const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8 // network byte order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return none, fmt.Errorf("open a packet socket: %w", err)
	}
	// What the kernel itself sends there (nothing, in practice) is not the sandbox's.
	_ = unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1)
	// As much as the kernel grants: with packets this large the default holds three.
	for _, option := range []int{unix.SO_RCVBUF, unix.SO_SNDBUF} {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, 8<<20)
	}
	if err = outer.Do(nl.LinkUp(outerIndex)); err == nil {
		if err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: outerIndex}); err != nil {
			err = fmt.Errorf("bind the packet socket: %w", err)
		}
	}
	if err == nil {
		err = raise(rt)
	}
	if err == nil {
		err = errors.Join(rt.WaitOperational(insideName), outer.WaitOperational(outerName))
	}
	if err != nil {
		unix.Close(fd)
		return none, err
	}
	return Device{FD: fd, Kind: Packet}, nil
}

// writeSysctls sets what it can. None of them is a wall.
func writeSysctls() {
	for _, s := range []struct{ name, value string }{
		{"ipv6/conf/all/disable_ipv6", "1"},
		{"ipv6/conf/default/disable_ipv6", "1"},
		{"ipv6/conf/lo/disable_ipv6", "0"}, // programs that listen on ::1 are common
		{"ipv4/ip_unprivileged_port_start", "0"},
		// Groups that the user namespace does not map are refused, so from small to large.
		{"ipv4/ping_group_range", "0 0"},
		{"ipv4/ping_group_range", "0 65534"},
		{"ipv4/ping_group_range", "0 2147483647"},
	} {
		_ = os.WriteFile("/proc/sys/net/"+s.name, []byte(s.value), 0)
	}
}
