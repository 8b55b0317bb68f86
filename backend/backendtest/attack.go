package backendtest

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
)

// attackPackage is the program that the suite runs inside.
const attackPackage = "github.com/daytona-go/daytona/backend/backendtest/attacker"

// attackerPath is where the suite puts it. Hostile images bring it with them
// under the same path.
const attackerPath = "/tmp/attacker"

// attackerBinary is built once a test run, on first use: the build takes
// longer than most checks.
var attackerBinary struct {
	once sync.Once
	dir  string
	err  error
}

// attacker returns the path of the built attacker on the host. It skips where
// there is no Go toolchain.
func attacker(t testing.TB) string {
	t.Helper()
	goTool, err := exec.LookPath("go")
	if err != nil {
		t.Skipf("the security suite builds its attacker with the Go toolchain: %v", err)
	}
	a := &attackerBinary
	a.once.Do(func() {
		if a.dir, a.err = os.MkdirTemp("", "daytona-attacker-"); a.err != nil {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, goTool, "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(a.dir, "attacker"), attackPackage)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux")
		if out, err := cmd.CombinedOutput(); err != nil {
			a.err = fmt.Errorf("build %s: %w: %s", attackPackage, err, out)
		}
	})
	if a.err != nil {
		t.Fatal(a.err)
	}
	return filepath.Join(a.dir, "attacker")
}

// removeAttacker deletes what attacker built.
func removeAttacker() {
	if attackerBinary.dir != "" {
		os.RemoveAll(attackerBinary.dir)
	}
}

// report is what the attacker prints; see its package.
type report struct {
	Attempts []attempt         `json:"attempts"`
	Facts    map[string]string `json:"facts"`
	N        int64             `json:"n"`
}

type attempt struct {
	Name   string `json:"name"`
	Worked bool   `json:"worked"`
	Err    string `json:"err"`
	Detail string `json:"detail"`
}

// installAttacker puts the attacker into a sandbox.
func (c *env) installAttacker(sb daytona.Sandbox) {
	c.Helper()
	f, err := os.Open(attacker(c.T))
	c.try("open the attacker", err)
	defer f.Close()
	_, err = sb.FileSystem().Upload(c.ctx, attackerPath, f)
	c.try("upload the attacker", err)
	c.try("chmod the attacker", sb.FileSystem().Chmod(c.ctx, attackerPath, 0o755))
}

// victim makes a sandbox with the attacker in it.
func (c *env) victim(change ...func(*daytona.Spec)) daytona.Sandbox {
	c.Helper()
	sb := c.create(change...)
	c.installAttacker(sb)
	return sb
}

// attack runs an attack to its end and returns its report.
func (c *env) attack(sb daytona.Sandbox, args ...string) report {
	c.Helper()
	r, err := c.tryAttack(sb, args...)
	if err != nil {
		c.Fatalf("attack %q: %v", args, err)
	}
	return r
}

// tryAttack is attack for those that may be killed.
func (c *env) tryAttack(sb daytona.Sandbox, args ...string) (report, error) {
	cmd := sb.Process().Command(c.ctx, attackerPath, args...)
	cmd.Timeout = c.slow(40 * time.Second)
	out, err := cmd.Output()
	return parseReport(out, err)
}

func parseReport(out []byte, err error) (report, error) {
	var r report
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if jsonErr := json.Unmarshal([]byte(lines[len(lines)-1]), &r); jsonErr != nil && err == nil {
		err = fmt.Errorf("its report %q: %w", clip(string(out)), jsonErr)
	}
	return r, err
}

// running is an attack under way.
type running struct {
	cmd *daytona.Cmd
	r   *bufio.Reader
	// done gets what Wait returns. Wait runs from the start, because the pipe
	// ends only when it has returned.
	done chan error
}

// begin starts an attack and waits for its first line, which says that it is
// under way.
func (c *env) begin(sb daytona.Sandbox, args ...string) (running, string) {
	c.Helper()
	cmd := sb.Process().Command(c.ctx, attackerPath, args...)
	cmd.Timeout = c.slow(40 * time.Second)
	out, err := cmd.StdoutPipe()
	c.try("pipe", err)
	c.try("start", cmd.Start())
	r := running{cmd, bufio.NewReader(out), make(chan error, 1)}
	go func() { r.done <- cmd.Wait() }()
	var line string
	c.try(fmt.Sprintf("attack %q gets under way", args), c.within(30*time.Second, func() error {
		var err error
		if line, err = r.r.ReadString('\n'); err == io.EOF {
			err = nil // it was killed; its end says why
		}
		return err
	}))
	return r, strings.TrimSpace(line)
}

// end waits for an attack that begin started.
func (c *env) end(r running) (report, error) {
	var out []byte
	err := c.within(60*time.Second, func() error {
		out, _ = io.ReadAll(r.r)
		return <-r.done
	})
	return parseReport(out, err)
}

// kill ends an attack that begin started.
func (c *env) kill(r running) {
	_ = r.cmd.Signal(c.ctx, "SIGKILL")
	_, _ = c.end(r)
}

// noneWorked demands that no attempt went through, but those whose name
// begins with one of allowed.
func (c *env) noneWorked(r report, allowed ...string) {
	c.Helper()
	if len(r.Attempts) == 0 {
		c.Errorf("the attack tried nothing: %v", r.Facts)
	}
next:
	for _, a := range r.Attempts {
		for _, p := range allowed {
			if strings.HasPrefix(a.Name, p) {
				continue next
			}
		}
		if a.Worked {
			c.Errorf("%s worked %s %s", a.Name, a.Err, a.Detail)
		}
	}
}

// eachUser repeats an attack as the default user and as root.
func (c *env) eachUser(f func(c *env, sb daytona.Sandbox)) {
	c.open()
	c.sub("default", nil, func(c *env) { f(c, c.victim()) })
	c.sub("root", []Capability{Users}, func(c *env) { f(c, c.victim(func(s *daytona.Spec) { s.User = "0" })) })
}

// inWorkDir makes a path inside the sandbox's working directory absolute.
func (c *env) inWorkDir(sb daytona.Sandbox, name string) string {
	return path.Join(sb.Info().WorkDir, name)
}
