package backendtest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
)

// RunStateCrash kills processes with SIGKILL at every point that
// [Harness.Failpoints] names, in the middle of a change of what is kept: what was
// acknowledged before must be there, byte for byte, what was cut off wholly done
// or wholly not and possible again, and when all is deleted nothing may be left.
// Where a point can fail, it does: the error must have a kind, and nothing
// half-made may be seen by the process that goes on. With -short a fifth of the
// points is tried, each day another. The package's TestMain must call [Main].
func RunStateCrash(t *testing.T, h *Harness) {
	if !mainRuns.Load() {
		t.Fatal("RunStateCrash starts the test binary again: let TestMain call backendtest.Main")
	}
	runChecks(t, h, "state-crash", stateCrashChecks())
}

func stateCrashChecks() []check {
	return []check{
		{name: "K01_Killed", needs: []Capability{Persistence}, limit: 8 * time.Minute, run: func(c *env) { checkFailpoints(c, c.h.Failpoints, "kill") }},
		{name: "K02_KilledAgain", needs: []Capability{Persistence}, limit: 4 * time.Minute, run: checkKilledAgain},
		{name: "K03_Failed", needs: []Capability{Persistence}, limit: 8 * time.Minute, run: func(c *env) { checkFailpoints(c, c.h.FailpointsThatFail, "error") }},
	}
}

// failpointVariable has a process end, or fail, at a point.
const failpointVariable = "DAYTONA_FAILPOINT"

// stageArg as the test binary's first argument turns it into a process that
// prepares a room, or makes a transition; its state, the name and an image follow.
const stageArg = "daytona-backendtest-stage"

// The names of what is not a transition.
const (
	preparation = "prepare"
	opening     = "open"
)

// job is one point, reached in one way.
type job struct {
	point string
	by    transition
	again string // a point at which the next process dies that opens the state
}

// checkKilledAgain kills the process that cleans up, too.
func checkKilledAgain(c *env) {
	var jobs []job
	for _, way := range []struct{ name, point, again string }{
		{"create", "lifecycle/create/prepared", "lifecycle/delete/intended"},
		{"create", "lifecycle/create/booted", "lifecycle/delete/cleared"},
		{"delete", "lifecycle/delete/ended", "lifecycle/delete/unnamed"},
		{"delete", "lifecycle/delete/intended", "lifecycle/delete/released"},
		{"delete", "lifecycle/delete/released", "lifecycle/delete/renamed"},
		{"stop", "lifecycle/stop/ended", "lifecycle/stop/cleared"},
		{"fork what is started", "lifecycle/fork/child-made", "lifecycle/delete/unnamed"},
		{"fork what is stopped", "local/capture-stopped/moved", "local/capture-stopped/adopted"},
		{"snapshot", "lifecycle/snapshot/filled", "lifecycle/snapshot-delete/intended"},
		{"snapshot", "lifecycle/snapshot/named", "lifecycle/snapshot-delete/unnamed"},
		{"archive", "lifecycle/archive/archived", "local/discard/removed"},
		{"archive", "lifecycle/archive/archived", "docker/discard/container-removed"},
		{"archive", "lifecycle/archive/packed", "local/forget/unlisted"},
		{"archive", "lifecycle/archive/packed", "docker/forget/unlisted"},
		{"restore", "lifecycle/restore/unpacked", "local/discard/layers-dropped"},
		{"restore", "lifecycle/restore/restored", "local/forget/unlisted"},
	} {
		if slices.Contains(c.h.Failpoints, way.point) && slices.Contains(c.h.Failpoints, way.again) {
			known := transitions()
			i := slices.IndexFunc(known, func(t transition) bool { return t.name == way.name })
			jobs = append(jobs, job{way.point, known[i], way.again})
		}
	}
	b, err := c.h.Open(c.ctx, c.TempDir())
	c.try("open the backend", err)
	defer b.Close()
	jobs = slices.DeleteFunc(jobs, func(j job) bool { return !j.by.can(b) })
	c.work(jobs, "kill")
}

func checkFailpoints(c *env, points []string, what string) {
	if len(points) == 0 {
		c.Skip("the harness names no failpoints")
	}
	b, err := c.h.Open(c.ctx, c.TempDir())
	c.try("open the backend", err)
	defer b.Close()
	var jobs []job
	known := transitions()
	for _, point := range points {
		ways := 0
		for _, name := range reachedBy(point) {
			i := slices.IndexFunc(known, func(t transition) bool { return t.name == name })
			if i < 0 {
				c.Fatalf("nothing is known to reach the point %s", point)
			}
			lacks := slices.ContainsFunc(known[i].needs, func(n Capability) bool { return !c.has(n) })
			if !lacks && known[i].can(b) {
				jobs = append(jobs, job{point: point, by: known[i]})
				ways++
			}
		}
		if ways == 0 {
			c.Logf("%s is not tried: the backend cannot do here what leads to it", point)
		}
	}
	c.work(jobs, what)
}

// work does jobs, some at a time.
func (c *env) work(jobs []job, what string) {
	if testing.Short() {
		const part = 5
		day := time.Now().YearDay() % part
		n := 0
		jobs = slices.DeleteFunc(jobs, func(job) bool { n++; return n%part != day })
		c.Logf("part %d of %d: %d points", day+1, part, len(jobs))
	}
	next := make(chan job, len(jobs))
	for _, j := range jobs {
		next <- j
	}
	close(next)
	// Each lane has a state of its own.
	var lanes sync.WaitGroup
	for lane := range 3 {
		lanes.Go(func() {
			var r *room
			for j := range next {
				name := fmt.Sprintf("%s at %s in %s", what, strings.ReplaceAll(j.point, "/", "."), j.by.name)
				if j.again != "" {
					name += " and at " + strings.ReplaceAll(j.again, "/", ".")
				}
				c.Run(name, func(t *testing.T) {
					if r == nil {
						r = newRoom(t, c)
					}
					ok := false
					defer func() {
						if !ok || t.Failed() {
							r = nil // the next one is not to suffer from it
						}
					}()
					r.T = t
					if slices.Contains(j.by.needs, Images) {
						r.image = unusedImage(t)
					}
					r.try(what, j)
					ok = true
				})
			}
			if r != nil {
				c.Run(fmt.Sprintf("all that was kept %d", lane), func(t *testing.T) { r.T = t; r.end() })
			}
		})
	}
	lanes.Wait()
}

// unusedImage is an image that the backend has to import.
func unusedImage(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "image")
	l, err := layout.Write(dir, empty.Index)
	if err == nil {
		err = l.AppendImage(SmallImage(t), layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "small"}))
	}
	if err != nil {
		t.Fatal(err)
	}
	return "oci:" + dir + ":small"
}

// room is a state with what was acknowledged in it.
type room struct {
	*testing.T
	c     *env
	state string
	image string
	base  []string // of the host, with only this there
}

const (
	roomKept     = "room-kept"
	roomStopped  = "room-stopped"
	roomArchived = "room-archived"
	roomSnapshot = "room-snapshot"
	roomVolume   = "room-volume"
	roomMount    = "/mnt/room"
)

// prepareRoom is done by a process that is then killed.
func prepareRoom(s *stage, acknowledge func(what string)) error {
	b := s.client.Backend()
	var mounts []daytona.VolumeMount
	if has[daytona.VolumeManager](b) {
		m, err := s.client.Volumes()
		if err == nil {
			_, err = m.CreateVolume(s.ctx, daytona.VolumeSpec{Name: roomVolume})
		}
		if err != nil {
			return err
		}
		mounts = append(mounts, daytona.VolumeMount{Volume: roomVolume, MountPath: roomMount})
		acknowledge(roomVolume)
	}
	for _, name := range []string{roomKept, roomStopped, roomArchived} {
		if name == roomArchived && !has[daytona.Archiver](b) {
			continue
		}
		sb, err := s.create(func(spec *daytona.Spec) {
			spec.Name = name
			if name == roomKept {
				spec.Volumes = mounts
			}
		})
		if err != nil {
			return err
		}
		if err := s.write(sb, keepPath, name); err != nil {
			return err
		}
		if name == roomKept && mounts != nil {
			if err := s.write(sb, roomMount+"/kept", roomVolume); err != nil {
				return err
			}
		}
		if name != roomKept {
			if err := sb.Stop(s.ctx, nil); err != nil {
				return err
			}
		}
		if name == roomArchived {
			if err := sb.Archive(s.ctx); err != nil {
				return err
			}
		}
		if name == roomStopped && has[daytona.Snapshotter](b) {
			if _, err := sb.CreateSnapshot(s.ctx, roomSnapshot); err != nil {
				return err
			}
			acknowledge(roomSnapshot)
		}
		acknowledge(name)
	}
	return nil
}

// stageReport is a line of JSON that a process on a stage writes.
type stageReport struct {
	Acknowledged string
	Error        string // what the transition gave
	Kind         daytona.Kind
	Broken       string // what is not as it must be afterwards
}

// stageMain is the side of the process that is killed.
func stageMain(h *Harness, state, what, image string) int {
	ctx := context.Background()
	say := func(r stageReport) { _ = json.NewEncoder(os.Stdout).Encode(r) }
	b, err := h.Open(ctx, state)
	if err != nil {
		say(stageReport{Broken: "open: " + err.Error()})
		return 1
	}
	s := &stage{ctx: ctx, h: h, client: daytona.New(b), image: image}
	switch what {
	case opening:
		return 0
	case preparation:
		if err := prepareRoom(s, func(what string) { say(stageReport{Acknowledged: what}) }); err != nil {
			say(stageReport{Broken: err.Error()})
			return 1
		}
		say(stageReport{Acknowledged: preparation})
		select {} // until it is killed
	}
	known := transitions()
	t := known[slices.IndexFunc(known, func(t transition) bool { return t.name == what })]
	if err := t.do(s); err != nil {
		say(stageReport{Error: err.Error(), Kind: daytona.KindOf(err)})
		if _, err := t.settled(s); err != nil {
			say(stageReport{Broken: "after the error: " + err.Error()})
			return 1
		}
		if done, err := t.settled(s); err == nil && !done {
			if err := t.do(s); err != nil {
				say(stageReport{Broken: "the second time: " + err.Error()})
				return 1
			}
		}
	}
	say(stageReport{Acknowledged: what})
	return 0 // without Close: as good as killed
}

// on opens the room's backend for a moment.
func (r *room) on(f func(s *stage)) {
	r.Helper()
	b, err := r.c.h.Open(r.c.ctx, r.state)
	r.must("open the backend", err)
	client := daytona.New(b)
	defer func() {
		if err := client.Close(); err != nil {
			r.Errorf("close: %v", err)
		}
	}()
	f(&stage{ctx: r.c.ctx, h: r.c.h, client: client, image: r.image})
}

func (r *room) must(what string, err error) {
	r.Helper()
	if err != nil {
		r.Fatalf("%s: %v", what, err)
	}
}

// run starts a process on the room's stage and reads its reports to their end, or
// until stop, after which it is killed.
func (r *room) run(what, point string, stop func(stageReport) bool) (reports []stageReport, killed bool) {
	r.Helper()
	ctx, cancel := context.WithTimeout(r.c.ctx, r.c.slow(time.Minute))
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], stageArg, r.state, what, r.image)
	cmd.Env = append(cmd.Environ(), failpointVariable+"="+point)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	r.must("pipe", err)
	r.must("start a process", cmd.Start())
	for lines := bufio.NewScanner(out); lines.Scan(); {
		var one stageReport
		r.must("report", json.Unmarshal(lines.Bytes(), &one))
		reports = append(reports, one)
		if stop != nil && stop(one) {
			_ = cmd.Process.Kill()
		}
	}
	_ = cmd.Wait()
	if ctx.Err() != nil {
		r.Fatalf("%s has not ended: %v", what, ctx.Err())
	}
	status, _ := cmd.ProcessState.Sys().(syscall.WaitStatus)
	return reports, status.Signaled() && status.Signal() == syscall.SIGKILL
}

func newRoom(t *testing.T, c *env) *room {
	t.Helper()
	r := &room{T: t, c: c, state: c.TempDir()}
	reports, _ := r.run(preparation, "", func(one stageReport) bool { return one.Acknowledged == preparation })
	if n := len(reports); n == 0 || reports[n-1].Acknowledged != preparation {
		t.Fatalf("prepare: %+v", reports)
	}
	r.on(func(s *stage) { r.must("what was acknowledged", r.intact(s)) })
	r.base = r.left()
	return r
}

// left is what the host has of the room.
func (r *room) left() []string {
	r.Helper()
	if r.c.h.Leftovers == nil {
		return nil
	}
	l, err := r.c.h.Leftovers(r.c.ctx, r.state)
	r.must("leftovers", err)
	slices.Sort(l)
	return l
}

// intact demands all that was acknowledged, and nothing else.
func (r *room) intact(s *stage) error {
	b := s.client.Backend()
	want := map[string]daytona.State{roomKept: daytona.StateStarted, roomStopped: daytona.StateStopped}
	if has[daytona.Archiver](b) {
		want[roomArchived] = daytona.StateArchived
	}
	for sb, err := range s.client.List(s.ctx, nil) {
		if err != nil {
			return err
		}
		state, known := want[sb.Name()]
		if !known || sb.Info().State != state {
			return fmt.Errorf("there is %s, %s (%s)", sb.Name(), sb.Info().State, sb.Info().Reason)
		}
		delete(want, sb.Name())
	}
	if len(want) > 0 {
		return fmt.Errorf("%v are lost", want)
	}
	kept, err := s.get(roomKept)
	if err == nil {
		err = s.whole(kept, keepPath, roomKept)
	}
	if err != nil {
		return err
	}
	if m, ok := daytona.As[daytona.VolumeManager](b); ok {
		var names []string
		for v, err := range m.ListVolumes(s.ctx) {
			if err != nil {
				return err
			}
			names = append(names, v.Name)
		}
		if !slices.Equal(names, []string{roomVolume}) {
			return fmt.Errorf("volumes %q", names)
		}
		if err := s.whole(kept, roomMount+"/kept", roomVolume); err != nil {
			return err
		}
	}
	if m, ok := daytona.As[daytona.Snapshotter](b); ok {
		var names []string
		for sn, err := range m.ListSnapshots(s.ctx) {
			if err != nil {
				return err
			}
			names = append(names, sn.Name+" "+string(sn.State))
		}
		if !slices.Equal(names, []string{roomSnapshot + " " + string(daytona.SnapshotActive)}) {
			return fmt.Errorf("snapshots %q", names)
		}
	}
	return nil
}

// try has one process die, or fail, at a point, and judges what is left.
func (r *room) try(what string, j job) {
	t := j.by
	r.on(func(s *stage) { r.must("before", t.before(s)) })
	base := r.left()
	reports, killed := r.run(t.name, j.point+"="+what, nil)
	failed := false
	for _, one := range reports {
		if one.Broken != "" {
			r.Errorf("%s: %s", t.name, one.Broken)
		}
		if one.Error != "" {
			failed = true
			if one.Kind == "" || one.Kind == daytona.KindInternal {
				r.Errorf("the error of %s has kind %q: %s", t.name, one.Kind, one.Error)
			}
		}
	}
	switch {
	case what == "kill" && !killed:
		r.Fatalf("%s does not come to %s: %+v", t.name, j.point, reports)
	case what == "error" && !failed && !r.Failed():
		r.Fatalf("%s gives no error at %s", t.name, j.point)
	}
	if j.again != "" {
		if reports, killed := r.run(opening, j.again+"=kill", nil); !killed {
			r.Fatalf("who opens the state next does not come to %s: %+v", j.again, reports)
		}
	}
	r.on(func(s *stage) {
		done, err := t.settled(s)
		r.must("what was cut off", err)
		if !done {
			if !t.remakes {
				r.only(base)
			}
			r.must("again", t.do(s))
			done, err = t.settled(s)
			if r.must("after it was done again", err); !done {
				r.Errorf("it was done again and is not done")
			}
		}
		r.must("after", t.after(s))
		r.must("what was acknowledged", r.intact(s))
	})
	r.only(r.base)
}

// only demands that the host has so much of the room and no more. A kernel or an
// engine frees some things a moment later.
func (r *room) only(want []string) {
	r.Helper()
	var got []string
	for deadline := time.Now().Add(r.c.slow(10 * time.Second)); ; time.Sleep(20 * time.Millisecond) {
		if got = r.left(); len(got) == len(want) {
			return
		}
		if time.Now().After(deadline) {
			break
		}
	}
	besides := func(l, other []string) string {
		return strings.Join(slices.DeleteFunc(slices.Clone(l), func(s string) bool { return slices.Contains(other, s) }), "\n")
	}
	r.Errorf("the host has %d things of it, want %d. There are, besides:\n%s\nand there are not:\n%s", len(got), len(want), besides(got, want), besides(want, got))
}

// end looks at all that was kept, and removes it.
func (r *room) end() {
	r.on(func(s *stage) {
		b := s.client.Backend()
		for _, name := range []string{roomStopped, roomArchived} {
			if name == roomArchived && !has[daytona.Archiver](b) {
				continue
			}
			sb, err := s.get(name)
			if err == nil {
				err = s.usable(sb, name)
			}
			r.must(name, err)
		}
		names := []string{roomKept, roomStopped, roomArchived, made}
		if has[daytona.Snapshotter](b) {
			sb, err := s.create(func(spec *daytona.Spec) { spec.Name, spec.Image, spec.Snapshot = made, "", roomSnapshot })
			if err == nil {
				err = s.usable(sb, roomStopped)
			}
			r.must("a sandbox of the snapshot", err)
		}
		r.must("delete", s.remove(names...))
		if has[daytona.VolumeManager](b) {
			sb, err := s.create(func(spec *daytona.Spec) {
				spec.Name, spec.Volumes = made, []daytona.VolumeMount{{Volume: roomVolume, MountPath: roomMount}}
			})
			if err == nil {
				err = s.whole(sb, roomMount+"/kept", roomVolume)
			}
			r.must("a sandbox with the volume", errors.Join(err, s.remove(made), s.removeVolumes(roomVolume)))
		}
		if has[daytona.Snapshotter](b) {
			r.must("delete", s.removeSnapshots(roomSnapshot))
		}
	})
	r.only(nil)
}
