package plugin_test

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/toolbox/client"
)

// fake is a backend whose behaviour is said by the names of sandboxes, to see
// from the host what a plugin's backend sees and says.
type fake struct {
	config url.Values
	closed chan struct{}

	mu    sync.Mutex
	boxes map[string]daytona.Info
	// snapshots counts those that there are.
	snapshots int
}

func openFake(_ context.Context, config url.Values) (daytona.Backend, error) {
	if v := config.Get("refuse"); v != "" {
		return nil, &daytona.Error{Kind: daytona.KindInvalid, Op: "open fake", Field: "refuse", Value: v, Message: "refused"}
	}
	slog.Debug("opened", "count", 3, "ratio", 0.5, "on", true, "list", []string{"a", "b"}, slog.Group("group", "inner", "x"), "msg", "not the message")
	slog.Warn("a warning")
	fmt.Fprintln(os.Stderr, "a bare line")
	fmt.Fprintln(os.Stderr, strings.Repeat("long", 100_000))
	f := &fake{config: config, boxes: map[string]daytona.Info{}, closed: make(chan struct{})}
	if config.Has("capable") {
		return &capable{f}, nil
	}
	return f, nil
}

func (f *fake) Name() string { return "fake" }

func (f *fake) Create(ctx context.Context, spec daytona.Spec) (daytona.Info, error) {
	info := daytona.Info{ID: "id-" + spec.Name, Name: spec.Name, State: daytona.StateStarted, Backend: "fake", Labels: spec.Labels, Language: "python"}
	switch spec.Name {
	case "progress":
		for i := range 3 {
			spec.OnProgress(daytona.Progress{Stage: "step", Done: int64(i), Total: 3})
		}
	case "slow": // until it is cancelled
		<-ctx.Done()
		return daytona.Info{}, &daytona.Error{Kind: daytona.KindInternal, Op: "create", Message: "gave up", Err: ctx.Err()}
	case "late": // it is done just when it is cancelled
		<-ctx.Done()
	case "dies":
		os.Exit(7)
	case "environment":
		info.Env = map[string]string{}
		for _, kv := range os.Environ() {
			k, v, _ := strings.Cut(kv, "=")
			info.Env[k] = v
		}
	default:
		if err := failures()[spec.Name]; err != nil {
			return daytona.Info{}, err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.boxes[info.ID] = info
	return info, nil
}

// failures are errors that must survive, by the name of the sandbox that gives
// them.
func failures() map[string]error {
	return map[string]error{
		"plain":    errors.New("something is wrong"),
		"whole":    &daytona.Error{Kind: daytona.KindConflict, Op: "create", Subject: "s", Field: "Name", Value: "taken", Message: "is taken", Err: io.ErrUnexpectedEOF},
		"number":   &daytona.Error{Kind: daytona.KindInvalid, Field: "Resources.CPU", Value: 0.001, Message: "too little"},
		"integer":  &daytona.Error{Kind: daytona.KindInvalid, Field: "GPU", Value: -7},
		"boolean":  &daytona.Error{Kind: daytona.KindUnsupported, Field: "Network.Block", Value: true},
		"duration": &daytona.Error{Kind: daytona.KindInvalid, Field: "TTL", Value: 1500 * time.Millisecond},
		"wrapped":  fmt.Errorf("outer: %w", &daytona.Error{Kind: daytona.KindNotFound, Op: "find image", Subject: "debian:0"}),
		"nested":   &daytona.Error{Kind: daytona.KindUnavailable, Op: "a", Err: fmt.Errorf("b: %w", &daytona.Error{Kind: daytona.KindNoSpace, Op: "c", Err: context.DeadlineExceeded})},
		"joined":   errors.Join(&daytona.Error{Kind: daytona.KindGone, Op: "first"}, errors.New("second")),
		"sentinel": fmt.Errorf("no more: %w", daytona.ErrExhausted),
		"std":      fmt.Errorf("cannot: %w", errors.ErrUnsupported),
		"canceled": context.Canceled,
		"deadline": &daytona.Error{Kind: daytona.KindTimeout, Op: "wait", Err: context.DeadlineExceeded},
		"empty":    &daytona.Error{},
		"binary":   errors.New("not \xff\xfe text"),
		"huge":     errors.New(strings.Repeat("x", 1<<20)),
		"build": &daytona.BuildError{Step: 2, Name: "[2/3] RUN make", Line: 7, ExitCode: 2, Log: []byte("make: *** [all] \xff invalid UTF-8"),
			Err: &daytona.Error{Kind: daytona.KindExhausted, Op: "run", Message: "out of memory"}},
		"build-around": fmt.Errorf("image x: %w", &daytona.BuildError{Name: "COPY a b", Line: 1, Err: fmt.Errorf("a: %w", daytona.ErrNotFound)}),
		"build-log":    &daytona.BuildError{Name: "RUN yes", Log: []byte(strings.Repeat("y\n", 16<<10)), Err: errors.New("exit code 1")},
		"path":         &daytona.Error{Kind: daytona.KindForbidden, Op: "read", Err: &fs.PathError{Op: "open", Path: "/x", Err: fs.ErrPermission}},
	}
}

func (f *fake) Start(ctx context.Context, id string) (daytona.Info, error) { return f.Get(ctx, id) }

func (f *fake) Stop(ctx context.Context, id string, o daytona.StopOptions) (daytona.Info, error) {
	i, err := f.Get(ctx, id)
	i.Reason = strconv.FormatBool(o.Force)
	return i, err
}

func (f *fake) Delete(_ context.Context, id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.boxes[id]; !ok {
		return &daytona.Error{Kind: daytona.KindNotFound, Op: "delete", Subject: id}
	}
	delete(f.boxes, id)
	return nil
}

func (f *fake) Get(ctx context.Context, idOrName string) (daytona.Info, error) {
	if idOrName == "hang" {
		<-ctx.Done()
		return daytona.Info{}, ctx.Err()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, i := range f.boxes {
		if i.ID == idOrName || i.Name == idOrName {
			return i, nil
		}
	}
	return daytona.Info{}, &daytona.Error{Kind: daytona.KindNotFound, Op: "get", Subject: idOrName}
}

// List yields what there is or, asked for "endless", sandboxes until nobody
// wants more.
func (f *fake) List(ctx context.Context, filter daytona.Filter) iter.Seq2[daytona.Info, error] {
	return func(yield func(daytona.Info, error) bool) {
		if filter.NamePrefix == "endless" {
			for i := 0; ctx.Err() == nil; i++ {
				if !yield(daytona.Info{ID: strconv.Itoa(i)}, nil) {
					break
				}
			}
			yieldedUntil := daytona.Info{ID: "id-stopped", Name: "stopped", State: daytona.StateStarted}
			f.mu.Lock()
			f.boxes[yieldedUntil.ID] = yieldedUntil
			f.mu.Unlock()
			return
		}
		f.mu.Lock()
		boxes := make([]daytona.Info, 0, len(f.boxes))
		for _, i := range f.boxes {
			boxes = append(boxes, i)
		}
		f.mu.Unlock()
		for _, i := range boxes {
			if filter.Match(i) && !yield(i, nil) {
				return
			}
		}
	}
}

func (f *fake) Connect(id string) daytona.Toolbox {
	return client.New(func(ctx context.Context) (net.Conn, error) {
		switch id {
		case "stopped":
			return nil, &daytona.Error{Kind: daytona.KindState, Op: "dial", Subject: id, Message: "it is stopped"}
		case "missing":
			return nil, &daytona.Error{Kind: daytona.KindNotFound, Op: "dial", Subject: id}
		case "hang":
			<-ctx.Done()
			return nil, ctx.Err()
		}
		ln, err := net.Listen("unix", "@"+rand.Text()) // no file
		if err != nil {
			return nil, err
		}
		go func() {
			c, err := ln.Accept()
			ln.Close()
			if err != nil {
				return
			}
			defer c.Close()
			agent(id, c.(*net.UnixConn))
		}()
		return net.Dial("unix", ln.Addr().String())
	}, nil)
}

// agent is the far end of a connection.
func agent(kind string, c *net.UnixConn) {
	switch kind {
	case "echo": // also after the end of what it reads, which it reports
		n, _ := io.Copy(c, c)
		fmt.Fprintf(c, "|%d", n)
	case "speaks first": // and ends its direction, then listens
		fmt.Fprint(c, "hello")
		_ = c.CloseWrite()
		data, _ := io.ReadAll(c)
		_ = os.WriteFile(string(data), data, 0o600)
	case "source": // as fast as it can
		buf := make([]byte, 64<<10)
		for {
			if _, err := c.Write(buf); err != nil {
				return
			}
		}
	case "deaf": // reads nothing
		select {}
	case "refuses": // and says why
		fmt.Fprint(c, "no room")
	case "sink":
		_, _ = io.Copy(io.Discard, c)
	}
}

func (f *fake) Close() error {
	if path := f.config.Get("closed"); path != "" {
		return os.WriteFile(path, []byte("closed"), 0o600)
	}
	return nil
}

// capable is a fake with all capabilities.
type capable struct{ *fake }

func (c *capable) Pause(_ context.Context, id string, o daytona.PauseOptions) (daytona.Info, error) {
	return daytona.Info{ID: id, State: daytona.StatePaused, Reason: strconv.FormatBool(o.Disk)}, nil
}
func (c *capable) Resume(_ context.Context, id string) (daytona.Info, error) {
	return daytona.Info{ID: id, State: daytona.StateStarted}, nil
}

// Fork makes children that are listed, the last of "late" when it is cancelled.
func (c *capable) Fork(ctx context.Context, id string, o daytona.ForkOptions) ([]daytona.Info, error) {
	var out []daytona.Info
	for i, name := range o.Names {
		child := daytona.Info{ID: fmt.Sprint(id, "-fork-", i), Name: name, Parent: id, Reason: strconv.FormatBool(o.Memory)}
		out = append(out, child)
		c.mu.Lock()
		c.boxes[child.ID] = child
		c.mu.Unlock()
	}
	switch id {
	case "late":
		<-ctx.Done()
	case "few":
		return out[1:], nil
	}
	return out, nil
}

// CreateSnapshot makes one that is listed, of "late" when it is cancelled.
func (c *capable) CreateSnapshot(ctx context.Context, spec daytona.SnapshotSpec) (daytona.Snapshot, error) {
	if spec.OnProgress != nil {
		spec.OnProgress(daytona.Progress{Stage: "saving", Done: 1, Total: 2})
	}
	switch spec.Name {
	case "late":
		<-ctx.Done()
	case "taken":
		return daytona.Snapshot{}, &daytona.Error{Kind: daytona.KindConflict, Op: "create snapshot", Subject: spec.Name}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.snapshots++
	return daytona.Snapshot{
		ID: "of-" + spec.Image + spec.Sandbox, Name: spec.Name, State: daytona.SnapshotActive, SizeBytes: 1, Entrypoint: spec.Entrypoint, Resources: spec.Resources,
	}, nil
}
func (c *capable) SetSnapshotActive(_ context.Context, id string, active bool) (daytona.Snapshot, error) {
	return daytona.Snapshot{ID: id, State: map[bool]daytona.SnapshotState{true: daytona.SnapshotActive, false: daytona.SnapshotInactive}[active]}, nil
}
func (c *capable) GetSnapshot(_ context.Context, id string) (daytona.Snapshot, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return daytona.Snapshot{ID: id, SizeBytes: int64(c.snapshots)}, nil
}
func (c *capable) ListSnapshots(context.Context) iter.Seq2[daytona.Snapshot, error] {
	return func(yield func(daytona.Snapshot, error) bool) {
		_ = yield(daytona.Snapshot{ID: "1"}, nil) && yield(daytona.Snapshot{}, &daytona.Error{Kind: daytona.KindNoSpace})
	}
}
func (c *capable) DeleteSnapshot(context.Context, string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.snapshots--
	return nil
}
func (c *capable) Resize(_ context.Context, id string, r daytona.Resources) (daytona.Info, error) {
	return daytona.Info{ID: id, Resources: r}, nil
}
func (c *capable) SetNetworkPolicy(_ context.Context, id string, p daytona.NetworkPolicy) (daytona.Info, error) {
	return daytona.Info{ID: id, Network: p}, nil
}
func (c *capable) Archive(_ context.Context, id string) (daytona.Info, error) {
	return daytona.Info{ID: id, State: daytona.StateArchived}, nil
}
func (c *capable) Restore(_ context.Context, id string) (daytona.Info, error) {
	return daytona.Info{ID: id, State: daytona.StateStopped}, nil
}
func (c *capable) Update(_ context.Context, id string, u daytona.Update) (daytona.Info, error) {
	i := daytona.Info{ID: id, Labels: u.Labels}
	if u.AutoStop != nil {
		i.AutoStop = *u.AutoStop
	}
	if u.AutoPause != nil {
		i.AutoPause = *u.AutoPause
	}
	return i, nil
}
func (c *capable) CreateVolume(_ context.Context, spec daytona.VolumeSpec) (daytona.Volume, error) {
	v := daytona.Volume{ID: "v", Name: spec.Name, Kind: spec.Kind, Quota: spec.Quota}
	if spec.S3 != nil {
		v.ID = spec.S3.Bucket + spec.S3.SecretKey
	}
	return v, nil
}
func (c *capable) GetVolume(_ context.Context, id string) (daytona.Volume, error) {
	return daytona.Volume{ID: id}, nil
}
func (c *capable) ListVolumes(context.Context) iter.Seq2[daytona.Volume, error] {
	return func(yield func(daytona.Volume, error) bool) { yield(daytona.Volume{ID: "v"}, nil) }
}
func (c *capable) DeleteVolume(context.Context, string) error { return nil }
func (c *capable) Wait(_ context.Context, id string, s ...daytona.State) (daytona.Info, error) {
	return daytona.Info{ID: id, State: s[len(s)-1]}, nil
}

// misbehave is a program that is no good plugin.
func misbehave(how string) {
	switch how {
	case "silent": // says why, and ends
		fmt.Fprintln(os.Stderr, "cannot find my configuration")
		os.Exit(3)
	case "chatty": // not a plugin at all
		fmt.Println("Hello, World!")
	case "version":
		fmt.Printf("1|99|unix|%s/x|grpc|\n", os.Getenv("PLUGIN_UNIX_SOCKET_DIR"))
	case "elsewhere":
		fmt.Println("1|1|tcp|127.0.0.1:80|grpc|")
	case "mute":
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	os.Exit(1)
}

// BuildImage does what the Dockerfile says: its text is one of the words below.
func (c *capable) BuildImage(ctx context.Context, img *daytona.Image, o daytona.BuildOptions) (daytona.BuiltImage, error) {
	switch img.Dockerfile() {
	case "slow": // until it is cancelled
		if o.OnLog != nil {
			o.OnLog(daytona.BuildLog{Line: "building"})
		}
		<-ctx.Done()
		return daytona.BuiltImage{}, ctx.Err()
	case "dies":
		os.Exit(7)
	case "chatty":
		for i := range 20_000 {
			o.OnLog(daytona.BuildLog{Step: 1, Name: "RUN", Line: strconv.Itoa(i)})
		}
	case "fails":
		o.OnLog(daytona.BuildLog{Step: 1, Name: "RUN", Line: "on its way"})
		return daytona.BuiltImage{}, failures()["build"]
	case "options":
		return daytona.BuiltImage{Ref: fmt.Sprintf("%v %v %s %v %v %v %v %v %v",
			o.Args, o.Secrets, o.Platform, o.Target, o.NoCache, o.Pull, o.Network.Block, o.Resources.Memory, o.StepTimeout), SizeBytes: 5, Cached: true}, nil
	case "list": // what there is to copy, and where
		var out []string
		for _, b := range img.Contexts() {
			out = append(out, "at "+b.Path)
			err := filepath.WalkDir(b.Source, func(p string, d fs.DirEntry, err error) error {
				if err != nil {
					return err
				}
				st, err := d.Info()
				if err != nil {
					return err
				}
				rel, _ := filepath.Rel(b.Source, p)
				line := fmt.Sprintf("%s %v", rel, st.Mode())
				if !st.IsDir() && st.Mode()&fs.ModeSymlink == 0 {
					line += st.ModTime().UTC().Format(" 2006-01-02T15:04:05.999999999")
				}
				switch st.Mode().Type() {
				case 0:
					data, err := os.ReadFile(p)
					if err != nil {
						return err
					}
					line += fmt.Sprintf(" %x", sha256.Sum256(data))
				case fs.ModeSymlink:
					to, _ := os.Readlink(p)
					line += " -> " + to
				}
				out = append(out, line)
				return nil
			})
			if err != nil {
				return daytona.BuiltImage{}, err
			}
		}
		return daytona.BuiltImage{Ref: strings.Join(out, "\n"), Digest: "sha256:x"}, nil
	}
	return daytona.BuiltImage{}, nil
}
