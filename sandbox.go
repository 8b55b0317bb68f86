package daytona

import (
	"context"
	"maps"
	"net"
	"slices"
	"sync"
	"time"
)

// State is where a sandbox is in its life. The words are those of the wire.
type State string

// The states of a sandbox; docs/state-machine.md has the transitions.
const (
	StateCreating     State = "creating"
	StateStarted      State = "started"
	StateStarting     State = "starting"
	StateStopping     State = "stopping"
	StateStopped      State = "stopped"
	StatePausing      State = "pausing"
	StatePaused       State = "paused"
	StateResuming     State = "resuming"
	StateResizing     State = "resizing"
	StateSnapshotting State = "snapshotting"
	StateForking      State = "forking"
	StateArchiving    State = "archiving"
	StateArchived     State = "archived"
	StateRestoring    State = "restoring"
	StateDestroying   State = "destroying"
	StateDestroyed    State = "destroyed"
	StateError        State = "error"
	StateUnknown      State = "unknown"
)

// Info is what is known of a sandbox at one moment.
type Info struct {
	ID     string `json:"id"`
	Name   string `json:"name"`
	State  State  `json:"state"`
	Reason string `json:"reason,omitempty"` // why it is in StateError

	Backend    string            `json:"backend"`
	Image      string            `json:"image,omitempty"`
	Snapshot   string            `json:"snapshot,omitempty"` // the name of the snapshot it was made from
	Parent     string            `json:"parent,omitempty"`   // the id of the sandbox it was forked from
	User       string            `json:"user"`
	WorkDir    string            `json:"workDir"`
	Env        map[string]string `json:"env,omitempty"`
	Labels     map[string]string `json:"labels,omitempty"`
	Entrypoint []string          `json:"entrypoint,omitempty"`
	Language   string            `json:"language"`
	Resources  Resources         `json:"resources"` // as enforced
	Network    NetworkPolicy     `json:"network"`
	Volumes    []VolumeMount     `json:"volumes,omitempty"`

	Persistent  bool          `json:"persistent"`
	Ephemeral   bool          `json:"ephemeral"`
	TTL         time.Duration `json:"ttl,omitempty"`
	AutoStop    time.Duration `json:"autoStop,omitempty"`
	AutoPause   time.Duration `json:"autoPause,omitempty"`
	AutoArchive time.Duration `json:"autoArchive,omitempty"`
	AutoDelete  time.Duration `json:"autoDelete,omitempty"`

	CreatedAt time.Time `json:"createdAt"`
	StartedAt time.Time `json:"startedAt,omitzero"` // last start
	StoppedAt time.Time `json:"stoppedAt,omitzero"` // last stop or pause
}

// Metrics is a sandbox's use of resources.
type Metrics struct {
	// CPUPercent of the CPU limit (of one core where there is none), averaged
	// over the last sample window; 0 until there is a sample.
	CPUPercent float64
	CPUCount   int
	// In bytes.
	MemoryUsed, MemoryTotal, MemoryCache int64
	DiskUsed, DiskTotal, DiskFree        int64
	Time                                 time.Time
}

// Sandbox is an isolated machine for running programs. It is safe for
// concurrent use. Methods that reach into the sandbox give KindState when it
// is not started and KindNotFound when it is deleted.
type Sandbox interface {
	// ID is unique for all time.
	ID() string
	// Name is unique among the backend's sandboxes.
	Name() string
	// Info is what was known when this value, or Refresh, last asked.
	Info() Info
	// Refresh asks the backend anew.
	Refresh(ctx context.Context) (Info, error)

	// Start starts the sandbox if it is stopped.
	Start(ctx context.Context) error
	// Stop ends its processes and keeps its files; nil options are defaults.
	// An ephemeral sandbox is deleted.
	Stop(ctx context.Context, opts *StopOptions) error
	// Delete removes it. Deleting what is deleted already gives KindNotFound.
	Delete(ctx context.Context) error

	// Pause freezes it with its memory and Resume thaws it; nil options are
	// defaults. Backends without a Pauser give KindUnsupported.
	Pause(ctx context.Context, opts *PauseOptions) error
	Resume(ctx context.Context) error
	// Fork makes other sandboxes from its present files, one for each name; nil
	// options make one. Backends without a Forker give KindUnsupported.
	Fork(ctx context.Context, opts *ForkOptions) ([]Sandbox, error)
	// CreateSnapshot keeps its present files under a name, to make sandboxes
	// from; see [Client.CreateSnapshot] for more. Backends without a
	// Snapshotter give KindUnsupported.
	CreateSnapshot(ctx context.Context, name string) (Snapshot, error)
	// Archive moves it, stopped, to object storage; Start, or Restore without
	// starting, brings it back. Backends without an Archiver give
	// KindUnsupported.
	Archive(ctx context.Context) error
	Restore(ctx context.Context) error
	// Resize changes its resources; zero fields stay. Backends without a
	// Resizer give KindUnsupported.
	Resize(ctx context.Context, r Resources) error
	// SetNetworkPolicy replaces its network policy at once. Backends without
	// a NetworkPolicer give KindUnsupported.
	SetNetworkPolicy(ctx context.Context, p NetworkPolicy) error
	// Update changes labels and intervals. Backends without an Updater give
	// KindUnsupported.
	Update(ctx context.Context, u Update) error

	FileSystem() FileSystem
	Process() Process
	Git() Git
	// LSPServer returns the (not yet started) language server for a language
	// and a project directory.
	LSPServer(language, projectPath string) LSPServer
	Interpreter() Interpreter
	ComputerUse() ComputerUse
	Ports() Ports
	// SSH is the way in for OpenSSH's programs.
	SSH() SSH

	// HomeDir is the home directory of the sandbox's user.
	HomeDir(ctx context.Context) (string, error)
	// WorkDir is the directory that relative paths resolve against.
	WorkDir(ctx context.Context) (string, error)
	// Metrics is its present use of resources.
	Metrics(ctx context.Context) (Metrics, error)
	// DialPort opens a TCP connection to a server that listens on a port
	// inside the sandbox (on its loopback or all interfaces). It is the only
	// way in; nothing is published on the host.
	DialPort(ctx context.Context, port int) (net.Conn, error)
	// Toolbox is the connection to the sandbox's agent.
	Toolbox() Toolbox
}

// sandbox implements Sandbox over any Backend.
type sandbox struct {
	backend Backend
	id      string

	toolbox Toolbox

	mu   sync.Mutex
	info Info
}

func newSandbox(b Backend, info Info) *sandbox {
	return &sandbox{backend: b, id: info.ID, toolbox: b.Connect(info.ID), info: info}
}

func (s *sandbox) ID() string   { return s.id }
func (s *sandbox) Name() string { return s.Info().Name }

func (s *sandbox) Info() Info {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := s.info
	i.Env = maps.Clone(i.Env)
	i.Labels = maps.Clone(i.Labels)
	i.Volumes = slices.Clone(i.Volumes)
	return i
}

// set records the outcome of an operation.
func (s *sandbox) set(info Info, err error) error {
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.info = info
	return nil
}

func (s *sandbox) Refresh(ctx context.Context) (Info, error) {
	info, err := s.backend.Get(ctx, s.id)
	if err := s.set(info, err); err != nil {
		return Info{}, err
	}
	return s.Info(), nil
}

func (s *sandbox) Start(ctx context.Context) error { return s.set(s.backend.Start(ctx, s.id)) }

func (s *sandbox) Stop(ctx context.Context, opts *StopOptions) error {
	var o StopOptions
	if opts != nil {
		o = *opts
	}
	return s.set(s.backend.Stop(ctx, s.id, o))
}

func (s *sandbox) Delete(ctx context.Context) error {
	if err := s.backend.Delete(ctx, s.id); err != nil {
		return err
	}
	s.toolbox.Close()
	i := s.Info()
	i.State = StateDestroyed
	return s.set(i, nil)
}

func (s *sandbox) Pause(ctx context.Context, opts *PauseOptions) error {
	p, ok := As[Pauser](s.backend)
	if !ok {
		return unsupported(s.backend, "pause sandbox")
	}
	var o PauseOptions
	if opts != nil {
		o = *opts
	}
	return s.set(p.Pause(ctx, s.id, o))
}

func (s *sandbox) Resume(ctx context.Context) error {
	p, ok := As[Pauser](s.backend)
	if !ok {
		return unsupported(s.backend, "resume sandbox")
	}
	return s.set(p.Resume(ctx, s.id))
}

// MaxForks is the greatest number of children that one Fork makes.
const MaxForks = 1000

func (s *sandbox) Fork(ctx context.Context, opts *ForkOptions) ([]Sandbox, error) {
	const op = "fork sandbox"
	f, ok := As[Forker](s.backend)
	if !ok {
		return nil, unsupported(s.backend, op)
	}
	var o ForkOptions
	if opts != nil {
		o = *opts
	}
	o.Names = slices.Clone(o.Names)
	if len(o.Names) == 0 {
		o.Names = []string{""}
	}
	if len(o.Names) > MaxForks {
		return nil, invalid(op, "Names", len(o.Names), "must be at most 1000")
	}
	for i, name := range o.Names {
		if name == "" {
			continue
		}
		if !ValidName(name) {
			return nil, invalid(op, "Names", name, `must be 1 to 63 letters, digits, ".", "_" or "-" and start with a letter or digit`)
		}
		if slices.Contains(o.Names[:i], name) {
			return nil, invalid(op, "Names", name, "must not be there twice")
		}
	}
	infos, err := f.Fork(ctx, s.id, o)
	if err != nil {
		return nil, err
	}
	children := make([]Sandbox, len(infos))
	for i, info := range infos {
		children[i] = newSandbox(s.backend, info)
	}
	return children, nil
}

func (s *sandbox) CreateSnapshot(ctx context.Context, name string) (Snapshot, error) {
	return createSnapshot(ctx, s.backend, SnapshotSpec{Name: name, Sandbox: s.id})
}

func (s *sandbox) Archive(ctx context.Context) error {
	a, ok := As[Archiver](s.backend)
	if !ok {
		return unsupported(s.backend, "archive sandbox")
	}
	return s.set(a.Archive(ctx, s.id))
}

func (s *sandbox) Restore(ctx context.Context) error {
	a, ok := As[Archiver](s.backend)
	if !ok {
		return unsupported(s.backend, "restore sandbox")
	}
	return s.set(a.Restore(ctx, s.id))
}

func (s *sandbox) Resize(ctx context.Context, r Resources) error {
	rs, ok := As[Resizer](s.backend)
	if !ok {
		return unsupported(s.backend, "resize sandbox")
	}
	if err := r.Validate("resize sandbox"); err != nil {
		return err
	}
	return s.set(rs.Resize(ctx, s.id, r))
}

func (s *sandbox) SetNetworkPolicy(ctx context.Context, p NetworkPolicy) error {
	np, ok := As[NetworkPolicer](s.backend)
	if !ok {
		return unsupported(s.backend, "set network policy")
	}
	if err := p.Validate("set network policy"); err != nil {
		return err
	}
	return s.set(np.SetNetworkPolicy(ctx, s.id, p))
}

func (s *sandbox) Update(ctx context.Context, u Update) error {
	up, ok := As[Updater](s.backend)
	if !ok {
		return unsupported(s.backend, "update sandbox")
	}
	return s.set(up.Update(ctx, s.id, u))
}

func (s *sandbox) Toolbox() Toolbox         { return s.toolbox }
func (s *sandbox) FileSystem() FileSystem   { return s.toolbox.FileSystem() }
func (s *sandbox) Process() Process         { return s.toolbox.Process() }
func (s *sandbox) Git() Git                 { return s.toolbox.Git() }
func (s *sandbox) Interpreter() Interpreter { return s.toolbox.Interpreter() }
func (s *sandbox) ComputerUse() ComputerUse { return s.toolbox.ComputerUse() }
func (s *sandbox) Ports() Ports             { return s.toolbox.Ports() }
func (s *sandbox) SSH() SSH                 { return s.toolbox.SSH() }

func (s *sandbox) LSPServer(language, projectPath string) LSPServer {
	return s.toolbox.LSPServer(language, projectPath)
}

func (s *sandbox) HomeDir(ctx context.Context) (string, error)  { return s.toolbox.HomeDir(ctx) }
func (s *sandbox) WorkDir(ctx context.Context) (string, error)  { return s.toolbox.WorkDir(ctx) }
func (s *sandbox) Metrics(ctx context.Context) (Metrics, error) { return s.toolbox.Metrics(ctx) }

func (s *sandbox) DialPort(ctx context.Context, port int) (net.Conn, error) {
	if port < 1 || port > 65535 {
		return nil, invalid("dial sandbox port", "port", port, "must be 1 to 65535")
	}
	return s.toolbox.DialPort(ctx, port)
}
