package daytona

import (
	"context"
	"iter"
	"time"
)

// Volume is a directory that outlives sandboxes and may be mounted into
// several at once.
type Volume struct {
	ID        string    `json:"id"`
	Name      string    `json:"name"`
	CreatedAt time.Time `json:"createdAt"`
}

// VolumeManager makes, lists and deletes volumes.
type VolumeManager interface {
	// CreateVolume makes an empty volume; KindConflict if the name is taken.
	// Names follow the rule of [Spec.Name].
	CreateVolume(ctx context.Context, name string) (Volume, error)
	// GetVolume finds a volume by id, or else by name.
	GetVolume(ctx context.Context, idOrName string) (Volume, error)
	ListVolumes(ctx context.Context) iter.Seq2[Volume, error]
	// DeleteVolume removes a volume and its files; KindConflict while a
	// sandbox has it mounted.
	DeleteVolume(ctx context.Context, idOrName string) error
}

// VolumeMount mounts a volume into a sandbox.
type VolumeMount struct {
	// Volume is the id or name of an existing volume. Required.
	Volume string `json:"volume"`
	// MountPath is where it appears: absolute, clean, not "/" and not below
	// /proc, /sys, /dev, /boot, /etc, /bin, /sbin, /lib or /lib64. Required.
	MountPath string `json:"mountPath"`
	// Subpath mounts only this directory of the volume, which is made if it
	// is missing. Relative, without "..". Defaults to the whole volume.
	Subpath string `json:"subpath,omitempty"`
	// ReadOnly forbids writing through this mount. Defaults to false.
	ReadOnly bool `json:"readOnly,omitempty"`
}
