// Package display has what the agent and its helpers for the desktop agree on:
// the helpers' names, and where an X server and noVNC are found. It knows
// neither of them.
package display

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// The helpers' names, on which the agent's program dispatches.
const (
	// Helper uses the desktop for requests: the body of it is desktop.Main.
	Helper = "desktop"
	// WebHelper serves noVNC: desktop.WebMain.
	WebHelper = "novnc"
)

const (
	// ManagerPath is a route of the helper for the agent alone: its answer comes
	// when the window manager is there.
	ManagerPath = "/window-manager"
	// TypingLimit is the longest that the helper types for one request.
	TypingLimit = 10 * time.Minute
)

// Parse returns N of a DISPLAY of this machine, ":N" or ":N.0".
func Parse(display string) (int, error) {
	digits, ok := strings.CutPrefix(strings.TrimSuffix(display, ".0"), ":")
	n, err := strconv.ParseUint(digits, 10, 16)
	if !ok || err != nil {
		return 0, fmt.Errorf("DISPLAY is %.100q: want :N, a display of the sandbox itself", display)
	}
	return int(n), nil
}

// Socket is where the X server of display n listens.
func Socket(n int) string { return "/tmp/.X11-unix/X" + strconv.Itoa(n) }

// Lock is the file by which X servers see that display n is taken.
func Lock(n int) string { return "/tmp/.X" + strconv.Itoa(n) + "-lock" }

// WebRoot is the directory of noVNC that there is: Debian's package, what is
// unpacked by hand, or npm's. It is "" if there is none.
func WebRoot() string {
	for _, dir := range []string{"/usr/share/novnc", "/opt/noVNC", "/opt/novnc", "/usr/local/lib/node_modules/@novnc/novnc"} {
		if info, err := os.Stat(filepath.Join(dir, "core", "rfb.js")); err == nil && info.Mode().IsRegular() {
			return dir
		}
	}
	return ""
}
