//go:build linux

package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/continuity/fs"
	"github.com/daytona-go/daytona"
	"github.com/moby/buildkit/executor"
	resourcestypes "github.com/moby/buildkit/executor/resources/types"
	gatewayapi "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/sys/user"
)

// executorOf executes BuildKit's RUN steps by a Runner.
type executorOf struct {
	runner Runner
	engine *engine
	snap   *recordingSnapshotter
}

func (x *executorOf) Exec(context.Context, string, executor.ProcessInfo) error {
	return errors.New("a second process in a step is not supported")
}

// defaultTmpfs is the size of a tmpfs whose size nobody gives: it is memory, and
// counts as such.
const defaultTmpfs = 1 << 30

func (x *executorOf) Run(ctx context.Context, id string, root executor.Mount, mounts []executor.Mount, p executor.ProcessInfo, started chan<- struct{}) (_ resourcestypes.Recorder, err error) {
	if started != nil {
		close(started)
	}
	if p.Stdout != nil {
		defer p.Stdout.Close()
	}
	if p.Stderr != nil {
		defer p.Stderr.Close()
	}
	now, err := x.engine.running()
	if err != nil {
		return nil, err
	}
	m := p.Meta
	s := Step{Args: m.Args, Env: m.Env, Dir: path.Clean("/" + m.Cwd), Hostname: "build", Network: now.opts.Network, Resources: now.opts.Resources,
		Stdout: io.Discard, Stderr: io.Discard}
	if p.Stdout != nil {
		s.Stdout = p.Stdout
	}
	if p.Stderr != nil {
		s.Stderr = p.Stderr
	}
	if m.Hostname != "" {
		s.Hostname = m.Hostname
	}
	for _, h := range m.ExtraHosts {
		s.Hosts += h.IP.String() + "\t" + h.Host + "\n"
	}
	unsupported := func(what string) error {
		return &daytona.Error{Kind: daytona.KindUnsupported, Op: op, Message: what + " is not supported"}
	}
	switch {
	case m.NetMode == pb.NetMode_NONE:
		s.Network = daytona.NetworkPolicy{Block: true}
	case m.NetMode != pb.NetMode_UNSET:
		return nil, unsupported("network mode " + m.NetMode.String())
	case m.SecurityMode != pb.SecurityMode_SANDBOX:
		return nil, unsupported("security mode " + m.SecurityMode.String())
	case len(m.CDIDevices) > 0:
		return nil, unsupported("RUN --device")
	case m.Tty, len(m.Ulimit) > 0, m.Proxy != nil:
		return nil, unsupported("a terminal, ulimits or a proxy")
	case m.ReadonlyRootFS || root.Readonly:
		return nil, unsupported("a read-only root file system")
	}
	layers, _, dir, release, err := x.files(ctx, root)
	if err != nil {
		return nil, err
	}
	defer release()
	if layers.Upper == "" {
		return nil, unsupported("RUN on an empty image")
	}
	s.Root = layers
	// dir is where the root is mounted on the host: it is read before the step
	// and not used any more after.
	who, err := findUser(dir, m.User)
	if err != nil {
		return nil, err
	}
	s.UID, s.GID, s.Groups = who.Uid, who.Gid, who.Sgids
	if !hasEnv(s.Env, "HOME") {
		s.Env = append(append([]string{}, s.Env...), "HOME="+who.Home)
	}
	targets := []string{"/etc/hosts", "/etc/resolv.conf"}
	for _, mnt := range mounts {
		targets = append(targets, mnt.Dest)
		l, source, _, release, err := x.files(ctx, mnt)
		if err != nil {
			return nil, err
		}
		defer release()
		to := Mount{Target: mnt.Dest, ReadOnly: mnt.Readonly, Layers: l, Sub: mnt.Selector}
		switch {
		case len(l.Lower) > 0:
		case source.Type == "tmpfs":
			to.Tmpfs = defaultTmpfs
			for _, o := range source.Options {
				if v, ok := strings.CutPrefix(o, "size="); ok {
					if to.Tmpfs, err = strconv.ParseInt(v, 10, 64); err != nil {
						return nil, err
					}
				}
				to.ReadOnly = to.ReadOnly || o == "ro"
			}
		case source.Type == "bind" || source.Type == "rbind":
			to.Dir = source.Source
			for _, o := range source.Options {
				to.ReadOnly = to.ReadOnly || o == "ro"
			}
		default:
			return nil, unsupported("a mount of type " + source.Type)
		}
		s.Mounts = append(s.Mounts, to)
	}
	stubs := missing(dir, targets)
	if t := now.opts.StepTimeout; t > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, t, &daytona.Error{Kind: daytona.KindTimeout, Op: op, Field: "StepTimeout", Value: t.String(), Message: "the step took longer and was killed"})
		defer cancel()
	}
	err = x.runner.RunStep(ctx, s)
	removeStubs(layers.Upper, stubs)
	if exit, ok := errors.AsType[*daytona.ExitError](err); ok {
		for _, c := range m.ValidExitCodes {
			if c == exit.ExitCode {
				return nil, nil
			}
		}
		return nil, &gatewayapi.ExitError{ExitCode: uint32(exit.ExitCode), Err: err}
	}
	return nil, err
}

// files finds where a mount's files are: in layers, or as one mount. dir is where
// BuildKit has mounted layers that can be written.
func (x *executorOf) files(ctx context.Context, m executor.Mount) (_ Layers, _ mount.Mount, dir string, release func(), err error) {
	ref, err := m.Src.Mount(ctx, m.Readonly)
	if err != nil {
		return Layers{}, mount.Mount{}, "", nil, err
	}
	ms, done, err := ref.Mount()
	if err != nil {
		return Layers{}, mount.Mount{}, "", nil, err
	}
	release = func() {
		if done != nil {
			_ = done()
		}
	}
	if len(ms) != 1 {
		release()
		return Layers{}, mount.Mount{}, "", nil, fmt.Errorf("%d mounts for %s", len(ms), m.Dest)
	}
	if ms[0].Type == "overlay" {
		return layersOf(ms[0]), ms[0], "", release, nil
	}
	if ms[0].Type == "bind" || ms[0].Type == "rbind" {
		l, ok, err := x.snap.mountedAt(ms[0].Source)
		if err != nil {
			release()
			return Layers{}, mount.Mount{}, "", nil, err
		}
		if ok {
			return l, ms[0], ms[0].Source, release, nil
		}
	}
	return Layers{}, ms[0], "", release, nil
}

func hasEnv(env []string, name string) bool {
	for _, kv := range env {
		if strings.HasPrefix(kv, name+"=") {
			return true
		}
	}
	return false
}

// findUser finds who a step runs as, in the image's own files.
func findUser(root, name string) (*user.ExecUser, error) {
	open := func(p string) io.Reader {
		real, err := fs.RootPath(root, p)
		if err != nil {
			return nil
		}
		// A step before may have made a pipe of it, which is not waited for.
		f, err := os.OpenFile(real, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
		if err != nil {
			return nil
		}
		defer f.Close()
		if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
			return nil
		}
		data, err := io.ReadAll(io.LimitReader(f, 4<<20))
		if err != nil {
			return nil
		}
		return strings.NewReader(string(data))
	}
	if name == "" {
		name = "0"
	}
	u, err := user.GetExecUser(name, &user.ExecUser{Home: "/"}, open("/etc/passwd"), open("/etc/group"))
	if err != nil {
		return nil, &daytona.Error{Kind: daytona.KindInvalid, Op: op, Field: "USER", Value: name, Message: "the image has no such user", Err: err}
	}
	return u, nil
}

// missing lists the targets of mounts that the root does not have: what has to
// be made to mount them is no part of the image.
func missing(root string, targets []string) []string {
	var stubs []string
	for _, t := range targets {
		p, err := fs.RootPath(root, path.Clean("/"+t))
		if err != nil {
			continue
		}
		if _, err := os.Lstat(p); err != nil {
			if rel, err := filepath.Rel(root, p); err == nil && rel != "." {
				stubs = append(stubs, rel)
			}
		}
	}
	return stubs
}

// removeStubs removes from a step's own layer what was made for mounts, if it is
// still empty.
func removeStubs(upper string, stubs []string) {
	root, err := os.OpenRoot(upper)
	if err != nil {
		return
	}
	defer root.Close()
	for _, s := range stubs {
		st, err := root.Lstat(s)
		if err != nil || (!st.IsDir() && (!st.Mode().IsRegular() || st.Size() != 0)) {
			continue
		}
		var when time.Time
		if dir, err := root.Stat(path.Dir(s)); err == nil {
			when = dir.ModTime()
		}
		if root.Remove(s) == nil && !when.IsZero() { // a directory with something in it stays
			_ = root.Chtimes(path.Dir(s), when, when)
		}
	}
}
