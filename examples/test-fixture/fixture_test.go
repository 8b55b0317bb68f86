// Give each test of yours a sandbox of its own. It is gone when the test ends,
// and the test is skipped where there are no sandboxes.
//
//	go test -v ./examples/test-fixture
package fixture_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/daytonatest"
)

// wordCount is the program under test: it lets a sandbox count the words of a
// text that nobody wants to open on his own machine.
func wordCount(ctx context.Context, sb daytona.Sandbox, text string) (string, error) {
	wc := sb.Process().Command(ctx, "wc", "-w")
	wc.Stdin = strings.NewReader(text)
	out, err := wc.Output()
	return strings.TrimSpace(string(out)), err
}

func TestWordCount(t *testing.T) {
	sb := daytonatest.Sandbox(t)
	for text, want := range map[string]string{"": "0", "one": "1", "one\ttwo\n three": "3"} {
		if got, err := wordCount(t.Context(), sb, text); err != nil || got != want {
			t.Errorf("wordCount(%q) = %q, %v; want %q", text, got, err, want)
		}
	}
}

// TestWordCountOffline gives the sandbox no network, and no time.
func TestWordCountOffline(t *testing.T) {
	sb := daytonatest.Sandbox(t, daytonatest.WithSpec(daytona.Spec{
		Network: daytona.NetworkPolicy{Block: true},
	}))
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	cmd := sb.Process().Command(ctx, "sleep", "60")
	if err := cmd.Run(); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want %v", err, context.DeadlineExceeded)
	}
	if got, err := wordCount(t.Context(), sb, "still here"); err != nil || got != "2" {
		t.Errorf("after it: %q, %v", got, err)
	}
}
