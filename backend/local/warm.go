package local

import (
	"context"
	"encoding/json"
	"maps"
	"sync"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/lifecycle"
)

// warmPool keeps started sandboxes that nobody has asked for yet, by what
// cannot be changed once they run. Those that are handed out have run nothing
// but "true"; name, labels and environment come with the claim.
type warmPool struct {
	e      *engine
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	ready   map[string][]*record
	filling map[string]int
}

// refillDelay is between the taking of a sandbox and the making of the next.
const refillDelay = 100 * time.Millisecond

func newWarmPool(e *engine) *warmPool {
	w := &warmPool{e: e, ready: map[string][]*record{}, filling: map[string]int{}}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	return w
}

// key says what a pooled sandbox would have to be like; ok is false for those
// that cannot come from a pool.
func (w *warmPool) key(spec daytona.Spec) (key string, ok bool) {
	if w.e.opts.Warm == 0 || spec.Persistent || len(spec.Volumes) > 0 || spec.Resources.Disk > 0 ||
		len(spec.Entrypoint) > 0 || spec.TTL > 0 || spec.AutoStop > 0 || spec.AutoPause > 0 || spec.Snapshot != "" {
		return "", false
	}
	data, err := json.Marshal([]any{spec.Image, spec.User, spec.WorkDir, spec.Resources, spec.Network})
	return string(data), err == nil
}

// take returns a ready sandbox, or nil.
func (w *warmPool) take(key string) *record {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.ready[key]) > 0 {
		all := w.ready[key]
		r := all[len(all)-1]
		w.ready[key] = all[:len(all)-1]
		if r.Own.Running() {
			return r
		}
		go w.e.Check(r.ID, true)
	}
	return nil
}

// fill sees to it that there are enough for a key.
func (w *warmPool) fill(key string, spec daytona.Spec) {
	spec = daytona.Spec{Image: spec.Image, User: spec.User, WorkDir: spec.WorkDir, Resources: spec.Resources, Network: spec.Network}
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.ctx.Err() == nil && len(w.ready[key])+w.filling[key] < w.e.opts.Warm {
		w.filling[key]++
		w.wg.Go(func() {
			r, err := w.make(spec)
			w.mu.Lock()
			defer w.mu.Unlock()
			w.filling[key]--
			if err != nil {
				if w.ctx.Err() == nil {
					w.e.log.Warn("no sandbox for the warm pool", "err", err)
				}
				return
			}
			w.ready[key] = append(w.ready[key], r)
		})
	}
}

// make makes one sandbox for the pool.
func (w *warmPool) make(spec daytona.Spec) (*record, error) {
	// Not at the same time as the first command of the one just taken.
	select {
	case <-time.After(refillDelay):
	case <-w.ctx.Done():
		return nil, w.ctx.Err()
	}
	r, err := w.e.make(w.ctx, spec, lifecycle.PhaseWarm)
	if err == nil {
		// The agent's first command takes twice as long as the next.
		_ = w.e.Connect(r.ID).Process().Command(w.ctx, "true").Run()
	}
	return r, err
}

// close stops filling. The engine removes what is ready, as all that is its.
func (w *warmPool) close() {
	w.cancel()
	w.wg.Wait()
}

// claim makes a pooled sandbox the one that spec describes.
func (e *engine) claim(ctx context.Context, r *record, spec daytona.Spec) (_ daytona.Info, err error) {
	_, unlock, err := e.Locked(r.ID, true)
	if err != nil {
		return daytona.Info{}, lifecycle.KernelError(createOp, spec.Name, err)
	}
	defer unlock()
	defer func() {
		if err != nil {
			if rerr := e.Remove(r); rerr != nil {
				e.log.Warn("sandbox could not be removed; it will be tried again", "sandbox", r.ID, "err", rerr)
			}
		}
	}()
	if spec.Name != "" {
		r.Name = spec.Name
	}
	if spec.Language != "" {
		r.Language = spec.Language
	}
	r.Env, r.Labels = maps.Clone(spec.Env), maps.Clone(spec.Labels)
	r.Ephemeral, r.AutoDelete = spec.Ephemeral, spec.AutoDelete
	r.CreatedAt = time.Now().UTC()
	r.StartedAt = r.CreatedAt
	if err := e.TakeName(r); err != nil {
		return daytona.Info{}, err
	}
	if err := e.setEnv(ctx, r.ID, r.Env); err != nil {
		return daytona.Info{}, lifecycle.KernelError(createOp, r.Name, err)
	}
	r.Phase = lifecycle.PhaseLive
	if err := e.Save(r, false); err != nil {
		return daytona.Info{}, lifecycle.KernelError(createOp, r.Name, err)
	}
	return r.Info, nil
}
