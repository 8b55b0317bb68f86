package backendtest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/daytona-go/daytona"
)

func sessionChecks() []check {
	return []check{
		{name: "Session", needs: []Capability{Sessions}, run: checkSession},
		{name: "SessionShell", needs: []Capability{Sessions, Shell}, run: checkSessionShell},
		{name: "SessionAsync", needs: []Capability{Sessions, Shell}, run: checkSessionAsync},
		{name: "SessionDelete", needs: []Capability{Sessions, Shell}, run: checkSessionDelete},
		{name: "PTY", needs: []Capability{Terminals, Shell}, run: checkPTY},
	}
}

func checkSession(c *env) {
	sb := c.create()
	p := sb.Process()
	s, err := p.CreateSession(c.ctx, "main")
	c.try("create", err)
	equal(c, "ID", s.ID(), "main")
	_, err = p.CreateSession(c.ctx, "main")
	c.wantKind("create with a taken id", err, daytona.KindConflict)
	_, err = p.Session(c.ctx, "none")
	c.wantKind("a session that does not exist", err, daytona.KindNotFound)
	run := func(line string) daytona.SessionResult {
		c.Helper()
		var r daytona.SessionResult
		c.try(fmt.Sprintf("run %q", line), c.within(15*time.Second, func() (err error) { r, err = s.Run(c.ctx, line); return err }))
		if r.CommandID == "" {
			c.Errorf("run %q: no command id", line)
		}
		return r
	}
	r := run("echo out; echo err >&2")
	equal(c, "Stdout", r.Stdout, "out\n")
	equal(c, "Stderr", r.Stderr, "err\n")
	equal(c, "ExitCode", r.ExitCode, 0)
	equal(c, "ExitCode of false", run("false").ExitCode, 1)
	run("X=kept; export Y=exported; cd /")
	equal(c, "a variable of an earlier command", run(`echo "$X $Y"`).Stdout, "kept exported\n")
	equal(c, "the directory of an earlier command", run("pwd").Stdout, "/\n")
	equal(c, "cat sees the end of file", run("cat").Stdout, "")
	equal(c, "two lines", run("echo one\necho two").Stdout, "one\ntwo\n")

	other, err := p.CreateSession(c.ctx, "other")
	c.try("create", err)
	ro, err := other.Run(c.ctx, `echo "[$X]"`)
	c.try("run", err)
	equal(c, "a variable of another session", ro.Stdout, "[]\n")
	ids, err := p.Sessions(c.ctx)
	c.try("list", err)
	for _, id := range []string{"main", "other"} {
		if !slices.Contains(ids, id) {
			c.Errorf("Sessions() = %q, lacks %s", ids, id)
		}
	}
	cmds, err := s.Commands(c.ctx)
	c.try("commands", err)
	equal(c, "number of commands", len(cmds), 7)
	if len(cmds) > 1 {
		equal(c, "the oldest command", cmds[0].Command, "echo out; echo err >&2")
		if cmds[1].ExitCode == nil || *cmds[1].ExitCode != 1 {
			c.Errorf("ExitCode of false in Commands = %v", cmds[1].ExitCode)
		}
		cmd, err := s.Command(c.ctx, cmds[0].ID)
		c.try("command", err)
		stdout, stderr, err := cmd.Logs(c.ctx)
		c.try("logs", err)
		equal(c, "logs of an earlier command", stdout+"/"+stderr, "out\n/err\n")
		code, err := cmd.Wait(c.ctx)
		c.try("wait for what has ended", err)
		equal(c, "exit code", code, 0)
	}
	_, err = s.Command(c.ctx, "none")
	c.wantKind("a command that does not exist", err, daytona.KindNotFound)
	again, err := p.Session(c.ctx, "main")
	c.try("find the session", err)
	ra, err := again.Run(c.ctx, `echo "$X"`)
	c.try("run", err)
	equal(c, "the state of a session that was found", ra.Stdout, "kept\n")
	c.try("delete", s.Delete(c.ctx))
	c.wantKind("delete again", s.Delete(c.ctx), daytona.KindNotFound)
	_, err = s.Run(c.ctx, "echo")
	c.wantKind("run in a deleted session", err, daytona.KindNotFound)
	s, err = p.CreateSession(c.ctx, "main")
	c.try("create with the id of a deleted session", err)
	equal(c, "a variable of the deleted session", run(`echo "[$X]"`).Stdout, "[]\n")
}

func checkSessionShell(c *env) {
	p := c.create().Process()
	s, err := p.CreateSession(c.ctx, "s")
	c.try("create", err)
	for _, x := range []struct{ line, want string }{
		{"f() { echo \"f $1\"; }", ""},
		{"f x", "f x\n"},
		{"cat <<EOF\nhere $((40+2))\nEOF", "here 42\n"},
		{"cat <<'EOF'\nit's $raw \"text\"\nEOF", "it's $raw \"text\"\n"},
		{"for i in 1 2; do\n  echo $i\ndone", "1\n2\n"},
		{"echo \"unusual: ' \\\" \\\\ \\$ `echo tick`\"", "unusual: ' \" \\ $ tick\n"},
		{"printf 'no newline'", "no newline"},
		{"(exit 3)", ""},
		{"echo $?", ""},
	} {
		var r daytona.SessionResult
		c.try(fmt.Sprintf("run %q", x.line), c.within(15*time.Second, func() (err error) { r, err = s.Run(c.ctx, x.line); return err }))
		if x.line == "echo $?" {
			continue // whether $? lasts is the shell's affair; that it returns is not
		}
		equal(c, fmt.Sprintf("Stdout of %q", x.line), r.Stdout, x.want)
	}
	// A syntax error must not hang the session.
	var r daytona.SessionResult
	c.try("run a syntax error", c.within(15*time.Second, func() (err error) { r, err = s.Run(c.ctx, "if then fi ("); return err }))
	if r.ExitCode == 0 {
		c.Error("a syntax error ended with code 0")
	}
	ok, err := s.Run(c.ctx, "echo fine")
	if err != nil && daytona.KindOf(err) != daytona.KindGone {
		c.Errorf("run after a syntax error: %v", err)
	} else if err == nil {
		equal(c, "Stdout after a syntax error", ok.Stdout, "fine\n")
	}
	// exit ends the command, with its code, and does not hang anything.
	e, err := p.CreateSession(c.ctx, "exits")
	c.try("create", err)
	c.try("run exit", c.within(15*time.Second, func() (err error) { r, err = e.Run(c.ctx, "exit 5"); return err }))
	equal(c, "ExitCode of exit 5", r.ExitCode, 5)
	// A background job does not hold up the command that started it.
	c.try("a background job", c.within(15*time.Second, func() (err error) { r, err = s.Run(c.ctx, "sleep 3210 >/dev/null 2>&1 & echo started"); return err }))
	equal(c, "Stdout", r.Stdout, "started\n")
}

// LockedBuffer may be written to and read at once.
type LockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *LockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *LockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// Tail is the last 3000 bytes, for the end of a log.
func (l *LockedBuffer) Tail() string {
	s := l.String()
	return s[max(0, len(s)-3000):]
}

func (c *env) waitForText(l *LockedBuffer, text string) bool {
	c.Helper()
	return c.eventually(10*time.Second, fmt.Sprintf("%q appears", text), func() error {
		if s := l.String(); !strings.Contains(s, text) {
			return fmt.Errorf("so far %q", clip(s))
		}
		return nil
	})
}

func checkSessionAsync(c *env) {
	p := c.create().Process()
	s, err := p.CreateSession(c.ctx, "async")
	c.try("create", err)
	cmd, err := s.Start(c.ctx, `echo up; while read x; do echo "got $x"; echo "err $x" >&2; [ "$x" = end ] && break; done; exit_with() { return 6; }; exit_with`, nil)
	c.try("start", err)
	info, err := cmd.Info(c.ctx)
	c.try("info", err)
	if info.ExitCode != nil || info.ID != cmd.ID() {
		c.Errorf("Info of a running command = %+v", info)
	}
	var stdout, stderr LockedBuffer
	followed := make(chan error, 1)
	go func() { followed <- cmd.Follow(c.ctx, &stdout, &stderr) }()
	c.waitForText(&stdout, "up\n")
	c.try("send", cmd.SendInput(c.ctx, "first"))
	c.waitForText(&stdout, "got first\n")
	c.waitForText(&stderr, "err first\n")
	c.try("send a line with its newline", cmd.SendInput(c.ctx, "second\n"))
	c.waitForText(&stdout, "got second\n")
	out, _, err := cmd.Logs(c.ctx)
	c.try("logs while it runs", err)
	if !strings.Contains(out, "got second\n") {
		c.Errorf("Logs = %q while it runs", out)
	}
	c.try("send", cmd.SendInput(c.ctx, "end"))
	var code int
	c.try("wait", c.within(10*time.Second, func() (err error) { code, err = cmd.Wait(c.ctx); return err }))
	equal(c, "exit code", code, 6)
	c.try("Follow returns when the command ends", c.within(10*time.Second, func() error { return <-followed }))
	if strings.Contains(stdout.String(), "got \n") {
		c.Errorf("an input with a newline was sent as two: %q", stdout.String())
	}
	c.wantKind("input after the end", cmd.SendInput(c.ctx, "late"), daytona.KindGone)
	var late LockedBuffer
	c.try("follow after the end", c.within(10*time.Second, func() error { return cmd.Follow(c.ctx, &late, nil) }))
	equal(c, "Follow gives the log from the beginning", late.String(), stdout.String())
	info, err = cmd.Info(c.ctx)
	c.try("info", err)
	if info.ExitCode == nil || *info.ExitCode != 6 {
		c.Errorf("Info after the end = %+v", info)
	}
	// Commands queue: a Run waits for what was started before.
	_, err = s.Start(c.ctx, "sleep 0.3; echo first > order", nil)
	c.try("start", err)
	r, err := s.Run(c.ctx, "cat order; echo second")
	c.try("run", err)
	equal(c, "commands run one after another", r.Stdout, "first\nsecond\n")
}

func checkSessionDelete(c *env) {
	sb := c.create()
	s, err := sb.Process().CreateSession(c.ctx, "doomed")
	c.try("create", err)
	_, err = s.Start(c.ctx, family("6160"), nil)
	c.try("start", err)
	c.eventually(5*time.Second, "the tree is up", func() error {
		if l := c.processesLike(sb, "sleep 6160"); len(l) < 4 {
			return fmt.Errorf("only %q", l)
		}
		return nil
	})
	begin := time.Now()
	c.try("delete", s.Delete(c.ctx))
	if d := time.Since(begin); d > c.slow(10*time.Second) {
		c.Errorf("Delete took %v, want at most the five seconds of grace and a little", d)
	}
	c.wantGone(sb, "6160", "after the session was deleted")
	ids, err := sb.Process().Sessions(c.ctx)
	c.try("list", err)
	if slices.Contains(ids, "doomed") {
		c.Error("a deleted session is listed")
	}
}

func checkPTY(c *env) {
	sb := c.create()
	p := sb.Process()
	pty, err := p.CreatePTY(c.ctx, daytona.PTYOptions{ID: "term", Size: daytona.TTYSize{Cols: 101, Rows: 31}, Dir: "/", Env: map[string]string{"EXTRA": "e x"}})
	c.try("create", err)
	equal(c, "ID", pty.ID(), "term")
	_, err = p.CreatePTY(c.ctx, daytona.PTYOptions{ID: "term"})
	c.wantKind("create with a taken id", err, daytona.KindConflict)
	_, err = p.CreatePTY(c.ctx, daytona.PTYOptions{Size: daytona.TTYSize{Cols: 1001, Rows: 24}})
	c.wantKind("create with 1001 columns", err, daytona.KindInvalid)
	_, err = p.ConnectPTY(c.ctx, "none")
	c.wantKind("connect to what does not exist", err, daytona.KindNotFound)
	var screen LockedBuffer
	read := make(chan error, 1)
	go func() { _, err := io.Copy(&screen, pty); read <- err }()
	typ := func(s string) {
		c.Helper()
		_, err := io.WriteString(pty, s)
		c.try("type", err)
	}
	// What is typed is echoed, so that the answers must not look like it.
	typ("echo \"dir:$PWD size:$(stty size) $EXTRA:$TERM\"\n")
	c.waitForText(&screen, "dir:/ size:31 101 e x:xterm-256color")
	c.try("resize", pty.Resize(c.ctx, daytona.TTYSize{Cols: 77, Rows: 22}))
	typ("echo \"now:$(stty size)\"\n")
	c.waitForText(&screen, "now:22 77")
	c.wantKind("resize beyond bounds", pty.Resize(c.ctx, daytona.TTYSize{Cols: 5000, Rows: 1}), daytona.KindInvalid)

	second, err := p.ConnectPTY(c.ctx, "term")
	c.try("connect a second time", err)
	var screen2 LockedBuffer
	go io.Copy(&screen2, second)
	typ("echo \"both:$((6*7))\"\n")
	c.waitForText(&screen, "both:42")
	c.waitForText(&screen2, "both:42")
	c.try("close the second connection", second.Close())
	typ("echo \"still:$((6*8))\"\n")
	c.waitForText(&screen, "still:48")

	list, err := p.PTYs(c.ctx)
	c.try("list", err)
	i := slices.IndexFunc(list, func(i daytona.PTYInfo) bool { return i.ID == "term" })
	if i < 0 {
		c.Fatalf("PTYs() = %+v, lacks term", list)
	}
	equal(c, "Active", list[i].Active, true)
	equal(c, "Size", list[i].Size, daytona.TTYSize{Cols: 77, Rows: 22})
	equal(c, "Dir", list[i].Dir, "/")

	// Interrupting the foreground job with ^C.
	typ("sleep 7531\n")
	c.awaitProcess(5*time.Second, "the job runs", sb, "sleep 7531")
	typ("\x03")
	c.eventually(5*time.Second, "^C ends the job", func() error {
		if l := c.processesLike(sb, "sleep 7531"); len(l) > 0 {
			return fmt.Errorf("still there: %q", l)
		}
		return nil
	})
	typ("exit 4\n")
	var st daytona.ExitStatus
	c.try("wait", c.within(10*time.Second, func() (err error) { st, err = pty.Wait(c.ctx); return err }))
	equal(c, "exit code", st.ExitCode, 4)
	c.try("Read ends with io.EOF", c.within(10*time.Second, func() error { return <-read }))

	pty, err = p.CreatePTY(c.ctx, daytona.PTYOptions{})
	c.try("create with a generated id", err)
	if pty.ID() == "" {
		c.Error("a PTY without id")
	}
	go io.Copy(io.Discard, pty)
	_, err = io.WriteString(pty, "(sleep 7532 &) ; sleep 7533\n")
	c.try("type", err)
	c.eventually(5*time.Second, "the jobs run", func() error {
		if len(c.processesLike(sb, "sleep 753")) < 2 {
			return errors.New("not in /proc")
		}
		return nil
	})
	c.try("kill", pty.Kill(c.ctx))
	c.wantGone(sb, "753", "after Kill")
	_ = pty.Close()
}
