// Package local is the embedded engine: sandboxes out of Linux namespaces,
// overlay file systems, cgroups and seccomp filters, without a daemon,
// without Docker and without cgo. Importing it registers the URL scheme
// "local":
//
//	import _ "github.com/daytona-go/daytona/backend/local"
//
//	client, err := daytona.Open(ctx, "local://")
//
// It needs Linux 5.19 or newer and runs as root or, with the differences that
// docs/security.md lists, as an ordinary user; [Diagnose] says what a machine
// supports. What a namespace engine does not protect against, an attack on
// the kernel itself, is said there too.
//
// # Where things are
//
// All state is in one directory: /var/lib/daytona for root,
// $XDG_DATA_HOME/daytona (~/.local/share/daytona) for others, or the path of
// the URL. Any number of processes may use it at once. Each sandbox is a
// record there, rewritten before each step, so that a process killed at any
// moment leaves nothing that the next one does not find and finish.
//
// # Limits
//
// Resources.Memory defaults to half of the machine's memory and
// Resources.Processes to 4096, where they can be enforced. Limits need
// writable cgroups, and Resources.Disk needs root and mkfs.ext4; what cannot
// be enforced here is refused.
//
// The package knows nothing of servers and of other backends.
package local

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/image"
	"github.com/daytona-go/daytona/internal/agentbin"
	"github.com/daytona-go/daytona/internal/lifecycle"
	"github.com/daytona-go/daytona/internal/network"
	"github.com/daytona-go/daytona/internal/objects"
	"golang.org/x/sys/unix"
)

func init() {
	daytona.Register("local", func(ctx context.Context, u *url.URL) (daytona.Backend, error) {
		opts, err := parseURL(u)
		if err != nil {
			return nil, err
		}
		opts.Logger = slog.Default()
		return New(ctx, opts)
	})
}

// Options configure the engine. The zero value is good.
type Options struct {
	// Dir is the state directory. Defaults to /var/lib/daytona for root and
	// to $XDG_DATA_HOME/daytona or ~/.local/share/daytona for others.
	Dir string
	// Agent is the path of the agent's binary. Defaults to the variable
	// DAYTONA_AGENT; else the one embedded in a release build, the one beside
	// the executable, the one on PATH, or one built with the local Go
	// toolchain into the user's cache directory.
	Agent string
	// Warm is how many sandboxes are kept ready for each kind (image, user,
	// resources, network) that has been created once, so that the next ones
	// start at once. They use the memory of an idle sandbox. Sandboxes that
	// are persistent, or have volumes, a disk limit, an entrypoint, a TTL or
	// an auto-stop or auto-pause interval, or are made from a snapshot, are
	// never taken from there. Defaults to 0.
	Warm int
	// ImageMaxAge removes images that no sandbox holds and that have not been
	// used for longer, at the start and once a day. Defaults to 0: they stay.
	ImageMaxAge time.Duration
	// ImageHighWatermark is the part of the file system, between 0 and 1, from
	// which on the least recently used images that no sandbox holds are removed,
	// down to ImageLowWatermark. It is looked at at the start and once a day.
	// Defaults to 0: never.
	ImageHighWatermark float64
	// ImageLowWatermark defaults to ImageHighWatermark.
	ImageLowWatermark float64
	// Archive is where archived sandboxes are kept: a directory, which other
	// machines may share, or a URL such as s3://bucket/prefix in a program that
	// imports package archive/s3, which says how it is written and where its
	// credentials come from. Defaults to the directory "archive" in Dir.
	Archive string
	// Logger gets what goes on. Defaults to discarding it.
	Logger *slog.Logger
}

// parseURL reads local:///state/directory?warm=2&archive=….
func parseURL(u *url.URL) (*Options, error) {
	bad := func(field, value, rule string) error {
		// The parameters are left out: one may be a URL with a password.
		return &daytona.Error{Kind: daytona.KindInvalid, Op: "open backend", Subject: (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String(), Field: field, Value: value, Message: rule}
	}
	if u.Host != "" || u.Opaque != "" {
		return nil, bad("host", u.Host+u.Opaque, "a local URL has no host: write local:// or local:///state/directory")
	}
	o := &Options{Dir: u.Path}
	for k, v := range u.Query() {
		switch k {
		case "warm":
			n, err := strconv.Atoi(v[0])
			if err != nil || n < 0 || n > 1000 {
				return nil, bad(k, v[0], "must be a number from 0 to 1000")
			}
			o.Warm = n
		case "agent":
			o.Agent = v[0]
		case "archive":
			o.Archive = v[0]
		case "imageMaxAge":
			d, err := time.ParseDuration(v[0])
			if err != nil {
				return nil, bad(k, v[0], "must be a duration such as 720h")
			}
			o.ImageMaxAge = d
		case "imageHighWatermark", "imageLowWatermark":
			f, err := strconv.ParseFloat(v[0], 64)
			if err != nil {
				return nil, bad(k, v[0], "must be a number from 0 to 1")
			}
			if k == "imageHighWatermark" {
				o.ImageHighWatermark = f
			} else {
				o.ImageLowWatermark = f
			}
		default:
			return nil, bad(k, v[0], `unknown parameter; there are "warm", "agent", "archive", "imageMaxAge", "imageHighWatermark" and "imageLowWatermark"; "&" in the value of one is written "%26"`)
		}
	}
	return o, nil
}

// Open opens the engine and returns a Client for it; nil options are the
// defaults. A machine that cannot run sandboxes gives KindUnsupported with
// the reason.
func Open(ctx context.Context, opts *Options) (*daytona.Client, error) {
	b, err := New(ctx, opts)
	if err != nil {
		return nil, err
	}
	return daytona.New(b), nil
}

const openOp = "open local engine"

// New opens the engine as a Backend.
func New(ctx context.Context, opts *Options) (daytona.Backend, error) {
	e, err := newEngine(ctx, opts)
	if err != nil {
		return nil, err
	}
	return e, nil
}

// keeper is embedded for its methods of daytona.Backend and daytona.Updater.
type keeper = lifecycle.Keeper[own]

// engine implements daytona.Backend and the optional VolumeManager, Updater,
// NetworkPolicer, Pauser, Resizer, Forker, Snapshotter, SnapshotMover and Archiver.
type engine struct {
	*keeper
	lifecycle.Volumes[own]
	lifecycle.Pausing[own]
	lifecycle.Snapshots[own, ownSnapshot]
	lifecycle.Archiving[own]
	opts Options
	log  *slog.Logger
	root bool // it runs as root
	warm *warmPool

	agent    *os.File // sealed memfd
	netTool  func(ctx context.Context) (string, error)
	hostNet  *os.File
	spawner  *spawner
	cgroups  *cgroups
	images   *image.Store
	ioDevice string
	memory   int64      // of the machine, in bytes
	subIDs   *idMapping // for rootless use with newuidmap

	hostOnce sync.Mutex
	host     *rootfs
	hostTime time.Time

	builderOnce sync.Mutex
	builder     Builder

	fileServer fileServer

	netOnce sync.Mutex
	net     *network.Host

	archiveOnce sync.Mutex
	archive     objects.Store

	endCollection func() // of old images; nil if there is none
	ownLayers     int    // for tests: in place of maxOwnLayers

	mu     sync.Mutex
	steps  map[string]bool // cgroups of build steps that run
	idmaps map[string]bool // directories whose mounts take an id mapping or not
}

func newEngine(ctx context.Context, opts *Options) (_ *engine, err error) {
	e := &engine{root: os.Geteuid() == 0, idmaps: map[string]bool{}, steps: map[string]bool{}}
	if opts != nil {
		e.opts = *opts
	}
	if e.log = e.opts.Logger; e.log == nil {
		e.log = slog.New(slog.DiscardHandler)
	}
	fail := func(kind daytona.Kind, subject, message string, err error) error {
		return &daytona.Error{Kind: kind, Op: openOp, Subject: subject, Message: message, Err: err}
	}
	limits, err := imageLimits(e.opts)
	if err != nil {
		return nil, err
	}
	if err := supported(); err != nil {
		return nil, fail(daytona.KindUnsupported, "", "", err)
	}
	if objects.IsURL(e.opts.Archive) { // which connects to nothing
		if e.archive, err = objects.Open(ctx, "Archive", e.opts.Archive); err != nil {
			return nil, err
		}
	}
	dir := e.opts.Dir
	if dir == "" {
		if dir, err = defaultDir(); err != nil {
			return nil, fail(daytona.KindInvalid, "", "there is no place for its state; set Options.Dir", err)
		}
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, fail(daytona.KindInvalid, dir, "", err)
	}
	if e.keeper, err = lifecycle.New[own](lifecycle.Options{Name: "local", Dir: dir, Dirs: []string{"volumes", "empty", "build", "layers", "snapshots", "snapshot-names"}, Log: e.log}); err != nil {
		return nil, fail(daytona.KindUnavailable, dir, "make its state directory", err)
	}
	e.Volumes.Keeper, e.Volumes.Disks, e.Pausing.Keeper, e.Archiving.Keeper = e.keeper, volumeDisks{}, e.keeper, e.keeper
	e.RefuseS3 = e.refuseBuckets
	e.Snapshots = lifecycle.Snapshots[own, ownSnapshot]{Keeper: e.keeper, Free: e.freeSnapshot}
	defer func() {
		if err != nil {
			e.keeper.Free()
			e.free()
		}
	}()
	if err := e.loadAgent(ctx); err != nil {
		return nil, fail(daytona.KindUnavailable, "", "", err)
	}
	if e.cgroups, err = findCgroups(e.Tag()); err != nil {
		return nil, fail(daytona.KindUnavailable, "", "", err)
	}
	if e.images, err = image.OpenStore(e.Dir("images"), &image.StoreOptions{Logger: e.log}); err != nil {
		return nil, fail(daytona.KindUnavailable, dir, "open the image store", err)
	}
	if e.hostNet, err = os.Open("/proc/thread-self/ns/net"); err != nil {
		return nil, fail(daytona.KindUnavailable, "", "", err)
	}
	if !e.root {
		e.subIDs = findSubIDs()
	}
	e.ioDevice = ioDeviceOf(dir)
	var si unix.Sysinfo_t
	if err := unix.Sysinfo(&si); err == nil {
		e.memory = int64(si.Totalram) * int64(si.Unit)
	}
	if _, err := seccompProgram(); err != nil {
		return nil, fail(daytona.KindUnsupported, "", "", err)
	}
	e.spawner = newSpawner()
	e.warm = newWarmPool(e)
	var d lifecycle.Engine[own] = driver{e}
	if e.canArchive() == "" {
		d = packing{driver{e}}
	}
	if err := e.keeper.Open(ctx, d); err != nil {
		return nil, fail(daytona.KindUnavailable, dir, "recover what earlier processes left", err)
	}
	if err := e.Snapshots.RecoverSnapshots(ctx); err != nil {
		return nil, fail(daytona.KindUnavailable, dir, "recover the snapshots that earlier processes left", err)
	}
	if err := e.Volumes.RecoverVolumes(); err != nil {
		return nil, fail(daytona.KindUnavailable, dir, "recover the volumes that earlier processes left", err)
	}
	e.reapBuilds()
	// Not before: what sandboxes hold is known now.
	if limits != (image.CollectOptions{}) {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() {
			defer close(done)
			e.images.KeepCollected(ctx, 24*time.Hour, limits)
		}()
		e.endCollection = func() { cancel(); <-done }
	}
	return e, nil
}

// imageLimits checks the options that say which images stay.
func imageLimits(o Options) (image.CollectOptions, error) {
	bad := func(field string, value any, rule string) (image.CollectOptions, error) {
		return image.CollectOptions{}, &daytona.Error{Kind: daytona.KindInvalid, Op: openOp, Field: field, Value: value, Message: rule}
	}
	high, low := o.ImageHighWatermark, o.ImageLowWatermark
	switch {
	case o.ImageMaxAge < 0:
		return bad("ImageMaxAge", o.ImageMaxAge, "must not be negative")
	case !(high >= 0 && high <= 1): // NaN is neither
		return bad("ImageHighWatermark", high, "must be between 0 and 1")
	case !(low >= 0 && low <= 1):
		return bad("ImageLowWatermark", low, "must be between 0 and 1")
	case low > high:
		return bad("ImageLowWatermark", low, fmt.Sprintf("must not be above ImageHighWatermark, %v", high))
	}
	return image.CollectOptions{MaxAge: o.ImageMaxAge, HighWatermark: high, LowWatermark: low}, nil
}

func defaultDir() (string, error) {
	if os.Geteuid() == 0 {
		return "/var/lib/daytona", nil
	}
	if d := os.Getenv("XDG_DATA_HOME"); filepath.IsAbs(d) {
		return filepath.Join(d, "daytona"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(home, ".local", "share", "daytona"), nil
}

// loadAgent finds the agent and copies it into sealed memory.
func (e *engine) loadAgent(ctx context.Context) error {
	cache := agentbin.CacheDir(e.Root)
	path, err := agentbin.FindAgent(ctx, e.opts.Agent, cache)
	if err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if e.agent, err = memfd("daytona-agent", f); err != nil {
		return fmt.Errorf("load %s: %w", path, err)
	}
	e.netTool = func(ctx context.Context) (string, error) {
		beside := filepath.Join(filepath.Dir(path), agentbin.Net)
		if st, err := os.Stat(beside); err == nil && st.Mode().IsRegular() {
			return beside, nil
		}
		return agentbin.Find(ctx, agentbin.Net, "", cache)
	}
	e.fileServer.find = func(ctx context.Context) (string, error) {
		beside := filepath.Join(filepath.Dir(path), agentbin.S3FS)
		if st, err := os.Stat(beside); err == nil && st.Mode().IsRegular() {
			return beside, nil
		}
		return agentbin.Find(ctx, agentbin.S3FS, "", cache)
	}
	return nil
}

// network opens the host's side of the network on first use.
func (e *engine) network(ctx context.Context) (*network.Host, error) {
	e.netOnce.Lock()
	defer e.netOnce.Unlock()
	if e.net == nil {
		h, err := network.OpenHost(ctx, &network.HostOptions{Ready: max(1, e.opts.Warm), Log: e.log})
		if err != nil {
			return nil, fmt.Errorf("set up the network: %w", err)
		}
		e.net = h
	}
	return e.net, nil
}

// Close deletes what belongs to this engine and lets go of the rest.
func (e *engine) Close() error {
	if !e.keeper.Shut() {
		return nil
	}
	e.warm.close()
	e.closeBuilder()
	err := e.keeper.Close()
	e.free()
	return err
}

// free releases what this process holds.
func (e *engine) free() {
	if e.endCollection != nil {
		e.endCollection()
	}
	if e.spawner != nil {
		e.spawner.close()
	}
	if e.net != nil {
		e.net.Close()
	}
	for _, f := range []*os.File{e.agent, e.hostNet, e.fileServer.program} {
		if f != nil {
			f.Close()
		}
	}
}
