package wire

import (
	"encoding/json"
	"net/netip"
	"time"
)

// AgentConfig is what an agent is told by the backend that starts it. The zero
// Config is an agent for the user that it runs as.
type AgentConfig struct {
	// SandboxID is given to programs as DAYTONA_SANDBOX_ID. Defaults to none.
	SandboxID string `json:"sandboxId,omitempty"`
	// Version is the answer of GET /version. Defaults to "v0.0.0-dev".
	Version string `json:"version,omitempty"`
	// User that files and programs belong to: a name, "uid" or "uid:gid".
	// Defaults to the user that the agent runs as.
	User string `json:"user,omitempty"`
	// WorkDir that relative paths resolve against and programs start in, made
	// if missing; a relative one is below the user's home. Defaults to the
	// user's home.
	WorkDir string `json:"workDir,omitempty"`
	// Env of programs. Defaults to none but what every program needs.
	Env map[string]string `json:"env,omitempty"`
	// Entrypoint is a program to run from the start. Defaults to none.
	Entrypoint []string `json:"entrypoint,omitempty"`
	// CgroupDir is a writable cgroup v2 directory, for a cgroup a program.
	// Defaults to none.
	CgroupDir string `json:"cgroupDir,omitempty"`
	// IdleTimeout, in nanoseconds on the wire, ends Serve with ErrIdle after
	// this long without a request; one that is under way, and an open
	// WebSocket, count as activity. Defaults to 0: never.
	IdleTimeout time.Duration `json:"idleTimeout,omitempty"`
	// TTL, in nanoseconds on the wire, ends Serve with ErrExpired this long
	// after New. Defaults to 0: never.
	TTL time.Duration `json:"ttl,omitempty"`
	// Token that requests must bear, in HeaderAgentToken or as
	// "Authorization: Bearer", unless they come over a Unix socket, to which
	// the directory's permissions decide access. Defaults to none.
	Token string `json:"token,omitempty"`
	// SigningKey has the agent take requests for a single file by signed URL, in
	// place of a token; see internal/fileurl. Defaults to none: a signature means
	// nothing to the agent.
	SigningKey string `json:"signingKey,omitempty"`
	// Telemetry is exported if it is given. Defaults to none.
	Telemetry *TelemetryConfig `json:"telemetry,omitempty"`
	// SSHAddress, an address and a port such as ":22220", is where the agent
	// speaks SSH as well, for gateways of the public API: any public key and
	// SSHPassword log in. Only who may use the sandbox may be able to reach it.
	// Defaults to none: SSH goes over SSHPath.
	SSHAddress string `json:"sshAddress,omitempty"`
	// Key, if it is set, has the agent listen on AgentPort as well, for those who
	// prove to know it; see internal/link. Defaults to none.
	Key string `json:"key,omitempty"`
	// IgnoreSignals says that no signal ends the agent: whoever started it does
	// so by ShutdownPath. Set it where the sandbox's root is the agent's own
	// user and could send signals. Defaults to false: SIGTERM ends it.
	IgnoreSignals bool `json:"ignoreSignals,omitempty"`
}

// TelemetryConfig says where an agent sends logs, metrics and spans, by OTLP over
// HTTP.
type TelemetryConfig struct {
	// Endpoint is the collector's base URL, to which /v1/logs, /v1/metrics and
	// /v1/traces are added.
	Endpoint string `json:"endpoint"`
	// Headers of requests to it. The token of POST /init comes with them, as
	// HeaderSandboxToken. Defaults to none.
	Headers map[string]string `json:"headers,omitempty"`
	// Labels are attributes of the resource, besides service.name, which is
	// "sandbox-" and the sandbox's id. Defaults to none.
	Labels map[string]string `json:"labels,omitempty"`
	// MetricInterval, in nanoseconds on the wire, defaults to 30 s.
	MetricInterval time.Duration `json:"metricInterval,omitempty"`
}

// HeaderSandboxToken tells a collector whose telemetry it gets.
const HeaderSandboxToken = "Sandbox-Auth-Token"

// ContainerConfig is what an agent is told that a container engine starts as
// the container's first process: what has to be done inside, before anything of
// the sandbox runs, and what the agent is to be after that.
type ContainerConfig struct {
	Agent AgentConfig `json:"agent"`
	// AddUser is added to the image's users if it lacks it. Defaults to none.
	AddUser *ContainerUser `json:"addUser,omitempty"`
	// Files are written, by path, mode 0644, in place of what is there. Defaults
	// to none: the engine sees to them.
	Files map[string]string `json:"files,omitempty"`
	// Firewall is put in force in the container's network namespace. Defaults
	// to none.
	Firewall *ContainerFirewall `json:"firewall,omitempty"`
}

// AgentPort is the TCP port of an agent that listens on one.
const AgentPort = 2280

// ContainerExitUser is the exit code of an agent whose container lacks the user
// or group that it is to run programs as.
const ContainerExitUser = 65

// ContainerUser is a user of a container.
type ContainerUser struct {
	Name string `json:"name"`
	UID  int    `json:"uid"`
	GID  int    `json:"gid"`
	Home string `json:"home"`
	// Fixed says that the ids matter and not the name.
	Fixed bool `json:"fixed,omitempty"`
}

// ContainerFirewall says what a container may reach.
type ContainerFirewall struct {
	// Policy is a policy.Policy of internal/network.
	Policy json.RawMessage `json:"policy"`
	// Denied is what no policy opens.
	Denied []netip.Prefix `json:"denied,omitempty"`
	// Resolvers answer for names.
	Resolvers []netip.Addr `json:"resolvers,omitempty"`
}
