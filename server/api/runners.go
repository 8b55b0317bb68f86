package api

import (
	"context"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/wire"
	"github.com/daytona-go/daytona/server/identity"
	"github.com/daytona-go/daytona/server/runner"
)

// RunnerContents knows what is on runners.
type RunnerContents interface {
	// SandboxRunner returns the runner of a sandbox; KindNotFound if it has none.
	SandboxRunner(ctx context.Context, sandboxID string) (runnerID string, err error)
	// SnapshotRunners returns the runners that have a snapshot's reference.
	SnapshotRunners(ctx context.Context, ref string) (runnerIDs []string, err error)
	// RunnerSnapshots returns the references that a runner has.
	RunnerSnapshots(ctx context.Context, runnerID string) (refs []string, err error)
}

// RegisterRunners serves the runners: to organizations their own, to
// administrators all, to each runner itself.
func RegisterRunners(a *API, s *runner.Service, contents RunnerContents) {
	type one struct {
		ID string `path:"id"`
	}
	type inRegion struct {
		RegionID string `query:"regionId"`
	}
	type gone struct {
		ID    string `path:"id"`
		Force bool   `query:"force" doc:"Delete it although it has sandboxes, which are lost, or gets new ones"`
	}
	type scheduling struct {
		ID   string `path:"id"`
		Body struct {
			Unschedulable bool `json:"unschedulable" required:"true"`
		}
	}
	// own finds a runner of the organization that asks.
	own := func(ctx context.Context, id string) error {
		_, err := s.Get(ctx, identity.From(ctx).OrganizationID, id)
		return err
	}
	public := func(r runner.Runner, err error) (*wire.Runner, error) {
		if err != nil {
			return nil, err
		}
		return new(wireRunner(&r)), nil
	}
	full := func(ctx context.Context, r runner.Runner, err error) (*wire.RunnerFull, error) {
		if err != nil {
			return nil, err
		}
		return fullRunner(ctx, s, &r, true)
	}

	Handle(a, "createRunner", func(ctx context.Context, in *struct{ Body wire.CreateRunner }) (*wire.CreateRunnerResponse, error) {
		r, key, err := s.Create(ctx, identity.From(ctx).OrganizationID, runner.New{RegionID: in.Body.RegionID, Name: in.Body.Name, Tags: in.Body.Tags})
		if err != nil {
			return nil, err
		}
		Note(ctx, r.ID, map[string]any{"name": r.Name, "regionId": r.RegionID})
		return &wire.CreateRunnerResponse{ID: r.ID, APIKey: key}, nil
	})
	Handle(a, "listRunners", func(ctx context.Context, in *inRegion) ([]wire.Runner, error) {
		list, err := s.List(ctx, identity.From(ctx).OrganizationID, in.RegionID)
		out := make([]wire.Runner, len(list))
		for i := range list {
			out[i] = wireRunner(&list[i])
		}
		return out, err
	})
	Handle(a, "getRunnerById", func(ctx context.Context, in *one) (*wire.Runner, error) {
		return public(s.Get(ctx, identity.From(ctx).OrganizationID, in.ID))
	})
	Handle(a, "deleteRunner", func(ctx context.Context, in *gone) (None, error) {
		if err := own(ctx, in.ID); err != nil {
			return None{}, err
		}
		Note(ctx, in.ID, map[string]any{"force": in.Force})
		return None{}, s.Delete(ctx, in.ID, in.Force)
	})
	Handle(a, "updateRunnerScheduling", func(ctx context.Context, in *scheduling) (*wire.Runner, error) {
		if err := own(ctx, in.ID); err != nil {
			return nil, err
		}
		Note(ctx, in.ID, map[string]any{"unschedulable": in.Body.Unschedulable})
		return public(s.Schedule(ctx, in.ID, in.Body.Unschedulable))
	})
	Handle(a, "updateRunnerDraining", func(ctx context.Context, in *struct {
		ID   string `path:"id"`
		Body struct {
			Draining bool `json:"draining" required:"true"`
		}
	}) (*wire.Runner, error) {
		if err := own(ctx, in.ID); err != nil {
			return nil, err
		}
		Note(ctx, in.ID, map[string]any{"draining": in.Body.Draining})
		return public(s.SetDraining(ctx, in.ID, in.Body.Draining))
	})

	// For the services of the system.
	Handle(a, "getInfoForAuthenticatedRunner", func(ctx context.Context, _ *struct{}) (*wire.RunnerFull, error) {
		r, err := s.Runner(ctx, identity.From(ctx).RunnerID)
		return full(ctx, r, err)
	})
	Handle(a, "getSnapshotRefsForAuthenticatedRunner", func(ctx context.Context, _ *struct{}) ([]string, error) {
		refs, err := contents.RunnerSnapshots(ctx, identity.From(ctx).RunnerID)
		return append([]string{}, refs...), err
	})
	// ofRegion hides from a region's own proxy and gateway what is elsewhere.
	ofRegion := func(ctx context.Context, id string) (runner.Runner, error) {
		r, err := s.Runner(ctx, id)
		p := identity.From(ctx)
		if err == nil && p.Kind&(identity.RegionProxy|identity.RegionSSHGateway) != 0 && p.RegionID != r.RegionID {
			return runner.Runner{}, &daytona.Error{Kind: daytona.KindNotFound, Message: "Runner not found"}
		}
		return r, err
	}
	Handle(a, "getRunnerFullById", func(ctx context.Context, in *one) (*wire.RunnerFull, error) {
		r, err := ofRegion(ctx, in.ID)
		return full(ctx, r, err)
	})
	Handle(a, "getRunnerBySandboxId", func(ctx context.Context, in *struct {
		ID string `path:"sandboxId"`
	}) (*wire.RunnerFull, error) {
		id, err := contents.SandboxRunner(ctx, in.ID)
		if err != nil {
			return nil, err
		}
		r, err := ofRegion(ctx, id)
		return full(ctx, r, err)
	})
	Handle(a, "getRunnersBySnapshotRef", func(ctx context.Context, in *struct {
		Ref string `query:"ref" required:"true"`
	}) ([]wire.RunnerSnapshot, error) {
		ids, err := contents.SnapshotRunners(ctx, in.Ref)
		if err != nil {
			return nil, err
		}
		out := []wire.RunnerSnapshot{}
		for _, id := range ids {
			r, err := ofRegion(ctx, id)
			if daytona.KindOf(err) == daytona.KindNotFound {
				continue
			} else if err != nil {
				return nil, err
			}
			out = append(out, wire.RunnerSnapshot{RunnerSnapshotID: r.ID + "/" + in.Ref, RunnerID: r.ID, RunnerDomain: runnerText(r.Domain)})
		}
		return out, nil
	})
	Handle(a, "runnerHealthcheck", func(ctx context.Context, in *struct{ Body wire.RunnerHealthcheck }) (None, error) {
		_, err := s.Report(ctx, identity.From(ctx).RunnerID, reportOf(&in.Body))
		return None{}, err
	})

	// For administrators.
	Handle(a, "adminCreateRunner", func(ctx context.Context, in *struct{ Body wire.AdminCreateRunner }) (*wire.CreateRunnerResponse, error) {
		b := &in.Body
		r, key, err := s.AdminCreate(ctx, runner.New{
			RegionID: b.RegionID, Name: b.Name, Tags: b.Tags, Key: b.APIKey, APIVersion: b.APIVersion, Domain: runnerValue(b.Domain), APIURL: runnerValue(b.APIURL),
			ProxyURL: runnerValue(b.ProxyURL), CPU: runnerValue(b.CPU), Memory: runnerValue(b.MemoryGiB), Disk: runnerValue(b.DiskGiB),
		})
		if err != nil {
			return nil, err
		}
		Note(ctx, r.ID, map[string]any{"name": r.Name, "regionId": r.RegionID})
		return &wire.CreateRunnerResponse{ID: r.ID, APIKey: key}, nil
	})
	Handle(a, "adminListRunners", func(ctx context.Context, in *inRegion) ([]wire.RunnerFull, error) {
		list, err := s.All(ctx, in.RegionID)
		if err != nil {
			return nil, err
		}
		out := make([]wire.RunnerFull, len(list))
		for i := range list {
			r, err := fullRunner(ctx, s, &list[i], false)
			if err != nil {
				return nil, err
			}
			out[i] = *r
		}
		return out, nil
	})
	Handle(a, "adminGetRunnerById", func(ctx context.Context, in *one) (*wire.RunnerFull, error) {
		r, err := s.Runner(ctx, in.ID)
		if err != nil {
			return nil, err
		}
		return fullRunner(ctx, s, &r, false)
	})
	Handle(a, "adminDeleteRunner", func(ctx context.Context, in *gone) (None, error) {
		Note(ctx, in.ID, map[string]any{"force": in.Force})
		return None{}, s.Delete(ctx, in.ID, in.Force)
	})
	Handle(a, "adminUpdateRunnerScheduling", func(ctx context.Context, in *scheduling) (None, error) {
		Note(ctx, in.ID, map[string]any{"unschedulable": in.Body.Unschedulable})
		_, err := s.Schedule(ctx, in.ID, in.Body.Unschedulable)
		return None{}, err
	})
}

func runnerValue[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// runnerText is s, or nothing for "".
func runnerText(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func reportOf(b *wire.RunnerHealthcheck) runner.Report {
	h := runner.Report{Domain: b.Domain, APIURL: b.APIURL, ProxyURL: b.ProxyURL, AppVersion: b.AppVersion, Capabilities: b.Capabilities}
	for _, service := range b.ServiceHealth {
		h.Services = append(h.Services, runner.Health{Service: service.ServiceName, Healthy: service.Healthy, Reason: runnerValue(service.ErrorReason)})
	}
	if m := b.Metrics; m != nil {
		h.CPU, h.Memory, h.Disk, h.GPU, h.GPUType = m.CPU, m.MemoryGiB, m.DiskGiB, runnerValue(m.GPU), runnerValue(m.GPUType)
		h.Use = &runner.Use{
			LoadAverage: m.CurrentCPULoadAverage, CPUPercent: m.CurrentCPUUsagePercentage, MemoryPercent: m.CurrentMemoryUsagePercentage,
			DiskPercent: m.CurrentDiskUsagePercentage, AllocatedCPU: m.CurrentAllocatedCPU, AllocatedMemory: m.CurrentAllocatedMemoryGiB,
			AllocatedDisk: m.CurrentAllocatedDiskGiB, Snapshots: m.CurrentSnapshotCount, Started: m.CurrentStartedSandboxes,
		}
	}
	return h
}

func wireRunner(r *runner.Runner) wire.Runner {
	w := wire.Runner{
		ID: r.ID, Domain: runnerText(r.Domain), APIURL: runnerText(r.APIURL), ProxyURL: runnerText(r.ProxyURL), CPU: r.CPU, Memory: r.Memory, Disk: r.Disk,
		SandboxClass: runnerText(r.Class), AvailabilityScore: new(float64(r.Score)), Region: r.RegionID, Name: r.Name, State: string(r.State),
		LastChecked: wire.StampOf(r.CheckedAt), Unschedulable: r.Unschedulable, Tags: append([]string{}, r.Tags...),
		CreatedAt: wire.Stamp(r.CreatedAt), UpdatedAt: wire.Stamp(r.UpdatedAt), Version: r.APIVersion, APIVersion: r.APIVersion,
		RunnerClass: wire.RunnerClassContainer, AppVersion: runnerText(r.AppVersion), Class: runnerText(r.Class),
	}
	if r.GPU > 0 {
		w.GPU, w.GPUType = &r.GPU, runnerText(r.GPUType)
	}
	if r.MeasuredAt != nil {
		u := r.Used
		w.CurrentCPUUsagePercentage, w.CurrentMemoryUsagePercentage, w.CurrentDiskUsagePercentage = &u.CPUPercent, &u.MemoryPercent, &u.DiskPercent
		w.CurrentAllocatedCPU, w.CurrentAllocatedMemoryGiB, w.CurrentAllocatedDiskGiB = &u.AllocatedCPU, &u.AllocatedMemory, &u.AllocatedDisk
		w.CurrentSnapshotCount, w.CurrentStartedSandboxes = &u.Snapshots, &u.Started
	}
	return w
}

// fullRunner adds what only services see. The key is that of the runner's own
// HTTP surface: the runner's key itself the server does not have. An
// administrator, who is shown no keys, gets "".
func fullRunner(ctx context.Context, s *runner.Service, r *runner.Runner, withKey bool) (*wire.RunnerFull, error) {
	w := wireRunner(r)
	f := &wire.RunnerFull{
		ID: w.ID, Domain: w.Domain, APIURL: w.APIURL, ProxyURL: w.ProxyURL, CPU: w.CPU, Memory: w.Memory, Disk: w.Disk, GPU: w.GPU, GPUType: w.GPUType,
		SandboxClass: w.SandboxClass, CurrentCPUUsagePercentage: w.CurrentCPUUsagePercentage, CurrentMemoryUsagePercentage: w.CurrentMemoryUsagePercentage,
		CurrentDiskUsagePercentage: w.CurrentDiskUsagePercentage, CurrentAllocatedCPU: w.CurrentAllocatedCPU,
		CurrentAllocatedMemoryGiB: w.CurrentAllocatedMemoryGiB, CurrentAllocatedDiskGiB: w.CurrentAllocatedDiskGiB,
		CurrentSnapshotCount: w.CurrentSnapshotCount, CurrentStartedSandboxes: w.CurrentStartedSandboxes, AvailabilityScore: w.AvailabilityScore,
		Region: w.Region, Name: w.Name, State: w.State, LastChecked: w.LastChecked, Unschedulable: w.Unschedulable, Tags: w.Tags,
		CreatedAt: w.CreatedAt, UpdatedAt: w.UpdatedAt, Version: w.Version, APIVersion: w.APIVersion, RunnerClass: w.RunnerClass,
		AppVersion: w.AppVersion, Class: w.Class, RegionType: runnerText(s.RegionType(ctx, r.RegionID)),
	}
	if !withKey {
		return f, nil
	}
	key, err := s.Access(r)
	f.APIKey = key
	return f, err
}
