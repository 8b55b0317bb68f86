package organization

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/uptrace/bun"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/display"
	"github.com/daytona-go/daytona/server/identity"
	"github.com/daytona-go/daytona/server/store"
)

// Member is a user in an organization.
type Member struct {
	bun.BaseModel `bun:"table:organization_members,alias:member"`

	OrganizationID string        `bun:"organization_id,pk"`
	UserID         string        `bun:"user_id,pk"`
	Role           identity.Role `bun:"role,notnull"`
	// RoleIDs are the roles assigned to a member who is no owner.
	RoleIDs   []string  `bun:"role_ids,notnull"`
	CreatedAt time.Time `bun:"created_at,notnull"`
	UpdatedAt time.Time `bun:"updated_at,notnull"`

	// Name, Email and Roles are filled in for who reads.
	Name  string `bun:"-"`
	Email string `bun:"-"`
	Roles []Role `bun:"-"`
}

// Role is a set of permissions with a name.
type Role struct {
	bun.BaseModel `bun:"table:organization_roles,alias:role"`

	ID string `bun:"id,pk"`
	// OrganizationID is "" for a global role.
	OrganizationID string                `bun:"organization_id,notnull"`
	Name           string                `bun:"name,notnull"`
	Description    string                `bun:"description,notnull"`
	Permissions    []identity.Permission `bun:"permissions,notnull"`
	CreatedAt      time.Time             `bun:"created_at,notnull"`
	UpdatedAt      time.Time             `bun:"updated_at,notnull"`
}

// Global reports whether the role is the same in every organization.
func (r *Role) Global() bool { return r.OrganizationID == "" }

// GlobalRoles returns the roles that every organization has and that nobody
// can change. Their ids are those that clients know.
func GlobalRoles() []Role {
	at := time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)
	role := func(n, name, description string, permissions ...identity.Permission) Role {
		return Role{ID: "00000000-0000-0000-0000-00000000000" + n, Name: name, Description: description, Permissions: permissions, CreatedAt: at, UpdatedAt: at}
	}
	return []Role{
		role("1", "Developer", "Creates sandboxes and works in them", identity.WriteSandboxes),
		role("2", "Sandboxes Admin", "Everything about sandboxes", identity.WriteSandboxes, identity.DeleteSandboxes),
		role("3", "Snapshots Admin", "Everything about snapshots", identity.WriteSnapshots, identity.DeleteSnapshots),
		role("4", "Registries Admin", "Everything about registries", identity.WriteRegistries, identity.DeleteRegistries),
		role("5", "Super Admin", "All permissions", identity.Permissions()...),
		role("6", "Volumes Admin", "Everything about volumes", identity.ReadVolumes, identity.WriteVolumes, identity.DeleteVolumes),
		role("7", "Auditor", "Reads the audit log", identity.ReadAuditLogs),
		role("8", "Infrastructure Admin", "Everything about regions and runners",
			identity.WriteRegions, identity.DeleteRegions, identity.ReadRunners, identity.WriteRunners, identity.DeleteRunners),
	}
}

// membership is what a user is in an organization: without a role, nothing.
type membership struct {
	role        identity.Role
	permissions []identity.Permission
}

// Member returns a user's role and the union of the permissions of their
// roles; [daytona.ErrNotFound] if the user is not a member, or there is no such
// organization.
func (s *Service) Member(ctx context.Context, organizationID, userID string) (identity.Role, []identity.Permission, error) {
	m, err := s.memberships.Get(ctx, organizationID+" "+userID, func(ctx context.Context) (membership, error) {
		m, err := s.member(ctx, organizationID, userID)
		if errors.Is(err, daytona.ErrNotFound) {
			return membership{}, nil
		} else if err != nil {
			return membership{}, err
		}
		permissions, err := s.permissions(ctx, m)
		return membership{m.Role, permissions}, err
	})
	if err != nil {
		return "", nil, err
	}
	if m.role == "" {
		return "", nil, notMember(userID)
	}
	return m.role, slices.Clone(m.permissions), nil
}

func notMember(userID string) error {
	return notFound("User with ID %s is not a member of the organization", userID)
}

func (s *Service) member(ctx context.Context, organizationID, userID string) (*Member, error) {
	m := &Member{}
	err := s.db.In(ctx, organizationID).Select(m).Where("user_id = ?", userID).Scan(ctx)
	if store.IsNone(err) {
		return nil, notMember(userID)
	}
	return m, err
}

// permissions are those that a member's token has.
func (s *Service) permissions(ctx context.Context, m *Member) ([]identity.Permission, error) {
	if m.Role == identity.Owner {
		return identity.Permissions(), nil
	}
	roles, err := s.rolesOf(ctx, m.OrganizationID, m.RoleIDs)
	if err != nil {
		return nil, err
	}
	return union(roles), nil
}

// union is the permissions of roles, in the order of the wire.
func union(roles []Role) []identity.Permission {
	all := []identity.Permission{}
	for _, p := range identity.Permissions() {
		if slices.ContainsFunc(roles, func(r Role) bool { return slices.Contains(r.Permissions, p) }) {
			all = append(all, p)
		}
	}
	return all
}

// Roles returns the roles that an organization can assign.
func (s *Service) Roles(ctx context.Context, organizationID string) ([]Role, error) {
	var own []Role
	err := s.db.In(ctx, organizationID).Select(&own).OrderExpr("created_at, id").Scan(ctx)
	return append(GlobalRoles(), own...), err
}

// rolesOf returns the roles of ids, without those that are not there.
func (s *Service) rolesOf(ctx context.Context, organizationID string, ids []string) ([]Role, error) {
	if len(ids) == 0 {
		return []Role{}, nil
	}
	all, err := s.Roles(ctx, organizationID)
	return slices.DeleteFunc(all, func(r Role) bool { return !slices.Contains(ids, r.ID) }), err
}

// checkRoles makes sure that ids are roles that may be assigned with a role.
func (s *Service) checkRoles(ctx context.Context, organizationID string, role identity.Role, ids []string) ([]string, error) {
	if role != identity.Owner && role != identity.Member {
		return nil, invalid("role must be owner or member, not %q", role)
	}
	if len(ids) > maxRoles {
		return nil, invalid("assignedRoleIds must have at most %d ids", maxRoles)
	}
	ids = slices.Compact(slices.Sorted(slices.Values(ids)))
	roles, err := s.rolesOf(ctx, organizationID, ids)
	if err != nil {
		return nil, err
	}
	if len(roles) != len(ids) {
		return nil, invalid("One or more role IDs are invalid")
	}
	if ids == nil {
		ids = []string{}
	}
	return ids, nil
}

func checkRole(r *Role) error {
	r.Name, r.Description = strings.TrimSpace(r.Name), strings.TrimSpace(r.Description)
	if err := display.Name("name", r.Name); err != nil {
		return err
	}
	if err := display.Check("description", r.Description, display.MaxDescription); err != nil {
		return err
	}
	for _, p := range r.Permissions {
		if !slices.Contains(identity.Permissions(), p) {
			return invalid("permissions must not have %q, which is none", p)
		}
	}
	r.Permissions = union([]Role{*r})
	if slices.ContainsFunc(GlobalRoles(), func(g Role) bool { return strings.EqualFold(g.Name, r.Name) }) {
		return conflict("Role with name %s already exists", r.Name)
	}
	return nil
}

// CreateRole makes a role of an organization.
func (s *Service) CreateRole(ctx context.Context, organizationID, name, description string, permissions []identity.Permission) (*Role, error) {
	r := &Role{ID: uuid.NewString(), OrganizationID: organizationID, Name: name, Description: description, Permissions: permissions, CreatedAt: store.Now()}
	r.UpdatedAt = r.CreatedAt
	if err := checkRole(r); err != nil {
		return nil, err
	}
	err := s.db.Tx(ctx, func(ctx context.Context) error {
		if _, err := s.lock(ctx, organizationID); err != nil {
			return err
		}
		if n, err := s.db.In(ctx, organizationID).Select((*Role)(nil)).Count(ctx); err != nil {
			return err
		} else if n >= maxRoles {
			return invalid("Role quota exceeded. Maximum allowed: %d", maxRoles)
		}
		_, err := s.db.All(ctx).NewInsert().Model(r).Exec(ctx)
		if store.IsUnique(err) {
			return conflict("Role with name %s already exists", r.Name)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return r, nil
}

// role returns a role of an organization that may be changed.
func (s *Service) role(ctx context.Context, organizationID, id string) (*Role, error) {
	if slices.ContainsFunc(GlobalRoles(), func(r Role) bool { return r.ID == id }) {
		return nil, forbidden("Global roles cannot be changed")
	}
	r := &Role{}
	err := s.db.In(ctx, organizationID).Select(r).Where("id = ?", id).Scan(ctx)
	if store.IsNone(err) {
		return nil, notFound("Organization role with ID %s not found", id)
	}
	return r, err
}

// UpdateRole changes a role. Members who lose permissions by it lose their
// keys that have them.
func (s *Service) UpdateRole(ctx context.Context, organizationID, id, name, description string, permissions []identity.Permission) (*Role, error) {
	var r *Role
	err := s.db.Tx(ctx, func(ctx context.Context) error {
		if _, err := s.lock(ctx, organizationID); err != nil {
			return err
		}
		var err error
		if r, err = s.role(ctx, organizationID, id); err != nil {
			return err
		}
		r.Name, r.Description, r.Permissions, r.UpdatedAt = name, description, permissions, store.Now()
		if err := checkRole(r); err != nil {
			return err
		}
		return s.losing(ctx, organizationID, id, func() error {
			_, err := s.db.In(ctx, organizationID).Update(r).WherePK().Exec(ctx)
			if store.IsUnique(err) {
				return conflict("Role with name %s already exists", r.Name)
			}
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	return r, nil
}

// DeleteRole deletes a role, and takes it from who has it.
func (s *Service) DeleteRole(ctx context.Context, organizationID, id string) error {
	return s.db.Tx(ctx, func(ctx context.Context) error {
		if _, err := s.lock(ctx, organizationID); err != nil {
			return err
		}
		if _, err := s.role(ctx, organizationID, id); err != nil {
			return err
		}
		return s.losing(ctx, organizationID, id, func() error {
			_, err := s.db.In(ctx, organizationID).Delete((*Role)(nil)).Where("id = ?", id).Exec(ctx)
			return err
		})
	})
}

// losing revokes the keys of members who have a role, as far as they have not
// the permissions any more after f.
func (s *Service) losing(ctx context.Context, organizationID, roleID string, f func() error) error {
	var members []Member
	if err := s.db.In(ctx, organizationID).Select(&members).Scan(ctx); err != nil {
		return err
	}
	if err := f(); err != nil {
		return err
	}
	for i := range members {
		if slices.Contains(members[i].RoleIDs, roleID) {
			if err := s.revoke(ctx, &members[i]); err != nil {
				return err
			}
		}
	}
	return s.memberships.Changed(ctx, "")
}

// revoke deletes the keys of a member that have what the member has not.
func (s *Service) revoke(ctx context.Context, m *Member) error {
	held, err := s.permissions(ctx, m)
	if err != nil {
		return err
	}
	return s.config.Keys.DeleteExceeding(ctx, m.OrganizationID, m.UserID, held)
}

// Members returns the members of an organization.
func (s *Service) Members(ctx context.Context, organizationID string) ([]Member, error) {
	var all []Member
	if err := s.db.In(ctx, organizationID).Select(&all).OrderExpr("created_at, user_id").Scan(ctx); err != nil {
		return nil, err
	}
	return all, s.fill(ctx, organizationID, all)
}

// fill adds to members what is not in their rows.
func (s *Service) fill(ctx context.Context, organizationID string, all []Member) error {
	roles, err := s.Roles(ctx, organizationID)
	if err != nil {
		return err
	}
	for i := range all {
		m := &all[i]
		var err error
		// Of a user who is no more there is nothing to be said.
		if m.Email, m.Name, _, err = s.config.Users.Info(ctx, m.UserID); err != nil && !errors.Is(err, daytona.ErrNotFound) {
			return err
		}
		m.Roles = []Role{}
		for _, r := range roles {
			if slices.Contains(m.RoleIDs, r.ID) {
				m.Roles = append(m.Roles, r)
			}
		}
	}
	return nil
}

func (s *Service) addMember(ctx context.Context, organizationID, userID string, role identity.Role, roleIDs []string) error {
	if roleIDs == nil || role == identity.Owner {
		roleIDs = []string{}
	}
	if n, err := s.db.In(ctx, organizationID).Select((*Member)(nil)).Count(ctx); err != nil {
		return err
	} else if n >= maxMembers {
		return invalid("Member quota exceeded. Maximum allowed: %d", maxMembers)
	}
	at := store.Now()
	m := &Member{OrganizationID: organizationID, UserID: userID, Role: role, RoleIDs: roleIDs, CreatedAt: at, UpdatedAt: at}
	_, err := s.db.All(ctx).NewInsert().Model(m).Exec(ctx)
	if store.IsUnique(err) {
		return conflict("User is already a member of the organization")
	} else if err != nil {
		return err
	}
	return s.memberships.Changed(ctx, organizationID+" "+userID)
}

// removeMember ends a membership, and what hangs on it.
func (s *Service) removeMember(ctx context.Context, organizationID, userID string) error {
	if _, err := s.db.In(ctx, organizationID).Delete((*Member)(nil)).Where("user_id = ?", userID).Exec(ctx); err != nil {
		return err
	}
	if err := s.config.Keys.DeleteForMember(ctx, organizationID, userID); err != nil {
		return err
	}
	if err := s.memberships.Changed(ctx, organizationID+" "+userID); err != nil {
		return err
	}
	return s.db.Publish(ctx, TopicLeft, organizationID+" "+userID)
}

// another makes sure that an organization has an owner besides a user.
func (s *Service) another(ctx context.Context, organizationID, userID string) error {
	n, err := s.db.In(ctx, organizationID).Select((*Member)(nil)).Where("role = ? AND user_id <> ?", identity.Owner, userID).Count(ctx)
	if err == nil && n == 0 {
		return forbidden("The organization must have at least one owner")
	}
	return err
}

// SetAccess changes what a member is and may do. Keys of the member that have
// permissions which the member has not any more are deleted.
func (s *Service) SetAccess(ctx context.Context, organizationID, userID string, role identity.Role, roleIDs []string) (*Member, error) {
	var m *Member
	err := s.db.Tx(ctx, func(ctx context.Context) error {
		o, err := s.lock(ctx, organizationID)
		if err != nil {
			return err
		}
		if m, err = s.member(ctx, organizationID, userID); err != nil {
			return err
		}
		if roleIDs, err = s.checkRoles(ctx, organizationID, role, roleIDs); err != nil {
			return err
		}
		if m.Role == identity.Owner && role != identity.Owner {
			if o.Personal {
				return forbidden("The owner of a personal organization cannot be changed")
			}
			if err := s.another(ctx, organizationID, userID); err != nil {
				return err
			}
		}
		if role == identity.Owner {
			roleIDs = []string{} // an owner has all permissions anyway
		}
		m.Role, m.RoleIDs, m.UpdatedAt = role, roleIDs, store.Now()
		if _, err := s.db.In(ctx, organizationID).Update(m).WherePK().Exec(ctx); err != nil {
			return err
		}
		if err := s.revoke(ctx, m); err != nil {
			return err
		}
		return s.memberships.Changed(ctx, organizationID+" "+userID)
	})
	if err != nil {
		return nil, err
	}
	all := []Member{*m}
	return &all[0], s.fill(ctx, organizationID, all)
}

// Remove ends the membership of a user.
func (s *Service) Remove(ctx context.Context, organizationID, userID string) error {
	return s.db.Tx(ctx, func(ctx context.Context) error {
		o, err := s.lock(ctx, organizationID)
		if err != nil {
			return err
		}
		m, err := s.member(ctx, organizationID, userID)
		if err != nil {
			return err
		}
		if o.Personal {
			return forbidden("Cannot leave personal organization")
		}
		if m.Role == identity.Owner {
			if err := s.another(ctx, organizationID, userID); err != nil {
				return err
			}
		}
		return s.removeMember(ctx, organizationID, userID)
	})
}
