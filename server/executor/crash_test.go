package executor_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/daytonatest"
	"github.com/daytona-go/daytona/internal/wire"
	"github.com/daytona-go/daytona/server/executor"
	"github.com/daytona-go/daytona/server/job"
)

// mortal counts the steps of a process and ends it at one of them: from then on
// nothing that it does has an effect, and it learns of nothing.
type mortal struct {
	mu   sync.Mutex
	left int
	dead chan struct{}
}

var errDead = errors.New("the process is dead")

func (m *mortal) step() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.left == 0 {
		return errDead
	}
	if m.left--; m.left == 0 {
		close(m.dead)
		return errDead
	}
	return nil
}

// around is f with a step before and one after it.
func around[T any](m *mortal, f func() (T, error)) (T, error) {
	var none T
	if err := m.step(); err != nil {
		return none, err
	}
	v, err := f()
	if dead := m.step(); dead != nil {
		return none, dead
	}
	return v, err
}

// mortalBackend is a backend in a process that dies.
type mortalBackend struct {
	*daytonatest.Fake
	m *mortal
}

func (b mortalBackend) Create(ctx context.Context, s daytona.Spec) (daytona.Info, error) {
	return around(b.m, func() (daytona.Info, error) { return b.Fake.Create(ctx, s) })
}
func (b mortalBackend) Start(ctx context.Context, id string) (daytona.Info, error) {
	return around(b.m, func() (daytona.Info, error) { return b.Fake.Start(ctx, id) })
}
func (b mortalBackend) Stop(ctx context.Context, id string, o daytona.StopOptions) (daytona.Info, error) {
	return around(b.m, func() (daytona.Info, error) { return b.Fake.Stop(ctx, id, o) })
}
func (b mortalBackend) Delete(ctx context.Context, id string) error {
	_, err := around(b.m, func() (struct{}, error) { return struct{}{}, b.Fake.Delete(ctx, id) })
	return err
}
func (b mortalBackend) Get(ctx context.Context, id string) (daytona.Info, error) {
	return around(b.m, func() (daytona.Info, error) { return b.Fake.Get(ctx, id) })
}
func (b mortalBackend) Fork(ctx context.Context, id string, o daytona.ForkOptions) ([]daytona.Info, error) {
	return around(b.m, func() ([]daytona.Info, error) { return b.Fake.Fork(ctx, id, o) })
}
func (b mortalBackend) CreateSnapshot(ctx context.Context, s daytona.SnapshotSpec) (daytona.Snapshot, error) {
	return around(b.m, func() (daytona.Snapshot, error) { return b.Fake.CreateSnapshot(ctx, s) })
}
func (b mortalBackend) GetSnapshot(ctx context.Context, id string) (daytona.Snapshot, error) {
	return around(b.m, func() (daytona.Snapshot, error) { return b.Fake.GetSnapshot(ctx, id) })
}
func (b mortalBackend) List(ctx context.Context, f daytona.Filter) iter.Seq2[daytona.Info, error] {
	return b.Fake.List(ctx, f)
}

// mortalTransport is the same for requests about jobs.
type mortalTransport struct {
	http.RoundTripper
	m *mortal
}

func (t mortalTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	if !strings.Contains(r.URL.Path, "/jobs") {
		return t.RoundTripper.RoundTrip(r)
	}
	return around(t.m, func() (*http.Response, error) { return t.RoundTripper.RoundTrip(r) })
}

// A runner that dies at any step of any job leaves nothing that the next one
// does not finish: every job ends well, and everything is there once.
func TestDiesAnywhere(t *testing.T) {
	s := newServer(t)
	fake := daytonatest.NewFake()
	other := daytona.New(fake.Reopen())
	if _, err := other.Create(t.Context(), daytona.Spec{Name: "not-ours", Persistent: true}); err != nil {
		t.Fatal(err)
	}
	for n, survived := 1, false; !survived; n++ {
		m := &mortal{left: n, dead: make(chan struct{})}
		mortalConfig := s.config(daytona.New(mortalBackend{fake.Reopen(), m}))
		mortalConfig.Transport, mortalConfig.Grace = mortalTransport{mortalConfig.Transport, m}, -1
		_, kill := run(t, mortalConfig)
		var after func()
		next := make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			defer close(next)
			select {
			case <-m.dead:
				kill()
				c := s.config(daytona.New(fake.Reopen()))
				c.Grace = -1
				_, after = run(t, c)
			case <-ctx.Done():
			}
		}()
		a, b := fmt.Sprintf("sandbox-%d-a", n), fmt.Sprintf("sandbox-%d-b", n)
		ref, kept := fmt.Sprintf("daytona-%d:daytona", n), fmt.Sprintf("daytona/kept-%d:1", n)
		want := func(all map[string]daytona.State) {
			t.Helper()
			all["not-ours"] = daytona.StateStarted
			if got := states(t, other); !maps.Equal(got, all) {
				t.Fatalf("death at step %d: %v instead of %v", n, got, all)
			}
		}
		s.must(job.New{Type: job.PullSnapshot, ResourceType: job.ResourceSnapshot, ResourceID: ref, Payload: wire.JobSnapshot{Snapshot: "base:1"}})
		s.must(job.New{Type: job.CreateSandbox, ResourceID: a, Payload: payload(a, ref)})
		want(map[string]daytona.State{a: daytona.StateStarted})
		s.must(job.New{Type: job.StopSandbox, ResourceID: a})
		want(map[string]daytona.State{a: daytona.StateStopped})
		s.must(job.New{Type: job.CreateBackup, ResourceID: a, Payload: wire.JobBackup{Snapshot: kept}})
		s.must(job.New{Type: job.StartSandbox, ResourceID: a})
		s.must(job.New{Type: job.ForkSandbox, ResourceID: b, Payload: wire.JobFork{SourceSandboxID: a, NewSandboxID: b}})
		want(map[string]daytona.State{a: daytona.StateStarted, b: daytona.StateStarted})
		s.must(job.New{Type: job.DestroySandbox, ResourceID: a})
		s.must(job.New{Type: job.DestroySandbox, ResourceID: b})
		s.must(job.New{Type: job.RemoveSnapshot, ResourceType: job.ResourceSnapshot, ResourceID: ref})
		s.must(job.New{Type: job.RemoveSnapshot, ResourceType: job.ResourceSnapshot, ResourceID: kept})
		want(map[string]daytona.State{})
		cancel()
		<-next
		survived = after == nil
		kill()
		if after != nil {
			after()
		}
		if n > 500 {
			t.Fatal("it never survives")
		}
		if survived {
			t.Logf("%d steps", n)
		}
	}
	snapshots, _ := other.Snapshots()
	for sn := range snapshots.ListSnapshots(t.Context()) {
		t.Error("left:", sn.Name)
	}
}

// A sandbox that has the name and is somebody else's is left alone.
func TestNotOurs(t *testing.T) {
	s := newServer(t)
	client := daytona.New(daytonatest.NewFake())
	if _, err := client.Create(t.Context(), daytona.Spec{Name: "theirs", Persistent: true}); err != nil {
		t.Fatal(err)
	}
	run(t, s.config(client))
	for _, n := range []job.New{
		{Type: job.CreateSandbox, ResourceID: "theirs", Payload: payload("theirs", "")},
		{Type: job.DestroySandbox, ResourceID: "theirs"},
	} {
		if j := s.do(n); j.Status != job.Failed {
			t.Errorf("%s: %s", j.Type, j.Status)
		}
	}
	if all := states(t, client); all["theirs"] != daytona.StateStarted {
		t.Error(all)
	}
}

// What is there under the name but is not what is wanted is made anew; what is,
// is started.
func TestAdopts(t *testing.T) {
	s := newServer(t)
	client := daytona.New(daytonatest.NewFake())
	run(t, s.config(client))
	for _, ref := range []string{"one:1", "two:1"} {
		s.must(job.New{Type: job.PullSnapshot, ResourceType: job.ResourceSnapshot, ResourceID: ref, Payload: wire.JobSnapshot{Snapshot: "base:1"}})
	}
	id := func() string {
		sb, err := client.Get(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		return sb.ID()
	}
	s.must(job.New{Type: job.CreateSandbox, ResourceID: "a", Payload: payload("a", "one:1")})
	first := id()
	s.must(job.New{Type: job.StopSandbox, ResourceID: "a"})
	s.must(job.New{Type: job.CreateSandbox, ResourceID: "a", Payload: payload("a", "one:1")})
	if id() != first || states(t, client)["a"] != daytona.StateStarted {
		t.Error("made anew, or not started:", states(t, client))
	}
	s.must(job.New{Type: job.CreateSandbox, ResourceID: "a", Payload: payload("a", "two:1")})
	if id() == first || len(states(t, client)) != 1 {
		t.Error("not made anew:", states(t, client))
	}
}

// The server is told of sandboxes that are not what it thinks; those that it
// does not know go, after a while, and nobody else's.
func TestReport(t *testing.T) {
	s := newServer(t)
	fake := daytonatest.NewFake()
	client := daytona.New(fake)
	c := s.config(client)
	c.Report, c.Reap = 20*time.Millisecond, 100*time.Millisecond
	for _, id := range []string{"same", "stopped", "moving", "orphan"} {
		s.row(id, "creating", "started")
	}
	s.row("gone", "stopped", "stopped")
	_, stop := run(t, c)
	for _, id := range []string{"same", "stopped", "moving", "orphan"} {
		s.must(job.New{Type: job.CreateSandbox, ResourceID: id, Payload: payload(id, "")})
		if id != "moving" {
			s.row(id, "started", "started")
		}
	}
	if _, err := client.Create(t.Context(), daytona.Spec{Name: "theirs", Persistent: true}); err != nil {
		t.Fatal(err)
	}
	s.row("moving", "started", "stopped") // by somebody who knows
	for _, id := range []string{"stopped", "moving"} {
		sb, err := client.Get(t.Context(), id)
		if err == nil {
			err = sb.Stop(t.Context(), nil)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	s.mu.Lock()
	delete(s.rows, "orphan")
	s.mu.Unlock()
	deadline := time.After(20 * time.Second)
	for told := map[string]bool{}; !told["stopped"] || !told["gone"]; {
		select {
		case id := <-s.told:
			told[id] = true
		case <-deadline:
			t.Fatal("told of", told)
		}
	}
	b, ok := daytona.As[daytona.Watcher](fake)
	if !ok {
		t.Fatal("the fake can't wait")
	}
	orphan, err := client.Get(t.Context(), "orphan")
	if err == nil {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if _, err := b.Wait(ctx, orphan.ID(), daytona.StateDestroyed); !errors.Is(err, daytona.ErrNotFound) {
			t.Error("the orphan is still there:", err)
		}
	}
	stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	if u := s.states["stopped"]; u.State != "stopped" {
		t.Errorf("%+v", u)
	}
	if u := s.states["gone"]; u.State != "error" || u.ErrorReason == nil {
		t.Errorf("%+v", u)
	}
	if len(s.states) != 2 {
		t.Errorf("told of %v", slices.Collect(maps.Keys(s.states)))
	}
	if all := states(t, client); len(all) != 4 || all["theirs"] == "" {
		t.Error(all)
	}
}

// A runner that ends lets its jobs end first, and begins no more.
func TestDrains(t *testing.T) {
	s := newServer(t)
	slow := &slowBackend{Fake: daytonatest.NewFake(), begun: make(chan struct{}), go_: make(chan struct{})}
	_, stop := run(t, s.config(daytona.New(slow)))
	enqueue := func(id string) job.Job {
		j, err := s.jobs.Enqueue(t.Context(), job.New{Type: job.CreateSandbox, RunnerID: s.runner.ID, ResourceType: job.ResourceSandbox, ResourceID: id, Payload: payload(id, "")})
		if err != nil {
			t.Fatal(err)
		}
		return j
	}
	first := enqueue("a")
	<-slow.begun
	ended := make(chan struct{})
	go func() { defer close(ended); stop() }()
	close(slow.go_)
	<-ended
	if j, err := s.jobs.Find(t.Context(), first.ID); err != nil || j.Status != job.Completed {
		t.Error(j.Status, err)
	}
	second := enqueue("b")
	if j, err := s.jobs.Find(t.Context(), second.ID); err != nil || j.Status != job.Pending {
		t.Error(j.Status, err)
	}
}

type slowBackend struct {
	*daytonatest.Fake
	begun, go_ chan struct{}
}

func (b *slowBackend) Create(ctx context.Context, s daytona.Spec) (daytona.Info, error) {
	close(b.begun)
	<-b.go_
	return b.Fake.Create(ctx, s)
}

// A key that the server does not know is no reason to go on.
func TestUnknownKey(t *testing.T) {
	s := newServer(t)
	c := s.config(daytona.New(daytonatest.NewFake()))
	c.Key = "another key altogether"
	e, err := executor.New(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Run(t.Context()); !errors.Is(err, daytona.ErrUnauthorized) || strings.Contains(err.Error(), c.Key) {
		t.Error(err)
	}
}
