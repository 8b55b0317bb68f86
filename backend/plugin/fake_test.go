package plugin_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"log/slog"
	"net"
	"net/url"
	"os"
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
		"path":     &daytona.Error{Kind: daytona.KindForbidden, Op: "read", Err: &fs.PathError{Op: "open", Path: "/x", Err: fs.ErrPermission}},
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

func (c *capable) Pause(_ context.Context, id string) (daytona.Info, error) {
	return daytona.Info{ID: id, State: daytona.StatePaused}, nil
}
func (c *capable) Resume(_ context.Context, id string) (daytona.Info, error) {
	return daytona.Info{ID: id, State: daytona.StateStarted}, nil
}
func (c *capable) Fork(_ context.Context, id, name string) (daytona.Info, error) {
	return daytona.Info{ID: id + "-fork", Name: name}, nil
}
func (c *capable) CreateSnapshot(_ context.Context, id, name string) (daytona.Snapshot, error) {
	return daytona.Snapshot{ID: "of-" + id, Name: name, SizeBytes: 1}, nil
}
func (c *capable) GetSnapshot(_ context.Context, id string) (daytona.Snapshot, error) {
	return daytona.Snapshot{ID: id}, nil
}
func (c *capable) ListSnapshots(context.Context) iter.Seq2[daytona.Snapshot, error] {
	return func(yield func(daytona.Snapshot, error) bool) {
		_ = yield(daytona.Snapshot{ID: "1"}, nil) && yield(daytona.Snapshot{}, &daytona.Error{Kind: daytona.KindNoSpace})
	}
}
func (c *capable) DeleteSnapshot(context.Context, string) error { return nil }
func (c *capable) Resize(_ context.Context, id string, r daytona.Resources) (daytona.Info, error) {
	return daytona.Info{ID: id, Resources: r}, nil
}
func (c *capable) SetNetworkPolicy(_ context.Context, id string, p daytona.NetworkPolicy) (daytona.Info, error) {
	return daytona.Info{ID: id, Network: p}, nil
}
func (c *capable) Archive(_ context.Context, id string) (daytona.Info, error) {
	return daytona.Info{ID: id, State: daytona.StateArchived}, nil
}
func (c *capable) Update(_ context.Context, id string, u daytona.Update) (daytona.Info, error) {
	i := daytona.Info{ID: id, Labels: u.Labels}
	if u.AutoStop != nil {
		i.AutoStop = *u.AutoStop
	}
	return i, nil
}
func (c *capable) CreateVolume(_ context.Context, name string) (daytona.Volume, error) {
	return daytona.Volume{ID: "v", Name: name}, nil
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
