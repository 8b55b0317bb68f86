package process_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/daytona-go/daytona/toolbox/account"
	"github.com/daytona-go/daytona/toolbox/process"
	"github.com/daytona-go/daytona/toolbox/wire"
)

// agent is a Service behind a Unix socket.
type agent struct {
	t       testing.TB
	service *process.Service
	socket  string
	client  *http.Client
}

// startAgent serves until the end of the test.
func startAgent(t testing.TB, opts process.Options) *agent {
	t.Helper()
	if opts.Environ == nil {
		opts.Environ = func() []string { return []string{"PATH=" + os.Getenv("PATH"), "LANG=C.UTF-8"} }
	}
	if opts.LogDir == "" {
		opts.LogDir = passable(t)
	}
	if opts.WorkDir == "" {
		opts.WorkDir = passable(t)
	}
	a := &agent{t: t, service: process.New(opts)}
	a.serve()
	t.Cleanup(a.service.Close)
	return a
}

// passable makes a directory that every user can pass through.
func passable(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "agent-test-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func (a *agent) serve() {
	a.t.Helper()
	a.socket = filepath.Join(a.t.TempDir(), "agent.sock")
	l, err := net.Listen("unix", a.socket)
	if err != nil {
		a.t.Fatal(err)
	}
	mux := http.NewServeMux()
	a.service.Register(mux)
	srv := &http.Server{Handler: mux}
	go srv.Serve(l)
	a.t.Cleanup(func() { srv.Close() })
	a.client = &http.Client{Transport: &http.Transport{
		MaxIdleConnsPerHost: 256,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", a.socket)
		},
	}}
}

// call sends a request and returns status and body.
func (a *agent) call(method, path string, body any, header ...string) (int, string) {
	a.t.Helper()
	status, b, err := a.try(context.Background(), method, path, body, header...)
	if err != nil {
		a.t.Fatalf("%s %s: %v", method, path, err)
	}
	return status, b
}

func (a *agent) try(ctx context.Context, method, path string, body any, header ...string) (int, string, error) {
	var rd io.Reader
	if s, ok := body.(string); ok {
		rd = strings.NewReader(s)
	} else if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return 0, "", err
		}
		rd = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://agent"+path, rd)
	if err != nil {
		return 0, "", err
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := a.client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// exec runs a command through POST /process/execute.
func (a *agent) exec(req wire.ExecuteRequest) wire.ExecuteResponse {
	a.t.Helper()
	status, body := a.call("POST", "/process/execute", req)
	if status != 200 {
		a.t.Fatalf("execute %q: status %d: %s", req.Command, status, body)
	}
	var resp wire.ExecuteResponse
	if err := json.Unmarshal([]byte(body), &resp); err != nil {
		a.t.Fatalf("execute %q: %v: %s", req.Command, err, body)
	}
	return resp
}

func (a *agent) sh(command string) wire.ExecuteResponse {
	a.t.Helper()
	return a.exec(wire.ExecuteRequest{Command: command})
}

// identities are the options for the ways that an agent runs: as the user
// itself, and as root on behalf of another.
func identities(t *testing.T) map[string]process.Options {
	ids := map[string]process.Options{"self": {Account: account.Current()}}
	if os.Getuid() == 0 {
		nobody, err := account.Lookup("65534:65534")
		if err != nil {
			t.Fatal(err)
		}
		ids["nobody"] = process.Options{Account: nobody}
	}
	return ids
}

// cgroupDir makes a cgroup v2 directory for a test, or skips.
func cgroupDir(t testing.TB) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: makes cgroups")
	}
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		if _, err := os.Stat(filepath.Join(root, "cgroup.procs")); err != nil {
			continue
		}
		dir, err := os.MkdirTemp(root, "daytona-test-")
		if err != nil {
			t.Skipf("needs a writable cgroup v2: %v", err)
		}
		t.Cleanup(func() {
			children, _ := filepath.Glob(dir + "/cmd-*")
			for _, c := range children {
				os.WriteFile(c+"/cgroup.kill", []byte("1"), 0)
				for range 100 {
					if syscall.Rmdir(c) == nil {
						break
					}
					time.Sleep(5 * time.Millisecond)
				}
			}
			if err := syscall.Rmdir(dir); err != nil {
				t.Errorf("cgroup %s is left behind: %v", dir, err)
			}
		})
		return dir
	}
	t.Skip("needs cgroup v2")
	return ""
}

// alive says whether a process exists and is no zombie.
func alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(b[bytes.LastIndexByte(b, ')'):]), " ")
	return !strings.HasPrefix(rest, "Z") && !strings.HasPrefix(rest, "X")
}

// readPIDs waits for a file with n lines of process ids.
func readPIDs(t *testing.T, file string, n int) []int {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		b, _ := os.ReadFile(file)
		var pids []int
		for f := range strings.FieldsSeq(string(b)) {
			pid, err := strconv.Atoi(f)
			if err != nil {
				t.Fatalf("%s: %q", file, b)
			}
			pids = append(pids, pid)
		}
		if len(pids) >= n && strings.HasSuffix(string(b), "\n") {
			return pids
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s has %d of %d process ids: %q", file, len(pids), n, b)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func TestExecute(t *testing.T) {
	for name, opts := range identities(t) {
		t.Run(name, func(t *testing.T) {
			a := startAgent(t, opts)
			for _, c := range []struct {
				command, want string
				code          int
			}{
				{"echo hello", "hello\n", 0},
				{"true", "", 0},
				{"false", "", 1},
				{"exit 42", "", 42},
				{"echo one\necho two\nexit 3", "one\ntwo\n", 3},
				{"echo out; echo err >&2; echo out2", "out\nerr\nout2\n", 0},
				{"cat <<EOF\nin a heredoc $((1+1))\nEOF\necho after", "in a heredoc 2\nafter\n", 0},
				// Commands see the end of file, not the rest of the script.
				{"cat\necho not eaten", "not eaten\n", 0},
				{"cat", "", 0},
				{"kill -9 $$", "", 137},
				{"printf '\\x00\\xff\"\\\\\\n'", "\x00\ufffd\"\\\n", 0},
				{"id -u", fmt.Sprintln(opts.Account.UID), 0},
				{"ls /proc/self/fd", "0\n1\n2\n3\n", 0}, // 3 is ls's own
				{"x=1; (exit 7)", "", 7},
				{"no-such-program", "", 127},
			} {
				got := a.sh(c.command)
				if got.ExitCode != c.code || c.command != "no-such-program" && got.Result != c.want {
					t.Errorf("%q: %d %q, want %d %q", c.command, got.ExitCode, got.Result, c.code, c.want)
				}
			}
			long := "echo begin\n" + strings.Repeat("# a comment of no use\n", 10_000) + "cat\nls /proc/self/fd\nexit 5"
			if got := a.sh(long); got.ExitCode != 5 || got.Result != "begin\n0\n1\n2\n3\n" {
				t.Errorf("script of %d bytes: %d %q", len(long), got.ExitCode, got.Result)
			}
			got := a.exec(wire.ExecuteRequest{Command: "echo $FOO $BAR; pwd; echo $PWD", Cwd: "/usr", Envs: map[string]string{"FOO": "a b", "BAR": "c"}})
			if got.Result != "a b c\n/usr\n/usr\n" {
				t.Errorf("cwd and envs: %q", got.Result)
			}
			if got := a.exec(wire.ExecuteRequest{Command: "pwd", Cwd: "/no/such"}); got.ExitCode != -1 || !strings.Contains(got.Result, `"/no/such"`) {
				t.Errorf("bad cwd: %+v", got)
			}
			// A program without #! is a script.
			plain := filepath.Join(passable(t), "plain")
			if err := os.WriteFile(plain, []byte("echo plain $1\n"), 0o755); err != nil {
				t.Fatal(err)
			}
			if got := a.sh(plain + " x"); got.Result != "plain x\n" {
				t.Errorf("plain script: %+v", got)
			}
		})
	}
}

func TestExecuteRefuses(t *testing.T) {
	a := startAgent(t, process.Options{})
	for _, c := range []struct{ body, message string }{
		{`{"command":""}`, "bad request: command is required"},
		{`{"command":"  "}`, "bad request: command is required"},
		{`{}`, "bad request: command is required"},
		{`{"command":"true","envs":{"1X":"y"}}`, `bad request: invalid environment variable name "1X"`},
		{`{"command":"true","envs":{"A-B":"y"}}`, `bad request: invalid environment variable name "A-B"`},
		{`{"command":"true","envs":{"A=B":"y"}}`, `bad request: invalid environment variable name "A=B"`},
		{`{"command":"true","timeout":-1}`, "bad request: timeout -1"},
		{`{"command":"a\u0000b"}`, "bad request: command must not contain NUL"},
		{`{"command":`, "invalid body request: "},
		{`[]`, "invalid body request: "},
	} {
		status, body := a.call("POST", "/process/execute", c.body)
		var e wire.ErrorResponse
		if err := json.Unmarshal([]byte(body), &e); err != nil || status != 400 || e.StatusCode != 400 ||
			!strings.HasPrefix(e.Message, c.message) || e.Path != "/process/execute" || e.Method != "POST" || e.Source != wire.Source {
			t.Errorf("%s: %d %s", c.body, status, body)
		}
	}
}

// A working directory must not lead out of the sandbox through a descriptor of
// the agent (CVE-2024-21626).
func TestWorkingDirectoryInProc(t *testing.T) {
	a := startAgent(t, process.Options{})
	link := filepath.Join(passable(t), "link")
	if err := os.Symlink("/proc/self/cwd", link); err != nil {
		t.Fatal(err)
	}
	for _, cwd := range []string{"/proc/self/fd/3", "/proc/self/fd/4", "/proc/self/cwd", "/proc/1/root", "/proc", "/proc/self", "/dev/fd/5", "/proc/thread-self/root/usr", "/usr/../proc/self/root", link} {
		got := a.exec(wire.ExecuteRequest{Command: "pwd", Cwd: cwd})
		if got.ExitCode != -1 || !strings.Contains(got.Result, "working directory") {
			t.Errorf("cwd %s: %+v", cwd, got)
		}
	}
}

func TestWorkingDirectoryOfAnotherUser(t *testing.T) {
	ids := identities(t)
	opts, ok := ids["nobody"]
	if !ok {
		t.Skip("needs root: acts as another user")
	}
	dir := passable(t)
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	a := startAgent(t, opts)
	if got := a.exec(wire.ExecuteRequest{Command: "pwd", Cwd: dir}); got.ExitCode != -1 || !strings.Contains(got.Result, "permission denied") {
		t.Errorf("directory of another user: %+v", got)
	}
}

// escape scripts: each writes the ids of processes that try to survive into a
// file, and then sleeps.
var escapes = map[string]string{
	"foreground":         `echo $$ >>PIDS; sleep 1000`,
	"background":         `sleep 1000 & echo $! >>PIDS; wait`,
	"nohup":              `nohup sh -c 'echo $$ >>PIDS; exec sleep 1000' >/dev/null 2>&1 & sleep 1000`,
	"setsid":             `setsid sh -c 'echo $$ >>PIDS; exec sleep 1000' & sleep 1000`,
	"double fork":        `( (setsid sh -c 'echo $$ >>PIDS; exec sleep 1000' &) & ); sleep 1000`,
	"double setsid":      `(setsid sh -c 'setsid sh -c "echo \$\$ >>PIDS; exec sleep 1000" & exit' &); sleep 1000`,
	"clean environment":  `(env -i setsid /bin/sh -c 'echo $$ >>PIDS; exec sleep 1000' &) ; sleep 1000`,
	"ignores signals":    `trap '' TERM INT HUP; setsid sh -c 'trap "" TERM HUP INT; echo $$ >>PIDS; while :; do sleep 1000; done' & while :; do sleep 1; done`,
	"stopped":            `setsid sh -c 'echo $$ >>PIDS; kill -STOP $$' & sleep 1000`,
	"closed descriptors": `(setsid sh -c 'echo $$ >>PIDS; exec sleep 1000' <&- >&- 2>&- &); sleep 1000`,
}

func TestTimeoutKillsTree(t *testing.T) {
	run := func(t *testing.T, opts process.Options) {
		a := startAgent(t, opts)
		for name, script := range escapes {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				dir := passable(t)
				if err := os.Chmod(dir, 0o777); err != nil {
					t.Fatal(err)
				}
				file := filepath.Join(dir, "pids")
				script := "echo before; " + strings.ReplaceAll(script, "PIDS", file)
				begin := time.Now()
				status, body := a.call("POST", "/process/execute", wire.ExecuteRequest{Command: script, Timeout: 1})
				took := time.Since(begin)
				var resp wire.TimeoutResponse
				if err := json.Unmarshal([]byte(body), &resp); err != nil {
					t.Fatalf("%v: %s", err, body)
				}
				if status != 408 || resp.StatusCode != 408 || resp.Code != wire.CodeProcessTimeout ||
					resp.Message != "request timeout: command execution timeout" || resp.Result != "before\n" {
					t.Errorf("status %d: %s", status, body)
				}
				if took > 2*time.Second {
					t.Errorf("answered %v after the start, with a timeout of 1s", took)
				}
				for _, pid := range readPIDs(t, file, 1) {
					if alive(pid) {
						t.Errorf("process %d is alive", pid)
						syscall.Kill(pid, syscall.SIGKILL)
					}
				}
			})
		}
	}
	for name, opts := range identities(t) {
		t.Run(name, func(t *testing.T) {
			t.Run("markers", func(t *testing.T) { run(t, opts) })
			t.Run("cgroup", func(t *testing.T) {
				opts := opts
				opts.CgroupDir = cgroupDir(t)
				run(t, opts)
			})
		})
	}
}

// A chain of processes each of which lives for a moment, in a session of its
// own, without environment.
func TestTimeoutKillsChain(t *testing.T) {
	a := startAgent(t, process.Options{CgroupDir: cgroupDir(t)})
	dir := passable(t)
	script := filepath.Join(dir, "hop")
	if err := os.WriteFile(script, []byte("#!/bin/bash\necho >>"+dir+"/hops\nenv -i setsid "+script+" &\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	status, body := a.call("POST", "/process/execute", wire.ExecuteRequest{Command: script + "; sleep 1000", Timeout: 1})
	if status != 408 {
		t.Errorf("%d %s", status, body)
	}
	before, _ := os.ReadFile(dir + "/hops")
	if len(before) < 10 {
		t.Errorf("%d hops before the timeout", len(before))
	}
	// Each hop takes a few milliseconds.
	for range 50 {
		a.sh("true")
	}
	if after, _ := os.ReadFile(dir + "/hops"); len(after) != len(before) {
		os.Remove(script)
		t.Errorf("the chain goes on: %d hops, then %d", len(before), len(after))
	}
}

// What a command leaves in the background on purpose lives on, may go on
// writing, and does not hold up the answer.
func TestBackgroundSurvives(t *testing.T) {
	check := func(t *testing.T, opts process.Options) {
		a := startAgent(t, opts)
		dir := passable(t)
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, "pids")
		begin := time.Now()
		got := a.sh(`sh -c 'echo $$ >` + file + `; while echo tick; do sleep 0.01; done; echo dead >` + file + `.dead' & echo started`)
		if got.ExitCode != 0 || !strings.Contains(got.Result, "started\n") {
			t.Errorf("%+v", got)
		}
		if took := time.Since(begin); took > 2*time.Second {
			t.Errorf("the answer took %v", took)
		}
		pid := readPIDs(t, file, 1)[0]
		defer syscall.Kill(pid, syscall.SIGKILL)
		// More output than a pipe holds would take: it is enough that it has
		// written some after the answer.
		deadline := time.Now().Add(300 * time.Millisecond)
		for time.Now().Before(deadline) {
			a.sh("true")
		}
		if _, err := os.Stat(file + ".dead"); err == nil || !alive(pid) {
			t.Error("the background process died after the command's end")
		}
	}
	t.Run("plain", func(t *testing.T) { check(t, process.Options{}) })
	t.Run("cgroup", func(t *testing.T) { check(t, process.Options{CgroupDir: cgroupDir(t)}) })
}

func TestClientGoesAway(t *testing.T) {
	a := startAgent(t, process.Options{})
	file := filepath.Join(passable(t), "pids")
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() {
		_, _, err := a.try(ctx, "POST", "/process/execute", wire.ExecuteRequest{Command: "setsid sh -c 'echo $$ >>" + file + "; exec sleep 1000' & echo $$ >>" + file + "; wait"})
		done <- err
	}()
	pids := readPIDs(t, file, 2)
	cancel()
	if err := <-done; err == nil {
		t.Error("no error from a cancelled request")
	}
	waitDead(t, pids)
}

// waitDead waits up to a second for processes to end.
func waitDead(t *testing.T, pids []int) {
	t.Helper()
	deadline := time.Now().Add(time.Second)
	for _, pid := range pids {
		for alive(pid) {
			if time.Now().After(deadline) {
				t.Errorf("process %d is alive after a second", pid)
				syscall.Kill(pid, syscall.SIGKILL)
				break
			}
			time.Sleep(time.Millisecond)
		}
	}
}

// Exit codes and output of 200 commands at a time, with the reaper at work.
func TestParallelWithReaper(t *testing.T) {
	for _, cgroup := range []bool{false, true} {
		t.Run(fmt.Sprintf("cgroup=%v", cgroup), func(t *testing.T) {
			r, err := process.NewReaper(process.ReaperOptions{Subreaper: true})
			if err != nil {
				t.Fatal(err)
			}
			opts := process.Options{Reaper: r}
			if cgroup {
				opts.CgroupDir = cgroupDir(t)
			}
			a := startAgent(t, opts)
			t.Cleanup(r.Close)
			var wg sync.WaitGroup
			limit := make(chan struct{}, 200)
			for i := range 1000 {
				wg.Go(func() {
					limit <- struct{}{}
					defer func() { <-limit }()
					if i%5 == 0 {
						// A child of another part of the agent.
						err := exec.Command("sh", "-c", fmt.Sprintf("exit %d", i%100)).Run()
						code := 0
						if e, ok := err.(*exec.ExitError); ok {
							code, err = e.ExitCode(), nil
						}
						if err != nil || code != i%100 {
							t.Errorf("os/exec: %d, %v, want %d", code, err, i%100)
						}
						return
					}
					// With an orphan for the reaper.
					got := a.sh(fmt.Sprintf("(true &) ; echo %d; exit %d", i, i%256))
					if got.ExitCode != i%256 || got.Result != fmt.Sprintf("%d\n", i) {
						t.Errorf("command %d: %+v", i, got)
					}
				})
			}
			wg.Wait()
			deadline := time.Now().Add(5 * time.Second)
			for zombies(os.Getpid()) > 0 {
				if time.Now().After(deadline) {
					t.Fatalf("%d zombies are left", zombies(os.Getpid()))
				}
				time.Sleep(time.Millisecond)
			}
		})
	}
}

// zombies counts the zombies among a process's children.
func zombies(parent int) (n int) {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, s := range stats {
		b, err := os.ReadFile(s)
		if err != nil {
			continue
		}
		f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
		if len(f) > 1 && f[0] == "Z" && f[1] == strconv.Itoa(parent) {
			n++
		}
	}
	return n
}

func BenchmarkExecTrue(b *testing.B) {
	bench := func(b *testing.B, a *agent, command string) {
		body, _ := json.Marshal(wire.ExecuteRequest{Command: command})
		for b.Loop() {
			if status, resp := a.call("POST", "/process/execute", string(body)); status != 200 || !strings.Contains(resp, `"exitCode":0`) {
				b.Fatalf("%d %s", status, resp)
			}
		}
	}
	b.Run("fork+exec", func(b *testing.B) {
		for b.Loop() {
			pid, err := syscall.ForkExec("/bin/true", []string{"true"}, &syscall.ProcAttr{Files: []uintptr{0, 1, 2}})
			if err != nil {
				b.Fatal(err)
			}
			var ws syscall.WaitStatus
			syscall.Wait4(pid, &ws, 0, nil)
		}
	})
	a := startAgent(b, process.Options{})
	b.Run("request alone", func(b *testing.B) {
		for b.Loop() {
			if status, _ := a.call("POST", "/process/execute", `{"command":""}`); status != 400 {
				b.Fatal(status)
			}
		}
	})
	b.Run("agent", func(b *testing.B) { bench(b, a, "true") })
	b.Run("agent, shell", func(b *testing.B) { bench(b, a, "exec true >/dev/null") })
	b.Run("agent, cgroup", func(b *testing.B) { bench(b, startAgent(b, process.Options{CgroupDir: cgroupDir(b)}), "true") })
	b.Run("agent, reaper", func(b *testing.B) {
		r, err := process.NewReaper(process.ReaperOptions{})
		if err != nil {
			b.Fatal(err)
		}
		defer r.Close()
		bench(b, startAgent(b, process.Options{Reaper: r}), "true")
	})
}

func BenchmarkExecParallel(b *testing.B) {
	a := startAgent(b, process.Options{})
	b.SetParallelism(5)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			a.call("POST", "/process/execute", `{"command":"true"}`)
		}
	})
}

func BenchmarkSessionExec(b *testing.B) {
	a := startAgent(b, process.Options{})
	a.createSession("s")
	for b.Loop() {
		if status, body := a.call("POST", "/process/session/s/exec", `{"command":"true"}`); status != 200 {
			b.Fatalf("%d %s", status, body)
		}
	}
}

// TestProgramsGoBeforeTheAgent: when many small programs had used all the memory
// of a sandbox, the kernel ended the largest of its processes, the agent, and
// with it the sandbox.
func TestProgramsGoBeforeTheAgent(t *testing.T) {
	s, err := process.NewSpawner(process.Options{WorkDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	p, err := s.Start(&process.Spec{Args: []string{"sleep", "1000"}, Env: map[string]string{"PATH": os.Getenv("PATH")}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { p.KillTree(); p.Wait() }()
	score := func(who string) int {
		data, err := os.ReadFile("/proc/" + who + "/oom_score_adj")
		if err != nil {
			t.Fatal(err)
		}
		n, err := strconv.Atoi(strings.TrimSpace(string(data)))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if own, its := score("self"), score(strconv.Itoa(p.PID())); its <= own && own < 1000 {
		t.Errorf("the program's oom_score_adj is %d, the agent's %d: the agent would go first", its, own)
	}
}
