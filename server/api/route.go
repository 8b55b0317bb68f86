package api

import "github.com/daytona-go/daytona/server/identity"

// Names for the tables of routes.
const (
	Key         = identity.Key
	JWT         = identity.JWT
	Runner      = identity.Runner
	Proxy       = identity.Proxy | identity.RegionProxy
	SSHGateway  = identity.SSHGateway | identity.RegionSSHGateway
	Collector   = identity.Collector
	HealthCheck = identity.HealthCheck
)

// Route is one operation of the API. All of them are in the tables of this
// package, so that what a caller needs can be read, and is tested, in one
// place: an operation that is in no table can't be served.
type Route struct {
	// ID is the operationId, from which clients make the names of methods.
	ID     string
	Method string
	// Path is without the prefix /api.
	Path string
	Tag  string
	// Status is that of an answer without an error.
	Status     int
	Access     Access
	Bucket     Bucket
	Deprecated bool
}

// Access says who may call a route.
type Access struct {
	// Anyone needs no credential.
	Anyone bool
	// By are the kinds of users that may, Services those of services. A service
	// is asked for nothing more than to be what it is.
	By, Services identity.Kind
	// Organization demands that the request is about an organization which the
	// user is in, and which is the only one that the handler gets to see.
	Organization bool
	// Permissions must all be the user's, of Any at least one.
	Permissions, Any []identity.Permission
	// Owner demands the role of an owner, Admin the system role.
	Owner, Admin bool
}

// Bucket names the limiter that counts calls of a route.
type Bucket string

const (
	// BucketAuthenticated is the default.
	BucketAuthenticated    Bucket = ""
	BucketSandboxCreate    Bucket = "sandbox-create"
	BucketSandboxLifecycle Bucket = "sandbox-lifecycle"
)

var anyone = Access{Anyone: true}

// What most routes need.
var (
	// member is a member of the organization, with a key or a token.
	member = Access{By: Key | JWT, Organization: true}
	// memberToken is one with a token: somebody who has logged in.
	memberToken = Access{By: JWT, Organization: true}
	// owner is an owner of the organization who has logged in.
	owner = Access{By: JWT, Organization: true, Owner: true}
	// user is anybody who has logged in.
	user = Access{By: JWT}
	// admin is a user with the system role.
	admin = Access{By: Key | JWT, Admin: true}
)

// may is a member with permissions.
func may(permissions ...identity.Permission) Access {
	return Access{By: Key | JWT, Organization: true, Permissions: permissions}
}

// service is one of the services of the system.
func service(kinds identity.Kind) Access { return Access{Services: kinds} }
