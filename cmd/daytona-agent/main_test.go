package main_test

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
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/daytona-go/daytona/toolbox"
)

func build(t *testing.T) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "daytona-agent")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w -X main.version=v9.9.9", "-o", bin, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return bin
}

// inherit starts the agent as a backend does: with a listener and the
// configuration as descriptors.
func inherit(t *testing.T, bin string, config toolbox.Config, attr *syscall.SysProcAttr) (*exec.Cmd, *http.Client, *bytes.Buffer) {
	t.Helper()
	dir, err := os.MkdirTemp("", "agent")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	listener, err := l.(*net.UnixListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	b, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var log bytes.Buffer
	cmd := exec.Command(bin, "serve")
	cmd.ExtraFiles = []*os.File{listener, r}
	cmd.Env = []string{"SECRET_OF_THE_HOST=1", "PATH=" + os.Getenv("PATH")}
	cmd.Stderr, cmd.SysProcAttr = &log, attr
	if err := cmd.Start(); err != nil {
		if attr != nil {
			t.Skipf("a namespace for processes: %v", err)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill() })
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	w.Close()
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(dir, "s"))
	}}}
	t.Cleanup(client.CloseIdleConnections)
	return cmd, client, &log
}

func body(t *testing.T, resp *http.Response, err error) string {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func execute(t *testing.T, client *http.Client, command string) string {
	t.Helper()
	b, _ := json.Marshal(map[string]string{"command": command})
	resp, err := client.Post("http://agent/process/execute", "application/json", bytes.NewReader(b))
	var answer struct{ Result string }
	if text := body(t, resp, err); json.Unmarshal([]byte(text), &answer) != nil {
		t.Fatal(text)
	}
	return answer.Result
}

func TestServe(t *testing.T) {
	bin := build(t)
	if out, err := exec.Command(bin, "version").Output(); err != nil || string(out) != "v9.9.9\n" {
		t.Errorf("version: %q, %v", out, err)
	}
	begin := time.Now()
	cmd, client, log := inherit(t, bin, toolbox.Config{WorkDir: t.TempDir(), Env: map[string]string{"A": "1"}}, nil)
	resp, err := client.Get("http://agent/version")
	if got := body(t, resp, err); got != "{\"version\":\"v9.9.9\"}\n" {
		t.Errorf("%q", got)
	}
	t.Logf("first answer after %v", time.Since(begin))
	if got := execute(t, client, "echo $A $SECRET_OF_THE_HOST; ls /proc/self/fd | wc -l"); got != "1\n4\n" {
		t.Errorf("a program sees %q; want its variable, not the agent's, and 4 descriptors", got)
	}
	t.Logf("resident: %d KiB", idle(t, cmd.Process.Pid))
	// Not even its own user may look into it.
	if info, err := os.Stat(fmt.Sprintf("/proc/%d/mem", cmd.Process.Pid)); err == nil && info.Sys().(*syscall.Stat_t).Uid != 0 {
		t.Error("the agent can be traced")
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v\n%s", err, log)
	}
}

// TestInit runs the agent as the first process of a namespace.
func TestInit(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("a namespace for processes needs root")
	}
	bin := build(t)
	newPID := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
	cmd, client, log := inherit(t, bin, toolbox.Config{WorkDir: t.TempDir()}, newPID)
	dir := t.TempDir()
	execute(t, client, "setsid sh -c 'trap \"echo terminated > "+dir+"/term; exit\" TERM; echo > "+dir+"/up; while :; do sleep 0.01; done' >/dev/null 2>&1 & while ! test -e "+dir+"/up; do sleep 0.01; done")
	// What takes no notice of SIGTERM is killed; a request that waits for it
	// does not hold the sandbox up.
	begin := time.Now()
	waiting := make(chan struct{})
	go func() {
		defer close(waiting)
		resp, err := client.Post("http://agent/process/execute", "application/json", strings.NewReader(`{"command":"trap '' TERM; echo > `+dir+`/up2; while :; do sleep 1; done"}`))
		if err == nil {
			resp.Body.Close()
		}
	}()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, err := os.Stat(dir + "/up2"); err == nil {
			break
		} else if time.Now().After(deadline) {
			t.Fatal("the program did not start")
		}
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v\n%s", err, log)
	}
	<-waiting
	if took := time.Since(begin); took < 4*time.Second || took > 9*time.Second {
		t.Errorf("the end took %v, want five seconds", took)
	}
	if b, _ := os.ReadFile(dir + "/term"); string(b) != "terminated\n" {
		t.Error("a program had no chance to end by itself")
	}

	// The kernel ends the sandbox when it is idle.
	cmd, client, log = inherit(t, bin, toolbox.Config{WorkDir: t.TempDir(), IdleTimeout: 200 * time.Millisecond}, newPID)
	client.Get("http://agent/version")
	if err := cmd.Wait(); err != nil || !strings.Contains(log.String(), "idle") {
		t.Errorf("%v\n%s", err, log)
	}
}

func TestErrors(t *testing.T) {
	bin := build(t)
	for name, args := range map[string][]string{
		"command": {"dance"}, "flag": {"serve", "--nope"}, "argument": {"serve", "x"}, "no descriptor": {"serve", "--config-fd", "99"},
		"relay without a socket": {"relay"}, "helper without a name": {"helper"}, "helper": {"helper", "nope"}, "address": {"serve", "--config-fd", "-1", "--listen", "ftp://x"}, "reachable without token": {"serve", "--config-fd", "-1", "--listen", "tcp://:0"},
	} {
		out, err := exec.Command(bin, args...).CombinedOutput()
		if err == nil || len(out) == 0 {
			t.Errorf("%s: %v, %q", name, err, out)
		}
	}
}

// TestInitIgnoresSignals has a program of the sandbox's root send its init
// every signal there is, but for the first three real-time ones: Go has no
// handlers for these, and Linux ends even an init by a signal without one if it
// comes while the main thread is in the handler of another (complete_signal in
// kernel/signal.c does not ask for SIGNAL_UNKILLABLE).
func TestInitIgnoresSignals(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("a namespace for processes needs root")
	}
	bin := build(t)
	newPID := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
	_, client, log := inherit(t, bin, toolbox.Config{WorkDir: t.TempDir(), IgnoreSignals: true}, newPID)
	const attack = `for again in 1 2 3; do for s in $(seq 31) $(seq 35 64); do kill -$s 1 || echo "refused: $s"; done; done; echo done`
	if got := execute(t, client, attack); got != "done\n" {
		t.Errorf("%q\n%s", got, log)
	}
	if got := execute(t, client, "cat /proc/1/comm >/dev/null; echo alive"); got != "alive\n" {
		t.Errorf("%q\n%s", got, log)
	}
}
