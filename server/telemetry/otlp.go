package telemetry

import (
	"cmp"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"math"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	logs "go.opentelemetry.io/proto/otlp/logs/v1"
	metrics "go.opentelemetry.io/proto/otlp/metrics/v1"
	resource "go.opentelemetry.io/proto/otlp/resource/v1"
	trace "go.opentelemetry.io/proto/otlp/trace/v1"
	"golang.org/x/time/rate"
	"google.golang.org/protobuf/proto"

	"github.com/daytona-go/daytona"
)

// Path is where [Service] takes OTLP, with /v1/logs, /v1/traces or /v1/metrics
// behind it.
const Path = "/api/otlp"

const (
	// maxBody is the longest request, unpacked, in bytes, and parallel how many
	// are held in memory at a time.
	maxBody  = 8 << 20
	parallel = 16
	// maxText is the longest text of a record, in bytes; what is longer is cut.
	maxText = 32 << 10
	// maxAttributes is how many attributes of a record are kept, and maxValue how
	// many bytes of each.
	maxAttributes = 64
	maxValue      = 4 << 10
	// batch is how many rows are written at once.
	batch = 500
	// future is how far the clock of a sandbox may be ahead.
	future = time.Hour
)

// HeaderSandboxToken has the auth token of the sandbox that a request is about.
// Without it, a request is a runner's, with its key as the bearer.
const HeaderSandboxToken = "Sandbox-Auth-Token"

// received is what a request has.
type received struct {
	logs    []Log
	spans   []Span
	samples []Sample
}

// ServeHTTP takes logs, spans and metrics, by OTLP over HTTP in protobuf.
func (s *Service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	fail := func(status int, message string) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(map[string]any{"statusCode": status, "message": message})
	}
	signal, ok := strings.CutPrefix(r.URL.Path, Path+"/v1/")
	if !ok || signal != "logs" && signal != "traces" && signal != "metrics" {
		fail(http.StatusNotFound, "there are /v1/logs, /v1/traces and /v1/metrics")
		return
	}
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		fail(http.StatusMethodNotAllowed, "telemetry is sent by POST")
		return
	}
	owner, err := s.who(r)
	switch daytona.KindOf(err) {
	case daytona.KindNotFound, daytona.KindUnauthorized, daytona.KindForbidden:
		if err != nil {
			fail(http.StatusUnauthorized, "Invalid credentials")
			return
		}
	}
	if err != nil {
		s.Log.Error("who sends telemetry can't be found out", "err", err)
		fail(http.StatusServiceUnavailable, "try again later")
		return
	}
	if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/x-protobuf" {
		fail(http.StatusUnsupportedMediaType, "telemetry is taken as application/x-protobuf")
		return
	}
	select {
	case s.posts <- struct{}{}:
		defer func() { <-s.posts }()
	default:
		w.Header().Set("Retry-After", "1")
		fail(http.StatusServiceUnavailable, "there is too much at once: try again later")
		return
	}
	body, status, err := read(w, r)
	if err != nil {
		fail(status, err.Error())
		return
	}
	all, rejected, err := s.decode(r.Context(), signal, body, owner)
	if errors.Is(err, daytona.ErrInvalid) {
		fail(http.StatusBadRequest, "the request is no OTLP")
		return
	}
	if err == nil {
		err = s.keep(r.Context(), all)
	}
	if err != nil {
		s.Log.Error("telemetry can't be kept", "err", err)
		fail(http.StatusServiceUnavailable, "try again later")
		return
	}
	w.Header().Set("Content-Type", "application/x-protobuf")
	if rejected > 0 {
		// ExportPartialSuccess is the same for each signal: field 1 of the answer,
		// in which field 1 is how many and field 2 why.
		var partial []byte
		partial = append(append(partial, 1<<3), varint(uint64(rejected))...)
		const why = "too many, too old or of no sandbox here"
		partial = append(append(partial, 2<<3|2, byte(len(why))), why...)
		_, _ = w.Write(append([]byte{1<<3 | 2, byte(len(partial))}, partial...))
	}
}

func varint(v uint64) []byte {
	var b []byte
	for ; v >= 0x80; v >>= 7 {
		b = append(b, byte(v)|0x80)
	}
	return append(b, byte(v))
}

// who returns a function that says whose a resource is.
func (s *Service) who(r *http.Request) (func(ctx context.Context, sandboxID string) (Owner, error), error) {
	if token := r.Header.Get(HeaderSandboxToken); token != "" {
		o, err := s.Sources.BySandboxToken(r.Context(), token)
		// Whatever it says it is, it is the sandbox of the token.
		return func(context.Context, string) (Owner, error) { return o, nil }, err
	}
	key, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok || key == "" {
		return nil, &daytona.Error{Kind: daytona.KindUnauthorized}
	}
	runnerID, err := s.Sources.ByRunnerKey(r.Context(), key)
	if err != nil {
		return nil, err
	}
	if runnerID == "" {
		return nil, &daytona.Error{Kind: daytona.KindUnauthorized}
	}
	return func(ctx context.Context, sandboxID string) (Owner, error) {
		if sandboxID == "" {
			return Owner{}, &daytona.Error{Kind: daytona.KindNotFound}
		}
		return s.Sources.OnRunner(ctx, runnerID, sandboxID)
	}, nil
}

func read(w http.ResponseWriter, r *http.Request) (body []byte, status int, err error) {
	var in io.Reader = http.MaxBytesReader(w, r.Body, maxBody)
	switch r.Header.Get("Content-Encoding") {
	case "", "identity":
	case "gzip":
		z, err := gzip.NewReader(in)
		if err != nil {
			return nil, http.StatusBadRequest, errors.New("the body is no gzip")
		}
		in = z
	default:
		return nil, http.StatusUnsupportedMediaType, errors.New("a body may be packed by gzip only")
	}
	body, err = io.ReadAll(io.LimitReader(in, maxBody+1))
	if _, long := errors.AsType[*http.MaxBytesError](err); long || len(body) > maxBody {
		return nil, http.StatusRequestEntityTooLarge, errors.New("the body is too long")
	}
	if err != nil {
		return nil, http.StatusBadRequest, errors.New("the body can't be read")
	}
	return body, 0, nil
}

// decode returns what a request has, but for what is too much, too old or not
// of a sandbox here: of that, how many.
func (s *Service) decode(ctx context.Context, signal string, body []byte, owner func(context.Context, string) (Owner, error)) (all received, rejected int, err error) {
	bad := func(err error) error {
		return &daytona.Error{Kind: daytona.KindInvalid, Message: "it is no OTLP", Err: err}
	}
	now := time.Now()
	oldest, newest := now.Add(-s.Retention).UnixNano(), now.Add(future).UnixNano()
	// take finds whose a resource is, and whether one more record is taken.
	var missing bool
	var o Owner
	var limiter *rate.Limiter
	of := func(r *resource.Resource) error {
		var err error
		o, err = owner(ctx, sandboxOf(r))
		if missing = errors.Is(err, daytona.ErrNotFound); missing {
			return nil
		} else if err != nil {
			return err
		}
		limiter = s.limiter(o.SandboxID)
		return nil
	}
	take := func(at int64) bool {
		if missing || at < oldest || at > newest || !limiter.AllowN(now, 1) {
			rejected++
			return false
		}
		return true
	}
	switch signal {
	case "logs":
		var m logs.LogsData
		if err := proto.Unmarshal(body, &m); err != nil {
			return all, 0, bad(err)
		}
		for _, r := range m.ResourceLogs {
			if err := of(r.Resource); err != nil {
				return all, 0, err
			}
			described := attributes(r.Resource.GetAttributes())
			for _, sc := range r.ScopeLogs {
				for _, l := range sc.LogRecords {
					at := int64(cmp.Or(l.TimeUnixNano, l.ObservedTimeUnixNano, uint64(now.UnixNano())))
					if !take(at) {
						continue
					}
					all.logs = append(all.logs, Log{
						ID: id(), OrganizationID: o.OrganizationID, SandboxID: o.SandboxID, At: at, Severity: cut(l.SeverityText, 64), SeverityNumber: int(l.SeverityNumber),
						Body: cut(text(l.Body), maxText), Resource: described, Attributes: attributes(l.Attributes), TraceID: hexOf(l.TraceId, 16), SpanID: hexOf(l.SpanId, 8),
					})
				}
			}
		}
	case "traces":
		var m trace.TracesData
		if err := proto.Unmarshal(body, &m); err != nil {
			return all, 0, bad(err)
		}
		for _, r := range m.ResourceSpans {
			if err := of(r.Resource); err != nil {
				return all, 0, err
			}
			for _, sc := range r.ScopeSpans {
				for _, x := range sc.Spans {
					at := int64(x.StartTimeUnixNano)
					traceID, spanID := hexOf(x.TraceId, 16), hexOf(x.SpanId, 8)
					if traceID == "" || spanID == "" || x.EndTimeUnixNano < x.StartTimeUnixNano || int64(x.EndTimeUnixNano) > newest {
						rejected++
						continue
					}
					if !take(at) {
						continue
					}
					status := "Unset"
					switch x.Status.GetCode() {
					case trace.Status_STATUS_CODE_OK:
						status = "Ok"
					case trace.Status_STATUS_CODE_ERROR:
						status = "Error"
					}
					all.spans = append(all.spans, Span{
						ID: id(), OrganizationID: o.OrganizationID, SandboxID: o.SandboxID, At: at, Duration: int64(x.EndTimeUnixNano - x.StartTimeUnixNano),
						TraceID: traceID, SpanID: spanID, ParentID: hexOf(x.ParentSpanId, 8), Name: cut(x.Name, maxValue), Attributes: attributes(x.Attributes),
						Status: status, Message: cut(x.Status.GetMessage(), maxValue),
					})
				}
			}
		}
	case "metrics":
		var m metrics.MetricsData
		if err := proto.Unmarshal(body, &m); err != nil {
			return all, 0, bad(err)
		}
		type when struct {
			sandbox string
			at      int64
		}
		places := map[when]int{}
		for _, r := range m.ResourceMetrics {
			if err := of(r.Resource); err != nil {
				return all, 0, err
			}
			for _, sc := range r.ScopeMetrics {
				for _, x := range sc.Metrics {
					points := x.GetGauge().GetDataPoints()
					if sum := x.GetSum(); sum != nil {
						points = sum.DataPoints
					}
					// Of histograms there is no one value.
					rejected += len(x.GetHistogram().GetDataPoints()) + len(x.GetExponentialHistogram().GetDataPoints()) + len(x.GetSummary().GetDataPoints())
					for _, p := range points {
						v := p.GetAsDouble()
						if i, ok := p.Value.(*metrics.NumberDataPoint_AsInt); ok {
							v = float64(i.AsInt)
						}
						if math.IsNaN(v) || math.IsInf(v, 0) || x.Name == "" {
							rejected++
							continue
						}
						if !take(int64(p.TimeUnixNano)) {
							continue
						}
						key := when{o.SandboxID, int64(p.TimeUnixNano)}
						n, ok := places[key]
						if !ok {
							n = len(all.samples)
							places[key] = n
							all.samples = append(all.samples, Sample{ID: id(), OrganizationID: o.OrganizationID, SandboxID: o.SandboxID, At: key.at, Measured: map[string]float64{}})
						}
						all.samples[n].Measured[cut(x.Name, 255)] = v
					}
				}
			}
		}
	}
	return all, rejected, nil
}

func (s *Service) limiter(sandboxID string) *rate.Limiter {
	s.mu.Lock()
	defer s.mu.Unlock()
	l, ok := s.limiters[sandboxID]
	if !ok {
		l = rate.NewLimiter(rate.Limit(s.Rate), s.Burst)
		s.limiters[sandboxID] = l
	}
	return l
}

func (s *Service) keep(ctx context.Context, all received) error {
	return s.DB.Tx(ctx, func(ctx context.Context) error {
		for rows := range slices.Chunk(all.logs, batch) {
			if _, err := s.DB.All(ctx).NewInsert().Model(&rows).Exec(ctx); err != nil {
				return err
			}
		}
		for rows := range slices.Chunk(all.spans, batch) {
			if _, err := s.DB.All(ctx).NewInsert().Model(&rows).Exec(ctx); err != nil {
				return err
			}
		}
		for rows := range slices.Chunk(all.samples, batch) {
			if _, err := s.DB.All(ctx).NewInsert().Model(&rows).Exec(ctx); err != nil {
				return err
			}
		}
		return nil
	})
}

// id is a name of a record: the later, the greater.
func id() string {
	v, err := uuid.NewV7()
	if err != nil {
		panic(err) // the system has no random numbers
	}
	return v.String()
}

// sandboxOf is the sandbox that a resource says it is.
func sandboxOf(r *resource.Resource) string {
	for _, a := range r.GetAttributes() {
		if a.Key == "service.name" {
			name, _ := strings.CutPrefix(a.Value.GetStringValue(), "sandbox-")
			return name
		}
	}
	return ""
}

// cut makes text valid and short enough; no database takes a zero byte.
func cut(s string, most int) string {
	s = strings.ReplaceAll(strings.ToValidUTF8(s, "�"), "\x00", "�")
	if len(s) <= most {
		return s
	}
	for most > 0 && !utf8.RuneStart(s[most]) {
		most--
	}
	return s[:most]
}

// hexOf is an id as text; "" if it is none.
func hexOf(b []byte, size int) string {
	if len(b) != size || !slices.ContainsFunc(b, func(c byte) bool { return c != 0 }) {
		return ""
	}
	return hex.EncodeToString(b)
}

func attributes(list []*common.KeyValue) map[string]string {
	m := map[string]string{}
	for _, a := range list[:min(len(list), maxAttributes)] {
		m[cut(a.Key, 255)] = cut(text(a.Value), maxValue)
	}
	return m
}

// text is a value as one reads it: text as it is, what has parts as JSON.
func text(v *common.AnyValue) string {
	if s, ok := v.GetValue().(*common.AnyValue_StringValue); ok {
		return s.StringValue
	}
	switch x := plain(v, 0).(type) {
	case nil:
		return ""
	case string:
		return x
	default:
		b, err := json.Marshal(x)
		if err != nil {
			return ""
		}
		return string(b)
	}
}

func plain(v *common.AnyValue, depth int) any {
	if depth > 8 {
		return "…"
	}
	switch x := v.GetValue().(type) {
	case *common.AnyValue_StringValue:
		return x.StringValue
	case *common.AnyValue_BoolValue:
		return x.BoolValue
	case *common.AnyValue_IntValue:
		return json.Number(strconv.FormatInt(x.IntValue, 10))
	case *common.AnyValue_DoubleValue:
		if math.IsNaN(x.DoubleValue) || math.IsInf(x.DoubleValue, 0) {
			return strconv.FormatFloat(x.DoubleValue, 'g', -1, 64)
		}
		return x.DoubleValue
	case *common.AnyValue_BytesValue:
		return base64.StdEncoding.EncodeToString(x.BytesValue)
	case *common.AnyValue_ArrayValue:
		list := []any{}
		for _, e := range x.ArrayValue.GetValues() {
			list = append(list, plain(e, depth+1))
		}
		return list
	case *common.AnyValue_KvlistValue:
		m := map[string]any{}
		for _, e := range x.KvlistValue.GetValues() {
			m[e.Key] = plain(e.Value, depth+1)
		}
		return m
	}
	return nil
}

func upper(list []string) []string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = strings.ToUpper(s)
	}
	return out
}
