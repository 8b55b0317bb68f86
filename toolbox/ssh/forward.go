package ssh

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"
)

// dialTime bounds the connection to what a forwarded one leads to.
const dialTime = 10 * time.Second

// tcpForward is the payload of tcpip-forward and its cancellation: RFC 4254,
// section 7.1.
type tcpForward struct {
	Host string
	Port uint32
}

func (m tcpForward) key() string { return "tcp:" + net.JoinHostPort(m.Host, strconv.Itoa(int(m.Port))) }

// tcpChannel is the payload of a direct-tcpip or forwarded-tcpip channel:
// section 7.2.
type tcpChannel struct {
	Host       string
	Port       uint32
	OriginHost string
	OriginPort uint32
}

// The payloads of Unix sockets: OpenSSH's PROTOCOL, section 2.4.
type unixForward struct{ Path string }

func (m unixForward) key() string { return "unix:" + m.Path }

type unixChannel struct {
	Path      string
	Reserved  string
	Reserved2 uint32
}

type unixOpened struct {
	Path     string
	Reserved string
}

// dialTCP connects a channel to a port that the sandbox can reach.
func (c *connection) dialTCP(ch ssh.NewChannel) {
	var m tcpChannel
	if err := ssh.Unmarshal(ch.ExtraData(), &m); err != nil || m.Port == 0 || m.Port > 65535 {
		_ = ch.Reject(ssh.ConnectionFailed, "a host and a port from 1 to 65535 are wanted")
		return
	}
	c.dial(ch, "tcp", net.JoinHostPort(m.Host, strconv.Itoa(int(m.Port))))
}

// dialUnix connects a channel to a Unix socket in the sandbox.
func (c *connection) dialUnix(ch ssh.NewChannel) {
	var m unixChannel
	if err := ssh.Unmarshal(ch.ExtraData(), &m); err != nil || m.Path == "" {
		_ = ch.Reject(ssh.ConnectionFailed, "the path of a socket is wanted")
		return
	}
	c.dial(ch, "unix", c.path(m.Path))
}

// path is relative to the working directory.
func (c *connection) path(p string) string {
	if filepath.IsAbs(p) {
		return p
	}
	return filepath.Join(c.spawner.WorkDir(), p)
}

func (c *connection) dial(ch ssh.NewChannel, network, address string) {
	d := net.Dialer{Timeout: dialTime}
	conn, err := d.DialContext(c.ctx, network, address)
	if err != nil {
		_ = ch.Reject(ssh.ConnectionFailed, err.Error())
		return
	}
	channel, requests, err := ch.Accept()
	if err != nil {
		conn.Close()
		return
	}
	c.join(channel, requests, conn)
}

// join copies both ways; each direction ends by itself.
func (c *connection) join(channel ssh.Channel, requests <-chan *ssh.Request, conn net.Conn) {
	gone, copied := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(gone)
		ssh.DiscardRequests(requests)
		// Closed by the client, the channel takes nothing any more, and the
		// program may have nothing to say. What the client said last it gets.
		select {
		case <-copied:
		case <-time.After(dialTime):
		}
		conn.Close()
	}()
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(copied)
		_, err := io.Copy(conn, channel)
		if half, ok := conn.(interface{ CloseWrite() error }); ok && err == nil {
			_ = half.CloseWrite()
		} else {
			conn.Close()
		}
	})
	wg.Go(func() {
		_, _ = io.Copy(channel, conn)
		_ = channel.CloseWrite()
	})
	wg.Wait()
	_ = channel.Close()
	conn.Close()
	<-gone
}

// forward is a place in the sandbox whose connections go to the client.
type forward struct {
	listeners []net.Listener
	// kind and payload are those of the channels.
	kind    string
	payload func(net.Conn) []byte
	// remove is called at the end. May be nil.
	remove func()
	once   sync.Once
}

func (f *forward) close() {
	f.once.Do(func() {
		for _, l := range f.listeners {
			l.Close()
		}
		if f.remove != nil {
			f.remove()
		}
	})
}

// add makes f work until it is cancelled. It returns false, and closes f, if
// there is no room or the key is taken.
func (c *connection) add(key string, f *forward) bool {
	c.mu.Lock()
	_, taken := c.forwards[key]
	refused := c.closed || taken || len(c.forwards) >= maxListeners
	if !refused {
		c.forwards[key] = f
	}
	c.mu.Unlock()
	if refused {
		f.close()
		return false
	}
	for _, l := range f.listeners {
		go c.accept(l, f)
	}
	return true
}

func (c *connection) cancel(key string) bool {
	c.mu.Lock()
	f, ok := c.forwards[key]
	delete(c.forwards, key)
	c.mu.Unlock()
	if ok {
		f.close()
	}
	return ok
}

func (c *connection) accept(l net.Listener, f *forward) {
	for {
		conn, err := l.Accept()
		if err != nil {
			if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ECONNABORTED) {
				time.Sleep(10 * time.Millisecond)
				continue
			}
			return
		}
		if c.channels.Add(1) > maxChannels {
			c.channels.Add(-1)
			conn.Close()
			continue
		}
		go func() {
			defer c.channels.Add(-1)
			channel, requests, err := c.client.OpenChannel(f.kind, f.payload(conn))
			if err != nil {
				conn.Close()
				return
			}
			c.join(channel, requests, conn)
		}()
	}
}

// listenTCP serves tcpip-forward. Whatever address the client wants, only the
// sandbox itself reaches the port: nobody else has business with the client.
func (c *connection) listenTCP(payload []byte) (bool, []byte) {
	var m tcpForward
	if ssh.Unmarshal(payload, &m) != nil || m.Port > 65535 {
		return false, nil
	}
	wanted := m.Port
	first, err := net.Listen("tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(m.Port))))
	if err != nil {
		if !errors.Is(err, unix.EADDRNOTAVAIL) && !errors.Is(err, unix.EAFNOSUPPORT) {
			return false, nil
		}
	}
	f := &forward{kind: "forwarded-tcpip"}
	if first != nil {
		f.listeners = append(f.listeners, first)
		m.Port = uint32(first.Addr().(*net.TCPAddr).Port)
	}
	// The same port of the other family, if it is free.
	if second, err := net.Listen("tcp6", net.JoinHostPort("::1", strconv.Itoa(int(m.Port)))); err == nil {
		f.listeners = append(f.listeners, second)
		m.Port = uint32(second.Addr().(*net.TCPAddr).Port)
	}
	if len(f.listeners) == 0 {
		return false, nil
	}
	f.payload = func(conn net.Conn) []byte {
		out := tcpChannel{Host: m.Host, Port: m.Port}
		if from, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
			out.OriginHost, out.OriginPort = from.IP.String(), uint32(from.Port)
		}
		return ssh.Marshal(out)
	}
	if !c.add(m.key(), f) {
		return false, nil
	}
	if wanted != 0 {
		return true, nil
	}
	return true, ssh.Marshal(struct{ Port uint32 }{m.Port})
}

// listenUnix serves streamlocal-forward.
func (c *connection) listenUnix(payload []byte) bool {
	var m unixForward
	if ssh.Unmarshal(payload, &m) != nil || m.Path == "" {
		return false
	}
	l, err := listenPrivate(c.path(m.Path))
	if err != nil {
		return false
	}
	return c.add(m.key(), &forward{
		kind: "forwarded-streamlocal@openssh.com", listeners: []net.Listener{l},
		payload: func(net.Conn) []byte { return ssh.Marshal(unixOpened{Path: m.Path}) },
	})
}

// listenPrivate makes a Unix socket that only the user can connect to. It is
// removed when the listener is closed.
func listenPrivate(path string) (net.Listener, error) {
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		// The file that bind(2) makes gets the mode of the socket: no moment
		// passes with another one.
		if cerr := raw.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }); cerr != nil {
			return cerr
		}
		return err
	}}
	return config.Listen(context.Background(), "unix", path)
}

// forwardAgent makes the client's authentication agent known to a session, and
// returns the value of SSH_AUTH_SOCK.
func (c *connection) forwardAgent() (string, bool) {
	const key = "agent"
	c.agent.Lock()
	defer c.agent.Unlock()
	c.mu.Lock()
	f, ok := c.forwards[key]
	c.mu.Unlock()
	if ok {
		return f.listeners[0].Addr().String(), true
	}
	dir, err := os.MkdirTemp("", "ssh-")
	if err != nil {
		return "", false
	}
	l, err := listenPrivate(filepath.Join(dir, "agent"))
	if err != nil {
		os.Remove(dir)
		return "", false
	}
	f = &forward{
		kind: "auth-agent@openssh.com", listeners: []net.Listener{l},
		payload: func(net.Conn) []byte { return nil },
		remove:  func() { os.Remove(dir) },
	}
	return l.Addr().String(), c.add(key, f)
}
