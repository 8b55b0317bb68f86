//go:build linux

package containerd_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/backend/backendtest"
	"github.com/daytona-go/daytona/backend/containerd"
)

// imagesVariable lists images made by image/sandbox, with commas between.
const imagesVariable = "DAYTONA_TEST_IMAGES"

// transportVariable runs all tests with another transport.
const transportVariable = "DAYTONA_TEST_TRANSPORT"

// testNamespace is where these tests keep all that they make.
const testNamespace = "daytona-test"

// sandboxImage is the first of them.
func sandboxImage() string {
	first, _, _ := strings.Cut(os.Getenv(imagesVariable), ",")
	return first
}

func address() string {
	if a := os.Getenv("CONTAINERD_ADDRESS"); a != "" {
		return a
	}
	return defaults.DefaultAddress
}

// connect connects to containerd past the backend.
func connect(ctx context.Context, address string) (*client.Client, error) {
	c, err := client.New(address, client.WithDefaultNamespace(testNamespace), client.WithTimeout(5*time.Second))
	if err != nil {
		return nil, err
	}
	if _, err := c.Version(ctx); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// missing says what these tests lack on this machine; "" if nothing.
func missing(ctx context.Context) string {
	if os.Geteuid() != 0 {
		return "the containerd backend needs root"
	}
	if sandboxImage() == "" {
		return "no image: run `make image` and set " + imagesVariable + " to what it prints"
	}
	c, err := connect(ctx, address())
	if err != nil {
		return "no containerd answers at " + address()
	}
	c.Close()
	return ""
}

func options(state string) *containerd.Options {
	return &containerd.Options{Dir: state, Namespace: testNamespace, Image: sandboxImage(), Transport: os.Getenv(transportVariable),
		Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))}
}

func harness() *backendtest.Harness {
	return &backendtest.Harness{
		Open: func(ctx context.Context, state string) (daytona.Backend, error) {
			return containerd.New(ctx, options(state))
		},
		Spec:         daytona.Spec{Image: sandboxImage()},
		DesktopImage: backendtest.ImageNamed(os.Getenv(imagesVariable), "desktop"),
		Leftovers:    leftovers,
		ForgetImage: func(ctx context.Context, ref string) error {
			c, err := connect(ctx, address())
			if err != nil {
				return err
			}
			defer c.Close()
			return c.ImageService().Delete(ctx, ref)
		},
		Slow: 3,
		Lacks: map[backendtest.Capability]string{
			backendtest.Disk:       "overlayfs gives containers no limit of their own",
			backendtest.UserLimits: "without user namespaces the users of all containers are the same to the kernel",
		},
	}
}

// leftovers lists what containerd, the kernel and the disk have because of a
// state directory.
func leftovers(ctx context.Context, state string) ([]string, error) {
	return leftoversOf(ctx, address(), state)
}

func leftoversOf(ctx context.Context, address, state string) ([]string, error) {
	var found []string
	for _, dir := range []string{"sandboxes", "names"} {
		entries, err := os.ReadDir(filepath.Join(state, dir))
		if err != nil && !os.IsNotExist(err) {
			return nil, err
		}
		for _, e := range entries {
			found = append(found, filepath.Join(state, dir, e.Name()))
		}
	}
	c, err := connect(ctx, address)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	ctx = namespaces.WithNamespace(ctx, testNamespace)
	list, err := c.Containers(ctx)
	if err != nil {
		return nil, err
	}
	// What is called so, package lifecycle says.
	sum := sha256.Sum256([]byte(state))
	prefix := "daytona-" + hex.EncodeToString(sum[:4]) + "-"
	for _, x := range list {
		if strings.HasPrefix(x.ID(), prefix) {
			found = append(found, "container "+x.ID())
		}
	}
	for _, snapshotter := range []string{"overlayfs", "native"} {
		err = c.SnapshotService(snapshotter).Walk(ctx, func(_ context.Context, i snapshots.Info) error {
			if strings.HasPrefix(i.Name, prefix) {
				found = append(found, "snapshot "+i.Name)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	out, err := exec.CommandContext(ctx, "ps", "-eo", "pid,args").Output()
	if err != nil {
		return nil, fmt.Errorf("ps: %w", err)
	}
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, prefix) {
			found = append(found, "process "+strings.TrimSpace(line))
		}
	}
	cgroups, err := filepath.Glob("/sys/fs/cgroup/*/daytona-containerd/" + strings.TrimPrefix(prefix, "daytona-") + "*")
	if err != nil {
		return nil, err
	}
	found = append(found, cgroups...)
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, state+"/") {
			found = append(found, "mount "+strings.TrimSpace(line))
		}
	}
	// Where containerd has the bundles of tasks, the backend has written down.
	if dir, err := os.ReadFile(filepath.Join(state, "bundles")); err == nil {
		bundles, err := filepath.Glob(filepath.Join(string(dir), prefix+"*"))
		if err != nil {
			return nil, err
		}
		found = append(found, bundles...)
	}
	return found, nil
}

func TestMain(m *testing.M) { os.Exit(backendtest.Main(m, harness())) }

func run(t *testing.T, suite func(*testing.T, *backendtest.Harness)) {
	if why := missing(t.Context()); why != "" {
		t.Skip(why)
	}
	suite(t, harness())
}

func TestConformance(t *testing.T) { run(t, backendtest.RunConformance) }

func TestSecurity(t *testing.T) { run(t, backendtest.RunSecurity) }

func TestCrash(t *testing.T) { run(t, backendtest.RunCrash) }

// BenchmarkContainerd prints times and ratios; see backendtest.RunBenchmarks.
func BenchmarkContainerd(b *testing.B) {
	if why := missing(b.Context()); why != "" {
		b.Skip(why)
	}
	backendtest.RunBenchmarks(b, harness())
}

// TestPipeForPasswd: the root of a sandbox puts a pipe where the OCI runtime
// reads the users. The next start would hang, and the shim with it.
func TestPipeForPasswd(t *testing.T) {
	if why := missing(t.Context()); why != "" {
		t.Skip(why)
	}
	c, err := containerd.Open(t.Context(), options(t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	sb, err := c.Create(t.Context(), daytona.Spec{User: "root"})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := sb.Process().Exec(t.Context(), "rm /etc/passwd && mkfifo /tmp/pipe && ln -s ../tmp/pipe /etc/passwd", nil); err != nil || r.ExitCode != 0 {
		t.Fatalf("%+v, %v", r, err)
	}
	if err := sb.Stop(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if err := sb.Start(t.Context()); !errors.Is(err, daytona.ErrInvalid) {
		t.Errorf("start: %v, want it refused", err)
	}
	if info, err := sb.Refresh(t.Context()); err != nil || info.State != daytona.StateStopped {
		t.Errorf("%s, %v", info.State, err)
	}
	if err := sb.Delete(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestSnapshotter keeps sandboxes with the snapshotter that every machine has,
// whose snapshots are no overlays.
func TestSnapshotter(t *testing.T) {
	if why := missing(t.Context()); why != "" {
		t.Skip(why)
	}
	o := options(t.TempDir())
	o.Snapshotter = "native"
	lives(t, o, smallLayout(t))

	// Where a sandbox's files are does not depend on who looks.
	if err := with(t, o, func(c *daytona.Client) error {
		_, err := c.Create(t.Context(), daytona.Spec{Name: "native", Image: smallLayout(t), User: "root", Persistent: true})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	o.Snapshotter = ""
	if err := with(t, o, func(c *daytona.Client) error {
		sb, err := c.Get(t.Context(), "native")
		if err == nil {
			err = sb.Stop(t.Context(), nil)
		}
		if err == nil {
			err = sb.Start(t.Context())
		}
		if err == nil {
			err = sb.Delete(t.Context())
		}
		return err
	}); err != nil {
		t.Error(err)
	}
	if left, err := leftovers(t.Context(), o.Dir); err != nil || len(left) > 0 {
		t.Errorf("left: %q, %v", left, err)
	}

	o.Snapshotter = "no-such"
	if c, err := containerd.Open(t.Context(), o); !errors.Is(err, daytona.ErrInvalid) {
		t.Errorf("a snapshotter that there is not: %v", err)
		if err == nil {
			c.Close()
		}
	}
}

// with opens a backend for a moment.
func with(t *testing.T, o *containerd.Options, f func(c *daytona.Client) error) error {
	t.Helper()
	c, err := containerd.Open(t.Context(), o)
	if err != nil {
		return err
	}
	return errors.Join(f(c), c.Close())
}

// TestRuntime names the runtime as containerd does.
func TestRuntime(t *testing.T) {
	if why := missing(t.Context()); why != "" {
		t.Skip(why)
	}
	o := options(t.TempDir())
	o.Runtime = "io.containerd.runc.v2"
	lives(t, o, sandboxImage())

	o.Runtime = "no-such"
	if c, err := containerd.Open(t.Context(), o); !errors.Is(err, daytona.ErrInvalid) {
		t.Errorf("a runtime that there is not: %v", err)
		if err == nil {
			c.Close()
		}
	}
}

// TestTransport reaches agents as it is done with runtimes that hide them.
func TestTransport(t *testing.T) {
	if why := missing(t.Context()); why != "" {
		t.Skip(why)
	}
	o := options(t.TempDir())
	o.Transport = "exec"
	lives(t, o, sandboxImage())

	for _, bad := range []*containerd.Options{{Transport: "port"}, {Transport: "socket", Runtime: "runsc"}} {
		bad.Dir = t.TempDir()
		if c, err := containerd.Open(t.Context(), bad); !errors.Is(err, daytona.ErrInvalid) {
			t.Errorf("%+v: %v", bad, err)
			if err == nil {
				c.Close()
			}
		}
	}
}

// lives has a sandbox started, stopped, started again and deleted.
func lives(t *testing.T, o *containerd.Options, image string) {
	t.Helper()
	c, err := containerd.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	sb, err := c.Create(t.Context(), daytona.Spec{Image: image, User: "root"})
	if err != nil {
		t.Fatal(err)
	}
	if err := sb.FileSystem().WriteFile(t.Context(), "/kept", []byte("kept"), 0); err != nil {
		t.Fatal(err)
	}
	// A directory of a lower layer is copied up, which fails if a look at the
	// files has taken the work directory away.
	if err := sb.FileSystem().Mkdir(t.Context(), "/etc/new", 0o755); err != nil {
		t.Error(err)
	}
	if err := sb.Stop(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if err := sb.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if data, err := sb.FileSystem().ReadFile(t.Context(), "/kept"); err != nil || string(data) != "kept" {
		t.Errorf("%q, %v", data, err)
	}
	if err := sb.Delete(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left, err := leftovers(t.Context(), o.Dir); err != nil || len(left) > 0 {
		t.Errorf("left: %q, %v", left, err)
	}
}

// smallLayout is an image without a program as a file of this machine.
func smallLayout(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	l, err := layout.Write(dir, empty.Index)
	if err == nil {
		err = l.AppendImage(backendtest.SmallImage(t))
	}
	if err != nil {
		t.Fatal(err)
	}
	return "oci:" + dir
}

// TestKeychain: of the registries' passwords those count that a service has set,
// and not the current user's.
func TestKeychain(t *testing.T) {
	if why := missing(t.Context()); why != "" {
		t.Skip(why)
	}
	registry := backendtest.NewPrivateRegistry(t)
	registry.Login(t, registry.User, registry.Password)
	o := options(t.TempDir())
	o.Keychain = authn.NewMultiKeychain()
	c, err := containerd.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Create(t.Context(), daytona.Spec{Image: registry.Image}); !errors.Is(err, daytona.ErrUnauthorized) {
		t.Errorf("%v", err)
	}
}

// TestMountLeftBehind: a process that is killed while it makes a task leaves the
// volumes mounted in the sandbox's directory. They go, and not with their files.
func TestMountLeftBehind(t *testing.T) {
	if why := missing(t.Context()); why != "" {
		t.Skip(why)
	}
	o := options(t.TempDir())
	c, err := containerd.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	volumes, err := c.Volumes()
	if err != nil {
		t.Fatal(err)
	}
	v, err := volumes.CreateVolume(t.Context(), daytona.VolumeSpec{Name: "kept"})
	if err != nil {
		t.Fatal(err)
	}
	sb, err := c.Create(t.Context(), daytona.Spec{Volumes: []daytona.VolumeMount{{Volume: v.ID, MountPath: "/mnt/kept"}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := sb.FileSystem().WriteFile(t.Context(), "/mnt/kept/file", []byte("kept"), 0); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(o.Dir, "volumes", v.ID, "data", "file")
	leave := func() {
		place := filepath.Join(o.Dir, "sandboxes", sb.ID(), "volumes", "0")
		if err := os.MkdirAll(place, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount(filepath.Dir(file), place, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
	}
	if err := sb.Stop(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	leave()
	if err := sb.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if data, err := sb.FileSystem().ReadFile(t.Context(), "/mnt/kept/file"); err != nil || string(data) != "kept" {
		t.Errorf("%q, %v", data, err)
	}
	leave()
	if err := sb.Delete(t.Context()); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(file); err != nil || string(data) != "kept" {
		t.Errorf("after the deletion: %q, %v", data, err)
	}
	if left, err := leftovers(t.Context(), o.Dir); err != nil || len(left) > 0 {
		t.Errorf("left: %q, %v", left, err)
	}
	if err := volumes.DeleteVolume(t.Context(), v.ID); err != nil {
		t.Error(err)
	}
}
