package events_test

import (
	"strings"
	"testing"

	"github.com/daytona-go/daytona/server/events"
)

func TestPacket(t *testing.T) {
	for in, want := range map[string]string{
		"0": "0", `0{"token":"x"}`: `0{"token":"x"}`, `2["a",1]`: `2["a",1]`, `212["a"]`: `212["a"]`, "0/n,": "0/n,", "0/n": "0/n,", `2/n,5["a"]`: `2/n,5["a"]`,
		"0/n?q=1,{}": "0/n,{}", "1": "1", "312": "312", "": "", "5": "", "x": "", "2{": "", `2["a"]x`: "", "0/" + strings.Repeat("n", 200): "",
	} {
		if got, ok := events.Roundtrip(in); got != want || ok != (want != "") {
			t.Errorf("%q: %q %v, want %q", in, got, ok, want)
		}
	}
}

func FuzzPacket(f *testing.F) {
	for _, s := range []string{"0", `0{"token":"x"}`, `2/n,12["a",{"b":1}]`, "0/n?x", "3123[]", "5", "\xff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		once, ok := events.Roundtrip(s)
		if !ok {
			return
		}
		if twice, ok := events.Roundtrip(once); !ok || twice != once {
			t.Fatalf("%q: %q, then %q %v", s, once, twice, ok)
		}
	})
}
