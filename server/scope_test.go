package server_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/daytona-go/daytona/server"
)

// at makes a request to a host, with headers as name, value, ….
func (w *tenants) at(method, host, target string, headers ...string) sent {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	q := request(ctx, method, host, target)
	for i := 0; i < len(headers); i += 2 {
		q.Header.Add(headers[i], headers[i+1])
	}
	rec := httptest.NewRecorder()
	w.ServeHTTP(rec, q)
	return sent{rec.Code, rec.Body.String(), rec.Header()}
}

// request is one as it comes from a connection, whatever its target is.
func request(ctx context.Context, method, host, target string) *http.Request {
	q := httptest.NewRequestWithContext(ctx, method, "/", nil)
	q.Host, q.RequestURI = host, target
	if u, err := url.ParseRequestURI(target); err == nil {
		q.URL = u
	}
	return q
}

// preview is the host of a port of a sandbox.
func (w *tenants) preview(port, label string) string {
	return port + "-" + label + ".proxy." + strings.TrimPrefix(w.URL, "http://")
}

// let says that the proxy has let a request in: nothing listens behind it.
func let(a sent) bool {
	return a.status != 401 && a.status != 403 && a.status != 404 && a.status/100 != 3 && a.status != 400
}

// What is for one thing opens no other, and nothing once it has ended.
func TestTokenScope(t *testing.T) {
	w := newTenants(t, "", nil)
	w.furnish()
	id, a := w.a["sandboxId"], w.a["organizationId"]
	other := text(w.must("POST", "/sandbox", w.keys["A"], "", map[string]any{"name": "other"}), "id")
	otherToken := text(w.must("GET", "/sandbox/"+other+"/ports/3000/preview-url", w.keys["A"], "", nil), "token")
	credentials := map[string]string{"other's preview": otherToken, "health": healthKey, "collector": collectorKey, "service proxy": proxyKey, "service gateway": gatewayKey}
	for k, v := range w.keys {
		credentials[k] = v
	}
	doors := map[string]struct {
		open []string // to whom
		try  func(secret string) sent
	}{
		"a port, as bearer": {[]string{"alice", "mia", "A", "A none"}, func(s string) sent { return w.at("GET", w.preview("3000", id), "/", "Authorization", "Bearer "+s) }},
		"a port, as token":  {[]string{"preview"}, func(s string) sent { return w.at("GET", w.preview("3000", id), "/", "X-Daytona-Preview-Token", s) }},
		"a port, as cookie": {nil, func(s string) sent {
			return w.at("GET", w.preview("3000", id), "/", "Cookie", "daytona-sandbox-auth-"+id+"="+s)
		}},
		"a port, as label":       {[]string{"signed"}, func(s string) sent { return w.at("GET", w.preview("3000", s), "/") }},
		"another port, as label": {nil, func(s string) sent { return w.at("GET", w.preview("3001", s), "/") }},
		"toolbox port, as label": {nil, func(s string) sent { return w.at("GET", w.preview("2280", s), "/version") }},
		"the toolbox, as bearer": {[]string{"alice", "mia", "A", "A none"}, nil},
		"SSH":                    {[]string{"ssh"}, nil},
		"a signed file's address": {nil, func(s string) sent {
			return w.at("GET", strings.TrimPrefix(w.URL, "http://"), "/toolbox/"+id+"/files/download?path=/etc/passwd&signature="+s)
		}},
	}
	host := strings.TrimPrefix(w.URL, "http://")
	d := doors["the toolbox, as bearer"]
	d.try = func(s string) sent { return w.at("GET", host, "/toolbox/"+id+"/version", "Authorization", "Bearer "+s) }
	doors["the toolbox, as bearer"] = d
	d = doors["SSH"]
	d.try = func(s string) sent {
		a := w.do("GET", "/sandbox/ssh-access/validate?token="+s, gatewayKey, "", nil)
		if !strings.Contains(a.body, `"valid":true`) {
			a.status = 401
		}
		return a
	}
	doors["SSH"] = d
	for name, door := range doors {
		for who, secret := range credentials {
			got := door.try(secret)
			if want := slices.Contains(door.open, who); let(got) != want {
				t.Errorf("%s, with what is for %s: %d %s", name, who, got.status, got.body)
			}
			if strings.Contains(got.body, secret) && !strings.HasPrefix(name, "SSH") {
				t.Errorf("%s, with what is for %s: it is in the answer: %s", name, who, got.body)
			}
		}
	}
	if got := w.at("GET", w.preview("3000", other), "/", "X-Daytona-Preview-Token", w.keys["preview"]); let(got) {
		t.Errorf("another sandbox: %d", got.status)
	}

	// What ends, ends: for those who remember it, too.
	refused := func(what string, try func() sent) {
		t.Helper()
		began := time.Now()
		for let(try()) {
			if time.Since(began) > 20*time.Second {
				t.Errorf("%s still opens", what)
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
		t.Logf("%s: %v", what, time.Since(began))
	}
	key := w.apiKey("alice", a, "short-lived", everything())
	byKey := func() sent { return w.at("GET", w.preview("3000", id), "/", "Authorization", "Bearer "+key) }
	toolbox := func() sent { return w.at("GET", host, "/toolbox/"+id+"/version", "Authorization", "Bearer "+key) }
	if !let(byKey()) || !let(toolbox()) || w.do("GET", "/sandbox", key, "", nil).status != 200 {
		t.Fatal("a new key opens nothing")
	}
	w.must("DELETE", "/api-keys/short-lived", w.keys["alice"], a, nil)
	if got := w.do("GET", "/sandbox", key, "", nil); got.status != 401 {
		t.Errorf("a revoked key: %d", got.status)
	}
	refused("a revoked key, at a port", byKey)
	refused("a revoked key, at the toolbox", toolbox)
	w.must("POST", "/sandbox/"+id+"/ports/3000/signed-preview-url/"+w.keys["signed"]+"/expire", w.keys["A"], "", nil)
	refused("a signed URL that was ended", func() sent { return w.at("GET", w.preview("3000", w.keys["signed"]), "/") })
	short := text(w.must("GET", "/sandbox/"+id+"/ports/3000/signed-preview-url?expiresInSeconds=1", w.keys["A"], "", nil), "token")
	refused("a signed URL whose time is over", func() sent { return w.at("GET", w.preview("3000", short), "/") })
	w.must("DELETE", "/sandbox/"+id+"/ssh-access?token="+w.keys["ssh"], w.keys["A"], "", nil)
	refused("an SSH token that was ended", func() sent { return doors["SSH"].try(w.keys["ssh"]) })
	mia := func() sent { return w.at("GET", w.preview("3000", id), "/", "Authorization", "Bearer "+w.keys["mia"]) }
	if !let(mia()) {
		t.Error("a member is not let in")
	}
	w.must("DELETE", "/organizations/"+a+"/users/mia", w.keys["alice"], "", nil)
	if got := w.do("GET", "/sandbox", w.keys["mia"], a, nil); got.status != 403 {
		t.Errorf("who is no member any more: %d", got.status)
	}
	refused("who is no member any more, at a port", mia)
	w.must("DELETE", "/sandbox/"+other, w.keys["A"], "", nil)
	refused("a sandbox that is deleted", func() sent { return w.at("GET", w.preview("3000", other), "/", "X-Daytona-Preview-Token", otherToken) })
}

// The host decides what serves a request, and it is read in one way; nothing
// else that a request says of hosts counts.
func TestHostConfusion(t *testing.T) {
	w := newTenants(t, "", func(c *server.Config) { c.Client = nil })
	id := unknown()
	host := strings.TrimPrefix(w.URL, "http://")
	_, port, _ := net.SplitHostPort(host)
	who := func(a sent) string {
		switch {
		case a.header.Get("X-Daytona-Api-Version") != "":
			return "API"
		case a.status == 400:
			return "400"
		}
		return "proxy"
	}
	preview := w.preview("3000", id)
	for h, want := range map[string]string{
		host: "API", "localhost": "API", "evil.example": "API", preview: "proxy", strings.ToUpper(preview): "proxy",
		"3000-" + id + ".proxy.localhost":                  "proxy",
		"3000-" + id + ".proxy.localhost.:" + port:         "proxy",
		"3000-" + id + ".proxy.localhost.evil.example":     "API",
		"3000-" + id + ".evil-proxy.localhost":             "API",
		"3000-" + id + ".proxy.localhost:99999":            "API",
		"x.3000-" + id + ".proxy.localhost":                "API",
		"03000-" + id + ".proxy.localhost":                 "API",
		"0-" + id + ".proxy.localhost":                     "API",
		"65536-" + id + ".proxy.localhost":                 "API",
		"2280-" + strings.ToUpper(id) + ".PROXY.localhost": "proxy",
		"[::1]:" + port: "API", "127.0.0.1": "API", "3000-" + id + ".[::1]": "API",
		"3000-" + id + ".proxy.localhost\u212a": "API",
	} {
		q := request(t.Context(), "GET", h, "/api/health")
		rec := httptest.NewRecorder()
		w.ServeHTTP(rec, q)
		if got := who(sent{rec.Code, rec.Body.String(), rec.Header()}); got != want {
			t.Errorf("%q: served by %s, not %s: %d %s", h, got, want, rec.Code, rec.Body)
		}
	}
	// Only the host itself counts.
	for _, name := range []string{"X-Forwarded-Host", "X-Host", "Forwarded", "X-Original-Host", "X-Forwarded-Server", "X-Original-URL", "X-Rewrite-URL", ":authority"} {
		for _, c := range []struct{ host, claimed, want string }{{host, preview, "API"}, {preview, host, "proxy"}} {
			v := c.claimed
			if name == "Forwarded" {
				v = "host=" + v
			}
			if got := who(w.at("GET", c.host, "/api/health", name, v)); got != c.want {
				t.Errorf("%s: %s served by %s", name, c.host, got)
			}
		}
	}
	// On the wire: what can be read in two ways is not read at all.
	raw := func(request string) (int, string) {
		t.Helper()
		c, err := net.Dial("tcp", host)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := io.WriteString(c, request); err != nil {
			t.Fatal(err)
		}
		c.(*net.TCPConn).CloseWrite()
		b, _ := io.ReadAll(c)
		line, _, _ := strings.Cut(string(b), "\r\n")
		status := 0
		if f := strings.Fields(line); len(f) > 1 {
			for _, d := range f[1] {
				status = status*10 + int(d-'0')
			}
		}
		return status, string(b)
	}
	smuggled := "GET /api/smuggled HTTP/1.1\r\nHost: " + host + "\r\n\r\n"
	for what, request := range map[string]string{
		"two hosts":             "GET /api/health HTTP/1.1\r\nHost: " + host + "\r\nHost: " + preview + "\r\n\r\n",
		"no host":               "GET /api/health HTTP/1.1\r\n\r\n",
		"a user":                "GET /api/health HTTP/1.1\r\nHost: a@" + preview + "\r\n\r\n",
		"a space in the host":   "GET /api/health HTTP/1.1\r\nHost: " + host + " " + preview + "\r\n\r\n",
		"a path in the host":    "GET /api/health HTTP/1.1\r\nHost: " + host + "/" + preview + "\r\n\r\n",
		"a name with a space":   "GET /api/health HTTP/1.1\r\nHost : " + host + "\r\n\r\n",
		"a folded line":         "GET /api/health HTTP/1.1\r\nHost: " + host + "\r\n " + preview + "\r\n\r\n",
		"a bare CR":             "GET /api/health HTTP/1.1\r\nHost: " + host + "\rX: y\r\n\r\n",
		"two lengths":           "POST /api/sandbox HTTP/1.1\r\nHost: " + host + "\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\n" + smuggled,
		"a length with a sign":  "POST /api/sandbox HTTP/1.1\r\nHost: " + host + "\r\nContent-Length: +5\r\n\r\n" + smuggled,
		"two codings":           "POST /api/sandbox HTTP/1.1\r\nHost: " + host + "\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + smuggled,
		"a coding with a tab":   "POST /api/sandbox HTTP/1.1\r\nHost: " + host + "\r\nTransfer-Encoding: \x0bchunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + smuggled,
		"a chunk with a sign":   "POST /api/sandbox HTTP/1.1\r\nHost: " + host + "\r\nAuthorization: Bearer " + adminKey + "\r\nTransfer-Encoding: chunked\r\n\r\n+1\r\nx\r\n0\r\n\r\n",
		"an endless header":     "GET /api/health HTTP/1.1\r\nHost: " + host + "\r\nX: " + strings.Repeat("x", 2<<20) + "\r\n\r\n",
		"another host absolute": "GET http://" + preview + "/api/health HTTP/1.1\r\nHost: " + host + "\r\n\r\n",
	} {
		status, answer := raw(request)
		if status != 0 && (status < 400 || status >= 600 || status == 500) {
			t.Errorf("%s: %d %.200s", what, status, answer)
		}
		if strings.Contains(answer, "/api/smuggled") {
			t.Errorf("%s: a second request was found in the body: %s", what, answer)
		}
	}
	// A length beside chunks: the chunks count, and the connection ends there.
	if status, answer := raw("POST /api/health HTTP/1.1\r\nHost: " + host + "\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + smuggled); strings.Contains(answer, "/api/smuggled") && strings.Count(answer, "HTTP/1.1 ") > 2 {
		t.Errorf("%d %s", status, answer)
	}
	// HTTP/2 has the host elsewhere.
	h2 := httptest.NewUnstartedServer(w)
	h2.EnableHTTP2 = true
	h2.StartTLS()
	defer h2.Close()
	for h, want := range map[string]string{host: "API", preview: "proxy", preview + ".evil.example": "API"} {
		q, err := http.NewRequestWithContext(t.Context(), "GET", h2.URL+"/api/health", nil)
		if err != nil {
			t.Fatal(err)
		}
		q.Host = h
		q.Header.Set("X-Forwarded-Host", host)
		resp, err := h2.Client().Transport.RoundTrip(q) // follows nothing
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if got := who(sent{resp.StatusCode, "", resp.Header}); got != want || resp.ProtoMajor != 2 {
			t.Errorf("%s by HTTP/%d: %s", h, resp.ProtoMajor, got)
		}
	}
	// Paths are read once, too, by all that serve some.
	for _, target := range []string{"/toolbox/a%00b/version", "/toolbox/%ff/version", "/toolbox/" + id + "%2f..%2fx/version", "/toolbox//version", "/toolbox/../api/health", "/toolbox/" + id + "/../../api/admin/users",
		"/api/../api/admin/users", "/api//admin/users", "/api/%2e%2e/admin/users", "/api/;/admin/users", "/API/admin/users", "//api/admin/users", "/v2/a%00b/manifests/x", "/v2/../api/admin/users", "/v2/%ff/tags/list",
		"/sandboxes/a%00b/build-logs", "/snapshots/a%00b/build-logs", "/api/socket.io/?EIO=4&transport=websocket&organizationId=%00", "/oidc/a%00b", "/%00", "/daytona/%00?X-Amz-Algorithm=AWS4-HMAC-SHA256", "/api-json/../api/admin/users"} {
		got := w.at("GET", host, target, "Authorization", "Bearer "+w.keys["alice"])
		if got.status < 300 && !strings.HasPrefix(target, "/toolbox/../") || got.status >= 500 && got.status != 503 {
			t.Errorf("%s: %d %s", target, got.status, got.body)
		}
	}
	// Any page may ask the API, and brings no cookie; none is made.
	for _, origin := range []string{"https://evil.example", "null", w.URL, "http://" + preview} {
		for _, method := range []string{"GET", "OPTIONS"} {
			got := w.at(method, host, "/api/sandbox", "Origin", origin, "Access-Control-Request-Method", "DELETE", "Access-Control-Request-Headers", "authorization", "Cookie", "session=x")
			if got.header.Get("Access-Control-Allow-Credentials") != "" || got.header.Get("Set-Cookie") != "" || method == "GET" && got.status != 401 {
				t.Errorf("%s %s: %d %v", method, origin, got.status, got.header)
			}
		}
	}
	for _, size := range []int{9 << 20, 64 << 20} {
		got := w.do("POST", "/volumes", w.keys["alice"], w.a["organizationId"], `{"name":"`+strings.Repeat("a", size)+`"}`)
		if got.status != 413 {
			t.Errorf("a body of %d MiB: %d", size>>20, got.status)
		}
	}
}

// Nothing that a user names leads the server to what only it can reach.
func TestServerSideRequests(t *testing.T) {
	var reached atomic.Int64
	inside := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		reached.Add(1)
		io.WriteString(w, `{"issuer":"inside"}`)
	}))
	defer inside.Close()
	// An address that may be reached, from where it goes on to one that may not.
	l, err := net.Listen("tcp", "127.0.0.2:0")
	if err != nil {
		t.Skipf("there is no second address: %v", err)
	}
	redirects := &httptest.Server{Listener: l, Config: &http.Server{Handler: http.RedirectHandler(inside.URL, http.StatusFound)}}
	redirects.Start()
	defer redirects.Close()
	w := newTenants(t, "", func(c *server.Config) { c.Client, c.AllowedAddresses = nil, []string{"127.0.0.2"} })
	a, alice := w.a["organizationId"], w.keys["alice"]
	key := w.apiKey("alice", a, "a", everything())
	w.must("POST", "/organizations/"+a+"/sso-enabled", alice, "", map[string]any{"ssoEnabled": true})
	_, port, _ := net.SplitHostPort(strings.TrimPrefix(inside.URL, "http://"))
	urls := []string{redirects.URL}
	for _, h := range []string{"127.0.0.1", "localhost", "LOCALHOST", "localhost.", "x.localhost", "0.0.0.0", "0", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[64:ff9b::7f00:1]",
		"[2002:7f00:1::]", "169.254.169.254", "[fd00:ec2::254]", "metadata.google.internal", "10.0.0.1", "172.16.0.1", "192.168.0.1", "100.64.0.1", "[fe80::1]", "user@127.0.0.1", "127.0.0.1%2f@example.com"} {
		urls = append(urls, "http://"+h+":"+port)
	}
	if name, err := os.Hostname(); err == nil {
		urls = append(urls, "http://"+name+":"+port) // most machines' own names are of a private address
	}
	urls = append(urls, "file:///etc/passwd", "gopher://127.0.0.1:"+port, "unix:///run/docker.sock", "http:127.0.0.1:"+port, "//127.0.0.1:"+port, "http://")
	names := map[string]bool{"metadata.google.internal": true}
	for i, u := range urls {
		got := w.do("POST", "/organizations/"+a+"/identity-providers/test-connection", alice, "", map[string]any{"issuerUrl": u})
		if got.status != 400 && !strings.Contains(got.body, `"success":false`) {
			t.Errorf("an identity provider at %s: %d %s", u, got.status, got.body)
		}
		if strings.Contains(got.body, "inside") && !strings.Contains(u, "inside") {
			t.Errorf("an identity provider at %s: what is there is in the answer: %s", u, got.body)
		}
		if i == 0 || names[strings.Trim(strings.TrimPrefix(u, "http://"), "[]")] {
			continue // the rest is judged when it is connected to
		}
		w.do("POST", "/webhooks/organizations/"+a+"/endpoints", alice, "", map[string]any{"url": u})
		w.do("POST", "/docker-registry", key, "", map[string]any{"name": "r" + unknown(), "url": u, "username": "u", "password": "p"})
		image := strings.TrimPrefix(u, "http://") + "/image:1"
		w.do("POST", "/snapshots", key, "", map[string]any{"name": "s" + unknown(), "imageName": image})
		w.do("POST", "/snapshots", key, "", map[string]any{"name": "s" + unknown(), "buildInfo": map[string]any{"dockerfileContent": "FROM " + image + "\n"}})
	}
	for _, u := range []string{"http://127.0.0.1:" + port, "http://169.254.169.254", "http://[::ffff:10.0.0.1]", "http://localhost:1"} {
		for path, c := range map[string]struct {
			who  string
			body map[string]any
		}{
			"/webhooks/organizations/" + a + "/endpoints": {alice, map[string]any{"url": u}},
			"/docker-registry":                            {key, map[string]any{"name": "r", "url": u, "username": "u", "password": "p"}},
			"/organizations/" + a + "/identity-providers": {alice, map[string]any{"name": "n", "emailDomains": []string{"c.com"}, "oidcConfig": map[string]any{"issuerUrl": u, "clientId": "i", "clientSecret": "s"}}},
			"/snapshots": {key, map[string]any{"name": "n", "imageName": strings.TrimPrefix(u, "http://") + "/image:1"}},
		} {
			if got := w.do("POST", path, c.who, "", c.body); got.status != 400 {
				t.Errorf("%s with %s: %d %s", path, u, got.status, got.body)
			}
		}
	}
	// A webhook that is allowed and redirects, or whose name is inside.
	w.must("POST", "/webhooks/organizations/"+a+"/initialize", alice, "", nil)
	w.must("POST", "/webhooks/organizations/"+a+"/endpoints", alice, "", map[string]any{"url": redirects.URL})
	w.must("POST", "/admin/webhooks/organizations/"+a+"/send", adminKey, "", map[string]any{"eventType": "sandbox.created", "payload": map[string]any{"id": "x"}})
	for began := time.Now(); time.Since(began) < 30*time.Second; time.Sleep(20 * time.Millisecond) {
		messages := w.do("GET", "/webhooks/organizations/"+a+"/messages", alice, "", nil).body
		_, rest, _ := strings.Cut(messages, `"id":"`)
		message, _, _ := strings.Cut(rest, `"`)
		if attempts := w.do("GET", "/webhooks/organizations/"+a+"/messages/"+message+"/attempts", alice, "", nil); len(attempts.body) > 10 {
			break
		}
	}
	// An organization's own runner that says it is inside.
	region := w.must("POST", "/regions", alice, a, map[string]any{"name": "own"})
	own := w.must("POST", "/runners", key, "", map[string]any{"regionId": text(region, "id"), "name": "own"})
	w.must("POST", "/runners/healthcheck", text(own, "apiKey"), "", map[string]any{"appVersion": "1", "proxyUrl": inside.URL, "capabilities": []string{"build"}, "metrics": map[string]any{
		"currentCpuLoadAverage": 0, "currentCpuUsagePercentage": 0, "currentMemoryUsagePercentage": 0, "currentDiskUsagePercentage": 0, "currentAllocatedCpu": 0,
		"currentAllocatedMemoryGiB": 0, "currentAllocatedDiskGiB": 0, "currentSnapshotCount": 0, "currentStartedSandboxes": 0, "cpu": 8, "memoryGiB": 16, "diskGiB": 100}})
	built := w.must("POST", "/snapshots", key, "", map[string]any{"name": "built", "regionId": text(region, "id"), "buildInfo": map[string]any{"dockerfileContent": "FROM registry.example/image:1\n"}})
	if jobs, _ := w.must("GET", "/jobs/poll?timeout=20&limit=1", text(own, "apiKey"), "", nil)["jobs"].([]any); len(jobs) == 0 {
		t.Fatal("the runner has nothing to build")
	}
	for _, path := range []string{"/snapshots/" + text(built, "id") + "/build-logs", "/snapshots/" + text(built, "id") + "/build-logs?follow=true"} {
		if got := w.do("GET", path, key, "", nil); got.status < 400 {
			t.Errorf("%s: %d %s", path, got.status, got.body)
		}
	}
	if n := reached.Load(); n != 0 {
		t.Errorf("what is inside was reached %d times", n)
	}
}

// Nothing that opens anything is in the log, however much of it there is, nor
// in the audit log, nor on a command line.
func TestNoSecretIsLogged(t *testing.T) {
	w := newTenants(t, "", nil)
	w.furnish()
	id, host := w.a["sandboxId"], strings.TrimPrefix(w.URL, "http://")
	rules := parseAccess(t)
	w.keys["runner"] = w.keys["runner A"]
	for _, o := range w.document() {
		rule, ok := rules[o.id]
		if !ok || o.method != "GET" && !strings.HasPrefix(o.id, "expire") && !strings.HasPrefix(o.id, "revoke") {
			continue
		}
		path, _ := o.fill(t, w.a)
		got := w.send(o, w.entitled(rule), path)
		if got.status >= 500 && got.status != 503 {
			t.Errorf("%s: %d", o.id, got.status)
		}
	}
	for _, secret := range w.secrets {
		// Everywhere that one can be put, right and wrong.
		w.at("GET", w.preview("3000", id), "/?DAYTONA_SANDBOX_AUTH_KEY="+secret, "User-Agent", "test")
		w.at("GET", w.preview("3000", id), "/", "X-Daytona-Preview-Token", secret)
		w.at("GET", w.preview("3000", id), "/", "Cookie", "daytona-sandbox-auth-"+id+"="+secret)
		w.at("GET", w.preview("3000", id), "/", "Authorization", "Bearer "+secret)
		if len(secret) < 60 {
			w.at("GET", w.preview("3000", secret), "/")
		}
		w.at("GET", host, "/toolbox/"+id+"/files/download?path=x&signature="+secret, "Authorization", "Bearer "+secret)
		w.at("GET", host, "/v2/", "Authorization", "Bearer "+secret)
		w.at("GET", host, "/x", "Authorization", "AWS4-HMAC-SHA256 Credential="+secret+"/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature="+strings.Repeat("0", 64))
		w.at("GET", host, "/api/preview/"+id+"/validate/"+secret, "Authorization", "Bearer "+proxyKey)
		w.at("GET", host, "/api/sandbox/ssh-access/validate?token="+secret, "Authorization", "Bearer "+gatewayKey)
		w.at("GET", host, "/api/organizations/otel-config/by-sandbox-auth-token/"+secret, "Authorization", "Bearer "+collectorKey)
	}
	w.must("DELETE", "/sandbox/"+id, w.keys["A"], "", nil)
	log := w.log.String()
	if strings.Count(log, "operation=") < 100 {
		t.Errorf("the log has little: %d bytes", len(log))
	}
	audit := w.do("GET", "/admin/audit?limit=200", adminKey, "", nil)
	if audit.status != 200 || !strings.Contains(audit.body, id) {
		t.Errorf("the audit log: %d %.200s", audit.status, audit.body)
	}
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var commands strings.Builder
	for _, name := range lines {
		b, _ := os.ReadFile(name) // it may be gone
		commands.Write(b)
	}
	for _, secret := range w.secrets {
		for where, text := range map[string]string{"the log": log, "the audit log": audit.body, "a command line": commands.String()} {
			if i := strings.Index(text, secret); i >= 0 {
				t.Errorf("%s has %s: …%s…", where, secret, text[max(0, i-300):min(len(text), i+len(secret)+40)])
			}
		}
	}
	if strings.Contains(log, "Bearer ") {
		t.Error("the log has a header Authorization")
	}
}
