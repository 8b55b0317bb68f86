package local

import (
	"os"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestSealWaits: an engine could not be opened, because the kernel was at a page
// of the agent's copy when that was sealed. A mapping is as much in the way.
func TestSealWaits(t *testing.T) {
	fd, err := unix.MemfdCreate("sealed", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "sealed")
	defer f.Close()
	if err := f.Truncate(4096); err != nil {
		t.Fatal(err)
	}
	page, err := unix.Mmap(fd, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	var going atomic.Bool
	gone := make(chan error, 1)
	time.AfterFunc(300*time.Millisecond, func() {
		going.Store(true)
		gone <- unix.Munmap(page)
	})
	if err := seal(f); err != nil {
		t.Error(err)
	}
	if !going.Load() {
		t.Error("sealed while somebody could write")
	}
	if err := <-gone; err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("x"), 0); err == nil {
		t.Error("a sealed file was written")
	}
}
