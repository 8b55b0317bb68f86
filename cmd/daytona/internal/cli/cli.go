// Package cli is the command line of daytona: it turns flags, environment and
// files into calls of package daytona, and results into text, JSON or YAML.
// It must not know any backend; those are registered by package main, and
// chosen by URL.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/daytona-go/daytona"
)

// Config is what the command line gets from its process.
type Config struct {
	// Args are the arguments without the program's name.
	Args []string
	// Stdin, Stdout and Stderr are files because terminals are.
	Stdin, Stdout, Stderr *os.File
	// Version of a release build. Defaults to what the Go toolchain recorded.
	Version string
	// Diagnose examines what this machine can do for the backend of a URL.
	// Defaults to nil: this build has no backend that runs on this machine.
	Diagnose func(ctx context.Context, backend string) ([]Finding, error)
}

// Exit codes that are daytona's own, beside the 128 plus signal number of a
// run that a signal ended. 125 to 127 mean what they mean to docker run, 124
// what it means to timeout(1).
const (
	exitTimeout       = 124
	exitDaytona       = 125
	exitNotExecutable = 126
	exitNotFound      = 127
	exitClosedPipe    = 128 + int(syscall.SIGPIPE)
)

// defaultBackend is used when neither --backend nor DAYTONA_BACKEND is given.
const defaultBackend = "local://"

// Main runs one command line and returns the exit code of the process.
func Main(c Config) int {
	ctx, interrupts := watchInterrupts(context.Background())
	defer interrupts.close()
	a := &app{Config: c, interrupts: interrupts}
	root := a.rootCommand()
	// An explicit empty list: cobra takes nil for "use os.Args".
	root.SetArgs(append([]string{}, c.Args...))
	return a.report(ctx, root.ExecuteContext(ctx))
}

// app is the state of one command line.
type app struct {
	Config
	interrupts *interrupts

	backendURL string
	output     outputFormat
	verbose    bool
	debug      bool
}

func (a *app) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "daytona",
		Short: "Run programs in isolated sandboxes",
		Long: `daytona runs programs, most of all programs that an AI has written, in
isolated sandboxes: no access to your files, your network or your other
programs, and limits on what they may use.`,
		Example: `  daytona run -- python3 -c 'print(6*7)'       run a program, then forget the sandbox
  daytona run -- python3 script.py < data.csv  run your own script on your own data
  daytona run                                  look around in a shell
  daytona sandbox create --name dev            keep a sandbox, for as long as you like
  daytona doctor                               what can this machine do?`,
		SilenceUsage:  true,
		SilenceErrors: true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			a.setupLogging()
			return nil
		},
	}
	// Flags that fit a terminal, and no usage line for what only has commands.
	root.SetUsageTemplate(strings.NewReplacer(
		"FlagUsages |", "FlagUsagesWrapped 100 |",
		"Usage:{{if .Runnable}}", "Usage:{{if not .HasAvailableSubCommands}}",
	).Replace(root.UsageTemplate()))
	root.SetOut(a.Stdout)
	root.SetErr(a.Stderr)
	root.SetIn(a.Stdin)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError(cmd, err)
	})

	backend := os.Getenv("DAYTONA_BACKEND")
	if backend == "" {
		backend = defaultBackend
	}
	flags := root.PersistentFlags()
	flags.StringVar(&a.backendURL, "backend", backend, "`URL` of the place where sandboxes live (environment: DAYTONA_BACKEND)")
	flags.VarP(&a.output, "output", "o", "output `format`: table, json or yaml")
	flags.BoolVar(&a.verbose, "verbose", false, "say on standard error what is being done")
	flags.BoolVar(&a.debug, "debug", false, "log everything to standard error")
	must(root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json", "yaml"}, cobra.ShellCompDirectiveNoFileComp)))
	must(root.RegisterFlagCompletionFunc("backend", cobra.NoFileCompletions))

	root.AddGroup(
		&cobra.Group{ID: "use", Title: "Sandboxes:"},
		&cobra.Group{ID: "serve", Title: "The service:"},
		&cobra.Group{ID: "machine", Title: "This machine:"},
	)
	root.AddCommand(inGroup("use", a.runCommand(), a.sandboxCommand(), a.sshCommand(), a.snapshotCommand(), a.volumeCommand(), a.imageCommand())...)
	root.AddCommand(inGroup("serve", a.serverCommand(), a.runnerCommand())...)
	root.AddCommand(inGroup("machine", a.doctorCommand(), a.versionCommand())...)
	parent(root)
	root.SetHelpCommandGroupID("machine")
	root.SetCompletionCommandGroupID("machine")
	return root
}

func inGroup(id string, cmds ...*cobra.Command) []*cobra.Command {
	for _, c := range cmds {
		c.GroupID = id
	}
	return cmds
}

// parent makes c a command that is nothing but its subcommands.
func parent(c *cobra.Command, subs ...*cobra.Command) *cobra.Command {
	c.Args = cobra.ArbitraryArgs
	c.DisableFlagsInUseLine = true
	c.SuggestionsMinimumDistance = 2
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return cmd.Help()
		}
		msg := fmt.Sprintf("%q is not a command of %s", args[0], cmd.CommandPath())
		if s := cmd.SuggestionsFor(args[0]); len(s) > 0 {
			msg += fmt.Sprintf("; did you mean %q?", s[0])
		}
		return usageError(cmd, errors.New(msg))
	}
	c.AddCommand(subs...)
	return c
}

// setupLogging directs the library's log to standard error: warnings always,
// more on request.
func (a *app) setupLogging() {
	level := slog.LevelWarn
	switch {
	case a.debug:
		level = slog.LevelDebug
	case a.verbose:
		level = slog.LevelInfo
	}
	slog.SetDefault(slog.New(slog.NewTextHandler(a.Stderr, &slog.HandlerOptions{Level: level})))
}

// open connects to the chosen backend. The caller must close it with
// closeClient.
func (a *app) open(ctx context.Context) (*daytona.Client, error) {
	c, err := daytona.Open(ctx, a.backendURL)
	if err != nil && strings.HasPrefix(a.backendURL, "local:") {
		return nil, withHint(err, `"daytona doctor" says what this machine needs to run sandboxes`)
	}
	return c, err
}

// closeClient ends the use of a backend, which deletes the sandboxes that are
// not to be kept. A failure is a warning: the work itself is done.
func (a *app) closeClient(c *daytona.Client) {
	if err := c.Close(); err != nil {
		a.warn("cleaning up: %v", err)
	}
}

// note says something on standard error with --verbose.
func (a *app) note(format string, args ...any) {
	if a.verbose || a.debug {
		a.say(format, args...)
	}
}

// warn says what went wrong and does not end the command.
func (a *app) warn(format string, args ...any) { a.say("warning: "+format, args...) }

// say writes one message to standard error.
func (a *app) say(format string, args ...any) {
	fmt.Fprintln(a.Stderr, "daytona: "+printableLines(fmt.Sprintf(format, args...)))
}

// report writes err to standard error and returns the exit code for it.
func (a *app) report(ctx context.Context, err error) int {
	if err == nil {
		return 0
	}
	if code, ok := errors.AsType[exitCode](err); ok {
		return int(code)
	}
	// Whatever error a cancelled operation gave, the signal is the reason.
	if s, ok := errors.AsType[signalError](context.Cause(ctx)); ok {
		a.say("stopped by %s", s.name)
		return 128 + s.number
	}
	// Nobody reads any more ("… | head"): end as any program does.
	if w, ok := errors.AsType[*fs.PathError](err); ok && w.Path == a.Stdout.Name() && errors.Is(w, syscall.EPIPE) {
		return exitClosedPipe
	}
	a.say("%v", err)
	if h, ok := errors.AsType[*hintError](err); ok {
		fmt.Fprintln(a.Stderr, "  "+printableLines(h.hint))
	}
	if s, ok := errors.AsType[startError](err); ok {
		return s.code
	}
	return exitDaytona
}

// exitCode is the "error" of a command that has said all there is to say.
type exitCode int

func (c exitCode) Error() string { return fmt.Sprintf("exit code %d", int(c)) }

// startError is the failure to start a program inside a sandbox.
type startError struct {
	code int
	err  error
}

func (e startError) Error() string { return e.err.Error() }
func (e startError) Unwrap() error { return e.err }

// hintError adds what to do about an error.
type hintError struct {
	err  error
	hint string
}

func (e *hintError) Error() string { return e.err.Error() }
func (e *hintError) Unwrap() error { return e.err }

func withHint(err error, format string, args ...any) error {
	return &hintError{err: err, hint: fmt.Sprintf(format, args...)}
}

// usageError is an error of the command line itself.
func usageError(cmd *cobra.Command, err error) error {
	return withHint(err, "see: %s --help", cmd.CommandPath())
}

// sandboxError adds what to do about an error of an operation on a sandbox
// that the user named.
func sandboxError(err error, name string) error {
	switch daytona.KindOf(err) {
	case daytona.KindNotFound:
		return withHint(err, `"daytona sandbox list" shows the sandboxes there are`)
	case daytona.KindState:
		return withHint(err, `"daytona sandbox info %[1]s" shows its state, "daytona sandbox start %[1]s" starts it`, name)
	}
	return err
}

// must is for errors that only a mistake in this package can cause.
func must(err error) {
	if err != nil {
		panic(err)
	}
}
