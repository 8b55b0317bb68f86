// Package telemetry keeps what sandboxes say of themselves: logs, spans and
// metrics, which come by OTLP over HTTP from agents and runners. A window of it
// is kept, by time and for each sandbox by number, and what comes faster than
// is kept is dropped.
package telemetry

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/uptrace/bun"
	"golang.org/x/time/rate"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/store"
)

// Owner is a sandbox and whose it is.
type Owner struct{ SandboxID, OrganizationID string }

// Sources knows who may say what.
type Sources interface {
	// BySandboxToken returns the sandbox that has an auth token: KindNotFound
	// if none has.
	BySandboxToken(ctx context.Context, token string) (Owner, error)
	// ByRunnerKey returns the runner that has a key: KindUnauthorized or
	// KindNotFound if none has.
	ByRunnerKey(ctx context.Context, key string) (runnerID string, err error)
	// OnRunner returns a sandbox of a runner: KindNotFound if it has no such one.
	OnRunner(ctx context.Context, runnerID, sandboxID string) (Owner, error)
}

// Config says what a Service works with. DB and Sources are required.
type Config struct {
	DB      *store.DB
	Sources Sources
	// Retention is how long records are kept. Defaults to a day.
	Retention time.Duration
	// Logs, Spans and Samples are how many of each are kept of a sandbox, the
	// newest. They default to 10,000. A sample is all that was measured at once.
	Logs, Spans, Samples int
	// Rate and Burst are how many records a second a sandbox may send, and how
	// many at once. They default to 50 and 5,000.
	Rate  float64
	Burst int
	Log   *slog.Logger
}

// Service has the telemetry of sandboxes.
type Service struct {
	Config

	mu       sync.Mutex
	limiters map[string]*rate.Limiter // by sandbox
	posts    chan struct{}
}

// New returns a Service.
func New(c Config) *Service {
	if c.Retention == 0 {
		c.Retention = 24 * time.Hour
	}
	for _, d := range []struct {
		v *int
		d int
	}{{&c.Logs, 10_000}, {&c.Spans, 10_000}, {&c.Samples, 10_000}, {&c.Burst, 5_000}} {
		if *d.v == 0 {
			*d.v = d.d
		}
	}
	if c.Rate == 0 {
		c.Rate = 50
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	return &Service{Config: c, limiters: map[string]*rate.Limiter{}, posts: make(chan struct{}, parallel)}
}

const (
	sweepLease = "telemetry-sweep"
	sweepEvery = time.Minute
)

// Run forgets what is too old or too much, in one server of all, until ctx
// ends.
func (s *Service) Run(ctx context.Context) error {
	holder := rand.Text()
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return s.DB.Yield(context.WithoutCancel(ctx), sweepLease, holder)
		}
		s.forgetLimiters()
		_, ok, err := s.DB.Lease(ctx, sweepLease, holder, 3*sweepEvery)
		if err == nil && ok {
			err = s.Sweep(ctx, time.Now())
		}
		if err != nil && ctx.Err() == nil {
			s.Log.Error("old telemetry can't be deleted", "err", err)
		}
	}
}

// forgetLimiters forgets those that would let everything pass.
func (s *Service) forgetLimiters() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, l := range s.limiters {
		if l.Tokens() >= float64(s.Burst) {
			delete(s.limiters, id)
		}
	}
}

// kinds are the tables, and how much of each is kept of a sandbox.
func (s *Service) kinds() []struct {
	model any
	most  int
} {
	return []struct {
		model any
		most  int
	}{{(*Log)(nil), s.Logs}, {(*Span)(nil), s.Spans}, {(*Sample)(nil), s.Samples}}
}

// Sweep deletes what is too old at a time, and of each sandbox what is more
// than is kept. It sees all organizations.
func (s *Service) Sweep(ctx context.Context, now time.Time) error {
	for _, k := range s.kinds() {
		if _, err := s.DB.All(ctx).NewDelete().Model(k.model).Where("at < ?", now.Add(-s.Retention).UnixNano()).Exec(ctx); err != nil {
			return err
		}
		var full []string
		err := s.DB.All(ctx).NewSelect().Model(k.model).Column("sandbox_id").Group("sandbox_id").Having("COUNT(*) > ?", k.most).Scan(ctx, &full)
		if err != nil {
			return err
		}
		for _, id := range full {
			var last int64
			err := s.DB.All(ctx).NewSelect().Model(k.model).Column("at").Where("sandbox_id = ?", id).Order("at DESC").Offset(int64(k.most)).Limit(1).Scan(ctx, &last)
			if store.IsNone(err) {
				continue
			} else if err != nil {
				return err
			}
			if _, err := s.DB.All(ctx).NewDelete().Model(k.model).Where("sandbox_id = ? AND at <= ?", id, last).Exec(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// DeleteAll deletes what there is of an organization that is being deleted.
func (s *Service) DeleteAll(ctx context.Context, organizationID string) error {
	for _, k := range s.kinds() {
		if _, err := s.DB.In(ctx, organizationID).Delete(k.model).Exec(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Log is a record of a log. At and the like are nanoseconds since 1970.
type Log struct {
	bun.BaseModel `bun:"table:telemetry_logs,alias:log_"`

	ID             string            `bun:"id,pk"`
	OrganizationID string            `bun:"organization_id,notnull"`
	SandboxID      string            `bun:"sandbox_id,notnull"`
	At             int64             `bun:"at,notnull"`
	Severity       string            `bun:"severity,notnull"`
	SeverityNumber int               `bun:"severity_number,notnull"`
	Body           string            `bun:"body,notnull"`
	Resource       map[string]string `bun:"resource,notnull"`
	Attributes     map[string]string `bun:"attributes,notnull"`
	TraceID        string            `bun:"trace_id,notnull"`
	SpanID         string            `bun:"span_id,notnull"`
}

// Span is a span of a trace. Duration is in nanoseconds; Status is Unset, Ok or
// Error.
type Span struct {
	bun.BaseModel `bun:"table:telemetry_spans,alias:span"`

	ID             string            `bun:"id,pk"`
	OrganizationID string            `bun:"organization_id,notnull"`
	SandboxID      string            `bun:"sandbox_id,notnull"`
	At             int64             `bun:"at,notnull"`
	Duration       int64             `bun:"duration,notnull"`
	TraceID        string            `bun:"trace_id,notnull"`
	SpanID         string            `bun:"span_id,notnull"`
	ParentID       string            `bun:"parent_id,notnull"`
	Name           string            `bun:"name,notnull"`
	Attributes     map[string]string `bun:"attributes,notnull"`
	Status         string            `bun:"status,notnull"`
	Message        string            `bun:"message,notnull"`
}

// Sample is what was measured at a time.
type Sample struct {
	bun.BaseModel `bun:"table:telemetry_samples,alias:sample"`

	ID             string             `bun:"id,pk"`
	OrganizationID string             `bun:"organization_id,notnull"`
	SandboxID      string             `bun:"sandbox_id,notnull"`
	At             int64              `bun:"at,notnull"`
	Measured       map[string]float64 `bun:"measured,notnull"`
}

// Point is a value of a metric.
type Point struct {
	At    int64
	Name  string
	Value float64
}

// Window says which records of a sandbox to return.
type Window struct {
	OrganizationID, SandboxID string
	From, To                  time.Time
	// Page counts from 1; Limit defaults to 100 and is at most 1000.
	Page, Limit int
}

func invalid(format string, args ...any) error {
	return &daytona.Error{Kind: daytona.KindInvalid, Message: fmt.Sprintf(format, args...)}
}

func (w *Window) check() error {
	if w.From.IsZero() || w.To.IsZero() {
		return invalid("from and to must be valid ISO 8601 date strings")
	}
	if w.To.Before(w.From) {
		return invalid("from must not be after to")
	}
	if w.Page == 0 {
		w.Page = 1
	}
	if w.Limit == 0 {
		w.Limit = 100
	}
	if w.Page < 1 || w.Page > 1_000_000 {
		return invalid("page must be 1 to 1000000, not %d", w.Page)
	}
	if w.Limit < 1 || w.Limit > 1000 {
		return invalid("limit must be 1 to 1000, not %d", w.Limit)
	}
	return nil
}

// nanoseconds is a time as the tables have it: those that they can't have are
// the ends of what they can.
func nanoseconds(t time.Time) int64 {
	switch {
	case t.Year() < 1970:
		return 0
	case t.Year() > 2200:
		return time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC).UnixNano()
	}
	return t.UnixNano()
}

func (s *Service) in(ctx context.Context, w Window, model any) *bun.SelectQuery {
	return s.DB.In(ctx, w.OrganizationID).Select(model).
		Where("sandbox_id = ? AND at >= ? AND at <= ?", w.SandboxID, nanoseconds(w.From), nanoseconds(w.To))
}

func (w Window) page(q *bun.SelectQuery) *bun.SelectQuery {
	return q.Offset(int64(w.Page-1) * int64(w.Limit)).Limit(int64(w.Limit))
}

// LogsOf returns a page of the logs of a sandbox, newest first, and how many
// there are on all pages. severities and search, a part of the text in any
// case, leave out others.
func (s *Service) LogsOf(ctx context.Context, w Window, severities []string, search string) ([]Log, int, error) {
	if err := w.check(); err != nil {
		return nil, 0, err
	}
	if len(severities) > 50 || len(search) > 1000 {
		return nil, 0, invalid("there may be 50 severities, and 1000 bytes to search for")
	}
	all := []Log{}
	q := s.in(ctx, w, &all)
	if len(severities) > 0 {
		q = q.Where("UPPER(severity) IN (?)", bun.List(upper(severities)))
	}
	if search != "" {
		q = q.Where(`LOWER(body) LIKE LOWER(?) ESCAPE '\'`, "%"+store.Escape(search)+"%")
	}
	n, err := q.Count(ctx)
	if err != nil {
		return nil, 0, err
	}
	return all, int(n), w.page(q.Order("at DESC", "id DESC")).Scan(ctx)
}

// Trace is what is known of a trace.
type Trace struct {
	ID     string `bun:"trace_id"`
	Begin  int64  `bun:"begun"`
	End    int64  `bun:"ended"`
	Spans  int    `bun:"spans"`
	Failed int    `bun:"failed"`
	Root   string `bun:"-"`
}

// TracesOf returns a page of the traces that begin in a time, newest first, and
// how many there are on all pages.
func (s *Service) TracesOf(ctx context.Context, w Window) ([]Trace, int, error) {
	if err := w.check(); err != nil {
		return nil, 0, err
	}
	var n int
	if err := s.in(ctx, w, (*Span)(nil)).ColumnExpr("COUNT(DISTINCT trace_id)").Scan(ctx, &n); err != nil {
		return nil, 0, err
	}
	all := []Trace{}
	q := s.in(ctx, w, (*Span)(nil)).ColumnExpr("trace_id, MIN(at) AS begun, MAX(at + duration) AS ended, COUNT(*) AS spans").
		ColumnExpr("SUM(CASE WHEN status = 'Error' THEN 1 ELSE 0 END) AS failed").GroupExpr("trace_id").OrderExpr("MIN(at) DESC, trace_id")
	if err := w.page(q).Scan(ctx, &all); err != nil || len(all) == 0 {
		return all, n, err
	}
	ids := make([]string, len(all))
	for i, t := range all {
		ids[i] = t.ID
	}
	// The first span is the root, if its parent is elsewhere, as a client's is.
	var spans []Span
	err := s.in(ctx, w, &spans).Column("trace_id", "name").Where("trace_id IN (?)", bun.List(ids)).
		OrderExpr("CASE WHEN parent_id = '' THEN 0 ELSE 1 END, at, id").Scan(ctx)
	roots := map[string]string{}
	for _, x := range spans {
		if _, ok := roots[x.TraceID]; !ok {
			roots[x.TraceID] = x.Name
		}
	}
	for i := range all {
		all[i].Root = roots[all[i].ID]
	}
	return all, n, err
}

// SpansOf returns the spans of a trace, as they began, at most 10,000.
func (s *Service) SpansOf(ctx context.Context, organizationID, sandboxID, traceID string) ([]Span, error) {
	all := []Span{}
	err := s.DB.In(ctx, organizationID).Select(&all).Where("sandbox_id = ? AND trace_id = ?", sandboxID, traceID).Order("at", "id").Limit(10_000).Scan(ctx)
	return all, err
}

// PointsOf returns the values of metrics, of all of them if there are no names,
// by name and time. The page of w is not looked at.
func (s *Service) PointsOf(ctx context.Context, w Window, names []string) ([]Point, error) {
	if err := w.check(); err != nil {
		return nil, err
	}
	if len(names) > 100 {
		return nil, invalid("there may be 100 metricNames, not %d", len(names))
	}
	var samples []Sample
	if err := s.in(ctx, w, &samples).Column("at", "measured").Order("at DESC", "id DESC").Limit(int64(s.Samples)).Scan(ctx); err != nil {
		return nil, err
	}
	all := []Point{}
	for _, x := range slices.Backward(samples) {
		for name, v := range x.Measured {
			if len(names) == 0 || slices.Contains(names, name) {
				all = append(all, Point{x.At, name, v})
			}
		}
	}
	slices.SortStableFunc(all, func(a, b Point) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}
