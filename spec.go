package daytona

import (
	"fmt"
	"maps"
	"math"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Spec describes a sandbox to create. The zero Spec is valid: a sandbox of
// the backend's default image, for the time that the [Client] lives, with
// access to the public internet.
type Spec struct {
	// Name is unique among the backend's sandboxes: 1 to 63 letters, digits,
	// ".", "_" and "-", starting with a letter or digit. Defaults to a
	// generated one.
	Name string
	// Image is what the root filesystem is made from; see [ImageHost] and
	// package image for the forms. At most one of Image, Build and Snapshot may
	// be set. Defaults to the backend's default image (local: ImageHost).
	Image string
	// Build is an image to build, unless it was built before, and to start from.
	// It needs a backend that is an [ImageBuilder]. Defaults to none.
	Build *Image
	// Snapshot is the id or name of a snapshot to start from. Defaults to
	// none: start from Image.
	Snapshot string
	// User that programs run as: a name in the image, or "uid" or "uid:gid".
	// Defaults to the image's user, or "daytona" where the image names none;
	// a missing user "daytona" is added.
	User string
	// WorkDir is the directory that programs start in and relative paths
	// resolve against: absolute, made if missing. Defaults to the image's
	// working directory, or the user's home where the image has none.
	WorkDir string
	// Env is added to the image's environment. Names match
	// [A-Za-z_][A-Za-z0-9_]*. Nothing of the host's environment is inherited.
	// Defaults to none.
	Env map[string]string
	// Labels are the caller's own, for [Filter]. Keys are not empty. Defaults
	// to none.
	Labels map[string]string
	// Entrypoint is a program that the sandbox runs from its start, as the
	// session "entrypoint" whose output is logged; the sandbox lives on when
	// it ends. Defaults to the image's entrypoint and command, if it is a
	// server image that names them and the command is not just a shell.
	Entrypoint []string
	// Language is what [Process.RunCode] takes code to be: "python",
	// "typescript" or "javascript". Defaults to "python".
	Language string

	// Resources limit the sandbox.
	Resources Resources
	// Network says what the sandbox may reach. Defaults to the public
	// internet and nothing else.
	Network NetworkPolicy
	// Volumes to mount. Defaults to none.
	Volumes []VolumeMount

	// Persistent makes the sandbox outlive the Client and the process that
	// made it. Defaults to false: it is deleted with them.
	Persistent bool
	// Ephemeral deletes the sandbox as soon as it stops, for whatever
	// reason. Defaults to false.
	Ephemeral bool
	// TTL deletes the sandbox this long after its creation, running or not.
	// At least one second. Defaults to 0: never.
	TTL time.Duration
	// AutoStop stops the sandbox after this long without a request to it.
	// At least one second. Defaults to 0: never.
	AutoStop time.Duration
	// AutoPause pauses the sandbox after this long without a request to it; the
	// next request that needs it running gives KindState until it is resumed.
	// At least one second. Must be 0 if AutoStop is not. Defaults to 0: never.
	AutoPause time.Duration
	// AutoArchive archives the sandbox this long after it stopped. At least
	// one second. Defaults to 0: never.
	AutoArchive time.Duration
	// AutoDelete deletes the sandbox this long after it stopped. At least
	// one second; to delete at once set Ephemeral. Defaults to 0: never.
	AutoDelete time.Duration

	// OnProgress, if set, is told of steps that may take long, such as the
	// download of an image. It must not block. Defaults to nil.
	OnProgress func(Progress)
	// OnBuildLog, if set, is told what the build of Build says. It must not
	// block. Defaults to nil.
	OnBuildLog func(BuildLog)
}

// Progress is one step of a long operation.
type Progress struct {
	// Stage is what is going on, such as "pulling debian:12".
	Stage string
	// Done and Total count bytes; Total is 0 while it is unknown.
	Done, Total int64
}

// Resources are limits that the sandbox as a whole cannot exceed.
type Resources struct {
	// CPU cores, such as 0.5 or 2. At least 0.01. Defaults to 0: all of the
	// host's, shared fairly.
	CPU float64 `json:"cpu"`
	// Memory in GiB, page cache and tmpfs included; a process of the sandbox
	// is killed when it runs out. At least 0.03125 (32 MiB). Defaults to 0:
	// the backend's default, see its documentation.
	Memory float64 `json:"memory"`
	// Disk in GiB that the sandbox may write, image not counted. At least
	// 0.03125 (32 MiB). Defaults to 0: what the host's disk has.
	Disk float64 `json:"disk"`
	// GPU count. Defaults to 0.
	GPU int `json:"gpu"`
	// Processes is the greatest number of processes and threads. At least
	// 16. Defaults to 0: the backend's default, see its documentation.
	Processes int `json:"processes"`
	// DiskBandwidth limits reading and writing of block devices, each, in
	// MiB a second. Defaults to 0: no limit.
	DiskBandwidth float64 `json:"diskBandwidth"`
}

// GiB is a gibibyte in bytes.
const GiB = 1 << 30

// MemoryBytes is Memory in bytes.
func (r Resources) MemoryBytes() int64 { return int64(r.Memory * GiB) }

// DiskBytes is Disk in bytes.
func (r Resources) DiskBytes() int64 { return int64(r.Disk * GiB) }

// NetworkPolicy says what a sandbox may reach. The zero value is the default:
// the public internet (IPv4), and nothing else — no host, no other sandbox,
// no private or link-local address, no metadata service.
type NetworkPolicy struct {
	// Block gives the sandbox no network but its own loopback. Defaults to
	// false.
	Block bool `json:"block"`
	// Allow, if not nil, is the list of all that may be reached, in place of
	// the public internet; an empty list denies everything. Name resolution
	// stays possible unless Allow is empty. Defaults to nil.
	Allow []netip.Prefix `json:"allow"`
	// AllowDomains, if not nil, limits connections to these host names; a
	// leading "*." matches every name below. An empty list denies
	// everything. Defaults to nil.
	AllowDomains []string `json:"allowDomains"`
}

// Update changes a sandbox; nil fields stay as they are.
type Update struct {
	Labels      map[string]string // replaces all labels
	AutoStop    *time.Duration    // of AutoStop and AutoPause, setting one ends the other
	AutoPause   *time.Duration
	AutoArchive *time.Duration
	AutoDelete  *time.Duration
}

const specOp = "create sandbox"

var (
	nameRule   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)
	envRule    = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	userRule   = regexp.MustCompile(`^([A-Za-z_][A-Za-z0-9_.-]{0,31}|[0-9]{1,10})(:([A-Za-z_][A-Za-z0-9_.-]{0,31}|[0-9]{1,10}))?$`)
	domainRule = regexp.MustCompile(`^(\*\.)?([A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?\.)*[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$`)
)

// ValidName reports whether name may name a sandbox or volume.
func ValidName(name string) bool { return nameRule.MatchString(name) }

// Validate checks every rule stated at the fields and returns the first
// violation as an [*Error] of KindInvalid with Field and Value set.
func (s Spec) Validate() error { return s.validate(specOp) }

func (s Spec) validate(specOp string) error {
	if s.Name != "" && !ValidName(s.Name) {
		return invalid(specOp, "Name", s.Name, `must be 1 to 63 letters, digits, ".", "_" or "-" and start with a letter or digit`)
	}
	if s.Image != "" && s.Snapshot != "" {
		return invalid(specOp, "Image", s.Image, "must be empty when Snapshot is set")
	}
	if s.Build != nil {
		if s.Image != "" || s.Snapshot != "" {
			return invalid(specOp, "Build", s.Image+s.Snapshot, "must be nil when Image or Snapshot is set")
		}
		if err := s.Build.Err(); err != nil {
			return err
		}
	}
	if strings.ContainsAny(s.Image, "\x00\n") {
		return invalid(specOp, "Image", s.Image, "must not contain NUL or newline")
	}
	if s.User != "" && !userRule.MatchString(s.User) {
		return invalid(specOp, "User", s.User, `must be a user name, "uid" or "uid:gid"`)
	}
	if s.WorkDir != "" && !cleanAbsolute(s.WorkDir) {
		return invalid(specOp, "WorkDir", s.WorkDir, `must be absolute, without ".." or NUL`)
	}
	if err := ValidateEnv(specOp, "Env", s.Env); err != nil {
		return err
	}
	for _, k := range slices.Sorted(maps.Keys(s.Labels)) {
		if k == "" {
			return invalid(specOp, "Labels", s.Labels[k], "keys must not be empty")
		}
	}
	for i, a := range s.Entrypoint {
		if strings.ContainsRune(a, 0) || (i == 0 && a == "") {
			return invalid(specOp, "Entrypoint", a, "must start with a program and must not contain NUL")
		}
	}
	switch s.Language {
	case "", "python", "typescript", "javascript":
	default:
		return invalid(specOp, "Language", s.Language, "must be python, typescript or javascript")
	}
	if err := s.Resources.Validate(specOp); err != nil {
		return err
	}
	if err := s.Network.Validate(specOp); err != nil {
		return err
	}
	mounts := map[string]bool{}
	for i, v := range s.Volumes {
		if err := v.validate(specOp, fmt.Sprintf("Volumes[%d]", i)); err != nil {
			return err
		}
		if mounts[v.MountPath] {
			return invalid(specOp, fmt.Sprintf("Volumes[%d].MountPath", i), v.MountPath, "is used by another volume")
		}
		mounts[v.MountPath] = true
	}
	for _, d := range []struct {
		field string
		value time.Duration
	}{{"TTL", s.TTL}, {"AutoStop", s.AutoStop}, {"AutoPause", s.AutoPause}, {"AutoArchive", s.AutoArchive}, {"AutoDelete", s.AutoDelete}} {
		if d.value != 0 && d.value < time.Second {
			return invalid(specOp, d.field, d.value, "must be 0 (never) or at least 1s")
		}
	}
	if s.AutoPause != 0 && s.AutoStop != 0 {
		return invalid(specOp, "AutoPause", s.AutoPause, "must be 0 when AutoStop is not")
	}
	return nil
}

// ValidateEnv checks that every name matches [A-Za-z_][A-Za-z0-9_]* and that
// no value contains NUL.
func ValidateEnv(op, field string, env map[string]string) error {
	for _, k := range slices.Sorted(maps.Keys(env)) {
		if !envRule.MatchString(k) {
			return invalid(op, field, k, "variable names must match [A-Za-z_][A-Za-z0-9_]*")
		}
		if strings.ContainsRune(env[k], 0) {
			return invalid(op, field+"["+k+"]", env[k], "values must not contain NUL")
		}
	}
	return nil
}

// Validate checks the limits; op names the operation in the error.
func (r Resources) Validate(op string) error {
	for _, f := range []struct {
		field   string
		value   float64
		min     float64
		minText string
	}{
		{"Resources.CPU", r.CPU, 0.01, "0.01 cores"},
		{"Resources.Memory", r.Memory, 1.0 / 32, "0.03125 GiB (32 MiB)"},
		{"Resources.Disk", r.Disk, 1.0 / 32, "0.03125 GiB (32 MiB)"},
		{"Resources.GPU", float64(r.GPU), 1, "1"},
		{"Resources.Processes", float64(r.Processes), 16, "16"},
		{"Resources.DiskBandwidth", r.DiskBandwidth, 1, "1 MiB a second"},
	} {
		if math.IsNaN(f.value) || math.IsInf(f.value, 0) || f.value > 1<<32 || (f.value != 0 && f.value < f.min) {
			return invalid(op, f.field, strconv.FormatFloat(f.value, 'g', -1, 64), "must be 0 (the default) or at least "+f.minText)
		}
	}
	return nil
}

// Validate checks the policy; op names the operation in the error.
func (p NetworkPolicy) Validate(op string) error {
	for i, a := range p.Allow {
		if !a.IsValid() || a.Masked() != a {
			return invalid(op, fmt.Sprintf("Network.Allow[%d]", i), a.String(), "must be a CIDR whose host bits are zero, such as 203.0.113.0/24")
		}
	}
	for i, d := range p.AllowDomains {
		if len(d) > 253 || !domainRule.MatchString(d) {
			return invalid(op, fmt.Sprintf("Network.AllowDomains[%d]", i), d, `must be a host name, optionally after "*."`)
		}
	}
	if p.Block && (len(p.Allow) > 0 || len(p.AllowDomains) > 0) {
		return invalid(op, "Network.Block", true, "must not be combined with Allow or AllowDomains")
	}
	return nil
}

func (v VolumeMount) validate(op, field string) error {
	if v.Volume == "" {
		return invalid(op, field+".Volume", v.Volume, "must be the id or name of a volume")
	}
	if !cleanAbsolute(v.MountPath) || path.Clean(v.MountPath) != v.MountPath || v.MountPath == "/" {
		return invalid(op, field+".MountPath", v.MountPath, `must be an absolute, clean path other than "/"`)
	}
	first, _, _ := strings.Cut(v.MountPath[1:], "/")
	switch first {
	case "proc", "sys", "dev", "boot", "etc", "bin", "sbin", "lib", "lib64":
		return invalid(op, field+".MountPath", v.MountPath, "must not be below /"+first)
	}
	if v.Subpath != "" && (strings.HasPrefix(v.Subpath, "/") || strings.Contains(v.Subpath, "//") ||
		strings.ContainsRune(v.Subpath, 0) || slices.Contains(strings.Split(v.Subpath, "/"), "..")) {
		return invalid(op, field+".Subpath", v.Subpath, `must be relative, without ".." or "//"`)
	}
	return nil
}

func cleanAbsolute(p string) bool {
	return strings.HasPrefix(p, "/") && !strings.ContainsRune(p, 0) && !slices.Contains(strings.Split(p, "/"), "..")
}

// clone copies s so that a backend may keep it.
func (s Spec) clone() Spec {
	s.Env = maps.Clone(s.Env)
	s.Labels = maps.Clone(s.Labels)
	s.Entrypoint = slices.Clone(s.Entrypoint)
	s.Network.Allow = slices.Clone(s.Network.Allow)
	s.Network.AllowDomains = slices.Clone(s.Network.AllowDomains)
	s.Volumes = slices.Clone(s.Volumes)
	return s
}
