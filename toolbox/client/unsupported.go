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

type git struct{}

var _ daytona.Git = git{}

func (git) Clone(context.Context, string, string, *daytona.CloneOptions) error {
	return unsupported("git clone")
}
func (git) Status(context.Context, string) (daytona.GitStatus, error) {
	return none[daytona.GitStatus]("git status")
}
func (git) Add(context.Context, string, ...string) error { return unsupported("git add") }
func (git) Commit(context.Context, string, daytona.Commit) (string, error) {
	return none[string]("git commit")
}
func (git) Push(context.Context, string, *daytona.GitCredentials) error {
	return unsupported("git push")
}
func (git) Pull(context.Context, string, *daytona.GitCredentials) error {
	return unsupported("git pull")
}
func (git) Branches(context.Context, string) ([]string, error) {
	return none[[]string]("git list branches")
}
func (git) CreateBranch(context.Context, string, string) error {
	return unsupported("git create branch")
}
func (git) DeleteBranch(context.Context, string, string) error {
	return unsupported("git delete branch")
}
func (git) Checkout(context.Context, string, string) error { return unsupported("git checkout") }
func (git) Log(context.Context, string) ([]daytona.GitCommit, error) {
	return none[[]daytona.GitCommit]("git log")
}

type interpreter struct{}

var _ daytona.Interpreter = interpreter{}

func (interpreter) Run(context.Context, string, *daytona.InterpreterOptions) (daytona.InterpreterResult, error) {
	return none[daytona.InterpreterResult]("run code in interpreter")
}
func (interpreter) CreateContext(context.Context, string) (daytona.InterpreterContext, error) {
	return none[daytona.InterpreterContext]("create interpreter context")
}
func (interpreter) Contexts(context.Context) ([]daytona.InterpreterContext, error) {
	return none[[]daytona.InterpreterContext]("list interpreter contexts")
}
func (interpreter) DeleteContext(context.Context, string) error {
	return unsupported("delete interpreter context")
}

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
