package daytonatest

import (
	"context"
	"image"
	"io"
	"net"
	"time"

	"github.com/daytona-go/daytona"
)

// The parts of a sandbox that a Fake has not. Each method says so, once the
// sandbox is there and started.

func (c *fakeConn) absent(ctx context.Context, op string) error {
	if _, err := c.started(ctx, op); err != nil {
		return err
	}
	return c.unsupported(op)
}

func (f fakeFS) Watch(ctx context.Context, _ string, _ *daytona.WatchOptions) (daytona.FileWatch, error) {
	return nil, f.c.absent(ctx, "watch files")
}

type noLSP struct{ c *fakeConn }

func (l noLSP) no(ctx context.Context) error { return l.c.absent(ctx, "language server") }

func (l noLSP) Start(ctx context.Context, _ *daytona.LSPOptions) error { return l.no(ctx) }
func (l noLSP) Stop(ctx context.Context) error                         { return l.no(ctx) }
func (l noLSP) DidOpen(ctx context.Context, _ string) error            { return l.no(ctx) }
func (l noLSP) DidChange(ctx context.Context, _, _ string) error       { return l.no(ctx) }
func (l noLSP) DidClose(ctx context.Context, _ string) error           { return l.no(ctx) }
func (l noLSP) FilesChanged(ctx context.Context, _ ...string) error    { return l.no(ctx) }
func (l noLSP) DocumentSymbols(ctx context.Context, _ string) ([]daytona.Symbol, error) {
	return nil, l.no(ctx)
}
func (l noLSP) WorkspaceSymbols(ctx context.Context, _ string) ([]daytona.Symbol, error) {
	return nil, l.no(ctx)
}
func (l noLSP) Completions(ctx context.Context, _ string, _ daytona.Position) (daytona.CompletionList, error) {
	return daytona.CompletionList{}, l.no(ctx)
}
func (l noLSP) Diagnostics(ctx context.Context, _ string) (daytona.DiagnosticList, error) {
	return daytona.DiagnosticList{}, l.no(ctx)
}
func (l noLSP) Hover(ctx context.Context, _ string, _ daytona.Position) (daytona.Hover, error) {
	return daytona.Hover{}, l.no(ctx)
}
func (l noLSP) Definition(ctx context.Context, _ string, _ daytona.Position) ([]daytona.Location, error) {
	return nil, l.no(ctx)
}
func (l noLSP) References(ctx context.Context, _ string, _ daytona.Position, _ bool) ([]daytona.Location, error) {
	return nil, l.no(ctx)
}
func (l noLSP) Rename(ctx context.Context, _ string, _ daytona.Position, _ string) (daytona.WorkspaceEdit, error) {
	return daytona.WorkspaceEdit{}, l.no(ctx)
}
func (l noLSP) Format(ctx context.Context, _ string, _ *daytona.FormatOptions) (daytona.WorkspaceEdit, error) {
	return daytona.WorkspaceEdit{}, l.no(ctx)
}
func (l noLSP) CodeActions(ctx context.Context, _ string, _ daytona.Range, _ ...string) ([]daytona.CodeAction, error) {
	return nil, l.no(ctx)
}
func (l noLSP) Execute(ctx context.Context, _ daytona.LSPCommand) (daytona.WorkspaceEdit, error) {
	return daytona.WorkspaceEdit{}, l.no(ctx)
}

type noInterpreter struct{ c *fakeConn }

func (i noInterpreter) no(ctx context.Context) error { return i.c.absent(ctx, "interpreter") }

func (i noInterpreter) Run(ctx context.Context, _ string, _ *daytona.InterpreterOptions) (daytona.InterpreterResult, error) {
	return daytona.InterpreterResult{}, i.no(ctx)
}
func (i noInterpreter) CreateContext(ctx context.Context, _ *daytona.InterpreterContextOptions) (daytona.InterpreterContext, error) {
	return daytona.InterpreterContext{}, i.no(ctx)
}
func (i noInterpreter) Contexts(ctx context.Context) ([]daytona.InterpreterContext, error) {
	return nil, i.no(ctx)
}
func (i noInterpreter) DeleteContext(ctx context.Context, _ string) error { return i.no(ctx) }
func (i noInterpreter) Interrupt(ctx context.Context, _ string) error     { return i.no(ctx) }

type noComputerUse struct{ c *fakeConn }

func (u noComputerUse) no(ctx context.Context) error { return u.c.absent(ctx, "computer use") }

func (u noComputerUse) Start(ctx context.Context) error { return u.no(ctx) }
func (u noComputerUse) Stop(ctx context.Context) error  { return u.no(ctx) }
func (u noComputerUse) Status(ctx context.Context) (daytona.DesktopStatus, error) {
	return daytona.DesktopUnknown, u.no(ctx)
}
func (u noComputerUse) ProcessRunning(ctx context.Context, _ string) (bool, error) {
	return false, u.no(ctx)
}
func (u noComputerUse) RestartProcess(ctx context.Context, _ string) error { return u.no(ctx) }
func (u noComputerUse) ProcessLogs(ctx context.Context, _ string) (_, _ string, err error) {
	return "", "", u.no(ctx)
}
func (u noComputerUse) Hotkey(ctx context.Context, _ string) error { return u.no(ctx) }
func (u noComputerUse) AccessibilityTree(ctx context.Context, _ daytona.AccessibilityScope, _ int) (daytona.AccessibilityTree, error) {
	return daytona.AccessibilityTree{}, u.no(ctx)
}
func (u noComputerUse) FindAccessible(ctx context.Context, _ daytona.AccessibilityQuery) (daytona.AccessibilityMatches, error) {
	return daytona.AccessibilityMatches{}, u.no(ctx)
}
func (u noComputerUse) FocusNode(ctx context.Context, _ string) error       { return u.no(ctx) }
func (u noComputerUse) InvokeNode(ctx context.Context, _, _ string) error   { return u.no(ctx) }
func (u noComputerUse) SetNodeValue(ctx context.Context, _, _ string) error { return u.no(ctx) }
func (u noComputerUse) Recording(ctx context.Context, _ string) (daytona.Recording, error) {
	return daytona.Recording{}, u.no(ctx)
}
func (u noComputerUse) Screenshot(ctx context.Context, _ image.Rectangle, _ *daytona.ScreenshotOptions) (daytona.Screenshot, error) {
	return daytona.Screenshot{}, u.no(ctx)
}
func (u noComputerUse) Displays(ctx context.Context) ([]daytona.Display, error) {
	return nil, u.no(ctx)
}
func (u noComputerUse) Windows(ctx context.Context) ([]daytona.Window, error) { return nil, u.no(ctx) }
func (u noComputerUse) MousePosition(ctx context.Context) (image.Point, error) {
	return image.Point{}, u.no(ctx)
}
func (u noComputerUse) MoveMouse(ctx context.Context, _ image.Point) error { return u.no(ctx) }
func (u noComputerUse) Click(ctx context.Context, _ image.Point, _ string, _ bool) error {
	return u.no(ctx)
}
func (u noComputerUse) Drag(ctx context.Context, _, _ image.Point, _ string) error { return u.no(ctx) }
func (u noComputerUse) Scroll(ctx context.Context, _ image.Point, _ int) error     { return u.no(ctx) }
func (u noComputerUse) Type(ctx context.Context, _ string, _ time.Duration) error  { return u.no(ctx) }
func (u noComputerUse) Press(ctx context.Context, _ string, _ ...string) error     { return u.no(ctx) }
func (u noComputerUse) StartRecording(ctx context.Context, _ string) (daytona.Recording, error) {
	return daytona.Recording{}, u.no(ctx)
}
func (u noComputerUse) StopRecording(ctx context.Context, _ string) (daytona.Recording, error) {
	return daytona.Recording{}, u.no(ctx)
}
func (u noComputerUse) Recordings(ctx context.Context) ([]daytona.Recording, error) {
	return nil, u.no(ctx)
}
func (u noComputerUse) DownloadRecording(ctx context.Context, _ string, _ io.Writer) error {
	return u.no(ctx)
}
func (u noComputerUse) DeleteRecording(ctx context.Context, _ string) error { return u.no(ctx) }

type noSSH struct{ c *fakeConn }

func (s noSSH) Dial(ctx context.Context, _ *daytona.SSHOptions) (net.Conn, error) {
	return nil, s.c.absent(ctx, "connect by SSH")
}
func (s noSSH) HostKeys(ctx context.Context) ([]string, error) {
	return nil, s.c.absent(ctx, "get SSH host keys")
}
