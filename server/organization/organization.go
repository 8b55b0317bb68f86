// Package organization has organizations, who is in them and what they may do
// there: members with their roles, invitations, suspension, and the settings
// of an organization that are not about one other feature.
package organization

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/uptrace/bun"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/cache"
	"github.com/daytona-go/daytona/server/display"
	"github.com/daytona-go/daytona/server/identity"
	"github.com/daytona-go/daytona/server/seal"
	"github.com/daytona-go/daytona/server/store"
)

// Topics of [store.DB.Publish].
const (
	// TopicMember tells that what a user is or may do in an organization has
	// changed: "organization user", or "" for many.
	TopicMember = "organization.member"
	// TopicLeft tells that a membership has ended: "organization user". What
	// the user has open there is to be closed.
	TopicLeft = "organization.left"
	// TopicChanged tells of a change of an organization, suspension among them:
	// its id.
	TopicChanged = "organization.changed"
	// TopicDeleted tells of one that is no more: its id.
	TopicDeleted = "organization.deleted"
)

// Defaults and limits.
const (
	DefaultGraceHours          = 24
	DefaultDeactivationMinutes = 20160
	maxPerCreator              = 10
	maxMembers                 = 1000
	maxRoles                   = 100
	maxInvitations             = 500
	maxProviders               = 20
	reasonVerify               = "Please verify your email address"
	maxExperimental            = 64 << 10
	maxHeaders                 = 32
	maxHeaderValue             = 8 << 10
	maxNumber                  = 1_000_000_000
	maxTTL                     = 30 * 24 * 3600 // seconds
	maxHours                   = 10 * 366 * 24
	maxMinutes                 = maxHours * 60
)

// Users is the feature that has users.
type Users interface {
	// Info returns what is known of a user; [daytona.ErrNotFound] if that is
	// nothing.
	Info(ctx context.Context, id string) (email, name string, verified bool, err error)
}

// Keys is the feature that has API keys.
type Keys interface {
	// DeleteExceeding revokes the keys of a user in an organization that have
	// permissions which the user has not.
	DeleteExceeding(ctx context.Context, organizationID, userID string, held []identity.Permission) error
	// DeleteForMember revokes all keys of a user in an organization.
	DeleteForMember(ctx context.Context, organizationID, userID string) error
}

// Regions is the feature that has regions.
type Regions interface {
	// Shared reports whether a region is for everybody;
	// [daytona.ErrNotFound] if there is no such region.
	Shared(ctx context.Context, regionID string) (bool, error)
}

// Quotas is the feature that has quotas.
type Quotas interface {
	// Prepare gives an organization its default quotas in a region, where it
	// has none.
	Prepare(ctx context.Context, organizationID, regionID string) error
}

// Mailer tells people of what happens. It must not block.
type Mailer interface {
	Invited(ctx context.Context, i Invitation)
}

// Outbound makes connections to what users chose.
type Outbound interface {
	Check(field, rawURL string) error
	Client(timeout time.Duration) *http.Client
}

// Config says what a Service is made of. Users, Keys, Regions, Quotas and Box
// are required.
type Config struct {
	Users   Users
	Keys    Keys
	Regions Regions
	Quotas  Quotas
	Box     *seal.Box
	// Outbound is for identity providers and telemetry. Without it, neither can
	// be set.
	Outbound Outbound
	// Mailer sends invitations. Defaults to nobody.
	Mailer Mailer
	// Deleting is asked before an organization is deleted, in the transaction
	// that deletes it: an error refuses. Defaults to nobody.
	Deleting []func(ctx context.Context, organizationID string) error
	// Suspending is called in the transaction that suspends an organization: an
	// error refuses. Defaults to nothing.
	Suspending func(ctx context.Context, organizationID string) error
	// SkipEmailVerification lets users act whose address nobody has verified.
	SkipEmailVerification bool
	// LimitedEgress is the default of new organizations.
	LimitedEgress bool
	// TrustDomains takes the word of organizations for which domains are theirs,
	// and doesn't ask the DNS; see [Service.ProviderFor].
	TrustDomains bool
	// LookupTXT asks the DNS. Defaults to the system's resolver.
	LookupTXT func(ctx context.Context, name string) ([]string, error)
	// PersonalRegion is the default region of new personal organizations.
	// Defaults to none: the owner chooses once.
	PersonalRegion string
	Log            *slog.Logger
}

// Service has organizations.
type Service struct {
	db          *store.DB
	config      Config
	memberships *cache.Cache[membership]
	actives     *cache.Cache[active]
}

// New returns a service. [Service.Run] keeps it up to date with other servers.
func New(db *store.DB, c Config) *Service {
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.LookupTXT == nil {
		c.LookupTXT = net.DefaultResolver.LookupTXT
	}
	return &Service{
		db: db, config: c,
		memberships: cache.New[membership](db, TopicMember, 20000, time.Minute),
		actives:     cache.New[active](db, TopicChanged, 10000, time.Minute),
	}
}

// Organization is a tenant: what is in one is seen by its members only.
type Organization struct {
	bun.BaseModel `bun:"table:organizations,alias:organization"`

	ID        string `bun:"id,pk"`
	Name      string `bun:"name,notnull"`
	CreatedBy string `bun:"created_by,notnull"`
	// Personal is a user's own, in which nobody else is.
	Personal bool `bun:"personal,notnull"`
	// DefaultRegionID is "" until it is set, which can be done once.
	DefaultRegionID  string     `bun:"default_region_id,notnull"`
	Suspended        bool       `bun:"suspended,notnull"`
	SuspendedAt      *time.Time `bun:"suspended_at"`
	SuspensionReason string     `bun:"suspension_reason,notnull"`
	// SuspendedUntil is when it ends by itself; nil is never.
	SuspendedUntil *time.Time `bun:"suspended_until"`
	// GraceHours are those between suspension and the end of what runs.
	GraceHours int `bun:"suspension_grace_hours,notnull"`
	// LimitedEgress is whether new sandboxes have a limited network.
	LimitedEgress  bool `bun:"limited_egress,notnull"`
	PreviewWarning bool `bun:"preview_warning,notnull"`
	// SSOEnabled is whether identity providers may be configured.
	SSOEnabled bool `bun:"sso_enabled,notnull"`
	// DeactivationMinutes is how long a snapshot stays active unused.
	DeactivationMinutes int    `bun:"snapshot_deactivation_minutes,notnull"`
	OTelEndpoint        string `bun:"otel_endpoint,notnull"`
	// OTelHeaders are sealed.
	OTelHeaders  map[string]string `bun:"otel_headers,notnull"`
	Experimental map[string]any    `bun:"experimental,notnull"`
	// RateLimits are those that differ from the server's, by limiter
	// ("authenticated", "sandbox-create", "sandbox-lifecycle").
	RateLimits map[string]RateLimit `bun:"rate_limits,notnull"`
	CreatedAt  time.Time            `bun:"created_at,notnull"`
	UpdatedAt  time.Time            `bun:"updated_at,notnull"`
}

// RateLimit is how many requests are allowed in how many seconds. What is nil
// is as in the server's configuration.
type RateLimit struct {
	Limit *int `json:"limit,omitempty"`
	TTL   *int `json:"ttl,omitempty"`
}

// suspended reports whether it is now.
func (o *Organization) suspended(now time.Time) bool {
	return o.Suspended && (o.SuspendedUntil == nil || o.SuspendedUntil.After(now))
}

func invalid(format string, args ...any) error {
	return &daytona.Error{Kind: daytona.KindInvalid, Message: fmt.Sprintf(format, args...)}
}

func forbidden(format string, args ...any) error {
	return &daytona.Error{Kind: daytona.KindForbidden, Message: fmt.Sprintf(format, args...)}
}

func notFound(format string, args ...any) error {
	return &daytona.Error{Kind: daytona.KindNotFound, Message: fmt.Sprintf(format, args...)}
}

func conflict(format string, args ...any) error {
	return &daytona.Error{Kind: daytona.KindConflict, Message: fmt.Sprintf(format, args...)}
}

// Get returns an organization. It asks nobody whether the caller may see it.
func (s *Service) Get(ctx context.Context, id string) (*Organization, error) {
	o := &Organization{}
	// An organization is not in an organization.
	err := s.db.All(ctx).NewSelect().Model(o).Where("id = ?", id).Scan(ctx)
	if store.IsNone(err) {
		return nil, notFound("Organization with ID %s not found", id)
	}
	return o, err
}

// lock is Get for who is going to change what is in the organization: two who
// do so wait for each other, so that the last owner is not two people's last.
func (s *Service) lock(ctx context.Context, id string) (*Organization, error) {
	o := &Organization{}
	q := s.db.All(ctx).NewSelect().Model(o).Where("id = ?", id)
	if s.db.Postgres() {
		q = q.For("UPDATE")
	}
	err := q.Scan(ctx)
	if store.IsNone(err) {
		return nil, notFound("Organization with ID %s not found", id)
	}
	return o, err
}

// Of returns the organizations that a user is in, the personal one first.
func (s *Service) Of(ctx context.Context, userID string) ([]Organization, error) {
	var all []Organization
	// A user's organizations are several by nature.
	err := s.db.All(ctx).NewSelect().Model(&all).
		Join("JOIN organization_members AS m ON m.organization_id = organization.id").Where("m.user_id = ?", userID).
		OrderExpr("organization.personal DESC, organization.created_at, organization.id").Scan(ctx)
	return all, err
}

// NewOrganization is an organization to be made.
type NewOrganization struct {
	Name, UserID, DefaultRegionID string
	// Personal is for a user who has just come. It is named "Personal".
	Personal bool
	// Trusted leaves out what is asked of the user: an administrator makes it.
	Trusted bool
}

// Create makes an organization, with the user as its owner.
func (s *Service) Create(ctx context.Context, n NewOrganization) (*Organization, error) {
	if n.Personal {
		n.Name = "Personal"
		if n.DefaultRegionID == "" {
			n.DefaultRegionID = s.config.PersonalRegion
		}
	}
	n.Name = strings.TrimSpace(n.Name)
	if err := display.Name("name", n.Name); err != nil {
		return nil, err
	}
	_, _, verified, err := s.config.Users.Info(ctx, n.UserID)
	if err != nil {
		return nil, err
	}
	verified = verified || s.config.SkipEmailVerification || n.Trusted
	if !n.Personal {
		if !verified {
			return nil, forbidden("Please verify your email address")
		}
		if shared, err := s.config.Regions.Shared(ctx, n.DefaultRegionID); errors.Is(err, daytona.ErrNotFound) {
			return nil, notFound("Region not found")
		} else if err != nil {
			return nil, err
		} else if !shared {
			return nil, forbidden("Region is not available: the default region of a new organization must be a shared one")
		}
	}
	at := store.Now()
	o := &Organization{
		ID: uuid.NewString(), Name: n.Name, CreatedBy: n.UserID, Personal: n.Personal, DefaultRegionID: n.DefaultRegionID,
		GraceHours: DefaultGraceHours, LimitedEgress: s.config.LimitedEgress, PreviewWarning: true, DeactivationMinutes: DefaultDeactivationMinutes,
		OTelHeaders: map[string]string{}, Experimental: map[string]any{}, RateLimits: map[string]RateLimit{}, CreatedAt: at, UpdatedAt: at,
	}
	if !verified {
		o.Suspended, o.SuspendedAt, o.SuspensionReason = true, &at, reasonVerify
	}
	err = s.db.Tx(ctx, func(ctx context.Context) error {
		if s.db.Postgres() {
			// Of two that one user makes at once, the second must see the first.
			if _, err := s.db.All(ctx).NewRaw("SELECT pg_advisory_xact_lock(hashtextextended(?, 21))", n.UserID).Exec(ctx); err != nil {
				return err
			}
		}
		q := s.db.All(ctx).NewSelect().Model((*Organization)(nil)).Where("created_by = ? AND personal = ?", n.UserID, n.Personal)
		count, err := q.Count(ctx)
		if err != nil {
			return err
		}
		if n.Personal && count > 0 {
			return conflict("User %s has a personal organization already", n.UserID)
		}
		if !n.Personal && !n.Trusted && count >= maxPerCreator {
			return forbidden("You have reached the maximum number of created organizations")
		}
		if _, err := s.db.All(ctx).NewInsert().Model(o).Exec(ctx); err != nil {
			return err
		}
		if err := s.addMember(ctx, o.ID, n.UserID, identity.Owner, nil); err != nil {
			return err
		}
		if o.DefaultRegionID == "" {
			return nil
		}
		return s.config.Quotas.Prepare(ctx, o.ID, o.DefaultRegionID)
	})
	if err != nil {
		return nil, err
	}
	return o, nil
}

// CreatePersonal makes the personal organization of a user who has just come,
// and returns its id. Without a default region, the owner chooses one.
func (s *Service) CreatePersonal(ctx context.Context, userID, defaultRegionID string) (string, error) {
	o, err := s.Create(ctx, NewOrganization{UserID: userID, Personal: true, DefaultRegionID: defaultRegionID})
	if err != nil {
		return "", err
	}
	return o.ID, nil
}

// Personal returns the id of the personal organization of a user.
func (s *Service) Personal(ctx context.Context, userID string) (string, error) {
	o := &Organization{}
	err := s.db.All(ctx).NewSelect().Model(o).Where("created_by = ? AND personal = ?", userID, true).Limit(1).Scan(ctx)
	if store.IsNone(err) {
		return "", notFound("User %s has no personal organization", userID)
	}
	return o.ID, err
}

// Delete deletes an organization with all that this package has of it.
func (s *Service) Delete(ctx context.Context, id string) error {
	return s.db.Tx(ctx, func(ctx context.Context) error {
		o, err := s.lock(ctx, id)
		if err != nil {
			return err
		}
		if o.Personal {
			return forbidden("Cannot delete personal organization")
		}
		for _, f := range s.config.Deleting {
			if err := f(ctx, id); err != nil {
				return err
			}
		}
		var members []Member
		if err := s.db.In(ctx, id).Select(&members).Scan(ctx); err != nil {
			return err
		}
		for _, m := range members {
			if err := s.removeMember(ctx, id, m.UserID); err != nil {
				return err
			}
		}
		for _, model := range []any{(*Role)(nil), (*Invitation)(nil), (*Provider)(nil)} {
			if _, err := s.db.In(ctx, id).Delete(model).Exec(ctx); err != nil {
				return err
			}
		}
		if _, err := s.db.All(ctx).NewDelete().Model((*Organization)(nil)).Where("id = ?", id).Exec(ctx); err != nil {
			return err
		}
		if err := s.actives.Changed(ctx, id); err != nil {
			return err
		}
		return s.db.Publish(ctx, TopicDeleted, id)
	})
}

// change applies f to an organization and stores what it has made of it.
func (s *Service) change(ctx context.Context, id string, f func(o *Organization) error) error {
	return s.changeIn(ctx, id, func(_ context.Context, o *Organization) error { return f(o) })
}

// changeIn is change for an f that does more in the same transaction.
func (s *Service) changeIn(ctx context.Context, id string, f func(ctx context.Context, o *Organization) error) error {
	return s.db.Tx(ctx, func(ctx context.Context) error {
		o, err := s.lock(ctx, id)
		if err != nil {
			return err
		}
		if err := f(ctx, o); err != nil {
			return err
		}
		o.UpdatedAt = store.Now()
		if _, err := s.db.All(ctx).NewUpdate().Model(o).WherePK().Exec(ctx); err != nil {
			return err
		}
		return s.actives.Changed(ctx, id)
	})
}

// SetDefaultRegion sets the region of what names none. It can be done once.
func (s *Service) SetDefaultRegion(ctx context.Context, id, regionID string) error {
	shared, err := s.config.Regions.Shared(ctx, regionID)
	if errors.Is(err, daytona.ErrNotFound) {
		return notFound("Region not found")
	} else if err != nil {
		return err
	} else if !shared {
		return forbidden("Region is not available: a default region must be a shared one")
	}
	return s.db.Tx(ctx, func(ctx context.Context) error {
		if err := s.change(ctx, id, func(o *Organization) error {
			if o.DefaultRegionID != "" {
				return conflict("Organization already has a default region set")
			}
			o.DefaultRegionID = regionID
			return nil
		}); err != nil {
			return err
		}
		return s.config.Quotas.Prepare(ctx, id, regionID)
	})
}

// DefaultRegion returns the region of what names none. Without one, nothing
// that is in a region can be made.
func (s *Service) DefaultRegion(ctx context.Context, id string) (string, error) {
	e, err := s.lookActive(ctx, id)
	if err != nil {
		return "", err
	}
	if e.region == "" {
		return "", invalid("This organization does not have a default region. Please open the Daytona Dashboard to set a default region.")
	}
	return e.region, nil
}

// Suspension says why an organization can't be used.
type Suspension struct {
	Reason string
	// Until is when it ends by itself. Zero is never.
	Until time.Time
	// GraceHours defaults to [DefaultGraceHours].
	GraceHours *int
}

// Suspend keeps an organization from making and starting anything.
func (s *Service) Suspend(ctx context.Context, id string, x Suspension) error {
	if len(x.Reason) > display.MaxDescription {
		return invalid("reason must have at most %d characters", display.MaxDescription)
	}
	if x.GraceHours != nil && (*x.GraceHours < 0 || *x.GraceHours > maxHours) {
		return invalid("suspensionCleanupGracePeriodHours must not be less than 0 or more than %d", maxHours)
	}
	return s.changeIn(ctx, id, func(ctx context.Context, o *Organization) error {
		o.Suspended, o.SuspendedAt, o.SuspensionReason, o.SuspendedUntil = true, new(store.Now()), x.Reason, nil
		if !x.Until.IsZero() {
			o.SuspendedUntil = new(x.Until.UTC())
		}
		o.GraceHours = DefaultGraceHours
		if x.GraceHours != nil {
			o.GraceHours = *x.GraceHours
		}
		if s.config.Suspending == nil {
			return nil
		}
		return s.config.Suspending(ctx, id)
	})
}

// Unsuspend ends a suspension.
func (s *Service) Unsuspend(ctx context.Context, id string) error {
	return s.change(ctx, id, func(o *Organization) error {
		o.Suspended, o.SuspendedAt, o.SuspensionReason, o.SuspendedUntil = false, nil, "", nil
		return nil
	})
}

// Active returns an error that matches [daytona.ErrForbidden] if an
// organization is suspended.
func (s *Service) Active(ctx context.Context, id string) error {
	e, err := s.lookActive(ctx, id)
	if err != nil {
		return err
	}
	if e.suspended && e.reason == reasonVerify {
		// It ends with what it was for.
		if _, _, verified, err := s.config.Users.Info(ctx, e.creator); err == nil && verified {
			return s.Unsuspend(ctx, id)
		}
	}
	if e.suspended && (e.until == nil || e.until.After(time.Now())) {
		if e.reason == "" {
			return forbidden("Organization is suspended")
		}
		return forbidden("Organization is suspended: %s", e.reason)
	}
	return nil
}

// Overdue returns the organizations whose suspension has lasted as long as its
// grace: what runs there is to be stopped. It is for those who do so, and
// looks across organizations.
func (s *Service) Overdue(ctx context.Context) ([]string, error) {
	var all []Organization
	if err := s.db.All(ctx).NewSelect().Model(&all).Where("suspended = ?", true).Scan(ctx); err != nil {
		return nil, err
	}
	var ids []string
	at := store.Now()
	for _, o := range all {
		if o.suspended(at) && o.SuspendedAt != nil && !o.SuspendedAt.Add(time.Duration(o.GraceHours)*time.Hour).After(at) {
			ids = append(ids, o.ID)
		}
	}
	return ids, nil
}

// Together runs f so that all it does with its context is done, or nothing.
func (s *Service) Together(ctx context.Context, f func(ctx context.Context) error) error {
	return s.db.Tx(ctx, f)
}

// SetLimitedEgress sets whether new sandboxes have a limited network.
func (s *Service) SetLimitedEgress(ctx context.Context, id string, limited bool) error {
	return s.change(ctx, id, func(o *Organization) error { o.LimitedEgress = limited; return nil })
}

// SetPreviewWarning sets whether who opens a preview is warned first.
func (s *Service) SetPreviewWarning(ctx context.Context, id string, on bool) error {
	return s.change(ctx, id, func(o *Organization) error { o.PreviewWarning = on; return nil })
}

// SetSSO sets whether identity providers may be configured.
func (s *Service) SetSSO(ctx context.Context, id string, on bool) error {
	return s.change(ctx, id, func(o *Organization) error { o.SSOEnabled = on; return nil })
}

// SetRateLimits replaces the rate limits that differ from the server's. A
// limiter that is not in limits is as in the server's configuration.
func (s *Service) SetRateLimits(ctx context.Context, id string, limits map[string]RateLimit) error {
	for name, l := range limits {
		if l.Limit != nil && (*l.Limit < 1 || *l.Limit > maxNumber) || l.TTL != nil && (*l.TTL < 1 || *l.TTL > maxTTL) {
			return invalid("rate limit %s must be 1 to %d in 1 to %d seconds", name, maxNumber, maxTTL)
		}
	}
	return s.change(ctx, id, func(o *Organization) error { o.RateLimits = limits; return nil })
}

// RateLimit returns what an organization has of its own for a limiter; zero,
// of either, is as in the server's configuration.
func (s *Service) RateLimit(ctx context.Context, id, limiter string) (limit int, ttl time.Duration, err error) {
	e, err := s.lookActive(ctx, id)
	if l := e.limits[limiter]; err == nil {
		if l.Limit != nil {
			limit = *l.Limit
		}
		if l.TTL != nil {
			ttl = time.Duration(*l.TTL) * time.Second
		}
	}
	return limit, ttl, err
}

// SetDeactivation sets how long snapshots stay active that nobody uses.
func (s *Service) SetDeactivation(ctx context.Context, id string, minutes int) error {
	if minutes < 1 || minutes > maxMinutes {
		return invalid("snapshotDeactivationTimeoutMinutes must be between 1 and %d", maxMinutes)
	}
	return s.change(ctx, id, func(o *Organization) error { o.DeactivationMinutes = minutes; return nil })
}

// SetExperimental replaces the experimental settings.
func (s *Service) SetExperimental(ctx context.Context, id string, config map[string]any, size int) error {
	if size > maxExperimental {
		return invalid("the experimental configuration must have at most %d bytes, not %d", maxExperimental, size)
	}
	if _, ok := config["otel"]; ok {
		return invalid("otel is not an experimental setting any more: use the organization's otel-config")
	}
	if config == nil {
		config = map[string]any{}
	}
	return s.change(ctx, id, func(o *Organization) error { o.Experimental = config; return nil })
}

// active is what every request for something new asks of an organization.
type active struct {
	suspended bool
	reason    string
	until     *time.Time
	region    string
	creator   string
	limits    map[string]RateLimit
}

func (s *Service) lookActive(ctx context.Context, id string) (active, error) {
	return s.actives.Get(ctx, id, func(ctx context.Context) (active, error) {
		o, err := s.Get(ctx, id)
		if err != nil {
			return active{}, err
		}
		return active{o.Suspended, o.SuspensionReason, o.SuspendedUntil, o.DefaultRegionID, o.CreatedBy, o.RateLimits}, nil
	})
}

// Run keeps what the service remembers up to date with other servers, until
// ctx is done. Without it, nothing is remembered.
func (s *Service) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { s.memberships.Run(ctx) })
	wg.Go(func() { s.actives.Run(ctx) })
	wg.Wait()
	return ctx.Err()
}
