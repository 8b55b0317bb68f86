package sandbox

import "context"

// Count is how many sandboxes of a region are in a state.
type Count struct {
	RegionID string
	State    State
	N        int
}

// Count counts the sandboxes that there are, of all organizations, for metrics.
func (s *Service) Count(ctx context.Context) ([]Count, error) {
	var counts []Count
	// An index has both columns: the rows, which are large, are not read.
	err := s.db.All(ctx).NewSelect().Model((*Sandbox)(nil)).Column("region_id", "state").ColumnExpr("count(*) AS n").
		Where("state <> ?", Destroyed).Group("region_id", "state").Scan(ctx, &counts)
	return counts, err
}
