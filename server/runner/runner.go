// Package runner knows the machines that sandboxes run on: who they are, how
// they are, and which of them a new sandbox goes to. What runs on them it does
// not know; it is told.
package runner

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/uptrace/bun"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/runnerkey"
	"github.com/daytona-go/daytona/server/store"
)

// State is how a runner is. The words are those of the wire.
type State string

// The states of a runner.
const (
	Initializing   State = "initializing" // it has never said anything
	Ready          State = "ready"
	Disabled       State = "disabled"
	Decommissioned State = "decommissioned" // drained, and to be deleted
	Unresponsive   State = "unresponsive"   // silent, or one of its services is not well
)

// Use is what a runner has said of its load.
type Use struct {
	LoadAverage     float64 `json:"loadAverage"`
	CPUPercent      float64 `json:"cpuPercent"`
	MemoryPercent   float64 `json:"memoryPercent"`
	DiskPercent     float64 `json:"diskPercent"`
	AllocatedCPU    float64 `json:"allocatedCpu"`
	AllocatedMemory float64 `json:"allocatedMemory"` // in GiB
	AllocatedDisk   float64 `json:"allocatedDisk"`   // in GiB
	Snapshots       float64 `json:"snapshots"`
	Started         float64 `json:"started"` // sandboxes
}

// Health is a service of a runner.
type Health struct {
	Service string `json:"service"`
	Healthy bool   `json:"healthy"`
	Reason  string `json:"reason,omitempty"`
}

// Runner is one machine.
type Runner struct {
	bun.BaseModel `bun:"table:runners,alias:runner"`

	ID string `bun:"id,pk"`
	// OrganizationID is that of a custom region's, "" for the system's runners.
	OrganizationID string `bun:"organization_id,notnull"`
	RegionID       string `bun:"region_id,notnull"`
	Name           string `bun:"name,notnull"`
	KeyHash        string `bun:"key_hash,notnull"`
	SealedAccess   string `bun:"access_key,notnull"`
	APIVersion     string `bun:"api_version,notnull"`
	AppVersion     string `bun:"app_version,notnull"`
	// Class is the class of its sandboxes.
	Class string `bun:"class,notnull"`
	// Domain, APIURL and ProxyURL say where it is; "" for one in this process.
	Domain        string   `bun:"domain,notnull"`
	APIURL        string   `bun:"api_url,notnull"`
	ProxyURL      string   `bun:"proxy_url,notnull"`
	State         State    `bun:"state,notnull"`
	Unschedulable bool     `bun:"unschedulable,notnull"`
	Draining      bool     `bun:"draining,notnull"`
	EmptyChecks   int      `bun:"empty_checks,notnull"`
	Tags          []string `bun:"tags,notnull"`
	// Capabilities are what it can do beyond the least; see Want.Needs.
	Capabilities []string `bun:"capabilities,notnull"`
	Services     []Health `bun:"services,notnull"`
	// CPU cores, Memory and Disk in GiB, and GPUs that it has; 0 is unknown.
	CPU     float64 `bun:"cpu,notnull"`
	Memory  float64 `bun:"memory,notnull"`
	Disk    float64 `bun:"disk,notnull"`
	GPU     float64 `bun:"gpu,notnull"`
	GPUType string  `bun:"gpu_type,notnull"`
	Used    Use     `bun:"used,notnull"`
	// Score is from 0, full, to 100, idle.
	Score int `bun:"score,notnull"`
	// MeasuredAt is when it last told of its load, CheckedAt when it last said
	// anything.
	MeasuredAt *time.Time `bun:"measured_at"`
	CheckedAt  *time.Time `bun:"checked_at"`
	CreatedAt  time.Time  `bun:"created_at,notnull"`
	UpdatedAt  time.Time  `bun:"updated_at,notnull"`
}

// Can reports whether it has a capability.
func (r *Runner) Can(capability string) bool { return slices.Contains(r.Capabilities, capability) }

// Usable reports whether it takes jobs.
func (r *Runner) Usable() bool { return r.State == Ready }

// Region is what a runner must know of its region.
type Region struct {
	ID string
	// OrganizationID is the owner's of a custom region.
	OrganizationID string
	// Type is "shared", "dedicated" or "custom".
	Type string
}

// Regions knows the regions.
type Regions interface {
	// RunnerRegion returns one by id; KindNotFound if there is none.
	RunnerRegion(ctx context.Context, id string) (Region, error)
}

// Sandboxes knows what runs where.
type Sandboxes interface {
	// OnRunner counts the sandboxes that are on a runner.
	OnRunner(ctx context.Context, runnerID string) (int, error)
	// Drain moves sandboxes away from a runner, or archives them, as far as
	// that can be done now. It is called again and again, and must not block.
	Drain(ctx context.Context, runnerID string) error
	// Lost says that a runner has been deleted with all that was on it.
	Lost(ctx context.Context, runnerID string) error
}

// Sealer encrypts what the database must not be able to tell.
type Sealer interface {
	Seal(plain, place string) string
	Open(sealed, place string) (string, error)
}

// Options refine [NewService].
type Options struct {
	// Log defaults to [slog.Default].
	Log *slog.Logger
	// Name is this server's, for what one server of several does. Defaults to a
	// random one.
	Name string
	// Now defaults to [time.Now].
	Now func() time.Time
	// Regions and Sandboxes default to none: every region is there and shared,
	// every runner is empty.
	Regions   Regions
	Sandboxes Sandboxes
	// Sealer seals the keys of runners' HTTP surfaces. Defaults to none: they
	// are in the database as they are.
	Sealer Sealer
	// Threshold is the least score at which a runner gets sandboxes. Defaults
	// to 10.
	Threshold int
	// Silence is how long a runner may say nothing. Defaults to a minute.
	Silence time.Duration
	// LostAfter is how long a runner may be silent until it is taken to be gone.
	// Defaults to half an hour.
	LostAfter time.Duration
	// Overcommit says how much more than it has a runner may promise, as a
	// factor; a zero field defaults to 16 for CPU, 4 for memory and 8 for disk:
	// most sandboxes do nothing most of the time, and use far less than their
	// limit.
	Overcommit daytona.Resources
}

// Service knows the runners. It is safe for concurrent use.
type Service struct {
	db    *store.DB
	o     Options
	watch *store.Watch
}

// TopicState is published with the id of a runner whose state has changed.
const TopicState = "runner-state"

const (
	sweepEvery = 10 * time.Second
	sweepLease = "runner-sweep"
	drained    = 3 // checks that find a runner empty
	maxList    = 64
)

// NewService returns the runners of a database; nil options are defaults.
func NewService(db *store.DB, o *Options) *Service {
	s := &Service{db: db}
	if o != nil {
		s.o = *o
	}
	s.o.Name = cmp.Or(s.o.Name, uuid.NewString())
	if s.o.Log == nil {
		s.o.Log = slog.Default()
	}
	if s.o.Now == nil {
		s.o.Now = time.Now
	}
	if s.o.Threshold == 0 {
		s.o.Threshold = 10
	}
	s.o.Silence = cmp.Or(s.o.Silence, time.Minute)
	s.o.LostAfter = cmp.Or(s.o.LostAfter, 30*time.Minute)
	s.o.Overcommit.CPU = cmp.Or(s.o.Overcommit.CPU, 16)
	s.o.Overcommit.Memory = cmp.Or(s.o.Overcommit.Memory, 4)
	s.o.Overcommit.Disk = cmp.Or(s.o.Overcommit.Disk, 8)
	s.watch = store.NewWatch(3*sweepEvery, s.o.Now())
	return s
}

// Lost reports whether a runner has been silent for so long that it is taken to
// be gone: what can be had elsewhere need not wait for it.
func (s *Service) Lost(r *Runner) bool {
	return r.State == Unresponsive && r.CheckedAt != nil && s.o.Now().Sub(s.watch.Since(*r.CheckedAt)) >= s.o.LostAfter
}

// New is a runner to be.
type New struct {
	RegionID, Name string
	Tags           []string
	// The rest is for administrators. Key defaults to a new one; APIVersion to
	// "2", Class to "container".
	Key, APIVersion, Class   string
	Domain, APIURL, ProxyURL string
	CPU, Memory, Disk        float64
}

var nameRule = regexp.MustCompile(`^[a-zA-Z0-9_.-]{1,255}$`)

func invalid(message string) error {
	return &daytona.Error{Kind: daytona.KindInvalid, Message: message}
}

// Create makes a runner in a custom region of an organization, and returns its
// key, which is shown this once.
func (s *Service) Create(ctx context.Context, organizationID string, n New) (Runner, string, error) {
	region, err := s.region(ctx, n.RegionID)
	if err != nil {
		return Runner{}, "", err
	}
	if region.Type != "custom" || region.OrganizationID != organizationID {
		if region.OrganizationID != "" && region.OrganizationID != organizationID {
			return Runner{}, "", &daytona.Error{Kind: daytona.KindNotFound, Message: "Region not found"}
		}
		return Runner{}, "", &daytona.Error{Kind: daytona.KindForbidden, Message: "Runners can be added to custom regions only"}
	}
	return s.create(ctx, organizationID, New{RegionID: n.RegionID, Name: n.Name, Tags: n.Tags})
}

// AdminCreate makes a runner in any region.
func (s *Service) AdminCreate(ctx context.Context, n New) (Runner, string, error) {
	region, err := s.region(ctx, n.RegionID)
	if err != nil {
		return Runner{}, "", err
	}
	return s.create(ctx, region.OrganizationID, n)
}

// Ensure makes a runner of the system's with a given key and name, or gives the
// one that is there this key: it is how a server with a runner of its own
// starts.
func (s *Service) Ensure(ctx context.Context, n New) (Runner, error) {
	if err := checkKey(n.Key); err != nil {
		return Runner{}, err
	}
	var r Runner
	err := s.db.Tx(ctx, func(ctx context.Context) error {
		r = Runner{}
		err := s.db.All(ctx).NewSelect().Model(&r).Where("region_id = ? AND name = ?", n.RegionID, n.Name).Scan(ctx)
		if store.IsNone(err) {
			r, _, err = s.AdminCreate(ctx, n)
			return err
		}
		if err != nil {
			return err
		}
		r.KeyHash, r.SealedAccess, r.UpdatedAt = runnerkey.Hash(n.Key), s.seal(r.ID, n.Key), s.o.Now().UTC()
		_, err = s.db.All(ctx).NewUpdate().Model(&r).Column("key_hash", "access_key", "updated_at").WherePK().Exec(ctx)
		return err
	})
	return r, err
}

func (s *Service) region(ctx context.Context, id string) (Region, error) {
	if s.o.Regions == nil {
		return Region{ID: id, Type: "shared"}, nil
	}
	return s.o.Regions.RunnerRegion(ctx, id)
}

// RegionType returns the type of a runner's region, "" if that is not known.
func (s *Service) RegionType(ctx context.Context, regionID string) string {
	r, err := s.region(ctx, regionID)
	if err != nil {
		return ""
	}
	return r.Type
}

func checkKey(key string) error {
	if len(key) < 16 || len(key) > 512 {
		return invalid("apiKey must have 16 to 512 characters")
	}
	return nil
}

func accessPlace(id string) string { return "runner/" + id + "/access" }

func (s *Service) seal(id, key string) string {
	access := runnerkey.Access(key)
	if s.o.Sealer == nil {
		return access
	}
	return s.o.Sealer.Seal(access, accessPlace(id))
}

func (s *Service) create(ctx context.Context, organizationID string, n New) (Runner, string, error) {
	if !nameRule.MatchString(n.Name) {
		return Runner{}, "", invalid(`name must be 1 to 255 letters, digits, "_", "." or "-"`)
	}
	if len(n.Tags) > maxList {
		return Runner{}, "", invalid(fmt.Sprintf("tags must be at most %d", maxList))
	}
	for _, t := range n.Tags {
		if t == "" || len(t) > 255 {
			return Runner{}, "", invalid("each tag must have 1 to 255 characters")
		}
	}
	key := cmp.Or(n.Key, runnerkey.New())
	if err := checkKey(key); err != nil {
		return Runner{}, "", err
	}
	version := cmp.Or(n.APIVersion, "2")
	if version != "0" && version != "2" {
		return Runner{}, "", invalid(`apiVersion must be "0" or "2"`)
	}
	for _, f := range []float64{n.CPU, n.Memory, n.Disk} {
		if !(f >= 0 && f < 1e9) {
			return Runner{}, "", invalid("cpu, memoryGiB and diskGiB must not be negative")
		}
	}
	now, id := s.o.Now().UTC(), uuid.NewString()
	r := Runner{
		ID: id, OrganizationID: organizationID, RegionID: n.RegionID, Name: n.Name, KeyHash: runnerkey.Hash(key),
		SealedAccess: s.seal(id, key), APIVersion: version, Class: cmp.Or(n.Class, "container"), State: Initializing,
		Domain: n.Domain, APIURL: n.APIURL, ProxyURL: n.ProxyURL, CPU: n.CPU, Memory: n.Memory, Disk: n.Disk,
		Tags: append([]string{}, n.Tags...), Capabilities: []string{}, Services: []Health{}, CreatedAt: now, UpdatedAt: now,
	}
	err := s.db.Tx(ctx, func(ctx context.Context) error {
		// Not left to the index: an error would end the transaction.
		taken, err := s.db.All(ctx).NewSelect().Model((*Runner)(nil)).Where("region_id = ? AND name = ?", n.RegionID, n.Name).Exists(ctx)
		if err != nil {
			return err
		}
		if taken {
			return &daytona.Error{Kind: daytona.KindConflict, Message: fmt.Sprintf("Runner with name %s already exists", n.Name)}
		}
		_, err = s.db.All(ctx).NewInsert().Model(&r).Exec(ctx)
		return err
	})
	if store.IsUnique(err) {
		err = &daytona.Error{Kind: daytona.KindConflict, Message: fmt.Sprintf("Runner with name %s, or with this key, already exists", n.Name)}
	}
	return r, key, err
}

// RunnerByKey returns the runner that has a key; KindNotFound if none has.
func (s *Service) RunnerByKey(ctx context.Context, key string) (runnerID, regionID string, err error) {
	var r Runner
	// By the hash of what is random: how long it takes tells nothing.
	err = s.db.All(ctx).NewSelect().Model(&r).Column("id", "region_id").Where("key_hash = ?", runnerkey.Hash(key)).Scan(ctx)
	if store.IsNone(err) {
		err = notFound()
	}
	return r.ID, r.RegionID, err
}

// Authenticate is RunnerByKey that gives KindUnauthorized.
func (s *Service) Authenticate(ctx context.Context, key string) (runnerID, regionID string, err error) {
	runnerID, regionID, err = s.RunnerByKey(ctx, key)
	if daytona.KindOf(err) == daytona.KindNotFound {
		err = &daytona.Error{Kind: daytona.KindUnauthorized, Message: "Invalid credentials"}
	}
	return runnerID, regionID, err
}

// Access returns the key of a runner's own HTTP surface.
func (s *Service) Access(r *Runner) (string, error) {
	if s.o.Sealer == nil {
		return r.SealedAccess, nil
	}
	return s.o.Sealer.Open(r.SealedAccess, accessPlace(r.ID))
}

func notFound() error {
	return &daytona.Error{Kind: daytona.KindNotFound, Message: "Runner not found"}
}

// Runner returns a runner, whoever's it is.
func (s *Service) Runner(ctx context.Context, id string) (Runner, error) {
	var r Runner
	err := s.db.All(ctx).NewSelect().Model(&r).Where("id = ?", id).Scan(ctx)
	if store.IsNone(err) {
		err = notFound()
	}
	return r, err
}

// Get returns a runner of an organization.
func (s *Service) Get(ctx context.Context, organizationID, id string) (Runner, error) {
	var r Runner
	err := s.db.In(ctx, organizationID).Select(&r).Where("id = ?", id).Scan(ctx)
	if organizationID == "" || store.IsNone(err) {
		return Runner{}, notFound()
	}
	return r, err
}

// List returns the runners of an organization, of one region or of all, oldest
// first.
func (s *Service) List(ctx context.Context, organizationID, regionID string) ([]Runner, error) {
	if organizationID == "" {
		return []Runner{}, nil
	}
	list := []Runner{}
	return list, inRegion(s.db.In(ctx, organizationID).Select(&list), regionID).Scan(ctx)
}

// All returns the runners of all organizations and the system's.
func (s *Service) All(ctx context.Context, regionID string) ([]Runner, error) {
	list := []Runner{}
	return list, inRegion(s.db.All(ctx).NewSelect().Model(&list), regionID).Scan(ctx)
}

func inRegion(q *bun.SelectQuery, regionID string) *bun.SelectQuery {
	if regionID != "" {
		q = q.Where("region_id = ?", regionID)
	}
	return q.Order("created_at", "id")
}

// Schedule says whether a runner gets new sandboxes.
func (s *Service) Schedule(ctx context.Context, id string, unschedulable bool) (Runner, error) {
	return s.change(ctx, id, func(r *Runner) error {
		r.Unschedulable = unschedulable
		return nil
	})
}

// SetDraining says whether a runner is to become empty. It takes no new
// sandboxes meanwhile, and is decommissioned when it has been found empty three
// times. A runner that is not draining any more is as it was.
func (s *Service) SetDraining(ctx context.Context, id string, draining bool) (Runner, error) {
	return s.change(ctx, id, func(r *Runner) error {
		if !draining && r.State == Decommissioned {
			return invalid("Runner is decommissioned: it can't be used again")
		}
		r.Draining, r.EmptyChecks = draining, 0
		return nil
	})
}

// change changes a runner in a transaction.
func (s *Service) change(ctx context.Context, id string, f func(r *Runner) error) (Runner, error) {
	var r Runner
	err := s.db.Tx(ctx, func(ctx context.Context) (err error) {
		r = Runner{}
		q := s.db.All(ctx).NewSelect().Model(&r).Where("id = ?", id)
		if s.db.Postgres() {
			q = q.For("UPDATE")
		}
		if err = q.Scan(ctx); store.IsNone(err) {
			return notFound()
		} else if err != nil {
			return err
		}
		before := r.State
		if err := f(&r); err != nil {
			return err
		}
		r.UpdatedAt = s.o.Now().UTC()
		if _, err = s.db.All(ctx).NewUpdate().Model(&r).ExcludeColumn("key_hash", "access_key").WherePK().Exec(ctx); err != nil {
			return err
		}
		if before == r.State {
			return nil
		}
		s.o.Log.Info("a runner has a new state", "runner", r.ID, "from", before, "to", r.State)
		return s.db.Publish(ctx, TopicState, r.ID)
	})
	return r, err
}

// Delete deletes a runner that gets no sandboxes and has none; with force, what
// is on it is lost.
func (s *Service) Delete(ctx context.Context, id string, force bool) error {
	return s.db.Tx(ctx, func(ctx context.Context) error {
		r, err := s.Runner(ctx, id)
		if err != nil {
			return err
		}
		if !r.Unschedulable && !force {
			return invalid("Runner is available for scheduling: make it unschedulable before it is deleted")
		}
		if s.o.Sandboxes != nil {
			n, err := s.o.Sandboxes.OnRunner(ctx, id)
			if err != nil {
				return err
			}
			if n > 0 && !force {
				return invalid(fmt.Sprintf("Runner has %d sandboxes: drain it before it is deleted", n))
			}
			if n > 0 {
				if err := s.o.Sandboxes.Lost(ctx, id); err != nil {
					return err
				}
			}
		}
		if _, err := s.db.All(ctx).NewDelete().Model((*reservation)(nil)).Where("runner_id = ?", id).Exec(ctx); err != nil {
			return err
		}
		if _, err := s.db.All(ctx).NewDelete().Model((*Runner)(nil)).Where("id = ?", id).Exec(ctx); err != nil {
			return err
		}
		return s.db.Publish(ctx, TopicState, id)
	})
}

// Report is what a runner says of itself.
type Report struct {
	// Use, CPU, Memory, Disk and GPU are its figures; a nil Use says nothing of them.
	Use                      *Use
	CPU, Memory, Disk, GPU   float64
	GPUType                  string
	Services                 []Health
	Domain, APIURL, ProxyURL *string
	AppVersion               string
	// Capabilities, if not nil, are what it can do.
	Capabilities []string
}

// Report takes a runner's own word for how it is: ready, or unresponsive if one
// of its services is not well. One that is disabled or decommissioned stays so.
func (s *Service) Report(ctx context.Context, id string, h Report) (Runner, error) {
	for _, text := range []*string{h.Domain, h.APIURL, h.ProxyURL, &h.AppVersion, &h.GPUType} {
		if text != nil && len(*text) > 2048 {
			return Runner{}, invalid("domain, apiUrl, proxyUrl, appVersion and gpuType must have at most 2048 characters")
		}
	}
	if len(h.Services) > maxList || len(h.Capabilities) > maxList {
		return Runner{}, invalid(fmt.Sprintf("serviceHealth and capabilities must have at most %d entries", maxList))
	}
	var r Runner
	err := s.db.Tx(ctx, func(ctx context.Context) (err error) {
		if r, err = s.change(ctx, id, h.apply(s.o.Now().UTC())); err != nil || h.Use == nil {
			return err
		}
		// These figures have what was promised and is there: every placement would
		// read it again.
		_, err = s.db.All(ctx).NewDelete().Model((*reservation)(nil)).Where("runner_id = ? AND released_at <= ?", id, *r.MeasuredAt).Exec(ctx)
		return err
	})
	return r, err
}

// apply returns what a report changes in a runner.
func (h *Report) apply(now time.Time) func(*Runner) error {
	return func(r *Runner) error {
		r.CheckedAt, r.AppVersion = &now, h.AppVersion
		if h.Use != nil {
			r.Used, r.CPU, r.Memory, r.Disk, r.GPU, r.GPUType, r.MeasuredAt = *h.Use, h.CPU, h.Memory, h.Disk, h.GPU, h.GPUType, &now
			r.Score = score(r)
		}
		for to, from := range map[*string]*string{&r.Domain: h.Domain, &r.APIURL: h.APIURL, &r.ProxyURL: h.ProxyURL} {
			if from != nil {
				*to = *from
			}
		}
		if h.Capabilities != nil {
			r.Capabilities = h.Capabilities
		}
		r.Services = append([]Health{}, h.Services...)
		if r.State == Disabled || r.State == Decommissioned {
			return nil
		}
		r.State = Ready
		if slices.ContainsFunc(h.Services, func(h Health) bool { return !h.Healthy }) {
			r.State = Unresponsive
		}
		return nil
	}
}

// score says how much a runner has left: the weighted mean of what is free,
// which falls to nothing as memory or disk run out.
func score(r *Runner) int {
	u := r.Used
	free := func(percent float64) float64 { return min(max(1-percent/100, 0), 1) }
	share := func(used, all float64) float64 {
		if all <= 0 {
			return 1
		}
		return min(max(1-used/all, 0), 1)
	}
	// Of what is promised, runners promise more than they have.
	mean := .25*free(u.CPUPercent) + .3*free(u.MemoryPercent) + .15*free(u.DiskPercent) +
		.1*share(u.AllocatedCPU, r.CPU*4) + .1*share(u.AllocatedMemory, r.Memory*2) + .1*share(u.AllocatedDisk, r.Disk*2)
	brake := min(1, free(u.MemoryPercent)/.1, free(u.DiskPercent)/.05)
	return int(100*mean*brake + .5)
}

// Sweep finds runners that have been silent for too long, and goes on with
// those that are to become empty.
func (s *Service) Sweep(ctx context.Context) error {
	now := s.o.Now().UTC()
	var silent []string
	if err := s.db.All(ctx).NewSelect().Model((*Runner)(nil)).Column("id").
		Where("state = ? AND checked_at < ?", Ready, now.Add(-s.o.Silence)).Scan(ctx, &silent); err != nil {
		return err
	}
	for _, id := range silent {
		if _, err := s.change(ctx, id, func(r *Runner) error {
			if r.State == Ready && s.watch.Since(*r.CheckedAt).Before(now.Add(-s.o.Silence)) {
				r.State = Unresponsive
			}
			return nil
		}); err != nil && daytona.KindOf(err) != daytona.KindNotFound {
			return err
		}
	}
	if _, err := s.db.All(ctx).NewDelete().Model((*reservation)(nil)).Where("expires_at < ?", now).Exec(ctx); err != nil {
		return err
	}
	var draining []string
	if err := s.db.All(ctx).NewSelect().Model((*Runner)(nil)).Column("id").
		Where("draining = ? AND state <> ?", true, Decommissioned).Scan(ctx, &draining); err != nil {
		return err
	}
	for _, id := range draining {
		if err := s.drain(ctx, id); err != nil {
			return err
		}
	}
	return nil
}

func (s *Service) drain(ctx context.Context, id string) error {
	n := 0
	if s.o.Sandboxes != nil {
		if err := s.o.Sandboxes.Drain(ctx, id); err != nil {
			s.o.Log.Warn("draining a runner does not go on", "runner", id, "err", err)
		}
		var err error
		if n, err = s.o.Sandboxes.OnRunner(ctx, id); err != nil {
			return err
		}
	}
	_, err := s.change(ctx, id, func(r *Runner) error {
		if r.EmptyChecks++; n > 0 {
			r.EmptyChecks = 0
		}
		if r.Draining && r.EmptyChecks >= drained {
			r.State, r.Unschedulable = Decommissioned, true
		}
		return nil
	})
	if daytona.KindOf(err) == daytona.KindNotFound {
		return nil
	}
	return err
}

// Run sweeps, in one server of all, until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	every := min(sweepEvery, s.o.Silence/3)
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if _, ok, err := s.db.Lease(ctx, sweepLease, s.o.Name, 3*every); err != nil {
			s.o.Log.Warn("who sweeps runners can't be found out", "err", err)
		} else {
			s.watch.Look(s.o.Now())
			if ok {
				if err := s.Sweep(ctx); err != nil && ctx.Err() == nil {
					s.o.Log.Error("sweeping runners failed", "err", err)
				}
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return s.db.Yield(context.WithoutCancel(ctx), sweepLease, s.o.Name)
		}
	}
}
