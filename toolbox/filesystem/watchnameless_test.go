package filesystem_test

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona/toolbox/account"
	"github.com/daytona-go/daytona/toolbox/wire"
)

// TestWatchNameless: a file that has no name yet is nobody's business, though the
// kernel tells of it by one that it made up.
func TestWatchNameless(t *testing.T) {
	s := serve(t, account.Current())
	fd, err := unix.Open(s.dir, unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		t.Skipf("no files without a name here: %v", err)
	}
	defer unix.Close(fd)
	named := filepath.Join(s.dir, "#1")
	must(t, os.WriteFile(named, nil, 0o600))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, "GET", route("/files/watch", "path", s.dir), nil)
	must(t, err)
	resp, err := s.Do(r)
	must(t, err)
	defer resp.Body.Close()
	events := wire.NewEventReader(resp.Body)
	if first, err := events.Next(); err != nil || first.Name != wire.EventReady {
		t.Fatalf("%+v %v", first, err)
	}
	must(t, unix.Fchmod(fd, 0o644))
	must(t, os.Chmod(named, 0o644))
	must(t, os.Mkdir(filepath.Join(s.dir, "marker"), 0o755))
	var got []string
	for len(got) == 0 || got[len(got)-1] != "create marker" {
		e, err := events.Next()
		must(t, err)
		var c wire.FileChanges
		must(t, json.Unmarshal(e.Data, &c))
		for _, one := range c.Events {
			got = append(got, one.Type+" "+filepath.Base(one.Path))
		}
	}
	if want := []string{"attributes #1", "create marker"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
