package backendtest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// SmallFileSystem is an ext4 of so many bytes, mounted until the test ends. The test
// is skipped where there can be none.
func SmallFileSystem(t *testing.T, size int64) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("it takes root to mount a small file system")
	}
	t.Helper()
	dir := t.TempDir()
	file, point := filepath.Join(dir, "disk"), filepath.Join(dir, "mnt")
	if err := os.Mkdir(point, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, line := range [][]string{
		{"truncate", "-s", fmt.Sprint(size), file},
		{"mkfs.ext4", "-q", "-F", "-m", "0", file},
		{"mount", "-o", "loop", file, point},
	} {
		if out, err := exec.Command(line[0], line[1:]...).CombinedOutput(); err != nil {
			t.Skipf("a small file system: %q: %v: %s", line, err, out)
		}
	}
	t.Cleanup(func() {
		if err := unix.Unmount(point, 0); err != nil {
			t.Errorf("unmount: %v", err)
			_ = unix.Unmount(point, unix.MNT_DETACH)
		}
	})
	return point
}

// FillFileSystem takes all of a file system but so many bytes, until free is called.
func FillFileSystem(t *testing.T, dir string, leave int64) (free func()) {
	t.Helper()
	name := filepath.Join(dir, "filler")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var size int64
	for chunk := make([]byte, 1<<20); len(chunk) >= 512; {
		n, err := f.Write(chunk)
		size += int64(n)
		if err != nil {
			if !errors.Is(err, unix.ENOSPC) {
				t.Fatal(err)
			}
			chunk = chunk[:len(chunk)/2]
		}
	}
	if err := errors.Join(f.Truncate(max(0, size-leave)), f.Sync()); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(name); err != nil {
			t.Error(err)
		}
	}
}
