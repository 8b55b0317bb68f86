package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/lifecycle"
	"golang.org/x/sys/unix"
)

// Hold stops the processes of a sandbox where there is no cgroup to freeze them
// with: as their tracer, which the owner of their user namespace may be. Unlike
// SIGSTOP, nobody inside is told of it or can undo it, and if this process dies
// the kernel lets them go on. It cannot outlive this process, though, so it is
// good for a copy and not for a pause.
func (d driver) Hold(ctx context.Context, op string, r *record) (release func(), err error) {
	stopped, done, gone := make(chan error, 1), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(gone)
		// A tracer is a thread. This one is never unlocked and so ends with the
		// goroutine; what it still traces then goes on.
		runtime.LockOSThread()
		t := &tracer{pid: r.Own.PID, stopped: map[int]unix.Signal{}}
		err := t.stopAll(ctx)
		stopped <- err
		if err == nil {
			<-done
		}
		t.release()
	}()
	release = func() { close(done); <-gone }
	if err := <-stopped; err != nil {
		<-gone
		return nil, &daytona.Error{Kind: daytona.KindUnavailable, Op: op, Subject: r.Name, Message: "its processes could not be stopped for a moment; stop the sandbox first", Err: err}
	}
	return release, nil
}

var _ lifecycle.Holder[own] = driver{}

// tracer stops all tasks of a PID namespace.
type tracer struct {
	pid     int                 // its first process
	stopped map[int]unix.Signal // tasks, with the signal that each was about to get
}

// holdWait is how long the processes have to stop.
const holdWait = 5 * time.Second

func (t *tracer) stopAll(ctx context.Context) error {
	deadline := time.Now().Add(holdWait)
	// A task that runs can make others: it is over when a look finds none that
	// is not stopped.
	for {
		tasks, err := t.tasks()
		if err != nil {
			return err
		}
		found := false
		for _, tid := range tasks {
			if _, ok := t.stopped[tid]; ok {
				continue
			}
			found = true
			if err := t.stop(ctx, tid, deadline); err != nil {
				return fmt.Errorf("stop task %d: %w", tid, err)
			}
		}
		if !found {
			return nil
		}
		if time.Now().After(deadline) {
			return errors.New("new processes appear without end")
		}
	}
}

// tasks lists the threads of all processes of the namespace.
func (t *tracer) tasks() ([]int, error) {
	ns, err := os.Readlink("/proc/" + strconv.Itoa(t.pid) + "/ns/pid")
	if err != nil {
		return nil, err
	}
	procs, err := filepath.Glob("/proc/[0-9]*/ns/pid")
	if err != nil {
		return nil, err
	}
	var all []int
	for _, p := range procs {
		if got, err := os.Readlink(p); err != nil || got != ns {
			continue // others', or gone
		}
		entries, err := os.ReadDir(filepath.Join(p, "..", "..", "task"))
		if err != nil {
			continue
		}
		for _, e := range entries {
			if tid, err := strconv.Atoi(e.Name()); err == nil && running(filepath.Join(p, "..", "..", "task", e.Name())) {
				all = append(all, tid)
			}
		}
	}
	return all, nil
}

// running reports whether a task is not a zombie.
func running(task string) bool {
	data, err := os.ReadFile(filepath.Join(task, "stat"))
	if err != nil {
		return false
	}
	// The name, in parentheses, may contain anything.
	for i := len(data) - 1; i >= 0; i-- {
		if data[i] == ')' {
			return i+2 < len(data) && data[i+2] != 'Z' && data[i+2] != 'X'
		}
	}
	return false
}

func (t *tracer) stop(ctx context.Context, tid int, deadline time.Time) error {
	if err := unix.PtraceSeize(tid); err != nil {
		if errors.Is(err, unix.ESRCH) {
			return nil
		}
		return err
	}
	if err := unix.PtraceInterrupt(tid); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	for wait := 20 * time.Microsecond; ; wait = min(2*wait, 5*time.Millisecond) {
		var status unix.WaitStatus
		n, err := unix.Wait4(tid, &status, unix.WALL|unix.WNOHANG, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ECHILD):
			return nil // gone
		case err != nil:
			return err
		case n == tid && status.Stopped():
			var signal unix.Signal
			if uint32(status)>>16 == 0 { // a signal that it was to get: it gets it afterwards
				signal = status.StopSignal()
			}
			t.stopped[tid] = signal
			return nil
		case n == tid:
			return nil // it has ended
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return errors.New("it does not stop")
		}
		time.Sleep(wait)
	}
}

// release lets all go on.
func (t *tracer) release() {
	for tid, signal := range t.stopped {
		_, _, _ = unix.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_DETACH, uintptr(tid), 0, uintptr(signal), 0, 0)
	}
}
