package secret_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/quota"
	"github.com/daytona-go/daytona/server/seal"
	"github.com/daytona-go/daytona/server/secret"
	"github.com/daytona-go/daytona/server/store"
	"github.com/daytona-go/daytona/server/store/storetest"
)

func service(t *testing.T, db *store.DB) (*secret.Service, *quota.Service) {
	t.Helper()
	box, err := seal.New("a key of some bytes")
	if err != nil {
		t.Fatal(err)
	}
	q := quota.New(db, quota.Config{})
	return secret.New(db, secret.Config{Quotas: q, Box: box}), q
}

func TestSecrets(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		ctx := t.Context()
		s, _ := service(t, db)
		v, err := s.Create(ctx, "a", secret.NewSecret{Name: "KEY", Value: "sk-geheim", Hosts: []string{"API.example.com", "*.x.example", "api.example.com"}})
		if err != nil {
			t.Fatal(err)
		}
		if len(v.Hosts) != 2 || !strings.HasPrefix(v.Placeholder, "dtn_secret_") || strings.Contains(v.Value, "geheim") {
			t.Errorf("%+v", v)
		}
		if _, err := s.Create(ctx, "a", secret.NewSecret{Name: "KEY", Value: "x"}); !errors.Is(err, daytona.ErrConflict) {
			t.Error(err)
		}
		if _, err := s.Create(ctx, "b", secret.NewSecret{Name: "KEY", Value: "of b"}); err != nil {
			t.Error(err)
		}
		// Nothing of the value is in the database.
		rows, err := db.All(ctx).QueryContext(ctx, "SELECT value FROM secrets")
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		for rows.Next() {
			var stored string
			if err := rows.Scan(&stored); err != nil || strings.Contains(stored, "geheim") {
				t.Errorf("%q %v", stored, err)
			}
		}
		for _, bad := range []secret.NewSecret{
			{Name: "", Value: "x"}, {Name: "a b", Value: "x"}, {Name: "ä", Value: "x"}, {Name: "n", Value: ""}, {Name: "n", Value: "a\r\nX-Evil: 1"},
			{Name: "n", Value: strings.Repeat("x", secret.MaxValue+1)}, {Name: "n", Value: "x", Hosts: []string{"https://x.example"}},
			{Name: "n", Value: "x", Hosts: []string{"*"}}, {Name: "n", Value: "x", Hosts: []string{"*.*"}}, {Name: "n", Value: "x", Hosts: []string{"x.example/path"}},
			{Name: "n", Value: "x", Hosts: make([]string, 51)}, {Name: "n", Value: "x", Description: new("<b>")},
		} {
			if _, err := s.Create(ctx, "a", bad); !errors.Is(err, daytona.ErrInvalid) || strings.Contains(err.Error(), "X-Evil") {
				t.Errorf("%.60q: %v", bad.Name+bad.Value, err)
			}
		}
	})
}

func TestSandboxes(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		ctx := t.Context()
		s, q := service(t, db)
		v, err := s.Create(ctx, "a", secret.NewSecret{Name: "KEY", Value: "one", Hosts: []string{"x.example"}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Create(ctx, "b", secret.NewSecret{Name: "OTHER", Value: "of b"}); err != nil {
			t.Fatal(err)
		}
		told, stop := db.Subscribe(secret.TopicChanged)
		defer stop()
		env, err := s.Attach(ctx, "a", "box", map[string]string{"API_KEY": "KEY"})
		if err != nil || env["API_KEY"] != v.Placeholder {
			t.Fatal(env, err)
		}
		if got := <-told; got != "box" {
			t.Error(got)
		}
		// A value is found by its name in the organization, and nowhere else.
		if _, err := s.Attach(ctx, "a", "box", map[string]string{"X": "OTHER"}); !errors.Is(err, daytona.ErrInvalid) {
			t.Error(err)
		}
		if _, err := s.Attach(ctx, "a", "box", map[string]string{"A=B": "KEY"}); !errors.Is(err, daytona.ErrInvalid) {
			t.Error(err)
		}
		got, err := s.Resolve(ctx, "a", "box")
		if err != nil || len(got) != 1 || got[0].Value != "one" || got[0].Env != "API_KEY" || !slices.Equal(got[0].Hosts, []string{"x.example"}) {
			t.Errorf("%+v %v", got, err)
		}
		if got, err := s.Resolve(ctx, "b", "box"); err != nil || len(got) != 0 {
			t.Errorf("%+v %v", got, err)
		}
		if _, err := s.Update(ctx, "b", v.ID, secret.Change{Value: new("stolen")}); !errors.Is(err, daytona.ErrNotFound) {
			t.Error(err)
		}
		if _, err := s.Update(ctx, "a", v.ID, secret.Change{Value: new("two")}); err != nil {
			t.Fatal(err)
		}
		if got := <-told; got != "box" {
			t.Error(got)
		}
		if got, _ := s.Resolve(ctx, "a", "box"); len(got) != 1 || got[0].Value != "two" || got[0].Placeholder != v.Placeholder {
			t.Errorf("%+v", got)
		}
		if err := q.SetLimits(ctx, "a", func(l *quota.Limits) { l.SecretsPerSandbox = 1 }); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Attach(ctx, "a", "box", map[string]string{"A": "KEY", "B": "KEY"}); !errors.Is(err, daytona.ErrInvalid) {
			t.Error(err)
		}
		if err := s.Delete(ctx, "b", v.ID); !errors.Is(err, daytona.ErrNotFound) {
			t.Error(err)
		}
		if err := s.Delete(ctx, "a", v.ID); err != nil {
			t.Fatal(err)
		}
		if env, err := s.Env(ctx, "a", "box"); len(env) != 0 || err != nil {
			t.Error(env, err)
		}
	})
}

func TestPages(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		ctx := t.Context()
		s, _ := service(t, db)
		for i := range 7 {
			if _, err := s.Create(ctx, "a", secret.NewSecret{Name: fmt.Sprintf("KEY_%d", i), Value: "x"}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := s.Create(ctx, "b", secret.NewSecret{Name: "KEY_9", Value: "x"}); err != nil {
			t.Fatal(err)
		}
		for _, sort := range []string{"", "name", "createdAt", "updatedAt"} {
			for _, order := range []string{"", "asc", "desc"} {
				seen, cursor := []string{}, ""
				for range 10 {
					all, total, next, err := s.List(ctx, "a", secret.Page{Cursor: cursor, Limit: 2, Sort: sort, Order: order})
					if err != nil || total != 7 {
						t.Fatal(total, err)
					}
					for _, v := range all {
						seen = append(seen, v.Name)
					}
					if cursor = next; next == "" {
						break
					}
				}
				sorted := slices.Compact(slices.Sorted(slices.Values(seen)))
				if len(seen) != 7 || len(sorted) != 7 {
					t.Errorf("%s %s: %v", sort, order, seen)
				}
				if sort == "name" && order == "asc" && !slices.Equal(seen, sorted) {
					t.Errorf("%v", seen)
				}
			}
		}
		if all, total, _, err := s.List(ctx, "a", secret.Page{Name: "y_3"}); len(all) != 1 || total != 1 || err != nil {
			t.Error(all, total, err)
		}
		if all, _, _, err := s.List(ctx, "a", secret.Page{Name: "%"}); len(all) != 0 || err != nil {
			t.Error(all, err)
		}
		for _, p := range []secret.Page{{Cursor: "x"}, {Cursor: "e30="}, {Limit: -1}, {Limit: 201}, {Sort: "value"}, {Order: "up"}} {
			if _, _, _, err := s.List(context.Background(), "a", p); !errors.Is(err, daytona.ErrInvalid) {
				t.Errorf("%+v: %v", p, err)
			}
		}
	})
}
