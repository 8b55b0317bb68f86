package executor

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"path"
	"slices"
	"strings"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/registryauth"
	"github.com/daytona-go/daytona/internal/wire"
)

// Labels of the backend's sandboxes, which tell ours from others'.
const (
	labelRunner = "daytona.server/runner"
	labelRef    = "daytona.server/ref"
)

// envID is the variable by which programs know the sandbox's id.
const envID = "DAYTONA_SANDBOX_ID"

// settle tells a sandbox that has just started its own id, if it has its
// parent's: a fork has all that its parent was made with.
func (e *Executor) settle(ctx context.Context, id string, sb daytona.Sandbox) {
	if info := sb.Info(); info.Parent == "" || info.Env[envID] == id {
		return
	}
	body, err := json.Marshal(map[string]any{"set": map[string]string{envID: id}})
	if err != nil {
		return
	}
	r, err := http.NewRequestWithContext(ctx, "POST", "http://"+id+"/env", bytes.NewReader(body))
	if err != nil {
		return
	}
	r.Header.Set("Content-Type", "application/json")
	w, err := e.proxy.RoundTrip(r)
	if err != nil {
		e.log.Warn("a sandbox can't be told its id", "sandbox", id, "err", err)
		return
	}
	w.Body.Close()
}

// isHeavy reports whether a job moves whole images.
func isHeavy(jobType string) bool {
	switch jobType {
	case wire.JobTypeBuildSnapshot, wire.JobTypePullSnapshot, wire.JobTypeCreateBackup, wire.JobTypeSnapshotSandbox, wire.JobTypeInspectSnapshotInRegistry:
		return true
	}
	return false
}

// perform does a job and returns its result, JSON, if it has one.
func (e *Executor) perform(ctx context.Context, j wire.Job) (*string, error) {
	id := j.ResourceID
	var result any
	var err error
	switch j.Type {
	case wire.JobTypeCreateSandbox:
		var p wire.JobSandbox
		if err = decode(j, &p); err == nil {
			result, err = e.create(ctx, id, &p)
		}
	case wire.JobTypeStartSandbox:
		result, err = e.start(ctx, id)
	case wire.JobTypeStopSandbox:
		var p wire.JobStop
		if err = decode(j, &p); err == nil {
			err = e.stop(ctx, id, p.Force)
		}
	case wire.JobTypeDestroySandbox:
		err = e.destroy(ctx, id)
	case wire.JobTypeResizeSandbox:
		var p wire.JobResize
		if err = decode(j, &p); err == nil {
			err = e.resize(ctx, id, p)
		}
	case wire.JobTypeRecoverSandbox:
		var p wire.JobSandbox
		if err = decode(j, &p); err == nil {
			result, err = e.recover(ctx, id, &p)
		}
	case wire.JobTypeCreateBackup:
		var p wire.JobBackup
		if err = decode(j, &p); err == nil {
			result, err = e.backup(ctx, id, &p)
		}
	case wire.JobTypeUpdateSandboxNetworkSettings:
		var p wire.JobNetwork
		var said map[string]any
		if err = errors.Join(decode(j, &p), decode(j, &said)); err == nil {
			err = e.setNetwork(ctx, id, p, said)
		}
	case wire.JobTypePauseSandbox:
		err = e.pauseSandbox(ctx, id)
	case wire.JobTypeForkSandbox:
		var p wire.JobFork
		if err = decode(j, &p); err == nil {
			result, err = e.fork(ctx, p.SourceSandboxID, cmp.Or(p.NewSandboxID, id))
		}
	case wire.JobTypeSnapshotSandbox:
		var p wire.JobSnapshotSandbox
		if err = decode(j, &p); err == nil {
			if p.IncludeMemory {
				err = &daytona.Error{Kind: daytona.KindUnsupported, Field: "includeMemory", Value: true, Message: "the memory of processes can't be kept here"}
				break
			}
			// One reference for one job, so that doing it again finds what is there.
			sum := sha256.Sum256([]byte(j.ID))
			result, err = e.capture(ctx, cmp.Or(p.SandboxID, id), cmp.Or(p.Ref, "daytona-"+hex.EncodeToString(sum[:])+":daytona"), p.Parcel)
		}
	case wire.JobTypeBuildSnapshot:
		var p wire.JobSnapshot
		if err = decode(j, &p); err == nil {
			result, err = e.build(e.credentials(ctx, append(p.SourceRegistries, registries(p.Registry)...)...), id, &p)
		}
	case wire.JobTypePullSnapshot:
		var p wire.JobSnapshot
		if err = decode(j, &p); err == nil {
			ref := cmp.Or(p.DestinationRef, id)
			if p.Parcel != nil {
				result, err = e.fetch(ctx, ref, p.Parcel)
				break
			}
			result, err = e.snapshot(e.credentials(ctx, append(registries(p.Registry), registries(p.DestinationRegistry)...)...), ref, cmp.Or(p.Snapshot, ref))
		}
	case wire.JobTypeRemoveSnapshot:
		err = e.removeSnapshot(ctx, id)
	case wire.JobTypeInspectSnapshotInRegistry:
		var p wire.JobSnapshot
		if err = decode(j, &p); err == nil {
			result, err = e.inspect(e.credentials(ctx, registries(p.Registry)...), cmp.Or(p.Snapshot, id))
		}
	default:
		err = &daytona.Error{Kind: daytona.KindUnsupported, Message: fmt.Sprintf("this runner has no jobs of the type %q", j.Type)}
	}
	if err != nil || result == nil {
		return nil, err
	}
	data, err := json.Marshal(result)
	return new(string(data)), err
}

func decode(j wire.Job, v any) error {
	if j.Payload == nil || *j.Payload == "" {
		return nil
	}
	if err := json.Unmarshal([]byte(*j.Payload), v); err != nil {
		return &daytona.Error{Kind: daytona.KindInvalid, Message: "the job's payload is not what it should be", Err: err}
	}
	return nil
}

// failure is what the server is told of an error: text, or JSON if a recovery
// could help.
func failure(err error) string {
	text := err.Error()
	low := strings.ToLower(text)
	if errors.Is(err, daytona.ErrNoSpace) || slices.ContainsFunc([]string{"no space left on device", "storage limit", "disk quota exceeded"}, func(s string) bool { return strings.Contains(low, s) }) {
		data, err := json.Marshal(map[string]any{"recoverable": true, "errorReason": text})
		if err == nil {
			return string(data)
		}
	}
	return text
}

func registries(r *wire.JobRegistry) []wire.JobRegistry {
	if r == nil {
		return nil
	}
	return []wire.JobRegistry{*r}
}

// credentials gives those of registries to what is pulled with the context.
func (e *Executor) credentials(ctx context.Context, list ...wire.JobRegistry) context.Context {
	var all []registryauth.Credential
	for _, r := range list {
		if r.Username != nil && r.Password != nil && *r.Username != "" {
			all = append(all, registryauth.Credential{Host: registryauth.Host(r.URL), Username: *r.Username, Password: *r.Password})
		}
	}
	return registryauth.With(ctx, all...)
}

// find returns the backend's sandbox for one of the server's.
func (e *Executor) find(ctx context.Context, id string) (daytona.Sandbox, error) {
	if id == "" {
		return nil, errNone(id)
	}
	sb, err := e.c.Client.Get(ctx, id)
	if errors.Is(err, daytona.ErrNotFound) || err == nil && sb.Name() != id {
		e.sandboxes.Delete(id)
		return nil, errNone(id)
	}
	if err == nil {
		e.sandboxes.Store(id, sb)
	}
	return sb, err
}

func errNone(id string) error {
	return &daytona.Error{Kind: daytona.KindNotFound, Subject: id, Message: "this runner has no such sandbox"}
}

// ours reports whether a sandbox of the backend was made for the server by
// this runner.
func (e *Executor) ours(info daytona.Info) bool {
	id := e.ID()
	return id != "" && info.Labels[labelRunner] == id
}

func (e *Executor) started() wire.JobSandboxResult {
	return wire.JobSandboxResult{DaemonVersion: e.c.Version}
}

// create makes a sandbox, or takes one that an earlier try has made.
func (e *Executor) create(ctx context.Context, id string, p *wire.JobSandbox) (any, error) {
	ctx = e.credentials(ctx, registries(p.Registry)...)
	spec, err := e.spec(ctx, id, p)
	if err != nil {
		return nil, err
	}
	sb, err := e.c.Client.Create(ctx, spec)
	if errors.Is(err, daytona.ErrConflict) {
		sb, err = e.adoptSandbox(ctx, id, spec)
	}
	if err != nil {
		return nil, err
	}
	e.sandboxes.Store(id, sb)
	if p.Parcel != nil {
		// It was for this sandbox, which has what it needs of it.
		if err := e.removeSnapshot(ctx, p.Snapshot); err != nil {
			e.log.Warn("a backup that was restored can't be removed from this machine", "sandbox", id, "snapshot", p.Snapshot, "err", err)
		}
	}
	if p.SkipStart != nil && *p.SkipStart {
		if err := sb.Stop(ctx, nil); err != nil {
			return nil, err
		}
	}
	return e.started(), nil
}

// adoptSandbox takes what has the name already: as it is, if it is ours and
// what is wanted, and otherwise by making it anew. What is somebody else's
// stays.
func (e *Executor) adoptSandbox(ctx context.Context, id string, spec daytona.Spec) (daytona.Sandbox, error) {
	sb, err := e.find(ctx, id)
	if errors.Is(err, daytona.ErrNotFound) { // gone meanwhile
		return e.c.Client.Create(ctx, spec)
	}
	if err != nil {
		return nil, err
	}
	info := sb.Info()
	if !e.ours(info) {
		return nil, &daytona.Error{Kind: daytona.KindConflict, Op: "create sandbox", Subject: id, Message: "the backend has a sandbox of this name that is not this runner's"}
	}
	if info.Labels[labelRef] == spec.Labels[labelRef] && info.State != daytona.StateError {
		err = sb.Start(ctx)
		if err == nil {
			e.log.Info("a sandbox was there already", "sandbox", id)
			return sb, nil
		}
		e.log.Warn("a sandbox was there already and does not start: it is made anew", "sandbox", id, "err", err)
	}
	if err := sb.Delete(ctx); err != nil && !errors.Is(err, daytona.ErrNotFound) {
		return nil, err
	}
	return e.c.Client.Create(ctx, spec)
}

// spec is a payload as the backend has it.
func (e *Executor) spec(ctx context.Context, id string, p *wire.JobSandbox) (daytona.Spec, error) {
	network, err := networkOf(p.JobNetwork, daytona.NetworkPolicy{})
	if err != nil {
		return daytona.Spec{}, err
	}
	env := map[string]string{}
	for name, value := range map[string]string{
		envID: id, "DAYTONA_SANDBOX_USER": p.OSUser, "DAYTONA_SANDBOX_SNAPSHOT": p.Snapshot,
		"DAYTONA_ORGANIZATION_ID": cmp.Or(p.OrganizationID, p.UserID), "DAYTONA_REGION_ID": p.RegionID,
	} {
		if value != "" {
			env[name] = value
		}
	}
	maps.Copy(env, p.Env)
	spec := daytona.Spec{
		Name: id, User: p.OSUser, Env: env, Entrypoint: p.Entrypoint, Network: network, Persistent: true,
		Labels: map[string]string{labelRunner: e.ID(), labelRef: p.Snapshot},
		Resources: e.enforced(daytona.Resources{
			CPU: p.CPUQuota, Memory: p.MemoryQuota, Disk: p.StorageQuota, GPU: int(p.GPUQuota),
		}),
	}
	for _, v := range p.Volumes {
		mount, err := e.volume(ctx, v)
		if err != nil {
			return daytona.Spec{}, err
		}
		spec.Volumes = append(spec.Volumes, mount)
	}
	if p.Snapshot == "" {
		return spec, nil
	}
	snapshots, err := e.c.Client.Snapshots()
	if err != nil {
		spec.Image, err = e.image(p.Snapshot)
		return spec, err
	}
	if _, err = e.existing(ctx, snapshots, p.Snapshot); errors.Is(err, daytona.ErrNotFound) && p.Parcel != nil {
		_, err = e.fetch(ctx, p.Snapshot, p.Parcel)
	} else if errors.Is(err, daytona.ErrNotFound) && p.BackupRef == "" && e.named(p) {
		_, err = e.snapshot(ctx, p.Snapshot, p.Snapshot)
	}
	if errors.Is(err, daytona.ErrNotFound) {
		return daytona.Spec{}, &daytona.Error{Kind: daytona.KindNotFound, Op: "create sandbox", Subject: p.Snapshot, Message: "this runner does not have the snapshot", Err: err}
	}
	spec.Snapshot = p.Snapshot
	return spec, err
}

// named reports whether a sandbox's snapshot is the name of an image that may be
// pulled: one of the configuration, or one that says in which registry it is. A
// server's own references say nothing of the kind, and whoever has their name
// in a public registry is a stranger.
func (e *Executor) named(p *wire.JobSandbox) bool {
	if _, ok := e.c.Images[p.Snapshot]; ok || p.Registry != nil {
		return true
	}
	host, _, found := strings.Cut(p.Snapshot, "/")
	return found && (host == "localhost" || strings.ContainsAny(host, ".:"))
}

// enforced leaves out the limits that the backend can't enforce here.
func (e *Executor) enforced(r daytona.Resources) daytona.Resources {
	if slices.Contains(e.c.Unenforced, "cpu") {
		r.CPU = 0
	}
	if slices.Contains(e.c.Unenforced, "memory") {
		r.Memory = 0
	}
	if slices.Contains(e.c.Unenforced, "disk") {
		r.Disk = 0
	}
	return r
}

// image is the backend's name for a reference. Files of this machine are none
// but those that the configuration names.
func (e *Executor) image(ref string) (string, error) {
	if own, ok := e.c.Images[ref]; ok {
		return own, nil
	}
	scheme, _, found := strings.Cut(ref, ":")
	local := []string{"oci", "oci-archive", "docker-archive", "dir", "tar"}
	if ref == daytona.ImageHost || found && slices.Contains(local, scheme) || strings.HasPrefix(strings.TrimPrefix(ref, "docker://"), "daytona.local/") {
		return "", &daytona.Error{Kind: daytona.KindInvalid, Field: "snapshot", Value: ref, Message: "must be an image in a registry"}
	}
	return strings.TrimPrefix(ref, "docker://"), nil
}

func networkOf(n wire.JobNetwork, p daytona.NetworkPolicy) (daytona.NetworkPolicy, error) {
	if n.NetworkAllowList != nil {
		p.Allow = []netip.Prefix{}
		for entry := range strings.SplitSeq(*n.NetworkAllowList, ",") {
			if entry = strings.TrimSpace(entry); entry == "" {
				continue
			}
			prefix, err := netip.ParsePrefix(entry)
			if err != nil {
				addr, err := netip.ParseAddr(entry)
				if err != nil {
					return p, &daytona.Error{Kind: daytona.KindInvalid, Field: "networkAllowList", Value: entry, Message: "must be addresses and CIDRs, divided by commas"}
				}
				prefix = netip.PrefixFrom(addr, addr.BitLen())
			}
			p.Allow = append(p.Allow, prefix.Masked())
		}
	}
	if n.DomainAllowList != nil {
		p.AllowDomains = []string{}
		for entry := range strings.SplitSeq(*n.DomainAllowList, ",") {
			if entry = strings.TrimSpace(entry); entry != "" {
				p.AllowDomains = append(p.AllowDomains, entry)
			}
		}
	}
	if n.NetworkBlockAll != nil {
		p.Block = *n.NetworkBlockAll
	}
	if p.Block { // which says it all
		p.Allow, p.AllowDomains = nil, nil
	}
	return p, p.Validate("set network policy")
}

// volume makes sure that the backend has a volume.
func (e *Executor) volume(ctx context.Context, v wire.JobVolume) (daytona.VolumeMount, error) {
	mount := daytona.VolumeMount{Volume: v.VolumeID, MountPath: path.Clean(v.MountPath), ReadOnly: v.ReadOnly}
	if v.Subpath != nil {
		mount.Subpath = strings.Trim(*v.Subpath, "/")
	}
	manager, err := e.c.Client.Volumes()
	if err != nil {
		return mount, err
	}
	if _, err = manager.GetVolume(ctx, v.VolumeID); !errors.Is(err, daytona.ErrNotFound) {
		return mount, err
	}
	spec := daytona.VolumeSpec{Name: v.VolumeID}
	if s := v.S3; s != nil {
		spec.Kind = daytona.VolumeS3
		spec.S3 = &daytona.S3Location{
			Endpoint: s.Endpoint, Region: s.Region, Bucket: s.Bucket, Prefix: s.Prefix, AccessKey: s.AccessKey, SecretKey: s.SecretKey, SessionToken: s.SessionToken,
		}
	}
	if err := spec.Validate(); err != nil {
		return mount, err
	}
	_, err = manager.CreateVolume(ctx, spec)
	if errors.Is(err, daytona.ErrConflict) { // another sandbox was faster
		err = nil
	}
	return mount, err
}

func (e *Executor) start(ctx context.Context, id string) (any, error) {
	sb, err := e.find(ctx, id)
	if err != nil {
		return nil, err
	}
	if err := sb.Start(ctx); err != nil {
		return nil, err
	}
	e.settle(ctx, id, sb)
	return e.started(), nil
}

func (e *Executor) stop(ctx context.Context, id string, force bool) error {
	sb, err := e.find(ctx, id)
	if err != nil {
		return err
	}
	return sb.Stop(ctx, &daytona.StopOptions{Force: force})
}

func (e *Executor) destroy(ctx context.Context, id string) error {
	defer e.sandboxes.Delete(id)
	sb, err := e.find(ctx, id)
	if err == nil {
		if !e.ours(sb.Info()) {
			return &daytona.Error{Kind: daytona.KindConflict, Op: "destroy sandbox", Subject: id, Message: "the backend's sandbox of this name is not this runner's"}
		}
		err = sb.Delete(ctx)
	}
	if errors.Is(err, daytona.ErrNotFound) {
		return nil
	}
	return err
}

func (e *Executor) resize(ctx context.Context, id string, p wire.JobResize) error {
	sb, err := e.find(ctx, id)
	if err != nil {
		return err
	}
	want := e.enforced(daytona.Resources{CPU: p.CPU, Memory: p.Memory, Disk: p.Disk})
	if want.Disk == sb.Info().Resources.Disk {
		want.Disk = 0 // which can be changed only when it is stopped
	}
	if want == (daytona.Resources{}) {
		return nil
	}
	return sb.Resize(ctx, want)
}

// recover makes a sandbox usable again that has failed: stopped, or started
// unless that is to be left.
func (e *Executor) recover(ctx context.Context, id string, p *wire.JobSandbox) (any, error) {
	sb, err := e.find(ctx, id)
	if errors.Is(err, daytona.ErrNotFound) && p.Snapshot != "" {
		return e.create(ctx, id, p)
	}
	if err != nil {
		return nil, err
	}
	if err := sb.Stop(ctx, &daytona.StopOptions{Force: true}); err != nil {
		return nil, err
	}
	reason := ""
	if p.ErrorReason != nil {
		reason = *p.ErrorReason
	}
	if full := strings.HasPrefix(failure(errors.New(reason)), "{"); full && sb.Info().Resources.Disk > 0 {
		if now := sb.Info().Resources.Disk; now < p.StorageQuota*1.2 || p.StorageQuota == 0 {
			// A tenth more, twice at most: enough to start, and to clear up.
			if err := sb.Resize(ctx, daytona.Resources{Disk: now + max(now/10, 1.0/16)}); err != nil {
				return nil, err
			}
		}
	}
	if p.SkipStart != nil && *p.SkipStart {
		return e.started(), nil
	}
	if err := sb.Start(ctx); err != nil {
		return nil, err
	}
	e.settle(ctx, id, sb)
	return e.started(), nil
}

// setNetwork replaces what of the policy is said: null is the default, what is
// left out stays.
func (e *Executor) setNetwork(ctx context.Context, id string, n wire.JobNetwork, said map[string]any) error {
	sb, err := e.find(ctx, id)
	if err != nil {
		return err
	}
	before := sb.Info().Network
	for field, reset := range map[string]func(){
		"networkBlockAll":  func() { before.Block = false },
		"networkAllowList": func() { before.Allow = nil },
		"domainAllowList":  func() { before.AllowDomains = nil },
	} {
		if _, ok := said[field]; ok {
			reset()
		}
	}
	policy, err := networkOf(n, before)
	if err != nil {
		return err
	}
	return sb.SetNetworkPolicy(ctx, policy)
}

func (e *Executor) pauseSandbox(ctx context.Context, id string) error {
	sb, err := e.find(ctx, id)
	if err != nil {
		return err
	}
	return sb.Pause(ctx, nil)
}

func (e *Executor) fork(ctx context.Context, source, id string) (any, error) {
	if !daytona.ValidName(id) || id == source {
		return nil, &daytona.Error{Kind: daytona.KindInvalid, Field: "newSandboxId", Value: id, Message: "must be the id of a sandbox to be"}
	}
	// It changes nothing of the source, but must see it at rest.
	unlock := func() {}
	if source != "" {
		var err error
		if unlock, err = e.lock(ctx, source); err != nil {
			return nil, err
		}
	}
	defer unlock()
	parent, err := e.find(ctx, source)
	if err != nil {
		return nil, err
	}
	children, err := parent.Fork(ctx, &daytona.ForkOptions{Names: []string{id}})
	if errors.Is(err, daytona.ErrConflict) {
		child, err := e.find(ctx, id)
		if err != nil {
			return nil, err
		}
		if info := child.Info(); !e.ours(info) || info.Parent != parent.ID() {
			return nil, &daytona.Error{Kind: daytona.KindConflict, Op: "fork sandbox", Subject: id, Message: "the backend has another sandbox of this name"}
		}
		if err := child.Start(ctx); err != nil {
			return nil, err
		}
		e.settle(ctx, id, child)
		return e.started(), nil
	}
	if err != nil {
		return nil, err
	}
	e.sandboxes.Store(id, children[0])
	e.settle(ctx, id, children[0])
	return e.started(), nil
}

// snapshot makes sure that the backend has a snapshot of a reference, from an
// image if it has none.
func (e *Executor) snapshot(ctx context.Context, ref, image string) (any, error) {
	snapshots, err := e.c.Client.Snapshots()
	if err != nil {
		// A backend without them makes sandboxes from images.
		_, err = e.image(image)
		return wire.JobSnapshotResult{Name: ref, Ref: ref}, err
	}
	s, err := e.existing(ctx, snapshots, ref)
	if errors.Is(err, daytona.ErrNotFound) {
		if err = e.mayPull(ctx, image); err != nil {
			return nil, err
		}
		if image, err = e.image(image); err != nil {
			return nil, err
		}
		s, err = e.c.Client.CreateSnapshot(ctx, daytona.SnapshotSpec{Name: ref, Image: image})
		if errors.Is(err, daytona.ErrConflict) {
			s, err = e.existing(ctx, snapshots, ref)
		}
	}
	if err != nil {
		return nil, err
	}
	return resultOf(s), nil
}

// existing returns a snapshot that the backend has, and makes it active.
func (e *Executor) existing(ctx context.Context, snapshots daytona.Snapshotter, ref string) (daytona.Snapshot, error) {
	s, err := snapshots.GetSnapshot(ctx, ref)
	if err == nil && s.State == daytona.SnapshotInactive {
		s, err = snapshots.SetSnapshotActive(ctx, ref, true)
	}
	return s, err
}

func resultOf(s daytona.Snapshot) wire.JobSnapshotResult {
	// Of what it is, not of its bytes: they are nowhere as one.
	sum := sha256.Sum256([]byte(s.ID))
	return wire.JobSnapshotResult{
		Name: s.Name, Ref: s.Name, Hash: "sha256:" + hex.EncodeToString(sum[:]), SizeGB: float64(s.SizeBytes) / daytona.GiB, Entrypoint: s.Entrypoint,
	}
}

// keep makes a snapshot of a sandbox's present files.
func (e *Executor) keep(ctx context.Context, id, ref string) (r wire.JobSnapshotResult, err error) {
	if ref == "" {
		return r, &daytona.Error{Kind: daytona.KindInvalid, Field: "snapshot", Message: "must say what the snapshot is called"}
	}
	snapshots, err := e.c.Client.Snapshots()
	if err != nil {
		return r, err
	}
	sb, err := e.find(ctx, id)
	if err != nil {
		return r, err
	}
	s, err := e.c.Client.CreateSnapshot(ctx, daytona.SnapshotSpec{Name: ref, Sandbox: sb.ID()})
	if errors.Is(err, daytona.ErrConflict) {
		// An earlier try has made it.
		if have, getErr := e.existing(ctx, snapshots, ref); getErr == nil && have.Sandbox == sb.ID() {
			s, err = have, nil
		}
	}
	if err != nil {
		return r, err
	}
	return resultOf(s), nil
}

func (e *Executor) removeSnapshot(ctx context.Context, ref string) error {
	e.logs.remove(ref)
	snapshots, err := e.c.Client.Snapshots()
	if err != nil {
		return nil // there was none
	}
	if err = snapshots.DeleteSnapshot(ctx, ref); errors.Is(err, daytona.ErrNotFound) {
		return nil
	}
	return err
}
