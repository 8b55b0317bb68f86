package daytona

import (
	"context"
	"iter"
	"math"
	"strings"
	"time"
)

// VolumeKind says where the files of a volume are.
type VolumeKind string

// The kinds of volumes.
const (
	// VolumeDirectory is a directory of the backend's machine, with everything
	// that POSIX promises.
	VolumeDirectory VolumeKind = "directory"
	// VolumeS3 is a prefix of a bucket in an object storage that speaks S3,
	// which many machines can mount. An object is written whole when its file
	// is closed, and the last to close wins; there are no hard links, device
	// nodes, owners or locks between machines, and a directory is not renamed in
	// one step. Backends refuse what they cannot do of it.
	VolumeS3 VolumeKind = "s3"
)

// Volume is a directory that outlives sandboxes and may be mounted into
// several at once.
type Volume struct {
	ID   string     `json:"id"`
	Name string     `json:"name"`
	Kind VolumeKind `json:"kind"`
	// Quota in GiB; 0 is none.
	Quota      float64   `json:"quota,omitempty"`
	CreatedAt  time.Time `json:"createdAt"`
	LastUsedAt time.Time `json:"lastUsedAt,omitzero"` // when a sandbox last started with it
}

// VolumeSpec describes a volume to make.
type VolumeSpec struct {
	// Name is unique among the backend's volumes and follows the rule of
	// [Spec.Name]. Required.
	Name string
	// Kind defaults to VolumeDirectory.
	Kind VolumeKind
	// Quota in GiB that its files may take, at least 0.03125 (32 MiB). A backend
	// whose file system has no quotas must refuse it. Defaults to 0: none.
	Quota float64
	// S3 says where a volume of kind VolumeS3 is. Required for it, and must be
	// nil for others.
	S3 *S3Location
}

// S3Location is a prefix of a bucket and how to get there.
type S3Location struct {
	// Endpoint is a URL such as "https://s3.eu-central-1.amazonaws.com"; "http:"
	// is not encrypted. Required.
	Endpoint string `json:"endpoint"`
	// Region defaults to "us-east-1".
	Region string `json:"region,omitempty"`
	// Bucket exists. Required.
	Bucket string `json:"bucket"`
	// Prefix of the keys, without leading or trailing "/". Defaults to none:
	// the whole bucket.
	Prefix string `json:"prefix,omitempty"`
	// The credentials, which never reach a sandbox. Default to none: anonymous.
	AccessKey    string `json:"accessKey,omitempty"`
	SecretKey    string `json:"secretKey,omitempty"`
	SessionToken string `json:"sessionToken,omitempty"`
}

// Validate checks every rule stated at the fields and returns the first
// violation as an [*Error] of KindInvalid with Field and Value set.
func (v VolumeSpec) Validate() error {
	const op = "create volume"
	if !ValidName(v.Name) {
		return invalid(op, "Name", v.Name, `must be 1 to 63 letters, digits, ".", "_" or "-" and start with a letter or digit`)
	}
	if math.IsNaN(v.Quota) || math.IsInf(v.Quota, 0) || v.Quota > 1<<32 || v.Quota != 0 && v.Quota < 1.0/32 {
		return invalid(op, "Quota", v.Quota, "must be 0 (none) or at least 0.03125 GiB (32 MiB)")
	}
	switch v.Kind {
	case "", VolumeDirectory:
		if v.S3 != nil {
			return invalid(op, "S3", v.S3.Bucket, "must be nil unless Kind is "+string(VolumeS3))
		}
	case VolumeS3:
		if v.S3 == nil {
			return invalid(op, "S3", nil, "must be set when Kind is "+string(VolumeS3))
		}
		if !strings.HasPrefix(v.S3.Endpoint, "https://") && !strings.HasPrefix(v.S3.Endpoint, "http://") {
			return invalid(op, "S3.Endpoint", v.S3.Endpoint, "must be an http or https URL")
		}
		if v.S3.Bucket == "" || strings.ContainsAny(v.S3.Bucket, "/\x00") {
			return invalid(op, "S3.Bucket", v.S3.Bucket, "must be the name of a bucket")
		}
		if p := v.S3.Prefix; strings.HasPrefix(p, "/") || strings.HasSuffix(p, "/") || strings.ContainsRune(p, 0) {
			return invalid(op, "S3.Prefix", p, `must not begin or end with "/"`)
		}
	default:
		return invalid(op, "Kind", v.Kind, "must be directory or s3")
	}
	return nil
}

// VolumeManager makes, lists and deletes volumes.
type VolumeManager interface {
	// CreateVolume makes a volume; spec is checked by [VolumeSpec.Validate]. It
	// must give KindConflict if the name is taken, and refuse kinds that the
	// backend does not have.
	CreateVolume(ctx context.Context, spec VolumeSpec) (Volume, error)
	// GetVolume finds a volume by id, or else by name.
	GetVolume(ctx context.Context, idOrName string) (Volume, error)
	// ListVolumes yields all, oldest first.
	ListVolumes(ctx context.Context) iter.Seq2[Volume, error]
	// DeleteVolume removes a volume and its files (those of an S3 volume stay
	// in the bucket); KindConflict while a sandbox has it mounted.
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
