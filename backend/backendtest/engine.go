package backendtest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
)

// Engine is a daemon that a backend drives, made to be killed: one of the
// test's own, which the Harness's Open connects to.
type Engine interface {
	// Kill is SIGKILL. It returns when the daemon is gone.
	Kill()
	// Start starts it again, and returns when it answers.
	Start()
}

// RunEngineCrash kills the daemon behind a backend in the middle of operations
// and starts it again: nothing may be lost, nothing may be left, and nothing may
// wait for ever. It is for backends that drive one; the Harness must be for the
// engine given, and have Persistence.
func RunEngineCrash(t *testing.T, h *Harness, e Engine) {
	runChecks(t, h, "engine", []check{{name: "E01_EngineKilled", limit: 3 * time.Minute, run: func(c *env) { checkEngineKilled(c, e) }}})
}

func checkEngineKilled(c *env, e Engine) {
	const seed = 20261125
	rng := rand.New(rand.NewPCG(seed, 3))
	client := c.open()
	create := func(ctx context.Context, name string) (daytona.Sandbox, error) {
		return client.Create(ctx, c.spec(func(s *daytona.Spec) { s.Name, s.User, s.Persistent = name, "root", true }))
	}
	bystander, err := create(c.ctx, "bystander")
	c.try("create the bystander", err)
	c.try("write", bystander.FileSystem().WriteFile(c.ctx, "kept", []byte("kept"), 0))
	// usable demands of a sandbox that it is in one of the two states that last,
	// and works.
	usable := func(sb daytona.Sandbox) error {
		info, err := sb.Refresh(c.ctx)
		if err != nil {
			return err
		}
		if info.State != daytona.StateStarted && info.State != daytona.StateStopped {
			return fmt.Errorf("%s is %s (%s)", info.Name, info.State, info.Reason)
		}
		if err := sb.Start(c.ctx); err != nil {
			return err
		}
		return sb.FileSystem().WriteFile(c.ctx, "written", []byte("x"), 0)
	}
	// About what each takes.
	took := map[string]time.Duration{"create": 400 * time.Millisecond, "stop": 150 * time.Millisecond, "delete": 150 * time.Millisecond, "start": 300 * time.Millisecond}
	for round, op := range []string{"create", "stop", "delete", "create", "start", "delete"} {
		victim, err := create(c.ctx, fmt.Sprintf("victim-%d", round))
		c.try(fmt.Sprintf("round %d: create the victim", round), err)
		c.try("write", victim.FileSystem().WriteFile(c.ctx, "mine", []byte(op), 0))
		if op == "start" {
			c.try("stop", victim.Stop(c.ctx, nil))
		}
		ended := make(chan error, 1)
		go func() {
			switch op {
			case "create":
				_, err := create(c.ctx, fmt.Sprintf("made-%d", round))
				ended <- err
			case "stop":
				ended <- victim.Stop(c.ctx, &daytona.StopOptions{Force: true})
			case "delete":
				ended <- victim.Delete(c.ctx)
			case "start":
				ended <- victim.Start(c.ctx)
			}
		}()
		delay := time.Duration(rng.Int64N(int64(took[op])))
		time.Sleep(delay) // the moment of the blow
		e.Kill()
		begin := time.Now()
		select {
		case err = <-ended:
		case <-time.After(30 * time.Second):
			c.Fatalf("round %d: %s goes on without an engine", round, op)
		}
		c.Logf("round %d: the engine was killed %v into %s, which took another %v and gave %v", round, delay, op, time.Since(begin).Round(time.Millisecond), err)
		if e, ok := errors.AsType[*daytona.Error](err); err != nil && (!ok || e.Kind == "" || e.Kind == daytona.KindInternal) {
			c.Errorf("round %d: the error of %s has no kind: %v", round, op, err)
		}
		// What cannot be done is not answered as if it were.
		if _, err := create(c.ctx, fmt.Sprintf("impossible-%d", round)); !errors.Is(err, daytona.ErrUnavailable) {
			c.Errorf("create without an engine: %v, want it unavailable", err)
		}
		if err := bystander.Stop(c.ctx, &daytona.StopOptions{Force: true}); round == 0 && err != nil && !errors.Is(err, daytona.ErrUnavailable) {
			c.Errorf("stop without an engine: %v, want it done or unavailable", err)
		}
		e.Start()

		c.eventually(30*time.Second, "the bystander works", func() error { return usable(bystander) })
		if b, err := bystander.FileSystem().ReadFile(c.ctx, "kept"); err != nil || string(b) != "kept" {
			c.Errorf("round %d: the bystander's file: %q, %v", round, b, err)
		}
		_, err = client.Get(c.ctx, victim.ID())
		if op == "delete" {
			c.eventually(30*time.Second, "what was half deleted is gone", func() error {
				if _, err := client.Get(c.ctx, victim.ID()); !errors.Is(err, daytona.ErrNotFound) {
					return fmt.Errorf("get: %v", err)
				}
				return nil
			})
		} else if err != nil {
			c.Errorf("round %d: the victim is lost: %v", round, err)
		}
		for sb, err := range client.List(c.ctx, nil) {
			c.try("list", err)
			if sb.ID() == bystander.ID() {
				continue
			}
			if !c.eventually(30*time.Second, sb.Info().Name+" works", func() error { return usable(sb) }) {
				return
			}
			if sb.ID() == victim.ID() {
				if b, err := sb.FileSystem().ReadFile(c.ctx, "mine"); err != nil || string(b) != op {
					c.Errorf("round %d: the victim's file: %q, %v", round, b, err)
				}
			}
			c.try(fmt.Sprintf("round %d: delete %s", round, sb.Info().Name), sb.Delete(c.ctx))
		}
	}
	c.try("delete the bystander", bystander.Delete(c.ctx))
	c.nothingLeft("after the last delete")
}
