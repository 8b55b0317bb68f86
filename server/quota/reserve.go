package quota

import (
	"context"
	"slices"

	"github.com/uptrace/bun"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/store"
)

// Claim is what a sandbox uses in its present state: all of it while it runs
// or is about to, its disk alone while it is stopped.
type Claim struct {
	SandboxID, OrganizationID, RegionID string
	// Class defaults to "container".
	Class string
	// CPU and GPU are counted, Memory and Disk are in GiB.
	CPU, Memory, Disk, GPU float64
	// GPUType is the one that is asked for; "" for any.
	GPUType string
	// Ephemeral says that the sandbox goes when it stops.
	Ephemeral bool
}

// reservation is a row of what is used.
type reservation struct {
	bun.BaseModel `bun:"table:reservations,alias:reservation"`

	Kind           string  `bun:"kind,pk"`
	ID             string  `bun:"resource_id,pk"`
	OrganizationID string  `bun:"organization_id,notnull"`
	RegionID       string  `bun:"region_id,notnull"`
	Class          string  `bun:"sandbox_class,notnull"`
	CPU            float64 `bun:"cpu,notnull"`
	Memory         float64 `bun:"memory,notnull"`
	Disk           float64 `bun:"disk,notnull"`
	GPU            float64 `bun:"gpu,notnull"`
}

// more is the rest of a message about a limit: what to do.
const more = "\nAsk for less, free what is not needed, or ask an administrator of the server for a higher limit."

// Check returns an error if a sandbox is larger than one may be, or of a kind
// that the organization may not have. It looks at the sandbox alone.
func (s *Service) Check(ctx context.Context, c Claim) error {
	_, err := s.check(ctx, c)
	return err
}

// check returns the quotas that count for a claim. Where the organization has
// none in the region they are nil.
func (s *Service) check(ctx context.Context, c Claim) (*Region, error) {
	l, err := s.Limits(ctx, c.OrganizationID)
	if err != nil {
		return nil, err
	}
	r, err := s.RegionQuota(ctx, c.OrganizationID, c.RegionID, c.Class)
	if daytona.KindOf(err) == daytona.KindNotFound {
		r = nil
	} else if err != nil {
		return nil, err
	}
	q := r
	if q == nil {
		q = &Region{}
	}
	max := func(sandboxes, gpuSandboxes, perGPU *float64, organization, gpu float64) float64 {
		switch {
		case c.GPU == 0 && sandboxes != nil:
			return *sandboxes
		case c.GPU == 0:
			return organization
		case gpuSandboxes != nil:
			return *gpuSandboxes
		case perGPU != nil:
			return *perGPU * c.GPU
		}
		return gpu
	}
	if m := max(q.MaxCPU, q.MaxCPUGPUSandbox, q.MaxCPUPerGPU, l.MaxCPU, defaultGPUCPU); c.CPU > m {
		return nil, invalid("CPU request %s exceeds maximum allowed per sandbox (%s).%s", number(c.CPU), number(m), more)
	}
	if m := max(q.MaxMemory, q.MaxMemoryGPUSandbox, q.MaxMemoryPerGPU, l.MaxMemory, defaultGPUMemory); c.Memory > m {
		return nil, invalid("Memory request %sGB exceeds maximum allowed per sandbox (%sGB).%s", number(c.Memory), number(m), more)
	}
	if m := max(q.MaxDisk, q.MaxDiskGPUSandbox, q.MaxDiskPerGPU, l.MaxDisk, defaultGPUDisk); c.Disk > m {
		return nil, invalid("Disk request %sGB exceeds maximum allowed per sandbox (%sGB).%s", number(c.Disk), number(m), more)
	}
	if m := q.MaxDiskLasting; m != nil && !c.Ephemeral && c.Disk > *m {
		if *m == 0 {
			return nil, invalid("Sandboxes in this region must be ephemeral - set autoDeleteInterval to 0")
		}
		return nil, invalid("Disk request %sGB exceeds maximum allowed per non-ephemeral sandbox (%sGB).%s", number(c.Disk), number(*m), more)
	}
	if c.GPU > 0 && c.GPUType != "" && q.GPUTypes != nil && !slices.Contains(q.GPUTypes, c.GPUType) {
		return nil, invalid("GPU type %s is not available to the organization in this region", c.GPUType)
	}
	return r, nil
}

// Reserve records what a sandbox uses from now on, if it may be so large and
// if, where that is enforced, the organization's total has room for it: the
// error says which limit is in the way. Of a sandbox that has a reservation,
// it is replaced, and only what grows is asked for. It belongs in the
// transaction that makes or changes the sandbox.
func (s *Service) Reserve(ctx context.Context, c Claim) error {
	if c.Class == "" {
		c.Class = s.config.Class
	}
	return s.db.Tx(ctx, func(ctx context.Context) error {
		if err := s.lock(ctx, c.OrganizationID); err != nil {
			return err
		}
		r, err := s.check(ctx, c)
		if err != nil {
			return err
		}
		enforced, err := s.config.Regions.Enforced(ctx, c.RegionID)
		if err != nil {
			return err
		}
		before, err := s.reserved(ctx, sandbox, c.OrganizationID, c.SandboxID)
		if err != nil {
			return err
		}
		if enforced {
			if r == nil {
				return &daytona.Error{Kind: daytona.KindForbidden, Message: "Region " + c.RegionID + " is not available to the organization for sandboxes of class " + c.Class}
			}
			used, err := s.used(ctx, c.OrganizationID, c.RegionID, c.Class, c.SandboxID)
			if err != nil {
				return err
			}
			for _, x := range []struct {
				name, unit            string
				want, had, used, most float64
			}{
				{"CPU", "", c.CPU, before.CPU, used.CPU, r.CPU},
				{"memory", "GiB", c.Memory, before.Memory, used.Memory, r.Memory},
				{"disk", "GiB", c.Disk, before.Disk, used.Disk, r.Disk},
				{"GPU", "", c.GPU, before.GPU, used.GPU, r.GPU},
			} {
				if x.want > x.had && x.used+x.want > x.most {
					return invalid("Total %s limit exceeded. Maximum allowed: %s%s.%s", x.name, number(x.most), x.unit, more)
				}
			}
		}
		return s.put(ctx, &reservation{
			Kind: sandbox, ID: c.SandboxID, OrganizationID: c.OrganizationID, RegionID: c.RegionID, Class: c.Class,
			CPU: c.CPU, Memory: c.Memory, Disk: c.Disk, GPU: c.GPU,
		})
	})
}

// Adjust records what a sandbox uses without asking whether it may: what has
// happened has happened, as when one has stopped and has no more than its disk.
func (s *Service) Adjust(ctx context.Context, c Claim) error {
	if c.Class == "" {
		c.Class = s.config.Class
	}
	return s.db.Tx(ctx, func(ctx context.Context) error {
		if err := s.lock(ctx, c.OrganizationID); err != nil {
			return err
		}
		return s.put(ctx, &reservation{
			Kind: sandbox, ID: c.SandboxID, OrganizationID: c.OrganizationID, RegionID: c.RegionID, Class: c.Class,
			CPU: c.CPU, Memory: c.Memory, Disk: c.Disk, GPU: c.GPU,
		})
	})
}

// Release ends the reservation of a sandbox, if it has one.
func (s *Service) Release(ctx context.Context, sandboxID string) error {
	return s.release(ctx, sandbox, sandboxID)
}

// ReserveSecret reserves one of the secrets that an organization may have. Of
// one that is reserved already it changes nothing.
func (s *Service) ReserveSecret(ctx context.Context, organizationID, id string) error {
	return s.db.Tx(ctx, func(ctx context.Context) error {
		if err := s.lock(ctx, organizationID); err != nil {
			return err
		}
		l, err := s.Limits(ctx, organizationID)
		if err != nil {
			return err
		}
		had, err := s.reserved(ctx, secret, organizationID, id)
		if err != nil || had.ID != "" {
			return err
		}
		n, err := s.db.In(ctx, organizationID).Select((*reservation)(nil)).Where("kind = ?", secret).Count(ctx)
		if err != nil {
			return err
		}
		if int(n) >= l.Secrets {
			return invalid("Secret quota exceeded. Maximum allowed: %d", l.Secrets)
		}
		return s.put(ctx, &reservation{Kind: secret, ID: id, OrganizationID: organizationID})
	})
}

// ReleaseSecret ends what is reserved for a secret.
func (s *Service) ReleaseSecret(ctx context.Context, id string) error {
	return s.release(ctx, secret, id)
}

func (s *Service) release(ctx context.Context, kind, id string) error {
	// Who has the id of a thing has found it in its organization.
	_, err := s.db.All(ctx).NewDelete().Model((*reservation)(nil)).Where("kind = ? AND resource_id = ?", kind, id).Exec(ctx)
	return err
}

func (s *Service) reserved(ctx context.Context, kind, organizationID, id string) (*reservation, error) {
	r := &reservation{}
	err := s.db.In(ctx, organizationID).Select(r).Where("kind = ? AND resource_id = ?", kind, id).Scan(ctx)
	if store.IsNone(err) {
		return &reservation{}, nil
	}
	return r, err
}

func (s *Service) put(ctx context.Context, r *reservation) error {
	q := s.db.All(ctx).NewInsert().Model(r).On("CONFLICT (kind, resource_id) DO UPDATE")
	// A sandbox of the warm pool changes its organization.
	for _, c := range []string{"organization_id", "region_id", "sandbox_class", "cpu", "memory", "disk", "gpu"} {
		q = q.Set(c + " = EXCLUDED." + c)
	}
	_, err := q.Exec(ctx)
	return err
}

// Usage is what an organization uses in a region, for a class.
type Usage struct {
	RegionID string  `bun:"region_id"`
	Class    string  `bun:"sandbox_class"`
	CPU      float64 `bun:"cpu"`
	Memory   float64 `bun:"memory"`
	Disk     float64 `bun:"disk"`
	GPU      float64 `bun:"gpu"`
}

const sums = "COALESCE(SUM(cpu), 0.0) AS cpu, COALESCE(SUM(memory), 0.0) AS memory, COALESCE(SUM(disk), 0.0) AS disk, COALESCE(SUM(gpu), 0.0) AS gpu"

func (s *Service) used(ctx context.Context, organizationID, regionID, class, without string) (*Usage, error) {
	u := &Usage{}
	return u, s.db.In(ctx, organizationID).Select((*reservation)(nil)).ColumnExpr(sums).
		Where("kind = ? AND region_id = ? AND sandbox_class = ? AND resource_id <> ?", sandbox, regionID, class, without).Scan(ctx, u)
}

// Used returns what an organization uses, by region and class.
func (s *Service) Used(ctx context.Context, organizationID string) ([]Usage, error) {
	var all []Usage
	err := s.db.In(ctx, organizationID).Select((*reservation)(nil)).ColumnExpr("region_id, sandbox_class, "+sums).
		Where("kind = ?", sandbox).GroupExpr("region_id, sandbox_class").OrderExpr("region_id, sandbox_class").Scan(ctx, &all)
	return all, err
}

// Effective returns the quotas of an organization in a region for a class: its
// own, or else the defaults.
func (s *Service) Effective(ctx context.Context, organizationID, regionID, class string) (*Region, error) {
	r, err := s.RegionQuota(ctx, organizationID, regionID, class)
	if daytona.KindOf(err) == daytona.KindNotFound {
		d := s.config.Defaults
		return &Region{OrganizationID: organizationID, RegionID: regionID, Class: class, CPU: d.CPU, Memory: d.Memory, Disk: d.Disk, GPU: d.GPU}, nil
	}
	return r, err
}

// DefaultClass is the class of sandboxes where nothing else is said.
func (s *Service) DefaultClass() string { return s.config.Class }
