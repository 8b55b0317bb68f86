package process

import (
	"bytes"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Killing a command with everything that it started.
//
// In a cgroup that is one write to cgroup.kill, which no fork escapes. Besides,
// /proc is searched for processes that are of the command's session (without a
// cgroup it has one of its own), descend from it, are of the session of one
// that does, or, where there is no cgroup, bear its marker: a resource limit
// without effect, and a variable in the environment. That finds setsid, double
// forks and nohup. It is repeated until nothing is found.

// entry is a process in /proc.
type entry struct {
	pid, ppid, pgrp, sid int
	state                byte
}

// processes reads /proc.
func processes() []entry {
	d, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer d.Close()
	names, _ := d.Readdirnames(-1)
	list := make([]entry, 0, len(names))
	buf := make([]byte, 1024)
	for _, name := range names {
		if name[0] < '0' || name[0] > '9' {
			continue
		}
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		fd, err := unix.Open("/proc/"+name+"/stat", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			continue
		}
		n, err := unix.Read(fd, buf)
		unix.Close(fd)
		if err != nil || n <= 0 {
			continue
		}
		if e, ok := parseStat(buf[:n]); ok && e.pid == pid {
			list = append(list, e)
		}
	}
	return list
}

// parseStat takes /proc/PID/stat apart; see proc_pid_stat(5). The name in
// parentheses is the program's to choose and may contain anything.
func parseStat(line []byte) (e entry, ok bool) {
	open, end := bytes.IndexByte(line, '('), bytes.LastIndexByte(line, ')')
	if open < 0 || end < open {
		return e, false
	}
	var err error
	if e.pid, err = strconv.Atoi(strings.TrimSpace(string(line[:open]))); err != nil {
		return e, false
	}
	f := bytes.Fields(line[end+1:])
	if len(f) < 4 || len(f[0]) != 1 || f[0][0] < 'A' || f[0][0] > 'z' {
		return e, false
	}
	e.state = f[0][0]
	for i, to := range []*int{&e.ppid, &e.pgrp, &e.sid} {
		if *to, err = strconv.Atoi(string(f[i+1])); err != nil {
			return e, false
		}
	}
	return e, true
}

// members finds the living processes of p's tree. sessions collects the
// sessions that they lead or are in; it is carried from one round to the next
// because a session outlives its leader. hit, if not nil, is called for each as
// soon as it is found: one that forks and exits all the time is gone when the
// search is over.
func (p *Process) members(sessions map[int]bool, hit func(entry)) []entry {
	self, own := os.Getpid(), 0
	if sid, err := unix.Getsid(0); err == nil {
		own = sid
	}
	p.mu.Lock()
	root := p.pid
	if p.reaped {
		// The number may belong to somebody else by now.
		root = 0
	} else {
		sessions[root] = true
	}
	p.mu.Unlock()
	inGroup := p.group.members()

	table := processes()
	in := make(map[int]bool)
	var list []entry
	rest := table[:0:0]
	for _, e := range table {
		if e.pid != self && e.pid != 1 && e.state != 'Z' && e.state != 'X' {
			rest = append(rest, e)
		}
	}
	// Dead parents count: their children may not have been given to init yet.
	if root != 0 {
		in[root] = true
	}
	// Children of other parts of the agent that were started while it bore p's
	// marker have it too, with their descendants.
	parents := make(map[int]int, len(table))
	for _, e := range table {
		parents[e.pid] = e.ppid
	}
	held := heldByPidfd()
	foreign := func(pid int) bool {
		for range len(table) {
			if pid <= 1 || pid == self || pid == root {
				return false
			}
			if held[pid] && parents[pid] == self {
				return true
			}
			pid = parents[pid]
		}
		return false
	}
	for first, grown := true, true; grown; first = false {
		grown = false
		kept := rest[:0]
		for _, e := range rest {
			match := e.pid == root || in[e.ppid] || sessions[e.sid] || inGroup[e.pid]
			if !match && first && p.group == nil && e.sid != own {
				match = p.marked(e.pid) && !foreign(e.pid)
			}
			if !match {
				kept = append(kept, e)
				continue
			}
			grown = true
			in[e.pid] = true
			if e.sid != own && e.sid != 0 {
				sessions[e.sid] = true
			}
			list = append(list, e)
			if hit != nil {
				hit(e)
			}
		}
		rest = kept
	}
	return list
}

// marked says whether a process bears p's marker.
func (p *Process) marked(pid int) bool {
	if p.marker.on(pid) {
		return true
	}
	found := false
	// With the account's rights: an agent without CAP_SYS_PTRACE may not read
	// the environment of another user's process, that user may.
	_ = p.spawner.account.Do(func() error {
		b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/environ")
		if err != nil {
			return err
		}
		want := []byte(markerVariable + "=" + p.marker.text())
		for v := range bytes.SplitSeq(b, []byte{0}) {
			if bytes.Equal(v, want) {
				found = true
				break
			}
		}
		return nil
	})
	return found
}

// KillTree kills the program and everything that it started, and returns when
// all of it is dead; after two seconds it gives up, which it logs. The program
// need not be alive.
func (p *Process) KillTree() {
	p.group.kill()
	_ = p.Signal(unix.SIGKILL)
	deadline := time.Now().Add(killBudget)
	sessions := make(map[int]bool)
	own := unix.Getpgrp()
	for {
		list := p.members(sessions, func(e entry) {
			if fd := send(e, unix.SIGKILL); fd >= 0 {
				unix.Close(fd)
			}
		})
		if len(list) == 0 {
			return
		}
		if time.Now().After(deadline) {
			p.spawner.logger.Error("processes of a killed command are still alive", "pid", p.pid, "count", len(list), "first", list[0].pid)
			return
		}
		killed := make(map[int]bool)
		for _, e := range list {
			// A whole group dies at once, with the children that it is about
			// to fork.
			if e.pgrp > 1 && e.pgrp != own && !killed[e.pgrp] && sessions[e.sid] {
				killed[e.pgrp] = true
				_ = unix.Kill(-e.pgrp, unix.SIGKILL)
			}
		}
		signalEach(list, unix.SIGKILL, 50*time.Millisecond)
	}
}

// Terminate sends SIGTERM to the program and everything that it started, waits
// up to grace for all of it to end, and kills the rest.
func (p *Process) Terminate(grace time.Duration) {
	if list := p.members(make(map[int]bool), nil); len(list) > 0 {
		signalEach(list, unix.SIGTERM, grace)
	}
	p.KillTree()
}

// send sends a signal to a process that was found in /proc, if it is still that
// process. It returns a pidfd to wait for its end with, or -1.
func send(e entry, sig syscall.Signal) int {
	fd, err := unix.PidfdOpen(e.pid, 0)
	if err == unix.ESRCH {
		return -1
	}
	if err != nil {
		// No pidfds here, or no descriptors left.
		_ = unix.Kill(e.pid, sig)
		return -1
	}
	// The pidfd is of whoever has the number now: look again before hitting
	// it.
	if sid, err := unix.Getsid(e.pid); err != nil || sid != e.sid {
		unix.Close(fd)
		return -1
	}
	if unix.PidfdSendSignal(fd, sig, nil, 0) == nil && sig != unix.SIGKILL {
		_ = unix.PidfdSendSignal(fd, unix.SIGCONT, nil, 0)
	}
	return fd
}

// signalEach sends sig to each process and waits up to limit until all of
// them are gone.
func signalEach(list []entry, sig syscall.Signal, limit time.Duration) {
	var fds []unix.PollFd
	for _, e := range list {
		if fd := send(e, sig); fd >= 0 {
			fds = append(fds, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
		}
	}
	deadline := time.Now().Add(limit)
	for len(fds) > 0 {
		left := time.Until(deadline)
		if left <= 0 {
			break
		}
		n, err := unix.Poll(fds, int(left.Milliseconds())+1)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			break
		}
		kept := fds[:0]
		for _, f := range fds {
			if f.Revents != 0 {
				unix.Close(int(f.Fd))
			} else {
				kept = append(kept, f)
			}
		}
		fds = kept
	}
	for _, f := range fds {
		unix.Close(int(f.Fd))
	}
}
