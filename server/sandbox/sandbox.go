// Package sandbox has the sandboxes of the service: what they are, what may be
// done with them when, and the reconciler that makes them what they are to be.
//
// A sandbox is a row with an actual and a desired state. What a user asks for
// changes the desired state; [Service] moves the actual one there, by one job
// at a time for a runner. Every change, with the job that it leads to, is one
// transaction: a server may die anywhere and another, or the same one later,
// goes on from the row. A job's end counts only for the row that waits for just
// that job, so that one that comes late, or twice, changes nothing.
//
// What it needs of other features it declares as interfaces ([Deps]).
package sandbox

import (
	"time"

	"github.com/uptrace/bun"
)

// State is what a sandbox is. The strings are those of the wire.
type State string

const (
	Creating         State = "creating"
	Restoring        State = "restoring"
	Destroyed        State = "destroyed"
	Destroying       State = "destroying"
	Started          State = "started"
	Stopped          State = "stopped"
	Starting         State = "starting"
	Stopping         State = "stopping"
	Errored          State = "error"
	BuildFailed      State = "build_failed"
	PendingBuild     State = "pending_build"
	BuildingSnapshot State = "building_snapshot"
	Unknown          State = "unknown"
	PullingSnapshot  State = "pulling_snapshot"
	Archived         State = "archived"
	Archiving        State = "archiving"
	Resizing         State = "resizing"
	Snapshotting     State = "snapshotting"
	Forking          State = "forking"
	Pausing          State = "pausing"
	Paused           State = "paused"
	Resuming         State = "resuming"
)

// States returns all states, in the order of the wire.
func States() []State {
	return []State{Creating, Restoring, Destroyed, Destroying, Started, Stopped, Starting, Stopping, Errored, BuildFailed,
		PendingBuild, BuildingSnapshot, Unknown, PullingSnapshot, Archived, Archiving, Resizing, Snapshotting, Forking,
		Pausing, Paused, Resuming}
}

// Desired is what a sandbox is to become.
type Desired string

const (
	WantDestroyed Desired = "destroyed"
	WantStarted   Desired = "started"
	WantStopped   Desired = "stopped"
	WantResized   Desired = "resized"
	WantArchived  Desired = "archived"
	WantPaused    Desired = "paused"
)

// BackupState is how far the backup of a sandbox is.
type BackupState string

const (
	BackupNone       BackupState = "None"
	BackupPending    BackupState = "Pending"
	BackupInProgress BackupState = "InProgress"
	BackupCompleted  BackupState = "Completed"
	BackupError      BackupState = "Error"
)

// Classes of sandboxes.
const (
	ClassContainer = "container"
	ClassLinuxVM   = "linux-vm"
	ClassAndroid   = "android"
	ClassWindows   = "windows"
)

// Sandbox is a sandbox as the database has it.
type Sandbox struct {
	bun.BaseModel `bun:"table:sandboxes,alias:sandbox"`

	ID             string `bun:"id,pk"`
	OrganizationID string `bun:"organization_id,notnull"`
	Name           string `bun:"name,notnull"`
	RegionID       string `bun:"region_id,notnull"`
	// RunnerID is "" while no runner has it.
	RunnerID string `bun:"runner_id,notnull"`
	Class    string `bun:"class,notnull"`

	State   State   `bun:"state,notnull"`
	Desired Desired `bun:"desired_state,notnull"`
	// Listed is the state that a list shows; see [Sandbox.Shown].
	Listed State `bun:"shown,notnull"`
	// Pending says that a change is under way; see invariants.
	Pending bool `bun:"pending,notnull"`
	// Version grows with every change.
	Version    int64     `bun:"version,notnull"`
	StateSince time.Time `bun:"state_since,notnull"`
	// StartedAt is when it was started last, StoppedAt when it was stopped or
	// paused last; nil if it never was.
	StartedAt *time.Time `bun:"started_at"`
	StoppedAt *time.Time `bun:"stopped_at"`

	// JobID is the job that the present step waits for, "" for none.
	JobID   string `bun:"job_id,notnull"`
	JobType string `bun:"job_type,notnull"`
	// Step has what is needed to end the present step.
	Step step `bun:"step,notnull"`
	// LastJobID is the job that ended last, LastJobError why it failed.
	LastJobID    string     `bun:"last_job_id,notnull"`
	LastJobError string     `bun:"last_job_error,notnull"`
	RetryAt      *time.Time `bun:"retry_at"`
	Attempts     int        `bun:"attempts,notnull"`

	// Snapshot is the name of the snapshot, "" with a Build.
	Snapshot   string   `bun:"snapshot,notnull"`
	SnapshotID string   `bun:"snapshot_id,notnull"`
	Ref        string   `bun:"ref,notnull"`
	Entrypoint []string `bun:"entrypoint,notnull"`
	Build      *Build   `bun:"build"`

	User             string            `bun:"os_user,notnull"`
	Env              map[string]string `bun:"env,notnull"`
	Labels           map[string]string `bun:"labels,notnull"`
	Public           bool              `bun:"public,notnull"`
	NetworkBlockAll  bool              `bun:"network_block_all,notnull"`
	NetworkAllowList *string           `bun:"network_allow_list"`
	DomainAllowList  *string           `bun:"domain_allow_list"`
	// OutboundProxy is sealed: it may have a password.
	OutboundProxy string `bun:"outbound_proxy,notnull"`
	OTelEndpoint  string `bun:"otel_endpoint,notnull"`

	// Cores, GPUs, and GiB.
	CPU     int    `bun:"cpu,notnull"`
	GPU     int    `bun:"gpu,notnull"`
	GPUType string `bun:"gpu_type,notnull"`
	Memory  int    `bun:"memory,notnull"`
	Disk    int    `bun:"disk,notnull"`

	ErrorReason string `bun:"error_reason,notnull"`
	Recoverable bool   `bun:"recoverable,notnull"`
	// Lost says that it is in error because its runner was lost.
	Lost       bool       `bun:"lost,notnull"`
	RestoredAt *time.Time `bun:"restored_at"`

	Backup      BackupState `bun:"backup_state,notnull"`
	BackupRef   string      `bun:"backup_ref,notnull"`
	BackupJobID string      `bun:"backup_job_id,notnull"`
	BackupSince *time.Time  `bun:"backup_since"`
	BackupAt    *time.Time  `bun:"backup_at"`
	BackupError string      `bun:"backup_error,notnull"`
	// BackupRunnerID is the one runner that can restore the backup, "" for all.
	BackupRunnerID string `bun:"backup_runner_id,notnull"`
	// Reserved is what the quota has of it.
	Reserved Resources `bun:"reserved,notnull"`

	// Intervals in minutes: 0 is never for AutoStop and AutoPause, at once for
	// AutoDelete, for which less than 0 is never.
	AutoStop    int        `bun:"auto_stop,notnull"`
	AutoPause   int        `bun:"auto_pause,notnull"`
	AutoArchive int        `bun:"auto_archive,notnull"`
	AutoDelete  int        `bun:"auto_delete,notnull"`
	DestroyAt   *time.Time `bun:"destroy_at"`

	Volumes []Volume `bun:"volumes,notnull"`
	Secrets []Secret `bun:"secrets,notnull"`
	// LinkedID is the sandbox that it is linked to, ParentID the one that it was
	// forked from, WarmPoolID the pool in which it waits; "" for none.
	LinkedID   string `bun:"linked_id,notnull"`
	ParentID   string `bun:"parent_id,notnull"`
	WarmPoolID string `bun:"warm_pool_id,notnull"`

	DaemonVersion string `bun:"daemon_version,notnull"`
	// AuthToken is sealed, since a client asks for it again and again;
	// AuthTokenHash is what it is found by.
	AuthToken     string `bun:"auth_token,notnull"`
	AuthTokenHash string `bun:"auth_token_hash,notnull"`
	SigningKey    string `bun:"signing_key,notnull"`

	CreatedAt      time.Time `bun:"created_at,notnull"`
	UpdatedAt      time.Time `bun:"updated_at,notnull"`
	LastActivityAt time.Time `bun:"last_activity_at,notnull"`

	// was is what the database has.
	was *was
}

type was struct {
	state   State
	shown   State
	desired Desired
}

// Build is the image that a sandbox is built from.
type Build struct {
	Dockerfile    string    `json:"dockerfile"`
	ContextHashes []string  `json:"contextHashes"`
	Ref           string    `json:"ref"`
	CreatedAt     time.Time `json:"createdAt"`
	UpdatedAt     time.Time `json:"updatedAt"`
}

// Volume is a mounted volume.
type Volume struct {
	VolumeID  string `json:"volumeId"`
	MountPath string `json:"mountPath"`
	Subpath   string `json:"subpath,omitempty"`
	ReadOnly  bool   `json:"readOnly,omitempty"`
}

// Secret is a secret that is mounted as a variable.
type Secret struct {
	Env  string `json:"env"`
	Name string `json:"name"`
}

// step is what a step has to remember.
type step struct {
	// Prior is the state to go back to.
	Prior State `json:"prior,omitempty"`
	// Force kills instead of asking to stop.
	Force bool `json:"force,omitempty"`
	// SkipStart leaves a recovered sandbox stopped.
	SkipStart bool `json:"skipStart,omitempty"`
	// What it becomes if the job works, or was if it does not.
	Resize  *Resources `json:"resize,omitempty"`
	Network *Network   `json:"network,omitempty"`
	Secrets []Secret   `json:"secrets,omitempty"`
	Capture *Capture   `json:"capture,omitempty"`
	// Backup is the reference of the backup that is being made.
	Backup string `json:"backup,omitempty"`
}

// Resources of a sandbox: cores, GPUs, and GiB.
type Resources struct {
	CPU    int `json:"cpu"`
	Memory int `json:"memory"`
	Disk   int `json:"disk"`
	GPU    int `json:"gpu"`
}

// Network is what a sandbox may reach. A nil list is none.
type Network struct {
	BlockAll    bool    `json:"blockAll"`
	AllowList   *string `json:"allowList"`
	DomainAllow *string `json:"domainAllow"`
}

// Ephemeral reports whether it goes when it stops.
func (s *Sandbox) Ephemeral() bool { return s.AutoDelete == 0 }

// Resources returns what it has.
func (s *Sandbox) Resources() Resources { return Resources{s.CPU, s.Memory, s.Disk, s.GPU} }

// Shown is the state that a client sees: what is, in the light of what is to be.
func (s *Sandbox) Shown() State { return shown(s.State, s.Desired) }

func shown(state State, desired Desired) State {
	switch {
	case state == Started && desired == WantStopped:
		return Stopping
	case state == Started && desired == WantDestroyed, state == Stopped && desired == WantDestroyed:
		return Destroying
	case state == Stopped && desired == WantStarted:
		return Starting
	case state == Stopped && desired == WantArchived:
		return Archiving
	case state == Unknown && desired == WantStarted:
		return Creating
	}
	return state
}

// uses is what it counts for: all while it runs or is about to, its disk while
// a runner keeps that.
func (s *Sandbox) uses() Resources {
	about := s.Desired == WantStarted
	switch s.State {
	case Destroyed, BuildFailed:
		return Resources{}
	case Archived:
		if !about {
			return Resources{}
		}
	case Stopped, Archiving, Errored:
		if !about || s.State == Errored {
			return Resources{Disk: s.Disk}
		}
	}
	return s.Resources()
}

// listed is shown for lists.
func listed(state State, desired Desired) State {
	if state == Archived && desired == WantStarted {
		return Restoring
	}
	return shown(state, desired)
}

// reached reports whether a state is what is desired.
func reached(state State, desired Desired) bool { return string(state) == string(desired) }

// may has the states from which each may be desired.
var may = map[Desired][]State{
	WantStarted: {Started, Stopped, Starting, Archived, Creating, Unknown, Restoring, PendingBuild, BuildingSnapshot, PullingSnapshot,
		Archiving, Errored, BuildFailed, Resizing, Snapshotting, Forking, Paused, Resuming},
	WantStopped:   {Started, Stopping, Stopped, Errored, BuildFailed, Resizing, Snapshotting, Forking, Paused, Pausing},
	WantArchived:  {Archived, Archiving, Stopped, Errored, BuildFailed},
	WantDestroyed: {Destroyed, Destroying, Stopped, Started, Archived, Errored, BuildFailed, Archiving, PendingBuild, Paused},
	WantPaused:    {Started, Pausing, Paused},
}

// May reports whether desired may be wanted of a sandbox in a state.
func May(state State, desired Desired) bool {
	for _, s := range may[desired] {
		if s == state {
			return true
		}
	}
	return false
}

// settle makes the row keep its invariants: it is called before every write.
func (s *Sandbox) settle() {
	s.Pending = !reached(s.State, s.Desired)
	if s.State == Errored || s.State == BuildFailed || s.Desired == WantArchived {
		s.Pending = false
	}
	if s.State == Destroyed || s.State == Archived {
		s.RunnerID = ""
	}
	if s.State == Destroyed {
		s.Backup = BackupNone
	}
	if s.State != Errored {
		s.Lost, s.Recoverable = false, false
	}
	if s.State == Destroyed || s.State == BuildFailed {
		s.JobID, s.JobType = "", ""
	}
	s.Listed = listed(s.State, s.Desired)
}
