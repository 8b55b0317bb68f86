package cli_test

import (
	"io"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
)

// terminal is daytona on a terminal, with a test as its user.
type terminal struct {
	t     *testing.T
	f     *os.File
	bytes chan []byte
	seen  strings.Builder
	ended chan error
}

func (s *shell) terminal(cols, rows uint16, args ...string) *terminal {
	s.t.Helper()
	cmd := s.command(args...)
	f, err := pty.StartWithSize(cmd, &pty.Winsize{Cols: cols, Rows: rows})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { f.Close() })
	term := &terminal{t: s.t, f: f, bytes: make(chan []byte), ended: make(chan error, 1)}
	go func() {
		defer close(term.bytes)
		for ends := 0; ends < 2; {
			b := make([]byte, 4096)
			n, err := f.Read(b)
			if n > 0 {
				term.bytes <- b[:n]
			}
			// EIO: the last process on it has ended. The kernel may say so
			// before it has passed the last that was written.
			if err != nil {
				ends++
			}
		}
	}()
	go func() { term.ended <- cmd.Wait() }()
	return term
}

// expect waits until the terminal shows what re matches, and forgets it.
func (x *terminal) expect(re string) {
	x.t.Helper()
	r := regexp.MustCompile(re)
	timeout := time.After(patience)
	for {
		if at := r.FindStringIndex(x.seen.String()); at != nil {
			rest := x.seen.String()[at[1]:]
			x.seen.Reset()
			x.seen.WriteString(rest)
			return
		}
		select {
		case b, ok := <-x.bytes:
			if !ok {
				x.t.Fatalf("the terminal never showed %s, but: %q", re, x.seen.String())
			}
			x.seen.Write(b)
		case <-timeout:
			x.t.Fatalf("the terminal does not show %s, but: %q", re, x.seen.String())
		}
	}
}

func (x *terminal) typeIn(s string) {
	x.t.Helper()
	if _, err := io.WriteString(x.f, s); err != nil {
		x.t.Fatal(err)
	}
}

// end waits for daytona to end and returns the rest of its output.
func (x *terminal) end() (code int, rest string) {
	x.t.Helper()
	for b := range x.bytes {
		x.seen.Write(b)
	}
	return exitCode(x.t, <-x.ended), x.seen.String()
}

func TestTerminal(t *testing.T) {
	everywhere(t, func(t *testing.T, s *shell) {
		t.Run("size and resize", func(t *testing.T) {
			x := s.terminal(91, 37, "run", "--", "sh", "-c", `stty size; trap 'stty size; exit 6' WINCH; echo ready; while :; do sleep 0.1; done`)
			x.expect(`37 91\r\n`)
			x.expect(`ready\r\n`)
			if err := pty.Setsize(x.f, &pty.Winsize{Cols: 111, Rows: 22}); err != nil {
				t.Fatal(err)
			}
			x.expect(`22 111\r\n`)
			if code, rest := x.end(); code != 6 {
				t.Errorf("exit code %d, %q", code, rest)
			}
		})
		t.Run("ctrl-c", func(t *testing.T) {
			x := s.terminal(80, 24, "run", "--", "sh", "-c", `echo ready; exec sleep 60`)
			x.expect(`ready\r\n`)
			x.typeIn("\x03")
			if code, rest := x.end(); code != 130 {
				t.Errorf("exit code %d, %q", code, rest)
			}
		})
		t.Run("ctrl-c without a terminal inside", func(t *testing.T) {
			x := s.terminal(80, 24, "run", "-t=false", "--", "sh", "-c", `trap 'echo caught; exit 5' INT; echo ready; while :; do sleep 0.1; done`)
			x.expect(`ready\r\n`)
			x.typeIn("\x03")
			x.expect(`caught\r\n`)
			if code, rest := x.end(); code != 5 {
				t.Errorf("exit code %d, %q", code, rest)
			}
		})
		t.Run("shell", func(t *testing.T) {
			x := s.terminal(80, 24, "run")
			x.typeIn("echo $((6*7))-$TERM; exit 8\r")
			x.expect(`42-xterm-test\r\n`)
			if code, rest := x.end(); code != 8 {
				t.Errorf("exit code %d, %q", code, rest)
			}
		})
		t.Run("input and its end", func(t *testing.T) {
			x := s.terminal(80, 24, "run", "--", "sh", "-c", "echo ready; cat")
			x.expect(`ready\r\n`)
			x.typeIn("typed\r")
			x.expect(`typed\r\ntyped\r\n`) // once by the terminal's echo, once by cat
			x.typeIn("\x04")
			if code, rest := x.end(); code != 0 || strings.Contains(rest, "typed") {
				t.Errorf("exit code %d, %q", code, rest)
			}
		})
		t.Run("restored", func(t *testing.T) {
			x := (&shell{t: t, program: "sh", dir: s.dir, env: s.env}).terminal(80, 24, "-c",
				`before=$(stty -g); "$0" run -- true; test "$before" = "$(stty -g)" && echo same; "$0" run -- no-such-program; test "$before" = "$(stty -g)" && echo same`, s.program)
			x.expect(`same\r\n(?s:.*)same\r\n`)
			x.end()
		})
		t.Run("ask before deleting all", func(t *testing.T) {
			s.ok("sandbox", "create", "--name", "precious")
			x := s.terminal(80, 24, "sandbox", "delete", "--all")
			x.expect(`precious.*\[y/N\] `)
			x.typeIn("n\r")
			if code, rest := x.end(); code != 125 || !strings.Contains(rest, "nothing was deleted") {
				t.Errorf("exit code %d, %q", code, rest)
			}
			x = s.terminal(80, 24, "sandbox", "delete", "--all")
			x.expect(`\[y/N\] `)
			x.typeIn("y\r")
			if code, rest := x.end(); code != 0 {
				t.Errorf("exit code %d, %q", code, rest)
			}
		})
		s.nothingLeft()
	})
}

// TestSandboxShell: "sandbox shell" is a login shell of the sandbox.
func TestSandboxShell(t *testing.T) {
	everywhere(t, func(t *testing.T, s *shell) {
		s.ok("sandbox", "create", "--name", "dev")
		x := s.terminal(80, 24, "sandbox", "shell", "dev")
		x.typeIn("test -t 0 && echo on a $((1+1))tty; exit 3\r")
		x.expect(`on a 2tty\r\n`)
		if code, rest := x.end(); code != 3 {
			t.Errorf("exit code %d, %q", code, rest)
		}
		s.ok("sandbox", "delete", "dev")
	})
}

// TestProgress: work that takes long shows on a terminal, goes away without a
// trace, and shows nowhere else.
func TestProgress(t *testing.T) {
	s := hostShell(t)
	s.query("slow=900ms")
	x := s.terminal(80, 24, "run", "--", "echo", "done")
	x.expect(`\r\x1b\[K⠋ pulling \\x1b\[31mbig:1  1\.0 MiB / 4\.0 MiB \(25%\)`)
	x.expect(`\r\x1b\[Kdone\r\n`)
	if code, rest := x.end(); code != 0 || rest != "" {
		t.Errorf("exit code %d, %q", code, rest)
	}
	if r := s.run("run", "--", "echo", "done"); r.stdout != "done\n" || r.stderr != "" {
		t.Error(r)
	}
	if r := s.run("run", "--verbose", "--", "echo", "done"); !strings.Contains(r.stderr, `pulling \x1b[31mbig:1`) {
		t.Error(r)
	}

	// Ctrl-C while the sandbox is being made.
	s.query("slow=1m")
	for i, e := range s.env {
		s.env[i] = strings.Replace(e, "?slow=900ms", "", 1)
	}
	x = s.terminal(80, 24, "run", "--", "echo", "done")
	x.expect(`pulling`)
	x.typeIn("\x03")
	if code, rest := x.end(); code != 130 || !strings.Contains(rest, "daytona: stopped by SIGINT") {
		t.Errorf("exit code %d, %q", code, rest)
	}
}
