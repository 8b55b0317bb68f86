//go:build linux

package build

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	contentlocal "github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/image"
	"github.com/daytona-go/daytona/internal/registryauth"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/ociindex"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/filesync"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/tonistiigi/fsutil"
	"golang.org/x/sys/unix"
)

// Layers are directories to stack, the topmost first. Without Upper they are
// read-only. They are mounted with the userxattr option.
type Layers struct {
	Lower       []string
	Upper, Work string
}

// Mount is shown to a step at Target.
type Mount struct {
	Target   string
	ReadOnly bool
	// Tmpfs is an empty one of so many bytes; or else
	Tmpfs int64
	// Layers, if it has a Lower; or else
	Layers Layers
	// Dir, a directory or file of this machine.
	Dir string
	// Sub is a path in Layers or Dir, which must be resolved without leaving it.
	Sub string
}

// Step is one command of a build.
type Step struct {
	Root           Layers
	Mounts         []Mount
	Args, Env      []string
	Dir            string // made if missing
	UID, GID       int
	Groups         []int
	Hostname       string
	Hosts          string // further lines for /etc/hosts
	Network        daytona.NetworkPolicy
	Resources      daytona.Resources
	Stdout, Stderr io.Writer
}

// Runner executes the steps of builds.
type Runner interface {
	// RunStep must isolate the command as a sandbox is isolated, and must return
	// only when all its processes are gone. A command that ends with another code
	// than 0 must give a [*daytona.ExitError].
	RunStep(ctx context.Context, s Step) error
	// AdmitBuild must refuse what cannot be enforced, and fill in defaults.
	AdmitBuild(opts *daytona.BuildOptions) error
	// Transport carries the requests of ADD, to what a step may reach.
	Transport(p daytona.NetworkPolicy) (http.RoundTripper, error)
}

// Options configure a Builder.
type Options struct {
	// Runner executes the steps. Required.
	Runner Runner
	// Store is where built images are unpacked. Required.
	Store *image.Store
	// Keychain finds the credentials of registries. Defaults to
	// [authn.DefaultKeychain].
	Keychain authn.Keychain
	// Logger gets what goes on. Defaults to discarding it.
	Logger *slog.Logger
}

const op = "build image"

const ownArchitecture = runtime.GOARCH

// idle is how long a Builder keeps BuildKit open after a build: opening it takes
// longer than a cached build.
const idle = 10 * time.Second

// Builder builds images. It is safe for concurrent use; builds of one state
// directory happen one after the other, in all processes.
type Builder struct {
	dir  string
	opts Options

	turn chan struct{} // holds a token while nobody builds

	mu     sync.Mutex
	engine *engine
	timer  *time.Timer
	closed bool
}

// Open opens the builder of a directory, which must belong to it alone.
func Open(dir string, opts Options) (*Builder, error) {
	if opts.Runner == nil || opts.Store == nil {
		return nil, &daytona.Error{Kind: daytona.KindInvalid, Op: "open builder", Message: "Options.Runner and Options.Store are required"}
	}
	if opts.Keychain == nil {
		opts.Keychain = authn.DefaultKeychain
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if strings.ContainsAny(dir, ":@") {
		return nil, &daytona.Error{Kind: daytona.KindInvalid, Op: "open builder", Field: "dir", Value: dir, Message: `must not contain ":" or "@", which end the path in an image reference`}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	b := &Builder{dir: dir, opts: opts, turn: make(chan struct{}, 1)}
	b.turn <- struct{}{}
	return b, nil
}

// Close ends the builder. A build that runs fails.
func (b *Builder) Close() error {
	b.mu.Lock()
	b.closed = true
	if b.engine != nil {
		b.engine.cancel()
	}
	b.mu.Unlock()
	<-b.turn // and never give it back
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.shut()
}

// shut closes BuildKit. The caller holds b.mu and the turn.
func (b *Builder) shut() error {
	if b.timer != nil {
		b.timer.Stop()
		b.timer = nil
	}
	if b.engine == nil {
		return nil
	}
	err := b.engine.close()
	b.engine = nil
	return err
}

// begin waits for the turn and opens BuildKit.
func (b *Builder) begin(ctx context.Context) (*engine, error) {
	select {
	case <-b.turn:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		b.turn <- struct{}{}
		return nil, &daytona.Error{Kind: daytona.KindState, Op: op, Message: "the builder is closed"}
	}
	if b.timer != nil {
		b.timer.Stop()
		b.timer = nil
	}
	if b.engine == nil {
		e, err := openEngine(ctx, b.dir, b.opts)
		if err != nil {
			b.turn <- struct{}{}
			return nil, err
		}
		b.engine = e
	}
	return b.engine, nil
}

func (b *Builder) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	var t *time.Timer
	t = time.AfterFunc(idle, func() {
		select {
		case <-b.turn:
		default:
			return // somebody builds
		}
		b.mu.Lock()
		if b.timer == t && !b.closed {
			_ = b.shut()
		}
		b.mu.Unlock()
		b.turn <- struct{}{}
	})
	b.timer = t
	b.turn <- struct{}{}
}

// BuildImage implements [daytona.ImageBuilder].
func (b *Builder) BuildImage(ctx context.Context, img *daytona.Image, opts daytona.BuildOptions) (daytona.BuiltImage, error) {
	var none daytona.BuiltImage
	if err := img.Err(); err != nil {
		return none, err
	}
	if p := opts.Platform; p != "" && p != "linux/"+runtime.GOARCH {
		return none, &daytona.Error{Kind: daytona.KindUnsupported, Op: op, Field: "Platform", Value: p, Message: "steps run on this machine: only linux/" + runtime.GOARCH + " can be built"}
	}
	if err := b.opts.Runner.AdmitBuild(&opts); err != nil {
		return none, err
	}
	if err := check(img.Dockerfile(), opts.Args); err != nil {
		return none, err
	}
	transport, err := b.opts.Runner.Transport(opts.Network)
	if err != nil {
		return none, err
	}
	shelf, err := shelfOf(opts)
	if err != nil {
		return none, err
	}
	e, err := b.begin(ctx)
	if err != nil {
		return none, err
	}
	defer b.end()
	end, err := e.solve(ctx)
	if err != nil {
		return none, err
	}
	defer end()
	work, err := os.MkdirTemp(b.dir, "work-")
	if err != nil {
		return none, err
	}
	defer os.RemoveAll(work)
	if err := os.Mkdir(filepath.Join(work, "dockerfile"), 0o700); err != nil {
		return none, err
	}
	if err := os.WriteFile(filepath.Join(work, "dockerfile", "Dockerfile"), []byte(img.Dockerfile()), 0o600); err != nil {
		return none, err
	}
	files, err := contextFS(ctx, img.Contexts(), filepath.Join(work, "context"))
	if err != nil {
		return none, err
	}
	dockerfile, err := fsutil.NewFS(filepath.Join(work, "dockerfile"))
	if err != nil {
		return none, err
	}
	layout := filepath.Join(b.dir, "oci")
	if err := os.MkdirAll(layout, 0o700); err != nil {
		return none, err
	}
	out, err := contentlocal.NewStore(layout)
	if err != nil {
		return none, err
	}
	attrs := map[string]string{"filename": "Dockerfile", "cmdline": "built in"}
	for k, v := range opts.Args {
		attrs["build-arg:"+k] = v
	}
	if opts.Target != "" {
		attrs["target"] = opts.Target
	}
	if opts.NoCache {
		attrs["no-cache"] = ""
	}
	attrs["image-resolve-mode"] = "local"
	if opts.Pull {
		attrs["image-resolve-mode"] = "pull"
	}
	e.current(&running{opts: opts, transport: transport, shelf: shelf})
	defer func() {
		e.current(nil)
		if err := b.opts.Store.Release(context.WithoutCancel(ctx), holder); err != nil {
			b.opts.Logger.Warn("the base images of a build are still held", "err", err)
		}
	}()
	keychain := registryauth.Keychain(ctx)
	if keychain == nil {
		keychain = b.opts.Keychain
	}
	log := newJournal(img.Dockerfile(), opts.OnLog)
	status := make(chan *client.SolveStatus)
	logged := make(chan struct{})
	go func() {
		defer close(logged)
		for s := range status {
			log.add(s)
		}
	}()
	solveCtx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(e.ctx, func() { cancel(errors.New("the builder was closed")) })
	defer stop()
	defer cancel(nil)
	resp, err := e.client.Solve(solveCtx, nil, client.SolveOpt{
		Frontend: "dockerfile.v0", FrontendAttrs: attrs, SharedKey: "daytona",
		Session: []session.Attachable{secretsprovider.FromMap(opts.Secrets), credentials{keychain: keychain},
			// Not SolveOpt.LocalMounts, which looks at files that .dockerignore leaves out.
			filesync.NewFSSyncProvider(filesync.StaticDirSource{"context": files, "dockerfile": plainFS{FS: dockerfile}})},
		Exports: []client.ExportEntry{{Type: client.ExporterOCI, OutputStore: out,
			Attrs: map[string]string{"tar": "false", "compression": "uncompressed", "oci-mediatypes": "true"}}},
	}, status)
	<-logged
	if err != nil {
		if ctx.Err() != nil {
			if errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
				return none, &daytona.Error{Kind: daytona.KindTimeout, Op: op, Message: "the build took longer than its context allows", Err: context.Cause(ctx)}
			}
			return none, context.Cause(ctx)
		}
		return none, e.failure(err, log, b.dir)
	}
	raw, err := base64.StdEncoding.DecodeString(resp.ExporterResponse["containerimage.descriptor"])
	if err != nil {
		return none, err
	}
	var desc ocispecs.Descriptor
	if err := json.Unmarshal(raw, &desc); err != nil {
		return none, fmt.Errorf("%s: what BuildKit says of the image: %w", op, err)
	}
	if err := ociindex.NewStoreIndex(layout).Put(ocispecs.Descriptor{MediaType: desc.MediaType, Digest: desc.Digest, Size: desc.Size},
		ociindex.Tag(desc.Digest.Encoded())); err != nil {
		return none, err
	}
	ref, err := image.ParseReference("oci:" + layout + "@" + desc.Digest.String())
	if err != nil {
		return none, err
	}
	stored, err := b.opts.Store.Resolve(ctx, ref, image.PullIfMissing, nil)
	if err != nil {
		if full(b.dir) {
			return none, &daytona.Error{Kind: daytona.KindNoSpace, Op: op, Subject: b.dir, Message: "the disk is full", Err: err}
		}
		return none, err
	}
	return daytona.BuiltImage{Ref: ref.String(), Digest: desc.Digest.String(), SizeBytes: stored.Size, Cached: !log.worked()}, nil
}

// full reports whether hardly anything is left of the disk that a directory is
// on.
func full(dir string) bool {
	var st unix.Statfs_t
	return unix.Statfs(dir, &st) == nil && (st.Bavail*uint64(st.Bsize) < 1<<20 || (st.Files > 0 && st.Ffree < 16))
}

// contextFS shows the build's files as one tree.
func contextFS(ctx context.Context, contexts []daytona.BuildContext, tmp string) (fsutil.FS, error) {
	if len(contexts) == 1 && contexts[0].Path == "." && contexts[0].Files == nil && len(contexts[0].Exclude) == 0 {
		if st, err := os.Stat(contexts[0].Source); err == nil && st.IsDir() {
			files, err := fsutil.NewFS(contexts[0].Source)
			return plainFS{FS: files}, err
		}
	}
	if err := os.Mkdir(tmp, 0o700); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(tmp)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	odd := special{}
	for _, c := range contexts {
		if err := copyContext(ctx, root, c, odd); err != nil {
			return nil, &daytona.Error{Kind: daytona.KindInvalid, Op: op, Field: "Contexts", Value: c.Path, Message: "its files cannot be read", Err: err}
		}
	}
	copied, err := fsutil.NewFS(tmp)
	return plainFS{copied, odd}, err
}
