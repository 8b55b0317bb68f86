package local

import (
	"fmt"
	"testing"

	"github.com/daytona-go/daytona"
)

// TestDepth forks forks of forks.
func TestDepth(t *testing.T) {
	if testing.Short() {
		t.Skip("it starts a sandbox 150 times")
	}
	ctx := t.Context()
	_, c := openEngine(t, t.TempDir())
	sb, err := c.Create(ctx, daytona.Spec{})
	must(t, err)
	const depth = 150
	for i := range depth {
		sh(t, sb, fmt.Sprintf("echo %d > ~/f%d; rm -f ~/f%d", i, i, i-2))
		must(t, sb.Stop(ctx, &daytona.StopOptions{Force: true}))
		children, err := sb.Fork(ctx, nil)
		if err != nil {
			t.Fatalf("at %d: %v", i, err)
		}
		must(t, sb.Delete(ctx))
		sb = children[0]
	}
	if got, want := sh(t, sb, "cd ~; ls"), fmt.Sprintf("f%d\nf%d", depth-2, depth-1); got != want {
		t.Errorf("at the end it has %q, want %q", got, want)
	}
}
