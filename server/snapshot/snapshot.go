// Package snapshot has the templates that sandboxes are made from: those of an
// organization and the general ones, made from an image, from a Dockerfile or
// from a sandbox; the copies of them on runners; and the jobs that bring them
// there and take them away again.
//
// A snapshot's rows say what is to be. Every step from one state to the next is
// one transaction that is lost, and tried again, if somebody else was faster:
// any number of servers may run it, and one that is killed leaves nothing that
// the others do not find.
package snapshot

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/uptrace/bun"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/store"
)

// State is that of a snapshot, in the words of the wire.
type State = daytona.SnapshotState

// CopyState is that of a copy on a runner.
type CopyState string

// The states of a copy.
const (
	CopyPulling  CopyState = "pulling_snapshot"
	CopyBuilding CopyState = "building_snapshot"
	CopyReady    CopyState = "ready"
	CopyError    CopyState = "error"
	CopyRemoving CopyState = "removing"
)

// Snapshot is one row.
type Snapshot struct {
	bun.BaseModel `bun:"table:snapshots,alias:snapshot"`

	ID             string `bun:"id,pk"`
	OrganizationID string `bun:"organization_id,notnull"`
	Name           string `bun:"name,notnull"`
	// General is for all organizations; Hidden keeps it out of their lists.
	General bool `bun:"general,notnull"`
	Hidden  bool `bun:"hidden,notnull"`
	// Image is what it was made from; "" with neither Build nor Source is the
	// default image of whatever backend the runner has.
	Image string `bun:"image,notnull"`
	// Digest is what Image was when it was first pulled, so that later copies
	// are the same.
	Digest string `bun:"digest,notnull"`
	// Build is the ref of the build it was made by, Source the sandbox.
	Build  string `bun:"build,notnull"`
	Source string `bun:"source_sandbox_id,notnull"`
	// Parcelled says that one of a sandbox is where other runners can have it.
	Parcelled bool `bun:"parcelled,notnull"`
	// Ref is its name at the backends of runners; "" if it needs no copy.
	Ref    string `bun:"ref,notnull"`
	State  State  `bun:"state,notnull"`
	Reason string `bun:"reason,notnull"`
	// Size in GB (10⁹ bytes), once it is known.
	Size       *float64 `bun:"size"`
	Entrypoint []string `bun:"entrypoint"`
	// CPU in cores; Memory and Disk in GiB.
	CPU      int    `bun:"cpu,notnull"`
	GPU      int    `bun:"gpu,notnull"`
	GPUType  string `bun:"gpu_type,notnull"`
	Memory   int    `bun:"memory,notnull"`
	Disk     int    `bun:"disk,notnull"`
	Class    string `bun:"class,notnull"`
	RunnerID string `bun:"runner_id,notnull"` // the first to have it

	Version    int64      `bun:"version,notnull"`
	CreatedAt  time.Time  `bun:"created_at,notnull"`
	UpdatedAt  time.Time  `bun:"updated_at,notnull"`
	StateSince time.Time  `bun:"state_since,notnull"`
	LastUsedAt *time.Time `bun:"last_used_at"`

	// Regions has the ids of those it is for, as far as they may be seen. No
	// region at all is every region.
	Regions []string `bun:"-"`
	// BuildInfo is what Build names.
	BuildInfo *Build `bun:"-"`
}

type regionRow struct {
	bun.BaseModel `bun:"table:snapshot_regions,alias:region"`

	SnapshotID string `bun:"snapshot_id,pk"`
	RegionID   string `bun:"region_id,pk"`
}

// Build is a Dockerfile with what it copies from.
type Build struct {
	bun.BaseModel `bun:"table:snapshot_builds,alias:build"`

	Ref            string    `bun:"ref,pk"`
	OrganizationID string    `bun:"organization_id,notnull"`
	Dockerfile     string    `bun:"dockerfile,notnull"`
	ContextHashes  []string  `bun:"context_hashes,notnull"`
	CreatedAt      time.Time `bun:"created_at,notnull"`
	UpdatedAt      time.Time `bun:"updated_at,notnull"` // when it was last asked for
}

// Copy is a snapshot, or a build, on a runner.
type Copy struct {
	bun.BaseModel `bun:"table:snapshot_copies,alias:copy"`

	RunnerID  string    `bun:"runner_id,pk"`
	Ref       string    `bun:"ref,pk"`
	State     CopyState `bun:"state,notnull"`
	Reason    string    `bun:"reason,notnull"`
	JobID     string    `bun:"job_id,notnull"`
	CreatedAt time.Time `bun:"created_at,notnull"`
	UpdatedAt time.Time `bun:"updated_at,notnull"`
}

// Topic tells of changes of copies: the payload is the ref.
const Topic = "snapshot.copies"

// wake tells of snapshots that have something to do: the payload is the id.
const wake = "snapshot.wake"

// Job is work for a runner.
type Job struct {
	// Type is PULL_SNAPSHOT, BUILD_SNAPSHOT or REMOVE_SNAPSHOT.
	Type     string
	RunnerID string
	// Ref is the id of the resource, whose type is SNAPSHOT.
	Ref     string
	Payload any
}

// Result is how a job ended.
type Result struct {
	JobID, Type, RunnerID, Ref string
	// Error is why it failed; "" if it did not.
	Error string
	// Metadata is JSON: sizeGB, entrypoint, cmd, hash, name.
	Metadata string
}

// Jobs gives work to runners.
type Jobs interface {
	// Enqueue stores a job, in the transaction of ctx, and returns its id;
	// KindConflict if the runner has an unfinished one for the same ref.
	Enqueue(ctx context.Context, j Job) (id string, err error)
}

// Runners knows who can do the work.
type Runners interface {
	// Pick returns a runner of a region ("": of any) and class that can take a
	// snapshot; KindInvalid with the message "No available runners" if none can.
	Pick(ctx context.Context, region, class string) (runnerID string, err error)
	// Usable returns those of the ids that are ready for sandboxes.
	Usable(ctx context.Context, ids []string) ([]string, error)
	// Logs returns what a build wrote; with follow until the build has ended.
	Logs(ctx context.Context, runnerID, ref string, follow bool) (io.ReadCloser, error)
}

// Limits are an organization's. Zero is no limit.
type Limits struct {
	// Snapshots counts those that are active or on their way.
	Snapshots int
	// SizeGB is the largest size of one snapshot.
	SizeGB float64
	// CPU, Memory and Disk are the most for one sandbox.
	CPU, Memory, Disk int
	// Idle is how long an unused snapshot stays active.
	Idle time.Duration
}

// Organizations knows what they may do.
type Organizations interface {
	SnapshotLimits(ctx context.Context, organizationID string) (Limits, error)
	// Active returns KindForbidden for one that is suspended.
	Active(ctx context.Context, organizationID string) error
	// DefaultRegion returns KindInvalid for one that has none.
	DefaultRegion(ctx context.Context, organizationID string) (regionID string, err error)
	// Regions returns the ids of those it may use.
	Regions(ctx context.Context, organizationID string) ([]string, error)
}

// Registry is where an image is, and who may read it.
type Registry struct {
	URL      string `json:"url"`
	Project  string `json:"project"`
	Username string `json:"username"`
	Password string `json:"password"`
}

// Event is something that happened to a snapshot.
type Event struct {
	// Name is snapshot.created, snapshot.state.updated or snapshot.removed.
	Name     string
	Snapshot Snapshot
	Old      State // of snapshot.state.updated
}

// Config says what a Service works with. DB, Jobs, Runners and Organizations are
// required.
type Config struct {
	DB            *store.DB
	Jobs          Jobs
	Runners       Runners
	Organizations Organizations
	// Credentials returns who may pull an image for an organization; nil if
	// that needs nobody. Defaults to never anybody.
	Credentials func(ctx context.Context, organizationID, image string) (*Registry, error)
	// Contexts returns URLs of the tar archives that a build copies from, in
	// the order of the hashes. Defaults to builds without contexts.
	Contexts func(ctx context.Context, organizationID string, hashes []string) ([]string, error)
	// Parcel returns what a runner needs to read the parcel of a ref, the value of
	// "parcel" in its payload. Defaults to none: snapshots of sandboxes stay where
	// they were made.
	Parcel func(ctx context.Context, organizationID, ref string) (any, error)
	// CheckHost says whether runners may connect to the registry at a host, with
	// an optional port. Defaults to any.
	CheckHost func(ctx context.Context, host string) error
	// Needed says whether sandboxes that are yet to be made need a ref. Defaults
	// to no.
	Needed func(ctx context.Context, ref string) (bool, error)
	// Event is told of what happens, in the transaction that it happens in.
	// Defaults to nobody.
	Event func(ctx context.Context, e Event) error
	// Changed is told of a change of a ref's copies, in the transaction of the
	// change. Defaults to nobody; see [Topic].
	Changed func(ctx context.Context, ref string) error
	// Default is the name of the snapshot that sandboxes are made from by
	// default. Defaults to "default".
	Default string
	// ProxyURL is where the logs of builds are read: <ProxyURL>/snapshots/<id>/build-logs.
	ProxyURL string
	// Timeout of one pull or build. Defaults to 60 minutes.
	Timeout time.Duration
	// Now defaults to time.Now.
	Now func() time.Time
	Log *slog.Logger
}

// Service has the rules of snapshots.
type Service struct {
	Config
	db *store.DB
	// watch is for how long runners could have told of their copies.
	watch *store.Watch
}

// New returns a Service; see [Service.Run].
func New(c Config) *Service {
	if c.Timeout == 0 {
		c.Timeout = time.Hour
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Credentials == nil {
		c.Credentials = func(context.Context, string, string) (*Registry, error) { return nil, nil }
	}
	if c.Needed == nil {
		c.Needed = func(context.Context, string) (bool, error) { return false, nil }
	}
	if c.Event == nil {
		c.Event = func(context.Context, Event) error { return nil }
	}
	if c.Changed == nil {
		c.Changed = func(context.Context, string) error { return nil }
	}
	if c.Default == "" {
		c.Default = "default"
	}
	return &Service{Config: c, db: c.DB, watch: store.NewWatch(3*every, c.Now())}
}

func (s *Service) now() time.Time { return s.Now().UTC().Truncate(time.Millisecond) }

// Request is what a client asks for.
type Request struct {
	OrganizationID string
	Name           string
	// Image or Dockerfile is required.
	Image         string
	Dockerfile    *string
	ContextHashes []string
	Entrypoint    []string
	// CPU, Memory and Disk default to 1, 1 and 3.
	CPU, GPU, Memory, Disk *int
	GPUTypes               []string
	// Region defaults to the organization's.
	Region string
	// Class defaults to "container".
	Class string
	// General and Hidden are for the system's own.
	General, Hidden bool
}

const (
	maxDockerfile = 1 << 20
	maxContexts   = 1000
	maxEntrypoint = 1000
	maxName       = 255
)

func invalid(format string, args ...any) error {
	return &daytona.Error{Kind: daytona.KindInvalid, Message: fmt.Sprintf(format, args...)}
}

func notFound(idOrName string) error {
	return &daytona.Error{Kind: daytona.KindNotFound, Message: "Snapshot " + idOrName + " not found"}
}

var (
	nameRule   = regexp.MustCompile(`^[A-Za-z0-9_.\-:/]+(@sha256:[A-Fa-f0-9]{64})?$`)
	digestRule = regexp.MustCompile(`@sha256:[a-f0-9]{64}$`)
	tagRule    = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$`)
	hashRule   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,127}$`)
)

// CheckName checks the name of a snapshot.
func CheckName(name string) error {
	if !nameRule.MatchString(name) || len(name) > maxName {
		return invalid("Invalid snapshot name %q: only letters, digits, \"_\", \".\", \"-\", \":\" and \"/\", at most %d", clip(name), maxName)
	}
	if name[0] == '.' || name[0] == '/' || name[0] == ':' || name[0] == '-' || strings.Contains(name, "//") || strings.Contains(name, "..") {
		return invalid("Invalid snapshot name %q: must begin with a letter, a digit or \"_\", without \"//\" and \"..\"", clip(name))
	}
	return nil
}

func clip(s string) string {
	const most = 100
	if len(s) <= most {
		return s
	}
	s = s[:most]
	for !utf8.ValidString(s) {
		s = s[:len(s)-1]
	}
	return s + "…"
}

// CheckImage checks that a reference says which image it means.
func CheckImage(image string) error {
	if len(image) > 512 || !nameRule.MatchString(image) || strings.HasPrefix(image, "/") || strings.Contains(image, "//") || strings.Contains(image, "..") {
		return invalid("Invalid image name %q", clip(image))
	}
	if digestRule.MatchString(image) {
		return nil
	}
	last := image[strings.LastIndexByte(image, '/')+1:]
	name, tag, found := strings.Cut(last, ":")
	switch {
	case !found || tag == "" || name == "":
		return invalid("Image name must include a tag (e.g., ubuntu:22.04) or digest (@sha256:...)")
	case tag == "latest":
		return invalid(`Images with tag ":latest" are not allowed`)
	case !tagRule.MatchString(tag):
		return invalid("Invalid image name %q: the tag is wrong", clip(image))
	}
	return nil
}

// Host returns the registry of an image, as Docker reads references.
func Host(image string) string {
	host, _, found := strings.Cut(image, "/")
	if !found || host != "localhost" && !strings.ContainsAny(host, ".:") {
		return "docker.io"
	}
	return host
}

// BuildRef names a build by its content: the same Dockerfile with the same
// contexts is the same build. Contexts are named by hashes that nobody checks,
// and a Dockerfile may begin with an image that only its organization may read:
// so the organization is a part of it.
func BuildRef(organizationID, dockerfile string, hashes []string) string {
	h := sha256.New()
	io.WriteString(h, dockerfile)
	for _, x := range slices.Sorted(slices.Values(hashes)) {
		io.WriteString(h, x)
	}
	return project(organizationID) + "/daytona-" + hex.EncodeToString(h.Sum(nil)) + ":daytona"
}

// project is the part of a ref that is an organization's.
func project(organizationID string) string {
	if organizationID == "" {
		return "daytona"
	}
	return organizationID
}

// refOf names a snapshot that is no build: copies are of one snapshot only, as
// what a tag means may change.
func refOf(organizationID, id string) string {
	sum := sha256.Sum256([]byte(id))
	return project(organizationID) + "/daytona-" + hex.EncodeToString(sum[:]) + ":daytona"
}
