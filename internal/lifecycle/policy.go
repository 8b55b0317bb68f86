//go:build linux

package lifecycle

import (
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
