package telemetry_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	common "go.opentelemetry.io/proto/otlp/common/v1"
	logs "go.opentelemetry.io/proto/otlp/logs/v1"
	metrics "go.opentelemetry.io/proto/otlp/metrics/v1"
	resource "go.opentelemetry.io/proto/otlp/resource/v1"
	"google.golang.org/protobuf/proto"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/store"
	"github.com/daytona-go/daytona/server/store/storetest"
	"github.com/daytona-go/daytona/server/telemetry"
)

// sources has a sandbox a of organization A, and b of B; runner r has a.
type sources struct{}

func (sources) BySandboxToken(_ context.Context, token string) (telemetry.Owner, error) {
	switch token {
	case "token of a":
		return telemetry.Owner{SandboxID: "a", OrganizationID: "A"}, nil
	case "token of b":
		return telemetry.Owner{SandboxID: "b", OrganizationID: "B"}, nil
	}
	return telemetry.Owner{}, daytona.ErrNotFound
}

func (sources) ByRunnerKey(_ context.Context, key string) (string, error) {
	if key == "key of r" {
		return "r", nil
	}
	return "", daytona.ErrNotFound
}

func (sources) OnRunner(_ context.Context, runnerID, sandboxID string) (telemetry.Owner, error) {
	if runnerID == "r" && sandboxID == "a" {
		return telemetry.Owner{SandboxID: "a", OrganizationID: "A"}, nil
	}
	return telemetry.Owner{}, daytona.ErrNotFound
}

func of(sandbox string) *resource.Resource {
	return &resource.Resource{Attributes: []*common.KeyValue{{Key: "service.name", Value: text("sandbox-" + sandbox)}}}
}

func text(s string) *common.AnyValue {
	return &common.AnyValue{Value: &common.AnyValue_StringValue{StringValue: s}}
}

// records are n logs, a second apart, the last of them now.
func records(n int) *logs.LogsData {
	s := &logs.ScopeLogs{}
	for i := range n {
		at := time.Now().Add(time.Duration(i-n+1) * time.Second)
		s.LogRecords = append(s.LogRecords, &logs.LogRecord{TimeUnixNano: uint64(at.UnixNano()), SeverityText: "INFO", Body: text(fmt.Sprint("line ", i, "\x00"))})
	}
	return &logs.LogsData{ResourceLogs: []*logs.ResourceLogs{{Resource: of("b"), ScopeLogs: []*logs.ScopeLogs{s}}}}
}

func gauges(sandboxes ...string) *metrics.MetricsData {
	m := &metrics.MetricsData{}
	for _, sb := range sandboxes {
		m.ResourceMetrics = append(m.ResourceMetrics, &metrics.ResourceMetrics{Resource: of(sb), ScopeMetrics: []*metrics.ScopeMetrics{{Metrics: []*metrics.Metric{{
			Name: "used", Data: &metrics.Metric_Gauge{Gauge: &metrics.Gauge{DataPoints: []*metrics.NumberDataPoint{
				{TimeUnixNano: uint64(time.Now().UnixNano()), Value: &metrics.NumberDataPoint_AsInt{AsInt: 7}},
			}}},
		}}}}})
	}
	return m
}

func newService(t *testing.T, db *store.DB, c telemetry.Config) *telemetry.Service {
	t.Helper()
	c.DB, c.Sources, c.Log = db, sources{}, slog.New(slog.DiscardHandler)
	return telemetry.New(c)
}

// post sends a message and returns the answer.
func post(t *testing.T, s *telemetry.Service, signal, header, value string, m proto.Message) (int, []byte) {
	t.Helper()
	body, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return send(t, s, signal, header, value, "", body)
}

func send(t *testing.T, s *telemetry.Service, signal, header, value, encoding string, body []byte) (int, []byte) {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), "POST", telemetry.Path+"/v1/"+signal, bytes.NewReader(body))
	r.Header.Set("Content-Type", "application/x-protobuf")
	r.Header.Set(header, value)
	r.Header.Set("Content-Encoding", encoding)
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return w.Code, w.Body.Bytes()
}

func lately(organization, sandbox string) telemetry.Window {
	return telemetry.Window{OrganizationID: organization, SandboxID: sandbox, From: time.Now().Add(-time.Hour), To: time.Now().Add(time.Minute)}
}

// Whose telemetry it is says the credential and nothing else.
func TestWhose(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		s := newService(t, db, telemetry.Config{})
		if status, _ := post(t, s, "logs", telemetry.HeaderSandboxToken, "token of a", records(2)); status != 200 { // which says it is b
			t.Fatal(status)
		}
		status, answer := post(t, s, "metrics", "Authorization", "Bearer key of r", gauges("a", "b", ""))
		// Those of b and of nobody are refused: partial_success.rejected_data_points.
		if status != 200 || len(answer) < 4 || answer[0] != 1<<3|2 || answer[2] != 1<<3 || answer[3] != 2 {
			t.Errorf("%d %v", status, answer)
		}
		for _, c := range []struct {
			organization, sandbox string
			logs, points          int
		}{{"A", "a", 2, 1}, {"B", "b", 0, 0}, {"B", "a", 0, 0}, {"", "a", 0, 0}} {
			l, n, err := s.LogsOf(t.Context(), lately(c.organization, c.sandbox), nil, "")
			if err != nil || n != c.logs || len(l) != c.logs {
				t.Errorf("%+v: %v %v", c, l, err)
			}
			p, err := s.PointsOf(t.Context(), lately(c.organization, c.sandbox), nil)
			if err != nil || len(p) != c.points {
				t.Errorf("%+v: %v %v", c, p, err)
			}
		}
		for header, value := range map[string]string{"Authorization": "Bearer other", telemetry.HeaderSandboxToken: "other", "X": ""} {
			if status, _ := post(t, s, "logs", header, value, records(1)); status != http.StatusUnauthorized {
				t.Errorf("%s %s: %d", header, value, status)
			}
		}
		if err := s.DeleteAll(t.Context(), "B"); err != nil {
			t.Fatal(err)
		}
		if _, n, err := s.LogsOf(t.Context(), lately("A", "a"), nil, ""); n != 2 || err != nil {
			t.Errorf("another organization's deletion left %d %v", n, err)
		}
		if err := s.DeleteAll(t.Context(), "A"); err != nil {
			t.Fatal(err)
		}
		if _, n, err := s.LogsOf(t.Context(), lately("A", "a"), nil, ""); n != 0 || err != nil {
			t.Errorf("%d %v", n, err)
		}
	})
}

// What is too old and more than is kept goes; what comes too fast is not kept
// at all, and nothing that is sent breaks anything.
func TestBounds(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		s := newService(t, db, telemetry.Config{Logs: 5, Rate: 1e-9, Burst: 20, Retention: time.Hour})
		if status, answer := post(t, s, "logs", telemetry.HeaderSandboxToken, "token of a", records(25)); status != 200 || len(answer) < 4 || answer[3] != 5 {
			t.Errorf("%d %v", status, answer)
		}
		if _, n, err := s.LogsOf(t.Context(), lately("A", "a"), nil, ""); n != 20 || err != nil {
			t.Fatalf("%d %v", n, err)
		}
		// Of another's there is as much as before.
		if status, answer := post(t, s, "logs", telemetry.HeaderSandboxToken, "token of b", records(3)); status != 200 || len(answer) != 0 {
			t.Errorf("%d %v", status, answer)
		}
		if err := s.Sweep(t.Context(), time.Now()); err != nil {
			t.Fatal(err)
		}
		l, n, err := s.LogsOf(t.Context(), lately("A", "a"), nil, "")
		if n != 5 || err != nil || l[0].Body != "line 19�" || l[4].Body != "line 15�" {
			t.Errorf("%+v %v", l, err)
		}
		if err := s.Sweep(t.Context(), time.Now().Add(2*time.Hour)); err != nil {
			t.Fatal(err)
		}
		if _, n, err := s.LogsOf(t.Context(), lately("B", "b"), nil, ""); n != 0 || err != nil {
			t.Errorf("%d %v", n, err)
		}
		old := records(1)
		old.ResourceLogs[0].ScopeLogs[0].LogRecords[0].TimeUnixNano = uint64(time.Now().Add(-2 * time.Hour).UnixNano())
		if _, answer := post(t, s, "logs", telemetry.HeaderSandboxToken, "token of b", old); len(answer) == 0 {
			t.Error("what is too old is taken")
		}
		var packed bytes.Buffer
		z := gzip.NewWriter(&packed)
		z.Write(make([]byte, 16<<20))
		z.Close()
		for name, c := range map[string]struct {
			signal, encoding string
			body             []byte
			status           int
		}{
			"no protobuf":  {"logs", "", []byte("{}"), 400},
			"no gzip":      {"logs", "gzip", []byte("{}"), 400},
			"a bomb":       {"logs", "gzip", packed.Bytes(), 413},
			"too long":     {"metrics", "", make([]byte, 9<<20), 413},
			"odd encoding": {"traces", "br", nil, 415},
			"odd signal":   {"profiles", "", nil, 404},
			"nothing":      {"traces", "", nil, 200},
		} {
			if status, _ := send(t, s, c.signal, telemetry.HeaderSandboxToken, "token of b", c.encoding, c.body); status != c.status {
				t.Errorf("%s: %d", name, status)
			}
		}
	})
}
