package port

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/daytona-go/daytona/toolbox/wire"
)

const (
	// lookInterval is how often it is looked for changes, while somebody wants to
	// know: the kernel tells nobody of sockets that begin to listen. A look costs
	// some 20 µs.
	lookInterval = 100 * time.Millisecond
	// history is how many events are kept for those who come back.
	history = 1024
	// maxWatchers bounds the streams of events.
	maxWatchers = 256
)

var errTooMany = fmt.Errorf("%d streams of port events are open, the most that there may be", maxWatchers)

// monitor notices who begins and ends to listen. Nothing ticks while nobody
// watches; what happened in such a time is found in one go by the next.
type monitor struct {
	look  func(before []listener) ([]listener, error)
	epoch string // tells this agent's events from those of one before

	mu       sync.Mutex
	watchers int
	present  []listener
	// events are the last ones; next is the number of the one to come.
	events  []portEvent
	next    uint64
	changed chan struct{} // closed at a change, or when looking fails
	failed  error
	stop    chan struct{} // of the goroutine that looks
}

// portEvent is a change.
type portEvent struct {
	number uint64
	name   string
	wire   wire.Listener
}

// watch has the monitor look until the function that it returns is called.
func (m *monitor) watch() (unwatch func(), err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.watchers >= maxWatchers {
		return nil, errTooMany
	}
	if m.watchers++; m.watchers == 1 {
		m.changed, m.stop, m.failed = make(chan struct{}), make(chan struct{}), nil
		m.compare()
		if m.failed != nil {
			m.watchers = 0
			return nil, m.failed
		}
		go m.run(m.stop)
	}
	return sync.OnceFunc(func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.watchers--; m.watchers == 0 {
			close(m.stop)
		}
	}), nil
}

func (m *monitor) run(stop chan struct{}) {
	timer := time.NewTimer(lookInterval)
	defer timer.Stop()
	for {
		select {
		case <-stop:
			return
		case <-timer.C:
		}
		m.mu.Lock()
		// Between the last one's leaving and here another may have come, with a
		// goroutine of its own.
		if m.stop == stop {
			m.compare()
		}
		m.mu.Unlock()
		timer.Reset(lookInterval)
	}
}

// compare looks, and notes what has changed. The caller holds m.mu.
func (m *monitor) compare() {
	now, err := m.look(m.present)
	if err != nil {
		m.failed = err
		m.wake()
		return
	}
	before := m.present
	m.present = now
	some := false
	note := func(name string, of, not []listener) {
		there := make(map[socket]bool, len(not))
		for _, l := range not {
			there[l.socket] = true
		}
		for _, l := range of {
			if !there[l.socket] {
				m.events = append(m.events, portEvent{m.next, name, l.wire})
				m.next++
				some = true
			}
		}
	}
	note(wire.EventClose, before, now)
	note(wire.EventOpen, now, before)
	if !some {
		return
	}
	if n := len(m.events) - history; n > 0 {
		m.events = slices.Delete(m.events, 0, n)
	}
	m.wake()
}

func (m *monitor) wake() {
	close(m.changed)
	m.changed = make(chan struct{})
}

// since returns the events from number on, and what to wait for when there is
// none. known is false if some are forgotten.
func (m *monitor) since(number uint64) (events []portEvent, changed chan struct{}, known bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if number > m.next || m.next-number > uint64(len(m.events)) {
		return nil, nil, false, m.failed
	}
	return slices.Clone(m.events[len(m.events)-int(m.next-number):]), m.changed, true, m.failed
}

// all returns who listens, and the number of the next event.
func (m *monitor) all() (wire.ListenerList, uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return listenerList(m.present), m.next
}

func listenerList(list []listener) wire.ListenerList {
	out := wire.ListenerList{Listeners: make([]wire.Listener, len(list))}
	for i, l := range list {
		out.Listeners[i] = l.wire
	}
	return out
}

// id is that of the event before a number.
func (m *monitor) id(next uint64) string { return m.epoch + "." + strconv.FormatUint(next, 10) }

// parse returns the number of the event after an id; false if it is another
// agent's.
func (m *monitor) parse(id string) (uint64, bool, error) {
	epoch, number, ok := strings.Cut(id, ".")
	next, err := strconv.ParseUint(number, 10, 64)
	if !ok || err != nil {
		return 0, false, fmt.Errorf("since %q: give the id of an event", clip(id))
	}
	return next, epoch == m.epoch, nil
}

func (s *Service) listListeners(w http.ResponseWriter, r *http.Request) {
	list, err := s.listeners(nil)
	if err != nil {
		wire.WriteError(w, r, http.StatusInternalServerError, "", err.Error())
		return
	}
	wire.WriteJSON(w, http.StatusOK, listenerList(list))
}

// events answers with a stream; see wire.PortEventsPath.
func (s *Service) events(w http.ResponseWriter, r *http.Request) {
	m := &s.monitor
	var next uint64
	known := false
	id := r.Header.Get("Last-Event-ID")
	if id == "" {
		id = r.URL.Query().Get("since")
	}
	if id != "" {
		var err error
		if next, known, err = m.parse(id); err != nil {
			wire.WriteError(w, r, http.StatusBadRequest, "", err.Error())
			return
		}
	}
	unwatch, err := m.watch()
	if err != nil {
		status := http.StatusInternalServerError
		if errors.Is(err, errTooMany) {
			status = http.StatusTooManyRequests
		}
		wire.WriteError(w, r, status, "", err.Error())
		return
	}
	defer unwatch()
	out := wire.NewEventWriter(w)
	keep := time.NewTicker(wire.EventKeepAlive)
	defer keep.Stop()
	for {
		var events []portEvent
		var changed chan struct{}
		if known {
			events, changed, known, err = m.since(next)
		}
		if err != nil {
			s.logger.Error("port events end", "error", err)
			panic(http.ErrAbortHandler)
		}
		if !known {
			var list wire.ListenerList
			list, next = m.all()
			known = true
			if out.Send(wire.EventListeners, m.id(next), list) != nil {
				return
			}
			continue
		}
		for _, e := range events {
			next = e.number + 1
			if out.Send(e.name, m.id(next), e.wire) != nil {
				return
			}
		}
		if len(events) > 0 {
			continue
		}
		select {
		case <-r.Context().Done():
			return
		case <-changed:
		case <-keep.C:
			if out.KeepAlive() != nil {
				return
			}
		}
	}
}
