package server_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/daytonatest"
	"github.com/daytona-go/daytona/server"
	"github.com/daytona-go/daytona/server/identity"
)

// provider is an OIDC provider, which vouches for whomever a test wants.
type provider struct {
	*httptest.Server
	key *rsa.PrivateKey
}

func newProvider(t testing.TB) *provider {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p := &provider{key: key}
	mux := http.NewServeMux()
	mux.HandleFunc("/.well-known/openid-configuration", func(w http.ResponseWriter, r *http.Request) {
		json.NewEncoder(w).Encode(map[string]string{"issuer": p.URL, "authorization_endpoint": p.URL + "/authorize", "token_endpoint": p.URL + "/token", "jwks_uri": p.URL + "/keys"})
	})
	mux.HandleFunc("/keys", func(w http.ResponseWriter, r *http.Request) {
		json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: &key.PublicKey, KeyID: "1", Algorithm: "RS256", Use: "sig"}}})
	})
	p.Server = httptest.NewServer(mux)
	t.Cleanup(p.Close)
	return p
}

// token is one of a user, valid for a while unless the claims say otherwise.
func (p *provider) token(user string, claims map[string]any) string {
	return p.signed(p.key, user, claims)
}

func (p *provider) signed(key *rsa.PrivateKey, user string, claims map[string]any) string {
	all := map[string]any{
		"iss": p.URL, "aud": "daytona", "sub": user, "email": user + "@example.com", "email_verified": true, "name": "Name of " + user,
		"iat": time.Now().Unix(), "exp": time.Now().Add(time.Hour).Unix(),
	}
	maps.Copy(all, claims)
	part := func(v any) string {
		b, _ := json.Marshal(v)
		return base64.RawURLEncoding.EncodeToString(b)
	}
	text := part(map[string]string{"alg": "RS256", "kid": "1"}) + "." + part(all)
	sum := sha256.Sum256([]byte(text))
	sig, _ := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, sum[:])
	return text + "." + base64.RawURLEncoding.EncodeToString(sig)
}

// logs is a log that can be searched while it is written.
type logs struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// Keys of services.
const (
	proxyKey     = "service-key-of-the-proxy"
	gatewayKey   = "service-key-of-the-gateway"
	collectorKey = "service-key-of-the-collector"
	healthKey    = "service-key-of-the-health-check"
	adminKey     = "dtn_ad0ad0ad0ad0ad0ad0ad0ad0ad0ad0ad0ad0ad0ad0ad0ad0ad0ad0ad0ad0ad0"
)

// tenants is a server with the organizations of alice, A and C, and bob's, B.
// In A is something of everything that there can be.
type tenants struct {
	*running
	t     testing.TB
	users *provider
	log   *logs
	// a has what is A's by the name of the parameter of a path, perhaps after the
	// segment before it: "organizationId", "runners/id".
	a    map[string]string
	b, c string // organizations
	// keys and tokens by what they are of: "alice", "A none", …
	keys map[string]string
	// hidden is what nobody but A may ever be told: its names and ids. secrets is
	// what no log may have.
	hidden, secrets []string
	local           *daytona.Client
	ops             []op // see document
}

// sent is how a request ended.
type sent struct {
	status int
	body   string
	header http.Header
}

// do makes a request without a connection. who is a bearer token; org, if it is
// not "", is named in the header.
func (w *tenants) do(method, path, who, org string, body any) sent {
	w.t.Helper()
	var r io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		r = strings.NewReader(b)
	default:
		j, err := json.Marshal(body)
		if err != nil {
			w.t.Fatal(err)
		}
		r = bytes.NewReader(j)
	}
	ctx, cancel := context.WithTimeout(w.t.Context(), 2*time.Minute)
	defer cancel()
	q := httptest.NewRequestWithContext(ctx, method, w.URL+"/api"+path, r)
	q.RequestURI = "/api" + path
	if body != nil {
		q.Header.Set("Content-Type", "application/json")
	}
	if who != "" {
		q.Header.Set("Authorization", "Bearer "+who)
	}
	if org != "" {
		q.Header.Set("X-Daytona-Organization-ID", org)
	}
	rec := httptest.NewRecorder()
	w.ServeHTTP(rec, q)
	return sent{rec.Code, rec.Body.String(), rec.Header()}
}

// must makes a request that has to be answered with 2xx, and reads the answer.
func (w *tenants) must(method, path, who, org string, body any) map[string]any {
	w.t.Helper()
	a := w.do(method, path, who, org, body)
	if a.status/100 != 2 {
		w.t.Fatalf("%s %s: %d %s", method, path, a.status, a.body)
	}
	v := map[string]any{}
	if strings.HasPrefix(a.body, "{") {
		if err := json.Unmarshal([]byte(a.body), &v); err != nil {
			w.t.Fatalf("%s %s: %v", method, path, err)
		}
	}
	return v
}

func text(v map[string]any, name string) string { s, _ := v[name].(string); return s }

// everything is all permissions but some.
func everything(but ...identity.Permission) []identity.Permission {
	all := identity.Permissions()
	out := all[:0:0]
	for _, p := range all {
		keep := true
		for _, b := range but {
			keep = keep && p != b
		}
		if keep {
			out = append(out, p)
		}
	}
	return out
}

// apiKey makes a key of a user in an organization.
func (w *tenants) apiKey(user, org, name string, permissions []identity.Permission) string {
	w.t.Helper()
	key := text(w.must("POST", "/api-keys", w.keys[user], org, map[string]any{"name": name, "permissions": append([]identity.Permission{}, permissions...)}), "value")
	w.secrets = append(w.secrets, key)
	return key
}

// newTenants starts a server with them. database is the URL of one, or "".
func newTenants(t testing.TB, database string, change func(*server.Config)) *tenants {
	t.Helper()
	w := &tenants{t: t, users: newProvider(t), log: &logs{}, keys: map[string]string{}, local: daytonatest.Client(t)}
	w.running = start(t, w.local, func(c *server.Config) {
		c.Database = database
		c.OIDC.Issuer = w.users.URL
		c.Admin.Key = adminKey
		c.Services = server.ServicesConfig{ProxyKey: proxyKey, SSHGatewayKey: gatewayKey, CollectorKey: collectorKey, HealthCheckKey: healthKey}
		c.Log = slog.New(slog.NewTextHandler(io.MultiWriter(w.log, logTo()), &slog.HandlerOptions{Level: slog.LevelDebug}))
		if change != nil {
			change(c)
		}
	})
	w.Key = adminKey
	w.secrets = append(w.secrets, proxyKey, gatewayKey, collectorKey, healthKey, adminKey)
	for _, user := range []string{"alice", "bob", "mia"} {
		w.keys[user] = w.users.token(user, nil)
		w.must("GET", "/users/me", w.keys[user], "", nil) // is there from now on
		w.secrets = append(w.secrets, w.keys[user])
	}
	organization := func(user, name string) string {
		return text(w.must("POST", "/organizations", w.keys[user], "", map[string]any{"name": name, "defaultRegionId": "us"}), "id")
	}
	a := organization("alice", "hidden-organization")
	w.b, w.c = organization("bob", "Bobs"), organization("alice", "Another")
	w.a = map[string]string{"organizationId": a}
	return w
}

// furnish puts something of everything into A, and what bob needs to attack as
// a runner or a region of his own.
func (w *tenants) furnish() {
	w.t.Helper()
	t, alice, a := w.t, w.keys["alice"], w.a["organizationId"]
	secret := func(names ...string) {
		for _, s := range names {
			if s == "" {
				t.Fatal("a secret is missing")
			}
			w.secrets = append(w.secrets, s)
		}
	}
	put := func(name, value string) string {
		t.Helper()
		if value == "" {
			t.Fatalf("there is no %s", name)
		}
		w.a[name] = value
		w.hidden = append(w.hidden, value)
		return value
	}
	w.hidden = append(w.hidden, a, "hidden-organization")
	w.keys["A"] = w.apiKey("alice", a, "hidden-key", everything())
	w.keys["A none"] = w.apiKey("alice", a, "bare", nil)
	w.keys["B"] = w.apiKey("bob", w.b, "bobs", everything())
	w.keys["C"] = w.apiKey("alice", w.c, "c", everything())
	put("api-keys/name", "hidden-key")
	w.a["userId/name"] = "hidden-key"
	w.a["userId"] = "alice"

	// People.
	role := w.must("POST", "/organizations/"+a+"/roles", alice, "", map[string]any{"name": "hidden-role", "description": "d", "permissions": []string{"write:sandboxes"}})
	put("roleId", text(role, "id"))
	invite := map[string]any{"email": "mia@example.com", "role": "member", "assignedRoleIds": []string{}}
	i := w.must("POST", "/organizations/"+a+"/invitations", alice, "", invite)
	w.must("POST", "/organizations/invitations/"+text(i, "id")+"/accept", w.keys["mia"], "", nil)
	invite["email"] = "hidden-invited@example.com"
	put("invitationId", text(w.must("POST", "/organizations/"+a+"/invitations", alice, "", invite), "id"))
	w.must("POST", "/organizations/"+a+"/sso-enabled", alice, "", map[string]any{"ssoEnabled": true})
	idp := w.must("POST", "/organizations/"+a+"/identity-providers", alice, "", map[string]any{"name": "hidden-idp", "emailDomains": []string{"hidden.example"},
		"oidcConfig": map[string]any{"issuerUrl": "https://idp.example", "clientId": "i", "clientSecret": "very-secret-client"}})
	secret("very-secret-client")
	put("identity-providers/id", text(idp, "id"))
	w.must("PUT", "/organizations/"+a+"/otel-config", alice, "", map[string]any{"endpoint": "https://hidden-otel.example", "headers": map[string]string{"X-Key": "very-secret-otel"}})
	secret("very-secret-otel")
	w.hidden = append(w.hidden, "hidden-otel", "hidden-invited", "hidden-role", "hidden-idp", "hidden.example")

	// Regions and runners, one for each of them.
	for _, x := range []struct{ who, org, user string }{{"A", a, "alice"}, {"B", w.b, "bob"}} {
		r := w.must("POST", "/regions", w.keys[x.user], x.org, map[string]any{"name": "hidden-region-" + x.who, "proxyUrl": "https://hidden-proxy-" + x.who + ".example", "sshGatewayUrl": "ssh.example", "snapshotManagerUrl": "https://manager.example"})
		w.keys["proxy "+x.who], w.keys["gateway "+x.who] = text(r, "proxyApiKey"), text(r, "sshGatewayApiKey")
		n := w.must("POST", "/runners", w.keys[x.who], "", map[string]any{"regionId": text(r, "id"), "name": "hidden-runner-" + x.who})
		w.keys["runner "+x.who] = text(n, "apiKey")
		secret(text(r, "proxyApiKey"), text(r, "sshGatewayApiKey"), text(n, "apiKey"), text(r, "snapshotManagerPassword"))
		w.must("POST", "/runners/healthcheck", text(n, "apiKey"), "", map[string]any{"appVersion": "1", "metrics": map[string]any{
			"currentCpuLoadAverage": 0, "currentCpuUsagePercentage": 0, "currentMemoryUsagePercentage": 0, "currentDiskUsagePercentage": 0, "currentAllocatedCpu": 0,
			"currentAllocatedMemoryGiB": 0, "currentAllocatedDiskGiB": 0, "currentSnapshotCount": 0, "currentStartedSandboxes": 0, "cpu": 8, "memoryGiB": 16, "diskGiB": 100}})
		if x.who == "A" {
			put("regions/id", text(r, "id"))
			put("runners/id", text(n, "id"))
			w.a["regionId"] = "us"
		}
	}
	w.hidden = append(w.hidden, "hidden-region-A", "hidden-runner-A", "hidden-proxy-A")

	// What sandboxes are made of, and sandboxes.
	s := w.must("POST", "/secret", w.keys["A"], "", map[string]any{"name": "HIDDEN_SECRET", "value": "very-secret-value", "hosts": []string{"api.example"}})
	put("secretId", text(s, "id"))
	reg := w.must("POST", "/docker-registry", w.keys["A"], "", map[string]any{"name": "hidden-registry", "url": "https://registry.example", "username": "u", "password": "very-secret-password"})
	put("docker-registry/id", text(reg, "id"))
	secret("very-secret-value", "very-secret-password")
	put("by-name/name", "hidden-volume")
	put("volumeId", text(w.must("POST", "/volumes", w.keys["A"], "", map[string]any{"name": "hidden-volume"}), "id"))
	snap := w.must("POST", "/snapshots", w.keys["A"], "", map[string]any{"name": "hidden-snapshot", "imageName": "registry.example/hidden-image:1", "regionId": w.a["regions/id"]})
	put("snapshots/id", text(snap, "id"))
	w.awaitRunner(t)
	jobs := w.must("GET", "/jobs/poll?timeout=20&limit=1", w.keys["runner A"], "", nil)
	list, _ := jobs["jobs"].([]any)
	if len(list) == 0 {
		t.Fatal("the runner of A has nothing to do")
	}
	put("jobId", text(list[0].(map[string]any), "id"))
	w.a["ref"] = put("resource", text(list[0].(map[string]any), "resourceId"))
	sb := w.must("POST", "/sandbox", w.keys["A"], "", map[string]any{"name": "hidden-sandbox", "env": map[string]string{"PASSWORD": "very-secret-env"}, "labels": map[string]string{"l": "hidden-label"}, "autoStopInterval": 0})
	id := put("sandboxId", text(sb, "id"))
	pool := w.must("POST", "/warm-pools", w.keys["A"], "", map[string]any{"snapshot": "default", "pool": 1, "target": w.a["regions/id"]})
	put("warm-pools/id", text(pool, "id"))
	w.a["sandboxIdOrName"] = id
	secret("very-secret-env")
	w.hidden = append(w.hidden, "hidden-sandbox", "hidden-label", "HIDDEN_SECRET", "hidden-registry", "hidden-snapshot", "hidden-image")
	preview := w.must("GET", "/sandbox/"+id+"/ports/3000/preview-url", w.keys["A"], "", nil)
	w.keys["preview"] = text(preview, "token")
	signed := w.must("GET", "/sandbox/"+id+"/ports/3000/signed-preview-url?expiresInSeconds=3600", w.keys["A"], "", nil)
	w.keys["signed"] = text(signed, "token")
	w.keys["ssh"] = text(w.must("POST", "/sandbox/"+id+"/ssh-access", w.keys["A"], "", nil), "token")
	w.keys["signing"] = w.do("GET", "/sandbox/"+id+"/signing-key", w.keys["A"], "", nil).body
	push := w.must("GET", "/object-storage/push-access", w.keys["A"], "", nil)
	w.keys["objects"], w.keys["session"] = text(push, "secret"), text(push, "sessionToken")
	w.keys["registry"] = text(w.must("GET", "/docker-registry/registry-push-access", w.keys["A"], "", nil), "secret")
	w.a["authToken"], w.a["signedPreviewToken"], w.a["signed-preview-url/token"] = w.keys["preview"], w.keys["signed"], w.keys["signed"]

	// Webhooks: none of these can be reached, which does not matter.
	w.must("POST", "/webhooks/organizations/"+a+"/initialize", alice, "", nil)
	hook := w.must("POST", "/webhooks/organizations/"+a+"/endpoints", alice, "", map[string]any{"url": "https://hidden-hook.invalid/x"})
	put("endpointId", text(hook, "id"))
	w.keys["webhook"] = text(hook, "secret")
	w.must("POST", "/admin/webhooks/organizations/"+a+"/send", adminKey, "", map[string]any{"eventType": "sandbox.created", "payload": map[string]any{"id": "hidden-payload"}})
	var messages []map[string]any
	if err := json.Unmarshal([]byte(w.do("GET", "/webhooks/organizations/"+a+"/messages", alice, "", nil).body), &messages); err != nil || len(messages) == 0 {
		t.Fatal(err, messages)
	}
	put("messageId", text(messages[0], "id"))
	w.hidden = append(w.hidden, "hidden-hook", "hidden-payload")
	for _, k := range []string{"preview", "signed", "ssh", "signing", "objects", "session", "registry", "webhook"} {
		secret(w.keys[k])
	}
	// What needs no fixture of its own.
	maps.Copy(w.a, map[string]string{
		"port": "3000", "isPublic": "true", "interval": "5", "ttlMinutes": "5", "sandboxClass": "container", "traceId": "0af7651916cd43dd8448eb211c80319c",
		"provider": "github", "providerUserId": "1", "pending-sso-links/id": "11111111-1111-4111-8111-111111111111", "users/id": "alice",
		"sessionId": "s", "commandId": "c", "processName": "xvfb",
	})
}

// unknown is an id of nothing.
func unknown() string {
	b := make([]byte, 16)
	rand.Read(b)
	h := fmt.Sprintf("%x", b)
	return h[:8] + "-" + h[8:12] + "-4" + h[13:16] + "-8" + h[17:20] + "-" + h[20:]
}
