//go:build linux

package containerd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/image"
	"github.com/daytona-go/daytona/internal/boot"
	"github.com/daytona-go/daytona/internal/lifecycle"
	"github.com/daytona-go/daytona/internal/network"
	"github.com/daytona-go/daytona/internal/seccomp"
	"github.com/daytona-go/daytona/toolbox/wire"
)

// What bears these labels is ours.
const (
	stateLabel   = "io.github.daytona-go.state"   // the state directory's tag
	sandboxLabel = "io.github.daytona-go.sandbox" // the sandbox's id
)

// The places in a container. The directory is a small tmpfs that only root can
// enter.
const (
	agentDir   = "/.daytona"
	agentFile  = agentDir + "/agent"
	configFile = agentDir + "/config.json"
	socketFile = agentDir + "/agent.sock"
)

// record is what is kept of a sandbox.
type record = lifecycle.Record[own]

// own is what this backend keeps of a sandbox.
type own struct {
	// The first process, as the host sees it: the agent, or what stands for a
	// virtual machine.
	lifecycle.ProcessID
	// Task says that containerd may have a task.
	Task bool `json:"task,omitempty"`
	// Image is the name that containerd has the image under, Digest what it
	// stood for; Config is how it wants to be run.
	Image  string       `json:"image"`
	Digest string       `json:"digest"`
	Config image.Config `json:"config"`
	// Snapshotter has the files, and Transport is how the agent is reached: as this
	// backend was told when the sandbox was created.
	Snapshotter string `json:"snapshotter"`
	Transport   string `json:"transport"`
	// AddUser says that the default user is to be added to the image's.
	AddUser bool `json:"addUser,omitempty"`
	// Offline says that it was started without a network interface.
	Offline bool `json:"offline,omitempty"`
}

// name is what a sandbox's container and snapshot are called, and found by.
func (b *backend) name(id string) string { return "daytona-" + b.Tag() + "-" + id }

// cgroup is the path of a sandbox's control groups in every hierarchy.
func (b *backend) cgroup(id string) string { return "/daytona-containerd/" + b.Tag() + "-" + id }

// limits are those that can be enforced.
type limits struct{ cpu, memory, processes bool }

// findLimits finds which cgroup controllers there are.
func findLimits() (limits, error) {
	has := map[string]bool{}
	if data, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers"); err == nil { // version 2
		for _, c := range strings.Fields(string(data)) {
			has[c] = true
		}
	} else {
		data, err := os.ReadFile("/proc/cgroups") // cgroups(7): name hierarchy count enabled
		if err != nil {
			return limits{}, fmt.Errorf("find cgroups: %w", err)
		}
		for line := range strings.Lines(string(data)) {
			if f := strings.Fields(line); len(f) == 4 && f[1] != "0" && f[3] == "1" {
				has[f[0]] = true
			}
		}
	}
	return limits{cpu: has["cpu"], memory: has["memory"], processes: has["pids"]}, nil
}

// shim is what runs tasks.
type shim struct {
	name    string
	options any
	// hidden says that a container's processes are not processes of the host.
	hidden bool
}

func findShim(name string) (shim, error) {
	switch name {
	case "", "runc":
		return shim{name: "io.containerd.runc.v2"}, nil
	case "crun":
		return shim{name: "io.containerd.runc.v2", options: &options.Options{BinaryName: "crun"}}, nil
	case "runsc":
		return shim{name: "io.containerd.runsc.v1", hidden: true}, nil
	case "kata":
		return shim{name: "io.containerd.kata.v2", hidden: true}, nil
	}
	if strings.Count(name, ".") < 2 || strings.HasPrefix(name, "io.containerd.runtime.v1.") {
		return shim{}, &daytona.Error{Kind: daytona.KindInvalid, Op: openOp, Field: "Runtime", Value: name,
			Message: `there are "runc", "crun", "runsc" and "kata", and names of shims such as "io.containerd.runc.v2"`}
	}
	return shim{name: name, hidden: !strings.HasPrefix(name, "io.containerd.runc.")}, nil
}

// driver is the backend as package lifecycle sees it.
type driver struct{ b *backend }

func (d driver) Boot(ctx context.Context, op string, r *record) (lifecycle.Proc[own], error) {
	p, err := d.b.boot(ctx, op, r)
	if err != nil {
		return nil, err
	}
	return p, nil
}

func (d driver) Running(r *record) bool { return r.Own.Running() }

func (d driver) Adopt(r *record) (lifecycle.Proc[own], error) {
	p, err := r.Own.Follow()
	if err != nil {
		return nil, err
	}
	return d.b.proc(r.ID, p), nil
}

func (d driver) Clear(r *record) error {
	ctx, cancel := context.WithTimeout(d.b.context(context.Background()), engineTimeout)
	defer cancel()
	running := r.Own.PID == 0 || r.Own.Running() // or nobody knows
	err := d.b.explain("end task", r.Name, d.b.clear(ctx, r))
	if errors.Is(err, daytona.ErrUnavailable) && !running && r.Phase != lifecycle.PhaseDeleting {
		// What is left of the task is only in the way of the next, which removes it.
		r.Own.ProcessID = lifecycle.ProcessID{}
		return nil
	}
	return err
}

func (d driver) Release(ctx context.Context, r *record) error {
	ctx, cancel := context.WithTimeout(d.b.context(ctx), engineTimeout)
	defer cancel()
	return d.b.explain(lifecycle.DeleteOp, r.Name, d.b.removeContainer(ctx, d.b.name(r.ID), r.Own.Snapshotter))
}

func (d driver) RemoveTree(dir string) error {
	if err := removePlaces(filepath.Join(dir, places)); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

func (d driver) Reap(exists func(id string) bool) {
	ctx, cancel := context.WithTimeout(d.b.context(context.Background()), engineTimeout)
	defer cancel()
	list, err := d.b.api.Containers(ctx, fmt.Sprintf("labels.%q==%s", stateLabel, d.b.Tag()))
	if err != nil {
		d.b.log.Warn("containers of sandboxes that are gone could not be looked for", "err", err)
		return
	}
	for _, c := range list {
		info, err := c.Info(ctx, client.WithoutRefreshedMetadata)
		if id := info.Labels[sandboxLabel]; err == nil && lifecycle.ValidID(id) && !exists(id) {
			_, err := d.b.removeTask(ctx, id)
			if err == nil {
				err = d.b.removeContainer(ctx, c.ID(), info.Snapshotter)
			}
			if err != nil {
				d.b.log.Warn("container of a sandbox that is gone could not be removed", "container", c.ID(), "err", err)
			}
		}
	}
	for _, id := range d.b.debris() {
		if !exists(id) {
			if err := d.b.removeDebris(id); err != nil {
				d.b.log.Warn("what containerd has left of a sandbox that is gone could not be removed", "sandbox", id, "err", err)
			}
		}
	}
}

func (d driver) Dial(ctx context.Context, id string) (net.Conn, error) { return d.b.dial(ctx, id) }

// engineTimeout bounds what is asked of containerd where nobody else bounds it.
const engineTimeout = time.Minute

// uncut is the context of a request whose outcome must be known: containerd may
// go on with one whose caller has gone, or leave it half done.
func (b *backend) uncut(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(b.context(context.WithoutCancel(ctx)), engineTimeout)
}

func isNotFound(err error) bool { return errdefs.IsNotFound(err) }

// settle is how long containerd may go on with a request whose caller was killed.
const settle = time.Second

// clear ends the sandbox's task, if there is one: it may be of a start that had
// not been written down yet, or have ended by itself.
func (b *backend) clear(ctx context.Context, r *record) error {
	if !r.Own.Task {
		return nil
	}
	found, err := b.removeTask(ctx, r.ID)
	if err == nil && !found {
		// Whoever started or removed it was killed at that. A start comes to its end
		// all the same, or containerd gives it up; what either leaves, containerd
		// forgets.
		for end := time.Now().Add(settle); err == nil && !found && r.Own.PID == 0 && time.Now().Before(end); {
			time.Sleep(50 * time.Millisecond)
			found, err = b.removeTask(ctx, r.ID)
		}
		if err == nil && !found {
			err = b.removeDebris(r.ID)
		}
	}
	if err != nil {
		return err
	}
	// An OCI runtime that is killed at its work leaves control groups.
	var groups []string
	for _, hierarchy := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		found, err := filepath.Glob(hierarchy + b.cgroup(r.ID))
		if err != nil {
			return err
		}
		groups = append(groups, found...)
	}
	if err := lifecycle.RemoveCgroups(groups...); err != nil {
		return err
	}
	r.Own.ProcessID, r.Own.Task = lifecycle.ProcessID{}, false
	return nil
}

// removeTask kills a sandbox's task and removes it, if there is one.
func (b *backend) removeTask(ctx context.Context, id string) (found bool, err error) {
	c, err := b.api.LoadContainer(ctx, b.name(id))
	if err != nil {
		return false, ignoreNotFound(err)
	}
	task, err := c.Task(ctx, nil)
	if err == nil {
		_, err = task.Delete(ctx, client.WithProcessKill)
	}
	if err == nil {
		return true, nil
	}
	if !isNotFound(err) {
		return false, err
	}
	// The shim has no task; but containerd may have the shim, if it was kept from
	// removing that after the task.
	_, err = b.api.TaskService().Delete(ctx, &tasks.DeleteTaskRequest{ContainerID: c.ID()})
	return err == nil, ignoreNotFound(errgrpc.ToNative(err))
}

func ignoreNotFound(err error) error {
	if isNotFound(err) {
		return nil
	}
	return err
}

// removeContainer removes a container without a task, and its snapshot.
func (b *backend) removeContainer(ctx context.Context, name, snapshotter string) error {
	if err := b.api.ContainerService().Delete(ctx, name); err != nil && !isNotFound(err) {
		return err
	}
	if snapshotter == "" {
		return nil // creation had not come that far
	}
	return ignoreNotFound(b.api.SnapshotService(snapshotter).Remove(ctx, name))
}

// proc is the first process of a task.
type proc struct {
	*lifecycle.Process
	b  *backend
	id string
}

func (b *backend) proc(id string, p *lifecycle.Process) *proc { return &proc{p, b, id} }

func (p *proc) Is(r *record) bool { return p.PID == r.Own.PID }

// Close lets go of the relay as well.
func (p *proc) Close() {
	p.b.relays.End(p.id, p.PID)
	p.Process.Close()
}

// bootTimeout is how long a container may take until its agent answers.
const bootTimeout = 2 * time.Minute

// boot makes the sandbox's container, if it is being created, and starts a task
// in it.
func (b *backend) boot(ctx context.Context, op string, r *record) (_ *proc, err error) {
	ctx, cancel := context.WithTimeoutCause(b.context(ctx), bootTimeout, &daytona.Error{Kind: daytona.KindTimeout, Op: op, Subject: r.Name,
		Message: "it did not start within " + bootTimeout.String()})
	defer cancel()
	defer func() {
		if err != nil && ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		err = b.explain(op, r.Name, err)
	}()
	ns, err := b.placeNetwork(ctx, r)
	if err != nil {
		return nil, err
	}
	defer ns.Close() // from its start on the task holds it
	if err := b.configure(r); err != nil {
		return nil, err
	}
	volumes, release, err := b.placeVolumes(ctx, r)
	if err != nil {
		return nil, err
	}
	defer release()
	spec, err := b.spec(ctx, r, ns, volumes)
	if err != nil {
		return nil, err
	}
	c, err := b.container(ctx, op, r, spec)
	if err != nil {
		return nil, err
	}
	if err := b.checkFiles(ctx, op, r); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			clean, cancel := b.uncut(ctx)
			defer cancel()
			if kerr := b.clear(clean, r); kerr != nil {
				b.log.Warn("task of a failed start could not be removed", "sandbox", r.ID, "err", kerr)
			}
		}
	}()
	p, err := b.startTask(ctx, c, r)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			p.Close()
		}
	}()
	if err := b.awaitSocket(ctx, r.ID, p); err != nil {
		return nil, err
	}
	if r.WorkDir, err = b.Greet(ctx, r.ID, p.Done()); err != nil {
		return nil, b.diagnose(ctx, r, p, err)
	}
	return p, nil
}

// container is the sandbox's container, with the spec of this start.
func (b *backend) container(ctx context.Context, op string, r *record, spec *oci.Spec) (client.Container, error) {
	uncut, cancel := b.uncut(ctx)
	defer cancel()
	name := b.name(r.ID)
	if op != lifecycle.CreateOp {
		c, err := b.api.LoadContainer(uncut, name)
		if isNotFound(err) {
			return nil, &daytona.Error{Kind: daytona.KindInternal, Op: op, Subject: r.Name,
				Message: "somebody has removed container " + name + ", and with it the sandbox's files; delete the sandbox"}
		}
		if err != nil {
			return nil, err
		}
		// What a start before has left, if containerd was not there to remove it.
		if err := b.clear(uncut, r); err != nil {
			return nil, err
		}
		return c, c.Update(uncut, func(_ context.Context, _ *client.Client, c *containers.Container) error {
			any, err := typeurl.MarshalAny(spec)
			c.Spec = any
			return err
		})
	}
	if err := b.Save(r, false); err != nil { // it says where the snapshot will be
		return nil, err
	}
	img, err := b.api.GetImage(uncut, r.Own.Image)
	if err != nil {
		return nil, err
	}
	c, err := b.api.NewContainer(uncut, name,
		client.WithImage(img),
		client.WithSnapshotter(r.Own.Snapshotter),
		client.WithNewSnapshot(name, img),
		client.WithRuntime(b.runtime.name, b.runtime.options),
		client.WithContainerLabels(map[string]string{stateLabel: b.Tag(), sandboxLabel: r.ID}),
		client.WithSpec(spec))
	if err != nil {
		return nil, err
	}
	return c, ctx.Err()
}

// startTask starts the agent.
func (b *backend) startTask(ctx context.Context, c client.Container, r *record) (*proc, error) {
	uncut, cancel := b.uncut(ctx)
	defer cancel()
	if err := os.Remove(b.File(r.ID, "agent.log")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	r.Own.ProcessID, r.Own.Task = lifecycle.ProcessID{}, true
	if err := b.Save(r, false); err != nil {
		return nil, err
	}
	task, err := c.NewTask(uncut, cio.LogFile(b.File(r.ID, "agent.log")))
	if err != nil {
		return nil, err
	}
	r.Own.ProcessID = lifecycle.ProcessIDOf(int(task.Pid()))
	b.learnBundles(r.ID, int(task.Pid()))
	if err := b.Save(r, false); err != nil {
		return nil, err
	}
	p, err := r.Own.Follow()
	if err != nil {
		return nil, fmt.Errorf("the task ended before it was started: %w", err)
	}
	if err := task.Start(uncut); err != nil {
		p.Close()
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		p.Close()
		return nil, err
	}
	return b.proc(r.ID, p), nil
}

// awaitSocket waits for the agent to listen.
func (b *backend) awaitSocket(ctx context.Context, id string, p *proc) error {
	for wait := time.Millisecond; ; wait = min(2*wait, 20*time.Millisecond) {
		if c, err := b.dial(ctx, id); err == nil {
			return c.Close()
		}
		select {
		case <-p.Done():
			return nil // Greet says why
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

// diagnose adds the last words of an agent that has ended at once.
func (b *backend) diagnose(ctx context.Context, r *record, p *proc, err error) error {
	select {
	case <-p.Done():
	default:
		return err
	}
	if c, lerr := b.api.LoadContainer(ctx, b.name(r.ID)); lerr == nil {
		if task, lerr := c.Task(ctx, nil); lerr == nil {
			if st, lerr := task.Status(ctx); lerr == nil && st.ExitStatus == wire.ContainerExitUser {
				return &daytona.Error{Kind: daytona.KindInvalid, Op: lifecycle.CreateOp, Field: "User", Value: r.User, Message: "the image has no such user or group"}
			}
		}
	}
	data, rerr := os.ReadFile(b.File(r.ID, "agent.log"))
	if rerr != nil {
		return fmt.Errorf("the agent ended at once: %w", err)
	}
	return fmt.Errorf("the agent ended at once: %s", strings.TrimSpace(string(data[max(0, len(data)-2048):])))
}

// placeNetwork makes the network namespace.
func (b *backend) placeNetwork(ctx context.Context, r *record) (*network.Namespace, error) {
	policy, err := lifecycle.PolicyOf(r.Network)
	if err != nil {
		return nil, err
	}
	r.Own.Offline = policy.Mode == network.None
	h, err := b.network(ctx)
	if err != nil {
		return nil, err
	}
	ns, err := h.Create(ctx, policy)
	if err != nil {
		return nil, fmt.Errorf("make the network: %w", err)
	}
	return ns, nil
}

// network opens the host's side of the network on first use.
func (b *backend) network(ctx context.Context) (*network.Host, error) {
	b.netOnce.Lock()
	defer b.netOnce.Unlock()
	if b.net == nil {
		h, err := network.OpenHost(ctx, &network.HostOptions{Ready: 1, Log: b.log})
		if err != nil {
			return nil, fmt.Errorf("set up the network: %w", err)
		}
		b.net = h
	}
	return b.net, nil
}

// SetNetworkPolicy implements daytona.NetworkPolicer.
func (b *backend) SetNetworkPolicy(ctx context.Context, id string, p daytona.NetworkPolicy) (daytona.Info, error) {
	return b.ChangePolicy(ctx, id, p, func(r *record) bool { return r.Own.Offline },
		func(r *record, p network.Policy) error { return b.applyPolicy(ctx, r, p) })
}

// applyPolicy puts a policy in force for a running sandbox.
func (b *backend) applyPolicy(ctx context.Context, r *record, policy network.Policy) error {
	h, err := b.network(ctx)
	if err != nil {
		return err
	}
	ns, err := h.OpenProcess(ctx, r.Own.PID)
	if err != nil {
		return fmt.Errorf("open the sandbox's network: %w", err)
	}
	defer ns.Close()
	return ns.SetPolicy(ctx, policy)
}

// configure writes what the container's first process is to read.
func (b *backend) configure(r *record) error {
	policy, err := lifecycle.PolicyOf(r.Network)
	if err != nil {
		return err
	}
	host := r.ID[:12]
	resolvConf := ""
	if b.net != nil {
		resolvConf = b.net.ResolvConf(policy)
	}
	config := wire.ContainerConfig{
		Agent: wire.AgentConfig{
			SandboxID: r.ID, User: r.User, WorkDir: r.WorkDir, Env: lifecycle.Environment(r.Own.Config, r.Env),
			Entrypoint: r.Entrypoint, IdleTimeout: r.AutoStop, IgnoreSignals: true,
		},
		AddUser: lifecycle.UserToAdd(r.User, r.Own.AddUser),
		Files: map[string]string{
			"/etc/hostname":    host + "\n",
			"/etc/hosts":       "127.0.0.1\tlocalhost " + host + "\n::1\tlocalhost ip6-localhost ip6-loopback\n",
			"/etc/resolv.conf": resolvConf,
		},
	}
	if r.TTL > 0 {
		config.Agent.TTL = max(time.Until(r.CreatedAt.Add(r.TTL)), time.Millisecond)
	}
	data, err := json.Marshal(config)
	if err != nil {
		return err
	}
	return os.WriteFile(b.File(r.ID, "config.json"), data, 0o600)
}

// spec is the runtime spec of a start.
func (b *backend) spec(ctx context.Context, r *record, ns *network.Namespace, volumes []specs.Mount) (*oci.Spec, error) {
	filter, err := seccomp.Profile(lifecycle.ContainerCapabilities())
	if err != nil {
		return nil, err
	}
	var nofile syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &nofile); err != nil {
		return nil, err
	}
	files := min(nofile.Max, 65536)
	opts := []oci.SpecOpts{
		oci.WithDefaultUnixDevices,
		oci.WithProcessArgs(agentFile, "container", "--config", configFile, "--listen", "unix://"+socketFile),
		oci.WithEnv([]string{"PATH=" + lifecycle.DefaultPath}),
		oci.WithHostname(r.ID[:12]),
		oci.WithUIDGID(0, 0),
		oci.WithCapabilities(lifecycle.ContainerCapabilities()),
		oci.WithNoNewPrivileges,
		oci.WithMaskedPaths(slices.Concat(boot.MaskedPaths(), []string{"/sys/firmware", "/sys/devices/virtual/powercap"})),
		oci.WithReadonlyPaths(boot.ReadOnlyPaths()),
		oci.WithRlimit(&specs.POSIXRlimit{Type: "RLIMIT_NOFILE", Soft: files, Hard: files}),
		oci.WithRlimit(&specs.POSIXRlimit{Type: "RLIMIT_CORE"}),
		oci.WithLinuxNamespace(specs.LinuxNamespace{Type: specs.NetworkNamespace,
			Path: "/proc/" + strconv.Itoa(os.Getpid()) + "/fd/" + strconv.Itoa(int(ns.File().Fd()))}),
		oci.WithLinuxNamespace(specs.LinuxNamespace{Type: specs.CgroupNamespace}),
		// What is in /run is the image's, and stays when the sandbox is stopped.
		oci.WithoutRunMount,
		oci.WithMounts([]specs.Mount{
			{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
			{Destination: agentDir, Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "nodev", "mode=0700", "size=1m"}},
			{Destination: agentFile, Type: "bind", Source: b.agent, Options: []string{"bind", "ro", "nosuid", "nodev"}},
			{Destination: configFile, Type: "bind", Source: b.File(r.ID, "config.json"), Options: []string{"bind", "ro", "nosuid", "nodev", "noexec"}},
		}),
		oci.WithMounts(volumes),
		oci.WithCgroup(b.cgroup(r.ID)),
		oci.WithPidsLimit(int64(r.Resources.Processes)),
		func(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
			s.Version = "1.0.2" // nothing here is newer, and some runtimes refuse what they do not know
			s.Linux.Seccomp = filter
			s.Process.OOMScoreAdj = new(500)
			return nil
		},
	}
	if m := r.Resources.MemoryBytes(); m > 0 {
		opts = append(opts, oci.WithMemoryLimit(uint64(m)), oci.WithMemorySwap(m))
	}
	if cpu := r.Resources.CPU; cpu > 0 {
		const period = 100_000 // microseconds, the kernel's default
		opts = append(opts, oci.WithCPUCFS(int64(cpu*period), period))
	}
	return oci.GenerateSpec(ctx, b.api, &containers.Container{ID: b.name(r.ID)}, opts...)
}

// explain turns an error of containerd into one of the library.
func (b *backend) explain(op, subject string, err error) error {
	return lifecycle.EngineError("containerd", errdefs.IsUnavailable(err), op, subject, err)
}
