package proxy_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/fileurl"
	"github.com/daytona-go/daytona/server/identity"
	"github.com/daytona-go/daytona/server/proxy"
)

const execute = `{"command":"echo hello from $((40+2))"}`

func TestToolboxAccess(t *testing.T) {
	w := newWorld(t, nil)
	w.change(func() {
		w.keys["jwt-a"] = &identity.Principal{Kind: identity.JWT, UserID: "user-a"}
		w.keys["jwt-b"] = &identity.Principal{Kind: identity.JWT, UserID: "user-b"}
		w.keys["runner"] = &identity.Principal{Kind: identity.Runner, RunnerID: "r"}
	})
	url := w.base() + "/toolbox/" + sandboxA + "/process/execute"
	for name, c := range map[string]struct {
		url    string
		header []string
		status int
		text   string
	}{
		"key":              {url, []string{"Authorization", "Bearer " + keyA}, 200, "hello from 42"},
		"scheme":           {url, []string{"Authorization", "bearer " + keyA}, 200, "hello from 42"},
		"token":            {url, []string{"Authorization", "Bearer jwt-a"}, 200, "hello from 42"},
		"preview header":   {url, []string{"X-Daytona-Preview-Token", tokenA}, 200, "hello from 42"},
		"preview query":    {url + "?DAYTONA_SANDBOX_AUTH_KEY=" + tokenA, nil, 200, "hello from 42"},
		"bad key, header":  {url, []string{"Authorization", "Bearer x", "X-Daytona-Preview-Token", tokenA}, 200, "hello from 42"},
		"nothing":          {url, nil, 401, "unauthorized: missing authentication"},
		"wrong key":        {url, []string{"Authorization", "Bearer x"}, 401, "unauthorized: authentication failed"},
		"wrong header":     {url, []string{"X-Daytona-Preview-Token", "b"}, 401, "unauthorized: authentication failed"},
		"basic":            {url, []string{"Authorization", "Basic " + keyA}, 401, "unauthorized: missing authentication"},
		"runner":           {url, []string{"Authorization", "Bearer runner"}, 404, "not found: Sandbox with ID or name " + sandboxA + " not found"},
		"another's":        {url, []string{"Authorization", "Bearer " + keyB}, 404, "not found: Sandbox with ID or name " + sandboxA + " not found"},
		"another's token":  {url, []string{"Authorization", "Bearer jwt-b"}, 404, "not found: Sandbox with ID or name " + sandboxA + " not found"},
		"unknown":          {w.base() + "/toolbox/" + unknown + "/process/execute", []string{"Authorization", "Bearer " + keyA}, 404, "not found: Sandbox with ID or name " + unknown + " not found"},
		"unknown, nobody":  {w.base() + "/toolbox/" + unknown + "/process/execute", nil, 401, "unauthorized: missing authentication"},
		"unknown, wrong":   {w.base() + "/toolbox/" + unknown + "/process/execute", []string{"X-Daytona-Preview-Token", "b"}, 401, "unauthorized: authentication failed"},
		"init":             {w.base() + "/toolbox/" + sandboxA + "/init", []string{"Authorization", "Bearer " + keyA}, 403, "server's own"},
		"init, escaped":    {w.base() + "/toolbox/" + sandboxA + "/%69nit", []string{"Authorization", "Bearer " + keyA}, 403, "server's own"},
		"shutdown, around": {w.base() + "/toolbox/" + sandboxA + "/x/..//shutdown/", []string{"Authorization", "Bearer " + keyA}, 403, "server's own"},
		"signing key":      {w.base() + "/toolbox/" + sandboxA + "/signing-key", []string{"Authorization", "Bearer " + keyA}, 403, "server's own"},
		"no sandbox":       {w.base() + "/toolbox/..%2f/x", nil, 404, "not found"},
		"no route":         {w.base() + "/tool", nil, 404, "not found"},
	} {
		a := w.call("POST", c.url, execute, c.header...)
		if a.status != c.status || !strings.Contains(a.body, c.text) {
			t.Errorf("%s: %d %s, want %d %s", name, a.status, a.body, c.status, c.text)
			continue
		}
		if a.status != 200 {
			var e map[string]any
			if err := json.Unmarshal([]byte(a.body), &e); err != nil || e["statusCode"] != float64(c.status) || e["code"] == "" || e["method"] != "POST" || e["timestamp"] == "" || e["path"] == nil {
				t.Errorf("%s: %v %s", name, err, a.body)
			}
		}
	}
	if a := w.call("GET", w.base()+"/health", ""); a.status != 200 || a.body != `{"status":"ok","version":"1.2.3"}` {
		t.Errorf("%d %s", a.status, a.body)
	}
	if id := <-w.touched; id != sandboxA {
		t.Errorf("touched %s", id)
	}
	if strings.Contains(w.log.String(), keyA) || strings.Contains(w.log.String(), tokenA) {
		t.Error("a token is in the log")
	}
}

// What is said of a sandbox that does not run tells clients what to do.
func TestStates(t *testing.T) {
	w := newWorld(t, nil)
	url := w.base() + "/toolbox/" + sandboxA + "/version"
	for state, c := range map[string]struct {
		status int
		text   string
	}{
		"stopped": {400, "SANDBOX_NOT_STARTED"}, "archived": {400, "state: archived"}, "starting": {400, "SANDBOX_NOT_STARTED"},
		"destroyed": {404, "SANDBOX_DESTROYED"}, "started": {200, "version"}, "snapshotting": {200, "version"},
	} {
		w.set(sandboxA, func(s *proxy.Sandbox) { s.State = state })
		if err := w.db.Publish(t.Context(), "changed", sandboxA); err != nil {
			t.Fatal(err)
		}
		eventually(t, func() error {
			if a := w.call("GET", url, "", "Authorization", "Bearer "+keyA); a.status != c.status || !strings.Contains(a.body, c.text) {
				return fmt.Errorf("%s: %d %s", state, a.status, a.body)
			}
			return nil
		})
	}
	// To others a destroyed one is like any that is not there.
	w.set(sandboxA, func(s *proxy.Sandbox) { s.State = "destroyed" })
	if a := w.call("GET", url, "", "Authorization", "Bearer "+keyB); a.status != 404 || strings.Contains(a.body, "DESTROYED") {
		t.Errorf("%d %s", a.status, a.body)
	}
	// One that can't be reached.
	if a := w.call("GET", w.base()+"/toolbox/"+sandboxB+"/version", "", "Authorization", "Bearer "+keyB); a.status != 502 || !strings.Contains(a.body, "bad gateway: ") {
		t.Errorf("%d %s", a.status, a.body)
	}
}

func eventually(t *testing.T, f func() error) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// hostile is a program that keeps whatever it sees.
type hostile struct {
	seen atomic.Value // string
	hits atomic.Int64
}

func (h *hostile) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s\nHost: %s\n", r.Method, r.RequestURI, r.Host)
	r.Header.Write(&b)
	h.seen.Store(b.String())
	h.hits.Add(1)
	w.Header().Add("Set-Cookie", "own=1; Domain=."+domain+"; Path=/; Secure")
	w.Header().Add("Set-Cookie", "__Host-daytona-sandbox-auth-"+sandboxA+"=forged; Path=/; Secure")
	w.Header().Add("Set-Cookie", "daytona-preview-page-accepted=true")
	w.Header().Set("X-Accel-Redirect", "/internal")
	fmt.Fprint(w, "page")
}

func (h *hostile) text() string { s, _ := h.seen.Load().(string); return s }

// No program of a sandbox ever sees what opens it, however that was sent.
func TestNoTokenReachesTheSandbox(t *testing.T) {
	w := newWorld(t, func(c *proxy.Config) { c.Login = &proxy.Login{Issuer: "https://issuer.test", ClientID: "c"} })
	h := &hostile{}
	port := app(t, h.ServeHTTP)
	const signed = "abcdefgh12345678"
	w.change(func() { w.signed[signed] = signedToken{sandboxA, port, time.Now().Add(time.Hour)} })
	own := at(port, sandboxA)
	jwt := "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJodHRwczovL2lzc3Vlci50ZXN0In0.c2ln"
	secrets := []string{keyA, tokenA, signed, jwt, "DAYTONA_SANDBOX_AUTH_KEY", "daytona-sandbox-auth", "Preview-Token"}
	for name, c := range map[string]struct {
		public bool
		url    string
		header []string
		want   string // is to be seen
	}{
		"key":             {false, own + "/p", []string{"Authorization", "Bearer " + keyA}, "GET /p\n"},
		"header":          {false, own + "/p", []string{"X-Daytona-Preview-Token", tokenA}, "GET /p"},
		"query":           {false, own + "/p?a=%2F&DAYTONA_SANDBOX_AUTH_KEY=" + tokenA + "&b=1;2", nil, "GET /p?a=%2F&b=1;2"},
		"query, escaped":  {false, own + "/p?%44AYTONA_SANDBOX_AUTH_KEY=" + tokenA, nil, "GET /p"},
		"query in query":  {false, own + "/p?x=1&DAYTONA_SANDBOX_AUTH_KEY=" + tokenA + "&next=%2Fq%3FDAYTONA_SANDBOX_AUTH_KEY%3D" + tokenA, nil, "GET /p?x=1"},
		"referer":         {false, own + "/p", []string{"X-Daytona-Preview-Token", tokenA, "Referer", own + "/x?DAYTONA_SANDBOX_AUTH_KEY=" + tokenA}, "Referer: " + own + "/x"},
		"signed":          {false, at(port, signed) + "/p", []string{"Referer", at(port, signed) + "/before", "Origin", at(port, signed)}, "Origin: " + own},
		"signed, another": {false, at(port, signed) + "/p", []string{"Referer", at(99, "zzzzzzzz12345678") + "/before"}, "GET /p"},
		"public, key":     {true, own + "/p", []string{"Authorization", "Bearer " + keyA, "X-Daytona-Preview-Token", tokenA}, "GET /p"},
		"public, token":   {true, own + "/p", []string{"Authorization", "Bearer " + jwt}, "GET /p"},
		"public, query":   {true, own + "/p?DAYTONA_SANDBOX_AUTH_KEY=" + tokenA, nil, "GET /p"},
		"public, cookie":  {true, own + "/p", []string{"Cookie", "a=1; __Host-daytona-sandbox-auth-x=" + tokenA + "; b=2"}, "Cookie: a=1; b=2"},
		"public, its own": {true, own + "/p", []string{"Authorization", "Bearer of-the-app"}, "Authorization: Bearer of-the-app"},
		"private, own":    {false, own + "/p", []string{"Authorization", "Basic of-the-app", "X-Daytona-Preview-Token", tokenA}, "Authorization: Basic of-the-app"},
	} {
		w.set(sandboxA, func(s *proxy.Sandbox) { s.Public = c.public })
		w.proxy.Forget()
		h.seen.Store("")
		a := w.call("GET", c.url, "", c.header...)
		seen := h.text()
		if a.status != 200 || !strings.Contains(seen, c.want) {
			t.Errorf("%s: %d %s\n%s\nwant %s", name, a.status, a.body, seen, c.want)
		}
		for _, secret := range secrets {
			if strings.Contains(seen, secret) {
				t.Errorf("%s: the sandbox sees %q:\n%s", name, secret, seen)
			}
		}
		if !strings.Contains(seen, "Host: "+strings.TrimPrefix(own, "https://")+"\n") || !strings.Contains(seen, "X-Forwarded-Proto: https") ||
			!strings.Contains(seen, "X-Forwarded-For: 127.0.0.1") {
			t.Errorf("%s:\n%s", name, seen)
		}
		for _, cookie := range a.header.Values("Set-Cookie") {
			if strings.Contains(cookie, "Domain") || strings.Contains(cookie, "forged") || strings.HasPrefix(cookie, "daytona-preview") {
				t.Errorf("%s: %s", name, cookie)
			}
		}
		if a.header.Get("X-Accel-Redirect") != "" {
			t.Errorf("%s: a server before this one takes orders", name)
		}
	}
	for _, secret := range []string{keyA, tokenA, signed, jwt} {
		if strings.Contains(w.log.String(), secret) {
			t.Errorf("%q is in the log", secret)
		}
	}
	if a := w.call("GET", at(port, signed)+"/", ""); a.header.Get("Referrer-Policy") != "same-origin" {
		t.Errorf("%v", a.header)
	}
}

// A browser's token becomes a cookie that is good for this sandbox and port,
// as long as the token is.
func TestCookie(t *testing.T) {
	w := newWorld(t, nil)
	h := &hostile{}
	port, other := app(t, h.ServeHTTP), app(t, h.ServeHTTP)
	own := at(port, sandboxA)
	a := w.call("GET", own+"/p?x=1&DAYTONA_SANDBOX_AUTH_KEY="+tokenA, "", "Accept", "text/html", "Sec-Fetch-Mode", "navigate")
	if a.status != 303 || a.header.Get("Location") != own+"/p?x=1" || a.header.Get("Referrer-Policy") != "no-referrer" || h.hits.Load() != 0 {
		t.Fatalf("%d %v", a.status, a.header)
	}
	cookies := (&http.Response{Header: a.header}).Cookies()
	if len(cookies) != 1 {
		t.Fatalf("%v", cookies)
	}
	c := cookies[0]
	if c.Name != "__Host-daytona-sandbox-auth-"+sandboxA || !c.HttpOnly || !c.Secure || c.Path != "/" || c.Domain != "" || c.SameSite != http.SameSiteLaxMode || c.MaxAge != 3600 ||
		strings.Contains(c.Value, tokenA) {
		t.Fatalf("%+v", c)
	}
	cookie := c.Name + "=" + c.Value
	const no = 401
	for name, x := range map[string]struct {
		url    string
		header []string
		status int
	}{
		"again":                {own + "/p", []string{"Cookie", cookie}, 200},
		"with others":          {own + "/p", []string{"Cookie", "a=b; " + c.Name + "=junk; " + cookie}, 200},
		"from its page":        {own + "/p", []string{"Cookie", cookie, "Origin", own, "Sec-Fetch-Site", "same-origin"}, 200},
		"by a link":            {own + "/p", []string{"Cookie", cookie, "Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate"}, 200},
		"by a sibling's page":  {own + "/p", []string{"Cookie", cookie, "Origin", at(port, sandboxB), "Sec-Fetch-Site", "same-site"}, no},
		"by a sibling's image": {own + "/p", []string{"Cookie", cookie, "Sec-Fetch-Site", "same-site", "Sec-Fetch-Mode", "no-cors"}, no},
		"by no origin":         {own + "/p", []string{"Cookie", cookie, "Origin", "null"}, no},
		"of another port":      {at(other, sandboxA) + "/p", []string{"Cookie", cookie}, no},
		"of another sandbox":   {at(port, sandboxB) + "/p", []string{"Cookie", strings.ReplaceAll(cookie, sandboxA, sandboxB)}, no},
		"for the toolbox":      {w.base() + "/toolbox/" + sandboxA + "/version", []string{"Cookie", cookie}, no},
		"changed":              {own + "/p", []string{"Cookie", cookie[:len(cookie)-4] + "AAAA"}, no},
		"without the prefix":   {own + "/p", []string{"Cookie", strings.TrimPrefix(cookie, "__Host-")}, no},
	} {
		if a := w.call("GET", x.url, "", x.header...); a.status != x.status {
			t.Errorf("%s: %d %s, want %d", name, a.status, a.body, x.status)
		}
	}
	// The next start of the sandbox has another token.
	w.change(func() { w.tokens[sandboxA] = "another" })
	w.proxy.Forget()
	if a := w.call("GET", own+"/p", "", "Cookie", cookie); a.status != no {
		t.Errorf("after the token was changed: %d", a.status)
	}
}

func TestSigned(t *testing.T) {
	w := newWorld(t, nil)
	h := &hostile{}
	port, other := app(t, h.ServeHTTP), app(t, h.ServeHTTP)
	const token = "abcdefgh12345678"
	set := func(d time.Duration) {
		w.change(func() { w.signed[token] = signedToken{sandboxA, port, time.Now().Add(d)} })
	}
	set(time.Minute)
	a := w.call("GET", at(port, token)+"/p", "", "Sec-Fetch-Mode", "navigate")
	if a.status != 200 || len(a.header.Values("Set-Cookie")) != 2 {
		t.Fatalf("%d %s %v", a.status, a.body, a.header)
	}
	cookie := ""
	for _, c := range (&http.Response{Header: a.header}).Cookies() {
		if strings.Contains(c.Name, "sandbox-auth") {
			cookie = c.Name + "=" + c.Value
		}
	}
	if a := w.call("GET", at(other, token)+"/p", ""); a.status != 403 {
		t.Errorf("another port: %d", a.status)
	}
	if a := w.call("GET", at(port, "abcdefgh12345679")+"/p", "", "Authorization", "Bearer "+keyA); a.status != 403 {
		t.Errorf("another token: %d", a.status)
	}
	set(-time.Second)
	if a := w.call("GET", at(port, token)+"/p", ""); a.status != 403 {
		t.Errorf("it is over: %d", a.status)
	}
	if a := w.call("GET", at(port, token)+"/p", "", "Cookie", cookie); a.status != 200 {
		t.Errorf("a page that was opened in time: %d %s", a.status, a.body)
	}
	w.change(func() { delete(w.signed, token) })
	if a := w.call("GET", at(port, token)+"/p", "", "Cookie", cookie); a.status != 403 {
		t.Errorf("it is revoked: %d", a.status)
	}
	// Nor does a cookie for one open the other, or the sandbox itself.
	if a := w.call("GET", at(port, sandboxA)+"/p", "", "Cookie", strings.ReplaceAll(cookie, token, sandboxA)); a.status != 401 {
		t.Errorf("%d", a.status)
	}
	// The program's own redirects lead to the host that the client knows.
	away := app(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "https://"+r.Host+"/there?x=1", http.StatusFound)
	})
	w.change(func() { w.signed[token] = signedToken{sandboxA, away, time.Now().Add(time.Minute)} })
	if a := w.call("GET", at(away, token)+"/p", ""); a.header.Get("Location") != at(away, token)+"/there?x=1" {
		t.Errorf("%v", a.header)
	}
}

// The ports of the system are never public, and are the agent's.
func TestSystemPorts(t *testing.T) {
	w := newWorld(t, nil)
	w.set(sandboxA, func(s *proxy.Sandbox) { s.Public = true })
	for _, port := range []int{2280, 22222, 33333} {
		if a := w.call("GET", at(port, sandboxA)+"/", ""); a.status != 401 {
			t.Errorf("%d: %d", port, a.status)
		}
	}
	if a := w.call("GET", at(2280, sandboxA)+"/version", "", "Authorization", "Bearer "+keyA); a.status != 200 || !strings.Contains(a.body, "version") {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := w.call("POST", at(2280, sandboxA)+"/init", "{}", "Authorization", "Bearer "+keyA); a.status != 403 {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := w.call("GET", at(22222, sandboxA)+"/", "", "Authorization", "Bearer "+keyA); a.status != 200 || !strings.Contains(a.body, "<html") {
		t.Errorf("%d %.100s", a.status, a.body)
	}
}

func TestSignedFiles(t *testing.T) {
	w := newWorld(t, nil)
	base := w.base() + "/toolbox/" + sandboxA + "/files/download?"
	a := w.call("POST", w.base()+"/toolbox/"+sandboxA+"/process/execute", `{"command":"echo -n text > f; echo -n other > g"}`, "Authorization", "Bearer "+keyA)
	if a.status != 200 {
		t.Fatal(a)
	}
	q := fileurl.Query("signing-key-of-"+sandboxA, "GET", "f", time.Now().Add(time.Minute).Unix())
	if a := w.call("GET", base+q.Encode(), ""); a.status != 200 || a.body != "text" {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := w.call("GET", base+q.Encode()+"&path=g", ""); a.status != 200 || a.body != "text" {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := w.call("DELETE", base+q.Encode(), ""); a.status != 401 {
		t.Errorf("%d %s", a.status, a.body)
	}
	q.Set("path", "g")
	if a := w.call("GET", base+q.Encode(), ""); a.status != 403 {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := w.call("GET", base+fileurl.Query("signing-key-of-"+sandboxA, "GET", "f", time.Now().Add(-time.Minute).Unix()).Encode(), ""); a.status != 403 || !strings.Contains(a.body, "expired") {
		t.Errorf("%d %s", a.status, a.body)
	}
}

// A WebSocket ends with the right to it, in both worlds: the toolbox's and that
// of a port.
func TestWebSocketEndsWithItsRight(t *testing.T) {
	echo := func(w http.ResponseWriter, r *http.Request) {
		ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
		if err != nil {
			return
		}
		defer ws.CloseNow()
		for {
			kind, b, err := ws.Read(r.Context())
			if err != nil || ws.Write(r.Context(), kind, b) != nil {
				return
			}
		}
	}
	for name, c := range map[string]struct {
		header http.Header
		query  string
		revoke func(w *world)
		about  string
	}{
		"key":       {http.Header{"Authorization": {"Bearer " + keyA}}, "", func(w *world) { delete(w.keys, keyA) }, "key-a"},
		"key, hash": {http.Header{"Authorization": {"Bearer " + keyA}}, "", func(w *world) { delete(w.keys, keyA) }, "1ebdbb1cef16cdd9f9ff4cb1d6e93a98d43d03e7f3a5f95dbcb5bcc5b0d1ff3a"},
		"member":    {http.Header{"Authorization": {"Bearer jwt-a"}}, "", func(w *world) { delete(w.members, "user-a") }, "org-a user-a"},
		"token":     {http.Header{"X-Daytona-Preview-Token": {tokenA}}, "", func(w *world) { w.tokens[sandboxA] = "next" }, sandboxA},
		"query":     {nil, "?DAYTONA_SANDBOX_AUTH_KEY=" + tokenA, func(w *world) { w.tokens[sandboxA] = "next" }, sandboxA},
		"stopped":   {http.Header{"Authorization": {"Bearer " + keyA}}, "", func(w *world) { s := w.all[sandboxA]; s.State = "stopped"; w.all[sandboxA] = s }, `{"name":"sandbox.state.updated","sandboxId":"` + sandboxA + `"}`},
		"lost":      {http.Header{"Authorization": {"Bearer " + keyA}}, "", func(w *world) { delete(w.keys, keyA) }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			if name == "key, hash" {
				c.about = hashOf(keyA)
			}
			w.change(func() { w.keys["jwt-a"] = &identity.Principal{Kind: identity.JWT, UserID: "user-a"} })
			port := app(t, echo)
			ws, resp, err := websocket.Dial(t.Context(), at(port, sandboxA)+"/ws"+c.query, &websocket.DialOptions{HTTPClient: w.client, HTTPHeader: c.header})
			if err != nil {
				t.Fatalf("%v %v", err, resp)
			}
			defer ws.CloseNow()
			for _, text := range []string{"one", strings.Repeat("x", 30000)} {
				if err := ws.Write(t.Context(), websocket.MessageText, []byte(text)); err != nil {
					t.Fatal(err)
				}
				if _, b, err := ws.Read(t.Context()); err != nil || string(b) != text {
					t.Fatalf("%q %v", b, err)
				}
			}
			// What has nothing to do with it changes nothing.
			if err := w.db.Publish(t.Context(), "changed", "key-b "+sandboxB); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { _, _, err := ws.Read(t.Context()); ended <- err }()
			w.change(func() { c.revoke(w) })
			began := time.Now()
			if err := w.db.Publish(t.Context(), "changed", c.about); err != nil {
				t.Fatal(err)
			}
			select {
			case err := <-ended:
				if err == nil || time.Since(began) > time.Second {
					t.Errorf("%v after %v", err, time.Since(began))
				}
			case <-time.After(5 * time.Second):
				t.Fatal("it is still open")
			}
			if _, _, err := websocket.Dial(t.Context(), at(port, sandboxA)+"/ws"+c.query, &websocket.DialOptions{HTTPClient: w.client, HTTPHeader: c.header}); err == nil {
				t.Error("it can be opened again")
			}
		})
	}
}

// Clients that can set no headers offer their version as a protocol, which has
// to be selected, whoever is at the other end.
func TestSubprotocol(t *testing.T) {
	w := newWorld(t, nil)
	port := app(t, func(w http.ResponseWriter, r *http.Request) {
		ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
		if err == nil {
			ws.Close(websocket.StatusNormalClosure, "")
		}
	})
	for _, url := range []string{at(port, sandboxA) + "/ws", w.base() + "/toolbox/" + sandboxA + "/process/interpreter/execute"} {
		ws, _, err := websocket.Dial(t.Context(), url+"?DAYTONA_SANDBOX_AUTH_KEY="+tokenA,
			&websocket.DialOptions{HTTPClient: w.client, Subprotocols: []string{"other", "X-Daytona-SDK-Version~0.216.0"}})
		if err != nil {
			t.Fatal(err)
		}
		if ws.Subprotocol() != "X-Daytona-SDK-Version~0.216.0" {
			t.Errorf("%s: %q", url, ws.Subprotocol())
		}
		ws.CloseNow()
	}
}

// Bodies are streams, both ways and at the same time, and as large as they are.
func TestStreams(t *testing.T) {
	w := newWorld(t, nil)
	const size = 100 << 20
	port := app(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/events":
			fmt.Fprint(w, "first")
			http.NewResponseController(w).Flush()
			<-r.Context().Done()
		case "/up":
			n, err := io.Copy(io.Discard, r.Body)
			fmt.Fprint(w, n, err)
		case "/down":
			buf := make([]byte, 1<<20)
			for range size >> 20 {
				if _, err := w.Write(buf); err != nil {
					return
				}
			}
		}
	})
	for _, http2 := range []bool{false, true} {
		client := w.clientOf(http2)
		do := func(method, path string, body io.Reader) *http.Response {
			r, err := http.NewRequestWithContext(t.Context(), method, at(port, sandboxA)+path, body)
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Authorization", "Bearer "+keyA)
			resp, err := client.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			if http2 != (resp.ProtoMajor == 2) {
				t.Errorf("%s", resp.Proto)
			}
			return resp
		}
		resp := do("GET", "/events", nil)
		b := make([]byte, 5)
		if _, err := io.ReadFull(resp.Body, b); err != nil || string(b) != "first" {
			t.Errorf("%q %v", b, err)
		}
		resp.Body.Close()
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		resp = do("POST", "/up", io.LimitReader(zeros{}, size))
		if b, err := io.ReadAll(resp.Body); err != nil || string(b) != fmt.Sprint(size, " <nil>") && string(b) != fmt.Sprint(size)+" <nil>" && string(b) != fmt.Sprint(size)+"<nil>" {
			t.Errorf("%s %v", b, err)
		}
		resp.Body.Close()
		resp = do("GET", "/down", nil)
		if n, err := io.Copy(io.Discard, resp.Body); n != size || err != nil {
			t.Errorf("%d %v", n, err)
		}
		resp.Body.Close()
		runtime.ReadMemStats(&after)
		if grown := int64(after.HeapSys) - int64(before.HeapSys); grown > 48<<20 {
			t.Errorf("the heap has grown by %d MiB for %d MiB", grown>>20, 2*size>>20)
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestCORS(t *testing.T) {
	w := newWorld(t, nil)
	h := &hostile{}
	port := app(t, h.ServeHTTP)
	for _, url := range []string{at(port, sandboxA) + "/p", w.base() + "/toolbox/" + sandboxA + "/version", w.base() + "/sandboxes/x/build-logs"} {
		a := w.call("OPTIONS", url, "", "Origin", "https://app.test", "Access-Control-Request-Method", "POST", "Access-Control-Request-Headers", "authorization,x-any")
		if a.status != 204 || a.header.Get("Access-Control-Allow-Origin") != "https://app.test" || a.header.Get("Access-Control-Allow-Credentials") != "true" ||
			a.header.Get("Access-Control-Allow-Headers") != "authorization,x-any" {
			t.Errorf("%s: %d %v", url, a.status, a.header)
		}
	}
	a := w.call("GET", at(port, sandboxA)+"/p", "", "Origin", "https://app.test", "X-Daytona-Preview-Token", tokenA)
	if a.status != 200 || a.header.Get("Access-Control-Allow-Origin") != "https://app.test" {
		t.Errorf("%d %v", a.status, a.header)
	}
	a = w.call("GET", at(port, sandboxA)+"/p", "", "Origin", "https://app.test", "X-Daytona-Preview-Token", tokenA, "X-Daytona-Disable-CORS", "true")
	if a.status != 200 || a.header.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("%d %v", a.status, a.header)
	}
	// Errors can be read, too.
	if a = w.call("GET", at(port, sandboxA)+"/p", "", "Origin", "https://app.test"); a.status != 401 || a.header.Get("Access-Control-Allow-Origin") != "https://app.test" {
		t.Errorf("%d %v", a.status, a.header)
	}
}

func TestWarning(t *testing.T) {
	w := newWorld(t, nil)
	h := &hostile{}
	port := app(t, h.ServeHTTP)
	w.set(sandboxA, func(s *proxy.Sandbox) { s.Public, s.Warning = true, true })
	own := at(port, sandboxA)
	const browser = "Mozilla/5.0 (X11; Linux x86_64)"
	a := w.call("GET", own+"/p?x=%22%3E%3Cscript%3E", "", "User-Agent", browser)
	if a.status != 200 || h.hits.Load() != 0 || !strings.Contains(a.body, "accept-daytona-preview-warning?redirect=") || strings.Contains(a.body, "<script>") ||
		!strings.Contains(a.header.Get("Content-Security-Policy"), "frame-ancestors 'none'") {
		t.Fatalf("%d %s", a.status, a.body)
	}
	for name, header := range map[string][]string{
		"curl":    {"User-Agent", "curl/8"},
		"header":  {"User-Agent", browser, "X-Daytona-Skip-Preview-Warning", "true"},
		"cookie":  {"User-Agent", browser, "Cookie", "__Host-daytona-preview-page-accepted=true"},
		"picture": {"User-Agent", browser, "Sec-Fetch-Mode", "no-cors"},
	} {
		if a := w.call("GET", own+"/p", "", header...); a.body != "page" {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
	}
	a = w.call("POST", own+"/accept-daytona-preview-warning?redirect="+strings.ReplaceAll(own+"/p?x=1", "&", "%26"), "", "Origin", own)
	c := (&http.Response{Header: a.header}).Cookies()
	if a.status != 302 || a.header.Get("Location") != own+"/p?x=1" || len(c) != 1 || c[0].Name != "__Host-daytona-preview-page-accepted" || c[0].MaxAge != 86400 || c[0].SameSite != http.SameSiteNoneMode || !c[0].Secure {
		t.Errorf("%d %v", a.status, a.header)
	}
	for _, evil := range []string{"https://evil.test/", "//evil.test/", "https://" + domain + "/", "https:/\\evil.test", "javascript:alert(1)", "https://x@evil.test", own + "@evil.test/", "http://evil.test%2F"} {
		a := w.call("POST", own+"/accept-daytona-preview-warning?redirect="+evil, "", "Origin", own)
		if l := a.header.Get("Location"); l != "" && !strings.HasPrefix(l, own+"/") {
			t.Errorf("%s: sent to %s", evil, l)
		}
	}
	if a := w.call("POST", own+"/accept-daytona-preview-warning?redirect="+own, "", "Origin", "https://evil.test"); a.status != 403 {
		t.Errorf("%d", a.status)
	}
}

// What is on the wire means one thing only.
func TestRawRequests(t *testing.T) {
	w := newWorld(t, nil)
	h := &hostile{}
	port := app(t, h.ServeHTTP)
	w.set(sandboxA, func(s *proxy.Sandbox) { s.Public = true })
	name := strings.TrimPrefix(at(port, sandboxA), "https://")
	for what, c := range map[string]struct {
		request string
		status  int
	}{
		"plain":          {"GET /p HTTP/1.1\r\nHost: " + name + "\r\n\r\n", 200},
		"upper case":     {"GET /p HTTP/1.1\r\nHost: " + strings.ToUpper(name) + "\r\n\r\n", 200},
		"a final dot":    {"GET /p HTTP/1.1\r\nHost: " + name + ".\r\n\r\n", 200},
		"a port":         {"GET /p HTTP/1.1\r\nHost: " + name + ":443\r\n\r\n", 200},
		"two hosts":      {"GET /p HTTP/1.1\r\nHost: " + name + "\r\nHost: evil\r\n\r\n", 400},
		"absolute form":  {"GET https://" + name + "/p HTTP/1.1\r\nHost: " + domain + "\r\n\r\n", 400},
		"no host":        {"GET /p HTTP/1.1\r\n\r\n", 400},
		"asterisk":       {"OPTIONS * HTTP/1.1\r\nHost: " + name + "\r\n\r\n", 200}, // net/http's own answer: nothing of ours
		"connect":        {"CONNECT " + name + ":443 HTTP/1.1\r\nHost: " + name + ":443\r\n\r\n", 400},
		"another domain": {"GET /p HTTP/1.1\r\nHost: " + strings.Replace(name, domain, "evil.test", 1) + "\r\n\r\n", 404},
		"domain within":  {"GET /p HTTP/1.1\r\nHost: " + name + ".evil.test\r\n\r\n", 404},
		"two lengths":    {"POST /p HTTP/1.1\r\nHost: " + name + "\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx", 400},
		"bad chunking":   {"POST /p HTTP/1.1\r\nHost: " + name + "\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", 501},
		"a space":        {"GET /p HTTP/1.1\r\nHost : " + name + "\r\n\r\n", 400},
		"a line end":     {"GET /p HTTP/1.1\r\nHost: " + name + "\r\nX: a\rb\r\n\r\n", 400},
	} {
		h.seen.Store("")
		conn, err := tls.Dial("tcp", w.server.Listener.Addr().String(), &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		io.WriteString(conn, c.request)
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil || resp.StatusCode != c.status {
			t.Errorf("%s: %v %v, want %d", what, resp, err, c.status)
		}
		conn.Close()
		if (c.status != 200 || what == "asterisk") && h.text() != "" {
			t.Errorf("%s reached the sandbox:\n%s", what, h.text())
		}
	}
	// Where both a length and chunks are given, the length counts for nobody,
	// and what one hop only is told is not passed on.
	conn, err := tls.Dial("tcp", w.server.Listener.Addr().String(), &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	io.WriteString(conn, "POST /p HTTP/1.1\r\nHost: "+name+"\r\nContent-Length: 100\r\nTransfer-Encoding: chunked\r\nConnection: X-Hop, keep-alive\r\nX-Hop: 1\r\nKeep-Alive: x\r\nProxy-Authorization: x\r\nTE: gzip\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
	if resp, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil || resp.StatusCode != 200 && resp.StatusCode != 400 {
		t.Errorf("%v %v", resp, err)
	}
	for _, bad := range []string{"X-Hop", "Proxy-Authorization", "Te:", "Content-Length: 100", "Keep-Alive"} {
		if strings.Contains(h.text(), bad) {
			t.Errorf("%s was passed on:\n%s", bad, h.text())
		}
	}
}

// A client that goes away takes its request with it.
func TestClientGone(t *testing.T) {
	w := newWorld(t, nil)
	gone := make(chan struct{})
	port := app(t, func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
		close(gone)
	})
	ctx, cancel := context.WithCancel(t.Context())
	r, _ := http.NewRequestWithContext(ctx, "GET", at(port, sandboxA)+"/", nil)
	r.Header.Set("Authorization", "Bearer "+keyA)
	resp, err := w.client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	resp.Body.Close()
	select {
	case <-gone:
	case <-time.After(5 * time.Second):
		t.Error("the sandbox still works for nobody")
	}
}

type builds struct{}

func (b builds) SnapshotLogs(_ context.Context, org, id string, follow bool) (io.ReadCloser, error) {
	if org != orgA || id != "snap/one:1" {
		return nil, &daytona.Error{Kind: daytona.KindNotFound, Message: "Snapshot with ID or name " + id + " not found"}
	}
	return io.NopCloser(strings.NewReader(fmt.Sprint("log of ", id, " ", follow))), nil
}

func (b builds) SandboxLogs(_ context.Context, org, id string, follow bool) (io.ReadCloser, error) {
	if org != orgA {
		return nil, daytona.ErrNotFound
	}
	r, w := io.Pipe()
	go func() { fmt.Fprint(w, "line of ", id); <-time.After(10 * time.Millisecond); w.Close() }()
	return r, nil
}

func TestBuildLogs(t *testing.T) {
	w := newWorld(t, func(c *proxy.Config) { c.Builds = builds{} })
	w.change(func() { w.keys["jwt-a"] = &identity.Principal{Kind: identity.JWT, UserID: "user-a"} })
	for name, c := range map[string]struct {
		path   string
		header []string
		status int
		text   string
	}{
		"snapshot":       {"/snapshots/snap%2Fone:1/build-logs?follow=true", []string{"Authorization", "Bearer " + keyA}, 200, "log of snap/one:1 true"},
		"not follow":     {"/snapshots/snap%2Fone:1/build-logs", []string{"Authorization", "Bearer " + keyA}, 200, "log of snap/one:1 false"},
		"token":          {"/snapshots/snap%2Fone:1/build-logs", []string{"Authorization", "Bearer jwt-a", "X-Daytona-Organization-ID", orgA}, 200, "log of"},
		"token, no org":  {"/snapshots/snap%2Fone:1/build-logs", []string{"Authorization", "Bearer jwt-a"}, 404, "not found"},
		"other org":      {"/snapshots/snap%2Fone:1/build-logs", []string{"Authorization", "Bearer jwt-a", "X-Daytona-Organization-ID", orgB}, 404, "not found"},
		"another":        {"/snapshots/snap%2Fone:1/build-logs", []string{"Authorization", "Bearer " + keyB}, 404, "not found"},
		"nobody":         {"/snapshots/snap%2Fone:1/build-logs", nil, 401, "missing authentication"},
		"sandbox":        {"/sandboxes/" + sandboxA + "/build-logs?follow=true", []string{"Authorization", "Bearer " + keyA}, 200, "line of " + sandboxA},
		"sandbox, token": {"/sandboxes/" + sandboxA + "/build-logs?follow=true", []string{"Authorization", "Bearer jwt-a"}, 200, "line of " + sandboxA},
		"sandbox, other": {"/sandboxes/" + sandboxA + "/build-logs", []string{"Authorization", "Bearer " + keyB}, 404, "not found"},
	} {
		a := w.call("GET", w.base()+c.path, "", c.header...)
		if a.status != c.status || !strings.Contains(a.body, c.text) || a.status == 200 && a.header.Get("Content-Type") != "application/octet-stream" {
			t.Errorf("%s: %d %s %v", name, a.status, a.body, a.header)
		}
	}
}

// Plain HTTP has cookies without the prefix, and HTTP/2 without TLS works.
func TestPlainHTTP(t *testing.T) {
	w := newWorld(t, func(c *proxy.Config) { c.Protocol = "http" })
	h := &hostile{}
	port := app(t, h.ServeHTTP)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: w.proxy, Protocols: new(http.Protocols)}
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetUnencryptedHTTP2(true)
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	for _, h2c := range []bool{false, true} {
		tr := &http.Transport{Protocols: new(http.Protocols), DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", l.Addr().String())
		}}
		tr.Protocols.SetHTTP1(!h2c)
		tr.Protocols.SetUnencryptedHTTP2(h2c)
		r, _ := http.NewRequestWithContext(t.Context(), "GET", strings.Replace(at(port, sandboxA), "https", "http", 1)+"/?DAYTONA_SANDBOX_AUTH_KEY="+tokenA, nil)
		r.Header.Set("Sec-Fetch-Mode", "navigate")
		resp, err := tr.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if c := resp.Cookies(); resp.StatusCode != 303 || len(c) != 1 || c[0].Name != "daytona-sandbox-auth-"+sandboxA || c[0].Secure || h2c != (resp.ProtoMajor == 2) {
			t.Errorf("%s %v %v", resp.Proto, resp.Status, c)
		}
		tr.CloseIdleConnections()
	}
}

// gRPC gets through: it is HTTP/2 with trailers at both ends.
func TestGRPC(t *testing.T) {
	w := newWorld(t, nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Protocols: new(http.Protocols), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Trailer", "Grpc-Status")
		http.NewResponseController(w).Flush() // as gRPC servers do: there is no length
		fmt.Fprintf(w, "%s %s", r.Proto, b)
		w.Header().Set("Grpc-Status", "0")
	})}
	srv.Protocols.SetUnencryptedHTTP2(true)
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	r, _ := http.NewRequestWithContext(t.Context(), "POST", at(l.Addr().(*net.TCPAddr).Port, sandboxA)+"/svc/Method", io.MultiReader(strings.NewReader("message")))
	r.Header.Set("Content-Type", "application/grpc")
	r.Header.Set("TE", "trailers")
	r.Header.Set("X-Daytona-Preview-Token", tokenA)
	resp, err := w.clientOf(true).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || string(b) != "HTTP/2.0 message" || resp.ProtoMajor != 2 || resp.Trailer.Get("Grpc-Status") != "0" {
		t.Errorf("%s %q %v %v", resp.Proto, b, resp.Trailer, err)
	}
}
