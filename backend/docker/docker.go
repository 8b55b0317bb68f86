//go:build linux

// Package docker runs sandboxes as containers of a Docker engine. Importing it
// registers the URL scheme "docker":
//
//	import _ "github.com/daytona-go/daytona/backend/docker"
//
//	client, err := daytona.Open(ctx, "docker://?image=debian:12")
//
// The engine is the one that DOCKER_HOST names, or that of /var/run/docker.sock.
// It need not be on this machine, nor this process root: how the agent inside a
// container is reached (Options.Transport) is found out. The Engine API is 1.40
// or newer; the version is negotiated.
//
// # What a sandbox is
//
// A container whose first process is the agent. It has no privileges: all
// capabilities are dropped but those that root of an ordinary container needs
// (and CAP_NET_ADMIN and CAP_SETPCAP until the agent has put the network policy
// in force and given both up), no_new_privs is set, the engine's seccomp profile
// is on, and programs run as the user "daytona" unless the spec or the image
// says otherwise. The network is a bridge of this package's own without traffic
// between containers; the policy is enforced inside the container's network
// namespace, before anything of the sandbox runs.
//
// Stopping a sandbox stops its container and keeps it, with its files.
//
// # Transports
//
// "socket" is a Unix socket in a directory that the container and this process
// share, "port" one that the engine publishes on the loopback interface and that
// wants proof of a key, "exec" a program that the engine runs in the container
// and that carries all connections. Unless one is demanded, the first sandbox
// tries them in this order.
//
// # Where things are
//
// Containers, and the network, bear labels that name the state directory
// (/var/lib/daytona-docker, for others than root ~/.local/share/daytona-docker, or
// the path of the URL) and the machine; what bears none is never touched. The
// directory has a record of each sandbox, as package lifecycle keeps them:
// processes that were killed leave nothing that the next one does not find and
// finish.
//
// The package knows nothing of servers and of other backends.
package docker

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/moby/moby/client"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/agentbin"
	"github.com/daytona-go/daytona/internal/lifecycle"
	"github.com/daytona-go/daytona/internal/link"
	"github.com/daytona-go/daytona/internal/network"
	"github.com/daytona-go/daytona/internal/network/policy"
	"github.com/daytona-go/daytona/internal/objects"
)

func init() {
	daytona.Register("docker", func(ctx context.Context, u *url.URL) (daytona.Backend, error) {
		opts, err := parseURL(u)
		if err != nil {
			return nil, err
		}
		opts.Logger = slog.Default()
		return New(ctx, opts)
	})
}

// Options say which engine to use, and how.
type Options struct {
	// Host is the engine's address, such as "unix:///var/run/docker.sock".
	// Defaults to the variable DOCKER_HOST, or /var/run/docker.sock.
	Host string
	// Dir is the state directory. Defaults to /var/lib/daytona-docker for root and
	// $XDG_DATA_HOME/daytona-docker or ~/.local/share/daytona-docker for others.
	Dir string
	// Image is what sandboxes are made of whose spec names none. Defaults to
	// "daytona-sandbox:latest", which `docker build -t daytona-sandbox
	// image/sandbox` makes.
	Image string
	// Runtime is the OCI runtime, by the name that the engine knows it by, such
	// as "runc", "crun", "runsc" or "kata". Defaults to the engine's own default.
	Runtime string
	// Transport is how agents are reached: "socket", "port" or "exec", see the
	// package's comment. Defaults to the first of them that works, which the
	// first sandbox finds out.
	Transport string
	// Agent is the path of the agent's binary. Defaults to the variable
	// DAYTONA_AGENT; else the one embedded in a release build, the one beside
	// the executable, the one on PATH, or one built with the local Go toolchain
	// into the user's cache directory.
	Agent string
	// Keychain finds the credentials for registries. Defaults to
	// authn.DefaultKeychain, which reads what `docker login` has written
	// ($DOCKER_CONFIG/config.json or ~/.docker/config.json) and asks the helpers
	// named there. A service must set it, if only to
	// authn.NewMultiKeychain(), lest its users pull what is its own.
	Keychain authn.Keychain
	// KeepImported is how long an image that was imported from a file is kept
	// unused. Older ones go when the next is imported. Defaults to a week.
	KeepImported time.Duration
	// Archive is where archived sandboxes are kept: a directory, which other
	// machines may share, or a URL such as s3://bucket/prefix in a program that
	// imports package archive/s3, which says how it is written and where its
	// credentials come from. Defaults to the directory "archive" in Dir.
	Archive string
	// Logger gets what goes on. Defaults to discarding it.
	Logger *slog.Logger
}

// parseURL reads docker:///state/directory?image=…&host=…&runtime=…&transport=…&archive=….
func parseURL(u *url.URL) (*Options, error) {
	bad := func(field, value, rule string) error {
		// The parameters are left out: one may be a URL with a password.
		return &daytona.Error{Kind: daytona.KindInvalid, Op: "open backend", Subject: (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String(), Field: field, Value: value, Message: rule}
	}
	if u.Host != "" || u.Opaque != "" {
		return nil, bad("host", u.Host+u.Opaque, "write docker:// or docker:///state/directory; the engine's address is the parameter host")
	}
	o := &Options{Dir: u.Path}
	for k, v := range u.Query() {
		switch k {
		case "host":
			o.Host = v[0]
		case "image":
			o.Image = v[0]
		case "runtime":
			o.Runtime = v[0]
		case "transport":
			o.Transport = v[0]
		case "agent":
			o.Agent = v[0]
		case "archive":
			o.Archive = v[0]
		default:
			return nil, bad(k, v[0], `unknown parameter; there are "host", "image", "runtime", "transport", "agent" and "archive"; "&" in the value of one is written "%26"`)
		}
	}
	return o, nil
}

// Open opens the backend and returns a Client for it; nil options are the
// defaults.
func Open(ctx context.Context, opts *Options) (*daytona.Client, error) {
	b, err := New(ctx, opts)
	if err != nil {
		return nil, err
	}
	return daytona.New(b), nil
}

const openOp = "open docker"

// keeper has the methods of daytona.Backend and daytona.Updater.
type keeper = lifecycle.Keeper[own]

// backend implements daytona.Backend and most of what is optional.
type backend struct {
	*keeper
	lifecycle.Pausing[own]
	lifecycle.Archiving[own]
	lifecycle.Snapshots[own, template]
	store objects.Store

	opts  Options
	log   *slog.Logger
	api   *client.Client
	tag   string // see tagOf
	agent string // the agent's binary, on this machine
	// agentFrom is where it was found, and where others may be beside it.
	agentFrom string
	can       limits

	// Where the engine is: on this machine, as far as can be told, or else at
	// these addresses; desktop says that it is in a virtual machine.
	here, desktop bool
	mounts        bool // the engine sees what this process mounts
	elsewhere     []netip.Prefix

	netOnce   sync.Mutex
	network   string // its id, once it is there
	resolvers []netip.Addr

	way struct {
		sync.Mutex
		found string // the transport, once an agent was reached
	}
	relays link.Sessions

	volume struct {
		sync.Mutex
		name string // of a volume with the agent, once there is one
		own  bool   // it must be one that this process has filled
	}
	noDisk atomic.Pointer[string] // why the engine gives no disk limits, once it has said so
}

// tagOf tells the containers of a state directory from those of others, also of
// other machines that use the same engine: one's sandboxes are not for another
// to reap.
func tagOf(dir string) string {
	machine, _ := os.ReadFile("/etc/machine-id") // where it is missing, the path has to do
	sum := sha256.Sum256([]byte(dir + "\x00" + strings.TrimSpace(string(machine))))
	return hex.EncodeToString(sum[:4])
}

func defaultDir() (string, error) {
	if os.Geteuid() == 0 {
		return "/var/lib/daytona-docker", nil
	}
	if d := os.Getenv("XDG_DATA_HOME"); filepath.IsAbs(d) {
		return filepath.Join(d, "daytona-docker"), nil
	}
	home, err := os.UserHomeDir()
	return filepath.Join(home, ".local", "share", "daytona-docker"), err
}

// limits are those that the engine can enforce.
type limits struct {
	cpu, memory, processes bool
	storage                string // its storage driver
}

// New opens the backend. An engine that cannot be reached gives KindUnavailable
// with the reason.
func New(ctx context.Context, opts *Options) (_ daytona.Backend, err error) {
	b := &backend{}
	b.relays.Start = b.startRelay
	if opts != nil {
		b.opts = *opts
	}
	if b.log = b.opts.Logger; b.log == nil {
		b.log = slog.New(slog.DiscardHandler)
	}
	if b.opts.Image == "" {
		b.opts.Image = "daytona-sandbox:latest"
	}
	fail := func(kind daytona.Kind, subject, message string, err error) error {
		return &daytona.Error{Kind: kind, Op: openOp, Subject: subject, Message: message, Err: err}
	}
	connect := []client.Opt{client.FromEnv, client.WithUserAgent("daytona")}
	if b.opts.Host != "" {
		connect = append(connect, client.WithHost(b.opts.Host))
	}
	if b.api, err = client.New(connect...); err != nil {
		return nil, fail(daytona.KindInvalid, b.opts.Host, "not the address of an engine", err)
	}
	defer func() {
		if err != nil {
			b.api.Close()
		}
	}()
	host := b.api.DaemonHost()
	info, err := b.api.Info(ctx, client.InfoOptions{})
	if err != nil {
		return nil, fail(daytona.KindUnavailable, host, "ask the Docker engine; does it run?", err)
	}
	b.can = limits{cpu: info.Info.CPUCfsQuota, memory: info.Info.MemoryLimit, processes: info.Info.PidsLimit, storage: info.Info.Driver}
	b.desktop = info.Info.OperatingSystem == "Docker Desktop"
	if b.here, b.elsewhere, err = whereIs(ctx, host); err != nil {
		return nil, fail(daytona.KindUnavailable, host, "look up the engine's address", err)
	}
	b.mounts = b.sharesMounts(ctx)
	if err := b.refuseTransport(); err != nil {
		return nil, err
	}
	if _, known := info.Info.Runtimes[b.opts.Runtime]; b.opts.Runtime != "" && !known {
		return nil, &daytona.Error{Kind: daytona.KindInvalid, Op: openOp, Field: "Runtime", Value: b.opts.Runtime, Message: "the engine knows no such runtime"}
	}
	dir := b.opts.Dir
	if dir == "" {
		if dir, err = defaultDir(); err != nil {
			return nil, fail(daytona.KindInvalid, "", "give a state directory", err)
		}
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, fail(daytona.KindInvalid, dir, "", err)
	}
	if b.keeper, err = lifecycle.New[own](lifecycle.Options{Name: "docker", Dir: dir, Dirs: []string{"agent", "volumes", "snapshots", "snapshot-names"}, Log: b.log}); err != nil {
		return nil, fail(daytona.KindUnavailable, dir, "make its state directory", err)
	}
	defer func() {
		if err != nil {
			b.keeper.Free()
		}
	}()
	b.tag = tagOf(dir)
	b.Pausing.Keeper, b.Archiving.Keeper = b.keeper, b.keeper
	b.Snapshots = lifecycle.Snapshots[own, template]{Keeper: b.keeper, Free: func(ctx context.Context, _ *lifecycle.SnapshotRecord[template]) error { return b.collectFiles(ctx) }}
	archive := b.opts.Archive
	if archive == "" {
		archive = filepath.Join(dir, "archive")
	}
	if b.store, err = objects.Open(ctx, "Archive", archive); err != nil {
		if _, done := errors.AsType[*daytona.Error](err); done {
			return nil, err
		}
		return nil, fail(daytona.KindUnavailable, archive, "open the archives", err)
	}
	if err := b.loadAgent(ctx); err != nil {
		return nil, fail(daytona.KindUnavailable, "", "", err)
	}
	if b.resolvers = policy.PublicResolvers(); b.here {
		if b.resolvers, err = network.Resolvers(); err != nil {
			return nil, fail(daytona.KindUnavailable, "", "", err)
		}
	}
	if err := b.keeper.Open(ctx, driver{b}); err != nil {
		return nil, fail(daytona.KindUnavailable, dir, "recover what earlier processes left", err)
	}
	return b, nil
}

// loadAgent finds the agent and copies it to the state directory: what
// containers get stays as it is, whatever becomes of the original.
func (b *backend) loadAgent(ctx context.Context) error {
	path, err := agentbin.FindAgent(ctx, b.opts.Agent, agentbin.CacheDir(b.Root))
	if err != nil {
		return err
	}
	b.agentFrom = path
	if b.agent, err = lifecycle.KeepFile(path, b.Dir("agent")); err != nil {
		return fmt.Errorf("copy %s: %w", path, err)
	}
	return nil
}

// Close deletes what belongs to this backend and lets go of the rest.
func (b *backend) Close() error {
	if !b.keeper.Shut() {
		return nil
	}
	err := b.keeper.Close()
	b.relays.Close()
	return errors.Join(err, b.api.Close())
}

// Create implements daytona.Backend.
func (b *backend) Create(ctx context.Context, spec daytona.Spec) (daytona.Info, error) {
	if err := ctx.Err(); err != nil {
		return daytona.Info{}, err
	}
	if b.Closed() {
		return daytona.Info{}, &daytona.Error{Kind: daytona.KindState, Op: lifecycle.CreateOp, Message: "the backend is closed"}
	}
	if spec.Snapshot != "" {
		s, err := b.FindSnapshot(lifecycle.CreateOp, spec.Snapshot)
		if err != nil {
			return daytona.Info{}, err
		}
		spec.Resources = lifecycle.Merge(spec.Resources, s.Resources)
		if len(spec.Entrypoint) == 0 {
			spec.Entrypoint = s.Entrypoint
		}
	}
	if err := b.admit(&spec); err != nil {
		return daytona.Info{}, err
	}
	r := b.NewRecord(spec)
	if r.Image == "" && spec.Snapshot == "" {
		r.Image = b.opts.Image
	}
	err := b.Make(ctx, r, lifecycle.PhaseLive, func(ctx context.Context) error {
		return b.prepare(ctx, r, spec.Snapshot, spec.OnProgress)
	})
	if err != nil {
		return daytona.Info{}, err
	}
	return r.Info, nil
}

// admit refuses what this backend cannot do or enforce, and fills in defaults.
func (b *backend) admit(spec *daytona.Spec) error {
	refuse := func(field string, value any, why string) error {
		return &daytona.Error{Kind: daytona.KindUnsupported, Op: lifecycle.CreateOp, Field: field, Value: value, Message: why}
	}
	r := &spec.Resources
	switch {
	case spec.Image == daytona.ImageHost:
		return refuse("Image", spec.Image, "a container has an image of its own; name one")
	case slices.ContainsFunc(spec.Volumes, func(v daytona.VolumeMount) bool { return ours(v.MountPath) }):
		return &daytona.Error{Kind: daytona.KindInvalid, Op: lifecycle.CreateOp, Field: "Volumes", Value: spec.Volumes,
			Message: agentDir + " and " + sharedDir + " are the agent's"}
	case !b.mounts && slices.ContainsFunc(spec.Volumes, func(v daytona.VolumeMount) bool { return v.Subpath != "" }):
		return refuse("Volumes.Subpath", spec.Volumes, "the engine must see what this process mounts: it must be on this machine, reached through a Unix socket, and this process root")
	case spec.Network.AllowDomains != nil:
		return refuse("Network.AllowDomains", spec.Network.AllowDomains, "the docker backend cannot filter by host name; use Network.Allow")
	}
	if err := b.admitResources(lifecycle.CreateOp, *r); err != nil {
		return err
	}
	if _, err := lifecycle.PolicyOf(spec.Network); err != nil {
		return &daytona.Error{Kind: daytona.KindInvalid, Op: lifecycle.CreateOp, Field: "Network.Allow", Value: spec.Network.Allow, Err: err}
	}
	if r.Processes == 0 {
		r.Processes = lifecycle.DefaultProcesses
	}
	return nil
}

// admitResources refuses limits that the engine cannot enforce.
func (b *backend) admitResources(op string, r daytona.Resources) error {
	refuse := func(field string, value any, why string) error {
		return &daytona.Error{Kind: daytona.KindUnsupported, Op: op, Field: field, Value: value, Message: why}
	}
	const noCgroup = "the engine cannot limit it: its machine lacks the cgroup controller"
	switch {
	case r.GPU != 0:
		return refuse("Resources.GPU", r.GPU, "the docker backend gives no access to GPUs")
	case r.Disk != 0 && b.can.storage != diskDriver:
		return refuseDisk(r.Disk, fmt.Sprintf("its storage driver is %q, and only %q has limits that hold", b.can.storage, diskDriver))
	case r.Disk != 0 && b.noDisk.Load() != nil:
		return refuseDisk(r.Disk, *b.noDisk.Load())
	case r.DiskBandwidth != 0:
		return refuse("Resources.DiskBandwidth", r.DiskBandwidth, "the docker backend does not know the engine's disk")
	case r.CPU != 0 && !b.can.cpu:
		return refuse("Resources.CPU", r.CPU, noCgroup)
	case r.Memory != 0 && !b.can.memory:
		return refuse("Resources.Memory", r.Memory, noCgroup)
	case !b.can.processes:
		return refuse("Resources.Processes", r.Processes, noCgroup)
	}
	return nil
}

// ours reports whether a place in a container is the agent's.
func ours(path string) bool {
	return slices.ContainsFunc([]string{agentDir, sharedDir}, func(dir string) bool {
		return path == dir || strings.HasPrefix(path, dir+"/") || strings.HasPrefix(dir, path+"/")
	})
}

// diskDriver is the storage driver that can limit a container's disk, on an XFS
// with project quotas; whether this one does, the engine says when it is to make
// such a container. (That of btrfs takes a limit too, but sandboxes have been
// seen to write several times as much.)
const diskDriver = "overlay2"

func refuseDisk(disk float64, why string) error {
	return &daytona.Error{Kind: daytona.KindUnsupported, Op: lifecycle.CreateOp, Field: "Resources.Disk", Value: disk,
		Message: "the engine cannot limit it: " + why}
}

var errNoContainer = fmt.Errorf("there is no such container: %w", fs.ErrNotExist)
