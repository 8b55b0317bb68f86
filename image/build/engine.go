//go:build linux

package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	ctdmetadata "github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/archive"
	contentlocal "github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/diff/walking"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/containerd/errdefs"
	ctdlog "github.com/containerd/log"
	"github.com/containerd/platforms"
	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/image"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/cache/contenthash"
	"github.com/moby/buildkit/cache/metadata"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/cmd/buildkitd/config"
	"github.com/moby/buildkit/control"
	"github.com/moby/buildkit/executor/resources"
	"github.com/moby/buildkit/frontend"
	dockerfile "github.com/moby/buildkit/frontend/dockerfile/builder"
	"github.com/moby/buildkit/frontend/gateway/forwarder"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/auth"
	"github.com/moby/buildkit/snapshot"
	containerdsnapshot "github.com/moby/buildkit/snapshot/containerd"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/bboltcachestorage"
	httpsource "github.com/moby/buildkit/source/http"
	"github.com/moby/buildkit/util/bklog"
	"github.com/moby/buildkit/util/db/boltutil"
	"github.com/moby/buildkit/util/grpcerrors"
	"github.com/moby/buildkit/util/leaseutil"
	"github.com/moby/buildkit/util/resolver"
	"github.com/moby/buildkit/worker"
	"github.com/moby/buildkit/worker/base"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sirupsen/logrus"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"
)

// maxCache is how much BuildKit keeps of earlier steps, in bytes; what was not
// used for longest goes first.
const maxCache = 20 << 30

// running is the build that is going on.
type running struct {
	opts      daytona.BuildOptions
	transport http.RoundTripper
	shelf     *shelf
}

// engine is BuildKit, opened on a directory: its controller and its client, which
// talk through memory.
type engine struct {
	ctx    context.Context
	cancel context.CancelFunc
	client *client.Client
	shut   []func() error
	token  *byte // what tells this engine from others, see solving

	mu  sync.Mutex
	now *running
}

func (e *engine) current(r *running) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.now = r
}

func (e *engine) running() (*running, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.now == nil {
		return nil, errors.New("the build has ended")
	}
	return e.now, nil
}

func (e *engine) close() error {
	e.cancel()
	var errs []error
	for i := len(e.shut) - 1; i >= 0; i-- {
		errs = append(errs, e.shut[i]())
	}
	return errors.Join(errs...)
}

// lockDir waits until no other process has the directory open.
func lockDir(ctx context.Context, dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	locked := make(chan error, 1)
	go func() {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX)
		for errors.Is(err, unix.EINTR) {
			err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		}
		locked <- err
	}()
	select {
	case err := <-locked:
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", dir, err)
		}
		return f, nil
	case <-ctx.Done():
		go func() { <-locked; f.Close() }()
		return nil, context.Cause(ctx)
	}
}

func openEngine(ctx context.Context, dir string, opts Options) (_ *engine, err error) {
	quiet()
	e := &engine{token: new(byte)}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			_ = e.close()
			err = &daytona.Error{Kind: daytona.KindUnavailable, Op: "open builder", Subject: dir, Err: err}
		}
	}()
	l, err := lockDir(ctx, dir)
	if err != nil {
		return nil, err
	}
	e.shut = append(e.shut, l.Close)
	// What killed processes left.
	for _, pattern := range []string{"work-*", "etc-*", "disk-*"} {
		left, _ := filepath.Glob(filepath.Join(dir, pattern))
		for _, p := range left {
			_ = os.RemoveAll(p)
		}
	}
	root := filepath.Join(dir, "buildkit")
	unmountLeft(root)
	synced, err := unsynced(root)
	if err != nil {
		return nil, err
	}
	e.shut = append(e.shut, synced)
	const fsName, ns = "overlayfs", "buildkit"
	plain, err := overlay.NewSnapshotter(filepath.Join(root, "snapshotter"), overlay.WithMountOptions([]string{"userxattr"}))
	if err != nil {
		return nil, err
	}
	e.shut = append(e.shut, plain.Close)
	snap := &recordingSnapshotter{Snapshotter: plain, dirs: map[string]mount.Mount{}}
	blobs, err := contentlocal.NewStore(filepath.Join(root, "content"))
	if err != nil {
		return nil, err
	}
	bopts := &bolt.Options{FreelistType: bolt.FreelistMapType, NoFreelistSync: true, NoSync: true}
	db, err := boltutil.Open(filepath.Join(root, "containerdmeta.db"), 0o600, bopts)
	if err != nil {
		return nil, err
	}
	mdb := ctdmetadata.NewDB(db, blobs, map[string]snapshots.Snapshotter{fsName: snap})
	// Until there is a controller, which closes them with itself.
	databases := len(e.shut)
	e.shut = append(e.shut, db.Close)
	if err := mdb.Init(ctx); err != nil {
		return nil, err
	}
	store := containerdsnapshot.NewContentStore(cleanContent{mdb.ContentStore()}, ns)
	md, err := metadata.NewStore(filepath.Join(root, "metadata_v2.db"))
	if err != nil {
		return nil, err
	}
	e.shut = append(e.shut, md.Close)
	if err := md.DB().View(func(tx *bolt.Tx) error { tx.DB().NoSync = true; return nil }); err != nil {
		return nil, err
	}
	id, err := base.ID(root)
	if err != nil {
		return nil, err
	}
	monitor, err := resources.NewMonitor()
	if err != nil {
		return nil, err
	}
	e.shut = append(e.shut, monitor.Close)
	leases := leaseutil.WithNamespace(ctdmetadata.NewLeaseManager(mdb), ns)
	w, err := base.NewWorker(e.ctx, base.WorkerOpt{
		ID: id, Root: root, Labels: map[string]string{}, MetadataStore: md, ContentMetadata: db,
		Executor:        &executorOf{runner: opts.Runner, engine: e, snap: snap},
		Snapshotter:     plainMounts{containerdsnapshot.NewSnapshotter(fsName, mdb.Snapshotter(fsName), ns, nil)},
		ContentStore:    store,
		Applier:         applier{store},
		Differ:          walking.NewWalkingDiff(store),
		RegistryHosts:   registryHosts(&bases{e: e, opts: opts, dir: dir, next: docker.DefaultHTTPTransport(nil)}),
		Platforms:       []ocispecs.Platform{platforms.Normalize(platforms.DefaultSpec())},
		LeaseManager:    leases,
		GarbageCollect:  mdb.GarbageCollect,
		GCPolicy:        []client.PruneInfo{{All: true, MaxUsedSpace: maxCache}},
		MountPoolRoot:   filepath.Join(root, "mounts"),
		ResourceMonitor: monitor,
	})
	if err != nil {
		return nil, err
	}
	hs, err := httpsource.NewSource(httpsource.Opt{CacheAccessor: w.CacheMgr, Transport: transportOf{e}})
	if err != nil {
		return nil, err
	}
	w.SourceManager.Register(hs)
	w.SourceManager.Register(refusedSource{})
	sessions, err := session.NewManager()
	if err != nil {
		return nil, err
	}
	workers := &worker.Controller{}
	if err := workers.Add(w); err != nil {
		return nil, err
	}
	cacheStore, err := bboltcachestorage.NewStore(filepath.Join(root, "cache.db"))
	if err != nil {
		return nil, err
	}
	e.shut = append(e.shut, cacheStore.Close)
	history, err := boltutil.SafeOpen(filepath.Join(root, "history.db"), 0o600, bopts)
	if err != nil {
		return nil, err
	}
	e.shut = append(e.shut, history.Close)
	// What a build did, its caller is told; a record of it that nobody reads would
	// take a third of a cached build's time.
	none := int64(0)
	ctl, err := control.NewController(control.Opt{
		HistoryConfig:  &config.HistoryConfig{MaxEntries: &none},
		SessionManager: sessions, WorkerController: workers,
		Frontends:    map[string]frontend.Frontend{"dockerfile.v0": forwarder.NewGatewayForwarder(workers.Infos(), dockerfile.Build)},
		CacheManager: solver.NewCacheManager(e.ctx, "local", cacheStore, worker.NewCacheResultStorage(workers)),
		HistoryDB:    history, CacheStore: cacheStore, LeaseManager: w.LeaseManager(), ContentStore: w.ContentStore(),
		GarbageCollect: w.GarbageCollect, GracefulStop: e.ctx.Done(),
	})
	if err != nil {
		return nil, err
	}
	e.shut = append(e.shut[:databases], ctl.Close, func() error { return forgetChecksums(w) })
	conn := bufconn.Listen(1 << 20)
	server := grpc.NewServer(grpc.ChainUnaryInterceptor(grpcerrors.UnaryServerInterceptor), grpc.StreamInterceptor(grpcerrors.StreamServerInterceptor),
		grpc.MaxRecvMsgSize(64<<20), grpc.MaxSendMsgSize(64<<20))
	ctl.Register(server)
	served := make(chan struct{})
	go func() { defer close(served); _ = server.Serve(conn) }()
	e.shut = append(e.shut, func() error { server.Stop(); <-served; return nil })
	e.client, err = client.New(ctx, "passthrough:///daytona", client.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return conn.DialContext(ctx) }))
	if err != nil {
		return nil, err
	}
	e.shut = append(e.shut, e.client.Close)
	return e, nil
}

// unmountLeft takes away what killed processes left mounted: BuildKit mounts
// snapshots in the directory for temporary files while it copies to or from them.
// Those in its own directory it finds itself.
func unmountLeft(root string) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return
	}
	for line := range strings.Lines(string(data)) {
		pre, post, _ := strings.Cut(line, " - ")
		f := strings.Fields(pre)
		if len(f) < 5 || !strings.HasPrefix(filepath.Base(f[4]), "buildkit-mount") && !strings.HasPrefix(filepath.Base(f[4]), "containerd-mount") {
			continue
		}
		// An overlay has its directories in its options, a bind mount its own in
		// the path within its file system.
		if !strings.Contains(post, "="+root+"/") && !strings.Contains(post, ":"+root+"/") && !strings.HasPrefix(f[3], root+"/") {
			continue
		}
		if unix.Unmount(f[4], unix.MNT_DETACH) == nil {
			_ = os.Remove(f[4])
		}
	}
}

// unsynced makes the directory of databases that are not written to the disk with
// each change: that would be most of the time of a build with nothing to do. They
// survive the end of the process, but not of the machine. So a mark tells of the
// boot in which they are open, and what another boot left open goes, as it holds
// nothing that a build does not make again. synced writes them to the disk and
// takes the mark away; they must be closed.
func unsynced(root string) (synced func() error, err error) {
	raw, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, err
	}
	mark := root + ".open"
	if left, err := os.ReadFile(mark); err == nil && string(left) != string(raw) {
		if err := image.RemoveAll(root); err != nil {
			return nil, err
		}
	} else if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, err
	}
	sync := func(path string) error {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		return f.Sync()
	}
	if err := os.WriteFile(mark, raw, 0o600); err != nil {
		return nil, err
	}
	if err := errors.Join(sync(mark), sync(filepath.Dir(root))); err != nil {
		return nil, err
	}
	return func() error {
		files, err := filepath.Glob(filepath.Join(root, "*.db"))
		if err != nil {
			return err
		}
		for _, f := range files {
			if err := sync(f); err != nil {
				return err
			}
		}
		return os.Remove(mark)
	}, nil
}

// forgetChecksums empties BuildKit's memory of checksums, which is the process's
// and by the names of snapshots: the next engine would find this one's closed
// database there.
func forgetChecksums(w *base.Worker) error {
	usage, err := w.CacheMgr.DiskUsage(context.Background(), client.DiskUsageInfo{})
	for _, u := range usage {
		contenthash.ClearCacheContext(snapshotID{id: u.ID})
	}
	return err
}

// snapshotID is a cache.RefMetadata of which nothing but the name is asked.
type snapshotID struct {
	cache.RefMetadata
	id string
}

func (s snapshotID) ID() string { return s.id }

// plainMounts takes redirect_dir out of overlay options: BuildKit switches it off,
// which userxattr does already, and the kernel refuses both together.
type plainMounts struct{ snapshot.Snapshotter }

func (s plainMounts) Mounts(ctx context.Context, key string) (snapshot.Mountable, error) {
	m, err := s.Snapshotter.Mounts(ctx, key)
	if err != nil {
		return nil, err
	}
	return plainMountable{m}, nil
}

func (s plainMounts) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) (snapshot.Mountable, error) {
	m, err := s.Snapshotter.View(ctx, key, parent, opts...)
	if err != nil {
		return nil, err
	}
	return plainMountable{m}, nil
}

type plainMountable struct{ snapshot.Mountable }

func (m plainMountable) Mount() ([]mount.Mount, func() error, error) {
	ms, release, err := m.Mountable.Mount()
	plain := make([]mount.Mount, len(ms))
	for i, m := range ms {
		m.Options = slices.DeleteFunc(slices.Clone(m.Options), func(o string) bool { return strings.HasPrefix(o, "redirect_dir=") })
		plain[i] = m
	}
	return plain, release, err
}

// quiet keeps BuildKit and containerd from writing to this process's standard
// error: they log to what is a variable of theirs.
var quiet = sync.OnceFunc(func() {
	l := logrus.New()
	l.SetOutput(io.Discard)
	entry := logrus.NewEntry(l)
	ctdlog.L = entry
	bklog.L = entry
})

// recordingSnapshotter remembers the overlay of each snapshot's own directory:
// BuildKit hands out writable ones mounted already, which cannot be mapped to
// other ids.
type recordingSnapshotter struct {
	snapshots.Snapshotter
	mu   sync.Mutex
	dirs map[string]mount.Mount // by upper directory
}

func (s *recordingSnapshotter) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	ms, err := s.Snapshotter.Mounts(ctx, key)
	s.record(ms)
	return ms, err
}

func (s *recordingSnapshotter) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	ms, err := s.Snapshotter.Prepare(ctx, key, parent, opts...)
	s.record(ms)
	return ms, err
}

func (s *recordingSnapshotter) record(ms []mount.Mount) {
	for _, m := range ms {
		if l := layersOf(m); l.Upper != "" {
			s.mu.Lock()
			s.dirs[snapshotNumber(l.Upper)] = m
			s.mu.Unlock()
		}
	}
}

// snapshotNumber is the name of a snapshot's directory: …/snapshots/<number>/fs.
func snapshotNumber(dir string) string { return filepath.Base(filepath.Dir(dir)) }

// mountedAt returns the layers of the overlay that is mounted on a directory.
func (s *recordingSnapshotter) mountedAt(dir string) (Layers, bool, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return Layers{}, false, err
	}
	for line := range strings.Lines(string(data)) {
		pre, post, _ := strings.Cut(line, " - ")
		f, tail := strings.Fields(pre), strings.Fields(post)
		if len(f) < 5 || len(tail) < 3 || f[4] != dir || tail[0] != "overlay" {
			continue
		}
		for o := range strings.SplitSeq(tail[2], ",") {
			if upper, ok := strings.CutPrefix(o, "upperdir="); ok {
				s.mu.Lock()
				m, known := s.dirs[snapshotNumber(upper)]
				s.mu.Unlock()
				if known {
					return layersOf(m), true, nil
				}
			}
		}
		return Layers{}, false, fmt.Errorf("the overlay on %s is none of ours", dir)
	}
	return Layers{}, false, nil
}

// layersOf takes the options of an overlay mount apart.
func layersOf(m mount.Mount) Layers {
	var l Layers
	if m.Type != "overlay" {
		return l
	}
	for _, o := range m.Options {
		k, v, _ := strings.Cut(o, "=")
		switch k {
		case "lowerdir":
			l.Lower = strings.Split(v, ":")
		case "upperdir":
			l.Upper = v
		case "workdir":
			l.Work = v
		}
	}
	return l
}

// cleanContent forgets what turns out not to be what it should: containerd would
// keep a damaged layer as one that is nearly there, and never fetch it again.
type cleanContent struct{ content.Store }

func (s cleanContent) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	var o content.WriterOpts
	for _, opt := range opts {
		if err := opt(&o); err != nil {
			return nil, err
		}
	}
	w, err := s.Store.Writer(ctx, opts...)
	if err != nil {
		return nil, err
	}
	return cleanWriter{w, s.Store, o.Ref}, nil
}

type cleanWriter struct {
	content.Writer
	store content.Store
	ref   string
}

func (w cleanWriter) Commit(ctx context.Context, size int64, expected digest.Digest, opts ...content.Opt) error {
	err := w.Writer.Commit(ctx, size, expected, opts...)
	if errdefs.IsFailedPrecondition(err) {
		_ = w.Writer.Close()
		if aerr := w.store.Abort(context.WithoutCancel(ctx), w.ref); aerr != nil && !errdefs.IsNotFound(aerr) {
			return errors.Join(err, aerr)
		}
	}
	return err
}

// applier unpacks layers in the form that overlay mounts with userxattr want.
type applier struct{ store content.Provider }

func (a applier) Apply(ctx context.Context, desc ocispecs.Descriptor, mounts []mount.Mount, opts ...diff.ApplyOpt) (_ ocispecs.Descriptor, err error) {
	var none ocispecs.Descriptor
	var config diff.ApplyConfig
	for _, o := range opts {
		if err := o(ctx, desc, &config); err != nil {
			return none, err
		}
	}
	ra, err := a.store.ReaderAt(ctx, desc)
	if err != nil {
		return none, err
	}
	defer ra.Close()
	processor := diff.NewProcessorChain(desc.MediaType, content.NewReader(ra))
	for {
		if processor, err = diff.GetProcessor(ctx, processor, config.ProcessorPayloads); err != nil {
			return none, fmt.Errorf("layer of type %s: %w", desc.MediaType, err)
		}
		if processor.MediaType() == ocispecs.MediaTypeImageLayer {
			break
		}
	}
	defer processor.Close()
	hash := digest.Canonical.Digester()
	in := &counter{r: io.TeeReader(processor, hash.Hash())}
	if len(mounts) != 1 {
		return none, fmt.Errorf("unpack a layer into %d mounts", len(mounts))
	}
	if l := layersOf(mounts[0]); l.Upper != "" {
		_, err = archive.Apply(ctx, l.Upper, in, archive.WithParents(l.Lower), archive.WithConvertWhiteout(convertWhiteout))
	} else if mounts[0].Type == "bind" {
		_, err = archive.Apply(ctx, mounts[0].Source, in)
	} else {
		err = fmt.Errorf("unpack a layer into a mount of type %s", mounts[0].Type)
	}
	if err != nil {
		return none, err
	}
	if _, err := io.Copy(io.Discard, in); err != nil {
		return none, err
	}
	return ocispecs.Descriptor{MediaType: ocispecs.MediaTypeImageLayer, Size: in.n, Digest: hash.Digest()}, nil
}

type counter struct {
	r io.Reader
	n int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// registryHosts reaches registries, those of this machine without TLS. BuildKit
// asks the session for credentials: see credentials.
func registryHosts(transport http.RoundTripper) docker.RegistryHosts {
	return docker.ConfigureDefaultRegistries(
		docker.WithPlainHTTP(docker.MatchLocalhost),
		docker.WithClient(&http.Client{Transport: transport}),
	)
}

// credentials gives BuildKit those of a keychain.
type credentials struct {
	auth.UnimplementedAuthServer
	keychain authn.Keychain
}

func (c credentials) Register(s *grpc.Server) { auth.RegisterAuthServer(s, c) }

func (c credentials) Credentials(ctx context.Context, r *auth.CredentialsRequest) (*auth.CredentialsResponse, error) {
	host := r.Host
	if host == "registry-1.docker.io" {
		host = name.DefaultRegistry
	}
	reg, err := name.NewRegistry(host)
	if err != nil {
		return nil, err
	}
	found, err := authn.Resolve(ctx, c.keychain, reg)
	if err != nil {
		return nil, err
	}
	have, err := authn.Authorization(ctx, found)
	if err != nil {
		return nil, err
	}
	if have.IdentityToken != "" {
		return &auth.CredentialsResponse{Secret: have.IdentityToken}, nil
	}
	return &auth.CredentialsResponse{Username: have.Username, Secret: have.Password}, nil
}

// solving is the process's turn to build. BuildKit keeps by the names of
// repositories, for all engines of a process, which transport leads to them: so
// that one at a time uses it, and forgets what another one left.
var solving = func() chan *byte {
	c := make(chan *byte, 1)
	c <- nil
	return c
}()

// solve waits for the process's turn.
func (e *engine) solve(ctx context.Context) (end func(), err error) {
	select {
	case last := <-solving:
		if last != e.token {
			resolver.DefaultPool.Clear()
		}
		return func() { solving <- e.token }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// transportOf carries the requests of ADD as the build that is going on allows.
type transportOf struct{ e *engine }

func (t transportOf) RoundTrip(r *http.Request) (*http.Response, error) {
	now, err := t.e.running()
	if err != nil {
		return nil, err
	}
	return now.transport.RoundTrip(r)
}
