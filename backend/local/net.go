package local

import (
	"context"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/network"
)

// SetNetworkPolicy implements daytona.NetworkPolicer.
func (e *engine) SetNetworkPolicy(ctx context.Context, id string, p daytona.NetworkPolicy) (daytona.Info, error) {
	return e.ChangePolicy(ctx, id, p, func(r *record) bool { return r.Own.Offline },
		func(r *record, p network.Policy) error { return e.applyPolicy(ctx, r, p) })
}
