package remote_test

import (
	"crypto/rand"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/daytona-go/daytona/internal/wire"
	"github.com/daytona-go/daytona/toolbox"
)

const key = "dtn_0123456789abcdef"

// fake is a server as far as this backend can see: its states, its messages and
// its odd answers are those of the wire, its sandboxes are one real agent.
type fake struct {
	*testing.T
	*httptest.Server
	agent   http.Handler
	workDir string // the agent's

	mu        sync.Mutex
	sandboxes []*wire.Sandbox
	steps     map[string][]string // states that a sandbox goes through, one at a GET
	snapshots []*wire.Snapshot
	volumes   []*wire.Volume
	objects   map[string][]byte
	calls     []string            // method and path
	bodies    map[string][]byte   // the last body, by method and path
	queries   map[string][]string // of a path, in order
	// before may answer in the server's place.
	before func(w http.ResponseWriter, r *http.Request) bool
	old    bool // knows nothing newer than 0.190
	// fail is how the next sandbox or build ends.
	fail string
}

// newID is a UUID, as all ids of the wire are.
func newID() string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

func start(t *testing.T) *fake {
	f := &fake{T: t, workDir: t.TempDir(), steps: map[string][]string{}, objects: map[string][]byte{}, bodies: map[string][]byte{}, queries: map[string][]string{}}
	agent, err := toolbox.New(t.Context(), toolbox.Config{Version: "v0.0.0", WorkDir: f.workDir}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { agent.Close() })
	f.agent = agent.Handler()
	f.Server = httptest.NewServer(f)
	t.Cleanup(f.Close)
	return f
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	name := r.Method + " " + strings.TrimPrefix(r.URL.Path, "/api")
	f.calls = append(f.calls, name)
	f.queries[r.URL.Path] = append(f.queries[r.URL.Path], r.URL.RawQuery)
	before := f.before
	f.mu.Unlock()
	if before != nil && before(w, r) {
		return
	}
	if rest, ok := strings.CutPrefix(r.URL.Path, "/s3/"); ok {
		f.storage(w, r, rest)
		return
	}
	if r.Header.Get("Authorization") != "Bearer "+key {
		f.refuse(w, r, 401, "Invalid credentials")
		return
	}
	if rest, ok := strings.CutPrefix(r.URL.Path, "/toolbox/"); ok {
		f.proxy(w, r, rest)
		return
	}
	if rest, ok := strings.CutPrefix(r.URL.Path, "/snapshots/"); ok && strings.HasSuffix(rest, "/build-logs") {
		for i := range 3 {
			fmt.Fprintf(w, "step %d\n", i)
			http.NewResponseController(w).Flush()
		}
		return
	}
	body, _ := io.ReadAll(r.Body)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.bodies[name] = body
	path, ok := strings.CutPrefix(r.URL.EscapedPath(), "/api/")
	if !ok {
		http.NotFound(w, r)
		return
	}
	parts := strings.Split(path, "/")
	for i := range parts { // a name may have slashes
		parts[i], _ = url.PathUnescape(parts[i])
	}
	switch parts[0] {
	case "sandbox":
		f.sandbox(w, r, parts[1:], body)
	case "snapshots":
		f.snapshot(w, r, parts[1:], body)
	case "volumes":
		f.volume(w, r, parts[1:], body)
	case "object-storage":
		f.say(w, 200, wire.StorageAccess{AccessKey: "access", Secret: "secret", SessionToken: "session", StorageURL: f.URL + "/s3", OrganizationID: "org", Bucket: "bucket"})
	default:
		f.refuse(w, r, 404, "Cannot "+r.Method+" "+r.URL.Path)
	}
}

func (f *fake) say(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(v); err != nil {
		f.Error(err)
	}
}

func (f *fake) refuse(w http.ResponseWriter, r *http.Request, status int, message string) {
	f.say(w, status, wire.Error{Path: r.URL.Path, Timestamp: wire.Stamp(time.Now()), StatusCode: status, Error: http.StatusText(status), Message: message})
}

func (f *fake) find(idOrName string) *wire.Sandbox {
	for _, s := range f.sandboxes {
		if s.ID == idOrName || s.Name == idOrName {
			return s
		}
	}
	return nil
}

func (f *fake) drop(s *wire.Sandbox) {
	f.sandboxes = slices.DeleteFunc(f.sandboxes, func(x *wire.Sandbox) bool { return x == s })
}

// add makes a sandbox that others have made.
func (f *fake) add(name, state string, change func(*wire.Sandbox)) *wire.Sandbox {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.insert(name, state, change)
}

func (f *fake) insert(name, state string, change func(*wire.Sandbox)) *wire.Sandbox {
	s := &wire.Sandbox{ID: newID(), Name: name, User: "daytona", Env: map[string]string{}, Labels: map[string]string{}, Target: "us",
		CPU: 1, Memory: 1, Disk: 3, State: new(state), ToolboxProxyURL: f.URL + "/toolbox",
		AutoStopInterval: new(15.0), AutoArchiveInterval: new(10080.0), AutoDeleteInterval: new(-1.0),
		CreatedAt: new(wire.Stamp(time.Unix(1e9+int64(len(f.sandboxes)), 0)))}
	if change != nil {
		change(s)
	}
	if s.Name == "" {
		s.Name = s.ID
	}
	f.sandboxes = append(f.sandboxes, s)
	return s
}

func (f *fake) sandbox(w http.ResponseWriter, r *http.Request, parts []string, body []byte) {
	if len(parts) == 0 {
		if r.Method == http.MethodGet {
			f.list(w, r)
			return
		}
		var c wire.CreateSandbox
		if err := json.Unmarshal(body, &c); err != nil {
			f.refuse(w, r, 400, err.Error())
			return
		}
		if c.Name != nil && f.find(*c.Name) != nil {
			f.refuse(w, r, 409, "Sandbox with name "+*c.Name+" already exists")
			return
		}
		if c.Snapshot != nil && *c.Snapshot == "gone" {
			f.refuse(w, r, 400, "Snapshot gone not found. Did you add it through the Daytona Dashboard?")
			return
		}
		s := f.insert("", wire.SandboxStateCreating, func(s *wire.Sandbox) {
			if c.Name != nil {
				s.Name = *c.Name
			}
			s.Snapshot, s.Env, s.Labels, s.Volumes = c.Snapshot, c.Env, c.Labels, c.Volumes
			for i := range s.Volumes {
				s.Volumes[i].ReadOnly = s.Volumes[i].ReadOnly && !f.old
			}
			if c.User != nil {
				s.User = *c.User
			}
			s.NetworkBlockAll = c.NetworkBlockAll != nil && *c.NetworkBlockAll
			s.NetworkAllowList, s.DomainAllowList = c.NetworkAllowList, c.DomainAllowList
			for _, n := range []struct {
				from *int
				to   *float64
			}{{c.CPU, &s.CPU}, {c.Memory, &s.Memory}, {c.Disk, &s.Disk}, {c.AutoStopInterval, s.AutoStopInterval}, {c.AutoArchiveInterval, s.AutoArchiveInterval}, {c.AutoDeleteInterval, s.AutoDeleteInterval}} {
				if n.from != nil {
					*n.to = float64(*n.from)
				}
			}
			if c.TTLMinutes != nil && !f.old {
				at := time.Unix(1e9+int64(len(f.sandboxes)), 0).Add(time.Duration(*c.TTLMinutes) * time.Minute)
				s.AutoDestroyAt = new(wire.Stamp(at))
			}
			if c.AutoPauseInterval != nil && !f.old {
				s.AutoPauseInterval = new(float64(*c.AutoPauseInterval))
			}
			if c.BuildInfo != nil {
				s.BuildInfo = &wire.BuildInfo{DockerfileContent: new(c.BuildInfo.DockerfileContent), ContextHashes: c.BuildInfo.ContextHashes, SnapshotRef: "registry/x:daytona", CreatedAt: wire.Stamp(time.Now()), UpdatedAt: wire.Stamp(time.Now())}
			}
		})
		f.steps[s.ID] = []string{wire.SandboxStatePullingSnapshot, wire.SandboxStateStarted}
		if f.fail != "" {
			s.ErrorReason = new(f.fail)
			f.steps[s.ID] = []string{wire.SandboxStateBuildFailed}
		}
		f.say(w, 200, s)
		return
	}
	s := f.find(parts[0])
	if s == nil {
		f.refuse(w, r, 404, "Sandbox with ID or name "+parts[0]+" not found")
		return
	}
	state := *s.State
	// go is what follows.
	become := func(first string, then ...string) {
		s.State = new(first)
		f.steps[s.ID] = then
		f.say(w, 200, s)
	}
	switch verb := strings.Join(parts[1:], "/"); {
	case verb == "" && r.Method == http.MethodGet:
		if next := f.steps[s.ID]; len(next) > 0 {
			s.State, f.steps[s.ID] = new(next[0]), next[1:]
			if next[0] == wire.SandboxStateDestroyed {
				f.drop(s)
				f.refuse(w, r, 404, "Sandbox with ID or name "+parts[0]+" not found")
				return
			}
		}
		f.say(w, 200, s)
	case verb == "" && r.Method == http.MethodDelete:
		become(wire.SandboxStateDestroying, wire.SandboxStateDestroying, wire.SandboxStateDestroyed)
	case verb == "start":
		if state == wire.SandboxStateStarted {
			f.say(w, 200, s)
			return
		}
		become(wire.SandboxStateStarting, wire.SandboxStateStarted)
	case verb == "stop":
		if state != wire.SandboxStateStarted && state != wire.SandboxStatePaused {
			f.refuse(w, r, 400, "Sandbox is not in a stoppable state")
			return
		}
		if *s.AutoDeleteInterval == 0 {
			become(wire.SandboxStateDestroying, wire.SandboxStateDestroyed)
			return
		}
		become(wire.SandboxStateStopping, wire.SandboxStateStopped)
	case verb == "pause":
		f.refuse(w, r, 422, "Pause is not supported for sandbox class container")
	case verb == "archive":
		if state != wire.SandboxStateStopped {
			f.refuse(w, r, 400, "Sandbox is not stopped")
			return
		}
		become(wire.SandboxStateArchiving, wire.SandboxStateArchived)
	case verb == "resize":
		var c wire.ResizeSandbox
		_ = json.Unmarshal(body, &c)
		if c.CPU != nil {
			s.CPU = float64(*c.CPU)
		}
		if c.Memory != nil {
			s.Memory = float64(*c.Memory)
		}
		become(wire.SandboxStateResizing, state)
	case verb == "fork":
		var c wire.ForkSandbox
		_ = json.Unmarshal(body, &c)
		child := f.insert("", wire.SandboxStateCreating, func(x *wire.Sandbox) {
			if c.Name != nil {
				x.Name = *c.Name
			}
			x.Labels = map[string]string{}
			for k, v := range s.Labels {
				x.Labels[k] = v
			}
		})
		f.steps[child.ID] = []string{wire.SandboxStateStarted}
		f.say(w, 200, child)
	case verb == "snapshot":
		var c wire.CreateSandboxSnapshot
		_ = json.Unmarshal(body, &c)
		f.snapshots = append(f.snapshots, &wire.Snapshot{ID: newID(), Name: c.Name, State: wire.SnapshotStateActive, SourceSandboxID: new(s.ID), Size: new(0.1),
			CreatedAt: wire.Stamp(time.Now()), UpdatedAt: wire.Stamp(time.Now())})
		become(wire.SandboxStateSnapshotting, state)
	case verb == "labels":
		var c wire.SandboxLabels
		_ = json.Unmarshal(body, &c)
		s.Labels = c.Labels
		f.say(w, 200, c)
	case verb == "network-settings":
		var c wire.UpdateSandboxNetworkSettings
		_ = json.Unmarshal(body, &c)
		s.NetworkBlockAll = *c.NetworkBlockAll
		s.NetworkAllowList, s.DomainAllowList = c.NetworkAllowList, c.DomainAllowList
		f.say(w, 200, s)
	case verb == "last-activity":
		w.WriteHeader(201)
	case len(parts) == 3 && strings.HasPrefix(parts[1], "auto"):
		n, err := strconv.ParseFloat(parts[2], 64)
		if err != nil {
			f.refuse(w, r, 400, "not a number")
			return
		}
		switch parts[1] {
		case "autostop":
			s.AutoStopInterval = new(n)
		case "autodelete":
			s.AutoDeleteInterval = new(n)
		case "autoarchive":
			s.AutoArchiveInterval = new(n)
		case "autopause":
			s.AutoPauseInterval = new(n)
		}
		f.say(w, 201, s)
	default:
		f.refuse(w, r, 404, "Cannot "+r.Method+" "+r.URL.Path)
	}
}

// list has two items a page.
func (f *fake) list(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	var labels map[string]string
	if l := q.Get("labels"); l != "" {
		if err := json.Unmarshal([]byte(l), &labels); err != nil {
			f.refuse(w, r, 400, "bad labels")
			return
		}
	}
	at, _ := strconv.Atoi(q.Get("cursor"))
	var items []wire.SandboxListItem
	for _, s := range f.sandboxes {
		match := strings.HasPrefix(strings.ToLower(s.Name), strings.ToLower(q.Get("name")))
		for k, v := range labels {
			match = match && s.Labels[k] == v
		}
		if states := q["states"]; len(states) > 0 {
			match = match && slices.Contains(states, *s.State)
		}
		if !match {
			continue
		}
		var item wire.SandboxListItem
		text, _ := json.Marshal(s)
		_ = json.Unmarshal(text, &item)
		items = append(items, item)
	}
	page := wire.ListSandboxesResponse{Items: []wire.SandboxListItem{}}
	if at < len(items) {
		page.Items = items[at:min(at+2, len(items))]
	}
	if at+2 < len(items) {
		page.NextCursor = new(strconv.Itoa(at + 2))
	}
	f.say(w, 200, page)
}

func (f *fake) snapshot(w http.ResponseWriter, r *http.Request, parts []string, body []byte) {
	if len(parts) == 0 {
		if r.Method == http.MethodGet {
			page := wire.PaginatedSnapshots{Items: []wire.Snapshot{}, Total: float64(len(f.snapshots)), TotalPages: float64(len(f.snapshots))}
			n, _ := strconv.Atoi(r.URL.Query().Get("page"))
			page.Page = float64(n)
			if n <= len(f.snapshots) {
				page.Items = append(page.Items, *f.snapshots[n-1])
			}
			f.say(w, 200, page)
			return
		}
		var c wire.CreateSnapshot
		_ = json.Unmarshal(body, &c)
		s := &wire.Snapshot{ID: newID(), Name: c.Name, ImageName: c.ImageName, Entrypoint: c.Entrypoint, State: wire.SnapshotStatePending,
			CreatedAt: wire.Stamp(time.Unix(1e9-int64(len(f.snapshots)), 0)), UpdatedAt: wire.Stamp(time.Now()), CPU: 1, Mem: 1, Disk: 3}
		for _, other := range f.snapshots {
			if other.Name == c.Name {
				f.refuse(w, r, 409, fmt.Sprintf("Snapshot with name %q already exists for this organization", c.Name))
				return
			}
		}
		f.steps[s.ID] = []string{wire.SnapshotStatePulling, wire.SnapshotStateActive}
		if c.BuildInfo != nil {
			s.BuildInfo = &wire.BuildInfo{DockerfileContent: new(c.BuildInfo.DockerfileContent), ContextHashes: c.BuildInfo.ContextHashes}
			f.steps[s.ID] = []string{wire.SnapshotStateBuilding, wire.SnapshotStateActive}
			if f.fail != "" {
				s.ErrorReason = new(f.fail)
				f.steps[s.ID] = []string{wire.SnapshotStateBuilding, wire.SnapshotStateBuildFailed}
			}
		}
		f.snapshots = append(f.snapshots, s)
		f.say(w, 200, s)
		return
	}
	i := slices.IndexFunc(f.snapshots, func(s *wire.Snapshot) bool { return s.ID == parts[0] || s.Name == parts[0] })
	if i < 0 {
		f.refuse(w, r, 404, "Snapshot "+parts[0]+" not found")
		return
	}
	s := f.snapshots[i]
	switch {
	case len(parts) == 1 && r.Method == http.MethodDelete:
		f.snapshots = slices.Delete(f.snapshots, i, i+1)
	case len(parts) == 1:
		if next := f.steps[s.ID]; len(next) > 0 {
			s.State, f.steps[s.ID] = next[0], next[1:]
		}
		s.Size = new(0.5)
		f.say(w, 200, s)
	case parts[1] == "build-logs-url":
		f.say(w, 200, wire.URL{URL: f.URL + "/snapshots/" + s.ID + "/build-logs"})
	case parts[1] == "activate":
		f.steps[s.ID] = []string{wire.SnapshotStatePulling, wire.SnapshotStateActive}
		f.say(w, 200, s)
	case parts[1] == "deactivate":
		s.State = wire.SnapshotStateInactive
		w.WriteHeader(204)
	}
}

func (f *fake) volume(w http.ResponseWriter, r *http.Request, parts []string, body []byte) {
	if len(parts) == 0 {
		if r.Method == http.MethodGet {
			f.say(w, 200, f.volumes)
			return
		}
		var c wire.CreateVolume
		_ = json.Unmarshal(body, &c)
		for _, v := range f.volumes {
			if v.Name == c.Name {
				f.refuse(w, r, 400, "Volume with name "+c.Name+" already exists")
				return
			}
		}
		v := &wire.Volume{ID: newID(), Name: c.Name, State: wire.VolumeStatePendingCreate, CreatedAt: wire.Stamp(time.Now())}
		f.volumes = append(f.volumes, v)
		f.say(w, 200, v)
		return
	}
	by := func(v *wire.Volume) bool { return v.ID == parts[0] }
	if parts[0] == "by-name" {
		by = func(v *wire.Volume) bool { return v.Name == parts[1] }
	}
	i := slices.IndexFunc(f.volumes, by)
	switch {
	case i < 0:
		f.refuse(w, r, 404, "Volume not found")
	case r.Method == http.MethodDelete:
		f.volumes = slices.Delete(f.volumes, i, i+1)
	default:
		f.volumes[i].State = wire.VolumeStateReady
		f.say(w, 200, f.volumes[i])
	}
}

func (f *fake) proxy(w http.ResponseWriter, r *http.Request, rest string) {
	id, path, _ := strings.Cut(rest, "/")
	f.mu.Lock()
	s := f.find(id)
	started := s != nil && *s.State == wire.SandboxStateStarted
	f.mu.Unlock()
	if !started {
		f.say(w, 502, map[string]any{"statusCode": 502, "message": "bad gateway: no route to host"})
		return
	}
	r = r.Clone(r.Context())
	r.URL.Path, r.URL.RawPath = "/"+path, ""
	r.Header.Del("Authorization")
	f.agent.ServeHTTP(w, r)
}

// storage is as much of S3 as an upload uses.
func (f *fake) storage(w http.ResponseWriter, r *http.Request, path string) {
	if a := r.Header.Get("Authorization"); !strings.HasPrefix(a, "AWS4-HMAC-SHA256 Credential=access/") || !strings.Contains(a, "/us-east-1/s3/aws4_request") || r.Header.Get("X-Amz-Security-Token") != "session" {
		f.Errorf("signed as %q with %q", a, r.Header.Get("X-Amz-Security-Token"))
		w.WriteHeader(403)
		return
	}
	bucket, object, _ := strings.Cut(path, "/")
	if bucket != "bucket" {
		w.WriteHeader(404)
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if r.Method == http.MethodPut {
		body, err := io.ReadAll(r.Body)
		if err != nil || int64(len(body)) != r.ContentLength {
			f.Errorf("%d bytes of %d: %v", len(body), r.ContentLength, err)
		}
		f.objects[object] = body
		return
	}
	type content struct{ Key string }
	var list struct {
		XMLName  xml.Name `xml:"ListBucketResult"`
		Contents []content
	}
	for k := range f.objects {
		if strings.HasPrefix(k, r.URL.Query().Get("prefix")) {
			list.Contents = append(list.Contents, content{k})
		}
	}
	_ = xml.NewEncoder(w).Encode(list)
}

// count is how often a call was made.
func (f *fake) count(call string) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.calls {
		if c == call {
			n++
		}
	}
	return n
}

// body decodes the last body of a call.
func (f *fake) body(call string) map[string]any {
	f.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	var v map[string]any
	if err := json.Unmarshal(f.bodies[call], &v); err != nil {
		f.Fatalf("%s: %v: %s", call, err, f.bodies[call])
	}
	return v
}
