package ssh

import (
	"encoding/binary"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"github.com/daytona-go/daytona/toolbox/process"
)

// newConnection is one of a helper, in a directory of its own.
func newConnection(t testing.TB) *connection {
	t.Helper()
	dir := t.TempDir()
	spawner, err := process.NewSpawner(process.Options{WorkDir: dir, Environ: func() []string { return []string{"HOME=" + dir} }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(spawner.Close)
	return &connection{
		config: helperConfig{HostKey: make([]byte, 32), WorkDir: dir}, spawner: spawner,
		forwards: make(map[string]*forward), limit: rate.NewLimiter(rate.Inf, 0),
	}
}

// connect serves one client over a pair of sockets, without login.
func connect(t testing.TB, c *connection) (client ssh.Conn, channels <-chan ssh.NewChannel, ended <-chan error) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan error, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			done <- err
			return
		}
		done <- c.serve(conn)
	}()
	conn, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	client, channels, requests, err := ssh.NewClientConn(conn, "", &ssh.ClientConfig{HostKeyCallback: ssh.InsecureIgnoreHostKey()})
	if err != nil {
		t.Fatal(err)
	}
	go ssh.DiscardRequests(requests)
	t.Cleanup(func() { client.Close() })
	return client, channels, done
}

func accepted(t testing.TB, client ssh.Conn, kind string, payload any) (ssh.Channel, error) {
	t.Helper()
	var b []byte
	if payload != nil {
		b = ssh.Marshal(payload)
	}
	ch, requests, err := client.OpenChannel(kind, b)
	if err == nil {
		go ssh.DiscardRequests(requests)
	}
	return ch, err
}

// TestLimits has a client that wants all there is.
func TestLimits(t *testing.T) {
	client, _, ended := connect(t, newConnection(t))
	var open []ssh.Channel
	for {
		ch, err := accepted(t, client, "session", nil)
		if err != nil {
			if e, ok := err.(*ssh.OpenChannelError); !ok || e.Reason != ssh.ResourceShortage {
				t.Error(err)
			}
			break
		}
		if open = append(open, ch); len(open) > maxChannels {
			t.Fatalf("%d channels", len(open))
		}
	}
	if len(open) != maxChannels {
		t.Errorf("%d channels", len(open))
	}
	env := 0
	for range maxVariables + 10 {
		ok, err := open[0].SendRequest("env", true, ssh.Marshal(setEnv{Name: "V" + string(rune('A'+env%26)) + string(rune('A'+env/26)), Value: "x"}))
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			break
		}
		env++
	}
	if env != maxVariables {
		t.Errorf("%d variables", env)
	}
	if ok, _ := open[1].SendRequest("env", true, ssh.Marshal(setEnv{Name: "LONG", Value: string(bytesOf('x', maxEnvironment))})); ok {
		t.Error("an endless variable")
	}
	for _, bad := range []setEnv{{"A=B", "x"}, {"", "x"}, {"A", "x\x00y"}, {"1A", ""}} {
		if ok, _ := open[1].SendRequest("env", true, ssh.Marshal(bad)); ok {
			t.Errorf("%q", bad)
		}
	}
	for _, ch := range open {
		ch.Close()
	}
	// A place that was given back can be had again.
	for deadline := time.Now().Add(20 * time.Second); ; {
		ch, err := accepted(t, client, "session", nil)
		if err == nil {
			ch.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	listeners := 0
	for range maxListeners + 10 {
		ok, _, err := client.SendRequest("tcpip-forward", true, ssh.Marshal(tcpForward{Host: "localhost"}))
		if err != nil {
			t.Fatal(err)
		}
		if ok {
			listeners++
		}
	}
	if listeners != maxListeners {
		t.Errorf("%d listeners", listeners)
	}
	// Who wanted no more sessions gets none.
	if ok, _, err := client.SendRequest("no-more-sessions@openssh.com", true, nil); !ok || err != nil {
		t.Error(ok, err)
	}
	if _, err := accepted(t, client, "session", nil); err == nil {
		t.Error("one more session")
	}
	if _, err := accepted(t, client, "x11", nil); err == nil {
		t.Error("a channel of X11")
	}
	client.Close()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func bytesOf(c byte, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = c
	}
	return b
}

// TestOnce: a session runs one thing, and what comes after it began is refused.
func TestOnce(t *testing.T) {
	client, _, _ := connect(t, newConnection(t))
	ch, err := accepted(t, client, "session", nil)
	if err != nil {
		t.Fatal(err)
	}
	if ok, _ := ch.SendRequest("window-change", true, ssh.Marshal(windowChange{Cols: 1, Rows: 1})); ok {
		t.Error("a window without a terminal")
	}
	if ok, _ := ch.SendRequest("exec", true, ssh.Marshal(execRequest{"cat"})); !ok {
		t.Fatal("cat was refused")
	}
	for kind, payload := range map[string][]byte{
		"exec": ssh.Marshal(execRequest{"id"}), "shell": nil, "subsystem": ssh.Marshal(subsystem{"sftp"}), "pty-req": ssh.Marshal(ptyRequest{Term: "xterm"}),
		"env": ssh.Marshal(setEnv{"A", "B"}), "auth-agent-req@openssh.com": nil, "x11-req": nil, "nonsense": nil,
	} {
		if ok, err := ch.SendRequest(kind, true, payload); ok || err != nil {
			t.Errorf("%s: %v, %v", kind, ok, err)
		}
	}
	if ok, _ := ch.SendRequest("signal", true, ssh.Marshal(signalName{"USR9"})); ok {
		t.Error("a signal that is none")
	}
	if ok, _ := ch.SendRequest("signal", true, ssh.Marshal(signalName{"TERM"})); !ok {
		t.Error("SIGTERM was refused")
	}
	if _, err := io.ReadAll(ch); err != nil {
		t.Error(err)
	}
}

// FuzzRequests has a client send requests that no client sends.
func FuzzRequests(f *testing.F) {
	for kind, payload := range map[string][]byte{
		"env": ssh.Marshal(setEnv{"A", "B"}), "pty-req": ssh.Marshal(ptyRequest{Term: "xterm", Cols: 80, Rows: 1 << 31, Modes: "\x01\x00\x00\x00\x03\x00"}),
		"window-change": ssh.Marshal(windowChange{1, 2, 3, 4}), "signal": ssh.Marshal(signalName{"HUP"}), "subsystem": ssh.Marshal(subsystem{"sftp"}),
		"auth-agent-req@openssh.com": nil, "eow@openssh.com": nil, "tcpip-forward": ssh.Marshal(tcpForward{"localhost", 1}),
		"cancel-tcpip-forward": ssh.Marshal(tcpForward{"localhost", 1}), "cancel-streamlocal-forward@openssh.com": ssh.Marshal(unixForward{"x"}),
		"keepalive@openssh.com": nil, "no-more-sessions@openssh.com": nil, "direct-tcpip": ssh.Marshal(tcpChannel{Host: "h", Port: 1 << 20}),
	} {
		f.Add(kind, payload)
		f.Add(kind, append(payload, 0xff))
		f.Add(kind, payload[:len(payload)/2])
	}
	c := newConnection(f)
	client, _, _ := connect(f, c)
	f.Fuzz(func(t *testing.T, kind string, payload []byte) {
		switch kind {
		case "exec", "shell", "disconnect": // what these run is not under test here
			return
		case "streamlocal-forward@openssh.com", "tcpip-forward":
			// No files and ports of any name: only what is refused.
			var m tcpForward
			if ssh.Unmarshal(payload, &m) == nil || ssh.Unmarshal(payload, &unixForward{}) == nil {
				return
			}
		}
		if _, _, err := client.SendRequest(kind, true, payload); err != nil {
			t.Fatalf("%q %q ended the connection: %v", kind, payload, err)
		}
		c.single.Store(false)
		ch, err := accepted(t, client, "session", nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ch.SendRequest(kind, true, payload); err != nil && err != io.EOF {
			t.Fatalf("%q %q: %v", kind, payload, err)
		}
		ch.Close()
		if kind == "session" || kind == "direct-streamlocal@openssh.com" || kind == "direct-tcpip" {
			var m tcpChannel
			if ssh.Unmarshal(payload, &m) == nil || kind != "direct-tcpip" {
				return // nowhere that exists
			}
		}
		if ch, _, err := client.OpenChannel(kind, payload); err == nil {
			ch.Close()
		} else if _, refused := err.(*ssh.OpenChannelError); !refused {
			t.Fatalf("channel %q %q: %v", kind, payload, err)
		}
	})
}

// FuzzModes sets any modes on a real terminal.
func FuzzModes(f *testing.F) {
	f.Add("\x03\x00\x00\x00\x08\x35\x00\x00\x00\x00\x00")
	f.Add("\x80\x00\x00\x96\x00\x48\x00\x00\x00\x01\xa0\x00\x00\x00\x01\x35\x00\x00\x00\x00")
	f.Add("\x03\x00")
	f.Fuzz(func(t *testing.T, encoded string) {
		var before, after unix.Termios
		setModes(&after, encoded)
		if after.Cflag != before.Cflag || after.Ispeed != before.Ispeed {
			t.Errorf("%q changes what no terminal mode is about", encoded)
		}
	})
}

// FuzzHandshake has a client that speaks anything but SSH. The connection ends,
// and in time.
func FuzzHandshake(f *testing.F) {
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Add([]byte("SSH-2.0-x\r\n\x00\x00\x00\x0c\x0a\x14\x00\x00"))
	f.Add(append([]byte("SSH-2.0-x\r\n"), binary.BigEndian.AppendUint32(nil, 1<<31)...))
	f.Add([]byte("SSH-1.0-x\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c := newConnection(t)
		theirs, ours := net.Pipe()
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = io.Copy(io.Discard, ours) })
		wg.Go(func() {
			_, _ = ours.Write(b)
			ours.Close()
		})
		_ = c.serve(theirs)
		wg.Wait()
	})
}

// TestPrivate: no moment passes in which others could connect.
func TestPrivate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := listenPrivate(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	l.Close()
	if _, err := os.Stat(path); err == nil {
		t.Error("the socket is left")
	}
}
