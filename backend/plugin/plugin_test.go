package plugin_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/backend/backendtest"
	"github.com/daytona-go/daytona/backend/local"
	"github.com/daytona-go/daytona/backend/plugin"
)

// The test binary is the plugin too: its only argument says what it serves.
const (
	serveLocal = "daytona-plugin-test-local"
	serveFake  = "daytona-plugin-test-fake"
	serveOpen  = "daytona-plugin-test-open" // a fake that is open already
	serveOdd   = "daytona-plugin-test-odd-" // and how it misbehaves
	beHost     = "daytona-plugin-test-host"
)

func TestMain(m *testing.M) {
	if len(os.Args) == 2 {
		switch mode := os.Args[1]; {
		case mode == serveLocal:
			exit(plugin.ServeFunc(openLocal))
		case mode == serveFake:
			exit(plugin.ServeFunc(openFake))
		case mode == serveOpen:
			b, _ := openFake(context.Background(), url.Values{"closed": {os.Getenv("CLOSED")}})
			exit(plugin.Serve(b))
		case strings.HasPrefix(mode, serveOdd):
			misbehave(strings.TrimPrefix(mode, serveOdd))
		}
	}
	if len(os.Args) == 3 && os.Args[1] == beHost {
		exit(host(os.Args[2]))
	}
	os.Exit(backendtest.Main(m, harness()))
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// openLocal is what the plugin of the suites serves.
func openLocal(ctx context.Context, config url.Values) (daytona.Backend, error) {
	warm, _ := strconv.Atoi(config.Get("warm"))
	b, err := local.New(ctx, &local.Options{Dir: config.Get("dir"), Warm: warm, Logger: slog.Default()})
	if err == nil && config.Has("dying") {
		b = dying{b}
	}
	return b, err
}

// dying is killed as soon as it has made a sandbox called "unanswered".
type dying struct{ daytona.Backend }

func (d dying) Create(ctx context.Context, spec daytona.Spec) (daytona.Info, error) {
	i, err := d.Backend.Create(ctx, spec)
	if err == nil && spec.Name == "unanswered" {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
	return i, err
}

// self are the options to run the test binary as a plugin.
func self(mode string, config url.Values) *plugin.Options {
	o := &plugin.Options{
		Path: os.Args[0], Args: []string{mode}, Config: config,
		Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
	// The local backend may have to build its agent, and to pull images.
	for _, name := range []string{"GOCACHE", "GOMODCACHE", "GOPATH", "GOROOT", "GOPROXY", "GOFLAGS", "DOCKER_CONFIG"} {
		if v, ok := os.LookupEnv(name); ok {
			o.Env = append(o.Env, name+"="+v)
		}
	}
	return o
}

// harness describes backend/local behind a plugin, as this machine and user
// let it be. It is that of backend/local itself but for Open.
func harness() *backendtest.Harness {
	h := &backendtest.Harness{
		Label: "plugin (local)",
		Open: func(ctx context.Context, state string) (daytona.Backend, error) {
			return plugin.New(ctx, self(serveLocal, url.Values{"dir": {state}}))
		},
		Leftovers: leftovers,
		Lacks:     map[backendtest.Capability]string{},
	}
	for tool, c := range map[string]backendtest.Capability{"python3": backendtest.Python, "node": backendtest.JavaScript} {
		if !inSandbox(tool) {
			h.Lacks[c] = "the host has no " + tool
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
	h.Lacks[backendtest.Disk] = "it takes root to mount a file system of limited size"
	for _, c := range []backendtest.Capability{backendtest.CPU, backendtest.Memory} {
		h.Lacks[c] = "this user has no cgroups"
	}
	if !hasRange() {
		for _, c := range []backendtest.Capability{backendtest.Users, backendtest.Ownership} {
			h.Lacks[c] = "without newuidmap and a range of ids a sandbox has one user only"
		}
		h.Skip = map[string]string{"S14_Agent": "agent and programs are the same user, who may change the agent's limits and priority, and end it"}
	}
	return h
}

func has[T any](b daytona.Backend) bool { _, ok := daytona.As[T](b); return ok }

func inSandbox(tool string) bool {
	for _, dir := range []string{"/usr/bin/", "/usr/local/bin/"} {
		if _, err := os.Stat(dir + tool); err == nil {
			return true
		}
	}
	return false
}

// runsTypeScript reports whether a sandbox of the "host" image can.
func runsTypeScript() bool {
	for _, tool := range []string{"tsx", "ts-node", "bun", "deno"} {
		if inSandbox(tool) {
			return true
		}
	}
	for _, dir := range []string{"/usr/bin/", "/usr/local/bin/"} {
		if exec.Command(dir+"node", "--experimental-strip-types", "-e", "0").Run() == nil {
			return true
		}
	}
	return false
}

// hasRange reports whether newuidmap could map more than one user.
func hasRange() bool {
	me, err := user.Current()
	if _, missing := exec.LookPath("newuidmap"); err != nil || missing != nil {
		return false
	}
	data, err := os.ReadFile("/etc/subuid")
	return err == nil && slices.ContainsFunc(strings.Split(string(data), "\n"), func(line string) bool {
		return strings.HasPrefix(line, me.Username+":") || strings.HasPrefix(line, me.Uid+":")
	})
}

// leftovers looks for what the machine has because of a state directory of the
// local backend.
func leftovers(_ context.Context, state string) ([]string, error) {
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
	sum := sha256.Sum256([]byte(state))
	for _, root := range []string{"/sys/fs/cgroup/*/daytona/", "/sys/fs/cgroup/daytona/"} {
		groups, err := filepath.Glob(root + hex.EncodeToString(sum[:4]) + "-*")
		if err != nil {
			return nil, err
		}
		found = append(found, groups...)
	}
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
	procs, err := filepath.Glob("/proc/[0-9]*/fd/2")
	if err != nil {
		return nil, err
	}
	for _, p := range procs {
		// Agents log into the state directory. (Root only may see that.)
		if to, err := os.Readlink(p); err == nil && strings.HasPrefix(to, state) {
			found = append(found, p+" is "+to)
		}
	}
	return found, nil
}

// TestConformance, TestSecurity and TestCrash run the local backend out of
// process through all suites. In TestCrash the owners that are killed are
// hosts, which cannot tell their plugins.
func TestConformance(t *testing.T) { suite(t, backendtest.RunConformance) }

func TestSecurity(t *testing.T) { suite(t, backendtest.RunSecurity) }

func TestCrash(t *testing.T) { suite(t, backendtest.RunCrash) }

func suite(t *testing.T, run func(*testing.T, *backendtest.Harness)) {
	if testing.Short() {
		t.Skip("each check starts a plugin, which takes minutes in all with the race detector")
	}
	run(t, harness())
}

// BenchmarkPlugin is to be compared with BenchmarkLocal: the difference is
// what it costs to be out of process.
func BenchmarkPlugin(b *testing.B) {
	var mu sync.Mutex
	states := map[daytona.Backend]string{}
	backendtest.RunBenchmarks(b, &backendtest.Harness{
		Open: func(ctx context.Context, state string) (daytona.Backend, error) {
			o := self(serveLocal, url.Values{"dir": {state}})
			if strings.Contains(state, "Warm") {
				o.Config.Set("warm", "2")
			}
			o.Logger = nil
			be, err := plugin.New(ctx, o)
			mu.Lock()
			defer mu.Unlock()
			states[be] = state
			return be, err
		},
		Warm: func(ctx context.Context, be daytona.Backend, spec daytona.Spec) error {
			mu.Lock()
			state := states[be]
			mu.Unlock()
			for ; ctx.Err() == nil; time.Sleep(time.Millisecond) {
				n := 0
				records, _ := filepath.Glob(filepath.Join(state, "sandboxes", "*", "record.json"))
				for _, r := range records {
					if data, err := os.ReadFile(r); err == nil && strings.Contains(string(data), `"phase":"warm"`) {
						n++
					}
				}
				if n >= 2 {
					return nil
				}
			}
			return ctx.Err()
		},
	})
}
