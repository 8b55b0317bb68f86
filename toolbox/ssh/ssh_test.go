package ssh_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/daytona-go/daytona/toolbox/account"
	"github.com/daytona-go/daytona/toolbox/process"
	"github.com/daytona-go/daytona/toolbox/reexec"
	"github.com/daytona-go/daytona/toolbox/ssh"
	"github.com/daytona-go/daytona/toolbox/wire"
)

// TestMain makes this test's program the helper, and the proxy command of the
// clients.
func TestMain(m *testing.M) {
	reexec.Main(os.Args[1:])
	if len(os.Args) > 2 && os.Args[1] == "proxy" {
		os.Exit(proxy(os.Args[2]))
	}
	os.Exit(m.Run())
}

// proxy joins its standard streams to the WebSocket at url.
func proxy(url string) int {
	ctx := context.Background()
	ws, _, err := websocket.Dial(ctx, url, nil)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	ws.SetReadLimit(-1)
	conn := websocket.NetConn(ctx, ws, websocket.MessageBinary)
	go func() {
		_, _ = io.Copy(conn, os.Stdin)
		_ = conn.Close()
	}()
	_, err = io.Copy(os.Stdout, conn)
	if websocket.CloseStatus(err) == websocket.StatusProtocolError {
		fmt.Fprintln(os.Stderr, err)
	}
	return 0
}

// machine is a service and how OpenSSH's programs reach it.
type machine struct {
	t       testing.TB
	url     string
	work    string // the sandbox's working directory
	dir     string // the client's
	config  string
	service *ssh.Service
}

// start starts a service, whose programs run as nobody where that is possible.
func start(t testing.TB, query string) *machine {
	t.Helper()
	for _, name := range []string{"ssh", "scp", "sftp"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("%v: install openssh-client", err)
		}
	}
	m := &machine{t: t, dir: t.TempDir()}
	base, err := os.MkdirTemp("", "ssh")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	m.work = base
	as := account.Current()
	if os.Getuid() == 0 {
		if as, err = account.Lookup("65534:65534"); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(base, as.UID, as.GID); err != nil {
			t.Fatal(err)
		}
	}
	spawner, err := process.NewSpawner(process.Options{Account: as, WorkDir: base, Environ: func() []string {
		return []string{"HOME=" + base, "SANDBOX=yes", "PATH=" + os.Getenv("PATH")}
	}})
	if err != nil {
		t.Fatal(err)
	}
	m.service = ssh.New(ssh.Options{Spawner: spawner, Logger: slog.New(slog.DiscardHandler)})
	mux := http.NewServeMux()
	m.service.Register(mux)
	server := httptest.NewServer(mux)
	t.Cleanup(func() {
		m.service.Close()
		server.Close()
		spawner.Close()
	})
	m.url = server.URL
	resp, err := http.Get(server.URL + wire.SSHHostKeysPath)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var keys wire.SSHHostKeys
	if err := json.NewDecoder(resp.Body).Decode(&keys); err != nil || len(keys.Keys) != 1 || !strings.HasPrefix(keys.Keys[0], "ssh-ed25519 ") {
		t.Fatal(keys, err)
	}
	m.write("known_hosts", "sandbox "+keys.Keys[0]+"\n")
	m.config = m.write("config", fmt.Sprintf(`Host sandbox
  ProxyCommand "%s" proxy ws%s%s%s
  UserKnownHostsFile %s/known_hosts
  GlobalKnownHostsFile /dev/null
  StrictHostKeyChecking yes
  BatchMode yes
  IdentityFile none
  UpdateHostKeys no
`, os.Args[0], strings.TrimPrefix(server.URL, "http"), wire.SSHPath, query, m.dir))
	return m
}

func (m *machine) write(name, content string) string {
	m.t.Helper()
	path := filepath.Join(m.dir, name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		m.t.Fatal(err)
	}
	return path
}

// run runs a program of OpenSSH, with our configuration.
func (m *machine) run(stdin string, program string, args ...string) (stdout, stderr string, code int) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, append([]string{"-F", m.config}, args...)...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.Dir = strings.NewReader(stdin), &out, &errs, m.dir
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		m.t.Fatalf("%v: %v\n%s", cmd.Args, err, &errs)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// must is run for what works.
func (m *machine) must(stdin string, program string, args ...string) string {
	m.t.Helper()
	out, errs, code := m.run(stdin, program, args...)
	if code != 0 {
		m.t.Fatalf("%s %v: exit code %d\n%s%s", program, args, code, out, errs)
	}
	return out
}

func TestCommands(t *testing.T) {
	m := start(t, "")
	for name, test := range map[string]struct {
		stdin, command, stdout, stderr string
		args                           []string
		code                           int
	}{
		"output":      {command: "echo out; echo err >&2; pwd; echo $SANDBOX $HOME", stdout: "out\n" + m.work + "\nyes " + m.work + "\n", stderr: "err\n"},
		"exit status": {command: "exit 42", code: 42},
		"signal":      {command: "kill -9 $$", code: 255},
		"input":       {stdin: "some input", command: "cat; echo .", stdout: "some input.\n"},
		"environment": {args: []string{"-o", "SetEnv=COLOUR=blue"}, command: "echo $COLOUR", stdout: "blue\n"},
		"shell":       {stdin: "echo $0; shopt -q login_shell && echo login\nexit 3\n", args: []string{"-T"}, stdout: "-bash\nlogin\n", code: 3},
		"terminal":    {args: []string{"-tt"}, command: "test -t 0 && stty size && echo $TERM && tty | grep -q $SSH_TTY && echo same", stdout: "24 80\r\nxterm-mono\r\nsame\r\n"},
		"modes":       {args: []string{"-tt"}, command: "stty -a | grep -o intr.=....", stdout: "intr = ^C;\r\n"},
		"background":  {command: "sleep 15 & echo started", stdout: "started\n"},
		"not found":   {command: "/no/such/program", code: 127, stderr: "sh: 1: /no/such/program: not found\n"},
		"not a user":  {args: []string{"-l", "somebody"}, command: "echo hi", stdout: "hi\n"},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "shell" {
				if _, err := os.Stat("/bin/bash"); err != nil {
					t.Skip(err)
				}
			}
			t.Setenv("TERM", "xterm-mono")
			args := append(test.args, "sandbox")
			if test.command != "" {
				args = append(args, test.command)
			}
			out, errs, code := m.run(test.stdin, "ssh", args...)
			if out != test.stdout || code != test.code {
				t.Errorf("%d %q %q; want %d %q", code, out, errs, test.code, test.stdout)
			}
			if test.stderr != "" && errs != test.stderr {
				t.Errorf("standard error %q; want %q", errs, test.stderr)
			}
		})
	}
}

// TestUser has what happens over SSH happen with the sandbox's user's rights.
// TestFarewell: a client that says goodbye, as OpenSSH's does before it goes, has
// done nothing wrong, and is not told so.
func TestFarewell(t *testing.T) {
	m := start(t, "")
	ws, _, err := websocket.Dial(t.Context(), m.url+wire.SSHPath, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.CloseNow()
	ws.SetReadLimit(-1)
	conn := websocket.NetConn(t.Context(), ws, websocket.MessageBinary)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ended := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			ended <- err
			return
		}
		// The WebSocket stays open when the client has gone.
		go io.Copy(conn, c)
		_, err = io.Copy(c, conn)
		ended <- err
	}()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	m.must("", "ssh", "-o", "ProxyCommand=none", "-o", "HostName=127.0.0.1", "-o", "HostKeyAlias=sandbox", "-p", port, "sandbox", "true")
	select {
	case err := <-ended:
		if err != nil && websocket.CloseStatus(err) != websocket.StatusNormalClosure {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Error("the connection does not end with its client")
	}
}

func TestUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("another user needs root")
	}
	m := start(t, "")
	if got := m.must("", "ssh", "sandbox", "id -u; id -g; id -G"); got != "65534\n65534\n65534\n" {
		t.Errorf("%q", got)
	}
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, errs, code := m.run("", "scp", "sandbox:"+secret, "stolen"); code == 0 {
		t.Errorf("sftp reads what the user may not: %s", errs)
	}
	// A socket of root's alone.
	dir := t.TempDir()
	socket := echo(t, "unix", dir+"/s").Addr().String()
	if err := os.Chmod(socket, 0o600); err != nil {
		t.Fatal(err)
	}
	m.background("-L", m.dir+"/through:"+socket, "sandbox")
	if got := ask(t, "unix", m.dir+"/through"); got != "" {
		t.Errorf("a forwarded connection gets where the user may not: %q", got)
	}
	if out, _, _ := m.run("", "ssh", "-o", "ExitOnForwardFailure=yes", "-R", "99:localhost:1", "sandbox", "echo forwarded"); out != "" {
		t.Errorf("a user of the sandbox listens on port 99")
	}
}

// TestFiles moves files with everything that can.
func TestFiles(t *testing.T) {
	m := start(t, "")
	content := make([]byte, 3<<20+17)
	rand.Read(content)
	m.write("up", string(content))
	same := func(path string) {
		t.Helper()
		if b, err := os.ReadFile(path); err != nil || !bytes.Equal(b, content) {
			t.Errorf("%s: %d bytes, %v", path, len(b), err)
		}
	}
	for _, protocol := range []string{"-s", "-O"} {
		m.must("", "scp", protocol, "up", "sandbox:scp"+protocol)
		same(filepath.Join(m.work, "scp"+protocol))
		m.must("", "scp", protocol, "sandbox:scp"+protocol, "down"+protocol)
		same(filepath.Join(m.dir, "down"+protocol))
	}
	out := m.must("put up by-sftp\nmkdir d\nrename by-sftp d/file\nchmod 600 d/file\nsymlink file d/link\nls -1 d\nget d/link got\npwd\nrm d/link\ndf .\n", "sftp", "-b", "-", "sandbox")
	same(filepath.Join(m.work, "d/file"))
	same(filepath.Join(m.dir, "got"))
	if !strings.Contains(out, "Remote working directory: "+m.work) || !strings.Contains(out, "d/link") {
		t.Error(out)
	}
	if _, errs, code := m.run("get nothing\n", "sftp", "-b", "-", "sandbox"); code == 0 || !strings.Contains(errs, "not found") {
		t.Errorf("%d %s", code, errs)
	}
	if _, err := exec.LookPath("rsync"); err != nil {
		t.Skip(err)
	}
	tree := filepath.Join(m.dir, "tree")
	for i := range 20 {
		p := filepath.Join(tree, fmt.Sprint(i%3), fmt.Sprint(i))
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, content[:1000*i], 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // the second finds it all there
		cmd := exec.Command("rsync", "-a", "-e", "ssh -F "+m.config, tree+"/", "sandbox:tree/")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	if out, err := exec.Command("diff", "-r", tree, filepath.Join(m.work, "tree")).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// echo serves one line for each that it gets.
func echo(t *testing.T, network, address string) net.Listener {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	if network == "unix" {
		_ = os.Chmod(address, 0o777)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	return l
}

// ask sends a message and the end of input, and returns all that comes back.
func ask(t *testing.T, network, address string) string {
	t.Helper()
	var c net.Conn
	var err error
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if c, err = net.Dial(network, address); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	defer c.Close()
	fmt.Fprint(c, "hello through")
	_ = c.(interface{ CloseWrite() error }).CloseWrite()
	b, err := io.ReadAll(c)
	if err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Error(err)
	}
	return string(b)
}

// background runs ssh until the end of the test.
func (m *machine) background(args ...string) {
	m.t.Helper()
	cmd := exec.Command("ssh", append([]string{"-F", m.config, "-o", "ExitOnForwardFailure=yes", "-N"}, args...)...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() {
		// OpenSSH 9.2 overlooks a SIGTERM that comes just before it waits, until
		// something else happens.
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if m.t.Failed() {
			m.t.Logf("%v:\n%s", args, &errs)
		}
	})
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

func TestForwarding(t *testing.T) {
	m := start(t, "")
	tcp := echo(t, "tcp", "127.0.0.1:0").Addr().String()
	unix := echo(t, "unix", filepath.Join(m.work, "server")).Addr().String()
	local, remote, socks := freePort(t), freePort(t), freePort(t)
	m.background(
		"-L", local+":"+tcp,
		"-L", m.dir+"/local:"+m.work+"/server",
		"-R", remote+":"+tcp,
		"-R", m.work+"/remote:"+unix,
		"-D", socks,
		"sandbox")
	for _, at := range [][2]string{{"tcp", "127.0.0.1:" + local}, {"unix", m.dir + "/local"}, {"tcp", "127.0.0.1:" + remote}, {"unix", m.work + "/remote"}} {
		if got := ask(t, at[0], at[1]); got != "hello through" {
			t.Errorf("%v: %q", at, got)
		}
	}
	if info, err := os.Stat(m.work + "/remote"); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v; want a socket for the user alone", info, err)
	}
	if got := m.must("through "+tcp, "ssh", "-W", tcp, "sandbox"); got != "through "+tcp {
		t.Errorf("%q", got)
	}
	if _, errs, code := m.run("", "ssh", "-W", "127.0.0.1:"+freePort(t), "sandbox"); code == 0 || !strings.Contains(errs, "refused") {
		t.Errorf("%d %s", code, errs)
	}
	// With port 0 the server chooses, and says so.
	if _, errs, _ := m.run("", "ssh", "-R", "0:"+tcp, "sandbox", "true"); !strings.Contains(errs, "Allocated port") {
		t.Error(errs)
	}
}

// TestAgentForwarding wants the client's agent in the sandbox only if whoever
// opened the connection does, too.
func TestAgentForwarding(t *testing.T) {
	dir := t.TempDir()
	out, err := exec.Command("ssh-agent", "-a", dir+"/agent").CombinedOutput()
	if err != nil {
		t.Skipf("%v: %s", err, out)
	}
	var pid int
	if _, after, ok := strings.Cut(string(out), "SSH_AGENT_PID="); ok {
		fmt.Sscan(after, &pid)
	}
	t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGTERM) })
	t.Setenv("SSH_AUTH_SOCK", dir+"/agent")
	key := dir + "/key"
	if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "client's own", "-f", key).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if out, err := exec.Command("ssh-add", "-q", key).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	const list = `echo "socket=${SSH_AUTH_SOCK+set}"; ssh-add -l | grep -o "client's own"; true`
	if got := start(t, "?"+wire.SSHAgentForwarding+"=true").must("", "ssh", "-A", "sandbox", list); got != "socket=set\nclient's own\n" {
		t.Errorf("allowed: %q", got)
	}
	if got := start(t, "").must("", "ssh", "-A", "sandbox", list); got != "socket=\n" {
		t.Errorf("not allowed: %q", got)
	}
}

// TestHangUp ends what nobody listens to any more, and leaves alone what was
// put in the background.
func TestHangUp(t *testing.T) {
	m := start(t, "")
	cmd := exec.Command("ssh", "-F", m.config, "sandbox", `(trap "" HUP; echo $$ >background; exec sleep 15) >/dev/null 2>&1 </dev/null & trap "echo hup >said; exit" HUP; echo ready; while :; do sleep 0.05; done`)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line := make([]byte, 6); true {
		if _, err := io.ReadFull(out, line); err != nil {
			t.Fatal(err)
		}
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	eventually(t, "the program is told", func() bool {
		b, _ := os.ReadFile(filepath.Join(m.work, "said"))
		return string(b) == "hup\n"
	})
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("did not happen: " + what)
		}
	}
}

// TestLarge moves much data both ways at once.
func TestLarge(t *testing.T) {
	m := start(t, "")
	const size = 32 << 20
	cmd := exec.Command("ssh", "-F", m.config, "sandbox", "cat")
	in, _ := cmd.StdinPipe()
	out, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	go func() {
		defer in.Close()
		block := make([]byte, 1<<20)
		for i := range size >> 20 {
			block[0] = byte(i)
			if _, err := in.Write(block); err != nil {
				return
			}
		}
	}()
	n, err := io.Copy(io.Discard, out)
	if err != nil || n != size {
		t.Errorf("%d of %d bytes, %v", n, size, err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	t.Logf("%.0f MB/s there and back", float64(size)/1e6/time.Since(begin).Seconds())
}

// TestRemoteEditor does what the remote part of VS Code does: it has a shell read
// an installer from its standard input, waits for a marked answer, with a SOCKS
// proxy on the same connection, and talks to the server that the installer started
// through that. Another connection, after the end of the first, finds the server
// where it was.
func TestRemoteEditor(t *testing.T) {
	if _, err := exec.LookPath("python3"); err != nil {
		t.Skip(err) // the editor's server
	}
	m := start(t, "")
	server := `import http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(101)
        self.send_header("Connection", "Upgrade")
        self.end_headers()
        self.wfile.write(b"editor %d\n" % os.getpid())
        self.wfile.write(b"you said " + self.rfile.readline())
        self.close_connection = True
s = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print("Extension host agent listening on", s.server_port, flush=True)
s.serve_forever()`
	// Every connection runs it: only the first has something to do.
	installer := `
echo "4f1c: running"
mkdir -p .vscode-server/bin && cd .vscode-server
uname -s >&2; uname -m >&2
if ! kill -0 $(cat pid 2>/dev/null) 2>/dev/null; then
	base64 -d >bin/server.py <<'END'
` + base64.StdEncoding.EncodeToString([]byte(server)) + `
END
	nohup python3 bin/server.py >log 2>&1 </dev/null &
	echo $! >pid
fi
until port=$(sed -n 's/^Extension host agent listening on //p' log) && test "$port"; do sleep 0.01; done
echo "4f1c: start"
echo "listeningOn==$port=="
echo "4f1c: end"
cat >/dev/null
`
	var first string
	for range 2 {
		socks := freePort(t)
		cmd := exec.Command("ssh", "-F", m.config, "-T", "-D", socks, "-o", "ConnectTimeout=15", "sandbox", "bash")
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(in, installer); err != nil {
			t.Fatal(err)
		}
		var text []byte
		for buf := make([]byte, 1024); !bytes.Contains(text, []byte("4f1c: end")); {
			n, err := out.Read(buf)
			if err != nil {
				t.Fatalf("%v\n%s", err, text)
			}
			text = append(text, buf[:n]...)
		}
		var port int
		if _, err := fmt.Sscanf(string(text), "4f1c: running\n4f1c: start\nlisteningOn==%d==\n", &port); err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		// SOCKS 5, no authentication, connect to an IPv4 address: RFC 1928.
		c, err := net.Dial("tcp", "127.0.0.1:"+socks)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, _ = c.Write([]byte{5, 1, 0})
		answer := make([]byte, 10)
		if _, err := io.ReadFull(c, answer[:2]); err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write([]byte{5, 1, 0, 1, 127, 0, 0, 1, byte(port >> 8), byte(port)})
		if _, err := io.ReadFull(c, answer); err != nil || answer[1] != 0 {
			t.Fatal(answer, err)
		}
		fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\n\r\nhello editor\n")
		got, err := io.ReadAll(c)
		_, got, ok := bytes.Cut(got, []byte("\r\n\r\n"))
		if err != nil || !ok || !bytes.HasSuffix(got, []byte("\nyou said hello editor\n")) {
			t.Errorf("%q, %v", got, err)
		}
		if first == "" {
			first = string(got)
			var pid int
			if _, err := fmt.Sscanf(first, "editor %d\n", &pid); err != nil || pid <= 1 {
				t.Fatalf("%q: %v", first, err)
			}
			t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGKILL) })
		} else if string(got) != first {
			t.Errorf("it was %q, and is %q", first, got)
		}
		// While a forwarded connection is open, ssh does not end.
		c.Close()
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	}
}

// TestManyAtOnce uses one connection for many sessions.
func TestManyAtOnce(t *testing.T) {
	m := start(t, "")
	socket := m.dir + "/c"
	m.background("-M", "-S", socket, "sandbox")
	eventually(t, "the first connection", func() bool { _, err := os.Stat(socket); return err == nil })
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			out, errs, code := m.run("", "ssh", "-S", socket, "sandbox", fmt.Sprintf("echo %d; exit %d", i, i))
			if out != fmt.Sprintln(i) || code != i {
				t.Errorf("%d: %d %q %s", i, code, out, errs)
			}
		})
	}
	wg.Wait()
}
