package sandbox_test

import (
	"context"
	"maps"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/uptrace/bun"

	"github.com/daytona-go/daytona/server/sandbox"
	"github.com/daytona-go/daytona/server/store/storetest"
)

// heard is what a database was asked.
type heard struct {
	mu      sync.Mutex
	queries map[string]bool
}

func (h *heard) BeforeQuery(ctx context.Context, _ *bun.QueryEvent) context.Context { return ctx }

func (h *heard) AfterQuery(_ context.Context, e *bun.QueryEvent) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.queries[e.Query] = true
}

// scan is a step that reads all sandboxes: by no index, or by one of them all.
var scan = regexp.MustCompile(`^SCAN (sandbox|sandboxes)( USING (COVERING )?INDEX (sqlite_autoindex_\w+|sandboxes_(list|created|name|token|state)))?$`)

// What is asked for one sandbox reads no others: SQLite uses an index of some
// rows only where the query has the index's own condition, and would otherwise
// read the whole table while everybody waits to write. A sweep reads no
// destroyed ones, of which there are more and more.
func TestQueriesReadNoWholeTable(t *testing.T) {
	db := storetest.Open(t, storetest.SQLite(t))
	w := newWorld(t, db)
	ctx := t.Context()
	h := &heard{queries: map[string]bool{}}
	//lint:ignore SA1019 the database is the store's: what a copy with the hook is asked is not what this is about
	db.All(ctx).(*bun.DB).AddQueryHook(h)
	sb := w.create(sandbox.Spec{Name: "one", Labels: map[string]string{"a": "b"}})
	must := func(_ *sandbox.Sandbox, err error) {
		t.Helper()
		if err != nil {
			t.Error(err)
		}
		w.settle()
	}
	must(w.s.Get(ctx, "a", "one"))
	must(w.s.SetLabels(ctx, "a", sb.ID, map[string]string{"c": "d"}))
	fork, err := w.s.Fork(ctx, "a", sb.ID, "fork")
	must(fork, err)
	if _, err := w.s.Forks(ctx, "a", sb.ID, false); err != nil {
		t.Error(err)
	}
	must(w.s.Stop(ctx, "a", sb.ID, false))
	must(w.s.Start(ctx, "a", sb.ID))
	must(w.s.StartBackup(ctx, "a", sb.ID))
	must(w.s.Delete(ctx, "a", fork.ID))
	must(w.s.Delete(ctx, "a", sb.ID))
	if w.get(sb.ID).State != sandbox.Destroyed {
		t.Error(w.get(sb.ID).State)
	}
	if _, err := w.s.OfRunner(ctx, "r1", nil, true); err != nil {
		t.Error(err)
	}
	w.sweep() // reads those that are there
	h.mu.Lock()
	queries := maps.Clone(h.queries)
	h.mu.Unlock()
	n := 0
	for q := range queries {
		if verb, _, _ := strings.Cut(q, " "); verb != "SELECT" && verb != "UPDATE" && verb != "DELETE" || strings.Contains(q, "fake_jobs") {
			continue
		}
		n++
		var plan []string
		if err := db.All(context.Background()).NewRaw("EXPLAIN QUERY PLAN ?", bun.Safe(q)).Scan(context.Background(), new([]int), new([]int), new([]int), &plan); err != nil {
			t.Fatal(q, err)
		}
		for _, step := range plan {
			if scan.MatchString(step) {
				t.Errorf("%s\nreads a whole table: %s", q, step)
			}
		}
	}
	if n < 20 {
		t.Errorf("only %d queries were seen", n)
	}
}
