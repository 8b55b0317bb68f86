package sandbox_test

import (
	"encoding/base64"
	"errors"
	"testing"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/sandbox"
	"github.com/daytona-go/daytona/server/store/storetest"
)

// FuzzCursor: what somebody says the last page ended with names a place in the
// list, or is refused.
func FuzzCursor(f *testing.F) {
	sorts := []string{"name", "cpu", "memoryGib", "diskGib", "createdAt", "lastActivityAt"}
	db := storetest.Open(f, storetest.SQLite(f))
	w := newWorld(f, db)
	w.create(sandbox.Spec{Name: "a"})
	w.create(sandbox.Spec{Name: "b"})
	for i, sort := range sorts {
		_, next, err := w.s.List(f.Context(), "a", sandbox.Filter{Sort: sort, Limit: 1}, "")
		if err != nil || next == "" {
			f.Fatal(sort, next, err)
		}
		text, err := base64.StdEncoding.DecodeString(next)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(byte(i), string(text))
	}
	f.Add(byte(1), `{"sort":"cpu","sortValue":1e300,"id":"x"}`)
	f.Add(byte(0), `{"sort":"name","sortValue":"\ud800\u0000","id":"\u0000"}`)
	f.Fuzz(func(t *testing.T, i byte, text string) {
		sort := sorts[int(i)%len(sorts)]
		page, _, err := w.s.List(t.Context(), "a", sandbox.Filter{Sort: sort, Limit: 1}, base64.StdEncoding.EncodeToString([]byte(text)))
		if e, ok := errors.AsType[*daytona.Error](err); err != nil && (!ok || e.Kind != daytona.KindInvalid) {
			t.Errorf("%s %q: %v", sort, text, err)
		}
		if len(page) > 1 {
			t.Errorf("%s %q: %d of one", sort, text, len(page))
		}
	})
}
