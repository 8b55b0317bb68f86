package wire

// Extension: GET SSHPath is a WebSocket whose binary frames are the bytes of an
// SSH connection, cut anywhere; an empty one ends its direction. Whoever may
// call the agent need not prove anything else: the method "none" logs in, as
// the sandbox's user, whatever the name.
const SSHPath = "/ssh/connect"

// SSHAgentForwarding is the query parameter of SSHPath that, if "true", lets the
// connection forward the client's authentication agent. Without it the sandbox
// gets no access to the client's keys, whatever the client's SSH asks for.
const SSHAgentForwarding = "agentForwarding"

// Extension: GET SSHHostKeysPath tells what the sandbox proves itself with.
const SSHHostKeysPath = "/ssh/host-keys"

// SSHHostKeys is the answer of SSHHostKeysPath.
type SSHHostKeys struct {
	// Keys are public keys as in an authorized_keys file: type and base64.
	Keys []string `json:"keys"`
}

// Ports of an agent that the gateways of the public API connect to.
const (
	SSHPort         = 22220
	WebTerminalPort = 22222
)

// SSHPassword is what those gateways log in with on SSHPort.
const SSHPassword = "sandbox-ssh"
