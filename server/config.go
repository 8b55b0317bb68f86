package server

import (
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"go.opentelemetry.io/otel/trace"

	"github.com/daytona-go/daytona"
)

// Config says what a server is to be. The tag secret is for who prints one. The zero Config, with a Dir, is one on
// http://localhost:3000 with an embedded database, and without a runner unless
// Client is set.
type Config struct {
	// URL is where clients reach the server: scheme, host and perhaps a path,
	// without /api. Defaults to "http://localhost:3000".
	URL string `yaml:"url"`
	// Dir has what the server keeps: the database, objects, keys. Required.
	Dir string `yaml:"dir"`
	// Database is the URL of the database, see store.Open. Defaults to the file
	// daytona.db in Dir. With PostgreSQL, several servers are one.
	Database string `yaml:"database" secret:"url"`
	// Redis is the URL of a Redis that several servers count requests in. Defaults
	// to none: each counts its own.
	Redis string `yaml:"redis" secret:"url"`
	// EncryptionKey encrypts what must be readable again: secrets, passwords of
	// registries, tokens of sandboxes. At least 16 bytes; all servers of one
	// database need the same. Defaults to one that is made once and kept in Dir.
	EncryptionKey string `yaml:"encryptionKey" secret:"value"`
	// PeerURL is where the other servers of the database reach this one, and no
	// load balancer is between: the sandboxes of the runner in this process are
	// reached by it from there. Defaults to none: they are reached by this server
	// alone.
	PeerURL string `yaml:"peerUrl"`
	// Version is what clients are told. Defaults to "0.0.0-dev".
	Version string `yaml:"-"`
	// Environment is what clients are told of what this server is for. Defaults to
	// "production".
	Environment string `yaml:"environment"`
	// Maintenance answers every request with 503.
	Maintenance bool `yaml:"maintenance"`
	// TrustedProxies are those whose X-Forwarded-For is believed. Defaults to none.
	TrustedProxies []netip.Prefix `yaml:"trustedProxies"`
	// AllowedAddresses are addresses, prefixes ("10.1.0.0/16") and names
	// ("hooks.internal", "*.corp.example") beyond the public internet that the
	// server and its runners may connect to because a user says so: registries,
	// webhooks, identity providers. Defaults to none.
	AllowedAddresses []string `yaml:"allowedAddresses"`

	Admin    AdminConfig    `yaml:"admin"`
	OIDC     OIDCConfig     `yaml:"oidc"`
	Defaults DefaultsConfig `yaml:"defaults"`
	Proxy    ProxyConfig    `yaml:"proxy"`
	SSH      SSHConfig      `yaml:"ssh"`
	Objects  ObjectsConfig  `yaml:"objects"`
	Limits   LimitsConfig   `yaml:"limits"`
	// Images has the backend's names, such as "oci:/srv/images:python", for
	// references of images that users may write, such as "python:3.12": on a
	// machine that reaches no registry it is all there is. Defaults to none.
	Images map[string]string `yaml:"images"`
	// SandboxTelemetry is what is kept of what sandboxes use and say.
	SandboxTelemetry SandboxTelemetryConfig `yaml:"sandboxTelemetry"`
	// Unenforced are limits that the backend of the runner in this process can't
	// enforce here and that are left out, in place of refusing sandboxes: "cpu",
	// "memory", "disk". Defaults to none.
	Unenforced []string       `yaml:"unenforced"`
	Services   ServicesConfig `yaml:"services"`
	Runners    RunnersConfig  `yaml:"runners"`
	Metrics    MetricsConfig  `yaml:"metrics"`

	// Client is what the runner in this process runs sandboxes on. The server
	// does not close it. Defaults to none: runners are other processes.
	Client *daytona.Client `yaml:"-"`
	// Tracer makes the spans of what the server does, and of what its runner and
	// its proxy ask of others. Defaults to none: no span is made.
	Tracer trace.TracerProvider `yaml:"-"`
	// Log gets a line for every request, and what goes wrong. Defaults to
	// slog.Default().
	Log *slog.Logger `yaml:"-"`
}

// MetricsConfig is how the server's own metrics are reached; see also
// Server.Metrics.
type MetricsConfig struct {
	// Listen is the address of a listener of their own, such as "localhost:9464",
	// which gives them to whoever asks. Defaults to none.
	Listen string `yaml:"listen"`
	// Token opens /metrics, as a bearer token: at least 16 bytes. Defaults to none:
	// there is no /metrics.
	Token string `yaml:"token" secret:"value"`
}

// AdminConfig is the first user, who may do everything.
type AdminConfig struct {
	// Key is the API key of the first user. Defaults to one that is made at the
	// first start; Server.AdminKey returns it, that once.
	Key string `yaml:"key" secret:"value"`
	// Email and Password are what the first user logs in with. Without a password,
	// nobody can log in as that user until one is set.
	Email    string `yaml:"email"`
	Password string `yaml:"password" secret:"value"`
}

// OIDCConfig is who vouches for users.
type OIDCConfig struct {
	// Issuer is the base URL of an OIDC provider. Defaults to the one that is part
	// of the server.
	Issuer string `yaml:"issuer"`
	// PublicIssuer is the same as browsers reach it. Defaults to Issuer.
	PublicIssuer string `yaml:"publicIssuer"`
	// ClientID and Audience default to "daytona".
	ClientID string `yaml:"clientId"`
	Audience string `yaml:"audience"`
	// TrustDomains takes the word of organizations for which domains of addresses
	// are theirs, for a server whose organizations are all of one owner. Defaults to
	// false: a TXT record of _daytona.DOMAIN must say "organization=ID".
	TrustDomains bool `yaml:"trustDomains"`
}

// DefaultsConfig is what is there from the start, and what organizations have
// unless they are given something else.
type DefaultsConfig struct {
	// Snapshot is what sandboxes are made from that name none. Defaults to
	// "default", of Image.
	Snapshot string `yaml:"snapshot"`
	// Image is what the default snapshot is made from. Defaults to that of the
	// backend.
	Image string `yaml:"image"`
	// RegionID and RegionName default to "us". Quotas are totals for
	// organizations; EnforceQuotas defaults to false, for a region of one's own.
	RegionID      string `yaml:"regionId"`
	RegionName    string `yaml:"regionName"`
	EnforceQuotas bool   `yaml:"enforceQuotas"`
	// The quotas of an organization. Defaults are in [Config.Normalize].
	TotalCPU           float64 `yaml:"totalCpu"`
	TotalMemory        float64 `yaml:"totalMemory"`     // GiB
	TotalDisk          float64 `yaml:"totalDisk"`       // GiB
	MaxCPU             float64 `yaml:"maxCpu"`          // of a sandbox
	MaxMemory          float64 `yaml:"maxMemory"`       // GiB, of a sandbox
	MaxDisk            float64 `yaml:"maxDisk"`         // GiB, of a sandbox
	Snapshots          int     `yaml:"snapshots"`       // how many
	MaxSnapshotSize    float64 `yaml:"maxSnapshotSize"` // GB
	Volumes            int     `yaml:"volumes"`         // how many
	MaxAutoArchive     int     `yaml:"maxAutoArchive"`  // minutes
	LimitNetworkEgress bool    `yaml:"limitNetworkEgress"`
	RunnerCPU          float64 `yaml:"runnerCpu"` // of the runner in this process; default: the machine's
	RunnerMemory       float64 `yaml:"runnerMemory"`
	RunnerDisk         float64 `yaml:"runnerDisk"`
}

// ProxyConfig is how ports of sandboxes are reached.
type ProxyConfig struct {
	// Domain is that of preview hosts, {port}-{id}.Domain, with a port if it is
	// not the protocol's. Defaults to "proxy." and the host of URL.
	Domain string `yaml:"domain"`
	// Protocol is http or https. Defaults to that of URL.
	Protocol string `yaml:"protocol"`
	// ToolboxURL is the base of {ToolboxURL}/toolbox/{id}. Defaults to URL.
	ToolboxURL string `yaml:"toolboxUrl"`
	// Warning shows browsers a page before the first preview of a sandbox.
	Warning bool `yaml:"warning"`
}

// SSHConfig is the SSH gateway.
type SSHConfig struct {
	// Listen is its address, such as ":2222". Defaults to none: no gateway.
	Listen string `yaml:"listen"`
	// URL is the host, or host:port, that users are told. Defaults to the host of
	// URL with the port of Listen.
	URL string `yaml:"url"`
}

// ObjectsConfig is the object storage for build contexts, volumes and archives.
type ObjectsConfig struct {
	// Endpoint is that of an S3. Defaults to the one that is part of the server,
	// which keeps objects in Dir.
	Endpoint    string `yaml:"endpoint"`
	STSEndpoint string `yaml:"stsEndpoint"`
	Region      string `yaml:"region"`
	AccessKey   string `yaml:"accessKey" secret:"value"`
	SecretKey   string `yaml:"secretKey" secret:"value"`
	Bucket      string `yaml:"bucket"` // Defaults to "daytona"
	AccountID   string `yaml:"accountId"`
	RoleName    string `yaml:"roleName"`
}

// SandboxTelemetryConfig is what is kept of what sandboxes use and say.
type SandboxTelemetryConfig struct {
	// RetentionHours is how long it is kept. Defaults to 24.
	RetentionHours int `yaml:"retentionHours"`
	// Interval is how often the runner in this process measures what sandboxes
	// use, in milliseconds. Defaults to 60,000; negative is never.
	Interval int `yaml:"interval"`
}

// LimitsConfig are the rate limits by name: anonymous, failed-auth,
// authenticated, sandbox-create and sandbox-lifecycle. One that is not there
// does not limit.
type LimitsConfig map[string]LimitConfig

// LimitConfig is a number of requests in a time.
type LimitConfig struct {
	TTL   int `yaml:"ttl"` // seconds
	Limit int `yaml:"limit"`
}

// RunnersConfig says when a runner is taken to be away.
type RunnersConfig struct {
	// Silence is how long a runner may say nothing until it is unresponsive and
	// gets no more sandboxes. Defaults to a minute.
	Silence time.Duration `yaml:"silence"`
	// LostAfter is after how long its sandboxes are taken to be lost: those that
	// have a backup are made again elsewhere. Defaults to ten minutes, and is not
	// less than Silence.
	LostAfter time.Duration `yaml:"lostAfter"`
}

// ServicesConfig are the keys by which services outside of this process are
// known. Defaults to none: nobody is.
type ServicesConfig struct {
	ProxyKey       string `yaml:"proxyKey" secret:"value"`
	SSHGatewayKey  string `yaml:"sshGatewayKey" secret:"value"`
	CollectorKey   string `yaml:"collectorKey" secret:"value"`
	HealthCheckKey string `yaml:"healthCheckKey" secret:"value"`
}

// Normalize sets what is not set to its default, and says what is wrong with
// the rest.
func (c *Config) Normalize() error {
	const op = "configure server"
	wrong := func(field string, value any, rule string) error {
		return &daytona.Error{Kind: daytona.KindInvalid, Op: op, Field: field, Value: value, Message: rule}
	}
	def := func(p *string, v string) {
		if *p == "" {
			*p = v
		}
	}
	num := func(p *float64, v float64) {
		if *p == 0 {
			*p = v
		}
	}
	whole := func(p *int, v int) {
		if *p == 0 {
			*p = v
		}
	}
	def(&c.URL, "http://localhost:3000")
	c.URL = strings.TrimSuffix(c.URL, "/")
	u, err := url.Parse(c.URL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return wrong("url", c.URL, "must be an http or https URL without query, fragment and user")
	}
	if c.Dir == "" {
		return wrong("dir", c.Dir, "must be set")
	}
	if c.Database == "" {
		c.Database = "sqlite://" + c.Dir + "/daytona.db"
	}
	if c.EncryptionKey != "" && len(c.EncryptionKey) < 16 {
		return wrong("encryptionKey", fmt.Sprintf("%d bytes", len(c.EncryptionKey)), "must have at least 16 bytes")
	}
	if t := c.Metrics.Token; t != "" && len(t) < 16 {
		return wrong("metrics.token", fmt.Sprintf("%d bytes", len(t)), "must have at least 16 bytes")
	}
	switch scheme, _, _ := strings.Cut(c.Database, ":"); scheme {
	case "sqlite", "postgres", "postgresql":
	default:
		return wrong("database", scheme, "must be a URL that begins with sqlite: or postgres:") // the rest may have a password
	}
	if c.Redis != "" {
		if _, err := redis.ParseURL(c.Redis); err != nil {
			return wrong("redis", nil, "must be a URL such as redis://localhost:6379")
		}
	}
	for field, v := range map[string]string{"oidc.issuer": c.OIDC.Issuer, "oidc.publicIssuer": c.OIDC.PublicIssuer, "objects.endpoint": c.Objects.Endpoint, "proxy.toolboxUrl": c.Proxy.ToolboxURL} {
		if u, err := url.Parse(v); v != "" && (err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "") {
			return wrong(field, v, "must be an http or https URL")
		}
	}
	for field, v := range map[string]string{"metrics.listen": c.Metrics.Listen, "ssh.listen": c.SSH.Listen} {
		if _, _, err := net.SplitHostPort(v); v != "" && err != nil {
			return wrong(field, v, `must be an address with a port, such as ":2222"`)
		}
	}
	for _, name := range c.Unenforced {
		if name != "cpu" && name != "memory" && name != "disk" {
			return wrong("unenforced", name, "must be cpu, memory or disk")
		}
	}
	c.PeerURL = strings.TrimSuffix(c.PeerURL, "/")
	if u, err := url.Parse(c.PeerURL); c.PeerURL != "" && (err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil) {
		return wrong("peerUrl", c.PeerURL, "must be an http or https URL without query, fragment and user")
	}
	def(&c.Version, "0.0.0-dev")
	def(&c.Environment, "production")
	def(&c.Admin.Email, "admin@localhost")
	def(&c.OIDC.ClientID, "daytona")
	def(&c.OIDC.Audience, "daytona")
	def(&c.OIDC.PublicIssuer, c.OIDC.Issuer)
	d := &c.Defaults
	def(&d.Snapshot, "default")
	def(&d.RegionID, "us")
	def(&d.RegionName, d.RegionID)
	num(&d.TotalCPU, 10)
	num(&d.TotalMemory, 10)
	num(&d.TotalDisk, 30)
	num(&d.MaxCPU, 4)
	num(&d.MaxMemory, 8)
	num(&d.MaxDisk, 10)
	num(&d.MaxSnapshotSize, 20)
	whole(&d.Snapshots, 30)
	whole(&d.Volumes, 100)
	whole(&d.MaxAutoArchive, 43200)
	def(&c.Proxy.Protocol, u.Scheme)
	if c.Proxy.Protocol != "http" && c.Proxy.Protocol != "https" {
		return wrong("proxy.protocol", c.Proxy.Protocol, "must be http or https")
	}
	def(&c.Proxy.Domain, "proxy."+u.Host)
	def(&c.Proxy.ToolboxURL, c.URL)
	c.Proxy.ToolboxURL = strings.TrimSuffix(c.Proxy.ToolboxURL, "/")
	if c.SSH.Listen != "" && c.SSH.URL == "" {
		_, port, err := net.SplitHostPort(c.SSH.Listen)
		if err != nil || port == "" {
			return wrong("ssh.listen", c.SSH.Listen, `must be an address with a port, such as ":2222"`)
		}
		c.SSH.URL = u.Hostname() + ":" + port
	}
	whole(&c.SandboxTelemetry.RetentionHours, 24)
	whole(&c.SandboxTelemetry.Interval, 60_000)
	if h := c.SandboxTelemetry.RetentionHours; h < 1 || h > 24*366 {
		return wrong("sandboxTelemetry.retentionHours", h, "must be 1 to 8784")
	}
	def(&c.Objects.Bucket, "daytona")
	def(&c.Objects.Region, "us-east-1")
	if c.Runners.Silence == 0 {
		c.Runners.Silence = time.Minute
	}
	if c.Runners.LostAfter == 0 {
		c.Runners.LostAfter = max(10*time.Minute, c.Runners.Silence)
	}
	if c.Runners.Silence < 0 {
		return wrong("runners.silence", c.Runners.Silence, "must not be negative")
	}
	if c.Runners.LostAfter < c.Runners.Silence {
		return wrong("runners.lostAfter", c.Runners.LostAfter, "must not be less than runners.silence")
	}
	for field, v := range map[string]float64{
		"totalCpu": d.TotalCPU, "totalMemory": d.TotalMemory, "totalDisk": d.TotalDisk, "maxCpu": d.MaxCPU, "maxMemory": d.MaxMemory, "maxDisk": d.MaxDisk,
		"maxSnapshotSize": d.MaxSnapshotSize, "snapshots": float64(d.Snapshots), "volumes": float64(d.Volumes), "maxAutoArchive": float64(d.MaxAutoArchive),
		"runnerCpu": d.RunnerCPU, "runnerMemory": d.RunnerMemory, "runnerDisk": d.RunnerDisk,
	} {
		if !(v >= 0) || math.IsInf(v, 0) {
			return wrong("defaults."+field, v, "must be a number that is not negative")
		}
	}
	for name, l := range c.Limits {
		switch name {
		case "anonymous", "failed-auth", "authenticated", "sandbox-create", "sandbox-lifecycle":
		default:
			return wrong("limits."+name, nil, "is no limit: there are anonymous, failed-auth, authenticated, sandbox-create and sandbox-lifecycle")
		}
		if l.TTL < 1 || l.Limit < 1 {
			return wrong("limits."+name, fmt.Sprintf("%d in %d s", l.Limit, l.TTL), "must have a ttl and a limit of at least 1")
		}
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	return nil
}
