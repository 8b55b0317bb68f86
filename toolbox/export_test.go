package toolbox_test

import (
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	logs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	metrics "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	traces "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	trace "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/daytona-go/daytona/toolbox"
	"github.com/daytona-go/daytona/toolbox/wire"
)

// collector takes OTLP, by the official definition of its messages.
type collector struct {
	*httptest.Server
	mu      sync.Mutex
	refuse  int // answers 503 that many times
	lines   []string
	metrics map[string]float64
	spans   []*trace.Span
	labels  map[string]string
	tokens  map[string]bool
}

func newCollector(t *testing.T) *collector {
	c := &collector{metrics: map[string]float64{}, labels: map[string]string{}, tokens: map[string]bool{}}
	c.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.refuse > 0 {
			c.refuse--
			w.WriteHeader(503)
			return
		}
		c.tokens[r.Header.Get("sandbox-auth-token")] = true
		b, err := io.ReadAll(r.Body)
		label := func(list []*common.KeyValue) {
			for _, a := range list {
				c.labels[a.Key] = a.Value.GetStringValue()
			}
		}
		read := func(m proto.Message) {
			if err == nil {
				err = proto.UnmarshalOptions{DiscardUnknown: false}.Unmarshal(b, m)
			}
			if err != nil || len(m.ProtoReflect().GetUnknown()) > 0 || r.Header.Get("Content-Type") != "application/x-protobuf" {
				t.Errorf("%s: %v, unknown fields %x", r.URL.Path, err, m.ProtoReflect().GetUnknown())
			}
		}
		switch r.URL.Path {
		case "/base/v1/logs":
			var m logs.ExportLogsServiceRequest
			read(&m)
			for _, of := range m.ResourceLogs {
				label(of.Resource.Attributes)
				for _, l := range of.ScopeLogs[0].LogRecords {
					c.lines = append(c.lines, l.SeverityText+" "+l.Body.GetStringValue())
					if d := time.Since(time.Unix(0, int64(l.TimeUnixNano))); d < 0 || d > time.Minute || int(l.SeverityNumber) != map[string]int{"INFO": 9, "ERROR": 17}[l.SeverityText] {
						t.Errorf("record %v", l)
					}
				}
			}
		case "/base/v1/metrics":
			var m metrics.ExportMetricsServiceRequest
			read(&m)
			for _, of := range m.ResourceMetrics {
				for _, one := range of.ScopeMetrics[0].Metrics {
					c.metrics[one.Name+" "+one.Unit] = one.GetGauge().DataPoints[0].GetAsDouble()
				}
			}
		case "/base/v1/traces":
			var m traces.ExportTraceServiceRequest
			read(&m)
			for _, of := range m.ResourceSpans {
				c.spans = append(c.spans, of.ScopeSpans[0].Spans...)
			}
		default:
			t.Errorf("a request for %s", r.URL.Path)
		}
	}))
	t.Cleanup(c.Close)
	return c
}

// wait waits for something to be there.
func (c *collector) wait(t *testing.T, what string, there func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		c.mu.Lock()
		ok := there()
		c.mu.Unlock()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			c.mu.Lock()
			defer c.mu.Unlock()
			t.Fatalf("no %s: %.2000v %v %v", what, c.lines, c.metrics, c.spans)
		}
	}
}

func TestTelemetry(t *testing.T) {
	c := newCollector(t)
	c.refuse = 1
	long := strings.Repeat("x", 40000)
	a := start(t, "unix", toolbox.Config{
		SandboxID: "sb-1",
		Entrypoint: []string{"/bin/sh", "-c", "echo out; echo err >&2; echo; printf 'a\\377b\\r\\n'; head -c 40000 /dev/zero | tr '\\0' x; echo; " +
			"i=0; while [ $i -lt 30000 ]; do echo line $i; i=$((i+1)); done; printf end"},
		Telemetry: &wire.TelemetryConfig{Endpoint: c.URL + "/base/", Headers: map[string]string{"api-key": "k"}, Labels: map[string]string{"daytona_region_id": "eu"}, MetricInterval: 100 * time.Millisecond},
	})
	a.call("POST", "/init", `{"token":"sandbox-token"}`)
	a.call("GET", "/process/session/secret-name?also=secret", "", "traceparent", "00-0102030405060708090a0b0c0d0e0f10-1112131415161718-01")
	a.call("GET", "/no/such/secret", "", "traceparent", "00-00000000000000000000000000000000-1112131415161718-01")

	c.wait(t, "last line", func() bool { return len(c.lines) > 0 && c.lines[len(c.lines)-1] == "INFO end" })
	c.wait(t, "metric", func() bool { return c.metrics["daytona.sandbox.memory.usage By"] > 0 })
	c.wait(t, "spans", func() bool { return len(c.spans) >= 3 })
	c.wait(t, "token", func() bool { return c.tokens["sandbox-token"] })
	c.mu.Lock()
	defer c.mu.Unlock()
	var rest []string // the two streams are in no order
	for i, n := 0, 0; i < len(c.lines); i++ {
		if line := c.lines[i]; strings.HasPrefix(line, "INFO line ") {
			if line != fmt.Sprintf("INFO line %d", n) {
				t.Fatalf("%q in place of line %d", line, n)
			}
			n++
		} else if line == "ERROR err" {
			rest = append(rest, "ERR")
		} else {
			rest = append(rest, strings.TrimPrefix(line, "INFO "))
		}
	}
	got := strings.Replace(strings.Join(rest, "|")+"|", "ERR|", "", 1)
	if want := "out|a�b|" + long[:32<<10] + "|" + long[32<<10:] + "|end|"; got != want || len(rest) != 6 {
		t.Errorf("lines %.200q", rest)
	}
	for _, name := range []string{"cpu.utilization %", "cpu.limit cores", "memory.utilization %", "memory.limit By", "filesystem.utilization %", "filesystem.usage By", "filesystem.available By", "filesystem.total By"} {
		if v, ok := c.metrics["daytona.sandbox."+name]; !ok || v <= 0 && !strings.HasPrefix(name, "cpu.u") {
			t.Errorf("%s is %v in %v", name, v, c.metrics)
		}
	}
	if c.labels["service.name"] != "sandbox-sb-1" || c.labels["daytona_region_id"] != "eu" {
		t.Errorf("labels %v", c.labels)
	}
	names := map[string]*trace.Span{}
	for _, s := range c.spans {
		if names[s.Name] = s; strings.Contains(s.String(), "secret") {
			t.Errorf("span %v", s)
		}
	}
	s := names["GET /process/session/{sessionId}"]
	if s == nil || hex.EncodeToString(s.TraceId) != "0102030405060708090a0b0c0d0e0f10" || hex.EncodeToString(s.ParentSpanId) != "1112131415161718" || len(s.SpanId) != 8 || s.Kind != trace.Span_SPAN_KIND_SERVER || s.EndTimeUnixNano < s.StartTimeUnixNano {
		t.Errorf("span %v in %v", s, names)
	}
	if s := names["GET unknown"]; s == nil || len(s.ParentSpanId) != 0 || len(s.TraceId) != 16 {
		t.Errorf("span %v in %v", s, names)
	}
}

// TestTelemetryLost has a collector that answers nobody: the agent does not mind,
// and ends in time.
func TestTelemetryLost(t *testing.T) {
	c := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // until then it would not be noticed that the agent goes away
		<-r.Context().Done()
	}))
	defer c.Close()
	s, err := toolbox.New(t.Context(), toolbox.Config{WorkDir: t.TempDir(), Entrypoint: []string{"/usr/bin/yes"}, Telemetry: &wire.TelemetryConfig{Endpoint: c.URL}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(3 * time.Second) // until it sends
	begin := time.Now()
	s.Close()
	if d := time.Since(begin); d > 10*time.Second {
		t.Errorf("it took %v to end", d)
	}
	for _, endpoint := range []string{"", "collector:4318", "ftp://x", "http://"} {
		if s, err := toolbox.New(t.Context(), toolbox.Config{WorkDir: t.TempDir(), Telemetry: &wire.TelemetryConfig{Endpoint: endpoint}}, nil); err == nil {
			s.Close()
			t.Errorf("endpoint %q: taken", endpoint)
		}
	}
}
