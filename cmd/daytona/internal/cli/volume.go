package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/daytona-go/daytona"
)

func (a *app) volumeCommand() *cobra.Command {
	return parent(&cobra.Command{
		Use:   "volume",
		Short: "Make, list and delete volumes",
		Long: `Make, list and delete volumes: directories that outlive sandboxes and may be
mounted into several at once, by --volume of "daytona run" and "daytona sandbox
create".`,
	}, a.volumeCreateCommand(), a.volumeListCommand(), a.volumeDeleteCommand())
}

// withVolumes calls f with the backend's volumes.
func (a *app) withVolumes(ctx context.Context, f func(daytona.VolumeManager) error) error {
	client, err := a.open(ctx)
	if err != nil {
		return err
	}
	defer a.closeClient(client)
	v, err := client.Volumes()
	if err != nil {
		return err
	}
	return f(v)
}

func (a *app) volumeCreateCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "create NAME",
		Short:             "Make an empty volume",
		Args:              exactArgs(1, "a NAME for the volume"),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withVolumes(cmd.Context(), func(m daytona.VolumeManager) error {
				v, err := m.CreateVolume(cmd.Context(), daytona.VolumeSpec{Name: args[0]})
				if err != nil {
					return err
				}
				return a.emit(v, func(w io.Writer) error {
					_, err := fmt.Fprintln(w, printable(v.Name))
					return err
				})
			})
		},
	}
}

func (a *app) volumeListCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "list",
		Aliases:           []string{"ls"},
		Short:             "List volumes",
		Args:              exactArgs(0, ""),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withVolumes(cmd.Context(), func(m daytona.VolumeManager) error {
				volumes := []daytona.Volume{}
				for v, err := range m.ListVolumes(cmd.Context()) {
					if err != nil {
						return err
					}
					volumes = append(volumes, v)
				}
				return a.emit(volumes, func(w io.Writer) error {
					var rows [][]string
					for _, v := range volumes {
						rows = append(rows, []string{v.Name, v.ID, age(v.CreatedAt, time.Now())})
					}
					return table(w, []string{"NAME", "ID", "AGE"}, rows)
				})
			})
		},
	}
}

func (a *app) volumeDeleteCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "delete NAME…",
		Aliases:           []string{"rm"},
		Short:             "Delete volumes with their files",
		Args:              someArgs("the NAME of at least one volume"),
		ValidArgsFunction: a.completeVolumes,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withVolumes(cmd.Context(), func(m daytona.VolumeManager) error {
				var errs []error
				for _, name := range args {
					err := m.DeleteVolume(cmd.Context(), name)
					switch daytona.KindOf(err) {
					case "":
						fmt.Fprintln(a.Stdout, printable(name))
					case daytona.KindNotFound:
						errs = append(errs, withHint(err, `"daytona volume list" shows the volumes there are`))
					default:
						errs = append(errs, err)
					}
				}
				return errors.Join(errs...)
			})
		},
	}
}
