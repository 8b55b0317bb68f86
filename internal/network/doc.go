// Package network gives sandboxes their network and takes everything else away from them.
//
// This package is the kernel way, which needs root on the host: each sandbox gets a network
// namespace of its own with one end of a veth pair in it, and the host routes and masquerades its
// packets. There is no bridge, so sandboxes share no link and cannot forge each other's
// addresses. Two walls stand between a sandbox and what it may not reach:
//
//   - inside its namespace, the rules of its policy filter every packet by destination, at the
//     output hook (with a polite refusal) and again at the interface (for raw frames). The
//     namespace belongs to the user namespace of the engine, so a sandbox, even as root in a user
//     namespace of its own, cannot change them;
//   - on the host, one static table named "daytona" drops whatever no sandbox may ever do: talk to
//     the host or to another sandbox, forge a source address, reach link-local addresses.
//
// Namespaces are never bound to a path: they are held by descriptors and by the processes in
// them. When both are gone the kernel removes the namespace, the veth pair, the addresses and the
// rules, so that kill -9 of anything leaves nothing to clean up.
//
// The rootless way is in the packages guest (inside the sandbox), netstack (a user-space network
// stack outside it) and userspace (which starts that stack in a process of its own). Which
// addresses a policy allows is decided for both in package policy.
//
// The package knows namespaces and packets. It must not know sandboxes, images or backends.
package network

import "github.com/daytona-go/daytona/internal/network/policy"

// Policy is what a sandbox may reach; see policy.Policy.
type Policy = policy.Policy

// Mode is the kind of network of a Policy.
type Mode = policy.Mode

// The modes of a Policy.
const (
	Internet  = policy.Internet
	None      = policy.None
	AllowList = policy.AllowList
)

// ErrInvalidPolicy is what every refusal of a policy is, by errors.Is.
var ErrInvalidPolicy = policy.ErrInvalid

// ParsePolicy makes a policy from the settings that clients know; see policy.Parse.
func ParsePolicy(block bool, allow []string) (Policy, error) { return policy.Parse(block, allow) }
