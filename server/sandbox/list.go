package sandbox

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/uptrace/bun"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/store"
)

// Filter selects sandboxes of an organization. Zero fields select all.
type Filter struct {
	// ID and Name are prefixes, or parts with Within, of any case.
	ID, Name string
	Within   bool
	// Labels must all be there.
	Labels map[string]string
	// States are those that are shown.
	States                             []State
	Snapshots, Regions, Classes        []string
	MinCPU, MaxCPU                     int
	MinGPU, MaxGPU                     *int
	MinMemory, MaxMemory               int
	MinDisk, MaxDisk                   int
	Public, Recoverable                *bool
	CreatedAfter, CreatedBefore        time.Time
	LastEventAfter, LastEventBefore    time.Time
	AutoDestroyAfter, AutoDestroyUntil time.Time
	// IncludeErroredDeleted adds those that are to be destroyed and could not be,
	// IncludeWarm those that wait in a pool.
	IncludeErroredDeleted, IncludeWarm bool

	// Sort is a field of the wire. Defaults to lastActivityAt.
	Sort string
	// Ascending turns the order around, which is descending.
	Ascending bool
	// Limit defaults to 100, and is at most 200.
	Limit int
}

// columns of what can be sorted by.
var columns = map[string]string{
	"name": "name", "cpu": "cpu", "memoryGib": "memory", "diskGib": "disk", "lastActivityAt": "last_activity_at", "createdAt": "created_at",
	"id": "id", "state": "shown", "snapshot": "snapshot", "region": "region_id", "updatedAt": "updated_at",
}

// Sorts returns what List, or else Page, can sort by.
func Sorts(page bool) []string {
	if page {
		return []string{"id", "name", "state", "snapshot", "region", "updatedAt", "createdAt", "lastActivityAt"}
	}
	return []string{"name", "cpu", "memoryGib", "diskGib", "lastActivityAt", "createdAt"}
}

func (f *Filter) check(page bool) error {
	if f.Sort == "" {
		f.Sort = "lastActivityAt"
	}
	if sorts := Sorts(page); !slices.Contains(sorts, f.Sort) {
		return invalid("sort %q must be one of %s", clip(f.Sort), strings.Join(sorts, ", "))
	}
	f.Limit = or(f.Limit, 100)
	if f.Limit < 1 || f.Limit > 200 {
		return invalid("limit %d must be 1 to 200", f.Limit)
	}
	for _, v := range f.States {
		if v == Destroyed || !slices.Contains(States(), v) {
			return invalid("states: %q is no state that can be listed", clip(string(v)))
		}
	}
	if len(f.States)+len(f.Snapshots)+len(f.Regions)+len(f.Classes)+len(f.Labels) > 1000 {
		return invalid("a filter must have at most 1000 values")
	}
	return nil
}

func (f *Filter) apply(q *bun.SelectQuery) *bun.SelectQuery {
	if f.IncludeErroredDeleted {
		q = q.Where("sandbox.state <> ?", Destroyed)
	} else {
		q = q.Where("NOT " + gone)
	}
	if !f.IncludeWarm {
		q = q.Where("sandbox.warm_pool_id = ''")
	}
	for _, t := range []struct{ column, text string }{{"id", f.ID}, {"name", f.Name}} {
		if t.text == "" {
			continue
		}
		pattern := store.Escape(strings.ToLower(t.text)) + "%"
		if f.Within {
			pattern = "%" + pattern
		}
		q = q.Where(`lower(?) LIKE ? ESCAPE '\'`, bun.Ident("sandbox."+t.column), pattern)
	}
	for _, k := range sortedKeys(f.Labels) {
		q = q.Where("EXISTS (SELECT 1 FROM sandbox_labels AS l WHERE l.sandbox_id = sandbox.id AND l.organization_id = sandbox.organization_id AND l.name = ? AND l.value = ?)", k, f.Labels[k])
	}
	in := func(column string, values any, n int) {
		if n > 0 {
			q = q.Where("? IN (?)", bun.Ident("sandbox."+column), bun.List(values))
		}
	}
	in("shown", f.States, len(f.States))
	in("snapshot", f.Snapshots, len(f.Snapshots))
	in("region_id", f.Regions, len(f.Regions))
	in("class", f.Classes, len(f.Classes))
	for _, r := range []struct {
		column   string
		min, max int
	}{{"cpu", f.MinCPU, f.MaxCPU}, {"memory", f.MinMemory, f.MaxMemory}, {"disk", f.MinDisk, f.MaxDisk}} {
		if r.min != 0 {
			q = q.Where("? >= ?", bun.Ident("sandbox."+r.column), r.min)
		}
		if r.max != 0 {
			q = q.Where("? <= ?", bun.Ident("sandbox."+r.column), r.max)
		}
	}
	if f.MinGPU != nil {
		q = q.Where("sandbox.gpu >= ?", *f.MinGPU)
	}
	if f.MaxGPU != nil {
		q = q.Where("sandbox.gpu <= ?", *f.MaxGPU)
	}
	if f.Public != nil {
		q = q.Where("sandbox.public = ?", *f.Public)
	}
	if f.Recoverable != nil {
		q = q.Where("sandbox.recoverable = ?", *f.Recoverable)
	}
	for _, r := range []struct {
		column        string
		after, before time.Time
	}{{"created_at", f.CreatedAfter, f.CreatedBefore}, {"last_activity_at", f.LastEventAfter, f.LastEventBefore}, {"destroy_at", f.AutoDestroyAfter, f.AutoDestroyUntil}} {
		if !r.after.IsZero() {
			q = q.Where("? >= ?", bun.Ident("sandbox."+r.column), r.after.UTC())
		}
		if !r.before.IsZero() {
			q = q.Where("? <= ?", bun.Ident("sandbox."+r.column), r.before.UTC())
		}
	}
	return q
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// cursor is the last of a page.
type cursor struct {
	Sort  string `json:"sort"`
	Value any    `json:"sortValue"`
	ID    string `json:"id"`
}

func badCursor() error { return &daytona.Error{Kind: daytona.KindInvalid, Message: "Invalid cursor"} }

// List returns a page of the sandboxes of an organization, and the cursor of
// the next one, "" after the last.
func (s *Service) List(ctx context.Context, organizationID string, f Filter, after string) (page []*Sandbox, next string, err error) {
	if err := f.check(false); err != nil {
		return nil, "", err
	}
	column, order, than := columns[f.Sort], "DESC", "<"
	if f.Ascending {
		order, than = "ASC", ">"
	}
	page = []*Sandbox{}
	// The ids first, which an index has together with all that is asked of them;
	// and of the rows, not what no list shows.
	by := func(q *bun.SelectQuery) *bun.SelectQuery {
		return q.OrderExpr("? "+order+", sandbox.id "+order, bun.Ident("sandbox."+column))
	}
	ids := by(f.apply(s.db.In(ctx, organizationID).Select((*Sandbox)(nil)).Column("id"))).Limit(int64(f.Limit) + 1)
	if after != "" {
		c, err := readCursor(after, f.Sort)
		if err != nil {
			return nil, "", err
		}
		ids = ids.Where("(?, sandbox.id) "+than+" (?, ?)", bun.Ident("sandbox."+column), c.Value, c.ID)
	}
	q := by(s.db.In(ctx, organizationID).Select(&page)).Where("sandbox.id IN (?)", ids).
		ExcludeColumn("env", "volumes", "build", "secrets", "step", "entrypoint", "auth_token", "signing_key", "outbound_proxy")
	if err := q.Scan(ctx); err != nil {
		return nil, "", err
	}
	if len(page) > f.Limit {
		page = page[:f.Limit]
		last := page[f.Limit-1]
		c := cursor{Sort: f.Sort, ID: last.ID}
		switch f.Sort {
		case "name":
			c.Value = last.Name
		case "cpu":
			c.Value = last.CPU
		case "memoryGib":
			c.Value = last.Memory
		case "diskGib":
			c.Value = last.Disk
		case "createdAt":
			c.Value = last.CreatedAt.UTC()
		default:
			c.Value = last.LastActivityAt.UTC()
		}
		b, err := json.Marshal(c)
		if err != nil {
			return nil, "", err
		}
		next = base64.StdEncoding.EncodeToString(b)
	}
	return page, next, nil
}

func readCursor(text, sort string) (cursor, error) {
	var c cursor
	if len(text) > 4096 {
		return c, badCursor()
	}
	b, err := base64.StdEncoding.DecodeString(text)
	if err != nil || json.Unmarshal(b, &c) != nil || c.ID == "" || c.Sort != sort || strings.ContainsRune(c.ID, 0) {
		return c, badCursor()
	}
	switch v := c.Value.(type) {
	case string:
		if sort == "name" {
			if strings.ContainsRune(v, 0) {
				return c, badCursor()
			}
			return c, nil
		}
		at, err := time.Parse(time.RFC3339Nano, v)
		if err != nil || sort != "createdAt" && sort != "lastActivityAt" {
			return c, badCursor()
		}
		c.Value = at.UTC()
	case float64:
		if sort != "cpu" && sort != "memoryGib" && sort != "diskGib" || v != float64(int64(v)) {
			return c, badCursor()
		}
		c.Value = int64(v)
	default:
		return c, badCursor()
	}
	return c, nil
}

// Page returns a page of the sandboxes of an organization, from 1, and how many
// there are on all of them.
func (s *Service) Page(ctx context.Context, organizationID string, f Filter, page int) (items []*Sandbox, total int, err error) {
	if f.Sort == "" {
		f.Sort = "createdAt"
	}
	if err := f.check(true); err != nil {
		return nil, 0, err
	}
	if page < 1 || page > 1<<30 {
		return nil, 0, invalid("page %d must be at least 1", page)
	}
	order := "DESC"
	if f.Ascending {
		order = "ASC"
	}
	items = []*Sandbox{}
	n, err := f.apply(s.db.In(ctx, organizationID).Select(&items)).
		OrderExpr("? "+order+", sandbox.id "+order, bun.Ident("sandbox."+columns[f.Sort])).
		Limit(int64(f.Limit)).Offset(int64(page-1) * int64(f.Limit)).ScanAndCount(ctx)
	return items, int(n), err
}

// OfRunner returns the sandboxes of a runner in states, or in all but
// destroyed.
func (s *Service) OfRunner(ctx context.Context, runnerID string, states []State, settled bool) ([]*Sandbox, error) {
	all := []*Sandbox{}
	if runnerID == "" {
		return all, nil
	}
	for _, v := range states {
		if !slices.Contains(States(), v) {
			return nil, invalid("states: %q is no state", clip(string(v)))
		}
	}
	q := s.db.All(ctx).NewSelect().Model(&all).Where("runner_id = ? AND runner_id <> ''", runnerID).Where("state <> ?", Destroyed).Order("created_at", "id")
	if len(states) > 0 {
		q = q.Where("state IN (?)", bun.List(states))
	}
	if settled {
		q = q.Where("state = desired_state")
	}
	return all, q.Scan(ctx)
}
