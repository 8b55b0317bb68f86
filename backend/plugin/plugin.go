// Package plugin runs backends out of process: a third party ships a backend
// as an executable, and programs use it like any other. It is both sides:
// [New] and [Open] for the program that uses sandboxes (the host), [Serve] and
// [ServeFunc] for the executable that provides them (the plugin). Importing it
// registers the URL scheme "plugin":
//
//	import _ "github.com/daytona-go/daytona/backend/plugin"
//
//	client, err := daytona.Open(ctx, "plugin:///usr/lib/daytona/daytona-backend-foo?zone=a")
//	client, err := daytona.Open(ctx, "plugin:foo?zone=a") // daytona-backend-foo on PATH
//
// All query parameters are the plugin's configuration; there are none of this
// package's own.
//
// # Writing a plugin
//
// Implement [daytona.Backend], and of its optional companions what the backend
// can do; check it with package backend/backendtest; serve it:
//
//	func main() {
//		if err := plugin.ServeFunc(open); err != nil {
//			log.Fatal(err)
//		}
//	}
//
//	func open(ctx context.Context, config url.Values) (daytona.Backend, error) { … }
//
// A plugin in another language implements proto/backend.proto, which says all
// there is to know. A plugin needs no open port: it listens on Unix sockets in
// a directory that only its user may enter and takes connections of its host
// only: for calls both sides prove with certificates made for the occasion that
// they are who started and was started, and the connections to the agents
// inside sandboxes, which pass through it byte by byte, need a ticket out of
// such a call.
//
// # Lifetime
//
// A plugin's process lives as long as the Backend value that [New] returned.
// Sandboxes that are not persistent belong to that process:
//
//   - Close closes the plugin's backend and ends the process.
//   - When the host ends without Close, killed or not, the plugin notices by
//     the end of its standard input, closes its backend and ends.
//   - When the plugin ends by itself or is killed, calls under way fail with
//     KindUnavailable, except Get, List and new connections, which are tried
//     once more. The next call starts the plugin again, with the same
//     configuration: it adopts the persistent sandboxes and reaps the others,
//     which their owner's death has ended. When it dies again and again, calls
//     fail until some time has passed; see [Options.MaxRestarts].
//   - When the plugin has not answered a health check for
//     [Options.Unresponsive], it is killed, with the same consequences.
//
// A Create that failed has left nothing behind, even if the plugin died before
// it could answer: such a sandbox is found by a label that only the two sides
// see, and deleted when the plugin is back. After KindUnavailable from Fork,
// CreateSnapshot, CreateVolume or BuildImage the caller has to look.
//
// # Builds
//
// What a Dockerfile copies is this program's, so BuildImage sends it along, file
// by file; the plugin keeps it in a directory below TMPDIR until the build ends,
// and its backend finds it there as files of its machine. What the build says
// comes back line by line, and no line is lost.
//
// # Capabilities
//
// A plugin says which of the optional interfaces its backend has when it is
// opened. [daytona.As] finds exactly those in the value that New returns, which
// itself has no methods but those of [daytona.Backend]. A plugin that has
// different ones when it is started again is refused.
//
// # What it must not know
//
// The package knows no backend and nothing of what a configuration means. It
// brings gRPC along; nothing that a program without plugins is made of imports
// it.
package plugin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/daytona-go/daytona"
)

func init() {
	daytona.Register("plugin", func(ctx context.Context, u *url.URL) (daytona.Backend, error) {
		opts, err := parseURL(u)
		if err != nil {
			return nil, err
		}
		opts.Logger = slog.Default()
		return New(ctx, opts)
	})
}

// Options say which plugin to run, and how.
type Options struct {
	// Path is the executable. A name without a slash, such as "foo", is looked
	// up on PATH as "daytona-backend-foo". Required.
	Path string
	// Args are its arguments. Defaults to none.
	Args []string
	// Env is added to its environment, as "NAME=value". Of this process's own it
	// gets PATH, HOME, USER, LOGNAME, SHELL, TMPDIR, TZ, LANG, LANGUAGE, LC_*,
	// XDG_*, SSL_CERT_FILE, SSL_CERT_DIR and DAYTONA_AGENT, and nothing else:
	// proxies and credentials are for the user to give. Defaults to none.
	Env []string
	// Config is handed to the plugin; what it means is the plugin's business.
	// The query of a plugin URL becomes it. Defaults to none.
	Config url.Values
	// Logger gets what the plugin logs, with the attribute "plugin". Defaults
	// to discarding it.
	Logger *slog.Logger
	// StartTimeout is how long the plugin may take until it listens; to open
	// its backend it may take as long as the context allows. Defaults to 30
	// seconds.
	StartTimeout time.Duration
	// MaxRestarts is how often within a minute a plugin that has died is
	// started again. Beyond it, calls fail at once with KindUnavailable until
	// the minute has passed. Defaults to 5.
	MaxRestarts int
	// Unresponsive is how long a plugin may leave a health check unanswered
	// before it is killed. Defaults to one minute.
	Unresponsive time.Duration
	// CloseTimeout is how long the plugin may take to close its backend before
	// it is killed. Defaults to one minute.
	CloseTimeout time.Duration
}

const openOp = "open plugin"

// parseURL reads plugin:///path?config and plugin:name?config.
func parseURL(u *url.URL) (*Options, error) {
	bad := func(field, value, rule string) error {
		return &daytona.Error{Kind: daytona.KindInvalid, Op: openOp, Field: field, Value: value, Message: rule}
	}
	const forms = "write plugin:///path/of/executable or plugin:name"
	if u.Host != "" || u.User != nil || u.Fragment != "" {
		return nil, bad("url", u.Redacted(), "a plugin URL has neither host nor user nor fragment; "+forms)
	}
	path := u.Path
	if u.Opaque != "" {
		var err error
		if path, err = url.PathUnescape(u.Opaque); err != nil {
			return nil, bad("url", u.Redacted(), err.Error())
		}
	}
	if path == "" || path == "/" {
		return nil, bad("url", u.Redacted(), "names no plugin; "+forms)
	}
	config, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return nil, bad("url", u.Redacted(), err.Error())
	}
	return &Options{Path: path, Config: config}, nil
}

// find turns Options.Path into an absolute path.
func find(path string) (string, error) {
	if path == "" || strings.ContainsRune(path, 0) {
		return "", &daytona.Error{Kind: daytona.KindInvalid, Op: openOp, Field: "Path", Value: path, Message: "must be an executable, or the name of a plugin"}
	}
	if strings.Contains(path, "/") {
		return filepath.Abs(path)
	}
	name := "daytona-backend-" + path
	found, err := exec.LookPath(name)
	if err != nil {
		kind := daytona.KindInvalid
		if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
			kind = daytona.KindNotFound
		}
		return "", &daytona.Error{Kind: kind, Op: openOp, Subject: path, Message: fmt.Sprintf("there is no program %s on PATH", name), Err: err}
	}
	return filepath.Abs(found)
}

// Open starts a plugin and returns a Client for its backend; see [New].
func Open(ctx context.Context, opts *Options) (*daytona.Client, error) {
	b, err := New(ctx, opts)
	if err != nil {
		return nil, err
	}
	return daytona.New(b), nil
}

// New starts a plugin and opens its backend. What is missing gives
// KindNotFound; what is no executable KindInvalid; an executable that does not
// behave like a plugin KindUnavailable, with the end of what it wrote to
// standard error; a plugin of another version of the protocol KindUnsupported.
// Errors of the plugin's backend are returned as they are.
func New(ctx context.Context, opts *Options) (daytona.Backend, error) {
	var o Options
	if opts != nil {
		o = *opts
	}
	for _, d := range []struct {
		value    *time.Duration
		field    string
		fallback time.Duration
	}{
		{&o.StartTimeout, "StartTimeout", 30 * time.Second},
		{&o.Unresponsive, "Unresponsive", time.Minute},
		{&o.CloseTimeout, "CloseTimeout", time.Minute},
	} {
		if *d.value < 0 {
			return nil, &daytona.Error{Kind: daytona.KindInvalid, Op: openOp, Field: d.field, Value: *d.value, Message: "must not be negative"}
		}
		if *d.value == 0 {
			*d.value = d.fallback
		}
	}
	if o.MaxRestarts < 0 {
		return nil, &daytona.Error{Kind: daytona.KindInvalid, Op: openOp, Field: "MaxRestarts", Value: o.MaxRestarts, Message: "must not be negative"}
	}
	if o.MaxRestarts == 0 {
		o.MaxRestarts = 5
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	for i, kv := range o.Env {
		if name, _, ok := strings.Cut(kv, "="); !ok || name == "" || strings.ContainsRune(kv, 0) {
			return nil, &daytona.Error{Kind: daytona.KindInvalid, Op: openOp, Field: fmt.Sprintf("Env[%d]", i), Message: `must be "NAME=value"`}
		}
	}
	var err error
	if o.Path, err = find(o.Path); err != nil {
		return nil, err
	}
	o.Args, o.Env, o.Config = slices.Clone(o.Args), slices.Clone(o.Env), cloneConfig(o.Config)
	b := newBackend(o)
	if _, err := b.acquire(ctx); err != nil {
		b.cancel()
		return nil, err
	}
	return b, nil
}

func cloneConfig(config url.Values) url.Values {
	out := url.Values{}
	for k, v := range config {
		out[k] = slices.Clone(v)
	}
	return out
}

// ended says that a context ended an operation.
func ended(op, subject string, err error) error {
	if subject == "" {
		return fmt.Errorf("%s: %w", op, err)
	}
	return fmt.Errorf("%s %s: %w", op, subject, err)
}
