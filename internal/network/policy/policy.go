// Package policy decides which addresses a sandbox may reach.
//
// It is the one place where the answer is worked out, for both ways of enforcing it: the firewall
// rules of a sandbox's own network namespace, and the user-space network stack of a rootless
// sandbox. It knows addresses only; it must not know how a packet is filtered.
//
// Sandboxes have no IPv6, so everything here is about IPv4 destinations and every IPv6
// destination is denied, whatever the policy says.
package policy

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Mode says what kind of network a sandbox has.
type Mode int

const (
	// Internet is the default: public unicast addresses and DNS, nothing else.
	Internet Mode = iota
	// None is no network at all: a loopback interface and nothing more.
	None
	// AllowList is the addresses of Policy.Allow and DNS, nothing else.
	AllowList
)

func (m Mode) String() string {
	switch m {
	case Internet:
		return "internet"
	case None:
		return "none"
	case AllowList:
		return "allow-list"
	}
	return fmt.Sprintf("mode(%d)", int(m))
}

// MarshalText and UnmarshalText use the words of String.
func (m Mode) MarshalText() ([]byte, error) {
	if m < Internet || m > AllowList {
		return nil, &Error{Value: m.String(), Rule: "unknown network mode"}
	}
	return []byte(m.String()), nil
}

// UnmarshalText is the inverse of MarshalText.
func (m *Mode) UnmarshalText(text []byte) error {
	for _, known := range []Mode{Internet, None, AllowList} {
		if string(text) == known.String() {
			*m = known
			return nil
		}
	}
	return &Error{Value: string(text), Rule: `the network mode must be "internet", "none" or "allow-list"`}
}

// Policy is what a sandbox may reach. The zero Policy is the default: the internet.
type Policy struct {
	Mode Mode `json:"mode"`
	// Allow are the destinations of mode AllowList; it must be empty in the others. An empty
	// list allows nothing, not even DNS. Parse says which prefixes are accepted.
	Allow []netip.Prefix `json:"allow,omitempty"`
	// NoDNS also closes port 53 of the host's resolvers. It is open by default, because hardly
	// any program works without; but whoever can ask a resolver can carry data out in the
	// questions, so an allow-list that must not leak wants NoDNS.
	NoDNS bool `json:"noDns,omitempty"`
}

// MaxAllow is the largest number of prefixes in an allow list.
const MaxAllow = 1000

// ErrInvalid is what every refusal of a policy is, by errors.Is.
var ErrInvalid = errors.New("invalid network policy")

// Error is the refusal of one value of a policy.
type Error struct {
	Value string // as given
	Rule  string // what it breaks, and what to write instead
}

func (e *Error) Error() string {
	value := e.Value
	if len(value) > 64 {
		value = value[:64] + "…"
	}
	return fmt.Sprintf("invalid network policy: %q: %s", value, e.Rule)
}

// Is makes errors.Is(err, ErrInvalid) true.
func (e *Error) Is(target error) bool { return target == ErrInvalid }

// Parse makes a policy from the two settings that clients know. block turns the network off.
// Otherwise a nil allow is the default policy, an empty one denies everything, and any other is
// the list of destinations: IPv4 prefixes ("198.51.0.0/16") or single addresses.
//
// A private or reserved range is opened only by a prefix that lies within it: 10.1.0.0/16 opens
// that part of 10.0.0.0/8, but 0.0.0.0/0 is the public internet and no more. A prefix that lies
// within a range that no policy opens (loopback, link-local with the cloud metadata services,
// multicast, …) is refused. So is every IPv6 prefix: sandboxes have no IPv6.
func Parse(block bool, allow []string) (Policy, error) {
	if block {
		if len(allow) > 0 {
			return Policy{}, &Error{Value: strings.Join(allow, ","), Rule: "an allow list cannot be given together with a blocked network; give one of them"}
		}
		return Policy{Mode: None}, nil
	}
	if allow == nil {
		return Policy{}, nil
	}
	p := Policy{Mode: AllowList}
	for _, s := range allow {
		prefix, err := parsePrefix(s)
		if err != nil {
			return Policy{}, err
		}
		if !slices.Contains(p.Allow, prefix) {
			p.Allow = append(p.Allow, prefix)
		}
	}
	return p, p.Validate()
}

// ParseList splits a comma-separated allow list for Parse. The empty string, or one of blanks
// only, is the empty list (which denies everything), never nil.
func ParseList(s string) []string {
	list := []string{}
	if strings.TrimSpace(s) == "" {
		return list
	}
	for part := range strings.SplitSeq(s, ",") {
		list = append(list, strings.TrimSpace(part))
	}
	return list
}

func parsePrefix(s string) (netip.Prefix, error) {
	if s == "" {
		return netip.Prefix{}, &Error{Value: s, Rule: "an entry of the allow list is empty; write an IPv4 prefix such as 198.18.0.0/16"}
	}
	var prefix netip.Prefix
	var err error
	if strings.Contains(s, "/") {
		prefix, err = netip.ParsePrefix(s)
	} else {
		var addr netip.Addr
		if addr, err = netip.ParseAddr(s); err == nil {
			if addr.Zone() != "" {
				return prefix, &Error{Value: s, Rule: "an address with a zone is never reachable from a sandbox"}
			}
			prefix = netip.PrefixFrom(addr, addr.BitLen())
		}
	}
	if err != nil {
		return prefix, &Error{Value: s, Rule: "not an IPv4 address or prefix in dotted decimal, such as 93.184.215.0/24 (names are not accepted)"}
	}
	if err := checkPrefix(prefix, s); err != nil {
		return netip.Prefix{}, err
	}
	return prefix, nil
}

func checkPrefix(prefix netip.Prefix, s string) error {
	if !prefix.IsValid() {
		return &Error{Value: s, Rule: "not a prefix"}
	}
	if !prefix.Addr().Is4() {
		return &Error{Value: s, Rule: "sandboxes have no IPv6; give IPv4 prefixes only"}
	}
	if prefix.Masked() != prefix {
		return &Error{Value: s, Rule: fmt.Sprintf("the address has bits beyond the prefix length; did you mean %s?", prefix.Masked())}
	}
	for _, r := range reserved {
		if !r.openable && r.prefix.Contains(prefix.Addr()) && prefix.Bits() >= r.prefix.Bits() {
			return &Error{Value: s, Rule: fmt.Sprintf("never reachable from a sandbox (%s, %s)", r.prefix, r.what)}
		}
	}
	return nil
}

// Validate checks a policy that was not made by Parse.
func (p Policy) Validate() error {
	if p.Mode < Internet || p.Mode > AllowList {
		return &Error{Value: p.Mode.String(), Rule: "unknown network mode"}
	}
	if p.Mode != AllowList && len(p.Allow) > 0 {
		return &Error{Value: p.Allow[0].String(), Rule: fmt.Sprintf("mode %q takes no allow list", p.Mode)}
	}
	if len(p.Allow) > MaxAllow {
		return &Error{Value: fmt.Sprint(len(p.Allow)), Rule: fmt.Sprintf("more than %d entries in the allow list", MaxAllow)}
	}
	for _, prefix := range p.Allow {
		if err := checkPrefix(prefix, prefix.String()); err != nil {
			return err
		}
	}
	return nil
}

// Decode reads the JSON form of a policy strictly: an unknown field is refused, not ignored.
func Decode(data []byte) (Policy, error) {
	dec := json.NewDecoder(strings.NewReader(string(data)))
	dec.DisallowUnknownFields()
	var p Policy
	if err := dec.Decode(&p); err != nil {
		if _, ok := errors.AsType[*Error](err); ok {
			return Policy{}, err
		}
		return Policy{}, &Error{Value: string(data), Rule: err.Error()}
	}
	if dec.More() {
		return Policy{}, &Error{Value: string(data), Rule: "something follows the policy"}
	}
	return p, p.Validate()
}

// Equal reports whether two policies allow the same by the same words.
func (p Policy) Equal(o Policy) bool {
	return p.Mode == o.Mode && p.NoDNS == o.NoDNS && slices.Equal(p.Allow, o.Allow)
}

// DNS reports whether the resolvers are reachable under the policy.
func (p Policy) DNS() bool {
	switch p.Mode {
	case Internet:
		return !p.NoDNS
	case AllowList:
		return !p.NoDNS && len(p.Allow) > 0
	}
	return false
}

// reserved are the IPv4 ranges that are not public unicast addresses, after the IANA special
// purpose registry (RFC 6890), and the metadata services that clouds put elsewhere. openable
// ones can be named in an allow list.
var reserved = []struct {
	prefix   netip.Prefix
	openable bool
	what     string
}{
	{netip.MustParsePrefix("0.0.0.0/8"), false, "this network"},
	{netip.MustParsePrefix("10.0.0.0/8"), true, "private"},
	// Alibaba Cloud's metadata service sits inside the carrier range.
	{netip.MustParsePrefix("100.100.100.200/32"), false, "cloud metadata"},
	{netip.MustParsePrefix("100.64.0.0/10"), true, "carrier-grade NAT"},
	{netip.MustParsePrefix("127.0.0.0/8"), false, "loopback"},
	// Azure's host agent: hands out certificates and extension settings to whoever asks.
	{netip.MustParsePrefix("168.63.129.16/32"), false, "cloud metadata"},
	{netip.MustParsePrefix("169.254.0.0/16"), false, "link-local and cloud metadata"},
	{netip.MustParsePrefix("172.16.0.0/12"), true, "private"},
	{netip.MustParsePrefix("192.0.0.0/24"), false, "protocol assignments and cloud metadata"},
	{netip.MustParsePrefix("192.0.2.0/24"), true, "documentation"},
	{netip.MustParsePrefix("192.88.99.0/24"), false, "6to4 relay"},
	{netip.MustParsePrefix("192.168.0.0/16"), true, "private"},
	{netip.MustParsePrefix("198.18.0.0/15"), true, "benchmarking"},
	{netip.MustParsePrefix("198.51.100.0/24"), true, "documentation"},
	{netip.MustParsePrefix("203.0.113.0/24"), true, "documentation"},
	{netip.MustParsePrefix("224.0.0.0/4"), false, "multicast"},
	{netip.MustParsePrefix("240.0.0.0/4"), false, "reserved and broadcast"},
}

// Never are the destinations that no policy opens.
func Never() Ranges {
	var never Ranges
	for _, r := range reserved {
		if !r.openable {
			never = append(never, rangeOf(r.prefix))
		}
	}
	return never.merged()
}

// Compile works out the destinations that the policy allows, without those in denied (the
// machine's own addresses, the other sandboxes), which no policy opens. DNS is apart from it.
func (p Policy) Compile(denied []netip.Prefix) Ranges {
	var allowed Ranges
	switch p.Mode {
	case Internet:
		allowed = allowed.add(netip.PrefixFrom(netip.IPv4Unspecified(), 0))
	case AllowList:
		for _, prefix := range p.Allow {
			one := Ranges{rangeOf(prefix)}
			for _, r := range reserved {
				if r.openable && r.prefix.Contains(prefix.Addr()) && prefix.Bits() >= r.prefix.Bits() {
					continue // named explicitly
				}
				one = one.remove(r.prefix)
			}
			allowed = append(allowed, one...)
		}
		allowed = allowed.merged()
	}
	for _, r := range reserved {
		if !r.openable || p.Mode == Internet {
			allowed = allowed.remove(r.prefix)
		}
	}
	for _, prefix := range denied {
		if prefix.IsValid() && prefix.Addr().Unmap().Is4() {
			allowed = allowed.remove(netip.PrefixFrom(prefix.Addr().Unmap(), min(prefix.Bits(), 32)))
		}
	}
	return allowed
}
