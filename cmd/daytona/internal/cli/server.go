package cli

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"
	"golang.org/x/crypto/acme/autocert"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server"
	"github.com/daytona-go/daytona/server/store"
)

// serverFile is a configuration file: that of package server, and what is this
// process's own.
type serverFile struct {
	server.Config `yaml:",inline"`
	// Listen is the address of the API, the dashboard and previews.
	Listen string `yaml:"listen"`
	// Backend is the URL of the runner in this process, or "none".
	Backend string    `yaml:"backend"`
	TLS     tlsConfig `yaml:"tls"`
}

// tlsConfig is a certificate: files, or one that a CA gives by ACME.
type tlsConfig struct {
	Cert string `yaml:"cert"`
	Key  string `yaml:"key"`
	ACME struct {
		Domains []string `yaml:"domains"`
		Email   string   `yaml:"email"`
	} `yaml:"acme"`
}

// setting is one variable of the environment that sets a field. The names are
// those that the public documentation of the hosted platform's own server
// uses, where the meaning is the same.
type setting struct {
	name string
	set  func(c *serverFile, value string) error
}

func settings() []setting {
	text := func(name string, at func(*serverFile) *string) setting {
		return setting{name, func(c *serverFile, v string) error { *at(c) = v; return nil }}
	}
	number := func(name string, at func(*serverFile) *float64) setting {
		return setting{name, func(c *serverFile, v string) (err error) { *at(c), err = strconv.ParseFloat(v, 64); return err }}
	}
	whole := func(name string, at func(*serverFile) *int) setting {
		return setting{name, func(c *serverFile, v string) (err error) { *at(c), err = strconv.Atoi(v); return err }}
	}
	span := func(name string, at func(*serverFile) *time.Duration) setting {
		return setting{name, func(c *serverFile, v string) (err error) { *at(c), err = time.ParseDuration(v); return err }}
	}
	boolean := func(name string, at func(*serverFile) *bool) setting {
		return setting{name, func(c *serverFile, v string) (err error) { *at(c), err = strconv.ParseBool(v); return err }}
	}
	all := []setting{
		{"PORT", func(c *serverFile, v string) error {
			if _, err := strconv.ParseUint(v, 10, 16); err != nil {
				return err
			}
			c.Listen = ":" + v
			return nil
		}},
		text("APP_URL", func(c *serverFile) *string { return &c.URL }),
		text("ENVIRONMENT", func(c *serverFile) *string { return &c.Environment }),
		boolean("MAINTENANCE_MODE", func(c *serverFile) *bool { return &c.Maintenance }),
		text("ENCRYPTION_KEY", func(c *serverFile) *string { return &c.EncryptionKey }),
		text("ADMIN_API_KEY", func(c *serverFile) *string { return &c.Admin.Key }),
		text("OIDC_ISSUER_BASE_URL", func(c *serverFile) *string { return &c.OIDC.Issuer }),
		text("PUBLIC_OIDC_DOMAIN", func(c *serverFile) *string { return &c.OIDC.PublicIssuer }),
		text("OIDC_CLIENT_ID", func(c *serverFile) *string { return &c.OIDC.ClientID }),
		text("OIDC_AUDIENCE", func(c *serverFile) *string { return &c.OIDC.Audience }),
		text("DEFAULT_SNAPSHOT", func(c *serverFile) *string { return &c.Defaults.Image }),
		text("DEFAULT_REGION_ID", func(c *serverFile) *string { return &c.Defaults.RegionID }),
		text("DEFAULT_REGION_NAME", func(c *serverFile) *string { return &c.Defaults.RegionName }),
		boolean("DEFAULT_REGION_ENFORCE_QUOTAS", func(c *serverFile) *bool { return &c.Defaults.EnforceQuotas }),
		number("DEFAULT_ORG_QUOTA_TOTAL_CPU_QUOTA", func(c *serverFile) *float64 { return &c.Defaults.TotalCPU }),
		number("DEFAULT_ORG_QUOTA_TOTAL_MEMORY_QUOTA", func(c *serverFile) *float64 { return &c.Defaults.TotalMemory }),
		number("DEFAULT_ORG_QUOTA_TOTAL_DISK_QUOTA", func(c *serverFile) *float64 { return &c.Defaults.TotalDisk }),
		number("DEFAULT_ORG_QUOTA_MAX_CPU_PER_SANDBOX", func(c *serverFile) *float64 { return &c.Defaults.MaxCPU }),
		number("DEFAULT_ORG_QUOTA_MAX_MEMORY_PER_SANDBOX", func(c *serverFile) *float64 { return &c.Defaults.MaxMemory }),
		number("DEFAULT_ORG_QUOTA_MAX_DISK_PER_SANDBOX", func(c *serverFile) *float64 { return &c.Defaults.MaxDisk }),
		whole("DEFAULT_ORG_QUOTA_SNAPSHOT_QUOTA", func(c *serverFile) *int { return &c.Defaults.Snapshots }),
		number("DEFAULT_ORG_QUOTA_MAX_SNAPSHOT_SIZE", func(c *serverFile) *float64 { return &c.Defaults.MaxSnapshotSize }),
		whole("DEFAULT_ORG_QUOTA_VOLUME_QUOTA", func(c *serverFile) *int { return &c.Defaults.Volumes }),
		whole("MAX_AUTO_ARCHIVE_INTERVAL", func(c *serverFile) *int { return &c.Defaults.MaxAutoArchive }),
		number("DEFAULT_RUNNER_CPU", func(c *serverFile) *float64 { return &c.Defaults.RunnerCPU }),
		number("DEFAULT_RUNNER_MEMORY", func(c *serverFile) *float64 { return &c.Defaults.RunnerMemory }),
		number("DEFAULT_RUNNER_DISK", func(c *serverFile) *float64 { return &c.Defaults.RunnerDisk }),
		text("PROXY_DOMAIN", func(c *serverFile) *string { return &c.Proxy.Domain }),
		text("PROXY_PROTOCOL", func(c *serverFile) *string { return &c.Proxy.Protocol }),
		text("PROXY_TOOLBOX_BASE_URL", func(c *serverFile) *string { return &c.Proxy.ToolboxURL }),
		text("PROXY_API_KEY", func(c *serverFile) *string { return &c.Services.ProxyKey }),
		text("SSH_GATEWAY_API_KEY", func(c *serverFile) *string { return &c.Services.SSHGatewayKey }),
		text("SSH_GATEWAY_URL", func(c *serverFile) *string { return &c.SSH.URL }),
		text("OTEL_COLLECTOR_API_KEY", func(c *serverFile) *string { return &c.Services.CollectorKey }),
		text("HEALTH_CHECK_API_KEY", func(c *serverFile) *string { return &c.Services.HealthCheckKey }),
		text("S3_ENDPOINT", func(c *serverFile) *string { return &c.Objects.Endpoint }),
		text("S3_STS_ENDPOINT", func(c *serverFile) *string { return &c.Objects.STSEndpoint }),
		text("S3_REGION", func(c *serverFile) *string { return &c.Objects.Region }),
		text("S3_ACCESS_KEY", func(c *serverFile) *string { return &c.Objects.AccessKey }),
		text("S3_SECRET_KEY", func(c *serverFile) *string { return &c.Objects.SecretKey }),
		text("S3_DEFAULT_BUCKET", func(c *serverFile) *string { return &c.Objects.Bucket }),
		text("S3_ACCOUNT_ID", func(c *serverFile) *string { return &c.Objects.AccountID }),
		text("S3_ROLE_NAME", func(c *serverFile) *string { return &c.Objects.RoleName }),
		text("DAYTONA_SERVER_DIR", func(c *serverFile) *string { return &c.Dir }),
		text("DAYTONA_SERVER_LISTEN", func(c *serverFile) *string { return &c.Listen }),
		text("DAYTONA_SERVER_URL", func(c *serverFile) *string { return &c.URL }),
		text("DAYTONA_SERVER_DATABASE", func(c *serverFile) *string { return &c.Database }),
		text("DAYTONA_SERVER_REDIS", func(c *serverFile) *string { return &c.Redis }),
		text("DAYTONA_SERVER_BACKEND", func(c *serverFile) *string { return &c.Backend }),
		text("DAYTONA_SERVER_SSH_LISTEN", func(c *serverFile) *string { return &c.SSH.Listen }),
		span("DAYTONA_SERVER_RUNNERS_SILENCE", func(c *serverFile) *time.Duration { return &c.Runners.Silence }),
		span("DAYTONA_SERVER_RUNNERS_LOST_AFTER", func(c *serverFile) *time.Duration { return &c.Runners.LostAfter }),
		text("DAYTONA_SERVER_ADMIN_EMAIL", func(c *serverFile) *string { return &c.Admin.Email }),
		text("DAYTONA_SERVER_ADMIN_PASSWORD", func(c *serverFile) *string { return &c.Admin.Password }),
	}
	for _, name := range []string{"anonymous", "failed-auth", "authenticated", "sandbox-create", "sandbox-lifecycle"} {
		variable := "RATE_LIMIT_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
		limit := func(suffix string, at func(*server.LimitConfig) *int) setting {
			return setting{variable + suffix, func(c *serverFile, v string) error {
				n, err := strconv.Atoi(v)
				if err != nil {
					return err
				}
				if c.Limits == nil {
					c.Limits = server.LimitsConfig{}
				}
				l := c.Limits[name]
				*at(&l) = n
				c.Limits[name] = l
				return nil
			}}
		}
		all = append(all, limit("_TTL", func(l *server.LimitConfig) *int { return &l.TTL }), limit("_LIMIT", func(l *server.LimitConfig) *int { return &l.Limit }))
	}
	return all
}

// readEnvironment sets what variables of the environment set. Those of a
// database and of Redis are parts of a URL.
func (c *serverFile) readEnvironment(getenv func(string) string) error {
	for _, s := range settings() {
		if v := getenv(s.name); v != "" {
			if err := s.set(c, v); err != nil {
				return fmt.Errorf("environment variable %s = %q: %w", s.name, v, err)
			}
		}
	}
	if host := getenv("DB_HOST"); host != "" && c.Database == "" {
		u := &url.URL{Scheme: "postgres", Host: net.JoinHostPort(host, cmp.Or(getenv("DB_PORT"), "5432")), Path: "/" + cmp.Or(getenv("DB_DATABASE"), "daytona")}
		u.User = url.UserPassword(getenv("DB_USERNAME"), getenv("DB_PASSWORD"))
		if getenv("DB_TLS_ENABLED") != "true" {
			u.RawQuery = "sslmode=disable"
		}
		c.Database = u.String()
	}
	if host := getenv("REDIS_HOST"); host != "" && c.Redis == "" {
		u := &url.URL{Scheme: "redis", Host: net.JoinHostPort(host, cmp.Or(getenv("REDIS_PORT"), "6379"))}
		if getenv("REDIS_TLS") == "true" {
			u.Scheme = "rediss"
		}
		if p := getenv("REDIS_PASSWORD"); p != "" {
			u.User = url.UserPassword("", p)
		}
		c.Redis = u.String()
	}
	return nil
}

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

// load reads the configuration: the file, then the environment, then flags.
func (a *app) loadServer(f *serverFlags) (*serverFile, error) {
	c := &serverFile{}
	if f.config != "" {
		file, err := os.Open(f.config)
		if err != nil {
			return nil, err
		}
		defer file.Close()
		d := yaml.NewDecoder(file)
		d.KnownFields(true)
		if err := d.Decode(c); err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("configuration %s: %w", f.config, err)
		}
	}
	if err := c.readEnvironment(os.Getenv); err != nil {
		return nil, err
	}
	for at, v := range map[*string]string{&c.Listen: f.listen, &c.URL: f.url, &c.Dir: f.dir, &c.Database: f.database} {
		if v != "" {
			*at = v
		}
	}
	if c.Dir == "" {
		dir, err := defaultServiceDir("server")
		if err != nil {
			return nil, err
		}
		c.Dir = dir
	}
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return nil, err
	}
	c.Dir = dir
	c.Listen = cmp.Or(c.Listen, "localhost:3000")
	_, port, err := net.SplitHostPort(c.Listen)
	if err != nil {
		return nil, fmt.Errorf("listen = %q: %w", c.Listen, err)
	}
	secure := c.TLS.Cert != "" || len(c.TLS.ACME.Domains) > 0
	if (c.TLS.Cert == "") != (c.TLS.Key == "") {
		return nil, errors.New("tls: cert and key must both be set, or neither")
	}
	if c.TLS.Cert != "" && len(c.TLS.ACME.Domains) > 0 {
		return nil, errors.New("tls: cert and acme must not both be set")
	}
	if c.URL == "" {
		scheme, host := "http", "localhost:"+port
		if secure {
			scheme = "https"
			if len(c.TLS.ACME.Domains) > 0 {
				host = c.TLS.ACME.Domains[0]
			}
		}
		c.URL = scheme + "://" + host
	}
	c.Backend = cmp.Or(c.Backend, a.backendURL)
	c.Version = a.build().Version
	c.Log = slog.Default()
	return c, c.Normalize()
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
	var check bool
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
			if check {
				fmt.Fprintf(a.Stdout, "The configuration is right: %s, kept in %s.\n", c.URL, c.Dir)
				return nil
			}
			return a.serve(cmd.Context(), c)
		},
	}
	f.add(cmd)
	cmd.Flags().StringVar(&f.listen, "listen", "", "`address` to serve on (default localhost:3000)")
	cmd.Flags().StringVar(&f.url, "url", "", "`URL` at which clients reach the server")
	cmd.Flags().BoolVar(&check, "check-config", false, "say whether the configuration is right, and end")
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

// serve runs the server until ctx ends.
func (a *app) serve(ctx context.Context, c *serverFile) error {
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
	listener, err := net.Listen("tcp", c.Listen)
	if err != nil {
		return err
	}
	h := &http.Server{
		Handler:           s,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(c.Log.Handler(), slog.LevelDebug),
		Protocols:         new(http.Protocols),
	}
	h.Protocols.SetHTTP1(true)
	h.Protocols.SetHTTP2(true)
	h.Protocols.SetUnencryptedHTTP2(true)
	if t := c.TLS; t.Cert != "" || len(t.ACME.Domains) > 0 {
		h.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12}
		if len(t.ACME.Domains) > 0 {
			m := &autocert.Manager{
				Prompt: autocert.AcceptTOS, Email: t.ACME.Email, HostPolicy: autocert.HostWhitelist(t.ACME.Domains...),
				Cache: autocert.DirCache(filepath.Join(c.Dir, "acme")),
			}
			h.TLSConfig = m.TLSConfig()
			h.TLSConfig.MinVersion = tls.VersionTLS12
		}
	}
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	ended := make(chan error, 2)
	go func() { ended <- s.Run(running) }()
	go func() {
		if h.TLSConfig != nil {
			ended <- h.ServeTLS(listener, c.TLS.Cert, c.TLS.Key)
		} else {
			ended <- h.Serve(listener)
		}
	}()
	if key := s.AdminKey(); key != "" {
		fmt.Fprintf(a.Stdout, "API key of the first user, shown only now: %s\n", key)
	}
	fmt.Fprintf(a.Stdout, "Serving %s (DAYTONA_API_URL=%s/api)\n", c.URL, c.URL)
	select {
	case err = <-ended:
	case <-ctx.Done():
		err = nil
	}
	// What has been asked for is answered; sandboxes go on.
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
	defer cancel()
	s.Shutdown()
	if shut := h.Shutdown(grace); shut != nil {
		h.Close()
	}
	stop()
	if err == nil || errors.Is(err, http.ErrServerClosed) {
		err = <-ended
	}
	if errors.Is(err, http.ErrServerClosed) || errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}
