package backendtest

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/daytona-go/daytona"
)

// sshClient logs in to a sandbox that proves to be the one.
func (c *env) sshClient(sb daytona.Sandbox, opts *daytona.SSHOptions) *ssh.Client {
	keys, err := sb.SSH().HostKeys(c.ctx)
	c.try("host keys", err)
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(keys[0]))
	c.try("host key", err)
	conn, err := sb.SSH().Dial(c.ctx, opts)
	c.try("dial", err)
	_ = conn.SetDeadline(time.Now().Add(c.slow(30 * time.Second)))
	client, channels, requests, err := ssh.NewClientConn(conn, "sandbox", &ssh.ClientConfig{User: "anybody", HostKeyCallback: ssh.FixedHostKey(key)})
	c.try("log in", err)
	return ssh.NewClient(client, channels, requests)
}

// checkSSH uses the server with a client in Go; OpenSSH's programs have their
// tests in toolbox/ssh.
func checkSSH(c *env) {
	sb := c.create()
	client := c.sshClient(sb, nil)
	defer client.Close()
	// Only who reads is given something: who has ended before takes no more.
	run := func(command, stdin string) (string, error) {
		s, err := client.NewSession()
		c.try("session", err)
		defer s.Close()
		var out bytes.Buffer
		s.Stdin, s.Stdout = strings.NewReader(stdin), &out
		err = s.Run(command)
		return out.String(), err
	}
	for command, test := range map[string]struct{ stdin, want string }{
		"pwd": {want: sb.Info().WorkDir + "\n"}, "cat": {"input", "input"}, "echo out; echo err >&2": {want: "out\n"},
	} {
		if got, err := run(command, test.stdin); err != nil || got != test.want {
			c.Errorf("%s: %q, %v; want %q", command, got, err, test.want)
		}
	}
	// The same user as everybody's.
	r, err := sb.Process().Exec(c.ctx, "id", nil)
	c.try("exec", err)
	if got, err := run("id", ""); err != nil || got != r.Output {
		c.Errorf("id: %q, %v; want %q", got, err, r.Output)
	}
	_, err = run("exit 42", "")
	if exit, ok := errors.AsType[*ssh.ExitError](err); !ok || exit.ExitStatus() != 42 {
		c.Errorf("exit 42: %v", err)
	}
	_, err = run("kill -TERM $$", "")
	if exit, ok := errors.AsType[*ssh.ExitError](err); !ok || exit.Signal() != "TERM" {
		c.Errorf("kill -TERM $$: %v", err)
	}
	// Its agent stays the client's.
	s, err := client.NewSession()
	c.try("session", err)
	if ok, err := s.SendRequest("auth-agent-req@openssh.com", true, nil); ok || err != nil {
		c.Errorf("agent forwarding that nobody allowed: %v, %v", ok, err)
	}
	s.Close()
	allowed := c.sshClient(sb, &daytona.SSHOptions{AgentForwarding: true})
	defer allowed.Close()
	s, err = allowed.NewSession()
	c.try("session", err)
	if ok, err := s.SendRequest("auth-agent-req@openssh.com", true, nil); !ok || err != nil {
		c.Errorf("agent forwarding that was allowed: %v, %v", ok, err)
	}
	s.Close()
	// A port that the client listens to, used from inside.
	l, err := client.Listen("tcp", "127.0.0.1:0")
	c.try("remote forwarding", err)
	defer l.Close()
	go func() {
		if conn, err := l.Accept(); err == nil {
			_, _ = io.WriteString(conn, "from outside")
			conn.Close()
		}
	}()
	port := l.Addr().String()[strings.LastIndexByte(l.Addr().String(), ':')+1:]
	conn, err := client.Dial("tcp", "127.0.0.1:"+port)
	c.try("local forwarding", err)
	got, err := io.ReadAll(conn)
	if err != nil || string(got) != "from outside" {
		c.Errorf("through both: %q, %v", got, err)
	}
	conn.Close()
	other := c.create()
	keys, err := sb.SSH().HostKeys(c.ctx)
	c.try("host keys", err)
	others, err := other.SSH().HostKeys(c.ctx)
	c.try("host keys", err)
	if others[0] == keys[0] {
		c.Errorf("two sandboxes prove to be the same: %s", keys[0])
	}
}

// checkWebTerminal looks at the page that the agent serves in the place of port
// 22222.
func checkWebTerminal(c *env) {
	sb := c.create()
	conn, err := sb.DialPort(c.ctx, 22222)
	c.try("dial", err)
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(c.slow(10 * time.Second)))
	_, err = io.WriteString(conn, "GET / HTTP/1.0\r\nHost: sandbox\r\n\r\n")
	c.try("write", err)
	b, err := io.ReadAll(conn)
	c.try("read", err)
	if !bytes.HasPrefix(b, []byte("HTTP/1.0 200 OK")) || !bytes.Contains(b, []byte("Content-Security-Policy")) || !bytes.Contains(b, []byte("terminal.js")) {
		c.Errorf("%s", b)
	}
}
