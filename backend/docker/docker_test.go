//go:build linux

package docker_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/backend/backendtest"
	"github.com/daytona-go/daytona/backend/docker"
)

// imagesVariable lists images made by image/sandbox, with commas between.
const imagesVariable = "DAYTONA_TEST_IMAGES"

// sandboxImage is the first of them.
func sandboxImage() string {
	first, _, _ := strings.Cut(os.Getenv(imagesVariable), ",")
	return first
}

// transportVariable has all suites reach agents in one way. Without it, that is
// what is best for this machine: the socket.
const transportVariable = "DAYTONA_TEST_DOCKER_TRANSPORT"

// missing says what these tests lack on this machine; "" if nothing.
func missing() string {
	switch {
	case os.Geteuid() != 0:
		return "the docker backend needs root"
	case exec.Command("docker", "info").Run() != nil:
		return "no Docker engine answers (docker info)"
	case sandboxImage() == "":
		return "no image: run `make image` and set " + imagesVariable + " to what it prints"
	}
	return ""
}

func harness() *backendtest.Harness {
	h := &backendtest.Harness{
		Open: func(ctx context.Context, state string) (daytona.Backend, error) {
			return docker.New(ctx, &docker.Options{Dir: state, Image: sandboxImage(), Transport: os.Getenv(transportVariable),
				Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))})
		},
		Spec:      daytona.Spec{Image: sandboxImage()},
		Leftovers: leftovers,
		ForgetImage: func(ctx context.Context, ref string) error {
			return exec.CommandContext(ctx, "docker", "rmi", "-f", ref).Run()
		},
		DockerImage: func(ctx context.Context, id string) (string, error) {
			out, err := exec.CommandContext(ctx, "docker", "ps", "--filter", "label=io.github.daytona-go.sandbox="+id, "--format", "{{.Image}}").Output()
			return strings.TrimSpace(string(out)), err
		},
		Slow: 3,
		Lacks: map[backendtest.Capability]string{
			backendtest.Git:         "the agent has no Git yet",
			backendtest.Interpreter: "the agent has no interpreter yet",
			backendtest.Disk:        "overlay2 on ext4 gives containers no limit",
			backendtest.UserLimits:  "without user namespaces the users of all containers are the same to the kernel",
			"NetworkPolicer":        "the agent puts the policy in force when the container starts, and gives up the right to change it",
		},
	}
	if os.Getenv(diskVariable) != "" {
		delete(h.Lacks, backendtest.Disk)
	}
	return h
}

// leftovers lists what the engine and the disk have because of a state
// directory.
func leftovers(ctx context.Context, state string) ([]string, error) {
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
	out, err := exec.CommandContext(ctx, "docker", "ps", "-a", "--filter", "label=io.github.daytona-go.directory="+state, "--format", "{{.Names}} {{.Status}}").Output()
	if err != nil {
		return nil, fmt.Errorf("docker ps: %w", err)
	}
	for line := range strings.Lines(string(out)) {
		found = append(found, "container "+strings.TrimSpace(line))
	}
	if out, err = exec.CommandContext(ctx, "docker", "images", "--filter", "label=io.github.daytona-go.directory="+state, "--filter", "reference=daytona.local/files", "--format", "{{.Repository}}:{{.Tag}}").Output(); err != nil {
		return nil, fmt.Errorf("docker images: %w", err)
	}
	for line := range strings.Lines(string(out)) {
		found = append(found, "image "+strings.TrimSpace(line))
	}
	if out, err = exec.CommandContext(ctx, "docker", "volume", "ls", "-q", "--filter", "label=io.github.daytona-go.directory="+state).Output(); err != nil {
		return nil, fmt.Errorf("docker volume ls: %w", err)
	}
	for line := range strings.Lines(string(out)) {
		found = append(found, "volume "+strings.TrimSpace(line))
	}
	return found, nil
}

func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == servePlugin {
		servePluginMain()
	}
	if step, dir, ok := strings.Cut(os.Getenv(stepVariable), " "); ok {
		if err := killedStep(dir, step); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(backendtest.Main(m, harness()))
}

func run(t *testing.T, suite func(*testing.T, *backendtest.Harness)) {
	if why := missing(); why != "" {
		t.Skip(why)
	}
	suite(t, harness())
}

func TestConformance(t *testing.T) { run(t, backendtest.RunConformance) }

func TestSecurity(t *testing.T) { run(t, backendtest.RunSecurity) }

func TestCrash(t *testing.T) { run(t, backendtest.RunCrash) }

// BenchmarkDocker prints times and ratios, those to "docker run" with the same
// image; see backendtest.RunBenchmarks.
func BenchmarkDocker(b *testing.B) {
	if why := missing(); why != "" {
		b.Skip(why)
	}
	backendtest.RunBenchmarks(b, harness())
}

// TestPipeForPasswd: the root of a sandbox puts a pipe where the OCI runtime
// reads the users. The next start used to hang, with all that the engine can do
// with the container.
func TestPipeForPasswd(t *testing.T) {
	if why := missing(); why != "" {
		t.Skip(why)
	}
	c, err := docker.Open(t.Context(), &docker.Options{Dir: t.TempDir(), Image: sandboxImage()})
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

// TestKeychain: of the registries' passwords those count that a service has set,
// and not the current user's.
func TestKeychain(t *testing.T) {
	if why := missing(); why != "" {
		t.Skip(why)
	}
	registry := backendtest.NewPrivateRegistry(t)
	registry.Login(t, registry.User, registry.Password)
	o := &docker.Options{Dir: t.TempDir(), Keychain: authn.NewMultiKeychain()}
	c, err := docker.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Create(t.Context(), daytona.Spec{Image: registry.Image}); !errors.Is(err, daytona.ErrUnauthorized) {
		t.Errorf("%v", err)
	}
}
