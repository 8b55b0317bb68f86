package daytona

import (
	"context"
	"io"
	"iter"
	"regexp"
	"time"
)

// SnapshotState is where a snapshot is in its life. The words are those of the
// wire. A backend's own snapshots are active or inactive: it makes them in one
// call. A server shows the others.
type SnapshotState string

// The states of a snapshot.
const (
	SnapshotPending      SnapshotState = "pending"
	SnapshotBuilding     SnapshotState = "building"
	SnapshotPulling      SnapshotState = "pulling"
	SnapshotSnapshotting SnapshotState = "snapshotting"
	SnapshotActive       SnapshotState = "active"
	SnapshotInactive     SnapshotState = "inactive"
	SnapshotError        SnapshotState = "error"
	SnapshotBuildFailed  SnapshotState = "build_failed"
	SnapshotRemoving     SnapshotState = "removing"
)

// Snapshot is a named template that sandboxes are created from
// ([Spec.Snapshot]): a root filesystem with defaults.
type Snapshot struct {
	ID     string        `json:"id"`
	Name   string        `json:"name"`
	State  SnapshotState `json:"state"`
	Reason string        `json:"reason,omitempty"` // why it is in an error state

	// Image is what it was made from: a reference, or that of a build.
	Image string `json:"image,omitempty"`
	// Sandbox is the id of the sandbox that it was made from, which may be gone.
	Sandbox    string    `json:"sandbox,omitempty"`
	Entrypoint []string  `json:"entrypoint,omitempty"`
	Resources  Resources `json:"resources"`
	// SizeBytes is what its files take, image included.
	SizeBytes int64 `json:"sizeBytes"`

	CreatedAt  time.Time `json:"createdAt"`
	UpdatedAt  time.Time `json:"updatedAt"`
	LastUsedAt time.Time `json:"lastUsedAt,omitzero"` // when a sandbox was last made from it
}

// SnapshotSpec describes a snapshot to make from exactly one of Image, Build and
// Sandbox.
type SnapshotSpec struct {
	// Name is unique among the backend's snapshots: 1 to 255 letters, digits,
	// ".", "_", "-", "/", ":" and "@", starting with a letter or digit. Required.
	Name string
	// Image is an image's reference, as in [Spec.Image].
	Image string
	// Build is built if it was not built before, and then stands for Image.
	Build *Image
	// Sandbox is the id or name of a started or stopped sandbox whose present
	// files are kept. A started one is frozen for as long as that takes.
	Sandbox string

	// Entrypoint of the sandboxes made from it, unless they have their own.
	// Defaults to the image's, or the sandbox's.
	Entrypoint []string
	// Resources of the sandboxes made from it, field by field unless they have
	// their own. Defaults to the backend's defaults; with Sandbox to that
	// sandbox's.
	Resources Resources

	// OnProgress and OnBuildLog are as in [Spec]. Default to nil.
	OnProgress func(Progress)
	OnBuildLog func(BuildLog)
}

// Snapshotter makes, lists and deletes snapshots.
type Snapshotter interface {
	// CreateSnapshot makes a snapshot; spec has passed [SnapshotSpec.Validate]
	// and has no Build. It is active on success; on error nothing may be left.
	// A taken name must give KindConflict, a missing image or sandbox
	// KindNotFound.
	CreateSnapshot(ctx context.Context, spec SnapshotSpec) (Snapshot, error)
	// GetSnapshot finds a snapshot by id, or else by name.
	GetSnapshot(ctx context.Context, idOrName string) (Snapshot, error)
	// ListSnapshots yields all, oldest first.
	ListSnapshots(ctx context.Context) iter.Seq2[Snapshot, error]
	// DeleteSnapshot removes a snapshot. Sandboxes that were made from it must
	// go on: what they use goes with the last of them.
	DeleteSnapshot(ctx context.Context, idOrName string) error
	// SetSnapshotActive activates or deactivates a snapshot. Create from an
	// inactive one must give KindState. It must do nothing if it is so already.
	SetSnapshotActive(ctx context.Context, idOrName string, active bool) (Snapshot, error)
}

// SnapshotMover carries snapshots to other machines.
type SnapshotMover interface {
	// ExportSnapshot writes a snapshot to w, in a form of the backend's own. The
	// image that it was made over may be no more than named, if it can be had
	// elsewhere. What was written before an error is of no use.
	ExportSnapshot(ctx context.Context, idOrName string, w io.Writer) error
	// ImportSnapshot makes a snapshot of what a backend of the same kind has
	// exported, perhaps on another machine. It is active on success; on error
	// nothing may be left. A taken name must give KindConflict, what is damaged or
	// cut off KindInvalid.
	ImportSnapshot(ctx context.Context, name string, r io.Reader) (Snapshot, error)
}

// From image names to what the wire takes for a snapshot's name.
var snapshotRule = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:/@-]{0,254}$`)

const snapshotOp = "create snapshot"

// Validate checks every rule stated at the fields and returns the first
// violation as an [*Error] of KindInvalid with Field and Value set.
func (s SnapshotSpec) Validate() error {
	if !snapshotRule.MatchString(s.Name) {
		return invalid(snapshotOp, "Name", s.Name, `must be 1 to 255 letters, digits, ".", "_", "-", "/", ":" or "@" and start with a letter or digit`)
	}
	sources := 0
	for _, set := range []bool{s.Image != "", s.Build != nil, s.Sandbox != ""} {
		if set {
			sources++
		}
	}
	if sources != 1 {
		return invalid(snapshotOp, "Image", s.Image, "exactly one of Image, Build and Sandbox must be set")
	}
	// The rules of what they become.
	return Spec{Image: s.Image, Build: s.Build, Entrypoint: s.Entrypoint, Resources: s.Resources}.validate(snapshotOp)
}
