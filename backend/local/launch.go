package local

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/daytona-go/daytona/internal/boot"
	"github.com/daytona-go/daytona/internal/lifecycle"
	"golang.org/x/sys/unix"
)

// spawner is one OS thread that starts all sandboxes. It lives as long as the
// engine: sandboxes that must die with the engine die with this thread
// (PR_SET_PDEATHSIG counts threads, prctl(2)). It may join a network
// namespace to start a process in it, as nothing else runs on it.
type spawner struct {
	work chan func()
}

func newSpawner() *spawner {
	s := &spawner{work: make(chan func())}
	go func() {
		runtime.LockOSThread() // and never unlock: the thread ends with the goroutine
		// Rights stay when this thread's user changes, see clone.
		_ = unix.Prctl(unix.PR_SET_SECUREBITS, secbitNoSetuidFixup, 0, 0, 0)
		for f := range s.work {
			f()
		}
	}()
	return s
}

// secbitNoSetuidFixup is SECBIT_NO_SETUID_FIXUP of capabilities(7).
const secbitNoSetuidFixup = 1 << 2

// setThreadEUID changes the effective user of this thread alone.
func setThreadEUID(uid int) error {
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); errno != 0 {
		return os.NewSyscallError("setresuid", errno)
	}
	return nil
}

func (s *spawner) do(f func()) {
	done := make(chan struct{})
	s.work <- func() { defer close(done); f() }
	<-done
}

func (s *spawner) close() { close(s.work) }

// memfd returns a sealed copy of a file: it cannot be written by anybody, not
// even through /proc/self/exe of what runs from it (CVE-2019-5736).
func memfd(name string, content io.Reader) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3 there was no MFD_EXEC
		fd, err = unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err := io.Copy(f, content); err != nil {
		f.Close()
		return nil, err
	}
	if err := unix.Fchmod(fd, 0o755); err != nil {
		f.Close()
		return nil, err
	}
	if err := seal(f); err != nil {
		f.Close()
		return nil, fmt.Errorf("seal: %w", err)
	}
	return f, nil
}

// seal takes the right to change a memfd from everybody.
func seal(f *os.File) error {
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		_, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
		// The kernel is at one of its pages, to move it or to write it out. It waits
		// for that itself, but not long (mm/memfd.c, memfd_wait_for_pins).
		if !errors.Is(err, unix.EBUSY) || time.Now().After(end) {
			return err
		}
	}
}

// idMapping is how the ids of a sandbox's user namespace are made.
type idMapping struct {
	uids, gids []syscall.SysProcIDMap
	// viaTools has newuidmap and newgidmap write the maps.
	viaTools bool
	// single says that there is but one user, with the id that uids[0] gives.
	single bool
}

// proc is a running PID 1 of a sandbox.
type proc struct {
	*lifecycle.Process
	group group
}

// Kill ends the sandbox, even one that is frozen: there the signal waits until
// it is thawed, but nothing else happens first.
func (p *proc) Kill() {
	_ = p.Signal(unix.SIGKILL)
	_ = p.group.thaw()
	<-p.Done()
}

func (p *proc) Is(r *record) bool { return p.PID == r.Own.PID }

// launch is all that is needed to start a sandbox's processes.
type launch struct {
	plan     *boot.Plan
	config   []byte   // the agent's
	listener *os.File // the agent's
	log      *os.File // standard error of boot and agent
	stdout   *os.File // of a step; nil for an agent, which has none
	netns    *os.File // to join, or nil for a new one
	group    group
	ids      idMapping
	// cloned is called when the process is there and waits for its plan.
	cloned func(p *proc) error
	// mounts makes the detached mounts, in the order of boot.Source.Mount.
	mounts func(userns *os.File) ([]*os.File, error)
	// held is closed when the sandbox runs, or does not.
	held []*os.File
	// device takes over the packets of a userspace network.
	device func(kind string, dev, pidfd *os.File) error
}

// run starts the process and sees it through boot. When it returns without
// error the agent has been executed.
func (e *engine) run(ctx context.Context, l launch) (_ *proc, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "boot"), os.NewFile(uintptr(pair[1]), "boot")
	defer ours.Close()
	defer theirs.Close()
	config, err := memfd("config", bytes.NewReader(l.config))
	if err != nil {
		return nil, err
	}
	defer config.Close()
	if _, err := config.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	p, err := e.clone(l, null, config, theirs)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			p.Kill()
			p.Close()
		}
	}()
	theirs.Close()
	// A cancelled context kills the process, which ends the exchange.
	killed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(killed)
		_ = p.Signal(unix.SIGKILL)
	})
	defer func() {
		if !stop() {
			<-killed // before the descriptor is closed
		}
	}()

	if err := l.cloned(p); err != nil {
		return nil, err
	}
	if l.ids.viaTools {
		if err := e.mapIDs(ctx, p.PID, l.ids); err != nil {
			return nil, err
		}
	}
	// The kernel waits for all CPUs before it moves a process to a version 1
	// cgroup: boot begins meanwhile.
	moved := make(chan error, 1)
	if l.plan.AwaitCgroups = len(l.group.c.v1) > 0; l.plan.AwaitCgroups {
		go func() { moved <- l.group.add(p.PID) }()
	}
	userns, err := os.Open("/proc/" + strconv.Itoa(p.PID) + "/ns/user")
	if err != nil {
		return nil, fmt.Errorf("open the sandbox's user namespace: %w", err)
	}
	mounts, err := l.mounts(userns)
	userns.Close()
	if err != nil {
		return nil, err
	}
	fds := make([]int, len(mounts))
	for i, m := range mounts {
		fds[i] = int(m.Fd())
	}
	body, err := json.Marshal(l.plan)
	if err == nil {
		var oob []byte
		if len(fds) > 0 {
			oob = unix.UnixRights(fds...)
		}
		_ = unix.SetsockoptInt(pair[0], unix.SOL_SOCKET, unix.SO_SNDBUF, 2*len(body)+1<<16)
		err = unix.Sendmsg(pair[0], body, oob, nil, unix.MSG_NOSIGNAL)
	}
	for _, m := range mounts {
		m.Close()
	}
	if err != nil && ctx.Err() == nil {
		return nil, fmt.Errorf("send the plan to boot: %w", err)
	}
	if l.plan.AwaitCgroups {
		// That the process is gone is of no interest: why it is, it has told.
		if err = <-moved; err == nil || errors.Is(err, unix.ESRCH) {
			_ = unix.Sendmsg(pair[0], []byte{1}, nil, nil, unix.MSG_NOSIGNAL)
		} else {
			return nil, err
		}
	}
	if told := l.exchange(ctx, pair[0], p); told != nil {
		err = told
	}
	if err != nil {
		return nil, err
	}
	return p, nil
}

// exchange reads boot's messages up to the end of the socket.
func (l *launch) exchange(ctx context.Context, sock int, p *proc) error {
	buf, oob := make([]byte, 64<<10), make([]byte, unix.CmsgSpace(4))
	for {
		n, oobn, _, _, err := unix.Recvmsg(sock, buf, oob, unix.MSG_CMSG_CLOEXEC)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return fmt.Errorf("read from boot: %w", err)
		}
		if n == 0 {
			return nil
		}
		var m boot.Message
		if err := json.Unmarshal(buf[:n], &m); err != nil {
			return fmt.Errorf("read from boot: %w", err)
		}
		if m.Error != "" {
			return &bootError{m}
		}
		if m.Device != "" {
			msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
			if err != nil || len(msgs) != 1 {
				return errors.New("boot sent no network device")
			}
			rights, err := unix.ParseUnixRights(&msgs[0])
			if err != nil || len(rights) != 1 {
				return errors.New("boot sent no network device")
			}
			dev := os.NewFile(uintptr(rights[0]), "net")
			err = l.device(m.Device, dev, p.Pidfd)
			dev.Close()
			if err != nil {
				return err
			}
		}
	}
}

// bootError is a step of boot that went wrong inside the new namespaces.
type bootError struct{ m boot.Message }

func (e *bootError) Error() string { return e.m.Step + ": " + e.m.Error }

func (e *bootError) Unwrap() error {
	if e.m.Errno != 0 {
		return unix.Errno(e.m.Errno)
	}
	return nil
}

// clone starts the process in its new namespaces; it waits for the plan.
func (e *engine) clone(l launch, null, config, sync *os.File) (*proc, error) {
	pidfd := -1
	attr := &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		PidFD:      &pidfd,
		Setsid:     true,
	}
	if l.netns == nil {
		attr.Cloneflags |= unix.CLONE_NEWNET
	}
	if !l.ids.viaTools {
		attr.UidMappings, attr.GidMappings = l.ids.uids, l.ids.gids
		attr.GidMappingsEnableSetgroups = !l.ids.single
	}
	if os.Geteuid() == 0 {
		attr.Credential = &syscall.Credential{Uid: 0, Gid: 0}
	} else {
		// The rights of a new user namespace's first process end with an exec
		// unless it is root there; ambient ones stay (capabilities(7)).
		for c := range uintptr(unix.CAP_LAST_CAP + 1) {
			attr.AmbientCaps = append(attr.AmbientCaps, c)
		}
	}
	box, err := l.group.open()
	if err != nil {
		return nil, fmt.Errorf("open the sandbox's cgroup: %w", err)
	}
	if box != nil {
		defer box.Close()
		attr.UseCgroupFD, attr.CgroupFD = true, int(box.Fd())
	}
	files := []*os.File{null, cmp.Or(l.stdout, null), l.log}
	for fd, f := range map[int]*os.File{boot.FDListener: cmp.Or(l.listener, null), boot.FDConfig: config, boot.FDSync: sync, boot.FDAgent: e.agent} {
		for len(files) <= fd {
			files = append(files, nil)
		}
		files[fd] = f
	}
	var p *os.Process
	e.spawner.do(func() {
		if e.root {
			// Whoever makes a user namespace owns it and pays for what is in it:
			// the kernel counts inotify instances and much else by owner, so each
			// sandbox has its own (user_namespaces(7), user.max_* limits).
			if err = setThreadEUID(l.ids.uids[0].HostID); err != nil {
				return
			}
			defer func() {
				if err := setThreadEUID(0); err != nil {
					panic("daytona: cannot become root again: " + err.Error())
				}
			}()
		}
		if l.netns != nil {
			if err = unix.Setns(int(l.netns.Fd()), unix.CLONE_NEWNET); err != nil {
				err = fmt.Errorf("join the sandbox's network namespace: %w", err)
				return
			}
			defer func() {
				if err := unix.Setns(int(e.hostNet.Fd()), unix.CLONE_NEWNET); err != nil {
					// Everything that this thread starts would be in the wrong network.
					panic("daytona: cannot return to the host's network namespace: " + err.Error())
				}
			}()
		}
		p, err = os.StartProcess("/proc/self/fd/"+strconv.Itoa(boot.FDAgent), []string{"daytona-agent", "boot"},
			&os.ProcAttr{Dir: "/", Env: []string{}, Files: files, Sys: attr})
	})
	if err != nil {
		return nil, fmt.Errorf("clone the sandbox's first process: %w", err)
	}
	pid := p.Pid
	_ = p.Release()
	if pidfd < 0 {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			_ = unix.Kill(pid, unix.SIGKILL)
			return nil, os.NewSyscallError("pidfd_open", err)
		}
		pidfd = fd
	}
	_ = unix.SetNonblock(pidfd, true) // so that the runtime's poller takes it
	return &proc{lifecycle.FollowProcess(pid, os.NewFile(uintptr(pidfd), "pidfd")), l.group}, nil
}

// mapIDs has the setuid tools of the distribution write the maps, from the
// ranges that /etc/subuid and /etc/subgid give this user (newuidmap(1)).
func (e *engine) mapIDs(ctx context.Context, pid int, ids idMapping) error {
	for _, t := range []struct {
		tool string
		maps []syscall.SysProcIDMap
	}{{"newuidmap", ids.uids}, {"newgidmap", ids.gids}} {
		args := []string{strconv.Itoa(pid)}
		for _, m := range t.maps {
			args = append(args, strconv.Itoa(m.ContainerID), strconv.Itoa(m.HostID), strconv.Itoa(m.Size))
		}
		if out, err := exec.CommandContext(ctx, t.tool, args...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s %s: %w: %s", t.tool, strings.Join(args, " "), err, bytes.TrimSpace(out))
		}
	}
	return nil
}

// cloneMount makes a detached mount of a directory.
func cloneMount(dir string) (*os.File, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, &os.PathError{Op: "open_tree", Path: dir, Err: err}
	}
	return os.NewFile(uintptr(fd), dir), nil
}

// idmap makes the files of a detached mount appear in a user namespace with
// the ids that they have on disk.
func idmap(mount, userns *os.File) error {
	err := unix.MountSetattr(int(mount.Fd()), "", unix.AT_EMPTY_PATH, &unix.MountAttr{
		Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(userns.Fd()),
	})
	if err != nil {
		return &os.PathError{Op: "map the ids of mount", Path: mount.Name(), Err: err}
	}
	return nil
}

const bootTimeout = 60 * time.Second
