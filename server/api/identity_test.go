package api_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/wire"
	"github.com/daytona-go/daytona/server/api"
	"github.com/daytona-go/daytona/server/apikey"
	"github.com/daytona-go/daytona/server/identity"
	"github.com/daytona-go/daytona/server/identity/authn"
	"github.com/daytona-go/daytona/server/store"
	"github.com/daytona-go/daytona/server/store/storetest"
	"github.com/daytona-go/daytona/server/user"
)

// desk is an API with the features of identity, real ones, and an organization
// of two: "owner" and "member", who may write sandboxes and nothing else.
type desk struct {
	*httptest.Server
	users *user.Service
	keys  *apikey.Service
	ready error
	quota string
}

type personal struct{}

func (personal) CreatePersonal(_ context.Context, userID, _ string) (string, error) {
	return "personal of " + userID, nil
}
func (personal) Personal(_ context.Context, userID string) (string, error) {
	return "personal of " + userID, nil
}

func (personal) Member(_ context.Context, organizationID, userID string) (identity.Role, []identity.Permission, error) {
	switch {
	case organizationID == orgA && userID == "owner":
		return identity.Owner, nil, nil
	case organizationID == orgA && userID == "member":
		return identity.Member, []identity.Permission{identity.WriteSandboxes}, nil
	}
	return "", nil, &daytona.Error{Kind: daytona.KindNotFound}
}

// byToken takes "token of NAME" for a token of that user's, and leaves the
// rest to the real thing.
type byToken struct {
	*authn.Authenticator
	users *user.Service
}

func (b byToken) Authenticate(ctx context.Context, bearer string) (*identity.Principal, error) {
	if name, ok := strings.CutPrefix(bearer, "token of "); ok {
		return b.users.Provision(ctx, identity.Claims{Subject: name, Name: name, Email: name + "@example.com"})
	}
	return b.Authenticator.Authenticate(ctx, bearer)
}

func (d *desk) Together(ctx context.Context, f func(context.Context) error) error { return f(ctx) }

func (d *desk) SetPersonalQuota(_ context.Context, organizationID string, q wire.CreateOrganizationQuota) error {
	d.quota = fmt.Sprint(organizationID, " ", *q.TotalCPUQuota)
	return nil
}

const healthKey = "key of the health check"

func newDesk(t *testing.T, db *store.DB) *desk {
	t.Helper()
	d := &desk{users: user.New(db, personal{}, nil), keys: apikey.New(db, nil)}
	a, err := authn.New(authn.Config{Services: map[identity.Kind]string{identity.HealthCheck: healthKey}, Keys: d.keys, Users: d.users, Members: personal{}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{}, 2)
	go func() { d.keys.Run(ctx); done <- struct{}{} }()
	go func() { d.users.Run(ctx); done <- struct{}{} }()
	t.Cleanup(func() { stop(); <-done; <-done })
	server := api.New(api.Config{Authenticator: byToken{a, d.users}, Version: "1.0.0"})
	api.RegisterAPIKeys(server, d.keys)
	api.RegisterUsers(server, d.users, nil)
	api.RegisterAdminUsers(server, d.users, d)
	api.RegisterConfig(server, func() wire.DaytonaConfiguration {
		return wire.DaytonaConfiguration{OIDC: wire.OIDCConfig{Issuer: "https://x/oidc", ClientID: "daytona", Audience: "api"}, ProxyTemplateURL: "https://{{PORT}}-{{sandboxId}}.x"}
	})
	api.RegisterHealth(server, map[string]func(context.Context) error{
		"database": db.Ping, "other": func(context.Context) error { return d.ready },
	}, nil)
	d.Server = httptest.NewServer(server)
	t.Cleanup(d.Server.Close)
	return d
}

// call asks in the organization of the test and decodes what comes into out.
func (d *desk) call(t *testing.T, method, path, bearer, body string, want int, out any) answer {
	t.Helper()
	a := ask(t, d.Server, method, "/api"+path, bearer, body, "X-Daytona-Organization-ID: "+orgA, "Content-Type: application/json")
	if a.status != want {
		t.Fatalf("%s %s as %s: %d, not %d: %s", method, path, bearer, a.status, want, a.body)
	}
	if out != nil {
		if err := json.Unmarshal([]byte(a.body), out); err != nil {
			t.Fatalf("%s: %v", a.body, err)
		}
	}
	return a
}

func TestAPIKeys(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		d := newDesk(t, db)
		const owner, member, stranger = "token of owner", "token of member", "token of stranger"
		var made wire.APIKeyResponse
		end := time.Now().Add(time.Hour).UTC().Truncate(time.Millisecond)
		d.call(t, "POST", "/api-keys", member, `{"name":"ci/cd","permissions":["write:sandboxes"],"expiresAt":"`+wire.Stamp(end)+`"}`, 201, &made)
		if !regexp.MustCompile(`^dtn_[0-9a-f]{64}$`).MatchString(made.Value) || made.Name != "ci/cd" || made.ExpiresAt == nil || *made.ExpiresAt != wire.Stamp(end) ||
			fmt.Sprint(made.Permissions) != "[write:sandboxes]" {
			t.Errorf("%+v", made)
		}
		masked := "dtn********************" + made.Value[65:]
		// Nobody sees it again, in any way.
		var list []map[string]any
		for _, who := range []string{owner, member} {
			a := d.call(t, "GET", "/api-keys", who, "", 200, &list)
			if len(list) != 1 || list[0]["value"] != masked || list[0]["userId"] != "member" || list[0]["lastUsedAt"] != nil || strings.Contains(a.body, made.Value[10:60]) {
				t.Errorf("%s: %s", who, a.body)
			}
			for _, k := range []string{"name", "value", "createdAt", "permissions", "lastUsedAt", "expiresAt", "userId"} {
				if _, ok := list[0][k]; !ok {
					t.Errorf("no %s: %s", k, a.body)
				}
			}
		}
		var one wire.APIKeyList
		d.call(t, "GET", "/api-keys/ci%2Fcd", member, "", 200, &one)
		d.call(t, "GET", "/api-keys/current", made.Value, "", 200, &one)
		if one.Name != "ci/cd" || one.Value != masked {
			t.Errorf("%+v", one)
		}
		var plain map[string]any
		if d.call(t, "POST", "/api-keys", member, `{"name":"plain","permissions":[],"expiresAt":null}`, 201, &plain); plain["expiresAt"] != nil {
			t.Errorf("%v", plain)
		}
		if v, ok := plain["permissions"].([]any); !ok || len(v) != 0 {
			t.Errorf("%v", plain)
		}
		for _, c := range []struct {
			method, path, who, body string
			status                  int
			message                 string
		}{
			{"POST", "/api-keys", member, `{"name":"plain","permissions":[]}`, 409, "API key with this name already exists"},
			{"POST", "/api-keys", member, `{"name":"x","permissions":["write:sandboxes","delete:sandboxes","read:volumes"]}`, 403, "Insufficient permissions for assigning: delete:sandboxes, read:volumes"},
			{"POST", "/api-keys", owner, `{"name":"x","permissions":["rule:all"]}`, 400, "permissions"},
			{"POST", "/api-keys", owner, `{"name":"x","permissions":[],"expiresAt":"tomorrow"}`, 400, "expiresAt"},
			{"POST", "/api-keys", owner, `{"name":"x","permissions":[],"expiresAt":"2020-01-01T00:00:00.000Z"}`, 400, "expiresAt"},
			{"POST", "/api-keys", owner, `{"name":"<i>","permissions":[]}`, 400, "name must not contain HTML tags, URLs, or control characters"},
			{"POST", "/api-keys", owner, `{"permissions":[]}`, 400, "name"},
			{"POST", "/api-keys", owner, `{"name":"x"}`, 400, "permissions"},
			{"POST", "/api-keys", stranger, `{"name":"x","permissions":[]}`, 403, "Invalid authentication context"},
			{"POST", "/api-keys", made.Value, `{"name":"x","permissions":[]}`, 401, "Invalid credentials"},
			{"GET", "/api-keys/current", owner, "", 401, "Invalid credentials"},
			{"GET", "/api-keys/none", owner, "", 404, "API key not found"},
			{"GET", "/api-keys/plain", owner, "", 404, "API key not found"},
			{"DELETE", "/api-keys/none", owner, "", 404, "API key not found"},
			{"DELETE", "/api-keys/owner/any", member, "", 403, "Access denied"},
			{"DELETE", "/api-keys/member/plain", stranger, "", 403, "Invalid authentication context"},
		} {
			if a := d.call(t, c.method, c.path, c.who, c.body, c.status, nil); !strings.Contains(a.message(t), c.message) {
				t.Errorf("%+v: %s", c, a.body)
			}
		}
		// Revoked by the owner, a key works no more: with the answer, not later.
		if a := d.call(t, "DELETE", "/api-keys/member/ci%2Fcd", owner, "", 204, nil); a.body != "" {
			t.Error(a.body)
		}
		d.call(t, "GET", "/api-keys/current", made.Value, "", 401, nil)
		d.call(t, "DELETE", "/api-keys/plain", member, "", 204, nil)
		if d.call(t, "GET", "/api-keys", owner, "", 200, &list); len(list) != 0 {
			t.Errorf("%v", list)
		}
	})
}

func TestUsers(t *testing.T) {
	db := storetest.Open(t, storetest.SQLite(t))
	d := newDesk(t, db)
	var me map[string]any
	d.call(t, "GET", "/users/me", "token of ada", "", 200, &me)
	if me["id"] != "ada" || me["email"] != "ada@example.com" || me["emailVerified"] != false || me["name"] != "ada" || len(me["publicKeys"].([]any)) != 0 || me["createdAt"] == nil {
		t.Errorf("%v", me)
	}
	for path, want := range map[string]string{"/users/account-providers": "[]", "/users/me/pending-sso-links": "[]"} {
		if a := d.call(t, "GET", path, "token of ada", "", 200, nil); strings.TrimSpace(a.body) != want {
			t.Errorf("%s: %s", path, a.body)
		}
	}
	d.call(t, "POST", "/users/linked-accounts", "token of ada", `{"provider":"github","userId":"1"}`, 404, nil)
	d.call(t, "DELETE", "/users/linked-accounts/github/1", "token of ada", "", 404, nil)
	d.call(t, "POST", "/users/mfa/sms/enroll", "token of ada", "", 404, nil)
	var ids []string
	for _, subject := range []string{"1", "2"} {
		p, err := d.users.Pend(t.Context(), user.PendingAccount{UserID: "ada", OrganizationID: orgA, Provider: "idp", ProviderName: "Corp", ProviderUserID: subject})
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, p.ID)
	}
	var links []map[string]any
	d.call(t, "GET", "/users/me/pending-sso-links", "token of ada", "", 200, &links)
	if v, ok := links[0]["providerEmail"]; len(links) != 2 || links[0]["idpName"] != "Corp" || links[0]["organizationId"] != orgA || !ok || v != nil {
		t.Errorf("%v", links)
	}
	d.call(t, "POST", "/users/me/pending-sso-links/"+ids[0]+"/confirm", "token of bob", "", 404, nil)
	d.call(t, "POST", "/users/me/pending-sso-links/"+ids[0]+"/confirm", "token of ada", "", 204, nil)
	d.call(t, "DELETE", "/users/me/pending-sso-links/"+ids[1], "token of ada", "", 204, nil)
	d.call(t, "DELETE", "/users/linked-accounts/idp/1", "token of bob", "", 404, nil)
	d.call(t, "DELETE", "/users/linked-accounts/idp/1", "token of ada", "", 204, nil)
}

func TestAdminUsers(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		d := newDesk(t, db)
		root, err := d.users.Bootstrap(t.Context(), d.keys, "", "", "")
		if err != nil || root == "" {
			t.Fatal(root, err)
		}
		for _, path := range []string{"/admin/users", "/admin/users/daytona-admin"} {
			d.call(t, "GET", path, "token of ada", "", 403, nil)
		}
		d.call(t, "POST", "/admin/users", "token of ada", `{"name":"x"}`, 403, nil)
		var u wire.User
		d.call(t, "POST", "/admin/users", root, `{"id":"bob","name":"Bob","email":"bob@example.com","emailVerified":true,"role":"admin","personalOrganizationQuota":{"totalCpuQuota":7}}`, 201, &u)
		if u.ID != "bob" || !u.EmailVerified || d.quota != "personal of bob 7" {
			t.Errorf("%+v %s", u, d.quota)
		}
		d.call(t, "GET", "/admin/users/bob", "token of bob", "", 200, &u) // who is an administrator by now
		for body, status := range map[string]int{`{"id":"bob","name":"Bob"}`: 409, `{"id":"x"}`: 400, `{"name":"x","role":"god"}`: 400, `{"name":"x","email":"?"}`: 400, `{"name":"Somebody"}`: 201} {
			d.call(t, "POST", "/admin/users", root, body, status, nil)
		}
		var list []wire.User
		if d.call(t, "GET", "/admin/users", root, "", 200, &list); len(list) != 4 || list[0].ID != user.AdminID || list[0].Name != "Daytona Admin" {
			t.Errorf("%+v", list)
		}
		d.call(t, "GET", "/admin/users/none", root, "", 404, nil)
		var pair wire.UserKeyPair
		d.call(t, "POST", "/admin/users/bob/regenerate-key-pair", root, "", 201, &pair)
		if !strings.Contains(pair.PrivateKey, "OPENSSH PRIVATE KEY") || len(pair.PublicKeys) != 1 || !strings.HasPrefix(pair.PublicKeys[0].Key, "ssh-ed25519 ") {
			t.Errorf("%+v", pair)
		}
		if a := d.call(t, "GET", "/admin/users/bob", root, "", 200, nil); strings.Contains(a.body, "PRIVATE") {
			t.Error(a.body)
		}
	})
}

func TestConfig(t *testing.T) {
	d := newDesk(t, storetest.Open(t, storetest.SQLite(t)))
	var c map[string]any
	d.call(t, "GET", "/config", "", "", 200, &c)
	for _, k := range []string{"version", "oidc", "linkedAccountsEnabled", "announcements", "proxyTemplateUrl", "proxyToolboxUrl", "defaultSnapshot", "dashboardUrl", "maxAutoArchiveInterval", "maintananceMode", "environment"} {
		if _, ok := c[k]; !ok {
			t.Errorf("no %s: %v", k, c)
		}
	}
	if c["version"] != "1.0.0" || c["maxAutoArchiveInterval"] != 43200.0 || fmt.Sprint(c["oidc"]) != "map[audience:api clientId:daytona issuer:https://x/oidc provider:]" || fmt.Sprint(c["announcements"]) != "map[]" {
		t.Errorf("%v", c)
	}
	if _, ok := c["posthog"]; ok {
		t.Errorf("%v", c)
	}
}

func TestHealth(t *testing.T) {
	d := newDesk(t, storetest.Open(t, storetest.SQLite(t)))
	d.call(t, "GET", "/health", "", "", 200, nil)
	var r struct {
		Status               string
		Info, Error, Details map[string]struct{ Status string }
	}
	d.call(t, "GET", "/health/ready", healthKey, "", 200, &r)
	if r.Status != "ok" || r.Info["database"].Status != "up" || r.Details["other"].Status != "up" || len(r.Error) != 0 {
		t.Errorf("%+v", r)
	}
	d.ready = errors.New("secret details")
	a := d.call(t, "GET", "/health/ready", healthKey, "", 503, &r)
	if r.Status != "error" || r.Error["other"].Status != "down" || r.Details["database"].Status != "up" || strings.Contains(a.body, "secret") {
		t.Errorf("%s", a.body)
	}
	d.call(t, "GET", "/health/ready", "", "", 401, nil)
	d.call(t, "GET", "/health/ready", "token of ada", "", 403, nil)
}
