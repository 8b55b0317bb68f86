//go:build linux

package docker_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
	_ "github.com/daytona-go/daytona/archive/s3"
	"github.com/daytona-go/daytona/backend/docker"
	suites "github.com/daytona-go/daytona/backend/docker/internal/harness"
	"github.com/daytona-go/daytona/internal/objects/s3test"
)

func inside(t *testing.T, sb daytona.Sandbox, line string) string {
	t.Helper()
	r, err := sb.Process().Exec(t.Context(), line, nil)
	if err != nil || r.ExitCode != 0 {
		t.Fatalf("%q: %+v, %v", line, r, err)
	}
	return strings.TrimSpace(r.Output)
}

func wantNothing(t *testing.T, dir string) {
	t.Helper()
	left, err := suites.Leftovers(t.Context(), dir)
	if err != nil || len(left) > 0 {
		t.Errorf("left: %q, %v", left, err)
	}
}

// TestForkIdentity: children have the files of one moment and nothing that tells
// machines apart; what they share goes with the last of them.
func TestForkIdentity(t *testing.T) {
	if why := missing(); why != "" {
		t.Skip(why)
	}
	dir := t.TempDir()
	c, err := docker.Open(t.Context(), &docker.Options{Dir: dir, Image: sandboxImage()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	sb, err := c.Create(t.Context(), daytona.Spec{User: "root"})
	if err != nil {
		t.Fatal(err)
	}
	inside(t, sb, "echo 0123456789abcdef0123456789abcdef > /etc/machine-id; mkdir -p /etc/ssh; echo key > /etc/ssh/ssh_host_rsa_key; chmod 600 /etc/ssh/ssh_host_rsa_key; echo data > /root/f")
	children, err := sb.Fork(t.Context(), &daytona.ForkOptions{Names: []string{"a", "b", "c"}})
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, s := range append(children, sb) {
		who := inside(t, s, "cat /etc/machine-id; hostname; cat /root/f")
		if seen[who] || !strings.HasSuffix(who, "data") {
			t.Errorf("%q", who)
		}
		seen[who] = true
	}
	if key := inside(t, children[0], "cat /etc/ssh/ssh_host_rsa_key; stat -c %a,%s /etc/ssh/ssh_host_rsa_key"); key != "600,0" {
		t.Errorf("the parent's SSH key: %q", key)
	}
	// A name that is taken: none of the children is left.
	if _, err := sb.Fork(t.Context(), &daytona.ForkOptions{Names: []string{"d", "e", "b"}}); !errors.Is(err, daytona.ErrConflict) {
		t.Errorf("%v", err)
	}
	for _, name := range []string{"d", "e"} {
		if _, err := c.Get(t.Context(), name); !errors.Is(err, daytona.ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, s := range append(children, sb) {
		if err := s.Delete(t.Context()); err != nil {
			t.Error(err)
		}
	}
	wantNothing(t, dir)
}

// TestSnapshotInUse: sandboxes outlive the snapshot that they were made from, and
// an inactive one makes none.
func TestSnapshotInUse(t *testing.T) {
	if why := missing(); why != "" {
		t.Skip(why)
	}
	dir := t.TempDir()
	c, err := docker.Open(t.Context(), &docker.Options{Dir: dir, Image: sandboxImage()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	snapshots, err := c.Snapshots()
	if err != nil {
		t.Fatal(err)
	}
	for _, spec := range []daytona.SnapshotSpec{{Name: "image", Image: sandboxImage(), Resources: daytona.Resources{Memory: 0.5}}} {
		s, err := c.CreateSnapshot(t.Context(), spec)
		if err != nil {
			t.Fatal(err)
		}
		if s.State != daytona.SnapshotActive || s.SizeBytes == 0 {
			t.Errorf("%+v", s)
		}
	}
	if _, err := snapshots.SetSnapshotActive(t.Context(), "image", false); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Create(t.Context(), daytona.Spec{Snapshot: "image"}); !errors.Is(err, daytona.ErrState) {
		t.Errorf("%v", err)
	}
	if _, err := snapshots.SetSnapshotActive(t.Context(), "image", true); err != nil {
		t.Fatal(err)
	}
	sb, err := c.Create(t.Context(), daytona.Spec{Snapshot: "image", User: "root"})
	if err != nil {
		t.Fatal(err)
	}
	if i := sb.Info(); i.Resources.Memory != 0.5 || i.Snapshot != "image" {
		t.Errorf("%+v", i)
	}
	inside(t, sb, "echo kept > /root/f")
	if _, err := sb.CreateSnapshot(t.Context(), "second"); err != nil {
		t.Fatal(err)
	}
	user, err := c.Create(t.Context(), daytona.Spec{Snapshot: "second", User: "root"})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"image", "second"} {
		if err := snapshots.DeleteSnapshot(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	if err := user.Stop(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if err := user.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := inside(t, user, "cat /root/f"); got != "kept" {
		t.Errorf("%q", got)
	}
	for _, s := range []daytona.Sandbox{sb, user} {
		if err := s.Delete(t.Context()); err != nil {
			t.Error(err)
		}
	}
	wantNothing(t, dir)
}

// TestArchiveElsewhere: a sandbox is restored by another state directory, whose
// own it then is; one whose archive is damaged stays where it is.
func TestArchiveElsewhere(t *testing.T) {
	if why := missing(); why != "" {
		t.Skip(why)
	}
	t.Run("directory", func(t *testing.T) {
		archives := t.TempDir()
		archiveElsewhere(t, archives, archives)
	})
	t.Run("s3", func(t *testing.T) {
		server := s3test.Start(t)
		archiveElsewhere(t, server.Environment(t, "docker-archives"), server.Dir)
	})
}

// archiveElsewhere is TestArchiveElsewhere with a place for archives, whose files
// are in a directory.
func archiveElsewhere(t *testing.T, archives, files string) {
	one, two := t.TempDir(), t.TempDir()
	open := func(dir string) *daytona.Client {
		c, err := docker.Open(t.Context(), &docker.Options{Dir: dir, Image: sandboxImage(), Archive: archives})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	a := open(one)
	sb, err := a.Create(t.Context(), daytona.Spec{Name: "moved", User: "root", Persistent: true})
	if err != nil {
		t.Fatal(err)
	}
	inside(t, sb, "echo kept > /root/f; chown 1234:5678 /root/f; ln /root/f /root/g")
	if err := sb.Stop(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if err := sb.Archive(t.Context()); err != nil {
		t.Fatal(err)
	}
	if out, _ := exec.Command("docker", "ps", "-aq", "--filter", "label=io.github.daytona-go.sandbox="+sb.ID()).Output(); len(out) > 0 {
		t.Errorf("its container is still there: %s", out)
	}
	a.Close()
	b := open(two)
	defer b.Close()
	damaged := damage(t, files)
	restorer, _ := daytona.As[daytona.Archiver](b.Backend())
	if _, err := restorer.Restore(t.Context(), sb.ID()); !errors.Is(err, daytona.ErrInternal) {
		t.Errorf("restore of a damaged archive: %v", err)
	}
	damaged()
	info, err := restorer.Restore(t.Context(), sb.ID())
	if err != nil {
		t.Fatal(err)
	}
	if info.State != daytona.StateStopped || info.Name != "moved" {
		t.Errorf("%+v", info)
	}
	moved, err := b.Get(t.Context(), "moved")
	if err != nil {
		t.Fatal(err)
	}
	if err := moved.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := inside(t, moved, "cat /root/g; stat -c %u:%g:%h /root/f"); got != "kept\n1234:5678:2" {
		t.Errorf("%q", got)
	}
	if err := moved.Delete(t.Context()); err != nil {
		t.Error(err)
	}
	wantNothing(t, two)
}

// damage changes a byte of the largest file, and returns what changes it back.
func damage(t *testing.T, dir string) (repair func()) {
	t.Helper()
	var largest string
	var size int64
	if err := filepath.Walk(dir, func(p string, i os.FileInfo, err error) error {
		if err == nil && i.Mode().IsRegular() && i.Size() > size {
			largest, size = p, i.Size()
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	flip := func() {
		f, err := os.OpenFile(largest, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		var b [1]byte
		if _, err := f.ReadAt(b[:], size/2); err != nil {
			t.Fatal(err)
		}
		b[0] ^= 0xff
		if _, err := f.WriteAt(b[:], size/2); err != nil {
			t.Fatal(err)
		}
	}
	flip()
	return flip
}

// stepVariable makes the test binary a process that does one thing and is killed
// while it does.
const stepVariable = "DAYTONA_TEST_DOCKER_STEP"

// killedStep is that process.
func killedStep(dir, step string) error {
	ctx := context.Background()
	c, err := docker.Open(ctx, &docker.Options{Dir: dir, Image: sandboxImage(), Archive: filepath.Join(dir, "archives")})
	if err != nil {
		return err
	}
	sb, err := c.Get(ctx, "box")
	if err != nil {
		return err
	}
	fmt.Println("ready")
	switch step {
	case "fork":
		_, err = sb.Fork(ctx, &daytona.ForkOptions{Names: []string{"x", "y"}})
	case "snapshot":
		_, err = sb.CreateSnapshot(ctx, "snap")
	case "archive":
		if err = sb.Stop(ctx, &daytona.StopOptions{Force: true}); err == nil {
			err = sb.Archive(ctx)
		}
	}
	if err != nil {
		return err
	}
	select {}
}

// TestKilledInTheMiddle: a process is killed in the middle of a step; the next one
// finds the sandbox with its files, and nothing half made.
func TestKilledInTheMiddle(t *testing.T) {
	if why := missing(); why != "" {
		t.Skip(why)
	}
	for _, step := range []string{"fork", "snapshot", "archive"} {
		for _, after := range []time.Duration{20 * time.Millisecond, 150 * time.Millisecond, 500 * time.Millisecond, time.Second} {
			t.Run(fmt.Sprint(step, " ", after), func(t *testing.T) {
				dir := t.TempDir()
				open := func() *daytona.Client {
					c, err := docker.Open(t.Context(), &docker.Options{Dir: dir, Image: sandboxImage()})
					if err != nil {
						t.Fatal(err)
					}
					return c
				}
				c := open()
				sb, err := c.Create(t.Context(), daytona.Spec{Name: "box", User: "root", Persistent: true})
				if err != nil {
					t.Fatal(err)
				}
				inside(t, sb, "echo kept > /root/f; head -c 30000000 /dev/urandom > /root/g")
				c.Close()
				cmd := exec.Command(os.Args[0])
				cmd.Env = append(os.Environ(), stepVariable+"="+step+" "+dir)
				out, err := cmd.StdoutPipe()
				if err != nil {
					t.Fatal(err)
				}
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				if _, err := out.Read(make([]byte, 16)); err != nil {
					t.Fatal(err)
				}
				time.Sleep(after) // which moment it is, does not matter
				cmd.Process.Kill()
				cmd.Wait()
				c = open()
				defer c.Close()
				if sb, err = c.Get(t.Context(), "box"); err != nil {
					t.Fatal(err)
				}
				if err := sb.Start(t.Context()); err != nil {
					t.Fatal(err)
				}
				if got := inside(t, sb, "cat /root/f"); got != "kept" {
					t.Errorf("%q", got)
				}
				// On a fast machine a fork may have been ready before; then it is a whole one.
				for other, err := range c.List(t.Context(), nil) {
					if err != nil {
						t.Fatal(err)
					}
					if other.Name() == "box" {
						continue
					}
					if step != "fork" {
						t.Errorf("%s is left", other.Name())
					}
					if err := other.Start(t.Context()); err != nil {
						t.Error(err)
					} else if got := inside(t, other, "cat /root/f; stat -c %s /root/g"); got != "kept\n30000000" {
						t.Errorf("%s has %q", other.Name(), got)
					}
					if err := other.Delete(t.Context()); err != nil {
						t.Error(err)
					}
				}
				if err := sb.Delete(t.Context()); err != nil {
					t.Fatal(err)
				}
				snapshots, _ := c.Snapshots()
				if err := snapshots.DeleteSnapshot(t.Context(), "snap"); err != nil && !errors.Is(err, daytona.ErrNotFound) {
					t.Error(err)
				}
				c.Close()
				// The engine finishes what it has begun after the process was killed.
				for range 20 {
					c = open()
					c.Close()
					if left, err := suites.Leftovers(t.Context(), dir); err == nil && len(left) == 0 {
						break
					}
				}
				wantNothing(t, dir)
				if err := filepath.Walk(filepath.Join(dir, "archives"), func(p string, i os.FileInfo, err error) error {
					if err == nil && i.Mode().IsRegular() {
						t.Errorf("%s is left", p)
					}
					return err
				}); err != nil && !errors.Is(err, os.ErrNotExist) {
					t.Error(err)
				}
			})
		}
	}
}

// TestResizeInUse: less memory than programs have is refused, and they go on.
func TestResizeInUse(t *testing.T) {
	c := openDocker(t)
	sb, err := c.Create(t.Context(), daytona.Spec{User: "root", Resources: daytona.Resources{Memory: 0.5}})
	if err != nil {
		t.Fatal(err)
	}
	inside(t, sb, `sh -c 'exec python3 -c "
import time
x = bytearray(200 << 20)
for i in range(0, len(x), 4096): x[i] = 1
open(\"/root/there\", \"w\").close()
time.sleep(600)"' >/dev/null 2>&1 & while ! test -e /root/there; do sleep 0.1; done`)
	if err := sb.Resize(t.Context(), daytona.Resources{Memory: 0.0625}); !errors.Is(err, daytona.ErrConflict) {
		t.Errorf("%v", err)
	}
	if err := sb.Resize(t.Context(), daytona.Resources{Memory: 1, Processes: 99}); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "docker", "ps", "-q", "--filter", "label=io.github.daytona-go.sandbox="+sb.ID()).Output()
	if err != nil {
		t.Fatal(err)
	}
	limits, err := exec.CommandContext(t.Context(), "docker", "inspect", "-f", "{{.HostConfig.Memory}} {{.HostConfig.PidsLimit}}", strings.TrimSpace(string(out))).Output()
	if got := strings.TrimSpace(string(limits)); err != nil || got != "1073741824 99" {
		t.Errorf("%q, %v", got, err)
	}
	if got := inside(t, sb, "grep -l python3 /proc/[0-9]*/comm"); got == "" {
		t.Error("its program is gone")
	}
}

// TestHostileSubpath: what a sandbox puts in the way of a Subpath leads nowhere.
func TestHostileSubpath(t *testing.T) {
	c := openDocker(t)
	volumes, err := c.Volumes()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := volumes.CreateVolume(t.Context(), daytona.VolumeSpec{Name: "v"}); err != nil {
		t.Fatal(err)
	}
	sb, err := c.Create(t.Context(), daytona.Spec{User: "root", Volumes: []daytona.VolumeMount{{Volume: "v", MountPath: "/v"}}})
	if err != nil {
		t.Fatal(err)
	}
	inside(t, sb, "ln -s /etc /v/sub")
	_, err = c.Create(t.Context(), daytona.Spec{Volumes: []daytona.VolumeMount{{Volume: "v", MountPath: "/s", Subpath: "sub/x"}}})
	if !errors.Is(err, daytona.ErrInvalid) {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat("/etc/x"); err == nil {
		t.Error("a directory was made outside of the volume")
	}
	if err := sb.Delete(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := volumes.DeleteVolume(t.Context(), "v"); err != nil {
		t.Error(err)
	}
}

// TestPauseBusy: processes that keep starting others, with little CPU, are hard to
// freeze; runc gives up, and is asked again.
func TestPauseBusy(t *testing.T) {
	if why := missing(); why != "" {
		t.Skip(why)
	}
	c, err := docker.Open(t.Context(), &docker.Options{Dir: t.TempDir(), Image: sandboxImage()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	sb, err := c.Create(t.Context(), daytona.Spec{Resources: daytona.Resources{CPU: 0.25}})
	if err != nil {
		t.Fatal(err)
	}
	inside(t, sb, "for i in 1 2 3 4 5 6 7 8; do sh -c 'while :; do /bin/true; done' >/dev/null 2>&1 & done")
	for i := range 5 {
		if err := sb.Pause(t.Context(), nil); err != nil {
			t.Fatalf("pause %d: %v", i, err)
		}
		if err := sb.Resume(t.Context()); err != nil {
			t.Fatalf("resume %d: %v", i, err)
		}
	}
	// Docker copies files without a word when it could not freeze those who write.
	inside(t, sb, "sh -c 'i=0; while :; do i=$((i+1)); for f in a b; do echo $i > $f.new; mv $f.new $f; done; done' >/dev/null 2>&1 & while ! [ -e b ]; do sleep 0.1; done")
	snapshots, err := c.Snapshots()
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		_, err := sb.CreateSnapshot(t.Context(), "busy")
		if errors.Is(err, daytona.ErrUnavailable) {
			t.Logf("snapshot %d: %v", i, err)
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		from, err := c.Create(t.Context(), daytona.Spec{Snapshot: "busy"})
		if err != nil {
			t.Fatal(err)
		}
		var first, second int
		if _, err := fmt.Sscan(inside(t, from, "cat a b"), &first, &second); err != nil || second != first && second != first-1 {
			t.Errorf("snapshot %d has the files of two moments: %d and %d, %v", i, first, second, err)
		}
		if err := errors.Join(from.Delete(t.Context()), snapshots.DeleteSnapshot(t.Context(), "busy")); err != nil {
			t.Error(err)
		}
	}
	if err := sb.Delete(t.Context()); err != nil {
		t.Error(err)
	}
}
