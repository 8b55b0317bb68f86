package ratelimit_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/api"
	"github.com/daytona-go/daytona/server/identity"
	"github.com/daytona-go/daytona/server/ratelimit"
)

// clock is a time that passes when a test says so, here and in Redis.
type clock struct {
	mu    sync.Mutex
	at    time.Time
	redis *miniredis.Miniredis
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
	if c.redis != nil {
		c.redis.FastForward(d)
	}
}

// each runs a test with counters in memory and in Redis.
func each(t *testing.T, c ratelimit.Config, f func(t *testing.T, l *ratelimit.Limiter, c *clock)) {
	c.Log = slog.New(slog.DiscardHandler)
	for _, where := range []string{"memory", "redis"} {
		t.Run(where, func(t *testing.T) {
			c, clock := c, &clock{at: time.Now()}
			c.Now = clock.now
			if where == "redis" {
				clock.redis = miniredis.RunT(t)
				client := redis.NewClient(&redis.Options{Addr: clock.redis.Addr()})
				t.Cleanup(func() { client.Close() })
				c.Redis = client
			}
			l, err := ratelimit.New(c)
			if err != nil {
				t.Fatal(err)
			}
			f(t, l, clock)
		})
	}
}

// organizations have limits of their own, some of them.
type organizations struct{}

func (organizations) RateLimit(_ context.Context, organizationID, limiter string) (int, time.Duration, error) {
	switch organizationID {
	case "more":
		return 5, 0, nil
	case "longer":
		return 0, time.Hour, nil
	case "broken":
		return 0, 0, errors.New("no")
	}
	return 0, 0, nil
}

func left(limit, remaining int, reset time.Duration) api.Limit {
	return api.Limit{Limit: limit, Remaining: remaining, Reset: reset}
}

func none(limit int) api.Limit { return api.Limit{Limit: limit, Reset: time.Minute, Exceeded: true} }

func TestTake(t *testing.T) {
	each(t, ratelimit.Config{
		Rules: map[string]ratelimit.Rule{
			ratelimit.Authenticated: {TTL: time.Minute, Limit: 2}, ratelimit.SandboxCreate: {TTL: time.Minute, Limit: 1},
			ratelimit.Anonymous: {TTL: time.Minute}, // half of one is none
		},
		Organizations: organizations{},
	}, func(t *testing.T, l *ratelimit.Limiter, clock *clock) {
		ctx := t.Context()
		take := func(limiter, who, org string) api.Limit {
			t.Helper()
			got, ok := l.Take(ctx, limiter, who, &identity.Principal{OrganizationID: org})
			if !ok {
				t.Fatal("no limiter")
			}
			return got
		}
		for i, want := range []api.Limit{left(2, 1, time.Minute), left(2, 0, time.Minute), none(2), none(2)} {
			if got := take("authenticated", "a", ""); got != want {
				t.Errorf("%d: %+v", i, got)
			}
		}
		// Others, and other limiters, have counts of their own.
		if got := take("authenticated", "b", ""); got.Exceeded || got.Remaining != 1 {
			t.Errorf("%+v", got)
		}
		if got := take("sandbox-create", "a", ""); got.Exceeded || got.Remaining != 0 {
			t.Errorf("%+v", got)
		}
		// A window is as long as it is, however much is asked in it.
		clock.pass(40 * time.Second)
		if got := take("authenticated", "a", ""); !got.Exceeded || got.Reset != 20*time.Second {
			t.Errorf("%+v", got)
		}
		if got, ok := l.Look(ctx, "authenticated", "a"); !ok || !got.Exceeded || got.Reset != 20*time.Second {
			t.Errorf("%+v", got)
		}
		clock.pass(20 * time.Second)
		if got, ok := l.Look(ctx, "authenticated", "a"); !ok || got.Exceeded || got.Remaining != 2 {
			t.Errorf("%+v", got)
		}
		if got := take("authenticated", "a", ""); got.Exceeded || got.Remaining != 1 || got.Reset != time.Minute {
			t.Errorf("%+v", got)
		}
		for org, want := range map[string]api.Limit{"more": left(5, 4, time.Minute), "longer": left(2, 1, time.Hour), "broken": left(2, 1, time.Minute), "none": left(2, 1, time.Minute)} {
			if got := take("authenticated", "org:"+org, org); got != want {
				t.Errorf("%s: %+v", org, got)
			}
		}
		for _, limiter := range []string{"anonymous", "failed-auth", "nothing"} {
			if _, ok := l.Take(ctx, limiter, "a", nil); ok {
				t.Errorf("%s is a limiter", limiter)
			}
			if _, ok := l.Look(ctx, limiter, "a"); ok {
				t.Errorf("%s is a limiter", limiter)
			}
		}
	})
}

// Who fails too often is blocked, for a whole window from then on.
func TestFailedAuth(t *testing.T) {
	each(t, ratelimit.Config{Rules: map[string]ratelimit.Rule{ratelimit.FailedAuth: {TTL: time.Minute, Limit: 3}}}, func(t *testing.T, l *ratelimit.Limiter, clock *clock) {
		ctx := t.Context()
		for i := range 3 {
			if got, _ := l.Look(ctx, "failed-auth", "192.0.2.1"); got.Exceeded {
				t.Errorf("blocked after %d", i)
			}
			if got, _ := l.Take(ctx, "failed-auth", "192.0.2.1", nil); got.Exceeded {
				t.Errorf("the failure %d is too many", i)
			}
			clock.pass(15 * time.Second)
		}
		for _, left := range []time.Duration{45 * time.Second, 5 * time.Second} {
			if got, _ := l.Look(ctx, "failed-auth", "192.0.2.1"); !got.Exceeded || got.Reset != left {
				t.Errorf("%+v", got)
			}
			clock.pass(40 * time.Second)
		}
		if got, _ := l.Look(ctx, "failed-auth", "192.0.2.1"); got.Exceeded {
			t.Errorf("%+v", got)
		}
		// A network of IPv6 is one sender.
		for i := range 3 {
			l.Take(ctx, "failed-auth", fmt.Sprintf("2001:db8:0:1::%d", i), nil)
		}
		if got, _ := l.Look(ctx, "failed-auth", "2001:db8:0:1:ffff::1"); !got.Exceeded {
			t.Errorf("%+v", got)
		}
		if got, _ := l.Look(ctx, "failed-auth", "2001:db8:0:2::1"); got.Exceeded {
			t.Errorf("%+v", got)
		}
	})
}

// Nobody is let through twice because they are fast.
func TestConcurrent(t *testing.T) {
	each(t, ratelimit.Config{Rules: map[string]ratelimit.Rule{ratelimit.Authenticated: {TTL: time.Minute, Limit: 50}}}, func(t *testing.T, l *ratelimit.Limiter, _ *clock) {
		var wg sync.WaitGroup
		var mu sync.Mutex
		let := 0
		for range 8 {
			wg.Go(func() {
				for range 20 {
					if got, _ := l.Take(t.Context(), "authenticated", "a", nil); !got.Exceeded {
						mu.Lock()
						let++
						mu.Unlock()
					}
				}
			})
		}
		wg.Wait()
		if let != 50 {
			t.Errorf("%d of 50 were let through", let)
		}
	})
}

// Memory is bounded, whoever asks.
func TestBounded(t *testing.T) {
	l, err := ratelimit.New(ratelimit.Config{Rules: map[string]ratelimit.Rule{ratelimit.Anonymous: {TTL: time.Hour, Limit: 1}}, Size: 100})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 10_000 {
		l.Take(t.Context(), "anonymous", fmt.Sprint(i), nil)
	}
	kept := 0
	for i := range 10_000 {
		if got, _ := l.Look(t.Context(), "anonymous", fmt.Sprint(i)); got.Exceeded {
			kept++
		}
	}
	if kept > 1000 || kept == 0 {
		t.Errorf("%d of 100 counters are kept", kept)
	}
}

// Without Redis a server counts for itself, and does not wait for it each time.
func TestRedisDown(t *testing.T) {
	m := miniredis.RunT(t)
	client := redis.NewClient(&redis.Options{Addr: m.Addr(), MaxRetries: -1})
	defer client.Close()
	clock := &clock{at: time.Now()}
	l, err := ratelimit.New(ratelimit.Config{
		Rules: map[string]ratelimit.Rule{ratelimit.Authenticated: {TTL: time.Minute, Limit: 2}}, Redis: client,
		Now: clock.now, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	m.Close()
	began, exceeded := time.Now(), false
	for range 100 {
		got, ok := l.Take(t.Context(), "authenticated", "a", nil)
		exceeded = exceeded || got.Exceeded
		if !ok {
			t.Fatal("no limiter")
		}
	}
	if !exceeded || time.Since(began) > 2*time.Second {
		t.Errorf("%v, %v", exceeded, time.Since(began))
	}
	if err := m.Restart(); err != nil {
		t.Fatal(err)
	}
	clock.pass(2 * time.Second)
	if got, _ := l.Take(t.Context(), "authenticated", "a", nil); got.Remaining != 1 {
		t.Errorf("Redis is back and does not count: %+v", got)
	}
}

func TestNew(t *testing.T) {
	for _, rules := range []map[string]ratelimit.Rule{
		{"autenticated": {TTL: time.Minute, Limit: 1}}, {ratelimit.Anonymous: {TTL: time.Minute, Limit: -1}}, {ratelimit.Anonymous: {TTL: time.Millisecond, Limit: 1}},
	} {
		if _, err := ratelimit.New(ratelimit.Config{Rules: rules}); !errors.Is(err, daytona.ErrInvalid) {
			t.Errorf("%v: %v", rules, err)
		}
	}
}

// one knows one key.
type one struct{}

func (one) Authenticate(_ context.Context, bearer string) (*identity.Principal, error) {
	switch bearer {
	case "key":
		return &identity.Principal{Kind: identity.Key, UserID: "u", OrganizationID: "org"}, nil
	case "token":
		return &identity.Principal{Kind: identity.JWT, UserID: "u"}, nil
	case "runner":
		return &identity.Principal{Kind: identity.Runner}, nil
	}
	return nil, &daytona.Error{Kind: daytona.KindUnauthorized}
}

func (one) Join(_ context.Context, p *identity.Principal, organizationID string) (*identity.Principal, error) {
	joined := *p
	joined.OrganizationID = organizationID
	return &joined, nil
}

// The headers and answers that clients see.
func TestHTTP(t *testing.T) {
	minute := func(limit int) ratelimit.Rule { return ratelimit.Rule{TTL: time.Minute, Limit: limit} }
	each(t, ratelimit.Config{Rules: map[string]ratelimit.Rule{
		ratelimit.Anonymous: minute(2), ratelimit.FailedAuth: minute(3), ratelimit.Authenticated: minute(3), ratelimit.SandboxLifecycle: minute(1),
	}}, func(t *testing.T, l *ratelimit.Limiter, clock *clock) {
		a := api.New(api.Config{Authenticator: one{}, Limiter: l, Log: slog.New(slog.DiscardHandler)})
		nothing := func(context.Context, *struct{}) (api.None, error) { return api.None{}, nil }
		for _, id := range []string{"listRegistries", "getAuthenticatedUser", "pollJobs", "listSandboxes"} {
			api.Handle(a, id, nothing)
		}
		api.Handle(a, "ConfigController_getConfig", func(context.Context, *struct{}) (string, error) { return "", nil })
		api.Handle(a, "startSandbox", func(context.Context, *struct {
			ID string `path:"sandboxIdOrName"`
		}) (api.None, error) {
			return api.None{}, nil
		})
		s := httptest.NewServer(a)
		defer s.Close()
		ask := func(method, path, bearer string) (int, http.Header) {
			t.Helper()
			req, _ := http.NewRequestWithContext(t.Context(), method, s.URL+"/api"+path, nil)
			req.Header.Set("Authorization", "Bearer "+bearer)
			req.Header.Set("X-Daytona-Organization-ID", "org")
			res, err := s.Client().Do(req)
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
			return res.StatusCode, res.Header
		}
		check := func(method, path, bearer string, want int, limiter string, limit, remaining string) {
			t.Helper()
			status, h := ask(method, path, bearer)
			if status != want {
				t.Fatalf("%s: %d", path, status)
			}
			if limiter == "" {
				for k := range h {
					if len(k) > 11 && k[:11] == "X-Ratelimit" {
						t.Errorf("%s: %s", path, k)
					}
				}
				return
			}
			if h.Get("X-RateLimit-Limit-"+limiter) != limit || h.Get("X-RateLimit-Remaining-"+limiter) != remaining || h.Get("X-RateLimit-Reset-"+limiter) != "60" {
				t.Errorf("%s: %v", path, h)
			}
			if after := h.Get("Retry-After-" + limiter); (want == 429) != (after == "60") {
				t.Errorf("%s: retry after %q", path, after)
			}
		}
		check("GET", "/config", "", 200, "anonymous", "2", "1")
		check("GET", "/config", "", 200, "anonymous", "2", "0")
		check("GET", "/config", "", 429, "anonymous", "2", "0")
		// A key and tokens of one organization share a count, on all routes; a
		// user outside of one has another.
		check("GET", "/docker-registry", "key", 200, "authenticated", "3", "2")
		check("GET", "/sandbox", "key", 200, "authenticated", "3", "1")
		check("GET", "/docker-registry", "token", 200, "authenticated", "3", "0")
		check("GET", "/docker-registry", "key", 429, "authenticated", "3", "0")
		check("GET", "/users/me", "token", 200, "authenticated", "3", "2")
		for range 10 {
			check("GET", "/jobs/poll", "runner", 200, "", "", "")
		}
		// Wrong keys: three are told so, then the address is told nothing more.
		for range 3 {
			check("GET", "/docker-registry", "wrong", 401, "", "", "")
		}
		for _, bearer := range []string{"wrong", "key", "runner", ""} {
			status, h := ask("GET", "/docker-registry", bearer)
			if status != 429 || h.Get("Retry-After") != "60" {
				t.Errorf("%q: %d %v", bearer, status, h)
			}
		}
		if status, _ := ask("GET", "/config", ""); status != 429 {
			t.Error(status)
		}
		clock.pass(time.Minute)
		check("GET", "/docker-registry", "key", 200, "authenticated", "3", "2")
		if status, h := ask("POST", "/sandbox/x/start", "key"); status != 403 || h.Get("X-RateLimit-Limit-sandbox-lifecycle") != "" {
			t.Error(status, h)
		}
	})
}
