// Package job is the queue of work for runners. The rules of the server put
// jobs into it, in the transaction that makes them necessary; a runner takes
// its own out, and says what came of them, in the transaction that draws the
// consequences. Everything is in the database: a server that dies between any
// two steps leaves nothing that the next one does not find.
//
// The package knows what a job may do, and nothing of what it is about.
package job

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/uptrace/bun"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/store"
)

// Status is where a job is in its life. The words are those of the wire.
type Status string

// The statuses of a job.
const (
	Pending    Status = "PENDING"
	InProgress Status = "IN_PROGRESS"
	Completed  Status = "COMPLETED"
	Failed     Status = "FAILED"
)

// Types of jobs.
const (
	CreateSandbox   = "CREATE_SANDBOX"
	StartSandbox    = "START_SANDBOX"
	StopSandbox     = "STOP_SANDBOX"
	DestroySandbox  = "DESTROY_SANDBOX"
	ResizeSandbox   = "RESIZE_SANDBOX"
	RecoverSandbox  = "RECOVER_SANDBOX"
	CreateBackup    = "CREATE_BACKUP"
	UpdateNetwork   = "UPDATE_SANDBOX_NETWORK_SETTINGS"
	UpdateSecrets   = "UPDATE_SANDBOX_SECRETS"
	PauseSandbox    = "PAUSE_SANDBOX"
	ForkSandbox     = "FORK_SANDBOX"
	SnapshotSandbox = "SNAPSHOT_SANDBOX"
	BuildSnapshot   = "BUILD_SNAPSHOT"
	PullSnapshot    = "PULL_SNAPSHOT"
	RemoveSnapshot  = "REMOVE_SNAPSHOT"
	InspectSnapshot = "INSPECT_SNAPSHOT_IN_REGISTRY"
)

// Types of resources.
const (
	ResourceSandbox  = "SANDBOX"
	ResourceSnapshot = "SNAPSHOT"
	ResourceBackup   = "BACKUP"
)

const (
	maxPoll    = 100
	maxText    = 64 << 10 // of an error, in bytes
	maxResult  = 1 << 20  // of a result, in bytes
	maxPayload = 8 << 20  // of a payload, in bytes
	maxTrace   = 8        // headers, of 512 bytes each

	// lookAgain is how often who waits looks for what no hint told of.
	lookAgain    = 10 * time.Second
	sweepEvery   = 15 * time.Second
	sweepLease   = "job-sweep"
	keepFinished = 7 * 24 * time.Hour

	topicNew  = "job-new/"  // and the runner's id
	topicDone = "job-done/" // and the job's id

	messageStale      = "Job timed out - no update received for %d minutes"
	messageConflict   = "Another job for this resource is in progress"
	messageNotFound   = "Job with ID %s not found"
	messageTransition = "Invalid job status transition from %s to %s"
)

// Job is work for a runner, and what came of it.
type Job struct {
	bun.BaseModel `bun:"table:jobs,alias:job"`

	ID     string `bun:"id,pk"`
	Type   string `bun:"type,notnull"`
	Status Status `bun:"status,notnull"`
	// RunnerID is who is to do it.
	RunnerID string `bun:"runner_id,notnull"`
	// ResourceType and ResourceID are what it is about.
	ResourceType string `bun:"resource_type,notnull"`
	ResourceID   string `bun:"resource_id,notnull"`
	// Lane lets jobs for one resource run beside each other: "backup" for
	// backups, "" for all else.
	Lane string `bun:"lane,notnull"`
	// Payload is JSON, or "". A job that has ended has none.
	Payload string `bun:"payload,notnull"`
	// Trace has the headers of the W3C trace context that it belongs to.
	Trace map[string]string `bun:"trace_context,notnull"`
	// Error is why it failed: text, or JSON with "recoverable" and "errorReason".
	Error string `bun:"error,notnull"`
	// Result is JSON, or "".
	Result    string    `bun:"result,notnull"`
	CreatedAt time.Time `bun:"created_at,notnull"`
	UpdatedAt time.Time `bun:"updated_at,notnull"`
}

// Ended reports whether it is over.
func (j *Job) Ended() bool { return j.Status == Completed || j.Status == Failed }

// Failure says why a job failed, and whether the runner thinks that recovering
// could help.
func (j *Job) Failure() (reason string, recoverable bool) {
	if j.Status != Failed {
		return "", false
	}
	var f struct {
		Recoverable bool   `json:"recoverable"`
		ErrorReason string `json:"errorReason"`
	}
	if strings.HasPrefix(j.Error, "{") && json.Unmarshal([]byte(j.Error), &f) == nil && f.ErrorReason != "" {
		return f.ErrorReason, f.Recoverable
	}
	return cmp.Or(j.Error, "the runner gave no reason"), false
}

// Decode reads the result into v, which it leaves alone if there is none.
func (j *Job) Decode(v any) error {
	if j.Result == "" {
		return nil
	}
	return json.Unmarshal([]byte(j.Result), v)
}

// New is a job to be.
type New struct {
	Type, RunnerID, ResourceType, ResourceID string
	// Payload is made JSON of; nil is none. A string is JSON already.
	Payload any
	// Trace defaults to none.
	Trace map[string]string
}

// Hook is told of a job that has ended, in the transaction that ends it: with
// an error of the hook's, it has not ended. It is called once, but for what a
// transaction repeats.
type Hook func(ctx context.Context, j Job) error

// Sealer encrypts what the database must not be able to tell.
type Sealer interface {
	Seal(plain, place string) string
	Open(sealed, place string) (string, error)
}

// Options refine [NewService].
type Options struct {
	// Sealer seals payloads, in which there may be passwords of registries and
	// keys of storages. Defaults to none: they are in the database as they are
	// until the job has ended.
	Sealer Sealer
	// Done is told of a job once it is certain that it has ended, for metrics. It
	// must not block. Defaults to nothing.
	Done func(Job)
	// Log defaults to [slog.Default].
	Log *slog.Logger
	// Name is this server's, for what one server of several does. Defaults to a
	// random one.
	Name string
	// Now defaults to [time.Now].
	Now func() time.Time
}

// Service is the queue. It is safe for concurrent use.
type Service struct {
	db   *store.DB
	log  *slog.Logger
	name string
	now  func() time.Time
	box  Sealer
	done func(Job)
	// watch is for how long runners could have told of their jobs.
	watch *store.Watch

	mu    sync.Mutex
	hooks map[string][]Hook
}

// NewService returns the queue of a database; nil options are defaults.
func NewService(db *store.DB, o *Options) *Service {
	s := &Service{db: db, log: slog.Default(), name: uuid.NewString(), now: time.Now, hooks: map[string][]Hook{}}
	if o != nil {
		s.name = cmp.Or(o.Name, s.name)
		if o.Log != nil {
			s.log = o.Log
		}
		if o.Now != nil {
			s.now = o.Now
		}
		s.box, s.done = o.Sealer, o.Done
	}
	s.watch = store.NewWatch(3*sweepEvery, s.now())
	return s
}

// OnDone has h called for jobs about a type of resource. It must be called
// before the first job ends.
func (s *Service) OnDone(resourceType string, h Hook) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hooks[resourceType] = append(s.hooks[resourceType], h)
}

func lane(jobType string) string {
	if jobType == CreateBackup {
		return "backup"
	}
	return ""
}

// Enqueue adds a job, in the transaction of ctx if there is one, and wakes its
// runner once that is committed. It gives KindConflict, and leaves the
// transaction usable, while another job for the same resource on the same
// runner has not ended; backups do not count.
func (s *Service) Enqueue(ctx context.Context, n New) (Job, error) {
	const op = "enqueue job"
	for field, value := range map[string]string{"Type": n.Type, "RunnerID": n.RunnerID, "ResourceType": n.ResourceType, "ResourceID": n.ResourceID} {
		if value == "" {
			return Job{}, &daytona.Error{Kind: daytona.KindInternal, Op: op, Field: field, Message: "must not be empty"}
		}
	}
	payload, isText := n.Payload.(string)
	if !isText && n.Payload != nil {
		data, err := json.Marshal(n.Payload)
		if err != nil {
			return Job{}, &daytona.Error{Kind: daytona.KindInternal, Op: op, Subject: n.Type, Err: err}
		}
		payload = string(data)
	}
	if len(payload) > maxPayload {
		return Job{}, &daytona.Error{Kind: daytona.KindInvalid, Op: op, Subject: n.Type, Message: fmt.Sprintf("its payload has more than %d bytes", maxPayload)}
	}
	id, err := uuid.NewV7()
	if err != nil {
		return Job{}, err
	}
	now := s.now().UTC()
	j := Job{
		ID: id.String(), Type: n.Type, Status: Pending, RunnerID: n.RunnerID, ResourceType: n.ResourceType, ResourceID: n.ResourceID,
		Lane: lane(n.Type), Payload: payload, Trace: traceOf(n.Trace), CreatedAt: now, UpdatedAt: now,
	}
	row := j
	row.Payload = s.sealed(&j)
	err = s.db.Tx(ctx, func(ctx context.Context) error {
		// DO NOTHING: an error would end the caller's transaction in PostgreSQL.
		r, err := s.db.All(ctx).NewInsert().Model(&row).On("CONFLICT DO NOTHING").Exec(ctx)
		if err != nil {
			return err
		}
		if inserted, err := r.RowsAffected(); err != nil {
			return err
		} else if inserted == 0 {
			return &daytona.Error{Kind: daytona.KindConflict, Message: messageConflict}
		}
		return s.db.Publish(ctx, topicNew+n.RunnerID, j.ID)
	})
	return j, err
}

// place is what a payload is sealed for.
func place(j *Job) string { return "job/" + j.ID }

// sealed is a payload as the database has it.
func (s *Service) sealed(j *Job) string {
	if s.box == nil || j.Payload == "" {
		return j.Payload
	}
	return s.box.Seal(j.Payload, place(j))
}

// open unseals the payloads of jobs that were read.
func (s *Service) open(err error, jobs ...*Job) error {
	for _, j := range jobs {
		if err == nil && s.box != nil && j.Payload != "" {
			j.Payload, err = s.box.Open(j.Payload, place(j))
		}
	}
	return err
}

func (s *Service) openAll(jobs []Job, err error) ([]Job, error) {
	for i := range jobs {
		err = s.open(err, &jobs[i])
	}
	return jobs, err
}

// traceOf keeps what a trace context may have.
func traceOf(all map[string]string) map[string]string {
	kept := map[string]string{}
	for k, v := range all {
		if len(kept) < maxTrace && len(k)+len(v) <= 512 {
			kept[strings.ToLower(k)] = v
		}
	}
	return kept
}

// Poll returns jobs of a runner that are to be done, oldest first, at most
// limit of 1 to 100. They are its from then on: no other call gets them. Where
// there are none, it waits for some, at most for wait, and returns none if none
// came.
func (s *Service) Poll(ctx context.Context, runnerID string, limit int, wait time.Duration) ([]Job, error) {
	limit = min(max(limit, 1), maxPoll)
	// Before looking: what comes in between is heard.
	woken, end := s.db.Subscribe(topicNew + runnerID)
	defer end()
	over := time.NewTimer(max(wait, 0))
	defer over.Stop()
	again := time.NewTicker(lookAgain)
	defer again.Stop()
	for {
		jobs, err := s.claim(ctx, runnerID, limit)
		if err != nil || len(jobs) > 0 {
			return jobs, err
		}
		select {
		case <-woken:
		case <-again.C:
		case <-over.C:
			return nil, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (s *Service) claim(ctx context.Context, runnerID string, limit int) ([]Job, error) {
	pending := func(ctx context.Context) *bun.SelectQuery {
		// All: a runner works for every organization.
		return s.db.All(ctx).NewSelect().Model((*Job)(nil)).Column("id").Where("runner_id = ? AND status = ?", runnerID, Pending)
	}
	// Most polls find nothing, and need not wait for who writes.
	if some, err := pending(ctx).Limit(1).Exists(ctx); err != nil || !some {
		return nil, err
	}
	var jobs []Job
	err := s.db.Tx(ctx, func(ctx context.Context) error {
		jobs = nil
		first := pending(ctx).Order("created_at", "id").Limit(int64(limit))
		if s.db.Postgres() {
			first = first.For("UPDATE SKIP LOCKED")
		}
		_, err := s.db.All(ctx).NewUpdate().Model(&jobs).ModelTableExpr("jobs AS job").
			Set("status = ?", InProgress).Set("updated_at = ?", s.now().UTC()).
			Where("id IN (?)", first).Returning("*").Exec(ctx)
		return err
	})
	slices.SortFunc(jobs, func(a, b Job) int { return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.ID, b.ID)) })
	return s.openAll(jobs, err)
}

// Filter selects jobs for [Service.List].
type Filter struct {
	// Status is any if it is "".
	Status Status
	// Offset and Limit are a page.
	Offset, Limit int
}

// List returns jobs of a runner, oldest first, and how many there are of them
// on all pages.
func (s *Service) List(ctx context.Context, runnerID string, f Filter) ([]Job, int, error) {
	jobs := []Job{}
	q := s.db.All(ctx).NewSelect().Model(&jobs).Where("runner_id = ?", runnerID)
	if f.Status != "" {
		q = q.Where("status = ?", f.Status)
	}
	n, err := q.Order("created_at", "id").Offset(int64(max(f.Offset, 0))).Limit(int64(min(max(f.Limit, 1), 1000))).ScanAndCount(ctx)
	jobs, err = s.openAll(jobs, err)
	return jobs, int(n), err
}

// Get returns a job of a runner.
func (s *Service) Get(ctx context.Context, runnerID, id string) (Job, error) {
	var j Job
	err := s.db.All(ctx).NewSelect().Model(&j).Where("id = ? AND runner_id = ?", id, runnerID).Scan(ctx)
	if store.IsNone(err) {
		err = notFound(id)
	}
	return j, s.open(err, &j)
}

// Find returns a job, whoever's it is.
func (s *Service) Find(ctx context.Context, id string) (Job, error) {
	var j Job
	err := s.db.All(ctx).NewSelect().Model(&j).Where("id = ?", id).Scan(ctx)
	if store.IsNone(err) {
		err = notFound(id)
	}
	return j, s.open(err, &j)
}

func notFound(id string) error {
	return &daytona.Error{Kind: daytona.KindNotFound, Message: fmt.Sprintf(messageNotFound, id)}
}

// Unfinished returns the jobs about a resource that have not ended, oldest
// first.
func (s *Service) Unfinished(ctx context.Context, resourceType, resourceID string) ([]Job, error) {
	jobs := []Job{}
	err := s.db.All(ctx).NewSelect().Model(&jobs).Where("resource_type = ? AND resource_id = ?", resourceType, resourceID).
		Where("status IN (?, ?)", Pending, InProgress).Order("created_at", "id").Scan(ctx)
	return s.openAll(jobs, err)
}

// Update is what a runner says of a job.
type Update struct {
	Status Status
	// Error is why it failed. It is cut at 64 KiB.
	Error string
	// Result is JSON, of at most 1 MiB, or "".
	Result string
}

// Update moves a job of a runner on: from PENDING to IN_PROGRESS or FAILED, and
// from IN_PROGRESS to COMPLETED or FAILED. Every other move gives KindConflict:
// what has ended, also by having been silent for too long, stays as it is.
func (s *Service) Update(ctx context.Context, runnerID, id string, u Update) (Job, error) {
	switch u.Status {
	case Pending, InProgress, Completed, Failed:
	default:
		return Job{}, &daytona.Error{Kind: daytona.KindInvalid, Field: "status", Value: string(u.Status), Message: "must be PENDING, IN_PROGRESS, COMPLETED or FAILED"}
	}
	if u.Result != "" && (len(u.Result) > maxResult || !json.Valid([]byte(u.Result))) {
		return Job{}, &daytona.Error{Kind: daytona.KindInvalid, Message: fmt.Sprintf("resultMetadata must be a JSON string of at most %d bytes", maxResult)}
	}
	var j Job
	err := s.db.Tx(ctx, func(ctx context.Context) (err error) {
		if j, err = s.lock(ctx, id); err != nil {
			return err
		}
		if j.RunnerID != runnerID {
			return notFound(id)
		}
		return s.move(ctx, &j, u)
	})
	return j, err
}

// lock reads a job for a change of it.
func (s *Service) lock(ctx context.Context, id string) (j Job, err error) {
	q := s.db.All(ctx).NewSelect().Model(&j).Where("id = ?", id)
	if s.db.Postgres() {
		q = q.For("UPDATE")
	}
	if err = q.Scan(ctx); store.IsNone(err) {
		err = notFound(id)
	}
	return j, s.open(err, &j)
}

func (s *Service) move(ctx context.Context, j *Job, u Update) error {
	from := j.Status
	legal := from == Pending && (u.Status == InProgress || u.Status == Failed) ||
		from == InProgress && (u.Status == Completed || u.Status == Failed)
	if !legal {
		return &daytona.Error{Kind: daytona.KindConflict, Message: fmt.Sprintf(messageTransition, from, u.Status)}
	}
	j.Status, j.Result, j.UpdatedAt = u.Status, u.Result, s.now().UTC()
	j.Error = u.Error
	if len(j.Error) > maxText {
		j.Error = strings.ToValidUTF8(j.Error[:maxText], "")
	}
	q := s.db.All(ctx).NewUpdate().Model(j).Column("status", "error", "result", "updated_at").Where("id = ? AND status = ?", j.ID, from)
	if j.Ended() {
		q = q.Set("payload = ''") // nobody needs the secrets in it any more
	}
	if err := store.Changed(q.Exec(ctx)); err != nil {
		return err
	}
	if !j.Ended() {
		return nil
	}
	s.mu.Lock()
	hooks := s.hooks[j.ResourceType]
	s.mu.Unlock()
	for _, h := range hooks {
		if err := h(ctx, *j); err != nil {
			return fmt.Errorf("after job %s (%s): %w", j.ID, j.Type, err)
		}
	}
	if s.done != nil {
		ended := *j
		store.After(ctx, func() { s.done(ended) })
	}
	return s.db.Publish(ctx, topicDone+j.ID, string(j.Status))
}

// Count is how many jobs of a type are in a status.
type Count struct {
	Type   string
	Status Status
	N      int
}

// Waiting counts the jobs that have not ended, and says since when the oldest
// that no runner has taken waits: the zero time if none does.
func (s *Service) Waiting(ctx context.Context) (counts []Count, since time.Time, err error) {
	// All: it is about the system.
	unfinished := s.db.All(ctx).NewSelect().Model((*Job)(nil)).Where("status IN (?, ?)", Pending, InProgress)
	err = unfinished.Column("type", "status").ColumnExpr("count(*) AS n").Group("type", "status").Scan(ctx, &counts)
	if err != nil {
		return nil, time.Time{}, err
	}
	var oldest Job
	err = s.db.All(ctx).NewSelect().Model(&oldest).Column("created_at").Where("status = ?", Pending).Order("created_at").Limit(1).Scan(ctx)
	if store.IsNone(err) {
		return counts, time.Time{}, nil
	}
	return counts, oldest.CreatedAt, err
}

// Cancel fails a job that no runner has taken yet: KindConflict if one has.
func (s *Service) Cancel(ctx context.Context, id, reason string) error {
	return s.db.Tx(ctx, func(ctx context.Context) error {
		j, err := s.lock(ctx, id)
		if err != nil {
			return err
		}
		if j.Status != Pending {
			return &daytona.Error{Kind: daytona.KindConflict, Message: fmt.Sprintf(messageTransition, j.Status, Failed)}
		}
		return s.move(ctx, &j, Update{Status: Failed, Error: reason})
	})
}

// Abandon fails all jobs of a runner that have not ended: it will not do them.
func (s *Service) Abandon(ctx context.Context, runnerID, reason string) error {
	var ids []string
	if err := s.db.All(ctx).NewSelect().Model((*Job)(nil)).Column("id").
		Where("runner_id = ? AND status IN (?, ?)", runnerID, Pending, InProgress).Order("id").Scan(ctx, &ids); err != nil {
		return err
	}
	var all []error
	for _, id := range ids {
		all = append(all, s.fail(ctx, id, reason, func(*Job) bool { return true }))
	}
	return errors.Join(all...)
}

// fail fails a job if it has not ended and is still as it should be.
func (s *Service) fail(ctx context.Context, id, reason string, still func(*Job) bool) error {
	return s.db.Tx(ctx, func(ctx context.Context) error {
		j, err := s.lock(ctx, id)
		if err != nil || j.Ended() || !still(&j) {
			return err
		}
		return s.move(ctx, &j, Update{Status: Failed, Error: reason})
	})
}

// Wait returns a job once it has ended.
func (s *Service) Wait(ctx context.Context, id string) (Job, error) {
	woken, end := s.db.Subscribe(topicDone + id)
	defer end()
	again := time.NewTicker(lookAgain)
	defer again.Stop()
	for {
		j, err := s.Find(ctx, id)
		if err != nil || j.Ended() {
			return j, err
		}
		select {
		case <-woken:
		case <-again.C:
		case <-ctx.Done():
			return j, ctx.Err()
		}
	}
}

// patience is how long a job of a type may be in progress.
func patience(jobType string) time.Duration {
	switch jobType {
	case CreateSandbox:
		return 30 * time.Minute
	case BuildSnapshot, CreateBackup, PullSnapshot, SnapshotSandbox:
		return 120 * time.Minute
	}
	return 10 * time.Minute
}

// Sweep fails the jobs that have been in progress for too long, and forgets
// those that ended a week ago.
func (s *Service) Sweep(ctx context.Context) error {
	now := s.now().UTC()
	var late []Job
	if err := s.db.All(ctx).NewSelect().Model(&late).ExcludeColumn("payload", "result").
		Where("status = ? AND updated_at < ?", InProgress, now.Add(-10*time.Minute)).Order("updated_at").Limit(1000).Scan(ctx); err != nil {
		return err
	}
	var all []error
	for _, j := range late {
		limit := patience(j.Type)
		if now.Sub(s.watch.Since(j.UpdatedAt)) < limit {
			continue
		}
		s.log.Warn("a job has timed out", "job", j.ID, "type", j.Type, "runner", j.RunnerID, "resource", j.ResourceID)
		all = append(all, s.fail(ctx, j.ID, fmt.Sprintf(messageStale, int(limit.Minutes())), func(now *Job) bool {
			return now.Status == InProgress && now.UpdatedAt.Equal(j.UpdatedAt)
		}))
	}
	_, err := s.db.All(ctx).NewDelete().Model((*Job)(nil)).Where("status IN (?, ?) AND updated_at < ?", Completed, Failed, now.Add(-keepFinished)).Exec(ctx)
	return errors.Join(append(all, err)...)
}

// Run sweeps, in one server of all, until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		if _, ok, err := s.db.Lease(ctx, sweepLease, s.name, 3*sweepEvery); err != nil {
			s.log.Warn("who sweeps jobs can't be found out", "err", err)
		} else {
			s.watch.Look(s.now())
			if ok {
				if err := s.Sweep(ctx); err != nil && ctx.Err() == nil {
					s.log.Error("sweeping jobs failed", "err", err)
				}
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return s.db.Yield(context.WithoutCancel(ctx), sweepLease, s.name)
		}
	}
}
