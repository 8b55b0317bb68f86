package local

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/backend/backendtest"
)

func freeBytes(t *testing.T, dir string) int64 {
	t.Helper()
	unix.Sync()
	var st unix.Statfs_t
	must(t, unix.Statfs(dir, &st))
	return int64(st.Bfree) * st.Bsize
}

// TestDiskFull has all that makes something on a disk that is full, or about to
// be: it is refused with the reason, nothing half-made is seen or takes place, and
// what is there can be stopped and deleted.
func TestDiskFull(t *testing.T) {
	ctx := t.Context()
	mount := backendtest.SmallFileSystem(t, 160<<20)
	e, c := openEngine(t, filepath.Join(mount, "state"))
	data := make([]byte, 3<<20)
	for i := range data {
		data[i] = byte(i * i >> 7)
	}
	keep := func(name string, spec daytona.Spec) daytona.Sandbox {
		t.Helper()
		spec.Name, spec.Persistent = name, true
		sb, err := c.Create(ctx, spec)
		must(t, err)
		must(t, sb.FileSystem().WriteFile(ctx, "/var/tmp/f", data, 0o644))
		return sb
	}
	intact := func(sb daytona.Sandbox) {
		t.Helper()
		if got, err := sb.FileSystem().ReadFile(ctx, "/var/tmp/f"); err != nil || !slices.Equal(got, data) {
			t.Errorf("%s has lost its file: %d bytes, %v", sb.Name(), len(got), err)
		}
	}
	started, stopped := keep("started", daytona.Spec{}), keep("stopped", daytona.Spec{})
	must(t, stopped.Stop(ctx, nil))
	snapshots, err := c.Snapshots()
	must(t, err)
	volumes, err := c.Volumes()
	must(t, err)
	image := filepath.Join(t.TempDir(), "image")
	l, err := layout.Write(image, empty.Index)
	must(t, err)
	must(t, l.AppendImage(backendtest.SmallImage(t), layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "small"})))

	type attempt struct {
		name string
		do   func() error
		undo func() error
	}
	remove := func(name string) func() error {
		return func() error {
			sb, err := c.Get(ctx, name)
			if err == nil {
				err = sb.Delete(ctx)
			}
			return err
		}
	}
	create := func(name string, spec daytona.Spec) attempt {
		spec.Name, spec.Persistent = "made", true
		return attempt{name, func() error { _, err := c.Create(ctx, spec); return err }, remove("made")}
	}
	fork := func(sb daytona.Sandbox) attempt {
		return attempt{"fork what is " + sb.Name(), func() error {
			_, err := sb.Fork(ctx, &daytona.ForkOptions{Names: []string{"made", "made-2"}})
			return err
		}, func() error { return errors.Join(remove("made")(), remove("made-2")()) }}
	}
	attempts := []attempt{
		create("create", daytona.Spec{}),
		create("create of an image", daytona.Spec{Image: "oci:" + image + ":small", User: "root"}),
		fork(started), fork(stopped),
		{"snapshot", func() error { _, err := started.CreateSnapshot(ctx, "made"); return err }, func() error { return snapshots.DeleteSnapshot(ctx, "made") }},
		{"volume", func() error {
			_, err := volumes.CreateVolume(ctx, daytona.VolumeSpec{Name: "made"})
			return err
		}, func() error { return volumes.DeleteVolume(ctx, "made") }},
	}
	if canLimitDisk() == "" {
		attempts = append(attempts, create("create with a disk", daytona.Spec{Resources: daytona.Resources{Disk: 0.125}}),
			attempt{"volume with a quota", func() error {
				_, err := volumes.CreateVolume(ctx, daytona.VolumeSpec{Name: "made", Quota: 0.125})
				return err
			}, func() error { return volumes.DeleteVolume(ctx, "made") }})
	}
	if e.canArchive() == "" {
		attempts = append(attempts, attempt{"archive", func() error { return stopped.Archive(ctx) }, func() error { return stopped.Restore(ctx) }})
	}
	state := func() string {
		t.Helper()
		var all []string
		for sb, err := range c.List(ctx, nil) {
			must(t, err)
			all = append(all, fmt.Sprint("sandbox ", sb.Name(), " ", sb.Info().State))
		}
		for sn, err := range snapshots.ListSnapshots(ctx) {
			must(t, err)
			all = append(all, "snapshot "+sn.Name)
		}
		for v, err := range volumes.ListVolumes(ctx) {
			must(t, err)
			all = append(all, "volume "+v.Name)
		}
		for _, pattern := range []string{"sandboxes/*", "snapshots/*", "volumes/.*", "archive/*/*", "images/tmp/*", "sandboxes/*/*.new"} {
			found, err := filepath.Glob(e.Dir(pattern))
			must(t, err)
			all = append(all, fmt.Sprint(len(found), " ", pattern))
		}
		return fmt.Sprint(all)
	}
	// What is made once and stays: the network's, the archive's directory, the image.
	for _, a := range attempts {
		if err := a.do(); err != nil {
			t.Fatalf("%s with place: %v", a.name, err)
		}
		if err := a.undo(); err != nil {
			t.Fatalf("%s is taken back: %v", a.name, err)
		}
	}
	if _, err := e.images.Prune(ctx); err != nil {
		t.Fatal(err)
	}
	intact(started)
	before, place := state(), freeBytes(t, mount)
	full := 0
	for _, leave := range []int64{0, 48 << 10, 2 << 20} {
		for _, a := range attempts {
			free := backendtest.FillFileSystem(t, mount, leave)
			err := a.do()
			if err == nil {
				free()
				if err := a.undo(); err != nil {
					t.Fatalf("%s is taken back: %v", a.name, err)
				}
			} else {
				full++
				if daytona.KindOf(err) != daytona.KindNoSpace {
					t.Errorf("%s with %d KiB: an error of kind %s: %v", a.name, leave>>10, daytona.KindOf(err), err)
				}
				free()
			}
			// Deletions that failed for want of space are tried again.
			for deadline := time.Now().Add(10 * time.Second); state() != before; time.Sleep(50 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("after %s with %d KiB there is %s, there was %s", a.name, leave>>10, state(), before)
				}
			}
		}
		if _, err := e.images.Prune(ctx); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d attempts failed", full)
	if full < len(attempts) {
		t.Errorf("only %d attempts failed: was it full?", full)
	}
	intact(started)
	if now := freeBytes(t, mount); now < place-1<<20 {
		t.Errorf("%d bytes are free, there were %d", now, place)
	}

	if e.canArchive() == "" {
		must(t, stopped.Archive(ctx))
		free := backendtest.FillFileSystem(t, mount, 0)
		if err := stopped.Restore(ctx); daytona.KindOf(err) != daytona.KindNoSpace {
			t.Errorf("restore: %v", err)
		}
		if i, err := stopped.Refresh(ctx); err != nil || i.State != daytona.StateArchived {
			t.Errorf("after it was not restored it is %s, %v", i.State, err)
		}
		free()
	}
	must(t, stopped.Start(ctx))
	intact(stopped)
	// What is there can be ended.
	free := backendtest.FillFileSystem(t, mount, 0)
	must(t, started.Stop(ctx, &daytona.StopOptions{Force: true}))
	must(t, stopped.Delete(ctx))
	free()
	must(t, started.Start(ctx))
	intact(started)
	must(t, started.Delete(ctx))
	if left := state(); left[:10] == "[sandbox " {
		t.Errorf("there is %s", left)
	}
}
