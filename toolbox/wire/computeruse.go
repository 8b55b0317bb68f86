package wire

// Error codes of the desktop.
const (
	CodeA11yUnavailable = "A11Y_UNAVAILABLE"
	CodeRecordingActive = "RECORDING_STILL_ACTIVE"
	CodeFFmpegNotFound  = "RECORDING_FFMPEG_NOT_FOUND"
	CodeDesktopStopped  = "DESKTOP_NOT_RUNNING" // Extension: with status 503
)

// Point is a place on the screen in pixels, from its upper left corner.
type Point struct {
	X int `json:"x"`
	Y int `json:"y"`
}

// Rectangle is an area of the screen in pixels.
type Rectangle struct {
	X      int `json:"x"`
	Y      int `json:"y"`
	Width  int `json:"width"`
	Height int `json:"height"`
}

// DesktopProcess is the state of one program of the desktop.
type DesktopProcess struct {
	Running     bool `json:"running"`
	Priority    int  `json:"priority"`
	AutoRestart bool `json:"autoRestart"`
	PID         int  `json:"pid,omitempty"`
}

// DesktopChange is the answer of POST /computeruse/start and /stop.
type DesktopChange struct {
	Message string                    `json:"message"`
	Status  map[string]DesktopProcess `json:"status"`
}

// DesktopStatus is the answer of GET /computeruse/status and /process-status:
// "active", "partial", "inactive", "error" or "unknown".
type DesktopStatus struct {
	Status string `json:"status"`
}

// DesktopProcessStatus is the answer of GET /computeruse/process/{name}/status.
type DesktopProcessStatus struct {
	ProcessName string `json:"processName"`
	Running     bool   `json:"running"`
}

// DesktopProcessRestart is the answer of POST /computeruse/process/{name}/restart.
type DesktopProcessRestart struct {
	Message     string `json:"message"`
	ProcessName string `json:"processName"`
}

// DesktopProcessLogs is the answer of GET /computeruse/process/{name}/logs.
type DesktopProcessLogs struct {
	ProcessName string `json:"processName"`
	Logs        string `json:"logs"`
}

// DesktopProcessErrors is the answer of GET /computeruse/process/{name}/errors.
type DesktopProcessErrors struct {
	ProcessName string `json:"processName"`
	Errors      string `json:"errors"`
}

// Screenshot is the answer of the screenshot routes.
type Screenshot struct {
	// Screenshot is the picture's file in base64.
	Screenshot string `json:"screenshot"`
	// CursorPosition is there if the cursor was asked for.
	CursorPosition *Point `json:"cursorPosition,omitempty"`
	// SizeBytes is the length of the file, before base64.
	SizeBytes int `json:"sizeBytes"`
}

// MouseClickRequest is the body of POST /computeruse/mouse/click.
type MouseClickRequest struct {
	X      int    `json:"x"`
	Y      int    `json:"y"`
	Button string `json:"button,omitempty"` // "left" (default), "right", "middle"
	Double bool   `json:"double,omitempty"`
}

// MouseDragRequest is the body of POST /computeruse/mouse/drag.
type MouseDragRequest struct {
	StartX int    `json:"startX"`
	StartY int    `json:"startY"`
	EndX   int    `json:"endX"`
	EndY   int    `json:"endY"`
	Button string `json:"button,omitempty"`
}

// MouseScrollRequest is the body of POST /computeruse/mouse/scroll.
type MouseScrollRequest struct {
	X         int    `json:"x"`
	Y         int    `json:"y"`
	Direction string `json:"direction"`        // "up" or "down"
	Amount    *int   `json:"amount,omitempty"` // defaults to 1
}

// ScrollResponse is the answer to it.
type ScrollResponse struct {
	Success bool `json:"success"`
}

// KeyboardTypeRequest is the body of POST /computeruse/keyboard/type.
type KeyboardTypeRequest struct {
	Text  string `json:"text"`
	Delay int    `json:"delay,omitempty"` // milliseconds between keys
}

// KeyboardPressRequest is the body of POST /computeruse/keyboard/key.
type KeyboardPressRequest struct {
	Key       string   `json:"key"`
	Modifiers []string `json:"modifiers,omitempty"` // "ctrl", "alt", "shift", "cmd"
}

// KeyboardHotkeyRequest is the body of POST /computeruse/keyboard/hotkey.
type KeyboardHotkeyRequest struct {
	Keys string `json:"keys"` // such as "ctrl+c"
}

// Display is one screen.
type Display struct {
	ID int `json:"id"`
	Rectangle
	IsActive bool `json:"isActive"`
}

// DisplayList is the answer of GET /computeruse/display/info.
type DisplayList struct {
	Displays []Display `json:"displays"`
}

// Window is a window of a program.
type Window struct {
	ID    int    `json:"id"`
	Title string `json:"title"`
	Rectangle
	IsActive bool `json:"isActive"`
}

// WindowList is the answer of GET /computeruse/display/windows.
type WindowList struct {
	Windows []Window `json:"windows"`
	Count   int      `json:"count"` // what some SDKs read
}

// AccessibilityNode is one object of a program's user interface, as programs
// describe themselves to screen readers.
type AccessibilityNode struct {
	ID          string               `json:"id"`
	Role        string               `json:"role"`
	Name        string               `json:"name"`
	Description string               `json:"description"`
	Bounds      *Rectangle           `json:"bounds,omitempty"`
	States      []string             `json:"states"`
	Actions     []string             `json:"actions"`
	Children    []*AccessibilityNode `json:"children"`
}

// AccessibilityTree is the answer of GET /computeruse/a11y/tree.
type AccessibilityTree struct {
	Root *AccessibilityNode `json:"root"`
	// Truncated says that there is more than the agent gives.
	Truncated bool `json:"truncated"`
}

// AccessibilityFindRequest is the body of POST /computeruse/a11y/find. Empty
// fields match everything.
type AccessibilityFindRequest struct {
	Scope     string   `json:"scope,omitempty"` // "focused" (default), "pid", "all"
	PID       int      `json:"pid,omitempty"`
	Role      string   `json:"role,omitempty"`
	Name      string   `json:"name,omitempty"`
	NameMatch string   `json:"nameMatch,omitempty"` // "exact", "substring" (default), "regex"
	States    []string `json:"states,omitempty"`    // all of them
	Limit     int      `json:"limit,omitempty"`
}

// AccessibilityMatches is the answer to it. Matches have no children.
type AccessibilityMatches struct {
	Matches   []*AccessibilityNode `json:"matches"`
	Truncated bool                 `json:"truncated"`
}

// AccessibilityNodeRequest is the body of POST /computeruse/a11y/node/focus,
// /invoke (with Action) and /value (with Value).
type AccessibilityNodeRequest struct {
	ID     string `json:"id"`
	Action string `json:"action,omitempty"`
	Value  string `json:"value,omitempty"`
}

// RecordingStartRequest is the body of POST /computeruse/recordings/start.
type RecordingStartRequest struct {
	Label string `json:"label,omitempty"`
}

// RecordingStopRequest is the body of POST /computeruse/recordings/stop.
type RecordingStopRequest struct {
	ID string `json:"id"`
}

// Recording is a film of the desktop. Status is "recording", "completed" or
// "failed"; times are RFC 3339.
type Recording struct {
	ID              string   `json:"id"`
	FileName        string   `json:"fileName"`
	FilePath        string   `json:"filePath"`
	StartTime       string   `json:"startTime"`
	EndTime         string   `json:"endTime,omitempty"`
	Status          string   `json:"status"`
	DurationSeconds *float64 `json:"durationSeconds,omitempty"`
	SizeBytes       *int64   `json:"sizeBytes,omitempty"`
}

// RecordingList is the answer of GET /computeruse/recordings.
type RecordingList struct {
	Recordings []Recording `json:"recordings"`
}
