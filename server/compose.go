package server

import (
	"context"
	"errors"
	"io"
	"net/url"
	"slices"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/wire"
	"github.com/daytona-go/daytona/server/api"
	"github.com/daytona-go/daytona/server/executor"
	"github.com/daytona-go/daytona/server/job"
	"github.com/daytona-go/daytona/server/proxy"
	"github.com/daytona-go/daytona/server/quota"
	"github.com/daytona-go/daytona/server/runner"
	"github.com/daytona-go/daytona/server/sandbox"
	"github.com/daytona-go/daytona/server/secret"
	"github.com/daytona-go/daytona/server/snapshot"
	"github.com/daytona-go/daytona/server/sshgateway"
	"github.com/daytona-go/daytona/server/telemetry"
	"github.com/daytona-go/daytona/server/volume"
)

// Each of these types is one feature as another wants to see it: the features
// declare what they need and know nothing of who has it. Some hold the Server,
// because some features need each other.

type lazyUsers struct{ s *Server }

func (l lazyUsers) Info(ctx context.Context, id string) (email, name string, verified bool, err error) {
	return l.s.users.Info(ctx, id)
}

type lazyRunners struct{ s *Server }

func (l lazyRunners) RunnerByKey(ctx context.Context, key string) (runnerID, regionID string, err error) {
	return l.s.runners.RunnerByKey(ctx, key)
}

func (l lazyRunners) InRegion(ctx context.Context, regionID string) (int, error) {
	return l.s.runners.InRegion(ctx, regionID)
}

type lazySandboxes struct{ s *Server }

func (l lazySandboxes) OnRunner(ctx context.Context, runnerID string) (int, error) {
	return l.s.sandboxes.OnRunner(ctx, runnerID)
}

func (l lazySandboxes) Drain(ctx context.Context, runnerID string) error {
	return l.s.sandboxes.Drain(ctx, runnerID)
}

func (l lazySandboxes) Lost(ctx context.Context, runnerID string) error {
	return errors.Join(l.s.sandboxes.Lost(ctx, runnerID), l.s.snapshots.Forget(ctx, runnerID), l.s.jobs.Abandon(ctx, runnerID, "the runner was deleted"))
}

type runnerRegions struct{ s *Server }

func (r runnerRegions) RunnerRegion(ctx context.Context, id string) (runner.Region, error) {
	v, err := r.s.regions.Get(ctx, id)
	if err != nil {
		return runner.Region{}, err
	}
	return runner.Region{ID: v.ID, OrganizationID: v.OrganizationID, Type: v.Type}, nil
}

// runnerContents knows what is on runners.
type runnerContents struct{ s *Server }

func (r runnerContents) SandboxRunner(ctx context.Context, sandboxID string) (string, error) {
	l, err := r.s.sandboxes.Locate(ctx, sandboxID)
	return l.RunnerID, err
}

func (r runnerContents) SnapshotRunners(ctx context.Context, ref string) ([]string, error) {
	return r.s.snapshots.Ready(ctx, ref)
}

func (r runnerContents) RunnerSnapshots(ctx context.Context, runnerID string) ([]string, error) {
	copies, err := r.s.snapshots.Refs(ctx, runnerID)
	refs := make([]string, len(copies))
	for i, c := range copies {
		refs[i] = c.Ref
	}
	return refs, err
}

type personalQuota struct{ s *Server }

func (p personalQuota) Together(ctx context.Context, f func(ctx context.Context) error) error {
	return p.s.organizations.Together(ctx, f)
}

// SetPersonalQuota sets the limits of an organization, and its totals in its
// default region.
func (p personalQuota) SetPersonalQuota(ctx context.Context, organizationID string, q wire.CreateOrganizationQuota) error {
	totals := []*float64{q.TotalCPUQuota, q.TotalMemoryQuota, q.TotalDiskQuota, q.TotalGPUQuota}
	if slices.ContainsFunc(totals, func(v *float64) bool { return v != nil }) {
		region, err := p.s.organizations.DefaultRegion(ctx, organizationID)
		if err != nil {
			return err
		}
		if err := p.s.quotas.Prepare(ctx, organizationID, region); err != nil {
			return err
		}
		err = p.s.quotas.UpdateRegionQuota(ctx, organizationID, region, p.s.quotas.DefaultClass(), func(r *quota.Region) {
			for i, to := range []*float64{&r.CPU, &r.Memory, &r.Disk, &r.GPU} {
				if totals[i] != nil {
					*to = *totals[i]
				}
			}
		})
		if err != nil {
			return err
		}
	}
	return p.s.quotas.SetLimits(ctx, organizationID, func(l *quota.Limits) {
		for _, f := range []struct{ from, to *float64 }{
			{q.MaxCPUPerSandbox, &l.MaxCPU}, {q.MaxMemoryPerSandbox, &l.MaxMemory}, {q.MaxDiskPerSandbox, &l.MaxDisk}, {q.MaxSnapshotSize, &l.MaxSnapshotSize},
		} {
			if f.from != nil {
				*f.to = *f.from
			}
		}
		for _, f := range []struct {
			from *float64
			to   *int
		}{{q.SnapshotQuota, &l.Snapshots}, {q.VolumeQuota, &l.Volumes}, {q.MaxConcurrentSnapshotProcessing, &l.SnapshotsProcessing}} {
			if f.from != nil {
				*f.to = int(*f.from)
			}
		}
	})
}

// Jobs.

// enqueue makes a job one of the trace that has led to it.
func (s *Server) enqueue(ctx context.Context, n job.New) (_ string, err error) {
	ctx, end := s.tracer.Start(ctx, "enqueue "+n.Type, trace.SpanKindProducer,
		attribute.String("daytona.resource.type", n.ResourceType), attribute.String("daytona.resource.id", n.ResourceID), attribute.String("daytona.runner.id", n.RunnerID))
	defer func() { end(err) }()
	n.Trace = s.tracer.Headers(ctx)
	j, err := s.jobs.Enqueue(ctx, n)
	return j.ID, err
}

type sandboxJobs struct{ s *Server }

func (j sandboxJobs) Enqueue(ctx context.Context, v sandbox.Job) (string, error) {
	return j.s.enqueue(ctx, job.New{Type: v.Type, RunnerID: v.RunnerID, ResourceType: v.ResourceType, ResourceID: v.ResourceID, Payload: v.Payload})
}

func (s *Server) sandboxJobDone(ctx context.Context, j job.Job) error {
	return s.sandboxes.JobDone(ctx, sandbox.Job{
		ID: j.ID, Type: j.Type, RunnerID: j.RunnerID, ResourceType: j.ResourceType, ResourceID: j.ResourceID,
		Done: j.Ended(), Failed: j.Status == job.Failed, Error: j.Error, Result: j.Result,
	})
}

type snapshotJobs struct{ s *Server }

func (j snapshotJobs) Enqueue(ctx context.Context, v snapshot.Job) (string, error) {
	return j.s.enqueue(ctx, job.New{Type: v.Type, RunnerID: v.RunnerID, ResourceType: "SNAPSHOT", ResourceID: v.Ref, Payload: v.Payload})
}

func (s *Server) snapshotJobDone(ctx context.Context, j job.Job) error {
	reason := ""
	if j.Status == job.Failed {
		if reason, _ = j.Failure(); reason == "" {
			reason = "the job failed"
		}
	}
	return s.snapshots.Done(ctx, snapshot.Result{JobID: j.ID, Type: j.Type, RunnerID: j.RunnerID, Ref: j.ResourceID, Error: reason, Metadata: j.Result})
}

// Runners, as sandboxes and snapshots see them.

type sandboxRunners struct{ *runner.Service }

func (r sandboxRunners) Place(ctx context.Context, p sandbox.Placement) (sandbox.Placed, error) {
	needs := make([]string, len(p.Needs))
	for i, n := range p.Needs {
		needs[i] = string(n)
	}
	v, err := r.Service.Place(ctx, runner.Want{
		Key: p.Key, RegionID: p.RegionID, Class: p.Class, GPUTypes: p.GPUTypes, Needs: needs, Only: p.Only, Not: p.Not, Prefer: p.Prefer,
		Resources: daytona.Resources{CPU: float64(p.Resources.CPU), Memory: float64(p.Resources.Memory), Disk: float64(p.Resources.Disk), GPU: p.Resources.GPU},
	})
	return sandbox.Placed{RunnerID: v.RunnerID, GPUType: v.GPUType}, err
}

func (r sandboxRunners) Runner(ctx context.Context, id string) (sandbox.Runner, error) {
	v, err := r.Service.Runner(ctx, id)
	if err != nil {
		return sandbox.Runner{}, err
	}
	out := sandbox.Runner{ID: v.ID, RegionID: v.RegionID, Usable: v.Usable(), Draining: v.Draining}
	if v.CheckedAt != nil {
		out.SeenAt = *v.CheckedAt
	}
	for _, c := range v.Capabilities {
		out.Capabilities = append(out.Capabilities, sandbox.Capability(c))
	}
	return out, nil
}

type snapshotRunners struct{ s *Server }

func (r snapshotRunners) Pick(ctx context.Context, region, class string) (string, error) {
	return r.s.runners.Pick(ctx, region, class)
}

func (r snapshotRunners) Usable(ctx context.Context, ids []string) ([]string, error) {
	return r.s.runners.Usable(ctx, ids)
}

func (r snapshotRunners) Logs(ctx context.Context, runnerID, ref string, follow bool) (io.ReadCloser, error) {
	place, err := r.s.place(ctx, runnerID)
	if err != nil {
		return nil, err
	}
	return r.s.dialer.Logs(ctx, place, ref, follow)
}

// place is where a runner is.
func (s *Server) place(ctx context.Context, runnerID string) (executor.Place, error) {
	if s.executor != nil && s.executor.ID() == runnerID {
		return executor.Place{RunnerID: runnerID}, nil
	}
	r, err := s.runners.Runner(ctx, runnerID)
	if err != nil {
		return executor.Place{}, err
	}
	key, err := s.runners.Access(&r)
	if err != nil {
		return executor.Place{}, err
	}
	p := executor.Place{RunnerID: runnerID, URL: r.ProxyURL, Key: key}
	if r.OrganizationID != "" {
		// An organization's own runner is where its members say.
		p.Dial = s.outbound.Dial
	}
	return p, nil
}

// locate is where a sandbox is.
func (s *Server) locate(ctx context.Context, sandboxID string) (executor.Place, error) {
	l, err := s.sandboxes.Locate(ctx, sandboxID)
	if err != nil {
		return executor.Place{}, err
	}
	return s.place(ctx, l.RunnerID)
}

// Organizations and what they may.

type sandboxOrganizations struct{ s *Server }

func (o sandboxOrganizations) Active(ctx context.Context, id string) (sandbox.Organization, error) {
	if err := o.s.organizations.Active(ctx, id); err != nil {
		return sandbox.Organization{}, err
	}
	v, err := o.s.organizations.Get(ctx, id)
	if err != nil {
		return sandbox.Organization{}, err
	}
	return sandbox.Organization{ID: v.ID, Name: v.Name, LimitedEgress: v.LimitedEgress}, nil
}

type snapshotOrganizations struct{ s *Server }

func (o snapshotOrganizations) SnapshotLimits(ctx context.Context, id string) (snapshot.Limits, error) {
	l, err := o.s.quotas.Limits(ctx, id)
	if err != nil {
		return snapshot.Limits{}, err
	}
	v, err := o.s.organizations.Get(ctx, id)
	if err != nil {
		return snapshot.Limits{}, err
	}
	return snapshot.Limits{
		Snapshots: l.Snapshots, SizeGB: l.MaxSnapshotSize, CPU: int(l.MaxCPU), Memory: int(l.MaxMemory), Disk: int(l.MaxDisk),
		Idle: time.Duration(v.DeactivationMinutes) * time.Minute,
	}, nil
}

func (o snapshotOrganizations) Active(ctx context.Context, id string) error {
	return o.s.organizations.Active(ctx, id)
}

func (o snapshotOrganizations) DefaultRegion(ctx context.Context, id string) (string, error) {
	return o.s.organizations.DefaultRegion(ctx, id)
}

func (o snapshotOrganizations) Regions(ctx context.Context, id string) ([]string, error) {
	all, err := o.s.regions.Available(ctx, id)
	ids := make([]string, len(all))
	for i, r := range all {
		ids[i] = r.ID
	}
	return ids, err
}

type sandboxRegions struct{ s *Server }

func (r sandboxRegions) Target(ctx context.Context, organizationID, nameOrID string) (sandbox.Region, error) {
	v, err := r.s.regions.Target(ctx, organizationID, nameOrID)
	if err != nil {
		return sandbox.Region{}, err
	}
	return sandbox.Region{ID: v.ID, Name: v.Name, ProxyURL: v.ProxyURL, SSHGatewayURL: v.SSHGatewayURL}, nil
}

func (r sandboxRegions) Region(ctx context.Context, id string) (sandbox.Region, error) {
	v, err := r.s.regions.Get(ctx, id)
	if err != nil {
		return sandbox.Region{}, err
	}
	return sandbox.Region{ID: v.ID, Name: v.Name, ProxyURL: v.ProxyURL, SSHGatewayURL: v.SSHGatewayURL}, nil
}

type sandboxQuotas struct{ *quota.Service }

func claim(c sandbox.Claim) quota.Claim {
	return quota.Claim{
		SandboxID: c.SandboxID, OrganizationID: c.OrganizationID, RegionID: c.RegionID, Class: c.Class, GPUType: c.GPUType, Ephemeral: c.Ephemeral,
		CPU: float64(c.Resources.CPU), Memory: float64(c.Resources.Memory), Disk: float64(c.Resources.Disk), GPU: float64(c.Resources.GPU),
	}
}

func (q sandboxQuotas) Reserve(ctx context.Context, c sandbox.Claim) error {
	return q.Service.Reserve(ctx, claim(c))
}

func (q sandboxQuotas) Adjust(ctx context.Context, c sandbox.Claim) error {
	return q.Service.Adjust(ctx, claim(c))
}

// Snapshots, volumes and secrets, as sandboxes see them.

type sandboxSnapshots struct{ s *Server }

func (v sandboxSnapshots) Resolve(ctx context.Context, organizationID, regionID, nameOrID string) (sandbox.Snapshot, error) {
	x, err := v.s.snapshots.Resolve(ctx, organizationID, regionID, nameOrID)
	if err != nil {
		return sandbox.Snapshot{}, err
	}
	return sandbox.Snapshot{
		ID: x.ID, Name: x.Name, Ref: x.Ref, Class: x.Class, Resources: sandbox.Resources{CPU: x.CPU, Memory: x.Memory, Disk: x.Disk, GPU: x.GPU},
		GPUType: x.GPUType, Entrypoint: x.Entrypoint,
	}, nil
}

func (v sandboxSnapshots) Build(ctx context.Context, organizationID, dockerfile string, contextHashes []string) (string, []string, error) {
	b, entrypoint, err := v.s.snapshots.Declare(ctx, organizationID, dockerfile, contextHashes)
	if err != nil {
		return "", nil, err
	}
	return b.Ref, entrypoint, nil
}

func (v sandboxSnapshots) Ready(ctx context.Context, ref string) ([]string, error) {
	if ref == "" {
		all, err := v.s.runners.All(ctx, "")
		ids := make([]string, len(all))
		for i := range all {
			ids[i] = all[i].ID
		}
		return ids, err
	}
	return v.s.snapshots.Ready(ctx, ref)
}

func (v sandboxSnapshots) Ensure(ctx context.Context, runnerID, ref string) error {
	_, err := v.s.snapshots.Ensure(ctx, runnerID, ref)
	return err
}

func (v sandboxSnapshots) Copy(ctx context.Context, runnerID, ref string) (sandbox.Copy, string, error) {
	if ref == "" {
		return sandbox.CopyReady, "", nil
	}
	c, err := v.s.snapshots.CopyOf(ctx, runnerID, ref)
	switch {
	case errors.Is(err, daytona.ErrNotFound) || err == nil && c == nil:
		return sandbox.CopyNone, "", nil
	case err != nil:
		return sandbox.CopyNone, "", err
	}
	switch c.State {
	case snapshot.CopyReady:
		return sandbox.CopyReady, "", nil
	case snapshot.CopyError:
		return sandbox.CopyFailed, c.Reason, nil
	case snapshot.CopyPulling, snapshot.CopyBuilding:
		return sandbox.CopyMaking, "", nil
	}
	return sandbox.CopyNone, "", nil
}

func (v sandboxSnapshots) Capture(ctx context.Context, c sandbox.Capture) (id, ref string, err error) {
	if err := v.s.snapshots.Free(ctx, c.OrganizationID, c.Name); err != nil {
		return "", "", err
	}
	ref = snapshot.CaptureRef(c.OrganizationID)
	return ref, ref, nil
}

func (v sandboxSnapshots) Captured(ctx context.Context, c sandbox.Capture, sizeGB float64, failure string) error {
	if failure != "" {
		return nil // nothing is noted of it yet
	}
	return v.s.snapshots.Captured(ctx, snapshot.Capture{
		OrganizationID: c.OrganizationID, Name: c.Name, SandboxID: c.SandboxID, RegionID: c.RegionID, RunnerID: c.RunnerID, Class: c.Class,
		CPU: c.Resources.CPU, GPU: c.Resources.GPU, Memory: c.Resources.Memory, Disk: c.Resources.Disk, GPUType: c.GPUType,
		Entrypoint: c.Entrypoint, Ref: c.Ref, SizeGB: sizeGB, Parcelled: c.Parcelled,
	})
}

// sandboxParcels is where runners put what other runners may need.
type sandboxParcels struct{ s *Server }

func (p sandboxParcels) Parcel(ctx context.Context, organizationID, ref string, write bool) (any, error) {
	l, key, err := p.s.objects.Parcel(ctx, organizationID, ref, write)
	if err != nil {
		return nil, err
	}
	v := &wire.JobParcel{Key: key, S3: wire.JobS3Volume{
		Endpoint: l.Endpoint, Region: l.Region, Bucket: l.Bucket, Prefix: l.Prefix, AccessKey: l.AccessKey, SecretKey: l.SecretKey, SessionToken: l.SessionToken,
	}}
	if write {
		return v, nil
	}
	// What it was made over may have to be pulled.
	all, err := p.s.registries.All(ctx, organizationID)
	for _, c := range all {
		v.Registries = append(v.Registries, wire.JobRegistry{URL: c.URL, Project: &c.Project, Username: &c.Username, Password: &c.Password})
	}
	return v, err
}

// parcelUsed reports whether anything needs what is in the object storage under
// a reference.
func (s *Server) parcelUsed(ctx context.Context, ref string) (bool, error) {
	used, err := s.sandboxes.Backed(ctx, ref)
	if err != nil || used {
		return used, err
	}
	return s.snapshots.Uses(ctx, ref)
}

type sandboxVolumes struct{ s *Server }

func (v sandboxVolumes) Find(ctx context.Context, organizationID, idOrName string) (sandbox.VolumeInfo, error) {
	x, err := v.s.volumes.Get(ctx, organizationID, idOrName)
	if errors.Is(err, daytona.ErrNotFound) {
		x, err = v.s.volumes.ByName(ctx, organizationID, idOrName)
	}
	if err != nil {
		return sandbox.VolumeInfo{}, err
	}
	return sandbox.VolumeInfo{ID: x.ID, Name: x.Name, Ready: x.State == volume.Ready, State: string(x.State)}, nil
}

func (v sandboxVolumes) Location(ctx context.Context, organizationID, volumeID string) (any, error) {
	l, err := v.s.volumes.Location(ctx, organizationID, volumeID)
	if err != nil {
		return nil, err
	}
	return l, v.s.volumes.Used(ctx, organizationID, volumeID)
}

type sandboxSecrets struct{ *secret.Service }

func (x sandboxSecrets) Resolve(ctx context.Context, organizationID, sandboxID string) ([]sandbox.Mounted, error) {
	all, err := x.Service.Resolve(ctx, organizationID, sandboxID)
	out := make([]sandbox.Mounted, len(all))
	for i, r := range all {
		out[i] = sandbox.Mounted(r)
	}
	return out, err
}

// telemetrySources knows who may say what of a sandbox.
type telemetrySources struct{ s *Server }

func (t telemetrySources) BySandboxToken(ctx context.Context, token string) (telemetry.Owner, error) {
	sb, err := t.s.sandboxes.ByToken(ctx, token)
	if err != nil {
		return telemetry.Owner{}, err
	}
	return telemetry.Owner{SandboxID: sb.ID, OrganizationID: sb.OrganizationID}, nil
}

func (t telemetrySources) ByRunnerKey(ctx context.Context, key string) (string, error) {
	id, _, err := t.s.runners.RunnerByKey(ctx, key)
	return id, err
}

func (t telemetrySources) OnRunner(ctx context.Context, runnerID, sandboxID string) (telemetry.Owner, error) {
	l, err := t.s.sandboxes.Locate(ctx, sandboxID)
	if err == nil && l.RunnerID != runnerID {
		err = &daytona.Error{Kind: daytona.KindNotFound, Subject: sandboxID, Message: "the runner does not have this sandbox"}
	}
	if err != nil {
		return telemetry.Owner{}, err
	}
	return telemetry.Owner{SandboxID: l.ID, OrganizationID: l.OrganizationID}, nil
}

// imageCredentials is who may pull an image for an organization.
func (s *Server) imageCredentials(ctx context.Context, organizationID, image string) (*snapshot.Registry, error) {
	c, err := s.registries.Credentials(ctx, organizationID, image)
	if err != nil || c == nil {
		return nil, err
	}
	return &snapshot.Registry{URL: c.URL, Project: c.Project, Username: c.Username, Password: c.Password}, nil
}

// checkRegistry refuses the registries that the server's guard refuses: a
// runner is as far inside as the server. The server's own is not one of them.
func (s *Server) checkRegistry(_ context.Context, host string) error {
	if u, err := url.Parse(s.config.URL); err == nil && host == u.Host {
		return nil
	}
	return s.outbound.Check("imageName", "https://"+host)
}

// buildLog copies the log of a build.
func (s *Server) buildLog(ctx context.Context, ref string, follow bool, w io.Writer) error {
	copies, err := s.snapshots.Copies(ctx, ref)
	if err != nil {
		return err
	}
	for _, c := range copies {
		log, err := snapshotRunners{s}.Logs(ctx, c.RunnerID, ref, follow)
		if errors.Is(err, daytona.ErrNotFound) {
			continue
		} else if err != nil {
			return err
		}
		defer log.Close()
		_, err = io.Copy(w, log)
		return err
	}
	return nil
}

// The proxy and the SSH gateway.

type proxySandboxes struct {
	*sandbox.Service
	s *Server
}

func (p proxySandboxes) ProxySandbox(ctx context.Context, id string) (proxy.Sandbox, error) {
	sb, err := p.Any(ctx, id)
	if sb == nil {
		return proxy.Sandbox{}, err
	}
	v := proxy.Sandbox{ID: sb.ID, OrganizationID: sb.OrganizationID, RegionID: sb.RegionID, State: string(sb.Shown()), Public: sb.Public}
	if err == nil && p.s.config.Proxy.Warning {
		o, err := p.s.organizations.Get(ctx, sb.OrganizationID)
		if err != nil {
			return proxy.Sandbox{}, err
		}
		v.Warning = o.PreviewWarning
	}
	return v, err
}

type proxyBuilds struct{ s *Server }

func (b proxyBuilds) SnapshotLogs(ctx context.Context, organizationID, idOrName string, follow bool) (io.ReadCloser, error) {
	return b.s.snapshots.Logs(ctx, organizationID, idOrName, follow)
}

func (b proxyBuilds) SandboxLogs(ctx context.Context, organizationID, idOrName string, follow bool) (io.ReadCloser, error) {
	sb, err := b.s.sandboxes.Get(ctx, organizationID, idOrName)
	if err != nil {
		return nil, err
	}
	_, ref, err := b.s.sandboxes.SandboxBuild(ctx, sb.ID)
	if err != nil {
		return nil, err
	}
	r, w := io.Pipe()
	ctx, cancel := context.WithCancel(ctx)
	go func() { w.CloseWithError(b.s.buildLog(ctx, ref, follow, w)) }()
	return closer{r, cancel}, nil
}

// closer is a reader whose source is told when nobody reads any more.
type closer struct {
	*io.PipeReader
	cancel func()
}

func (c closer) Close() error {
	c.cancel()
	return c.PipeReader.Close()
}

type sshTokens struct{ s *Server }

func (t sshTokens) SSHAccess(ctx context.Context, token string) (sshgateway.Access, error) {
	g, err := t.s.sandboxes.SSHGrant(ctx, token)
	if err != nil {
		return sshgateway.Access{}, err
	}
	return sshgateway.Access{ID: g.ID, SandboxID: g.SandboxID, Expires: g.Expires, State: string(g.State)}, nil
}

// touch notes that a sandbox is used.
func (s *Server) touch(sandboxID string) {
	if err := s.sandboxes.Touch(context.Background(), "", sandboxID); err != nil && !errors.Is(err, daytona.ErrNotFound) {
		s.config.Log.Warn("activity was not noted", "sandbox", sandboxID, "err", err)
	}
}

// Events, for those who listen and for webhooks.

func (s *Server) sandboxEvent(ctx context.Context, e sandbox.Event) error {
	sb := e.Sandbox
	hook := map[string]any{"id": sb.ID, "createdAt": wire.Stamp(sb.CreatedAt)}
	var with func(v wire.Sandbox) any
	switch e.Name {
	case "sandbox.state.updated":
		with = func(v wire.Sandbox) any { return map[string]any{"sandbox": v, "oldState": e.Old, "newState": e.New} }
		hook = map[string]any{"id": sb.ID, "oldState": e.Old, "newState": e.New, "updatedAt": wire.Stamp(sb.UpdatedAt)}
	case "sandbox.desired-state.updated":
		with = func(v wire.Sandbox) any {
			return map[string]any{"sandbox": v, "oldDesiredState": e.Old, "newDesiredState": e.New}
		}
		hook = nil
	default:
		with = func(v wire.Sandbox) any { return v }
		hook["state"] = string(sb.Shown())
		hook["class"] = sb.Class
	}
	return s.tell(ctx, sb.OrganizationID, e.Name, hook, func() (any, error) {
		v, err := api.SandboxOf(ctx, s.sandboxes, sb)
		return with(v), err
	})
}

func (s *Server) snapshotEvent(ctx context.Context, e snapshot.Event) error {
	hook := map[string]any{"id": e.Snapshot.ID, "name": e.Snapshot.Name, "createdAt": wire.Stamp(e.Snapshot.CreatedAt)}
	if e.Name == "snapshot.state.updated" {
		hook = map[string]any{"id": e.Snapshot.ID, "name": e.Snapshot.Name, "oldState": e.Old, "newState": e.Snapshot.State, "updatedAt": wire.Stamp(e.Snapshot.UpdatedAt)}
	} else if e.Name == "snapshot.removed" {
		hook = map[string]any{"id": e.Snapshot.ID, "name": e.Snapshot.Name, "removedAt": wire.Stamp(time.Now())}
	}
	return s.tell(ctx, e.Snapshot.OrganizationID, e.Name, hook, func() (any, error) {
		switch e.Name {
		case "snapshot.state.updated":
			return map[string]any{"snapshot": api.SnapshotWire(&e.Snapshot), "oldState": e.Old, "newState": e.Snapshot.State}, nil
		case "snapshot.removed":
			return e.Snapshot.ID, nil
		}
		return api.SnapshotWire(&e.Snapshot), nil
	})
}

func (s *Server) volumeEvent(ctx context.Context, e volume.Event) error {
	hook := map[string]any{"id": e.Volume.ID, "name": e.Volume.Name, "createdAt": wire.Stamp(e.Volume.CreatedAt)}
	switch e.Name {
	case "volume.state.updated":
		hook = map[string]any{"id": e.Volume.ID, "name": e.Volume.Name, "oldState": e.Old, "newState": e.Volume.State, "updatedAt": wire.Stamp(e.Volume.UpdatedAt)}
	case "volume.lastUsedAt.updated":
		hook = nil
	}
	return s.tell(ctx, e.Volume.OrganizationID, e.Name, hook, func() (any, error) {
		if e.Name == "volume.state.updated" {
			return map[string]any{"volume": api.VolumeWire(&e.Volume), "oldState": e.Old, "newState": e.Volume.State}, nil
		}
		return api.VolumeWire(&e.Volume), nil
	})
}

// tell tells clients of an event, and webhooks, where they are for it. payload
// is made only if somebody listens.
func (s *Server) tell(ctx context.Context, organizationID, name string, hook map[string]any, payload func() (any, error)) error {
	if s.events.Listening(ctx, organizationID) {
		v, err := payload()
		if err != nil {
			return err
		}
		if err := s.events.Publish(ctx, organizationID, name, v); err != nil {
			return err
		}
	}
	if hook == nil {
		return nil
	}
	return s.webhooks.Send(ctx, organizationID, name, "", hook)
}
