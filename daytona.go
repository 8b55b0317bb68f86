// Package daytona runs programs, most of all programs that an AI has written,
// in isolated sandboxes.
//
// A [Client] talks to a [Backend]: the embedded engine of package
// backend/local, or any other. It makes sandboxes; a [Sandbox] gives access
// to its files ([FileSystem]), its programs ([Process]), its terminals
// ([PTY]) and more.
//
//	client, err := daytona.Open(ctx, "local://")
//	if err != nil { … }
//	defer client.Close()
//
//	sb, err := client.Create(ctx, daytona.Spec{})
//	if err != nil { … }
//	defer sb.Delete(ctx)
//
//	out, err := sb.Process().Command(ctx, "python3", "-c", "print(6*7)").Output()
//
// Backends register themselves when their package is imported:
//
//	import _ "github.com/daytona-go/daytona/backend/local"
//
// # Errors
//
// Every error of this module is, or wraps, an [*Error] with a [Kind]; match it
// with errors.Is(err, daytona.ErrNotFound). A program that ends with a code
// other than 0 gives an [*ExitError]. What a backend cannot do or enforce is
// refused with an error that matches [errors.ErrUnsupported] and names the
// field.
//
// # Lifetime
//
// A sandbox belongs to the Client that made it and is deleted when that
// Client closes, or when its process dies in whatever way, unless
// [Spec.Persistent] is set: then it outlives the process, and a Client of
// another process finds it with [Client.Get] or [Client.List].
//
// This package imports no backend, no server and no agent.
package daytona

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"net/url"
	"slices"
	"strings"
	"sync"
)

// OpenFunc opens a backend for a URL such as "local:///var/lib/daytona".
type OpenFunc func(ctx context.Context, u *url.URL) (Backend, error)

// openers is the registry behind Register and Open, written by the init
// functions of backend packages only.
var openers = struct {
	sync.RWMutex
	byScheme map[string]OpenFunc
}{byScheme: map[string]OpenFunc{}}

// Register makes a backend known to [Open] under a URL scheme. Backend
// packages call it from an init function. It panics if the scheme is taken.
func Register(scheme string, open OpenFunc) {
	openers.Lock()
	defer openers.Unlock()
	if _, dup := openers.byScheme[scheme]; dup {
		panic("daytona: Register called twice for scheme " + scheme)
	}
	openers.byScheme[scheme] = open
}

// Open opens the backend that a URL names and returns a Client for it:
//
//	local://                    the embedded engine, default state directory
//	local:///srv/sandboxes      the embedded engine, state kept in /srv/sandboxes
//	docker://?image=debian:12   containers of a Docker engine
//	containerd://?image=…       containers of the containerd on this machine
//	plugin:foo?key=value        the executable daytona-backend-foo, with a configuration
//	https://host/api?target=eu  the sandboxes of a server, with the key in DAYTONA_API_KEY
//
// The backend's package must be imported; its documentation lists the query
// parameters it takes. An unknown scheme is refused with KindInvalid.
//
// Open reads no environment. A program that leaves the choice to its user does
// well to take the URL from a flag, or else from the variable DAYTONA_BACKEND,
// as the daytona command does, and to import package backend/all.
func Open(ctx context.Context, rawURL string) (*Client, error) {
	const op = "open backend"
	u, err := url.Parse(rawURL)
	if err != nil {
		return nil, &Error{Kind: KindInvalid, Op: op, Subject: rawURL, Message: "not a URL", Err: err}
	}
	openers.RLock()
	open := openers.byScheme[u.Scheme]
	known := slices.Sorted(maps.Keys(openers.byScheme))
	openers.RUnlock()
	if open == nil {
		return nil, &Error{Kind: KindInvalid, Op: op, Field: "url", Value: rawURL, Message: fmt.Sprintf(
			"no backend is registered for scheme %q (registered: %s); import its package, for example _ \"github.com/daytona-go/daytona/backend/local\"",
			u.Scheme, strings.Join(known, ", "))}
	}
	b, err := open(ctx, u)
	if err != nil {
		return nil, err
	}
	return New(b), nil
}

// New returns a Client for a backend. The Client owns the backend: Close
// closes it.
func New(b Backend) *Client { return &Client{backend: b} }

// Client makes, finds and lists sandboxes. It is safe for concurrent use.
type Client struct {
	backend Backend
	once    sync.Once
	closed  error
}

// Backend returns the backend, for access to optional capabilities by [As].
func (c *Client) Backend() Backend { return c.backend }

// Create makes a sandbox and starts it. When it returns without error the
// sandbox is ready for its first command; when it returns an error nothing is
// left behind. A spec that breaks a rule gives KindInvalid, one that the
// backend cannot enforce KindUnsupported, a name already in use KindConflict,
// a missing image KindNotFound.
func (c *Client) Create(ctx context.Context, spec Spec) (Sandbox, error) {
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	spec = spec.clone()
	if spec.Build != nil {
		built, err := c.Build(ctx, spec.Build, BuildOptions{OnLog: spec.OnBuildLog})
		if err != nil {
			return nil, err
		}
		spec.Image, spec.Build = built.Ref, nil
	}
	info, err := c.backend.Create(ctx, spec)
	if err != nil {
		return nil, err
	}
	return newSandbox(c.backend, info), nil
}

// Build builds an image, unless the same was built before, and returns what
// [Spec.Image] takes. A step that fails gives a [*BuildError]. A backend that is
// no [ImageBuilder] gives KindUnsupported.
func (c *Client) Build(ctx context.Context, img *Image, opts BuildOptions) (BuiltImage, error) {
	b, ok := As[ImageBuilder](c.backend)
	if !ok {
		return BuiltImage{}, unsupported(c.backend, buildOp)
	}
	if err := img.Err(); err != nil {
		return BuiltImage{}, err
	}
	return b.BuildImage(ctx, img, opts)
}

// CreateSnapshot makes a snapshot from an image, a build or a sandbox. It gives
// KindInvalid for a spec that breaks a rule, KindConflict for a taken name,
// KindNotFound for a missing image or sandbox.
func (c *Client) CreateSnapshot(ctx context.Context, spec SnapshotSpec) (Snapshot, error) {
	if spec.Build != nil && spec.Validate() == nil {
		built, err := c.Build(ctx, spec.Build, BuildOptions{OnLog: spec.OnBuildLog})
		if err != nil {
			return Snapshot{}, err
		}
		spec.Image, spec.Build = built.Ref, nil
	}
	return createSnapshot(ctx, c.backend, spec)
}

func createSnapshot(ctx context.Context, b Backend, spec SnapshotSpec) (Snapshot, error) {
	s, ok := As[Snapshotter](b)
	if !ok {
		return Snapshot{}, unsupported(b, snapshotOp)
	}
	if err := spec.Validate(); err != nil {
		return Snapshot{}, err
	}
	spec.Entrypoint = slices.Clone(spec.Entrypoint)
	return s.CreateSnapshot(ctx, spec)
}

// Snapshots returns the backend's snapshots, or an error matching
// [errors.ErrUnsupported] if it has none. Make them with CreateSnapshot.
func (c *Client) Snapshots() (Snapshotter, error) {
	if s, ok := As[Snapshotter](c.backend); ok {
		return s, nil
	}
	return nil, unsupported(c.backend, "snapshots")
}

// Get returns the sandbox with an id or, if none has that id, a name. It
// gives KindNotFound if there is neither.
func (c *Client) Get(ctx context.Context, idOrName string) (Sandbox, error) {
	info, err := c.backend.Get(ctx, idOrName)
	if err != nil {
		return nil, err
	}
	return newSandbox(c.backend, info), nil
}

// List yields the sandboxes that match filter, oldest first; nil matches all.
// Iteration stops at the first error.
func (c *Client) List(ctx context.Context, filter *Filter) iter.Seq2[Sandbox, error] {
	return func(yield func(Sandbox, error) bool) {
		var f Filter
		if filter != nil {
			f = *filter
		}
		for info, err := range c.backend.List(ctx, f) {
			if err != nil {
				yield(nil, err)
				return
			}
			if !yield(newSandbox(c.backend, info), nil) {
				return
			}
		}
	}
}

// Volumes returns the backend's volumes, or an error matching
// [errors.ErrUnsupported] if it has none.
func (c *Client) Volumes() (VolumeManager, error) {
	if v, ok := As[VolumeManager](c.backend); ok {
		return v, nil
	}
	return nil, unsupported(c.backend, "volumes")
}

// Close deletes the sandboxes that belong to this Client (those that are not
// persistent) and closes the backend. Further calls return the first result.
func (c *Client) Close() error {
	c.once.Do(func() { c.closed = c.backend.Close() })
	return c.closed
}

// Filter selects sandboxes for [Client.List]. Every field that is set must
// match.
type Filter struct {
	// Labels must all be present with these values. Defaults to any.
	Labels map[string]string
	// States must include the sandbox's state. Defaults to any.
	States []State
	// NamePrefix must begin the name. Defaults to any.
	NamePrefix string
}

// Match reports whether info satisfies f.
func (f Filter) Match(info Info) bool {
	for k, v := range f.Labels {
		if got, ok := info.Labels[k]; !ok || got != v {
			return false
		}
	}
	if len(f.States) > 0 && !slices.Contains(f.States, info.State) {
		return false
	}
	return strings.HasPrefix(info.Name, f.NamePrefix)
}

func unsupported(b Backend, what string) error {
	return &Error{Kind: KindUnsupported, Op: what, Message: "backend " + b.Name() + " does not support it"}
}
