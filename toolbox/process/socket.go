package process

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"

	"github.com/coder/websocket"
	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona/toolbox/wire"
)

// Socket is the agent's end of a WebSocket. One goroutine may read while
// others write. Pings are answered although a write is blocked: then as soon
// as the write is through.
type Socket struct {
	ws  *websocket.Conn
	raw net.Conn
	// Protocol is the subprotocol that was selected, or "".
	Protocol string

	write sync.Mutex
	mu    sync.Mutex
	// pong is owed to the client: the payload of its last ping.
	pong  []byte
	owing bool
}

// IsUpgrade says whether r asks for a WebSocket.
func IsUpgrade(r *http.Request) bool {
	return strings.EqualFold(r.Header.Get("Upgrade"), "websocket")
}

// AcceptSocket answers the handshake and selects one of the subprotocols that
// the client offers: see [wire.SelectProtocol]. On an error it has answered.
// limit is the greatest size of a message in bytes.
func AcceptSocket(w http.ResponseWriter, r *http.Request, limit int64) (*Socket, error) {
	s := &Socket{Protocol: wire.SelectProtocol(wire.OfferedProtocols(r.Header))}
	opts := &websocket.AcceptOptions{
		// Who may connect is decided before a request reaches the agent, by
		// token; the origin of a page says nothing about that.
		InsecureSkipVerify: true,
		CompressionMode:    websocket.CompressionDisabled,
		OnPingReceived: func(_ context.Context, payload []byte) bool {
			s.ping(payload)
			return false
		},
	}
	if s.Protocol != "" {
		opts.Subprotocols = []string{s.Protocol}
	}
	ws, err := websocket.Accept(&keepConn{ResponseWriter: w, socket: s}, r, opts)
	if err != nil {
		return nil, fmt.Errorf("accept a WebSocket: %w", err)
	}
	ws.SetReadLimit(limit)
	s.ws = ws
	return s, nil
}

// keepConn notes the connection under the WebSocket.
type keepConn struct {
	http.ResponseWriter
	socket *Socket
}

func (k *keepConn) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(k.ResponseWriter).Hijack()
	k.socket.raw = conn
	return conn, rw, err
}

// ping answers at once, or leaves it to the writer that is at work.
func (s *Socket) ping(payload []byte) {
	s.mu.Lock()
	s.pong, s.owing = append(s.pong[:0], payload...), true
	s.mu.Unlock()
	if s.write.TryLock() {
		s.answer()
		s.unlock()
	}
}

// unlock ends a write. A ping that came before it is answered by someone: by
// the caller, or by whoever takes the lock after it.
func (s *Socket) unlock() {
	for {
		s.write.Unlock()
		s.mu.Lock()
		owing := s.owing
		s.mu.Unlock()
		if !owing || !s.write.TryLock() {
			return
		}
		s.answer()
	}
}

// answer sends the pong that is owed. The caller holds the write lock.
func (s *Socket) answer() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.owing {
		return
	}
	s.owing = false
	// FIN and opcode 10, then the length (of at most 125) unmasked: RFC 6455,
	// section 5.2.
	frame := append([]byte{0x8a, byte(len(s.pong))}, s.pong...)
	_, _ = s.raw.Write(frame)
}

// Read returns the next message.
func (s *Socket) Read() (text bool, data []byte, err error) {
	t, data, err := s.ws.Read(context.Background())
	return t == websocket.MessageText, data, err
}

// WriteText and WriteBinary send a message. They block while the client does
// not read.
func (s *Socket) WriteText(b []byte) error   { return s.send(websocket.MessageText, b) }
func (s *Socket) WriteBinary(b []byte) error { return s.send(websocket.MessageBinary, b) }

func (s *Socket) send(t websocket.MessageType, b []byte) error {
	s.write.Lock()
	defer s.unlock()
	return s.ws.Write(context.Background(), t, b)
}

// Discard reads until the connection ends and closes the returned channel
// then. Messages are dropped.
func (s *Socket) Discard() <-chan struct{} {
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		for {
			if _, _, err := s.Read(); err != nil {
				return
			}
		}
	}()
	return gone
}

// Close sends a close frame and waits up to five seconds for the client's.
// reason is cut to what a close frame holds.
func (s *Socket) Close(code int, reason string) {
	if len(reason) > 123 {
		reason = strings.ToValidUTF8(reason[:123], "")
	}
	_ = s.ws.Close(websocket.StatusCode(code), reason)
}

// Drop ends the connection without ceremony.
func (s *Socket) Drop() { _ = s.ws.CloseNow() }

// Hangup is for times when nobody reads because there is no room for what
// would be read: wait returns true when the peer has closed its side of the
// connection, false once stop has been called. wait must be called, once; stop
// returns when it has returned.
func (s *Socket) Hangup() (wait func() bool, stop func()) {
	event, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return func() bool { return false }, func() {}
	}
	var once sync.Once
	finished := make(chan struct{})
	stop = func() {
		once.Do(func() {
			one := [8]byte{1}
			_, _ = unix.Write(event, one[:])
			<-finished
			unix.Close(event)
		})
	}
	return func() (gone bool) {
		defer close(finished)
		sc, ok := s.raw.(syscall.Conn)
		if !ok {
			return false
		}
		conn, err := sc.SyscallConn()
		if err != nil {
			return false
		}
		_ = conn.Control(func(fd uintptr) {
			fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}, {Fd: int32(event), Events: unix.POLLIN}}
			for {
				_, err := unix.Poll(fds, -1)
				if err == unix.EINTR {
					continue
				}
				gone = err == nil && fds[0].Revents != 0
				return
			}
		})
		return gone
	}, stop
}
