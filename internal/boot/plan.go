// Package boot turns a freshly cloned process into a sandbox: it runs inside
// the new namespaces, before the agent, in the agent's own binary. The engine
// (backend/local) clones the process and sends it a [Plan]; boot mounts the
// root filesystem, gives up every right that the sandbox must not have, and
// executes the agent.
//
// It depends on the standard library and golang.org/x/sys only, since it is
// linked into the agent, and knows nothing of engines, images or state: the
// plan says what to do, in full.
package boot

// Plan is everything that boot has to do, in the order of its fields. Paths
// of sources are host paths; paths of targets are inside the sandbox.
type Plan struct {
	// Hostname of the UTS namespace.
	Hostname string
	// Stage is an empty host directory to build on. What is mounted there is
	// seen by nobody else and ends with the sandbox.
	Stage string

	// Clones are directories to make the detached mounts of, where the engine
	// has not the right to: Source.Mount counts them instead.
	Clones []Clone

	// Network is "joined" (the namespace was joined before the clone),
	// "loopback" (a new one with nothing but lo) or "userspace" (a new one
	// with a device whose packets the engine handles).
	Network string

	// Overlays to mount; the first is the root, Target "/".
	Overlays []Overlay
	// Symlinks, Dirs and Files to make in the root, if they are missing
	// (Files: always).
	Dirs     []Dir
	Symlinks map[string]string
	Files    []File
	// MachineID, if set, makes a copy of another sandbox's files a machine of its
	// own: it replaces what identifies a machine, as far as it is there, and host
	// keys of SSH are removed. Defaults to "": nothing is replaced.
	MachineID string
	// EnsureUser is added to /etc/passwd and /etc/group, with a home, if no
	// user has its name. nil adds none.
	EnsureUser *User
	// Users that must be there afterwards: a name each in /etc/passwd and
	// /etc/group. Empty or a number asks for nothing.
	NeedUser, NeedGroup string
	// Binds onto the root.
	Binds []Bind
	// Cgroup is where the sandbox's own version 2 cgroup is mounted, writable:
	// /sys/fs/cgroup, or a directory below it. Empty mounts none.
	Cgroup string
	// AwaitCgroups says that the engine sends another, empty message when the
	// process is in its cgroups, which takes the kernel a while.
	AwaitCgroups bool
	// CgroupsV1 are its version 1 cgroups, to be seen read-only: controller to
	// host directory.
	CgroupsV1 map[string]string
	// SysPaths below the host's /sys that are shown read-only.
	SysPaths []string

	// UserLimits are written below /proc/sys/user of the new user namespace.
	UserLimits map[string]string

	// UID and GID are the agent's, inside.
	UID, GID int
	// SetGroups says that supplementary groups may be dropped.
	SetGroups bool
	// Capabilities is the bit mask of what is kept.
	Capabilities uint64
	// Rlimits to set.
	Rlimits []Rlimit
	// Seccomp is a classic BPF program in the kernel's layout.
	Seccomp []byte
	// OOMScoreAdj is written for the sandbox.
	OOMScoreAdj int
	// DieWithParent kills the sandbox when the thread that cloned it ends.
	DieWithParent bool
	// Argv and Env of the agent.
	Argv, Env []string
	// Step, if set, has Argv executed in the root file system, as a step of a
	// build, in place of the agent.
	Step *Step
}

// Step is what a command that is not the agent needs.
type Step struct {
	// Dir is the working directory.
	Dir string
	// Groups are the supplementary groups.
	Groups []int
}

// Source is a directory or file of the host: a path, or a path below a
// detached mount that came with the plan.
type Source struct {
	// Mount counts the detached mounts from 1; 0 is none.
	Mount int
	// Overlay counts the plan's overlays from 1; 0 is none. It must be a Staged
	// one.
	Overlay int
	Path    string
}

// Clone is a directory of the host, or one beneath it, reached without
// following links and made if it is missing. Sub has no "..".
type Clone struct {
	Dir, Sub string
}

// Overlay is an overlay file system. Lower is ordered from the topmost layer
// down, as the kernel wants it. Without Upper it is read-only.
type Overlay struct {
	Target      string
	Lower       []Source
	Upper, Work Source
	// Staged ones are attached nowhere: binds show what is in them.
	Staged bool
}

// Bind shows a source at a target, which is made if it is missing.
type Bind struct {
	Source   Source
	Target   string
	ReadOnly bool
	// Recursive takes along what is mounted below the source.
	Recursive bool
	// Tmpfs mounts an empty tmpfs of so many bytes in place of Source.
	Tmpfs int64
}

// Dir is a directory to make.
type Dir struct {
	Path string
	Mode uint32
	UID  int
	GID  int
}

// File is a file to write.
type File struct {
	Path    string
	Mode    uint32
	Content string
}

// User is a user to add. Its group has the same name.
type User struct {
	Name     string
	UID, GID int
	Home     string
	// Fixed says that the numbers count, not the name: nothing is added if the
	// UID is there, and the name is changed if it is taken. Otherwise the next
	// free numbers are taken.
	Fixed bool
}

// Rlimit is a resource limit, in the kernel's numbers.
type Rlimit struct {
	Resource  int
	Soft, Max uint64
}

// File descriptors that boot expects.
const (
	FDListener = 3 // handed on to the agent
	FDConfig   = 4 // handed on to the agent
	FDSync     = 5 // SOCK_SEQPACKET: plan and signals come in, errors and devices go out
	FDAgent    = 6 // the agent's binary
)

// StepCommand is Message.Step when the command of a Step cannot be executed.
const StepCommand = "execute the command"

// StepUser is Message.Step when NeedUser or NeedGroup is missing.
const StepUser = "find the user"

// Message is what boot sends on FDSync before it executes the agent; the
// socket's end without an error is success.
type Message struct {
	// Device says that a descriptor comes along: the packets of a "userspace"
	// network, of this kind.
	Device string `json:"device,omitempty"`
	// Step and Error say what went wrong.
	Step  string `json:"step,omitempty"`
	Error string `json:"error,omitempty"`
	Errno int    `json:"errno,omitempty"`
	// Image says that what the image has in the way is to blame.
	Image bool `json:"image,omitempty"`
}
