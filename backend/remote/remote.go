// Package remote is a client of a server that speaks the public API: the daytona
// server of this module or any other. Sandboxes of a server are used like those
// of this machine. Importing it registers the URL schemes "https", "http",
// "remote+https", "remote+http" and "remote", which is https:
//
//	import _ "github.com/daytona-go/daytona/backend/remote"
//
//	client, err := daytona.Open(ctx, "https://app.example.com/api?target=eu")
//
// The query parameters are target (the region that sandboxes are made in),
// organization (with a JWT) and insecure=true (see [Options.Insecure]). A URL has
// no key: URLs are shown in lists of processes and in logs. Who opens by URL gives
// it in the variable DAYTONA_API_KEY, as for the SDKs; [New] reads no environment.
//
// # Lifetime
//
// A sandbox that is not persistent is deleted by Close. So that nothing is left
// when this process dies, it has a lease: the server stops it when there was no
// sign of its owner for [Options.Lease], and deletes it once it has been stopped
// for four times that. The owner gives a sign every third of a lease. Where a
// Spec has an AutoStop of its own, that is the lease.
//
// # What the wire cannot say
//
// Intervals are whole minutes, resources whole cores and GiB, and there is a word
// for neither the number of processes nor the disk's bandwidth: such are refused,
// by the name of the field. Resources need an image; a snapshot has its own.
// WorkDir and Entrypoint need an image as well, as they are written into its
// Dockerfile. Sandboxes are forked one at a time, and not deleted while there are
// forks of them. Restore starts and stops. An AutoArchive of 0, never, becomes the
// longest time that the server has. What List yields has neither Env nor Volumes.
//
// The working directory is the agent's to say: it is asked once, when a sandbox is
// created, found by Get or started.
//
// Read-only volumes, and the times of the last start and stop, are words of this
// module's server. Of another the times are zero, and the volumes are refused.
//
// A build is a snapshot whose name is the reference that [daytona.Image.Ref]
// gives, and counts as one.
//
// # What it must not know
//
// The package knows no server, nothing but the wire.
package remote

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/daytona-go/daytona"
)

func init() { daytona.Register("https", open) }
func init() { daytona.Register("http", open) }
func init() { daytona.Register("remote+https", open) }
func init() { daytona.Register("remote+http", open) }
func init() { daytona.Register("remote", open) }

// Options say which server, and who asks.
type Options struct {
	// URL is where the API begins, such as "https://app.example.com/api".
	// Required.
	URL string
	// Key is an API key, or a JWT. Required.
	Key string
	// Organization is the id of the organization that a JWT is used for. An API
	// key has its own. Defaults to none.
	Organization string
	// Target is the region that sandboxes and snapshots are made in. Defaults to
	// that of the organization.
	Target string
	// Insecure allows http to other machines, in which everybody on the way can
	// read the key. Defaults to false: only to this machine.
	Insecure bool
	// Lease is how long the server waits for a sign of life before it stops a
	// sandbox that is not persistent: whole minutes. Defaults to 15 minutes.
	Lease time.Duration
	// TLS is for https. Defaults to the system's certificates.
	TLS *tls.Config
	// Logger gets what nobody can be told by an error. Defaults to discarding it.
	Logger *slog.Logger
}

const (
	name         = "remote"
	openOp       = "open server"
	defaultLease = 15 * time.Minute
)

// open is New for a URL.
func open(_ context.Context, u *url.URL) (daytona.Backend, error) {
	opts, err := parseURL(u)
	if err != nil {
		return nil, err
	}
	opts.Key, opts.Logger = os.Getenv("DAYTONA_API_KEY"), slog.Default()
	if opts.Key == "" {
		return nil, &daytona.Error{Kind: daytona.KindUnauthorized, Op: openOp, Subject: opts.URL,
			Message: "there is no API key: set the variable DAYTONA_API_KEY; it is no part of the URL"}
	}
	return New(opts)
}

// parseURL reads all but the key.
func parseURL(u *url.URL) (*Options, error) {
	// The URL is not shown where it may have a password.
	bad := func(field string, value any, rule string) (*Options, error) {
		return nil, &daytona.Error{Kind: daytona.KindInvalid, Op: openOp, Field: field, Value: value, Message: rule}
	}
	if u.User != nil {
		return bad("url", nil, "must have no user and password: the key is taken from the variable DAYTONA_API_KEY")
	}
	if u.Fragment != "" || u.Opaque != "" {
		return bad("url", u.Redacted(), "must look like https://host/api?target=region")
	}
	o := &Options{}
	for k, v := range u.Query() {
		if len(v) != 1 {
			return bad(k, nil, "must be there once")
		}
		switch k {
		case "target":
			o.Target = v[0]
		case "organization":
			o.Organization = v[0]
		case "insecure":
			if v[0] != "true" && v[0] != "false" {
				return bad(k, v[0], "must be true or false")
			}
			o.Insecure = v[0] == "true"
		case "apiKey", "key", "token":
			return bad(k, nil, "a key must not be in a URL; set the variable DAYTONA_API_KEY")
		default:
			return bad(k, nil, `unknown parameter; there are "target", "organization" and "insecure"`)
		}
	}
	scheme := strings.TrimPrefix(u.Scheme, "remote+")
	if scheme == name {
		scheme = "https"
	}
	o.URL = (&url.URL{Scheme: scheme, Host: u.Host, Path: u.Path, RawPath: u.RawPath}).String()
	return o, nil
}

// backend implements daytona.Backend and all of its companions.
type backend struct {
	opts   Options
	api    string // without a slash at its end
	client *http.Client
	log    *slog.Logger
	// proxied is for what Toolbox.Dial passes on, upgrades included.
	proxied *http.Transport

	mu       sync.Mutex
	known    map[string]place // what is known of sandboxes, by id
	mine     map[string]bool  // ids that Close deletes; true if they need signs of life
	builds   map[string]built // by reference
	deleting map[string]bool  // ids
	closed   bool
	stop     context.CancelFunc // of the signs of life; nil until there is a need
	signs    sync.WaitGroup
}

// place is what a toolbox has to know of a sandbox.
type place struct {
	toolbox, language string
	workDir           string // "" until its agent was asked
}

var (
	_ daytona.Backend        = (*backend)(nil)
	_ daytona.Pauser         = (*backend)(nil)
	_ daytona.Forker         = (*backend)(nil)
	_ daytona.Snapshotter    = (*backend)(nil)
	_ daytona.ImageBuilder   = (*backend)(nil)
	_ daytona.Resizer        = (*backend)(nil)
	_ daytona.NetworkPolicer = (*backend)(nil)
	_ daytona.Archiver       = (*backend)(nil)
	_ daytona.Updater        = (*backend)(nil)
	_ daytona.Watcher        = (*backend)(nil)
	_ daytona.VolumeManager  = (*backend)(nil)
)

// New returns the backend of a server. It connects to nothing: a wrong address
// or key is found by the first call.
func New(opts *Options) (daytona.Backend, error) {
	o := *opts
	bad := func(field string, value any, rule string) (daytona.Backend, error) {
		return nil, &daytona.Error{Kind: daytona.KindInvalid, Op: openOp, Field: field, Value: value, Message: rule}
	}
	u, err := url.Parse(o.URL)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
		return bad("URL", nil, "must be an http or https URL, such as https://app.example.com/api")
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return bad("URL", u.Redacted(), "must have no user, query and fragment")
	case o.Key == "":
		return bad("Key", nil, "is required")
	case strings.ContainsAny(o.Key, "\r\n\x00 "):
		return bad("Key", nil, "must be one word")
	case o.Lease == 0:
		o.Lease = defaultLease
	case o.Lease < time.Minute || o.Lease%time.Minute != 0:
		return bad("Lease", o.Lease, "must be whole minutes")
	}
	if err := o.secure("URL", u); err != nil {
		return nil, err
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	transport := &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: 30 * time.Second}).DialContext,
		TLSClientConfig:     o.TLS,
		TLSHandshakeTimeout: 30 * time.Second,
		MaxIdleConnsPerHost: 64,
		IdleConnTimeout:     time.Minute,
		ForceAttemptHTTP2:   true,
	}
	proxied := transport.Clone()
	proxied.ForceAttemptHTTP2, proxied.Protocols = false, new(http.Protocols)
	proxied.Protocols.SetHTTP1(true)
	return &backend{
		opts:    o,
		proxied: proxied,
		api:     strings.TrimRight(u.String(), "/"),
		client: &http.Client{
			Transport: transport,
			// A redirect could lead the key anywhere.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		log:      o.Logger,
		known:    map[string]place{},
		mine:     map[string]bool{},
		builds:   map[string]built{},
		deleting: map[string]bool{},
	}, nil
}

// secure refuses a place to which the key would go in the clear.
func (o *Options) secure(field string, u *url.URL) error {
	if u.Scheme != "http" || o.Insecure || u.Hostname() == "localhost" || strings.HasSuffix(u.Hostname(), ".localhost") {
		return nil
	}
	if a, err := netip.ParseAddr(u.Hostname()); err == nil && a.IsLoopback() {
		return nil
	}
	return &daytona.Error{Kind: daytona.KindInvalid, Op: openOp, Field: field, Value: u.Redacted(),
		Message: "the key would be sent unencrypted; use https, or allow it with the option Insecure (insecure=true in a URL)"}
}

func (b *backend) Name() string { return name }

// Close deletes what is not persistent.
func (b *backend) Close() error {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return nil
	}
	b.closed = true
	ids := make([]string, 0, len(b.mine))
	for id := range b.mine {
		ids = append(ids, id)
	}
	stop := b.stop
	b.mu.Unlock()
	if stop != nil {
		stop()
	}
	b.signs.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	err := each(ids, func(id string) error {
		err := b.remove(ctx, "close", id)
		if daytonaKind(err) == daytona.KindNotFound {
			return nil
		}
		return err
	})
	b.client.CloseIdleConnections()
	b.proxied.CloseIdleConnections()
	return err
}
