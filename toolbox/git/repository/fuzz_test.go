package repository

import (
	"bytes"
	"strings"
	"testing"

	"github.com/go-git/go-git/v5/plumbing"
)

func FuzzConfig(f *testing.F) {
	for _, s := range []string{"[a]\n\tb = c\n", "[a \"B\\\"\"] x=y ; z\n[a.b]\nq", "\xef\xbb\xbf[a]b=\"c # \\n\" d\\\n e", "[a]\nb = \\x", "[a]b=\r", "[a]b = \\\n", "[a]b = c\\\r\n", "[a]b = c\\", "[a]b\n[sec \"Sub \\\"x\\\\\"]x=\\"} {
		f.Add(s, "v")
	}
	f.Fuzz(func(t *testing.T, text, value string) {
		c, err := parseConfig([]byte(text))
		if err != nil || strings.IndexByte(value, 0) >= 0 {
			return
		}
		// What is set is read again.
		const sub = "Sub \"x\\"
		out, err := c.set("sec", sub, "key", value)
		if err != nil {
			t.Fatal(err)
		}
		again, err := parseConfig(out)
		if err != nil {
			t.Fatalf("%v in %q", err, out)
		}
		if got, ok := settings(again.settings).get("sec", sub, "key"); !ok || got != value {
			t.Fatalf("%q, want %q, in %q", got, value, out)
		}
		// All else stays.
		for _, s := range c.settings {
			if s.section == "sec" && s.sub == sub && s.key == "key" {
				continue
			}
			want, _ := settings(c.settings).get(s.section, s.sub, s.key)
			if got, ok := settings(again.settings).get(s.section, s.sub, s.key); !ok || got != want {
				t.Fatalf("%s.%s.%s is %q, was %q, in %q", s.section, s.sub, s.key, got, want, out)
			}
		}
		if _, err := parseConfig(again.unset("sec", sub, "")); err != nil {
			t.Fatalf("%v after unset of %q", err, out)
		}
	})
}

func FuzzIndex(f *testing.F) {
	x := &index{entries: []entry{{path: "a", mode: modeFile}, {path: "b/c", mode: modeLink, extended: flagIntentToAdd}}, tree: &cacheTree{count: -1, subs: []*cacheTree{{name: "b", count: 1}}}}
	var b bytes.Buffer
	if err := x.write(&b); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 20 {
			data = append(bytes.Clone(data[:len(data)-20]), make([]byte, 20)...) // without a checksum
		}
		x, err := parseIndex(data)
		if err != nil {
			return
		}
		var out bytes.Buffer
		if err := x.write(&out); err != nil {
			t.Fatal(err)
		}
		if _, err := parseIndex(out.Bytes()); err != nil {
			t.Fatalf("%v of what was written", err)
		}
	})
}

func FuzzObjects(f *testing.F) {
	f.Add([]byte("tree 4b825dc642cb6eb9a060e54bf8d69288fbee4904\nauthor A <a> 1 +0100\ncommitter A <a> 99999999999999 -9999\n\nm"))
	f.Add([]byte("100644 a\x0001234567890123456789"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if c, err := parseCommit(plumbing.ZeroHash, data); err == nil {
			_ = c.at.Format("2006-01-02T15:04:05Z07:00")
		}
		entries, err := parseTree(plumbing.ZeroHash, data)
		if err != nil {
			return
		}
		for _, e := range entries {
			if e.name == "" || strings.IndexByte(e.name, 0) >= 0 {
				t.Fatalf("%q", e.name)
			}
			if checkPath(e.name, e.mode) == nil && (e.name == ".." || strings.EqualFold(e.name, ".git") || strings.HasPrefix(e.name, "/")) {
				t.Fatalf("%q is let through", e.name)
			}
		}
	})
}

func FuzzAddress(f *testing.F) {
	for _, s := range []string{"https://u:p@example.com/x.git", "git@example.com:x/y", "ssh://u@[::1]:22/x", "../x", "ext::sh -c x", "file:///x", "-x", "u:p@h:x", "http://[::1%25eth0]/x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		_ = redact(raw)
		a, err := parseAddress(raw, "/dir")
		if err != nil {
			return
		}
		switch a.scheme {
		case "http", "https", "ssh", "git", "file":
		default:
			t.Fatalf("scheme %q of %q", a.scheme, raw)
		}
		if strings.HasPrefix(raw, "-") || strings.HasPrefix(a.host, "-") || a.scheme == "file" && !strings.HasPrefix(a.path, "/") {
			t.Fatalf("%q became %+v", raw, a)
		}
	})
}

func FuzzPatterns(f *testing.F) {
	f.Add("*.o\n!keep\n/a/**/b\n[a-z!]\\x ", "a/x/b")
	f.Add("**/a/**/b/**/c/**/d*e*f*g", "a/b/c/d")
	f.Fuzz(func(t *testing.T, text, name string) {
		g := &ignores{patterns: parseIgnore(text)}
		if len(g.patterns) > 100 || len(name) > 4096 {
			return
		}
		g.match(name, false)
		g.match(name, true)
		rules, macros := parseAttributes(text)
		a := &attributes{read: func(string) string { return "" }, macros: macros, dirs: map[string][]attribute{"": rules}}
		a.get(name)
	})
}

func FuzzCredentials(f *testing.F) {
	f.Add("https://u:p%2f@example.com/x\nhttp://t@h:1\n")
	f.Fuzz(func(t *testing.T, text string) {
		for _, c := range parseCredentials(text) {
			if strings.ContainsAny(c.protocol+c.host, "/@:%\r\n") {
				continue // of no host
			}
			if again := parseCredentials(c.line()); len(again) != 1 || again[0].user != c.user || again[0].password != c.password {
				t.Fatalf("%+v became %+v", c, again)
			}
		}
	})
}
