package webterminal

import (
	"encoding/json"
	"testing"
)

func FuzzSize(f *testing.F) {
	for _, s := range []string{`{"rows":24,"cols":80}`, `{"rows":0,"cols":80}`, `{"rows":24}`, `{"rows":24,"cols":80}x`, `{"rows":1e1,"cols":80,"rows":5}`, `{`, `ls`, `{"rows":24,"cols":80,"x":1}`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		cols, rows, ok := parseSize([]byte(s))
		if !ok {
			return
		}
		if cols < 1 || cols > maxSize || rows < 1 || rows > maxSize || !json.Valid([]byte(s)) {
			t.Errorf("%q is %d by %d", s, cols, rows)
		}
	})
}
