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
	}
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
}
