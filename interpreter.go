package daytona

import (
	"context"
	"io"
	"time"
)

// Interpreter runs Python code whose state (variables, imports) is kept from
// one run to the next, in contexts. Runs in one context queue.
type Interpreter interface {
	// Run runs code; nil options are defaults. An exception of the code is in
	// the result, not in err.
	Run(ctx context.Context, code string, opts *InterpreterOptions) (InterpreterResult, error)
	// CreateContext makes a context that starts in dir ("" is the working
	// directory).
	CreateContext(ctx context.Context, dir string) (InterpreterContext, error)
	// Contexts lists the contexts made by CreateContext.
	Contexts(ctx context.Context) ([]InterpreterContext, error)
	DeleteContext(ctx context.Context, id string) error
}

// InterpreterOptions refine a run.
type InterpreterOptions struct {
	// Context is the id of a context. Defaults to the implicit one.
	Context string
	// Env is set for this run only.
	Env map[string]string
	// Timeout interrupts the run. Defaults to 10 minutes; negative is none.
	Timeout time.Duration
	// Stdout and Stderr, if set, get the output as it comes.
	Stdout, Stderr io.Writer
}

// InterpreterResult is what a run printed and the exception that ended it.
type InterpreterResult struct {
	Stdout, Stderr string
	Err            *InterpreterError
}

// InterpreterError is an exception.
type InterpreterError struct{ Name, Value, Traceback string }

func (e *InterpreterError) Error() string { return e.Name + ": " + e.Value }

// InterpreterContext is a context of an Interpreter.
type InterpreterContext struct {
	ID, Dir, Language string
	Active            bool
	CreatedAt         time.Time
}
