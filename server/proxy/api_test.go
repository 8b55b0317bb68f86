package proxy_test

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/daytona-go/daytona/server/api"
	"github.com/daytona-go/daytona/server/identity"
	"github.com/daytona-go/daytona/server/proxy"
)

// apiWorld is a world with an API that has the routes of previews and the
// deprecated ones of toolboxes.
func apiWorld(t *testing.T) (*world, func(method, path, body string, header ...string) answer) {
	w := newWorld(t, nil)
	write := []identity.Permission{identity.WriteSandboxes}
	w.change(func() {
		w.keys[keyA].Permissions, w.keys[keyB].Permissions = write, write
		w.keys["reader"] = &identity.Principal{Kind: identity.Key, UserID: "user-a", OrganizationID: orgA}
		w.keys["jwt-a"] = &identity.Principal{Kind: identity.JWT, UserID: "user-a"}
		w.keys["jwt-b"] = &identity.Principal{Kind: identity.JWT, UserID: "user-b"}
		w.keys["proxy"] = &identity.Principal{Kind: identity.Proxy}
		w.keys["region"] = &identity.Principal{Kind: identity.RegionProxy, RegionID: "there"}
	})
	a := api.New(api.Config{Authenticator: w, Log: slog.New(slog.DiscardHandler)})
	api.RegisterPreview(a, w)
	api.RegisterToolbox(a, w.proxy)
	s := httptest.NewServer(a)
	t.Cleanup(s.Close)
	return w, func(method, path, body string, header ...string) answer {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, s.URL+"/api"+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(header); i += 2 {
			r.Header.Set(header[i], header[i+1])
		}
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return answer{resp.StatusCode, resp.Header, string(b)}
	}
}

func TestDeprecatedToolbox(t *testing.T) {
	w, call := apiWorld(t)
	at := "/toolbox/" + sandboxA + "/toolbox"
	if a := call("POST", at+"/process/session", `{"sessionId":"one two"}`, "Authorization", "Bearer "+keyA); a.status != 201 {
		t.Errorf("%d %s", a.status, a.body)
	}
	for name, c := range map[string]struct {
		method, path, body, key string
		status                  int
		text                    string
	}{
		"execute":       {"POST", at + "/process/execute", execute, keyA, 200, "hello from 42"},
		"write":         {"POST", at + "/files/folder?path=a%2Fb&mode=755", "", keyA, 201, ""},
		"list":          {"GET", at + "/files?path=.", "", keyA, 200, "["},
		"work dir":      {"GET", at + "/work-dir", "", keyA, 200, `"dir"`},
		"get session":   {"GET", at + "/process/session/one%20two", "", keyA, 200, `"one two"`},
		"symbols":       {"GET", at + "/lsp/workspace-symbols?query=x&languageId=python&pathToProject=/x", "", keyA, 400, "LSP"},
		"not permitted": {"POST", at + "/process/execute", execute, "reader", 403, "Access denied"},
		"another's":     {"POST", at + "/process/execute", execute, keyB, 404, "Sandbox with ID or name " + sandboxA + " not found"},
		"unknown":       {"POST", "/toolbox/" + unknown + "/toolbox/process/execute", execute, keyA, 404, "Sandbox with ID or name " + unknown + " not found"},
		"nobody":        {"POST", at + "/process/execute", execute, "x", 401, "Invalid credentials"},
		"no operation":  {"POST", at + "/init", "{}", keyA, 404, "Cannot POST"},
	} {
		if a := call(c.method, c.path, c.body, "Authorization", "Bearer "+c.key); a.status != c.status || !strings.Contains(a.body, c.text) {
			t.Errorf("%s: %d %s, want %d %s", name, a.status, a.body, c.status, c.text)
		}
	}
	w.set(sandboxA, func(s *proxy.Sandbox) { s.State = "stopped" })
	w.proxy.Forget()
	if a := call("GET", at+"/work-dir", "", "Authorization", "Bearer "+keyA); a.status != 400 || !strings.Contains(a.body, "Sandbox is not running") {
		t.Errorf("%d %s", a.status, a.body)
	}
}

func TestPreviewRoutes(t *testing.T) {
	w, call := apiWorld(t)
	const token = "abcdefgh12345678"
	w.change(func() {
		w.signed[token] = signedToken{sandboxA, 3000, time.Now().Add(time.Hour)}
		w.signed["abcdefgh00000000"] = signedToken{sandboxA, 3000, time.Now().Add(-time.Hour)}
	})
	w.set(sandboxB, func(s *proxy.Sandbox) { s.Public, s.Warning, s.RegionID = true, true, "there" })
	type step struct {
		path, key string
		status    int
		text      string
	}
	check := func(steps []step) {
		t.Helper()
		for _, c := range steps {
			a := call("GET", c.path, "", "Authorization", "Bearer "+c.key)
			if a.status != c.status || a.status == 200 && strings.TrimSpace(a.body) != c.text || !strings.Contains(a.body, c.text) {
				t.Errorf("%s as %s: %d %s, want %d %s", c.path, c.key, a.status, a.body, c.status, c.text)
			}
		}
	}
	check([]step{
		{"/preview/" + sandboxA + "/public", "proxy", 404, "not found"},
		{"/preview/" + sandboxB + "/public", "proxy", 200, "true"},
		{"/preview/" + unknown + "/public", "proxy", 404, "not found"},
		{"/preview/" + sandboxB + "/public", keyB, 403, "Access denied"},
		{"/preview/" + sandboxA + "/validate/" + tokenA, "proxy", 200, "true"},
		{"/preview/" + sandboxA + "/validate/x", "proxy", 404, "not found"},
		{"/preview/" + sandboxA + "/validate/" + tokenA, keyA, 403, "Access denied"},
		{"/preview/" + sandboxA + "/preview-warning", "proxy", 200, `{"enabled":false}`},
		{"/preview/" + sandboxB + "/preview-warning", "proxy", 200, `{"enabled":true}`},
		{"/preview/" + token + "/preview-warning?port=3000", "proxy", 200, `{"enabled":false}`},
		{"/preview/" + token + "/preview-warning", "proxy", 404, "not found"},
		{"/preview/" + sandboxA + "/signing-key", "proxy", 200, "signing-key-of-" + sandboxA},
		{"/preview/" + sandboxA + "/signing-key", "region", 404, "not found"},
		{"/preview/" + sandboxB + "/signing-key", "region", 200, "signing-key-of-" + sandboxB},
		{"/preview/" + sandboxA + "/signing-key", keyA, 403, "Access denied"},
		{"/preview/" + token + "/3000/sandbox-id", "proxy", 200, sandboxA},
		{"/preview/" + token + "/3001/sandbox-id", "proxy", 403, "Invalid or expired"},
		{"/preview/" + token + "/3000/sandbox-id", "region", 403, "Invalid or expired"},
		{"/preview/abcdefgh00000000/3000/sandbox-id", "proxy", 403, "Invalid or expired"},
		{"/preview/" + token + "/0/sandbox-id", "proxy", 400, "Invalid port"},
		{"/preview/" + sandboxA + "/access", keyA, 200, "true"},
		{"/preview/" + sandboxA + "/access", "jwt-a", 200, "true"},
		{"/preview/" + sandboxA + "/access", keyB, 404, "not found"},
		{"/preview/" + sandboxA + "/access", "jwt-b", 404, "not found"},
		{"/preview/" + unknown + "/access", keyA, 404, "not found"},
		{"/preview/" + sandboxA + "/access", "x", 401, "Invalid credentials"},
	})
	w.set(sandboxA, func(s *proxy.Sandbox) { s.State = "destroyed" })
	check([]step{{"/preview/" + sandboxA + "/access", keyA, 404, `"code":"SANDBOX_DESTROYED"`}, {"/preview/" + sandboxA + "/public", "proxy", 404, "not found"}})
	if a := call("GET", "/preview/"+sandboxA+"/access", "", "Authorization", "Bearer "+keyB); a.status != 404 || strings.Contains(a.body, "DESTROYED") {
		t.Errorf("%d %s", a.status, a.body)
	}
}
