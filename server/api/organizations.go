package api

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/wire"
	"github.com/daytona-go/daytona/server/identity"
	"github.com/daytona-go/daytona/server/organization"
	"github.com/daytona-go/daytona/server/quota"
	"github.com/daytona-go/daytona/server/region"
)

// SandboxTokens finds whose a sandbox is by its token, for the telemetry
// collector.
type SandboxTokens interface {
	// OrganizationByAuthToken returns the organization of the sandbox with a
	// token; [daytona.ErrNotFound] if there is none.
	OrganizationByAuthToken(ctx context.Context, token string) (string, error)
}

// Counter counts what an organization has of something.
type Counter interface {
	Count(ctx context.Context, organizationID string) (int, error)
}

// inOrganization is a request about an organization; the other has a body as
// well. What is embedded in such a struct must have a name in upper case, or
// package huma does not see it.
type inOrganization struct {
	OrganizationID string `path:"organizationId"`
}

type inOrganizationWith[T any] struct {
	OrganizationID string `path:"organizationId"`
	Body           T
}

// organizations are the handlers of the tag organizations, but for regions.
type organizations struct {
	o *organization.Service
	q *quota.Service
	r *region.Service
	// Those that count towards a quota.
	snapshots, volumes Counter
}

// RegisterOrganizations serves organizations with their members, roles,
// invitations, identity providers and quotas.
func RegisterOrganizations(a *API, o *organization.Service, q *quota.Service, r *region.Service, snapshots, volumes Counter, sandboxes SandboxTokens) {
	h := organizations{o, q, r, snapshots, volumes}
	Handle(a, "createOrganization", func(ctx context.Context, in *struct{ Body wire.CreateOrganization }) (wire.Organization, error) {
		v, err := o.Create(ctx, organization.NewOrganization{Name: in.Body.Name, UserID: identity.From(ctx).UserID, DefaultRegionID: in.Body.DefaultRegionID})
		if err != nil {
			return wire.Organization{}, err
		}
		Note(ctx, v.ID, map[string]any{"name": v.Name})
		return h.wire(ctx, v)
	})
	Handle(a, "listOrganizations", func(ctx context.Context, _ *struct{}) ([]wire.Organization, error) {
		all, err := o.Of(ctx, identity.From(ctx).UserID)
		if err != nil {
			return nil, err
		}
		return wireAll(all, func(v *organization.Organization) (wire.Organization, error) { return h.wire(ctx, v) })
	})
	Handle(a, "getOrganization", func(ctx context.Context, in *inOrganization) (wire.Organization, error) {
		v, err := o.Get(ctx, in.OrganizationID)
		if err != nil {
			return wire.Organization{}, err
		}
		return h.wire(ctx, v)
	})
	Handle(a, "deleteOrganization", func(ctx context.Context, in *inOrganization) (None, error) {
		return None{}, o.Delete(ctx, in.OrganizationID)
	})
	Handle(a, "setOrganizationDefaultRegion", func(ctx context.Context, in *inOrganizationWith[wire.UpdateOrganizationDefaultRegion]) (None, error) {
		return None{}, o.SetDefaultRegion(ctx, in.OrganizationID, in.Body.DefaultRegionID)
	})
	Handle(a, "leaveOrganization", func(ctx context.Context, in *inOrganization) (None, error) {
		return None{}, o.Remove(ctx, in.OrganizationID, identity.From(ctx).UserID)
	})
	Handle(a, "suspendOrganization", func(ctx context.Context, in *inOrganizationWith[wire.OrganizationSuspension]) (None, error) {
		x := organization.Suspension{Reason: in.Body.Reason}
		if in.Body.Until != nil {
			var err error
			if x.Until, err = timeOf("until", *in.Body.Until); err != nil {
				return None{}, err
			}
		}
		if g := in.Body.SuspensionCleanupGracePeriodHours; g != nil {
			x.GraceHours = new(int(*g))
		}
		return None{}, o.Suspend(ctx, in.OrganizationID, x)
	})
	Handle(a, "unsuspendOrganization", func(ctx context.Context, in *inOrganization) (None, error) {
		return None{}, o.Unsuspend(ctx, in.OrganizationID)
	})
	Handle(a, "updateSandboxDefaultLimitedNetworkEgress", func(ctx context.Context, in *inOrganizationWith[wire.OrganizationSandboxDefaultLimitedNetworkEgress]) (None, error) {
		return None{}, o.SetLimitedEgress(ctx, in.OrganizationID, in.Body.SandboxDefaultLimitedNetworkEgress)
	})
	Handle(a, "updateOrganizationPreviewWarning", func(ctx context.Context, in *inOrganizationWith[wire.OrganizationPreviewWarning]) (None, error) {
		return None{}, o.SetPreviewWarning(ctx, in.OrganizationID, in.Body.PreviewWarningEnabled)
	})
	Handle(a, "updateOrganizationSsoEnabled", func(ctx context.Context, in *inOrganizationWith[wire.OrganizationSSOEnabled]) (None, error) {
		return None{}, o.SetSSO(ctx, in.OrganizationID, in.Body.SSOEnabled)
	})
	Handle(a, "updateExperimentalConfig", func(ctx context.Context, in *struct {
		OrganizationID string `path:"organizationId"`
		Body           map[string]any
		RawBody        []byte
	}) (None, error) {
		return None{}, o.SetExperimental(ctx, in.OrganizationID, in.Body, len(in.RawBody))
	})
	h.otel(a, sandboxes)
	h.members(a)
	h.invitations(a)
	h.providers(a)
	h.quotas(a)
}

func (h organizations) otel(a *API, sandboxes SandboxTokens) {
	get := func(ctx context.Context, id string) (wire.OTelConfig, error) {
		c, err := h.o.OTel(ctx, id)
		if err != nil {
			return wire.OTelConfig{}, err
		}
		return wire.OTelConfig{Endpoint: c.Endpoint, Headers: c.Headers, OrganizationID: &id}, nil
	}
	Handle(a, "getOrganizationOtelConfig", func(ctx context.Context, in *inOrganization) (wire.OTelConfig, error) {
		return get(ctx, in.OrganizationID)
	})
	Handle(a, "getOrganizationOtelConfigBySandboxAuthToken", func(ctx context.Context, in *struct {
		AuthToken string `path:"authToken"`
	}) (wire.OTelConfig, error) {
		id, err := sandboxes.OrganizationByAuthToken(ctx, in.AuthToken)
		if daytona.KindOf(err) == daytona.KindNotFound {
			// The token must not be in the message.
			err = &daytona.Error{Kind: daytona.KindNotFound, Message: "Organization OTEL config not found"}
		}
		if err != nil {
			return wire.OTelConfig{}, err
		}
		return get(ctx, id)
	})
	Handle(a, "updateOrganizationOtelConfig", func(ctx context.Context, in *inOrganizationWith[wire.OTelConfig]) (None, error) {
		Note(ctx, in.OrganizationID, map[string]any{"headers": slices.Sorted(maps.Keys(in.Body.Headers))})
		return None{}, h.o.SetOTel(ctx, in.OrganizationID, organization.OTel{Endpoint: in.Body.Endpoint, Headers: in.Body.Headers})
	})
	Handle(a, "deleteOrganizationOtelConfig", func(ctx context.Context, in *inOrganization) (None, error) {
		return None{}, h.o.DeleteOTel(ctx, in.OrganizationID)
	})
}

func (h organizations) members(a *API) {
	type InRole struct {
		OrganizationID string `path:"organizationId"`
		RoleID         string `path:"roleId"`
	}
	type InMember struct {
		OrganizationID string `path:"organizationId"`
		UserID         string `path:"userId"`
	}
	Handle(a, "createOrganizationRole", func(ctx context.Context, in *inOrganizationWith[wire.CreateOrganizationRole]) (wire.OrganizationRole, error) {
		r, err := h.o.CreateRole(ctx, in.OrganizationID, in.Body.Name, in.Body.Description, permissionsOf(in.Body.Permissions))
		if err != nil {
			return wire.OrganizationRole{}, err
		}
		Note(ctx, r.ID, map[string]any{"name": r.Name, "permissions": r.Permissions})
		return roleWire(r), nil
	})
	Handle(a, "listOrganizationRoles", func(ctx context.Context, in *inOrganization) ([]wire.OrganizationRole, error) {
		all, err := h.o.Roles(ctx, in.OrganizationID)
		return rolesWire(all), err
	})
	Handle(a, "updateOrganizationRole", func(ctx context.Context, in *struct {
		InRole
		Body wire.UpdateOrganizationRole
	}) (wire.OrganizationRole, error) {
		r, err := h.o.UpdateRole(ctx, in.OrganizationID, in.RoleID, in.Body.Name, in.Body.Description, permissionsOf(in.Body.Permissions))
		if err != nil {
			return wire.OrganizationRole{}, err
		}
		Note(ctx, r.ID, map[string]any{"name": r.Name, "permissions": r.Permissions})
		return roleWire(r), nil
	})
	Handle(a, "deleteOrganizationRole", func(ctx context.Context, in *InRole) (None, error) {
		return None{}, h.o.DeleteRole(ctx, in.OrganizationID, in.RoleID)
	})
	Handle(a, "listOrganizationMembers", func(ctx context.Context, in *inOrganization) ([]wire.OrganizationUser, error) {
		all, err := h.o.Members(ctx, in.OrganizationID)
		if err != nil {
			return nil, err
		}
		return wireAll(all, func(m *organization.Member) (wire.OrganizationUser, error) { return memberWire(m), nil })
	})
	Handle(a, "updateAccessForOrganizationMember", func(ctx context.Context, in *struct {
		InMember
		Body wire.UpdateOrganizationMemberAccess
	}) (wire.OrganizationUser, error) {
		Note(ctx, in.UserID, map[string]any{"role": in.Body.Role, "assignedRoleIds": in.Body.AssignedRoleIds})
		m, err := h.o.SetAccess(ctx, in.OrganizationID, in.UserID, identity.Role(in.Body.Role), in.Body.AssignedRoleIds)
		if err != nil {
			return wire.OrganizationUser{}, err
		}
		return memberWire(m), nil
	})
	Handle(a, "deleteOrganizationMember", func(ctx context.Context, in *InMember) (None, error) {
		return None{}, h.o.Remove(ctx, in.OrganizationID, in.UserID)
	})
}

func (h organizations) invitations(a *API) {
	type InInvitation struct {
		OrganizationID string `path:"organizationId"`
		InvitationID   string `path:"invitationId"`
	}
	type mine struct {
		InvitationID string `path:"invitationId"`
	}
	list := func(all []organization.Invitation, err error) ([]wire.OrganizationInvitation, error) {
		if err != nil {
			return nil, err
		}
		return wireAll(all, func(i *organization.Invitation) (wire.OrganizationInvitation, error) { return invitationWire(i), nil })
	}
	one := func(i *organization.Invitation, err error) (wire.OrganizationInvitation, error) {
		if err != nil {
			return wire.OrganizationInvitation{}, err
		}
		return invitationWire(i), nil
	}
	Handle(a, "createOrganizationInvitation", func(ctx context.Context, in *inOrganizationWith[wire.CreateOrganizationInvitation]) (wire.OrganizationInvitation, error) {
		n := organization.NewInvitation{Email: in.Body.Email, Role: identity.Role(in.Body.Role), RoleIDs: in.Body.AssignedRoleIds, InvitedBy: identity.From(ctx).Email}
		var err error
		if n.ExpiresAt, err = optionalTime("expiresAt", in.Body.ExpiresAt); err != nil {
			return wire.OrganizationInvitation{}, err
		}
		i, err := h.o.Invite(ctx, in.OrganizationID, n)
		if err == nil {
			Note(ctx, i.ID, map[string]any{"email": i.Email, "role": i.Role, "assignedRoleIds": i.RoleIDs})
		}
		return one(i, err)
	})
	Handle(a, "listOrganizationInvitations", func(ctx context.Context, in *inOrganization) ([]wire.OrganizationInvitation, error) {
		return list(h.o.Invitations(ctx, in.OrganizationID))
	})
	Handle(a, "updateOrganizationInvitation", func(ctx context.Context, in *struct {
		InInvitation
		Body wire.UpdateOrganizationInvitation
	}) (wire.OrganizationInvitation, error) {
		n := organization.NewInvitation{Role: identity.Role(in.Body.Role), RoleIDs: in.Body.AssignedRoleIds}
		var err error
		if n.ExpiresAt, err = optionalTime("expiresAt", in.Body.ExpiresAt); err != nil {
			return wire.OrganizationInvitation{}, err
		}
		return one(h.o.UpdateInvitation(ctx, in.OrganizationID, in.InvitationID, n))
	})
	Handle(a, "cancelOrganizationInvitation", func(ctx context.Context, in *InInvitation) (None, error) {
		return None{}, h.o.CancelInvitation(ctx, in.OrganizationID, in.InvitationID)
	})
	Handle(a, "listOrganizationInvitationsForAuthenticatedUser", func(ctx context.Context, _ *struct{}) ([]wire.OrganizationInvitation, error) {
		return list(h.o.InvitationsOf(ctx, identity.From(ctx).UserID))
	})
	Handle(a, "getOrganizationInvitationsCountForAuthenticatedUser", func(ctx context.Context, _ *struct{}) (Text, error) {
		all, err := h.o.InvitationsOf(ctx, identity.From(ctx).UserID)
		return Text(strconv.Itoa(len(all))), err
	})
	Handle(a, "acceptOrganizationInvitation", func(ctx context.Context, in *mine) (wire.OrganizationInvitation, error) {
		return one(h.o.Accept(ctx, identity.From(ctx).UserID, in.InvitationID))
	})
	Handle(a, "declineOrganizationInvitation", func(ctx context.Context, in *mine) (None, error) {
		return None{}, h.o.Decline(ctx, identity.From(ctx).UserID, in.InvitationID)
	})
}

func (h organizations) providers(a *API) {
	type InProvider struct {
		OrganizationID string `path:"organizationId"`
		ID             string `path:"id"`
	}
	one := func(ctx context.Context, p *organization.Provider, err error) (wire.IdentityProvider, error) {
		if err != nil {
			return wire.IdentityProvider{}, err
		}
		Note(ctx, p.ID, map[string]any{"name": p.Name, "issuerUrl": p.IssuerURL, "enabled": p.Enabled})
		return providerWire(p), nil
	}
	Handle(a, "createOrganizationIdentityProvider", func(ctx context.Context, in *inOrganizationWith[wire.CreateIdentityProvider]) (wire.IdentityProvider, error) {
		b := in.Body
		p, err := h.o.CreateProvider(ctx, in.OrganizationID, organization.ProviderChange{
			Name: &b.Name, IssuerURL: &b.OIDCConfig.IssuerURL, ClientID: &b.OIDCConfig.ClientID, ClientSecret: &b.OIDCConfig.ClientSecret, Scope: b.OIDCConfig.Scope,
			EmailDomains: b.EmailDomains, DefaultRoleIDs: b.DefaultAssignedRoleIds, AllowAnyDomain: b.AllowAnyDomain, TrustEmailVerified: b.TrustEmailVerified, Enabled: b.Enabled,
		})
		return one(ctx, p, err)
	})
	Handle(a, "listOrganizationIdentityProviders", func(ctx context.Context, in *inOrganization) ([]wire.IdentityProvider, error) {
		all, err := h.o.Providers(ctx, in.OrganizationID)
		if err != nil {
			return nil, err
		}
		return wireAll(all, func(p *organization.Provider) (wire.IdentityProvider, error) { return providerWire(p), nil })
	})
	Handle(a, "getOrganizationIdentityProvider", func(ctx context.Context, in *InProvider) (wire.IdentityProvider, error) {
		p, err := h.o.Provider(ctx, in.OrganizationID, in.ID)
		return one(ctx, p, err)
	})
	Handle(a, "updateOrganizationIdentityProvider", func(ctx context.Context, in *struct {
		InProvider
		Body wire.UpdateIdentityProvider
	}) (wire.IdentityProvider, error) {
		b := in.Body
		c := organization.ProviderChange{
			Name: b.Name, EmailDomains: b.EmailDomains, DefaultRoleIDs: b.DefaultAssignedRoleIds,
			AllowAnyDomain: b.AllowAnyDomain, TrustEmailVerified: b.TrustEmailVerified, Enabled: b.Enabled,
		}
		if o := b.OIDCConfig; o != nil {
			c.IssuerURL, c.ClientID, c.ClientSecret, c.Scope = o.IssuerURL, o.ClientID, o.ClientSecret, o.Scope
		}
		p, err := h.o.UpdateProvider(ctx, in.OrganizationID, in.ID, c)
		return one(ctx, p, err)
	})
	Handle(a, "deleteOrganizationIdentityProvider", func(ctx context.Context, in *InProvider) (None, error) {
		return None{}, h.o.DeleteProvider(ctx, in.OrganizationID, in.ID)
	})
	Handle(a, "testOrganizationIdentityProviderConnection", func(ctx context.Context, in *inOrganizationWith[wire.TestIdentityProviderConnection]) (wire.TestIdentityProviderConnectionResponse, error) {
		issuer, problem := h.o.TestProvider(ctx, in.Body.IssuerURL)
		if problem != "" {
			return wire.TestIdentityProviderConnectionResponse{Error: &problem}, nil
		}
		return wire.TestIdentityProviderConnectionResponse{Success: true, Issuer: &issuer}, nil
	})
}

func (h organizations) quotas(a *API) {
	Handle(a, "getOrganizationUsageOverview", func(ctx context.Context, in *inOrganization) (wire.OrganizationUsageOverview, error) {
		return h.usage(ctx, in.OrganizationID)
	})
	Handle(a, "listAvailableSandboxClasses", func(ctx context.Context, in *inOrganization) ([]wire.AvailableSandboxClass, error) {
		quotas, err := h.regionQuotas(ctx, in.OrganizationID)
		if err != nil {
			return nil, err
		}
		return wireAll(quotas, func(q *quota.Region) (wire.AvailableSandboxClass, error) {
			return wire.AvailableSandboxClass{RegionID: q.RegionID, SandboxClass: q.Class, GPUAvailable: q.GPU > 0 && (q.GPUTypes == nil || len(q.GPUTypes) > 0), AllowedGPUTypes: q.GPUTypes}, nil
		})
	})
	Handle(a, "updateOrganizationQuota", func(ctx context.Context, in *struct {
		OrganizationID string `path:"organizationId"`
		Body           wire.UpdateOrganizationQuota
		RawBody        []byte
	}) (None, error) {
		return None{}, h.o.Together(ctx, func(ctx context.Context) error {
			return h.setQuota(ctx, in.OrganizationID, &in.Body, sentFields(in.RawBody))
		})
	})
	Handle(a, "updateOrganizationRegionQuota", h.setRegionQuota)
	Handle(a, "adminUpdateOrganizationRegionQuota", h.setRegionQuota)
	Handle(a, "adminCreateOrganizationRegionQuota", func(ctx context.Context, in *struct {
		OrganizationID string `path:"organizationId"`
		RegionID       string `path:"regionId"`
		Body           wire.CreateOrganizationRegionQuota
	}) (wire.RegionQuota, error) {
		if err := h.know(ctx, in.OrganizationID, in.RegionID); err != nil {
			return wire.RegionQuota{}, err
		}
		b := in.Body
		q := &quota.Region{
			OrganizationID: in.OrganizationID, RegionID: in.RegionID, Class: b.SandboxClass, CPU: b.TotalCPUQuota, Memory: b.TotalMemoryQuota, Disk: b.TotalDiskQuota,
			GPU: b.TotalGPUQuota, GPUTypes: b.AllowedGPUTypes, MaxCPU: b.MaxCPUPerSandbox, MaxMemory: b.MaxMemoryPerSandbox, MaxDisk: b.MaxDiskPerSandbox,
			MaxDiskLasting: b.MaxDiskPerNonEphemeralSandbox, MaxCPUPerGPU: b.MaxCPUPerGPU, MaxMemoryPerGPU: b.MaxMemoryPerGPU, MaxDiskPerGPU: b.MaxDiskPerGPU,
			MaxCPUGPUSandbox: b.MaxCPUPerGPUSandbox, MaxMemoryGPUSandbox: b.MaxMemoryPerGPUSandbox, MaxDiskGPUSandbox: b.MaxDiskPerGPUSandbox, MaxLifespan: b.MaxSandboxLifespan,
		}
		if err := h.q.CreateRegionQuota(ctx, q); err != nil {
			return wire.RegionQuota{}, err
		}
		return RegionQuotaWire(q), nil
	})
	type InClass struct {
		OrganizationID string `path:"organizationId"`
		RegionID       string `path:"regionId"`
		SandboxClass   string `path:"sandboxClass"`
	}
	Handle(a, "adminGetOrganizationRegionQuota", func(ctx context.Context, in *InClass) (wire.RegionQuota, error) {
		q, err := h.q.RegionQuota(ctx, in.OrganizationID, in.RegionID, in.SandboxClass)
		if err != nil {
			return wire.RegionQuota{}, err
		}
		return RegionQuotaWire(q), nil
	})
	Handle(a, "adminDeleteOrganizationRegionQuota", func(ctx context.Context, in *InClass) (None, error) {
		return None{}, h.q.DeleteRegionQuota(ctx, in.OrganizationID, in.RegionID, in.SandboxClass)
	})
	Handle(a, "adminCreateOrganization", func(ctx context.Context, in *struct{ Body wire.AdminCreateOrganization }) (wire.Organization, error) {
		v, err := h.o.Create(ctx, organization.NewOrganization{Name: in.Body.Name, UserID: in.Body.UserID, DefaultRegionID: in.Body.DefaultRegionID, Trusted: true})
		if err != nil {
			return wire.Organization{}, err
		}
		Note(ctx, v.ID, map[string]any{"name": v.Name, "userId": in.Body.UserID})
		return h.wire(ctx, v)
	})
	Handle(a, "adminUpdateOrganizationPreviewWarning", func(ctx context.Context, in *inOrganizationWith[wire.OrganizationPreviewWarning]) (None, error) {
		return None{}, h.o.SetPreviewWarning(ctx, in.OrganizationID, in.Body.PreviewWarningEnabled)
	})
}

// know returns an error unless there are an organization and a region that it
// may know of.
func (h organizations) know(ctx context.Context, organizationID, regionID string) error {
	if _, err := h.o.Get(ctx, organizationID); err != nil {
		return err
	}
	_, err := h.r.Visible(ctx, organizationID, regionID)
	return err
}

// regionQuotas returns the quotas of an organization in the regions that it
// can use; where totals don't count and none are set, the defaults.
func (h organizations) regionQuotas(ctx context.Context, organizationID string) ([]quota.Region, error) {
	regions, err := h.r.Available(ctx, organizationID)
	if err != nil {
		return nil, err
	}
	own, err := h.q.RegionQuotas(ctx, organizationID)
	if err != nil {
		return nil, err
	}
	all := []quota.Region{}
	for _, r := range regions {
		n := len(all)
		for _, q := range own {
			if q.RegionID == r.ID {
				all = append(all, q)
			}
		}
		if len(all) == n {
			q, err := h.q.Effective(ctx, organizationID, r.ID, h.q.DefaultClass())
			if err != nil {
				return nil, err
			}
			all = append(all, *q)
		}
	}
	return all, nil
}

func (h organizations) usage(ctx context.Context, organizationID string) (wire.OrganizationUsageOverview, error) {
	v := wire.OrganizationUsageOverview{RegionUsage: []wire.RegionUsageOverview{}}
	quotas, err := h.regionQuotas(ctx, organizationID)
	if err != nil {
		return v, err
	}
	used, err := h.q.Used(ctx, organizationID)
	if err != nil {
		return v, err
	}
	for _, u := range used {
		// What is used counts where there is no quota any more, too.
		if !slices.ContainsFunc(quotas, func(q quota.Region) bool { return q.RegionID == u.RegionID && q.Class == u.Class }) {
			q, err := h.q.Effective(ctx, organizationID, u.RegionID, u.Class)
			if err != nil {
				return v, err
			}
			quotas = append(quotas, *q)
		}
	}
	for _, q := range quotas {
		w := wire.RegionUsageOverview{
			RegionID: q.RegionID, SandboxClass: q.Class, TotalCPUQuota: q.CPU, TotalMemoryQuota: q.Memory, TotalDiskQuota: q.Disk, TotalGPUQuota: q.GPU,
			AllowedGPUTypes: q.GPUTypes, MaxCPUPerSandbox: q.MaxCPU, MaxMemoryPerSandbox: q.MaxMemory, MaxDiskPerSandbox: q.MaxDisk,
			MaxDiskPerNonEphemeralSandbox: q.MaxDiskLasting, MaxCPUPerGPU: q.MaxCPUPerGPU, MaxMemoryPerGPU: q.MaxMemoryPerGPU, MaxDiskPerGPU: q.MaxDiskPerGPU,
			MaxCPUPerGPUSandbox: q.MaxCPUGPUSandbox, MaxMemoryPerGPUSandbox: q.MaxMemoryGPUSandbox, MaxDiskPerGPUSandbox: q.MaxDiskGPUSandbox,
		}
		for _, u := range used {
			if u.RegionID == q.RegionID && u.Class == q.Class {
				w.CurrentCPUUsage, w.CurrentMemoryUsage, w.CurrentDiskUsage, w.CurrentGPUUsage = u.CPU, u.Memory, u.Disk, u.GPU
			}
		}
		v.RegionUsage = append(v.RegionUsage, w)
	}
	l, err := h.q.Limits(ctx, organizationID)
	if err != nil {
		return v, err
	}
	v.TotalSnapshotQuota, v.TotalVolumeQuota = float64(l.Snapshots), float64(l.Volumes)
	snapshots, err := h.snapshots.Count(ctx, organizationID)
	if err != nil {
		return v, err
	}
	volumes, err := h.volumes.Count(ctx, organizationID)
	v.CurrentSnapshotUsage, v.CurrentVolumeUsage = float64(snapshots), float64(volumes)
	return v, err
}

// setQuota changes what was sent: a limit that is null stays as it is, a rate
// limit that is null is the server's again.
func (h organizations) setQuota(ctx context.Context, id string, b *wire.UpdateOrganizationQuota, sent map[string]json.RawMessage) error {
	v, err := h.o.Get(ctx, id)
	if err != nil {
		return err
	}
	if err := h.q.SetLimits(ctx, id, func(l *quota.Limits) {
		for _, f := range []struct{ from, to *float64 }{
			{b.MaxCPUPerSandbox, &l.MaxCPU}, {b.MaxMemoryPerSandbox, &l.MaxMemory}, {b.MaxDiskPerSandbox, &l.MaxDisk}, {b.MaxSnapshotSize, &l.MaxSnapshotSize},
		} {
			if f.from != nil {
				*f.to = *f.from
			}
		}
		for _, f := range []struct {
			from *float64
			to   *int
		}{
			{b.SnapshotQuota, &l.Snapshots}, {b.VolumeQuota, &l.Volumes}, {b.SecretQuota, &l.Secrets}, {b.MaxSecretsPerSandbox, &l.SecretsPerSandbox},
			{b.MaxConcurrentSnapshotProcessing, &l.SnapshotsProcessing},
		} {
			if f.from != nil {
				*f.to = int(*f.from)
			}
		}
	}); err != nil {
		return err
	}
	limits := maps.Clone(v.RateLimits)
	if limits == nil {
		limits = map[string]organization.RateLimit{}
	}
	changed := false
	for _, f := range []struct {
		limiter, field string
		value          *float64
		ttl            bool
	}{
		{"authenticated", "authenticatedRateLimit", b.AuthenticatedRateLimit, false},
		{"sandbox-create", "sandboxCreateRateLimit", b.SandboxCreateRateLimit, false},
		{"sandbox-lifecycle", "sandboxLifecycleRateLimit", b.SandboxLifecycleRateLimit, false},
		{"authenticated", "authenticatedRateLimitTtlSeconds", b.AuthenticatedRateLimitTTLSeconds, true},
		{"sandbox-create", "sandboxCreateRateLimitTtlSeconds", b.SandboxCreateRateLimitTTLSeconds, true},
		{"sandbox-lifecycle", "sandboxLifecycleRateLimitTtlSeconds", b.SandboxLifecycleRateLimitTTLSeconds, true},
	} {
		if _, ok := sent[f.field]; !ok {
			continue
		}
		changed = true
		var n *int
		if f.value != nil {
			n = new(int(*f.value))
		}
		l := limits[f.limiter]
		if f.ttl {
			l.TTL = n
		} else {
			l.Limit = n
		}
		limits[f.limiter] = l
	}
	if changed {
		if err := h.o.SetRateLimits(ctx, id, limits); err != nil {
			return err
		}
	}
	if m := b.SnapshotDeactivationTimeoutMinutes; m != nil {
		return h.o.SetDeactivation(ctx, id, int(*m))
	}
	return nil
}

// setRegionQuota changes what was sent: a total that is null stays as it is, a
// maximum that is null is the organization's again.
func (h organizations) setRegionQuota(ctx context.Context, in *struct {
	OrganizationID string `path:"organizationId"`
	RegionID       string `path:"regionId"`
	Body           wire.UpdateOrganizationRegionQuota
	RawBody        []byte
}) (None, error) {
	if err := h.know(ctx, in.OrganizationID, in.RegionID); err != nil {
		return None{}, err
	}
	b, sent, class := in.Body, sentFields(in.RawBody), h.q.DefaultClass()
	if b.SandboxClass != nil {
		class = *b.SandboxClass
	}
	return None{}, h.q.UpdateRegionQuota(ctx, in.OrganizationID, in.RegionID, class, func(q *quota.Region) {
		for _, f := range []struct{ from, to *float64 }{
			{b.TotalCPUQuota, &q.CPU}, {b.TotalMemoryQuota, &q.Memory}, {b.TotalDiskQuota, &q.Disk}, {b.TotalGPUQuota, &q.GPU},
		} {
			if f.from != nil {
				*f.to = *f.from
			}
		}
		for _, f := range []struct {
			field string
			from  *float64
			to    **float64
		}{
			{"maxCpuPerSandbox", b.MaxCPUPerSandbox, &q.MaxCPU}, {"maxMemoryPerSandbox", b.MaxMemoryPerSandbox, &q.MaxMemory},
			{"maxDiskPerSandbox", b.MaxDiskPerSandbox, &q.MaxDisk}, {"maxDiskPerNonEphemeralSandbox", b.MaxDiskPerNonEphemeralSandbox, &q.MaxDiskLasting},
			{"maxCpuPerGpu", b.MaxCPUPerGPU, &q.MaxCPUPerGPU}, {"maxMemoryPerGpu", b.MaxMemoryPerGPU, &q.MaxMemoryPerGPU}, {"maxDiskPerGpu", b.MaxDiskPerGPU, &q.MaxDiskPerGPU},
			{"maxCpuPerGpuSandbox", b.MaxCPUPerGPUSandbox, &q.MaxCPUGPUSandbox}, {"maxMemoryPerGpuSandbox", b.MaxMemoryPerGPUSandbox, &q.MaxMemoryGPUSandbox},
			{"maxDiskPerGpuSandbox", b.MaxDiskPerGPUSandbox, &q.MaxDiskGPUSandbox}, {"maxSandboxLifespan", b.MaxSandboxLifespan, &q.MaxLifespan},
		} {
			if _, ok := sent[f.field]; ok {
				*f.to = f.from
			}
		}
		if _, ok := sent["allowedGpuTypes"]; ok {
			q.GPUTypes = b.AllowedGPUTypes
		}
	})
}

// sentFields returns the fields of a body, those that are null among them.
func sentFields(raw []byte) map[string]json.RawMessage {
	var m map[string]json.RawMessage
	json.Unmarshal(raw, &m) // what is no object has no fields
	return m
}

// wireAll makes a list of the wire, which is never null.
func wireAll[T, W any](all []T, f func(*T) (W, error)) ([]W, error) {
	out := make([]W, 0, len(all))
	for i := range all {
		w, err := f(&all[i])
		if err != nil {
			return nil, err
		}
		out = append(out, w)
	}
	return out, nil
}

// timeOf reads a time of the wire.
func timeOf(field, v string) (time.Time, error) {
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999", time.DateOnly} {
		if t, err := time.Parse(layout, v); err == nil {
			return t.UTC(), nil
		}
	}
	return time.Time{}, &daytona.Error{Kind: daytona.KindInvalid, Message: field + " must be a valid ISO 8601 date string"}
}

func optionalTime(field string, v *string) (time.Time, error) {
	if v == nil || *v == "" {
		return time.Time{}, nil
	}
	return timeOf(field, *v)
}

func permissionsOf(all []string) []identity.Permission {
	out := make([]identity.Permission, len(all))
	for i, p := range all {
		out[i] = identity.Permission(p)
	}
	return out
}

// wire makes an organization of the wire, with the limits that the wire has
// with it.
func (h organizations) wire(ctx context.Context, o *organization.Organization) (wire.Organization, error) {
	l, err := h.q.Limits(ctx, o.ID)
	if err != nil {
		return wire.Organization{}, err
	}
	return OrganizationWire(o, l), nil
}

// OrganizationWire makes an organization of the wire, without the values of
// its telemetry headers.
func OrganizationWire(o *organization.Organization, l *quota.Limits) wire.Organization {
	w := wire.Organization{
		ID: o.ID, Name: o.Name, CreatedBy: o.CreatedBy, Personal: o.Personal, CreatedAt: wire.Stamp(o.CreatedAt), UpdatedAt: wire.Stamp(o.UpdatedAt),
		Suspended: o.Suspended, SuspendedAt: wire.StampOf(o.SuspendedAt), SuspendedUntil: wire.StampOf(o.SuspendedUntil),
		SuspensionCleanupGracePeriodHours: float64(o.GraceHours), MaxCPUPerSandbox: l.MaxCPU, MaxMemoryPerSandbox: l.MaxMemory, MaxDiskPerSandbox: l.MaxDisk,
		SecretQuota: float64(l.Secrets), MaxSecretsPerSandbox: float64(l.SecretsPerSandbox), SnapshotDeactivationTimeoutMinutes: float64(o.DeactivationMinutes),
		SandboxLimitedNetworkEgress: o.LimitedEgress, PreviewWarningEnabled: o.PreviewWarning, SSOEnabled: o.SSOEnabled, ExperimentalConfig: o.Experimental,
	}
	if w.ExperimentalConfig == nil {
		w.ExperimentalConfig = map[string]any{}
	}
	if o.SuspensionReason != "" {
		w.SuspensionReason = &o.SuspensionReason
	}
	if o.DefaultRegionID != "" {
		w.DefaultRegionID = &o.DefaultRegionID
	}
	if c := o.MaskedOTel(); c != nil {
		w.OTelConfig = &wire.OTelConfig{Endpoint: c.Endpoint, Headers: c.Headers}
	}
	number := func(n *int) *float64 {
		if n == nil {
			return nil
		}
		return new(float64(*n))
	}
	r := o.RateLimits
	w.AuthenticatedRateLimit, w.AuthenticatedRateLimitTTLSeconds = number(r["authenticated"].Limit), number(r["authenticated"].TTL)
	w.SandboxCreateRateLimit, w.SandboxCreateRateLimitTTLSeconds = number(r["sandbox-create"].Limit), number(r["sandbox-create"].TTL)
	w.SandboxLifecycleRateLimit, w.SandboxLifecycleRateLimitTTLSeconds = number(r["sandbox-lifecycle"].Limit), number(r["sandbox-lifecycle"].TTL)
	return w
}

func roleWire(r *organization.Role) wire.OrganizationRole {
	w := wire.OrganizationRole{
		ID: r.ID, Name: r.Name, Description: r.Description, Permissions: []string{}, IsGlobal: r.Global(),
		CreatedAt: wire.Stamp(r.CreatedAt), UpdatedAt: wire.Stamp(r.UpdatedAt),
	}
	for _, p := range r.Permissions {
		w.Permissions = append(w.Permissions, string(p))
	}
	return w
}

func rolesWire(all []organization.Role) []wire.OrganizationRole {
	out := make([]wire.OrganizationRole, len(all))
	for i := range all {
		out[i] = roleWire(&all[i])
	}
	return out
}

func memberWire(m *organization.Member) wire.OrganizationUser {
	return wire.OrganizationUser{
		UserID: m.UserID, OrganizationID: m.OrganizationID, Name: m.Name, Email: m.Email, Role: string(m.Role), AssignedRoles: rolesWire(m.Roles),
		CreatedAt: wire.Stamp(m.CreatedAt), UpdatedAt: wire.Stamp(m.UpdatedAt),
	}
}

func invitationWire(i *organization.Invitation) wire.OrganizationInvitation {
	return wire.OrganizationInvitation{
		ID: i.ID, Email: i.Email, InvitedBy: i.InvitedBy, OrganizationID: i.OrganizationID, OrganizationName: i.OrganizationName, ExpiresAt: wire.Stamp(i.ExpiresAt),
		Status: i.Status, Role: string(i.Role), AssignedRoles: rolesWire(i.Roles), CreatedAt: wire.Stamp(i.CreatedAt), UpdatedAt: wire.Stamp(i.UpdatedAt),
	}
}

func providerWire(p *organization.Provider) wire.IdentityProvider {
	return wire.IdentityProvider{
		ID: p.ID, OrganizationID: p.OrganizationID, Name: p.Name,
		OIDCConfig:   wire.OIDCIDPConfigResponse{IssuerURL: p.IssuerURL, ClientID: p.ClientID, Scope: &p.Scope},
		EmailDomains: p.EmailDomains, AllowAnyDomain: p.AllowAnyDomain, TrustEmailVerified: p.TrustEmailVerified, DefaultAssignedRoleIds: p.DefaultRoleIDs,
		Enabled: p.Enabled, CreatedAt: wire.Stamp(p.CreatedAt), UpdatedAt: wire.Stamp(p.UpdatedAt),
	}
}

// RegionQuotaWire makes the quotas of a region of the wire.
func RegionQuotaWire(q *quota.Region) wire.RegionQuota {
	return wire.RegionQuota{
		OrganizationID: q.OrganizationID, RegionID: q.RegionID, SandboxClass: q.Class, TotalCPUQuota: q.CPU, TotalMemoryQuota: q.Memory, TotalDiskQuota: q.Disk,
		TotalGPUQuota: q.GPU, AllowedGPUTypes: q.GPUTypes, MaxCPUPerSandbox: q.MaxCPU, MaxMemoryPerSandbox: q.MaxMemory, MaxDiskPerSandbox: q.MaxDisk,
		MaxDiskPerNonEphemeralSandbox: q.MaxDiskLasting, MaxCPUPerGPU: q.MaxCPUPerGPU, MaxMemoryPerGPU: q.MaxMemoryPerGPU, MaxDiskPerGPU: q.MaxDiskPerGPU,
		MaxSandboxLifespan: q.MaxLifespan, MaxCPUPerGPUSandbox: q.MaxCPUGPUSandbox, MaxMemoryPerGPUSandbox: q.MaxMemoryGPUSandbox, MaxDiskPerGPUSandbox: q.MaxDiskGPUSandbox,
	}
}
