package local

import (
	"context"
	"fmt"
	"os"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/network"
	"github.com/daytona-go/daytona/internal/network/userspace"
)

// An ordinary user cannot give a sandbox a network of the kernel's. Its
// packets go to a process of their own, which lives as long as the sandbox,
// decides what may pass and opens the connections as that user.

// placeUserspaceNetwork completes the launch with such a network.
func (e *engine) placeUserspaceNetwork(ctx context.Context, r *record, policy network.Policy, l *launch) error {
	tool, err := e.netTool(ctx)
	if err != nil {
		return err
	}
	l.plan.Network = "userspace"
	l.device = func(kind string, dev, pidfd *os.File) error {
		dir, err := os.Open(e.Sandbox(r.ID))
		if err != nil {
			return err
		}
		defer dir.Close()
		cmd, err := userspace.Start(ctx, userspace.Options{
			Command: []string{tool}, Device: dev, Kind: kind, Policy: policy, Lifeline: pidfd,
			Control: fdPath(dir) + "/net.sock", Stderr: l.log,
		})
		if err != nil {
			return err
		}
		go cmd.Wait() // it ends with the sandbox
		return nil
	}
	return nil
}

// applyPolicy puts a policy in force for a running sandbox.
func (e *engine) applyPolicy(ctx context.Context, r *record, policy network.Policy) error {
	if !e.root {
		dir, err := os.Open(e.Sandbox(r.ID))
		if err != nil {
			return err
		}
		defer dir.Close()
		return userspace.SetPolicy(ctx, fdPath(dir)+"/net.sock", policy)
	}
	h, err := e.network(ctx)
	if err != nil {
		return err
	}
	ns, err := h.OpenProcess(ctx, r.Own.PID)
	if err != nil {
		return fmt.Errorf("open the sandbox's network: %w", err)
	}
	defer ns.Close()
	return ns.SetPolicy(ctx, policy)
}

// diagnoseNetwork says what networks sandboxes get here.
func (e *engine) diagnoseNetwork(ctx context.Context) []Finding {
	if !e.root {
		f := Finding{Name: "network", Status: StatusOK, Detail: "by a user-space network stack, a process for each sandbox"}
		if _, err := e.netTool(ctx); err != nil {
			f.Status, f.Detail, f.Remedy = StatusLimited, err.Error(), "until then sandboxes run only with daytona.NetworkPolicy{Block: true} (--net none)"
		}
		return []Finding{f}
	}
	if _, err := e.network(ctx); err != nil {
		return []Finding{{Name: "network", Status: StatusLimited, Detail: err.Error(),
			Remedy: "until then sandboxes run only with daytona.NetworkPolicy{Block: true} (--net none)"}}
	}
	return []Finding{{Name: "network", Status: StatusOK, Detail: "by network namespaces and a firewall table of its own (docs/network.md)"}}
}

var _ daytona.NetworkPolicer = (*engine)(nil)
