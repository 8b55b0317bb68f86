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
	"github.com/daytona-go/daytona/internal/failpoint"
	"github.com/daytona-go/daytona/internal/lifecycle"
)

// Resize implements daytona.Resizer. The engine keeps the limits with the
// container, so that they hold after its next start as well.
func (b *backend) Resize(ctx context.Context, id string, want daytona.Resources) (daytona.Info, error) {
	if want.Disk != 0 {
		return daytona.Info{}, &daytona.Error{Kind: daytona.KindUnsupported, Op: lifecycle.ResizeOp, Field: "Resources.Disk", Value: want.Disk,
			Message: "the engine gives a container its disk limit when it makes it, and cannot change it"}
	}
	if err := want.Validate(lifecycle.ResizeOp); err != nil {
		return daytona.Info{}, err
	}
	if err := b.admitResources(lifecycle.ResizeOp, want); err != nil {
		return daytona.Info{}, err
	}
	return b.ChangeResources(ctx, id, want, func(r *record, before daytona.Resources) error {
		uncut, cancel := uncut(ctx)
		defer cancel()
		if err := b.fits(uncut, r, before); err != nil {
			return b.explain(lifecycle.ResizeOp, r.Name, err)
		}
		failpoint.Kill("docker/resize/intended")
		_, err := b.api.ContainerUpdate(uncut, b.containerName(r.ID), client.ContainerUpdateOptions{Resources: limitsOf(r.Resources)})
		switch {
		case errdefs.IsNotFound(err): // it was restored: the next start makes it with them
			return nil
		case err != nil && r.Resources.Memory != before.Memory && strings.Contains(err.Error(), "device or resource busy"):
			// The kernel does not set a limit that more than is in use.
			return tooMuchInUse(r.Name, r.Resources.Memory, err)
		}
		return b.explain(lifecycle.ResizeOp, r.Name, err)
	})
}

func tooMuchInUse(name string, memory float64, err error) error {
	return &daytona.Error{Kind: daytona.KindConflict, Op: lifecycle.ResizeOp, Subject: name, Field: "Resources.Memory", Value: memory,
		Message: "more is in use: end some programs first", Err: err}
}

// fits refuses less memory than is in use: with control groups of the second
// version the kernel would take the limit and kill programs until it holds.
func (b *backend) fits(ctx context.Context, r *record, before daytona.Resources) error {
	want := r.Resources.MemoryBytes()
	if r.Was != daytona.StateStarted || want == 0 || before.Memory != 0 && r.Resources.Memory >= before.Memory {
		return nil
	}
	use, err := b.memoryUse(ctx, r)
	if err == nil && use > want {
		err = tooMuchInUse(r.Name, r.Resources.Memory, nil)
	}
	return err
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
