package remote_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/backend/remote"
	"github.com/daytona-go/daytona/internal/wire"
)

// dial is a client of the fake server.
func (f *fake) dial(change func(*remote.Options)) *daytona.Client {
	f.Helper()
	o := &remote.Options{URL: f.URL + "/api", Key: key}
	if change != nil {
		change(o)
	}
	b, err := remote.New(o)
	if err != nil {
		f.Fatal(err)
	}
	c := daytona.New(b)
	f.Cleanup(func() {
		f.mu.Lock()
		f.before = nil
		f.mu.Unlock()
		if err := c.Close(); err != nil {
			f.Error(err)
		}
	})
	return c
}

func (f *fake) answer(before func(w http.ResponseWriter, r *http.Request) bool) {
	f.mu.Lock()
	f.before = before
	f.mu.Unlock()
}

func TestCreateSaysAll(t *testing.T) {
	f := start(t)
	c := f.dial(func(o *remote.Options) { o.Target = "eu" })
	sb, err := c.Create(t.Context(), daytona.Spec{
		Name: "a", Image: "debian:12", User: "me", WorkDir: "/wo rk/$x\\", Entrypoint: []string{"sleep", `"1"`}, Language: "typescript",
		Env: map[string]string{"A": "b"}, Labels: map[string]string{"x": "y"},
		Resources: daytona.Resources{CPU: 2, Memory: 4, Disk: 10},
		Network:   daytona.NetworkPolicy{Allow: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("1.1.1.1/32")}, AllowDomains: []string{"*.a.b"}},
		Volumes:   []daytona.VolumeMount{{Volume: "v", MountPath: "/v", Subpath: "s"}}, Persistent: true,
		AutoStop: 2 * time.Minute, AutoDelete: time.Hour, AutoArchive: 3 * time.Minute, TTL: 24 * time.Hour,
	})
	if err != nil {
		t.Fatal(err)
	}
	got := f.body("POST /sandbox")
	labels := got["labels"].(map[string]any)
	if labels["daytona-go-request"] == nil {
		t.Error("no label by which it could be found")
	}
	delete(labels, "daytona-go-request")
	want := map[string]any{
		"name": "a", "user": "me", "target": "eu", "env": map[string]any{"A": "b"},
		"labels":    map[string]any{"x": "y", "code-toolbox-language": "typescript"},
		"buildInfo": map[string]any{"dockerfileContent": "FROM debian:12\nWORKDIR /wo rk/\\$x\\\\\nENTRYPOINT [\"sleep\",\"\\\"1\\\"\"]\n"},
		"cpu":       2.0, "memory": 4.0, "disk": 10.0, "networkAllowList": "10.0.0.0/8,1.1.1.1/32", "domainAllowList": "*.a.b",
		"volumes":          []any{map[string]any{"volumeId": "v", "mountPath": "/v", "subpath": "s"}},
		"autoStopInterval": 2.0, "autoArchiveInterval": 3.0, "autoDeleteInterval": 60.0, "ttlMinutes": 1440.0,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	i := sb.Info()
	if i.Image != "debian:12" || !slices.Equal(i.Entrypoint, []string{"sleep", `"1"`}) || i.WorkDir != f.workDir {
		t.Errorf("image %q, entrypoint %q, working directory %q", i.Image, i.Entrypoint, i.WorkDir)
	}
	if i.State != daytona.StateStarted || i.Name != "a" || i.Language != "typescript" || !i.Persistent || i.Ephemeral || i.AutoStop != 2*time.Minute ||
		i.AutoDelete != time.Hour || i.TTL != 24*time.Hour || !reflect.DeepEqual(i.Labels, map[string]string{"x": "y"}) || i.Resources.Memory != 4 ||
		len(i.Network.Allow) != 2 || len(i.Network.AllowDomains) != 1 || len(i.Volumes) != 1 || i.Backend != "remote" {
		t.Errorf("%+v", i)
	}
	if got, err := c.Get(t.Context(), "a"); err != nil || !reflect.DeepEqual(got.Info(), i) {
		t.Errorf("%+v, %v, want what Create said", got, err)
	}
}

func TestCreateRefuses(t *testing.T) {
	f := start(t)
	c := f.dial(nil)
	for field, spec := range map[string]daytona.Spec{
		"Resources.CPU":           {Image: "x", Resources: daytona.Resources{CPU: 0.5}},
		"Resources.Memory":        {Image: "x", Resources: daytona.Resources{Memory: 1.5}},
		"Resources.Processes":     {Image: "x", Resources: daytona.Resources{Processes: 100}},
		"Resources.DiskBandwidth": {Image: "x", Resources: daytona.Resources{DiskBandwidth: 10}},
		"Resources.Disk":          {Snapshot: "s", Resources: daytona.Resources{Disk: 1}},
		"WorkDir":                 {Snapshot: "s", WorkDir: "/x"},
		"Entrypoint":              {Entrypoint: []string{"x"}},
		"AutoStop":                {AutoStop: 90 * time.Second},
		"AutoDelete":              {AutoDelete: time.Second},
		"TTL":                     {TTL: time.Second},
		"AutoPause":               {AutoPause: time.Minute},
		"Network.Allow[0]":        {Network: daytona.NetworkPolicy{Allow: []netip.Prefix{netip.MustParsePrefix("2001:db8::/32")}}},
		"Network.AllowDomains":    {Network: daytona.NetworkPolicy{AllowDomains: slices.Repeat([]string{"a.b"}, 11)}},
		"Image":                   {Image: "oci:/x"},
	} {
		_, err := c.Create(t.Context(), spec)
		e, ok := errors.AsType[*daytona.Error](err)
		if !ok || !errors.Is(err, errors.ErrUnsupported) || e.Field != field {
			t.Errorf("%s: %v", field, err)
		}
	}
	for _, label := range []map[string]string{{"daytona-go-lease": ""}, {"code-toolbox-language": "javascript"}} {
		if _, err := c.Create(t.Context(), daytona.Spec{Labels: label}); !errors.Is(err, daytona.ErrInvalid) {
			t.Errorf("%v: %v", label, err)
		}
	}
	if n := f.count("POST /sandbox"); n != 0 {
		t.Errorf("%d of them were asked for", n)
	}
	// What an old server does not know it does not refuse.
	f.old = true
	for field, spec := range map[string]daytona.Spec{
		"TTL":                 {TTL: time.Minute},
		"Volumes[0].ReadOnly": {Volumes: []daytona.VolumeMount{{Volume: "v", MountPath: "/v", ReadOnly: true}}},
	} {
		_, err := c.Create(t.Context(), spec)
		e, ok := errors.AsType[*daytona.Error](err)
		if !ok || !errors.Is(err, errors.ErrUnsupported) || e.Field != field || len(f.sandboxes) != 0 {
			t.Errorf("%s: %v, %d sandboxes are left", field, err, len(f.sandboxes))
		}
	}
}

// TestLease: what is not persistent goes when its owner does, one way or the
// other, and shows nothing of how.
func TestLease(t *testing.T) {
	f := start(t)
	c := f.dial(func(o *remote.Options) { o.Lease = 5 * time.Minute })
	sb, err := c.Create(t.Context(), daytona.Spec{})
	if err != nil {
		t.Fatal(err)
	}
	if b := f.body("POST /sandbox"); b["autoStopInterval"] != 5.0 || b["autoDeleteInterval"] != 20.0 || b["snapshot"] != nil || b["buildInfo"] != nil {
		t.Errorf("%v", b)
	}
	if i := sb.Info(); i.Persistent || i.AutoStop != 0 || i.AutoDelete != 0 || len(i.Labels) != 0 {
		t.Errorf("%+v", i)
	}
	// Labels replace all that there are, but for the lease's.
	if err := sb.Update(t.Context(), daytona.Update{Labels: map[string]string{"a": "b"}, AutoStop: new(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	if i := sb.Info(); i.Persistent || i.AutoStop != time.Hour || i.AutoDelete != 0 || !reflect.DeepEqual(i.Labels, map[string]string{"a": "b"}) {
		t.Errorf("%+v", i)
	}
	if err := sb.Update(t.Context(), daytona.Update{AutoStop: new(time.Duration(0))}); err != nil {
		t.Fatal(err)
	}
	if s := f.find(sb.ID()); *s.AutoStopInterval != 5 || sb.Info().AutoStop != 0 {
		t.Errorf("the lease is %v", *s.AutoStopInterval)
	}
	kept, err := c.Create(t.Context(), daytona.Spec{Persistent: true})
	if err != nil {
		t.Fatal(err)
	}
	if b := f.body("POST /sandbox"); b["autoStopInterval"] != 0.0 || b["autoDeleteInterval"] != -1.0 {
		t.Errorf("%v", b)
	}
	if _, err := c.Create(t.Context(), daytona.Spec{Ephemeral: true}); err != nil {
		t.Fatal(err)
	}
	if b := f.body("POST /sandbox"); b["autoDeleteInterval"] != 0.0 {
		t.Errorf("%v", b)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if len(f.sandboxes) != 1 || f.sandboxes[0].ID != kept.ID() {
		t.Errorf("%d sandboxes are left, want the persistent one", len(f.sandboxes))
	}
	if _, err := c.Create(t.Context(), daytona.Spec{}); !errors.Is(err, daytona.ErrState) {
		t.Errorf("after Close: %v", err)
	}
}

// TestCreateLeavesNothing: neither where the sandbox fails nor where its answer
// is lost.
func TestCreateLeavesNothing(t *testing.T) {
	f := start(t)
	c := f.dial(nil)
	for reason, want := range map[string]error{
		"no space": daytona.ErrInternal,
		"pulling nope:1: manifest unknown: no such": daytona.ErrNotFound,
	} {
		f.fail = reason
		_, err := c.Create(t.Context(), daytona.Spec{Image: "nope:1"})
		if !errors.Is(err, want) || !strings.Contains(err.Error(), reason) || len(f.sandboxes) != 0 {
			t.Errorf("%v; %d sandboxes are left", err, len(f.sandboxes))
		}
	}
	f.fail = ""
	if _, err := c.Create(t.Context(), daytona.Spec{Snapshot: "gone"}); !errors.Is(err, daytona.ErrNotFound) {
		t.Errorf("missing snapshot: %v", err)
	}

	made := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	f.answer(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPost || r.URL.Path != "/api/sandbox" {
			return false
		}
		body, _ := io.ReadAll(r.Body)
		f.mu.Lock()
		defer f.mu.Unlock()
		f.insert("lost", wire.SandboxStateStarted, func(s *wire.Sandbox) {
			s.Labels["daytona-go-request"] = strings.Split(strings.Split(string(body), `"daytona-go-request":"`)[1], `"`)[0]
		})
		f.insert("another's", wire.SandboxStateStarted, nil)
		close(made)
		cancel()
		<-r.Context().Done()
		return true
	})
	_, err := c.Create(ctx, daytona.Spec{})
	<-made
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	f.answer(nil)
	if len(f.sandboxes) != 1 || f.sandboxes[0].Name != "another's" {
		t.Errorf("%d sandboxes are left, want another's", len(f.sandboxes))
	}
}

func TestErrors(t *testing.T) {
	f := start(t)
	c := f.dial(nil)
	for _, x := range []struct {
		status  int
		body    string
		kind    daytona.Kind
		message string
	}{
		{400, `{"message":"name must not contain HTML tags, URLs, or control characters"}`, daytona.KindInvalid, "HTML"},
		{400, `{"message":["a is bad","b is bad"]}`, daytona.KindInvalid, "a is bad, b is bad"},
		{400, `{"message":"Sandbox is not in a stoppable state"}`, daytona.KindState, "stoppable"},
		{400, `{"message":"Total CPU limit exceeded. Maximum allowed: 10."}`, daytona.KindExhausted, "10"},
		{400, `{"message":"Disk can only be resized when the sandbox is stopped"}`, daytona.KindState, "stopped"},
		{400, `{"message":"Sandbox failed to start: because"}`, daytona.KindInternal, "because"},
		{400, `{"message":"No available runners"}`, daytona.KindUnavailable, "runners"},
		{401, `{"message":"Invalid credentials"}`, daytona.KindUnauthorized, "Invalid credentials"},
		{403, `{"message":"Organization is suspended: because"}`, daytona.KindForbidden, "because"},
		{404, `{"message":"Sandbox with ID or name x not found"}`, daytona.KindNotFound, "not found"},
		{409, `{"message":"Sandbox was changed"}`, daytona.KindConflict, "changed"},
		{422, `{"error":"not for containers"}`, daytona.KindUnsupported, "not for containers"},
		{500, `<html>`, daytona.KindInternal, "status 500"},
		{302, ``, daytona.KindInternal, "redirect"},
		{400, `{"message":"what is ` + key + `?"}`, daytona.KindInvalid, "[redacted]"},
		{200, `<html>`, daytona.KindInternal, "is the URL that of an API"},
	} {
		f.answer(func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Location", "/elsewhere")
			w.WriteHeader(x.status)
			io.WriteString(w, x.body)
			return true
		})
		_, err := c.Get(t.Context(), "x")
		e, ok := errors.AsType[*daytona.Error](err)
		if !ok || e.Kind != x.kind || !strings.Contains(e.Message, x.message) || e.Subject != "x" || strings.Contains(err.Error(), key) {
			t.Errorf("%d %s: %v (%+v)", x.status, x.body, err, e)
		}
	}
}

func TestRetries(t *testing.T) {
	f := start(t)
	c := f.dial(nil)
	sandbox := f.add("a", wire.SandboxStateStarted, nil)
	get := func() error { _, err := c.Get(t.Context(), "a"); return err }
	stop := func() error {
		_, err := c.Backend().Stop(t.Context(), "a", daytona.StopOptions{})
		return err
	}
	for _, x := range []struct {
		name, call string
		status     int
		header     http.Header
		do         func() error
		times      int // that it is refused
		calls      int // that it is asked then
		want       error
	}{
		{"unavailable, twice", "GET /sandbox/a", 503, nil, get, 2, 3, nil},
		{"rate limit", "GET /sandbox/a", 429, http.Header{"Retry-After-Authenticated": {"0"}}, get, 1, 2, nil},
		{"for ever", "GET /sandbox/a", 502, nil, get, 99, 5, daytona.ErrUnavailable},
		{"too long a wait", "GET /sandbox/a", 429, http.Header{"Retry-After": {"3600"}}, get, 1, 1, daytona.ErrExhausted},
		{"a fault is none of ours", "GET /sandbox/a", 500, nil, get, 1, 1, daytona.ErrInternal},
		{"what may have been done", "POST /sandbox/a/stop", 502, nil, stop, 1, 1, daytona.ErrUnavailable},
		{"what cannot have been done", "POST /sandbox/a/stop", 429, http.Header{"Retry-After": {"0"}}, stop, 1, 2, nil},
	} {
		t.Run(x.name, func(t *testing.T) {
			f.mu.Lock()
			f.calls, sandbox.State = nil, new(wire.SandboxStateStarted)
			f.mu.Unlock()
			left := x.times
			f.answer(func(w http.ResponseWriter, r *http.Request) bool {
				if r.Method+" "+strings.TrimPrefix(r.URL.Path, "/api") != x.call || left == 0 {
					return false
				}
				left--
				for k, v := range x.header {
					w.Header()[k] = v
				}
				w.WriteHeader(x.status)
				return true
			})
			err := x.do()
			if x.want == nil && err != nil || x.want != nil && !errors.Is(err, x.want) {
				t.Errorf("%v, want %v", err, x.want)
			}
			if n := f.count(x.call); n != x.calls && !(x.want == nil && n > x.calls && x.call[0] == 'G') {
				t.Errorf("asked %d times, want %d", n, x.calls)
			}
		})
	}
	t.Run("deadline", func(t *testing.T) {
		f.answer(func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Retry-After", "30")
			w.WriteHeader(429)
			return true
		})
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		began := time.Now()
		if _, err := c.Get(ctx, "a"); !errors.Is(err, daytona.ErrExhausted) || time.Since(began) > 2*time.Second {
			t.Errorf("%v after %v, want no wait that is in vain", err, time.Since(began))
		}
	})
	t.Run("nobody there", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		b, err := remote.New(&remote.Options{URL: "http://" + l.Addr().String(), Key: key})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.Get(t.Context(), "a"); !errors.Is(err, daytona.ErrUnavailable) {
			t.Error(err)
		}
	})
}

func TestTransitions(t *testing.T) {
	f := start(t)
	c := f.dial(nil)
	sb, err := c.Create(t.Context(), daytona.Spec{Name: "a", Image: "x:1", Resources: daytona.Resources{CPU: 1, Memory: 1, Disk: 3}})
	if err != nil {
		t.Fatal(err)
	}
	state := func(want daytona.State, err error) {
		t.Helper()
		if got := sb.Info().State; err != nil || got != want {
			t.Fatalf("%s, %v; want %s", got, err, want)
		}
	}
	state(daytona.StateStarted, sb.Start(t.Context()))
	if err := sb.Archive(t.Context()); !errors.Is(err, daytona.ErrState) {
		t.Errorf("archive a started one: %v", err)
	}
	if err := sb.Resize(t.Context(), daytona.Resources{Disk: 5}); !errors.Is(err, daytona.ErrState) {
		t.Errorf("disk of a started one: %v", err)
	}
	state(daytona.StateStarted, sb.Resize(t.Context(), daytona.Resources{CPU: 2}))
	if i := sb.Info(); i.Resources.CPU != 2 || i.Resources.Memory != 1 {
		t.Errorf("%+v", i.Resources)
	}
	if err := sb.Pause(t.Context(), nil); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("pause: %v", err)
	}
	children, err := sb.Fork(t.Context(), &daytona.ForkOptions{Names: []string{"child"}})
	if err != nil || children[0].Info().Parent != sb.ID() || children[0].Name() != "child" || children[0].Info().Persistent {
		t.Fatalf("%+v, %v", children, err)
	}
	if i, err := children[0].Refresh(t.Context()); err != nil || i.Parent != sb.ID() {
		t.Errorf("%+v, %v", i, err)
	}
	if _, err := sb.Fork(t.Context(), &daytona.ForkOptions{Names: []string{"x", "y"}}); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("two forks: %v", err)
	}
	if err := sb.SetNetworkPolicy(t.Context(), daytona.NetworkPolicy{Allow: []netip.Prefix{}}); err != nil || !sb.Info().Network.Block {
		t.Errorf("%+v, %v", sb.Info().Network, err)
	}
	if err := sb.SetNetworkPolicy(t.Context(), daytona.NetworkPolicy{AllowDomains: []string{"a.b"}}); err != nil || sb.Info().Network.Block || len(sb.Info().Network.AllowDomains) != 1 {
		t.Errorf("%+v, %v", sb.Info().Network, err)
	}
	state(daytona.StateStopped, sb.Stop(t.Context(), &daytona.StopOptions{Force: true}))
	if q := f.queries["/api/sandbox/"+sb.ID()+"/stop"]; len(q) != 1 || q[0] != "force=true" {
		t.Errorf("%v", q)
	}
	state(daytona.StateStopped, sb.Stop(t.Context(), nil))
	state(daytona.StateArchived, sb.Archive(t.Context()))
	state(daytona.StateArchived, sb.Archive(t.Context()))
	state(daytona.StateStopped, sb.Restore(t.Context()))
	state(daytona.StateStarted, sb.Start(t.Context()))

	// Another's change is waited for.
	if err := sb.Stop(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	left := 2
	f.answer(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, "/start") || left == 0 {
			return false
		}
		left--
		f.refuse(w, r, 409, "Sandbox state change in progress")
		return true
	})
	state(daytona.StateStarted, sb.Start(t.Context()))
	f.answer(nil)

	done := make(chan error, 1)
	watcher, _ := daytona.As[daytona.Watcher](c.Backend())
	go func() {
		_, err := watcher.Wait(t.Context(), sb.ID(), daytona.StateStopped)
		done <- err
	}()
	if err := sb.Delete(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, daytona.ErrNotFound) {
		t.Errorf("wait for what is deleted: %v", err)
	}
	if err := sb.Delete(t.Context()); !errors.Is(err, daytona.ErrNotFound) {
		t.Errorf("a second delete: %v", err)
	}
	one, err := c.Create(t.Context(), daytona.Spec{Ephemeral: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := one.Stop(t.Context(), nil); err != nil || one.Info().State != daytona.StateDestroyed {
		t.Errorf("stop of an ephemeral one: %s, %v", one.Info().State, err)
	}
}

// TestOvertaken is about a start that came true and was undone between two looks
// at the sandbox: it waited for good.
func TestOvertaken(t *testing.T) {
	f := start(t)
	s := f.add("a", wire.SandboxStateStopped, func(s *wire.Sandbox) { s.DesiredState = new(wire.SandboxDesiredStateStopped) })
	f.answer(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, "/start") {
			return false
		}
		f.say(w, 200, s)
		return true
	})
	sb, err := f.dial(nil).Get(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := sb.Start(ctx); !errors.Is(err, daytona.ErrConflict) || !strings.Contains(err.Error(), "stopped") {
		t.Errorf("a start whose sandbox was stopped meanwhile: %v", err)
	}
}

func TestList(t *testing.T) {
	f := start(t)
	c := f.dial(nil)
	for _, n := range []string{"b1", "b2", "B3", "b4", "b5", "c"} {
		f.add(n, wire.SandboxStateStarted, func(s *wire.Sandbox) { s.Labels = map[string]string{"k": "v"} })
	}
	f.add("b6", wire.SandboxStateBuildFailed, nil)
	f.add("b7", wire.SandboxStateBuildingSnapshot, nil)
	names := func(filter *daytona.Filter) (got []string) {
		t.Helper()
		for sb, err := range c.List(t.Context(), filter) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, sb.Name())
		}
		return got
	}
	for _, x := range []struct {
		filter *daytona.Filter
		want   string
	}{
		{nil, "b1 b2 B3 b4 b5 c b6 b7"},
		{&daytona.Filter{NamePrefix: "b"}, "b1 b2 b4 b5 b6 b7"}, // the wire's prefixes have no case
		{&daytona.Filter{Labels: map[string]string{"k": "v"}, NamePrefix: "c"}, "c"},
		{&daytona.Filter{Labels: map[string]string{"k": "w"}}, ""},
		{&daytona.Filter{States: []daytona.State{daytona.StateError}}, "b6"},
		{&daytona.Filter{States: []daytona.State{daytona.StateCreating, daytona.StateError}}, "b6 b7"},
		{&daytona.Filter{States: []daytona.State{daytona.StateDestroyed}}, ""},
	} {
		if got := strings.Join(names(x.filter), " "); got != x.want {
			t.Errorf("%+v: %s, want %s", x.filter, got, x.want)
		}
	}
	// Only as many pages are asked for as are wanted.
	f.mu.Lock()
	f.calls = nil
	f.mu.Unlock()
	for range c.List(t.Context(), nil) {
		break
	}
	if n := f.count("GET /sandbox"); n != 1 {
		t.Errorf("%d pages", n)
	}
	f.answer(func(w http.ResponseWriter, r *http.Request) bool {
		f.say(w, 200, wire.ListSandboxesResponse{Items: []wire.SandboxListItem{}, NextCursor: new("same")})
		return true
	})
	for _, err := range c.List(t.Context(), nil) {
		if !errors.Is(err, daytona.ErrInternal) {
			t.Errorf("%v", err)
		}
	}
}

func TestSnapshotsAndVolumes(t *testing.T) {
	f := start(t)
	c := f.dial(nil)
	s, err := c.CreateSnapshot(t.Context(), daytona.SnapshotSpec{Name: "team/s:1", Image: "debian:12", Entrypoint: []string{"a"}, Resources: daytona.Resources{CPU: 2}})
	if err != nil || s.State != daytona.SnapshotActive || s.Image != "debian:12" || s.SizeBytes != daytona.GiB/2 {
		t.Fatalf("%+v, %v", s, err)
	}
	if _, err := c.CreateSnapshot(t.Context(), daytona.SnapshotSpec{Name: "team/s:1", Image: "debian:12"}); !errors.Is(err, daytona.ErrConflict) {
		t.Errorf("the same name: %v", err)
	}
	sb, err := c.Create(t.Context(), daytona.Spec{Snapshot: "team/s:1"})
	if err != nil || sb.Info().Snapshot != "team/s:1" {
		t.Fatalf("%+v, %v", sb, err)
	}
	if s, err := sb.CreateSnapshot(t.Context(), "mine"); err != nil || s.Sandbox != sb.ID() {
		t.Errorf("%+v, %v", s, err)
	}
	if _, err := sb.CreateSnapshot(t.Context(), "mine"); !errors.Is(err, daytona.ErrConflict) {
		t.Errorf("%v", err)
	}
	all, err := c.Snapshots()
	if err != nil {
		t.Fatal(err)
	}
	if s, err := all.SetSnapshotActive(t.Context(), "team/s:1", false); err != nil || s.State != daytona.SnapshotInactive {
		t.Errorf("%+v, %v", s, err)
	}
	if s, err := all.SetSnapshotActive(t.Context(), "team/s:1", true); err != nil || s.State != daytona.SnapshotActive {
		t.Errorf("%+v, %v", s, err)
	}
	var names []string
	for s, err := range all.ListSnapshots(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, s.Name)
	}
	if len(names) != 2 {
		t.Errorf("%v", names)
	}
	if err := all.DeleteSnapshot(t.Context(), "mine"); err != nil {
		t.Error(err)
	}
	if err := all.DeleteSnapshot(t.Context(), "mine"); !errors.Is(err, daytona.ErrNotFound) {
		t.Errorf("%v", err)
	}

	volumes, err := c.Volumes()
	if err != nil {
		t.Fatal(err)
	}
	v, err := volumes.CreateVolume(t.Context(), daytona.VolumeSpec{Name: "v"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := volumes.CreateVolume(t.Context(), daytona.VolumeSpec{Name: "v"}); !errors.Is(err, daytona.ErrConflict) {
		t.Errorf("the same name: %v", err)
	}
	for _, spec := range []daytona.VolumeSpec{{Name: "w", Quota: 1}, {Name: "w", Kind: daytona.VolumeS3, S3: &daytona.S3Location{Endpoint: "https://s3", Bucket: "b"}}} {
		if _, err := volumes.CreateVolume(t.Context(), spec); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%+v: %v", spec, err)
		}
	}
	for _, by := range []string{v.ID, v.Name} {
		if got, err := volumes.GetVolume(t.Context(), by); err != nil || got.ID != v.ID {
			t.Errorf("%+v, %v", got, err)
		}
	}
	if err := volumes.DeleteVolume(t.Context(), "v"); err != nil {
		t.Error(err)
	}
	if _, err := volumes.GetVolume(t.Context(), "v"); !errors.Is(err, daytona.ErrNotFound) {
		t.Errorf("%v", err)
	}
}

func TestBuild(t *testing.T) {
	f := start(t)
	c := f.dial(nil)
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "src", "deep"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"app.py": "print(1)", "src/deep/a": strings.Repeat("a", 100000)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	img := daytona.Base("debian:12").AddLocalFile(filepath.Join(dir, "app.py"), "/app.py").AddLocalDir(filepath.Join(dir, "src"), "/src")
	ref, err := img.Ref()
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	sb, err := c.Create(t.Context(), daytona.Spec{Build: img, OnBuildLog: func(l daytona.BuildLog) { lines = append(lines, l.Line) }})
	if err != nil {
		t.Fatal(err)
	}
	if sb.Info().Image != ref || sb.Info().Snapshot != "" {
		t.Errorf("%+v", sb.Info())
	}
	if strings.Join(lines, ",") != "step 0,step 1,step 2" {
		t.Errorf("the log is %q", lines)
	}
	if len(f.objects) != 2 {
		t.Errorf("%d contexts", len(f.objects))
	}
	for _, context := range img.Contexts() {
		hash, err := context.Hash()
		if err != nil {
			t.Fatal(err)
		}
		r := tar.NewReader(bytes.NewReader(f.objects["org/"+hash+"/context.tar"]))
		if h, err := r.Next(); err != nil || strings.TrimSuffix(h.Name, "/") != context.Path {
			t.Errorf("%s: %v, %v", context.Path, h, err)
		}
	}
	// A second time nothing is built and nothing uploaded.
	built, err := c.Build(t.Context(), img, daytona.BuildOptions{})
	if err != nil || !built.Cached || built.Ref != ref {
		t.Errorf("%+v, %v", built, err)
	}
	if n := f.count("POST /snapshots"); n != 1 {
		t.Errorf("built %d times", n)
	}
	// With resources it is built into the sandbox: a snapshot has its own.
	if _, err := c.Create(t.Context(), daytona.Spec{Image: ref, Resources: daytona.Resources{CPU: 2}}); err != nil {
		t.Fatal(err)
	}
	b := f.body("POST /sandbox")
	info, _ := b["buildInfo"].(map[string]any)
	if b["cpu"] != 2.0 || b["snapshot"] != nil || info["dockerfileContent"] != img.Dockerfile() || len(info["contextHashes"].([]any)) != 2 {
		t.Errorf("%v", b)
	}
	// The same context of another image is there already.
	if _, err := c.Build(t.Context(), daytona.Base("debian:13").AddLocalFile(filepath.Join(dir, "app.py"), "/b.py"), daytona.BuildOptions{}); err != nil {
		t.Fatal(err)
	}
	puts := 0
	for _, call := range f.calls {
		if strings.HasPrefix(call, "PUT /s3/") {
			puts++
		}
	}
	if puts != 2 {
		t.Errorf("%d uploads, want 2", puts)
	}

	f.fail = "exit code 3"
	_, err = c.Build(t.Context(), daytona.Base("debian:12").RunCommands("false"), daytona.BuildOptions{})
	failed, ok := errors.AsType[*daytona.BuildError](err)
	if !ok || !strings.Contains(err.Error(), "exit code 3") || !strings.Contains(string(failed.Log), "step 2") {
		t.Errorf("%v", err)
	}
	if len(f.snapshots) != 2 {
		t.Errorf("%d snapshots, want those that are built", len(f.snapshots))
	}
	for field, o := range map[string]daytona.BuildOptions{"Args": {Args: map[string]string{"a": "b"}}, "Target": {Target: "x"}, "NoCache": {NoCache: true}, "StepTimeout": {StepTimeout: 1}} {
		_, err := c.Build(t.Context(), img, o)
		if e, ok := errors.AsType[*daytona.Error](err); !ok || e.Field != field || e.Kind != daytona.KindUnsupported {
			t.Errorf("%s: %v", field, err)
		}
	}
}

func TestToolbox(t *testing.T) {
	f := start(t)
	c := f.dial(nil)
	sb, err := c.Create(t.Context(), daytona.Spec{Language: "javascript"})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := sb.Process().Exec(t.Context(), "echo $((6*7))", nil); err != nil || strings.TrimSpace(r.Output) != "42" {
		t.Errorf("%+v, %v", r, err)
	}
	fs := sb.FileSystem()
	if err := fs.WriteFile(t.Context(), "a/b", []byte("text"), 0o644); err != nil {
		t.Fatal(err)
	}
	if b, err := fs.ReadFile(t.Context(), "a/b"); err != nil || string(b) != "text" {
		t.Errorf("%q, %v", b, err)
	}
	f.mu.Lock()
	f.calls = nil
	f.mu.Unlock()
	if _, err := fs.ReadFile(t.Context(), "nope"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
	if n := f.count("GET /sandbox/" + sb.ID()); n != 0 {
		t.Errorf("the server was asked about a file that is not there")
	}

	// A port of the sandbox's is one of this machine's here.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go io.Copy(c, c)
		}
	}()
	conn, err := sb.DialPort(t.Context(), l.Addr().(*net.TCPAddr).Port)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "hello")
	b := make([]byte, 5)
	if _, err := io.ReadFull(conn, b); err != nil || string(b) != "hello" {
		t.Errorf("%q, %v", b, err)
	}

	// The agent's API, as a proxy would have it.
	raw, err := sb.Toolbox().Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	hc := &http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return raw, nil }}}
	resp, err := hc.Get("http://agent/work-dir")
	if err != nil {
		t.Fatal(err)
	}
	text, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != 200 || !strings.Contains(string(text), `"dir"`) {
		t.Errorf("%d %s", resp.StatusCode, text)
	}

	// Another client knows nothing of it yet, neither the proxy nor the language.
	other := f.dial(nil).Backend().Connect(sb.ID())
	if _, err := other.Process().RunCode(t.Context(), "1", &daytona.CodeOptions{Timeout: time.Minute}); err != nil && !errors.Is(err, daytona.ErrUnavailable) && !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("%v", err)
	}
	if body := f.count("POST /toolbox/" + sb.ID() + "/process/code-run"); body != 1 {
		t.Errorf("%d code runs", body)
	}

	if err := sb.Stop(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	stopped := func(err error) {
		t.Helper()
		if !errors.Is(err, daytona.ErrState) {
			t.Errorf("of a stopped sandbox: %v", err)
		}
	}
	_, err = sb.Process().Exec(t.Context(), "true", nil)
	stopped(err)
	_, err = fs.ReadFile(t.Context(), "a/b")
	stopped(err)
	_, err = sb.DialPort(t.Context(), 1)
	stopped(err)
	_, err = sb.Toolbox().Dial(t.Context())
	stopped(err)
	if err := sb.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := sb.Process().Exec(t.Context(), "true", nil); err != nil {
		t.Errorf("after a start: %v", err)
	}
	if err := sb.Delete(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := sb.Process().Exec(t.Context(), "true", nil); !errors.Is(err, daytona.ErrNotFound) {
		t.Errorf("of a deleted sandbox: %v", err)
	}

	// A server whose proxy knows no ports.
	plain := f.add("plain", wire.SandboxStateStarted, nil)
	f.answer(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, "/connect") {
			return false
		}
		http.NotFound(w, r)
		return true
	})
	got, err := c.Get(t.Context(), plain.ID)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := got.DialPort(t.Context(), 80); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("%v", err)
	}
}

func TestOpen(t *testing.T) {
	t.Setenv("DAYTONA_API_KEY", key)
	f := start(t)
	u, err := url.Parse(f.URL)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []string{"http://" + u.Host + "/api?target=eu", "remote+http://" + u.Host + "/api/"} {
		c, err := daytona.Open(t.Context(), at)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Create(t.Context(), daytona.Spec{}); err != nil {
			t.Error(err)
		}
		if got := f.body("POST /sandbox")["target"]; (got == "eu") != strings.Contains(at, "eu") {
			t.Errorf("%s: target %v", at, got)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	for _, at := range []string{
		"https://user:secret@host/api", "https://host/api?key=secret", "https://host/api?colour=red", "https://host/api#x", "https:///api",
		"http://example.com/api", "remote+http://10.0.0.1/api", "https://host/api?insecure=yes",
	} {
		if _, err := daytona.Open(t.Context(), at); !errors.Is(err, daytona.ErrInvalid) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", at, err)
		}
	}
	for _, at := range []string{"remote://host/api", "http://example.com/api?insecure=true", "http://[::1]:3000/api"} {
		c, err := daytona.Open(t.Context(), at)
		if err != nil {
			t.Errorf("%s: %v", at, err)
			continue
		}
		c.Close()
	}
	t.Setenv("DAYTONA_API_KEY", "")
	if _, err := daytona.Open(t.Context(), "https://host/api"); !errors.Is(err, daytona.ErrUnauthorized) {
		t.Errorf("without a key: %v", err)
	}
}

// TestWords: what servers say in words only is typed.
func TestWords(t *testing.T) {
	f := start(t)
	c := f.dial(nil)
	for reason, want := range map[string]daytona.Error{
		`create sandbox x: User = "ada": the image has no such user`:  {Kind: daytona.KindInvalid, Field: "User", Value: "ada"},
		"unable to find user ada: no matching entries in passwd file": {Kind: daytona.KindInvalid, Field: "User", Value: "ada"},
		"pull image: MANIFEST_UNKNOWN: manifest unknown":              {Kind: daytona.KindNotFound},
		"failed to start: the disk burns":                             {Kind: daytona.KindInternal},
	} {
		f.fail = reason
		_, err := c.Create(t.Context(), daytona.Spec{Image: "debian:12"})
		e, ok := errors.AsType[*daytona.Error](err)
		if !ok || e.Kind != want.Kind || e.Field != want.Field || e.Value != want.Value {
			t.Errorf("%s: %v", reason, err)
		}
	}
	f.fail = ""
	f.answer(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPost || r.URL.Path != "/api/sandbox" {
			return false
		}
		f.refuse(w, r, 400, "GPU sandboxes must be ephemeral - set autoDeleteInterval to 0")
		return true
	})
	_, err := c.Create(t.Context(), daytona.Spec{Image: "debian:12", Resources: daytona.Resources{GPU: 1}})
	if e, ok := errors.AsType[*daytona.Error](err); !ok || e.Kind != daytona.KindUnsupported || e.Field != "Resources.GPU" {
		t.Errorf("%v", err)
	}
}
