package server

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/daytona-go/daytona/server/job"
	"github.com/daytona-go/daytona/server/region"
)

const (
	// metricsKept is how long what was read from the database is told: scrapes
	// cost it nothing, however many there are.
	metricsKept = 10 * time.Second
	metricsTime = 5 * time.Second
)

// customRegion stands for the regions of organizations: there may be any number
// of them, and a metric may not have a label of any number of values.
const customRegion = "custom"

// metrics are what a scrape is told.
type metrics struct {
	registry *prometheus.Registry
	jobs     *prometheus.CounterVec
	jobTimes *prometheus.HistogramVec
	handler  http.Handler
}

func newMetrics(version string) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		jobs: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "daytona_jobs_ended_total", Help: "Jobs of runners that this server saw the end of.",
		}, []string{"type", "status"}),
		jobTimes: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "daytona_job_duration_seconds", Help: "Time from a job's being asked for to its end.",
			Buckets: []float64{.01, .05, .1, .5, 1, 5, 10, 30, 60, 300, 1800},
		}, []string{"type", "status"}),
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "daytona_build_info", Help: "1, with the version.", ConstLabels: prometheus.Labels{"version": version},
	})
	build.Set(1)
	m.registry.MustRegister(m.jobs, m.jobTimes, build, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	m.handler = promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 2 * metricsTime})
	return m
}

func (m *metrics) jobDone(j job.Job) {
	status := strings.ToLower(string(j.Status))
	m.jobs.WithLabelValues(j.Type, status).Inc()
	m.jobTimes.WithLabelValues(j.Type, status).Observe(j.UpdatedAt.Sub(j.CreatedAt).Seconds())
}

// Metrics serves the server's metrics to Prometheus, to whoever asks: it is for
// a listener that the public does not reach.
func (s *Server) Metrics() http.Handler { return s.metrics.handler }

// serveMetrics serves the metrics, and nothing else, until ctx ends.
func (s *Server) serveMetrics(ctx context.Context, l net.Listener) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", s.metrics.handler)
	h := &http.Server{
		Handler: s.observer.Handler("metrics", mux), ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: time.Minute,
		IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10, ErrorLog: slog.NewLogLogger(s.config.Log.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() { h.Close() })
	defer stop()
	if err := h.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// metricsByToken serves the metrics to who has the token; nil without a token.
func (s *Server) metricsByToken() http.Handler {
	if s.config.Metrics.Token == "" {
		return nil
	}
	want := sha256.Sum256([]byte("Bearer " + s.config.Metrics.Token))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got := sha256.Sum256([]byte(r.Header.Get("Authorization")))
		if subtle.ConstantTimeCompare(got[:], want[:]) != 1 {
			w.Header().Set("WWW-Authenticate", "Bearer")
			http.Error(w, "the token of the metrics is wanted", http.StatusUnauthorized)
			return
		}
		s.metrics.handler.ServeHTTP(w, r)
	})
}

// state collects what is there now: from the parts of the server at once, and
// from the database from time to time.
type state struct {
	s *Server

	mu   sync.Mutex
	at   time.Time
	kept []prometheus.Metric
}

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

var (
	descSandboxes  = describe("daytona_sandboxes", "Sandboxes that there are. The regions of organizations are one, custom.", "region", "state")
	descRunners    = describe("daytona_runners", "Runners that there are.", "region", "state")
	descCapacity   = describe("daytona_runner_capacity", "What the ready runners of a region have: cores, and GiB of memory and disk.", "region", "resource")
	descFree       = describe("daytona_runner_free", "What of it no sandbox has been given.", "region", "resource")
	descJobs       = describe("daytona_jobs", "Jobs that have not ended: pending is the length of the queue.", "type", "status")
	descOldest     = describe("daytona_job_queue_age_seconds", "How long the oldest job that no runner has taken has waited.")
	descLag        = describe("daytona_event_bus_lag_seconds", "How long something that is published takes to be heard.")
	descLost       = describe("daytona_event_bus_lost_total", "Hints that did not reach a listener that was slow.")
	descUp         = describe("daytona_database_up", "1 if what is told of the database's contents is new.")
	descPoolMax    = describe("daytona_database_connections_max", "Connections to the database that there may be.")
	descPool       = describe("daytona_database_connections", "Connections to the database.", "state")
	descWaits      = describe("daytona_database_waits_total", "How often somebody had to wait for a connection to the database.")
	descWaited     = describe("daytona_database_wait_seconds_total", "How long was waited for connections to the database.")
	descProxy      = describe("daytona_proxy_connections", "Connections of the proxy to agents of sandboxes.")
	descSSH        = describe("daytona_ssh_connections", "Connections to the SSH gateway.")
	descSubscribed = describe("daytona_event_clients", "Clients that are told of events.")
)

func (c *state) Describe(chan<- *prometheus.Desc) {} // unchecked: what there is depends

func (c *state) Collect(ch chan<- prometheus.Metric) {
	s := c.s
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v float64) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v)
	}
	p := s.db.Stats()
	gauge(descPoolMax, float64(p.Max))
	gauge(descPool, float64(p.InUse), "in_use")
	gauge(descPool, float64(p.Open-p.InUse), "idle")
	counter(descWaits, float64(p.Waits))
	counter(descWaited, p.Waited.Seconds())
	counter(descLost, float64(p.Lost))
	gauge(descProxy, float64(s.proxy.Connections()))
	gauge(descSubscribed, float64(s.events.Clients()))
	if s.gateway != nil {
		gauge(descSSH, float64(s.gateway.Connections()))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	up := 1.0
	if time.Since(c.at) >= metricsKept {
		ctx, cancel := context.WithTimeout(context.Background(), metricsTime)
		defer cancel()
		kept, err := c.read(ctx)
		if err != nil {
			s.config.Log.Warn("the database can't be asked for metrics", "err", err)
			up, kept = 0, nil
		}
		c.kept, c.at = kept, time.Now()
		if err != nil {
			c.at = time.Time{} // the next scrape asks again
		}
	}
	gauge(descUp, up)
	for _, m := range c.kept {
		ch <- m
	}
}

// read asks the database.
func (c *state) read(ctx context.Context) (all []prometheus.Metric, err error) {
	s := c.s
	type key struct{ region, what string }
	add := func(d *prometheus.Desc, values map[key]float64) {
		for k, v := range values {
			all = append(all, prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, k.region, k.what))
		}
	}
	shared, err := s.regions.AllShared(ctx)
	if err != nil {
		return nil, err
	}
	regionOf := func(id string) string {
		if slices.ContainsFunc(shared, func(r region.Region) bool { return r.ID == id }) {
			return id
		}
		return customRegion
	}
	counts, err := s.sandboxes.Count(ctx)
	if err != nil {
		return nil, err
	}
	sandboxes := map[key]float64{}
	for _, n := range counts {
		sandboxes[key{regionOf(n.RegionID), string(n.State)}] += float64(n.N)
	}
	add(descSandboxes, sandboxes)
	list, err := s.runners.All(ctx, "")
	if err != nil {
		return nil, err
	}
	runners, capacity, free := map[key]float64{}, map[key]float64{}, map[key]float64{}
	for _, r := range list {
		at := regionOf(r.RegionID)
		runners[key{at, string(r.State)}]++
		if !r.Usable() {
			continue
		}
		for what, x := range map[string][2]float64{"cpu": {r.CPU, r.Used.AllocatedCPU}, "memory": {r.Memory, r.Used.AllocatedMemory}, "disk": {r.Disk, r.Used.AllocatedDisk}} {
			capacity[key{at, what}] += x[0]
			free[key{at, what}] += x[0] - x[1]
		}
	}
	add(descRunners, runners)
	add(descCapacity, capacity)
	add(descFree, free)
	jobs, since, err := s.jobs.Waiting(ctx)
	if err != nil {
		return nil, err
	}
	waiting := map[key]float64{}
	for _, n := range jobs {
		waiting[key{n.Type, strings.ToLower(string(n.Status))}] += float64(n.N)
	}
	add(descJobs, waiting)
	age := 0.0
	if !since.IsZero() {
		age = time.Since(since).Seconds()
	}
	lag, err := s.db.Lag(ctx)
	if err != nil {
		return nil, err
	}
	return append(all,
		prometheus.MustNewConstMetric(descOldest, prometheus.GaugeValue, age),
		prometheus.MustNewConstMetric(descLag, prometheus.GaugeValue, lag.Seconds())), nil
}
