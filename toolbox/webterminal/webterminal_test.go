package webterminal_test

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/daytona-go/daytona/toolbox/process"
	"github.com/daytona-go/daytona/toolbox/webterminal"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// serve serves the page as port 22222 does, and the agent's routes below /agent.
func serve(t testing.TB) *httptest.Server {
	t.Helper()
	// The shell's prompt is not to depend on whose machine this is.
	home := t.TempDir()
	must(t, os.WriteFile(filepath.Join(home, ".bash_profile"), []byte("PS1='$ '\nbind 'set enable-bracketed-paste off' 2>/dev/null\n"), 0o644))
	spawner, err := process.NewSpawner(process.Options{WorkDir: home, Environ: func() []string {
		return []string{"HOME=" + home, "PATH=" + os.Getenv("PATH")}
	}})
	must(t, err)
	s := webterminal.New(webterminal.Options{Spawner: spawner})
	mux := http.NewServeMux()
	s.Register(mux)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasPrefix(r.URL.Path, "/proxy/22222"):
			s.ServeProxy(w, r)
		case strings.HasPrefix(r.URL.Path, "/port/"):
			mux.ServeHTTP(w, r)
		default:
			s.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(func() {
		s.Close()
		server.Close()
		spawner.Close()
	})
	return server
}

func get(t *testing.T, url string) (*http.Response, string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}

func TestPage(t *testing.T) {
	server := serve(t)
	nonces := map[string]bool{}
	for range 2 {
		for _, at := range []string{"/", "/proxy/22222/", "/proxy/22222"} {
			resp, body := get(t, server.URL+at)
			policy := resp.Header.Get("Content-Security-Policy")
			nonce := regexp.MustCompile(`nonce="([^"]+)"`).FindStringSubmatch(body)
			if resp.StatusCode != 200 || nonce == nil || nonces[nonce[1]] || !strings.Contains(policy, "'nonce-"+nonce[1]+"'") {
				t.Fatalf("%s: %d %q\n%s", at, resp.StatusCode, policy, body)
			}
			nonces[nonce[1]] = true
			script := regexp.MustCompile(`script-src [^;]*`).FindString(policy)
			if script != "script-src 'self'" || !strings.HasPrefix(policy, "default-src 'none';") || !strings.Contains(policy, "frame-ancestors 'none'") {
				t.Errorf("%s: %q", at, policy)
			}
			if resp.Header.Get("Referrer-Policy") != "no-referrer" || resp.Header.Get("Cache-Control") != "no-store" {
				t.Errorf("%s: %v", at, resp.Header)
			}
			// Whatever it loads is here, and none of its scripts is in it.
			for _, m := range regexp.MustCompile(`(?:src|href)="([^"]+)"`).FindAllStringSubmatch(body, -1) {
				if resp, _ := get(t, server.URL+"/"+m[1]); resp.StatusCode != 200 {
					t.Errorf("%s: %d", m[1], resp.StatusCode)
				}
			}
			if regexp.MustCompile(`<script[^>]*>[^<]`).MatchString(body) {
				t.Error("a script in the page")
			}
		}
	}
	for name, kind := range map[string]string{"xterm.mjs": "text/javascript", "addon-fit.mjs": "text/javascript", "xterm.css": "text/css", "LICENSE": "text/plain"} {
		if resp, body := get(t, server.URL+"/proxy/22222/"+name); resp.StatusCode != 200 || !strings.HasPrefix(resp.Header.Get("Content-Type"), kind) || resp.Header.Get("X-Content-Type-Options") != "nosniff" || len(body) < 1000 {
			t.Errorf("%s: %d %v", name, resp.StatusCode, resp.Header)
		}
	}
	for _, at := range []string{"/nothing", "/page/index.html", "/../x"} {
		if resp, _ := get(t, server.URL+at); resp.StatusCode != 404 {
			t.Errorf("%s: %d", at, resp.StatusCode)
		}
	}
	if resp, body := get(t, server.URL+"/ws"); resp.StatusCode != http.StatusUpgradeRequired {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
}

// screen is a client of the WebSocket.
type screen struct {
	t    *testing.T
	ws   *websocket.Conn
	ctx  context.Context
	seen bytes.Buffer
}

func open(t *testing.T, url string, opts *websocket.DialOptions) *screen {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	ws, _, err := websocket.Dial(ctx, url, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ws.CloseNow() })
	ws.SetReadLimit(1 << 20)
	return &screen{t: t, ws: ws, ctx: ctx}
}

func (s *screen) send(kind websocket.MessageType, text string) {
	s.t.Helper()
	if err := s.ws.Write(s.ctx, kind, []byte(text)); err != nil {
		s.t.Fatal(err)
	}
}

// until reads until want has been seen.
func (s *screen) until(want string) string {
	s.t.Helper()
	for !strings.Contains(s.seen.String(), want) {
		kind, b, err := s.ws.Read(s.ctx)
		if err != nil {
			s.t.Fatalf("%v; so far:\n%q", err, s.seen.String())
		}
		if kind != websocket.MessageText {
			s.t.Fatalf("a binary frame: %q", b)
		}
		s.seen.Write(b)
	}
	defer s.seen.Reset()
	return s.seen.String()
}

func TestTerminal(t *testing.T) {
	server := serve(t)
	for _, at := range []string{"/ws", "/proxy/22222/ws"} {
		s := open(t, server.URL+at, nil)
		s.send(websocket.MessageText, `{"rows":33,"cols":111}`)
		s.send(websocket.MessageText, "stty size; echo $TERM-\"done\"\n")
		if got := s.until("xterm-256color-done"); !strings.Contains(got, "33 111") {
			t.Errorf("%q", got)
		}
		// What only looks like a size is input, and so is what comes in binary.
		s.send(websocket.MessageText, `{"rows":1,"cols":1,"x":1}`)
		s.send(websocket.MessageBinary, `{"rows":2,"cols":2}`)
		s.send(websocket.MessageText, "\x15stty size; echo 'do''ne'\n")
		if got := s.until("done\r"); !strings.Contains(got, "33 111") {
			t.Errorf("%q", got)
		}
		// Each byte of the character in a write of its own.
		s.send(websocket.MessageText, "for b in 342 202 254; do printf \"\\\\$b\"; sleep 0.02; done; echo 'eu''ro'\n")
		if got := s.until("euro\r"); !strings.Contains(got, "€euro") {
			t.Errorf("%q", got)
		}
		s.send(websocket.MessageText, `printf 'a\033]52;c;cm0=\ab\033[21tc\033P$qm\033\\d\302\23552;x\ae\033]8;;javascript:x\afg\033]8;;\a'; echo 'en''d'`+"\n")
		if got := s.until("end\r"); !strings.Contains(got, "abcdefgend") || strings.ContainsAny(got[strings.LastIndex(got, "abcdefg"):], "\x1b\u009d") {
			t.Errorf("%q", got)
		}
		s.send(websocket.MessageText, "exit 3\n")
		for {
			if _, _, err := s.ws.Read(s.ctx); err != nil {
				if c := websocket.CloseStatus(err); c != 1000 || !strings.Contains(err.Error(), "exit code 3") {
					t.Error(err)
				}
				break
			}
		}
	}
}

// TestHangUp: the shell does not outlive its page.
func TestHangUp(t *testing.T) {
	server := serve(t)
	s := open(t, server.URL+"/ws", nil)
	dir := t.TempDir()
	s.send(websocket.MessageText, "trap 'echo gone >"+dir+"/gone; exit' HUP; while :; do sleep 0.05; done & echo 'rea''dy'; wait\n")
	s.until("ready\r")
	s.ws.CloseNow()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if _, err := os.Stat(dir + "/gone"); err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the shell was not told")
		}
	}
}

// TestOrigin: a page from elsewhere cannot type, whatever the browser sends
// along.
func TestOrigin(t *testing.T) {
	server := serve(t)
	for origin, ok := range map[string]bool{
		"": true, server.URL: true, "https://22222-box.proxy.example": true,
		"https://evil.example": false, "https://3000-box.proxy.example": false, "null": false, "http://127.0.0.1:1": false, "%": false,
	} {
		header := http.Header{"X-Forwarded-Host": {"22222-box.proxy.example"}}
		if origin != "" {
			header.Set("Origin", origin)
		}
		ws, resp, err := websocket.Dial(t.Context(), server.URL+"/ws", &websocket.DialOptions{HTTPHeader: header})
		if err == nil {
			ws.CloseNow()
		} else if resp == nil || resp.StatusCode != http.StatusForbidden {
			t.Errorf("%q: %v", origin, err)
		}
		if (err == nil) != ok {
			t.Errorf("%q: %v", origin, err)
		}
	}
}

// TestPort talks HTTP through a connection to the port.
func TestPort(t *testing.T) {
	server := serve(t)
	ws, _, err := websocket.Dial(t.Context(), server.URL+"/port/22222/connect", nil)
	if err != nil {
		t.Fatal(err)
	}
	conn := websocket.NetConn(t.Context(), ws, websocket.MessageBinary)
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(conn)
	if err != nil || !strings.HasPrefix(string(b), "HTTP/1.1 200 OK") || !strings.HasSuffix(string(b), "</html>\n") {
		t.Errorf("%v\n%s", err, b)
	}
}

// TestFlood: a browser gets no more than it can show.
func TestFlood(t *testing.T) {
	server := serve(t)
	s := open(t, server.URL+"/ws", nil)
	begin := time.Now()
	s.send(websocket.MessageText, "head -c 9000000 /dev/zero | tr '\\0' x; echo; echo 'en''d'\n")
	for got := ""; !strings.Contains(got, "end"); {
		_, b, err := s.ws.Read(s.ctx)
		if err != nil {
			t.Fatal(err)
		}
		got = string(b)
	}
	if took := time.Since(begin); took < 2*time.Second {
		t.Errorf("9 MB in %v", took)
	}
}
