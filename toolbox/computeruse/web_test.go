package computeruse_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/coder/websocket"

	"github.com/daytona-go/daytona/toolbox/wire"
)

// TestWeb shows the desktop as a browser sees it: through noVNC's WebSocket.
func TestWeb(t *testing.T) {
	a := startDesktop(t, nil)
	base := fmt.Sprintf("127.0.0.1:%d", a.web)
	for path, part := range map[string]string{
		"/": "<title>Desktop", "/vnc.html": "<title>Desktop", "/vnc_lite.html?autoconnect=1": "<title>Desktop",
		"/daytona-vnc.js": "websockify", "/core/rfb.js": "class RFB",
	} {
		resp, err := http.Get("http://" + base + path)
		a.must(err)
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != 200 || !strings.Contains(string(b), part) {
			t.Errorf("%s: %s %s", path, resp.Status, b)
		}
	}
	for _, path := range []string{"/../../../etc/passwd", "/core/%2e%2e/%2e%2e/secret", "/nothing"} {
		resp, err := http.Get("http://" + base + path)
		a.must(err)
		resp.Body.Close()
		if resp.StatusCode == 200 {
			t.Errorf("%s: %s", path, resp.Status)
		}
	}
	dial := func(header http.Header) (*websocket.Conn, error) {
		c, _, err := websocket.Dial(t.Context(), "ws://"+base+"/websockify", &websocket.DialOptions{HTTPHeader: header, Subprotocols: []string{"binary"}})
		return c, err
	}
	// A page of another origin, which a browser in the sandbox may show, gets
	// nothing; one that a proxy leads here does.
	for origin, ok := range map[string]bool{
		"http://" + base: true, "https://6080-sandbox.proxy.example": true, "https://evil.example": false, "null": false, "http://127.0.0.1:1": false,
	} {
		header := http.Header{"Origin": {origin}}
		if strings.Contains(origin, "proxy") {
			header.Set("X-Forwarded-Host", "6080-sandbox.proxy.example")
		}
		c, err := dial(header)
		if (err == nil) != ok {
			t.Errorf("from %s: %v", origin, err)
		}
		if err == nil {
			c.CloseNow()
		}
	}

	c, err := dial(nil)
	a.must(err)
	defer c.CloseNow()
	c.SetReadLimit(16 << 20)
	vnc := websocket.NetConn(context.Background(), c, websocket.MessageBinary)
	read := func(n int) []byte {
		t.Helper()
		b := make([]byte, n)
		_, err := io.ReadFull(vnc, b)
		a.must(err)
		return b
	}
	write := func(b ...byte) {
		t.Helper()
		_, err := vnc.Write(b)
		a.must(err)
	}
	// RFB 3.8 (RFC 6143): version, no authentication, a shared session, one whole
	// picture.
	if hello := read(12); string(hello) != "RFB 003.008\n" {
		t.Fatalf("hello %q", hello)
	}
	write([]byte("RFB 003.008\n")...)
	types := read(int(read(1)[0]))
	if !strings.Contains(string(types), "\x01") {
		t.Fatalf("security types %v", types)
	}
	write(1)
	if result := read(4); string(result) != "\x00\x00\x00\x00" {
		t.Fatalf("security result %v", result)
	}
	write(1)
	size := read(24)
	if w, h := int(size[0])<<8|int(size[1]), int(size[2])<<8|int(size[3]); w != 800 || h != 600 {
		t.Errorf("VNC shows %d x %d", w, h)
	}
	read(int(size[20])<<24 | int(size[21])<<16 | int(size[22])<<8 | int(size[23]))
	write(2, 0, 0, 1, 0, 0, 0, 0)                   // raw pixels
	write(3, 0, 0, 0, 0, 0, 800>>8, 800&255, 2, 88) // all of it
	if kind := read(4); kind[0] != 0 {
		t.Errorf("message %v", kind)
	}
	read(12 + 4*100)
	// A key that is pressed there arrives on the desktop.
	write(5, 0, 0, 100, 0, 50)
	for range 200 {
		if at := ok[wire.Point](a, "GET", "/mouse/position", nil); at == (wire.Point{X: 100, Y: 50}) {
			return
		}
	}
	t.Error("the mouse has not moved")
}
