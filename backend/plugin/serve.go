package plugin

import (
	"context"
	"errors"
	"io"
	"iter"
	"log/slog"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/daytona-go/daytona"
	pb "github.com/daytona-go/daytona/backend/plugin/proto"
)

const serveOp = "serve plugin"

// undoTimeout bounds the deletion of what a caller did not get to know of.
const undoTimeout = 30 * time.Second

// Serve makes this program a plugin that serves a backend, until the host is
// done or gone; then it closes the backend and returns. It refuses any
// configuration, as an open backend has its own; see [ServeFunc] for one that
// takes it. An error means that the program was not started by a host.
//
// Serve takes over standard input and output, SIGTERM, SIGINT and SIGPIPE, and
// the default logger of log/slog, whose records go to the host's logger. It is
// to be all that main does.
func Serve(b daytona.Backend) error {
	return serve(func(_ context.Context, config url.Values) (daytona.Backend, error) {
		for k, v := range config {
			return nil, &daytona.Error{Kind: daytona.KindInvalid, Op: openOp, Field: k, Value: strings.Join(v, ","), Message: "the plugin takes no configuration"}
		}
		return b, nil
	}, b)
}

// ServeFunc is [Serve] for a backend that is opened with the configuration that
// the host gives: the query of the plugin's URL, or [Options.Config]. open is
// called once; what it does not know in the configuration it must refuse with
// KindInvalid. Its context is for the opening only.
func ServeFunc(open func(ctx context.Context, config url.Values) (daytona.Backend, error)) error {
	return serve(open, nil)
}

// server is the plugin's side.
type server struct {
	pb.UnimplementedBackendServer

	open   func(ctx context.Context, config url.Values) (daytona.Backend, error)
	level  *slog.LevelVar
	agents *agents
	dir    string // of this process's sockets, and of files for a while

	// stopping ends all calls.
	stopping context.Context
	stop     context.CancelFunc

	mu       sync.Mutex
	opening  bool
	backend  daytona.Backend
	closed   bool
	calls    sync.WaitGroup
	closing  sync.Once
	closeErr error

	grpcMu sync.Mutex
	grpc   *grpc.Server
	ended  bool // the gRPC server is not to serve any more
}

func serve(open func(ctx context.Context, config url.Values) (daytona.Backend, error), b daytona.Backend) error {
	s := &server{open: open, backend: b, level: &slog.LevelVar{}}
	s.stopping, s.stop = context.WithCancel(context.Background())
	if os.Getenv(cookieKey) != cookieValue {
		_ = s.shutdown()
		return &daytona.Error{Kind: daytona.KindState, Op: serveOp,
			Message: `this program is a plugin and not to be started by hand: open it as "plugin:///path/of/it"`}
	}
	s.dir = os.Getenv(socketDirVar)
	var err error
	if s.agents, err = listenForHost(s.dir); err != nil {
		_ = s.shutdown()
		return &daytona.Error{Kind: daytona.KindUnavailable, Op: serveOp, Message: "listen for the host", Err: err}
	}
	// go-plugin puts pipes in the place of os.Stdout and os.Stderr.
	stderr := os.Stderr
	slog.SetDefault(slog.New(NewLogHandler(stderr, s.level)))

	// A host that has gone reads no log. To be told so by an error, and not to
	// be ended in the middle of cleaning up, takes a handler; to ignore the
	// signal would hand that down to programs that are started.
	pipes := make(chan os.Signal, 1)
	signal.Notify(pipes, syscall.SIGPIPE)
	terminate := make(chan os.Signal, 1)
	signal.Notify(terminate, syscall.SIGTERM)
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_, _ = io.Copy(io.Discard, os.Stdin)
	}()
	go func() {
		select {
		case <-gone:
		case <-terminate:
		}
		_ = s.shutdown()
		s.endGRPC()
	}()
	goplugin.Serve(&goplugin.ServeConfig{
		HandshakeConfig:  goplugin.HandshakeConfig{MagicCookieKey: cookieKey, MagicCookieValue: cookieValue, ProtocolVersion: Version},
		VersionedPlugins: set(func(g *grpc.Server) { pb.RegisterBackendServer(g, s) }),
		Logger:           hclog.New(&hclog.LoggerOptions{Level: hclog.Warn, JSONFormat: true, Output: stderr}),
		GRPCServer: func(opts []grpc.ServerOption) *grpc.Server {
			g := grpc.NewServer(append(opts, grpc.MaxRecvMsgSize(maxMessage))...)
			s.grpcMu.Lock()
			defer s.grpcMu.Unlock()
			if s.grpc = g; s.ended {
				g.Stop()
			}
			return g
		},
	})
	err = s.shutdown()
	// The host does this, if it lives. Only what is empty can be removed.
	if strings.HasPrefix(filepath.Base(filepath.Dir(s.dir)), socketDirPrefix) {
		os.Remove(s.dir)
		os.Remove(filepath.Dir(s.dir))
	}
	return err
}

func (s *server) endGRPC() {
	s.grpcMu.Lock()
	defer s.grpcMu.Unlock()
	s.ended = true
	if s.grpc != nil {
		s.grpc.Stop()
	}
}

// shutdown cancels all calls, waits for them and closes the backend, once.
func (s *server) shutdown() error {
	s.closing.Do(func() {
		s.mu.Lock()
		s.closed = true
		s.mu.Unlock()
		s.stop()
		s.calls.Wait()
		if s.agents != nil {
			s.agents.close()
		}
		s.mu.Lock()
		b := s.backend
		s.mu.Unlock()
		if b != nil {
			s.closeErr = b.Close()
		}
	})
	return s.closeErr
}

// begin starts a call: its context ends with the host's interest or the
// plugin's end.
func (s *server) begin(ctx context.Context, op string) (context.Context, daytona.Backend, func(), error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return nil, nil, nil, statusOf(&daytona.Error{Kind: daytona.KindUnavailable, Op: op, Message: "the plugin is closed"})
	case s.backend == nil || !s.opening:
		return nil, nil, nil, statusOf(&daytona.Error{Kind: daytona.KindState, Op: op, Message: "the plugin is not open"})
	}
	ctx, done := s.track(ctx)
	return ctx, s.backend, done, nil
}

// track counts a call. s.mu is held.
func (s *server) track(ctx context.Context) (context.Context, func()) {
	s.calls.Add(1)
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.stopping, cancel)
	return ctx, func() {
		stop()
		cancel()
		s.calls.Done()
	}
}

func (s *server) Open(ctx context.Context, r *pb.OpenRequest) (*pb.OpenResponse, error) {
	s.mu.Lock()
	if s.closed || s.opening {
		s.mu.Unlock()
		return nil, statusOf(&daytona.Error{Kind: daytona.KindState, Op: openOp, Message: "the plugin was opened before"})
	}
	s.opening = true
	ctx, done := s.track(ctx)
	s.mu.Unlock()
	defer done()
	if l, ok := parseLevel(r.GetLogLevel()); ok {
		s.level.Set(l)
	}
	b, err := s.open(ctx, configFromWire(r.GetConfig()))
	if err != nil {
		return nil, statusOf(err)
	}
	s.mu.Lock()
	s.backend = b
	s.mu.Unlock()
	out := &pb.OpenResponse{Name: b.Name()}
	for k, has := range map[pb.Capability]bool{
		pb.Capability_CAPABILITY_PAUSE:          has[daytona.Pauser](b),
		pb.Capability_CAPABILITY_FORK:           has[daytona.Forker](b),
		pb.Capability_CAPABILITY_SNAPSHOT:       has[daytona.Snapshotter](b),
		pb.Capability_CAPABILITY_RESIZE:         has[daytona.Resizer](b),
		pb.Capability_CAPABILITY_NETWORK_POLICY: has[daytona.NetworkPolicer](b),
		pb.Capability_CAPABILITY_ARCHIVE:        has[daytona.Archiver](b),
		pb.Capability_CAPABILITY_UPDATE:         has[daytona.Updater](b),
		pb.Capability_CAPABILITY_VOLUMES:        has[daytona.VolumeManager](b),
		pb.Capability_CAPABILITY_WAIT:           has[daytona.Watcher](b),
		pb.Capability_CAPABILITY_BUILD:          has[daytona.ImageBuilder](b),
	} {
		if has {
			out.Capabilities = append(out.Capabilities, k)
		}
	}
	return out, nil
}

func has[T any](b daytona.Backend) bool { _, ok := daytona.As[T](b); return ok }

func (s *server) Close(context.Context, *pb.CloseRequest) (*pb.CloseResponse, error) {
	if err := s.shutdown(); err != nil {
		return nil, statusOf(err)
	}
	return &pb.CloseResponse{}, nil
}

// answer makes a call of the backend that gives one value.
func answer[T, M any](s *server, ctx context.Context, op string, f func(context.Context, daytona.Backend) (T, error), to func(T) M) (M, error) {
	var none M
	ctx, b, done, err := s.begin(ctx, op)
	if err != nil {
		return none, err
	}
	defer done()
	v, err := f(ctx, b)
	if err != nil {
		return none, statusOf(err)
	}
	return to(v), nil
}

// of turns a call of a capability into one of the backend, which may lack it.
func of[C, T any](op string, f func(context.Context, C) (T, error)) func(context.Context, daytona.Backend) (T, error) {
	return func(ctx context.Context, b daytona.Backend) (T, error) {
		c, ok := daytona.As[C](b)
		if !ok {
			var none T
			return none, &daytona.Error{Kind: daytona.KindUnsupported, Op: op, Message: "backend " + b.Name() + " does not support it"}
		}
		return f(ctx, c)
	}
}

// ask makes a call of the backend's capability C that gives one value.
func ask[C, T, M any](s *server, ctx context.Context, op string, f func(context.Context, C) (T, error), to func(T) M) (M, error) {
	return answer(s, ctx, op, of(op, f), to)
}

// answers makes a call that gives any number of values.
func answers[T, M any](s *server, out grpc.ServerStreamingServer[M], op string, f func(context.Context, daytona.Backend) (iter.Seq2[T, error], error), to func(T) *M) error {
	_, err := answer(s, out.Context(), op, func(ctx context.Context, b daytona.Backend) (struct{}, error) {
		values, err := f(ctx, b)
		if err != nil {
			return struct{}{}, err
		}
		for v, err := range values {
			if err == nil {
				err = out.Send(to(v))
			}
			if err != nil {
				return struct{}{}, err
			}
		}
		return struct{}{}, nil
	}, func(struct{}) *pb.DeleteResponse { return nil })
	return err
}

func deleted(struct{}) *pb.DeleteResponse { return &pb.DeleteResponse{} }

// undo deletes what has been made for a caller who has gone meanwhile, so that
// a call that was cancelled leaves nothing behind.
func undo(ctx context.Context, err error, remove func(ctx context.Context) error) error {
	if err != nil || ctx.Err() == nil {
		return err
	}
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	if err := remove(clean); err != nil && !errors.Is(err, daytona.ErrNotFound) {
		return errors.Join(ctx.Err(), err)
	}
	return ctx.Err()
}

func (s *server) Create(c grpc.BidiStreamingServer[pb.CreateRequest, pb.CreateResponse]) error {
	const op = "create sandbox"
	ctx, b, done, err := s.begin(c.Context(), op)
	if err != nil {
		return err
	}
	defer done()
	first, err := c.Recv()
	if err != nil {
		return err
	}
	if err := known(op, first); err != nil {
		return statusOf(err)
	}
	spec, err := specFromWire(first.GetSpec())
	if err == nil {
		err = spec.Validate()
	}
	if err != nil {
		return statusOf(err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	confirmed := make(chan error, 1)
	go func() {
		for {
			switch m, err := c.Recv(); {
			case err == io.EOF:
				confirmed <- nil
				return
			case err != nil:
				cancel()
				confirmed <- err
				return
			case m.GetCancel():
				cancel()
			}
		}
	}()
	progress := make(chan daytona.Progress, 64)
	if first.GetSpec().GetProgress() {
		spec.OnProgress = offer(progress)
	}
	info, err := telling(progress, func(p daytona.Progress) {
		// A stream that is broken shows in what follows.
		_ = c.Send(&pb.CreateResponse{Message: &pb.CreateResponse_Progress{Progress: progressToWire(p)}})
	}, func() (daytona.Info, error) { return b.Create(ctx, spec) })
	if err == nil && info.ID == "" {
		err = &daytona.Error{Kind: daytona.KindInternal, Op: op, Subject: spec.Name, Message: "backend " + b.Name() + " made a sandbox without an id"}
	}
	if err != nil {
		return statusOf(err)
	}
	err = c.Send(&pb.CreateResponse{Message: &pb.CreateResponse_Info{Info: infoToWire(info)}})
	if err == nil {
		select {
		case err = <-confirmed:
		case <-s.stopping.Done():
			err = &daytona.Error{Kind: daytona.KindUnavailable, Op: op, Subject: spec.Name, Message: "the plugin is closed"}
		}
	}
	if err == nil {
		return nil
	}
	cancel()
	return statusOf(undo(ctx, nil, func(ctx context.Context) error { return b.Delete(ctx, info.ID) }))
}

// offer is an OnProgress that must not block: what there is no room for is left
// out, as there will be more.
func offer(to chan<- daytona.Progress) func(daytona.Progress) {
	return func(p daytona.Progress) {
		select {
		case to <- p:
		default:
		}
	}
}

// telling does something and tells what it says meanwhile, all of it before the
// return.
func telling[E, T any](events <-chan E, tell func(E), do func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	results := make(chan result, 1)
	go func() {
		v, err := do()
		results <- result{v, err}
	}()
	for {
		select {
		case e := <-events:
			tell(e)
		case r := <-results:
			for len(events) > 0 {
				tell(<-events)
			}
			return r.value, r.err
		}
	}
}

func progressToWire(p daytona.Progress) *pb.Progress {
	return &pb.Progress{Stage: p.Stage, Done: p.Done, Total: p.Total}
}

func (s *server) Start(ctx context.Context, r *pb.SandboxRequest) (*pb.Info, error) {
	return answer(s, ctx, "start sandbox", func(ctx context.Context, b daytona.Backend) (daytona.Info, error) { return b.Start(ctx, r.GetId()) }, infoToWire)
}

func (s *server) Stop(ctx context.Context, r *pb.StopRequest) (*pb.Info, error) {
	return answer(s, ctx, "stop sandbox", func(ctx context.Context, b daytona.Backend) (daytona.Info, error) {
		return b.Stop(ctx, r.GetId(), stopFromWire(r))
	}, infoToWire)
}

func (s *server) Delete(ctx context.Context, r *pb.SandboxRequest) (*pb.DeleteResponse, error) {
	return answer(s, ctx, "delete sandbox", func(ctx context.Context, b daytona.Backend) (struct{}, error) {
		return struct{}{}, b.Delete(ctx, r.GetId())
	}, deleted)
}

func (s *server) Get(ctx context.Context, r *pb.SandboxRequest) (*pb.Info, error) {
	return answer(s, ctx, "get sandbox", func(ctx context.Context, b daytona.Backend) (daytona.Info, error) { return b.Get(ctx, r.GetId()) }, infoToWire)
}

func (s *server) List(r *pb.Filter, out grpc.ServerStreamingServer[pb.Info]) error {
	if err := known("list sandboxes", r); err != nil {
		return statusOf(err)
	}
	return answers(s, out, "list sandboxes", func(ctx context.Context, b daytona.Backend) (iter.Seq2[daytona.Info, error], error) {
		return b.List(ctx, filterFromWire(r)), nil
	}, infoToWire)
}

// Connect connects to an agent, for the host to fetch the connection.
func (s *server) Connect(ctx context.Context, r *pb.SandboxRequest) (*pb.ConnectResponse, error) {
	return answer(s, ctx, "connect to agent", func(ctx context.Context, b daytona.Backend) (string, error) {
		box := b.Connect(r.GetId())
		defer box.Close()
		raw, err := box.Dial(ctx)
		if err != nil {
			return "", err
		}
		return s.agents.offer(raw)
	}, func(ticket string) *pb.ConnectResponse { return &pb.ConnectResponse{Ticket: ticket} })
}

func (s *server) Pause(ctx context.Context, r *pb.PauseRequest) (*pb.Info, error) {
	return changed(s, ctx, "pause sandbox", r, func(ctx context.Context, b daytona.Pauser) (daytona.Info, error) {
		return b.Pause(ctx, r.GetId(), pauseFromWire(r))
	})
}

func (s *server) Resume(ctx context.Context, r *pb.SandboxRequest) (*pb.Info, error) {
	return ask(s, ctx, "resume sandbox", func(ctx context.Context, b daytona.Pauser) (daytona.Info, error) { return b.Resume(ctx, r.GetId()) }, infoToWire)
}

func (s *server) Fork(ctx context.Context, r *pb.ForkRequest) (*pb.ForkResponse, error) {
	const op = "fork sandbox"
	if err := known(op, r); err != nil {
		return nil, statusOf(err)
	}
	return answer(s, ctx, op, func(ctx context.Context, b daytona.Backend) ([]daytona.Info, error) {
		children, err := of(op, func(ctx context.Context, f daytona.Forker) ([]daytona.Info, error) {
			return f.Fork(ctx, r.GetId(), forkFromWire(r))
		})(ctx, b)
		return children, undo(ctx, err, func(ctx context.Context) error {
			var errs []error
			for _, i := range children {
				if err := b.Delete(ctx, i.ID); err != nil && !errors.Is(err, daytona.ErrNotFound) {
					errs = append(errs, err)
				}
			}
			return errors.Join(errs...)
		})
	}, func(children []daytona.Info) *pb.ForkResponse {
		m := &pb.ForkResponse{}
		for _, i := range children {
			m.Children = append(m.Children, infoToWire(i))
		}
		return m
	})
}

func (s *server) CreateSnapshot(r *pb.SnapshotSpec, out grpc.ServerStreamingServer[pb.CreateSnapshotResponse]) error {
	const op = "create snapshot"
	if err := known(op, r); err != nil {
		return statusOf(err)
	}
	made, err := ask(s, out.Context(), op, func(ctx context.Context, b daytona.Snapshotter) (daytona.Snapshot, error) {
		spec := snapshotSpecFromWire(r)
		if err := spec.Validate(); err != nil {
			return daytona.Snapshot{}, err
		}
		progress := make(chan daytona.Progress, 64)
		if r.GetProgress() {
			spec.OnProgress = offer(progress)
		}
		sn, err := telling(progress, func(p daytona.Progress) {
			_ = out.Send(&pb.CreateSnapshotResponse{Message: &pb.CreateSnapshotResponse_Progress{Progress: progressToWire(p)}})
		}, func() (daytona.Snapshot, error) { return b.CreateSnapshot(ctx, spec) })
		return sn, undo(ctx, err, func(ctx context.Context) error { return b.DeleteSnapshot(ctx, sn.ID) })
	}, snapshotToWire)
	if err != nil {
		return err
	}
	return out.Send(&pb.CreateSnapshotResponse{Message: &pb.CreateSnapshotResponse_Snapshot{Snapshot: made}})
}

func (s *server) SetSnapshotActive(ctx context.Context, r *pb.SetSnapshotActiveRequest) (*pb.Snapshot, error) {
	return ask(s, ctx, "set snapshot active", func(ctx context.Context, b daytona.Snapshotter) (daytona.Snapshot, error) {
		return b.SetSnapshotActive(ctx, r.GetName(), r.GetActive())
	}, snapshotToWire)
}

func (s *server) GetSnapshot(ctx context.Context, r *pb.NameRequest) (*pb.Snapshot, error) {
	return ask(s, ctx, "get snapshot", func(ctx context.Context, b daytona.Snapshotter) (daytona.Snapshot, error) {
		return b.GetSnapshot(ctx, r.GetName())
	}, snapshotToWire)
}

func (s *server) ListSnapshots(_ *pb.ListRequest, out grpc.ServerStreamingServer[pb.Snapshot]) error {
	const op = "list snapshots"
	return answers(s, out, op, of(op, func(ctx context.Context, b daytona.Snapshotter) (iter.Seq2[daytona.Snapshot, error], error) {
		return b.ListSnapshots(ctx), nil
	}), snapshotToWire)
}

func (s *server) DeleteSnapshot(ctx context.Context, r *pb.NameRequest) (*pb.DeleteResponse, error) {
	return ask(s, ctx, "delete snapshot", func(ctx context.Context, b daytona.Snapshotter) (struct{}, error) {
		return struct{}{}, b.DeleteSnapshot(ctx, r.GetName())
	}, deleted)
}

func (s *server) Resize(ctx context.Context, r *pb.ResizeRequest) (*pb.Info, error) {
	return changed(s, ctx, "resize sandbox", r, func(ctx context.Context, b daytona.Resizer) (daytona.Info, error) {
		return b.Resize(ctx, r.GetId(), resourcesFromWire(r.GetResources()))
	})
}

func (s *server) SetNetworkPolicy(ctx context.Context, r *pb.SetNetworkPolicyRequest) (*pb.Info, error) {
	return changed(s, ctx, "set network policy", r, func(ctx context.Context, b daytona.NetworkPolicer) (daytona.Info, error) {
		p, err := networkFromWire(r.GetPolicy())
		if err != nil {
			return daytona.Info{}, err
		}
		return b.SetNetworkPolicy(ctx, r.GetId(), p)
	})
}

func (s *server) Update(ctx context.Context, r *pb.UpdateRequest) (*pb.Info, error) {
	return changed(s, ctx, "update sandbox", r, func(ctx context.Context, b daytona.Updater) (daytona.Info, error) {
		return b.Update(ctx, r.GetId(), updateFromWire(r.GetUpdate()))
	})
}

// changed makes a call whose fields must all be understood.
func changed[C any](s *server, ctx context.Context, op string, r proto.Message, f func(context.Context, C) (daytona.Info, error)) (*pb.Info, error) {
	if err := known(op, r); err != nil {
		return nil, statusOf(err)
	}
	return ask(s, ctx, op, f, infoToWire)
}

func (s *server) Archive(ctx context.Context, r *pb.SandboxRequest) (*pb.Info, error) {
	return ask(s, ctx, "archive sandbox", func(ctx context.Context, b daytona.Archiver) (daytona.Info, error) { return b.Archive(ctx, r.GetId()) }, infoToWire)
}

func (s *server) Restore(ctx context.Context, r *pb.SandboxRequest) (*pb.Info, error) {
	return ask(s, ctx, "restore sandbox", func(ctx context.Context, b daytona.Archiver) (daytona.Info, error) { return b.Restore(ctx, r.GetId()) }, infoToWire)
}

func (s *server) CreateVolume(ctx context.Context, r *pb.VolumeSpec) (*pb.Volume, error) {
	const op = "create volume"
	if err := known(op, r); err != nil {
		return nil, statusOf(err)
	}
	return ask(s, ctx, op, func(ctx context.Context, b daytona.VolumeManager) (daytona.Volume, error) {
		v, err := b.CreateVolume(ctx, volumeSpecFromWire(r))
		return v, undo(ctx, err, func(ctx context.Context) error { return b.DeleteVolume(ctx, v.ID) })
	}, volumeToWire)
}

func (s *server) GetVolume(ctx context.Context, r *pb.NameRequest) (*pb.Volume, error) {
	return ask(s, ctx, "get volume", func(ctx context.Context, b daytona.VolumeManager) (daytona.Volume, error) {
		return b.GetVolume(ctx, r.GetName())
	}, volumeToWire)
}

func (s *server) ListVolumes(_ *pb.ListRequest, out grpc.ServerStreamingServer[pb.Volume]) error {
	const op = "list volumes"
	return answers(s, out, op, of(op, func(ctx context.Context, b daytona.VolumeManager) (iter.Seq2[daytona.Volume, error], error) {
		return b.ListVolumes(ctx), nil
	}), volumeToWire)
}

func (s *server) DeleteVolume(ctx context.Context, r *pb.NameRequest) (*pb.DeleteResponse, error) {
	return ask(s, ctx, "delete volume", func(ctx context.Context, b daytona.VolumeManager) (struct{}, error) {
		return struct{}{}, b.DeleteVolume(ctx, r.GetName())
	}, deleted)
}

func (s *server) Wait(ctx context.Context, r *pb.WaitRequest) (*pb.Info, error) {
	return ask(s, ctx, "wait for sandbox", func(ctx context.Context, b daytona.Watcher) (daytona.Info, error) {
		return b.Wait(ctx, r.GetId(), statesFromWire(r.GetStates())...)
	}, infoToWire)
}
