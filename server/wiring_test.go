package server_test

import (
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/daytona-go/daytona/daytonatest"
	"github.com/daytona-go/daytona/internal/wire"
	"github.com/daytona-go/daytona/server"
	"github.com/daytona-go/daytona/server/store/storetest"
	"github.com/daytona-go/daytona/toolbox/telemetry"
)

// call makes a request as the first user, and returns the status and the text
// of the answer, which is read into out if that is not nil and it worked.
func (s *running) call(t *testing.T, method, path, body string, out any) (int, string) {
	t.Helper()
	status, text, err := s.try(t, method, path, body)
	if err == nil && out != nil && status < 300 {
		err = json.Unmarshal([]byte(text), out)
	}
	if err != nil {
		t.Fatalf("%s %s: %v: %s", method, path, err, text)
	}
	return status, text
}

// try is call for other goroutines than the test's.
func (s *running) try(t *testing.T, method, path, body string) (int, string, error) {
	q, err := http.NewRequestWithContext(t.Context(), method, s.URL+"/api"+path, strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	q.Header.Set("Authorization", "Bearer "+s.Key)
	if body != "" {
		q.Header.Set("Content-Type", "application/json")
	}
	r, err := http.DefaultClient.Do(q)
	if err != nil {
		return 0, "", err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	return r.StatusCode, string(b), err
}

// must is call that has to work.
func (s *running) must(t *testing.T, method, path, body string, out any) {
	t.Helper()
	if status, text := s.call(t, method, path, body, out); status >= 300 {
		t.Fatalf("%s %s: %d %s", method, path, status, text)
	}
}

// sandbox makes one that runs.
func (s *running) sandbox(t *testing.T, body string) wire.Sandbox {
	t.Helper()
	var sb wire.Sandbox
	s.must(t, "POST", "/sandbox", body, &sb)
	s.await(t, sb.ID, "started")
	return sb
}

// await waits until a sandbox is in a state.
func (s *running) await(t *testing.T, id, state string) {
	t.Helper()
	for ; ; time.Sleep(10 * time.Millisecond) {
		var sb wire.Sandbox
		s.must(t, "GET", "/sandbox/"+id, "", &sb)
		if sb.State != nil && *sb.State == state {
			return
		}
		if sb.State != nil && *sb.State == "error" {
			t.Fatalf("sandbox %s: %+v", id, sb.ErrorReason)
		}
	}
}

// exec runs a command in a sandbox and returns what it printed.
func (s *running) exec(t *testing.T, id, command string) string {
	t.Helper()
	body, err := json.Marshal(map[string]string{"command": command})
	if err != nil {
		t.Fatal(err)
	}
	q, err := http.NewRequestWithContext(t.Context(), "POST", s.URL+"/toolbox/"+id+"/process/execute", strings.NewReader(string(body)))
	if err != nil {
		t.Fatal(err)
	}
	q.Header.Set("Authorization", "Bearer "+s.Key)
	q.Header.Set("Content-Type", "application/json")
	r, err := http.DefaultClient.Do(q)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	var out struct{ Result string }
	if err := json.NewDecoder(r.Body).Decode(&out); err != nil || r.StatusCode != http.StatusOK {
		t.Fatalf("%d %v", r.StatusCode, err)
	}
	return strings.TrimSpace(out.Result)
}

// What a suspended organization has goes on until its grace is over and stops
// then; nothing is begun there, and credentials to push end at once.
func TestSuspension(t *testing.T) {
	s := start(t, daytonatest.Client(t), nil)
	s.awaitRunner(t)
	sb := s.sandbox(t, `{"name":"runs"}`)
	id := sb.OrganizationID
	var push wire.StorageAccess
	s.must(t, "GET", "/object-storage/push-access", "", &push)
	u, err := url.Parse(push.StorageURL)
	if err != nil {
		t.Fatal(err)
	}
	objects, err := minio.New(u.Host, &minio.Options{Creds: credentials.NewStaticV4(push.AccessKey, push.Secret, push.SessionToken), BucketLookup: minio.BucketLookupPath, Region: "us-east-1"})
	if err != nil {
		t.Fatal(err)
	}
	put := func() error {
		_, err := objects.PutObject(t.Context(), push.Bucket, push.OrganizationID+"/x", strings.NewReader("x"), 1, minio.PutObjectOptions{})
		return err
	}
	if err := put(); err != nil {
		t.Fatal(err)
	}
	const refusal = "Organization is suspended: unpaid"
	refused := func(method, path, body string) {
		t.Helper()
		if status, text := s.call(t, method, path, body, nil); status != http.StatusForbidden || !strings.Contains(text, refusal) {
			t.Errorf("%s %s: %d %s", method, path, status, text)
		}
	}
	// The grace is a day: what runs goes on.
	s.must(t, "POST", "/organizations/"+id+"/suspend", `{"reason":"unpaid","until":null}`, nil)
	refused("POST", "/sandbox", `{}`)
	refused("POST", "/volumes", `{"name":"v"}`)
	refused("GET", "/object-storage/push-access", "")
	refused("GET", "/docker-registry/registry-push-access", "")
	if err := put(); minio.ToErrorResponse(err).StatusCode != http.StatusForbidden {
		t.Errorf("old credentials: %v", err)
	}
	if out := s.exec(t, sb.ID, "echo on"); out != "on" {
		t.Errorf("within the grace: %q", out)
	}
	s.must(t, "POST", "/organizations/"+id+"/suspend", `{"reason":"unpaid","suspensionCleanupGracePeriodHours":0}`, nil)
	s.await(t, sb.ID, "stopped")
	refused("POST", "/sandbox/"+sb.ID+"/start", "")
	s.must(t, "POST", "/organizations/"+id+"/unsuspend", "", nil)
	s.must(t, "POST", "/sandbox/"+sb.ID+"/start", "", nil)
	s.await(t, sb.ID, "started")
	s.must(t, "GET", "/object-storage/push-access", "", &push)
}

// Of many that are made at once, exactly as many are as the quota has room for.
func TestQuotaTogether(t *testing.T) {
	for name, database := range map[string]func(testing.TB) string{"sqlite": storetest.SQLite, "postgres": storetest.Postgres} {
		t.Run(name, func(t *testing.T) {
			const room, together = 3, 50
			u := database(t)
			s := start(t, daytonatest.Client(t), func(c *server.Config) {
				c.Database, c.Defaults.EnforceQuotas, c.Admin.Password = u, true, ssoPassword
				c.Defaults.TotalCPU, c.Defaults.TotalMemory, c.Defaults.TotalDisk = room, 1000, 1000
			})
			s.awaitRunner(t)
			var mu sync.Mutex
			var wg sync.WaitGroup
			var made []string
			for i := range together {
				wg.Go(func() {
					status, text, err := s.try(t, "POST", "/sandbox", fmt.Sprintf(`{"name":"q-%d"}`, i))
					mu.Lock()
					defer mu.Unlock()
					switch {
					case err == nil && status == http.StatusOK:
						made = append(made, fmt.Sprintf("q-%d", i))
					case err != nil || status != http.StatusBadRequest || !strings.Contains(text, "Total CPU limit exceeded. Maximum allowed: 3."):
						t.Errorf("%d %s %v", status, text, err)
					}
				})
			}
			wg.Wait()
			if len(made) != room {
				t.Fatalf("%d were made", len(made))
			}
			var sb wire.Sandbox
			s.must(t, "GET", "/sandbox/"+made[0], "", &sb)
			v := s.visitor(t)
			done := v.begin()
			v.send("email", "admin@localhost", "password", ssoPassword)
			var usage wire.OrganizationUsageOverview
			if status := s.as(t, done(), "GET", "/organizations/"+sb.OrganizationID+"/usage", "", &usage); status != http.StatusOK || len(usage.RegionUsage) != 1 ||
				usage.RegionUsage[0].CurrentCPUUsage != room || usage.RegionUsage[0].TotalCPUQuota != room {
				t.Errorf("%d %+v", status, usage)
			}
			// What is deleted makes room for one, not for two.
			s.must(t, "DELETE", "/sandbox/"+made[0], "", nil)
			for {
				if status, _ := s.call(t, "POST", "/sandbox", `{"name":"again"}`, nil); status == http.StatusOK {
					break
				}
				time.Sleep(10 * time.Millisecond) // until it is gone
			}
			if status, text := s.call(t, "POST", "/sandbox", `{"name":"more"}`, nil); status != http.StatusBadRequest {
				t.Errorf("%d %s", status, text)
			}
		})
	}
}

// Of many organizations that one user makes at once, ten are made.
func TestOrganizationsTogether(t *testing.T) {
	for name, database := range map[string]func(testing.TB) string{"sqlite": storetest.SQLite, "postgres": storetest.Postgres} {
		t.Run(name, func(t *testing.T) {
			u := database(t)
			s := start(t, nil, func(c *server.Config) { c.Database, c.Admin.Password = u, ssoPassword })
			v := s.visitor(t)
			done := v.begin()
			v.send("email", "admin@localhost", "password", ssoPassword)
			user := &running{URL: s.URL, Key: done()}
			var made, refused atomic.Int32
			var wg sync.WaitGroup
			for i := range 25 {
				wg.Go(func() {
					switch status, text, err := user.try(t, "POST", "/organizations", fmt.Sprintf(`{"name":"o%d","defaultRegionId":"us"}`, i)); {
					case err == nil && status == http.StatusCreated:
						made.Add(1)
					case err == nil && status == http.StatusForbidden && strings.Contains(text, "maximum number of created organizations"):
						refused.Add(1)
					default:
						t.Errorf("%d %s %v", status, text, err)
					}
				})
			}
			wg.Wait()
			if made.Load() != 10 || refused.Load() != 15 {
				t.Errorf("%d were made and %d refused", made.Load(), refused.Load())
			}
		})
	}
}

// The totals of a new user's organization are those of its region; with bad
// ones there is no user.
func TestPersonalQuota(t *testing.T) {
	dir := t.TempDir()
	s := start(t, nil, func(c *server.Config) { c.Dir = dir })
	if status, text := s.call(t, "POST", "/admin/users", `{"id":"ada","name":"Ada","personalOrganizationQuota":{"totalCpuQuota":-1}}`, nil); status != http.StatusBadRequest {
		t.Errorf("%d %s", status, text)
	}
	s.must(t, "POST", "/admin/users", `{"id":"ada","name":"Ada","personalOrganizationQuota":{"totalCpuQuota":7,"maxCpuPerSandbox":2}}`, nil)
	// No route tells an administrator which organization is whose.
	db, err := sql.Open("sqlite", filepath.Join(dir, "daytona.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var id string
	if err := db.QueryRowContext(t.Context(), "SELECT id FROM organizations WHERE created_by = 'ada'").Scan(&id); err != nil {
		t.Fatal(err)
	}
	var q wire.RegionQuota
	if s.must(t, "GET", "/admin/organizations/"+id+"/quota/us/container", "", &q); q.TotalCPUQuota != 7 || q.TotalMemoryQuota != 10 {
		t.Errorf("%+v", q)
	}
}

// A sandbox that waited is, once it is somebody's, like one made for them.
func TestWarmPool(t *testing.T) {
	s := start(t, daytonatest.Client(t), nil)
	s.awaitRunner(t)
	var pool wire.WarmPool
	s.must(t, "POST", "/warm-pools", `{"snapshot":"default","pool":1}`, &pool)
	for ready := false; !ready; time.Sleep(10 * time.Millisecond) {
		var all []wire.WarmPool
		s.must(t, "GET", "/warm-pools", "", &all)
		if len(all) != 1 || all[0].ErrorReason != nil {
			t.Fatalf("%+v", all)
		}
		ready = all[0].CurrentSize == 1
	}
	var waiting struct{ Items []wire.Sandbox }
	s.must(t, "GET", "/sandbox?includeWarm=true", "", &waiting)
	if len(waiting.Items) != 1 {
		t.Fatalf("%+v", waiting)
	}
	warm := waiting.Items[0].ID
	// One with variables is not the one that waits: its programs run already.
	other := s.sandbox(t, `{"name":"other","env":{"A":"b"}}`)
	if other.ID == warm || s.exec(t, other.ID, "sh -c 'echo $A'") != "b" {
		t.Errorf("%+v", other)
	}
	var mine wire.Sandbox
	s.must(t, "POST", "/sandbox", `{"name":"mine","labels":{"a":"b"},"public":true,"autoStopInterval":7}`, &mine)
	if mine.ID != warm || mine.Name != "mine" || mine.Labels["a"] != "b" || !mine.Public || mine.State == nil || *mine.State != "started" ||
		mine.AutoStopInterval == nil || *mine.AutoStopInterval != 7 {
		t.Errorf("%+v", mine)
	}
	if out := s.exec(t, mine.ID, "sh -c 'echo $DAYTONA_SANDBOX_ID'"); out != mine.ID {
		t.Errorf("its id, to programs: %q", out)
	}
	var found wire.Sandbox
	if s.must(t, "GET", "/sandbox/mine", "", &found); found.ID != warm {
		t.Errorf("%+v", found)
	}
	var listed struct{ Items []wire.Sandbox }
	if s.must(t, "GET", "/sandbox?labels="+url.QueryEscape(`{"a":"b"}`), "", &listed); len(listed.Items) != 1 || listed.Items[0].ID != warm {
		t.Errorf("%+v", listed)
	}
	// Secrets would have to be there before its programs are; and no backend can
	// keep them from programs: they are refused, not left out.
	s.must(t, "POST", "/secret", `{"name":"KEY","value":"v","hosts":["example.com"]}`, nil)
	if status, text := s.call(t, "POST", "/sandbox", `{"secrets":[{"KEY":"KEY"}]}`, nil); status < 400 || status >= 500 || strings.Contains(text, `"v"`) {
		t.Errorf("%d %s", status, text)
	}
	s.must(t, "DELETE", "/warm-pools/"+pool.ID, "", nil)
}

// What sandboxes use is measured by their runner, wherever they can send to;
// what they send themselves is there as well, and for their organization alone.
func TestSandboxTelemetry(t *testing.T) {
	s := start(t, daytonatest.Client(t), func(c *server.Config) { c.SandboxTelemetry.Interval = 100 })
	s.awaitRunner(t)
	s.sandbox(t, `{"name":"measured"}`)
	span := "?from=" + url.QueryEscape(time.Now().Add(-time.Hour).UTC().Format(time.RFC3339)) + "&to=" + url.QueryEscape(time.Now().Add(time.Hour).UTC().Format(time.RFC3339))
	base := "/sandbox/measured/telemetry/"
	for {
		var m wire.MetricsResponse
		s.must(t, "GET", base+"metrics"+span+"&metricNames=daytona.sandbox.memory.usage&metricNames=daytona.sandbox.cpu.limit", "", &m)
		if len(m.Series) == 2 && len(m.Series[0].DataPoints) > 1 {
			if m.Series[0].MetricName != "daytona.sandbox.cpu.limit" || m.Series[1].MetricName != "daytona.sandbox.memory.usage" || m.Series[1].DataPoints[0].Value <= 0 ||
				m.Series[0].DataPoints[0].Timestamp >= m.Series[0].DataPoints[1].Timestamp {
				t.Errorf("%+v", m)
			}
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	// The agent's own exporter, with the sandbox's token.
	var preview wire.PortPreviewURL
	s.must(t, "GET", "/sandbox/measured/ports/3000/preview-url", "", &preview)
	e, err := telemetry.New(telemetry.Options{
		Endpoint: s.URL + "/api/otlp", Headers: map[string]string{"Sandbox-Auth-Token": preview.Token},
		Resource: []telemetry.Attribute{{Name: "service.name", Value: "sandbox-of-somebody-else"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	lines := e.Lines()
	lines(false, []byte("Hello, world\n"))
	lines(true, []byte("it fails 100%\n"))
	q := httptest.NewRequest("GET", "/files/download?path=secret", nil)
	q.Header.Set("Traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	e.Span(q, "/files/download", 500, time.Now().Add(-time.Second))
	e.Close()
	logs := func(query string) wire.PaginatedLogs {
		t.Helper()
		var l wire.PaginatedLogs
		s.must(t, "GET", base+"logs"+span+query, "", &l)
		return l
	}
	all := logs("")
	if all.Total != 2 || len(all.Items) != 2 || all.Items[0].Body != "it fails 100%" || all.Items[0].SeverityText != "ERROR" || all.Items[1].Body != "Hello, world" ||
		all.Page != 1 || all.TotalPages != 1 || all.Items[0].ServiceName != "sandbox-of-somebody-else" {
		t.Fatalf("%+v", all)
	}
	for query, body := range map[string]string{"&severities=ERROR": "it fails 100%", "&severities=INFO&severities=WARN": "Hello, world", "&search=hello": "Hello, world", "&search=100%25": "it fails 100%"} {
		if l := logs(query); l.Total != 1 || l.Items[0].Body != body {
			t.Errorf("%s: %+v", query, l)
		}
	}
	if l := logs("&search=1_0"); l.Total != 0 || l.Items == nil {
		t.Errorf("%+v", l)
	}
	if l := logs("&limit=1&page=2"); l.Total != 2 || len(l.Items) != 1 || l.Items[0].Body != "Hello, world" || l.TotalPages != 2 || l.Page != 2 {
		t.Errorf("%+v", l)
	}
	var traces wire.PaginatedTraces
	s.must(t, "GET", base+"traces"+span, "", &traces)
	if traces.Total != 1 || traces.Items[0].TraceID != "0af7651916cd43dd8448eb211c80319c" || traces.Items[0].RootSpanName != "GET /files/download" || traces.Items[0].SpanCount != 1 ||
		*traces.Items[0].StatusCode != "Error" || traces.Items[0].DurationMs < 1000 {
		t.Fatalf("%+v", traces)
	}
	var spans []wire.TraceSpan
	s.must(t, "GET", base+"traces/"+traces.Items[0].TraceID, "", &spans)
	if len(spans) != 1 || *spans[0].ParentSpanID != "b7ad6b7169203331" || spans[0].SpanAttributes["http.response.status_code"] != "500" || spans[0].DurationNs < 1e9 {
		t.Errorf("%+v", spans)
	}
	for path, status := range map[string]int{"logs": 400, "logs?from=x&to=y": 400, "logs" + span + "&limit=1001": 400, "metrics?from=2026-01-02&to=2026-01-01": 400, "traces/none": 200} {
		if got, text := s.call(t, "GET", base+path, "", nil); got != status {
			t.Errorf("%s: %d %s", path, got, text)
		}
	}
	if got, _ := s.call(t, "GET", "/sandbox/none/telemetry/logs"+span, "", nil); got != http.StatusNotFound {
		t.Errorf("of no sandbox: %d", got)
	}
	for header, value := range map[string]string{"Sandbox-Auth-Token": "wrong", "Authorization": "Bearer " + s.Key, "X": ""} {
		q, err := http.NewRequestWithContext(t.Context(), "POST", s.URL+"/api/otlp/v1/logs", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		q.Header.Set(header, value)
		q.Header.Set("Content-Type", "application/x-protobuf")
		r, err := http.DefaultClient.Do(q)
		if err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
		if r.StatusCode != http.StatusUnauthorized {
			t.Errorf("%s: %d", header, r.StatusCode)
		}
	}
}
