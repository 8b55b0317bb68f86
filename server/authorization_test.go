package server_test

import (
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/daytona-go/daytona/server/identity"
	"github.com/daytona-go/daytona/server/store/storetest"
)

// access is who may call an operation: a line of testdata/access.txt.
type access struct {
	public, org, owner, admin bool
	by                        []string // key, jwt
	services                  []string
	all, any                  []string // permissions
}

func parseAccess(t *testing.T) map[string]access {
	t.Helper()
	all := map[string]access{}
	for _, line := range lines(t, "testdata/access.txt") {
		line, why, _ := strings.Cut(line, "#")
		id, rest, _ := strings.Cut(strings.TrimSpace(line), "\t")
		var a access
		for i, word := range strings.Split(rest, "; ") {
			switch {
			case word == "public":
				a.public = true
				if strings.TrimSpace(why) == "" {
					t.Errorf("%s is public and nobody says why", id)
				}
			case word == "user" || word == "jwt" || word == "key/jwt":
				if i == 0 {
					a.by = strings.Split(word, "/")
				}
			case word == "key":
				a.by = []string{"key"}
			case word == "org":
				a.org = true
			case word == "org:owner":
				a.owner = true
			case word == "system:admin":
				a.admin = true
			case strings.HasPrefix(word, "any of "):
				a.any = strings.Split(strings.TrimPrefix(word, "any of "), ", ")
			case strings.Contains(word, ":"):
				a.all = append(a.all, word)
			default: // services, and perhaps members of an organization besides
				for _, s := range strings.Split(word, "+") {
					if s == "org" {
						a.org = true
					} else if slices.Contains([]string{"runner", "proxy", "sshgw", "otel", "health"}, s) {
						a.services = append(a.services, s)
					} else {
						t.Errorf("%s: what is %q?", id, s)
					}
				}
			}
		}
		if len(a.services) > 0 && !a.org {
			a.by = nil // "key" says that services have keys
		}
		all[id] = a
	}
	return all
}

// caller is somebody who calls.
type caller struct {
	name, bearer, kind string
	org                string // that of a key, or the one that a token names
	named              bool   // the header says org
	roles              map[string]string
	permissions        []string // of a key
	admin              bool
}

// verdict is what the contract has for a call about the organization in the
// path, "" if there is none: 0 for one that is let in.
func (a access) verdict(c caller, path string) int {
	switch {
	case a.public:
		return 0
	case c.kind == "":
		return 401
	case slices.Contains(a.services, c.kind):
		return 0
	case c.kind != "key" && c.kind != "jwt":
		return 403
	case !slices.Contains(a.by, c.kind):
		if len(a.by) > 0 {
			return 401
		}
		return 403
	}
	owner, member := false, false
	if a.org {
		org := path
		if org == "" && (c.kind == "key" || c.named) {
			org = c.org
		}
		if c.kind == "key" {
			member = org == c.org
		} else {
			owner, member = c.roles[org] == "owner", c.roles[org] != ""
		}
		if !member {
			return 403
		}
	}
	may := func(p string) bool { return owner || slices.Contains(c.permissions, p) }
	switch {
	case a.admin && !c.admin, a.owner && !owner:
		return 403
	case slices.ContainsFunc(a.all, func(p string) bool { return !may(p) }):
		return 403
	case len(a.any) > 0 && !slices.ContainsFunc(a.any, may):
		return 403
	}
	return 0
}

// op is one operation as the server's own document has it.
type op struct {
	id, method, path string
	query, may       []string       // parameters that must be there, and that may
	body             map[string]any // the smallest
	schema           map[string]any // of the body
	schemas          map[string]map[string]any
}

// document has the operations of the document that the server serves.
func (w *tenants) document() []op {
	w.t.Helper()
	if w.ops != nil {
		return w.ops
	}
	q, err := http.NewRequest("GET", w.URL+"/api-json", nil)
	if err != nil {
		w.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(q)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	var doc struct {
		Paths      map[string]map[string]map[string]any
		Components struct{ Schemas map[string]map[string]any }
	}
	if err := json.NewDecoder(resp.Body).Decode(&doc); err != nil {
		w.t.Fatal(err)
	}
	var all []op
	for path, methods := range doc.Paths {
		for method, o := range methods {
			x := op{id: fmt.Sprint(o["operationId"]), method: strings.ToUpper(method), path: path}
			for _, p := range list(o["parameters"]) {
				if p := p.(map[string]any); p["in"] == "query" {
					x.may = append(x.may, fmt.Sprint(p["name"]))
					if p["required"] == true {
						x.query = append(x.query, fmt.Sprint(p["name"]))
					}
				}
			}
			if b, ok := o["requestBody"].(map[string]any); ok {
				if s := content(b); s != nil {
					x.schema, x.schemas = s, doc.Components.Schemas
					x.body, _ = example(s, doc.Components.Schemas, 0).(map[string]any)
				}
			}
			all = append(all, x)
		}
	}
	slices.SortFunc(all, func(a, b op) int { return strings.Compare(a.id, b.id) })
	w.ops = all
	return all
}

// example is the smallest value that a schema takes.
func example(s map[string]any, named map[string]map[string]any, depth int) any {
	if ref, ok := s["$ref"].(string); ok {
		s = named[ref[strings.LastIndex(ref, "/")+1:]]
	}
	if e := list(s["enum"]); len(e) > 0 {
		return e[0]
	}
	typ, _ := s["type"].(string)
	if types := list(s["type"]); len(types) > 0 {
		typ, _ = types[0].(string)
	}
	switch typ {
	case "string":
		return "x"
	case "number", "integer":
		if m, ok := s["minimum"].(float64); ok {
			return m
		}
		return 1
	case "boolean":
		return true
	case "array":
		return []any{}
	}
	v := map[string]any{}
	properties, _ := s["properties"].(map[string]any)
	for _, name := range list(s["required"]) {
		if p, ok := properties[name.(string)].(map[string]any); ok && depth < 5 {
			v[name.(string)] = example(p, named, depth+1)
		}
	}
	return v
}

var parameter = regexp.MustCompile(`\{(\w+)\}`)

// fill puts values into the path and the query of an operation. It returns
// those that are particular to an organization.
func (o op) fill(t testing.TB, values map[string]string) (path string, own []string) {
	t.Helper()
	named, segments := strings.Split(o.path, "/"), strings.Split(o.path, "/")
	for i, s := range segments {
		m := parameter.FindStringSubmatch(s)
		if m == nil {
			continue
		}
		v, ok := values[strings.Trim(named[i-1], "{}")+"/"+m[1]]
		if !ok {
			v, ok = values[m[1]]
		}
		if !ok {
			t.Fatalf("%s %s: the test has nothing for {%s}: give A one of these", o.method, o.path, m[1])
		}
		if len(v) > 5 {
			own = append(own, v)
		}
		segments[i] = url.PathEscape(v)
	}
	path = strings.Join(segments, "/")
	q := url.Values{}
	for _, name := range o.query {
		switch name {
		case "from", "to":
			q.Set(name, "2026-01-01T00:00:00Z")
		case "token":
			q.Set(name, values["signed-preview-url/token"])
		case "ref":
			q.Set(name, values["ref"])
		default:
			q.Set(name, "x")
		}
	}
	if o.id == "pollJobs" {
		q.Set("timeout", "0")
	}
	if len(q) > 0 {
		path += "?" + q.Encode()
	}
	return path, own
}

// Bodies that the smallest example is not enough for.
var bodies = map[string]map[string]any{
	"createRegion":                 {"name": "another"},
	"createOrganizationInvitation": {"email": "x@example.com", "role": "member", "assignedRoleIds": []string{}},
	"updateRegion":                 {"proxyUrl": "https://evil.example"},
	"updateOrganizationOtelConfig": {"endpoint": "https://evil.example", "headers": map[string]string{}},
	"createWebhookEndpoint":        {"url": "https://evil.example"},
	"updateWebhookEndpoint":        {"disabled": true},
	"updateSecret":                 {"value": "stolen"},
	"updateRegistry":               {"name": "stolen", "url": "https://registry.example", "username": "u"},
	"replaceLabels":                {"labels": map[string]string{"stolen": "yes"}},
	"updateSandboxState":           {"state": "error"},
	"updateJobStatus":              {"status": "FAILED", "errorMessage": "stolen"},
	"createSandbox":                {"name": "of-somebody-else", "snapshot": "none"},
	"createSnapshot":               {"name": "of-somebody-else", "imageName": "registry.example/image:1"},
	"resizeSandbox":                {"cpu": 2},
	"updateNetworkSettings":        {"networkBlockAll": true},
	"adminCreateRunner":            {"regionId": "none", "name": "x-y", "apiKey": "0123456789abcdef", "apiVersion": "2"},
}

// send calls an operation.
func (w *tenants) send(o op, c caller, path string) sent {
	w.t.Helper()
	var body any
	if b, ok := bodies[o.id]; ok {
		body = b
	} else if o.body != nil {
		body = o.body
	} else if o.method != "GET" && o.method != "DELETE" {
		body = map[string]any{}
	}
	org := ""
	if c.named {
		org = c.org
	}
	return w.do(o.method, path, c.bearer, org, body)
}

// volatile are fields that change by themselves.
var volatile = regexp.MustCompile(`"(lastUsedAt|lastActivityAt|updatedAt|lastChecked|timestamp|currentSize|availabilityScore|current\w+|nextAttempt\w*|attempts|state|errorReason|errorMessage)":("[^"]*"|null|[0-9.]+),?`)

// state is all that A's own can read of it.
func (w *tenants) state(ops []op, rules map[string]access) map[string]string {
	all := map[string]string{}
	for _, o := range ops {
		if o.method != "GET" || strings.Contains(o.path, "/toolbox/") || strings.HasPrefix(o.path, "/users") || strings.Contains(o.path, "audit") ||
			strings.Contains(o.path, "push-access") || strings.Contains(o.path, "preview-url") || strings.Contains(o.path, "messages") || o.id == "pollJobs" || o.id == "listJobs" {
			continue
		}
		path, _ := o.fill(w.t, w.a)
		a := rules[o.id]
		c := caller{bearer: w.keys["alice"], org: w.a["organizationId"], named: true}
		switch {
		case a.public || a.admin:
			continue
		case slices.Contains(a.services, "runner"):
			c = caller{bearer: w.keys["runner A"]}
		case slices.Contains(a.services, "proxy") && !a.org:
			c = caller{bearer: proxyKey}
		case len(a.services) > 0 && !a.org:
			continue
		case !slices.Contains(a.by, "jwt"):
			c = caller{bearer: w.keys["A"]}
		}
		got := w.send(o, c, path)
		if got.status >= 400 {
			all[o.id] = fmt.Sprint(got.status)
			continue
		}
		all[o.id] = fmt.Sprint(got.status, volatile.ReplaceAllString(got.body, ""))
	}
	return all
}

// A request that is neither let in nor refused as the contract has it, one
// that shows anything of another organization, or changes it, is a hole: so
// every operation of the document is called by everybody who must not, with
// what is really there.
func TestAuthorization(t *testing.T) {
	for _, c := range []struct {
		name string
		url  func(testing.TB) string
	}{{"sqlite", storetest.SQLite}, {"postgres", storetest.Postgres}} {
		t.Run(c.name, func(t *testing.T) {
			w := newTenants(t, c.url(t), nil)
			w.furnish()
			testAuthorization(t, w)
		})
	}
}

func testAuthorization(t *testing.T, w *tenants) {
	ops, rules := slices.Clone(w.document()), parseAccess(t)
	if len(ops) < 260 {
		t.Errorf("the document has %d operations only", len(ops))
	}
	known := map[string]bool{}
	rule := func(o op) access {
		a, ok := rules[o.id]
		if !ok && strings.HasSuffix(o.id, "_deprecated") && strings.Contains(o.path, "/toolbox/") {
			a, ok = rules["*_deprecated"]
		}
		if !ok {
			t.Errorf("testdata/access.txt does not say who may call %s: %s %s", o.id, o.method, o.path)
			a.admin = true
		}
		return a
	}
	for _, o := range ops {
		known[o.id] = true
		rule(o)
	}
	for id := range rules {
		if !known[id] && id != "*_deprecated" {
			t.Errorf("testdata/access.txt has %s, which the server does not serve", id)
		}
	}
	if t.Failed() {
		return
	}

	a, alice := w.a["organizationId"], w.keys["alice"]
	strange, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	everyPermission := []string{}
	for _, p := range identity.Permissions() {
		everyPermission = append(everyPermission, string(p))
	}
	expired := w.expiring(a)
	revoked := w.apiKey("alice", a, "revoked", everything())
	w.must("GET", "/api-keys/current", revoked, "", nil) // whoever remembers it, remembers it
	w.must("DELETE", "/api-keys/revoked", alice, a, nil)
	unsigned := strings.Split(alice, ".")
	unsigned[0] = base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none","kid":"1"}`))
	bob := map[string]string{w.b: "owner"}
	callers := []caller{
		{name: "nobody"},
		{name: "no such key", bearer: "dtn_" + strings.Repeat("0", 64)},
		{name: "a revoked key", bearer: revoked},
		{name: "an expired key", bearer: expired},
		{name: "an expired token", bearer: w.users.token("alice", map[string]any{"exp": time.Now().Add(-time.Hour).Unix()}), org: a, named: true},
		{name: "a token of another provider", bearer: w.users.token("alice", map[string]any{"iss": "https://evil.example"}), org: a, named: true},
		{name: "a token for another audience", bearer: w.users.token("alice", map[string]any{"aud": "other"}), org: a, named: true},
		{name: "a token signed by somebody else", bearer: w.users.signed(strange, "alice", nil), org: a, named: true},
		{name: "a token signed by nobody", bearer: unsigned[0] + "." + unsigned[1] + ".", org: a, named: true},
		{name: "a token of the first user's name", bearer: w.users.token("daytona-admin", nil), org: a, named: true},
	}
	for _, k := range []string{"preview", "signed", "ssh", "signing", "objects", "session", "registry", "webhook"} {
		callers = append(callers, caller{name: "what is for " + k, bearer: w.keys[k], org: a, named: true})
	}
	callers = append(callers,
		caller{name: "A's key without permissions", bearer: w.keys["A none"], kind: "key", org: a},
		caller{name: "alice, who names no organization", bearer: alice, kind: "jwt", roles: map[string]string{a: "owner", w.c: "owner"}},
		caller{name: "alice's key of C", bearer: w.keys["C"], kind: "key", org: w.c, permissions: everyPermission},
		caller{name: "mia, a member without a role", bearer: w.keys["mia"], kind: "jwt", org: a, named: true, roles: map[string]string{a: "member"}},
		caller{name: "bob, who names A", bearer: w.keys["bob"], kind: "jwt", org: a, named: true, roles: bob},
		caller{name: "bob, who names B", bearer: w.keys["bob"], kind: "jwt", org: w.b, named: true, roles: bob},
		caller{name: "bob, who names nothing", bearer: w.keys["bob"], kind: "jwt", roles: bob},
		caller{name: "bob, who names nonsense", bearer: w.keys["bob"], kind: "jwt", org: "' OR 1=1 --", named: true, roles: bob},
		caller{name: "bob's key", bearer: w.keys["B"], kind: "key", org: w.b, permissions: everyPermission},
		caller{name: "bob's runner", bearer: w.keys["runner B"], kind: "runner"},
		caller{name: "the proxy of bob's region", bearer: w.keys["proxy B"], kind: "proxy"},
		caller{name: "the SSH gateway of bob's region", bearer: w.keys["gateway B"], kind: "sshgw"},
		caller{name: "A's runner", bearer: w.keys["runner A"], kind: "runner"},
		caller{name: "the proxy", bearer: proxyKey, kind: "proxy"},
		caller{name: "the SSH gateway", bearer: gatewayKey, kind: "sshgw"},
		caller{name: "the collector", bearer: collectorKey, kind: "otel"},
		caller{name: "the health check", bearer: healthKey, kind: "health"},
	)
	before := w.state(ops, rules)
	real := 0
	for id, s := range before {
		if strings.HasPrefix(s, "2") {
			real++
		} else if !slices.Contains([]string{"getSandboxParent", "getSandboxLogs", "getSandboxTraces", "getSandboxTraceSpans", "getSandboxMetrics", "getBuildLogs", "getBuildLogsUrl",
			"getSnapshotBuildLogs", "getSnapshotBuildLogsUrl", "isSandboxPublic", "resolveSandboxSecrets", "getSandboxForks", "getSandboxAncestors", "getRunnerBySandboxId"}, id) {
			t.Errorf("A's own can't read what the test is about: %s: %s", id, s)
		}
	}
	if real < 40 {
		t.Errorf("only %d operations read something of A", real)
	}

	// Everybody who must not, with what there is.
	calls := 0
	for _, o := range ops {
		rule := rule(o)
		path, own := o.fill(t, w.a)
		inPath := ""
		if strings.Contains(o.path, "{organizationId}") {
			inPath = a
		}
		for _, c := range callers {
			want := rule.verdict(c, inPath)
			foreign := strings.HasPrefix(c.name, "bob") || strings.Contains(c.name, "bob's") || strings.Contains(c.name, "of C")
			if want == 0 && !foreign && (rule.public || o.method != "GET") {
				continue // it is for them; below is what they may do
			}
			calls++
			got := w.send(o, c, path)
			switch {
			case want != 0 && got.status != want:
				t.Errorf("%s: %s: %d, not %d: %s", o.id, c.name, got.status, want, got.body)
			case want == 0 && foreign && len(own) > 0:
				if !slices.Contains(elsewhere(o.id), got.status) {
					t.Errorf("%s: %s, with what is A's: %d %s", o.id, c.name, got.status, got.body)
				}
			case got.status >= 500 && got.status != 503:
				t.Errorf("%s: %s: %d %s", o.id, c.name, got.status, got.body)
			}
			if foreign || want != 0 {
				for _, hidden := range slices.Concat(w.hidden, w.secrets) {
					if strings.Contains(got.body, hidden) && !strings.Contains(path, url.PathEscape(hidden)) && !mine(hidden, c) && !rule.public {
						t.Errorf("%s: %s is told %q: %s", o.id, c.name, hidden, got.body)
					}
				}
			}
		}
	}
	if calls < 6000 {
		t.Errorf("only %d calls were made", calls)
	}

	// What is A's, named in a body.
	w.references()
	for id, was := range before {
		if now := w.state(slices.DeleteFunc(slices.Clone(ops), func(o op) bool { return o.id != id }), rules)[id]; now != was {
			t.Errorf("after all that was refused, %s says\n%s\nand not\n%s", id, now, was)
		}
	}
	w.allowed(ops, rule)
}

// mine says that something hidden is of the caller's own: alice's key of C may
// see alice.
func mine(hidden string, c caller) bool { return hidden == c.bearer }

// elsewhere are the statuses of an operation about what is in another
// organization. 404 says that it is as if it were not there.
func elsewhere(id string) []int {
	switch id {
	case "getSandboxIdFromSignedPreviewUrlToken":
		return []int{403} // as for a token that is none
	case "validateSshAccess", "getRunnersBySnapshotRef":
		return []int{200} // {"valid":false}, []
	case "unlinkAccount", "enrollInSmsMfa", "linkAccount":
		return []int{404, 403, 400}
	}
	return []int{404}
}

// expiring is a key that has expired.
func (w *tenants) expiring(org string) string {
	w.t.Helper()
	made := w.must("POST", "/api-keys", w.keys["alice"], org, map[string]any{"name": "expiring", "permissions": []string{"write:sandboxes"}, "expiresAt": time.Now().Add(1500 * time.Millisecond).UTC().Format("2006-01-02T15:04:05.000Z")})
	key := text(made, "value")
	end, err := time.Parse(time.RFC3339, text(made, "expiresAt"))
	if err != nil {
		w.t.Fatal(err)
	}
	for {
		now := time.Now()
		a := w.do("GET", "/api-keys/current", key, "", nil)
		switch {
		case a.status == 401 && time.Now().Before(end):
			w.t.Error("a key expired too early")
			return key
		case a.status == 401:
			return key
		case now.After(end):
			w.t.Errorf("a key that has expired: %d", a.status)
			return key
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// references names in bodies of requests in B what is in A.
func (w *tenants) references() {
	t := w.t
	for _, c := range []struct {
		method, path string
		body         map[string]any
	}{
		{"POST", "/sandbox", map[string]any{"snapshot": "hidden-snapshot"}},
		{"POST", "/sandbox", map[string]any{"snapshot": w.a["snapshots/id"]}},
		{"POST", "/sandbox", map[string]any{"target": w.a["regions/id"]}},
		{"POST", "/sandbox", map[string]any{"target": "hidden-region-A"}},
		{"POST", "/sandbox", map[string]any{"linkedSandbox": w.a["sandboxId"]}},
		{"POST", "/sandbox", map[string]any{"volumes": []any{map[string]any{"volumeId": w.a["volumeId"], "mountPath": "/v"}}}},
		{"POST", "/sandbox", map[string]any{"volumes": []any{map[string]any{"volumeId": "hidden-volume", "mountPath": "/v"}}}},
		{"POST", "/sandbox", map[string]any{"secrets": []any{map[string]any{"K": "HIDDEN_SECRET"}}}},
		{"POST", "/sandbox", map[string]any{"secrets": []any{map[string]any{"K": w.a["secretId"]}}}},
		{"POST", "/snapshots", map[string]any{"name": "s", "imageName": "registry.example/i:1", "regionId": w.a["regions/id"]}},
		{"POST", "/warm-pools", map[string]any{"snapshot": "hidden-snapshot", "pool": 1}},
		{"POST", "/warm-pools", map[string]any{"snapshot": w.a["snapshots/id"], "pool": 1}},
		{"POST", "/warm-pools", map[string]any{"snapshot": "default", "pool": 1, "target": w.a["regions/id"]}},
		{"POST", "/runners", map[string]any{"regionId": w.a["regions/id"], "name": "mole"}},
	} {
		got := w.do(c.method, c.path, w.keys["B"], "", c.body)
		if got.status != 400 && got.status != 403 && got.status != 404 {
			t.Errorf("bob's key: %s %s %v: %d %s", c.method, c.path, c.body, got.status, got.body)
		}
	}
	for _, c := range []struct {
		method, path string
		body         map[string]any
	}{
		{"POST", "/organizations", map[string]any{"name": "x", "defaultRegionId": w.a["regions/id"]}},
		{"POST", "/organizations/" + w.b + "/invitations", map[string]any{"email": "y@example.com", "role": "member", "assignedRoleIds": []string{w.a["roleId"]}}},
		{"POST", "/organizations/" + w.b + "/users/bob/access", map[string]any{"role": "owner", "assignedRoleIds": []string{w.a["roleId"]}}},
		{"POST", "/organizations/" + w.b + "/users/alice/access", map[string]any{"role": "owner", "assignedRoleIds": []string{}}},
		{"PUT", "/organizations/" + w.b + "/roles/" + w.a["roleId"], map[string]any{"name": "x", "description": "", "permissions": []string{}}},
		{"DELETE", "/organizations/" + w.b + "/roles/" + w.a["roleId"], nil},
		{"DELETE", "/organizations/" + w.b + "/users/alice", nil},
		{"PUT", "/organizations/" + w.b + "/invitations/" + w.a["invitationId"], map[string]any{"role": "owner", "assignedRoleIds": []string{}}},
		{"POST", "/organizations/" + w.b + "/invitations/" + w.a["invitationId"] + "/cancel", nil},
		{"GET", "/organizations/" + w.b + "/identity-providers/" + w.a["identity-providers/id"], nil},
		{"PATCH", "/organizations/" + w.b + "/identity-providers/" + w.a["identity-providers/id"], map[string]any{"enabled": false}},
		{"DELETE", "/organizations/" + w.b + "/identity-providers/" + w.a["identity-providers/id"], nil},
		{"PATCH", "/webhooks/organizations/" + w.b + "/endpoints/" + w.a["endpointId"], map[string]any{"disabled": true}},
		{"DELETE", "/webhooks/organizations/" + w.b + "/endpoints/" + w.a["endpointId"], nil},
		{"GET", "/webhooks/organizations/" + w.b + "/endpoints/" + w.a["endpointId"] + "/secret", nil},
		{"GET", "/webhooks/organizations/" + w.b + "/messages/" + w.a["messageId"] + "/attempts", nil},
	} {
		var body any
		if c.body != nil {
			body = c.body
		}
		got := w.do(c.method, c.path, w.keys["bob"], w.b, body)
		if got.status != 400 && got.status != 403 && got.status != 404 && !(got.status == 200 && strings.TrimSpace(got.body) == "[]") {
			t.Errorf("bob: %s %s %v: %d %s", c.method, c.path, c.body, got.status, got.body)
		}
	}
}

// allowed calls everything as those whom it is for, in an organization with
// nothing in it: what refuses everybody would pass all else of this test.
func (w *tenants) allowed(ops []op, rule func(op) access) {
	t := w.t
	values := map[string]string{}
	for k, v := range w.a {
		values[k] = v
		if len(v) == 36 {
			values[k] = unknown()
		}
	}
	values["organizationId"], values["api-keys/name"], values["userId/name"], values["by-name/name"] = w.c, "none", "none", "none"
	values["authToken"], values["signedPreviewToken"], values["ref"] = "none", "none", "none"
	values["users/id"], values["userId"] = "nobody-of-this-name", "nobody-of-this-name"
	keys := map[string]string{}
	only := func(permissions ...string) caller {
		name := "only " + strings.Join(permissions, " ")
		if keys[name] == "" {
			all := []identity.Permission{}
			for _, p := range permissions {
				all = append(all, identity.Permission(p))
			}
			keys[name] = w.apiKey("alice", w.c, strings.NewReplacer(":", "-", " ", "-").Replace(name), all)
		}
		return caller{name: name, bearer: keys[name], kind: "key", org: w.c, permissions: permissions}
	}
	but := func(permission string) caller {
		name := "all but " + permission
		if keys[name] == "" {
			keys[name] = w.apiKey("alice", w.c, strings.NewReplacer(":", "-", " ", "-").Replace(name), everything(identity.Permission(permission)))
		}
		c := caller{name: name, bearer: keys[name], kind: "key", org: w.c}
		for _, p := range everything(identity.Permission(permission)) {
			c.permissions = append(c.permissions, string(p))
		}
		return c
	}
	owner := caller{name: "alice", bearer: w.keys["alice"], kind: "jwt", org: w.c, named: true, roles: map[string]string{w.c: "owner"}}
	admin := caller{name: "the administrator", bearer: adminKey, kind: "key", admin: true}
	services := map[string]caller{
		"runner": {name: "A's runner", bearer: w.keys["runner A"], kind: "runner"}, "proxy": {name: "the proxy", bearer: proxyKey, kind: "proxy"},
		"sshgw": {name: "the SSH gateway", bearer: gatewayKey, kind: "sshgw"}, "otel": {name: "the collector", bearer: collectorKey, kind: "otel"},
		"health": {name: "the health check", bearer: healthKey, kind: "health"},
	}
	// What ends the organization comes last.
	slices.SortStableFunc(ops, func(a, b op) int {
		last := func(o op) int {
			return slices.Index([]string{"suspendOrganization", "unsuspendOrganization", "leaveOrganization", "deleteOrganization"}, o.id)
		}
		return last(a) - last(b)
	})
	for _, o := range ops {
		rule := rule(o)
		path, _ := o.fill(t, values)
		inPath := ""
		if strings.Contains(o.path, "{organizationId}") {
			inPath = w.c
		}
		var in, out []caller
		switch {
		case rule.public:
			in = append(in, caller{name: "nobody"})
		case rule.admin:
			in = append(in, admin)
		default:
			for _, s := range rule.services {
				in = append(in, services[s])
			}
			if slices.Contains(rule.by, "jwt") {
				in = append(in, owner)
			}
			if slices.Contains(rule.by, "key") {
				in = append(in, only(rule.all...))
				for _, p := range rule.all {
					out = append(out, but(p))
				}
				for _, p := range rule.any {
					in = append(in, only(p))
				}
				if len(rule.any) > 0 {
					in = slices.DeleteFunc(in, func(c caller) bool { return c.kind == "key" && len(c.permissions) == 0 })
					out = append(out, only())
				}
			}
		}
		for _, c := range in {
			if v := rule.verdict(c, inPath); v != 0 {
				t.Errorf("%s: %s is not meant to be refused: %d", o.id, c.name, v)
			}
			got := w.send(o, c, path)
			denied := got.status == 401 || got.status == 403 && (strings.Contains(got.body, "Access denied") || strings.Contains(got.body, "Invalid authentication context"))
			if denied || got.status == 500 {
				t.Errorf("%s: %s: %d %s", o.id, c.name, got.status, got.body)
			}
		}
		for _, c := range out {
			if got := w.send(o, c, path); got.status != 403 {
				t.Errorf("%s: %s: %d %s", o.id, c.name, got.status, got.body)
			}
		}
	}
}
