//go:build linux

package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	apinetwork "github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/image"
	"github.com/daytona-go/daytona/internal/boot"
	"github.com/daytona-go/daytona/internal/failpoint"
	"github.com/daytona-go/daytona/internal/lifecycle"
	"github.com/daytona-go/daytona/internal/link"
	"github.com/daytona-go/daytona/internal/network"
	"github.com/daytona-go/daytona/internal/seccomp"
	"github.com/daytona-go/daytona/toolbox/wire"
)

// What bears these labels is ours.
const (
	stateLabel   = "io.github.daytona-go.state"     // the state directory's tag
	dirLabel     = "io.github.daytona-go.directory" // its path, for people
	sandboxLabel = "io.github.daytona-go.sandbox"   // the sandbox's id
)

// labels are those of a sandbox's container.
func (b *backend) labels(id string) map[string]string {
	return map[string]string{stateLabel: b.tag, dirLabel: b.Root, sandboxLabel: id}
}

// The places in a container.
const (
	shared     = "run" // in the sandbox's directory: what the container sees as sharedDir, with transport "socket"
	sharedDir  = "/run/daytona"
	socketName = "agent.sock"
	agentDir   = "/.daytona"
	agentFile  = agentDir + "/daytona-agent"
)

// networkName is that of the bridge that sandboxes are on.
const networkName = "daytona"

// record is what is kept of a sandbox.
type record = lifecycle.Record[own]

// own is what this backend keeps of a sandbox.
type own struct {
	// Image is the id of the image, which is not what its name says any more
	// when it is pulled anew; Config is how it wants to be run.
	Image  string       `json:"image"`
	Config image.Config `json:"config"`
	// Kept says that Image has the sandbox's own files; see replace.
	Kept bool `json:"kept,omitempty"`
	// AddUser says that the default user is to be added to the image's.
	AddUser bool `json:"addUser,omitempty"`
	// StartedAt is the container's last start, in the engine's words: it tells a
	// run from the ones before and after.
	StartedAt string `json:"startedAt,omitempty"`
	// Transport is how the agent is reached; the container is made for it.
	Transport string `json:"transport,omitempty"`
	// Key and Port are of the present run, with transport "port".
	Key  string `json:"key,omitempty"`
	Port uint16 `json:"port,omitempty"`
	// Volumes are the ids of the volumes of the spec, in its order.
	Volumes []string `json:"volumes,omitempty"`
	// Files is the name of Image where that is of this package's making and
	// perhaps others'; Pending is that of one which is being made.
	Files   string `json:"files,omitempty"`
	Pending string `json:"pending,omitempty"`
	// Build is set for a step of a build: the configuration of its image.
	Build *dockerspec.DockerOCIImageConfig `json:"build,omitempty"`
}

// containerName is what a sandbox's container is called, and found by.
func (b *backend) containerName(id string) string { return "daytona-" + b.tag + "-" + id }

// driver is the backend as package lifecycle sees it.
type driver struct{ b *backend }

func (d driver) Boot(ctx context.Context, op string, r *record) (lifecycle.Proc[own], error) {
	p, err := d.b.boot(ctx, op, r)
	if err != nil {
		return nil, err
	}
	return p, nil
}

func (d driver) Running(r *record) bool {
	ctx, cancel := context.WithTimeout(context.Background(), engineTimeout)
	defer cancel()
	state, err := d.b.state(ctx, r.ID)
	if err != nil {
		// An engine that does not answer says nothing about its containers.
		return !errors.Is(err, errNoContainer) && r.Own.StartedAt != ""
	}
	return state.Running && state.StartedAt == r.Own.StartedAt
}

func (d driver) Adopt(r *record) (lifecycle.Proc[own], error) { return d.b.watch(r), nil }

// Clear kills a container whose start had not been written down yet.
func (d driver) Clear(r *record) error {
	ctx, cancel := context.WithTimeout(context.Background(), engineTimeout)
	defer cancel()
	state, err := d.b.state(ctx, r.ID)
	if err == nil && state.Running {
		err = d.b.kill(ctx, r.ID)
	}
	if err != nil && !errors.Is(err, errNoContainer) {
		return d.b.explain(lifecycle.StopOp, r.Name, err)
	}
	r.Own.StartedAt, r.Own.Key, r.Own.Port = "", "", 0
	return nil
}

func (d driver) Release(ctx context.Context, r *record) error {
	ctx, cancel := context.WithTimeout(ctx, engineTimeout)
	defer cancel()
	err := d.b.removeContainer(ctx, d.b.containerName(r.ID))
	failpoint.Kill("docker/delete/container-removed")
	if err == nil {
		err = d.Forget(ctx, r)
	}
	if err == nil && (r.Own.Files != "" || r.Own.Pending != "") {
		err = d.b.collectFiles(ctx)
	}
	if err == nil && r.Own.Kept {
		if _, err = d.b.api.ImageRemove(ctx, keptName+":"+r.ID, client.ImageRemoveOptions{PruneChildren: true}); errdefs.IsNotFound(err) {
			err = nil
		}
	}
	return d.b.explain(lifecycle.DeleteOp, r.Name, err)
}

func (d driver) RemoveTree(dir string) error {
	unmountAll(filepath.Join(dir, places)) // of a start that was killed
	return image.RemoveAll(dir)
}

func (d driver) Reap(exists func(id string) bool) {
	ctx, cancel := context.WithTimeout(context.Background(), engineTimeout)
	defer cancel()
	list, err := d.b.api.ContainerList(ctx, client.ContainerListOptions{All: true, Filters: make(client.Filters).Add("label", stateLabel+"="+d.b.tag)})
	if err != nil {
		d.b.log.Warn("containers of sandboxes that are gone could not be looked for", "err", err)
		return
	}
	for _, c := range list.Items {
		if id := c.Labels[sandboxLabel]; lifecycle.ValidID(id) && !exists(id) {
			if err := d.b.removeContainer(ctx, c.ID); err != nil {
				d.b.log.Warn("container of a sandbox that is gone could not be removed", "container", c.ID, "err", err)
			}
		}
	}
	err = d.b.RecoverSnapshots(ctx)
	if err == nil {
		err = d.b.collectFiles(ctx)
	}
	if err != nil {
		d.b.log.Warn("images that are gone could not be removed", "err", err)
	}
	if err := d.b.reapVolumes(ctx); err != nil {
		d.b.log.Warn("what is left of volumes that are gone could not be removed", "err", err)
	}
}

func (d driver) Dial(ctx context.Context, id string) (net.Conn, error) { return d.b.dial(ctx, id) }

// engineTimeout bounds what is asked of the engine where nobody else bounds it.
const engineTimeout = time.Minute

// state asks for the state of a sandbox's container; errNoContainer if there is
// none.
func (b *backend) state(ctx context.Context, id string) (*container.State, error) {
	r, err := b.api.ContainerInspect(ctx, b.containerName(id), client.ContainerInspectOptions{})
	if errdefs.IsNotFound(err) {
		return nil, errNoContainer
	}
	if err != nil {
		return nil, err
	}
	if r.Container.State == nil {
		return nil, errors.New("the engine says nothing of the container's state")
	}
	return r.Container.State, nil
}

func (b *backend) kill(ctx context.Context, id string) error {
	// Some engines do not kill what is paused.
	if state, err := b.state(ctx, id); err == nil && state.Paused {
		_, _ = b.api.ContainerUnpause(ctx, b.containerName(id), client.ContainerUnpauseOptions{})
	}
	_, err := b.api.ContainerKill(ctx, b.containerName(id), client.ContainerKillOptions{Signal: "KILL"})
	if errdefs.IsNotFound(err) || errdefs.IsConflict(err) { // not there, or not running
		return nil
	}
	return err
}

func (b *backend) removeContainer(ctx context.Context, name string) error {
	for {
		_, err := b.api.ContainerRemove(ctx, name, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true})
		switch {
		case err == nil, errdefs.IsNotFound(err):
			return nil
		case !errdefs.IsConflict(err):
			return err
		}
		// Somebody else is removing it.
		select {
		case <-ctx.Done():
			return err
		case <-time.After(20 * time.Millisecond):
		}
		if _, err := b.api.ContainerInspect(ctx, name, client.ContainerInspectOptions{}); errdefs.IsNotFound(err) {
			return nil
		}
	}
}

// proc is one run of a container.
type proc struct {
	b         *backend
	id        string
	startedAt string
	done      chan struct{}
	cancel    context.CancelFunc
}

// watch follows a run to its end, also over restarts of the engine.
func (b *backend) watch(r *record) *proc {
	ctx, cancel := context.WithCancel(context.Background())
	p := &proc{b: b, id: r.ID, startedAt: r.Own.StartedAt, done: make(chan struct{}), cancel: cancel}
	go func() {
		for ctx.Err() == nil {
			wait := b.api.ContainerWait(ctx, b.containerName(p.id), client.ContainerWaitOptions{Condition: container.WaitConditionNotRunning})
			select {
			case <-wait.Result:
			case <-wait.Error:
			}
			state, err := b.state(ctx, p.id)
			if errors.Is(err, errNoContainer) || err == nil && (!state.Running || state.StartedAt != p.startedAt) {
				close(p.done)
				return
			}
			select {
			case <-ctx.Done():
			case <-time.After(200 * time.Millisecond):
			}
		}
	}()
	return p
}

func (p *proc) Done() <-chan struct{} { return p.done }
func (p *proc) Is(r *record) bool     { return p.startedAt == r.Own.StartedAt }

func (p *proc) Close() {
	p.cancel()
	p.b.relays.End(p.id, p.startedAt)
}

func (p *proc) Kill() {
	ctx, cancel := context.WithTimeout(context.Background(), engineTimeout)
	defer cancel()
	if err := p.b.kill(ctx, p.id); err != nil {
		p.b.log.Error("container could not be killed", "sandbox", p.id, "err", err)
		return
	}
	select {
	case <-p.done:
	case <-ctx.Done():
		p.b.log.Error("container does not end", "sandbox", p.id)
	}
}

// bootTimeout is how long a container may take until its agent answers.
const bootTimeout = 2 * time.Minute

// boot makes the sandbox's container, if there is none, and starts it.
func (b *backend) boot(ctx context.Context, op string, r *record) (_ *proc, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, bootTimeout, &daytona.Error{Kind: daytona.KindTimeout, Op: op, Subject: r.Name,
		Message: "it did not start within " + bootTimeout.String()})
	defer cancel()
	defer func() {
		if err != nil && ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		if u, ok := errors.AsType[*unreached](err); ok {
			err = &daytona.Error{Kind: daytona.KindUnavailable, Op: op, Subject: r.Name, Field: "Transport", Value: u.way,
				Message: "the agent runs, but is not reached this way; leave the choice to the backend, or give \"exec\"", Err: u.err}
		}
		err = b.explain(op, r.Name, err)
	}()
	state, err := b.state(ctx, r.ID)
	if err == nil {
		if state.Running {
			// A start that nobody knows the outcome of.
			if err := b.kill(ctx, r.ID); err != nil {
				return nil, err
			}
		}
		return b.run(ctx, op, r)
	}
	if !errors.Is(err, errNoContainer) {
		return nil, err
	}
	for ways := b.ways(r); ; ways = ways[1:] {
		r.Own.Transport = ways[0]
		p, err := b.makeAndRun(ctx, op, r)
		if err == nil {
			b.foundWay(ways[0], r)
			return p, nil
		}
		u, ok := errors.AsType[*unreached](err)
		if !ok || len(ways) == 1 {
			return nil, err
		}
		b.log.Info("the agent is not reached this way", "transport", u.way, "err", u.err, "next", ways[1])
		if err := b.removeContainer(ctx, b.containerName(r.ID)); err != nil {
			return nil, err
		}
	}
}

func (b *backend) makeAndRun(ctx context.Context, op string, r *record) (*proc, error) {
	if err := b.createContainer(ctx, r); err != nil {
		return nil, err
	}
	return b.run(ctx, op, r)
}

// run starts the sandbox's container and waits for its agent.
func (b *backend) run(ctx context.Context, op string, r *record) (_ *proc, err error) {
	if err := b.checkFiles(ctx, op, r); err != nil {
		return nil, err
	}
	if r.Fresh {
		if err := b.refresh(ctx, r); err != nil {
			return nil, err
		}
	}
	if err := failpoint.Fail("docker/boot/made"); err != nil {
		return nil, err
	}
	config, err := b.configure(r)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), engineTimeout)
			defer cancel()
			if kerr := b.kill(clean, r.ID); kerr != nil {
				b.log.Warn("container of a failed start could not be killed", "sandbox", r.ID, "err", kerr)
			}
		}
	}()
	clear, err := b.fillPlaces(ctx, r)
	if err != nil {
		return nil, err
	}
	defer clear()
	failpoint.Kill("docker/boot/places-filled")
	done, err := b.startContainer(ctx, r.ID, config)
	if err != nil && haunted(err) {
		done()
		if err := b.replace(ctx, r); err != nil {
			return nil, err
		}
		done, err = b.startContainer(ctx, r.ID, config)
	}
	defer done()
	if err != nil {
		return nil, err
	}
	state, err := b.state(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	if err = failpoint.Fail("docker/boot/started"); err != nil {
		return nil, err
	}
	r.Own.StartedAt = state.StartedAt
	if r.Own.Transport == viaPort {
		if r.Own.Port, err = b.published(ctx, r.ID); err != nil {
			return nil, err
		}
	}
	if err := b.Save(r, false); err != nil {
		return nil, err
	}
	p := b.watch(r)
	defer func() {
		if err != nil {
			p.Close()
		}
	}()
	if err = failpoint.Fail("docker/boot/recorded"); err != nil {
		return nil, err
	}
	if err := b.awaitAgent(ctx, r, p); err != nil {
		return nil, err
	}
	if r.WorkDir, err = b.Greet(ctx, r.ID, p.done); err != nil {
		return nil, b.diagnose(ctx, r, p, err)
	}
	b.useVolumes(r)
	return p, nil
}

// diagnose adds the last words of an agent that has ended at once.
func (b *backend) diagnose(ctx context.Context, r *record, p *proc, err error) error {
	select {
	case <-p.done:
	default:
		return err
	}
	logs, lerr := b.api.ContainerLogs(ctx, b.containerName(r.ID), client.ContainerLogsOptions{ShowStderr: true, ShowStdout: true, Tail: "10"})
	if lerr != nil {
		return fmt.Errorf("the agent ended at once: %w", err)
	}
	defer logs.Close()
	text, _ := io.ReadAll(io.LimitReader(logs, 4<<10))
	if state, serr := b.state(ctx, r.ID); serr == nil && state.ExitCode == wire.ContainerExitUser {
		return &daytona.Error{Kind: daytona.KindInvalid, Op: lifecycle.CreateOp, Field: "User", Value: r.User, Message: "the image has no such user or group"}
	}
	return fmt.Errorf("the agent ended at once: %s", strings.TrimSpace(strings.Map(printable, string(text))))
}

// printable drops the frames of a log stream.
func printable(r rune) rune {
	if r < ' ' && r != '\n' {
		return -1
	}
	return r
}

// configure makes what the container's first process is to read, and what it
// needs on this machine.
func (b *backend) configure(r *record) ([]byte, error) {
	config := wire.ContainerConfig{
		Agent: wire.AgentConfig{
			SandboxID: r.ID, User: r.User, WorkDir: r.WorkDir, Env: lifecycle.Environment(r.Own.Config, r.Env),
			Entrypoint: r.Entrypoint, IdleTimeout: r.AutoStop, IgnoreSignals: true,
		},
		AddUser: lifecycle.UserToAdd(r.User, r.Own.AddUser),
	}
	if r.Own.Build != nil {
		config.AddUser = nil // its files are the image's alone
	}
	if r.TTL > 0 {
		config.Agent.TTL = max(time.Until(r.CreatedAt.Add(r.TTL)), time.Millisecond)
	}
	policy, err := lifecycle.PolicyOf(r.Network)
	if err != nil {
		return nil, err
	}
	if policy.Mode != network.None {
		w := &wire.ContainerFirewall{Resolvers: b.resolvers}
		if w.Policy, err = json.Marshal(policy); err != nil {
			return nil, err
		}
		if w.Denied, err = network.HostAddresses(); err != nil {
			return nil, err
		}
		w.Denied = append(w.Denied, b.elsewhere...)
		config.Firewall = w
	}
	switch r.Own.Transport {
	case viaPort:
		r.Own.Key, r.Own.Port = link.NewKey(), 0
		config.Agent.Key = r.Own.Key
	case viaSocket:
		if err := b.emptyShared(r.ID); err != nil {
			return nil, err
		}
	}
	return json.Marshal(config)
}

// emptyShared makes the directory that a container shares, and removes what a
// run before has left there, which is not to be trusted: the directory is the
// container's to write.
func (b *backend) emptyShared(id string) error {
	if err := os.Mkdir(b.File(id, shared), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	root, err := os.OpenRoot(b.File(id, shared))
	if err != nil {
		return err
	}
	defer root.Close()
	if err := root.RemoveAll(socketName); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// createContainer makes the container, with an agent, without starting it.
func (b *backend) createContainer(ctx context.Context, r *record) error {
	if !r.Network.Block {
		if err := b.ensureNetwork(ctx); err != nil {
			return err
		}
	}
	if r.Own.Transport == viaSocket {
		if err := b.emptyShared(r.ID); err != nil {
			return err
		}
	}
	if err := b.makePlaces(r); err != nil {
		return err
	}
	for range 3 {
		volume, err := b.agentVolume(ctx, r.Own.Image)
		if err != nil {
			return err
		}
		config, host, err := b.specify(r, volume)
		if err != nil {
			return err
		}
		uncut, cancel := uncut(ctx)
		_, err = b.api.ContainerCreate(uncut, client.ContainerCreateOptions{Config: config, HostConfig: host, Name: b.containerName(r.ID)})
		cancel()
		if err != nil {
			return b.explainCreate(r, err)
		}
		if ok, err := b.hasAgent(ctx, b.containerName(r.ID)); err != nil || ok {
			return err
		}
		b.forgetVolume(volume)
		if err := b.removeContainer(ctx, b.containerName(r.ID)); err != nil {
			return err
		}
		// If somebody is filling it, it stays.
		_, _ = b.api.VolumeRemove(ctx, volume, client.VolumeRemoveOptions{})
	}
	return errors.New("the engine takes the agent and then does not have it")
}

// explainCreate says what is behind the engine's refusal of a container, where
// that can be told.
func (b *backend) explainCreate(r *record, err error) error {
	if r.Own.Transport == viaSocket && strings.Contains(err.Error(), "bind source path does not exist") {
		return &unreached{viaSocket, err}
	}
	if r.Resources.Disk > 0 && strings.Contains(err.Error(), "storage-opt") {
		b.noDisk.Store(new(err.Error()))
		return refuseDisk(r.Resources.Disk, err.Error())
	}
	return err
}

// specify is what the engine is told of a sandbox's container.
func (b *backend) specify(r *record, volume string) (*container.Config, *container.HostConfig, error) {
	profile, err := seccomp.Profile(lifecycle.ContainerCapabilities())
	if err != nil {
		return nil, nil, err
	}
	filter, err := json.Marshal(profile)
	if err != nil {
		return nil, nil, err
	}
	host := &container.HostConfig{
		Runtime: b.opts.Runtime,
		CapDrop: []string{"ALL"},
		// The last two are the agent's alone: it gives them up when the network
		// policy is in force.
		CapAdd:        append(lifecycle.ContainerCapabilities(), "CAP_NET_ADMIN", "CAP_SETPCAP"),
		SecurityOpt:   []string{"no-new-privileges", "seccomp=" + string(filter)},
		MaskedPaths:   append(boot.MaskedPaths(), "/sys/firmware", "/sys/devices/virtual/powercap"),
		ReadonlyPaths: boot.ReadOnlyPaths(),
		IpcMode:       "private",
		RestartPolicy: container.RestartPolicy{Name: container.RestartPolicyDisabled},
		LogConfig:     container.LogConfig{Type: "json-file", Config: map[string]string{"max-size": "1m", "max-file": "1"}},
		Mounts:        []mount.Mount{agentMount(volume, b.agentHash(), true)},
		Resources: container.Resources{
			NanoCPUs:  int64(r.Resources.CPU * 1e9),
			PidsLimit: new(int64(r.Resources.Processes)),
		},
	}
	if m := r.Resources.MemoryBytes(); m > 0 {
		host.Memory, host.MemorySwap = m, m
	}
	if d := r.Resources.DiskBytes(); d > 0 {
		host.StorageOpt = map[string]string{"size": strconv.FormatInt(d, 10)}
	}
	if r.Network.Block {
		host.NetworkMode = "none"
	} else {
		host.NetworkMode = container.NetworkMode(networkName)
		host.DNS = b.resolvers
		host.Sysctls = map[string]string{"net.ipv6.conf.all.disable_ipv6": "1", "net.ipv6.conf.default.disable_ipv6": "1"}
	}
	config := &container.Config{
		Image:      r.Own.Image,
		Hostname:   r.ID[:12],
		User:       "0:0",
		WorkingDir: "/",
		Entrypoint: []string{agentFile, "container", "--listen", "unix://" + socketPath},
		Cmd:        []string{},
		Labels:     b.labels(r.ID),
		// The agent reads its configuration there.
		OpenStdin: true, StdinOnce: true,
		// The agent takes no other signal, and the engine would wait for it.
		StopSignal: "SIGKILL",
		// The image's health checks are for its own programs.
		Healthcheck: &container.HealthConfig{Test: []string{"NONE"}},
	}
	host.Mounts = append(host.Mounts, b.mountsOf(r)...)
	if r.Own.Transport == viaSocket {
		host.Mounts = append(host.Mounts, mount.Mount{Type: mount.TypeBind, Source: b.File(r.ID, shared), Target: sharedDir})
	} else {
		host.Mounts = append(host.Mounts, mount.Mount{Type: mount.TypeTmpfs, Target: sharedDir,
			TmpfsOptions: &mount.TmpfsOptions{SizeBytes: 64 << 10, Mode: 0o700}})
	}
	if c := r.Own.Build; c != nil {
		// What the image lacks is taken from the container when it is committed.
		// (Without a user it is root.)
		if c.User == "" {
			config.User = ""
		}
		if c.WorkingDir == "" {
			config.WorkingDir = ""
		}
		if c.StopSignal == "" {
			config.StopSignal = ""
		}
		if c.Healthcheck == nil {
			config.Healthcheck = nil
		}
	}
	if r.Own.Transport == viaPort {
		config.ExposedPorts = apinetwork.PortSet{agentPort: {}}
		host.PortBindings = apinetwork.PortMap{agentPort: {{HostIP: loopback}}}
	}
	return config, host, nil
}

// startContainer starts the container and gives it its configuration, on
// standard input: nothing of the sandbox, from the image or from a run before,
// is ever where that could be read. done must be called when the agent answers.
func (b *backend) startContainer(ctx context.Context, id string, config []byte) (done func(), err error) {
	done = func() {}
	uncut, cancel := uncut(ctx)
	defer cancel()
	in, err := b.api.ContainerAttach(ctx, b.containerName(id), client.ContainerAttachOptions{Stream: true, Stdin: true})
	if err != nil {
		return done, err
	}
	done = in.Close
	written := make(chan error, 1)
	go func() {
		_, err := in.Conn.Write(config)
		written <- err
	}()
	if _, err := b.api.ContainerStart(uncut, b.containerName(id), client.ContainerStartOptions{}); err != nil {
		return done, err
	}
	select {
	case err = <-written:
	case <-ctx.Done():
		err = ctx.Err()
	}
	return done, err
}

// haunted reports whether an error of a start says that containerd has a task of
// the container, which the engine knows nothing of: the engine was killed in the
// middle of a start, and will never be able to start this container again.
func haunted(err error) bool {
	text := err.Error()
	return strings.Contains(text, "task ") && strings.HasSuffix(text, "already exists")
}

// keptName is what images are called that have the files of a container that
// could not be started any more; the tag is the sandbox's id.
const keptName = "daytona.local/kept"

// replace makes the container of a sandbox anew, with the files of the old one.
func (b *backend) replace(ctx context.Context, r *record) error {
	b.log.Warn("the engine cannot start a container any more; it is made anew, with its files", "sandbox", r.ID)
	uncut, cancel := uncut(ctx)
	defer cancel()
	// Written down before it is there.
	r.Own.Kept = true
	if err := b.Save(r, true); err != nil {
		return err
	}
	kept, err := b.api.ContainerCommit(uncut, b.containerName(r.ID), client.ContainerCommitOptions{Reference: keptName + ":" + r.ID, NoPause: true})
	if err != nil {
		return err
	}
	r.Own.Image = kept.ID
	if err := b.Save(r, true); err != nil {
		return err
	}
	if err := b.removeContainer(uncut, b.containerName(r.ID)); err != nil {
		return err
	}
	return b.createContainer(ctx, r)
}

// uncut is the context of a request whose outcome must be known: the engine goes
// on with one whose caller has gone, and what it then makes or starts is missed
// by whoever looks for it too early.
func uncut(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), engineTimeout)
}

// checkFiles refuses to start a container in which the files of users are not
// files: the image, or its root, may have put a pipe there. The OCI runtime opens
// them before anything else, and would wait for ever for somebody to write to
// it, with the engine's lock on the container.
func (b *backend) checkFiles(ctx context.Context, op string, r *record) error {
	for _, file := range []string{"/etc/passwd", "/etc/group"} {
		where := file
		for range 16 {
			st, err := b.api.ContainerStatPath(ctx, b.containerName(r.ID), client.ContainerStatPathOptions{Path: where})
			if errdefs.IsNotFound(err) {
				break
			}
			if err != nil {
				return err
			}
			if st.Stat.Mode&fs.ModeSymlink != 0 && st.Stat.LinkTarget != "" {
				where = st.Stat.LinkTarget
				continue
			}
			if !st.Stat.Mode.IsRegular() {
				return &daytona.Error{Kind: daytona.KindInvalid, Op: op, Field: "Image", Value: r.Image,
					Message: fmt.Sprintf("its %s is no regular file (%s)", file, st.Stat.Mode.Type())}
			}
			break
		}
	}
	return nil
}

// ensureNetwork makes the bridge that sandboxes are on, once.
func (b *backend) ensureNetwork(ctx context.Context) error {
	b.netOnce.Lock()
	defer b.netOnce.Unlock()
	if b.network != "" {
		return nil
	}
	for range 3 {
		n, err := b.api.NetworkInspect(ctx, networkName, client.NetworkInspectOptions{})
		if err == nil {
			if n.Network.Labels[stateLabel] == "" {
				return &daytona.Error{Kind: daytona.KindConflict, Op: "set up the network", Subject: networkName,
					Message: "the engine has a network of this name that is not of our making: remove or rename it"}
			}
			b.network = n.Network.ID
			return nil
		}
		if !errdefs.IsNotFound(err) {
			return err
		}
		_, err = b.api.NetworkCreate(ctx, networkName, client.NetworkCreateOptions{
			Driver: "bridge",
			// All state directories share it; there is no traffic between
			// containers on it anyway.
			Labels: map[string]string{stateLabel: "any"},
			Options: map[string]string{
				"com.docker.network.bridge.enable_icc":           "false",
				"com.docker.network.bridge.enable_ip_masquerade": "true",
			},
		})
		if err != nil && !errdefs.IsConflict(err) {
			return err
		}
	}
	return errors.New("the engine makes the network and then has none")
}

// lost reports whether an error says that the engine cannot be reached, or has
// gone in the middle of a request.
func lost(err error) bool {
	return client.IsErrConnectionFailed(err) || errdefs.IsUnavailable(err) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNREFUSED)
}

// explain turns an error of the engine into one of the library.
func (b *backend) explain(op, subject string, err error) error {
	return lifecycle.EngineError("the Docker engine", err != nil && lost(err), op, subject, err)
}

var _ interface {
	daytona.Backend
	daytona.Updater
	daytona.Pauser
	daytona.Forker
	daytona.Snapshotter
	daytona.Resizer
	daytona.Archiver
	daytona.ImageBuilder
	daytona.VolumeManager
} = (*backend)(nil)
