package cli_test

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestSSH uses OpenSSH's programs as people do.
func TestSSH(t *testing.T) {
	for _, name := range []string{"ssh", "scp", "sftp"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("%v: install openssh-client", err)
		}
	}
	s := localShell(t)
	temporary := t.TempDir()
	s.env = append(s.env, "TMPDIR="+temporary)
	s.ok("sandbox", "create", "--name", "dev")
	for name, test := range map[string]struct {
		args   []string
		stdin  string
		stdout string
		code   int
	}{
		"command":      {args: []string{"ssh", "dev", "echo", "a", "-b;", "exit 7"}, stdout: "a -b\n", code: 7},
		"dashes":       {args: []string{"ssh", "dev", "--", "echo --help"}, stdout: "--help\n"},
		"like rsync":   {args: []string{"ssh", "-l", "somebody", "dev", "cat"}, stdin: "in", stdout: "in"},
		"like git":     {args: []string{"ssh", "-oSendEnv=X", "-T", "me@dev.daytona", "echo -x"}, stdout: "-x\n"},
		"options last": {args: []string{"ssh", "dev", "-T", "-x", "echo", "-v"}, stdout: "-v\n"},
		"script":       {args: []string{"ssh", "-T", "dev"}, stdin: "echo a script; exit 3\n", stdout: "a script\n", code: 3},
	} {
		t.Run(name, func(t *testing.T) {
			r := s.pipe(test.stdin, test.args...)
			if r.code != test.code || r.stdout != test.stdout || r.stderr != "" {
				t.Error(r)
			}
		})
	}
	if r := s.run("ssh", "-V"); r.code != 0 || !strings.Contains(r.stderr, "OpenSSH") {
		t.Error(r)
	}
	if r := s.run("ssh", "nobody", "true"); r.code != 125 || !strings.Contains(r.stderr, "sandbox list") {
		t.Error(r)
	}
	if r := s.run("ssh"); r.code != 125 || !strings.Contains(r.stderr, "NAME") {
		t.Error(r)
	}
	if r := s.run("ssh", "--no-such", "dev"); r.code != 125 || !strings.Contains(r.stderr, "no-such") {
		t.Error(r)
	}
	if out := s.ok("ssh", "--help"); !strings.Contains(out, "--forward-agent") {
		t.Error(out)
	}
	if r := s.run("ssh", "--config", "dev; touch x"); r.code != 125 {
		t.Error(r)
	}

	// Other programs, by a configuration.
	s.write("config", s.ok("ssh", "--config", "dev"), 0o600)
	s.write("file", "content", 0o644)
	run := func(name string, args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), name, args...)
		cmd.Dir, cmd.Env = s.dir, s.env
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("%v: %v\n%s", cmd.Args, err, out)
		}
		return string(out)
	}
	if out := run("ssh", "-F", "config", "dev.daytona", "echo plain"); out != "plain\n" {
		t.Errorf("%q", out)
	}
	run("scp", "-q", "-F", "config", "file", "dev.daytona:copy")
	if got := s.ok("sandbox", "exec", "dev", "--", "cat", "copy"); got != "content" {
		t.Errorf("%q", got)
	}
	s.write("batch", "put file by-sftp\nget by-sftp back\n", 0o644)
	run("sftp", "-q", "-F", "config", "-b", "batch", "dev.daytona")
	if out := run("cat", "back"); out != "content" {
		t.Errorf("%q", out)
	}
	if _, err := exec.LookPath("rsync"); err == nil {
		for _, way := range [][2]string{{"'" + s.program + "' ssh", "dev:synced"}, {"ssh -F config", "dev.daytona:synced-too"}} {
			run("rsync", "-a", "-e", way[0], "file", way[1])
			_, name, _ := strings.Cut(way[1], ":")
			if got := s.ok("sandbox", "exec", "dev", "--", "cat", name); got != "content" {
				t.Errorf("%v: %q", way, got)
			}
		}
	}
	// Nothing is asked, so nothing is learned.
	for _, e := range s.env {
		if home, ok := strings.CutPrefix(e, "HOME="); ok {
			if names, _ := filepath.Glob(home + "/.ssh/*"); len(names) > 0 {
				t.Errorf("left: %q", names)
			}
		}
	}
	if left, _ := filepath.Glob(filepath.Join(temporary, "*")); len(left) > 0 {
		t.Errorf("left: %q", left)
	}

	// A fork proves to be itself, also after a restart.
	s.ok("sandbox", "fork", "dev", "child")
	keys := map[string]bool{}
	key := func(name string) {
		f := strings.Fields(s.ok("ssh", "--known-hosts", name))
		if len(f) != 3 || f[0] != name+".daytona" || keys[f[2]] {
			t.Errorf("%s: %q", name, f)
			return
		}
		keys[f[2]] = true
	}
	key("dev")
	key("child")
	s.ok("sandbox", "stop", "child")
	if r := s.run("ssh", "child", "true"); r.code != 125 || !strings.Contains(r.stderr, "sandbox start") {
		t.Error(r)
	}
	s.ok("sandbox", "start", "child")
	key("child")
	if got := s.ok("ssh", "child", "cat copy"); got != "content" {
		t.Errorf("%q", got)
	}
	s.ok("sandbox", "delete", "dev", "child")
}
