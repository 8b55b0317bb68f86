//go:build linux

package docker_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/backend/docker"
)

// diskVariable says that the engine can limit disks.
const diskVariable = "DAYTONA_TEST_DOCKER_DISK"

// TestDiskLimit runs what the suites have about disks on an engine whose storage
// driver has limits.
func TestDiskLimit(t *testing.T) {
	if why := missing(); why != "" {
		t.Skip(why)
	}
	dir := t.TempDir()
	file, point := filepath.Join(dir, "disk"), filepath.Join(dir, "mnt")
	if err := os.Mkdir(point, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, line := range [][]string{{"truncate", "-s", "6G", file}, {"mkfs.xfs", "-q", file}, {"mount", "-o", "loop,pquota", file, point}} {
		if out, err := exec.Command(line[0], line[1:]...).CombinedOutput(); err != nil {
			t.Skipf("an XFS with project quotas: %q: %v: %s", line, err, out)
		}
	}
	t.Cleanup(func() {
		if err := unix.Unmount(point, 0); err != nil {
			t.Errorf("unmount: %v", err)
			_ = unix.Unmount(point, unix.MNT_DETACH)
		}
	})
	e := newEngine(t, point, engineOptions{})
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.v", "-test.run", "^(TestConformance|TestSecurity)$/^(Resources|DiskFull|S21_DiskQuota)$")
	cmd.Env = append(os.Environ(), "DOCKER_HOST="+e.host, diskVariable+"=1")
	out, err := cmd.CombinedOutput()
	for _, check := range []string{"TestConformance/Resources/disk", "TestConformance/DiskFull", "TestSecurity/S21_DiskQuota"} {
		if !bytes.Contains(out, []byte("--- PASS: "+check)) {
			t.Errorf("%s did not pass", check)
		}
	}
	if err != nil || t.Failed() {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestDiskRefused: where the engine has no limits, it is the engine that says
// so.
func TestDiskRefused(t *testing.T) {
	if os.Getenv(diskVariable) != "" {
		t.Skip("this engine has limits")
	}
	c := opened(t, docker.Options{})
	for range 2 {
		_, err := c.Create(t.Context(), daytona.Spec{Resources: daytona.Resources{Disk: 1}})
		var e *daytona.Error
		if !errors.As(err, &e) || e.Kind != daytona.KindUnsupported || e.Field != "Resources.Disk" || !strings.Contains(err.Error(), "storage") {
			t.Errorf("%v", err)
		}
	}
}
