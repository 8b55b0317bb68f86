package snapshot

import (
	"context"
	"slices"
	"strings"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/store"
)

// Resolve finds the snapshot that a sandbox of an organization is to be made
// from in a region, and notes its use. What is wrong with it is KindInvalid, as
// clients know it. No name is the default snapshot. A Ref of "" needs no copy: every runner has it.
func (s *Service) Resolve(ctx context.Context, organizationID, region, nameOrID string) (*Snapshot, error) {
	if nameOrID == "" {
		nameOrID = s.Default
	}
	snap, err := s.Get(ctx, organizationID, nameOrID)
	if daytona.KindOf(err) == daytona.KindNotFound {
		return nil, invalid("Snapshot %s not found. Did you add it through the Daytona Dashboard?", clip(nameOrID))
	} else if err != nil {
		return nil, err
	}
	if region != "" {
		var regions []string
		if err := s.db.All(ctx).NewSelect().Model((*regionRow)(nil)).Column("region_id").Where("snapshot_id = ?", snap.ID).Scan(ctx, &regions); err != nil {
			return nil, err
		}
		if len(regions) > 0 && !slices.Contains(regions, region) {
			return nil, invalid("Snapshot %s is not available in region %s", nameOrID, region)
		}
	}
	if snap.State != daytona.SnapshotActive {
		return nil, invalid("Snapshot %s is %s", nameOrID, snap.State)
	}
	// Not by version: it is no change of state, and none should fail for it. Once
	// a minute is often enough for what is counted in days.
	now := s.now()
	_, err = s.db.All(ctx).NewUpdate().Model((*Snapshot)(nil)).Set("last_used_at = ?", now).
		Where("id = ? AND (last_used_at IS NULL OR last_used_at < ?)", snap.ID, now.Add(-usedEvery)).Exec(ctx)
	if err != nil {
		return nil, err
	}
	return snap, nil
}

// Ready returns the ids of the runners that have a ref. They may be unusable.
func (s *Service) Ready(ctx context.Context, ref string) ([]string, error) {
	var ids []string
	// Refs have their organization in them.
	err := s.db.All(ctx).NewSelect().Model((*Copy)(nil)).Column("runner_id").
		Where("ref = ? AND state = ?", ref, CopyReady).Order("runner_id").Scan(ctx, &ids)
	return ids, err
}

// Refs returns the copies that a runner has or is to have.
func (s *Service) Refs(ctx context.Context, runnerID string) ([]Copy, error) {
	var list []Copy
	err := s.db.All(ctx).NewSelect().Model(&list).Where("runner_id = ?", runnerID).Order("ref").Scan(ctx)
	return list, err
}

// Copies returns all copies of a ref.
func (s *Service) Copies(ctx context.Context, ref string) ([]Copy, error) {
	var list []Copy
	err := s.db.All(ctx).NewSelect().Model(&list).Where("ref = ?", ref).Order("runner_id").Scan(ctx)
	return list, err
}

// Forget removes the copies of a runner that is gone for good.
func (s *Service) Forget(ctx context.Context, runnerID string) error {
	_, err := s.db.All(ctx).NewDelete().Model((*Copy)(nil)).Where("runner_id = ?", runnerID).Exec(ctx)
	return err
}

// Ensure sees to it that a runner gets a ref, of a snapshot or a build, unless it
// has it or is getting it, and returns the state of the copy. An attempt that
// failed is made again. [Topic] tells of the end; it is KindNotFound if nothing
// has that ref, and KindInvalid if it can't be had anywhere but where it is.
func (s *Service) Ensure(ctx context.Context, runnerID, ref string) (*Copy, error) {
	var c *Copy
	err := s.db.Tx(ctx, func(ctx context.Context) error {
		now := s.now()
		c = &Copy{RunnerID: runnerID, Ref: ref}
		q := s.db.All(ctx).NewSelect().Model(c).WherePK()
		if s.db.Postgres() {
			q = q.For("UPDATE")
		}
		err := q.Scan(ctx)
		switch {
		case store.IsNone(err):
			c = &Copy{RunnerID: runnerID, Ref: ref, CreatedAt: now}
		case err != nil:
			return err
		case c.State == CopyReady || c.State == CopyPulling || c.State == CopyBuilding:
			return nil
		case c.State == CopyRemoving:
			return &daytona.Error{Kind: daytona.KindConflict, Message: "The runner is removing its copy of " + ref}
		}
		j, state, err := s.job(ctx, ref)
		if err != nil {
			return err
		}
		j.RunnerID = runnerID
		id, err := s.Jobs.Enqueue(ctx, *j)
		if err != nil {
			return err
		}
		c.State, c.Reason, c.JobID, c.UpdatedAt = state, "", id, now
		return s.putCopy(ctx, c)
	})
	if err != nil {
		return nil, err
	}
	return c, nil
}

func (s *Service) putCopy(ctx context.Context, c *Copy) error {
	_, err := s.db.All(ctx).NewInsert().Model(c).On("CONFLICT (runner_id, ref) DO UPDATE").
		Set("state = EXCLUDED.state").Set("reason = EXCLUDED.reason").Set("job_id = EXCLUDED.job_id").Set("updated_at = EXCLUDED.updated_at").Exec(ctx)
	if err != nil {
		return err
	}
	return s.changed(ctx, c.Ref)
}

// changed tells that the copies of a ref have changed.
func (s *Service) changed(ctx context.Context, ref string) error {
	if err := s.Changed(ctx, ref); err != nil {
		return err
	}
	return s.db.Publish(ctx, Topic, ref)
}

// CopyOf returns the copy of a ref on a runner; nil if there is none.
func (s *Service) CopyOf(ctx context.Context, runnerID, ref string) (*Copy, error) {
	c := &Copy{RunnerID: runnerID, Ref: ref}
	if err := s.db.All(ctx).NewSelect().Model(c).WherePK().Scan(ctx); store.IsNone(err) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	return c, nil
}

// job is what brings a ref to a runner.
func (s *Service) job(ctx context.Context, ref string) (*Job, CopyState, error) {
	if b, err := s.BuildOf(ctx, ref); err == nil {
		payload := map[string]any{
			"snapshot": ref, "dockerfile": b.Dockerfile, "organizationId": b.OrganizationID, "context": b.ContextHashes,
			"pushToInternalRegistry": false, "sourceRegistries": []Registry{},
		}
		if len(b.ContextHashes) > 0 {
			if s.Contexts == nil {
				return nil, "", &daytona.Error{Kind: daytona.KindUnavailable, Message: "Object storage is not configured"}
			}
			// Where the archives are, for runners that have no credentials of
			// their own.
			urls, err := s.Contexts(ctx, b.OrganizationID, b.ContextHashes)
			if err != nil {
				return nil, "", err
			}
			payload["contextUrls"] = urls
		}
		registries := []Registry{}
		for _, image := range bases(b.Dockerfile) {
			r, err := s.Credentials(ctx, b.OrganizationID, image)
			if err != nil {
				return nil, "", err
			}
			if r != nil && !slices.Contains(registries, *r) {
				registries = append(registries, *r)
			}
		}
		payload["sourceRegistries"] = registries
		return &Job{Type: "BUILD_SNAPSHOT", Ref: ref, Payload: payload}, CopyBuilding, nil
	} else if daytona.KindOf(err) != daytona.KindNotFound {
		return nil, "", err
	}
	snap := &Snapshot{}
	err := s.db.All(ctx).NewSelect().Model(snap).Where("ref = ?", ref).Limit(1).Scan(ctx)
	if store.IsNone(err) {
		return nil, "", &daytona.Error{Kind: daytona.KindNotFound, Message: "Snapshot with ref " + clip(ref) + " not found"}
	} else if err != nil {
		return nil, "", err
	}
	if snap.Source != "" && snap.Parcelled && s.Parcel != nil {
		p, err := s.Parcel(ctx, snap.OrganizationID, ref)
		if err != nil {
			return nil, "", err
		}
		return &Job{Type: "PULL_SNAPSHOT", Ref: ref, Payload: map[string]any{"snapshot": ref, "newTag": ref, "sandboxClass": snap.Class, "parcel": p}}, CopyPulling, nil
	}
	if snap.Source != "" {
		return nil, "", invalid("Snapshot %s was made from a sandbox and is on the runner of that sandbox only", snap.Name)
	}
	image := snap.Image
	if snap.Digest != "" {
		image = pinned(image, snap.Digest)
	}
	payload := map[string]any{"snapshot": image, "newTag": ref, "sandboxClass": snap.Class}
	r, err := s.Credentials(ctx, snap.OrganizationID, image)
	if err != nil {
		return nil, "", err
	}
	if r != nil {
		payload["registry"] = r
	}
	return &Job{Type: "PULL_SNAPSHOT", Ref: ref, Payload: payload}, CopyPulling, nil
}

// pinned is an image by its digest, whatever its tag means by now.
func pinned(image, digest string) string {
	if !digestRule.MatchString("@"+digest) || digestRule.MatchString(image) {
		return image
	}
	slash := strings.LastIndexByte(image, '/')
	name, _, _ := strings.Cut(image[slash+1:], ":")
	return image[:slash+1] + name + "@" + digest
}
