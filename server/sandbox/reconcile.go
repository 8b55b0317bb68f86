package sandbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/uptrace/bun"

	"github.com/daytona-go/daytona"
)

// Run moves sandboxes to what they are to be, until ctx is done: those that it
// is told of at once, and all of them on every sweep, which one server of a
// database makes. What it was about to do when it ends, the next one does.
func (s *Service) Run(ctx context.Context) error {
	wake, end := s.db.Subscribe(TopicWake)
	defer end()
	copies := make(chan struct{}, 1)
	for _, topic := range s.config.WakeOn {
		c, end := s.db.Subscribe(topic)
		defer end()
		go func() {
			for {
				select {
				case <-c:
					select {
					case copies <- struct{}{}:
					default:
					}
				case <-ctx.Done():
					return
				}
			}
		}()
	}
	// Beside what is woken: a sweep may take its time.
	var sweeps sync.WaitGroup
	sweeps.Go(func() {
		tick := time.NewTicker(s.config.Sweep)
		defer tick.Stop()
		for {
			s.lead(ctx)
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	})
	defer func() {
		sweeps.Wait()
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if err := s.Flush(last); err != nil {
			s.log.Error("activity of sandboxes could not be written", "err", err)
		}
		if err := s.db.Yield(last, lease, s.config.Holder); err != nil {
			s.log.Warn("the lease of sandboxes could not be given back", "err", err)
		}
	}()
	for {
		var err error
		id := ""
		select {
		case <-ctx.Done():
			return nil
		case <-copies:
			// A runner that is back may still run what is elsewhere by now.
			err = errors.Join(s.leftovers(ctx), s.reconcileWaiting(ctx))
		case id = <-wake:
			switch id {
			case "":
				err = s.reconcileWaiting(ctx)
			case poolWake:
				err = s.reconcilePools(ctx)
			default:
				err = s.reconcile(ctx, id)
			}
		}
		if err != nil && ctx.Err() == nil {
			s.log.Error("reconciling a sandbox", "sandbox", id, "err", err)
		}
	}
}

// lease is the name of what one server of several does.
const lease = "sandbox"

// lead writes down what this server knows, and makes a sweep if it leads.
func (s *Service) lead(ctx context.Context) {
	if err := s.Flush(ctx); err != nil && ctx.Err() == nil {
		s.log.Error("activity of sandboxes could not be written", "err", err)
	}
	_, ok, err := s.db.Lease(ctx, lease, s.config.Holder, 3*s.config.Sweep)
	if err == nil {
		s.watch.Look(s.now())
	}
	if err == nil && ok {
		err = s.Reconcile(ctx)
	}
	if err != nil && ctx.Err() == nil {
		s.log.Error("reconciling sandboxes", "err", err)
	}
}

// Reconcile makes one sweep. It is for the server that holds the lease; two at
// once do no harm.
func (s *Service) Reconcile(ctx context.Context) error {
	var all []error
	for _, f := range []func(context.Context) error{
		s.reconcileRunners, s.reconcileMoving, s.automatic, s.backups, s.leftovers, s.reconcilePools, s.cleanUp,
	} {
		if err := f(ctx); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			all = append(all, err)
		}
	}
	return errors.Join(all...)
}

// ids returns the ids of sandboxes, of all organizations: the reconciler serves
// them all.
func (s *Service) ids(ctx context.Context, where func(*bun.SelectQuery) *bun.SelectQuery) ([]string, error) {
	var ids []string
	err := where(s.db.All(ctx).NewSelect().Model((*Sandbox)(nil)).Column("id").Order("id")).Scan(ctx, &ids)
	return ids, err
}

// there leaves out those that are destroyed, by an index: they are most after a
// while, and nothing is to be done with them.
func there(q *bun.SelectQuery) *bun.SelectQuery {
	return q.Where("state IN (?)", bun.List(slices.DeleteFunc(States(), func(s State) bool { return s == Destroyed })))
}

// each does something with sandboxes, and goes on where it does not work.
func (s *Service) each(ctx context.Context, ids []string, f func(context.Context, string) error) error {
	for _, id := range ids {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := f(ctx, id); err != nil && ctx.Err() == nil {
			s.log.Warn("a sandbox could not be moved on", "sandbox", id, "err", err)
		}
	}
	return nil
}

// reconcileMoving looks at all that are not at rest.
func (s *Service) reconcileMoving(ctx context.Context) error {
	ids, err := s.ids(ctx, func(q *bun.SelectQuery) *bun.SelectQuery {
		return there(q).Where("pending = ? OR job_id <> '' OR state = ? OR (state IN (?, ?) AND (desired_state = ? OR lost = ?))",
			true, Archiving, Errored, BuildFailed, WantDestroyed, true)
	})
	if err != nil {
		return err
	}
	return s.each(ctx, ids, s.reconcile)
}

// reconcileWaiting looks at those that wait for a snapshot.
func (s *Service) reconcileWaiting(ctx context.Context) error {
	ids, err := s.ids(ctx, func(q *bun.SelectQuery) *bun.SelectQuery {
		return q.Where("state IN (?)", bun.List([]State{PendingBuild, BuildingSnapshot, PullingSnapshot}))
	})
	if err != nil {
		return err
	}
	return s.each(ctx, ids, s.reconcile)
}

// reconcile moves one sandbox on.
func (s *Service) reconcile(ctx context.Context, id string) error {
	return s.revise(ctx, id, func(ctx context.Context, sb *Sandbox) (bool, error) {
		version := fmt.Sprint(sb.State, sb.Desired, sb.JobID, sb.RetryAt, sb.Backup)
		if sb.State == Errored && sb.Lost {
			if err := s.found(ctx, sb); err != nil {
				return false, err
			}
		}
		if limit, ok := timeouts[sb.State]; ok && s.now().Sub(s.watch.Since(sb.StateSince)) > limit {
			if err := s.timeOut(ctx, sb); err != nil {
				return false, err
			}
		}
		if err := s.advanceLater(ctx, sb); err != nil {
			return false, err
		}
		return fmt.Sprint(sb.State, sb.Desired, sb.JobID, sb.RetryAt, sb.Backup) != version, nil
	})
}

// revise is change for the reconciler: f says whether it changed anything. One
// that is not there any more is left alone.
func (s *Service) revise(ctx context.Context, id string, f func(context.Context, *Sandbox) (bool, error)) error {
	err := s.db.Tx(ctx, func(ctx context.Context) error {
		sb, err := s.byID(ctx, id, true)
		if errors.Is(err, daytona.ErrNotFound) {
			return nil
		} else if err != nil {
			return err
		}
		if changed, err := f(ctx, sb); err != nil || !changed {
			return err
		}
		return s.save(ctx, sb)
	})
	// Somebody else was faster, who saw to it.
	if errors.Is(err, daytona.ErrConflict) {
		return nil
	}
	return err
}

// timeOut is what becomes of a sandbox that stays in a state for too long.
func (s *Service) timeOut(ctx context.Context, sb *Sandbox) error {
	s.log.Warn("a sandbox took too long", "sandbox", sb.ID, "state", string(sb.State), "job", sb.JobID)
	if sb.JobID != "" {
		sb.LastJobID, sb.LastJobError = sb.JobID, "Timeout while "+string(sb.State)
	}
	prior := sb.Step.Prior
	switch sb.State {
	case Unknown, Creating:
		sb.fail("Timeout while creating sandbox", false)
	case PullingSnapshot:
		sb.fail("Timeout while pulling snapshot", false)
	case Starting, Resuming:
		sb.fail("Timeout while starting sandbox", false)
	case Restoring:
		sb.fail("Timeout while starting sandbox: restoring it took too long", false)
	case PendingBuild, BuildingSnapshot:
		sb.fail("Timeout while building snapshot", false)
		sb.State = BuildFailed
	case Resizing, Forking, Snapshotting:
		sb.State, sb.ErrorReason, sb.JobID, sb.JobType = prior, "Timeout while "+string(sb.State)+" sandbox", "", ""
	default: // Stopping, Pausing, Destroying
		sb.fail("Timeout while "+string(sb.State)+" sandbox", false)
		if sb.Desired == WantDestroyed {
			s.retryLater(sb)
		}
	}
	capture := sb.Step.Capture
	sb.Step = step{Backup: sb.Step.Backup}
	return s.captured(ctx, capture, 0, sb.LastJobError)
}

// reconcileRunners finds the sandboxes of runners that are lost, or that are to
// become empty.
func (s *Service) reconcileRunners(ctx context.Context) error {
	var runners []string
	if err := s.db.All(ctx).NewSelect().Model((*Sandbox)(nil)).ColumnExpr("DISTINCT runner_id").Where("runner_id <> ''").Scan(ctx, &runners); err != nil {
		return err
	}
	for _, id := range runners {
		r, err := s.runner(ctx, id)
		if err != nil {
			return err
		}
		if r.Draining && r.Usable {
			err = s.Drain(ctx, id)
		} else if r.lost {
			err = s.Lost(ctx, id)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Drain archives the stopped sandboxes of a runner that is to become empty, if
// others can have its backups; those that run go on until they stop.
func (s *Service) Drain(ctx context.Context, runnerID string) error {
	r, err := s.runner(ctx, runnerID)
	if err != nil || !r.Can(CanMove) {
		return err // an archive would go with the runner
	}
	ids, err := s.ids(ctx, func(q *bun.SelectQuery) *bun.SelectQuery {
		return q.Where("runner_id = ? AND state = ? AND desired_state = ? AND auto_delete <> 0", runnerID, Stopped, WantStopped)
	})
	if err != nil {
		return err
	}
	return s.each(ctx, ids, s.autoArchive)
}

// Lost says that a runner is gone, with all that was on it.
func (s *Service) Lost(ctx context.Context, runnerID string) error {
	if runnerID == "" {
		return nil
	}
	ids, err := s.ids(ctx, func(q *bun.SelectQuery) *bun.SelectQuery {
		return q.Where("runner_id = ? AND runner_id <> '' AND NOT (state = ? AND desired_state = ?) AND NOT (state IN (?, ?) AND desired_state <> ?)",
			runnerID, Stopped, WantStopped, Errored, BuildFailed, WantDestroyed)
	})
	if err != nil {
		return err
	}
	return s.each(ctx, ids, func(ctx context.Context, id string) error {
		return s.revise(ctx, id, func(ctx context.Context, sb *Sandbox) (bool, error) {
			if sb.RunnerID != runnerID || sb.State == Stopped && sb.Desired == WantStopped || sb.State == Errored && sb.Desired != WantDestroyed {
				return false, nil
			}
			if err := s.lose(ctx, sb); err != nil {
				return false, err
			}
			return true, s.advanceLater(ctx, sb)
		})
	})
}

// lose is what becomes of a sandbox whose runner is lost.
func (s *Service) lose(ctx context.Context, sb *Sandbox) error {
	if sb.JobID != "" {
		sb.LastJobID, sb.LastJobError = sb.JobID, "The runner of the sandbox was lost"
	}
	sb.JobID, sb.JobType, sb.RetryAt = "", "", nil
	capture := sb.Step.Capture
	sb.Step = step{Backup: sb.Step.Backup}
	if err := s.captured(ctx, capture, 0, "The runner of the sandbox was lost"); err != nil {
		return err
	}
	restorable, err := s.restorable(ctx, sb)
	if err != nil {
		return err
	}
	switch {
	case sb.Desired == WantDestroyed:
		// stepDestroy leaves it.
		return nil
	case sb.State == Creating && sb.ParentID == "", sb.State == PullingSnapshot, sb.State == Unknown:
		// Nobody has been told that it started: it is made elsewhere.
		if err := s.leave(ctx, sb); err != nil {
			return err
		}
		sb.State = Unknown
		return nil
	case sb.State == BuildingSnapshot:
		sb.State, sb.RunnerID = PendingBuild, ""
		return nil
	case restorable && (sb.Desired == WantStarted || sb.Desired == WantArchived):
		if err := s.leave(ctx, sb); err != nil {
			return err
		}
		sb.State = Archived
		return nil
	case sb.Desired == WantArchived:
		sb.State, sb.Desired = Stopped, WantStopped
		sb.ErrorReason = "The runner of the sandbox was lost before it was archived"
		return nil
	}
	sb.BackupJobID = ""
	if sb.Backup != BackupCompleted {
		sb.Backup = BackupNone
	}
	sb.fail("The runner of the sandbox was lost", true)
	sb.Lost = true
	return nil
}

// found brings a sandbox back whose runner is back.
func (s *Service) found(ctx context.Context, sb *Sandbox) error {
	if sb.Desired == WantDestroyed {
		return nil
	}
	r, err := s.runner(ctx, sb.RunnerID)
	if err != nil || !r.Usable {
		return err
	}
	sb.ErrorReason = ""
	switch sb.Desired {
	case WantStopped:
		// It is asked to stop, which does nothing if it has.
		sb.State = Started
	case WantPaused:
		// Its memory may be gone: it is what it is after a start.
		sb.State, sb.Desired = Stopped, WantStarted
	default:
		// It is asked to start, which does nothing if it runs.
		sb.State = Stopped
	}
	return nil
}

// automatic does what intervals and times to live say.
func (s *Service) automatic(ctx context.Context) error {
	now := s.now()
	started := func(q *bun.SelectQuery) *bun.SelectQuery {
		return q.Where("state = ? AND pending = ? AND warm_pool_id = ''", Started, false)
	}
	stopped := func(q *bun.SelectQuery) *bun.SelectQuery {
		return q.Where("state = ? AND desired_state = ?", Stopped, WantStopped)
	}
	for _, r := range []struct {
		column string
		least  int
		slack  time.Duration
		of     func(*bun.SelectQuery) *bun.SelectQuery
		do     func(context.Context, string) error
	}{
		// What was used a moment ago, another server may not have written yet.
		{"auto_stop", 1, s.config.Sweep, started, s.autoStop},
		{"auto_pause", 1, s.config.Sweep, started, s.autoPause},
		{"auto_delete", 0, 0, stopped, s.autoDestroy},
		{"auto_archive", 1, 0, stopped, s.autoArchive},
	} {
		// There are few different intervals, and no arithmetic of times that all
		// databases have.
		var intervals []int
		q := r.of(s.db.All(ctx).NewSelect().Model((*Sandbox)(nil)).ColumnExpr("DISTINCT ?", bun.Ident(r.column)))
		if err := q.Where("? >= ?", bun.Ident(r.column), r.least).Scan(ctx, &intervals); err != nil {
			return err
		}
		for _, minutes := range intervals {
			before := now.Add(-time.Duration(minutes)*time.Minute - r.slack)
			ids, err := s.ids(ctx, func(q *bun.SelectQuery) *bun.SelectQuery {
				return r.of(q).Where("? = ? AND last_activity_at <= ?", bun.Ident(r.column), minutes, before)
			})
			if err != nil {
				return err
			}
			if err := s.each(ctx, ids, r.do); err != nil {
				return err
			}
		}
	}
	for _, where := range []func(*bun.SelectQuery) *bun.SelectQuery{
		func(q *bun.SelectQuery) *bun.SelectQuery {
			return there(q).Where("destroy_at <= ? AND state <> ? AND desired_state <> ?", now, Destroyed, WantDestroyed)
		},
		func(q *bun.SelectQuery) *bun.SelectQuery {
			return there(q).Where("linked_id <> '' AND state <> ? AND desired_state <> ?", Destroyed, WantDestroyed).
				Where("NOT EXISTS (SELECT 1 FROM sandboxes AS o WHERE o.id = sandbox.linked_id AND o.state <> ? AND o.desired_state <> ?)", Destroyed, WantDestroyed)
		},
	} {
		ids, err := s.ids(ctx, where)
		if err != nil {
			return err
		}
		if err := s.each(ctx, ids, s.autoDestroy); err != nil {
			return err
		}
	}
	return nil
}

// tryTo does what a rule says if it still may be done: what the row says
// counts, not the list that it was found by.
func (s *Service) tryTo(ctx context.Context, id string, f func(context.Context, *Sandbox) error) error {
	return s.revise(ctx, id, func(ctx context.Context, sb *Sandbox) (bool, error) {
		err := f(ctx, sb)
		if errors.Is(err, daytona.ErrState) || errors.Is(err, daytona.ErrConflict) || errors.Is(err, daytona.ErrInvalid) || errors.Is(err, daytona.ErrUnsupported) {
			return false, nil
		} else if err != nil {
			return false, err
		}
		return true, s.advanceLater(ctx, sb)
	})
}

// idleFor reports whether it has not been used for some minutes.
func (s *Service) idleFor(sb *Sandbox, minutes int) bool {
	last := sb.LastActivityAt
	s.mu.Lock()
	if at, ok := s.active[sb.ID]; ok && at.After(last) {
		last = at
	}
	s.mu.Unlock()
	return s.now().Sub(s.watch.Since(last)) >= time.Duration(minutes)*time.Minute
}

var errNot = &daytona.Error{Kind: daytona.KindState, Message: "not now"}

func (s *Service) autoDestroy(ctx context.Context, id string) error {
	return s.tryTo(ctx, id, func(ctx context.Context, sb *Sandbox) error { return s.destroy(ctx, sb) })
}

func (s *Service) autoStop(ctx context.Context, id string) error {
	return s.tryTo(ctx, id, func(ctx context.Context, sb *Sandbox) error {
		if sb.AutoStop <= 0 || sb.State != Started || !s.idleFor(sb, sb.AutoStop) {
			return errNot
		}
		return s.stop(sb, false)
	})
}

func (s *Service) autoPause(ctx context.Context, id string) error {
	return s.tryTo(ctx, id, func(ctx context.Context, sb *Sandbox) error {
		if sb.AutoPause <= 0 || sb.State != Started || !s.idleFor(sb, sb.AutoPause) {
			return errNot
		}
		return s.pause(ctx, sb)
	})
}

func (s *Service) autoArchive(ctx context.Context, id string) error {
	return s.tryTo(ctx, id, s.archive)
}

// backups begins backups of what has none for long, and again those that came
// to nothing.
func (s *Service) backups(ctx context.Context) error {
	now := s.now()
	ids, err := s.ids(ctx, func(q *bun.SelectQuery) *bun.SelectQuery {
		return there(q).Where("backup_state IN (?) AND (backup_since < ? OR backup_job_id = '')", bun.List([]BackupState{BackupPending, BackupInProgress}), now.Add(-backupTimeout))
	})
	if err != nil {
		return err
	}
	err = s.each(ctx, ids, func(ctx context.Context, id string) error {
		return s.revise(ctx, id, func(ctx context.Context, sb *Sandbox) (bool, error) {
			switch {
			case sb.BackupSince != nil && now.Sub(*sb.BackupSince) > backupTimeout:
				sb.Backup, sb.BackupJobID, sb.BackupSince, sb.BackupError = BackupError, "", &now, "Timeout while backing up sandbox"
				return true, s.advanceLater(ctx, sb)
			case sb.BackupJobID == "" && sb.RunnerID != "" && (sb.State == Stopped || sb.State == Started || sb.State == Archiving):
				return true, s.beginBackup(ctx, sb)
			}
			return false, nil
		})
	})
	if err != nil || s.config.BackupEvery < 0 {
		return err
	}
	ids, err = s.ids(ctx, func(q *bun.SelectQuery) *bun.SelectQuery {
		return q.Where("state = ? AND pending = ? AND auto_delete <> 0 AND warm_pool_id = ''", Started, false).
			Where("(backup_state IN (?) AND COALESCE(backup_at, created_at) < ? AND state_since < ?) OR (backup_state = ? AND backup_since < ?)",
				bun.List([]BackupState{BackupNone, BackupCompleted}), now.Add(-s.config.BackupEvery), now.Add(-s.config.BackupEvery),
				BackupError, now.Add(-6*time.Hour))
	})
	if err != nil {
		return err
	}
	return s.each(ctx, ids, func(ctx context.Context, id string) error {
		return s.revise(ctx, id, func(ctx context.Context, sb *Sandbox) (bool, error) {
			if sb.State != Started || sb.Pending || sb.JobID != "" || sb.BackupJobID != "" {
				return false, nil
			}
			r, err := s.runner(ctx, sb.RunnerID)
			if err != nil || !r.Usable || !r.Can(CanBackup) || !r.Can(CanMove) {
				return false, err
			}
			return true, s.beginBackup(ctx, sb)
		})
	})
}

// leftovers removes what runners still had of sandboxes that were taken off them.
func (s *Service) leftovers(ctx context.Context) error {
	var all []leftover
	if err := s.db.All(ctx).NewSelect().Model(&all).Where("job_id = ''").Order("created_at").Limit(1000).Scan(ctx); err != nil {
		return err
	}
	for _, l := range all {
		err := s.db.Tx(ctx, func(ctx context.Context) error {
			r, err := s.deps.Runners.Runner(ctx, l.RunnerID)
			if errors.Is(err, daytona.ErrNotFound) {
				_, err = s.db.All(ctx).NewDelete().Model(&l).WherePK().Exec(ctx)
				return err
			}
			if err != nil || !r.Usable {
				return err
			}
			id, err := s.deps.Jobs.Enqueue(ctx, Job{Type: jobDestroy, RunnerID: l.RunnerID, ResourceType: ResourceSandbox, ResourceID: l.SandboxID, Payload: map[string]any{}})
			if errors.Is(err, daytona.ErrConflict) {
				return nil
			} else if err != nil {
				return err
			}
			_, err = s.db.All(ctx).NewUpdate().Model(&l).Set("job_id = ?", id).WherePK().Where("job_id = ''").Exec(ctx)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// cleanUp removes rows that are kept for a while only.
func (s *Service) cleanUp(ctx context.Context) error {
	now := s.now()
	day := now.Add(-24 * time.Hour)
	week := now.Add(-7 * 24 * time.Hour)
	ids, err := s.ids(ctx, func(q *bun.SelectQuery) *bun.SelectQuery {
		return q.Where("(state = ? AND state_since < ?) OR (state = ? AND runner_id = '' AND (state_since < ? OR (desired_state = ? AND state_since < ?)))",
			Destroyed, day, BuildFailed, week, WantDestroyed, day).
			// A job that ends late must find what it is about, and so must who
			// removes what is left.
			Where("NOT EXISTS (SELECT 1 FROM sandbox_leftovers AS l WHERE l.sandbox_id = sandbox.id)").Limit(1000)
	})
	if err != nil {
		return err
	}
	if len(ids) > 0 {
		for _, model := range []any{(*labelRow)(nil), (*volumeRow)(nil), (*previewToken)(nil), (*sshAccess)(nil)} {
			if _, err := s.db.All(ctx).NewDelete().Model(model).Where("sandbox_id IN (?)", bun.List(ids)).Exec(ctx); err != nil {
				return err
			}
		}
		if _, err := s.db.All(ctx).NewDelete().Model((*Sandbox)(nil)).Where("id IN (?)", bun.List(ids)).Exec(ctx); err != nil {
			return err
		}
	}
	if _, err := s.db.All(ctx).NewDelete().Model((*previewToken)(nil)).Where("expires_at < ?", now).Exec(ctx); err != nil {
		return err
	}
	_, err = s.db.All(ctx).NewDelete().Model((*sshAccess)(nil)).Where("expires_at < ?", day).Exec(ctx)
	return err
}
