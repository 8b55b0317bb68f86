package objects

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/uptrace/bun"

	"github.com/daytona-go/daytona"
)

// parcel is one row: a snapshot or a backup that a runner puts here, or has put
// here, for other runners.
type parcel struct {
	bun.BaseModel `bun:"table:parcels,alias:parcel"`

	Ref            string    `bun:"ref,pk"`
	OrganizationID string    `bun:"organization_id,notnull"`
	CreatedAt      time.Time `bun:"created_at,notnull"`
}

const (
	// parcelPrefix is beside what clients may see: organizations have ids.
	parcelPrefix = "parcels/"
	// parcelKept is how long one is kept that nobody uses: longer than a backup
	// may take.
	parcelKept = 3 * time.Hour
	// parcelSweep is how often those that nobody uses are looked for.
	parcelSweep = 10 * time.Minute
	parcelBatch = 1000
)

// parcelKey is where one is below its organization's prefix.
func parcelKey(ref string) string {
	sum := sha256.Sum256([]byte(ref))
	return hex.EncodeToString(sum[:])
}

// Parcel returns where the snapshot of a reference is, or with write is to be,
// with a credential for it and the organization's others that is good for six
// hours, and its key there. It is for runners: it never reaches a client or a
// sandbox. KindUnavailable if no object storage is configured.
func (s *Service) Parcel(ctx context.Context, organizationID, ref string, write bool) (daytona.S3Location, string, error) {
	if s.Store == nil && s.External == nil {
		return daytona.S3Location{}, "", unconfigured()
	}
	now := s.Now().UTC()
	if write {
		_, err := s.db.All(ctx).NewInsert().Model(&parcel{Ref: ref, OrganizationID: organizationID, CreatedAt: now}).
			On("CONFLICT (ref) DO UPDATE").Set("created_at = EXCLUDED.created_at").Exec(ctx)
		if err != nil {
			return daytona.S3Location{}, "", err
		}
	}
	prefix := parcelPrefix + organizationID
	if e := s.External; e != nil {
		return daytona.S3Location{Endpoint: e.Endpoint, Region: e.Region, Bucket: e.Bucket, Prefix: prefix, AccessKey: e.AccessKey, SecretKey: e.SecretKey}, parcelKey(ref), nil
	}
	g := &grant{AccessKey: accessKey(), OrganizationID: organizationID, Purpose: "parcel", Bucket: s.Bucket, Prefix: prefix + "/", Expires: new(now.Add(readValid))}
	if _, err := s.db.All(ctx).NewInsert().Model(g).Exec(ctx); err != nil {
		return daytona.S3Location{}, "", err
	}
	return daytona.S3Location{
		Endpoint: s.url.Scheme + "://" + s.url.Host, Region: defaultRegion, Bucket: g.Bucket, Prefix: prefix, AccessKey: g.AccessKey, SecretKey: s.secret(g.AccessKey),
	}, parcelKey(ref), nil
}

// Run removes the parcels that nobody uses, until ctx ends. Several servers may
// run it.
func (s *Service) Run(ctx context.Context) error {
	tick := time.NewTicker(parcelSweep)
	defer tick.Stop()
	for {
		if err := s.SweepParcels(ctx); err != nil && ctx.Err() == nil {
			s.Log.Warn("snapshots that nobody uses can't be removed from the object storage", "err", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// SweepParcels removes the parcels that are older than three hours and that
// Config.ParcelUsed does not know.
func (s *Service) SweepParcels(ctx context.Context) error {
	if s.ParcelUsed == nil || s.Store == nil && s.External == nil {
		return nil
	}
	var errs []error
	for after := ""; ; {
		var old []parcel
		// The sweep is for all organizations.
		err := s.db.All(ctx).NewSelect().Model(&old).Where("created_at < ? AND ref > ?", s.Now().UTC().Add(-parcelKept), after).Order("ref").Limit(parcelBatch).Scan(ctx)
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
		for _, p := range old {
			after = p.Ref
			used, err := s.ParcelUsed(ctx, p.Ref)
			if err == nil && !used {
				err = s.removeParcel(ctx, &p)
			}
			if err != nil {
				errs = append(errs, err)
			}
		}
		if len(old) < parcelBatch {
			return errors.Join(errs...)
		}
	}
}

func (s *Service) removeParcel(ctx context.Context, p *parcel) error {
	key := parcelPrefix + p.OrganizationID + "/" + parcelKey(p.Ref)
	var err error
	if s.External != nil {
		err = s.client.RemoveObject(ctx, s.External.Bucket, key, minio.RemoveObjectOptions{})
	} else {
		err = s.Store.Delete(s.Bucket, key)
	}
	if err != nil {
		return err
	}
	_, err = s.db.All(ctx).NewDelete().Model(p).WherePK().Exec(ctx)
	return err
}
