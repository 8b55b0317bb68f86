package api

import (
	"context"
	"time"

	"github.com/daytona-go/daytona/internal/wire"
	"github.com/daytona-go/daytona/server/telemetry"
)

// InTelemetry is which records of a sandbox are asked for.
type InTelemetry struct {
	SandboxIDPath
	From  string `query:"from" required:"true" maxLength:"64"`
	To    string `query:"to" required:"true" maxLength:"64"`
	Page  int    `query:"page"`
	Limit int    `query:"limit"`
}

// RegisterTelemetry serves what is kept of the telemetry of sandboxes. sandbox
// returns the id of a sandbox of an organization.
func RegisterTelemetry(a *API, s *telemetry.Service, sandbox func(ctx context.Context, organizationID, idOrName string) (id string, err error)) {
	window := func(ctx context.Context, in *InTelemetry) (w telemetry.Window, err error) {
		w = telemetry.Window{OrganizationID: orgID(ctx), Page: in.Page, Limit: in.Limit}
		if w.SandboxID, err = sandbox(ctx, w.OrganizationID, in.Sandbox); err != nil {
			return w, err
		}
		if w.From, err = timeOf("from", in.From); err != nil {
			return w, err
		}
		w.To, err = timeOf("to", in.To)
		return w, err
	}
	pages := func(in *InTelemetry, total int) (page, all float64) {
		limit := in.Limit
		if limit == 0 {
			limit = 100
		}
		return float64(max(in.Page, 1)), float64((total + limit - 1) / limit)
	}
	Handle(a, "getSandboxLogs", func(ctx context.Context, in *struct {
		InTelemetry
		Severities []string `query:"severities,explode"`
		Search     string   `query:"search" maxLength:"1000"`
	}) (wire.PaginatedLogs, error) {
		w, err := window(ctx, &in.InTelemetry)
		if err != nil {
			return wire.PaginatedLogs{}, err
		}
		list, total, err := s.LogsOf(ctx, w, in.Severities, in.Search)
		out := wire.PaginatedLogs{Items: []wire.LogEntry{}, Total: float64(total)}
		out.Page, out.TotalPages = pages(&in.InTelemetry, total)
		for _, l := range list {
			out.Items = append(out.Items, wire.LogEntry{
				Timestamp: instant(l.At), Body: l.Body, SeverityText: l.Severity, SeverityNumber: new(float64(l.SeverityNumber)), ServiceName: l.Resource["service.name"],
				ResourceAttributes: l.Resource, LogAttributes: l.Attributes, TraceID: ptr(l.TraceID), SpanID: ptr(l.SpanID),
			})
		}
		return out, err
	})
	Handle(a, "getSandboxTraces", func(ctx context.Context, in *InTelemetry) (wire.PaginatedTraces, error) {
		w, err := window(ctx, in)
		if err != nil {
			return wire.PaginatedTraces{}, err
		}
		list, total, err := s.TracesOf(ctx, w)
		out := wire.PaginatedTraces{Items: []wire.TraceSummary{}, Total: float64(total)}
		out.Page, out.TotalPages = pages(in, total)
		for _, t := range list {
			status := "Unset"
			if t.Failed > 0 {
				status = "Error"
			}
			out.Items = append(out.Items, wire.TraceSummary{
				TraceID: t.ID, RootSpanName: t.Root, StartTime: instant(t.Begin), EndTime: instant(t.End), DurationMs: float64(t.End-t.Begin) / 1e6,
				SpanCount: float64(t.Spans), StatusCode: &status,
			})
		}
		return out, err
	})
	Handle(a, "getSandboxTraceSpans", func(ctx context.Context, in *struct {
		SandboxIDPath
		Trace string `path:"traceId"`
	}) ([]wire.TraceSpan, error) {
		id, err := sandbox(ctx, orgID(ctx), in.Sandbox)
		if err != nil {
			return nil, err
		}
		list, err := s.SpansOf(ctx, orgID(ctx), id, in.Trace)
		out := []wire.TraceSpan{}
		for _, x := range list {
			out = append(out, wire.TraceSpan{
				TraceID: x.TraceID, SpanID: x.SpanID, ParentSpanID: ptr(x.ParentID), SpanName: x.Name, Timestamp: instant(x.At), DurationNs: float64(x.Duration),
				SpanAttributes: x.Attributes, StatusCode: &x.Status, StatusMessage: ptr(x.Message),
			})
		}
		return out, err
	})
	Handle(a, "getSandboxMetrics", func(ctx context.Context, in *struct {
		SandboxIDPath
		From  string   `query:"from" required:"true" maxLength:"64"`
		To    string   `query:"to" required:"true" maxLength:"64"`
		Names []string `query:"metricNames,explode"`
	}) (wire.MetricsResponse, error) {
		w, err := window(ctx, &InTelemetry{SandboxIDPath: in.SandboxIDPath, From: in.From, To: in.To})
		if err != nil {
			return wire.MetricsResponse{}, err
		}
		list, err := s.PointsOf(ctx, w, in.Names)
		out := wire.MetricsResponse{Series: []wire.MetricSeries{}}
		for _, p := range list {
			if n := len(out.Series); n == 0 || out.Series[n-1].MetricName != p.Name {
				out.Series = append(out.Series, wire.MetricSeries{MetricName: p.Name, DataPoints: []wire.MetricDataPoint{}})
			}
			last := &out.Series[len(out.Series)-1]
			last.DataPoints = append(last.DataPoints, wire.MetricDataPoint{Timestamp: instant(p.At), Value: p.Value})
		}
		return out, err
	})
}

// instant is a time in nanoseconds since 1970.
func instant(at int64) string { return time.Unix(0, at).UTC().Format(time.RFC3339Nano) }
