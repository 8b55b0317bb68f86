package nl

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// vethInfoPeer is VETH_INFO_PEER of linux/veth.h.
const vethInfoPeer = 1

// inet6AddrGenMode is IFLA_INET6_ADDR_GEN_MODE, and addrGenModeNone IN6_ADDR_GEN_MODE_NONE, of
// linux/if_link.h: the interface makes itself no link-local address.
const (
	inet6AddrGenMode = 8
	addrGenModeNone  = 1
)

// operUp is IF_OPER_UP of linux/if.h.
const operUp = 6

// IPv4 settings of one interface, numbered as IPV4_DEVCONF_* in linux/ip.h. They are the same
// switches as /proc/sys/net/ipv4/conf/<interface>/*, set without needing a writable /proc/sys.
const (
	ConfForwarding      = 1
	ConfAcceptRedirects = 4
	ConfSendRedirects   = 6
	ConfRPFilter        = 8
	ConfARPIgnore       = 19
)

// VethEnd is one end of a veth pair. Index 0 lets the kernel choose; MTU 0 keeps 1500.
type VethEnd struct {
	Name  string
	Index int32
	MTU   uint32
	MAC   []byte
}

func (e VethEnd) encode(b *Buffer, ns int) {
	b.Raw(structBytes(&unix.IfInfomsg{Family: unix.AF_UNSPEC, Index: e.Index}))
	b.String(unix.IFLA_IFNAME, e.Name)
	if e.MTU != 0 {
		b.U32(unix.IFLA_MTU, e.MTU)
	}
	if e.MAC != nil {
		b.Attr(unix.IFLA_ADDRESS, e.MAC)
	}
	if ns >= 0 {
		b.U32(unix.IFLA_NET_NS_FD, uint32(ns))
	}
}

// AddVeth creates a veth pair, both ends down: local in the socket's namespace, peer in the
// namespace behind the descriptor peerNS (negative: in the socket's as well). A name or index
// that is taken is EEXIST.
func AddVeth(local, peer VethEnd, peerNS int) Message {
	var b Buffer
	local.encode(&b, -1)
	b.Nest(unix.IFLA_LINKINFO, func(b *Buffer) {
		b.Attr(unix.IFLA_INFO_KIND, []byte("veth"))
		b.Nest(unix.IFLA_INFO_DATA, func(b *Buffer) {
			b.Nest(vethInfoPeer, func(b *Buffer) { peer.encode(b, peerNS) })
		})
	})
	return Message{
		Type: unix.RTM_NEWLINK, Flags: unix.NLM_F_CREATE | unix.NLM_F_EXCL, Body: b.Bytes(),
		What: fmt.Sprintf("create veth pair %s and %s", local.Name, peer.Name),
	}
}

// LinkUp brings an interface up.
func LinkUp(index int32) Message {
	return Message{
		Type: unix.RTM_NEWLINK, What: fmt.Sprintf("bring interface %d up", index),
		Body: structBytes(&unix.IfInfomsg{Family: unix.AF_UNSPEC, Index: index, Flags: unix.IFF_UP, Change: unix.IFF_UP}),
	}
}

// LinkMTU sets an interface's MTU.
func LinkMTU(index int32, mtu uint32) Message {
	var b Buffer
	b.Raw(structBytes(&unix.IfInfomsg{Family: unix.AF_UNSPEC, Index: index})).U32(unix.IFLA_MTU, mtu)
	return Message{Type: unix.RTM_NEWLINK, Body: b.Bytes(), What: fmt.Sprintf("set MTU %d of interface %d", mtu, index)}
}

// MoveLink moves an interface to the namespace behind the descriptor ns.
func MoveLink(index int32, ns int) Message {
	var b Buffer
	b.Raw(structBytes(&unix.IfInfomsg{Family: unix.AF_UNSPEC, Index: index})).U32(unix.IFLA_NET_NS_FD, uint32(ns))
	return Message{Type: unix.RTM_NEWLINK, Body: b.Bytes(), What: fmt.Sprintf("move interface %d to another namespace", index)}
}

// DelLink removes an interface.
func DelLink(index int32) Message {
	return Message{
		Type: unix.RTM_DELLINK, What: fmt.Sprintf("remove interface %d", index),
		Body: structBytes(&unix.IfInfomsg{Family: unix.AF_UNSPEC, Index: index}),
	}
}

// LinkConf sets IPv4 switches of one interface.
func LinkConf(index int32, conf map[uint16]uint32) Message {
	var b Buffer
	b.Raw(structBytes(&unix.IfInfomsg{Family: unix.AF_UNSPEC, Index: index}))
	b.Nest(unix.IFLA_AF_SPEC, func(b *Buffer) {
		b.Nest(unix.AF_INET, func(b *Buffer) {
			b.Nest(unix.IFLA_INET_CONF, func(b *Buffer) {
				for key, value := range conf {
					b.U32(key, value)
				}
			})
		})
	})
	return Message{Type: unix.RTM_SETLINK, Body: b.Bytes(), What: fmt.Sprintf("set IPv4 options of interface %d", index)}
}

// LinkNoIPv6LinkLocal keeps an interface that is still down from making itself an IPv6 link-local
// address. A kernel without IPv6 refuses it; that refusal can be ignored.
func LinkNoIPv6LinkLocal(index int32) Message {
	var b Buffer
	b.Raw(structBytes(&unix.IfInfomsg{Family: unix.AF_UNSPEC, Index: index}))
	b.Nest(unix.IFLA_AF_SPEC, func(b *Buffer) {
		b.Nest(unix.AF_INET6, func(b *Buffer) { b.U8(inet6AddrGenMode, addrGenModeNone) })
	})
	return Message{Type: unix.RTM_SETLINK, Body: b.Bytes(), What: fmt.Sprintf("keep interface %d without IPv6 address", index)}
}

// AddAddr gives an interface an IPv4 address.
func AddAddr(index int32, prefix netip.Prefix) Message {
	a := prefix.Addr().As4()
	var b Buffer
	b.Raw(structBytes(&unix.IfAddrmsg{
		Family: unix.AF_INET, Prefixlen: uint8(prefix.Bits()), Index: uint32(index),
	})).Attr(unix.IFA_LOCAL, a[:]).Attr(unix.IFA_ADDRESS, a[:])
	return Message{
		Type: unix.RTM_NEWADDR, Flags: unix.NLM_F_CREATE | unix.NLM_F_EXCL, Body: b.Bytes(),
		What: fmt.Sprintf("add address %s to interface %d", prefix, index),
	}
}

// AddRoute adds an IPv4 route through gateway on an interface; an invalid gateway makes it a
// route to the link itself.
func AddRoute(index int32, to netip.Prefix, gateway netip.Addr) Message {
	rt := unix.RtMsg{
		Family: unix.AF_INET, Dst_len: uint8(to.Bits()), Table: unix.RT_TABLE_MAIN,
		Protocol: unix.RTPROT_STATIC, Scope: unix.RT_SCOPE_UNIVERSE, Type: unix.RTN_UNICAST,
	}
	if !gateway.IsValid() {
		rt.Scope = unix.RT_SCOPE_LINK
	}
	var b Buffer
	b.Raw(structBytes(&rt))
	if to.Bits() > 0 {
		a := to.Masked().Addr().As4()
		b.Attr(unix.RTA_DST, a[:])
	}
	if gateway.IsValid() {
		a := gateway.As4()
		b.Attr(unix.RTA_GATEWAY, a[:])
	}
	b.U32(unix.RTA_OIF, uint32(index))
	return Message{
		Type: unix.RTM_NEWROUTE, Flags: unix.NLM_F_CREATE | unix.NLM_F_EXCL, Body: b.Bytes(),
		What: fmt.Sprintf("add route to %s", to),
	}
}

// Link is what the kernel says about an interface.
type Link struct {
	Index int32
	Name  string
	Up    bool
	// Operational is IF_OPER_UP: it has a carrier and sends.
	Operational bool
}

func parseLink(body []byte) (Link, bool) {
	if len(body) < unix.SizeofIfInfomsg {
		return Link{}, false
	}
	info := *(*unix.IfInfomsg)(unsafe.Pointer(&body[0]))
	l := Link{Index: info.Index, Up: info.Flags&unix.IFF_UP != 0}
	for typ, value := range Attributes(body[unix.SizeofIfInfomsg:]) {
		switch {
		case typ == unix.IFLA_IFNAME && len(value) > 0:
			l.Name = string(value[:len(value)-1])
		case typ == unix.IFLA_OPERSTATE && len(value) == 1:
			l.Operational = value[0] == operUp
		}
	}
	return l, true
}

// LinkByName looks an interface up; one that does not exist is ENODEV.
func (c *Conn) LinkByName(name string) (Link, error) {
	var b Buffer
	b.Raw(structBytes(&unix.IfInfomsg{Family: unix.AF_UNSPEC})).String(unix.IFLA_IFNAME, name)
	var found Link
	err := c.Get(Message{Type: unix.RTM_GETLINK, Body: b.Bytes(), What: "look up interface " + name},
		func(typ uint16, body []byte) error {
			if l, ok := parseLink(body); ok && typ == unix.RTM_NEWLINK {
				found = l
			}
			return nil
		})
	return found, err
}

// WaitOperational waits until an interface of the veth kind sends, but not for long: it will, later.
// Between being up and that lies work that the kernel does in its own time (linkwatch), and what
// is sent meanwhile is lost: a connection's first packet would be repeated only after a second.
// Kernels since 6.8 do the work when asked for the state, so that there is no waiting.
func (c *Conn) WaitOperational(name string) error {
	const patience = 300 // ms
	for range patience {
		link, err := c.LinkByName(name)
		if err != nil || link.Operational {
			return err
		}
		time.Sleep(time.Millisecond)
	}
	return nil
}

// Links lists all interfaces.
func (c *Conn) Links() ([]Link, error) {
	var links []Link
	err := c.Get(Message{
		Type: unix.RTM_GETLINK, Flags: unix.NLM_F_DUMP, What: "list interfaces",
		Body: structBytes(&unix.IfInfomsg{Family: unix.AF_UNSPEC}),
	}, func(typ uint16, body []byte) error {
		if l, ok := parseLink(body); ok && typ == unix.RTM_NEWLINK {
			links = append(links, l)
		}
		return nil
	})
	return links, err
}

// Addr is an IPv4 address of an interface.
type Addr struct {
	Index  int32
	Prefix netip.Prefix
}

// Addrs lists all IPv4 addresses.
func (c *Conn) Addrs() ([]Addr, error) {
	var addrs []Addr
	err := c.Get(Message{
		Type: unix.RTM_GETADDR, Flags: unix.NLM_F_DUMP, What: "list addresses",
		Body: structBytes(&unix.IfAddrmsg{Family: unix.AF_INET}),
	}, func(typ uint16, body []byte) error {
		if typ != unix.RTM_NEWADDR || len(body) < unix.SizeofIfAddrmsg {
			return nil
		}
		info := *(*unix.IfAddrmsg)(unsafe.Pointer(&body[0]))
		for typ, value := range Attributes(body[unix.SizeofIfAddrmsg:]) {
			if typ == unix.IFA_LOCAL && len(value) == 4 {
				addrs = append(addrs, Addr{int32(info.Index), netip.PrefixFrom(netip.AddrFrom4([4]byte(value)), int(info.Prefixlen))})
			}
		}
		return nil
	})
	return addrs, err
}

// Route is an IPv4 unicast route of the main table.
type Route struct {
	To      netip.Prefix
	Index   int32 // 0 if the route has several next hops
	Gateway netip.Addr
}

// Routes lists the IPv4 unicast routes of the main table.
func (c *Conn) Routes() ([]Route, error) {
	var routes []Route
	err := c.Get(Message{
		Type: unix.RTM_GETROUTE, Flags: unix.NLM_F_DUMP, What: "list routes",
		Body: structBytes(&unix.RtMsg{Family: unix.AF_INET}),
	}, func(typ uint16, body []byte) error {
		if typ != unix.RTM_NEWROUTE || len(body) < unix.SizeofRtMsg {
			return nil
		}
		info := *(*unix.RtMsg)(unsafe.Pointer(&body[0]))
		if info.Family != unix.AF_INET || info.Table != unix.RT_TABLE_MAIN || info.Type != unix.RTN_UNICAST {
			return nil
		}
		r := Route{To: netip.PrefixFrom(netip.IPv4Unspecified(), int(info.Dst_len))}
		for typ, value := range Attributes(body[unix.SizeofRtMsg:]) {
			if len(value) != 4 {
				continue
			}
			switch typ {
			case unix.RTA_DST:
				r.To = netip.PrefixFrom(netip.AddrFrom4([4]byte(value)), int(info.Dst_len))
			case unix.RTA_GATEWAY:
				r.Gateway = netip.AddrFrom4([4]byte(value))
			case unix.RTA_OIF:
				r.Index = int32(binary.NativeEndian.Uint32(value))
			}
		}
		routes = append(routes, r)
		return nil
	})
	return routes, err
}
