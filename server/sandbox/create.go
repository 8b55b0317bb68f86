package sandbox

import (
	"context"
	"net/netip"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/daytona-go/daytona"
)

// Spec describes a sandbox to create. Nil and zero fields have defaults.
type Spec struct {
	// Name defaults to the id.
	Name string
	// Snapshot is a name or id. Defaults to the default snapshot, or to Build.
	Snapshot string
	Build    *SpecBuild
	// User defaults to "daytona".
	User   string
	Env    map[string]string
	Labels map[string]string
	Public bool

	NetworkBlockAll bool
	// NetworkAllowList are CIDRs, DomainAllowList host names, with commas. An
	// empty one allows nothing.
	NetworkAllowList, DomainAllowList *string
	OutboundProxy                     string
	OTelEndpoint                      string

	// Target is the name or id of a region. Defaults to the organization's.
	Target string
	// Resources are for a Build only: a snapshot has its own.
	Resources Resources
	GPUTypes  []string
	Spot      bool

	// Intervals and the time to live, in minutes. AutoStop defaults to 15, and to
	// 0 with AutoPause; AutoArchive to 10080; AutoDelete to -1.
	AutoStop, AutoPause, AutoArchive, AutoDelete, TTL *int

	Volumes []Volume
	Secrets []Secret
	// Linked is the id or name of the sandbox to link it to.
	Linked string
}

// SpecBuild is an image to build.
type SpecBuild struct {
	Dockerfile    string
	ContextHashes []string
}

// Defaults and limits of what a client sends.
const (
	defaultUser        = "daytona"
	defaultAutoStop    = 15
	defaultAutoArchive = 10080
	maxMinutes         = 10 * 365 * 24 * 60
	maxEntries         = 512
	maxBytes           = 256 << 10
	maxDockerfile      = 1 << 20
	maxVolumes         = 64
	maxSecrets         = 64
)

// Create makes a sandbox and waits until it is started, for as long as a
// request waits; one with a build is returned at once.
func (s *Service) Create(ctx context.Context, organizationID string, n Spec) (*Sandbox, error) {
	if _, err := s.deps.Organizations.Active(ctx, organizationID); err != nil {
		return nil, err
	}
	// Demanded even where a target is named, as clients know it.
	if n.Target != "" {
		if _, err := s.deps.Regions.Target(ctx, organizationID, ""); err != nil {
			return nil, err
		}
	}
	region, err := s.deps.Regions.Target(ctx, organizationID, n.Target)
	if err != nil {
		return nil, err
	}
	sb, err := s.prepare(ctx, organizationID, region, &n)
	if err != nil {
		return nil, err
	}
	if claimed, err := s.claim(ctx, sb, &n); claimed != nil || err != nil {
		return claimed, err
	}
	if err := s.add(ctx, sb); err != nil {
		return nil, err
	}
	if sb.State == PendingBuild {
		return sb, nil
	}
	return s.waitStarted(ctx, sb)
}

// add writes a new sandbox and begins its first step.
func (s *Service) add(ctx context.Context, sb *Sandbox) error {
	return s.db.Tx(ctx, func(ctx context.Context) error {
		if err := s.reserve(ctx, sb, sb.Resources()); err != nil {
			return err
		}
		if len(sb.Secrets) > 0 {
			if _, err := s.deps.Secrets.Attach(ctx, sb.OrganizationID, sb.ID, secretMap(sb.Secrets)); err != nil {
				return err
			}
		}
		if sb.LinkedID != "" {
			// The owner must still be there when the link is.
			if _, err := s.get(ctx, sb.OrganizationID, sb.LinkedID, true); err != nil {
				return err
			}
		}
		if err := s.insert(ctx, sb); err != nil {
			return err
		}
		if sb.State == PendingBuild {
			// Not now: a client must see that there is a build, to read its log.
			return s.db.Publish(ctx, TopicWake, sb.ID)
		}
		if err := s.advance(ctx, sb); err != nil {
			return err
		}
		return s.save(ctx, sb)
	})
}

// waitStarted waits for a new or starting sandbox.
func (s *Service) waitStarted(ctx context.Context, sb *Sandbox) (*Sandbox, error) {
	if sb.State == Started {
		return sb, nil
	}
	sb, err := s.wait(ctx, sb.ID, func(sb *Sandbox) bool {
		return sb.State == Started || sb.State == Errored || sb.State == BuildFailed || sb.Desired != WantStarted
	})
	if err != nil {
		return nil, err
	}
	if sb.State == Errored || sb.State == BuildFailed {
		return nil, state("Sandbox failed to start: " + sb.ErrorReason)
	}
	return sb, nil
}

// prepare checks all rules that can be checked before, and makes the row.
func (s *Service) prepare(ctx context.Context, organizationID string, region Region, n *Spec) (*Sandbox, error) {
	now := s.now()
	sb := &Sandbox{
		ID: newID(), OrganizationID: organizationID, Name: n.Name, RegionID: region.ID, Class: ClassContainer,
		State: Unknown, Desired: WantStarted, StateSince: now, Snapshot: "", User: n.User, Env: n.Env, Labels: n.Labels, Public: n.Public,
		NetworkBlockAll: n.NetworkBlockAll, OTelEndpoint: n.OTelEndpoint, Backup: BackupNone,
		Volumes: []Volume{}, Secrets: []Secret{}, Entrypoint: []string{},
		CreatedAt: now, UpdatedAt: now, LastActivityAt: now,
	}
	if sb.Name == "" {
		sb.Name = sb.ID
	}
	if sb.User == "" {
		sb.User = defaultUser
	}
	if sb.Env == nil {
		sb.Env = map[string]string{}
	}
	if sb.Labels == nil {
		sb.Labels = map[string]string{}
	}
	if err := checkDisplay("name", sb.Name, 255); err != nil {
		return nil, err
	}
	if err := (daytona.Spec{User: sb.User, Env: sb.Env}).Validate(); err != nil {
		return nil, err
	}
	if err := checkMap("env", sb.Env); err != nil {
		return nil, err
	}
	if err := checkLabels(sb.Labels); err != nil {
		return nil, err
	}
	if err := s.intervals(sb, n); err != nil {
		return nil, err
	}
	if err := s.network(sb, n); err != nil {
		return nil, err
	}
	if err := s.source(ctx, sb, region, n); err != nil {
		return nil, err
	}
	if err := s.gpu(sb, n); err != nil {
		return nil, err
	}
	if err := s.linked(ctx, sb, n); err != nil {
		return nil, err
	}
	var err error
	if sb.Volumes, err = s.volumes(ctx, organizationID, n.Volumes); err != nil {
		return nil, err
	}
	if sb.Secrets, err = s.secrets(n.Secrets); err != nil {
		return nil, err
	}
	if max, err := s.deps.Quotas.Lifespan(ctx, organizationID, region.ID, sb.Class); err != nil {
		return nil, err
	} else if max > 0 {
		if limit := now.Add(max); sb.DestroyAt == nil {
			sb.DestroyAt = &limit
		} else if sb.DestroyAt.After(limit) {
			return nil, invalid("ttlMinutes %d exceeds the maximum lifespan of %d minutes", *n.TTL, int(max/time.Minute))
		}
	}
	if err := s.renew(sb); err != nil {
		return nil, err
	}
	sb.SigningKey = s.seals.seal("signing "+sb.ID, token(64))
	return sb, nil
}

// source finds out what it is made from.
func (s *Service) source(ctx context.Context, sb *Sandbox, region Region, n *Spec) error {
	if b := n.Build; b != nil {
		if n.Snapshot != "" {
			return invalid("Cannot specify a snapshot when using buildInfo")
		}
		if n.Linked != "" {
			return invalid("Cannot specify linkedSandbox when using buildInfo")
		}
		if strings.TrimSpace(b.Dockerfile) == "" || len(b.Dockerfile) > maxDockerfile || strings.ContainsRune(b.Dockerfile, 0) {
			return invalid("buildInfo.dockerfileContent must be a Dockerfile of at most %d bytes", maxDockerfile)
		}
		if len(b.ContextHashes) > maxEntries {
			return invalid("buildInfo.contextHashes has %d entries and must have at most %d", len(b.ContextHashes), maxEntries)
		}
		for _, h := range b.ContextHashes {
			if !hashRule.MatchString(h) {
				return invalid("buildInfo.contextHashes: %q must be 1 to 128 letters and digits", clip(h))
			}
		}
		r := n.Resources
		for _, v := range []struct {
			name  string
			value int
		}{{"cpu", r.CPU}, {"memory", r.Memory}, {"disk", r.Disk}, {"gpu", r.GPU}} {
			if v.value < 0 || v.value > 1<<20 {
				return invalid("%s %d must be at least 1", v.name, v.value)
			}
		}
		r.CPU, r.Memory, r.Disk = or(r.CPU, 1), or(r.Memory, 1), or(r.Disk, 3)
		ref, entrypoint, err := s.deps.Snapshots.Build(ctx, sb.OrganizationID, b.Dockerfile, b.ContextHashes)
		if err != nil {
			return err
		}
		if entrypoint != nil {
			sb.Entrypoint = entrypoint
		}
		sb.Build = &Build{Dockerfile: b.Dockerfile, ContextHashes: b.ContextHashes, Ref: ref, CreatedAt: sb.CreatedAt, UpdatedAt: sb.CreatedAt}
		sb.Ref, sb.CPU, sb.Memory, sb.Disk, sb.GPU = ref, r.CPU, r.Memory, r.Disk, r.GPU
		ready, err := s.deps.Snapshots.Ready(ctx, ref)
		if err != nil {
			return err
		}
		if len(ready) == 0 {
			sb.State = PendingBuild
		}
		return nil
	}
	if n.Resources != (Resources{}) || len(n.GPUTypes) > 0 {
		return invalid("Cannot specify Sandbox resources when using a snapshot")
	}
	name := n.Snapshot
	if name == "" {
		name = s.config.DefaultSnapshot
	}
	snapshot, err := s.deps.Snapshots.Resolve(ctx, sb.OrganizationID, region.ID, name)
	if err != nil {
		return err
	}
	sb.Snapshot, sb.SnapshotID, sb.Ref = snapshot.Name, snapshot.ID, snapshot.Ref
	sb.CPU, sb.Memory, sb.Disk, sb.GPU = snapshot.Resources.CPU, snapshot.Resources.Memory, snapshot.Resources.Disk, snapshot.Resources.GPU
	sb.GPUType = snapshot.GPUType
	if snapshot.Class != "" {
		sb.Class = snapshot.Class
	}
	if snapshot.Entrypoint != nil {
		sb.Entrypoint = snapshot.Entrypoint
	}
	return nil
}

var hashRule = regexp.MustCompile(`^[A-Za-z0-9_-]{1,128}$`)

func or(v, def int) int {
	if v == 0 {
		return def
	}
	return v
}

func (s *Service) gpu(sb *Sandbox, n *Spec) error {
	if sb.GPU == 0 {
		if len(n.GPUTypes) > 0 {
			return invalid("gpuType needs gpu to be at least 1")
		}
		if n.Spot {
			return invalid("spot needs gpu to be at least 1")
		}
		return nil
	}
	if sb.GPU > 1 {
		return invalid("gpu %d must be at most 1", sb.GPU)
	}
	if !sb.Ephemeral() {
		return invalid("GPU sandboxes must be ephemeral - set autoDeleteInterval to 0")
	}
	if n.Spot {
		return unsupported("spot is not supported: nothing is taken from sandboxes for others here")
	}
	if n.Linked != "" {
		return invalid("GPU sandboxes cannot be linked to another sandbox")
	}
	if len(n.GPUTypes) > 0 {
		sb.GPUType = strings.Join(n.GPUTypes, ",")
	}
	return nil
}

func (s *Service) linked(ctx context.Context, sb *Sandbox, n *Spec) error {
	if n.Linked == "" {
		if sb.Class == ClassAndroid {
			return invalid("android sandboxes must be linked to another sandbox - set linkedSandbox")
		}
		return nil
	}
	owner, err := s.Get(ctx, sb.OrganizationID, n.Linked)
	if err != nil {
		return err
	}
	switch {
	case owner.State != Started && owner.State != Stopped || owner.RunnerID == "" || owner.Desired == WantDestroyed:
		return state("Linked sandbox must be started or stopped")
	case owner.LinkedID != "":
		return invalid("Linked sandbox must not be linked to another sandbox itself")
	case owner.GPU > 0:
		return invalid("GPU sandboxes cannot be the target of a link")
	case !sb.Ephemeral():
		return invalid("Linked sandboxes must be ephemeral - set autoDeleteInterval to 0")
	case owner.RegionID != sb.RegionID:
		return invalid("Linked sandbox is in another region")
	}
	r, err := s.runner(ctx, owner.RunnerID)
	if err != nil {
		return err
	}
	if !r.Can(CanLink) {
		return unsupported("linkedSandbox is not supported: the runner of the sandbox can give no two sandboxes a network of their own")
	}
	sb.LinkedID = owner.ID
	return nil
}

// volumes checks mounts and makes ids of names.
func (s *Service) volumes(ctx context.Context, organizationID string, mounts []Volume) ([]Volume, error) {
	all := make([]Volume, 0, len(mounts))
	if len(mounts) == 0 {
		return all, nil
	}
	if len(mounts) > maxVolumes {
		return nil, invalid("volumes has %d entries and must have at most %d", len(mounts), maxVolumes)
	}
	if s.deps.Volumes == nil {
		return nil, unsupported("volumes is not supported: this server has no volumes")
	}
	used := map[string]bool{}
	for _, m := range mounts {
		if err := checkMount(m); err != nil {
			return nil, err
		}
		if used[m.MountPath] {
			return nil, invalid("Invalid mount path %s: it is used twice", m.MountPath)
		}
		used[m.MountPath] = true
		v, err := s.deps.Volumes.Find(ctx, organizationID, m.VolumeID)
		if err != nil {
			return nil, err
		}
		if !v.Ready {
			return nil, state("Volume " + v.Name + " is not in a ready state. Current state: " + v.State)
		}
		all = append(all, Volume{v.ID, m.MountPath, m.Subpath, m.ReadOnly})
	}
	return all, nil
}

func checkMount(m Volume) error {
	p := m.MountPath
	if m.VolumeID == "" || len(m.VolumeID) > 255 {
		return invalid("volumeId must be the id or name of a volume")
	}
	if !strings.HasPrefix(p, "/") || p == "/" || len(p) > 4096 || strings.ContainsFunc(p, unicode.IsControl) || path.Clean(p) != strings.TrimSuffix(p, "/") {
		return invalid("Invalid mount path %q: it must be absolute, other than /, and without . or .. or //", clip(p))
	}
	first, _, _ := strings.Cut(p[1:], "/")
	if slices.Contains([]string{"proc", "sys", "dev", "boot", "etc", "bin", "sbin", "lib", "lib64"}, first) {
		return invalid("Invalid mount path %q: it must not be below /%s", clip(p), first)
	}
	if s := m.Subpath; s != "" && (strings.HasPrefix(s, "/") || strings.Contains(s, "//") || strings.ContainsFunc(s, unicode.IsControl) ||
		len(s) > 4096 || strings.Contains(s, "..")) {
		return invalid("Invalid subpath %q: it must be relative, without .. or //", clip(s))
	}
	return nil
}

// secretMap has the names of secrets by their variables.
func secretMap(list []Secret) map[string]string {
	m := map[string]string{}
	for _, v := range list {
		m[v.Env] = v.Name
	}
	return m
}

func (s *Service) secrets(list []Secret) ([]Secret, error) {
	if len(list) == 0 {
		return []Secret{}, nil
	}
	if s.deps.Secrets == nil {
		return nil, unsupported("secrets is not supported: this server can keep no secret from the programs that use it")
	}
	if len(list) > maxSecrets {
		return nil, invalid("secrets has %d entries and must have at most %d", len(list), maxSecrets)
	}
	seen := map[string]bool{}
	for _, v := range list {
		if err := daytona.ValidateEnv("", "secrets", map[string]string{v.Env: ""}); err != nil {
			return nil, err
		}
		if seen[v.Env] {
			return nil, invalid("secrets: %s is there twice", v.Env)
		}
		seen[v.Env] = true
	}
	return list, nil
}

// intervals checks the intervals and the time to live.
func (s *Service) intervals(sb *Sandbox, n *Spec) error {
	sb.AutoStop, sb.AutoArchive, sb.AutoDelete = defaultAutoStop, min(defaultAutoArchive, s.config.MaxAutoArchive), -1
	if n.AutoPause != nil && *n.AutoPause > 0 {
		sb.AutoStop = 0
	}
	for _, f := range []struct {
		name string
		from *int
		to   *int
	}{{"Auto-stop", n.AutoStop, &sb.AutoStop}, {"Auto-pause", n.AutoPause, &sb.AutoPause}} {
		if f.from == nil {
			continue
		}
		if err := checkMinutes(f.name+" interval", *f.from); err != nil {
			return err
		}
		*f.to = *f.from
	}
	if n.AutoArchive != nil {
		var err error
		if sb.AutoArchive, err = s.archiveInterval(*n.AutoArchive); err != nil {
			return err
		}
	}
	if n.AutoDelete != nil {
		sb.AutoDelete = max(*n.AutoDelete, -1)
		if sb.AutoDelete > maxMinutes {
			return checkMinutes("Auto-delete interval", sb.AutoDelete)
		}
	}
	if sb.AutoStop != 0 && sb.AutoPause != 0 {
		return invalid("At most one of autoStopInterval and autoPauseInterval may be non-zero")
	}
	if sb.AutoPause != 0 && sb.Ephemeral() {
		return invalid("autoPauseInterval is not allowed for ephemeral sandboxes")
	}
	if n.TTL != nil {
		if err := checkMinutes("ttlMinutes", *n.TTL); err != nil {
			return err
		}
		if *n.TTL > 0 {
			sb.DestroyAt = new(sb.CreatedAt.Add(time.Duration(*n.TTL) * time.Minute))
		}
	}
	return nil
}

func checkMinutes(name string, v int) error {
	if v < 0 {
		return invalid("%s must be non-negative", name)
	}
	if v > maxMinutes {
		return invalid("%s %d must be at most %d minutes", name, v, maxMinutes)
	}
	return nil
}

// archiveInterval caps an interval; 0 is the longest.
func (s *Service) archiveInterval(v int) (int, error) {
	if v < 0 {
		return 0, checkMinutes("Auto-archive interval", v)
	}
	if v == 0 || v > s.config.MaxAutoArchive {
		return s.config.MaxAutoArchive, nil
	}
	return v, nil
}

// network checks what it may reach.
func (s *Service) network(sb *Sandbox, n *Spec) error {
	if l := n.NetworkAllowList; l != nil {
		list, err := checkCIDRs(*l)
		if err != nil {
			return err
		}
		// An empty list allows nothing.
		if sb.NetworkAllowList = list; list == nil {
			sb.NetworkBlockAll = true
		}
	}
	if l := n.DomainAllowList; l != nil {
		list, err := checkDomains(*l)
		if err != nil {
			return err
		}
		if sb.DomainAllowList = list; list == nil {
			sb.NetworkBlockAll = true
		}
	}
	if sb.NetworkBlockAll {
		sb.NetworkAllowList, sb.DomainAllowList = nil, nil
	}
	if n.OutboundProxy != "" {
		u, err := url.Parse(n.OutboundProxy)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || len(n.OutboundProxy) > 2048 {
			// It may have a password, so it is not repeated.
			return invalid("outboundProxyUrl must be a URL with http or https")
		}
		if sb.DomainAllowList != nil {
			return unsupported("outboundProxyUrl together with domainAllowList is not supported: nothing makes programs use the proxy")
		}
		sb.OutboundProxy = s.seals.seal("proxy "+sb.ID, n.OutboundProxy)
	}
	if sb.OTelEndpoint != "" {
		u, err := url.Parse(sb.OTelEndpoint)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || len(sb.OTelEndpoint) > 2048 {
			return invalid("otelEndpointOverride must be a URL with http or https")
		}
	}
	return nil
}

// checkCIDRs checks a list of networks; nil for an empty one.
func checkCIDRs(list string) (*string, error) {
	parts := split(list)
	if len(parts) == 0 {
		return nil, nil
	}
	if len(parts) > 10 {
		return nil, invalid("networkAllowList has %d networks and must have at most 10", len(parts))
	}
	for i, p := range parts {
		prefix, err := netip.ParsePrefix(p)
		if err != nil || !prefix.Addr().Is4() {
			return nil, invalid("networkAllowList: %q must be an IPv4 network such as 203.0.113.0/24", clip(p))
		}
		parts[i] = prefix.Masked().String()
	}
	return new(strings.Join(parts, ",")), nil
}

// checkDomains checks a list of host names; nil for an empty one.
func checkDomains(list string) (*string, error) {
	parts := split(list)
	if len(parts) == 0 {
		return nil, nil
	}
	if len(parts) > 10 {
		return nil, invalid("domainAllowList has %d names and must have at most 10", len(parts))
	}
	for _, p := range parts {
		if err := (daytona.NetworkPolicy{AllowDomains: []string{p}}).Validate(""); err != nil {
			return nil, invalid("domainAllowList: %q must be a host name, optionally after *.", clip(p))
		}
	}
	return new(strings.Join(parts, ",")), nil
}

func split(list string) []string {
	var parts []string
	for p := range strings.SplitSeq(list, ",") {
		if p = strings.TrimSpace(p); p != "" {
			parts = append(parts, p)
		}
	}
	return parts
}

var markup = regexp.MustCompile(`(?i)<[a-z/!]|[a-z][a-z0-9+.-]*://|\bwww\.|javascript:|data:`)

// checkDisplay checks what is shown to people.
func checkDisplay(field, v string, limit int) error {
	if v == "" || len(v) > limit {
		return invalid("%s must be 1 to %d bytes", field, limit)
	}
	if !utf8.ValidString(v) || strings.ContainsFunc(v, unicode.IsControl) || markup.MatchString(v) {
		return invalid("%s must not contain HTML tags, URLs, or control characters", field)
	}
	return nil
}

func checkMap(field string, m map[string]string) error {
	size := 0
	for k, v := range m {
		size += len(k) + len(v)
		if !utf8.ValidString(k) || !utf8.ValidString(v) || strings.ContainsRune(k, 0) || strings.ContainsRune(v, 0) {
			return invalid("%s must be text without NUL", field)
		}
	}
	if len(m) > maxEntries || size > maxBytes {
		return invalid("%s has %d entries and %d bytes and must have at most %d and %d", field, len(m), size, maxEntries, maxBytes)
	}
	return nil
}

func checkLabels(m map[string]string) error {
	if _, ok := m[""]; ok {
		return invalid("labels: a name must not be empty")
	}
	for k, v := range m {
		// The database has an index of both.
		if len(k) > 512 || len(v) > 1024 {
			return invalid("labels: %q must have a name of at most 512 and a value of at most 1024 bytes", clip(k))
		}
	}
	return checkMap("labels", m)
}
