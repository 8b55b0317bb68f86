package executor_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/daytonatest"
	"github.com/daytona-go/daytona/internal/wire"
	"github.com/daytona-go/daytona/server/api"
	"github.com/daytona-go/daytona/server/executor"
	"github.com/daytona-go/daytona/server/identity"
	"github.com/daytona-go/daytona/server/job"
	"github.com/daytona-go/daytona/server/runner"
	"github.com/daytona-go/daytona/server/store"
	"github.com/daytona-go/daytona/server/store/storetest"
	"github.com/daytona-go/daytona/toolbox/client"
)

// server is the real queue and the real runners behind the real API; only the
// sandboxes' rows are a map.
type server struct {
	t       testing.TB
	db      *store.DB
	jobs    *job.Service
	runners *runner.Service
	runner  runner.Runner
	key     string
	handler http.Handler

	mu     sync.Mutex
	rows   map[string]wire.Sandbox
	states map[string]wire.UpdateSandboxState // what the runner reported
	told   chan string
}

func newServer(t testing.TB, in ...*store.DB) *server {
	t.Helper()
	if in == nil {
		in = append(in, storetest.Open(t, "sqlite::memory:"))
	}
	db := in[0]
	s := &server{
		t: t, db: db, jobs: job.NewService(db, nil), runners: runner.NewService(db, &runner.Options{Log: quiet()}),
		rows: map[string]wire.Sandbox{}, states: map[string]wire.UpdateSandboxState{}, told: make(chan string, 100),
	}
	var err error
	if s.runner, s.key, err = s.runners.AdminCreate(t.Context(), runner.New{RegionID: "eu", Name: "one"}); err != nil {
		t.Fatal(err)
	}
	a := api.New(api.Config{Authenticator: s, Log: quiet()})
	api.RegisterJobs(a, s.jobs)
	api.RegisterRunners(a, s.runners, s)
	api.Handle(a, "getSandboxesForRunner", func(context.Context, *struct{}) ([]wire.Sandbox, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		return append([]wire.Sandbox{}, slices.Collect(maps.Values(s.rows))...), nil
	})
	api.Handle(a, "updateSandboxState", func(_ context.Context, in *struct {
		ID   string `path:"sandboxId"`
		Body wire.UpdateSandboxState
	}) (api.None, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.states[in.ID] = in.Body
		row := s.rows[in.ID]
		row.State, row.DesiredState = &in.Body.State, &in.Body.State
		s.rows[in.ID] = row
		s.told <- in.ID
		return api.None{}, nil
	})
	s.handler = a
	return s
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func (s *server) Authenticate(ctx context.Context, bearer string) (*identity.Principal, error) {
	id, region, err := s.runners.Authenticate(ctx, bearer)
	return &identity.Principal{Kind: identity.Runner, RunnerID: id, RegionID: region}, err
}
func (s *server) Join(context.Context, *identity.Principal, string) (*identity.Principal, error) {
	return nil, daytona.ErrForbidden
}
func (s *server) SandboxRunner(context.Context, string) (string, error)     { return s.runner.ID, nil }
func (s *server) SnapshotRunners(context.Context, string) ([]string, error) { return nil, nil }
func (s *server) RunnerSnapshots(context.Context, string) ([]string, error) { return nil, nil }

func (s *server) config(client *daytona.Client) executor.Config {
	return executor.Config{
		Client: client, URL: "http://server/api", Key: s.key, Transport: executor.InProcess(s.handler), Dir: s.t.TempDir(), Log: quiet(),
		Images: map[string]string{"base:1": daytona.ImageHost}, Version: "9.9",
	}
}

// row says that the server knows a sandbox, and in what state.
func (s *server) row(id, state, desired string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rows[id] = wire.Sandbox{ID: id, State: &state, DesiredState: &desired}
}

// do has a job done and returns it.
func (s *server) do(n job.New) job.Job {
	s.t.Helper()
	n.RunnerID = s.runner.ID
	if n.ResourceType == "" {
		n.ResourceType = job.ResourceSandbox
	}
	j, err := s.jobs.Enqueue(s.t.Context(), n)
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(s.t.Context(), 30*time.Second)
	defer cancel()
	if j, err = s.jobs.Wait(ctx, j.ID); err != nil {
		s.t.Fatalf("%s: %v (it is %s)", n.Type, err, j.Status)
	}
	return j
}

// must is do for a job that is completed.
func (s *server) must(n job.New) job.Job {
	s.t.Helper()
	j := s.do(n)
	if j.Status != job.Completed {
		s.t.Fatalf("%s: %s: %s", j.Type, j.Status, j.Error)
	}
	return j
}

// run runs an executor until the test ends, or stop is called.
func run(t testing.TB, c executor.Config) (e *executor.Executor, stop func()) {
	t.Helper()
	e, err := executor.New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return e, stop
}

// dialer goes straight to an executor.
func dialer(e *executor.Executor) *executor.Dialer {
	return &executor.Dialer{
		Locate: func(context.Context, string) (executor.Place, error) { return executor.Place{RunnerID: "x"}, nil },
		Local:  func(string) *executor.Executor { return e },
	}
}

func states(t *testing.T, client *daytona.Client) map[string]daytona.State {
	t.Helper()
	all := map[string]daytona.State{}
	for sb, err := range client.List(t.Context(), nil) {
		if err != nil {
			t.Fatal(err)
		}
		if _, twice := all[sb.Name()]; twice {
			t.Errorf("%s is there twice", sb.Name())
		}
		all[sb.Name()] = sb.Info().State
	}
	return all
}

func payload(id, ref string) wire.JobSandbox {
	return wire.JobSandbox{ID: id, Name: id, Snapshot: ref, OSUser: "daytona", UserID: "org"}
}

// The life of a sandbox on the embedded engine: a program runs in it as soon as
// the server is told that it has started.
func TestLifeOnLocal(t *testing.T) {
	local := daytonatest.Client(t)
	s := newServer(t)
	e, _ := run(t, s.config(local))
	if j := s.must(job.New{Type: job.PullSnapshot, ResourceType: job.ResourceSnapshot, ResourceID: "daytona-x:daytona", Payload: wire.JobSnapshot{Snapshot: "base:1"}}); !strings.Contains(j.Result, `"name":"daytona-x:daytona"`) {
		t.Error(j.Result)
	}
	const id = "0a4a4c8c-0000-4000-8000-000000000001"
	if j := s.must(job.New{Type: job.CreateSandbox, ResourceID: id, Payload: payload(id, "daytona-x:daytona")}); j.Result != `{"daemonVersion":"9.9"}` {
		t.Error(j.Result)
	}
	d := dialer(e)
	agent := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return d.Dial(ctx, id) }, DisableKeepAlives: true}}
	check := func(want string) {
		t.Helper()
		r, err := agent.Post("http://sandbox/process/execute", "application/json", strings.NewReader(`{"command":"sh -c 'echo more >>~/f; cat ~/f | wc -l'"}`))
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		var out struct{ Result string }
		if err := json.NewDecoder(r.Body).Decode(&out); err != nil || strings.TrimSpace(out.Result) != want {
			t.Errorf("%q instead of %q (%v)", out.Result, want, err)
		}
	}
	check("1")
	s.must(job.New{Type: job.StopSandbox, ResourceID: id, Payload: wire.JobStop{Force: true}})
	if _, err := d.Dial(t.Context(), id); !errors.Is(err, daytona.ErrState) {
		t.Error("dialing what is stopped:", err)
	}
	s.must(job.New{Type: job.StartSandbox, ResourceID: id})
	check("2")
	s.must(job.New{Type: job.PauseSandbox, ResourceID: id})
	s.must(job.New{Type: job.StartSandbox, ResourceID: id})
	check("3")
	s.must(job.New{Type: job.ForkSandbox, ResourceID: id + "f", Payload: wire.JobFork{SourceSandboxID: id, NewSandboxID: id + "f"}})
	for _, own := range []string{id, id + "f"} {
		tb := client.New(func(ctx context.Context) (net.Conn, error) { return d.Dial(ctx, own) }, nil)
		if out, err := tb.Process().Command(t.Context(), "printenv", "DAYTONA_SANDBOX_ID", "DAYTONA_ORGANIZATION_ID").Output(); err != nil || string(out) != own+"\norg\n" {
			t.Errorf("%s is told %q (%v)", own, out, err)
		}
		tb.Close()
	}
	s.must(job.New{Type: job.CreateBackup, ResourceID: id, Payload: wire.JobBackup{Snapshot: "daytona/backup-1:1"}})
	s.must(job.New{Type: job.UpdateNetwork, ResourceID: id, Payload: `{"networkBlockAll":false,"networkAllowList":"192.0.2.1, 198.51.100.0/24","domainAllowList":null}`})
	if sb, err := local.Get(t.Context(), id); err != nil || fmt.Sprint(sb.Info().Network.Allow) != "[192.0.2.1/32 198.51.100.0/24]" {
		t.Error(sb.Info().Network, err)
	}
	s.must(job.New{Type: job.UpdateNetwork, ResourceID: id, Payload: `{"networkBlockAll":true}`})
	s.must(job.New{Type: job.UpdateNetwork, ResourceID: id, Payload: `{"networkBlockAll":false,"networkAllowList":null,"domainAllowList":null}`})
	if sb, err := local.Get(t.Context(), id); err != nil || sb.Info().Network.Block || sb.Info().Network.Allow != nil {
		t.Error(sb.Info().Network, err)
	}
	s.must(job.New{Type: job.DestroySandbox, ResourceID: id})
	s.must(job.New{Type: job.DestroySandbox, ResourceID: id}) // twice is once
	s.must(job.New{Type: job.DestroySandbox, ResourceID: id + "f"})
	// From the backup, which has the three lines.
	restored := payload(id, "daytona/backup-1:1")
	restored.BackupRef = restored.Snapshot
	s.must(job.New{Type: job.CreateSandbox, ResourceID: id, Payload: restored})
	check("4")
	s.must(job.New{Type: job.DestroySandbox, ResourceID: id})
	for _, ref := range []string{"daytona/backup-1:1", "daytona-x:daytona", "never-was"} {
		s.must(job.New{Type: job.RemoveSnapshot, ResourceType: job.ResourceSnapshot, ResourceID: ref})
	}
	if all := states(t, local); len(all) != 0 {
		t.Error("left:", all)
	}
}
