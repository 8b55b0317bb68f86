package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestFailures: what failed is written a second time, with the run's name, and
// nothing else is.
func TestFailures(t *testing.T) {
	file := filepath.Join(t.TempDir(), "failures")
	events := `{"Action":"output","Package":"p","Test":"TestGood","Output":"fine\n"}
{"Action":"pass","Package":"p","Test":"TestGood"}
{"Action":"output","Package":"p","Test":"TestBad","Output":"it is so\n"}
{"Action":"fail","Package":"p","Test":"TestBad","Elapsed":1}
{"Action":"output","Package":"p","Test":"TestCut","Output":"panic: there\n"}
{"Action":"fail","Package":"p"}
`
	if ok, err := report(strings.NewReader(events), "r", "", "", "", file); ok || err != nil {
		t.Fatal(ok, err)
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"r: FAIL  p TestBad (1.0s)\n", "it is so\n", "r: ENDED p TestCut\n", "panic: there\n"} {
		if !strings.Contains(string(got), want) {
			t.Errorf("%q is not in %q", want, got)
		}
	}
	if strings.Contains(string(got), "TestGood") {
		t.Errorf("%s", got)
	}
}
