package toolbox_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/daytona-go/daytona/toolbox/computeruse/display"
)

// noDesktop says which of the programs that sdkDesktop drives this machine
// lacks; "" if none.
func noDesktop() string {
	for _, p := range []string{"Xvfb", "icewm", "x11vnc", "dbus-daemon", "ffmpeg"} {
		if _, err := exec.LookPath(p); err != nil {
			return p + " is not installed"
		}
	}
	if _, err := os.Stat("/usr/libexec/at-spi-bus-launcher"); err != nil {
		return "at-spi2-core is not installed"
	}
	if exec.Command(desktopPython, "-c", "import gi; gi.require_version('Gtk', '3.0')").Run() != nil {
		return "python3-gi and gir1.2-gtk-3.0 are not installed"
	}
	return ""
}

// desktopPython is the one that has Debian's packages.
const desktopPython = "/usr/bin/python3"

// desktopEnv is for an agent whose desktop is in nobody's way.
func desktopEnv(t *testing.T) map[string]string {
	t.Helper()
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "novnc", "core"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "novnc", "core", "rfb.js"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	port := func() string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	}
	where := 900
	for ; ; where++ {
		_, lock := os.Lstat(display.Lock(where))
		_, socket := os.Lstat(display.Socket(where))
		if os.IsNotExist(lock) && os.IsNotExist(socket) {
			break
		}
	}
	return map[string]string{
		"DISPLAY": fmt.Sprintf(":%d", where), "VNC_RESOLUTION": "800x600", "VNC_PORT": port(), "NO_VNC_PORT": port(),
		"NO_VNC_DIR": filepath.Join(dir, "novnc"), "DAYTONA_RECORDINGS_DIR": filepath.Join(dir, "films"),
	}
}

// sdkDesktop uses a desktop of the agent at base, and reports whether this
// machine could have one.
func sdkDesktop(c *sdkClient, base string) bool {
	why := noDesktop()
	c.Run("desktop", func(t *testing.T) {
		if why != "" {
			t.Skip(why)
		}
		sub := *c
		sub.T = t
		// The client of the older generation has no method for it.
		body, err := json.Marshal(object{"set": desktopEnv(t)})
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.Post(base+"/env", "application/json", bytes.NewReader(body))
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("/env: %v %v", resp, err)
		}
		resp.Body.Close()
		useDesktop(&sub)
	})
	return why == ""
}

// useDesktop calls every operation of computer use, with a program on the desktop
// that describes itself to screen readers.
func useDesktop(c *sdkClient) {
	const api = "ComputerUseApi"
	// say calls what must be answered with a field, and returns it.
	say := func(field, method string, args ...any) any {
		c.Helper()
		var answer object
		c.call(200, api, method, &answer, args...)
		v, ok := answer[field]
		if !ok {
			c.Errorf("%s: %v has no %s", method, answer, field)
		}
		return v
	}
	// eventually asks until the answer will do.
	eventually := func(what string, will func() bool) {
		c.Helper()
		for deadline := time.Now().Add(30 * time.Second); !will(); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				c.Fatalf("%s: there is none", what)
			}
		}
	}

	if s := say("status", "getComputerUseStatus"); s != "inactive" {
		c.Errorf("status %v before the start", s)
	}
	c.call(503, api, "takeScreenshot", nil)
	say("status", "startComputerUse")
	if s := say("status", "getComputerUseSystemStatus"); s != "active" {
		c.Errorf("status %v", s)
	}
	if up := say("running", "getProcessStatus", "x11vnc"); up != true {
		c.Errorf("x11vnc runs: %v", up)
	}
	say("logs", "getProcessLogs", "x11vnc")
	say("errors", "getProcessErrors", "xfce4")
	c.call(404, api, "getProcessErrors", nil, "init")
	say("processName", "restartProcess", "novnc")
	d := say("displays", "getDisplayInfo").([]any)
	if len(d) != 1 || d[0].(object)["width"] != 800.0 {
		c.Errorf("displays %v", d)
	}

	log := filepath.Join(c.TempDir(), "log")
	form, err := filepath.Abs("computeruse/testdata/form.py")
	if err != nil {
		c.Fatal(err)
	}
	c.call(201, "ProcessApi", "createSession", nil, object{"sessionId": "desktop"})
	c.call(202, "ProcessApi", "sessionExecuteCommand", nil, "desktop", object{"command": fmt.Sprintf("exec %s '%s' '%s'", desktopPython, form, log), "runAsync": true})
	eventually("the form's window", func() bool {
		windows := say("windows", "getWindows").([]any)
		return len(windows) == 1 && windows[0].(object)["title"] == "The form" && windows[0].(object)["isActive"] == true
	})

	for _, shot := range []any{
		say("screenshot", "takeScreenshot"), say("screenshot", "takeRegionScreenshot", 0, 0, 10, 10),
		say("screenshot", "takeCompressedScreenshot", false, "jpeg", 50, 0.5),
		say("screenshot", "takeCompressedRegionScreenshot", 0, 0, 10, 10, true, "png", nil, 0.5),
	} {
		if b, err := base64.StdEncoding.DecodeString(shot.(string)); err != nil || len(b) == 0 {
			c.Errorf("a screenshot: %v", err)
		}
	}
	say("cursorPosition", "takeScreenshot", true)
	say("x", "moveMouse", object{"x": 3, "y": 4})
	c.call(400, api, "moveMouse", nil, object{"x": 3000, "y": 4})
	var at struct{ X, Y int }
	c.call(200, api, "getMousePosition", &at)
	if at.X != 3 || at.Y != 4 {
		c.Errorf("the mouse is at %v", at)
	}
	say("y", "click", object{"x": 3, "y": 4, "button": "left", "double": true})
	say("x", "drag", object{"startX": 3, "startY": 4, "endX": 30, "endY": 40, "button": "left"})
	if s := say("success", "scroll", object{"x": 3, "y": 4, "direction": "up", "amount": 1}); s != true {
		c.Errorf("scroll: %v", s)
	}

	find := func(query object) (id string) {
		c.Helper()
		query["scope"] = "all"
		eventually(fmt.Sprint(query), func() bool {
			matches := say("matches", "findAccessibilityNodes", query).([]any)
			if len(matches) == 1 {
				id = matches[0].(object)["id"].(string)
			}
			return len(matches) == 1
		})
		return id
	}
	entry := find(object{"name": "Your name", "nameMatch": "exact"})
	button := find(object{"name": "Send it", "role": "push button"})
	say("root", "getAccessibilityTree", "all", nil, 1)
	sent := func(want string) {
		c.Helper()
		c.call(200, api, "invokeAccessibilityNode", nil, object{"id": button})
		eventually("what was sent", func() bool {
			b, _ := os.ReadFile(log)
			lines := strings.Split(string(b), "\n")
			return len(lines) > 1 && lines[len(lines)-2] == "sent "+want
		})
	}
	c.call(200, api, "setAccessibilityNodeValue", nil, object{"id": entry, "value": "Ada"})
	sent("Ada")
	c.call(200, api, "focusAccessibilityNode", nil, object{"id": entry})
	find(object{"name": "Your name", "states": []string{"focused"}})
	c.call(200, api, "pressHotkey", nil, object{"keys": "ctrl+a"})
	c.call(200, api, "typeText", nil, object{"text": "Grüße", "delay": 1})
	c.call(200, api, "pressKey", nil, object{"key": "x", "modifiers": []string{"shift"}})
	sent("GrüßeX")
	c.call(400, api, "pressHotkey", nil, object{"keys": ""})
	c.call(404, api, "focusAccessibilityNode", nil, object{"id": "nope"})

	var film struct{ ID string }
	c.call(201, api, "startRecording", &film, object{"label": "film"})
	say("fileName", "getRecording", film.ID)
	say("durationSeconds", "stopRecording", object{"id": film.ID})
	if films := say("recordings", "listRecordings").([]any); len(films) != 1 {
		c.Errorf("recordings %v", films)
	}
	c.call(200, api, "downloadRecording", nil, film.ID)
	c.call(204, api, "deleteRecording", nil, film.ID)
	c.call(404, api, "getRecording", nil, film.ID)
	c.call(204, "ProcessApi", "deleteSession", nil, "desktop")
	stopped, err := json.Marshal(say("status", "stopComputerUse"))
	if err != nil || strings.Contains(string(stopped), `"running":true`) {
		c.Errorf("stopped: %s, %v", stopped, err)
	}
}
