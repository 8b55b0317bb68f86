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

type noGit struct{ c *fakeConn }

func (g noGit) no(ctx context.Context) error { return g.c.absent(ctx, "git") }

func (g noGit) Clone(ctx context.Context, _, _ string, _ *daytona.CloneOptions) error {
	return g.no(ctx)
}
func (g noGit) Status(ctx context.Context, _ string) (daytona.GitStatus, error) {
	return daytona.GitStatus{}, g.no(ctx)
}
func (g noGit) Add(ctx context.Context, _ string, _ ...string) error { return g.no(ctx) }
func (g noGit) Commit(ctx context.Context, _ string, _ daytona.Commit) (string, error) {
	return "", g.no(ctx)
}
func (g noGit) Push(ctx context.Context, _ string, _ *daytona.GitCredentials) error {
	return g.no(ctx)
}
func (g noGit) Pull(ctx context.Context, _ string, _ *daytona.GitCredentials) error {
	return g.no(ctx)
}
func (g noGit) Branches(ctx context.Context, _ string) ([]string, error) { return nil, g.no(ctx) }
func (g noGit) CreateBranch(ctx context.Context, _, _ string) error      { return g.no(ctx) }
func (g noGit) DeleteBranch(ctx context.Context, _, _ string) error      { return g.no(ctx) }
func (g noGit) Checkout(ctx context.Context, _, _ string) error          { return g.no(ctx) }
func (g noGit) Log(ctx context.Context, _ string) ([]daytona.GitCommit, error) {
	return nil, g.no(ctx)
}

type noLSP struct{ c *fakeConn }

func (l noLSP) no(ctx context.Context) error { return l.c.absent(ctx, "language server") }

func (l noLSP) Start(ctx context.Context) error              { return l.no(ctx) }
func (l noLSP) Stop(ctx context.Context) error               { return l.no(ctx) }
func (l noLSP) DidOpen(ctx context.Context, _ string) error  { return l.no(ctx) }
func (l noLSP) DidClose(ctx context.Context, _ string) error { return l.no(ctx) }
func (l noLSP) DocumentSymbols(ctx context.Context, _ string) ([]daytona.Symbol, error) {
	return nil, l.no(ctx)
}
func (l noLSP) WorkspaceSymbols(ctx context.Context, _ string) ([]daytona.Symbol, error) {
	return nil, l.no(ctx)
}
func (l noLSP) Completions(ctx context.Context, _ string, _ daytona.Position) (daytona.CompletionList, error) {
	return daytona.CompletionList{}, l.no(ctx)
}

type noInterpreter struct{ c *fakeConn }

func (i noInterpreter) no(ctx context.Context) error { return i.c.absent(ctx, "interpreter") }

func (i noInterpreter) Run(ctx context.Context, _ string, _ *daytona.InterpreterOptions) (daytona.InterpreterResult, error) {
	return daytona.InterpreterResult{}, i.no(ctx)
}
func (i noInterpreter) CreateContext(ctx context.Context, _ string) (daytona.InterpreterContext, error) {
	return daytona.InterpreterContext{}, i.no(ctx)
}
func (i noInterpreter) Contexts(ctx context.Context) ([]daytona.InterpreterContext, error) {
	return nil, i.no(ctx)
}
func (i noInterpreter) DeleteContext(ctx context.Context, _ string) error { return i.no(ctx) }

type noComputerUse struct{ c *fakeConn }

func (u noComputerUse) no(ctx context.Context) error { return u.c.absent(ctx, "computer use") }

func (u noComputerUse) Start(ctx context.Context) error            { return u.no(ctx) }
func (u noComputerUse) Stop(ctx context.Context) error             { return u.no(ctx) }
func (u noComputerUse) Status(ctx context.Context) (string, error) { return "", u.no(ctx) }
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
