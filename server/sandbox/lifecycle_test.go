package sandbox_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/sandbox"
	"github.com/daytona-go/daytona/server/store"
	"github.com/daytona-go/daytona/server/store/storetest"
)

func TestEvents(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		var got []string
		var refuse error
		w := newWorld(t, db, func(c *sandbox.Config) {
			c.Event = func(_ context.Context, e sandbox.Event) error {
				if e.Sandbox == nil || e.Sandbox.OrganizationID != "a" {
					t.Errorf("%+v", e)
				}
				got = append(got, strings.TrimPrefix(e.Name, "sandbox.")+" "+e.Old+" "+e.New)
				return refuse
			}
		})
		ctx := t.Context()
		w.create(sandbox.Spec{Name: "x"})
		w.s.Stop(ctx, "a", "x", false)
		w.settle()
		want := []string{"created  ", "state.updated creating started", "state.updated started stopping", "desired-state.updated started stopped", "state.updated stopping stopped"}
		if !slices.Equal(got, want) {
			t.Errorf("%q, not %q", got, want)
		}
		// What nobody can be told of does not happen.
		refuse = errors.New("no")
		if _, err := w.s.Create(ctx, "a", sandbox.Spec{Name: "y"}); !errors.Is(err, refuse) {
			t.Error(err)
		}
		refuse = nil
		_, err := w.s.Get(ctx, "a", "y")
		wants(t, err, daytona.ErrNotFound, "")
		if len(w.open()) != 0 {
			t.Error(w.open())
		}
	})
}

func TestLife(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		w := newWorld(t, db)
		ctx := t.Context()
		sb := w.create(sandbox.Spec{Name: "one", Labels: map[string]string{"k": "v"}, Env: map[string]string{"A": "b"}})
		if sb.State != sandbox.Started || sb.Pending || sb.DaemonVersion != "1.2.3" || sb.RunnerID != "r1" || sb.AutoStop != 15 || sb.AutoArchive != 10080 || sb.AutoDelete != -1 {
			t.Fatalf("%+v", sb)
		}
		_, p := w.last("CREATE_SANDBOX")
		if p["snapshot"] != "default-ref" || p["osUser"] != "daytona" || p["cpuQuota"] != 1.0 || p["storageQuota"] != 3.0 || p["userId"] != "a" || len(p["authToken"].(string)) != 32 {
			t.Errorf("%v", p)
		}
		before, err := w.s.PreviewURL(ctx, "a", "one", 80)
		if err != nil || before.Token != p["authToken"] {
			t.Errorf("%v %v", before, err)
		}

		if sb, err = w.s.Stop(ctx, "a", "one", true); err != nil || sb.Shown() != sandbox.Stopping {
			t.Fatalf("%v %v", sb, err)
		}
		if _, p := w.last("STOP_SANDBOX"); p["force"] != true {
			t.Error(p)
		}
		w.settle()
		sb = w.get(sb.ID)
		if sb.State != sandbox.Stopped || sb.Pending || sb.Backup != sandbox.BackupCompleted || sb.BackupAt == nil {
			t.Fatalf("%+v", sb)
		}
		if c := w.claims[sb.ID]; c.Resources != (sandbox.Resources{Disk: 3}) {
			t.Error("stopped, it uses", c.Resources)
		}
		_, err = w.s.Stop(ctx, "a", "one", false)
		wants(t, err, daytona.ErrState, "Sandbox is not in a stoppable state")

		if sb, err = w.s.Start(ctx, "a", "one"); err != nil || sb.State != sandbox.Started || sb.Backup != sandbox.BackupNone {
			t.Fatalf("%+v %v", sb, err)
		}
		after, err := w.s.PreviewURL(ctx, "a", "one", 80)
		if err != nil || after.Token == before.Token {
			t.Error("the token is the old one", err)
		}
		if ok, _ := w.s.ValidPreviewToken(ctx, sb.ID, before.Token); ok {
			t.Error("the old token is valid")
		}
		if ok, _ := w.s.ValidPreviewToken(ctx, sb.ID, after.Token); !ok {
			t.Error("the new token is not valid")
		}
		if sb, err = w.s.Start(ctx, "a", "one"); err != nil || sb.State != sandbox.Started {
			t.Fatal("starting what is started:", err)
		}

		if sb, err = w.s.Pause(ctx, "a", "one"); err != nil || sb.State != sandbox.Paused {
			t.Fatalf("%+v %v", sb, err)
		}
		if sb, err = w.s.Start(ctx, "a", "one"); err != nil || sb.State != sandbox.Started {
			t.Fatalf("%+v %v", sb, err)
		}
		if again, _ := w.s.PreviewURL(ctx, "a", "one", 80); again.Token != after.Token {
			t.Error("a pause changed the token")
		}

		if sb, err = w.s.Resize(ctx, "a", "one", sandbox.Resources{CPU: 2, Memory: 2}); err != nil || sb.State != sandbox.Started || sb.CPU != 2 || sb.Disk != 3 {
			t.Fatalf("%+v %v", sb, err)
		}
		_, err = w.s.Archive(ctx, "a", "one")
		wants(t, err, daytona.ErrState, "Sandbox is not stopped")

		if _, err = w.s.Snapshot(ctx, "a", "one", "snap", false); err != nil || w.captured["snap"] != "ok" {
			t.Fatal(err, w.captured)
		}
		if _, p := w.last("SNAPSHOT_SANDBOX"); p["ref"] != "ref-of-snap" || p["sandboxId"] != sb.ID {
			t.Error(p)
		}
		child, err := w.s.Fork(ctx, "a", "one", "child")
		if err != nil || child.State != sandbox.Started || child.ParentID != sb.ID || w.get(sb.ID).State != sandbox.Started {
			t.Fatalf("%+v %v", child, err)
		}
		_, err = w.s.Delete(ctx, "a", "one")
		wants(t, err, daytona.ErrState, "")
		if up, err := w.s.Ancestors(ctx, "a", "child"); err != nil || len(up) != 1 || up[0].ID != sb.ID {
			t.Error(up, err)
		}
		if down, err := w.s.Forks(ctx, "a", "one", false); err != nil || len(down) != 1 || down[0].ID != child.ID {
			t.Error(down, err)
		}

		w.s.Stop(ctx, "a", "one", false)
		w.settle()
		if sb, err = w.s.Archive(ctx, "a", "one"); err != nil || sb.Shown() != sandbox.Archiving || sb.Pending {
			t.Fatalf("%+v %v", sb, err)
		}
		w.settle()
		if sb = w.get(sb.ID); sb.State != sandbox.Archived || sb.RunnerID != "" {
			t.Fatalf("%+v", sb)
		}
		sb, err = w.s.Start(ctx, "a", "one")
		if err != nil || sb.State != sandbox.Restoring {
			t.Fatalf("%+v %v", sb, err)
		}
		if _, p := w.last("CREATE_SANDBOX"); p["backupRef"] == "" || p["snapshot"] != p["backupRef"] {
			t.Error(p)
		}
		w.settle()
		if sb = w.get(sb.ID); sb.State != sandbox.Started {
			t.Fatalf("%+v", sb)
		}

		for _, id := range []string{"child", "one"} {
			gone, err := w.s.Delete(ctx, "a", id)
			if err != nil || gone.Shown() != sandbox.Destroying || !strings.HasPrefix(gone.Name, "DESTROYED_"+id+"_") {
				t.Fatalf("%+v %v", gone, err)
			}
			// The name is free at once.
			_, err = w.s.Get(ctx, "a", id)
			wants(t, err, daytona.ErrNotFound, "Sandbox with ID or name "+id+" not found")
		}
		w.settle()
		if sb = w.get(sb.ID); sb.State != sandbox.Destroyed || sb.RunnerID != "" || sb.Backup != sandbox.BackupNone {
			t.Fatalf("%+v", sb)
		}
		_, err = w.s.Get(ctx, "a", sb.ID)
		wants(t, err, daytona.ErrNotFound, "")
		w.create(sandbox.Spec{Name: "one"})
		_, err = w.s.Create(ctx, "a", sandbox.Spec{Name: "one"})
		wants(t, err, daytona.ErrConflict, "Sandbox with name one already exists")
		if _, err = w.s.Create(ctx, "b", sandbox.Spec{Name: "one"}); err != nil {
			t.Error("another organization:", err)
		}
		w.pass(25 * time.Hour)
		w.sweep()
		if _, err := w.s.Any(ctx, sb.ID); !errors.Is(err, daytona.ErrNotFound) {
			t.Error("its row is there after a day:", err)
		}
	})
}

// Whatever a job's end says twice, late, or of something else, changes nothing.
func TestJobsOutOfOrder(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		w := newWorld(t, db, func(c *sandbox.Config) { c.Wait = time.Millisecond })
		w.auto = false
		sb := w.create(sandbox.Spec{})
		if sb.State != sandbox.Creating {
			t.Fatal(sb.State)
		}
		ctx := t.Context()
		_, err := w.s.Delete(ctx, "a", sb.ID)
		wants(t, err, daytona.ErrConflict, "Sandbox state change in progress")
		created := w.open()[0]
		if err := w.finish(created.ID, ""); err != nil {
			t.Fatal(err)
		}
		if _, err := w.s.Stop(ctx, "a", sb.ID, false); err != nil {
			t.Fatal(err)
		}
		// The end of the creation once more, as a failure.
		if err := w.done(ctx, &created, "boom"); err != nil {
			t.Fatal(err)
		}
		if sb = w.get(sb.ID); sb.State != sandbox.Stopping {
			t.Fatal(sb.State, sb.ErrorReason)
		}
		_, err = w.s.Start(ctx, "a", sb.ID)
		wants(t, err, daytona.ErrConflict, "Sandbox state change in progress")
		stop := w.open()[0]
		// It never ends: an error, which can be deleted.
		w.pass(16 * time.Minute)
		w.sweep()
		if sb = w.get(sb.ID); sb.State != sandbox.Errored || sb.Pending {
			t.Fatal(sb.State)
		}
		_, err = w.s.Start(ctx, "a", sb.ID)
		wants(t, err, daytona.ErrState, "Sandbox is in an errored state")
		if _, err := w.s.Delete(ctx, "a", sb.ID); err != nil {
			t.Fatal(err)
		}
		// The runner is still at the old job, so there is no second one.
		if jobs := w.open(); len(jobs) != 1 || jobs[0].ID != stop.ID {
			t.Fatal(jobs)
		}
		if err := w.finish(stop.ID, ""); err != nil {
			t.Fatal(err)
		}
		w.pass(time.Minute)
		w.sweep()
		jobs := w.open()
		if len(jobs) != 1 || jobs[0].Type != "DESTROY_SANDBOX" {
			t.Fatal(jobs)
		}
		// What can't be destroyed is tried again, and is not seen meanwhile.
		if err := w.finish(jobs[0].ID, "device is busy"); err != nil {
			t.Fatal(err)
		}
		if sb = w.get(sb.ID); sb.State != sandbox.Errored || sb.Desired != sandbox.WantDestroyed {
			t.Fatal(sb.State, sb.Desired)
		}
		w.pass(time.Minute)
		w.sweep()
		if jobs = w.open(); len(jobs) != 1 || jobs[0].Type != "DESTROY_SANDBOX" {
			t.Fatal(jobs)
		}
		if err := w.finish(jobs[0].ID, ""); err != nil {
			t.Fatal(err)
		}
		if sb = w.get(sb.ID); sb.State != sandbox.Destroyed {
			t.Fatal(sb.State)
		}
	})
}

func TestFailures(t *testing.T) {
	db := storetest.Open(t, storetest.SQLite(t))
	w := newWorld(t, db)
	ctx := t.Context()
	w.fails["CREATE_SANDBOX"] = "no such image"
	_, err := w.s.Create(ctx, "a", sandbox.Spec{Name: "x"})
	wants(t, err, daytona.ErrState, "Sandbox failed to start: no such image")
	delete(w.fails, "CREATE_SANDBOX")

	sb := w.create(sandbox.Spec{Name: "y"})
	w.fails["PAUSE_SANDBOX"] = "busy"
	_, err = w.s.Pause(ctx, "a", "y")
	wants(t, err, daytona.ErrState, "busy")
	if sb = w.get(sb.ID); sb.State != sandbox.Started || sb.Pending {
		t.Errorf("%+v", sb)
	}
	w.fails["RESIZE_SANDBOX"] = "too much"
	_, err = w.s.Resize(ctx, "a", "y", sandbox.Resources{CPU: 4})
	wants(t, err, daytona.ErrState, "too much")
	if sb = w.get(sb.ID); sb.State != sandbox.Started || sb.CPU != 1 || w.claims[sb.ID].Resources.CPU != 1 {
		t.Errorf("%+v %v", sb, w.claims[sb.ID])
	}
	w.fails["UPDATE_SANDBOX_NETWORK_SETTINGS"] = "no rules"
	_, err = w.s.SetNetwork(ctx, "a", "y", sandbox.NetworkUpdate{BlockAll: new(true)})
	wants(t, err, daytona.ErrState, "no rules")
	if sb = w.get(sb.ID); sb.NetworkBlockAll {
		t.Error("it says that what is not in force is")
	}
	_, err = w.s.Snapshot(ctx, "a", "y", "late", false)
	wants(t, err, daytona.ErrState, "the name was taken meanwhile")
	w.fails["SNAPSHOT_SANDBOX"] = "disk error"
	_, err = w.s.Snapshot(ctx, "a", "y", "snap", false)
	wants(t, err, daytona.ErrState, "disk error")
	if w.captured["snap"] != "disk error" || w.get(sb.ID).State != sandbox.Started {
		t.Error(w.captured)
	}
	w.fails["FORK_SANDBOX"] = "no room"
	_, err = w.s.Fork(ctx, "a", "y", "z")
	wants(t, err, daytona.ErrState, "Sandbox failed to start: no room")
	if w.get(sb.ID).State != sandbox.Started {
		t.Error("the parent is", w.get(sb.ID).State)
	}

	w.fails["START_SANDBOX"] = `{"recoverable":true,"errorReason":"no space left on device"}`
	w.s.Stop(ctx, "a", "y", false)
	w.settle()
	_, err = w.s.Start(ctx, "a", "y")
	wants(t, err, daytona.ErrState, "Sandbox failed to start: no space left on device")
	if sb = w.get(sb.ID); sb.State != sandbox.Errored || !sb.Recoverable || sb.ErrorReason != "no space left on device" {
		t.Errorf("%+v", sb)
	}
	delete(w.fails, "START_SANDBOX")
	if sb, err = w.s.Recover(ctx, "a", "y", false); err != nil || sb.State != sandbox.Started || sb.ErrorReason != "" || sb.Recoverable {
		t.Errorf("%+v %v", sb, err)
	}
	_, err = w.s.Recover(ctx, "a", "y", false)
	wants(t, err, daytona.ErrState, "")

	w.fails["CREATE_BACKUP"] = "bucket is gone"
	w.s.Stop(ctx, "a", "y", false)
	w.settle()
	if sb = w.get(sb.ID); sb.State != sandbox.Stopped || sb.Backup != sandbox.BackupError {
		t.Errorf("%+v", sb)
	}
}

// What a runner can't do is 422, whatever the class; what it can is asked.
func TestCapabilities(t *testing.T) {
	db := storetest.Open(t, storetest.SQLite(t))
	w := newWorld(t, db)
	ctx := t.Context()
	w.create(sandbox.Spec{Name: "x"})
	w.setRunner("r1", func(r *sandbox.Runner) { r.Capabilities = nil })
	for name, f := range map[string]func() (*sandbox.Sandbox, error){
		"pause":    func() (*sandbox.Sandbox, error) { return w.s.Pause(ctx, "a", "x") },
		"fork":     func() (*sandbox.Sandbox, error) { return w.s.Fork(ctx, "a", "x", "") },
		"resize":   func() (*sandbox.Sandbox, error) { return w.s.Resize(ctx, "a", "x", sandbox.Resources{CPU: 2}) },
		"snapshot": func() (*sandbox.Sandbox, error) { return w.s.Snapshot(ctx, "a", "x", "n", false) },
		"network": func() (*sandbox.Sandbox, error) {
			return w.s.SetNetwork(ctx, "a", "x", sandbox.NetworkUpdate{BlockAll: new(true)})
		},
		"autopause": func() (*sandbox.Sandbox, error) { return w.s.SetAutoPause(ctx, "a", "x", 5) },
		"secrets": func() (*sandbox.Sandbox, error) {
			return w.s.SetSecrets(ctx, "a", "x", []sandbox.Secret{{Env: "TOKEN", Name: "known"}})
		},
		"domains": func() (*sandbox.Sandbox, error) {
			return w.s.Create(ctx, "a", sandbox.Spec{DomainAllowList: new("example.com")})
		},
		"otel": func() (*sandbox.Sandbox, error) {
			return w.s.Create(ctx, "a", sandbox.Spec{OTelEndpoint: "https://otel.example.com"})
		},
		"link": func() (*sandbox.Sandbox, error) {
			return w.s.Create(ctx, "a", sandbox.Spec{Linked: "x", AutoDelete: new(0)})
		},
		"volumes": func() (*sandbox.Sandbox, error) {
			return w.s.Create(ctx, "a", sandbox.Spec{Volumes: []sandbox.Volume{{VolumeID: "data", MountPath: "/data"}}})
		},
	} {
		if _, err := f(); !errors.Is(err, daytona.ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if sb, err := w.s.Stop(ctx, "a", "x", false); err != nil || sb.Shown() != sandbox.Stopping {
		t.Error(err)
	}
	w.settle()
	_, err := w.s.Archive(ctx, "a", "x")
	wants(t, err, daytona.ErrUnsupported, "")
	if sb, _ := w.s.Get(ctx, "a", "x"); sb.State != sandbox.Stopped || sb.Backup != sandbox.BackupNone {
		t.Errorf("%+v", sb)
	}
}

func TestCreateRules(t *testing.T) {
	db := storetest.Open(t, storetest.SQLite(t))
	w := newWorld(t, db)
	ctx := t.Context()
	w.create(sandbox.Spec{Name: "owner"})
	w.create(sandbox.Spec{Name: "linked", Linked: "owner", AutoDelete: new(0)})
	mount := func(path, sub string) sandbox.Spec {
		return sandbox.Spec{Volumes: []sandbox.Volume{{VolumeID: "data", MountPath: path, Subpath: sub}}}
	}
	long := strings.Repeat("x", 300)
	for name, c := range map[string]struct {
		n       sandbox.Spec
		kind    error
		message string
	}{
		"resources":         {sandbox.Spec{Resources: sandbox.Resources{CPU: 2}}, daytona.ErrInvalid, "Cannot specify Sandbox resources when using a snapshot"},
		"gpu types":         {sandbox.Spec{GPUTypes: []string{"H100"}}, daytona.ErrInvalid, "Cannot specify Sandbox resources when using a snapshot"},
		"snapshot":          {sandbox.Spec{Snapshot: "none"}, daytona.ErrInvalid, "Snapshot none not found. Did you add it through the Daytona Dashboard?"},
		"region":            {sandbox.Spec{Target: "moon"}, daytona.ErrNotFound, "Region not found"},
		"build+snapshot":    {sandbox.Spec{Snapshot: "x", Build: &sandbox.SpecBuild{Dockerfile: "FROM x"}}, daytona.ErrInvalid, ""},
		"build+linked":      {sandbox.Spec{Linked: "owner", AutoDelete: new(0), Build: &sandbox.SpecBuild{Dockerfile: "FROM x"}}, daytona.ErrInvalid, ""},
		"empty build":       {sandbox.Spec{Build: &sandbox.SpecBuild{}}, daytona.ErrInvalid, ""},
		"hash":              {sandbox.Spec{Build: &sandbox.SpecBuild{Dockerfile: "FROM x", ContextHashes: []string{"../x"}}}, daytona.ErrInvalid, ""},
		"two gpus":          {sandbox.Spec{Build: &sandbox.SpecBuild{Dockerfile: "FROM x"}, Resources: sandbox.Resources{GPU: 2}, AutoDelete: new(0)}, daytona.ErrInvalid, ""},
		"gpu":               {sandbox.Spec{Snapshot: "gpu"}, daytona.ErrInvalid, "GPU sandboxes must be ephemeral - set autoDeleteInterval to 0"},
		"spot":              {sandbox.Spec{Spot: true}, daytona.ErrInvalid, ""},
		"gpu spot":          {sandbox.Spec{Snapshot: "gpu", AutoDelete: new(0), Spot: true}, daytona.ErrUnsupported, ""},
		"stop":              {sandbox.Spec{AutoStop: new(-1)}, daytona.ErrInvalid, "Auto-stop interval must be non-negative"},
		"archive":           {sandbox.Spec{AutoArchive: new(-1)}, daytona.ErrInvalid, "Auto-archive interval must be non-negative"},
		"stop and pause":    {sandbox.Spec{AutoStop: new(1), AutoPause: new(1)}, daytona.ErrInvalid, ""},
		"pause ephemeral":   {sandbox.Spec{AutoDelete: new(0), AutoPause: new(1)}, daytona.ErrInvalid, ""},
		"ttl":               {sandbox.Spec{TTL: new(-1)}, daytona.ErrInvalid, ""},
		"too long":          {sandbox.Spec{TTL: new(1 << 40)}, daytona.ErrInvalid, ""},
		"name":              {sandbox.Spec{Name: "<b>x"}, daytona.ErrInvalid, "name must not contain HTML tags, URLs, or control characters"},
		"name url":          {sandbox.Spec{Name: "see https://x.example"}, daytona.ErrInvalid, "name must not contain HTML tags, URLs, or control characters"},
		"name control":      {sandbox.Spec{Name: "a\nb"}, daytona.ErrInvalid, "name must not contain HTML tags, URLs, or control characters"},
		"long name":         {sandbox.Spec{Name: long}, daytona.ErrInvalid, ""},
		"user":              {sandbox.Spec{User: "a b"}, daytona.ErrInvalid, ""},
		"env":               {sandbox.Spec{Env: map[string]string{"A=": "x"}}, daytona.ErrInvalid, ""},
		"big env":           {sandbox.Spec{Env: map[string]string{"A": strings.Repeat("x", 1<<20)}}, daytona.ErrInvalid, ""},
		"label":             {sandbox.Spec{Labels: map[string]string{"": "x"}}, daytona.ErrInvalid, ""},
		"long label":        {sandbox.Spec{Labels: map[string]string{"a": strings.Repeat("x", 2000)}}, daytona.ErrInvalid, ""},
		"cidr":              {sandbox.Spec{NetworkAllowList: new("1.2.3.4")}, daytona.ErrInvalid, ""},
		"IPv6":              {sandbox.Spec{NetworkAllowList: new("::/0")}, daytona.ErrInvalid, ""},
		"11 networks":       {sandbox.Spec{NetworkAllowList: new(strings.Repeat("10.0.0.0/8,", 11))}, daytona.ErrInvalid, ""},
		"domain":            {sandbox.Spec{DomainAllowList: new("a..b")}, daytona.ErrInvalid, ""},
		"domain url":        {sandbox.Spec{DomainAllowList: new("https://a.b")}, daytona.ErrInvalid, ""},
		"proxy":             {sandbox.Spec{OutboundProxy: "socks5://x"}, daytona.ErrInvalid, "outboundProxyUrl must be a URL with http or https"},
		"proxy and domains": {sandbox.Spec{OutboundProxy: "http://x", DomainAllowList: new("a.b")}, daytona.ErrUnsupported, ""},
		"otel":              {sandbox.Spec{OTelEndpoint: "x"}, daytona.ErrInvalid, ""},
		"mount /":           {mount("/", ""), daytona.ErrInvalid, ""},
		"mount relative":    {mount("data", ""), daytona.ErrInvalid, ""},
		"mount ..":          {mount("/a/../b", ""), daytona.ErrInvalid, ""},
		"mount //":          {mount("/a//b", ""), daytona.ErrInvalid, ""},
		"mount /etc":        {mount("/etc/x", ""), daytona.ErrInvalid, ""},
		"mount NUL":         {mount("/a\x00b", ""), daytona.ErrInvalid, ""},
		"subpath /":         {mount("/a", "/b"), daytona.ErrInvalid, ""},
		"subpath ..":        {mount("/a", "b/../c"), daytona.ErrInvalid, ""},
		"no volume":         {sandbox.Spec{Volumes: []sandbox.Volume{{VolumeID: "none", MountPath: "/a"}}}, daytona.ErrNotFound, ""},
		"new volume":        {sandbox.Spec{Volumes: []sandbox.Volume{{VolumeID: "new", MountPath: "/a"}}}, daytona.ErrState, ""},
		"same mount":        {sandbox.Spec{Volumes: []sandbox.Volume{{VolumeID: "data", MountPath: "/a"}, {VolumeID: "data", MountPath: "/a"}}}, daytona.ErrInvalid, ""},
		"secret":            {sandbox.Spec{Secrets: []sandbox.Secret{{Env: "TOKEN", Name: "unknown"}}}, daytona.ErrInvalid, `Secret "unknown" not found`},
		"secret env":        {sandbox.Spec{Secrets: []sandbox.Secret{{Env: "a-b", Name: "known"}}}, daytona.ErrInvalid, ""},
		"no owner":          {sandbox.Spec{Linked: "none", AutoDelete: new(0)}, daytona.ErrNotFound, "Sandbox with ID or name none not found"},
		"lasting link":      {sandbox.Spec{Linked: "owner"}, daytona.ErrInvalid, ""},
		"link of a link":    {sandbox.Spec{Linked: "linked", AutoDelete: new(0)}, daytona.ErrInvalid, ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := w.s.Create(ctx, "a", c.n)
			wants(t, err, c.kind, c.message)
			if err != nil && strings.Contains(err.Error(), strings.Repeat("x", 257)) {
				t.Error("it repeats what is too long")
			}
		})
	}
	w.suspend = true
	_, err := w.s.Create(ctx, "a", sandbox.Spec{})
	wants(t, err, daytona.ErrForbidden, "Organization is suspended: unpaid")
	w.suspend = false
	w.limit.CPU = 2
	_, err = w.s.Create(ctx, "a", sandbox.Spec{})
	wants(t, err, daytona.ErrInvalid, "Total CPU limit exceeded. Maximum allowed: 2.")
	w.limit.CPU = 1000
	w.setRunner("r1", func(r *sandbox.Runner) { r.Usable = false })
	_, err = w.s.Create(ctx, "a", sandbox.Spec{Name: "nowhere"})
	wants(t, err, daytona.ErrInvalid, "No available runners")
	_, err = w.s.Get(ctx, "a", "nowhere")
	wants(t, err, daytona.ErrNotFound, "")
	w.setRunner("r1", func(r *sandbox.Runner) { r.Usable = true })

	sb := w.create(sandbox.Spec{
		AutoArchive: new(0), AutoDelete: new(-7), AutoPause: new(5), TTL: new(60), NetworkAllowList: new("10.1.2.3/8, 1.1.1.1/32"), DomainAllowList: new("*.example.com"),
		Volumes: []sandbox.Volume{{VolumeID: "data", MountPath: "/data", Subpath: "users/x"}}, Secrets: []sandbox.Secret{{Env: "TOKEN", Name: "known"}},
	})
	if sb.AutoArchive != 43200 || sb.AutoDelete != -1 || sb.AutoStop != 0 || sb.AutoPause != 5 || sb.DestroyAt == nil || *sb.NetworkAllowList != "10.0.0.0/8,1.1.1.1/32" ||
		sb.Volumes[0].VolumeID != "data-id" || sb.Env["TOKEN"] != "" {
		t.Errorf("%+v", sb)
	}
	_, p := w.last("CREATE_SANDBOX")
	if p["env"].(map[string]any)["TOKEN"] != "dtn_secret_placeholder" || p["networkAllowList"] != "10.0.0.0/8,1.1.1.1/32" || p["domainAllowList"] != "*.example.com" {
		t.Error(p)
	}
	if used, err := w.s.VolumeUsed(ctx, "a", "data-id"); !used || err != nil {
		t.Error(used, err)
	}
	// An empty list is not no list: nothing may be reached.
	if sb = w.create(sandbox.Spec{NetworkAllowList: new(" ")}); !sb.NetworkBlockAll {
		t.Error("an empty list allows everything")
	}
	sb = w.create(sandbox.Spec{OutboundProxy: "http://u:geheim@proxy.example.com", Env: map[string]string{"HTTP_PROXY": "own"}})
	if _, p = w.last("CREATE_SANDBOX"); p["env"].(map[string]any)["HTTPS_PROXY"] != "http://u:geheim@proxy.example.com" || p["env"].(map[string]any)["HTTP_PROXY"] != "own" {
		t.Error(p)
	}
	if strings.Contains(sb.OutboundProxy, "geheim") {
		t.Error("the database has the password in the clear")
	}

	// Linked sandboxes go with their owner.
	if _, err := w.s.Delete(ctx, "a", "owner"); err != nil {
		t.Fatal(err)
	}
	w.settle()
	_, err = w.s.Get(ctx, "a", "linked")
	wants(t, err, daytona.ErrNotFound, "")
}

func TestBuildsAndPulls(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		events := make(chan struct{}, 1000)
		w := newWorld(t, db, func(c *sandbox.Config) {
			c.Event = func(ctx context.Context, _ sandbox.Event) error {
				store.After(ctx, func() { events <- struct{}{} })
				return nil
			}
		})
		ctx := t.Context()
		sb := w.create(sandbox.Spec{Name: "built", Build: &sandbox.SpecBuild{Dockerfile: "FROM x"}})
		if sb.State != sandbox.PendingBuild || sb.CPU != 1 || sb.Memory != 1 || sb.Disk != 3 || sb.Snapshot != "" {
			t.Fatalf("%+v", sb)
		}
		w.sweep()
		if sb = w.get(sb.ID); sb.State != sandbox.BuildingSnapshot {
			t.Fatal(sb.State)
		}
		w.mu.Lock()
		w.copies["r1 build-FROM x"] = sandbox.CopyReady
		w.mu.Unlock()
		w.sweep()
		if sb = w.get(sb.ID); sb.State != sandbox.Started {
			t.Fatal(sb.State)
		}
		if _, p := w.last("CREATE_SANDBOX"); p["snapshot"] != "build-FROM x" {
			t.Error(p)
		}
		// What is built already is not built again.
		if sb = w.create(sandbox.Spec{Build: &sandbox.SpecBuild{Dockerfile: "FROM x"}}); sb.State != sandbox.Started {
			t.Fatal(sb.State)
		}
		sb = w.create(sandbox.Spec{Name: "wrong", Build: &sandbox.SpecBuild{Dockerfile: "FROM y"}})
		w.sweep()
		w.mu.Lock()
		w.copies["r1 build-FROM y"] = sandbox.CopyFailed
		w.mu.Unlock()
		w.sweep()
		if sb = w.get(sb.ID); sb.State != sandbox.BuildFailed || sb.ErrorReason != "it could not be made" || sb.Pending {
			t.Fatalf("%+v", sb)
		}
		if _, err := w.s.Delete(ctx, "a", "wrong"); err != nil {
			t.Fatal(err)
		}
		w.settle()
		if sb = w.get(sb.ID); sb.State != sandbox.Destroyed {
			t.Error(sb.State)
		}
		// One that waits for a build can be deleted.
		w.create(sandbox.Spec{Name: "waits", Build: &sandbox.SpecBuild{Dockerfile: "FROM z"}})
		if sb, err := w.s.Delete(ctx, "a", "waits"); err != nil || sb.State != sandbox.Destroyed {
			t.Error(sb, err)
		}

		// No runner has the snapshot yet: one pulls it, and Run is told.
		run, stop := context.WithCancel(ctx)
		var ended sync.WaitGroup
		ended.Go(func() { w.s.Run(run) })
		defer ended.Wait()
		defer stop()
		var far *sandbox.Sandbox
		ended.Go(func() {
			var err error
			if far, err = w.s.Create(ctx, "a", sandbox.Spec{Snapshot: "far"}); err != nil {
				t.Error(err)
			}
			stop()
		})
		for {
			all, _, err := w.s.List(ctx, "a", sandbox.Filter{States: []sandbox.State{sandbox.PullingSnapshot}}, "")
			if err != nil {
				t.Fatal(err)
			}
			if len(all) == 1 {
				break
			}
			<-events
		}
		w.mu.Lock()
		w.copies["r1 far-ref"] = sandbox.CopyReady
		w.mu.Unlock()
		if err := db.Publish(ctx, sandbox.TopicWake, ""); err != nil {
			t.Fatal(err)
		}
		ended.Wait()
		if far == nil || far.State != sandbox.Started || far.CPU != 2 {
			t.Errorf("%+v", far)
		}
	})
}

func TestAutomatic(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		w := newWorld(t, db)
		ctx := t.Context()
		stops := w.create(sandbox.Spec{AutoStop: new(5), AutoArchive: new(60)})
		used := w.create(sandbox.Spec{AutoStop: new(5)})
		pauses := w.create(sandbox.Spec{AutoPause: new(5)})
		ephemeral := w.create(sandbox.Spec{AutoStop: new(5), AutoDelete: new(0)})
		lives := w.create(sandbox.Spec{AutoStop: new(0), TTL: new(30)})
		never := w.create(sandbox.Spec{AutoStop: new(0)})
		w.pass(4 * time.Minute)
		if err := w.s.Touch(ctx, "", used.ID); err != nil {
			t.Fatal(err)
		}
		w.sweep()
		for _, sb := range []*sandbox.Sandbox{stops, used, pauses, ephemeral, lives, never} {
			if got := w.get(sb.ID).State; got != sandbox.Started {
				t.Fatal(got)
			}
		}
		w.pass(90 * time.Second)
		// Not written yet, and counts all the same.
		w.sweep()
		state := func(sb *sandbox.Sandbox) sandbox.State { return w.get(sb.ID).State }
		if a, b, c, d := state(stops), state(used), state(pauses), state(ephemeral); a != sandbox.Stopped || b != sandbox.Started || c != sandbox.Paused || d != sandbox.Destroyed {
			t.Fatal(a, b, c, d)
		}
		if err := w.s.Flush(ctx); err != nil {
			t.Fatal(err)
		}
		if got := w.get(used.ID); !got.LastActivityAt.Equal(w.now.Add(-90 * time.Second)) {
			t.Error(got.LastActivityAt)
		}
		w.pass(4 * time.Minute)
		w.sweep()
		if got := state(used); got != sandbox.Stopped {
			t.Error(got)
		}
		w.pass(30 * time.Minute)
		w.sweep()
		if got := w.get(lives.ID); got.State != sandbox.Destroyed {
			t.Error(got.State)
		}
		w.pass(31 * time.Minute)
		w.sweep()
		w.sweep()
		if got := state(stops); got != sandbox.Archived {
			t.Error(got)
		}
		if got := state(used); got != sandbox.Stopped {
			t.Error(got)
		}
		if _, err := w.s.SetAutoDelete(ctx, "a", used.ID, 10); err != nil {
			t.Fatal(err)
		}
		w.sweep()
		if got := state(used); got != sandbox.Destroyed {
			t.Error(got)
		}
		// A started one is backed up now and then.
		if got := w.get(never.ID); got.State != sandbox.Started || got.Backup != sandbox.BackupCompleted {
			t.Error(got.State, got.Backup)
		}
	})
}

func TestLostRunner(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		w := newWorld(t, db)
		ctx := t.Context()
		saved := w.create(sandbox.Spec{Name: "saved", AutoStop: new(0)})
		if _, err := w.s.StartBackup(ctx, "a", "saved"); err != nil {
			t.Fatal(err)
		}
		w.settle()
		bare := w.create(sandbox.Spec{Name: "bare", AutoStop: new(0)})
		stopped := w.create(sandbox.Spec{Name: "stopped"})
		w.s.Stop(ctx, "a", "stopped", false)
		w.settle()
		w.auto = false
		w.c.Wait = time.Millisecond
		w.restart()
		young := w.create(sandbox.Spec{Name: "young"})
		doomed := w.create(sandbox.Spec{Name: "doomed"})
		w.finish(w.open()[1].ID, "")
		if _, err := w.s.Delete(ctx, "a", "doomed"); err != nil {
			t.Fatal(err)
		}
		late := w.open()
		w.auto = true
		w.addRunner("r2")
		w.setRunner("r1", func(r *sandbox.Runner) { r.Usable = false })
		w.pass(5 * time.Minute)
		w.sweep()
		if got := w.get(bare.ID); got.State != sandbox.Started {
			t.Fatal("five minutes are not lost:", got.State)
		}
		w.pass(6 * time.Minute)
		w.sweep()
		w.sweep()
		if got := w.get(saved.ID); got.State != sandbox.Started || got.RunnerID != "r2" {
			t.Error("saved:", got.State, got.RunnerID, got.ErrorReason)
		}
		if got := w.get(bare.ID); got.State != sandbox.Errored || got.RunnerID != "r1" || !got.Lost {
			t.Error("bare:", got.State, got.RunnerID)
		}
		if got := w.get(young.ID); got.State != sandbox.Started || got.RunnerID != "r2" {
			t.Error("young:", got.State, got.RunnerID)
		}
		if got := w.get(doomed.ID); got.State != sandbox.Destroyed {
			t.Error("doomed:", got.State)
		}
		if got := w.get(stopped.ID); got.State != sandbox.Stopped {
			t.Error("stopped:", got.State)
		}
		if got, err := w.s.Start(ctx, "a", "stopped"); err != nil {
			t.Error(err)
		} else if got = w.get(got.ID); got.RunnerID != "r2" {
			t.Errorf("%+v", got)
		}
		w.settle()
		// It comes back: what it had of others goes, what is its own goes on.
		w.setRunner("r1", func(r *sandbox.Runner) { r.Usable = true })
		w.pass(time.Second)
		for _, j := range late {
			w.finish(j.ID, "")
		}
		w.sweep()
		w.sweep()
		if got := w.get(bare.ID); got.State != sandbox.Started || got.RunnerID != "r1" || got.ErrorReason != "" {
			t.Error("bare:", got.State, got.RunnerID, got.ErrorReason)
		}
		var destroyed []string
		w.db.All(ctx).NewSelect().Model((*fakeJob)(nil)).Column("resource").Where("runner = 'r1' AND type = 'DESTROY_SANDBOX'").Order("resource").Scan(ctx, &destroyed)
		want := []string{saved.ID, young.ID, doomed.ID, stopped.ID}
		slices.Sort(want)
		if destroyed = slices.Compact(destroyed); !slices.Equal(destroyed, want) {
			t.Errorf("r1 was told to remove %v, not %v", destroyed, want)
		}
	})
}

func TestReport(t *testing.T) {
	db := storetest.Open(t, storetest.SQLite(t))
	w := newWorld(t, db)
	ctx := t.Context()
	sb := w.create(sandbox.Spec{Name: "x"})
	wants(t, w.s.Report(ctx, "r2", sb.ID, sandbox.Stopped, "", false), daytona.ErrNotFound, "")
	wants(t, w.s.Report(ctx, "", sb.ID, sandbox.Stopped, "", false), daytona.ErrNotFound, "")
	wants(t, w.s.Report(ctx, "r1", sb.ID, sandbox.Resizing, "", false), daytona.ErrInvalid, "")
	if err := w.s.Report(ctx, "r1", sb.ID, sandbox.Stopped, "", false); err != nil {
		t.Fatal(err)
	}
	if sb = w.get(sb.ID); sb.State != sandbox.Stopped || sb.Desired != sandbox.WantStopped || sb.Pending {
		t.Errorf("%+v", sb)
	}
	if err := w.s.Report(ctx, "r1", sb.ID, sandbox.Errored, "gone mad", true); err != nil {
		t.Fatal(err)
	}
	if sb = w.get(sb.ID); sb.State != sandbox.Errored || !sb.Recoverable || sb.ErrorReason != "gone mad" {
		t.Errorf("%+v", sb)
	}
	gone := w.create(sandbox.Spec{AutoDelete: new(0)})
	if err := w.s.Report(ctx, "r1", gone.ID, sandbox.Stopped, "", false); err != nil {
		t.Fatal(err)
	}
	w.settle()
	if gone = w.get(gone.ID); gone.State != sandbox.Destroyed {
		t.Error("an ephemeral one that stopped by itself is", gone.State)
	}
	for id, want := range map[string]int{"r1": 1, "r2": 0} {
		if all, err := w.s.OfRunner(ctx, id, nil, false); err != nil || len(all) != want {
			t.Error(id, all, err)
		}
	}
}

// Fifty at once on one sandbox: each is told the truth, and no two jobs are
// under way.
func TestConcurrent(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		w := newWorld(t, db)
		ctx := t.Context()
		sb := w.create(sandbox.Spec{Name: "x"})
		var wg sync.WaitGroup
		for i := range 50 {
			wg.Go(func() {
				var err error
				switch i % 5 {
				case 0:
					_, err = w.s.Stop(ctx, "a", sb.ID, false)
				case 1:
					_, err = w.s.Start(ctx, "a", sb.ID)
				case 2:
					_, err = w.s.Pause(ctx, "a", sb.ID)
				case 3:
					_, err = w.s.Resize(ctx, "a", sb.ID, sandbox.Resources{CPU: 2 + i})
				case 4:
					_, err = w.s.SetLabels(ctx, "a", sb.ID, map[string]string{"i": "x"})
				}
				if err != nil && !errors.Is(err, daytona.ErrConflict) && !errors.Is(err, daytona.ErrState) && !errors.Is(err, daytona.ErrInvalid) {
					t.Errorf("%d: %v", i%5, err)
				}
				if i%5 == 4 && err != nil {
					t.Errorf("labels: %v", err)
				}
			})
		}
		wg.Wait()
		w.settle()
		if sb = w.get(sb.ID); sb.Pending || sb.JobID != "" || sb.Labels["i"] != "x" {
			t.Errorf("%+v", sb)
		}
		if len(w.open()) != 0 {
			t.Error(w.open())
		}
	})
}

// A server that was away for long does not find that runners are lost, that
// steps took too long and that sandboxes are idle, because nobody could have
// told it otherwise.
func TestServerWasAway(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		w := newWorld(t, db, func(c *sandbox.Config) { c.Wait = time.Millisecond })
		started := w.create(sandbox.Spec{})
		w.settle()
		w.auto = false
		starting := w.create(sandbox.Spec{})
		w.setRunner("r1", func(r *sandbox.Runner) { r.Usable = false })
		away := func(d time.Duration, want, of sandbox.State) {
			t.Helper()
			w.sweep()
			if got := w.get(started.ID); got.State != want || got.Lost != (want == sandbox.Errored) {
				t.Errorf("after %s: %s, %s", d, got.State, got.ErrorReason)
			}
			if got := w.get(starting.ID); got.State != of {
				t.Errorf("after %s: %s, %s", d, got.State, got.ErrorReason)
			}
		}
		w.pass(time.Hour)
		w.restart()
		away(0, sandbox.Started, sandbox.Creating)
		w.pass(9 * time.Minute)
		away(9*time.Minute, sandbox.Started, sandbox.Creating)
		// Now it is the runner that is away.
		w.pass(2 * time.Minute)
		away(11*time.Minute, sandbox.Errored, sandbox.Unknown)
	})
}

// archiving makes a sandbox that waits for its backup, to be archived; nothing
// goes on by itself from then on.
func (w *world) archiving() (sb *sandbox.Sandbox, backup fakeJob, payload map[string]any) {
	w.t.Helper()
	sb = w.create(sandbox.Spec{})
	w.settle()
	if _, err := w.s.Stop(w.t.Context(), "a", sb.ID, false); err != nil {
		w.t.Fatal(err)
	}
	w.settle()
	w.auto = false
	if _, err := w.s.Archive(w.t.Context(), "a", sb.ID); err != nil {
		w.t.Fatal(err)
	}
	backup, payload = w.last("CREATE_BACKUP")
	return sb, backup, payload
}

// A backup that nobody waits for any more does not stay on its runner.
func TestBackupThatNobodyWaitsFor(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		w := newWorld(t, db, func(c *sandbox.Config) { c.Wait = time.Millisecond; c.BackupEvery = -1 })
		ctx := t.Context()
		sb, backup, payload := w.archiving()
		if _, err := w.s.Start(ctx, "a", sb.ID); err != nil {
			t.Fatal(err)
		}
		start, _ := w.last("START_SANDBOX")
		if err := w.finish(start.ID, ""); err != nil {
			t.Fatal(err)
		}
		if got := w.get(sb.ID); got.State != sandbox.Started {
			t.Fatal(got.State)
		}
		end := func(ref string) {
			t.Helper()
			if err := w.s.JobDone(ctx, sandbox.Job{ID: backup.ID, Type: backup.Type, RunnerID: "r1", ResourceType: "SANDBOX", ResourceID: sb.ID, Done: true, Result: `{"ref":"` + ref + `"}`}); err != nil {
				t.Fatal(err)
			}
		}
		removed := func() (n int) {
			for _, j := range w.open() {
				if j.Type == "REMOVE_SNAPSHOT" && j.Runner == "r1" && j.Resource == payload["snapshot"] {
					n++
				}
			}
			return n
		}
		end("daytona-of-somebody-else")
		if removed() != 0 {
			t.Error(w.open())
		}
		end(payload["snapshot"].(string))
		if removed() != 1 {
			t.Errorf("%s is still there: %v", payload["snapshot"], w.open())
		}
	})
}

// A backup that is ready when its sandbox has been destroyed is not kept.
func TestBackupOfWhatIsDestroyed(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		w := newWorld(t, db, func(c *sandbox.Config) { c.Wait = time.Millisecond; c.BackupEvery = -1 })
		w.setRunner("r1", func(r *sandbox.Runner) {
			r.Capabilities = slices.DeleteFunc(r.Capabilities, func(c sandbox.Capability) bool { return c == sandbox.CanMove })
		})
		ctx := t.Context()
		sb, backup, payload := w.archiving()
		if _, err := w.s.Delete(ctx, "a", sb.ID); err != nil {
			t.Fatal(err)
		}
		destroy, _ := w.last("DESTROY_SANDBOX")
		for _, j := range []fakeJob{destroy, backup} {
			if err := w.finish(j.ID, ""); err != nil {
				t.Fatal(err)
			}
		}
		if got := w.get(sb.ID); got.State != sandbox.Destroyed || got.BackupRef != "" {
			t.Error(got.State, got.BackupRef)
		}
		if jobs := w.open(); len(jobs) != 1 || jobs[0].Type != "REMOVE_SNAPSHOT" || jobs[0].Resource != payload["snapshot"] {
			t.Errorf("%s stays: %v", payload["snapshot"], jobs)
		}
	})
}
