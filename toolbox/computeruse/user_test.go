package computeruse_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/daytona-go/daytona/toolbox/account"
	"github.com/daytona-go/daytona/toolbox/wire"
)

// TestOtherUser runs the desktop as a user other than the agent's: everything of
// it has that user's rights.
func TestOtherUser(t *testing.T) {
	want(t, "Xvfb", "icewm", "x11vnc", "dbus-daemon", "ffmpeg")
	if os.Getuid() != 0 {
		t.Skip("it takes root to have another user")
	}
	other, err := account.Lookup("65534:65534")
	if err != nil {
		t.Fatal(err)
	}
	a := newAgentAs(t, other, nil)
	started := ok[wire.DesktopChange](a, "POST", "/start", nil)
	for name, p := range started.Status {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID))
		if err != nil || !strings.Contains(string(status), "Uid:\t65534\t65534\t65534\t65534") {
			t.Errorf("%s runs as another: %v %s", name, err, status)
		}
	}
	ok[wire.Screenshot](a, "GET", "/screenshot?showCursor=1", nil)
	film := ok[wire.Recording](a, "POST", "/recordings/start", nil)
	ok[wire.Recording](a, "POST", "/recordings/stop", wire.RecordingStopRequest{ID: film.ID})
	info, err := os.Stat(film.FilePath)
	a.must(err)
	if uid := info.Sys().(*syscall.Stat_t).Uid; uid != 65534 {
		t.Errorf("the recording belongs to %d", uid)
	}
	// What that user may not read is not given out as a recording, nor removed.
	closed := filepath.Join(a.dir, "closed")
	a.must(os.Mkdir(closed, 0o700))
	a.must(os.WriteFile(filepath.Join(closed, "x_y_20260101_000000.mp4"), []byte("secret"), 0o600))
	a.must(a.env.Update(map[string]string{"DAYTONA_RECORDINGS_DIR": closed}, nil, ""))
	if status, b := a.call("GET", "/recordings", nil); status == 200 {
		t.Errorf("a directory that the user may not read is listed: %s", b)
	}
	if status, b := a.call("GET", "/recordings/x/download", nil); status == 200 {
		t.Errorf("a file that the user may not read is given out: %s", b)
	}
	if status, _ := a.call("DELETE", "/recordings/x", nil); status == 204 {
		t.Error("a file that the user may not write is deleted")
	}
	ok[wire.DesktopChange](a, "POST", "/stop", nil)
}
