package escape_test

import (
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/daytona-go/daytona/internal/escape"
)

// filter filters s in pieces of n bytes.
func filter(s string, n int) string {
	var f escape.Filter
	var out []byte
	for len(s) > n {
		out = f.Append(out, []byte(s[:n]))
		s = s[n:]
	}
	return string(f.Append(out, []byte(s)))
}

func TestFilter(t *testing.T) {
	const esc, st = "\x1b", "\x1b\\"
	for name, test := range map[string]struct{ in, out string }{
		"text":            {"hello, wörld 世界\r\n\ttab\b\a", "hello, wörld 世界\r\n\ttab\b\a"},
		"colours":         {esc + "[1;31mred" + esc + "[0m" + esc + "[38:2::1:2:3m", esc + "[1;31mred" + esc + "[0m" + esc + "[38:2::1:2:3m"},
		"an editor":       {esc + "[?1049h" + esc + "[2J" + esc + "[H" + esc + "(B" + esc + "7" + esc + "[?2004h" + esc + "[4 q" + esc + "[6n", esc + "[?1049h" + esc + "[2J" + esc + "[H" + esc + "(B" + esc + "7" + esc + "[?2004h" + esc + "[4 q" + esc + "[6n"},
		"title":           {esc + "]0;user@host: ~" + "\a$ ", esc + "]0;user@host: ~" + st + "$ "},
		"long title":      {esc + "]2;" + strings.Repeat("ä", 400) + st, esc + "]2;" + strings.Repeat("ä", 128) + st},
		"endless title":   {esc + "]2;" + strings.Repeat("x", 5000) + st + "after", "after"},
		"clipboard":       {"a" + esc + "]52;c;cm0gLXJmIC8=\ab", "ab"},
		"clipboard, ST":   {"a" + esc + "]52;c;cm0gLXJmIC8=" + st + "b", "ab"},
		"with zeros":      {"a" + esc + "]052;c;cm0=\ab" + esc + "]0000052;c;cm0=\ac", "abc"},
		"its question":    {"a" + esc + "]52;c;?\ab", "ab"},
		"C1 clipboard":    {"a\u009d52;c;cm0=\u009cb", "ab"},
		"8 bit":           {"a\x9d52;c;cm0=\x9cb", "a\ufffd52;c;cm0=\ufffdb"},
		"title report":    {"a" + esc + "]2;rm -rf ~" + "\a" + esc + "[21t" + esc + "[20tb", "a" + esc + "]2;rm -rf ~" + st + "b"},
		"C1 report":       {"a\u009b21tb", "ab"},
		"window":          {"a" + esc + "[3;0;0t" + esc + "[18tb", "ab"},
		"DECRQSS":         {"a" + esc + "P$qm" + st + "b", "ab"},
		"C1 DECRQSS":      {"a\u0090$q\"p\u009cb", "ab"},
		"XTGETTCAP":       {"a" + esc + "P+q544e" + st + "b", "ab"},
		"privacy, APC":    {"a" + esc + "^secret" + st + esc + "_secret" + st + esc + "Xsecret" + st + "b", "ab"},
		"ends by another": {"a" + esc + "]52;c;cm0=" + esc + "[1mb", "a" + esc + "[1mb"},
		"cancelled":       {"a" + esc + "]52;c;cm0=\x18b" + esc + "[21\x1atc", "abtc"},
		"answerback":      {"a\x05b" + esc + "Zc", "abc"},
		"version":         {"a" + esc + "[>qb" + esc + "[>0qc", "abc"},
		"attributes":      {esc + "[c" + esc + "[>c" + esc + "[5n", esc + "[c" + esc + "[>c" + esc + "[5n"},
		"printer":         {"a" + esc + "[5ib" + esc + "[?5ic", "abc"},
		"colour":          {esc + "]11;#112233\a", esc + "]11;#112233" + st},
		"its question 2":  {"a" + esc + "]11;?\ab" + esc + "]4;1;?\ac", "abc"},
		"link":            {esc + "]8;id=1;https://example.com/a?b=c\ahere" + esc + "]8;;\a", esc + "]8;;https://example.com/a?b=c" + st + "here" + esc + "]8;;" + st},
		"script link":     {esc + "]8;;javascript:alert(1)\ahere" + esc + "]8;;\a", "here"},
		"Script link":     {esc + "]8;;JaVaScRiPt:alert(1)\ahere", "here"},
		"data link":       {esc + "]8;;data:text/html,x\ahere", "here"},
		"file link":       {esc + "]8;;file:///etc/passwd\ahere", "here"},
		"hidden link":     {esc + "]8;;java\tscript:alert(1)\ahere", "here"},
		"link as user":    {esc + "]8;;https://bank.example@evil.example/\ahere", "here"},
		"link in a link":  {esc + "]8;;https://a.example/\ax" + esc + "]8;;javascript:x\ay", esc + "]8;;https://a.example/" + st + "x" + esc + "]8;;" + st + "y"},
		"control inside":  {esc + "[3\n1m" + esc + "[\x1b[1m", "\n" + esc + "[31m" + esc + "[1m"},
		"long sequence":   {"a" + esc + "[" + strings.Repeat("1;", 500) + "mb", "ab"},
		"no sequence":     {"a" + esc + "[1éb", "ab"},
		"broken text":     {"a\xffb\xc3(c\xe2\x82", "a\ufffdb\ufffd(c"},
		"notification":    {"a" + esc + "]9;hi\a" + esc + "]777;notify;x;y\a" + esc + "]1337;File=:AAAA\ab", "ab"},
		"character set":   {esc + "(0lqk" + esc + "(B" + esc + "%G" + esc + "($B", esc + "(0lqk" + esc + "(B"},
		"NEL":             {"a\u0085b", "a" + esc + "Eb"},
	} {
		for n := 1; n <= 7; n++ {
			if got := filter(test.in, n); got != test.out {
				t.Errorf("%s, in pieces of %d:\n%q\nwant\n%q", name, n, got, test.out)
			}
		}
		if got := filter(test.in, len(test.in)+1); got != test.out {
			t.Errorf("%s:\n%q\nwant\n%q", name, got, test.out)
		}
	}
}

// harmless is all that may come out, in other words than the filter's own.
var harmless = regexp.MustCompile(`^(?:` + strings.Join([]string{
	`[^\x00-\x1f\x7f-\x{9f}]`,
	`[\a-\x0f]`,
	`\x1b[78=>DEHMNOc]`,
	`\x1b[()*+][0AB]`,
	`\x1b#8`,
	`\x1b\[[0-9:;]*[@A-MPSTXZ\x60a-hlmnrsu]`,
	`\x1b\[\?[0-9:;]*[JKhlnrs]`,
	`\x1b\[>[0-9:;]*c`,
	`\x1b\[[0-9:;]* [q@A]`,
	`\x1b\[[0-9:;]*!p`,
	`\x1b\[\??[0-9:;]*\$p`,
	`\x1b\][012];[^\x00-\x1f\x7f-\x{9f}]*\x1b\\`,
	`\x1b\](?:4|10|11|12|104|110|111|112);[^?\x00-\x1f\x7f-\x{10ffff}]*\x1b\\`,
	`\x1b\]8;;(?:https?://[!-~]+|mailto:[!-~]+)?\x1b\\`,
}, "|") + `)*$`)

func FuzzFilter(f *testing.F) {
	for _, s := range []string{
		"plain", "\x1b]52;c;AAAA\a", "\x1b[21t", "\x1bP$qm\x1b\\", "\u009d52;c;?\u009c", "\x9b21t", "\x1b]8;;javascript:x\a", "\x1b]8;;http://x/\ay", "\x1b]8;;hTtp://x/\a",
		"\x1b[?1049h\x1b[38:2:1:2:3m", "\x1b]2;title\x1b\\", "\xe2\x82", "\x1b\x1b[\x18", "\x1b[1\x1b]0;\u009b21t\a", "\x1b[ q\x1b[!p\x1b[?1$p",
	} {
		f.Add(s, 1)
		f.Add(s, 3)
	}
	f.Fuzz(func(t *testing.T, s string, n int) {
		whole := filter(s, len(s)+1)
		if n = max(1, min(n, len(s)+1)); filter(s, n) != whole {
			t.Errorf("%q in pieces of %d: %q, whole: %q", s, n, filter(s, n), whole)
		}
		if !utf8.ValidString(whole) || !harmless.MatchString(whole) {
			t.Errorf("%q gives %q", s, whole)
		}
		if again := filter(whole, len(whole)+1); again != whole {
			t.Errorf("%q gives %q, and that %q", s, whole, again)
		}
		if len(whole) > 3*len(s)+16 {
			t.Errorf("%d bytes become %d", len(s), len(whole))
		}
	})
}

func BenchmarkFilter(b *testing.B) {
	line := []byte(strings.Repeat("some text \x1b[32mgreen\x1b[0m and more of it, as compilers write\r\n", 512))
	b.SetBytes(int64(len(line)))
	var f escape.Filter
	var out []byte
	for b.Loop() {
		out = f.Append(out[:0], line)
	}
}
