package daytona

import (
	"context"
	"io"
)

// Session is a long-lived shell in a sandbox. Its commands run in it one
// after another and share its state: variables, working directory, functions.
type Session interface {
	ID() string
	// Run runs a command and waits for it. The command sees the end of file
	// on standard input. An exit code other than 0 is a result, not an error.
	// The output kept in memory is that of the log; for large output use
	// Start and Follow.
	Run(ctx context.Context, command string) (SessionResult, error)
	// Start starts a command and does not wait. Its standard input stays open
	// for [SessionCommand.SendInput]; nil options are defaults.
	Start(ctx context.Context, command string, opts *SessionOptions) (SessionCommand, error)
	// Command returns an earlier command.
	Command(ctx context.Context, id string) (SessionCommand, error)
	// Commands lists all of them, oldest first.
	Commands(ctx context.Context) ([]SessionCommandInfo, error)
	// Delete ends the shell and everything it started: SIGTERM, then SIGKILL
	// five seconds later.
	Delete(ctx context.Context) error
}

// SessionOptions refine [Session.Start].
type SessionOptions struct {
	// SuppressInputEcho keeps what SendInput sends out of the log. Defaults
	// to false.
	SuppressInputEcho bool
}

// SessionResult is the outcome of [Session.Run].
type SessionResult struct {
	CommandID      string
	ExitCode       int
	Stdout, Stderr string
}

// SessionCommandInfo describes a command of a session.
type SessionCommandInfo struct {
	ID, Command string
	// ExitCode is nil while it runs.
	ExitCode *int
}

// SessionCommand is a command of a session.
type SessionCommand interface {
	ID() string
	// Info asks how it stands.
	Info(ctx context.Context) (SessionCommandInfo, error)
	// Logs returns what it has written so far.
	Logs(ctx context.Context) (stdout, stderr string, err error)
	// Follow copies what it wrote and writes, from the beginning, until it
	// ends. nil writers are allowed.
	Follow(ctx context.Context, stdout, stderr io.Writer) error
	// SendInput writes data, and a newline if it has none at its end, to its
	// standard input. KindGone when it has ended.
	SendInput(ctx context.Context, data string) error
	// Wait waits for it to end and returns its exit code.
	Wait(ctx context.Context) (exitCode int, err error)
}
