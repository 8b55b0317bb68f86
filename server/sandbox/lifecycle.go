package sandbox

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/store"
)

// Start starts a sandbox, brings an archived one back, or lets a paused one go
// on, and waits for it unless it has to be restored.
func (s *Service) Start(ctx context.Context, organizationID, idOrName string) (*Sandbox, error) {
	if _, err := s.deps.Organizations.Active(ctx, organizationID); err != nil {
		return nil, err
	}
	sb, err := s.change(ctx, organizationID, idOrName, func(ctx context.Context, sb *Sandbox) error {
		if sb.State == Started && sb.Desired == WantStarted {
			return nil
		}
		if sb.State == Errored || sb.State == BuildFailed {
			return state("Sandbox is in an errored state")
		}
		if sb.Pending {
			return inProgress()
		}
		switch sb.State {
		case Stopped, Archived, Archiving, Paused:
		default:
			return state("Sandbox is not in a startable state")
		}
		if err := s.reserve(ctx, sb, sb.Resources()); err != nil {
			return err
		}
		sb.RetryAt = nil
		return want(sb, WantStarted)
	})
	if err != nil || sb.State == Started || sb.State == Archived || sb.State == Archiving || sb.State == Restoring {
		return sb, err
	}
	return s.waitStarted(ctx, sb)
}

// Stop stops a sandbox, which takes its time; an ephemeral one is destroyed.
func (s *Service) Stop(ctx context.Context, organizationID, idOrName string, force bool) (*Sandbox, error) {
	return s.change(ctx, organizationID, idOrName, func(ctx context.Context, sb *Sandbox) error {
		return s.stop(sb, force)
	})
}

func (s *Service) stop(sb *Sandbox, force bool) error {
	if sb.Pending {
		return inProgress()
	}
	if sb.State != Started && sb.State != Paused {
		return state("Sandbox is not in a stoppable state")
	}
	if sb.JobID != "" {
		return inProgress()
	}
	if sb.Ephemeral() {
		s.release(sb)
		return nil
	}
	sb.Step.Force = force
	return want(sb, WantStopped)
}

// Pause freezes a started sandbox, memory and all, and waits for it.
func (s *Service) Pause(ctx context.Context, organizationID, idOrName string) (*Sandbox, error) {
	sb, err := s.change(ctx, organizationID, idOrName, func(ctx context.Context, sb *Sandbox) error { return s.pause(ctx, sb) })
	if err != nil {
		return nil, err
	}
	return s.waitJob(ctx, sb, sb.JobID)
}

func (s *Service) pause(ctx context.Context, sb *Sandbox) error {
	if sb.Pending || sb.JobID != "" && sb.State == Started {
		return inProgress()
	}
	if sb.State == Paused {
		return nil
	}
	if sb.State != Started {
		return state("Sandbox is not started")
	}
	if err := s.can(ctx, sb, CanPause, "Pausing"); err != nil {
		return err
	}
	return want(sb, WantPaused)
}

// can is nil if the runner of a sandbox can do something.
func (s *Service) can(ctx context.Context, sb *Sandbox, c Capability, what string) error {
	r, err := s.runner(ctx, sb.RunnerID)
	if err != nil {
		return err
	}
	if !r.Can(c) {
		return unsupported("%s is not supported for sandbox class %s on its runner", what, sb.Class)
	}
	return nil
}

// Archive moves a stopped sandbox to the object storage.
func (s *Service) Archive(ctx context.Context, organizationID, idOrName string) (*Sandbox, error) {
	return s.change(ctx, organizationID, idOrName, func(ctx context.Context, sb *Sandbox) error { return s.archive(ctx, sb) })
}

func (s *Service) archive(ctx context.Context, sb *Sandbox) error {
	if sb.Pending {
		return inProgress()
	}
	if (sb.State == Archived || sb.State == Archiving) && sb.Desired == WantArchived {
		return nil
	}
	if sb.State != Stopped || sb.JobID != "" {
		return state("Sandbox is not stopped")
	}
	if sb.Ephemeral() {
		return invalid("Ephemeral sandboxes cannot be archived")
	}
	if err := s.can(ctx, sb, CanBackup, "Archiving"); err != nil {
		return err
	}
	return want(sb, WantArchived)
}

// Delete destroys a sandbox, which takes its time. Its name is free at once.
func (s *Service) Delete(ctx context.Context, organizationID, idOrName string) (*Sandbox, error) {
	return s.change(ctx, organizationID, idOrName, s.destroy)
}

func (s *Service) destroy(ctx context.Context, sb *Sandbox) error {
	if sb.Desired == WantDestroyed {
		return nil
	}
	if sb.Pending && sb.State != PendingBuild || sb.JobID != "" && sb.State != Archiving {
		return inProgress()
	}
	if !May(sb.State, WantDestroyed) {
		return inProgress()
	}
	n, err := s.db.In(ctx, sb.OrganizationID).Select((*Sandbox)(nil)).Where("parent_id = ?", sb.ID).
		Where("state <> ?", Destroyed).Where("desired_state <> ?", WantDestroyed).Count(ctx)
	if err != nil {
		return err
	}
	if n > 0 {
		return state(fmt.Sprintf("Sandbox has %d active forks. Delete them first.", n))
	}
	s.release(sb)
	return s.destroyLinked(ctx, sb.ID)
}

// destroyLinked destroys the sandboxes that are linked to one, or leaves those
// that are on their way to something to the next sweep.
func (s *Service) destroyLinked(ctx context.Context, owner string) error {
	var linked []*Sandbox
	q := s.db.All(ctx).NewSelect().Model(&linked).Where("linked_id = ?", owner).Where("desired_state <> ?", WantDestroyed).
		Where("state <> ?", Destroyed).Order("id")
	if s.db.Postgres() {
		q = q.For("UPDATE")
	}
	if err := q.Scan(ctx); err != nil {
		return err
	}
	for _, sb := range linked {
		sb.remember()
		if err := s.destroy(ctx, sb); errors.Is(err, daytona.ErrConflict) || errors.Is(err, daytona.ErrState) {
			continue
		} else if err != nil {
			return err
		}
		if err := s.advanceLater(ctx, sb); err != nil {
			return err
		}
		if err := s.save(ctx, sb); err != nil {
			return err
		}
	}
	return nil
}

var timedOut = regexp.MustCompile(`(?i)timeout while (creating|starting|pulling)|job timed out`)

// Recover brings a sandbox back from an error, and starts it unless skipStart.
// organizationID is "" for an administrator.
func (s *Service) Recover(ctx context.Context, organizationID, idOrName string, skipStart bool) (*Sandbox, error) {
	if organizationID == "" {
		sb, err := s.Find(ctx, idOrName)
		if err != nil {
			return nil, err
		}
		organizationID = sb.OrganizationID
	}
	if _, err := s.deps.Organizations.Active(ctx, organizationID); err != nil {
		return nil, err
	}
	sb, err := s.change(ctx, organizationID, idOrName, func(ctx context.Context, sb *Sandbox) error {
		if sb.State != Errored {
			return state("Sandbox is not in an errored state")
		}
		restorable := sb.Lost || timedOut.MatchString(sb.ErrorReason)
		if restorable {
			var err error
			if restorable, err = s.restorable(ctx, sb); err != nil {
				return err
			}
		}
		if !restorable && !sb.Recoverable {
			return state("Sandbox is not in a recoverable state")
		}
		if err := s.reserve(ctx, sb, sb.Resources()); err != nil {
			return err
		}
		sb.RetryAt = nil
		if restorable {
			if sb.RestoredAt != nil && s.now().Sub(*sb.RestoredAt) < time.Hour {
				return &daytona.Error{Kind: daytona.KindConflict, Message: "Sandbox was restored from its backup less than an hour ago"}
			}
			if err := s.leave(ctx, sb); err != nil {
				return err
			}
			sb.State, sb.Desired, sb.ErrorReason = Archived, WantStarted, ""
			return nil
		}
		r, err := s.runner(ctx, sb.RunnerID)
		if err != nil {
			return err
		}
		if !r.Usable {
			return &daytona.Error{Kind: daytona.KindUnavailable, Message: "The runner of the sandbox does not answer"}
		}
		payload, err := s.createPayload(ctx, sb, "")
		if err != nil {
			return err
		}
		payload.SkipStart, payload.ErrorReason, payload.BackupErrorReason = skipStart, sb.ErrorReason, sb.BackupError
		sb.Desired = WantStarted
		if skipStart {
			sb.Desired = WantStopped
		}
		_, err = s.begin(ctx, sb, Restoring, jobRecover, payload)
		if err == nil && sb.JobID == "" {
			return inProgress()
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if skipStart {
		return s.waitJob(ctx, sb, sb.JobID)
	}
	return s.waitStarted(ctx, sb)
}

// Resize changes the resources of a sandbox, and waits for it. Zero fields
// stay as they are.
func (s *Service) Resize(ctx context.Context, organizationID, idOrName string, to Resources) (*Sandbox, error) {
	sb, err := s.change(ctx, organizationID, idOrName, func(ctx context.Context, sb *Sandbox) error {
		if sb.Pending || sb.JobID != "" {
			return inProgress()
		}
		if sb.State != Started && sb.State != Stopped {
			return state("Sandbox must be started or stopped to be resized")
		}
		r := Resources{or(to.CPU, sb.CPU), or(to.Memory, sb.Memory), or(to.Disk, sb.Disk), sb.GPU}
		if r.CPU < 1 || r.Memory < 1 || r.Disk < 1 || max(r.CPU, r.Memory, r.Disk) > 1<<20 {
			return invalid("cpu, memory and disk must be at least 1")
		}
		switch {
		case r == sb.Resources():
			return invalid("No resource changes specified")
		case r.Disk < sb.Disk:
			return invalid("Disk size cannot be decreased")
		case sb.State == Started && r.Disk != sb.Disk:
			return state("Disk can only be resized when the sandbox is stopped")
		case sb.State == Started && (r.CPU < sb.CPU || r.Memory < sb.Memory):
			return state("CPU and memory can only be decreased when the sandbox is stopped")
		}
		if err := s.can(ctx, sb, CanResize, "Resizing"); err != nil {
			return err
		}
		claim := r
		if sb.State == Stopped {
			claim = Resources{Disk: r.Disk}
			// What it has when it starts is asked for now as well, so that nobody
			// makes one that can't start.
			if err := s.reserve(ctx, sb, r); err != nil {
				return err
			}
		}
		if err := s.reserve(ctx, sb, claim); err != nil {
			return err
		}
		sb.Step = step{Prior: sb.State, Resize: &r, Backup: sb.Step.Backup}
		return s.excursion(ctx, sb, Resizing, jobResize, map[string]any{"cpu": r.CPU, "memory": r.Memory, "disk": r.Disk})
	})
	if err != nil {
		return nil, err
	}
	return s.waitJob(ctx, sb, sb.JobID)
}

// excursion is begin for what goes back to where it was, and is refused while
// a job is not over.
func (s *Service) excursion(ctx context.Context, sb *Sandbox, during State, typ string, payload any) error {
	sb.RetryAt = nil
	if _, err := s.begin(ctx, sb, during, typ, payload); err != nil {
		return err
	}
	if sb.JobID == "" {
		return &daytona.Error{Kind: daytona.KindConflict, Message: "An operation is already in progress for this resource"}
	}
	return nil
}

// Snapshot makes a snapshot of a started or stopped sandbox, and waits for it.
func (s *Service) Snapshot(ctx context.Context, organizationID, idOrName, name string, memory bool) (*Sandbox, error) {
	if _, err := s.deps.Organizations.Active(ctx, organizationID); err != nil {
		return nil, err
	}
	if err := checkDisplay("name", name, 255); err != nil {
		return nil, err
	}
	sb, err := s.change(ctx, organizationID, idOrName, func(ctx context.Context, sb *Sandbox) error {
		if sb.Pending || sb.JobID != "" {
			return inProgress()
		}
		if sb.State != Started && sb.State != Stopped {
			return state("Sandbox must be started or stopped to create a snapshot")
		}
		if err := s.can(ctx, sb, CanSnapshot, "Making a snapshot"); err != nil {
			return err
		}
		if memory {
			if sb.State != Started {
				return state("includeMemory needs the sandbox to be started")
			}
			if err := s.can(ctx, sb, CanMemory, "includeMemory"); err != nil {
				return err
			}
		}
		c := &Capture{OrganizationID: organizationID, Name: name, SandboxID: sb.ID, RegionID: sb.RegionID, RunnerID: sb.RunnerID, Class: sb.Class,
			Resources: sb.Resources(), GPUType: sb.GPUType, Entrypoint: sb.Entrypoint, IncludeMemory: memory}
		var err error
		if c.SnapshotID, c.Ref, err = s.deps.Snapshots.Capture(ctx, *c); err != nil {
			return err
		}
		sb.Step = step{Prior: sb.State, Capture: c, Backup: sb.Step.Backup}
		payload := map[string]any{"sandboxId": sb.ID, "name": name, "ref": c.Ref, "organizationId": organizationID, "includeMemory": memory}
		r, err := s.runner(ctx, sb.RunnerID)
		if err != nil {
			return err
		}
		if r.Can(CanMove) && !memory {
			p, err := s.parcel(ctx, sb, c.Ref, true)
			if err != nil {
				return err
			}
			if p != nil {
				payload["parcel"] = p
			}
		}
		return s.excursion(ctx, sb, Snapshotting, jobSnapshot, payload)
	})
	if err != nil {
		return nil, err
	}
	return s.waitJob(ctx, sb, sb.JobID)
}

// Fork makes a sandbox from the present files of another and returns it,
// started if it was in time.
func (s *Service) Fork(ctx context.Context, organizationID, idOrName, name string) (*Sandbox, error) {
	if _, err := s.deps.Organizations.Active(ctx, organizationID); err != nil {
		return nil, err
	}
	if name != "" {
		if err := checkDisplay("name", name, 255); err != nil {
			return nil, err
		}
	}
	var child *Sandbox
	_, err := s.change(ctx, organizationID, idOrName, func(ctx context.Context, sb *Sandbox) error {
		if sb.Pending || sb.JobID != "" {
			return inProgress()
		}
		if sb.State != Started && sb.State != Stopped {
			return state("Sandbox must be started to be forked")
		}
		if err := s.can(ctx, sb, CanFork, "Forking"); err != nil {
			return err
		}
		if sb.GPU > 0 {
			return invalid("GPU sandboxes cannot be forked: a GPU belongs to one sandbox")
		}
		if sb.LinkedID != "" {
			return invalid("Linked sandboxes cannot be forked")
		}
		now := s.now()
		c := *sb
		child = &c
		child.ID, child.Name, child.ParentID, child.WarmPoolID = newID(), name, sb.ID, ""
		if name == "" {
			child.Name = child.ID
		}
		child.State, child.Desired, child.StateSince = Creating, WantStarted, now
		child.CreatedAt, child.UpdatedAt, child.LastActivityAt, child.RestoredAt = now, now, now, nil
		child.Backup, child.BackupRef, child.BackupJobID, child.BackupAt, child.BackupSince, child.BackupError = BackupNone, "", "", nil, nil, ""
		child.ErrorReason, child.LastJobID, child.LastJobError, child.Attempts, child.RetryAt, child.Step = "", "", "", 0, nil, step{}
		if sb.DestroyAt != nil {
			// It lives as long as its parent was to.
			child.DestroyAt = new(now.Add(sb.DestroyAt.Sub(sb.CreatedAt)))
		}
		if sb.OutboundProxy != "" {
			proxy, err := s.seals.unseal("proxy "+sb.ID, sb.OutboundProxy)
			if err != nil {
				return err
			}
			child.OutboundProxy = s.seals.seal("proxy "+child.ID, proxy)
		}
		if err := s.renew(child); err != nil {
			return err
		}
		child.SigningKey = s.seals.seal("signing "+child.ID, token(64))
		if len(child.Secrets) > 0 && s.deps.Secrets != nil {
			if _, err := s.deps.Secrets.Attach(ctx, child.OrganizationID, child.ID, secretMap(child.Secrets)); err != nil {
				return err
			}
		}
		if err := s.reserve(ctx, child, child.Resources()); err != nil {
			return err
		}
		auth, err := s.seals.unseal("auth "+child.ID, child.AuthToken)
		if err != nil {
			return err
		}
		id, err := s.deps.Jobs.Enqueue(ctx, Job{Type: jobFork, RunnerID: sb.RunnerID, ResourceType: ResourceSandbox, ResourceID: child.ID,
			Payload: map[string]any{"sourceSandboxId": sb.ID, "newSandboxId": child.ID, "authToken": auth, "metadata": s.metadata(ctx, child)}})
		if err != nil {
			return err
		}
		child.JobID, child.JobType = id, jobFork
		sb.Step = step{Prior: sb.State, Backup: sb.Step.Backup}
		sb.State, sb.JobID, sb.JobType = Forking, id, jobFork
		return s.insert(ctx, child)
	})
	if err != nil {
		return nil, err
	}
	return s.waitStarted(ctx, child)
}

// Forks returns the sandboxes that were forked from one, oldest first.
func (s *Service) Forks(ctx context.Context, organizationID, idOrName string, destroyed bool) ([]*Sandbox, error) {
	sb, err := s.Get(ctx, organizationID, idOrName)
	if err != nil {
		return nil, err
	}
	var children []*Sandbox
	q := s.db.In(ctx, organizationID).Select(&children).Where("parent_id = ?", sb.ID).Order("created_at", "id").Limit(1000)
	if !destroyed {
		q = q.Where("NOT " + gone)
	}
	return children, q.Scan(ctx)
}

// Parent returns the sandbox that one was forked from.
func (s *Service) Parent(ctx context.Context, organizationID, idOrName string) (*Sandbox, error) {
	sb, err := s.Get(ctx, organizationID, idOrName)
	if err != nil {
		return nil, err
	}
	if sb.ParentID == "" {
		return nil, &daytona.Error{Kind: daytona.KindNotFound, Message: "Sandbox has no parent"}
	}
	return s.ancestor(ctx, organizationID, sb.ParentID)
}

func (s *Service) ancestor(ctx context.Context, organizationID, id string) (*Sandbox, error) {
	sb := &Sandbox{}
	err := s.db.In(ctx, organizationID).Select(sb).Where("id = ?", id).Scan(ctx)
	if store.IsNone(err) {
		return nil, notFound(id)
	}
	return sb, err
}

// Ancestors returns those that a sandbox descends from, the root first.
func (s *Service) Ancestors(ctx context.Context, organizationID, idOrName string) ([]*Sandbox, error) {
	sb, err := s.Get(ctx, organizationID, idOrName)
	if err != nil {
		return nil, err
	}
	all := []*Sandbox{}
	for sb.ParentID != "" && len(all) < 50 {
		if sb, err = s.ancestor(ctx, organizationID, sb.ParentID); errors.Is(err, daytona.ErrNotFound) {
			break // it has been gone for long
		} else if err != nil {
			return nil, err
		}
		all = append([]*Sandbox{sb}, all...)
	}
	return all, nil
}

// StartBackup begins a backup now. It does nothing on a runner that can make
// none.
func (s *Service) StartBackup(ctx context.Context, organizationID, idOrName string) (*Sandbox, error) {
	return s.change(ctx, organizationID, idOrName, func(ctx context.Context, sb *Sandbox) error {
		switch {
		case sb.Ephemeral():
			return invalid("Ephemeral sandboxes cannot be backed up")
		case sb.Backup == BackupInProgress || sb.Backup == BackupPending:
			return state("A backup is already in progress")
		case sb.Pending || sb.State != Started && sb.State != Stopped:
			return state("Sandbox must be started or stopped to be backed up")
		}
		r, err := s.runner(ctx, sb.RunnerID)
		if err != nil || !r.Can(CanBackup) {
			return err
		}
		return s.beginBackup(ctx, sb)
	})
}

// update changes what no runner needs to know.
func (s *Service) update(ctx context.Context, organizationID, idOrName string, f func(*Sandbox) error) (*Sandbox, error) {
	return s.change(ctx, organizationID, idOrName, func(_ context.Context, sb *Sandbox) error { return f(sb) })
}

// SetLabels replaces all labels.
func (s *Service) SetLabels(ctx context.Context, organizationID, idOrName string, labels map[string]string) (*Sandbox, error) {
	if labels == nil {
		labels = map[string]string{}
	}
	if err := checkLabels(labels); err != nil {
		return nil, err
	}
	return s.change(ctx, organizationID, idOrName, func(ctx context.Context, sb *Sandbox) error {
		sb.Labels = labels
		return s.saveLabels(ctx, sb)
	})
}

// SetPublic says whether anybody may see its ports.
func (s *Service) SetPublic(ctx context.Context, organizationID, idOrName string, public bool) (*Sandbox, error) {
	return s.update(ctx, organizationID, idOrName, func(sb *Sandbox) error {
		sb.Public = public
		return nil
	})
}

// SetAutoStop sets after how many minutes of idleness it stops, 0 for never.
func (s *Service) SetAutoStop(ctx context.Context, organizationID, idOrName string, minutes int) (*Sandbox, error) {
	return s.update(ctx, organizationID, idOrName, func(sb *Sandbox) error {
		if minutes > 0 {
			sb.AutoPause = 0
		}
		sb.AutoStop = minutes
		return checkMinutes("Auto-stop interval", minutes)
	})
}

// SetAutoPause sets after how many minutes of idleness it is paused, 0 for
// never, and ends automatic stopping.
func (s *Service) SetAutoPause(ctx context.Context, organizationID, idOrName string, minutes int) (*Sandbox, error) {
	return s.change(ctx, organizationID, idOrName, func(ctx context.Context, sb *Sandbox) error {
		if err := checkMinutes("Auto-pause interval", minutes); err != nil {
			return err
		}
		if minutes > 0 {
			if sb.Ephemeral() {
				return invalid("autoPauseInterval is not allowed for ephemeral sandboxes")
			}
			if sb.RunnerID != "" {
				if err := s.can(ctx, sb, CanPause, "Pausing"); err != nil {
					return err
				}
			}
			sb.AutoStop = 0
		}
		sb.AutoPause = minutes
		return nil
	})
}

// SetAutoArchive sets how many minutes after its stop it is archived; 0 is the
// longest.
func (s *Service) SetAutoArchive(ctx context.Context, organizationID, idOrName string, minutes int) (*Sandbox, error) {
	return s.update(ctx, organizationID, idOrName, func(sb *Sandbox) (err error) {
		sb.AutoArchive, err = s.archiveInterval(minutes)
		return err
	})
}

// SetAutoDelete sets how many minutes after its stop it is destroyed: 0 is at
// once, less is never.
func (s *Service) SetAutoDelete(ctx context.Context, organizationID, idOrName string, minutes int) (*Sandbox, error) {
	return s.update(ctx, organizationID, idOrName, func(sb *Sandbox) error {
		if minutes > maxMinutes {
			return checkMinutes("Auto-delete interval", minutes)
		}
		if sb.GPU > 0 && minutes != 0 {
			return invalid("GPU sandboxes must be ephemeral - set autoDeleteInterval to 0")
		}
		if sb.LinkedID != "" && minutes != 0 {
			return invalid("Linked sandboxes must be ephemeral - set autoDeleteInterval to 0")
		}
		sb.AutoDelete = max(minutes, -1)
		if minutes == 0 {
			sb.AutoPause = 0
		}
		return nil
	})
}

// SetTTL sets after how many minutes from now it is destroyed, 0 for never.
func (s *Service) SetTTL(ctx context.Context, organizationID, idOrName string, minutes int) (*Sandbox, error) {
	return s.change(ctx, organizationID, idOrName, func(ctx context.Context, sb *Sandbox) error {
		if err := checkMinutes("ttlMinutes", minutes); err != nil {
			return err
		}
		longest, err := s.deps.Quotas.Lifespan(ctx, organizationID, sb.RegionID, sb.Class)
		if err != nil {
			return err
		}
		sb.DestroyAt = nil
		if minutes > 0 {
			sb.DestroyAt = new(s.now().Add(time.Duration(minutes) * time.Minute))
		}
		if longest > 0 {
			if limit := sb.CreatedAt.Add(longest); sb.DestroyAt == nil || sb.DestroyAt.After(limit) {
				return invalid("ttlMinutes %d exceeds the maximum lifespan of %d minutes", minutes, int(longest/time.Minute))
			}
		}
		return nil
	})
}

// NetworkUpdate changes what a sandbox may reach; nil fields stay.
type NetworkUpdate struct {
	BlockAll                   *bool
	AllowList, DomainAllowList *string
}

// SetNetwork changes what a sandbox may reach, and waits until that is in force.
func (s *Service) SetNetwork(ctx context.Context, organizationID, idOrName string, u NetworkUpdate) (*Sandbox, error) {
	if u.BlockAll == nil && u.AllowList == nil && u.DomainAllowList == nil {
		return nil, invalid("At least one of networkBlockAll, networkAllowList and domainAllowList must be given")
	}
	o, err := s.deps.Organizations.Active(ctx, organizationID)
	if err != nil {
		return nil, err
	}
	if o.LimitedEgress {
		return nil, invalid("Network settings cannot be changed: the egress of the organization is limited")
	}
	job := ""
	sb, err := s.change(ctx, organizationID, idOrName, func(ctx context.Context, sb *Sandbox) error {
		old := Network{sb.NetworkBlockAll, sb.NetworkAllowList, sb.DomainAllowList}
		if err := u.apply(sb); err != nil {
			return err
		}
		switch sb.State {
		case Started, Paused:
		case Stopped, Archived:
			if sb.Pending {
				return inProgress()
			}
			if sb.State == Archived {
				return nil // when it is restored, its runner is told
			}
		default:
			return inProgress()
		}
		if sb.Pending || sb.JobID != "" {
			return inProgress()
		}
		if err := s.can(ctx, sb, CanNetwork, "Changing the network settings"); err != nil {
			return err
		}
		if sb.DomainAllowList != nil {
			if err := s.can(ctx, sb, CanDomains, "domainAllowList"); err != nil {
				return err
			}
		}
		sb.Step = step{Network: &old, Backup: sb.Step.Backup}
		err := s.excursion(ctx, sb, sb.State, jobNetwork, map[string]any{"networkBlockAll": sb.NetworkBlockAll,
			"networkAllowList": sb.NetworkAllowList, "domainAllowList": sb.DomainAllowList, "networkLimitEgress": false})
		job = sb.JobID
		return err
	})
	if err != nil {
		return nil, err
	}
	return s.waitJob(ctx, sb, job)
}

func (u NetworkUpdate) apply(sb *Sandbox) error {
	if u.BlockAll != nil {
		sb.NetworkBlockAll = *u.BlockAll
		if *u.BlockAll || u.AllowList == nil {
			sb.NetworkAllowList = nil
		}
	}
	if u.AllowList != nil && (u.BlockAll == nil || !*u.BlockAll) {
		list, err := checkCIDRs(*u.AllowList)
		if err != nil {
			return err
		}
		if sb.NetworkAllowList = list; list != nil {
			sb.NetworkBlockAll = false
		}
	}
	if u.DomainAllowList != nil {
		list, err := checkDomains(*u.DomainAllowList)
		if err != nil {
			return err
		}
		if sb.DomainAllowList = list; list != nil && u.BlockAll == nil {
			sb.NetworkBlockAll = false
		}
	}
	if sb.NetworkBlockAll {
		sb.DomainAllowList = nil
	}
	if sb.DomainAllowList != nil && sb.OutboundProxy != "" {
		return unsupported("outboundProxyUrl together with domainAllowList is not supported: nothing makes programs use the proxy")
	}
	return nil
}

// SetSecrets replaces the secrets that are mounted.
func (s *Service) SetSecrets(ctx context.Context, organizationID, idOrName string, list []Secret) (*Sandbox, error) {
	job := ""
	sb, err := s.change(ctx, organizationID, idOrName, func(ctx context.Context, sb *Sandbox) error {
		checked, err := s.secrets(list)
		if err != nil {
			return err
		}
		if sb.Pending || sb.JobID != "" {
			return inProgress()
		}
		old := sb.Secrets
		sb.Secrets = checked
		if len(old) == 0 && len(checked) == 0 {
			return nil
		}
		if _, err := s.deps.Secrets.Attach(ctx, organizationID, sb.ID, secretMap(checked)); err != nil {
			return err
		}
		if sb.RunnerID == "" {
			return nil
		}
		if err := s.can(ctx, sb, CanSecrets, "secrets"); err != nil {
			return err
		}
		if sb.State != Started {
			return nil // the next start is told
		}
		sb.Step = step{Secrets: old, Backup: sb.Step.Backup}
		err = s.excursion(ctx, sb, sb.State, jobSecrets, map[string]any{"sandboxId": sb.ID})
		job = sb.JobID
		return err
	})
	if err != nil {
		return nil, err
	}
	return s.waitJob(ctx, sb, job)
}

// MountedSecrets returns the secrets of a sandbox to the runner that has it.
func (s *Service) MountedSecrets(ctx context.Context, runnerID, id string) ([]Mounted, error) {
	sb, err := s.ofRunner(ctx, runnerID, id)
	if err != nil || len(sb.Secrets) == 0 || s.deps.Secrets == nil {
		return nil, err
	}
	return s.deps.Secrets.Resolve(ctx, sb.OrganizationID, sb.ID)
}

// ofRunner returns a sandbox to the runner that has it; for any other there is
// none.
func (s *Service) ofRunner(ctx context.Context, runnerID, id string) (*Sandbox, error) {
	sb, err := s.byID(ctx, id, false)
	if err == nil && (runnerID == "" || sb.RunnerID != runnerID) {
		err = notFound(id)
	}
	if err != nil {
		return nil, err
	}
	return sb, nil
}

// Report is what a runner says of a sandbox that changed without having been
// told: only from started, stopped and paused, and what is desired follows.
func (s *Service) Report(ctx context.Context, runnerID, id string, to State, reason string, recoverable bool) error {
	if _, err := s.ofRunner(ctx, runnerID, id); err != nil {
		return err
	}
	return s.db.Tx(ctx, func(ctx context.Context) error {
		sb, err := s.byID(ctx, id, true)
		if err != nil {
			return err
		}
		if sb.RunnerID != runnerID {
			return notFound(id)
		}
		if sb.State == to {
			return nil
		}
		if sb.Pending || sb.JobID != "" || sb.State != Started && sb.State != Stopped && sb.State != Paused {
			// The end of the job that is under way says what is so.
			return state("Sandbox is not in a valid state to be updated")
		}
		reason, _ := reasonOf(reason)
		switch to {
		case Started:
			sb.State, sb.Desired = Started, WantStarted
		case Paused:
			sb.State, sb.Desired = Paused, WantPaused
		case Stopped:
			sb.Desired = WantStopped
			if err := s.stopped(ctx, sb); err != nil {
				return err
			}
		case Errored:
			sb.fail(strings.TrimSpace(reason), recoverable)
		case Destroyed:
			s.release(sb)
			sb.State = Destroyed
		default:
			return invalid("state %q must be started, stopped, paused, error or destroyed", clip(string(to)))
		}
		if err := s.advanceLater(ctx, sb); err != nil {
			return err
		}
		return s.save(ctx, sb)
	})
}
