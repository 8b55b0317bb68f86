package backendtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/daytona-go/daytona"
)

func lifecycleChecks() []check {
	return []check{
		{name: "CreateDefaults", run: checkCreateDefaults},
		{name: "Names", run: checkNames},
		{name: "NameRace", run: checkNameRace},
		{name: "Get", run: checkGet},
		{name: "List", run: checkList},
		{name: "Environment", run: checkEnvironment},
		{name: "HostEnvironment", run: checkHostEnvironment},
		{name: "User", needs: []Capability{Users, Shell}, run: checkUser},
		{name: "WorkDir", run: checkWorkDir},
		{name: "Resources", run: checkResources},
		{name: "StopStart", run: checkStopStart},
		{name: "StopEndsProcesses", needs: []Capability{Shell, Sessions}, run: checkStopEndsProcesses},
		{name: "StopGraceful", needs: []Capability{Shell, Sessions}, run: checkStopGraceful},
		{name: "StopForce", needs: []Capability{Shell, Sessions}, run: checkStopForce},
		{name: "Ephemeral", run: checkEphemeral},
		{name: "TTL", needs: []Capability{Timers}, run: checkTTL},
		{name: "AutoStop", needs: []Capability{Timers}, run: checkAutoStop},
		{name: "AutoPause", needs: []Capability{Timers}, run: checkAutoPause},
		{name: "AutoArchive", needs: []Capability{Timers}, run: checkAutoArchive},
		{name: "AutoDelete", needs: []Capability{Timers}, run: checkAutoDelete},
		{name: "Delete", run: checkDelete},
		{name: "UnknownID", run: checkUnknownID},
		{name: "ToolboxStates", run: checkToolboxStates},
		{name: "SeparateSandboxes", run: checkSeparateSandboxes},
		{name: "CreateCancelled", run: checkCreateCancelled},
		{name: "CloseDeletes", run: checkCloseDeletes},
		{name: "CloseTwice", run: checkCloseTwice},
		{name: "Adoption", needs: []Capability{Persistence}, run: checkAdoption},
		{name: "AdoptionOfProcesses", needs: []Capability{Persistence, Shell, Sessions}, run: checkAdoptionOfProcesses},
		{name: "SecondBackend", needs: []Capability{Persistence}, run: checkSecondBackend},
		{name: "Parallel", limit: 2 * time.Minute, run: checkParallel},
		{name: "RacingOperations", run: checkRacingOperations},
		{name: "Entrypoint", needs: []Capability{Entrypoint, Sessions, Shell}, run: checkEntrypoint},
	}
}

func named(name string) func(*daytona.Spec) { return func(s *daytona.Spec) { s.Name = name } }

func persistent(s *daytona.Spec) { s.Persistent = true }

func checkCreateDefaults(c *env) {
	client := c.open()
	if first, second := c.backend.Name(), c.backend.Name(); first == "" || first != second {
		c.Errorf("Backend.Name() = %q, then %q: it must not be empty or change", first, second)
	}
	before := time.Now().Add(-2 * time.Second)
	sb, err := client.Create(c.ctx, c.spec())
	c.try("create", err)
	info := sb.Info()
	if info.ID == "" || info.ID != sb.ID() {
		c.Errorf("Info.ID = %q, Sandbox.ID() = %q", info.ID, sb.ID())
	}
	if !daytona.ValidName(info.Name) {
		c.Errorf("generated name %q breaks the rule for names", info.Name)
	}
	equal(c, "Sandbox.Name()", sb.Name(), info.Name)
	equal(c, "State", info.State, daytona.StateStarted)
	equal(c, "Backend", info.Backend, c.backend.Name())
	equal(c, "Persistent", info.Persistent, c.h.Spec.Persistent)
	equal(c, "Ephemeral", info.Ephemeral, c.h.Spec.Ephemeral)
	if c.h.Spec.Language == "" {
		equal(c, "Language", info.Language, "python")
	}
	if c.h.Spec.Image != "" {
		equal(c, "Image", info.Image, c.h.Spec.Image)
	}
	if info.User == "" {
		c.Error("Info.User is empty, want the user that programs run as")
	}
	if !path.IsAbs(info.WorkDir) {
		c.Errorf("Info.WorkDir = %q, want an absolute path", info.WorkDir)
	}
	if info.CreatedAt.Before(before) || info.CreatedAt.After(time.Now().Add(2*time.Second)) {
		c.Errorf("CreatedAt = %v, but it is %v", info.CreatedAt, time.Now())
	}
	if info.StartedAt.IsZero() || !info.StoppedAt.IsZero() {
		c.Errorf("StartedAt = %v, StoppedAt = %v, want set and zero", info.StartedAt, info.StoppedAt)
	}
	// Connect must work at once: no retry here.
	equal(c, "output of the first command", c.sh(sb, "echo ready"), "ready")
	home, err := sb.HomeDir(c.ctx)
	c.try("HomeDir", err)
	if !path.IsAbs(home) {
		c.Errorf("HomeDir() = %q, want an absolute path", home)
	}
	wd, err := sb.WorkDir(c.ctx)
	c.try("WorkDir", err)
	equal(c, "WorkDir()", wd, info.WorkDir)
	c.try("delete", sb.Delete(c.ctx))
	equal(c, "State after Delete", sb.Info().State, daytona.StateDestroyed)
	c.nothingLeft("after the only sandbox is deleted")
}

func checkNames(c *env) {
	long := strings.Repeat("n", 63)
	for _, n := range []string{"a", "A.b_c-9", "0", long} {
		sb, err := c.open().Create(c.ctx, c.spec(named(n)))
		c.try("create with name "+n, err)
		equal(c, "Name", sb.Name(), n)
		c.try("delete", sb.Delete(c.ctx))
	}
	first := c.create(named("taken"))
	c.try("write", first.FileSystem().WriteFile(c.ctx, "mine", []byte("x"), 0))
	_, err := c.open().Create(c.ctx, c.spec(named("taken")))
	c.wantKind("create with a taken name", err, daytona.KindConflict)
	if l := c.list(c.backend, daytona.Filter{}); len(l) != 1 {
		c.Errorf("%d sandboxes after a refused create, want 1", len(l))
	}
	_, err = first.FileSystem().ReadFile(c.ctx, "mine")
	c.try("the holder of the name is unharmed", err)
	c.try("stop", first.Stop(c.ctx, nil))
	_, err = c.open().Create(c.ctx, c.spec(named("taken")))
	c.wantKind("create with the name of a stopped sandbox", err, daytona.KindConflict)
	c.try("delete", first.Delete(c.ctx))
	c.nothingLeft("after refused creates and a delete")
	second := c.create(named("taken"))
	if second.ID() == first.ID() {
		c.Errorf("id %s was used twice; an id is unique for all time", first.ID())
	}
	_, err = second.FileSystem().Stat(c.ctx, "mine")
	c.wantKind("a file of the name's former holder", err, daytona.KindNotFound)
}

func checkNameRace(c *env) {
	client := c.open()
	const n = 8
	var wg sync.WaitGroup
	made := make([]daytona.Sandbox, n)
	errs := make([]error, n)
	for i := range n {
		wg.Go(func() { made[i], errs[i] = client.Create(c.ctx, c.spec(named("race"))) })
	}
	wg.Wait()
	won := 0
	for i := range n {
		if errs[i] == nil {
			won++
			c.try("delete", made[i].Delete(c.ctx))
		} else {
			c.wantKind("create that lost the race for a name", errs[i], daytona.KindConflict)
		}
	}
	equal(c, "number of creates that got the name", won, 1)
	c.nothingLeft("after a race for a name")
}

func checkGet(c *env) {
	sb := c.create(named("findme"), func(s *daytona.Spec) { s.Labels = map[string]string{"k": "v"} })
	for _, key := range []string{sb.ID(), "findme"} {
		got, err := c.client.Get(c.ctx, key)
		c.try("get "+key, err)
		equal(c, "ID", got.ID(), sb.ID())
		equal(c, "Name", got.Name(), "findme")
		equal(c, "label", got.Info().Labels["k"], "v")
		equal(c, "State", got.Info().State, daytona.StateStarted)
		equal(c, "output through a sandbox that was got", c.sh(got, "echo hello"), "hello")
	}
	for _, key := range []string{"nobody", "", "findm", "FINDME", "../findme", sb.ID()[:len(sb.ID())-1], "a\x00b", strings.Repeat("x", 5000)} {
		_, err := c.client.Get(c.ctx, key)
		if k := daytona.KindOf(err); k != daytona.KindNotFound && (k != daytona.KindInvalid || daytona.ValidName(key)) {
			c.Errorf("get %q: error %v, want not found", clip(key), err)
		}
	}
	// An id wins over a name: somebody may name a sandbox like another's id.
	if daytona.ValidName(sb.ID()) {
		other := c.create(named(sb.ID()))
		got, err := c.client.Get(c.ctx, sb.ID())
		c.try("get an id that is also a name", err)
		if got.ID() != sb.ID() {
			c.Errorf("Get(id) found the sandbox that has the id as its name (%s), want the one with the id", other.ID())
		}
	}
}

func checkList(c *env) {
	client := c.open()
	if l := c.list(c.backend, daytona.Filter{}); len(l) != 0 {
		c.Fatalf("a backend on fresh state lists %d sandboxes", len(l))
	}
	var want []string
	for i, name := range []string{"web-2", "web-1", "job-1"} {
		sb := c.create(named(name), func(s *daytona.Spec) {
			s.Labels = map[string]string{"n": fmt.Sprint(i), "all": "yes"}
		})
		want = append(want, sb.Name())
	}
	names := func(f *daytona.Filter) []string {
		var out []string
		for sb, err := range client.List(c.ctx, f) {
			c.try("list", err)
			out = append(out, sb.Name())
		}
		return out
	}
	equalList(c, "List(nil), oldest first", names(nil), want)
	equalList(c, "List by label", names(&daytona.Filter{Labels: map[string]string{"n": "1"}}), []string{"web-1"})
	equalList(c, "List by two labels", names(&daytona.Filter{Labels: map[string]string{"n": "1", "all": "yes"}}), []string{"web-1"})
	equalList(c, "List by a label that none has", names(&daytona.Filter{Labels: map[string]string{"n": "1", "all": "no"}}), nil)
	equalList(c, "List by name prefix", names(&daytona.Filter{NamePrefix: "web-"}), []string{"web-2", "web-1"})
	equalList(c, "List by state started", names(&daytona.Filter{States: []daytona.State{daytona.StateStarted}}), want)
	equalList(c, "List by state stopped", names(&daytona.Filter{States: []daytona.State{daytona.StateStopped}}), nil)
	sb, err := client.Get(c.ctx, "job-1")
	c.try("get", err)
	c.try("stop", sb.Stop(c.ctx, nil))
	equalList(c, "List by state stopped", names(&daytona.Filter{States: []daytona.State{daytona.StateStopped}}), []string{"job-1"})
	equalList(c, "List by two states", names(&daytona.Filter{States: []daytona.State{daytona.StateStopped, daytona.StateStarted}}), want)
	n := 0
	for range client.List(c.ctx, nil) {
		n++
		break
	}
	equal(c, "rounds of an iteration that breaks off", n, 1)
	// A loop that deletes what it lists is a natural thing to write.
	for sb, err := range client.List(c.ctx, nil) {
		c.try("list", err)
		c.try("delete while listing", sb.Delete(c.ctx))
	}
	equalList(c, "List after deleting all", names(nil), nil)

	ctx, cancel := context.WithCancel(c.ctx)
	cancel()
	c.create()
	for _, err := range client.List(ctx, nil) {
		if err != nil && !errors.Is(err, context.Canceled) {
			c.Errorf("list with a cancelled context: %v", err)
		}
	}
}

func checkEnvironment(c *env) {
	values := map[string]string{
		"PLAIN": "value", "_under9": "x", "EMPTY": "", "SPACES": " a  b ", "QUOTES": `'"` + "`", "DOLLAR": "$HOME ${PATH} $(id)",
		"UNICODE": "grüße 🙂", "NEWLINE": "a\nb", "EQUALS": "a=b=c", "BACKSLASH": `a\nb`, "LONG": strings.Repeat("v", 8000),
	}
	sb := c.create(func(s *daytona.Spec) {
		for k, v := range values {
			s.Env[k] = v
		}
	})
	for k, v := range values {
		equal(c, "Info.Env["+k+"]", sb.Info().Env[k], v)
		out, err := sb.Process().Command(c.ctx, "printenv", k).Output()
		c.try("printenv "+k, err)
		equal(c, "variable "+k+" of a command", string(out), v+"\n")
	}
	equal(c, "variable in Exec", c.sh(sb, `echo "$PLAIN"`), "value")
	r, err := sb.Process().Exec(c.ctx, `echo "$PLAIN $MORE"`, &daytona.ExecOptions{Env: map[string]string{"PLAIN": "other", "MORE": "added"}})
	c.try("exec", err)
	equal(c, "ExecOptions.Env", r.Output, "other added\n")
	equal(c, "variable after an Exec that overrode it", c.sh(sb, `echo "$PLAIN"`), "value")
	home, err := sb.HomeDir(c.ctx)
	c.try("HomeDir", err)
	equal(c, "HOME", c.sh(sb, "printenv HOME"), home)
	if c.sh(sb, "printenv PATH") == "" {
		c.Error("PATH is empty")
	}
}

func checkHostEnvironment(c *env) {
	const secret = "hunter2-of-the-host"
	old, had := os.LookupEnv("DAYTONA_BACKENDTEST_SECRET")
	os.Setenv("DAYTONA_BACKENDTEST_SECRET", secret)
	defer func() {
		if had {
			os.Setenv("DAYTONA_BACKENDTEST_SECRET", old)
		} else {
			os.Unsetenv("DAYTONA_BACKENDTEST_SECRET")
		}
	}()
	sb := c.create()
	if out := c.sh(sb, "env"); strings.Contains(out, secret) {
		c.Errorf("the host's environment is in the sandbox's:\n%s", out)
	}
	if !c.has(Shell) {
		return
	}
	if out := c.sh(sb, `for p in /proc/[0-9]*; do tr '\0' '\n' < $p/environ; done 2>/dev/null; true`); strings.Contains(out, secret) {
		c.Error("the host's environment is in that of a process that the sandbox can read")
	}
}

func checkUser(c *env) {
	for _, u := range []struct{ spec, uid, gid string }{
		{"0", "0", "0"}, {"root", "0", "0"}, {"4321", "4321", ""}, {"4321:8765", "4321", "8765"},
	} {
		sb := c.create(func(s *daytona.Spec) { s.User = u.spec })
		equal(c, "uid with User "+u.spec, c.sh(sb, "id -u"), u.uid)
		if u.gid != "" {
			equal(c, "gid with User "+u.spec, c.sh(sb, "id -g"), u.gid)
		}
		equal(c, "Info.User", sb.Info().User, u.spec)
		// Not the working directory: a number without an account has the home
		// "/", which is not its own.
		c.try("write", sb.FileSystem().WriteFile(c.ctx, "/tmp/mine", nil, 0))
		fi, err := sb.FileSystem().Stat(c.ctx, "/tmp/mine")
		c.try("stat", err)
		equal(c, "owner of a written file with User "+u.spec, fi.Owner, u.uid)
		equal(c, "its owner as programs see it", c.sh(sb, "stat -c %u /tmp/mine"), u.uid)
		c.sh(sb, "touch /tmp/made-by-program")
	}
	_, err := c.open().Create(c.ctx, c.spec(func(s *daytona.Spec) { s.User = "no_such_user" }))
	c.wantKind("create with a user that the image has not", err, daytona.KindInvalid)
	if e, ok := errors.AsType[*daytona.Error](err); ok {
		equal(c, "Field of the error", e.Field, "User")
	}
}

func checkWorkDir(c *env) {
	sb := c.create(func(s *daytona.Spec) { s.WorkDir = "/srv/made/by spec" })
	equal(c, "Info.WorkDir", sb.Info().WorkDir, "/srv/made/by spec")
	equal(c, "pwd", c.sh(sb, "pwd"), "/srv/made/by spec")
	c.try("write a relative path", sb.FileSystem().WriteFile(c.ctx, "rel", []byte("r"), 0))
	b, err := sb.FileSystem().ReadFile(c.ctx, "/srv/made/by spec/rel")
	c.try("read it by its absolute path", err)
	equal(c, "content", string(b), "r")
	r, err := sb.Process().Exec(c.ctx, "pwd", &daytona.ExecOptions{Dir: "/"})
	c.try("exec", err)
	equal(c, "pwd with Dir", r.Output, "/\n")
	c.try("mkdir", sb.FileSystem().Mkdir(c.ctx, "sub", 0))
	cmd := sb.Process().Command(c.ctx, "pwd")
	cmd.Dir = "sub"
	out, err := cmd.Output()
	c.try("pwd", err)
	equal(c, "pwd with a relative Dir", string(out), "/srv/made/by spec/sub\n")
}

func checkResources(c *env) {
	for _, x := range []struct {
		needs Capability
		set   func(*daytona.Resources)
		get   func(daytona.Resources) float64
		want  float64
	}{
		{CPU, func(r *daytona.Resources) { r.CPU = c.h.amount(0.5) }, func(r daytona.Resources) float64 { return r.CPU }, c.h.amount(0.5)},
		{Memory, func(r *daytona.Resources) { r.Memory = c.h.amount(0.25) }, func(r daytona.Resources) float64 { return r.Memory }, c.h.amount(0.25)},
		{Disk, func(r *daytona.Resources) { r.Disk = c.h.amount(0.25) }, func(r daytona.Resources) float64 { return r.Disk }, c.h.amount(0.25)},
		{Processes, func(r *daytona.Resources) { r.Processes = 100 }, func(r daytona.Resources) float64 { return float64(r.Processes) }, 100},
	} {
		c.sub(string(x.needs), []Capability{x.needs}, func(c *env) {
			sb := c.create(func(s *daytona.Spec) { x.set(&s.Resources) })
			equal(c, "the limit in Info", x.get(sb.Info().Resources), x.want)
			_, err := sb.Refresh(c.ctx)
			c.try("refresh", err)
			equal(c, "the limit in Info after Refresh", x.get(sb.Info().Resources), x.want)
			equal(c, "a command under the limit", c.sh(sb, "echo ok"), "ok")
		})
	}
}

func checkStopStart(c *env) {
	sb := c.create(func(s *daytona.Spec) { s.Env["KEPT"] = "env" })
	fsys := sb.FileSystem()
	c.try("write", fsys.WriteFile(c.ctx, "dir/kept", []byte("precious"), 0o640))
	started := sb.Info().StartedAt
	c.try("start what is started", sb.Start(c.ctx))
	equal(c, "StartedAt after a Start that does nothing", sb.Info().StartedAt.Equal(started), true)
	for round := range 3 {
		c.try("stop", sb.Stop(c.ctx, nil))
		equal(c, "State", sb.Info().State, daytona.StateStopped)
		if sb.Info().StoppedAt.IsZero() {
			c.Error("StoppedAt is zero after Stop")
		}
		info, err := sb.Refresh(c.ctx)
		c.try("refresh", err)
		equal(c, "State after Refresh", info.State, daytona.StateStopped)
		c.try("stop what is stopped", sb.Stop(c.ctx, nil))
		equal(c, "State", sb.Info().State, daytona.StateStopped)
		c.try("start", sb.Start(c.ctx))
		equal(c, "State", sb.Info().State, daytona.StateStarted)
		b, err := fsys.ReadFile(c.ctx, "dir/kept")
		c.try("read what was written before the stop", err)
		equal(c, "content", string(b), "precious")
		fi, err := fsys.Stat(c.ctx, "dir/kept")
		c.try("stat", err)
		equal(c, "permissions", fi.Mode().Perm(), 0o640)
		equal(c, "environment after a restart", c.sh(sb, "printenv KEPT"), "env")
		c.try("write after a restart", fsys.WriteFile(c.ctx, fmt.Sprintf("round%d", round), nil, 0))
	}
	entries, err := fsys.ReadDir(c.ctx, ".")
	c.try("readdir", err)
	for round := range 3 {
		if !slices.ContainsFunc(entries, func(e daytona.FileInfo) bool { return e.Name() == fmt.Sprintf("round%d", round) }) {
			c.Errorf("file of round %d is gone", round)
		}
	}
}

// startInBackground runs a line that outlives the calls of this check.
func (c *env) startInBackground(sb daytona.Sandbox, line string) {
	c.Helper()
	s, err := sb.Process().CreateSession(c.ctx, fmt.Sprintf("background-%d", time.Now().UnixNano()))
	c.try("create a session", err)
	_, err = s.Start(c.ctx, line, nil)
	c.try("start in a session", err)
}

// waitForFile waits until a program in the sandbox has made a file and
// returns its content.
func (c *env) waitForFile(sb daytona.Sandbox, name string) string {
	c.Helper()
	var b []byte
	c.eventually(10*time.Second, "a program makes the file "+name, func() error {
		var err error
		if b, err = sb.FileSystem().ReadFile(c.ctx, name); err == nil && len(b) == 0 {
			err = errors.New("still empty")
		}
		return err
	})
	return strings.TrimSpace(string(b))
}

// processesLike lists the command lines inside the sandbox that contain text.
func (c *env) processesLike(sb daytona.Sandbox, text string) []string {
	c.Helper()
	out := c.sh(sb, `for p in /proc/[0-9]*; do tr '\0' ' ' < $p/cmdline && echo; done 2>/dev/null; true`)
	var found []string
	for line := range strings.Lines(out) {
		if strings.Contains(line, text) && !strings.Contains(line, "/proc/[0-9]*") {
			found = append(found, strings.TrimSpace(line))
		}
	}
	return found
}

// awaitProcess waits until a command line inside the sandbox contains text. At the
// moment of its exec a process has none.
func (c *env) awaitProcess(d time.Duration, what string, sb daytona.Sandbox, text string) {
	c.Helper()
	c.eventually(d, what, func() error {
		if len(c.processesLike(sb, text)) == 0 {
			return fmt.Errorf("%q is in no command line of /proc", text)
		}
		return nil
	})
}

func checkStopEndsProcesses(c *env) {
	sb := c.create()
	c.startInBackground(sb, "echo up > up; sleep 8642")
	c.waitForFile(sb, "up")
	c.awaitProcess(10*time.Second, "the process runs before the stop, or this check sees nothing", sb, "sleep 8642")
	c.try("stop", sb.Stop(c.ctx, nil))
	c.try("start", sb.Start(c.ctx))
	if l := c.processesLike(sb, "sleep 8642"); len(l) > 0 {
		c.Errorf("a process survived Stop: %q", l)
	}
}

func checkStopGraceful(c *env) {
	sb := c.create()
	c.startInBackground(sb, `sh -c 'trap "echo terminated > goodbye; exit 0" TERM; echo up > up; while :; do sleep 0.05; done'`)
	c.waitForFile(sb, "up")
	c.try("stop", sb.Stop(c.ctx, nil))
	c.try("start", sb.Start(c.ctx))
	b, err := sb.FileSystem().ReadFile(c.ctx, "goodbye")
	c.try("read what the process wrote when it got SIGTERM", err)
	equal(c, "content", string(b), "terminated\n")
}

func checkStopForce(c *env) {
	sb := c.create()
	stubborn := `sh -c 'trap "" TERM INT HUP; echo up > up; while :; do sleep 0.05; done'`
	c.startInBackground(sb, stubborn)
	c.waitForFile(sb, "up")
	begin := time.Now()
	c.try("stop by force", sb.Stop(c.ctx, &daytona.StopOptions{Force: true}))
	if d := time.Since(begin); d > c.slow(3*time.Second) {
		c.Errorf("Stop with Force took %v; it must not wait for processes", d)
	}
	c.try("start", sb.Start(c.ctx))
	c.try("remove", sb.FileSystem().Remove(c.ctx, "up"))
	c.startInBackground(sb, stubborn)
	c.waitForFile(sb, "up")
	begin = time.Now()
	c.try("stop", sb.Stop(c.ctx, nil))
	if d := time.Since(begin); d < 4*time.Second || d > c.slow(12*time.Second) {
		c.Errorf("Stop took %v with a process that ignores SIGTERM, want about the five seconds of grace", d)
	}
	c.try("start", sb.Start(c.ctx))
	if l := c.processesLike(sb, `trap ""`); len(l) > 0 {
		c.Errorf("a process that ignores SIGTERM survived Stop: %q", l)
	}
}

func checkEphemeral(c *env) {
	client := c.open()
	for _, force := range []bool{false, true} {
		sb, err := client.Create(c.ctx, c.spec(func(s *daytona.Spec) { s.Ephemeral = true }))
		c.try("create", err)
		equal(c, "Ephemeral", sb.Info().Ephemeral, true)
		c.try("stop", sb.Stop(c.ctx, &daytona.StopOptions{Force: force}))
		if s := sb.Info().State; s != daytona.StateDestroyed && s != daytona.StateDestroying {
			c.Errorf("State after Stop of an ephemeral sandbox = %q, want destroyed", s)
		}
		c.eventually(5*time.Second, "a stopped ephemeral sandbox is deleted", func() error {
			if _, err := client.Get(c.ctx, sb.ID()); !errors.Is(err, daytona.ErrNotFound) {
				return fmt.Errorf("Get: %v, want not found", err)
			}
			return nil
		})
		c.nothingLeft("after an ephemeral sandbox has stopped")
	}
}

func checkTTL(c *env) {
	client := c.open()
	begin := time.Now()
	sb, err := client.Create(c.ctx, c.spec(func(s *daytona.Spec) { s.TTL = time.Second }))
	c.try("create", err)
	equal(c, "TTL", sb.Info().TTL, time.Second)
	c.eventually(10*time.Second, "a sandbox is deleted when its TTL is over", func() error {
		if _, err := client.Get(c.ctx, sb.ID()); !errors.Is(err, daytona.ErrNotFound) {
			return fmt.Errorf("Get: %v, want not found", err)
		}
		return nil
	})
	if d := time.Since(begin); d < time.Second {
		c.Errorf("it was deleted after %v, before its TTL of 1s", d)
	}
	c.nothingLeft("after the TTL")
}

func checkAutoStop(c *env) {
	sb := c.create(func(s *daytona.Spec) { s.AutoStop = 2 * time.Second })
	equal(c, "AutoStop", sb.Info().AutoStop, 2*time.Second)
	// Requests to it keep it up, for longer than the interval.
	for begin := time.Now(); time.Since(begin) < 3*time.Second; time.Sleep(200 * time.Millisecond) {
		c.sh(sb, "echo busy")
	}
	c.becomes(15*time.Second, sb, daytona.StateStopped)
	c.try("start", sb.Start(c.ctx))
	equal(c, "a command after the automatic stop", c.sh(sb, "echo again"), "again")
}

// becomes waits for a sandbox to get into a state by itself.
func (c *env) becomes(d time.Duration, sb daytona.Sandbox, state daytona.State) {
	c.Helper()
	c.eventually(d, fmt.Sprintf("the sandbox becomes %s by itself", state), func() error {
		info, err := c.backend.Get(c.ctx, sb.ID())
		if err == nil && info.State != state {
			err = fmt.Errorf("state is %s", info.State)
		}
		return err
	})
}

func checkAutoPause(c *env) {
	need[daytona.Pauser](c)
	sb := c.create(func(s *daytona.Spec) { s.AutoPause = 2 * time.Second })
	equal(c, "AutoPause", sb.Info().AutoPause, 2*time.Second)
	begin := time.Now()
	for time.Since(begin) < 3*time.Second {
		c.sh(sb, "echo busy")
		time.Sleep(200 * time.Millisecond)
	}
	c.becomes(15*time.Second, sb, daytona.StatePaused)
	c.try("resume", sb.Resume(c.ctx))
	equal(c, "a command after the automatic pause", c.sh(sb, "echo again"), "again")
	// A TTL is kept whatever the state.
	short := c.create(func(s *daytona.Spec) { s.TTL = 6 * time.Second })
	c.try("pause", short.Pause(c.ctx, nil))
	c.eventually(30*time.Second, "a paused sandbox is deleted after its TTL", func() error {
		if _, err := c.backend.Get(c.ctx, short.ID()); !errors.Is(err, daytona.ErrNotFound) {
			return fmt.Errorf("Get: %v, want not found", err)
		}
		return nil
	})
}

func checkAutoArchive(c *env) {
	need[daytona.Archiver](c)
	sb := c.create(func(s *daytona.Spec) { s.AutoArchive = time.Second })
	equal(c, "AutoArchive", sb.Info().AutoArchive, time.Second)
	c.try("write", sb.FileSystem().WriteFile(c.ctx, "kept", []byte("kept"), 0o600))
	c.try("stop", sb.Stop(c.ctx, nil))
	c.becomes(30*time.Second, sb, daytona.StateArchived)
	c.try("start", sb.Start(c.ctx))
	data, err := sb.FileSystem().ReadFile(c.ctx, "kept")
	c.try("read", err)
	equal(c, "the file", string(data), "kept")
}

func checkAutoDelete(c *env) {
	client := c.open()
	sb := c.create(func(s *daytona.Spec) { s.AutoDelete = time.Second })
	c.try("stop", sb.Stop(c.ctx, nil))
	c.eventually(10*time.Second, "a stopped sandbox is deleted after AutoDelete", func() error {
		if _, err := client.Get(c.ctx, sb.ID()); !errors.Is(err, daytona.ErrNotFound) {
			return fmt.Errorf("Get: %v, want not found", err)
		}
		return nil
	})
	c.nothingLeft("after AutoDelete")
}

func checkDelete(c *env) {
	client := c.open()
	for _, stopped := range []bool{false, true} {
		sb, err := client.Create(c.ctx, c.spec())
		c.try("create", err)
		again, err := client.Get(c.ctx, sb.ID())
		c.try("get", err)
		c.try("write", sb.FileSystem().WriteFile(c.ctx, "f", []byte("x"), 0))
		if stopped {
			c.try("stop", sb.Stop(c.ctx, nil))
		}
		c.try("delete", sb.Delete(c.ctx))
		c.wantKind("delete again", again.Delete(c.ctx), daytona.KindNotFound)
		_, err = again.Refresh(c.ctx)
		c.wantKind("refresh of a deleted sandbox", err, daytona.KindNotFound)
		c.wantKind("start of a deleted sandbox", again.Start(c.ctx), daytona.KindNotFound)
		c.wantKind("stop of a deleted sandbox", again.Stop(c.ctx, nil), daytona.KindNotFound)
		_, err = again.Process().Exec(c.ctx, "echo x", nil)
		c.wantKind("exec in a deleted sandbox", err, daytona.KindNotFound)
		_, err = again.FileSystem().ReadFile(c.ctx, "f")
		c.wantKind("read in a deleted sandbox", err, daytona.KindNotFound)
		c.nothingLeft("after Delete")
	}
}

func checkUnknownID(c *env) {
	c.open()
	for _, id := range []string{"no-such-sandbox", "", "../../etc", "a/b"} {
		_, err := c.backend.Start(c.ctx, id)
		c.wantKind(fmt.Sprintf("Start(%q)", id), err, daytona.KindNotFound)
		_, err = c.backend.Stop(c.ctx, id, daytona.StopOptions{})
		c.wantKind(fmt.Sprintf("Stop(%q)", id), err, daytona.KindNotFound)
		c.wantKind(fmt.Sprintf("Delete(%q)", id), c.backend.Delete(c.ctx, id), daytona.KindNotFound)
		tb := c.backend.Connect(id)
		_, err = tb.Process().Exec(c.ctx, "echo", nil)
		c.wantKind(fmt.Sprintf("Exec through Connect(%q)", id), err, daytona.KindNotFound)
		tb.Close()
	}
}

func checkToolboxStates(c *env) {
	sb := c.create()
	tb := sb.Toolbox()
	c.try("write", tb.FileSystem().WriteFile(c.ctx, "f", []byte("x"), 0))
	c.try("stop", sb.Stop(c.ctx, nil))
	begin := time.Now()
	other := c.backend.Connect(sb.ID())
	if d := time.Since(begin); d > time.Second {
		c.Errorf("Connect took %v, it must not block", d)
	}
	for _, tb := range []daytona.Toolbox{tb, other} {
		_, err := tb.FileSystem().ReadFile(c.ctx, "f")
		c.wantKind("ReadFile in a stopped sandbox", err, daytona.KindState)
		_, err = tb.Process().Exec(c.ctx, "echo", nil)
		c.wantKind("Exec in a stopped sandbox", err, daytona.KindState)
		_, err = tb.Process().StartCommand(c.ctx, daytona.CommandSpec{Args: []string{"true"}})
		c.wantKind("StartCommand in a stopped sandbox", err, daytona.KindState)
		_, err = tb.WorkDir(c.ctx)
		c.wantKind("WorkDir in a stopped sandbox", err, daytona.KindState)
		_, err = tb.DialPort(c.ctx, 80)
		c.wantKind("DialPort in a stopped sandbox", err, daytona.KindState)
	}
	c.try("start", sb.Start(c.ctx))
	for _, tb := range []daytona.Toolbox{tb, other} {
		b, err := tb.FileSystem().ReadFile(c.ctx, "f")
		c.try("the same Toolbox works after a Stop and a Start", err)
		equal(c, "content", string(b), "x")
	}
	c.try("close a toolbox", other.Close())
	equal(c, "a command after another toolbox was closed", c.sh(sb, "echo ok"), "ok")
}

func checkSeparateSandboxes(c *env) {
	a, b := c.create(), c.create()
	if a.ID() == b.ID() || a.Name() == b.Name() {
		c.Fatalf("two sandboxes with ids %s, %s and names %s, %s", a.ID(), b.ID(), a.Name(), b.Name())
	}
	for _, p := range []string{"secret", "/tmp/secret"} {
		c.try("write", a.FileSystem().WriteFile(c.ctx, p, []byte("a's"), 0))
		_, err := b.FileSystem().ReadFile(c.ctx, p)
		c.wantKind("read another sandbox's "+p, err, daytona.KindNotFound)
	}
	c.try("delete", a.Delete(c.ctx))
	equal(c, "a command after the other sandbox was deleted", c.sh(b, "echo ok"), "ok")
}

func checkCreateCancelled(c *env) {
	client := c.open()
	ctx, cancel := context.WithCancel(c.ctx)
	cancel()
	if sb, err := client.Create(ctx, c.spec()); err == nil {
		c.Errorf("create with a context cancelled beforehand made %s", sb.ID())
		c.discard(sb)
	} else if !errors.Is(err, context.Canceled) {
		c.Errorf("create with a cancelled context: %v, want an error that is context.Canceled", err)
	}
	c.nothingLeft("after a create with a cancelled context")

	begin := time.Now()
	sb, err := client.Create(c.ctx, c.spec())
	c.try("create", err)
	whole := time.Since(begin)
	c.try("delete", sb.Delete(c.ctx))
	// Cancel at sixteen moments spread over the time that a create takes.
	const rounds = 16
	cancelled := 0
	for i := range rounds {
		ctx, cancel := context.WithTimeout(c.ctx, whole*time.Duration(i)/rounds+time.Microsecond)
		sb, err := client.Create(ctx, c.spec(named("cancelled")))
		cancel()
		if err == nil {
			c.try("a sandbox whose Create returned in time works", c.within(10*time.Second, func() error {
				_, err := sb.Process().Exec(c.ctx, "echo", nil)
				return err
			}))
			c.try("delete", sb.Delete(c.ctx))
			continue
		}
		cancelled++
		if !errors.Is(err, context.DeadlineExceeded) {
			c.Errorf("create cancelled after %d/%d of its time: %v, want an error that is context.DeadlineExceeded", i, rounds, err)
		}
		if l := c.list(c.backend, daytona.Filter{}); len(l) > 0 {
			c.Errorf("a cancelled create left a sandbox in the list: %+v", l[0])
		}
	}
	c.Logf("%d of %d creates were cancelled", cancelled, rounds)
	c.nothingLeft("after cancelled creates")
	c.create(named("cancelled"))
}

func checkCloseDeletes(c *env) {
	c.state = c.TempDir()
	b, err := c.h.Open(c.ctx, c.state)
	c.try("open", err)
	client := daytona.New(b)
	_, err = client.Create(c.ctx, c.spec(named("runs")))
	c.try("create", err)
	sb, err := client.Create(c.ctx, c.spec(named("stopped")))
	c.try("create", err)
	c.try("stop", sb.Stop(c.ctx, nil))
	c.try("close", c.within(30*time.Second, client.Close))
	c.noLeftovers("after Close")
	if !c.has(Persistence) {
		return
	}
	c.open()
	c.nothingLeft("in a new backend on the state of a closed one")
	c.create(named("runs"))
}

func checkCloseTwice(c *env) {
	c.state = c.TempDir()
	b, err := c.h.Open(c.ctx, c.state)
	c.try("open", err)
	client := daytona.New(b)
	sb, err := client.Create(c.ctx, c.spec())
	c.try("create", err)
	c.try("close", c.within(30*time.Second, client.Close))
	c.try("close again", c.within(5*time.Second, client.Close))
	// What happens to calls on a closed backend is not specified beyond this:
	// they return, with an error.
	if _, err := client.Create(c.ctx, c.spec()); err == nil {
		c.Error("create on a closed backend gave no error")
	}
	if _, err := sb.Process().Exec(c.ctx, "echo", nil); err == nil {
		c.Error("exec in a sandbox of a closed backend gave no error")
	}
}

func checkAdoption(c *env) {
	c.state = c.TempDir()
	b, err := c.h.Open(c.ctx, c.state)
	c.try("open", err)
	first := daytona.New(b)
	rich := c.spec(named("kept"), persistent, func(s *daytona.Spec) {
		s.Env["E"] = "v"
		s.Labels["l"] = "v"
	})
	running, err := first.Create(c.ctx, rich)
	c.try("create", err)
	stopped, err := first.Create(c.ctx, c.spec(named("kept-stopped"), persistent))
	c.try("create", err)
	for _, sb := range []daytona.Sandbox{running, stopped} {
		c.try("write", sb.FileSystem().WriteFile(c.ctx, "f", []byte(sb.Name()), 0))
	}
	c.try("stop", stopped.Stop(c.ctx, nil))
	want := running.Info()
	c.try("close", c.within(30*time.Second, first.Close))

	second := c.open()
	got, err := second.Get(c.ctx, "kept")
	c.try("get a persistent sandbox from a second backend", err)
	info := got.Info()
	equal(c, "ID", info.ID, want.ID)
	equal(c, "State", info.State, daytona.StateStarted)
	equal(c, "Persistent", info.Persistent, true)
	equal(c, "Labels", info.Labels["l"], "v")
	equal(c, "Env", info.Env["E"], "v")
	equal(c, "User", info.User, want.User)
	equal(c, "WorkDir", info.WorkDir, want.WorkDir)
	equal(c, "Resources", info.Resources, want.Resources)
	equal(c, "CreatedAt is kept", info.CreatedAt.Equal(want.CreatedAt), true)
	data, err := got.FileSystem().ReadFile(c.ctx, "f")
	c.try("read", err)
	equal(c, "content", string(data), "kept")
	equal(c, "variable of an adopted sandbox", c.sh(got, "printenv E"), "v")
	got2, err := second.Get(c.ctx, "kept-stopped")
	c.try("get", err)
	equal(c, "State", got2.Info().State, daytona.StateStopped)
	c.try("start an adopted sandbox", got2.Start(c.ctx))
	data, err = got2.FileSystem().ReadFile(c.ctx, "f")
	c.try("read", err)
	equal(c, "content", string(data), "kept-stopped")
	_, err = second.Create(c.ctx, c.spec(named("kept")))
	c.wantKind("create with the name of an adopted sandbox", err, daytona.KindConflict)
	c.try("delete", got.Delete(c.ctx))
	c.try("delete", got2.Delete(c.ctx))
	c.nothingLeft("after adopted sandboxes are deleted")
}

// counter counts in a file, with its process id, for ever.
const counter = `sh -c 'i=0; while :; do i=$((i+1)); echo "$i $$" > counter.new && mv -f counter.new counter; sleep 0.05; done'`

// count reads the counter's file.
func (c *env) count(sb daytona.Sandbox) (n, pid int, err error) {
	b, err := sb.FileSystem().ReadFile(c.ctx, "counter")
	if err == nil {
		_, err = fmt.Sscan(string(b), &n, &pid)
	}
	return n, pid, err
}

// wantCounting demands that the counter runs on as process pid, beyond from.
func (c *env) wantCounting(sb daytona.Sandbox, from, pid int) {
	c.Helper()
	for range 2 {
		var n, p int
		c.eventually(10*time.Second, "the counting process of "+sb.Name()+" goes on", func() (err error) {
			if n, p, err = c.count(sb); err == nil && n <= from {
				err = fmt.Errorf("it stands at %d, it was at %d", n, from)
			}
			return err
		})
		if pid != 0 && p != pid {
			c.Errorf("the counting process has pid %d, it had %d: it was interrupted", p, pid)
		}
		from = n
	}
}

func checkAdoptionOfProcesses(c *env) {
	c.state = c.TempDir()
	b, err := c.h.Open(c.ctx, c.state)
	c.try("open", err)
	first := daytona.New(b)
	sb, err := first.Create(c.ctx, c.spec(named("counts"), persistent))
	c.try("create", err)
	c.startInBackground(sb, counter)
	var n, pid int
	c.eventually(10*time.Second, "the counter counts", func() (err error) { n, pid, err = c.count(sb); return err })
	c.try("close", c.within(30*time.Second, first.Close))
	got, err := c.open().Get(c.ctx, "counts")
	c.try("get", err)
	c.Cleanup(func() { c.discard(got) })
	c.wantCounting(got, n, pid)
}

// checkSecondBackend has two backends open on one state, as two processes of
// one machine may.
func checkSecondBackend(c *env) {
	first := c.open()
	own, err := first.Create(c.ctx, c.spec(named("own")))
	c.try("create", err)
	kept, err := first.Create(c.ctx, c.spec(named("shared"), persistent))
	c.try("create", err)
	second := c.reopen()
	got, err := second.Get(c.ctx, "shared")
	c.try("get from the second backend", err)
	equal(c, "a command through the second backend", c.sh(got, "echo hi"), "hi")
	_, err = second.Create(c.ctx, c.spec(named("shared")))
	c.wantKind("create in the second backend with a name taken in the first", err, daytona.KindConflict)
	theirs, err := second.Create(c.ctx, c.spec(named("theirs")))
	c.try("create in the second backend", err)
	_, err = first.Create(c.ctx, c.spec(named("theirs")))
	c.wantKind("create in the first backend with a name taken in the second", err, daytona.KindConflict)
	c.try("close the second backend", c.within(30*time.Second, second.Close))
	_, err = first.Get(c.ctx, theirs.ID())
	c.wantKind("get a sandbox of the closed second backend", err, daytona.KindNotFound)
	equal(c, "a sandbox of the first backend after the second was closed", c.sh(own, "echo own"), "own")
	equal(c, "a persistent one", c.sh(kept, "echo kept"), "kept")
	c.try("delete", kept.Delete(c.ctx))
	c.try("delete", own.Delete(c.ctx))
	c.nothingLeft("after two backends")
}

func checkParallel(c *env) {
	client := c.open()
	const n = 20
	var wg sync.WaitGroup
	errs := make([]error, n)
	for i := range n {
		wg.Go(func() {
			errs[i] = func() error {
				sb, err := client.Create(c.ctx, c.spec(named(fmt.Sprintf("p%d", i))))
				if err != nil {
					return err
				}
				if err := sb.FileSystem().WriteFile(c.ctx, "who", []byte(sb.ID()), 0); err != nil {
					return err
				}
				r, err := sb.Process().Exec(c.ctx, "cat who", nil)
				if err != nil {
					return err
				}
				if r.Output != sb.ID() {
					return fmt.Errorf("sandbox %s printed %q, want its id", sb.ID(), r.Output)
				}
				return sb.Delete(c.ctx)
			}()
		})
	}
	wg.Wait()
	c.try("20 sandboxes in parallel", errors.Join(errs...))
	c.nothingLeft("after 20 sandboxes in parallel")
}

// checkRacingOperations lets operations on one sandbox collide. Each may be
// refused with a typed error; none may hang, panic or leave the sandbox in a
// state that it does not come out of.
func checkRacingOperations(c *env) {
	client := c.open()
	for round := range 4 {
		sb, err := client.Create(c.ctx, c.spec(named("racing")))
		c.try("create", err)
		var wg sync.WaitGroup
		ops := []func() error{
			func() error { return sb.Stop(c.ctx, nil) },
			func() error { return sb.Start(c.ctx) },
			func() error { _, err := sb.Process().Exec(c.ctx, "echo x", nil); return err },
			func() error { return sb.Stop(c.ctx, &daytona.StopOptions{Force: true}) },
			func() error { return sb.FileSystem().WriteFile(c.ctx, "x", nil, 0) },
			func() error { _, err := sb.Refresh(c.ctx); return err },
		}
		deletes := make([]error, 2)
		if round%2 == 1 {
			for i := range deletes {
				wg.Go(func() { deletes[i] = sb.Delete(c.ctx) })
			}
		}
		for i, op := range ops {
			wg.Go(func() {
				switch err := op(); daytona.KindOf(err) {
				case "", daytona.KindState, daytona.KindNotFound, daytona.KindConflict, daytona.KindUnavailable, daytona.KindGone:
				default:
					c.Errorf("operation %d of a race: %v (kind %s)", i, err, daytona.KindOf(err))
				}
			})
		}
		c.try("racing operations", c.within(40*time.Second, func() error { wg.Wait(); return nil }))
		if round%2 == 1 {
			won := 0
			for _, err := range deletes {
				switch daytona.KindOf(err) {
				case "":
					won++
				case daytona.KindNotFound, daytona.KindConflict:
				default:
					c.Errorf("delete in a race: %v", err)
				}
			}
			equal(c, "number of racing deletes that succeeded", won, 1)
		} else {
			c.try("start after a race", sb.Start(c.ctx))
			equal(c, "a command after a race", c.sh(sb, "echo ok"), "ok")
			c.try("delete", sb.Delete(c.ctx))
		}
		c.nothingLeft("after a race")
	}
}

func checkEntrypoint(c *env) {
	sb := c.create(func(s *daytona.Spec) {
		s.Entrypoint = []string{"sh", "-c", `echo "it says $GREETING"; echo up > up; exec sleep 8765`}
		s.Env["GREETING"] = "hello"
	})
	c.waitForFile(sb, "up")
	equalList(c, "Info.Entrypoint", sb.Info().Entrypoint[:2], []string{"sh", "-c"})
	s, err := sb.Process().Session(c.ctx, "entrypoint")
	c.try("the session entrypoint", err)
	cmds, err := s.Commands(c.ctx)
	c.try("its commands", err)
	if len(cmds) != 1 {
		c.Fatalf("%d commands in session entrypoint, want 1", len(cmds))
	}
	cmd, err := s.Command(c.ctx, cmds[0].ID)
	c.try("its command", err)
	c.eventually(5*time.Second, "the entrypoint's log", func() error {
		out, _, err := cmd.Logs(c.ctx)
		if err == nil && out != "it says hello\n" {
			err = fmt.Errorf("it is %q", out)
		}
		return err
	})
	if _, err := s.Run(c.ctx, "echo"); err == nil {
		c.Error("a command was run in session entrypoint, which can only be read")
	}
	c.try("stop", sb.Stop(c.ctx, &daytona.StopOptions{Force: true}))
	c.try("start", sb.Start(c.ctx))
	c.awaitProcess(10*time.Second, "the entrypoint runs again after a start", sb, "sleep 8765")
	brief := c.create(func(s *daytona.Spec) { s.Entrypoint = []string{"true"} })
	equal(c, "a command after the entrypoint has ended", c.sh(brief, "echo alive"), "alive")
}
