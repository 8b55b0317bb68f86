package local_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/backend/backendtest"
	"github.com/daytona-go/daytona/backend/local"
	"github.com/daytona-go/daytona/internal/failpoint/failpointtest"
)

// harness describes the engine as this machine and user lets it be.
func harness() *backendtest.Harness {
	h := &backendtest.Harness{
		Label: "local (root)",
		Open: func(ctx context.Context, state string) (daytona.Backend, error) {
			return local.New(ctx, &local.Options{Dir: state, Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))})
		},
		Leftovers: leftovers,
		Lacks: map[backendtest.Capability]string{
			"ImageBuilder": "as root, in programs that import backend/local/build; tested by image/build",
		},
	}
	for tool, c := range map[string]backendtest.Capability{"/usr/bin/python3": backendtest.Python, "/usr/bin/node": backendtest.JavaScript} {
		if _, err := os.Stat(tool); err != nil {
			if _, err := os.Stat(strings.Replace(tool, "/usr/bin", "/usr/local/bin", 1)); err != nil {
				h.Lacks[c] = "the host has no " + tool
			}
		}
	}
	if !runsTypeScript() {
		h.Lacks[backendtest.TypeScript] = "the host has no TypeScript runtime (tsx, ts-node, bun, deno, or Node.js 22.6)"
	}
	if os.Geteuid() == 0 {
		if _, err := exec.LookPath("mkfs.ext4"); err != nil {
			h.Lacks[backendtest.Disk] = "mkfs.ext4 is missing"
		}
		return h
	}
	h.Label = "local (rootless)"
	h.Lacks["ImageBuilder"] = "it takes root to build images"
	h.Lacks[backendtest.Disk] = "it takes root to mount a file system of limited size"
	for _, c := range []backendtest.Capability{backendtest.CPU, backendtest.Memory} {
		h.Lacks[c] = "this user has no cgroups"
	}
	if !hasRange() {
		h.Label = "local (single user)"
		for _, c := range []backendtest.Capability{backendtest.Users, backendtest.Ownership} {
			h.Lacks[c] = "without newuidmap and a range of ids a sandbox has one user only"
		}
		h.Skip = map[string]string{"S14_Agent": "agent and programs are the same user, who may change the agent's limits and priority, and end it"}
	}
	return h
}

// hasRange reports whether newuidmap could map more than one user.
func hasRange() bool {
	if _, err := exec.LookPath("newuidmap"); err != nil {
		return false
	}
	me, err := user.Current()
	if err != nil {
		return false
	}
	data, err := os.ReadFile("/etc/subuid")
	if err != nil {
		return false
	}
	return slices.ContainsFunc(strings.Split(string(data), "\n"), func(line string) bool {
		return strings.HasPrefix(line, me.Username+":") || strings.HasPrefix(line, me.Uid+":")
	})
}

// leftovers looks for what the machine has because of a state directory.
func leftovers(ctx context.Context, state string) ([]string, error) {
	var found []string
	for _, dir := range []string{"sandboxes", "names", "layers", "snapshots", "snapshot-names", "archive/sandboxes", "images/tmp", "images/leases"} {
		entries, err := os.ReadDir(filepath.Join(state, dir))
		if err != nil && !os.IsNotExist(err) {
			return nil, err
		}
		for _, e := range entries {
			found = append(found, filepath.Join(state, dir, e.Name()))
		}
	}
	half, err := filepath.Glob(filepath.Join(state, "volumes/.*"))
	if err != nil {
		return nil, err
	}
	found = append(found, half...)
	sum := sha256.Sum256([]byte(state))
	tag := hex.EncodeToString(sum[:4]) + "-"
	groups, err := filepath.Glob("/sys/fs/cgroup/*/daytona/" + tag + "*")
	if err != nil {
		return nil, err
	}
	v2, _ := filepath.Glob("/sys/fs/cgroup/daytona/" + tag + "*")
	found = append(found, append(groups, v2...)...)
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, state) {
			found = append(found, "mount: "+strings.TrimSpace(line))
		}
	}
	loops, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, l := range loops {
		if data, err := os.ReadFile(l); err == nil && strings.HasPrefix(string(data), state) {
			found = append(found, "loop device: "+strings.TrimSpace(string(data)))
		}
	}
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	for _, p := range procs {
		if _, err := strconv.Atoi(p.Name()); err != nil {
			continue
		}
		// Agents log into the state directory. (Root only may see that.)
		if to, err := os.Readlink("/proc/" + p.Name() + "/fd/2"); err == nil && strings.HasPrefix(to, state) {
			found = append(found, fmt.Sprintf("process %s logs to %s", p.Name(), to))
		}
	}
	return found, nil
}

// runsTypeScript reports whether a sandbox of the "host" image can.
func runsTypeScript() bool {
	for _, dir := range []string{"/usr/local/bin/", "/usr/bin/"} {
		for _, tool := range []string{"tsx", "ts-node", "bun", "deno"} {
			if _, err := os.Stat(dir + tool); err == nil {
				return true
			}
		}
		if exec.Command(dir+"node", "--experimental-strip-types", "-e", "0").Run() == nil {
			return true
		}
	}
	return false
}

func TestMain(m *testing.M) { os.Exit(backendtest.Main(m, harness())) }

func TestConformance(t *testing.T) { backendtest.RunConformance(t, harness()) }

func TestSecurity(t *testing.T) { backendtest.RunSecurity(t, harness()) }

func TestCrash(t *testing.T) { backendtest.RunCrash(t, harness()) }

// TestHistories starts sandboxes from the first of the images, if there are any.
func TestHistories(t *testing.T) {
	h := harness()
	h.Spec.Image, _, _ = strings.Cut(os.Getenv(imagesVariable), ",")
	backendtest.RunHistories(t, h)
}

func TestStateCrash(t *testing.T) {
	h := harness()
	var err error
	h.Failpoints, h.FailpointsThatFail, err = failpointtest.In(".", "../../internal/lifecycle", "../../internal/objects", "../../image")
	if err != nil {
		t.Fatal(err)
	}
	// It takes more layers than the suite makes: TestFlattenKilled.
	h.Failpoints = slices.DeleteFunc(h.Failpoints, func(p string) bool { return strings.HasPrefix(p, "local/flatten/") })
	backendtest.RunStateCrash(t, h)
}
