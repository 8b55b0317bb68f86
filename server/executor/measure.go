package executor

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"

	common "go.opentelemetry.io/proto/otlp/common/v1"
	metrics "go.opentelemetry.io/proto/otlp/metrics/v1"
	otlp "go.opentelemetry.io/proto/otlp/resource/v1"
	"google.golang.org/protobuf/proto"

	"github.com/daytona-go/daytona"
)

const (
	// measurers is how many sandboxes are asked at a time, for measureTime at
	// most; measureBatch is how many are told of in one request.
	measurers    = 8
	measureTime  = 5 * time.Second
	measureBatch = 200
)

// measureLoop tells the server what sandboxes use. They can't do so themselves:
// the server may be where they can't reach it.
func (e *Executor) measureLoop(ctx context.Context) {
	if e.c.Measure < 0 {
		return
	}
	tick := time.NewTicker(e.c.Measure)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if err := e.measure(ctx); err != nil && ctx.Err() == nil {
			e.log.Warn("telling the server what sandboxes use failed", "err", err)
		}
	}
}

func (e *Executor) measure(ctx context.Context) error {
	var mu sync.Mutex
	var wg sync.WaitGroup
	var all []*metrics.ResourceMetrics
	slots := make(chan struct{}, measurers)
	var failed error
	for sb, err := range e.c.Client.List(ctx, nil) {
		if err != nil {
			failed = err
			break
		}
		if info := sb.Info(); info.State != daytona.StateStarted || !e.ours(info) {
			continue
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			ctx, cancel := context.WithTimeout(ctx, measureTime)
			defer cancel()
			m, err := sb.Metrics(ctx)
			if err != nil {
				return // it has stopped, or is too busy
			}
			v := measured(sb.Name(), m)
			mu.Lock()
			defer mu.Unlock()
			all = append(all, v)
		})
	}
	wg.Wait()
	for len(all) > 0 {
		n := min(len(all), measureBatch)
		body, err := proto.Marshal(&metrics.MetricsData{ResourceMetrics: all[:n]})
		if err == nil {
			err = e.api.post(ctx, "/otlp/v1/metrics", "application/x-protobuf", body)
		}
		if err != nil {
			return errors.Join(failed, err)
		}
		all = all[n:]
	}
	return failed
}

// measured is what a sandbox uses, by the names that Daytona's dashboards have.
func measured(id string, m daytona.Metrics) *metrics.ResourceMetrics {
	at := uint64(time.Now().UnixNano())
	part := func(used, of int64) float64 {
		if of <= 0 {
			return 0
		}
		return 100 * float64(used) / float64(of)
	}
	scope := &metrics.ScopeMetrics{Scope: &common.InstrumentationScope{Name: "daytona"}}
	for _, g := range []struct {
		name, unit string
		value      float64
	}{
		{"cpu.utilization", "%", m.CPUPercent},
		{"cpu.limit", "cores", float64(m.CPUCount)},
		{"memory.utilization", "%", part(m.MemoryUsed, m.MemoryTotal)},
		{"memory.usage", "By", float64(m.MemoryUsed)},
		{"memory.limit", "By", float64(m.MemoryTotal)},
		{"memory.cache", "By", float64(m.MemoryCache)},
		{"filesystem.utilization", "%", part(m.DiskUsed, m.DiskTotal)},
		{"filesystem.usage", "By", float64(m.DiskUsed)},
		{"filesystem.available", "By", float64(m.DiskFree)},
		{"filesystem.total", "By", float64(m.DiskTotal)},
	} {
		scope.Metrics = append(scope.Metrics, &metrics.Metric{
			Name: "daytona.sandbox." + g.name, Unit: g.unit,
			Data: &metrics.Metric_Gauge{Gauge: &metrics.Gauge{DataPoints: []*metrics.NumberDataPoint{{
				TimeUnixNano: at, Value: &metrics.NumberDataPoint_AsDouble{AsDouble: g.value},
			}}}},
		})
	}
	return &metrics.ResourceMetrics{
		Resource: &otlp.Resource{Attributes: []*common.KeyValue{{
			Key: "service.name", Value: &common.AnyValue{Value: &common.AnyValue_StringValue{StringValue: "sandbox-" + id}},
		}}},
		ScopeMetrics: []*metrics.ScopeMetrics{scope},
	}
}

// post sends what is not JSON; only whether it worked counts of the answer.
func (a *apiClient) post(ctx context.Context, path, contentType string, body []byte) error {
	ctx, cancel := context.WithTimeout(ctx, usual)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, a.base+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	r.Header.Set("Authorization", "Bearer "+a.key)
	r.Header.Set("User-Agent", "daytona-runner")
	r.Header.Set("Content-Type", contentType)
	w, err := a.http.Do(r)
	if err != nil {
		return &daytona.Error{Kind: daytona.KindUnavailable, Op: http.MethodPost, Subject: path, Err: err}
	}
	defer w.Body.Close()
	_, _ = io.CopyN(io.Discard, w.Body, 64<<10)
	if w.StatusCode < 200 || w.StatusCode > 299 {
		return &daytona.Error{Kind: daytona.KindOfStatus(w.StatusCode), Op: http.MethodPost, Subject: path, Message: w.Status}
	}
	return nil
}
