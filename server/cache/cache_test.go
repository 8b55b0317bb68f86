package cache_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/daytona-go/daytona/server/cache"
	"github.com/daytona-go/daytona/server/store"
	"github.com/daytona-go/daytona/server/store/storetest"
)

// run runs a cache for the time of a test.
func run(t *testing.T, c *cache.Cache[int]) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); c.Run(ctx) }()
	t.Cleanup(func() { stop(); <-done })
}

// until waits for what another goroutine does.
func until(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not come about")
		}
	}
}

func TestCache(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		ctx := t.Context()
		c := cache.New[int](db, "things", 100, time.Hour)
		var loads atomic.Int64
		get := func(key string) int {
			t.Helper()
			v, err := c.Get(ctx, key, func(context.Context) (int, error) { return int(loads.Add(1)), nil })
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
		kept := func() bool { before := get("a"); return get("a") == before }
		if kept() {
			t.Error("something is kept while nobody hears of changes")
		}
		run(t, c)
		until(t, kept)
		a, b := get("a"), get("b")
		if err := c.Changed(ctx, "a"); err != nil {
			t.Fatal(err)
		}
		if get("a") == a || get("b") != b && !db.Postgres() {
			t.Error("what has changed is still there, or what has not is gone")
		}
		// What is undone has changed nothing. (The change before may still be on
		// its way round.)
		boom := errors.New("boom")
		until(t, func() bool {
			a := get("a")
			if err := db.Tx(ctx, func(ctx context.Context) error {
				if err := c.Changed(ctx, "a"); err != nil {
					return err
				}
				return boom
			}); !errors.Is(err, boom) {
				t.Fatal(err)
			}
			return get("a") == a
		})
		// An error is not kept.
		if _, err := c.Get(ctx, "c", func(context.Context) (int, error) { return 0, boom }); !errors.Is(err, boom) {
			t.Error(err)
		}
		if get("c") == 0 {
			t.Error("an error was kept")
		}
	})
}

// What was being read while it changed is not kept: it may be from before.
func TestCacheRace(t *testing.T) {
	db := storetest.Open(t, storetest.SQLite(t))
	c := cache.New[int](db, "things", 100, time.Hour)
	run(t, c)
	ctx := t.Context()
	read := func(v int) int {
		got, err := c.Get(ctx, "a", func(context.Context) (int, error) { return v, nil })
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	until(t, func() bool { return read(1) == read(2) })
	c.Changed(ctx, "a")
	until(t, func() bool { // the change has come round to Run, too
		if _, err := c.Get(ctx, "b", func(context.Context) (int, error) { return 7, nil }); err != nil {
			t.Fatal(err)
		}
		v, _ := c.Get(ctx, "b", func(context.Context) (int, error) { return 8, nil })
		return v == 7
	})
	got, err := c.Get(ctx, "a", func(context.Context) (int, error) {
		c.Changed(ctx, "a")
		return 3, nil
	})
	if got != 3 || err != nil {
		t.Fatal(got, err)
	}
	if got := read(4); got != 4 {
		t.Errorf("%d was kept, which is from before a change", got)
	}
}

func TestCacheExpires(t *testing.T) {
	db := storetest.Open(t, storetest.SQLite(t))
	c := cache.New[int](db, "things", 100, time.Millisecond)
	run(t, c)
	n := 0
	get := func() int {
		v, _ := c.Get(t.Context(), "a", func(context.Context) (int, error) { n++; return n, nil })
		return v
	}
	first := get()
	until(t, func() bool { return get() != first })
}
