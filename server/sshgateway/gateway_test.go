package sshgateway_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/sshgateway"
	"github.com/daytona-go/daytona/server/store"
	"github.com/daytona-go/daytona/server/store/storetest"
	"github.com/daytona-go/daytona/toolbox"
	"github.com/daytona-go/daytona/toolbox/reexec"
)

// This program is also the helpers of the agents in it.
func TestMain(m *testing.M) {
	reexec.Main(os.Args[1:])
	os.Exit(m.Run())
}

const (
	token   = "abcdefghijklmnopqrstuvwxyz012345"
	sandbox = "aaaaaaaa-0000-4000-8000-000000000001"
)

// world is a gateway that serves, and what is around it.
type world struct {
	t       *testing.T
	gateway *sshgateway.Gateway
	db      *store.DB
	address string
	dir     string // the sandbox's working directory
	known   string // a known_hosts file

	mu     sync.Mutex
	access map[string]sshgateway.Access
	socket string
	touch  int
	log    bytes.Buffer
}

func (w *world) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.log.Write(p)
}

func (w *world) SSHAccess(_ context.Context, token string) (sshgateway.Access, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	a, ok := w.access[token]
	if !ok {
		return a, daytona.ErrNotFound
	}
	return a, nil
}

func (w *world) Dial(ctx context.Context, id string) (net.Conn, error) {
	if id != sandbox {
		return nil, errors.New("no such sandbox")
	}
	return new(net.Dialer).DialContext(ctx, "unix", w.socket)
}

func (w *world) set(token string, a *sshgateway.Access) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if a == nil {
		delete(w.access, token)
		return
	}
	w.access[token] = *a
}

func newWorld(t *testing.T, change func(*sshgateway.Config)) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), access: map[string]sshgateway.Access{token: {SandboxID: sandbox, State: "started", Expires: time.Now().Add(time.Hour)}}}
	dir, err := os.MkdirTemp("", "gw") // short: a socket's path has 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	w.socket = filepath.Join(dir, "s")
	l, err := net.Listen("unix", w.socket)
	if err != nil {
		t.Fatal(err)
	}
	agent, err := toolbox.New(t.Context(), toolbox.Config{WorkDir: w.dir}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = agent.Serve(ctx, l) })
	t.Cleanup(func() { cancel(); wg.Wait(); _ = agent.Close() })

	key, err := sshgateway.HostKey(filepath.Join(t.TempDir(), "new", "hostkey"))
	if err != nil {
		t.Fatal(err)
	}
	c := sshgateway.Config{Tokens: w, Dialer: w, HostKey: key, Log: slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Touch: func(string) { w.mu.Lock(); w.touch++; w.mu.Unlock() }}
	if change != nil {
		change(&c)
	}
	if w.gateway, err = sshgateway.New(c); err != nil {
		t.Fatal(err)
	}
	w.db = storetest.Open(t, storetest.SQLite(t))
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.address = tcp.Addr().String()
	wg.Go(func() { _ = w.gateway.Serve(ctx, tcp) })
	wg.Go(func() { w.gateway.Run(ctx, w.db, "changed") })
	t.Cleanup(func() { cancel(); wg.Wait() })
	line, err := base64.StdEncoding.DecodeString(w.gateway.PublicKey())
	if err != nil {
		t.Fatal(err)
	}
	w.known = filepath.Join(t.TempDir(), "known_hosts")
	host, port, _ := net.SplitHostPort(w.address)
	if err := os.WriteFile(w.known, fmt.Appendf(nil, "[%s]:%s %s\n", host, port, line), 0o600); err != nil {
		t.Fatal(err)
	}
	return w
}

// openssh runs one of OpenSSH's programs.
func (w *world) openssh(program string, stdin string, args ...string) (out string, code int) {
	w.t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		w.t.Skip(program + " is not installed")
	}
	_, port, _ := net.SplitHostPort(w.address)
	options := []string{"-F", "/dev/null", "-o", "UserKnownHostsFile=" + w.known, "-o", "StrictHostKeyChecking=yes", "-o", "BatchMode=yes", "-o", "Port=" + port}
	ctx, cancel := context.WithTimeout(w.t.Context(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, append(options, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	cmd.Env = append(os.Environ(), "SSH_AUTH_SOCK=")
	b, err := cmd.CombinedOutput()
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		return string(b), e.ExitCode()
	} else if err != nil {
		w.t.Fatalf("%v: %s", err, b)
	}
	return string(b), 0
}

const at = token + "@127.0.0.1"

// OpenSSH's own programs work as with any server.
func TestOpenSSH(t *testing.T) {
	w := newWorld(t, nil)
	if out, code := w.openssh("ssh", "", at, "echo out; echo err >&2; pwd; exit 7"); code != 7 || !strings.Contains(out, "out\n") || !strings.Contains(out, "err\n") || !strings.Contains(out, w.dir) {
		t.Errorf("%d %s", code, out)
	}
	if out, code := w.openssh("ssh", "some input", at, "cat; echo; kill -TERM $$"); code != 255 || !strings.Contains(out, "some input") {
		t.Errorf("%d %s", code, out)
	}
	if out, code := w.openssh("ssh", "stty size; tty; exit 3\n", "-tt", at); code != 3 || !strings.Contains(out, "/dev/pts/") {
		t.Errorf("%d %s", code, out)
	}
	big := strings.Repeat("0123456789abcdef", 1<<16)
	local := filepath.Join(t.TempDir(), "local")
	if err := os.WriteFile(local, []byte(big), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, code := w.openssh("scp", "", local, at+":copy"); code != 0 {
		t.Errorf("%d %s", code, out)
	}
	if b, err := os.ReadFile(filepath.Join(w.dir, "copy")); err != nil || string(b) != big {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if out, code := w.openssh("sftp", "rename copy moved\nget moved "+local+".2\nls -l\n", "-b", "-", at); code != 0 || !strings.Contains(out, "moved") {
		t.Errorf("%d %s", code, out)
	}
	if b, err := os.ReadFile(local + ".2"); err != nil || string(b) != big {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.touch == 0 {
		t.Error("nobody was told that the sandbox is in use")
	}
	if strings.Contains(w.log.String(), token) {
		t.Error("the token is in the log")
	}
}

func (w *world) dial(user string) (*ssh.Client, error) {
	line, err := base64.StdEncoding.DecodeString(w.gateway.PublicKey())
	if err != nil {
		w.t.Fatal(err)
	}
	key, _, _, _, err := ssh.ParseAuthorizedKey(line)
	if err != nil {
		w.t.Fatal(err)
	}
	return ssh.Dial("tcp", w.address, &ssh.ClientConfig{User: user, HostKeyCallback: ssh.FixedHostKey(key), Timeout: 20 * time.Second,
		Auth: []ssh.AuthMethod{ssh.Password("guess")}})
}

func TestLogin(t *testing.T) {
	w := newWorld(t, func(c *sshgateway.Config) { c.FailuresPerMinute = 4 })
	w.set("expired", &sshgateway.Access{SandboxID: sandbox, State: "started", Expires: time.Now().Add(-time.Second)})
	for _, user := range []string{"", "root", "expired", strings.Repeat("x", 1000)} {
		if c, err := w.dial(user); err == nil {
			c.Close()
			t.Errorf("%q may", user)
		}
	}
	// Who has guessed that often has to wait, whatever comes next.
	if c, err := w.dial(token); err == nil {
		c.Close()
		t.Error("a guesser may go on at once")
	}
}

// What is not for the sandbox alone is not done.
func TestForwarding(t *testing.T) {
	w := newWorld(t, nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); io.Copy(c, c) }()
		}
	}()
	c, err := w.dial(token)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	for _, host := range []string{"localhost", "127.0.0.1"} {
		conn, err := c.Dial("tcp", net.JoinHostPort(host, port))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(conn, "ping")
		conn.(interface{ CloseWrite() error }).CloseWrite()
		if b, err := io.ReadAll(conn); err != nil || string(b) != "ping" {
			t.Errorf("%q %v", b, err)
		}
		conn.Close()
	}
	for _, host := range []string{"169.254.169.254", "10.0.0.1", "example.com", "0.0.0.0", "::ffff:10.0.0.1"} {
		if conn, err := c.Dial("tcp", net.JoinHostPort(host, port)); err == nil {
			conn.Close()
			t.Errorf("%s can be reached", host)
		}
	}
	if ok, _, err := c.SendRequest("tcpip-forward", true, ssh.Marshal(struct {
		Host string
		Port uint32
	}{"0.0.0.0", 0})); ok || err != nil {
		t.Errorf("%v %v", ok, err)
	}
	if ok, _, err := c.SendRequest("keepalive@openssh.com", true, nil); !ok || err != nil {
		t.Errorf("%v %v", ok, err)
	}
	if _, _, err := c.OpenChannel("x11", nil); err == nil {
		t.Error("a channel for X11 is opened")
	}
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, kind := range []string{"auth-agent-req@openssh.com", "x11-req"} {
		if ok, err := s.SendRequest(kind, true, nil); ok || err != nil {
			t.Errorf("%s: %v %v", kind, ok, err)
		}
	}
	if out, err := s.CombinedOutput("echo ${SSH_AUTH_SOCK:-none}"); err != nil || string(out) != "none\n" {
		t.Errorf("%s %v", out, err)
	}
}

func TestNotStarted(t *testing.T) {
	w := newWorld(t, nil)
	w.set(token, &sshgateway.Access{SandboxID: sandbox, State: "stopped", Expires: time.Now().Add(time.Hour)})
	for _, args := range [][]string{{at, "true"}, {"-tt", at}, {at}} {
		if out, code := w.openssh("ssh", "", args...); code != 1 || !strings.Contains(out, "Sandbox is not started (state: stopped). Please start the sandbox before attempting to connect.") {
			t.Errorf("%v: %d %s", args, code, out)
		}
	}
	w.set(token, &sshgateway.Access{SandboxID: "another", State: "started", Expires: time.Now().Add(time.Hour)})
	if out, code := w.openssh("ssh", "", at, "true"); code != 1 || !strings.Contains(out, "can't be reached") {
		t.Errorf("%d %s", code, out)
	}
}

// A connection ends with its token: when that is revoked, when it is over, and
// when the sandbox is another's.
func TestEnds(t *testing.T) {
	for name, c := range map[string]struct {
		expires time.Duration
		then    func(w *world)
	}{
		"revoked": {time.Hour, func(w *world) { w.set(token, nil) }},
		"expired": {1500 * time.Millisecond, func(w *world) {}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, nil)
			w.set(token, &sshgateway.Access{SandboxID: sandbox, State: "started", Expires: time.Now().Add(c.expires)})
			client, err := w.dial(token)
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			s, err := client.NewSession()
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Start("sleep 100"); err != nil {
				t.Fatal(err)
			}
			// What is published about others changes nothing.
			w.db.Publish(t.Context(), "changed", "other")
			c.then(w)
			sum := sha256.Sum256([]byte(token))
			w.db.Publish(t.Context(), "changed", hex.EncodeToString(sum[:]))
			began := time.Now()
			done := make(chan error, 1)
			go func() { done <- client.Wait() }()
			select {
			case <-done:
				if d := time.Since(began); d > time.Second+c.expires%time.Minute {
					t.Errorf("after %v", d)
				}
			case <-time.After(5 * time.Second):
				t.Fatal("it is still open")
			}
		})
	}
}

func TestHostKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "key")
	one, err := sshgateway.HostKey(path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	two, err := sshgateway.HostKey(path)
	if err != nil || sshgateway.PublicKey(one) != sshgateway.PublicKey(two) {
		t.Errorf("%v", err)
	}
	b, _ := os.ReadFile(path)
	three, err := sshgateway.ParseHostKey([]byte(base64.StdEncoding.EncodeToString(b)))
	if err != nil || sshgateway.PublicKey(three) != sshgateway.PublicKey(one) {
		t.Errorf("%v", err)
	}
	if _, err := sshgateway.ParseHostKey([]byte("secret")); !errors.Is(err, daytona.ErrInvalid) || strings.Contains(err.Error(), "secret") {
		t.Error(err)
	}
}
