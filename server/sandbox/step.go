package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/uptrace/bun"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/store"
)

// Timeouts of the states that are on the way to others. They are later than
// those of jobs, and for when those come to nothing.
var timeouts = map[State]time.Duration{
	Unknown: 15 * time.Minute, Creating: 15 * time.Minute, Starting: 5 * time.Minute, Restoring: 30 * time.Minute,
	PullingSnapshot: 30 * time.Minute, PendingBuild: time.Hour, BuildingSnapshot: time.Hour,
	Stopping: 15 * time.Minute, Pausing: 15 * time.Minute, Resuming: 5 * time.Minute,
	Resizing: 15 * time.Minute, Forking: 30 * time.Minute, Snapshotting: 2 * time.Hour, Destroying: 30 * time.Minute,
}

// backupTimeout is how long a backup may take.
const backupTimeout = 2 * time.Hour

// noPlaceError says that no runner has room, which may change.
type noPlaceError struct{ error }

func (e noPlaceError) Unwrap() error { return e.error }

// advance begins what moves a sandbox from what it is to what it is to be,
// unless a job is under way. It changes the row and does not write it.
func (s *Service) advance(ctx context.Context, sb *Sandbox) error {
	for range 10 {
		more, err := s.step(ctx, sb)
		if err != nil || !more {
			return err
		}
	}
	return fmt.Errorf("sandbox %s: %s never becomes %s", sb.ID, sb.State, sb.Desired)
}

// advanceLater is advance where nobody can be told that there is no room: it
// is tried again.
func (s *Service) advanceLater(ctx context.Context, sb *Sandbox) error {
	err := s.advance(ctx, sb)
	if _, ok := errors.AsType[noPlaceError](err); ok {
		sb.RetryAt = new(s.now().Add(s.config.Sweep))
		return nil
	}
	return err
}

// step takes one step and reports whether there may be another at once.
func (s *Service) step(ctx context.Context, sb *Sandbox) (more bool, err error) {
	if sb.JobID != "" || sb.RetryAt != nil && s.now().Before(*sb.RetryAt) {
		return false, nil
	}
	switch sb.Desired {
	case WantDestroyed:
		return s.stepDestroy(ctx, sb)
	case WantStarted:
		return s.stepStart(ctx, sb)
	case WantStopped:
		if sb.State == Started || sb.State == Paused {
			return s.begin(ctx, sb, Stopping, jobStop, map[string]any{"force": sb.Step.Force})
		}
	case WantPaused:
		if sb.State == Started {
			return s.begin(ctx, sb, Pausing, jobPause, map[string]any{"sandboxId": sb.ID})
		}
	case WantArchived:
		return s.stepArchive(ctx, sb)
	}
	return false, nil
}

// begin enqueues the job of a step; the sandbox is in a state until it ends.
// While another job of the sandbox's is not over, it is tried again.
func (s *Service) begin(ctx context.Context, sb *Sandbox, during State, typ string, payload any) (bool, error) {
	id, err := s.deps.Jobs.Enqueue(ctx, Job{Type: typ, RunnerID: sb.RunnerID, ResourceType: ResourceSandbox, ResourceID: sb.ID, Payload: payload})
	if errors.Is(err, daytona.ErrConflict) {
		sb.RetryAt = new(s.now().Add(s.config.Sweep))
		return false, nil
	} else if err != nil {
		return false, err
	}
	sb.State, sb.JobID, sb.JobType, sb.RetryAt = during, id, typ, nil
	return false, nil
}

func (s *Service) stepDestroy(ctx context.Context, sb *Sandbox) (bool, error) {
	switch {
	case sb.State == Destroyed:
		return false, nil
	case sb.State == Archived, sb.State == PendingBuild, sb.RunnerID == "":
		sb.State, sb.RetryAt = Destroyed, nil
		return false, s.dropBackup(ctx, sb)
	}
	r, err := s.runner(ctx, sb.RunnerID)
	if err != nil {
		return false, err
	}
	if r.lost {
		if err := s.leave(ctx, sb); err != nil {
			return false, err
		}
		sb.State, sb.RetryAt = Destroyed, nil
		return false, nil
	}
	return s.begin(ctx, sb, Destroying, jobDestroy, map[string]any{})
}

func (s *Service) stepStart(ctx context.Context, sb *Sandbox) (bool, error) {
	switch sb.State {
	case Unknown:
		return s.stepCreate(ctx, sb)
	case PendingBuild:
		placed, err := s.place(ctx, sb, nil, nil)
		if err != nil {
			return false, err
		}
		sb.RunnerID, sb.GPUType = placed.RunnerID, placed.GPUType
		if err := s.ensure(ctx, sb.RunnerID, sb.Ref); err != nil {
			return false, err
		}
		sb.State, sb.RetryAt = BuildingSnapshot, nil
		return true, nil
	case PullingSnapshot, BuildingSnapshot:
		c, reason, err := s.deps.Snapshots.Copy(ctx, sb.RunnerID, sb.Ref)
		if err != nil {
			return false, err
		}
		switch c {
		case CopyReady:
			sb.State = Unknown
			return true, nil
		case CopyFailed:
			sb.ErrorReason = reason
			if sb.State == BuildingSnapshot {
				sb.State = BuildFailed
			} else {
				sb.State = Errored
			}
		case CopyNone:
			// The runner has forgotten it.
			return false, s.ensure(ctx, sb.RunnerID, sb.Ref)
		}
		return false, nil
	case Archived:
		return s.stepRestore(ctx, sb)
	case Archiving:
		// What it has on its runner is all still there: the job that removes it is
		// not under way.
		sb.State = Stopped
		return true, nil
	case Stopped:
		r, err := s.runner(ctx, sb.RunnerID)
		if err != nil {
			return false, err
		}
		if !r.Usable {
			if ok, err := s.restorable(ctx, sb); err != nil {
				return false, err
			} else if ok {
				return s.stepRestore(ctx, sb)
			}
		}
		if r.lost {
			sb.fail("The runner of the sandbox was lost, and there is no backup", true)
			sb.Lost = true
			return false, nil
		}
		if err := s.renew(sb); err != nil {
			return false, err
		}
		return s.begin(ctx, sb, Starting, jobStart, s.startPayload(ctx, sb))
	case Paused:
		return s.begin(ctx, sb, Resuming, jobStart, s.startPayload(ctx, sb))
	}
	return false, nil
}

// stepCreate finds a runner that has the snapshot, or that is to get it.
func (s *Service) stepCreate(ctx context.Context, sb *Sandbox) (bool, error) {
	ready, err := s.deps.Snapshots.Ready(ctx, sb.Ref)
	if err != nil {
		return false, err
	}
	if sb.RunnerID != "" && sb.Ref != "" && !slices.Contains(ready, sb.RunnerID) {
		sb.RunnerID = ""
	}
	if sb.RunnerID == "" {
		placed, err := s.place(ctx, sb, nil, ready)
		if err != nil {
			return false, err
		}
		if sb.Ref != "" && !slices.Contains(ready, placed.RunnerID) {
			if err := s.ensure(ctx, placed.RunnerID, sb.Ref); err != nil {
				return false, err
			}
			sb.RunnerID, sb.GPUType, sb.State, sb.RetryAt = placed.RunnerID, placed.GPUType, PullingSnapshot, nil
			return true, nil
		}
		sb.RunnerID, sb.GPUType = placed.RunnerID, placed.GPUType
	}
	payload, err := s.createPayload(ctx, sb, "")
	if err != nil {
		return false, err
	}
	return s.begin(ctx, sb, Creating, jobCreate, payload)
}

// stepRestore makes the sandbox anew from its backup.
func (s *Service) stepRestore(ctx context.Context, sb *Sandbox) (bool, error) {
	var only []string
	if sb.BackupRunnerID != "" {
		only = []string{sb.BackupRunnerID}
	}
	var more []Capability
	if only == nil {
		more = []Capability{CanMove}
	}
	placed, err := s.place(ctx, sb, only, nil, more...)
	if err != nil {
		return false, err
	}
	if sb.RunnerID != placed.RunnerID {
		if err := s.leave(ctx, sb); err != nil {
			return false, err
		}
	}
	sb.RunnerID, sb.GPUType = placed.RunnerID, placed.GPUType
	if err := s.renew(sb); err != nil {
		return false, err
	}
	payload, err := s.createPayload(ctx, sb, sb.BackupRef)
	if err != nil {
		return false, err
	}
	if only == nil {
		if payload.Parcel, err = s.parcel(ctx, sb, sb.BackupRef, false); err != nil {
			return false, err
		}
	}
	return s.begin(ctx, sb, Restoring, jobCreate, payload)
}

func (s *Service) stepArchive(ctx context.Context, sb *Sandbox) (bool, error) {
	switch sb.State {
	case Stopped:
		sb.State = Archiving
		return true, nil
	case Archiving:
		switch sb.Backup {
		case BackupCompleted:
			return s.begin(ctx, sb, Archiving, jobDestroy, map[string]any{})
		case BackupNone, BackupPending:
			return false, s.beginBackup(ctx, sb)
		case BackupError:
			// It is what it was, and says why.
			sb.ErrorReason = "The sandbox could not be archived: " + sb.BackupError
			sb.State, sb.Desired, sb.Backup = Stopped, WantStopped, BackupNone
		}
	}
	return false, nil
}

// beginBackup begins a backup, unless one is under way.
func (s *Service) beginBackup(ctx context.Context, sb *Sandbox) error {
	if sb.BackupJobID != "" {
		return nil
	}
	now := s.now()
	ref := fmt.Sprintf("daytona/backup-%s:%d", sb.ID, now.UnixMilli())
	payload := map[string]any{"snapshot": ref}
	r, err := s.runner(ctx, sb.RunnerID)
	if err == nil && r.Can(CanMove) {
		var p any
		if p, err = s.parcel(ctx, sb, ref, true); p != nil {
			payload["parcel"] = p
		}
	}
	if err != nil {
		return err
	}
	id, err := s.deps.Jobs.Enqueue(ctx, Job{Type: jobBackup, RunnerID: sb.RunnerID, ResourceType: ResourceSandbox, ResourceID: sb.ID, Payload: payload})
	sb.BackupSince, sb.BackupError = &now, ""
	if errors.Is(err, daytona.ErrConflict) {
		sb.Backup = BackupPending
		return nil
	} else if err != nil {
		return err
	}
	sb.Backup, sb.BackupJobID, sb.Step.Backup = BackupInProgress, id, ref
	return nil
}

// parcel is where the snapshot of a reference is for any runner, or is to be.
func (s *Service) parcel(ctx context.Context, sb *Sandbox, ref string, write bool) (any, error) {
	if s.deps.Parcels == nil {
		return nil, nil
	}
	return s.deps.Parcels.Parcel(ctx, sb.OrganizationID, ref, write)
}

// fail makes it errored.
func (sb *Sandbox) fail(reason string, recoverable bool) {
	sb.State, sb.ErrorReason, sb.Recoverable = Errored, reason, recoverable
	sb.JobID, sb.JobType, sb.RetryAt = "", "", nil
}

// renew gives it a new auth token.
func (s *Service) renew(sb *Sandbox) error {
	t := token(32)
	sb.AuthToken, sb.AuthTokenHash = s.seals.seal("auth "+sb.ID, t), hashOf(t)
	return nil
}

// runner returns a runner; one that is not there is lost.
func (s *Service) runner(ctx context.Context, id string) (Runner, error) {
	r, err := s.deps.Runners.Runner(ctx, id)
	if errors.Is(err, daytona.ErrNotFound) {
		return Runner{ID: id, lost: true, gone: true}, nil
	}
	r.lost = !r.Usable && s.now().Sub(s.watch.Since(r.SeenAt)) > s.config.LostAfter
	return r, err
}

// restorable reports whether a sandbox can be made again from its backup.
func (s *Service) restorable(ctx context.Context, sb *Sandbox) (bool, error) {
	if sb.Backup != BackupCompleted || sb.BackupRunnerID == "" {
		return sb.Backup == BackupCompleted, nil
	}
	r, err := s.runner(ctx, sb.BackupRunnerID)
	return r.Usable, err
}

// ensure has a runner get a reference; what is in its way now may be gone later.
func (s *Service) ensure(ctx context.Context, runnerID, ref string) error {
	err := s.deps.Snapshots.Ensure(ctx, runnerID, ref)
	if errors.Is(err, daytona.ErrConflict) {
		return noPlaceError{err}
	}
	return err
}

// dropBackup removes the backup of a sandbox from the runner that has it.
func (s *Service) dropBackup(ctx context.Context, sb *Sandbox) error {
	ref, runner := sb.BackupRef, sb.BackupRunnerID
	sb.BackupRef, sb.BackupRunnerID = "", ""
	if ref == "" || runner == "" {
		return nil
	}
	if r, err := s.runner(ctx, runner); err != nil || r.gone {
		return err
	}
	_, err := s.deps.Jobs.Enqueue(ctx, Job{Type: "REMOVE_SNAPSHOT", RunnerID: runner, ResourceType: "SNAPSHOT", ResourceID: ref, Payload: map[string]any{}})
	if errors.Is(err, daytona.ErrConflict) {
		return nil
	}
	return err
}

// place finds a runner for a sandbox.
func (s *Service) place(ctx context.Context, sb *Sandbox, only, prefer []string, more ...Capability) (Placed, error) {
	p := Placement{Key: sb.ID, RegionID: sb.RegionID, Class: sb.Class, Resources: sb.Resources(), Needs: append(needs(sb), more...), Only: only, Prefer: prefer}
	if sb.GPUType != "" {
		p.GPUTypes = strings.Split(sb.GPUType, ",")
	}
	// A runner that may still have an older copy of it would take that one for it.
	var left []leftover
	if err := s.db.All(ctx).NewSelect().Model(&left).Where("sandbox_id = ?", sb.ID).Scan(ctx); err != nil {
		return Placed{}, err
	}
	for _, l := range left {
		p.Not = append(p.Not, l.RunnerID)
	}
	if sb.LinkedID != "" {
		owner, err := s.byID(ctx, sb.LinkedID, false)
		if err != nil {
			return Placed{}, err
		}
		if only != nil && !slices.Contains(only, owner.RunnerID) {
			return Placed{}, noPlaceError{invalid("No available runners")}
		}
		p.Only = []string{owner.RunnerID}
	}
	placed, err := s.deps.Runners.Place(ctx, p)
	if errors.Is(err, daytona.ErrInvalid) {
		err = noPlaceError{err}
	}
	return placed, err
}

// needs are the capabilities that a sandbox's runner must have.
func needs(sb *Sandbox) []Capability {
	var all []Capability
	add := func(cond bool, c Capability) {
		if cond {
			all = append(all, c)
		}
	}
	add(sb.GPU > 0, CanGPU)
	add(sb.LinkedID != "", CanLink)
	add(sb.OTelEndpoint != "", CanOTel)
	add(len(sb.Secrets) > 0, CanSecrets)
	add(len(sb.Volumes) > 0, CanVolumes)
	add(sb.DomainAllowList != nil, CanDomains)
	return all
}

// leftover is a copy of a sandbox that is to go from a runner once it is back.
type leftover struct {
	bun.BaseModel `bun:"table:sandbox_leftovers,alias:leftover"`
	SandboxID     string    `bun:"sandbox_id,pk"`
	RunnerID      string    `bun:"runner_id,pk"`
	JobID         string    `bun:"job_id,notnull"`
	CreatedAt     time.Time `bun:"created_at,notnull"`
}

// leave takes a sandbox off its runner, which is to remove it when it can.
func (s *Service) leave(ctx context.Context, sb *Sandbox) error {
	if sb.RunnerID == "" {
		return nil
	}
	l := &leftover{SandboxID: sb.ID, RunnerID: sb.RunnerID, CreatedAt: s.now()}
	sb.RunnerID = ""
	_, err := s.db.All(ctx).NewInsert().Model(l).On("CONFLICT (sandbox_id, runner_id) DO NOTHING").Exec(ctx)
	return err
}

// JobDone ends the step that waits for a job. It is called in the transaction
// that ends the job; one that nothing waits for changes nothing but that what
// waited for its end goes on.
func (s *Service) JobDone(ctx context.Context, j Job) error {
	return s.db.Tx(ctx, func(ctx context.Context) error {
		if j.Type == jobBackup {
			return s.backupDone(ctx, j)
		}
		if j.Type == jobDestroy {
			if gone, err := s.leftoverDone(ctx, j); gone || err != nil {
				return err
			}
		}
		var waiting []*Sandbox
		q := s.db.All(ctx).NewSelect().Model(&waiting).Where("job_id = ? AND job_id <> ''", j.ID).Order("id")
		if s.db.Postgres() {
			q = q.For("UPDATE")
		}
		if err := q.Scan(ctx); err != nil {
			return err
		}
		if len(waiting) == 0 {
			return s.goOn(ctx, j.ResourceID)
		}
		for _, sb := range waiting {
			sb.remember()
			if err := s.finish(ctx, sb, j); err != nil {
				return err
			}
			if err := s.advanceLater(ctx, sb); err != nil {
				return err
			}
			if err := s.save(ctx, sb); err != nil {
				return err
			}
			if sb.State == Destroyed && sb.LinkedID == "" {
				if err := s.destroyLinked(ctx, sb.ID); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// goOn lets a sandbox that waited for the end of some job of its own go on.
func (s *Service) goOn(ctx context.Context, id string) error {
	sb, err := s.byID(ctx, id, true)
	if errors.Is(err, daytona.ErrNotFound) {
		return nil
	} else if err != nil {
		return err
	}
	if sb.JobID != "" || sb.RetryAt == nil || sb.State == Errored {
		return nil
	}
	sb.RetryAt = nil
	if err := s.advanceLater(ctx, sb); err != nil {
		return err
	}
	return s.save(ctx, sb)
}

// finish moves a sandbox on that waited for a job.
func (s *Service) finish(ctx context.Context, sb *Sandbox, j Job) error {
	st := sb.Step
	sb.Step = step{Backup: st.Backup}
	sb.JobID, sb.JobType, sb.RetryAt = "", "", nil
	sb.LastJobID, sb.LastJobError = j.ID, ""
	reason, recoverable := "", false
	if j.Failed {
		reason, recoverable = reasonOf(j.Error)
		sb.LastJobError = reason
	} else if sb.State != Errored {
		sb.ErrorReason = ""
	}
	var result struct {
		DaemonVersion string  `json:"daemonVersion"`
		Hash          string  `json:"hash"`
		Ref           string  `json:"ref"`
		SizeGB        float64 `json:"sizeGB"`
		Parcelled     bool    `json:"parcelled"`
	}
	if j.Result != "" {
		// What a runner says that can't be read says nothing.
		_ = json.Unmarshal([]byte(j.Result), &result)
	}
	if result.DaemonVersion != "" && len(result.DaemonVersion) <= 64 {
		sb.DaemonVersion = result.DaemonVersion
	}
	switch j.Type {
	case jobCreate, jobStart:
		if j.Failed {
			sb.fail(reason, recoverable)
			return s.deps.Runners.Release(ctx, sb.ID)
		}
		if sb.State == Restoring {
			sb.RestoredAt = new(s.now())
		}
		// From now on a backup would be of something older.
		sb.Backup, sb.BackupJobID = BackupNone, ""
		sb.State, sb.Attempts = Started, 0
		if j.Type == jobCreate {
			return s.deps.Runners.Release(ctx, sb.ID)
		}
	case jobStop:
		if j.Failed {
			sb.fail(reason, recoverable)
			break
		}
		return s.stopped(ctx, sb)
	case jobDestroy:
		switch {
		case !j.Failed && sb.Desired == WantDestroyed:
			sb.State = Destroyed
			return s.dropBackup(ctx, sb)
		case !j.Failed:
			sb.State, sb.RunnerID = Archived, ""
		case sb.Desired == WantDestroyed:
			sb.fail(reason, recoverable)
			s.retryLater(sb)
		default:
			s.retryLater(sb)
		}
	case jobPause:
		if j.Failed {
			// It runs as it did.
			sb.State, sb.Desired, sb.ErrorReason = Started, WantStarted, reason
			break
		}
		sb.State = Paused
	case jobResize:
		sb.State = st.Prior
		if j.Failed {
			sb.ErrorReason = reason
		} else if r := st.Resize; r != nil {
			sb.CPU, sb.Memory, sb.Disk = r.CPU, r.Memory, r.Disk
		}
	case jobNetwork:
		if j.Failed && st.Network != nil {
			// What is not in force is not said to be.
			sb.NetworkBlockAll, sb.NetworkAllowList, sb.DomainAllowList = st.Network.BlockAll, st.Network.AllowList, st.Network.DomainAllow
		}
	case jobSecrets:
		if j.Failed {
			sb.Secrets = st.Secrets
			if _, err := s.deps.Secrets.Attach(ctx, sb.OrganizationID, sb.ID, secretMap(sb.Secrets)); err != nil && !errors.Is(err, daytona.ErrInvalid) {
				return err
			}
		}
	case jobSnapshot:
		sb.State = st.Prior
		if j.Failed {
			sb.ErrorReason = reason
		}
		if st.Capture != nil {
			st.Capture.Parcelled = result.Parcelled
		}
		err := s.captured(ctx, st.Capture, result.SizeGB, sb.LastJobError)
		if errors.Is(err, daytona.ErrConflict) || errors.Is(err, daytona.ErrInvalid) {
			sb.LastJobError, sb.ErrorReason = message(err), message(err)
			return nil
		}
		return err
	case jobFork:
		switch {
		case sb.State == Forking:
			sb.State = st.Prior
		case j.Failed:
			sb.fail(reason, recoverable)
		default:
			sb.State = Started
		}
	case jobRecover:
		if j.Failed {
			sb.fail(reason, recoverable)
			break
		}
		sb.State = Stopped
	}
	return nil
}

// captured says what came of a snapshot.
func (s *Service) captured(ctx context.Context, c *Capture, sizeGB float64, failure string) error {
	if c == nil {
		return nil
	}
	err := s.deps.Snapshots.Captured(ctx, *c, sizeGB, failure)
	if errors.Is(err, daytona.ErrNotFound) { // it was deleted meanwhile
		return nil
	}
	return err
}

// stopped is what follows when a sandbox has stopped.
func (s *Service) stopped(ctx context.Context, sb *Sandbox) error {
	sb.State, sb.Backup, sb.BackupJobID, sb.Attempts = Stopped, BackupNone, "", 0
	if sb.Ephemeral() {
		if sb.Desired == WantStopped {
			s.release(sb)
		}
		return nil
	}
	if sb.Desired != WantStopped || s.config.BackupEvery < 0 {
		return nil
	}
	r, err := s.runner(ctx, sb.RunnerID)
	if err != nil || !r.Can(CanBackup) || !r.Can(CanMove) {
		// A backup that goes with its runner takes a disk and helps nobody.
		return err
	}
	return s.beginBackup(ctx, sb)
}

// release makes a sandbox one that is to be destroyed: its name is free at once.
func (s *Service) release(sb *Sandbox) {
	if sb.Desired != WantDestroyed {
		sb.Name = fmt.Sprintf("DESTROYED_%s_%d", sb.Name, s.now().UnixMilli())
	}
	sb.Desired, sb.RetryAt = WantDestroyed, nil
}

// retryLater waits longer each time, up to ten minutes.
func (s *Service) retryLater(sb *Sandbox) {
	d := s.config.Sweep << min(sb.Attempts, 6)
	sb.Attempts++
	sb.RetryAt = new(s.now().Add(min(d, 10*time.Minute)))
}

func (s *Service) backupDone(ctx context.Context, j Job) error {
	sb := &Sandbox{}
	q := s.db.All(ctx).NewSelect().Model(sb).Where("backup_job_id = ? AND backup_job_id <> ''", j.ID)
	if s.db.Postgres() {
		q = q.For("UPDATE")
	}
	if err := q.Scan(ctx); err != nil {
		if store.IsNone(err) {
			return s.strayBackup(ctx, j)
		}
		return err
	}
	sb.remember()
	sb.BackupJobID, sb.BackupSince = "", new(s.now())
	if j.Failed {
		sb.BackupError, _ = reasonOf(j.Error)
		sb.Backup = BackupError
	} else {
		// Only the newest is kept.
		if err := s.dropBackup(ctx, sb); err != nil {
			return err
		}
		sb.Backup, sb.BackupRef, sb.BackupAt, sb.BackupRunnerID = BackupCompleted, sb.Step.Backup, new(s.now()), j.RunnerID
		if r, err := s.runner(ctx, j.RunnerID); err != nil {
			return err
		} else if r.Can(CanMove) && (s.deps.Parcels == nil || parcelled(j.Result)) {
			sb.BackupRunnerID = ""
		}
	}
	sb.Step.Backup = ""
	if sb.State == Destroyed {
		// It was destroyed while the backup was made.
		if err := s.dropBackup(ctx, sb); err != nil {
			return err
		}
	}
	if err := s.advanceLater(ctx, sb); err != nil {
		return err
	}
	return s.save(ctx, sb)
}

// strayBackup removes a backup that nobody waits for any more, because the
// sandbox was started, or destroyed, meanwhile: its runner alone knows of it.
func (s *Service) strayBackup(ctx context.Context, j Job) error {
	var result struct {
		Ref string `json:"ref"`
	}
	if j.Failed || json.Unmarshal([]byte(j.Result), &result) != nil || !strings.HasPrefix(result.Ref, "daytona/backup-"+j.ResourceID+":") {
		return nil
	}
	// Not if it is that of the sandbox after all, and its end is told twice.
	if used, err := s.db.All(ctx).NewSelect().Model((*Sandbox)(nil)).Where("backup_ref = ?", result.Ref).Exists(ctx); err != nil || used {
		return err
	}
	_, err := s.deps.Jobs.Enqueue(ctx, Job{Type: "REMOVE_SNAPSHOT", RunnerID: j.RunnerID, ResourceType: "SNAPSHOT", ResourceID: result.Ref, Payload: map[string]any{}})
	if errors.Is(err, daytona.ErrConflict) {
		return nil
	}
	return err
}

// parcelled reports whether a runner says that what it has kept is where others
// can have it.
func parcelled(result string) bool {
	var r struct {
		Parcelled bool `json:"parcelled"`
	}
	return json.Unmarshal([]byte(result), &r) == nil && r.Parcelled
}

// leftoverDone ends what a lost runner still had.
func (s *Service) leftoverDone(ctx context.Context, j Job) (bool, error) {
	l := &leftover{}
	err := s.db.All(ctx).NewSelect().Model(l).Where("sandbox_id = ? AND job_id = ?", j.ResourceID, j.ID).Scan(ctx)
	if store.IsNone(err) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	if j.Failed {
		_, err = s.db.All(ctx).NewUpdate().Model(l).Set("job_id = ''").WherePK().Exec(ctx)
	} else {
		_, err = s.db.All(ctx).NewDelete().Model(l).WherePK().Exec(ctx)
	}
	return true, err
}

// reasonOf takes apart what a runner says of a job that failed.
func reasonOf(text string) (reason string, recoverable bool) {
	var e struct {
		Recoverable bool   `json:"recoverable"`
		ErrorReason string `json:"errorReason"`
	}
	if json.Unmarshal([]byte(text), &e) == nil && e.ErrorReason != "" {
		text, recoverable = e.ErrorReason, e.Recoverable
	}
	if text = strings.ToValidUTF8(text, "?"); text == "" {
		text = "The job failed without saying why"
	}
	if len(text) > 4096 {
		text = strings.ToValidUTF8(text[:4096], "")
	}
	return text, recoverable
}

func message(err error) string {
	if e, ok := errors.AsType[*daytona.Error](err); ok && e.Message != "" {
		return e.Message
	}
	return err.Error()
}

// mount is a volume with where it is.
type mount struct {
	Volume
	S3 any `json:"s3,omitempty"`
}

type createJob struct {
	ID                string            `json:"id"`
	Name              string            `json:"name"`
	UserID            string            `json:"userId"`
	Snapshot          string            `json:"snapshot"`
	BackupRef         string            `json:"backupRef,omitempty"`
	Parcel            any               `json:"parcel,omitempty"`
	OSUser            string            `json:"osUser"`
	CPUQuota          int               `json:"cpuQuota"`
	GPUQuota          int               `json:"gpuQuota"`
	GPUType           string            `json:"gpuType,omitempty"`
	MemoryQuota       int               `json:"memoryQuota"`
	StorageQuota      int               `json:"storageQuota"`
	Env               map[string]string `json:"env"`
	Entrypoint        []string          `json:"entrypoint,omitempty"`
	Volumes           []mount           `json:"volumes,omitempty"`
	NetworkBlockAll   bool              `json:"networkBlockAll"`
	NetworkAllowList  *string           `json:"networkAllowList,omitempty"`
	DomainAllowList   *string           `json:"domainAllowList,omitempty"`
	Metadata          map[string]string `json:"metadata"`
	AuthToken         string            `json:"authToken"`
	OTelEndpoint      string            `json:"otelEndpoint,omitempty"`
	OrganizationID    string            `json:"organizationId"`
	RegionID          string            `json:"regionId"`
	LinkedSandboxID   string            `json:"linkedSandboxId,omitempty"`
	SandboxClass      string            `json:"sandboxClass"`
	SkipStart         bool              `json:"skipStart,omitempty"`
	ErrorReason       string            `json:"errorReason,omitempty"`
	BackupErrorReason string            `json:"backupErrorReason,omitempty"`
}

// createPayload is what a runner needs to make a sandbox, from a backup if
// there is one.
func (s *Service) createPayload(ctx context.Context, sb *Sandbox, backup string) (*createJob, error) {
	auth, err := s.seals.unseal("auth "+sb.ID, sb.AuthToken)
	if err != nil {
		return nil, err
	}
	env := maps.Clone(sb.Env)
	if env == nil {
		env = map[string]string{}
	}
	if sb.OutboundProxy != "" {
		proxy, err := s.seals.unseal("proxy "+sb.ID, sb.OutboundProxy)
		if err != nil {
			return nil, err
		}
		for _, k := range []string{"HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"} {
			if _, own := env[k]; !own {
				env[k] = proxy
			}
		}
	}
	if len(sb.Secrets) > 0 && s.deps.Secrets != nil {
		placeholders, err := s.deps.Secrets.Env(ctx, sb.OrganizationID, sb.ID)
		if err != nil {
			return nil, err
		}
		maps.Copy(env, placeholders)
	}
	volumes := make([]mount, len(sb.Volumes))
	for i, v := range sb.Volumes {
		volumes[i].Volume = v
		if s.deps.Volumes != nil {
			if volumes[i].S3, err = s.deps.Volumes.Location(ctx, sb.OrganizationID, v.VolumeID); err != nil {
				return nil, err
			}
		}
	}
	ref := sb.Ref
	if backup != "" {
		ref = backup
	}
	return &createJob{
		ID: sb.ID, Name: sb.Name, UserID: sb.OrganizationID, Snapshot: ref, BackupRef: backup, OSUser: sb.User,
		CPUQuota: sb.CPU, GPUQuota: sb.GPU, GPUType: sb.GPUType, MemoryQuota: sb.Memory, StorageQuota: sb.Disk,
		Env: env, Entrypoint: sb.Entrypoint, Volumes: volumes,
		NetworkBlockAll: sb.NetworkBlockAll, NetworkAllowList: sb.NetworkAllowList, DomainAllowList: sb.DomainAllowList,
		Metadata: s.metadata(ctx, sb), AuthToken: auth, OTelEndpoint: sb.OTelEndpoint,
		OrganizationID: sb.OrganizationID, RegionID: sb.RegionID, LinkedSandboxID: sb.LinkedID, SandboxClass: sb.Class,
	}, nil
}

// metadata names what a sandbox is to its runner.
func (s *Service) metadata(ctx context.Context, sb *Sandbox) map[string]string {
	m := map[string]string{"organizationId": sb.OrganizationID, "sandboxName": sb.Name}
	// Of a suspended organization nothing is begun, but what is begun goes on.
	if o, err := s.deps.Organizations.Active(ctx, sb.OrganizationID); err == nil {
		m["organizationName"], m["limitNetworkEgress"] = o.Name, fmt.Sprint(o.LimitedEgress)
	}
	return m
}

func (s *Service) startPayload(ctx context.Context, sb *Sandbox) map[string]any {
	m := s.metadata(ctx, sb)
	if len(sb.Volumes) > 0 {
		if b, err := json.Marshal(sb.Volumes); err == nil {
			m["volumes"] = string(b)
		}
	}
	if sb.DomainAllowList != nil {
		m["domainAllowList"] = *sb.DomainAllowList
	}
	auth, err := s.seals.unseal("auth "+sb.ID, sb.AuthToken)
	if err != nil {
		s.log.Error("a sandbox's token can't be read", "sandbox", sb.ID, "err", err)
	}
	return map[string]any{"authToken": auth, "metadata": m}
}
