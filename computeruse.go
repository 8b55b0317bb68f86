package daytona

import (
	"context"
	"image"
	"io"
	"time"
)

// ComputerUse drives a graphical desktop inside a sandbox.
type ComputerUse interface {
	// Start starts the desktop (X server, window manager, VNC); Stop ends it.
	Start(ctx context.Context) error
	Stop(ctx context.Context) error
	// Status is "active", "partial", "inactive", "error" or "unknown".
	Status(ctx context.Context) (string, error)

	// Screenshot takes a picture of a region; the empty region is the whole
	// screen. nil options are defaults.
	Screenshot(ctx context.Context, region image.Rectangle, opts *ScreenshotOptions) (Screenshot, error)
	// Displays and Windows list what is there.
	Displays(ctx context.Context) ([]Display, error)
	Windows(ctx context.Context) ([]Window, error)

	MousePosition(ctx context.Context) (image.Point, error)
	MoveMouse(ctx context.Context, to image.Point) error
	// Click clicks a button: "left", "right" or "middle".
	Click(ctx context.Context, at image.Point, button string, double bool) error
	Drag(ctx context.Context, from, to image.Point, button string) error
	// Scroll turns the wheel; positive is down.
	Scroll(ctx context.Context, at image.Point, amount int) error

	// Type types text with a pause between keys.
	Type(ctx context.Context, text string, pause time.Duration) error
	// Press presses a key with modifiers, such as "c", "ctrl".
	Press(ctx context.Context, key string, modifiers ...string) error

	// StartRecording films the desktop; StopRecording ends it.
	StartRecording(ctx context.Context, label string) (Recording, error)
	StopRecording(ctx context.Context, id string) (Recording, error)
	Recordings(ctx context.Context) ([]Recording, error)
	DownloadRecording(ctx context.Context, id string, w io.Writer) error
	DeleteRecording(ctx context.Context, id string) error
}

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
	Data   []byte
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
	ID     int
	Title  string
	Bounds image.Rectangle
	Active bool
}

// Recording is a film of the desktop. Status is "recording", "completed" or
// "failed".
type Recording struct {
	ID, FileName, Status string
	Start, End           time.Time
	Bytes                int64
}
