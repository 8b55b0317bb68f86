package environment_test

import (
	"slices"
	"sync"
	"testing"

	"github.com/daytona-go/daytona/toolbox/environment"
)

func TestUpdate(t *testing.T) {
	e, err := environment.New(map[string]string{"A": "1", "B": "secret-x", "C": "secret-y", "D": "4"})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Update(map[string]string{"C": "secret-z", "E": ""}, []string{"D", "NONE"}, "secret-"); err != nil {
		t.Fatal(err)
	}
	if got, want := e.Environ(), []string{"A=1", "C=secret-z", "E="}; !slices.Equal(got, want) {
		t.Errorf("environment %q, want %q", got, want)
	}
	for _, bad := range []map[string]string{{"": "x"}, {"1A": "x"}, {"A=B": "x"}, {"A": "x\x00"}, {"Ä": "x"}} {
		if err := e.Update(bad, []string{"A"}, ""); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
	if e.Get("A") != "1" {
		t.Error("a refused update changed the environment")
	}
}

func TestConcurrentUse(t *testing.T) {
	e, _ := environment.New(nil)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				_ = e.Update(map[string]string{"X": "1", "Y": "1"}, []string{"X"}, "")
				if n := len(e.Environ()); n != 2 && n != 0 {
					t.Errorf("half an update was seen: %d variables", n)
				}
			}
		})
	}
	wg.Wait()
}
