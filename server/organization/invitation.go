package organization

import (
	"context"
	"net/mail"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/uptrace/bun"

	"github.com/daytona-go/daytona/server/identity"
	"github.com/daytona-go/daytona/server/store"
)

// States of an invitation.
const (
	Pending   = "pending"
	Accepted  = "accepted"
	Declined  = "declined"
	Cancelled = "cancelled"
)

// DefaultExpiry is how long an invitation can be accepted.
const DefaultExpiry = 7 * 24 * time.Hour

// maxExpiry is the longest that one can be accepted.
const maxExpiry = 365 * 24 * time.Hour

// Invitation asks somebody, by the address of their mail, into an organization.
type Invitation struct {
	bun.BaseModel `bun:"table:organization_invitations,alias:invitation"`

	ID             string `bun:"id,pk"`
	OrganizationID string `bun:"organization_id,notnull"`
	// Email is in lower case.
	Email string `bun:"email,notnull"`
	// InvitedBy is the address of who has.
	InvitedBy string        `bun:"invited_by,notnull"`
	Role      identity.Role `bun:"role,notnull"`
	RoleIDs   []string      `bun:"role_ids,notnull"`
	Status    string        `bun:"status,notnull"`
	ExpiresAt time.Time     `bun:"expires_at,notnull"`
	CreatedAt time.Time     `bun:"created_at,notnull"`
	UpdatedAt time.Time     `bun:"updated_at,notnull"`

	// OrganizationName and Roles are filled in for who reads.
	OrganizationName string `bun:"-"`
	Roles            []Role `bun:"-"`
}

// NewInvitation is an invitation to be made, or to be made of another one.
type NewInvitation struct {
	Email   string
	Role    identity.Role
	RoleIDs []string
	// ExpiresAt defaults to [DefaultExpiry] from now.
	ExpiresAt time.Time
	InvitedBy string
}

func normal(email string) string { return strings.ToLower(strings.TrimSpace(email)) }

func expiry(at time.Time) (time.Time, error) {
	if at.IsZero() {
		return store.Now().Add(DefaultExpiry), nil
	}
	if d := time.Until(at); d <= 0 || d > maxExpiry {
		return at, invalid("expiresAt must be in the future, at most a year from now")
	}
	return at.UTC().Truncate(time.Millisecond), nil
}

// Invite invites somebody.
func (s *Service) Invite(ctx context.Context, organizationID string, n NewInvitation) (*Invitation, error) {
	email := normal(n.Email)
	if a, err := mail.ParseAddress(email); err != nil || a.Address != email || len(email) > 254 {
		return nil, invalid("email must be an email")
	}
	at, err := expiry(n.ExpiresAt)
	if err != nil {
		return nil, err
	}
	i := &Invitation{
		ID: uuid.NewString(), OrganizationID: organizationID, Email: email, InvitedBy: n.InvitedBy, Role: n.Role, Status: Pending,
		ExpiresAt: at, CreatedAt: store.Now(),
	}
	i.UpdatedAt = i.CreatedAt
	err = s.db.Tx(ctx, func(ctx context.Context) error {
		o, err := s.lock(ctx, organizationID)
		if err != nil {
			return err
		}
		if o.Personal {
			return forbidden("Cannot invite users to personal organization")
		}
		if i.RoleIDs, err = s.checkRoles(ctx, organizationID, n.Role, n.RoleIDs); err != nil {
			return err
		}
		members, err := s.Members(ctx, organizationID)
		if err != nil {
			return err
		}
		for _, m := range members {
			if normal(m.Email) == email {
				return conflict("User is already a member of the organization")
			}
		}
		q := s.db.In(ctx, organizationID).Select((*Invitation)(nil)).Where("status = ? AND expires_at > ?", Pending, store.Now())
		if all, err := q.Count(ctx); err != nil {
			return err
		} else if all >= maxInvitations {
			return invalid("Invitation quota exceeded. Maximum allowed: %d", maxInvitations)
		}
		if same, err := q.Where("email = ?", email).Count(ctx); err != nil {
			return err
		} else if same > 0 {
			return conflict("User with email %s already invited to this organization", email)
		}
		_, err = s.db.All(ctx).NewInsert().Model(i).Exec(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	all := []Invitation{*i}
	if err := s.fillInvitations(ctx, all); err != nil {
		return nil, err
	}
	if s.config.Mailer != nil {
		s.config.Mailer.Invited(ctx, all[0])
	}
	return &all[0], nil
}

// fillInvitations adds to invitations what is not in their rows.
func (s *Service) fillInvitations(ctx context.Context, all []Invitation) error {
	for i := range all {
		v := &all[i]
		o, err := s.Get(ctx, v.OrganizationID)
		if err != nil {
			return err
		}
		v.OrganizationName = o.Name
		if v.Roles, err = s.rolesOf(ctx, v.OrganizationID, v.RoleIDs); err != nil {
			return err
		}
	}
	return nil
}

// Invitations returns those of an organization that can still be accepted.
func (s *Service) Invitations(ctx context.Context, organizationID string) ([]Invitation, error) {
	var all []Invitation
	err := s.db.In(ctx, organizationID).Select(&all).Where("status = ? AND expires_at > ?", Pending, store.Now()).OrderExpr("created_at DESC, id").Scan(ctx)
	if err != nil {
		return nil, err
	}
	return all, s.fillInvitations(ctx, all)
}

// open returns an invitation that can still be accepted.
func open(i *Invitation, err error) error {
	switch {
	case store.IsNone(err):
		return notFound("Invitation not found")
	case err != nil:
		return err
	case i.Status != Pending:
		return forbidden("Invitation is already %s", i.Status)
	case !i.ExpiresAt.After(store.Now()):
		return forbidden("Invitation is expired")
	}
	return nil
}

func (s *Service) ofOrganization(ctx context.Context, organizationID, id string) (*Invitation, error) {
	i := &Invitation{}
	return i, open(i, s.db.In(ctx, organizationID).Select(i).Where("id = ?", id).Scan(ctx))
}

// settle changes the state of an invitation, unless somebody else has.
func (s *Service) settle(ctx context.Context, i *Invitation, status string) error {
	err := store.Changed(s.db.In(ctx, i.OrganizationID).Update((*Invitation)(nil)).Set("status = ?, updated_at = ?", status, store.Now()).
		Where("id = ? AND status = ?", i.ID, Pending).Exec(ctx))
	if err == nil {
		i.Status = status
	}
	return err
}

// UpdateInvitation changes what an invitation is to.
func (s *Service) UpdateInvitation(ctx context.Context, organizationID, id string, n NewInvitation) (*Invitation, error) {
	var i *Invitation
	err := s.db.Tx(ctx, func(ctx context.Context) error {
		if _, err := s.lock(ctx, organizationID); err != nil {
			return err
		}
		var err error
		if i, err = s.ofOrganization(ctx, organizationID, id); err != nil {
			return err
		}
		if !n.ExpiresAt.IsZero() {
			if i.ExpiresAt, err = expiry(n.ExpiresAt); err != nil {
				return err
			}
		}
		if i.RoleIDs, err = s.checkRoles(ctx, organizationID, n.Role, n.RoleIDs); err != nil {
			return err
		}
		i.Role, i.UpdatedAt = n.Role, store.Now()
		return store.Changed(s.db.In(ctx, organizationID).Update(i).Where("id = ? AND status = ?", id, Pending).Exec(ctx))
	})
	if err != nil {
		return nil, err
	}
	all := []Invitation{*i}
	return &all[0], s.fillInvitations(ctx, all)
}

// CancelInvitation takes one back.
func (s *Service) CancelInvitation(ctx context.Context, organizationID, id string) error {
	i, err := s.ofOrganization(ctx, organizationID, id)
	if err != nil {
		return err
	}
	return s.settle(ctx, i, Cancelled)
}

// invitee returns the address of a user, and whether it is known to be theirs:
// who has somebody's address has their invitations.
func (s *Service) invitee(ctx context.Context, userID string) (email string, verified bool, err error) {
	email, _, verified, err = s.config.Users.Info(ctx, userID)
	return normal(email), verified || s.config.SkipEmailVerification, err
}

// InvitationsOf returns the invitations of a user that can be accepted.
func (s *Service) InvitationsOf(ctx context.Context, userID string) ([]Invitation, error) {
	email, verified, err := s.invitee(ctx, userID)
	if err != nil || email == "" || !verified {
		return nil, err
	}
	var all []Invitation
	// Whom they are to is in no organization yet.
	err = s.db.All(ctx).NewSelect().Model(&all).Where("email = ? AND status = ? AND expires_at > ?", email, Pending, store.Now()).
		OrderExpr("created_at DESC, id").Scan(ctx)
	if err != nil {
		return nil, err
	}
	return all, s.fillInvitations(ctx, all)
}

// ofUser returns an invitation to a user, to be answered by them.
func (s *Service) ofUser(ctx context.Context, userID, id string) (*Invitation, error) {
	email, verified, err := s.invitee(ctx, userID)
	if err != nil {
		return nil, err
	}
	if email == "" {
		return nil, notFound("Invitation not found")
	}
	i := &Invitation{}
	err = s.db.All(ctx).NewSelect().Model(i).Where("id = ? AND email = ?", id, email).Scan(ctx)
	if err == nil && !verified {
		return nil, forbidden("Please verify your email address")
	}
	return i, open(i, err)
}

// Accept makes a user a member of the organization that invited them.
func (s *Service) Accept(ctx context.Context, userID, id string) (*Invitation, error) {
	var i *Invitation
	err := s.db.Tx(ctx, func(ctx context.Context) error {
		var err error
		if i, err = s.ofUser(ctx, userID, id); err != nil {
			return err
		}
		if _, err := s.lock(ctx, i.OrganizationID); err != nil {
			return err
		}
		if err := s.settle(ctx, i, Accepted); err != nil {
			return err
		}
		// Roles that have been deleted since are not there to be given.
		roles, err := s.rolesOf(ctx, i.OrganizationID, i.RoleIDs)
		if err != nil {
			return err
		}
		ids := []string{}
		for _, r := range roles {
			ids = append(ids, r.ID)
		}
		return s.addMember(ctx, i.OrganizationID, userID, i.Role, ids)
	})
	if err != nil {
		return nil, err
	}
	all := []Invitation{*i}
	return &all[0], s.fillInvitations(ctx, all)
}

// Decline refuses an invitation.
func (s *Service) Decline(ctx context.Context, userID, id string) error {
	i, err := s.ofUser(ctx, userID, id)
	if err != nil {
		return err
	}
	return s.settle(ctx, i, Declined)
}
