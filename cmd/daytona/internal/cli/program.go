package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/daytona-go/daytona"
)

// killWait is how long a program that was told to die may take to report so.
const killWait = 5 * time.Second

// program is a program to run with the streams of this process.
type program struct {
	args    []string
	dir     string
	env     map[string]string
	timeout time.Duration
	stdin   bool
	tty     bool
}

// attachFlags are the flags that say how a program meets this process.
type attachFlags struct {
	interactive, tty bool
	timeout          time.Duration
}

func (f *attachFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.BoolVarP(&f.interactive, "interactive", "i", false, "pass on standard input (default: yes, unless it is a terminal and there is no --tty)")
	flags.BoolVarP(&f.tty, "tty", "t", false, "run on a terminal (default: yes, if standard input and output are terminals)")
	durationFlag(flags, &f.timeout, "timeout", "kill the program after this `time`")
}

// apply decides what the user left open.
func (f *attachFlags) apply(a *app, cmd *cobra.Command, p *program) error {
	if f.timeout < 0 {
		return usageError(cmd, fmt.Errorf("--timeout %s: must not be negative", f.timeout))
	}
	stdinTerminal := term.IsTerminal(int(a.Stdin.Fd()))
	p.timeout = f.timeout
	p.tty = f.tty
	if !cmd.Flags().Changed("tty") {
		p.tty = stdinTerminal && term.IsTerminal(int(a.Stdout.Fd()))
	}
	p.stdin = f.interactive
	if !cmd.Flags().Changed("interactive") {
		// Typing into "daytona run -- ls | less" is meant for less.
		p.stdin = p.tty || !stdinTerminal
	}
	return nil
}

// shell starts the best shell that the sandbox has: its user's own, unless that
// is only /bin/sh, or else bash. It is no login shell: those set PATH anew, and
// forget what the image put there.
func shell() []string {
	return []string{"/bin/sh", "-c", `for s in "${SHELL#/bin/sh}" bash; do command -v "$s" >/dev/null 2>&1 && exec "$s"; done; exec /bin/sh`}
}

// runProgram runs p in sb, connected to the streams of this process, and
// returns its exit code. While it runs, its terminal is this one, or the first
// Ctrl-C is its own; when ctx ends it is killed.
func (a *app) runProgram(ctx context.Context, sb daytona.Sandbox, p program) (int, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	stdout := &outlet{f: a.Stdout, name: "standard output", broken: cancel}
	spec := daytona.CommandSpec{
		Args: p.args, Dir: p.dir, Env: p.env, Timeout: p.timeout,
		Stdout: stdout,
		Stderr: &outlet{f: a.Stderr, name: "standard error", broken: cancel},
	}
	if p.stdin {
		spec.Stdin = a.Stdin
	}
	restore := func() {}
	if p.tty {
		size := a.terminalSize()
		spec.TTY, spec.Stderr = &size, nil
		spec.Env = withTerm(p.env)
		restore = a.rawTerminal()
		defer restore()
	}

	var running daytona.RunningCommand
	started := make(chan struct{})
	if !p.tty {
		// From before the start: what the program writes first may be seen, and
		// answered with Ctrl-C, before StartCommand has returned.
		defer a.interrupts.forwardTo(func(name string) {
			select {
			case <-started:
			case <-ctx.Done():
				return
			}
			// A program that has just ended cannot be told anything.
			if err := running.Signal(ctx, name); err != nil {
				a.note("%s: %v", name, err)
			}
		})()
	}
	running, err := sb.Process().StartCommand(ctx, spec)
	if err != nil {
		restore()
		return 0, startFailure(p, err)
	}
	close(started)
	if p.tty {
		defer a.followSize(ctx, running)()
	}

	status, err := wait(ctx, running)
	restore()
	if cause := context.Cause(ctx); cause != nil {
		if errors.Is(cause, syscall.EPIPE) {
			return exitClosedPipe, nil
		}
		return 0, cause
	}
	if err != nil {
		return 0, err
	}
	if status.TimedOut {
		a.say("%s ran past its time limit of %s and was killed", p.args[0], p.timeout)
		return exitTimeout, nil
	}
	return status.ExitCode, nil
}

// wait is r.Wait, but not much longer than ctx.
func wait(ctx context.Context, r daytona.RunningCommand) (status daytona.ExitStatus, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		status, err = r.Wait()
	}()
	select {
	case <-done:
		return status, err
	case <-ctx.Done():
	}
	select {
	case <-done:
		return status, err
	case <-time.After(killWait):
		return daytona.ExitStatus{}, ctx.Err()
	}
}

// startFailure gives the error of a program that did not start the exit code
// that shells and docker give it.
func startFailure(p program, err error) error {
	switch {
	case errors.Is(err, daytona.ErrForbidden), errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.ENOEXEC):
		return startError{code: exitNotExecutable, err: err}
	case errors.Is(err, daytona.ErrNotFound), errors.Is(err, fs.ErrNotExist):
		if p.dir == "" { // else it may be the directory that is missing
			err = withHint(err, "programs are those of the sandbox's image; files of yours come in with --upload")
		}
		return startError{code: exitNotFound, err: err}
	}
	return err
}

// terminalSize is the size of this process' terminal, or 80×24.
func (a *app) terminalSize() daytona.TTYSize {
	for _, f := range []*os.File{a.Stdout, a.Stdin, a.Stderr} {
		if cols, rows, err := term.GetSize(int(f.Fd())); err == nil && cols > 0 && rows > 0 {
			return daytona.TTYSize{Cols: cols, Rows: rows}
		}
	}
	size := daytona.TTYSize{Cols: 80, Rows: 24}
	if n, err := strconv.Atoi(os.Getenv("COLUMNS")); err == nil && n > 0 && n <= 1000 {
		size.Cols = n
	}
	if n, err := strconv.Atoi(os.Getenv("LINES")); err == nil && n > 0 && n <= 1000 {
		size.Rows = n
	}
	return size
}

// rawTerminal hands every key to the program inside, Ctrl-C included. The
// returned function undoes it; it may be called twice.
func (a *app) rawTerminal() (restore func()) {
	fd := int(a.Stdin.Fd())
	old, err := term.MakeRaw(fd)
	if err != nil {
		return func() {} // not a terminal: "daytona run -t" in a script
	}
	var once sync.Once
	return func() { once.Do(func() { term.Restore(fd, old) }) }
}

// followSize passes on the changes of the terminal's size.
func (a *app) followSize(ctx context.Context, running daytona.RunningCommand) (stop func()) {
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, syscall.SIGWINCH)
	done := make(chan struct{})
	go func() {
		// The size may have changed between asking for it and Notify.
		last := daytona.TTYSize{}
		for {
			if size := a.terminalSize(); size != last {
				last = size
				if err := running.Resize(ctx, size); err != nil && ctx.Err() == nil {
					a.note("resizing the terminal: %v\r", err)
				}
			}
			select {
			case <-ch:
			case <-done:
				return
			}
		}
	}()
	return func() { signal.Stop(ch); close(done) }
}

// withTerm adds this terminal's type to env, as ssh does, so that colours and
// cursor keys are right.
func withTerm(env map[string]string) map[string]string {
	t := os.Getenv("TERM")
	if _, set := env["TERM"]; set || t == "" || strings.ContainsRune(t, 0) {
		return env
	}
	env = maps.Clone(env)
	if env == nil {
		env = map[string]string{}
	}
	env["TERM"] = t
	return env
}

// outlet is an output stream of this process. When it cannot be written any
// more the run is over.
type outlet struct {
	f      io.Writer
	name   string
	broken context.CancelCauseFunc
}

func (o *outlet) Write(p []byte) (int, error) {
	n, err := o.f.Write(p)
	if err != nil {
		o.broken(fmt.Errorf("write to %s: %w", o.name, err))
	}
	return n, err
}

// shellQuote joins args to a line that a POSIX shell takes apart again.
func shellQuote(args []string) string {
	q := make([]string, len(args))
	for i, a := range args {
		q[i] = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
	}
	return strings.Join(q, " ")
}
