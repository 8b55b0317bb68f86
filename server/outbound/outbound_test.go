package outbound_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/outbound"
)

// addresses that the server must not connect to, in every form.
var private = []string{
	"0.0.0.0", "0.1.2.3", "127.0.0.1", "127.255.255.254", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254", "169.254.0.1",
	"100.64.0.1", "100.127.255.255", "100.100.100.200", "168.63.129.16", "192.0.0.192", "192.0.2.1", "192.88.99.1", "198.18.0.1", "198.51.100.1", "203.0.113.1",
	"224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
	"::", "::1", "fe80::1", "fec0::1", "fc00::1", "fd00:ec2::254", "fd12:3456::1", "ff02::1", "100::1", "2001:db8::1", "2001::1", "2001:20::1", "3fff::1", "5f00::1",
	"::127.0.0.1", "::10.0.0.1",
	"::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::ffff:0:127.0.0.1",
	"2002:7f00:1::", "2002:a00:1::1", "2002:a9fe:a9fe::1",
	"64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b::10.0.0.1", "64:ff9b:1::808:808",
}

var public = []string{"8.8.8.8", "1.1.1.1", "93.184.215.14", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "2a00:1450::1", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"}

func TestPublic(t *testing.T) {
	for _, s := range private {
		if outbound.Public(netip.MustParseAddr(s)) {
			t.Errorf("%s passes", s)
		}
	}
	for _, s := range public {
		if !outbound.Public(netip.MustParseAddr(s)) {
			t.Errorf("%s does not pass", s)
		}
	}
	if outbound.Public(netip.Addr{}) || outbound.Public(netip.MustParseAddr("2606:4700::1111%eth0")) {
		t.Error("no address, or one with a zone, passes")
	}
}

func guard(t *testing.T, c outbound.Config) *outbound.Guard {
	t.Helper()
	g, err := outbound.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// Whatever a name resolves to, or an address is written as, nothing private is
// connected to.
func TestDialRefuses(t *testing.T) {
	answer := ""
	g := guard(t, outbound.Config{Lookup: func(context.Context, string) ([]netip.Addr, error) {
		return []netip.Addr{netip.MustParseAddr(answer)}, nil
	}})
	for _, a := range private {
		answer = a
		for _, host := range []string{a, "name.example"} {
			c, err := g.Dial(t.Context(), "tcp", net.JoinHostPort(host, "80"))
			if !errors.Is(err, daytona.ErrInvalid) {
				t.Errorf("%s as %s: %v", a, host, err)
			}
			if c != nil {
				c.Close()
			}
			// What a name resolves to is nobody's business.
			if host == "name.example" && strings.Contains(err.Error(), a) {
				t.Errorf("the error tells what the name is: %v", err)
			}
		}
	}
	// Ways to write 127.0.0.1 that some resolvers understand.
	real := guard(t, outbound.Config{})
	for _, host := range []string{"localhost", "2130706433", "0x7f000001", "017700000001", "127.1", "0x7f.1"} {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		if c, err := real.Dial(ctx, "tcp", net.JoinHostPort(host, "80")); err == nil {
			c.Close()
			t.Errorf("%s was connected to", host)
		}
		cancel()
	}
	if _, err := g.Dial(t.Context(), "udp", "8.8.8.8:53"); !errors.Is(err, daytona.ErrInvalid) {
		t.Error(err)
	}
	if _, err := g.Dial(t.Context(), "unix", "/run/docker.sock"); !errors.Is(err, daytona.ErrInvalid) {
		t.Error(err)
	}
}

// A name that has a good answer and then a bad one is connected to at the
// address that was checked: it is asked once.
func TestRebinding(t *testing.T) {
	var asked atomic.Int32
	inner := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "inside") }))
	defer inner.Close()
	_, port, _ := net.SplitHostPort(inner.Listener.Addr().String())
	g := guard(t, outbound.Config{Allow: []string{"127.0.0.2"}, Lookup: func(context.Context, string) ([]netip.Addr, error) {
		if asked.Add(1) == 1 {
			return []netip.Addr{netip.MustParseAddr("127.0.0.2")}, nil // allowed, and nobody is there
		}
		return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
	}})
	c := g.Client(5 * time.Second)
	if r, err := c.Get("http://rebind.example:" + port); err == nil {
		r.Body.Close()
		t.Error("connected to the second answer")
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("the name was resolved %d times for one connection", n)
	}
	if _, err := c.Get("http://rebind.example:" + port); !errors.Is(err, daytona.ErrInvalid) {
		t.Errorf("the second answer: %v", err)
	}
}

// Of several addresses, only those that are allowed are tried.
func TestMixedAnswers(t *testing.T) {
	inner := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "inside") }))
	defer inner.Close()
	g := guard(t, outbound.Config{Allow: []string{"127.0.0.3/32"}, Lookup: func(context.Context, string) ([]netip.Addr, error) {
		return []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.3"), netip.MustParseAddr("::1")}, nil
	}})
	_, port, _ := net.SplitHostPort(inner.Listener.Addr().String())
	if r, err := g.Client(5 * time.Second).Get("http://mixed.example:" + port); err == nil {
		r.Body.Close()
		t.Error("an address was used that is not allowed")
	}
}

func TestRedirects(t *testing.T) {
	var reached atomic.Int32
	secret := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached.Add(1) }))
	defer secret.Close()
	var to string
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if to == "" {
			fmt.Fprint(w, "fine")
			return
		}
		http.Redirect(w, r, to, http.StatusFound)
	}))
	defer front.Close()
	u, _ := url.Parse(front.URL)
	// front is allowed by its name alone, so that its address is not.
	lookup := func(_ context.Context, host string) ([]netip.Addr, error) {
		return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
	}
	g := guard(t, outbound.Config{Allow: []string{"front.example"}, Lookup: lookup})
	c := g.Client(5 * time.Second)
	start := "http://front.example:" + u.Port()
	r, err := c.Get(start)
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(r.Body)
	r.Body.Close()
	if string(body) != "fine" {
		t.Fatalf("%q", body)
	}
	s, _ := url.Parse(secret.URL)
	for _, to = range []string{secret.URL, "http://localhost:" + s.Port(), "http://other.example:" + s.Port(), "http://[::ffff:127.0.0.1]:" + s.Port(), "file:///etc/passwd",
		"gopher://front.example:" + s.Port(), "http://user:pass@front.example:" + s.Port()} {
		if r, err := c.Get(start); err == nil {
			r.Body.Close()
			t.Errorf("followed to %s", to)
		}
	}
	to = start
	if r, err := c.Get(start); err == nil {
		r.Body.Close()
		t.Error("followed for ever")
	}
	if reached.Load() != 0 {
		t.Error("what is inside was reached")
	}
}

// A proxy in the environment would connect to what nobody has checked.
func TestNoProxy(t *testing.T) {
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
	if p := guard(t, outbound.Config{}).Transport().Proxy; p != nil {
		t.Error("the transport uses a proxy")
	}
}

func TestCheck(t *testing.T) {
	g := guard(t, outbound.Config{Allow: []string{"10.1.0.0/16", "*.corp.example", "hooks.internal"}})
	for _, ok := range []string{"https://example.com", "http://example.com:8080/x?y=z", "https://8.8.8.8/", "https://10.1.2.3", "http://a.corp.example", "http://HOOKS.internal./x", "https://[2606:4700::1111]/"} {
		if err := g.Check("url", ok); err != nil {
			t.Errorf("%s: %v", ok, err)
		}
	}
	for _, bad := range []string{"", "example.com", "//example.com", "ftp://example.com", "file:///etc/passwd", "http://", "http://user@example.com", "http://localhost", "http://x.localhost:80",
		"http://LOCALHOST.", "http://127.0.0.1", "http://10.2.0.1", "http://[::1]", "http://[::ffff:10.0.0.1]", "http://169.254.169.254/latest", "http://[fd00:ec2::254]",
		"http:opaque", "http://exa mple.com", "https://example.com/" + strings.Repeat("x", 3000)} {
		if err := g.Check("url", bad); !errors.Is(err, daytona.ErrInvalid) {
			t.Errorf("%s: %v", bad, err)
		}
	}
	for _, bad := range []string{"", "http://x", "a/b", "*.a.*", "10.0.0.0/99", "user@host"} {
		if _, err := outbound.New(outbound.Config{Allow: []string{bad}}); !errors.Is(err, daytona.ErrInvalid) {
			t.Errorf("allow %q: %v", bad, err)
		}
	}
}
