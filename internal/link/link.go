// Package link carries connections to the agent of a sandbox to whoever shares
// no directory with it: over a TCP port that others can reach, too ([Join] and
// [Client]), and many of them over one stream ([Relay] and [Session]).
//
// A sandbox may have got hold of the other end of either: what comes from there
// is bounded, and neither side takes the word of the other for who it is.
package link

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"net"
	"sync"
	"time"
)

// handshakeTimeout bounds how long whoever connects may take to prove itself.
const handshakeTimeout = 10 * time.Second

// NewKey returns a new secret for the two ends of a port. Only they may know
// it.
func NewKey() string {
	seed := make([]byte, ed25519.SeedSize)
	rand.Read(seed)
	return hex.EncodeToString(seed)
}

// config is that of either end: it proves to know the key, and wants the same
// proof. The certificates are nothing but what TLS takes keys in.
func config(key string) (*tls.Config, error) {
	seed, err := hex.DecodeString(key)
	if err != nil || len(seed) != ed25519.SeedSize {
		return nil, fmt.Errorf("the key of a port must be %d hexadecimal digits", 2*ed25519.SeedSize)
	}
	private := ed25519.NewKeyFromSeed(seed)
	public := private.Public().(ed25519.PublicKey)
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, public, private)
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{{Certificate: [][]byte{certificate}, PrivateKey: private}},
		ClientAuth:             tls.RequireAnyClientCert,
		InsecureSkipVerify:     true, // no authority vouches for anybody: the key itself does
		SessionTicketsDisabled: true,
		VerifyConnection: func(s tls.ConnectionState) error {
			if len(s.PeerCertificates) == 0 || !public.Equal(s.PeerCertificates[0].PublicKey) {
				return errors.New("the other end does not know the key")
			}
			return nil
		},
	}, nil
}

// Client makes of a connection to a port of [Join] one that the agent answers
// on. It closes c if that fails.
func Client(ctx context.Context, c net.Conn, key string) (net.Conn, error) {
	conf, err := config(key)
	if err != nil {
		c.Close()
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	t := tls.Client(c, conf)
	if err := t.HandshakeContext(ctx); err != nil {
		c.Close()
		return nil, fmt.Errorf("what listens on %s is not the agent: %w", c.RemoteAddr(), err)
	}
	return t, nil
}

// Join returns a listener that gives the connections of private, and those of
// public that have proved to know the key. To whoever serves them, all have come
// over private. Closing it closes both.
func Join(private, public net.Listener, key string) (net.Listener, error) {
	conf, err := config(key)
	if err != nil {
		return nil, err
	}
	j := &joined{private: private, public: public, conf: conf, ready: make(chan net.Conn), done: make(chan struct{})}
	go j.accept(private, j.give)
	go j.accept(public, j.admit)
	return j, nil
}

type joined struct {
	private, public net.Listener
	conf            *tls.Config
	ready           chan net.Conn
	done            chan struct{}
	once            sync.Once
	err             error // why done was closed

	mu      sync.Mutex
	pending []net.Conn // have not proved anything yet; the oldest is first
}

// pendingLimit is how many connections may be proving themselves at a time.
// When there are more, the oldest has to go: whoever knows the key takes a few
// milliseconds, so a flood of those who do not keeps nobody out.
const pendingLimit = 64

func (j *joined) accept(l net.Listener, take func(net.Conn)) {
	for {
		c, err := l.Accept()
		if err == nil {
			take(c)
			continue
		}
		if errors.Is(err, net.ErrClosed) {
			j.end(err)
			return
		}
		// Out of descriptors, most likely.
		select {
		case <-j.done:
			return
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (j *joined) give(c net.Conn) {
	select {
	case j.ready <- c:
	case <-j.done:
		c.Close()
	}
}

func (j *joined) admit(c net.Conn) {
	j.mu.Lock()
	if len(j.pending) == pendingLimit {
		j.pending[0].Close()
		j.pending = append(j.pending[:0], j.pending[1:]...)
	}
	j.pending = append(j.pending, c)
	j.mu.Unlock()
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), handshakeTimeout)
		defer cancel()
		t := tls.Server(c, j.conf)
		err := t.HandshakeContext(ctx)
		j.mu.Lock()
		for i, p := range j.pending {
			if p == c {
				j.pending = append(j.pending[:i], j.pending[i+1:]...)
				break
			}
		}
		j.mu.Unlock()
		if err != nil {
			c.Close()
			return
		}
		j.give(&admitted{t, j.private.Addr()})
	}()
}

func (j *joined) end(err error) {
	j.once.Do(func() {
		j.err = err
		close(j.done)
	})
}

func (j *joined) Accept() (net.Conn, error) {
	select {
	case c := <-j.ready:
		return c, nil
	case <-j.done:
		return nil, j.err
	}
}

func (j *joined) Addr() net.Addr { return j.private.Addr() }

func (j *joined) Close() error {
	j.end(net.ErrClosed)
	return errors.Join(j.private.Close(), j.public.Close())
}

// admitted is a connection that has proved to know the key.
type admitted struct {
	net.Conn
	local net.Addr
}

func (a *admitted) LocalAddr() net.Addr { return a.local }
