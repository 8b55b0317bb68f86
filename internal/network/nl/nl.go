// Package nl speaks netlink to the kernel: messages, attributes, batches and acknowledgements.
//
// It exists because the code that sets up a sandbox's network runs in two places with different
// needs: in the engine, where a whole namespace is configured in a handful of system calls, and
// in the boot process of a rootless container, which must stay tiny and may import nothing but
// golang.org/x/sys. It knows links, addresses and routes; it must not know sandboxes, policies or
// firewall rules.
package nl

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// attrTypeMask takes the NESTED and BYTEORDER flags off an attribute type (linux/netlink.h).
const attrTypeMask = 0x3fff

// Message is one netlink request. Flags always gets NLM_F_REQUEST added.
type Message struct {
	Type  uint16
	Flags uint16
	Body  []byte
	// NoAck leaves NLM_F_ACK out. The kernel then answers only if the message fails.
	NoAck bool
	// What says in words what the message does; it is part of the error when it fails.
	What string
}

// Error is the kernel's refusal of one message.
type Error struct {
	Errno unix.Errno
	What  string // what the message was to do
	Text  string // the kernel's own explanation (extended ack), often empty
}

func (e *Error) Error() string {
	s := e.Errno.Error()
	if e.Text != "" {
		s += " (kernel: " + e.Text + ")"
	}
	if e.What == "" {
		return "netlink: " + s
	}
	return e.What + ": " + s
}

// Unwrap gives the errno, so that errors.Is(err, unix.EEXIST) works.
func (e *Error) Unwrap() error { return e.Errno }

// Conn is a netlink socket. It belongs for good to the network namespace of the thread that
// dialled it, whichever thread uses it later. It is not safe for concurrent use.
type Conn struct {
	fd  int
	seq uint32
	buf []byte
	out []byte
}

// receiveTimeout bounds every wait for the kernel, which answers before sendmsg returns; it is
// only ever reached when something is badly wrong.
const receiveTimeout = 5 * time.Second

// Dial opens a netlink socket (unix.NETLINK_ROUTE, unix.NETLINK_NETFILTER) in the network
// namespace of the calling thread.
func Dial(protocol int) (*Conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket (protocol %d): %w", protocol, err)
	}
	c := &Conn{fd: fd, buf: make([]byte, 64<<10)}
	tv := unix.NsecToTimeval(receiveTimeout.Nanoseconds())
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
	// Both only make errors better and shorter; kernels before 4.12 lack them.
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1)
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("bind netlink socket (protocol %d): %w", protocol, err)
	}
	return c, nil
}

// Close closes the socket.
func (c *Conn) Close() error { return unix.Close(c.fd) }

// FD is the socket's descriptor, for poll and socket options. It stays the Conn's.
func (c *Conn) FD() int { return c.fd }

// Do sends all messages in one system call and waits until the kernel has acted on them. The
// kernel goes on after a refused message (except within a netfilter batch), so the error may
// stand for any of them; it is the first refusal.
func (c *Conn) Do(msgs ...Message) error { return c.exchange(msgs, nil) }

// Get sends one message and calls fn for each message of the reply.
func (c *Conn) Get(m Message, fn func(typ uint16, body []byte) error) error {
	return c.exchange([]Message{m}, fn)
}

func (c *Conn) exchange(msgs []Message, fn func(uint16, []byte) error) error {
	if len(msgs) == 0 {
		return nil
	}
	first := c.seq + 1
	last := uint32(0)
	c.out = c.out[:0]
	for i := range msgs {
		m := &msgs[i]
		c.seq++
		flags := m.Flags | unix.NLM_F_REQUEST
		dump := flags&unix.NLM_F_DUMP == unix.NLM_F_DUMP
		if !m.NoAck && !dump {
			flags |= unix.NLM_F_ACK
		}
		if flags&unix.NLM_F_ACK != 0 || dump {
			last = c.seq
		}
		c.out = binary.NativeEndian.AppendUint32(c.out, uint32(unix.NLMSG_HDRLEN+len(m.Body)))
		c.out = binary.NativeEndian.AppendUint16(c.out, m.Type)
		c.out = binary.NativeEndian.AppendUint16(c.out, flags)
		c.out = binary.NativeEndian.AppendUint32(c.out, c.seq)
		c.out = binary.NativeEndian.AppendUint32(c.out, 0)
		c.out = append(c.out, m.Body...)
		for len(c.out)%unix.NLMSG_ALIGNTO != 0 {
			c.out = append(c.out, 0)
		}
	}
	if last == 0 {
		return errors.New("netlink: no message of the request asks for an answer")
	}
	what := func(seq uint32) string {
		if i := seq - first; i < uint32(len(msgs)) {
			return msgs[i].What
		}
		return ""
	}
	if len(c.out) > 128<<10 {
		// The default send buffer (208 KiB) does not take a large rule set.
		_ = unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 4*len(c.out))
	}
	for {
		err := unix.Sendto(c.fd, c.out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		if err == nil {
			break
		}
		if err != unix.EINTR {
			return &Error{Errno: errno(err), What: msgs[0].What}
		}
	}
	var refused error
	for {
		n, _, err := unix.Recvfrom(c.fd, c.buf, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return &Error{Errno: errno(err), What: "read the kernel's answer to: " + msgs[0].What}
		}
		for b := c.buf[:n]; len(b) >= unix.NLMSG_HDRLEN; {
			size := binary.NativeEndian.Uint32(b)
			typ := binary.NativeEndian.Uint16(b[4:])
			flags := binary.NativeEndian.Uint16(b[6:])
			seq := binary.NativeEndian.Uint32(b[8:])
			if size < unix.NLMSG_HDRLEN || int(size) > len(b) {
				return errors.New("netlink: the kernel's answer is cut short")
			}
			body := b[unix.NLMSG_HDRLEN:size]
			b = b[min(len(b), int(align(size))):]
			if seq-first >= uint32(len(msgs)) {
				continue // an answer to an earlier request that gave up waiting
			}
			switch typ {
			case unix.NLMSG_DONE:
				if seq == last {
					return refused
				}
			case unix.NLMSG_ERROR:
				if len(body) < 4 {
					return errors.New("netlink: the kernel's answer is cut short")
				}
				if code := int32(binary.NativeEndian.Uint32(body)); code != 0 && refused == nil {
					refused = &Error{Errno: unix.Errno(-code), What: what(seq), Text: extendedAck(flags, body)}
				}
				if seq == last {
					return refused
				}
				// A netfilter batch refused as a whole is answered under the number of its
				// first message alone.
				if refused != nil && seq == first && msgs[0].Type == unix.NFNL_MSG_BATCH_BEGIN {
					return refused
				}
			default:
				if fn != nil {
					if err := fn(typ, body); err != nil && refused == nil {
						refused = err
					}
				}
			}
		}
	}
}

func errno(err error) unix.Errno {
	var e unix.Errno
	if errors.As(err, &e) {
		return e
	}
	return unix.EIO
}

// extendedAck finds NLMSGERR_ATTR_MSG behind an error (linux/netlink.h).
func extendedAck(flags uint16, body []byte) string {
	if flags&unix.NLM_F_ACK_TLVS == 0 || len(body) < 4+unix.NLMSG_HDRLEN {
		return ""
	}
	skip := uint32(4 + unix.NLMSG_HDRLEN)
	if flags&unix.NLM_F_CAPPED == 0 {
		skip = 4 + align(binary.NativeEndian.Uint32(body[4:]))
	}
	if int(skip) > len(body) {
		return ""
	}
	text := ""
	for typ, value := range Attributes(body[skip:]) {
		if typ == unix.NLMSGERR_ATTR_MSG && len(value) > 0 {
			text = string(value[:len(value)-1])
		}
	}
	return text
}

func align(n uint32) uint32 { return (n + unix.NLA_ALIGNTO - 1) &^ (unix.NLA_ALIGNTO - 1) }

// Attributes walks the attributes in b, stopping at the first malformed one.
func Attributes(b []byte) func(yield func(typ uint16, value []byte) bool) {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.SizeofNlAttr {
			size := binary.NativeEndian.Uint16(b)
			typ := binary.NativeEndian.Uint16(b[2:]) & attrTypeMask
			if size < unix.SizeofNlAttr || int(size) > len(b) {
				return
			}
			if !yield(typ, b[unix.SizeofNlAttr:size]) {
				return
			}
			b = b[min(len(b), int(align(uint32(size)))):]
		}
	}
}

// Buffer builds the body of a message.
type Buffer struct{ b []byte }

// Bytes is the finished body.
func (b *Buffer) Bytes() []byte { return b.b }

// Raw appends bytes as they are, padded to the alignment of attributes.
func (b *Buffer) Raw(p []byte) *Buffer {
	b.b = append(b.b, p...)
	return b.pad()
}

func (b *Buffer) pad() *Buffer {
	for len(b.b)%unix.NLA_ALIGNTO != 0 {
		b.b = append(b.b, 0)
	}
	return b
}

// Attr appends an attribute.
func (b *Buffer) Attr(typ uint16, value []byte) *Buffer {
	b.b = binary.NativeEndian.AppendUint16(b.b, uint16(unix.SizeofNlAttr+len(value)))
	b.b = binary.NativeEndian.AppendUint16(b.b, typ)
	b.b = append(b.b, value...)
	return b.pad()
}

// U8 appends a byte.
func (b *Buffer) U8(typ uint16, v uint8) *Buffer { return b.Attr(typ, []byte{v}) }

// U32 appends a number in the machine's byte order, as rtnetlink wants it.
func (b *Buffer) U32(typ uint16, v uint32) *Buffer {
	return b.Attr(typ, binary.NativeEndian.AppendUint32(nil, v))
}

// BE32 appends a number in network byte order, as nfnetlink wants it.
func (b *Buffer) BE32(typ uint16, v uint32) *Buffer {
	return b.Attr(typ, binary.BigEndian.AppendUint32(nil, v))
}

// String appends a NUL-terminated string.
func (b *Buffer) String(typ uint16, s string) *Buffer { return b.Attr(typ, append([]byte(s), 0)) }

// Nest appends an attribute that holds what fn appends.
func (b *Buffer) Nest(typ uint16, fn func(*Buffer)) *Buffer {
	at := len(b.b)
	b.b = append(b.b, 0, 0, 0, 0)
	fn(b)
	binary.NativeEndian.PutUint16(b.b[at:], uint16(len(b.b)-at))
	binary.NativeEndian.PutUint16(b.b[at+2:], typ|unix.NLA_F_NESTED)
	return b
}

func structBytes[T any](v *T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(v)), unsafe.Sizeof(*v))
}
