package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/wire"
	"github.com/daytona-go/daytona/server/api"
	"github.com/daytona-go/daytona/server/identity"
	"github.com/daytona-go/daytona/server/observe"
)

const (
	orgA = "11111111-1111-4111-8111-111111111111"
	orgB = "22222222-2222-4222-8222-222222222222"
)

// people are who the tests know, by bearer token.
var people = map[string]identity.Principal{
	"key":         {Kind: identity.Key, UserID: "u", OrganizationID: orgA, Permissions: []identity.Permission{identity.WriteSandboxes}},
	"key-bare":    {Kind: identity.Key, UserID: "u", OrganizationID: orgA},
	"key-admin":   {Kind: identity.Key, UserID: "root", OrganizationID: orgA, Admin: true},
	"owner":       {Kind: identity.JWT, UserID: "owner"},
	"member":      {Kind: identity.JWT, UserID: "member"},
	"stranger":    {Kind: identity.JWT, UserID: "stranger"},
	"jwt-admin":   {Kind: identity.JWT, UserID: "root", Admin: true},
	"runner":      {Kind: identity.Runner, RunnerID: "r"},
	"proxy":       {Kind: identity.Proxy},
	"region":      {Kind: identity.RegionProxy, RegionID: "eu"},
	"ssh":         {Kind: identity.SSHGateway},
	"region-ssh":  {Kind: identity.RegionSSHGateway, RegionID: "eu"},
	"collector":   {Kind: identity.Collector},
	"healthcheck": {Kind: identity.HealthCheck},
}

// known is an authenticator of people.
type known struct{}

func (known) Authenticate(_ context.Context, bearer string) (*identity.Principal, error) {
	if bearer == "down" {
		return nil, errors.New("dial tcp 10.1.2.3:5432: connection refused")
	}
	p, ok := people[bearer]
	if !ok {
		return nil, &daytona.Error{Kind: daytona.KindUnauthorized, Message: "no such key: " + bearer}
	}
	return &p, nil
}

func (known) Join(_ context.Context, p *identity.Principal, organizationID string) (*identity.Principal, error) {
	joined := *p
	joined.OrganizationID = organizationID
	switch {
	case organizationID == "down":
		return nil, errors.New("connection refused")
	case organizationID != orgA:
	case p.UserID == "owner":
		joined.Role = identity.Owner
		return &joined, nil
	case p.UserID == "member":
		joined.Role, joined.Permissions = identity.Member, []identity.Permission{identity.WriteSnapshots}
		return &joined, nil
	}
	return nil, &daytona.Error{Kind: daytona.KindForbidden, Message: "no member"}
}

// wait is for what takes longer than a body may take to arrive.
func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// tiny serves a few routes of every kind, whose handlers say who they see.
func tiny(t *testing.T, c api.Config) *httptest.Server {
	t.Helper()
	if c.Authenticator == nil {
		c.Authenticator = known{}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	a := api.New(c)
	observed := observe.New(observe.Config{Log: c.Log}).Handler("api", a)
	type who struct {
		User         string `json:"user"`
		Organization string `json:"organization"`
		Role         string `json:"role"`
		Address      string `json:"address"`
	}
	see := func(ctx context.Context) (who, error) {
		p := identity.From(ctx)
		return who{p.UserID, p.OrganizationID, string(p.Role), api.Address(ctx).String()}, nil
	}
	for _, id := range []string{
		"ConfigController_getConfig", "getAuthenticatedUser", "listRegistries", "listApiKeys", "getTransientPushAccess",
		"adminListUsers", "HealthController_check",
	} {
		api.Handle(a, id, func(ctx context.Context, _ *struct{}) (who, error) { return see(ctx) })
	}
	for _, id := range []string{"listOrganizationIdentityProviders", "suspendOrganization", "getOrganizationOtelConfig", "listAvailableSandboxClasses", "getOrganization"} {
		api.Handle(a, id, func(ctx context.Context, _ *struct {
			ID string `path:"organizationId"`
		}) (who, error) {
			return see(ctx)
		})
	}
	api.Handle(a, "pollJobs", func(ctx context.Context, _ *struct{}) (who, error) { return see(ctx) })
	api.Handle(a, "getSandbox", func(ctx context.Context, in *struct {
		ID string `path:"sandboxIdOrName"`
	}) (who, error) {
		switch in.ID {
		case "panics":
			panic("secret in a panic")
		case "aborts":
			panic(http.ErrAbortHandler)
		case "fails":
			return who{}, errors.New("pq: password authentication failed for user secret")
		case "away":
			_, err := pgconn.Connect(ctx, "host=/nowhere/secret user=secret")
			return who{}, fmt.Errorf("read the sandbox: %w", err)
		case "state":
			return who{}, &daytona.Error{Kind: daytona.KindState, Message: "Sandbox is not stopped"}
		case "waits":
			if err := wait(ctx, time.Second); err != nil {
				return who{}, err
			}
		case "teapot":
			return who{}, api.Status(http.StatusTeapot, &daytona.Error{Kind: daytona.KindInvalid, Message: "short and stout"})
		}
		return see(ctx)
	})
	type in struct {
		Body struct {
			Name   string            `json:"name" required:"true"`
			Target *string           `json:"target,omitempty"`
			Labels map[string]string `json:"labels,omitempty"`
			Count  int               `json:"count,omitempty" minimum:"1"`
		}
	}
	type echo struct {
		Name   string `json:"name"`
		Target bool   `json:"target"`
		Labels int    `json:"labels"`
	}
	api.Handle(a, "createSandbox", func(ctx context.Context, in *in) (echo, error) {
		if in.Body.Name == "waits" {
			if err := wait(ctx, time.Second); err != nil {
				return echo{}, err
			}
		}
		return echo{in.Body.Name, in.Body.Target != nil, len(in.Body.Labels)}, nil
	})
	api.Handle(a, "listSandboxes", func(_ context.Context, in *struct {
		States []string `query:"states,explode"`
		Limit  int      `query:"limit" default:"100" maximum:"200"`
	}) ([]string, error) {
		return append(in.States, fmt.Sprint(in.Limit)), nil
	})
	api.Handle(a, "deleteApiKey", func(context.Context, *struct {
		Name string `path:"name"`
	}) (api.None, error) {
		return api.None{}, nil
	})
	api.Stream(a, "getBuildLogs", func(w http.ResponseWriter, r *http.Request) error {
		switch api.Param(r, "sandboxIdOrName") {
		case "fails":
			return &daytona.Error{Kind: daytona.KindNotFound, Message: "no logs"}
		case "late":
			io.WriteString(w, "begun")
			return errors.New("too late to say")
		}
		n, _ := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, n)
		return nil
	})
	s := httptest.NewServer(observed)
	t.Cleanup(s.Close)
	return s
}

// answer is what came back of a request.
type answer struct {
	status int
	header http.Header
	body   string
}

func (a answer) message(t *testing.T) string {
	t.Helper()
	var e wire.Error
	if err := json.Unmarshal([]byte(a.body), &e); err != nil || e.StatusCode != a.status || e.Error != http.StatusText(a.status) {
		t.Errorf("%d: no error of the wire: %s", a.status, a.body)
	}
	if _, err := time.Parse("2006-01-02T15:04:05.000Z", e.Timestamp); err != nil {
		t.Error(err)
	}
	return e.Message
}

// ask sends a request; headers are "Name: value".
func ask(t *testing.T, s *httptest.Server, method, path, bearer, body string, headers ...string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, s.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if bearer != "" {
		req.Header.Set("Authorization", "Bearer "+bearer)
	}
	for _, h := range headers {
		if h == "" {
			continue
		}
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Add(name, value)
	}
	client := *s.Client()
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	res, err := client.Do(req)
	if err != nil {
		return answer{body: err.Error()}
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{res.StatusCode, res.Header, string(b)}
}

// Every kind of caller at every kind of route: let in, 401 where the
// credential is the wrong one, 403 where its owner is.
func TestGuard(t *testing.T) {
	s := tiny(t, api.Config{})
	routes := []struct {
		name, path string
		in         string // who is let in
		unknown    string // whose credential is the wrong kind: 401; all others get 403
	}{
		{"anyone", "/api/config", "", ""},
		{"user", "/api/users/me", "owner member stranger jwt-admin", "key key-bare key-admin"},
		{"member", "/api/docker-registry", "key key-bare key-admin owner member", ""},
		{"member with a token", "/api/api-keys", "owner member", "key key-bare key-admin"},
		{"a member of the organization in the path", "/api/organizations/" + orgA + "/available-sandbox-classes", "key key-bare key-admin owner member", ""},
		{"owner", "/api/organizations/" + orgA + "/identity-providers", "owner", "key key-bare key-admin"},
		{"any of two permissions", "/api/docker-registry/registry-push-access", "key owner member", ""},
		{"administrator", "/api/admin/users", "key-admin jwt-admin", ""},
		{"runner", "/api/jobs/poll", "runner", ""},
		{"collector", "/api/organizations/" + orgA + "/otel-config", "collector", ""},
		{"health check", "/api/health/ready", "healthcheck", ""},
		{"users and services", "/api/sandbox/x", "key key-bare key-admin owner member proxy region ssh region-ssh", ""},
	}
	for _, r := range routes {
		t.Run(r.name, func(t *testing.T) {
			in, unknown := strings.Fields(r.in), strings.Fields(r.unknown)
			for who := range people {
				a := ask(t, s, "GET", r.path, who, "", "X-Daytona-Organization-ID: "+orgA)
				want, message := 403, ""
				switch {
				case r.in == "" || contains(in, who):
					want = 200
				case contains(unknown, who):
					want, message = 401, "Invalid credentials"
				case who == "stranger" || who == "jwt-admin":
					// Not a member: whether anything is missing is not said.
					if r.name != "administrator" && r.name != "runner" && r.name != "collector" && r.name != "health check" {
						message = "Invalid authentication context"
					}
				}
				if want == 403 && message == "" {
					message = "Access denied"
				}
				if a.status != want {
					t.Errorf("%s: %d, not %d: %s", who, a.status, want, a.body)
				} else if want != 200 {
					if m := a.message(t); m != message {
						t.Errorf("%s: %q, not %q", who, m, message)
					}
				}
			}
			for _, h := range []string{"", "Authorization: Bearer", "Authorization: Bearer ", "Authorization: Bearer nope", "Authorization: Basic a2V5Og==", "Authorization: key"} {
				a := ask(t, s, "GET", r.path, "", "", h)
				if r.in == "" {
					if a.status != 200 {
						t.Errorf("%q: %d", h, a.status)
					}
				} else if a.status != 401 || a.message(t) != "Invalid credentials" {
					t.Errorf("%q: %d %s", h, a.status, a.body)
				}
			}
			if r.in != "" {
				a := ask(t, s, "GET", r.path, "down", "")
				if a.status != 503 || a.message(t) != "Temporary authentication service error" || strings.Contains(a.body, "10.1.2.3") {
					t.Errorf("%d %s", a.status, a.body)
				}
			}
		})
	}
	if a := ask(t, s, "GET", "/api/users/me", "", "", "Authorization: bEARER  owner"); a.status != 200 {
		t.Errorf("the name of a scheme has no case: %d", a.status)
	}
}

func contains(list []string, v string) bool {
	for _, s := range list {
		if s == v {
			return true
		}
	}
	return false
}

// A key acts in its own organization whatever a request says; a token in the
// one that is named, if its user is in it.
func TestGuardOrganization(t *testing.T) {
	s := tiny(t, api.Config{})
	const header = "X-Daytona-Organization-ID: "
	for _, c := range []struct {
		who, path, header string
		status            int
		organization      string
	}{
		{"key", "/api/docker-registry", "", 200, orgA},
		{"key", "/api/docker-registry", orgB, 200, orgA},
		{"key", "/api/organizations/" + orgA + "/available-sandbox-classes", orgB, 200, orgA},
		{"key", "/api/organizations/" + orgB + "/available-sandbox-classes", orgA, 403, ""},
		{"owner", "/api/docker-registry", orgA, 200, orgA},
		{"owner", "/api/docker-registry", "", 403, ""},
		{"owner", "/api/docker-registry", orgB, 403, ""},
		{"owner", "/api/docker-registry", "x' OR 1=1", 403, ""},
		{"owner", "/api/organizations/" + orgA, "", 200, orgA},
		// The path says what a request is about; a header that says another
		// thing changes nothing.
		{"owner", "/api/organizations/" + orgA, orgB, 200, orgA},
		{"owner", "/api/organizations/" + orgB, orgA, 403, ""},
		{"stranger", "/api/organizations/" + orgA, orgA, 403, ""},
		{"proxy", "/api/sandbox/x", orgB, 200, ""},
	} {
		var h []string
		if c.header != "" {
			h = append(h, header+c.header)
		}
		a := ask(t, s, "GET", c.path, c.who, "", h...)
		if a.status != c.status {
			t.Errorf("%+v: %d %s", c, a.status, a.body)
			continue
		}
		if c.status == 403 {
			if m := a.message(t); m != "Invalid authentication context" {
				t.Errorf("%+v: %q", c, m)
			}
			continue
		}
		var who struct{ Organization string }
		if err := json.Unmarshal([]byte(a.body), &who); err != nil || who.Organization != c.organization {
			t.Errorf("%+v: %s", c, a.body)
		}
	}
	if a := ask(t, s, "GET", "/api/docker-registry", "owner", "", header+"down"); a.status != 500 || strings.Contains(a.body, "refused") {
		t.Errorf("%d %s", a.status, a.body)
	}
}

// What goes wrong has the body of the wire, with the path as it was asked for,
// and says nothing of what is inside.
func TestGuardErrors(t *testing.T) {
	var log bytes.Buffer
	var entries []api.Entry
	var mu sync.Mutex
	s := tiny(t, api.Config{
		Log: slog.New(slog.NewTextHandler(&log, nil)), Version: "1.2.3",
		Done: func(e api.Entry) { mu.Lock(); defer mu.Unlock(); entries = append(entries, e) },
	})
	for _, c := range []struct {
		path    string
		status  int
		message string
	}{
		{"/api/sandbox/panics", 500, "An unexpected error occurred."},
		{"/api/sandbox/fails", 500, "An unexpected error occurred."},
		{"/api/sandbox/away", 503, "The database can't be reached now. Please try again."},
		{"/api/sandbox/state", 400, "Sandbox is not stopped"},
		{"/api/sandbox/none/here?x=1", 404, "Cannot GET /api/sandbox/none/here"},
		{"/api/none", 404, "Cannot GET /api/none"},
		{"/api", 404, "Cannot GET /api"},
		{"/api/api-keys/x/y/z", 404, "Cannot GET /api/api-keys/x/y/z"},
		{"/api/sandbox/fails/build-logs", 404, "no logs"},
	} {
		a := ask(t, s, "GET", c.path, "key", "")
		if a.status != c.status {
			t.Errorf("%s: %d %s", c.path, a.status, a.body)
			continue
		}
		if m := a.message(t); m != c.message {
			t.Errorf("%s: %q", c.path, m)
		}
		var e wire.Error
		json.Unmarshal([]byte(a.body), &e)
		if e.Path != c.path {
			t.Errorf("%s: path %s", c.path, e.Path)
		}
		if a.header.Get("X-Daytona-Api-Version") != "1.2.3" || a.header.Get("Content-Type") != "application/json; charset=utf-8" || a.header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %v", c.path, a.header)
		}
	}
	if a := ask(t, s, "GET", "/api/sandbox/teapot", "key", ""); a.status != 418 || a.message(t) != "short and stout" {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := ask(t, s, "PUT", "/api/api-keys", "owner", ""); a.status != 404 || a.message(t) != "Cannot PUT /api/api-keys" {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := ask(t, s, "GET", "/api/sandbox/late/build-logs", "key", ""); a.status != 200 || a.body != "begun" {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := ask(t, s, "GET", "/api/sandbox/aborts", "key", ""); a.status != 0 {
		t.Errorf("%d %s", a.status, a.body)
	}
	mu.Lock()
	defer mu.Unlock()
	if !strings.Contains(log.String(), "handler panicked") || len(entries) < 6 || entries[0].Status != 500 || entries[0].Err == nil {
		t.Errorf("%s %+v", &log, entries)
	}
}

// Bodies: too large, slow to be understood, more than is known, less than is
// needed.
func TestGuardBodies(t *testing.T) {
	s := tiny(t, api.Config{MaxBody: 1000})
	for _, c := range []struct {
		name, body, contentType string
		status                  int
		want                    string // the body, or the message, has it
	}{
		{"plain", `{"name":"a"}`, "application/json", 200, `"name":"a"`},
		{"charset", `{"name":"a"}`, "application/json; charset=utf-8", 200, `"name":"a"`},
		{"no content type", `{"name":"a"}`, "", 200, `"name":"a"`},
		{"text/json", `{"name":"a"}`, "text/json", 200, `"name":"a"`},
		{"fetch's default", `{"name":"a"}`, "text/plain;charset=UTF-8", 200, `"name":"a"`},
		{"unknown fields", `{"name":"a","new":1,"more":{"x":[]}}`, "application/json", 200, `"name":"a"`},
		{"nulls", `{"name":"a","target":null,"labels":null}`, "application/json", 200, `"target":false`},
		{"missing", `{"target":"x"}`, "application/json", 400, "name"},
		{"null where needed", `{"name":null}`, "application/json", 400, "name"},
		{"wrong type", `{"name":7}`, "application/json", 400, "name"},
		{"rule", `{"name":"a","count":-1}`, "application/json", 400, "count"},
		{"two rules", `{"name":7,"count":-1}`, "application/json", 400, ", "},
		{"no JSON", `name=a`, "application/json", 400, ""},
		{"half", `{"name":`, "application/json", 400, ""},
		{"nothing", ``, "application/json", 400, ""},
		{"an array", `[]`, "application/json", 400, ""},
		{"at the limit", `{"name":"` + strings.Repeat("a", 989) + `"}`, "application/json", 200, ""},
		{"too large", `{"name":"` + strings.Repeat("a", 990) + `"}`, "application/json", 413, "too large"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var h []string
			if c.contentType != "" {
				h = append(h, "Content-Type: "+c.contentType)
			}
			a := ask(t, s, "POST", "/api/sandbox", "key", c.body, h...)
			text := a.body
			if a.status == c.status && c.status != 200 {
				text = a.message(t)
			}
			if a.status != c.status || !strings.Contains(text, c.want) {
				t.Errorf("%d %s", a.status, a.body)
			}
		})
	}
	// A body that never ends is not read to its end.
	if a := ask(t, s, "POST", "/api/sandbox", "", strings.Repeat("x", 1<<20)); a.status != 401 && a.status != 0 {
		t.Errorf("%d", a.status)
	}
	// What streams has no limit.
	if a := ask(t, s, "GET", "/api/sandbox/x/build-logs", "key", strings.Repeat("x", 5000)); a.status != 200 || a.body != "5000" {
		t.Errorf("%d %s", a.status, a.body)
	}
}

// A body that does not arrive in time is given up.
func TestGuardSlowBody(t *testing.T) {
	s := tiny(t, api.Config{BodyTimeout: 50 * time.Millisecond})
	r, w := io.Pipe()
	defer w.Close()
	req, _ := http.NewRequestWithContext(t.Context(), "POST", s.URL+"/api/sandbox", r)
	req.Header.Set("Authorization", "Bearer key")
	go io.WriteString(w, `{"name":`)
	res, err := s.Client().Do(req)
	if err != nil {
		return // the connection has been closed
	}
	res.Body.Close()
	if res.StatusCode < 400 {
		t.Error(res.Status)
	}
}

// TestGuardSlowAnswer is about a defect: an answer that took longer than a body
// may take to arrive was cut off, and so were all later ones of the connection.
// Every runner on another machine that had nothing to do came to that.
func TestGuardSlowAnswer(t *testing.T) {
	s := tiny(t, api.Config{BodyTimeout: 500 * time.Millisecond})
	for range 2 {
		if a := ask(t, s, "GET", "/api/sandbox/waits", "key", ""); a.status != 200 {
			t.Errorf("without a body: %d %s", a.status, a.body)
		}
		if a := ask(t, s, "POST", "/api/sandbox", "key", `{"name":"waits"}`); a.status != 200 {
			t.Errorf("with a body: %d %s", a.status, a.body)
		}
	}
}

func TestGuardQuery(t *testing.T) {
	s := tiny(t, api.Config{})
	for query, want := range map[string]string{
		"":                              `["100"]`,
		"states=a":                      `["a","100"]`,
		"states=a&states=b":             `["a","b","100"]`,
		"states[]=a&states[]=b&limit=7": `["a","b","7"]`,
		"states%5B%5D=a":                `["a","100"]`,
		"unknown=1&limit=200":           `["200"]`,
	} {
		if a := ask(t, s, "GET", "/api/sandbox?"+query, "key", ""); a.status != 200 || strings.TrimSpace(a.body) != want {
			t.Errorf("%s: %d %s", query, a.status, a.body)
		}
	}
	for _, query := range []string{"limit=201", "limit=x", "limit="} {
		a := ask(t, s, "GET", "/api/sandbox?"+query, "key", "")
		if query == "limit=" && a.status == 200 {
			continue
		}
		if a.status != 400 || !strings.Contains(a.message(t), "limit") {
			t.Errorf("%s: %d %s", query, a.status, a.body)
		}
	}
}

// Any page may ask, none with the browser's own credentials.
func TestGuardCORS(t *testing.T) {
	s := tiny(t, api.Config{})
	a := ask(t, s, "OPTIONS", "/api/sandbox", "", "", "Origin: https://page.example", "Access-Control-Request-Method: POST", "Access-Control-Request-Headers: authorization,x-daytona-source")
	if a.status != 204 || a.header.Get("Access-Control-Allow-Origin") != "https://page.example" || a.header.Get("Vary") != "Origin" ||
		a.header.Get("Access-Control-Allow-Headers") != "authorization,x-daytona-source" || !strings.Contains(a.header.Get("Access-Control-Allow-Methods"), "PATCH") {
		t.Errorf("%d %v", a.status, a.header)
	}
	for _, path := range []string{"/api/docker-registry", "/api/none"} {
		a := ask(t, s, "GET", path, "key", "", "Origin: https://page.example")
		if a.header.Get("Access-Control-Allow-Origin") != "https://page.example" || a.header.Get("Access-Control-Allow-Credentials") != "" {
			t.Errorf("%s: %v", path, a.header)
		}
	}
	if a := ask(t, s, "GET", "/api/docker-registry", "key", ""); a.header.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("%v", a.header)
	}
}

// Who a request is from is what a proxy says that is trusted, and nobody else.
func TestGuardAddress(t *testing.T) {
	for _, c := range []struct {
		trusted string
		forward []string
		want    string
	}{
		{"", nil, "127.0.0.1"},
		{"", []string{"203.0.113.9"}, "127.0.0.1"},
		{"10.0.0.0/8", []string{"203.0.113.9"}, "127.0.0.1"},
		{"127.0.0.0/8", []string{"203.0.113.9"}, "203.0.113.9"},
		{"127.0.0.0/8", []string{"6.6.6.6, 203.0.113.9"}, "203.0.113.9"},
		{"127.0.0.0/8", []string{"6.6.6.6", "203.0.113.9"}, "203.0.113.9"},
		{"127.0.0.0/8 10.0.0.0/8", []string{"6.6.6.6, 203.0.113.9, 10.1.1.1"}, "203.0.113.9"},
		{"127.0.0.0/8", []string{"203.0.113.9, nonsense"}, "127.0.0.1"},
		{"127.0.0.0/8", []string{"::ffff:203.0.113.9"}, "203.0.113.9"},
		{"127.0.0.0/8", []string{"2001:db8::1"}, "2001:db8::1"},
	} {
		var trusted []netip.Prefix
		for _, p := range strings.Fields(c.trusted) {
			trusted = append(trusted, netip.MustParsePrefix(p))
		}
		s := tiny(t, api.Config{TrustedProxies: trusted})
		var h []string
		for _, f := range c.forward {
			h = append(h, "X-Forwarded-For: "+f)
		}
		if a := ask(t, s, "GET", "/api/docker-registry", "key", "", h...); !strings.Contains(a.body, `"address":"`+c.want+`"`) {
			t.Errorf("%+v: %s", c, a.body)
		}
	}
}

func TestGuardMaintenance(t *testing.T) {
	on := true
	s := tiny(t, api.Config{Maintenance: func() bool { return on }})
	for _, path := range []string{"/api/config", "/api/docker-registry", "/api/none"} {
		a := ask(t, s, "GET", path, "key", "")
		if a.status != 503 || a.message(t) != "Service is currently under maintenance. Please try again later." {
			t.Errorf("%d %s", a.status, a.body)
		}
	}
	on = false
	if a := ask(t, s, "GET", "/api/config", "", ""); a.status != 200 {
		t.Errorf("%d", a.status)
	}
}

// Nothing that opens anything is in a log line or an entry: not the token, nor
// what is in a path, a query, a body or a header.
func TestGuardLog(t *testing.T) {
	var log bytes.Buffer
	var mu sync.Mutex
	var entry api.Entry
	s := tiny(t, api.Config{
		Log:  slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Done: func(e api.Entry) { mu.Lock(); defer mu.Unlock(); entry = e },
	})
	ask(t, s, "DELETE", "/api/api-keys/hush-path?token=hush-query", "owner", `{"x":"hush-body"}`,
		"X-Daytona-Organization-ID: "+orgA, "X-Other: hush-header", "X-Daytona-Source: cli", "X-Daytona-SDK-Version: 1", "X-Request-Id: q", "User-Agent: ua")
	ask(t, s, "GET", "/api/docker-registry", "hush-token", "")
	ask(t, s, "GET", "/api/none/hush-none", "hush-token", "")
	text := log.String()
	if strings.Contains(text, "hush") {
		t.Error(text)
	}
	if !strings.Contains(text, "operation=deleteApiKey") || !strings.Contains(text, "user=owner") || !strings.Contains(text, "status=204") || !strings.Contains(text, "status=401") {
		t.Error(text)
	}
	ask(t, s, "DELETE", "/api/api-keys/some%2Fname", "owner", "", "X-Daytona-Organization-ID: "+orgA, "X-Daytona-Source: cli", "X-Daytona-SDK-Version: 1", "X-Request-Id: q", "User-Agent: ua")
	mu.Lock()
	defer mu.Unlock()
	if entry.Route.ID != "deleteApiKey" || entry.Params["name"] != "some/name" || entry.Status != 204 || entry.Source != "cli" || entry.SDKVersion != "1" ||
		entry.RequestID != "q" || entry.Agent != "ua" || entry.Principal.UserID != "owner" || entry.Principal.OrganizationID != orgA || entry.Address.String() != "127.0.0.1" {
		t.Errorf("%+v %+v", entry, entry.Principal)
	}
}
