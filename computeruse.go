package daytona

import (
	"context"
	"image"
	"io"
	"time"
)

// ComputerUse drives a graphical desktop inside a sandbox: it looks at the
// screen, uses mouse and keyboard, and reads what programs tell screen readers.
//
// The image must have an X server (Xvfb) and should have a window manager, a VNC
// server (x11vnc), noVNC, the accessibility bus (dbus, at-spi2-core) and ffmpeg
// for recordings; the variant "desktop" of the sandbox images has. What is
// missing is an error that matches [ErrUnsupported] and names the program. All
// methods but Start, Stop, Status and those about recordings that exist want a
// desktop that has been started, else the error matches [ErrState].
//
// Coordinates are pixels from the upper left corner of the screen; what does not
// lie on it is refused. Its size is the sandbox's variable VNC_RESOLUTION, such
// as "1280x800", and defaults to 1024x768.
//
// While the desktop runs, programs that Process starts have it as their DISPLAY,
// and a browser sees it at port [DesktopPort] of the sandbox.
type ComputerUse interface {
	// Start starts the desktop's programs, and returns when they are there. They
	// are kept running, which means that they are started again when they end.
	// To start what runs already is no error. Stop ends the desktop and the
	// programs that are shown on it.
	Start(ctx context.Context) error
	Stop(ctx context.Context) error
	Status(ctx context.Context) (DesktopStatus, error)

	// ProcessRunning says whether one of the desktop's programs runs: "xvfb",
	// "dbus", "xfce4" (the window manager, whichever it is), "x11vnc" or "novnc".
	ProcessRunning(ctx context.Context, name string) (bool, error)
	// RestartProcess ends such a program, and returns when it has been started
	// again. Without their X server, all others end and start again, too.
	RestartProcess(ctx context.Context, name string) error
	// ProcessLogs returns the last 64 KiB that such a program has written to
	// standard output and to standard error.
	ProcessLogs(ctx context.Context, name string) (stdout, stderr string, err error)

	// Screenshot takes a picture of a region; the empty region is the whole
	// screen. nil options are defaults.
	Screenshot(ctx context.Context, region image.Rectangle, opts *ScreenshotOptions) (Screenshot, error)
	// Displays and Windows list what is there, windows from back to front.
	Displays(ctx context.Context) ([]Display, error)
	Windows(ctx context.Context) ([]Window, error)

	MousePosition(ctx context.Context) (image.Point, error)
	MoveMouse(ctx context.Context, to image.Point) error
	// Click clicks a button: "left" (which is also ""), "right" or "middle".
	Click(ctx context.Context, at image.Point, button string, double bool) error
	// Drag moves the mouse with the button held.
	Drag(ctx context.Context, from, to image.Point, button string) error
	// Scroll turns the wheel, by at most 100 notches; positive is down.
	Scroll(ctx context.Context, at image.Point, amount int) error

	// Type types text, with a pause of whole milliseconds between keys: at most
	// 65,536 characters, of any script, and for no longer than ten minutes.
	Type(ctx context.Context, text string, pause time.Duration) error
	// Press presses a key with modifiers, such as "c", "ctrl". A key is a
	// character or a name, such as "Return", "Page_Up", "F5" or "left";
	// modifiers are "ctrl", "alt", "shift", "cmd" and "altgr".
	Press(ctx context.Context, key string, modifiers ...string) error
	// Hotkey presses keys together, such as "ctrl+shift+t".
	Hotkey(ctx context.Context, keys string) error

	// AccessibilityTree describes the user interface of programs as they
	// describe it to screen readers, down to depth levels below the root (0: the
	// root alone; negative: all). The error matches [ErrUnavailable] where there
	// is no accessibility bus, and [ErrNotFound] where no program matches. Of
	// more than 5,000 objects, or 20 seconds, the result is Truncated.
	AccessibilityTree(ctx context.Context, scope AccessibilityScope, depth int) (AccessibilityTree, error)
	// FindAccessible returns the objects that match, without children.
	FindAccessible(ctx context.Context, query AccessibilityQuery) (AccessibilityMatches, error)
	// FocusNode gives the keyboard to an object, InvokeNode makes it do one of
	// its actions (the first if action is empty), SetNodeValue sets its text or
	// its number. The error matches [ErrNotFound] once the object has gone.
	FocusNode(ctx context.Context, id string) error
	InvokeNode(ctx context.Context, id, action string) error
	SetNodeValue(ctx context.Context, id, value string) error

	// StartRecording films the desktop, for at most four hours and four films at
	// a time; StopRecording ends it. The label becomes part of the file's name:
	// letters, digits, spaces, dots, underscores and hyphens. It defaults to
	// "session".
	StartRecording(ctx context.Context, label string) (Recording, error)
	StopRecording(ctx context.Context, id string) (Recording, error)
	// Recordings and Recording say which there are, those of an earlier start of
	// the sandbox included.
	Recordings(ctx context.Context) ([]Recording, error)
	Recording(ctx context.Context, id string) (Recording, error)
	// DownloadRecording writes the film, an MP4 file, to w.
	DownloadRecording(ctx context.Context, id string, w io.Writer) error
	// DeleteRecording is refused with [ErrConflict] while it is being made.
	DeleteRecording(ctx context.Context, id string) error
}

// DesktopPort is the port of a sandbox where noVNC shows its desktop, unless its
// variable NO_VNC_PORT says otherwise.
const DesktopPort = 6080

// DesktopStatus is the state of a desktop.
type DesktopStatus string

// The states of a desktop.
const (
	DesktopActive   DesktopStatus = "active"   // all of it runs
	DesktopPartial  DesktopStatus = "partial"  // some of it is missing or is being restarted
	DesktopInactive DesktopStatus = "inactive" // it has not been started
	DesktopError    DesktopStatus = "error"    // it has been started, and has no X server
	DesktopUnknown  DesktopStatus = "unknown"
)

// ScreenshotOptions refine a screenshot.
type ScreenshotOptions struct {
	// Cursor shows the mouse cursor. Defaults to false.
	Cursor bool
	// Format is "png" or "jpeg". Defaults to "png".
	Format string
	// Quality of a JPEG, 1 to 100. Defaults to 85.
	Quality int
	// Scale is 0.1 to 1. Defaults to 1.
	Scale float64
}

// Screenshot is an encoded picture.
type Screenshot struct {
	// Data is a PNG or JPEG file; see [image.Decode].
	Data []byte
	// Cursor is where the mouse is on the screen.
	Cursor image.Point
}

// Display is a screen.
type Display struct {
	ID     int
	Bounds image.Rectangle
	Active bool
}

// Window is a window on a display.
type Window struct {
	ID    int
	Title string
	// Bounds are without the frame that a window manager draws.
	Bounds image.Rectangle
	// Active says that it has the keyboard.
	Active bool
}

// AccessibilityScope says which programs are meant. The zero value is the window
// that has the focus.
type AccessibilityScope struct {
	// All is all programs.
	All bool
	// PID, if not 0, is the process id of the program that is meant.
	PID int
}

// AccessibilityNode is one object of a program's user interface.
type AccessibilityNode struct {
	// ID names it while its program runs.
	ID string
	// Role is what it is, such as "push button"; Name and Description are for
	// people.
	Role, Name, Description string
	// Bounds is where it is on the screen; empty if it is nowhere.
	Bounds image.Rectangle
	// States are such as "focused", "enabled" or "checked"; Actions are what
	// InvokeNode takes.
	States, Actions []string
	Children        []AccessibilityNode
}

// AccessibilityTree is a user interface. Truncated says that it has more
// objects.
type AccessibilityTree struct {
	Root      AccessibilityNode
	Truncated bool
}

// AccessibilityQuery says which objects to find. Empty fields match all.
type AccessibilityQuery struct {
	Scope AccessibilityScope
	Role  string
	Name  string
	// Match is how Name is meant. Defaults to MatchSubstring.
	Match NameMatch
	// States must all be there.
	States []string
	// Limit of what is found, at most 1,000. Defaults to 100.
	Limit int
}

// NameMatch is how a name is compared.
type NameMatch string

// The ways to compare names. Regular expressions are those of package regexp.
const (
	MatchExact     NameMatch = "exact"
	MatchSubstring NameMatch = "substring"
	MatchRegexp    NameMatch = "regex"
)

// AccessibilityMatches are the objects found. Truncated says that there may be
// more.
type AccessibilityMatches struct {
	Nodes     []AccessibilityNode
	Truncated bool
}

// Recording is a film of the desktop. Status is "recording", "completed" or
// "failed".
type Recording struct {
	ID, FileName, Status string
	// Path is the file in the sandbox.
	Path string
	// Start and End are when it began and ended; End is zero while it is made.
	Start, End time.Time
	Bytes      int64
}
