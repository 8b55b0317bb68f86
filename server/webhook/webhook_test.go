package webhook_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/outbound"
	"github.com/daytona-go/daytona/server/seal"
	"github.com/daytona-go/daytona/server/store"
	"github.com/daytona-go/daytona/server/store/storetest"
	"github.com/daytona-go/daytona/server/webhook"
)

func service(t *testing.T, db *store.DB, allow ...string) *webhook.Service {
	t.Helper()
	box, err := seal.New("a key of some bytes")
	if err != nil {
		t.Fatal(err)
	}
	g, err := outbound.New(outbound.Config{Allow: allow})
	if err != nil {
		t.Fatal(err)
	}
	return webhook.New(db, webhook.Config{
		Outbound: g, Box: box, PortalURL: "https://dash.example/webhooks", Log: slog.New(slog.DiscardHandler), Timeout: 5 * time.Second,
		Schedule: []time.Duration{time.Millisecond, time.Millisecond},
	})
}

// run delivers until the test ends.
func run(t *testing.T, s *webhook.Service) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
}

type received struct {
	header http.Header
	body   string
}

// receiver answers with the statuses, one after the other, the last for ever.
func receiver(t *testing.T, statuses ...int) (url string, got <-chan received) {
	c := make(chan received, 100)
	var n atomic.Int32
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		i := int(n.Add(1)) - 1
		if s := statuses[min(i, len(statuses)-1)]; s == http.StatusFound {
			http.Redirect(w, r, "/elsewhere", s)
		} else {
			w.WriteHeader(s)
		}
		c <- received{r.Header, string(b)}
	}))
	t.Cleanup(srv.Close)
	return srv.URL, c
}

func next(t *testing.T, c <-chan received) received {
	t.Helper()
	select {
	case r := <-c:
		return r
	case <-time.After(20 * time.Second):
		t.Fatal("no message came")
	}
	return received{}
}

// A message comes once it is committed, is signed, is tried again until it is
// taken, and goes to those who want it, in its own organization.
func TestDelivery(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		ctx := t.Context()
		s := service(t, db, "127.0.0.1")
		url, got := receiver(t, 500, 302, 204)
		url2, got2 := receiver(t, 200)
		e, secret, err := s.CreateEndpoint(ctx, "a", webhook.Change{URL: &url})
		if err != nil || strings.Contains(e.Secret, secret) {
			t.Fatal(err)
		}
		if _, _, err := s.CreateEndpoint(ctx, "a", webhook.Change{URL: &url2, Events: []string{webhook.VolumeCreated}}); err != nil {
			t.Fatal(err)
		}
		run(t, s)
		wrong := errors.New("wrong")
		if err := db.Tx(ctx, func(ctx context.Context) error {
			if err := s.Send(ctx, "a", webhook.SandboxCreated, "", map[string]any{"id": "never"}); err != nil {
				return err
			}
			return wrong
		}); err != wrong {
			t.Fatal(err)
		}
		if err := s.Send(ctx, "b", webhook.SandboxCreated, "", map[string]any{"id": "of b"}); err != nil {
			t.Fatal(err)
		}
		if err := s.Send(ctx, "a", webhook.SandboxCreated, "one", map[string]any{"id": "box", "state": "started"}); err != nil {
			t.Fatal(err)
		}
		if err := s.Send(ctx, "a", webhook.SandboxCreated, "one", map[string]any{"id": "again"}); err != nil {
			t.Fatal(err)
		}
		id := ""
		for i := range 3 {
			r := next(t, got)
			var body map[string]any
			if err := json.Unmarshal([]byte(r.body), &body); err != nil {
				t.Fatal(err)
			}
			if body["id"] != "box" || body["event"] != "sandbox.created" || body["organizationId"] != "a" || body["timestamp"] == nil || body["state"] != "started" {
				t.Errorf("%v", body)
			}
			h := r.header
			if i > 0 && h.Get("Webhook-Id") != id {
				t.Errorf("an attempt has another id: %s", h.Get("Webhook-Id"))
			}
			id = h.Get("Webhook-Id")
			at, err := time.ParseDuration(h.Get("Webhook-Timestamp") + "s")
			if err != nil {
				t.Fatal(err)
			}
			want, err := webhook.Sign(secret, id, time.Unix(int64(at/time.Second), 0), r.body)
			if err != nil || h.Get("Webhook-Signature") != want || h.Get("Svix-Signature") != want {
				t.Errorf("signed %q, not %q: %v", h.Get("Webhook-Signature"), want, err)
			}
		}
		if err := s.Send(ctx, "a", webhook.VolumeCreated, "", map[string]any{"id": "vol"}); err != nil {
			t.Fatal(err)
		}
		for _, c := range []<-chan received{got, got2} {
			if r := next(t, c); !strings.Contains(r.body, `"vol"`) {
				t.Errorf("%s", r.body)
			}
		}
		attempts, err := s.Attempts(ctx, "a", id)
		if err != nil || len(attempts) != 3 || attempts[0].Status != 204 || attempts[2].Status != 500 {
			t.Errorf("%+v %v", attempts, err)
		}
		if other, err := s.Attempts(ctx, "b", id); err != nil || len(other) != 0 {
			t.Errorf("%+v %v", other, err)
		}
		select {
		case r := <-got:
			t.Errorf("one too many: %s", r.body)
		default:
		}
	})
}

// An endpoint that says it is gone is not asked again.
func TestGone(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		ctx := t.Context()
		s := service(t, db, "127.0.0.1")
		url, got := receiver(t, 410)
		e, _, err := s.CreateEndpoint(ctx, "a", webhook.Change{URL: &url})
		if err != nil {
			t.Fatal(err)
		}
		run(t, s)
		if err := s.Send(ctx, "a", webhook.SandboxCreated, "", nil); err != nil {
			t.Fatal(err)
		}
		next(t, got)
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
			if e, err = s.Endpoint(ctx, "a", e.ID); err != nil {
				t.Fatal(err)
			}
			if e.Disabled {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("it is still enabled")
			}
		}
		if e.DisabledReason == "" {
			t.Error("without a reason")
		}
	})
}

// What the server must not connect to is refused when it is set, and when its
// name turns out to be of such an address.
func TestGuarded(t *testing.T) {
	db := storetest.Open(t, storetest.SQLite(t))
	ctx := t.Context()
	inside, got := receiver(t, 200)
	s := service(t, db)
	for _, url := range []string{inside, "http://169.254.169.254/latest/meta-data", "http://localhost:1", "ftp://x.example", "http://user:secret@x.example"} {
		if _, _, err := s.CreateEndpoint(ctx, "a", webhook.Change{URL: &url}); !errors.Is(err, daytona.ErrInvalid) {
			t.Errorf("%s: %v", url, err)
		}
	}
	// It was allowed once.
	if _, _, err := service(t, db, "127.0.0.1").CreateEndpoint(ctx, "a", webhook.Change{URL: &inside}); err != nil {
		t.Fatal(err)
	}
	run(t, s)
	if err := s.Send(ctx, "a", webhook.SandboxCreated, "x", nil); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		all, err := s.Attempts(ctx, "a", "evt_a_x")
		if err != nil {
			t.Fatal(err)
		}
		if len(all) == 3 { // the first, and one for each time of the schedule
			if all[0].Status != 0 || all[0].Error == "" {
				t.Errorf("%+v", all[0])
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d attempts", len(all))
		}
	}
	select {
	case <-got:
		t.Error("it was reached")
	default:
	}
}

// Endpoints that don't answer hold up those of their own organization alone.
func TestSlowEndpoint(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		ctx := t.Context()
		release := make(chan struct{})
		slow := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			select {
			case <-release:
			case <-r.Context().Done():
			}
		}))
		defer slow.Close()
		defer close(release)
		fast, got := receiver(t, 200)
		box, err := seal.New("a key of some bytes")
		if err != nil {
			t.Fatal(err)
		}
		g, err := outbound.New(outbound.Config{Allow: []string{"127.0.0.1"}})
		if err != nil {
			t.Fatal(err)
		}
		s := webhook.New(db, webhook.Config{Outbound: g, Box: box, Log: slog.New(slog.DiscardHandler), Timeout: time.Hour})
		for organization, url := range map[string]string{"a": slow.URL, "b": fast} {
			if _, _, err := s.CreateEndpoint(ctx, organization, webhook.Change{URL: &url}); err != nil {
				t.Fatal(err)
			}
		}
		for i := range 40 { // more than are made at a time
			if err := s.Send(ctx, "a", webhook.SandboxCreated, fmt.Sprint(i), nil); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Send(ctx, "b", webhook.SandboxCreated, "", nil); err != nil {
			t.Fatal(err)
		}
		run(t, s)
		next(t, got)
	})
}

func TestOff(t *testing.T) {
	db := storetest.Open(t, storetest.SQLite(t))
	s := webhook.New(db, webhook.Config{Disabled: true})
	if s.Enabled() {
		t.Error("enabled")
	}
	if _, err := s.Initialize(t.Context(), "a"); !errors.Is(err, daytona.ErrUnavailable) || err.Error() != "Webhook service is not configured" {
		t.Error(err)
	}
	if err := s.Send(t.Context(), "a", webhook.SandboxCreated, "", nil); err != nil {
		t.Error(err)
	}
	on := service(t, db)
	if err := on.Send(t.Context(), "a", "sandbox.exploded", "", nil); !errors.Is(err, daytona.ErrInvalid) {
		t.Error(err)
	}
	if err := on.Send(t.Context(), "a", webhook.SandboxCreated, "", map[string]any{"x": strings.Repeat("x", 300<<10)}); !errors.Is(err, daytona.ErrInvalid) {
		t.Error(err)
	}
}
