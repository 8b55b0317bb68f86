package toolbox

import (
	"sync"
	"time"

	"github.com/daytona-go/daytona/toolbox/wire"
)

// activity notices when there was no request for some time. Nothing ticks: a
// timer runs only while there is no request.
type activity struct {
	timeout time.Duration
	idle    chan struct{} // closed when the time has passed

	mu     sync.Mutex
	open   int
	last   time.Time
	timer  *time.Timer
	closed bool
	quiet  quiet
}

// quiet is what happens once there was no request for a while, which may be long
// before the timeout.
type quiet struct {
	after time.Duration
	do    func()      // nil for nothing
	timer *time.Timer // nil if it is not to come: nothing was asked for since
}

func newActivity(timeout time.Duration) *activity {
	a := &activity{timeout: timeout, idle: make(chan struct{}), last: time.Now()}
	if timeout > 0 {
		a.timer = time.AfterFunc(timeout, a.expire)
	}
	return a
}

// begin notes a request; the function that it returns notes its end.
func (a *activity) begin() (end func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.open++
	if a.timer != nil {
		a.timer.Stop()
	}
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.open--
		a.last = time.Now()
		if a.open == 0 && a.timer != nil && !a.closed {
			a.timer.Reset(a.timeout)
		}
		a.await()
	}
}

// onQuiet has do called once there was no request for the time, and again after
// each time that there was one.
func (a *activity) onQuiet(after time.Duration, do func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.quiet.after, a.quiet.do = after, do
	a.await()
}

// await starts waiting for quiet, if nobody does. A request in between does not
// touch the timer: there are too many of them. The caller holds a.mu.
func (a *activity) await() {
	if a.quiet.do != nil && a.quiet.timer == nil && !a.closed {
		a.quiet.timer = time.AfterFunc(a.quiet.after, a.hush)
	}
}

func (a *activity) hush() {
	a.mu.Lock()
	if a.closed {
		a.mu.Unlock()
		return
	}
	if left := a.quiet.after - time.Since(a.last); a.open == 0 && left > 0 {
		a.quiet.timer.Reset(left)
		a.mu.Unlock()
		return
	}
	a.quiet.timer = nil // the end of what is open now starts it again
	do := a.quiet.do
	if a.open > 0 {
		do = func() {}
	}
	a.mu.Unlock()
	do()
}

// now is how idle it is.
func (a *activity) now() wire.Activity {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.open > 0 {
		return wire.Activity{Open: a.open}
	}
	return wire.Activity{IdleMilliseconds: time.Since(a.last).Milliseconds()}
}

// set changes the timeout; 0 is none.
func (a *activity) set(timeout time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.timeout = timeout
	if a.timer != nil {
		a.timer.Stop()
		a.timer = nil
	}
	if timeout > 0 && !a.closed {
		a.timer = time.AfterFunc(timeout, a.expire)
	}
}

func (a *activity) expire() {
	a.mu.Lock()
	defer a.mu.Unlock()
	// A request may have come while this waited for the lock.
	if a.closed || a.timer == nil || a.open > 0 || time.Since(a.last) < a.timeout {
		return
	}
	a.closed = true
	close(a.idle)
}

func (a *activity) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closed = true
	if a.timer != nil {
		a.timer.Stop()
	}
	if a.quiet.timer != nil {
		a.quiet.timer.Stop()
	}
}
