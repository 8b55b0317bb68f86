// Package process runs the programs of a sandbox for the agent: one-shot
// commands, code in Python, JavaScript and TypeScript, shell sessions with
// logs, and commands with separate streams over a WebSocket.
//
// Everything starts through a [Spawner]: as the sandbox's account, in a
// session (and, where there is one, a cgroup) of its own, so that it can be
// killed with everything that it started. No program inherits a descriptor or
// a variable of the agent.
//
// The package knows the wire types and the account. It must not know of
// authentication, of backends, nor of what else the agent serves.
package process
