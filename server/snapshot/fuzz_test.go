package snapshot_test

import (
	"testing"

	"github.com/daytona-go/daytona/server/snapshot"
)

// What somebody sends as a Dockerfile is read or refused.
func FuzzEntrypoint(f *testing.F) {
	for _, s := range []string{"FROM a\nENTRYPOINT [\"b\", \"c\"]\n", "FROM a AS b\nCOPY --from=c/d:e / /\nENTRYPOINT x \\\n y", "# escape=`\nFROM a\n", "FROM a\nRUN <<EOF\nx\nEOF\n", "ENTRYPOINT []", "\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		args, err := snapshot.Entrypoint(s)
		if err == nil && len(args) == 0 {
			t.Errorf("%q: nothing is run", s)
		}
	})
}
