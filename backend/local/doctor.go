package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/agentbin"
	"golang.org/x/sys/unix"
)

// Status is how well a machine supports something.
type Status string

// The statuses.
const (
	StatusOK      Status = "ok"      // all of it works
	StatusLimited Status = "limited" // sandboxes run, but something is refused or weaker
	StatusMissing Status = "missing" // sandboxes cannot run
)

// Finding is what [Diagnose] found out about one thing.
type Finding struct {
	// Name of the thing, such as "memory limit".
	Name string `json:"name"`
	// Status is how well it is supported.
	Status Status `json:"status"`
	// Detail says in plain words what is so.
	Detail string `json:"detail"`
	// Remedy says what to do about it. Empty if there is nothing to do.
	Remedy string `json:"remedy,omitempty"`
}

// Diagnose says what this machine supports, as the user that it runs as, by
// trying: it runs a sandbox if it can. nil options are the defaults.
func Diagnose(ctx context.Context, opts *Options) []Finding {
	var fs []Finding
	add := func(name string, s Status, remedy, format string, args ...any) {
		fs = append(fs, Finding{Name: name, Status: s, Detail: fmt.Sprintf(format, args...), Remedy: remedy})
	}
	var u unix.Utsname
	_ = unix.Uname(&u)
	release := unix.ByteSliceToString(u.Release[:])
	if err := supported(); err != nil {
		add("kernel", StatusMissing, "", "Linux %s: %v", release, err)
		return fs
	}
	add("kernel", StatusOK, "", "Linux %s", release)
	root := os.Geteuid() == 0
	if root {
		add("user", StatusOK, "", "running as root: every sandbox has its own range of users, none of which exists on the host")
	} else if ids := findSubIDs(); ids != nil {
		add("user", StatusOK, "", "running rootless with newuidmap: sandboxes share your range of users from /etc/subuid (%d and up)", ids.uids[1].HostID)
	} else {
		add("user", StatusLimited, "install newuidmap (Debian: apt-get install uidmap) and give yourself a range: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $USER",
			"running rootless without newuidmap: a sandbox has one user only, who owns all of its files, and images that need others do not fully work")
	}
	var o Options
	if opts != nil {
		o = *opts
	}
	e, err := newEngine(ctx, &o)
	if err != nil {
		remedy := ""
		if _, notFound := errors.AsType[*agentbin.NotFoundError](err); notFound {
			remedy = "install a release build, or Go"
		}
		add("engine", StatusMissing, remedy, "%v", err)
		return fs
	}
	defer e.Close()
	add("state", StatusOK, "", "kept in %s", e.Root)
	noLimit := "run as root, or inside a systemd user session (systemd-run --user --scope -p Delegate=yes)"
	if root {
		noLimit = "mount the cgroup file system with this controller"
	}
	for _, l := range []struct{ name, controller, effect string }{
		{"CPU limit", "cpu", "a spec with Resources.CPU is refused"},
		{"memory limit", "memory", "a spec with Resources.Memory is refused, and a sandbox may use all of the machine's memory"},
		{"process limit", "pids", "it is kept by RLIMIT_NPROC, for each user of the sandbox separately"},
		{"I/O limit", "io", "a spec with Resources.DiskBandwidth is refused"},
	} {
		if e.cgroups.has(l.controller) {
			version := "version 2"
			if e.cgroups.v1[strings.Replace(l.controller, "io", "blkio", 1)] != "" {
				version = "version 1"
			}
			add(l.name, StatusOK, "", "by cgroups, %s", version)
		} else {
			add(l.name, StatusLimited, noLimit, "no writable cgroup with controller %q: %s", l.controller, l.effect)
		}
	}
	if e.cgroups.v2 != "" {
		add("ending programs", StatusOK, "", "every command has a cgroup of its own: a timeout ends all that it started")
	} else {
		add("ending programs", StatusLimited, noLimit, "no writable cgroup of version 2: what a command started is found by process group, session, parent and environment")
	}
	if why := canLimitDisk(); why == "" {
		add("disk limit", StatusOK, "", "by a file system of that size in a sparse file")
	} else {
		add("disk limit", StatusLimited, "", "a spec with Resources.Disk is refused: %s", why)
	}
	if root && !e.canMap(e.Root) {
		add("file owners", StatusLimited, "put the state directory on ext4, xfs, btrfs or tmpfs",
			"the file system of %s does not support id-mapped mounts: files of images belong to nobody in sandboxes", e.Root)
	}
	fs = append(fs, e.diagnoseNetwork(ctx)...)
	if _, err := exec.LookPath("python3"); err != nil {
		add("python3", StatusLimited, "install python3, or use an image that has it", "the host has no python3, so neither has the \"host\" image")
	}
	if detail, err := e.trySandbox(ctx); err != nil {
		add("sandbox", StatusMissing, remedyOf(err), "a first sandbox did not run: %v", err)
	} else {
		add("sandbox", StatusOK, "", "%s", detail)
	}
	return fs
}

// remedyOf knows the usual reasons for which a sandbox does not start.
func remedyOf(err error) string {
	boot, ok := errors.AsType[*bootError](err)
	if !ok {
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
			return "this looks like a container or a security module that forbids user namespaces: run on the host, or allow the clone and mount system calls"
		}
		return ""
	}
	switch boot.m.Step {
	case "mount /proc":
		return "the /proc of this machine is partly hidden, as in a container: run on the host, or start the container with an unmasked /proc"
	}
	return ""
}

// trySandbox runs a sandbox without a network and tells how long it took.
func (e *engine) trySandbox(ctx context.Context) (string, error) {
	begin := time.Now()
	c := daytona.New(e)
	sb, err := c.Create(ctx, daytona.Spec{Network: daytona.NetworkPolicy{Block: true}})
	if err != nil {
		return "", err
	}
	defer sb.Delete(context.WithoutCancel(ctx))
	out, err := sb.Process().Command(ctx, "uname", "-sm").Output()
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("a first sandbox answered %q after %d ms", strings.TrimSpace(string(out)), time.Since(begin).Milliseconds()), nil
}
