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
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/wire"
	"github.com/daytona-go/daytona/server/api"
	"github.com/daytona-go/daytona/server/audit"
	"github.com/daytona-go/daytona/server/identity"
	"github.com/daytona-go/daytona/server/organization"
	"github.com/daytona-go/daytona/server/outbound"
	"github.com/daytona-go/daytona/server/quota"
	"github.com/daytona-go/daytona/server/region"
	"github.com/daytona-go/daytona/server/seal"
	"github.com/daytona-go/daytona/server/secret"
	"github.com/daytona-go/daytona/server/store"
	"github.com/daytona-go/daytona/server/store/storetest"
	"github.com/daytona-go/daytona/server/webhook"
)

// tenancy is a server with all that is about organizations, and two of them:
// that of alice, in which bob is a member, and that of carol.
type tenancy struct {
	t    *testing.T
	url  string
	db   *store.DB
	orgs *organization.Service
	regs *region.Service
	quot *quota.Service
	audt *audit.Service
	hook *webhook.Service
	keys *tenantKeys
	// alice's and carol's organization.
	a, b string
}

// tenantUsers have mails that are verified, but for dave's.
type tenantUsers struct{}

func (tenantUsers) Info(_ context.Context, id string) (email, name string, verified bool, err error) {
	if id == "ghost" {
		return "", "", false, &daytona.Error{Kind: daytona.KindNotFound, Message: "User not found"}
	}
	return id + "@Example.com", "Name of " + id, id != "dave", nil
}

// tenantKeys notes which keys are to be revoked.
type tenantKeys struct {
	mu  sync.Mutex
	log []string
}

func (k *tenantKeys) DeleteExceeding(_ context.Context, organizationID, userID string, held []identity.Permission) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.log = append(k.log, fmt.Sprint(userID, " keeps ", held))
	return nil
}

func (k *tenantKeys) DeleteForMember(_ context.Context, organizationID, userID string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.log = append(k.log, userID+" keeps nothing")
	return nil
}

func (k *tenantKeys) take() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	log := k.log
	k.log = nil
	return log
}

// tenantAuth takes "user" as somebody's token, "user/organization/permission,…"
// as a key, "root" as an administrator's key, "collector" as the collector's.
type tenantAuth struct{ orgs *organization.Service }

func (tenantAuth) Authenticate(_ context.Context, bearer string) (*identity.Principal, error) {
	user, rest, isKey := strings.Cut(bearer, "/")
	p := &identity.Principal{Kind: identity.JWT, UserID: user, Email: user + "@example.com"}
	switch {
	case bearer == "nobody":
		return nil, &daytona.Error{Kind: daytona.KindUnauthorized}
	case bearer == "collector":
		return &identity.Principal{Kind: identity.Collector}, nil
	case bearer == "root":
		p.Kind, p.Admin, p.OrganizationID = identity.Key, true, "of-root"
	case isKey:
		p.Kind = identity.Key
		org, permissions, _ := strings.Cut(rest, "/")
		p.OrganizationID = org
		for s := range strings.SplitSeq(permissions, ",") {
			if s == "all" {
				p.Permissions = identity.Permissions()
			} else {
				p.Permissions = append(p.Permissions, identity.Permission(s))
			}
		}
	}
	return p, nil
}

func (a tenantAuth) Join(ctx context.Context, p *identity.Principal, organizationID string) (*identity.Principal, error) {
	role, permissions, err := a.orgs.Member(ctx, organizationID, p.UserID)
	if err != nil {
		return nil, err
	}
	j := *p
	j.OrganizationID, j.Role, j.Permissions = organizationID, role, permissions
	return &j, nil
}

// tenantRest stands for features that are not here.
type tenantRest struct{ runners int }

func (r tenantRest) InRegion(context.Context, string) (int, error) { return r.runners, nil }
func (tenantRest) Count(context.Context, string) (int, error)      { return 3, nil }
func (tenantRest) OrganizationByAuthToken(context.Context, string) (string, error) {
	return "", &daytona.Error{Kind: daytona.KindNotFound, Message: "Sandbox not found"}
}

// TestTenancy runs its tests with both databases, each with a server of its
// own in what the one before has left empty.
func TestTenancy(t *testing.T) {
	tests := []struct {
		name string
		f    func(*testing.T, *tenancy)
	}{
		{"Organizations", testOrganizations},
		{"PersonalOrganization", testPersonalOrganization},
		{"Suspension", testSuspension},
		{"MembersAndRoles", testMembersAndRoles},
		{"OwnersLeaveAtOnce", testOwnersLeaveAtOnce},
		{"Invitations", testInvitations},
		{"IdentityProviders", testIdentityProviders},
		{"Regions", testRegions},
		{"QuotaRoutes", testQuotaRoutes},
		{"WebhookRoutes", testWebhookRoutes},
		{"AuditRoutes", testAuditRoutes},
		{"SecretRoutes", testSecretRoutes},
		{"NobodyElse", testNobodyElse},
	}
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		for _, c := range tests {
			t.Run(c.name, func(t *testing.T) { c.f(t, newTenancy(t, db)) })
		}
	})
}

func newTenancy(t *testing.T, db *store.DB) *tenancy {
	t.Helper()
	quiet := slog.New(slog.DiscardHandler)
	for _, table := range []string{"organizations", "organization_members", "organization_roles", "organization_invitations", "identity_providers", "regions", "region_quotas",
		"organization_quotas", "reservations", "audit_logs", "webhook_applications", "webhook_endpoints", "webhook_messages", "webhook_deliveries", "secrets"} {
		if _, err := db.All(t.Context()).NewRaw("DELETE FROM " + table).Exec(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	box, err := seal.New("a key of some bytes")
	if err != nil {
		t.Fatal(err)
	}
	guard, err := outbound.New(outbound.Config{Allow: []string{"127.0.0.1"}})
	if err != nil {
		t.Fatal(err)
	}
	v := &tenancy{t: t, db: db, keys: &tenantKeys{}}
	v.regs = region.New(db, region.Config{})
	v.quot = quota.New(db, quota.Config{Regions: v.regs})
	v.orgs = organization.New(db, organization.Config{
		Users: tenantUsers{}, Keys: v.keys, Regions: v.regs, Quotas: v.quot, Box: box, Outbound: guard,
		Deleting: []func(context.Context, string) error{v.regs.DeleteAll, v.quot.DeleteAll},
	})
	v.regs.Wire(region.Config{Quotas: v.quot, Runners: tenantRest{}, Organizations: v.orgs, Outbound: guard})
	v.audt = audit.New(db, audit.Config{Log: quiet})
	v.hook = webhook.New(db, webhook.Config{Outbound: guard, Box: box, PortalURL: "https://dash.example/webhooks", Log: quiet})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { v.orgs.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		v.audt.Close(context.Background())
	})
	a := api.New(api.Config{Authenticator: tenantAuth{v.orgs}, Log: quiet, Done: func(e api.Entry) {
		if e, ok := api.Audit(e); ok {
			v.audt.Record(e)
		}
	}})
	api.RegisterOrganizations(a, v.orgs, v.quot, v.regs, tenantRest{}, tenantRest{}, tenantRest{})
	api.RegisterRegions(a, v.regs)
	api.RegisterSecrets(a, secret.New(db, secret.Config{Quotas: v.quot, Box: box}))
	api.RegisterWebhooks(a, v.hook, v.orgs)
	api.RegisterAudit(a, v.audt)
	srv := httptest.NewServer(a)
	t.Cleanup(srv.Close)
	v.url = srv.URL
	if err := v.regs.Bootstrap(t.Context(), "us", "us", false); err != nil {
		t.Fatal(err)
	}
	for user, org := range map[string]*string{"alice": &v.a, "carol": &v.b} {
		var o wire.Organization
		v.ok(201, user, "POST /organizations", map[string]any{"name": "Org of " + user, "defaultRegionId": "us"}, &o)
		*org = o.ID
	}
	v.join("bob", "member", "00000000-0000-0000-0000-000000000001")
	return v
}

// join makes a user a member of alice's organization.
func (v *tenancy) join(user, role string, roles ...string) {
	v.t.Helper()
	var i wire.OrganizationInvitation
	v.ok(201, "alice", "POST /organizations/"+v.a+"/invitations", map[string]any{"email": strings.ToUpper(user) + "@example.com", "role": role, "assignedRoleIds": append([]string{}, roles...)}, &i)
	v.ok(200, user, "POST /organizations/invitations/"+i.ID+"/accept", nil, nil)
}

// do makes a request. Who has "@" and an organization at the end names that.
func (v *tenancy) do(who, what string, body any) (int, string) {
	v.t.Helper()
	method, path, _ := strings.Cut(what, " ")
	var r io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			v.t.Fatal(err)
		}
		r = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(v.t.Context(), method, v.url+"/api"+path, r)
	if err != nil {
		v.t.Fatal(err)
	}
	who, org, named := strings.Cut(who, "@")
	if who != "" {
		req.Header.Set("Authorization", "Bearer "+who)
	}
	if named {
		req.Header.Set("X-Daytona-Organization-ID", org)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		v.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		v.t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// ok makes a request that has to be answered with a status.
func (v *tenancy) ok(status int, who, what string, body, into any) {
	v.t.Helper()
	got, text := v.do(who, what, body)
	if got != status {
		v.t.Fatalf("%s: %s: %d %s", who, what, got, text)
	}
	if into != nil {
		if err := json.Unmarshal([]byte(text), into); err != nil {
			v.t.Fatalf("%s: %s: %v", what, text, err)
		}
	}
}

// no makes a request that has to be refused, with a message.
func (v *tenancy) no(status int, message, who, what string, body any) {
	v.t.Helper()
	got, text := v.do(who, what, body)
	var e wire.Error
	if err := json.Unmarshal([]byte(text), &e); got != status || err != nil || !strings.Contains(e.Message, message) {
		v.t.Errorf("%s: %s: %d %s, not %d %q", who, what, got, text, status, message)
	}
}

func testOrganizations(t *testing.T, v *tenancy) {
	org := "/organizations/" + v.a
	var o wire.Organization
	v.ok(200, "alice", "GET "+org, nil, &o)
	if o.Name != "Org of alice" || o.CreatedBy != "alice" || o.Personal || o.Suspended || o.SuspendedAt != nil || o.SuspensionCleanupGracePeriodHours != 24 ||
		o.MaxCPUPerSandbox != 4 || o.MaxMemoryPerSandbox != 8 || o.MaxDiskPerSandbox != 10 || o.SnapshotDeactivationTimeoutMinutes != 20160 ||
		o.DefaultRegionID == nil || *o.DefaultRegionID != "us" || o.ExperimentalConfig == nil || o.OTelConfig != nil || o.AuthenticatedRateLimit != nil {
		t.Errorf("%+v", o)
	}
	_, text := v.do("alice", "GET "+org, nil)
	for _, field := range []string{`"suspendedAt":null`, `"otelConfig":null`, `"experimentalConfig":{}`, `"authenticatedRateLimit":null`} {
		if !strings.Contains(text, field) {
			t.Errorf("no %s in %s", field, text)
		}
	}
	v.no(403, "Please verify your email address", "dave", "POST /organizations", map[string]any{"name": "x", "defaultRegionId": "us"})
	v.no(404, "Region not found", "alice", "POST /organizations", map[string]any{"name": "x", "defaultRegionId": "mars"})
	v.no(400, "name must not contain HTML tags, URLs, or control characters", "alice", "POST /organizations", map[string]any{"name": "<b>x", "defaultRegionId": "us"})
	for range 9 {
		v.ok(201, "alice", "POST /organizations", map[string]any{"name": "more", "defaultRegionId": "us"}, nil)
	}
	v.no(403, "maximum", "alice", "POST /organizations", map[string]any{"name": "x", "defaultRegionId": "us"})
	var all []wire.Organization
	v.ok(200, "alice", "GET /organizations", nil, &all)
	if len(all) != 10 {
		t.Errorf("%d organizations", len(all))
	}
	v.ok(200, "bob", "GET /organizations", nil, &all)
	if len(all) != 1 || all[0].ID != v.a {
		t.Errorf("bob sees %+v", all)
	}
	v.no(409, "already has a default region", "alice", "PATCH "+org+"/default-region", map[string]any{"defaultRegionId": "us"})

	// Telemetry: what is read can be sent back, and is not what is stored.
	v.ok(204, "alice", "PUT "+org+"/otel-config", map[string]any{"endpoint": "https://otel.example", "headers": map[string]string{"X-Key": "geheim", "y": "zwei"}}, nil)
	v.ok(200, "bob", "GET "+org, nil, &o)
	if o.OTelConfig == nil || o.OTelConfig.Headers["X-Key"] != "******" || o.OTelConfig.Endpoint != "https://otel.example" {
		t.Errorf("%+v", o.OTelConfig)
	}
	v.ok(204, "alice", "PUT "+org+"/otel-config", map[string]any{"endpoint": "https://otel2.example", "headers": map[string]string{"X-Key": "******", "y": "drei"}}, nil)
	var c wire.OTelConfig
	v.ok(200, "collector", "GET "+org+"/otel-config", nil, &c)
	if c.Headers["X-Key"] != "geheim" || c.Headers["y"] != "drei" || c.Endpoint != "https://otel2.example" || c.OrganizationID == nil || *c.OrganizationID != v.a {
		t.Errorf("%+v", c)
	}
	v.no(400, "z has no value to keep", "alice", "PUT "+org+"/otel-config", map[string]any{"endpoint": "https://otel.example", "headers": map[string]string{"z": "***"}})
	v.no(400, "endpoint", "alice", "PUT "+org+"/otel-config", map[string]any{"endpoint": "http://169.254.169.254"})
	v.no(400, "header", "alice", "PUT "+org+"/otel-config", map[string]any{"endpoint": "https://otel.example", "headers": map[string]string{"x": "a\r\nb: c"}})
	v.ok(204, "alice", "DELETE "+org+"/otel-config", nil, nil)
	v.no(404, "", "collector", "GET "+org+"/otel-config", nil)
	v.no(404, "Organization OTEL config not found", "collector", "GET /organizations/otel-config/by-sandbox-auth-token/tok", nil)

	v.ok(200, "alice", "PUT "+org+"/experimental-config", map[string]any{"x": map[string]any{"y": nil}}, nil)
	v.no(400, "otel", "alice", "PUT "+org+"/experimental-config", map[string]any{"otel": 1})
	v.ok(204, "alice", "POST "+org+"/preview-warning", map[string]any{"previewWarningEnabled": false}, nil)
	v.ok(204, "root", "POST "+org+"/sandbox-default-limited-network-egress", map[string]any{"sandboxDefaultLimitedNetworkEgress": true}, nil)
	v.ok(200, "alice", "GET "+org, nil, &o)
	if o.PreviewWarningEnabled || !o.SandboxLimitedNetworkEgress || len(o.ExperimentalConfig) != 1 {
		t.Errorf("%+v", o)
	}
	v.ok(204, "alice", "DELETE "+org, nil, nil)
	v.no(403, "Invalid authentication context", "bob", "GET "+org, nil)
	if log := v.keys.take(); !slices.Contains(log, "bob keeps nothing") || !slices.Contains(log, "alice keeps nothing") {
		t.Errorf("%v", log)
	}
}

func testPersonalOrganization(t *testing.T, v *tenancy) {
	id, err := v.orgs.CreatePersonal(t.Context(), "erin", "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.orgs.CreatePersonal(t.Context(), "erin", ""); !errors.Is(err, daytona.ErrConflict) {
		t.Error(err)
	}
	if got, err := v.orgs.Personal(t.Context(), "erin"); got != id || err != nil {
		t.Error(got, err)
	}
	if _, err := v.regs.Target(t.Context(), id, "us"); !errors.Is(err, daytona.ErrInvalid) || !strings.HasPrefix(err.Error(), "This organization does not have a default region.") {
		t.Error(err)
	}
	org := "/organizations/" + id
	v.no(403, "personal", "erin", "DELETE "+org, nil)
	v.no(403, "personal", "erin", "POST "+org+"/invitations", map[string]any{"email": "x@example.com", "role": "member", "assignedRoleIds": []string{}})
	v.no(403, "personal", "erin", "POST "+org+"/leave", nil)
	v.no(403, "personal", "erin", "POST "+org+"/users/erin/access", map[string]any{"role": "member", "assignedRoleIds": []string{}})
	v.ok(204, "erin", "PATCH "+org+"/default-region", map[string]any{"defaultRegionId": "us"}, nil)
	if r, err := v.regs.Target(t.Context(), id, ""); err != nil || r.ID != "us" {
		t.Error(r, err)
	}
	// One whose address nobody has verified can't do anything in it.
	dave, err := v.orgs.CreatePersonal(t.Context(), "dave", "us")
	if err != nil {
		t.Fatal(err)
	}
	if err := v.orgs.Active(t.Context(), dave); !errors.Is(err, daytona.ErrForbidden) || err.Error() != "Organization is suspended: Please verify your email address" {
		t.Error(err)
	}
}

func testSuspension(t *testing.T, v *tenancy) {
	ctx, org := t.Context(), "/organizations/"+v.a
	if err := v.orgs.Active(ctx, v.a); err != nil {
		t.Fatal(err)
	}
	until := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	v.ok(204, "root", "POST "+org+"/suspend", map[string]any{"reason": "abuse", "until": until.Format(time.RFC3339), "suspensionCleanupGracePeriodHours": 0}, nil)
	if err := v.orgs.Active(ctx, v.a); !errors.Is(err, daytona.ErrForbidden) || err.Error() != "Organization is suspended: abuse" {
		t.Error(err)
	}
	if err := v.orgs.Active(ctx, v.b); err != nil {
		t.Error(err)
	}
	var o wire.Organization
	v.ok(200, "bob", "GET "+org, nil, &o)
	if !o.Suspended || o.SuspendedAt == nil || *o.SuspensionReason != "abuse" || *o.SuspendedUntil != wire.Stamp(until) || o.SuspensionCleanupGracePeriodHours != 0 {
		t.Errorf("%+v", o)
	}
	if ids, err := v.orgs.Overdue(ctx); err != nil || !slices.Equal(ids, []string{v.a}) {
		t.Error(ids, err)
	}
	v.ok(204, "root", "POST "+org+"/suspend", map[string]any{"reason": "", "until": time.Now().Add(-time.Second).UTC().Format(time.RFC3339Nano)}, nil)
	if err := v.orgs.Active(ctx, v.a); err != nil {
		t.Errorf("after its end: %v", err)
	}
	v.ok(204, "root", "POST "+org+"/suspend", map[string]any{"reason": "again"}, nil)
	if err := v.orgs.Active(ctx, v.a); !errors.Is(err, daytona.ErrForbidden) {
		t.Error(err)
	}
	v.ok(204, "root", "POST "+org+"/unsuspend", nil, nil)
	if err := v.orgs.Active(ctx, v.a); err != nil {
		t.Error(err)
	}
	for _, who := range []string{"alice", "alice/" + v.a + "/all"} {
		if status, text := v.do(who, "POST "+org+"/unsuspend", nil); status != 401 && status != 403 {
			t.Errorf("%s: %d %s", who, status, text)
		}
	}
}

func testMembersAndRoles(t *testing.T, v *tenancy) {
	ctx, org := t.Context(), "/organizations/"+v.a
	none := []string{}
	access := func(role string, roles ...string) map[string]any {
		return map[string]any{"role": role, "assignedRoleIds": append(none, roles...)}
	}
	var members []wire.OrganizationUser
	v.ok(200, "bob", "GET "+org+"/users", nil, &members)
	if len(members) != 2 || members[0].UserID != "alice" || members[0].Role != "owner" || members[1].Name != "Name of bob" || members[1].AssignedRoles[0].Name != "Developer" {
		t.Errorf("%+v", members)
	}
	// The last owner stays one.
	v.no(403, "at least one owner", "alice", "POST "+org+"/leave", nil)
	v.no(403, "at least one owner", "alice", "POST "+org+"/users/alice/access", access("member"))
	v.no(403, "at least one owner", "alice", "DELETE "+org+"/users/alice", nil)

	// A role of the organization, what it gives and takes.
	v.no(409, "already exists", "alice", "POST "+org+"/roles", map[string]any{"name": "developer", "description": "", "permissions": none})
	v.no(400, "permissions", "alice", "POST "+org+"/roles", map[string]any{"name": "x", "description": "", "permissions": []string{"write:everything"}})
	var role wire.OrganizationRole
	v.ok(201, "alice", "POST "+org+"/roles", map[string]any{"name": "Ops", "description": "does it", "permissions": []string{"delete:sandboxes", "read:volumes"}}, &role)
	v.no(409, "already exists", "alice", "POST "+org+"/roles", map[string]any{"name": "Ops", "description": "", "permissions": none})
	v.no(403, "Global roles", "alice", "PUT "+org+"/roles/00000000-0000-0000-0000-000000000001", map[string]any{"name": "x", "description": "", "permissions": none})
	v.no(403, "Global roles", "alice", "DELETE "+org+"/roles/00000000-0000-0000-0000-000000000005", nil)
	v.no(400, "role IDs", "alice", "POST "+org+"/users/bob/access", access("member", "nonsense"))
	// A role of another organization is none.
	var other wire.OrganizationRole
	v.ok(201, "carol", "POST /organizations/"+v.b+"/roles", map[string]any{"name": "Ops", "description": "", "permissions": []string{"read:volumes"}}, &other)
	v.no(400, "role IDs", "alice", "POST "+org+"/users/bob/access", access("member", other.ID))
	var bob wire.OrganizationUser
	v.ok(200, "alice", "POST "+org+"/users/bob/access", access("member", role.ID, "00000000-0000-0000-0000-000000000007"), &bob)
	if len(bob.AssignedRoles) != 2 {
		t.Errorf("%+v", bob)
	}
	may := func() []identity.Permission {
		_, permissions, err := v.orgs.Member(ctx, v.a, "bob")
		if err != nil {
			t.Fatal(err)
		}
		return permissions
	}
	if got := may(); !slices.Equal(got, []identity.Permission{identity.DeleteSandboxes, identity.ReadVolumes, identity.ReadAuditLogs}) {
		t.Error(got)
	}
	if log := v.keys.take(); !slices.Equal(log, []string{"bob keeps [delete:sandboxes read:volumes read:audit_logs]"}) {
		t.Error(log)
	}
	v.ok(200, "alice", "PUT "+org+"/roles/"+role.ID, map[string]any{"name": "Ops", "description": "", "permissions": []string{"read:volumes"}}, nil)
	if got := may(); slices.Contains(got, identity.DeleteSandboxes) {
		t.Error(got)
	}
	if log := v.keys.take(); !slices.Equal(log, []string{"bob keeps [read:volumes read:audit_logs]"}) {
		t.Error(log)
	}
	v.ok(204, "alice", "DELETE "+org+"/roles/"+role.ID, nil, nil)
	if got := may(); !slices.Equal(got, []identity.Permission{identity.ReadAuditLogs}) {
		t.Error(got)
	}
	if log := v.keys.take(); len(log) != 1 {
		t.Error(log)
	}

	// Two owners, one of whom goes: whoever is left is the last.
	v.ok(200, "alice", "POST "+org+"/users/bob/access", access("owner"), nil)
	v.ok(200, "alice", "GET "+org+"/users", nil, &members)
	left, stop := v.db.Subscribe(organization.TopicLeft)
	defer stop()
	v.ok(204, "alice", "POST "+org+"/leave", nil, nil)
	select {
	case got := <-left:
		if got != v.a+" alice" {
			t.Error(got)
		}
	case <-time.After(10 * time.Second):
		t.Error("nobody is told")
	}
	v.no(403, "Invalid authentication context", "alice", "GET "+org, nil)
	v.no(403, "at least one owner", "bob", "POST "+org+"/leave", nil)
	v.no(404, "not a member", "bob", "DELETE "+org+"/users/alice", nil)
}

// Of two owners who leave at the same time, one stays.
func testOwnersLeaveAtOnce(t *testing.T, v *tenancy) {
	v.join("erin", "owner")
	var wg sync.WaitGroup
	for _, who := range []string{"alice", "erin"} {
		wg.Go(func() { v.do(who, "POST /organizations/"+v.a+"/leave", nil) })
	}
	wg.Wait()
	members, err := v.orgs.Members(t.Context(), v.a)
	if err != nil {
		t.Fatal(err)
	}
	owners := 0
	for _, m := range members {
		if m.Role == identity.Owner {
			owners++
		}
	}
	if owners != 1 {
		t.Errorf("%d owners are left", owners)
	}
}

func testInvitations(t *testing.T, v *tenancy) {
	org := "/organizations/" + v.a
	invite := func(email string) map[string]any {
		return map[string]any{"email": email, "role": "member", "assignedRoleIds": []string{"00000000-0000-0000-0000-000000000001"}}
	}
	var i wire.OrganizationInvitation
	v.ok(201, "alice", "POST "+org+"/invitations", invite(" Erin@EXAMPLE.com "), &i)
	if i.Email != "erin@example.com" || i.InvitedBy != "alice@example.com" || i.OrganizationName != "Org of alice" || i.Status != "pending" || len(i.AssignedRoles) != 1 {
		t.Errorf("%+v", i)
	}
	if at, err := time.Parse(time.RFC3339, i.ExpiresAt); err != nil || time.Until(at) < 6*24*time.Hour || time.Until(at) > 8*24*time.Hour {
		t.Error(i.ExpiresAt)
	}
	v.no(409, "already invited", "alice", "POST "+org+"/invitations", invite("erin@example.com"))
	v.no(409, "already a member", "alice", "POST "+org+"/invitations", invite("bob@example.com"))
	v.no(400, "email", "alice", "POST "+org+"/invitations", invite("not an address"))
	past := invite("x@example.com")
	past["expiresAt"] = "2020-01-01T00:00:00Z"
	v.no(400, "expiresAt", "alice", "POST "+org+"/invitations", past)
	var list []wire.OrganizationInvitation
	v.ok(200, "bob", "GET "+org+"/invitations", nil, &list)
	if len(list) != 1 {
		t.Errorf("%+v", list)
	}
	if status, text := v.do("erin", "GET /organizations/invitations/count", nil); status != 200 || text != "1" {
		t.Errorf("%d %q", status, text)
	}
	v.ok(200, "erin", "GET /organizations/invitations", nil, &list)
	if len(list) != 1 || list[0].ID != i.ID {
		t.Errorf("%+v", list)
	}
	// It is erin's and nobody else's.
	v.no(404, "Invitation not found", "carol", "POST /organizations/invitations/"+i.ID+"/accept", nil)
	v.no(404, "Invitation not found", "carol", "POST /organizations/invitations/"+i.ID+"/decline", nil)
	v.ok(200, "alice", "PUT "+org+"/invitations/"+i.ID, map[string]any{"role": "owner", "assignedRoleIds": []string{}}, &i)
	if i.Role != "owner" || len(i.AssignedRoles) != 0 {
		t.Errorf("%+v", i)
	}
	v.ok(200, "erin", "POST /organizations/invitations/"+i.ID+"/accept", nil, &i)
	if role, _, err := v.orgs.Member(t.Context(), v.a, "erin"); role != identity.Owner || err != nil || i.Status != "accepted" {
		t.Error(role, err)
	}
	v.no(403, "accepted", "erin", "POST /organizations/invitations/"+i.ID+"/accept", nil)
	v.no(403, "accepted", "alice", "POST "+org+"/invitations/"+i.ID+"/cancel", nil)

	v.ok(201, "alice", "POST "+org+"/invitations", invite("dave@example.com"), &i)
	v.no(403, "verify", "dave", "POST /organizations/invitations/"+i.ID+"/accept", nil)
	v.ok(200, "dave", "GET /organizations/invitations", nil, &list)
	if len(list) != 0 {
		t.Errorf("who has not proved an address sees what is for it: %+v", list)
	}
	v.ok(204, "alice", "POST "+org+"/invitations/"+i.ID+"/cancel", nil, nil)
	v.ok(201, "alice", "POST "+org+"/invitations", invite("frank@example.com"), &i)
	v.ok(200, "frank", "POST /organizations/invitations/"+i.ID+"/decline", nil, nil)
	v.no(403, "declined", "frank", "POST /organizations/invitations/"+i.ID+"/accept", nil)
	soon := invite("gina@example.com")
	soon["expiresAt"] = time.Now().Add(300 * time.Millisecond).UTC().Format(time.RFC3339Nano)
	v.ok(201, "alice", "POST "+org+"/invitations", soon, &i)
	if _, err := v.db.All(t.Context()).NewRaw("UPDATE organization_invitations SET expires_at = ? WHERE id = ?", time.Now().UTC().Add(-time.Second), i.ID).Exec(t.Context()); err != nil {
		t.Fatal(err)
	}
	v.no(403, "expired", "gina", "POST /organizations/invitations/"+i.ID+"/accept", nil)
	v.ok(200, "gina", "GET /organizations/invitations", nil, &list)
	if len(list) != 0 {
		t.Errorf("%+v", list)
	}
}

func testIdentityProviders(t *testing.T, v *tenancy) {
	path := "/organizations/" + v.a + "/identity-providers"
	body := func(change ...any) map[string]any {
		b := map[string]any{
			"name": "Okta", "emailDomains": []string{"Company.com"},
			"oidcConfig": map[string]any{"issuerUrl": "https://company.okta.com", "clientId": "id", "clientSecret": "geheim"},
		}
		for i := 0; i < len(change); i += 2 {
			b[change[i].(string)] = change[i+1]
		}
		return b
	}
	v.no(403, "SSO is not enabled", "alice", "POST "+path, body())
	v.ok(204, "alice", "POST /organizations/"+v.a+"/sso-enabled", map[string]any{"ssoEnabled": true}, nil)
	status, text := v.do("alice", "POST "+path, body())
	var p wire.IdentityProvider
	if err := json.Unmarshal([]byte(text), &p); err != nil || status != 201 || strings.Contains(text, "geheim") {
		t.Fatalf("%d %s", status, text)
	}
	if p.EmailDomains[0] != "company.com" || !p.Enabled || p.OIDCConfig.Scope == nil || *p.OIDCConfig.Scope != "openid email profile" || p.DefaultAssignedRoleIds == nil {
		t.Errorf("%+v", p)
	}
	v.no(409, "already exists", "alice", "POST "+path, body())
	for _, bad := range []map[string]any{
		body("name", "B", "emailDomains", []string{}), body("name", "B", "emailDomains", []string{"*"}), body("name", "<b>"),
		body("name", "B", "oidcConfig", map[string]any{"issuerUrl": "http://169.254.169.254", "clientId": "id", "clientSecret": "x"}),
		body("name", "B", "oidcConfig", map[string]any{"issuerUrl": "https://x.example", "clientId": "id", "clientSecret": ""}),
		body("name", "B", "defaultAssignedRoleIds", []string{"none"}),
	} {
		v.no(400, "", "alice", "POST "+path, bad)
	}
	v.ok(200, "alice", "PATCH "+path+"/"+p.ID, map[string]any{"enabled": false, "emailDomains": []string{"a.example", "b.example"}}, &p)
	if p.Enabled || len(p.EmailDomains) != 2 {
		t.Errorf("%+v", p)
	}
	// The secret is for the issuer that it was given for.
	v.no(400, "clientSecret", "alice", "PATCH "+path+"/"+p.ID, map[string]any{"oidcConfig": map[string]any{"issuerUrl": "https://evil.example"}})
	stored, err := v.orgs.Provider(t.Context(), v.a, p.ID)
	if err != nil || strings.Contains(stored.ClientSecret, "geheim") {
		t.Fatal(err)
	}
	if secret, err := v.orgs.ClientSecret(stored); secret != "geheim" || err != nil {
		t.Error(secret, err)
	}
	v.ok(204, "alice", "DELETE "+path+"/"+p.ID, nil, nil)
	v.no(404, "not found", "alice", "GET "+path+"/"+p.ID, nil)

	var issuer *httptest.Server
	says := `{"issuer":"%s","authorization_endpoint":"%[1]s/a","token_endpoint":"%[1]s/t","jwks_uri":"%[1]s/k"}`
	issuer = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/.well-known/openid-configuration" {
			http.NotFound(w, r)
			return
		}
		fmt.Fprintf(w, says, issuer.URL)
	}))
	defer issuer.Close()
	var got wire.TestIdentityProviderConnectionResponse
	v.ok(200, "alice", "POST "+path+"/test-connection", map[string]any{"issuerUrl": issuer.URL}, &got)
	if !got.Success || got.Issuer == nil || *got.Issuer != issuer.URL {
		t.Errorf("%+v", got)
	}
	says = `{"issuer":"https://other.example"}`
	for _, url := range []string{issuer.URL, issuer.URL + "/x", "http://169.254.169.254", "http://[::1]:1", "nonsense"} {
		got = wire.TestIdentityProviderConnectionResponse{}
		v.ok(200, "alice", "POST "+path+"/test-connection", map[string]any{"issuerUrl": url}, &got)
		if got.Success || got.Error == nil || *got.Error == "" {
			t.Errorf("%s: %+v", url, got)
		}
	}
}

func testRegions(t *testing.T, v *tenancy) {
	ctx := t.Context()
	alice := "alice@" + v.a
	if err := v.regs.Bootstrap(ctx, "eu", "eu", true); err != nil {
		t.Fatal(err)
	}
	names := func(who, what string) []string {
		var all []wire.Region
		v.ok(200, who, what, nil, &all)
		out := []string{}
		for _, r := range all {
			out = append(out, r.RegionType+" "+r.Name)
		}
		return out
	}
	if got := names("", "GET /shared-regions"); !slices.Equal(got, []string{"shared eu", "shared us"}) {
		t.Error(got)
	}
	// One with quotas is for those who have some.
	if got := names(alice, "GET /regions"); !slices.Equal(got, []string{"shared us"}) {
		t.Error(got)
	}
	if _, err := v.regs.Target(ctx, v.a, "eu"); !errors.Is(err, daytona.ErrForbidden) {
		t.Error(err)
	}
	var made wire.CreateRegionResponse
	v.ok(201, alice, "POST /regions", map[string]any{"name": "mine", "proxyUrl": "https://proxy.example/", "snapshotManagerUrl": nil, "sshGatewayUrl": "ssh.example:2222"}, &made)
	if made.ProxyAPIKey == nil || !regexp.MustCompile(`^dtn_[0-9a-f]{64}$`).MatchString(*made.ProxyAPIKey) || made.SSHGatewayAPIKey == nil || made.SnapshotManagerPassword != nil || made.SnapshotManagerUsername != nil {
		t.Errorf("%+v", made)
	}
	if got := names(alice, "GET /regions"); !slices.Equal(got, []string{"custom mine", "shared us"}) {
		t.Error(got)
	}
	v.no(409, "already exists", alice, "POST /regions", map[string]any{"name": "mine"})
	for _, name := range []string{"", "x", "a b", "<b>", strings.Repeat("x", 256)} {
		v.no(400, "", alice, "POST /regions", map[string]any{"name": name})
	}
	for _, url := range []string{"ftp://x", "javascript:alert(1)", "https://user:pass@x", "https://"} {
		v.no(400, "proxyUrl", alice, "POST /regions", map[string]any{"name": "bad", "proxyUrl": url})
	}
	// Names are the organization's own before they are everybody's.
	var us wire.CreateRegionResponse
	v.ok(201, alice, "POST /regions", map[string]any{"name": "us"}, &us)
	for target, want := range map[string]string{"": us.ID, "us": us.ID, "mine": made.ID, made.ID: made.ID} {
		if r, err := v.regs.Target(ctx, v.a, target); err != nil || r.ID != want {
			t.Errorf("%q: %+v %v", target, r, err)
		}
	}
	if r, err := v.regs.Target(ctx, v.b, "us"); err != nil || r.ID != "us" {
		t.Errorf("%+v %v", r, err)
	}
	for _, target := range []string{"mine", made.ID, "mars"} {
		if _, err := v.regs.Target(ctx, v.b, target); !errors.Is(err, daytona.ErrNotFound) || err.Error() != "Region not found" {
			t.Errorf("%s: %v", target, err)
		}
	}
	id, kind, err := v.regs.RegionByKey(ctx, *made.ProxyAPIKey)
	if id != made.ID || kind != identity.RegionProxy || err != nil {
		t.Error(id, kind, err)
	}
	if id, kind, err := v.regs.RegionByKey(ctx, *made.SSHGatewayAPIKey); id != made.ID || kind != identity.RegionSSHGateway || err != nil {
		t.Error(id, kind, err)
	}
	var key wire.RegenerateAPIKeyResponse
	v.ok(200, alice, "POST /regions/"+made.ID+"/regenerate-proxy-api-key", nil, &key)
	if _, _, err := v.regs.RegionByKey(ctx, *made.ProxyAPIKey); !errors.Is(err, daytona.ErrNotFound) {
		t.Error("the old key still works", err)
	}
	if id, _, err := v.regs.RegionByKey(ctx, key.APIKey); id != made.ID || err != nil {
		t.Error(id, err)
	}
	for _, k := range []string{"", "dtn_", "dtn_" + strings.Repeat("0", 64)} {
		if _, _, err := v.regs.RegionByKey(ctx, k); !errors.Is(err, daytona.ErrNotFound) {
			t.Errorf("%q: %v", k, err)
		}
	}
	v.no(400, "snapshot manager", alice, "POST /regions/"+made.ID+"/regenerate-snapshot-manager-credentials", nil)
	v.ok(200, alice, "PATCH /regions/"+made.ID, map[string]any{"snapshotManagerUrl": "https://sm.example", "sshGatewayUrl": nil}, nil)
	var c wire.SnapshotManagerCredentials
	v.ok(200, alice, "POST /regions/"+made.ID+"/regenerate-snapshot-manager-credentials", nil, &c)
	if c.Username != "daytona" || !v.regs.CheckSnapshotManager(ctx, made.ID, c.Username, c.Password) || v.regs.CheckSnapshotManager(ctx, made.ID, "x", c.Password) ||
		v.regs.CheckSnapshotManager(ctx, us.ID, c.Username, "") {
		t.Errorf("%+v", c)
	}
	if _, _, err := v.regs.RegionByKey(ctx, *made.SSHGatewayAPIKey); !errors.Is(err, daytona.ErrNotFound) {
		t.Error("the key of a gateway that is gone still works", err)
	}
	var r wire.Region
	v.ok(200, alice, "GET /regions/"+made.ID, nil, &r)
	if r.SSHGatewayURL != nil || r.ProxyURL == nil || *r.ProxyURL != "https://proxy.example" || r.OrganizationID == nil || *r.OrganizationID != v.a {
		t.Errorf("%+v", r)
	}
	v.no(404, "Region not found", alice, "PATCH /regions/us", map[string]any{"proxyUrl": "https://evil.example"})
	v.no(404, "Region not found", alice, "DELETE /regions/us", nil)
	v.regs.Wire(region.Config{Quotas: v.quot, Runners: tenantRest{1}, Organizations: v.orgs})
	v.no(400, "runners", alice, "DELETE /regions/"+made.ID, nil)
	v.regs.Wire(region.Config{Quotas: v.quot, Runners: tenantRest{}, Organizations: v.orgs})
	v.ok(204, alice, "DELETE /regions/"+made.ID, nil, nil)
	v.no(404, "Region not found", alice, "GET /regions/"+made.ID, nil)
}

func testQuotaRoutes(t *testing.T, v *tenancy) {
	org := "/organizations/" + v.a
	v.ok(204, "root", "PATCH "+org+"/quota", map[string]any{
		"maxCpuPerSandbox": 7, "maxMemoryPerSandbox": nil, "maxDiskPerSandbox": nil, "snapshotQuota": 5, "maxSnapshotSize": nil, "volumeQuota": nil,
		"authenticatedRateLimit": 100, "sandboxCreateRateLimit": nil, "sandboxLifecycleRateLimit": nil, "authenticatedRateLimitTtlSeconds": 60,
		"sandboxCreateRateLimitTtlSeconds": nil, "sandboxLifecycleRateLimitTtlSeconds": nil, "snapshotDeactivationTimeoutMinutes": 60,
	}, nil)
	var o wire.Organization
	v.ok(200, "alice", "GET "+org, nil, &o)
	if o.MaxCPUPerSandbox != 7 || o.MaxMemoryPerSandbox != 8 || o.AuthenticatedRateLimit == nil || *o.AuthenticatedRateLimit != 100 || o.SnapshotDeactivationTimeoutMinutes != 60 {
		t.Errorf("%+v", o)
	}
	if n, d, err := v.orgs.RateLimit(t.Context(), v.a, "authenticated"); n != 100 || d != time.Minute || err != nil {
		t.Error(n, d, err)
	}
	v.ok(204, "root", "PATCH "+org+"/quota", map[string]any{"authenticatedRateLimit": nil}, nil)
	if n, d, err := v.orgs.RateLimit(t.Context(), v.a, "authenticated"); n != 0 || d != time.Minute || err != nil {
		t.Error(n, d, err)
	}
	v.no(400, "quotas", "root", "PATCH "+org+"/quota", map[string]any{"volumeQuota": -1})
	v.no(400, "rate limit", "root", "PATCH "+org+"/quota", map[string]any{"volumeQuota": 77, "authenticatedRateLimitTtlSeconds": 1e18})
	if l, err := v.quot.Limits(t.Context(), v.a); err != nil || l.Volumes != 100 {
		t.Errorf("half of a request was done: %+v %v", l, err)
	}
	v.no(400, "Minutes", "root", "PATCH "+org+"/quota", map[string]any{"snapshotDeactivationTimeoutMinutes": 1e300})
	v.no(400, "GracePeriod", "root", "POST "+org+"/suspend", map[string]any{"reason": "", "suspensionCleanupGracePeriodHours": 1e15})
	v.no(400, "maxSandboxLifespan", "root", "PATCH "+org+"/quota/us", map[string]any{"maxSandboxLifespan": 5e8})
	v.no(404, "", "root", "PATCH /organizations/none/quota", map[string]any{"volumeQuota": 1})

	v.ok(204, "root", "PATCH "+org+"/quota/us", map[string]any{"totalCpuQuota": 20, "totalMemoryQuota": nil, "totalDiskQuota": nil, "totalGpuQuota": 1, "allowedGpuTypes": []string{}, "maxCpuPerSandbox": 6}, nil)
	var q wire.RegionQuota
	v.ok(200, "root", "GET /admin"+org+"/quota/us/container", nil, &q)
	if q.TotalCPUQuota != 20 || q.TotalMemoryQuota != 10 || q.TotalGPUQuota != 1 || q.AllowedGPUTypes == nil || len(q.AllowedGPUTypes) != 0 || q.MaxCPUPerSandbox == nil || *q.MaxCPUPerSandbox != 6 {
		t.Errorf("%+v", q)
	}
	v.ok(204, "root", "PATCH /admin"+org+"/quota/us", map[string]any{"allowedGpuTypes": nil, "maxCpuPerSandbox": nil}, nil)
	v.ok(200, "root", "GET /admin"+org+"/quota/us/container", nil, &q)
	if q.TotalCPUQuota != 20 || q.MaxCPUPerSandbox != nil {
		t.Errorf("%+v", q)
	}
	full := map[string]any{"sandboxClass": "linux-vm", "totalCpuQuota": 1, "totalMemoryQuota": 2, "totalDiskQuota": 3, "totalGpuQuota": 0}
	v.ok(201, "root", "POST /admin"+org+"/quota/us", full, &q)
	v.no(409, "exists", "root", "POST /admin"+org+"/quota/us", full)
	v.no(404, "Region not found", "root", "POST /admin"+org+"/quota/mars", full)
	var classes []wire.AvailableSandboxClass
	v.ok(200, "alice/"+v.a+"/", "GET "+org+"/available-sandbox-classes", nil, &classes)
	if len(classes) != 2 || classes[0].SandboxClass != "container" || !classes[0].GPUAvailable || classes[1].GPUAvailable {
		t.Errorf("%+v", classes)
	}
	v.ok(204, "root", "DELETE /admin"+org+"/quota/us/linux-vm", nil, nil)
	v.no(404, "", "root", "DELETE /admin"+org+"/quota/us/linux-vm", nil)

	if err := v.quot.Reserve(t.Context(), quota.Claim{SandboxID: "s", OrganizationID: v.a, RegionID: "us", CPU: 2, Memory: 3, Disk: 4}); err != nil {
		t.Fatal(err)
	}
	var u wire.OrganizationUsageOverview
	v.ok(200, "bob", "GET "+org+"/usage", nil, &u)
	if len(u.RegionUsage) != 1 || u.RegionUsage[0].RegionID != "us" || u.RegionUsage[0].TotalCPUQuota != 20 || u.RegionUsage[0].CurrentCPUUsage != 2 ||
		u.RegionUsage[0].CurrentMemoryUsage != 3 || u.RegionUsage[0].CurrentDiskUsage != 4 || u.TotalSnapshotQuota != 5 || u.CurrentSnapshotUsage != 3 || u.TotalVolumeQuota != 100 {
		t.Errorf("%+v", u)
	}
	v.ok(200, "carol", "GET /organizations/"+v.b+"/usage", nil, &u)
	if u.RegionUsage[0].CurrentCPUUsage != 0 {
		t.Errorf("%+v", u)
	}
	v.ok(201, "root", "POST /admin/organizations", map[string]any{"userId": "dave", "name": "For dave", "defaultRegionId": "us"}, &o)
	if o.CreatedBy != "dave" || o.Suspended {
		t.Errorf("%+v", o)
	}
}

func testWebhookRoutes(t *testing.T, v *tenancy) {
	path := "/webhooks/organizations/" + v.a
	v.no(404, "", "alice", "GET "+path+"/initialization-status", nil)
	v.no(404, "", "root", "POST /admin/webhooks/organizations/none/initialize", nil)
	var s wire.WebhookInitializationStatus
	v.ok(201, "bob", "POST "+path+"/initialize", nil, &s)
	if s.OrganizationID != v.a || s.SvixApplicationID == nil {
		t.Errorf("%+v", s)
	}
	v.ok(200, "alice", "GET "+path+"/initialization-status", nil, &s)
	v.ok(204, "alice", "POST "+path+"/refresh-endpoints", nil, nil)
	var p wire.WebhookAppPortalAccess
	v.ok(200, "alice", "POST "+path+"/app-portal-access", nil, &p)
	if p.URL != "https://dash.example/webhooks" {
		t.Errorf("%+v", p)
	}
	var e wire.WebhookEndpoint
	v.ok(201, "alice", "POST "+path+"/endpoints", map[string]any{"url": "https://hook.example", "events": []string{"sandbox.created"}}, &e)
	if e.Secret == nil || !strings.HasPrefix(*e.Secret, "whsec_") {
		t.Errorf("%+v", e)
	}
	v.no(400, "url", "alice", "POST "+path+"/endpoints", map[string]any{"url": "http://10.0.0.1"})
	var list []wire.WebhookEndpoint
	v.ok(200, "alice", "GET "+path+"/endpoints", nil, &list)
	if len(list) != 1 || list[0].Secret != nil {
		t.Errorf("%+v", list)
	}
	v.ok(200, "alice", "PATCH "+path+"/endpoints/"+e.ID, map[string]any{"disabled": false, "events": []string{}}, &e)
	var secret wire.WebhookEndpointSecret
	v.ok(200, "alice", "GET "+path+"/endpoints/"+e.ID+"/secret", nil, &secret)
	v.ok(200, "root", "POST /admin"+path+"/send", map[string]any{"eventType": "sandbox.created", "payload": map[string]any{"id": "x"}}, nil)
	var messages []wire.WebhookMessage
	v.ok(200, "alice", "GET "+path+"/messages", nil, &messages)
	if len(messages) != 1 || messages[0].Payload["id"] != "x" {
		t.Fatalf("%+v", messages)
	}
	var attempts []wire.WebhookAttempt
	v.ok(200, "root", "GET /admin"+path+"/messages/"+messages[0].ID+"/attempts", nil, &attempts)
	if attempts == nil || len(attempts) != 0 {
		t.Errorf("%+v", attempts)
	}
	v.ok(204, "alice", "DELETE "+path+"/endpoints/"+e.ID, nil, nil)
	_, text := v.do("root", "GET /admin/webhooks/status", nil)
	if strings.TrimSpace(text) != `{"enabled":true}` {
		t.Error(text)
	}
}

// The log has what was done and tried, and no secret.
func testAuditRoutes(t *testing.T, v *tenancy) {
	var s wire.Secret
	v.ok(201, "alice@"+v.a, "POST /secret", map[string]any{"name": "KEY", "value": "geheim", "hosts": []string{"x.example"}}, &s)
	v.ok(200, "alice@"+v.a, "PATCH /secret/"+s.ID, map[string]any{"value": "geheim2"}, nil)
	v.no(404, "not found", "alice@"+v.a, "DELETE /secret/none", nil)
	v.ok(204, "alice", "PUT /organizations/"+v.a+"/otel-config", map[string]any{"endpoint": "https://o.example", "headers": map[string]string{"k": "geheim3"}}, nil)
	v.ok(204, "root", "POST /organizations/"+v.a+"/suspend", map[string]any{"reason": "x"}, nil)
	if err := v.audt.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	path := "GET /audit/organizations/" + v.a
	var page wire.PaginatedAuditLogs
	find := func(query string) []wire.AuditLog {
		t.Helper()
		v.ok(200, "alice", path+query, nil, &page)
		return page.Items
	}
	all := find("?limit=200")
	text, _ := json.Marshal(all)
	if strings.Contains(string(text), "geheim") || len(all) < 5 {
		t.Errorf("%s", text)
	}
	got := find("?targetType[eq]=secret&action[in]=create,delete")
	if len(got) != 2 || got[0].Action != "delete" || *got[0].StatusCode != 404 || *got[0].ErrorMessage == "" || *got[0].TargetID != "none" ||
		*got[1].TargetID != s.ID || got[1].ActorID != "alice" || got[1].Metadata["name"] != "KEY" || *got[1].IPAddress != "127.0.0.1" {
		t.Errorf("%+v", got)
	}
	if got := find("?action=suspend"); len(got) != 1 || got[0].ActorID != "root" || *got[0].OrganizationID != v.a {
		t.Errorf("%+v", got)
	}
	if got := find("?statusCode[gte]=400&from=2020-01-01T00:00:00Z"); len(got) != 1 {
		t.Errorf("%+v", got)
	}
	if got := find("?limit=1&page=2"); len(got) != 1 || page.Total < 5 || page.TotalPages != page.Total || page.Page != 2 {
		t.Errorf("%+v", page)
	}
	for _, q := range []string{"?limit=0", "?limit=201", "?page=0", "?from=yesterday", "?action[gt]=x", "?statusCode[eq]=x", "?createdAt[gte]=x"} {
		v.no(400, "", "alice", path+q, nil)
	}
	v.no(403, "Access denied", "bob", path, nil)
	v.ok(200, "root", "GET /admin/audit?limit=200", nil, &page)
	if len(page.Items) <= len(all) {
		t.Errorf("an administrator sees %d of more than %d", len(page.Items), len(all))
	}
	var sc wire.AuditScenarios
	v.ok(200, "bob@"+v.a, "GET /audit/scenarios", nil, &sc)
	i := slices.IndexFunc(sc.Targets, func(s wire.AuditTargetScenario) bool { return s.TargetType == "sandbox" })
	if i < 0 || !slices.Contains(sc.Targets[i].Actions, "auto_stop") || !slices.IsSorted(sc.Targets[i].Actions) {
		t.Errorf("%+v", sc)
	}
}

func testSecretRoutes(t *testing.T, v *tenancy) {
	who := "bob/" + v.a + "/manage:secrets"
	var s wire.Secret
	v.ok(201, who, "POST /secret", map[string]any{"name": "KEY", "value": "geheim", "description": "d"}, &s)
	if s.Hosts == nil || s.Description == nil || *s.Description != "d" {
		t.Errorf("%+v", s)
	}
	for _, what := range []string{"GET /secret", "GET /secret/" + s.ID, "GET /secret/paginated?name=key&sort=name&order=asc&limit=1"} {
		if status, text := v.do(who, what, nil); status != 200 || strings.Contains(text, "geheim") || !strings.Contains(text, s.ID) {
			t.Errorf("%s: %d %s", what, status, text)
		}
	}
	v.no(403, "Access denied", "bob/"+v.a+"/write:sandboxes", "GET /secret/"+s.ID, nil)
	v.ok(204, who, "DELETE /secret/"+s.ID, nil, nil)
	v.no(404, s.ID, who, "GET /secret/"+s.ID, nil)
}

// Every route of these features, asked by everybody who must not: those
// without a credential, with a token where a key is needed and the other way
// round, without a permission, without the role, and of another organization.
// It is made of the table of routes.
func testNobodyElse(t *testing.T, v *tenancy) {
	alice := "alice@" + v.a
	var role wire.OrganizationRole
	v.ok(201, "alice", "POST /organizations/"+v.a+"/roles", map[string]any{"name": "Ops", "description": "", "permissions": []string{}}, &role)
	var inv wire.OrganizationInvitation
	v.ok(201, "alice", "POST /organizations/"+v.a+"/invitations", map[string]any{"email": "x@example.com", "role": "member", "assignedRoleIds": []string{}}, &inv)
	v.ok(204, "alice", "POST /organizations/"+v.a+"/sso-enabled", map[string]any{"ssoEnabled": true}, nil)
	v.ok(204, "carol", "POST /organizations/"+v.b+"/sso-enabled", map[string]any{"ssoEnabled": true}, nil)
	var idp wire.IdentityProvider
	v.ok(201, "alice", "POST /organizations/"+v.a+"/identity-providers", map[string]any{"name": "SecretIdP", "emailDomains": []string{"c.com"},
		"oidcConfig": map[string]any{"issuerUrl": "https://i.example", "clientId": "i", "clientSecret": "s"}}, &idp)
	var reg wire.CreateRegionResponse
	v.ok(201, alice, "POST /regions", map[string]any{"name": "alicesregion", "proxyUrl": "https://p.example"}, &reg)
	var sec wire.Secret
	v.ok(201, alice, "POST /secret", map[string]any{"name": "ALICES_KEY", "value": "v"}, &sec)
	var hook wire.WebhookEndpoint
	v.ok(201, "alice", "POST /webhooks/organizations/"+v.a+"/endpoints", map[string]any{"url": "https://alices.example"}, &hook)
	ids := map[string]string{
		"organizationId": v.a, "roleId": role.ID, "userId": "bob", "invitationId": inv.ID, "regionId": "us", "sandboxClass": "container", "secretId": sec.ID,
		"endpointId": hook.ID, "messageId": "m", "authToken": "t",
	}
	// What carol must never get to see.
	traces := []string{role.ID, inv.ID, idp.ID, reg.ID, sec.ID, hook.ID, "alicesregion", "ALICES_KEY", "SecretIdP", "alices.example", "Org of alice", "bob@"}
	bodies := map[string]map[string]any{
		"updateOrganizationRole":                     {"name": "stolen", "description": "", "permissions": []string{}},
		"updateAccessForOrganizationMember":          {"role": "owner", "assignedRoleIds": []string{}},
		"createOrganizationInvitation":               {"email": "c@example.com", "role": "owner", "assignedRoleIds": []string{}},
		"updateOrganizationInvitation":               {"role": "owner", "assignedRoleIds": []string{}},
		"createOrganizationRole":                     {"name": "n", "description": "", "permissions": []string{}},
		"setOrganizationDefaultRegion":               {"defaultRegionId": "us"},
		"updateOrganizationOtelConfig":               {"endpoint": "https://evil.example"},
		"updateRegion":                               {"proxyUrl": "https://evil.example"},
		"updateSecret":                               {"value": "stolen"},
		"createOrganizationIdentityProvider":         {"name": "n", "emailDomains": []string{"c.com"}, "oidcConfig": map[string]any{"issuerUrl": "https://i.example", "clientId": "i", "clientSecret": "s"}},
		"updateOrganizationPreviewWarning":           {"previewWarningEnabled": false},
		"updateOrganizationSsoEnabled":               {"ssoEnabled": false},
		"adminUpdateOrganizationPreviewWarning":      {"previewWarningEnabled": false},
		"suspendOrganization":                        {"reason": "x"},
		"createRegion":                               {"name": "another"},
		"createSecret":                               {"name": "N", "value": "v"},
		"createWebhookEndpoint":                      {"url": "https://evil.example"},
		"adminSendWebhook":                           {"eventType": "sandbox.created", "payload": map[string]any{}},
		"adminCreateOrganization":                    {"userId": "carol", "name": "n", "defaultRegionId": "us"},
		"testOrganizationIdentityProviderConnection": {"issuerUrl": "https://i.example"},
		"updateSandboxDefaultLimitedNetworkEgress":   {"sandboxDefaultLimitedNetworkEgress": true},
		"adminCreateOrganizationRegionQuota":         {"sandboxClass": "android", "totalCpuQuota": 9, "totalMemoryQuota": 9, "totalDiskQuota": 9, "totalGpuQuota": 9},
	}
	seen := 0
	for _, r := range api.Routes() {
		admin := r.Tag == "admin" && regexp.MustCompile(`^/admin/(organizations|webhooks|audit)`).MatchString(r.Path)
		if !admin && !slices.Contains([]string{"organizations", "regions", "audit", "webhooks", "secret"}, r.Tag) || r.Access.Anyone {
			continue
		}
		seen++
		path := regexp.MustCompile(`\{(\w+)\}`).ReplaceAllStringFunc(r.Path, func(p string) string {
			name := strings.Trim(p, "{}")
			if name == "id" {
				if r.Tag == "organizations" && strings.HasPrefix(r.Path, "/regions") {
					return reg.ID
				}
				return idp.ID
			}
			if ids[name] == "" {
				t.Fatalf("%s: nothing is known of {%s}", r.ID, name)
			}
			return ids[name]
		})
		what, body := r.Method+" "+path, any(bodies[r.ID])
		if bodies[r.ID] == nil && (r.Method == "PUT" || r.Method == "PATCH") {
			body = map[string]any{}
		}
		check := func(who string, allowed ...int) {
			t.Helper()
			status, text := v.do(who, what, body)
			if !slices.Contains(allowed, status) {
				t.Errorf("%s as %s: %s: %d %s", r.ID, who, what, status, text)
			}
			for _, trace := range traces {
				if strings.Contains(text, trace) && !strings.Contains(path, trace) {
					t.Errorf("%s as %s tells of %s: %s", r.ID, who, trace, text)
				}
			}
		}
		own := func(who string) {
			// What is the caller's own may be answered, but not with anything of alice's.
			check(who, 200, 201, 204, 400, 404, 409)
		}
		check("", 401)
		check("nobody", 401)
		switch a := r.Access; {
		case a.Services != 0 && a.By == 0:
			check("carol@"+v.b, 401, 403)
			check("carol/"+v.b+"/all", 401, 403)
		case a.Admin:
			check("carol", 401, 403)
			check("alice@"+v.a, 401, 403)
			check("alice/"+v.a+"/all", 403)
			check("collector", 403)
		case strings.Contains(r.Path, "{organizationId}"):
			check("carol", 403)
			check("carol@"+v.b, 403)
			check("carol/"+v.b+"/all", 401, 403)
			check("collector", 403)
			if a.Owner {
				check("bob", 403)
				check("alice/"+v.a+"/all", 401, 403)
			}
			for range a.Permissions {
				check("bob", 403)
				check("bob/"+v.a+"/write:sandboxes", 401, 403)
			}
		case a.Organization && strings.Contains(r.Path, "{"):
			// By an id of another organization's there is nothing.
			check("carol", 403)
			check("carol@"+v.a, 403)
			check("carol@"+v.b, 404)
			check("carol/"+v.b+"/all", 404)
			for range a.Permissions {
				check("bob@"+v.a, 403)
			}
		case a.Organization:
			check("carol", 403)
			check("carol@"+v.a, 403)
			own("carol@" + v.b)
			own("carol/" + v.b + "/all")
			for range a.Permissions {
				check("bob@"+v.a, 403)
			}
		default:
			// A user's own: invitations, organizations.
			own("carol")
			check("carol/"+v.b+"/all", 401, 403)
		}
	}
	if seen < 60 {
		t.Errorf("only %d routes were tried", seen)
	}
	// Nothing of alice's has changed.
	var o wire.Organization
	v.ok(200, "alice", "GET /organizations/"+v.a, nil, &o)
	if o.Suspended || !o.SSOEnabled || !o.PreviewWarningEnabled || o.OTelConfig != nil || o.SandboxLimitedNetworkEgress {
		t.Errorf("%+v", o)
	}
	members, err := v.orgs.Members(t.Context(), v.a)
	if err != nil || len(members) != 2 || members[1].Role != identity.Member {
		t.Errorf("%+v %v", members, err)
	}
	if r, err := v.regs.Get(t.Context(), reg.ID); err != nil || r.ProxyURL != "https://p.example" {
		t.Errorf("%+v %v", r, err)
	}
}

// Every route that changes something is either audited or known not to be.
func TestAuditedRoutes(t *testing.T) {
	for _, r := range api.Routes() {
		e := api.Entry{Route: &r, Principal: &identity.Principal{Kind: identity.JWT, UserID: "u"}, Status: 200, Params: map[string]string{}}
		_, ok := api.Audit(e)
		quiet := slices.Contains(api.NotAudited(), r.ID)
		if r.Method != "GET" && ok == quiet {
			t.Errorf("%s: audited %v, and said not to be %v", r.ID, ok, quiet)
		}
		e.Principal = &identity.Principal{Kind: identity.Runner}
		if _, ok := api.Audit(e); ok {
			t.Errorf("%s is audited for a service", r.ID)
		}
	}
}
