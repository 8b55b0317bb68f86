package daytona

import (
	"context"
	"io"
	"time"
)

// Interpreter runs code whose state (variables, imports, functions) is kept
// from one run to the next, in contexts: each is an interpreter of its own.
// Runs in one context queue; contexts do not wait for each other. Python needs
// python3 in the sandbox, JavaScript node, TypeScript also a compiler
// (typescript, esbuild, or Node.js 22.13 or later); what is missing is KindInvalid.
type Interpreter interface {
	// Run runs code; nil options are defaults. An exception of the code is in
	// the result, not in err, and so is the end of the interpreter by its own
	// code (name [InterpreterExited]): the next run begins with a new one.
	//
	// A run beyond its timeout gives KindTimeout with what there was until
	// then. One whose ctx ends is interrupted as well, but not waited for. Code
	// that does not heed an interrupt for two seconds is killed, and the state
	// of the context lost. Output of threads that go on after a run belongs to
	// whichever run is under way when it comes; between runs it is dropped.
	Run(ctx context.Context, code string, opts *InterpreterOptions) (InterpreterResult, error)
	// CreateContext starts a context; nil options are defaults. KindInvalid for
	// a directory that does not exist, KindExhausted for more than 100 contexts.
	CreateContext(ctx context.Context, opts *InterpreterContextOptions) (InterpreterContext, error)
	// Contexts lists the contexts made by CreateContext, oldest first.
	Contexts(ctx context.Context) ([]InterpreterContext, error)
	// DeleteContext ends a context, and what runs in it.
	DeleteContext(ctx context.Context, id string) error
	// Interrupt interrupts the run under way in a context, whosever it is, as
	// Ctrl+C does on a terminal. It does nothing where none is. The id of the
	// implicit context is [DefaultInterpreterContext].
	Interrupt(ctx context.Context, id string) error
}

// DefaultInterpreterContext is the id of the implicit Python context. It is not
// listed and cannot be deleted.
const DefaultInterpreterContext = "default"

// InterpreterOptions refine a run.
type InterpreterOptions struct {
	// Context is the id of a context. Defaults to the implicit one of
	// Language.
	Context string
	// Language is "python", "javascript" or "typescript"; it chooses among the
	// implicit contexts, and is that of Context otherwise. Defaults to "python".
	Language string
	// Env is set for this run only.
	Env map[string]string
	// Timeout interrupts the run, counted from its turn. Defaults to 10
	// minutes; negative is none.
	Timeout time.Duration
	// Stdout and Stderr, if set, get the output as it comes, instead of the
	// result. They may be the same writer, which then gets one call at a time.
	// An error of theirs interrupts the run and is returned.
	Stdout, Stderr io.Writer
	// Result and Chart, if set, get each result and chart as it comes, besides
	// the result of the run.
	Result func(InterpreterData)
	Chart  func(Chart)
}

// InterpreterContextOptions refine a context.
type InterpreterContextOptions struct {
	// Dir is where it starts, relative to the working directory. Defaults to
	// that.
	Dir string
	// Language is "python", "javascript" or "typescript". Defaults to
	// "python".
	Language string
}

// InterpreterResult is what came of a run.
type InterpreterResult struct {
	// Stdout and Stderr are what it printed, of each the first 64 MiB.
	Stdout, Stderr string
	// Results are the value of a last line that is an expression, and what the
	// code gave to display.
	Results []InterpreterData
	// Charts are the figures that the code showed with matplotlib.
	Charts []Chart
	// Err is the exception that ended it, or nil.
	Err *InterpreterError
	// Interrupted says that [Interpreter.Interrupt] ended it.
	Interrupted bool
	// Truncated says that Stdout, Stderr, Results (64 MiB) or Charts (64 MiB)
	// have left something out.
	Truncated bool
}

// InterpreterData is a value in its forms by media type: "text/plain" always,
// others such as "text/html", "image/png" or "application/json" as the value
// has them.
type InterpreterData map[string][]byte

// Text is the form for people who read: the repr of a Python value.
func (d InterpreterData) Text() string { return string(d["text/plain"]) }

// InterpreterExited is the name of the InterpreterError of code that ended its
// interpreter.
const InterpreterExited = "InterpreterExited"

// InterpreterError is an exception.
type InterpreterError struct {
	// Name is its type, such as "ValueError".
	Name string
	// Value is its message.
	Value string
	// Traceback is as the language prints it, of the code's frames only.
	Traceback string
}

func (e *InterpreterError) Error() string { return e.Name + ": " + e.Value }

// InterpreterContext is a context of an Interpreter.
type InterpreterContext struct {
	ID, Dir, Language string
	// Active says that its interpreter runs. One that has ended is started
	// again by the next run.
	Active    bool
	CreatedAt time.Time
}
