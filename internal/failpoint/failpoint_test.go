package failpoint

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if os.Getenv(Variable) != "" {
		for range 3 {
			Kill("a/b/killed")
			if err := Fail("a/b/failed"); err != nil {
				if !errors.Is(err, unix.ENOSPC) {
					os.Exit(3)
				}
				os.Stdout.WriteString("failed ")
			}
			os.Stdout.WriteString("passed ")
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestPoints(t *testing.T) {
	for value, want := range map[string]string{
		"a/b/killed=kill":    "signal: killed",
		"a/b/killed=kill@3":  "passed passed signal: killed",
		"a/b/failed=kill@2":  "passed signal: killed",
		"a/b/failed=error":   "failed passed passed passed",
		"a/b/failed=error@2": "passed failed passed passed",
		"a/b/killed=error":   "passed passed passed",
		"a/b/other=kill":     "passed passed passed",
		"a/b/killed":         "passed passed passed",
		"a/b/killed=kill@x":  "passed passed passed",
		"a/b/killed=burn":    "passed passed passed",
	} {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), Variable+"="+value)
		out, err := cmd.CombinedOutput()
		got := string(out)
		if err != nil {
			got += err.Error()
		}
		if got = strings.TrimSpace(got); got != want {
			t.Errorf("%s: %q, want %q", value, got, want)
		}
	}
}

func BenchmarkKill(b *testing.B) {
	for b.Loop() {
		Kill("a/b/killed")
	}
}
