package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/daytona-go/daytona"
)

func (a *app) snapshotCommand() *cobra.Command {
	return parent(&cobra.Command{
		Use:     "snapshot",
		Aliases: []string{"snapshots"},
		Short:   "Make, list and delete snapshots",
		Long: `Make, list and delete snapshots: named templates that "daytona run" and "daytona
sandbox create" start from with --snapshot.`,
	},
		a.snapshotCreateCommand(), a.snapshotListCommand(), a.snapshotGetCommand(),
		a.snapshotActiveCommand("activate", "Let sandboxes be made from snapshots again", true),
		a.snapshotActiveCommand("deactivate", "Let no more sandboxes be made from snapshots", false),
		a.snapshotDeleteCommand())
}

// withSnapshots calls f with the backend's snapshots.
func (a *app) withSnapshots(ctx context.Context, f func(*daytona.Client, daytona.Snapshotter) error) error {
	client, err := a.open(ctx)
	if err != nil {
		return err
	}
	defer a.closeClient(client)
	s, err := client.Snapshots()
	if err != nil {
		return err
	}
	return f(client, s)
}

// snapshotError adds what to do about an error.
func snapshotError(err error) error {
	if daytona.KindOf(err) == daytona.KindNotFound {
		return withHint(err, `"daytona snapshot list" shows the snapshots there are`)
	}
	return err
}

func (a *app) snapshotCreateCommand() *cobra.Command {
	var (
		spec       daytona.SnapshotSpec
		build      buildFlags
		entrypoint string
	)
	cmd := &cobra.Command{
		Use:   "create [flags] NAME [-- ENTRYPOINT [ARG…]]",
		Short: "Make a snapshot of an image, a build or a sandbox",
		Long: `Make a snapshot of an image, of a Dockerfile or of the present files of a
sandbox, and print its name. A sandbox that runs is frozen meanwhile.

ENTRYPOINT is a program that runs whenever a sandbox made from it does. It
defaults to that of the image or the sandbox.`,
		Example: `  daytona snapshot create tools --image debian:12 --memory 2g
  daytona snapshot create app -f Dockerfile -- python3 server.py
  daytona snapshot create dev-today --sandbox dev
  daytona run --snapshot dev-today`,
		Args: func(cmd *cobra.Command, args []string) error {
			n := len(args)
			if dash := cmd.ArgsLenAtDash(); dash >= 0 {
				n = dash
			}
			switch {
			case n == 0:
				return usageError(cmd, errors.New("give a NAME for the snapshot"))
			case n > 1:
				return usageError(cmd, fmt.Errorf("%q is one argument too many: give a NAME for the snapshot, and an entrypoint after --", args[1]))
			}
			return nil
		},
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			spec.Name, spec.Entrypoint = args[0], args[1:]
			if entrypoint != "" {
				if len(spec.Entrypoint) > 0 {
					return usageError(cmd, errors.New("give the entrypoint either by --entrypoint or after --"))
				}
				spec.Entrypoint = strings.Fields(entrypoint)
			}
			var err error
			if spec.Build, err = build.image(); err != nil {
				return usageError(cmd, err)
			}
			switch sources := len(nonEmpty(spec.Image, spec.Sandbox, build.dockerfile)); sources {
			case 1:
			case 0:
				return usageError(cmd, errors.New("give what to make it of: --image, --dockerfile or --sandbox"))
			default:
				return usageError(cmd, errors.New("give one of --image, --dockerfile and --sandbox"))
			}
			if err := spec.Validate(); err != nil {
				return usageError(cmd, flagNames(err))
			}
			return a.withSnapshots(ctx, func(client *daytona.Client, _ daytona.Snapshotter) error {
				if spec.Build != nil {
					built, err := a.buildImage(ctx, client, spec.Build, daytona.BuildOptions{})
					if err != nil {
						return err
					}
					spec.Image, spec.Build = built.Ref, nil
				}
				p := a.startProgress("creating snapshot")
				spec.OnProgress = p.update
				made, err := client.CreateSnapshot(ctx, spec)
				p.finish()
				if err != nil {
					err = flagNames(err)
					switch daytona.KindOf(err) {
					case daytona.KindConflict:
						return withHint(err, `choose another NAME, or delete that snapshot by "daytona snapshot delete %s"`, spec.Name)
					case daytona.KindNotFound:
						if spec.Sandbox != "" {
							return sandboxError(err, spec.Sandbox)
						}
					}
					return err
				}
				return a.emit(made, func(w io.Writer) error {
					_, err := fmt.Fprintln(w, printable(made.Name))
					return err
				})
			})
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.SetNormalizeFunc(upstreamNames)
	flags.StringVarP(&spec.Image, "image", "i", "", "make it of this `image`, such as debian:12 or oci:/dir:tag")
	build.register(cmd)
	flags.StringVar(&spec.Sandbox, "sandbox", "", "make it of the present files of this `sandbox`")
	flags.StringVarP(&entrypoint, "entrypoint", "e", "", "the entrypoint, as one `text` that is split at spaces")
	flags.Float64Var(&spec.Resources.CPU, "cpus", 0, "number of CPU `cores` of its sandboxes (default: the sandbox's or the backend's)")
	flags.Var((*sizeValue)(&spec.Resources.Memory), "memory", "memory limit of its sandboxes, such as 512m (default: the sandbox's or the backend's)")
	flags.Var((*sizeValue)(&spec.Resources.Disk), "disk", "limit of what its sandboxes may write to disk, such as 10g")
	for _, name := range []string{"image", "entrypoint", "cpus", "memory", "disk"} {
		must(cmd.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions))
	}
	must(cmd.RegisterFlagCompletionFunc("sandbox", a.completeSandboxes(-1)))
	return cmd
}

// upstreamNames lets flags be written as the command line of a hosted Daytona
// has them.
func upstreamNames(_ *pflag.FlagSet, name string) pflag.NormalizedName {
	if name == "cpu" {
		name = "cpus"
	}
	return pflag.NormalizedName(name)
}

func nonEmpty(values ...string) (out []string) {
	for _, v := range values {
		if v != "" {
			out = append(out, v)
		}
	}
	return out
}

func (a *app) snapshotListCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "list",
		Aliases:           []string{"ls"},
		Short:             "List snapshots",
		Args:              exactArgs(0, ""),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withSnapshots(cmd.Context(), func(_ *daytona.Client, s daytona.Snapshotter) error {
				snapshots := []daytona.Snapshot{}
				for sn, err := range s.ListSnapshots(cmd.Context()) {
					if err != nil {
						return err
					}
					snapshots = append(snapshots, sn)
				}
				return a.emit(snapshots, func(w io.Writer) error {
					var rows [][]string
					for _, sn := range snapshots {
						rows = append(rows, []string{sn.Name, string(sn.State), snapshotSource(sn), byteSize(sn.SizeBytes), age(sn.CreatedAt, time.Now())})
					}
					return table(w, []string{"NAME", "STATE", "MADE OF", "SIZE", "AGE"}, rows)
				})
			})
		},
	}
}

func snapshotSource(s daytona.Snapshot) string {
	if s.Sandbox != "" {
		return "sandbox " + s.Sandbox
	}
	return s.Image
}

func (a *app) snapshotGetCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "get NAME",
		Aliases:           []string{"info"},
		Short:             "Show all that is known of a snapshot",
		Args:              exactArgs(1, "the NAME of a snapshot"),
		ValidArgsFunction: a.completeSnapshots(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withSnapshots(cmd.Context(), func(_ *daytona.Client, s daytona.Snapshotter) error {
				sn, err := s.GetSnapshot(cmd.Context(), args[0])
				if err != nil {
					return snapshotError(err)
				}
				return a.emit(sn, func(w io.Writer) error {
					return properties(w,
						[2]string{"Name", sn.Name},
						[2]string{"ID", sn.ID},
						[2]string{"State", string(sn.State)},
						[2]string{"Reason", sn.Reason},
						[2]string{"Image", sn.Image},
						[2]string{"Sandbox", sn.Sandbox},
						[2]string{"Entrypoint", strings.Join(sn.Entrypoint, " ")},
						[2]string{"CPUs", cpus(sn.Resources)},
						[2]string{"Memory", gib(sn.Resources.Memory)},
						[2]string{"Disk", gib(sn.Resources.Disk)},
						[2]string{"Size", byteSize(sn.SizeBytes)},
						[2]string{"Created", when(sn.CreatedAt)},
						[2]string{"Last used", when(sn.LastUsedAt)},
					)
				})
			})
		},
	}
}

func (a *app) snapshotActiveCommand(verb, short string, active bool) *cobra.Command {
	return &cobra.Command{
		Use:               verb + " NAME…",
		Short:             short,
		Args:              someArgs("the NAME of at least one snapshot"),
		ValidArgsFunction: a.completeSnapshots(-1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.eachSnapshot(cmd.Context(), args, func(ctx context.Context, s daytona.Snapshotter, name string) error {
				_, err := s.SetSnapshotActive(ctx, name, active)
				return err
			})
		},
	}
}

func (a *app) snapshotDeleteCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "delete NAME…",
		Aliases:           []string{"rm"},
		Short:             "Delete snapshots",
		Long:              `Delete snapshots. Sandboxes that were made from them go on.`,
		Args:              someArgs("the NAME of at least one snapshot"),
		ValidArgsFunction: a.completeSnapshots(-1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.eachSnapshot(cmd.Context(), args, func(ctx context.Context, s daytona.Snapshotter, name string) error {
				return s.DeleteSnapshot(ctx, name)
			})
		},
	}
}

// eachSnapshot is each for snapshots.
func (a *app) eachSnapshot(ctx context.Context, names []string, f func(context.Context, daytona.Snapshotter, string) error) error {
	return a.withSnapshots(ctx, func(_ *daytona.Client, s daytona.Snapshotter) error {
		var errs []error
		for _, name := range names {
			if err := f(ctx, s, name); err != nil {
				errs = append(errs, snapshotError(err))
				continue
			}
			fmt.Fprintln(a.Stdout, printable(name))
		}
		return errors.Join(errs...)
	})
}
