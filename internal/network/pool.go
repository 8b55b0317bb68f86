package network

import (
	"sync/atomic"
	"time"
)

// pool keeps namespaces ready. They are descriptors and nothing else: those of an engine that is
// killed go with it.
type pool struct {
	host   *Host
	policy Policy
	ready  chan *Namespace
	want   chan struct{}
	misses atomic.Uint64
}

func newPool(h *Host, p Policy, size int) *pool {
	pl := &pool{host: h, policy: p}
	if size <= 0 {
		return pl
	}
	pl.ready = make(chan *Namespace, size)
	pl.want = make(chan struct{}, 1)
	h.workers.Go(pl.fill)
	return pl
}

// take gives a ready namespace, or nil.
func (pl *pool) take() *Namespace {
	if pl == nil || pl.ready == nil {
		return nil
	}
	select {
	case n := <-pl.ready:
		select {
		case pl.want <- struct{}{}:
		default:
		}
		return n
	default:
		pl.misses.Add(1)
		return nil
	}
}

func (pl *pool) fill() {
	ctx := pl.host.ctx
	for ctx.Err() == nil {
		if len(pl.ready) == cap(pl.ready) {
			select {
			case <-pl.want:
			case <-ctx.Done():
			}
			continue
		}
		n, err := pl.host.make(ctx, pl.policy)
		if err != nil {
			if ctx.Err() == nil {
				pl.host.log.Warn("cannot make a network namespace ahead of time", "error", err)
			}
			select {
			case <-time.After(settle):
			case <-ctx.Done():
			}
			continue
		}
		pl.ready <- n // this goroutine is the only sender, and there is room
	}
}

func (pl *pool) drain() {
	if pl == nil || pl.ready == nil {
		return
	}
	for {
		select {
		case n := <-pl.ready:
			n.Close()
		default:
			return
		}
	}
}
