package sandbox

import (
	"context"
	"time"
)

// Deps are the other features that sandboxes need.
type Deps struct {
	Jobs          Jobs
	Runners       Runners
	Snapshots     Snapshots
	Regions       Regions
	Quotas        Quotas
	Organizations Organizations
	// Volumes and Secrets are refused where they are nil.
	Volumes Volumes
	Secrets Secrets
	// Parcels defaults to none: what runners keep of sandboxes stays with them.
	Parcels Parcels
}

// Types of jobs.
const (
	jobCreate   = "CREATE_SANDBOX"
	jobStart    = "START_SANDBOX"
	jobStop     = "STOP_SANDBOX"
	jobDestroy  = "DESTROY_SANDBOX"
	jobResize   = "RESIZE_SANDBOX"
	jobBackup   = "CREATE_BACKUP"
	jobRecover  = "RECOVER_SANDBOX"
	jobNetwork  = "UPDATE_SANDBOX_NETWORK_SETTINGS"
	jobSnapshot = "SNAPSHOT_SANDBOX"
	jobFork     = "FORK_SANDBOX"
	jobPause    = "PAUSE_SANDBOX"
	jobSecrets  = "UPDATE_SANDBOX_SECRETS"
)

// ResourceSandbox is the resource type of all jobs that this package makes.
const ResourceSandbox = "SANDBOX"

// Job is work for a runner, and what came of it.
type Job struct {
	ID   string
	Type string
	// RunnerID is who is to do it, ResourceID the sandbox.
	RunnerID, ResourceType, ResourceID string
	// Payload is made JSON of.
	Payload any
	// Done says that it has ended: Failed with Error, or with Result, which is
	// JSON or "".
	Done, Failed  bool
	Error, Result string
}

// Jobs is the queue of jobs.
type Jobs interface {
	// Enqueue adds a job, in the transaction of ctx, and returns its id. It gives
	// KindConflict, and leaves the transaction usable, while another job for
	// the same resource on the same runner has not ended; backups are separate.
	Enqueue(ctx context.Context, j Job) (string, error)
}

// Capability is what a runner can do and enforce beyond creating, starting,
// stopping and deleting sandboxes.
type Capability string

const (
	CanPause    Capability = "pause"
	CanFork     Capability = "fork"
	CanBackup   Capability = "backup" // keep a sandbox's files, and make it again from them
	CanMove     Capability = "move"   // make it again on any runner of the region that can
	CanResize   Capability = "resize"
	CanSnapshot Capability = "snapshot"
	CanNetwork  Capability = "network" // change the network settings of what runs
	CanDomains  Capability = "domains" // enforce a list of domains
	CanGPU      Capability = "gpu"
	CanLink     Capability = "link"
	CanOTel     Capability = "otel"
	CanSecrets  Capability = "secrets"
	CanVolumes  Capability = "volumes"
	CanMemory   Capability = "memory" // snapshots with the memory of processes
)

// Runner is what a sandbox needs to know of a runner.
type Runner struct {
	ID, RegionID string
	// Usable says that it is ready and takes jobs.
	Usable bool
	// SeenAt is when it last said anything, the zero time if never.
	SeenAt time.Time
	// lost says that it has been away for so long that it is taken to be gone;
	// gone that it is.
	lost, gone bool
	// Draining says that it is to become empty.
	Draining     bool
	Capabilities []Capability
}

// Can reports whether a runner can do something.
func (r *Runner) Can(c Capability) bool {
	for _, has := range r.Capabilities {
		if has == c {
			return true
		}
	}
	return false
}

// Placement is a sandbox to find a runner for.
type Placement struct {
	// Key names the room that is taken until the runner's own figures have it;
	// a second one for the same takes the place of the first. The sandbox's id.
	Key             string
	RegionID, Class string
	Resources       Resources
	// GPUTypes are those that will do, best first. Empty for all.
	GPUTypes []string
	// Needs must all be among the runner's capabilities.
	Needs []Capability
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

// Runners knows the machines.
type Runners interface {
	// Place finds a runner: KindUnsupported, naming the capability, if no runner
	// of the region can do what is needed, and KindInvalid "No available runners"
	// if none has room now.
	Place(ctx context.Context, p Placement) (Placed, error)
	// Release says that the sandbox of a placement is there, or will not be.
	Release(ctx context.Context, key string) error
	// Runner returns one; KindNotFound if it was deleted.
	Runner(ctx context.Context, id string) (Runner, error)
}

// Snapshot is what a sandbox is made from.
type Snapshot struct {
	ID, Name, Ref string
	Class         string
	Resources     Resources
	GPUType       string
	Entrypoint    []string
}

// Copy is the state of a snapshot on a runner.
type Copy string

const (
	CopyNone   Copy = ""
	CopyMaking Copy = "making" // pulled or built
	CopyReady  Copy = "ready"
	CopyFailed Copy = "failed"
)

// Capture is a snapshot to be made of a sandbox.
type Capture struct {
	OrganizationID string    `json:"organizationId"`
	Name           string    `json:"name"`
	SandboxID      string    `json:"sandboxId"`
	RegionID       string    `json:"regionId"`
	RunnerID       string    `json:"runnerId"`
	Class          string    `json:"class"`
	Resources      Resources `json:"resources"`
	GPUType        string    `json:"gpuType,omitempty"`
	Entrypoint     []string  `json:"entrypoint,omitempty"`
	IncludeMemory  bool      `json:"includeMemory,omitempty"`
	// SnapshotID is the row's, if it has one, Ref what the runner is to name it.
	SnapshotID string `json:"snapshotId,omitempty"`
	Ref        string `json:"ref"`
	// Parcelled says that other runners can have it as well.
	Parcelled bool `json:"parcelled,omitempty"`
}

// Snapshots knows what sandboxes are made from.
type Snapshots interface {
	// Resolve finds an active snapshot that an organization may use in a region
	// by name, or else by id. Its errors are those of the wire, such as "Snapshot x not found. Did you add it through the Daytona
	// Dashboard?" (KindInvalid).
	Resolve(ctx context.Context, organizationID, regionID, nameOrID string) (Snapshot, error)
	// Build notes the build of a Dockerfile and returns the reference that its
	// image will have, and its entrypoint. Equal content has an equal reference.
	Build(ctx context.Context, organizationID, dockerfile string, contextHashes []string) (ref string, entrypoint []string, err error)
	// Ready returns the runners that have a reference. All have "".
	Ready(ctx context.Context, ref string) (runnerIDs []string, err error)
	// Ensure has a runner pull a reference, or build it, unless it is at it.
	// KindConflict is for now. A topic of [Config.WakeOn] tells of the end.
	Ensure(ctx context.Context, runnerID, ref string) error
	// Copy returns how far that is, and why it failed.
	Copy(ctx context.Context, runnerID, ref string) (c Copy, reason string, err error)
	// Capture asks for the snapshot that a sandbox is about to become: KindConflict
	// if its name is taken, KindInvalid if the quota allows none. It returns the
	// reference that the runner is to give it, and the id of its row if it has
	// one already.
	Capture(ctx context.Context, c Capture) (id, ref string, err error)
	// Captured says that a runner has made it, of a size in GB, or why not; c is
	// what Capture was asked, with what it answered. An error of KindConflict or
	// KindInvalid, as for a name that was taken meanwhile, is told to who waits,
	// and leaves the transaction usable.
	Captured(ctx context.Context, c Capture, sizeGB float64, failure string) error
}

// Parcels knows where runners put snapshots and backups for other runners.
type Parcels interface {
	// Parcel returns what a runner needs to write the parcel of a reference, or to
	// read it, the value of "parcel" in its payload; nil if there is no place.
	Parcel(ctx context.Context, organizationID, ref string, write bool) (any, error)
}

// Region is where runners are.
type Region struct {
	ID, Name string
	// URLs of its own, "" for those of the server.
	ProxyURL, ToolboxURL, SSHGatewayURL string
}

// Regions knows the regions.
type Regions interface {
	// Target finds the region that an organization means by a name or id; "" is
	// its default region. Errors are those of the wire: KindInvalid "This
	// organization does not have a default region. …", KindNotFound "Region not
	// found", KindForbidden.
	Target(ctx context.Context, organizationID, nameOrID string) (Region, error)
	// Region returns one by id.
	Region(ctx context.Context, id string) (Region, error)
}

// Claim is what a sandbox uses in its present state: all of it while it runs
// or is about to, its disk alone while it is stopped.
type Claim struct {
	SandboxID, OrganizationID, RegionID, Class string
	Resources                                  Resources
	// GPUType is the one that is asked for; "" for any.
	GPUType   string
	Ephemeral bool
}

// Quotas limits organizations.
type Quotas interface {
	// Reserve notes what a sandbox uses from now on, in the transaction of ctx, if
	// it may be so large and the totals have room for it: KindInvalid with the
	// message of the wire if not. It takes the place of what was noted of it.
	Reserve(ctx context.Context, c Claim) error
	// Adjust is Reserve that asks nothing: what has happened has happened.
	Adjust(ctx context.Context, c Claim) error
	// Release ends what is noted of a sandbox.
	Release(ctx context.Context, sandboxID string) error
	// Lifespan returns the longest that a sandbox may live, 0 for any time.
	Lifespan(ctx context.Context, organizationID, regionID, class string) (time.Duration, error)
}

// Organization is what a sandbox needs to know of its owner.
type Organization struct {
	ID, Name string
	// LimitedEgress is the organization's default for its sandboxes.
	LimitedEgress bool
}

// Organizations knows the organizations.
type Organizations interface {
	// Active returns an organization; KindForbidden "Organization is suspended: …"
	// if it is.
	Active(ctx context.Context, id string) (Organization, error)
}

// VolumeInfo is a volume.
type VolumeInfo struct {
	ID, Name string
	Ready    bool
	State    string
}

// Volumes knows the volumes.
type Volumes interface {
	// Find returns a volume by id, or else by name; KindNotFound if neither.
	Find(ctx context.Context, organizationID, idOrName string) (VolumeInfo, error)
	// Location returns what a runner needs to mount a volume, the value of "s3" in
	// its payload; nil for a directory of the runner's.
	Location(ctx context.Context, organizationID, volumeID string) (any, error)
}

// Mounted is a secret for the runner of a sandbox: the variable, what it has
// in place of the secret, the secret, and where it may be sent.
type Mounted struct {
	Env, Placeholder, Value string
	Hosts                   []string
}

// Secrets knows the secrets.
type Secrets interface {
	// Attach makes secrets those of a sandbox, names by variables, in place of
	// those that it had: KindInvalid, naming it, for one that is not there.
	Attach(ctx context.Context, organizationID, sandboxID string, secrets map[string]string) (placeholders map[string]string, err error)
	// Detach takes all from a sandbox that is no more.
	Detach(ctx context.Context, organizationID, sandboxID string) error
	// Env returns the placeholders of a sandbox by variables, Resolve the secrets.
	Env(ctx context.Context, organizationID, sandboxID string) (map[string]string, error)
	Resolve(ctx context.Context, organizationID, sandboxID string) ([]Mounted, error)
}
