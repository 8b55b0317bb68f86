package backendtest

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/daytona-go/daytona"
)

// RunHistories does random sequences of operations on sandboxes, snapshots and
// volumes and compares what comes of each with a model: the states, the files
// byte for byte, environments, labels and limits, the kinds of errors, what is
// listed, and that nothing is left at the end. Only capabilities that the backend
// has are used. A sequence that fails is made shorter, and printed with what
// reproduces it.
//
// The flags are those of package rapid: -rapid.checks is the number of sequences,
// all of which must be done before the test's deadline. Without it there are ten
// (two with -short), or as many as a minute is enough for. -rapid.seed begins
// where another run began, as its log says.
func RunHistories(t *testing.T, h *Harness) {
	if err := h.validate(); err != nil {
		t.Fatal(err)
	}
	given := map[string]bool{}
	flag.Visit(func(f *flag.Flag) { given[f.Name] = true })
	set := func(name, value string) {
		old := flag.Lookup(name).Value.String()
		if err := flag.Set(name, value); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = flag.Set(name, old) })
	}
	wanted, _ := strconv.Atoi(flag.Lookup("rapid.checks").Value.String())
	var deadline time.Time                                                                      // zero is none
	if checks := flag.Lookup("rapid.checks"); !given[checks.Name] && checks.DefValue == "100" { // nor is there a variable
		wanted, deadline = 10, time.Now().Add(h.slow(time.Minute))
		set("rapid.checks", strconv.Itoa(wanted))
	}
	if testing.Short() {
		wanted /= 5 // as rapid does
	}
	// One that is drawn is on record as well.
	if flag.Lookup("rapid.seed").Value.String() == "0" {
		set("rapid.seed", strconv.FormatUint(rand.Uint64()>>1|1, 10))
	}
	seed := flag.Lookup("rapid.seed").Value.String()
	t.Logf("-rapid.checks=%d -rapid.seed=%s", wanted, seed)

	w := &history{test: t, h: h, ctx: t.Context(), verdicts: map[string]bool{}, tally: map[string]map[string]int{}}
	_ = t.TempDir() // is removed after the cleanup that follows
	t.Cleanup(func() {
		w.ctx = context.WithoutCancel(w.ctx)
		w.close(t)
	})
	defer func() {
		t.Logf("%d histories from seed %s, %d operations: %v", w.done, seed, w.did, w.tally)
		for op, refused := range w.verdicts {
			if refused {
				t.Logf("the backend refuses: %s", op)
			}
		}
	}()
	rapid.Check(t, func(rt *rapid.T) {
		if !deadline.IsZero() && time.Now().After(deadline) && w.done > 0 && !w.failed {
			return
		}
		w.run(rt)
		if w.done++; w.done%25 == 0 && w.done < wanted {
			t.Logf("%d histories", w.done)
		}
	})
	if w.done < wanted && deadline.IsZero() {
		t.Errorf("only %d of %d histories were done before the test's deadline", w.done, wanted)
	}
}

// Names that histories draw from: few, so that they are taken.
var (
	historyBoxes     = []string{"a", "b", "c", "d"}
	historySnapshots = []string{"s", "team/t:1"}
	historyVolumes   = []string{"v", "w"}
	historyFiles     = []string{"f", "g", "h"}
	historyMemory    = []float64{0.25, 0.375, 0.5}
	historyDisks     = []float64{0.125, 0.1875, 0.25}
	historyWords     = []string{"", "one", "two words"}
)

const (
	historyDir      = "/var/tmp/history"
	historyMount    = "/mnt/volume"
	historyVariable = "HISTORY"
	historyLabel    = "history"
)

// history is one backend and the model of what should be in it.
type history struct {
	test   *testing.T
	h      *Harness
	ctx    context.Context
	state  string
	client *daytona.Client

	done, did int
	// verdicts tells of each operation whether the backend refuses it as
	// unsupported. It must not do so now and then.
	verdicts map[string]bool
	tally    map[string]map[string]int // by operation and what came of it
	// failed tells that a history has failed, and leaked that something was left,
	// which is not waited for again as long while it is made shorter.
	failed, leaked bool

	t         *rapid.T
	boxes     []*modelBox      // oldest first
	snapshots []*modelSnapshot // oldest first
	volumes   []*modelVolume   // oldest first
	gone      []string         // ids of deleted sandboxes
	serial    int              // of contents
	user      string           // of all sandboxes; "" is the default
}

type modelBox struct {
	name, id, parent string
	state            daytona.State
	persistent       bool
	ephemeral        bool
	files            map[string][]byte
	volume           string // its name; "" if none
	readOnly         bool   // is the volume to it
	env, label       string
	shape            string // of files, as shapeOf says; "" if not known
	memory, disk     float64
}

type modelSnapshot struct {
	name, id     string
	active       bool
	shape        string
	files        map[string][]byte
	memory, disk float64
}

type modelVolume struct {
	name, id string
	files    map[string][]byte
}

func copyFiles(m map[string][]byte) map[string][]byte {
	out := make(map[string][]byte, len(m))
	maps.Copy(out, m)
	return out
}

func (w *history) box(name string) *modelBox {
	for _, b := range w.boxes {
		if b.name == name {
			return b
		}
	}
	return nil
}

func (w *history) snapshot(name string) *modelSnapshot {
	for _, s := range w.snapshots {
		if s.name == name {
			return s
		}
	}
	return nil
}

func (w *history) volume(name string) *modelVolume {
	for _, v := range w.volumes {
		if v.name == name {
			return v
		}
	}
	return nil
}

func (w *history) has(c Capability) bool { _, lacks := w.h.Lacks[c]; return !lacks }

// try fails the history on an error.
func (w *history) try(what string, err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatalf("%s: %v", what, err)
	}
}

// expect demands an error of one of the kinds, "" standing for none. It returns
// whether there was none. A refusal is taken if the operation is always refused.
func (w *history) expect(op, what string, err error, kinds ...daytona.Kind) bool {
	w.t.Helper()
	got := daytona.KindOf(err)
	w.t.Logf("%s: %v", what, cmp.Or(string(got), "done"))
	w.did++
	if w.tally[op] == nil {
		w.tally[op] = map[string]int{}
	}
	w.tally[op][cmp.Or(string(got), "done")]++
	if got == daytona.KindUnsupported || got == "" && slices.Contains(kinds, okKind) {
		refused, known := w.verdicts[op]
		if known && refused != (got != "") {
			w.t.Fatalf("%s: error %v, but the backend did and refuses the same at other times", what, err)
		}
		w.verdicts[op] = got != ""
		if got != "" {
			return false
		}
	}
	if !slices.Contains(kinds, got) {
		w.t.Fatalf("%s: error of kind %q, want one of %q: %v", what, got, kinds, err)
	}
	return got == ""
}

const okKind daytona.Kind = ""

// run does one history.
func (w *history) run(t *rapid.T) {
	w.t = t
	w.boxes, w.snapshots, w.volumes, w.gone, w.serial = nil, nil, nil, nil, 0
	if w.client == nil {
		w.state = w.test.TempDir()
		b, err := w.h.Open(w.ctx, w.state)
		w.try("open the backend", err)
		w.client = daytona.New(b)
	}
	ended := false
	defer func() {
		if !ended { // the next, which is to be a shorter one, finds nothing of it
			w.failed = true
			w.close(w.test)
		}
	}()
	// Not all of the files of one user can be seen by another.
	if w.user = ""; w.shapes() {
		w.user = draw(w, "user", []string{"root", ""})
	}
	ops := w.operations()
	t.Repeat(map[string]func(*rapid.T){
		"":     func(t *rapid.T) { w.t = t; w.check() },
		"step": func(t *rapid.T) { w.t = t; w.step(ops) },
	})
	w.end()
	ended = true
}

// operation is what a step of a history may be.
type operation struct {
	name string
	// weight is how often it is done beside the others.
	weight int
	do     func()
	// ready tells whether there is something to do it with. Nil stands for
	// always.
	ready func() bool
}

// operations are those that the backend has, the plainest first.
func (w *history) operations() []operation {
	b := w.client.Backend()
	boxes := func() bool { return len(w.boxes) > 0 }
	mounted := func() bool { return slices.ContainsFunc(w.boxes, func(b *modelBox) bool { return b.volume != "" }) }
	ops := []operation{
		{"create", 2, w.create, nil}, {"start", 2, w.start, boxes}, {"stop", 2, w.stop, boxes}, {"delete", 1, w.delete, boxes},
		{"write", 2, w.write, boxes}, {"read", 1, w.read, boxes}, {"remove file", 1, w.removeFile, boxes},
	}
	add := func(is bool, more ...operation) {
		if is {
			ops = append(ops, more...)
		}
	}
	snapshots := has[daytona.Snapshotter](b)
	add(w.shapes(), operation{"shape", 2, w.shape, boxes})
	add(has[daytona.Updater](b), operation{"update", 1, w.update, boxes})
	add(has[daytona.Pauser](b), operation{"pause", 1, w.pause, boxes}, operation{"resume", 1, w.resume, boxes})
	add(has[daytona.Forker](b), operation{"fork", 2, w.fork, boxes})
	add(snapshots, operation{"snapshot", 2, w.createSnapshot, boxes}, operation{"delete snapshot", 1, w.deleteSnapshot, nil},
		operation{"activate", 1, w.activate, nil}, operation{"create from snapshot", 2, w.createFrom, nil})
	add(snapshots && w.h.Spec.Image != "", operation{"snapshot of an image", 1, w.snapshotImage, nil})
	add(has[daytona.Archiver](b), operation{"archive", 2, w.archive, boxes}, operation{"restore", 1, w.restore, boxes})
	add(has[daytona.Resizer](b) && (w.has(Memory) || w.has(Disk)), operation{"resize", 2, w.resize, boxes})
	add(has[daytona.VolumeManager](b), operation{"create volume", 2, w.createVolume, nil}, operation{"create with volume", 2, w.createMounted, nil},
		operation{"write to volume", 2, w.writeVolume, mounted}, operation{"delete volume", 1, w.deleteVolume, nil})
	add(w.has(Persistence), operation{"reopen", 1, w.reopen, nil})
	return ops
}

// step does one of the operations.
func (w *history) step(ops []operation) {
	var names []string
	by := map[string]func(){}
	for _, o := range ops {
		by[o.name] = o.do
		if o.ready == nil || o.ready() {
			for range o.weight {
				names = append(names, o.name)
			}
		}
	}
	by[draw(w, "operation", names)]()
}

// evenly is a number below 1024, each as likely as the others; what package
// rapid draws of itself is mostly small.
var evenly = rapid.Custom(func(t *rapid.T) int {
	n := 0
	for range 10 {
		n *= 2
		if rapid.Bool().Draw(t, "bit") {
			n++
		}
	}
	return n
})

func draw[T any](w *history, label string, from []T) T {
	return rapid.Map(evenly, func(n int) T { return from[n%len(from)] }).Draw(w.t, label)
}

// drawKnown draws a name that is more often one of those that there are.
func drawKnown(w *history, label string, names []string, known func(string) bool) string {
	from := slices.Clone(names)
	for _, n := range names {
		if known(n) {
			from = append(from, n, n, n, n)
		}
	}
	return draw(w, label, from)
}

func (w *history) drawSnapshot() string {
	return drawKnown(w, "snapshot", historySnapshots, func(n string) bool { return w.snapshot(n) != nil })
}

func (w *history) drawVolume() string {
	return drawKnown(w, "volume", historyVolumes, func(n string) bool { return w.volume(n) != nil })
}

// target draws a sandbox, mostly one in whose state the operation is done. Now
// and then it does not exist: then it is nil, and the id is that of one that is
// gone, or of none.
func (w *history) target(by map[daytona.State][]daytona.Kind) (*modelBox, string) {
	names := []string{""}
	for _, b := range w.boxes {
		weight := 2
		if k := by[b.state]; len(k) == 1 && k[0] == okKind {
			weight = 10
		}
		for range weight {
			names = append(names, b.name)
		}
	}
	if b := w.box(draw(w, "sandbox", names)); b != nil {
		return b, b.id
	}
	if len(w.gone) > 0 {
		return nil, w.gone[len(w.gone)-1]
	}
	return nil, "no-such-sandbox"
}

// kindsFor are the kinds of an operation on a sandbox by its state; a state that
// is missing is KindState.
func kindsFor(b *modelBox, by map[daytona.State][]daytona.Kind) []daytona.Kind {
	if b == nil {
		return []daytona.Kind{daytona.KindNotFound}
	}
	if k, ok := by[b.state]; ok {
		return k
	}
	return []daytona.Kind{daytona.KindState}
}

var (
	done         = []daytona.Kind{okKind}
	doneOrState  = []daytona.Kind{okKind, daytona.KindState}
	lastingState = []daytona.State{daytona.StateStarted, daytona.StateStopped, daytona.StatePaused, daytona.StateArchived}
)

func describe(b *modelBox, id string) string {
	if b == nil {
		return id + " (gone)"
	}
	return fmt.Sprintf("%s (%s)", b.name, b.state)
}

// made puts a new sandbox into the model.
func (w *history) made(info daytona.Info, b *modelBox) {
	w.t.Helper()
	if info.Name != b.name || info.State != daytona.StateStarted || info.ID == "" || slices.Contains(w.gone, info.ID) {
		w.t.Fatalf("made sandbox %q with id %q in state %s, want %q, of an id that never was, started", info.Name, info.ID, info.State, b.name)
	}
	b.id, b.state = info.ID, daytona.StateStarted
	b.memory, b.disk = info.Resources.Memory, info.Resources.Disk
	if info.Persistent != b.persistent || info.Ephemeral != b.ephemeral {
		w.t.Fatalf("made sandbox %s: persistent %v, ephemeral %v, want %v, %v", b.name, info.Persistent, info.Ephemeral, b.persistent, b.ephemeral)
	}
	w.boxes = append(w.boxes, b)
}

// newName is seldom taken, as long as there are any.
func (w *history) newName() string {
	return drawKnown(w, "name", historyBoxes, func(n string) bool { return w.box(n) == nil })
}

func (w *history) create()        { w.make("", "") }
func (w *history) createFrom()    { w.make(w.drawSnapshot(), "") }
func (w *history) createMounted() { w.make("", w.drawVolume()) }

func (w *history) make(snapshot, volume string) {
	s := w.h.Spec
	s.Env, s.Labels = cloneMap(s.Env), cloneMap(s.Labels)
	s.Name = w.newName()
	s.Persistent = w.has(Persistence) && rapid.Bool().Draw(w.t, "persistent")
	s.Ephemeral = draw(w, "ephemeral", []bool{false, false, false, false, true})
	op := "create"
	var kinds []daytona.Kind
	b := &modelBox{name: s.Name, persistent: s.Persistent, ephemeral: s.Ephemeral, files: map[string][]byte{}, volume: volume}
	s.User = cmp.Or(w.user, s.User)
	if b.env, b.label = draw(w, "env", historyWords), draw(w, "label", historyWords); b.env != "" {
		s.Env[historyVariable] = b.env
	}
	if b.label != "" {
		s.Labels[historyLabel] = b.label
	}
	if w.box(s.Name) != nil {
		kinds = append(kinds, daytona.KindConflict)
	}
	if snapshot == "" && volume == "" && w.has(Disk) && draw(w, "limited", []bool{false, true, true}) {
		s.Resources.Disk = draw(w, "disk", historyDisks)
	}
	if snapshot != "" {
		op, s.Image, s.Snapshot = "create from snapshot", "", snapshot
		switch sn := w.snapshot(snapshot); {
		case sn == nil:
			kinds = append(kinds, daytona.KindNotFound)
		case !sn.active:
			kinds = append(kinds, daytona.KindState)
		default:
			b.files, b.shape = copyFiles(sn.files), sn.shape
		}
	}
	if volume != "" {
		op = "create with volume"
		if b.readOnly = draw(w, "read-only", []bool{false, false, true}); b.readOnly {
			op = "create with read-only volume"
		}
		key := volume
		if v := w.volume(volume); v == nil {
			kinds = append(kinds, daytona.KindNotFound)
		} else if rapid.Bool().Draw(w.t, "by id") {
			key = v.id
		}
		s.Volumes = []daytona.VolumeMount{{Volume: key, MountPath: historyMount, ReadOnly: b.readOnly}}
	}
	if kinds == nil {
		kinds = done
	}
	sb, err := w.client.Create(w.ctx, s)
	if !w.expect(op, fmt.Sprintf("create %s (snapshot %q, volume %q, read-only %v, persistent %v, ephemeral %v, disk %v)", s.Name, snapshot, volume, b.readOnly, s.Persistent, s.Ephemeral, s.Resources.Disk), err, kinds...) {
		return
	}
	w.made(sb.Info(), b)
	if sn := w.snapshot(snapshot); sn != nil && snapshot != "" {
		if sn.memory != 0 && w.h.Spec.Resources.Memory == 0 && b.memory != sn.memory {
			w.t.Fatalf("memory of a sandbox of snapshot %s is %v, want that of the snapshot, %v", snapshot, b.memory, sn.memory)
		}
		if sn.disk != 0 && w.h.Spec.Resources.Disk == 0 && b.disk != sn.disk {
			w.t.Fatalf("disk of a sandbox of snapshot %s is %v, want that of the snapshot, %v", snapshot, b.disk, sn.disk)
		}
	}
}

// operate does what changes the state of a sandbox.
func (w *history) operate(op string, by map[daytona.State][]daytona.Kind, f func(sb daytona.Sandbox) error, then func(b *modelBox)) {
	w.t.Helper()
	b, id := w.target(by)
	var err error
	what := op + " " + describe(b, id)
	if b == nil {
		_, err = w.client.Get(w.ctx, id)
		w.expect(op+" what is gone", what, err, daytona.KindNotFound)
		return
	}
	sb, err := w.client.Get(w.ctx, id)
	w.try("get "+what, err)
	if w.expect(op, what, f(sb), kindsFor(b, by)...) && then != nil {
		then(b)
	}
}

func to(s daytona.State) func(*modelBox) { return func(b *modelBox) { b.state = s } }

func (w *history) start() {
	w.operate("start", map[daytona.State][]daytona.Kind{daytona.StateStarted: done, daytona.StateStopped: done, daytona.StatePaused: done, daytona.StateArchived: done},
		func(sb daytona.Sandbox) error { return sb.Start(w.ctx) }, to(daytona.StateStarted))
}

func (w *history) stop() {
	force := draw(w, "force", []bool{true, true, true, false})
	w.operate("stop", map[daytona.State][]daytona.Kind{daytona.StateStarted: done, daytona.StateStopped: done, daytona.StatePaused: done, daytona.StateArchived: doneOrState},
		func(sb daytona.Sandbox) error { return sb.Stop(w.ctx, &daytona.StopOptions{Force: force}) },
		func(b *modelBox) {
			switch {
			case b.ephemeral:
				w.vanish(b)
			case b.state != daytona.StateArchived:
				b.state = daytona.StateStopped
			}
		})
}

// vanish takes a sandbox out of the model.
func (w *history) vanish(b *modelBox) {
	w.gone = append(w.gone, b.id)
	w.boxes = slices.DeleteFunc(w.boxes, func(x *modelBox) bool { return x == b })
}

func (w *history) pause() {
	w.operate("pause", map[daytona.State][]daytona.Kind{daytona.StateStarted: done, daytona.StatePaused: done},
		func(sb daytona.Sandbox) error { return sb.Pause(w.ctx, nil) }, to(daytona.StatePaused))
}

func (w *history) resume() {
	w.operate("resume", map[daytona.State][]daytona.Kind{daytona.StateStarted: done, daytona.StatePaused: done},
		func(sb daytona.Sandbox) error { return sb.Resume(w.ctx) }, to(daytona.StateStarted))
}

func (w *history) archive() {
	w.operate("archive", map[daytona.State][]daytona.Kind{daytona.StateStopped: done, daytona.StateArchived: done},
		func(sb daytona.Sandbox) error { return sb.Archive(w.ctx) }, to(daytona.StateArchived))
}

func (w *history) restore() {
	// What Restore says of a sandbox that is not archived is open.
	w.operate("restore", map[daytona.State][]daytona.Kind{daytona.StateArchived: done, daytona.StateStopped: doneOrState, daytona.StateStarted: doneOrState, daytona.StatePaused: doneOrState},
		func(sb daytona.Sandbox) error { return sb.Restore(w.ctx) },
		func(b *modelBox) {
			if b.state == daytona.StateArchived {
				b.state = daytona.StateStopped
			}
		})
}

func (w *history) delete() {
	all := map[daytona.State][]daytona.Kind{}
	for _, s := range lastingState {
		all[s] = done
	}
	w.operate("delete", all, func(sb daytona.Sandbox) error { return sb.Delete(w.ctx) }, func(b *modelBox) {
		w.vanish(b)
		err := w.client.Backend().Delete(w.ctx, b.id)
		w.expect("delete again", "delete "+b.name+" again", err, daytona.KindNotFound)
	})
}

func (w *history) resize() {
	b, id := w.target(map[daytona.State][]daytona.Kind{draw(w, "mostly", []daytona.State{daytona.StateStarted, daytona.StateStopped}): done})
	r := daytona.Resources{}
	if w.has(Memory) {
		r.Memory = draw(w, "memory", historyMemory)
	}
	// To limit what had no limit is no growing, and no shrinking.
	disk := w.has(Disk) && b != nil && b.disk != 0 && draw(w, "resize disk", []bool{false, true, true})
	if disk {
		r.Disk = draw(w, "disk", historyDisks)
	}
	if b == nil {
		_, err := w.client.Get(w.ctx, id)
		w.expect("resize what is gone", "resize "+describe(b, id), err, daytona.KindNotFound)
		return
	}
	by := map[daytona.State][]daytona.Kind{daytona.StateStarted: done, daytona.StateStopped: done, daytona.StatePaused: doneOrState}
	op := "resize"
	if disk && r.Disk != b.disk {
		op = "resize disk"
		switch {
		case r.Disk < b.disk:
			by[daytona.StateStopped] = []daytona.Kind{daytona.KindInvalid}
			by[daytona.StateStarted] = []daytona.Kind{daytona.KindInvalid, daytona.KindState}
			by[daytona.StatePaused] = []daytona.Kind{daytona.KindInvalid, daytona.KindState}
			by[daytona.StateArchived] = by[daytona.StatePaused]
			op = "shrink disk"
		default:
			by[daytona.StateStarted] = []daytona.Kind{daytona.KindState}
			by[daytona.StatePaused] = []daytona.Kind{daytona.KindState}
		}
	}
	if op != "shrink disk" {
		by[daytona.StateArchived] = doneOrState
	}
	sb, err := w.client.Get(w.ctx, id)
	w.try("get", err)
	if w.expect(op, fmt.Sprintf("resize %s to %+v", describe(b, id), r), sb.Resize(w.ctx, r), kindsFor(b, by)...) {
		b.memory, b.disk = cmp.Or(r.Memory, b.memory), cmp.Or(r.Disk, b.disk)
	}
}

func (w *history) update() {
	word := draw(w, "label", historyWords)
	all := map[daytona.State][]daytona.Kind{}
	for _, s := range lastingState {
		all[s] = done
	}
	w.operate("update", all, func(sb daytona.Sandbox) error {
		labels := map[string]string{}
		if word != "" {
			labels[historyLabel] = word
		}
		return sb.Update(w.ctx, daytona.Update{Labels: labels})
	}, func(b *modelBox) { b.label = word })
}

func (w *history) fork() {
	names := []string{w.newName()}
	if second := draw(w, "second name", []string{"", w.newName()}); second != "" && second != names[0] {
		names = append(names, second)
	}
	taken := slices.ContainsFunc(names, func(n string) bool { return w.box(n) != nil })
	by := map[daytona.State][]daytona.Kind{daytona.StateStarted: done, daytona.StateStopped: done, daytona.StatePaused: doneOrState}
	if taken {
		for _, s := range lastingState {
			by[s] = []daytona.Kind{daytona.KindConflict}
		}
		by[daytona.StatePaused] = []daytona.Kind{daytona.KindConflict, daytona.KindState}
		by[daytona.StateArchived] = by[daytona.StatePaused]
	}
	b, id := w.target(by)
	if b == nil {
		return
	}
	sb, err := w.client.Get(w.ctx, id)
	w.try("get", err)
	children, err := sb.Fork(w.ctx, &daytona.ForkOptions{Names: names})
	if !w.expect("fork", fmt.Sprintf("fork %s as %q", describe(b, id), names), err, kindsFor(b, by)...) {
		return
	}
	if len(children) != len(names) {
		w.t.Fatalf("fork made %d children, want %d", len(children), len(names))
	}
	for i, c := range children {
		child := &modelBox{name: names[i], parent: b.id, persistent: b.persistent, ephemeral: b.ephemeral, files: copyFiles(b.files), volume: b.volume, readOnly: b.readOnly, env: b.env, label: b.label, shape: b.shape}
		w.made(c.Info(), child)
		if c.Info().Parent != b.id || child.memory != b.memory || child.disk != b.disk {
			w.t.Fatalf("a fork of %s (memory %v, disk %v) has parent %q, memory %v, disk %v", b.name, b.memory, b.disk, c.Info().Parent, child.memory, child.disk)
		}
	}
}

func (w *history) createSnapshot() {
	name := draw(w, "snapshot", historySnapshots)
	by := map[daytona.State][]daytona.Kind{daytona.StateStarted: done, daytona.StateStopped: done, daytona.StatePaused: doneOrState}
	if w.snapshot(name) != nil {
		for _, s := range lastingState {
			by[s] = []daytona.Kind{daytona.KindConflict}
		}
		by[daytona.StatePaused] = []daytona.Kind{daytona.KindConflict, daytona.KindState}
		by[daytona.StateArchived] = by[daytona.StatePaused]
	}
	b, id := w.target(by)
	what := fmt.Sprintf("snapshot %q of %s", name, describe(b, id))
	if b == nil {
		_, err := w.client.CreateSnapshot(w.ctx, daytona.SnapshotSpec{Name: name, Sandbox: id})
		kinds := []daytona.Kind{daytona.KindNotFound}
		if w.snapshot(name) != nil {
			kinds = append(kinds, daytona.KindConflict)
		}
		w.expect("snapshot of what is gone", what, err, kinds...)
		return
	}
	sb, err := w.client.Get(w.ctx, id)
	w.try("get", err)
	sn, err := sb.CreateSnapshot(w.ctx, name)
	if !w.expect("snapshot", what, err, kindsFor(b, by)...) {
		return
	}
	if sn.ID == "" || sn.Name != name || sn.State != daytona.SnapshotActive || sn.Sandbox != b.id {
		w.t.Fatalf("%s made %+v", what, sn)
	}
	w.snapshots = append(w.snapshots, &modelSnapshot{name: name, id: sn.ID, active: true, files: copyFiles(b.files), shape: b.shape, memory: sn.Resources.Memory, disk: sn.Resources.Disk})
}

func (w *history) snapshotImage() {
	name := draw(w, "snapshot", historySnapshots)
	kinds := done
	if w.snapshot(name) != nil {
		kinds = []daytona.Kind{daytona.KindConflict}
	}
	sn, err := w.client.CreateSnapshot(w.ctx, daytona.SnapshotSpec{Name: name, Image: w.h.Spec.Image})
	if !w.expect("snapshot of an image", fmt.Sprintf("snapshot %q of %s", name, w.h.Spec.Image), err, kinds...) {
		return
	}
	w.snapshots = append(w.snapshots, &modelSnapshot{name: name, id: sn.ID, active: true, files: map[string][]byte{}, memory: sn.Resources.Memory, disk: sn.Resources.Disk})
}

func (w *history) snapshotKinds(s *modelSnapshot) []daytona.Kind {
	if s == nil {
		return []daytona.Kind{daytona.KindNotFound}
	}
	return done
}

func (w *history) snapshotter() daytona.Snapshotter {
	s, err := w.client.Snapshots()
	w.try("snapshots", err)
	return s
}

func (w *history) deleteSnapshot() {
	name := w.drawSnapshot()
	s := w.snapshot(name)
	key := name
	if s != nil && rapid.Bool().Draw(w.t, "by id") {
		key = s.id
	}
	if w.expect("delete snapshot", "delete snapshot "+name, w.snapshotter().DeleteSnapshot(w.ctx, key), w.snapshotKinds(s)...) {
		w.snapshots = slices.DeleteFunc(w.snapshots, func(x *modelSnapshot) bool { return x == s })
	}
}

func (w *history) activate() {
	name, active := w.drawSnapshot(), rapid.Bool().Draw(w.t, "active")
	s := w.snapshot(name)
	_, err := w.snapshotter().SetSnapshotActive(w.ctx, name, active)
	if w.expect("activate", fmt.Sprintf("set snapshot %s active %v", name, active), err, w.snapshotKinds(s)...) {
		s.active = active
	}
}

func (w *history) volumeManager() daytona.VolumeManager {
	v, err := w.client.Volumes()
	w.try("volumes", err)
	return v
}

func (w *history) createVolume() {
	name := draw(w, "volume", historyVolumes)
	kinds := done
	if w.volume(name) != nil {
		kinds = []daytona.Kind{daytona.KindConflict}
	}
	v, err := w.volumeManager().CreateVolume(w.ctx, daytona.VolumeSpec{Name: name})
	if w.expect("create volume", "create volume "+name, err, kinds...) {
		w.volumes = append(w.volumes, &modelVolume{name, v.ID, map[string][]byte{}})
	}
}

func (w *history) deleteVolume() {
	name := w.drawVolume()
	v := w.volume(name)
	kinds := done
	switch {
	case v == nil:
		kinds = []daytona.Kind{daytona.KindNotFound}
	case slices.ContainsFunc(w.boxes, func(b *modelBox) bool { return b.volume == name }):
		kinds = []daytona.Kind{daytona.KindConflict}
	}
	if w.expect("delete volume", "delete volume "+name, w.volumeManager().DeleteVolume(w.ctx, name), kinds...) {
		w.volumes = slices.DeleteFunc(w.volumes, func(x *modelVolume) bool { return x == v })
	}
}

// content is never the same twice.
func (w *history) content() []byte {
	w.serial++
	n := draw(w, "size", []int{0, 10, 5000, 300_000})
	return bytes.Repeat(fmt.Appendf(nil, "%d\n", w.serial), n/3)
}

var inStarted = map[daytona.State][]daytona.Kind{daytona.StateStarted: done}

func (w *history) write() {
	name, data := draw(w, "file", historyFiles), w.content()
	w.operate("write", inStarted,
		func(sb daytona.Sandbox) error {
			return sb.FileSystem().WriteFile(w.ctx, path.Join(historyDir, name), data, 0o640)
		},
		func(b *modelBox) { b.files[name] = data })
}

// historyShapes are what only a shell can do to files, and what copies of them
// tend to lose. A number stands for %d.
var historyShapes = []string{
	"mkdir -p $d/dir; echo %d > $d/dir/f; ln -sf dir/f $d/link; ln -f $d/dir/f $d/hard",
	"mkdir -p $d; : > $d/modes; chown 1234:4321 $d/modes; chmod 6751 $d/modes; touch -d @%d $d/modes",
	"mkdir -p $d; rm -f $d/pipe; mkfifo -m 600 $d/pipe; mkdir -p -m 1777 $d/sticky",
	"rm -rf $d/dir; mkdir -p $d/dir; echo %d > $d/dir/new",
	"mkdir -p $d/dir; rm -rf $d/moved; mv $d/dir $d/moved",
	"mkdir -p $d; truncate -s 30M $d/sparse; printf %d | dd of=$d/sparse bs=1 seek=20000000 conv=notrunc 2>/dev/null",
	`mkdir -p "$d/$(printf 'new\\nline \\303\\050')"`,
	"rm -rf $d",
	"rm -rf $i",
	"rm -rf $i; mkdir $i; echo %d > $i/only",
	"mkdir -p $i; echo %d >> $i/more; chmod 700 $i",
}

// historyShapeDirs is where those files are: a directory of the sandbox's own,
// and one of the image's, unless nobody may write there.
const historyShapeDirs = "d=/var/tmp/history-shape; i=/usr/share/base-files; [ -w /usr/share ] || i=/var/tmp/history-image; "

// historyShapeOf says what files there are.
const historyShapeOf = historyShapeDirs + `{ find $d $i ! -type d -printf '%p %y %m %U %G %s %n %l %Ts\n'; find $d $i -type d -printf '%p %y %m %U %G\n'; find $d $i -type f -exec sha256sum {} +; } 2>/dev/null | sort; echo end`

func (w *history) shapes() bool { return w.has(Shell) && w.has(Users) && w.has(Ownership) }

func (w *history) shape() {
	var line string
	if line = draw(w, "shape", historyShapes); strings.Contains(line, "%d") {
		w.serial++
		line = fmt.Sprintf(line, w.serial)
	}
	b, id := w.target(inStarted)
	kinds := kindsFor(b, inStarted)
	r, err := w.client.Backend().Connect(id).Process().Exec(w.ctx, historyShapeDirs+"set -e; "+line, nil)
	if !w.expect("shape", "shape "+describe(b, id)+": "+line, err, kinds...) {
		return
	}
	if r.ExitCode != 0 && w.user == "root" {
		w.t.Fatalf("exit code %d: %s", r.ExitCode, r.Output)
	}
	b.shape = w.shapeOf(b)
}

func (w *history) shapeOf(b *modelBox) string {
	w.t.Helper()
	r, err := w.client.Backend().Connect(b.id).Process().Exec(w.ctx, historyShapeOf, nil)
	w.try("look at the files of "+b.name, err)
	if !strings.HasSuffix(r.Output, "end\n") {
		w.t.Fatalf("look at the files of %s: %+v", b.name, r)
	}
	return r.Output
}

func (w *history) removeFile() {
	b, id := w.target(inStarted)
	name := drawKnown(w, "file", historyFiles, func(n string) bool { return b != nil && b.files[n] != nil })
	kinds := kindsFor(b, inStarted)
	if b != nil && b.state == daytona.StateStarted && b.files[name] == nil {
		kinds = []daytona.Kind{daytona.KindNotFound}
	}
	err := w.client.Backend().Connect(id).FileSystem().Remove(w.ctx, path.Join(historyDir, name))
	if w.expect("remove file", "remove "+name+" in "+describe(b, id), err, kinds...) {
		delete(b.files, name)
	}
}

func (w *history) writeVolume() {
	var ids []string
	for _, b := range w.boxes {
		if b.volume != "" {
			ids = append(ids, b.id)
		}
	}
	id := draw(w, "sandbox", ids)
	b := w.boxes[slices.IndexFunc(w.boxes, func(b *modelBox) bool { return b.id == id })]
	data := w.content()
	err := w.client.Backend().Connect(id).FileSystem().WriteFile(w.ctx, path.Join(historyMount, "shared"), data, 0o666)
	if b.readOnly && b.state == daytona.StateStarted {
		w.expect("write to read-only volume", "write to volume "+b.volume+", read-only in "+describe(b, id), err, daytona.KindForbidden)
		return
	}
	if w.expect("write to volume", "write to volume "+b.volume+" in "+describe(b, id), err, kindsFor(b, inStarted)...) {
		w.volume(b.volume).files["shared"] = data
	}
}

func (w *history) read() {
	b, id := w.target(inStarted)
	if b != nil && b.state == daytona.StateStarted {
		w.verify(b)
		w.expect("read", "read in "+describe(b, id), nil, okKind)
		return
	}
	_, err := w.client.Backend().Connect(id).FileSystem().ReadFile(w.ctx, path.Join(historyDir, historyFiles[0]))
	w.expect("read", "read in "+describe(b, id), err, kindsFor(b, nil)...)
}

// verify compares all files of a started sandbox.
func (w *history) verify(b *modelBox) {
	w.t.Helper()
	fsys := w.client.Backend().Connect(b.id).FileSystem()
	want := map[string][]byte{}
	for _, name := range historyFiles {
		want[path.Join(historyDir, name)] = b.files[name]
	}
	if b.volume != "" {
		want[path.Join(historyMount, "shared")] = w.volume(b.volume).files["shared"]
	}
	if b.shape != "" {
		got, want := strings.Split(w.shapeOf(b), "\n"), strings.Split(b.shape, "\n")
		if !slices.Equal(got, want) {
			only := func(a, b []string) string {
				return strings.Join(slices.DeleteFunc(slices.Clone(a), func(s string) bool { return slices.Contains(b, s) }), "\n\t")
			}
			w.t.Fatalf("files of %s: there are\n\t%s\nand there should be\n\t%s", b.name, only(got, want), only(want, got))
		}
	}
	if w.has(Metrics) {
		// What the limits are to those inside. A file system takes some of a disk.
		m, err := w.client.Backend().Connect(b.id).Metrics(w.ctx)
		w.try("metrics of "+b.name, err)
		if want := int64(b.memory * daytona.GiB); w.has(Memory) && want != 0 && m.MemoryTotal != want {
			w.t.Fatalf("memory of %s is limited to %d bytes, want %d", b.name, m.MemoryTotal, want)
		}
		if want := b.disk * daytona.GiB; w.has(Disk) && want != 0 && (float64(m.DiskTotal) > want || float64(m.DiskTotal) < want*0.8) {
			w.t.Fatalf("disk of %s is limited to %d bytes, want %v", b.name, m.DiskTotal, want)
		}
	}
	if r, err := w.client.Backend().Connect(b.id).Process().Exec(w.ctx, `printenv `+historyVariable, nil); err != nil || strings.TrimSuffix(r.Output, "\n") != b.env {
		w.t.Fatalf("variable %s in %s is %q, %v, want %q", historyVariable, b.name, r.Output, err, b.env)
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		got, err := fsys.ReadFile(w.ctx, name)
		if want[name] == nil {
			if !errors.Is(err, daytona.ErrNotFound) {
				w.t.Fatalf("file %s of %s: %d bytes %q, %v; want none", name, b.name, len(got), clip(string(got)), err)
			}
			continue
		}
		w.try("read "+name+" of "+b.name, err)
		if !bytes.Equal(got, want[name]) {
			w.t.Fatalf("file %s of %s has %d bytes %q, want %d bytes %q", name, b.name, len(got), clip(string(got)), len(want[name]), clip(string(want[name])))
		}
	}
}

func (w *history) reopen() {
	w.t.Log("close the backend and open it again")
	w.try("close", w.client.Close())
	w.client = nil
	b, err := w.h.Open(w.ctx, w.state)
	w.try("open the backend again", err)
	w.client = daytona.New(b)
	for _, b := range w.boxes {
		if !b.persistent {
			w.gone = append(w.gone, b.id)
		}
	}
	w.boxes = slices.DeleteFunc(w.boxes, func(b *modelBox) bool { return !b.persistent })
}

// check compares what is listed, and one of each found by its keys.
func (w *history) check() {
	b := w.client.Backend()
	var got, want []string
	for i, err := range b.List(w.ctx, daytona.Filter{}) {
		w.try("list", err)
		readOnly, volumes := len(i.Volumes) > 0 && i.Volumes[0].ReadOnly, len(i.Volumes)
		got = append(got, fmt.Sprintf("%s %s %s memory %v disk %v parent %q env %q label %q volumes %d %v", i.Name, i.ID, i.State, i.Resources.Memory, i.Resources.Disk, i.Parent, i.Env[historyVariable], i.Labels[historyLabel], volumes, readOnly))
	}
	for _, b := range w.boxes {
		volumes := 0
		if b.volume != "" {
			volumes = 1
		}
		want = append(want, fmt.Sprintf("%s %s %s memory %v disk %v parent %q env %q label %q volumes %d %v", b.name, b.id, b.state, b.memory, b.disk, b.parent, b.env, b.label, volumes, b.readOnly))
	}
	// Children of one fork are as old as each other.
	slices.Sort(got)
	slices.Sort(want)
	w.same("sandboxes", got, want)
	for _, m := range w.boxes {
		for _, key := range []string{m.id, m.name} {
			i, err := b.Get(w.ctx, key)
			w.try("get "+key, err)
			if i.ID != m.id || i.Name != m.name || i.State != m.state {
				w.t.Fatalf("Get(%q) = %s %s %s, want %s %s %s", key, i.ID, i.Name, i.State, m.id, m.name, m.state)
			}
		}
	}
	if s, ok := daytona.As[daytona.Snapshotter](b); ok {
		got, want = nil, nil
		for sn, err := range s.ListSnapshots(w.ctx) {
			w.try("list snapshots", err)
			got = append(got, fmt.Sprintf("%s %s %v", sn.Name, sn.ID, sn.State == daytona.SnapshotActive))
		}
		for _, sn := range w.snapshots {
			want = append(want, fmt.Sprintf("%s %s %v", sn.name, sn.id, sn.active))
		}
		w.same("snapshots, oldest first,", got, want)
	}
	if v, ok := daytona.As[daytona.VolumeManager](b); ok {
		got, want = nil, nil
		for vol, err := range v.ListVolumes(w.ctx) {
			w.try("list volumes", err)
			got = append(got, vol.Name+" "+vol.ID)
		}
		for _, vol := range w.volumes {
			want = append(want, vol.name+" "+vol.id)
		}
		w.same("volumes, oldest first,", got, want)
	}
}

func (w *history) same(what string, got, want []string) {
	w.t.Helper()
	if !slices.Equal(got, want) {
		w.t.Fatalf("%s are\n\t%s\nwant\n\t%s", what, strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

// end compares the files of every sandbox, removes all and looks for what is
// left.
func (w *history) end() {
	for _, b := range w.boxes {
		if b.state != daytona.StateStarted {
			_, err := w.client.Backend().Start(w.ctx, b.id)
			w.try(fmt.Sprintf("start %s (%s) at the end", b.name, b.state), err)
			b.state = daytona.StateStarted
		}
		w.verify(b)
	}
	w.check()
	w.sweep(func(what string, err error) { w.try(what, err) })
	w.boxes, w.snapshots, w.volumes = nil, nil, nil
	w.check()
	if w.h.Leftovers == nil {
		return
	}
	patience := w.h.slow(10 * time.Second)
	if w.leaked {
		patience = w.h.slow(time.Second)
	}
	deadline := time.Now().Add(patience)
	for {
		left, err := w.h.Leftovers(w.ctx, w.state)
		w.try("look for leftovers", err)
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			w.leaked = true
			w.t.Fatalf("left on the host: %s", clip(strings.Join(left, ", ")))
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// sweep removes everything.
func (w *history) sweep(report func(what string, err error)) {
	if w.client == nil {
		b, err := w.h.Open(w.ctx, w.state)
		if err != nil {
			report("open", err)
			return
		}
		w.client = daytona.New(b)
	}
	for sb, err := range w.client.List(w.ctx, nil) {
		if err == nil {
			err = sb.Delete(w.ctx)
		}
		report("delete a sandbox at the end", err)
	}
	if s, err := w.client.Snapshots(); err == nil {
		for sn, err := range s.ListSnapshots(w.ctx) {
			if err == nil {
				err = s.DeleteSnapshot(w.ctx, sn.ID)
			}
			report("delete a snapshot at the end", err)
		}
	}
	if v, err := w.client.Volumes(); err == nil {
		for vol, err := range v.ListVolumes(w.ctx) {
			if err == nil {
				err = v.DeleteVolume(w.ctx, vol.ID)
			}
			report("delete a volume at the end", err)
		}
	}
}

// close ends the backend.
func (w *history) close(t *testing.T) {
	if w.client == nil {
		return
	}
	w.sweep(func(what string, err error) {
		if err != nil {
			t.Logf("%s: %v", what, err)
		}
	})
	if w.client == nil {
		return
	}
	if err := w.client.Close(); err != nil {
		t.Logf("close the backend: %v", err)
	}
	w.client = nil
}
