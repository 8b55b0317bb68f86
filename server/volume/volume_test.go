package volume_test

import (
	"context"
	"encoding/json"
	"errors"
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
	"github.com/daytona-go/daytona/server/store"
	"github.com/daytona-go/daytona/server/store/storetest"
	"github.com/daytona-go/daytona/server/volume"
)

// env is a service with a storage that can fail.
type env struct {
	*volume.Service
	t      *testing.T
	server *httptest.Server

	mu     sync.Mutex
	places map[string]bool
	fail   error
	limit  int
	used   map[string]bool
	offset time.Duration
	events []string
}

func start(t *testing.T, db *store.DB) *env {
	e := &env{t: t, places: map[string]bool{}, used: map[string]bool{}}
	e.Service = volume.New(volume.Config{
		DB: db, Storage: e, Log: slog.New(slog.DiscardHandler),
		Limit: func(context.Context, string) (int, error) { return e.limit, nil },
		Active: func(_ context.Context, org string) error {
			if org == "suspended" {
				return &daytona.Error{Kind: daytona.KindForbidden, Message: "Organization is suspended: unpaid"}
			}
			return nil
		},
		InUse: func(_ context.Context, _, id string) (bool, error) { return e.used[id], nil },
		Event: func(_ context.Context, ev volume.Event) error {
			e.mu.Lock()
			defer e.mu.Unlock()
			e.events = append(e.events, fmt.Sprintf("%s %s %s", ev.Name, ev.Volume.Name, ev.Volume.State))
			return nil
		},
		Now: func() time.Time { return time.Now().Add(e.offset) },
	})
	a := api.New(api.Config{Authenticator: e, Log: slog.New(slog.DiscardHandler)})
	api.RegisterVolumes(a, e.Service)
	e.server = httptest.NewServer(a)
	t.Cleanup(e.server.Close)
	return e
}

func (e *env) CreateVolume(_ context.Context, id string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.fail == nil {
		e.places[id] = true
	}
	return e.fail
}

func (e *env) DeleteVolume(_ context.Context, id string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.fail == nil {
		delete(e.places, id)
	}
	return e.fail
}

func (e *env) VolumeLocation(_ context.Context, org, id string) (daytona.S3Location, error) {
	return daytona.S3Location{Bucket: org + "-" + id}, nil
}

func (e *env) Authenticate(_ context.Context, bearer string) (*identity.Principal, error) {
	org, permission, limited := strings.Cut(bearer, "/")
	p := &identity.Principal{Kind: identity.Key, OrganizationID: org, Permissions: identity.Permissions()}
	if limited {
		p.Permissions = []identity.Permission{identity.Permission(permission)}
	}
	return p, nil
}

func (e *env) Join(_ context.Context, p *identity.Principal, _ string) (*identity.Principal, error) {
	return p, nil
}

func (e *env) call(bearer, method, path string, body string, out any) (int, string) {
	e.t.Helper()
	req, err := http.NewRequestWithContext(e.t.Context(), method, e.server.URL+"/api/volumes"+path, strings.NewReader(body))
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
		if err := json.Unmarshal(data, out); err != nil {
			e.t.Fatalf("%q: %v", data, err)
		}
	}
	return resp.StatusCode, string(data)
}

func (e *env) create(org, name string) (v wire.Volume) {
	e.t.Helper()
	if status, msg := e.call(org, "POST", "", fmt.Sprintf(`{"name":%q}`, name), &v); status != 200 {
		e.t.Fatalf("%d %s", status, msg)
	}
	return v
}

func (e *env) state(org, id string) (v wire.Volume) {
	e.t.Helper()
	if status, msg := e.call(org, "GET", "/"+id, "", &v); status != 200 {
		e.t.Fatalf("%d %s", status, msg)
	}
	return v
}

func (e *env) reconcile() {
	e.t.Helper()
	if err := e.Reconcile(e.t.Context()); err != nil {
		e.t.Fatal(err)
	}
}

// From pending_create to deleted, and what is not allowed on the way.
func TestLife(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		e := start(t, db)
		ctx := t.Context()
		v := e.create("org", "data")
		if v.State != "pending_create" || v.OrganizationID != "org" || v.ErrorReason != nil || v.LastUsedAt != nil {
			t.Fatalf("%+v", v)
		}
		expect := func(bearer, method, path, body string, status int, msg string) {
			t.Helper()
			if got, text := e.call(bearer, method, path, body, nil); got != status || !strings.Contains(text, msg) {
				t.Errorf("%s %s %s: %d %q", method, path, body, got, text)
			}
		}
		expect("org", "DELETE", "/"+v.ID, "", 400, "Volume must be in 'ready' or 'error' state in order to be deleted")
		expect("org", "POST", "", `{"name":"data"}`, 400, "Volume with name data already exists")
		expect("org", "POST", "", `{"name":""}`, 400, "name should not be empty")
		expect("org", "POST", "", `{"name":"<b>x</b>"}`, 400, "name must not contain HTML tags, URLs, or control characters")
		expect("org", "POST", "", `{"name":"see www.example.com"}`, 400, "name must not contain HTML tags, URLs, or control characters")
		expect("org", "POST", "", `{"name":"a\u0007"}`, 400, "name must not contain HTML tags, URLs, or control characters")
		expect("org", "POST", "", `{"name":"`+strings.Repeat("x", 256)+`"}`, 400, "at most 255")
		expect("org", "POST", "", `{}`, 400, "name")
		expect("suspended", "POST", "", `{"name":"x"}`, 403, "Organization is suspended: unpaid")
		expect("org/read:volumes", "POST", "", `{"name":"x"}`, 403, "Access denied")
		expect("org/write:volumes", "GET", "", "", 403, "Access denied")
		if _, err := e.Mountable(ctx, "org", "data"); !errors.Is(err, daytona.ErrInvalid) || !strings.Contains(err.Error(), "not in a ready state. Current state: pending_create") {
			t.Error(err)
		}
		if _, err := e.Location(ctx, "org", v.ID); !errors.Is(err, daytona.ErrState) {
			t.Error(err)
		}
		e.reconcile()
		if got := e.state("org", v.ID); got.State != "ready" || !e.places[v.ID] {
			t.Fatalf("%+v", got)
		}
		for _, name := range []string{"data", v.ID} {
			if m, err := e.Mountable(ctx, "org", name); err != nil || m.ID != v.ID {
				t.Error(err)
			}
		}
		if got := e.state("org", v.ID); got.LastUsedAt == nil {
			t.Error("its use is not noted")
		}
		if l, err := e.Location(ctx, "org", v.ID); err != nil || l.Bucket != "org-"+v.ID {
			t.Error(err)
		}
		// Another organization's is not there.
		expect("other", "GET", "/"+v.ID, "", 404, "Volume with ID "+v.ID+" not found")
		expect("other", "GET", "/by-name/data", "", 404, "Volume with name data not found")
		expect("other", "DELETE", "/"+v.ID, "", 404, "")
		if _, err := e.Mountable(ctx, "other", v.ID); !errors.Is(err, daytona.ErrNotFound) {
			t.Error(err)
		}
		if _, err := e.Location(ctx, "other", v.ID); !errors.Is(err, daytona.ErrNotFound) {
			t.Error(err)
		}
		e.create("other", "data")
		expect("org", "GET", "/by-name/data", "", 200, v.ID)
		e.used[v.ID] = true
		expect("org", "DELETE", "/"+v.ID, "", 409, "in use")
		e.used[v.ID] = false
		expect("org", "DELETE", "/"+v.ID, "", 200, "")
		expect("org", "DELETE", "/"+v.ID, "", 400, "Volume must be in")
		expect("org", "POST", "", `{"name":"data"}`, 400, "already exists")
		e.reconcile()
		if e.places[v.ID] {
			t.Error("its place is still there")
		}
		expect("org", "GET", "/by-name/data", "", 404, "")
		expect("org", "DELETE", "/"+v.ID, "", 404, "")
		again := e.create("org", "data")
		e.reconcile()
		expect("org", "DELETE", "/"+again.ID, "", 200, "")
		e.reconcile()
		var list []wire.Volume
		if _, body := e.call("org", "GET", "", "", &list); body != "[]\n" {
			t.Errorf("%q", body)
		}
		e.call("org", "GET", "?includeDeleted=true", "", &list)
		if len(list) != 2 || list[0].Name != "data-deleted" || list[1].State != "deleted" {
			t.Errorf("%+v", list)
		}
		want := []string{"volume.created data pending_create", "volume.state.updated data creating", "volume.state.updated data ready", "volume.lastUsedAt.updated data ready"}
		if !slices.Equal(e.events[:4], want) {
			t.Errorf("%q", e.events)
		}
	})
}

func TestQuota(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		e := start(t, db)
		e.limit = 2
		var wg sync.WaitGroup
		results := make([]string, 6)
		for i := range results {
			wg.Go(func() {
				status, msg := e.call("org", "POST", "", fmt.Sprintf(`{"name":"v%d"}`, i), nil)
				results[i] = fmt.Sprint(status)
				if status != 200 {
					results[i] += " " + msg
				}
			})
		}
		wg.Wait()
		slices.Sort(results)
		if results[1] != "200" || results[2] != "400 Volume quota exceeded. Maximum allowed: 2" {
			t.Fatalf("%q", results)
		}
		e.create("other", "v")
	})
}

// A storage that fails, and a server that was killed half-way.
func TestFailure(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		e := start(t, db)
		e.fail = errors.New("password=secret: connection refused")
		v := e.create("org", "v")
		e.reconcile()
		if got := e.state("org", v.ID); got.State != "error" || *got.ErrorReason != "The object storage failed" {
			t.Fatalf("%+v", got)
		}
		e.fail = nil
		e.call("org", "DELETE", "/"+v.ID, "", nil)
		e.reconcile()
		if got := e.state("org", v.ID); got.State != "deleted" {
			t.Fatal(got.State)
		}
		w := e.create("org", "w")
		if _, err := db.All(t.Context()).NewRaw("UPDATE volumes SET state = 'creating' WHERE id = ?", w.ID).Exec(t.Context()); err != nil {
			t.Fatal(err)
		}
		e.reconcile()
		if got := e.state("org", w.ID); got.State != "creating" {
			t.Fatal("what another server does is taken from it")
		}
		e.offset = 6 * time.Minute
		e.reconcile()
		if got := e.state("org", w.ID); got.State != "ready" {
			t.Fatal(got.State)
		}
		none := volume.New(volume.Config{DB: db})
		if _, err := none.Create(t.Context(), "org", "x"); !errors.Is(err, daytona.ErrUnavailable) || err.Error() != "Object storage is not configured" {
			t.Error(err)
		}
	})
}

// Run makes a volume at once, however many servers run it.
func TestRun(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		e := start(t, db)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() { e.Run(ctx) })
		}
		defer wg.Wait()
		defer cancel()
		v := e.create("org", "v")
		deadline := time.Now().Add(4 * time.Second) // less than the time between two looks
		for e.state("org", v.ID).State != "ready" {
			if time.Now().After(deadline) {
				t.Fatalf("it is %s", e.state("org", v.ID).State)
			}
			time.Sleep(time.Millisecond)
		}
	})
}
