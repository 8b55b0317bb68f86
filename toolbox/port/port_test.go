package port_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/coder/websocket"

	"github.com/daytona-go/daytona/toolbox/port"
	"github.com/daytona-go/daytona/toolbox/wire"
)

func serve(t *testing.T) string {
	t.Helper()
	mux := http.NewServeMux()
	s := port.New(port.Options{})
	s.Register(mux)
	h := httptest.NewServer(mux)
	t.Cleanup(func() { h.Close(); s.Close() })
	return h.URL
}

func get(t *testing.T, url string, out any) int {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode
}

// listen on a port of the range that in-use knows.
func listen(t *testing.T, network, host string) (net.Listener, int) {
	t.Helper()
	for p := 4000; p < 9999; p++ {
		if l, err := net.Listen(network, fmt.Sprintf("%s:%d", host, p)); err == nil {
			t.Cleanup(func() { l.Close() })
			return l, p
		}
	}
	t.Skip("no port is free")
	return nil, 0
}

func TestPorts(t *testing.T) {
	base := serve(t)
	for _, c := range []struct{ network, host string }{{"tcp4", "127.0.0.1"}, {"tcp6", "[::1]"}, {"tcp", ""}} {
		if c.network == "tcp6" {
			if l, err := net.Listen("tcp6", "[::1]:0"); err != nil {
				continue
			} else {
				l.Close()
			}
		}
		l, p := listen(t, c.network, c.host)
		var list wire.PortList
		var use wire.IsPortInUse
		if get(t, base+"/port", &list); !slices.Contains(list.Ports, p) || !slices.IsSorted(list.Ports) {
			t.Errorf("%s: %d is not in %v", c.network, p, list.Ports)
		}
		if get(t, fmt.Sprintf("%s/port/%d/in-use", base, p), &use); !use.IsInUse {
			t.Errorf("%s: %d is not in use", c.network, p)
		}
		l.Close()
		if get(t, fmt.Sprintf("%s/port/%d/in-use", base, p), &use); use.IsInUse {
			t.Errorf("%s: %d is still in use", c.network, p)
		}
	}
	for _, bad := range []string{"2999", "10000", "x", "-1", "99999999999999999999"} {
		var e wire.ErrorResponse
		if status := get(t, base+"/port/"+bad+"/in-use", &e); status != 400 || e.Code != "BAD_REQUEST" {
			t.Errorf("%s: %d %+v", bad, status, e)
		}
	}
}

// TestConnect sends a MiB there and back, with half-close in both directions.
func TestConnect(t *testing.T) {
	base := serve(t)
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
			go func() {
				defer c.Close()
				b, err := io.ReadAll(c) // to the end of the client's direction
				if err == nil {
					_, _ = c.Write(append([]byte("got:"), b...))
				}
			}()
		}
	}()
	p := l.Addr().(*net.TCPAddr).Port
	sub := wire.ProtocolSDKVersion + "0.190.0"
	ws, resp, err := websocket.Dial(t.Context(), fmt.Sprintf("%s/port/%d/connect", base, p), &websocket.DialOptions{Subprotocols: []string{sub}})
	if err != nil {
		t.Fatal(err)
	}
	defer ws.CloseNow()
	if got := resp.Header.Get("Sec-WebSocket-Protocol"); got != sub {
		t.Errorf("subprotocol %q", got)
	}
	ws.SetReadLimit(1 << 20)
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	for chunk := range slices.Chunk(data, 300_000) {
		if err := ws.Write(t.Context(), websocket.MessageBinary, chunk); err != nil {
			t.Fatal(err)
		}
	}
	if err := ws.Write(t.Context(), websocket.MessageBinary, nil); err != nil {
		t.Fatal(err)
	}
	var got []byte
	for {
		_, b, err := ws.Read(t.Context())
		if err != nil {
			t.Fatalf("after %d bytes: %v", len(got), err)
		}
		if len(b) == 0 {
			break
		}
		got = append(got, b...)
	}
	if want := append([]byte("got:"), data...); !bytes.Equal(got, want) {
		t.Errorf("%d bytes came back, want %d", len(got), len(want))
	}
	if _, _, err := ws.Read(t.Context()); websocket.CloseStatus(err) != websocket.StatusNormalClosure {
		t.Errorf("ended with %v", err)
	}
}

// TestConnectionLost has either side go away.
func TestConnectionLost(t *testing.T) {
	base := serve(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	url := fmt.Sprintf("%s/port/%d/connect", base, l.Addr().(*net.TCPAddr).Port)
	dial := func() (*websocket.Conn, *net.TCPConn) {
		t.Helper()
		ws, _, err := websocket.Dial(t.Context(), url, nil)
		if err != nil {
			t.Fatal(err)
		}
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		return ws, c.(*net.TCPConn)
	}
	// Many times: the close frame used to race with the end of the connection.
	for range 50 {
		ws, c := dial()
		_ = c.SetLinger(0) // a reset
		c.Close()
		if _, _, err := ws.Read(t.Context()); websocket.CloseStatus(err) != websocket.StatusInternalError {
			t.Fatalf("after a reset: %v", err)
		}
	}
	ws, c := dial()
	ws.CloseNow()
	if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("the program read %d bytes, %v", n, err)
	}
	c.Close()
	l.Close()
	_, resp, err := websocket.Dial(t.Context(), url, nil)
	if err == nil || resp == nil || resp.StatusCode != 502 {
		t.Fatalf("nothing listens: %v, %v", resp, err)
	}
	if b, _ := io.ReadAll(resp.Body); !strings.Contains(string(b), `"code":"NOT_LISTENING"`) {
		t.Errorf("%s", b)
	}
	for _, bad := range []string{"0", "65536", "x"} {
		if _, resp, err := websocket.Dial(t.Context(), base+"/port/"+bad+"/connect", nil); err == nil || resp.StatusCode != 400 {
			t.Errorf("port %s: %v", bad, resp)
		}
	}
}
