// Package archtest has tests only: they check who imports whom and a few more
// rules of this module, so that a drift is a failing test and not an opinion.
//
//   - package daytona imports nothing of this module but leaf packages below
//     internal/.
//   - toolbox/… (the agent) imports no backend and no server, and no heavy
//     library: it is copied into every sandbox.
//   - a backend imports no other backend and no server.
//   - package image knows nothing of sandboxes.
//   - who embeds package daytona, toolbox or backend/local compiles neither
//     Docker, containerd, BuildKit, gRPC, OpenTelemetry, gVisor nor an SQL
//     driver.
//   - only programs read flags, arguments and environment, and only they exit;
//     exceptions are listed with their reason.
//   - no package or file is a drawer for odds and ends, and every package says
//     what it is for.
//
// The package must not be imported.
package archtest
