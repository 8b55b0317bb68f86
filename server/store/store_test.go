package store_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/uptrace/bun"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/store"
	"github.com/daytona-go/daytona/server/store/storetest"
)

type thing struct {
	bun.BaseModel `bun:"table:things,alias:thing"`

	ID           string            `bun:"id,pk"`
	Organization string            `bun:"organization_id,notnull"`
	Labels       map[string]string `bun:"labels,notnull"`
	Count        int               `bun:"count,notnull"`
	At           time.Time         `bun:"at,notnull"`
	Maybe        *time.Time        `bun:"maybe"`
}

func things(t *testing.T, db *store.DB) {
	t.Helper()
	if _, err := db.All(t.Context()).NewRaw(`CREATE TABLE things (id TEXT PRIMARY KEY, organization_id TEXT NOT NULL,
		labels TEXT NOT NULL, count BIGINT NOT NULL, at TIMESTAMP NOT NULL, maybe TIMESTAMP)`).Exec(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func add(t *testing.T, db *store.DB, v thing) error {
	t.Helper()
	_, err := db.All(t.Context()).NewInsert().Model(&v).Exec(t.Context())
	return err
}

// What belongs to another organization can't be read, changed or deleted, and
// no organization has everything.
func TestScope(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		things(t, db)
		at := time.Date(2026, 11, 26, 12, 0, 0, 123e6, time.FixedZone("", 3600))
		for _, org := range []string{"a", "b", ""} {
			if err := add(t, db, thing{ID: "of-" + org, Organization: org, Labels: map[string]string{"k": "v" + org}, At: at}); err != nil {
				t.Fatal(err)
			}
		}
		ctx := t.Context()
		var got []thing
		if err := db.In(ctx, "a").Select(&got).Scan(ctx); err != nil || len(got) != 1 || got[0].ID != "of-a" {
			t.Fatalf("%+v %v", got, err)
		}
		if g := got[0]; !g.At.Equal(at) || g.Labels["k"] != "va" || g.Maybe != nil {
			t.Errorf("%+v", g)
		}
		one := &thing{}
		if err := db.In(ctx, "a").Select(one).Where("id = ?", "of-b").Scan(ctx); !store.IsNone(err) {
			t.Errorf("%+v %v", one, err)
		}
		// An OR in a condition is not a way out.
		if n, err := db.In(ctx, "a").Select((*thing)(nil)).Where("id = ? OR 1 = 1", "x").Count(ctx); n != 1 || err != nil {
			t.Errorf("%d %v", n, err)
		}
		if err := store.Changed(db.In(ctx, "a").Update((*thing)(nil)).Set("count = 7").Where("id = ?", "of-b").Exec(ctx)); !errors.Is(err, daytona.ErrConflict) {
			t.Error(err)
		}
		if err := store.Changed(db.In(ctx, "a").Delete((*thing)(nil)).Where("id = ? OR 1 = 1", "of-b").Exec(ctx)); err != nil {
			t.Error(err)
		}
		if n, _ := db.All(ctx).NewSelect().Model((*thing)(nil)).Count(ctx); n != 2 {
			t.Errorf("%d are left of b and none", n)
		}
	})
}

func TestUnique(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		things(t, db)
		v := thing{ID: "1", Organization: "a", Labels: map[string]string{}, At: time.Now()}
		if err := add(t, db, v); err != nil || store.IsUnique(err) {
			t.Fatal(err)
		}
		if err := add(t, db, v); !store.IsUnique(err) {
			t.Errorf("%v", err)
		}
	})
}

// A transaction happens or it does not, and what comes of it comes afterwards;
// many at once lose nothing.
func TestTx(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		things(t, db)
		ctx := t.Context()
		wrong := errors.New("wrong")
		told := 0
		err := db.Tx(ctx, func(ctx context.Context) error {
			store.After(ctx, func() { told++ })
			if err := db.Tx(ctx, func(ctx context.Context) error {
				_, err := db.All(ctx).NewInsert().Model(&thing{ID: "1", Organization: "a", Labels: map[string]string{}, At: time.Now()}).Exec(ctx)
				return err
			}); err != nil {
				return err
			}
			return wrong
		})
		if n, _ := db.All(ctx).NewSelect().Model((*thing)(nil)).Count(ctx); err != wrong || n != 0 || told != 0 {
			t.Fatalf("%v, %d rows, told %d times", err, n, told)
		}
		if err := add(t, db, thing{ID: "n", Organization: "a", Labels: map[string]string{}, At: time.Now()}); err != nil {
			t.Fatal(err)
		}
		const workers, rounds = 8, 25
		var wg sync.WaitGroup
		errs := make(chan error, workers*rounds)
		for range workers {
			wg.Go(func() {
				for range rounds {
					errs <- db.Tx(ctx, func(ctx context.Context) error {
						v := &thing{ID: "n"}
						q := db.All(ctx).NewSelect().Model(v).WherePK()
						if db.Postgres() {
							q = q.For("UPDATE")
						}
						if err := q.Scan(ctx); err != nil {
							return err
						}
						v.Count++
						return store.Changed(db.All(ctx).NewUpdate().Model(v).WherePK().Exec(ctx))
					})
				}
			})
		}
		wg.Wait()
		close(errs)
		for err := range errs {
			if err != nil {
				t.Fatal(err)
			}
		}
		v := &thing{ID: "n"}
		if err := db.All(ctx).NewSelect().Model(v).WherePK().Scan(ctx); err != nil || v.Count != workers*rounds {
			t.Errorf("%d %v", v.Count, err)
		}
	})
}

// One holds a lease at a time, and its token tells it from those before.
func TestLease(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		ctx := t.Context()
		t1, ok, err := db.Lease(ctx, "work", "one", time.Hour)
		if !ok || err != nil {
			t.Fatal(ok, err)
		}
		if _, ok, err := db.Lease(ctx, "work", "two", time.Hour); ok || err != nil {
			t.Fatal("two have it", err)
		}
		if again, ok, err := db.Lease(ctx, "work", "one", time.Hour); again != t1 || !ok || err != nil {
			t.Fatal(again, ok, err)
		}
		if err := db.Yield(ctx, "work", "two"); err != nil {
			t.Fatal(err)
		}
		if _, ok, _ := db.Lease(ctx, "work", "two", time.Hour); ok {
			t.Fatal("two gave back what it did not have")
		}
		if err := db.Yield(ctx, "work", "one"); err != nil {
			t.Fatal(err)
		}
		if t2, ok, err := db.Lease(ctx, "work", "two", time.Hour); t2 <= t1 || !ok || err != nil {
			t.Fatal(t2, ok, err)
		}
		var wg sync.WaitGroup
		var mu sync.Mutex
		holders := 0
		for i := range 8 {
			wg.Go(func() {
				_, ok, err := db.Lease(ctx, "race", fmt.Sprint(i), time.Hour)
				if err != nil {
					t.Error(err)
				}
				if ok {
					mu.Lock()
					holders++
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		if holders != 1 {
			t.Errorf("%d hold it", holders)
		}
	})
}

// A listener hears of what was committed, in its order, and of nothing else.
func TestTopics(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		c, end := db.Subscribe("x")
		defer end()
		ctx := t.Context()
		wrong := errors.New("wrong")
		if err := db.Tx(ctx, func(ctx context.Context) error {
			if err := db.Publish(ctx, "x", "never"); err != nil {
				return err
			}
			return wrong
		}); err != wrong {
			t.Fatal(err)
		}
		if err := db.Publish(ctx, "y", "of another topic"); err != nil {
			t.Fatal(err)
		}
		for _, p := range []string{"1", "2"} {
			if err := db.Tx(ctx, func(ctx context.Context) error { return db.Publish(ctx, "x", p) }); err != nil {
				t.Fatal(err)
			}
		}
		for _, want := range []string{"1", "2"} {
			select {
			case got := <-c:
				if got != want {
					t.Errorf("%q instead of %q", got, want)
				}
			case <-time.After(10 * time.Second):
				t.Fatal("nothing came")
			}
		}
		end()
		if err := db.Publish(ctx, "x", "after the end"); err != nil {
			t.Fatal(err)
		}
	})
}

func TestMigrations(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		ctx := t.Context()
		all, err := db.Migrations(ctx)
		if err != nil || len(all) == 0 {
			t.Fatal(all, err)
		}
		for range all {
			if err := db.MigrateDown(ctx); err != nil {
				t.Fatal(err)
			}
		}
		if all, err = db.Migrations(ctx); err != nil || all[0].Applied {
			t.Fatal(all, err)
		}
		if err := db.Migrate(ctx); err != nil {
			t.Fatal(err)
		}
		if err := db.Migrate(ctx); err != nil {
			t.Fatal("again:", err)
		}
		// What a newer program has done, this one leaves alone.
		if _, err := db.All(ctx).NewRaw("INSERT INTO goose_db_version (version_id, is_applied) VALUES (99999, ?)", true).Exec(ctx); err != nil {
			t.Fatal(err)
		}
		if err := db.Migrate(ctx); !errors.Is(err, daytona.ErrConflict) {
			t.Error(err)
		}
	})
}

func TestOpenRefuses(t *testing.T) {
	for url, want := range map[string]error{
		"mysql://x":                  daytona.ErrInvalid,
		"sqlite:":                    daytona.ErrInvalid,
		"postgres://u:geheim@[::1:x": daytona.ErrInvalid,
		"sqlite://" + filepath.Join(t.TempDir()) + "/": daytona.ErrUnavailable,
	} {
		db, err := store.Open(t.Context(), url, nil)
		if !errors.Is(err, want) {
			t.Errorf("%s: %v", url, err)
		}
		if db != nil {
			db.Close()
		}
	}
}
