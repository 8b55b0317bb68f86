//go:build linux

package lifecycle

import (
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// ProcessID names a process of this machine for good: its number, when it
// started (clock ticks since boot, proc(5)) and the boot.
type ProcessID struct {
	PID       int    `json:"pid,omitempty"`
	StartTime uint64 `json:"startTime,omitempty"`
	BootID    string `json:"bootID,omitempty"`
}

// ProcessIDOf names the process that has a number now; the zero ProcessID if
// there is none.
func ProcessIDOf(pid int) ProcessID {
	start := startTime(pid)
	if start == 0 {
		return ProcessID{}
	}
	return ProcessID{PID: pid, StartTime: start, BootID: bootID()}
}

// Running reports whether the process still runs.
func (p ProcessID) Running() bool {
	return p.PID > 0 && p.StartTime != 0 && p.BootID == bootID() && startTime(p.PID) == p.StartTime
}

// Follow follows the process. It fails if the process has ended or another has
// its number.
func (p ProcessID) Follow() (*Process, error) {
	fd, err := unix.PidfdOpen(p.PID, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("pidfd_open", err)
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	if !p.Running() {
		f.Close()
		return nil, os.ErrProcessDone
	}
	return FollowProcess(p.PID, f), nil
}

// bootID tells one boot of the machine from another. It is read once: every
// look at a sandbox compares it, and it cannot change while this process lives.
var bootID = sync.OnceValue(func() string {
	data, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(data))
})

// startTime is field 22 of /proc/PID/stat, proc(5). 0 if there is no such
// process, or only a zombie.
func startTime(pid int) uint64 {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0
	}
	// The name, in parentheses, may contain anything.
	i := strings.LastIndexByte(string(data), ')')
	f := strings.Fields(string(data[i+1:]))
	if len(f) < 20 || f[0] == "Z" || f[0] == "X" {
		return 0
	}
	n, _ := strconv.ParseUint(f[19], 10, 64)
	return n
}

// Process follows the first process of a sandbox. With it an engine has most of
// a [Proc].
type Process struct {
	PID   int
	Pidfd *os.File
	done  chan struct{}

	status unix.WaitStatus // see Status
	reaped bool
}

// FollowProcess follows a process through its pidfd, which must be non-blocking
// and is the Process's from here on, without a thread of its own.
func FollowProcess(pid int, pidfd *os.File) *Process {
	p := &Process{PID: pid, Pidfd: pidfd, done: make(chan struct{})}
	go func() {
		c, err := pidfd.SyscallConn()
		if err == nil {
			err = c.Read(func(fd uintptr) bool {
				fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
				n, err := unix.Poll(fds, 0)
				return err == nil && n > 0
			})
		}
		if err != nil {
			return // the descriptor was closed: nobody is interested any more
		}
		// It is a child of ours, to be reaped, if this process cloned it.
		if n, err := unix.Wait4(pid, &p.status, unix.WNOHANG, nil); err == nil && n == pid {
			p.reaped = true
		}
		close(p.done)
	}()
	return p
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Status is how the process ended, once Done is closed, if it was a child of
// this process.
func (p *Process) Status() (unix.WaitStatus, bool) { return p.status, p.reaped }

// Signal sends the process a signal.
func (p *Process) Signal(s unix.Signal) error {
	return unix.PidfdSendSignal(int(p.Pidfd.Fd()), s, nil, 0)
}

// Kill ends the whole sandbox and waits for it: without its PID 1 the kernel
// kills all others of the namespace (pid_namespaces(7)).
func (p *Process) Kill() {
	_ = p.Signal(unix.SIGKILL)
	<-p.done
}

// Close lets go of the process.
func (p *Process) Close() { p.Pidfd.Close() }
