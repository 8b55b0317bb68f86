//go:build linux

package containerd

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona/internal/lifecycle"
)

// containerd gives up a request whose caller has died. If it was at starting or
// removing a task then, it may leave the shim, and the shim's bundle (its working
// directory, which has the sandbox's name), and know of neither any more, so that
// no request removes them, and the bundle is in the way of the next start. This
// file finds and removes them, past containerd.

// bundlesFile, in the state directory, says where containerd has its bundles. It
// tells nobody, but shims are seen to be there.
const bundlesFile = "bundles"

// learnBundles finds out where bundles are, from a task that runs.
func (b *backend) learnBundles(id string, pid int) {
	if b.bundles() != "" {
		return
	}
	// The first process of a task is a child of its shim.
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return
	}
	for line := range strings.Lines(string(stat)) {
		if parent, ok := strings.CutPrefix(line, "PPid:"); ok {
			dir, err := os.Readlink("/proc/" + strings.TrimSpace(parent) + "/cwd")
			if err != nil || filepath.Base(dir) != b.name(id) {
				return
			}
			if err := os.WriteFile(b.Dir(bundlesFile), []byte(filepath.Dir(dir)), 0o600); err != nil {
				b.log.Warn("where containerd has its bundles could not be written down", "err", err)
			}
			return
		}
	}
}

// bundles is the directory of the bundles; "" if it is not known yet.
func (b *backend) bundles() string {
	dir, err := os.ReadFile(b.Dir(bundlesFile))
	if err != nil {
		return ""
	}
	return string(dir)
}

// debris lists the sandboxes that have a shim or a bundle.
func (b *backend) debris() []string {
	var ids []string
	if dir := b.bundles(); dir != "" {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			ids = append(ids, strings.TrimPrefix(e.Name(), b.name("")))
		}
	}
	for id := range b.shims() {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return slices.DeleteFunc(slices.Compact(ids), func(id string) bool { return !lifecycle.ValidID(id) })
}

// shims finds the processes that serve this state directory's tasks, by sandbox.
func (b *backend) shims() map[string]int {
	found := map[string]int{}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		cmdline, err := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		if err != nil {
			continue
		}
		// containerd-shim-… -namespace N -id ID -address A
		args := strings.Split(string(cmdline), "\x00")
		id, ours := strings.CutPrefix(argument(args, "-id"), b.name(""))
		if ours && strings.HasPrefix(filepath.Base(args[0]), "containerd-shim-") && argument(args, "-namespace") == b.opts.Namespace {
			found[id] = pid
		}
	}
	return found
}

func argument(args []string, name string) string {
	if i := slices.Index(args, name); i >= 0 && i+1 < len(args) {
		return args[i+1]
	}
	return ""
}

// removeDebris removes the shim and the bundle of a sandbox that has no task.
func (b *backend) removeDebris(id string) error {
	if pid := b.shims()[id]; pid != 0 {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
	dir := b.bundles()
	if dir == "" {
		return nil
	}
	dir = filepath.Join(dir, b.name(id))
	// containerd notices the shim's end, and removes what it left, if it knew it.
	for end := time.Now().Add(settle); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
	}
	// The sandbox's files may still be mounted there, which must not be removed.
	root := filepath.Join(dir, "rootfs")
	for unix.Unmount(root, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) == nil {
	}
	if err := os.Remove(root); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	work, _ := os.Readlink(filepath.Join(dir, "work"))
	if filepath.Base(work) == b.name(id) {
		if err := os.RemoveAll(work); err != nil {
			return err
		}
	}
	return os.RemoveAll(dir)
}
