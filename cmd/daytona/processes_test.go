package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/executor"
)

// roleVariable makes this test's executable the program itself, or a runner on
// its own, where a test starts it as that.
const roleVariable = "DAYTONA_TEST_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(roleVariable) {
	case "":
		os.Exit(m.Run())
	case "daytona":
		main()
	case "runner":
		if err := runRunner(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}

// runnerConfig is what a runner on its own is told, as JSON.
type runnerConfig struct {
	Server, Key, Dir, Backend, Listen string
}

// runRunner is a runner that reaches its server over the network.
func runRunner() error {
	var c runnerConfig
	if err := json.Unmarshal([]byte(os.Getenv("DAYTONA_TEST_RUNNER")), &c); err != nil {
		return err
	}
	client, err := daytona.Open(context.Background(), c.Backend)
	if err != nil {
		return err
	}
	e, err := executor.New(executor.Config{
		Client: client, URL: c.Server + "/api", Key: c.Key, Dir: c.Dir, ProxyURL: "http://" + c.Listen, Unenforced: []string{"disk"},
		Capacity: daytona.Resources{CPU: 100, Memory: 1000, Disk: 10_000},
	})
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", c.Listen)
	if err != nil {
		return err
	}
	go http.Serve(l, e.Handler())
	return e.Run(context.Background())
}

// process is a program that a test starts, ends with SIGKILL and starts again.
type process struct {
	name    string
	log     string
	command func() *exec.Cmd

	mu   sync.Mutex
	cmd  *exec.Cmd
	over chan struct{}
}

// start starts it; it must not run.
func (p *process) start(t testing.TB) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	f, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := p.command()
	cmd.Stdout, cmd.Stderr = f, f
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", p.name, err)
	}
	over := make(chan struct{})
	go func() { _ = cmd.Wait(); close(over) }()
	p.cmd, p.over = cmd, over
}

// runs reports whether it has not ended.
func (p *process) runs() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return false
	}
	select {
	case <-p.over:
		return false
	default:
		return true
	}
}

// kill ends it, and its children if it is to, with SIGKILL, and waits until
// there is nothing of it.
func (p *process) kill(family bool) {
	p.mu.Lock()
	cmd, over := p.cmd, p.over
	p.mu.Unlock()
	if cmd == nil {
		return
	}
	var children []int
	if family {
		// The parent stands still, so that there are no more of them.
		_ = cmd.Process.Signal(syscall.SIGSTOP)
		children = childrenOf(cmd.Process.Pid)
	}
	_ = cmd.Process.Kill()
	for _, pid := range children {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	<-over
	for _, pid := range children {
		for syscall.Kill(pid, 0) == nil && !isZombie(pid) {
			time.Sleep(time.Millisecond)
		}
	}
}

// tail is the end of its log.
func (p *process) tail() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-4000):])
}

// stat returns the state and the parent of a process.
func stat(pid int) (state string, parent int) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", 0
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) < 2 {
		return "", 0
	}
	parent, _ = strconv.Atoi(f[1])
	return f[0], parent
}

func isZombie(pid int) bool { state, _ := stat(pid); return state == "Z" || state == "" }

func childrenOf(pid int) []int {
	var all []int
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		if n, err := strconv.Atoi(e.Name()); err == nil {
			if _, parent := stat(n); parent == pid {
				all = append(all, n)
			}
		}
	}
	return all
}

// freePort returns an address of this machine that nobody listens on.
func freePort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// newPostgres returns a PostgreSQL of the test's own, which does not run yet,
// and its URL. What it has acknowledged survives the death of all its processes.
func newPostgres(t testing.TB) (*process, string) {
	t.Helper()
	bins, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	if len(bins) == 0 {
		t.Skip("PostgreSQL is not installed: there is no /usr/lib/postgresql/*/bin")
	}
	bin := bins[len(bins)-1]
	u, err := user.Lookup("postgres")
	if err != nil {
		t.Skipf("PostgreSQL does not run as root: %v", err)
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	// Not t.TempDir, which is closed to others, and too long for a socket.
	dir, err := os.MkdirTemp("", "pg-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chown(dir, uid, gid); err != nil {
		t.Fatal(err)
	}
	as := func(name string, args ...string) *exec.Cmd {
		cmd := exec.Command(filepath.Join(bin, name), args...)
		cmd.Dir, cmd.Env = dir, []string{"LC_ALL=C.UTF-8", "PATH=" + os.Getenv("PATH")}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
		return cmd
	}
	data := filepath.Join(dir, "data")
	if out, err := as("initdb", "-D", data, "-A", "trust", "-U", "postgres", "--no-sync").CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	p := &process{name: "PostgreSQL", log: filepath.Join(t.TempDir(), "postgres.log"), command: func() *exec.Cmd {
		return as("postgres", "-D", data, "-k", dir, "-c", "listen_addresses=", "-c", "max_connections=200", "-c", "fsync=on")
	}}
	t.Cleanup(func() { p.kill(true) })
	return p, "postgres://postgres@/postgres?host=" + dir
}

// newServer returns a server, which does not run yet. It has all but the URL,
// the address and the key of its first user from c.
func newServer(t testing.TB, c map[string]any) (p *process, api *client) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	listen := freePort(t)
	url := "http://localhost" + listen[strings.LastIndex(listen, ":"):]
	all := map[string]any{
		"listen": listen, "url": url, "peerUrl": url, "dir": filepath.Join(dir, "server"), "encryptionKey": "of-all-servers-of-the-test",
		"admin": map[string]any{"key": adminKey}, "unenforced": []string{"disk"},
		"defaults": map[string]any{"runnerCpu": 100, "runnerMemory": 1000, "runnerDisk": 10_000},
	}
	for k, v := range c {
		all[k] = v
	}
	b, err := yaml.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "server.yaml")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(dir, "server.log")
	if to := os.Getenv("DAYTONA_TEST_LOG"); to != "" {
		log = to + "." + strings.ReplaceAll(t.Name(), "/", "-") + listen[strings.LastIndex(listen, ":"):]
	}
	p = &process{name: "the server", log: log, command: func() *exec.Cmd {
		cmd := exec.Command(self, "server", "--config", file)
		cmd.Env = append(os.Environ(), roleVariable+"=daytona")
		return cmd
	}}
	t.Cleanup(func() { p.kill(false) })
	return p, newClient(url, adminKey)
}

const adminKey = "dtn_of_the_first_user_of_these_tests"

// client calls the API.
type client struct {
	url, key string
	http     *http.Client
}

func newClient(url, key string) *client {
	return &client{url: url, key: key, http: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}, Timeout: 2 * time.Minute}}
}

// outcome is what a caller knows of a call.
type outcome int

const (
	done    outcome = iota // it was acknowledged
	refused                // it was answered, and nothing was done
	unknown                // nobody can tell
	unsent                 // there was nobody to ask
)

// answer is what came of a call.
type answer struct {
	outcome outcome
	status  int
	body    string
	err     error
}

func (a answer) String() string { return fmt.Sprintf("%d %s %v", a.status, a.body, a.err) }

// message is what a refusal says.
func (a answer) message() string {
	var v struct{ Message string }
	_ = json.Unmarshal([]byte(a.body), &v)
	return v.Message
}

// call sends in, unless it is nil, and reads what is acknowledged into out.
func (c *client) call(ctx context.Context, method, path string, in, out any) answer {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			panic(err)
		}
		body = bytes.NewReader(b)
	}
	r, err := http.NewRequestWithContext(ctx, method, c.url+path, body)
	if err != nil {
		panic(err)
	}
	r.Header.Set("Authorization", "Bearer "+c.key)
	r.GetBody = nil // it is sent once, or nobody could tell how often
	if in != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	w, err := c.http.Do(r)
	if err != nil {
		if errors.Is(err, syscall.ECONNREFUSED) {
			return answer{outcome: unsent, err: err}
		}
		return answer{outcome: unknown, err: err}
	}
	defer w.Body.Close()
	b, err := io.ReadAll(w.Body)
	a := answer{outcome: done, status: w.StatusCode, body: string(b), err: err}
	switch {
	case err != nil || w.StatusCode >= 500:
		a.outcome = unknown
	case w.StatusCode >= 300:
		a.outcome = refused
	case out != nil:
		if a.err = json.Unmarshal(b, out); a.err != nil {
			a.outcome = unknown
		}
	}
	return a
}

// must calls, and fails the test unless that is acknowledged.
func (c *client) must(t testing.TB, method, path string, in, out any) {
	t.Helper()
	if a := c.call(t.Context(), method, path, in, out); a.outcome != done {
		t.Fatalf("%s %s: %v", method, path, a)
	}
}

// patience bounds what a test waits for; nothing should take that long.
const patience = 3 * time.Minute

// until waits for a condition, which says what it still waits for.
func until(t testing.TB, what string, f func() (bool, string)) {
	t.Helper()
	end := time.Now().Add(patience)
	for {
		ok, why := f()
		if ok {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s: %s", what, why)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// up starts a server, again and again if it ends because its database does not
// answer, as whoever supervises it would, and waits until it answers.
func up(t testing.TB, p *process, c *client) {
	t.Helper()
	until(t, p.name+" does not come up", func() (bool, string) {
		if !p.runs() {
			p.start(t)
		}
		a := c.call(t.Context(), "GET", "/api/api-keys/current", nil, nil)
		return a.outcome == done, fmt.Sprint(a, "\n", p.tail())
	})
}

// awaitRunner waits until some runners are ready, and the default snapshot is.
func awaitRunner(t testing.TB, c *client, n int) {
	t.Helper()
	until(t, "no runner is ready", func() (bool, string) {
		var all []struct{ State string }
		a := c.call(t.Context(), "GET", "/api/admin/runners", nil, &all)
		ready := 0
		for _, r := range all {
			if r.State == "ready" {
				ready++
			}
		}
		if ready < n {
			return false, a.String()
		}
		var s struct{ State string }
		a = c.call(t.Context(), "GET", "/api/snapshots/default", nil, &s)
		return s.State == "active", a.String()
	})
}

// needRoot skips a test where there is no sandbox to be had, or no PostgreSQL.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("the local engine has all that this takes as root only")
	}
}

// backendDir returns a directory for a local engine, which is empty of
// sandboxes when the test ends, whatever became of it.
func backendDir(t testing.TB) string {
	t.Helper()
	// Not t.TempDir: its path is too long for a socket.
	dir, err := os.MkdirTemp("", "dh-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		c, err := daytona.Open(ctx, "local://"+dir)
		if err != nil {
			t.Error(err)
			return
		}
		for sb, err := range c.List(ctx, nil) {
			if err == nil {
				err = sb.Delete(ctx)
			}
			if err != nil && !errors.Is(err, daytona.ErrNotFound) {
				t.Error(err)
			}
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

var discard = slog.New(slog.DiscardHandler)
