package backendtest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
)

// RunBenchmarks measures what users wait for and sets it against peers that
// are measured in the same run, on the same machine:
//
//   - x_forkexec: a bare fork and exec of /bin/true by a small process,
//     the physical floor of a command;
//   - x_cp: cp of the same bytes on the host;
//   - x_docker: the docker command doing the same, if an engine answers, with
//     the image of [Harness.DockerImage] or BENCH_DOCKER_IMAGE;
//   - x_runc: "runc run" of /bin/true over the host's /usr, if installed;
//   - x_create: the backend's own cold create up to the first command, what
//     forks and snapshots are measured against;
//   - x_dockerload: "docker load" of the same image;
//   - x_grep and x_rg: grep -rI and ripgrep over the same tree, in the same
//     sandbox;
//   - x_git: git status of the same repository, in the same sandbox;
//   - x_lsp: the same request of the same language server on the host, by pipe;
//   - x_pty: cat behind a pseudo-terminal of the host;
//   - x_python: a bare "python3 -c 1+1" on the host.
//
// Times are reported as ms/p50 and ms/p95; ratios as p50 over the peer's p50,
// so that less than 1 is faster than the peer.
func RunBenchmarks(b *testing.B, h *Harness) {
	if err := h.validate(); err != nil {
		b.Fatal(err)
	}
	e := &bench{B: b, h: h}
	b.Run("ColdCreateToExec", func(b *testing.B) { e.with(b).cold(b) })
	b.Run("WarmCreateToExec", func(b *testing.B) { e.with(b).warm(b) })
	b.Run("Exec", func(b *testing.B) {
		e.with(b).exec(b, func(p daytona.Process) error {
			r, err := p.Exec(b.Context(), "true", nil)
			if err == nil && r.ExitCode != 0 {
				err = fmt.Errorf("true ended with %d", r.ExitCode)
			}
			return err
		})
	})
	b.Run("Command", func(b *testing.B) {
		e.with(b).exec(b, func(p daytona.Process) error { return p.Command(b.Context(), "true").Run() })
	})
	b.Run("SessionExec", func(b *testing.B) { e.with(b).sessionExec(b) })
	b.Run("InterpreterRun", func(b *testing.B) { e.with(b).interpreterRun(b) })
	b.Run("InterpreterContext", func(b *testing.B) { e.with(b).interpreterContext(b) })
	b.Run("ExecParallel", func(b *testing.B) { e.with(b).execParallel(b) })
	b.Run("StopStart", func(b *testing.B) { e.with(b).stopStart(b) })
	b.Run("Delete", func(b *testing.B) { e.with(b).delete(b) })
	b.Run("Upload256MiB", func(b *testing.B) { e.with(b).upload(b) })
	b.Run("Download256MiB", func(b *testing.B) { e.with(b).download(b) })
	b.Run("CreateParallel", func(b *testing.B) { e.with(b).createParallel(b) })
	b.Run("IdleMemory", func(b *testing.B) { e.with(b).memory(b) })
	b.Run("Search", func(b *testing.B) { e.with(b).search(b) })
	b.Run("PTYEcho", func(b *testing.B) { e.with(b).ptyEcho(b) })
	b.Run("GitStatus", func(b *testing.B) { e.with(b).gitStatus(b) })
	b.Run("Completion", func(b *testing.B) { e.with(b).completion(b) })
	e.runStateBenchmarks(b)
}

type bench struct {
	*testing.B
	h      *Harness
	client *daytona.Client
	state  string // where it keeps its state
}

// with opens a backend for one benchmark.
func (e *bench) with(b *testing.B) *bench {
	b.Helper()
	state := b.TempDir()
	be, err := e.h.Open(b.Context(), state)
	if err != nil {
		b.Fatal(err)
	}
	n := &bench{B: b, h: e.h, client: daytona.New(be), state: state}
	b.Cleanup(func() { n.client.Close() })
	return n
}

func (e *bench) must(err error) {
	e.Helper()
	if err != nil {
		e.Fatal(err)
	}
}

func (e *bench) create() daytona.Sandbox {
	e.Helper()
	sb, err := e.client.Create(e.Context(), e.h.Spec)
	e.must(err)
	return sb
}

func percentile(d []time.Duration, p int) time.Duration {
	if len(d) == 0 {
		return 0
	}
	d = slices.Clone(d)
	slices.Sort(d)
	return d[(len(d)-1)*p/100]
}

func ms(d time.Duration) float64 { return float64(d) / 1e6 }

// report turns the times of the iterations into metrics.
func (e *bench) report(times []time.Duration, peers map[string]time.Duration) {
	e.ReportMetric(0, "ns/op") // of all iterations, set-up included: no use
	p50 := percentile(times, 50)
	e.ReportMetric(ms(p50), "ms/p50")
	e.ReportMetric(ms(percentile(times, 95)), "ms/p95")
	for name, d := range peers {
		if d > 0 {
			e.ReportMetric(float64(p50)/float64(d), "x_"+name)
		}
	}
}

// peer measures a command of the host, p50 of a few runs; 0 if it fails.
func (e *bench) peer(runs int, name string, args ...string) time.Duration {
	e.Helper()
	var times []time.Duration
	for range runs {
		begin := time.Now()
		ctx, cancel := context.WithTimeout(e.Context(), time.Minute)
		out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
		cancel()
		if err != nil {
			e.Logf("peer %s %q: %v %s", name, args, err, bytes.TrimSpace(out))
			return 0
		}
		times = append(times, time.Since(begin))
	}
	return percentile(times, 50)
}

// forkExec is the time of a bare fork and exec of /bin/true. A shell, which is
// a small process, does hundreds of them: forking this test binary with its
// large heap would flatter the backend.
func (e *bench) forkExec() time.Duration {
	const n = 300
	d := e.peer(3, "/bin/sh", "-c", fmt.Sprintf("i=0; while [ $i -lt %d ]; do /bin/true; i=$((i+1)); done", n))
	return d / n
}

// dockerImage is the image to compare with; "" if there is none.
func (e *bench) dockerImage(sb daytona.Sandbox) string {
	if _, err := exec.LookPath("docker"); err != nil {
		return ""
	}
	if e.h.DockerImage == nil {
		return os.Getenv("BENCH_DOCKER_IMAGE")
	}
	image, err := e.h.DockerImage(e.Context(), sb.ID())
	e.must(err)
	return image
}

// beside is a docker command that is measured between the iterations, a few
// times, so that both meet the same machine in the same state.
type beside struct {
	*bench
	args  []string // none where there is no image
	times []time.Duration
}

func (p *beside) run() {
	if len(p.args) == 0 || len(p.times) == 10 {
		return
	}
	p.StopTimer()
	defer p.StartTimer()
	if d := p.peer(1, "docker", p.args...); d > 0 {
		p.times = append(p.times, d)
	} else {
		p.args, p.times = nil, nil
	}
}

func (p *beside) p50() time.Duration { return percentile(p.times, 50) }

// dockerContainer starts a container for exec and cp and returns its id.
func (e *bench) dockerContainer(image string) string {
	if image == "" {
		return ""
	}
	out, err := exec.CommandContext(e.Context(), "docker", "run", "-d", "--rm", image, "sleep", "3600").Output()
	if err != nil {
		e.Logf("peer docker: %v", err)
		return ""
	}
	id := strings.TrimSpace(string(out))
	e.Cleanup(func() { _ = exec.Command("docker", "kill", id).Run() })
	return id
}

// runc is the time of "runc run" of /bin/true; 0 where it is not installed or
// not permitted.
func (e *bench) runc() time.Duration {
	if _, err := exec.LookPath("runc"); err != nil {
		return 0
	}
	dir := e.TempDir()
	root := filepath.Join(dir, "rootfs")
	for _, d := range []string{"proc", "dev", "sys", "usr", "lib", "lib64", "bin"} {
		if os.MkdirAll(filepath.Join(root, d), 0o755) != nil {
			return 0
		}
	}
	var mounts []string
	for _, d := range []string{"/usr", "/lib", "/lib64", "/bin"} {
		if _, err := os.Stat(d); err == nil {
			mounts = append(mounts, fmt.Sprintf(`{"destination":%q,"type":"bind","source":%q,"options":["rbind","ro"]}`, d, d))
		}
	}
	config := fmt.Sprintf(`{"ociVersion":"1.0.2","process":{"terminal":false,"user":{"uid":0,"gid":0},"args":["/bin/true"],"env":["PATH=/bin:/usr/bin"],"cwd":"/"},
"root":{"path":"rootfs"},"mounts":[{"destination":"/proc","type":"proc","source":"proc"},%s],
"linux":{"namespaces":[{"type":"pid"},{"type":"mount"},{"type":"ipc"},{"type":"uts"},{"type":"network"}]}}`, strings.Join(mounts, ","))
	if os.WriteFile(filepath.Join(dir, "config.json"), []byte(config), 0o644) != nil {
		return 0
	}
	var times []time.Duration
	for i := range 10 {
		d := e.peer(1, "runc", "--root", filepath.Join(dir, "state"), "run", "--bundle", dir, fmt.Sprintf("daytona-bench-%d-%d", os.Getpid(), i))
		if d == 0 {
			return 0
		}
		times = append(times, d)
	}
	return percentile(times, 50)
}

func (e *bench) createLoop(b *testing.B, ready func() error) {
	// The first create prepares images and caches; it is another number.
	first := e.create()
	image := e.dockerImage(first)
	e.must(first.Delete(b.Context()))
	peers := map[string]time.Duration{"forkexec": e.forkExec(), "runc": e.runc()}
	docker := &beside{bench: e}
	if image != "" {
		docker.args = []string{"run", "--rm", image, "true"}
	}
	var times []time.Duration
	for b.Loop() {
		b.StopTimer()
		e.must(ready())
		b.StartTimer()
		begin := time.Now()
		sb := e.create()
		e.must(sb.Process().Command(b.Context(), "true").Run())
		times = append(times, time.Since(begin))
		b.StopTimer()
		e.must(sb.Delete(b.Context()))
		b.StartTimer()
		docker.run()
	}
	peers["docker"] = docker.p50()
	e.report(times, peers)
}

func (e *bench) cold(b *testing.B) { e.createLoop(b, func() error { return nil }) }

func (e *bench) warm(b *testing.B) {
	if e.h.Warm == nil {
		b.Skip("the harness has no warm pool")
	}
	e.createLoop(b, func() error { return e.h.Warm(b.Context(), e.client.Backend(), e.h.Spec) })
}

func (e *bench) exec(b *testing.B, run func(p daytona.Process) error) {
	sb := e.create()
	peers := map[string]time.Duration{"forkexec": e.forkExec()}
	docker := &beside{bench: e}
	if id := e.dockerContainer(e.dockerImage(sb)); id != "" {
		docker.args = []string{"exec", id, "true"}
	}
	p := sb.Process()
	e.must(run(p))
	var times []time.Duration
	for b.Loop() {
		begin := time.Now()
		e.must(run(p))
		times = append(times, time.Since(begin))
		docker.run()
	}
	peers["docker"] = docker.p50()
	e.report(times, peers)
}

// sessionExec measures a command of a session's shell, which is to start a
// program as well: true is built into shells.
func (e *bench) sessionExec(b *testing.B) {
	var s daytona.Session
	e.exec(b, func(p daytona.Process) (err error) {
		if s == nil {
			if s, err = p.CreateSession(b.Context(), "bench"); err != nil {
				return err
			}
		}
		r, err := s.Run(b.Context(), "/bin/true")
		if err == nil && r.ExitCode != 0 {
			err = fmt.Errorf("true ended with %d: %s", r.ExitCode, r.Stderr)
		}
		return err
	})
}

// interpreter makes a sandbox whose interpreter has been used once.
func (e *bench) interpreter() (daytona.Interpreter, map[string]time.Duration) {
	e.Helper()
	if why := e.h.Lacks[Interpreter]; why != "" {
		e.Skip(why)
	}
	in := e.create().Interpreter()
	e.one(in, nil)
	return in, map[string]time.Duration{"python": e.peer(20, "python3", "-c", "1+1")}
}

// one runs 1+1.
func (e *bench) one(in daytona.Interpreter, o *daytona.InterpreterOptions) {
	e.Helper()
	r, err := in.Run(e.Context(), "1+1", o)
	e.must(err)
	if len(r.Results) != 1 || r.Results[0].Text() != "2" {
		e.Fatalf("1+1 is %+v", r)
	}
}

func (e *bench) interpreterRun(b *testing.B) {
	in, peers := e.interpreter()
	var times []time.Duration
	for b.Loop() {
		begin := time.Now()
		e.one(in, nil)
		times = append(times, time.Since(begin))
	}
	e.report(times, peers)
}

// interpreterContext measures a new context with its first run.
func (e *bench) interpreterContext(b *testing.B) {
	in, peers := e.interpreter()
	var times []time.Duration
	for b.Loop() {
		begin := time.Now()
		c, err := in.CreateContext(b.Context(), nil)
		e.must(err)
		e.one(in, &daytona.InterpreterOptions{Context: c.ID})
		times = append(times, time.Since(begin))
		e.must(in.DeleteContext(b.Context(), c.ID))
		// The next one is kept ready; users are slower than this loop.
		time.Sleep(100 * time.Millisecond)
	}
	e.report(times, peers)
}

func (e *bench) execParallel(b *testing.B) {
	p := e.create().Process()
	n := 0
	begin := time.Now()
	for b.Loop() {
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				if err := p.Command(b.Context(), "true").Run(); err != nil {
					b.Error(err)
				}
			})
		}
		wg.Wait()
		n += 10
	}
	b.ReportMetric(float64(n)/time.Since(begin).Seconds(), "execs/s")
}

func (e *bench) stopStart(b *testing.B) {
	sb := e.create()
	var times []time.Duration
	for b.Loop() {
		begin := time.Now()
		e.must(sb.Stop(b.Context(), &daytona.StopOptions{Force: true}))
		e.must(sb.Start(b.Context()))
		times = append(times, time.Since(begin))
	}
	e.report(times, nil)
}

func (e *bench) delete(b *testing.B) {
	var times []time.Duration
	for b.Loop() {
		b.StopTimer()
		sb := e.create()
		b.StartTimer()
		begin := time.Now()
		e.must(sb.Delete(b.Context()))
		times = append(times, time.Since(begin))
	}
	e.report(times, nil)
}

const transfer = 256 << 20

// cp is the time of cp of as many bytes on the host.
func (e *bench) cp() time.Duration {
	dir := e.TempDir()
	src := filepath.Join(dir, "src")
	f, err := os.Create(src)
	e.must(err)
	_, err = io.Copy(f, noise(transfer))
	e.must(err)
	e.must(f.Close())
	return e.peer(3, "cp", src, filepath.Join(dir, "dst"))
}

func (e *bench) transferPeers(b *testing.B, sb daytona.Sandbox, args func(id, host string) []string) map[string]time.Duration {
	peers := map[string]time.Duration{"cp": e.cp()}
	if id := e.dockerContainer(e.dockerImage(sb)); id != "" {
		host := filepath.Join(b.TempDir(), "file")
		f, err := os.Create(host)
		e.must(err)
		_, err = io.Copy(f, noise(transfer))
		e.must(err)
		e.must(f.Close())
		e.must(exec.Command("docker", "cp", host, id+":/tmp/file").Run())
		peers["docker"] = e.peer(3, "docker", args(id, host)...)
	}
	return peers
}

func (e *bench) upload(b *testing.B) {
	sb := e.create()
	peers := e.transferPeers(b, sb, func(id, host string) []string { return []string{"cp", host, id + ":/tmp/file"} })
	fsys := sb.FileSystem()
	data, err := io.ReadAll(noise(transfer))
	e.must(err)
	b.SetBytes(transfer)
	var times []time.Duration
	for b.Loop() {
		begin := time.Now()
		_, err := fsys.Upload(b.Context(), "big", bytes.NewReader(data))
		e.must(err)
		times = append(times, time.Since(begin))
	}
	e.report(times, peers)
}

func (e *bench) download(b *testing.B) {
	sb := e.create()
	peers := e.transferPeers(b, sb, func(id, host string) []string { return []string{"cp", id + ":/tmp/file", host + ".back"} })
	fsys := sb.FileSystem()
	_, err := fsys.Upload(b.Context(), "big", noise(transfer))
	e.must(err)
	b.SetBytes(transfer)
	var times []time.Duration
	for b.Loop() {
		begin := time.Now()
		n, err := fsys.Download(b.Context(), "big", io.Discard)
		e.must(err)
		if n != transfer {
			b.Fatalf("%d bytes, want %d", n, int64(transfer))
		}
		times = append(times, time.Since(begin))
	}
	e.report(times, peers)
}

func (e *bench) createParallel(b *testing.B) {
	first := e.create()
	e.must(first.Delete(b.Context()))
	n, failed := 0, 0
	var spent time.Duration
	for b.Loop() {
		const width = 20
		var wg sync.WaitGroup
		sbs, errs := make([]daytona.Sandbox, width), make([]error, width)
		begin := time.Now()
		for i := range width {
			wg.Go(func() {
				if sbs[i], errs[i] = e.client.Create(b.Context(), e.h.Spec); errs[i] == nil {
					errs[i] = sbs[i].Process().Command(b.Context(), "true").Run()
				}
			})
		}
		wg.Wait()
		spent += time.Since(begin)
		n += width
		b.StopTimer()
		for i := range width {
			if errs[i] != nil {
				failed++
				b.Errorf("create in parallel: %v", errs[i])
			}
			if sbs[i] != nil {
				wg.Go(func() { _ = sbs[i].Delete(b.Context()) })
			}
		}
		wg.Wait()
		b.StartTimer()
	}
	b.ReportMetric(float64(n-failed)/spent.Seconds(), "creates/s")
	b.ReportMetric(100*float64(n-failed)/float64(n), "%ok")
}

func (e *bench) memory(b *testing.B) {
	if e.h.MemoryOf == nil {
		b.Skip("the harness cannot measure memory")
	}
	var last int64
	for b.Loop() {
		sb := e.create()
		e.must(sb.Process().Command(b.Context(), "true").Run())
		time.Sleep(6 * time.Second) // after five, the agent gives back what its start took
		n, err := e.h.MemoryOf(b.Context(), e.client.Backend(), sb.ID())
		e.must(err)
		last = n
		e.must(sb.Delete(b.Context()))
	}
	b.ReportMetric(float64(last)/(1<<20), "MiB/sandbox")
}
