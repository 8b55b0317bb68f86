// Package server is the multi-tenant service: the API that Daytona's SDKs, CLI
// and dashboard speak, the proxy to ports and toolboxes of sandboxes, the SSH
// gateway, object storage, and a runner, all of it one http.Handler and one
// [Server.Run]:
//
//	s, err := server.New(ctx, server.Config{Dir: dir, Client: client})
//	if err != nil { … }
//	defer s.Close()
//	go s.Run(ctx)
//	err = http.ListenAndServe("localhost:3000", s)
//
// This package is where the features meet: each is a package below this one
// that knows no other. It picks no backend: who calls it brings a
// [daytona.Client], if this process is to be a runner as well. It reads no
// flags and no environment.
package server

import (
	"context"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/daytona-go/daytona"
	internalobjects "github.com/daytona-go/daytona/internal/objects"
	"github.com/daytona-go/daytona/internal/runnerkey"
	"github.com/daytona-go/daytona/internal/wire"
	"github.com/daytona-go/daytona/server/api"
	"github.com/daytona-go/daytona/server/apikey"
	"github.com/daytona-go/daytona/server/audit"
	"github.com/daytona-go/daytona/server/events"
	"github.com/daytona-go/daytona/server/executor"
	"github.com/daytona-go/daytona/server/identity"
	"github.com/daytona-go/daytona/server/identity/authn"
	"github.com/daytona-go/daytona/server/identity/issuer"
	"github.com/daytona-go/daytona/server/job"
	"github.com/daytona-go/daytona/server/objects"
	"github.com/daytona-go/daytona/server/observe"
	"github.com/daytona-go/daytona/server/organization"
	"github.com/daytona-go/daytona/server/outbound"
	"github.com/daytona-go/daytona/server/proxy"
	"github.com/daytona-go/daytona/server/quota"
	"github.com/daytona-go/daytona/server/ratelimit"
	"github.com/daytona-go/daytona/server/region"
	"github.com/daytona-go/daytona/server/registry"
	"github.com/daytona-go/daytona/server/runner"
	"github.com/daytona-go/daytona/server/sandbox"
	"github.com/daytona-go/daytona/server/seal"
	"github.com/daytona-go/daytona/server/secret"
	"github.com/daytona-go/daytona/server/snapshot"
	"github.com/daytona-go/daytona/server/sshgateway"
	"github.com/daytona-go/daytona/server/store"
	"github.com/daytona-go/daytona/server/telemetry"
	"github.com/daytona-go/daytona/server/user"
	"github.com/daytona-go/daytona/server/volume"
	"github.com/daytona-go/daytona/server/webhook"
)

const (
	// issuerPath is where the built-in OIDC provider is, below the server's URL.
	issuerPath = "/oidc"
	// runnerPath is where the runner of this process is, below Config.PeerURL.
	runnerPath = "/runner"
)

// Server is the service. It is an http.Handler for all of it but SSH.
type Server struct {
	config   Config
	prefix   string // the path of URL
	key      string // all other keys are made of it
	adminKey string

	db            *store.DB
	box           *seal.Box
	users         *user.Service
	keys          *apikey.Service
	issuer        *issuer.Issuer // nil with a provider elsewhere
	authenticator *authn.Authenticator
	limiter       *ratelimit.Limiter
	redis         redis.UniversalClient
	outbound      *outbound.Guard
	organizations *organization.Service
	regions       *region.Service
	quotas        *quota.Service
	audit         *audit.Service
	webhooks      *webhook.Service
	secrets       *secret.Service
	jobs          *job.Service
	runners       *runner.Service
	registries    *registry.Service
	objects       *objects.Service
	snapshots     *snapshot.Service
	volumes       *volume.Service
	sandboxes     *sandbox.Service
	telemetry     *telemetry.Service
	dialer        *executor.Dialer
	executor      *executor.Executor // nil without a Client
	runnerID      string
	made          time.Time
	begun         atomic.Bool // the runner has been ready, or is not waited for any more
	api           *api.API
	proxy         *proxy.Proxy
	events        *events.Server
	gateway       *sshgateway.Gateway // nil without an address
	metrics       *metrics
	tracer        *observe.Tracer // nil without a provider
	observer      *observe.Observer

	handler http.Handler
	closers []func() error
	// stopping says that health checks are to fail, so that no more comes.
	stopping chan struct{}
	stop     func()
}

// New prepares a server: its directory, its database, its first user. It
// serves at once, but what happens by itself, such as making sandboxes, needs
// [Server.Run]. The caller must call [Server.Close].
func New(ctx context.Context, c Config) (*Server, error) {
	if err := c.Normalize(); err != nil {
		return nil, err
	}
	s := &Server{config: c, stopping: make(chan struct{}), made: time.Now()}
	s.stop = sync.OnceFunc(func() { close(s.stopping) })
	s.metrics, s.tracer = newMetrics(c.Version), observe.NewTracer(c.Tracer)
	s.observer = observe.New(observe.Config{Log: c.Log, Registerer: s.metrics.registry, Tracer: s.tracer, Address: s.address})
	if err := s.build(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// AddRunner makes a runner of the system's in a region, "" for the default one,
// and returns the token that it joins with, which is shown this once. It is for
// a server that need not run, or that does so in another process: it touches
// the database and nothing else.
func AddRunner(ctx context.Context, c Config, regionID, name string) (string, error) {
	if err := c.Normalize(); err != nil {
		return "", err
	}
	s := &Server{config: c, stop: func() {}}
	token, err := s.addRunner(ctx, regionID, name)
	return token, errors.Join(err, s.Close())
}

func (s *Server) addRunner(ctx context.Context, regionID, name string) (string, error) {
	if err := s.open(ctx); err != nil {
		return "", err
	}
	d := s.config.Defaults
	s.regions = region.New(s.db, region.Config{})
	if err := s.regions.Bootstrap(ctx, d.RegionID, d.RegionName, d.EnforceQuotas); err != nil {
		return "", err
	}
	runners := runner.NewService(s.db, &runner.Options{Log: s.config.Log, Regions: runnerRegions{s}, Sealer: s.box})
	if regionID == "" {
		regionID = d.RegionID
	}
	_, key, err := runners.AdminCreate(ctx, runner.New{RegionID: regionID, Name: name})
	if err != nil {
		return "", err
	}
	return runnerkey.Join{URL: s.config.URL + "/api", Key: key}.String(), nil
}

// AdminKey returns the API key of the first user, if New has made that user;
// else "".
func (s *Server) AdminKey() string { return s.adminKey }

// API returns the API, for its OpenAPI document.
func (s *Server) API() *api.API { return s.api }

// Shutdown says that the server is about to end: it is not ready any more,
// and goes on with what it does. It is for whoever shuts down the http.Server.
func (s *Server) Shutdown() { s.stop() }

// Close frees what New has opened. Run must have returned.
func (s *Server) Close() error {
	s.stop()
	var errs []error
	for i := len(s.closers) - 1; i >= 0; i-- {
		errs = append(errs, s.closers[i]())
	}
	s.closers = nil
	return errors.Join(errs...)
}

// derive makes a key of 32 bytes for one purpose.
func (s *Server) derive(purpose string) []byte {
	b, err := hkdf.Key(sha256.New, []byte(s.key), nil, "daytona "+purpose, 32)
	if err != nil {
		panic(err) // 32 bytes are not too many
	}
	return b
}

// encryptionKey is the configured one, or one that is made once.
func (s *Server) encryptionKey() (string, error) {
	if s.config.EncryptionKey != "" {
		return s.config.EncryptionKey, nil
	}
	name := filepath.Join(s.config.Dir, "encryption.key")
	b, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		b = []byte(rand.Text() + rand.Text() + "\n")
		f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return "", err
		}
		if _, err = f.Write(b); err == nil {
			err = f.Sync()
		}
		if err := errors.Join(err, f.Close()); err != nil {
			os.Remove(name)
			return "", err
		}
	} else if err != nil {
		return "", err
	}
	key := strings.TrimSpace(string(b))
	if len(key) < 16 {
		return "", &daytona.Error{Kind: daytona.KindInvalid, Op: "read encryption key", Subject: name, Message: "it has fewer than 16 bytes; what was encrypted can't be read without it"}
	}
	return key, nil
}

// open opens what all else is in.
func (s *Server) open(ctx context.Context) error {
	c := s.config
	at, err := url.Parse(c.URL)
	if err != nil {
		return err
	}
	s.prefix = at.Path
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return &daytona.Error{Kind: daytona.KindUnavailable, Op: "make directory", Subject: c.Dir, Err: err}
	}
	if s.key, err = s.encryptionKey(); err != nil {
		return err
	}
	if s.box, err = seal.New(s.key); err != nil {
		return err
	}
	if s.db, err = store.Open(ctx, c.Database, c.Log); err != nil {
		return err
	}
	s.closers = append(s.closers, s.db.Close)
	return s.db.Migrate(ctx)
}

func (s *Server) build(ctx context.Context) error {
	c := s.config
	err := s.open(ctx)
	if err != nil {
		return err
	}
	if s.outbound, err = outbound.New(outbound.Config{Allow: c.AllowedAddresses}); err != nil {
		return err
	}
	if err = s.buildPeople(ctx); err != nil {
		return err
	}
	if err = s.buildSandboxes(ctx); err != nil {
		return err
	}
	if err = s.bootstrap(ctx); err != nil {
		return err
	}
	if err = s.buildEdges(ctx); err != nil {
		return err
	}
	s.buildAPI()
	return s.buildRunner(ctx)
}

// buildPeople makes what knows people: who they are and what they may.
func (s *Server) buildPeople(ctx context.Context) error {
	c, d := s.config, s.config.Defaults
	s.keys = apikey.New(s.db, c.Log)
	s.regions = region.New(s.db, region.Config{})
	s.quotas = quota.New(s.db, quota.Config{Regions: s.regions, Defaults: quota.Defaults{
		CPU: d.TotalCPU, Memory: d.TotalMemory, Disk: d.TotalDisk, MaxCPU: d.MaxCPU, MaxMemory: d.MaxMemory, MaxDisk: d.MaxDisk,
		Snapshots: d.Snapshots, Volumes: d.Volumes, MaxSnapshotSize: d.MaxSnapshotSize, Secrets: 100, SecretsPerSandbox: 20, Processing: 3,
	}})
	s.organizations = organization.New(s.db, organization.Config{
		Users: lazyUsers{s}, Keys: s.keys, Regions: s.regions, Quotas: s.quotas, Box: s.box, Outbound: s.outbound,
		Deleting: []func(context.Context, string) error{
			func(ctx context.Context, id string) error { return s.sandboxes.Unused(ctx, id) },
			s.keys.DeleteForOrganization, s.regions.DeleteAll, s.quotas.DeleteAll,
			func(ctx context.Context, id string) error { return s.secrets.DeleteAll(ctx, id) },
			func(ctx context.Context, id string) error { return s.webhooks.DeleteAll(ctx, id) },
			func(ctx context.Context, id string) error { return s.telemetry.DeleteAll(ctx, id) },
			func(ctx context.Context, id string) error { return s.objects.Revoke(ctx, id) },
			func(ctx context.Context, id string) error { return s.registries.Revoke(ctx, id) },
		},
		Suspending: s.revokePush,
		// Somebody whom nobody has verified is somebody the operator has let in.
		SkipEmailVerification: c.OIDC.Issuer == "", TrustDomains: c.OIDC.TrustDomains,
		LimitedEgress: d.LimitNetworkEgress, PersonalRegion: d.RegionID, Log: c.Log,
	})
	s.regions.Wire(region.Config{Quotas: s.quotas, Runners: lazyRunners{s}, Organizations: s.organizations, Outbound: s.outbound})
	s.users = user.New(s.db, s.organizations, c.Log)
	s.audit = audit.New(s.db, audit.Config{Log: c.Log})
	s.closers = append(s.closers, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		return s.audit.Close(ctx)
	})
	s.webhooks = webhook.New(s.db, webhook.Config{Outbound: s.outbound, Box: s.box, PortalURL: c.URL + "/dashboard/webhooks", Log: c.Log})
	s.secrets = secret.New(s.db, secret.Config{Quotas: s.quotas, Box: s.box})

	tokens := authn.TokensConfig{Issuer: c.OIDC.Issuer, PublicIssuer: c.OIDC.PublicIssuer, Audience: c.OIDC.Audience, Reserved: []string{user.AdminID}, Log: c.Log}
	if c.OIDC.Issuer == "" {
		var err error
		s.issuer, err = issuer.New(issuer.Config{
			DB: s.db, Users: s.users, URL: c.URL + issuerPath, Audience: c.OIDC.Audience, Secret: s.derive("issuer"), Address: s.address, Log: c.Log,
			SSO: ssoLogin{s}, HTTP: s.outbound.Client(10 * time.Second),
			Clients: []issuer.Client{{
				ID: c.OIDC.ClientID, Name: "Daytona",
				RedirectURIs: []string{
					c.URL, c.URL + "/dashboard", c.URL + "/dashboard/", "http://localhost/callback", "http://127.0.0.1/callback",
					c.Proxy.Protocol + "://" + c.Proxy.Domain + "/callback",
				},
				LogoutURIs: []string{c.URL, c.URL + "/dashboard", c.URL + "/dashboard/"},
			}},
		})
		if err != nil {
			return err
		}
		tokens.Issuer, tokens.PublicIssuer, tokens.KeySet, tokens.Reserved = c.URL+issuerPath, c.URL+issuerPath, s.issuer, nil
	}
	verifier, err := authn.NewTokens(tokens)
	if err != nil {
		return err
	}
	s.authenticator, err = authn.New(authn.Config{
		Services: map[identity.Kind]string{
			identity.Proxy: c.Services.ProxyKey, identity.SSHGateway: c.Services.SSHGatewayKey,
			identity.Collector: c.Services.CollectorKey, identity.HealthCheck: c.Services.HealthCheckKey,
		},
		Tokens: verifier, Keys: s.keys, Users: s.users, Members: s.organizations, Runners: lazyRunners{s}, Regions: s.regions,
	})
	if err != nil {
		return err
	}
	rules := map[string]ratelimit.Rule{}
	for name, l := range c.Limits {
		rules[name] = ratelimit.Rule{TTL: time.Duration(l.TTL) * time.Second, Limit: l.Limit}
	}
	limits := ratelimit.Config{Rules: rules, Organizations: s.organizations, Log: c.Log}
	if c.Redis != "" {
		o, err := redis.ParseURL(c.Redis)
		if err != nil {
			return err // Normalize has read it
		}
		s.redis = redis.NewClient(o)
		s.closers = append(s.closers, s.redis.Close)
		limits.Redis = s.redis
	}
	s.limiter, err = ratelimit.New(limits)
	return err
}

// buildSandboxes makes what knows sandboxes, what they are made from and where
// they are.
func (s *Server) buildSandboxes(ctx context.Context) error {
	c := s.config
	name, err := os.Hostname()
	if err != nil {
		return err
	}
	// Whoever looks into the database sees which server does what one does for all.
	name += "/" + rand.Text()
	s.jobs = job.NewService(s.db, &job.Options{Name: name, Log: c.Log, Sealer: s.box, Done: s.metrics.jobDone})
	s.runners = runner.NewService(s.db, &runner.Options{
		Name: name, Log: c.Log, Regions: runnerRegions{s}, Sandboxes: lazySandboxes{s}, Sealer: s.box, Silence: c.Runners.Silence, LostAfter: c.Runners.LostAfter,
	})
	o := objects.Config{DB: s.db, Key: s.derive("objects"), URL: c.URL, Bucket: c.Objects.Bucket, Active: s.organizations.Active, ParcelUsed: s.parcelUsed, Log: c.Log}
	if x := c.Objects; x.Endpoint != "" {
		o.External = &objects.External{Endpoint: x.Endpoint, Region: x.Region, AccessKey: x.AccessKey, SecretKey: x.SecretKey, Bucket: x.Bucket, STS: x.STSEndpoint}
		if x.AccountID != "" && x.RoleName != "" {
			o.External.Role = "arn:aws:iam::" + x.AccountID + ":role/" + x.RoleName
		}
	} else {
		if o.Store, err = objects.OpenStore(filepath.Join(c.Dir, "objects")); err != nil {
			return err
		}
		s.closers = append(s.closers, o.Store.Close)
	}
	if s.objects, err = objects.New(o); err != nil {
		return err
	}
	s.events = events.New(events.Config{DB: s.db, Authenticator: s.authenticator, Log: c.Log})
	u, err := url.Parse(c.URL)
	if err != nil {
		return err
	}
	s.registries = registry.New(registry.Config{DB: s.db, Sealer: s.box, Check: s.outbound.Check, Host: u.Host, Active: s.organizations.Active})
	s.dialer = &executor.Dialer{Locate: s.locate, Local: func(id string) *executor.Executor {
		if s.executor != nil && s.executor.ID() == id {
			return s.executor
		}
		return nil
	}}
	s.snapshots = snapshot.New(snapshot.Config{
		DB: s.db, Jobs: snapshotJobs{s}, Runners: snapshotRunners{s}, Organizations: snapshotOrganizations{s},
		Credentials: s.imageCredentials, Contexts: s.objects.Contexts, CheckHost: s.checkRegistry,
		Parcel: func(ctx context.Context, organizationID, ref string) (any, error) {
			return sandboxParcels{s}.Parcel(ctx, organizationID, ref, false)
		},
		Needed:  func(ctx context.Context, ref string) (bool, error) { return s.sandboxes.Needed(ctx, ref) },
		Event:   s.snapshotEvent,
		Changed: nil, Default: c.Defaults.Snapshot, ProxyURL: c.Proxy.ToolboxURL, Log: c.Log,
	})
	s.volumes = volume.New(volume.Config{
		DB: s.db, Storage: s.objects, Active: s.organizations.Active,
		Limit: func(ctx context.Context, id string) (int, error) {
			l, err := s.quotas.Limits(ctx, id)
			if err != nil {
				return 0, err
			}
			return l.Volumes, nil
		},
		InUse: func(ctx context.Context, organizationID, id string) (bool, error) {
			return s.sandboxes.VolumeUsed(ctx, organizationID, id)
		},
		Event: s.volumeEvent, Log: c.Log,
	})
	s.sandboxes, err = sandbox.New(sandbox.Config{
		DB: s.db, Key: s.derive("sandbox"), Holder: name,
		Deps: sandbox.Deps{
			Jobs: sandboxJobs{s}, Runners: sandboxRunners{s.runners}, Snapshots: sandboxSnapshots{s}, Regions: sandboxRegions{s}, Quotas: sandboxQuotas{s.quotas},
			Organizations: sandboxOrganizations{s}, Volumes: sandboxVolumes{s}, Secrets: sandboxSecrets{s.secrets}, Parcels: sandboxParcels{s},
		},
		PreviewURL: c.Proxy.Protocol + "://{{PORT}}-{{sandboxId}}." + c.Proxy.Domain, ProxyURL: c.Proxy.ToolboxURL, ToolboxURL: c.Proxy.ToolboxURL + "/toolbox",
		SSHGateway: c.SSH.URL, MaxAutoArchive: c.Defaults.MaxAutoArchive, DefaultSnapshot: c.Defaults.Snapshot,
		LostAfter: c.Runners.LostAfter, Sweep: min(10*time.Second, c.Runners.LostAfter/2),
		WakeOn: []string{snapshot.Topic, runner.TopicState}, Event: s.sandboxEvent, Log: c.Log,
	})
	if err != nil {
		return err
	}
	s.telemetry = telemetry.New(telemetry.Config{DB: s.db, Sources: telemetrySources{s}, Retention: time.Duration(c.SandboxTelemetry.RetentionHours) * time.Hour, Log: c.Log})
	s.jobs.OnDone("SANDBOX", s.sandboxJobDone)
	s.jobs.OnDone("BACKUP", s.sandboxJobDone)
	s.jobs.OnDone("SNAPSHOT", s.snapshotJobDone)
	return nil
}

// bootstrap makes what must be there: a region, the first user, a snapshot.
func (s *Server) bootstrap(ctx context.Context) error {
	c, d := s.config, s.config.Defaults
	if err := s.regions.Bootstrap(ctx, d.RegionID, d.RegionName, d.EnforceQuotas); err != nil {
		return err
	}
	var err error
	if s.adminKey, err = s.users.Bootstrap(ctx, s.keys, c.Admin.Email, c.Admin.Key, d.RegionID); err != nil {
		return err
	}
	if c.Admin.Password != "" && s.issuer != nil {
		// Once: setting it again would log the user out.
		has, err := s.issuer.HasPassword(ctx, user.AdminID)
		if err == nil && !has {
			err = s.issuer.SetPassword(ctx, user.AdminID, c.Admin.Email, c.Admin.Password)
		}
		if err != nil {
			return err
		}
	}
	organizationID, err := s.organizations.Personal(ctx, user.AdminID)
	if err != nil {
		return err
	}
	return s.snapshots.Bootstrap(ctx, organizationID, d.Snapshot, d.Image)
}

// topics are those that tell of rights that may have ended; see package live.
func topics() []string {
	return []string{apikey.Topic, organization.TopicMember, organization.TopicLeft, organization.TopicDeleted, sandbox.TopicChanged}
}

// buildEdges makes what connects to sandboxes from outside.
func (s *Server) buildEdges(ctx context.Context) error {
	c := s.config
	domain := c.Proxy.Domain
	if host, _, err := net.SplitHostPort(domain); err == nil {
		domain = host
	}
	p := proxy.Config{
		Sandboxes: proxySandboxes{s.sandboxes, s}, Authenticator: s.authenticator, Dialer: s.dialer, Builds: proxyBuilds{s}, Touch: s.touch,
		Domains: []string{domain}, Protocol: c.Proxy.Protocol, Key: s.derive("proxy"), Version: c.Version, TrustedProxies: c.TrustedProxies, Tracer: s.tracer, Log: c.Log,
	}
	if s.issuer != nil {
		p.Login = &proxy.Login{Issuer: c.URL + issuerPath, ClientID: c.OIDC.ClientID, Audience: c.OIDC.Audience, Client: &http.Client{
			Transport: executor.InProcess(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.ServeHTTP(w, r) })), Timeout: 10 * time.Second,
		}}
	} else {
		p.Login = &proxy.Login{Issuer: c.OIDC.PublicIssuer, Internal: c.OIDC.Issuer, ClientID: c.OIDC.ClientID, Audience: c.OIDC.Audience}
	}
	var err error
	if s.proxy, err = proxy.New(p); err != nil {
		return err
	}
	if c.SSH.Listen == "" {
		return nil
	}
	key, err := sshgateway.HostKey(filepath.Join(c.Dir, "ssh_host_ed25519_key"))
	if err != nil {
		return err
	}
	s.gateway, err = sshgateway.New(sshgateway.Config{Tokens: sshTokens{s}, Dialer: s.dialer, HostKey: key, Touch: s.touch, Log: c.Log})
	return err
}

func (s *Server) buildAPI() {
	c := s.config
	s.api = api.New(api.Config{
		Authenticator: s.authenticator, Limiter: s.limiter, Version: c.Version, Log: c.Log, TrustedProxies: c.TrustedProxies,
		Maintenance: func() bool { return c.Maintenance },
		Done: func(e api.Entry) {
			if v, ok := api.Audit(e); ok {
				s.audit.Record(v)
			}
		},
	})
	api.RegisterConfig(s.api, s.wireConfig)
	api.RegisterHealth(s.api, map[string]func(context.Context) error{
		"database": s.db.Ping,
		"server": func(context.Context) error {
			select {
			case <-s.stopping:
				return errors.New("the server is about to end")
			default:
				return nil
			}
		},
		"runner": s.runnerBegun,
	}, c.Log)
	api.RegisterUsers(s.api, s.users, nil)
	api.RegisterAdminUsers(s.api, s.users, personalQuota{s})
	api.RegisterAPIKeys(s.api, s.keys)
	api.RegisterOrganizations(s.api, s.organizations, s.quotas, s.regions, s.snapshots, s.volumes, s.sandboxes)
	api.RegisterRegions(s.api, s.regions)
	api.RegisterAudit(s.api, s.audit)
	api.RegisterWebhooks(s.api, s.webhooks, s.organizations)
	api.RegisterSecrets(s.api, s.secrets)
	api.RegisterJobs(s.api, s.jobs)
	api.RegisterRunners(s.api, s.runners, runnerContents{s})
	api.RegisterSnapshots(s.api, s.snapshots)
	api.RegisterVolumes(s.api, s.volumes)
	api.RegisterRegistries(s.api, s.registries)
	api.RegisterObjects(s.api, s.objects)
	api.RegisterSandbox(s.api, s.sandboxes, api.SandboxOptions{
		Organization: func(ctx context.Context, id string) (wire.Organization, error) {
			o, err := s.organizations.Get(ctx, id)
			if err != nil {
				return wire.Organization{}, err
			}
			l, err := s.quotas.Limits(ctx, id)
			if err != nil {
				return wire.Organization{}, err
			}
			return api.OrganizationWire(o, l), nil
		},
		RegionQuota: func(ctx context.Context, organizationID, regionID, class string) (wire.RegionQuota, error) {
			q, err := s.quotas.Effective(ctx, organizationID, regionID, class)
			if err != nil {
				return wire.RegionQuota{}, err
			}
			return api.RegionQuotaWire(q), nil
		},
		BuildLog: s.buildLog,
	})
	api.RegisterTelemetry(s.api, s.telemetry, func(ctx context.Context, organizationID, idOrName string) (string, error) {
		sb, err := s.sandboxes.Get(ctx, organizationID, idOrName)
		if err != nil {
			return "", err
		}
		return sb.ID, nil
	})
	api.RegisterPreview(s.api, proxySandboxes{s.sandboxes, s})
	api.RegisterToolbox(s.api, s.proxy)
	s.handler = s.routes()
	s.metrics.registry.MustRegister(&state{s: s})
}

// buildRunner makes this process a runner, if it has what that takes.
func (s *Server) buildRunner(ctx context.Context) error {
	c, d := s.config, s.config.Defaults
	if c.Client == nil {
		return nil
	}
	name, err := os.Hostname()
	if err != nil {
		return err
	}
	// The same after a restart, and another for each machine of several.
	key := "dtn_" + hex.EncodeToString(s.derive("runner "+name))
	r, err := s.runners.Ensure(ctx, runner.New{RegionID: d.RegionID, Name: name, Key: key, CPU: d.RunnerCPU, Memory: d.RunnerMemory, Disk: d.RunnerDisk})
	if err != nil {
		return err
	}
	s.runnerID = r.ID
	peer := ""
	if c.PeerURL != "" {
		peer = c.PeerURL + runnerPath
	}
	s.executor, err = executor.New(executor.Config{
		ProxyURL: peer, Client: c.Client, URL: c.URL + "/api", Key: key, Transport: executor.InProcess(s), Tracer: s.tracer,
		Measure: time.Duration(c.SandboxTelemetry.Interval) * time.Millisecond, Dir: filepath.Join(c.Dir, "runner"), Contexts: s.objects,
		Images: c.Images, Move: c.Objects.Endpoint != "", Unenforced: c.Unenforced, Version: c.Version, Capacity: daytona.Resources{CPU: d.RunnerCPU, Memory: d.RunnerMemory, Disk: d.RunnerDisk}, Log: c.Log.With("runner", r.ID),
	})
	return err
}

// Run does what happens by itself, until ctx ends: it makes and ends
// sandboxes, runs the jobs of the runner in this process, serves SSH. Sandboxes
// that run go on when it returns.
func (s *Server) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	run := func(name string, f func(context.Context) error) {
		wg.Go(func() {
			if err := f(ctx); err != nil && ctx.Err() == nil {
				cancel(fmt.Errorf("%s: %w", name, err))
			}
		})
	}
	quiet := func(name string, f func(context.Context)) {
		run(name, func(ctx context.Context) error { f(ctx); return nil })
	}
	run("API keys", s.keys.Run)
	run("users", s.users.Run)
	run("organizations", s.organizations.Run)
	run("suspension", s.suspend)
	run("audit", s.audit.Run)
	run("webhooks", s.webhooks.Run)
	run("jobs", s.jobs.Run)
	run("runners", s.runners.Run)
	run("snapshots", s.snapshots.Run)
	run("volumes", s.volumes.Run)
	run("objects", s.objects.Run)
	run("sandboxes", s.sandboxes.Run)
	run("telemetry", s.telemetry.Run)
	if s.issuer != nil {
		run("issuer", s.issuer.Run)
	}
	quiet("proxy", func(ctx context.Context) { s.proxy.Run(ctx, s.db, topics()...) })
	quiet("events", func(ctx context.Context) { s.events.Run(ctx, topics()...) })
	if s.gateway != nil {
		l, err := net.Listen("tcp", s.config.SSH.Listen)
		if err != nil {
			cancel(err)
		} else {
			quiet("SSH", func(ctx context.Context) { s.gateway.Run(ctx, s.db, topics()...) })
			run("SSH", func(ctx context.Context) error { return s.gateway.Serve(ctx, l) })
		}
	}
	if s.config.Metrics.Listen != "" {
		l, err := net.Listen("tcp", s.config.Metrics.Listen)
		if err != nil {
			cancel(err)
		} else {
			run("metrics", func(ctx context.Context) error { return s.serveMetrics(ctx, l) })
		}
	}
	if s.executor != nil {
		run("runner", s.executor.Run)
	}
	<-ctx.Done()
	wg.Wait()
	return context.Cause(ctx)
}

// runnerWithin is how long the server is not ready for the lack of the runner in
// its process. One that is ill for longer is no reason to serve nothing at all.
const runnerWithin = time.Minute

// runnerBegun is an error until the runner in this process has taken sandboxes:
// who made one in the first moments of a server was told that there are no
// runners.
func (s *Server) runnerBegun(ctx context.Context) error {
	if s.executor == nil || s.begun.Load() {
		return nil
	}
	r, err := s.runners.Runner(ctx, s.runnerID)
	if err == nil && !r.Usable() && time.Since(s.made) < runnerWithin {
		err = errors.New("the runner in this process does not take sandboxes yet")
	}
	if err == nil {
		s.begun.Store(true)
	}
	return err
}

// Ready waits until the runner in this process takes sandboxes; where there is
// none, it does not wait. Run must be running.
func (s *Server) Ready(ctx context.Context) error {
	if s.executor == nil {
		return nil
	}
	changed, end := s.db.Subscribe(runner.TopicState)
	defer end()
	again := time.NewTicker(time.Second)
	defer again.Stop()
	for {
		r, err := s.runners.Runner(ctx, s.runnerID)
		if err != nil || r.Usable() {
			return err
		}
		select {
		case <-changed:
		case <-again.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Preview reports whether a request is for the host of a preview, for a program
// that has hosts of its own: it must get here whatever its path is.
func (s *Server) Preview(r *http.Request) bool { return s.proxy.Preview(r) }

// ServeHTTP serves everything. Where a program has mounted the server below a
// path, that path is part of Config.URL, and still of the request's.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.handler.ServeHTTP(w, r) }

// routes tells by host and path who serves a request. Previews come first:
// what a sandbox serves is below a host of its own, whatever its path.
func (s *Server) routes() http.Handler {
	s3 := s.objects.Handler()
	var images http.Handler
	if dir, err := internalobjects.OpenDir(filepath.Join(s.config.Dir, "registry", "blobs")); err != nil {
		s.config.Log.Error("the registry is not served", "err", err)
	} else if h, err := registry.NewHandler(s.registries, dir, filepath.Join(s.config.Dir, "registry", "uploads"), s.config.Log); err != nil {
		s.config.Log.Error("the registry is not served", "err", err)
	} else {
		s.closers = append(s.closers, h.Close)
		images = h
	}
	// Each part is observed under its own name; but for the API, which bounds its
	// bodies itself, a body may be of any length and must only keep coming.
	part := func(name string, h http.Handler) http.Handler { return s.observer.Handler(name, patient(h)) }
	proxied, stored, events := part("proxy", s.proxy), part("objects", s3), part("events", s.events)
	collected := part("telemetry", s.telemetry)
	rest := s.observer.Handler("api", s.api)
	page := part("api", apiPage(s.api.OpenAPI()))
	document := part("api", http.HandlerFunc(s.document))
	scraped := s.metricsByToken()
	if scraped != nil {
		scraped = part("metrics", scraped)
	}
	var issued http.Handler
	if s.issuer != nil {
		issued = part("login", s.issuer)
	}
	if images != nil {
		images = part("registry", images)
	}
	own := part("runner", http.StripPrefix(runnerPath, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.executor.Handler().ServeHTTP(w, r) })))
	other := part("other", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/" {
			http.Redirect(w, r, s.config.URL+"/dashboard"+query(r), http.StatusFound)
			return
		}
		http.NotFound(w, r)
	}))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.proxy.Matches(r) {
			proxied.ServeHTTP(w, r)
			return
		}
		// Signatures of objects are of the whole path, as are the provider's URLs.
		whole := r
		r = within(r, s.prefix)
		path := r.URL.Path
		switch {
		case s.proxy.Matches(r): // a toolbox below the prefix
			proxied.ServeHTTP(w, r)
		case objects.Claims(r):
			stored.ServeHTTP(w, whole)
		case path == "/api/socket.io" || strings.HasPrefix(path, "/api/socket.io/"):
			events.ServeHTTP(w, r)
		case strings.HasPrefix(path, telemetry.Path+"/"):
			collected.ServeHTTP(w, r)
		case path == "/api-json":
			document.ServeHTTP(w, r)
		case path == "/api" && (r.Method == http.MethodGet || r.Method == http.MethodHead):
			page.ServeHTTP(w, r)
		case path == "/api" || strings.HasPrefix(path, "/api/"):
			rest.ServeHTTP(w, r)
		case issued != nil && (path == issuerPath || strings.HasPrefix(path, issuerPath+"/")):
			issued.ServeHTTP(w, whole)
		case s.executor != nil && s.config.PeerURL != "" && strings.HasPrefix(path, runnerPath+"/"):
			own.ServeHTTP(w, r)
		case images != nil && (path == "/v2" || strings.HasPrefix(path, "/v2/")):
			images.ServeHTTP(w, r)
		case scraped != nil && path == "/metrics":
			scraped.ServeHTTP(w, r)
		default:
			other.ServeHTTP(w, r)
		}
	})
}

// within returns r as it is below a prefix of its path: where a program has
// mounted the server.
func within(r *http.Request, prefix string) *http.Request {
	rest, ok := strings.CutPrefix(r.URL.Path, prefix)
	if prefix == "" || !ok || rest != "" && rest[0] != '/' {
		return r
	}
	r2 := r.WithContext(r.Context())
	u := *r.URL
	if u.Path = rest; rest == "" {
		u.Path = "/"
	}
	u.RawPath = strings.TrimPrefix(u.RawPath, prefix)
	r2.URL = &u
	return r2
}

// document serves the OpenAPI document.
func (s *Server) document(w http.ResponseWriter, r *http.Request) {
	observe.From(r.Context()).Operation = "document"
	b, err := s.api.OpenAPI().Downgrade()
	if err != nil {
		http.Error(w, "the document can't be written", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.Write(b)
}

func query(r *http.Request) string {
	if r.URL.RawQuery == "" {
		return ""
	}
	return "?" + r.URL.RawQuery
}

// wireConfig is what clients are told of the server.
func (s *Server) wireConfig() wire.DaytonaConfiguration {
	c := s.config
	issuerURL := c.OIDC.PublicIssuer
	if s.issuer != nil {
		issuerURL = c.URL + issuerPath
	}
	v := wire.DaytonaConfiguration{
		Version: c.Version, OIDC: wire.OIDCConfig{Issuer: issuerURL, ClientID: c.OIDC.ClientID, Audience: c.OIDC.Audience},
		Announcements: map[string]wire.Announcement{}, ProxyTemplateURL: c.Proxy.Protocol + "://{{PORT}}-{{sandboxId}}." + c.Proxy.Domain,
		ProxyToolboxURL: c.Proxy.ToolboxURL + "/toolbox", DefaultSnapshot: c.Defaults.Snapshot, DashboardURL: c.URL + "/dashboard",
		MaxAutoArchiveInterval: float64(c.Defaults.MaxAutoArchive), MaintenanceMode: c.Maintenance, Environment: c.Environment,
	}
	if s.gateway != nil {
		host, port, err := net.SplitHostPort(c.SSH.URL)
		if err != nil {
			host, port = c.SSH.URL, "22"
		}
		command := "ssh {{TOKEN}}@" + host
		if port != "22" {
			command = "ssh -p " + port + " {{TOKEN}}@" + host
		}
		v.SSHGatewayCommand, v.SSHGatewayPublicKey = &command, new(s.gateway.PublicKey())
	}
	entry := func(name string) *wire.RateLimitEntry {
		r, ok := s.limiter.Rule(name)
		if !ok {
			return nil
		}
		return &wire.RateLimitEntry{TTL: new(r.TTL.Seconds()), Limit: new(float64(r.Limit))}
	}
	v.RateLimit = &wire.RateLimitConfig{Authenticated: entry("authenticated"), SandboxCreate: entry("sandbox-create"), SandboxLifecycle: entry("sandbox-lifecycle")}
	return v
}

// address is where a request comes from, for the login's own limits.
func (s *Server) address(r *http.Request) netip.Addr {
	return api.ClientAddress(r, s.config.TrustedProxies)
}
