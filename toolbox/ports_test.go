package toolbox_test

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/daytona-go/daytona/toolbox"
	"github.com/daytona-go/daytona/toolbox/wire"
)

// TestWebTerminal: the page is the agent's, and only for who has its token.
func TestWebTerminal(t *testing.T) {
	a := start(t, "tcp", toolbox.Config{Token: "secret"})
	for _, path := range []string{"/proxy/22222", "/proxy/22222/", "/proxy/22222/terminal.js", "/proxy/22222/ws", "/port/22222/connect", wire.SSHPath, wire.SSHHostKeysPath} {
		if status, _, body := a.call("GET", path, ""); status != 401 {
			t.Errorf("%s without a token: %d %s", path, status, body)
		}
	}
	status, header, body := a.call("GET", "/proxy/22222/", "", "Authorization", "Bearer secret")
	if status != 200 || !strings.Contains(header.Get("Content-Security-Policy"), "script-src 'self';") || !strings.Contains(string(body), "terminal.js") {
		t.Errorf("%d %v\n%s", status, header, body)
	}
	if status, header, _ := a.call("GET", "/proxy/22222", "", wire.HeaderAgentToken, "secret"); status != 200 && header.Get("Location") != "22222/" {
		t.Errorf("%d %v", status, header)
	}
	// Its neighbours are anybody's.
	if status, _, body := a.call("GET", "/proxy/222220/", "", wire.HeaderAgentToken, "secret"); status != 400 {
		t.Errorf("%d %s", status, body)
	}
	if status, _, body := a.call("GET", wire.SSHHostKeysPath, "", wire.HeaderAgentToken, "secret"); status != 200 || !strings.Contains(string(body), `"ssh-ed25519 `) {
		t.Errorf("%d %s", status, body)
	}
}

// TestSSHAddress: no port is open for SSH unless the configuration says so.
func TestSSHAddress(t *testing.T) {
	// On an address of its own: on the one that everybody uses, another program
	// may be given the same port once this one has let it go.
	l, err := net.Listen("tcp", "127.20.22.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	a := start(t, "unix", toolbox.Config{SSHAddress: address})
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	a.stop()
	if err := <-a.done; err != nil {
		t.Error(err)
	}
	a.done <- nil
	if conn, err := net.Dial("tcp", address); err == nil {
		conn.Close()
		t.Error("the port outlives the agent")
	}
}
