package process

import (
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Reaper buries orphans: processes whose parents ended before them and that
// the kernel gave to the agent, because it is PID 1 or a child subreaper.
// Without it they stay as zombies until no pid is left.
//
// It never takes an exit status from somebody who waits for it: children of
// the [Spawner] are registered, and children that other parts of the agent
// started with os/exec are recognised by the pidfd that os.Process holds.
type Reaper struct {
	logger *slog.Logger
	// forks is held for reading from before a fork until the child is
	// registered. Whoever holds it for writing sees all children.
	forks sync.RWMutex

	mu    sync.Mutex
	known map[int]*Process

	signals chan os.Signal
	stop    chan struct{}
	stopped chan struct{}
}

// ReaperOptions configure a [Reaper].
type ReaperOptions struct {
	// Subreaper makes the agent adopt orphans although it is not PID 1; see
	// PR_SET_CHILD_SUBREAPER(2const). Defaults to false.
	Subreaper bool
	// Logger defaults to none.
	Logger *slog.Logger
}

// NewReaper starts a Reaper. Give it to every [Spawner] of the program. Where
// the agent is neither PID 1 nor a subreaper it has nothing to do and does no
// harm.
func NewReaper(opts ReaperOptions) (*Reaper, error) {
	r := &Reaper{
		logger: opts.Logger, known: make(map[int]*Process),
		signals: make(chan os.Signal, 1), stop: make(chan struct{}), stopped: make(chan struct{}),
	}
	if r.logger == nil {
		r.logger = slog.New(slog.DiscardHandler)
	}
	if opts.Subreaper {
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
			return nil, fmt.Errorf("become a child subreaper: %w", err)
		}
	}
	signal.Notify(r.signals, syscall.SIGCHLD)
	go r.run()
	return r, nil
}

// Close stops reaping.
func (r *Reaper) Close() {
	signal.Stop(r.signals)
	close(r.stop)
	<-r.stopped
}

func (r *Reaper) register(p *Process) {
	r.mu.Lock()
	r.known[p.pid] = p
	r.mu.Unlock()
}

func (r *Reaper) unregister(p *Process) {
	r.mu.Lock()
	if r.known[p.pid] == p {
		delete(r.known, p.pid)
	}
	r.mu.Unlock()
}

func (r *Reaper) lookup(pid int) *Process {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.known[pid]
}

const (
	// reapDelay lets whoever waits for a child come first, and children that
	// end together be buried together: nobody waits for the reaper.
	reapDelay  = 2 * time.Millisecond
	retryFirst = 10 * time.Millisecond
	retryLast  = time.Second
)

func (r *Reaper) run() {
	defer close(r.stopped)
	// retry is armed only while a zombie that somebody else in the agent owns
	// stands in front of the queue.
	var retry <-chan time.Time
	wait := retryFirst
	for {
		blocked := r.reap()
		if blocked {
			if wait > retryFirst {
				r.reapBehind()
			}
			retry = time.After(wait)
			wait = min(2*wait, retryLast)
		} else {
			retry, wait = nil, retryFirst
		}
		select {
		case <-r.signals:
			time.Sleep(reapDelay)
		case <-retry:
		case <-r.stop:
			return
		}
	}
}

// peek returns a zombie without burying it, or 0. It is always the same one
// until somebody does.
func peek() int {
	var info waitInfo
	for {
		err := waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 0
		}
		return int(info.Pid)
	}
}

// reap buries what can be buried. It returns true if a zombie that belongs to
// another part of the agent is in the way.
func (r *Reaper) reap() (blocked bool) {
	for {
		pid := peek()
		if pid == 0 {
			return false
		}
		if p := r.lookup(pid); p != nil {
			p.tryReap()
			continue
		}
		if peek() != pid {
			continue // its owner was quicker: the usual end of a command
		}
		if r.reapOrphans() {
			return true
		}
	}
}

// reapOrphans buries a batch of zombies that nobody waits for.
func (r *Reaper) reapOrphans() (blocked bool) {
	// While both locks are held no child is born, so the list of held ones is
	// complete.
	r.forks.Lock()
	defer r.forks.Unlock()
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	held := heldByPidfd()
	for range 256 {
		pid := peek()
		if pid == 0 {
			return false
		}
		if p := r.lookup(pid); p != nil {
			p.tryReap()
			continue
		}
		if held[pid] {
			return true
		}
		bury(pid)
	}
	return false
}

// reapBehind buries orphans that peek cannot see because of the zombie in
// front.
func (r *Reaper) reapBehind() {
	r.forks.Lock()
	defer r.forks.Unlock()
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	held := heldByPidfd()
	self := os.Getpid()
	for _, e := range processes() {
		if e.ppid == self && e.state == 'Z' && !held[e.pid] && r.lookup(e.pid) == nil {
			bury(e.pid)
		}
	}
}

func bury(pid int) {
	for {
		if _, err := unix.Wait4(pid, nil, unix.WNOHANG, nil); err != unix.EINTR {
			return
		}
	}
}

// heldByPidfd returns the processes to which this one holds a pidfd. Go's
// os.Process has held one since Go 1.23 where the kernel knows them (5.4).
func heldByPidfd() map[int]bool {
	held := make(map[int]bool)
	dir, err := os.Open("/proc/self/fd")
	if err != nil {
		return held
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	for _, name := range names {
		link, err := os.Readlink(filepath.Join("/proc/self/fd", name))
		// "anon_inode:[pidfd]", or "pidfd:[inode]" since Linux 6.9.
		if err != nil || !strings.Contains(link, "pidfd") {
			continue
		}
		info, err := os.ReadFile(filepath.Join("/proc/self/fdinfo", name))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(info)) {
			if v, ok := strings.CutPrefix(line, "Pid:"); ok {
				if pid, err := strconv.Atoi(strings.TrimSpace(v)); err == nil && pid > 0 {
					held[pid] = true
				}
			}
		}
	}
	return held
}
