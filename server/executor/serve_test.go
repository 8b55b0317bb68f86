package executor_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/daytonatest"
	"github.com/daytona-go/daytona/internal/runnerkey"
	"github.com/daytona-go/daytona/internal/wire"
	"github.com/daytona-go/daytona/server/executor"
	"github.com/daytona-go/daytona/server/job"
	"github.com/daytona-go/daytona/toolbox/client"
)

// far runs an executor and serves it as another machine would.
func far(t *testing.T, c executor.Config, key string) (*executor.Executor, *executor.Dialer, string) {
	t.Helper()
	e, _ := run(t, c)
	srv := httptest.NewServer(e.Handler())
	t.Cleanup(srv.Close)
	return e, &executor.Dialer{
		Locate: func(context.Context, string) (executor.Place, error) {
			return executor.Place{RunnerID: "far", URL: srv.URL, Key: key}, nil
		},
		Timeout: 5 * time.Second,
	}, srv.URL
}

func TestTunnel(t *testing.T) {
	local := daytonatest.Client(t)
	s := newServer(t)
	_, d, base := far(t, s.config(local), runnerkey.Access(s.key))
	const id = "0a4a4c8c-0000-4000-8000-000000000002"
	ctx := t.Context()
	if _, err := d.Dial(ctx, id); !errors.Is(err, daytona.ErrNotFound) {
		t.Error("a sandbox that is not there:", err)
	}
	s.must(job.New{Type: job.CreateSandbox, ResourceID: id, Payload: payload(id, "base:1")})
	t.Cleanup(func() {
		if sb, err := local.Get(context.Background(), id); err == nil {
			sb.Delete(context.Background())
		}
	})

	// The library's own client of the agent, through the tunnel: programs, and a
	// WebSocket.
	tb := client.New(func(ctx context.Context) (net.Conn, error) { return d.Dial(ctx, id) }, nil)
	defer tb.Close()
	if out, err := tb.Process().Command(ctx, "sh", "-c", "echo $((6*7))").Output(); err != nil || string(out) != "42\n" {
		t.Errorf("%q %v", out, err)
	}
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	if err := tb.FileSystem().WriteFile(ctx, "big", big, 0o644); err != nil {
		t.Fatal(err)
	}
	if got, err := tb.FileSystem().ReadFile(ctx, "big"); err != nil || !bytes.Equal(got, big) {
		t.Error(len(got), err)
	}
	if _, err := d.DialPort(ctx, id, 1); !errors.Is(err, daytona.ErrUnavailable) {
		t.Error("a port that nobody serves:", err)
	}
	if _, err := d.DialPort(ctx, id, 70000); !errors.Is(err, daytona.ErrInvalid) {
		t.Error(err)
	}

	// The agent as the runner's HTTP surface has it; the key does not get there.
	get := func(method, path string, header http.Header, body string) (int, string) {
		t.Helper()
		r, err := http.NewRequestWithContext(ctx, method, base+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header = header
		w, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Body.Close()
		data, _ := io.ReadAll(w.Body)
		return w.StatusCode, string(data)
	}
	preferred := http.Header{"X-Daytona-Authorization": {"Bearer " + s.key}, "Content-Type": {"application/json"}}
	plain := http.Header{"Authorization": {"Bearer " + runnerkey.Access(s.key)}}
	for _, h := range []http.Header{preferred, plain} {
		if status, body := get("GET", "/sandboxes/"+id+"/toolbox/version", h.Clone(), ""); status != 200 || !strings.Contains(body, "version") {
			t.Error(status, body)
		}
	}
	if status, body := get("POST", "/sandboxes/"+id+"/toolbox/process/execute", preferred.Clone(), `{"command":"echo hi"}`); status != 200 || !strings.Contains(body, `hi`) {
		t.Error(status, body)
	}
	if status, body := get("GET", "/sandboxes/"+id, plain.Clone(), ""); status != 200 || !strings.Contains(body, `"state":"started"`) {
		t.Error(status, body)
	}
	for _, path := range []string{"/info", "/metrics", "/snapshots/logs?snapshotRef=x", "/sandboxes/" + id, "/sandboxes/" + id + "/connect", "/sandboxes/" + id + "/toolbox/version"} {
		for _, h := range []http.Header{{}, {"Authorization": {"Bearer wrong"}}, {"Authorization": {s.key}}, {"X-Daytona-Authorization": {"Bearer wrong"}, "Authorization": {"Bearer " + s.key}}} {
			if status, body := get("GET", path, h.Clone(), ""); status != 401 || !strings.Contains(body, "Invalid credentials") {
				t.Errorf("%s with %v: %d %s", path, h, status, body)
			}
		}
	}
	if status, _ := get("GET", "/", http.Header{}, ""); status != 200 {
		t.Error(status)
	}
	if status, body := get("GET", "/metrics", plain.Clone(), ""); status != 200 || !strings.Contains(body, "daytona_runner_sandboxes_started 1\n") {
		t.Error(status, body)
	}
	if status, body := get("GET", "/sandboxes/"+id+"/connect", plain.Clone(), ""); status != 400 {
		t.Error(status, body)
	}

	// Control without jobs.
	if status, body := get("POST", "/sandboxes/"+id+"/stop", plain.Clone(), `{"force":true}`); status != 200 {
		t.Error(status, body)
	}
	if _, err := d.Dial(ctx, id); !errors.Is(err, daytona.ErrInvalid) { // 400 is both
		t.Error("a sandbox that is stopped:", err)
	}
	if status, body := get("POST", "/sandboxes/"+id+"/start", plain.Clone(), ""); status != 200 || !strings.Contains(body, "daemonVersion") {
		t.Error(status, body)
	}
	if out, err := tb.Process().Command(ctx, "cat", "big").Output(); err != nil || len(out) != len(big) {
		t.Error("after a stop and a start:", len(out), err)
	}
	if status, body := get("POST", "/sandboxes/"+id+"/destroy", plain.Clone(), ""); status != 200 {
		t.Error(status, body)
	}
}

// A dial can be given up, and one to nowhere says so.
func TestDialGivesUp(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	where := func(url string) *executor.Dialer {
		return &executor.Dialer{Locate: func(context.Context, string) (executor.Place, error) { return executor.Place{URL: url}, nil }}
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		c, err := l.Accept() // and never answers
		if err == nil {
			defer c.Close()
			cancel()
			<-t.Context().Done()
		}
	}()
	if _, err := where("http://"+l.Addr().String()).Dial(ctx, "x"); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	for _, url := range []string{"", "x", "http://127.0.0.1:1"} {
		if _, err := where(url).Dial(t.Context(), "x"); !errors.Is(err, daytona.ErrUnavailable) {
			t.Errorf("%q: %v", url, err)
		}
	}
}

// What goes from one end of a tunnel arrives at the other, each direction on its
// own, and an end is an end.
func TestTunnelHalves(t *testing.T) {
	s := newServer(t)
	fake := daytonatest.NewFake()
	fake.HandlePort(7, func(c net.Conn) {
		defer c.Close()
		io.WriteString(c, "hello\n")
		data, _ := io.ReadAll(io.LimitReader(c, 5))
		c.Write(bytes.ToUpper(data))
	})
	_, d, _ := far(t, s.config(daytona.New(fake)), s.key)
	s.must(job.New{Type: job.CreateSandbox, ResourceID: "a", Payload: payload("a", "")})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			c, err := d.DialPort(t.Context(), "a", 7)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			if _, err := io.WriteString(c, "quiet"); err != nil {
				t.Error(err)
			}
			if data, err := io.ReadAll(c); err != nil || string(data) != "hello\nQUIET" {
				t.Errorf("%q %v", data, err)
			}
		})
	}
	wg.Wait()
}

// builder builds anything, and shows the files that it was given.
type builder struct {
	*daytonatest.Fake
	begun, go_ chan struct{}
	fail       bool
}

func (b *builder) BuildImage(ctx context.Context, img *daytona.Image, o daytona.BuildOptions) (daytona.BuiltImage, error) {
	o.OnLog(daytona.BuildLog{Step: 1, Name: "[1/1] " + strings.TrimSpace(img.Dockerfile())})
	for _, c := range img.Contexts() {
		err := filepath.WalkDir(c.Source, func(p string, d os.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				data, _ := os.ReadFile(p)
				name, _ := filepath.Rel(c.Source, p)
				o.OnLog(daytona.BuildLog{Step: 1, Line: name + "=" + string(data)})
			}
			return err
		})
		if err != nil {
			return daytona.BuiltImage{}, err
		}
	}
	close(b.begun)
	<-b.go_
	o.OnLog(daytona.BuildLog{Step: 1, Line: "the end"})
	if b.fail {
		return daytona.BuiltImage{}, &daytona.Error{Kind: daytona.KindInvalid, Message: "RUN failed"}
	}
	return daytona.BuiltImage{Ref: "built:1", Digest: "sha256:abc"}, nil
}

type contexts map[string][]byte

func (c contexts) OpenContext(_ context.Context, organization, hash string) (io.ReadCloser, error) {
	data, ok := c[organization+"/"+hash]
	if !ok {
		return nil, &daytona.Error{Kind: daytona.KindNotFound, Subject: hash, Message: "not uploaded"}
	}
	return io.NopCloser(bytes.NewReader(data)), nil
}

func archive(t *testing.T, entries ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range entries {
		content := h.Linkname
		if h.Typeflag == tar.TypeReg {
			h.Linkname, h.Size = "", int64(len(content))
		}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			io.WriteString(w, content)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// file is an entry of an archive whose content is in Linkname.
func file(name, content string) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: name, Linkname: content}
}

func TestBuild(t *testing.T) {
	s := newServer(t)
	outside := t.TempDir()
	c := contexts{
		"org/one":   archive(t, file("app/a.txt", "A"), file("/srv/b.txt", "B"), file("../../c.txt", "C")),
		"org/two":   archive(t, file("app/a.txt", "A2")),
		"org/evil":  archive(t, tar.Header{Typeflag: tar.TypeSymlink, Name: "x", Linkname: outside}, file("x/f", "out")),
		"org/evil2": archive(t, tar.Header{Typeflag: tar.TypeLink, Name: "x", Linkname: "/etc/passwd"}),
	}
	b := &builder{Fake: daytonatest.NewFake(), begun: make(chan struct{}), go_: make(chan struct{})}
	config := s.config(daytona.New(b))
	config.Contexts = c
	_, d, _ := far(t, config, s.key)
	place, _ := d.Locate(t.Context(), "")
	const ref = "daytona-1:daytona"
	if _, err := d.Logs(t.Context(), place, ref, true); !errors.Is(err, daytona.ErrNotFound) {
		t.Error("a build that never was:", err)
	}
	build := func(ref string, hashes ...string) job.New {
		return job.New{Type: job.BuildSnapshot, ResourceType: job.ResourceSnapshot, ResourceID: ref, Payload: wire.JobSnapshot{
			Snapshot: ref, Dockerfile: "FROM scratch\n", OrganizationID: "org", Context: hashes,
		}}
	}
	done := make(chan job.Job, 1)
	go func() { done <- s.do(build(ref, "one", "two")) }()
	<-b.begun
	// Followed from the beginning, while it runs and to its end.
	logs, err := d.Logs(t.Context(), place, ref, true)
	if err != nil {
		t.Fatal(err)
	}
	defer logs.Close()
	head := make([]byte, len("[1/1] FROM scratch\napp/a.txt=A2\nc.txt=C\nsrv/b.txt=B\n"))
	if _, err := io.ReadFull(logs, head); err != nil || string(head) != "[1/1] FROM scratch\napp/a.txt=A2\nc.txt=C\nsrv/b.txt=B\n" {
		t.Errorf("%q %v", head, err)
	}
	close(b.go_)
	if rest, err := io.ReadAll(logs); err != nil || string(rest) != "the end\n" {
		t.Errorf("%q %v", rest, err)
	}
	j := <-done
	var r wire.JobSnapshotResult
	if err := json.Unmarshal([]byte(j.Result), &r); err != nil || r.Name != ref || r.Hash != "sha256:abc" || j.Status != job.Completed {
		t.Errorf("%+v %s %v", r, j.Error, err)
	}
	// Again is found, and nothing is left of what was copied.
	s.must(build(ref, "one", "two"))
	if left, _ := os.ReadDir(filepath.Join(config.Dir, "contexts")); len(left) != 0 {
		t.Error("left:", left)
	}
	s.must(job.New{Type: job.CreateSandbox, ResourceID: "a", Payload: payload("a", ref)})

	for _, hash := range []string{"evil", "evil2", "missing", "../one"} {
		if j := s.do(build("daytona-2:daytona", hash)); j.Status != job.Failed {
			t.Errorf("%s: %s", hash, j.Status)
		}
	}
	if list, _ := os.ReadDir(outside); len(list) != 0 {
		t.Error("written outside:", list)
	}
	b.begun, b.fail = make(chan struct{}), true
	if j := s.do(build("daytona-3:daytona")); j.Status != job.Failed || !strings.Contains(j.Error, "RUN failed") {
		t.Error(j.Status, j.Error)
	}
	failed, err := d.Logs(t.Context(), place, "daytona-3:daytona", true)
	if err != nil {
		t.Fatal(err)
	}
	defer failed.Close()
	if data, err := io.ReadAll(failed); err != nil || !strings.HasSuffix(string(data), "the end\nERROR: RUN failed\n") {
		t.Errorf("%q %v", data, err)
	}
}

// What a runner can't take: the server's own references are never pulled from
// a public registry, files of the machine are no images.
func TestRefuses(t *testing.T) {
	s := newServer(t)
	run(t, s.config(daytona.New(daytonatest.NewFake())))
	create := func(ref string, change func(*wire.JobSandbox)) job.New {
		p := payload("a", ref)
		if change != nil {
			change(&p)
		}
		return job.New{Type: job.CreateSandbox, ResourceID: "a", Payload: p}
	}
	for _, c := range []struct {
		name string
		n    job.New
		want string
	}{
		{"own reference", create("daytona-abc:daytona", nil), "does not have the snapshot"},
		{"a backup that is gone", create("r.example.com/x:1", func(p *wire.JobSandbox) { p.BackupRef = p.Snapshot }), "does not have the snapshot"},
		{"host", job.New{Type: job.PullSnapshot, ResourceType: job.ResourceSnapshot, ResourceID: "x:1", Payload: wire.JobSnapshot{Snapshot: "host"}}, "must be an image in a registry"},
		{"dir", job.New{Type: job.PullSnapshot, ResourceType: job.ResourceSnapshot, ResourceID: "x:1", Payload: wire.JobSnapshot{Snapshot: "dir:/etc"}}, "must be an image in a registry"},
		{"allow list", create("", func(p *wire.JobSandbox) { p.NetworkAllowList = new("example.com") }), "networkAllowList"},
		{"no payload", job.New{Type: job.CreateSandbox, ResourceID: "a", Payload: "[]"}, "payload"},
		{"type", job.New{Type: "DANCE", ResourceID: "a"}, `"DANCE"`},
		{"start", job.New{Type: job.StartSandbox, ResourceID: "nobody"}, "no such sandbox"},
		{"memory", job.New{Type: job.SnapshotSandbox, ResourceID: "nobody", Payload: wire.JobSnapshotSandbox{IncludeMemory: true}}, "includeMemory"},
	} {
		if j := s.do(c.n); j.Status != job.Failed || !strings.Contains(j.Error, c.want) {
			t.Errorf("%s: %s %q", c.name, j.Status, j.Error)
		}
	}
	// An empty list denies everything, none is the default.
	s.must(create("", func(p *wire.JobSandbox) { p.NetworkAllowList = new("") }))
}

// The runner's figures arrive, and make it one that gets sandboxes.
func TestHealthcheck(t *testing.T) {
	s := newServer(t)
	c := s.config(daytona.New(daytonatest.NewFake()))
	c.ProxyURL, c.Health = "https://runner.example.com", 50*time.Millisecond
	changes, end := s.db.Subscribe("runner-state")
	defer end()
	run(t, c)
	select {
	case <-changes:
	case <-time.After(10 * time.Second):
		t.Fatal("it says nothing")
	}
	r, err := s.runners.Runner(t.Context(), s.runner.ID)
	if err != nil || r.State != "ready" || r.CPU < 1 || r.Memory <= 0 || r.Disk <= 0 || r.AppVersion != "9.9" || r.ProxyURL != "https://runner.example.com" ||
		!r.Can("fork") || r.Can("pause") {
		t.Errorf("%+v %v", r, err)
	}
}

// TestReadyBeforeJobs: a runner has said that it is ready by the time it does its
// first job, which may be what somebody waits for who then wants a sandbox.
func TestReadyBeforeJobs(t *testing.T) {
	s := newServer(t)
	b := &readyBackend{Fake: daytonatest.NewFake(), state: func() string {
		r, err := s.runners.Runner(context.Background(), s.runner.ID)
		if err != nil {
			return err.Error()
		}
		return string(r.State)
	}}
	run(t, s.config(daytona.New(b)))
	s.do(job.New{Type: job.CreateSandbox, ResourceID: "a", Payload: payload("a", "")})
	if got := b.was.Load(); got != "ready" {
		t.Errorf("at its first job the runner is %v", got)
	}
}

// readyBackend notes how the server thinks the runner is when a sandbox is made. Until
// then it takes its time to be counted.
type readyBackend struct {
	*daytonatest.Fake
	state func() string
	was   atomic.Value
}

func (b *readyBackend) List(ctx context.Context, f daytona.Filter) iter.Seq2[daytona.Info, error] {
	for end := time.Now().Add(time.Second); b.was.Load() == nil && b.state() != "ready" && time.Now().Before(end); time.Sleep(time.Millisecond) {
	}
	return b.Fake.List(ctx, f)
}

func (b *readyBackend) Create(ctx context.Context, spec daytona.Spec) (daytona.Info, error) {
	b.was.CompareAndSwap(nil, b.state())
	return b.Fake.Create(ctx, spec)
}

// A full disk is what a recovery can help with.
func TestRecoverable(t *testing.T) {
	s := newServer(t)
	run(t, s.config(daytona.New(&fullBackend{daytonatest.NewFake()})))
	j := s.do(job.New{Type: job.CreateSandbox, ResourceID: "a", Payload: payload("a", "")})
	if reason, recoverable := j.Failure(); !recoverable || !strings.Contains(reason, "No space left on device") {
		t.Error(j.Error)
	}
}

type fullBackend struct{ *daytonatest.Fake }

func (b *fullBackend) Create(context.Context, daytona.Spec) (daytona.Info, error) {
	return daytona.Info{}, errors.New("write /x: No space left on device")
}

// privateImage serves an image to ada only, and returns its name. asked is told
// of the credentials of each request.
func privateImage(t *testing.T, asked ...func(user, password string)) string {
	t.Helper()
	blobs := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		for _, f := range asked {
			f(user, password)
		}
		if user != "ada" || password != "geheim" {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(401)
			return
		}
		blobs.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	img, err := random.Image(1000, 3)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := name.ParseReference(strings.TrimPrefix(srv.URL, "http://") + "/x/y:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img, remote.WithAuth(&authn.Basic{Username: "ada", Password: "geheim"})); err != nil {
		t.Fatal(err)
	}
	return ref.String()
}

// What a registry has, and with whose credentials: those of the job, for its
// own registry and no other.
func TestInspect(t *testing.T) {
	var mu sync.Mutex
	seen := map[string]bool{}
	ref := privateImage(t, func(user, password string) { mu.Lock(); seen[user+":"+password] = true; mu.Unlock() })
	host, _, _ := strings.Cut(ref, "/")
	s := newServer(t)
	run(t, s.config(daytona.New(daytonatest.NewFake())))
	inspect := func(r *wire.JobRegistry) job.Job {
		return s.do(job.New{Type: job.InspectSnapshot, ResourceType: job.ResourceSnapshot, ResourceID: "x", Payload: wire.JobSnapshot{Snapshot: ref, Registry: r}})
	}
	j := inspect(&wire.JobRegistry{URL: "http://" + host, Username: new("ada"), Password: new("geheim")})
	var r wire.JobSnapshotResult
	if err := json.Unmarshal([]byte(j.Result), &r); err != nil || !strings.HasPrefix(r.Hash, "sha256:") || r.SizeGB <= 0 {
		t.Errorf("%+v %v %s", r, err, j.Error)
	}
	if j := inspect(&wire.JobRegistry{URL: "http://elsewhere.example.com", Username: new("bob"), Password: new("andere")}); j.Status != job.Failed || strings.Contains(j.Error, "andere") {
		t.Error(j.Status, j.Error)
	}
	if seen["bob:andere"] {
		t.Error("one registry's credentials were sent to another")
	}
	if j := inspect(nil); j.Status != job.Failed {
		t.Error(j.Status)
	}
}

// An image that one organization has pulled with its credentials is not there
// for another that has none.
func TestPrivateImages(t *testing.T) {
	local := daytonatest.Client(t)
	ref := privateImage(t)
	s := newServer(t)
	run(t, s.config(local))
	pull := func(snapshot string, r *wire.JobRegistry) job.Job {
		return s.do(job.New{Type: job.PullSnapshot, ResourceType: job.ResourceSnapshot, ResourceID: snapshot, Payload: wire.JobSnapshot{Snapshot: ref, Registry: r}})
	}
	own := &wire.JobRegistry{URL: ref, Username: new("ada"), Password: new("geheim")}
	if j := pull("b/1:daytona", nil); j.Status != job.Failed || !strings.Contains(j.Error, "credentials") {
		t.Error("without credentials:", j.Status, j.Error)
	}
	if j := pull("a/1:daytona", own); j.Status != job.Completed {
		t.Fatal(j.Error)
	}
	for _, r := range []*wire.JobRegistry{nil, {URL: ref, Username: new("bob"), Password: new("x")}} {
		if j := pull("b/2:daytona", r); j.Status != job.Failed {
			t.Error("with what another has pulled:", j.Status)
		}
	}
	if j := pull("a/2:daytona", own); j.Status != job.Completed {
		t.Error(j.Error)
	}
}

// Volumes that have no place of their own are directories of this machine, and
// outlive sandboxes.
func TestVolumes(t *testing.T) {
	local := daytonatest.Client(t)
	s := newServer(t)
	e, _ := run(t, s.config(local))
	d := dialer(e)
	for i, want := range []string{"1", "2"} {
		id := fmt.Sprintf("volume-%d", i)
		p := payload(id, "base:1")
		p.Volumes = []wire.JobVolume{{VolumeID: "7a1e", MountPath: "/data/", Subpath: new("users/ada")}}
		s.must(job.New{Type: job.CreateSandbox, ResourceID: id, Payload: p})
		tb := client.New(func(ctx context.Context) (net.Conn, error) { return d.Dial(ctx, id) }, nil)
		out, err := tb.Process().Command(t.Context(), "sh", "-c", "echo x >> /data/f; wc -l < /data/f").Output()
		if err != nil || strings.TrimSpace(string(out)) != want {
			t.Errorf("%q %v", out, err)
		}
		tb.Close()
		s.must(job.New{Type: job.DestroySandbox, ResourceID: id})
	}
	bad := payload("volume-3", "base:1")
	bad.Volumes = []wire.JobVolume{{VolumeID: "7a1e", MountPath: "/data", Subpath: new("../other")}}
	if j := s.do(job.New{Type: job.CreateSandbox, ResourceID: "volume-3", Payload: bad}); j.Status != job.Failed {
		t.Error(j.Status)
	}
}
