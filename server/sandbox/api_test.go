package sandbox_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/wire"
	"github.com/daytona-go/daytona/server/api"
	"github.com/daytona-go/daytona/server/identity"
	"github.com/daytona-go/daytona/server/sandbox"
	"github.com/daytona-go/daytona/server/store/storetest"
)

// people have the name that their token is.
type people struct{}

func (people) Authenticate(_ context.Context, bearer string) (*identity.Principal, error) {
	all := identity.Permissions()
	switch bearer {
	case "a", "b":
		return &identity.Principal{Kind: identity.Key, UserID: "u-" + bearer, OrganizationID: bearer, Permissions: all}, nil
	case "reader":
		return &identity.Principal{Kind: identity.Key, UserID: "r", OrganizationID: "a"}, nil
	case "admin":
		return &identity.Principal{Kind: identity.Key, UserID: "root", OrganizationID: "admin", Admin: true, Permissions: all}, nil
	case "r1", "r2":
		return &identity.Principal{Kind: identity.Runner, RunnerID: bearer, RegionID: "eu"}, nil
	case "proxy":
		return &identity.Principal{Kind: identity.Proxy}, nil
	case "far-proxy":
		return &identity.Principal{Kind: identity.RegionProxy, RegionID: "us"}, nil
	case "gateway":
		return &identity.Principal{Kind: identity.SSHGateway}, nil
	case "far-gateway":
		return &identity.Principal{Kind: identity.RegionSSHGateway, RegionID: "us"}, nil
	}
	return nil, &daytona.Error{Kind: daytona.KindUnauthorized}
}

func (people) Join(context.Context, *identity.Principal, string) (*identity.Principal, error) {
	return nil, &daytona.Error{Kind: daytona.KindForbidden}
}

type client struct {
	t   *testing.T
	url string
}

func serve(t *testing.T, w *world, o api.SandboxOptions) *client {
	a := api.New(api.Config{Authenticator: people{}, Log: slog.New(slog.DiscardHandler)})
	api.RegisterSandbox(a, w.s, o)
	s := httptest.NewServer(a)
	t.Cleanup(s.Close)
	return &client{t, s.URL + "/api"}
}

// do sends a request and returns the status and the body.
func (c *client) do(who, method, path, body string) (int, string) {
	c.t.Helper()
	var r io.Reader
	if body != "" {
		r = strings.NewReader(body)
	}
	req, err := http.NewRequestWithContext(c.t.Context(), method, c.url+path, r)
	if err != nil {
		c.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+who)
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// into is do for an answer of a status that is JSON.
func (c *client) into(v any, status int, who, method, path, body string) {
	c.t.Helper()
	got, text := c.do(who, method, path, body)
	if got != status {
		c.t.Fatalf("%s %s: %d %s", method, path, got, text)
	}
	reflect.ValueOf(v).Elem().SetZero()
	if err := json.Unmarshal([]byte(text), v); err != nil {
		c.t.Fatalf("%s %s: %v in %s", method, path, err, text)
	}
}

func TestRoutes(t *testing.T) {
	w := newWorld(t, storetest.Open(t, storetest.SQLite(t)))
	c := serve(t, w, api.SandboxOptions{
		Organization: func(_ context.Context, id string) (wire.Organization, error) { return wire.Organization{ID: id}, nil },
		RegionQuota: func(_ context.Context, org, region, class string) (wire.RegionQuota, error) {
			return wire.RegionQuota{OrganizationID: org, RegionID: region, SandboxClass: class}, nil
		},
		BuildLog: func(_ context.Context, ref string, follow bool, w io.Writer) error {
			_, err := fmt.Fprintf(w, "%s %v\n", ref, follow)
			return err
		},
	})

	// The body of a client that is told nothing, and the keys that strict ones need.
	var keys map[string]any
	c.into(&keys, 200, "a", "POST", "/sandbox", `{"name":"one","env":{},"labels":{"code-toolbox-language":"python"},"target":"eu","volumes":[],"unknown":1,"snapshot":null}`)
	for _, k := range strings.Fields("id organizationId name user env labels public networkBlockAll target cpu gpu memory disk toolboxProxyUrl state desiredState backupState createdAt updatedAt lastActivityAt sandboxClass runnerId snapshot") {
		if _, ok := keys[k]; !ok {
			t.Errorf("a sandbox has no %s", k)
		}
	}
	id := keys["id"].(string)
	if keys["state"] != "started" || keys["name"] != "one" || keys["snapshot"] != "default" || keys["toolboxProxyUrl"] != "http://proxy.localhost:4000/toolbox" || keys["target"] != "eu" {
		t.Error(keys)
	}
	if _, err := time.Parse("2006-01-02T15:04:05.000Z", keys["createdAt"].(string)); err != nil {
		t.Error(err)
	}
	for _, k := range strings.Fields("errorReason warmPoolId buildInfo networkAllowList linkedSandboxId") {
		if _, ok := keys[k]; ok {
			t.Errorf("a sandbox has %s", k)
		}
	}

	var sb wire.Sandbox
	for _, r := range []struct{ method, path, body, state string }{
		{"GET", "/sandbox/one", "", "started"},
		{"GET", "/sandbox/" + id + "?verbose=true", "", "started"},
		{"POST", "/sandbox/one/start", "", "started"},
		{"POST", "/sandbox/one/pause", "", "paused"},
		{"POST", "/sandbox/one/start", "", "started"},
		{"POST", "/sandbox/one/resize", `{"cpu":3}`, "started"},
		{"POST", "/sandbox/one/snapshot", `{"name":"kept"}`, "started"},
		{"POST", "/sandbox/one/network-settings", `{"networkAllowList":"10.0.0.0/8"}`, "started"},
		{"POST", "/sandbox/one/public/true", "", "started"},
		{"POST", "/sandbox/one/autostop/30", "", "started"},
		{"POST", "/sandbox/one/autoarchive/0", "", "started"},
		{"POST", "/sandbox/one/autodelete/-1", "", "started"},
		{"POST", "/sandbox/one/ttl/600", "", "started"},
		{"PUT", "/sandbox/one/secrets", `{"secrets":[{"TOKEN":"known"}]}`, "started"},
		{"POST", "/sandbox/one/backup", "", "started"},
		{"DELETE", "/sandbox/one/ssh-access", "", "started"},
	} {
		sb = wire.Sandbox{}
		c.into(&sb, 200, "a", r.method, r.path, r.body)
		w.settle()
		if sb.ID != id || *sb.State != r.state {
			t.Errorf("%s %s: %s", r.method, r.path, *sb.State)
		}
	}
	c.into(&sb, 200, "a", "GET", "/sandbox/one", "")
	if sb.CPU != 3 || !sb.Public || *sb.NetworkAllowList != "10.0.0.0/8" || *sb.AutoStopInterval != 30 || *sb.AutoArchiveInterval != 43200 || *sb.AutoDeleteInterval != -1 ||
		sb.AutoDestroyAt == nil || *sb.BackupState != "Completed" || sb.BackupCreatedAt == nil {
		t.Errorf("%+v", sb)
	}
	c.into(&sb, 200, "a", "POST", "/sandbox/one/autopause/5", "")
	if *sb.AutoPauseInterval != 5 || *sb.AutoStopInterval != 0 {
		t.Error("one of the two ends the other")
	}
	var labels wire.SandboxLabels
	c.into(&labels, 200, "a", "PUT", "/sandbox/one/labels", `{"labels":{"x":"y"}}`)
	if len(labels.Labels) != 1 || labels.Labels["x"] != "y" {
		t.Error(labels)
	}
	if status, body := c.do("a", "POST", "/sandbox/"+id+"/last-activity", ""); status != 201 || body != "" {
		t.Error(status, body)
	}
	if status, _ := c.do("proxy", "POST", "/sandbox/"+id+"/last-activity", `{"activityType":"x"}`); status != 201 {
		t.Error(status)
	}

	// Forks.
	var child wire.Sandbox
	c.into(&child, 200, "a", "POST", "/sandbox/one/fork", "")
	if *child.State != "started" || child.Name != child.ID {
		t.Errorf("%+v", child)
	}
	c.into(&child, 200, "a", "POST", "/sandbox/one/fork", `{"name":"kid"}`)
	var list []wire.Sandbox
	if c.into(&list, 200, "a", "GET", "/sandbox/one/forks?includeDestroyed=true", ""); len(list) != 2 {
		t.Error(len(list))
	}
	if c.into(&list, 200, "a", "GET", "/sandbox/kid/ancestors", ""); len(list) != 1 || list[0].ID != id {
		t.Error(list)
	}
	if c.into(&sb, 200, "a", "GET", "/sandbox/kid/parent", ""); sb.ID != id {
		t.Error(sb.ID)
	}

	// What opens it.
	var preview wire.PortPreviewURL
	if c.into(&preview, 200, "a", "GET", "/sandbox/one/ports/8080/preview-url", ""); len(preview.Token) != 32 || !strings.HasPrefix(preview.URL, "http://8080-"+id) {
		t.Error(preview)
	}
	var signed wire.SignedPortPreviewURL
	if c.into(&signed, 200, "a", "GET", "/sandbox/one/ports/8080/signed-preview-url", ""); len(signed.Token) != 16 || signed.Port != 8080 {
		t.Error(signed)
	}
	if status, body := c.do("a", "POST", "/sandbox/one/ports/8080/signed-preview-url/"+signed.Token+"/expire", ""); status != 200 || body != "" {
		t.Error(status, body)
	}
	var ssh wire.SSHAccess
	c.into(&ssh, 200, "a", "POST", "/sandbox/one/ssh-access?expiresInMinutes=5", "")
	if status, body := c.do("gateway", "GET", "/sandbox/ssh-access/validate?token="+ssh.Token, ""); status != 200 || strings.TrimSpace(body) != `{"valid":true,"sandboxId":"`+id+`"}` {
		t.Error(status, body)
	}
	for _, who := range []string{"gateway", "far-gateway"} {
		token := ssh.Token
		if who == "gateway" {
			token = "x"
		}
		if status, body := c.do(who, "GET", "/sandbox/ssh-access/validate?token="+token, ""); status != 200 || strings.TrimSpace(body) != `{"valid":false,"sandboxId":null}` {
			t.Error(who, status, body)
		}
	}
	status, key := c.do("a", "GET", "/sandbox/"+id+"/signing-key", "")
	if status != 200 || len(key) != 64 {
		t.Error(status, key)
	}
	if status, rotated := c.do("a", "POST", "/sandbox/"+id+"/signing-key/rotate", ""); status != 200 || rotated == key {
		t.Error(status, rotated)
	}
	var u wire.URL
	if c.into(&u, 200, "a", "GET", "/sandbox/one/toolbox-proxy-url", ""); u.URL != "http://proxy.localhost:4000/toolbox" {
		t.Error(u)
	}

	// Builds, one GPU type or a list, and an empty body.
	c.into(&sb, 200, "a", "POST", "/sandbox", `{"name":"built","buildInfo":{"dockerfileContent":"FROM x","contextHashes":["abc"]},"cpu":2,"memory":2,"disk":5}`)
	if *sb.State != "pending_build" || sb.BuildInfo == nil || sb.BuildInfo.SnapshotRef != "build-FROM x" || sb.Snapshot != nil || sb.CPU != 2 {
		t.Errorf("%+v", sb)
	}
	if c.into(&u, 200, "a", "GET", "/sandbox/built/build-logs-url", ""); u.URL != "http://proxy.localhost:4000/sandboxes/"+sb.ID+"/build-logs" {
		t.Error(u)
	}
	if status, body := c.do("a", "GET", "/sandbox/built/build-logs?follow=true", ""); status != 200 || body != "build-FROM x true\n" {
		t.Error(status, body)
	}
	for _, g := range []string{`"H100"`, `["H100","H200"]`} {
		c.into(&sb, 200, "a", "POST", "/sandbox", `{"buildInfo":{"dockerfileContent":"FROM g"},"gpu":1,"gpuType":`+g+`,"autoDeleteInterval":0}`)
	}
	c.into(&sb, 200, "a", "POST", "/sandbox", `{}`)

	// Services.
	if c.into(&list, 200, "r1", "GET", "/sandbox/for-runner?states=started,stopped", ""); len(list) != 4 {
		t.Error(len(list))
	}
	if c.into(&list, 200, "r2", "GET", "/sandbox/for-runner", ""); len(list) != 0 {
		t.Error(len(list))
	}
	var mounted []wire.SandboxSecret
	if c.into(&mounted, 200, "r1", "GET", "/sandbox/"+id+"/secrets", ""); len(mounted) != 1 || mounted[0].Value != "s3cret" {
		t.Error(mounted)
	}
	var org wire.Organization
	if c.into(&org, 200, "proxy", "GET", "/sandbox/"+id+"/organization", ""); org.ID != "a" {
		t.Error(org)
	}
	var quota wire.RegionQuota
	if c.into(&quota, 200, "proxy", "GET", "/sandbox/"+id+"/region-quota", ""); quota.RegionID != "eu" || quota.SandboxClass != "container" {
		t.Error(quota)
	}
	c.into(&sb, 200, "proxy", "GET", "/sandbox/"+id, "")
	if status, body := c.do("r1", "PUT", "/sandbox/"+id+"/state", `{"state":"error","errorReason":"full","recoverable":true}`); status != 200 || body != "" {
		t.Error(status, body)
	}
	if c.into(&sb, 200, "admin", "POST", "/admin/sandbox/"+id+"/recover", ""); *sb.State != "started" {
		t.Error(*sb.State)
	}

	// Pools.
	var pool wire.WarmPool
	c.into(&pool, 201, "a", "POST", "/warm-pools", `{"snapshot":"default","pool":1}`)
	c.into(&pool, 200, "a", "PATCH", "/warm-pools/"+pool.ID, `{"pool":2}`)
	var pools []wire.WarmPool
	if c.into(&pools, 200, "a", "GET", "/warm-pools", ""); len(pools) != 1 || pools[0].Pool != 2 || pools[0].OSUser != "daytona" || pools[0].Mem != 1 {
		t.Error(pools)
	}
	if status, body := c.do("a", "DELETE", "/warm-pools/"+pool.ID, ""); status != 204 || body != "" {
		t.Error(status, body)
	}

	// Its end.
	for _, path := range []string{"/sandbox/kid", "/sandbox/" + child.ID} {
		c.do("a", "DELETE", path, "")
	}
	w.settle()
	if c.into(&list, 200, "a", "GET", "/sandbox/one/forks", ""); len(list) == 1 {
		c.do("a", "DELETE", "/sandbox/"+list[0].ID, "")
	}
	w.settle()
	if c.into(&sb, 200, "a", "POST", "/sandbox/one/stop?force=true", ""); *sb.State != "stopping" {
		t.Error(*sb.State)
	}
	w.settle()
	if c.into(&sb, 200, "a", "POST", "/sandbox/one/archive", ""); *sb.State != "archiving" {
		t.Error(*sb.State)
	}
	w.settle()
	c.into(&sb, 200, "a", "DELETE", "/sandbox/one", "")
	for _, path := range []string{"/sandbox/one", "/sandbox/" + id} {
		if status, _ := c.do("a", "GET", path, ""); status != 404 {
			t.Error(path, status)
		}
	}
}

func TestRouteErrors(t *testing.T) {
	w := newWorld(t, storetest.Open(t, storetest.SQLite(t)))
	c := serve(t, w, api.SandboxOptions{})
	sb := w.create(sandbox.Spec{Name: "one"})
	const missing = "Sandbox with ID or name one not found"
	for _, r := range []struct {
		who, method, path, body string
		status                  int
		message                 string
	}{
		{"nobody", "GET", "/sandbox/one", "", 401, "Invalid credentials"},
		{"reader", "DELETE", "/sandbox/one", "", 403, "Access denied"},
		{"reader", "POST", "/sandbox", "{}", 403, "Access denied"},
		{"reader", "POST", "/sandbox/one/stop", "", 403, "Access denied"},
		{"reader", "GET", "/sandbox/" + sb.ID + "/signing-key", "", 403, "Access denied"},
		{"reader", "DELETE", "/warm-pools/x", "", 403, "Access denied"},
		{"a", "GET", "/sandbox/for-runner", "", 403, ""},
		{"a", "GET", "/sandbox/ssh-access/validate?token=x", "", 403, ""},
		{"a", "PUT", "/sandbox/" + sb.ID + "/state", `{"state":"stopped"}`, 403, ""},
		{"a", "GET", "/sandbox/" + sb.ID + "/secrets", "", 403, ""},
		{"a", "GET", "/sandbox/" + sb.ID + "/organization", "", 403, ""},
		{"a", "POST", "/admin/sandbox/" + sb.ID + "/recover", "", 403, ""},
		{"r1", "GET", "/sandbox/one", "", 403, ""},
		{"b", "GET", "/sandbox/one", "", 404, missing},
		{"b", "DELETE", "/sandbox/one", "", 404, missing},
		{"b", "GET", "/sandbox/one/ports/80/preview-url", "", 404, missing},
		{"b", "POST", "/sandbox/one/fork", "{}", 404, missing},
		{"b", "POST", "/sandbox/" + sb.ID + "/last-activity", "", 404, ""},
		{"far-proxy", "GET", "/sandbox/" + sb.ID, "", 404, ""},
		{"far-proxy", "GET", "/sandbox/" + sb.ID + "/organization", "", 404, ""},
		{"far-proxy", "POST", "/sandbox/" + sb.ID + "/last-activity", "", 404, ""},
		{"r2", "PUT", "/sandbox/" + sb.ID + "/state", `{"state":"stopped"}`, 404, ""},
		{"r2", "GET", "/sandbox/" + sb.ID + "/secrets", "", 404, ""},
		{"a", "POST", "/sandbox", `{"name":"one"}`, 409, "Sandbox with name one already exists"},
		{"a", "POST", "/sandbox", `{"cpu":2}`, 400, "Cannot specify Sandbox resources when using a snapshot"},
		{"a", "POST", "/sandbox", `{"target":"moon"}`, 404, "Region not found"},
		{"a", "POST", "/sandbox", `{"gpuType":"abacus"}`, 400, ""},
		{"a", "POST", "/sandbox", `{"env":{"A":1}}`, 400, ""},
		{"a", "POST", "/sandbox", `{"autoStopInterval":-1}`, 400, "Auto-stop interval must be non-negative"},
		{"a", "POST", "/sandbox", `{`, 400, ""},
		{"a", "POST", "/sandbox/one/archive", "", 400, "Sandbox is not stopped"},
		{"a", "POST", "/sandbox/one/recover", "", 400, ""},
		{"a", "POST", "/sandbox/one/resize", `{"disk":1}`, 400, "Disk size cannot be decreased"},
		{"a", "POST", "/sandbox/one/resize", `{"cpu":0}`, 400, ""},
		{"a", "POST", "/sandbox/one/resize", `{}`, 400, "No resource changes specified"},
		{"a", "POST", "/sandbox/one/snapshot", `{}`, 400, ""},
		{"a", "POST", "/sandbox/one/network-settings", `{}`, 400, ""},
		{"a", "POST", "/sandbox/one/autostop/x", "", 400, ""},
		{"a", "POST", "/sandbox/one/autostop/-1", "", 400, ""},
		{"a", "POST", "/sandbox/one/public/maybe", "", 400, ""},
		{"a", "GET", "/sandbox/one/ports/0/preview-url", "", 400, "Invalid port"},
		{"a", "GET", "/sandbox/one/ports/70000/signed-preview-url", "", 400, "Invalid port"},
		{"a", "GET", "/sandbox/one/ports/80/signed-preview-url?expiresInSeconds=0", "", 400, ""},
		{"a", "GET", "/sandbox/one/parent", "", 404, ""},
		{"a", "GET", "/sandbox/one/build-logs-url", "", 404, ""},
		{"a", "GET", "/sandbox/one/build-logs", "", 404, ""},
		{"a", "GET", "/sandbox?labels=x", "", 400, ""},
		{"a", "GET", "/sandbox?labels=%5B%5D", "", 400, ""},
		{"a", "GET", "/sandbox?cursor=x", "", 400, "Invalid cursor"},
		{"a", "GET", "/sandbox?limit=201", "", 400, ""},
		{"a", "GET", "/sandbox?sort=id", "", 400, ""},
		{"a", "GET", "/sandbox?states=destroyed", "", 400, ""},
		{"a", "GET", "/sandbox?isPublic=perhaps", "", 400, ""},
		{"a", "GET", "/sandbox?createdAtAfter=yesterday", "", 400, ""},
		{"a", "GET", "/sandbox/paginated?page=0", "", 400, ""},
		{"a", "PATCH", "/warm-pools/x", `{"pool":1}`, 404, ""},
		{"a", "POST", "/warm-pools", `{"snapshot":"default","pool":0}`, 400, ""},
	} {
		status, body := c.do(r.who, r.method, r.path, r.body)
		var e wire.Error
		if err := json.Unmarshal([]byte(body), &e); err != nil || status != r.status || e.StatusCode != r.status || e.Message == "" || r.message != "" && e.Message != r.message {
			t.Errorf("%s %s %s: %d %s", r.who, r.method, r.path, status, body)
		}
	}
	w.setRunner("r1", func(r *sandbox.Runner) { r.Capabilities = nil })
	if status, body := c.do("a", "POST", "/sandbox/one/pause", ""); status != 422 {
		t.Error(status, body)
	}
}

func TestListRoutes(t *testing.T) {
	w := newWorld(t, storetest.Open(t, storetest.SQLite(t)))
	c := serve(t, w, api.SandboxOptions{})
	for i := range 5 {
		w.pass(time.Minute)
		w.create(sandbox.Spec{Name: fmt.Sprint("sb", i), Labels: map[string]string{"parity": fmt.Sprint(i % 2)}, Public: i == 3, AutoStop: new(0)})
	}
	w.s.Stop(t.Context(), "a", "sb4", false)
	w.settle()
	for query, want := range map[string]string{
		"": "sb4 sb3 sb2 sb1 sb0",
		"labels=" + url.QueryEscape(`{"parity":"1"}`): "sb3 sb1",
		"states=stopped":                                          "sb4",
		"states=stopped&states=started&limit=2":                   "sb4 sb3",
		"states[]=stopped&states[]=error":                         "sb4",
		"isPublic=true":                                           "sb3",
		"isPublic=false&order=asc":                                "sb0 sb1 sb2 sb4",
		"isRecoverable=false&name=SB1":                            "sb1",
		"sort=name&order=asc&minCpu=1&maxCpu=1":                   "sb0 sb1 sb2 sb3 sb4",
		"minGpu=1":                                                "",
		"regionIds=eu&sandboxClasses=container&snapshots=default": "sb4 sb3 sb2 sb1 sb0",
		"createdAtAfter=2026-11-26T12:04:00.000Z":                 "sb4 sb3",
		"lastEventBefore=2026-11-26T12:02:00Z":                    "sb1 sb0",
		"includeErroredDeleted=true&includeWarm=true":             "sb4 sb3 sb2 sb1 sb0",
	} {
		var got wire.ListSandboxesResponse
		c.into(&got, 200, "a", "GET", "/sandbox?"+query, "")
		var names []string
		for _, item := range got.Items {
			names = append(names, item.Name)
		}
		if strings.Join(names, " ") != want {
			t.Errorf("%s: %q, not %q", query, names, want)
		}
	}
	_, body := c.do("a", "GET", "/sandbox", "")
	var raw struct {
		Items []map[string]any
	}
	json.Unmarshal([]byte(body), &raw)
	for _, k := range strings.Fields("id organizationId name target user public networkBlockAll cpu gpu memory disk labels toolboxProxyUrl state") {
		if _, ok := raw.Items[0][k]; !ok {
			t.Errorf("an item has no %s", k)
		}
	}
	// By this key clients tell an item from a sandbox.
	if _, ok := raw.Items[0]["env"]; ok || !bytes.Contains([]byte(body), []byte(`"nextCursor":null`)) {
		t.Error(body)
	}
	var all []string
	for cursor := "?limit=2"; cursor != ""; {
		var got wire.ListSandboxesResponse
		c.into(&got, 200, "a", "GET", "/sandbox"+cursor, "")
		for _, item := range got.Items {
			all = append(all, item.Name)
		}
		cursor = ""
		if got.NextCursor != nil {
			cursor = "?limit=2&cursor=" + url.QueryEscape(*got.NextCursor)
		}
	}
	if !slices.Equal(all, []string{"sb4", "sb3", "sb2", "sb1", "sb0"}) {
		t.Error(all)
	}
	var page wire.PaginatedSandboxesDeprecated
	c.into(&page, 200, "a", "GET", "/sandbox/paginated?limit=2&page=3&sort=name&order=asc&regions=eu&name=b", "")
	if page.Total != 5 || page.TotalPages != 3 || page.Page != 3 || len(page.Items) != 1 || page.Items[0].Name != "sb4" {
		t.Errorf("%+v", page)
	}
	var theirs wire.ListSandboxesResponse
	if c.into(&theirs, 200, "b", "GET", "/sandbox?includeWarm=true&includeErroredDeleted=true", ""); len(theirs.Items) != 0 {
		t.Error(theirs)
	}
}
