package plugin

import (
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/daytona-go/daytona"
	pb "github.com/daytona-go/daytona/backend/plugin/proto"
)

// Each type of package daytona that crosses the wire has a pair of functions
// here. TestEveryFieldSurvives fills every field of each type by reflection, so
// that one that is added later and forgotten here fails it.

func specToWire(s daytona.Spec) *pb.Spec {
	return &pb.Spec{
		Name: s.Name, Image: s.Image, Snapshot: s.Snapshot, User: s.User, WorkDir: s.WorkDir,
		Env: s.Env, Labels: s.Labels, Entrypoint: s.Entrypoint, Language: s.Language,
		Resources: resourcesToWire(s.Resources), Network: networkToWire(s.Network), Volumes: volumeMountsToWire(s.Volumes),
		Persistent: s.Persistent, Ephemeral: s.Ephemeral,
		Ttl: intervalToWire(s.TTL), AutoStop: intervalToWire(s.AutoStop),
		AutoPause: intervalToWire(s.AutoPause), AutoArchive: intervalToWire(s.AutoArchive), AutoDelete: intervalToWire(s.AutoDelete),
		Progress: s.OnProgress != nil,
	}
}

// specFromWire leaves OnProgress to the caller. What Build says is built, and
// has become Image, before a backend sees it.
func specFromWire(m *pb.Spec) (daytona.Spec, error) {
	network, err := networkFromWire(m.GetNetwork())
	return daytona.Spec{
		Name: m.GetName(), Image: m.GetImage(), Snapshot: m.GetSnapshot(), User: m.GetUser(), WorkDir: m.GetWorkDir(),
		Env: m.GetEnv(), Labels: m.GetLabels(), Entrypoint: m.GetEntrypoint(), Language: m.GetLanguage(),
		Resources: resourcesFromWire(m.GetResources()), Network: network, Volumes: volumeMountsFromWire(m.GetVolumes()),
		Persistent: m.GetPersistent(), Ephemeral: m.GetEphemeral(),
		TTL: m.GetTtl().AsDuration(), AutoStop: m.GetAutoStop().AsDuration(), AutoPause: m.GetAutoPause().AsDuration(),
		AutoArchive: m.GetAutoArchive().AsDuration(), AutoDelete: m.GetAutoDelete().AsDuration(),
	}, err
}

func infoToWire(i daytona.Info) *pb.Info {
	return &pb.Info{
		Id: i.ID, Name: i.Name, State: string(i.State), Reason: i.Reason,
		Backend: i.Backend, Image: i.Image, Snapshot: i.Snapshot, Parent: i.Parent, User: i.User, WorkDir: i.WorkDir,
		Env: i.Env, Labels: i.Labels, Entrypoint: i.Entrypoint, Language: i.Language,
		Resources: resourcesToWire(i.Resources), Network: networkToWire(i.Network), Volumes: volumeMountsToWire(i.Volumes),
		Persistent: i.Persistent, Ephemeral: i.Ephemeral,
		Ttl: intervalToWire(i.TTL), AutoStop: intervalToWire(i.AutoStop), AutoPause: intervalToWire(i.AutoPause),
		AutoArchive: intervalToWire(i.AutoArchive), AutoDelete: intervalToWire(i.AutoDelete),
		CreatedAt: timeToWire(i.CreatedAt), StartedAt: timeToWire(i.StartedAt), StoppedAt: timeToWire(i.StoppedAt),
	}
}

func infoFromWire(m *pb.Info) (daytona.Info, error) {
	network, err := networkFromWire(m.GetNetwork())
	return daytona.Info{
		ID: m.GetId(), Name: m.GetName(), State: daytona.State(m.GetState()), Reason: m.GetReason(),
		Backend: m.GetBackend(), Image: m.GetImage(), Snapshot: m.GetSnapshot(), Parent: m.GetParent(), User: m.GetUser(), WorkDir: m.GetWorkDir(),
		Env: m.GetEnv(), Labels: m.GetLabels(), Entrypoint: m.GetEntrypoint(), Language: m.GetLanguage(),
		Resources: resourcesFromWire(m.GetResources()), Network: network, Volumes: volumeMountsFromWire(m.GetVolumes()),
		Persistent: m.GetPersistent(), Ephemeral: m.GetEphemeral(),
		TTL: m.GetTtl().AsDuration(), AutoStop: m.GetAutoStop().AsDuration(), AutoPause: m.GetAutoPause().AsDuration(),
		AutoArchive: m.GetAutoArchive().AsDuration(), AutoDelete: m.GetAutoDelete().AsDuration(),
		CreatedAt: timeFromWire(m.GetCreatedAt()), StartedAt: timeFromWire(m.GetStartedAt()), StoppedAt: timeFromWire(m.GetStoppedAt()),
	}, err
}

func resourcesToWire(r daytona.Resources) *pb.Resources {
	return &pb.Resources{
		Cpu: r.CPU, Memory: r.Memory, Disk: r.Disk, Gpu: int64(r.GPU), Processes: int64(r.Processes), DiskBandwidth: r.DiskBandwidth,
	}
}

func resourcesFromWire(m *pb.Resources) daytona.Resources {
	return daytona.Resources{
		CPU: m.GetCpu(), Memory: m.GetMemory(), Disk: m.GetDisk(), GPU: int(m.GetGpu()), Processes: int(m.GetProcesses()),
		DiskBandwidth: m.GetDiskBandwidth(),
	}
}

// networkToWire keeps empty lists, which deny everything, apart from missing
// ones, which are the default.
func networkToWire(p daytona.NetworkPolicy) *pb.NetworkPolicy {
	m := &pb.NetworkPolicy{Block: p.Block}
	if p.Allow != nil {
		m.Allow = &pb.StringList{}
		for _, a := range p.Allow {
			m.Allow.Items = append(m.Allow.Items, a.String())
		}
	}
	if p.AllowDomains != nil {
		m.AllowDomains = &pb.StringList{Items: p.AllowDomains}
	}
	return m
}

func networkFromWire(m *pb.NetworkPolicy) (daytona.NetworkPolicy, error) {
	p := daytona.NetworkPolicy{Block: m.GetBlock()}
	if m.GetAllow() != nil {
		p.Allow = []netip.Prefix{}
		for i, s := range m.GetAllow().GetItems() {
			a, err := netip.ParsePrefix(s)
			if err != nil {
				// The others must not stand alone as a policy.
				return daytona.NetworkPolicy{Block: true}, &daytona.Error{Kind: daytona.KindInvalid, Op: "read network policy",
					Field: fmt.Sprintf("Network.Allow[%d]", i), Value: s, Message: "must be a CIDR", Err: err}
			}
			p.Allow = append(p.Allow, a)
		}
	}
	if m.GetAllowDomains() != nil {
		p.AllowDomains = append([]string{}, m.GetAllowDomains().GetItems()...)
	}
	return p, nil
}

func volumeMountsToWire(mounts []daytona.VolumeMount) []*pb.VolumeMount {
	var out []*pb.VolumeMount
	for _, v := range mounts {
		out = append(out, &pb.VolumeMount{Volume: v.Volume, MountPath: v.MountPath, Subpath: v.Subpath, ReadOnly: v.ReadOnly})
	}
	return out
}

func volumeMountsFromWire(mounts []*pb.VolumeMount) []daytona.VolumeMount {
	var out []daytona.VolumeMount
	for _, m := range mounts {
		out = append(out, daytona.VolumeMount{Volume: m.GetVolume(), MountPath: m.GetMountPath(), Subpath: m.GetSubpath(), ReadOnly: m.GetReadOnly()})
	}
	return out
}

func filterToWire(f daytona.Filter) *pb.Filter {
	return &pb.Filter{Labels: f.Labels, States: statesToWire(f.States), NamePrefix: f.NamePrefix}
}

func filterFromWire(m *pb.Filter) daytona.Filter {
	return daytona.Filter{Labels: m.GetLabels(), States: statesFromWire(m.GetStates()), NamePrefix: m.GetNamePrefix()}
}

func statesToWire(states []daytona.State) []string {
	var out []string
	for _, s := range states {
		out = append(out, string(s))
	}
	return out
}

func statesFromWire(states []string) []daytona.State {
	var out []daytona.State
	for _, s := range states {
		out = append(out, daytona.State(s))
	}
	return out
}

func updateToWire(u daytona.Update) *pb.Update {
	m := &pb.Update{
		AutoStop: optionalToWire(u.AutoStop), AutoPause: optionalToWire(u.AutoPause),
		AutoArchive: optionalToWire(u.AutoArchive), AutoDelete: optionalToWire(u.AutoDelete),
	}
	if u.Labels != nil {
		m.Labels = &pb.StringMap{Items: u.Labels}
	}
	return m
}

func updateFromWire(m *pb.Update) daytona.Update {
	u := daytona.Update{
		AutoStop: optionalFromWire(m.GetAutoStop()), AutoPause: optionalFromWire(m.GetAutoPause()),
		AutoArchive: optionalFromWire(m.GetAutoArchive()), AutoDelete: optionalFromWire(m.GetAutoDelete()),
	}
	if m.GetLabels() != nil {
		u.Labels = map[string]string{}
		maps.Copy(u.Labels, m.GetLabels().GetItems())
	}
	return u
}

func snapshotToWire(s daytona.Snapshot) *pb.Snapshot {
	return &pb.Snapshot{
		Id: s.ID, Name: s.Name, State: string(s.State), Reason: s.Reason,
		Image: s.Image, Sandbox: s.Sandbox, Entrypoint: s.Entrypoint, Resources: resourcesToWire(s.Resources), SizeBytes: s.SizeBytes,
		CreatedAt: timeToWire(s.CreatedAt), UpdatedAt: timeToWire(s.UpdatedAt), LastUsedAt: timeToWire(s.LastUsedAt),
	}
}

func snapshotFromWire(m *pb.Snapshot) (daytona.Snapshot, error) {
	return daytona.Snapshot{
		ID: m.GetId(), Name: m.GetName(), State: daytona.SnapshotState(m.GetState()), Reason: m.GetReason(),
		Image: m.GetImage(), Sandbox: m.GetSandbox(), Entrypoint: m.GetEntrypoint(), Resources: resourcesFromWire(m.GetResources()),
		SizeBytes: m.GetSizeBytes(),
		CreatedAt: timeFromWire(m.GetCreatedAt()), UpdatedAt: timeFromWire(m.GetUpdatedAt()), LastUsedAt: timeFromWire(m.GetLastUsedAt()),
	}, nil
}

func snapshotSpecToWire(s daytona.SnapshotSpec) *pb.SnapshotSpec {
	return &pb.SnapshotSpec{
		Name: s.Name, Image: s.Image, Sandbox: s.Sandbox, Entrypoint: s.Entrypoint, Resources: resourcesToWire(s.Resources),
		Progress: s.OnProgress != nil,
	}
}

// snapshotSpecFromWire leaves OnProgress to the caller. There is no Build, as in
// specFromWire.
func snapshotSpecFromWire(m *pb.SnapshotSpec) daytona.SnapshotSpec {
	return daytona.SnapshotSpec{
		Name: m.GetName(), Image: m.GetImage(), Sandbox: m.GetSandbox(), Entrypoint: m.GetEntrypoint(), Resources: resourcesFromWire(m.GetResources()),
	}
}

func volumeToWire(v daytona.Volume) *pb.Volume {
	return &pb.Volume{
		Id: v.ID, Name: v.Name, Kind: string(v.Kind), Quota: v.Quota,
		CreatedAt: timeToWire(v.CreatedAt), LastUsedAt: timeToWire(v.LastUsedAt),
	}
}

func volumeFromWire(m *pb.Volume) (daytona.Volume, error) {
	return daytona.Volume{
		ID: m.GetId(), Name: m.GetName(), Kind: daytona.VolumeKind(m.GetKind()), Quota: m.GetQuota(),
		CreatedAt: timeFromWire(m.GetCreatedAt()), LastUsedAt: timeFromWire(m.GetLastUsedAt()),
	}, nil
}

func volumeSpecToWire(v daytona.VolumeSpec) *pb.VolumeSpec {
	m := &pb.VolumeSpec{Name: v.Name, Kind: string(v.Kind), Quota: v.Quota}
	if s := v.S3; s != nil {
		m.S3 = &pb.S3Location{
			Endpoint: s.Endpoint, Region: s.Region, Bucket: s.Bucket, Prefix: s.Prefix,
			AccessKey: s.AccessKey, SecretKey: s.SecretKey, SessionToken: s.SessionToken,
		}
	}
	return m
}

func volumeSpecFromWire(m *pb.VolumeSpec) daytona.VolumeSpec {
	v := daytona.VolumeSpec{Name: m.GetName(), Kind: daytona.VolumeKind(m.GetKind()), Quota: m.GetQuota()}
	if s := m.GetS3(); s != nil {
		v.S3 = &daytona.S3Location{
			Endpoint: s.GetEndpoint(), Region: s.GetRegion(), Bucket: s.GetBucket(), Prefix: s.GetPrefix(),
			AccessKey: s.GetAccessKey(), SecretKey: s.GetSecretKey(), SessionToken: s.GetSessionToken(),
		}
	}
	return v
}

// buildOptionsToWire leaves the Dockerfile and its contexts to the caller.
func buildOptionsToWire(o daytona.BuildOptions) *pb.BuildSpec {
	return &pb.BuildSpec{
		Args: o.Args, Target: o.Target, Secrets: o.Secrets, Platform: o.Platform, NoCache: o.NoCache, Pull: o.Pull,
		Network: networkToWire(o.Network), Resources: resourcesToWire(o.Resources), StepTimeout: intervalToWire(o.StepTimeout),
		Log: o.OnLog != nil, Bases: o.Bases,
	}
}

// buildOptionsFromWire leaves OnLog to the caller.
func buildOptionsFromWire(m *pb.BuildSpec) (daytona.BuildOptions, error) {
	network, err := networkFromWire(m.GetNetwork())
	return daytona.BuildOptions{
		Args: m.GetArgs(), Target: m.GetTarget(), Secrets: m.GetSecrets(), Platform: m.GetPlatform(), NoCache: m.GetNoCache(), Pull: m.GetPull(),
		Network: network, Resources: resourcesFromWire(m.GetResources()), StepTimeout: m.GetStepTimeout().AsDuration(),
		Bases: m.GetBases(),
	}, err
}

// buildLogToWire makes text of what comes from programs.
func buildLogToWire(l daytona.BuildLog) *pb.BuildLog {
	line := l.Line
	if len(line) > maxBuildLine {
		line = line[:maxBuildLine]
	}
	return &pb.BuildLog{
		Step: int64(l.Step), Name: clip(l.Name), Line: []byte(line), Stderr: l.Stderr, Cached: l.Cached, Done: l.Done, Error: clip(l.Error),
	}
}

func buildLogFromWire(m *pb.BuildLog) daytona.BuildLog {
	return daytona.BuildLog{
		Step: int(m.GetStep()), Name: m.GetName(), Line: string(m.GetLine()), Stderr: m.GetStderr(), Cached: m.GetCached(), Done: m.GetDone(), Error: m.GetError(),
	}
}

func builtImageToWire(i daytona.BuiltImage) *pb.BuiltImage {
	return &pb.BuiltImage{Ref: i.Ref, Digest: i.Digest, SizeBytes: i.SizeBytes, Cached: i.Cached}
}

func builtImageFromWire(m *pb.BuiltImage) daytona.BuiltImage {
	return daytona.BuiltImage{Ref: m.GetRef(), Digest: m.GetDigest(), SizeBytes: m.GetSizeBytes(), Cached: m.GetCached()}
}

func configToWire(config url.Values) []*pb.Setting {
	var out []*pb.Setting
	for _, k := range slices.Sorted(maps.Keys(config)) {
		out = append(out, &pb.Setting{Key: k, Values: config[k]})
	}
	return out
}

func configFromWire(settings []*pb.Setting) url.Values {
	out := url.Values{}
	for _, s := range settings {
		out[s.GetKey()] = append(out[s.GetKey()], s.GetValues()...)
	}
	return out
}

// intervalToWire leaves out what never happens.
func intervalToWire(d time.Duration) *durationpb.Duration {
	if d == 0 {
		return nil
	}
	return durationpb.New(d)
}

func optionalToWire(d *time.Duration) *durationpb.Duration {
	if d == nil {
		return nil
	}
	return durationpb.New(*d)
}

func optionalFromWire(m *durationpb.Duration) *time.Duration {
	if m == nil {
		return nil
	}
	d := m.AsDuration()
	return &d
}

func timeToWire(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func timeFromWire(m *timestamppb.Timestamp) time.Time {
	if m == nil {
		return time.Time{}
	}
	return m.AsTime()
}

// known refuses a message with a field that a later version of the protocol
// has added: what it demands cannot be enforced here.
func known(op string, m proto.Message) error {
	var unknown func(m protoreflect.Message) bool
	unknown = func(m protoreflect.Message) bool {
		found := len(m.GetUnknown()) > 0
		m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
			switch {
			case f.IsMap() || f.Message() == nil:
			case f.IsList():
				for i := range v.List().Len() {
					found = found || unknown(v.List().Get(i).Message())
				}
			default:
				found = found || unknown(v.Message())
			}
			return !found
		})
		return found
	}
	if !unknown(m.ProtoReflect()) {
		return nil
	}
	return &daytona.Error{Kind: daytona.KindUnsupported, Op: op, Field: string(m.ProtoReflect().Descriptor().Name()),
		Message: "the request has a field that this plugin does not know, and so cannot enforce; build the plugin with a newer version of the module"}
}

func stopToWire(id string, o daytona.StopOptions) *pb.StopRequest {
	return &pb.StopRequest{Id: id, Force: o.Force}
}

func stopFromWire(m *pb.StopRequest) daytona.StopOptions {
	return daytona.StopOptions{Force: m.GetForce()}
}

func pauseToWire(id string, o daytona.PauseOptions) *pb.PauseRequest {
	return &pb.PauseRequest{Id: id, Disk: o.Disk}
}

func pauseFromWire(m *pb.PauseRequest) daytona.PauseOptions {
	return daytona.PauseOptions{Disk: m.GetDisk()}
}

func forkToWire(id string, o daytona.ForkOptions) *pb.ForkRequest {
	return &pb.ForkRequest{Id: id, Names: o.Names, Memory: o.Memory}
}

func forkFromWire(m *pb.ForkRequest) daytona.ForkOptions {
	return daytona.ForkOptions{Names: m.GetNames(), Memory: m.GetMemory()}
}
