package executor_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

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
