// Package sshgateway lets SSH clients into sandboxes: "ssh {token}@{host}". The
// user name is an access token, which says what sandbox it opens; nothing else
// is asked. What the client does then is passed on to the SSH server of the
// sandbox's own agent, channel by channel, so that the gateway decides what may
// be done, and sees when the token ends.
//
// It starts no sandboxes. Its limits are those of a service that anybody may
// connect to.
package sshgateway

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/time/rate"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/live"
	"github.com/daytona-go/daytona/toolbox/client"
)

// Access is what a token opens.
type Access struct {
	// ID names the access itself, for topics; it may be empty.
	ID        string
	SandboxID string
	Expires   time.Time
	// State is the sandbox's, as the wire shows it.
	State string
}

// Tokens knows the access tokens.
type Tokens interface {
	// SSHAccess finds what a token opens; an error that matches ErrNotFound,
	// ErrUnauthorized or ErrForbidden if it opens nothing, or nothing any more.
	SSHAccess(ctx context.Context, token string) (Access, error)
}

// Dialer connects to the agents of sandboxes, which speak HTTP on a connection.
type Dialer interface {
	Dial(ctx context.Context, sandboxID string) (net.Conn, error)
}

// Config says what a Gateway is made of.
type Config struct {
	// Tokens, Dialer and HostKey are required; see [HostKey].
	Tokens  Tokens
	Dialer  Dialer
	HostKey ssh.Signer
	// Touch is told that a sandbox is in use: when a connection begins, and every
	// 45 s while it is open. It must not block. Defaults to nothing.
	Touch func(sandboxID string)
	// AgentForwarding lets clients forward their authentication agents, which
	// gives every program of the sandbox the use of their keys. Defaults to false.
	AgentForwarding bool
	// MaxConnections at a time. Defaults to 4096.
	MaxConnections int
	// MaxPerAddress is how many connections one address may have, and
	// FailuresPerMinute how many of its logins may fail before it has to wait.
	// They default to 64 and 20.
	MaxPerAddress, FailuresPerMinute int
	// Log defaults to [slog.Default]. No token is logged.
	Log *slog.Logger
}

const (
	// loginTime bounds key exchange and login.
	loginTime = 20 * time.Second
	// touchEvery is between two tellings that a sandbox is in use.
	touchEvery = 45 * time.Second
	// aliveEvery is between questions to the client whether it is there,
	// aliveTime what it may take to answer.
	aliveEvery = time.Minute
	aliveTime  = 30 * time.Second
	// maxToken bounds a token, in bytes.
	maxToken = 128
	// maxAddresses bounds how many addresses' failures are known.
	maxAddresses = 1 << 14
)

// Gateway is an SSH server.
type Gateway struct {
	config Config
	log    *slog.Logger
	set    *live.Set

	mu       sync.Mutex
	open     map[netip.Addr]int
	total    int
	failures map[netip.Addr]*rate.Limiter
}

// New returns a Gateway.
func New(c Config) (*Gateway, error) {
	if c.Tokens == nil || c.Dialer == nil || c.HostKey == nil {
		return nil, errors.New("sshgateway: Tokens, Dialer and HostKey are required")
	}
	if c.Touch == nil {
		c.Touch = func(string) {}
	}
	if c.MaxConnections == 0 {
		c.MaxConnections = 4096
	}
	if c.MaxPerAddress == 0 {
		c.MaxPerAddress = 64
	}
	if c.FailuresPerMinute == 0 {
		c.FailuresPerMinute = 20
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	return &Gateway{config: c, log: c.Log, set: live.New(0), open: map[netip.Addr]int{}, failures: map[netip.Addr]*rate.Limiter{}}, nil
}

// PublicKey is what the wire's configuration has as sshGatewayPublicKey: the
// host key as a line of an authorized_keys file, in base64.
func (g *Gateway) PublicKey() string { return PublicKey(g.config.HostKey) }

// PublicKey is [Gateway.PublicKey] for a key.
func PublicKey(key ssh.Signer) string {
	return base64.StdEncoding.EncodeToString([]byte(strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key.PublicKey())))))
}

// HostKey reads the key that the gateway proves itself with from a file, which
// it makes if there is none: clients that have seen it once expect it again.
func HostKey(path string) (ssh.Signer, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		_, private, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return nil, err
		}
		block, err := ssh.MarshalPrivateKey(private, "daytona ssh gateway")
		if err != nil {
			return nil, err
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return nil, err
		}
		f, err := os.CreateTemp(filepath.Dir(path), ".hostkey") // 0600
		if err != nil {
			return nil, err
		}
		defer os.Remove(f.Name())
		_, werr := f.Write(pem.EncodeToMemory(block))
		if err := errors.Join(werr, f.Sync(), f.Close()); err != nil {
			return nil, err
		}
		// Of two that start at once, the second takes the key of the first.
		if err := os.Link(f.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
		b, err = os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		return ParseHostKey(b)
	}
	if err != nil {
		return nil, err
	}
	return ParseHostKey(b)
}

// ParseHostKey reads a private key as OpenSSH writes it, or that in base64.
func ParseHostKey(b []byte) (ssh.Signer, error) {
	if d, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(b))); err == nil {
		b = d
	}
	key, err := ssh.ParsePrivateKey(b)
	if err != nil {
		return nil, &daytona.Error{Kind: daytona.KindInvalid, Op: "read the SSH host key", Message: "it must be an OpenSSH private key without a passphrase, or that in base64"}
	}
	return key, nil
}

// Connections is how many connections are open, for metrics.
func (g *Gateway) Connections() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.total
}

// Run listens to the topics by which the rest of the server tells of what has
// changed (see package live), until ctx ends. Without it a token that is revoked
// ends its connections only by its own expiry.
func (g *Gateway) Run(ctx context.Context, topics live.Topics, names ...string) {
	g.set.Run(ctx, topics, names...)
}

// Serve accepts connections until ctx ends, and ends those that are open then.
func (g *Gateway) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for delay := time.Duration(0); ; {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, net.ErrClosed) {
				return err
			}
			// Too many files, most likely: some will be closed.
			delay = min(max(2*delay, 5*time.Millisecond), time.Second)
			g.log.Warn("SSH gateway: accept", "err", err)
			select {
			case <-time.After(delay):
			case <-ctx.Done():
			}
			continue
		}
		delay = 0
		addr := addrOf(conn)
		if !g.enter(addr) {
			conn.Close()
			continue
		}
		wg.Go(func() {
			defer g.leave(addr)
			defer func() {
				if v := recover(); v != nil {
					g.log.Error("SSH gateway panicked", "panic", fmt.Sprint(v))
				}
			}()
			g.serve(ctx, conn, addr)
		})
	}
}

func addrOf(c net.Conn) netip.Addr {
	if a, err := netip.ParseAddrPort(c.RemoteAddr().String()); err == nil {
		return a.Addr().Unmap()
	}
	return netip.Addr{}
}

// enter counts a connection, if there is place for it.
func (g *Gateway) enter(addr netip.Addr) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.total >= g.config.MaxConnections || g.open[addr] >= g.config.MaxPerAddress {
		return false
	}
	if l := g.failures[addr]; l != nil && l.Tokens() < 1 {
		return false
	}
	g.total++
	g.open[addr]++
	return true
}

func (g *Gateway) leave(addr netip.Addr) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.total--
	if g.open[addr]--; g.open[addr] == 0 {
		delete(g.open, addr)
	}
}

// failed counts a login that failed.
func (g *Gateway) failed(addr netip.Addr) {
	g.mu.Lock()
	defer g.mu.Unlock()
	l := g.failures[addr]
	if l == nil {
		if len(g.failures) >= maxAddresses {
			for a, l := range g.failures {
				if l.Tokens() >= float64(l.Burst()) {
					delete(g.failures, a)
				}
			}
			if len(g.failures) >= maxAddresses {
				clear(g.failures)
			}
		}
		l = rate.NewLimiter(rate.Every(time.Minute/time.Duration(g.config.FailuresPerMinute)), g.config.FailuresPerMinute)
		g.failures[addr] = l
	}
	l.Allow()
}

// serve serves one connection.
func (g *Gateway) serve(ctx context.Context, raw net.Conn, addr netip.Addr) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer raw.Close()
	closing := context.AfterFunc(ctx, func() { raw.Close() })
	defer closing()
	raw.SetDeadline(time.Now().Add(loginTime))
	var access Access
	var token string
	asked := false
	login := func(meta ssh.ConnMetadata) (_ *ssh.Permissions, err error) {
		asked = true
		defer func() {
			if err != nil {
				g.failed(addr) // before the client knows
			}
		}()
		user := meta.User()
		if user == "" || len(user) > maxToken {
			return nil, errors.New("no access")
		}
		a, err := g.config.Tokens.SSHAccess(ctx, user)
		if err == nil && !a.Expires.IsZero() && !time.Now().Before(a.Expires) {
			err = &daytona.Error{Kind: daytona.KindUnauthorized, Message: "expired"}
		}
		if err != nil {
			if !live.Refused(err) {
				g.log.Error("SSH gateway: validate access", "err", err)
			}
			return nil, errors.New("no access")
		}
		access, token = a, user
		return nil, nil
	}
	config := &ssh.ServerConfig{ServerVersion: "SSH-2.0-daytona", MaxAuthTries: 3, NoClientAuth: true, NoClientAuthCallback: login}
	config.AddHostKey(g.config.HostKey)
	server, channels, requests, err := ssh.NewServerConn(raw, config)
	if err != nil {
		// Its error may have the user name in it.
		if !asked {
			g.failed(addr)
		}
		g.log.Debug("SSH gateway: login failed", "address", addr)
		return
	}
	defer server.Close()
	raw.SetDeadline(time.Time{})
	began := time.Now()
	c := &connection{gateway: g, server: server, sandboxID: access.SandboxID}
	sum := sha256.Sum256([]byte(token)) // what tokens are known by
	remove := g.set.Add([]string{access.SandboxID, access.ID, hex.EncodeToString(sum[:])}, func(ctx context.Context) error {
		a, err := g.config.Tokens.SSHAccess(ctx, token)
		if err == nil && a.SandboxID != access.SandboxID {
			err = &daytona.Error{Kind: daytona.KindUnauthorized, Message: "the token opens another sandbox now"}
		}
		return err
	}, func(error) { cancel() })
	defer remove()
	if !access.Expires.IsZero() {
		timer := time.AfterFunc(time.Until(access.Expires), cancel)
		defer timer.Stop()
	}
	g.log.Info("SSH connection", "sandbox", access.SandboxID, "address", addr)
	defer func() {
		g.log.Info("SSH connection ended", "sandbox", access.SandboxID, "address", addr, "duration", time.Since(began))
	}()
	if access.State != "" && access.State != "started" {
		c.explain(ctx, channels, requests, "Sandbox is not started (state: "+access.State+"). Please start the sandbox before attempting to connect.")
		return
	}
	sandbox, err := g.connect(ctx, access.SandboxID)
	if err != nil {
		g.log.Warn("SSH gateway: connect to the sandbox", "sandbox", access.SandboxID, "err", err)
		c.explain(ctx, channels, requests, "The sandbox can't be reached just now.")
		return
	}
	defer sandbox.Close()
	c.sandbox = sandbox
	g.config.Touch(access.SandboxID)
	touch := time.NewTicker(touchEvery)
	defer touch.Stop()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		c.run(ctx, channels, requests)
	}()
	alive := time.NewTicker(aliveEvery)
	defer alive.Stop()
	for {
		select {
		case <-touch.C:
			g.config.Touch(access.SandboxID)
		case <-alive.C:
			go c.alive(cancel)
		case <-ended:
			return
		case <-ctx.Done():
			server.Close()
			sandbox.Close()
			<-ended
			return
		}
	}
}

// upstream is the connection to a sandbox's SSH server.
type upstream struct {
	ssh.Conn
	channels <-chan ssh.NewChannel
}

// connect connects to the SSH server of a sandbox's agent, and makes sure that
// it is that one.
func (g *Gateway) connect(ctx context.Context, sandboxID string) (*upstream, error) {
	ctx, cancel := context.WithTimeout(ctx, loginTime)
	defer cancel()
	tb := client.New(func(ctx context.Context) (net.Conn, error) { return g.config.Dialer.Dial(ctx, sandboxID) }, nil)
	defer tb.Close()
	lines, err := tb.SSH().HostKeys(ctx)
	if err != nil {
		return nil, err
	}
	var known [][]byte
	for _, line := range lines {
		key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
		if err != nil {
			return nil, err
		}
		known = append(known, key.Marshal())
	}
	raw, err := tb.SSH().Dial(ctx, &daytona.SSHOptions{AgentForwarding: g.config.AgentForwarding})
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	conn, channels, requests, err := ssh.NewClientConn(raw, "sandbox", &ssh.ClientConfig{User: "daytona", ClientVersion: "SSH-2.0-daytona-gateway",
		HostKeyCallback: func(_ string, _ net.Addr, key ssh.PublicKey) error {
			for _, k := range known {
				if string(k) == string(key.Marshal()) {
					return nil
				}
			}
			return errors.New("the sandbox's host key is not the one that its agent told")
		}})
	if !stop() && err == nil {
		conn.Close()
		err = ctx.Err()
	}
	if err != nil {
		raw.Close()
		return nil, err
	}
	go ssh.DiscardRequests(requests)
	return &upstream{conn, channels}, nil
}
