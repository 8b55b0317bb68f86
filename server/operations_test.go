package server_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/daytona-go/daytona/daytonatest"
	"github.com/daytona-go/daytona/server"
	"github.com/daytona-go/daytona/server/api"
	"github.com/daytona-go/daytona/server/identity"
)

// logLines is a log of JSON lines.
type logLines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logLines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *logLines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// request returns the line about the request with an id; it may come a moment
// after the answer.
func (l *logLines) request(t *testing.T, id string) map[string]any {
	t.Helper()
	for ; ; time.Sleep(time.Millisecond) {
		if t.Context().Err() != nil {
			t.Fatalf("no line about %s", id)
		}
		var found []map[string]any
		for line := range strings.SplitSeq(l.String(), "\n") {
			m := map[string]any{}
			if json.Unmarshal([]byte(line), &m) == nil && m["msg"] == "request" && m["id"] == id {
				found = append(found, m)
			}
		}
		if len(found) > 1 {
			t.Errorf("%d lines about %s", len(found), id)
		}
		if len(found) > 0 {
			return found[0]
		}
	}
}

// spans is a collector.
type spans struct {
	mu  sync.Mutex
	all []*otlp.Span
}

func (s *spans) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body := io.Reader(r.Body)
	if r.Header.Get("Content-Encoding") == "gzip" {
		body, _ = gzip.NewReader(r.Body)
	}
	b, err := io.ReadAll(body)
	var q collector.ExportTraceServiceRequest
	if err == nil {
		err = proto.Unmarshal(b, &q)
	}
	if err != nil || r.URL.Path != "/v1/traces" {
		http.Error(w, fmt.Sprint(err), http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, of := range q.ResourceSpans {
		for _, in := range of.ScopeSpans {
			s.all = append(s.all, in.Spans...)
		}
	}
}

// client asks a server over HTTP.
type client struct {
	t *testing.T
	*running
}

// do sends a request, with headers as "Name: value", and returns the answer.
func (c *client) do(method, path, body string, headers ...string) (*http.Response, string) {
	c.t.Helper()
	q, err := http.NewRequestWithContext(c.t.Context(), method, c.URL+path, strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	q.Header.Set("Authorization", "Bearer "+c.Key)
	q.Header.Set("Content-Type", "application/json")
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		if name == "Host" {
			q.Host = value
		} else if q.Header.Set(name, value); value == "" {
			q.Header.Del(name)
		}
	}
	r, err := http.DefaultTransport.RoundTrip(q)
	if err != nil {
		c.t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return r, string(b)
}

// families scrapes the metrics.
func (c *client) families() map[string]*dto.MetricFamily {
	c.t.Helper()
	r, b := c.do("GET", "/metrics", "", "Authorization: Bearer "+metricsToken)
	if r.StatusCode != 200 {
		c.t.Fatalf("%d %s", r.StatusCode, b)
	}
	parser := expfmt.NewTextParser(model.LegacyValidation)
	f, err := parser.TextToMetricFamilies(strings.NewReader(b))
	if err != nil {
		c.t.Fatal(err)
	}
	return f
}

// value is that of the metrics of a family with labels, "name=value", summed up;
// -1 if there is none.
func value(f *dto.MetricFamily, labels ...string) float64 {
	sum, found := 0.0, false
	for _, m := range f.GetMetric() {
		has := 0
		for _, l := range m.Label {
			if slices.Contains(labels, l.GetName()+"="+l.GetValue()) {
				has++
			}
		}
		if has == len(labels) {
			found = true
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	if !found {
		return -1
	}
	return sum
}

const metricsToken = "scrape-scrape-scrape"

// echo is a program that answers with the headers of requests.
const echo = `import http.server
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        b = str(self.headers).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(b)))
        self.send_header("X-Request-Id", "the-sandbox-own")
        self.end_headers()
        self.wfile.write(b)
http.server.HTTPServer(("127.0.0.1", 8000), H).serve_forever()`

// What a client does is one trace over all that does it, one line a request in
// the log, and in the metrics; none of the three has a secret.
func TestObserved(t *testing.T) {
	log, got := &logLines{}, &spans{}
	receiver := httptest.NewServer(got)
	defer receiver.Close()
	exporter, err := otlptracehttp.New(t.Context(), otlptracehttp.WithEndpointURL(receiver.URL+"/v1/traces"))
	if err != nil {
		t.Fatal(err)
	}
	provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter))
	defer provider.Shutdown(context.Background())
	c := &client{t, start(t, daytonatest.Client(t), func(c *server.Config) {
		c.Log, c.Tracer, c.Metrics.Token = slog.New(slog.NewJSONHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})), provider, metricsToken
		c.Limits = server.LimitsConfig{"anonymous": {TTL: 3600, Limit: 3}}
	})}
	if err := c.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}

	const trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	traced := "Traceparent: 00-" + trace + "-" + parent + "-01"
	r, b := c.do("POST", "/api/sandbox", `{}`, traced, "X-Request-Id: create-1", "X-Daytona-Source: hush hush")
	var sb struct{ ID, State string }
	if err := json.Unmarshal([]byte(b), &sb); err != nil || r.StatusCode != 200 || sb.ID == "" {
		t.Fatalf("%d %s", r.StatusCode, b)
	}
	if r.Header.Get("X-Request-Id") != "create-1" {
		t.Errorf("%v", r.Header)
	}
	for sb.State != "started" {
		if _, b = c.do("GET", "/api/sandbox/"+sb.ID, ""); json.Unmarshal([]byte(b), &sb) != nil || sb.State == "error" {
			t.Fatal(b)
		}
	}
	command, _ := json.Marshal(map[string]string{"command": "cat >echo.py <<'END'\n" + echo + "\nEND\npython3 echo.py >/dev/null 2>&1 &"})
	if r, b = c.do("POST", "/toolbox/"+sb.ID+"/process/execute", string(command), traced, "X-Request-Id: exec-1"); r.StatusCode != 200 {
		t.Fatalf("%d %s", r.StatusCode, b)
	}
	var url struct{ Token string }
	if r, b = c.do("GET", "/api/sandbox/"+sb.ID+"/ports/8000/preview-url", ""); json.Unmarshal([]byte(b), &url) != nil || url.Token == "" {
		t.Fatalf("%d %s", r.StatusCode, b)
	}
	host := "Host: 8000-" + sb.ID + ".proxy." + strings.TrimPrefix(c.URL, "http://")
	for i := 0; ; i++ {
		r, b = c.do("GET", "/?DAYTONA_SANDBOX_AUTH_KEY="+url.Token, "", host, traced, "Authorization: ", fmt.Sprintf("X-Request-Id: preview-%d", i))
		if r.StatusCode == 200 {
			if !slices.Equal(r.Header["X-Request-Id"], []string{fmt.Sprintf("preview-%d", i)}) {
				t.Errorf("%v", r.Header["X-Request-Id"])
			}
			if m := log.request(t, fmt.Sprintf("preview-%d", i)); m["operation"] != "preview" || m["sandbox"] != sb.ID || m["principal"] != "query" || m["organization"] == "" {
				t.Errorf("%v", m)
			}
			break
		}
		if r.StatusCode != 502 || t.Context().Err() != nil {
			t.Fatalf("%d %s", r.StatusCode, b)
		}
	}
	inside := regexp.MustCompile(`(?i)traceparent: 00-([0-9a-f]{32})-([0-9a-f]{16})-01`).FindStringSubmatch(b)
	if inside == nil || inside[1] != trace || inside[2] == parent {
		t.Errorf("the program was told %q", b)
	}
	if r, b := c.do("GET", "/api/sandbox/none", "", "X-Request-Id: "+strings.Repeat("x", 200)); r.StatusCode != 404 || len(r.Header.Get("X-Request-Id")) > 100 || r.Header.Get("X-Request-Id") == "" {
		t.Errorf("%d %s %v", r.StatusCode, b, r.Header)
	}
	c.do("BREW", "/api/hush-hush/"+uuid.NewString()+"?token=hush-hush", "", "Authorization: Bearer hush-hush", "X-Request-Id: none-1")
	for i := range 4 {
		if r, b := c.do("GET", "/api/config", ""); (r.StatusCode == 429) != (i == 3) {
			t.Errorf("%d %d %s", i, r.StatusCode, b)
		}
	}
	socket, err := net.Dial("tcp", strings.TrimPrefix(c.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	fmt.Fprintf(socket, "GET /api/socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: x\r\nX-Request-Id: socket-1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
	upgraded, err := http.ReadResponse(bufio.NewReader(socket), nil)
	if err != nil || upgraded.StatusCode != 101 || upgraded.Header.Get("X-Request-Id") != "socket-1" {
		t.Fatalf("%+v %v", upgraded, err)
	}

	// The log.
	m := log.request(t, "create-1")
	for name, want := range map[string]any{
		"level": "INFO", "service": "api", "operation": "createSandbox", "method": "POST", "route": "/api/sandbox", "status": 200.0,
		"address": "127.0.0.1", "principal": "key", "trace": trace, "source": nil,
	} {
		if m[name] != want {
			t.Errorf("%s: %v, want %v", name, m[name], want)
		}
	}
	for _, name := range []string{"duration", "bytes", "user", "key", "organization"} {
		if m[name] == nil || m[name] == "" || m[name] == 0.0 {
			t.Errorf("%s: %v", name, m[name])
		}
	}
	if e := log.request(t, "exec-1"); e["service"] != "proxy" || e["operation"] != "toolbox" || e["sandbox"] != sb.ID || e["principal"] != "bearer" || e["user"] != m["user"] || e["key"] != m["key"] || e["organization"] != m["organization"] {
		t.Errorf("%v", e)
	}
	if e := log.request(t, "none-1"); e["method"] != "other" || e["status"] != 404.0 || e["operation"] != nil {
		t.Errorf("%v", e)
	}
	for _, secret := range []string{c.Key, url.Token, "hush-hush", "hush hush"} {
		if strings.Contains(log.String(), secret) {
			t.Errorf("%q is in the log", secret)
		}
	}

	// The trace.
	if err := provider.ForceFlush(t.Context()); err != nil {
		t.Fatal(err)
	}
	got.mu.Lock()
	names, byID := map[string]*otlp.Span{}, map[string]*otlp.Span{}
	for _, s := range got.all {
		if text := s.String(); strings.Contains(text, c.Key) || strings.Contains(text, url.Token) || strings.Contains(text, "hush") {
			t.Errorf("a secret is in %s", text)
		}
		if hex.EncodeToString(s.TraceId) == trace {
			names[s.Name], byID[hex.EncodeToString(s.SpanId)] = s, s
		}
	}
	got.mu.Unlock()
	// Each is a child of the one before it.
	for _, way := range [][]string{
		{"POST /api/sandbox", "enqueue CREATE_SANDBOX", "job CREATE_SANDBOX", "backend CREATE_SANDBOX"},
		{"job CREATE_SANDBOX", "POST /api/jobs/{jobId}/status"},
		{"POST toolbox", "agent POST"},
		{"GET preview", "agent GET"},
	} {
		for i, name := range way {
			s := names[name]
			if s == nil {
				t.Errorf("there is no span %q among %v", name, slices.Collect(keys(names)))
				break
			}
			before := parent
			if i > 0 {
				before = hex.EncodeToString(names[way[i-1]].SpanId)
			} else if strings.HasPrefix(name, "job ") {
				continue
			}
			if id := hex.EncodeToString(s.ParentSpanId); id != before {
				t.Errorf("%q is a child of %v, want %q", name, byID[id].GetName(), before)
			}
		}
	}
	if inside != nil && byID[inside[2]].GetName() != "agent GET" {
		t.Errorf("the program belongs to %v", byID[inside[2]])
	}

	// The metrics.
	if r, b := c.do("GET", "/metrics", ""); r.StatusCode != 401 || strings.Contains(b, "daytona_") {
		t.Errorf("without the token: %d %s", r.StatusCode, b)
	}
	f := c.families()
	for _, x := range []struct {
		name   string
		labels []string
		least  float64
	}{
		{"daytona_http_requests_total", []string{"service=api", "operation=createSandbox", "status=200"}, 1},
		{"daytona_http_requests_total", []string{"service=proxy", "operation=toolbox", "status=200"}, 1},
		{"daytona_http_requests_total", []string{"service=proxy", "operation=preview", "status=200"}, 1},
		{"daytona_http_request_duration_seconds", []string{"service=api", "operation=createSandbox", "class=2xx"}, 1},
		{"daytona_http_requests_in_flight", []string{"service=metrics"}, 1},
		{"daytona_http_response_bytes_total", []string{"service=api"}, 100},
		{"daytona_websockets", []string{"service=events"}, 1},
		{"daytona_event_clients", nil, 1},
		{"daytona_rate_limited_total", []string{"limiter=anonymous"}, 1},
		{"daytona_jobs_ended_total", []string{"type=CREATE_SANDBOX", "status=completed"}, 1},
		{"daytona_job_duration_seconds", []string{"type=CREATE_SANDBOX"}, 1},
		{"daytona_job_queue_age_seconds", nil, 0},
		{"daytona_sandboxes", []string{"region=us", "state=started"}, 1},
		{"daytona_runners", []string{"region=us", "state=ready"}, 1},
		{"daytona_runner_capacity", []string{"region=us", "resource=memory"}, 0.1},
		{"daytona_runner_free", []string{"region=us", "resource=cpu"}, -1e9},
		{"daytona_database_up", nil, 1},
		{"daytona_database_connections_max", nil, 1},
		{"daytona_database_connections", []string{"state=idle"}, 0},
		{"daytona_proxy_connections", nil, 1},
		{"daytona_event_bus_lag_seconds", nil, 0},
		{"daytona_event_bus_lost_total", nil, 0},
		{"daytona_build_info", nil, 1},
		{"go_goroutines", nil, 1},
		{"process_open_fds", nil, 1},
	} {
		if f[x.name] == nil || value(f[x.name], x.labels...) < x.least {
			t.Errorf("%s%v: %v, want at least %v", x.name, x.labels, f[x.name], x.least)
		}
		if f[x.name].GetHelp() == "" {
			t.Errorf("%s has no help", x.name)
		}
	}
	if n := value(f["daytona_http_requests_total"], "operation=createSandbox"); n != 1 {
		t.Errorf("%v sandboxes were created", n)
	}
	for name, family := range f {
		for _, m := range family.Metric {
			for _, l := range m.Label {
				if v := l.GetValue(); strings.HasPrefix(name, "daytona_") && (len(v) > 60 || uuid.Validate(v) == nil || strings.Contains(v, "hush") || strings.Contains(v, "BREW")) {
					t.Errorf("%s has a label of any value: %s=%q", name, l.GetName(), v)
				}
			}
		}
	}
	c.do("DELETE", "/api/sandbox/"+sb.ID, "")
}

func keys[V any](m map[string]V) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// Nobody gets metrics of a server that is not told who may, and a listener of
// their own has nothing else.
func TestMetricsAreNotPublic(t *testing.T) {
	w := httptest.NewRecorder()
	s := newServer(t)
	s.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != 404 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	w = httptest.NewRecorder()
	s.Metrics().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != 200 || !strings.Contains(w.Body.String(), "daytona_build_info") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := l.Addr().String()
	l.Close()
	start(t, nil, func(c *server.Config) { c.Metrics.Listen = at })
	for path, status := range map[string]int{"/metrics": 200, "/api/config": 404} {
		for {
			r, err := http.Get("http://" + at + path)
			if err != nil && t.Context().Err() == nil {
				continue // it does not listen yet
			}
			if err != nil {
				t.Fatal(err)
			}
			r.Body.Close()
			if r.StatusCode != status {
				t.Errorf("%s: %d", path, r.StatusCode)
			}
			break
		}
	}
}

// Every operation that a limiter guards says on every answer what is left.
func TestRateLimitHeaders(t *testing.T) {
	limits := server.LimitsConfig{}
	for _, name := range []string{"anonymous", "failed-auth", "authenticated", "sandbox-create", "sandbox-lifecycle"} {
		limits[name] = server.LimitConfig{TTL: 3600, Limit: 100000}
	}
	c := &client{t, start(t, nil, func(c *server.Config) { c.Limits = limits })}
	parameter := regexp.MustCompile(`\{[^}]*\}`)
	guarded := 0
	for _, r := range api.Routes() {
		limiter := string(r.Bucket)
		switch {
		case r.Access.Anyone:
			limiter = "anonymous"
		case r.Access.By&identity.Key == 0 || strings.HasPrefix(r.Path, "/admin/"):
			continue
		case limiter == "":
			limiter = "authenticated"
		}
		w, b := c.do(r.Method, "/api"+parameter.ReplaceAllString(r.Path, uuid.NewString()), `{}`)
		if w.StatusCode == 401 || w.StatusCode == 403 {
			continue // a token's, or another organization's
		}
		if w.StatusCode == 404 && strings.Contains(b, "Cannot "+r.Method) {
			continue // not served yet
		}
		guarded++
		h := w.Header
		if h.Get("X-RateLimit-Limit-"+limiter) != "100000" || h.Get("X-RateLimit-Remaining-"+limiter) == "" || h.Get("X-RateLimit-Reset-"+limiter) == "" {
			t.Errorf("%s: %d %v", r.ID, w.StatusCode, h)
		}
	}
	if guarded < 80 {
		t.Errorf("only %d operations are guarded", guarded)
	}
}

// The page of the API is whole in itself, and what it points to is there.
func TestAPIPage(t *testing.T) {
	w := httptest.NewRecorder()
	newServer(t).ServeHTTP(w, httptest.NewRequest("GET", "/api", nil))
	page := w.Body.String()
	if w.Code != 200 || w.Header().Get("Content-Type") != "text/html; charset=utf-8" {
		t.Fatalf("%d %v", w.Code, w.Header())
	}
	for _, want := range []string{`id="createSandbox"`, "/sandbox/{sandboxIdOrName}", "schema-CreateSandbox", `href="api-json"`} {
		if !strings.Contains(page, want) {
			t.Errorf("%q is missing", want)
		}
	}
	if m := regexp.MustCompile(`(?i)<(script|link|img|iframe|object|form)|(src|href)="?(https?:|//)|@import|url\(|ZgotmplZ|\son\w+=`).FindString(page); m != "" {
		t.Errorf("it has %q", m)
	}
	style := regexp.MustCompile(`(?s)<style>(.*?)</style>`).FindStringSubmatch(page)
	if style == nil {
		t.Fatal("it has no style")
	}
	sum := sha256.Sum256([]byte(style[1]))
	if policy := w.Header().Get("Content-Security-Policy"); !strings.Contains(policy, "default-src 'none'") || !strings.Contains(policy, "'sha256-"+base64.StdEncoding.EncodeToString(sum[:])+"'") {
		t.Errorf("%s", policy)
	}
	ids := map[string]bool{}
	for _, m := range regexp.MustCompile(`id="([^"]*)"`).FindAllStringSubmatch(page, -1) {
		if ids[m[1]] {
			t.Errorf("%s is there twice", m[1])
		}
		ids[m[1]] = true
	}
	for _, m := range regexp.MustCompile(`href="#([^"]*)"`).FindAllStringSubmatch(page, -1) {
		if !ids[m[1]] {
			t.Errorf("#%s is nowhere", m[1])
		}
	}
}
