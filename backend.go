package daytona

import (
	"context"
	"iter"
	"net"
)

// Backend is where sandboxes live. Implementations are checked by package
// backend/backendtest against the obligations stated here. Application code
// uses [Client] and [Sandbox].
//
// A Backend must be safe for concurrent use. It must refuse, with an [*Error]
// of KindUnsupported naming the field, every field of a request that it
// cannot enforce; it must never accept and ignore one. What it cannot do at
// all is left out: optional capabilities are the separate interfaces [Pauser],
// [Forker], [Snapshotter], [ImageBuilder], [Resizer], [NetworkPolicer],
// [Archiver], [Updater], [Watcher] and [VolumeManager], found by [As].
type Backend interface {
	// Name is the backend's name, such as "local". It must not change.
	Name() string

	// Create makes and starts a sandbox; spec has passed [Spec.Validate].
	// On success the sandbox must be in StateStarted and Connect must work at
	// once. On error, including a cancelled ctx, nothing may be left behind.
	// A taken name must give KindConflict; a missing image KindNotFound.
	Create(ctx context.Context, spec Spec) (Info, error)

	// Start starts a stopped sandbox with the files it had. It must do
	// nothing if the sandbox is started already.
	Start(ctx context.Context, id string) (Info, error)

	// Stop ends all processes of a sandbox and keeps its files, or deletes
	// it if it is ephemeral. It must do nothing if it is stopped already.
	Stop(ctx context.Context, id string, opts StopOptions) (Info, error)

	// Delete ends a sandbox and removes all that belongs to it. A second
	// Delete must give KindNotFound.
	Delete(ctx context.Context, id string) error

	// Get finds a sandbox by id, or else by name; KindNotFound if neither.
	Get(ctx context.Context, idOrName string) (Info, error)

	// List yields the sandboxes that match filter, oldest first.
	List(ctx context.Context, filter Filter) iter.Seq2[Info, error]

	// Connect returns the toolbox of a sandbox. It must not block and may be
	// called in any state: the toolbox's methods give KindState while the
	// sandbox is not started and KindNotFound when there is none, and the same
	// Toolbox must work again after a Stop and a Start.
	Connect(id string) Toolbox

	// Close deletes the sandboxes that this Backend value made and that are
	// not persistent, leaves the persistent ones running, and frees all
	// resources of this process.
	Close() error
}

// As finds the optional capability T of a backend, one of the interfaces that
// [Backend] lists:
//
//	if u, ok := daytona.As[daytona.Updater](b); ok {
//		info, err = u.Update(ctx, id, update)
//	}
//
// A backend has a capability if its type has the methods. One whose type cannot
// tell, such as a wrapper around any backend, has a method
//
//	As(target any) bool
//
// which decides alone: target is a *T; if the backend has the capability it
// must set *target and return true, and otherwise return false. The answer must
// not change while the backend is open.
func As[T any](b Backend) (T, bool) {
	var c T
	if a, ok := b.(interface{ As(target any) bool }); ok {
		ok = a.As(&c)
		return c, ok
	}
	c, ok := b.(T)
	return c, ok
}

// Toolbox is a connection to the agent inside a sandbox. Package
// toolbox/client makes one from any dialer, so that a backend has only to
// supply the dialer.
type Toolbox interface {
	FileSystem() FileSystem
	Process() Process
	Git() Git
	// LSPServer returns the language server for a language ("python",
	// "typescript", "javascript") and a project directory. It is not started.
	LSPServer(language, projectPath string) LSPServer
	Interpreter() Interpreter
	ComputerUse() ComputerUse
	Ports() Ports
	SSH() SSH

	// HomeDir is the home directory of the sandbox's user.
	HomeDir(ctx context.Context) (string, error)
	// WorkDir is the directory that relative paths resolve against.
	WorkDir(ctx context.Context) (string, error)
	// Metrics is the sandbox's present use of resources.
	Metrics(ctx context.Context) (Metrics, error)

	// Dial opens a raw connection to the agent's HTTP API, for proxies.
	Dial(ctx context.Context) (net.Conn, error)
	// DialPort opens a TCP connection to a port on the sandbox's loopback
	// interface. It gives KindUnavailable if nothing listens there.
	DialPort(ctx context.Context, port int) (net.Conn, error)

	Close() error
}

// StopOptions says how to stop.
type StopOptions struct {
	// Force kills at once. Defaults to false: processes get SIGTERM and five
	// seconds before SIGKILL.
	Force bool
}

// Pauser freezes and thaws sandboxes, memory and all.
type Pauser interface {
	// Pause freezes a started sandbox: StatePaused. It must do nothing if it is
	// paused already. The time that passes is not lost: intervals that began
	// before go on.
	Pause(ctx context.Context, id string, opts PauseOptions) (Info, error)
	// Resume lets a paused sandbox go on where it was. It must do nothing if it
	// is started. Start on a paused sandbox must do the same.
	Resume(ctx context.Context, id string) (Info, error)
}

// PauseOptions says how to pause.
type PauseOptions struct {
	// Disk writes the memory to disk and frees it, so that the pause survives
	// the end of the machine. A backend whose isolation cannot do that must
	// refuse it. Defaults to false: processes stay in memory and get no CPU.
	Disk bool
}

// Forker makes sandboxes from the present files of another.
type Forker interface {
	// Fork makes one started sandbox for each name from the files of the
	// sandbox id, started or stopped, as they are at one moment, which must be
	// the same for all. Children have the parent's spec but their own ID, name,
	// host name, machine id and agent; Info.Parent names the parent. The
	// parent's state is afterwards what it was. On error no child may be left.
	Fork(ctx context.Context, id string, opts ForkOptions) ([]Info, error)
}

// ForkOptions says how to fork.
type ForkOptions struct {
	// Names has the name of each child; an empty one is generated. Defaults to
	// one child of a generated name.
	Names []string
	// Memory forks the running processes as well. A backend whose isolation
	// cannot do that must refuse it. Defaults to false: children boot afresh.
	Memory bool
}

// Resizer changes a sandbox's resources. A zero field keeps what it is.
type Resizer interface {
	// Resize changes CPU, memory and processes of a started or stopped sandbox,
	// at once, without a restart; less memory than is in use must give
	// KindConflict. The disk can be changed when the sandbox is stopped
	// (else KindState), and only grow (else KindInvalid).
	Resize(ctx context.Context, id string, r Resources) (Info, error)
}

// NetworkPolicer replaces the network policy of a sandbox. Connections that
// the new policy forbids must be cut, and there must be no moment without a
// policy.
type NetworkPolicer interface {
	SetNetworkPolicy(ctx context.Context, id string, p NetworkPolicy) (Info, error)
}

// Archiver moves the files of stopped sandboxes to object storage.
type Archiver interface {
	// Archive moves a stopped sandbox's files to object storage and frees
	// their place here: StateArchived. It must do nothing if it is archived
	// already. What is there must be complete and verified before anything here
	// is removed. Start brings an archived sandbox back; Delete removes its
	// archive.
	Archive(ctx context.Context, id string) (Info, error)
	// Restore brings the files of an archived sandbox back and leaves it
	// stopped. It must do so for a sandbox as well that another backend,
	// perhaps on another machine, archived into the same object storage and
	// that is not here yet; it belongs here from then on. What arrives must be
	// checked against the digests that Archive recorded (else KindInternal, and
	// the archive stays).
	Restore(ctx context.Context, id string) (Info, error)
}

// Updater changes labels and intervals of a sandbox.
type Updater interface {
	Update(ctx context.Context, id string, u Update) (Info, error)
}

// Watcher waits for changes made by others, such as an automatic stop.
type Watcher interface {
	// Wait blocks until the sandbox is in one of the states, and returns its
	// Info; KindNotFound once it is deleted.
	Wait(ctx context.Context, id string, states ...State) (Info, error)
}
