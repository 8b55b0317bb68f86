package computeruse_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona/toolbox/process"
	"github.com/daytona-go/daytona/toolbox/wire"
)

// python is the one that has Debian's packages.
const python = "/usr/bin/python3"

// form starts a GTK program that describes itself.
func (a *agent) form() *app {
	a.Helper()
	if exec.Command(python, "-c", "import gi; gi.require_version('Gtk', '3.0')").Run() != nil {
		a.Skip("python3-gi and gir1.2-gtk-3.0 are not installed")
	}
	if _, err := os.Stat("/usr/libexec/at-spi-bus-launcher"); err != nil {
		a.Skip("at-spi2-core is not installed")
	}
	script, err := filepath.Abs("testdata/form.py")
	a.must(err)
	p := a.launch(python, script)
	p.says("ready")
	a.window("The form")
	return p
}

// one finds the one node that matches. A program is asked until it has told the
// bus of itself.
func (a *agent) one(req wire.AccessibilityFindRequest) *wire.AccessibilityNode {
	a.Helper()
	var b []byte
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		var status int
		if status, b = a.call("POST", "/a11y/find", req); status != 200 {
			continue
		}
		if found := ok[wire.AccessibilityMatches](a, "POST", "/a11y/find", req); len(found.Matches) == 1 && !found.Truncated {
			return found.Matches[0]
		}
	}
	a.Fatalf("find %+v: %s", req, b)
	return nil
}

// TestAccessibility reads and uses a program as a screen reader does.
func TestAccessibility(t *testing.T) {
	a := startDesktop(t, nil)
	p := a.form()
	entry := a.one(wire.AccessibilityFindRequest{Role: "text", Name: "Your name", NameMatch: "exact", States: []string{"focusable", "editable"}})
	button := a.one(wire.AccessibilityFindRequest{Scope: "pid", PID: p.proc.PID(), Role: "push_button", Name: "^Send.*it$", NameMatch: "regex"})
	scale := a.one(wire.AccessibilityFindRequest{Scope: "all", Name: "Volu"})
	if len(button.Actions) == 0 || button.Bounds == nil || button.Bounds.Width < 10 || len(button.Children) != 0 {
		t.Errorf("the button is %+v", button)
	}

	ok[empty](a, "POST", "/a11y/node/value", wire.AccessibilityNodeRequest{ID: entry.ID, Value: "Ada Lövelace"})
	ok[empty](a, "POST", "/a11y/node/invoke", wire.AccessibilityNodeRequest{ID: button.ID})
	p.says("sent Ada Lövelace")
	ok[empty](a, "POST", "/a11y/node/invoke", wire.AccessibilityNodeRequest{ID: button.ID, Action: button.Actions[0]})
	p.says("sent Ada Lövelace")
	ok[empty](a, "POST", "/a11y/node/value", wire.AccessibilityNodeRequest{ID: scale.ID, Value: "42"})
	p.says("volume 42")
	ok[empty](a, "POST", "/a11y/node/focus", wire.AccessibilityNodeRequest{ID: entry.ID})
	a.one(wire.AccessibilityFindRequest{Name: "Your name", States: []string{"focused"}})

	// What the tree says of where things are is where they are.
	w := a.window("The form")
	b := button.Bounds
	if b.X < w.X || b.Y < w.Y || b.X+b.Width > w.X+w.Width || b.Y+b.Height > w.Y+w.Height {
		t.Errorf("the button is at %+v, its window at %+v", b, w)
	}
	ok[wire.Point](a, "POST", "/mouse/click", wire.MouseClickRequest{X: b.X + b.Width/2, Y: b.Y + b.Height/2})
	p.says("sent Ada Lövelace")

	tree := ok[wire.AccessibilityTree](a, "GET", "/a11y/tree", nil)
	if tree.Root.Role != "frame" || tree.Root.Name != "The form" || tree.Truncated || depth(tree.Root) < 3 {
		t.Errorf("the tree is %+v, %d deep", tree.Root, depth(tree.Root))
	}
	if tree := ok[wire.AccessibilityTree](a, "GET", "/a11y/tree?maxDepth=1", nil); depth(tree.Root) != 2 || tree.Truncated {
		t.Errorf("with maxDepth=1 it is %d deep", depth(tree.Root))
	}
	if tree := ok[wire.AccessibilityTree](a, "GET", "/a11y/tree?scope=all&maxDepth=0", nil); depth(tree.Root) != 1 || tree.Root.Children == nil {
		t.Errorf("with maxDepth=0 it is %+v", tree.Root)
	}
	if tree := ok[wire.AccessibilityTree](a, "GET", fmt.Sprintf("/a11y/tree?scope=pid&pid=%d", p.proc.PID()), nil); tree.Root.Role != "application" {
		t.Errorf("of a pid it is %+v", tree.Root)
	}
	if found := ok[wire.AccessibilityMatches](a, "POST", "/a11y/find", wire.AccessibilityFindRequest{Limit: 1}); len(found.Matches) != 1 || !found.Truncated {
		t.Errorf("limit 1: %d, %v", len(found.Matches), found.Truncated)
	}

	for _, c := range []struct {
		method, path string
		body         any
		status       int
		part         string
	}{
		{"GET", "/a11y/tree?scope=some", nil, 400, "focused, pid and all"}, {"GET", "/a11y/tree?scope=pid", nil, 400, "wants a pid"},
		{"GET", "/a11y/tree?maxDepth=-2", nil, 400, "maxDepth"}, {"GET", "/a11y/tree?scope=pid&pid=x", nil, 400, "whole number"},
		{"GET", "/a11y/tree?scope=pid&pid=1", nil, 404, "no program with pid 1"},
		{"POST", "/a11y/find", wire.AccessibilityFindRequest{Name: "(", NameMatch: "regex"}, 400, "regular expression"},
		{"POST", "/a11y/find", wire.AccessibilityFindRequest{NameMatch: "fuzzy"}, 400, "substring"},
		{"POST", "/a11y/find", wire.AccessibilityFindRequest{States: []string{"happy"}}, 400, "sensitive"},
		{"POST", "/a11y/find", wire.AccessibilityFindRequest{Limit: -1}, 400, "limit"},
		{"POST", "/a11y/node/focus", wire.AccessibilityNodeRequest{ID: "nope"}, 404, "no such id"},
		{"POST", "/a11y/node/focus", wire.AccessibilityNodeRequest{ID: "org.freedesktop.DBus/org/freedesktop/DBus"}, 404, "no such id"},
		{"POST", "/a11y/node/invoke", wire.AccessibilityNodeRequest{ID: button.ID + "99999"}, 404, "gone"},
		{"POST", "/a11y/node/invoke", wire.AccessibilityNodeRequest{ID: ":1.99999/org/a11y/atspi/accessible/1"}, 404, "gone"},
		{"POST", "/a11y/node/invoke", wire.AccessibilityNodeRequest{ID: button.ID, Action: "fly"}, 400, button.Actions[0]},
		{"POST", "/a11y/node/value", wire.AccessibilityNodeRequest{ID: scale.ID, Value: "loud"}, 400, "number"},
		{"POST", "/a11y/node/value", wire.AccessibilityNodeRequest{ID: button.ID, Value: "x"}, 400, "no value"},
	} {
		a.refused(c.method, c.path, c.body, c.status, "", c.part)
	}

	// A program that hangs is given up, and does not keep the mouse.
	a.must(p.proc.Signal(unix.SIGSTOP))
	moved := make(chan struct{})
	go func() {
		defer close(moved)
		ok[wire.Point](a, "POST", "/mouse/move", wire.Point{X: 1, Y: 1})
	}()
	begin := time.Now()
	a.refused("POST", "/a11y/node/invoke", wire.AccessibilityNodeRequest{ID: button.ID}, 500, "", "does not answer")
	if took := time.Since(begin); took > 15*time.Second {
		t.Errorf("a program that hangs was waited for for %v", took)
	}
	<-moved
	a.must(p.proc.Signal(unix.SIGCONT))
	p.proc.KillTree()
	a.refused("POST", "/a11y/node/invoke", wire.AccessibilityNodeRequest{ID: button.ID}, 404, "", "gone")
}

func depth(n *wire.AccessibilityNode) int {
	d := 0
	for _, c := range n.Children {
		d = max(d, depth(c))
	}
	return d + 1
}

func TestRecordings(t *testing.T) {
	want(t, "ffmpeg", "ffprobe")
	a := startDesktop(t, nil)
	if list := ok[wire.RecordingList](a, "GET", "/recordings", nil); list.Recordings == nil || len(list.Recordings) != 0 {
		t.Errorf("before the first: %+v", list)
	}
	made := ok[wire.Recording](a, "POST", "/recordings/start", wire.RecordingStartRequest{Label: "my film"})
	if made.Status != "recording" || made.ID == "" || !strings.HasPrefix(made.FileName, made.ID+"_my film_") || !strings.HasSuffix(made.FileName, ".mp4") ||
		made.FilePath != filepath.Join(a.dir, "films", made.FileName) || made.EndTime != "" {
		t.Errorf("started: %+v", made)
	}
	a.refused("DELETE", "/recordings/"+made.ID, nil, 409, "RECORDING_STILL_ACTIVE", "stop it first")
	for i := range 30 {
		ok[wire.Point](a, "POST", "/mouse/move", wire.Point{X: 20 * i, Y: 10 * i})
	}
	if got := ok[wire.Recording](a, "GET", "/recordings/"+made.ID, nil); got.Status != "recording" || got.StartTime != made.StartTime {
		t.Errorf("while it is made: %+v", got)
	}
	second := ok[wire.Recording](a, "POST", "/recordings/start", nil)
	if !strings.Contains(second.FileName, "_session_") {
		t.Errorf("without a label: %+v", second)
	}
	done := ok[wire.Recording](a, "POST", "/recordings/stop", wire.RecordingStopRequest{ID: made.ID})
	if done.Status != "completed" || done.DurationSeconds == nil || *done.DurationSeconds <= 0 || done.SizeBytes == nil || *done.SizeBytes < 1000 || done.EndTime == "" {
		t.Errorf("stopped: %+v", done)
	}
	a.refused("POST", "/recordings/stop", wire.RecordingStopRequest{ID: made.ID}, 400, "", "completed")
	// It is a film of the size of the screen, as downloaded.
	status, b := a.call("GET", "/recordings/"+made.ID+"/download", nil)
	if status != 200 || int64(len(b)) != *done.SizeBytes {
		t.Fatalf("downloaded %d bytes of %d: %d", len(b), *done.SizeBytes, status)
	}
	file := filepath.Join(a.dir, "downloaded.mp4")
	a.must(os.WriteFile(file, b, 0o644))
	if said := a.run("ffprobe", "-v", "error", "-select_streams", "v", "-count_frames", "-show_entries", "stream=codec_name,width,height,nb_read_frames", "-of", "csv=p=0", file); !strings.HasPrefix(said, "h264,800,600,") || strings.HasSuffix(strings.TrimSpace(said), ",0") {
		t.Errorf("ffprobe says %q", said)
	}
	for body, word := range map[string]string{`{"label":".hidden"}`: "invalid_label", `{"label":"a/b"}`: "invalid_label", `{"label":"` + strings.Repeat("x", 101) + `"}`: "invalid_label"} {
		status, b := a.call("POST", "/recordings/start", body)
		if status != 400 || !strings.Contains(string(b), `"error":"`+word+`"`) {
			t.Errorf("%s: %d %s", body, status, b)
		}
	}
	for _, id := range []string{"nope", "..", "%2e%2e%2f", "a_b", strings.Repeat("a", 100)} {
		status, _ := a.call("GET", "/recordings/"+id, nil)
		if id != ".." && status != 404 {
			t.Errorf("id %q: %d", id, status)
		}
	}
	a.refused("POST", "/recordings/stop", wire.RecordingStopRequest{}, 400, "", "id is required")
	a.refused("POST", "/recordings/stop", wire.RecordingStopRequest{ID: "nope"}, 404, "", "no recording")
	// A link in the directory is no recording.
	a.must(os.Symlink("/etc/passwd", filepath.Join(a.dir, "films", "linked_x_20260101_000000.mp4")))
	a.refused("GET", "/recordings/linked/download", nil, 404, "", "no recording")
	// Stopping the desktop ends the second; both are still there then.
	ok[wire.DesktopChange](a, "POST", "/stop", nil)
	list := ok[wire.RecordingList](a, "GET", "/recordings", nil)
	if len(list.Recordings) != 2 || slices.ContainsFunc(list.Recordings, func(r wire.Recording) bool { return r.Status != "completed" }) {
		t.Errorf("after the stop: %+v", list)
	}
	a.refused("POST", "/recordings/start", nil, 503, "DESKTOP_NOT_RUNNING", "start it")
	for _, r := range list.Recordings {
		if status, b := a.call("DELETE", "/recordings/"+r.ID, nil); status != 204 {
			t.Errorf("delete: %d %s", status, b)
		}
		a.refused("GET", "/recordings/"+r.ID, nil, 404, "NOT_FOUND", "no recording")
	}
}

// run runs a program and returns what it says.
func (a *agent) run(args ...string) string {
	a.Helper()
	out, err := os.CreateTemp(a.dir, "out")
	a.must(err)
	defer out.Close()
	p, err := a.spawner.Start(&process.Spec{Args: args, Stdout: int(out.Fd()), Stderr: int(out.Fd())})
	a.must(err)
	st := p.Wait()
	b, err := os.ReadFile(out.Name())
	a.must(err)
	if st.Code != 0 {
		a.Errorf("%q ended with %d: %s", args, st.Code, b)
	}
	return string(b)
}

// TestMissing asks for a desktop where programs are missing: the answer names
// them.
func TestMissing(t *testing.T) {
	bin := t.TempDir()
	a := newAgent(t, map[string]string{"PATH": bin})
	a.refused("POST", "/start", nil, 503, "NOT_SUPPORTED", "Xvfb")
	a.refused("POST", "/recordings/start", nil, 503, "RECORDING_FFMPEG_NOT_FOUND", "ffmpeg")
	if s := ok[wire.DesktopStatus](a, "GET", "/status", nil); s.Status != "inactive" {
		t.Errorf("status %+v", s)
	}
	want(t, "Xvfb")
	for _, name := range []string{"/usr/bin/Xvfb", "/usr/bin/xkbcomp"} {
		a.must(os.Symlink(name, filepath.Join(bin, filepath.Base(name))))
	}
	c := ok[wire.DesktopChange](a, "POST", "/start", nil)
	if !strings.Contains(c.Message, "x11vnc") || !strings.Contains(c.Message, "window manager") || !strings.Contains(c.Message, "dbus-daemon") || !c.Status["xvfb"].Running || c.Status["x11vnc"].Running {
		t.Errorf("started %+v", c)
	}
	if s := ok[wire.DesktopStatus](a, "GET", "/status", nil); s.Status != "partial" {
		t.Errorf("status %+v", s)
	}
	ok[wire.Screenshot](a, "GET", "/screenshot", nil)
	if list := ok[wire.WindowList](a, "GET", "/display/windows", nil); list.Windows == nil || len(list.Windows) != 0 {
		t.Errorf("windows %+v", list)
	}
	a.refused("GET", "/a11y/tree", nil, 503, "A11Y_UNAVAILABLE", "dbus-daemon")
	a.refused("POST", "/process/x11vnc/restart", nil, 503, "NOT_SUPPORTED", "x11vnc")

	for name, value := range map[string]string{"DISPLAY": "elsewhere:0", "VNC_RESOLUTION": "10x10", "VNC_PORT": "0", "NO_VNC_PORT": "x"} {
		b := newAgent(t, map[string]string{name: value})
		b.refused("POST", "/start", nil, 400, "BAD_REQUEST", name)
	}
	// Two desktops cannot have one display.
	b := newAgent(t, map[string]string{"DISPLAY": a.env.Get("DISPLAY")})
	b.refused("POST", "/start", nil, 409, "CONFLICT", "in use")
	// An X server that does not work says why.
	a.must(os.Remove(filepath.Join(bin, "Xvfb")))
	broken := filepath.Join(bin, "Xvfb")
	a.must(os.WriteFile(broken, []byte("#!/bin/sh\necho no luck today >&2\nexit 1\n"), 0o755))
	d := newAgent(t, map[string]string{"PATH": bin})
	d.refused("POST", "/start", nil, 500, "INTERNAL_SERVER_ERROR", "no luck today")
}
