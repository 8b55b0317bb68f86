package ssh_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"net"
	"os"
	"sync/atomic"
	"testing"
	"time"

	cryptossh "golang.org/x/crypto/ssh"

	"github.com/daytona-go/daytona/toolbox/process"
	"github.com/daytona-go/daytona/toolbox/ssh"
	"github.com/daytona-go/daytona/toolbox/wire"
)

// TestGateway logs in as the gateways of the public API do.
func TestGateway(t *testing.T) {
	spawner, err := process.NewSpawner(process.Options{WorkDir: t.TempDir(), Environ: func() []string { return []string{"PATH=" + os.Getenv("PATH")} }})
	if err != nil {
		t.Fatal(err)
	}
	defer spawner.Close()
	var active atomic.Int32
	s := ssh.New(ssh.Options{Spawner: spawner, Active: func() func() {
		active.Add(1)
		return func() { active.Add(-1) }
	}})
	defer s.Close()
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(t.Context(), l) }()
	_, key, _ := ed25519.GenerateKey(rand.Reader)
	signer, err := cryptossh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dial := func(methods ...cryptossh.AuthMethod) (*cryptossh.Client, error) {
		return cryptossh.Dial("tcp", l.Addr().String(), &cryptossh.ClientConfig{
			User: "daytona", Auth: methods, HostKeyCallback: cryptossh.InsecureIgnoreHostKey(), Timeout: time.Minute,
		})
	}
	for name, method := range map[string]cryptossh.AuthMethod{"password": cryptossh.Password(wire.SSHPassword), "public key": cryptossh.PublicKeys(signer)} {
		client, err := dial(method)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		session, err := client.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		if out, err := session.Output("echo in"); err != nil || string(out) != "in\n" {
			t.Errorf("%s: %q, %v", name, out, err)
		}
		if active.Load() == 0 {
			t.Error("a connection is no activity")
		}
		client.Close()
	}
	for name, methods := range map[string][]cryptossh.AuthMethod{"nothing": nil, "a wrong password": {cryptossh.Password("guess")}} {
		if client, err := dial(methods...); err == nil {
			client.Close()
			t.Errorf("%s logs in", name)
		}
	}
	eventually(t, "the end of the activity", func() bool { return active.Load() == 0 })
	l.Close()
	if err := <-served; err != nil {
		t.Error(err)
	}
}
