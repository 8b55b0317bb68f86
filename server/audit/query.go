package audit

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/uptrace/bun"

	"github.com/daytona-go/daytona"
)

// Limits of a query.
const (
	DefaultLimit = 100
	MaxLimit     = 200
	maxValues    = 100
	maxPage      = 100000
)

// Fields that can be filtered by, with their columns.
var columns = map[string]string{
	"id": "id", "actorId": "actor_id", "actorEmail": "actor_email", "actorApiKeyPrefix": "key_prefix", "actorApiKeySuffix": "key_suffix",
	"action": "action", "targetType": "target_type", "targetId": "target_id", "statusCode": "status_code", "createdAt": "created_at",
}

// Filter is one condition: field op value.
type Filter struct {
	// Field is one of id, actorId, actorEmail, actorApiKeyPrefix,
	// actorApiKeySuffix, action, targetType, targetId, statusCode, createdAt.
	Field string
	// Op is one of eq, not, in and notIn; for statusCode and createdAt also gte,
	// lte, gt, lt, which are all there are for createdAt.
	Op string
	// Values is one, or for in and notIn at most 100: strings, ints for
	// statusCode, times for createdAt.
	Values []any
}

// Query says which entries to return, newest first.
type Query struct {
	// OrganizationID is "" for all organizations, which is for administrators.
	OrganizationID string
	Everything     bool
	From, To       time.Time // zero is no limit; From is inclusive, To too
	Filters        []Filter
	Page, Limit    int // default to 1 and 100
}

func invalid(format string, args ...any) error {
	return &daytona.Error{Kind: daytona.KindInvalid, Message: fmt.Sprintf(format, args...)}
}

// operators are those of a field.
func operators(field string) []string {
	switch field {
	case "statusCode":
		return []string{"eq", "not", "in", "notIn", "gte", "lte", "gt", "lt"}
	case "createdAt":
		return []string{"gte", "lte", "gt", "lt"}
	}
	return []string{"eq", "not", "in", "notIn"}
}

// Find returns the entries that a query is about and how many there are on all
// pages.
func (s *Service) Find(ctx context.Context, q Query) ([]Entry, int, error) {
	if q.Page == 0 {
		q.Page = 1
	}
	if q.Limit == 0 {
		q.Limit = DefaultLimit
	}
	if q.Page < 1 || q.Page > maxPage {
		return nil, 0, invalid("page must be between 1 and %d", maxPage)
	}
	if q.Limit < 1 || q.Limit > MaxLimit {
		return nil, 0, invalid("limit must be between 1 and %d", MaxLimit)
	}
	all := []Entry{}
	var sel *bun.SelectQuery
	if q.Everything {
		// An administrator's question.
		sel = s.db.All(ctx).NewSelect().Model(&all)
		if q.OrganizationID != "" {
			sel = sel.Where("organization_id = ?", q.OrganizationID)
		}
	} else {
		sel = s.db.In(ctx, q.OrganizationID).Select(&all)
	}
	if !q.From.IsZero() {
		sel = sel.Where("created_at >= ?", q.From.UTC())
	}
	if !q.To.IsZero() {
		sel = sel.Where("created_at <= ?", q.To.UTC())
	}
	for _, f := range q.Filters {
		column := columns[f.Field]
		if column == "" {
			return nil, 0, invalid("%s can't be filtered by", f.Field)
		}
		if !slices.Contains(operators(f.Field), f.Op) {
			return nil, 0, invalid("%s can be filtered by %s, not by %s", f.Field, strings.Join(operators(f.Field), ", "), f.Op)
		}
		if n := len(f.Values); n == 0 || n > maxValues || n > 1 && f.Op != "in" && f.Op != "notIn" {
			return nil, 0, invalid("%s[%s] must have one value, or at most %d for in and notIn", f.Field, f.Op, maxValues)
		}
		switch f.Op {
		case "in":
			sel = sel.Where("? IN (?)", bun.Ident(column), bun.List(f.Values))
		case "notIn":
			sel = sel.Where("? NOT IN (?)", bun.Ident(column), bun.List(f.Values))
		default:
			op := map[string]string{"eq": "=", "not": "<>", "gte": ">=", "lte": "<=", "gt": ">", "lt": "<"}[f.Op]
			sel = sel.Where("? "+op+" ?", bun.Ident(column), f.Values[0])
		}
	}
	n, err := sel.OrderExpr("created_at DESC, id DESC").Limit(int64(q.Limit)).Offset(int64((q.Page - 1) * q.Limit)).ScanAndCount(ctx)
	return all, int(n), err
}
