package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/store"
)

var (
	historiesTime  = flag.Duration("histories.time", 0, "how long TestHistories keeps killing; 0 is for as long as a few kills take")
	historiesSeed  = flag.Uint64("histories.seed", 0, "what chance begins from; 0 is a new one")
	historiesBoxes = flag.Int("histories.sandboxes", 50, "how many sandboxes are in motion")
)

// TestHistories has clients do at random what can be done with sandboxes, at
// least 50 at a time, while the server, its database and its runner are ended
// with SIGKILL and started again. Each client knows what it was told and what it
// can't know, and at the end, when all is at rest, the service must be in one of
// the states that this allows: nothing acknowledged is lost, nothing is there
// twice, in motion for ever, or known to one side only, and programs that run
// have gone on.
func TestHistories(t *testing.T) {
	needRoot(t)
	t.Parallel()
	for _, c := range []struct {
		name string
		// apart has the runner as a process of its own.
		postgres, apart bool
		servers         int
	}{
		{name: "SQLite", servers: 1},
		{name: "PostgreSQL", postgres: true, apart: true, servers: 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			seed := *historiesSeed
			if seed == 0 {
				seed = rand.Uint64()
			}
			t.Logf("-histories.seed=%d", seed)
			w := newWorld(t, seed, c.postgres, c.apart, c.servers)
			w.play()
			w.settle()
			w.check()
			w.end()
		})
	}
}

// world is a service of some processes, and what its clients know of it.
type world struct {
	t       *testing.T
	seed    uint64
	backend string
	db      string
	client  *client // of the first server
	servers []*process
	clients []*client
	runner  *process // nil if it is in the server
	pg      *process // nil with SQLite

	over  atomic.Bool
	done  atomic.Int64 // what was acknowledged, beside reading
	tally sync.Map     // of what came of what
	mu    sync.Mutex
	boxes []*box
	kept  []*snapshot
	disks []*snapshot    // volumes
	seen  map[string]int // faults by what they are, so that one is not told of a thousand times
	kills map[string]int
}

// box is what is known of a sandbox. It is one client's.
type box struct {
	name, id string
	parent   *box
	steady   bool
	pid      string // of what runs in a steady one
	// may has the states that it may come to rest in; "gone" is one.
	may map[string]bool
	// label, stop and cpu are the values that it may have.
	label map[string]bool
	stop  map[int]bool
	cpu   map[int]bool
	// marks are those that must be there, maybe those that may.
	marks, maybe map[string]bool
	history      []string
}

// snapshot is what is known of a snapshot, or of a volume.
type snapshot struct {
	name   string
	may    map[string]bool // "active", or "ready", and "gone"
	marks  map[string]bool
	cpu    map[int]bool // a snapshot's, of the sandbox that it was made of
	states []string
}

const gone = "gone"

func one[K comparable](v K) map[K]bool { return map[K]bool{v: true} }

func newWorld(t *testing.T, seed uint64, postgres, apart bool, servers int) *world {
	w := &world{t: t, seed: seed, backend: "local://" + backendDir(t), seen: map[string]int{}, kills: map[string]int{}}
	c := map[string]any{"backend": w.backend}
	if postgres {
		w.pg, w.db = newPostgres(t)
		w.pg.start(t)
		c["database"] = w.db
	} else {
		dir := t.TempDir()
		w.db = "sqlite://" + filepath.Join(dir, "d.db")
		c["database"] = w.db
	}
	if apart {
		c["backend"] = "none"
	}
	for range servers {
		s, client := newServer(t, c)
		w.servers, w.clients = append(w.servers, s), append(w.clients, client)
		up(t, s, client)
	}
	w.client = w.clients[0]
	if apart {
		w.runner = newRunner(t, w.client, w.backend)
		w.runner.start(t)
	}
	awaitRunner(t, w.client, 1)
	return w
}

// newRunner returns a runner on its own, which does not run yet.
func newRunner(t testing.TB, c *client, backend string) *process {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	listen := freePort(t)
	key := "the-key-of-a-runner-of-this-test-" + listen
	c.must(t, "POST", "/api/admin/runners", map[string]any{"regionId": "us", "name": "apart-" + strings.ReplaceAll(listen, ":", "-"), "apiKey": key, "apiVersion": "2"}, nil)
	config, err := json.Marshal(runnerConfig{Server: c.url, Key: key, Dir: dir, Backend: backend, Listen: listen})
	if err != nil {
		t.Fatal(err)
	}
	p := &process{name: "the runner", log: filepath.Join(dir, "runner.log"), command: func() *exec.Cmd {
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), roleVariable+"=runner", "DAYTONA_TEST_RUNNER="+string(config))
		return cmd
	}}
	t.Cleanup(func() { p.kill(false) })
	return p
}

// fault says that something is not as it must be, and what led there.
func (w *world) fault(b *box, format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	text := fmt.Sprintf(format, args...)
	if w.seen[format]++; w.seen[format] > 3 {
		return
	}
	if b != nil {
		text = fmt.Sprintf("%s (%s): %s\n\t%s", b.name, b.id, text, strings.Join(b.history[max(0, len(b.history)-25):], "\n\t"))
	}
	w.t.Error(text)
}

// play has clients work while a killer does.
func (w *world) play() {
	t := w.t
	var clients sync.WaitGroup
	ready := make(chan struct{}, *historiesBoxes)
	for i := range *historiesBoxes {
		clients.Go(func() {
			c := &player{w: w, rand: rand.New(rand.NewPCG(w.seed, uint64(i))), n: i}
			c.play(ready)
		})
	}
	// All are in motion before the first is killed.
	for range *historiesBoxes {
		<-ready
	}
	r := rand.New(rand.NewPCG(w.seed, 1<<32))
	victims := []string{"server"}
	if w.runner != nil {
		victims = append(victims, "runner")
	}
	if w.pg != nil {
		victims = append(victims, "PostgreSQL", "all")
	}
	began := time.Now()
	for n := 0; n < max(4, 2*len(victims)) || time.Since(began) < *historiesTime; n++ {
		// As much is done before the next on a machine that is slow.
		for enough := w.done.Load() + 20 + r.Int64N(100); w.done.Load() < enough; {
			time.Sleep(time.Duration(r.IntN(20)) * time.Millisecond)
		}
		victim := victims[n%len(victims)]
		w.kills[victim]++
		is := func(v string) bool { return victim == v || victim == "all" }
		if is("PostgreSQL") && w.pg != nil {
			w.pg.kill(true)
		}
		if victim == "PostgreSQL" && r.IntN(2) == 0 {
			time.Sleep(time.Duration(r.IntN(300)) * time.Millisecond)
			w.servers[r.IntN(len(w.servers))].kill(false) // while its database is away
		}
		if is("server") {
			w.servers[r.IntN(len(w.servers))].kill(false)
		}
		if is("runner") && w.runner != nil {
			w.runner.kill(false)
		}
		time.Sleep(time.Duration(r.IntN(300)) * time.Millisecond)
		w.raise()
	}
	w.over.Store(true)
	clients.Wait()
	t.Logf("killed: %v", w.kills)
	var sums []string
	w.tally.Range(func(k, v any) bool {
		sums = append(sums, fmt.Sprintf("%s %d", k, v.(*atomic.Int64).Load()))
		return true
	})
	slices.Sort(sums)
	t.Log(strings.Join(sums, ", "))
}

// raise starts what does not run.
func (w *world) raise() {
	if w.pg != nil && !w.pg.runs() {
		w.pg.start(w.t)
	}
	if w.runner != nil && !w.runner.runs() {
		w.runner.start(w.t)
	}
	for i, s := range w.servers {
		up(w.t, s, w.clients[i])
	}
}

// player is one client, which works with sandboxes of its own, one request
// after the other.
type player struct {
	w     *world
	rand  *rand.Rand
	n     int
	named int
	kept  *snapshot
	disk  *snapshot
}

func (p *player) name(kind string) string {
	p.named++
	return fmt.Sprintf("%s-%d-%d", kind, p.n, p.named)
}

// call calls until somebody answers, and keeps count of what came of it.
func (p *player) call(b *box, what, method, path string, in, out any) answer {
	for {
		client := p.w.client
		if p.rand != nil {
			client = p.w.clients[p.rand.IntN(len(p.w.clients))]
		}
		a := client.call(context.Background(), method, path, in, out)
		if a.outcome == unsent {
			time.Sleep(10 * time.Millisecond)
			continue
		}
		if a.outcome == done && what != "get" {
			p.w.done.Add(1)
		}
		key := fmt.Sprintf("%s %s", what, map[outcome]string{done: "done", refused: "refused", unknown: "unknown"}[a.outcome])
		n, _ := p.w.tally.LoadOrStore(key, new(atomic.Int64))
		n.(*atomic.Int64).Add(1)
		if b != nil {
			text := fmt.Sprintf("%s %s: %s %.200s", time.Now().Format("05.000"), what, key, a.message())
			if a.err != nil {
				text += a.err.Error()
			}
			if n := len(b.history); n > 0 && what == "get" && strings.Contains(b.history[n-1], " get: get ") {
				b.history[n-1] = text // the last of several is enough
			} else {
				b.history = append(b.history, text)
			}
		}
		switch a.status {
		case 401, 403:
			p.w.fault(b, "%s: a key that is right is refused: %v", what, a)
		case 404:
			if b != nil && b.id != "" && !b.may[gone] && what != "exec" && what != "delete snapshot" {
				p.w.fault(b, "%s: it is not there: %v", what, a)
			}
		case 400, 409, 422:
			switch m := a.message(); {
			case strings.Contains(m, "failed to start"):
				p.w.fault(b, "%s: %s", what, m)
			case a.status == 400 && !slices.ContainsFunc(expected, func(s string) bool { return strings.Contains(m, s) }):
				p.w.fault(b, "%s: refused for no good reason: %s", what, m)
			}
		}
		return a
	}
}

// expected are refusals that have their reason in the sandbox's state.
var expected = []string{
	"not in a startable state", "not in a stoppable state", "Sandbox is not started", "Sandbox is not stopped", "must be started", "active forks",
	"No available runners", "can not become", "can only be decreased", "is not started", "start it first", "No resource changes", "is not in a ready state",
}

// apply makes an answer's consequences known.
func (a answer) apply(b *box, to string) {
	switch {
	case a.outcome == done:
		b.may = one(to)
	case a.outcome == unknown:
		b.may[to] = true
	case a.status == 404 && b.may[gone]:
		b.may = one(gone)
	}
}

func possible[K comparable](a answer, set map[K]bool, to K) map[K]bool {
	switch a.outcome {
	case done:
		return one(to)
	case unknown:
		set[to] = true
	}
	return set
}

// create makes a sandbox, and finds out whether it did; nil if not.
func (p *player) create(steady bool) *box {
	label, stop := p.name("v"), 100+p.rand.IntN(1000)
	b := &box{name: p.name("box"), steady: steady, may: one(gone), label: one(label), stop: one(stop), cpu: one(1), marks: map[string]bool{}, maybe: map[string]bool{}}
	in := map[string]any{"name": b.name, "labels": map[string]string{"v": label}, "autoStopInterval": stop}
	if p.kept != nil && p.kept.may["active"] && len(p.kept.may) == 1 && p.rand.IntN(2) == 0 {
		in["snapshot"] = p.kept.name
		b.marks, b.cpu = maps.Clone(p.kept.marks), maps.Clone(p.kept.cpu)
		b.maybe = nil // whatever else was there when it was made
	}
	var got struct{ ID string }
	a := p.call(b, "create", "POST", "/api/sandbox", in, &got)
	if a.outcome == refused {
		return nil
	}
	a.apply(b, "started")
	b.id = got.ID
	p.w.add(b)
	if a.outcome == unknown {
		p.look(b)
	}
	return b
}

func (w *world) add(b *box) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.boxes = append(w.boxes, b)
}

// state is what the API says of a sandbox.
type state struct {
	ID, Name, State, DesiredState, ErrorReason string
	Labels                                     map[string]string
	AutoStopInterval, CPU, Memory, Disk        float64
}

// look reads a sandbox, which must be what it may be, and returns its state.
func (p *player) look(b *box) string {
	var s state
	ref := b.id
	if ref == "" {
		ref = b.name
	}
	for {
		a := p.call(b, "get", "GET", "/api/sandbox/"+ref, nil, &s)
		if a.status == 404 {
			if b.id == "" {
				b.may = one(gone)
			} else {
				a.apply(b, gone)
			}
			return gone
		}
		if a.outcome == done {
			break
		}
	}
	b.id = s.ID
	if b.may[gone] && s.DesiredState != "destroyed" {
		// An unknown deletion that is not there now was none.
		delete(b.may, gone)
		if len(b.may) == 0 {
			b.may = one("started")
		}
	}
	p.w.compare(b, s)
	return s.State
}

// compare finds what a sandbox is and may not be, at any time.
func (w *world) compare(b *box, s state) {
	if !b.label[s.Labels["v"]] {
		w.fault(b, "the label is %q and should be one of %v", s.Labels["v"], keys(b.label))
	}
	if !b.stop[int(s.AutoStopInterval)] {
		w.fault(b, "the interval is %v and should be one of %v", s.AutoStopInterval, keys(b.stop))
	}
	if s.State == "error" || s.State == "build_failed" {
		w.fault(b, "it is in error: %s", s.ErrorReason)
	}
	b.label, b.stop = one(s.Labels["v"]), one(int(s.AutoStopInterval))
}

func keys[K comparable](m map[K]bool) []string {
	var all []string
	for k := range m {
		all = append(all, fmt.Sprint(k))
	}
	slices.Sort(all)
	return all
}

var moving = []string{"creating", "starting", "stopping", "archiving", "restoring", "pausing", "resuming", "resizing", "forking", "snapshotting", "destroying", "unknown", "pulling_snapshot"}

// play makes a sandbox and does things with it, and makes another when it is
// gone.
func (p *player) play(ready chan<- struct{}) {
	steady := p.n%5 == 0
	var b *box
	for b == nil || b.may[gone] {
		if b = p.create(steady); b == nil {
			time.Sleep(50 * time.Millisecond)
		}
	}
	if steady {
		p.begin(b)
	}
	ready <- struct{}{}
	for !p.w.over.Load() {
		if b == nil || len(b.may) == 1 && b.may[gone] {
			if b = p.create(false); b == nil {
				time.Sleep(50 * time.Millisecond)
			}
			continue
		}
		p.act(b)
		// Most of what is asked for at once is refused while something is under way.
		for range p.rand.IntN(50) {
			if s := p.look(b); !slices.Contains(moving, s) || p.w.over.Load() {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
}

// begin starts a program that counts for ever.
func (p *player) begin(b *box) {
	const command = `sh -c 'setsid sh -c "i=0; while :; do i=\$((i+1)); echo \$i > count; sleep 0.1; done" >/dev/null 2>&1 </dev/null & echo $! > pid; cat pid'`
	for {
		r, a := p.exec(b, command)
		if a.outcome == done {
			b.pid = strings.TrimSpace(r)
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// exec runs a command; it is refused where it did not run.
func (p *player) exec(b *box, command string) (string, answer) {
	var r struct {
		ExitCode int
		Result   string
	}
	a := p.call(b, "exec", "POST", "/toolbox/"+b.id+"/process/execute", map[string]any{"command": command, "timeout": 60}, &r)
	if a.outcome == done && r.ExitCode != 0 {
		a.outcome = unknown
		if b.may["started"] && len(b.may) == 1 {
			p.w.fault(b, "exec ended with %d: %s", r.ExitCode, r.Result)
		}
	}
	return r.Result, a
}

// act does one thing at random.
func (p *player) act(b *box) {
	path := "/api/sandbox/" + b.id
	n := p.rand.IntN(100)
	if b.steady {
		n %= 50
	}
	switch {
	case n < 25:
		mark := p.name("m")
		_, a := p.exec(b, "echo "+mark+" >> marks")
		switch a.outcome {
		case done:
			b.marks[mark] = true
		case unknown:
			if b.maybe != nil {
				b.maybe[mark] = true
			}
		}
	case n < 33:
		v := p.name("v")
		a := p.call(b, "labels", "PUT", path+"/labels", map[string]any{"labels": map[string]string{"v": v}}, nil)
		b.label = possible(a, b.label, v)
	case n < 40:
		v := 100 + p.rand.IntN(1000)
		a := p.call(b, "autostop", "POST", path+"/autostop/"+strconv.Itoa(v), nil, nil)
		b.stop = possible(a, b.stop, v)
	case n < 46:
		p.look(b)
	case n < 50:
		p.volume()
	case n < 62:
		p.call(b, "stop", "POST", path+"/stop", nil, nil).apply(b, "stopped")
	case n < 76:
		p.call(b, "start", "POST", path+"/start", nil, nil).apply(b, "started")
	case n < 80:
		p.call(b, "pause", "POST", path+"/pause", nil, nil).apply(b, "paused")
	case n < 84:
		p.call(b, "archive", "POST", path+"/archive", nil, nil).apply(b, "archived")
	case n < 88:
		v := 1 + p.rand.IntN(4)
		a := p.call(b, "resize", "POST", path+"/resize", map[string]any{"cpu": v}, nil)
		b.cpu = possible(a, b.cpu, v)
	case n < 91:
		child := &box{name: p.name("fork"), parent: b, may: one(gone), label: maps.Clone(b.label), stop: maps.Clone(b.stop), cpu: maps.Clone(b.cpu), marks: maps.Clone(b.marks), maybe: maps.Clone(b.maybe)}
		var got struct{ ID string }
		a := p.call(b, "fork", "POST", path+"/fork", map[string]any{"name": child.name}, &got)
		if a.outcome == refused {
			return
		}
		a.apply(child, "started")
		child.id = got.ID
		child.history = append(child.history, b.history[len(b.history)-1])
		p.w.add(child)
		if a.outcome == unknown {
			child.maybe = nil // it may be made later, of what its parent has then
			p.look(child)
		}
		// It is deleted at once or left alone.
		if p.rand.IntN(2) == 0 && !child.may[gone] {
			p.call(child, "delete", "DELETE", "/api/sandbox/"+child.id, nil, nil).apply(child, gone)
		}
	case n < 94:
		if p.kept != nil {
			p.forget()
			return
		}
		s := &snapshot{name: p.name("kept"), may: one(gone), marks: maps.Clone(b.marks), cpu: maps.Clone(b.cpu)}
		a := p.call(b, "snapshot", "POST", path+"/snapshot", map[string]any{"name": s.name}, nil)
		switch a.outcome {
		case refused:
			return
		case done:
			s.may = one("active")
		case unknown:
			s.may["active"] = true
		}
		p.kept = s
		p.w.mu.Lock()
		p.w.kept = append(p.w.kept, s)
		p.w.mu.Unlock()
	default:
		p.call(b, "delete", "DELETE", path, nil, nil).apply(b, gone)
	}
}

// volume makes a volume, or deletes the one that the client has made.
func (p *player) volume() {
	if p.disk == nil {
		v := &snapshot{name: p.name("volume"), may: one(gone)}
		a := p.call(nil, "create volume", "POST", "/api/volumes", map[string]any{"name": v.name}, nil)
		switch a.outcome {
		case done:
			v.may = one("ready")
		case unknown:
			v.may["ready"] = true
		default:
			return
		}
		p.disk = v
		p.w.mu.Lock()
		defer p.w.mu.Unlock()
		p.w.disks = append(p.w.disks, v)
		return
	}
	var v struct{ ID, State string }
	a := p.call(nil, "get volume", "GET", "/api/volumes/by-name/"+p.disk.name, nil, &v)
	switch {
	case a.status == 404 && !p.disk.may[gone]:
		p.w.fault(nil, "the volume %s is not there: %v", p.disk.name, p.disk.states)
	case a.outcome == done && v.State != "ready":
		return
	case a.outcome == done:
		a = p.call(nil, "delete volume", "DELETE", "/api/volumes/"+v.ID, nil, nil)
		p.disk.states = append(p.disk.states, fmt.Sprint(v.State, a))
		if a.outcome == done {
			p.disk.may = one(gone)
		} else if a.outcome == unknown {
			p.disk.may[gone] = true
		}
	}
	p.disk = nil
}

// forget deletes the snapshot that the client has made.
func (p *player) forget() {
	var s struct{ ID, State string }
	a := p.call(nil, "get snapshot", "GET", "/api/snapshots/"+p.kept.name, nil, &s)
	switch {
	case a.status == 404 && !p.kept.may[gone]:
		p.w.fault(nil, "the snapshot %s is not there: %v", p.kept.name, p.kept.states)
	case a.outcome == done:
		a = p.call(nil, "delete snapshot", "DELETE", "/api/snapshots/"+s.ID, nil, nil)
		p.kept.states = append(p.kept.states, fmt.Sprint(s.State, a))
		if a.outcome == done {
			p.kept.may = one(gone)
		} else if a.outcome == unknown {
			p.kept.may[gone] = true
		}
	}
	p.kept = nil
}

// rows is what the database says of what is not at rest.
func (w *world) rows(t *testing.T) (rest bool, why string) {
	db, err := store.Open(t.Context(), w.db, discard)
	if err != nil {
		return false, err.Error()
	}
	defer db.Close()
	var all []string
	for _, q := range []string{
		"SELECT 'job ' || type || ' ' || status || ' for ' || resource_id FROM jobs WHERE status IN ('PENDING', 'IN_PROGRESS')",
		`SELECT 'sandbox ' || name || ' ' || id || ' ' || state || ' desired ' || desired_state || ' job ' || job_id || ' backup ' || backup_state
			FROM sandboxes WHERE pending = TRUE OR job_id <> '' OR backup_job_id <> '' OR backup_state IN ('Pending', 'InProgress') OR retry_at IS NOT NULL
			OR state = 'archiving' OR state IN ('error', 'build_failed') AND desired_state = 'destroyed'`,
		"SELECT 'left ' || sandbox_id FROM sandbox_leftovers",
		"SELECT 'snapshot ' || name || ' ' || state FROM snapshots WHERE state NOT IN ('active', 'inactive', 'error')",
		"SELECT 'volume ' || name || ' ' || state FROM volumes WHERE state NOT IN ('ready', 'deleted', 'error')",
	} {
		var some []string
		if err := db.All(t.Context()).NewRaw(q).Scan(t.Context(), &some); err != nil {
			return false, err.Error()
		}
		all = append(all, some...)
	}
	return len(all) == 0, strings.Join(all, "\n")
}

// settle waits until everything is at rest.
func (w *world) settle() {
	w.raise()
	until(w.t, "it does not come to rest", func() (bool, string) {
		ok, why := w.rows(w.t)
		if !ok {
			time.Sleep(200 * time.Millisecond)
		}
		return ok, why
	})
}

// list reads all sandboxes, by name.
func (w *world) list() map[string]state {
	all := map[string]state{}
	for cursor := ""; ; {
		var page struct {
			Items      []state
			NextCursor *string
		}
		w.client.must(w.t, "GET", "/api/sandbox?limit=200"+cursor, nil, &page)
		for _, s := range page.Items {
			if _, twice := all[s.Name]; twice {
				w.fault(nil, "%s is listed twice", s.Name)
			}
			all[s.Name] = s
		}
		if page.NextCursor == nil {
			return all
		}
		cursor = "&cursor=" + *page.NextCursor
	}
}

// check compares what there is with what may be.
func (w *world) check() {
	t := w.t
	listed := w.list()
	counts := map[string]int{}
	for _, b := range w.boxes {
		s, there := listed[b.name]
		if !there {
			if counts[gone]++; !b.may[gone] {
				w.fault(b, "it is lost; it should be one of %v", keys(b.may))
			}
			continue
		}
		if b.id == "" {
			b.id = s.ID
		}
		counts[s.State]++
		switch {
		case s.ID != b.id:
			w.fault(b, "it is another one: %s", s.ID)
		case len(b.may) == 1 && b.may[gone]:
			w.fault(b, "it was deleted, and is %s", s.State)
		case !b.may[s.State]:
			w.fault(b, "it is %s and should be one of %v: %s", s.State, keys(b.may), s.ErrorReason)
		case !b.cpu[int(s.CPU)]:
			w.fault(b, "it has %v CPUs and should have one of %v", s.CPU, keys(b.cpu))
		}
		w.compare(b, s)
	}
	known := map[string]bool{}
	for _, b := range w.boxes {
		known[b.name] = true
	}
	var cpu, memory, disk float64
	for name, s := range listed {
		if !known[name] {
			w.fault(nil, "nobody has made %s, which is %s", name, s.State)
		}
		switch s.State {
		case "archived":
		case "stopped":
			disk += s.Disk
		default:
			cpu, memory, disk = cpu+s.CPU, memory+s.Memory, disk+s.Disk
		}
	}
	t.Logf("%d sandboxes: %v", len(w.boxes), counts)
	w.checkBackend(listed)
	w.checkUsage(cpu, memory, disk)
	for _, s := range w.kept {
		var v struct{ State string }
		a := w.client.call(t.Context(), "GET", "/api/snapshots/"+s.name, nil, &v)
		if a.status == 404 && !s.may[gone] || a.outcome == done && !s.may[v.State] {
			w.fault(nil, "the snapshot %s is %q and should be one of %v: %v %v", s.name, v.State, keys(s.may), a, s.states)
		}
	}
	for _, s := range w.disks {
		var v struct{ State string }
		a := w.client.call(t.Context(), "GET", "/api/volumes/by-name/"+s.name, nil, &v)
		if a.status == 404 && !s.may[gone] || a.outcome == done && !s.may[v.State] {
			w.fault(nil, "the volume %s is %q and should be one of %v: %v %v", s.name, v.State, keys(s.may), a, s.states)
		}
	}
	w.checkFiles(listed)
}

// checkBackend demands that the backend has just the sandboxes and the snapshots
// that the service knows of.
func (w *world) checkBackend(listed map[string]state) {
	ctx := w.t.Context()
	c, err := daytona.Open(ctx, w.backend)
	if err != nil {
		w.t.Fatal(err)
	}
	defer c.Close()
	want := map[string]state{}
	for _, s := range listed {
		if s.State != "archived" {
			want[s.ID] = s
		}
	}
	for sb, err := range c.List(ctx, nil) {
		if err != nil {
			w.t.Fatal(err)
		}
		info := sb.Info()
		s, ok := want[info.Name]
		if !ok {
			w.fault(nil, "the backend has %s, %s, which the service does not know: %v", info.Name, info.State, listedByID(listed, info.Name))
			continue
		}
		delete(want, info.Name)
		if string(info.State) != s.State {
			w.fault(nil, "%s is %s in the service and %s in the backend", s.Name, s.State, info.State)
		}
		if info.Resources.CPU != s.CPU {
			w.fault(nil, "%s has %v CPUs in the service and %v in the backend", s.Name, s.CPU, info.Resources.CPU)
		}
	}
	for _, s := range want {
		w.fault(nil, "the backend does not have %s (%s), %s", s.Name, s.ID, s.State)
	}
	snapshots, err := c.Snapshots()
	if err != nil {
		w.t.Fatal(err)
	}
	db, err := store.Open(ctx, w.db, discard)
	if err != nil {
		w.t.Fatal(err)
	}
	defer db.Close()
	var refs []string
	if err := db.All(ctx).NewRaw("SELECT ref FROM snapshots UNION SELECT backup_ref FROM sandboxes WHERE state <> 'destroyed' UNION SELECT ref FROM sandboxes WHERE state <> 'destroyed'").Scan(ctx, &refs); err != nil {
		w.t.Fatal(err)
	}
	for s, err := range snapshots.ListSnapshots(ctx) {
		if err != nil {
			w.t.Fatal(err)
		}
		if !slices.Contains(refs, s.Name) {
			w.fault(nil, "the backend has the snapshot %s, which nobody knows", s.Name)
		}
	}
}

func listedByID(listed map[string]state, id string) string {
	for _, s := range listed {
		if s.ID == id {
			return fmt.Sprintf("%s is %s", s.Name, s.State)
		}
	}
	return "it is not listed"
}

// checkUsage demands that what the organization is said to use is what there is.
func (w *world) checkUsage(cpu, memory, disk float64) {
	db, err := store.Open(w.t.Context(), w.db, discard)
	if err != nil {
		w.t.Fatal(err)
	}
	defer db.Close()
	var c, m, d float64
	if err := db.All(w.t.Context()).NewRaw("SELECT COALESCE(SUM(cpu), 0.0), COALESCE(SUM(memory), 0.0), COALESCE(SUM(disk), 0.0) FROM reservations WHERE kind = 'sandbox'").Scan(w.t.Context(), &c, &m, &d); err != nil {
		w.t.Fatal(err)
	}
	if c != cpu || m != memory || d != disk {
		w.fault(nil, "the usage is said to be %v CPUs, %v GiB and %v GiB of disk, and is %v, %v and %v", c, m, d, cpu, memory, disk)
	}
}

// checkFiles starts what can be started and demands that what programs were
// acknowledged to have written is there, once.
func (w *world) checkFiles(listed map[string]state) {
	var all sync.WaitGroup
	slots := make(chan struct{}, 8)
	p := &player{w: w}
	for _, b := range w.boxes {
		s, ok := listed[b.name]
		if !ok || s.State == "error" {
			continue
		}
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			if s.State != "started" {
				if a := p.call(b, "start", "POST", "/api/sandbox/"+b.id+"/start", nil, nil); a.outcome != done {
					w.fault(b, "it can't be started: %v", a)
					return
				}
				b.may = one("started")
				until(w.t, b.name+" does not start", func() (bool, string) { s := p.look(b); return s == "started" || s == "error", s })
			}
			text, a := p.exec(b, "cat marks 2>/dev/null; true")
			if a.outcome != done {
				w.fault(b, "nothing runs in it: %v", a)
				return
			}
			there := map[string]int{}
			for _, m := range strings.Fields(text) {
				there[m]++
			}
			for m := range b.marks {
				if there[m] == 0 {
					w.fault(b, "%s was written and is not there: %q", m, text)
				}
			}
			for m, n := range there {
				if n > 1 {
					w.fault(b, "%s was written %d times", m, n)
				}
				if b.maybe != nil && !b.marks[m] && !b.maybe[m] {
					w.fault(b, "nobody wrote %s", m)
				}
			}
			if b.steady {
				w.checkSteady(p, b)
			}
		})
	}
	all.Wait()
}

// checkSteady demands that what was begun at the beginning counts on.
func (w *world) checkSteady(p *player, b *box) {
	count := func() int {
		text, a := p.exec(b, "test -d /proc/$(cat pid) && test $(cat pid) = "+b.pid+" && cat count")
		n, err := strconv.Atoi(strings.TrimSpace(text))
		if a.outcome == done && err == nil || a.outcome == done && text == "" { // it is being written
			return n
		}
		w.fault(b, "what ran in it from the beginning does not run any more: %v", a)
		return -1
	}
	first := count()
	until(w.t, b.name+" does not count", func() (bool, string) {
		n := count()
		return n > first || n < 0, fmt.Sprint(first, n)
	})
}

// end deletes everything, after which nothing may be left.
func (w *world) end() {
	t := w.t
	var all sync.WaitGroup
	slots := make(chan struct{}, 8)
	// Forks before what they were made from.
	for round := 0; ; round++ {
		listed := w.list()
		if len(listed) == 0 || round == 50 {
			break
		}
		for _, s := range listed {
			slots <- struct{}{}
			all.Go(func() {
				defer func() { <-slots }()
				w.client.call(t.Context(), "DELETE", "/api/sandbox/"+s.ID, nil, nil)
			})
		}
		all.Wait()
	}
	w.settle()
	ctx := t.Context()
	c, err := daytona.Open(ctx, w.backend)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for sb, err := range c.List(ctx, nil) {
		if err != nil {
			t.Fatal(err)
		}
		w.fault(nil, "the backend still has %s, %s", sb.Name(), sb.Info().State)
	}
	w.checkUsage(0, 0, 0)
	dir := strings.TrimPrefix(w.backend, "local://")
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil {
		t.Error(err)
	} else {
		for line := range strings.Lines(string(mounts)) {
			if strings.Contains(line, dir+"/") {
				w.fault(nil, "mounted still: %s", line)
			}
		}
	}
}
