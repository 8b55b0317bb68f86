package daytona

import (
	"context"
	"io"
	"time"
)

// PTY is a connection to a shell on a pseudo-terminal in a sandbox. Read
// returns what the terminal shows and io.EOF when the shell has ended or the
// connection is closed; Write types. The shell lives on when the connection
// is closed.
type PTY interface {
	io.ReadWriteCloser
	ID() string
	// Resize changes the terminal's size.
	Resize(ctx context.Context, size TTYSize) error
	// Kill ends the shell and everything it started.
	Kill(ctx context.Context) error
	// Wait waits for the shell to end. Somebody must Read meanwhile.
	Wait(ctx context.Context) (ExitStatus, error)
}

// PTYOptions describe a pseudo-terminal to create.
type PTYOptions struct {
	// ID names it. Defaults to a generated one.
	ID string
	// Size defaults to 80 columns and 24 rows; at most 1000 each.
	Size TTYSize
	// Dir is where the shell starts. Defaults to the working directory.
	Dir string
	// Env is added to the sandbox's environment. TERM defaults to
	// xterm-256color.
	Env map[string]string
}

// PTYInfo describes a pseudo-terminal.
type PTYInfo struct {
	ID, Dir   string
	Env       map[string]string
	Size      TTYSize
	CreatedAt time.Time
	// Active says that its shell has been started and has not ended.
	Active bool
}
