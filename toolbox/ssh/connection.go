package ssh

import (
	"context"
	"crypto/ed25519"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"github.com/daytona-go/daytona/toolbox/process"
	"github.com/daytona-go/daytona/toolbox/wire"
)

// HelperName is what the agent's program is to call [Helper] for.
const HelperName = "ssh"

const (
	// loginTime bounds key exchange and login.
	loginTime = 30 * time.Second
	// maxChannels of a connection, maxListeners that it may have opened.
	maxChannels  = 256
	maxListeners = 64
	// requestRate a second, after requestBurst at once, is how many channels
	// and requests of a connection are answered; then it has to wait.
	requestRate, requestBurst = 500, 1000
	// aliveInterval is between questions to the client whether it is there,
	// aliveTime what it may take to answer.
	aliveInterval = time.Minute
	aliveTime     = 30 * time.Second
	// configLimit bounds the configuration, in bytes.
	configLimit = 64 << 10
	// memoryLimit is the heap size above which the collector works harder, in
	// bytes.
	memoryLimit = 256 << 20
)

// helperConfig is what a helper is told, as JSON on its descriptor 3. The
// connection is its standard input.
type helperConfig struct {
	// HostKey is the seed of the key.
	HostKey []byte `json:"hostKey"`
	WorkDir string `json:"workDir"`
	// Gateway says that clients have to log in as the public API's gateways do.
	Gateway         bool `json:"gateway,omitempty"`
	AgentForwarding bool `json:"agentForwarding,omitempty"`
}

// Helper serves one connection and returns the program's exit code. What it
// writes to standard error is the reason that the client is given. environ is
// where programs get their environment from.
func Helper(environ func() []string) int {
	err := serveOne(environ)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func serveOne(environ func() []string) error {
	// It has the host key.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("make the SSH helper untraceable: %w", err)
	}
	debug.SetGCPercent(50)
	debug.SetMemoryLimit(memoryLimit)
	runtime.GOMAXPROCS(min(4, runtime.GOMAXPROCS(0)))
	// A client that is gone is an error of the write.
	signal.Ignore(syscall.SIGPIPE)

	settings := os.NewFile(3, "configuration")
	b, err := io.ReadAll(io.LimitReader(settings, configLimit))
	settings.Close()
	var config helperConfig
	if err == nil {
		err = json.Unmarshal(b, &config)
	}
	if err != nil {
		return fmt.Errorf("read the configuration: %w", err)
	}
	conn, err := net.FileConn(os.Stdin)
	if err != nil {
		return fmt.Errorf("take over the connection: %w", err)
	}
	os.Stdin.Close()
	spawner, err := process.NewSpawner(process.Options{WorkDir: config.WorkDir, Environ: environ})
	if err != nil {
		return err
	}
	c := &connection{config: config, spawner: spawner, forwards: make(map[string]*forward), limit: rate.NewLimiter(requestRate, requestBurst)}
	if err = c.serve(conn); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	// The agent need not wait for what follows: servers that were started in
	// the background and still write somewhere.
	os.Stderr.Close()
	c.background.Wait()
	return nil
}

// serverConfig decides how clients log in.
func (config *helperConfig) serverConfig() (*ssh.ServerConfig, error) {
	if len(config.HostKey) != ed25519.SeedSize {
		return nil, errors.New("the configuration has no host key")
	}
	key, err := ssh.NewSignerFromKey(ed25519.NewKeyFromSeed(config.HostKey))
	if err != nil {
		return nil, err
	}
	sc := &ssh.ServerConfig{ServerVersion: "SSH-2.0-daytona", MaxAuthTries: 6}
	if config.Gateway {
		sc.PublicKeyCallback = func(ssh.ConnMetadata, ssh.PublicKey) (*ssh.Permissions, error) { return nil, nil }
		sc.PasswordCallback = func(_ ssh.ConnMetadata, password []byte) (*ssh.Permissions, error) {
			if subtle.ConstantTimeCompare(password, []byte(wire.SSHPassword)) != 1 {
				return nil, errors.New("wrong password")
			}
			return nil, nil
		}
	} else {
		sc.NoClientAuth = true
	}
	sc.AddHostKey(key)
	return sc, nil
}

// connection is one client's.
type connection struct {
	config  helperConfig
	spawner *process.Spawner
	client  ssh.Conn
	limit   *rate.Limiter
	ctx     context.Context
	// channels counts the open ones.
	channels atomic.Int32
	// single says that the client wants no more sessions.
	single atomic.Bool
	// background counts what is left to do after the connection's end.
	background sync.WaitGroup

	// agent is held while the client's agent is made known.
	agent sync.Mutex

	mu       sync.Mutex
	closed   bool
	forwards map[string]*forward
	sessions map[*session]struct{}
}

// serve speaks SSH over conn until its end, and returns an error if that was
// because of what the client sent.
func (c *connection) serve(conn net.Conn) error {
	defer conn.Close()
	sc, err := c.config.serverConfig()
	if err != nil {
		return err
	}
	_ = conn.SetDeadline(time.Now().Add(loginTime))
	client, channels, requests, err := ssh.NewServerConn(conn, sc)
	if err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, syscall.ECONNRESET) {
			return nil // it went away
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("SSH: no login within %v", loginTime)
		}
		return fmt.Errorf("SSH: %w", err)
	}
	_ = conn.SetDeadline(time.Time{})
	return c.run(client, channels, requests)
}

// farewell reports whether the client has said that it ends because its user
// does: SSH_DISCONNECT_BY_APPLICATION, of RFC 4253, section 11.1. The library has
// it as text only.
func farewell(err error) bool { return strings.HasPrefix(err.Error(), "ssh: disconnect, reason 11: ") }

// run serves a client that has logged in.
func (c *connection) run(client ssh.Conn, channels <-chan ssh.NewChannel, requests <-chan *ssh.Request) error {
	c.client, c.sessions = client, make(map[*session]struct{})
	var cancel context.CancelFunc
	c.ctx, cancel = context.WithCancel(context.Background())
	defer cancel()
	go c.keepAlive()
	go c.serveRequests(requests)
	for ch := range channels {
		if c.limit.Wait(c.ctx) != nil {
			break
		}
		c.open(ch)
	}
	err := client.Wait()
	cancel()
	c.end()
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) && !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) && !farewell(err) {
		return fmt.Errorf("SSH: %w", err)
	}
	return nil
}

// end takes away what the connection had opened. Programs that nobody listens
// to any more are told that their terminal hung up.
func (c *connection) end() {
	c.mu.Lock()
	c.closed = true
	var forwards []*forward
	for _, f := range c.forwards {
		forwards = append(forwards, f)
	}
	var sessions []*session
	for s := range c.sessions {
		sessions = append(sessions, s)
	}
	c.mu.Unlock()
	for _, f := range forwards {
		f.close()
	}
	for _, s := range sessions {
		s.hangUp()
	}
}

// keepAlive ends a connection whose client does not answer any more.
func (c *connection) keepAlive() {
	ticker := time.NewTicker(aliveInterval)
	defer ticker.Stop()
	for {
		select {
		case <-c.ctx.Done():
			return
		case <-ticker.C:
		}
		late := time.AfterFunc(aliveTime, func() { _ = c.client.Close() })
		_, _, err := c.client.SendRequest("keepalive@openssh.com", true, nil)
		late.Stop()
		if err != nil {
			return
		}
	}
}

// serveRequests answers the requests that are of no channel.
func (c *connection) serveRequests(requests <-chan *ssh.Request) {
	for r := range requests {
		if c.limit.Wait(c.ctx) != nil {
			// Who asks while the connection ends has nobody to answer to.
			ssh.DiscardRequests(requests)
			return
		}
		ok, answer := c.request(r.Type, r.Payload)
		if r.WantReply {
			_ = r.Reply(ok, answer)
		}
	}
}

func (c *connection) request(kind string, payload []byte) (ok bool, answer []byte) {
	switch kind {
	case "keepalive@openssh.com":
		return true, nil
	case "no-more-sessions@openssh.com":
		c.single.Store(true)
		return true, nil
	case "tcpip-forward":
		return c.listenTCP(payload)
	case "streamlocal-forward@openssh.com":
		return c.listenUnix(payload), nil
	case "cancel-tcpip-forward":
		var m tcpForward
		return ssh.Unmarshal(payload, &m) == nil && c.cancel(m.key()), nil
	case "cancel-streamlocal-forward@openssh.com":
		var m unixForward
		return ssh.Unmarshal(payload, &m) == nil && c.cancel(m.key()), nil
	}
	return false, nil
}

// open answers the wish for a channel.
func (c *connection) open(ch ssh.NewChannel) {
	if c.channels.Add(1) > maxChannels {
		c.channels.Add(-1)
		_ = ch.Reject(ssh.ResourceShortage, fmt.Sprintf("there are %d channels already", maxChannels))
		return
	}
	done := func() { c.channels.Add(-1) }
	switch ch.ChannelType() {
	case "session":
		if c.single.Load() {
			_ = ch.Reject(ssh.Prohibited, "the client wanted no more sessions")
			done()
			return
		}
		channel, requests, err := ch.Accept()
		if err != nil {
			done()
			return
		}
		s := newSession(c, channel)
		go func() {
			defer done()
			s.serve(requests)
		}()
	case "direct-tcpip":
		go func() {
			defer done()
			c.dialTCP(ch)
		}()
	case "direct-streamlocal@openssh.com":
		go func() {
			defer done()
			c.dialUnix(ch)
		}()
	default:
		_ = ch.Reject(ssh.UnknownChannelType, "there are sessions and forwarded connections")
		done()
	}
}

// note adds a session to those that end with the connection.
func (c *connection) note(s *session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		s.hangUp()
		return
	}
	c.sessions[s] = struct{}{}
}

func (c *connection) forget(s *session) {
	c.mu.Lock()
	delete(c.sessions, s)
	c.mu.Unlock()
}
