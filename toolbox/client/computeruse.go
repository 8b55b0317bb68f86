package client

import (
	"context"
	"encoding/base64"
	"fmt"
	"image"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/toolbox/wire"
)

const desktopPath = "/computeruse"

// computerUse implements daytona.ComputerUse.
type computerUse struct{ t *toolbox }

var _ daytona.ComputerUse = computerUse{}

// get and post send a request and decode the answer into out, if that is not
// nil.
func (c computerUse) get(ctx context.Context, op, subject, path string, query url.Values, out any) error {
	return c.t.call(ctx, request{op: op, subject: subject, method: http.MethodGet, path: desktopPath + path, query: query}, out)
}

func (c computerUse) post(ctx context.Context, op, subject, path string, in, out any) error {
	return c.t.call(ctx, request{op: op, subject: subject, method: http.MethodPost, path: desktopPath + path, in: in}, out)
}

func (c computerUse) Start(ctx context.Context) error {
	return c.post(ctx, "start desktop", "", "/start", struct{}{}, nil)
}

func (c computerUse) Stop(ctx context.Context) error {
	return c.post(ctx, "stop desktop", "", "/stop", struct{}{}, nil)
}

func (c computerUse) Status(ctx context.Context) (daytona.DesktopStatus, error) {
	var s wire.DesktopStatus
	if err := c.get(ctx, "get desktop status", "", "/process-status", nil, &s); err != nil {
		return daytona.DesktopUnknown, err
	}
	switch status := daytona.DesktopStatus(s.Status); status {
	case daytona.DesktopActive, daytona.DesktopPartial, daytona.DesktopInactive, daytona.DesktopError:
		return status, nil
	}
	return daytona.DesktopUnknown, nil
}

func (c computerUse) ProcessRunning(ctx context.Context, name string) (bool, error) {
	const op = "get desktop process status"
	at, err := segment(op, "name", name)
	if err != nil {
		return false, err
	}
	var s wire.DesktopProcessStatus
	err = c.get(ctx, op, name, "/process/"+at+"/status", nil, &s)
	return s.Running, err
}

func (c computerUse) RestartProcess(ctx context.Context, name string) error {
	const op = "restart desktop process"
	at, err := segment(op, "name", name)
	if err != nil {
		return err
	}
	return c.post(ctx, op, name, "/process/"+at+"/restart", struct{}{}, nil)
}

func (c computerUse) ProcessLogs(ctx context.Context, name string) (stdout, stderr string, err error) {
	const op = "read desktop process logs"
	at, err := segment(op, "name", name)
	if err != nil {
		return "", "", err
	}
	var logs wire.DesktopProcessLogs
	if err := c.get(ctx, op, name, "/process/"+at+"/logs", nil, &logs); err != nil {
		return "", "", err
	}
	var errs wire.DesktopProcessErrors
	if err := c.get(ctx, op, name, "/process/"+at+"/errors", nil, &errs); err != nil {
		return "", "", err
	}
	return logs.Logs, errs.Errors, nil
}

func (c computerUse) Screenshot(ctx context.Context, region image.Rectangle, opts *daytona.ScreenshotOptions) (daytona.Screenshot, error) {
	const op = "take screenshot"
	var o daytona.ScreenshotOptions
	if opts != nil {
		o = *opts
	}
	query := url.Values{"showCursor": {strconv.FormatBool(o.Cursor)}}
	path := "/screenshot"
	if !region.Empty() {
		path += "/region"
		for name, n := range map[string]int{"x": region.Min.X, "y": region.Min.Y, "width": region.Dx(), "height": region.Dy()} {
			query.Set(name, strconv.Itoa(n))
		}
	}
	// The agent says what is wrong with values.
	if o.Format != "" || o.Quality != 0 || o.Scale != 0 {
		path += "/compressed"
		if o.Format != "" {
			query.Set("format", o.Format)
		}
		if o.Quality != 0 {
			query.Set("quality", strconv.Itoa(o.Quality))
		}
		if o.Scale != 0 {
			query.Set("scale", strconv.FormatFloat(o.Scale, 'g', -1, 64))
		}
	}
	var s wire.Screenshot
	if err := c.get(ctx, op, "", path, query, &s); err != nil {
		return daytona.Screenshot{}, err
	}
	data, err := base64.StdEncoding.DecodeString(s.Screenshot)
	if err != nil {
		return daytona.Screenshot{}, malformed(op, "", err)
	}
	if len(data) == 0 {
		return daytona.Screenshot{}, malformed(op, "", fmt.Errorf("no picture"))
	}
	shot := daytona.Screenshot{Data: data}
	if p := s.CursorPosition; p != nil {
		shot.Cursor = image.Pt(p.X, p.Y)
	}
	return shot, nil
}

func bounds(r wire.Rectangle) image.Rectangle {
	return image.Rect(r.X, r.Y, r.X+max(0, r.Width), r.Y+max(0, r.Height))
}

func (c computerUse) Displays(ctx context.Context) ([]daytona.Display, error) {
	var list wire.DisplayList
	if err := c.get(ctx, "list displays", "", "/display/info", nil, &list); err != nil {
		return nil, err
	}
	displays := make([]daytona.Display, len(list.Displays))
	for i, d := range list.Displays {
		displays[i] = daytona.Display{ID: d.ID, Bounds: bounds(d.Rectangle), Active: d.IsActive}
	}
	return displays, nil
}

func (c computerUse) Windows(ctx context.Context) ([]daytona.Window, error) {
	var list wire.WindowList
	if err := c.get(ctx, "list windows", "", "/display/windows", nil, &list); err != nil {
		return nil, err
	}
	windows := make([]daytona.Window, len(list.Windows))
	for i, w := range list.Windows {
		windows[i] = daytona.Window{ID: w.ID, Title: w.Title, Bounds: bounds(w.Rectangle), Active: w.IsActive}
	}
	return windows, nil
}

func (c computerUse) MousePosition(ctx context.Context) (image.Point, error) {
	var p wire.Point
	err := c.get(ctx, "get mouse position", "", "/mouse/position", nil, &p)
	return image.Pt(p.X, p.Y), err
}

func (c computerUse) MoveMouse(ctx context.Context, to image.Point) error {
	return c.post(ctx, "move mouse", "", "/mouse/move", wire.Point{X: to.X, Y: to.Y}, nil)
}

func (c computerUse) Click(ctx context.Context, at image.Point, button string, double bool) error {
	return c.post(ctx, "click", "", "/mouse/click", wire.MouseClickRequest{X: at.X, Y: at.Y, Button: button, Double: double}, nil)
}

func (c computerUse) Drag(ctx context.Context, from, to image.Point, button string) error {
	return c.post(ctx, "drag", "", "/mouse/drag", wire.MouseDragRequest{StartX: from.X, StartY: from.Y, EndX: to.X, EndY: to.Y, Button: button}, nil)
}

func (c computerUse) Scroll(ctx context.Context, at image.Point, amount int) error {
	direction := "down"
	if amount < 0 {
		direction, amount = "up", -amount
	}
	return c.post(ctx, "scroll", "", "/mouse/scroll", wire.MouseScrollRequest{X: at.X, Y: at.Y, Direction: direction, Amount: &amount}, nil)
}

func (c computerUse) Type(ctx context.Context, text string, pause time.Duration) error {
	const op = "type text"
	if pause < 0 || pause%time.Millisecond != 0 {
		return &daytona.Error{Kind: daytona.KindInvalid, Op: op, Field: "pause", Value: pause, Message: "must be whole milliseconds, and not negative"}
	}
	return c.post(ctx, op, "", "/keyboard/type", wire.KeyboardTypeRequest{Text: text, Delay: int(pause / time.Millisecond)}, nil)
}

func (c computerUse) Press(ctx context.Context, key string, modifiers ...string) error {
	return c.post(ctx, "press key", key, "/keyboard/key", wire.KeyboardPressRequest{Key: key, Modifiers: modifiers}, nil)
}

func (c computerUse) Hotkey(ctx context.Context, keys string) error {
	return c.post(ctx, "press keys", keys, "/keyboard/hotkey", wire.KeyboardHotkeyRequest{Keys: keys}, nil)
}

// scopeOf is a scope as the wire has it.
func scopeOf(op string, s daytona.AccessibilityScope) (name string, pid int, err error) {
	switch {
	case s.PID < 0 || s.PID > 0 && s.All:
		return "", 0, &daytona.Error{Kind: daytona.KindInvalid, Op: op, Field: "Scope", Value: s, Message: "PID must not be negative, nor set together with All"}
	case s.PID > 0:
		return "pid", s.PID, nil
	case s.All:
		return "all", 0, nil
	}
	return "focused", 0, nil
}

// nodeDepth bounds the depth of a tree that is believed; agents send less.
const nodeDepth = 1000

func nodeOf(n *wire.AccessibilityNode, depth int) daytona.AccessibilityNode {
	node := daytona.AccessibilityNode{ID: n.ID, Role: n.Role, Name: n.Name, Description: n.Description, States: n.States, Actions: n.Actions}
	if n.Bounds != nil {
		node.Bounds = bounds(*n.Bounds)
	}
	if depth > 0 {
		for _, child := range n.Children {
			if child != nil {
				node.Children = append(node.Children, nodeOf(child, depth-1))
			}
		}
	}
	return node
}

func (c computerUse) AccessibilityTree(ctx context.Context, scope daytona.AccessibilityScope, depth int) (daytona.AccessibilityTree, error) {
	const op = "read accessibility tree"
	name, pid, err := scopeOf(op, scope)
	if err != nil {
		return daytona.AccessibilityTree{}, err
	}
	query := url.Values{"scope": {name}, "maxDepth": {strconv.Itoa(max(depth, -1))}}
	if pid > 0 {
		query.Set("pid", strconv.Itoa(pid))
	}
	var tree wire.AccessibilityTree
	if err := c.get(ctx, op, "", "/a11y/tree", query, &tree); err != nil {
		return daytona.AccessibilityTree{}, err
	}
	if tree.Root == nil {
		return daytona.AccessibilityTree{}, malformed(op, "", fmt.Errorf("a tree without a root"))
	}
	return daytona.AccessibilityTree{Root: nodeOf(tree.Root, nodeDepth), Truncated: tree.Truncated}, nil
}

func (c computerUse) FindAccessible(ctx context.Context, q daytona.AccessibilityQuery) (daytona.AccessibilityMatches, error) {
	const op = "find in accessibility tree"
	name, pid, err := scopeOf(op, q.Scope)
	if err != nil {
		return daytona.AccessibilityMatches{}, err
	}
	var found wire.AccessibilityMatches
	if err := c.post(ctx, op, "", "/a11y/find", wire.AccessibilityFindRequest{
		Scope: name, PID: pid, Role: q.Role, Name: q.Name, NameMatch: string(q.Match), States: q.States, Limit: q.Limit,
	}, &found); err != nil {
		return daytona.AccessibilityMatches{}, err
	}
	matches := daytona.AccessibilityMatches{Truncated: found.Truncated}
	for _, n := range found.Matches {
		if n != nil {
			matches.Nodes = append(matches.Nodes, nodeOf(n, 0))
		}
	}
	return matches, nil
}

func (c computerUse) FocusNode(ctx context.Context, id string) error {
	return c.post(ctx, "focus node", id, "/a11y/node/focus", wire.AccessibilityNodeRequest{ID: id}, nil)
}

func (c computerUse) InvokeNode(ctx context.Context, id, action string) error {
	return c.post(ctx, "invoke node", id, "/a11y/node/invoke", wire.AccessibilityNodeRequest{ID: id, Action: action}, nil)
}

func (c computerUse) SetNodeValue(ctx context.Context, id, value string) error {
	return c.post(ctx, "set node value", id, "/a11y/node/value", wire.AccessibilityNodeRequest{ID: id, Value: value}, nil)
}

func recordingOf(op string, r wire.Recording) (daytona.Recording, error) {
	made := daytona.Recording{ID: r.ID, FileName: r.FileName, Status: r.Status, Path: r.FilePath}
	var err error
	if made.Start, err = time.Parse(time.RFC3339, r.StartTime); err != nil {
		return made, malformed(op, r.ID, err)
	}
	if r.EndTime != "" {
		if made.End, err = time.Parse(time.RFC3339, r.EndTime); err != nil {
			return made, malformed(op, r.ID, err)
		}
	}
	if r.SizeBytes != nil {
		made.Bytes = *r.SizeBytes
	}
	return made, nil
}

func (c computerUse) StartRecording(ctx context.Context, label string) (daytona.Recording, error) {
	const op = "start recording"
	var r wire.Recording
	if err := c.post(ctx, op, label, "/recordings/start", wire.RecordingStartRequest{Label: label}, &r); err != nil {
		return daytona.Recording{}, err
	}
	return recordingOf(op, r)
}

func (c computerUse) StopRecording(ctx context.Context, id string) (daytona.Recording, error) {
	const op = "stop recording"
	var r wire.Recording
	if err := c.post(ctx, op, id, "/recordings/stop", wire.RecordingStopRequest{ID: id}, &r); err != nil {
		return daytona.Recording{}, err
	}
	return recordingOf(op, r)
}

func (c computerUse) Recordings(ctx context.Context) ([]daytona.Recording, error) {
	const op = "list recordings"
	var list wire.RecordingList
	if err := c.get(ctx, op, "", "/recordings", nil, &list); err != nil {
		return nil, err
	}
	recordings := make([]daytona.Recording, len(list.Recordings))
	for i, r := range list.Recordings {
		var err error
		if recordings[i], err = recordingOf(op, r); err != nil {
			return nil, err
		}
	}
	return recordings, nil
}

func (c computerUse) Recording(ctx context.Context, id string) (daytona.Recording, error) {
	const op = "get recording"
	at, err := segment(op, "id", id)
	if err != nil {
		return daytona.Recording{}, err
	}
	var r wire.Recording
	if err := c.get(ctx, op, id, "/recordings/"+at, nil, &r); err != nil {
		return daytona.Recording{}, err
	}
	return recordingOf(op, r)
}

func (c computerUse) DownloadRecording(ctx context.Context, id string, w io.Writer) error {
	const op = "download recording"
	at, err := segment(op, "id", id)
	if err != nil {
		return err
	}
	resp, err := c.t.open(ctx, request{op: op, subject: id, method: http.MethodGet, path: desktopPath + "/recordings/" + at + "/download"})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	// Only what is read is the connection's fault.
	from := &remembering{r: resp.Body}
	if _, err := io.Copy(w, from); err != nil {
		if from.err != nil && from.err != io.EOF {
			return lost(ctx, op, id, err)
		}
		return fmt.Errorf("%s %s: %w", op, id, err)
	}
	return nil
}

// remembering keeps the error of its reader.
type remembering struct {
	r   io.Reader
	err error
}

func (r *remembering) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	r.err = err
	return n, err
}

func (c computerUse) DeleteRecording(ctx context.Context, id string) error {
	const op = "delete recording"
	at, err := segment(op, "id", id)
	if err != nil {
		return err
	}
	return c.t.call(ctx, request{op: op, subject: id, method: http.MethodDelete, path: desktopPath + "/recordings/" + at}, nil)
}
