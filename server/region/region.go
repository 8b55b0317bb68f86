// Package region has the places in which sandboxes can be: shared ones, which
// everybody has, and those of one organization, with its own runners.
package region

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/uptrace/bun"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/identity"
	"github.com/daytona-go/daytona/server/store"
)

// Types of a region.
const (
	Shared    = "shared"
	Dedicated = "dedicated"
	Custom    = "custom"
)

// TopicChanged tells of a change of a region: its id.
const TopicChanged = "region.changed"

// SnapshotManagerUser is the name that goes with the password of a region's
// snapshot manager.
const SnapshotManagerUser = "daytona"

// maxRegions is how many an organization may have.
const maxRegions = 50

// Region is a place for sandboxes. The zero values of its fields stand for
// what is not there.
type Region struct {
	bun.BaseModel `bun:"table:regions,alias:region"`

	ID string `bun:"id,pk"`
	// OrganizationID is "" for a region that is nobody's own.
	OrganizationID string `bun:"organization_id,notnull"`
	Name           string `bun:"name,notnull"`
	Type           string `bun:"type,notnull"`
	// EnforceQuotas says that the totals of an organization count here.
	EnforceQuotas bool `bun:"enforce_quotas,notnull"`
	// ProxyURL is "" where the server's own proxy serves the region. So it is
	// with the others.
	ProxyURL           string `bun:"proxy_url,notnull"`
	SSHGatewayURL      string `bun:"ssh_gateway_url,notnull"`
	SnapshotManagerURL string `bun:"snapshot_manager_url,notnull"`
	OTelEndpoint       string `bun:"otel_endpoint,notnull"`
	// The hashes of keys are "" where there is none.
	ProxyKeyHash        string    `bun:"proxy_key_hash,notnull"`
	SSHGatewayKeyHash   string    `bun:"ssh_gateway_key_hash,notnull"`
	SnapshotManagerHash string    `bun:"snapshot_manager_hash,notnull"`
	CreatedAt           time.Time `bun:"created_at,notnull"`
	UpdatedAt           time.Time `bun:"updated_at,notnull"`
}

// Quotas is the feature that has quotas.
type Quotas interface {
	// Regions returns the ids of the regions in which an organization has
	// quotas.
	Regions(ctx context.Context, organizationID string) ([]string, error)
}

// Runners is the feature that has runners.
type Runners interface {
	// InRegion returns how many runners a region has.
	InRegion(ctx context.Context, regionID string) (int, error)
}

// Organizations is the feature that has organizations.
type Organizations interface {
	// DefaultRegion returns the region of what names none, or the error that
	// there is none.
	DefaultRegion(ctx context.Context, organizationID string) (string, error)
}

// Outbound says what may be connected to.
type Outbound interface {
	Check(field, rawURL string) error
}

// Config says what a Service is made of. All fields are required, but may be
// functions of what is made later.
type Config struct {
	Quotas        Quotas
	Runners       Runners
	Organizations Organizations
	// Outbound checks the endpoint for telemetry of a region. Without one it
	// must be http or https, nothing else.
	Outbound Outbound
}

// Service has regions.
type Service struct {
	db     *store.DB
	config Config
}

// New returns a service.
func New(db *store.DB, c Config) *Service { return &Service{db, c} }

// Wire sets what a service is made of, where that is made of regions in turn.
// It is called before anything else.
func (s *Service) Wire(c Config) { s.config = c }

func invalid(format string, args ...any) error {
	return &daytona.Error{Kind: daytona.KindInvalid, Message: fmt.Sprintf(format, args...)}
}

func notFound() error { return &daytona.Error{Kind: daytona.KindNotFound, Message: "Region not found"} }

// Bootstrap makes a shared region, if there is none with the id. One that is
// there keeps its settings but for EnforceQuotas.
func (s *Service) Bootstrap(ctx context.Context, id, name string, enforceQuotas bool) error {
	if err := checkName(name); err != nil {
		return err
	}
	r := &Region{ID: id, Name: name, Type: Shared, EnforceQuotas: enforceQuotas, CreatedAt: store.Now(), UpdatedAt: store.Now()}
	_, err := s.db.All(ctx).NewInsert().Model(r).On("CONFLICT (id) DO UPDATE").Set("enforce_quotas = EXCLUDED.enforce_quotas").Exec(ctx)
	if store.IsUnique(err) {
		return &daytona.Error{Kind: daytona.KindConflict, Op: "make the default region", Field: "name", Value: name, Message: "is the name of another region"}
	}
	return err
}

// Get returns a region. It asks nobody whether the caller may see it.
func (s *Service) Get(ctx context.Context, id string) (*Region, error) {
	r := &Region{}
	// Shared regions are in no organization.
	err := s.db.All(ctx).NewSelect().Model(r).Where("id = ?", id).Scan(ctx)
	if store.IsNone(err) {
		return nil, notFound()
	}
	return r, err
}

// Shared reports whether a region is for everybody.
func (s *Service) Shared(ctx context.Context, id string) (bool, error) {
	r, err := s.Get(ctx, id)
	return err == nil && r.Type == Shared, err
}

// Enforced reports whether the totals of quotas count in a region.
func (s *Service) Enforced(ctx context.Context, id string) (bool, error) {
	r, err := s.Get(ctx, id)
	return err == nil && r.EnforceQuotas, err
}

// AllShared returns the regions that are for everybody.
func (s *Service) AllShared(ctx context.Context) ([]Region, error) {
	var all []Region
	err := s.db.All(ctx).NewSelect().Model(&all).Where("type = ?", Shared).OrderExpr("name, id").Scan(ctx)
	return all, err
}

// Available returns the regions that an organization can use: its own, then
// dedicated ones it has quotas in, then shared ones.
func (s *Service) Available(ctx context.Context, organizationID string) ([]Region, error) {
	var all []Region
	if err := s.db.All(ctx).NewSelect().Model(&all).Where("organization_id = ? OR organization_id = ''", organizationID).OrderExpr("name, id").Scan(ctx); err != nil {
		return nil, err
	}
	quotas, err := s.config.Quotas.Regions(ctx, organizationID)
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(r Region) bool { return !r.usable(organizationID, quotas) })
	slices.SortStableFunc(all, func(a, b Region) int { return rank(a.Type) - rank(b.Type) })
	return all, nil
}

func rank(typ string) int { return slices.Index([]string{Custom, Dedicated, Shared}, typ) }

// usable reports whether an organization can use a region.
func (r *Region) usable(organizationID string, quotas []string) bool {
	switch {
	case r.OrganizationID != "":
		return r.OrganizationID == organizationID
	case r.Type == Shared && !r.EnforceQuotas:
		return true
	}
	return slices.Contains(quotas, r.ID)
}

// Usable returns an error if an organization can't use a region: not found for
// another's, forbidden for one that it has no quota in.
func (s *Service) Usable(ctx context.Context, organizationID string, r *Region) error {
	quotas, err := s.config.Quotas.Regions(ctx, organizationID)
	switch {
	case err != nil:
		return err
	case r.usable(organizationID, quotas):
		return nil
	case r.OrganizationID != "":
		return notFound()
	}
	return &daytona.Error{Kind: daytona.KindForbidden, Message: "Region " + r.ID + " is not available to the organization"}
}

// Visible returns a region that an organization may know of: its own, or one
// that is nobody's.
func (s *Service) Visible(ctx context.Context, organizationID, id string) (*Region, error) {
	r, err := s.Get(ctx, id)
	if err == nil && r.OrganizationID != "" && r.OrganizationID != organizationID {
		return nil, notFound()
	}
	return r, err
}

// Target returns the region that a request means: by name among the
// organization's own, by name among those for everybody, or by id; without
// one, the organization's default. An organization without a default region
// can't make anything, whatever it names.
func (s *Service) Target(ctx context.Context, organizationID, target string) (*Region, error) {
	fallback, err := s.config.Organizations.DefaultRegion(ctx, organizationID)
	if err != nil {
		return nil, err
	}
	if target == "" {
		target = fallback
	}
	var all []Region
	if err := s.db.All(ctx).NewSelect().Model(&all).Where("(organization_id = ? OR organization_id = '') AND (name = ? OR id = ?)", organizationID, target, target).Scan(ctx); err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, notFound()
	}
	order := func(r Region) int {
		switch {
		case r.Name == target && r.OrganizationID != "":
			return 0
		case r.Name == target:
			return 1
		}
		return 2
	}
	r := slices.MinFunc(all, func(a, b Region) int { return order(a) - order(b) })
	return &r, s.Usable(ctx, organizationID, &r)
}

var name = regexp.MustCompile(`^[a-zA-Z0-9_.-]{2,255}$`)

func checkName(s string) error {
	if !name.MatchString(s) {
		return invalid("Region name must have 2 to 255 characters, which must be letters, numbers, underscores, periods, and hyphens")
	}
	return nil
}

// newKey returns a key and its hash.
func newKey() (key, hash string) {
	b := make([]byte, 32)
	rand.Read(b)
	key = "dtn_" + hex.EncodeToString(b)
	return key, hashOf(key)
}

func hashOf(key string) string {
	h := sha256.Sum256([]byte(key))
	return hex.EncodeToString(h[:])
}

// Keys are what was made for a region, shown once. What was not made is "".
type Keys struct{ Proxy, SSHGateway, SnapshotManager string }

// Change is what is to be changed of a region: nil leaves a field, "" removes
// it.
type Change struct{ ProxyURL, SSHGatewayURL, SnapshotManagerURL, OTelEndpoint *string }

// apply makes r what c says. A part that goes takes its key with it.
func (s *Service) apply(r *Region, c Change) error {
	for _, f := range []struct {
		name    string
		to      *string
		v       *string
		hash    *string
		schemes []string
	}{
		{"proxyUrl", &r.ProxyURL, c.ProxyURL, &r.ProxyKeyHash, []string{"http", "https"}},
		{"sshGatewayUrl", &r.SSHGatewayURL, c.SSHGatewayURL, &r.SSHGatewayKeyHash, []string{"ssh", "http", "https", ""}},
		{"snapshotManagerUrl", &r.SnapshotManagerURL, c.SnapshotManagerURL, &r.SnapshotManagerHash, []string{"http", "https"}},
		{"otelEndpoint", &r.OTelEndpoint, c.OTelEndpoint, nil, []string{"http", "https"}},
	} {
		if f.v == nil {
			continue
		}
		v := strings.TrimSuffix(strings.TrimSpace(*f.v), "/")
		if err := checkURL(f.name, v, f.schemes); err != nil {
			return err
		}
		if f.name == "otelEndpoint" && v != "" && s.config.Outbound != nil {
			if err := s.config.Outbound.Check(f.name, v); err != nil {
				return err
			}
		}
		*f.to = v
		if v == "" && f.hash != nil {
			*f.hash = ""
		}
	}
	return nil
}

// checkURL checks the address of a part of a region. Whether it is one of the
// internet is not asked: the server gives it to clients and does not connect
// to it itself.
func checkURL(field, v string, schemes []string) error {
	if v == "" {
		return nil
	}
	u, err := url.Parse(v)
	if slices.Contains(schemes, "") && !strings.Contains(v, "://") {
		u, err = url.Parse("ssh://" + v)
	}
	if err != nil || len(v) > 2048 || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || !slices.Contains(schemes, u.Scheme) {
		return invalid("%s must be a URL with %s", field, strings.TrimSuffix(strings.Join(schemes, " or "), " or "))
	}
	return nil
}

// Create makes a region of an organization.
func (s *Service) Create(ctx context.Context, organizationID, name string, c Change) (*Region, Keys, error) {
	r := &Region{ID: uuid.NewString(), OrganizationID: organizationID, Name: strings.TrimSpace(name), Type: Custom, CreatedAt: store.Now()}
	r.UpdatedAt = r.CreatedAt
	if err := checkName(r.Name); err != nil {
		return nil, Keys{}, err
	}
	if err := s.apply(r, c); err != nil {
		return nil, Keys{}, err
	}
	var k Keys
	if r.ProxyURL != "" {
		k.Proxy, r.ProxyKeyHash = newKey()
	}
	if r.SSHGatewayURL != "" {
		k.SSHGateway, r.SSHGatewayKeyHash = newKey()
	}
	if r.SnapshotManagerURL != "" {
		k.SnapshotManager, r.SnapshotManagerHash = newKey()
	}
	err := s.db.Tx(ctx, func(ctx context.Context) error {
		if n, err := s.db.In(ctx, organizationID).Select((*Region)(nil)).Count(ctx); err != nil {
			return err
		} else if n >= maxRegions {
			return invalid("Region quota exceeded. Maximum allowed: %d", maxRegions)
		}
		_, err := s.db.All(ctx).NewInsert().Model(r).Exec(ctx)
		if store.IsUnique(err) {
			return &daytona.Error{Kind: daytona.KindConflict, Message: "Region with name " + r.Name + " already exists"}
		}
		return err
	})
	return r, k, err
}

// own returns a region of an organization, to be changed.
func (s *Service) own(ctx context.Context, organizationID, id string) (*Region, error) {
	r := &Region{}
	q := s.db.In(ctx, organizationID).Select(r).Where("id = ?", id)
	if s.db.Postgres() {
		q = q.For("UPDATE")
	}
	err := q.Scan(ctx)
	if store.IsNone(err) {
		return nil, notFound()
	}
	return r, err
}

// change applies f to a region of an organization.
func (s *Service) change(ctx context.Context, organizationID, id string, f func(r *Region) error) (*Region, error) {
	var r *Region
	err := s.db.Tx(ctx, func(ctx context.Context) error {
		var err error
		if r, err = s.own(ctx, organizationID, id); err != nil {
			return err
		}
		if err := f(r); err != nil {
			return err
		}
		r.UpdatedAt = store.Now()
		if _, err := s.db.In(ctx, organizationID).Update(r).WherePK().Exec(ctx); err != nil {
			return err
		}
		return s.db.Publish(ctx, TopicChanged, id)
	})
	return r, err
}

// Update changes a region. A part that it gets for the first time has no key
// until one is made with Regenerate….
func (s *Service) Update(ctx context.Context, organizationID, id string, c Change) (*Region, error) {
	return s.change(ctx, organizationID, id, func(r *Region) error { return s.apply(r, c) })
}

// RegenerateProxyKey makes a new key for the proxy of a region. The old one is
// of no use any more.
func (s *Service) RegenerateProxyKey(ctx context.Context, organizationID, id string) (key string, err error) {
	_, err = s.change(ctx, organizationID, id, func(r *Region) error {
		if r.ProxyURL == "" {
			return invalid("Region does not have a proxy URL configured")
		}
		key, r.ProxyKeyHash = newKey()
		return nil
	})
	return key, err
}

// RegenerateSSHGatewayKey is RegenerateProxyKey for the SSH gateway.
func (s *Service) RegenerateSSHGatewayKey(ctx context.Context, organizationID, id string) (key string, err error) {
	_, err = s.change(ctx, organizationID, id, func(r *Region) error {
		if r.SSHGatewayURL == "" {
			return invalid("Region does not have an SSH gateway URL configured")
		}
		key, r.SSHGatewayKeyHash = newKey()
		return nil
	})
	return key, err
}

// RegenerateSnapshotManager makes a new password for the snapshot manager.
func (s *Service) RegenerateSnapshotManager(ctx context.Context, organizationID, id string) (password string, err error) {
	_, err = s.change(ctx, organizationID, id, func(r *Region) error {
		if r.SnapshotManagerURL == "" {
			return invalid("Region does not have a snapshot manager URL configured")
		}
		password, r.SnapshotManagerHash = newKey()
		return nil
	})
	return password, err
}

// CheckSnapshotManager reports whether a name and password are those of a
// region's snapshot manager.
func (s *Service) CheckSnapshotManager(ctx context.Context, id, user, password string) bool {
	r, err := s.Get(ctx, id)
	if err != nil || r.SnapshotManagerHash == "" {
		return false
	}
	return subtle.ConstantTimeCompare([]byte(user), []byte(SnapshotManagerUser))&
		subtle.ConstantTimeCompare([]byte(hashOf(password)), []byte(r.SnapshotManagerHash)) == 1
}

// Delete removes a region that has no runners.
func (s *Service) Delete(ctx context.Context, organizationID, id string) error {
	return s.db.Tx(ctx, func(ctx context.Context) error {
		if _, err := s.own(ctx, organizationID, id); err != nil {
			return err
		}
		n, err := s.config.Runners.InRegion(ctx, id)
		if err != nil {
			return err
		}
		if n > 0 {
			return invalid("Cannot delete region which has runners associated with it")
		}
		if _, err := s.db.In(ctx, organizationID).Delete((*Region)(nil)).Where("id = ?", id).Exec(ctx); err != nil {
			return err
		}
		return s.db.Publish(ctx, TopicChanged, id)
	})
}

// DeleteAll removes the regions of an organization that is being deleted.
func (s *Service) DeleteAll(ctx context.Context, organizationID string) error {
	var all []Region
	if err := s.db.In(ctx, organizationID).Select(&all).Scan(ctx); err != nil {
		return err
	}
	for _, r := range all {
		if err := s.Delete(ctx, organizationID, r.ID); err != nil {
			return err
		}
	}
	return nil
}

// RegionByKey returns the region that a key belongs to and what it is for:
// [identity.RegionProxy] or [identity.RegionSSHGateway]; [daytona.ErrNotFound]
// if it belongs to none.
func (s *Service) RegionByKey(ctx context.Context, key string) (regionID string, kind identity.Kind, err error) {
	if strings.HasPrefix(key, "dtn_") && len(key) == 4+64 {
		hash := hashOf(key)
		r := &Region{}
		// A key is looked for before anybody knows whose it is.
		err := s.db.All(ctx).NewSelect().Model(r).Where("proxy_key_hash = ? OR ssh_gateway_key_hash = ?", hash, hash).Limit(1).Scan(ctx)
		switch {
		case err == nil && subtle.ConstantTimeCompare([]byte(r.ProxyKeyHash), []byte(hash)) == 1:
			return r.ID, identity.RegionProxy, nil
		case err == nil:
			return r.ID, identity.RegionSSHGateway, nil
		case !store.IsNone(err):
			return "", 0, err
		}
	}
	return "", 0, &daytona.Error{Kind: daytona.KindNotFound, Message: "no region has this key"}
}
