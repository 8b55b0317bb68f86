package store

import (
	"sync"
	"time"
)

// Watch knows since when a server has been there to be spoken to, and has had
// its database. Who judges others by their silence, or by how long they take,
// must not count the time in which nobody could have heard them: else a server
// that was away for long would find everything overdue when it is back.
type Watch struct {
	gap time.Duration

	mu          sync.Mutex
	since, last time.Time
}

// NewWatch returns a watch that begins now. Looks that are further apart than
// gap are an interruption.
func NewWatch(gap time.Duration, now time.Time) *Watch {
	return &Watch{gap: gap, since: now, last: now}
}

// Look notes that the database has answered.
func (w *Watch) Look(now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if now.Sub(w.last) > w.gap {
		w.since = now
	}
	w.last = now
}

// Since returns the later one of t and the begin of the watch: what is waited
// for since t has been waited for since then.
func (w *Watch) Since(t time.Time) time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.since.After(t) {
		return w.since
	}
	return t
}
