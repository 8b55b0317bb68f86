package interpreter_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/daytona-go/daytona/toolbox/wire"
)

// socket opens the WebSocket that runs code.
func (a *agent) connect() *websocket.Conn {
	a.t.Helper()
	conn, _, err := websocket.Dial(a.t.Context(), "http://agent"+wire.InterpreterPath, &websocket.DialOptions{HTTPClient: a.http()})
	if err != nil {
		a.t.Fatal(err)
	}
	conn.SetReadLimit(-1)
	a.t.Cleanup(func() { conn.CloseNow() })
	return conn
}

func (a *agent) http() *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", a.socket)
	}}}
}

// exchange sends a request and returns the messages until the close.
func (a *agent) exchange(request string) ([]string, websocket.CloseError) {
	a.t.Helper()
	conn := a.connect()
	if err := conn.Write(a.t.Context(), websocket.MessageText, []byte(request)); err != nil {
		a.t.Fatal(err)
	}
	var messages []string
	for {
		_, b, err := conn.Read(a.t.Context())
		if err != nil {
			c, _ := errors.AsType[websocket.CloseError](err)
			return messages, c
		}
		messages = append(messages, string(b))
	}
}

func TestWire(t *testing.T) {
	needs(t, "python3", "-c", "pass")
	a := startAgent(t)
	message := func(m wire.InterpreterMessage) string {
		var b strings.Builder
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false)
		e.Encode(m)
		return strings.TrimSpace(b.String())
	}
	completed := `{"type":"control","text":"completed","name":"","value":"","traceback":""}`
	for _, c := range []struct {
		request  string
		messages []string
		code     int
		reason   string
	}{
		{`{"code":"x=1"}`, []string{completed}, 1000, ""},
		{`{"code":"print(x)","contextId":"default","timeout":null,"envs":null}`, []string{`{"type":"stdout","text":"1\n","name":"","value":"","traceback":""}`, completed}, 1000, ""},
		{`{"code":"print('<&>')","timeout":0}`, []string{`{"type":"stdout","text":"<&>\n","name":"","value":"","traceback":""}`, completed}, 1000, ""},
		{`{"code":"2","unknown":[1],"timeout":0.5}`, []string{`{"type":"result","text":"","name":"","value":"","traceback":"","data":{"text/plain":"2"}}`, completed}, 1000, ""},
		{`{"code":"import os; os.write(2, b'a\\xff\\xe2\\x82');"}`, []string{message(wire.InterpreterMessage{Type: "stderr", Text: "a\xff"}), message(wire.InterpreterMessage{Type: "stderr", Text: "\xe2\x82"}), completed}, 1000, ""},
		{`{"code":"raise KeyError(1)"}`, []string{message(wire.InterpreterMessage{Type: "error", Name: "KeyError", Value: "1",
			Traceback: "Traceback (most recent call last):\n  File \"<cell 6>\", line 1, in <module>\n    raise KeyError(1)\nKeyError: 1\n"}), completed}, 1000, ""},
		{`{`, nil, 1002, "not a JSON object"}, {``, nil, 1002, "not a JSON object"}, {`[]`, nil, 1002, "not a JSON object"}, {`{"code":1}`, nil, 1002, "not a JSON object"},
		{`{}`, nil, 1008, "code is required"}, {`{"code":" \n"}`, nil, 1008, "code is required"},
		{`{"code":"1","timeout":-1}`, nil, 1008, "timeout -1: must not be negative"},
		{`{"code":"1","contextId":"nothing"}`, nil, 1008, `context "nothing" not found`},
		{`{"code":"1","language":"cobol"}`, nil, 1008, `language "cobol"`},
		{`{"code":"1","envs":{"=":""}}`, nil, 1008, "invalid environment variable name"},
		{`{"code":"import time; time.sleep(60)","timeout":0.1}`, nil, 4008, "execution timed out after 100ms"},
	} {
		messages, end := a.exchange(c.request)
		if int(end.Code) != c.code || !strings.HasPrefix(end.Reason, c.reason) {
			t.Errorf("%s: closed with %d %q", c.request, end.Code, end.Reason)
		}
		// What print writes may come as its text and its end.
		got := strings.ReplaceAll(strings.Join(messages, "\n"), `","name":"","value":"","traceback":""}`+"\n"+`{"type":"stdout","text":"`, "")
		if c.messages != nil && got != strings.Join(c.messages, "\n") {
			t.Errorf("%s: %q", c.request, messages)
		}
		if c.code == 1008 && (len(messages) != 1 || !strings.HasPrefix(messages[0], `{"type":"refused"`)) {
			t.Errorf("%s: %q", c.request, messages)
		}
	}
	// A frame that is no WebSocket's ends that connection only.
	for _, kind := range []websocket.MessageType{websocket.MessageBinary, websocket.MessageText} {
		conn := a.connect()
		conn.Write(t.Context(), kind, make([]byte, 17<<20))
		_, _, err := conn.Read(t.Context())
		if c, ok := errors.AsType[websocket.CloseError](err); ok && c.Code != websocket.StatusMessageTooBig {
			t.Errorf("too long a message: %v", err)
		}
	}
	// A second message changes nothing.
	conn := a.connect()
	conn.Write(t.Context(), websocket.MessageText, []byte(`{"code":"print(x)"}`))
	conn.Write(t.Context(), websocket.MessageText, []byte(`{"code":"x=2"}`))
	if _, b, err := conn.Read(t.Context()); err != nil || !strings.Contains(string(b), `"text":"1`) {
		t.Errorf("%s %v", b, err)
	}
	a.prints(nil, "print(x)", "1\n")
}

func TestRoutes(t *testing.T) {
	needs(t, "python3", "-c", "pass")
	a := startAgent(t)
	call := func(method, path, body string) (int, string) {
		t.Helper()
		req, _ := http.NewRequestWithContext(t.Context(), method, "http://agent"+path, strings.NewReader(body))
		resp, err := a.http().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(b)
	}
	contexts := wire.InterpreterContextsPath
	status, body := call("POST", contexts, `{}`)
	var c wire.InterpreterContext
	if err := json.Unmarshal([]byte(body), &c); err != nil || status != 200 || c.ID == "" || c.Cwd != a.dir || c.Language != "python" || !c.Active {
		t.Fatalf("%d %s", status, body)
	}
	if at, err := time.Parse(time.RFC3339, c.CreatedAt); err != nil || time.Since(at) > time.Minute {
		t.Errorf("createdAt %q", c.CreatedAt)
	}
	for _, x := range []struct {
		method, path, body string
		status             int
		want               string
	}{
		{"GET", contexts, "", 200, `{"contexts":[{"id":"` + c.ID},
		{"POST", contexts, "", 400, "invalid body request"},
		{"POST", contexts, `{"language":"ruby"}`, 400, `language \"ruby\"`},
		{"POST", contexts, `{"cwd":"/no/such"}`, 400, "no such directory"},
		{"POST", contexts + "/default/interrupt", "", 200, "nothing runs"},
		{"POST", contexts + "/x/interrupt", "", 404, "not found"},
		{"DELETE", contexts + "/default", "", 400, "cannot be deleted"},
		{"DELETE", contexts + "/default-javascript", "", 400, "cannot be deleted"},
		{"DELETE", contexts + "/" + c.ID, "", 200, `{"message":`},
		{"DELETE", contexts + "/" + c.ID, "", 404, `"error":"context`},
		{"GET", contexts, "", 200, `{"contexts":[]}`},
		{"GET", wire.InterpreterPath, "", 426, "WebSocket"},
	} {
		if status, body := call(x.method, x.path, x.body); status != x.status || !strings.Contains(body, x.want) {
			t.Errorf("%s %s %s: %d %s", x.method, x.path, x.body, status, body)
		}
	}
}

// A client that does not read stops its run and nothing else, and is given up
// when its time is over.
func TestClientThatDoesNotRead(t *testing.T) {
	needs(t, "python3", "-c", "pass")
	a := startAgent(t)
	conn := a.connect()
	if err := conn.Write(t.Context(), websocket.MessageText, []byte(`{"code":"while True: print('x' * 1000)","timeout":0.3}`)); err != nil {
		t.Fatal(err)
	}
	a.prints(own(a, "python"), "print('meanwhile')", "meanwhile\n")
	begin := time.Now()
	a.prints(nil, "print('after')", "after\n")
	if d := time.Since(begin); d > 20*time.Second {
		t.Errorf("the next run waited for %v", d)
	}
}
