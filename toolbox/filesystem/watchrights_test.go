package filesystem_test

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/daytona-go/daytona/toolbox/wire"
)

// TestWatchRights has root watch for another user: only what that one may read.
func TestWatchRights(t *testing.T) {
	s := serve(t, other(t))
	outside := filepath.Dir(s.dir)
	must(t, os.MkdirAll(filepath.Join(outside, "closed", "inner"), 0o700))
	must(t, os.Chmod(filepath.Join(outside, "closed"), 0o700))
	s.want(403, wire.CodeFileAccessDenied, "GET", route("/files/watch", "path", filepath.Join(outside, "closed")), nil, nil)
	s.want(404, wire.CodeFileNotFound, "GET", route("/files/watch", "path", "none"), nil, nil)

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, "GET", route("/files/watch", "path", outside, "exclude", "secret"), nil)
	must(t, err)
	resp, err := s.Do(r)
	must(t, err)
	defer resp.Body.Close()
	events := wire.NewEventReader(resp.Body)
	first, err := events.Next()
	if err != nil || first.Name != wire.EventReady {
		t.Fatalf("%+v %v", first, err)
	}
	must(t, os.WriteFile(filepath.Join(outside, "closed", "f"), nil, 0o644))
	must(t, os.WriteFile(filepath.Join(outside, "closed", "inner", "f"), nil, 0o644))
	must(t, os.Mkdir(filepath.Join(outside, "later"), 0o700))
	must(t, os.WriteFile(filepath.Join(outside, "later", "f"), nil, 0o644))
	must(t, os.WriteFile(filepath.Join(outside, "marker"), nil, 0o644))
	for {
		e, err := events.Next()
		must(t, err)
		var c wire.FileChanges
		must(t, json.Unmarshal(e.Data, &c))
		for _, one := range c.Events {
			if strings.Contains(one.Path, "closed/") || strings.Contains(one.Path, "later/") {
				t.Errorf("told of %+v", one)
			}
			if strings.HasSuffix(one.Path, "/marker") {
				return
			}
		}
	}
}
