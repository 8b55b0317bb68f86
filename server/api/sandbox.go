package api

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/wire"
	"github.com/daytona-go/daytona/server/identity"
	"github.com/daytona-go/daytona/server/sandbox"
)

// SandboxOptions is what the routes of sandboxes need besides sandboxes.
// Routes of what is nil answer that it is not there.
type SandboxOptions struct {
	// Organization and RegionQuota answer as the routes of those do.
	Organization func(ctx context.Context, id string) (wire.Organization, error)
	RegionQuota  func(ctx context.Context, organizationID, regionID, class string) (wire.RegionQuota, error)
	// BuildLog writes the log of a build as it comes: until its end with follow.
	BuildLog func(ctx context.Context, ref string, follow bool, w io.Writer) error
}

// RegisterSandbox serves the routes of sandboxes and of warm pools.
func RegisterSandbox(a *API, s *sandbox.Service, o SandboxOptions) {
	h := &sandboxes{s, o}
	h.registerLife(a)
	h.registerSettings(a)
	h.registerAccess(a)
	h.registerServices(a)
	h.registerPools(a)
}

type sandboxes struct {
	s *sandbox.Service
	o SandboxOptions
}

// orgID is the one that a request is about.
func orgID(ctx context.Context) string { return identity.From(ctx).OrganizationID }

// ptr is v, or nil for the zero value: an optional field that is left out.
func ptr[T comparable](v T) *T {
	var zero T
	if v == zero {
		return nil
	}
	return &v
}

// shape makes of sandboxes what the wire has for them.
type shape struct {
	h       *sandboxes
	toolbox map[string]string // by region
}

func (h *sandboxes) shape() *shape { return &shape{h, map[string]string{}} }

func (w *shape) url(ctx context.Context, region string) (string, error) {
	u, ok := w.toolbox[region]
	if !ok {
		var err error
		if u, err = w.h.s.ToolboxURL(ctx, region); err != nil {
			return "", err
		}
		w.toolbox[region] = u
	}
	return u, nil
}

// SandboxOf is a sandbox on the wire.
func SandboxOf(ctx context.Context, s *sandbox.Service, sb *sandbox.Sandbox) (wire.Sandbox, error) {
	return (&sandboxes{s: s}).shape().sandbox(ctx, sb)
}

func (w *shape) sandbox(ctx context.Context, sb *sandbox.Sandbox) (wire.Sandbox, error) {
	u, err := w.url(ctx, sb.RegionID)
	if err != nil {
		return wire.Sandbox{}, err
	}
	proxy, err := w.h.s.OutboundProxyURL(sb)
	if err != nil {
		return wire.Sandbox{}, err
	}
	v := wire.Sandbox{
		ID: sb.ID, OrganizationID: sb.OrganizationID, Name: sb.Name, Snapshot: ptr(sb.Snapshot), User: sb.User, Env: sb.Env, Labels: sb.Labels,
		Public: sb.Public, NetworkBlockAll: sb.NetworkBlockAll, NetworkAllowList: sb.NetworkAllowList, DomainAllowList: sb.DomainAllowList,
		OutboundProxyURL: ptr(proxy), OTelEndpointOverride: ptr(sb.OTelEndpoint), Target: sb.RegionID,
		CPU: float64(sb.CPU), GPU: float64(sb.GPU), GPUType: gpuType(sb), Memory: float64(sb.Memory), Disk: float64(sb.Disk), Spot: new(false),
		State: new(string(sb.Shown())), DesiredState: new(string(sb.Desired)), ErrorReason: ptr(sb.ErrorReason), Recoverable: new(sb.Recoverable),
		WarmPoolID: ptr(sb.WarmPoolID), BackupState: new(string(sb.Backup)), BackupCreatedAt: wire.StampOf(sb.BackupAt),
		AutoStopInterval: new(float64(sb.AutoStop)), AutoPauseInterval: new(float64(sb.AutoPause)), AutoArchiveInterval: new(float64(sb.AutoArchive)),
		AutoDeleteInterval: new(float64(sb.AutoDelete)), AutoDestroyAt: wire.StampOf(sb.DestroyAt), Volumes: []wire.SandboxVolume{},
		CreatedAt: new(wire.Stamp(sb.CreatedAt)), UpdatedAt: new(wire.Stamp(sb.UpdatedAt)), LastActivityAt: new(wire.Stamp(sb.LastActivityAt)),
		SandboxClass: new(sb.Class), DaemonVersion: ptr(sb.DaemonVersion), RunnerID: ptr(sb.RunnerID), LinkedSandboxID: ptr(sb.LinkedID),
		ToolboxProxyURL: u, StartedAt: wire.StampOf(sb.StartedAt), StoppedAt: wire.StampOf(sb.StoppedAt),
	}
	for _, m := range sb.Volumes {
		v.Volumes = append(v.Volumes, wire.SandboxVolume{VolumeID: m.VolumeID, MountPath: m.MountPath, Subpath: ptr(m.Subpath), ReadOnly: m.ReadOnly})
	}
	if b := sb.Build; b != nil {
		v.BuildInfo = &wire.BuildInfo{DockerfileContent: new(b.Dockerfile), ContextHashes: b.ContextHashes, CreatedAt: wire.Stamp(b.CreatedAt), UpdatedAt: wire.Stamp(b.UpdatedAt), SnapshotRef: b.Ref}
	}
	return v, nil
}

// gpuType is the type that it has, once it has been found.
func gpuType(sb *sandbox.Sandbox) *string {
	if sb.GPU == 0 || strings.Contains(sb.GPUType, ",") {
		return nil
	}
	return ptr(sb.GPUType)
}

func (w *shape) sandboxes(ctx context.Context, all []*sandbox.Sandbox) ([]wire.Sandbox, error) {
	list := make([]wire.Sandbox, len(all))
	for i, sb := range all {
		var err error
		if list[i], err = w.sandbox(ctx, sb); err != nil {
			return nil, err
		}
	}
	return list, nil
}

func (w *shape) item(ctx context.Context, sb *sandbox.Sandbox) (wire.SandboxListItem, error) {
	u, err := w.url(ctx, sb.RegionID)
	return wire.SandboxListItem{
		ID: sb.ID, OrganizationID: sb.OrganizationID, Name: sb.Name, Target: sb.RegionID, RunnerID: ptr(sb.RunnerID), SandboxClass: new(sb.Class),
		State: new(string(sb.Listed)), DesiredState: new(string(sb.Desired)), Snapshot: ptr(sb.Snapshot), User: sb.User, ErrorReason: ptr(sb.ErrorReason),
		Recoverable: new(sb.Recoverable), Public: sb.Public, NetworkBlockAll: sb.NetworkBlockAll, NetworkAllowList: sb.NetworkAllowList, DomainAllowList: sb.DomainAllowList,
		CPU: float64(sb.CPU), GPU: float64(sb.GPU), GPUType: gpuType(sb), Memory: float64(sb.Memory), Disk: float64(sb.Disk), Spot: new(false), Labels: sb.Labels,
		BackupState: new(string(sb.Backup)), AutoStopInterval: new(float64(sb.AutoStop)), AutoPauseInterval: new(float64(sb.AutoPause)),
		AutoArchiveInterval: new(float64(sb.AutoArchive)), AutoDeleteInterval: new(float64(sb.AutoDelete)), AutoDestroyAt: wire.StampOf(sb.DestroyAt),
		CreatedAt: new(wire.Stamp(sb.CreatedAt)), UpdatedAt: new(wire.Stamp(sb.UpdatedAt)), LastActivityAt: new(wire.Stamp(sb.LastActivityAt)),
		DaemonVersion: ptr(sb.DaemonVersion), WarmPoolID: ptr(sb.WarmPoolID), ToolboxProxyURL: u,
		StartedAt: wire.StampOf(sb.StartedAt), StoppedAt: wire.StampOf(sb.StoppedAt),
	}, err
}

// answer is what most routes answer with.
func (h *sandboxes) answer(ctx context.Context, sb *sandbox.Sandbox, err error) (wire.Sandbox, error) {
	if err != nil {
		return wire.Sandbox{}, err
	}
	Note(ctx, sb.ID, nil)
	return h.shape().sandbox(ctx, sb)
}

// SandboxPath is the parameter of most routes: an id or a name.
type SandboxPath struct {
	Sandbox string `path:"sandboxIdOrName"`
}

// SandboxIDPath is that of some: an id.
type SandboxIDPath struct {
	Sandbox string `path:"sandboxId"`
}

// oneOrMore is a list for which a client may send its only element.
type oneOrMore []string

func (l *oneOrMore) UnmarshalJSON(b []byte) error {
	if b = bytes.TrimSpace(b); len(b) > 0 && b[0] == '"' {
		*l = make([]string, 1)
		return json.Unmarshal(b, &(*l)[0])
	}
	return json.Unmarshal(b, (*[]string)(l))
}

// Schema is huma's.
func (oneOrMore) Schema(huma.Registry) *huma.Schema {
	one := &huma.Schema{Type: "string", Enum: []any{wire.GPUTypeH100, wire.GPUTypeRtxPro6000, wire.GPUTypeH200, wire.GPUTypeRtx4090, wire.GPUTypeRtx5090}}
	return &huma.Schema{OneOf: []*huma.Schema{one, {Type: "array", Items: one, MaxItems: new(16)}}}
}

type createSandbox struct {
	wire.CreateSandbox
	GPUType oneOrMore `json:"gpuType,omitempty"`
}

func (h *sandboxes) registerLife(a *API) {
	Handle(a, "createSandbox", func(ctx context.Context, in *struct{ Body createSandbox }) (wire.Sandbox, error) {
		b := &in.Body
		n := sandbox.Spec{
			Name: val(b.Name), Snapshot: val(b.Snapshot), User: val(b.User), Env: b.Env, Labels: b.Labels, Public: val(b.Public),
			NetworkBlockAll: val(b.NetworkBlockAll), NetworkAllowList: b.NetworkAllowList, DomainAllowList: b.DomainAllowList,
			OutboundProxy: val(b.OutboundProxyURL), OTelEndpoint: val(b.OTelEndpointOverride), Target: val(b.Target),
			Resources: sandbox.Resources{CPU: val(b.CPU), Memory: val(b.Memory), Disk: val(b.Disk), GPU: val(b.GPU)},
			GPUTypes:  b.GPUType, Spot: val(b.Spot),
			AutoStop: b.AutoStopInterval, AutoPause: b.AutoPauseInterval, AutoArchive: b.AutoArchiveInterval, AutoDelete: b.AutoDeleteInterval, TTL: b.TTLMinutes,
			Linked: val(b.LinkedSandbox),
		}
		for _, v := range b.Volumes {
			n.Volumes = append(n.Volumes, sandbox.Volume{VolumeID: v.VolumeID, MountPath: v.MountPath, Subpath: val(v.Subpath), ReadOnly: v.ReadOnly})
		}
		n.Secrets = secretsOf(b.Secrets)
		if b.BuildInfo != nil {
			n.Build = &sandbox.SpecBuild{Dockerfile: b.BuildInfo.DockerfileContent, ContextHashes: b.BuildInfo.ContextHashes}
		}
		sb, err := h.s.Create(ctx, orgID(ctx), n)
		return h.answer(ctx, sb, err)
	})
	Handle(a, "getSandbox", func(ctx context.Context, in *struct {
		SandboxPath
		Verbose bool `query:"verbose"`
	}) (wire.Sandbox, error) {
		sb, err := h.get(ctx, in.Sandbox)
		return h.answer(ctx, sb, err)
	})
	Handle(a, "deleteSandbox", func(ctx context.Context, in *SandboxPath) (wire.Sandbox, error) {
		sb, err := h.s.Delete(ctx, orgID(ctx), in.Sandbox)
		return h.answer(ctx, sb, err)
	})
	recovered := func(ctx context.Context, org, id string, skipStart bool) (wire.Sandbox, error) {
		sb, err := h.s.Recover(ctx, org, id, skipStart)
		return h.answer(ctx, sb, err)
	}
	Handle(a, "recoverSandbox", func(ctx context.Context, in *struct {
		SandboxPath
		SkipStart bool `query:"skipStart"`
	}) (wire.Sandbox, error) {
		return recovered(ctx, orgID(ctx), in.Sandbox, in.SkipStart)
	})
	Handle(a, "adminRecoverSandbox", func(ctx context.Context, in *struct {
		Sandbox   string `path:"sandboxId"`
		SkipStart bool   `query:"skipStart"`
	}) (wire.Sandbox, error) {
		return recovered(ctx, "", in.Sandbox, in.SkipStart)
	})
	Handle(a, "startSandbox", func(ctx context.Context, in *SandboxPath) (wire.Sandbox, error) {
		sb, err := h.s.Start(ctx, orgID(ctx), in.Sandbox)
		return h.answer(ctx, sb, err)
	})
	Handle(a, "stopSandbox", func(ctx context.Context, in *struct {
		SandboxPath
		Force bool `query:"force"`
	}) (wire.Sandbox, error) {
		sb, err := h.s.Stop(ctx, orgID(ctx), in.Sandbox, in.Force)
		return h.answer(ctx, sb, err)
	})
	Handle(a, "pauseSandbox", func(ctx context.Context, in *SandboxPath) (wire.Sandbox, error) {
		sb, err := h.s.Pause(ctx, orgID(ctx), in.Sandbox)
		return h.answer(ctx, sb, err)
	})
	Handle(a, "archiveSandbox", func(ctx context.Context, in *SandboxPath) (wire.Sandbox, error) {
		sb, err := h.s.Archive(ctx, orgID(ctx), in.Sandbox)
		return h.answer(ctx, sb, err)
	})
	Handle(a, "resizeSandbox", func(ctx context.Context, in *struct {
		SandboxPath
		Body wire.ResizeSandbox
	}) (wire.Sandbox, error) {
		sb, err := h.s.Resize(ctx, orgID(ctx), in.Sandbox, sandbox.Resources{CPU: val(in.Body.CPU), Memory: val(in.Body.Memory), Disk: val(in.Body.Disk)})
		return h.answer(ctx, sb, err)
	})
	Handle(a, "createBackup", func(ctx context.Context, in *SandboxPath) (wire.Sandbox, error) {
		sb, err := h.s.StartBackup(ctx, orgID(ctx), in.Sandbox)
		return h.answer(ctx, sb, err)
	})
	Handle(a, "createSandboxSnapshot", func(ctx context.Context, in *struct {
		SandboxPath
		Body wire.CreateSandboxSnapshot
	}) (wire.Sandbox, error) {
		sb, err := h.s.Snapshot(ctx, orgID(ctx), in.Sandbox, in.Body.Name, val(in.Body.IncludeMemory))
		return h.answer(ctx, sb, err)
	})
	Handle(a, "forkSandbox", func(ctx context.Context, in *struct {
		SandboxPath
		// A client without a name may send no body.
		Body *wire.ForkSandbox `required:"false"`
	}) (wire.Sandbox, error) {
		name := ""
		if in.Body != nil {
			name = val(in.Body.Name)
		}
		sb, err := h.s.Fork(ctx, orgID(ctx), in.Sandbox, name)
		return h.answer(ctx, sb, err)
	})
	Handle(a, "getSandboxForks", func(ctx context.Context, in *struct {
		SandboxPath
		Destroyed bool `query:"includeDestroyed"`
	}) ([]wire.Sandbox, error) {
		all, err := h.s.Forks(ctx, orgID(ctx), in.Sandbox, in.Destroyed)
		if err != nil {
			return nil, err
		}
		return h.shape().sandboxes(ctx, all)
	})
	Handle(a, "getSandboxParent", func(ctx context.Context, in *SandboxPath) (wire.Sandbox, error) {
		sb, err := h.s.Parent(ctx, orgID(ctx), in.Sandbox)
		return h.answer(ctx, sb, err)
	})
	Handle(a, "getSandboxAncestors", func(ctx context.Context, in *SandboxPath) ([]wire.Sandbox, error) {
		all, err := h.s.Ancestors(ctx, orgID(ctx), in.Sandbox)
		if err != nil {
			return nil, err
		}
		return h.shape().sandboxes(ctx, all)
	})
	h.registerLists(a)
}

// val is what p points to, or the zero value.
func val[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}

func secretsOf(list []map[string]string) []sandbox.Secret {
	var all []sandbox.Secret
	for _, m := range list {
		for env, name := range m {
			all = append(all, sandbox.Secret{Env: env, Name: name})
		}
	}
	return all
}

// get returns a sandbox to a member of its organization, or to a service.
func (h *sandboxes) get(ctx context.Context, idOrName string) (*sandbox.Sandbox, error) {
	p := identity.From(ctx)
	if p.Kind&identity.User != 0 {
		return h.s.Get(ctx, p.OrganizationID, idOrName)
	}
	return h.find(ctx, idOrName)
}

// find returns a sandbox to a service: to one of a region, only what is there.
func (h *sandboxes) find(ctx context.Context, id string) (*sandbox.Sandbox, error) {
	sb, err := h.s.Find(ctx, id)
	if err != nil {
		return nil, err
	}
	p := identity.From(ctx)
	if p.Kind&(identity.RegionProxy|identity.RegionSSHGateway) != 0 && p.RegionID != sb.RegionID {
		return nil, &daytona.Error{Kind: daytona.KindNotFound, Message: "Sandbox with ID or name " + id + " not found"}
	}
	return sb, nil
}

// SandboxFilters are the parameters of both lists.
type SandboxFilters struct {
	ID                    string   `query:"id" maxLength:"255"`
	Name                  string   `query:"name" maxLength:"255"`
	Labels                string   `query:"labels" maxLength:"65536"`
	IncludeErroredDeleted bool     `query:"includeErroredDeleted"`
	States                []string `query:"states,explode"`
	Snapshots             []string `query:"snapshots,explode"`
	MinCPU                int      `query:"minCpu" minimum:"1"`
	MaxCPU                int      `query:"maxCpu" minimum:"1"`
	MinMemory             int      `query:"minMemoryGiB" minimum:"1"`
	MaxMemory             int      `query:"maxMemoryGiB" minimum:"1"`
	MinDisk               int      `query:"minDiskGiB" minimum:"1"`
	MaxDisk               int      `query:"maxDiskGiB" minimum:"1"`
	LastEventAfter        Instant  `query:"lastEventAfter"`
	LastEventBefore       Instant  `query:"lastEventBefore"`
	Order                 string   `query:"order" enum:"asc,desc" default:"desc"`
	Limit                 int      `query:"limit" minimum:"1" maximum:"200" default:"100"`
}

func (q *SandboxFilters) filter() (sandbox.Filter, error) {
	f := sandbox.Filter{
		ID: q.ID, Name: q.Name, IncludeErroredDeleted: q.IncludeErroredDeleted, Snapshots: q.Snapshots,
		MinCPU: q.MinCPU, MaxCPU: q.MaxCPU, MinMemory: q.MinMemory, MaxMemory: q.MaxMemory, MinDisk: q.MinDisk, MaxDisk: q.MaxDisk,
		LastEventAfter: q.LastEventAfter.Time, LastEventBefore: q.LastEventBefore.Time, Ascending: q.Order == "asc", Limit: q.Limit,
	}
	for _, v := range q.States {
		f.States = append(f.States, sandbox.State(v))
	}
	if q.Labels != "" {
		if err := json.Unmarshal([]byte(q.Labels), &f.Labels); err != nil {
			return f, &daytona.Error{Kind: daytona.KindInvalid, Message: "labels must be a JSON object whose values are strings"}
		}
		if err := checkText(maps.All(f.Labels)); err != nil {
			return f, err
		}
	}
	return f, nil
}

// answerBool is a query parameter that may be absent.
func answerBool(v string, name string) (*bool, error) {
	if v == "" {
		return nil, nil
	}
	b, err := strconv.ParseBool(v)
	if err != nil {
		return nil, &daytona.Error{Kind: daytona.KindInvalid, Message: name + " must be true or false"}
	}
	return &b, nil
}

// answerInt is answerBool for numbers.
func answerInt(v string, name string) (*int, error) {
	if v == "" {
		return nil, nil
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 0 {
		return nil, &daytona.Error{Kind: daytona.KindInvalid, Message: name + " must be a number of at least 0"}
	}
	return &n, nil
}

func (h *sandboxes) registerLists(a *API) {
	Handle(a, "listSandboxes", func(ctx context.Context, in *struct {
		SandboxFilters
		Cursor            string   `query:"cursor" maxLength:"4096"`
		IncludeWarm       bool     `query:"includeWarm"`
		Regions           []string `query:"regionIds,explode"`
		Classes           []string `query:"sandboxClasses,explode"`
		MinGPU            string   `query:"minGpu"`
		MaxGPU            string   `query:"maxGpu"`
		Public            string   `query:"isPublic"`
		Recoverable       string   `query:"isRecoverable"`
		CreatedAfter      Instant  `query:"createdAtAfter"`
		CreatedBefore     Instant  `query:"createdAtBefore"`
		AutoDestroyAfter  Instant  `query:"autoDestroyAtAfter"`
		AutoDestroyBefore Instant  `query:"autoDestroyAtBefore"`
		Sort              string   `query:"sort" enum:"name,cpu,memoryGib,diskGib,lastActivityAt,createdAt" default:"lastActivityAt"`
	}) (wire.ListSandboxesResponse, error) {
		out := wire.ListSandboxesResponse{Items: []wire.SandboxListItem{}}
		f, err := in.filter()
		if err != nil {
			return out, err
		}
		f.Sort, f.IncludeWarm, f.Regions, f.Classes = in.Sort, in.IncludeWarm, in.Regions, in.Classes
		f.CreatedAfter, f.CreatedBefore, f.AutoDestroyAfter, f.AutoDestroyUntil = in.CreatedAfter.Time, in.CreatedBefore.Time, in.AutoDestroyAfter.Time, in.AutoDestroyBefore.Time
		if f.Public, err = answerBool(in.Public, "isPublic"); err != nil {
			return out, err
		}
		if f.Recoverable, err = answerBool(in.Recoverable, "isRecoverable"); err != nil {
			return out, err
		}
		if f.MinGPU, err = answerInt(in.MinGPU, "minGpu"); err != nil {
			return out, err
		}
		if f.MaxGPU, err = answerInt(in.MaxGPU, "maxGpu"); err != nil {
			return out, err
		}
		page, next, err := h.s.List(ctx, orgID(ctx), f, in.Cursor)
		if err != nil {
			return out, err
		}
		w := h.shape()
		for _, sb := range page {
			item, err := w.item(ctx, sb)
			if err != nil {
				return out, err
			}
			out.Items = append(out.Items, item)
		}
		out.NextCursor = ptr(next)
		return out, nil
	})
	Handle(a, "listSandboxesPaginated_deprecated", func(ctx context.Context, in *struct {
		SandboxFilters
		Page    int      `query:"page" minimum:"1" default:"1"`
		Regions []string `query:"regions,explode"`
		Sort    string   `query:"sort" enum:"id,name,state,snapshot,region,updatedAt,createdAt,lastActivityAt" default:"createdAt"`
	}) (wire.PaginatedSandboxesDeprecated, error) {
		var out wire.PaginatedSandboxesDeprecated
		f, err := in.filter()
		if err != nil {
			return out, err
		}
		f.Sort, f.Regions, f.Within = in.Sort, in.Regions, true
		page, total, err := h.s.Page(ctx, orgID(ctx), f, in.Page)
		if err != nil {
			return out, err
		}
		if out.Items, err = h.shape().sandboxes(ctx, page); err != nil {
			return out, err
		}
		out.Total, out.Page, out.TotalPages = float64(total), float64(in.Page), float64((total+in.Limit-1)/in.Limit)
		return out, nil
	})
}

func (h *sandboxes) registerSettings(a *API) {
	Handle(a, "replaceLabels", func(ctx context.Context, in *struct {
		SandboxPath
		Body wire.SandboxLabels
	}) (wire.SandboxLabels, error) {
		sb, err := h.s.SetLabels(ctx, orgID(ctx), in.Sandbox, in.Body.Labels)
		if err != nil {
			return wire.SandboxLabels{}, err
		}
		Note(ctx, sb.ID, nil)
		return wire.SandboxLabels{Labels: sb.Labels}, nil
	})
	Handle(a, "updatePublicStatus", func(ctx context.Context, in *struct {
		SandboxPath
		Public bool `path:"isPublic"`
	}) (wire.Sandbox, error) {
		sb, err := h.s.SetPublic(ctx, orgID(ctx), in.Sandbox, in.Public)
		return h.answer(ctx, sb, err)
	})
	type interval struct {
		SandboxPath
		Minutes int `path:"interval"`
	}
	for id, set := range map[string]func(context.Context, string, string, int) (*sandbox.Sandbox, error){
		"setAutostopInterval": h.s.SetAutoStop, "setAutoPauseInterval": h.s.SetAutoPause,
		"setAutoArchiveInterval": h.s.SetAutoArchive, "setAutoDeleteInterval": h.s.SetAutoDelete,
	} {
		Handle(a, id, func(ctx context.Context, in *interval) (wire.Sandbox, error) {
			sb, err := set(ctx, orgID(ctx), in.Sandbox, in.Minutes)
			return h.answer(ctx, sb, err)
		})
	}
	Handle(a, "setTtl", func(ctx context.Context, in *struct {
		SandboxPath
		Minutes int `path:"ttlMinutes"`
	}) (wire.Sandbox, error) {
		sb, err := h.s.SetTTL(ctx, orgID(ctx), in.Sandbox, in.Minutes)
		return h.answer(ctx, sb, err)
	})
	Handle(a, "updateNetworkSettings", func(ctx context.Context, in *struct {
		SandboxPath
		Body wire.UpdateSandboxNetworkSettings
	}) (wire.Sandbox, error) {
		sb, err := h.s.SetNetwork(ctx, orgID(ctx), in.Sandbox, sandbox.NetworkUpdate{
			BlockAll: in.Body.NetworkBlockAll, AllowList: in.Body.NetworkAllowList, DomainAllowList: in.Body.DomainAllowList,
		})
		return h.answer(ctx, sb, err)
	})
	Handle(a, "updateSandboxSecrets", func(ctx context.Context, in *struct {
		SandboxPath
		Body wire.UpdateSandboxSecrets
	}) (wire.Sandbox, error) {
		sb, err := h.s.SetSecrets(ctx, orgID(ctx), in.Sandbox, secretsOf(in.Body.Secrets))
		return h.answer(ctx, sb, err)
	})
	Handle(a, "updateLastActivity", func(ctx context.Context, in *struct {
		Sandbox string                   `path:"sandboxId"`
		Body    *wire.UpdateLastActivity `required:"false"`
	}) (None, error) {
		p := identity.From(ctx)
		if p.Kind&identity.User != 0 {
			return None{}, h.s.Touch(ctx, p.OrganizationID, in.Sandbox)
		}
		if _, err := h.find(ctx, in.Sandbox); err != nil {
			return None{}, err
		}
		return None{}, h.s.Touch(ctx, "", in.Sandbox)
	})
}

func (h *sandboxes) registerAccess(a *API) {
	Handle(a, "getPortPreviewUrl", func(ctx context.Context, in *struct {
		SandboxPath
		Port int `path:"port"`
	}) (wire.PortPreviewURL, error) {
		p, err := h.s.PreviewURL(ctx, orgID(ctx), in.Sandbox, in.Port)
		return wire.PortPreviewURL{SandboxID: p.SandboxID, URL: p.URL, Token: p.Token}, err
	})
	Handle(a, "getSignedPortPreviewUrl", func(ctx context.Context, in *struct {
		SandboxPath
		Port    int `path:"port"`
		Seconds int `query:"expiresInSeconds" default:"60"`
	}) (wire.SignedPortPreviewURL, error) {
		p, err := h.s.SignedPreviewURL(ctx, orgID(ctx), in.Sandbox, in.Port, in.Seconds)
		return wire.SignedPortPreviewURL{SandboxID: p.SandboxID, Port: p.Port, Token: p.Token, URL: p.URL}, err
	})
	Handle(a, "expireSignedPortPreviewUrl", func(ctx context.Context, in *struct {
		SandboxPath
		Port  int    `path:"port"`
		Token string `path:"token"`
	}) (None, error) {
		return None{}, h.s.ExpirePreviewURL(ctx, orgID(ctx), in.Sandbox, in.Port, in.Token)
	})
	Handle(a, "getSandboxSigningKey", func(ctx context.Context, in *SandboxIDPath) (Text, error) {
		key, err := h.s.OwnSigningKey(ctx, orgID(ctx), in.Sandbox)
		return Text(key), err
	})
	Handle(a, "rotateSigningKey", func(ctx context.Context, in *SandboxIDPath) (Text, error) {
		key, err := h.s.RotateSigningKey(ctx, orgID(ctx), in.Sandbox)
		Note(ctx, in.Sandbox, nil)
		return Text(key), err
	})
	Handle(a, "createSshAccess", func(ctx context.Context, in *struct {
		SandboxPath
		Minutes float64 `query:"expiresInMinutes" default:"60"`
	}) (wire.SSHAccess, error) {
		v, err := h.s.CreateSSHAccess(ctx, orgID(ctx), in.Sandbox, int(in.Minutes))
		if err != nil {
			return wire.SSHAccess{}, err
		}
		Note(ctx, v.SandboxID, nil)
		return wire.SSHAccess{ID: v.ID, SandboxID: v.SandboxID, Token: v.Token, ExpiresAt: wire.Stamp(v.Expires),
			CreatedAt: wire.Stamp(v.CreatedAt), UpdatedAt: wire.Stamp(v.UpdatedAt), SSHCommand: v.Command}, nil
	})
	Handle(a, "revokeSshAccess", func(ctx context.Context, in *struct {
		SandboxPath
		Token string `query:"token"`
	}) (wire.Sandbox, error) {
		sb, err := h.s.RevokeSSHAccess(ctx, orgID(ctx), in.Sandbox, in.Token)
		return h.answer(ctx, sb, err)
	})
	Handle(a, "validateSshAccess", func(ctx context.Context, in *struct {
		Token string `query:"token" required:"true"`
	}) (wire.SSHAccessValidation, error) {
		g, err := h.s.SSHGrant(ctx, in.Token)
		if daytona.KindOf(err) == daytona.KindNotFound {
			return wire.SSHAccessValidation{}, nil
		} else if err != nil {
			return wire.SSHAccessValidation{}, err
		}
		if _, err := h.find(ctx, g.SandboxID); daytona.KindOf(err) == daytona.KindNotFound {
			return wire.SSHAccessValidation{}, nil
		} else if err != nil {
			return wire.SSHAccessValidation{}, err
		}
		return wire.SSHAccessValidation{Valid: true, SandboxID: &g.SandboxID}, nil
	})
	Handle(a, "getToolboxProxyUrl", func(ctx context.Context, in *SandboxIDPath) (wire.ToolboxProxyURL, error) {
		sb, err := h.s.Get(ctx, orgID(ctx), in.Sandbox)
		if err != nil {
			return wire.ToolboxProxyURL{}, err
		}
		u, err := h.s.ToolboxURL(ctx, sb.RegionID)
		return wire.ToolboxProxyURL{URL: u}, err
	})
	Handle(a, "getBuildLogsUrl", func(ctx context.Context, in *SandboxPath) (wire.URL, error) {
		u, err := h.s.BuildLogsURL(ctx, orgID(ctx), in.Sandbox)
		return wire.URL{URL: u}, err
	})
	Stream(a, "getBuildLogs", func(w http.ResponseWriter, r *http.Request) error {
		ctx := r.Context()
		sb, err := h.s.Get(ctx, orgID(ctx), Param(r, "sandboxIdOrName"))
		if err != nil {
			return err
		}
		if sb.Build == nil {
			return &daytona.Error{Kind: daytona.KindNotFound, Message: "Sandbox " + sb.Name + " has no build"}
		}
		if h.o.BuildLog == nil {
			return absent("The log of builds")
		}
		follow, err := answerBool(r.URL.Query().Get("follow"), "follow")
		if err != nil {
			return err
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		return h.o.BuildLog(ctx, sb.Build.Ref, val(follow), &flushing{w, http.NewResponseController(w)})
	})
}

// flushing sends what is written at once.
type flushing struct {
	io.Writer
	c *http.ResponseController
}

func (f *flushing) Write(p []byte) (int, error) {
	n, err := f.Writer.Write(p)
	if err == nil {
		f.c.Flush() // what can't, sends it later
	}
	return n, err
}

func absent(what string) error {
	return &daytona.Error{Kind: daytona.KindUnavailable, Message: what + " is not configured"}
}

func (h *sandboxes) registerServices(a *API) {
	Handle(a, "getSandboxesForRunner", func(ctx context.Context, in *struct {
		States  string `query:"states" maxLength:"1024"`
		Settled bool   `query:"skipReconcilingSandboxes"`
	}) ([]wire.Sandbox, error) {
		var states []sandbox.State
		for v := range strings.SplitSeq(in.States, ",") {
			if v = strings.TrimSpace(v); v != "" {
				states = append(states, sandbox.State(v))
			}
		}
		all, err := h.s.OfRunner(ctx, identity.From(ctx).RunnerID, states, in.Settled)
		if err != nil {
			return nil, err
		}
		return h.shape().sandboxes(ctx, all)
	})
	Handle(a, "updateSandboxState", func(ctx context.Context, in *struct {
		SandboxIDPath
		Body wire.UpdateSandboxState
	}) (None, error) {
		return None{}, h.s.Report(ctx, identity.From(ctx).RunnerID, in.Sandbox, sandbox.State(in.Body.State), val(in.Body.ErrorReason), val(in.Body.Recoverable))
	})
	Handle(a, "resolveSandboxSecrets", func(ctx context.Context, in *SandboxIDPath) ([]wire.SandboxSecret, error) {
		all, err := h.s.MountedSecrets(ctx, identity.From(ctx).RunnerID, in.Sandbox)
		list := []wire.SandboxSecret{}
		for _, m := range all {
			hosts := m.Hosts
			if hosts == nil {
				hosts = []string{}
			}
			list = append(list, wire.SandboxSecret{Env: m.Env, Placeholder: m.Placeholder, Value: m.Value, Hosts: hosts})
		}
		return list, err
	})
	Handle(a, "getOrganizationBySandboxId", func(ctx context.Context, in *SandboxIDPath) (wire.Organization, error) {
		sb, err := h.find(ctx, in.Sandbox)
		if err != nil {
			return wire.Organization{}, err
		}
		if h.o.Organization == nil {
			return wire.Organization{}, absent("The organization of a sandbox")
		}
		return h.o.Organization(ctx, sb.OrganizationID)
	})
	Handle(a, "getRegionQuotaBySandboxId", func(ctx context.Context, in *SandboxIDPath) (wire.RegionQuota, error) {
		sb, err := h.find(ctx, in.Sandbox)
		if err != nil {
			return wire.RegionQuota{}, err
		}
		if h.o.RegionQuota == nil {
			return wire.RegionQuota{}, absent("The quota of a sandbox")
		}
		return h.o.RegionQuota(ctx, sb.OrganizationID, sb.RegionID, sb.Class)
	})
}

func warmPool(p *sandbox.Pool) wire.WarmPool {
	return wire.WarmPool{
		ID: p.ID, OrganizationID: p.OrganizationID, Snapshot: p.Snapshot, Target: p.RegionID, Pool: float64(p.Size), CurrentSize: float64(p.Current),
		CPU: float64(p.CPU), Mem: float64(p.Memory), Disk: float64(p.Disk), OSUser: p.User, Env: map[string]string{}, ErrorReason: ptr(p.ErrorReason),
		CreatedAt: wire.Stamp(p.CreatedAt), UpdatedAt: wire.Stamp(p.UpdatedAt),
	}
}

func (h *sandboxes) registerPools(a *API) {
	answer := func(ctx context.Context, p *sandbox.Pool, err error) (wire.WarmPool, error) {
		if err != nil {
			return wire.WarmPool{}, err
		}
		Note(ctx, p.ID, nil)
		return warmPool(p), nil
	}
	Handle(a, "listWarmPools", func(ctx context.Context, _ *struct{}) ([]wire.WarmPool, error) {
		all, err := h.s.Pools(ctx, orgID(ctx))
		list := make([]wire.WarmPool, len(all))
		for i, p := range all {
			list[i] = warmPool(p)
		}
		return list, err
	})
	Handle(a, "createWarmPool", func(ctx context.Context, in *struct{ Body wire.CreateWarmPool }) (wire.WarmPool, error) {
		p, err := h.s.CreatePool(ctx, orgID(ctx), in.Body.Snapshot, val(in.Body.Target), int(in.Body.Pool))
		return answer(ctx, p, err)
	})
	Handle(a, "updateWarmPool", func(ctx context.Context, in *struct {
		ID   string `path:"id"`
		Body wire.UpdateWarmPool
	}) (wire.WarmPool, error) {
		p, err := h.s.ResizePool(ctx, orgID(ctx), in.ID, int(in.Body.Pool))
		return answer(ctx, p, err)
	})
	Handle(a, "deleteWarmPool", func(ctx context.Context, in *struct {
		ID string `path:"id"`
	}) (None, error) {
		Note(ctx, in.ID, nil)
		return None{}, h.s.DeletePool(ctx, orgID(ctx), in.ID)
	})
}
