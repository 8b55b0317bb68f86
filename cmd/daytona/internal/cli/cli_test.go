package cli_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/cmd/daytona/internal/cli"
)

// TestMain makes this test's executable the command line itself, with the
// backend "host", when a test starts it as that.
func TestMain(m *testing.M) {
	if os.Getenv("TEST_AS_DAYTONA") == "" {
		code := m.Run()
		if builtDir != "" {
			os.RemoveAll(builtDir)
		}
		os.Exit(code)
	}
	daytona.Register("host", openHost)
	os.Exit(cli.Main(cli.Config{
		Args: os.Args[1:], Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		Version: "v1.2.3-test",
		Diagnose: func(context.Context, string) ([]cli.Finding, error) {
			return []cli.Finding{
				{Name: "namespaces", Status: "ok", Detail: "user namespaces are allowed"},
				{Name: "cgroups", Status: os.Getenv("TEST_CGROUPS"), Detail: "no controller is delegated", Remedy: "systemd-run --user --scope -p Delegate=yes daytona …"},
			}, nil
		},
	}))
}

// patience bounds every command of a test; nothing should take that long.
const patience = time.Minute

// shell is where a test runs daytona.
type shell struct {
	t       *testing.T
	program string
	dir     string // current directory
	env     []string
	memory  bool // limits of memory can be enforced
}

// hostShell runs daytona over the backend "host".
func hostShell(t *testing.T) *shell {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return &shell{t: t, program: self, memory: true, dir: t.TempDir(), env: []string{
		"TEST_AS_DAYTONA=1", "TEST_CGROUPS=ok", "DAYTONA_BACKEND=host://" + t.TempDir(),
		"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "TERM=xterm-test",
	}}
}

// query adds a parameter to the URL of the backend.
func (s *shell) query(q string) {
	for i, e := range s.env {
		if strings.HasPrefix(e, "DAYTONA_BACKEND=") {
			s.env[i] = e + "?" + q
		}
	}
}

type result struct {
	stdout, stderr string
	code           int
}

func (r result) String() string {
	return fmt.Sprintf("exit code %d\n--- stdout\n%s\n--- stderr\n%s", r.code, r.stdout, r.stderr)
}

func (s *shell) command(args ...string) *exec.Cmd {
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	s.t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, s.program, args...)
	cmd.Dir, cmd.Env = s.dir, s.env
	return cmd
}

// run runs daytona with nothing on standard input.
func (s *shell) run(args ...string) result { return s.pipe("", args...) }

func (s *shell) pipe(stdin string, args ...string) result {
	s.t.Helper()
	cmd := s.command(args...)
	cmd.Stdin = strings.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	return result{code: exitCode(s.t, cmd.Run()), stdout: out.String(), stderr: errs.String()}
}

func exitCode(t *testing.T, err error) int {
	t.Helper()
	if err == nil {
		return 0
	}
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok {
		t.Fatal(err)
	}
	if ws := exit.Sys().(syscall.WaitStatus); ws.Signaled() {
		t.Fatalf("daytona was ended by %v", ws.Signal())
	}
	return exit.ExitCode()
}

// ok runs daytona, demands that all goes well, and returns standard output.
func (s *shell) ok(args ...string) string {
	s.t.Helper()
	r := s.run(args...)
	if r.code != 0 {
		s.t.Fatalf("daytona %s: %s", strings.Join(args, " "), r)
	}
	return r.stdout
}

func (s *shell) write(name, content string, mode os.FileMode) {
	s.t.Helper()
	path := filepath.Join(s.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		s.t.Fatal(err)
	}
}

func (s *shell) read(name string) string {
	s.t.Helper()
	data, err := os.ReadFile(filepath.Join(s.dir, name))
	if err != nil {
		s.t.Fatal(err)
	}
	return string(data)
}

// nothingLeft demands that there is no sandbox.
func (s *shell) nothingLeft() {
	s.t.Helper()
	if got := s.ok("sandbox", "list", "-q"); got != "" {
		s.t.Errorf("left behind: %s", got)
	}
}

// everywhere runs a test over the backend "host" and, where that is possible,
// over real sandboxes.
func everywhere(t *testing.T, test func(t *testing.T, s *shell)) {
	t.Run("host", func(t *testing.T) { test(t, hostShell(t)) })
	t.Run("local", func(t *testing.T) { test(t, localShell(t)) })
}

func TestRun(t *testing.T) {
	everywhere(t, func(t *testing.T, s *shell) {
		s.write("script.py", "import sys\nprint('script', sys.argv[1:])\n", 0o644)
		s.write("sub/tool.sh", "#!/bin/sh\necho tool $1\n", 0o755)
		s.write("sub/plain.sh", "echo plain\n", 0o644)
		s.write("tree/a/b.txt", "deep\n", 0o644)
		s.write("vars", "# comment\n\nFROM_FILE=1\nBOTH=file\n  PADDED=a b \n", 0o644)
		if err := os.Symlink("/etc/hostname", filepath.Join(s.dir, "link")); err != nil {
			t.Fatal(err)
		}
		s.env = append(s.env, "PASSED_ON=from shell", "SECRET=of the host")
		for _, c := range []struct {
			name   string
			stdin  string
			args   []string
			stdout string
			stderr string // substrings, one a line
			code   int
		}{
			{name: "output", args: []string{"run", "--", "echo", "hello"}, stdout: "hello\n"},
			{name: "no dashes needed", args: []string{"run", "echo", "-n", "hello"}, stdout: "hello"},
			{name: "errors apart", args: []string{"run", "--", "sh", "-c", "echo out; echo err >&2"}, stdout: "out\n", stderr: "err"},
			{name: "exit code", args: []string{"run", "--", "sh", "-c", "exit 7"}, code: 7},
			{name: "killed", args: []string{"run", "--", "sh", "-c", "kill -9 $$"}, code: 137},
			{name: "input", stdin: "from a pipe", args: []string{"run", "--", "cat"}, stdout: "from a pipe"},
			{name: "no input", stdin: "from a pipe", args: []string{"run", "-i=false", "--", "cat"}},
			{name: "not found", args: []string{"run", "--", "no-such-program"}, code: 127, stderr: "daytona: \nno-such-program"},
			{name: "not executable", args: []string{"run", "--", "./sub/plain.sh"}, code: 126, stderr: "daytona: \nplain.sh"},
			{name: "time limit", args: []string{"run", "--timeout", "1s", "--", "sh", "-c", "echo before; sleep 60"}, stdout: "before\n", stderr: "time limit of 1s", code: 124},
			{name: "variable", args: []string{"run", "-e", "A=1 2", "-e", "PASSED_ON", "--", "sh", "-c", `echo "$A,$PASSED_ON,$SECRET"`}, stdout: "1 2,from shell,\n"},
			{name: "variables of a file", args: []string{"run", "--env-file", "vars", "-e", "BOTH=flag", "--", "sh", "-c", `echo "$FROM_FILE,$BOTH,[$PADDED]"`}, stdout: "1,flag,[a b ]\n"},
			{name: "own script", args: []string{"run", "--", "python3", "script.py", "-x"}, stdout: "script ['-x']\n"},
			{name: "own script elsewhere", args: []string{"run", "--", "sh", "sub/plain.sh"}, stdout: "plain\n"},
			{name: "own program", args: []string{"run", "--", "./sub/tool.sh", "1"}, stdout: "tool 1\n"},
			{name: "told so", args: []string{"run", "--verbose", "--", "sh", "sub/plain.sh"}, stdout: "plain\n", stderr: "copying sub/plain.sh into the sandbox"},
			{name: "not uploaded", args: []string{"run", "--no-auto-upload", "--", "cat", "script.py"}, code: 1, stderr: "script.py"},
			{name: "link out of the directory", args: []string{"run", "--", "cat", "link"}, code: 1, stderr: "link"},
			{name: "upload", args: []string{"run", "-U", "tree", "--", "sh", "-c", "cat tree/a/b.txt; ls script.py 2>/dev/null"}, stdout: "deep\n", code: 2},
			{name: "upload to", args: []string{"run", "-U", "tree:other", "-U", "script.py:x/", "--", "cat", "other/a/b.txt", "x/script.py"}, stdout: "deep\nimport sys\nprint('script', sys.argv[1:])\n"},
			{name: "upload all", args: []string{"run", "-U", ".", "--", "sh", "-c", "cat tree/a/b.txt && sub/tool.sh 2"}, stdout: "deep\ntool 2\n"},
			{name: "terminal without one", args: []string{"run", "-t", "--", "sh", "-c", "test -t 1 && echo $TERM"}, stdout: "xterm-test\r\n"},
			{name: "a session ends by itself", args: []string{"run", "--", "sh", "-c", "sleep 0.1; echo end"}, stdout: "end\n"},
		} {
			t.Run(c.name, func(t *testing.T) {
				r := (&shell{t: t, program: s.program, dir: s.dir, env: s.env}).pipe(c.stdin, c.args...)
				if r.code != c.code || r.stdout != c.stdout {
					t.Errorf("want exit code %d and %q, got %s", c.code, c.stdout, r)
				}
				for part := range strings.SplitSeq(c.stderr, "\n") {
					if !strings.Contains(r.stderr, part) {
						t.Errorf("standard error lacks %q: %s", part, r)
					}
				}
				if c.stderr == "" && r.stderr != "" {
					t.Errorf("unexpected on standard error: %s", r)
				}
			})
		}
		s.nothingLeft()
	})
}

// TestRunStreams: nothing waits for an input that stays open, large output
// goes through, and nobody reading ends the run.
func TestRunStreams(t *testing.T) {
	everywhere(t, func(t *testing.T, s *shell) {
		t.Run("input stays open", func(t *testing.T) {
			cmd := s.command("run", "--", "head", "-n", "1")
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			defer in.Close()
			if _, err := io.WriteString(in, "one\n"); err != nil {
				t.Fatal(err)
			}
			out, err := cmd.Output()
			if err != nil || string(out) != "one\n" {
				t.Errorf("got %q, %v", out, err)
			}
		})
		t.Run("large", func(t *testing.T) {
			const size = 64 << 20
			cmd := s.command("run", "--", "head", "-c", fmt.Sprint(size), "/dev/zero")
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			n, err := io.Copy(io.Discard, out)
			if err != nil || n != size {
				t.Errorf("got %d bytes, %v", n, err)
			}
			if err := cmd.Wait(); err != nil {
				t.Error(err)
			}
		})
		t.Run("large input", func(t *testing.T) {
			r := s.pipe(strings.Repeat("0123456789abcdef", 1<<20), "run", "--", "wc", "-c")
			if strings.TrimSpace(r.stdout) != fmt.Sprint(16<<20) {
				t.Error(r)
			}
		})
		t.Run("nobody reads", func(t *testing.T) {
			cmd := s.command("run", "--", "yes")
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			var errs bytes.Buffer
			cmd.Stderr = &errs
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(out, make([]byte, 4096)); err != nil {
				t.Fatal(err)
			}
			out.Close()
			if code := exitCode(t, cmd.Wait()); code != 141 || errs.Len() > 0 {
				t.Errorf("exit code %d, %q; want 141 and nothing", code, errs.String())
			}
		})
		s.nothingLeft()
	})
}

// TestClosedPipe: nobody reading a list is no error to talk about.
func TestClosedPipe(t *testing.T) {
	s := hostShell(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	defer w.Close()
	cmd := s.command("version")
	var errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = w, &errs
	if code := exitCode(t, cmd.Run()); code != 141 || errs.Len() > 0 {
		t.Errorf("exit code %d, %q; want 141 and nothing", code, errs.String())
	}
}

// TestInterrupt: without a terminal the first SIGINT is the program's, the
// second ends it with its sandbox, and so does a SIGTERM.
func TestInterrupt(t *testing.T) {
	everywhere(t, func(t *testing.T, s *shell) {
		const stubborn = `trap 'echo caught' INT; echo ready; while :; do sleep 0.1; done`
		const obedient = `trap 'echo bye; exit 3' INT; echo ready; while :; do sleep 0.1; done`
		for _, c := range []struct {
			name    string
			script  string
			signals []os.Signal
			stdout  string
			code    int
		}{
			{"the program's own", obedient, []os.Signal{syscall.SIGINT}, "ready\nbye\n", 3},
			{"default", `echo ready; exec sleep 60`, []os.Signal{syscall.SIGINT}, "ready\n", 130},
			{"twice", stubborn, []os.Signal{syscall.SIGINT, syscall.SIGINT}, "ready\ncaught\n", 130},
			{"terminate", stubborn, []os.Signal{syscall.SIGTERM}, "ready\n", 143},
			{"hang up", stubborn, []os.Signal{syscall.SIGHUP}, "ready\n", 129},
		} {
			t.Run(c.name, func(t *testing.T) {
				cmd := s.command("run", "--", "sh", "-c", c.script)
				out, err := cmd.StdoutPipe()
				if err != nil {
					t.Fatal(err)
				}
				var errs bytes.Buffer
				cmd.Stderr = &errs
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				var got []byte
				read := func(line string) {
					b := make([]byte, len(line))
					if _, err := io.ReadFull(out, b); err != nil {
						t.Fatalf("%v after %q, %s", err, got, errs.String())
					}
					got = append(got, b...)
				}
				read("ready\n")
				for i, sig := range c.signals {
					if i > 0 {
						read("caught\n")
					}
					if err := cmd.Process.Signal(sig); err != nil {
						t.Fatal(err)
					}
				}
				rest, err := io.ReadAll(out)
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, rest...)
				if code := exitCode(t, cmd.Wait()); code != c.code || string(got) != c.stdout {
					t.Errorf("exit code %d, output %q, want %d, %q; standard error: %s", code, got, c.code, c.stdout, errs.String())
				}
			})
		}
		s.nothingLeft()
	})
}

func TestKeptSandbox(t *testing.T) {
	everywhere(t, func(t *testing.T, s *shell) {
		r := s.run("run", "--rm=false", "--name", "kept", "--", "sh", "-c", "echo state > file; exit 4")
		if r.code != 4 || !strings.Contains(r.stderr, "sandbox kept will be kept") {
			t.Fatal(r)
		}
		if got := s.ok("sandbox", "exec", "kept", "--", "cat", "file"); got != "state\n" {
			t.Errorf("got %q", got)
		}
		if got := s.ok("sandbox", "delete", "kept"); got != "kept\n" {
			t.Errorf("got %q", got)
		}
		s.nothingLeft()
	})
}

func TestSandboxLife(t *testing.T) {
	everywhere(t, func(t *testing.T, s *shell) {
		create := []string{"sandbox", "create", "--name", "dev", "--label", "task=42", "-e", "A=1"}
		limit := append(create, "--memory", "512m")
		if !s.memory {
			if r := s.run(limit...); r.code != 125 || !strings.Contains(r.stderr, "--memory = ") {
				t.Errorf("a limit that cannot be enforced: %s", r)
			}
			limit = create
		}
		if got := s.ok(limit...); got != "dev\n" {
			t.Fatalf("got %q", got)
		}
		if r := s.run("sandbox", "create", "--name", "dev"); r.code != 125 || !strings.Contains(r.stderr, "daytona sandbox delete dev") {
			t.Error(r)
		}

		var list []daytona.Info
		if err := json.Unmarshal([]byte(s.ok("sandbox", "list", "-o", "json", "--label", "task=42")), &list); err != nil {
			t.Fatal(err)
		}
		if len(list) != 1 || list[0].Name != "dev" || list[0].State != daytona.StateStarted || s.memory && list[0].Resources.Memory != 0.5 {
			t.Errorf("list: %+v", list)
		}
		if got := s.ok("sandbox", "list", "-o", "json", "--state", "stopped"); got != "[]\n" {
			t.Errorf("got %q", got)
		}
		var info map[string]any
		if err := yaml.Unmarshal([]byte(s.ok("sb", "info", "dev", "-o", "yaml")), &info); err != nil {
			t.Fatal(err)
		}
		if labels, _ := info["labels"].(map[string]any); info["name"] != "dev" || labels["task"] != "42" {
			t.Errorf("info: %v", info)
		}
		table := s.ok("sandbox", "list")
		if lines := strings.Split(table, "\n"); len(lines) != 3 || !strings.HasPrefix(lines[0], "NAME ") ||
			!strings.HasPrefix(lines[1], "dev ") || s.memory != strings.Contains(lines[1], "512.0 MiB") || !strings.Contains(lines[1], "task=42") {
			t.Errorf("list:\n%s", table)
		}

		if got := s.ok("sandbox", "exec", "dev", "--", "sh", "-c", "echo $A"); got != "1\n" {
			t.Errorf("got %q", got)
		}
		if r := s.run("sandbox", "exec", "-e", "A=2", "-w", "/", "dev", "sh", "-c", "echo $A; pwd; exit 9"); r.code != 9 || r.stdout != "2\n/\n" {
			t.Error(r)
		}
		if r := s.pipe("echo from stdin\n", "sandbox", "exec", "dev", "--", "sh", "-s"); r.stdout != "from stdin\n" {
			t.Error(r)
		}
		if r := s.run("sandbox", "exec", "nowhere", "--", "true"); r.code != 125 || !strings.Contains(r.stderr, "daytona sandbox list") {
			t.Error(r)
		}
		if got := s.ok("__complete", "sandbox", "exec", "d"); !strings.HasPrefix(got, "dev\tstarted, ") {
			t.Errorf("completion: %q", got)
		}
		if got := s.ok("__complete", "sandbox", "start", ""); strings.Contains(got, "dev") {
			t.Errorf("completion: %q", got)
		}

		if got := s.ok("sandbox", "stop", "dev"); got != "dev\n" {
			t.Errorf("got %q", got)
		}
		if r := s.run("sandbox", "exec", "dev", "--", "true"); r.code != 125 || !strings.Contains(r.stderr, "daytona sandbox start dev") {
			t.Error(r)
		}
		s.ok("sandbox", "start", "dev")
		s.ok("sandbox", "exec", "dev", "--", "true")

		if r := s.run("sandbox", "delete", "--all"); r.code != 125 || !strings.Contains(r.stderr, "--force") {
			t.Error(r)
		}
		if r := s.run("sandbox", "delete", "dev", "nowhere"); r.code != 125 || r.stdout != "dev\n" || !strings.Contains(r.stderr, "nowhere") {
			t.Error(r)
		}
		if r := s.run("sandbox", "delete", "--force", "dev"); r.code != 0 {
			t.Error(r)
		}
		s.ok("sandbox", "create", "--label", "x=1")
		s.ok("sandbox", "create", "--label", "x=2")
		if got := s.ok("sandbox", "delete", "--all", "--force", "--label", "x=1"); strings.Count(got, "\n") != 1 {
			t.Errorf("got %q", got)
		}
		s.ok("sandbox", "delete", "--all", "--force")
		s.nothingLeft()
	})
}

func TestCopy(t *testing.T) {
	everywhere(t, func(t *testing.T, s *shell) {
		s.ok("sandbox", "create", "--name", "dev")
		s.write("file", "content\n", 0o644)
		s.write("dir/run.sh", "#!/bin/sh\necho ran\n", 0o755)
		s.write("dir/sub/secret", "s", 0o600)
		if err := os.MkdirAll(filepath.Join(s.dir, "dir/empty"), 0o755); err != nil {
			t.Fatal(err)
		}
		for link, to := range map[string]string{"dir/file-link": "run.sh", "dir/dir-link": "sub", "dir/broken": "nowhere"} {
			if err := os.Symlink(to, filepath.Join(s.dir, link)); err != nil {
				t.Fatal(err)
			}
		}
		inside := func(script string) string {
			t.Helper()
			return s.ok("sandbox", "exec", "dev", "--", "sh", "-c", script)
		}

		s.ok("sandbox", "cp", "file", "dev:renamed")
		s.ok("sandbox", "cp", "file", "dev:")
		if got := inside("cat renamed file"); got != "content\ncontent\n" {
			t.Errorf("got %q", got)
		}
		r := s.run("sandbox", "cp", "dir", "dev:new")
		if r.code != 0 || !strings.Contains(r.stderr, "dir/dir-link was left out") || !strings.Contains(r.stderr, "dir/broken was left out") {
			t.Error(r)
		}
		if got := inside("new/run.sh; new/file-link; ls new; stat -c %a new/sub/secret new/run.sh"); got != "ran\nran\nempty\nfile-link\nrun.sh\nsub\n600\n755\n" {
			t.Errorf("got %q", got)
		}
		s.ok("sandbox", "cp", "dir", "dev:new") // exists: into it
		if got := inside("new/dir/run.sh"); got != "ran\n" {
			t.Errorf("got %q", got)
		}
		s.ok("sandbox", "cp", "dir/.", "dev:fresh/")
		if got := inside("fresh/run.sh"); got != "ran\n" {
			t.Errorf("got %q", got)
		}
		if r := s.pipe("piped", "sandbox", "cp", "-", "dev:p/q"); r.code != 0 {
			t.Error(r)
		}
		if got := s.ok("sandbox", "cp", "dev:p/q", "-"); got != "piped" {
			t.Errorf("got %q", got)
		}

		s.ok("sandbox", "cp", "dev:renamed", "out")
		if got := s.read("out"); got != "content\n" {
			t.Errorf("got %q", got)
		}
		inside("ln -s ../../../../etc new/etc; ln -s run.sh new/again; mkfifo new/pipe; chmod 4755 new/run.sh")
		r = s.run("sandbox", "cp", "dev:new", "down")
		if r.code != 0 || !strings.Contains(r.stderr, "new/etc was left out") || !strings.Contains(r.stderr, "new/pipe was left out") {
			t.Error(r)
		}
		if got := s.read("down/again"); got != "#!/bin/sh\necho ran\n" {
			t.Errorf("got %q", got)
		}
		if info, err := os.Stat(filepath.Join(s.dir, "down/run.sh")); err != nil || info.Mode() != 0o755 {
			t.Errorf("mode %v, %v", info.Mode(), err)
		}
		if info, err := os.Stat(filepath.Join(s.dir, "down/empty")); err != nil || !info.IsDir() {
			t.Errorf("empty directory: %v", err)
		}
		for _, name := range []string{"down/etc", "down/pipe"} {
			if _, err := os.Lstat(filepath.Join(s.dir, name)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s: %v", name, err)
			}
		}
		s.ok("sandbox", "cp", "dev:new/sub", "down") // exists: into it
		if got := s.read("down/sub/secret"); got != "s" {
			t.Errorf("got %q", got)
		}

		for _, args := range [][]string{
			{"file", "other"}, {"dev:a", "dev:b"}, {"nowhere", "dev:x"}, {"dev:nowhere", "x"},
			{"dev:renamed", "no/such/place"}, {"dev:renamed", "no-dir/"}, {"-", "dev:new"},
		} {
			if r := s.run(append([]string{"sandbox", "cp"}, args...)...); r.code != 125 || !strings.HasPrefix(r.stderr, "daytona: ") {
				t.Errorf("cp %v: %s", args, r)
			}
		}
		if leftover, _ := filepath.Glob(filepath.Join(s.dir, "*", ".daytona-*")); len(leftover) > 0 {
			t.Errorf("left behind: %v", leftover)
		}
		s.ok("sandbox", "delete", "dev")
	})
}

// TestCopyFromHostile: whatever a sandbox says its files are, nothing is
// written outside of the destination.
func TestCopyFromHostile(t *testing.T) {
	for evil, message := range map[string]string{
		"dotdot":   `"../escaped": that is not a file name`,
		"absolute": `that is not a file name`,
		"parent":   `that is not a file name`,
		"deep":     "nested more than",
		"link":     "escapes",
		"more":     "more files than it was asked for",
		"fewer":    "sent 1 of 2 files",
		"setuid":   "",
	} {
		t.Run(evil, func(t *testing.T) {
			s := hostShell(t)
			s.ok("sandbox", "create", "--name", "bad")
			outside := t.TempDir()
			for name, to := range map[string]string{"tree/link": outside, "tree/file": filepath.Join(outside, "file")} {
				s.write("tree/keep", "", 0o644)
				if err := os.Symlink(to, filepath.Join(s.dir, name)); err != nil {
					t.Fatal(err)
				}
			}
			s.query("evil=" + evil)
			r := s.run("sandbox", "cp", "bad:tree/.", "tree")
			if message == "" && r.code != 0 || message != "" && (r.code != 125 || !strings.Contains(r.stderr, message)) {
				t.Errorf("want %q, got %s", message, r)
			}
			if left, err := os.ReadDir(outside); err != nil || len(left) > 0 {
				t.Errorf("written outside: %v, %v", left, err)
			}
			for _, name := range []string{filepath.Join(s.dir, "escaped"), filepath.Join(s.dir, "..", "three"), "/tmp/daytona-escaped"} {
				if _, err := os.Lstat(name); err == nil {
					t.Errorf("%s was written", name)
				}
			}
			if evil == "setuid" {
				if info, err := os.Stat(filepath.Join(s.dir, "tree/tool")); err != nil || info.Mode() != 0o755 {
					t.Errorf("mode %v, %v", info.Mode(), err)
				}
			}
		})
	}
}

// TestEscapeSequences: names and labels cannot drive the terminal.
func TestEscapeSequences(t *testing.T) {
	s := hostShell(t)
	s.ok("sandbox", "create", "--name", "dev", "--label", "x=\x1b]0;owned\a\x1b[2J\u202e")
	for _, args := range [][]string{{"sandbox", "list"}, {"sandbox", "info", "dev"}, {"sandbox", "list", "-o", "json"}, {"sandbox", "list", "-o", "yaml"}} {
		if got := s.ok(args...); strings.ContainsAny(got, "\x1b\a") || !strings.Contains(got, "owned") {
			t.Errorf("%v: %q", args, got)
		}
	}
	if r := s.run("sandbox", "info", "no\x1b[2Jsuch"); strings.Contains(r.stderr, "\x1b") || r.code != 125 {
		t.Errorf("%q", r.stderr)
	}
}

// TestRefused: what is wrong with a command line is said with the value, and
// nothing is left behind.
func TestRefused(t *testing.T) {
	s := hostShell(t)
	s.write("big", "", 0o644)
	s.write("empty", "", 0o644)
	s.write("Dockerfile", "FROM debian:12\n", 0o644)
	if err := os.Truncate(filepath.Join(s.dir, "big"), 65<<20); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args   string
		stderr string
	}{
		{"run", "no COMMAND"},
		{"run --memory 1x -- true", `"1x"`},
		{"run --memory 1k -- true", "--memory = "},
		{"run --cpus -1 -- true", "--cpus = "},
		{"run --pids 3 -- true", "--pids = "},
		{"run --net 10.0.0.1/8 -- true", "--net = "},
		{"run --net 10.0.0.0/99 -- true", "not a CIDR"},
		{"run --net , -- true", "must be"},
		{"run --net bad_host!.x -- true", "--net = "},
		{"run -e 1A=x -- true", `--env = "1A"`},
		{"run -e NOT_SET_HERE -- true", `"NOT_SET_HERE" has no value`},
		{"run --env-file nowhere -- true", "nowhere"},
		{"run -v /etc:/etc -- true", "a sandbox never gets"},
		{"run -v ./x:/x -- true", "--upload"},
		{"run -v data -- true", "NAME:/PATH"},
		{"run -v data:relative -- true", "--volume = "},
		{"run -v data:/x:wo -- true", "NAME:/PATH"},
		{"run -w relative -- true", "--workdir = "},
		{"run -u a:b:c -- true", "--user = "},
		{"run --name -x -- true", "--name = "},
		{"run --label novalue -- true", "KEY=VALUE"},
		{"run --timeout -1s -- true", "negative"},
		{"run --image missing -- true", "no such image"},
		{"run -U nowhere -- true", "nowhere"},
		{"run -- cat big", "larger than the 64.0 MiB"},
		{"run -d --rm -- true", "--rm"},
		{"run -d -t -- true", "-t"},
		{"run -d --timeout 1s -- true", "--ttl"},
		{"run -d", "COMMAND"},
		{"run --bogus", "unknown flag: --bogus"},
		{"sandbox bogus", `"bogus" is not a command of daytona sandbox`},
		{"sandbox lisst", `did you mean "list"`},
		{"bogus", `"bogus" is not a command of daytona`},
		{"sanbox", `did you mean "sandbox"`},
		{"sandbox create web", "--name"},
		{"sandbox exec dev", "COMMAND"},
		{"sandbox exec dev --", "COMMAND"},
		{"sandbox info", "NAME"},
		{"sandbox info a b", `"b" is one argument too many`},
		{"sandbox list x", `"x"`},
		{"sandbox list --state dancing", `"dancing"`},
		{"sandbox list -o xml", "table, json or yaml"},
		{"sandbox delete", "NAME"},
		{"sandbox delete --all x", "either"},
		{"sandbox shell x", "not a terminal"},
		{"run -c . -- true", "--dockerfile"},
		{"run -f nowhere -- true", "nowhere"},
		{"run -f empty -- true", "--dockerfile = "},
		{"run -f Dockerfile -c nowhere -- true", "nowhere"},
		{"run -f Dockerfile --image debian:12 -- true", "--dockerfile"},
		{"sandbox create --auto-pause 1s --auto-stop 1s", "--auto-pause = "},
		{"sandbox create --auto-pause 1ms", "--auto-pause = "},
		{"sandbox create --snapshot nowhere", "daytona snapshot list"},
		{"sandbox resize dev", "--memory"},
		{"sandbox resize dev --memory 1k", "--memory = "},
		{"sandbox fork", "NAME"},
		{"sandbox fork dev -n 0", "--count 0"},
		{"sandbox fork dev -n 2 child", "either"},
		{"sandbox pause", "NAME"},
		{"sandbox pause nowhere", "daytona sandbox list"},
		{"sandbox restore nowhere", "daytona sandbox list"},
		{"snapshot create", "NAME"},
		{"snapshot create a b", `"b"`},
		{"snapshot create a", "--sandbox"},
		{"snapshot create a -i x --sandbox y", "one of"},
		{"snapshot create a -i x -e run -- run", "either"},
		{"snapshot create -i x -- a", "NAME"},
		{"snapshot create _ -i x", "--name = "},
		{"snapshot create a --sandbox nowhere", "daytona sandbox list"},
		{"snapshot get nowhere", "daytona snapshot list"},
		{"snapshot activate nowhere", "daytona snapshot list"},
		{"volume create v --kind magic", "--kind = "},
		{"volume create v --kind s3", "--s3-endpoint = "},
		{"volume create v --kind directory --s3-bucket b", "--s3-bucket = "},
		{"volume create v --s3-bucket b --s3-endpoint ftp://x", "--s3-endpoint = "},
		{"volume create v --quota 1m", "--quota = "},
		{"volume get nowhere", "daytona volume list"},
		{"image build -f nowhere", "nowhere"},
		{"image build --secret id=x", "--secret"},
		{"image build --secret id=x,src=nowhere", "nowhere"},
		{"image build --secret id=x,env=NOT_SET_HERE", "NOT_SET_HERE"},
		{"image build --build-arg x", "KEY=VALUE"},
		{"image build --memory 1k", "--memory = "},
		{"image build x", `"x"`},
		{"--backend nowhere:// sandbox list", `"nowhere"`},
	} {
		r := s.run(strings.Fields(c.args)...)
		if r.code != 125 || r.stdout != "" || !strings.HasPrefix(r.stderr, "daytona: ") || !strings.Contains(r.stderr, c.stderr) {
			t.Errorf("daytona %s: want %q, got %s", c.args, c.stderr, r)
		}
	}
	s.nothingLeft()
}

func TestVolumes(t *testing.T) {
	everywhere(t, func(t *testing.T, s *shell) {
		if got := s.ok("volume", "create", "data"); got != "data\n" {
			t.Errorf("got %q", got)
		}
		if r := s.run("volume", "create", "data"); r.code != 125 {
			t.Error(r)
		}
		var list []daytona.Volume
		if err := json.Unmarshal([]byte(s.ok("volume", "list", "-o", "json")), &list); err != nil || len(list) != 1 || list[0].Name != "data" {
			t.Errorf("%v, %v", list, err)
		}
		if got := s.ok("volume", "list"); !strings.Contains(got, "data ") {
			t.Errorf("got %q", got)
		}
		if got := s.ok("__complete", "volume", "delete", ""); !strings.HasPrefix(got, "data\n") {
			t.Errorf("completion: %q", got)
		}
		if got := s.ok("volume", "delete", "data"); got != "data\n" {
			t.Errorf("got %q", got)
		}
		if r := s.run("volume", "delete", "data"); r.code != 125 || !strings.Contains(r.stderr, "daytona volume list") {
			t.Error(r)
		}
	})
}

func TestDoctor(t *testing.T) {
	for status, want := range map[string]struct {
		code int
		text string
	}{
		"ok":      {0, "Sandboxes can be run on this machine.\n"},
		"limited": {0, "with the limits above"},
		"missing": {1, "cannot be run"},
	} {
		s := hostShell(t)
		s.env = append(s.env, "TEST_CGROUPS="+status)
		r := s.run("doctor")
		if r.code != want.code || !strings.Contains(r.stdout, want.text) || !strings.Contains(r.stdout, "→ systemd-run") {
			t.Errorf("%s: %s", status, r)
		}
		var findings []cli.Finding
		r = s.run("doctor", "-o", "json")
		if err := json.Unmarshal([]byte(r.stdout), &findings); err != nil || r.code != want.code || len(findings) != 2 || findings[1].Status != status {
			t.Errorf("%s: %v, %s", status, err, r)
		}
	}
}

func TestVersion(t *testing.T) {
	s := hostShell(t)
	if got := s.ok("version"); !strings.HasPrefix(got, "daytona v1.2.3-test\n") || !strings.Contains(got, "go1.") {
		t.Errorf("got %q", got)
	}
	var v struct{ Version, Go, Platform string }
	if err := json.Unmarshal([]byte(s.ok("version", "-o", "json")), &v); err != nil || v.Version != "v1.2.3-test" || v.Platform == "" {
		t.Errorf("%+v, %v", v, err)
	}
}

func TestCompletion(t *testing.T) {
	s := hostShell(t)
	for _, sh := range []string{"bash", "zsh", "fish", "powershell"} {
		if got := s.ok("completion", sh); !strings.Contains(got, "daytona") {
			t.Errorf("%s: %q", sh, got)
		}
	}
	if got := s.ok("__complete", "sandbox", "list", "--state", "st"); !strings.HasPrefix(got, "started\nstopped\n") {
		t.Errorf("got %q", got)
	}
	if bash, err := exec.LookPath("bash"); err == nil {
		cmd := exec.Command(bash, "-n")
		cmd.Stdin = strings.NewReader(s.ok("completion", "bash"))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("bash does not take it: %v, %s", err, out)
		}
	}
}

// TestHelp: each command explains itself in lines that fit a terminal.
func TestHelp(t *testing.T) {
	s := hostShell(t)
	for _, args := range []string{
		"", "run", "sandbox", "sandbox create", "sandbox list", "sandbox info", "sandbox exec", "sandbox shell", "sandbox cp",
		"sandbox logs", "sandbox stop", "sandbox start", "sandbox pause", "sandbox resume", "sandbox fork", "sandbox resize", "sandbox archive",
		"sandbox restore", "sandbox delete", "snapshot", "snapshot create", "snapshot list", "snapshot get", "snapshot activate",
		"snapshot deactivate", "snapshot delete", "volume", "volume create", "volume list", "volume get", "volume delete",
		"image", "image build", "doctor", "version",
	} {
		out := s.ok(append(strings.Fields(args), "--help")...)
		if !strings.Contains(out, "Usage:\n  daytona") {
			t.Errorf("daytona %s --help: %s", args, out)
		}
		for line := range strings.Lines(out) {
			if len([]rune(line)) > 101 {
				t.Errorf("daytona %s --help: %d columns: %s", args, len([]rune(line)), line)
			}
		}
	}
}
