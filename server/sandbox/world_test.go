package sandbox_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/uptrace/bun"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/sandbox"
	"github.com/daytona-go/daytona/server/store"
)

// world is a service and all that it needs of others.
type world struct {
	t  testing.TB
	db *store.DB
	s  *sandbox.Service
	c  sandbox.Config

	mu       sync.Mutex
	now      time.Time
	runners  map[string]*sandbox.Runner
	copies   map[string]sandbox.Copy // by runner and ref
	captured map[string]string       // by name, what came of it
	claims   map[string]sandbox.Claim
	limit    sandbox.Resources
	suspend  bool
	// auto ends every job at once; fails are the types that fail.
	auto  bool
	fails map[string]string
	crash bool // what is enqueued next is not
	wg    sync.WaitGroup
}

// fakeJob is a job of the queue, which is in the database as the real one is.
type fakeJob struct {
	bun.BaseModel `bun:"table:fake_jobs,alias:job"`
	ID            string `bun:"id,pk"`
	Type          string `bun:"type,notnull"`
	Runner        string `bun:"runner,notnull"`
	ResourceType  string `bun:"resource_type,notnull"`
	Resource      string `bun:"resource,notnull"`
	Payload       string `bun:"payload,notnull"`
	Done          bool   `bun:"done,notnull"`
}

func newWorld(t testing.TB, db *store.DB, options ...func(*sandbox.Config)) *world {
	t.Helper()
	w := &world{t: t, db: db, now: time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC), runners: map[string]*sandbox.Runner{}, copies: map[string]sandbox.Copy{},
		captured: map[string]string{}, claims: map[string]sandbox.Claim{}, limit: sandbox.Resources{CPU: 1000, Memory: 1000, Disk: 3000, GPU: 10}, fails: map[string]string{}, auto: true}
	if _, err := db.All(t.Context()).NewRaw(`CREATE TABLE IF NOT EXISTS fake_jobs (id TEXT PRIMARY KEY, type TEXT NOT NULL, runner TEXT NOT NULL, resource_type TEXT NOT NULL, resource TEXT NOT NULL, payload TEXT NOT NULL, done BOOLEAN NOT NULL)`).Exec(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.addRunner("r1")
	w.c = sandbox.Config{DB: db, Key: make([]byte, 32), Log: slog.New(slog.DiscardHandler), Now: w.clock, DefaultSnapshot: "default", Wait: 10 * time.Second,
		Deps: sandbox.Deps{Jobs: w, Runners: w, Snapshots: snapshots{w}, Regions: regions{}, Quotas: w, Organizations: organizations{w}, Volumes: volumes{}, Secrets: secrets{}}}
	for _, o := range options {
		o(&w.c)
	}
	w.restart()
	t.Cleanup(w.wg.Wait)
	return w
}

// restart is what a new process has.
func (w *world) restart() {
	w.t.Helper()
	s, err := sandbox.New(w.c)
	if err != nil {
		w.t.Fatal(err)
	}
	w.mu.Lock()
	w.s = s
	w.mu.Unlock()
}

func (w *world) service() *sandbox.Service {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.s
}

func (w *world) clock() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.now
}

func (w *world) pass(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now = w.now.Add(d)
	for _, r := range w.runners {
		if r.Usable {
			r.SeenAt = w.now
		}
	}
}

func (w *world) addRunner(id string) *sandbox.Runner {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := &sandbox.Runner{ID: id, RegionID: "eu", Usable: true, SeenAt: w.now, Capabilities: []sandbox.Capability{
		sandbox.CanPause, sandbox.CanFork, sandbox.CanBackup, sandbox.CanMove, sandbox.CanResize, sandbox.CanSnapshot, sandbox.CanNetwork,
		sandbox.CanDomains, sandbox.CanVolumes, sandbox.CanSecrets, sandbox.CanGPU, sandbox.CanLink, sandbox.CanOTel}}
	w.runners[id] = r
	w.copies[id+" default-ref"] = sandbox.CopyReady
	return r
}

func (w *world) setRunner(id string, f func(*sandbox.Runner)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f(w.runners[id])
}

// sweep is one sweep of the reconciler.
func (w *world) sweep() {
	w.t.Helper()
	if err := w.service().Reconcile(context.Background()); err != nil {
		w.t.Fatal(err)
	}
	w.settle()
}

// settle waits for the jobs that end by themselves.
func (w *world) settle() { w.wg.Wait() }

var errCrash = errors.New("the server dies")

func (w *world) Enqueue(ctx context.Context, j sandbox.Job) (string, error) {
	w.mu.Lock()
	crash, auto := w.crash, w.auto
	w.crash = false
	w.mu.Unlock()
	if crash {
		return "", errCrash
	}
	lane := "type <> 'CREATE_BACKUP'"
	if j.Type == "CREATE_BACKUP" {
		lane = "type = 'CREATE_BACKUP'"
	}
	busy, err := w.db.All(ctx).NewSelect().Model((*fakeJob)(nil)).Where("runner = ? AND resource = ? AND done = ? AND "+lane, j.RunnerID, j.ResourceID, false).Exists(ctx)
	if err != nil {
		return "", err
	}
	if busy {
		return "", &daytona.Error{Kind: daytona.KindConflict, Message: "Another job for this resource is in progress"}
	}
	p, err := json.Marshal(j.Payload)
	if err != nil {
		return "", err
	}
	n, err := w.db.All(ctx).NewSelect().Model((*fakeJob)(nil)).Count(ctx)
	if err != nil {
		return "", err
	}
	job := &fakeJob{ID: fmt.Sprintf("%06d-%s-%s", n, j.Type, j.ResourceID), Type: j.Type, Runner: j.RunnerID, ResourceType: j.ResourceType, Resource: j.ResourceID, Payload: string(p)}
	if _, err := w.db.All(ctx).NewInsert().Model(job).Exec(ctx); err != nil {
		return "", err
	}
	if auto {
		store.After(ctx, func() {
			w.wg.Go(func() {
				if err := w.finish(job.ID, w.failure(job.Type)); err != nil {
					w.t.Errorf("%s: %v", job.ID, err)
				}
			})
		})
	}
	return job.ID, nil
}

func (w *world) failure(typ string) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.fails[typ]
}

// open returns the jobs that have not ended, oldest first.
func (w *world) open() []fakeJob {
	w.t.Helper()
	var all []fakeJob
	if err := w.db.All(context.Background()).NewSelect().Model(&all).Where("done = ?", false).Order("id").Scan(context.Background()); err != nil {
		w.t.Fatal(err)
	}
	return all
}

// last returns the newest job of a type.
func (w *world) last(typ string) (j fakeJob, payload map[string]any) {
	w.t.Helper()
	if err := w.db.All(context.Background()).NewSelect().Model(&j).Where("type = ?", typ).Order("id DESC").Limit(1).Scan(context.Background()); err != nil {
		w.t.Fatal(typ, err)
	}
	if err := json.Unmarshal([]byte(j.Payload), &payload); err != nil {
		w.t.Fatal(err)
	}
	return j, payload
}

// finish ends a job as its runner says.
func (w *world) finish(id, failure string) error {
	ctx := context.Background()
	return w.db.Tx(ctx, func(ctx context.Context) error {
		j := &fakeJob{}
		if err := w.db.All(ctx).NewSelect().Model(j).Where("id = ?", id).Scan(ctx); err != nil {
			return err
		}
		if err := store.Changed(w.db.All(ctx).NewUpdate().Model(j).Set("done = ?", true).WherePK().Where("done = ?", false).Exec(ctx)); err != nil {
			return nil // it has ended already
		}
		return w.done(ctx, j, failure)
	})
}

func (w *world) done(ctx context.Context, j *fakeJob, failure string) error {
	if j.ResourceType != sandbox.ResourceSandbox {
		return nil
	}
	out := sandbox.Job{ID: j.ID, Type: j.Type, RunnerID: j.Runner, ResourceType: j.ResourceType, ResourceID: j.Resource, Done: true, Failed: failure != "", Error: failure}
	if failure == "" {
		out.Result = `{"daemonVersion":"1.2.3","sizeGB":0.5}`
	}
	return w.service().JobDone(ctx, out)
}

func (w *world) Place(_ context.Context, p sandbox.Placement) (sandbox.Placed, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var ids []string
	for id, r := range w.runners {
		for _, need := range p.Needs {
			if !r.Can(need) {
				return sandbox.Placed{}, &daytona.Error{Kind: daytona.KindUnsupported, Message: fmt.Sprintf("No runner of this region can do %q", need)}
			}
		}
		if r.Usable && !r.Draining && r.RegionID == p.RegionID && (p.Only == nil || slices.Contains(p.Only, id)) && !slices.Contains(p.Not, id) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	for _, id := range ids {
		if slices.Contains(p.Prefer, id) {
			return sandbox.Placed{RunnerID: id}, nil
		}
	}
	if len(ids) == 0 {
		return sandbox.Placed{}, &daytona.Error{Kind: daytona.KindInvalid, Message: "No available runners"}
	}
	return sandbox.Placed{RunnerID: ids[0]}, nil
}

func (w *world) Runner(_ context.Context, id string) (sandbox.Runner, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := w.runners[id]
	if r == nil {
		return sandbox.Runner{}, &daytona.Error{Kind: daytona.KindNotFound, Message: "Runner not found"}
	}
	return *r, nil
}

func (w *world) Reserve(ctx context.Context, c sandbox.Claim) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	sum := c.Resources
	for id, o := range w.claims {
		if id != c.SandboxID && o.OrganizationID == c.OrganizationID {
			sum.CPU += o.Resources.CPU
			sum.Disk += o.Resources.Disk
		}
	}
	if sum.CPU > w.limit.CPU {
		return &daytona.Error{Kind: daytona.KindInvalid, Message: fmt.Sprintf("Total CPU limit exceeded. Maximum allowed: %d.", w.limit.CPU)}
	}
	store.After(ctx, func() { w.note(c) })
	return nil
}

func (w *world) note(c sandbox.Claim) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.claims[c.SandboxID] = c
}

func (w *world) Adjust(ctx context.Context, c sandbox.Claim) error {
	store.After(ctx, func() { w.note(c) })
	return nil
}

// Release ends what two of its interfaces have of a sandbox: a reservation of
// the quota, and a runner's promise, which this one does not keep.
func (w *world) Release(ctx context.Context, id string) error {
	return nil
}

func (w *world) Lifespan(context.Context, string, string, string) (time.Duration, error) {
	return 0, nil
}

type snapshots struct{ w *world }

func (s snapshots) Resolve(ctx context.Context, org, region, name string) (sandbox.Snapshot, error) {
	switch name {
	case "default":
		return sandbox.Snapshot{ID: "default-id", Name: "default", Ref: "default-ref", Class: "container", Resources: sandbox.Resources{CPU: 1, Memory: 1, Disk: 3}, Entrypoint: []string{"sleep", "infinity"}}, nil
	case "default-id":
		return s.Resolve(ctx, org, region, "default")
	case "far":
		return sandbox.Snapshot{ID: "far-id", Name: "far", Ref: "far-ref", Class: "container", Resources: sandbox.Resources{CPU: 2, Memory: 4, Disk: 10}}, nil
	case "gpu":
		return sandbox.Snapshot{ID: "gpu-id", Name: "gpu", Ref: "default-ref", Class: "container", Resources: sandbox.Resources{CPU: 1, Memory: 1, Disk: 3, GPU: 1}}, nil
	}
	return sandbox.Snapshot{}, &daytona.Error{Kind: daytona.KindInvalid, Message: "Snapshot " + name + " not found. Did you add it through the Daytona Dashboard?"}
}

func (s snapshots) Build(_ context.Context, org, dockerfile string, _ []string) (string, []string, error) {
	return "build-" + dockerfile, []string{"run"}, nil
}

func (s snapshots) Ready(_ context.Context, ref string) ([]string, error) {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	var ids []string
	for id := range s.w.runners {
		if s.w.copies[id+" "+ref] == sandbox.CopyReady {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids, nil
}

func (s snapshots) Ensure(_ context.Context, runner, ref string) error {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	if s.w.copies[runner+" "+ref] != sandbox.CopyReady {
		s.w.copies[runner+" "+ref] = sandbox.CopyMaking
	}
	return nil
}

func (s snapshots) Copy(_ context.Context, runner, ref string) (sandbox.Copy, string, error) {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	return s.w.copies[runner+" "+ref], "it could not be made", nil
}

func (s snapshots) Capture(_ context.Context, c sandbox.Capture) (string, string, error) {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	if _, taken := s.w.captured[c.Name]; taken {
		return "", "", &daytona.Error{Kind: daytona.KindConflict, Message: fmt.Sprintf("Snapshot with name %q already exists for this organization", c.Name)}
	}
	return c.Name, "ref-of-" + c.Name, nil
}

func (s snapshots) Captured(_ context.Context, c sandbox.Capture, size float64, failure string) error {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	if failure == "" && c.Name == "late" {
		return &daytona.Error{Kind: daytona.KindConflict, Message: "the name was taken meanwhile"}
	}
	s.w.captured[c.SnapshotID] = "ok"
	if failure != "" {
		s.w.captured[c.SnapshotID] = failure
	}
	return nil
}

type regions struct{}

func (regions) Target(ctx context.Context, org, name string) (sandbox.Region, error) {
	switch name {
	case "", "eu":
		return sandbox.Region{ID: "eu", Name: "eu"}, nil
	case "own":
		return sandbox.Region{ID: "own", Name: "own", ProxyURL: "https://p.example.com", ToolboxURL: "https://t.example.com", SSHGatewayURL: "ssh.example.com:22"}, nil
	}
	return sandbox.Region{}, &daytona.Error{Kind: daytona.KindNotFound, Message: "Region not found"}
}

func (r regions) Region(ctx context.Context, id string) (sandbox.Region, error) {
	return r.Target(ctx, "", id)
}

type organizations struct{ w *world }

func (o organizations) Active(_ context.Context, id string) (sandbox.Organization, error) {
	o.w.mu.Lock()
	defer o.w.mu.Unlock()
	if o.w.suspend {
		return sandbox.Organization{}, &daytona.Error{Kind: daytona.KindForbidden, Message: "Organization is suspended: unpaid"}
	}
	return sandbox.Organization{ID: id, Name: id}, nil
}

type volumes struct{}

func (volumes) Find(_ context.Context, org, name string) (sandbox.VolumeInfo, error) {
	switch name {
	case "data", "data-id":
		return sandbox.VolumeInfo{ID: "data-id", Name: "data", Ready: true, State: "ready"}, nil
	case "new":
		return sandbox.VolumeInfo{ID: "new-id", Name: "new", State: "creating"}, nil
	}
	return sandbox.VolumeInfo{}, &daytona.Error{Kind: daytona.KindNotFound, Message: "Volume with ID or name " + name + " not found"}
}

func (volumes) Location(context.Context, string, string) (any, error) { return nil, nil }

type secrets struct{}

func (secrets) Attach(ctx context.Context, org, id string, m map[string]string) (map[string]string, error) {
	for _, name := range m {
		if name != "known" {
			return nil, &daytona.Error{Kind: daytona.KindInvalid, Message: fmt.Sprintf("Secret %q not found", name)}
		}
	}
	return secrets{}.Env(ctx, org, id)
}
func (secrets) Detach(context.Context, string, string) error { return nil }
func (secrets) Env(context.Context, string, string) (map[string]string, error) {
	return map[string]string{"TOKEN": "dtn_secret_placeholder"}, nil
}
func (secrets) Resolve(context.Context, string, string) ([]sandbox.Mounted, error) {
	return []sandbox.Mounted{{Env: "TOKEN", Placeholder: "dtn_secret_placeholder", Value: "s3cret", Hosts: []string{"api.example.com"}}}, nil
}

// get reads a sandbox as it is.
func (w *world) get(id string) *sandbox.Sandbox {
	w.t.Helper()
	sb, err := w.service().Any(context.Background(), id)
	if err != nil && !errors.Is(err, daytona.ErrGone) {
		w.t.Fatal(err)
	}
	return sb
}

// create makes a started sandbox.
func (w *world) create(n sandbox.Spec) *sandbox.Sandbox {
	w.t.Helper()
	sb, err := w.service().Create(context.Background(), "a", n)
	if err != nil {
		w.t.Fatal(err)
	}
	return sb
}

// wants fails unless an error has a kind and a message.
func wants(t testing.TB, err, kind error, message string) {
	t.Helper()
	if e, ok := errors.AsType[*daytona.Error](err); !errors.Is(err, kind) || !ok || message != "" && e.Message != message && e.Error() != message {
		t.Errorf("%v, not %v %q", err, kind, message)
	}
}
