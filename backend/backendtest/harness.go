// Package backendtest holds the suites that every implementation of
// [daytona.Backend] passes: conformance, security, crash, histories and
// benchmarks. What the interfaces of package daytona oblige a backend to do, a
// check here observes from outside: through the public interfaces, from inside
// the sandbox, and on the host through what the [Harness] reports.
//
// The package knows package daytona only, never a backend. A backend's own
// test supplies a Harness and is otherwise a few lines:
//
//	var harness = &backendtest.Harness{
//		Open: func(ctx context.Context, state string) (daytona.Backend, error) {
//			return mybackend.New(ctx, mybackend.Options{StateDir: state})
//		},
//		Spec: daytona.Spec{Image: "debian:12"},
//		Leftovers: leftovers,
//	}
//
//	func TestMain(m *testing.M)          { os.Exit(backendtest.Main(m, harness)) }
//	func TestConformance(t *testing.T)   { backendtest.RunConformance(t, harness) }
//	func TestSecurity(t *testing.T)      { backendtest.RunSecurity(t, harness) }
//	func TestCrash(t *testing.T)         { backendtest.RunCrash(t, harness) }
//	func TestStateCrash(t *testing.T)    { backendtest.RunStateCrash(t, harness) }
//	func TestHistories(t *testing.T)     { backendtest.RunHistories(t, harness) }
//	func BenchmarkBackend(b *testing.B)  { backendtest.RunBenchmarks(b, harness) }
//
// A backend that cannot do something says so in [Harness.Lacks] (a whole
// capability) or [Harness.Skip] (one check), with the reason, which the suite
// logs. An unknown name there fails the run, so that no exception outlives
// the check it was made for.
package backendtest

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
)

// Harness is what a backend supplies to be checked.
type Harness struct {
	// Open opens the backend on the state kept in directory state, which
	// exists and is empty the first time; a second Open of the same directory,
	// in this process or another, adopts what is there. The suite closes what
	// it opens. A backend whose state lives elsewhere (an engine, a server)
	// uses the directory's name to tell its sandboxes from those of others.
	// Required.
	Open func(ctx context.Context, state string) (daytona.Backend, error)

	// Label tells this harness from others of the same backend, such as "local
	// (rootless)", where the results of suites are put side by side. Defaults to
	// the backend's name.
	Label string

	// Spec is what the checks start from: an image with /bin/sh, coreutils
	// and, unless Lacks says otherwise, python3 and node. Defaults to the zero
	// Spec.
	Spec daytona.Spec

	// DesktopImage is an image with a desktop (docs/computer-use.md), for the check
	// that drives one. Defaults to that of Spec, which is expected to refuse if it
	// has none.
	DesktopImage string

	// Lacks says which capabilities are missing, and why. Defaults to none:
	// everything is checked. An optional interface that the backend lacks, such
	// as "Pauser", need not be here, but may be for the reason.
	Lacks map[Capability]string

	// Skip says which checks, by name (such as "S06_VolumeRace"), do not hold,
	// and why. Defaults to none.
	Skip map[string]string

	// Leftovers lists the host's resources that exist because of a sandbox of
	// state: processes, cgroups, mounts, network namespaces, interfaces,
	// firewall rules, files. Once all sandboxes are deleted the list must be
	// empty; what belongs to the open backend itself (a pool, a cache, a lock)
	// must not be in it. Defaults to nil: only the backend's List is checked.
	Leftovers func(ctx context.Context, state string) ([]string, error)

	// ForgetImage removes an image of a registry from where the backend keeps
	// images. Defaults to nil: they are kept with the state.
	ForgetImage func(ctx context.Context, ref string) error

	// HostFiles lists files of the host that are in reach of a sandbox and
	// must never change, such as the agent's binary. Defaults to none beyond
	// those that the suite watches by itself.
	HostFiles func(state string) []string

	// MemoryOf returns the bytes of memory that an idle sandbox costs the
	// host, all its processes included. Defaults to nil: not measured.
	MemoryOf func(ctx context.Context, b daytona.Backend, id string) (int64, error)

	// Warm waits until the backend can create a sandbox of spec from a warm
	// pool. Defaults to nil: warm creation is not measured.
	Warm func(ctx context.Context, b daytona.Backend, spec daytona.Spec) error

	// DockerImage names the image of a sandbox as the docker command knows it, for
	// benchmarks to compare with. Defaults to nil: they compare with the image
	// that the variable BENCH_DOCKER_IMAGE names, if any.
	DockerImage func(ctx context.Context, id string) (string, error)

	// Failpoints names the points at which a process may die: one with
	// DAYTONA_FAILPOINT=NAME=kill in its environment must be killed with SIGKILL
	// when it comes there. A name's second part, between slashes, says which
	// transition comes there; see reachedBy. Defaults to none.
	Failpoints []string

	// FailpointsThatFail names those of them at which DAYTONA_FAILPOINT=NAME=error
	// must have what is done fail once for want of space. Defaults to none.
	FailpointsThatFail []string

	// KeepsParents says that a sandbox cannot be deleted while there are forks of it.
	// Defaults to false.
	KeepsParents bool

	// Whole says that the backend counts whole cores and whole GiB: where others
	// get a part of one, it gets one. Defaults to false.
	Whole bool

	// Slow multiplies every time limit. Defaults to 1; engines that need a
	// second for what others do in ten milliseconds set more.
	Slow float64
}

// ImageNamed returns that of the images, a list with commas between, whose
// reference ends with a variant's name; "" if there is none.
func ImageNamed(images, variant string) string {
	for ref := range strings.SplitSeq(images, ",") {
		if strings.HasSuffix(ref, ":"+variant) {
			return ref
		}
	}
	return ""
}

// Capability is something that not every backend, machine or image has.
type Capability string

// The capabilities that [Harness.Lacks] may name.
const (
	Shell       Capability = "shell"        // a full POSIX shell with coreutils and /proc
	Programs    Capability = "programs"     // running an uploaded static Linux binary
	Python      Capability = "python"       // python3
	JavaScript  Capability = "javascript"   // node
	TypeScript  Capability = "typescript"   // a way to run TypeScript
	Sessions    Capability = "sessions"     // Process.CreateSession
	Terminals   Capability = "terminals"    // PTYs, and commands with a TTY
	Interpreter Capability = "interpreter"  // Sandbox.Interpreter
	Git         Capability = "git"          // Sandbox.Git, with git in the image
	LSP         Capability = "lsp"          // Sandbox.LSPServer
	ComputerUse Capability = "computer-use" // Sandbox.ComputerUse
	Ports       Capability = "ports"        // DialPort and Ports
	AgentAPI    Capability = "agent-api"    // Toolbox.Dial to the agent's HTTP API
	Metrics     Capability = "metrics"      // Sandbox.Metrics
	Symlinks    Capability = "symlinks"     // symbolic links
	Ownership   Capability = "ownership"    // permission bits are enforced between users
	Users       Capability = "users"        // Spec.User other than the default
	Streaming   Capability = "streaming"    // transfers in bounded memory of this process
	Images      Capability = "images"       // Spec.Image is looked up
	Registries  Capability = "registries"   // Spec.Image of a registry, with the credentials of the current user
	TarImages   Capability = "tar-images"   // Spec.Image = "tar:/file"
	Persistence Capability = "persistence"  // Spec.Persistent and adoption by another Backend
	Timers      Capability = "timers"       // TTL, AutoStop, AutoDelete
	Entrypoint  Capability = "entrypoint"   // Spec.Entrypoint
	CPU         Capability = "cpu"          // Resources.CPU
	Memory      Capability = "memory"       // Resources.Memory
	Processes   Capability = "processes"    // Resources.Processes
	Disk        Capability = "disk"         // Resources.Disk
	UserLimits  Capability = "user-limits"  // the kernel's limits per user (inotify instances) are each sandbox's own
	Network     Capability = "network"      // isolation from host, neighbours and private ranges
	Isolation   Capability = "isolation"    // a boundary at all; without it RunSecurity refuses to run
)

var capabilities = []Capability{
	Shell, Programs, Python, JavaScript, TypeScript, Sessions, Terminals, Interpreter, Git, LSP, ComputerUse, Ports,
	AgentAPI, Metrics, Symlinks, Ownership, Users, Streaming, Images, Registries, TarImages, Persistence, Timers,
	Entrypoint, CPU, Memory, Processes, Disk, UserLimits, Network, Isolation,
}

// Main runs the tests of a package whose tests use these suites, for its
// TestMain, and returns the exit code. It exists because [RunCrash] and
// [RunStateCrash] need processes to kill: they start the test binary again and Main is what
// turns that copy into an owner of sandboxes.
func Main(m *testing.M, h *Harness) int {
	if len(os.Args) == 3 && os.Args[1] == ownerArg {
		return ownerMain(h, os.Args[2])
	}
	if len(os.Args) == 5 && os.Args[1] == stageArg {
		return stageMain(h, os.Args[2], os.Args[3], os.Args[4])
	}
	mainRuns.Store(true)
	code := m.Run()
	removeAttacker()
	return code
}

// check is one named check of a suite.
type check struct {
	name  string
	needs []Capability
	limit time.Duration // defaults to a minute
	run   func(c *env)
}

// allChecks names every check there is, to find misspelt exceptions.
func allChecks() []check {
	return slices.Concat(conformanceChecks(), securityChecks(), crashChecks(), stateCrashChecks())
}

// validate finds a Harness's own mistakes.
func (h *Harness) validate() error {
	var errs []error
	if h.Open == nil {
		errs = append(errs, errors.New("Harness.Open is required"))
	}
	oneLine := func(field, text string) {
		if strings.ContainsAny(text, "\r\n") {
			errs = append(errs, fmt.Errorf("Harness.%s: must be one line", field))
		}
	}
	oneLine("Label", h.Label)
	for c, why := range h.Lacks {
		oneLine(fmt.Sprintf("Lacks[%q]", c), why)
		if !slices.Contains(capabilities, c) && !slices.ContainsFunc(optional, func(o optionalInterface) bool { return o.name == string(c) }) {
			errs = append(errs, fmt.Errorf("Harness.Lacks: no capability is called %q", c))
		}
		if why == "" {
			errs = append(errs, fmt.Errorf("Harness.Lacks[%q]: give the reason", c))
		}
	}
	all := allChecks()
	for name, why := range h.Skip {
		oneLine(fmt.Sprintf("Skip[%q]", name), why)
		if !slices.ContainsFunc(all, func(c check) bool { return c.name == name }) {
			errs = append(errs, fmt.Errorf("Harness.Skip: no check is called %q", name))
		}
		if why == "" {
			errs = append(errs, fmt.Errorf("Harness.Skip[%q]: give the reason", name))
		}
	}
	return errors.Join(errs...)
}

// label is Label or what it defaults to.
func (h *Harness) label(t *testing.T) (string, error) {
	if h.Label != "" {
		return h.Label, nil
	}
	b, err := h.Open(t.Context(), t.TempDir())
	if err != nil {
		return "", err
	}
	return b.Name(), b.Close()
}

// amount is how many cores or GiB a check takes that would be content with a part
// of one.
func (h *Harness) amount(part float64) float64 {
	if h.Whole {
		return math.Ceil(part)
	}
	return part
}

func (h *Harness) slow(d time.Duration) time.Duration {
	if h.Slow > 1 {
		return time.Duration(float64(d) * h.Slow)
	}
	return d
}

// Attributes of tests (testing.T.Attr), by which `go test -json` tells what a
// suite found out: see .ci/report.
const (
	attrBackend = "backendtest.backend" // the harness's label
	attrSuite   = "backendtest.suite"
	attrHas     = "backendtest.has."  // and a capability: "yes", or "no: " and why
	attrSkip    = "backendtest.skip." // and a check: why the harness skips it
)

// runChecks runs each check of a suite as a subtest, one after another.
func runChecks(t *testing.T, h *Harness, suite string, checks []check) {
	t.Helper()
	if err := h.validate(); err != nil {
		t.Fatal(err)
	}
	label, err := h.label(t)
	if err != nil {
		t.Fatalf("open the backend: %v", err)
	}
	t.Attr(attrBackend, label)
	t.Attr(attrSuite, suite)
	for _, ch := range checks {
		if why := h.Skip[ch.name]; why != "" {
			t.Attr(attrSkip+ch.name, why)
		}
	}
	for _, ch := range checks {
		t.Run(ch.name, func(t *testing.T) {
			if why := h.Skip[ch.name]; why != "" {
				t.Skipf("the harness skips this check: %s", why)
			}
			for _, n := range ch.needs {
				if why, lacks := h.Lacks[n]; lacks {
					t.Skipf("the harness lacks %s: %s", n, why)
				}
			}
			limit := ch.limit
			if limit == 0 {
				limit = time.Minute
			}
			limit = h.slow(limit)
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			c := &env{T: t, h: h, ctx: ctx}
			// The check runs beside the test's goroutine so that a backend
			// that ignores its context fails the check and does not hang the
			// run. FailNow and SkipNow end the inner goroutine only, which is
			// as good, for nothing follows it.
			done := make(chan struct{})
			go func() {
				defer close(done)
				ch.run(c)
			}()
			grace := time.NewTimer(limit + h.slow(20*time.Second))
			defer grace.Stop()
			select {
			case <-done:
			case <-grace.C:
				t.Errorf("the check has not returned %v after its context was cancelled at %v", h.slow(20*time.Second), limit)
			}
		})
	}
}

// env is what a check works with: the test, and a backend on its own state.
type env struct {
	*testing.T
	h       *Harness
	ctx     context.Context
	state   string
	client  *daytona.Client
	backend daytona.Backend
}

// sub runs a part of a check as a subtest that shares the backend.
func (c *env) sub(name string, needs []Capability, f func(c *env)) {
	c.Helper()
	c.Run(name, func(t *testing.T) {
		for _, n := range needs {
			if why, lacks := c.h.Lacks[n]; lacks {
				t.Skipf("the harness lacks %s: %s", n, why)
			}
		}
		s := *c
		s.T = t
		f(&s)
	})
}

// tell puts on record whether the backend has something.
func tell(t *testing.T, what string, has bool, why string) {
	if has {
		t.Attr(attrHas+what, "yes")
	} else {
		t.Attr(attrHas+what, "no: "+strings.Join(strings.Fields(why), " "))
	}
}

func (c *env) has(x Capability) bool { _, lacks := c.h.Lacks[x]; return !lacks }

func (c *env) slow(d time.Duration) time.Duration { return c.h.slow(d) }

// open opens the check's backend on fresh state, once.
func (c *env) open() *daytona.Client {
	c.Helper()
	if c.client != nil {
		return c.client
	}
	if c.state == "" {
		c.state = c.TempDir()
	}
	b, err := c.h.Open(c.ctx, c.state)
	if err != nil {
		c.Fatalf("open the backend: %v", err)
	}
	c.backend = b
	c.client = daytona.New(b)
	client := c.client
	c.Cleanup(func() {
		if err := c.within(30*time.Second, client.Close); err != nil {
			c.Errorf("close the backend: %v", err)
		}
		c.removeVolumes()
	})
	return c.client
}

// removeVolumes removes what outlives sandboxes, since its files may belong to
// users whom the test is not.
func (c *env) removeVolumes() {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.ctx), c.slow(30*time.Second))
	defer cancel()
	b, err := c.h.Open(ctx, c.state)
	if err != nil {
		c.Errorf("open the backend to remove volumes: %v", err)
		return
	}
	defer b.Close()
	m, ok := daytona.As[daytona.VolumeManager](b)
	if !ok {
		return
	}
	for v, err := range m.ListVolumes(ctx) {
		if err == nil {
			err = m.DeleteVolume(ctx, v.ID)
		}
		if err != nil {
			c.Errorf("remove volume %s: %v", v.Name, err)
		}
	}
}

// within runs f and gives up waiting for it after d.
func (c *env) within(d time.Duration, f func() error) error {
	d = c.slow(d)
	done := make(chan error, 1)
	go func() { done <- f() }()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case err := <-done:
		return err
	case <-t.C:
		return fmt.Errorf("has not returned within %v", d)
	}
}

// reopen opens a second backend on the same state.
func (c *env) reopen() *daytona.Client {
	c.Helper()
	b, err := c.h.Open(c.ctx, c.state)
	if err != nil {
		c.Fatalf("open a second backend on the same state: %v", err)
	}
	client := daytona.New(b)
	c.Cleanup(func() {
		if err := c.within(30*time.Second, client.Close); err != nil {
			c.Errorf("close the second backend: %v", err)
		}
	})
	return client
}

// spec is the harness's Spec with changes.
func (c *env) spec(change ...func(*daytona.Spec)) daytona.Spec {
	s := c.h.Spec
	s.Env, s.Labels = cloneMap(s.Env), cloneMap(s.Labels)
	for _, f := range change {
		f(&s)
	}
	return s
}

func cloneMap(m map[string]string) map[string]string {
	out := make(map[string]string, len(m)+1)
	for k, v := range m {
		out[k] = v
	}
	return out
}

// create makes a sandbox that is deleted when the check ends.
func (c *env) create(change ...func(*daytona.Spec)) daytona.Sandbox {
	c.Helper()
	sb, err := c.open().Create(c.ctx, c.spec(change...))
	if err != nil {
		c.Fatalf("create a sandbox: %v", err)
	}
	c.Cleanup(func() { c.discard(sb) })
	return sb
}

// discard deletes a sandbox whatever has become of it and of c.ctx.
func (c *env) discard(sb daytona.Sandbox) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.ctx), c.slow(30*time.Second))
	defer cancel()
	if err := sb.Delete(ctx); err != nil && !errors.Is(err, daytona.ErrNotFound) {
		c.Errorf("delete sandbox %s: %v", sb.ID(), err)
	}
}

// try fails the check on an error.
func (c *env) try(what string, err error) {
	c.Helper()
	if err != nil {
		c.Fatalf("%s: %v", what, err)
	}
}

// wantKind demands an error of a kind.
func (c *env) wantKind(what string, err error, want daytona.Kind) {
	c.Helper()
	if err == nil {
		c.Errorf("%s: no error, want one of kind %q", what, want)
		return
	}
	if got := daytona.KindOf(err); got != want {
		c.Errorf("%s: error of kind %q, want %q: %v", what, got, want, err)
	}
}

// sh runs a line in the sandbox's shell, which must end with code 0, and
// returns its output without the last newline.
func (c *env) sh(sb daytona.Sandbox, line string) string {
	c.Helper()
	r, err := sb.Process().Exec(c.ctx, line, nil)
	if err != nil {
		c.Fatalf("exec %q: %v (output %q)", clip(line), err, clip(r.Output))
	}
	if r.ExitCode != 0 {
		c.Fatalf("exec %q: exit code %d, output %q", clip(line), r.ExitCode, clip(r.Output))
	}
	return strings.TrimSuffix(r.Output, "\n")
}

func clip(s string) string {
	if len(s) > 600 {
		return s[:300] + " … " + s[len(s)-300:]
	}
	return s
}

// equal compares comparable values.
func equal[T comparable](c *env, what string, got, want T) {
	c.Helper()
	if got != want {
		c.Errorf("%s = %s, want %s", what, clip(fmt.Sprintf("%#v", got)), clip(fmt.Sprintf("%#v", want)))
	}
}

// equalList compares lists.
func equalList[T comparable](c *env, what string, got, want []T) {
	c.Helper()
	if !slices.Equal(got, want) {
		c.Errorf("%s = %s, want %s", what, clip(fmt.Sprintf("%#v", got)), clip(fmt.Sprintf("%#v", want)))
	}
}

// eventually waits for f to return nil. It is for conditions whose time is
// not the check's to choose; it polls and fails with f's last error.
func (c *env) eventually(d time.Duration, what string, f func() error) bool {
	c.Helper()
	deadline := time.Now().Add(c.slow(d))
	for {
		err := f()
		if err == nil {
			return true
		}
		if time.Now().After(deadline) || c.ctx.Err() != nil {
			c.Errorf("%s: not within %v: %v", what, c.slow(d), err)
			return false
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// list returns the Infos of all sandboxes.
func (c *env) list(b daytona.Backend, f daytona.Filter) []daytona.Info {
	c.Helper()
	var out []daytona.Info
	for info, err := range b.List(c.ctx, f) {
		if err != nil {
			c.Fatalf("list sandboxes: %v", err)
		}
		out = append(out, info)
	}
	return out
}

// nothingLeft demands that the backend lists no sandbox and the host has no
// trace of one.
func (c *env) nothingLeft(when string) {
	c.Helper()
	if c.backend != nil {
		if l := c.list(c.backend, daytona.Filter{}); len(l) > 0 {
			c.Errorf("%s: the backend still lists %d sandboxes, such as %s (%s)", when, len(l), l[0].ID, l[0].State)
		}
	}
	c.noLeftovers(when)
}

// noLeftovers demands that the host has no trace of a sandbox. The kernel
// frees some things (a network namespace, a cgroup) a moment after the last
// process has gone, so it waits for a while.
func (c *env) noLeftovers(when string) {
	c.Helper()
	if c.h.Leftovers == nil {
		return
	}
	c.eventually(10*time.Second, when, func() error {
		l, err := c.h.Leftovers(c.ctx, c.state)
		if err != nil {
			return err
		}
		if len(l) > 0 {
			return fmt.Errorf("left on the host: %s", clip(strings.Join(l, ", ")))
		}
		return nil
	})
}
