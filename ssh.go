package daytona

import (
	"context"
	"net"
)

// SSH is the way into a sandbox for OpenSSH's programs, and for any other client
// of SSH: shells, commands with their exit status, sftp, and forwarded
// connections, all as the sandbox's user. No port of the sandbox need be open,
// and nothing need be installed in it, but what commands such as rsync call.
type SSH interface {
	// Dial opens a connection on which the sandbox speaks SSH; nil options are
	// defaults. Whoever can dial may log in: the client asks for the
	// authentication method "none" (as all do first) under any user name. ctx
	// governs the opening only. It gives KindUnavailable when there are too many
	// connections.
	Dial(ctx context.Context, opts *SSHOptions) (net.Conn, error)
	// HostKeys returns the public keys that the sandbox proves itself with on
	// connections of Dial, each as a line of an authorized_keys file: type and
	// base64. They are made anew at each start of the sandbox, also of a fork or
	// one from a snapshot; ask before each connection.
	HostKeys(ctx context.Context) ([]string, error)
}

// SSHOptions refine [SSH.Dial].
type SSHOptions struct {
	// AgentForwarding lets the client forward its authentication agent, which
	// lets every program of the sandbox use the client's keys as long as the
	// connection lasts. Defaults to false: the sandbox refuses it, whatever the
	// client's configuration says.
	AgentForwarding bool
}
