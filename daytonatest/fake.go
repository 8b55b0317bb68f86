package daytonatest

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"path"
	"slices"
	"sync"
	"time"

	"github.com/daytona-go/daytona"
)

// Fake is a [daytona.Backend] that lives in memory: sandboxes without
// isolation, programs or network, for fast tests of code that uses package
// daytona. It needs no rights, no Linux and no cleaning up.
//
// Its filesystem is complete but for symbolic links and the enforcement of
// permissions. Its programs are Go functions: a few built-in ones (cat, cd,
// echo, env, exit, export, false, printenv, pwd, sh, sleep, test, true) and
// those added by [Fake.HandleCommand]; sh knows lists, quotes, variables and
// redirections, and refuses the rest of the language. [Fake.HandlePort] serves
// ports. It forks, archives and takes snapshots. Terminals, Git, LSP, the
// interpreter, volumes, builds, pauses and the choice of a user are refused with
// KindUnsupported.
//
// Limits of CPU, memory, processes and network are accepted and echoed: there
// is nothing in a Fake that could exceed them. Resources.Disk is enforced. Any
// image name is accepted and gives an empty root.
//
// A Fake is safe for concurrent use.
type Fake struct {
	engine *engine
	mu     sync.Mutex
	closed bool
}

// NewFake returns an empty Fake.
func NewFake() *Fake {
	return &Fake{engine: &engine{sandboxes: map[string]*fakeSandbox{}, commands: map[string]CommandFunc{}, ports: map[int]func(net.Conn){}}}
}

// Reopen returns another Backend on the same sandboxes, as another process
// would have: it finds the persistent ones after f is closed.
func (f *Fake) Reopen() *Fake { return &Fake{engine: f.engine} }

// CommandFunc is a program of a Fake. It returns the exit code, and should
// return soon after ctx is done, which is what kills it.
type CommandFunc func(ctx context.Context, c *FakeCommand) int

// HandleCommand makes run the program called name, in all sandboxes, in place
// of any that had the name. The name "*" stands for every program that is not
// known otherwise.
func (f *Fake) HandleCommand(name string, run CommandFunc) {
	f.engine.mu.Lock()
	defer f.engine.mu.Unlock()
	f.engine.commands[name] = run
}

// HandlePort serves a TCP port of all sandboxes' loopback interfaces: serve is
// called with the far end of every connection that DialPort makes.
func (f *Fake) HandlePort(port int, serve func(net.Conn)) {
	f.engine.mu.Lock()
	defer f.engine.mu.Unlock()
	f.engine.ports[port] = serve
	f.engine.changed()
}

// engine is the state that all Backends on it share.
type engine struct {
	mu        sync.Mutex
	sandboxes map[string]*fakeSandbox
	order     []string // ids, oldest first
	made      int
	snapshots []*fakeSnapshot // oldest first
	commands  map[string]CommandFunc
	ports     map[int]func(net.Conn)
	waiting   []chan struct{} // closed at the next change
}

// changed wakes those who wait. The caller holds e.mu.
func (e *engine) changed() {
	for _, w := range e.waiting {
		close(w)
	}
	e.waiting = nil
}

// fakeSandbox is a sandbox. Its fields are guarded by engine.mu.
type fakeSandbox struct {
	info  daytona.Info
	owner *Fake
	files *tree
	// life ends when the sandbox stops, with the programs in it.
	life     context.Context
	end      context.CancelFunc
	sessions map[string]*fakeSession
	timers   map[string]*time.Timer
}

const (
	fakeUser = "daytona"
	fakeHome = "/home/daytona"
)

// fakeDirs are what every image has.
var fakeDirs = []string{"/etc", "/tmp", "/var/tmp", "/usr/bin", fakeHome}

func (f *Fake) error(kind daytona.Kind, op, subject, message string) error {
	return &daytona.Error{Kind: kind, Op: op, Subject: subject, Message: message}
}

// Name returns "fake".
func (f *Fake) Name() string { return "fake" }

// usable is an error once f is closed.
func (f *Fake) usable(op string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return f.error(daytona.KindUnavailable, op, "", "the backend is closed")
	}
	return nil
}

// refuse names the field that a Fake cannot honour.
func refuse(spec daytona.Spec) error {
	for _, x := range []struct {
		field string
		value any
		set   bool
	}{
		{"Build", nil, spec.Build != nil},
		{"User", spec.User, spec.User != "" && spec.User != fakeUser},
		{"Entrypoint", spec.Entrypoint, len(spec.Entrypoint) > 0},
		{"Volumes", len(spec.Volumes), len(spec.Volumes) > 0},
		{"AutoPause", spec.AutoPause, spec.AutoPause != 0},
	} {
		if x.set {
			return &daytona.Error{Kind: daytona.KindUnsupported, Op: "create sandbox", Field: x.field, Value: x.value, Message: "the fake backend does not support it"}
		}
	}
	return nil
}

func (f *Fake) Create(ctx context.Context, spec daytona.Spec) (daytona.Info, error) {
	const op = "create sandbox"
	if err := ctx.Err(); err != nil {
		return daytona.Info{}, err
	}
	if err := f.usable(op); err != nil {
		return daytona.Info{}, err
	}
	if err := refuse(spec); err != nil {
		return daytona.Info{}, err
	}
	e := f.engine
	e.mu.Lock()
	defer e.mu.Unlock()
	if spec.Name != "" && e.named(spec.Name) != nil {
		return daytona.Info{}, e.taken(op, spec.Name)
	}
	info := daytona.Info{
		Name: spec.Name, Backend: f.Name(), Image: spec.Image, User: fakeUser, WorkDir: path.Clean(cmp.Or(spec.WorkDir, fakeHome)),
		Env: spec.Env, Labels: spec.Labels, Language: cmp.Or(spec.Language, "python"),
		Resources: spec.Resources, Network: spec.Network, Persistent: spec.Persistent, Ephemeral: spec.Ephemeral,
		TTL: spec.TTL, AutoStop: spec.AutoStop, AutoArchive: spec.AutoArchive, AutoDelete: spec.AutoDelete,
	}
	files := newTree(0, fakeDirs...)
	if spec.Snapshot != "" {
		sn := e.snapshot(spec.Snapshot)
		switch {
		case sn == nil:
			return daytona.Info{}, f.error(daytona.KindNotFound, op, spec.Snapshot, "there is no such snapshot")
		case sn.State != daytona.SnapshotActive:
			return daytona.Info{}, f.error(daytona.KindState, op, spec.Snapshot, "the snapshot is "+string(sn.State)+"; activate it first")
		}
		info.Snapshot, info.Image, info.Resources = sn.Name, sn.Image, over(spec.Resources, sn.Resources)
		files, sn.LastUsedAt = sn.files.clone(), time.Now()
	}
	files.limit = info.Resources.DiskBytes()
	_ = files.mkdir(info.WorkDir, 0o755)
	return e.add(f, info, files).snapshot(), nil
}

// snapshot copies the Info. The caller holds engine.mu.
func (sb *fakeSandbox) snapshot() daytona.Info {
	i := sb.info
	i.Env, i.Labels = maps.Clone(i.Env), maps.Clone(i.Labels)
	i.Network.Allow = slices.Clone(i.Network.Allow)
	return i
}

// touch restarts the clock of AutoStop. The caller holds e.mu.
func (e *engine) touch(sb *fakeSandbox) {
	if t := sb.timers["stop"]; t != nil {
		t.Stop()
	}
	if id := sb.info.ID; sb.info.AutoStop > 0 && sb.info.State == daytona.StateStarted {
		sb.timers["stop"] = time.AfterFunc(sb.info.AutoStop, func() { _, _ = e.stop(id) })
	}
}

// find returns a sandbox by id. The caller holds e.mu.
func (e *engine) find(op, id string) (*fakeSandbox, error) {
	if sb := e.sandboxes[id]; sb != nil {
		return sb, nil
	}
	return nil, &daytona.Error{Kind: daytona.KindNotFound, Op: op, Subject: id, Message: "there is no such sandbox"}
}

func (f *Fake) Start(ctx context.Context, id string) (daytona.Info, error) {
	const op = "start sandbox"
	if err := cmp.Or(ctx.Err(), f.usable(op)); err != nil {
		return daytona.Info{}, err
	}
	e := f.engine
	e.mu.Lock()
	defer e.mu.Unlock()
	sb, err := e.find(op, id)
	if err != nil {
		return daytona.Info{}, err
	}
	if sb.info.State != daytona.StateStarted {
		sb.info.State, sb.info.StartedAt = daytona.StateStarted, time.Now()
		sb.life, sb.end = context.WithCancel(context.Background())
		sb.sessions = map[string]*fakeSession{}
		for _, name := range []string{"archive", "delete"} {
			if t := sb.timers[name]; t != nil {
				t.Stop()
			}
		}
		e.touch(sb)
		e.changed()
	}
	return sb.snapshot(), nil
}

func (f *Fake) Stop(ctx context.Context, id string, _ daytona.StopOptions) (daytona.Info, error) {
	if err := cmp.Or(ctx.Err(), f.usable("stop sandbox")); err != nil {
		return daytona.Info{}, err
	}
	return f.engine.stop(id)
}

func (e *engine) stop(id string) (daytona.Info, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	sb, err := e.find("stop sandbox", id)
	if err != nil || sb.info.State == daytona.StateStopped || sb.info.State == daytona.StateArchived {
		if err != nil {
			return daytona.Info{}, err
		}
		return sb.snapshot(), nil
	}
	sb.end()
	sb.info.State, sb.info.StoppedAt = daytona.StateStopped, time.Now()
	if sb.info.Ephemeral {
		e.remove(sb)
		sb.info.State = daytona.StateDestroyed
	} else {
		if sb.info.AutoArchive > 0 {
			sb.timers["archive"] = time.AfterFunc(sb.info.AutoArchive, func() { _, _ = sb.owner.Archive(context.Background(), id) })
		}
		if sb.info.AutoDelete > 0 {
			sb.timers["delete"] = time.AfterFunc(sb.info.AutoDelete, func() { _ = e.delete(id) })
		}
	}
	e.changed()
	return sb.snapshot(), nil
}

// remove forgets a sandbox. The caller holds e.mu.
func (e *engine) remove(sb *fakeSandbox) {
	sb.end()
	for _, t := range sb.timers {
		t.Stop()
	}
	delete(e.sandboxes, sb.info.ID)
	e.order = slices.DeleteFunc(e.order, func(id string) bool { return id == sb.info.ID })
	e.changed()
}

func (e *engine) delete(id string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	sb, err := e.find("delete sandbox", id)
	if err == nil {
		e.remove(sb)
	}
	return err
}

func (f *Fake) Delete(ctx context.Context, id string) error {
	if err := cmp.Or(ctx.Err(), f.usable("delete sandbox")); err != nil {
		return err
	}
	return f.engine.delete(id)
}

func (f *Fake) Get(ctx context.Context, idOrName string) (daytona.Info, error) {
	const op = "get sandbox"
	if err := cmp.Or(ctx.Err(), f.usable(op)); err != nil {
		return daytona.Info{}, err
	}
	e := f.engine
	e.mu.Lock()
	defer e.mu.Unlock()
	if sb := e.sandboxes[idOrName]; sb != nil {
		return sb.snapshot(), nil
	}
	for _, sb := range e.sandboxes {
		if sb.info.Name == idOrName {
			return sb.snapshot(), nil
		}
	}
	_, err := e.find(op, idOrName)
	return daytona.Info{}, err
}

func (f *Fake) List(ctx context.Context, filter daytona.Filter) iter.Seq2[daytona.Info, error] {
	return func(yield func(daytona.Info, error) bool) {
		if err := cmp.Or(ctx.Err(), f.usable("list sandboxes")); err != nil {
			yield(daytona.Info{}, err)
			return
		}
		e := f.engine
		e.mu.Lock()
		var infos []daytona.Info
		for _, id := range e.order {
			if i := e.sandboxes[id].snapshot(); filter.Match(i) {
				infos = append(infos, i)
			}
		}
		e.mu.Unlock()
		for _, i := range infos {
			if !yield(i, nil) {
				return
			}
		}
	}
}

// Update implements [daytona.Updater].
func (f *Fake) Update(ctx context.Context, id string, u daytona.Update) (daytona.Info, error) {
	const op = "update sandbox"
	if err := cmp.Or(ctx.Err(), f.usable(op)); err != nil {
		return daytona.Info{}, err
	}
	e := f.engine
	e.mu.Lock()
	defer e.mu.Unlock()
	sb, err := e.find(op, id)
	if err != nil {
		return daytona.Info{}, err
	}
	for field, d := range map[string]*time.Duration{"AutoStop": u.AutoStop, "AutoArchive": u.AutoArchive, "AutoDelete": u.AutoDelete} {
		if d != nil && *d != 0 && *d < time.Second {
			return daytona.Info{}, &daytona.Error{Kind: daytona.KindInvalid, Op: op, Subject: id, Field: field, Value: *d, Message: "must be 0 (never) or at least 1s"}
		}
	}
	if u.AutoPause != nil && *u.AutoPause != 0 {
		return daytona.Info{}, &daytona.Error{Kind: daytona.KindUnsupported, Op: op, Subject: id, Field: "AutoPause", Value: *u.AutoPause, Message: "the fake backend does not support it"}
	}
	if u.Labels != nil {
		sb.info.Labels = maps.Clone(u.Labels)
	}
	if u.AutoStop != nil {
		sb.info.AutoStop = *u.AutoStop
	}
	if u.AutoArchive != nil {
		sb.info.AutoArchive = *u.AutoArchive
	}
	if u.AutoDelete != nil {
		sb.info.AutoDelete = *u.AutoDelete
	}
	e.touch(sb)
	e.changed()
	return sb.snapshot(), nil
}

// Wait implements [daytona.Watcher].
func (f *Fake) Wait(ctx context.Context, id string, states ...daytona.State) (daytona.Info, error) {
	e := f.engine
	for {
		e.mu.Lock()
		sb, err := e.find("wait for sandbox", id)
		if err != nil {
			e.mu.Unlock()
			return daytona.Info{}, err
		}
		info := sb.snapshot()
		change := make(chan struct{})
		e.waiting = append(e.waiting, change)
		e.mu.Unlock()
		if slices.Contains(states, info.State) {
			return info, nil
		}
		select {
		case <-ctx.Done():
			return daytona.Info{}, ctx.Err()
		case <-change:
		}
	}
}

func (f *Fake) Connect(id string) daytona.Toolbox { return &fakeConn{f, id} }

// Close deletes the sandboxes that f made and that are not persistent.
func (f *Fake) Close() error {
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	e := f.engine
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, id := range slices.Clone(e.order) {
		if sb := e.sandboxes[id]; sb.owner == f && !sb.info.Persistent {
			e.remove(sb)
		}
	}
	return nil
}

// fakeConn is the toolbox of one sandbox.
type fakeConn struct {
	f  *Fake
	id string
}

// started returns the sandbox if it is started; each use of it counts as
// activity.
func (c *fakeConn) started(ctx context.Context, op string) (*fakeSandbox, error) {
	if err := cmp.Or(ctx.Err(), c.f.usable(op)); err != nil {
		return nil, err
	}
	e := c.f.engine
	e.mu.Lock()
	defer e.mu.Unlock()
	sb, err := e.find(op, c.id)
	if err != nil {
		return nil, err
	}
	if sb.info.State != daytona.StateStarted {
		return nil, c.f.error(daytona.KindState, op, c.id, "the sandbox is "+string(sb.info.State)+"; start it first")
	}
	e.touch(sb)
	return sb, nil
}

func (c *fakeConn) FileSystem() daytona.FileSystem   { return fakeFS{c} }
func (c *fakeConn) Process() daytona.Process         { return fakeProcess{c} }
func (c *fakeConn) Git() daytona.Git                 { return noGit{c} }
func (c *fakeConn) Interpreter() daytona.Interpreter { return noInterpreter{c} }
func (c *fakeConn) ComputerUse() daytona.ComputerUse { return noComputerUse{c} }
func (c *fakeConn) SSH() daytona.SSH                 { return noSSH{c} }
func (c *fakeConn) Close() error                     { return nil }

func (c *fakeConn) LSPServer(string, string) daytona.LSPServer { return noLSP{c} }

func (c *fakeConn) HomeDir(ctx context.Context) (string, error) {
	_, err := c.started(ctx, "home directory")
	if err != nil {
		return "", err
	}
	return fakeHome, nil
}

func (c *fakeConn) WorkDir(ctx context.Context) (string, error) {
	sb, err := c.started(ctx, "working directory")
	if err != nil {
		return "", err
	}
	return sb.info.WorkDir, nil
}

func (c *fakeConn) Metrics(ctx context.Context) (daytona.Metrics, error) {
	sb, err := c.started(ctx, "metrics")
	if err != nil {
		return daytona.Metrics{}, err
	}
	sb.files.mu.RLock()
	defer sb.files.mu.RUnlock()
	total := cmp.Or(sb.files.limit, daytona.GiB)
	return daytona.Metrics{CPUCount: 1, MemoryUsed: 1 << 20, MemoryTotal: cmp.Or(sb.info.Resources.MemoryBytes(), daytona.GiB), DiskUsed: sb.files.used, DiskTotal: total, DiskFree: max(total-sb.files.used, 0), Time: time.Now()}, nil
}

func (c *fakeConn) Dial(ctx context.Context) (net.Conn, error) {
	if _, err := c.started(ctx, "dial agent"); err != nil {
		return nil, err
	}
	return nil, c.unsupported("dial agent")
}

func (c *fakeConn) DialPort(ctx context.Context, port int) (net.Conn, error) {
	const op = "dial sandbox port"
	if _, err := c.started(ctx, op); err != nil {
		return nil, err
	}
	c.f.engine.mu.Lock()
	serve := c.f.engine.ports[port]
	c.f.engine.mu.Unlock()
	if serve == nil {
		return nil, c.f.error(daytona.KindUnavailable, op, fmt.Sprintf("%s:%d", c.id, port), "nothing listens there; see Fake.HandlePort")
	}
	here, there := net.Pipe()
	go serve(there)
	return here, nil
}

func (c *fakeConn) unsupported(op string) error {
	return c.f.error(daytona.KindUnsupported, op, c.id, "the fake backend does not support it")
}

// HTTP adapts a handler for [Fake.HandlePort].
func HTTP(h http.Handler) func(net.Conn) {
	return func(conn net.Conn) {
		l := &oneConn{conn: conn, done: make(chan struct{})}
		srv := &http.Server{Handler: h, ReadHeaderTimeout: time.Minute, ConnState: func(_ net.Conn, s http.ConnState) {
			if s == http.StateClosed || s == http.StateHijacked {
				l.once.Do(func() { close(l.done) })
			}
		}}
		_ = srv.Serve(l)
	}
}

// oneConn is a listener that accepts one connection and then waits for its
// end.
type oneConn struct {
	conn net.Conn
	mu   sync.Mutex
	done chan struct{}
	once sync.Once
}

func (l *oneConn) Accept() (net.Conn, error) {
	l.mu.Lock()
	c := l.conn
	l.conn = nil
	l.mu.Unlock()
	if c != nil {
		return c, nil
	}
	<-l.done
	return nil, net.ErrClosed
}

func (l *oneConn) Close() error { l.once.Do(func() { close(l.done) }); return nil }
func (l *oneConn) Addr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), 0))
}

var (
	_ daytona.Backend = (*Fake)(nil)
	_ daytona.Updater = (*Fake)(nil)
	_ daytona.Watcher = (*Fake)(nil)
	_ daytona.Toolbox = (*fakeConn)(nil)
)
