package link_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/daytona-go/daytona/internal/link"
)

// agent serves one route, and says how connections look to it.
func agent(t *testing.T, l net.Listener) {
	t.Helper()
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %d", r.Context().Value(http.LocalAddrContextKey).(net.Addr).Network(), len(b))
	})}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
}

func unix(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// request sends one over a raw connection.
func request(c net.Conn, body string) (string, error) {
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", len(body), body); err != nil {
		return "", err
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

// port has an agent behind Join, and returns the address and key of its port.
func port(t *testing.T) (address, key string, private net.Listener) {
	t.Helper()
	private = unix(t)
	public, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	key = link.NewKey()
	l, err := link.Join(private, public, key)
	if err != nil {
		t.Fatal(err)
	}
	agent(t, l)
	return public.Addr().String(), key, private
}

func dial(t *testing.T, address string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestPort(t *testing.T) {
	address, key, private := port(t)
	c, err := link.Client(t.Context(), dial(t, address), key)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := request(c, strings.Repeat("x", 1<<20)); err != nil || got != "unix 1048576" {
		t.Errorf("with the key: %q, %v", got, err)
	}
	u, err := net.Dial("unix", private.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if got, err := request(u, ""); err != nil || got != "unix 0" {
		t.Errorf("over the socket: %q, %v", got, err)
	}
}

// TestPortWithoutKey: nothing that does not know the key gets an answer, and
// nothing that does not know it is taken for the agent.
func TestPortWithoutKey(t *testing.T) {
	address, key, _ := port(t)
	if got, err := request(dial(t, address), ""); err == nil {
		t.Errorf("plain HTTP: %q", got)
	}
	c := tls.Client(dial(t, address), &tls.Config{InsecureSkipVerify: true})
	if got, err := request(c, ""); err == nil {
		t.Errorf("TLS without a certificate: %q", got)
	}
	if c, err := link.Client(t.Context(), dial(t, address), link.NewKey()); err == nil {
		t.Errorf("another key: accepted, then %v", c.Close())
	}
	other, _, _ := port(t)
	if c, err := link.Client(t.Context(), dial(t, other), key); err == nil {
		t.Errorf("another agent: accepted, then %v", c.Close())
	}
	for _, bad := range []string{"", "xyz", key[2:]} {
		if _, err := link.Client(t.Context(), dial(t, address), bad); err == nil || strings.Contains(err.Error(), key[2:]) {
			t.Errorf("key %q: %v", bad, err)
		}
	}
}

// TestPortFlood: connections that prove nothing keep nobody out.
func TestPortFlood(t *testing.T) {
	address, key, _ := port(t)
	var open []net.Conn
	for range 300 {
		open = append(open, dial(t, address))
	}
	c, err := link.Client(t.Context(), dial(t, address), key)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := request(c, ""); err != nil || got != "unix 0" {
		t.Errorf("%q, %v", got, err)
	}
	// The oldest have been dropped.
	open[0].SetReadDeadline(time.Now().Add(5 * time.Second))
	if n, err := open[0].Read(make([]byte, 1)); n != 0 || err == nil || strings.Contains(err.Error(), "timeout") {
		t.Errorf("the oldest of too many: %d, %v", n, err)
	}
}

// pair is a stream in memory, as a session and its relay.
func pair(t *testing.T, dial func() (net.Conn, error), drain <-chan struct{}) *link.Session {
	t.Helper()
	near, far := net.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- link.Relay(far, dial, drain) }()
	s, err := link.NewSession(late{near})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Close()
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			t.Error("the relay does not end with its stream")
		}
	})
	return s
}

// late knows only a while after the other end that something was written.
type late struct{ net.Conn }

func (l late) Write(p []byte) (int, error) {
	n, err := l.Conn.Write(p)
	time.Sleep(time.Millisecond)
	return n, err
}

func TestRelay(t *testing.T) {
	l := unix(t)
	agent(t, l)
	s := pair(t, func() (net.Conn, error) { return net.Dial("unix", l.Addr().String()) }, nil)
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			c, err := s.Dial(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			want := fmt.Sprintf("unix %d", i<<16)
			if got, err := request(c, strings.Repeat("x", i<<16)); err != nil || got != want {
				t.Errorf("%q, %v, want %q", got, err, want)
			}
		})
	}
	wg.Wait()
	s.Close()
	<-s.Done()
	if _, err := s.Dial(t.Context()); err == nil {
		t.Error("a connection over a session that has ended")
	}
}

func TestRelayRefused(t *testing.T) {
	s := pair(t, func() (net.Conn, error) { return nil, fmt.Errorf("no agent here: %s", strings.Repeat("long", 1<<20)) }, nil)
	if _, err := s.Dial(t.Context()); err == nil || !strings.Contains(err.Error(), "no agent here") || len(err.Error()) > 5000 {
		t.Errorf("%.200v", err)
	}
}

// TestHostileRelay: whatever comes in place of a relay's frames ends the session
// and costs nothing.
func TestHostileRelay(t *testing.T) {
	frame := func(version, kind byte, flags uint16, id, length uint32) []byte {
		b := []byte{version, kind}
		b = binary.BigEndian.AppendUint16(b, flags)
		b = binary.BigEndian.AppendUint32(b, id)
		return binary.BigEndian.AppendUint32(b, length)
	}
	for name, sent := range map[string][]byte{
		"noise":       []byte("HTTP/1.1 200 OK\r\n\r\n"),
		"version":     frame(9, 0, 0, 1, 0),
		"type":        frame(0, 77, 0, 1, 0),
		"pings":       bytes.Repeat(frame(0, 2, 1, 0, 7), 1000),
		"connections": bytes.Repeat(frame(0, 1, 1, 2, 0), 1000),
		"too much":    frame(0, 0, 0, 1, 1<<31),
	} {
		t.Run(name, func(t *testing.T) {
			near, far := net.Pipe()
			defer far.Close()
			go io.Copy(io.Discard, far)
			s, err := link.NewSession(near)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			before := runtime.NumGoroutine()
			go far.Write(sent)
			select {
			case <-s.Done():
			case <-time.After(10 * time.Second):
				t.Fatal("the session goes on")
			}
			if n := runtime.NumGoroutine(); n > before+20 {
				t.Errorf("%d goroutines, were %d", n, before)
			}
		})
	}
	// One that says nothing at all.
	near, far := net.Pipe()
	defer far.Close()
	go io.Copy(io.Discard, far)
	s, err := link.NewSession(near)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := s.Dial(ctx); err != context.DeadlineExceeded {
		t.Errorf("a relay that does not answer: %v", err)
	}
}

// TestRelayDrains: what is under way when a relay is told to end comes to its
// end, and the relay with it.
func TestRelayDrains(t *testing.T) {
	l := unix(t)
	agent(t, l)
	// Many times: the relay once ended before the near end knew that what it had
	// written was sent.
	for range 20 {
		drain := make(chan struct{})
		s := pair(t, func() (net.Conn, error) { return net.Dial("unix", l.Addr().String()) }, drain)
		c, err := s.Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		close(drain)
		if got, err := request(c, "x"); err != nil || got != "unix 1" {
			t.Fatalf("%q, %v", got, err)
		}
		select {
		case <-s.Done():
		case <-time.After(10 * time.Second):
			t.Fatal("the relay does not end")
		}
	}
}

// TestRelayAbandoned: a client that goes in the middle of an endless answer
// takes the agent's connection with it.
func TestRelayAbandoned(t *testing.T) {
	l := unix(t)
	gone := make(chan struct{})
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		for err == nil {
			_, err = c.Write(make([]byte, 64<<10))
		}
		close(gone)
	}()
	s := pair(t, func() (net.Conn, error) { return net.Dial("unix", l.Addr().String()) }, nil)
	c, err := s.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	c.Close()
	select {
	case <-gone:
	case <-time.After(10 * time.Second):
		t.Error("the agent goes on")
	}
}
