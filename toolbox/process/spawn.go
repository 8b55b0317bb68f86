package process

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona/toolbox/account"
)

// Spawner starts programs as the sandbox's account and can kill each with
// everything that it started. It is safe for concurrent use.
type Spawner struct {
	account *account.Account
	workDir string
	environ func() []string
	logger  *slog.Logger
	reaper  *Reaper
	groups  *cgroups
	null    int
	// procFD says that /proc/self/fd can be used to enter a directory by
	// descriptor.
	procFD bool
	// oomScore is what programs get for their oom_score_adj; nil to leave it.
	oomScore []byte
}

// NewSpawner returns a Spawner. Close it when nothing it started matters any
// more.
func NewSpawner(opts Options) (*Spawner, error) {
	s := &Spawner{account: opts.Account, workDir: opts.WorkDir, environ: opts.Environ, logger: opts.Logger, reaper: opts.Reaper}
	if s.account == nil {
		s.account = account.Current()
	}
	if s.logger == nil {
		s.logger = slog.New(slog.DiscardHandler)
	}
	if s.environ == nil {
		s.environ = func() []string { return nil }
	}
	if s.workDir == "" {
		s.workDir = s.account.Home
	}
	if s.workDir == "" {
		s.workDir = "/"
	}
	var err error
	if s.null, err = unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
		return nil, fmt.Errorf("open the null device for programs without input: %w", err)
	}
	// What the agent itself inherited (a listening socket, say) must not reach
	// the programs; everything Go opens is close-on-exec already.
	_ = unix.CloseRange(3, ^uint(0)>>1, unix.CLOSE_RANGE_CLOEXEC)
	_, err = os.Stat("/proc/self/fd")
	s.procFD = err == nil
	s.oomScore = oomScore()
	if opts.CgroupDir != "" {
		if s.groups, err = newCgroups(opts.CgroupDir); err != nil {
			s.logger.Warn("programs are not put into cgroups; killing falls back to process groups and markers", "dir", opts.CgroupDir, "error", err)
		}
	}
	return s, nil
}

// moreLikely is by how much programs are preferred to the agent when memory runs
// out: as if they took this many thousandths of the limit more than they do.
const moreLikely = 250

// oomScore is the agent's own oom_score_adj and more. With the same one, a limit
// reached by many small programs ends the largest process, and that is the agent,
// and the sandbox with it. Who may not lower it may raise it (proc(5)).
func oomScore() []byte {
	data, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return nil
	}
	own, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return nil
	}
	return strconv.AppendInt(nil, int64(min(own+moreLikely, 1000)), 10)
}

// prefer makes a program that has just started one that goes before the agent.
func (s *Spawner) prefer(pid int) {
	if s.oomScore == nil {
		return
	}
	fd, err := unix.Open("/proc/"+strconv.Itoa(pid)+"/oom_score_adj", unix.O_WRONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return // it has ended, or no procfs lets us
	}
	_, _ = unix.Write(fd, s.oomScore)
	unix.Close(fd)
}

// Close removes the empty cgroups. It does not kill anything.
func (s *Spawner) Close() {
	if s.groups != nil {
		s.groups.close()
	}
	unix.Close(s.null)
}

// Account is whom programs run as.
func (s *Spawner) Account() *account.Account { return s.account }

// WorkDir is where programs run by default.
func (s *Spawner) WorkDir() string { return s.workDir }

// Spec describes a program to start.
type Spec struct {
	// Args is the program and its arguments. The program is looked up in the
	// PATH of the program's environment unless it contains a slash. Required.
	Args []string
	// Path is the file to execute. Defaults to what Args[0] is found as.
	Path string
	// Dir is the directory to run in; relative to the Spawner's working
	// directory, to which it defaults.
	Dir string
	// Env is added to the Spawner's environment. Defaults to none.
	Env map[string]string
	// Stdin, Stdout and Stderr are the descriptors that the program gets. 0
	// stands for the null device. They remain the caller's to close.
	Stdin, Stdout, Stderr int
	// ExtraFD, if not 0, becomes the program's descriptor 3.
	ExtraFD int
	// Terminal makes Stdin the program's controlling terminal.
	Terminal bool
}

// StartError says why a program could not be started. It wraps
// [fs.ErrNotExist] when there is no such program and [fs.ErrPermission] when
// the account may not execute it.
type StartError struct {
	// Program is Spec.Args[0], Dir the directory it was to run in.
	Program, Dir string
	// Reason is a sentence about what is wrong and what to do. Empty if Err
	// says it all.
	Reason string
	Err    error
}

func (e *StartError) Error() string {
	if e.Reason != "" {
		return fmt.Sprintf("start %q: %s", e.Program, e.Reason)
	}
	return fmt.Sprintf("start %q in %s: %v", e.Program, e.Dir, e.Err)
}

func (e *StartError) Unwrap() error { return e.Err }

// DirError says that a directory cannot be run in.
type DirError struct {
	Dir    string
	Reason string
	Err    error
}

func (e *DirError) Error() string {
	return fmt.Sprintf("working directory %q: %s", e.Dir, e.Reason)
}

func (e *DirError) Unwrap() error { return e.Err }

// Status is how a program ended.
type Status struct {
	// Code is the exit code, or 128 plus the signal's number.
	Code int
	// Signal names the signal that ended it, such as "SIGKILL". Empty if none
	// did.
	Signal string
}

// Process is a program that a [Spawner] started. Somebody must call Wait, which
// also gives back what it holds in the agent.
type Process struct {
	spawner *Spawner
	pid     int
	// marker finds descendants that have left the session; see tree.go.
	marker marker
	group  *membership

	// pidfd becomes readable when the process has ended; nil if the kernel
	// has none.
	pidfd *os.File

	mu       sync.Mutex
	reaped   bool
	status   Status
	done     chan struct{}
	released sync.Once
}

// Start starts a program. Errors about it are *[StartError] or *[DirError].
func (s *Spawner) Start(spec *Spec) (*Process, error) {
	if len(spec.Args) == 0 || spec.Args[0] == "" {
		return nil, &StartError{Reason: "no program is given", Err: fs.ErrInvalid}
	}
	dir := s.resolveDir(spec.Dir)
	dirFD, err := s.openDir(dir)
	if err != nil {
		return nil, err
	}
	chdir := dir
	if dirFD >= 0 {
		defer unix.Close(dirFD)
		if isWorkingDirectory(dirFD) {
			// The child is there already: an agent runs in the sandbox's working
			// directory, which is where most programs are to run.
			chdir = ""
		} else if s.procFD {
			// Entered by descriptor, the directory is the one that was
			// checked, whatever its path leads to by now.
			chdir = fmt.Sprintf("/proc/self/fd/%d", dirFD)
		}
	}
	p := &Process{spawner: s, done: make(chan struct{}), marker: newMarker()}
	// The reaper may find p dead before it is complete: let it wait.
	p.mu.Lock()
	defer p.mu.Unlock()
	p.group = s.groups.acquire()
	env := s.Environ(spec.Env, dir)
	if p.group == nil {
		env = append(env, markerVariable+"="+p.marker.text())
	}
	path := spec.Path
	if path == "" {
		if path, err = LookPath(spec.Args[0], dir, env); err != nil {
			s.groups.leave(p.group)
			return nil, err
		}
	}
	fds := [4]uintptr{s.fd(spec.Stdin), s.fd(spec.Stdout), s.fd(spec.Stderr), uintptr(spec.ExtraFD)}
	pidfd := -1
	// In a cgroup a process group will do to signal the program with. A session
	// costs more: Linux makes a scheduling group for each (sched_autogroup).
	setsid := spec.Terminal || p.group == nil
	sys := &syscall.SysProcAttr{Setsid: setsid, Setpgid: !setsid, Credential: s.account.Credential(), PidFD: &pidfd, Setctty: spec.Terminal}
	attr := &syscall.ProcAttr{Dir: chdir, Env: env, Files: fds[:3], Sys: sys}
	if spec.ExtraFD != 0 {
		attr.Files = fds[:4]
	}
	if p.group != nil {
		sys.UseCgroupFD, sys.CgroupFD = true, p.group.dir
	}
	err = s.fork(p, path, spec.Args, attr)
	if p.group != nil && cgroupToBlame(err) {
		// Perhaps a seccomp filter without clone3, or a cgroup that takes no
		// processes. If it works without, do without from now on.
		group, cause := p.group, err
		p.group, sys.UseCgroupFD = nil, false
		sys.Setsid, sys.Setpgid = true, false
		attr.Env = append(attr.Env, markerVariable+"="+p.marker.text())
		if err = s.fork(p, path, spec.Args, attr); err == nil {
			s.logger.Warn("cannot start programs inside a cgroup; killing falls back to process groups and markers", "dir", s.groups.path, "error", cause)
			s.groups.disable()
		}
		s.groups.leave(group)
	}
	if err != nil {
		s.groups.leave(p.group)
		return nil, s.startError(spec.Args[0], path, dir, err)
	}
	if pidfd >= 0 {
		if unix.SetNonblock(pidfd, true) == nil {
			p.pidfd = os.NewFile(uintptr(pidfd), "pidfd")
		} else {
			unix.Close(pidfd)
		}
	}
	return p, nil
}

// cgroupToBlame says whether err may come from CLONE_INTO_CGROUP rather than
// from the program.
func cgroupToBlame(err error) bool {
	switch err {
	case unix.ENOSYS, unix.EOPNOTSUPP, unix.EBUSY, unix.EPERM, unix.EACCES, unix.ENODEV:
		return true
	}
	return false
}

// fork starts and registers p in one step as the reaper sees it.
func (s *Spawner) fork(p *Process, path string, args []string, attr *syscall.ProcAttr) error {
	if s.reaper != nil {
		s.reaper.forks.RLock()
		defer s.reaper.forks.RUnlock()
	}
	if p.group == nil {
		defer p.marker.inherit()()
	}
	pid, err := syscall.ForkExec(path, args, attr)
	if err != nil {
		return err
	}
	p.pid = pid
	s.prefer(pid) // as long as nobody reaps it, the PID is its own
	if s.reaper != nil {
		s.reaper.register(p)
	}
	return nil
}

func (s *Spawner) fd(fd int) uintptr {
	if fd == 0 {
		return uintptr(s.null)
	}
	return uintptr(fd)
}

func (s *Spawner) resolveDir(dir string) string {
	switch {
	case dir == "":
		return s.workDir
	case filepath.IsAbs(dir):
		return filepath.Clean(dir)
	}
	return filepath.Join(s.workDir, dir)
}

// CheckDir returns the absolute path of a directory that programs are to run
// in: relative to the Spawner's, and with the account's rights. The error is a
// *[DirError].
func (s *Spawner) CheckDir(dir string) (string, error) {
	dir = s.resolveDir(dir)
	fd, err := s.openDir(dir)
	if err != nil {
		return "", err
	}
	if fd >= 0 {
		unix.Close(fd)
	}
	return dir, nil
}

// openDir opens a directory with the account's rights, and refuses anything
// that leads through procfs: /proc/self/fd/N would be a descriptor of the
// agent (CVE-2024-21626), /proc/N/root another process's world. It returns -1
// if the kernel cannot tell and the path itself has been checked.
func (s *Spawner) openDir(dir string) (fd int, err error) {
	fd = -1
	err = s.account.Do(func() error {
		how := unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_MAGICLINKS}
		var err error
		for {
			// With the dot, a directory that may not be entered is refused.
			if fd, err = unix.Openat2(unix.AT_FDCWD, dir+"/.", &how); err != unix.EINTR && err != unix.EAGAIN {
				break
			}
		}
		if err == unix.ENOSYS || err == unix.EPERM {
			fd = -1
			resolved, rerr := filepath.EvalSymlinks(dir)
			if rerr != nil {
				return rerr
			}
			if resolved == "/proc" || strings.HasPrefix(resolved, "/proc/") {
				return unix.ELOOP
			}
			fd, err = unix.Open(resolved+"/.", unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		}
		return err
	})
	if err == nil {
		var st unix.Statfs_t
		if err := unix.Fstatfs(fd, &st); err == nil && st.Type == unix.PROC_SUPER_MAGIC {
			unix.Close(fd)
			return -1, &DirError{Dir: dir, Reason: "is in /proc, where no program may be started: use a directory of the sandbox's file system", Err: fs.ErrPermission}
		}
		return fd, nil
	}
	e := &DirError{Dir: dir, Err: err}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		e.Reason = "no such directory: create it first"
	case errors.Is(err, unix.ENOTDIR):
		e.Reason = "not a directory"
	case errors.Is(err, unix.ELOOP):
		e.Reason, e.Err = "leads through /proc or through too many symbolic links: use a directory of the sandbox's file system", fs.ErrPermission
	case errors.Is(err, fs.ErrPermission):
		e.Reason = fmt.Sprintf("user %s may not enter it: permission denied", s.account.Name)
	default:
		e.Reason = err.Error()
	}
	return -1, e
}

// isWorkingDirectory reports whether fd is the working directory of this
// process.
func isWorkingDirectory(fd int) bool {
	var a, b unix.Stat_t
	return unix.Fstat(fd, &a) == nil && unix.Stat(".", &b) == nil && a.Dev == b.Dev && a.Ino == b.Ino
}

// Environ is the environment of a program that runs in dir: the Spawner's,
// then extra, then what every program needs if neither has it.
func (s *Spawner) Environ(extra map[string]string, dir string) []string {
	base := s.environ()
	env := make([]string, 0, len(base)+len(extra)+8)
	// Later values win, as they do in a shell.
	seen := make(map[string]int, cap(env))
	set := func(name, entry string) {
		if i, ok := seen[name]; ok {
			env[i] = entry
			return
		}
		seen[name] = len(env)
		env = append(env, entry)
	}
	for _, e := range base {
		if name, _, ok := strings.Cut(e, "="); ok && name != "" && name != markerVariable {
			set(name, e)
		}
	}
	for name, value := range extra {
		set(name, name+"="+value)
	}
	byDefault := func(name, value string) {
		if _, ok := seen[name]; !ok && value != "" {
			set(name, name+"="+value)
		}
	}
	byDefault("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	byDefault("HOME", s.account.Home)
	byDefault("USER", s.account.Name)
	byDefault("LOGNAME", s.account.Name)
	byDefault("SHELL", s.account.Shell)
	if dir != "" {
		if _, ok := extra["PWD"]; !ok {
			set("PWD", "PWD="+dir)
		}
	}
	return env
}

// LookPath finds a program as execvp(3) does: in the PATH of env unless the
// name has a slash, then relative to dir. Relative entries of PATH are
// skipped.
func LookPath(name, dir string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		if !filepath.IsAbs(name) {
			name = filepath.Join(dir, name)
		}
		return name, nil
	}
	var search string
	if i := slices.IndexFunc(env, func(e string) bool { return strings.HasPrefix(e, "PATH=") }); i >= 0 {
		search = env[i][len("PATH="):]
	}
	found := error(fs.ErrNotExist)
	for d := range strings.SplitSeq(search, ":") {
		if !filepath.IsAbs(d) {
			continue
		}
		path := d + "/" + name
		var st unix.Stat_t
		if unix.Stat(path, &st) != nil || st.Mode&unix.S_IFMT == unix.S_IFDIR {
			continue
		}
		if st.Mode&0o111 != 0 {
			return path, nil
		}
		found = fs.ErrPermission
	}
	e := &StartError{Program: name, Dir: dir, Err: found}
	if found == fs.ErrPermission {
		e.Reason = "found, but not executable: chmod +x it"
	} else {
		e.Reason = fmt.Sprintf("no such program in the sandbox's PATH (%s): install it or give its full path", search)
	}
	return "", e
}

func (s *Spawner) startError(program, path, dir string, err error) error {
	e := &StartError{Program: program, Dir: dir, Err: err}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if _, statErr := os.Stat(path); statErr == nil {
			e.Reason = fmt.Sprintf("%s exists, but the interpreter or loader that it names does not: install that", path)
		} else {
			e.Reason = fmt.Sprintf("no such file: %s", path)
		}
	case errors.Is(err, fs.ErrPermission):
		e.Reason = fmt.Sprintf("user %s may not execute %s in %s: permission denied", s.account.Name, path, dir)
	case errors.Is(err, unix.ENOEXEC):
		e.Reason = fmt.Sprintf("%s is neither a program for this machine nor a script with a #! line", path)
	case errors.Is(err, unix.E2BIG):
		e.Reason = "its arguments and environment together are too long for the kernel: pass the data through a file or standard input"
	}
	return e
}

// PID is the process id as the agent sees it.
func (p *Process) PID() int { return p.pid }

// Done is closed when the process has been waited for.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait waits for the program itself to end; what it started may live on. It
// can be called more than once.
func (p *Process) Wait() Status {
	if p.pidfd != nil {
		// No thread and no polling: the netpoller tells when the pidfd is
		// readable, which is when the process is a zombie.
		if conn, err := p.pidfd.SyscallConn(); err == nil {
			_ = conn.Read(func(uintptr) bool { return p.tryReap() })
		}
	}
	for !p.tryReap() {
		var info unix.Siginfo
		_ = unix.Waitid(unix.P_PID, p.pid, &info, unix.WEXITED|unix.WNOWAIT, nil)
	}
	p.released.Do(func() {
		if p.pidfd != nil {
			p.pidfd.Close()
		}
		p.spawner.groups.leave(p.group)
	})
	return p.status
}

// tryReap collects the exit status if there is one. It is called by Wait and
// by the reaper; whoever comes first stores the status for both.
func (p *Process) tryReap() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reaped {
		return true
	}
	var ws unix.WaitStatus
	var pid int
	var err error
	for {
		if pid, err = unix.Wait4(p.pid, &ws, unix.WNOHANG, nil); err != unix.EINTR {
			break
		}
	}
	switch {
	case err != nil:
		// Somebody else waited for it: this must not happen.
		p.spawner.logger.Error("exit status of a program was taken by somebody else in the agent", "pid", p.pid, "error", err)
		p.status = Status{Code: -1}
	case pid == 0:
		return false
	case ws.Signaled():
		p.status = Status{Code: 128 + int(ws.Signal()), Signal: unix.SignalName(ws.Signal())}
	default:
		p.status = Status{Code: ws.ExitStatus()}
	}
	p.reaped = true
	if p.spawner.reaper != nil {
		p.spawner.reaper.unregister(p)
	}
	close(p.done)
	return true
}

// Signal sends a signal to the program's process group; on a terminal, use
// the terminal's foreground group as well. It is [os.ErrProcessDone] if the
// program has ended.
func (p *Process) Signal(sig syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	// While it is not reaped its pid, and so its group's id, is not reused.
	if p.reaped {
		return os.ErrProcessDone
	}
	if err := unix.Kill(-p.pid, sig); err != nil {
		if errors.Is(err, unix.ESRCH) {
			return os.ErrProcessDone
		}
		return fmt.Errorf("send %s to process group %d: %w", unix.SignalName(sig), p.pid, err)
	}
	return nil
}

// ParseSignal turns "SIGINT", "INT" or "2" into a signal.
func ParseSignal(name string) (syscall.Signal, error) {
	upper := strings.ToUpper(name)
	if !strings.HasPrefix(upper, "SIG") {
		upper = "SIG" + upper
	}
	if sig := unix.SignalNum(upper); sig != 0 {
		return sig, nil
	}
	var n int
	if _, err := fmt.Sscanf(name, "%d", &n); err == nil && n > 0 && n < 65 && fmt.Sprint(n) == name {
		return syscall.Signal(n), nil
	}
	return 0, fmt.Errorf("signal %q: not the name of a signal such as SIGINT", name)
}

// newID returns 16 random hexadecimal digits.
func newID() string {
	var b [8]byte
	_, _ = rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// marker is what the descendants of one command have in common even after
// they left its session, its ancestry and its cgroup; see tree.go.
type marker uint64

// markerVariable carries the marker where there are no cgroups.
const markerVariable = "DAYTONA_COMMAND_ID"

func newMarker() marker {
	var b [8]byte
	_, _ = rand.Read(b[:])
	// Between 2^40 and 2^41: a limit that nobody sets by chance.
	return marker(1<<40 | binary.LittleEndian.Uint64(b[:])&(1<<40-1))
}

func (m marker) text() string { return fmt.Sprintf("%011x", uint64(m)) }

// marking is held while the agent itself bears a marker. It is one for the
// whole program because the limit is.
var marking sync.Mutex

// inherit gives the agent the marker, for the next child to inherit, until
// restore is called. RLIMIT_LOCKS has had no effect since Linux 2.4.25, but
// goes on to every descendant and, unlike a variable, is not lost by "env -i"
// nor by programs that overwrite their environment. The soft limit can be
// changed without any right. Children that another part of the agent starts in
// this moment are marked, too; see (*Process).members.
func (m marker) inherit() (restore func()) {
	marking.Lock()
	var old unix.Rlimit
	err := unix.Prlimit(0, rlimitLocks, nil, &old)
	if err == nil {
		err = unix.Prlimit(0, rlimitLocks, &unix.Rlimit{Cur: uint64(m), Max: old.Max}, nil)
	}
	return func() {
		if err == nil {
			_ = unix.Prlimit(0, rlimitLocks, &old, nil)
		}
		marking.Unlock()
	}
}

// on says whether a process bears m as its limit. Reading it from /proc needs
// no rights, other than prlimit(2).
func (m marker) on(pid int) bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/limits")
	if err != nil {
		return false
	}
	_, rest, ok := strings.Cut(string(b), "\nMax file locks ")
	if !ok {
		return false
	}
	f := strings.Fields(rest)
	return len(f) > 0 && f[0] == strconv.FormatUint(uint64(m), 10)
}

// rlimitLocks is RLIMIT_LOCKS of include/uapi/asm-generic/resource.h.
const rlimitLocks = 10

// killBudget bounds how long KillTree chases processes that fork.
const killBudget = 2 * time.Second
