package plugin

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/daytona-go/daytona"
	pb "github.com/daytona-go/daytona/backend/plugin/proto"
)

const (
	// createLabel marks a persistent sandbox with the Create that made it.
	createLabel = "daytona.plugin/create"
	// restartWindow is the time that Options.MaxRestarts is about.
	restartWindow = time.Minute
	// cancelGrace is how long a cancelled Create may take to clean up before
	// its stream is cut, after which the plugin cleans up unwatched.
	cancelGrace = 30 * time.Second
	// deathGrace is how long the end of a connection may be ahead of the news
	// that the process has ended.
	deathGrace = 2 * time.Second
	// exitGrace is how long a plugin may take to exit once its backend is
	// closed.
	exitGrace = 5 * time.Second
)

// backend is the host's side: daytona.Backend over whichever process of the
// plugin lives at the moment.
type backend struct {
	opts   Options
	plugin string // for people: the executable's name
	log    *slog.Logger

	ctx    context.Context // ends when the backend is closed
	cancel context.CancelFunc

	mu       sync.Mutex
	current  *child
	start    *starting   // under way
	starts   []time.Time // within restartWindow
	lastExit string      // how the last process ended
	// marks of the Creates under way and of those that a dead process has not
	// answered; true for one whose sandbox is about to be deleted.
	orphans  map[string]bool
	closed   bool
	closeErr error
	done     chan struct{} // closed when Close is through

	// What the plugin said when it was opened first; it must not change.
	opened bool
	name   string
	caps   map[pb.Capability]bool
}

// starting is a start of the plugin that calls wait for.
type starting struct {
	done chan struct{}
	err  error
}

func newBackend(o Options) *backend {
	b := &backend{
		opts: o, plugin: filepath.Base(o.Path), log: o.Logger.With("plugin", filepath.Base(o.Path)),
		orphans: map[string]bool{}, done: make(chan struct{}),
	}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	return b
}

// As gives the capabilities that the plugin says it has, and no other.
func (b *backend) As(target any) bool {
	switch t := target.(type) {
	case *daytona.Pauser:
		return grant(b, pb.Capability_CAPABILITY_PAUSE, t)
	case *daytona.Forker:
		return grant(b, pb.Capability_CAPABILITY_FORK, t)
	case *daytona.Snapshotter:
		return grant(b, pb.Capability_CAPABILITY_SNAPSHOT, t)
	case *daytona.Resizer:
		return grant(b, pb.Capability_CAPABILITY_RESIZE, t)
	case *daytona.NetworkPolicer:
		return grant(b, pb.Capability_CAPABILITY_NETWORK_POLICY, t)
	case *daytona.Archiver:
		return grant(b, pb.Capability_CAPABILITY_ARCHIVE, t)
	case *daytona.Updater:
		return grant(b, pb.Capability_CAPABILITY_UPDATE, t)
	case *daytona.VolumeManager:
		return grant(b, pb.Capability_CAPABILITY_VOLUMES, t)
	case *daytona.ImageBuilder:
		return grant(b, pb.Capability_CAPABILITY_BUILD, t)
	case *daytona.Watcher:
		return grant(b, pb.Capability_CAPABILITY_WAIT, t)
	}
	return false
}

func grant[T any](b *backend, k pb.Capability, target *T) bool {
	if !b.caps[k] {
		return false
	}
	*target = any(optional{b}).(T)
	return true
}

func (b *backend) Name() string { return b.name }

// unavailable is the error for a plugin that cannot do its work.
func (b *backend) unavailable(op, subject, message string, err error) error {
	return &daytona.Error{Kind: daytona.KindUnavailable, Op: op, Subject: subject, Message: "plugin " + b.plugin + " " + message, Err: err}
}

// acquire returns the living process, starting one if there is none.
func (b *backend) acquire(ctx context.Context) (*child, error) {
	for {
		b.mu.Lock()
		if b.closed {
			b.mu.Unlock()
			return nil, b.unavailable("call plugin", "", "is closed", nil)
		}
		if c := b.current; c != nil && !c.isDead() {
			b.mu.Unlock()
			select {
			case <-c.ended: // and nobody may call it any more
			default:
				return c, nil
			}
			select {
			case <-c.dead:
				continue
			case <-ctx.Done():
				return nil, ended("call plugin", b.plugin, ctx.Err())
			}
		}
		s := b.startLocked()
		b.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil, ended("start plugin", b.plugin, ctx.Err())
		case <-s.done:
			if s.err != nil {
				return nil, s.err
			}
		}
	}
}

// startLocked starts the plugin unless that is under way. b.mu is held.
func (b *backend) startLocked() *starting {
	if b.start != nil {
		return b.start
	}
	s := &starting{done: make(chan struct{})}
	b.start = s
	dead := b.current
	b.current = nil
	if dead != nil {
		b.lastExit = dead.exit
	}
	var wait time.Duration
	if b.opened {
		now := time.Now()
		b.starts = slices.DeleteFunc(b.starts, func(t time.Time) bool { return now.Sub(t) > restartWindow })
		if n := len(b.starts); n >= b.opts.MaxRestarts {
			again := b.starts[0].Add(restartWindow).Sub(now).Round(time.Second)
			s.err = b.unavailable("start plugin", "", fmt.Sprintf("was started again %d times within %v and ended each time (%s); it will be tried again in %v",
				n, restartWindow, b.lastExit, again), nil)
		} else if n > 0 {
			// The first one is at once, the next ones after ever longer.
			wait = min(100*time.Millisecond<<min(n-1, 10), restartWindow/time.Duration(b.opts.MaxRestarts), 5*time.Second)
		}
	}
	if s.err != nil {
		b.start = nil
		close(s.done)
		return s
	}
	go func() {
		c, err := b.restart(dead, wait)
		b.mu.Lock()
		b.start = nil
		switch {
		case err == nil:
			b.current = c
		case b.opened && b.ctx.Err() == nil:
			// The text only: it is not the call's sandbox that is not found.
			err = b.unavailable("start plugin", "", "ended ("+b.lastExit+") and does not start again: "+err.Error(), nil)
		}
		s.err = err
		b.mu.Unlock()
		close(s.done)
	}()
	return s
}

// restart starts the plugin and opens its backend.
func (b *backend) restart(dead *child, wait time.Duration) (*child, error) {
	if dead != nil {
		dead.stop(0) // frees what belonged to it
	}
	if b.opened {
		b.log.Warn("the plugin ended and is started again", "exit", b.lastExit, "in", wait)
		t := time.NewTimer(wait)
		defer t.Stop()
		select {
		case <-t.C:
		case <-b.ctx.Done():
			return nil, ended("start plugin", b.plugin, b.ctx.Err())
		}
		b.mu.Lock()
		b.starts = append(b.starts, time.Now())
		b.mu.Unlock()
	}
	c, err := startChild(b.ctx, &b.opts, b.log)
	if err != nil {
		return nil, err
	}
	if err := b.open(c); err != nil {
		c.stop(0)
		return nil, err
	}
	go c.watch(b.opts.Unresponsive, b.log)
	b.removeOrphans(c)
	return c, nil
}

// open opens the backend of a new process.
func (b *backend) open(c *child) error {
	level := slog.LevelError
	for _, l := range []slog.Level{slog.LevelWarn, slog.LevelInfo, slog.LevelDebug, levelTrace} {
		if b.log.Enabled(b.ctx, l) {
			level = l
		}
	}
	r, err := c.rpc.Open(b.ctx, &pb.OpenRequest{Config: configToWire(b.opts.Config), LogLevel: levelName(level)})
	if err != nil {
		return b.callError(b.ctx, c, openOp, b.plugin, err)
	}
	caps := map[pb.Capability]bool{}
	for _, k := range r.GetCapabilities() {
		caps[k] = true
	}
	if b.opened {
		if r.GetName() != b.name || !maps.Equal(caps, b.caps) {
			return b.unavailable("start plugin", "", fmt.Sprintf("has changed: it was backend %q with %d capabilities and now is %q with %d; open it anew",
				b.name, len(b.caps), r.GetName(), len(caps)), nil)
		}
		return nil
	}
	if r.GetName() == "" {
		return b.unavailable(openOp, "", "gave its backend no name", nil)
	}
	b.opened, b.name, b.caps = true, r.GetName(), caps
	return nil
}

// removeOrphans deletes sandboxes whose Create the caller was told had failed.
// It runs before any other call can see them.
func (b *backend) removeOrphans(c *child) {
	b.mu.Lock()
	marks := slices.Collect(maps.Keys(b.orphans))
	for _, m := range marks {
		b.orphans[m] = true
	}
	b.mu.Unlock()
	ctx, cancel := context.WithTimeout(b.ctx, cancelGrace)
	defer cancel()
	for _, mark := range marks {
		err := func() error {
			stream, err := c.rpc.List(ctx, &pb.Filter{Labels: map[string]string{createLabel: mark}})
			for err == nil {
				var m *pb.Info
				if m, err = stream.Recv(); err == nil {
					_, err = c.rpc.Delete(ctx, &pb.SandboxRequest{Id: m.GetId()})
				}
			}
			if err == io.EOF {
				return nil
			}
			return err
		}()
		if err != nil {
			b.log.Warn("a sandbox whose creation failed could not be looked for; it will be tried again when the plugin is started again", "err", err)
			continue
		}
		b.mu.Lock()
		delete(b.orphans, mark)
		b.mu.Unlock()
	}
}

// callError is the error of a call that a process did not answer with success.
func (b *backend) callError(ctx context.Context, c *child, op, subject string, err error) error {
	e, theirs := statusError(err, op, subject)
	if ctxErr := ctx.Err(); ctxErr != nil {
		// The connection and the plugin may tell one end of a context from
		// another less well than ctx.
		if !theirs || errors.Is(e, context.Canceled) || errors.Is(e, context.DeadlineExceeded) {
			if errors.Is(e, ctxErr) && theirs {
				return e
			}
			return ended(op, subject, ctxErr)
		}
		return e
	}
	if theirs {
		if len(status.Convert(err).Details()) == 0 && strings.Contains(err.Error(), "invalid UTF-8") {
			return &daytona.Error{Kind: daytona.KindInvalid, Op: op, Subject: subject, Message: "text must be valid UTF-8 to be sent to a plugin", Err: e}
		}
		return e
	}
	t := time.NewTimer(deathGrace)
	defer t.Stop()
	select {
	case <-c.dead:
		return b.unavailable(op, subject, "ended meanwhile ("+c.exit+"); it is started again by the next call", nil)
	case <-t.C:
		return b.unavailable(op, subject, "cannot be reached", err)
	}
}

// call makes a call that is answered by one message. A call that changes
// nothing is made again if the process dies.
func call[M, T any](b *backend, ctx context.Context, op, subject string, repeat bool, make func(context.Context, pb.BackendClient) (M, error), from func(M) (T, error)) (T, error) {
	var none T
	for {
		if err := ctx.Err(); err != nil {
			return none, ended(op, subject, err)
		}
		c, err := b.acquire(ctx)
		if err != nil {
			return none, err
		}
		m, err := make(ctx, c.rpc)
		if err == nil {
			return from(m)
		}
		err = b.callError(ctx, c, op, subject, err)
		if !repeat || !c.isDead() || ctx.Err() != nil {
			return none, err
		}
		repeat = false
	}
}

// stream makes a call that is answered by any number of messages. It is made
// again if the process dies before the first of them.
func stream[M, T any](b *backend, ctx context.Context, op string, start func(context.Context, pb.BackendClient) (grpc.ServerStreamingClient[M], error), from func(*M) (T, error)) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var none T
		ctx, cancel := context.WithCancel(ctx)
		defer cancel() // an early break
		for repeat := true; ; {
			if err := ctx.Err(); err != nil {
				yield(none, ended(op, "", err))
				return
			}
			c, err := b.acquire(ctx)
			if err != nil {
				yield(none, err)
				return
			}
			s, err := start(ctx, c.rpc)
			for err == nil {
				var m *M
				if m, err = s.Recv(); err != nil {
					break
				}
				repeat = false
				v, convErr := from(m)
				if convErr != nil {
					yield(none, convErr)
					return
				}
				if !yield(v, nil) {
					return
				}
			}
			if err == io.EOF {
				return
			}
			err = b.callError(ctx, c, op, "", err)
			if repeat && c.isDead() && ctx.Err() == nil {
				repeat = false
				continue
			}
			yield(none, err)
			return
		}
	}
}

// info is infoFromWire as the caller is to see it.
func info(m *pb.Info) (daytona.Info, error) {
	delete(m.GetLabels(), createLabel)
	return infoFromWire(m)
}

// Create makes a sandbox. It is a conversation, as an Info that gets lost on
// its way would be a sandbox that nobody knows: see the protocol.
func (b *backend) Create(ctx context.Context, spec daytona.Spec) (daytona.Info, error) {
	const op = "create sandbox"
	if err := ctx.Err(); err != nil {
		return daytona.Info{}, ended(op, spec.Name, err)
	}
	if spec.Build != nil {
		return daytona.Info{}, unbuilt(op)
	}
	c, err := b.acquire(ctx)
	if err != nil {
		return daytona.Info{}, err
	}
	mark := ""
	if spec.Persistent {
		mark = rand.Text()
		spec.Labels = maps.Clone(spec.Labels)
		if spec.Labels == nil {
			spec.Labels = map[string]string{}
		}
		spec.Labels[createLabel] = mark
		b.mu.Lock()
		b.orphans[mark] = false
		b.mu.Unlock()
	}
	m, answered, err := b.create(ctx, c, spec)
	if mark != "" && answered {
		b.mu.Lock()
		lost := b.orphans[mark]
		delete(b.orphans, mark)
		b.mu.Unlock()
		if lost && err == nil {
			err = b.unavailable(op, spec.Name, "ended just then, and the sandbox is deleted", nil)
		}
	}
	if err != nil {
		return daytona.Info{}, err
	}
	return info(m)
}

// create is the conversation. answered says that it came to its end, so that
// there is a sandbox if and only if there is no error.
func (b *backend) create(ctx context.Context, c *child, spec daytona.Spec) (_ *pb.Info, answered bool, _ error) {
	const op = "create sandbox"
	streamCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	s, err := c.rpc.Create(streamCtx)
	if err != nil {
		return nil, false, b.callError(ctx, c, op, spec.Name, err)
	}
	err = s.Send(&pb.CreateRequest{Message: &pb.CreateRequest_Spec{Spec: specToWire(spec)}})
	var sending sync.Mutex
	confirmed := false
	var cut *time.Timer
	stop := context.AfterFunc(ctx, func() {
		sending.Lock()
		defer sending.Unlock()
		if !confirmed {
			_ = s.Send(&pb.CreateRequest{Message: &pb.CreateRequest_Cancel{Cancel: true}})
			cut = time.AfterFunc(cancelGrace, cancel)
		}
	})
	defer func() {
		stop()
		sending.Lock()
		defer sending.Unlock()
		if cut != nil {
			cut.Stop()
		}
	}()
	var made *pb.Info
	for err == nil || err == io.EOF && made == nil {
		// (Send's io.EOF means that Recv has the error.)
		var m *pb.CreateResponse
		if m, err = s.Recv(); err != nil {
			break
		}
		switch {
		case m.GetInfo() != nil:
			made = m.GetInfo()
			sending.Lock()
			confirmed = true
			err = s.CloseSend()
			sending.Unlock()
		case m.GetProgress() != nil && spec.OnProgress != nil:
			p := m.GetProgress()
			spec.OnProgress(daytona.Progress{Stage: p.GetStage(), Done: p.GetDone(), Total: p.GetTotal()})
		}
	}
	if err == io.EOF && made != nil {
		return made, true, nil
	}
	if err == io.EOF {
		return nil, false, b.unavailable(op, spec.Name, noAnswer, nil)
	}
	_, theirs := statusError(err, op, spec.Name)
	// A stream that was cut has told the plugin to clean up.
	return nil, theirs || !c.isDead() && streamCtx.Err() != nil, b.callError(ctx, c, op, spec.Name, err)
}

func (b *backend) Start(ctx context.Context, id string) (daytona.Info, error) {
	return call(b, ctx, "start sandbox", id, false, func(ctx context.Context, r pb.BackendClient) (*pb.Info, error) {
		return r.Start(ctx, &pb.SandboxRequest{Id: id})
	}, info)
}

func (b *backend) Stop(ctx context.Context, id string, opts daytona.StopOptions) (daytona.Info, error) {
	return call(b, ctx, "stop sandbox", id, false, func(ctx context.Context, r pb.BackendClient) (*pb.Info, error) {
		return r.Stop(ctx, stopToWire(id, opts))
	}, info)
}

func (b *backend) Delete(ctx context.Context, id string) error {
	_, err := call(b, ctx, "delete sandbox", id, false, func(ctx context.Context, r pb.BackendClient) (*pb.DeleteResponse, error) {
		return r.Delete(ctx, &pb.SandboxRequest{Id: id})
	}, nothing)
	return err
}

func nothing(*pb.DeleteResponse) (struct{}, error) { return struct{}{}, nil }

func (b *backend) Get(ctx context.Context, idOrName string) (daytona.Info, error) {
	return call(b, ctx, "get sandbox", idOrName, true, func(ctx context.Context, r pb.BackendClient) (*pb.Info, error) {
		return r.Get(ctx, &pb.SandboxRequest{Id: idOrName})
	}, info)
}

func (b *backend) List(ctx context.Context, filter daytona.Filter) iter.Seq2[daytona.Info, error] {
	return stream(b, ctx, "list sandboxes", func(ctx context.Context, r pb.BackendClient) (grpc.ServerStreamingClient[pb.Info], error) {
		return r.List(ctx, filterToWire(filter))
	}, info)
}

// Close closes the plugin's backend and ends its process. A plugin that has
// died is started once more, so that it can remove what the dead one had.
func (b *backend) Close() error {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		<-b.done
		return b.closeErr
	}
	for b.current == nil || b.current.isDead() {
		s := b.startLocked()
		b.mu.Unlock()
		t := time.NewTimer(b.opts.CloseTimeout)
		select {
		case <-s.done:
		case <-t.C:
			s = &starting{err: b.unavailable("close plugin", "", "does not start; what it had is removed when it is opened the next time", nil)}
		}
		t.Stop()
		b.mu.Lock()
		if s.err != nil {
			b.closeErr = s.err
			break
		}
		if b.closed { // by another call
			b.mu.Unlock()
			<-b.done
			return b.closeErr
		}
	}
	c := b.current
	b.closed = true
	b.mu.Unlock()
	defer close(b.done)
	defer b.cancel()
	if c == nil || c.isDead() {
		if c != nil {
			c.stop(0)
		}
		return b.closeErr
	}
	ctx, cancel := context.WithTimeout(context.Background(), b.opts.CloseTimeout)
	defer cancel()
	if _, err := c.rpc.Close(ctx, &pb.CloseRequest{}); err != nil {
		b.closeErr = b.callError(ctx, c, "close plugin", b.plugin, err)
	}
	c.stop(exitGrace)
	return b.closeErr
}

// optional has the methods of all capabilities; As gives out those that there
// are.
type optional struct{ b *backend }

func (o optional) Pause(ctx context.Context, id string, opts daytona.PauseOptions) (daytona.Info, error) {
	return call(o.b, ctx, "pause sandbox", id, false, func(ctx context.Context, r pb.BackendClient) (*pb.Info, error) {
		return r.Pause(ctx, pauseToWire(id, opts))
	}, info)
}

func (o optional) Resume(ctx context.Context, id string) (daytona.Info, error) {
	return call(o.b, ctx, "resume sandbox", id, false, func(ctx context.Context, r pb.BackendClient) (*pb.Info, error) {
		return r.Resume(ctx, &pb.SandboxRequest{Id: id})
	}, info)
}

func (o optional) Fork(ctx context.Context, id string, opts daytona.ForkOptions) ([]daytona.Info, error) {
	const op = "fork sandbox"
	if len(opts.Names) == 0 {
		opts.Names = []string{""}
	}
	return call(o.b, ctx, op, id, false, func(ctx context.Context, r pb.BackendClient) (*pb.ForkResponse, error) {
		return r.Fork(ctx, forkToWire(id, opts))
	}, func(m *pb.ForkResponse) ([]daytona.Info, error) {
		if n := len(m.GetChildren()); n != len(opts.Names) {
			return nil, &daytona.Error{Kind: daytona.KindInternal, Op: op, Subject: id,
				Message: fmt.Sprintf("plugin %s answered with %d children where there are to be %d", o.b.plugin, n, len(opts.Names))}
		}
		var children []daytona.Info
		for _, c := range m.GetChildren() {
			i, err := info(c)
			if err != nil {
				return nil, err
			}
			children = append(children, i)
		}
		return children, nil
	})
}

func (o optional) CreateSnapshot(ctx context.Context, spec daytona.SnapshotSpec) (daytona.Snapshot, error) {
	const op = "create snapshot"
	if spec.Build != nil {
		return daytona.Snapshot{}, unbuilt(op)
	}
	return call(o.b, ctx, op, spec.Name, false, func(ctx context.Context, r pb.BackendClient) (*pb.Snapshot, error) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		var made *pb.Snapshot
		s, err := r.CreateSnapshot(ctx, snapshotSpecToWire(spec))
		for err == nil {
			var m *pb.CreateSnapshotResponse
			if m, err = s.Recv(); err != nil {
				break
			}
			switch p := m.GetProgress(); {
			case m.GetSnapshot() != nil:
				made = m.GetSnapshot()
			case p != nil && spec.OnProgress != nil:
				spec.OnProgress(daytona.Progress{Stage: p.GetStage(), Done: p.GetDone(), Total: p.GetTotal()})
			}
		}
		switch {
		case err == io.EOF && made != nil:
			return made, nil
		case err == io.EOF:
			return nil, status.Error(codes.Internal, noAnswer)
		}
		return nil, err
	}, snapshotFromWire)
}

// unbuilt is the error for a request with a Build, which a Client has built
// before a backend sees it.
func unbuilt(op string) error {
	return &daytona.Error{Kind: daytona.KindUnsupported, Op: op, Field: "Build", Message: "backends make nothing of it; build it with BuildImage and use Image"}
}

// noAnswer is said of a plugin that does not keep to the protocol.
const noAnswer = "ended the call without an answer"

func (o optional) GetSnapshot(ctx context.Context, idOrName string) (daytona.Snapshot, error) {
	return call(o.b, ctx, "get snapshot", idOrName, true, func(ctx context.Context, r pb.BackendClient) (*pb.Snapshot, error) {
		return r.GetSnapshot(ctx, &pb.NameRequest{Name: idOrName})
	}, snapshotFromWire)
}

func (o optional) ListSnapshots(ctx context.Context) iter.Seq2[daytona.Snapshot, error] {
	return stream(o.b, ctx, "list snapshots", func(ctx context.Context, r pb.BackendClient) (grpc.ServerStreamingClient[pb.Snapshot], error) {
		return r.ListSnapshots(ctx, &pb.ListRequest{})
	}, snapshotFromWire)
}

func (o optional) DeleteSnapshot(ctx context.Context, idOrName string) error {
	_, err := call(o.b, ctx, "delete snapshot", idOrName, false, func(ctx context.Context, r pb.BackendClient) (*pb.DeleteResponse, error) {
		return r.DeleteSnapshot(ctx, &pb.NameRequest{Name: idOrName})
	}, nothing)
	return err
}

func (o optional) SetSnapshotActive(ctx context.Context, idOrName string, active bool) (daytona.Snapshot, error) {
	return call(o.b, ctx, "set snapshot active", idOrName, false, func(ctx context.Context, r pb.BackendClient) (*pb.Snapshot, error) {
		return r.SetSnapshotActive(ctx, &pb.SetSnapshotActiveRequest{Name: idOrName, Active: active})
	}, snapshotFromWire)
}

func (o optional) Resize(ctx context.Context, id string, res daytona.Resources) (daytona.Info, error) {
	return call(o.b, ctx, "resize sandbox", id, false, func(ctx context.Context, r pb.BackendClient) (*pb.Info, error) {
		return r.Resize(ctx, &pb.ResizeRequest{Id: id, Resources: resourcesToWire(res)})
	}, info)
}

func (o optional) SetNetworkPolicy(ctx context.Context, id string, p daytona.NetworkPolicy) (daytona.Info, error) {
	return call(o.b, ctx, "set network policy", id, false, func(ctx context.Context, r pb.BackendClient) (*pb.Info, error) {
		return r.SetNetworkPolicy(ctx, &pb.SetNetworkPolicyRequest{Id: id, Policy: networkToWire(p)})
	}, info)
}

func (o optional) Update(ctx context.Context, id string, u daytona.Update) (daytona.Info, error) {
	return call(o.b, ctx, "update sandbox", id, false, func(ctx context.Context, r pb.BackendClient) (*pb.Info, error) {
		return r.Update(ctx, &pb.UpdateRequest{Id: id, Update: updateToWire(u)})
	}, info)
}

func (o optional) Archive(ctx context.Context, id string) (daytona.Info, error) {
	return call(o.b, ctx, "archive sandbox", id, false, func(ctx context.Context, r pb.BackendClient) (*pb.Info, error) {
		return r.Archive(ctx, &pb.SandboxRequest{Id: id})
	}, info)
}

func (o optional) Restore(ctx context.Context, id string) (daytona.Info, error) {
	return call(o.b, ctx, "restore sandbox", id, false, func(ctx context.Context, r pb.BackendClient) (*pb.Info, error) {
		return r.Restore(ctx, &pb.SandboxRequest{Id: id})
	}, info)
}

func (o optional) Wait(ctx context.Context, id string, states ...daytona.State) (daytona.Info, error) {
	return call(o.b, ctx, "wait for sandbox", id, true, func(ctx context.Context, r pb.BackendClient) (*pb.Info, error) {
		return r.Wait(ctx, &pb.WaitRequest{Id: id, States: statesToWire(states)})
	}, info)
}

func (o optional) CreateVolume(ctx context.Context, spec daytona.VolumeSpec) (daytona.Volume, error) {
	return call(o.b, ctx, "create volume", spec.Name, false, func(ctx context.Context, r pb.BackendClient) (*pb.Volume, error) {
		return r.CreateVolume(ctx, volumeSpecToWire(spec))
	}, volumeFromWire)
}

func (o optional) GetVolume(ctx context.Context, idOrName string) (daytona.Volume, error) {
	return call(o.b, ctx, "get volume", idOrName, true, func(ctx context.Context, r pb.BackendClient) (*pb.Volume, error) {
		return r.GetVolume(ctx, &pb.NameRequest{Name: idOrName})
	}, volumeFromWire)
}

func (o optional) ListVolumes(ctx context.Context) iter.Seq2[daytona.Volume, error] {
	return stream(o.b, ctx, "list volumes", func(ctx context.Context, r pb.BackendClient) (grpc.ServerStreamingClient[pb.Volume], error) {
		return r.ListVolumes(ctx, &pb.ListRequest{})
	}, volumeFromWire)
}

func (o optional) DeleteVolume(ctx context.Context, idOrName string) error {
	_, err := call(o.b, ctx, "delete volume", idOrName, false, func(ctx context.Context, r pb.BackendClient) (*pb.DeleteResponse, error) {
		return r.DeleteVolume(ctx, &pb.NameRequest{Name: idOrName})
	}, nothing)
	return err
}
