// Package identity says who a request is from and what they may do: users
// with an API key or a token of an OIDC provider, and the services that the
// system is made of. It knows no HTTP and no feature; who is a member of what,
// it is told.
package identity

import (
	"context"
	"slices"
)

// Kind is how a caller proved who they are. Kinds are bits, so that a route
// can say which of them it takes.
type Kind uint16

const (
	// Key is a user's API key, which belongs to one organization.
	Key Kind = 1 << iota
	// JWT is a user's token of an OIDC provider.
	JWT
	// Runner is a runner's own key.
	Runner
	// Proxy is the preview proxy; RegionProxy that of one region.
	Proxy
	RegionProxy
	// SSHGateway is the SSH gateway; RegionSSHGateway that of one region.
	SSHGateway
	RegionSSHGateway
	// Collector is the telemetry collector.
	Collector
	// HealthCheck is what asks whether the server is ready.
	HealthCheck
)

// String is the word that logs have for a kind.
func (k Kind) String() string {
	switch k {
	case 0:
		return ""
	case Key:
		return "key"
	case JWT:
		return "token"
	case Runner:
		return "runner"
	case Proxy, RegionProxy:
		return "proxy"
	case SSHGateway, RegionSSHGateway:
		return "ssh-gateway"
	case Collector:
		return "collector"
	case HealthCheck:
		return "health-check"
	}
	return "several"
}

// User are the kinds that are people or act for them.
const User = Key | JWT

// Permission is a right on the resources of an organization. The strings are
// those of the wire.
type Permission string

const (
	WriteRegistries  Permission = "write:registries"
	DeleteRegistries Permission = "delete:registries"
	WriteSnapshots   Permission = "write:snapshots"
	DeleteSnapshots  Permission = "delete:snapshots"
	WriteSandboxes   Permission = "write:sandboxes"
	DeleteSandboxes  Permission = "delete:sandboxes"
	ReadVolumes      Permission = "read:volumes"
	WriteVolumes     Permission = "write:volumes"
	DeleteVolumes    Permission = "delete:volumes"
	WriteRegions     Permission = "write:regions"
	DeleteRegions    Permission = "delete:regions"
	ReadRunners      Permission = "read:runners"
	WriteRunners     Permission = "write:runners"
	DeleteRunners    Permission = "delete:runners"
	ReadAuditLogs    Permission = "read:audit_logs"
	ManageAPIKeys    Permission = "manage:api_keys"
	ManageSecrets    Permission = "manage:secrets"
	ReadLimits       Permission = "read:limits"
	ManageSSO        Permission = "manage:sso"
	ReadBilling      Permission = "read:billing"
	ManageBilling    Permission = "manage:billing"
)

// Permissions returns all there are, in the order in which the wire lists
// them.
func Permissions() []Permission {
	return []Permission{
		WriteRegistries, DeleteRegistries, WriteSnapshots, DeleteSnapshots, WriteSandboxes, DeleteSandboxes,
		ReadVolumes, WriteVolumes, DeleteVolumes, WriteRegions, DeleteRegions, ReadRunners, WriteRunners, DeleteRunners,
		ReadAuditLogs, ManageAPIKeys, ManageSecrets, ReadLimits, ManageSSO, ReadBilling, ManageBilling,
	}
}

// Role is a member's role in an organization.
type Role string

const (
	Owner  Role = "owner"
	Member Role = "member"
)

// Principal is who a request is from. The zero Principal is nobody.
type Principal struct {
	Kind Kind
	// UserID, Email and Name are the user's, for a user.
	UserID, Email, Name string
	// Admin tells a user with the system role "admin".
	Admin bool
	// OrganizationID is the organization that the request is about. A key has
	// its own; a token has the one that the request names, once it has been
	// found that the user is a member.
	OrganizationID string
	// Role is the user's in that organization.
	Role Role
	// Permissions are the key's, or those of the member's roles.
	Permissions []Permission
	// KeyID and KeyName are those of the API key.
	KeyID, KeyName string
	// RunnerID is the runner's, for a runner.
	RunnerID string
	// RegionID is the region of a runner and of a region's proxy or gateway.
	RegionID string
}

// May reports whether the principal has a permission in its organization: an
// owner's token has all of them, a key has those it was made with, even an
// owner's.
func (p *Principal) May(permission Permission) bool {
	if p == nil || p.OrganizationID == "" {
		return false
	}
	if p.Kind == JWT && p.Role == Owner {
		return true
	}
	return slices.Contains(p.Permissions, permission)
}

type contextKey struct{}

// With returns a context that has a principal.
func With(ctx context.Context, p *Principal) context.Context {
	return context.WithValue(ctx, contextKey{}, p)
}

// From returns the principal of a context, or nobody.
func From(ctx context.Context) *Principal {
	if p, ok := ctx.Value(contextKey{}).(*Principal); ok && p != nil {
		return p
	}
	return &Principal{}
}

// Claims are what a token says of a user.
type Claims struct {
	// Subject is the user's id.
	Subject, Email, Name, Username string
	EmailVerified                  bool
}
