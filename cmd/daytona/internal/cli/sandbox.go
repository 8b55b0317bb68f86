package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/daytona-go/daytona"
)

func (a *app) sandboxCommand() *cobra.Command {
	return parent(&cobra.Command{
		Use:     "sandbox",
		Aliases: []string{"sb"},
		Short:   "Make, use and delete sandboxes that are kept",
		Long: `Make, use and delete sandboxes that outlive the command that made them.

"daytona run" is the short way for a program that needs no sandbox afterwards.`,
	},
		a.createCommand(), a.listCommand(), a.infoCommand(),
		a.execCommand(), a.shellCommand(), a.copyCommand(), a.logsCommand(),
		a.stopCommand(), a.startCommand(), a.pauseCommand(), a.resumeCommand(), a.forkCommand(), a.resizeCommand(),
		a.archiveCommand(), a.restoreCommand(), a.deleteCommand())
}

// withSandbox finds a sandbox, calls f with it, and explains f's error.
func (a *app) withSandbox(ctx context.Context, name string, f func(context.Context, daytona.Sandbox) error) error {
	client, err := a.open(ctx)
	if err != nil {
		return err
	}
	defer a.closeClient(client)
	sb, err := client.Get(ctx, name)
	if err != nil {
		return sandboxError(err, name)
	}
	if err = f(ctx, sb); daytona.KindOf(err) == daytona.KindState {
		return sandboxError(err, name)
	}
	return err
}

func (a *app) createCommand() *cobra.Command {
	var spec specFlags
	cmd := &cobra.Command{
		Use:   "create [flags] [-- ENTRYPOINT [ARG…]]",
		Short: "Make a sandbox and keep it",
		Long: `Make a sandbox, start it and print its name. It is there until it is deleted,
also after a restart of this machine.

ENTRYPOINT is a program that runs whenever the sandbox does; "daytona sandbox
logs" shows what it prints. It defaults to that of a server image.`,
		Example: `  daytona sandbox create --name dev --image debian:12 --memory 2g
  daytona sandbox create --ttl 1h --label task=42
  daytona sandbox create --dockerfile Dockerfile
  daytona sandbox create --name web -- python3 -m http.server 8080`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 && cmd.ArgsLenAtDash() != 0 {
				return usageError(cmd, fmt.Errorf("%q: the name goes after --name, an entrypoint after --", args[0]))
			}
			return nil
		},
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := spec.resolve()
			if err != nil {
				return usageError(cmd, err)
			}
			s.Persistent, s.Entrypoint = true, args
			client, err := a.open(cmd.Context())
			if err != nil {
				return err
			}
			defer a.closeClient(client)
			sb, err := a.create(cmd.Context(), client, s)
			if err != nil {
				return err
			}
			return a.emit(sb.Info(), func(w io.Writer) error {
				_, err := fmt.Fprintln(w, printable(sb.Name()))
				return err
			})
		},
	}
	spec.register(a, cmd)
	flags := cmd.Flags()
	flags.StringVar(&spec.spec.Language, "language", "", "`language` of code given to it: python (the default), typescript or javascript")
	flags.BoolVar(&spec.spec.Ephemeral, "ephemeral", false, "delete it as soon as it stops")
	durationFlag(flags, &spec.spec.TTL, "ttl", "delete it after this `time`, running or not")
	durationFlag(flags, &spec.spec.AutoStop, "auto-stop", "stop it when it was not used for this `time`")
	durationFlag(flags, &spec.spec.AutoPause, "auto-pause", "pause it when it was not used for this `time`")
	durationFlag(flags, &spec.spec.AutoArchive, "auto-archive", "archive it when it was stopped for this `time`")
	durationFlag(flags, &spec.spec.AutoDelete, "auto-delete", "delete it when it was stopped for this `time`")
	must(cmd.RegisterFlagCompletionFunc("language", cobra.FixedCompletions([]string{"python", "typescript", "javascript"}, cobra.ShellCompDirectiveNoFileComp)))
	return cmd
}

// states are those that a sandbox can be found in.
var states = []string{"started", "stopped", "archived", "paused", "creating", "starting", "stopping", "error"}

func (a *app) listCommand() *cobra.Command {
	var (
		labels, wanted []string
		quiet          bool
	)
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List sandboxes",
		Example: `  daytona sandbox list --state started --label task=42
  daytona sandbox list -o json | jq -r '.[].name'`,
		Args:              exactArgs(0, ""),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			filter, err := parseFilter(labels, wanted)
			if err != nil {
				return usageError(cmd, err)
			}
			client, err := a.open(cmd.Context())
			if err != nil {
				return err
			}
			defer a.closeClient(client)
			infos := []daytona.Info{} // "[]", not "null", when there is none
			for sb, err := range client.List(cmd.Context(), &filter) {
				if err != nil {
					return err
				}
				infos = append(infos, sb.Info())
			}
			return a.emit(infos, func(w io.Writer) error {
				if quiet {
					for _, i := range infos {
						fmt.Fprintln(w, printable(i.Name))
					}
					return nil
				}
				return listTable(w, infos)
			})
		},
	}
	cmd.Flags().StringArrayVar(&labels, "label", nil, "only those with this label: `KEY=VALUE`")
	cmd.Flags().StringArrayVar(&wanted, "state", nil, "only those in this `state`, such as started or stopped")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print names only")
	must(cmd.RegisterFlagCompletionFunc("label", cobra.NoFileCompletions))
	must(cmd.RegisterFlagCompletionFunc("state", cobra.FixedCompletions(states, cobra.ShellCompDirectiveNoFileComp)))
	return cmd
}

func parseFilter(labels, wanted []string) (f daytona.Filter, err error) {
	if f.Labels, err = keyValues("--label", labels); err != nil {
		return f, err
	}
	for _, list := range wanted {
		for s := range strings.SplitSeq(list, ",") {
			if !slices.Contains(states, s) {
				return f, fmt.Errorf("--state %q: must be one of %s", s, strings.Join(states, ", "))
			}
			f.States = append(f.States, daytona.State(s))
		}
	}
	return f, nil
}

func listTable(w io.Writer, infos []daytona.Info) error {
	now := time.Now()
	var rows [][]string
	for _, i := range infos {
		rows = append(rows, []string{
			i.Name, string(i.State), imageOf(i), cpus(i.Resources), gib(i.Resources.Memory),
			age(i.CreatedAt, now), pairs(i.Labels),
		})
	}
	return table(w, []string{"NAME", "STATE", "IMAGE", "CPUS", "MEMORY", "AGE", "LABELS"}, rows)
}

func imageOf(i daytona.Info) string {
	if i.Snapshot != "" {
		return i.Snapshot + " (snapshot)"
	}
	return i.Image
}

func cpus(r daytona.Resources) string {
	if r.CPU == 0 {
		return "all"
	}
	return strconv.FormatFloat(r.CPU, 'g', 4, 64)
}

func gib(v float64) string {
	if v == 0 {
		return "-"
	}
	return byteSize(int64(v * daytona.GiB))
}

func pairs(m map[string]string) string {
	var s []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		s = append(s, k+"="+m[k])
	}
	return strings.Join(s, ",")
}

func (a *app) infoCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "info NAME",
		Short:             "Show all that is known of a sandbox",
		Args:              exactArgs(1, "the NAME of a sandbox"),
		ValidArgsFunction: a.completeSandboxes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withSandbox(cmd.Context(), args[0], func(ctx context.Context, sb daytona.Sandbox) error {
				i := sb.Info()
				return a.emit(i, func(w io.Writer) error { return infoText(w, i) })
			})
		},
	}
}

func infoText(w io.Writer, i daytona.Info) error {
	count := func(n int) string {
		if n == 0 {
			return ""
		}
		return strconv.Itoa(n)
	}
	span := func(d time.Duration) string {
		if d == 0 {
			return ""
		}
		return d.String()
	}
	kept := "no: deleted with the program that made it"
	if i.Persistent {
		kept = "yes"
	}
	return properties(w,
		[2]string{"Name", i.Name},
		[2]string{"ID", i.ID},
		[2]string{"State", string(i.State)},
		[2]string{"Reason", i.Reason},
		[2]string{"Backend", i.Backend},
		[2]string{"Image", i.Image},
		[2]string{"Snapshot", i.Snapshot},
		[2]string{"Forked from", i.Parent},
		[2]string{"User", i.User},
		[2]string{"Directory", i.WorkDir},
		[2]string{"Entrypoint", strings.Join(i.Entrypoint, " ")},
		[2]string{"Variables", strings.Join(slices.Sorted(maps.Keys(i.Env)), ", ")},
		[2]string{"Labels", pairs(i.Labels)},
		[2]string{"CPUs", cpus(i.Resources)},
		[2]string{"Memory", gib(i.Resources.Memory)},
		[2]string{"Disk", gib(i.Resources.Disk)},
		[2]string{"Processes", count(i.Resources.Processes)},
		[2]string{"Network", describeNetwork(i.Network)},
		[2]string{"Volumes", strings.Join(describeVolumes(i.Volumes), ", ")},
		[2]string{"Kept", kept},
		[2]string{"Deleted after", span(i.TTL)},
		[2]string{"Stopped if idle for", span(i.AutoStop)},
		[2]string{"Paused if idle for", span(i.AutoPause)},
		[2]string{"Archived if stopped for", span(i.AutoArchive)},
		[2]string{"Deleted if stopped for", span(i.AutoDelete)},
		[2]string{"Created", when(i.CreatedAt)},
		[2]string{"Started", when(i.StartedAt)},
		[2]string{"Stopped", when(i.StoppedAt)},
	)
}

// when writes a time, if there is one.
func when(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Local().Format(time.DateTime) + " (" + age(t, time.Now()) + " ago)"
}

func (a *app) execCommand() *cobra.Command {
	var (
		attach attachFlags
		env    []string
		files  []string
		dir    string
	)
	cmd := &cobra.Command{
		Use:   "exec [flags] NAME [--] COMMAND [ARG…]",
		Short: "Run a program in a sandbox",
		Long: `Run a program in a started sandbox. Standard input, output and error, the
terminal, Ctrl-C and the exit code are the program's; when this command ends,
so does the program. Exit codes are those of "daytona run".`,
		Example: `  daytona sandbox exec dev -- make test
  daytona sandbox exec dev -- tar c src | tar t`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) < 2 || args[1] == "" {
				return usageError(cmd, errors.New(`give the NAME of a sandbox and a COMMAND; "daytona sandbox shell NAME" opens a shell`))
			}
			return nil
		},
		ValidArgsFunction: a.completeSandboxes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, args := args[0], args[1:]
			// Flags end at NAME, so "--" may come after it.
			if args[0] == "--" {
				args = args[1:]
			}
			if len(args) == 0 {
				return usageError(cmd, errors.New("there is no COMMAND after --"))
			}
			vars, err := readEnvironment(env, files)
			if err != nil {
				return usageError(cmd, err)
			}
			p := program{args: args, dir: dir, env: vars}
			if err := attach.apply(a, cmd, &p); err != nil {
				return err
			}
			return a.runIn(cmd.Context(), name, p)
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.SetInterspersed(false)
	attach.register(cmd)
	flags.StringArrayVarP(&env, "env", "e", nil, "set a variable: `KEY=VALUE`, or KEY to pass on this shell's")
	flags.StringArrayVar(&files, "env-file", nil, "set the variables in a `file` of KEY=VALUE lines")
	flags.StringVarP(&dir, "workdir", "w", "", "`directory` to start in (default: the sandbox's)")
	must(cmd.RegisterFlagCompletionFunc("workdir", cobra.NoFileCompletions))
	return cmd
}

// runIn runs a program in an existing sandbox.
func (a *app) runIn(ctx context.Context, name string, p program) error {
	return a.withSandbox(ctx, name, func(ctx context.Context, sb daytona.Sandbox) error {
		code, err := a.runProgram(ctx, sb, p)
		if err == nil && code != 0 {
			err = exitCode(code)
		}
		return err
	})
}

func (a *app) shellCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:               "shell NAME",
		Short:             "Open a shell in a sandbox",
		Long:              `Open a shell on a terminal in a started sandbox. It ends with this command.`,
		Args:              exactArgs(1, "the NAME of a sandbox"),
		ValidArgsFunction: a.completeSandboxes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !term.IsTerminal(int(a.Stdin.Fd())) {
				return usageError(cmd, fmt.Errorf("standard input is not a terminal; for a script: daytona sandbox exec %s -- sh -s < script", args[0]))
			}
			return a.runIn(cmd.Context(), args[0], program{args: shell(), dir: dir, stdin: true, tty: true})
		},
	}
	cmd.Flags().StringVarP(&dir, "workdir", "w", "", "`directory` to start in (default: the sandbox's)")
	must(cmd.RegisterFlagCompletionFunc("workdir", cobra.NoFileCompletions))
	return cmd
}

func (a *app) logsCommand() *cobra.Command {
	var (
		session string
		follow  bool
	)
	cmd := &cobra.Command{
		Use:   "logs NAME",
		Short: "Show what a program in the background printed",
		Long: `Show what the programs of a session printed: of the one that "daytona run -d"
made, or else of the sandbox's entrypoint, unless --session names another.`,
		Args:              exactArgs(1, "the NAME of a sandbox"),
		ValidArgsFunction: a.completeSandboxes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withSandbox(cmd.Context(), args[0], func(ctx context.Context, sb daytona.Sandbox) error {
				return a.logs(ctx, sb, session, follow)
			})
		},
	}
	cmd.Flags().StringVar(&session, "session", "", "`ID` of the session")
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "wait for more until the program ends")
	must(cmd.RegisterFlagCompletionFunc("session", a.completeSessions))
	return cmd
}

// entrypointSession is the id of the session of a sandbox's entrypoint; see
// [daytona.Process].
const entrypointSession = "entrypoint"

func (a *app) logs(ctx context.Context, sb daytona.Sandbox, id string, follow bool) error {
	p := sb.Process()
	ids := []string{id}
	if id == "" {
		ids = []string{runSession, entrypointSession}
	}
	var session daytona.Session
	for _, try := range ids {
		s, err := p.Session(ctx, try)
		if err == nil {
			session = s
			break
		}
		if !errors.Is(err, daytona.ErrNotFound) {
			return err
		}
	}
	if session == nil {
		have, err := p.Sessions(ctx)
		switch {
		case err != nil:
			return err
		case len(have) == 0:
			return fmt.Errorf("sandbox %s has no sessions: nothing runs in its background", sb.Name())
		}
		return fmt.Errorf("sandbox %s has no session %s; choose one by --session: %s", sb.Name(), strings.Join(ids, " or "), strings.Join(have, ", "))
	}
	commands, err := session.Commands(ctx)
	if err != nil {
		return err
	}
	for _, c := range commands {
		command, err := session.Command(ctx, c.ID)
		if err != nil {
			return err
		}
		if follow {
			if err := command.Follow(ctx, a.Stdout, a.Stderr); err != nil {
				return err
			}
			continue
		}
		stdout, stderr, err := command.Logs(ctx)
		if err != nil {
			return err
		}
		if _, err := io.WriteString(a.Stdout, stdout); err != nil {
			return err
		}
		if _, err := io.WriteString(a.Stderr, stderr); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) stopCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:               "stop NAME…",
		Short:             "End all programs of sandboxes and keep their files",
		Args:              someArgs("the NAME of at least one sandbox"),
		ValidArgsFunction: a.completeSandboxes(-1, daytona.StateStarted, daytona.StatePaused),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.each(cmd.Context(), "stopping", args, func(ctx context.Context, sb daytona.Sandbox) error {
				return sb.Stop(ctx, &daytona.StopOptions{Force: force})
			})
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "kill at once instead of asking first")
	return cmd
}

func (a *app) startCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "start NAME…",
		Short:             "Start stopped sandboxes with the files they had",
		Args:              someArgs("the NAME of at least one sandbox"),
		ValidArgsFunction: a.completeSandboxes(-1, daytona.StateStopped, daytona.StatePaused, daytona.StateArchived),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.each(cmd.Context(), "starting", args, func(ctx context.Context, sb daytona.Sandbox) error {
				return sb.Start(ctx)
			})
		},
	}
}

// each does f to several sandboxes, prints the name of each one done, and does
// not let one failure keep it from the others.
func (a *app) each(ctx context.Context, doing string, names []string, f func(context.Context, daytona.Sandbox) error) error {
	client, err := a.open(ctx)
	if err != nil {
		return err
	}
	defer a.closeClient(client)
	var errs []error
	for _, name := range names {
		p := a.startProgress(doing + " " + name)
		sb, err := client.Get(ctx, name)
		if err == nil {
			err = f(ctx, sb)
		}
		p.finish()
		if err != nil {
			errs = append(errs, sandboxError(err, name))
			continue
		}
		fmt.Fprintln(a.Stdout, printable(name))
	}
	return errors.Join(errs...)
}

func (a *app) deleteCommand() *cobra.Command {
	var (
		all, force bool
		labels     []string
	)
	cmd := &cobra.Command{
		Use:     "delete {NAME… | --all}",
		Aliases: []string{"rm"},
		Short:   "Delete sandboxes with their files",
		Long: `Delete sandboxes, running or not, with their files. Volumes are kept.

--all asks first, unless --force is given, too. With --force it is no error if
a sandbox that is named does not exist.`,
		Args: func(cmd *cobra.Command, args []string) error {
			switch {
			case all && len(args) > 0:
				return usageError(cmd, errors.New("give either names or --all"))
			case !all && len(labels) > 0:
				return usageError(cmd, errors.New("--label narrows --all"))
			case !all && len(args) == 0:
				return usageError(cmd, errors.New("give the NAME of at least one sandbox, or --all"))
			}
			return nil
		},
		ValidArgsFunction: a.completeSandboxes(-1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			if all {
				filter, err := parseFilter(labels, nil)
				if err != nil {
					return usageError(cmd, err)
				}
				if args, err = a.namesToDelete(ctx, filter, force); err != nil || len(args) == 0 {
					return err
				}
				force = true // one may have ended by itself meanwhile
			}
			if !force {
				return a.each(ctx, "deleting", args, func(ctx context.Context, sb daytona.Sandbox) error { return sb.Delete(ctx) })
			}
			return a.deleteExisting(ctx, args)
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "delete all sandboxes")
	cmd.Flags().BoolVarP(&force, "force", "f", false, "do not ask; a missing sandbox is no error")
	cmd.Flags().StringArrayVar(&labels, "label", nil, "with --all: only those with this label, `KEY=VALUE`")
	must(cmd.RegisterFlagCompletionFunc("label", cobra.NoFileCompletions))
	return cmd
}

// namesToDelete lists what --all means and makes sure that it is meant.
func (a *app) namesToDelete(ctx context.Context, filter daytona.Filter, force bool) ([]string, error) {
	client, err := a.open(ctx)
	if err != nil {
		return nil, err
	}
	defer a.closeClient(client)
	var names []string
	for sb, err := range client.List(ctx, &filter) {
		if err != nil {
			return nil, err
		}
		names = append(names, sb.Name())
	}
	if force || len(names) == 0 {
		return names, nil
	}
	if !term.IsTerminal(int(a.Stdin.Fd())) {
		return nil, fmt.Errorf("--all would delete %d sandboxes, and there is no terminal to ask on: say --force", len(names))
	}
	fmt.Fprintf(a.Stderr, "Delete %d sandboxes with their files (%s)? [y/N] ", len(names), printable(strings.Join(names, ", ")))
	answer, err := readLine(ctx, a.Stdin)
	if err != nil {
		return nil, err
	}
	if !strings.EqualFold(answer, "y") && !strings.EqualFold(answer, "yes") {
		return nil, errors.New("nothing was deleted")
	}
	return names, nil
}

func (a *app) deleteExisting(ctx context.Context, names []string) error {
	client, err := a.open(ctx)
	if err != nil {
		return err
	}
	defer a.closeClient(client)
	var errs []error
	for _, name := range names {
		sb, err := client.Get(ctx, name)
		if err == nil {
			err = sb.Delete(ctx)
		}
		switch {
		case err == nil:
			fmt.Fprintln(a.Stdout, printable(name))
		case !errors.Is(err, daytona.ErrNotFound):
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// readLine reads an answer, but does not outlast ctx.
func readLine(ctx context.Context, r io.Reader) (string, error) {
	type result struct {
		line string
		err  error
	}
	ch := make(chan result, 1)
	go func() {
		var line []byte
		b := make([]byte, 1)
		for {
			n, err := r.Read(b)
			if n == 1 && b[0] != '\n' {
				line = append(line, b[0])
			}
			if (n == 1 && b[0] == '\n') || errors.Is(err, io.EOF) {
				ch <- result{line: strings.TrimSpace(string(line))}
				return
			}
			if err != nil {
				ch <- result{err: err}
				return
			}
		}
	}()
	select {
	case r := <-ch:
		return r.line, r.err
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

// exactArgs demands n arguments, described by what.
func exactArgs(n int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) == n:
			return nil
		case n == 0:
			return usageError(cmd, fmt.Errorf("%q: takes no arguments", args[0]))
		case len(args) > n:
			return usageError(cmd, fmt.Errorf("%q is one argument too many: give %s", args[n], what))
		}
		return usageError(cmd, errors.New("give "+what))
	}
}

// someArgs demands at least one argument.
func someArgs(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return usageError(cmd, errors.New("give "+what))
		}
		return nil
	}
}
