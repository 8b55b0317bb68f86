package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/daytona-go/daytona"
)

// runSession is the session that "run --detach" runs its program in.
const runSession = "run"

func (a *app) runCommand() *cobra.Command {
	var (
		spec         specFlags
		attach       attachFlags
		uploads      []string
		noAutoUpload bool
		remove       bool
		detach       bool
	)
	cmd := &cobra.Command{
		Use:   "run [flags] [--] [COMMAND [ARG…]]",
		Short: "Run a program in a new sandbox",
		Long: `Run a program in a new sandbox and delete the sandbox when it ends.

Standard input, output and error, the terminal, Ctrl-C and the exit code are
the program's. Without COMMAND a shell starts, if there is a terminal.

The sandbox sees none of this machine's files. What the program needs is
copied in before it starts: the files and directories given by --upload, or
else every argument of COMMAND that is the relative path of a file below the
current directory (at most 64 MiB each), so that

    daytona run -- python3 script.py

does what it says. What the program writes is gone with the sandbox, unless it
goes to standard output or to a volume, or --rm=false keeps the sandbox.

Exit codes: the program's own; 124 after --timeout; 125 if daytona itself
could not do its part; 126 if COMMAND cannot be executed, 127 if it is not
found; 128 + N after signal N.`,
		Example: `  daytona run -- python3 -c 'print(6*7)'
  daytona run -- python3 analyse.py < data.csv > result.json
  daytona run --net none --memory 512m --timeout 30s -- node untrusted.js
  daytona run -U . -w /work -- make test
  daytona run --image debian:12 -it -- bash
  daytona run --dockerfile Dockerfile -- ./app
  daytona run -d --name web -- python3 -m http.server`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := spec.resolve()
			if err != nil {
				return usageError(cmd, err)
			}
			r := run{app: a, spec: s, keep: !remove || detach, detach: detach}
			r.program.args = args
			if err := attach.apply(a, cmd, &r.program); err != nil {
				return err
			}
			switch {
			case detach && cmd.Flags().Changed("rm") && remove:
				return usageError(cmd, errors.New("--detach keeps the sandbox: it cannot be combined with --rm"))
			case detach && attach.timeout != 0:
				return usageError(cmd, errors.New(`--timeout needs somebody to wait: with --detach, give the sandbox an end by "daytona sandbox create --ttl" instead`))
			case detach && (attach.tty || attach.interactive):
				return usageError(cmd, errors.New(`--detach leaves no terminal and no input: it cannot be combined with -i or -t; "daytona sandbox shell" opens a terminal later`))
			case len(args) == 0 && detach:
				return usageError(cmd, errors.New(`--detach needs a COMMAND; "daytona sandbox create" makes a sandbox that just waits`))
			case len(args) == 0 && !r.program.tty:
				return usageError(cmd, errors.New("there is no COMMAND to run, and no terminal for a shell"))
			case len(args) == 0:
				r.program.args = shell()
			case args[0] == "":
				return usageError(cmd, errors.New("COMMAND is empty"))
			}
			if len(uploads) > 0 {
				r.uploads, err = parseUploads(uploads)
			} else if !noAutoUpload {
				r.uploads, err = a.namedFiles(args)
			}
			if err != nil {
				return usageError(cmd, err)
			}
			return r.do(cmd.Context())
		},
	}
	flags := cmd.Flags()
	// What follows COMMAND is the program's, flags included.
	flags.SetInterspersed(false)
	spec.register(a, cmd)
	attach.register(cmd)
	flags.StringArrayVarP(&uploads, "upload", "U", nil, "copy a file or directory in first: `PATH` or PATH:REMOTE")
	flags.BoolVar(&noAutoUpload, "no-auto-upload", false, "do not copy in the files that COMMAND names")
	flags.BoolVar(&remove, "rm", true, "delete the sandbox afterwards; --rm=false keeps it and prints its name")
	flags.BoolVarP(&detach, "detach", "d", false, `do not wait: keep the sandbox, print its name; "daytona sandbox logs" shows the output`)
	return cmd
}

// run is one "daytona run".
type run struct {
	*app
	spec    daytona.Spec
	program program
	uploads []upload
	keep    bool
	detach  bool
}

func (r *run) do(ctx context.Context) error {
	client, err := r.open(ctx)
	if err != nil {
		return err
	}
	defer r.closeClient(client)
	r.spec.Persistent = r.keep
	sb, err := r.create(ctx, client, r.spec)
	if err != nil {
		return err
	}
	if err := r.upload(ctx, sb, r.uploads); err != nil {
		r.discard(ctx, sb)
		return err
	}
	if r.detach {
		if err := startDetached(ctx, sb, r.program.args); err != nil {
			r.discard(ctx, sb)
			return err
		}
		fmt.Fprintln(r.Stdout, printable(sb.Name()))
		return nil
	}
	if r.keep {
		r.say("sandbox %[1]s will be kept; \"daytona sandbox delete %[1]s\" deletes it", sb.Name())
	}
	code, err := r.runProgram(ctx, sb, r.program)
	if err != nil {
		return err
	}
	if code != 0 {
		return exitCode(code)
	}
	return nil
}

// create makes a sandbox and shows what takes long about it.
func (a *app) create(ctx context.Context, client *daytona.Client, spec daytona.Spec) (daytona.Sandbox, error) {
	if spec.Build != nil {
		built, err := a.buildImage(ctx, client, spec.Build, daytona.BuildOptions{})
		if err != nil {
			return nil, err
		}
		spec.Image, spec.Build = built.Ref, nil
	}
	p := a.startProgress("creating sandbox")
	last := ""
	spec.OnProgress = func(u daytona.Progress) {
		if u.Stage != last {
			last = u.Stage
			a.note("%s", u.Stage)
		}
		p.update(u)
	}
	started := time.Now()
	sb, err := client.Create(ctx, spec)
	p.finish()
	if err != nil {
		return nil, createError(err, spec)
	}
	a.note("created sandbox %s in %s", sb.Name(), time.Since(started).Round(time.Millisecond))
	return sb, nil
}

func createError(err error, spec daytona.Spec) error {
	err = flagNames(err)
	switch daytona.KindOf(err) {
	case daytona.KindConflict:
		return withHint(err, `choose another --name, use that sandbox by "daytona sandbox exec %[1]s", or delete it by "daytona sandbox delete %[1]s"`, spec.Name)
	case daytona.KindNotFound:
		if spec.Snapshot != "" && len(spec.Volumes) == 0 {
			return withHint(err, `"daytona snapshot list" shows the snapshots there are`)
		}
		if len(spec.Volumes) > 0 {
			return withHint(err, `check the names of image and volumes; "daytona volume create" makes a volume`)
		}
	}
	return err
}

// discard deletes a sandbox that never got to run anything. Those that are not
// kept go with the client.
func (r *run) discard(ctx context.Context, sb daytona.Sandbox) {
	if !r.keep {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	if err := sb.Delete(ctx); err != nil {
		r.warn("deleting sandbox %s: %v", sb.Name(), err)
	}
}

// startDetached starts a program that goes on without this process.
func startDetached(ctx context.Context, sb daytona.Sandbox, args []string) error {
	session, err := sb.Process().CreateSession(ctx, runSession)
	if err != nil {
		return err
	}
	_, err = session.Start(ctx, shellQuote(args)+" </dev/null", nil)
	return err
}
