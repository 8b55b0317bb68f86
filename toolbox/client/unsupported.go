package client

import (
	"context"
	"image"
	"io"
	"time"

	"github.com/daytona-go/daytona"
)

// The parts of the toolbox that this client does not speak yet. Every method
// says so, with an error that matches errors.ErrUnsupported.

func unsupported(op string) error {
	return &daytona.Error{Kind: daytona.KindUnsupported, Op: op,
		Message: "this version of the toolbox client cannot do it; run the program in the sandbox with Process instead"}
}

func none[T any](op string) (v T, err error) { return v, unsupported(op) }

type computerUse struct{}

var _ daytona.ComputerUse = computerUse{}

func (computerUse) Start(context.Context) error { return unsupported("start desktop") }
func (computerUse) Stop(context.Context) error  { return unsupported("stop desktop") }
func (computerUse) Status(context.Context) (string, error) {
	return none[string]("get desktop status")
}
func (computerUse) Screenshot(context.Context, image.Rectangle, *daytona.ScreenshotOptions) (daytona.Screenshot, error) {
	return none[daytona.Screenshot]("take screenshot")
}
func (computerUse) Displays(context.Context) ([]daytona.Display, error) {
	return none[[]daytona.Display]("list displays")
}
func (computerUse) Windows(context.Context) ([]daytona.Window, error) {
	return none[[]daytona.Window]("list windows")
}
func (computerUse) MousePosition(context.Context) (image.Point, error) {
	return none[image.Point]("get mouse position")
}
func (computerUse) MoveMouse(context.Context, image.Point) error { return unsupported("move mouse") }
func (computerUse) Click(context.Context, image.Point, string, bool) error {
	return unsupported("click")
}
func (computerUse) Drag(context.Context, image.Point, image.Point, string) error {
	return unsupported("drag")
}
func (computerUse) Scroll(context.Context, image.Point, int) error { return unsupported("scroll") }
func (computerUse) Type(context.Context, string, time.Duration) error {
	return unsupported("type text")
}
func (computerUse) Press(context.Context, string, ...string) error { return unsupported("press key") }
func (computerUse) StartRecording(context.Context, string) (daytona.Recording, error) {
	return none[daytona.Recording]("start recording")
}
func (computerUse) StopRecording(context.Context, string) (daytona.Recording, error) {
	return none[daytona.Recording]("stop recording")
}
func (computerUse) Recordings(context.Context) ([]daytona.Recording, error) {
	return none[[]daytona.Recording]("list recordings")
}
func (computerUse) DownloadRecording(context.Context, string, io.Writer) error {
	return unsupported("download recording")
}
func (computerUse) DeleteRecording(context.Context, string) error {
	return unsupported("delete recording")
}
