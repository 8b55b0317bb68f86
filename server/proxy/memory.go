package proxy

import (
	"sync"
	"sync/atomic"
	"time"
)

// memory remembers answers for a time. What was asked for before something was
// forgotten is not put into it afterwards: it may be what has changed.
type memory[K comparable, V any] struct {
	now   func() time.Time
	times atomic.Uint64
	mu    sync.RWMutex
	m     map[K]answer[V]
}

type answer[V any] struct {
	v     V
	until time.Time
}

func newMemory[K comparable, V any](now func() time.Time) *memory[K, V] {
	return &memory[K, V]{now: now, m: map[K]answer[V]{}}
}

// epoch is to be taken before an answer is asked for, and given to put.
func (m *memory[K, V]) epoch() uint64 { return m.times.Load() }

func (m *memory[K, V]) get(k K) (v V, ok bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	a, ok := m.m[k]
	if !ok || !m.now().Before(a.until) {
		return v, false
	}
	return a.v, true
}

func (m *memory[K, V]) put(epoch uint64, k K, v V, d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.times.Load() != epoch {
		return
	}
	if len(m.m) >= remembered {
		now := m.now()
		for k, a := range m.m {
			if !now.Before(a.until) {
				delete(m.m, k)
			}
		}
		if len(m.m) >= remembered {
			clear(m.m)
		}
	}
	m.m[k] = answer[V]{v, m.now().Add(d)}
}

func (m *memory[K, V]) drop(which func(K, V) bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.times.Add(1)
	for k, a := range m.m {
		if which(k, a.v) {
			delete(m.m, k)
		}
	}
}

func (m *memory[K, V]) clear() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.times.Add(1)
	clear(m.m)
}
