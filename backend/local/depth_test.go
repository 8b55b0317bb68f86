package local

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/failpoint"
)

// TestDepth forks forks of forks, stopped and started ones: their layers are
// merged now and then, and nothing of it is seen inside.
func TestDepth(t *testing.T) {
	if testing.Short() {
		t.Skip("it starts a sandbox 80 times")
	}
	ctx := t.Context()
	e, c := openEngine(t, t.TempDir())
	sb, err := c.Create(ctx, daytona.Spec{User: "root"})
	must(t, err)
	sh(t, sb, `mkdir -p /srv/d/old /srv/gone; echo 1 > /srv/d/old/1; echo x > /srv/gone/x; echo l > /srv/l; ln /srv/l /srv/l2
		rm -rf /var/log; mkdir /var/log; echo mine > /var/log/mine; rm /etc/services; mkfifo -m 640 /srv/p`)
	owner := "0 0"
	if r, err := sb.Process().Exec(ctx, "chown 1234:5 /srv/l", nil); err == nil && r.ExitCode == 0 { // not where there is one user only
		owner = "1234 5"
	}
	const depth = 80
	for i := range depth {
		sh(t, sb, fmt.Sprintf("cd /srv; echo %d > f%d; rm -f f%d; rm -rf d; mkdir d; echo %d > d/in; rm -rf gone", i, i, i-2, i))
		if i%4 != 3 {
			must(t, sb.Stop(ctx, &daytona.StopOptions{Force: true}))
		}
		children, err := sb.Fork(ctx, nil)
		if err != nil {
			t.Fatalf("at %d: %v", i, err)
		}
		must(t, sb.Delete(ctx))
		sb = children[0]
		r, err := e.Load(sb.ID())
		must(t, err)
		if n := len(r.Own.Layers); n > maxOwnLayers {
			t.Fatalf("at %d it has %d layers", i, n)
		}
	}
	want := fmt.Sprintf("d f%d f%d l l2 p\nin %d\n2 %s 640\nmine", depth-2, depth-1, depth-1, owner)
	if got := sh(t, sb, "cd /srv; echo $(ls -A); echo $(ls -A d) $(cat d/in); echo $(stat -c '%h %u %g' l) $(stat -c %a p); ls -A /var/log; test ! -e /etc/services; find / -xdev >/dev/null"); got != want {
		t.Errorf("at the end it has %q, want %q", got, want)
	}
	must(t, sb.Delete(ctx))
	if n := layersOf(t, e); n != 0 {
		t.Errorf("%d layers are left of nobody", n)
	}
}

// TestFlatten forks a sandbox that goes on, of which children share one merged
// layer, and lets it take that layer for its own once it is stopped.
func TestFlatten(t *testing.T) {
	ctx := t.Context()
	e, c := openEngine(t, t.TempDir())
	e.ownLayers = 2
	sb, err := c.Create(ctx, daytona.Spec{})
	must(t, err)
	fork := func() daytona.Sandbox {
		children, err := sb.Fork(ctx, nil)
		must(t, err)
		return children[0]
	}
	var kept []daytona.Sandbox
	for i := range 4 {
		sh(t, sb, fmt.Sprintf("cd /var/tmp; echo %d > f%d; rm -f f%d", i, i, i-1))
		must(t, sb.Stop(ctx, &daytona.StopOptions{Force: true}))
		kept = append(kept, fork())
		must(t, sb.Start(ctx))
	}
	layers := func(sb daytona.Sandbox) []string {
		r, err := e.Load(sb.ID())
		must(t, err)
		return r.Own.Layers
	}
	must(t, sb.Stop(ctx, nil))
	must(t, sb.Start(ctx))
	sh(t, sb, "echo s > /var/tmp/started")
	first, second := fork(), fork()
	if a, b := layers(first), layers(second); len(a) != 2 || len(b) != 2 || a[0] != b[0] {
		t.Errorf("forks of a started sandbox with many layers have %v and %v, which share no merged one", a, b)
	}
	kept = append(kept, first, second)
	for i, child := range kept {
		want := fmt.Sprintf("f%d", min(i, 3))
		if i > 3 {
			want += "\nstarted"
		}
		if got := sh(t, child, "cd /var/tmp; ls"); got != want {
			t.Errorf("child %d has %q, want %q", i, got, want)
		}
	}
	must(t, sb.Stop(ctx, nil))
	kept = append(kept, fork())
	if n := len(layers(sb)); n > 2 {
		t.Errorf("it has %d layers", n)
	}
	must(t, sb.Start(ctx))
	if got := sh(t, sb, "cd /var/tmp; ls"); got != "f3\nstarted" {
		t.Errorf("in the end it has %q", got)
	}
	must(t, sb.Delete(ctx))
	for _, child := range kept {
		sh(t, child, "ls /var/tmp/f*")
		must(t, child.Delete(ctx))
	}
	if n := layersOf(t, e); n != 0 {
		t.Errorf("%d layers are left of nobody", n)
	}
}

// TestFlattenKilled kills the process that merges layers at each step.
func TestFlattenKilled(t *testing.T) {
	const env = "DAYTONA_TEST_FLATTEN_IN"
	if dir := os.Getenv(env); dir != "" {
		ctx := context.Background()
		e, err := newEngine(ctx, &Options{Dir: dir})
		must(t, err)
		e.ownLayers = 1
		sb, err := daytona.New(e).Create(ctx, daytona.Spec{Name: "parent", Persistent: true})
		must(t, err)
		sh(t, sb, "echo kept > /var/tmp/f; echo gone > /var/tmp/g")
		must(t, sb.Stop(ctx, nil))
		children, err := sb.Fork(ctx, nil)
		must(t, err)
		must(t, children[0].Delete(ctx))
		must(t, sb.Start(ctx))
		sh(t, sb, "rm /var/tmp/g; echo h > /var/tmp/h")
		must(t, sb.Stop(ctx, nil))
		_, err = sb.Fork(ctx, nil)
		t.Fatalf("it lives on: %v", err)
	}
	for _, step := range []string{"begun", "made", "used"} {
		t.Run(step, func(t *testing.T) {
			dir := t.TempDir()
			cmd := exec.Command(os.Args[0], "-test.run=^TestFlattenKilled$")
			cmd.Env = append(os.Environ(), env+"="+dir, failpoint.Variable+"=local/flatten/"+step+"=kill")
			out, err := cmd.CombinedOutput()
			if err == nil || !strings.Contains(err.Error(), "killed") {
				t.Fatalf("%v: %s", err, out)
			}
			e, c := openEngine(t, dir)
			e.ownLayers = 1
			sb, err := c.Get(t.Context(), "parent")
			must(t, err)
			if sb.Info().State != daytona.StateStopped {
				t.Errorf("State = %s", sb.Info().State)
			}
			children, err := sb.Fork(t.Context(), nil)
			must(t, err)
			must(t, sb.Start(t.Context()))
			for _, s := range append(children, sb) {
				if got := sh(t, s, "cd /var/tmp; ls; cat f"); got != "f\nh\nkept" {
					t.Errorf("it has %q", got)
				}
				must(t, s.Delete(t.Context()))
			}
			if n := layersOf(t, e); n != 0 {
				t.Errorf("%d layers are left", n)
			}
		})
	}
}
