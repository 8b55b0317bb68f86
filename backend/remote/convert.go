package remote

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/wire"
)

// Labels of this package's own are not shown. They are how a sandbox of ours is
// found when the answer to its creation was lost, and told from a persistent one.
const (
	labelLanguage = "code-toolbox-language" // the SDKs'
	labelOwn      = "daytona-go-"
	labelRequest  = labelOwn + "request" // random
	labelLease    = labelOwn + "lease"   // which intervals are the lease's: "stop", "delete"
	labelParent   = labelOwn + "parent"  // the id of what it was forked from
)

// maxList is how many networks and how many domains the wire takes.
const maxList = 10

func unsupported(op, field string, value any, why string) error {
	return &daytona.Error{Kind: daytona.KindUnsupported, Op: op, Field: field, Value: value, Message: why}
}

// minutes is d as the wire counts intervals.
func minutes(op, field string, d time.Duration) (int, error) {
	if d < 0 || d > 0 && d < time.Second {
		return 0, &daytona.Error{Kind: daytona.KindInvalid, Op: op, Field: field, Value: d, Message: "must be 0 (never) or at least 1s"}
	}
	if d%time.Minute != 0 || d/time.Minute > math.MaxInt32 {
		return 0, unsupported(op, field, d, "the wire counts in whole minutes")
	}
	return int(d / time.Minute), nil
}

// whole is a resource as the wire counts it; nil for 0, the default.
func whole(op, field string, v float64) (*int, error) {
	if v == 0 {
		return nil, nil
	}
	if v != math.Trunc(v) || v > math.MaxInt32 {
		return nil, unsupported(op, field, v, "the wire counts whole cores and whole GiB")
	}
	return new(int(v)), nil
}

// wireResources are resources as the wire has them; nil where they are 0.
type wireResources struct{ cpu, memory, disk, gpu *int }

func resourcesOf(op string, r daytona.Resources) (w wireResources, err error) {
	switch {
	case r.Processes != 0:
		return w, unsupported(op, "Resources.Processes", r.Processes, "the wire has no limit of processes")
	case r.DiskBandwidth != 0:
		return w, unsupported(op, "Resources.DiskBandwidth", r.DiskBandwidth, "the wire has no limit of the disk's bandwidth")
	}
	if w.cpu, err = whole(op, "Resources.CPU", r.CPU); err != nil {
		return w, err
	}
	if w.memory, err = whole(op, "Resources.Memory", r.Memory); err != nil {
		return w, err
	}
	if w.disk, err = whole(op, "Resources.Disk", r.Disk); err != nil {
		return w, err
	}
	w.gpu, err = whole(op, "Resources.GPU", float64(r.GPU))
	return w, err
}

// wireNetwork is a policy as the wire has it: lists are joined by commas.
func wireNetwork(op string, p daytona.NetworkPolicy) (block bool, networks, domains string, err error) {
	// A list that is there and empty denies everything.
	if p.Block || p.Allow != nil && len(p.Allow) == 0 || p.AllowDomains != nil && len(p.AllowDomains) == 0 {
		return true, "", "", nil
	}
	if len(p.Allow) > maxList {
		return false, "", "", unsupported(op, "Network.Allow", len(p.Allow), "the wire takes at most 10 networks")
	}
	if len(p.AllowDomains) > maxList {
		return false, "", "", unsupported(op, "Network.AllowDomains", len(p.AllowDomains), "the wire takes at most 10 domains")
	}
	list := make([]string, len(p.Allow))
	for i, a := range p.Allow {
		if !a.Addr().Is4() {
			return false, "", "", unsupported(op, fmt.Sprintf("Network.Allow[%d]", i), a.String(), "the wire takes IPv4 networks only")
		}
		list[i] = a.String()
	}
	return false, strings.Join(list, ","), strings.Join(p.AllowDomains, ","), nil
}

// networkOf reads a policy of the wire.
func networkOf(block bool, networks, domains *string) daytona.NetworkPolicy {
	p := daytona.NetworkPolicy{Block: block}
	for _, s := range split(networks) {
		if a, err := netip.ParsePrefix(s); err == nil {
			p.Allow = append(p.Allow, a)
		}
	}
	p.AllowDomains = split(domains)
	return p
}

func split(list *string) (parts []string) {
	if list == nil {
		return nil
	}
	for s := range strings.SplitSeq(*list, ",") {
		if s = strings.TrimSpace(s); s != "" {
			parts = append(parts, s)
		}
	}
	return parts
}

// leased are the intervals that are the lease's.
type leased struct{ stop, remove bool }

func (l leased) String() string {
	var parts []string
	if l.stop {
		parts = append(parts, "stop")
	}
	if l.remove {
		parts = append(parts, "delete")
	}
	return strings.Join(append([]string{"client"}, parts...), "-")
}

// request makes the body of a creation, all but what it is made from.
func (b *backend) request(spec daytona.Spec, nonce string) (wire.CreateSandbox, error) {
	const op = createOp
	c := wire.CreateSandbox{Env: spec.Env, Labels: map[string]string{labelRequest: nonce}}
	fail := func(err error) (wire.CreateSandbox, error) { return wire.CreateSandbox{}, err }

	language := spec.Language
	if language == "" {
		language = "python"
	}
	for k, v := range spec.Labels {
		if err := checkLabel(op, k, v, language); err != nil {
			return fail(err)
		}
		c.Labels[k] = v
	}
	c.Labels[labelLanguage] = language
	if spec.Name != "" {
		c.Name = new(spec.Name)
	}
	if spec.User != "" {
		c.User = new(spec.User)
	}
	if b.opts.Target != "" {
		c.Target = new(b.opts.Target)
	}
	block, networks, domains, err := wireNetwork(op, spec.Network)
	if err != nil {
		return fail(err)
	}
	if block {
		c.NetworkBlockAll = new(true)
	}
	if networks != "" {
		c.NetworkAllowList = new(networks)
	}
	if domains != "" {
		c.DomainAllowList = new(domains)
	}
	for _, v := range spec.Volumes {
		m := wire.SandboxVolume{VolumeID: v.Volume, MountPath: v.MountPath, ReadOnly: v.ReadOnly}
		if v.Subpath != "" {
			m.Subpath = new(v.Subpath)
		}
		c.Volumes = append(c.Volumes, m)
	}

	// The wire's defaults are not ours: 15 minutes, a week, never.
	var stop, pause, archive, remove, ttl int
	for _, d := range []struct {
		field string
		value time.Duration
		to    *int
	}{
		{"AutoStop", spec.AutoStop, &stop}, {"AutoPause", spec.AutoPause, &pause}, {"AutoArchive", spec.AutoArchive, &archive},
		{"AutoDelete", spec.AutoDelete, &remove}, {"TTL", spec.TTL, &ttl},
	} {
		if *d.to, err = minutes(op, d.field, d.value); err != nil {
			return fail(err)
		}
	}
	if remove == 0 {
		remove = -1
	}
	if !spec.Persistent {
		if pause != 0 {
			return fail(unsupported(op, "AutoPause", spec.AutoPause, "needs Persistent: a paused sandbox would outlive its owner"))
		}
		var l leased
		lease := int(b.opts.Lease / time.Minute)
		if stop == 0 {
			stop, l.stop = lease, true
		}
		if remove < 0 && !spec.Ephemeral {
			remove, l.remove = 4*lease, true
		}
		c.Labels[labelLease] = l.String()
	}
	if spec.Ephemeral {
		remove = 0
	}
	c.AutoStopInterval, c.AutoArchiveInterval, c.AutoDeleteInterval = new(stop), new(archive), new(remove)
	if pause != 0 {
		c.AutoPauseInterval = new(pause)
	}
	if ttl != 0 {
		c.TTLMinutes = new(ttl)
	}
	return c, nil
}

func checkLabel(op, k, v, language string) error {
	switch {
	case strings.HasPrefix(k, labelOwn):
		return &daytona.Error{Kind: daytona.KindInvalid, Op: op, Field: "Labels", Value: k, Message: "labels that begin with " + labelOwn + " are this backend's own"}
	case k == labelLanguage && v != language:
		return &daytona.Error{Kind: daytona.KindInvalid, Op: op, Field: "Labels", Value: k, Message: "is what the wire keeps Language in; set that"}
	}
	return nil
}

// fits finds what a server that is older than a field has not taken over.
func fits(c wire.CreateSandbox, s wire.Sandbox) error {
	switch {
	case c.TTLMinutes != nil && s.AutoDestroyAt == nil:
		return unsupported(createOp, "TTL", *c.TTLMinutes, "the server does not know it")
	case c.AutoPauseInterval != nil && (s.AutoPauseInterval == nil || int(*s.AutoPauseInterval) != *c.AutoPauseInterval):
		return unsupported(createOp, "AutoPause", *c.AutoPauseInterval, "the server does not know it")
	case c.DomainAllowList != nil && (s.DomainAllowList == nil || *s.DomainAllowList == ""):
		return unsupported(createOp, "Network.AllowDomains", *c.DomainAllowList, "the server does not know it")
	}
	for i, v := range c.Volumes {
		if v.ReadOnly && !slices.ContainsFunc(s.Volumes, func(m wire.SandboxVolume) bool { return m.MountPath == v.MountPath && m.ReadOnly }) {
			return unsupported(createOp, fmt.Sprintf("Volumes[%d].ReadOnly", i), true, "the server does not know it")
		}
	}
	return nil
}

// visible are a sandbox's labels as its maker gave them.
func visible(labels map[string]string) map[string]string {
	out := maps.Clone(labels)
	maps.DeleteFunc(out, func(k, _ string) bool { return strings.HasPrefix(k, labelOwn) || k == labelLanguage })
	if len(out) == 0 {
		return nil
	}
	return out
}

// hidden are those of them that are not shown.
func hidden(labels map[string]string) map[string]string {
	out := maps.Clone(labels)
	maps.DeleteFunc(out, func(k, _ string) bool { return !strings.HasPrefix(k, labelOwn) && k != labelLanguage })
	return out
}

func stateOf(s *string) daytona.State {
	if s == nil {
		return daytona.StateUnknown
	}
	switch *s {
	case wire.SandboxStatePendingBuild, wire.SandboxStateBuildingSnapshot, wire.SandboxStatePullingSnapshot:
		return daytona.StateCreating
	case wire.SandboxStateBuildFailed:
		return daytona.StateError
	}
	return daytona.State(*s)
}

// builtRef is what [daytona.Image.Ref] gives.
var builtRef = regexp.MustCompile(`^daytona-[0-9a-f]{64}:daytona$`)

// onlyFrom is a Dockerfile that is nothing but an image and what [instructions] adds.
var onlyFrom = regexp.MustCompile(`^FROM (\S+)\s*(?:WORKDIR .*\n)?(?:ENTRYPOINT .*\n)?$`)

// entry is the last instruction of a Dockerfile, if that is an entrypoint.
var entry = regexp.MustCompile(`(?:^|\n)ENTRYPOINT (\[.*\])\s*$`)

// info reads a sandbox of the wire, and remembers where its toolbox is.
func (b *backend) info(s wire.Sandbox) daytona.Info {
	i := daytona.Info{
		ID: s.ID, Name: s.Name, State: stateOf(s.State), Backend: name, User: s.User,
		Env: s.Env, Labels: visible(s.Labels), Language: s.Labels[labelLanguage], Parent: s.Labels[labelParent],
		Resources: daytona.Resources{CPU: s.CPU, Memory: s.Memory, Disk: s.Disk, GPU: int(s.GPU)},
		Network:   networkOf(s.NetworkBlockAll, s.NetworkAllowList, s.DomainAllowList),
		CreatedAt: timeOf(s.CreatedAt), StartedAt: timeOf(s.StartedAt), StoppedAt: timeOf(s.StoppedAt), Persistent: true,
	}
	if len(i.Env) == 0 {
		i.Env = nil
	}
	if i.Language == "" {
		i.Language = "python"
	}
	if s.ErrorReason != nil && i.State == daytona.StateError {
		i.Reason = *s.ErrorReason
	}
	switch {
	case s.Snapshot != nil && builtRef.MatchString(*s.Snapshot):
		i.Image = *s.Snapshot
	case s.Snapshot != nil:
		i.Snapshot = *s.Snapshot
	case s.BuildInfo != nil:
		i.Image = s.BuildInfo.SnapshotRef
		if s.BuildInfo.DockerfileContent != nil {
			if m := onlyFrom.FindStringSubmatch(*s.BuildInfo.DockerfileContent); m != nil {
				i.Image = m[1]
			}
			if m := entry.FindStringSubmatch(*s.BuildInfo.DockerfileContent); m != nil && json.Unmarshal([]byte(m[1]), &i.Entrypoint) != nil {
				i.Entrypoint = nil
			}
		}
	}
	for _, v := range s.Volumes {
		m := daytona.VolumeMount{Volume: v.VolumeID, MountPath: v.MountPath, ReadOnly: v.ReadOnly}
		if v.Subpath != nil {
			m.Subpath = *v.Subpath
		}
		i.Volumes = append(i.Volumes, m)
	}
	after := func(n *float64) time.Duration {
		if n == nil || *n <= 0 {
			return 0
		}
		return time.Duration(*n) * time.Minute
	}
	i.AutoStop, i.AutoPause, i.AutoArchive, i.AutoDelete = after(s.AutoStopInterval), after(s.AutoPauseInterval), after(s.AutoArchiveInterval), after(s.AutoDeleteInterval)
	i.Ephemeral = s.AutoDeleteInterval != nil && *s.AutoDeleteInterval == 0
	if at := timeOf(s.AutoDestroyAt); !at.IsZero() && !i.CreatedAt.IsZero() {
		i.TTL = at.Sub(i.CreatedAt)
	}
	if l, ok := s.Labels[labelLease]; ok {
		i.Persistent = false
		if strings.Contains(l, "-stop") {
			i.AutoStop = 0
		}
		if strings.Contains(l, "-delete") {
			i.AutoDelete = 0
		}
	}
	b.mu.Lock()
	i.WorkDir = b.known[s.ID].workDir
	b.known[s.ID] = place{s.ToolboxProxyURL, i.Language, i.WorkDir}
	b.mu.Unlock()
	return i
}

// fromItem is what an item of a list says, which has less in it.
func fromItem(l wire.SandboxListItem) (s wire.Sandbox, err error) {
	text, err := json.Marshal(l)
	if err == nil {
		err = json.Unmarshal(text, &s) // the names are the same
	}
	return s, err
}
