package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/cmd/daytona/internal/serving"
	"github.com/daytona-go/daytona/internal/runnerkey"
	"github.com/daytona-go/daytona/server"
	"github.com/daytona-go/daytona/server/executor"
	"github.com/daytona-go/daytona/server/observe"
)

// runnerFile is the configuration of a runner.
type runnerFile struct {
	// Join is the token that the server showed when the runner was made; or URL,
	// which is the server's, and Token, which is the runner's key.
	Join  string `yaml:"join"`
	URL   string `yaml:"url"`
	Token string `yaml:"token"`
	// Dir has what the runner keeps beside what the backend does: logs of builds.
	Dir string `yaml:"dir"`
	// Backend is the URL of the backend.
	Backend string `yaml:"backend"`
	// Listen is the address at which the server's proxy and SSH gateway reach the
	// sandboxes. Defaults to ":3003".
	Listen string `yaml:"listen"`
	// Advertise is the URL of the same that the server is told. Defaults to the
	// address by which this machine reaches the server, with the port of Listen.
	Advertise string `yaml:"advertise"`
	// Domain is the name of the machine. Defaults to the host of Advertise.
	Domain string `yaml:"domain"`
	// TLS is that of Listen. Defaults to none.
	TLS serving.TLS `yaml:"tls"`
	// Tracing is where spans are sent. Defaults to nowhere.
	Tracing tracingConfig `yaml:"tracing"`
	// Images and Unenforced are as in [server.Config].
	Images     map[string]string `yaml:"images"`
	Unenforced []string          `yaml:"unenforced"`
	// SharedImages is as in [executor.Config].
	SharedImages bool `yaml:"sharedImages"`
	// CPU in cores, Memory and Disk in GiB are what the machine is said to have.
	// Default to what it has.
	CPU    float64 `yaml:"cpu"`
	Memory float64 `yaml:"memory"`
	Disk   float64 `yaml:"disk"`
	// Health is how often the server is told how the runner is, Report how often
	// what runs here is compared with what the server thinks, Poll how long a
	// question for jobs waits. Default to 10 s, 30 s and 30 s.
	Health time.Duration `yaml:"health"`
	Report time.Duration `yaml:"report"`
	Poll   time.Duration `yaml:"poll"`
}

// runnerSetting is one variable of the environment of a runner; see setting.
type runnerSetting struct {
	name string
	set  func(c *runnerFile, value string) error
}

func runnerSettings() []runnerSetting {
	text := func(name string, at func(*runnerFile) *string) runnerSetting {
		return runnerSetting{name, func(c *runnerFile, v string) error { *at(c) = v; return nil }}
	}
	span := func(name string, at func(*runnerFile) *time.Duration) runnerSetting {
		return runnerSetting{name, func(c *runnerFile, v string) (err error) { *at(c), err = time.ParseDuration(v); return err }}
	}
	return []runnerSetting{
		{"API_PORT", func(c *runnerFile, v string) error {
			if _, err := strconv.ParseUint(v, 10, 16); err != nil {
				return err
			}
			c.Listen = ":" + v
			return nil
		}},
		text("DAYTONA_API_URL", func(c *runnerFile) *string { return &c.URL }),
		text("DAYTONA_RUNNER_TOKEN", func(c *runnerFile) *string { return &c.Token }),
		text("RUNNER_DOMAIN", func(c *runnerFile) *string { return &c.Domain }),
		text("TLS_CERT_FILE", func(c *runnerFile) *string { return &c.TLS.Cert }),
		text("TLS_KEY_FILE", func(c *runnerFile) *string { return &c.TLS.Key }),
		span("POLL_TIMEOUT", func(c *runnerFile) *time.Duration { return &c.Poll }),
		span("HEALTHCHECK_INTERVAL", func(c *runnerFile) *time.Duration { return &c.Health }),
		text("DAYTONA_RUNNER_JOIN", func(c *runnerFile) *string { return &c.Join }),
		text("DAYTONA_RUNNER_DIR", func(c *runnerFile) *string { return &c.Dir }),
		text("DAYTONA_RUNNER_LISTEN", func(c *runnerFile) *string { return &c.Listen }),
		text("DAYTONA_RUNNER_ADVERTISE", func(c *runnerFile) *string { return &c.Advertise }),
	}
}

// runnerFlags are the flags of a runner.
type runnerFlags struct {
	config, join, url, token, dir, listen, advertise, cert, key string
}

// loadRunner reads the configuration: the file, then the environment, then
// flags.
func (a *app) loadRunner(f *runnerFlags) (*runnerFile, error) {
	c := &runnerFile{}
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
	for _, s := range runnerSettings() {
		if v := os.Getenv(s.name); v != "" {
			if err := s.set(c, v); err != nil {
				if s.name == "DAYTONA_RUNNER_TOKEN" || s.name == "DAYTONA_RUNNER_JOIN" {
					v = "…"
				}
				return nil, fmt.Errorf("environment variable %s = %q: %w", s.name, v, err)
			}
		}
	}
	for at, v := range map[*string]string{
		&c.Join: f.join, &c.URL: f.url, &c.Token: f.token, &c.Dir: f.dir, &c.Listen: f.listen, &c.Advertise: f.advertise, &c.TLS.Cert: f.cert, &c.TLS.Key: f.key,
	} {
		if v != "" {
			*at = v
		}
	}
	if strings.Contains(c.Join, "://") { // where to, and the key beside it
		c.URL, c.Join = c.Join, ""
	}
	if c.Join != "" {
		j, err := runnerkey.ParseJoin(c.Join)
		if err != nil {
			return nil, err
		}
		// What is said beside the token counts: the server may have another name here.
		c.URL, c.Token, c.Join = cmp.Or(c.URL, j.URL), cmp.Or(c.Token, j.Key), ""
	}
	if c.URL == "" || c.Token == "" {
		return nil, errors.New("a runner needs --join with the token that the server showed, or the server's --url and --token")
	}
	u, err := url.Parse(strings.TrimRight(c.URL, "/"))
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.User != nil {
		return nil, errors.New("url: must be the http or https URL of a server, without user and password")
	}
	if !strings.HasSuffix(u.Path, "/api") {
		u.Path += "/api"
	}
	c.URL = u.String()
	c.Listen = cmp.Or(c.Listen, ":3003")
	if _, _, err := net.SplitHostPort(c.Listen); err != nil {
		return nil, fmt.Errorf("listen = %q: %w", c.Listen, err)
	}
	if err := c.TLS.Check(); err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	if err := c.Tracing.check(); err != nil {
		return nil, err
	}
	if c.Advertise != "" {
		u, err := url.Parse(c.Advertise)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return nil, fmt.Errorf("advertise = %q: must be an http or https URL", c.Advertise)
		}
	}
	for _, l := range c.Unenforced {
		if !slices.Contains([]string{"cpu", "memory", "disk"}, l) {
			return nil, fmt.Errorf("unenforced: %q is none of cpu, memory and disk", l)
		}
	}
	for name, d := range map[string]time.Duration{"health": c.Health, "report": c.Report, "poll": c.Poll} {
		if d < 0 {
			return nil, fmt.Errorf("%s: %s is negative", name, d)
		}
	}
	if c.Dir == "" {
		if c.Dir, err = defaultServiceDir("runner"); err != nil {
			return nil, err
		}
	}
	if c.Dir, err = filepath.Abs(c.Dir); err != nil {
		return nil, err
	}
	c.TLS.ACME.Dir = filepath.Join(c.Dir, "acme")
	c.Backend = cmp.Or(c.Backend, a.backendURL)
	return c, nil
}

func (a *app) runnerCommand() *cobra.Command {
	f := &runnerFlags{}
	var check bool
	cmd := &cobra.Command{
		Use:   "runner --join TOKEN",
		Short: "Run sandboxes of a server that is elsewhere",
		Long: `Run the sandboxes of a server on this machine, with the backend that --backend
names. The runner asks the server for jobs; nothing connects to it but the
server's proxy and SSH gateway, at --advertise.

"daytona server runner add NAME", where the server is, shows the token. A runner
that ends leaves its sandboxes running, and takes them up again when it starts.

Configuration is read from a file (--config), then from the environment, then
from flags. docs/runners.md has all of it.`,
		Example: `  daytona runner --join dtj_…
  daytona runner --url https://daytona.example.com --token rnr_… --backend docker://
  daytona runner --config /etc/daytona/runner.yaml --check-config`,
		Args:              exactArgs(0, ""),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.loadRunner(f)
			if err != nil {
				return usageError(cmd, err)
			}
			if check {
				fmt.Fprintf(a.Stdout, "The configuration is right: a runner of %s, kept in %s.\n", c.URL, c.Dir)
				return nil
			}
			return a.serveRunner(cmd.Context(), c)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.config, "config", "", "`file` with the configuration (YAML)")
	flags.StringVar(&f.join, "join", "", "`token` that the server showed when the runner was made")
	flags.StringVar(&f.url, "url", "", "`URL` of the server (default: that of --join)")
	flags.StringVar(&f.token, "token", "", "`key` of the runner (default: that of --join)")
	flags.StringVar(&f.dir, "dir", "", "`directory` for what the runner keeps (default: /var/lib/daytona/runner, or of your own)")
	flags.StringVar(&f.listen, "listen", "", "`address` at which the server reaches sandboxes (default :3003)")
	flags.StringVar(&f.advertise, "advertise", "", "`URL` of the same that the server is told (default: the address by which this machine reaches the server)")
	flags.StringVar(&f.cert, "tls-cert", "", "`file` with the certificate of that URL")
	flags.StringVar(&f.key, "tls-key", "", "`file` with its private key")
	flags.BoolVar(&check, "check-config", false, "say whether the configuration is right, and end")
	for _, name := range []string{"config", "tls-cert", "tls-key"} {
		must(cmd.MarkFlagFilename(name))
	}
	must(cmd.MarkFlagDirname("dir"))
	return cmd
}

// serveRunner is a runner until ctx ends.
func (a *app) serveRunner(ctx context.Context, c *runnerFile) error {
	client, err := daytona.Open(ctx, c.Backend)
	if err != nil {
		return withHint(err, `"daytona doctor" says what this machine needs`)
	}
	defer a.closeClient(client)
	provider, endTraces, err := c.Tracing.provider(ctx, "daytona-runner", a.build().Version, slog.Default())
	if err != nil {
		return err
	}
	defer endTraces()
	var e *executor.Executor
	running, stop := context.WithCancel(ctx)
	defer stop()
	front, err := serving.Listen(serving.Options{
		Listen: c.Listen, TLS: c.TLS, Log: slog.Default(),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { e.Handler().ServeHTTP(w, r) }),
		Grace:   time.Millisecond, // who is connected to a sandbox connects anew to the next runner
	})
	if err != nil {
		return err
	}
	if c.Advertise == "" {
		if c.Advertise, err = advertised(c, front.Addr()); err != nil {
			return withHint(err, "--advertise says at which URL the server reaches this machine")
		}
	}
	if c.Domain == "" {
		u, err := url.Parse(c.Advertise)
		if err != nil {
			return err
		}
		c.Domain = u.Hostname()
	}
	e, err = executor.New(executor.Config{
		Client: client, URL: c.URL, Key: c.Token, Dir: c.Dir, Images: c.Images, SharedImages: c.SharedImages, Unenforced: c.Unenforced, Move: true,
		Version: a.build().Version, Domain: c.Domain, APIURL: c.Advertise, ProxyURL: c.Advertise,
		Capacity: daytona.Resources{CPU: c.CPU, Memory: c.Memory, Disk: c.Disk}, Health: c.Health, Report: c.Report, Poll: c.Poll, Tracer: observe.NewTracer(provider), Log: slog.Default(),
	})
	if err != nil {
		return err
	}
	serve, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	served := make(chan error, 1)
	go func() {
		served <- front.Run(serve)
		stop()
	}()
	fmt.Fprintf(a.Stdout, "A runner of %s, at %s\n", c.URL, c.Advertise)
	// What it does when it is to end it ends first; sandboxes go on, and are
	// reached meanwhile.
	err = e.Run(running)
	end()
	if late := <-served; err == nil && ctx.Err() == nil {
		err = late
	}
	if errors.Is(err, daytona.ErrUnauthorized) {
		return withHint(err, `"daytona server runner add NAME", where the server is, shows a new token`)
	}
	return err
}

// advertised is where this machine is, as the server sees it as far as that
// can be told from here: nothing is sent.
func advertised(c *runnerFile, listening net.Addr) (string, error) {
	scheme := "http"
	if c.TLS.On() {
		scheme = "https"
	}
	host, port, err := net.SplitHostPort(listening.String())
	if err != nil {
		return "", err
	}
	if ip := net.ParseIP(host); ip == nil || ip.IsUnspecified() {
		u, err := url.Parse(c.URL)
		if err != nil {
			return "", err
		}
		conn, err := net.Dial("udp", net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), "443")))
		if err != nil {
			return "", fmt.Errorf("find out the address of this machine: %w", err)
		}
		defer conn.Close()
		if host, _, err = net.SplitHostPort(conn.LocalAddr().String()); err != nil {
			return "", err
		}
	}
	return scheme + "://" + net.JoinHostPort(host, port), nil
}

func (a *app) serverRunnerCommand() *cobra.Command {
	return parent(&cobra.Command{Use: "runner", Short: "Let other machines run sandboxes"}, a.serverRunnerAddCommand())
}

func (a *app) serverRunnerAddCommand() *cobra.Command {
	f := &serverFlags{}
	var region string
	cmd := &cobra.Command{
		Use:   "add NAME",
		Short: "Make a runner and show the token that it joins with",
		Long: `Make a runner, and write the token that "daytona runner --join" takes. It is
shown this once, and whoever has it can be that runner. The server may run
meanwhile; it is found by its database, as the flags, the file and the
environment say that "daytona server" takes as well.`,
		Example: `  daytona server runner add machine-2
  daytona server runner add machine-3 --region eu --config /etc/daytona/server.yaml`,
		Args:              exactArgs(1, "the runner's name"),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.loadServer(f)
			if err != nil {
				return err
			}
			token, err := server.AddRunner(cmd.Context(), c.Config, region, args[0])
			if err != nil {
				return err
			}
			fmt.Fprintln(a.Stdout, token)
			a.note("on the other machine: daytona runner --join TOKEN")
			return nil
		},
	}
	f.add(cmd)
	cmd.Flags().StringVar(&f.url, "url", "", "`URL` at which the runner reaches the server (default: that of the server's configuration)")
	cmd.Flags().StringVar(&region, "region", "", "`id` of the region (default: the server's default region)")
	return cmd
}
