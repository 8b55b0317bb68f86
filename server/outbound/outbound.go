// Package outbound makes the connections of the server to addresses that a
// user chose: webhooks, identity providers, registries. The server stands
// where its users don't, so a name must not lead it to what only it can reach:
// the machine itself, its network, the cloud's metadata.
package outbound

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/network/policy"
)

// Config says what may be reached besides the internet, for a service that
// stands in a private network together with what it is to call.
type Config struct {
	// Allow are addresses ("10.1.2.3"), prefixes ("10.1.0.0/16", "fd00::/8")
	// and names ("hooks.internal", "*.corp.example"). A name allows what it
	// resolves to. Defaults to nothing.
	Allow []string
	// Lookup resolves a name. Defaults to the system's resolver.
	Lookup func(ctx context.Context, host string) ([]netip.Addr, error)
}

// Guard decides what may be reached.
type Guard struct {
	prefixes []netip.Prefix
	names    []string
	lookup   func(ctx context.Context, host string) ([]netip.Addr, error)
}

// Times and sizes of a connection.
const (
	dialTimeout   = 10 * time.Second
	perAddress    = 5 * time.Second
	headerTimeout = 30 * time.Second
	maxRedirects  = 5
	maxHeader     = 64 << 10
)

// New returns a guard.
func New(c Config) (*Guard, error) {
	g := &Guard{lookup: c.Lookup}
	if g.lookup == nil {
		g.lookup = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}
	}
	for _, s := range c.Allow {
		s = strings.ToLower(strings.TrimSpace(s))
		if a, err := netip.ParseAddr(s); err == nil {
			a = a.Unmap().WithZone("")
			g.prefixes = append(g.prefixes, netip.PrefixFrom(a, a.BitLen()))
		} else if p, err := netip.ParsePrefix(s); err == nil {
			g.prefixes = append(g.prefixes, p.Masked())
		} else if s == "" || strings.ContainsAny(s, "/:@ ") || strings.Contains(strings.TrimPrefix(s, "*."), "*") {
			return nil, &daytona.Error{Kind: daytona.KindInvalid, Op: "allow outbound connections", Field: "allow", Value: s, Message: "must be an address, a prefix or a name"}
		} else {
			g.names = append(g.names, strings.TrimSuffix(s, "."))
		}
	}
	return g, nil
}

// internet are the IPv4 addresses that are public.
var internet = policy.Policy{}.Compile(nil)

var (
	global6 = netip.MustParsePrefix("2000::/3")
	nat64   = netip.MustParsePrefix("64:ff9b::/96")
	sixTo4  = netip.MustParsePrefix("2002::/16")
	// special6 lie within the global range and are not hosts of the internet.
	special6 = []netip.Prefix{
		netip.MustParsePrefix("2001::/23"), // protocol assignments, Teredo among them
		netip.MustParsePrefix("2001:db8::/32"),
		netip.MustParsePrefix("3fff::/20"), // documentation
	}
)

// Public reports whether an address is one of the internet's. An IPv6 address
// that stands for an IPv4 address is as public as that one.
func Public(a netip.Addr) bool {
	a = a.Unmap()
	if !a.IsValid() || a.Zone() != "" {
		return false
	}
	if a.Is4() {
		return internet.Contains(a)
	}
	b := a.As16()
	switch {
	case nat64.Contains(a):
		return internet.Contains(netip.AddrFrom4([4]byte(b[12:16])))
	case sixTo4.Contains(a):
		return internet.Contains(netip.AddrFrom4([4]byte(b[2:6])))
	}
	return global6.Contains(a) && !slices.ContainsFunc(special6, func(p netip.Prefix) bool { return p.Contains(a) })
}

func (g *Guard) allowed(a netip.Addr) bool {
	a = a.Unmap()
	return Public(a) || slices.ContainsFunc(g.prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
}

func (g *Guard) named(host string) bool {
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	return slices.ContainsFunc(g.names, func(n string) bool {
		if suffix, ok := strings.CutPrefix(n, "*"); ok {
			return strings.HasSuffix(host, suffix) && len(host) > len(suffix)
		}
		return host == n
	})
}

// refused says that something must not be reached. It does not say what a name
// resolved to: that would tell a user of names that only the server can ask for.
func refused(host string) error {
	return &daytona.Error{Kind: daytona.KindInvalid, Op: "connect to", Subject: host, Message: "the address is not one of the internet, and the server's configuration does not allow it"}
}

// Dial connects to host:port by TCP. A name is resolved once, and the
// connection made to an address that was found to be allowed, so that a second
// answer of its name server changes nothing.
func (g *Guard) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if !strings.HasPrefix(network, "tcp") {
		return nil, &daytona.Error{Kind: daytona.KindInvalid, Op: "connect", Field: "network", Value: network, Message: "must be tcp"}
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, &daytona.Error{Kind: daytona.KindInvalid, Op: "connect", Field: "address", Value: addr, Message: "must be host:port"}
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	var addrs []netip.Addr
	if a, err := netip.ParseAddr(host); err == nil {
		addrs = []netip.Addr{a}
	} else if addrs, err = g.lookup(ctx, host); err != nil {
		return nil, &daytona.Error{Kind: daytona.KindUnavailable, Op: "resolve", Subject: host, Message: "there is no such name, or it can't be resolved now"}
	}
	if !g.named(host) {
		addrs = slices.DeleteFunc(slices.Clone(addrs), func(a netip.Addr) bool { return !g.allowed(a) })
	}
	if len(addrs) == 0 {
		return nil, refused(host)
	}
	d := net.Dialer{Timeout: perAddress}
	var last error
	for _, a := range addrs {
		c, err := d.DialContext(ctx, network, net.JoinHostPort(a.Unmap().String(), port))
		if err == nil {
			return c, nil
		}
		last = err
	}
	return nil, &daytona.Error{Kind: daytona.KindUnavailable, Op: "connect to", Subject: host, Err: errors.Unwrap(last)}
}

// Check says whether a URL may be used at all: http or https, no credentials,
// and a host that is not, by its very spelling, where the server must not go.
// What a name resolves to is decided when it is connected to.
func (g *Guard) Check(field, rawURL string) error {
	bad := func(rule string) error {
		return &daytona.Error{Kind: daytona.KindInvalid, Message: field + " " + rule}
	}
	if len(rawURL) > 2048 {
		return bad("must have at most 2048 characters")
	}
	u, err := url.Parse(rawURL)
	if err != nil || u.Host == "" || u.Opaque != "" {
		return bad("must be a URL")
	}
	if u.Scheme != "http" && u.Scheme != "https" {
		return bad("must be a URL with http or https")
	}
	if u.User != nil {
		return bad("must not have credentials")
	}
	host := strings.TrimSuffix(strings.ToLower(u.Hostname()), ".")
	if g.named(host) {
		return nil
	}
	a, err := netip.ParseAddr(host)
	if err == nil && !g.allowed(a) || err != nil && (host == "localhost" || strings.HasSuffix(host, ".localhost")) {
		return bad("must be reachable from the internet: " + host + " is not")
	}
	return nil
}

// Transport returns a transport whose connections the guard makes. It uses no
// proxy: that would connect to what nobody has checked.
func (g *Guard) Transport() *http.Transport {
	return &http.Transport{
		DialContext: g.Dial, ForceAttemptHTTP2: true, MaxIdleConns: 64, MaxIdleConnsPerHost: 2, IdleConnTimeout: 30 * time.Second,
		TLSHandshakeTimeout: dialTimeout, ResponseHeaderTimeout: headerTimeout, MaxResponseHeaderBytes: maxHeader,
	}
}

// Client returns a client whose connections the guard makes, redirects
// included, at most 5 of them and none from https to http. timeout is for a
// whole request, body included.
func (g *Guard) Client(timeout time.Duration) *http.Client {
	return &http.Client{
		Transport: g.Transport(), Timeout: timeout,
		CheckRedirect: func(r *http.Request, via []*http.Request) error {
			if len(via) > maxRedirects {
				return fmt.Errorf("stopped after %d redirects", maxRedirects)
			}
			if via[len(via)-1].URL.Scheme == "https" && r.URL.Scheme != "https" {
				return errors.New("refused to go from https to http")
			}
			return g.Check("redirect", r.URL.String())
		},
	}
}
