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
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/image"
	"github.com/daytona-go/daytona/internal/agentbin"
	"github.com/daytona-go/daytona/internal/network"
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
	// an auto-stop interval, are never taken from there. Defaults to 0.
	Warm int
	// Logger gets what goes on. Defaults to discarding it.
	Logger *slog.Logger
}

// parseURL reads local:///state/directory?warm=2.
func parseURL(u *url.URL) (*Options, error) {
	bad := func(field, value, rule string) error {
		return &daytona.Error{Kind: daytona.KindInvalid, Op: "open backend", Subject: u.String(), Field: field, Value: value, Message: rule}
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
		default:
			return nil, bad(k, v[0], `unknown parameter; there are "warm" and "agent"`)
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

// engine implements daytona.Backend and the optional VolumeManager, Updater
// and NetworkPolicer.
type engine struct {
	id    string // names it in owners/
	opts  Options
	log   *slog.Logger
	state state
	root  bool // it runs as root
	warm  *warmPool

	lock     *os.File // owners/<id>
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

	netOnce sync.Mutex
	net     *network.Host

	mu     sync.Mutex
	procs  map[string]*proc // by sandbox id: what this engine watches
	timers map[string]*time.Timer
	idmaps map[string]bool // directories whose mounts take an id mapping or not
	closed bool
	done   chan struct{} // closed with it
}

func newEngine(ctx context.Context, opts *Options) (_ *engine, err error) {
	e := &engine{
		root:  os.Geteuid() == 0,
		procs: map[string]*proc{}, timers: map[string]*time.Timer{}, idmaps: map[string]bool{},
		done: make(chan struct{}),
	}
	if opts != nil {
		e.opts = *opts
	}
	if e.log = e.opts.Logger; e.log == nil {
		e.log = slog.New(slog.DiscardHandler)
	}
	fail := func(kind daytona.Kind, subject, message string, err error) error {
		return &daytona.Error{Kind: kind, Op: openOp, Subject: subject, Message: message, Err: err}
	}
	if err := supported(); err != nil {
		return nil, fail(daytona.KindUnsupported, "", "", err)
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
	e.state = state{root: dir}
	if err := e.state.makeDirs(); err != nil {
		return nil, fail(daytona.KindUnavailable, dir, "make its state directory", err)
	}
	defer func() {
		if err != nil {
			e.free()
		}
	}()
	if err := e.loadAgent(ctx); err != nil {
		return nil, fail(daytona.KindUnavailable, "", "", err)
	}
	if e.cgroups, err = findCgroups(e.state.tag()); err != nil {
		return nil, fail(daytona.KindUnavailable, "", "", err)
	}
	if e.images, err = image.OpenStore(e.state.dir("images"), nil); err != nil {
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
	b := make([]byte, 8)
	rand.Read(b)
	e.id = hex.EncodeToString(b)
	if e.lock, err = lockFile(e.state.owner(e.id), false); err != nil {
		return nil, fail(daytona.KindUnavailable, dir, "", err)
	}
	e.spawner = newSpawner()
	e.warm = newWarmPool(e)
	if err := e.recover(ctx); err != nil {
		return nil, fail(daytona.KindUnavailable, dir, "recover what earlier processes left", err)
	}
	return e, nil
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
	explicit := e.opts.Agent
	if explicit == "" {
		explicit = os.Getenv("DAYTONA_AGENT")
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = e.state.root
	}
	cache = filepath.Join(cache, "daytona", "bin")
	path, err := agentbin.Find(ctx, agentbin.Agent, explicit, cache)
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
	return nil
}

func (e *engine) Name() string { return "local" }

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

// recover finishes what dead engines left: it removes what belonged to them
// and takes note of what goes on.
func (e *engine) recover(ctx context.Context) error {
	ids, err := e.state.ids()
	if err != nil {
		return err
	}
	for _, id := range ids {
		r, unlock, err := e.locked(id, false)
		if errors.Is(err, errLocked) {
			// Somebody is at it, or has just died: a process that it was
			// starting may hold the lock for a moment longer.
			go e.check(id, true)
			continue
		}
		if err != nil {
			continue
		}
		r = e.reconcile(r)
		if r != nil {
			e.schedule(r)
		}
		unlock()
	}
	// Directories that were about to become sandboxes.
	entries, err := os.ReadDir(e.state.dir("sandboxes"))
	if err != nil {
		return err
	}
	for _, d := range entries {
		if engine, ok := newDirOwner(d.Name()); ok && !e.state.alive(engine) {
			if err := e.removeTree(e.state.sandbox(d.Name())); err != nil {
				e.log.Warn("files of a removed sandbox could not be removed; it will be tried again", "dir", d.Name(), "err", err)
			}
		}
	}
	// Groups of sandboxes whose directory somebody removed by hand.
	for _, id := range e.cgroups.ids() {
		if _, err := os.Stat(e.state.sandbox(id)); validID(id) && errors.Is(err, fs.ErrNotExist) {
			g := e.cgroups.group(id)
			g.kill()
			if err := g.remove(); err != nil {
				e.log.Warn("cgroup could not be removed", "sandbox", id, "err", err)
			}
		}
	}
	names, err := os.ReadDir(e.state.dir("names"))
	if err != nil {
		return err
	}
	for _, n := range names {
		id, err := e.state.lookupName(n.Name())
		if err != nil {
			continue
		}
		if _, err := os.Stat(e.state.sandbox(id)); errors.Is(err, fs.ErrNotExist) {
			e.state.releaseName(n.Name(), id)
		}
	}
	owners, err := os.ReadDir(e.state.dir("owners"))
	if err != nil {
		return err
	}
	for _, o := range owners {
		if !e.state.alive(o.Name()) {
			os.Remove(e.state.owner(o.Name()))
		}
	}
	return ctx.Err()
}

// newDir is where a sandbox's directory is made before it gets its name.
func (e *engine) newDir(id string) string { return ".new-" + e.id + "-" + id }

func newDirOwner(name string) (engine string, ok bool) {
	rest, ok := strings.CutPrefix(name, ".new-")
	engine, _, found := strings.Cut(rest, "-")
	return engine, ok && found
}

// locked loads a record under its lock.
func (e *engine) locked(id string, wait bool) (*record, func(), error) {
	if !validID(id) {
		return nil, nil, fs.ErrNotExist
	}
	f, err := openLock(e.state.file(id, "lock"), wait)
	if err != nil {
		return nil, nil, err
	}
	r, err := e.state.load(id)
	if errors.Is(err, fs.ErrNotExist) {
		if _, statErr := os.Stat(e.state.sandbox(id)); statErr == nil {
			// A directory without a record: what a removal had not come to.
			r, err = &record{Info: daytona.Info{ID: id}, Phase: phaseDeleting}, nil
		}
	}
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return r, func() { f.Close() }, nil
}

// openLock is lockFile for a directory that may be removed meanwhile.
func openLock(path string, wait bool) (*os.File, error) {
	f, err := lockFile(path, wait)
	if err != nil {
		return nil, err
	}
	var a, b unix.Stat_t
	if unix.Fstat(int(f.Fd()), &a) != nil || unix.Stat(path, &b) != nil || a.Ino != b.Ino {
		f.Close()
		return nil, fs.ErrNotExist
	}
	return f, nil
}

// reconcile brings a record, whose lock is held, in line with what is: it
// removes the sandbox of a dead owner and one whose time has come, and marks
// one as stopped whose processes have ended. It returns nil if the sandbox is
// no more.
func (e *engine) reconcile(r *record) *record {
	now := time.Now()
	ownerAlive := r.Owner == e.id || e.state.alive(r.Owner)
	switch {
	case r.Phase == phaseDeleting && !ownerAlive,
		r.Phase != phaseLive && r.Phase != phaseDeleting && !ownerAlive,
		r.Phase == phaseLive && !r.Persistent && !ownerAlive,
		r.Phase == phaseLive && (r.expired(now) || r.deletable(now)):
		if err := e.remove(r); err != nil {
			e.log.Warn("sandbox could not be removed; it will be tried again", "sandbox", r.ID, "err", err)
		}
		return nil
	case r.Phase != phaseLive:
		return nil // somebody is at it
	}
	switch r.State {
	case daytona.StateStopping, daytona.StateStarting:
		// Whoever was at it is dead, as we hold the lock. A stop is finished; a
		// start cannot be, as it may have needed its engine, and is taken back.
		e.end(r)
	case daytona.StateStarted:
		if r.running() {
			e.watch(r)
			return r
		}
	default:
		return r
	}
	if r.Ephemeral {
		if err := e.remove(r); err != nil {
			e.log.Warn("sandbox could not be removed; it will be tried again", "sandbox", r.ID, "err", err)
		}
		return nil
	}
	e.settle(r)
	return r
}

// settle marks a sandbox whose processes have ended as stopped.
func (e *engine) settle(r *record) {
	e.cgroups.group(r.ID).kill()
	if err := e.cgroups.group(r.ID).remove(); err != nil {
		e.log.Warn("cgroup could not be removed", "sandbox", r.ID, "err", err)
	}
	r.State, r.StoppedAt, r.PID, r.StartTime = daytona.StateStopped, time.Now().UTC(), 0, 0
	if err := e.state.save(r, true); err != nil {
		e.log.Error("record could not be written", "sandbox", r.ID, "err", err)
	}
	e.schedule(r)
}

// watch follows a sandbox's PID 1 to its end, once.
func (e *engine) watch(r *record) *proc {
	e.mu.Lock()
	defer e.mu.Unlock()
	if p := e.procs[r.ID]; p != nil && p.pid == r.PID {
		return p
	}
	p, err := adopt(r.PID, r.StartTime)
	if err != nil {
		return nil
	}
	e.follow(r.ID, p)
	return p
}

// follow registers a process. e.mu is held.
func (e *engine) follow(id string, p *proc) {
	if e.closed {
		return
	}
	e.procs[id] = p
	go func() {
		select {
		case <-p.done:
		case <-e.done:
			return
		}
		e.mu.Lock()
		current := e.procs[id] == p
		if current {
			delete(e.procs, id)
			p.pidfd.Close()
		}
		e.mu.Unlock()
		if current {
			e.check(id, true)
		}
	}()
}

// check brings one sandbox in line with what is. Unless wait is set, it
// leaves alone one that somebody is at.
func (e *engine) check(id string, wait bool) {
	r, unlock, err := e.locked(id, wait)
	if err != nil {
		return
	}
	defer unlock()
	if !e.isClosed() {
		e.reconcile(r)
	}
}

// schedule sees to it that a sandbox goes when its time has come.
func (e *engine) schedule(r *record) {
	var due time.Time
	if r.TTL > 0 {
		due = r.CreatedAt.Add(r.TTL)
	}
	if r.AutoDelete > 0 && r.State == daytona.StateStopped {
		if d := r.StoppedAt.Add(r.AutoDelete); due.IsZero() || d.Before(due) {
			due = d
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if t := e.timers[r.ID]; t != nil {
		t.Stop()
		delete(e.timers, r.ID)
	}
	if due.IsZero() || e.closed {
		return
	}
	id := r.ID
	e.timers[id] = time.AfterFunc(time.Until(due)+time.Millisecond, func() { e.check(id, true) })
}

// Close deletes what belongs to this engine and lets go of the rest.
func (e *engine) Close() error {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return nil
	}
	e.closed = true
	close(e.done)
	for _, t := range e.timers {
		t.Stop()
	}
	e.mu.Unlock()
	e.warm.close()
	var errs []error
	if ids, err := e.state.ids(); err == nil {
		var wg sync.WaitGroup
		var mu sync.Mutex
		slots := make(chan struct{}, 8)
		for _, id := range ids {
			r, err := e.state.load(id)
			if err != nil || r.Owner != e.id || (r.Phase == phaseLive && r.Persistent) {
				continue
			}
			wg.Go(func() {
				slots <- struct{}{}
				defer func() { <-slots }()
				r, unlock, err := e.locked(id, true)
				if err != nil {
					return
				}
				defer unlock()
				if err := e.remove(r); err != nil {
					mu.Lock()
					errs = append(errs, err)
					mu.Unlock()
				}
			})
		}
		wg.Wait()
	}
	e.free()
	return errors.Join(errs...)
}

// free releases what this process holds.
func (e *engine) free() {
	if e.spawner != nil {
		e.spawner.close()
	}
	e.mu.Lock()
	for id, p := range e.procs {
		p.pidfd.Close()
		delete(e.procs, id)
	}
	e.mu.Unlock()
	if e.net != nil {
		e.net.Close()
	}
	for _, f := range []*os.File{e.agent, e.hostNet} {
		if f != nil {
			f.Close()
		}
	}
	if e.lock != nil {
		os.Remove(e.lock.Name())
		e.lock.Close()
	}
}
