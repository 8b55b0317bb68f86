package sandbox_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/sandbox"
	"github.com/daytona-go/daytona/server/store"
	"github.com/daytona-go/daytona/server/store/storetest"
)

// checks sets how many histories are tried, unless the command line says.
func checks(t *testing.T, n string) {
	said := false
	flag.Visit(func(f *flag.Flag) { said = said || f.Name == "rapid.checks" })
	if !said {
		if err := flag.Set("rapid.checks", n); err != nil {
			t.Fatal(err)
		}
	}
}

// clear empties the tables for the next history.
func (w *world) clear() {
	for _, table := range []string{"sandboxes", "sandbox_labels", "sandbox_volumes", "sandbox_leftovers", "sandbox_preview_tokens", "sandbox_ssh_access", "warm_pools", "fake_jobs"} {
		if _, err := w.db.All(context.Background()).ExecContext(context.Background(), "DELETE FROM "+table); err != nil {
			w.t.Fatal(err)
		}
	}
}

// reference is the state machine of one sandbox as the documents have it,
// without a database, jobs that are lost, or time.
type reference struct {
	state   sandbox.State
	desired sandbox.Desired
	// job is the type of the one that is under way, prior what it goes back to.
	job       string
	prior     sandbox.State
	ephemeral bool
	backup    sandbox.BackupState
	labels    string
}

func (m *reference) pending() bool {
	if m.state == sandbox.Errored || m.desired == sandbox.WantArchived {
		return false
	}
	return string(m.state) != string(m.desired)
}

var (
	conflict = daytona.ErrConflict
	wrong    = daytona.ErrState
)

// ask is what a user asks for; it returns the kind of the error.
func (m *reference) ask(what string) error {
	busy := m.pending() || m.job != ""
	settled := m.state == sandbox.Started || m.state == sandbox.Stopped
	switch what {
	case "start":
		switch {
		case m.state == sandbox.Started && m.desired == sandbox.WantStarted:
			return nil
		case m.state == sandbox.Errored:
			return wrong
		case m.pending():
			return conflict
		case !slices.Contains([]sandbox.State{sandbox.Stopped, sandbox.Archived, sandbox.Archiving, sandbox.Paused}, m.state):
			return wrong
		}
		m.desired = sandbox.WantStarted
	case "stop":
		switch {
		case m.pending():
			return conflict
		case m.state != sandbox.Started && m.state != sandbox.Paused:
			return wrong
		case m.ephemeral:
			m.desired = sandbox.WantDestroyed
		default:
			m.desired = sandbox.WantStopped
		}
	case "pause":
		switch {
		case m.pending():
			return conflict
		case m.state == sandbox.Paused:
			return nil
		case m.state != sandbox.Started:
			return wrong
		}
		m.desired = sandbox.WantPaused
	case "archive":
		switch {
		case m.pending():
			return conflict
		case m.desired == sandbox.WantArchived && m.state != sandbox.Errored:
			return nil
		case m.state != sandbox.Stopped:
			return wrong
		case m.ephemeral:
			return daytona.ErrInvalid
		}
		m.desired = sandbox.WantArchived
	case "delete":
		if m.pending() || m.job != "" && m.state != sandbox.Archiving {
			return conflict
		}
		m.desired = sandbox.WantDestroyed
	case "resize", "snapshot":
		switch {
		case busy:
			return conflict
		case !settled:
			return wrong
		}
		m.prior = m.state
		m.state, m.job = sandbox.Resizing, "RESIZE_SANDBOX"
		if what == "snapshot" {
			m.state, m.job = sandbox.Snapshotting, "SNAPSHOT_SANDBOX"
		}
	}
	m.advance()
	return nil
}

// advance begins what is next.
func (m *reference) advance() {
	for m.job == "" {
		before := *m
		switch m.desired {
		case sandbox.WantDestroyed:
			switch m.state {
			case sandbox.Archived:
				m.state = sandbox.Destroyed
			case sandbox.Destroyed:
			default:
				m.state, m.job = sandbox.Destroying, "DESTROY_SANDBOX"
			}
		case sandbox.WantStarted:
			switch m.state {
			case sandbox.Stopped:
				m.state, m.job = sandbox.Starting, "START_SANDBOX"
			case sandbox.Paused:
				m.state, m.job = sandbox.Resuming, "START_SANDBOX"
			case sandbox.Archived:
				m.state, m.job = sandbox.Restoring, "CREATE_SANDBOX"
			case sandbox.Archiving:
				m.state = sandbox.Stopped
			}
		case sandbox.WantStopped:
			if m.state == sandbox.Started || m.state == sandbox.Paused {
				m.state, m.job = sandbox.Stopping, "STOP_SANDBOX"
			}
		case sandbox.WantPaused:
			if m.state == sandbox.Started {
				m.state, m.job = sandbox.Pausing, "PAUSE_SANDBOX"
			}
		case sandbox.WantArchived:
			switch {
			case m.state == sandbox.Stopped:
				m.state = sandbox.Archiving
			case m.state == sandbox.Archiving && m.backup == sandbox.BackupCompleted:
				m.job = "DESTROY_SANDBOX"
			case m.state == sandbox.Archiving && m.backup == sandbox.BackupNone:
				m.backup = sandbox.BackupInProgress
			case m.state == sandbox.Archiving && m.backup == sandbox.BackupError:
				m.state, m.desired, m.backup = sandbox.Stopped, sandbox.WantStopped, sandbox.BackupNone
			}
		}
		if *m == before {
			return
		}
	}
}

// end ends the job that is under way, or a backup.
func (m *reference) end(job string, ok bool) {
	if job == "CREATE_BACKUP" {
		if m.backup = sandbox.BackupCompleted; !ok {
			m.backup = sandbox.BackupError
		}
		m.advance()
		return
	}
	m.job = ""
	switch {
	case job == "RESIZE_SANDBOX" || job == "SNAPSHOT_SANDBOX":
		m.state = m.prior
	case job == "PAUSE_SANDBOX" && !ok:
		m.state, m.desired = sandbox.Started, sandbox.WantStarted
	case job == "DESTROY_SANDBOX" && !ok && m.desired != sandbox.WantDestroyed:
		m.job = "later" // it is tried again after a while
		return
	case !ok:
		m.state = sandbox.Errored
		if m.desired == sandbox.WantDestroyed {
			m.job = "later"
			return
		}
	case job == "CREATE_SANDBOX" || job == "START_SANDBOX":
		m.state, m.backup = sandbox.Started, sandbox.BackupNone
	case job == "STOP_SANDBOX":
		m.state, m.backup = sandbox.Stopped, sandbox.BackupNone
	case job == "PAUSE_SANDBOX":
		m.state = sandbox.Paused
	case job == "DESTROY_SANDBOX" && m.desired == sandbox.WantDestroyed:
		m.state = sandbox.Destroyed
	case job == "DESTROY_SANDBOX":
		m.state = sandbox.Archived
	}
	if m.state != sandbox.Errored {
		m.advance()
	}
}

// Random histories of what users ask for and of how jobs end, with servers
// that die in between, go just as the reference says.
func TestReference(t *testing.T) {
	checks(t, "15")
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		w := newWorld(t, db, func(c *sandbox.Config) { c.Wait, c.BackupEvery = time.Nanosecond, -1 })
		w.auto = false
		rapid.Check(t, func(t *rapid.T) {
			w.clear()
			w.restart()
			ctx := context.Background()
			models := map[string]*reference{}
			var ids []string
			pick := func() (string, *reference) {
				if len(ids) == 0 {
					t.Skip("there is none")
				}
				id := rapid.SampledFrom(ids).Draw(t, "sandbox")
				return id, models[id]
			}
			kind := func(err error) error {
				for _, k := range []error{daytona.ErrConflict, daytona.ErrState, daytona.ErrInvalid, daytona.ErrNotFound} {
					if errors.Is(err, k) {
						return k
					}
				}
				return err
			}
			ask := func(id, what string) error {
				var err error
				switch what {
				case "start":
					_, err = w.s.Start(ctx, "a", id)
				case "stop":
					_, err = w.s.Stop(ctx, "a", id, false)
				case "pause":
					_, err = w.s.Pause(ctx, "a", id)
				case "archive":
					_, err = w.s.Archive(ctx, "a", id)
				case "delete":
					_, err = w.s.Delete(ctx, "a", id)
				case "resize":
					_, err = w.s.Resize(ctx, "a", id, sandbox.Resources{CPU: w.get(id).CPU + 1})
				case "snapshot":
					_, err = w.s.Snapshot(ctx, "a", id, fmt.Sprint("s", len(w.captured), rapid.Uint64().Draw(t, "name")), false)
				}
				return err
			}
			actions := []string{"start", "stop", "pause", "archive", "delete", "resize", "snapshot"}
			t.Repeat(map[string]func(*rapid.T){
				"create": func(t *rapid.T) {
					if len(ids) == 3 {
						t.Skip("enough")
					}
					m := &reference{state: sandbox.Creating, desired: sandbox.WantStarted, job: "CREATE_SANDBOX", backup: sandbox.BackupNone}
					n := sandbox.Spec{}
					if m.ephemeral = rapid.IntRange(0, 3).Draw(t, "ephemeral") == 0; m.ephemeral {
						n.AutoDelete = new(0)
					}
					sb, err := w.s.Create(ctx, "a", n)
					if err != nil {
						t.Fatal(err)
					}
					ids, models[sb.ID] = append(ids, sb.ID), m
				},
				"ask": func(t *rapid.T) {
					id, m := pick()
					what := rapid.SampledFrom(actions).Draw(t, "what")
					var want error
					if m.state == sandbox.Destroyed || m.state == sandbox.Errored && m.desired == sandbox.WantDestroyed {
						want = daytona.ErrNotFound
					} else if m.desired == sandbox.WantDestroyed && what == "delete" {
						// it is being destroyed
					} else {
						// What waits for a while goes on when it is asked for.
						later := m.job == "later"
						if later {
							m.job = ""
						}
						before := *m
						want = m.ask(what)
						if later && *m == before {
							m.job = "later"
						}
					}
					if what == "resize" && want == wrong {
						ask(id, what) // what is wrong first, the size or the state, is not said
						return
					}
					if got := kind(ask(id, what)); got != want {
						t.Fatalf("%s %s: %v, not %v", what, w.get(id).State, got, want)
					}
				},
				"label": func(t *rapid.T) {
					id, m := pick()
					v := rapid.StringMatching("[a-z]{3}").Draw(t, "label")
					if _, err := w.s.SetLabels(ctx, "a", id, map[string]string{"v": v}); err == nil {
						m.labels = v
					} else if !errors.Is(err, daytona.ErrNotFound) {
						t.Fatal(err)
					}
				},
				"end": func(t *rapid.T) {
					open := w.open()
					if len(open) == 0 {
						t.Skip("no job")
					}
					j := rapid.SampledFrom(open).Draw(t, "job")
					failure := rapid.SampledFrom([]string{"", "", "", "boom"}).Draw(t, "failure")
					if j.Type != "REMOVE_SNAPSHOT" {
						m := models[j.Resource]
						current := w.get(j.Resource)
						if current.JobID == j.ID || current.BackupJobID == j.ID {
							m.end(j.Type, failure == "")
						}
					}
					if err := w.finish(j.ID, failure); err != nil {
						t.Fatal(err)
					}
				},
				"end again": func(t *rapid.T) {
					var done []fakeJob
					if err := w.db.All(ctx).NewSelect().Model(&done).Where("done = ?", true).Order("id").Scan(ctx); err != nil {
						t.Fatal(err)
					}
					if len(done) == 0 {
						t.Skip("no job")
					}
					j := rapid.SampledFrom(done).Draw(t, "job")
					if err := w.done(ctx, &j, rapid.SampledFrom([]string{"", "boom"}).Draw(t, "failure")); err != nil {
						t.Fatal(err)
					}
				},
				"die": func(t *rapid.T) { w.restart() },
				"die amid": func(t *rapid.T) {
					id, _ := pick()
					w.mu.Lock()
					w.crash = true
					w.mu.Unlock()
					before := *w.get(id)
					err := ask(id, rapid.SampledFrom(actions).Draw(t, "what"))
					w.mu.Lock()
					crashed := !w.crash
					w.crash = false
					w.mu.Unlock()
					if after := w.get(id); crashed && (err == nil || after.Version != before.Version) {
						t.Fatalf("half of it is done: %v", err)
					} else if !crashed && err == nil && after.Version != before.Version {
						// It needed no job: it was done.
						models[id].state, models[id].desired, models[id].backup = after.State, after.Desired, after.Backup
						if models[id].job == "later" && after.RetryAt == nil {
							models[id].job = ""
						}
					}
					w.restart()
				},
				"sweep": func(t *rapid.T) {
					w.mu.Lock()
					w.now = w.now.Add(time.Millisecond)
					w.mu.Unlock()
					if err := w.s.Reconcile(ctx); err != nil {
						t.Fatal(err)
					}
				},
				"": func(t *rapid.T) {
					for _, id := range ids {
						m, sb := models[id], w.get(id)
						if sb.State != m.state || sb.Desired != m.desired || sb.Backup != m.backup && m.state != sandbox.Destroyed || sb.Pending != m.pending() {
							t.Fatalf("%s: %s→%s, pending %v, backup %s, job %q; the reference has %s→%s, %v, %s, %q", id, sb.State, sb.Desired, sb.Pending, sb.Backup, sb.JobType, m.state, m.desired, m.pending(), m.backup, m.job)
						}
						if got := sb.Labels["v"]; got != m.labels {
							t.Fatalf("label %q, not %q", got, m.labels)
						}
						open := 0
						for _, j := range w.open() {
							if j.Resource == id && j.Type != "CREATE_BACKUP" {
								open++
							}
						}
						if has := m.job != "" && m.job != "later"; has && (sb.JobType != m.job || open != 1) || !has && (sb.JobID != "" || open != 0) {
							t.Fatalf("%s %s: %d jobs, of type %q; the reference has %q", id, sb.State, open, sb.JobType, m.job)
						}
					}
				},
			})
		})
	})
}

// host is what runners really have: jobs change it when they end.
type host map[string]map[string]bool // sandboxes by runner

func (h host) do(j fakeJob) {
	if h[j.Runner] == nil {
		h[j.Runner] = map[string]bool{}
	}
	switch j.Type {
	case "CREATE_SANDBOX", "FORK_SANDBOX":
		h[j.Runner][j.Resource] = true
	case "DESTROY_SANDBOX":
		delete(h[j.Runner], j.Resource)
	}
}

// Whatever happens, at the latest when all is well again, everything is what
// was last asked for and acknowledged, and runners have just what the rows say.
func TestChaos(t *testing.T) {
	checks(t, "15")
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		w := newWorld(t, db, func(c *sandbox.Config) { c.Wait = time.Nanosecond })
		w.auto = false
		w.addRunner("r2")
		rapid.Check(t, func(t *rapid.T) {
			w.clear()
			w.restart()
			for _, id := range []string{"r1", "r2"} {
				w.setRunner(id, func(r *sandbox.Runner) { r.Usable = true })
			}
			w.pass(0)
			ctx := context.Background()
			have := host{}
			deleted := map[string]bool{}
			var ids []string
			pick := func() string {
				if len(ids) == 0 {
					t.Skip("there is none")
				}
				return rapid.SampledFrom(ids).Draw(t, "sandbox")
			}
			fine := func(err error) {
				if err != nil && !errors.Is(err, errCrash) && daytona.KindOf(err) == daytona.KindInternal {
					t.Fatal(err)
				}
			}
			end := func(t *rapid.T, j fakeJob, failure string, did bool) {
				if did {
					have.do(j)
				}
				// With a server that dies the runner tells it again.
				if err := w.finish(j.ID, failure); err != nil && !errors.Is(err, errCrash) {
					t.Fatal(err)
				}
			}
			t.Repeat(map[string]func(*rapid.T){
				"create": func(t *rapid.T) {
					if len(ids) >= 4 {
						t.Skip("enough")
					}
					n := sandbox.Spec{AutoStop: new(rapid.SampledFrom([]int{0, 5}).Draw(t, "stop")), AutoArchive: new(60)}
					if rapid.IntRange(0, 4).Draw(t, "ephemeral") == 0 {
						n.AutoDelete = new(0)
					}
					sb, err := w.s.Create(ctx, "a", n)
					if fine(err); err == nil {
						ids = append(ids, sb.ID)
					}
				},
				"fork": func(t *rapid.T) {
					if len(ids) >= 5 {
						t.Skip("enough")
					}
					sb, err := w.s.Fork(ctx, "a", pick(), "")
					if fine(err); err == nil {
						ids = append(ids, sb.ID)
					}
				},
				"ask": func(t *rapid.T) {
					id := pick()
					var err error
					switch rapid.SampledFrom([]string{"start", "stop", "pause", "archive", "delete", "recover", "resize", "backup"}).Draw(t, "what") {
					case "start":
						_, err = w.s.Start(ctx, "a", id)
					case "stop":
						_, err = w.s.Stop(ctx, "a", id, true)
					case "pause":
						_, err = w.s.Pause(ctx, "a", id)
					case "archive":
						_, err = w.s.Archive(ctx, "a", id)
					case "recover":
						_, err = w.s.Recover(ctx, "a", id, false)
					case "resize":
						_, err = w.s.Resize(ctx, "a", id, sandbox.Resources{CPU: 2})
					case "backup":
						_, err = w.s.StartBackup(ctx, "a", id)
					case "delete":
						if _, err = w.s.Delete(ctx, "a", id); err == nil {
							deleted[id] = true
						}
					}
					fine(err)
				},
				"end": func(t *rapid.T) {
					open := slices.DeleteFunc(w.open(), func(j fakeJob) bool {
						r, _ := w.Runner(ctx, j.Runner)
						return !r.Usable // who is away does nothing
					})
					if len(open) == 0 {
						t.Skip("no job")
					}
					j := rapid.SampledFrom(open).Draw(t, "job")
					switch rapid.IntRange(0, 5).Draw(t, "how") {
					case 0:
						end(t, j, "boom", false)
					case 1: // done, and said to have failed
						end(t, j, `{"recoverable":true,"errorReason":"no space left on device"}`, true)
					default:
						end(t, j, "", true)
					}
				},
				"again": func(t *rapid.T) {
					var done []fakeJob
					if err := w.db.All(ctx).NewSelect().Model(&done).Where("done = ?", true).Order("id").Scan(ctx); err != nil {
						t.Fatal(err)
					}
					if len(done) == 0 {
						t.Skip("no job")
					}
					j := rapid.SampledFrom(done).Draw(t, "job")
					if err := w.done(ctx, &j, rapid.SampledFrom([]string{"", "boom"}).Draw(t, "failure")); err != nil && !errors.Is(err, errCrash) {
						t.Fatal(err)
					}
				},
				"die": func(t *rapid.T) {
					w.mu.Lock()
					w.crash = rapid.Bool().Draw(t, "amid")
					w.mu.Unlock()
					w.restart()
				},
				"time": func(t *rapid.T) {
					w.pass(time.Duration(rapid.SampledFrom([]int{1, 60, 600, 2400, 8000}).Draw(t, "seconds")) * time.Second)
				},
				"sweep": func(t *rapid.T) { fine(w.s.Reconcile(ctx)) },
				"runner": func(t *rapid.T) {
					id := rapid.SampledFrom([]string{"r1", "r2"}).Draw(t, "runner")
					w.setRunner(id, func(r *sandbox.Runner) { r.Usable = !r.Usable })
					w.pass(0)
				},
				"": func(t *rapid.T) {
					open := map[string]bool{}
					for _, j := range w.open() {
						key := j.Runner + " " + j.Resource
						if j.Type != "CREATE_BACKUP" && j.Type != "REMOVE_SNAPSHOT" {
							if open[key] {
								t.Fatalf("two jobs at once: %v", w.open())
							}
							open[key] = true
						}
						open[j.ID] = true
					}
					for _, id := range ids {
						sb := w.get(id)
						still := sb.State == sandbox.Errored || sb.State == sandbox.BuildFailed || sb.Desired == sandbox.WantArchived
						if want := !still && string(sb.State) != string(sb.Desired); sb.Pending != want {
							t.Fatalf("%s→%s is pending: %v", sb.State, sb.Desired, sb.Pending)
						}
						if (sb.State == sandbox.Destroyed || sb.State == sandbox.Archived) && sb.RunnerID != "" {
							t.Fatalf("%s has a runner", sb.State)
						}
						if sb.JobID != "" && !open[sb.JobID] {
							t.Fatalf("%s waits for %s, which has ended", sb.State, sb.JobID)
						}
						if deleted[id] && sb.Desired != sandbox.WantDestroyed {
							t.Fatalf("the deletion of %s is lost: %s→%s", id, sb.State, sb.Desired)
						}
					}
				},
			})
			// All is well from now on.
			w.mu.Lock()
			w.crash = false
			w.mu.Unlock()
			for _, id := range []string{"r1", "r2"} {
				w.setRunner(id, func(r *sandbox.Runner) { r.Usable = true })
			}
			for _, id := range ids {
				if _, err := w.s.SetAutoStop(ctx, "a", id, 0); err != nil && !errors.Is(err, daytona.ErrNotFound) {
					t.Fatal(err)
				}
			}
			for range 14 {
				w.pass(2 * time.Minute)
				for range 3 {
					for _, j := range w.open() {
						end(t, j, "", true)
					}
				}
				if err := w.s.Reconcile(ctx); err != nil {
					t.Fatal(err)
				}
			}
			if open := w.open(); len(open) > 0 {
				t.Fatalf("jobs without end: %v", open)
			}
			want := map[string]string{}
			for _, id := range ids {
				sb := w.get(id)
				rest := slices.Contains([]sandbox.State{sandbox.Started, sandbox.Stopped, sandbox.Paused, sandbox.Archived, sandbox.Destroyed, sandbox.Errored}, sb.State)
				if !rest || sb.Pending || sb.JobID != "" || sb.Backup == sandbox.BackupInProgress || sb.Backup == sandbox.BackupPending {
					t.Fatalf("%s never comes to rest: %s→%s %s %s", id, sb.State, sb.Desired, sb.JobID, sb.Backup)
				}
				if (deleted[id] || sb.Desired == sandbox.WantDestroyed) && sb.State != sandbox.Destroyed {
					t.Fatalf("%s was deleted and is %s", id, sb.State)
				}
				switch sb.State {
				case sandbox.Started, sandbox.Stopped, sandbox.Paused:
					want[id] = sb.RunnerID
				case sandbox.Errored:
					want[id] = "any"
				}
			}
			for runner, all := range have {
				for _, id := range slices.Sorted(maps.Keys(all)) {
					if want[id] != runner && !(want[id] == "any" && w.get(id).RunnerID == runner) {
						b, _ := json.Marshal(w.jobs(id))
						t.Fatalf("%s has %s, an orphan: %s, on %q; %s", runner, id, w.get(id).State, w.get(id).RunnerID, b)
					}
				}
			}
			for id, runner := range want {
				if runner != "any" && !have[runner][id] {
					t.Fatalf("%s is not on %s; %s", id, runner, strings.Join(w.jobs(id), "\n"))
				}
			}
		})
	})
}

// jobs are all that there were of a sandbox, for a failure's message.
func (w *world) jobs(id string) []string {
	var all []string
	if err := w.db.All(context.Background()).NewSelect().Model((*fakeJob)(nil)).ColumnExpr("id || ' ' || runner").Where("resource = ?", id).Order("id").Scan(context.Background(), &all); err != nil {
		w.t.Fatal(err)
	}
	return all
}
