package local

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/lifecycle"
	"golang.org/x/sys/unix"
)

// cgroups is how this machine limits groups of processes: which hierarchies
// there are, and where in them the engine may make its groups. A sandbox has
// the group <base>/<id> in each. In the version 2 hierarchy, which may be the
// only one, or one without controllers beside version 1 ("hybrid"), it has
// <base>/<tag>-<id>/box below, which belongs to the sandbox's root: there the agent
// makes a group for each command, to be able to kill all of it.
type cgroups struct {
	// v1 maps a controller to its base directory. Empty on a pure version 2
	// machine.
	v1 map[string]string
	// v2 is the base directory in the version 2 hierarchy; "" if there is
	// none, or none that may be written.
	v2 string
	// v2controllers are enabled for the groups below v2.
	v2controllers []string
	// tag begins the names of this state directory's groups, as several may
	// share the hierarchies.
	tag string
}

const cgroupName = "daytona"

// findCgroups looks at what is mounted and makes the base groups. That there
// is nothing to be had is no error: the engine then refuses limits.
func findCgroups(tag string) (*cgroups, error) {
	c := &cgroups{v1: map[string]string{}, tag: tag}
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("find cgroups: %w", err)
	}
	defer f.Close()
	own, err := ownCgroups()
	if err != nil {
		return nil, fmt.Errorf("find cgroups: %w", err)
	}
	for s := bufio.NewScanner(f); s.Scan(); {
		// mountinfo: "… root mountpoint options … - fstype source superoptions",
		// proc(5).
		pre, post, ok := strings.Cut(s.Text(), " - ")
		if !ok {
			continue
		}
		fields, tail := strings.Fields(pre), strings.Fields(post)
		if len(fields) < 5 || len(tail) < 3 {
			continue
		}
		mount := fields[4]
		switch tail[0] {
		case "cgroup":
			for _, opt := range strings.Split(tail[2], ",") {
				switch opt {
				case "cpu", "memory", "pids", "blkio", "freezer":
					base := filepath.Join(mount, cgroupName)
					if os.Geteuid() == 0 && os.MkdirAll(base, 0o755) == nil {
						c.v1[opt] = base
					}
				}
			}
		case "cgroup2":
			if c.v2 == "" {
				c.findV2(mount, own[""])
			}
		}
	}
	return c, nil
}

// ownCgroups reads /proc/self/cgroup: controller (or "" for version 2) to
// path.
func ownCgroups() (map[string]string, error) {
	data, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	own := map[string]string{}
	for line := range strings.Lines(string(data)) {
		p := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(p) == 3 {
			for _, c := range strings.Split(p[1], ",") {
				own[c] = p[2]
			}
		}
	}
	return own, nil
}

// findV2 chooses the base: as root, a group at the top; otherwise the topmost
// group above our own that has been delegated to us, since processes cannot
// be moved across a border that we may not write (cgroup-v2, "Delegation").
func (c *cgroups) findV2(mount, own string) {
	parent := ""
	if os.Geteuid() == 0 {
		parent = mount
	} else {
		for p := own; ; p = filepath.Dir(p) {
			dir := filepath.Join(mount, p)
			if unix.Access(dir, unix.W_OK) != nil || unix.Access(filepath.Join(dir, "cgroup.procs"), unix.W_OK) != nil {
				break
			}
			parent = dir
			if p == "/" {
				break
			}
		}
	}
	if parent == "" {
		return
	}
	base := filepath.Join(parent, cgroupName)
	if err := os.MkdirAll(base, 0o755); err != nil {
		return
	}
	// Both may fail where a controller is missing or the parent has processes;
	// what is enabled in the end is what counts.
	for _, dir := range []string{parent, base} {
		for _, ctl := range []string{"cpu", "memory", "pids", "io"} {
			_ = os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+ctl), 0)
		}
	}
	enabled, err := os.ReadFile(filepath.Join(base, "cgroup.subtree_control"))
	if err != nil {
		return
	}
	c.v2, c.v2controllers = base, strings.Fields(string(enabled))
}

// has reports whether a controller ("cpu", "memory", "pids", "io") can be
// used.
func (c *cgroups) has(controller string) bool {
	if slices.Contains(c.v2controllers, controller) {
		return true
	}
	if controller == "io" {
		controller = "blkio"
	}
	return c.v1[controller] != ""
}

// group is the cgroups of one sandbox.
type group struct {
	c    *cgroups
	name string
}

func (c *cgroups) group(id string) group { return group{c, c.tag + "-" + id} }

func (g group) v2dir() string { return filepath.Join(g.c.v2, g.name) }

// ids lists the sandboxes of this state directory that have groups.
func (c *cgroups) ids() []string {
	var ids []string
	for _, base := range c.bases() {
		entries, err := os.ReadDir(base)
		if err != nil {
			continue
		}
		for _, e := range entries {
			if id, ours := strings.CutPrefix(e.Name(), c.tag+"-"); ours && !slices.Contains(ids, id) {
				ids = append(ids, id)
			}
		}
	}
	return ids
}

func (c *cgroups) bases() []string {
	bases := slices.Collect(maps.Values(c.v1))
	if c.v2 != "" {
		bases = append(bases, c.v2)
	}
	return bases
}

// limit is one file to write.
type limit struct{ dir, file, value string }

// create makes the groups with their limits. uid and gid get the box.
func (g group) create(r daytona.Resources, ioDevice string, uid, gid int) error {
	limits := g.limits(r, ioDevice)
	if dir := g.v1freezer(); dir != "" {
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("make cgroup: %w", err)
		}
	}
	// Of version 1 only the hierarchies that limit something: each costs time.
	for _, l := range limits {
		if err := os.Mkdir(l.dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("make cgroup: %w", err)
		}
	}
	if g.c.v2 != "" {
		box := filepath.Join(g.v2dir(), "box")
		if err := os.MkdirAll(box, 0o755); err != nil {
			return fmt.Errorf("make cgroup: %w", err)
		}
		// A sandbox must not make groups without end: they cost kernel memory.
		_ = os.WriteFile(filepath.Join(g.v2dir(), "cgroup.max.descendants"), []byte("4096"), 0)
		for _, f := range []string{"", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"} {
			if err := os.Chown(filepath.Join(box, f), uid, gid); err != nil {
				return fmt.Errorf("hand the cgroup to the sandbox: %w", err)
			}
		}
	}
	if len(g.c.v2controllers) > 0 {
		// So that the box has files that tell its use, and the limits of the
		// group around it as its own.
		for _, ctl := range g.c.v2controllers {
			_ = os.WriteFile(filepath.Join(g.v2dir(), "cgroup.subtree_control"), []byte("+"+ctl), 0)
		}
		for _, l := range limits {
			if l.dir == g.v2dir() {
				_ = os.WriteFile(filepath.Join(l.dir, "box", l.file), []byte(l.value), 0)
			}
		}
	}
	for _, l := range limits {
		if err := os.WriteFile(filepath.Join(l.dir, l.file), []byte(l.value), 0); err != nil {
			return fmt.Errorf("limit the sandbox: %s = %s: %w", l.file, l.value, err)
		}
	}
	return nil
}

// cpuPeriod is the length in µs over which the CPU quota counts: the kernel's
// default.
const cpuPeriod = 100_000

func (g group) limits(r daytona.Resources, ioDevice string) []limit {
	var ls []limit
	v1 := func(ctl, file, value string) {
		ls = append(ls, limit{filepath.Join(g.c.v1[ctl], g.name), file, value})
	}
	v2 := func(file, value string) { ls = append(ls, limit{g.v2dir(), file, value}) }
	onV2 := func(ctl string) bool { return slices.Contains(g.c.v2controllers, ctl) }
	if r.CPU > 0 {
		// The kernel takes no quota below 1 ms.
		quota := max(int64(r.CPU*cpuPeriod), 1000)
		if onV2("cpu") {
			v2("cpu.max", fmt.Sprintf("%d %d", quota, cpuPeriod))
		} else {
			v1("cpu", "cpu.cfs_period_us", strconv.Itoa(cpuPeriod))
			v1("cpu", "cpu.cfs_quota_us", strconv.FormatInt(quota, 10))
		}
	}
	if m := r.MemoryBytes(); m > 0 {
		if onV2("memory") {
			v2("memory.max", strconv.FormatInt(m, 10))
			if _, err := os.Stat(filepath.Join(g.c.v2, "memory.swap.max")); err == nil {
				v2("memory.swap.max", "0")
			}
		} else if g.c.v1["memory"] != "" {
			v1("memory", "memory.limit_in_bytes", strconv.FormatInt(m, 10))
			if _, err := os.Stat(filepath.Join(g.c.v1["memory"], "memory.memsw.limit_in_bytes")); err == nil {
				v1("memory", "memory.memsw.limit_in_bytes", strconv.FormatInt(m, 10))
			}
		}
	}
	if r.Processes > 0 {
		if onV2("pids") {
			v2("pids.max", strconv.Itoa(r.Processes))
		} else if g.c.v1["pids"] != "" {
			v1("pids", "pids.max", strconv.Itoa(r.Processes))
		}
	}
	if r.DiskBandwidth > 0 && ioDevice != "" {
		bps := strconv.FormatInt(int64(r.DiskBandwidth*(1<<20)), 10)
		if onV2("io") {
			v2("io.max", fmt.Sprintf("%s rbps=%s wbps=%s", ioDevice, bps, bps))
		} else {
			v1("blkio", "blkio.throttle.read_bps_device", ioDevice+" "+bps)
			v1("blkio", "blkio.throttle.write_bps_device", ioDevice+" "+bps)
		}
	}
	return ls
}

// add moves a process into the groups (of version 1; into version 2 it is
// born, see open).
func (g group) add(pid int) error {
	for _, base := range g.c.v1 {
		err := os.WriteFile(filepath.Join(base, g.name, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("put process %d into its cgroup: %w", pid, err)
		}
	}
	return nil
}

// inside says how a sandbox sees its groups: where its version 2 group is
// mounted ("" for nowhere), and the host's directories of those of version 1.
func (g group) inside() (v2 string, v1 map[string]string) {
	v1 = map[string]string{}
	for ctl, base := range g.c.v1 {
		dir := filepath.Join(base, g.name)
		if _, err := os.Stat(dir); err == nil {
			v1[ctl] = dir
		}
	}
	switch {
	case g.c.v2 == "":
		return "", v1
	case len(g.c.v1) > 0:
		return "/sys/fs/cgroup/unified", v1 // as systemd mounts it on hybrid machines
	}
	return "/sys/fs/cgroup", nil
}

// open returns the box for CLONE_INTO_CGROUP, or nil without version 2.
func (g group) open() (*os.File, error) {
	if g.c.v2 == "" {
		return nil, nil
	}
	return os.Open(filepath.Join(g.v2dir(), "box"))
}

// kill kills every process at once, if the kernel can (Linux 5.14).
func (g group) kill() {
	if g.c.v2 != "" {
		_ = os.WriteFile(filepath.Join(g.v2dir(), "cgroup.kill"), []byte("1"), 0)
	}
}

// remove removes the groups, whose processes must be dead.
func (g group) remove() error {
	var dirs []string
	for _, base := range g.c.bases() {
		dirs = append(dirs, filepath.Join(base, g.name))
	}
	return lifecycle.RemoveCgroups(dirs...)
}

// v1freezer is the group of the version 1 freezer; "" if there is none, or no
// need for one: version 2 has a freezer without any controller.
func (g group) v1freezer() string {
	if g.c.v2 != "" || g.c.v1["freezer"] == "" {
		return ""
	}
	return filepath.Join(g.c.v1["freezer"], g.name)
}

// canFreeze says why sandboxes cannot be frozen; nil if they can.
func (c *cgroups) canFreeze() error {
	if c.v2 == "" && c.v1["freezer"] == "" {
		return errors.New("this machine gives the engine no writable cgroup to freeze the processes of a sandbox with; run as root or see `daytona doctor`")
	}
	return nil
}

// freezeWait is how long the processes have to stop; twice, as the freezer of
// version 1 can miss a group that forks without end.
const freezeWait = 5 * time.Second

// freeze stops all processes, and returns when none runs.
func (g group) freeze(ctx context.Context) error {
	var err error
	for range 2 {
		if err = g.tryFreeze(ctx); err == nil {
			return nil
		}
		if terr := g.thaw(); terr != nil {
			return errors.Join(err, terr)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return err
}

func (g group) tryFreeze(ctx context.Context) error {
	file, value, state, done := filepath.Join(g.v2dir(), "cgroup.freeze"), "1", filepath.Join(g.v2dir(), "cgroup.events"), "frozen 1"
	if dir := g.v1freezer(); dir != "" {
		file, value, done = filepath.Join(dir, "freezer.state"), "FROZEN", "FROZEN"
		state = file
	}
	if err := os.WriteFile(file, []byte(value), 0); err != nil {
		return fmt.Errorf("freeze the sandbox: %w", err)
	}
	deadline := time.Now().Add(freezeWait)
	for wait := 50 * time.Microsecond; ; wait = min(2*wait, 20*time.Millisecond) {
		data, err := os.ReadFile(state)
		if err != nil {
			return fmt.Errorf("freeze the sandbox: %w", err)
		}
		for line := range strings.Lines(string(data)) {
			if strings.TrimSpace(line) == done {
				return nil
			}
		}
		if time.Now().After(deadline) {
			return &daytona.Error{Kind: daytona.KindUnavailable, Op: lifecycle.PauseOp, Message: "its processes did not stop within " + freezeWait.String() + "; is one of them waiting for a disk?"}
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		}
	}
}

// thaw lets the processes go on. Groups that are not there are no error.
func (g group) thaw() error {
	file, value := filepath.Join(g.v2dir(), "cgroup.freeze"), "0"
	if dir := g.v1freezer(); dir != "" {
		file, value = filepath.Join(dir, "freezer.state"), "THAWED"
	} else if g.c.v2 == "" {
		return nil
	}
	if err := os.WriteFile(file, []byte(value), 0); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("thaw the sandbox: %w", err)
	}
	return nil
}

// change puts other limits in force for processes that run.
func (g group) change(ctx context.Context, r, before daytona.Resources) error {
	if m := r.MemoryBytes(); m > 0 && m != before.MemoryBytes() {
		used, err := g.memoryUsed()
		if err != nil {
			return err
		}
		if used > m {
			return inUse(r.Memory, used)
		}
	}
	// A device's limit is not changed.
	r.DiskBandwidth = 0
	limits := g.limits(r, "")
	var missing []string
	for _, l := range limits {
		if _, err := os.Stat(l.dir); errors.Is(err, fs.ErrNotExist) && !slices.Contains(missing, l.dir) {
			missing = append(missing, l.dir)
		}
	}
	if len(missing) > 0 {
		if err := g.extend(ctx, missing); err != nil {
			return err
		}
	}
	if len(g.c.v2controllers) > 0 {
		for _, l := range limits {
			if l.dir == g.v2dir() {
				_ = os.WriteFile(filepath.Join(l.dir, "box", l.file), []byte(l.value), 0)
			}
		}
	}
	// Of memory with swap and memory, in version 1, the lower one must always
	// be memory: which is to be written first depends on the direction.
	again := limits[:0:0]
	for _, l := range limits {
		if err := os.WriteFile(filepath.Join(l.dir, l.file), []byte(l.value), 0); err != nil {
			if strings.HasPrefix(l.file, "memory.") && (errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EBUSY)) {
				again = append(again, l)
				continue
			}
			return fmt.Errorf("limit the sandbox: %s = %s: %w", l.file, l.value, err)
		}
	}
	for _, l := range again {
		err := os.WriteFile(filepath.Join(l.dir, l.file), []byte(l.value), 0)
		if errors.Is(err, unix.EBUSY) {
			used, _ := g.memoryUsed()
			return inUse(r.Memory, used)
		}
		if err != nil {
			return fmt.Errorf("limit the sandbox: %s = %s: %w", l.file, l.value, err)
		}
	}
	return nil
}

func inUse(want float64, used int64) error {
	return &daytona.Error{Kind: daytona.KindConflict, Op: lifecycle.ResizeOp, Field: "Memory", Value: want,
		Message: fmt.Sprintf("%d MiB are in use", used>>20)}
}

// memoryUsed is the memory in use that the kernel cannot just drop.
func (g group) memoryUsed() (int64, error) {
	dir, current, cache := g.v2dir(), "memory.current", "inactive_file"
	if !slices.Contains(g.c.v2controllers, "memory") {
		dir, current, cache = filepath.Join(g.c.v1["memory"], g.name), "memory.usage_in_bytes", "total_inactive_file"
	}
	data, err := os.ReadFile(filepath.Join(dir, current))
	if err != nil {
		return 0, err
	}
	used, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
	if err != nil {
		return 0, err
	}
	stat, err := os.ReadFile(filepath.Join(dir, "memory.stat"))
	if err != nil {
		return used, nil
	}
	for line := range strings.Lines(string(stat)) {
		if f := strings.Fields(line); len(f) == 2 && (f[0] == cache || f[0] == strings.Replace(cache, "inactive", "active", 1)) {
			n, _ := strconv.ParseInt(f[1], 10, 64)
			used -= n
		}
	}
	return max(used, 0), nil
}

// extend puts the processes into groups of version 1 that there was no need for
// when they started. They are frozen for it, so that none is missed.
func (g group) extend(ctx context.Context, dirs []string) error {
	if err := g.freeze(ctx); err != nil {
		return err
	}
	defer func() { _ = g.thaw() }()
	for _, dir := range dirs {
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("make cgroup: %w", err)
		}
	}
	from := g.v2dir()
	if dir := g.v1freezer(); dir != "" {
		from = dir
	}
	return filepath.WalkDir(from, func(p string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || e.Name() != "cgroup.procs" {
			return err
		}
		data, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		for pid := range strings.FieldsSeq(string(data)) {
			for _, dir := range dirs {
				if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(pid), 0); err != nil && !errors.Is(err, unix.ESRCH) {
					return fmt.Errorf("put process %s into its cgroup: %w", pid, err)
				}
			}
		}
		return nil
	})
}
