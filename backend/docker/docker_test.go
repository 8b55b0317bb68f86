//go:build linux

package docker_test

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/backend/backendtest"
	"github.com/daytona-go/daytona/backend/docker"
	suites "github.com/daytona-go/daytona/backend/docker/internal/harness"
	"github.com/daytona-go/daytona/internal/failpoint/failpointtest"
)

// sandboxImage is what sandboxes are made from.
func sandboxImage() string { return suites.Image(os.Getenv(suites.ImagesVariable)) }

// transportVariable has all suites reach agents in one way. Without it, that is
// what is best for this machine: the socket.
const transportVariable = "DAYTONA_TEST_DOCKER_TRANSPORT"

// bareVariable says that the image has no program and no user but root.
const bareVariable = "DAYTONA_TEST_DOCKER_BARE"

// missing says what these tests lack on this machine; "" if nothing.
func missing() string { return suites.Missing(os.Getenv(suites.ImagesVariable)) }

func harness() *backendtest.Harness {
	h := suites.New(os.Getenv(suites.ImagesVariable), os.Getenv(transportVariable))
	if os.Getenv(diskVariable) != "" {
		delete(h.Lacks, backendtest.Disk)
	}
	if os.Getenv(bareVariable) != "" {
		h.Spec.User = "root"
	}
	return h
}

func TestMain(m *testing.M) {
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

func TestHistories(t *testing.T) { run(t, backendtest.RunHistories) }

func TestStateCrash(t *testing.T) {
	if why := missing(); why != "" {
		t.Skip(why)
	}
	// The smallest image: what is archived has it too.
	t.Setenv(suites.ImagesVariable, smallLayout(t))
	t.Setenv(bareVariable, "1")
	h := harness()
	var err error
	if h.Failpoints, h.FailpointsThatFail, err = failpointtest.In(".", "../../internal/lifecycle", "../../internal/objects"); err != nil {
		t.Fatal(err)
	}
	if !testing.Short() {
		// What is not this package's own is tried with the local backend too, which
		// takes a tenth of the time.
		h.Failpoints = slices.DeleteFunc(h.Failpoints, func(p string) bool { return !strings.HasPrefix(p, "docker/") })
		h.FailpointsThatFail = slices.DeleteFunc(h.FailpointsThatFail, func(p string) bool { return !strings.HasPrefix(p, "docker/") })
	}
	backendtest.RunStateCrash(t, h)
}

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
