package desktop

import (
	"net/url"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/daytona-go/daytona/toolbox/wire"
)

// FuzzHotkey: whatever is parsed is what was written, and every key of it is
// found or refused without harm.
func FuzzHotkey(f *testing.F) {
	for _, s := range []string{"ctrl+c", "ctrl++", "+", "++", "a+", " ctrl + shift + T ", "", "cmd+F12", "numpad_7", "ctrl+é", "f36", "kp_0", "+a", "a++b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		names, err := splitHotkey(s)
		if err != nil {
			return
		}
		plain := func(s string) string { return strings.Join(strings.Fields(s), "") }
		if got := strings.Join(names, "+"); plain(got) != plain(s) {
			t.Errorf("%q became %q", s, names)
		}
		for _, name := range names {
			if name == "" {
				t.Errorf("%q has an empty key: %q", s, names)
			}
			if sym, ok := keysym(name); ok && sym == 0 {
				t.Errorf("key %q is none", name)
			}
		}
	})
}

// FuzzScreenshotQuery: what is accepted is within its bounds.
func FuzzScreenshotQuery(f *testing.F) {
	f.Add("x=1&y=2&width=3&height=4&showCursor=true", true, true)
	f.Add("format=jpeg&quality=50&scale=0.5", false, true)
	f.Add("scale=NaN", false, true)
	f.Fuzz(func(t *testing.T, query string, region, compressed bool) {
		q, err := url.ParseQuery(query)
		if err != nil {
			return
		}
		want, err := parseShot(q, region, compressed)
		if err == nil && (want.quality < 1 || want.quality > 100 || !(want.scale >= 0.1 && want.scale <= 1) || region != (want.region != nil)) {
			t.Errorf("%q: %+v", query, want)
		}
	})
}

// FuzzAccessibility: ids that are accepted are written the same, and searches
// that are accepted can be made.
func FuzzAccessibility(f *testing.F) {
	f.Add(":1.2/org/a11y/atspi/accessible/3", "push button", "O.K", "regex")
	f.Add(":1.2/", "", "(", "regex")
	f.Add("org.freedesktop.DBus/x", "frame", "x", "exact")
	f.Fuzz(func(t *testing.T, id, role, name, match string) {
		if r, err := parseID(id); err == nil && r.id() != id {
			t.Errorf("id %q became %q", id, r.id())
		}
		matches, err := matcher(&wire.AccessibilityFindRequest{Role: role, Name: name, NameMatch: match})
		if err == nil {
			n := &wire.AccessibilityNode{Role: role, Name: name}
			if got := matches(n); !got && match != "regex" && utf8.ValidString(role) {
				t.Errorf("role %q and name %q do not match themselves by %q", role, name, match)
			}
		}
	})
}

func TestKeysyms(t *testing.T) {
	for name, want := range map[string]uint32{
		"a": 'a', "A": 'A', "é": 0xe9, "€": 0x10020ac, "日": 0x10065e5, "Return": 0xff0d, "ENTER": 0xff0d, "Page_Up": 0xff55, "pageup": 0xff55,
		"F1": 0xffbe, "f12": 0xffc9, "f35": 0xffe0, "ctrl": 0xffe3, "cmd": 0xffeb, "num7": 0xffb7, "KP_0": 0xffb0, "space": ' ', "+": '+', "\t": 0xff09,
	} {
		if got, ok := keysym(name); !ok || uint32(got) != want {
			t.Errorf("%q is %#x, %v; want %#x", name, got, ok, want)
		}
	}
	for _, name := range []string{"", "f0", "f36", "f01", "kp_10", "nope", "\x00", "\xff", "\x7f", strings.Repeat("f", 100)} {
		if got, ok := keysym(name); ok {
			t.Errorf("%q is %#x", name, got)
		}
	}
}
