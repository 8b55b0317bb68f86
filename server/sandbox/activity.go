package sandbox

import (
	"context"
	"fmt"
	"time"

	"github.com/uptrace/bun"

	"github.com/daytona-go/daytona"
)

// throttle is how often the use of one sandbox is noted.
const throttle = 5 * time.Second

// Touch notes that a sandbox is used, so that it does not stop by itself. It is
// written with the next [Service.Flush]. organizationID is "" for the services
// of the system, which have asked for the sandbox before.
func (s *Service) Touch(ctx context.Context, organizationID, id string) error {
	now := s.now()
	s.mu.Lock()
	last, known := s.touched[id]
	s.mu.Unlock()
	if organizationID == "" && known && now.Sub(last) < throttle {
		return nil
	}
	if organizationID != "" {
		sb, err := s.Get(ctx, organizationID, id)
		if err != nil {
			return err
		}
		id = sb.ID
	} else if !known {
		// What is not there must not fill the memory.
		if _, err := s.Find(ctx, id); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if last, known := s.touched[id]; known && now.Sub(last) < throttle {
		return nil
	}
	s.touched[id], s.active[id] = now, now
	return nil
}

// Flush writes down what [Service.Touch] has noted.
func (s *Service) Flush(ctx context.Context) error {
	s.mu.Lock()
	active := s.active
	s.active = map[string]time.Time{}
	for id, at := range s.touched {
		if s.now().Sub(at) > time.Minute {
			delete(s.touched, id)
		}
	}
	s.mu.Unlock()
	if len(active) == 0 {
		return nil
	}
	err := s.db.Tx(ctx, func(ctx context.Context) error {
		// Those of one second in one statement: a thousand sandboxes in use are
		// some statements.
		groups := map[time.Time][]string{}
		for id, at := range active {
			at = at.Truncate(time.Second)
			groups[at] = append(groups[at], id)
		}
		for at, ids := range groups {
			_, err := s.db.All(ctx).NewUpdate().Model((*Sandbox)(nil)).Set("last_activity_at = ?", at).
				Where("id IN (?) AND last_activity_at < ?", bun.List(ids), at).Exec(ctx)
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		for id, at := range active {
			if at.After(s.active[id]) {
				s.active[id] = at
			}
		}
	}
	return err
}

// Location is where a sandbox is, for who passes requests on to it.
type Location struct {
	ID, OrganizationID, RegionID, RunnerID string
	State                                  State
}

// Locate returns where a sandbox is; KindNotFound if no runner has it.
func (s *Service) Locate(ctx context.Context, id string) (Location, error) {
	sb, err := s.Find(ctx, id)
	if err != nil {
		return Location{}, err
	}
	if sb.RunnerID == "" {
		return Location{}, &daytona.Error{Kind: daytona.KindNotFound, Message: "Sandbox " + clip(id) + " has no runner"}
	}
	return Location{sb.ID, sb.OrganizationID, sb.RegionID, sb.RunnerID, sb.Shown()}, nil
}

// OnRunner returns how many sandboxes a runner has, errored ones included.
func (s *Service) OnRunner(ctx context.Context, runnerID string) (int, error) {
	n, err := s.db.All(ctx).NewSelect().Model((*Sandbox)(nil)).Where("runner_id = ? AND runner_id <> ''", runnerID).Count(ctx)
	return int(n), err
}

// Unused is nil if an organization has no sandboxes, so that it can be deleted;
// its pools, which then are empty as well, go. KindConflict if it has some.
func (s *Service) Unused(ctx context.Context, organizationID string) error {
	n, err := s.db.In(ctx, organizationID).Select((*Sandbox)(nil)).Where("state <> ?", Destroyed).Count(ctx)
	if err != nil {
		return err
	}
	if n > 0 {
		return &daytona.Error{Kind: daytona.KindConflict, Message: fmt.Sprintf("The organization has %d sandboxes. Delete them first.", n)}
	}
	_, err = s.db.In(ctx, organizationID).Delete((*Pool)(nil)).Exec(ctx)
	return err
}

// StopAll stops what runs of an organization, as when it is suspended.
// Ephemeral sandboxes are destroyed, as by any stop.
func (s *Service) StopAll(ctx context.Context, organizationID string) error {
	ids, err := s.ids(ctx, func(q *bun.SelectQuery) *bun.SelectQuery {
		return q.Where("organization_id = ? AND state IN (?, ?) AND pending = ?", organizationID, Started, Paused, false)
	})
	if err != nil {
		return err
	}
	return s.each(ctx, ids, func(ctx context.Context, id string) error {
		return s.tryTo(ctx, id, func(_ context.Context, sb *Sandbox) error { return s.stop(sb, false) })
	})
}

// VolumeUsed reports whether a sandbox that is not gone has a volume.
func (s *Service) VolumeUsed(ctx context.Context, organizationID, volumeID string) (bool, error) {
	return s.db.In(ctx, organizationID).Select((*volumeRow)(nil)).Where("volume_id = ?", volumeID).Exists(ctx)
}

// Needed reports whether a sandbox that is yet to be made needs a reference.
func (s *Service) Needed(ctx context.Context, ref string) (bool, error) {
	return s.db.All(ctx).NewSelect().Model((*Sandbox)(nil)).
		Where("ref = ? AND state IN (?)", ref, bun.List([]State{Unknown, PendingBuild, BuildingSnapshot, PullingSnapshot, Creating})).Exists(ctx)
}

// Backed reports whether a reference is that of a sandbox's backup.
func (s *Service) Backed(ctx context.Context, ref string) (bool, error) {
	// Whose it is says the reference.
	return s.db.All(ctx).NewSelect().Model((*Sandbox)(nil)).Where("backup_ref = ? AND state <> ?", ref, Destroyed).Exists(ctx)
}
