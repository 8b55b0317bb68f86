// Package quota limits what an organization uses. Whoever makes something
// reserves it first: a reservation and the check that it fits are one step, so
// that many at once can't use more than there is.
package quota

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/uptrace/bun"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/store"
)

// Kinds of what is reserved. Snapshots and volumes are counted by those who
// have them.
const (
	sandbox = "sandbox"
	secret  = "secret"
)

// Classes of sandboxes, in the order of the wire.
func Classes() []string { return []string{"linux-vm", "container", "android", "windows"} }

// Limits are those of an organization that are the same in all regions. CPUs
// are counted, memory and disk are in GiB, the size of a snapshot in GB.
type Limits struct {
	bun.BaseModel `bun:"table:organization_quotas,alias:quota"`

	OrganizationID      string  `bun:"organization_id,pk"`
	MaxCPU              float64 `bun:"max_cpu_per_sandbox,notnull"`
	MaxMemory           float64 `bun:"max_memory_per_sandbox,notnull"`
	MaxDisk             float64 `bun:"max_disk_per_sandbox,notnull"`
	Snapshots           int     `bun:"snapshot_quota,notnull"`
	MaxSnapshotSize     float64 `bun:"max_snapshot_size,notnull"`
	Volumes             int     `bun:"volume_quota,notnull"`
	Secrets             int     `bun:"secret_quota,notnull"`
	SecretsPerSandbox   int     `bun:"max_secrets_per_sandbox,notnull"`
	SnapshotsProcessing int     `bun:"max_concurrent_snapshot_processing,notnull"`
}

// Region are the limits of an organization in a region, for a class of
// sandboxes. A nil maximum is that of the organization, or of the server for
// GPUs.
type Region struct {
	bun.BaseModel `bun:"table:region_quotas,alias:quota"`

	OrganizationID string  `bun:"organization_id,pk"`
	RegionID       string  `bun:"region_id,pk"`
	Class          string  `bun:"sandbox_class,pk"`
	CPU            float64 `bun:"total_cpu,notnull"`
	Memory         float64 `bun:"total_memory,notnull"`
	Disk           float64 `bun:"total_disk,notnull"`
	GPU            float64 `bun:"total_gpu,notnull"`
	// GPUTypes are those that are allowed: nil is all of them, empty is none.
	GPUTypes  []string `bun:"allowed_gpu_types"`
	MaxCPU    *float64 `bun:"max_cpu_per_sandbox"`
	MaxMemory *float64 `bun:"max_memory_per_sandbox"`
	MaxDisk   *float64 `bun:"max_disk_per_sandbox"`
	// MaxDiskLasting is for sandboxes that are not ephemeral: nil is the same
	// as MaxDisk, 0 is that there must be none.
	MaxDiskLasting *float64 `bun:"max_disk_per_non_ephemeral_sandbox"`
	// Those per GPU are multiplied by the number of GPUs of a sandbox.
	MaxCPUPerGPU        *float64 `bun:"max_cpu_per_gpu"`
	MaxMemoryPerGPU     *float64 `bun:"max_memory_per_gpu"`
	MaxDiskPerGPU       *float64 `bun:"max_disk_per_gpu"`
	MaxCPUGPUSandbox    *float64 `bun:"max_cpu_per_gpu_sandbox"`
	MaxMemoryGPUSandbox *float64 `bun:"max_memory_per_gpu_sandbox"`
	MaxDiskGPUSandbox   *float64 `bun:"max_disk_per_gpu_sandbox"`
	// MaxLifespan is the longest time until a sandbox is destroyed, in minutes.
	// nil and 0 are no limit.
	MaxLifespan *float64 `bun:"max_sandbox_lifespan"`
}

// Maxima of sandboxes with GPUs where nothing else is set.
const (
	defaultGPUCPU    = 16
	defaultGPUMemory = 192
	defaultGPUDisk   = 512
)

// Regions is the feature that has regions.
type Regions interface {
	// Enforced reports whether totals count in a region.
	Enforced(ctx context.Context, regionID string) (bool, error)
}

// Defaults are the limits of an organization that has none of its own. The
// zero value of a field stands for the default that is in its comment.
type Defaults struct {
	CPU, Memory, Disk, GPU        float64 // 10, 10, 30 and 0, for each region and class
	MaxCPU, MaxMemory, MaxDisk    float64 // 4, 8 and 10 for a sandbox
	Snapshots, Volumes, Secrets   int     // 30, 100 and 100
	MaxSnapshotSize               float64 // 20
	SecretsPerSandbox, Processing int     // 20, and 3 snapshots at a time
}

// Config says what a Service is made of.
type Config struct {
	Regions  Regions
	Defaults Defaults
	// Class is the class in which an organization gets quotas by default.
	// Defaults to "container".
	Class string
}

// Service has quotas and what is reserved.
type Service struct {
	db     *store.DB
	config Config
}

// New returns a service.
func New(db *store.DB, c Config) *Service {
	d := &c.Defaults
	for _, f := range []struct {
		v *float64
		d float64
	}{{&d.CPU, 10}, {&d.Memory, 10}, {&d.Disk, 30}, {&d.MaxCPU, 4}, {&d.MaxMemory, 8}, {&d.MaxDisk, 10}, {&d.MaxSnapshotSize, 20}} {
		if *f.v == 0 {
			*f.v = f.d
		}
	}
	for _, f := range []struct {
		v *int
		d int
	}{{&d.Snapshots, 30}, {&d.Volumes, 100}, {&d.Secrets, 100}, {&d.SecretsPerSandbox, 20}, {&d.Processing, 3}} {
		if *f.v == 0 {
			*f.v = f.d
		}
	}
	if c.Class == "" {
		c.Class = "container"
	}
	return &Service{db, c}
}

func invalid(format string, args ...any) error {
	return &daytona.Error{Kind: daytona.KindInvalid, Message: fmt.Sprintf(format, args...)}
}

// defaults are the limits of an organization that has none of its own.
func (s *Service) defaults(organizationID string) *Limits {
	d := s.config.Defaults
	return &Limits{
		OrganizationID: organizationID, MaxCPU: d.MaxCPU, MaxMemory: d.MaxMemory, MaxDisk: d.MaxDisk, Snapshots: d.Snapshots,
		MaxSnapshotSize: d.MaxSnapshotSize, Volumes: d.Volumes, Secrets: d.Secrets, SecretsPerSandbox: d.SecretsPerSandbox, SnapshotsProcessing: d.Processing,
	}
}

// Limits returns those of an organization.
func (s *Service) Limits(ctx context.Context, organizationID string) (*Limits, error) {
	l := &Limits{}
	err := s.db.In(ctx, organizationID).Select(l).Scan(ctx)
	if store.IsNone(err) {
		return s.defaults(organizationID), nil
	}
	return l, err
}

// SecretsPerSandbox returns how many secrets a sandbox of an organization may
// have.
func (s *Service) SecretsPerSandbox(ctx context.Context, organizationID string) (int, error) {
	l, err := s.Limits(ctx, organizationID)
	if err != nil {
		return 0, err
	}
	return l.SecretsPerSandbox, nil
}

// SetLimits changes the limits of an organization: f gets those there are.
func (s *Service) SetLimits(ctx context.Context, organizationID string, f func(*Limits)) error {
	return s.db.Tx(ctx, func(ctx context.Context) error {
		if err := s.lock(ctx, organizationID); err != nil {
			return err
		}
		l, err := s.Limits(ctx, organizationID)
		if err != nil {
			return err
		}
		f(l)
		l.OrganizationID = organizationID
		for _, v := range []float64{l.MaxCPU, l.MaxMemory, l.MaxDisk, l.MaxSnapshotSize, float64(l.Snapshots), float64(l.Volumes), float64(l.Secrets), float64(l.SecretsPerSandbox), float64(l.SnapshotsProcessing)} {
			if !(v >= 0 && v < 1e9) {
				return invalid("quotas must be at least 0 and less than 1000000000, not %s", number(v))
			}
		}
		if _, err := s.db.In(ctx, organizationID).Delete((*Limits)(nil)).Exec(ctx); err != nil {
			return err
		}
		_, err = s.db.All(ctx).NewInsert().Model(l).Exec(ctx)
		return err
	})
}

// Regions returns the ids of the regions in which an organization has quotas.
func (s *Service) Regions(ctx context.Context, organizationID string) ([]string, error) {
	all, err := s.RegionQuotas(ctx, organizationID)
	ids := []string{}
	for _, r := range all {
		if !slices.Contains(ids, r.RegionID) {
			ids = append(ids, r.RegionID)
		}
	}
	return ids, err
}

// RegionQuotas returns all region quotas of an organization.
func (s *Service) RegionQuotas(ctx context.Context, organizationID string) ([]Region, error) {
	var all []Region
	err := s.db.In(ctx, organizationID).Select(&all).OrderExpr("region_id, sandbox_class").Scan(ctx)
	return all, err
}

// RegionQuota returns one.
func (s *Service) RegionQuota(ctx context.Context, organizationID, regionID, class string) (*Region, error) {
	r := &Region{}
	err := s.db.In(ctx, organizationID).Select(r).Where("region_id = ? AND sandbox_class = ?", regionID, class).Scan(ctx)
	if store.IsNone(err) {
		return nil, &daytona.Error{Kind: daytona.KindNotFound, Message: "Region quota not found"}
	}
	return r, err
}

// Prepare gives an organization its default quotas in a region, where it has
// none.
func (s *Service) Prepare(ctx context.Context, organizationID, regionID string) error {
	d := s.config.Defaults
	r := &Region{OrganizationID: organizationID, RegionID: regionID, Class: s.config.Class, CPU: d.CPU, Memory: d.Memory, Disk: d.Disk, GPU: d.GPU}
	_, err := s.db.All(ctx).NewInsert().Model(r).On("CONFLICT DO NOTHING").Exec(ctx)
	return err
}

func (r *Region) check() error {
	if !slices.Contains(Classes(), r.Class) {
		return invalid("sandboxClass must be one of linux-vm, container, android, windows, not %q", r.Class)
	}
	// The longest that fits into a duration is 290 years.
	if v := r.MaxLifespan; v != nil && !(*v >= 0 && *v <= 1e8) {
		return invalid("maxSandboxLifespan must be between 0 and 100000000, not %s", number(*v))
	}
	values := []*float64{&r.CPU, &r.Memory, &r.Disk, &r.GPU, r.MaxCPU, r.MaxMemory, r.MaxDisk, r.MaxDiskLasting, r.MaxCPUPerGPU, r.MaxMemoryPerGPU,
		r.MaxDiskPerGPU, r.MaxCPUGPUSandbox, r.MaxMemoryGPUSandbox, r.MaxDiskGPUSandbox}
	for _, v := range values {
		if v != nil && !(*v >= 0 && *v < 1e9) {
			return invalid("quotas must be at least 0 and less than 1000000000, not %s", number(*v))
		}
	}
	return nil
}

// CreateRegionQuota adds one.
func (s *Service) CreateRegionQuota(ctx context.Context, r *Region) error {
	if err := r.check(); err != nil {
		return err
	}
	_, err := s.db.All(ctx).NewInsert().Model(r).Exec(ctx)
	if store.IsUnique(err) {
		return &daytona.Error{Kind: daytona.KindConflict, Message: "Region quota already exists"}
	}
	return err
}

// UpdateRegionQuota changes one: f gets it.
func (s *Service) UpdateRegionQuota(ctx context.Context, organizationID, regionID, class string, f func(*Region)) error {
	return s.db.Tx(ctx, func(ctx context.Context) error {
		if err := s.lock(ctx, organizationID); err != nil {
			return err
		}
		r, err := s.RegionQuota(ctx, organizationID, regionID, class)
		if err != nil {
			return err
		}
		f(r)
		if err := r.check(); err != nil {
			return err
		}
		return store.Changed(s.db.In(ctx, organizationID).Update(r).WherePK().Exec(ctx))
	})
}

// DeleteRegionQuota removes one.
func (s *Service) DeleteRegionQuota(ctx context.Context, organizationID, regionID, class string) error {
	return s.db.Tx(ctx, func(ctx context.Context) error {
		if _, err := s.RegionQuota(ctx, organizationID, regionID, class); err != nil {
			return err
		}
		_, err := s.db.In(ctx, organizationID).Delete((*Region)(nil)).Where("region_id = ? AND sandbox_class = ?", regionID, class).Exec(ctx)
		return err
	})
}

// Lifespan returns the longest that a sandbox of an organization may live; 0
// is for any time.
func (s *Service) Lifespan(ctx context.Context, organizationID, regionID, class string) (time.Duration, error) {
	r, err := s.Effective(ctx, organizationID, regionID, class)
	if err != nil || r.MaxLifespan == nil {
		return 0, err
	}
	return time.Duration(*r.MaxLifespan * float64(time.Minute)), nil
}

// DeleteAll removes what there is of an organization that is being deleted.
func (s *Service) DeleteAll(ctx context.Context, organizationID string) error {
	for _, model := range []any{(*Region)(nil), (*Limits)(nil), (*reservation)(nil)} {
		if _, err := s.db.In(ctx, organizationID).Delete(model).Exec(ctx); err != nil {
			return err
		}
	}
	return nil
}

// lock makes those wait for each other who reserve for one organization, until
// the end of the transaction. SQLite has one writer at a time anyway.
func (s *Service) lock(ctx context.Context, organizationID string) error {
	if !s.db.Postgres() {
		return nil
	}
	_, err := s.db.All(ctx).NewRaw("SELECT pg_advisory_xact_lock(hashtextextended(?, 20))", organizationID).Exec(ctx)
	return err
}

// number writes a number as short as it goes.
func number(v float64) string { return strconv.FormatFloat(v, 'f', -1, 64) }
