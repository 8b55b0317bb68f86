package user

import (
	"context"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/uptrace/bun"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/store"
)

// Account is an account of an identity provider that is a user's, beside the
// one whose subject is the user's id.
type Account struct {
	bun.BaseModel `bun:"table:user_accounts,alias:user_account"`

	Provider       string    `bun:"provider,pk"`
	ProviderUserID string    `bun:"provider_user_id,pk"`
	UserID         string    `bun:"user_id,notnull"`
	CreatedAt      time.Time `bun:"created_at,notnull"`
}

// PendingAccount is one that an organization's identity provider says is a
// user's, and that becomes it once the user agrees.
type PendingAccount struct {
	bun.BaseModel `bun:"table:user_pending_accounts,alias:pending"`

	ID     string `bun:"id,pk"`
	UserID string `bun:"user_id,notnull"`
	// OrganizationID is that of the organization whose provider it is.
	OrganizationID string `bun:"organization_id,notnull"`
	// Provider is the provider's id, ProviderName what people call it.
	Provider       string    `bun:"provider,notnull"`
	ProviderName   string    `bun:"provider_name,notnull"`
	ProviderUserID string    `bun:"provider_user_id,notnull"`
	ProviderEmail  *string   `bun:"provider_email"`
	CreatedAt      time.Time `bun:"created_at,notnull"`
	ExpiresAt      time.Time `bun:"expires_at,notnull"`
}

// maxPending is how many accounts a user is asked about, the newest.
const maxPending = 20

// Pend asks a user whether an account is theirs. ID and CreatedAt are set;
// ExpiresAt defaults to a week from now.
func (s *Service) Pend(ctx context.Context, a PendingAccount) (*PendingAccount, error) {
	a.ID, a.CreatedAt = uuid.NewString(), s.now().UTC()
	if a.ExpiresAt.IsZero() {
		a.ExpiresAt = a.CreatedAt.Add(7 * 24 * time.Hour)
	}
	_, err := s.db.All(ctx).NewInsert().Model(&a).On("CONFLICT (user_id, provider, provider_user_id) DO UPDATE").
		Set("expires_at = EXCLUDED.expires_at").Exec(ctx)
	if err != nil {
		return nil, err
	}
	// A provider could ask for ever.
	newest := s.db.All(ctx).NewSelect().Model((*PendingAccount)(nil)).Column("id").Where("user_id = ?", a.UserID).Order("created_at DESC", "id").Limit(maxPending)
	_, err = s.db.All(ctx).NewDelete().Model((*PendingAccount)(nil)).Where("user_id = ? AND id NOT IN (?)", a.UserID, newest).Exec(ctx)
	return &a, err
}

// Pending returns the accounts that a user is asked about, oldest first.
func (s *Service) Pending(ctx context.Context, userID string) ([]PendingAccount, error) {
	var list []PendingAccount
	return list, s.db.All(ctx).NewSelect().Model(&list).Where("user_id = ? AND expires_at > ?", userID, s.now().UTC()).
		Order("created_at", "id").Scan(ctx)
}

// Confirm makes an account that a user was asked about theirs.
func (s *Service) Confirm(ctx context.Context, userID, id string) error {
	return s.db.Tx(ctx, func(ctx context.Context) error {
		p := &PendingAccount{}
		err := s.db.All(ctx).NewSelect().Model(p).Where("id = ? AND user_id = ? AND expires_at > ?", id, userID, s.now().UTC()).Scan(ctx)
		if store.IsNone(err) {
			return errNoPending
		}
		if err != nil {
			return err
		}
		r, err := s.db.All(ctx).NewInsert().Model(&Account{
			Provider: p.Provider, ProviderUserID: p.ProviderUserID, UserID: userID, CreatedAt: s.now().UTC(),
		}).On("CONFLICT (provider, provider_user_id) DO NOTHING").Exec(ctx)
		if err != nil {
			return err
		}
		if n, err := r.RowsAffected(); err != nil {
			return err
		} else if n == 0 {
			return &daytona.Error{Kind: daytona.KindConflict, Message: "This account is linked to a user already"}
		}
		_, err = s.db.All(ctx).NewDelete().Model(p).WherePK().Exec(ctx)
		return err
	})
}

var errNoPending = &daytona.Error{Kind: daytona.KindNotFound, Message: "Pending SSO link not found"}

// Dismiss ends the question whether an account is a user's.
func (s *Service) Dismiss(ctx context.Context, userID, id string) error {
	r, err := s.db.All(ctx).NewDelete().Model((*PendingAccount)(nil)).Where("id = ? AND user_id = ?", id, userID).Exec(ctx)
	if err != nil {
		return err
	}
	if n, err := r.RowsAffected(); err == nil && n == 0 {
		return errNoPending
	}
	return nil
}

// ByAccount returns the id of the user that an account of an identity provider
// belongs to.
func (s *Service) ByAccount(ctx context.Context, provider, providerUserID string) (string, error) {
	a := &Account{}
	err := s.db.All(ctx).NewSelect().Model(a).Where("provider = ? AND provider_user_id = ?", provider, providerUserID).Scan(ctx)
	if store.IsNone(err) {
		return "", &daytona.Error{Kind: daytona.KindNotFound, Message: "This account is linked to no user"}
	}
	return a.UserID, err
}

// CreateFor makes a user of an account of an identity provider. The first of
// names that may be shown is theirs. They have no address: nobody has said that
// one is theirs but the provider.
func (s *Service) CreateFor(ctx context.Context, a Account, names ...string) (string, error) {
	name := "User"
	for _, n := range names {
		if n = plain(n); strings.TrimSpace(n) != "" {
			name = n
			break
		}
	}
	var id string
	err := s.db.Tx(ctx, func(ctx context.Context) error {
		u, _, err := s.Create(ctx, NewUser{Name: name})
		if err != nil {
			return err
		}
		id, a.UserID, a.CreatedAt = u.ID, u.ID, s.now().UTC()
		_, err = s.db.All(ctx).NewInsert().Model(&a).Exec(ctx)
		if store.IsUnique(err) {
			return &daytona.Error{Kind: daytona.KindConflict, Message: "This account is linked to a user already"}
		}
		return err
	})
	return id, err
}

// ByEmail returns the id of the user who has an address, in any case: of
// several, the first.
func (s *Service) ByEmail(ctx context.Context, email string) (string, error) {
	u := &User{}
	err := s.db.All(ctx).NewSelect().Model(u).Where("email <> '' AND LOWER(email) = LOWER(?)", email).Order("created_at", "id").Limit(1).Scan(ctx)
	if store.IsNone(err) {
		return "", &daytona.Error{Kind: daytona.KindNotFound, Message: "Nobody has this address"}
	}
	return u.ID, err
}

// Unlink takes an account from a user.
func (s *Service) Unlink(ctx context.Context, userID, provider, providerUserID string) error {
	r, err := s.db.All(ctx).NewDelete().Model((*Account)(nil)).
		Where("user_id = ? AND provider = ? AND provider_user_id = ?", userID, provider, providerUserID).Exec(ctx)
	if err != nil {
		return err
	}
	if n, err := r.RowsAffected(); err == nil && n == 0 {
		return &daytona.Error{Kind: daytona.KindNotFound, Message: "Linked account not found"}
	}
	return nil
}
