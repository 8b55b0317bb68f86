package client

import (
	"context"

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

type lspServer struct{}

var _ daytona.LSPServer = lspServer{}

func (lspServer) Start(context.Context) error { return unsupported("start language server") }
func (lspServer) Stop(context.Context) error  { return unsupported("stop language server") }
func (lspServer) DidOpen(context.Context, string) error {
	return unsupported("open document in language server")
}
func (lspServer) DidClose(context.Context, string) error {
	return unsupported("close document in language server")
}
func (lspServer) DocumentSymbols(context.Context, string) ([]daytona.Symbol, error) {
	return none[[]daytona.Symbol]("list document symbols")
}
func (lspServer) WorkspaceSymbols(context.Context, string) ([]daytona.Symbol, error) {
	return none[[]daytona.Symbol]("list workspace symbols")
}
func (lspServer) Completions(context.Context, string, daytona.Position) (daytona.CompletionList, error) {
	return none[daytona.CompletionList]("complete")
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
