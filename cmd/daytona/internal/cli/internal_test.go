package cli

import (
	"os/exec"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestParseSize(t *testing.T) {
	for in, want := range map[string]float64{
		"2": 2, "1.5": 1.5, ".5": 0.5, "512m": 0.5, "512M": 0.5, "512MiB": 0.5, "512mb": 0.5,
		"2g": 2, "2GiB": 2, "1t": 1024, "1048576k": 1, "1073741824b": 1, " 1 g ": 1, "0": 0,
	} {
		got, err := parseSize(in)
		if err != nil || got != want {
			t.Errorf("parseSize(%q) = %v, %v; want %v", in, got, err, want)
		}
	}
	for _, in := range []string{"", "m", "-1", "1x", "1gg", "0x10", "1e3", "NaN", "inf", "1,5", "1 g b", strings.Repeat("9", 400)} {
		if got, err := parseSize(in); err == nil {
			t.Errorf("parseSize(%q) = %v, want an error", in, got)
		}
	}
}

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"plain":           "plain",
		"héllo – 世界 🙂":    "héllo – 世界 🙂",
		"\x1b[31mred":     `\x1b[31mred`,
		"a\tb\nc\rd":      `a\tb\nc\rd`,
		"\u009b2J":        `\u009b2J`,
		"\u202egnp.exe":   `\u202egnp.exe`,
		"\xff\xfe":        `\xff\xfe`,
		"\ufffd":          "\ufffd",
		"\x1b]0;title\a.": `\x1b]0;title\a.`,
	} {
		if got := printable(in); got != want {
			t.Errorf("printable(%q) = %q, want %q", in, got, want)
		}
	}
}

// FuzzPrintable: what a sandbox says can never drive a terminal.
func FuzzPrintable(f *testing.F) {
	for _, s := range []string{"name", "\x1b[2J", "\u009b31m", "\xc2", "a\u200fb", "\x7f"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := printable(s)
		if !utf8.ValidString(got) {
			t.Fatalf("printable(%q) = %q is not UTF-8", s, got)
		}
		for _, r := range got {
			if !unicode.IsPrint(r) && r != utf8.RuneError {
				t.Fatalf("printable(%q) = %q has %U", s, got, r)
			}
		}
		if again := printable(got); again != got {
			t.Fatalf("printable(%q) = %q, and again %q", s, got, again)
		}
	})
}

// FuzzPlainName: a name that a sandbox makes up is one element of a path.
func FuzzPlainName(f *testing.F) {
	for _, s := range []string{"a", "..", ".", "", "a/b", "/", "a\x00", `a\b`, "...", "NUL"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if plainName(s) && (s == "" || s == "." || s == ".." || strings.ContainsAny(s, "/\x00")) {
			t.Fatalf("%q is taken for a file name", s)
		}
	})
}

// TestShellQuote asks the judge in such matters, a shell.
func TestShellQuote(t *testing.T) {
	args := []string{"printf", `[%s]`, "", "a b", "it's", `"$HOME"`, "`id`", "\\", "new\nline", "*", "'", "-n", "ü"}
	out, err := exec.Command("sh", "-c", shellQuote(args)).Output()
	if err != nil {
		t.Fatal(err)
	}
	want := "[" + strings.Join(args[2:], "][") + "]"
	if string(out) != want {
		t.Errorf("the shell saw %q, want %q", out, want)
	}
}

func TestParseEndpoint(t *testing.T) {
	for in, want := range map[string]endpoint{
		"dev:/work":  {"dev", "/work"},
		"dev:":       {"dev", "."},
		"dev:a:b":    {"dev", "a:b"},
		"./dev:x":    {"", "./dev:x"},
		"/a/b:c":     {"", "/a/b:c"},
		"file":       {"", "file"},
		"-":          {"", "-"},
		"-bad:x":     {"", "-bad:x"},
		"sb-1.x_y:~": {"sb-1.x_y", "~"},
	} {
		if got := parseEndpoint(in); got != want {
			t.Errorf("parseEndpoint(%q) = %+v, want %+v", in, got, want)
		}
	}
}
