package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/daytona-go/daytona"
)

func (a *app) volumeCommand() *cobra.Command {
	return parent(&cobra.Command{
		Use:     "volume",
		Aliases: []string{"volumes"},
		Short:   "Make, list and delete volumes",
		Long: `Make, list and delete volumes: directories that outlive sandboxes and may be
mounted into several at once, by --volume of "daytona run" and "daytona sandbox
create".`,
	}, a.volumeCreateCommand(), a.volumeListCommand(), a.volumeGetCommand(), a.volumeDeleteCommand())
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
	var (
		spec daytona.VolumeSpec
		s3   daytona.S3Location
	)
	cmd := &cobra.Command{
		Use:   "create [flags] NAME",
		Short: "Make a volume",
		Long: `Make a volume: an empty directory, or with --s3-bucket a part of a bucket, which
sandboxes of many machines can mount.

The credentials for a bucket are those of the environment: AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN. They never reach a sandbox.`,
		Example: `  daytona volume create cache --quota 10g
  daytona volume create shared --s3-endpoint https://s3.eu-central-1.amazonaws.com --s3-bucket data`,
		Args:              exactArgs(1, "a NAME for the volume"),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			spec.Name = args[0]
			if s3 != (daytona.S3Location{}) && spec.Kind == "" {
				spec.Kind = daytona.VolumeS3
			}
			if s3 != (daytona.S3Location{}) || spec.Kind == daytona.VolumeS3 {
				spec.S3 = &s3
			}
			if spec.Kind == daytona.VolumeS3 {
				s3.AccessKey, s3.SecretKey, s3.SessionToken = os.Getenv("AWS_ACCESS_KEY_ID"), os.Getenv("AWS_SECRET_ACCESS_KEY"), os.Getenv("AWS_SESSION_TOKEN")
			}
			if err := spec.Validate(); err != nil {
				return usageError(cmd, volumeFlagNames(err))
			}
			return a.withVolumes(cmd.Context(), func(m daytona.VolumeManager) error {
				v, err := m.CreateVolume(cmd.Context(), spec)
				if err != nil {
					return volumeFlagNames(err)
				}
				return a.emit(v, func(w io.Writer) error {
					_, err := fmt.Fprintln(w, printable(v.Name))
					return err
				})
			})
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVar((*string)(&spec.Kind), "kind", "", "`kind` of volume: directory or s3 (default: directory, or s3 with --s3-bucket)")
	flags.Var((*sizeValue)(&spec.Quota), "quota", "limit of what its files may take, such as 10g (default: none)")
	flags.StringVar(&s3.Endpoint, "s3-endpoint", "", "`URL` of the object storage")
	flags.StringVar(&s3.Region, "s3-region", "", "`region` of the object storage (default: us-east-1)")
	flags.StringVar(&s3.Bucket, "s3-bucket", "", "`name` of a bucket that exists")
	flags.StringVar(&s3.Prefix, "s3-prefix", "", "the part of the bucket whose keys begin with this `prefix` and a slash (default: all of it)")
	must(cmd.RegisterFlagCompletionFunc("kind", cobra.FixedCompletions([]string{string(daytona.VolumeDirectory), string(daytona.VolumeS3)}, cobra.ShellCompDirectiveNoFileComp)))
	for _, name := range []string{"quota", "s3-endpoint", "s3-region", "s3-bucket", "s3-prefix"} {
		must(cmd.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions))
	}
	return cmd
}

// volumeFlagNames is flagNames for a daytona.VolumeSpec.
func volumeFlagNames(err error) error {
	e, ok := err.(*daytona.Error)
	if !ok {
		return err
	}
	flag := map[string]string{
		"Name": "NAME", "Kind": "--kind", "Quota": "--quota", "S3": "--s3-bucket", "S3.Endpoint": "--s3-endpoint", "S3.Region": "--s3-region",
		"S3.Bucket": "--s3-bucket", "S3.Prefix": "--s3-prefix", "S3.AccessKey": "AWS_ACCESS_KEY_ID", "S3.SecretKey": "AWS_SECRET_ACCESS_KEY",
	}[e.Field]
	if flag == "" {
		return err
	}
	renamed := *e
	renamed.Field = flag
	return &renamed
}

func (a *app) volumeGetCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "get NAME",
		Aliases:           []string{"info"},
		Short:             "Show all that is known of a volume",
		Args:              exactArgs(1, "the NAME of a volume"),
		ValidArgsFunction: a.completeVolumes,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withVolumes(cmd.Context(), func(m daytona.VolumeManager) error {
				v, err := m.GetVolume(cmd.Context(), args[0])
				if err != nil {
					return volumeError(err)
				}
				return a.emit(v, func(w io.Writer) error {
					return properties(w,
						[2]string{"Name", v.Name},
						[2]string{"ID", v.ID},
						[2]string{"Kind", string(v.Kind)},
						[2]string{"Quota", gib(v.Quota)},
						[2]string{"Created", when(v.CreatedAt)},
						[2]string{"Last used", when(v.LastUsedAt)},
					)
				})
			})
		},
	}
}

// volumeError adds what to do about an error.
func volumeError(err error) error {
	if daytona.KindOf(err) == daytona.KindNotFound {
		return withHint(err, `"daytona volume list" shows the volumes there are`)
	}
	return err
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
						rows = append(rows, []string{v.Name, v.ID, string(v.Kind), gib(v.Quota), age(v.CreatedAt, time.Now())})
					}
					return table(w, []string{"NAME", "ID", "KIND", "QUOTA", "AGE"}, rows)
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
					if err := m.DeleteVolume(cmd.Context(), name); err != nil {
						errs = append(errs, volumeError(err))
						continue
					}
					fmt.Fprintln(a.Stdout, printable(name))
				}
				return errors.Join(errs...)
			})
		},
	}
}
