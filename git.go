package daytona

import (
	"context"
	"time"
)

// Git works on repositories inside a sandbox. Paths are repository
// directories. Credentials never appear in errors or in the repository's
// configuration.
type Git interface {
	// Clone clones a repository into path; nil options are defaults.
	Clone(ctx context.Context, url, path string, opts *CloneOptions) error
	// Status describes the working tree.
	Status(ctx context.Context, path string) (GitStatus, error)
	// Add stages files; "." stages everything.
	Add(ctx context.Context, path string, files ...string) error
	// Commit records what is staged and returns the commit's hash.
	Commit(ctx context.Context, path string, c Commit) (hash string, err error)
	// Push and Pull exchange the current branch with remote "origin"; nil
	// credentials are none. Nothing to do is no error.
	Push(ctx context.Context, path string, cred *GitCredentials) error
	Pull(ctx context.Context, path string, cred *GitCredentials) error
	// Branches lists the local branches.
	Branches(ctx context.Context, path string) ([]string, error)
	// CreateBranch makes a branch at HEAD and checks it out.
	CreateBranch(ctx context.Context, path, name string) error
	DeleteBranch(ctx context.Context, path, name string) error
	// Checkout switches to a branch or commit.
	Checkout(ctx context.Context, path, branch string) error
	// Log lists the commits reachable from HEAD, newest first.
	Log(ctx context.Context, path string) ([]GitCommit, error)
}

// GitCredentials authenticate to a remote over HTTPS.
type GitCredentials struct{ Username, Password string }

// CloneOptions refine a clone.
type CloneOptions struct {
	// Branch to check out. Defaults to the remote's HEAD.
	Branch string
	// Commit to check out. Defaults to the tip of Branch.
	Commit string
	// Credentials default to none.
	Credentials *GitCredentials
	// InsecureSkipTLS accepts any certificate. Defaults to false.
	InsecureSkipTLS bool
}

// Commit describes a commit to make.
type Commit struct {
	Message, Author, Email string
	// AllowEmpty permits a commit without changes. Defaults to false.
	AllowEmpty bool
}

// GitCommit is a commit of the history.
type GitCommit struct {
	Hash, Author, Email, Message string
	Time                         time.Time
}

// GitStatus describes a working tree.
type GitStatus struct {
	Branch        string
	Published     bool // the branch has an upstream
	Ahead, Behind int  // commits, compared with it
	Files         []GitFileStatus
}

// GitFileStatus is a file's status. Staging and Worktree are words of the
// wire: Unmodified, Untracked, Modified, Added, Deleted, Renamed, Copied,
// "Updated but unmerged".
type GitFileStatus struct {
	Path, Staging, Worktree string
	Extra                   string // the old name of a renamed file
}
