package api_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/runnerkey"
	"github.com/daytona-go/daytona/server/api"
	"github.com/daytona-go/daytona/server/identity"
	"github.com/daytona-go/daytona/server/job"
	"github.com/daytona-go/daytona/server/runner"
	"github.com/daytona-go/daytona/server/store"
	"github.com/daytona-go/daytona/server/store/storetest"
)

// fleet is the API of runners and their jobs, and what it needs to know of the
// other features.
type fleet struct {
	t       *testing.T
	url     string
	jobs    *job.Service
	runners *runner.Service
	on      map[string]int    // sandboxes, by runner
	where   map[string]string // runners, by sandbox
	refs    map[string][]string
}

func newFleet(t *testing.T, db *store.DB) *fleet {
	f := &fleet{t: t, jobs: job.NewService(db, nil), on: map[string]int{}, where: map[string]string{}, refs: map[string][]string{}}
	f.runners = runner.NewService(db, &runner.Options{Regions: f, Sandboxes: f, Log: slog.New(slog.DiscardHandler)})
	a := api.New(api.Config{Authenticator: f, Log: slog.New(slog.DiscardHandler)})
	api.RegisterJobs(a, f.jobs)
	api.RegisterRunners(a, f.runners, f)
	s := httptest.NewServer(a)
	t.Cleanup(s.Close)
	f.url = s.URL + "/api"
	return f
}

func (f *fleet) Authenticate(ctx context.Context, bearer string) (*identity.Principal, error) {
	org, permissions := strings.TrimPrefix(bearer, "key-"), []identity.Permission{identity.ReadRunners, identity.WriteRunners, identity.DeleteRunners}
	switch {
	case bearer == "proxy":
		return &identity.Principal{Kind: identity.Proxy}, nil
	case bearer == "proxy-us":
		return &identity.Principal{Kind: identity.RegionProxy, RegionID: "us"}, nil
	case bearer == "admin":
		return &identity.Principal{Kind: identity.Key, UserID: "admin", Admin: true, OrganizationID: "admin"}, nil
	case strings.HasPrefix(bearer, "key-"):
		return &identity.Principal{Kind: identity.Key, UserID: org, OrganizationID: org, Permissions: permissions}, nil
	}
	id, region, err := f.runners.Authenticate(ctx, bearer)
	return &identity.Principal{Kind: identity.Runner, RunnerID: id, RegionID: region}, err
}
func (f *fleet) Join(context.Context, *identity.Principal, string) (*identity.Principal, error) {
	return nil, daytona.ErrForbidden
}
func (f *fleet) RunnerRegion(_ context.Context, id string) (runner.Region, error) {
	if org, ok := strings.CutPrefix(id, "own-"); ok {
		return runner.Region{ID: id, Type: "custom", OrganizationID: org}, nil
	}
	return runner.Region{ID: id, Type: "shared"}, nil
}
func (f *fleet) OnRunner(_ context.Context, id string) (int, error) { return f.on[id], nil }
func (f *fleet) Drain(context.Context, string) error                { return nil }
func (f *fleet) Lost(context.Context, string) error                 { return nil }
func (f *fleet) SandboxRunner(_ context.Context, id string) (string, error) {
	if r, ok := f.where[id]; ok {
		return r, nil
	}
	return "", &daytona.Error{Kind: daytona.KindNotFound, Message: "Runner not found"}
}
func (f *fleet) SnapshotRunners(_ context.Context, ref string) ([]string, error) {
	return f.refs[ref], nil
}
func (f *fleet) RunnerSnapshots(_ context.Context, id string) ([]string, error) {
	return f.refs[id], nil
}

// call sends a request and returns the status and the body as text and as JSON.
func (f *fleet) call(who, method, path, body string) (int, string, map[string]any) {
	f.t.Helper()
	r, err := http.NewRequestWithContext(f.t.Context(), method, f.url+path, strings.NewReader(body))
	if err != nil {
		f.t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+who)
	r.Header.Set("Content-Type", "application/json")
	w, err := http.DefaultClient.Do(r)
	if err != nil {
		f.t.Fatal(err)
	}
	defer w.Body.Close()
	data, _ := io.ReadAll(w.Body)
	var v map[string]any
	json.Unmarshal(data, &v)
	return w.StatusCode, string(data), v
}

func TestRunners(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		f := newFleet(t, db)
		status, text, made := f.call("key-a", "POST", "/runners", `{"regionId":"own-a","name":"one","tags":["x"]}`)
		if status != 201 || len(made) != 2 {
			t.Fatal(status, text)
		}
		id, key := made["id"].(string), made["apiKey"].(string)
		status, text, shared := f.call("admin", "POST", "/admin/runners", `{"regionId":"eu","name":"two","apiKey":"0123456789abcdef","apiVersion":"2","proxyUrl":"https://two","cpu":4,"memoryGiB":8,"diskGiB":100}`)
		if status != 201 || shared["apiKey"] != "0123456789abcdef" {
			t.Fatal(status, text)
		}
		two := shared["id"].(string)
		f.where["sb"], f.refs["ref"], f.refs[id] = two, []string{two, id, "deleted"}, []string{"ref"}

		health := `{"metrics":{"currentCpuLoadAverage":0.5,"currentCpuUsagePercentage":10,"currentMemoryUsagePercentage":20,"currentDiskUsagePercentage":30,` +
			`"currentAllocatedCpu":1,"currentAllocatedMemoryGiB":2,"currentAllocatedDiskGiB":3,"currentSnapshotCount":4,"currentStartedSandboxes":5,` +
			`"cpu":8,"memoryGiB":16,"diskGiB":200},"serviceHealth":[{"serviceName":"local","healthy":true}],"domain":"d","appVersion":"1.2","capabilities":["fork"]}`
		for _, c := range []struct {
			who, method, path, body string
			status                  int
			want, not               string
		}{
			{"key-a", "POST", "/runners", `{"regionId":"own-a","name":"one"}`, 409, "already exists", ""},
			{"key-a", "POST", "/runners", `{"regionId":"own-a","name":"a b"}`, 400, "name must be", ""},
			{"key-a", "POST", "/runners", `{"regionId":"eu","name":"x"}`, 403, "custom regions", ""},
			{"key-b", "POST", "/runners", `{"regionId":"own-a","name":"x"}`, 404, "Region not found", ""},
			{"key-a", "POST", "/admin/runners", `{"regionId":"eu","name":"x","apiKey":"0123456789abcdef","apiVersion":"2"}`, 403, "Access denied", ""},
			{"key-a", "GET", "/runners", "", 200, `"state":"initializing"`, key},
			{"key-b", "GET", "/runners", "", 200, "[]", id},
			{"key-a", "GET", "/runners?regionId=own-b", "", 200, "[]", id},
			{"key-b", "GET", "/runners/" + id, "", 404, "Runner not found", ""},
			{"key-a", "GET", "/runners/" + two, "", 404, "Runner not found", ""},
			{key, "POST", "/runners/healthcheck", health, 200, "", "error"},
			{key, "POST", "/runners/healthcheck", `{}`, 400, "appVersion", ""},
			{"key-a", "POST", "/runners/healthcheck", health, 403, "Access denied", ""},
			{"key-a", "GET", "/runners/" + id, "", 200, `"state":"ready"`, "apiKey"},
			{"key-a", "GET", "/runners/" + id, "", 200, `"currentStartedSandboxes":5`, ""},
			{key, "GET", "/runners/me", "", 200, `"id":"` + id + `"`, key},
			{key, "GET", "/runners/me", "", 200, `"regionType":"custom"`, ""},
			{key, "GET", "/runners/me/snapshots", "", 200, `["ref"]`, ""},
			{"0123456789abcdef", "GET", "/runners/me/snapshots", "", 200, `[]`, ""},
			{"proxy", "GET", "/runners/by-sandbox/sb", "", 200, `"apiKey":"` + runnerkey.Access("0123456789abcdef") + `"`, "\"0123456789abcdef"},
			{"proxy", "GET", "/runners/by-sandbox/nobody", "", 404, "Runner not found", ""},
			{"proxy-us", "GET", "/runners/by-sandbox/sb", "", 404, "Runner not found", ""},
			{"proxy", "GET", "/runners/" + two + "/full", "", 200, `"proxyUrl":"https://two"`, ""},
			{"proxy-us", "GET", "/runners/" + two + "/full", "", 404, "Runner not found", ""},
			{"key-a", "GET", "/runners/" + id + "/full", "", 403, "Access denied", ""},
			{"proxy", "GET", "/runners/by-snapshot-ref?ref=ref", "", 200, `"runnerDomain":"d"`, "deleted"},
			{"proxy", "GET", "/runners/by-snapshot-ref", "", 400, "ref", ""},
			{"key-b", "PATCH", "/runners/" + id + "/scheduling", `{"unschedulable":true}`, 404, "Runner not found", ""},
			{"key-a", "DELETE", "/runners/" + id, "", 400, "unschedulable", ""},
			{"key-a", "PATCH", "/runners/" + id + "/scheduling", `{}`, 400, "unschedulable", ""},
			{"key-a", "PATCH", "/runners/" + id + "/scheduling", `{"unschedulable":true}`, 200, `"unschedulable":true`, ""},
			{"key-a", "PATCH", "/runners/" + id + "/draining", `{"draining":true}`, 200, `"name":"one"`, ""},
			{"key-b", "DELETE", "/runners/" + id, "", 404, "Runner not found", ""},
			{"admin", "GET", "/admin/runners", "", 200, two, key},
			{"admin", "GET", "/admin/runners/" + id, "", 200, `"apiKey":""`, ""},
			{"admin", "PATCH", "/admin/runners/" + two + "/scheduling", `{"unschedulable":true}`, 204, "", "error"},
			{"key-a", "DELETE", "/runners/" + id, "", 204, "", "error"},
			{key, "GET", "/runners/me", "", 401, "Invalid credentials", ""},
			{"admin", "DELETE", "/admin/runners/" + two, "", 204, "", "error"},
			{"admin", "DELETE", "/admin/runners/" + two, "", 404, "Runner not found", ""},
		} {
			status, text, _ := f.call(c.who, c.method, c.path, c.body)
			if status != c.status || !strings.Contains(text, c.want) || c.not != "" && strings.Contains(text, c.not) {
				t.Errorf("%s %s: %d %s", c.method, c.path, status, text)
			}
		}
	})
}

func TestJobs(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		f := newFleet(t, db)
		var keys, ids []string
		for _, name := range []string{"one", "two"} {
			r, key, err := f.runners.AdminCreate(t.Context(), runner.New{RegionID: "eu", Name: name})
			if err != nil {
				t.Fatal(err)
			}
			keys, ids = append(keys, key), append(ids, r.ID)
		}
		var jobs []job.Job
		for i := range 3 {
			j, err := f.jobs.Enqueue(t.Context(), job.New{
				Type: job.CreateSandbox, RunnerID: ids[0], ResourceType: job.ResourceSandbox, ResourceID: fmt.Sprint("sb", i),
				Payload: map[string]any{"id": "sb"}, Trace: map[string]string{"traceparent": "00-1-2-01"},
			})
			if err != nil {
				t.Fatal(err)
			}
			jobs = append(jobs, j)
		}
		id := jobs[0].ID
		for _, c := range []struct {
			who, method, path, body string
			status                  int
			want, not               string
		}{
			{keys[1], "GET", "/jobs/poll?timeout=0", "", 200, `{"jobs":[]}`, ""},
			{"key-a", "GET", "/jobs/poll?timeout=0", "", 403, "Access denied", ""},
			{keys[0], "GET", "/jobs/poll?timeout=0&limit=1", "", 200, `"payload":"{\"id\":\"sb\"}"`, jobs[1].ID},
			{keys[0], "GET", "/jobs?status=IN_PROGRESS", "", 200, `"total":1`, jobs[1].ID},
			{keys[0], "GET", "/jobs?limit=2&page=2", "", 200, jobs[2].ID, id},
			{keys[0], "GET", "/jobs?limit=2&page=2", "", 200, `"page":2,"totalPages":2`, ""},
			{keys[0], "GET", "/jobs?limit=1&offset=1", "", 200, jobs[1].ID, id},
			{keys[0], "GET", "/jobs?status=DONE", "", 400, "status", ""},
			{keys[0], "GET", "/jobs/" + id, "", 200, `"traceContext":{"traceparent":"00-1-2-01"}`, ""},
			{keys[1], "GET", "/jobs/" + id, "", 404, "not found", ""},
			{keys[1], "POST", "/jobs/" + id + "/status", `{"status":"COMPLETED"}`, 404, "not found", ""},
			{keys[0], "POST", "/jobs/" + id + "/status", `{"status":"PENDING"}`, 409, "from IN_PROGRESS to PENDING", ""},
			{keys[0], "POST", "/jobs/" + id + "/status", `{"status":"COMPLETED","resultMetadata":{}}`, 400, "resultMetadata", ""},
			{keys[0], "POST", "/jobs/" + id + "/status", `{"status":"COMPLETED","resultMetadata":"nonsense"}`, 400, "resultMetadata", ""},
			{keys[0], "POST", "/jobs/" + id + "/status", `{"status":"COMPLETED","resultMetadata":"{\"daemonVersion\":\"1\"}"}`, 200, `"status":"COMPLETED"`, ""},
			{keys[0], "POST", "/jobs/" + id + "/status", `{"status":"FAILED"}`, 409, "from COMPLETED to FAILED", ""},
			{keys[0], "POST", "/jobs/" + jobs[1].ID + "/status", `{"status":"FAILED","errorMessage":"no"}`, 200, `"errorMessage":"no"`, ""},
			{keys[0], "GET", "/jobs/poll?timeout=0&limit=1000", "", 200, jobs[2].ID, jobs[1].ID},
		} {
			status, text, _ := f.call(c.who, c.method, c.path, c.body)
			if status != c.status || !strings.Contains(text, c.want) || c.not != "" && strings.Contains(text, c.not) {
				t.Errorf("%s %s: %d %s", c.method, c.path, status, text)
			}
		}
	})
}
