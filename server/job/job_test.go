package job_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/job"
	"github.com/daytona-go/daytona/server/store"
	"github.com/daytona-go/daytona/server/store/storetest"
)

func enqueue(t *testing.T, s *job.Service, n job.New) job.Job {
	t.Helper()
	if n.ResourceType == "" {
		n.ResourceType = job.ResourceSandbox
	}
	j, err := s.Enqueue(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

// take polls until there is a job.
func take(t *testing.T, s *job.Service, runner string) job.Job {
	t.Helper()
	jobs, err := s.Poll(t.Context(), runner, 1, 10*time.Second)
	if err != nil || len(jobs) != 1 {
		t.Fatal(jobs, err)
	}
	return jobs[0]
}

func TestLife(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		ctx, s := t.Context(), job.NewService(db, nil)
		j := enqueue(t, s, job.New{
			Type: job.CreateSandbox, RunnerID: "r", ResourceID: "sb", Payload: map[string]any{"id": "sb"}, Trace: map[string]string{"Traceparent": "00-1-2-01"},
		})
		if j.Status != job.Pending || j.Payload != `{"id":"sb"}` || j.Trace["traceparent"] != "00-1-2-01" {
			t.Fatalf("%+v", j)
		}
		if jobs, err := s.Poll(ctx, "other", 10, 0); err != nil || len(jobs) != 0 {
			t.Fatal("another runner got", jobs, err)
		}
		got := take(t, s, "r")
		if got.ID != j.ID || got.Status != job.InProgress || got.Payload != j.Payload || got.Trace["traceparent"] == "" {
			t.Fatalf("%+v", got)
		}
		if jobs, err := s.Poll(ctx, "r", 10, 0); err != nil || len(jobs) != 0 {
			t.Fatal("given twice", jobs, err)
		}
		if list, n, err := s.List(ctx, "r", job.Filter{Status: job.InProgress, Limit: 10}); err != nil || n != 1 || len(list) != 1 || list[0].ID != j.ID {
			t.Fatal(list, n, err)
		}
		if _, err := s.Get(ctx, "other", j.ID); !errors.Is(err, daytona.ErrNotFound) {
			t.Error(err)
		}
		if _, err := s.Update(ctx, "other", j.ID, job.Update{Status: job.Completed}); !errors.Is(err, daytona.ErrNotFound) {
			t.Error(err)
		}
		if _, err := s.Update(ctx, "r", j.ID, job.Update{Status: job.Completed, Result: "{"}); !errors.Is(err, daytona.ErrInvalid) {
			t.Error(err)
		}
		done, err := s.Update(ctx, "r", j.ID, job.Update{Status: job.Completed, Result: `{"daemonVersion":"1"}`})
		if err != nil || !done.Ended() {
			t.Fatal(done, err)
		}
		var result struct{ DaemonVersion string }
		if err := done.Decode(&result); err != nil || result.DaemonVersion != "1" {
			t.Error(result, err)
		}
		if w, err := s.Wait(ctx, j.ID); err != nil || w.Status != job.Completed {
			t.Error(w, err)
		}
	})
}

// Which moves are legal; what has ended stays as it is.
func TestMoves(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		s := job.NewService(db, nil)
		legal := map[[2]job.Status]bool{
			{job.Pending, job.InProgress}: true, {job.Pending, job.Failed}: true, {job.InProgress, job.Completed}: true, {job.InProgress, job.Failed}: true,
		}
		all := []job.Status{job.Pending, job.InProgress, job.Completed, job.Failed}
		for _, from := range all {
			for _, to := range all {
				j := enqueue(t, s, job.New{Type: job.StopSandbox, RunnerID: "r", ResourceID: string(from + to)})
				if from != job.Pending {
					if _, err := s.Update(t.Context(), "r", j.ID, job.Update{Status: job.InProgress}); err != nil {
						t.Fatal(err)
					}
				}
				if from == job.Completed || from == job.Failed {
					if _, err := s.Update(t.Context(), "r", j.ID, job.Update{Status: from}); err != nil {
						t.Fatal(err)
					}
				}
				_, err := s.Update(t.Context(), "r", j.ID, job.Update{Status: to})
				if legal[[2]job.Status{from, to}] {
					if err != nil {
						t.Errorf("%s to %s: %v", from, to, err)
					}
				} else if !errors.Is(err, daytona.ErrConflict) {
					t.Errorf("%s to %s: %v", from, to, err)
				}
			}
		}
		if _, err := s.Update(t.Context(), "r", "x", job.Update{Status: "DONE"}); !errors.Is(err, daytona.ErrInvalid) {
			t.Error(err)
		}
	})
}

// There is one unfinished job for a resource and runner, backups apart; who
// finds that out in a transaction can go on with it.
func TestConflict(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		ctx, s := t.Context(), job.NewService(db, nil)
		first := enqueue(t, s, job.New{Type: job.StartSandbox, RunnerID: "r", ResourceID: "sb"})
		enqueue(t, s, job.New{Type: job.CreateBackup, RunnerID: "r", ResourceID: "sb"})
		enqueue(t, s, job.New{Type: job.StartSandbox, RunnerID: "r2", ResourceID: "sb"})
		enqueue(t, s, job.New{Type: job.PullSnapshot, RunnerID: "r", ResourceType: job.ResourceSnapshot, ResourceID: "sb"})
		err := db.Tx(ctx, func(ctx context.Context) error {
			if _, err := s.Enqueue(ctx, job.New{Type: job.StopSandbox, RunnerID: "r", ResourceType: job.ResourceSandbox, ResourceID: "sb"}); !errors.Is(err, daytona.ErrConflict) {
				t.Error(err)
			}
			_, err := s.Enqueue(ctx, job.New{Type: job.StopSandbox, RunnerID: "r", ResourceType: job.ResourceSandbox, ResourceID: "sb2"})
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Cancel(ctx, first.ID, "not needed"); err != nil {
			t.Fatal(err)
		}
		enqueue(t, s, job.New{Type: job.StopSandbox, RunnerID: "r", ResourceID: "sb"})
		if list, err := s.Unfinished(ctx, job.ResourceSandbox, "sb"); err != nil || len(list) != 3 {
			t.Error(list, err)
		}
	})
}

// box is no secret, but shows what was sealed, and for what.
type box struct{}

func (box) Seal(plain, place string) string { return "sealed|" + place + "|" + strings.ToUpper(plain) }
func (box) Open(sealed, place string) (string, error) {
	plain, ok := strings.CutPrefix(sealed, "sealed|"+place+"|")
	if !ok {
		return "", errors.New("sealed for another place")
	}
	return strings.ToLower(plain), nil
}

// What is in a payload is sealed in the database, and gone when the job is.
func TestPayloads(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		ctx, s := t.Context(), job.NewService(db, &job.Options{Sealer: box{}})
		stored := func() (payload string) {
			t.Helper()
			if err := db.All(ctx).NewRaw("SELECT payload FROM jobs").Scan(ctx, &payload); err != nil {
				t.Fatal(err)
			}
			return payload
		}
		const secret = `{"password":"geheim"}`
		j := enqueue(t, s, job.New{Type: job.PullSnapshot, RunnerID: "r", ResourceID: "x", Payload: secret})
		if j.Payload != secret || strings.Contains(stored(), "geheim") {
			t.Error(j.Payload, stored())
		}
		s.OnDone(job.ResourceSandbox, func(_ context.Context, j job.Job) error {
			if j.Payload != secret {
				t.Error("the hook gets", j.Payload)
			}
			return nil
		})
		for name, f := range map[string]func() (job.Job, error){
			"Find": func() (job.Job, error) { return s.Find(ctx, j.ID) },
			"Get":  func() (job.Job, error) { return s.Get(ctx, "r", j.ID) },
			"Unfinished": func() (job.Job, error) {
				list, err := s.Unfinished(ctx, job.ResourceSandbox, "x")
				return list[0], err
			},
			"List": func() (job.Job, error) {
				list, _, err := s.List(ctx, "r", job.Filter{Limit: 1})
				return list[0], err
			},
		} {
			if got, err := f(); err != nil || got.Payload != secret {
				t.Errorf("%s: %q %v", name, got.Payload, err)
			}
		}
		if got := take(t, s, "r"); got.Payload != secret {
			t.Error(got.Payload)
		}
		if _, err := s.Update(ctx, "r", j.ID, job.Update{Status: job.Completed}); err != nil || stored() != "" {
			t.Error(err, stored())
		}
	})
}

// A job that is rolled back was never there.
func TestRollback(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		ctx, s := t.Context(), job.NewService(db, nil)
		wrong := errors.New("wrong")
		if err := db.Tx(ctx, func(ctx context.Context) error {
			if _, err := s.Enqueue(ctx, job.New{Type: job.StopSandbox, RunnerID: "r", ResourceType: job.ResourceSandbox, ResourceID: "sb"}); err != nil {
				return err
			}
			return wrong
		}); err != wrong {
			t.Fatal(err)
		}
		if jobs, err := s.Poll(ctx, "r", 10, 0); err != nil || len(jobs) != 0 {
			t.Error(jobs, err)
		}
	})
}

// The hook and the end of the job are one.
func TestHook(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		ctx, s := t.Context(), job.NewService(db, nil)
		var ended []string
		wrong := errors.New("wrong")
		fail := true
		s.OnDone(job.ResourceSandbox, func(ctx context.Context, j job.Job) error {
			if fail {
				return wrong
			}
			// In the same transaction: the queue can be used.
			_, err := s.Enqueue(ctx, job.New{Type: job.StartSandbox, RunnerID: "r", ResourceType: job.ResourceSandbox, ResourceID: j.ResourceID})
			reason, recoverable := j.Failure()
			ended = append(ended, fmt.Sprint(j.Status, reason, recoverable))
			return err
		})
		enqueue(t, s, job.New{Type: job.StopSandbox, RunnerID: "r", ResourceID: "sb"})
		j := take(t, s, "r")
		if _, err := s.Update(ctx, "r", j.ID, job.Update{Status: job.Failed}); !errors.Is(err, wrong) {
			t.Fatal(err)
		}
		if got, _ := s.Find(ctx, j.ID); got.Status != job.InProgress {
			t.Fatal("ended without its hook:", got.Status)
		}
		fail = false
		if _, err := s.Update(ctx, "r", j.ID, job.Update{Status: job.Failed, Error: `{"recoverable":true,"errorReason":"full"}`}); err != nil {
			t.Fatal(err)
		}
		if next := take(t, s, "r"); next.Type != job.StartSandbox {
			t.Error(next)
		}
		if want := []string{"FAILED" + "full" + "true"}; !slices.Equal(ended, want) {
			t.Errorf("%q", ended)
		}
	})
}

// Twenty pollers get each of a hundred jobs exactly once, the oldest first.
func TestClaimedOnce(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		s := job.NewService(db, nil)
		const jobs = 100
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		var mu sync.Mutex
		got := map[string]int{}
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				for ctx.Err() == nil {
					list, err := s.Poll(ctx, "r", 1+i%3, 5*time.Second)
					if err != nil && ctx.Err() == nil {
						t.Error(err)
						return
					}
					if !slices.IsSortedFunc(list, func(a, b job.Job) int { return a.CreatedAt.Compare(b.CreatedAt) }) {
						t.Error("not the oldest first")
					}
					mu.Lock()
					for _, j := range list {
						got[j.ID]++
					}
					if len(got) == jobs {
						cancel()
					}
					mu.Unlock()
				}
			})
		}
		for i := range jobs {
			enqueue(t, s, job.New{Type: job.StartSandbox, RunnerID: "r", ResourceID: fmt.Sprint(i)})
		}
		wg.Wait()
		if len(got) != jobs {
			t.Errorf("%d of %d", len(got), jobs)
		}
		for id, n := range got {
			if n != 1 {
				t.Errorf("%s was given %d times", id, n)
			}
		}
	})
}

// A poll that waits is woken by the job, not by time; it ends with its caller.
func TestPollWakes(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		s := job.NewService(db, nil)
		began := time.Now()
		got := make(chan []job.Job, 1)
		go func() {
			jobs, err := s.Poll(t.Context(), "r", 10, time.Minute)
			if err != nil {
				t.Error(err)
			}
			got <- jobs
		}()
		enqueue(t, s, job.New{Type: job.StartSandbox, RunnerID: "r", ResourceID: "sb"})
		if jobs := <-got; len(jobs) != 1 || time.Since(began) > 5*time.Second {
			t.Error(len(jobs), time.Since(began))
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(10*time.Millisecond, cancel)
		if jobs, err := s.Poll(ctx, "r", 10, time.Minute); err == nil || len(jobs) != 0 {
			t.Error(jobs, err)
		}
		if jobs, err := s.Poll(t.Context(), "r", 10, time.Millisecond); err != nil || jobs != nil {
			t.Error(jobs, err)
		}
	})
}

// What a runner is silent about fails, each type after its time, and can't be
// completed then.
func TestStale(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		ctx := t.Context()
		var mu sync.Mutex
		now := time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
		s := job.NewService(db, &job.Options{Now: func() time.Time { mu.Lock(); defer mu.Unlock(); return now }})
		var hooked []string
		s.OnDone(job.ResourceSandbox, func(_ context.Context, j job.Job) error {
			hooked = append(hooked, j.Type)
			return nil
		})
		ids := map[string]string{}
		for _, jobType := range []string{job.StopSandbox, job.CreateSandbox, job.CreateBackup} {
			ids[jobType] = enqueue(t, s, job.New{Type: jobType, RunnerID: "r", ResourceID: jobType}).ID
			take(t, s, "r")
		}
		pending := enqueue(t, s, job.New{Type: job.StopSandbox, RunnerID: "r", ResourceID: "pending"})
		failed := func() (list []string) {
			if err := s.Sweep(ctx); err != nil {
				t.Fatal(err)
			}
			for jobType, id := range ids {
				if j, _ := s.Find(ctx, id); j.Status == job.Failed {
					list = append(list, jobType+": "+j.Error)
				}
			}
			slices.Sort(list)
			return list
		}
		advance := func(d time.Duration) { mu.Lock(); now = now.Add(d); mu.Unlock() }
		advance(10*time.Minute - time.Second)
		if got := failed(); got != nil {
			t.Error("too early:", got)
		}
		advance(time.Second + time.Millisecond)
		if got := strings.Join(failed(), ", "); got != "STOP_SANDBOX: Job timed out - no update received for 10 minutes" {
			t.Error(got)
		}
		advance(20 * time.Minute)
		if got := failed(); len(got) != 2 || got[0] != "CREATE_SANDBOX: Job timed out - no update received for 30 minutes" {
			t.Error(got)
		}
		advance(90 * time.Minute)
		if got := failed(); len(got) != 3 || got[0] != "CREATE_BACKUP: Job timed out - no update received for 120 minutes" {
			t.Error(got)
		}
		if _, err := s.Update(ctx, "r", ids[job.StopSandbox], job.Update{Status: job.Completed}); !errors.Is(err, daytona.ErrConflict) {
			t.Error("a job that has timed out was completed:", err)
		}
		if j, _ := s.Find(ctx, pending.ID); j.Status != job.Pending {
			t.Error("a job that no runner has taken is", j.Status)
		}
		if want := []string{job.StopSandbox, job.CreateSandbox, job.CreateBackup}; !slices.Equal(hooked, want) {
			t.Error(hooked)
		}
		if err := s.Abandon(ctx, "r", "the runner is gone"); err != nil {
			t.Fatal(err)
		}
		if j, _ := s.Find(ctx, pending.ID); j.Status != job.Failed {
			t.Error(j.Status)
		}
		advance(8 * 24 * time.Hour)
		if err := s.Sweep(ctx); err != nil {
			t.Fatal(err)
		}
		if _, n, err := s.List(ctx, "r", job.Filter{Limit: 1}); n != 0 || err != nil {
			t.Error(n, err)
		}
	})
}

// A server that was away for long does not take jobs to be late whose runners
// could not say that they are done.
func TestServerWasAway(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		now := time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
		clock := &job.Options{Now: func() time.Time { return now }}
		s := job.NewService(db, clock)
		id := enqueue(t, s, job.New{Type: job.StartSandbox, RunnerID: "r", ResourceID: "s"}).ID
		take(t, s, "r")
		now = now.Add(time.Hour)
		s = job.NewService(db, clock)
		for _, c := range []struct {
			after time.Duration
			want  job.Status
		}{{0, job.InProgress}, {9 * time.Minute, job.InProgress}, {time.Minute, job.Failed}} {
			now = now.Add(c.after)
			if err := s.Sweep(t.Context()); err != nil {
				t.Fatal(err)
			}
			if j, err := s.Find(t.Context(), id); err != nil || j.Status != c.want {
				t.Errorf("after %s: %s, want %s; %v", c.after, j.Status, c.want, err)
			}
		}
	})
}
