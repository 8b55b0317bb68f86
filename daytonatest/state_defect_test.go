package daytonatest_test

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/backend/backendtest"
	"github.com/daytona-go/daytona/daytonatest"
)

// statefulHarness is that of a Fake with state, and with a defect.
func statefulHarness(defect string) *backendtest.Harness {
	var mu sync.Mutex
	engines := map[string]*daytonatest.Stateful{}
	get := func(state string) *daytonatest.Stateful {
		mu.Lock()
		defer mu.Unlock()
		if engines[state] == nil {
			engines[state] = daytonatest.NewStateful(defect)
		}
		return engines[state]
	}
	h := harness(whole)
	h.Label = "fake (stateful)"
	h.Skip = map[string]string{"Volumes": "the fake has no read-only mounts", "AutoPause": "the fake pauses nothing by itself"}
	h.Open = func(_ context.Context, state string) (daytona.Backend, error) { return get(state).Reopen(), nil }
	h.Leftovers = func(_ context.Context, state string) ([]string, error) { return get(state).Leftovers(), nil }
	return h
}

func TestStatefulConformance(t *testing.T) { backendtest.RunConformance(t, statefulHarness("")) }

func TestHistories(t *testing.T) { backendtest.RunHistories(t, statefulHarness("")) }

// TestHistoryDefect is what TestHistoriesFindDefects runs in another process.
func TestHistoryDefect(t *testing.T) {
	d, ok := os.LookupEnv(defectVariable)
	if !ok {
		t.Skip("run by TestHistoriesFindDefects")
	}
	backendtest.RunHistories(t, statefulHarness(d))
}

// Histories find what is wrong with a backend, and say how to find it again.
func TestHistoriesFindDefects(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, defect := range []string{
		"reopen resumes", "inactive is used", "snapshot is live", "pause does nothing", "resume starts", "half a fork",
		"forks are nobody's", "fork shares files", "snapshots of one name", "a snapshot takes its sandboxes along",
		"zero fields are zero", "archives what runs", "an archive loses a file", "volumes in use are deleted",
	} {
		t.Run(strings.ReplaceAll(defect, " ", "_"), func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, exe, "-test.run", "^TestHistoryDefect$", "-rapid.nofailfile", "-rapid.shrinktime=1s", "-rapid.checks=400", "-rapid.seed=7")
			cmd.Env = append(os.Environ(), defectVariable+"="+defect)
			out, err := cmd.CombinedOutput()
			if err == nil || !strings.Contains(string(out), "To reproduce") || strings.Contains(string(out), "panic") {
				t.Errorf("histories with the defect: %v\n%s", err, out)
			}
		})
	}
}
