package backendtest

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/daytona-go/daytona"
)

// capabilityChecks are about the optional interfaces. What a backend lacks must
// be refused, which is the check Optional; the others are skipped.
func capabilityChecks() []check {
	return []check{
		{name: "Optional", run: checkOptional},
		{name: "Update", run: checkUpdate},
		{name: "Wait", run: checkWait},
		{name: "Pause", run: checkPause},
		{name: "PauseCycles", limit: 3 * time.Minute, run: checkPauseCycles},
		{name: "Fork", run: checkFork},
		{name: "Snapshot", run: checkSnapshot},
		{name: "Resize", needs: []Capability{Memory}, run: checkResize},
		{name: "Archive", run: checkArchive},
		{name: "Volumes", run: checkVolumes},
		{name: "NetworkPolicyLive", needs: []Capability{Network, Programs}, run: checkNetworkPolicyLive},
	}
}

// optionalInterface is one that not every backend has, with the methods of
// package daytona that must refuse what a backend without it is asked for.
type optionalInterface struct {
	name    string
	has     func(daytona.Backend) bool
	refused []func(c *env, sb daytona.Sandbox) error
}

// A Watcher is asked by nobody but those who have found one.
var optional = []optionalInterface{
	{"Pauser", has[daytona.Pauser], []func(*env, daytona.Sandbox) error{
		func(c *env, sb daytona.Sandbox) error { return sb.Pause(c.ctx, nil) },
		func(c *env, sb daytona.Sandbox) error { return sb.Resume(c.ctx) },
	}},
	{"Forker", has[daytona.Forker], []func(*env, daytona.Sandbox) error{
		func(c *env, sb daytona.Sandbox) error { _, err := sb.Fork(c.ctx, nil); return err },
	}},
	{"Snapshotter", has[daytona.Snapshotter], []func(*env, daytona.Sandbox) error{
		func(c *env, sb daytona.Sandbox) error { _, err := sb.CreateSnapshot(c.ctx, "snap"); return err },
	}},
	{"Resizer", has[daytona.Resizer], []func(*env, daytona.Sandbox) error{
		func(c *env, sb daytona.Sandbox) error {
			return sb.Resize(c.ctx, daytona.Resources{Memory: c.h.amount(0.5)})
		},
	}},
	{"NetworkPolicer", has[daytona.NetworkPolicer], []func(*env, daytona.Sandbox) error{
		func(c *env, sb daytona.Sandbox) error {
			return sb.SetNetworkPolicy(c.ctx, daytona.NetworkPolicy{Block: true})
		},
	}},
	{"Archiver", has[daytona.Archiver], []func(*env, daytona.Sandbox) error{
		func(c *env, sb daytona.Sandbox) error { return sb.Archive(c.ctx) },
		func(c *env, sb daytona.Sandbox) error { return sb.Restore(c.ctx) },
	}},
	{"ImageBuilder", has[daytona.ImageBuilder], []func(*env, daytona.Sandbox) error{
		func(c *env, _ daytona.Sandbox) error {
			_, err := c.client.Build(c.ctx, daytona.NewImage("FROM scratch\n"), daytona.BuildOptions{})
			return err
		},
	}},
	{"Updater", has[daytona.Updater], []func(*env, daytona.Sandbox) error{
		func(c *env, sb daytona.Sandbox) error {
			return sb.Update(c.ctx, daytona.Update{Labels: map[string]string{"new": "2"}})
		},
	}},
	{"VolumeManager", has[daytona.VolumeManager], []func(*env, daytona.Sandbox) error{
		func(c *env, _ daytona.Sandbox) error { _, err := c.client.Volumes(); return err },
	}},
	{"Watcher", has[daytona.Watcher], nil},
}

func has[T any](b daytona.Backend) bool { _, ok := daytona.As[T](b); return ok }

// need is the backend's capability T; the check is skipped if it has none.
func need[T any](c *env) T {
	c.Helper()
	c.open()
	x, ok := daytona.As[T](c.backend)
	if !ok {
		c.Skipf("backend %s is no %s", c.backend.Name(), reflect.TypeFor[T]().Name())
	}
	return x
}

// checkOptional demands that what a backend lacks is refused.
func checkOptional(c *env) {
	sb := c.create()
	for _, o := range optional {
		said, lacks := c.h.Lacks[Capability(o.name)]
		if o.has(c.backend) {
			if lacks {
				c.Errorf("the harness lacks %s (%s), but the backend is one", o.name, said)
			}
			tell(c.T, o.name, true, "")
			continue
		}
		why := "the backend does not support it"
		for _, ask := range o.refused {
			err := ask(c, sb)
			if e, ok := errors.AsType[*daytona.Error](err); ok && e.Message != "" {
				why = strings.ReplaceAll(e.Message, "backend "+c.backend.Name()+" ", "the backend ")
			}
			what := "what takes a " + o.name + ", which the backend is not,"
			c.wantKind(what, err, daytona.KindUnsupported)
			if !errors.Is(err, errors.ErrUnsupported) {
				c.Errorf("%s: %v is not errors.ErrUnsupported", what, err)
			}
		}
		tell(c.T, o.name, false, cmp.Or(said, why))
	}
	i, err := sb.Refresh(c.ctx)
	c.try("refresh", err)
	equal(c, "State after all that was refused", i.State, daytona.StateStarted)
}

func checkUpdate(c *env) {
	b := need[daytona.Updater](c)
	sb := c.create(func(s *daytona.Spec) { s.Labels = map[string]string{"old": "1"} })
	hour := time.Hour
	u := daytona.Update{Labels: map[string]string{"new": "2"}}
	if c.has(Timers) {
		u.AutoStop, u.AutoDelete = &hour, &hour
	}
	c.try("update", sb.Update(c.ctx, u))
	for range 2 {
		i := sb.Info()
		if len(i.Labels) != 1 || i.Labels["new"] != "2" {
			c.Errorf("Labels = %v, want them replaced", i.Labels)
		}
		if c.has(Timers) && (i.AutoStop != hour || i.AutoDelete != hour) {
			c.Errorf("AutoStop %v, AutoDelete %v, want 1h", i.AutoStop, i.AutoDelete)
		}
		_, err := sb.Refresh(c.ctx)
		c.try("refresh", err)
	}
	bad := time.Millisecond
	c.wantKind("update with a bad interval", sb.Update(c.ctx, daytona.Update{AutoStop: &bad}), daytona.KindInvalid)
	_, err := b.Update(c.ctx, "no-such-sandbox", daytona.Update{})
	c.wantKind("update of an unknown sandbox", err, daytona.KindNotFound)
}

func checkWait(c *env) {
	w := need[daytona.Watcher](c)
	sb := c.create()
	i, err := w.Wait(c.ctx, sb.ID(), daytona.StateStarted)
	c.try("wait for the present state", err)
	equal(c, "State", i.State, daytona.StateStarted)
	got := make(chan error, 1)
	go func() {
		i, err := w.Wait(c.ctx, sb.ID(), daytona.StateStopped)
		if err == nil && i.State != daytona.StateStopped {
			err = fmt.Errorf("state is %s", i.State)
		}
		got <- err
	}()
	c.try("stop", sb.Stop(c.ctx, nil))
	c.try("wait for stopped", c.within(10*time.Second, func() error { return <-got }))
	go func() { _, err := w.Wait(c.ctx, sb.ID(), daytona.StateStarted); got <- err }()
	c.try("delete", sb.Delete(c.ctx))
	c.try("wait returns", c.within(10*time.Second, func() error { err = <-got; return nil }))
	c.wantKind("wait for a sandbox that is deleted", err, daytona.KindNotFound)
}

func checkPause(c *env) {
	need[daytona.Pauser](c)
	sb := c.create()
	c.try("pause", sb.Pause(c.ctx, nil))
	equal(c, "State", sb.Info().State, daytona.StatePaused)
	_, err := sb.Process().Exec(c.ctx, "echo", nil)
	c.wantKind("exec in a paused sandbox", err, daytona.KindState)
	c.try("resume", sb.Resume(c.ctx))
	equal(c, "State", sb.Info().State, daytona.StateStarted)
	if !c.has(Shell) || !c.has(Sessions) {
		return
	}
	c.startInBackground(sb, counter)
	var n, pid int
	c.eventually(10*time.Second, "the counter counts", func() (err error) { n, pid, err = c.count(sb); return err })
	for range 3 {
		c.try("pause", sb.Pause(c.ctx, nil))
		c.try("resume", sb.Resume(c.ctx))
		c.wantCounting(sb, n, pid)
		n, _, _ = c.count(sb)
	}
	c.try("pause", sb.Pause(c.ctx, nil))
	c.try("delete a paused sandbox", sb.Delete(c.ctx))
	c.nothingLeft("after a paused sandbox was deleted")
}

// keeper holds what is in the file seed in its memory. For each file ask it puts
// the word in it before that, in place of the last bytes, and says what it has
// then, after how often it was asked and its process id.
const keeper = `sh -c 'n=0; all=$(cat seed); still=$all; while :; do if [ -e ask ]; then w=$(cat ask); rm ask; n=$((n+1)); all="$w${all%????????}"; printf "%s %s\n%s\n%s" $n $$ "$all" "$still" > answer.new; mv answer.new "answer-$w"; fi; sleep 0.02; done'`

// checkPauseCycles pauses and resumes often, with writes between, and compares
// the files and the memory of a process byte for byte. Where the backend can,
// some of the pauses are to disk.
func checkPauseCycles(c *env) {
	const cycles = 20
	need[daytona.Pauser](c)
	sb := c.create()
	f := sb.FileSystem()
	rnd := rand.New(rand.NewPCG(20, cycles))
	random := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		return b
	}
	files := map[string][]byte{"seed": []byte(hex.EncodeToString(random(64 << 10)))}
	c.try("write", f.WriteFile(c.ctx, "seed", files["seed"], 0))
	programs := c.has(Shell) && c.has(Sessions)
	memory, still, pid := string(files["seed"]), string(files["seed"]), 0
	if programs {
		c.startInBackground(sb, keeper)
	}
	ask := func(word string) {
		c.Helper()
		c.try("write", f.WriteFile(c.ctx, "ask.new", []byte(word), 0o666))
		c.try("rename", f.Rename(c.ctx, "ask.new", "ask"))
	}
	disk := true
	for i := range cycles {
		name, word := fmt.Sprintf("written-%d", i), fmt.Sprintf("word%04d", i)
		files[name] = random(1 + rnd.IntN(100_000))
		c.try("write", f.WriteFile(c.ctx, name, files[name], 0))
		// Half of the words come while it is about to be paused.
		if programs && i%2 == 0 {
			ask(word)
		}
		err := sb.Pause(c.ctx, &daytona.PauseOptions{Disk: disk && i%4 == 3})
		if disk && i%4 == 3 && errors.Is(err, errors.ErrUnsupported) {
			disk = false
			err = sb.Pause(c.ctx, nil)
		}
		c.try("pause", err)
		equal(c, "State", sb.Info().State, daytona.StatePaused)
		c.try("resume", sb.Resume(c.ctx))
		equal(c, "State", sb.Info().State, daytona.StateStarted)
		for _, name := range slices.Sorted(maps.Keys(files)) {
			got, err := f.ReadFile(c.ctx, name)
			c.try("read", err)
			if !bytes.Equal(got, files[name]) {
				c.Fatalf("file %s after %d pauses: %d bytes with digest %x, want %d with %x", name, i+1, len(got), sha256.Sum256(got), len(files[name]), sha256.Sum256(files[name]))
			}
		}
		if !programs {
			continue
		}
		if i%2 != 0 {
			ask(word)
		}
		memory = word + memory[:len(memory)-len(word)]
		var answer []byte
		if !c.eventually(10*time.Second, "the process answers", func() (err error) { answer, err = f.ReadFile(c.ctx, "answer-"+word); return err }) {
			return
		}
		head, rest, _ := strings.Cut(string(answer), "\n")
		var n, p int
		_, err = fmt.Sscan(head, &n, &p)
		c.try("read the answer "+clip(head), err)
		if pid == 0 {
			pid = p
		}
		if n != i+1 || p != pid {
			c.Errorf("after %d pauses the process with pid %d was asked %d times; it had pid %d", i+1, p, n, pid)
		}
		if got, want := rest, memory+"\n"+still; got != want {
			c.Fatalf("the memory of the process after %d pauses: %d bytes %s, want %d bytes %s", i+1, len(got), clip(got), len(want), clip(want))
		}
	}
	c.Logf("%d cycles, to disk: %v, memory of a process compared: %v", cycles, disk, programs)
}

func checkFork(c *env) {
	need[daytona.Forker](c)
	sb := c.create(func(s *daytona.Spec) { s.Env["E"] = "v" })
	c.try("write", sb.FileSystem().WriteFile(c.ctx, "f", []byte("before"), 0))
	forkedAs := &daytona.ForkOptions{Names: []string{"forked"}}
	children, err := sb.Fork(c.ctx, forkedAs)
	c.try("fork", err)
	fork := children[0]
	c.Cleanup(func() { c.discard(fork) })
	equal(c, "Name", fork.Name(), "forked")
	equal(c, "State", fork.Info().State, daytona.StateStarted)
	equal(c, "a file in the fork", c.sh(fork, "cat f"), "before")
	equal(c, "a variable in the fork", c.sh(fork, "printenv E"), "v")
	c.try("write", sb.FileSystem().WriteFile(c.ctx, "f", []byte("original"), 0))
	c.try("write", fork.FileSystem().WriteFile(c.ctx, "g", []byte("fork's"), 0))
	equal(c, "the fork after the original was changed", c.sh(fork, "cat f"), "before")
	_, err = sb.FileSystem().Stat(c.ctx, "g")
	c.wantKind("the fork's file in the original", err, daytona.KindNotFound)
	_, err = sb.Fork(c.ctx, forkedAs)
	c.wantKind("fork with a taken name", err, daytona.KindConflict)
	children, err = fork.Fork(c.ctx, nil)
	c.try("fork the fork", err)
	second := children[0]
	if c.h.KeepsParents {
		c.wantKind("delete the original", sb.Delete(c.ctx), daytona.KindState)
		equal(c, "the fork of the fork", c.sh(second, "cat f g"), "beforefork's")
		c.try("delete the fork of the fork", second.Delete(c.ctx))
		c.try("delete the fork", fork.Delete(c.ctx))
		c.try("delete the original", sb.Delete(c.ctx))
		c.nothingLeft("after forks")
		return
	}
	c.try("delete the original", sb.Delete(c.ctx))
	c.try("delete the fork", fork.Delete(c.ctx))
	equal(c, "a fork of a fork after both were deleted", c.sh(second, "cat f g"), "beforefork's")
	c.try("delete", second.Delete(c.ctx))
	c.nothingLeft("after forks")
}

func checkSnapshot(c *env) {
	b := need[daytona.Snapshotter](c)
	names := func() (list []string) {
		for s, err := range b.ListSnapshots(c.ctx) {
			c.try("list", err)
			list = append(list, s.Name)
		}
		return list
	}
	before := names() // a server's own
	sb := c.create()
	c.try("write", sb.FileSystem().WriteFile(c.ctx, "/var/tmp/f", []byte("saved"), 0o600))
	sn, err := sb.CreateSnapshot(c.ctx, "snap")
	c.try("snapshot", err)
	equal(c, "Name", sn.Name, "snap")
	_, err = sb.CreateSnapshot(c.ctx, "snap")
	c.wantKind("snapshot with a taken name", err, daytona.KindConflict)
	c.try("change", sb.FileSystem().WriteFile(c.ctx, "/var/tmp/f", []byte("later"), 0))
	c.try("delete", sb.Delete(c.ctx))
	for _, key := range []string{"snap", sn.ID} {
		got, err := b.GetSnapshot(c.ctx, key)
		c.try("get", err)
		equal(c, "ID", got.ID, sn.ID)
		from := c.create(func(s *daytona.Spec) { s.Image, s.Snapshot = "", key })
		equal(c, "a file from the snapshot", c.sh(from, "cat /var/tmp/f"), "saved")
		c.try("delete", from.Delete(c.ctx))
	}
	equalList(c, "the new snapshots in the list", slices.DeleteFunc(names(), func(n string) bool { return slices.Contains(before, n) }), []string{"snap"})
	c.try("delete", b.DeleteSnapshot(c.ctx, "snap"))
	c.wantKind("delete again", b.DeleteSnapshot(c.ctx, "snap"), daytona.KindNotFound)
	c.nothingLeft("after a snapshot was deleted")
}

func checkResize(c *env) {
	need[daytona.Resizer](c)
	sb := c.create()
	memory := 0.5
	if c.h.Whole {
		memory = sb.Info().Resources.Memory + 1
	}
	c.try("resize", sb.Resize(c.ctx, daytona.Resources{Memory: memory}))
	equal(c, "Memory", sb.Info().Resources.Memory, memory)
	before := sb.Info().Resources
	if c.has(Processes) {
		c.try("resize", sb.Resize(c.ctx, daytona.Resources{Processes: 77}))
		before.Processes = 77
		equal(c, "zero fields stay", sb.Info().Resources, before)
	}
	c.wantKind("resize to nonsense", sb.Resize(c.ctx, daytona.Resources{CPU: -1}), daytona.KindInvalid)
	c.try("stop", sb.Stop(c.ctx, nil))
	c.try("start", sb.Start(c.ctx))
	equal(c, "limits after a restart", sb.Info().Resources, before)
}

func checkArchive(c *env) {
	a := need[daytona.Archiver](c)
	sb := c.create()
	c.try("write", sb.FileSystem().WriteFile(c.ctx, "f", []byte("kept"), 0))
	_, err := a.Archive(c.ctx, sb.ID())
	c.wantKind("archive a running sandbox", err, daytona.KindState)
	c.try("stop", sb.Stop(c.ctx, nil))
	i, err := a.Archive(c.ctx, sb.ID())
	c.try("archive", err)
	equal(c, "State", i.State, daytona.StateArchived)
	c.try("start", sb.Start(c.ctx))
	equal(c, "a file after the archive", c.sh(sb, "cat f"), "kept")
}

func checkVolumes(c *env) {
	need[daytona.VolumeManager](c)
	client := c.open()
	v, err := client.Volumes()
	c.try("volumes", err)
	vol, err := v.CreateVolume(c.ctx, daytona.VolumeSpec{Name: "data"})
	c.try("create", err)
	equal(c, "Name", vol.Name, "data")
	_, err = v.CreateVolume(c.ctx, daytona.VolumeSpec{Name: "data"})
	c.wantKind("create with a taken name", err, daytona.KindConflict)
	for _, bad := range []string{"", "../x", "a b", strings.Repeat("v", 64)} {
		_, err = v.CreateVolume(c.ctx, daytona.VolumeSpec{Name: bad})
		c.wantKind(fmt.Sprintf("create with name %q", bad), err, daytona.KindInvalid)
	}
	for _, key := range []string{"data", vol.ID} {
		got, err := v.GetVolume(c.ctx, key)
		c.try("get", err)
		equal(c, "ID", got.ID, vol.ID)
	}
	_, err = v.GetVolume(c.ctx, "none")
	c.wantKind("get what does not exist", err, daytona.KindNotFound)
	mount := func(m ...daytona.VolumeMount) func(*daytona.Spec) {
		return func(s *daytona.Spec) { s.Volumes = m }
	}
	a := c.create(mount(daytona.VolumeMount{Volume: "data", MountPath: "/data"}))
	b := c.create(mount(daytona.VolumeMount{Volume: vol.ID, MountPath: "/mnt/ro", ReadOnly: true}, daytona.VolumeMount{Volume: "data", MountPath: "/sub", Subpath: "users/alice"}))
	equal(c, "Info.Volumes", len(b.Info().Volumes), 2)
	c.try("write to a volume", a.FileSystem().WriteFile(c.ctx, "/data/f", []byte("shared"), 0o644))
	got, err := b.FileSystem().ReadFile(c.ctx, "/mnt/ro/f")
	c.try("read it in another sandbox", err)
	equal(c, "content", string(got), "shared")
	if err := b.FileSystem().WriteFile(c.ctx, "/mnt/ro/g", []byte("x"), 0); err == nil {
		c.Error("a read-only mount was written to")
	}
	if r, err := b.Process().Exec(c.ctx, "echo x > /mnt/ro/f", nil); err == nil && r.ExitCode == 0 {
		c.Error("a program wrote to a read-only mount")
	}
	c.try("write through a Subpath that was made", b.FileSystem().WriteFile(c.ctx, "/sub/mine", []byte("alice"), 0o644))
	got, err = a.FileSystem().ReadFile(c.ctx, "/data/users/alice/mine")
	c.try("read it through the whole volume", err)
	equal(c, "content", string(got), "alice")
	if _, err = b.FileSystem().Stat(c.ctx, "/sub/../f"); err == nil {
		c.Error("the volume's root is in reach of a Subpath mount")
	}
	c.wantKind("delete a volume that is mounted", v.DeleteVolume(c.ctx, "data"), daytona.KindConflict)
	c.try("stop", a.Stop(c.ctx, nil))
	c.try("start", a.Start(c.ctx))
	equal(c, "a volume after a restart", c.sh(a, "cat /data/f"), "shared")
	c.try("delete", a.Delete(c.ctx))
	c.try("delete", b.Delete(c.ctx))
	again := c.create(mount(daytona.VolumeMount{Volume: "data", MountPath: "/data"}))
	equal(c, "a volume outlives its sandboxes", c.sh(again, "cat /data/f"), "shared")
	c.try("delete", again.Delete(c.ctx))
	var names []string
	for v, err := range v.ListVolumes(c.ctx) {
		c.try("list", err)
		names = append(names, v.Name)
	}
	if !slices.Contains(names, "data") {
		c.Errorf("ListVolumes = %q, lacks data", names)
	}
	c.try("delete", v.DeleteVolume(c.ctx, "data"))
	c.wantKind("delete again", v.DeleteVolume(c.ctx, "data"), daytona.KindNotFound)
	_, err = client.Create(c.ctx, c.spec(mount(daytona.VolumeMount{Volume: "data", MountPath: "/data"})))
	c.wantKind("create with a deleted volume", err, daytona.KindNotFound)
	c.nothingLeft("after volumes")
}

// checkNetworkPolicyLive cuts a connection by a new policy. The far end is a
// listener on an address of this machine that the first policy allows.
func checkNetworkPolicyLive(c *env) {
	need[daytona.NetworkPolicer](c)
	sb := c.create()
	bad := daytona.NetworkPolicy{AllowDomains: []string{"no domain"}}
	c.wantKind("a policy that is nonsense", sb.SetNetworkPolicy(c.ctx, bad), daytona.KindInvalid)
	host := hostAddress()
	if !host.IsValid() {
		c.Skip("this machine has no address but loopback")
	}
	ln, addr := c.listen(host)
	allow := daytona.NetworkPolicy{Allow: []netip.Prefix{netip.PrefixFrom(host, host.BitLen())}}
	if err := sb.SetNetworkPolicy(c.ctx, allow); err != nil {
		if errors.Is(err, errors.ErrUnsupported) {
			c.Skipf("backend %s does not take single addresses of the host: %v", c.backend.Name(), err)
		}
		c.Fatalf("allow %v: %v", host, err)
	}
	accepted := make(chan io.ReadCloser, 1)
	go func() {
		if conn, err := ln.Accept(); err == nil {
			accepted <- conn
		}
	}()
	c.installAttacker(sb)
	cmd := sb.Process().Command(c.ctx, attackerPath, "hold", addr)
	out, err := cmd.StdoutPipe()
	c.try("pipe", err)
	c.try("start", cmd.Start())
	r := bufio.NewReader(out)
	line, _ := r.ReadString('\n')
	if !strings.HasPrefix(line, "connected") {
		_ = cmd.Signal(c.ctx, "SIGKILL")
		c.Skipf("the host's own address stays out of reach although it is in Allow (%q), which is a backend's right", line)
	}
	defer (<-accepted).Close()
	c.try("block while a connection is open", sb.SetNetworkPolicy(c.ctx, daytona.NetworkPolicy{Block: true}))
	equal(c, "Info.Network.Block", sb.Info().Network.Block, true)
	c.try("the connection is cut", c.within(15*time.Second, func() error {
		line, err := r.ReadString('\n')
		if err == nil && !strings.HasPrefix(line, "cut") {
			err = fmt.Errorf("the program says %q", line)
		}
		return err
	}))
	_ = cmd.Signal(c.ctx, "SIGKILL")
	go io.Copy(io.Discard, r)
	_ = c.within(5*time.Second, cmd.Wait)
}
