package runner

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/uptrace/bun"

	"github.com/daytona-go/daytona"
)

// reservation is what a runner has promised and not yet told of.
type reservation struct {
	bun.BaseModel `bun:"table:runner_reservations,alias:reservation"`

	ID         string     `bun:"id,pk"`
	RunnerID   string     `bun:"runner_id,notnull"`
	CPU        float64    `bun:"cpu,notnull"`
	Memory     float64    `bun:"memory,notnull"`
	Disk       float64    `bun:"disk,notnull"`
	GPU        float64    `bun:"gpu,notnull"`
	ReleasedAt *time.Time `bun:"released_at"`
	ExpiresAt  time.Time  `bun:"expires_at,notnull"`
}

// Want is a sandbox to find a runner for.
type Want struct {
	// Key names the promise, so that [Service.Release] can end it and a second
	// one takes the place of the first: the sandbox's id. Defaults to a random one.
	Key string
	// RegionID is required; Class defaults to "container".
	RegionID, Class string
	Resources       daytona.Resources
	// GPUTypes are those that will do, best first. Empty for all.
	GPUTypes []string
	// Needs must all be among the runner's capabilities.
	Needs []string
	// Only, if not nil, are the runners that will do; never those of Not.
	Only, Not []string
	// Prefer are runners that are taken if one of them has room: those that have
	// the snapshot.
	Prefer []string
}

// Placed is where a sandbox goes.
type Placed struct {
	RunnerID string
	GPUType  string
}

const (
	// holds is how long a promise is kept that nobody says more of: longer than
	// it takes until the runner's own figures have the sandbox.
	holds = 2 * time.Minute
	best  = 10 // runners among which chance decides
)

// Place finds a runner, and takes what is wanted off what it has free: at
// random among the ten of the highest score. KindUnsupported, naming the
// capability, if no runner of the region has what is needed, and KindInvalid
// "No available runners" if none has room now.
func (s *Service) Place(ctx context.Context, w Want) (Placed, error) {
	none := invalid("No available runners")
	w.Key, w.Class = cmp.Or(w.Key, uuid.NewString()), cmp.Or(w.Class, "container")
	var placed Placed
	err := s.db.Tx(ctx, func(ctx context.Context) error {
		var all []Runner
		q := s.db.All(ctx).NewSelect().Model(&all).Where("region_id = ?", w.RegionID).Order("id")
		if s.db.Postgres() {
			// Who places in the same region waits, and sees what was promised here.
			q = q.For("UPDATE")
		}
		if err := q.Scan(ctx); err != nil {
			return err
		}
		all = slices.DeleteFunc(all, func(r Runner) bool {
			return !serves(&r, w.Class) || (r.GPU > 0) != (w.Resources.GPU > 0) ||
				w.Only != nil && !slices.Contains(w.Only, r.ID) || slices.Contains(w.Not, r.ID)
		})
		for _, need := range w.Needs {
			if len(all) > 0 && !slices.ContainsFunc(all, func(r Runner) bool { return r.Can(need) }) {
				return &daytona.Error{Kind: daytona.KindUnsupported, Message: fmt.Sprintf("No runner of this region can do %q", need)}
			}
		}
		now := s.o.Now().UTC()
		var promised []reservation
		if err := s.db.All(ctx).NewSelect().Model(&promised).Where("expires_at > ? AND id <> ?", now, w.Key).Scan(ctx); err != nil {
			return err
		}
		var fit []Runner
		for _, r := range all {
			if r.State != Ready || r.Unschedulable || r.Draining || r.Score < s.o.Threshold ||
				slices.ContainsFunc(w.Needs, func(need string) bool { return !r.Can(need) }) ||
				len(w.GPUTypes) > 0 && !slices.Contains(w.GPUTypes, r.GPUType) {
				continue
			}
			for _, p := range promised {
				// What the runner has told of since is in its own figures.
				if p.RunnerID == r.ID && (p.ReleasedAt == nil || r.MeasuredAt == nil || p.ReleasedAt.After(*r.MeasuredAt)) {
					r.Used.AllocatedCPU += p.CPU
					r.Used.AllocatedMemory += p.Memory
					r.Used.AllocatedDisk += p.Disk
					r.GPU -= p.GPU
				}
			}
			room := func(has, factor, used, wanted float64) bool { return has <= 0 || used+wanted <= has*factor }
			if !room(r.CPU, s.o.Overcommit.CPU, r.Used.AllocatedCPU, w.Resources.CPU) ||
				!room(r.Memory, s.o.Overcommit.Memory, r.Used.AllocatedMemory, w.Resources.Memory) ||
				!room(r.Disk, s.o.Overcommit.Disk, r.Used.AllocatedDisk, w.Resources.Disk) ||
				r.GPU < float64(w.Resources.GPU) {
				continue
			}
			r.Score = score(&r)
			fit = append(fit, r)
		}
		if near := slices.DeleteFunc(slices.Clone(fit), func(r Runner) bool { return !slices.Contains(w.Prefer, r.ID) }); len(near) > 0 {
			fit = near
		}
		if len(fit) == 0 {
			return none
		}
		rank := func(r Runner) int { return slices.Index(w.GPUTypes, r.GPUType) } // -1 for all where none is named
		slices.SortFunc(fit, func(a, b Runner) int { return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(b.Score, a.Score)) })
		fit = fit[:min(len(fit), best)]
		fit = slices.DeleteFunc(fit, func(r Runner) bool { return rank(r) != rank(fit[0]) })
		r := fit[rand.IntN(len(fit))]
		placed = Placed{r.ID, r.GPUType}
		_, err := s.db.All(ctx).NewInsert().Model(&reservation{
			ID: w.Key, RunnerID: r.ID, CPU: w.Resources.CPU, Memory: w.Resources.Memory, Disk: w.Resources.Disk, GPU: float64(w.Resources.GPU),
			ExpiresAt: now.Add(holds),
		}).On("CONFLICT (id) DO UPDATE").Set("runner_id = EXCLUDED.runner_id, cpu = EXCLUDED.cpu, memory = EXCLUDED.memory, disk = EXCLUDED.disk, gpu = EXCLUDED.gpu, released_at = NULL, expires_at = EXCLUDED.expires_at").Exec(ctx)
		return err
	})
	return placed, err
}

// serves reports whether a runner has sandboxes of a class.
func serves(r *Runner, class string) bool {
	if class == "android" { // which is a program in a container
		class = "container"
	}
	return r.Class == class
}

// Release says that what was promised is there or will not be: the runner's
// next figures tell.
func (s *Service) Release(ctx context.Context, key string) error {
	_, err := s.db.All(ctx).NewUpdate().Model((*reservation)(nil)).Set("released_at = ?", s.o.Now().UTC()).Where("id = ? AND released_at IS NULL", key).Exec(ctx)
	return err
}

// Pick returns a runner of a region, or of any for "", that can do work which
// is no sandbox, such as pulling an image: at random among the ten of the
// highest score. KindInvalid "No available runners" if there is none.
func (s *Service) Pick(ctx context.Context, regionID, class string, needs ...string) (runnerID string, err error) {
	all, err := s.All(ctx, regionID)
	if err != nil {
		return "", err
	}
	all = slices.DeleteFunc(all, func(r Runner) bool {
		return r.State != Ready || r.Unschedulable || r.Draining || r.Score < s.o.Threshold || !serves(&r, cmp.Or(class, "container")) ||
			slices.ContainsFunc(needs, func(need string) bool { return !r.Can(need) })
	})
	if len(all) == 0 {
		return "", invalid("No available runners")
	}
	slices.SortFunc(all, func(a, b Runner) int { return cmp.Compare(b.Score, a.Score) })
	return all[rand.IntN(min(len(all), best))].ID, nil
}

// Usable returns those of the ids that are ready for sandboxes.
func (s *Service) Usable(ctx context.Context, ids []string) ([]string, error) {
	usable := []string{}
	if len(ids) == 0 {
		return usable, nil
	}
	err := s.db.All(ctx).NewSelect().Model((*Runner)(nil)).Column("id").Where("id IN (?)", bun.List(ids)).
		Where("state = ? AND unschedulable = ? AND draining = ?", Ready, false, false).Order("id").Scan(ctx, &usable)
	return usable, err
}

// InRegion returns how many runners a region has.
func (s *Service) InRegion(ctx context.Context, regionID string) (int, error) {
	n, err := s.db.All(ctx).NewSelect().Model((*Runner)(nil)).Where("region_id = ?", regionID).Count(ctx)
	return int(n), err
}
