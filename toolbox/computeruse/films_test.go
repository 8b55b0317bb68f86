package computeruse

import (
	"strings"
	"testing"
	"time"
)

// FuzzRecordingName: what is taken for a recording has a name that is only a
// name.
func FuzzRecordingName(f *testing.F) {
	f.Add("abc_session_20260102_030405.mp4")
	f.Add("abc_my_la_bel_20260102_030405.mp4")
	f.Add("../x_session_20260102_030405.mp4")
	f.Add("a__20260102_030405.mp4")
	f.Fuzz(func(t *testing.T, name string) {
		id, start, ok := parseName(name)
		if !ok {
			return
		}
		if strings.ContainsAny(name, "/\x00") || !validID(id) || !strings.HasPrefix(name, id+"_") || !strings.HasSuffix(name, "_"+start.Format(stampLayout)+".mp4") {
			t.Errorf("%q: %q, %v", name, id, start)
		}
	})
}

func TestRecordingName(t *testing.T) {
	id, start, ok := parseName("abc-1_my_la bel_20260102_030405.mp4")
	if !ok || id != "abc-1" || !start.Equal(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)) {
		t.Errorf("%q %v %v", id, start, ok)
	}
	for _, bad := range []string{"", ".mp4", "a_b_20260102_030405", "_b_20260102_030405.mp4", "a_20260102_030405.mp4", "a_.b_20260102_030405.mp4", "a_b_20261302_030405.mp4", "a/b_c_20260102_030405.mp4"} {
		if _, _, ok := parseName(bad); ok {
			t.Errorf("%q is taken for a recording", bad)
		}
	}
}
