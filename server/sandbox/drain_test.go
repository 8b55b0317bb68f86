package sandbox_test

import (
	"slices"
	"testing"

	"github.com/daytona-go/daytona/server/sandbox"
	"github.com/daytona-go/daytona/server/store"
	"github.com/daytona-go/daytona/server/store/storetest"
)

// TestDrain: what is at rest on a runner that is to become empty is archived if
// others can have the archive, and stays otherwise: the archive would go with it.
func TestDrain(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		w := newWorld(t, db)
		stopped, started := w.create(sandbox.Spec{Name: "stopped"}), w.create(sandbox.Spec{Name: "started", AutoStop: new(0)})
		if _, err := w.s.Stop(t.Context(), "a", "stopped", false); err != nil {
			t.Fatal(err)
		}
		w.settle()
		var all []sandbox.Capability
		w.setRunner("r1", func(r *sandbox.Runner) {
			all = r.Capabilities
			r.Draining = true
			r.Capabilities = slices.DeleteFunc(slices.Clone(all), func(c sandbox.Capability) bool { return c == sandbox.CanMove })
		})
		w.sweep()
		w.settle()
		if got := w.get(stopped.ID); got.State != sandbox.Stopped || got.RunnerID != "r1" {
			t.Error("of a runner whose archives are its own:", got.State, got.RunnerID)
		}
		w.setRunner("r1", func(r *sandbox.Runner) { r.Capabilities = all })
		w.sweep()
		w.settle()
		if got := w.get(stopped.ID); got.State != sandbox.Archived || got.RunnerID != "" || got.BackupRunnerID != "" {
			t.Error("stopped:", got.State, got.RunnerID, got.BackupRunnerID)
		}
		if got := w.get(started.ID); got.State != sandbox.Started || got.RunnerID != "r1" {
			t.Error("started:", got.State, got.RunnerID)
		}
	})
}
