package plugin

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestSweepSocketDirs: what a host and a plugin that were killed together have
// left goes when the next plugin is started; what is in use stays.
func TestSweepSocketDirs(t *testing.T) {
	base := t.TempDir()
	long := time.Now().Add(-time.Hour)
	for name, old := range map[string]bool{"dead": true, "locked": true, "young": false} {
		dir := filepath.Join(base, socketDirPrefix+name)
		if err := os.MkdirAll(filepath.Join(dir, "below"), 0o700); err != nil {
			t.Fatal(err)
		}
		if old {
			if err := os.Chtimes(dir, long, long); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.Mkdir(filepath.Join(base, "other"), 0o700); err != nil {
		t.Fatal(err)
	}
	lock, err := lockDir(filepath.Join(base, socketDirPrefix+"locked"))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	sweepSocketDirs(base)
	for name, want := range map[string]bool{"dead": false, "locked": true, "young": true} {
		if _, err := os.Stat(filepath.Join(base, socketDirPrefix+name)); (err == nil) != want {
			t.Errorf("%s is there: %v, want %v", name, err == nil, want)
		}
	}
	if _, err := os.Stat(filepath.Join(base, "other")); err != nil {
		t.Error(err)
	}
}
