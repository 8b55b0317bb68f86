//go:build linux

package lifecycle

import (
	"context"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/network/policy"
)

// PolicyOf is a network policy in the terms of those who enforce it.
func PolicyOf(p daytona.NetworkPolicy) (policy.Policy, error) {
	var allow []string
	if p.Allow != nil {
		allow = []string{} // nothing at all is not the default
	}
	for _, a := range p.Allow {
		allow = append(allow, a.String())
	}
	return policy.Parse(p.Block, allow)
}

// ChangePolicy changes a sandbox's network policy. apply puts one in force for a
// sandbox that runs; offline says that one was started without a network.
func (k *Keeper[T]) ChangePolicy(ctx context.Context, id string, p daytona.NetworkPolicy, offline func(r *Record[T]) bool,
	apply func(r *Record[T], p policy.Policy) error) (daytona.Info, error) {
	const op = "set network policy"
	if p.AllowDomains != nil {
		return daytona.Info{}, &daytona.Error{Kind: daytona.KindUnsupported, Op: op, Field: "AllowDomains", Value: p.AllowDomains,
			Message: "the " + k.name + " backend cannot filter by host name; use Allow"}
	}
	parsed, err := PolicyOf(p)
	if err != nil {
		return daytona.Info{}, &daytona.Error{Kind: daytona.KindInvalid, Op: op, Field: "Allow", Value: p.Allow, Err: err}
	}
	return k.Change(ctx, op, id, func(r *Record[T]) error {
		if r.State == daytona.StateStarted {
			switch {
			case !offline(r):
				if err := apply(r, parsed); err != nil {
					return err
				}
			case parsed.Mode != policy.None:
				return &daytona.Error{Kind: daytona.KindState, Op: op, Subject: r.Name, Field: "Block", Value: p.Block,
					Message: "a sandbox that was started without a network gets one only at its next start: stop it first"}
			}
		}
		r.Network = p
		return nil
	})
}
