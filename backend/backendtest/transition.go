package backendtest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/daytona-go/daytona"
)

// stage is where transitions are made and judged: a backend of the suite, or of
// the process that is killed.
type stage struct {
	ctx    context.Context
	h      *Harness
	client *daytona.Client
	image  string // one that nobody has used yet, for transitions that need Images
}

// What transitions are about. Everything else on a stage belongs to the room.
const (
	victim = "victim"
	made   = "made"
)

// transition is a change that a process may be killed in.
type transition struct {
	name string
	// can says whether the backend is capable of it.
	can func(b daytona.Backend) bool
	// needs lists capabilities of the harness.
	needs []Capability
	// before makes what it is done to, which is acknowledged.
	before func(s *stage) error
	do     func(s *stage) error
	// settled reports whether it is done, wholly; or an error if it is neither that
	// nor wholly undone.
	settled func(s *stage) (done bool, err error)
	// remakes says that what the victim has may lie elsewhere on the host when it was
	// undone.
	remakes bool
	// after removes all that it made, and what before has made.
	after func(s *stage) error
}

// settling is how long a backend may take to finish what a killed process left.
const settling = 20 * time.Second

func (s *stage) get(name string) (daytona.Sandbox, error) { return s.client.Get(s.ctx, name) }

// there reports whether there is a sandbox of a name.
func (s *stage) there(name string) (daytona.Sandbox, error) {
	sb, err := s.get(name)
	if errors.Is(err, daytona.ErrNotFound) {
		return nil, nil
	}
	return sb, err
}

func (s *stage) create(change func(*daytona.Spec)) (daytona.Sandbox, error) {
	spec := s.h.Spec
	spec.Env, spec.Labels, spec.Persistent = cloneMap(spec.Env), cloneMap(spec.Labels), true
	change(&spec)
	return s.client.Create(s.ctx, spec)
}

// remove deletes what bears a name, if there is anything.
func (s *stage) remove(names ...string) error {
	for _, name := range names {
		sb, err := s.there(name)
		if err != nil {
			return err
		}
		if sb == nil {
			continue
		}
		if err := sb.Delete(s.ctx); err != nil && !errors.Is(err, daytona.ErrNotFound) {
			return fmt.Errorf("delete %s: %w", name, err)
		}
	}
	return nil
}

func (s *stage) removeSnapshots(names ...string) error {
	m, err := s.client.Snapshots()
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := m.DeleteSnapshot(s.ctx, name); err != nil && !errors.Is(err, daytona.ErrNotFound) {
			return fmt.Errorf("delete snapshot %s: %w", name, err)
		}
	}
	return nil
}

func (s *stage) removeVolumes(names ...string) error {
	m, err := s.client.Volumes()
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := m.DeleteVolume(s.ctx, name); err != nil && !errors.Is(err, daytona.ErrNotFound) {
			return fmt.Errorf("delete volume %s: %w", name, err)
		}
	}
	return nil
}

// keptContent is what a file of a name has: the same everywhere, and nothing that
// compresses.
func keptContent(name string) []byte {
	data := make([]byte, 96<<10)
	rand.NewChaCha8(sha256.Sum256([]byte(name))).Read(data)
	return data
}

// keepPath is where sandboxes have their file.
const keepPath = "/var/tmp/kept"

func (s *stage) write(sb daytona.Sandbox, path, name string) error {
	return sb.FileSystem().WriteFile(s.ctx, path, keptContent(name), 0o644)
}

// whole compares a file byte for byte.
func (s *stage) whole(sb daytona.Sandbox, path, name string) error {
	got, err := sb.FileSystem().ReadFile(s.ctx, path)
	if err != nil {
		return fmt.Errorf("%s of %s: %w", path, sb.Name(), err)
	}
	if !bytes.Equal(got, keptContent(name)) {
		return fmt.Errorf("%s of %s is not what was written: %d bytes, want %d", path, sb.Name(), len(got), len(keptContent(name)))
	}
	return nil
}

// usable starts a sandbox, if it is not started, and demands its file.
func (s *stage) usable(sb daytona.Sandbox, name string) error {
	if err := sb.Start(s.ctx); err != nil {
		return fmt.Errorf("start %s: %w", sb.Name(), err)
	}
	if name == "" {
		return sb.FileSystem().WriteFile(s.ctx, "/var/tmp/probe", []byte("x"), 0o644)
	}
	return s.whole(sb, keepPath, name)
}

// inState demands that a sandbox is there and in one of some states, at once or,
// as somebody may be finishing what was cut off, soon.
func (s *stage) inState(name string, states ...daytona.State) (daytona.Sandbox, error) {
	for deadline := time.Now().Add(s.h.slow(settling)); ; time.Sleep(20 * time.Millisecond) {
		sb, err := s.get(name)
		if err == nil && slices.Contains(states, sb.Info().State) {
			return sb, nil
		}
		if err == nil {
			err = fmt.Errorf("%s is %s (%s), want %v", name, sb.Info().State, sb.Info().Reason, states)
		}
		if time.Now().After(deadline) {
			return nil, err
		}
	}
}

// makeVictim makes the sandbox that transitions are done to.
func makeVictim(change func(*daytona.Spec), then ...func(s *stage, sb daytona.Sandbox) error) func(s *stage) error {
	return func(s *stage) error {
		sb, err := s.create(func(spec *daytona.Spec) {
			spec.Name = victim
			if change != nil {
				change(spec)
			}
		})
		if err != nil {
			return err
		}
		if err := s.write(sb, keepPath, victim); err != nil {
			return err
		}
		for _, f := range then {
			if err := f(s, sb); err != nil {
				return err
			}
		}
		return nil
	}
}

func stopped(s *stage, sb daytona.Sandbox) error { return sb.Stop(s.ctx, nil) }

func archived(s *stage, sb daytona.Sandbox) error { return sb.Archive(s.ctx) }

func paused(s *stage, sb daytona.Sandbox) error { return sb.Pause(s.ctx, nil) }

// layered has a backend that shares files between sandboxes do so.
func layered(s *stage, sb daytona.Sandbox) error {
	if err := sb.Stop(s.ctx, nil); err != nil {
		return err
	}
	children, err := sb.Fork(s.ctx, nil)
	if err != nil {
		return err
	}
	return children[0].Delete(s.ctx)
}

func snapshotted(s *stage, sb daytona.Sandbox) error {
	if _, err := sb.CreateSnapshot(s.ctx, victim); err != nil {
		return err
	}
	return sb.Delete(s.ctx)
}

// onVictim does something to the victim.
func onVictim(f func(s *stage, sb daytona.Sandbox) error) func(s *stage) error {
	return func(s *stage) error {
		sb, err := s.get(victim)
		if err != nil {
			return err
		}
		return f(s, sb)
	}
}

// between two states of the victim, which has its file whichever it is in.
func between(from, to daytona.State) func(s *stage) (bool, error) {
	return func(s *stage) (bool, error) {
		sb, err := s.inState(victim, from, to)
		if err != nil {
			return false, err
		}
		state := sb.Info().State
		if state == daytona.StateStarted {
			err = s.whole(sb, keepPath, victim)
		}
		return state == to, err
	}
}

// endVictim demands its file of the victim before it is removed, if it is there.
func endVictim(s *stage) error {
	sb, err := s.there(victim)
	if err != nil || sb == nil {
		return err
	}
	if err := s.usable(sb, victim); err != nil {
		return err
	}
	return s.remove(victim)
}

// absentOrUsable is settled for what makes a sandbox.
func absentOrUsable(file string, names ...string) func(s *stage) (bool, error) {
	return func(s *stage) (bool, error) {
		there := 0
		for _, name := range names {
			sb, err := s.there(name)
			if err != nil {
				return false, err
			}
			if sb == nil {
				continue
			}
			there++
			if sb.Info().State != daytona.StateStarted {
				return false, fmt.Errorf("%s is %s (%s)", name, sb.Info().State, sb.Info().Reason)
			}
			if err := s.usable(sb, file); err != nil {
				return false, err
			}
		}
		if there != 0 && there != len(names) {
			return false, fmt.Errorf("%d of %v are there", there, names)
		}
		return there > 0, nil
	}
}

// gone is settled for the deletion of the victim.
func gone(s *stage) (bool, error) {
	for deadline := time.Now().Add(s.h.slow(settling)); ; time.Sleep(20 * time.Millisecond) {
		sb, err := s.there(victim)
		if err != nil || sb == nil {
			return err == nil, err
		}
		state := sb.Info().State
		if state != daytona.StateDestroying {
			if state == daytona.StateStarted {
				err = s.whole(sb, keepPath, victim)
			}
			return false, err
		}
		if time.Now().After(deadline) {
			return false, fmt.Errorf("%s is still %s", victim, state)
		}
	}
}

func anyBackend(daytona.Backend) bool { return true }

const smallDisk = 0.125 // GiB

func transitions() []transition {
	removeMade := func(s *stage) error { return s.remove(made) }
	none := func(*stage) error { return nil }
	endFork := func(s *stage) error { return errors.Join(s.remove(made, made+"-2"), endVictim(s)) }
	fork := onVictim(func(s *stage, sb daytona.Sandbox) error {
		_, err := sb.Fork(s.ctx, &daytona.ForkOptions{Names: []string{made, made + "-2"}})
		return err
	})
	// forked demands of the parent that it is what it was, besides.
	forked := func(state daytona.State) func(s *stage) (bool, error) {
		children := absentOrUsable(victim, made, made+"-2")
		return func(s *stage) (bool, error) {
			if _, err := s.inState(victim, state); err != nil {
				return false, err
			}
			return children(s)
		}
	}
	snapshots := func(s *stage) (bool, error) {
		m, err := s.client.Snapshots()
		if err != nil {
			return false, err
		}
		sn, err := m.GetSnapshot(s.ctx, made)
		if errors.Is(err, daytona.ErrNotFound) {
			return false, nil
		}
		if err == nil && sn.State != daytona.SnapshotActive {
			err = fmt.Errorf("snapshot is %s", sn.State)
		}
		return err == nil, err
	}
	// fromSnapshot makes a sandbox of a snapshot and demands a file.
	fromSnapshot := func(s *stage, snapshot, file string) error {
		sb, err := s.create(func(spec *daytona.Spec) { spec.Name, spec.Image, spec.Snapshot = "probe", "", snapshot })
		if err != nil {
			return err
		}
		return errors.Join(s.usable(sb, file), sb.Delete(s.ctx))
	}
	endSnapshot := func(s *stage) error {
		done, err := snapshots(s)
		if err == nil && done {
			err = fromSnapshot(s, made, victim)
		}
		return errors.Join(err, s.removeSnapshots(made), endVictim(s))
	}
	victimSnapshot := func(s *stage) (*daytona.Snapshot, error) {
		m, err := s.client.Snapshots()
		if err != nil {
			return nil, err
		}
		sn, err := m.GetSnapshot(s.ctx, victim)
		if errors.Is(err, daytona.ErrNotFound) {
			return nil, nil
		}
		return &sn, err
	}
	volume := func(quota float64) transition {
		return transition{
			can: has[daytona.VolumeManager], before: none,
			do: func(s *stage) error {
				m, err := s.client.Volumes()
				if err == nil {
					_, err = m.CreateVolume(s.ctx, daytona.VolumeSpec{Name: made, Quota: quota})
				}
				return err
			},
			settled: func(s *stage) (bool, error) {
				m, err := s.client.Volumes()
				if err != nil {
					return false, err
				}
				if _, err = m.GetVolume(s.ctx, made); errors.Is(err, daytona.ErrNotFound) {
					return false, nil
				}
				return err == nil, err
			},
			after: func(s *stage) error {
				sb, err := s.create(func(spec *daytona.Spec) {
					spec.Name, spec.Volumes = "probe", []daytona.VolumeMount{{Volume: made, MountPath: "/mnt/made"}}
				})
				if err != nil {
					return err
				}
				return errors.Join(s.write(sb, "/mnt/made/f", made), s.whole(sb, "/mnt/made/f", made), sb.Delete(s.ctx), s.removeVolumes(made))
			},
		}
	}
	volumeCreate, volumeQuota := volume(0), volume(smallDisk)
	volumeCreate.name = "volume-create"
	volumeQuota.name, volumeQuota.needs = "volume-create with a quota", []Capability{Disk}
	all := []transition{
		{
			name: "create", can: anyBackend, before: none,
			do:      func(s *stage) error { _, err := s.create(func(spec *daytona.Spec) { spec.Name = made }); return err },
			settled: absentOrUsable("", made), after: removeMade,
		},
		{
			name: "create with a disk", can: anyBackend, needs: []Capability{Disk}, before: none,
			do: func(s *stage) error {
				_, err := s.create(func(spec *daytona.Spec) { spec.Name, spec.Resources.Disk = made, smallDisk })
				return err
			},
			settled: absentOrUsable("", made), after: removeMade,
		},
		{
			name: "create from a snapshot", can: has[daytona.Snapshotter], before: makeVictim(nil, snapshotted),
			do: func(s *stage) error {
				_, err := s.create(func(spec *daytona.Spec) { spec.Name, spec.Image, spec.Snapshot = made, "", victim })
				return err
			},
			settled: absentOrUsable(victim, made),
			after:   func(s *stage) error { return errors.Join(s.remove(made), s.removeSnapshots(victim)) },
		},
		{
			name: "import", can: anyBackend, needs: []Capability{Images}, before: none,
			do: func(s *stage) error {
				_, err := s.create(func(spec *daytona.Spec) { spec.Name, spec.Image, spec.User = made, s.image, "root" })
				return err
			},
			settled: func(s *stage) (bool, error) {
				sb, err := s.there(made)
				return sb != nil, err
			},
			after: removeMade,
		},
		{
			name: "start", can: anyBackend, before: makeVictim(nil, stopped),
			do:      onVictim(func(s *stage, sb daytona.Sandbox) error { return sb.Start(s.ctx) }),
			settled: between(daytona.StateStopped, daytona.StateStarted), after: endVictim,
		},
		{
			name: "stop", can: anyBackend, before: makeVictim(nil),
			do:      onVictim(stopped),
			settled: between(daytona.StateStarted, daytona.StateStopped), after: endVictim,
		},
		{
			name: "delete", can: anyBackend, before: makeVictim(nil),
			do:      onVictim(func(s *stage, sb daytona.Sandbox) error { return sb.Delete(s.ctx) }),
			settled: gone, after: endVictim,
		},
		{
			name: "delete a parent", can: has[daytona.Forker], before: makeVictim(nil, layered),
			do:      onVictim(func(s *stage, sb daytona.Sandbox) error { return sb.Delete(s.ctx) }),
			settled: gone, after: endVictim,
		},
		{
			name: "delete what is archived", can: has[daytona.Archiver], before: makeVictim(nil, stopped, archived),
			do:      onVictim(func(s *stage, sb daytona.Sandbox) error { return sb.Delete(s.ctx) }),
			settled: gone, after: endVictim,
		},
		{
			name: "fork what is started", can: has[daytona.Forker], before: makeVictim(nil),
			do: fork, settled: forked(daytona.StateStarted), after: endFork,
		},
		{
			name: "fork what is stopped", can: has[daytona.Forker], before: makeVictim(nil, stopped),
			do: fork, settled: forked(daytona.StateStopped), remakes: true, after: endFork,
		},
		{
			name: "snapshot", can: has[daytona.Snapshotter], before: makeVictim(nil),
			do:      onVictim(func(s *stage, sb daytona.Sandbox) error { _, err := sb.CreateSnapshot(s.ctx, made); return err }),
			settled: snapshots, after: endSnapshot,
		},
		{
			name: "snapshot of an image", can: has[daytona.Snapshotter], needs: []Capability{Images}, before: none,
			do: func(s *stage) error {
				_, err := s.client.CreateSnapshot(s.ctx, daytona.SnapshotSpec{Name: made, Image: s.image})
				return err
			},
			settled: snapshots,
			after:   func(s *stage) error { return s.removeSnapshots(made) },
		},
		{
			name: "delete a snapshot", can: has[daytona.Snapshotter], before: makeVictim(nil, snapshotted),
			do: func(s *stage) error { return s.removeSnapshots(victim) },
			settled: func(s *stage) (bool, error) {
				sn, err := victimSnapshot(s)
				if err == nil && sn != nil {
					err = fromSnapshot(s, victim, victim)
				}
				return sn == nil, err
			},
			after: func(s *stage) error { return s.removeSnapshots(victim) },
		},
		{
			name: "snapshot-import", can: has[daytona.SnapshotMover], before: makeVictim(nil, snapshotted),
			do: func(s *stage) error {
				m, _ := daytona.As[daytona.SnapshotMover](s.client.Backend())
				var stream bytes.Buffer
				if err := m.ExportSnapshot(s.ctx, victim, &stream); err != nil {
					return err
				}
				_, err := m.ImportSnapshot(s.ctx, made, &stream)
				return err
			},
			settled: snapshots,
			after: func(s *stage) error {
				done, err := snapshots(s)
				if err == nil && done {
					err = fromSnapshot(s, made, victim)
				}
				return errors.Join(err, s.removeSnapshots(made, victim))
			},
		},
		{
			name: "deactivate a snapshot", can: has[daytona.Snapshotter], before: makeVictim(nil, snapshotted),
			do: func(s *stage) error {
				m, err := s.client.Snapshots()
				if err == nil {
					_, err = m.SetSnapshotActive(s.ctx, victim, false)
				}
				return err
			},
			settled: func(s *stage) (bool, error) {
				sn, err := victimSnapshot(s)
				if err == nil && (sn == nil || sn.State != daytona.SnapshotActive && sn.State != daytona.SnapshotInactive) {
					err = fmt.Errorf("it is %+v", sn)
				}
				return err == nil && sn.State == daytona.SnapshotInactive, err
			},
			after: func(s *stage) error { return s.removeSnapshots(victim) },
		},
		{
			name: "resize", can: has[daytona.Resizer], needs: []Capability{Memory},
			before:  makeVictim(func(spec *daytona.Spec) { spec.Resources.Memory = 0.5 }),
			do:      onVictim(func(s *stage, sb daytona.Sandbox) error { return sb.Resize(s.ctx, daytona.Resources{Memory: 0.75}) }),
			settled: resized(daytona.StateStarted, func(r daytona.Resources) float64 { return r.Memory }, 0.5, 0.75), after: endVictim,
		},
		{
			name: "resize a disk", can: has[daytona.Resizer], needs: []Capability{Memory, Disk},
			before: makeVictim(func(spec *daytona.Spec) { spec.Resources.Disk = smallDisk }, stopped),
			do: onVictim(func(s *stage, sb daytona.Sandbox) error {
				return sb.Resize(s.ctx, daytona.Resources{Disk: 2 * smallDisk})
			}),
			settled: resized(daytona.StateStopped, func(r daytona.Resources) float64 { return r.Disk }, smallDisk, 2*smallDisk), after: endVictim,
		},
		{
			name: "archive", can: has[daytona.Archiver], before: makeVictim(nil, layeredOrStopped),
			do:      onVictim(archived),
			settled: between(daytona.StateStopped, daytona.StateArchived), after: endVictim,
		},
		{
			name: "restore", can: has[daytona.Archiver], before: makeVictim(nil, layeredOrStopped, archived),
			do:      onVictim(func(s *stage, sb daytona.Sandbox) error { return sb.Restore(s.ctx) }),
			settled: between(daytona.StateArchived, daytona.StateStopped), after: endVictim,
		},
		{
			name: "pause", can: has[daytona.Pauser], before: makeVictim(nil),
			do:      onVictim(paused),
			settled: between(daytona.StateStarted, daytona.StatePaused), after: endVictim,
		},
		{
			name: "resume", can: has[daytona.Pauser], before: makeVictim(nil, paused),
			do:      onVictim(func(s *stage, sb daytona.Sandbox) error { return sb.Resume(s.ctx) }),
			settled: between(daytona.StatePaused, daytona.StateStarted), after: endVictim,
		},
		volumeCreate, volumeQuota,
		{
			name: "volume-delete", can: has[daytona.VolumeManager],
			before: volumeCreate.do,
			do:     func(s *stage) error { return s.removeVolumes(made) },
			settled: func(s *stage) (bool, error) {
				there, err := volumeCreate.settled(s)
				return !there, err
			},
			after: func(s *stage) error { return s.removeVolumes(made) },
		},
	}
	return all
}

// layeredOrStopped is layered where the backend can.
func layeredOrStopped(s *stage, sb daytona.Sandbox) error {
	if has[daytona.Forker](s.client.Backend()) {
		if err := layered(s, sb); err != nil {
			return err
		}
		// So that it has files of its own as well.
		if err := sb.Start(s.ctx); err != nil {
			return err
		}
	}
	return stopped(s, sb)
}

func resized(state daytona.State, of func(daytona.Resources) float64, from, to float64) func(s *stage) (bool, error) {
	return func(s *stage) (bool, error) {
		sb, err := s.inState(victim, state)
		if err != nil {
			return false, err
		}
		got := of(sb.Info().Resources)
		if got != from && got != to {
			err = fmt.Errorf("it has %v, want %v or %v", got, from, to)
		}
		return got == to, err
	}
}

// reachedBy says which transitions come to the points of a name's middle part.
func reachedBy(point string) []string {
	_, rest, _ := strings.Cut(point, "/")
	middle, _, _ := strings.Cut(rest, "/")
	switch middle {
	case "fetch":
		return nil // it takes two states with one object storage
	case "create":
		return []string{"create"}
	case "save":
		return []string{"create", "stop", "fork what is stopped", "snapshot", "resize"}
	case "boot":
		return []string{"create", "start", "fork what is started"}
	case "fork":
		return []string{"fork what is started", "fork what is stopped"}
	case "step":
		return []string{"fork what is stopped", "snapshot", "resize"}
	case "put":
		return []string{"archive"}
	case "discard":
		return []string{"archive"}
	case "forget":
		return []string{"restore", "delete what is archived"}
	case "snapshot-image":
		return []string{"snapshot of an image"}
	case "snapshot-delete":
		return []string{"delete a snapshot"}
	case "snapshot-change":
		return []string{"deactivate a snapshot"}
	case "grow":
		return []string{"resize a disk"}
	case "disk":
		return []string{"create with a disk", "volume-create with a quota"}
	case "fill":
		return []string{"fork what is stopped", "create from a snapshot"}
	case "capture":
		return []string{"fork what is started", "fork what is stopped", "snapshot"}
	case "capture-started":
		return []string{"fork what is started", "snapshot"}
	case "capture-stopped":
		return []string{"fork what is stopped"}
	case "layer":
		return []string{"delete a parent", "delete a snapshot"}
	case "commit":
		return []string{"fork what is started", "snapshot", "archive"}
	}
	return []string{middle}
}
