package snapshot_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/wire"
	"github.com/daytona-go/daytona/server/snapshot"
	"github.com/daytona-go/daytona/server/store"
	"github.com/daytona-go/daytona/server/store/storetest"
)

// What a client may not ask for, and what it is told.
func TestCreateRules(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		e := start(t, db)
		e.limits = snapshot.Limits{CPU: 4, Memory: 8, Disk: 10}
		e.suspend["suspended"] = true
		e.create("org", create{"name": "taken", "imageName": "ubuntu:22.04"})
		build := create{"dockerfileContent": "FROM ubuntu:22.04\n"}
		for name, x := range map[string]struct {
			bearer string
			body   any
			status int
			msg    string
		}{
			"no name":             {"org", create{"imageName": "a:1"}, 400, "name"},
			"a bad name":          {"org", create{"name": "a b", "imageName": "a:1"}, 400, "Invalid snapshot name"},
			"HTML":                {"org", create{"name": "<b>", "imageName": "a:1"}, 400, "Invalid snapshot name"},
			"a path":              {"org", create{"name": "../x", "imageName": "a:1"}, 400, "Invalid snapshot name"},
			"a long name":         {"org", create{"name": strings.Repeat("n", 256), "imageName": "a:1"}, 400, "Invalid snapshot name"},
			"taken":               {"org", create{"name": "taken", "imageName": "a:1"}, 409, `Snapshot with name "taken" already exists for this organization`},
			"no image":            {"org", create{"name": "x"}, 400, "image name or build"},
			"both":                {"org", create{"name": "x", "imageName": "a:1", "buildInfo": build}, 400, "not both"},
			"no tag":              {"org", create{"name": "x", "imageName": "ubuntu"}, 400, "Image name must include a tag (e.g., ubuntu:22.04) or digest (@sha256:...)"},
			"a port, no tag":      {"org", create{"name": "x", "imageName": "reg.example.com:5000/ubuntu"}, 400, "must include a tag"},
			"latest":              {"org", create{"name": "x", "imageName": "ubuntu:latest"}, 400, `Images with tag ":latest" are not allowed`},
			"a short digest":      {"org", create{"name": "x", "imageName": "ubuntu@sha256:abc"}, 400, "Invalid image name"},
			"a space":             {"org", create{"name": "x", "imageName": "ubuntu: 1"}, 400, "Invalid image name"},
			"the metadata server": {"org", create{"name": "x", "imageName": "169.254.169.254/x:1"}, 400, "reachable from the internet"},
			"this machine":        {"org", create{"name": "x", "imageName": "localhost:5000/x:1"}, 400, "reachable from the internet"},
			"windows":             {"org", create{"name": "x", "imageName": "a:1", "sandboxClass": "windows"}, 400, "windows"},
			"no runner of class":  {"org", create{"name": "x", "imageName": "a:1", "sandboxClass": "linux-vm"}, 400, "No available runners"},
			"an unknown class":    {"org", create{"name": "x", "imageName": "a:1", "sandboxClass": "vax"}, 400, "sandboxClass"},
			"another region":      {"org", create{"name": "x", "imageName": "a:1", "regionId": "mars"}, 403, "mars"},
			"no region":           {"homeless", create{"name": "x", "imageName": "a:1"}, 400, "This organization does not have a default region."},
			"suspended":           {"suspended", create{"name": "x", "imageName": "a:1"}, 403, "Organization is suspended: unpaid"},
			"cpu":                 {"org", create{"name": "x", "imageName": "a:1", "cpu": 5}, 400, "CPU request 5 exceeds maximum allowed per sandbox (4)."},
			"memory":              {"org", create{"name": "x", "imageName": "a:1", "memory": 9}, 400, "Memory request 9GB exceeds maximum allowed per sandbox (8GB)."},
			"disk":                {"org", create{"name": "x", "imageName": "a:1", "disk": 11}, 400, "Disk request 11GB exceeds maximum allowed per sandbox (10GB)."},
			"no cpu":              {"org", create{"name": "x", "imageName": "a:1", "cpu": 0}, 400, "cpu"},
			"negative":            {"org", create{"name": "x", "imageName": "a:1", "memory": -1}, 400, "memory"},
			"two GPUs":            {"org", create{"name": "x", "imageName": "a:1", "gpu": 2}, 400, "gpu"},
			"two types of GPU":    {"org", create{"name": "x", "imageName": "a:1", "gpu": 1, "gpuType": []string{"H100", "H200"}}, 400, "At most one gpuType"},
			"no FROM":             {"org", create{"name": "x", "buildInfo": create{"dockerfileContent": "RUN true"}}, 400, "no FROM"},
			"no Dockerfile":       {"org", create{"name": "x", "buildInfo": create{"dockerfileContent": ""}}, 400, "Dockerfile"},
			"a hash that climbs":  {"org", create{"name": "x", "buildInfo": create{"dockerfileContent": "FROM a", "contextHashes": []string{"../../b"}}}, 400, "Invalid context hash"},
			"a large Dockerfile":  {"org", create{"name": "x", "buildInfo": create{"dockerfileContent": "FROM a\n#" + strings.Repeat("x", 1<<20)}}, 400, "at most"},
			"many arguments":      {"org", create{"name": "x", "imageName": "a:1", "entrypoint": make([]string, 1001)}, 400, "entrypoint"},
			"no JSON":             {"org", "{", 400, ""},
			"no permission":       {"org/write:sandboxes", create{"name": "x", "imageName": "a:1"}, 403, "Access denied"},
		} {
			status, msg := e.call(x.bearer, "POST", "/snapshots", x.body, nil)
			if status != x.status || !strings.Contains(msg, x.msg) {
				t.Errorf("%s: %d %q", name, status, msg)
			}
		}
		// What is good.
		for i, image := range []string{"ubuntu:22.04", "reg.example.com:5000/a/b:v1.2", "a/b@" + digest, "ghcr.io/x/y:latest-1", "a:1@" + digest} {
			e.create("org", create{"name": fmt.Sprintf("good-%d", i), "imageName": image})
		}
		var page wire.PaginatedSnapshots
		e.call("org", "GET", "/snapshots", nil, &page)
		if page.Total != 6 {
			t.Errorf("%v snapshots", page.Total)
		}
	})
}

// From an image: pending, pulling, active, with what the runner says of it.
func TestFromImage(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		e := start(t, db)
		s := e.create("org", create{"name": "team/img:1", "imageName": "private.example.com:443/img:1", "cpu": 2, "memory": 4, "disk": 5})
		if s.State != "pending" || s.Size != nil || s.ErrorReason != nil || *s.OrganizationID != "org" || s.CPU != 2 || s.Mem != 4 || s.Disk != 5 || s.LastUsedAt != nil || s.General {
			t.Fatalf("%+v", s)
		}
		if !strings.HasPrefix(*s.Ref, "org/daytona-") || !strings.HasSuffix(*s.Ref, ":daytona") {
			t.Fatalf("ref %s", *s.Ref)
		}
		e.reconcile()
		if got := e.get("org", "team%2Fimg:1"); got.State != "pulling" || *got.InitialRunnerID != "r1" {
			t.Fatalf("%+v", got)
		}
		x := e.only("PULL_SNAPSHOT")
		if x.RunnerID != "r1" || x.Ref != *s.Ref || x.payload["snapshot"] != "private.example.com:443/img:1" || x.payload["newTag"] != *s.Ref {
			t.Fatalf("%+v %v", x.Job, x.payload)
		}
		e.reconcile()
		e.only("PULL_SNAPSHOT") // no second one
		if _, err := e.Resolve(t.Context(), "org", "us", "team/img:1"); err == nil || err.Error() != "Snapshot team/img:1 is pulling" {
			t.Fatal(err)
		}
		e.end(x, "", done)
		got := e.get("org", s.ID)
		if got.State != "active" || *got.Size != 1.5 || !slices.Equal(got.Entrypoint, []string{"/init"}) || !slices.Equal(got.RegionIds, []string{"us"}) {
			t.Fatalf("%+v", got)
		}
		e.end(x, "late", "") // a second report changes nothing
		if got := e.get("org", s.ID); got.State != "active" {
			t.Fatalf("%+v", got)
		}
		r, err := e.Resolve(t.Context(), "org", "us", "team/img:1")
		if err != nil || r.Ref != *s.Ref || r.CPU != 2 {
			t.Fatalf("%+v %v", r, err)
		}
		if got := e.get("org", s.ID); got.LastUsedAt == nil {
			t.Error("its use is not noted")
		}
		ready, err := e.Ready(t.Context(), *s.Ref)
		if err != nil || !slices.Equal(ready, []string{"r1"}) {
			t.Fatalf("%v %v", ready, err)
		}
		// A second runner gets exactly what the first has.
		c, err := e.Ensure(t.Context(), "r2", *s.Ref)
		if err != nil || c.State != snapshot.CopyPulling {
			t.Fatalf("%+v %v", c, err)
		}
		if x := e.only("PULL_SNAPSHOT"); x.RunnerID != "r2" || x.payload["snapshot"] != "private.example.com:443/img@"+digest {
			t.Fatalf("%+v %v", x.Job, x.payload)
		}
		if _, err := e.Ensure(t.Context(), "r2", *s.Ref); err != nil {
			t.Fatal(err)
		}
		e.end(e.only("PULL_SNAPSHOT"), "no space", "")
		if c, err := e.CopyOf(t.Context(), "r2", *s.Ref); err != nil || c.State != snapshot.CopyError || c.Reason != "no space" {
			t.Fatalf("%+v %v", c, err)
		}
		if got := e.get("org", s.ID); got.State != "active" {
			t.Fatalf("another copy failed, and it is %s", got.State)
		}
		want := []string{"snapshot.created team/img:1 pending", "snapshot.state.updated team/img:1 pulling", "snapshot.state.updated team/img:1 active"}
		if !slices.Equal(e.events, want) || e.changed == 0 {
			t.Errorf("%q, %d", e.events, e.changed)
		}
	})
}

// From a Dockerfile: pending, building, active; equal content is built once.
func TestFromBuild(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		e := start(t, db)
		file := "FROM private.example.com/base:1 AS b\nFROM b\nCOPY a /a\nENTRYPOINT [\"/bin/app\", \"-v\"]\n"
		body := func(name string, hashes ...string) create {
			return create{"name": name, "buildInfo": create{"dockerfileContent": file, "contextHashes": hashes}}
		}
		s := e.create("org", body("one", "h2", "h1"))
		if s.State != "pending" || s.ImageName != nil || s.BuildInfo == nil || *s.BuildInfo.DockerfileContent != file || s.BuildInfo.SnapshotRef != *s.Ref ||
			!slices.Equal(s.Entrypoint, []string{"/bin/app", "-v"}) {
			t.Fatalf("%+v", s)
		}
		e.reconcile()
		if got := e.get("org", "one"); got.State != "building" {
			t.Fatal(got.State)
		}
		x := e.only("BUILD_SNAPSHOT")
		if p := x.payload; p["dockerfile"] != file || p["organizationId"] != "org" || fmt.Sprint(p["context"]) != "[h2 h1]" ||
			fmt.Sprint(p["contextUrls"]) != "[https://objects/org/h2 https://objects/org/h1]" || !strings.Contains(fmt.Sprint(p["sourceRegistries"]), "private.example.com") {
			t.Fatalf("%v", p)
		}
		// The same content in another order is the same build, while it runs and
		// when it has ended; another organization's is another one.
		two, other := e.create("org", body("two", "h1", "h2")), e.create("other", body("two", "h1", "h2"))
		if *two.Ref != *s.Ref || *other.Ref == *s.Ref {
			t.Fatalf("%s %s %s", *s.Ref, *two.Ref, *other.Ref)
		}
		e.reconcile()
		if n := len(e.open()); n != 2 {
			t.Fatalf("%d builds", n)
		}
		e.end(x, "", done)
		for _, name := range []string{"one", "two"} {
			if got := e.get("org", name); got.State != "active" || *got.Size != 1.5 {
				t.Errorf("%s is %s", name, got.State)
			}
		}
		e.end(e.only("BUILD_SNAPSHOT"), "RUN failed: exit code 1", "")
		if got := e.get("other", "two"); got.State != "error" || *got.ErrorReason != "RUN failed: exit code 1" {
			t.Errorf("%+v", got)
		}
		three := e.create("org", body("three", "h2", "h1"))
		if three.State != "pending" {
			t.Errorf("%s: clients must see pending first", three.State)
		}
		e.reconcile()
		if got := e.get("org", "three"); got.State != "active" || *got.Size != 1.5 || len(e.open()) != 0 {
			t.Errorf("%+v, %d jobs", got, len(e.open()))
		}
		// A build that can't even begin.
		e.create("org", create{"name": "four", "buildInfo": create{"dockerfileContent": "FROM forbidden.example.com/x:1"}})
		e.reconcile()
		if got := e.get("org", "four"); got.State != "build_failed" || *got.ErrorReason != "not yours" {
			t.Errorf("%+v", got)
		}
		own := e.create("org", create{"name": "own", "entrypoint": []string{"x"}, "buildInfo": create{"dockerfileContent": file}})
		if !slices.Equal(own.Entrypoint, []string{"x"}) {
			t.Errorf("%q", own.Entrypoint)
		}
		// A sandbox's build is the same thing.
		b, entrypoint, err := e.Declare(t.Context(), "org", file, []string{"h1", "h2"})
		if err != nil || b.Ref != *s.Ref || len(entrypoint) != 2 {
			t.Errorf("%+v %v", b, err)
		}
	})
}

// The ref of a build is a promise: what was built before an update is found
// after it.
func TestBuildRef(t *testing.T) {
	t.Parallel()
	// printf 'FROM alpine:3.20\nh1h2' | sha256sum
	const want = "org/daytona-8241a5835318bd99439b78f584d141e35739032e4f6468e640495c6cbd00105e:daytona"
	got := snapshot.BuildRef("org", "FROM alpine:3.20\n", []string{"h2", "h1"})
	if got != want {
		t.Errorf("%s", got)
	}
	if snapshot.BuildRef("org", "FROM alpine:3.20\n", []string{"h1", "h2"}) != got || snapshot.BuildRef("org", "FROM alpine:3.20\n", []string{"h1"}) == got {
		t.Error("the order of hashes matters, or the hashes do not")
	}
}

func TestEntrypoint(t *testing.T) {
	t.Parallel()
	for file, want := range map[string][]string{
		"FROM a":                              {"sleep", "infinity"},
		"FROM a\nENTRYPOINT [\"x\", \"y z\"]": {"x", "y z"},
		"FROM a\nENTRYPOINT x y":              {"x y"},
		"from a\nentrypoint [\"x\"]\nENTRYPOINT [ \"y\" ]":       {"y"},
		"FROM a\nENTRYPOINT x \\\n  # comment\n  y":              {"x   y"},
		"FROM a\nENTRYPOINT []":                                  {"sleep", "infinity"},
		"FROM a\nRUN <<E\nENTRYPOINT no\nE\nENTRYPOINT [\"ok\"]": {"ok"},
		"# escape=`\nFROM a\nENTRYPOINT [\"c:\\\\x\"]":           {`c:\x`},
	} {
		got, err := snapshot.Entrypoint(file)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %q %v", file, got, err)
		}
	}
	for _, file := range []string{"", "RUN x", "# only a comment", "FROM a\nRUN <<E\nx"} {
		if got, err := snapshot.Entrypoint(file); !errors.Is(err, daytona.ErrInvalid) {
			t.Errorf("%q: %q %v", file, got, err)
		}
	}
}

// Whatever is lost, repeated or late: in the end everything has settled.
func TestAnyOrder(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		for seed := range uint64(4) {
			e := start(t, db)
			rng := rand.New(rand.NewPCG(seed, 1))
			org := fmt.Sprintf("org-%d", seed)
			var ids []string
			for step := 0; step < 60; step++ {
				switch rng.IntN(7) {
				case 0:
					c := create{"name": fmt.Sprintf("s%d", step), "imageName": fmt.Sprintf("img:%d", step)}
					if rng.IntN(2) == 0 {
						c = create{"name": fmt.Sprintf("s%d", step), "buildInfo": create{"dockerfileContent": fmt.Sprintf("FROM a:%d", rng.IntN(3))}}
					}
					ids = append(ids, e.create(org, c).ID)
				case 1, 2:
					e.reconcile()
				case 3, 4:
					if open := e.open(); len(open) > 0 {
						failure := ""
						if rng.IntN(4) == 0 {
							failure = "it failed"
						}
						e.end(open[rng.IntN(len(open))], failure, done)
					}
				case 5:
					if len(ids) > 0 {
						e.call(org, "DELETE", "/snapshots/"+ids[rng.IntN(len(ids))], nil, nil)
					}
				case 6:
					if len(e.jobs) > 0 { // once more
						x := e.jobs[rng.IntN(len(e.jobs))]
						if x.ended {
							e.end(x, "again", "")
						}
					}
				}
			}
			for range 4 {
				e.reconcile()
				for _, x := range e.open() {
					e.end(x, "", done)
				}
			}
			var page wire.PaginatedSnapshots
			if status, msg := e.call(org, "GET", "/snapshots", nil, &page); status != 200 {
				t.Fatal(msg)
			}
			wanted := map[string]bool{}
			for _, s := range page.Items {
				if s.State != "active" && s.State != "error" {
					t.Errorf("seed %d: %s is still %s", seed, s.Name, s.State)
				}
				if s.State == "active" {
					wanted[*s.Ref] = true
					if ready, err := e.Ready(t.Context(), *s.Ref); err != nil || len(ready) == 0 {
						t.Errorf("seed %d: %s is active and nowhere: %v", seed, s.Name, err)
					}
				}
			}
			// A day later nothing is left that nobody wants.
			e.wait(25 * time.Hour)
			for range 3 {
				e.reconcile()
				for _, x := range e.open() {
					e.end(x, "", done)
				}
			}
			for _, runner := range []string{"r1", "r2", "r3"} {
				copies, err := e.Refs(t.Context(), runner)
				if err != nil {
					t.Fatal(err)
				}
				for _, c := range copies {
					if strings.HasPrefix(c.Ref, org+"/") && !wanted[c.Ref] {
						t.Errorf("seed %d: %s has %s, %s", seed, runner, c.Ref, c.State)
					}
				}
			}
		}
	})
}

// A quota holds, however many ask at once.
func TestQuota(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		e := start(t, db)
		e.limits.Snapshots = 3
		var wg sync.WaitGroup
		results := make([]string, 8)
		for i := range results {
			wg.Go(func() {
				status, msg := e.call("org", "POST", "/snapshots", create{"name": fmt.Sprintf("s%d", i), "imageName": "a:1"}, nil)
				results[i] = fmt.Sprint(status)
				if status != 200 {
					results[i] += " " + msg
				}
			})
		}
		wg.Wait()
		slices.Sort(results)
		if results[2] != "200" || results[3] != "400 Snapshot quota exceeded. Maximum allowed: 3" {
			t.Fatalf("%q", results)
		}
		if err := e.Free(t.Context(), "org", "new"); !errors.Is(err, daytona.ErrInvalid) {
			t.Error(err)
		}
		if err := e.Free(t.Context(), "other", "new"); err != nil {
			t.Error(err)
		}
		// One that failed does not count.
		e.reconcile()
		e.end(e.open()[0], "no such image", "")
		e.create("org", create{"name": "next", "imageName": "a:1"})
		// One that is too large fails.
		e.limits.Snapshots, e.limits.SizeGB = 0, 1
		s := e.create("org", create{"name": "large", "imageName": "a:1"})
		e.reconcile()
		for _, x := range e.open() {
			if x.Ref == *s.Ref {
				e.end(x, "", done)
			}
		}
		if got := e.get("org", "large"); got.State != "error" || !strings.Contains(*got.ErrorReason, "size (1.50GB) exceeds maximum allowed size of 1GB") {
			t.Errorf("%+v", got)
		}
	})
}

// Another organization's snapshots are not there; general ones are everybody's
// to use and nobody's to change.
func TestIsolation(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		e := start(t, db)
		s, g := e.active("a", "mine"), e.active("admin", "general")
		var out wire.Snapshot
		if status, msg := e.call("a", "PATCH", "/admin/snapshots/"+g.ID+"/general", create{"general": true}, nil); status != 403 {
			t.Fatalf("%d %s", status, msg)
		}
		if status, msg := e.call("admin", "PATCH", "/admin/snapshots/"+g.ID+"/general", create{"general": true}, &out); status != 200 || !out.General {
			t.Fatalf("%d %s", status, msg)
		}
		for _, x := range []struct {
			method, path string
			status       int
			msg          string
		}{
			{"GET", s.ID, 404, "Snapshot " + s.ID + " not found"},
			{"GET", "mine", 404, "Snapshot mine not found"},
			{"DELETE", s.ID, 404, ""},
			{"DELETE", g.ID, 403, "general"},
			{"DELETE", g.Name, 404, ""},
			{"POST", s.ID + "/activate", 404, ""},
			{"POST", s.ID + "/deactivate", 404, ""},
			{"POST", g.ID + "/deactivate", 404, ""},
			{"GET", s.ID + "/build-logs", 404, ""},
			{"GET", s.ID + "/build-logs-url", 404, ""},
			{"GET", g.ID, 200, ""},
			{"GET", "general", 200, ""},
		} {
			if status, msg := e.call("b", x.method, "/snapshots/"+x.path, nil, nil); status != x.status || !strings.Contains(msg, x.msg) {
				t.Errorf("%s %s: %d %s", x.method, x.path, status, msg)
			}
		}
		if _, err := e.Resolve(t.Context(), "b", "us", "mine"); err == nil || err.Error() != "Snapshot mine not found. Did you add it through the Daytona Dashboard?" {
			t.Error(err)
		}
		if r, err := e.Resolve(t.Context(), "b", "us", "general"); err != nil || r.ID != g.ID {
			t.Error(err)
		}
		if _, err := e.Resolve(t.Context(), "b", "eu", "general"); err == nil || err.Error() != "Snapshot general is not available in region eu" {
			t.Error(err)
		}
		// One's own is meant before a general one of the same name.
		own := e.active("b", "general")
		if r, err := e.Resolve(t.Context(), "b", "us", "general"); err != nil || r.ID != own.ID {
			t.Error(err)
		}
		if status, _ := e.call("a", "GET", "/admin/snapshots/can-cleanup-image?imageName=x", nil, nil); status != 403 {
			t.Error(status)
		}
		for image, want := range map[string]string{"example.com/img:1": "false", *s.Ref: "false", "nobody:1": "true"} {
			if _, got := e.call("admin", "GET", "/admin/snapshots/can-cleanup-image?imageName="+url.QueryEscape(image), nil, nil); got != want {
				t.Errorf("%s: %s", image, got)
			}
		}
	})
}

func TestList(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		e := start(t, db)
		for _, name := range []string{"banana", "apple", "Cherry_1", "cherry-2"} {
			e.active("org", name)
			e.wait(time.Second)
		}
		if err := e.Bootstrap(t.Context(), "admin", "aaa-general", ""); err != nil {
			t.Fatal(err)
		}
		if err := e.Bootstrap(t.Context(), "admin", "aaa-general", ""); err != nil {
			t.Fatalf("a second time: %v", err)
		}
		hidden, err := e.Create(t.Context(), snapshot.Request{OrganizationID: "admin", Name: "hidden", Image: "a:1", General: true, Hidden: true})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := e.Resolve(t.Context(), "org", "us", "banana"); err != nil {
			t.Fatal(err)
		}
		if err := e.Captured(t.Context(), snapshot.Capture{OrganizationID: "org", Name: "of-sandbox", SandboxID: "sb-1", RunnerID: "r2", RegionID: "us", Ref: snapshot.CaptureRef("org"), SizeGB: 2, CPU: 1, Memory: 1, Disk: 3}); err != nil {
			t.Fatal(err)
		}
		for query, want := range map[string]string{
			"":                                  "banana of-sandbox cherry-2 Cherry_1 apple aaa-general 6/1",
			"?sort=createdAt&order=asc":         "banana apple Cherry_1 cherry-2 of-sandbox aaa-general 6/1",
			"?sort=name&order=desc&name=cherry": "cherry-2 Cherry_1 2/1",
			"?name=CHERRY_":                     "Cherry_1 1/1",
			"?name=%25":                         " 0/0",
			"?sourceSandboxId=sb-1":             "of-sandbox 1/1",
			"?limit=4&page=2":                   "apple aaa-general 6/2",
			"?limit=4&page=3":                   " 6/2",
		} {
			var page wire.PaginatedSnapshots
			if status, msg := e.call("org", "GET", "/snapshots"+query, nil, &page); status != 200 {
				t.Fatalf("%s: %s", query, msg)
			}
			var names []string
			for _, s := range page.Items {
				names = append(names, s.Name)
			}
			if strings.Contains(query, "sort=name") {
				slices.Sort(names) // databases differ on what comes first of "C" and "c"
				slices.Reverse(names)
			}
			if got := fmt.Sprintf("%s %v/%v", strings.Join(names, " "), page.Total, page.TotalPages); got != want {
				t.Errorf("%q: %s, want %s", query, got, want)
			}
			if page.Items == nil {
				t.Errorf("%q: null in the place of no items", query)
			}
		}
		for _, query := range []string{"?limit=0", "?limit=201", "?page=0", "?sort=size", "?order=up"} {
			if status, msg := e.call("org", "GET", "/snapshots"+query, nil, nil); status != 400 {
				t.Errorf("%s: %d %s", query, status, msg)
			}
		}
		if got := e.get("org", hidden.ID); got.Name != "hidden" {
			t.Error("a hidden one can't be named")
		}
	})
}

func TestActivation(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		e := start(t, db)
		s := e.active("org", "s")
		expect := func(method, path string, status int, msg string) {
			t.Helper()
			if got, text := e.call("org", method, "/snapshots/"+s.ID+path, nil, nil); got != status || !strings.Contains(text, msg) {
				t.Fatalf("%s %s: %d %s", method, path, got, text)
			}
		}
		expect("POST", "/activate", 400, "already active")
		expect("POST", "/deactivate", 204, "")
		expect("POST", "/deactivate", 204, "")
		if got := e.get("org", "s"); got.State != "inactive" {
			t.Fatal(got.State)
		}
		if _, err := e.Resolve(t.Context(), "org", "us", "s"); err == nil || err.Error() != "Snapshot s is inactive" {
			t.Fatal(err)
		}
		// A sandbox that is yet to be made keeps the copy.
		e.needed[*s.Ref] = true
		e.reconcile()
		if n := len(e.open()); n != 0 {
			t.Fatalf("%d jobs", n)
		}
		delete(e.needed, *s.Ref)
		e.reconcile()
		e.end(e.only("REMOVE_SNAPSHOT"), "", "")
		if c, err := e.CopyOf(t.Context(), "r1", *s.Ref); c != nil || err != nil {
			t.Fatalf("%+v %v", c, err)
		}
		expect("POST", "/activate", 400, "Snapshot deactivation is still in progress")
		e.wait(9 * time.Minute)
		expect("POST", "/activate", 400, "Snapshot deactivation is still in progress")
		e.wait(2 * time.Minute)
		e.limits.Snapshots = 1
		e.create("org", create{"name": "another", "imageName": "a:1"})
		expect("POST", "/activate", 400, "Snapshot quota exceeded. Maximum allowed: 1")
		e.limits.Snapshots = 0
		e.suspend["org"] = true
		expect("POST", "/activate", 403, "Organization is suspended")
		e.suspend["org"] = false
		expect("POST", "/activate", 200, `"state":"pending"`)
		e.reconcile()
		for _, x := range e.open() {
			if x.Ref == *s.Ref {
				if x.payload["snapshot"] != "example.com/img@"+digest {
					t.Errorf("it fetches %v", x.payload["snapshot"])
				}
				e.end(x, "", done)
			}
		}
		if got := e.get("org", "s"); got.State != "active" {
			t.Fatal(got.State)
		}
		// Idle for two weeks; one that is used is not idle.
		e.wait(10 * 24 * time.Hour)
		if _, err := e.Resolve(t.Context(), "org", "us", "s"); err != nil {
			t.Fatal(err)
		}
		e.wait(10 * 24 * time.Hour)
		e.reconcile()
		if got := e.get("org", "s"); got.State != "active" {
			t.Fatal(got.State)
		}
		e.wait(5 * 24 * time.Hour)
		e.reconcile()
		if got := e.get("org", "s"); got.State != "inactive" {
			t.Fatal(got.State)
		}
		e.active("org", "t")
		if err := e.DeactivateAll(t.Context(), "org"); err != nil {
			t.Fatal(err)
		}
		if got := e.get("org", "t"); got.State != "inactive" {
			t.Fatal(got.State)
		}
	})
}

func TestDelete(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		e := start(t, db)
		s := e.active("org", "s")
		if status, body := e.call("org", "DELETE", "/snapshots/s", nil, nil); status != 404 {
			t.Fatalf("by name: %d %s", status, body)
		}
		if status, body := e.call("org", "DELETE", "/snapshots/"+s.ID, nil, nil); status != 200 || body != "" {
			t.Fatalf("%d %q", status, body)
		}
		if got := e.get("org", s.ID); got.State != "removing" {
			t.Fatal(got.State)
		}
		e.reconcile()
		if status, _ := e.call("org", "GET", "/snapshots/"+s.ID, nil, nil); status != 404 {
			t.Fatal(status)
		}
		e.create("org", create{"name": "s", "imageName": "a:2"}) // the name is free
		if !slices.Contains(e.events, "snapshot.removed s removing") {
			t.Errorf("%q", e.events)
		}
		// The runner that can't remove it now is asked again later, one that is
		// away when it is back.
		remove := func() *job {
			for _, x := range e.open() {
				if x.Type == "REMOVE_SNAPSHOT" && x.Ref == *s.Ref {
					return x
				}
			}
			return nil
		}
		e.reconcile()
		x := remove()
		if x == nil {
			t.Fatal("the copy stays")
		}
		e.end(x, "busy", "")
		e.reconcile()
		if remove() != nil {
			t.Fatal("it is asked again at once")
		}
		e.wait(11 * time.Minute)
		delete(e.usable, "r1")
		e.reconcile()
		if remove() != nil {
			t.Fatal("a runner that is away is asked")
		}
		e.usable["r1"] = "us"
		e.reconcile()
		e.end(remove(), "", "")
		if copies, err := e.Copies(t.Context(), *s.Ref); err != nil || len(copies) != 0 {
			t.Fatalf("%v %v", copies, err)
		}
		// While it is being made, and one that shares its build.
		a := e.create("org", create{"name": "a", "buildInfo": create{"dockerfileContent": "FROM x"}})
		b := e.create("org", create{"name": "b", "buildInfo": create{"dockerfileContent": "FROM x"}})
		e.reconcile()
		e.call("org", "DELETE", "/snapshots/"+a.ID, nil, nil)
		e.reconcile()
		for _, x := range e.open() {
			e.end(x, "", done)
		}
		e.wait(48 * time.Hour)
		e.reconcile()
		if got := e.get("org", "b"); got.State != "active" || remove() != nil {
			t.Errorf("%+v", got)
		}
		if ready, err := e.Ready(t.Context(), *b.Ref); err != nil || len(ready) != 1 {
			t.Errorf("%v %v", ready, err)
		}
	})
}

// Runners that never answer, and runners that go.
func TestLoss(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		e := start(t, db)
		e.create("org", create{"name": "slow", "imageName": "a:1"})
		e.reconcile()
		e.wait(59 * time.Minute)
		e.reconcile()
		if got := e.get("org", "slow"); got.State != "pulling" {
			t.Fatal(got.State)
		}
		e.wait(2 * time.Minute)
		e.reconcile()
		if got := e.get("org", "slow"); got.State != "error" || !strings.Contains(*got.ErrorReason, "Timeout") {
			t.Fatalf("%+v", got)
		}
		e.end(e.only("PULL_SNAPSHOT"), "", done) // too late
		if got := e.get("org", "slow"); got.State != "error" {
			t.Fatal(got.State)
		}
		// No runner at all: it waits for one.
		s := e.create("org", create{"name": "s", "imageName": "a:1"})
		gone := e.usable
		e.usable = map[string]string{}
		e.reconcile()
		if got := e.get("org", "s"); got.State != "pending" {
			t.Fatal(got.State)
		}
		e.usable = gone
		e.reconcile()
		for _, x := range e.open() {
			if x.Ref == *s.Ref {
				e.end(x, "", done)
			}
		}
		// Its runner is gone: another gets it, as long as there is nothing else.
		delete(e.usable, "r1")
		e.reconcile()
		var pull *job
		for _, x := range e.open() {
			if x.Ref == *s.Ref {
				pull = x
			}
		}
		if pull == nil || pull.RunnerID != "r2" || pull.Type != "PULL_SNAPSHOT" {
			t.Fatalf("%+v", pull)
		}
		e.end(pull, "", done)
		n := len(e.jobs)
		e.reconcile()
		if len(e.jobs) != n {
			t.Fatal("it is fetched again and again")
		}
		if err := e.Forget(t.Context(), "r1"); err != nil {
			t.Fatal(err)
		}
		if ready, err := e.Ready(t.Context(), *s.Ref); err != nil || !slices.Equal(ready, []string{"r2"}) {
			t.Fatalf("%v %v", ready, err)
		}
		// What was made of a sandbox is where it is.
		ref := snapshot.CaptureRef("org")
		c := snapshot.Capture{OrganizationID: "org", Name: "c", SandboxID: "sb", RunnerID: "r2", RegionID: "us", Ref: ref, SizeGB: 0.5, CPU: 1, Memory: 1, Disk: 3}
		for range 2 {
			if err := e.Captured(t.Context(), c); err != nil {
				t.Fatal(err)
			}
		}
		if got := e.get("org", "c"); got.State != "active" || *got.Size != 0.5 || *got.Ref != ref || *got.SourceSandboxID != "sb" || !strings.Contains(*got.Ref, ":daytona") {
			t.Fatalf("%+v", got)
		}
		if _, err := e.Ensure(t.Context(), "r3", ref); !errors.Is(err, daytona.ErrInvalid) {
			t.Fatal(err)
		}
		if status, _ := e.call("org", "POST", "/snapshots/"+e.get("org", "c").ID+"/deactivate", nil, nil); status != 400 {
			t.Fatal("the only copy was given away")
		}
		if _, err := e.Ensure(t.Context(), "r3", "org/none:daytona"); !errors.Is(err, daytona.ErrNotFound) {
			t.Fatal(err)
		}
	})
}

// A server without any registry has a default snapshot all the same.
func TestBootstrap(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		e := start(t, db)
		if err := e.Bootstrap(t.Context(), "admin", "default", ""); err != nil {
			t.Fatal(err)
		}
		e.reconcile()
		r, err := e.Resolve(t.Context(), "org", "eu", "")
		if err != nil || r.Ref != "" || r.Name != "default" || r.CPU != 1 || r.Memory != 1 || r.Disk != 3 || len(e.jobs) != 0 {
			t.Fatalf("%+v %v", r, err)
		}
		got := e.get("org", "default")
		if !got.General || got.State != "active" || !slices.Equal(got.RegionIds, []string{"eu", "us"}) {
			t.Fatalf("%+v", got)
		}
		data, err := json.Marshal(got)
		if err != nil {
			t.Fatal(err)
		}
		for _, field := range []string{`"size":null`, `"entrypoint":null`, `"errorReason":null`, `"lastUsedAt":"`, `"sourceSandboxId":null`} {
			if !strings.Contains(string(data), field) {
				t.Errorf("no %s in %s", field, data)
			}
		}
		e.wait(100 * 24 * time.Hour)
		e.reconcile()
		if got := e.get("org", "default"); got.State != "active" {
			t.Error(got.State)
		}
	})
}

func TestLogs(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		e := start(t, db)
		s := e.create("org", create{"name": "b", "buildInfo": create{"dockerfileContent": "FROM x"}})
		// It is asked for before any runner has it.
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var wg sync.WaitGroup
		defer wg.Wait()
		answers := make(chan string, 1)
		wg.Go(func() {
			u, err := e.LogsURL(ctx, "org", s.ID)
			answers <- fmt.Sprint(u, err)
		})
		select {
		case a := <-answers:
			t.Fatalf("no runner has it: %s", a)
		case <-time.After(50 * time.Millisecond):
		}
		e.reconcile()
		if a := <-answers; a != "https://proxy.example.com/snapshots/"+s.ID+"/build-logs<nil>" {
			t.Fatal(a)
		}
		if status, log := e.call("org", "GET", "/snapshots/"+s.ID+"/build-logs?follow=true", nil, nil); status != 200 || log != "log of "+*s.Ref+" on r1, follow true\n" {
			t.Errorf("%d %q", status, log)
		}
		e.end(e.only("BUILD_SNAPSHOT"), "", done)
		if status, log := e.call("org", "GET", "/snapshots/"+s.ID+"/build-logs?follow=true", nil, nil); status != 200 || log != "" {
			t.Errorf("of one that is active: %d %q", status, log)
		}
		r, err := e.Service.Logs(t.Context(), "org", "b", false)
		if err != nil {
			t.Fatal(err)
		}
		if data, err := io.ReadAll(r); err != nil || len(data) != 0 {
			t.Errorf("%q %v", data, err)
		}
	})
}

// Run does by itself, and at once, what the tests above do by hand.
func TestRun(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		e := start(t, db)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { e.Run(ctx) })
		defer wg.Wait()
		defer cancel()
		s := e.create("org", create{"name": "s", "imageName": "a:1"})
		deadline := time.Now().Add(5 * time.Second)
		for e.get("org", s.ID).State != "pulling" {
			if time.Now().After(deadline) {
				t.Fatal("no job within 5 s")
			}
			time.Sleep(time.Millisecond)
		}
		e.end(e.only("PULL_SNAPSHOT"), "", done)
		if got := e.get("org", s.ID); got.State != "active" {
			t.Error(got.State)
		}
	})
}
