package snapshot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/uptrace/bun"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/store"
)

const (
	// every is how often all there is is looked at.
	every = 10 * time.Second
	// again is how long a copy that failed is left alone, unless a sandbox needs it.
	again = 10 * time.Minute
	// usedEvery is how often the use of a snapshot is noted.
	usedEvery = time.Minute
	// unused is how long a build that no snapshot has is kept on runners, and
	// known at all.
	unused = 24 * time.Hour
	// defaultIdle is how long an unused snapshot stays active.
	defaultIdle = 20160 * time.Minute
	// batch is how much one pass does of one kind.
	batch = 200
)

// Run moves snapshots on until ctx ends: at once when something happens, and
// every 10 s for what was missed. Any number of servers may run it.
func (s *Service) Run(ctx context.Context) error {
	changes, stop := s.db.Subscribe(wake)
	defer stop()
	tick := time.NewTicker(every)
	defer tick.Stop()
	s.pass(ctx)
	for {
		select {
		case <-ctx.Done():
			return nil
		case id := <-changes:
			if id == "" {
				s.pass(ctx)
				continue
			}
			if err := s.Step(ctx, id); err != nil && ctx.Err() == nil {
				s.Log.Warn("snapshot did not move on", "snapshot", id, "err", err)
			}
		case <-tick.C:
			s.pass(ctx)
		}
	}
}

func (s *Service) pass(ctx context.Context) {
	if s.db.Ping(ctx) == nil {
		s.watch.Look(s.now())
	}
	if err := s.Reconcile(ctx); err != nil && ctx.Err() == nil {
		s.Log.Warn("snapshots did not move on", "err", err)
	}
}

// Reconcile does what there is to be done now, of everything.
func (s *Service) Reconcile(ctx context.Context) error {
	var errs []error
	// The reconciler is for all organizations.
	var ids []string
	if err := s.db.All(ctx).NewSelect().Model((*Snapshot)(nil)).Column("id").
		Where("state IN (?)", bun.List([]State{daytona.SnapshotPending, daytona.SnapshotPulling, daytona.SnapshotBuilding, daytona.SnapshotSnapshotting, daytona.SnapshotRemoving})).
		Order("updated_at").Limit(batch).Scan(ctx, &ids); err != nil {
		return err
	}
	for _, id := range ids {
		if err := s.Step(ctx, id); err != nil {
			errs = append(errs, fmt.Errorf("snapshot %s: %w", id, err))
		}
	}
	errs = append(errs, s.idle(ctx), s.lost(ctx), s.stale(ctx), s.sweep(ctx))
	return errors.Join(errs...)
}

// Step moves one snapshot on, if it can be.
func (s *Service) Step(ctx context.Context, id string) error {
	snap := &Snapshot{ID: id}
	if err := s.db.All(ctx).NewSelect().Model(snap).WherePK().Scan(ctx); store.IsNone(err) {
		return nil
	} else if err != nil {
		return err
	}
	err := s.step(ctx, snap)
	if daytona.KindOf(err) == daytona.KindConflict {
		return nil // somebody else moves it
	}
	return err
}

func (s *Service) step(ctx context.Context, snap *Snapshot) error {
	late := s.now().Sub(s.watch.Since(snap.StateSince)) > s.Timeout
	switch snap.State {
	case daytona.SnapshotPending:
		if late {
			return s.move(ctx, snap, daytona.SnapshotError, "Timeout while processing snapshot")
		}
		return s.begin(ctx, snap)
	case daytona.SnapshotPulling, daytona.SnapshotBuilding:
		if late {
			return s.move(ctx, snap, daytona.SnapshotError, "Timeout while processing snapshot")
		}
		// The copy may have ended, or the runner gone, when nobody saw it.
		c := &Copy{RunnerID: snap.RunnerID, Ref: snap.Ref}
		err := s.db.All(ctx).NewSelect().Model(c).WherePK().Scan(ctx)
		switch {
		case store.IsNone(err):
			return s.move(ctx, snap, daytona.SnapshotError, "The runner that processed the snapshot is gone")
		case err != nil:
			return err
		case c.State == CopyReady:
			return s.finish(ctx, snap, nil)
		case c.State == CopyError:
			return s.move(ctx, snap, daytona.SnapshotError, c.Reason)
		}
	case daytona.SnapshotSnapshotting:
		if late {
			return s.move(ctx, snap, daytona.SnapshotError, "Timeout while processing snapshot")
		}
	case daytona.SnapshotRemoving:
		return s.remove(ctx, snap)
	}
	return nil
}

// begin gives a pending snapshot to a runner, or finds one that has it.
func (s *Service) begin(ctx context.Context, snap *Snapshot) error {
	if snap.Ref == "" {
		return s.move(ctx, snap, daytona.SnapshotActive, "")
	}
	ready, err := s.Ready(ctx, snap.Ref)
	if err != nil {
		return err
	}
	if ready, err = s.Runners.Usable(ctx, ready); err != nil {
		return err
	}
	if len(ready) > 0 {
		snap.RunnerID = ready[0]
		return s.finish(ctx, snap, nil)
	}
	region, err := s.regionOf(ctx, snap.ID)
	if err != nil {
		return err
	}
	runner, err := s.Runners.Pick(ctx, region, snap.Class)
	if daytona.KindOf(err) == daytona.KindInvalid || daytona.KindOf(err) == daytona.KindUnavailable {
		return nil // there may be one later
	} else if err != nil {
		return err
	}
	return s.db.Tx(ctx, func(ctx context.Context) error {
		c, err := s.Ensure(ctx, runner, snap.Ref)
		if k := daytona.KindOf(err); k == daytona.KindInvalid || k == daytona.KindForbidden || k == daytona.KindNotFound {
			// It will not be better later.
			state := daytona.SnapshotError
			if snap.Build != "" {
				state = daytona.SnapshotBuildFailed
			}
			return s.move(ctx, snap, state, err.Error())
		} else if err != nil {
			return err
		}
		snap.RunnerID = runner
		state := daytona.SnapshotPulling
		if c.State == CopyBuilding || snap.Build != "" {
			state = daytona.SnapshotBuilding
		}
		return s.move(ctx, snap, state, "")
	})
}

func (s *Service) regionOf(ctx context.Context, id string) (string, error) {
	var regions []string
	err := s.db.All(ctx).NewSelect().Model((*regionRow)(nil)).Column("region_id").Where("snapshot_id = ?", id).Order("region_id").Limit(1).Scan(ctx, &regions)
	if err != nil || len(regions) == 0 {
		return "", err
	}
	return regions[0], nil
}

// metadata is what a runner says of a copy that it has made.
type metadata struct {
	SizeGB     *float64 `json:"sizeGB"`
	Entrypoint any      `json:"entrypoint"`
	Hash       string   `json:"hash"`
}

// finish makes a snapshot active that some runner has.
func (s *Service) finish(ctx context.Context, snap *Snapshot, m *metadata) error {
	if m != nil {
		if m.SizeGB != nil && *m.SizeGB >= 0 {
			snap.Size = m.SizeGB
		}
		if len(snap.Entrypoint) == 0 {
			snap.Entrypoint = words(m.Entrypoint)
		}
		if hash := strings.TrimPrefix(m.Hash, "sha256:"); snap.Image != "" && digestRule.MatchString("@sha256:"+hash) {
			snap.Digest = "sha256:" + hash
		}
	} else if snap.Size == nil && snap.Build != "" {
		// Another snapshot of the same build knows.
		other := &Snapshot{}
		err := s.db.All(ctx).NewSelect().Model(other).Where("ref = ? AND size IS NOT NULL", snap.Ref).Limit(1).Scan(ctx)
		if err == nil {
			snap.Size = other.Size
		} else if !store.IsNone(err) {
			return err
		}
	}
	limits, err := s.Organizations.SnapshotLimits(ctx, snap.OrganizationID)
	if err != nil {
		return err
	}
	if limits.SizeGB > 0 && snap.Size != nil && *snap.Size > limits.SizeGB && !snap.General {
		return s.move(ctx, snap, daytona.SnapshotError, fmt.Sprintf("Snapshot size (%.2fGB) exceeds maximum allowed size of %gGB", *snap.Size, limits.SizeGB))
	}
	return s.move(ctx, snap, daytona.SnapshotActive, "")
}

// words reads an entrypoint that may be a list or a text.
func words(v any) []string {
	switch v := v.(type) {
	case string:
		if v != "" {
			return []string{v}
		}
	case []any:
		var list []string
		for _, e := range v {
			if t, ok := e.(string); ok && len(list) < maxEntrypoint {
				list = append(list, t)
			}
		}
		return list
	}
	return nil
}

// Done takes the end of a job for a ref. It is for the transaction that ends the
// job.
func (s *Service) Done(ctx context.Context, r Result) error {
	return s.db.Tx(ctx, func(ctx context.Context) error {
		c := &Copy{RunnerID: r.RunnerID, Ref: r.Ref}
		err := s.db.All(ctx).NewSelect().Model(c).WherePK().Scan(ctx)
		if store.IsNone(err) {
			return nil // it was given up
		} else if err != nil {
			return err
		}
		if c.JobID != r.JobID {
			return nil // of an attempt before
		}
		c.UpdatedAt = s.now()
		if r.Type == "REMOVE_SNAPSHOT" {
			if c.State != CopyRemoving {
				return nil
			}
			if r.Error == "" {
				if _, err := s.db.All(ctx).NewDelete().Model(c).WherePK().Exec(ctx); err != nil {
					return err
				}
				return s.changed(ctx, c.Ref)
			}
			c.State, c.Reason = CopyError, r.Error
			return s.putCopy(ctx, c)
		}
		if c.State != CopyPulling && c.State != CopyBuilding {
			return nil
		}
		var m metadata
		if r.Error == "" && r.Metadata != "" {
			if err := json.Unmarshal([]byte(r.Metadata), &m); err != nil {
				s.Log.Warn("a runner's word on a snapshot is no JSON", "runner", r.RunnerID, "ref", r.Ref, "err", err)
			}
		}
		c.State, c.Reason = CopyReady, ""
		if r.Error != "" {
			c.State, c.Reason = CopyError, r.Error
		}
		if err := s.putCopy(ctx, c); err != nil {
			return err
		}
		// All that wait for this copy: several snapshots may be of one build.
		var waiting []Snapshot
		if err := s.db.All(ctx).NewSelect().Model(&waiting).Where("ref = ? AND runner_id = ? AND state IN (?)", r.Ref, r.RunnerID,
			bun.List([]State{daytona.SnapshotPulling, daytona.SnapshotBuilding})).Scan(ctx); err != nil {
			return err
		}
		for i := range waiting {
			if r.Error != "" {
				err = s.move(ctx, &waiting[i], daytona.SnapshotError, r.Error)
			} else {
				err = s.finish(ctx, &waiting[i], &m)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// remove ends the row of a snapshot that is to go. Its copies go with it, unless
// another snapshot has them, too; see sweep.
func (s *Service) remove(ctx context.Context, snap *Snapshot) error {
	return s.db.Tx(ctx, func(ctx context.Context) error {
		if err := store.Changed(s.db.All(ctx).NewDelete().Model(snap).WherePK().Where("version = ?", snap.Version).Exec(ctx)); err != nil {
			return err
		}
		if _, err := s.db.All(ctx).NewDelete().Model((*regionRow)(nil)).Where("snapshot_id = ?", snap.ID).Exec(ctx); err != nil {
			return err
		}
		return s.Event(ctx, Event{Name: "snapshot.removed", Snapshot: *snap, Old: snap.State})
	})
}

// idle deactivates what was not used for long.
func (s *Service) idle(ctx context.Context) error {
	var list []Snapshot
	err := s.db.All(ctx).NewSelect().Model(&list).
		Where("state = ? AND general = ? AND source_sandbox_id = ? AND ref <> ?", daytona.SnapshotActive, false, "", "").
		// No limit is below a minute.
		Where("COALESCE(last_used_at, state_since) < ? AND state_since < ?", s.now().Add(-time.Minute), s.now().Add(-time.Minute)).
		OrderExpr("COALESCE(last_used_at, state_since)").Limit(batch).Scan(ctx)
	if err != nil {
		return err
	}
	limits := map[string]time.Duration{}
	for i := range list {
		snap := &list[i]
		idle, ok := limits[snap.OrganizationID]
		if !ok {
			l, err := s.Organizations.SnapshotLimits(ctx, snap.OrganizationID)
			if err != nil {
				return err
			}
			if idle = l.Idle; idle == 0 {
				idle = defaultIdle
			}
			limits[snap.OrganizationID] = idle
		}
		used := snap.StateSince
		if snap.LastUsedAt != nil && snap.LastUsedAt.After(used) {
			used = *snap.LastUsedAt
		}
		if s.now().Sub(used) < idle {
			continue
		}
		if err := s.move(ctx, snap, daytona.SnapshotInactive, ""); err != nil && daytona.KindOf(err) != daytona.KindConflict {
			return err
		}
	}
	return nil
}

// lost fetches active snapshots again whose runners are all gone.
func (s *Service) lost(ctx context.Context) error {
	var list []Snapshot
	if err := s.db.All(ctx).NewSelect().Model(&list).Where("state = ? AND ref <> ? AND source_sandbox_id = ?", daytona.SnapshotActive, "", "").Scan(ctx); err != nil || len(list) == 0 {
		return err
	}
	var copies []Copy
	if err := s.db.All(ctx).NewSelect().Model(&copies).Scan(ctx); err != nil {
		return err
	}
	var runners []string
	seen := map[string]bool{}
	of := map[string][]Copy{}
	for _, c := range copies {
		of[c.Ref] = append(of[c.Ref], c)
		if !seen[c.RunnerID] {
			seen[c.RunnerID] = true
			runners = append(runners, c.RunnerID)
		}
	}
	usable := map[string]bool{}
	if ids, err := s.Runners.Usable(ctx, runners); err != nil {
		return err
	} else {
		for _, id := range ids {
			usable[id] = true
		}
	}
next:
	for i := range list {
		snap := &list[i]
		for _, c := range of[snap.Ref] {
			if usable[c.RunnerID] && (c.State != CopyError || s.now().Sub(c.UpdatedAt) < again) {
				continue next // there, on its way, or just tried
			}
		}
		region, err := s.regionOf(ctx, snap.ID)
		if err != nil {
			return err
		}
		runner, err := s.Runners.Pick(ctx, region, snap.Class)
		if err != nil {
			continue // no runner, for now
		}
		if _, err := s.Ensure(ctx, runner, snap.Ref); err != nil && daytona.KindOf(err) != daytona.KindConflict {
			return err
		}
	}
	return nil
}

// stale gives up copies whose jobs nobody has ended.
func (s *Service) stale(ctx context.Context) error {
	var list []Copy
	if err := s.db.All(ctx).NewSelect().Model(&list).Where("state IN (?) AND updated_at < ?",
		bun.List([]CopyState{CopyPulling, CopyBuilding, CopyRemoving}), s.now().Add(-s.Timeout)).Limit(batch).Scan(ctx); err != nil {
		return err
	}
	for i := range list {
		if s.now().Sub(s.watch.Since(list[i].UpdatedAt)) <= s.Timeout {
			continue
		}
		err := s.Done(ctx, Result{JobID: list[i].JobID, RunnerID: list[i].RunnerID, Ref: list[i].Ref, Type: map[CopyState]string{CopyRemoving: "REMOVE_SNAPSHOT"}[list[i].State],
			Error: fmt.Sprintf("The runner did not finish within %v", s.Timeout)})
		if err != nil && daytona.KindOf(err) != daytona.KindConflict {
			return err
		}
	}
	return nil
}

// sweep removes copies that nothing needs: no snapshot that is active or on its
// way, no build that was asked for lately, and no sandbox that is yet to be made.
func (s *Service) sweep(ctx context.Context) error {
	var list []Copy
	wanted := append([]State{daytona.SnapshotSnapshotting}, counted...)
	err := s.db.All(ctx).NewSelect().Model(&list).
		Where("state IN (?)", bun.List([]CopyState{CopyReady, CopyError})).
		Where("NOT EXISTS (SELECT 1 FROM snapshots s WHERE s.ref = ?TableAlias.ref AND s.state IN (?))", bun.List(wanted)).
		Where("NOT EXISTS (SELECT 1 FROM snapshot_builds b WHERE b.ref = ?TableAlias.ref AND b.updated_at > ?)", s.now().Add(-unused)).
		Order("updated_at").Limit(batch).Scan(ctx)
	if err != nil {
		return err
	}
	for i := range list {
		c := &list[i]
		if c.State == CopyError && s.now().Sub(c.UpdatedAt) < again {
			continue
		}
		if needed, err := s.Needed(ctx, c.Ref); err != nil {
			return err
		} else if needed {
			continue
		}
		usable, err := s.Runners.Usable(ctx, []string{c.RunnerID})
		if err != nil {
			return err
		}
		if len(usable) == 0 {
			continue // it will be back, or [Service.Forget] is called
		}
		err = s.db.Tx(ctx, func(ctx context.Context) error {
			before := *c
			id, err := s.Jobs.Enqueue(ctx, Job{Type: "REMOVE_SNAPSHOT", RunnerID: c.RunnerID, Ref: c.Ref, Payload: map[string]any{}})
			if err != nil {
				return err
			}
			c.State, c.Reason, c.JobID, c.UpdatedAt = CopyRemoving, "", id, s.now()
			if err := store.Changed(s.db.All(ctx).NewUpdate().Model(c).WherePK().Where("state = ? AND job_id = ?", before.State, before.JobID).Exec(ctx)); err != nil {
				return err
			}
			return s.changed(ctx, c.Ref)
		})
		if err != nil && daytona.KindOf(err) != daytona.KindConflict {
			return err
		}
	}
	// Builds that neither a snapshot nor a copy has.
	_, err = s.db.All(ctx).NewDelete().Model((*Build)(nil)).Where("updated_at < ?", s.now().Add(-7*unused)).
		Where("NOT EXISTS (SELECT 1 FROM snapshots s WHERE s.ref = ?TableAlias.ref)").
		Where("NOT EXISTS (SELECT 1 FROM snapshot_copies c WHERE c.ref = ?TableAlias.ref)").Exec(ctx)
	return err
}
