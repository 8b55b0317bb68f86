package sandbox_test

import (
	"testing"
	"time"

	"github.com/daytona-go/daytona/server/sandbox"
	"github.com/daytona-go/daytona/server/store"
	"github.com/daytona-go/daytona/server/store/storetest"
)

// TestTimes: when a sandbox was started and stopped last is kept, which what passes
// without a start or a stop does not change; a fork has times of its own.
func TestTimes(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		w := newWorld(t, db)
		ctx := t.Context()
		sb := w.create(sandbox.Spec{Name: "x"})
		var started, stopped time.Time
		check := func(what string) {
			t.Helper()
			w.settle()
			sb = w.get(sb.ID)
			is := func(p *time.Time, want time.Time) bool {
				return p == nil && want.IsZero() || p != nil && p.Equal(want)
			}
			if !is(sb.StartedAt, started) || !is(sb.StoppedAt, stopped) {
				t.Errorf("%s: started %v, want %v; stopped %v, want %v", what, sb.StartedAt, started, sb.StoppedAt, stopped)
			}
			w.pass(time.Minute)
		}
		do := func(_ *sandbox.Sandbox, err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		started = w.clock()
		check("created")
		do(w.s.Resize(ctx, "a", "x", sandbox.Resources{CPU: 2}))
		check("resized")
		do(w.s.Start(ctx, "a", "x"))
		check("started when it was")
		do(w.s.Pause(ctx, "a", "x"))
		stopped = w.clock()
		check("paused")
		do(w.s.Start(ctx, "a", "x"))
		started = w.clock()
		check("resumed")
		fork, err := w.s.Fork(ctx, "a", "x", "y")
		if err != nil {
			t.Fatal(err)
		}
		w.settle()
		if fork = w.get(fork.ID); fork.StartedAt == nil || !fork.StartedAt.Equal(w.clock()) || fork.StoppedAt != nil {
			t.Errorf("the fork: started %v, stopped %v", fork.StartedAt, fork.StoppedAt)
		}
		check("forked")
		do(w.s.Stop(ctx, "a", "x", false))
		stopped = w.clock()
		check("stopped")
	})
}
