package local

import (
	"context"
	"errors"

	"github.com/daytona-go/daytona/internal/network"
)

func (e *engine) placeUserspaceNetwork(r *record, policy network.Policy, l *launch, resolv func(string)) error {
	l.plan.Network = "loopback"
	resolv("")
	return nil
}

func (e *engine) applyUserspacePolicy(ctx context.Context, r *record, policy network.Policy) error {
	return errors.ErrUnsupported
}

func (e *engine) stopNet(r *record) {}

func (e *engine) diagnoseNetwork(ctx context.Context) []Finding { return nil }
