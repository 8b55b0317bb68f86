// Package user has the people who use the system: those who have logged in
// with the OIDC provider, whom it gets to know by their first token, and those
// whom an administrator has made.
package user

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/mail"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/uptrace/bun"
	"golang.org/x/crypto/ssh"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/cache"
	"github.com/daytona-go/daytona/server/display"
	"github.com/daytona-go/daytona/server/identity"
	"github.com/daytona-go/daytona/server/store"
)

const (
	// AdminID is the id of the administrator that a server is set up with.
	AdminID = "daytona-admin"
	// adminName and adminKey are that user's name and the name of its key.
	adminName, adminKey = "Daytona Admin", "admin"
	// maxText bounds ids, in bytes.
	maxText = 255
)

// Role is the system role of a user.
type Role string

const (
	Admin    Role = "admin"
	Ordinary Role = "user"
)

// PublicKey is an SSH key of a user, in the form of an authorized_keys file.
type PublicKey struct {
	Key  string `json:"key"`
	Name string `json:"name"`
}

// User is one user.
type User struct {
	bun.BaseModel `bun:"table:users,alias:users"`

	ID            string      `bun:"id,pk"`
	Name          string      `bun:"name,notnull"`
	Email         string      `bun:"email,notnull"`
	EmailVerified bool        `bun:"email_verified,notnull"`
	Role          Role        `bun:"role,notnull"`
	PublicKeys    []PublicKey `bun:"public_keys,notnull"`
	CreatedAt     time.Time   `bun:"created_at,notnull"`
	UpdatedAt     time.Time   `bun:"updated_at,notnull"`
}

// Organizations makes the organization that every user starts with.
type Organizations interface {
	// CreatePersonal makes the personal organization of a user, named
	// "Personal", owned by the user, in the transaction of ctx, and returns its
	// id. defaultRegionID may be empty: then it has none.
	CreatePersonal(ctx context.Context, userID, defaultRegionID string) (organizationID string, err error)
	// Personal returns the id of the user's personal organization.
	Personal(ctx context.Context, userID string) (organizationID string, err error)
}

// Keys makes the first API key of a server.
type Keys interface {
	// Ensure makes the key of a name with all permissions, of value or a random
	// one, and returns it if it was not there already.
	Ensure(ctx context.Context, organizationID, userID, name, value string) (key string, err error)
}

// Service has all users.
type Service struct {
	db            *store.DB
	log           *slog.Logger
	organizations Organizations
	users         *cache.Cache[*User]
	now           func() time.Time
}

// New returns the service of a database. log may be nil.
func New(db *store.DB, organizations Organizations, log *slog.Logger) *Service {
	if log == nil {
		log = slog.Default()
	}
	return &Service{
		db: db, log: log, organizations: organizations, now: time.Now,
		users: cache.New[*User](db, "user", 100_000, time.Minute),
	}
}

// Run keeps the cache of users true until ctx is done; see [cache.Cache.Run].
func (s *Service) Run(ctx context.Context) error { return s.users.Run(ctx) }

// NewUser says what a user is to be.
type NewUser struct {
	// ID defaults to a random one.
	ID, Name, Email string
	EmailVerified   bool
	// Role defaults to Ordinary.
	Role Role
	// DefaultRegionID is that of the personal organization; it may be empty.
	DefaultRegionID string
}

// Create makes a user with a personal organization.
func (s *Service) Create(ctx context.Context, n NewUser) (u *User, organizationID string, err error) {
	if err := n.check(); err != nil {
		return nil, "", err
	}
	if n.ID == "" {
		n.ID = uuid.NewString()
	}
	if n.Role == "" {
		n.Role = Ordinary
	}
	now := s.now().UTC()
	u = &User{
		ID: n.ID, Name: n.Name, Email: n.Email, EmailVerified: n.EmailVerified, Role: n.Role,
		PublicKeys: []PublicKey{}, CreatedAt: now, UpdatedAt: now,
	}
	err = s.db.Tx(ctx, func(ctx context.Context) error {
		// Two servers may get to know the same user at once: whoever is second
		// must not spoil the transaction.
		r, err := s.db.All(ctx).NewInsert().Model(u).On("CONFLICT (id) DO NOTHING").Exec(ctx)
		if err != nil {
			return err
		}
		if k, err := r.RowsAffected(); err != nil {
			return err
		} else if k == 0 {
			return &daytona.Error{Kind: daytona.KindConflict, Message: "User with ID " + n.ID + " already exists"}
		}
		if s.organizations == nil {
			return nil
		}
		organizationID, err = s.organizations.CreatePersonal(ctx, u.ID, n.DefaultRegionID)
		return err
	})
	if err != nil {
		return nil, "", err
	}
	return u, organizationID, nil
}

func (n *NewUser) check() error {
	bad := func(format string, args ...any) error {
		return &daytona.Error{Kind: daytona.KindInvalid, Message: fmt.Sprintf(format, args...)}
	}
	if len(n.ID) > maxText {
		return bad("id must be shorter than or equal to %d characters", maxText)
	}
	if strings.TrimSpace(n.Name) == "" {
		return bad("name should not be empty")
	}
	if err := display.Name("name", n.Name); err != nil {
		return err
	}
	if n.Email != "" && !isAddress(n.Email) {
		return bad("email must be an email: %q", n.Email)
	}
	if n.Role != "" && n.Role != Admin && n.Role != Ordinary {
		return bad("role must be one of admin, user: %q", n.Role)
	}
	return nil
}

func isAddress(v string) bool {
	a, err := mail.ParseAddress(v)
	return err == nil && a.Address == v && display.Check("email", v, display.MaxName) == nil
}

// Get returns a user.
func (s *Service) Get(ctx context.Context, id string) (*User, error) {
	u := &User{}
	err := s.db.All(ctx).NewSelect().Model(u).Where("id = ?", id).Scan(ctx)
	if store.IsNone(err) {
		return nil, &daytona.Error{Kind: daytona.KindNotFound, Message: "User with ID " + id + " not found"}
	}
	if err != nil {
		return nil, err
	}
	return u, nil
}

// List returns all users, oldest first.
func (s *Service) List(ctx context.Context) ([]User, error) {
	var users []User
	return users, s.db.All(ctx).NewSelect().Model(&users).Order("created_at", "id").Scan(ctx)
}

// Many returns those of some users that are there, by id.
func (s *Service) Many(ctx context.Context, ids []string) (map[string]User, error) {
	if len(ids) == 0 {
		return map[string]User{}, nil
	}
	var users []User
	if err := s.db.All(ctx).NewSelect().Model(&users).Where("id IN (?)", bun.List(ids)).Scan(ctx); err != nil {
		return nil, err
	}
	m := make(map[string]User, len(users))
	for _, u := range users {
		m[u.ID] = u
	}
	return m, nil
}

// known is Get from the cache.
func (s *Service) known(ctx context.Context, id string) (*User, error) {
	return s.users.Get(ctx, id, func(ctx context.Context) (*User, error) { return s.Get(ctx, id) })
}

// Fill adds to p what is known of its user.
func (s *Service) Fill(ctx context.Context, p *identity.Principal) error {
	u, err := s.known(ctx, p.UserID)
	if err != nil {
		return err
	}
	p.Email, p.Name, p.Admin = u.Email, u.Name, u.Role == Admin
	return nil
}

// Provision returns the user that a token is about, who is made if nothing is
// known of them yet, and keeps what the token says of them.
func (s *Service) Provision(ctx context.Context, c identity.Claims) (*identity.Principal, error) {
	if c.Subject == "" || len(c.Subject) > maxText {
		return nil, &daytona.Error{Kind: daytona.KindUnauthorized, Message: "Invalid credentials"}
	}
	c.Name, c.Username, c.Email = plain(c.Name), plain(c.Username), plain(c.Email)
	if !isAddress(c.Email) {
		c.Email = ""
	}
	u, err := s.known(ctx, c.Subject)
	if errors.Is(err, daytona.ErrNotFound) {
		name := first(c.Name, c.Username, c.Email, plain(c.Subject), "User")
		u, _, err = s.Create(ctx, NewUser{ID: c.Subject, Name: name, Email: c.Email, EmailVerified: c.EmailVerified && c.Email != ""})
		if errors.Is(err, daytona.ErrConflict) {
			u, err = s.Get(ctx, c.Subject)
		} else if err == nil {
			s.log.Info("first login of a user", "user", u.ID)
		}
	}
	if err != nil {
		return nil, err
	}
	if now := u.after(c); now != nil {
		now.UpdatedAt = s.now().UTC()
		if err := s.update(ctx, now, "name", "email", "email_verified", "updated_at"); err != nil {
			return nil, err
		}
		u = now
	}
	return &identity.Principal{Kind: identity.JWT, UserID: u.ID, Email: u.Email, Name: u.Name, Admin: u.Role == Admin}, nil
}

// after returns what u is once the claims are believed, or nil if that is what
// it was. What a token does not say stays as it is.
func (u *User) after(c identity.Claims) *User {
	now := *u
	if name := first(c.Name, c.Username); name != "" {
		now.Name = name
	}
	if c.Email != "" {
		now.Email, now.EmailVerified = c.Email, c.EmailVerified
	}
	if now.Name == u.Name && now.Email == u.Email && now.EmailVerified == u.EmailVerified {
		return nil
	}
	return &now
}

func (s *Service) update(ctx context.Context, u *User, columns ...string) error {
	return s.db.Tx(ctx, func(ctx context.Context) error {
		if _, err := s.db.All(ctx).NewUpdate().Model(u).Column(columns...).WherePK().Exec(ctx); err != nil {
			return err
		}
		return s.users.Changed(ctx, u.ID)
	})
}

// plain returns what a token says if it may be shown, and nothing otherwise: a
// provider's idea of a name must not keep somebody out.
func plain(v string) string {
	if display.Check("", v, display.MaxName) != nil {
		return ""
	}
	return v
}

func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// Info returns what tokens say of a user.
func (s *Service) Info(ctx context.Context, id string) (email, name string, verified bool, err error) {
	u, err := s.known(ctx, id)
	if err != nil {
		return "", "", false, err
	}
	return u.Email, u.Name, u.EmailVerified, nil
}

// RegenerateKeyPair gives a user a new SSH key pair in place of the last one
// and returns the private key, which is kept nowhere.
func (s *Service) RegenerateKeyPair(ctx context.Context, id string) (*User, string, error) {
	const name = "daytona"
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, "", err
	}
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		return nil, "", err
	}
	block, err := ssh.MarshalPrivateKey(private, name)
	if err != nil {
		return nil, "", err
	}
	var u *User
	err = s.db.Tx(ctx, func(ctx context.Context) error {
		u, err = s.Get(ctx, id)
		if err != nil {
			return err
		}
		keys := []PublicKey{}
		for _, k := range u.PublicKeys {
			if k.Name != name {
				keys = append(keys, k)
			}
		}
		u.PublicKeys = append(keys, PublicKey{Key: strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key))), Name: name})
		u.UpdatedAt = s.now().UTC()
		return s.update(ctx, u, "public_keys", "updated_at")
	})
	if err != nil {
		return nil, "", err
	}
	return u, string(pem.EncodeToMemory(block)), nil
}

// Bootstrap makes the administrator that a server is set up with, if there is
// none, with a key: value, or a random one if that is empty. It returns the
// key if it has made one; who calls it shows it, once.
func (s *Service) Bootstrap(ctx context.Context, keys Keys, email, value, defaultRegionID string) (key string, err error) {
	_, err = s.Get(ctx, AdminID)
	if errors.Is(err, daytona.ErrNotFound) {
		_, _, err = s.Create(ctx, NewUser{
			ID: AdminID, Name: adminName, Email: email, EmailVerified: email != "", Role: Admin, DefaultRegionID: defaultRegionID,
		})
		if errors.Is(err, daytona.ErrConflict) {
			err = nil // another server was faster
		}
	}
	if err != nil {
		return "", err
	}
	organizationID, err := s.organizations.Personal(ctx, AdminID)
	if err != nil {
		return "", err
	}
	return keys.Ensure(ctx, organizationID, AdminID, adminKey, value)
}
