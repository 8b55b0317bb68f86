package daytonatest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/backend/backendtest"
	"github.com/daytona-go/daytona/daytonatest"
)

// harness declares precisely what a Fake is not. wrap may break it.
func harness(wrap func(*daytonatest.Fake) daytona.Backend) *backendtest.Harness {
	var mu sync.Mutex
	engines := map[string]*daytonatest.Fake{}
	const noPrograms = "the fake runs Go functions, not programs"
	return &backendtest.Harness{
		Open: func(_ context.Context, state string) (daytona.Backend, error) {
			mu.Lock()
			defer mu.Unlock()
			if engines[state] == nil {
				engines[state] = daytonatest.NewFake()
			}
			return wrap(engines[state].Reopen()), nil
		},
		Lacks: map[backendtest.Capability]string{
			backendtest.Shell:       "the fake's sh knows lists, quotes, variables and redirections only",
			backendtest.Programs:    noPrograms,
			backendtest.Python:      noPrograms,
			backendtest.JavaScript:  noPrograms,
			backendtest.TypeScript:  noPrograms,
			backendtest.Interpreter: noPrograms,
			backendtest.Git:         noPrograms,
			backendtest.LSP:         noPrograms,
			backendtest.ComputerUse: noPrograms,
			backendtest.Entrypoint:  noPrograms,
			backendtest.Terminals:   "the fake has no terminals",
			backendtest.AgentAPI:    "the fake has no agent",
			backendtest.Metrics:     "the fake has nothing to measure",
			backendtest.Symlinks:    "the fake's files have no symbolic links",
			backendtest.Ownership:   "the fake has one user, who may do everything",
			backendtest.Users:       "the fake has one user",
			backendtest.Streaming:   "the fake keeps its files in this process's memory",
			backendtest.Images:      "the fake takes any image for an empty root",
			backendtest.TarImages:   "the fake takes any image for an empty root",
			backendtest.Registries:  "the fake takes any image for an empty root",
			backendtest.Isolation:   "the fake isolates nothing",
		},
	}
}

func whole(f *daytonatest.Fake) daytona.Backend { return f }

func TestMain(m *testing.M) { os.Exit(backendtest.Main(m, harness(whole))) }

func TestFakeConformance(t *testing.T) { backendtest.RunConformance(t, harness(whole)) }

func TestFakeSecurityIsRefused(t *testing.T) { backendtest.RunSecurity(t, harness(whole)) }

// The defects that follow prove that the suite can fail: a Fake with each of
// them must fail the checks named.
var defects = map[string]struct {
	wrap func(*daytonatest.Fake) daytona.Backend
	// fails are checks that must fail, passes ones that must not.
	fails, passes []string
}{
	"leaks on refusal":        {func(f *daytonatest.Fake) daytona.Backend { return leaky{f} }, []string{"CreateCancelled"}, []string{"Get"}},
	"delete twice is fine":    {func(f *daytonatest.Fake) daytona.Backend { return deleteTwice{f} }, []string{"Delete", "UnknownID"}, []string{"FileErrors"}},
	"list is not ordered":     {func(f *daytonatest.Fake) daytona.Backend { return unordered{f} }, []string{"List"}, []string{"Get"}},
	"limits are ignored":      {func(f *daytonatest.Fake) daytona.Backend { return ignoresLimits{f} }, []string{"Resources", "RefuseOrEnforce"}, []string{"Names"}},
	"stop loses the files":    {func(f *daytonatest.Fake) daytona.Backend { return forgetful{f} }, []string{"StopStart"}, []string{"Names"}},
	"close keeps sandboxes":   {func(f *daytonatest.Fake) daytona.Backend { return keeper{f} }, []string{"CloseDeletes"}, []string{"Get"}},
	"errors without a kind":   {func(f *daytonatest.Fake) daytona.Backend { return kindless{f} }, []string{"Get", "Delete"}, []string{"CommandExitCodes"}},
	"host environment leaks":  {func(f *daytonatest.Fake) daytona.Backend { return hostEnv{f} }, []string{"HostEnvironment"}, []string{"WorkDir"}},
	"output is merged":        {toolboxDefect(func(p process) daytona.Process { return merged{p} }), []string{"Command"}, []string{"FileRename"}},
	"exit codes are lost":     {toolboxDefect(func(p process) daytona.Process { return alwaysZero{p} }), []string{"CommandExitCodes", "CommandSignals"}, []string{"FileRename"}},
	"timeouts are ignored":    {toolboxDefect(func(p process) daytona.Process { return timeless{p} }), []string{"CommandTimeout"}, []string{"CommandStdin"}},
	"files are cut short":     {filesDefect(func(f files) daytona.FileSystem { return truncating{f} }), []string{"FileReadWrite", "FileBig"}, []string{"FileRename"}},
	"rename replaces":         {filesDefect(func(f files) daytona.FileSystem { return replacing{f} }), []string{"FileRename"}, []string{"FileReadWrite"}},
	"path errors are unkind":  {filesDefect(func(f files) daytona.FileSystem { return plainErrors{f} }), []string{"FileErrors"}, []string{"FileNames"}},
	"permissions are ignored": {filesDefect(func(f files) daytona.FileSystem { return modeless{f} }), []string{"FilePermissions"}, []string{"FileNames"}},
	"adoption restarts":       {func(f *daytonatest.Fake) daytona.Backend { return renumbers{f} }, []string{"Adoption"}, []string{"Names"}},
}

const defectVariable = "DAYTONATEST_DEFECT"

// TestDefect is what TestSuiteFindsDefects runs in another process.
func TestDefect(t *testing.T) {
	d, ok := defects[os.Getenv(defectVariable)]
	if !ok {
		t.Skip("run by TestSuiteFindsDefects")
	}
	backendtest.RunConformance(t, harness(d.wrap))
}

func TestSuiteFindsDefects(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for name, d := range defects {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
			defer cancel()
			checks := slices.Concat(d.fails, d.passes)
			cmd := exec.CommandContext(ctx, exe, "-test.v", "-test.run", "^TestDefect$/^("+strings.Join(checks, "|")+")$")
			cmd.Env = append(os.Environ(), defectVariable+"="+name)
			out, err := cmd.CombinedOutput()
			if err == nil {
				t.Errorf("the suite passes a backend with the defect %q", name)
			}
			verdicts := map[string]string{}
			for _, m := range regexp.MustCompile(`--- (PASS|FAIL|SKIP): TestDefect/(\w+) `).FindAllStringSubmatch(string(out), -1) {
				verdicts[m[2]] = m[1]
			}
			for _, c := range d.fails {
				if verdicts[c] != "FAIL" {
					t.Errorf("check %s: %q with the defect, want FAIL", c, verdicts[c])
				}
			}
			for _, c := range d.passes {
				if verdicts[c] != "PASS" {
					t.Errorf("check %s: %q with a defect that is not its affair, want PASS", c, verdicts[c])
				}
			}
			if t.Failed() {
				t.Logf("output:\n%s", out)
			}
		})
	}
}

// A misspelt exception must not pass for one.
func TestHarnessMistakes(t *testing.T) {
	if os.Getenv(defectVariable) == "misspelt" {
		h := harness(whole)
		h.Skip = map[string]string{"NoSuchCheck": "because"}
		backendtest.RunConformance(t, h)
		return
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe, "-test.run", "^TestHarnessMistakes$")
	cmd.Env = append(os.Environ(), defectVariable+"=misspelt")
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "NoSuchCheck") {
		t.Errorf("a harness that skips a check that does not exist: %v\n%s", err, out)
	}
}

func TestFakeCommands(t *testing.T) {
	f := daytonatest.NewFake()
	f.HandleCommand("python3", func(_ context.Context, c *daytonatest.FakeCommand) int {
		fmt.Fprintf(c.Stdout, "ran %q in %s with %s\n", c.Args[1:], c.Dir, c.Env["MODE"])
		return 3
	})
	f.HandleCommand("*", func(_ context.Context, c *daytonatest.FakeCommand) int {
		b, _ := io.ReadAll(c.Stdin)
		fmt.Fprintf(c.Stderr, "%s got %q\n", c.Args[0], b)
		return 0
	})
	f.HandlePort(8080, daytonatest.HTTP(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "hello from ", r.URL.Path) })))
	client := daytona.New(f)
	t.Cleanup(func() { client.Close() })
	sb := daytonatest.Sandbox(t, daytonatest.WithClient(client), daytonatest.WithSpec(daytona.Spec{Env: map[string]string{"MODE": "m"}, WorkDir: "/work"}))

	r, err := sb.Process().RunCode(t.Context(), "print(1)", &daytona.CodeOptions{Args: []string{"a"}})
	if err != nil || r.ExitCode != 3 || r.Output != "ran [\"-c\" \"print(1)\" \"a\"] in /work with m\n" {
		t.Errorf("RunCode = %+v, %v", r, err)
	}
	cmd := sb.Process().Command(t.Context(), "anything")
	cmd.Stdin = strings.NewReader("input")
	out, err := cmd.CombinedOutput()
	if err != nil || string(out) != "anything got \"input\"\n" {
		t.Errorf("Command = %q, %v", out, err)
	}
	hc := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return sb.DialPort(ctx, 8080) }, DisableKeepAlives: true}}
	resp, err := hc.Get("http://sandbox/path")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "hello from /path" {
		t.Errorf("GET = %q, %v", b, err)
	}
}

// The fixture deletes its sandbox, keeps the caller's client open, and skips
// where a backend cannot run.
func TestFixtures(t *testing.T) {
	client := daytona.New(daytonatest.NewFake())
	defer client.Close()
	var id string
	t.Run("inner", func(t *testing.T) {
		id = daytonatest.Sandbox(t, daytonatest.WithClient(client)).ID()
		if _, err := client.Get(t.Context(), id); err != nil {
			t.Error(err)
		}
	})
	if _, err := client.Get(t.Context(), id); daytona.KindOf(err) != daytona.KindNotFound {
		t.Errorf("after the test that made it, the sandbox gives %v, want not found", err)
	}
	skipped := true
	t.Run("skips", func(t *testing.T) {
		defer func() { skipped = t.Skipped() }()
		daytonatest.Client(t, daytonatest.WithURL("daytonatest-unsupported://"))
	})
	if !skipped {
		t.Error("a backend that is unsupported here did not skip the test")
	}
}

func TestSandbox(t *testing.T) {
	sb := daytonatest.Sandbox(t)
	out, err := sb.Process().Command(t.Context(), "echo", "real").Output()
	if err != nil || string(out) != "real\n" {
		t.Errorf("echo = %q, %v", out, err)
	}
}

// TestFakeState is about what the suites do not ask for.
func TestFakeState(t *testing.T) {
	ctx := t.Context()
	f := daytonatest.NewFake()
	client := daytona.New(f)
	sb, err := client.Create(ctx, daytona.Spec{Name: "parent", Resources: daytona.Resources{Disk: 1}})
	if err != nil {
		t.Fatal(err)
	}
	if err := sb.FileSystem().WriteFile(ctx, "f", []byte("parent's"), 0); err != nil {
		t.Fatal(err)
	}
	children, err := sb.Fork(ctx, &daytona.ForkOptions{Names: []string{"a", "", "c"}})
	if err != nil || len(children) != 3 || children[0].Info().Parent != sb.ID() || children[1].Name() != children[1].ID() {
		t.Fatalf("%v, %v", children, err)
	}
	if _, err := sb.Fork(ctx, &daytona.ForkOptions{Names: []string{"d", "a"}}); !errors.Is(err, daytona.ErrConflict) {
		t.Errorf("fork with a taken name: %v", err)
	}
	if _, err := client.Get(ctx, "d"); !errors.Is(err, daytona.ErrNotFound) {
		t.Errorf("a fork that failed left a child: %v", err)
	}
	if err := sb.Resize(ctx, daytona.Resources{Disk: 2}); !errors.Is(err, daytona.ErrState) {
		t.Errorf("a disk that grows in a started sandbox: %v", err)
	}
	if err := sb.Stop(ctx, nil); err != nil {
		t.Fatal(err)
	}
	if err := sb.Resize(ctx, daytona.Resources{Disk: 0.5}); !errors.Is(err, daytona.ErrInvalid) {
		t.Errorf("a disk that shrinks: %v", err)
	}
	if err := sb.Resize(ctx, daytona.Resources{Disk: 2}); err != nil || sb.Info().Resources.Disk != 2 {
		t.Errorf("a disk that grows: %v, %+v", err, sb.Info().Resources)
	}
	if err := errors.Join(sb.Archive(ctx), sb.Archive(ctx)); err != nil || sb.Info().State != daytona.StateArchived {
		t.Errorf("archive: %v, %s", err, sb.Info().State)
	}
	if err := sb.Restore(ctx); err != nil || sb.Info().State != daytona.StateStopped {
		t.Errorf("restore: %v, %s", err, sb.Info().State)
	}
	sn, err := client.CreateSnapshot(ctx, daytona.SnapshotSpec{Name: "s/1", Sandbox: "parent", Resources: daytona.Resources{CPU: 3}})
	if err != nil || sn.Resources != (daytona.Resources{CPU: 3, Disk: 2}) {
		t.Fatalf("%+v, %v", sn, err)
	}
	if _, err := f.SetSnapshotActive(ctx, sn.ID, false); err != nil {
		t.Error(err)
	}
	if _, err := client.Create(ctx, daytona.Spec{Snapshot: "s/1"}); !errors.Is(err, daytona.ErrState) {
		t.Errorf("create from an inactive snapshot: %v", err)
	}
	if _, err := f.SetSnapshotActive(ctx, "s/1", true); err != nil {
		t.Error(err)
	}
	from, err := client.Create(ctx, daytona.Spec{Snapshot: "s/1", Resources: daytona.Resources{CPU: 1}})
	if err != nil {
		t.Fatal(err)
	}
	if data, err := from.FileSystem().ReadFile(ctx, "f"); string(data) != "parent's" || from.Info().Snapshot != "s/1" || from.Info().Resources != (daytona.Resources{CPU: 1, Disk: 2}) {
		t.Errorf("%q, %v, %+v", data, err, from.Info())
	}
	if sn, err = f.GetSnapshot(ctx, "s/1"); err != nil || sn.LastUsedAt.IsZero() || sn.SizeBytes != int64(len("parent's")) {
		t.Errorf("%+v, %v", sn, err)
	}
}
