package sandbox

import (
	"context"
	"time"

	"github.com/uptrace/bun"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/store"
)

// poolWake is what [TopicWake] has when pools are to be looked at.
const poolWake = "pools"

// maxPool is the largest pool; the quota may allow less.
const maxPool = 1000

// Pool keeps started sandboxes of a snapshot ready.
type Pool struct {
	bun.BaseModel `bun:"table:warm_pools,alias:pool"`

	ID             string `bun:"id,pk"`
	OrganizationID string `bun:"organization_id,notnull"`
	Snapshot       string `bun:"snapshot,notnull"`
	SnapshotID     string `bun:"snapshot_id,notnull"`
	RegionID       string `bun:"region_id,notnull"`
	Size           int    `bun:"size,notnull"`
	// Current is how many are ready.
	Current     int       `bun:"current,scanonly"`
	CPU         int       `bun:"cpu,notnull"`
	Memory      int       `bun:"memory,notnull"`
	Disk        int       `bun:"disk,notnull"`
	User        string    `bun:"os_user,notnull"`
	ErrorReason string    `bun:"error_reason,notnull"`
	CreatedAt   time.Time `bun:"created_at,notnull"`
	UpdatedAt   time.Time `bun:"updated_at,notnull"`
}

const current = "(SELECT COUNT(*) FROM sandboxes AS s WHERE s.warm_pool_id = pool.id AND s.state = 'started' AND s.desired_state = 'started') AS current"

// Pools returns the pools of an organization, oldest first.
func (s *Service) Pools(ctx context.Context, organizationID string) ([]*Pool, error) {
	all := []*Pool{}
	err := s.db.In(ctx, organizationID).Select(&all).ColumnExpr("pool.*").ColumnExpr(current).Order("created_at", "id").Limit(1000).Scan(ctx)
	return all, err
}

func (s *Service) pool(ctx context.Context, organizationID, id string) (*Pool, error) {
	p := &Pool{}
	err := s.db.In(ctx, organizationID).Select(p).ColumnExpr("pool.*").ColumnExpr(current).Where("pool.id = ?", id).Scan(ctx)
	if store.IsNone(err) {
		return nil, &daytona.Error{Kind: daytona.KindNotFound, Message: "Warm pool with ID " + clip(id) + " not found"}
	}
	return p, err
}

func checkPool(size, least int) error {
	if size < least || size > maxPool {
		return invalid("pool %d must be %d to %d", size, least, maxPool)
	}
	return nil
}

// CreatePool makes a pool, which fills from now on.
func (s *Service) CreatePool(ctx context.Context, organizationID, snapshot, target string, size int) (*Pool, error) {
	if _, err := s.deps.Organizations.Active(ctx, organizationID); err != nil {
		return nil, err
	}
	if err := checkPool(size, 1); err != nil {
		return nil, err
	}
	if snapshot == "" {
		return nil, invalid("snapshot must be the id or name of a snapshot")
	}
	region, err := s.deps.Regions.Target(ctx, organizationID, target)
	if err != nil {
		return nil, err
	}
	n := &Spec{Snapshot: snapshot}
	sb, err := s.prepare(ctx, organizationID, region, n)
	if err != nil {
		return nil, err
	}
	if sb.GPU > 0 || sb.Class == ClassAndroid {
		return nil, invalid("A warm pool can not have sandboxes with a GPU or of class %s", ClassAndroid)
	}
	now := s.now()
	p := &Pool{ID: newID(), OrganizationID: organizationID, Snapshot: sb.Snapshot, SnapshotID: sb.SnapshotID, RegionID: region.ID, Size: size,
		CPU: sb.CPU, Memory: sb.Memory, Disk: sb.Disk, User: sb.User, CreatedAt: now, UpdatedAt: now}
	err = s.db.Tx(ctx, func(ctx context.Context) error {
		if _, err := s.db.All(ctx).NewInsert().Model(p).Exec(ctx); err != nil {
			if store.IsUnique(err) {
				return &daytona.Error{Kind: daytona.KindConflict, Message: "A warm pool for snapshot " + sb.Snapshot + " already exists in this region"}
			}
			return err
		}
		return s.db.Publish(ctx, TopicWake, poolWake)
	})
	if err != nil {
		return nil, err
	}
	return p, nil
}

// ResizePool changes how many sandboxes a pool keeps.
func (s *Service) ResizePool(ctx context.Context, organizationID, id string, size int) (*Pool, error) {
	if err := checkPool(size, 0); err != nil {
		return nil, err
	}
	var p *Pool
	err := s.db.Tx(ctx, func(ctx context.Context) (err error) {
		if p, err = s.pool(ctx, organizationID, id); err != nil {
			return err
		}
		p.Size, p.UpdatedAt, p.ErrorReason = size, s.now(), ""
		if _, err := s.db.In(ctx, organizationID).Update(p).Column("size", "updated_at", "error_reason").WherePK().Exec(ctx); err != nil {
			return err
		}
		return s.db.Publish(ctx, TopicWake, poolWake)
	})
	return p, err
}

// DeletePool deletes a pool, and the sandboxes that wait in it.
func (s *Service) DeletePool(ctx context.Context, organizationID, id string) error {
	return s.db.Tx(ctx, func(ctx context.Context) error {
		p, err := s.pool(ctx, organizationID, id)
		if err != nil {
			return err
		}
		if _, err := s.db.In(ctx, organizationID).Delete(p).WherePK().Exec(ctx); err != nil {
			return err
		}
		return s.db.Publish(ctx, TopicWake, poolWake)
	})
}

// claim gives a sandbox of a pool to who asks for just such a one. It is from
// then on as if it had been made now: nothing of it says that it waited.
func (s *Service) claim(ctx context.Context, sb *Sandbox, n *Spec) (*Sandbox, error) {
	if sb.SnapshotID == "" || sb.Build != nil || sb.GPU > 0 || sb.LinkedID != "" || len(sb.Volumes) > 0 || len(sb.Secrets) > 0 || len(sb.Env) > 0 ||
		sb.User != defaultUser || sb.NetworkBlockAll || sb.NetworkAllowList != nil || sb.DomainAllowList != nil || sb.OutboundProxy != "" || sb.OTelEndpoint != "" {
		return nil, nil
	}
	some, err := s.db.In(ctx, sb.OrganizationID).Select((*Pool)(nil)).Where("snapshot_id = ? AND region_id = ?", sb.SnapshotID, sb.RegionID).Exists(ctx)
	if err != nil || !some {
		return nil, err
	}
	var claimed *Sandbox
	err = s.db.Tx(ctx, func(ctx context.Context) error {
		claimed = nil
		// Of another user's name there is an error, as without a pool.
		taken, err := s.db.In(ctx, sb.OrganizationID).Select((*Sandbox)(nil)).Where("name = ?", sb.Name).Exists(ctx)
		if err != nil || taken {
			return err
		}
		var waiting []*Sandbox
		q := s.db.In(ctx, sb.OrganizationID).Select(&waiting).
			Where("warm_pool_id IN (SELECT id FROM warm_pools WHERE organization_id = ? AND snapshot_id = ? AND region_id = ?)", sb.OrganizationID, sb.SnapshotID, sb.RegionID).
			Where("state = ? AND desired_state = ? AND job_id = '' AND ref = ? AND cpu = ? AND memory = ? AND disk = ?", Started, WantStarted, sb.Ref, sb.CPU, sb.Memory, sb.Disk).
			Order("created_at", "id").Limit(10)
		if s.db.Postgres() {
			q = q.For("UPDATE SKIP LOCKED")
		}
		if err := q.Scan(ctx); err != nil {
			return err
		}
		for _, w := range waiting {
			r, err := s.runner(ctx, w.RunnerID)
			if err != nil {
				return err
			}
			if !r.Usable || r.Draining {
				continue
			}
			w.remember()
			if n.Name != "" {
				w.Name = n.Name
			} else {
				w.Name = w.ID
			}
			w.WarmPoolID, w.Labels, w.Public = "", sb.Labels, sb.Public
			w.AutoStop, w.AutoPause, w.AutoArchive, w.AutoDelete = sb.AutoStop, sb.AutoPause, sb.AutoArchive, sb.AutoDelete
			w.DestroyAt, w.CreatedAt, w.StateSince, w.StartedAt = sb.DestroyAt, sb.CreatedAt, sb.CreatedAt, new(sb.CreatedAt)
			w.LastJobID, w.LastJobError, w.ErrorReason = "", "", ""
			w.SigningKey = s.seals.seal("signing "+w.ID, token(64))
			if err := s.renew(w); err != nil {
				return err
			}
			if err := s.saveLabels(ctx, w); err != nil {
				return err
			}
			if err := s.save(ctx, w); err != nil {
				return err
			}
			now := s.now()
			w.LastActivityAt = now
			if _, err := s.db.In(ctx, w.OrganizationID).Update((*Sandbox)(nil)).Set("last_activity_at = ?", now).Where("id = ?", w.ID).Exec(ctx); err != nil {
				return err
			}
			if err := s.publish(ctx, Event{Name: "sandbox.created", Sandbox: w}); err != nil {
				return err
			}
			claimed = w
			return s.db.Publish(ctx, TopicWake, poolWake)
		}
		return nil
	})
	return claimed, err
}

// reconcilePools fills pools, and empties those that are too large or gone.
func (s *Service) reconcilePools(ctx context.Context) error {
	var pools []*Pool
	if err := s.db.All(ctx).NewSelect().Model(&pools).Order("id").Scan(ctx); err != nil {
		return err
	}
	for _, p := range pools {
		if err := s.fill(ctx, p); err != nil {
			return err
		}
	}
	ids, err := s.ids(ctx, func(q *bun.SelectQuery) *bun.SelectQuery {
		return there(q).Where("warm_pool_id <> '' AND state <> ? AND desired_state <> ?", Destroyed, WantDestroyed).
			Where("NOT EXISTS (SELECT 1 FROM warm_pools AS p WHERE p.id = sandbox.warm_pool_id)")
	})
	if err != nil {
		return err
	}
	return s.each(ctx, ids, s.autoDestroy)
}

func (s *Service) fill(ctx context.Context, p *Pool) error {
	var members []*Sandbox
	err := s.db.All(ctx).NewSelect().Model(&members).Column("id", "state", "desired_state", "ref").
		Where("warm_pool_id = ? AND warm_pool_id <> '' AND state <> ? AND desired_state <> ?", p.ID, Destroyed, WantDestroyed).Order("created_at", "id").Scan(ctx)
	if err != nil {
		return err
	}
	alive := 0
	for _, m := range members {
		switch {
		case m.State == Errored || m.State == BuildFailed || m.State == Stopped || alive >= p.Size:
			// autoDestroy only touches what still waits: see there.
			if err := s.dismiss(ctx, m.ID, p.ID); err != nil {
				return err
			}
		default:
			alive++
		}
	}
	reason := ""
	for ; alive < p.Size; alive++ {
		if err := s.addMember(ctx, p); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if daytona.KindOf(err) == daytona.KindInternal {
				return err
			}
			reason = message(err)
			break
		}
	}
	if reason != p.ErrorReason {
		_, err = s.db.In(ctx, p.OrganizationID).Update((*Pool)(nil)).Set("error_reason = ?", reason).Where("id = ?", p.ID).Exec(ctx)
	}
	return err
}

// dismiss destroys a sandbox that still waits in a pool.
func (s *Service) dismiss(ctx context.Context, id, pool string) error {
	return s.tryTo(ctx, id, func(ctx context.Context, sb *Sandbox) error {
		if sb.WarmPoolID != pool {
			return errNot
		}
		return s.destroy(ctx, sb)
	})
}

func (s *Service) addMember(ctx context.Context, p *Pool) error {
	if _, err := s.deps.Organizations.Active(ctx, p.OrganizationID); err != nil {
		return err
	}
	region, err := s.deps.Regions.Region(ctx, p.RegionID)
	if err != nil {
		return err
	}
	n := &Spec{Snapshot: p.SnapshotID}
	sb, err := s.prepare(ctx, p.OrganizationID, region, n)
	if err != nil {
		return err
	}
	sb.WarmPoolID, sb.AutoStop, sb.AutoPause, sb.DestroyAt = p.ID, 0, 0, nil
	err = s.db.Tx(ctx, func(ctx context.Context) error {
		// Two servers that fill at once must not make twice as many.
		q := s.db.In(ctx, p.OrganizationID).Select(p).WherePK()
		if s.db.Postgres() {
			q = q.For("UPDATE")
		}
		if err := q.Scan(ctx); err != nil {
			return err
		}
		have, err := s.db.In(ctx, p.OrganizationID).Select((*Sandbox)(nil)).
			Where("warm_pool_id = ? AND warm_pool_id <> '' AND state NOT IN ('destroyed', 'error', 'build_failed', 'stopped') AND desired_state <> ?", p.ID, WantDestroyed).Count(ctx)
		if err != nil || int(have) >= p.Size {
			return err
		}
		return s.add(ctx, sb)
	})
	if store.IsNone(err) {
		return nil // the pool was deleted meanwhile
	}
	return err
}
