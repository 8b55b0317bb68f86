package build_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/backend/local"
	_ "github.com/daytona-go/daytona/backend/local/build"
	"github.com/daytona-go/daytona/image"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// baseImage pushes the Debian image that the test is given to a registry of its
// own, and returns its name there.
var baseImage = sync.OnceValues(func() (string, error) {
	if firstImage() == "" {
		return "", nil
	}
	ref, err := image.ParseReference(firstImage())
	if err != nil {
		return "", err
	}
	img, err := ref.Open()
	if err != nil {
		return "", err
	}
	// A plain Debian, whose user is root.
	config, err := img.ConfigFile()
	if err != nil {
		return "", err
	}
	plain := config.Config
	plain.User, plain.WorkingDir, plain.Entrypoint, plain.Cmd = "", "", nil, []string{"bash"}
	if img, err = mutate.Config(img, plain); err != nil {
		return "", err
	}
	// It lives as long as the test's process.
	srv := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	base := strings.TrimPrefix(srv.URL, "http://") + "/debian:12"
	tag, err := name.NewTag(base)
	if err != nil {
		return "", err
	}
	return base, remote.Write(tag, img)
})

// firstImage is the first of the images that the test is given, "" if there is none.
func firstImage() string {
	first, _, _ := strings.Cut(os.Getenv("DAYTONA_TEST_IMAGES"), ",")
	return first
}

func base(t testing.TB) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("builds take root")
	}
	b, err := baseImage()
	if err != nil {
		t.Fatal(err)
	}
	if b == "" {
		t.Skip("DAYTONA_TEST_IMAGES names no Debian image")
	}
	return b
}

func open(t testing.TB) *daytona.Client {
	t.Helper()
	return openDir(t, stateDir(t))
}

func openDir(t testing.TB, dir string) *daytona.Client {
	t.Helper()
	c, err := local.Open(t.Context(), &local.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// stateDir is a directory whose files may belong to other users.
func stateDir(t testing.TB) string {
	dir, err := os.MkdirTemp("", "build-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := image.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func from(t testing.TB, rest string) string { return "FROM " + base(t) + "\n" + rest }

// logs collects a build's log.
type logs struct {
	mu    sync.Mutex
	lines []daytona.BuildLog
}

func (l *logs) add(b daytona.BuildLog) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, b)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var s strings.Builder
	for _, b := range l.lines {
		fmt.Fprintf(&s, "%d %s|%s err=%v cached=%v done=%v %s\n", b.Step, b.Name, b.Line, b.Stderr, b.Cached, b.Done, b.Error)
	}
	return s.String()
}

func TestBuildAndRun(t *testing.T) {
	c := open(t)
	ctx := t.Context()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "hello.txt"), []byte("hello\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	img := daytona.NewImage(from(t, `
RUN echo out; echo err >&2; id; useradd -m app && su app -c 'touch /home/app/mine'
COPY --chown=app:app --chmod=600 hello.txt /home/app/
ENV GREETING=hi
WORKDIR /work
USER app
RUN id -un; echo $HOME; pwd
RUN <<EOF
set -e
echo heredoc > /home/app/doc
EOF
`), daytona.BuildContext{Source: dir, Path: "."})
	var l logs
	start := time.Now()
	built, err := c.Build(ctx, img, daytona.BuildOptions{OnLog: l.add})
	t.Logf("%v\n%s", time.Since(start), l.String())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"|out err=false", "|err err=true", "|/work ", "|/home/app ", "|app "} {
		if !strings.Contains(l.String(), want) {
			t.Errorf("the log has no %q", want)
		}
	}
	start = time.Now()
	again, err := c.Build(ctx, img, daytona.BuildOptions{})
	t.Logf("again: %v", time.Since(start))
	if err != nil {
		t.Fatal(err)
	}
	if again.Ref != built.Ref || !again.Cached || built.Cached {
		t.Errorf("first %+v, again %+v", built, again)
	}
	sb, err := c.Create(ctx, daytona.Spec{Build: img})
	if err != nil {
		t.Fatal(err)
	}
	out, err := sb.Process().Command(ctx, "sh", "-c", "cat /home/app/doc /home/app/hello.txt; stat -c '%U %a' /home/app/hello.txt /home/app/mine; echo $GREETING; pwd; ls -A /run/ | head -3; stat -c %s /etc/hosts").Output()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s", out)
	if !strings.HasPrefix(string(out), "heredoc\nhello\napp 600\napp 644\nhi\n/work\n") {
		t.Errorf("the sandbox has %q", out)
	}
}

func TestStepThatFails(t *testing.T) {
	c := open(t)
	_, err := c.Build(t.Context(), daytona.NewImage(from(t, "RUN true\nRUN echo sad; exit 7\n")), daytona.BuildOptions{})
	b, ok := errors.AsType[*daytona.BuildError](err)
	if !ok {
		t.Fatalf("%T %v", err, err)
	}
	if b.ExitCode != 7 || b.Line != 3 || b.Step != 3 || !strings.Contains(b.Name, "exit 7") || !strings.Contains(string(b.Log), "sad") {
		t.Errorf("%+v", b)
	}
	_, err = c.Build(t.Context(), daytona.NewImage(from(t, "RUN sleep 1000 & setsid sleep 1000; sleep 1000\n")), daytona.BuildOptions{StepTimeout: time.Second})
	if !errors.Is(err, daytona.ErrTimeout) {
		t.Errorf("a step that takes too long: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err = c.Build(ctx, daytona.NewImage(from(t, "RUN sleep 1001\n")), daytona.BuildOptions{})
	if !errors.Is(err, daytona.ErrTimeout) {
		t.Errorf("a build that takes too long: %v", err)
	}
}

func TestRefused(t *testing.T) {
	c := open(t)
	for _, test := range []struct {
		text, name string
		line       int
	}{
		{"RUN --network=host true", "--network=host", 2},
		{"RUN true\nRUN --security=insecure true", "--security=insecure", 3},
		{"RUN --mount=type=ssh true", "type=ssh", 2},
		{"ADD https://github.com/a/b.git /x", "git", 2},
	} {
		_, err := c.Build(t.Context(), daytona.NewImage(from(t, test.text)), daytona.BuildOptions{})
		b, ok := errors.AsType[*daytona.BuildError](err)
		if !ok || !errors.Is(err, daytona.ErrUnsupported) || b.Line != test.line || !strings.Contains(err.Error(), test.name) {
			t.Errorf("%s: %T %+v", test.text, err, err)
		}
	}
}

func TestMountsAndNetwork(t *testing.T) {
	c := open(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "in.txt"), []byte("bound\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(http.NotFoundHandler())
	defer srv.Close()
	img := daytona.NewImage(from(t, `
RUN --mount=type=secret,id=key,target=/etc/key,mode=0400 test "$(cat /etc/key)" = hush
RUN test ! -e /etc/key
RUN --mount=type=cache,target=/cache echo first >> /cache/log
RUN --mount=type=cache,target=/cache echo second >> /cache/log; cat /cache/log > /log
RUN --mount=type=bind,target=/ctx cat /ctx/in.txt > /bound; if echo x > /ctx/y; then exit 1; fi; test -s /bound
RUN --mount=type=tmpfs,target=/t touch /t/x && grep ' /t tmpfs' /proc/mounts
RUN test ! -e /t && test ! -e /ctx && test ! -e /cache
RUN --network=none ip link 2>/dev/null; test "$(ls /proc/sys/net/ipv4/conf | wc -l)" -le 4 && ! grep -q eth0 /proc/net/dev
RUN test "$(cat /proc/sys/user/max_user_namespaces)" = 0 && grep -q 'Seccomp:.*2' /proc/self/status && grep -q 'NoNewPrivs:.*1' /proc/self/status
RUN ! ls /var/lib/daytona 2>/dev/null; cat /proc/1/cgroup
RUN --mount=type=bind,from=`+base(t)+`,source=/etc,target=/other test -f /other/passwd
`), daytona.BuildContext{Source: dir, Path: "."})
	var l logs
	_, err := c.Build(t.Context(), img, daytona.BuildOptions{OnLog: l.add, Secrets: map[string][]byte{"key": []byte("hush")}})
	if err != nil {
		t.Fatalf("%v\n%s", err, l.String())
	}
	if strings.Contains(l.String(), "hush\n") {
		t.Error("the secret is in the log")
	}
}

// TestReopen checks that a builder finds what the one before it left.
func TestReopen(t *testing.T) {
	dir := stateDir(t)
	img := daytona.NewImage(from(t, "COPY a /a\nRUN cat /a\n"), daytona.BuildContext{Files: fstest.MapFS{"a": {Data: []byte("a\n"), Mode: 0o644}}, Path: "."})
	var ref string
	for i := range 3 {
		c, err := local.Open(t.Context(), &local.Options{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		built, err := c.Build(t.Context(), img, daytona.BuildOptions{})
		if cerr := c.Close(); err != nil || cerr != nil {
			t.Fatal(err, cerr)
		}
		if i > 0 && (built.Ref != ref || !built.Cached) {
			t.Errorf("build %d: %+v, before %s", i, built, ref)
		}
		ref = built.Ref
	}
}

// TestStepThatFillsTheDisk has a state directory on a small disk of its own.
func TestStepThatFillsTheDisk(t *testing.T) {
	base(t)
	tmp := t.TempDir()
	disk, dir := filepath.Join(tmp, "disk"), filepath.Join(tmp, "state")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, cmd := range [][]string{{"truncate", "-s", "1500M", disk}, {"mkfs.ext4", "-q", "-F", disk}, {"mount", "-o", "loop", disk, dir}} {
		if out, err := exec.Command(cmd[0], cmd[1:]...).CombinedOutput(); err != nil {
			t.Skipf("%v: %v: %s", cmd, err, out)
		}
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", "-l", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	c, err := local.Open(t.Context(), &local.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, err = c.Build(t.Context(), daytona.NewImage(from(t, "RUN echo begun; cat /dev/zero > /fill\n")), daytona.BuildOptions{})
	b, ok := errors.AsType[*daytona.BuildError](err)
	if !ok || !errors.Is(err, daytona.ErrNoSpace) || b.Line != 2 || !strings.Contains(string(b.Log), "begun") {
		t.Fatalf("%T %v", err, err)
	}
	store, err := image.OpenStore(filepath.Join(dir, "images"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if images, err := store.List(t.Context()); err != nil || len(images) != 0 {
		t.Errorf("the failed build left %v, %v", images, err)
	}
}

// BenchmarkBuild prints times and ratios as backendtest.RunBenchmarks does:
// x_docker is the p50 over that of "docker build" of the same, measured between
// the iterations.
func BenchmarkBuild(b *testing.B) {
	b.Run("Cached", func(b *testing.B) {
		text := from(b, "ENV A=1\nWORKDIR /app\nCOPY . .\nRUN echo one > /one\nRUN echo two > /two\nCMD [\"sh\"]\n")
		c := open(b)
		img := daytona.NewImage(text, daytona.BuildContext{Source: corpus + "/context", Path: "."})
		if _, err := c.Build(b.Context(), img, daytona.BuildOptions{}); err != nil {
			b.Fatal(err)
		}
		tag := fmt.Sprintf("daytona-bench-build:%d", os.Getpid())
		docker := func() error {
			cmd := exec.Command("docker", "build", "-q", "-t", tag, "-f", "-", corpus+"/context")
			cmd.Stdin, cmd.Env = strings.NewReader(text), append(os.Environ(), "DOCKER_BUILDKIT=0")
			if out, err := cmd.CombinedOutput(); err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		}
		peer := docker()
		if peer != nil {
			b.Logf("peer docker: %v", peer)
		}
		b.Cleanup(func() { _ = exec.Command("docker", "rmi", tag).Run() })
		var ours, theirs []time.Duration
		for b.Loop() {
			begin := time.Now()
			if built, err := c.Build(b.Context(), img, daytona.BuildOptions{}); err != nil || !built.Cached {
				b.Fatal(built, err)
			}
			ours = append(ours, time.Since(begin))
			if peer == nil && len(theirs) < 20 {
				b.StopTimer()
				begin = time.Now()
				if err := docker(); err != nil {
					b.Fatal(err)
				}
				theirs = append(theirs, time.Since(begin))
				b.StartTimer()
			}
		}
		at := func(d []time.Duration, p int) float64 {
			slices.Sort(d)
			return float64(d[(len(d)-1)*p/100]) / 1e6
		}
		b.ReportMetric(0, "ns/op")
		b.ReportMetric(at(ours, 50), "ms/p50")
		b.ReportMetric(at(ours, 95), "ms/p95")
		if len(theirs) > 0 {
			b.ReportMetric(at(ours, 50)/at(theirs, 50), "x_docker")
		}
	})
}
