package local

import (
	"context"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/lifecycle"
	"github.com/daytona-go/daytona/internal/network"
)

// SetNetworkPolicy implements daytona.NetworkPolicer.
func (e *engine) SetNetworkPolicy(ctx context.Context, id string, p daytona.NetworkPolicy) (daytona.Info, error) {
	const op = "set network policy"
	if p.AllowDomains != nil {
		return daytona.Info{}, &daytona.Error{Kind: daytona.KindUnsupported, Op: op, Field: "AllowDomains", Value: p.AllowDomains,
			Message: "the local backend cannot filter by host name; use Allow"}
	}
	policy, err := lifecycle.PolicyOf(p)
	if err != nil {
		return daytona.Info{}, &daytona.Error{Kind: daytona.KindInvalid, Op: op, Field: "Allow", Value: p.Allow, Err: err}
	}
	return e.Change(ctx, op, id, func(r *record) error {
		if r.State == daytona.StateStarted {
			if r.Own.Offline && policy.Mode != network.None {
				return &daytona.Error{Kind: daytona.KindState, Op: op, Subject: r.Name, Field: "Block", Value: p.Block,
					Message: "a sandbox that was started without a network gets one only at its next start: stop it first"}
			}
			if !r.Own.Offline {
				if err := e.applyPolicy(ctx, r, policy); err != nil {
					return err
				}
			}
		}
		r.Network = p
		return nil
	})
}
