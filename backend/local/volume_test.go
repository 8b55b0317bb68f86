package local_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/backend/local"
)

// volumeEngine is an engine on a state directory, and what runs a command in a
// new sandbox of it.
type volumeEngine struct {
	*testing.T
	*daytona.Client
	daytona.VolumeManager
	dir string
}

func openVolumeEngine(t *testing.T, dir string) *volumeEngine {
	t.Helper()
	c, err := local.Open(t.Context(), &local.Options{Dir: dir})
	if err != nil {
		t.Skipf("no engine here: %v", err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	v, err := c.Volumes()
	if err != nil {
		t.Fatal(err)
	}
	return &volumeEngine{t, c, v, dir}
}

func (e *volumeEngine) volume(spec daytona.VolumeSpec) daytona.Volume {
	e.Helper()
	v, err := e.CreateVolume(e.Context(), spec)
	if errors.Is(err, daytona.ErrUnsupported) {
		e.Skip(err)
	}
	if err != nil {
		e.Fatal(err)
	}
	return v
}

func (e *volumeEngine) sandbox(m ...daytona.VolumeMount) daytona.Sandbox {
	e.Helper()
	s, err := e.Client.Create(e.Context(), daytona.Spec{User: "root", Volumes: m, Network: daytona.NetworkPolicy{Block: true}})
	if err != nil {
		e.Fatal(err)
	}
	return s
}

// sh runs a script that must end well.
func (e *volumeEngine) sh(s daytona.Sandbox, script string) string {
	e.Helper()
	r, err := s.Process().Exec(e.Context(), script, nil)
	if err != nil || r.ExitCode != 0 {
		e.Fatalf("%s: %v, %+v", script, err, r)
	}
	return strings.TrimSpace(r.Output)
}

// loops are the loop devices of the state directory, once there are as many as
// wanted: they end after the last mount, not with it.
func (e *volumeEngine) loops(want int) {
	e.Helper()
	var got []string
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
		if err != nil {
			e.Fatal(err)
		}
		got = nil
		for _, f := range files {
			if data, err := os.ReadFile(f); err == nil && bytes.HasPrefix(data, []byte(e.dir)) {
				got = append(got, string(data))
			}
		}
		if len(got) == want {
			return
		}
	}
	e.Errorf("loop devices %q, want %d", got, want)
}

// TestVolumeQuota checks that the quota holds, that all who mount the volume,
// from several engines, see one file system, and that nothing stays mounted.
func TestVolumeQuota(t *testing.T) {
	dir := t.TempDir()
	e := openVolumeEngine(t, dir)
	v := e.volume(daytona.VolumeSpec{Name: "limited", Quota: 0.0625})
	if v.Quota != 0.0625 || !v.LastUsedAt.IsZero() {
		t.Errorf("volume %+v", v)
	}
	whole := daytona.VolumeMount{Volume: "limited", MountPath: "/data"}
	a := e.sandbox(whole)
	other := openVolumeEngine(t, dir)
	b := other.sandbox(daytona.VolumeMount{Volume: v.ID, MountPath: "/ro", ReadOnly: true}, daytona.VolumeMount{Volume: "limited", MountPath: "/mine", Subpath: "users/b"})
	e.loops(1)
	if got := e.sh(a, "stat -c '%a %u %g' /data; ls -A /data; echo one > /data/f; sync; df -m --output=size /data | tail -1"); !strings.HasPrefix(got, "777 0 0\nusers\n") {
		t.Errorf("the new volume: %q", got)
	}
	if got := e.sh(b, "cat /ro/f; ! echo x 2>/dev/null > /ro/f; ! mount -o remount,rw /ro 2>/dev/null; echo two > /mine/g; chown 1000:1000 /mine/g; chmod 4711 /mine/g"); got != "one" {
		t.Errorf("in the other sandbox: %q", got)
	}
	if got := e.sh(a, "stat -c '%a %u %g' /data/users/b/g; cat /data/users/b/g"); got != "4711 1000 1000\ntwo" {
		t.Errorf("what the other sandbox wrote: %q", got)
	}
	// Full for all of them, root or not; and free again.
	got := e.sh(a, "! dd if=/dev/zero of=/data/big bs=1M count=100 2>/tmp/err; grep -o 'No space left on device' /tmp/err; stat -c %s /data/big")
	if !strings.HasPrefix(got, "No space left on device\n") {
		t.Errorf("beyond the quota: %q", got)
	}
	if got := e.sh(b, "! dd if=/dev/zero of=/mine/more bs=1M count=5 2>/tmp/err; grep -o 'No space left on device' /tmp/err"); got != "No space left on device" {
		t.Errorf("beyond the quota, through the other mount: %q", got)
	}
	e.sh(a, "rm /data/big && dd if=/dev/zero of=/data/fits bs=1M count=20 2>/dev/null && echo kept > /data/kept")
	if err := e.DeleteVolume(t.Context(), "limited"); daytona.KindOf(err) != daytona.KindConflict {
		t.Errorf("delete in use: %v", err)
	}
	got2, err := e.GetVolume(t.Context(), "limited")
	if err != nil || time.Since(got2.LastUsedAt) > time.Minute || got2.LastUsedAt.Before(v.CreatedAt) {
		t.Errorf("last used %v, %v", got2.LastUsedAt, err)
	}
	if err := a.Delete(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := b.Stop(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	e.loops(0)
	if err := b.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := e.sh(b, "cat /ro/kept"); got != "kept" {
		t.Errorf("after all mounts had gone: %q", got)
	}
	if err := b.Delete(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := e.DeleteVolume(t.Context(), v.ID); err != nil {
		t.Error(err)
	}
	if _, err := e.GetVolume(t.Context(), v.ID); daytona.KindOf(err) != daytona.KindNotFound {
		t.Errorf("after delete: %v", err)
	}
	e.loops(0)
}

// TestVolumeQuotaTogether starts sandboxes with one volume at once: two loop
// devices for its file would ruin it.
func TestVolumeQuotaTogether(t *testing.T) {
	dir := t.TempDir()
	e := openVolumeEngine(t, dir)
	e.volume(daytona.VolumeSpec{Name: "v", Quota: 0.0625})
	for range 3 {
		engines := []*volumeEngine{e, openVolumeEngine(t, dir)}
		var wg sync.WaitGroup
		sandboxes := make([]daytona.Sandbox, 6)
		for i := range sandboxes {
			wg.Go(func() {
				s, err := engines[i%2].Client.Create(t.Context(), daytona.Spec{User: "root", Network: daytona.NetworkPolicy{Block: true},
					Volumes: []daytona.VolumeMount{{Volume: "v", MountPath: "/data"}}})
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := s.Process().Exec(t.Context(), "echo x >> /data/log", nil); err != nil {
					t.Error(err)
				}
				sandboxes[i] = s
			})
		}
		wg.Wait()
		if t.Failed() {
			return
		}
		e.loops(1)
		want := e.sh(sandboxes[0], "cat /data/log | wc -l")
		for _, s := range sandboxes {
			if got := e.sh(s, "cat /data/log | wc -l"); got != want {
				t.Errorf("%s lines, another sandbox sees %s", got, want)
			}
			wg.Go(func() {
				if err := s.Delete(context.WithoutCancel(t.Context())); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	s := e.sandbox(daytona.VolumeMount{Volume: "v", MountPath: "/data"})
	if got := e.sh(s, "cat /data/log | wc -l"); got != "18" {
		t.Errorf("%s lines, want 18", got)
	}
}

// TestVolumeQuotaAdopted mounts a volume that a sandbox has whose engine is gone.
func TestVolumeQuotaAdopted(t *testing.T) {
	dir := t.TempDir()
	first, err := local.Open(t.Context(), &local.Options{Dir: dir})
	if err != nil {
		t.Skipf("no engine here: %v", err)
	}
	v, err := first.Volumes()
	if err != nil {
		t.Fatal(err)
	}
	(&volumeEngine{t, first, v, dir}).volume(daytona.VolumeSpec{Name: "v", Quota: 1.0 / 32})
	m := []daytona.VolumeMount{{Volume: "v", MountPath: "/data"}}
	old, err := first.Create(t.Context(), daytona.Spec{Name: "old", User: "root", Persistent: true, Volumes: m, Network: daytona.NetworkPolicy{Block: true}})
	if err != nil {
		t.Fatal(err)
	}
	(&volumeEngine{t, first, v, dir}).sh(old, "echo 1 > /data/f")
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	e := openVolumeEngine(t, dir)
	s := e.sandbox(m...)
	if old, err = e.Get(t.Context(), "old"); err != nil {
		t.Fatal(err)
	}
	e.loops(1)
	if got := e.sh(s, "cat /data/f; echo 2 > /data/f"); got != "1" {
		t.Errorf("in the new sandbox: %q", got)
	}
	if got := e.sh(old, "cat /data/f"); got != "2" {
		t.Errorf("in the old sandbox: %q", got)
	}
	if err := old.Delete(t.Context()); err != nil {
		t.Fatal(err)
	}
	e.loops(1)
	if got := e.sh(s, "cat /data/f"); got != "2" {
		t.Errorf("with the old sandbox deleted: %q", got)
	}
}

// TestVolumeShared checks that a directory volume is one POSIX file system for
// all sandboxes that mount it.
func TestVolumeShared(t *testing.T) {
	e := openVolumeEngine(t, t.TempDir())
	for name, quota := range map[string]float64{"plain": 0, "limited": 0.0625} {
		t.Run(name, func(t *testing.T) {
			e := &volumeEngine{t, e.Client, e.VolumeManager, e.dir}
			e.volume(daytona.VolumeSpec{Name: name, Quota: quota})
			m := daytona.VolumeMount{Volume: name, MountPath: "/v"}
			a, b := e.sandbox(m), e.sandbox(m)
			// A lock of one is a lock for the other.
			e.sh(a, "cd /v && echo 0 > n && (flock -x 9; touch locked; while [ ! -e go ]; do sleep .01; done) 9> lock >/dev/null 2>&1 & while [ ! -e /v/locked ]; do sleep .01; done")
			e.sh(b, "! flock -n /v/lock true && touch /v/go && flock -w 10 /v/lock true")
			// What one maps the other sees, and a rename replaces at once.
			e.sh(a, "head -c 4096 /dev/zero > /v/map && ln /v/map /v/hard && ln -s map /v/soft && mkfifo /v/fifo")
			py := func(s daytona.Sandbox, code string) string { return e.sh(s, "python3 -c '"+code+"'") }
			if r, err := a.Process().Exec(t.Context(), "python3 --version", nil); err == nil && r.ExitCode == 0 {
				py(b, `import mmap; f=open("/v/map","r+b"); m=mmap.mmap(f.fileno(),4096); m[0:5]=b"hello"; m.flush()`)
				if got := py(a, `import mmap; f=open("/v/hard","rb"); print(mmap.mmap(f.fileno(),4096,prot=mmap.PROT_READ)[0:5].decode())`); got != "hello" {
					t.Errorf("a mapping of the other sandbox: %q", got)
				}
			}
			if got := e.sh(b, "stat -c %h /v/map; readlink /v/soft; echo new > /v/tmp && mv /v/tmp /v/map && stat -c %h /v/hard"); got != "2\nmap\n1" {
				t.Errorf("links: %q", got)
			}
			if got := e.sh(a, "cat /v/soft"); got != "new" {
				t.Errorf("after the rename: %q", got)
			}
			for _, s := range []daytona.Sandbox{a, b} {
				if err := s.Delete(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// TestVolumeReadOnly checks that root of a sandbox cannot write through a
// read-only mount, by any way that root knows.
func TestVolumeReadOnly(t *testing.T) {
	e := openVolumeEngine(t, t.TempDir())
	for name, quota := range map[string]float64{"plain": 0, "limited": 0.0625} {
		t.Run(name, func(t *testing.T) {
			e := &volumeEngine{t, e.Client, e.VolumeManager, e.dir}
			e.volume(daytona.VolumeSpec{Name: name, Quota: quota})
			w := e.sandbox(daytona.VolumeMount{Volume: name, MountPath: "/v"})
			e.sh(w, "mkdir /v/d && echo old > /v/d/f && chmod 666 /v/d/f")
			s := e.sandbox(daytona.VolumeMount{Volume: name, MountPath: "/v", ReadOnly: true}, daytona.VolumeMount{Volume: name, MountPath: "/s", Subpath: "d", ReadOnly: true})
			for _, script := range []string{
				"echo x > /v/d/f", "echo x > /s/f", "rm /v/d/f", "chmod 600 /s/f", "chown 5 /v/d/f", "touch /v/d/f", "mkdir /s/new", "ln /s/f /s/g", "truncate -s 0 /v/d/f",
				"mount -o remount,rw /v", "mount -o remount,bind,rw /s", "umount /v", "mount --bind /v /mnt", "mv /s/f /s/g", "setfattr -n user.x -v y /s/f",
				"mknod /tmp/dev b 7 0", "unshare -Urm true", "echo x > /proc/self/root/v/d/f", "python3 -c 'import os; os.open(\"/s/f\", os.O_RDWR)'",
			} {
				r, err := s.Process().Exec(t.Context(), script, nil)
				if err == nil && r.ExitCode == 0 {
					t.Errorf("root did %s", script)
				}
			}
			if got := e.sh(w, "cat /v/d/f; stat -c '%a %u' /v/d/f; ls -A /v/d"); got != "old\n666 0\nf" {
				t.Errorf("afterwards: %q", got)
			}
		})
	}
}

// TestVolumeLeftovers checks that what a killed process has left of a volume
// goes.
func TestVolumeLeftovers(t *testing.T) {
	dir := t.TempDir()
	e := openVolumeEngine(t, dir)
	for _, d := range []string{".new-123", ".gone-0123456789abcdef0123"} {
		if err := os.MkdirAll(filepath.Join(dir, "volumes", d, "data", "deep"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	v := e.volume(daytona.VolumeSpec{Name: "v"})
	entries, err := os.ReadDir(filepath.Join(dir, "volumes"))
	if err != nil || len(entries) != 1 || entries[0].Name() != v.ID {
		t.Errorf("volumes/ has %v, %v", entries, err)
	}
	s3 := daytona.VolumeSpec{Name: "s3", Kind: daytona.VolumeS3, S3: &daytona.S3Location{Endpoint: "https://h", Bucket: "b"}}
	if os.Geteuid() != 0 {
		if _, err := e.CreateVolume(t.Context(), s3); !errors.Is(err, daytona.ErrUnsupported) {
			t.Errorf("a volume of kind s3, without root: %v", err)
		}
	}
	s3.Quota = 1
	if _, err := e.CreateVolume(t.Context(), s3); !errors.Is(err, daytona.ErrUnsupported) {
		t.Errorf("a volume of kind s3 with a quota: %v", err)
	}
}
