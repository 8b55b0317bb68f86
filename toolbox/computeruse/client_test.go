package computeruse_test

import (
	"bytes"
	"context"
	"errors"
	"image"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/toolbox/client"
)

// client is this module's own, connected to the agent.
func (a *agent) client() daytona.ComputerUse {
	a.Helper()
	u, err := url.Parse(a.url)
	a.must(err)
	tb := client.New(func(ctx context.Context) (net.Conn, error) { return (&net.Dialer{}).DialContext(ctx, "tcp", u.Host) }, nil)
	a.Cleanup(func() { tb.Close() })
	return tb.ComputerUse()
}

// TestClient uses every method of daytona.ComputerUse.
func TestClient(t *testing.T) {
	want(t, "Xvfb", "icewm", "x11vnc", "dbus-daemon", "ffmpeg")
	a := newAgent(t, nil)
	c, ctx := a.client(), t.Context()
	if s, err := c.Status(ctx); err != nil || s != daytona.DesktopInactive {
		t.Errorf("status %v, %v", s, err)
	}
	_, err := c.Screenshot(ctx, image.Rectangle{}, nil)
	if !errors.Is(err, daytona.ErrState) {
		t.Errorf("a screenshot before the start: %v", err)
	}
	a.must(c.Start(ctx))
	a.must(c.Start(ctx))
	if s, err := c.Status(ctx); err != nil || s != daytona.DesktopActive {
		t.Errorf("status %v, %v", s, err)
	}
	p := a.form()

	shot, err := c.Screenshot(ctx, image.Rectangle{}, nil)
	a.must(err)
	img, format, err := image.Decode(bytes.NewReader(shot.Data))
	if err != nil || format != "png" || img.Bounds().Size() != image.Pt(800, 600) {
		t.Errorf("%s, %v", format, err)
	}
	shot, err = c.Screenshot(ctx, image.Rect(10, 10, 110, 60), &daytona.ScreenshotOptions{Format: "jpeg", Quality: 50, Scale: 0.5, Cursor: true})
	a.must(err)
	if img, format, err = image.Decode(bytes.NewReader(shot.Data)); err != nil || format != "jpeg" || img.Bounds().Size() != image.Pt(50, 25) {
		t.Errorf("%s, %v", format, err)
	}
	_, err = c.Screenshot(ctx, image.Rect(700, 10, 900, 60), nil)
	wantError(t, err, daytona.ErrInvalid, "800 x 600")

	displays, err := c.Displays(ctx)
	if err != nil || len(displays) != 1 || displays[0].Bounds != image.Rect(0, 0, 800, 600) || !displays[0].Active {
		t.Errorf("displays %+v, %v", displays, err)
	}
	windows, err := c.Windows(ctx)
	if err != nil || len(windows) != 1 || windows[0].Title != "The form" || !windows[0].Active || windows[0].Bounds.Empty() {
		t.Fatalf("windows %+v, %v", windows, err)
	}

	a.must(c.MoveMouse(ctx, image.Pt(11, 12)))
	if at, err := c.MousePosition(ctx); err != nil || at != image.Pt(11, 12) {
		t.Errorf("mouse at %v, %v", at, err)
	}
	wantError(t, c.MoveMouse(ctx, image.Pt(-1, 0)), daytona.ErrInvalid, "not on the screen")
	a.must(c.Scroll(ctx, image.Pt(1, 1), 3))
	a.must(c.Scroll(ctx, image.Pt(1, 1), -3))
	a.must(c.Drag(ctx, image.Pt(1, 1), image.Pt(20, 1), "middle"))

	find := func(q daytona.AccessibilityQuery) daytona.AccessibilityNode {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
			if found, err := c.FindAccessible(ctx, q); err == nil && len(found.Nodes) == 1 && !found.Truncated {
				return found.Nodes[0]
			}
		}
		t.Fatalf("%+v is not found", q)
		return daytona.AccessibilityNode{}
	}
	entry := find(daytona.AccessibilityQuery{Name: "Your name", Match: daytona.MatchExact, States: []string{"editable"}})
	button := find(daytona.AccessibilityQuery{Scope: daytona.AccessibilityScope{PID: p.proc.PID()}, Name: "^Send", Match: daytona.MatchRegexp, Role: "push button"})
	a.must(c.FocusNode(ctx, entry.ID))
	a.must(c.Type(ctx, "Grace", time.Millisecond))
	a.must(c.Click(ctx, image.Pt(button.Bounds.Min.X+9, button.Bounds.Min.Y+9), "", false))
	p.says("sent Grace")
	a.must(c.SetNodeValue(ctx, entry.ID, "Ada"))
	a.must(c.InvokeNode(ctx, button.ID, ""))
	p.says("sent Ada")
	a.must(c.FocusNode(ctx, entry.ID))
	a.must(c.Press(ctx, "a", "ctrl"))
	a.must(c.Press(ctx, "BackSpace"))
	a.must(c.Hotkey(ctx, "shift+x"))
	// The program gets a click after the keys, as both come from the X server; what
	// comes from the accessibility bus may overtake them.
	a.must(c.Click(ctx, image.Pt(button.Bounds.Min.X+9, button.Bounds.Min.Y+9), "", false))
	p.says("sent X")
	a.must(c.InvokeNode(ctx, button.ID, button.Actions[0]))
	p.says("sent X")
	tree, err := c.AccessibilityTree(ctx, daytona.AccessibilityScope{All: true}, -1)
	if err != nil || tree.Root.Role != "desktop frame" || len(tree.Root.Children) == 0 {
		t.Errorf("tree %+v, %v", tree, err)
	}
	wantError(t, c.FocusNode(ctx, "nope"), daytona.ErrNotFound, "no such id")
	_, err = c.AccessibilityTree(ctx, daytona.AccessibilityScope{All: true, PID: 1}, -1)
	wantError(t, err, daytona.ErrInvalid, "PID")
	wantError(t, c.Press(ctx, "Nope"), daytona.ErrInvalid, "Page_Up")
	wantError(t, c.Type(ctx, "x", time.Microsecond), daytona.ErrInvalid, "milliseconds")

	made, err := c.StartRecording(ctx, "the form")
	a.must(err)
	wantError(t, c.DeleteRecording(ctx, made.ID), daytona.ErrConflict, "stop it first")
	if same, err := c.Recording(ctx, made.ID); err != nil || same.Status != "recording" || !same.End.IsZero() || !same.Start.Equal(made.Start) {
		t.Errorf("recording %+v, %v", same, err)
	}
	done, err := c.StopRecording(ctx, made.ID)
	if err != nil || done.Status != "completed" || done.Bytes == 0 || !done.End.After(done.Start) {
		t.Errorf("recording %+v, %v", done, err)
	}
	var film bytes.Buffer
	if err := c.DownloadRecording(ctx, made.ID, &film); err != nil || int64(film.Len()) != done.Bytes {
		t.Errorf("downloaded %d bytes of %d: %v", film.Len(), done.Bytes, err)
	}
	if list, err := c.Recordings(ctx); err != nil || len(list) != 1 || list[0].ID != made.ID {
		t.Errorf("recordings %+v, %v", list, err)
	}
	a.must(c.DeleteRecording(ctx, made.ID))
	wantError(t, c.DownloadRecording(ctx, made.ID, &film), daytona.ErrNotFound, "no recording")

	if up, err := c.ProcessRunning(ctx, "x11vnc"); err != nil || !up {
		t.Errorf("x11vnc: %v, %v", up, err)
	}
	a.must(c.RestartProcess(ctx, "x11vnc"))
	if out, errs, err := c.ProcessLogs(ctx, "x11vnc"); err != nil || !strings.Contains(out, "PORT=") || errs == "" {
		t.Errorf("logs %q, %q, %v", out, errs, err)
	}
	_, err = c.ProcessRunning(ctx, "init")
	wantError(t, err, daytona.ErrNotFound, "xvfb")
	a.must(c.Stop(ctx))
	a.must(c.Stop(ctx))

	b := newAgent(t, map[string]string{"PATH": t.TempDir()})
	wantError(t, b.client().Start(ctx), daytona.ErrUnsupported, "Xvfb")
	_, err = b.client().StartRecording(ctx, "")
	wantError(t, err, daytona.ErrUnsupported, "ffmpeg")
}

func wantError(t *testing.T, err, kind error, part string) {
	t.Helper()
	if _, ok := errors.AsType[*daytona.Error](err); !ok || !errors.Is(err, kind) || !strings.Contains(err.Error(), part) {
		t.Errorf("error %v, want %v with %q", err, kind, part)
	}
}
