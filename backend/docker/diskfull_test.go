//go:build linux

package docker_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/backend/backendtest"
	"github.com/daytona-go/daytona/backend/docker"
	suites "github.com/daytona-go/daytona/backend/docker/internal/harness"
)

// TestDiskFull has all that writes to the state directory do so on a disk that is
// full: it is refused with the reason, nothing half-made is seen or stays in the
// engine, and what is there can be stopped and deleted.
func TestDiskFull(t *testing.T) {
	if why := missing(); why != "" {
		t.Skip(why)
	}
	ctx := t.Context()
	mount := backendtest.SmallFileSystem(t, 64<<20)
	dir := filepath.Join(mount, "state")
	c := opened(t, docker.Options{Dir: dir, Image: smallLayout(t)})
	keep := func(name string) daytona.Sandbox {
		t.Helper()
		sb, err := c.Create(ctx, daytona.Spec{Name: name, User: "root", Persistent: true})
		if err == nil {
			err = sb.FileSystem().WriteFile(ctx, "/f", []byte("kept"), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
		return sb
	}
	try := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	started, stopped := keep("started"), keep("stopped")
	try("stop", stopped.Stop(ctx, nil))
	snapshots, err := c.Snapshots()
	try("snapshots", err)
	volumes, err := c.Volumes()
	try("volumes", err)
	state := func() string {
		t.Helper()
		var all []string
		for sb, err := range c.List(ctx, nil) {
			try("list", err)
			all = append(all, fmt.Sprint(sb.Name(), " ", sb.Info().State))
		}
		for sn, err := range snapshots.ListSnapshots(ctx) {
			try("list", err)
			all = append(all, "snapshot "+sn.Name)
		}
		for v, err := range volumes.ListVolumes(ctx) {
			try("list", err)
			all = append(all, "volume "+v.Name)
		}
		left, err := suites.Leftovers(ctx, dir)
		try("leftovers", err)
		return fmt.Sprint(all, len(left))
	}
	before := state()
	for what, do := range map[string]func() error{
		"create": func() error {
			_, err := c.Create(ctx, daytona.Spec{Name: "made", User: "root"})
			return err
		},
		"fork":     func() error { _, err := started.Fork(ctx, nil); return err },
		"snapshot": func() error { _, err := started.CreateSnapshot(ctx, "made"); return err },
		"volume": func() error {
			_, err := volumes.CreateVolume(ctx, daytona.VolumeSpec{Name: "made"})
			return err
		},
		"archive": func() error { return stopped.Archive(ctx) },
	} {
		free := backendtest.FillFileSystem(t, mount, 0)
		if err := do(); !errors.Is(err, daytona.ErrNoSpace) {
			t.Errorf("%s: %v", what, err)
		}
		free()
		if after := state(); after != before {
			t.Errorf("after %s there is %s, there was %s", what, after, before)
		}
	}
	free := backendtest.FillFileSystem(t, mount, 0)
	try("stop", started.Stop(ctx, &daytona.StopOptions{Force: true}))
	try("delete", stopped.Delete(ctx))
	free()
	try("start", started.Start(ctx))
	if got, err := started.FileSystem().ReadFile(ctx, "/f"); err != nil || string(got) != "kept" {
		t.Errorf("%q, %v", got, err)
	}
	try("delete", started.Delete(ctx))
	wantNothing(t, dir)
}
