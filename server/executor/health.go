package executor

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/wire"
)

// Capabilities that a runner may tell the server of.
const (
	CanPause    = "pause"
	CanFork     = "fork"
	CanSnapshot = "snapshot" // keep the files of a sandbox
	// CanBackup is to keep a stopped sandbox's files and make it again from them.
	// Without CanMove they stay on this machine: on another runner it can't be made
	// again.
	CanBackup = "backup"
	// CanMove is to put backups and snapshots into the server's object storage, and
	// to make sandboxes again from what other runners have put there.
	CanMove    = "move"
	CanResize  = "resize"
	CanNetwork = "network" // change the policy of what runs
	// CanDomains is to enforce a list of domains. No backend says of itself that
	// it can: Config.Capabilities must.
	CanDomains = "domains"
	CanVolumes = "volumes"
	CanArchive = "archive"
	CanBuild   = "build"
	CanGPU     = "gpu"
)

// capabilities are what the backend can do.
func (e *Executor) capabilities() []string {
	if e.c.Capabilities != nil {
		return e.c.Capabilities
	}
	b, list := e.c.Client.Backend(), []string{}
	if _, ok := daytona.As[daytona.Pauser](b); ok {
		list = append(list, CanPause)
	}
	if _, ok := daytona.As[daytona.Forker](b); ok {
		list = append(list, CanFork)
	}
	if _, ok := daytona.As[daytona.Snapshotter](b); ok {
		list = append(list, CanSnapshot, CanBackup)
	}
	if _, ok := daytona.As[daytona.SnapshotMover](b); ok && e.c.Move {
		list = append(list, CanMove)
	}
	if _, ok := daytona.As[daytona.Resizer](b); ok {
		list = append(list, CanResize)
	}
	if _, ok := daytona.As[daytona.NetworkPolicer](b); ok {
		list = append(list, CanNetwork)
	}
	if _, ok := daytona.As[daytona.VolumeManager](b); ok {
		list = append(list, CanVolumes)
	}
	if _, ok := daytona.As[daytona.Archiver](b); ok {
		list = append(list, CanArchive)
	}
	if _, ok := daytona.As[daytona.ImageBuilder](b); ok {
		list = append(list, CanBuild)
	}
	if e.c.Capacity.GPU > 0 {
		list = append(list, CanGPU)
	}
	return list
}

// metrics are the figures of the machine and of what runs on it.
func (e *Executor) metrics(ctx context.Context) (*wire.RunnerHealthMetrics, error) {
	m := e.usage.sample(e.c.Dir)
	for to, from := range map[*float64]float64{&m.CPU: e.c.Capacity.CPU, &m.MemoryGiB: e.c.Capacity.Memory, &m.DiskGiB: e.c.Capacity.Disk} {
		if from > 0 {
			*to = from
		}
	}
	if e.c.Capacity.GPU > 0 {
		m.GPU = new(float64(e.c.Capacity.GPU))
	}
	for sb, err := range e.c.Client.List(ctx, nil) {
		if err != nil {
			return &m, err
		}
		info := sb.Info()
		m.CurrentAllocatedDiskGiB += info.Resources.Disk
		switch info.State {
		case daytona.StateStopped, daytona.StateArchived, daytona.StateError, daytona.StateDestroyed:
			continue
		case daytona.StateStarted:
			m.CurrentStartedSandboxes++
		}
		m.CurrentAllocatedCPU += info.Resources.CPU
		m.CurrentAllocatedMemoryGiB += info.Resources.Memory
	}
	if snapshots, err := e.c.Client.Snapshots(); err == nil {
		for _, err := range snapshots.ListSnapshots(ctx) {
			if err != nil {
				return &m, err
			}
			m.CurrentSnapshotCount++
		}
	}
	for _, f := range []*float64{&m.CurrentCPULoadAverage, &m.CurrentCPUUsagePercentage, &m.CurrentMemoryUsagePercentage, &m.CurrentDiskUsagePercentage} {
		if math.IsNaN(*f) || math.IsInf(*f, 0) {
			*f = 0
		}
	}
	return &m, nil
}

// health is what the server is told.
func (e *Executor) health(ctx context.Context) *wire.RunnerHealthcheck {
	m, err := e.metrics(ctx)
	backend := wire.RunnerServiceHealth{ServiceName: e.c.Client.Backend().Name(), Healthy: err == nil}
	if err != nil {
		backend.ErrorReason = new(err.Error())
	}
	h := &wire.RunnerHealthcheck{Metrics: m, ServiceHealth: []wire.RunnerServiceHealth{backend}, AppVersion: e.c.Version, Capabilities: e.capabilities()}
	for to, from := range map[**string]string{&h.Domain: e.c.Domain, &h.APIURL: e.c.APIURL, &h.ProxyURL: e.c.ProxyURL} {
		if from != "" {
			*to = &from
		}
	}
	return h
}

// healthLoop tells the server how this runner is: often, and soon after a job
// has changed what it has left. It closes told once it has said so, or tried to, for
// the first time.
func (e *Executor) healthLoop(ctx context.Context, told chan<- struct{}) {
	tick := time.NewTicker(e.c.Health)
	defer tick.Stop()
	for failing := false; ; {
		err := e.api.health(ctx, e.health(ctx))
		if err != nil && ctx.Err() == nil && !failing {
			e.log.Warn("the server can't be told how this runner is", "err", err)
		}
		failing = err != nil
		if told != nil {
			close(told)
			told = nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		case <-e.beat:
			// Not more than one a second, or a tenth of what is usual.
			select {
			case <-time.After(min(time.Second, e.c.Health/10)):
			case <-ctx.Done():
				return
			}
		}
	}
}

// reportLoop compares what runs here with what the server thinks.
func (e *Executor) reportLoop(ctx context.Context) {
	tick := time.NewTicker(e.c.Report)
	defer tick.Stop()
	for {
		if err := e.report(ctx); err != nil && ctx.Err() == nil {
			e.log.Warn("comparing sandboxes with the server failed", "err", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// atRest reports whether nothing is to be done in a state.
func atRest(s daytona.State) bool {
	return s == daytona.StateStarted || s == daytona.StateStopped || s == daytona.StatePaused
}

// report tells the server of sandboxes that are not what it thinks, and removes
// those of ours that it does not know.
func (e *Executor) report(ctx context.Context) error {
	began := time.Now()
	listed, err := e.api.sandboxes(ctx)
	if err != nil {
		return err
	}
	here := map[string]daytona.Sandbox{}
	for sb, err := range e.c.Client.List(ctx, nil) {
		if err != nil {
			return err
		}
		if e.ours(sb.Info()) {
			here[sb.Name()] = sb
		}
	}
	wanted := map[string]bool{}
	for _, w := range listed {
		wanted[w.ID] = true
		if w.State == nil || !atRest(daytona.State(*w.State)) ||
			w.DesiredState != nil && *w.DesiredState != *w.State || e.busy(w.ID, began) {
			continue
		}
		u := wire.UpdateSandboxState{}
		if sb := here[w.ID]; sb == nil {
			u.State, u.ErrorReason = string(daytona.StateError), new("the sandbox is not on its runner any more")
		} else if info := sb.Info(); string(info.State) == *w.State {
			continue
		} else if atRest(info.State) {
			u.State = string(info.State)
		} else if info.State == daytona.StateError {
			u.State, u.ErrorReason, u.Recoverable = string(info.State), &info.Reason, new(true)
		} else {
			continue // on its way
		}
		e.log.Info("a sandbox is not what the server thinks", "sandbox", w.ID, "server", *w.State, "here", u.State)
		if err := e.api.setState(ctx, w.ID, u); err != nil {
			e.log.Warn("telling the server of a sandbox failed", "sandbox", w.ID, "err", err)
		}
	}
	return e.reap(ctx, here, wanted, began)
}

// reap deletes sandboxes of ours that the server has not known for a while. It
// does not know those that are destroyed, or archived, or that it never made:
// a row is there before any job for it.
func (e *Executor) reap(ctx context.Context, here map[string]daytona.Sandbox, wanted map[string]bool, began time.Time) error {
	var late []daytona.Sandbox
	e.mu.Lock()
	for name := range e.strangers {
		if here[name] == nil || wanted[name] {
			delete(e.strangers, name)
		}
	}
	for name, sb := range here {
		if wanted[name] {
			continue
		}
		if since, ok := e.strangers[name]; !ok {
			e.strangers[name] = began
		} else if began.Sub(since) >= e.c.Reap {
			late = append(late, sb)
		}
	}
	e.mu.Unlock()
	var all []error
	for _, sb := range late {
		if e.busy(sb.Name(), began) {
			continue
		}
		unlock, err := e.lock(ctx, sb.Name())
		if err != nil {
			return err
		}
		e.log.Warn("deleting a sandbox that the server does not know", "sandbox", sb.Name(), "created", sb.Info().CreatedAt)
		if err := sb.Delete(ctx); err != nil && !errors.Is(err, daytona.ErrNotFound) {
			all = append(all, fmt.Errorf("delete sandbox %s: %w", sb.Name(), err))
		}
		e.sandboxes.Delete(sb.Name())
		unlock()
	}
	return errors.Join(all...)
}
