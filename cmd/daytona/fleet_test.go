package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
	"golang.org/x/crypto/ssh"

	"github.com/daytona-go/daytona"
)

// fleet is a server and runners, each a process of its own.
type fleet struct {
	t        *testing.T
	dir      string
	url, key string
	ssh      string
	runners  map[string]*fleetRunner
}

type fleetRunner struct {
	name, token, id string
	dir, backend    string
	process         *exec.Cmd
	began           time.Time
}

// daytona is a command of this program that writes to a log.
func (f *fleet) daytona(log string, args ...string) *exec.Cmd {
	c := exec.Command("/proc/self/exe", args...)
	c.Env = append(os.Environ(), roleVariable+"=daytona", "DAYTONA_SERVER_RUNNERS_SILENCE=6s", "DAYTONA_SERVER_RUNNERS_LOST_AFTER=12s", "HEALTHCHECK_INTERVAL=500ms")
	w, err := os.OpenFile(filepath.Join(f.dir, log+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { w.Close() })
	c.Stderr = w
	return c
}

// output is what a command says.
func (f *fleet) output(args ...string) string {
	f.t.Helper()
	c := f.daytona("commands", args...)
	out, err := c.Output()
	if err != nil {
		f.t.Fatalf("daytona %s: %v", strings.Join(args, " "), err)
	}
	return strings.TrimSpace(string(out))
}

func (f *fleet) begin(c *exec.Cmd) {
	f.t.Helper()
	if err := c.Start(); err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { kill(c) })
}

// kill ends a process as a machine that fails does.
func kill(c *exec.Cmd) {
	if c.ProcessState == nil {
		c.Process.Kill()
		c.Wait()
	}
}

// port returns one that nothing listens on.
func port(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "localhost:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return fmt.Sprint(l.Addr().(*net.TCPAddr).Port)
}

func newFleet(t *testing.T, names ...string) *fleet {
	t.Helper()
	// A short path: there are Unix sockets below it.
	dir, err := os.MkdirTemp("", "dt-")
	if err != nil {
		t.Fatal(err)
	}
	f := &fleet{t: t, dir: dir, runners: map[string]*fleetRunner{}}
	t.Cleanup(func() {
		if t.Failed() {
			logs, _ := filepath.Glob(filepath.Join(dir, "*.log"))
			for _, l := range logs {
				data, _ := os.ReadFile(l)
				t.Logf("%s:\n%s", filepath.Base(l), data[max(0, len(data)-8<<10):])
			}
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	listen := "localhost:" + port(t)
	f.url = "http://" + listen
	at := []string{"--dir", filepath.Join(dir, "server")}
	f.output(append([]string{"server", "init", "--admin-key-file", filepath.Join(dir, "key")}, at...)...)
	key, err := os.ReadFile(filepath.Join(dir, "key"))
	if err != nil {
		t.Fatal(err)
	}
	f.key = strings.TrimSpace(string(key))
	for _, name := range names {
		r := &fleetRunner{name: name, dir: filepath.Join(dir, name), backend: (&url.URL{Scheme: "local", Path: filepath.Join(dir, "l"+name)}).String()}
		r.token = f.output(append([]string{"server", "runner", "add", name, "--url", f.url}, at...)...)
		f.runners[name] = r
		t.Cleanup(func() { f.clear(r) })
	}
	f.ssh = "localhost:" + port(t)
	t.Setenv("DAYTONA_SERVER_SSH_LISTEN", f.ssh)
	f.begin(f.daytona("server", append([]string{"server", "--backend", "none", "--listen", listen, "--url", f.url}, at...)...))
	for _, name := range names {
		f.run(name)
	}
	for _, name := range names {
		f.ready(name)
	}
	return f
}

// run starts a runner.
func (f *fleet) run(name string) {
	f.t.Helper()
	r := f.runners[name]
	r.began = time.Now()
	r.process = f.daytona(name, "runner", "--join", r.token, "--dir", r.dir, "--backend", r.backend, "--listen", "localhost:0")
	f.begin(r.process)
}

// clear deletes what is left at a runner's backend.
func (f *fleet) clear(r *fleetRunner) {
	c, err := daytona.Open(context.Background(), r.backend)
	if err != nil {
		f.t.Error(err)
		return
	}
	for sb, err := range c.List(context.Background(), nil) {
		if err == nil {
			err = sb.Delete(context.Background())
		}
		if err != nil {
			f.t.Error(err)
		}
	}
	if err := c.Close(); err != nil {
		f.t.Error(err)
	}
}

// call asks the API, and returns the status.
func (f *fleet) call(method, path string, in, out any) int {
	f.t.Helper()
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			f.t.Fatal(err)
		}
		body = bytes.NewReader(data)
	}
	q, err := http.NewRequestWithContext(f.t.Context(), method, f.url+path, body)
	if err != nil {
		f.t.Fatal(err)
	}
	q.Header.Set("Authorization", "Bearer "+f.key)
	q.Header.Set("Content-Type", "application/json")
	r, err := http.DefaultClient.Do(q)
	if err != nil {
		return 0 // the server is not there yet
	}
	defer r.Body.Close()
	data, err := io.ReadAll(r.Body)
	if err != nil {
		f.t.Fatal(err)
	}
	if out != nil && r.StatusCode < 300 {
		if err := json.Unmarshal(data, out); err != nil {
			f.t.Fatalf("%s %s: %v: %s", method, path, err, data)
		}
	}
	if r.StatusCode >= 300 {
		f.t.Logf("%s %s: %d %s", method, path, r.StatusCode, data)
	}
	return r.StatusCode
}

// await waits until something is so.
func (f *fleet) await(what string, so func() bool) {
	f.t.Helper()
	for end := time.Now().Add(3 * time.Minute); !so(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			f.t.Fatalf("waited for three minutes: %s", what)
		}
	}
}

// ready waits until the server has heard of a runner's present process.
func (f *fleet) ready(name string) {
	f.t.Helper()
	f.await("runner "+name+" is ready", func() bool {
		var all []struct {
			ID, Name, State string
			LastChecked     time.Time
		}
		f.call("GET", "/api/admin/runners", nil, &all)
		for _, r := range all {
			if r.Name == name {
				f.runners[name].id = r.ID
				return r.State == "ready" && r.LastChecked.After(f.runners[name].began)
			}
		}
		return false
	})
}

// only has new sandboxes go to one runner.
func (f *fleet) only(name string) {
	f.t.Helper()
	for n, r := range f.runners {
		if s := f.call("PATCH", "/api/admin/runners/"+r.id+"/scheduling", map[string]bool{"unschedulable": n != name}, nil); s != http.StatusNoContent {
			f.t.Fatalf("scheduling: %d", s)
		}
	}
}

type fleetSandbox struct {
	ID, State, RunnerID, BackupState, ErrorReason string
}

func (f *fleet) get(id string) (sb fleetSandbox) {
	f.t.Helper()
	if s := f.call("GET", "/api/sandbox/"+id, nil, &sb); s != http.StatusOK {
		f.t.Fatalf("get sandbox: %d", s)
	}
	return sb
}

func (f *fleet) is(id, state, runner string) {
	f.t.Helper()
	f.await("sandbox is "+state+" on "+runner, func() bool {
		sb := f.get(id)
		if sb.State == "error" && state != "error" && !strings.Contains(sb.ErrorReason, "lost") {
			f.t.Fatalf("the sandbox has failed: %s", sb.ErrorReason)
		}
		return sb.State == state && (runner == "" || sb.RunnerID == f.runners[runner].id)
	})
}

// create makes a sandbox, which has a file, and a process that does not end.
func (f *fleet) create(on, snapshot string) string {
	f.t.Helper()
	f.only(on)
	var sb fleetSandbox
	in := map[string]any{}
	if snapshot != "" {
		in["snapshot"] = snapshot
	}
	if s := f.call("POST", "/api/sandbox", in, &sb); s != http.StatusOK {
		f.t.Fatalf("create sandbox: %d", s)
	}
	f.is(sb.ID, "started", on)
	return sb.ID
}

func (f *fleet) exec(id, command string) string {
	f.t.Helper()
	var r struct {
		ExitCode int
		Result   string
	}
	if s := f.call("POST", "/toolbox/"+id+"/process/execute", map[string]string{"command": "sh -c '" + command + "'"}, &r); s != http.StatusOK || r.ExitCode != 0 {
		f.t.Fatalf("%s: %d %+v", command, s, r)
	}
	return strings.TrimSpace(r.Result)
}

// preview returns what a port of a sandbox answers.
func (f *fleet) preview(id string, port int) string {
	f.t.Helper()
	var p struct{ URL, Token string }
	if s := f.call("GET", fmt.Sprintf("/api/sandbox/%s/ports/%d/preview-url", id, port), nil, &p); s != http.StatusOK {
		f.t.Fatalf("preview: %d", s)
	}
	u, err := url.Parse(p.URL)
	if err != nil {
		f.t.Fatal(err)
	}
	q, err := http.NewRequestWithContext(f.t.Context(), "GET", f.url+"/", nil)
	if err != nil {
		f.t.Fatal(err)
	}
	q.Host = u.Host
	q.Header.Set("X-Daytona-Preview-Token", p.Token)
	r, err := http.DefaultClient.Do(q)
	if err != nil {
		f.t.Fatal(err)
	}
	defer r.Body.Close()
	data, err := io.ReadAll(r.Body)
	if err != nil {
		f.t.Fatal(err)
	}
	return string(data)
}

// overSSH runs a command by the SSH gateway.
func (f *fleet) overSSH(id, command string) string {
	f.t.Helper()
	var access struct{ Token string }
	if s := f.call("POST", "/api/sandbox/"+id+"/ssh-access?expiresInMinutes=5", nil, &access); s != http.StatusOK {
		f.t.Fatalf("SSH access: %d", s)
	}
	c, err := ssh.Dial("tcp", f.ssh, &ssh.ClientConfig{User: access.Token, HostKeyCallback: ssh.InsecureIgnoreHostKey(), Timeout: time.Minute})
	if err != nil {
		f.t.Fatal(err)
	}
	defer c.Close()
	session, err := c.NewSession()
	if err != nil {
		f.t.Fatal(err)
	}
	out, err := session.Output(command)
	if err != nil {
		f.t.Fatal(err)
	}
	return string(out)
}

func (f *fleet) do(id, action string, want int) {
	f.t.Helper()
	if s := f.call("POST", "/api/sandbox/"+id+"/"+action, map[string]any{}, nil); s != want {
		f.t.Fatalf("%s: %d, want %d", action, s, want)
	}
}

func (f *fleet) backedUp(id string) {
	f.t.Helper()
	f.await("the backup is there", func() bool {
		sb := f.get(id)
		if sb.BackupState == "Error" {
			f.t.Fatalf("the backup failed: %+v", sb)
		}
		return sb.BackupState == "Completed"
	})
}

// has returns the names of what is at a runner's backend.
func (f *fleet) has(name string) []string {
	f.t.Helper()
	var list []struct{ Name string }
	if err := json.Unmarshal([]byte(f.output("sandbox", "list", "-o", "json", "--backend", f.runners[name].backend)), &list); err != nil {
		f.t.Fatal(err)
	}
	var names []string
	for _, s := range list {
		names = append(names, s.Name)
	}
	return names
}

// TestFleet has a server and two runners, all of them processes: sandboxes are
// reached on both, outlive the end of a runner, and are made again on the other
// one when a runner is lost; when it is back after all, nothing is there twice.
func TestFleet(t *testing.T) {
	if testing.Short() {
		t.Skip("it starts and kills servers")
	}
	needRoot(t)
	client, err := daytona.Open(t.Context(), (&url.URL{Scheme: "local", Path: t.TempDir()}).String())
	if err != nil {
		t.Skipf("this machine can't run sandboxes: %v", err)
	}
	_, moves := daytona.As[daytona.SnapshotMover](client.Backend())
	if err := client.Close(); err != nil {
		t.Fatal(err)
	}
	f := newFleet(t, "a", "b")

	// Where a sandbox is makes no difference.
	x, y := f.create("a", ""), f.create("b", "")
	for _, id := range []string{x, y} {
		f.exec(id, "echo "+id+" > ~/kept; sleep 1000 > /dev/null 2>&1 &")
		if out := f.exec(id, "cat ~/kept"); out != id {
			t.Errorf("%q", out)
		}
		var pty struct{ SessionID string }
		if s := f.call("POST", "/toolbox/"+id+"/process/pty", map[string]any{"id": "p"}, &pty); s != http.StatusCreated && s != http.StatusOK {
			t.Fatalf("PTY: %d", s)
		}
		ws, _, err := websocket.Dial(t.Context(), "ws"+strings.TrimPrefix(f.url, "http")+"/toolbox/"+id+"/process/pty/p/connect", &websocket.DialOptions{
			HTTPHeader: http.Header{"Authorization": {"Bearer " + f.key}},
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := ws.Write(t.Context(), websocket.MessageBinary, []byte("echo $((6*7))-\n")); err != nil {
			t.Fatal(err)
		}
		for seen := ""; !strings.Contains(seen, "42-"); {
			_, data, err := ws.Read(t.Context())
			if err != nil {
				t.Fatalf("%v after %q", err, seen)
			}
			seen += string(data)
		}
		ws.CloseNow()
		f.exec(id, "mkdir /tmp/www; cd /tmp/www; echo served > index.html; python3 -m http.server 8000 > /dev/null 2>&1 &")
		f.await("a port is served", func() bool { return f.preview(id, 8000) == "served\n" })
		if out := f.overSSH(id, "echo $((6*7))"); out != "42\n" {
			t.Errorf("by SSH: %q", out)
		}
	}
	// An image is built where there is room.
	if s := f.call("POST", "/api/snapshots", map[string]any{"name": "built", "buildInfo": map[string]string{"dockerfileContent": "FROM scratch\nENV A=b\n"}}, nil); s != http.StatusOK {
		t.Fatalf("build: %d", s)
	}
	f.await("the image is built", func() bool {
		var snap struct{ State, ErrorReason string }
		f.call("GET", "/api/snapshots/built", nil, &snap)
		if snap.ErrorReason != "" {
			t.Fatal(snap)
		}
		return snap.State == "active"
	})

	// A runner that is killed finds its sandboxes again, and they have not noticed.
	pid := f.exec(x, "pgrep sleep")
	kill(f.runners["a"].process)
	f.run("a")
	f.ready("a")
	f.is(x, "started", "a")
	if out := f.exec(x, "pgrep sleep"); out != pid {
		t.Errorf("after the runner was killed: %q, it was %q", out, pid)
	}
	// One that is asked to end does so, and the same.
	if err := f.runners["a"].process.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	f.runners["a"].process.Wait()
	f.run("a")
	f.ready("a")
	f.is(x, "started", "a")
	if out := f.exec(x, "pgrep sleep"); out != pid {
		t.Errorf("after the runner ended: %q, it was %q", out, pid)
	}
	if !moves {
		t.Log("this machine's backend can't exchange snapshots with others: the rest needs that")
		return
	}

	// What was made of a sandbox on one is there for the other.
	if s := f.call("POST", "/api/sandbox/"+y+"/snapshot", map[string]string{"name": "of-y"}, nil); s != http.StatusOK {
		t.Fatalf("snapshot: %d", s)
	}
	f.await("the snapshot is there", func() bool {
		var snap struct{ State string }
		return f.call("GET", "/api/snapshots/of-y", nil, &snap) == http.StatusOK && snap.State == "active"
	})
	f.is(y, "started", "b")
	z := f.create("a", "of-y")
	if out := f.exec(z, "cat ~/kept"); out != y {
		t.Errorf("of a snapshot of the other runner: %q", out)
	}

	// A runner is lost: what has a backup is made again on the other, at once if it
	// ran, and when it is started if it did not.
	w, v := f.create("b", ""), f.create("b", "")
	f.exec(w, "echo stopped > ~/kept")
	f.do(w, "stop", http.StatusOK)
	f.is(w, "stopped", "b")
	f.backedUp(w)
	f.do(y, "backup", http.StatusOK)
	f.backedUp(y)
	kill(f.runners["b"].process)
	f.only("a")
	f.is(v, "error", "b")
	f.do(v, "recover", http.StatusServiceUnavailable)
	f.is(y, "started", "a")
	if out := f.exec(y, "cat ~/kept"); out != y {
		t.Errorf("after its runner was lost: %q", out)
	}
	f.do(w, "start", http.StatusOK)
	f.is(w, "started", "a")
	if out := f.exec(w, "cat ~/kept"); out != "stopped" {
		t.Errorf("started after its runner was lost: %q", out)
	}

	// It is back: what is elsewhere by now goes from it, the rest goes on.
	f.run("b")
	f.ready("b")
	f.is(v, "started", "b")
	f.exec(v, "true")
	f.await("nothing is there twice", func() bool { return slices.Equal(f.has("b"), []string{v}) })
	here := f.has("a")
	slices.Sort(here)
	want := []string{x, y, z, w}
	slices.Sort(want)
	if !slices.Equal(here, want) {
		t.Errorf("runner a has %v, want %v", here, want)
	}
}
