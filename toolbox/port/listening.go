package port

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona/internal/network/nl"
)

// socket is one that listens.
type socket struct {
	port  int
	addr  netip.Addr
	uid   int
	inode uint32
}

func (s socket) compare(o socket) int {
	if s.port != o.port {
		return s.port - o.port
	}
	if c := s.addr.Compare(o.addr); c != 0 {
		return c
	}
	return int(int64(s.inode) - int64(o.inode))
}

// listening returns the TCP ports that something listens on, on any address,
// sorted.
func listening() ([]int, error) {
	sockets, err := sockets()
	if err != nil {
		return nil, err
	}
	ports := make([]int, len(sockets))
	for i, s := range sockets {
		ports[i] = s.port
	}
	return slices.Compact(ports), nil
}

// sockets returns the TCP sockets that listen, sorted.
func sockets() ([]socket, error) {
	list, err := fromSockDiag()
	if err != nil {
		list, err = fromProc()
	}
	if err != nil {
		return nil, fmt.Errorf("look for listening sockets: %w", err)
	}
	slices.SortFunc(list, socket.compare)
	return list, nil
}

// fromSockDiag asks the kernel for the listening sockets alone (sock_diag(7)):
// fifty times quicker than /proc/net/tcp, for which it walks through the
// connections of the whole machine.
func fromSockDiag() ([]socket, error) {
	c, err := nl.Dial(unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	list := []socket{}
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		// struct inet_diag_req_v2 of linux/inet_diag.h: family, protocol,
		// extensions, padding, states, and the id of a socket: any.
		const listen = 10 // TCP_LISTEN of netinet/tcp.h
		request := make([]byte, 56)
		request[0], request[1] = family, unix.IPPROTO_TCP
		binary.NativeEndian.PutUint32(request[4:], 1<<listen)
		err := c.Get(nl.Message{Type: unix.SOCK_DIAG_BY_FAMILY, Flags: unix.NLM_F_DUMP, Body: request, What: "list listening sockets"},
			func(_ uint16, b []byte) error {
				// struct inet_diag_msg: family, state, timer, retransmissions,
				// the id, which begins with both ports and the local address,
				// then expiry, queues, uid and inode.
				if len(b) < 72 || b[1] != listen {
					return nil
				}
				size := 4
				if b[0] == unix.AF_INET6 {
					size = 16
				}
				addr, _ := netip.AddrFromSlice(b[8 : 8+size])
				list = append(list, socket{
					port: int(binary.BigEndian.Uint16(b[4:])), addr: addr.Unmap(),
					uid: int(binary.NativeEndian.Uint32(b[64:])), inode: binary.NativeEndian.Uint32(b[68:]),
				})
				return nil
			})
		// Without IPv6 there is nobody to ask.
		if err != nil && !(family == unix.AF_INET6 && errors.Is(err, unix.ENOENT)) {
			return nil, err
		}
	}
	return list, nil
}

// fromProc reads /proc, for kernels that have no sock_diag.
func fromProc() ([]socket, error) {
	list := []socket{}
	for _, name := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		f, err := os.Open(name)
		if errors.Is(err, os.ErrNotExist) && name == "/proc/net/tcp6" {
			continue // no IPv6
		}
		if err != nil {
			return nil, err
		}
		list, err = parse(f, list)
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	return list, nil
}

// parse adds the sockets in state LISTEN; the format is that of proc_net_tcp in
// the kernel's documentation.
func parse(r io.Reader, list []socket) ([]socket, error) {
	const listen = "0A"
	for scanner := bufio.NewScanner(r); ; {
		if !scanner.Scan() {
			return list, scanner.Err()
		}
		fields := strings.Fields(scanner.Text())
		if len(fields) < 10 || fields[3] != listen {
			continue
		}
		address, number, ok := strings.Cut(fields[1], ":")
		port, err := strconv.ParseUint(number, 16, 16)
		if !ok || err != nil {
			continue
		}
		s := socket{port: int(port), addr: parseAddr(address)}
		if uid, err := strconv.ParseUint(fields[7], 10, 32); err == nil {
			s.uid = int(uid)
		}
		if inode, err := strconv.ParseUint(fields[9], 10, 32); err == nil {
			s.inode = uint32(inode)
		}
		list = append(list, s)
	}
}

// parseAddr reads an address, which is there in words of the machine's byte
// order.
func parseAddr(s string) netip.Addr {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != 4 && len(b) != 16 {
		return netip.Addr{}
	}
	for i := 0; i < len(b); i += 4 {
		binary.NativeEndian.PutUint32(b[i:], binary.BigEndian.Uint32(b[i:]))
	}
	addr, _ := netip.AddrFromSlice(b)
	return addr.Unmap()
}
