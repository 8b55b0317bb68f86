package backendtest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
)

// RunCrash kills processes that own sandboxes with SIGKILL, at every phase of
// a sandbox's life and at random moments, and demands of the next backend on
// the same state that it owns or has reaped every trace. The package's
// TestMain must call [Main].
func RunCrash(t *testing.T, h *Harness) {
	if !mainRuns.Load() {
		t.Fatal("RunCrash starts the test binary again: let TestMain call backendtest.Main")
	}
	runChecks(t, h, "crash", crashChecks())
}

func crashChecks() []check {
	return []check{
		{name: "C01_OwnerKilled", run: checkOwnerKilled},
		{name: "C02_Adoption", needs: []Capability{Persistence, Shell, Sessions}, run: checkKilledAdoption},
		{name: "C03_EveryPhase", limit: 3 * time.Minute, run: checkEveryPhase},
		{name: "C04_Bystander", needs: []Capability{Persistence}, run: checkBystander},
	}
}

// ownerArg as the test binary's only flag turns it into an owner.
const ownerArg = "daytona-backendtest-owner"

// mainRuns says that Main is what runs the tests, without which the copy that
// newOwner starts would run all tests again, and so on.
var mainRuns atomic.Bool

// owner is a process that owns sandboxes, made to be killed.
type owner struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

// request and response are the lines of JSON between suite and owner.
type request struct {
	Op         string // "create", "stop", "background", "count", "loop"
	Name       string
	ID         string
	Line       string
	Persistent bool
	Seed       uint64
}

type response struct {
	ID    string
	Phase string // a loop is about to do this
	Err   string
}

// newOwner starts an owner on the check's state.
func (c *env) newOwner() *owner {
	c.Helper()
	cmd := exec.Command(os.Args[0], ownerArg, c.state)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	c.try("pipe", err)
	out, err := cmd.StdoutPipe()
	c.try("pipe", err)
	c.try("start an owner process", cmd.Start())
	o := &owner{cmd, in, bufio.NewScanner(out)}
	c.Cleanup(o.kill)
	return o
}

// kill is SIGKILL: the owner gets no chance to do anything more.
func (o *owner) kill() {
	if o.cmd.ProcessState == nil {
		_ = o.cmd.Process.Kill()
		_, _ = o.cmd.Process.Wait()
		o.in.Close()
	}
}

func (o *owner) send(r request) error { return json.NewEncoder(o.in).Encode(r) }

func (o *owner) receive() (response, error) {
	var r response
	if !o.out.Scan() {
		return r, fmt.Errorf("the owner process has ended: %w", errors.Join(o.out.Err(), io.EOF))
	}
	if err := json.Unmarshal(o.out.Bytes(), &r); err != nil {
		return r, err
	}
	if r.Err != "" {
		return r, errors.New(r.Err)
	}
	return r, nil
}

// ask has the owner do something.
func (c *env) ask(o *owner, r request) response {
	c.Helper()
	var got response
	c.try("owner: "+r.Op, c.within(30*time.Second, func() (err error) {
		if err = o.send(r); err == nil {
			got, err = o.receive()
		}
		return err
	}))
	return got
}

// ownerMain is the owner's side.
func ownerMain(h *Harness, state string) int {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	answers := json.NewEncoder(os.Stdout)
	fail := func(err error) bool {
		if err != nil {
			_ = answers.Encode(response{Err: err.Error()})
		}
		return err != nil
	}
	b, err := h.Open(ctx, state)
	if fail(err) {
		return 1
	}
	client := daytona.New(b)
	create := func(name string, persistent bool) (daytona.Sandbox, error) {
		spec := h.Spec
		spec.Name, spec.Persistent = name, persistent
		return client.Create(ctx, spec)
	}
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		var r request
		if fail(json.Unmarshal(in.Bytes(), &r)) {
			return 1
		}
		var id string
		err := func() error {
			if r.Op == "create" {
				sb, err := create(r.Name, r.Persistent)
				if err == nil {
					id = sb.ID()
				}
				return err
			}
			if r.Op == "loop" {
				go func() { // the suite gone, the owner goes
					for in.Scan() {
					}
					os.Exit(0)
				}()
				return ownerLoop(ctx, client, create, answers, r)
			}
			sb, err := client.Get(ctx, r.ID)
			if err != nil {
				return err
			}
			switch r.Op {
			case "stop":
				return sb.Stop(ctx, nil)
			case "count": // until the counter has come to ten
				for n := 0; n < 10; time.Sleep(20 * time.Millisecond) {
					if b, err := sb.FileSystem().ReadFile(ctx, "counter"); err == nil {
						_, _ = fmt.Sscan(string(b), &n)
					}
				}
				return nil
			case "background":
				s, err := sb.Process().CreateSession(ctx, "background")
				if err == nil {
					_, err = s.Start(ctx, r.Line, nil)
				}
				return err
			}
			return fmt.Errorf("unknown request %q", r.Op)
		}()
		if !fail(err) {
			_ = answers.Encode(response{ID: id})
		}
	}
	// The suite has gone without killing this process.
	_ = client.Close()
	return 0
}

var phases = []string{"create", "exec", "write", "stop", "start", "exec again", "delete"}

// ownerLoop goes through the life of sandboxes until it is killed, and says
// each step before it takes it.
func ownerLoop(ctx context.Context, client *daytona.Client, create func(string, bool) (daytona.Sandbox, error), answers *json.Encoder, r request) error {
	rng := rand.New(rand.NewPCG(r.Seed, 1))
	for n := 0; ; n++ {
		var sb daytona.Sandbox
		persistent := r.Persistent && rng.IntN(2) == 0
		for _, phase := range phases {
			if err := answers.Encode(response{Phase: phase}); err != nil {
				return err
			}
			var err error
			switch phase {
			case "create":
				sb, err = create(fmt.Sprintf("loop-%d-%d", r.Seed, n), persistent)
			case "exec", "exec again":
				err = sb.Process().Command(ctx, "true").Run()
			case "write":
				err = sb.FileSystem().WriteFile(ctx, "written", []byte("whole"), 0)
			case "stop":
				err = sb.Stop(ctx, &daytona.StopOptions{Force: rng.IntN(2) == 0})
			case "start":
				err = sb.Start(ctx)
			case "delete":
				err = sb.Delete(ctx)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", phase, err)
			}
		}
	}
}

func checkOwnerKilled(c *env) {
	c.state = c.TempDir()
	o := c.newOwner()
	running := c.ask(o, request{Op: "create", Name: "mine"})
	stopped := c.ask(o, request{Op: "create", Name: "mine-stopped"})
	c.ask(o, request{Op: "stop", ID: stopped.ID})
	o.kill()
	c.open()
	c.eventually(15*time.Second, "the sandboxes of a killed owner are gone", func() error {
		for _, id := range []string{running.ID, stopped.ID} {
			if _, err := c.backend.Get(c.ctx, id); !errors.Is(err, daytona.ErrNotFound) {
				return fmt.Errorf("Get(%s): %v, want not found", id, err)
			}
		}
		return nil
	})
	c.nothingLeft("after an owner was killed")
	sb := c.create(named("mine"))
	equal(c, "a sandbox with the name of one that was reaped", c.sh(sb, "echo ok"), "ok")
}

func checkKilledAdoption(c *env) {
	c.state = c.TempDir()
	o := c.newOwner()
	kept := c.ask(o, request{Op: "create", Name: "kept", Persistent: true})
	c.ask(o, request{Op: "create", Name: "lost"})
	c.ask(o, request{Op: "background", ID: kept.ID, Line: counter})
	c.ask(o, request{Op: "count", ID: kept.ID})
	stopped := c.ask(o, request{Op: "create", Name: "kept-stopped", Persistent: true})
	c.ask(o, request{Op: "stop", ID: stopped.ID})
	o.kill()

	client := c.open()
	sb, err := client.Get(c.ctx, "kept")
	c.try("get a persistent sandbox of a killed owner", err)
	equal(c, "ID", sb.ID(), kept.ID)
	equal(c, "State", sb.Info().State, daytona.StateStarted)
	var n, pid int
	c.eventually(10*time.Second, "the counter counts", func() (err error) { n, pid, err = c.count(sb); return err })
	if n < 10 {
		c.Errorf("the counter stands at %d, it was at 10: it has been started anew", n)
	}
	c.wantCounting(sb, n, pid)
	equal(c, "a command in an adopted sandbox", c.sh(sb, "echo ok"), "ok")
	again, err := client.Get(c.ctx, "kept-stopped")
	c.try("get", err)
	equal(c, "State", again.Info().State, daytona.StateStopped)
	c.try("start", again.Start(c.ctx))
	c.eventually(15*time.Second, "the sandbox that is not persistent is gone", func() error {
		if _, err := client.Get(c.ctx, "lost"); !errors.Is(err, daytona.ErrNotFound) {
			return fmt.Errorf("Get: %v, want not found", err)
		}
		return nil
	})
	// A second crash, of a process that had adopted and not created.
	o = c.newOwner()
	c.ask(o, request{Op: "create", Name: "lost"})
	o.kill()
	n, _, err = c.count(sb)
	c.try("count", err)
	c.wantCounting(sb, n, pid)
	c.try("delete", sb.Delete(c.ctx))
	c.try("delete", again.Delete(c.ctx))
	third := c.reopen()
	c.eventually(15*time.Second, "what the second owner had is gone", func() error {
		if _, err := third.Get(c.ctx, "lost"); !errors.Is(err, daytona.ErrNotFound) {
			return fmt.Errorf("Get: %v, want not found", err)
		}
		return nil
	})
	c.nothingLeft("after two crashes")
}

// checkEveryPhase kills owners of one state again and again, each time at a
// moment within one phase of a sandbox's life. The moments are drawn from a
// seed that is logged.
func checkEveryPhase(c *env) {
	c.state = c.TempDir()
	const seed = 20260701
	rng := rand.New(rand.NewPCG(seed, 2))
	c.Logf("seed %d", seed)
	begin := time.Now()
	budget := c.slow(25 * time.Second)
	took := map[string]time.Duration{}
	rounds, adopted := 0, 0
	for time.Since(begin) < budget && !c.Failed() {
		for _, phase := range phases {
			if time.Since(begin) > budget || c.Failed() {
				break
			}
			rounds++
			o := c.newOwner()
			c.try("loop", o.send(request{Op: "loop", Persistent: c.has(Persistence), Seed: uint64(rounds)}))
			// Let one whole life pass in the first rounds, to know how long
			// each phase takes; then strike in the phase's course.
			lives := rng.IntN(2)
			if len(took) < len(phases) {
				lives = 1
			}
			c.try("phase "+phase, c.within(30*time.Second, func() error {
				var last string
				var at time.Time
				for {
					r, err := o.receive()
					if err != nil {
						return err
					}
					if last != "" {
						took[last] = max(time.Since(at), 100*time.Microsecond)
					}
					last, at = r.Phase, time.Now()
					if r.Phase == phase {
						if lives == 0 {
							return nil
						}
						lives--
					}
				}
			}))
			delay := time.Duration(rng.Int64N(int64(max(took[phase], time.Millisecond) * 5 / 4)))
			time.Sleep(delay) // the moment of the blow
			o.kill()
			adopted += c.recover(fmt.Sprintf("round %d, killed %v into %s", rounds, delay, phase))
		}
	}
	c.Logf("%d owners killed in %v, %d persistent sandboxes adopted, phases took %v", rounds, time.Since(begin).Round(time.Millisecond), adopted, took)
}

// recover opens a backend after a crash, demands order, and returns how many
// persistent sandboxes there were.
func (c *env) recover(when string) int {
	c.Helper()
	b, err := c.h.Open(c.ctx, c.state)
	if err != nil {
		c.Fatalf("%s: open a backend: %v", when, err)
	}
	client := daytona.New(b)
	c.backend = b
	defer func() {
		c.backend = nil
		if err := c.within(30*time.Second, client.Close); err != nil {
			c.Errorf("%s: close: %v", when, err)
		}
	}()
	c.eventually(15*time.Second, when+": only usable persistent sandboxes are left", func() error {
		for _, i := range c.list(b, daytona.Filter{}) {
			if !i.Persistent {
				return fmt.Errorf("%s is still listed (%s)", i.Name, i.State)
			}
			if !slices.Contains([]daytona.State{daytona.StateStarted, daytona.StateStopped}, i.State) {
				return fmt.Errorf("%s is in state %s (%s)", i.Name, i.State, i.Reason)
			}
		}
		return nil
	})
	n := 0
	for _, i := range c.list(b, daytona.Filter{}) {
		n++
		sb, err := client.Get(c.ctx, i.ID)
		c.try(when+": get", err)
		c.try(when+": start an adopted sandbox", sb.Start(c.ctx))
		if r, err := sb.Process().Exec(c.ctx, "echo ok", nil); err != nil || r.Output != "ok\n" {
			c.Fatalf("%s: a command in %s: %+v, %v", when, i.Name, r, err)
		}
		if b, err := sb.FileSystem().ReadFile(c.ctx, "written"); err == nil && string(b) != "whole" {
			c.Errorf("%s: a file is half-written: %q", when, b)
		}
		c.try(when+": delete", sb.Delete(c.ctx))
		_, err = client.Create(c.ctx, c.spec(named(i.Name)))
		c.try(when+": create with its name", err)
		again, err := client.Get(c.ctx, i.Name)
		c.try(when+": get", err)
		c.try(when+": delete", again.Delete(c.ctx))
	}
	c.nothingLeft(when)
	return n
}

// checkBystander has a backend open while the owner beside it is killed.
func checkBystander(c *env) {
	c.state = c.TempDir()
	sb := c.create(named("bystander"))
	for range 3 {
		o := c.newOwner()
		r := c.ask(o, request{Op: "create", Name: "owned"})
		equal(c, "the bystander's own sandbox", c.sh(sb, "echo ok"), "ok")
		o.kill()
		other := c.reopen()
		c.eventually(15*time.Second, "the killed owner's sandbox is gone", func() error {
			for _, cl := range []*daytona.Client{other, c.client} {
				if _, err := cl.Get(c.ctx, r.ID); !errors.Is(err, daytona.ErrNotFound) {
					return fmt.Errorf("Get: %v, want not found", err)
				}
			}
			return nil
		})
		equal(c, "the bystander's sandbox after the crash", c.sh(sb, "echo ok"), "ok")
		c.try("close", c.within(30*time.Second, other.Close))
		equal(c, "the bystander's sandbox after another backend closed", c.sh(sb, "echo ok"), "ok")
	}
	c.try("delete", sb.Delete(c.ctx))
	c.nothingLeft("after crashes beside an open backend")
}
