// Package live ends what is still open when the right to it has ended: WebSockets,
// streams, SSH connections. Each is put into a [Set] with a check that can be
// asked again, and with the ids that its right hangs on (a key, a user, an
// organization, a sandbox); when something is published about one of these, the
// check is asked, and where it says no, the connection is ended.
//
// It knows no feature, and of topics only that their payloads have the ids of
// what has changed, in whatever form: words between characters that no id has.
package live

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/daytona-go/daytona"
)

// Topics is where changes are published; a *store.DB is one.
type Topics interface {
	Subscribe(topic string) (<-chan string, func())
}

// Interval is between two looks at everything that is open, for what no topic
// told of: an expiry, a hint that was lost.
const Interval = 30 * time.Second

const (
	// checks is how many checks of a look run at a time.
	checks = 8
	// checkTime bounds one.
	checkTime = 10 * time.Second
	// again is when a change is looked at a second time: who else remembers
	// answers may hear of it a moment later, and have said yes meanwhile.
	again = 200 * time.Millisecond
)

// Set is what is open. The zero Set is not ready; see [New].
type Set struct {
	interval time.Duration

	mu      sync.Mutex
	open    map[*entry]struct{}
	by      map[string]map[*entry]struct{}
	changed []func(ids []string)
}

type entry struct {
	ids   []string
	check func(context.Context) error
	end   func(error)
}

// New returns an empty Set. interval defaults to [Interval].
func New(interval time.Duration) *Set {
	if interval == 0 {
		interval = Interval
	}
	return &Set{interval: interval, open: map[*entry]struct{}{}, by: map[string]map[*entry]struct{}{}}
}

// Add puts something open into the set, until remove is called. check says
// whether it may stay; end ends it, is called once at most, and must not block.
func (s *Set) Add(ids []string, check func(context.Context) error, end func(cause error)) (remove func()) {
	e := &entry{ids: ids, check: check, end: end}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open[e] = struct{}{}
	for _, id := range ids {
		if id == "" {
			continue
		}
		if s.by[id] == nil {
			s.by[id] = map[*entry]struct{}{}
		}
		s.by[id][e] = struct{}{}
	}
	return func() { s.remove(e) }
}

// remove reports whether e was there.
func (s *Set) remove(e *entry) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, was := s.open[e]
	delete(s.open, e)
	for _, id := range e.ids {
		delete(s.by[id], e)
		if len(s.by[id]) == 0 {
			delete(s.by, id)
		}
	}
	return was
}

// Len is how many are open.
func (s *Set) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.open)
}

// OnChange has f called with the ids of what has changed, nil for anything,
// before what is open is checked: what remembers answers must forget them.
func (s *Set) OnChange(f func(ids []string)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changed = append(s.changed, f)
}

// Run listens to topics until ctx ends.
func (s *Set) Run(ctx context.Context, topics Topics, names ...string) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, name := range names {
		c, stop := topics.Subscribe(name)
		wg.Go(func() {
			defer stop()
			for {
				select {
				case payload := <-c:
					ids := Words(payload)
					s.Changed(ctx, ids)
					wg.Go(func() {
						select {
						case <-time.After(again):
							s.Changed(ctx, ids)
						case <-ctx.Done():
						}
					})
				case <-ctx.Done():
					return
				}
			}
		})
	}
	tick := time.NewTicker(s.interval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			s.look(ctx, nil)
		case <-ctx.Done():
			return
		}
	}
}

// Changed checks what hangs on one of ids, or everything if there are none.
func (s *Set) Changed(ctx context.Context, ids []string) {
	s.mu.Lock()
	changed := s.changed
	s.mu.Unlock()
	for _, f := range changed {
		f(ids)
	}
	s.look(ctx, ids)
}

func (s *Set) look(ctx context.Context, ids []string) {
	s.mu.Lock()
	found := map[*entry]struct{}{}
	if len(ids) == 0 {
		for e := range s.open {
			found[e] = struct{}{}
		}
	}
	for _, id := range ids {
		for e := range s.by[id] {
			found[e] = struct{}{}
		}
	}
	s.mu.Unlock()
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, checks)
	for e := range found {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			// What can't be asked is not what is refused: a database that is
			// away for a moment ends nothing.
			ctx, cancel := context.WithTimeout(ctx, checkTime)
			defer cancel()
			if err := e.check(ctx); Refused(err) && s.remove(e) {
				e.end(err)
			}
		})
	}
}

// Refused reports whether an error says that a right has ended, and not that
// nobody knows.
func Refused(err error) bool {
	for _, kind := range []error{daytona.ErrUnauthorized, daytona.ErrForbidden, daytona.ErrNotFound, daytona.ErrGone, daytona.ErrState, daytona.ErrInvalid} {
		if errors.Is(err, kind) {
			return true
		}
	}
	return false
}

// Words returns the words of a payload that may be ids, nil if there are none.
func Words(payload string) []string {
	return strings.FieldsFunc(payload, func(r rune) bool {
		return (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && r != '-' && r != '_' && r != '|' && r != '@' && r != '.'
	})
}
