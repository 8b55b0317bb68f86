// Package apikey has the API keys of users: random strings that act for one
// user in one organization, with permissions of their own. Only their hashes
// are kept; a key is shown when it is made and never again.
package apikey

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/uptrace/bun"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/cache"
	"github.com/daytona-go/daytona/server/display"
	"github.com/daytona-go/daytona/server/identity"
	"github.com/daytona-go/daytona/server/store"
)

const (
	// Prefix begins every key that is made here.
	Prefix = "dtn_"
	// maxValue bounds what is hashed, in bytes.
	maxValue = 512
	// maxKeys is how many keys a user may have in an organization.
	maxKeys = 1000
	// touchEvery is how often at most it is written down that a key was used.
	touchEvery = 10 * time.Second
)

// Key is an API key, without the key itself.
type Key struct {
	bun.BaseModel `bun:"table:api_keys,alias:api_key"`

	ID             string                `bun:"id,pk"`
	OrganizationID string                `bun:"organization_id,notnull"`
	UserID         string                `bun:"user_id,notnull"`
	Name           string                `bun:"name,notnull"`
	Hash           string                `bun:"hash,notnull"` // of the whole key: SHA-256, hexadecimal
	Prefix         string                `bun:"prefix,notnull"`
	Suffix         string                `bun:"suffix,notnull"`
	Permissions    []identity.Permission `bun:"permissions,notnull"`
	CreatedAt      time.Time             `bun:"created_at,notnull"`
	LastUsedAt     *time.Time            `bun:"last_used_at"`
	ExpiresAt      *time.Time            `bun:"expires_at"`
}

// Masked is what may be shown of the key.
func (k *Key) Masked() string { return k.Prefix + strings.Repeat("*", 20) + k.Suffix }

// Topic tells of keys that were revoked or changed; see package cache.
const Topic = "apikey"

// Service has the keys of all organizations.
type Service struct {
	db   *store.DB
	log  *slog.Logger
	keys *cache.Cache[*Key] // by hash
	now  func() time.Time
	mu   sync.Mutex
	used map[string]time.Time // by id, since it was last written down
}

// New returns the service of a database. log may be nil.
func New(db *store.DB, log *slog.Logger) *Service {
	if log == nil {
		log = slog.Default()
	}
	return &Service{
		db: db, log: log, now: time.Now, used: map[string]time.Time{},
		keys: cache.New[*Key](db, Topic, 100_000, 10*time.Second),
	}
}

// Run keeps the cache of keys true and writes down, every few seconds, which
// keys were used, until ctx is done. Without it everything works, with a query
// for each request.
func (s *Service) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { s.keys.Run(ctx) })
	t := time.NewTicker(touchEvery)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			if err := s.Flush(ctx); err != nil {
				s.log.Warn("cannot write down which API keys were used", "err", err)
			}
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer cancel()
			return s.Flush(last)
		}
	}
}

// Flush writes down which keys were used since it was last done.
func (s *Service) Flush(ctx context.Context) error {
	s.mu.Lock()
	used := s.used
	s.used = map[string]time.Time{}
	s.mu.Unlock()
	if len(used) == 0 {
		return nil
	}
	return s.db.Tx(ctx, func(ctx context.Context) error {
		for id, at := range used {
			// Keys of all organizations; one that is gone changes nothing.
			if _, err := s.db.All(ctx).NewUpdate().Model((*Key)(nil)).Set("last_used_at = ?", at).
				Where("id = ? AND (last_used_at IS NULL OR last_used_at < ?)", id, at).Exec(ctx); err != nil {
				return err
			}
		}
		return nil
	})
}

func (s *Service) touch(id string) {
	now := s.now().UTC()
	s.mu.Lock()
	s.used[id] = now
	s.mu.Unlock()
}

func hash(value string) string {
	sum := sha256.Sum256([]byte(value))
	return hex.EncodeToString(sum[:])
}

// Generate returns a new random key.
func Generate() string {
	var b [32]byte
	rand.Read(b[:])
	return Prefix + hex.EncodeToString(b[:])
}

// NewKey says what a key is to be.
type NewKey struct {
	// Name is unique for the user in the organization; at most [display.MaxName] characters.
	Name        string
	Permissions []identity.Permission
	// ExpiresAt is when the key stops working; nil for never.
	ExpiresAt *time.Time
}

var errTaken = &daytona.Error{Kind: daytona.KindConflict, Message: "API key with this name already exists"}

// Create makes a key for the user of p in p's organization and returns it with
// the key itself, which nobody can find out again. The key can have no
// permission that p has not.
func (s *Service) Create(ctx context.Context, p *identity.Principal, n NewKey) (*Key, string, error) {
	if err := checkName(n.Name); err != nil {
		return nil, "", err
	}
	now := s.now().UTC()
	if n.ExpiresAt != nil && !n.ExpiresAt.After(now) {
		return nil, "", &daytona.Error{Kind: daytona.KindInvalid, Message: "expiresAt must be in the future: " + n.ExpiresAt.UTC().Format(time.RFC3339)}
	}
	permissions, err := known(n.Permissions)
	if err != nil {
		return nil, "", err
	}
	var missing []string
	for _, permission := range permissions {
		if !p.May(permission) {
			missing = append(missing, string(permission))
		}
	}
	if len(missing) > 0 {
		return nil, "", &daytona.Error{Kind: daytona.KindForbidden, Message: "Insufficient permissions for assigning: " + strings.Join(missing, ", ")}
	}
	value := Generate()
	k := makeKey(p.OrganizationID, p.UserID, n.Name, value, permissions, now)
	if n.ExpiresAt != nil {
		k.ExpiresAt = new(n.ExpiresAt.UTC())
	}
	err = s.db.Tx(ctx, func(ctx context.Context) error {
		count, err := s.db.In(ctx, p.OrganizationID).Select((*Key)(nil)).Where("user_id = ?", p.UserID).Count(ctx)
		if err != nil {
			return err
		}
		if count >= maxKeys {
			return &daytona.Error{Kind: daytona.KindInvalid, Message: fmt.Sprintf("API key quota exceeded. Maximum allowed: %d", maxKeys)}
		}
		_, err = s.db.All(ctx).NewInsert().Model(k).Exec(ctx)
		return err
	})
	if store.IsUnique(err) {
		return nil, "", errTaken
	}
	if err != nil {
		return nil, "", err
	}
	return k, value, nil
}

// Ensure makes the key of a name with all permissions, for the administrator
// that a server is set up with. An empty value means a random one. It returns
// the key if it has made one; a key that is there already stays, unless its
// value is another than the one that is given.
func (s *Service) Ensure(ctx context.Context, organizationID, userID, name, value string) (string, error) {
	if len(value) > maxValue {
		return "", &daytona.Error{Kind: daytona.KindInvalid, Op: "make API key", Subject: name, Message: fmt.Sprintf("it may have at most %d bytes", maxValue)}
	}
	if value != "" && len(value) < 16 {
		return "", &daytona.Error{Kind: daytona.KindInvalid, Op: "make API key", Subject: name, Message: "it must have at least 16 characters, so that nobody can guess it"}
	}
	made := ""
	err := s.db.Tx(ctx, func(ctx context.Context) error {
		made = ""
		old := &Key{}
		err := s.db.In(ctx, organizationID).Select(old).Where("user_id = ? AND name = ?", userID, name).Scan(ctx)
		switch {
		case err == nil && (value == "" || old.Hash == hash(value)):
			return nil
		case err == nil:
			if _, err := s.remove(ctx, organizationID, "id = ?", old.ID); err != nil {
				return err
			}
		case !store.IsNone(err):
			return err
		}
		made = value
		if made == "" {
			made = Generate()
		}
		k := makeKey(organizationID, userID, name, made, identity.Permissions(), s.now().UTC())
		_, err = s.db.All(ctx).NewInsert().Model(k).Exec(ctx)
		return err
	})
	if err != nil {
		return "", err
	}
	return made, nil
}

func makeKey(organizationID, userID, name, value string, permissions []identity.Permission, now time.Time) *Key {
	return &Key{
		ID: uuid.NewString(), OrganizationID: organizationID, UserID: userID, Name: name, Hash: hash(value),
		Prefix: value[:3], Suffix: value[len(value)-3:], Permissions: permissions, CreatedAt: now,
	}
}

// known returns permissions in the order of the wire, each once.
func known(permissions []identity.Permission) ([]identity.Permission, error) {
	all := identity.Permissions()
	for _, p := range permissions {
		if !slices.Contains(all, p) {
			return nil, &daytona.Error{Kind: daytona.KindInvalid, Message: fmt.Sprintf("permissions: there is no permission %q", p)}
		}
	}
	return slices.DeleteFunc(all, func(p identity.Permission) bool { return !slices.Contains(permissions, p) }), nil
}

func checkName(name string) error {
	if strings.TrimSpace(name) == "" {
		return &daytona.Error{Kind: daytona.KindInvalid, Message: "name should not be empty"}
	}
	return display.Name("name", name)
}

// all reports whether p may see and remove the keys of others.
func all(p *identity.Principal) bool {
	return p.Role == identity.Owner || p.May(identity.ManageAPIKeys)
}

// List returns the keys of p's organization, oldest first: all of them to who
// manages them, to others their own.
func (s *Service) List(ctx context.Context, p *identity.Principal) ([]Key, error) {
	var keys []Key
	q := s.db.In(ctx, p.OrganizationID).Select(&keys).Order("created_at", "id")
	if !all(p) {
		q = q.Where("user_id = ?", p.UserID)
	}
	return keys, q.Scan(ctx)
}

// Get returns a key of p's user by its name.
func (s *Service) Get(ctx context.Context, p *identity.Principal, name string) (*Key, error) {
	return s.get(ctx, p.OrganizationID, "user_id = ? AND name = ?", p.UserID, name)
}

// Current returns the key that p itself was found by.
func (s *Service) Current(ctx context.Context, p *identity.Principal) (*Key, error) {
	return s.get(ctx, p.OrganizationID, "id = ?", p.KeyID)
}

func (s *Service) get(ctx context.Context, organizationID, where string, args ...any) (*Key, error) {
	k := &Key{}
	err := s.db.In(ctx, organizationID).Select(k).Where(where, args...).Scan(ctx)
	if store.IsNone(err) {
		return nil, errNone
	}
	if err != nil {
		return nil, err
	}
	return k, nil
}

var errNone = &daytona.Error{Kind: daytona.KindNotFound, Message: "API key not found"}

// Delete revokes a key by its name: one of p's user, or, by who manages the
// keys of the organization, of any user. No server takes it any more when
// Delete returns, or at most a moment later.
func (s *Service) Delete(ctx context.Context, p *identity.Principal, userID, name string) error {
	if userID != p.UserID && !all(p) {
		return &daytona.Error{Kind: daytona.KindForbidden, Message: "Access denied"}
	}
	n, err := s.remove(ctx, p.OrganizationID, "user_id = ? AND name = ?", userID, name)
	if err == nil && n == 0 {
		return errNone
	}
	return err
}

// DeleteForMember revokes all keys of a user in an organization, who has left
// it.
func (s *Service) DeleteForMember(ctx context.Context, organizationID, userID string) error {
	_, err := s.remove(ctx, organizationID, "user_id = ?", userID)
	return err
}

// DeleteExceeding revokes the keys of a user in an organization that have
// permissions which the user has not, or not any more.
func (s *Service) DeleteExceeding(ctx context.Context, organizationID, userID string, held []identity.Permission) error {
	return s.db.Tx(ctx, func(ctx context.Context) error {
		var keys []Key
		if err := s.db.In(ctx, organizationID).Select(&keys).Where("user_id = ?", userID).Scan(ctx); err != nil {
			return err
		}
		for _, k := range keys {
			if slices.ContainsFunc(k.Permissions, func(p identity.Permission) bool { return !slices.Contains(held, p) }) {
				if _, err := s.remove(ctx, organizationID, "id = ?", k.ID); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// DeleteForOrganization revokes all keys of an organization, which goes.
func (s *Service) DeleteForOrganization(ctx context.Context, organizationID string) error {
	_, err := s.remove(ctx, organizationID, "1 = 1")
	return err
}

func (s *Service) remove(ctx context.Context, organizationID, where string, args ...any) (n int, err error) {
	err = s.db.Tx(ctx, func(ctx context.Context) error {
		var keys []Key
		if err := s.db.In(ctx, organizationID).Select(&keys).Where(where, args...).Scan(ctx); err != nil {
			return err
		}
		n = len(keys)
		for _, k := range keys {
			if _, err := s.db.In(ctx, organizationID).Delete((*Key)(nil)).Where("id = ?", k.ID).Exec(ctx); err != nil {
				return err
			}
			if err := s.keys.Changed(ctx, k.Hash); err != nil {
				return err
			}
		}
		return nil
	})
	return n, err
}

// Validate returns who has a key: its user's id, its organization and its
// permissions. It is daytona.ErrUnauthorized if there is none, or not any more.
func (s *Service) Validate(ctx context.Context, value string) (*identity.Principal, error) {
	if value == "" || len(value) > maxValue {
		return nil, unauthorized()
	}
	k, err := s.keys.Get(ctx, hash(value), func(ctx context.Context) (*Key, error) {
		k := &Key{}
		// The key says which organization it is of.
		return k, s.db.All(ctx).NewSelect().Model(k).Where("hash = ?", hash(value)).Scan(ctx)
	})
	if store.IsNone(err) {
		return nil, unauthorized()
	}
	if err != nil {
		return nil, err
	}
	if k.ExpiresAt != nil && !k.ExpiresAt.After(s.now()) {
		return nil, unauthorized()
	}
	s.touch(k.ID)
	return &identity.Principal{
		Kind: identity.Key, UserID: k.UserID, OrganizationID: k.OrganizationID,
		Permissions: k.Permissions, KeyID: k.ID, KeyName: k.Name,
	}, nil
}

func unauthorized() error {
	return &daytona.Error{Kind: daytona.KindUnauthorized, Message: "Invalid credentials"}
}
