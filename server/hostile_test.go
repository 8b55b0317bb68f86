package server_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/daytona-go/daytona/server"
	"github.com/daytona-go/daytona/server/store/storetest"
)

// entitled is one for whom an operation is.
func (w *tenants) entitled(rule access) caller {
	a := w.a["organizationId"]
	switch {
	case rule.public:
		return caller{}
	case rule.admin:
		return caller{bearer: adminKey}
	case slices.Contains(rule.by, "jwt"):
		return caller{bearer: w.keys["alice"], org: a, named: true}
	case slices.Contains(rule.by, "key"):
		return caller{bearer: w.keys["A"]}
	}
	return caller{bearer: map[string]string{"runner": w.keys["runner"], "proxy": proxyKey, "sshgw": gatewayKey, "otel": collectorKey, "health": healthKey}[rule.services[0]]}
}

// Whatever is put where, in paths, in queries and in bodies, is refused or
// taken; it is never the server's own fault, on either database, and nothing
// that it says of it can be taken for anything else.
func TestHostileInput(t *testing.T) {
	for _, c := range []struct {
		name string
		url  func(testing.TB) string
	}{{"sqlite", storetest.SQLite}, {"postgres", storetest.Postgres}} {
		t.Run(c.name, func(t *testing.T) {
			w := newTenants(t, c.url(t), func(c *server.Config) { c.Client = nil })
			testHostileInput(t, w, c.name == "sqlite")
		})
	}
}

// testHostileInput tries all of it, or what databases differ in.
func testHostileInput(t *testing.T, w *tenants, all bool) {
	a := w.a["organizationId"]
	w.keys["A"] = w.apiKey("alice", a, "a", everything())
	w.keys["runner"] = text(w.must("POST", "/admin/runners", adminKey, "", map[string]any{"regionId": "us", "name": "fake", "apiKey": "0123456789abcdef", "apiVersion": "2"}), "apiKey")
	rules := parseAccess(t)
	calls := 0
	try := func(o op, what string, c caller, path string, body any) {
		t.Helper()
		org := ""
		if c.named {
			org = c.org
		}
		calls++
		got := w.do(o.method, path, c.bearer, org, body)
		if got.status >= 500 && got.status != 503 {
			t.Errorf("%s: %s: %s %.200s: %d %.300s", o.id, what, o.method, path, got.status, got.body)
		}
		if got.status >= 400 && got.body != "" {
			if typ := got.header.Get("Content-Type"); typ != "application/json; charset=utf-8" || got.header.Get("X-Content-Type-Options") != "nosniff" || !json.Valid([]byte(got.body)) {
				t.Errorf("%s: %s: %d %s %.300s", o.id, what, got.status, typ, got.body)
			}
		}
	}
	values := map[string]string{"organizationId": a}
	few := func(values ...string) []string {
		if all {
			return values
		}
		return values[:2]
	}
	for _, segment := range few("a%00b", "%ff%fe", "..", ".", "%00", "..%2f..%2fetc", "%2e%2e", "a%2fb", "a;b=c", "a'b", `a"b`, "a%0d%0ab", "%E2%80%AEx", "%25", "*", "{}", "-1", "99999999999999999999", "NaN",
		"1e400", strings.Repeat("a", 5000), strings.Repeat("%C3%A4", 700)) {
		for _, o := range w.document() {
			rule, ok := rules[o.id]
			if !ok {
				rule = rules["*_deprecated"]
			}
			if o.id == "pollJobs" || slices.Contains([]string{"deleteOrganization", "leaveOrganization", "suspendOrganization"}, o.id) {
				continue
			}
			c := w.entitled(rule)
			parts := strings.Split(o.path, "/")
			for i := range parts {
				if !strings.HasPrefix(parts[i], "{") || strings.Contains(o.path, "/toolbox/") && parts[i] != "{sandboxId}" {
					continue
				}
				named := slices.Clone(parts)
				for j, p := range named {
					switch {
					case j == i:
						named[j] = segment
					case p == "{organizationId}":
						named[j] = values["organizationId"]
					case strings.HasPrefix(p, "{"):
						named[j] = "x"
					}
				}
				var body any
				if o.method != "GET" && o.method != "DELETE" {
					body = o.body
					if b, ok := bodies[o.id]; ok {
						body = b
					}
				}
				try(o, "path", c, strings.Join(named, "/"), body)
			}
		}
	}
	// Queries, one parameter at a time.
	for _, o := range w.document() {
		rule, ok := rules[o.id]
		if !ok || o.id == "pollJobs" {
			continue
		}
		path := parameter.ReplaceAllStringFunc(o.path, func(p string) string {
			if p == "{organizationId}" {
				return a
			}
			return "x"
		})
		for _, name := range o.may {
			for _, v := range few("a\x00b", "\xff", "", "\x00", "'", "%", "_", `\`, "-1", "0", "99999999999999999999", "NaN", "1e400", "{", "[]", "null", `{"a":"\u0000"}`, `{"\u0000":"a"}`, `{"a":1}`,
				`{"a":{"b":{}}}`, strings.Repeat("[", 10000), strings.Repeat("a", 5000), "2026-13-45T99:99:99Z", "0000-00-00T00:00:00Z", "+292277026596-12-04T15:30:07Z", "eyJzb3J0IjoibGFzdEFjdGl2aXR5QXQiLCJzb3J0VmFsdWUiOiJcdTAwMDAiLCJpZCI6IlwwIn0",
				"eyJzb3J0IjoibmFtZSIsInNvcnRWYWx1ZSI6IlwidTAwMDAiLCJpZCI6IlwidTAwMDAifQ==") {
				if o.method != "GET" {
					break
				}
				try(o, "query", w.entitled(rule), path+"?"+url.Values{name: {v}}.Encode(), nil)
			}
		}
	}
	for _, q := range []string{"%", "a=%zz", "=", "&&&", ";", "labels=%ff", "name=%00", "action[eq]=%00", `labels={"a":"\u0000"}`, `labels={"\u0000":"a"}`, "action[eq]=%ff", "action[or]=x", "createdAt[gte]=x", "actorId[eq][x]=1"} {
		for _, path := range []string{"/sandbox", "/sandbox/paginated", "/snapshots", "/audit/organizations/" + a, "/secret/paginated"} {
			try(op{method: "GET"}, "query", caller{bearer: w.keys["alice"], org: a, named: true}, path+"?"+q, nil)
		}
	}
	// Bodies: every text in them, and what is no body of the kind.
	for _, o := range w.document() {
		rule, ok := rules[o.id]
		if !ok || o.schema == nil || slices.Contains([]string{"deleteOrganization", "leaveOrganization", "suspendOrganization"}, o.id) {
			continue
		}
		c := w.entitled(rule)
		path := parameter.ReplaceAllStringFunc(o.path, func(p string) string {
			if p == "{organizationId}" {
				return a
			}
			return "x"
		})
		base := o.body
		if b, ok := bodies[o.id]; ok {
			base = b
		}
		for _, v := range few("a\x00", "\u2028", "<script>alert(1)</script>", "a\r\nb", "\x1b]52;c;x\x07", strings.Repeat("a", 70000)) {
			for _, b := range variants(o.schema, o.schemas, v, 0) {
				if m, ok := b.(map[string]any); ok {
					b = full(base, m)
				}
				try(o, fmt.Sprintf("body with %.10q", v), c, path, b)
			}
		}
		for _, b := range few("", "null", "[]", "1", `"x"`, "{", "\x00", "\xff", `{"a":1e999}`, strings.Repeat(`{"a":`, 100000), strings.Repeat("[", 1<<20), `{"name":null,"name":{}}`, "<a/>") {
			try(o, fmt.Sprintf("body %.10q", b), c, path, b)
		}
	}
	if all && calls < 8000 {
		t.Errorf("only %d calls", calls)
	}
	// Headers that reach the database or the log.
	for _, name := range []string{"X-Daytona-Organization-ID", "X-Daytona-Source", "X-Daytona-SDK-Version", "User-Agent", "X-Request-Id", "Authorization", "traceparent", "X-Forwarded-For", "Idempotency-Key"} {
		for _, v := range []string{"\xff\xfe", strings.Repeat("a", 8000), "'", "a\tb"} {
			q, err := http.NewRequest("POST", w.URL+"/api/volumes", strings.NewReader(`{"name":"`+unknown()+`"}`))
			if err != nil {
				t.Fatal(err)
			}
			q.Header.Set("Authorization", "Bearer "+w.keys["alice"])
			q.Header.Set("X-Daytona-Organization-ID", a)
			q.Header.Set(name, v)
			resp, err := http.DefaultClient.Do(q)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode >= 500 {
				t.Errorf("%s: %.20q: %d", name, v, resp.StatusCode)
			}
		}
	}
	if w.log != nil && strings.Contains(w.log.String(), "audit entries can't be stored") {
		t.Error("what a client sent keeps the audit log from being written")
	}
}

// variants are values of a schema with v in one of the places of a text.
func variants(s map[string]any, named map[string]map[string]any, v string, depth int) []any {
	if ref, ok := s["$ref"].(string); ok {
		s = named[ref[strings.LastIndex(ref, "/")+1:]]
	}
	if depth > 4 || s == nil {
		return nil
	}
	var out []any
	switch properties, _ := s["properties"].(map[string]any); {
	case s["type"] == "string" || slices.Contains(list(s["type"]), any("string")):
		out = append(out, v)
	case len(properties) > 0:
		for name, p := range properties {
			for _, x := range variants(p.(map[string]any), named, v, depth+1) {
				out = append(out, map[string]any{name: x})
			}
		}
	case s["items"] != nil:
		for _, x := range variants(s["items"].(map[string]any), named, v, depth+1) {
			out = append(out, []any{x})
		}
	default: // a map
		out = append(out, map[string]any{"a": v}, map[string]any{v: "a"})
	}
	return out
}

// full is base with what m has.
func full(base, m map[string]any) map[string]any {
	all := map[string]any{}
	for k, v := range base {
		all[k] = v
	}
	for k, v := range m {
		if inner, ok := v.(map[string]any); ok {
			if b, ok := base[k].(map[string]any); ok {
				v = full(b, inner)
			}
		}
		all[k] = v
	}
	return all
}
