package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/boot"
	"github.com/daytona-go/daytona/internal/failpoint"
	"github.com/daytona-go/daytona/internal/lifecycle"
	"github.com/daytona-go/daytona/internal/network"
	"github.com/daytona-go/daytona/internal/network/userspace"
	"github.com/daytona-go/daytona/toolbox/wire"
	"golang.org/x/sys/unix"
)

const createOp = lifecycle.CreateOp

// check refuses what this engine cannot do or enforce here, and fills in the
// defaults.
func (e *engine) admit(spec *daytona.Spec) error {
	refuse := func(field string, value any, why string) error {
		return &daytona.Error{Kind: daytona.KindUnsupported, Op: createOp, Field: field, Value: value, Message: why}
	}
	if spec.AutoPause != 0 {
		if err := e.cgroups.canFreeze(); err != nil {
			return refuse("AutoPause", spec.AutoPause, err.Error())
		}
	}
	if why := e.canArchive(); spec.AutoArchive != 0 && why != "" {
		return refuse("AutoArchive", spec.AutoArchive, why)
	}
	if spec.Resources.GPU != 0 {
		return refuse("Resources.GPU", spec.Resources.GPU, "the local backend gives no access to GPUs")
	}
	if spec.Network.AllowDomains != nil {
		return refuse("Network.AllowDomains", spec.Network.AllowDomains, "the local backend cannot filter by host name; use Network.Allow")
	}
	if _, err := lifecycle.PolicyOf(spec.Network); err != nil {
		return &daytona.Error{Kind: daytona.KindInvalid, Op: createOp, Field: "Network.Allow", Value: spec.Network.Allow, Err: err}
	}
	r := &spec.Resources
	const noCgroup = "this machine gives the engine no writable cgroup with the %s controller; run as root or see `daytona doctor`"
	if r.CPU != 0 && !e.cgroups.has("cpu") {
		return refuse("Resources.CPU", r.CPU, fmt.Sprintf(noCgroup, "cpu"))
	}
	if r.Memory != 0 && !e.cgroups.has("memory") {
		return refuse("Resources.Memory", r.Memory, fmt.Sprintf(noCgroup, "memory"))
	}
	if r.Memory == 0 && e.cgroups.has("memory") {
		// Whole pages, since that is what the kernel enforces.
		r.Memory = float64(e.memory/2/int64(os.Getpagesize())*int64(os.Getpagesize())) / daytona.GiB
	}
	if r.DiskBandwidth != 0 && (!e.cgroups.has("io") || e.ioDevice == "") {
		return refuse("Resources.DiskBandwidth", r.DiskBandwidth, fmt.Sprintf(noCgroup, "io (blkio)"))
	}
	if r.Processes == 0 {
		r.Processes = lifecycle.DefaultProcesses
	}
	if err := checkDisk(createOp, r.Disk); err != nil {
		return err
	}
	if !e.root && e.subIDs == nil && spec.User != "" && spec.User != lifecycle.DefaultUser && spec.User != "root" {
		if _, err := strconv.Atoi(spec.User); err != nil {
			return refuse("User", spec.User, "without newuidmap and ranges in /etc/subuid a sandbox has a single user: daytona, root or one number")
		}
	}
	return nil
}

func (e *engine) Create(ctx context.Context, spec daytona.Spec) (daytona.Info, error) {
	if err := ctx.Err(); err != nil {
		return daytona.Info{}, err
	}
	if e.Closed() {
		return daytona.Info{}, &daytona.Error{Kind: daytona.KindState, Op: createOp, Message: "the engine is closed"}
	}
	if spec.Snapshot != "" {
		return e.createFrom(ctx, spec)
	}
	if err := e.admit(&spec); err != nil {
		return daytona.Info{}, err
	}
	if key, ok := e.warm.key(spec); ok {
		if r := e.warm.take(key); r != nil {
			info, err := e.claim(ctx, r, spec)
			e.warm.fill(key, spec)
			return info, err
		}
		defer e.warm.fill(key, spec)
	}
	r, err := e.make(ctx, spec, lifecycle.PhaseLive)
	if err != nil {
		return daytona.Info{}, err
	}
	return r.Info, nil
}

// make makes and starts a sandbox that ends up in a phase: live, or warm.
func (e *engine) make(ctx context.Context, spec daytona.Spec, final lifecycle.Phase) (*record, error) {
	r := e.NewRecord(spec)
	if r.Image == "" {
		r.Image = daytona.ImageHost
	}
	r.Own.UIDBase = e.uidBase(r.ID)
	err := e.Make(ctx, r, final, func(ctx context.Context) error {
		fs, err := e.resolveImage(ctx, createOp, r.Image, r.ID, spec.OnProgress)
		if err != nil {
			return err
		}
		if err := failpoint.Fail("local/create/image-held"); err != nil {
			return lifecycle.KernelError(createOp, r.Name, err)
		}
		e.describe(r, fs)
		return lifecycle.KernelError(createOp, r.Name, e.makeFiles(ctx, r))
	})
	if err != nil {
		return nil, err
	}
	return r, nil
}

// describe puts into the record what the image decides.
func (e *engine) describe(r *record, fs *rootfs) {
	r.Own.Digest = fs.digest
	r.Own.Lowers = fs.lowers
	r.Own.Config = fs.config
	r.User, r.Own.AddUser = lifecycle.UserOf(r.SpecUser, fs.config)
	r.WorkDir = r.SpecWorkDir
	if r.WorkDir == "" {
		r.WorkDir = fs.config.WorkingDir
	}
	r.Entrypoint = lifecycle.EntrypointOf(r.Entrypoint, fs.config)
}

// makeFiles makes the place for the sandbox's own files.
func (e *engine) makeFiles(ctx context.Context, r *record) error {
	if size := r.Resources.DiskBytes(); size > 0 {
		r.Own.HasDisk = true
		if err := e.Save(r, false); err != nil {
			return err
		}
		if err := makeDisk(ctx, e.File(r.ID, "disk.img"), size); err != nil {
			return err
		}
		return nil
	}
	return os.Mkdir(e.File(r.ID, "fs"), 0o700)
}

// uidBase is the host uid of the root of a sandbox: ranges of 65536 above
// 2^28, which no distribution gives to anybody, chosen by the id so that two
// sandboxes hardly ever have the same.
func (e *engine) uidBase(id string) int {
	if !e.root {
		return os.Getuid()
	}
	n, _ := strconv.ParseUint(id[:8], 16, 32)
	return 1<<28 + int(n%57344)<<16
}

// ids are the mappings for a record.
func (e *engine) ids(r *record) idMapping {
	switch {
	case e.root:
		m := []syscall.SysProcIDMap{{ContainerID: 0, HostID: r.Own.UIDBase, Size: 65536}}
		return idMapping{uids: m, gids: m}
	case e.subIDs != nil:
		return *e.subIDs
	}
	inner := singleUserID(r.User)
	return idMapping{
		uids:   []syscall.SysProcIDMap{{ContainerID: inner, HostID: os.Getuid(), Size: 1}},
		gids:   []syscall.SysProcIDMap{{ContainerID: inner, HostID: os.Getgid(), Size: 1}},
		single: true,
	}
}

// singleUserID is the id of the only user of a sandbox that has but one.
func singleUserID(user string) int {
	if user == "root" {
		return 0
	}
	if n, err := strconv.Atoi(user); err == nil {
		return n
	}
	return lifecycle.DefaultUserID
}

// bootUp starts the processes of a sandbox whose lock is held and whose files
// are there, and waits until the agent answers. On error nothing runs.
func (e *engine) bootUp(ctx context.Context, op string, r *record) (_ *proc, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, bootTimeout, &daytona.Error{Kind: daytona.KindTimeout, Op: op, Subject: r.Name,
		Message: "it did not start within " + bootTimeout.String()})
	defer cancel()
	defer func() {
		if err != nil && ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		if b, ok := errors.AsType[*bootError](err); ok && b.m.Step == boot.StepUser {
			err = &daytona.Error{Kind: daytona.KindInvalid, Op: op, Field: "User", Value: r.User, Message: b.m.Error}
		} else if ok && b.m.Image {
			err = &daytona.Error{Kind: daytona.KindInvalid, Op: op, Field: "Image", Value: r.Image, Message: "the image's files do not make a root file system: " + err.Error()}
		}
		err = lifecycle.KernelError(op, r.Name, err)
	}()
	ids := e.ids(r)
	g := e.cgroups.group(r.ID)
	defer func() {
		if err != nil {
			if rerr := g.remove(); rerr != nil {
				e.log.Warn("cgroup could not be removed", "sandbox", r.ID, "err", rerr)
			}
		}
	}()
	d, err := e.openDisk(r)
	if err != nil {
		return nil, err
	}
	if d.mount != nil {
		defer d.mount.Close()
	}
	hostID := ids.uids[0].HostID
	if err := g.create(r.Resources, d.device, hostID, hostID); err != nil {
		return nil, err
	}
	if err := failpoint.Fail("local/boot/grouped"); err != nil {
		return nil, err
	}
	listener, err := e.listen(r.ID)
	if err != nil {
		return nil, err
	}
	defer listener.Close()
	if err := failpoint.Fail("local/boot/listening"); err != nil {
		return nil, err
	}
	logFile, err := os.OpenFile(e.File(r.ID, "agent.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	defer logFile.Close()
	config := wire.AgentConfig{
		SandboxID: r.ID, User: r.User, WorkDir: r.WorkDir, Env: lifecycle.Environment(r.Own.Config, r.Env), Entrypoint: r.Entrypoint,
		IdleTimeout: r.AutoStop, IgnoreSignals: true,
	}
	if r.TTL > 0 {
		config.TTL = max(time.Until(r.CreatedAt.Add(r.TTL)), time.Millisecond)
	}
	if ids.single {
		config.User = strconv.Itoa(ids.uids[0].ContainerID)
	}
	l := launch{listener: listener, log: logFile, group: g, ids: ids, plan: e.plan(r, ids)}
	defer func() {
		for _, f := range l.held {
			f.Close()
		}
	}()
	l.plan.Cgroup, l.plan.CgroupsV1 = g.inside()
	config.CgroupDir = l.plan.Cgroup
	if l.config, err = json.Marshal(config); err != nil {
		return nil, err
	}
	if err := e.placeFiles(ctx, r, d, &l); err != nil {
		return nil, err
	}
	if err := failpoint.Fail("local/boot/placed"); err != nil {
		return nil, err
	}
	netns, err := e.placeNetwork(ctx, r, &l)
	if err != nil {
		return nil, err
	}
	if netns != nil {
		// From here on the sandbox's processes hold it.
		defer netns.Close()
		l.netns = netns.File()
	}
	if err := failpoint.Fail("local/boot/networked"); err != nil {
		return nil, err
	}
	// Written down before the process gets its plan: without one it does
	// nothing, and ends with this process.
	l.cloned = func(p *proc) error {
		failpoint.Kill("local/boot/cloned")
		r.Own.ProcessID = lifecycle.ProcessIDOf(p.PID)
		if err := e.Save(r, false); err != nil {
			return err
		}
		return failpoint.Fail("local/boot/recorded")
	}
	defer func() {
		if err != nil {
			r.Own.ProcessID = lifecycle.ProcessID{}
		}
	}()
	p, err := e.run(ctx, l)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			p.Kill()
			p.Close()
		}
	}()
	if err = failpoint.Fail("local/boot/running"); err != nil {
		return nil, err
	}
	if r.WorkDir, err = e.greet(ctx, r, p); err != nil {
		return nil, err
	}
	return p, nil
}

// greet waits for the agent's first answer: the working directory. An agent
// that ends before says why in its log.
func (e *engine) greet(ctx context.Context, r *record, p *proc) (string, error) {
	dir, err := e.Greet(ctx, r.ID, p.Done())
	select {
	case <-p.Done():
		data, _ := os.ReadFile(e.File(r.ID, "agent.log"))
		return "", fmt.Errorf("the agent ended at once: %s", strings.TrimSpace(string(data[max(0, len(data)-2048):])))
	default:
	}
	return dir, err
}

// listen makes the socket that the agent will listen on. The path of a socket
// is limited to 107 bytes (unix(7)), so it is reached through its directory's
// descriptor.
func (e *engine) listen(id string) (*os.File, error) {
	dir, err := os.Open(e.Sandbox(id))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	if err := os.Remove(e.File(id, "agent.sock")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: fdPath(dir) + "/agent.sock", Net: "unix"})
	if err != nil {
		return nil, err
	}
	defer l.Close()
	l.SetUnlinkOnClose(false)
	return l.File()
}

func (e *engine) dialSocket(ctx context.Context, id string) (net.Conn, error) {
	path := e.File(id, "agent.sock")
	if len(path) > 107 {
		dir, err := os.Open(e.Sandbox(id))
		if err != nil {
			return nil, err
		}
		defer dir.Close()
		path = fdPath(dir) + "/agent.sock"
	}
	var d net.Dialer
	return d.DialContext(ctx, "unix", path)
}

// plan is what boot has to do, but for files and network.
func (e *engine) plan(r *record, ids idMapping) *boot.Plan {
	prog, _ := seccompProgram() // newEngine saw it work
	host := r.ID[:12]
	p := &boot.Plan{
		Hostname: host, Stage: "/tmp", Symlinks: map[string]string{},
		SysPaths: []string{"/sys/devices/system/cpu", "/sys/devices/system/node", "/sys/kernel/mm/transparent_hugepage"},
		UID:      0, GID: 0, SetGroups: !ids.single,
		Capabilities: capabilityMask(), Seccomp: prog, OOMScoreAdj: 500,
		DieWithParent: !r.Persistent,
		Argv:          []string{"daytona-agent", "serve"},
		Env:           []string{"PATH=" + lifecycle.DefaultPath},
	}
	// No user namespaces inside: they are the way to most kernel attacks.
	p.UserLimits = map[string]string{"max_user_namespaces": "0"}
	if !e.root {
		// All sandboxes of an ordinary user draw on that user's allowance, by
		// default 128 (inotify(7)): no one may take it all.
		p.UserLimits["max_inotify_instances"] = "32"
	}
	if ids.single {
		p.UID, p.GID = ids.uids[0].ContainerID, ids.gids[0].ContainerID
	}
	var nofile unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &nofile) == nil {
		limit := min(nofile.Max, 65536)
		p.Rlimits = append(p.Rlimits, boot.Rlimit{Resource: unix.RLIMIT_NOFILE, Soft: limit, Max: limit})
	}
	p.Rlimits = append(p.Rlimits, boot.Rlimit{Resource: unix.RLIMIT_CORE})
	if !e.cgroups.has("pids") {
		// It counts by user namespace and user since Linux 5.14.
		n := uint64(r.Resources.Processes)
		p.Rlimits = append(p.Rlimits, boot.Rlimit{Resource: unix.RLIMIT_NPROC, Soft: n, Max: n})
	}
	p.Files = append(p.Files,
		boot.File{Path: "/etc/hostname", Mode: 0o644, Content: host + "\n"},
		boot.File{Path: "/etc/hosts", Mode: 0o644, Content: "127.0.0.1\tlocalhost " + host + "\n::1\tlocalhost ip6-localhost ip6-loopback\n"},
	)
	if u := lifecycle.UserToAdd(r.User, r.Own.AddUser); u != nil {
		p.EnsureUser = &boot.User{Name: u.Name, UID: u.UID, GID: u.GID, Home: u.Home, Fixed: u.Fixed}
	}
	if !ids.single {
		p.NeedUser, p.NeedGroup, _ = strings.Cut(r.User, ":")
	}
	if r.Fresh {
		p.MachineID = newMachineID()
	}
	p.Dirs = append(p.Dirs, boot.Dir{Path: "/tmp", Mode: 0o1777}, boot.Dir{Path: "/var/tmp", Mode: 0o1777})
	return p
}

// place is a directory of the host that a plan uses. It goes to boot as a
// detached mount, so that no path of the host is seen inside.
type place struct {
	dir, sub string   // sub is found beneath dir without following links
	mount    *os.File // or a detached mount, which sub is beneath if there is one
	mapped   bool     // its files get the ids that they have on disk
}

// placeFiles completes the plan with the root file system, binds and volumes.
func (e *engine) placeFiles(ctx context.Context, r *record, d *disk, l *launch) error {
	p := l.plan
	var places []place
	add := func(pl place) int {
		places = append(places, pl)
		return len(places)
	}
	overlay := boot.Overlay{Target: "/"}
	parents := map[string]int{} // layers of one directory share a mount
	for _, dir := range slices.Backward(e.lowers(r)) {
		parent, name := filepath.Split(dir)
		if rest, ok := strings.CutPrefix(dir, e.Dir("layers")+"/"); ok {
			parent, name = e.Dir("layers")+"/", rest
		}
		if parents[parent] == 0 {
			// Files of a directory that is not ours keep belonging to nobody.
			ours := strings.HasPrefix(dir, e.Root+"/")
			parents[parent] = add(place{dir: parent, mapped: ours && e.canMap(parent)})
		}
		overlay.Lower = append(overlay.Lower, boot.Source{Mount: parents[parent], Path: name})
	}
	if len(overlay.Lower) == 0 { // an image "from scratch"
		overlay.Lower = append(overlay.Lower, boot.Source{Mount: add(place{dir: e.Dir("empty")})})
	}
	if len(places) > 200 {
		return fmt.Errorf("the image's layers lie in %d directories; the limit is 200", len(places))
	}
	mapDisk := e.root && (r.Own.HasDisk || e.canMap(e.Root))
	owner := -1
	switch {
	case mapDisk:
		owner = 0
	case e.root:
		owner = r.Own.UIDBase
	}
	dir := e.File(r.ID, "fs")
	if d.mount != nil {
		dir = fdPath(d.mount)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	err = overlayDirs(root, e.rootMode(r), owner, owner)
	root.Close()
	if err != nil {
		return err
	}
	own := add(place{dir: dir, mount: d.mount, mapped: mapDisk})
	overlay.Upper = boot.Source{Mount: own, Path: "upper"}
	overlay.Work = boot.Source{Mount: own, Path: "work"}
	p.Overlays = []boot.Overlay{overlay}
	if r.Image == daytona.ImageHost {
		h, err := e.hostImage()
		if err != nil {
			return err
		}
		p.Binds = append(p.Binds, h.binds...)
		maps.Copy(p.Symlinks, h.links)
	}
	for _, v := range r.Volumes {
		bucket, err := e.mountBucket(ctx, r, v, l)
		if err != nil {
			return err
		}
		if bucket != nil {
			p.Binds = append(p.Binds, boot.Bind{Target: v.MountPath, ReadOnly: v.ReadOnly, Source: boot.Source{Mount: add(place{dir: fdPath(bucket), mount: bucket})}})
			continue
		}
		data, mount, err := e.OpenVolume(ctx, v.Volume)
		if err != nil {
			return err
		}
		if mount != nil {
			l.held = append(l.held, mount)
			data = fdPath(mount)
		}
		if e.root { // else boot makes it, with the rights of the sandbox's root
			if err := lifecycle.MakeSubpath(data, v.Subpath); err != nil {
				return err
			}
		}
		n := add(place{dir: data, sub: v.Subpath, mount: mount, mapped: mount != nil || e.canMap(e.Root)})
		p.Binds = append(p.Binds, boot.Bind{Target: v.MountPath, ReadOnly: v.ReadOnly, Source: boot.Source{Mount: n}})
	}
	if !e.root {
		// Only root may make mounts outside: boot does.
		for _, pl := range places {
			p.Clones = append(p.Clones, boot.Clone{Dir: pl.dir, Sub: pl.sub})
		}
		places = nil
	}
	l.mounts = func(userns *os.File) ([]*os.File, error) { return openPlaces(places, userns) }
	return nil
}

// openPlaces makes the mounts of places. The caller closes them.
func openPlaces(places []place, userns *os.File) ([]*os.File, error) {
	var files []*os.File
	for _, pl := range places {
		f, err := pl.open(userns)
		if err != nil {
			for _, f := range files {
				f.Close()
			}
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
}

// open makes the mount of a place. The caller closes it.
func (pl place) open(userns *os.File) (_ *os.File, err error) {
	var f *os.File
	switch {
	case pl.mount != nil && pl.sub == "":
		fd, err := unix.FcntlInt(pl.mount.Fd(), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			return nil, os.NewSyscallError("dup", err)
		}
		f = os.NewFile(uintptr(fd), pl.mount.Name())
	case pl.sub != "":
		dir, err := lifecycle.OpenSubpath(pl.dir, pl.sub)
		if err != nil {
			return nil, err
		}
		defer dir.Close()
		f, err = cloneMount(fdPath(dir))
		if errors.Is(err, unix.EINVAL) && pl.mount != nil {
			return nil, &daytona.Error{Kind: daytona.KindUnsupported, Op: createOp, Field: "Volumes.Subpath", Value: pl.sub,
				Message: "of a volume with a quota it takes Linux 6.15 or newer to mount a directory; mount all of it", Err: err}
		}
		if err != nil {
			return nil, err
		}
	default:
		if f, err = cloneMount(pl.dir); err != nil {
			return nil, err
		}
	}
	if pl.mapped {
		if err := idmap(f, userns); err != nil {
			f.Close()
			return nil, err
		}
	}
	return f, nil
}

// canMap reports whether mounts of a directory's file system take an id
// mapping; overlay file systems and some others do not.
func (e *engine) canMap(dir string) bool {
	if !e.root {
		return false
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	// What counts is the file system, and the state directory has but one.
	key := e.Root
	if !strings.HasPrefix(dir, key) {
		key = dir
	}
	can, known := e.idmaps[key]
	if !known {
		can = probeIDMap(dir)
		e.idmaps[key] = can
	}
	return can
}

// placeNetwork completes the plan with the network.
func (e *engine) placeNetwork(ctx context.Context, r *record, l *launch) (*network.Namespace, error) {
	policy, err := lifecycle.PolicyOf(r.Network)
	if err != nil {
		return nil, err
	}
	r.Own.Offline = policy.Mode == network.None
	resolv := func(content string) {
		l.plan.Files = append(l.plan.Files, boot.File{Path: "/etc/resolv.conf", Mode: 0o644, Content: content})
	}
	switch {
	case policy.Mode == network.None:
		l.plan.Network = "loopback"
		resolv("")
		return nil, nil
	case e.root:
		h, err := e.network(ctx)
		if err != nil {
			return nil, err
		}
		ns, err := h.Create(ctx, policy)
		if err != nil {
			return nil, fmt.Errorf("make the network: %w", err)
		}
		l.plan.Network = "joined"
		resolv(h.ResolvConf(policy))
		return ns, nil
	}
	resolv(userspace.ResolvConf(policy))
	return nil, e.placeUserspaceNetwork(ctx, r, policy, l)
}

// setEnv gives a running agent an environment.
func (e *engine) setEnv(ctx context.Context, id string, env map[string]string) error {
	if len(env) == 0 {
		return nil
	}
	return e.Post(ctx, id, "/env", wire.UpdateEnvRequest{Set: env})
}

// supported says why this machine cannot run sandboxes at all; nil if it can.
func supported() error {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return os.NewSyscallError("uname", err)
	}
	release := unix.ByteSliceToString(u.Release[:])
	var major, minor int
	_, _ = fmt.Sscanf(release, "%d.%d", &major, &minor)
	if major < 5 || (major == 5 && minor < 19) {
		return fmt.Errorf("Linux %s is too old: 5.19 or newer is needed", release)
	}
	if data, err := os.ReadFile("/proc/sys/user/max_user_namespaces"); err == nil && strings.TrimSpace(string(data)) == "0" {
		return errors.New("user namespaces are switched off; as root: sysctl -w user.max_user_namespaces=65536")
	}
	if os.Geteuid() != 0 {
		for file, off := range map[string]string{
			"/proc/sys/kernel/unprivileged_userns_clone":             "0",
			"/proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1",
		} {
			if data, err := os.ReadFile(file); err == nil && strings.TrimSpace(string(data)) == off {
				return fmt.Errorf("ordinary users may not make user namespaces here (%s is %s); as root: sysctl -w %s=%d, or run as root",
					file, off, strings.ReplaceAll(strings.TrimPrefix(file, "/proc/sys/"), "/", "."), 1-int(off[0]-'0'))
			}
		}
	}
	return nil
}

// findSubIDs finds the ranges that newuidmap and newgidmap would map for this
// user: root inside is the user, the others are the range. nil if the tools
// or the ranges are missing.
func findSubIDs() *idMapping {
	for _, tool := range []string{"newuidmap", "newgidmap"} {
		if _, err := exec.LookPath(tool); err != nil {
			return nil
		}
	}
	m := &idMapping{viaTools: true}
	for _, f := range []struct {
		file string
		own  int
		maps *[]syscall.SysProcIDMap
	}{{"/etc/subuid", os.Getuid(), &m.uids}, {"/etc/subgid", os.Getgid(), &m.gids}} {
		start, size := subRange(f.file)
		if size < 65535 {
			return nil
		}
		*f.maps = []syscall.SysProcIDMap{{ContainerID: 0, HostID: f.own, Size: 1}, {ContainerID: 1, HostID: start, Size: 65535}}
	}
	return m
}

var _ interface {
	daytona.Backend
	daytona.Updater
	daytona.VolumeManager
	daytona.Pauser
	daytona.Forker
	daytona.Resizer
	daytona.Snapshotter
	daytona.SnapshotMover
	daytona.Archiver
} = (*engine)(nil)

// As implements the rule of daytona.As: without cgroups there is nothing to pause
// with, and no limit to change; images are built if the program has a Builder.
func (e *engine) As(target any) bool {
	switch t := target.(type) {
	case *daytona.ImageBuilder:
		if registeredBuilder() == nil {
			return false
		}
		*t = imageBuilder{e}
		return true
	case *daytona.Pauser, *daytona.Resizer:
		if e.cgroups.canFreeze() != nil {
			return false
		}
	case *daytona.Archiver, *daytona.SnapshotMover:
		if e.canArchive() != "" {
			return false
		}
	}
	v := reflect.ValueOf(target).Elem()
	if !reflect.TypeOf(e).Implements(v.Type()) {
		return false
	}
	v.Set(reflect.ValueOf(e))
	return true
}
