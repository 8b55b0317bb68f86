package snapshot

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/uptrace/bun"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/store"
)

// counted are the states that count towards the quota.
var counted = []State{daytona.SnapshotBuilding, daytona.SnapshotPending, daytona.SnapshotPulling, daytona.SnapshotActive, daytona.SnapshotSnapshotting}

// Create makes the row of a snapshot in the state pending. What is to happen
// then, happens in [Service.Run].
func (s *Service) Create(ctx context.Context, q Request) (*Snapshot, error) {
	if err := CheckName(q.Name); err != nil {
		return nil, err
	}
	now := s.now()
	snap := &Snapshot{
		ID: uuid.NewString(), OrganizationID: q.OrganizationID, Name: q.Name, General: q.General, Hidden: q.Hidden,
		State: daytona.SnapshotPending, Class: q.Class, Version: 1, CreatedAt: now, UpdatedAt: now, StateSince: now,
	}
	var b *Build
	switch {
	case q.Dockerfile != nil && q.Image != "":
		return nil, invalid("Either imageName or buildInfo must be given, not both")
	case q.Dockerfile != nil:
		var err error
		if b, snap.Entrypoint, err = s.checkBuild(q.OrganizationID, *q.Dockerfile, q.ContextHashes); err != nil {
			return nil, err
		}
		if len(q.Entrypoint) > 0 { // some clients send one with a build
			snap.Entrypoint = q.Entrypoint
		}
		snap.Build, snap.Ref = b.Ref, b.Ref
	case q.Image != "":
		if err := CheckImage(q.Image); err != nil {
			return nil, err
		}
		if s.CheckHost != nil {
			if err := s.CheckHost(ctx, Host(q.Image)); err != nil {
				return nil, err
			}
		}
		snap.Image, snap.Ref, snap.Entrypoint = q.Image, refOf(q.OrganizationID, snap.ID), q.Entrypoint
	default:
		return nil, invalid("Must specify an image name or build info")
	}
	n := 0
	for _, arg := range q.Entrypoint {
		n += len(arg)
		if strings.ContainsRune(arg, 0) {
			return nil, invalid("entrypoint must not contain NUL")
		}
	}
	if len(q.Entrypoint) > maxEntrypoint || n > 64<<10 {
		return nil, invalid("entrypoint must have at most %d arguments of 65536 bytes in all", maxEntrypoint)
	}
	if err := s.resources(snap, q); err != nil {
		return nil, err
	}
	limits, err := s.Organizations.SnapshotLimits(ctx, q.OrganizationID)
	if err != nil {
		return nil, err
	}
	if err := s.Organizations.Active(ctx, q.OrganizationID); err != nil {
		return nil, err
	}
	if err := checkSize(snap, limits); err != nil {
		return nil, err
	}
	region := q.Region
	if region == "" {
		if region, err = s.Organizations.DefaultRegion(ctx, q.OrganizationID); err != nil {
			return nil, err
		}
	} else if err := s.checkRegion(ctx, q.OrganizationID, region); err != nil {
		return nil, err
	}
	if _, err := s.Runners.Pick(ctx, region, snap.Class); err != nil {
		return nil, err
	}
	err = s.db.Tx(ctx, func(ctx context.Context) error {
		return s.insert(ctx, snap, b, region, limits)
	})
	if err != nil {
		return nil, err
	}
	return snap, nil
}

// insert stores a new snapshot, if the quota and its name allow it.
func (s *Service) insert(ctx context.Context, snap *Snapshot, b *Build, region string, limits Limits) error {
	if err := s.free(ctx, snap.OrganizationID, snap.Name, limits); err != nil {
		return err
	}
	if b != nil {
		if err := s.keepBuild(ctx, b); err != nil {
			return err
		}
		snap.BuildInfo = b
	}
	// A name that was taken meanwhile must not spoil the caller's transaction.
	err := store.Changed(s.db.All(ctx).NewInsert().Model(snap).On("CONFLICT (organization_id, name) DO NOTHING").Exec(ctx))
	if daytona.KindOf(err) == daytona.KindConflict {
		return duplicate(snap.Name)
	} else if err != nil {
		return err
	}
	if region != "" {
		snap.Regions = []string{region}
		if _, err := s.db.All(ctx).NewInsert().Model(&regionRow{SnapshotID: snap.ID, RegionID: region}).Exec(ctx); err != nil {
			return err
		}
	}
	if err := s.Event(ctx, Event{Name: "snapshot.created", Snapshot: *snap}); err != nil {
		return err
	}
	return s.db.Publish(ctx, wake, snap.ID)
}

func (s *Service) free(ctx context.Context, organizationID, name string, limits Limits) error {
	if taken, err := s.db.In(ctx, organizationID).Select((*Snapshot)(nil)).Where("name = ?", name).Exists(ctx); err != nil {
		return err
	} else if taken {
		return duplicate(name)
	}
	return s.quota(ctx, organizationID, limits)
}

// quota reports whether there may be one more.
func (s *Service) quota(ctx context.Context, organizationID string, limits Limits) error {
	if limits.Snapshots <= 0 {
		return nil
	}
	if err := s.serial(ctx, organizationID); err != nil {
		return err
	}
	n, err := s.Count(ctx, organizationID)
	if err == nil && n >= limits.Snapshots {
		err = invalid("Snapshot quota exceeded. Maximum allowed: %d", limits.Snapshots)
	}
	return err
}

// serial makes the rest of a transaction the only one for an organization, so
// that what is counted stays true.
func (s *Service) serial(ctx context.Context, organizationID string) error {
	if !s.db.Postgres() {
		return nil // SQLite has one writer
	}
	_, err := s.db.All(ctx).NewRaw("SELECT pg_advisory_xact_lock(hashtextextended(?, 50))", organizationID).Exec(ctx)
	return err
}

func duplicate(name string) error {
	return &daytona.Error{Kind: daytona.KindConflict, Message: fmt.Sprintf("Snapshot with name %q already exists for this organization", name)}
}

// Count returns how many snapshots count towards an organization's quota.
func (s *Service) Count(ctx context.Context, organizationID string) (int, error) {
	n, err := s.db.In(ctx, organizationID).Select((*Snapshot)(nil)).Where("state IN (?)", bun.List(counted)).Count(ctx)
	return int(n), err
}

func (s *Service) resources(snap *Snapshot, q Request) error {
	set := func(field string, to *int, v *int, least, standard int) error {
		*to = standard
		if v == nil {
			return nil
		}
		if *v < least || *v > 1<<20 {
			return invalid("%s must be at least %d, not %d", field, least, *v)
		}
		*to = *v
		return nil
	}
	for _, err := range []error{
		set("cpu", &snap.CPU, q.CPU, 1, 1), set("memory", &snap.Memory, q.Memory, 1, 1),
		set("disk", &snap.Disk, q.Disk, 1, 3), set("gpu", &snap.GPU, q.GPU, 0, 0),
	} {
		if err != nil {
			return err
		}
	}
	if snap.GPU > 1 {
		return invalid("gpu must be 0 or 1, not %d", snap.GPU)
	}
	if len(q.GPUTypes) > 1 {
		return invalid("At most one gpuType may be given for a snapshot")
	}
	if len(q.GPUTypes) == 1 {
		if snap.GPU == 0 {
			return invalid("gpuType needs gpu to be 1")
		}
		snap.GPUType = q.GPUTypes[0]
	}
	switch snap.Class {
	case "":
		snap.Class = "container"
	case "container", "linux-vm", "android":
	case "windows":
		return invalid("Snapshots of the class windows can't be created")
	default:
		return invalid("Invalid sandboxClass %q", clip(snap.Class))
	}
	return nil
}

func checkSize(snap *Snapshot, l Limits) error {
	for _, x := range []struct {
		name, unit string
		v, max     int
	}{{"CPU", "", snap.CPU, l.CPU}, {"Memory", "GB", snap.Memory, l.Memory}, {"Disk", "GB", snap.Disk, l.Disk}} {
		if x.max > 0 && x.v > x.max {
			return invalid("%s request %d%s exceeds maximum allowed per sandbox (%d%s).\nTo increase concurrency limits, ask an administrator of this server.", x.name, x.v, x.unit, x.max, x.unit)
		}
	}
	return nil
}

func (s *Service) checkRegion(ctx context.Context, organizationID, region string) error {
	regions, err := s.Organizations.Regions(ctx, organizationID)
	if err != nil {
		return err
	}
	if !slices.Contains(regions, region) {
		return &daytona.Error{Kind: daytona.KindForbidden, Message: "Region " + clip(region) + " is not available to the organization"}
	}
	return nil
}

// checkBuild checks a build and reads its entrypoint.
func (s *Service) checkBuild(organizationID, dockerfile string, hashes []string) (*Build, []string, error) {
	if len(dockerfile) > maxDockerfile {
		return nil, nil, invalid("dockerfileContent must have at most %d bytes, not %d", maxDockerfile, len(dockerfile))
	}
	if len(hashes) > maxContexts {
		return nil, nil, invalid("contextHashes must have at most %d entries, not %d", maxContexts, len(hashes))
	}
	for _, h := range hashes {
		if !hashRule.MatchString(h) {
			return nil, nil, invalid("Invalid context hash %q", clip(h))
		}
	}
	if len(hashes) > 0 && s.Contexts == nil {
		return nil, nil, &daytona.Error{Kind: daytona.KindUnavailable, Message: "Object storage is not configured"}
	}
	entrypoint, err := Entrypoint(dockerfile)
	if err != nil {
		return nil, nil, err
	}
	now := s.now()
	if hashes == nil {
		hashes = []string{}
	}
	return &Build{Ref: BuildRef(organizationID, dockerfile, hashes), OrganizationID: organizationID, Dockerfile: dockerfile,
		ContextHashes: hashes, CreatedAt: now, UpdatedAt: now}, entrypoint, nil
}

// keepBuild stores a build, or finds the one that is there.
func (s *Service) keepBuild(ctx context.Context, b *Build) error {
	if _, err := s.db.All(ctx).NewInsert().Model(b).On("CONFLICT (ref) DO UPDATE").Set("updated_at = EXCLUDED.updated_at").Exec(ctx); err != nil {
		return err
	}
	return s.db.All(ctx).NewSelect().Model(b).WherePK().Scan(ctx)
}

// Declare keeps the build of a sandbox that is made from a Dockerfile.
// Entrypoint is the Dockerfile's.
func (s *Service) Declare(ctx context.Context, organizationID, dockerfile string, hashes []string) (b *Build, entrypoint []string, err error) {
	b, entrypoint, err = s.checkBuild(organizationID, dockerfile, hashes)
	if err != nil {
		return nil, nil, err
	}
	return b, entrypoint, s.db.Tx(ctx, func(ctx context.Context) error { return s.keepBuild(ctx, b) })
}

// BuildOf returns the build of a ref.
func (s *Service) BuildOf(ctx context.Context, ref string) (*Build, error) {
	b := &Build{Ref: ref}
	// A ref has the organization in it, and comes from a row that the caller
	// may see.
	err := s.db.All(ctx).NewSelect().Model(b).WherePK().Scan(ctx)
	if store.IsNone(err) {
		return nil, &daytona.Error{Kind: daytona.KindNotFound, Message: "Build " + clip(ref) + " not found"}
	}
	return b, err
}

// Get returns a snapshot of an organization, or a general one, by id or name.
func (s *Service) Get(ctx context.Context, organizationID, idOrName string) (*Snapshot, error) {
	var found []Snapshot
	// General ones belong to another organization and are for all.
	err := s.db.All(ctx).NewSelect().Model(&found).
		Where("(id = ? OR name = ?) AND (organization_id = ? OR general = ?)", idOrName, idOrName, organizationID, true).Scan(ctx)
	if err != nil {
		return nil, err
	}
	snap := best(found, organizationID, idOrName)
	if snap == nil {
		return nil, notFound(idOrName)
	}
	one := []Snapshot{*snap}
	if err := s.complete(ctx, organizationID, one); err != nil {
		return nil, err
	}
	return &one[0], nil
}

// best prefers the id to the name, the own to the general, and of those the
// active.
func best(found []Snapshot, organizationID, idOrName string) *Snapshot {
	rank := func(x *Snapshot) int {
		r := 0
		if x.ID == idOrName {
			r += 4
		}
		if x.OrganizationID == organizationID {
			r += 2
		}
		if x.State == daytona.SnapshotActive {
			r++
		}
		return r
	}
	var b *Snapshot
	for i := range found {
		if b == nil || rank(&found[i]) > rank(b) {
			b = &found[i]
		}
	}
	return b
}

// complete fills in what is in other tables.
func (s *Service) complete(ctx context.Context, organizationID string, list []Snapshot) error {
	if len(list) == 0 {
		return nil
	}
	var ids, builds []string
	for _, x := range list {
		ids = append(ids, x.ID)
		if x.Build != "" {
			builds = append(builds, x.Build)
		}
	}
	var rows []regionRow
	if err := s.db.All(ctx).NewSelect().Model(&rows).Where("snapshot_id IN (?)", bun.List(ids)).Order("region_id").Scan(ctx); err != nil {
		return err
	}
	allowed, err := s.Organizations.Regions(ctx, organizationID)
	if err != nil {
		return err
	}
	byRef := map[string]*Build{}
	if len(builds) > 0 {
		var found []Build
		if err := s.db.All(ctx).NewSelect().Model(&found).Where("ref IN (?)", bun.List(builds)).Scan(ctx); err != nil {
			return err
		}
		for i := range found {
			byRef[found[i].Ref] = &found[i]
		}
	}
	for i := range list {
		x := &list[i]
		x.Regions = nil
		some := false
		for _, r := range rows {
			if r.SnapshotID == x.ID {
				some = true
				if slices.Contains(allowed, r.RegionID) {
					x.Regions = append(x.Regions, r.RegionID)
				}
			}
		}
		if !some {
			x.Regions = slices.Clone(allowed)
		}
		if x.OrganizationID == organizationID {
			x.BuildInfo = byRef[x.Build]
		}
	}
	return nil
}

// own returns a snapshot of the organization by its id only.
func (s *Service) own(ctx context.Context, organizationID, id string) (*Snapshot, error) {
	snap := &Snapshot{}
	err := s.db.In(ctx, organizationID).Select(snap).Where("id = ?", id).Scan(ctx)
	if store.IsNone(err) {
		return nil, notFound(id)
	}
	if err != nil {
		return nil, err
	}
	return snap, nil
}

// Query says which snapshots to list.
type Query struct {
	// Name is a part of the name, in either case; Source the sandbox.
	Name, Source string
	// Sort is name, state, lastUsedAt (the default) or createdAt.
	Sort string
	// Ascending defaults to false.
	Ascending bool
	// Page counts from 1; Limit is from 1 to 200.
	Page, Limit int
}

// List returns one page of an organization's snapshots, and the general ones
// after them, and how many there are in all.
func (s *Service) List(ctx context.Context, organizationID string, q Query) ([]Snapshot, int, error) {
	var list []Snapshot
	sel := s.db.All(ctx).NewSelect().Model(&list).
		Where("(organization_id = ? OR (general = ? AND hidden = ?))", organizationID, true, false)
	if q.Name != "" {
		sel = sel.Where(`lower(name) LIKE ? ESCAPE '\'`, "%"+store.Escape(strings.ToLower(q.Name))+"%")
	}
	if q.Source != "" {
		sel = sel.Where("source_sandbox_id = ?", q.Source)
	}
	direction := "DESC"
	if q.Ascending {
		direction = "ASC"
	}
	column := map[string]string{"name": "name", "state": "state", "createdAt": "created_at"}[q.Sort]
	if column == "" {
		column = "last_used_at"
	}
	// What was never used comes last in both directions, in both databases.
	sel = sel.OrderExpr("CASE WHEN general = ? THEN 1 ELSE 0 END, CASE WHEN "+column+" IS NULL THEN 1 ELSE 0 END, "+column+" "+direction+", created_at "+direction+", id "+direction, true)
	total, err := sel.Limit(int64(q.Limit)).Offset(int64(q.Page-1) * int64(q.Limit)).ScanAndCount(ctx)
	if err != nil {
		return nil, 0, err
	}
	return list, int(total), s.complete(ctx, organizationID, list)
}

// move changes a snapshot's state, if nobody has done so meanwhile.
func (s *Service) move(ctx context.Context, snap *Snapshot, to State, reason string) error {
	old := snap.State
	next := *snap
	next.State, next.Reason, next.UpdatedAt, next.Version = to, reason, s.now(), snap.Version+1
	if to != old {
		next.StateSince = next.UpdatedAt
	}
	err := s.db.Tx(ctx, func(ctx context.Context) error {
		err := store.Changed(s.db.All(ctx).NewUpdate().Model(&next).WherePK().Where("version = ?", snap.Version).Exec(ctx))
		if err != nil || to == old {
			return err
		}
		if err := s.Event(ctx, Event{Name: "snapshot.state.updated", Snapshot: next, Old: old}); err != nil {
			return err
		}
		return s.db.Publish(ctx, wake, snap.ID)
	})
	if err == nil {
		*snap = next
	}
	return err
}

// Delete removes a snapshot of the organization: first it is seen as removing.
func (s *Service) Delete(ctx context.Context, organizationID, id string) error {
	return s.db.Tx(ctx, func(ctx context.Context) error {
		snap, err := s.own(ctx, organizationID, id)
		if err != nil {
			if g, getErr := s.Get(ctx, organizationID, id); getErr == nil && g.General && g.ID == id {
				return &daytona.Error{Kind: daytona.KindForbidden, Message: "You cannot delete a general snapshot"}
			}
			return err
		}
		if snap.General {
			return &daytona.Error{Kind: daytona.KindForbidden, Message: "You cannot delete a general snapshot"}
		}
		if snap.State == daytona.SnapshotRemoving {
			return nil
		}
		return s.move(ctx, snap, daytona.SnapshotRemoving, "")
	})
}

// reactivation is how long the copies of a snapshot that was deactivated may be
// on their way out.
const reactivation = 10 * time.Minute

// Activate brings an inactive snapshot back.
func (s *Service) Activate(ctx context.Context, organizationID, id string) (*Snapshot, error) {
	if err := s.Organizations.Active(ctx, organizationID); err != nil {
		return nil, err
	}
	limits, err := s.Organizations.SnapshotLimits(ctx, organizationID)
	if err != nil {
		return nil, err
	}
	var snap *Snapshot
	err = s.db.Tx(ctx, func(ctx context.Context) error {
		var err error
		if snap, err = s.own(ctx, organizationID, id); err != nil {
			return err
		}
		switch {
		case snap.State == daytona.SnapshotActive:
			return &daytona.Error{Kind: daytona.KindState, Message: fmt.Sprintf("Snapshot %s is already active", snap.Name)}
		case snap.State != daytona.SnapshotInactive:
			return &daytona.Error{Kind: daytona.KindState, Message: fmt.Sprintf("Snapshot %s cannot be activated - it is in %s state", snap.Name, snap.State)}
		case s.now().Sub(snap.StateSince) < reactivation:
			return &daytona.Error{Kind: daytona.KindState, Message: "Snapshot deactivation is still in progress. Please try again later."}
		}
		if err := s.quota(ctx, organizationID, limits); err != nil {
			return err
		}
		return s.move(ctx, snap, daytona.SnapshotPending, "")
	})
	if err != nil {
		return nil, err
	}
	return s.Get(ctx, organizationID, id)
}

// Deactivate keeps a snapshot and takes its copies away. It does nothing if it
// is inactive.
func (s *Service) Deactivate(ctx context.Context, organizationID, id string) error {
	return s.db.Tx(ctx, func(ctx context.Context) error {
		snap, err := s.own(ctx, organizationID, id)
		switch {
		case err != nil:
			return err
		case snap.State == daytona.SnapshotInactive:
			return nil
		case snap.State != daytona.SnapshotActive:
			return &daytona.Error{Kind: daytona.KindState, Message: fmt.Sprintf("Snapshot %s cannot be deactivated - it is in %s state", snap.Name, snap.State)}
		case snap.Source != "":
			// Its copies are all there is of it.
			return &daytona.Error{Kind: daytona.KindState, Message: "A snapshot of a sandbox cannot be deactivated: it could not be fetched again"}
		}
		return s.move(ctx, snap, daytona.SnapshotInactive, "")
	})
}

// DeactivateAll deactivates what an organization has, as when it is suspended.
func (s *Service) DeactivateAll(ctx context.Context, organizationID string) error {
	var list []Snapshot
	if err := s.db.In(ctx, organizationID).Select(&list).Where("state = ? AND general = ? AND source_sandbox_id = ?", daytona.SnapshotActive, false, "").Scan(ctx); err != nil {
		return err
	}
	for i := range list {
		if err := s.move(ctx, &list[i], daytona.SnapshotInactive, ""); err != nil && daytona.KindOf(err) != daytona.KindConflict {
			return err
		}
	}
	return nil
}

// SetGeneral makes a snapshot one for all organizations, or no more. It is for
// administrators: it sees every organization's.
func (s *Service) SetGeneral(ctx context.Context, id string, general bool) (*Snapshot, error) {
	snap := &Snapshot{ID: id}
	err := s.db.Tx(ctx, func(ctx context.Context) error {
		err := s.db.All(ctx).NewSelect().Model(snap).WherePK().Scan(ctx)
		if store.IsNone(err) {
			return notFound(id)
		} else if err != nil {
			return err
		}
		snap.General = general
		return s.move(ctx, snap, snap.State, snap.Reason)
	})
	if err != nil {
		return nil, err
	}
	one := []Snapshot{*snap}
	return &one[0], s.complete(ctx, snap.OrganizationID, one)
}

// CanCleanup reports whether no snapshot needs an image, by its name or ref, any
// more.
func (s *Service) CanCleanup(ctx context.Context, image string) (bool, error) {
	// An image may be that of any organization's.
	used, err := s.db.All(ctx).NewSelect().Model((*Snapshot)(nil)).
		Where("(image = ? OR ref = ?) AND state IN (?)", image, image, bun.List(append(slices.Clone(counted), daytona.SnapshotInactive))).Exists(ctx)
	if err != nil || used {
		return false, err
	}
	needed, err := s.Needed(ctx, image)
	return !needed, err
}

// Bootstrap makes the general snapshot that sandboxes are made from by default,
// in the organization of the administrator. Without an image it is what the
// backends of runners have by default, so that it needs no registry; then it is
// active at once. It does nothing if there is one of that name.
func (s *Service) Bootstrap(ctx context.Context, organizationID, name, image string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	now := s.now()
	snap := &Snapshot{
		ID: uuid.NewString(), OrganizationID: organizationID, Name: name, General: true, Image: image, State: daytona.SnapshotActive,
		CPU: 1, Memory: 1, Disk: 3, Class: "container", Version: 1, CreatedAt: now, UpdatedAt: now, StateSince: now,
	}
	if image != "" {
		if err := CheckImage(image); err != nil {
			return err
		}
		snap.State, snap.Ref = daytona.SnapshotPending, refOf(organizationID, snap.ID)
	}
	err := s.db.Tx(ctx, func(ctx context.Context) error { return s.insert(ctx, snap, nil, "", Limits{}) })
	if daytona.KindOf(err) == daytona.KindConflict {
		return nil
	}
	return err
}

// Free reports whether a name is free for a new snapshot of an organization, and
// the quota allows one: KindConflict or KindInvalid if not.
func (s *Service) Free(ctx context.Context, organizationID, name string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	if err := s.Organizations.Active(ctx, organizationID); err != nil {
		return err
	}
	limits, err := s.Organizations.SnapshotLimits(ctx, organizationID)
	if err != nil {
		return err
	}
	return s.free(ctx, organizationID, name, limits)
}

// Capture is a snapshot that a runner has made of a sandbox.
type Capture struct {
	OrganizationID, Name, SandboxID, RegionID, RunnerID, Class string
	CPU, GPU, Memory, Disk                                     int
	GPUType                                                    string
	Entrypoint                                                 []string
	// Ref is the name that the runner's backend has it under, which must begin
	// with the organization's id, or be no other snapshot's.
	Ref    string
	SizeGB float64
	// Parcelled says that other runners can have it as well.
	Parcelled bool
}

// CaptureRef makes a name for [Capture].
func CaptureRef(organizationID string) string { return refOf(organizationID, uuid.NewString()) }

// Captured adds the snapshot that was made of a sandbox, active at once. It is
// for the transaction in which that becomes known, and does nothing if it is
// there. The quota has been asked before; see [Service.Free].
func (s *Service) Captured(ctx context.Context, c Capture) error {
	if c.Ref == "" {
		return invalid("A snapshot of a sandbox must have a ref")
	}
	return s.db.Tx(ctx, func(ctx context.Context) error {
		// A ref is of one snapshot, whoever has it.
		if there, err := s.db.All(ctx).NewSelect().Model((*Snapshot)(nil)).Where("ref = ?", c.Ref).Exists(ctx); err != nil || there {
			return err
		}
		now := s.now()
		snap := &Snapshot{
			ID: uuid.NewString(), OrganizationID: c.OrganizationID, Name: c.Name, Source: c.SandboxID, Parcelled: c.Parcelled, Ref: c.Ref, State: daytona.SnapshotActive,
			Size: &c.SizeGB, Entrypoint: c.Entrypoint, CPU: c.CPU, GPU: c.GPU, GPUType: c.GPUType, Memory: c.Memory, Disk: c.Disk, Class: c.Class,
			RunnerID: c.RunnerID, Version: 1, CreatedAt: now, UpdatedAt: now, StateSince: now,
		}
		if snap.Class == "" {
			snap.Class = "container"
		}
		if err := s.insert(ctx, snap, nil, c.RegionID, Limits{}); err != nil {
			return err
		}
		return s.putCopy(ctx, &Copy{RunnerID: c.RunnerID, Ref: c.Ref, State: CopyReady, CreatedAt: now, UpdatedAt: now})
	})
}

// LogsURL returns where the log of a snapshot's build is read. It waits for up
// to 30 s for a runner to have the build.
func (s *Service) LogsURL(ctx context.Context, organizationID, idOrName string) (string, error) {
	snap, err := s.runner(ctx, organizationID, idOrName)
	if err != nil {
		return "", err
	}
	return strings.TrimSuffix(s.ProxyURL, "/") + "/snapshots/" + snap.ID + "/build-logs", nil
}

// Logs returns what the build of a snapshot has written; with follow until it
// ends. There is nothing of one that is active.
func (s *Service) Logs(ctx context.Context, organizationID, idOrName string, follow bool) (io.ReadCloser, error) {
	snap, err := s.Get(ctx, organizationID, idOrName)
	if err != nil {
		return nil, err
	}
	if snap.State == daytona.SnapshotActive {
		return io.NopCloser(strings.NewReader("")), nil
	}
	if snap, err = s.runner(ctx, organizationID, idOrName); err != nil {
		return nil, err
	}
	return s.Runners.Logs(ctx, snap.RunnerID, snap.Ref, follow)
}

// assignment is how long a build may wait for a runner before there are no logs.
const assignment = 30 * time.Second

// runner returns a snapshot that has a runner, and waits for it.
func (s *Service) runner(ctx context.Context, organizationID, idOrName string) (*Snapshot, error) {
	changes, stop := s.db.Subscribe(wake)
	defer stop()
	end := time.NewTimer(assignment)
	defer end.Stop()
	for {
		snap, err := s.Get(ctx, organizationID, idOrName)
		if err != nil {
			return nil, err
		}
		if snap.RunnerID != "" {
			return snap, nil
		}
		none := &daytona.Error{Kind: daytona.KindNotFound, Message: "Snapshot " + idOrName + " has no build logs: no runner has it"}
		if snap.State != daytona.SnapshotPending {
			return nil, none
		}
		select {
		case <-changes:
		case <-time.After(2 * time.Second): // a change may have been missed
		case <-end.C:
			return nil, none
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Uses reports whether a snapshot has a ref.
func (s *Service) Uses(ctx context.Context, ref string) (bool, error) {
	return s.db.All(ctx).NewSelect().Model((*Snapshot)(nil)).Where("ref = ?", ref).Exists(ctx)
}
