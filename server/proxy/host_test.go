package proxy_test

import (
	"crypto/sha256"
	"encoding/hex"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"github.com/daytona-go/daytona/server/proxy"
)

func hashOf(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

func TestParseHost(t *testing.T) {
	const id = sandboxA
	for host, want := range map[string]string{
		"3000-" + id + "." + domain:                      "3000 id",
		"3000-" + id + "." + domain + ":8443":            "3000 id",
		"3000-" + id + "." + domain + ".":                "3000 id",
		"3000-" + id + "." + domain + ".:8443":           "3000 id",
		strings.ToUpper("3000-" + id + "." + domain):     "3000 id",
		"65535-abcdefgh12345678." + domain:               "65535 token",
		"1-a." + domain:                                  "1 token",
		"3000-" + id + "-x." + domain:                    "3000 token",
		"3000-" + id + "." + domain + "..":               "",
		"3000-" + id + "." + domain + ":":                "",
		"3000-" + id + "." + domain + ":080":             "",
		"3000-" + id + "." + domain + ":80:80":           "",
		"3000-" + id + "." + domain + ":99999":           "",
		"3000-" + id + ".x." + domain:                    "",
		"3000-" + id + "." + domain + ".evil.test":       "",
		"3000-" + id + ".evil" + domain:                  "",
		"3000-" + id + ".evil.test":                      "",
		"03000-" + id + "." + domain:                     "",
		"0-" + id + "." + domain:                         "",
		"65536-" + id + "." + domain:                     "",
		"+80-" + id + "." + domain:                       "",
		"-" + id + "." + domain:                          "",
		"3000." + domain:                                 "",
		"3000-." + domain:                                "",
		"3000--" + id + "." + domain:                     "",
		"3000-" + id + "-." + domain:                     "",
		"3000-a_b." + domain:                             "",
		"3000-a%2fb." + domain:                           "",
		"3000-a b." + domain:                             "",
		"3000-\u212a." + domain:                          "", // a letter whose lower case is k
		"3000-" + strings.Repeat("a", 59) + "." + domain: "",
		"3000-" + strings.Repeat("a", 58) + "." + domain: "3000 token",
		"[::1]":                "",
		"[::1]:3000":           "",
		"3000-[::1]." + domain: "",
		"127.0.0.1":            "",
		"127.0.0.1:4000":       "",
		domain:                 "",
		"." + domain:           "",
		"":                     "",
	} {
		port, label, signed, ok := proxy.ParseHost(host, domain)
		got := ""
		if ok {
			got = strconv.Itoa(port) + " id"
			if signed {
				got = strconv.Itoa(port) + " token"
			}
		}
		if got != want {
			t.Errorf("%q: %q (%q), want %q", host, got, label, want)
		}
	}
}

func FuzzHost(f *testing.F) {
	for _, s := range []string{"3000-" + sandboxA + "." + domain, "[::1]:80", "1-a." + domain + ".:1", "0-a." + domain, "\x00", "3000-a." + strings.ToUpper(domain)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		port, label, signed, ok := proxy.ParseHost(s, domain)
		if !ok {
			return
		}
		if port < 1 || port > 65535 || label == "" || len(label) > 61 || strings.ContainsAny(label, "./:@%_ \\\x00") || label != strings.ToLower(label) {
			t.Fatalf("%q: %d %q", s, port, label)
		}
		// There is one host that says it, and it says the same.
		own := strconv.Itoa(port) + "-" + label + "." + domain
		if !strings.HasPrefix(strings.ToLower(s), own) {
			t.Fatalf("%q is taken for %q", s, own)
		}
		if p, l, g, ok := proxy.ParseHost(own, domain); p != port || l != label || g != signed || !ok {
			t.Fatalf("%q: %d %q %v %v", own, p, l, g, ok)
		}
	})
}

func FuzzWithoutToken(f *testing.F) {
	for _, s := range []string{"", "a=1&b=2", "DAYTONA_SANDBOX_AUTH_KEY=x", "a=%2&%44AYTONA_SANDBOX_AUTH_KEY=x&b", "n=%253FDAYTONA_SANDBOX%255fAUTH_KEY%3dx", "a;DAYTONA_SANDBOX_AUTH_KEY=x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		out := proxy.WithoutToken(raw)
		if q, err := url.ParseQuery(out); err == nil && q.Has("DAYTONA_SANDBOX_AUTH_KEY") || strings.Contains(out, "DAYTONA_SANDBOX_AUTH_KEY") {
			t.Fatalf("%q: %q", raw, out)
		}
		if len(out) > len(raw) || proxy.WithoutToken(out) != out {
			t.Fatalf("%q: %q", raw, out)
		}
	})
}
