//go:build linux

package build

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/fstest"
	"time"

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

// TestContextDirectoryModes: a directory that is left out and has something that
// is not is there as it is.
func TestContextDirectoryModes(t *testing.T) {
	when := time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC)
	files := fstest.MapFS{"a": {Mode: fs.ModeDir | 0o750, ModTime: when}, "a/b": {Mode: fs.ModeDir | 0o711, ModTime: when}, "a/b/keep": {Mode: 0o600}, "a/out": {}}
	dir := filepath.Join(t.TempDir(), "c")
	if _, err := contextFS(t.Context(), []daytona.BuildContext{{Files: files, Path: ".", Exclude: []string{"a", "!a/b/keep"}}}, dir); err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]fs.FileMode{"a": 0o750, "a/b": 0o711} {
		st, err := os.Stat(filepath.Join(dir, name))
		if err != nil || st.Mode().Perm() != mode || !st.ModTime().Equal(when) {
			t.Errorf("%s: %v, %v", name, st, err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "a/out")); !os.IsNotExist(err) {
		t.Errorf("a/out: %v", err)
	}
}
