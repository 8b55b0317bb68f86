package local

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/image"
	"github.com/daytona-go/daytona/internal/boot"
	"github.com/daytona-go/daytona/internal/lifecycle"
	"github.com/daytona-go/daytona/internal/network/policy"
	"github.com/daytona-go/daytona/internal/tree"
	"golang.org/x/sys/unix"
)

// Builder builds images for the engine. Package backend/local/build brings one;
// a program that does not import it does not compile it.
type Builder interface {
	daytona.ImageBuilder
	Close() error
}

// BuilderHost is what the engine gives to a Builder.
type BuilderHost interface {
	// BuildDir is the Builder's own directory in the state directory.
	BuildDir() string
	// ImageStore is where built images go.
	ImageStore() *image.Store
	// RunStep executes a command as isolated as a sandbox, and returns when all
	// its processes are gone. A command that ends with another code than 0 gives
	// a [*daytona.ExitError], one that cannot be executed one of code 127. A
	// cancelled ctx kills it.
	RunStep(ctx context.Context, s Step) error
	// AdmitBuild checks what the steps of a build ask for, and fills in the
	// defaults.
	AdmitBuild(opts *daytona.BuildOptions) error
	// Transport carries requests of a build that are not made in a step: it
	// reaches what a step may reach.
	Transport(p daytona.NetworkPolicy) (http.RoundTripper, error)
}

// Step is one command of a build.
type Step struct {
	Root   Layers
	Mounts []StepMount
	Args   []string
	Env    []string
	// Dir is the working directory, made if missing.
	Dir string
	// UID, GID and Groups are the command's, as the image counts.
	UID, GID int
	Groups   []int
	Hostname string
	// Hosts are further lines for /etc/hosts.
	Hosts     string
	Network   daytona.NetworkPolicy
	Resources daytona.Resources
	Stdout    io.Writer
	Stderr    io.Writer
}

// Layers are directories of the state directory to stack, the topmost first.
// Without Upper they are read-only.
type Layers struct {
	Lower       []string
	Upper, Work string
}

// StepMount is shown to a step at Target.
type StepMount struct {
	Target   string
	ReadOnly bool
	// Tmpfs is an empty one of so many bytes; or else
	Tmpfs int64
	// Layers, if it has a Lower; or else
	Layers Layers
	// Dir, a directory or file of this machine.
	Dir string
	// Sub is a path in Layers or Dir, resolved without leaving it.
	Sub string
}

// builders is written by the init function of one package, like the registry of
// daytona.Register.
var builders struct {
	sync.Mutex
	open func(h BuilderHost) (Builder, error)
}

// Register makes a kind of Builder known to the engine. Package
// backend/local/build calls it from an init function. It panics when it is called
// twice.
func Register(open func(h BuilderHost) (Builder, error)) {
	builders.Lock()
	defer builders.Unlock()
	if builders.open != nil {
		panic("local: Register called twice")
	}
	builders.open = open
}

func registeredBuilder() func(h BuilderHost) (Builder, error) {
	builders.Lock()
	defer builders.Unlock()
	return builders.open
}

const buildOp = "build image"

// imageBuilder is the engine as a daytona.ImageBuilder.
type imageBuilder struct{ e *engine }

func (b imageBuilder) BuildImage(ctx context.Context, img *daytona.Image, opts daytona.BuildOptions) (daytona.BuiltImage, error) {
	e := b.e
	if e.Closed() {
		return daytona.BuiltImage{}, &daytona.Error{Kind: daytona.KindState, Op: buildOp, Message: "the engine is closed"}
	}
	if !e.root {
		return daytona.BuiltImage{}, &daytona.Error{Kind: daytona.KindUnsupported, Op: buildOp,
			Message: "the local backend builds only as root: layers with files of many owners take more than one user; build elsewhere and use Image, or run as root"}
	}
	if !e.canMap(e.Root) {
		return daytona.BuiltImage{}, &daytona.Error{Kind: daytona.KindUnsupported, Op: buildOp, Subject: e.Root,
			Message: "the file system of the state directory takes no id-mapped mounts, which steps need; put it on ext4, xfs or btrfs"}
	}
	e.builderOnce.Lock()
	if e.builder == nil {
		opened, err := registeredBuilder()(builderHost(b))
		if err != nil {
			e.builderOnce.Unlock()
			return daytona.BuiltImage{}, err
		}
		e.builder = opened
	}
	builder := e.builder
	e.builderOnce.Unlock()
	return builder.BuildImage(ctx, img, opts)
}

// closeBuilder lets go of the builder, if there is one.
func (e *engine) closeBuilder() {
	e.builderOnce.Lock()
	defer e.builderOnce.Unlock()
	if e.builder != nil {
		if err := e.builder.Close(); err != nil {
			e.log.Warn("builder could not be closed", "err", err)
		}
		e.builder = nil
	}
}

// builderHost implements BuilderHost.
type builderHost struct{ e *engine }

func (h builderHost) BuildDir() string         { return h.e.Dir("build") }
func (h builderHost) ImageStore() *image.Store { return h.e.images }

// AdmitBuild refuses what cannot be enforced, as for sandboxes.
func (h builderHost) AdmitBuild(opts *daytona.BuildOptions) error {
	if err := opts.Resources.Validate(buildOp); err != nil {
		return err
	}
	if err := opts.Network.Validate(buildOp); err != nil {
		return err
	}
	spec := daytona.Spec{Resources: opts.Resources, Network: opts.Network}
	if err := h.e.admit(&spec); err != nil {
		if de, ok := errors.AsType[*daytona.Error](err); ok {
			de.Op = buildOp
		}
		return err
	}
	opts.Resources = spec.Resources
	return nil
}

func (h builderHost) Transport(p daytona.NetworkPolicy) (http.RoundTripper, error) {
	parsed, err := lifecycle.PolicyOf(p)
	if err != nil {
		return nil, err
	}
	return policyTransport(parsed), nil
}

// RunStep implements BuilderHost.
func (h builderHost) RunStep(ctx context.Context, s Step) (err error) {
	e := h.e
	var raw [16]byte
	_, _ = rand.Read(raw[:])
	id := hex.EncodeToString(raw[:])
	r := &record{}
	r.ID, r.Network, r.Resources, r.User = id, s.Network, s.Resources, "root"
	r.Own.UIDBase = e.uidBase(id)
	ids := e.ids(r)
	// Not the id of a sandbox, which an engine that finds no such sandbox would
	// take for a leftover and kill.
	name := "build-" + id
	e.reapSteps(name)
	g := e.cgroups.group(name)
	defer func() {
		e.mu.Lock()
		delete(e.steps, name)
		e.mu.Unlock()
		g.kill()
		if rerr := g.remove(); rerr != nil {
			e.log.Warn("cgroup could not be removed", "step", id, "err", rerr)
		}
	}()
	hostID := ids.uids[0].HostID
	if err := g.create(r.Resources, e.ioDevice, hostID, hostID); err != nil {
		return err
	}
	l := launch{group: g, ids: ids, plan: e.plan(r, ids)}
	l.cloned = func(*proc) error { return nil }
	p := l.plan
	p.Cgroup, p.CgroupsV1 = g.inside()
	p.Hostname = s.Hostname
	p.DieWithParent, p.EnsureUser, p.NeedUser, p.NeedGroup = true, nil, "", ""
	p.Argv, p.Env = s.Args, s.Env
	p.Step = &boot.Step{Dir: s.Dir, Groups: s.Groups}
	p.UID, p.GID = s.UID, s.GID
	p.Dirs, p.Files = nil, nil
	if s.Dir != "/" {
		p.Dirs = []boot.Dir{{Path: s.Dir, Mode: 0o755, UID: s.UID, GID: s.GID}}
	}
	ns, err := e.placeNetwork(ctx, r, &l)
	if err != nil {
		return err
	}
	if ns != nil {
		defer ns.Close()
		l.netns = ns.File()
	}
	// What placeNetwork would write into the root is bound over it, so that it
	// is no part of the image.
	resolv := ""
	for _, f := range p.Files {
		if f.Path == "/etc/resolv.conf" {
			resolv = f.Content
		}
	}
	p.Files = nil
	etc, err := os.MkdirTemp(h.BuildDir(), "etc-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(etc)
	hosts := "127.0.0.1\tlocalhost " + s.Hostname + "\n::1\tlocalhost ip6-localhost ip6-loopback\n" + s.Hosts
	for name, content := range map[string]string{"hosts": hosts, "resolv.conf": resolv} {
		if err := os.WriteFile(filepath.Join(etc, name), []byte(content), 0o644); err != nil {
			return err
		}
	}
	if err := os.Chmod(etc, 0o755); err != nil {
		return err
	}
	s.Mounts = append([]StepMount{
		{Target: "/etc/hosts", Dir: etc, Sub: "hosts"}, {Target: "/etc/resolv.conf", Dir: etc, Sub: "resolv.conf"},
	}, s.Mounts...)
	var limit *stepDisk
	if s.Resources.Disk > 0 {
		s.Mounts[0].ReadOnly, s.Mounts[1].ReadOnly = true, true // these are not on its disk
		if limit, err = e.limitStep(ctx, h.BuildDir(), s); err != nil {
			return lifecycle.KernelError(buildOp, "Resources.Disk", err)
		}
		defer limit.close(e)
	}
	if err := e.placeStep(s, &l, limit); err != nil {
		return err
	}
	outR, outW, err := os.Pipe()
	if err != nil {
		return err
	}
	defer outR.Close()
	defer outW.Close()
	errR, errW, err := os.Pipe()
	if err != nil {
		return err
	}
	defer errR.Close()
	defer errW.Close()
	l.stdout, l.log = outW, errW
	pr, err := e.run(ctx, l)
	outW.Close()
	errW.Close()
	if err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if b, ok := errors.AsType[*bootError](err); ok && b.m.Step == boot.StepCommand {
			fmt.Fprintln(s.Stderr, b.m.Error)
			return &daytona.ExitError{ExitCode: 127}
		}
		return lifecycle.KernelError(buildOp, "step", err)
	}
	defer pr.Close()
	var copies sync.WaitGroup
	copies.Go(func() { _, _ = io.Copy(s.Stdout, outR) })
	copies.Go(func() { _, _ = io.Copy(s.Stderr, errR) })
	select {
	case <-pr.Done():
	case <-ctx.Done():
		g.kill()
		pr.Kill()
	}
	copies.Wait() // every holder of the pipes is dead
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	status, ok := pr.Status()
	switch {
	case !ok:
		return errors.New("nobody can tell how the step ended")
	case status.Signaled():
		return &daytona.ExitError{ExitCode: 128 + int(status.Signal()), Signal: status.Signal().String()}
	case status.ExitStatus() != 0:
		return &daytona.ExitError{ExitCode: status.ExitStatus()}
	}
	if limit != nil {
		return lifecycle.KernelError(buildOp, "step", limit.keep(ctx))
	}
	return nil
}

// stepDisk is a file system of limited size for what a step writes. A step that
// succeeds has it copied to where it belongs.
type stepDisk struct {
	dir, img string
	upper    string // where it belongs
	disk     *disk
}

// limitStep makes the disk of a step with a limit.
func (e *engine) limitStep(ctx context.Context, buildDir string, s Step) (_ *stepDisk, err error) {
	for _, m := range s.Mounts {
		if !m.ReadOnly && m.Tmpfs == 0 {
			return nil, &daytona.Error{Kind: daytona.KindUnsupported, Op: buildOp, Field: "Resources.Disk", Value: s.Resources.Disk,
				Message: "what a step writes to the cache or bind mount at " + m.Target + " is not supported to be limited; mount it read-only, or leave Disk 0"}
		}
	}
	if left, err := os.ReadDir(s.Root.Upper); err != nil || len(left) > 0 {
		return nil, fmt.Errorf("the step's own layer is not empty (%d, %w)", len(left), err)
	}
	dir, err := os.MkdirTemp(buildDir, "disk-")
	if err != nil {
		return nil, err
	}
	d := &stepDisk{dir: dir, img: filepath.Join(dir, "disk.img"), upper: s.Root.Upper}
	defer func() {
		if err != nil {
			d.close(e)
		}
	}()
	if err := os.Mkdir(filepath.Join(dir, "work"), 0o700); err != nil {
		return nil, err
	}
	if err := makeDisk(ctx, d.img, int64(s.Resources.Disk*(1<<30))); err != nil {
		return nil, err
	}
	if d.disk, err = mountDisk(d.img); err != nil {
		return nil, err
	}
	st, err := os.Stat(s.Root.Upper)
	if err != nil {
		return nil, err
	}
	owner, _ := st.Sys().(*syscall.Stat_t)
	root, err := os.OpenRoot(fdPath(d.disk.mount))
	if err != nil {
		return nil, err
	}
	defer root.Close()
	if err := overlayDirs(root, st.Mode(), int(owner.Uid), int(owner.Gid)); err != nil {
		return nil, err
	}
	return d, nil
}

// keep copies what the step has written. Its own mount shows other owners.
func (d *stepDisk) keep(ctx context.Context) error {
	m, err := shareDisk(d.img)
	if err != nil {
		return err
	}
	defer m.mount.Close()
	_, err = tree.Copy(ctx, d.upper, filepath.Join(fdPath(m.mount), "upper"), filepath.Join(d.dir, "work"), nil)
	return err
}

func (d *stepDisk) close(e *engine) {
	if d.disk != nil {
		d.disk.mount.Close()
	}
	if err := os.RemoveAll(d.dir); err != nil {
		e.log.Warn("the disk of a build step could not be removed", "dir", d.dir, "err", err)
	}
}

// reapSteps removes the groups of steps whose process was killed, and enters a
// new one. A Builder lets one process at a time run steps, so that all which are
// not this one's are left over.
func (e *engine) reapSteps(name string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.steps[name] = true
	for _, id := range e.cgroups.ids() {
		if strings.HasPrefix(id, "build-") && !e.steps[id] {
			g := e.cgroups.group(id)
			g.kill()
			if err := g.remove(); err != nil {
				e.log.Warn("cgroup could not be removed", "step", id, "err", err)
			}
		}
	}
}

// reapBuilds removes what the steps of a process that was killed have left, unless
// another process builds.
func (e *engine) reapBuilds() {
	f, err := os.OpenFile(filepath.Join(e.Dir("build"), "lock"), os.O_RDWR, 0)
	if err != nil {
		return // nobody has ever built here
	}
	defer f.Close()
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		return
	}
	for _, id := range e.cgroups.ids() {
		if strings.HasPrefix(id, "build-") {
			g := e.cgroups.group(id)
			g.kill()
			if err := g.remove(); err != nil {
				e.log.Warn("cgroup could not be removed", "step", id, "err", err)
			}
		}
	}
}

// placeStep completes the plan with the files of a step, and with its disk if it
// has a limited one.
func (e *engine) placeStep(s Step, l *launch, limit *stepDisk) error {
	p := l.plan
	var places []place
	mounts := map[string]int{}
	source := func(dir string) boot.Source {
		parent, name := filepath.Split(filepath.Clean(dir))
		if grand := filepath.Dir(filepath.Clean(parent)); filepath.Base(grand) == "snapshots" {
			// <snapshots>/<number>/fs: one mount for all
			name, parent = path.Join(filepath.Base(parent), name), grand
		}
		if mounts[parent] == 0 {
			places = append(places, place{dir: parent, mapped: true})
			mounts[parent] = len(places)
		}
		return boot.Source{Mount: mounts[parent], Path: name}
	}
	overlay := func(ls Layers) boot.Overlay {
		var o boot.Overlay
		for _, d := range ls.Lower {
			o.Lower = append(o.Lower, source(d))
		}
		if ls.Upper != "" {
			o.Upper, o.Work = source(ls.Upper), source(ls.Work)
		}
		return o
	}
	if limit != nil {
		s.Root.Upper, s.Root.Work = "", ""
	}
	root := overlay(s.Root)
	root.Target = "/"
	if limit != nil {
		places = append(places, place{mount: limit.disk.mount, mapped: true})
		root.Upper, root.Work = boot.Source{Mount: len(places), Path: "upper"}, boot.Source{Mount: len(places), Path: "work"}
	}
	p.Overlays = []boot.Overlay{root}
	for _, m := range s.Mounts {
		b := boot.Bind{Target: m.Target, ReadOnly: m.ReadOnly, Tmpfs: m.Tmpfs}
		switch {
		case m.Tmpfs != 0:
		case len(m.Layers.Lower) > 0:
			o := overlay(m.Layers)
			o.Staged, o.Target = true, m.Target
			p.Overlays = append(p.Overlays, o)
			b.Source = boot.Source{Overlay: len(p.Overlays), Path: m.Sub}
		default:
			st, err := os.Stat(m.Dir)
			if err != nil {
				return err
			}
			if st.IsDir() {
				if mounts[m.Dir] == 0 {
					places = append(places, place{dir: m.Dir, mapped: true})
					mounts[m.Dir] = len(places)
				}
				b.Source = boot.Source{Mount: mounts[m.Dir], Path: m.Sub}
			} else {
				b.Source = source(m.Dir)
			}
		}
		p.Binds = append(p.Binds, b)
	}
	if len(places) > 200 {
		return fmt.Errorf("the step has mounts of %d directories; the limit is 200", len(places))
	}
	l.mounts = func(userns *os.File) ([]*os.File, error) { return openPlaces(places, userns) }
	return nil
}

// policyTransport makes connections to what a policy allows and to nothing else.
// The address is checked when it is dialled, whatever name led there.
func policyTransport(p policy.Policy) http.RoundTripper {
	var own []netip.Prefix
	if addrs, err := net.InterfaceAddrs(); err == nil {
		for _, a := range addrs {
			if prefix, err := netip.ParsePrefix(a.String()); err == nil {
				own = append(own, netip.PrefixFrom(prefix.Addr(), prefix.Addr().BitLen()))
			}
		}
	}
	allowed := p.Compile(own)
	dialer := &net.Dialer{Timeout: 30 * time.Second, Control: func(_, address string, _ syscall.RawConn) error {
		to, err := netip.ParseAddrPort(address)
		if err != nil {
			return err
		}
		if a := to.Addr().Unmap(); !a.Is4() || !allowed.Contains(a) {
			return &daytona.Error{Kind: daytona.KindForbidden, Op: buildOp, Field: "Network", Value: a.String(), Message: "the build's network policy does not allow this address"}
		}
		return nil
	}}
	return &http.Transport{
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			return dialer.DialContext(ctx, "tcp4", address)
		},
		ForceAttemptHTTP2: true, TLSHandshakeTimeout: 30 * time.Second,
	}
}
