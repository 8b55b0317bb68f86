package plugin_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/backend/local"
	"github.com/daytona-go/daytona/backend/plugin"
)

// open starts a fake behind a plugin.
func open(t *testing.T, config url.Values, change ...func(*plugin.Options)) daytona.Backend {
	t.Helper()
	o := self(serveFake, config)
	o.Logger = nil
	for _, f := range change {
		f(o)
	}
	b, err := plugin.New(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { within(t, 20*time.Second, "Close", func() error { return b.Close() }) })
	return b
}

// within fails the test if f takes longer or gives an error.
func within(t *testing.T, d time.Duration, what string, f func() error) {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	case <-time.After(d):
		t.Fatalf("%s has not returned within %v", what, d)
	}
}

// eventually waits for what is not this program's to time.
func eventually(t *testing.T, d time.Duration, what string, f func() error) {
	t.Helper()
	for deadline := time.Now().Add(d); ; time.Sleep(10 * time.Millisecond) {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v: %v", what, d, err)
		}
	}
}

func wantKind(t *testing.T, what string, err error, kind daytona.Kind) {
	t.Helper()
	if err == nil || daytona.KindOf(err) != kind {
		t.Errorf("%s: %v (kind %q), want kind %q", what, err, daytona.KindOf(err), kind)
	}
}

// plugins are the processes that a host has started as plugins.
func plugins(t *testing.T, host int) []int {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	var out []int
	for _, s := range stats {
		data, err := os.ReadFile(s)
		if err != nil {
			continue
		}
		_, rest, _ := bytes.Cut(data, []byte(") "))
		f := strings.Fields(string(rest))
		cmdline, _ := os.ReadFile(filepath.Join(filepath.Dir(s), "cmdline"))
		if len(f) > 2 && f[0] != "Z" && f[1] == strconv.Itoa(host) && strings.Contains(string(cmdline), "\x00daytona-plugin-test-") {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(s)))
			out = append(out, pid)
		}
	}
	return out
}

// thePlugin is the only one that this process has.
func thePlugin(t *testing.T) int {
	t.Helper()
	p := plugins(t, os.Getpid())
	if len(p) != 1 {
		t.Fatalf("plugin processes: %v, want one", p)
	}
	return p[0]
}

// socketDir is the directory that the host has made for a plugin's sockets.
func socketDir(t *testing.T, pid int) string {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		t.Fatal(err)
	}
	for kv := range strings.SplitSeq(string(data), "\x00") {
		if dir, ok := strings.CutPrefix(kv, "PLUGIN_UNIX_SOCKET_DIR="); ok {
			return filepath.Dir(dir)
		}
	}
	t.Fatal("the plugin has no socket directory")
	return ""
}

func kill(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

func alive(pid int) bool { return syscall.Kill(pid, 0) == nil }

func TestErrorsSurvive(t *testing.T) {
	b := open(t, nil)
	for name, want := range failures() {
		t.Run(name, func(t *testing.T) {
			_, err := b.Create(t.Context(), daytona.Spec{Name: name})
			if err == nil {
				t.Fatal("no error")
			}
			switch text := err.Error(); name {
			case "huge":
				if len(text) > 10<<10 {
					t.Errorf("%d bytes of text", len(text))
				}
			case "binary":
				if !strings.HasPrefix(text, "not ") {
					t.Errorf("text %q", text)
				}
			default:
				if text != want.Error() {
					t.Errorf("text %.2000q, want %.2000q", text, want.Error())
				}
			}
			if got, want := daytona.KindOf(err), daytona.KindOf(want); got != want {
				t.Errorf("kind %q, want %q", got, want)
			}
			for _, target := range []error{
				context.Canceled, context.DeadlineExceeded, errors.ErrUnsupported,
				daytona.ErrNotFound, daytona.ErrExhausted, daytona.ErrNoSpace, daytona.ErrGone, daytona.ErrInternal,
			} {
				if errors.Is(err, target) != errors.Is(want, target) {
					t.Errorf("errors.Is(err, %v) = %v", target, errors.Is(err, target))
				}
			}
			e, ok := errors.AsType[*daytona.Error](err)
			w, wok := errors.AsType[*daytona.Error](want)
			if ok != wok {
				t.Fatalf("a daytona.Error: %v, want %v", ok, wok)
			}
			built, ok2 := errors.AsType[*daytona.BuildError](err)
			wbuilt, wok2 := errors.AsType[*daytona.BuildError](want)
			if ok2 != wok2 {
				t.Fatalf("a daytona.BuildError: %v, want %v", ok2, wok2)
			}
			if ok2 && (built.Step != wbuilt.Step || built.Name != wbuilt.Name || built.Line != wbuilt.Line || built.ExitCode != wbuilt.ExitCode ||
				!bytes.Equal(built.Log, wbuilt.Log) || built.Err.Error() != wbuilt.Err.Error()) {
				t.Errorf("got %#v, want %#v", built, wbuilt)
			}
			if ok && (e.Op != w.Op || e.Subject != w.Subject || e.Field != w.Field || e.Message != w.Message || fmt.Sprint(e.Value) != fmt.Sprint(w.Value)) {
				t.Errorf("got %#v, want %#v", e, w)
			}
		})
	}
}

func TestCapabilities(t *testing.T) {
	b := open(t, url.Values{"capable": {""}})
	ctx := t.Context()
	try := func(what string, got any, err error, want any) {
		t.Helper()
		if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: %v, %v, want %v", what, got, err, want)
		}
	}
	i, err := as[daytona.Pauser](t, b).Pause(ctx, "a", daytona.PauseOptions{Disk: true})
	try("Pause", string(i.State)+i.Reason, err, "pausedtrue")
	i, err = as[daytona.Pauser](t, b).Resume(ctx, "a")
	try("Resume", i.State, err, "started")
	f, err := as[daytona.Forker](t, b).Fork(ctx, "a", daytona.ForkOptions{Names: []string{"n", "", "m"}, Memory: true})
	var forks []string
	for _, i := range f {
		forks = append(forks, i.ID, i.Name, i.Parent, i.Reason)
	}
	try("Fork", forks, err, "[a-fork-0 n a true a-fork-1  a true a-fork-2 m a true]")
	f, err = as[daytona.Forker](t, b).Fork(ctx, "a", daytona.ForkOptions{})
	try("Fork without a name", len(f), err, 1)
	_, err = as[daytona.Forker](t, b).Fork(ctx, "few", daytona.ForkOptions{Names: []string{"n", "m"}})
	wantKind(t, "Fork with too few children", err, daytona.KindInternal)
	var steps []daytona.Progress
	s, err := as[daytona.Snapshotter](t, b).CreateSnapshot(ctx, daytona.SnapshotSpec{
		Name: "n", Sandbox: "a", Entrypoint: []string{"e"}, Resources: daytona.Resources{CPU: 3}, OnProgress: func(p daytona.Progress) { steps = append(steps, p) },
	})
	try("CreateSnapshot", fmt.Sprint(s.ID, s.Name, s.State, s.Entrypoint, s.Resources.CPU, steps), err, "of-anactive[e] 3 [{saving 1 2}]")
	_, err = as[daytona.Snapshotter](t, b).CreateSnapshot(ctx, daytona.SnapshotSpec{Name: "taken", Image: "i"})
	wantKind(t, "CreateSnapshot with a taken name", err, daytona.KindConflict)
	_, err = as[daytona.Snapshotter](t, b).CreateSnapshot(ctx, daytona.SnapshotSpec{Name: "neither"})
	wantKind(t, "CreateSnapshot of nothing", err, daytona.KindInvalid)
	_, err = as[daytona.Snapshotter](t, b).CreateSnapshot(ctx, daytona.SnapshotSpec{Name: "n", Build: daytona.NewImage("FROM scratch")})
	wantKind(t, "CreateSnapshot of what is not built", err, daytona.KindUnsupported)
	_, err = b.Create(ctx, daytona.Spec{Name: "n", Build: daytona.NewImage("FROM scratch")})
	wantKind(t, "Create from what is not built", err, daytona.KindUnsupported)
	s, err = as[daytona.Snapshotter](t, b).SetSnapshotActive(ctx, "a", false)
	try("SetSnapshotActive", s.ID+string(s.State), err, "ainactive")
	s, err = as[daytona.Snapshotter](t, b).SetSnapshotActive(ctx, "a", true)
	try("SetSnapshotActive", s.ID+string(s.State), err, "aactive")
	s, err = as[daytona.Snapshotter](t, b).GetSnapshot(ctx, "a")
	try("GetSnapshot", s.ID, err, "a")
	var seen []string
	for s, err := range as[daytona.Snapshotter](t, b).ListSnapshots(ctx) {
		seen = append(seen, s.ID+string(daytona.KindOf(err)))
	}
	try("ListSnapshots", seen, nil, []string{"1", "no_space"})
	try("DeleteSnapshot", nil, as[daytona.Snapshotter](t, b).DeleteSnapshot(ctx, "a"), nil)
	i, err = as[daytona.Resizer](t, b).Resize(ctx, "a", daytona.Resources{CPU: 2})
	try("Resize", i.Resources.CPU, err, 2)
	i, err = as[daytona.NetworkPolicer](t, b).SetNetworkPolicy(ctx, "a", daytona.NetworkPolicy{Block: true})
	try("SetNetworkPolicy", i.Network.Block, err, true)
	i, err = as[daytona.Archiver](t, b).Archive(ctx, "a")
	try("Archive", i.State, err, "archived")
	i, err = as[daytona.Archiver](t, b).Restore(ctx, "a")
	try("Restore", i.State, err, "stopped")
	hour := time.Hour
	i, err = as[daytona.Updater](t, b).Update(ctx, "a", daytona.Update{Labels: map[string]string{"k": "v"}, AutoStop: &hour})
	try("Update", fmt.Sprint(i.Labels, i.AutoStop, i.AutoPause), err, "map[k:v] 1h0m0s 0s")
	i, err = as[daytona.Updater](t, b).Update(ctx, "a", daytona.Update{AutoPause: &hour})
	try("Update", fmt.Sprint(i.Labels, i.AutoStop, i.AutoPause), err, "map[] 0s 1h0m0s")
	v, err := as[daytona.VolumeManager](t, b).CreateVolume(ctx, daytona.VolumeSpec{Name: "n", Kind: daytona.VolumeS3, Quota: 2, S3: &daytona.S3Location{Bucket: "b", SecretKey: "k"}})
	try("CreateVolume", fmt.Sprint(v.ID, v.Name, v.Kind, v.Quota), err, "bkns32")
	v, err = as[daytona.VolumeManager](t, b).GetVolume(ctx, "a")
	try("GetVolume", v.ID, err, "a")
	for v, err := range as[daytona.VolumeManager](t, b).ListVolumes(ctx) {
		try("ListVolumes", v.ID, err, "v")
	}
	try("DeleteVolume", nil, as[daytona.VolumeManager](t, b).DeleteVolume(ctx, "a"), nil)
	i, err = as[daytona.Watcher](t, b).Wait(ctx, "a", daytona.StateStopped, daytona.StateStarted)
	try("Wait", i.State, err, "started")
	try("Name", b.Name(), nil, "fake")
}

// as demands a capability.
func as[T any](t *testing.T, b daytona.Backend) T {
	t.Helper()
	c, ok := daytona.As[T](b)
	if !ok {
		t.Fatalf("the value is no %T", &c)
	}
	return c
}

// TestMissingCapabilities: what a plugin's backend lacks is missing in the
// value, and refused with the words of package daytona.
func TestMissingCapabilities(t *testing.T) {
	b := open(t, nil)
	for what, has := range map[string]bool{
		"Pauser": has[daytona.Pauser](b), "Forker": has[daytona.Forker](b), "Snapshotter": has[daytona.Snapshotter](b),
		"Resizer": has[daytona.Resizer](b), "NetworkPolicer": has[daytona.NetworkPolicer](b), "Archiver": has[daytona.Archiver](b),
		"ImageBuilder": has[daytona.ImageBuilder](b),
		"Updater":      has[daytona.Updater](b), "VolumeManager": has[daytona.VolumeManager](b), "Watcher": has[daytona.Watcher](b),
		"something else": has[fmt.Stringer](b),
	} {
		if has {
			t.Errorf("the value is a %s, which the plugin's is not", what)
		}
	}
	client := daytona.New(b)
	_, err := client.Volumes()
	wantKind(t, "Volumes", err, daytona.KindUnsupported)
	sb, err := client.Create(t.Context(), daytona.Spec{Name: "box"})
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	_, forkErr := sb.Fork(ctx, nil)
	_, snapErr := sb.CreateSnapshot(ctx, "s")
	_, buildErr := client.Build(ctx, daytona.NewImage("FROM scratch"), daytona.BuildOptions{})
	for what, err := range map[string]error{
		"pause sandbox": sb.Pause(ctx, nil), "build image": buildErr, "archive sandbox": sb.Archive(ctx), "restore sandbox": sb.Restore(ctx), "resume sandbox": sb.Resume(ctx), "fork sandbox": forkErr, "create snapshot": snapErr,
		"resize sandbox": sb.Resize(ctx, daytona.Resources{CPU: 1}), "set network policy": sb.SetNetworkPolicy(ctx, daytona.NetworkPolicy{}),
		"update sandbox": sb.Update(ctx, daytona.Update{}),
	} {
		if want := what + ": backend fake does not support it"; err == nil || err.Error() != want || !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

func TestProgress(t *testing.T) {
	b := open(t, nil)
	var seen []daytona.Progress
	i, err := b.Create(t.Context(), daytona.Spec{Name: "progress", OnProgress: func(p daytona.Progress) { seen = append(seen, p) }})
	if err != nil {
		t.Fatal(err)
	}
	want := []daytona.Progress{{Stage: "step", Done: 0, Total: 3}, {Stage: "step", Done: 1, Total: 3}, {Stage: "step", Done: 2, Total: 3}}
	if !slices.Equal(seen, want) || i.ID != "id-progress" {
		t.Errorf("got %v and %+v", seen, i)
	}
}

// TestCancelledCreate: nothing is left of one, although its Info may have been
// on its way.
func TestCancelledCreate(t *testing.T) {
	b := open(t, nil)
	for _, name := range []string{"slow", "late"} {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		i, err := b.Create(ctx, daytona.Spec{Name: name})
		cancel()
		if name == "slow" && !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v, want an error that is context.DeadlineExceeded", name, err)
		}
		if name == "late" && (err != nil || i.ID != "id-late") {
			t.Errorf("%s: %+v, %v, want the sandbox, as it had been made", name, i, err)
		}
	}
	for i, err := range b.List(t.Context(), daytona.Filter{}) {
		if err != nil || i.ID != "id-late" {
			t.Errorf("listed: %s, %v", i.ID, err)
		}
	}
}

// TestCancelledMaking: nothing is left of what was made for a caller who had
// gone.
func TestCancelledMaking(t *testing.T) {
	b := open(t, url.Values{"capable": {""}})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := as[daytona.Forker](t, b).Fork(ctx, "late", daytona.ForkOptions{Names: []string{"a", "b"}}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Fork: %v", err)
	}
	eventually(t, 10*time.Second, "the children are gone", func() error {
		for i, err := range b.List(t.Context(), daytona.Filter{}) {
			return fmt.Errorf("there is %s, %v", i.ID, err)
		}
		return nil
	})
	if _, err := as[daytona.Snapshotter](t, b).CreateSnapshot(ctx, daytona.SnapshotSpec{Name: "late", Image: "i"}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("CreateSnapshot: %v", err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := as[daytona.Snapshotter](t, b).CreateSnapshot(ctx, daytona.SnapshotSpec{Name: "late", Image: "i"}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("CreateSnapshot: %v", err)
	}
	eventually(t, 10*time.Second, "the snapshot is gone", func() error {
		if s, err := as[daytona.Snapshotter](t, b).GetSnapshot(t.Context(), "s"); err != nil || s.SizeBytes != 0 {
			return fmt.Errorf("there are %d, %v", s.SizeBytes, err)
		}
		return nil
	})
}

func TestCancelledCalls(t *testing.T) {
	b := open(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	go cancel()
	_, err := b.Get(ctx, "hang")
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Get: %v", err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, err = b.Get(ctx, "hang")
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Get: %v", err)
	}
	_, err = b.Connect("hang").Dial(ctx)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Dial: %v", err)
	}
}

// TestListBreak: the plugin's backend learns that the caller has seen enough.
func TestListBreak(t *testing.T) {
	b := open(t, nil)
	n := 0
	for _, err := range b.List(t.Context(), daytona.Filter{NamePrefix: "endless"}) {
		if err != nil {
			t.Fatal(err)
		}
		if n++; n == 3 {
			break
		}
	}
	eventually(t, 10*time.Second, "the backend's iteration ends", func() error {
		_, err := b.Get(t.Context(), "stopped")
		return err
	})
}

func TestInvalidText(t *testing.T) {
	b := open(t, nil)
	_, err := b.Create(t.Context(), daytona.Spec{Name: "x", Env: map[string]string{"A": "\xff"}})
	wantKind(t, "create with text that is no UTF-8", err, daytona.KindInvalid)
	_, err = b.Create(t.Context(), daytona.Spec{Name: "not a name"})
	wantKind(t, "create with a Spec that is not valid", err, daytona.KindInvalid)
}

// recorder is a slog.Handler that keeps what it gets.
type recorder struct {
	mu   sync.Mutex
	text bytes.Buffer
	slog.Handler
}

func newRecorder() *recorder {
	r := &recorder{}
	r.Handler = slog.NewTextHandler(lockedWriter{r}, &slog.HandlerOptions{Level: slog.LevelDebug})
	return r
}

type lockedWriter struct{ r *recorder }

func (w lockedWriter) Write(p []byte) (int, error) {
	w.r.mu.Lock()
	defer w.r.mu.Unlock()
	return w.r.text.Write(p)
}

func (r *recorder) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.String()
}

func TestLog(t *testing.T) {
	rec := newRecorder()
	open(t, nil, func(o *plugin.Options) { o.Logger = slog.New(rec) })
	eventually(t, 10*time.Second, "the log arrives", func() error {
		for _, want := range []string{
			`level=DEBUG msg=opened plugin=` + filepath.Base(os.Args[0]) + ` count=3 ratio=0.5 on=true list="[a b]" group.inner=x msg="not the message"`,
			`level=WARN msg="a warning" plugin=` + filepath.Base(os.Args[0]) + ``,
			`level=INFO msg="a bare line" plugin=` + filepath.Base(os.Args[0]) + ``,
			`msg=longlong`,
		} {
			if !strings.Contains(rec.String(), want) {
				return fmt.Errorf("%s is missing in:\n%.2000s", want, rec)
			}
		}
		return nil
	})
	if n := len(rec.String()); n > 200_000 {
		t.Errorf("the log has %d bytes: the long line has not been cut", n)
	}
}

func TestBadPlugins(t *testing.T) {
	dir := t.TempDir()
	text := filepath.Join(dir, "text")
	script := filepath.Join(dir, "script")
	if err := errors.Join(os.WriteFile(text, []byte("no program\n"), 0o644), os.WriteFile(script, []byte{0, 1, 2, 3}, 0o755)); err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		name string
		opts plugin.Options
		kind daytona.Kind
		says []string
	}{
		{"none", plugin.Options{}, daytona.KindInvalid, []string{"Path"}},
		{"missing", plugin.Options{Path: dir + "/none"}, daytona.KindNotFound, []string{dir + "/none"}},
		{"unknown name", plugin.Options{Path: "no-such-plugin"}, daytona.KindNotFound, []string{"daytona-backend-no-such-plugin", "PATH"}},
		{"not executable", plugin.Options{Path: text}, daytona.KindInvalid, []string{text, "executable"}},
		{"directory", plugin.Options{Path: dir}, daytona.KindInvalid, []string{dir, "executable"}},
		{"no program", plugin.Options{Path: script}, daytona.KindInvalid, []string{script}},
		{"env", plugin.Options{Path: os.Args[0], Env: []string{"A"}}, daytona.KindInvalid, []string{"Env[0]"}},
		{"silent", odd("silent"), daytona.KindUnavailable, []string{"exit status 3", "cannot find my configuration"}},
		{"chatty", odd("chatty"), daytona.KindUnavailable, []string{"Hello, World!", "not a backend plugin"}},
		{"version", odd("version"), daytona.KindUnsupported, []string{"99", "version is 1"}},
		{"elsewhere", odd("elsewhere"), daytona.KindUnavailable, []string{"127.0.0.1:80"}},
		{"mute", odd("mute"), daytona.KindUnavailable, []string{"timeout"}},
		{"refused", *self(serveFake, url.Values{"refuse": {"this"}}), daytona.KindInvalid, []string{`refuse = "this"`}},
	} {
		t.Run(x.name, func(t *testing.T) {
			x.opts.StartTimeout = 20 * time.Second
			if x.name == "mute" {
				x.opts.StartTimeout = 300 * time.Millisecond
			}
			x.opts.Logger = nil
			_, err := plugin.New(t.Context(), &x.opts)
			wantKind(t, "New", err, x.kind)
			for _, s := range x.says {
				if err != nil && !strings.Contains(err.Error(), s) {
					t.Errorf("error %q does not say %q", err, s)
				}
			}
		})
	}
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		o := odd("mute")
		within(t, 10*time.Second, "New", func() error {
			if _, err := plugin.New(ctx, &o); !errors.Is(err, context.DeadlineExceeded) {
				return fmt.Errorf("error %v", err)
			}
			return nil
		})
	})
	eventually(t, 10*time.Second, "the processes end", func() error {
		if p := plugins(t, os.Getpid()); len(p) > 0 {
			return fmt.Errorf("plugins %v are left", p)
		}
		return nil
	})
}

func odd(how string) plugin.Options { return *self(serveOdd+how, nil) }

// TestURL opens by URL, as users do: by path and by name.
func TestURL(t *testing.T) {
	old := slog.Default()
	slog.SetDefault(slog.New(slog.DiscardHandler))
	t.Cleanup(func() { slog.SetDefault(old) })
	dir := t.TempDir()
	path := filepath.Join(dir, "daytona-backend-my fake")
	if err := os.WriteFile(path, []byte("#!/bin/sh\nexec "+os.Args[0]+" "+serveFake+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	for _, u := range []string{"plugin://" + strings.ReplaceAll(path, " ", "%20"), "plugin:my%20fake"} {
		client, err := daytona.Open(t.Context(), u+"?capable=")
		if err != nil {
			t.Fatalf("%s: %v", u, err)
		}
		if _, err := client.Volumes(); err != nil {
			t.Errorf("the configuration has not arrived: %v", err)
		}
		within(t, 20*time.Second, "Close", client.Close)
	}
	for _, u := range []string{"plugin:", "plugin://", "plugin:///", "plugin://host/path", "plugin:fake#x", "plugin:fake?a=%zz", "plugin:%zz"} {
		_, err := daytona.Open(t.Context(), u)
		wantKind(t, u, err, daytona.KindInvalid)
	}
	_, err := daytona.Open(t.Context(), "plugin:my%20fake?refuse=it")
	wantKind(t, "refused configuration", err, daytona.KindInvalid)
}

// TestServeByHand: a plugin that a person starts says what it is.
func TestServeByHand(t *testing.T) {
	out, err := exec.Command(os.Args[0], serveFake).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "plugin:///") {
		t.Errorf("%v, %s", err, out)
	}
}

// TestServe is about a backend that is open before its host is known.
func TestServe(t *testing.T) {
	marker := filepath.Join(t.TempDir(), "closed")
	o := self(serveOpen, nil)
	o.Logger, o.Env = nil, append(o.Env, "CLOSED="+marker)
	b, err := plugin.New(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Create(t.Context(), daytona.Spec{Name: "x"}); err != nil {
		t.Error(err)
	}
	within(t, 20*time.Second, "Close", b.Close)
	if _, err := os.Stat(marker); err != nil {
		t.Errorf("the backend has not been closed: %v", err)
	}
	o.Config = url.Values{"zone": {"a"}}
	_, err = plugin.New(t.Context(), o)
	wantKind(t, "a configuration that nobody takes", err, daytona.KindInvalid)
}

// TestTerminated: a plugin that an administrator ends closes its backend.
func TestTerminated(t *testing.T) {
	marker := filepath.Join(t.TempDir(), "closed")
	b := open(t, url.Values{"closed": {marker}})
	first := thePlugin(t)
	if err := errors.Join(syscall.Kill(first, syscall.SIGINT), syscall.Kill(first, syscall.SIGTERM)); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "the plugin ends", func() error {
		if slices.Contains(plugins(t, os.Getpid()), first) {
			return errors.New("it lives")
		}
		_, err := os.Stat(marker)
		return err
	})
	_, err := b.Get(t.Context(), "x")
	wantKind(t, "the next call", err, daytona.KindNotFound)
}

func TestEnvironment(t *testing.T) {
	t.Setenv("AWS_SECRET_ACCESS_KEY", "secret")
	t.Setenv("HTTPS_PROXY", "http://user:secret@proxy")
	t.Setenv("XDG_DATA_HOME", "/xdg")
	b := open(t, nil, func(o *plugin.Options) { o.Env = []string{"GIVEN=value"} })
	i, err := b.Create(t.Context(), daytona.Spec{Name: "environment"})
	if err != nil {
		t.Fatal(err)
	}
	if i.Env["GIVEN"] != "value" || i.Env["XDG_DATA_HOME"] != "/xdg" || i.Env["PATH"] != os.Getenv("PATH") {
		t.Errorf("the plugin's environment lacks what is to be passed: %v", i.Env)
	}
	allowed := []string{"PATH", "HOME", "USER", "LOGNAME", "SHELL", "TMPDIR", "TZ", "LANG", "LANGUAGE", "SSL_CERT_FILE", "SSL_CERT_DIR", "DAYTONA_AGENT", "GIVEN", "DAYTONA_BACKEND_PLUGIN"}
	for k := range i.Env {
		if !slices.Contains(allowed, k) && !strings.HasPrefix(k, "LC_") && !strings.HasPrefix(k, "XDG_") && !strings.HasPrefix(k, "PLUGIN_") {
			t.Errorf("the plugin got %s", k)
		}
	}
}

// TestClose: neither processes nor files, descriptors or goroutines are left.
func TestClose(t *testing.T) {
	count := func(dir string) int { e, _ := os.ReadDir(dir); return len(e) }
	cycle := func() {
		marker := filepath.Join(t.TempDir(), "closed")
		b, err := plugin.New(t.Context(), self(serveFake, url.Values{"closed": {marker}}))
		if err != nil {
			t.Fatal(err)
		}
		pid := thePlugin(t)
		dir := socketDir(t, pid)
		if st, err := os.Stat(dir); err != nil || st.Mode().Perm() != 0o700 {
			t.Errorf("the sockets' directory: %v, %v", st, err)
		}
		c, err := b.Connect("echo").Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		within(t, 20*time.Second, "Close", b.Close)
		within(t, time.Second, "Close again", b.Close)
		if alive(pid) {
			t.Error("the plugin's process is left")
		}
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%s is left", dir)
		}
		if _, err := os.Stat(marker); err != nil {
			t.Errorf("the plugin's backend has not been closed: %v", err)
		}
		_, err = b.Get(t.Context(), "x")
		wantKind(t, "a call after Close", err, daytona.KindUnavailable)
		_, err = b.Connect("echo").Dial(t.Context())
		wantKind(t, "a connection after Close", err, daytona.KindUnavailable)
	}
	cycle()
	fds, routines := count("/proc/self/fd"), runtime.NumGoroutine()
	for range 3 {
		cycle()
	}
	eventually(t, 10*time.Second, "all is freed", func() error {
		if n := runtime.NumGoroutine(); n > routines {
			buf := make([]byte, 1<<20)
			return fmt.Errorf("%d goroutines, there were %d: %s", n, routines, buf[:runtime.Stack(buf, true)])
		}
		if n := count("/proc/self/fd"); n > fds {
			return fmt.Errorf("%d descriptors, there were %d", n, fds)
		}
		return nil
	})
}

// TestKilledIdle: the call after a death finds a new process.
func TestKilledIdle(t *testing.T) {
	b := open(t, nil)
	first := thePlugin(t)
	if _, err := b.Create(t.Context(), daytona.Spec{Name: "of-the-dead"}); err != nil {
		t.Fatal(err)
	}
	kill(t, first)
	eventually(t, 5*time.Second, "the plugin is dead", func() error {
		if alive(first) {
			return errors.New("it lives")
		}
		return nil
	})
	// The host may learn of it a moment later than this test.
	eventually(t, 5*time.Second, "a call after the plugin was killed", func() error {
		_, err := b.Create(t.Context(), daytona.Spec{Name: "of-the-living"})
		if err != nil && !errors.Is(err, daytona.ErrUnavailable) {
			t.Fatal(err)
		}
		return err
	})
	if thePlugin(t) == first {
		t.Error("the process is the same")
	}
	_, err := b.Get(t.Context(), "of-the-dead")
	wantKind(t, "what belonged to the dead process", err, daytona.KindNotFound)
}

// TestKilledInCalls: calls under way fail, and say how the plugin ended; reads
// are tried again.
func TestKilledInCalls(t *testing.T) {
	b := open(t, nil)
	_, err := b.Create(t.Context(), daytona.Spec{Name: "dies"})
	wantKind(t, "create", err, daytona.KindUnavailable)
	if err != nil && !strings.Contains(err.Error(), "exit status 7") {
		t.Errorf("%v does not say how it ended", err)
	}
	slow := make(chan error, 1)
	go func() {
		_, err := b.Create(t.Context(), daytona.Spec{Name: "slow"})
		slow <- err
	}()
	c, err := b.Connect("echo").Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	hanging := make(chan error, 1)
	go func() {
		_, err := b.Get(ctx, "hang")
		hanging <- err
	}()
	if _, err := io.WriteString(c, "ping"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	first := thePlugin(t)
	kill(t, first)
	eventually(t, 10*time.Second, "a connection says what has become of the plugin", func() error {
		n, err := c.Read(make([]byte, 1)) // the end, and more once that is known
		if n > 0 || err == nil {
			t.Fatal("it goes on")
		}
		if daytona.KindOf(err) != daytona.KindUnavailable || !strings.Contains(err.Error(), "signal: killed") {
			return fmt.Errorf("read: %v", err)
		}
		_, err = c.Write([]byte("x"))
		if daytona.KindOf(err) != daytona.KindUnavailable {
			return fmt.Errorf("write: %v", err)
		}
		return nil
	})
	within(t, 10*time.Second, "Create", func() error {
		if err := <-slow; daytona.KindOf(err) != daytona.KindUnavailable {
			return err
		}
		return nil
	})
	eventually(t, 10*time.Second, "Get is tried with a new process", func() error {
		if p := plugins(t, os.Getpid()); len(p) != 1 || p[0] == first {
			return fmt.Errorf("plugins %v", p)
		}
		return nil
	})
	cancel()
	if err := <-hanging; !errors.Is(err, context.Canceled) {
		t.Errorf("Get: %v, want that it went on until it was cancelled", err)
	}
}

// TestRestartsAreBounded: a plugin that dies again and again is let be.
func TestRestartsAreBounded(t *testing.T) {
	o := self(serveFake, nil)
	o.Logger, o.MaxRestarts = nil, 2
	b, err := plugin.New(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	for range 4 {
		_, err = b.Create(t.Context(), daytona.Spec{Name: "dies"})
		wantKind(t, "create", err, daytona.KindUnavailable)
	}
	if !strings.Contains(err.Error(), "2 times within 1m0s") || !strings.Contains(err.Error(), "exit status 7") {
		t.Errorf("error %v", err)
	}
	_, err = b.Get(t.Context(), "x")
	wantKind(t, "Get", err, daytona.KindUnavailable)
	if p := plugins(t, os.Getpid()); len(p) > 0 {
		t.Errorf("plugins %v run", p)
	}
	if b.Close() == nil {
		t.Error("Close says nothing of what it could not do")
	}
}

// TestUnresponsive: a plugin that hangs as a whole is killed.
func TestUnresponsive(t *testing.T) {
	b := open(t, nil, func(o *plugin.Options) { o.Unresponsive = time.Second })
	first := thePlugin(t)
	if err := syscall.Kill(first, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	within(t, 20*time.Second, "a call to a plugin that hangs", func() error {
		if _, err := b.Start(t.Context(), "x"); daytona.KindOf(err) != daytona.KindUnavailable {
			return fmt.Errorf("error %v", err)
		}
		return nil
	})
	_, err := b.Start(t.Context(), "x")
	wantKind(t, "the next call", err, daytona.KindNotFound)
	if thePlugin(t) == first {
		t.Error("the process is the same")
	}
}

// TestChangedPlugin: another backend under the same path is not taken for the
// one that was opened, nor an executable that has gone for a missing sandbox.
func TestChangedPlugin(t *testing.T) {
	path := filepath.Join(t.TempDir(), "plugin")
	write := func(mode string) {
		if err := os.WriteFile(path, []byte("#!/bin/sh\nexec "+os.Args[0]+" "+mode+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(serveFake)
	b, err := plugin.New(t.Context(), &plugin.Options{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	write(serveLocal)
	kill(t, thePlugin(t))
	eventually(t, 5*time.Second, "the change is noticed", func() error {
		_, err := b.Get(t.Context(), "x")
		if daytona.KindOf(err) != daytona.KindUnavailable || !strings.Contains(err.Error(), `"local"`) {
			return err
		}
		return nil
	})
	os.Remove(path)
	_, err = b.Get(t.Context(), "x")
	wantKind(t, "Get", err, daytona.KindUnavailable)
	if errors.Is(err, daytona.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v matches ErrNotFound, as if the sandbox was missing", err)
	}
}

// --- with the local backend ---------------------------------------------------------------------

// needSandboxes skips a test where the local backend does not work.
func needSandboxes(t *testing.T) {
	t.Helper()
	for _, f := range local.Diagnose(t.Context(), nil) {
		if f.Status == "missing" {
			t.Skipf("this machine cannot run sandboxes: %s: %s", f.Name, f.Detail)
		}
	}
}

func openLocally(t *testing.T, state string) *daytona.Client {
	t.Helper()
	o := self(serveLocal, url.Values{"dir": {state}})
	o.Logger = nil
	o.MaxRestarts = 1000
	client, err := plugin.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { within(t, 30*time.Second, "Close", client.Close) })
	return client
}

func nothingLeft(t *testing.T, state string) {
	t.Helper()
	eventually(t, 15*time.Second, "nothing is left on the machine", func() error {
		l, err := leftovers(t.Context(), state)
		if err == nil && len(l) > 0 {
			err = fmt.Errorf("there is %s", strings.Join(l, ", "))
		}
		return err
	})
}

// TestKilledPluginAdopts: persistent sandboxes live on when their plugin is
// killed, and the same Client and Sandbox values go on working; the others are
// reaped.
func TestKilledPluginAdopts(t *testing.T) {
	needSandboxes(t)
	state := t.TempDir()
	client := openLocally(t, state)
	ctx := t.Context()
	kept, err := client.Create(ctx, daytona.Spec{Name: "kept", Persistent: true, Labels: map[string]string{"a": "b"}, Language: "javascript"})
	if err != nil {
		t.Fatal(err)
	}
	lost, err := client.Create(ctx, daytona.Spec{Name: "lost"})
	if err != nil {
		t.Fatal(err)
	}
	s, err := kept.Process().CreateSession(ctx, "s")
	if err == nil {
		_, err = s.Start(ctx, "echo $$ >pid; exec sleep 1000", nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	stillRuns := "until [ -s pid ]; do sleep 0.01; done; kill -0 $(cat pid) && cat pid"
	before, err := kept.Process().Exec(ctx, stillRuns, nil)
	if err != nil || before.ExitCode != 0 {
		t.Fatalf("%+v, %v", before, err)
	}
	first := thePlugin(t)
	for range 2 { // the second time what was adopted is adopted again
		kill(t, thePlugin(t))
		eventually(t, 10*time.Second, "the next call works", func() error {
			after, err := kept.Process().Exec(ctx, stillRuns, nil)
			if err == nil && (after.ExitCode != 0 || after.Output != before.Output) {
				err = fmt.Errorf("the program in the sandbox: %+v, was %+v", after, before)
			}
			return err
		})
	}
	if thePlugin(t) == first {
		t.Error("the process is the same")
	}
	info, err := kept.Refresh(ctx)
	if err != nil || info.State != daytona.StateStarted || len(info.Labels) != 1 || info.Labels["a"] != "b" {
		t.Errorf("%+v, %v", info, err)
	}
	if _, err := lost.Refresh(ctx); !errors.Is(err, daytona.ErrNotFound) {
		t.Errorf("the sandbox that is not persistent: %v, want not found", err)
	}
	if inSandbox("node") {
		got, err := client.Get(ctx, "kept")
		if err != nil {
			t.Fatal(err)
		}
		if r, err := got.Process().RunCode(ctx, "console.log([1,2].map(x => x * 2))", nil); err != nil || r.ExitCode != 0 {
			t.Errorf("code in the sandbox's language: %+v, %v", r, err)
		}
	}
	if err := kept.Delete(ctx); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t, state)
}

// TestUnansweredCreate: a persistent sandbox whose plugin was killed before it
// could say so is deleted when the plugin is back, for its Create has failed.
func TestUnansweredCreate(t *testing.T) {
	needSandboxes(t)
	state := t.TempDir()
	o := self(serveLocal, url.Values{"dir": {state}, "dying": {""}})
	o.Logger = nil
	client, err := plugin.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	kept, err := client.Create(t.Context(), daytona.Spec{Name: "kept", Persistent: true})
	if err != nil {
		t.Fatal(err)
	}
	_, err = client.Create(t.Context(), daytona.Spec{Name: "unanswered", Persistent: true})
	wantKind(t, "create", err, daytona.KindUnavailable)
	if _, err := client.Get(t.Context(), "unanswered"); !errors.Is(err, daytona.ErrNotFound) {
		t.Errorf("the sandbox of a Create that failed: %v, want not found", err)
	}
	if info, err := kept.Refresh(t.Context()); err != nil || len(info.Labels) != 0 {
		t.Errorf("another sandbox: %+v, %v", info, err)
	}
	if err := kept.Delete(t.Context()); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t, state)
}

// TestKilledPluginLeaksNothing kills the plugin at random moments of creating,
// stopping and deleting. A Create that failed has left nothing, even of a
// persistent sandbox; what was there before is there after.
func TestKilledPluginLeaksNothing(t *testing.T) {
	needSandboxes(t)
	state := t.TempDir()
	client := openLocally(t, state)
	ctx := t.Context()
	rng := rand.New(rand.NewPCG(20260701, 3))
	create := func(name string) (daytona.Sandbox, error) {
		return client.Create(ctx, daytona.Spec{Name: name, Persistent: true})
	}
	var whole time.Duration
	for range 2 { // the first one is slower than the others
		begin := time.Now()
		sb, err := create("measure")
		if err != nil {
			t.Fatal(err)
		}
		whole = time.Since(begin)
		if err := sb.Delete(ctx); err != nil {
			t.Fatal(err)
		}
	}
	rounds := 12
	if testing.Short() {
		rounds = 4
	}
	failed := 0
	for i := range rounds {
		name := fmt.Sprint("box", i)
		pid := thePlugin(t)
		after := time.Duration(rng.Int64N(int64(whole * 5 / 4)))
		timer := time.AfterFunc(after, func() { _ = syscall.Kill(pid, syscall.SIGKILL) })
		sb, err := create(name)
		if err != nil {
			failed++
			wantKind(t, "create", err, daytona.KindUnavailable)
			timer.Stop()
			if _, err := client.Get(ctx, name); !errors.Is(err, daytona.ErrNotFound) {
				t.Fatalf("killed %v after the call: of the Create that failed there is left: %v", after, err)
			}
			if sb, err = create(name); err != nil {
				t.Fatalf("create again: %v", err)
			}
		}
		if !timer.Stop() { // it has struck, or is about to
			eventually(t, 10*time.Second, "the plugin is dead", func() error {
				if slices.Contains(plugins(t, os.Getpid()), pid) {
					return errors.New("it lives")
				}
				return nil
			})
		}
		if _, err := sb.Refresh(ctx); err != nil {
			t.Fatalf("a sandbox whose Create returned is gone: %v", err)
		}
		// Stop and delete: whatever happened, repeating them gets there.
		for _, op := range []func() error{
			func() error { return sb.Stop(ctx, &daytona.StopOptions{Force: true}) },
			func() error { return sb.Delete(ctx) },
		} {
			pid := thePlugin(t)
			struck := make(chan struct{})
			time.AfterFunc(time.Duration(rng.Int64N(int64(20*time.Millisecond))), func() {
				_ = syscall.Kill(pid, syscall.SIGKILL)
				close(struck)
			})
			err := op()
			<-struck
			if err != nil {
				wantKind(t, "stop or delete", err, daytona.KindUnavailable)
				eventually(t, 20*time.Second, "the operation is repeated", func() error {
					if err := op(); err != nil && !errors.Is(err, daytona.ErrNotFound) {
						return err
					}
					return nil
				})
			}
			eventually(t, 10*time.Second, "there is a new plugin", func() error {
				if _, err := client.Get(ctx, name); err != nil && !errors.Is(err, daytona.ErrNotFound) {
					return err
				}
				if p := plugins(t, os.Getpid()); len(p) != 1 || p[0] == pid {
					return fmt.Errorf("plugins %v", p)
				}
				return nil
			})
		}
		eventually(t, 10*time.Second, "the list is empty", func() error {
			for i, err := range client.List(ctx, nil) {
				if err == nil {
					err = fmt.Errorf("there is %s", i.Name())
				}
				return err
			}
			return nil
		})
	}
	t.Logf("%d of %d creates were hit", failed, rounds)
	nothingLeft(t, state)
}

// host is a process that has a plugin, and waits to be killed.
func host(state string) error {
	client, err := plugin.Open(context.Background(), self(serveLocal, url.Values{"dir": {state}}))
	if err != nil {
		return err
	}
	for _, persistent := range []bool{true, false} {
		if _, err := client.Create(context.Background(), daytona.Spec{Name: fmt.Sprint("persistent-", persistent), Persistent: persistent}); err != nil {
			return err
		}
	}
	fmt.Println("ready")
	go func() { _, _ = client.Create(context.Background(), daytona.Spec{Name: "under-way"}) }()
	_, _ = io.Copy(io.Discard, os.Stdin)
	return client.Close()
}

// TestHostKilled: the plugin of a killed host closes its backend and ends.
func TestHostKilled(t *testing.T) {
	needSandboxes(t)
	state := t.TempDir()
	cmd := exec.Command(os.Args[0], beHost, state)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, _ := io.ReadAll(io.LimitReader(out, 5)); string(line) != "ready" {
		t.Fatalf("the host says %q", line)
	}
	p := plugins(t, cmd.Process.Pid)
	if len(p) != 1 {
		t.Fatalf("plugins of the host: %v", p)
	}
	dir := socketDir(t, p[0])
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	eventually(t, 20*time.Second, "the plugin ends", func() error {
		if alive(p[0]) {
			return errors.New("it lives")
		}
		return nil
	})
	client := openLocally(t, state)
	names := func() (names []string) {
		for sb, err := range client.List(t.Context(), nil) {
			if err != nil {
				t.Fatal(err)
			}
			names = append(names, sb.Name())
		}
		return names
	}
	if got := names(); !slices.Equal(got, []string{"persistent-true"}) {
		t.Errorf("of the killed host there is left %q", got)
	}
	sb, err := client.Get(t.Context(), "persistent-true")
	if err != nil {
		t.Fatal(err)
	}
	if err := sb.Delete(t.Context()); err != nil {
		t.Fatal(err)
	}
	within(t, 30*time.Second, "Close", client.Close)
	nothingLeft(t, state)
	if _, err := os.Stat(dir); err == nil {
		t.Errorf("%s is left", dir)
	}
}
