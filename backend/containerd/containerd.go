//go:build linux

// Package containerd runs sandboxes as containers of a containerd. Importing it
// registers the URL scheme "containerd":
//
//	import _ "github.com/daytona-go/daytona/backend/containerd"
//
//	client, err := daytona.Open(ctx, "containerd://?image=docker.io/library/debian:12")
//
// containerd 1.6 or newer must run on this machine, and this process be root.
// It needs no CNI plugins: the network is the local engine's.
//
// # What a sandbox is
//
// A container whose only task is the agent, on a snapshot of its image. It has
// no privileges: root inside has the few capabilities that root of an ordinary
// container needs, no_new_privs is set, system calls are filtered, and programs
// run as the user "daytona" unless the spec or the image says otherwise. Its
// network namespace is made by package network, with the policy in force before
// it has an interface; the policy can be changed while it runs.
//
// The agent is reached through a Unix socket in the container's own file system,
// by way of its /proc/PID/root: nothing of the host is shared with it but the
// agent's binary and a file with its configuration, both read-only. With runtimes
// whose processes the host does not see (gVisor, Kata Containers) that is not
// possible, and the agent is reached through an exec of the container.
//
// Stopping a sandbox ends its task and keeps its snapshot.
//
// # Where things are
//
// Everything is in a containerd namespace of its own ("daytona"), with labels
// that name the state directory (/var/lib/daytona-containerd, or the path of the
// URL); what bears none is never touched. The directory has a record of each
// sandbox, as package lifecycle keeps them: processes that were killed leave
// nothing that the next one does not find and finish. Tasks do not need the
// containerd daemon to go on, nor does this package to run programs in them.
//
// The package knows nothing of servers and of other backends.
package containerd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/pkg/identifiers"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/google/go-containerregistry/pkg/authn"
	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/agentbin"
	"github.com/daytona-go/daytona/internal/lifecycle"
	"github.com/daytona-go/daytona/internal/link"
	"github.com/daytona-go/daytona/internal/network"
)

func init() {
	daytona.Register("containerd", func(ctx context.Context, u *url.URL) (daytona.Backend, error) {
		opts, err := parseURL(u)
		if err != nil {
			return nil, err
		}
		opts.Logger = slog.Default()
		return New(ctx, opts)
	})
}

// Options say which containerd to use, and how.
type Options struct {
	// Address is the path of containerd's socket. Defaults to the variable
	// CONTAINERD_ADDRESS, or /run/containerd/containerd.sock.
	Address string
	// Namespace is the containerd namespace that all is kept in. Defaults to
	// "daytona".
	Namespace string
	// Dir is the state directory. Defaults to /var/lib/daytona-containerd.
	Dir string
	// Image is what sandboxes are made of whose spec names none. Defaults to
	// "docker.io/library/daytona-sandbox:latest".
	Image string
	// Snapshotter keeps the files. Defaults to "overlayfs".
	Snapshotter string
	// Runtime is the shim: "runc", "crun", "runsc" (gVisor), "kata", or a name as
	// containerd knows it, such as "io.containerd.runc.v2". Defaults to "runc".
	Runtime string
	// Transport is how agents are reached: "socket", through the file system of
	// their processes, or "exec", through an exec of the container. Defaults to
	// "socket" where the host sees those processes, which it does not with "runsc"
	// and "kata".
	Transport string
	// Keychain finds the credentials for a registry. Defaults to
	// authn.DefaultKeychain, which reads the configuration of Docker and Podman
	// of the current user and runs the credential helpers named there. A service
	// must set it, if only to authn.NewMultiKeychain().
	Keychain authn.Keychain
	// Agent is the path of the agent's binary. Defaults to the variable
	// DAYTONA_AGENT; else the one embedded in a release build, the one beside
	// the executable, the one on PATH, or one built with the local Go toolchain
	// into the user's cache directory.
	Agent string
	// Logger gets what goes on. Defaults to discarding it.
	Logger *slog.Logger
}

// parseURL reads containerd:///state/directory?image=…&address=….
func parseURL(u *url.URL) (*Options, error) {
	bad := func(field, value, rule string) error {
		return &daytona.Error{Kind: daytona.KindInvalid, Op: "open backend", Subject: u.String(), Field: field, Value: value, Message: rule}
	}
	if u.Host != "" || u.Opaque != "" {
		return nil, bad("host", u.Host+u.Opaque, "write containerd:// or containerd:///state/directory; the socket's path is the parameter address")
	}
	o := &Options{Dir: u.Path}
	fields := map[string]*string{
		"address": &o.Address, "agent": &o.Agent, "image": &o.Image, "namespace": &o.Namespace,
		"runtime": &o.Runtime, "snapshotter": &o.Snapshotter, "transport": &o.Transport,
	}
	for k, v := range u.Query() {
		f := fields[k]
		if f == nil {
			return nil, bad(k, v[0], `unknown parameter; there are "address", "agent", "image", "namespace", "runtime", "snapshotter" and "transport"`)
		}
		*f = v[0]
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

const openOp = "open containerd"

// keeper has the methods of daytona.Backend and daytona.Updater.
type keeper = lifecycle.Keeper[own]

// backend implements daytona.Backend and the optional Updater, NetworkPolicer and
// VolumeManager.
type backend struct {
	*keeper
	lifecycle.Volumes[own]
	opts    Options
	log     *slog.Logger
	api     *client.Client
	runtime shim
	agent   string // the agent's binary, on the host
	can     limits
	relays  link.Sessions

	netOnce sync.Mutex
	net     *network.Host
}

// New opens the backend. A containerd that cannot be reached gives
// KindUnavailable with the reason.
func New(ctx context.Context, opts *Options) (_ daytona.Backend, err error) {
	b := &backend{}
	b.relays.Start = b.startRelay
	if opts != nil {
		b.opts = *opts
	}
	if b.log = b.opts.Logger; b.log == nil {
		b.log = slog.New(slog.DiscardHandler)
	}
	o := &b.opts
	for _, d := range []struct {
		field *string
		value string
	}{
		{&o.Address, os.Getenv("CONTAINERD_ADDRESS")}, {&o.Address, defaults.DefaultAddress},
		{&o.Namespace, "daytona"}, {&o.Dir, "/var/lib/daytona-containerd"},
		{&o.Image, "docker.io/library/daytona-sandbox:latest"}, {&o.Snapshotter, defaults.DefaultSnapshotter},
	} {
		if *d.field == "" {
			*d.field = d.value
		}
	}
	if o.Keychain == nil {
		o.Keychain = authn.DefaultKeychain
	}
	fail := func(kind daytona.Kind, subject, message string, err error) error {
		return &daytona.Error{Kind: kind, Op: openOp, Subject: subject, Message: message, Err: err}
	}
	if os.Geteuid() != 0 {
		return nil, fail(daytona.KindUnsupported, "", "containerd serves root, which this process is not", nil)
	}
	if err := identifiers.Validate(o.Namespace); err != nil {
		return nil, &daytona.Error{Kind: daytona.KindInvalid, Op: openOp, Field: "Namespace", Value: o.Namespace, Err: err}
	}
	if b.runtime, err = findShim(o.Runtime); err != nil {
		return nil, err
	}
	switch {
	case o.Transport == "":
		o.Transport = viaSocket
		if b.runtime.hidden {
			o.Transport = viaExec
		}
	case o.Transport != viaSocket && o.Transport != viaExec, o.Transport == viaSocket && b.runtime.hidden:
		return nil, &daytona.Error{Kind: daytona.KindInvalid, Op: openOp, Field: "Transport", Value: o.Transport,
			Message: `there are "socket", for runtimes whose processes the host sees, and "exec", for all`}
	}
	if b.can, err = findLimits(); err != nil {
		return nil, fail(daytona.KindUnavailable, "", "", err)
	}
	o.Address = strings.TrimPrefix(o.Address, "unix://")
	b.api, err = client.New(o.Address, client.WithDefaultNamespace(o.Namespace), client.WithTimeout(10*time.Second),
		client.WithExtraDialOpts([]grpc.DialOption{grpc.WithChainUnaryInterceptor(reconnect)}))
	if err != nil {
		return nil, fail(daytona.KindUnavailable, o.Address, "reach containerd; does it run?", err)
	}
	defer func() {
		if err != nil {
			b.api.Close()
		}
	}()
	if err := b.probe(ctx); err != nil {
		return nil, err
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, fail(daytona.KindInvalid, o.Dir, "", err)
	}
	if b.keeper, err = lifecycle.New[own](lifecycle.Options{Name: "containerd", Dir: dir, Dirs: []string{"agent", "volumes"}, Log: b.log}); err != nil {
		return nil, fail(daytona.KindUnavailable, dir, "make its state directory", err)
	}
	b.Volumes.Keeper = b.keeper
	defer func() {
		if err != nil {
			b.keeper.Free()
		}
	}()
	if err := b.loadAgent(ctx); err != nil {
		return nil, fail(daytona.KindUnavailable, "", "", err)
	}
	if err := b.keeper.Open(ctx, driver{b}); err != nil {
		return nil, fail(daytona.KindUnavailable, dir, "recover what earlier processes left", err)
	}
	if err := b.collect(b.context(ctx)); err != nil {
		b.log.Warn("imported images that nobody uses could not be removed", "err", err)
	}
	return b, nil
}

// reconnect has a request wait a moment for a containerd that has just come back:
// a connection that was refused once is tried again only later and later.
func reconnect(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	soon, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	if cc.GetState() == connectivity.TransientFailure {
		cc.ResetConnectBackoff()
		for s := cc.GetState(); s != connectivity.Ready && cc.WaitForStateChange(soon, s); s = cc.GetState() {
		}
	}
	return invoke(ctx, method, req, reply, cc, opts...)
}

// probe asks containerd whether it is one that serves.
func (b *backend) probe(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if _, err := b.api.Version(ctx); err != nil {
		return &daytona.Error{Kind: daytona.KindUnavailable, Op: openOp, Subject: b.opts.Address, Message: "ask containerd; does it run?", Err: err}
	}
	plugins, err := b.api.IntrospectionService().Plugins(ctx, "type==io.containerd.snapshotter.v1,id=="+strconv.Quote(b.opts.Snapshotter))
	if err != nil {
		return &daytona.Error{Kind: daytona.KindUnavailable, Op: openOp, Subject: b.opts.Address, Message: "ask containerd for its snapshotters", Err: err}
	}
	bad := &daytona.Error{Kind: daytona.KindInvalid, Op: openOp, Field: "Snapshotter", Value: b.opts.Snapshotter, Message: "containerd has no such snapshotter"}
	if len(plugins.Plugins) == 0 {
		return bad
	}
	if p := plugins.Plugins[0]; p.InitErr != nil {
		bad.Message = "containerd cannot use it: " + p.InitErr.Message
		return bad
	}
	return nil
}

// context is ctx with the containerd namespace.
func (b *backend) context(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, b.opts.Namespace)
}

// loadAgent finds the agent and copies it to where containers mount it from: a
// file that is there stays as it is, whatever becomes of the original.
func (b *backend) loadAgent(ctx context.Context) error {
	path, err := agentbin.FindAgent(ctx, b.opts.Agent, agentbin.CacheDir(b.Root))
	if err != nil {
		return err
	}
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
	if b.net != nil {
		b.net.Close()
	}
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
	if err := b.admit(&spec); err != nil {
		return daytona.Info{}, err
	}
	r := b.NewRecord(spec)
	if r.Image == "" {
		r.Image = b.opts.Image
	}
	err := b.Make(ctx, r, lifecycle.PhaseLive, func(ctx context.Context) error { return b.prepare(ctx, r, spec.OnProgress) })
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
	const noCgroup = "this machine has no cgroup controller for it"
	switch {
	case spec.Snapshot != "":
		return refuse("Snapshot", spec.Snapshot, "the containerd backend has no snapshots yet; use Image")
	case spec.Image == daytona.ImageHost:
		return refuse("Image", spec.Image, "a container has an image of its own; name one")
	case spec.AutoPause != 0:
		return refuse("AutoPause", spec.AutoPause, "the containerd backend cannot pause; use AutoStop")
	case spec.AutoArchive != 0:
		return refuse("AutoArchive", spec.AutoArchive, "the containerd backend cannot archive; use AutoDelete")
	case slices.ContainsFunc(spec.Volumes, func(v daytona.VolumeMount) bool {
		return v.MountPath == agentDir || strings.HasPrefix(v.MountPath, agentDir+"/")
	}):
		return &daytona.Error{Kind: daytona.KindInvalid, Op: lifecycle.CreateOp, Field: "Volumes", Value: spec.Volumes, Message: agentDir + " is the agent's"}
	case spec.Network.AllowDomains != nil:
		return refuse("Network.AllowDomains", spec.Network.AllowDomains, "the containerd backend cannot filter by host name; use Network.Allow")
	case r.GPU != 0:
		return refuse("Resources.GPU", r.GPU, "the containerd backend gives no access to GPUs")
	case r.Disk != 0:
		return refuse("Resources.Disk", r.Disk, "the snapshotter "+b.opts.Snapshotter+" gives containers no limit of their own")
	case r.DiskBandwidth != 0:
		return refuse("Resources.DiskBandwidth", r.DiskBandwidth, "the containerd backend does not know the snapshotter's disk")
	case r.CPU != 0 && !b.can.cpu:
		return refuse("Resources.CPU", r.CPU, noCgroup)
	case r.Memory != 0 && !b.can.memory:
		return refuse("Resources.Memory", r.Memory, noCgroup)
	case !b.can.processes:
		return refuse("Resources.Processes", r.Processes, noCgroup)
	}
	if _, err := lifecycle.PolicyOf(spec.Network); err != nil {
		return &daytona.Error{Kind: daytona.KindInvalid, Op: lifecycle.CreateOp, Field: "Network.Allow", Value: spec.Network.Allow, Err: err}
	}
	if r.Processes == 0 {
		r.Processes = lifecycle.DefaultProcesses
	}
	return nil
}

var _ interface {
	daytona.Backend
	daytona.Updater
	daytona.NetworkPolicer
	daytona.VolumeManager
} = (*backend)(nil)
