package local_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/image"
)

// TestImageMaxAge opens an engine on a store with images that nobody has used for
// long: those go that no sandbox has, and Close waits for what is going on.
func TestImageMaxAge(t *testing.T) {
	list := os.Getenv(imagesVariable)
	if list == "" {
		t.Skip("no images: run `make image` and set " + imagesVariable + " to what it prints")
	}
	ref, _, _ := strings.Cut(list, ",")
	dir := t.TempDir()
	open := func(query string) *daytona.Client {
		t.Helper()
		c, err := daytona.Open(t.Context(), "local://"+dir+query)
		if err != nil {
			t.Skipf("no engine here: %v", err)
		}
		return c
	}
	images := func() (n int) {
		t.Helper()
		s, err := image.OpenStore(filepath.Join(dir, "images"), nil)
		if err != nil {
			t.Fatal(err)
		}
		all, err := s.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	old := func() {
		t.Helper()
		then := time.Now().Add(-48 * time.Hour)
		if err := filepath.WalkDir(filepath.Join(dir, "images", "images"), func(p string, d os.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				err = os.Chtimes(p, then, then)
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	c := open("")
	sb, err := c.Create(t.Context(), daytona.Spec{Image: ref, Persistent: true, Network: daytona.NetworkPolicy{Block: true}})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(sb.Stop(t.Context(), nil), c.Close()); err != nil {
		t.Fatal(err)
	}
	for range 3 { // opened and closed at once, in the middle of it
		old()
		if err := open("?imageMaxAge=24h&imageHighWatermark=1").Close(); err != nil {
			t.Fatal(err)
		}
	}
	if n := images(); n != 1 {
		t.Errorf("%d images, and a sandbox has one", n)
	}
	c = open("")
	if sb, err = c.Get(t.Context(), sb.ID()); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(sb.Start(t.Context()), sb.Delete(t.Context()), c.Close()); err != nil {
		t.Fatal(err)
	}
	old()
	c = open("?imageMaxAge=24h")
	defer c.Close()
	for deadline := time.Now().Add(20 * time.Second); images() > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d images that nobody has used for two days are still there", images())
		}
	}
}
