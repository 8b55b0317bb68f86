//go:build linux

package docker

import (
	"context"
	"encoding/json"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"github.com/daytona-go/daytona"
)

const resizeOp = "resize sandbox"

// Resize implements daytona.Resizer. The engine keeps the limits with the
// container, so that they hold after its next start as well.
func (b *backend) Resize(ctx context.Context, id string, want daytona.Resources) (daytona.Info, error) {
	if err := want.Validate(resizeOp); err != nil {
		return daytona.Info{}, err
	}
	if want.Disk != 0 {
		return daytona.Info{}, &daytona.Error{Kind: daytona.KindUnsupported, Op: resizeOp, Field: "Resources.Disk", Value: want.Disk,
			Message: "the engine gives a container its disk limit when it makes it, and cannot change it"}
	}
	if err := b.admitResources(resizeOp, want); err != nil {
		return daytona.Info{}, err
	}
	return b.Change(ctx, resizeOp, id, func(r *record) error {
		switch r.State {
		case daytona.StateStarted, daytona.StateStopped:
		default:
			return &daytona.Error{Kind: daytona.KindState, Op: resizeOp, Subject: r.Name, Message: "it is " + string(r.State) + "; it must be started or stopped"}
		}
		limits, err := b.limitsOf(ctx, r, want)
		if err != nil {
			return b.explain(resizeOp, r.Name, err)
		}
		uncut, cancel := uncut(ctx)
		defer cancel()
		if _, err := b.api.ContainerUpdate(uncut, b.containerName(r.ID), client.ContainerUpdateOptions{Resources: limits}); err != nil {
			// The kernel does not set a limit that more than is in use.
			if want.Memory != 0 && (errdefs.IsConflict(err) || strings.Contains(err.Error(), "device or resource busy")) {
				return tooMuchInUse(r.Name, want.Memory, err)
			}
			return b.explain(resizeOp, r.Name, err)
		}
		r.Resources = merged(r.Resources, want)
		return nil
	})
}

func tooMuchInUse(name string, memory float64, err error) error {
	return &daytona.Error{Kind: daytona.KindConflict, Op: resizeOp, Subject: name, Field: "Resources.Memory", Value: memory,
		Message: "more is in use: end some programs first", Err: err}
}

// limitsOf is what the engine is told to change.
func (b *backend) limitsOf(ctx context.Context, r *record, want daytona.Resources) (*container.Resources, error) {
	limits := &container.Resources{NanoCPUs: int64(want.CPU * 1e9)}
	if want.Processes != 0 {
		limits.PidsLimit = new(int64(want.Processes))
	}
	m := want.MemoryBytes()
	if m == 0 {
		return limits, nil
	}
	limits.Memory, limits.MemorySwap = m, m
	if r.State != daytona.StateStarted || r.Resources.Memory != 0 && want.Memory >= r.Resources.Memory {
		return limits, nil
	}
	// With control groups of the second version the kernel would take the limit
	// and kill programs until it holds.
	use, err := b.memoryUse(ctx, r)
	if err == nil && use > m {
		err = tooMuchInUse(r.Name, want.Memory, nil)
	}
	return limits, err
}

// memoryUse is what a sandbox's programs have, in bytes, without what the kernel
// can drop.
func (b *backend) memoryUse(ctx context.Context, r *record) (int64, error) {
	got, err := b.api.ContainerStats(ctx, b.containerName(r.ID), client.ContainerStatsOptions{})
	if err != nil {
		return 0, err
	}
	defer got.Body.Close()
	var s container.StatsResponse
	if err := json.NewDecoder(got.Body).Decode(&s); err != nil {
		return 0, err
	}
	// The first name is that of version 1, whose own "inactive_file" leaves out
	// what groups below have.
	use := s.MemoryStats.Usage
	for _, k := range []string{"total_inactive_file", "inactive_file"} {
		if cache, ok := s.MemoryStats.Stats[k]; ok {
			return int64(use - min(use, cache)), nil
		}
	}
	return int64(use), nil
}

// merged is what resources are after a change: zero fields keep what is.
func merged(now, want daytona.Resources) daytona.Resources {
	if want.CPU != 0 {
		now.CPU = want.CPU
	}
	if want.Memory != 0 {
		now.Memory = want.Memory
	}
	if want.Disk != 0 {
		now.Disk = want.Disk
	}
	if want.Processes != 0 {
		now.Processes = want.Processes
	}
	return now
}
