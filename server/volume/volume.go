// Package volume has the volumes of organizations: names for places in the
// object storage that sandboxes on any runner mount. A row says what is to be,
// and a worker makes it so.
package volume

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/uptrace/bun"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/store"
)

// State is that of a volume, in the words of the wire.
type State string

// The states of a volume.
const (
	PendingCreate State = "pending_create"
	Creating      State = "creating"
	Ready         State = "ready"
	PendingDelete State = "pending_delete"
	Deleting      State = "deleting"
	Deleted       State = "deleted"
	Error         State = "error"
)

// Volume is one row.
type Volume struct {
	bun.BaseModel `bun:"table:volumes,alias:volume"`

	ID             string     `bun:"id,pk"`
	OrganizationID string     `bun:"organization_id,notnull"`
	Name           string     `bun:"name,notnull"`
	State          State      `bun:"state,notnull"`
	Reason         string     `bun:"reason,notnull"`
	Version        int64      `bun:"version,notnull"`
	CreatedAt      time.Time  `bun:"created_at,notnull"`
	UpdatedAt      time.Time  `bun:"updated_at,notnull"`
	LastUsedAt     *time.Time `bun:"last_used_at"`
}

// Storage is where volumes are.
type Storage interface {
	// CreateVolume makes the place of a volume, and does nothing if it is there.
	// KindUnavailable if no storage is configured.
	CreateVolume(ctx context.Context, id string) error
	// DeleteVolume removes it with its files, and does nothing if there is none.
	DeleteVolume(ctx context.Context, id string) error
	// VolumeLocation returns where runners mount it from.
	VolumeLocation(ctx context.Context, organizationID, id string) (daytona.S3Location, error)
}

// Event is something that happened to a volume.
type Event struct {
	// Name is volume.created, volume.state.updated or volume.lastUsedAt.updated.
	Name   string
	Volume Volume
	Old    State // of volume.state.updated
}

// Config says what a Service works with. DB is required.
type Config struct {
	DB *store.DB
	// Storage defaults to none: then there are no volumes.
	Storage Storage
	// Limit returns how many volumes an organization may have; 0 is no limit.
	// Defaults to no limit.
	Limit func(ctx context.Context, organizationID string) (int, error)
	// Active returns KindForbidden for an organization that is suspended.
	// Defaults to all being active.
	Active func(ctx context.Context, organizationID string) error
	// InUse reports whether a sandbox that lives has a volume. Defaults to no.
	InUse func(ctx context.Context, organizationID, id string) (bool, error)
	// Event is told of what happens, in the transaction that it happens in.
	Event func(ctx context.Context, e Event) error
	Now   func() time.Time
	Log   *slog.Logger
}

// Service has the rules of volumes.
type Service struct {
	Config
	db *store.DB
}

// New returns a Service; see [Service.Run].
func New(c Config) *Service {
	if c.Limit == nil {
		c.Limit = func(context.Context, string) (int, error) { return 0, nil }
	}
	if c.Active == nil {
		c.Active = func(context.Context, string) error { return nil }
	}
	if c.InUse == nil {
		c.InUse = func(context.Context, string, string) (bool, error) { return false, nil }
	}
	if c.Event == nil {
		c.Event = func(context.Context, Event) error { return nil }
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	return &Service{Config: c, db: c.DB}
}

const (
	wake  = "volume.wake"
	every = 5 * time.Second
	// stuck is after how long another server goes on with what one began, and may
	// still be at: either can be done twice.
	stuck   = time.Minute
	maxName = 255
)

func (s *Service) now() time.Time { return s.Now().UTC().Truncate(time.Millisecond) }

func notFound(what, v string) error {
	return &daytona.Error{Kind: daytona.KindNotFound, Message: fmt.Sprintf("Volume with %s %s not found", what, v)}
}

// CheckName checks the name of a volume.
func CheckName(name string) error {
	if name == "" {
		return &daytona.Error{Kind: daytona.KindInvalid, Message: "name should not be empty"}
	}
	if utf8.RuneCountInString(name) > maxName {
		return &daytona.Error{Kind: daytona.KindInvalid, Message: fmt.Sprintf("name must have at most %d characters", maxName)}
	}
	lower := strings.ToLower(name)
	if !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl) || strings.Contains(lower, "://") || strings.Contains(lower, "www.") ||
		strings.ContainsAny(name, "<>") {
		return &daytona.Error{Kind: daytona.KindInvalid, Message: "name must not contain HTML tags, URLs, or control characters"}
	}
	return nil
}

// Create makes the row of a volume; the worker makes the volume.
func (s *Service) Create(ctx context.Context, organizationID, name string) (*Volume, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	if s.Storage == nil {
		return nil, &daytona.Error{Kind: daytona.KindUnavailable, Message: "Object storage is not configured"}
	}
	if err := s.Active(ctx, organizationID); err != nil {
		return nil, err
	}
	limit, err := s.Limit(ctx, organizationID)
	if err != nil {
		return nil, err
	}
	now := s.now()
	v := &Volume{ID: uuid.NewString(), OrganizationID: organizationID, Name: name, State: PendingCreate, Version: 1, CreatedAt: now, UpdatedAt: now}
	taken := &daytona.Error{Kind: daytona.KindInvalid, Message: "Volume with name " + name + " already exists"}
	err = s.db.Tx(ctx, func(ctx context.Context) error {
		if ok, err := s.db.In(ctx, organizationID).Select((*Volume)(nil)).Where("name = ? AND state <> ?", name, Deleted).Exists(ctx); err != nil {
			return err
		} else if ok {
			return taken
		}
		if limit > 0 {
			// What is counted must stay true; SQLite has one writer.
			if s.db.Postgres() {
				if _, err := s.db.All(ctx).NewRaw("SELECT pg_advisory_xact_lock(hashtextextended(?, 51))", organizationID).Exec(ctx); err != nil {
					return err
				}
			}
			if n, err := s.Count(ctx, organizationID); err != nil {
				return err
			} else if n >= limit {
				return &daytona.Error{Kind: daytona.KindInvalid, Message: fmt.Sprintf("Volume quota exceeded. Maximum allowed: %d", limit)}
			}
		}
		if _, err := s.db.All(ctx).NewInsert().Model(v).Exec(ctx); store.IsUnique(err) {
			return taken
		} else if err != nil {
			return err
		}
		if err := s.Event(ctx, Event{Name: "volume.created", Volume: *v}); err != nil {
			return err
		}
		return s.db.Publish(ctx, wake, v.ID)
	})
	if err != nil {
		return nil, err
	}
	return v, nil
}

// Count returns how many volumes count towards an organization's quota.
func (s *Service) Count(ctx context.Context, organizationID string) (int, error) {
	n, err := s.db.In(ctx, organizationID).Select((*Volume)(nil)).Where("state NOT IN (?)", bun.List([]State{Deleted, Error})).Count(ctx)
	return int(n), err
}

// List returns an organization's volumes, newest first.
func (s *Service) List(ctx context.Context, organizationID string, deleted bool) ([]Volume, error) {
	var list []Volume
	q := s.db.In(ctx, organizationID).Select(&list).Order("created_at DESC", "id")
	if !deleted {
		q = q.Where("state <> ?", Deleted)
	}
	return list, q.Scan(ctx)
}

// Get returns a volume by id, also one that is deleted.
func (s *Service) Get(ctx context.Context, organizationID, id string) (*Volume, error) {
	v := &Volume{}
	err := s.db.In(ctx, organizationID).Select(v).Where("id = ?", id).Scan(ctx)
	if store.IsNone(err) {
		return nil, notFound("ID", id)
	} else if err != nil {
		return nil, err
	}
	return v, nil
}

// ByName returns a volume by name.
func (s *Service) ByName(ctx context.Context, organizationID, name string) (*Volume, error) {
	v := &Volume{}
	err := s.db.In(ctx, organizationID).Select(v).Where("name = ? AND state <> ?", name, Deleted).Scan(ctx)
	if store.IsNone(err) {
		return nil, notFound("name", name)
	} else if err != nil {
		return nil, err
	}
	return v, nil
}

// Mountable finds the volume that a sandbox is to have, by id or name, and notes
// its use. One that is not ready is KindInvalid.
func (s *Service) Mountable(ctx context.Context, organizationID, idOrName string) (*Volume, error) {
	v, err := s.Get(ctx, organizationID, idOrName)
	if daytona.KindOf(err) == daytona.KindNotFound {
		v, err = s.ByName(ctx, organizationID, idOrName)
	}
	if daytona.KindOf(err) == daytona.KindNotFound {
		return nil, &daytona.Error{Kind: daytona.KindNotFound, Message: fmt.Sprintf("Volume '%s' not found", idOrName)}
	} else if err != nil {
		return nil, err
	}
	if v.State != Ready {
		return nil, &daytona.Error{Kind: daytona.KindInvalid, Message: fmt.Sprintf("Volume '%s' is not in a ready state. Current state: %s", idOrName, v.State)}
	}
	return v, s.Used(ctx, organizationID, v.ID)
}

// Used notes that a sandbox starts with a volume.
func (s *Service) Used(ctx context.Context, organizationID, id string) error {
	return s.db.Tx(ctx, func(ctx context.Context) error {
		now := s.now()
		r, err := s.db.In(ctx, organizationID).Update((*Volume)(nil)).Set("last_used_at = ?", now).
			Where("id = ? AND (last_used_at IS NULL OR last_used_at < ?)", id, now.Add(-time.Minute)).Exec(ctx)
		if err != nil {
			return err
		}
		if n, err := r.RowsAffected(); err != nil || n == 0 {
			return err
		}
		v, err := s.Get(ctx, organizationID, id)
		if err != nil {
			return err
		}
		return s.Event(ctx, Event{Name: "volume.lastUsedAt.updated", Volume: *v})
	})
}

// Location returns where a runner mounts a volume from; see [Storage].
func (s *Service) Location(ctx context.Context, organizationID, id string) (daytona.S3Location, error) {
	v, err := s.Get(ctx, organizationID, id)
	if err != nil {
		return daytona.S3Location{}, err
	}
	if v.State != Ready {
		return daytona.S3Location{}, &daytona.Error{Kind: daytona.KindState, Message: fmt.Sprintf("Volume '%s' is not in a ready state. Current state: %s", v.Name, v.State)}
	}
	return s.Storage.VolumeLocation(ctx, organizationID, id)
}

// Delete marks a volume for deletion, with all that is in it.
func (s *Service) Delete(ctx context.Context, organizationID, id string) error {
	return s.db.Tx(ctx, func(ctx context.Context) error {
		v, err := s.Get(ctx, organizationID, id)
		if err != nil {
			return err
		}
		if v.State == Deleted {
			return notFound("ID", id)
		}
		if v.State != Ready && v.State != Error {
			return &daytona.Error{Kind: daytona.KindState, Message: fmt.Sprintf("Volume must be in '%s' or '%s' state in order to be deleted", Ready, Error)}
		}
		if used, err := s.InUse(ctx, organizationID, id); err != nil {
			return err
		} else if used {
			return &daytona.Error{Kind: daytona.KindConflict, Message: "Volume cannot be deleted because it is in use by one or more sandboxes"}
		}
		return s.move(ctx, v, PendingDelete, "")
	})
}

// move changes a volume's state, if nobody has done so meanwhile.
func (s *Service) move(ctx context.Context, v *Volume, to State, reason string) error {
	next := *v
	next.State, next.Reason, next.UpdatedAt, next.Version = to, reason, s.now(), v.Version+1
	if to == Deleted {
		next.Name += "-deleted"
	}
	err := s.db.Tx(ctx, func(ctx context.Context) error {
		q := s.db.In(ctx, v.OrganizationID).Update(&next).Column("state", "reason", "updated_at", "version", "name").WherePK().Where("version = ?", v.Version)
		if err := store.Changed(q.Exec(ctx)); err != nil {
			return err
		}
		if err := s.Event(ctx, Event{Name: "volume.state.updated", Volume: next, Old: v.State}); err != nil {
			return err
		}
		return s.db.Publish(ctx, wake, v.ID)
	})
	if err == nil {
		*v = next
	}
	return err
}

// Run makes and removes volumes until ctx ends. Any number of servers may run
// it.
func (s *Service) Run(ctx context.Context) error {
	changes, stop := s.db.Subscribe(wake)
	defer stop()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if err := s.Reconcile(ctx); err != nil && ctx.Err() == nil {
			s.Log.Warn("volumes did not move on", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changes:
		case <-tick.C:
		}
	}
}

// Reconcile does what there is to be done now.
func (s *Service) Reconcile(ctx context.Context) error {
	if s.Storage == nil {
		return nil
	}
	var list []Volume
	// The worker is for all organizations.
	err := s.db.All(ctx).NewSelect().Model(&list).
		Where("state IN (?) OR (state IN (?) AND updated_at < ?)", bun.List([]State{PendingCreate, PendingDelete}), bun.List([]State{Creating, Deleting}), s.now().Add(-stuck)).
		Order("updated_at").Limit(100).Scan(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for i := range list {
		if err := s.step(ctx, &list[i]); err != nil && daytona.KindOf(err) != daytona.KindConflict {
			errs = append(errs, fmt.Errorf("volume %s: %w", list[i].ID, err))
		}
	}
	return errors.Join(errs...)
}

func (s *Service) step(ctx context.Context, v *Volume) error {
	create := v.State == PendingCreate || v.State == Creating
	doing, done, do := Deleting, Deleted, s.Storage.DeleteVolume
	if create {
		doing, done, do = Creating, Ready, s.Storage.CreateVolume
	}
	if err := s.move(ctx, v, doing, ""); err != nil {
		return err
	}
	if err := do(ctx, v.ID); err != nil {
		if ctx.Err() != nil {
			return err // it is found again
		}
		s.Log.Error("object storage of a volume", "volume", v.ID, "state", v.State, "err", err)
		reason := "The object storage failed"
		if e, ok := errors.AsType[*daytona.Error](err); ok && e.Message != "" {
			reason = e.Message
		}
		return s.move(ctx, v, Error, reason)
	}
	return s.move(ctx, v, done, "")
}
