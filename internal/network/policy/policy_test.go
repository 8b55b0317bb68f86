package policy_test

import (
	"encoding/json"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/daytona-go/daytona/internal/network/policy"
)

func TestParse(t *testing.T) {
	for _, test := range []struct {
		name  string
		block bool
		allow []string
		want  policy.Policy
	}{
		{"absent is the default", false, nil, policy.Policy{}},
		{"empty denies all", false, []string{}, policy.Policy{Mode: policy.AllowList}},
		{"blocked", true, nil, policy.Policy{Mode: policy.None}},
		{"blocked with an empty list", true, []string{}, policy.Policy{Mode: policy.None}},
		{"an address and a range", false, []string{"9.9.9.9", "10.0.0.0/8", "9.9.9.9/32"}, policy.Policy{
			Mode: policy.AllowList, Allow: []netip.Prefix{netip.MustParsePrefix("9.9.9.9/32"), netip.MustParsePrefix("10.0.0.0/8")}}},
	} {
		got, err := policy.Parse(test.block, test.allow)
		if err != nil || !got.Equal(test.want) {
			t.Errorf("%s: %+v, %v; want %+v", test.name, got, err, test.want)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for _, entry := range []string{
		"", "example.com", "10.0.0.0/33", "10.0.0.0/-1", "10.0.0.0/", "/8", "10.0.0.1/8", "010.0.0.0/8", "0x0a.0.0.1", "167772161",
		"10.0.0/8", "10.0.0.0/8/8", " 10.0.0.0/8", "fd00::/8", "::ffff:10.0.0.0/104", "::ffff:10.0.0.1", "fe80::1%eth0", "2620:fe::fe",
		"169.254.169.254", "169.254.0.0/16", "127.0.0.1", "127.0.0.0/8", "0.0.0.0", "0.0.0.0/8", "224.0.0.1", "255.255.255.255", "240.0.0.0/4",
		"192.0.0.192", "100.100.100.200", "168.63.129.16", "10.0.0.0/8,11.0.0.0/8", "1.2.3.4:80", "*",
	} {
		_, err := policy.Parse(false, []string{"9.9.9.9", entry})
		if !errors.Is(err, policy.ErrInvalid) {
			t.Errorf("%q: %v, want ErrInvalid", entry, err)
			continue
		}
		if refusal, ok := errors.AsType[*policy.Error](err); !ok || refusal.Value != entry || refusal.Rule == "" {
			t.Errorf("%q: the error does not name the value and the rule: %#v", entry, err)
		}
	}
	if _, err := policy.Parse(true, []string{"9.9.9.9"}); !errors.Is(err, policy.ErrInvalid) {
		t.Errorf("blocked and a list: %v", err)
	}
	long := make([]string, policy.MaxAllow+1)
	for i := range long {
		long[i] = netip.AddrFrom4([4]byte{9, 9, byte(i >> 8), byte(i)}).String()
	}
	if _, err := policy.Parse(false, long); !errors.Is(err, policy.ErrInvalid) {
		t.Errorf("a list that is too long: %v", err)
	}
}

func TestParseList(t *testing.T) {
	for in, want := range map[string][]string{
		"": {}, "  ": {}, "9.9.9.9": {"9.9.9.9"}, "9.9.9.9, 10.0.0.0/8": {"9.9.9.9", "10.0.0.0/8"}, "9.9.9.9,": {"9.9.9.9", ""},
	} {
		if got := policy.ParseList(in); got == nil || !slices.Equal(got, want) {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestCompile(t *testing.T) {
	own := []netip.Prefix{netip.MustParsePrefix("9.9.8.2/32"), netip.MustParsePrefix("10.200.0.0/16"), netip.MustParsePrefix("fd00::1/128")}
	parse := func(list ...string) policy.Policy {
		p, err := policy.Parse(false, append([]string{}, list...))
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	for _, test := range []struct {
		name         string
		policy       policy.Policy
		open, closed []string
	}{
		{"internet", policy.Policy{},
			[]string{"1.0.0.0", "9.9.8.1", "9.9.8.3", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255", "128.0.0.0",
				"169.253.255.255", "169.255.0.0", "172.15.255.255", "172.32.0.0", "192.0.1.0", "192.167.255.255", "192.169.0.0", "198.17.255.255", "198.20.0.0", "223.255.255.255"},
			[]string{"0.0.0.0", "0.255.255.255", "9.9.8.2", "10.0.0.0", "10.255.255.255", "100.64.0.0", "100.100.100.200", "100.127.255.255", "127.0.0.1", "168.63.129.16",
				"169.254.0.0", "169.254.169.254", "169.254.255.255", "172.16.0.0", "172.31.255.255", "192.0.0.0", "192.0.2.1", "192.168.0.0", "192.168.255.255",
				"198.18.0.0", "198.19.255.255", "198.51.100.1", "203.0.113.1", "224.0.0.0", "240.0.0.0", "255.255.255.255",
				"::", "::1", "fc00::1", "fe80::1", "ff02::1", "::ffff:9.9.9.9", "::ffff:10.0.0.1", "64:ff9b::909:909", "2002:909:909::1", "2001::1", "fd00:ec2::254", "2620:fe::fe"}},
		{"none", policy.Policy{Mode: policy.None}, nil, []string{"9.9.9.9", "127.0.0.1"}},
		{"empty list", parse(), nil, []string{"9.9.9.9", "10.0.0.1"}},
		{"everything", parse("0.0.0.0/0"), []string{"9.9.9.9"}, []string{"10.0.0.1", "9.9.8.2", "169.254.169.254", "127.0.0.1", "100.64.0.1"}},
		{"halves of everything", parse("0.0.0.0/1", "128.0.0.0/1"), []string{"9.9.9.9", "200.0.0.1"}, []string{"10.0.0.1", "192.168.0.1"}},
		{"private by name", parse("10.0.0.0/8"), []string{"10.0.0.1", "10.201.0.1"}, []string{"10.200.0.5", "9.9.9.9"}},
		{"wider than private", parse("10.0.0.0/7"), []string{"11.0.0.1"}, []string{"10.0.0.1"}},
		{"carrier range by name", parse("100.64.0.0/10"), []string{"100.64.0.1"}, []string{"100.100.100.200"}},
		{"own address by name", parse("9.9.8.2"), nil, []string{"9.9.8.2"}},
		{"a private range and everything", parse("192.168.1.0/24", "0.0.0.0/0"), []string{"192.168.1.1", "9.9.9.9"}, []string{"192.168.2.1"}},
	} {
		allowed := test.policy.Compile(own)
		for _, a := range test.open {
			if !allowed.Contains(netip.MustParseAddr(a)) {
				t.Errorf("%s: %s is closed", test.name, a)
			}
		}
		for _, a := range test.closed {
			if allowed.Contains(netip.MustParseAddr(a)) {
				t.Errorf("%s: %s is open", test.name, a)
			}
		}
	}
}

func TestDNS(t *testing.T) {
	list := []netip.Prefix{netip.MustParsePrefix("9.9.9.9/32")}
	for _, test := range []struct {
		policy policy.Policy
		want   bool
	}{
		{policy.Policy{}, true}, {policy.Policy{NoDNS: true}, false}, {policy.Policy{Mode: policy.None}, false},
		{policy.Policy{Mode: policy.AllowList}, false}, {policy.Policy{Mode: policy.AllowList, Allow: list}, true},
		{policy.Policy{Mode: policy.AllowList, Allow: list, NoDNS: true}, false},
	} {
		if got := test.policy.DNS(); got != test.want {
			t.Errorf("%+v: DNS %v, want %v", test.policy, got, test.want)
		}
	}
}

func TestJSON(t *testing.T) {
	want := policy.Policy{Mode: policy.AllowList, Allow: []netip.Prefix{netip.MustParsePrefix("9.9.9.0/24")}, NoDNS: true}
	data, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := policy.Decode(data); err != nil || !got.Equal(want) {
		t.Errorf("%s: %+v, %v", data, got, err)
	}
	for _, bad := range []string{``, `{`, `[]`, `{"mode":"all"}`, `{"mode":1}`, `{"allow":["10.0.0.0/8"]}`, `{"mode":"allow-list","allow":["x"]}`,
		`{"mode":"allow-list","allow":["fd00::/8"]}`, `{"domains":["a"]}`, `{}{}`, `{} x`} {
		if p, err := policy.Decode([]byte(bad)); !errors.Is(err, policy.ErrInvalid) {
			t.Errorf("%s: %+v, %v; want ErrInvalid", bad, p, err)
		}
	}
}

func TestNameservers(t *testing.T) {
	conf := "# comment\nsearch example.com\nnameserver 127.0.0.53\nnameserver\t10.0.0.2 # ours\nnameserver 10.0.0.2\nnameserver bogus\nnameserver ::ffff:9.9.9.9\nnameserver fd00::1\n"
	var got []string
	for _, a := range policy.ParseNameservers([]byte(conf)) {
		got = append(got, a.String())
	}
	if want := []string{"127.0.0.53", "10.0.0.2", "9.9.9.9", "fd00::1"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	text := policy.ResolvConf(policy.PublicResolvers())
	if !strings.HasPrefix(text, "nameserver 1.1.1.1\nnameserver 8.8.8.8\n") {
		t.Errorf("resolv.conf: %q", text)
	}
}

// Whatever a list says, what no policy opens stays closed, and the ranges are in order.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{"", "9.9.9.9", "10.0.0.0/8,0.0.0.0/0", "169.254.169.254/32", "0.0.0.0/1, 128.0.0.0/1", "::/0", "010.1.1.1", "10.0.0.1/8", "1.2.3.4%eth0", ",,"} {
		f.Add(seed)
	}
	never := []netip.Addr{}
	for _, a := range []string{"0.0.0.1", "127.0.0.1", "169.254.169.254", "168.63.129.16", "100.100.100.200", "192.0.0.192", "224.0.0.1", "255.255.255.255", "9.9.8.2", "::1", "::ffff:127.0.0.1"} {
		never = append(never, netip.MustParseAddr(a))
	}
	own := []netip.Prefix{netip.MustParsePrefix("9.9.8.2/32")}
	f.Fuzz(func(t *testing.T, list string) {
		p, err := policy.Parse(false, policy.ParseList(list))
		if err != nil {
			if !errors.Is(err, policy.ErrInvalid) {
				t.Errorf("%q: %v is no ErrInvalid", list, err)
			}
			return
		}
		ranges := p.Compile(own)
		for _, a := range never {
			if ranges.Contains(a) {
				t.Errorf("%q opens %s", list, a)
			}
		}
		for i, r := range ranges {
			if r.First > r.Last || i > 0 && uint64(ranges[i-1].Last)+1 >= uint64(r.First) {
				t.Errorf("%q: ranges out of order: %v", list, ranges)
			}
		}
		if len(p.Allow) == 0 && len(ranges) > 0 {
			t.Errorf("%q: an empty list opens %v", list, ranges)
		}
		data, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := policy.Decode(data); err != nil || !again.Equal(p) {
			t.Errorf("%q: %s reads back as %+v, %v", list, data, again, err)
		}
	})
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"mode":"allow-list","allow":["9.9.9.0/24"],"noDns":true}`))
	f.Add([]byte(`{"mode":"none"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := policy.Decode(data)
		if err != nil {
			if !errors.Is(err, policy.ErrInvalid) {
				t.Errorf("%q: %v is no ErrInvalid", data, err)
			}
			return
		}
		if err := p.Validate(); err != nil {
			t.Errorf("%q: accepted, but %v", data, err)
		}
	})
}

func FuzzNameservers(f *testing.F) {
	f.Add([]byte("nameserver 1.1.1.1\nnameserver fe80::1%eth0\n"))
	f.Fuzz(func(t *testing.T, conf []byte) {
		for _, a := range policy.ParseNameservers(conf) {
			if !a.IsValid() || a.Is4In6() {
				t.Errorf("%q: %v", conf, a)
			}
		}
	})
}
