// Package telemetry exports what the agent knows of its sandbox to a collector,
// by OTLP over HTTP: the entrypoint's output as logs, the use of resources as
// metrics, and requests as spans. It knows nothing of where these come from.
// What cannot be delivered is dropped after a while: nothing waits for a
// collector, and memory does not grow.
package telemetry

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/daytona-go/daytona/toolbox/wire"
)

const (
	// batchLimit is the size of a request, in bytes, and lineLimit that of a log
	// record's text: a longer line becomes several.
	batchLimit = 512 << 10
	lineLimit  = 32 << 10
	// flushInterval is how long records are collected for.
	flushInterval = 2 * time.Second
	// metricInterval is how often resources are measured.
	metricInterval = 30 * time.Second
	// postTimeout of a request, of which there are tries, with pauses in between.
	postTimeout = 10 * time.Second
	tries       = 4
	firstPause  = time.Second
	// farewell is how long Close takes at most.
	farewell = 2 * time.Second
)

// Options of an Exporter. Endpoint is required.
type Options struct {
	// Endpoint is the collector's base URL; /v1/logs and so on are added.
	Endpoint string
	// Headers of all requests. Defaults to none.
	Headers map[string]string
	// Resource describes the sandbox. Defaults to nothing.
	Resource []Attribute
	// Version of the agent.
	Version string
	// Metrics measures. Defaults to no metrics.
	Metrics func() wire.SystemMetrics
	// MetricInterval defaults to 30 s.
	MetricInterval time.Duration
	// Logger defaults to none.
	Logger *slog.Logger
}

// Exporter exports. Close it.
type Exporter struct {
	o      Options
	client *http.Client
	ctx    context.Context
	cancel context.CancelFunc
	done   chan struct{}

	mu     sync.Mutex
	header http.Header
	logs   message
	spans  message
	closed bool
	full   chan struct{} // has room for one: a batch is
	room   chan struct{} // closed when logs have been taken
}

// New returns an Exporter that has begun.
func New(o Options) (*Exporter, error) {
	u, err := url.Parse(o.Endpoint)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("telemetry endpoint %q: not an http or https URL", o.Endpoint)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.MetricInterval <= 0 {
		o.MetricInterval = metricInterval
	}
	e := &Exporter{o: o, done: make(chan struct{}), full: make(chan struct{}, 1), room: make(chan struct{}), header: http.Header{"Content-Type": {"application/x-protobuf"}}}
	for name, value := range o.Headers {
		e.header.Set(name, value)
	}
	e.client = &http.Client{
		Timeout:       postTimeout,
		Transport:     &http.Transport{MaxIdleConnsPerHost: 1, IdleConnTimeout: 2 * metricInterval},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, // the header has a secret
	}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	go e.run()
	return e, nil
}

// SetHeader sets a header of all requests from now on.
func (e *Exporter) SetHeader(name, value string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.header = e.header.Clone()
	e.header.Set(name, value)
}

// Close sends what there is, for two seconds at most.
func (e *Exporter) Close() {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return
	}
	e.closed = true
	close(e.room)
	e.mu.Unlock()
	e.wake()
	late := time.AfterFunc(farewell, e.cancel)
	<-e.done
	late.Stop()
	e.cancel()
	e.client.CloseIdleConnections()
}

func (e *Exporter) wake() {
	select {
	case e.full <- struct{}{}:
	default:
	}
}

// run sends batches. It sleeps while there is nothing, but for the metrics.
func (e *Exporter) run() {
	defer close(e.done)
	measure := time.NewTicker(e.o.MetricInterval)
	defer measure.Stop()
	flush := time.NewTicker(flushInterval)
	defer flush.Stop()
	for {
		metrics := false
		select {
		case <-e.full:
		case <-flush.C:
		case <-measure.C:
			metrics = true
		}
		e.mu.Lock()
		logs, spans, closed := e.logs, e.spans, e.closed
		e.logs, e.spans = nil, nil
		if logs != nil && !closed {
			close(e.room)
			e.room = make(chan struct{})
		}
		e.mu.Unlock()
		e.post("/v1/logs", logs)
		e.post("/v1/traces", spans)
		if (metrics || closed) && e.o.Metrics != nil {
			e.post("/v1/metrics", measured(e.o.Metrics()))
		}
		if closed {
			return
		}
	}
}

// measured are the metrics, by the names that Daytona's dashboards have.
func measured(m wire.SystemMetrics) (b message) {
	at := uint64(time.Now().UnixNano())
	part := func(used, of int64) float64 {
		if of <= 0 {
			return 0
		}
		return 100 * float64(used) / float64(of)
	}
	for _, g := range []struct {
		name, unit string
		value      float64
	}{
		{"cpu.utilization", "%", m.CPUUsedPct},
		{"cpu.limit", "cores", float64(m.CPUCount)},
		{"memory.utilization", "%", part(m.MemUsed, m.MemTotal)},
		{"memory.usage", "By", float64(m.MemUsed)},
		{"memory.limit", "By", float64(m.MemTotal)},
		{"memory.cache", "By", float64(m.MemCache)},
		{"filesystem.utilization", "%", part(m.DiskUsed, m.DiskTotal)},
		{"filesystem.usage", "By", float64(m.DiskUsed)},
		{"filesystem.available", "By", float64(m.DiskFree)},
		{"filesystem.total", "By", float64(m.DiskTotal)},
	} {
		b.gauge(at, "daytona.sandbox."+g.name, g.unit, g.value)
	}
	return b
}

// post sends records, again if the collector may take them later.
func (e *Exporter) post(route string, records message) {
	if len(records) == 0 {
		return
	}
	body := wrap(e.o.Resource, e.o.Version, records)
	pause := firstPause
	for try := 1; ; try++ {
		again, err := e.once(route, body)
		if err == nil {
			return
		}
		e.mu.Lock()
		closed := e.closed
		e.mu.Unlock()
		if !again || try == tries || closed || e.ctx.Err() != nil {
			e.o.Logger.Warn("telemetry is lost", "route", route, "bytes", len(body), "error", err)
			return
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-e.ctx.Done():
		case <-e.full: // more, or the end: it is not waited for longer
		}
		timer.Stop()
		pause *= 2
	}
}

func (e *Exporter) once(route string, body []byte) (again bool, err error) {
	r, err := http.NewRequestWithContext(e.ctx, http.MethodPost, strings.TrimRight(e.o.Endpoint, "/")+route, bytes.NewReader(body))
	if err != nil {
		return false, err
	}
	e.mu.Lock()
	r.Header = e.header.Clone()
	e.mu.Unlock()
	resp, err := e.client.Do(r)
	if err != nil {
		return true, err
	}
	defer resp.Body.Close()
	_, _ = io.CopyN(io.Discard, resp.Body, 64<<10)
	switch {
	case resp.StatusCode < 300:
		return false, nil
	case resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode >= 502 && resp.StatusCode <= 504: // as OTLP has it
		again = true
	}
	return again, fmt.Errorf("the collector answers %s", resp.Status)
}

// Lines returns a function that takes output, in pieces, and logs its lines. It
// blocks while a batch waits to be sent; false says that the exporter is closed.
// Call it with nothing at the end of the output.
func (e *Exporter) Lines() func(stderr bool, p []byte) bool {
	var part [2][]byte
	return func(stderr bool, p []byte) bool {
		if p == nil {
			return e.line(false, part[0]) && e.line(true, part[1])
		}
		i := 0
		if stderr {
			i = 1
		}
		for len(p) > 0 {
			n := bytes.IndexByte(p, '\n')
			end := n >= 0
			if !end {
				n = len(p)
			}
			n = min(n, lineLimit-len(part[i]))
			part[i] = append(part[i], p[:n]...)
			p = p[n:]
			whole := end && len(p) > 0 && p[0] == '\n'
			if whole {
				p = p[1:]
			}
			if whole || len(part[i]) == lineLimit {
				if !e.line(stderr, part[i]) {
					return false
				}
				part[i] = part[i][:0]
			}
		}
		return true
	}
}

func (e *Exporter) line(stderr bool, line []byte) bool {
	line = bytes.TrimSuffix(line, []byte("\r"))
	if len(line) == 0 {
		return true
	}
	severity, name := uint64(severityInfo), "INFO"
	if stderr {
		severity, name = severityError, "ERROR"
	}
	for {
		e.mu.Lock()
		if e.closed {
			e.mu.Unlock()
			return false
		}
		if len(e.logs) < batchLimit {
			e.logs.log(uint64(time.Now().UnixNano()), severity, name, strings.ToValidUTF8(string(line), "�"))
			e.mu.Unlock()
			return true
		}
		room := e.room
		e.mu.Unlock()
		e.wake()
		<-room
	}
}

// Span notes a request; status is its answer's, route its pattern. A span of the
// caller's, in the header traceparent, is its parent.
func (e *Exporter) Span(r *http.Request, route string, status int, begin time.Time) {
	s := span{name: r.Method + " " + route, begin: uint64(begin.UnixNano()), end: uint64(time.Now().UnixNano()), failed: status >= 500}
	if !s.inherit(r.Header.Get("Traceparent")) {
		_, _ = rand.Read(s.trace[:])
	}
	_, _ = rand.Read(s.id[:])
	// Not the path or the query: there may be secrets in them.
	s.attributes = []Attribute{{"http.request.method", r.Method}, {"http.route", route}, {"http.response.status_code", status}}
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.spans) < batchLimit && !e.closed {
		e.spans.span(&s)
	}
}

// inherit reads a traceparent of W3C's Trace Context.
func (s *span) inherit(header string) bool {
	f := strings.Split(header, "-")
	if len(f) < 4 || len(f[0]) != 2 || f[0] == "ff" || len(f[1]) != 32 || len(f[2]) != 16 {
		return false
	}
	trace, err1 := hex.DecodeString(f[1])
	parent, err2 := hex.DecodeString(f[2])
	if err1 != nil || err2 != nil {
		return false
	}
	copy(s.trace[:], trace)
	copy(s.parent[:], parent)
	if s.trace == [16]byte{} || s.parent == [8]byte{} {
		s.parent = [8]byte{}
		return false
	}
	return true
}
