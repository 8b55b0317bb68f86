package snapshot_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/wire"
	"github.com/daytona-go/daytona/server/api"
	"github.com/daytona-go/daytona/server/identity"
	"github.com/daytona-go/daytona/server/snapshot"
	"github.com/daytona-go/daytona/server/store"
)

// env is a service with everything around it that it needs.
type env struct {
	*snapshot.Service
	t      *testing.T
	db     *store.DB
	server *httptest.Server

	mu      sync.Mutex
	offset  time.Duration
	jobs    []*job
	usable  map[string]string // region by runner
	limits  snapshot.Limits
	suspend map[string]bool
	needed  map[string]bool
	events  []string
	logs    map[string]string
	changed int
}

// job is one that was given to a runner.
type job struct {
	snapshot.Job
	id      string
	payload map[string]any
	ended   bool
}

func start(t *testing.T, db *store.DB) *env {
	e := &env{t: t, db: db, usable: map[string]string{"r1": "us", "r2": "us", "r3": "eu"}, suspend: map[string]bool{}, needed: map[string]bool{}, logs: map[string]string{}}
	e.Service = snapshot.New(snapshot.Config{
		DB: db, Jobs: e, Runners: e, Organizations: orgs{e}, ProxyURL: "https://proxy.example.com/", Now: e.now, Log: slog.New(slog.DiscardHandler),
		Credentials: func(_ context.Context, org, image string) (*snapshot.Registry, error) {
			if strings.HasPrefix(image, "private.example.com/") {
				return &snapshot.Registry{URL: "private.example.com", Username: org, Password: "secret"}, nil
			}
			if strings.HasPrefix(image, "forbidden.example.com/") {
				return nil, &daytona.Error{Kind: daytona.KindForbidden, Message: "not yours"}
			}
			return nil, nil
		},
		Contexts: func(_ context.Context, org string, hashes []string) (urls []string, err error) {
			for _, h := range hashes {
				urls = append(urls, "https://objects/"+org+"/"+h)
			}
			return urls, nil
		},
		CheckHost: func(_ context.Context, host string) error {
			if strings.HasPrefix(host, "169.254.") || strings.HasPrefix(host, "localhost") {
				return &daytona.Error{Kind: daytona.KindInvalid, Message: "imageName must be reachable from the internet"}
			}
			return nil
		},
		Needed: func(_ context.Context, ref string) (bool, error) { return e.needed[ref], nil },
		Event: func(_ context.Context, ev snapshot.Event) error {
			e.mu.Lock()
			defer e.mu.Unlock()
			e.events = append(e.events, fmt.Sprintf("%s %s %s", ev.Name, ev.Snapshot.Name, ev.Snapshot.State))
			return nil
		},
		Changed: func(context.Context, string) error {
			e.mu.Lock()
			defer e.mu.Unlock()
			e.changed++
			return nil
		},
	})
	a := api.New(api.Config{Authenticator: e, Log: slog.New(slog.DiscardHandler)})
	api.RegisterSnapshots(a, e.Service)
	e.server = httptest.NewServer(a)
	t.Cleanup(e.server.Close)
	return e
}

func (e *env) now() time.Time {
	e.mu.Lock()
	defer e.mu.Unlock()
	return time.Now().Add(e.offset)
}

func (e *env) wait(d time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.offset += d
}

// Authenticate: a bearer is "<organization>" with all permissions, or
// "<organization>/<permission>", or "admin".
func (e *env) Authenticate(_ context.Context, bearer string) (*identity.Principal, error) {
	org, permission, limited := strings.Cut(bearer, "/")
	p := &identity.Principal{Kind: identity.Key, UserID: "u-" + org, OrganizationID: org, Permissions: identity.Permissions(), Admin: org == "admin"}
	if limited {
		p.Permissions = []identity.Permission{identity.Permission(permission)}
	}
	return p, nil
}

func (e *env) Join(_ context.Context, p *identity.Principal, _ string) (*identity.Principal, error) {
	return p, nil
}

// Enqueue implements [snapshot.Jobs].
func (e *env) Enqueue(_ context.Context, j snapshot.Job) (string, error) {
	data, err := json.Marshal(j.Payload)
	if err != nil {
		return "", err
	}
	x := &job{Job: j}
	if err := json.Unmarshal(data, &x.payload); err != nil {
		return "", err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, o := range e.jobs {
		if !o.ended && o.RunnerID == j.RunnerID && o.Ref == j.Ref {
			return "", &daytona.Error{Kind: daytona.KindConflict, Message: "An operation is already in progress for this resource"}
		}
	}
	x.id = fmt.Sprintf("job-%d", len(e.jobs))
	e.jobs = append(e.jobs, x)
	return x.id, nil
}

// end ends a job, as a runner does.
func (e *env) end(x *job, failure, metadata string) {
	e.t.Helper()
	e.mu.Lock()
	x.ended = true
	e.mu.Unlock()
	err := e.db.Tx(context.Background(), func(ctx context.Context) error {
		return e.Done(ctx, snapshot.Result{JobID: x.id, Type: x.Type, RunnerID: x.RunnerID, Ref: x.Ref, Error: failure, Metadata: metadata})
	})
	if err != nil {
		e.t.Fatal(err)
	}
}

// open returns the jobs that have not ended.
func (e *env) open() (list []*job) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, x := range e.jobs {
		if !x.ended {
			list = append(list, x)
		}
	}
	return list
}

// only returns the one job that there is.
func (e *env) only(typ string) *job {
	e.t.Helper()
	list := e.open()
	if len(list) != 1 || list[0].Type != typ {
		for _, x := range list {
			e.t.Logf("%s %s on %s", x.Type, x.Ref, x.RunnerID)
		}
		e.t.Fatalf("%d jobs, want one of %s", len(list), typ)
	}
	return list[0]
}

// Pick implements [snapshot.Runners].
func (e *env) Pick(_ context.Context, region, class string) (string, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	var ids []string
	for id, r := range e.usable {
		if (region == "" || r == region) && class == "container" {
			ids = append(ids, id)
		}
	}
	if len(ids) == 0 {
		return "", &daytona.Error{Kind: daytona.KindInvalid, Message: "No available runners"}
	}
	return slices.Min(ids), nil
}

func (e *env) Usable(_ context.Context, ids []string) (list []string, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, id := range ids {
		if e.usable[id] != "" {
			list = append(list, id)
		}
	}
	return list, nil
}

func (e *env) Logs(ctx context.Context, runnerID, ref string, follow bool) (io.ReadCloser, error) {
	return io.NopCloser(strings.NewReader(fmt.Sprintf("log of %s on %s, follow %v\n", ref, runnerID, follow))), nil
}

// orgs implements [snapshot.Organizations].
type orgs struct{ e *env }

func (o orgs) SnapshotLimits(context.Context, string) (snapshot.Limits, error) {
	return o.e.limits, nil
}
func (o orgs) DefaultRegion(_ context.Context, org string) (string, error) {
	if org == "homeless" {
		return "", &daytona.Error{Kind: daytona.KindInvalid, Message: "This organization does not have a default region."}
	}
	return "us", nil
}
func (o orgs) Regions(context.Context, string) ([]string, error) { return []string{"eu", "us"}, nil }
func (o orgs) Active(_ context.Context, org string) error {
	if o.e.suspend[org] {
		return &daytona.Error{Kind: daytona.KindForbidden, Message: "Organization is suspended: unpaid"}
	}
	return nil
}

// call makes a request and decodes the answer into out, if it is not nil.
func (e *env) call(bearer, method, path string, body, out any) (int, string) {
	e.t.Helper()
	var r io.Reader
	if body != nil {
		data, ok := body.(string)
		if !ok {
			b, err := json.Marshal(body)
			if err != nil {
				e.t.Fatal(err)
			}
			data = string(b)
		}
		r = strings.NewReader(data)
	}
	req, err := http.NewRequestWithContext(e.t.Context(), method, e.server.URL+"/api"+path, r)
	if err != nil {
		e.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+bearer)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		e.t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		e.t.Fatal(err)
	}
	if resp.StatusCode >= 300 {
		var w wire.Error
		json.Unmarshal(data, &w)
		return resp.StatusCode, w.Message
	}
	if out != nil {
		if err := json.NewDecoder(bytes.NewReader(data)).Decode(out); err != nil {
			e.t.Fatalf("%s %s: %q: %v", method, path, data, err)
		}
	}
	return resp.StatusCode, string(data)
}

type create map[string]any

// create makes a snapshot of an image.
func (e *env) create(org string, c create) wire.Snapshot {
	e.t.Helper()
	var s wire.Snapshot
	if status, msg := e.call(org, "POST", "/snapshots", c, &s); status != 200 {
		e.t.Fatalf("%d %s", status, msg)
	}
	return s
}

func (e *env) get(org, idOrName string) wire.Snapshot {
	e.t.Helper()
	var s wire.Snapshot
	if status, msg := e.call(org, "GET", "/snapshots/"+idOrName, nil, &s); status != 200 {
		e.t.Fatalf("%d %s", status, msg)
	}
	return s
}

func (e *env) reconcile() {
	e.t.Helper()
	if err := e.Reconcile(e.t.Context()); err != nil {
		e.t.Fatal(err)
	}
}

// active makes a snapshot of an image that is active.
func (e *env) active(org, name string) wire.Snapshot {
	e.t.Helper()
	s := e.create(org, create{"name": name, "imageName": "example.com/img:1"})
	e.reconcile()
	for _, x := range e.open() {
		if x.Ref == *s.Ref {
			e.end(x, "", done)
		}
	}
	if s = e.get(org, s.ID); s.State != "active" {
		e.t.Fatalf("%s is %s", name, s.State)
	}
	return s
}

const digest = "sha256:aaaabbbbccccddddaaaabbbbccccddddaaaabbbbccccddddaaaabbbbccccdddd"

// done is what a runner says of what it has made.
const done = `{"sizeGB":1.5,"entrypoint":["/init"],"cmd":null,"hash":"` + digest + `","name":"x"}`
