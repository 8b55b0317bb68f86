// Package observe sees every request to the server pass, whichever part of it
// answers: it gives the request an id, writes one line about it, counts it, and
// makes it a span of a trace. What only the part that answers can know (what
// operation it is, who asks, about what) that part says to [From].
//
// Nothing of a request's target or headers is told: there are tokens in both.
package observe

import (
	"bufio"
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/daytona-go/daytona/server/identity"
)

// HeaderID is the header with the id of a request: a client may choose one, and
// every answer has it.
const HeaderID = "X-Request-Id"

// scope is what made the spans.
const scope = "github.com/daytona-go/daytona/server"

// Request is what is known of a request on its way. Its handler says what it
// knows; nothing else may, and not once the handler has returned.
type Request struct {
	// ID is the client's, if it is a good one, or else one that is made.
	ID string
	// Service is the part of the server that answers, such as "api".
	Service string
	// Operation is what is asked for: one of few words, such as an operationId.
	Operation string
	// Route is the pattern of the path, "" if it has none.
	Route string
	// Principal is who asks, nil for nobody.
	Principal *identity.Principal
	// SandboxID is what it is about.
	SandboxID string
	// By says how the caller proved itself, where that is not the principal's kind.
	By string
	// Limiter is the rate limiter that refused it.
	Limiter string
	// Err is why it failed. It is told of what is the server's fault only.
	Err error
}

type requestKey struct{}

// From returns the request of a context. Where nobody observes, it is one that
// nobody will look at.
func From(ctx context.Context) *Request {
	if q, ok := ctx.Value(requestKey{}).(*Request); ok {
		return q
	}
	return &Request{}
}

// Config says how to observe.
type Config struct {
	// Log gets a line for every request. Defaults to [slog.Default].
	Log *slog.Logger
	// Registerer gets the metrics. Defaults to none: nothing is counted.
	Registerer prometheus.Registerer
	// Tracer makes spans; see [Tracer]. Defaults to none.
	Tracer *Tracer
	// Address finds out where a request comes from. Defaults to its peer.
	Address func(*http.Request) netip.Addr
}

// Observer observes handlers. It is safe for concurrent use.
type Observer struct {
	config                  Config
	requests, limited, sent *prometheus.CounterVec
	durations               *prometheus.HistogramVec
	inFlight, upgraded      *prometheus.GaugeVec
}

// New returns an Observer. It panics if the registerer has its metrics already.
func New(c Config) *Observer {
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Address == nil {
		c.Address = func(r *http.Request) netip.Addr {
			a, _ := netip.ParseAddrPort(r.RemoteAddr)
			return a.Addr().Unmap()
		}
	}
	o := &Observer{
		config: c,
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "daytona_http_requests_total", Help: "Requests that were answered, by part of the server, operation and status.",
		}, []string{"service", "operation", "status"}),
		durations: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "daytona_http_request_duration_seconds", Help: "Time from a request's header to the end of its answer; upgraded connections are not in it.",
			Buckets: []float64{.001, .005, .01, .05, .1, .5, 1, 5, 10, 30, 60},
		}, []string{"service", "operation", "class"}),
		sent: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "daytona_http_response_bytes_total", Help: "Bytes of answers' bodies; upgraded connections are not in it.",
		}, []string{"service"}),
		inFlight: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "daytona_http_requests_in_flight", Help: "Requests that are being answered now.",
		}, []string{"service"}),
		upgraded: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "daytona_websockets", Help: "Upgraded connections (WebSockets and tunnels) that are open now.",
		}, []string{"service"}),
		limited: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "daytona_rate_limited_total", Help: "Requests that a rate limiter refused.",
		}, []string{"limiter"}),
	}
	if c.Registerer != nil {
		c.Registerer.MustRegister(o.requests, o.durations, o.sent, o.inFlight, o.upgraded, o.limited)
	}
	return o
}

// Handler observes what next, a part of the server, answers.
func (o *Observer) Handler(service string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q := &Request{ID: r.Header.Get(HeaderID), Service: service}
		if !goodID(q.ID) {
			q.ID = rand.Text()
		}
		ctx := context.WithValue(r.Context(), requestKey{}, q)
		began := time.Now()
		ctx, span := o.config.Tracer.serve(ctx, r)
		rec := &recorder{ResponseWriter: w, o: o, q: q}
		gauge := o.inFlight.WithLabelValues(service)
		gauge.Inc()
		defer func() {
			gauge.Dec()
			v := recover()
			if v != nil && v != http.ErrAbortHandler {
				o.config.Log.Error("handler panicked", "service", service, "panic", fmt.Sprint(v))
				q.Err = fmt.Errorf("panic: %v", v)
			}
			o.done(ctx, r, q, rec, span, began, v != nil)
			if v != nil {
				panic(v)
			}
		}()
		next.ServeHTTP(rec, r.WithContext(ctx))
	})
}

// goodID reports whether a client's id may be in a log: nothing long, nothing
// that is not a word.
func goodID(id string) bool {
	if id == "" || len(id) > 128 {
		return false
	}
	for _, c := range []byte(id) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && !strings.ContainsRune("-_.:", rune(c)) {
			return false
		}
	}
	return true
}

// done tells of a request that is over.
func (o *Observer) done(ctx context.Context, r *http.Request, q *Request, rec *recorder, span trace.Span, began time.Time, aborted bool) {
	status, took := rec.status, time.Since(began)
	switch {
	case status == 0 && aborted:
		status = 499 // nobody got an answer
	case status == 0:
		status = http.StatusOK
	}
	if rec.upgraded {
		o.upgraded.WithLabelValues(q.Service).Dec()
	} else {
		o.durations.WithLabelValues(q.Service, q.Operation, strconv.Itoa(status/100)+"xx").Observe(took.Seconds())
		o.sent.WithLabelValues(q.Service).Add(float64(rec.bytes))
	}
	o.requests.WithLabelValues(q.Service, q.Operation, strconv.Itoa(status)).Inc()
	if q.Limiter != "" {
		o.limited.WithLabelValues(q.Limiter).Inc()
	}
	level := slog.LevelInfo
	attrs := make([]slog.Attr, 0, 20)
	add := func(name, value string) {
		if value != "" {
			attrs = append(attrs, slog.String(name, value))
		}
	}
	add("id", q.ID)
	add("service", q.Service)
	add("operation", q.Operation)
	add("method", method(r.Method))
	add("route", q.Route)
	attrs = append(attrs, slog.Int("status", status), slog.Duration("duration", took), slog.Int64("bytes", rec.bytes))
	add("address", addressOf(o.config.Address(r)))
	kind, who := principal(q)
	add("principal", kind)
	add("user", who.UserID)
	add("key", who.KeyID)
	add("runner", who.RunnerID)
	add("organization", who.OrganizationID)
	add("sandbox", q.SandboxID)
	add("source", word(r.Header.Get("X-Daytona-Source")))
	add("limiter", q.Limiter)
	if c := trace.SpanContextFromContext(ctx); c.HasTraceID() {
		add("trace", c.TraceID().String())
	}
	if status >= 500 {
		level = slog.LevelError
		if q.Err != nil {
			attrs = append(attrs, slog.String("err", q.Err.Error()))
		}
	}
	o.config.Log.LogAttrs(ctx, level, "request", attrs...)
	if span != nil {
		finish(span, r, q, kind, who, status)
	}
}

// principal is what a line says of who asked.
func principal(q *Request) (kind string, who *identity.Principal) {
	if q.Principal == nil {
		return q.By, &identity.Principal{}
	}
	if kind = q.Principal.Kind.String(); q.By != "" {
		kind = q.By
	}
	return kind, q.Principal
}

func addressOf(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

// method is a method that the log and traces may have: the others are whatever
// a client likes.
func method(m string) string {
	switch m {
	case "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE":
		return m
	}
	return "other"
}

// word is a header's value if it is a short word, and nothing otherwise.
func word(v string) string {
	if len(v) > 64 || !goodID(v) {
		return ""
	}
	return v
}

// recorder notes what is answered.
type recorder struct {
	http.ResponseWriter
	o        *Observer
	q        *Request
	status   int
	bytes    int64
	upgraded bool
}

func (r *recorder) WriteHeader(status int) {
	if r.status < 200 {
		r.status = status
		// Here and not before: what is passed on may have one of its own.
		r.Header().Set(HeaderID, r.q.ID)
		if status == http.StatusSwitchingProtocols {
			r.upgrade()
		}
	}
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(b []byte) (int, error) {
	if r.status < 200 && r.status != http.StatusSwitchingProtocols {
		r.status = http.StatusOK
		r.Header().Set(HeaderID, r.q.ID)
	}
	n, err := r.ResponseWriter.Write(b)
	r.bytes += int64(n)
	return n, err
}

func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// Flush is for libraries that ask for an http.Flusher.
func (r *recorder) Flush() {
	if r.status == 0 {
		r.WriteHeader(http.StatusOK)
	}
	_ = http.NewResponseController(r.ResponseWriter).Flush() // what can't, doesn't
}

// Hijack is for WebSockets.
func (r *recorder) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	c, rw, err := http.NewResponseController(r.ResponseWriter).Hijack()
	if err == nil {
		if r.status < 200 {
			r.status = http.StatusSwitchingProtocols
			r.Header().Set(HeaderID, r.q.ID) // for who writes the answer itself
		}
		r.upgrade()
	}
	return c, rw, err
}

func (r *recorder) upgrade() {
	if !r.upgraded {
		r.upgraded = true
		r.o.upgraded.WithLabelValues(r.q.Service).Inc()
	}
}

// Tracer makes spans. A nil Tracer makes none, and costs nothing.
type Tracer struct {
	tracer trace.Tracer
}

// NewTracer returns the Tracer of a provider, nil if p is.
func NewTracer(p trace.TracerProvider) *Tracer {
	if p == nil {
		return nil
	}
	return &Tracer{p.Tracer(scope)}
}

// propagator is W3C's Trace Context. Baggage is not passed on: it is for those
// who trust each other.
var propagator = propagation.TraceContext{}

// serve begins the span of a request, which belongs to its client's trace.
func (t *Tracer) serve(ctx context.Context, r *http.Request) (context.Context, trace.Span) {
	if t == nil {
		return ctx, nil
	}
	return t.tracer.Start(propagator.Extract(ctx, propagation.HeaderCarrier(r.Header)), method(r.Method), trace.WithSpanKind(trace.SpanKindServer))
}

func finish(span trace.Span, r *http.Request, q *Request, kind string, who *identity.Principal, status int) {
	defer span.End()
	if !span.IsRecording() {
		return
	}
	name := method(r.Method)
	if q.Route != "" {
		name += " " + q.Route
	} else if q.Operation != "" {
		name += " " + q.Operation
	}
	span.SetName(name)
	attrs := []attribute.KeyValue{
		attribute.String("http.request.method", method(r.Method)), attribute.Int("http.response.status_code", status),
		attribute.String("daytona.service", q.Service), attribute.String("daytona.request.id", q.ID),
	}
	for _, x := range [][2]string{
		{"http.route", q.Route}, {"daytona.operation", q.Operation}, {"daytona.principal", kind}, {"user.id", who.UserID},
		{"daytona.organization.id", who.OrganizationID}, {"daytona.sandbox.id", q.SandboxID}, {"daytona.runner.id", who.RunnerID},
	} {
		if x[1] != "" {
			attrs = append(attrs, attribute.String(x[0], x[1]))
		}
	}
	span.SetAttributes(attrs...)
	if status >= 500 {
		// Not the error itself: it may name what only the log may.
		span.SetStatus(codes.Error, http.StatusText(status))
	}
}

// Start begins a span within ctx. end ends it, with the error that it ended in.
func (t *Tracer) Start(ctx context.Context, name string, kind trace.SpanKind, attrs ...attribute.KeyValue) (_ context.Context, end func(error)) {
	if t == nil {
		return ctx, func(error) {}
	}
	ctx, span := t.tracer.Start(ctx, name, trace.WithSpanKind(kind), trace.WithAttributes(attrs...))
	return ctx, func(err error) {
		if err != nil {
			span.SetStatus(codes.Error, "")
		}
		span.End()
	}
}

// Continue returns ctx as part of the trace that headers name.
func (t *Tracer) Continue(ctx context.Context, headers map[string]string) context.Context {
	if t == nil {
		return ctx
	}
	return propagator.Extract(ctx, propagation.MapCarrier(headers))
}

// Headers are what carries the trace of ctx on.
func (t *Tracer) Headers(ctx context.Context) map[string]string {
	if t == nil || !trace.SpanContextFromContext(ctx).IsValid() {
		return nil
	}
	m := propagation.MapCarrier{}
	propagator.Inject(ctx, m)
	return m
}

// Transport makes each request through next, which reaches agents by URLs whose
// host is a sandbox's id, a span that the agent is told of in the header
// traceparent. name is the span's; the path of the request is not told.
func (t *Tracer) Transport(name string, next http.RoundTripper) http.RoundTripper {
	if t == nil {
		return next
	}
	return &transport{t, name, next}
}

type transport struct {
	t    *Tracer
	name string
	next http.RoundTripper
}

func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx, span := t.t.tracer.Start(r.Context(), t.name+" "+method(r.Method), trace.WithSpanKind(trace.SpanKindClient),
		trace.WithAttributes(attribute.String("http.request.method", method(r.Method)), attribute.String("daytona.sandbox.id", r.URL.Host)))
	defer span.End()
	r = r.Clone(ctx)
	propagator.Inject(ctx, propagation.HeaderCarrier(r.Header))
	w, err := t.next.RoundTrip(r)
	if err != nil {
		span.SetStatus(codes.Error, "")
		return w, err
	}
	span.SetAttributes(attribute.Int("http.response.status_code", w.StatusCode))
	return w, nil
}
