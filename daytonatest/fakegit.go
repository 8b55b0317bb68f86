package daytonatest

import (
	"context"

	"github.com/daytona-go/daytona"
)

// noGit is the Git of a sandbox that has none.
type noGit struct{ c *fakeConn }

func (g noGit) no(ctx context.Context) error { return g.c.absent(ctx, "git") }

func (g noGit) Clone(ctx context.Context, _, _ string, _ *daytona.CloneOptions) (daytona.CloneResult, error) {
	return daytona.CloneResult{}, g.no(ctx)
}
func (g noGit) Init(ctx context.Context, _ string, _ *daytona.GitInitOptions) error {
	return g.no(ctx)
}
func (g noGit) Status(ctx context.Context, _ string) (daytona.GitStatus, error) {
	return daytona.GitStatus{}, g.no(ctx)
}
func (g noGit) Add(ctx context.Context, _ string, _ ...string) error { return g.no(ctx) }
func (g noGit) Reset(ctx context.Context, _ string, _ *daytona.GitResetOptions) error {
	return g.no(ctx)
}
func (g noGit) Restore(ctx context.Context, _ string, _ []string, _ *daytona.GitRestoreOptions) error {
	return g.no(ctx)
}
func (g noGit) Commit(ctx context.Context, _ string, _ daytona.Commit) (string, error) {
	return "", g.no(ctx)
}
func (g noGit) Push(ctx context.Context, _ string, _ *daytona.GitPushOptions) error {
	return g.no(ctx)
}
func (g noGit) Pull(ctx context.Context, _ string, _ *daytona.GitPullOptions) error {
	return g.no(ctx)
}
func (g noGit) Branches(ctx context.Context, _ string) ([]string, error) { return nil, g.no(ctx) }
func (g noGit) CreateBranch(ctx context.Context, _, _ string) error      { return g.no(ctx) }
func (g noGit) DeleteBranch(ctx context.Context, _, _ string) error      { return g.no(ctx) }
func (g noGit) Checkout(ctx context.Context, _, _ string) error          { return g.no(ctx) }
func (g noGit) Log(ctx context.Context, _ string, _ *daytona.GitLogOptions) ([]daytona.GitCommit, error) {
	return nil, g.no(ctx)
}
func (g noGit) Remotes(ctx context.Context, _ string) ([]daytona.GitRemote, error) {
	return nil, g.no(ctx)
}
func (g noGit) AddRemote(ctx context.Context, _ string, _ daytona.GitRemote, _ *daytona.GitAddRemoteOptions) error {
	return g.no(ctx)
}
func (g noGit) Config(ctx context.Context, _ daytona.GitScope, _ string) (string, bool, error) {
	return "", false, g.no(ctx)
}
func (g noGit) SetConfig(ctx context.Context, _ daytona.GitScope, _, _ string) error {
	return g.no(ctx)
}
func (g noGit) SetUser(ctx context.Context, _ daytona.GitScope, _, _ string) error { return g.no(ctx) }
func (g noGit) StoreCredentials(ctx context.Context, _ daytona.GitCredentials, _ *daytona.GitStoreOptions) error {
	return g.no(ctx)
}
