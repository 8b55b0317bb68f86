package cli

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/daytona-go/daytona"
)

func (a *app) pauseCommand() *cobra.Command {
	var opts daytona.PauseOptions
	cmd := &cobra.Command{
		Use:               "pause NAME…",
		Short:             "Freeze sandboxes with their memory",
		Args:              someArgs("the NAME of at least one sandbox"),
		ValidArgsFunction: a.completeSandboxes(-1, daytona.StateStarted),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.each(cmd.Context(), "pausing", args, func(ctx context.Context, sb daytona.Sandbox) error {
				return sb.Pause(ctx, &opts)
			})
		},
	}
	cmd.Flags().BoolVar(&opts.Disk, "to-disk", false, "write the memory to disk, so that it survives a restart of the machine")
	return cmd
}

func (a *app) resumeCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "resume NAME…",
		Short:             "Let paused sandboxes go on where they were",
		Args:              someArgs("the NAME of at least one sandbox"),
		ValidArgsFunction: a.completeSandboxes(-1, daytona.StatePaused),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.each(cmd.Context(), "resuming", args, func(ctx context.Context, sb daytona.Sandbox) error {
				return sb.Resume(ctx)
			})
		},
	}
}

func (a *app) archiveCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "archive NAME…",
		Short: "Move stopped sandboxes to object storage",
		Long: `Move the files of stopped sandboxes to object storage, and free their place
here. "daytona sandbox start" brings them back.`,
		Args:              someArgs("the NAME of at least one sandbox"),
		ValidArgsFunction: a.completeSandboxes(-1, daytona.StateStopped),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.each(cmd.Context(), "archiving", args, func(ctx context.Context, sb daytona.Sandbox) error {
				return sb.Archive(ctx)
			})
		},
	}
}

// restoreCommand does not look for the sandbox first: it may be one that
// another machine archived.
func (a *app) restoreCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "restore NAME…",
		Short: "Bring archived sandboxes back, without starting them",
		Long: `Bring archived sandboxes back from object storage and leave them stopped. One
that another machine archived into the same storage is brought here, if it is
given by its ID.`,
		Args:              someArgs("the NAME of at least one sandbox"),
		ValidArgsFunction: a.completeSandboxes(-1, daytona.StateArchived),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			client, err := a.open(ctx)
			if err != nil {
				return err
			}
			defer a.closeClient(client)
			var errs []error
			for _, name := range args {
				p := a.startProgress("restoring " + name)
				err := restore(ctx, client, name)
				p.finish()
				if err != nil {
					errs = append(errs, sandboxError(err, name))
					continue
				}
				fmt.Fprintln(a.Stdout, printable(name))
			}
			return errors.Join(errs...)
		},
	}
}

func restore(ctx context.Context, client *daytona.Client, name string) error {
	sb, err := client.Get(ctx, name)
	if err == nil {
		return sb.Restore(ctx)
	}
	if archiver, ok := daytona.As[daytona.Archiver](client.Backend()); ok && errors.Is(err, daytona.ErrNotFound) {
		_, err = archiver.Restore(ctx, name)
	}
	return err
}

func (a *app) resizeCommand() *cobra.Command {
	var r daytona.Resources
	cmd := &cobra.Command{
		Use:   "resize [flags] NAME…",
		Short: "Change the limits of sandboxes",
		Long: `Change the limits of sandboxes, started or stopped, without a restart. The disk
can only grow, and only while the sandbox is stopped.`,
		Example: `  daytona sandbox resize dev --cpus 4 --memory 8g
  daytona sandbox stop dev && daytona sandbox resize dev --disk 20g`,
		Args:              someArgs("the NAME of at least one sandbox"),
		ValidArgsFunction: a.completeSandboxes(-1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if r == (daytona.Resources{}) {
				return usageError(cmd, errors.New("give what to change: --cpus, --memory, --disk or --pids"))
			}
			if err := (daytona.Spec{Resources: r}).Validate(); err != nil {
				return usageError(cmd, flagNames(err))
			}
			return a.each(cmd.Context(), "resizing", args, func(ctx context.Context, sb daytona.Sandbox) error {
				return flagNames(sb.Resize(ctx, r))
			})
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.SetNormalizeFunc(upstreamNames)
	flags.Float64Var(&r.CPU, "cpus", 0, "number of CPU `cores`, such as 0.5")
	flags.Var((*sizeValue)(&r.Memory), "memory", "memory limit, such as 512m, 2g or 1.5 (GiB)")
	flags.Var((*sizeValue)(&r.Disk), "disk", "limit of what may be written to disk, such as 10g")
	flags.IntVar(&r.Processes, "pids", 0, "greatest `number` of processes and threads")
	for _, name := range []string{"cpus", "memory", "disk", "pids"} {
		must(cmd.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions))
	}
	return cmd
}

func (a *app) forkCommand() *cobra.Command {
	var (
		count int
		opts  daytona.ForkOptions
	)
	cmd := &cobra.Command{
		Use:   "fork [flags] NAME [CHILD…]",
		Short: "Make sandboxes with the present files of another",
		Long: `Make one sandbox for each CHILD with the files that NAME has at this moment,
start them and print their names. They have an identity of their own: a host
name, a machine id, keys. What happens to one does not show in another.`,
		Example: `  daytona sandbox fork dev try-1 try-2
  daytona sandbox fork dev -n 10`,
		Args: func(cmd *cobra.Command, args []string) error {
			switch {
			case len(args) == 0:
				return usageError(cmd, errors.New("give the NAME of a sandbox"))
			case cmd.Flags().Changed("count") && len(args) > 1:
				return usageError(cmd, errors.New("give either names or --count"))
			case count < 1 || count > daytona.MaxForks:
				return usageError(cmd, fmt.Errorf("--count %d: must be 1 to %d", count, daytona.MaxForks))
			}
			return nil
		},
		ValidArgsFunction: a.completeSandboxes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.Names = args[1:]
			if len(opts.Names) == 0 {
				opts.Names = make([]string, count)
			}
			return a.withSandbox(cmd.Context(), args[0], func(ctx context.Context, sb daytona.Sandbox) error {
				p := a.startProgress("forking " + args[0])
				children, err := sb.Fork(ctx, &opts)
				p.finish()
				if err != nil {
					return err
				}
				infos := []daytona.Info{}
				for _, c := range children {
					infos = append(infos, c.Info())
				}
				return a.emit(infos, func(w io.Writer) error {
					for _, i := range infos {
						if _, err := fmt.Fprintln(w, printable(i.Name)); err != nil {
							return err
						}
					}
					return nil
				})
			})
		},
	}
	cmd.Flags().IntVarP(&count, "count", "n", 1, "make this `number` of sandboxes with generated names")
	cmd.Flags().BoolVar(&opts.Memory, "with-memory", false, "fork the running programs, too")
	must(cmd.RegisterFlagCompletionFunc("count", cobra.NoFileCompletions))
	return cmd
}
