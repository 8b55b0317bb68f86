package audit_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/audit"
	"github.com/daytona-go/daytona/server/store"
	"github.com/daytona-go/daytona/server/store/storetest"
)

// What was recorded is there after Close, however small the queue is.
func TestNothingIsLost(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		s := audit.New(db, audit.Config{Queue: 4, Log: slog.New(slog.DiscardHandler)})
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				for j := range 25 {
					s.Record(audit.Entry{OrganizationID: "a", ActorID: fmt.Sprint(i), Action: "create", TargetType: "sandbox", TargetID: fmt.Sprint(j), StatusCode: 200})
				}
			})
		}
		wg.Wait()
		if err := s.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		_, n, err := s.Find(t.Context(), audit.Query{OrganizationID: "a"})
		if n != 500 || err != nil {
			t.Errorf("%d of 500 are there: %v", n, err)
		}
		// Closed twice is closed, and what comes too late does no harm.
		if err := s.Close(t.Context()); err != nil {
			t.Error(err)
		}
		s.Record(audit.Entry{OrganizationID: "a", Action: "late"})
	})
}

func TestFind(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		s := audit.New(db, audit.Config{Log: slog.New(slog.DiscardHandler), Retention: time.Hour})
		before := time.Now().Add(-time.Minute)
		long := strings.Repeat("ä", 3000)
		for _, e := range []audit.Entry{
			{OrganizationID: "a", ActorID: "u1", ActorEmail: "u1@x", Action: "create", TargetType: "sandbox", TargetID: "s1", StatusCode: 200, Metadata: map[string]any{"n": "v"}},
			{OrganizationID: "a", ActorID: "u1", Action: "delete", TargetType: "sandbox", TargetID: "s1", StatusCode: 404, ErrorMessage: long + "\x00"},
			{OrganizationID: "a", ActorID: "u2", Action: "create", TargetType: "volume", TargetID: "v1", StatusCode: 409},
			{OrganizationID: "b", ActorID: "u3", Action: "create", TargetType: "volume", TargetID: "v2", StatusCode: 200},
		} {
			s.Record(e)
		}
		if err := s.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		f := func(field, op string, values ...any) []audit.Filter {
			return []audit.Filter{{Field: field, Op: op, Values: values}}
		}
		for i, c := range []struct {
			q    audit.Query
			want int
		}{
			{audit.Query{OrganizationID: "a"}, 3},
			{audit.Query{OrganizationID: "b"}, 1},
			{audit.Query{OrganizationID: ""}, 0},
			{audit.Query{Everything: true}, 4},
			{audit.Query{Everything: true, OrganizationID: "b"}, 1},
			{audit.Query{OrganizationID: "a", Filters: f("action", "eq", "create")}, 2},
			{audit.Query{OrganizationID: "a", Filters: f("action", "not", "create")}, 1},
			{audit.Query{OrganizationID: "a", Filters: f("targetId", "in", "s1", "v2")}, 2},
			{audit.Query{OrganizationID: "a", Filters: f("targetId", "notIn", "s1", "v2")}, 1},
			{audit.Query{OrganizationID: "a", Filters: f("statusCode", "gte", 400)}, 2},
			{audit.Query{OrganizationID: "a", Filters: append(f("statusCode", "gte", 400), f("statusCode", "lt", 409)...)}, 1},
			{audit.Query{OrganizationID: "a", Filters: f("createdAt", "gt", before.UTC())}, 3},
			{audit.Query{OrganizationID: "a", Filters: f("createdAt", "lt", before.UTC())}, 0},
			{audit.Query{OrganizationID: "a", From: before}, 3},
			{audit.Query{OrganizationID: "a", To: before}, 0},
			{audit.Query{OrganizationID: "a", Filters: f("actorEmail", "eq", "x' OR '1'='1")}, 0},
		} {
			all, n, err := s.Find(t.Context(), c.q)
			if err != nil || n != c.want || len(all) != c.want {
				t.Errorf("%d: %d, not %d: %v", i, n, c.want, err)
			}
		}
		all, n, err := s.Find(t.Context(), audit.Query{OrganizationID: "a", Limit: 2, Page: 2})
		if err != nil || n != 3 || len(all) != 1 || all[0].Metadata["n"] != "v" || all[0].ActorEmail != "u1@x" {
			t.Errorf("%+v %d %v", all, n, err)
		}
		all, _, _ = s.Find(t.Context(), audit.Query{OrganizationID: "a", Filters: f("action", "eq", "delete")})
		if m := all[0].ErrorMessage; len(m) != 2000 || strings.Trim(m, "ä") != "" {
			t.Errorf("an error of %d bytes", len(m))
		}
		for _, q := range []audit.Query{
			{Page: -1}, {Limit: 201}, {Filters: f("password", "eq", "x")}, {Filters: f("action", "gt", "x")}, {Filters: f("createdAt", "eq", "x")},
			{Filters: f("action", "eq")}, {Filters: f("action", "eq", "x", "y")}, {Filters: f("action", "in", make([]any, 101)...)},
		} {
			if _, _, err := s.Find(t.Context(), q); !errors.Is(err, daytona.ErrInvalid) {
				t.Errorf("%+v: %v", q, err)
			}
		}
		if err := s.Sweep(t.Context(), time.Now().Add(30*time.Minute)); err != nil {
			t.Fatal(err)
		}
		if _, n, _ := s.Find(t.Context(), audit.Query{Everything: true}); n != 4 {
			t.Errorf("%d are left before their time", n)
		}
		if err := s.Sweep(t.Context(), time.Now().Add(2*time.Hour)); err != nil {
			t.Fatal(err)
		}
		if _, n, _ := s.Find(t.Context(), audit.Query{Everything: true}); n != 0 {
			t.Errorf("%d are left after their time", n)
		}
	})
}

// An entry that no database takes is lost to it, and it alone: those after it
// are written, and nobody waits for them.
func TestPoison(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		s := audit.New(db, audit.Config{Queue: 8, Log: slog.New(slog.DiscardHandler)})
		s.Record(audit.Entry{ActorID: "u", Action: "create", TargetType: "sandbox", Metadata: map[string]any{"x": []string{"\x00"}, "y": make(chan int)}})
		for i := range 20 {
			s.Record(audit.Entry{OrganizationID: "a\x00b", ActorID: "u\xff", ActorEmail: "\x00", Action: "create", TargetType: "sandbox", TargetID: fmt.Sprint(i, "\x00"), UserAgent: "\xff", Source: "\x00",
				ErrorMessage: "\x00", Metadata: map[string]any{"a\x00": "b\x00"}})
		}
		if err := s.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, n, err := s.Find(t.Context(), audit.Query{Everything: true}); n != 20 || err != nil {
			t.Errorf("%d were written: %v", n, err)
		}
	})
}

// A database that can't be written to does not keep the server from ending.
func TestBrokenDatabase(t *testing.T) {
	db := storetest.Open(t, storetest.SQLite(t))
	if _, err := db.All(t.Context()).NewRaw("DROP TABLE audit_logs").Exec(t.Context()); err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	var mu sync.Mutex
	s := audit.New(db, audit.Config{Log: slog.New(slog.NewTextHandler(writer(func(b []byte) { mu.Lock(); defer mu.Unlock(); log.Write(b) }), nil))})
	s.Record(audit.Entry{ActorID: "u", Action: "create", TargetType: "sandbox"})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := s.Close(ctx); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if !strings.Contains(log.String(), "was not stored") || !strings.Contains(log.String(), "action=create") {
		t.Errorf("the log does not have the entry: %s", log.String())
	}
}

type writer func([]byte)

func (w writer) Write(b []byte) (int, error) { w(b); return len(b), nil }
