package store_test

import (
	"testing"
	"time"

	"github.com/daytona-go/daytona/server/store"
)

func TestWatch(t *testing.T) {
	at := func(seconds int) time.Time { return time.Unix(int64(seconds), 0) }
	w := store.NewWatch(30*time.Second, at(1000))
	for _, c := range []struct {
		name             string
		look, from, want int // look is 0 for none
	}{
		{"before it began", 0, 10, 1000},
		{"after", 0, 1010, 1010},
		{"looks that follow each other", 1030, 10, 1000},
		{"", 1060, 10, 1000},
		{"after an interruption", 1091, 10, 1091},
		{"", 1100, 1060, 1091},
		{"", 1110, 1095, 1095},
	} {
		if c.look != 0 {
			w.Look(at(c.look))
		}
		if got := w.Since(at(c.from)); !got.Equal(at(c.want)) {
			t.Errorf("%s: waited for %d since %d, want %d", c.name, c.from, got.Unix(), c.want)
		}
	}
}
