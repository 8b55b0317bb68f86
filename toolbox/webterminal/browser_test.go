package webterminal_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// browser is a page of a real one, which does what it is told through the
// DevTools protocol.
type browser struct {
	t       *testing.T
	ctx     context.Context
	ws      *websocket.Conn
	session string
	id      int
	// dialogs that the page opened, each of which was refused, and errors it
	// has logged.
	dialogs, errors []string
}

// browse starts a browser and opens url in it.
func browse(t *testing.T, url string) *browser {
	t.Helper()
	program, err := exec.LookPath("chromium")
	if err != nil {
		t.Skipf("%v: install chromium", err)
	}
	// Not the test's own directory: processes of the browser may still write
	// while they end.
	dir, err := os.MkdirTemp("", "browser")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	args := []string{"--headless", "--remote-debugging-port=0", "--user-data-dir=" + dir, "--window-size=800,600", "--disable-gpu", "--disable-dev-shm-usage",
		"--disable-breakpad", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--no-proxy-server"}
	if os.Getuid() == 0 {
		args = append(args, "--no-sandbox") // it has none as root
	}
	cmd := exec.CommandContext(ctx, program, append(args, "about:blank")...)
	cmd.Env = append(os.Environ(), "HOME="+dir, "TMPDIR="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	stderr, err := cmd.StderrPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait()
	})
	lines, address, said := bufio.NewReader(stderr), "", ""
	for address == "" {
		line, err := lines.ReadString('\n')
		if said += line; err != nil {
			t.Fatalf("%s: %v\n%s", program, err, said)
		}
		_, address, _ = strings.Cut(strings.TrimSpace(line), "DevTools listening on ")
	}
	go func() { _, _ = io.Copy(io.Discard, lines) }()
	b := &browser{t: t, ctx: ctx}
	b.ws, _, err = websocket.Dial(ctx, address, nil)
	must(t, err)
	t.Cleanup(func() { b.ws.CloseNow() })
	b.ws.SetReadLimit(16 << 20)
	// With these a page gets what it wants of the clipboard.
	b.call("Browser.grantPermissions", map[string]any{"permissions": []string{"clipboardReadWrite", "clipboardSanitizedWrite"}}, nil)
	var target struct{ TargetID string }
	b.call("Target.createTarget", map[string]any{"url": "about:blank"}, &target)
	var attached struct{ SessionID string }
	b.call("Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true}, &attached)
	b.session = attached.SessionID
	for _, method := range []string{"Page.enable", "Log.enable", "Runtime.enable"} {
		b.call(method, nil, nil)
	}
	b.call("Emulation.setFocusEmulationEnabled", map[string]any{"enabled": true}, nil)
	b.call("Page.navigate", map[string]any{"url": url}, nil)
	return b
}

func (b *browser) send(method string, params any) int {
	b.t.Helper()
	b.id++
	message, err := json.Marshal(struct {
		ID        int    `json:"id"`
		Method    string `json:"method"`
		Params    any    `json:"params,omitempty"`
		SessionID string `json:"sessionId,omitempty"`
	}{b.id, method, params, b.session})
	if err == nil {
		err = b.ws.Write(b.ctx, websocket.MessageText, message)
	}
	if err != nil {
		b.t.Fatalf("%s: %v", method, err)
	}
	return b.id
}

// call carries out one command of the DevTools protocol.
func (b *browser) call(method string, params, result any) {
	b.t.Helper()
	for id := b.send(method, params); ; {
		_, raw, err := b.ws.Read(b.ctx)
		if err != nil {
			b.t.Fatalf("%s: %v", method, err)
		}
		var m struct {
			ID                    int
			Method                string
			Error, Result, Params json.RawMessage
		}
		must(b.t, json.Unmarshal(raw, &m))
		switch {
		case m.Method == "Page.javascriptDialogOpening":
			b.dialogs = append(b.dialogs, string(m.Params))
			b.send("Page.handleJavaScriptDialog", map[string]any{"accept": false})
		case m.Method == "Log.entryAdded" && strings.Contains(string(m.Params), `"level":"error"`) || m.Method == "Runtime.exceptionThrown":
			b.errors = append(b.errors, string(m.Params))
		case m.ID == id && m.Error != nil:
			b.t.Fatalf("%s: %s", method, m.Error)
		case m.ID == id:
			if result != nil {
				must(b.t, json.Unmarshal(m.Result, result))
			}
			return
		}
	}
}

// js evaluates an expression to a string.
func (b *browser) js(expression string) string {
	b.t.Helper()
	var r struct {
		Result           struct{ Value any }
		ExceptionDetails json.RawMessage
	}
	b.call("Runtime.evaluate", map[string]any{"expression": expression, "awaitPromise": true, "returnByValue": true}, &r)
	if r.ExceptionDetails != nil {
		b.t.Fatalf("%s: %s", expression, r.ExceptionDetails)
	}
	return fmt.Sprint(r.Result.Value)
}

func (b *browser) until(what string, ok func() bool) {
	b.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			b.t.Fatalf("did not happen: %s; the page's errors: %s", what, b.errors)
		}
	}
}

const countRows = `document.querySelectorAll('.xterm-rows > div').length`

// shows waits for what it looks for on the screen.
func (b *browser) shows(pattern string) (found []string) {
	b.t.Helper()
	b.until(pattern+" on the screen", func() bool {
		screen := b.js(`[...document.querySelectorAll('.xterm-rows > div, #status')].map((e) => e.textContent.trimEnd()).join('\n')`)
		found = regexp.MustCompile(`(?m)` + pattern).FindStringSubmatch(screen)
		return found != nil
	})
	return found
}

// keys presses one key after another, and Enter.
func (b *browser) keys(text string) {
	b.t.Helper()
	for _, c := range text + "\r" {
		key := map[string]any{"type": "keyDown", "text": string(c), "key": string(c)}
		if c == '\r' {
			key["key"], key["code"], key["windowsVirtualKeyCode"] = "Enter", "Enter", 13
		}
		b.call("Input.dispatchKeyEvent", key, nil)
		key["type"] = "keyUp"
		delete(key, "text")
		b.call("Input.dispatchKeyEvent", key, nil)
	}
}

// click clicks on the first character of the row with the text.
func (b *browser) click(text string) {
	b.t.Helper()
	at := b.js(fmt.Sprintf(`(() => {
		const r = [...document.querySelectorAll('.xterm-rows > div')].find((e) => e.textContent.startsWith(%q)).getBoundingClientRect();
		return (r.left + 3) + ' ' + (r.top + r.height / 2);
	})()`, text))
	var x, y float64
	if _, err := fmt.Sscan(at, &x, &y); err != nil {
		b.t.Fatal(err, at)
	}
	for _, kind := range []string{"mouseMoved", "mousePressed", "mouseReleased"} {
		b.call("Input.dispatchMouseEvent", map[string]any{"type": kind, "x": x, "y": y, "button": "left", "clickCount": 1}, nil)
	}
}

// unharmed looks at everything but what came back.
func (b *browser) unharmed() {
	b.t.Helper()
	if got := b.js(`document.title`); got != "Terminal" {
		b.t.Errorf("the page's title is %q", got)
	}
	if got := b.js(`navigator.clipboard.readText()`); got != "mine" {
		b.t.Errorf("%q in the clipboard", got)
	}
	b.click("LINK")
	if got := b.js(`document.querySelectorAll('a').length + ' ' + ('pwned' in window)`); got != "0 false" || len(b.dialogs) > 0 {
		b.t.Errorf("a link of a script: %s %s", got, b.dialogs)
	}
	if len(b.errors) > 0 {
		b.t.Errorf("the page has errors: %s", b.errors)
	}
}

// hostile asks for the clipboard, for the title and settings as input, and has a
// link that is a script. The last is a question that terminals may answer: when
// its answer is there, so are all.
const hostile = "\x1b]0;evil\a\x1b]2;evil\x1b\\\x1b]52;c;ZXZpbA==\a\x1b]52;c;?\a\x1b[21t\x1b[20t\x1b[22t\x1b[23t\x1bP$q\"p\x1b\\\x1bP$qm\x1b\\\x1bP+q544e\x1b\\\x05" +
	"\r\n\x1b]8;;javascript:pwned=1\aLINK of a program\x1b]8;;\a\r\n\x1b[5n"

// TestBrowser uses the page as a person does, with a program in the sandbox that
// means them harm.
func TestBrowser(t *testing.T) {
	server := serve(t)
	b := browse(t, server.URL+"/proxy/22222/")
	b.shows(`^\$$`)
	b.js(`navigator.clipboard.writeText('mine')`)
	b.keys(`echo "ty""ped: $TERM"`)
	b.shows(`^typed: xterm-256color$`)

	b.keys("stty size")
	before := b.shows(`^(\d+) (\d+)$`)
	if rows := b.js(countRows); rows != before[1] {
		t.Errorf("%s rows on the screen, %s on the terminal", rows, before[1])
	}
	b.call("Emulation.setDeviceMetricsOverride", map[string]any{"width": 400, "height": 300, "deviceScaleFactor": 1, "mobile": false}, nil)
	rows := before[1]
	b.until("the page has the new size", func() bool { rows = b.js(countRows); return rows != before[1] })
	// The new size has been sent by now, before what is typed here.
	b.keys("clear; stty size; echo 'en''d'")
	if after := b.shows(`^(\d+) (\d+)\nend$`); after[1] != rows || after[1] == before[1] || after[2] == before[2] {
		t.Errorf("%s rows on the screen; the terminal had %q and has %q", rows, before, after)
	}

	program := filepath.Join(t.TempDir(), "program")
	must(t, os.WriteFile(program+".out", []byte(hostile), 0o644))
	script := `stty raw -echo; cat ` + program + `.out; IFS= read -rsd n answer; stty sane; echo "came back:$(printf %s "$answer" | od -An -tx1)"`
	must(t, os.WriteFile(program, []byte(script), 0o644))
	b.keys("clear; bash " + program)
	if got := b.shows(`^came back:(.*)$`); got[1] != " 1b 5b 30" {
		t.Errorf("came back: %s", got[1])
	}
	if got := b.js(`document.querySelectorAll('.xterm-rows [class*="xterm-underline"]').length`); got != "0" {
		t.Errorf("%s links", got)
	}
	b.unharmed()
	b.keys("exit 3")
	b.shows(`^The shell has ended with exit code 3\.$`)
}

// TestBrowserAlone has nobody between the page and the program.
func TestBrowserAlone(t *testing.T) {
	server := serve(t)
	say, typed := make(chan string, 2), make(chan string, 100)
	alone := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/ws" {
			server.Config.Handler.ServeHTTP(w, r)
			return
		}
		ws, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer ws.CloseNow()
		go func() {
			for text := range say {
				_ = ws.Write(r.Context(), websocket.MessageText, []byte(text))
			}
		}()
		for {
			kind, b, err := ws.Read(r.Context())
			if err != nil {
				return
			}
			if kind == websocket.MessageBinary {
				typed <- string(b)
			}
		}
	}))
	defer alone.Close()
	defer close(say)
	b := browse(t, alone.URL+"/")
	b.until("the page is there", func() bool { return b.js(countRows) != "0" })
	b.js(`navigator.clipboard.writeText('mine')`)
	say <- hostile
	b.shows(`^LINK`)
	// The page answers in order.
	if got := <-typed; got != "\x1b[0n" {
		t.Errorf("came back: %q", got)
	}
	b.unharmed()
	// A link to a page would have been one.
	say <- "\x1b]8;;https://example.org/\aWEB\x1b]8;;\a\r\n"
	b.shows(`^WEB`)
	b.click("WEB")
	if len(b.dialogs) != 1 || !strings.Contains(b.dialogs[0], "https://example.org/") {
		t.Errorf("a link to a page: %s", b.dialogs)
	}
}
