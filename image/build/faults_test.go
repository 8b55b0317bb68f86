package build_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/backend/local"
	"github.com/daytona-go/daytona/image"
)

// processes counts those of this machine that have a word in their command line.
func processes(t testing.TB, word string) int {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, f := range files {
		if data, err := os.ReadFile(f); err == nil && bytes.Contains(data, []byte(word)) {
			n++
		}
	}
	return n
}

// eventually waits for what another process does.
func eventually(t testing.TB, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

// traces are what builds in a state directory leave on the machine while they run:
// control groups and mounts.
func traces(t testing.TB, dir string) []string {
	t.Helper()
	var found []string
	groups, err := filepath.Glob("/sys/fs/cgroup/*/*-build-*")
	if err != nil {
		t.Fatal(err)
	}
	nested, err := filepath.Glob("/sys/fs/cgroup/*/*/*-build-*")
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte(dir)) // see lifecycle.State.Tag
	for _, g := range append(groups, nested...) {
		if strings.Contains(g, hex.EncodeToString(sum[:4])) {
			found = append(found, g)
		}
	}
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if strings.Contains(line, dir+"/") {
			found = append(found, strings.TrimSpace(line))
		}
	}
	return found
}

// visible are the images that a state directory has to show.
func visible(t testing.TB, dir string) (images []string) {
	t.Helper()
	store, err := image.OpenStore(filepath.Join(dir, "images"), nil)
	if err != nil {
		t.Fatal(err)
	}
	list, err := store.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, img := range list {
		images = append(images, img.Reference.String())
	}
	if index, err := os.ReadFile(filepath.Join(dir, "build", "oci", "index.json")); err == nil && bytes.Contains(index, []byte("sha256:")) {
		images = append(images, string(index))
	}
	return images
}

// TestStepThatHangs: the limit of a step and that of the build end all of its
// processes, also those that have left its session.
func TestStepThatHangs(t *testing.T) {
	dir := stateDir(t)
	c := openDir(t, dir)
	word := "999" + strconv.Itoa(os.Getpid())
	text := from(t, "RUN echo begun; setsid sleep "+word+" & trap '' TERM INT; sleep "+word+"\n")
	begun := make(chan struct{}, 100)
	opts := daytona.BuildOptions{OnLog: func(l daytona.BuildLog) {
		if l.Line == "begun" {
			begun <- struct{}{}
		}
	}}
	check := func(err error, is error) {
		t.Helper()
		if !errors.Is(err, is) {
			t.Errorf("%T %v, want %v", err, err, is)
		}
		if n := processes(t, word); n > 0 {
			t.Errorf("%d processes are left", n)
		}
		if left := traces(t, dir); len(left) > 0 {
			t.Errorf("left: %q", left)
		}
		if have := visible(t, dir); len(have) > 0 {
			t.Errorf("visible: %q", have)
		}
	}
	limited := opts
	limited.StepTimeout = 2 * time.Second
	_, err := c.Build(t.Context(), daytona.NewImage(text), limited)
	check(err, daytona.ErrTimeout)
	if b, ok := errors.AsType[*daytona.BuildError](err); !ok || b.Line != 2 || b.Step != 2 || !strings.Contains(string(b.Log), "begun") {
		t.Errorf("%+v", err)
	}
	<-begun
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	failed := make(chan error, 1)
	go func() {
		_, err := c.Build(ctx, daytona.NewImage(text), opts)
		failed <- err
	}()
	<-begun
	if processes(t, word) == 0 {
		t.Error("the step has no processes")
	}
	cancel()
	check(<-failed, context.Canceled)
	// A builder that is closed ends its build.
	other := openDir(t, dir)
	go func() {
		_, err := other.Build(t.Context(), daytona.NewImage(text), opts)
		failed <- err
	}()
	// It waits for this process's other engine to let go of the directory.
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	<-begun
	if err := other.Close(); err != nil {
		t.Error(err)
	}
	if err := <-failed; err == nil {
		t.Error("a build of a closed client succeeded")
	}
	check(nil, nil)
}

// TestStepWithADiskLimit: a step that writes more than it may fails alone, and one
// that does not keeps what it wrote, with whom it belongs to.
func TestStepWithADiskLimit(t *testing.T) {
	dir := stateDir(t)
	c := openDir(t, dir)
	opts := daytona.BuildOptions{Resources: daytona.Resources{Disk: 0.25}}
	_, err := c.Build(t.Context(), daytona.NewImage(from(t, "RUN echo begun; dd if=/dev/zero of=/fill bs=1M count=600\n")), opts)
	b, ok := errors.AsType[*daytona.BuildError](err)
	if daytona.KindOf(err) == daytona.KindUnsupported {
		t.Skip(err)
	}
	if !ok || !errors.Is(err, daytona.ErrNoSpace) || b.Line != 2 || !strings.Contains(string(b.Log), "begun") {
		t.Fatalf("%T %v", err, err)
	}
	if have := visible(t, dir); len(have) > 0 {
		t.Errorf("visible: %q", have)
	}
	text := from(t, "RUN echo a > /a; ln /a /b; chown 7:8 /a; rm /etc/issue; mkfifo /pipe; rm -r /etc/apt; mkdir -m 750 /etc/apt; df / > /df\n"+
		"RUN test \"$(stat -c %u:%g:%h /a)\" = 7:8:2 && test ! -e /etc/issue && test -p /pipe && test -z \"$(ls -A /etc/apt)\" && test $(stat -c %a /etc/apt) = 750 && cat /df\n")
	var l logs
	opts.OnLog = l.add
	if _, err := c.Build(t.Context(), daytona.NewImage(text), opts); err != nil {
		t.Fatalf("%v\n%s", err, l.String())
	}
	if left := traces(t, dir); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
	if found, _ := filepath.Glob(filepath.Join(dir, "build", "disk-*")); len(found) > 0 {
		t.Errorf("left: %q", found)
	}
	// What a cache mount holds would not be limited.
	if _, err := c.Build(t.Context(), daytona.NewImage(from(t, "RUN --mount=type=cache,target=/c touch /c/x\n")), opts); !errors.Is(err, daytona.ErrUnsupported) {
		t.Errorf("a cache mount: %v", err)
	}
}

// TestRegistryThatFails: a layer that breaks off and one that is damaged fail the
// build with a typed error, leave nothing to be seen, and do no harm to the next.
func TestRegistryThatFails(t *testing.T) {
	base := base(t)
	upstream := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: strings.TrimSuffix(base, "/debian:12")})
	var mode atomic.Value
	mode.Store("")
	layer := func(r *http.Response) bool {
		return strings.Contains(r.Request.URL.Path, "/blobs/") && r.Request.Method == http.MethodGet && r.ContentLength > 1<<20
	}
	upstream.ModifyResponse = func(r *http.Response) error {
		if !layer(r) {
			return nil
		}
		switch mode.Load() {
		case "drops":
			r.Body = struct {
				io.Reader
				io.Closer
			}{io.LimitReader(r.Body, 1<<20), r.Body}
		case "damages":
			r.Body = struct {
				io.Reader
				io.Closer
			}{&damaged{r: r.Body}, r.Body}
		}
		return nil
	}
	upstream.ErrorLog = nil
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() { _ = recover() }() // the proxy gives up connections by panicking
		upstream.ServeHTTP(w, r)
	}))
	defer srv.Close()
	text := "FROM " + strings.TrimPrefix(srv.URL, "http://") + "/debian:12\nRUN echo built > /built\n"
	dir := stateDir(t)
	c := openDir(t, dir)
	for _, test := range []struct {
		mode string
		kind daytona.Kind
	}{{"damages", daytona.KindInvalid}, {"drops", daytona.KindUnavailable}} {
		mode.Store(test.mode)
		ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
		_, err := c.Build(ctx, daytona.NewImage(text), daytona.BuildOptions{})
		cancel()
		if daytona.KindOf(err) != test.kind {
			t.Errorf("a registry that %s: %T %v (%v)", test.mode, err, err, daytona.KindOf(err))
		}
		if have := visible(t, dir); len(have) > 0 {
			t.Errorf("a registry that %s: visible: %q", test.mode, have)
		}
		if left := traces(t, dir); len(left) > 0 {
			t.Errorf("a registry that %s: left: %q", test.mode, left)
		}
	}
	mode.Store("")
	if _, err := c.Build(t.Context(), daytona.NewImage(text), daytona.BuildOptions{}); err != nil {
		t.Errorf("the registry works again: %v", err)
	}
}

// damaged is a body with a wrong byte beyond the first half mebibyte.
type damaged struct {
	r io.Reader
	n int
}

func (d *damaged) Read(p []byte) (int, error) {
	n, err := d.r.Read(p)
	if at := 1<<19 - d.n; at >= 0 && at < n {
		p[at] ^= 0xff
	}
	d.n += n
	return n, err
}

// killedVariable has this program be the process that is killed while it builds.
const killedVariable = "DAYTONA_TEST_KILLED_BUILD"

func TestMain(m *testing.M) {
	if dir, text, ok := strings.Cut(os.Getenv(killedVariable), " "); ok {
		if err := killedBuild(dir, text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func killedBuild(dir, text string) error {
	c, err := local.Open(context.Background(), &local.Options{Dir: dir})
	if err != nil {
		return err
	}
	_, err = c.Build(context.Background(), daytona.NewImage(text), daytona.BuildOptions{OnLog: func(l daytona.BuildLog) { fmt.Println(l.Name, l.Line) }})
	return err
}

// TestKilledBuild: kill -9 while a step runs. Who opens the directory next finds
// nothing half made, gives back what the process held, and builds the same.
func TestKilledBuild(t *testing.T) {
	base := base(t)
	dir := stateDir(t)
	word := "998" + strconv.Itoa(os.Getpid())
	// The secret is no part of what the step is found by.
	text := "FROM " + base + "\nRUN dd if=/dev/zero of=/big bs=1M count=64 2>/dev/null; echo kept > /first\n" +
		"RUN --mount=type=secret,id=go dd if=/dev/zero of=/half bs=1M count=64 2>/dev/null; echo begun; test -e /run/secrets/go || sleep " + word + "; rm /half; echo done > /second\n"
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	free := func() (used int64) {
		_ = filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				if st, err := d.Info(); err == nil {
					used += st.Size()
				}
			}
			return nil
		})
		return used
	}
	for i := range 2 {
		out, in, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(exe)
		cmd.Env = append(os.Environ(), killedVariable+"="+dir+" "+text)
		cmd.Stdout, cmd.Stderr = in, in
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		in.Close()
		var said []byte
		buf := make([]byte, 4096)
		for !bytes.Contains(said, []byte(" begun\n")) {
			n, err := out.Read(buf)
			said = append(said, buf[:n]...)
			if err != nil {
				t.Fatalf("round %d: the build ended: %v %s", i, err, said)
			}
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		out.Close()
		eventually(t, "the step ends with its process", func() bool { return processes(t, "sleep\x00"+word) == 0 })
		if have := visible(t, dir); len(have) > 0 {
			t.Errorf("round %d: visible: %q", i, have)
		}
	}
	c := openDir(t, dir)
	var l logs
	built, err := c.Build(t.Context(), daytona.NewImage(text), daytona.BuildOptions{OnLog: l.add, Secrets: map[string][]byte{"go": []byte("x")}})
	if err != nil {
		t.Fatalf("%v\n%s", err, l.String())
	}
	if left := traces(t, dir); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
	if !strings.Contains(l.String(), "RUN dd if=/dev/zero of=/big bs=1M count=64 2>/dev/null; echo kept > /first| err=false cached=true") {
		t.Errorf("the step that was done is done again:\n%s", l.String())
	}
	for _, pattern := range []string{"work-*", "etc-*", "disk-*"} {
		if found, _ := filepath.Glob(filepath.Join(dir, "build", pattern)); len(found) > 0 {
			t.Errorf("left: %q", found)
		}
	}
	again, err := c.Build(t.Context(), daytona.NewImage(text), daytona.BuildOptions{})
	if err != nil || !again.Cached || again.Digest != built.Digest {
		t.Errorf("%+v, %v, first %+v", again, err, built)
	}
	// What the killed steps had written is gone: two times 64 MiB.
	used := free()
	fresh := stateDir(t)
	dir = fresh
	o := openDir(t, fresh)
	if _, err := o.Build(t.Context(), daytona.NewImage(text), daytona.BuildOptions{Secrets: map[string][]byte{"go": []byte("x")}}); err != nil {
		t.Fatal(err)
	}
	if clean := free(); used > clean+32<<20 {
		t.Errorf("%d MiB are used, %d by a build that nobody killed", used>>20, clean>>20)
	}
}
