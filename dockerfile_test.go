package daytona

import (
	"io/fs"
	"os/exec"
	"path"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestCopySources(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       []string
	}{
		{"none", "FROM a\nRUN b\n", nil},
		{"several", "COPY a b/c d/\n", []string{"a", "b/c"}},
		{"case and indent", "  cOpY\ta b\n", []string{"a"}},
		{"flags", "COPY --chown=1:1 --chmod=0644 --link --exclude=*.md a b", []string{"a"}},
		{"from", "COPY --from=x a b\nCOPY --link --from=x a b\nCOPY a --from=x b\n", []string{"a", "--from=x"}},
		{"json", `COPY ["a b", "c", "d"]`, []string{"a b", "c"}},
		{"json after flags", `COPY --chown=1 ["a b", "c"]`, []string{"a b"}},
		{"not quite json", "COPY [a-c].txt b", []string{"[a-c].txt"}},
		{"quoted and escaped", `COPY "a" 'b' c\$d e`, []string{"a", "b", "c$d"}},
		{"continued", "COPY a \\\n  b \\  \n # no\n\n c\nRUN x \\\nCOPY y z\n", []string{"a", "b"}},
		{"escaped escape", "RUN x\\\\\nCOPY a b\n", []string{"a"}},
		{"crlf", "FROM a\r\nCOPY a \\\r\n  b\r\n", []string{"a"}},
		{"byte order mark", "\ufeffCOPY a b", []string{"a"}},
		{"heredoc", "RUN <<EOF\nCOPY no x\nEOF\nCOPY a b", []string{"a"}},
		{"heredoc quoted, indented", "RUN <<-'E F' cat\nCOPY no x\n\tE F\nCOPY a b", []string{"a"}},
		{"heredocs", "COPY <<A <<B c /x/\nCOPY n x\nA\nCOPY n x\nB\nCOPY a b", []string{"c", "a"}},
		{"heredoc after a blank", "RUN << EOF\nCOPY no x\nEOF\nCOPY a b", []string{"a"}},
		{"no heredoc", "RUN echo \"<<EOF\" $((1<<2))\nCOPY a b\n2))\n", []string{"a"}},
		{"add", "ADD a https://x/y git@github.com:a/b http://x ftp://x b", []string{"a"}},
		{"copy knows no URLs", "COPY https://x b", []string{"https://x"}},
		{"onbuild", "ONBUILD COPY a b\n", nil},
		{"onbuild heredoc", "ONBUILD RUN <<E\nCOPY n x\nE\nCOPY a b\n", []string{"a"}},
		{"variables", "COPY $X b\nCOPY a/b/${X}/c d\nCOPY a/b$X d\nCOPY '$a' b", []string{".", "a/b/", "a/", "$a"}},
		{"stars", "COPY --parents a/**/*.go b\nCOPY a*/b c", []string{"a/", "a*/b"}},
		{"mounts", "RUN --mount=type=bind,source=a,target=/a --mount=type=cache,target=/c --mount=type=bind,from=x,source=n,target=/x --mount=target=/all make", []string{"a", "."}},
		{"directive", "# syntax=x\n#escape = `\nCOPY a `\n b c:\\\nCOPY d e", []string{"a", "b", "d"}},
		{"late directive", "# words\n# escape=`\nCOPY a b `\nCOPY c d", []string{"a", "b", "c"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			escape := dockerfileEscape(c.text)
			list, _ := parseDockerfile(c.text, escape)
			var got []string
			for _, s := range copySources(list, escape) {
				got = append(got, s.pattern)
			}
			if !reflect.DeepEqual(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestDockerfileLines(t *testing.T) {
	list, open := parseDockerfile("# c\n\nFROM a\nRUN b \\\n c\nRUN <<E\nx\nE\nUSER d", backslash)
	want := []instruction{{3, "FROM", "a"}, {4, "RUN", "b  c"}, {6, "RUN", "<<E"}, {9, "USER", "d"}}
	if open || !reflect.DeepEqual(list, want) {
		t.Errorf("got %+v (open: %v), want %+v", list, open, want)
	}
	for _, text := range []string{"RUN a \\", "RUN a \\\n", "RUN a \\\n# b\n", "RUN <<E", "RUN <<E\na\n", "RUN a\n\\\n"} {
		if _, open := parseDockerfile(text, backslash); !open {
			t.Errorf("%q is said to be complete", text)
		}
	}
}

// TestDockerfileIsReadInItsLength: the longest of texts take no longer than
// their length says.
func TestDockerfileIsReadInItsLength(t *testing.T) {
	length := maxDescription
	if testing.Short() {
		length /= 8 // for the race detector, in the same time
	}
	for _, part := range []string{"a\\\n", "\\\n", "COPY a b\n", "--a ", "<<A ", "'", "\"a\" ", "RUN <<A\n", "$", "/", "**"} {
		for _, head := range []string{"", "COPY ", "RUN "} {
			text := head + strings.Repeat(part, length/len(part))
			start := time.Now()
			list, _ := parseDockerfile(text, backslash)
			copySources(list, backslash)
			if took := time.Since(start); took > 10*time.Second {
				t.Errorf("%q and many %q: %v", head, part, took)
			}
		}
	}
}

// FuzzCopySources: whatever a Dockerfile says, its sources are beneath the
// context, and what follows a complete text is an instruction of its own.
func FuzzCopySources(f *testing.F) {
	for _, text := range []string{
		"FROM a\nCOPY b c\n", "COPY --from=x \"a b\" c\n", "COPY [\"a\",\"b\"]", "RUN <<E\nCOPY a b\nE\n", "COPY a \\\n#x\n\n b",
		"# escape=`\nCOPY a `\n b", "ADD http://x ../../etc/passwd /y", "RUN --mount=src=/../x,type=bind y", "COPY $a/b 'c", "COPY '\\\n' \"", "\ufeffCOPY a b\r\n",
		"RUN <<A <<-B\nA\n\tB\n", "COPY <<", "RUN a\\\\", "\\",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		escape := dockerfileEscape(text)
		list, open := parseDockerfile(text, escape)
		last, lines := 0, strings.Count(text, "\n")+1
		for _, in := range list {
			if in.line <= last || in.line > lines || in.name == "" {
				t.Fatalf("%+v after line %d of %d", in, last, lines)
			}
			last = in.line
		}
		for _, s := range copySources(list, escape) {
			if p := contextPath(s.pattern); !fs.ValidPath(p) && strings.IndexByte(s.pattern, 0xff) < 0 && validText("", p) == nil {
				t.Fatalf("%q is at %q", s.pattern, p)
			}
		}
		if !open {
			more, open := parseDockerfile(text+"\nUSER nobody\n", escape)
			if open || len(more) != len(list)+1 || more[len(list)].name != "USER" || more[len(list)].args != "nobody" {
				t.Fatalf("%+v, then %+v", list, more)
			}
		}
	})
}

// FuzzQuoting: a word is the same word to whoever reads it, a shell included,
// and ends nothing that it stands in.
func FuzzQuoting(f *testing.F) {
	for _, s := range []string{
		"a", "", "numpy>=1,<2", "a b", "it's", "it's!", `"`, `\`, "`", "$(id)", "${HOME}", "a;b|c&d", "x\\", "'`'", "C:\\x", "x:$y", "~", "#", "<<EOF", "--from=x", "[a]", "*?", "\u00a0", "\u0085", "ä", "\t", "-n", "%s", "a'b\"c$d`e\\f!",
	} {
		f.Add(s, false)
		f.Add(s, true)
	}
	sh, _ := exec.LookPath("sh")
	f.Fuzz(func(t *testing.T, s string, other bool) {
		if plainText("", s) != nil || len(s) > 4096 {
			t.Skip()
		}
		escape, head := byte(backslash), ""
		if other {
			escape, head = backquote, "# escape=`\n"
		}
		one := func(line string) instruction {
			t.Helper()
			if e := dockerfileEscape(head + line); e != escape {
				t.Fatalf("escape %q", e)
			}
			list, open := parseDockerfile(head+line+"\nUSER nobody\n", escape)
			if open || len(list) != 2 || list[1].name != "USER" {
				t.Fatalf("%q is not one instruction: %+v", line, list)
			}
			return list[0]
		}
		in := one("WORKDIR " + valueWord(s, escape))
		if v, vars, ok := unquote(in.args, escape); v != s || vars || !ok {
			t.Errorf("%q is %q as a value, from %q", s, v, in.args)
		}
		in = one("RUN printf %s " + runWord(s, escape))
		if sh != "" {
			out, err := exec.Command(sh, "-c", in.args).Output()
			if err != nil || string(out) != s {
				t.Errorf("%q is %q to a shell (%v), from %q", s, out, err, in.args)
			}
		}
		if s != "" && !strings.Contains(s, `\`) {
			in = one("COPY " + copyArgs(s, "/x", escape))
			found := copySources([]instruction{in}, escape)
			if len(found) != 1 {
				t.Fatalf("%q is %+v to COPY, from %q", s, found, in.args)
			}
			match, err := path.Match(found[0].pattern, s)
			if found[0].pattern != s && (!match || err != nil) {
				t.Errorf("%q is %q to COPY, from %q", s, found[0].pattern, in.args)
			}
		}
	})
}
