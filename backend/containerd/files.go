//go:build linux

package containerd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/lifecycle"
)

// The ways to an agent, by what Options.Transport calls them.
const (
	viaSocket = "socket"
	viaExec   = "exec"
)

// dial connects to the agent of a sandbox, in the root directory of its first
// process, or through a relay where the host does not see that. What is there is hostile: nothing is followed out of it, and what is
// not a socket is no agent.
func (b *backend) dial(ctx context.Context, id string) (net.Conn, error) {
	r, err := b.Load(id)
	if err != nil {
		return nil, err
	}
	if r.Own.Transport == viaExec {
		return b.relays.Dial(ctx, id, r.Own.PID)
	}
	c, err := lifecycle.DialBeneath(ctx, "/proc/"+strconv.Itoa(r.Own.PID)+"/root", strings.TrimPrefix(socketFile, "/"))
	if err != nil {
		return nil, err
	}
	// It was the process's directory if the process is there still.
	if !r.Own.Running() {
		c.Close()
		return nil, fmt.Errorf("its first process has ended: %w", fs.ErrNotExist)
	}
	return c, nil
}

// checkFiles refuses to start a container in which the files of users are not
// files: the image, or its root, may have put a pipe there. The OCI runtime opens
// them before anything else, and would wait for ever for somebody to write to
// it. The file system is looked at through a mount that nobody else sees, and
// that goes with this thread.
func (b *backend) checkFiles(ctx context.Context, op string, r *record) error {
	mounts, err := b.api.SnapshotService(r.Own.Snapshotter).Mounts(ctx, b.name(r.ID))
	if err != nil {
		return err
	}
	dir := b.File(r.ID, "root")
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	result := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with the goroutine, and its mount
		// namespace with the thread.
		runtime.LockOSThread()
		result <- func() error {
			if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
				return os.NewSyscallError("unshare", err)
			}
			if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
				return os.NewSyscallError("mount", err)
			}
			if err := mountReadOnly(mounts, dir); err != nil {
				return err
			}
			root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			if err != nil {
				return os.NewSyscallError("open", err)
			}
			defer unix.Close(root)
			for _, file := range []string{"etc/passwd", "etc/group"} {
				if err := checkRegular(root, file); err != nil {
					return &daytona.Error{Kind: daytona.KindInvalid, Op: op, Field: "Image", Value: r.Image, Err: err}
				}
			}
			return nil
		}()
	}()
	return <-result
}

// checkRegular refuses a file that is there and is not a regular one.
func checkRegular(root int, file string) error {
	fd, err := unix.Openat2(root, file, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS})
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		return nil // the runtime will not find it either
	case err != nil:
		return &fs.PathError{Op: "open", Path: "/" + file, Err: err}
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return fmt.Errorf("its /%s is no regular file (mode %o)", file, st.Mode)
	}
	return nil
}

// mountReadOnly mounts a snapshot from within the calling thread, whose working
// directory it may change. (containerd's own mounting hands long options to
// another thread, which is not in this one's mount namespace.)
func mountReadOnly(mounts []mount.Mount, dir string) error {
	for _, m := range mounts {
		if m.Type == "bind" || m.Type == "rbind" {
			if err := unix.Mount(m.Source, dir, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
				return &fs.PathError{Op: "mount", Path: m.Source, Err: err}
			}
			continue
		}
		options := dataOptions(m.Options)
		if m.Type == "overlay" {
			options = overlayBelow(options)
			// A mount's options are at most a page, which the paths of many layers
			// exceed: so they are written from where the layers are.
			if common := layersDir(options); common != "" {
				if err := unix.Chdir(common); err != nil {
					return &fs.PathError{Op: "chdir", Path: common, Err: err}
				}
				for i := range options {
					options[i] = strings.ReplaceAll(options[i], common+"/", "")
				}
			}
		}
		data := strings.Join(options, ",")
		if err := unix.Mount(m.Source, dir, m.Type, unix.MS_RDONLY|unix.MS_NODEV|unix.MS_NOSUID|unix.MS_NOEXEC, data); err != nil {
			return &fs.PathError{Op: "mount " + m.Type, Path: m.Source, Err: err}
		}
	}
	return nil
}

// dataOptions are the options of a file system, without those of a mount.
func dataOptions(options []string) []string {
	var data []string
	for _, o := range options {
		switch o {
		case "ro", "rw", "bind", "rbind", "nodev", "nosuid", "noexec", "noatime", "relatime", "volatile":
		default:
			data = append(data, o)
		}
	}
	return data
}

// overlayBelow are the options for an overlay of the same files that cannot
// write: its upper layer is the top one of the lower. (Mounted for writing twice
// at a time, the one would take away the other's work directory.)
func overlayBelow(options []string) []string {
	var upper, lower string
	var rest []string
	for _, o := range options {
		switch key, value, _ := strings.Cut(o, "="); key {
		case "upperdir":
			upper = value + ":"
		case "lowerdir":
			lower = value
		case "workdir", "index":
		default:
			rest = append(rest, o)
		}
	}
	return append(rest, "lowerdir="+upper+lower)
}

// layersDir is the directory that an overlay's layers have in common; "" if
// there is none.
func layersDir(options []string) string {
	for _, o := range options {
		if layers, ok := strings.CutPrefix(o, "lowerdir="); ok {
			var common string
			for i, l := range strings.Split(layers, ":") {
				// …/snapshots/12/fs
				parent := filepath.Dir(filepath.Dir(l))
				if i > 0 && parent != common {
					return ""
				}
				common = parent
			}
			return common
		}
	}
	return ""
}
