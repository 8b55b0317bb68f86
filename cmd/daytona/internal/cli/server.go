package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/cmd/daytona/internal/serving"
	"github.com/daytona-go/daytona/server"
	"github.com/daytona-go/daytona/server/store"
)

// serverFlags are the flags of the commands that need a server's configuration.
type serverFlags struct {
	config, listen, url, dir, database string
}

func (f *serverFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.config, "config", "", "`file` with the configuration (YAML)")
	flags.StringVar(&f.dir, "dir", "", "`directory` for what the server keeps (default: /var/lib/daytona/server, or of your own)")
	flags.StringVar(&f.database, "database", "", "`URL` of the database: sqlite:///… or postgres://… (default: a file in --dir)")
	must(cmd.MarkFlagFilename("config", "yaml", "yml"))
	must(cmd.MarkFlagDirname("dir"))
}

// defaultServiceDir is where a part of the service, "server" or "runner", keeps
// what it does.
func defaultServiceDir(part string) (string, error) {
	if os.Geteuid() == 0 {
		return filepath.Join("/var/lib/daytona", part), nil
	}
	if d := os.Getenv("XDG_DATA_HOME"); filepath.IsAbs(d) {
		return filepath.Join(d, "daytona", part), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(home, ".local", "share", "daytona", part), nil
}

func (a *app) serverCommand() *cobra.Command {
	f := &serverFlags{}
	var check, show bool
	cmd := &cobra.Command{
		Use:   "server",
		Short: "Serve the API, previews and SSH that Daytona's SDKs use",
		Long: `Serve the whole service: the API that the official SDKs and the CLI of Daytona
speak, previews of ports, and a runner in this process (see --backend).

The first start prints the API key of the first user, and no other start does.
Set DAYTONA_API_URL to the URL with /api, and DAYTONA_API_KEY to that key.

Configuration is read from a file (--config), then from the environment, then
from flags. docs/server.md has all of it.`,
		Example: `  daytona server
  daytona server --config /etc/daytona/server.yaml --check-config
  daytona server --listen :3000 --url https://daytona.example.com`,
		Args:              exactArgs(0, ""),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.loadServer(f)
			if err != nil {
				return err
			}
			if show {
				return a.printConfig(c)
			}
			if check {
				fmt.Fprintf(a.Stdout, "The configuration is right: %s, kept in %s.\n", c.URL, c.Dir)
				return nil
			}
			return a.serve(cmd.Context(), f, c)
		},
	}
	f.add(cmd)
	cmd.Flags().StringVar(&f.listen, "listen", "", "`address` to serve on (default localhost:3000)")
	cmd.Flags().StringVar(&f.url, "url", "", "`URL` at which clients reach the server")
	cmd.Flags().BoolVar(&check, "check-config", false, "say whether the configuration is right, and end")
	cmd.Flags().BoolVar(&show, "print-config", false, "print what the configuration comes to, without secrets, and end")
	cmd.AddCommand(a.serverInitCommand(), a.serverMigrateCommand(), a.serverRunnerCommand())
	return cmd
}

// serverInitCommand makes the database and the first user, for automation.
func (a *app) serverInitCommand() *cobra.Command {
	f := &serverFlags{}
	var keyFile string
	cmd := &cobra.Command{
		Use:   "init --admin-key-file FILE",
		Short: "Prepare the database and write the first user's API key to a file",
		Long: `Prepare the database, make the first user and write that user's API key to a
file that only you can read. If there is a first user already, nothing is
changed and the exit code is 1: the key is known to nobody but who got it.`,
		Args:              exactArgs(0, ""),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.loadServer(f)
			if err != nil {
				return err
			}
			// Before the key is made: it could not be shown again.
			file, err := os.OpenFile(keyFile, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
			if err != nil {
				return err
			}
			s, err := server.New(cmd.Context(), c.Config)
			if err == nil {
				defer s.Close()
				key := s.AdminKey()
				if key == "" {
					err = errors.New("there is a first user already; its key can't be shown again")
				} else if _, err = fmt.Fprintln(file, key); err == nil {
					err = file.Sync()
				}
			}
			if err := errors.Join(err, file.Close()); err != nil {
				os.Remove(keyFile)
				return err
			}
			return nil
		},
	}
	f.add(cmd)
	cmd.Flags().StringVar(&keyFile, "admin-key-file", "", "`file` to make, with the API key")
	must(cmd.MarkFlagRequired("admin-key-file"))
	return cmd
}

func (a *app) serverMigrateCommand() *cobra.Command {
	f := &serverFlags{}
	cmd := &cobra.Command{
		Use:               "migrate up|down|status",
		Short:             "Bring the database to the form of this program, or back by one step",
		Args:              exactArgs(1, "up, down or status"),
		ValidArgsFunction: cobra.FixedCompletions([]string{"up", "down", "status"}, cobra.ShellCompDirectiveNoFileComp),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.loadServer(f)
			if err != nil {
				return err
			}
			db, err := store.Open(cmd.Context(), c.Database, c.Log)
			if err != nil {
				return err
			}
			defer db.Close()
			switch args[0] {
			case "up":
				return db.Migrate(cmd.Context())
			case "down":
				return db.MigrateDown(cmd.Context())
			case "status":
			default:
				return usageError(cmd, fmt.Errorf("%q is none of up, down and status", args[0]))
			}
			all, err := db.Migrations(cmd.Context())
			if err != nil {
				return err
			}
			return a.emit(all, func(w io.Writer) error {
				for _, m := range all {
					state := "pending"
					if m.Applied {
						state = "applied"
					}
					fmt.Fprintf(w, "%-8s %s\n", state, m.Name)
				}
				return nil
			})
		},
	}
	f.add(cmd)
	return cmd
}

// logger is the log of a server, whose level can be changed.
func (a *app) logger(c *serverFile) (*slog.Logger, *slog.LevelVar) {
	level := new(slog.LevelVar)
	a.setLevel(level, c)
	o := &slog.HandlerOptions{Level: level}
	if c.LogFile.Format == "json" {
		return slog.New(slog.NewJSONHandler(a.Stderr, o)), level
	}
	return slog.New(slog.NewTextHandler(a.Stderr, o)), level
}

func (a *app) setLevel(level *slog.LevelVar, c *serverFile) {
	level.Set(logLevels[c.LogFile.Level])
	if a.debug {
		level.Set(slog.LevelDebug)
	}
}

// readyWithin is how long it is not said that a server serves for the lack of its
// own runner.
const readyWithin = 30 * time.Second

// serve runs the server until ctx ends. It is said that it serves when it takes
// sandboxes.
func (a *app) serve(ctx context.Context, f *serverFlags, c *serverFile) error {
	log, level := a.logger(c)
	c.Log = log
	slog.SetDefault(log)
	provider, endTraces, err := c.Tracing.provider(ctx, "daytona-server", c.Version, log)
	if err != nil {
		return err
	}
	defer endTraces()
	c.Tracer = provider
	if c.Backend != "none" {
		client, err := daytona.Open(ctx, c.Backend)
		if err != nil {
			return withHint(err, `"daytona doctor" says what this machine needs; --backend none serves without a runner`)
		}
		defer a.closeClient(client)
		c.Client = client
	}
	s, err := server.New(ctx, c.Config)
	if err != nil {
		return err
	}
	defer s.Close()
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	front, err := serving.Listen(serving.Options{
		Listen: c.Listen, TLS: c.TLS, Handler: s, Stopping: s.Shutdown, Cut: stop, Log: log,
		Delay: time.Duration(c.Shutdown.Delay) * time.Second, Grace: time.Duration(c.Shutdown.Grace) * time.Second,
	})
	if err != nil {
		return err
	}
	defer a.interrupts.onHangup(func() {
		n, err := a.loadServer(f)
		if err == nil {
			a.setLevel(level, n)
			err = front.Reload()
		}
		if err != nil {
			log.Error("the configuration was not read again", "err", err)
			return
		}
		log.Info("the level of the log and the certificate were read again; all else needs a restart")
	})()
	serve, end := context.WithCancel(ctx)
	defer end()
	ended := make(chan error, 1)
	go func() {
		ended <- s.Run(running)
		end() // nothing works without it
	}()
	if key := s.AdminKey(); key != "" {
		fmt.Fprintf(a.Stdout, "API key of the first user, shown only now: %s\n", key)
	}
	var said sync.WaitGroup
	said.Go(func() {
		ready, cancel := context.WithTimeout(serve, readyWithin)
		defer cancel()
		err := s.Ready(ready)
		if serve.Err() != nil {
			return
		}
		if err != nil {
			log.Warn("the runner in this process does not take sandboxes yet", "err", err)
		}
		fmt.Fprintf(a.Stdout, "Serving %s (DAYTONA_API_URL=%s/api)\n", c.URL, c.URL)
	})
	err = front.Run(serve)
	end()
	said.Wait()
	if err != nil && ctx.Err() != nil {
		log.Warn("the end was not waited for any longer", "err", err)
		err = nil
	}
	// What has been asked for is answered; sandboxes go on.
	stop()
	if ran := <-ended; ran != nil && !errors.Is(ran, context.Canceled) {
		err = errors.Join(ran, err)
	}
	return err
}
