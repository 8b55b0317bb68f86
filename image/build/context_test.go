//go:build linux

package build

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/fstest"

	"github.com/daytona-go/daytona"
)

func TestContextExclude(t *testing.T) {
	files := fstest.MapFS{"keep": {}, "secret/key": {}, "secret/public": {}, "other/x": {}}
	dir := t.TempDir()
	_, err := contextFS(t.Context(), []daytona.BuildContext{{Files: files, Path: ".", Exclude: []string{"secret", "!secret/public", "other"}}}, filepath.Join(dir, "c"))
	if err != nil {
		t.Fatal(err)
	}
	var have []string
	_ = fs.WalkDir(os.DirFS(filepath.Join(dir, "c")), ".", func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			have = append(have, name)
		}
		return err
	})
	if want := []string{"keep", "secret/public"}; !slices.Equal(have, want) {
		t.Errorf("have %q, want %q", have, want)
	}
}
