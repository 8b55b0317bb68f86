// Package executor is the runner: the process that has a backend and does with
// it what the server's jobs say. It asks the server for jobs and tells it what
// came of them, all by the API that any runner uses; whether the server is in
// the same process or on another machine is a matter of the [http.RoundTripper].
//
// Everything it does can be done twice. A runner that dies between any two
// steps is told of its unfinished jobs when it is back, and does them again:
// what it had made already, it finds by its name, which is the server's id of
// the sandbox. What the backend has and the server does not know is removed.
//
// It knows backends by package daytona only, and no feature of the server.
package executor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/runnerkey"
	"github.com/daytona-go/daytona/internal/wire"
	"github.com/daytona-go/daytona/server/observe"
)

// Contexts has the files that Dockerfiles copy.
type Contexts interface {
	// OpenContext returns the tar that an organization has stored under a hash,
	// uncompressed; KindNotFound if there is none. The caller closes it.
	OpenContext(ctx context.Context, organizationID, hash string) (io.ReadCloser, error)
}

// Config says what a runner is made of.
type Config struct {
	// Client is where sandboxes are made. Required; the caller closes it, after
	// Run has returned.
	Client *daytona.Client
	// URL is where the server's API begins, such as "https://example.com/api".
	// Required.
	URL string
	// Key is the runner's. Required.
	Key string
	// Transport carries requests to the server; see [InProcess]. Defaults to the
	// network.
	Transport http.RoundTripper
	// Dir has build logs, and contexts while they are in use. Required.
	Dir string
	// Contexts defaults to none: builds that copy files are refused.
	Contexts Contexts
	// Images has the backend's names for some references: how a server gives
	// its users an image of this machine, which they can't name themselves.
	Images map[string]string
	// SharedImages lets every organization use an image that another one has
	// pulled, as long as the backend keeps it, also with credentials that are not
	// its own. Defaults to false: the registry is asked each time.
	SharedImages bool
	// Move says that the server's object storage does not end with this machine,
	// so that backups and snapshots are put there, for other runners. Defaults to
	// false: they stay here.
	Move bool
	// Unenforced are limits that the backend can't enforce here and that are left
	// out, in place of refusing sandboxes: "cpu", "memory", "disk". Defaults to
	// none.
	Unenforced []string
	// Version is what the server is told of this program. Defaults to "0.0.0-dev".
	Version string
	// Domain, APIURL and ProxyURL say where Handler is served, "" for nowhere
	// but in this process.
	Domain, APIURL, ProxyURL string
	// Capabilities, if not nil, take the place of what the backend can do.
	Capabilities []string
	// Capacity is what the machine is said to have. Zero fields default to what
	// it has.
	Capacity daytona.Resources
	// Parallel is how many jobs for sandboxes run at once, Heavy how many that
	// move images. Default to 32 and 4.
	Parallel, Heavy int
	// Health, Report and Poll are how often the server is told how this runner
	// is (10 s), how often what runs here is compared with what the server
	// thinks (30 s), and how long it may let a question for jobs wait (30 s).
	Health, Report, Poll time.Duration
	// Measure is how often the server is told what sandboxes use. Defaults to
	// a minute; negative is never.
	Measure time.Duration
	// Reap is how long the server must not have known a sandbox of ours before
	// it is deleted. Defaults to two minutes.
	Reap time.Duration
	// Grace is how long jobs may go on once Run's context has ended; those that
	// have not ended then are done again by the next Run. Defaults to 30 s;
	// negative is none.
	Grace time.Duration
	// Tracer makes spans of jobs, in the traces that these name. Defaults to none.
	Tracer *observe.Tracer
	// Log defaults to [slog.Default].
	Log *slog.Logger
}

// Executor is a runner. It is safe for concurrent use.
type Executor struct {
	c    Config
	log  *slog.Logger
	api  *apiClient
	logs *buildLogs
	// keys are what opens Handler.
	keys []string

	slots, light, heavy chan struct{}
	beat                chan struct{} // asks for a health check now

	mu        sync.Mutex
	id        string               // the server's name for this runner
	known     map[string]bool      // jobs that run, by id
	finished  []string             // ids of the last jobs that ended here
	resources map[string]*resource // by lane and id
	touched   map[string]time.Time // when a job for a sandbox last began or ended
	strangers map[string]time.Time // since when the server has not known one of ours
	sandboxes sync.Map             // daytona.Sandbox, by name
	usage     usage
	proxy     *http.Transport
	wg        sync.WaitGroup
}

// resource lets one job at a time have something.
type resource struct {
	turn  chan struct{}
	users int
}

const (
	pollBatch     = 10
	keepFinished  = 10_000
	maxBackoff    = 5 * time.Second
	jobDeadline   = 2 * time.Hour
	adoptPageSize = 200
)

// New returns a runner that does nothing until Run.
func New(c Config) (*Executor, error) {
	const op = "make runner"
	switch {
	case c.Client == nil:
		return nil, &daytona.Error{Kind: daytona.KindInvalid, Op: op, Field: "Client", Message: "is required"}
	case c.Key == "":
		return nil, &daytona.Error{Kind: daytona.KindInvalid, Op: op, Field: "Key", Message: "is required"}
	case c.Dir == "":
		return nil, &daytona.Error{Kind: daytona.KindInvalid, Op: op, Field: "Dir", Message: "is required"}
	}
	api, err := newAPIClient(c.URL, c.Key, c.Transport)
	if err != nil {
		return nil, err
	}
	c.Version = cmp.Or(c.Version, "0.0.0-dev")
	c.Parallel, c.Heavy = cmp.Or(c.Parallel, 32), cmp.Or(c.Heavy, 4)
	c.Health, c.Report = cmp.Or(c.Health, 10*time.Second), cmp.Or(c.Report, 30*time.Second)
	c.Poll, c.Grace = min(cmp.Or(c.Poll, 30*time.Second), time.Minute), cmp.Or(c.Grace, 30*time.Second)
	c.Reap, c.Measure = cmp.Or(c.Reap, 2*time.Minute), cmp.Or(c.Measure, time.Minute)
	if c.Log == nil {
		c.Log = slog.Default()
	}
	for _, dir := range []string{c.Dir, filepath.Join(c.Dir, "contexts")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, &daytona.Error{Kind: daytona.KindUnavailable, Op: op, Subject: dir, Err: err}
		}
	}
	logs, err := openBuildLogs(filepath.Join(c.Dir, "logs"))
	if err != nil {
		return nil, err
	}
	e := &Executor{
		c: c, log: c.Log, api: api, logs: logs, keys: []string{c.Key, runnerkey.Access(c.Key)},
		slots: make(chan struct{}, 4*(c.Parallel+c.Heavy)), light: make(chan struct{}, c.Parallel), heavy: make(chan struct{}, c.Heavy),
		beat: make(chan struct{}, 1), known: map[string]bool{}, resources: map[string]*resource{}, touched: map[string]time.Time{},
		strangers: map[string]time.Time{},
	}
	e.proxy = e.proxyTransport()
	return e, nil
}

// Run does jobs until ctx ends, and lets those that it does then go on for
// Config.Grace. It returns early, with KindUnauthorized, if the server does not
// know the key. It must not be called twice at the same time.
func (e *Executor) Run(ctx context.Context) error {
	if err := e.identify(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	e.sweepContexts()
	defer e.proxy.CloseIdleConnections()
	jobs, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	var loops sync.WaitGroup
	told := make(chan struct{})
	loops.Go(func() { e.healthLoop(ctx, told) })
	loops.Go(func() { e.reportLoop(ctx) })
	loops.Go(func() { e.measureLoop(ctx) })
	// Whoever sees what a first job has done finds a runner that is ready.
	loops.Go(func() { <-told; e.pollLoop(ctx, jobs) })
	loops.Wait()
	over := make(chan struct{})
	go func() { e.wg.Wait(); close(over) }()
	if e.c.Grace > 0 {
		select {
		case <-over:
			return nil
		case <-time.After(e.c.Grace):
		}
	}
	end()
	<-over
	return nil
}

// identify finds out who this runner is.
func (e *Executor) identify(ctx context.Context) error {
	for try := 0; ; try++ {
		me, err := e.api.me(ctx)
		if err == nil {
			e.mu.Lock()
			e.id = me.ID
			e.mu.Unlock()
			return nil
		}
		if errors.Is(err, daytona.ErrUnauthorized) || errors.Is(err, daytona.ErrForbidden) {
			return fmt.Errorf("join server: %w", err)
		}
		if try == 0 {
			e.log.Warn("the server can't be reached; the runner goes on trying", "err", err)
		}
		if !pause(ctx, try) {
			return ctx.Err()
		}
	}
}

// ID is the server's name for this runner, "" until Run has asked.
func (e *Executor) ID() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.id
}

// pause waits longer with every try. It is false when ctx has ended.
func pause(ctx context.Context, try int) bool {
	d := min(50*time.Millisecond<<min(try, 10), maxBackoff)
	select {
	case <-time.After(d/2 + rand.N(d/2+1)):
		return true
	case <-ctx.Done():
		return false
	}
}

// pollLoop takes jobs and has them done.
func (e *Executor) pollLoop(ctx, jobs context.Context) {
	adopt := true // what an earlier process, or an answer that was lost, has left
	for try := 0; ctx.Err() == nil; {
		if adopt {
			if err := e.adopt(ctx, jobs); err != nil {
				e.log.Warn("unfinished jobs can't be found out", "err", err)
				pause(ctx, try)
				try++
				continue
			}
			adopt = false
		}
		n := e.take(ctx)
		if n == 0 {
			return
		}
		list, err := e.api.poll(ctx, n, e.c.Poll)
		for range n - min(n, len(list)) {
			<-e.slots
		}
		if err != nil {
			if ctx.Err() == nil {
				e.log.Warn("asking for jobs failed", "err", err)
				pause(ctx, try)
				try++
			}
			adopt = true
			continue
		}
		try = 0
		for i, j := range list {
			if i >= n {
				e.slots <- struct{}{}
			}
			e.begin(jobs, j)
		}
	}
}

// take takes places for some jobs: at least one, but for a ctx that has ended.
func (e *Executor) take(ctx context.Context) int {
	select {
	case e.slots <- struct{}{}:
	case <-ctx.Done():
		return 0
	}
	for n := 1; n < pollBatch; n++ {
		select {
		case e.slots <- struct{}{}:
		default:
			return n
		}
	}
	return pollBatch
}

// adopt takes up the jobs that are this runner's and that it is not doing.
func (e *Executor) adopt(ctx, jobs context.Context) error {
	for page := 1; ; page++ {
		list, err := e.api.jobs(ctx, wire.JobStatusInProgress, page, adoptPageSize)
		if err != nil {
			return err
		}
		for _, j := range list.Items {
			select {
			case e.slots <- struct{}{}:
			case <-ctx.Done():
				return ctx.Err()
			}
			if e.begin(jobs, j) {
				e.log.Info("taking up a job again", "job", j.ID, "type", j.Type, "resource", j.ResourceID)
			}
		}
		if len(list.Items) < adoptPageSize {
			return nil
		}
	}
}

// begin has a job done unless it is being done or was; the caller has taken a
// place for it.
func (e *Executor) begin(ctx context.Context, j wire.Job) bool {
	e.mu.Lock()
	_, known := e.known[j.ID]
	if !known {
		e.known[j.ID] = true
	}
	e.mu.Unlock()
	if known {
		<-e.slots
		return false
	}
	e.wg.Go(func() {
		defer func() { <-e.slots }()
		ended := e.do(ctx, j)
		e.mu.Lock()
		defer e.mu.Unlock()
		delete(e.known, j.ID)
		if !ended {
			return
		}
		// An old list must not bring it back.
		e.known[j.ID] = false
		if e.finished = append(e.finished, j.ID); len(e.finished) > keepFinished {
			delete(e.known, e.finished[0])
			e.finished = e.finished[1:]
		}
	})
	return true
}

// lock waits until a job has a resource for itself.
func (e *Executor) lock(ctx context.Context, key string) (unlock func(), err error) {
	e.mu.Lock()
	r := e.resources[key]
	if r == nil {
		r = &resource{turn: make(chan struct{}, 1)}
		e.resources[key] = r
	}
	r.users++
	e.mu.Unlock()
	leave := func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		if r.users--; r.users == 0 {
			delete(e.resources, key)
		}
	}
	select {
	case r.turn <- struct{}{}:
		return func() { <-r.turn; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}

// do does a job and tells the server. It is false if the job has not ended:
// this process is to end, and the next one goes on with it.
func (e *Executor) do(ctx context.Context, j wire.Job) bool {
	ctx, end := e.c.Tracer.Start(e.c.Tracer.Continue(ctx, traceOf(j)), "job "+j.Type, trace.SpanKindConsumer,
		attribute.String("daytona.job.id", j.ID), attribute.String("daytona.resource.type", j.ResourceType),
		attribute.String("daytona.resource.id", j.ResourceID), attribute.String("daytona.runner.id", e.ID()))
	var err error
	defer func() { end(err) }()
	key := j.ResourceID
	if j.Type == wire.JobTypeCreateBackup {
		key = "backup/" + key
	}
	unlock, err := e.lock(ctx, key)
	if err != nil {
		return false
	}
	defer unlock()
	places := e.light
	if isHeavy(j.Type) {
		places = e.heavy
	}
	select {
	case places <- struct{}{}:
		defer func() { <-places }()
	case <-ctx.Done():
		return false
	}
	e.touch(j.ResourceID)
	began := time.Now()
	var result *string
	result, err = e.guarded(ctx, j)
	e.touch(j.ResourceID)
	if ctx.Err() != nil && err != nil {
		return false
	}
	log := e.log.With("job", j.ID, "type", j.Type, "resource", j.ResourceID, "duration", time.Since(began))
	u := wire.UpdateJobStatus{Status: wire.JobStatusCompleted, ResultMetadata: result}
	if err != nil {
		u = wire.UpdateJobStatus{Status: wire.JobStatusFailed, ErrorMessage: new(failure(err))}
		log.Warn("job failed", "err", err)
	} else {
		log.Debug("job done")
	}
	for try := 0; ; try++ {
		err := e.api.update(e.withTrace(ctx, j), j.ID, u)
		switch {
		case err == nil:
			e.hurry()
			return true
		case errors.Is(err, daytona.ErrConflict), errors.Is(err, daytona.ErrNotFound):
			// It has ended without us: it took too long, or an answer was lost.
			log.Info("the server does not wait for this job any more", "err", err)
			return true
		case errors.Is(err, daytona.ErrInvalid):
			log.Error("the server does not take the result of a job", "err", err)
			u = wire.UpdateJobStatus{Status: wire.JobStatusFailed, ErrorMessage: new("the runner's result was not taken: " + err.Error())}
		default:
			log.Warn("telling the server of a job failed", "err", err)
		}
		if !pause(ctx, try) {
			return false
		}
	}
}

// guarded is perform that survives its own faults.
func (e *Executor) guarded(ctx context.Context, j wire.Job) (result *string, err error) {
	defer func() {
		if v := recover(); v != nil {
			e.log.Error("job panicked", "job", j.ID, "type", j.Type, "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
			err = &daytona.Error{Kind: daytona.KindInternal, Message: "the runner has a fault: see its log"}
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, jobDeadline)
	defer cancel()
	ctx, end := e.c.Tracer.Start(ctx, "backend "+j.Type, trace.SpanKindInternal)
	defer func() { end(err) }()
	return e.perform(ctx, j)
}

// touch notes that a sandbox is being changed.
func (e *Executor) touch(id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := time.Now()
	e.touched[id] = now
	if len(e.touched) > 4*keepFinished {
		for k, t := range e.touched {
			if now.Sub(t) > time.Hour {
				delete(e.touched, k)
			}
		}
	}
}

// busy reports whether a job for a sandbox runs or has run since t.
func (e *Executor) busy(id string, t time.Time) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.resources[id] != nil || e.touched[id].After(t)
}

// hurry asks for a health check soon.
func (e *Executor) hurry() {
	select {
	case e.beat <- struct{}{}:
	default:
	}
}
