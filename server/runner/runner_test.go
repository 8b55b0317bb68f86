package runner_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/runnerkey"
	"github.com/daytona-go/daytona/server/runner"
	"github.com/daytona-go/daytona/server/store"
	"github.com/daytona-go/daytona/server/store/storetest"
)

// world is what the runners' service is told of the other features.
type world struct {
	mu      sync.Mutex
	now     time.Time
	on      map[string]int
	drained []string
	lost    []string
}

func (w *world) RunnerRegion(_ context.Context, id string) (runner.Region, error) {
	switch id {
	case "eu":
		return runner.Region{ID: id, Type: "shared"}, nil
	case "own-a":
		return runner.Region{ID: id, Type: "custom", OrganizationID: "a"}, nil
	}
	return runner.Region{}, &daytona.Error{Kind: daytona.KindNotFound, Message: "Region not found"}
}
func (w *world) OnRunner(_ context.Context, id string) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.on[id], nil
}
func (w *world) Drain(_ context.Context, id string) error {
	w.drained = append(w.drained, id)
	return nil
}
func (w *world) Lost(_ context.Context, id string) error { w.lost = append(w.lost, id); return nil }
func (w *world) time() time.Time                         { w.mu.Lock(); defer w.mu.Unlock(); return w.now }
func (w *world) advance(d time.Duration)                 { w.mu.Lock(); w.now = w.now.Add(d); w.mu.Unlock() }

// Seal is no secret, but shows what was sealed.
func (w *world) Seal(plain, place string) string { return "sealed|" + place + "|" + plain }
func (w *world) Open(sealed, place string) (string, error) {
	plain, ok := strings.CutPrefix(sealed, "sealed|"+place+"|")
	if !ok {
		return "", errors.New("sealed for another place")
	}
	return plain, nil
}

func setup(db *store.DB) (*runner.Service, *world) {
	w := &world{now: time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC), on: map[string]int{}}
	return runner.NewService(db, &runner.Options{Now: w.time, Regions: w, Sandboxes: w, Sealer: w, Overcommit: daytona.Resources{CPU: 2, Memory: 1, Disk: 1}}), w
}

// add makes a runner that is ready and has 4 cores, 8 GiB and 100 GiB.
func add(t *testing.T, s *runner.Service, name string, change func(*runner.Report)) runner.Runner {
	t.Helper()
	r, _, err := s.AdminCreate(t.Context(), runner.New{RegionID: "eu", Name: name})
	if err != nil {
		t.Fatal(err)
	}
	h := runner.Report{Use: &runner.Use{CPUPercent: 10, MemoryPercent: 20, DiskPercent: 30}, CPU: 4, Memory: 8, Disk: 100, AppVersion: "1"}
	if change != nil {
		change(&h)
	}
	if r, err = s.Report(t.Context(), r.ID, h); err != nil {
		t.Fatal(err)
	}
	return r
}

func TestKeys(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		s, _ := setup(db)
		ctx := t.Context()
		r, key, err := s.AdminCreate(ctx, runner.New{RegionID: "eu", Name: "one"})
		if err != nil {
			t.Fatal(err)
		}
		if id, region, err := s.Authenticate(ctx, key); err != nil || id != r.ID || region != "eu" {
			t.Error(id, region, err)
		}
		for _, wrong := range []string{"", key + "x", runnerkey.Access(key), runnerkey.Hash(key)} {
			if _, _, err := s.Authenticate(ctx, wrong); !errors.Is(err, daytona.ErrUnauthorized) {
				t.Errorf("%q: %v", wrong, err)
			}
		}
		var row []map[string]any
		if err := db.All(ctx).NewRaw("SELECT * FROM runners").Scan(ctx, &row); err != nil || len(row) != 1 {
			t.Fatal(row, err)
		}
		if strings.Contains(fmt.Sprint(row), key) {
			t.Error("the key is in the database")
		}
		if access, err := s.Access(&r); err != nil || access != runnerkey.Access(key) {
			t.Error(access, err)
		}
		// A server's own runner: the same one with every start, the key may change.
		mine, err := s.Ensure(ctx, runner.New{RegionID: "eu", Name: "own", Key: "0123456789abcdef"})
		if err != nil {
			t.Fatal(err)
		}
		again, err := s.Ensure(ctx, runner.New{RegionID: "eu", Name: "own", Key: "fedcba9876543210"})
		if err != nil || again.ID != mine.ID {
			t.Fatal(again, err)
		}
		if id, _, err := s.Authenticate(ctx, "fedcba9876543210"); err != nil || id != mine.ID {
			t.Error(id, err)
		}
		if _, _, err := s.Authenticate(ctx, "0123456789abcdef"); err == nil {
			t.Error("the old key still opens")
		}
	})
}

func TestJoinToken(t *testing.T) {
	j := runnerkey.Join{URL: "https://example.com/api", Key: "k"}
	if got, err := runnerkey.ParseJoin(j.String() + "\n"); err != nil || got != j {
		t.Error(got, err)
	}
	for _, bad := range []string{"", "dtj_", "dtj_e30", "x", runnerkey.Join{URL: "file:///x", Key: "geheim"}.String()} {
		if _, err := runnerkey.ParseJoin(bad); !errors.Is(err, daytona.ErrInvalid) || strings.Contains(err.Error(), "geheim") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestCreateRules(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		s, _ := setup(db)
		ctx := t.Context()
		for _, c := range []struct {
			org  string
			n    runner.New
			want error
		}{
			{"a", runner.New{RegionID: "own-a", Name: "x"}, nil},
			{"a", runner.New{RegionID: "own-a", Name: "x"}, daytona.ErrConflict},
			{"a", runner.New{RegionID: "own-a", Name: "x y"}, daytona.ErrInvalid},
			{"a", runner.New{RegionID: "own-a", Name: ""}, daytona.ErrInvalid},
			{"a", runner.New{RegionID: "own-a", Name: "y", Tags: []string{""}}, daytona.ErrInvalid},
			{"b", runner.New{RegionID: "own-a", Name: "y"}, daytona.ErrNotFound},
			{"b", runner.New{RegionID: "eu", Name: "y"}, daytona.ErrForbidden},
			{"b", runner.New{RegionID: "mars", Name: "y"}, daytona.ErrNotFound},
		} {
			if _, _, err := s.Create(ctx, c.org, c.n); !errors.Is(err, c.want) || c.want == nil && err != nil {
				t.Errorf("%+v: %v", c, err)
			}
		}
		if list, err := s.List(ctx, "a", ""); err != nil || len(list) != 1 {
			t.Fatal(list, err)
		} else if _, err := s.Get(ctx, "b", list[0].ID); !errors.Is(err, daytona.ErrNotFound) {
			t.Error("another organization sees it:", err)
		}
		add(t, s, "shared", nil)
		for _, org := range []string{"", "b"} {
			if list, err := s.List(ctx, org, ""); err != nil || len(list) != 0 {
				t.Errorf("%q sees %v %v", org, list, err)
			}
		}
		if all, err := s.All(ctx, ""); err != nil || len(all) != 2 {
			t.Error(all, err)
		}
	})
}

func TestHealth(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		s, w := setup(db)
		ctx := t.Context()
		r, _, err := s.AdminCreate(ctx, runner.New{RegionID: "eu", Name: "one"})
		if err != nil || r.State != runner.Initializing {
			t.Fatal(r, err)
		}
		states, end := db.Subscribe(runner.TopicState)
		defer end()
		state := func(want runner.State) {
			t.Helper()
			if got, err := s.Runner(ctx, r.ID); err != nil || got.State != want {
				t.Errorf("%s instead of %s (%v)", got.State, want, err)
			}
			select {
			case id := <-states:
				if id != r.ID {
					t.Error(id)
				}
			case <-time.After(5 * time.Second):
				t.Error("nobody was told")
			}
		}
		report := func(healthy bool) {
			t.Helper()
			if _, err := s.Report(ctx, r.ID, runner.Report{AppVersion: "1", Services: []runner.Health{{Service: "local", Healthy: healthy}}}); err != nil {
				t.Fatal(err)
			}
		}
		report(true)
		state(runner.Ready)
		report(false)
		state(runner.Unresponsive)
		report(true)
		state(runner.Ready)
		w.advance(59 * time.Second)
		if err := s.Sweep(ctx); err != nil {
			t.Fatal(err)
		}
		if got, _ := s.Runner(ctx, r.ID); got.State != runner.Ready {
			t.Error("too early")
		}
		w.advance(2 * time.Second)
		if err := s.Sweep(ctx); err != nil {
			t.Fatal(err)
		}
		state(runner.Unresponsive)
		gone, _ := s.Runner(ctx, r.ID)
		if s.Lost(&gone) {
			t.Error("lost after a minute")
		}
		w.advance(30 * time.Minute)
		if !s.Lost(&gone) {
			t.Error("not lost after half an hour")
		}
		report(true)
		state(runner.Ready)
		if back, _ := s.Runner(ctx, r.ID); s.Lost(&back) {
			t.Error("lost although it is back")
		}
		if _, err := s.Report(ctx, r.ID, runner.Report{AppVersion: strings.Repeat("x", 5000)}); !errors.Is(err, daytona.ErrInvalid) {
			t.Error(err)
		}
	})
}

func TestDelete(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		s, w := setup(db)
		ctx := t.Context()
		r := add(t, s, "one", nil)
		if err := s.Delete(ctx, r.ID, false); !errors.Is(err, daytona.ErrInvalid) {
			t.Error("a runner that gets sandboxes:", err)
		}
		if got, err := s.Schedule(ctx, r.ID, true); err != nil || !got.Unschedulable {
			t.Fatal(got, err)
		}
		w.on[r.ID] = 2
		if err := s.Delete(ctx, r.ID, false); !errors.Is(err, daytona.ErrInvalid) {
			t.Error("a runner with sandboxes:", err)
		}
		if err := s.Delete(ctx, r.ID, true); err != nil || len(w.lost) != 1 {
			t.Error(err, w.lost)
		}
		if err := s.Delete(ctx, r.ID, true); !errors.Is(err, daytona.ErrNotFound) {
			t.Error(err)
		}
	})
}

// A draining runner is decommissioned when it has been empty three times in a
// row, and stays so.
func TestDrain(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		s, w := setup(db)
		ctx := t.Context()
		r := add(t, s, "one", nil)
		if _, err := s.SetDraining(ctx, r.ID, true); err != nil {
			t.Fatal(err)
		}
		for i, n := range []int{2, 0, 0, 1, 0, 0, 0} {
			if got, _ := s.Runner(ctx, r.ID); got.State != runner.Ready {
				t.Fatalf("%s after %d checks", got.State, i)
			}
			w.on[r.ID] = n
			if err := s.Sweep(ctx); err != nil {
				t.Fatal(err)
			}
		}
		if got, _ := s.Runner(ctx, r.ID); got.State != runner.Decommissioned || len(w.drained) != 7 {
			t.Error(got.State, w.drained)
		}
		if got, err := s.Report(ctx, r.ID, runner.Report{AppVersion: "1"}); err != nil || got.State != runner.Decommissioned {
			t.Error(got.State, err)
		}
		if _, err := s.SetDraining(ctx, r.ID, false); !errors.Is(err, daytona.ErrInvalid) {
			t.Error(err)
		}
	})
}

// Who gets a sandbox, and who does not.
func TestPlace(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		s, _ := setup(db)
		ctx := t.Context()
		plain := add(t, s, "plain", nil)
		able := add(t, s, "able", func(h *runner.Report) { h.Capabilities = []string{"fork", "pause"} })
		gpu := add(t, s, "gpu", func(h *runner.Report) { h.GPU, h.GPUType = 2, "H100" })
		full := add(t, s, "full", func(h *runner.Report) { h.Use.MemoryPercent = 99 })
		closed := add(t, s, "closed", nil)
		if _, err := s.Schedule(ctx, closed.ID, true); err != nil {
			t.Fatal(err)
		}
		leaving := add(t, s, "leaving", nil)
		if _, err := s.SetDraining(ctx, leaving.ID, true); err != nil {
			t.Fatal(err)
		}
		sick := add(t, s, "sick", func(h *runner.Report) { h.Services = []runner.Health{{Service: "x"}} })
		if full.Score >= 10 || plain.Score < 50 {
			t.Fatal(full.Score, plain.Score)
		}
		for range 20 {
			if id, err := s.Pick(ctx, "eu", ""); err != nil || id != plain.ID && id != able.ID && id != gpu.ID {
				t.Fatal(id, err)
			}
			if id, err := s.Pick(ctx, "", "container", "fork"); err != nil || id != able.ID {
				t.Fatal(id, err)
			}
		}
		for _, where := range []string{"us", "mars"} {
			if _, err := s.Pick(ctx, where, "container"); err == nil || err.Error() != "No available runners" {
				t.Error(err)
			}
		}
		if ids, err := s.Usable(ctx, []string{plain.ID, closed.ID, leaving.ID, sick.ID, "nobody"}); err != nil || len(ids) != 1 || ids[0] != plain.ID {
			t.Error(ids, err)
		}
		if n, err := s.InRegion(ctx, "eu"); err != nil || n != 7 {
			t.Error(n, err)
		}
		some := daytona.Resources{CPU: .1, Memory: .1, Disk: .1}
		for _, c := range []struct {
			name string
			want runner.Want
			ids  []string
			err  error
		}{
			{"any", runner.Want{}, []string{plain.ID, able.ID}, nil},
			{"android", runner.Want{Class: "android"}, []string{plain.ID, able.ID}, nil},
			{"windows", runner.Want{Class: "windows"}, nil, daytona.ErrInvalid},
			{"capability", runner.Want{Needs: []string{"fork", "pause"}}, []string{able.ID}, nil},
			{"no such capability", runner.Want{Needs: []string{"teleport"}}, nil, daytona.ErrUnsupported},
			{"preferred", runner.Want{Prefer: []string{plain.ID, closed.ID}}, []string{plain.ID}, nil},
			{"preferred is closed", runner.Want{Prefer: []string{closed.ID}}, []string{plain.ID, able.ID}, nil},
			{"only", runner.Want{Only: []string{able.ID, closed.ID, leaving.ID, sick.ID}}, []string{able.ID}, nil},
			{"only none", runner.Want{Only: []string{}}, nil, daytona.ErrInvalid},
			{"not", runner.Want{Not: []string{able.ID}}, []string{plain.ID}, nil},
			{"GPU", runner.Want{Resources: daytona.Resources{GPU: 1}}, []string{gpu.ID}, nil},
			{"GPU type", runner.Want{Resources: daytona.Resources{GPU: 1}, GPUTypes: []string{"H200", "H100"}}, []string{gpu.ID}, nil},
			{"other GPU type", runner.Want{Resources: daytona.Resources{GPU: 1}, GPUTypes: []string{"H200"}}, nil, daytona.ErrInvalid},
			{"too large", runner.Want{Resources: daytona.Resources{Memory: 9}}, nil, daytona.ErrInvalid},
			{"elsewhere", runner.Want{RegionID: "us"}, nil, daytona.ErrInvalid},
		} {
			seen := map[string]bool{}
			for range 20 {
				w := c.want
				w.Key = "k"
				if w.RegionID == "" {
					w.RegionID = "eu"
				}
				if w.Resources == (daytona.Resources{}) {
					w.Resources = some
				}
				p, err := s.Place(ctx, w)
				if !errors.Is(err, c.err) || c.err == nil && err != nil {
					t.Fatalf("%s: %v", c.name, err)
				}
				if err == nil {
					seen[p.RunnerID] = true
				} else if errors.Is(err, daytona.ErrInvalid) && err.Error() != "No available runners" {
					t.Errorf("%s: %v", c.name, err)
				}
			}
			if len(seen) != len(c.ids) {
				t.Errorf("%s: %v instead of %v", c.name, seen, c.ids)
			}
			for _, id := range c.ids {
				if !seen[id] {
					t.Errorf("%s: never %s", c.name, id)
				}
			}
			if err := s.Release(ctx, "k"); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// Placements at the same time do not promise more than a runner has; what is
// released, and what the runner has told of, is free again.
func TestReservations(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		s, w := setup(db)
		ctx := t.Context()
		a, b := add(t, s, "a", nil), add(t, s, "b", nil)
		var wg sync.WaitGroup
		var mu sync.Mutex
		got, none := map[string]int{}, 0
		for i := range 12 {
			wg.Go(func() {
				p, err := s.Place(ctx, runner.Want{Key: fmt.Sprint(i), RegionID: "eu", Resources: daytona.Resources{Memory: 2}})
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					got[p.RunnerID]++
				} else if errors.Is(err, daytona.ErrInvalid) {
					none++
				} else {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if got[a.ID] != 4 || got[b.ID] != 4 || none != 4 {
			t.Fatal(got, none)
		}
		try := func() error {
			_, err := s.Place(ctx, runner.Want{Key: "more", RegionID: "eu", Resources: daytona.Resources{Memory: 2}})
			return err
		}
		// Released: they are on the runner now, which has not said so yet.
		w.advance(time.Second)
		for i := range 12 {
			if err := s.Release(ctx, fmt.Sprint(i)); err != nil {
				t.Fatal(err)
			}
		}
		if err := try(); !errors.Is(err, daytona.ErrInvalid) {
			t.Error("what is released is free before the runner has told of it:", err)
		}
		w.advance(time.Second)
		report := func(id string, allocated float64) {
			if _, err := s.Report(ctx, id, runner.Report{Use: &runner.Use{AllocatedMemory: allocated}, CPU: 4, Memory: 8, Disk: 100}); err != nil {
				t.Fatal(err)
			}
		}
		report(a.ID, 8)
		report(b.ID, 8)
		if n, err := db.All(ctx).NewSelect().TableExpr("runner_reservations").Count(ctx); err != nil || n != 0 {
			t.Errorf("%d promises are kept that the runners' own figures have: every placement would read them (%v)", n, err)
		}
		if err := try(); !errors.Is(err, daytona.ErrInvalid) {
			t.Error("the runners are full:", err)
		}
		report(b.ID, 6)
		if err := try(); err != nil {
			t.Error(err)
		}
		// The same sandbox again takes the place of its first promise.
		if err := try(); err != nil {
			t.Error(err)
		}
		// What nobody says more of is over some time.
		w.advance(3 * time.Minute)
		if _, err := s.Place(ctx, runner.Want{Key: "other", RegionID: "eu", Resources: daytona.Resources{Memory: 2}}); err != nil {
			t.Error(err)
		}
	})
}

// A server that was away for long does not take its runners to be silent: they
// had nobody to tell.
func TestServerWasAway(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		s, w := setup(db)
		id := add(t, s, "one", nil).ID
		w.advance(time.Hour)
		s = runner.NewService(db, &runner.Options{Now: w.time, Regions: w, Sandboxes: w, Sealer: w})
		state := func(want runner.State) {
			t.Helper()
			if err := s.Sweep(t.Context()); err != nil {
				t.Fatal(err)
			}
			r, err := s.Runner(t.Context(), id)
			if err != nil || r.State != want || s.Lost(&r) {
				t.Errorf("%s, want %s; %v", r.State, want, err)
			}
		}
		state(runner.Ready)
		w.advance(59 * time.Second)
		state(runner.Ready)
		w.advance(2 * time.Second)
		state(runner.Unresponsive)
	})
}
