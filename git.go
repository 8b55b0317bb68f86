package daytona

import (
	"context"
	"time"
)

// Git works on repositories inside a sandbox. It needs no git in the image, and
// leaves repositories as git does: both can be used side by side. Paths are
// directories of repositories, relative to the sandbox's working directory;
// nil options are defaults.
//
// No program is started on behalf of a repository: no hook, filter, credential
// helper or ssh that its configuration names. Credentials that a method is
// given are used for that call; they are stored nowhere, and appear in no error
// and no log.
//
// Errors are of the kinds KindNotFound (no such repository, branch or commit),
// KindUnauthorized and KindForbidden (what the remote says of the credentials),
// KindConflict (local changes or files are in the way, the name is taken, or
// branches have diverged), KindUnavailable (the remote cannot be reached) and
// KindUnsupported (what only git itself can do).
type Git interface {
	// Clone clones a repository into path, which must not exist or be empty.
	// The URL's scheme is http, https, ssh, git or file; it may also be
	// host:path, or a path in the sandbox.
	Clone(ctx context.Context, url, path string, opts *CloneOptions) (CloneResult, error)
	// Init makes a repository. It leaves one that is there as it is.
	Init(ctx context.Context, path string, opts *GitInitOptions) error
	// Status describes the working tree.
	Status(ctx context.Context, path string) (GitStatus, error)
	// Add stages files, directories or patterns, deletions included; "." is
	// everything.
	Add(ctx context.Context, path string, files ...string) error
	// Reset moves the current branch, and what Mode says, to another commit.
	Reset(ctx context.Context, path string, opts *GitResetOptions) error
	// Restore brings files back to what is staged or committed.
	Restore(ctx context.Context, path string, files []string, opts *GitRestoreOptions) error
	// Commit records what is staged and returns the commit's hash.
	Commit(ctx context.Context, path string, c Commit) (hash string, err error)
	// Push sends a branch to a remote, Pull fetches one and fast-forwards the
	// current branch to it. Nothing to do is no error.
	Push(ctx context.Context, path string, opts *GitPushOptions) error
	Pull(ctx context.Context, path string, opts *GitPullOptions) error
	// Branches lists the local branches.
	Branches(ctx context.Context, path string) ([]string, error)
	// CreateBranch makes a branch at HEAD and checks it out.
	CreateBranch(ctx context.Context, path, name string) error
	// DeleteBranch deletes a branch that is not checked out, merged or not.
	DeleteBranch(ctx context.Context, path, name string) error
	// Checkout switches to a branch, or to another commit without one. A branch
	// that only a remote has is made here first.
	Checkout(ctx context.Context, path, branch string) error
	// Log lists the commits reachable from HEAD, newest first.
	Log(ctx context.Context, path string, opts *GitLogOptions) ([]GitCommit, error)
	// Remotes lists the remotes. URLs have no passwords.
	Remotes(ctx context.Context, path string) ([]GitRemote, error)
	// AddRemote adds a remote. Its URL is stored as it is, with a password if
	// it has one: StoreCredentials keeps that out of the repository.
	AddRemote(ctx context.Context, path string, remote GitRemote, opts *GitAddRemoteOptions) error
	// Config returns the value of a key such as "user.name"; ok says whether it
	// is set in the scope.
	Config(ctx context.Context, scope GitScope, key string) (value string, ok bool, err error)
	SetConfig(ctx context.Context, scope GitScope, key, value string) error
	// SetUser says who makes commits.
	SetUser(ctx context.Context, scope GitScope, name, email string) error
	// StoreCredentials writes credentials into the sandbox user's
	// ~/.git-credentials, in plain text, and has git use them for the host
	// from now on.
	StoreCredentials(ctx context.Context, cred GitCredentials, opts *GitStoreOptions) error
}

// GitCredentials authenticate to a remote: over HTTP, or with a password over
// SSH. Over SSH, the sandbox user's keys and agent are used otherwise.
type GitCredentials struct{ Username, Password string }

// CloneOptions refine a clone.
type CloneOptions struct {
	// Branch, or tag, to check out. Defaults to the remote's HEAD.
	Branch string
	// Commit to check out, in hexadecimal digits, without a branch. Defaults
	// to the tip of Branch.
	Commit string
	// Depth is how many commits of history are fetched. Defaults to 0: all of
	// them. For a repository of the sandbox itself it has no effect.
	Depth int
	// AllBranches fetches every branch. Defaults to false: the one that is
	// checked out.
	AllBranches bool
	// Credentials default to those of the URL, or else to what is stored. Those
	// of the URL are not written to the configuration of the repository.
	Credentials *GitCredentials
	// InsecureSkipTLS accepts any certificate. Defaults to false.
	InsecureSkipTLS bool
}

// CloneResult is what a clone has checked out.
type CloneResult struct {
	Hash string // empty if the remote has no commit
	// Branch is empty if a commit or a tag is checked out.
	Branch string
	// LFSPointers is how many files are there only as pointers of Git LFS:
	// "git lfs pull" in the sandbox fetches what they stand for.
	LFSPointers int
}

// GitInitOptions refine an initialization.
type GitInitOptions struct {
	// Branch is the name of the first branch. Defaults to init.defaultBranch
	// of the configuration, or else to "master".
	Branch string
	// Bare makes a repository without a working tree. Defaults to false.
	Bare bool
}

// GitResetMode says what a reset changes besides the branch.
type GitResetMode string

// The modes of git reset.
const (
	GitSoft  GitResetMode = "soft"  // nothing
	GitMixed GitResetMode = "mixed" // what is staged
	GitHard  GitResetMode = "hard"  // and the files
	GitMerge GitResetMode = "merge" // and the files, but for changes that are not staged
	GitKeep  GitResetMode = "keep"  // and files without changes
)

// GitResetOptions refine a reset.
type GitResetOptions struct {
	// Mode defaults to GitMixed.
	Mode GitResetMode
	// Target is a branch, tag or commit. Defaults to "HEAD".
	Target string
	// Files are all that is unstaged, with GitMixed alone; the branch stays
	// where it is. Defaults to none.
	Files []string
}

// GitRestoreOptions refine a restoration.
type GitRestoreOptions struct {
	// Source is a branch, tag or commit. Defaults to what is staged, or, with
	// Staged, to "HEAD".
	Source string
	// Staged restores what is staged, Worktree the files. Neither is Worktree.
	Staged, Worktree bool
}

// GitPushOptions refine a push.
type GitPushOptions struct {
	// Remote defaults to the branch's, or else to "origin".
	Remote string
	// Branch defaults to the current one.
	Branch string
	// SetUpstream has the branch follow the remote's. Defaults to false.
	SetUpstream bool
	// Credentials default to what is stored.
	Credentials *GitCredentials
}

// GitPullOptions refine a pull.
type GitPullOptions struct {
	// Remote defaults to the branch's, or else to "origin".
	Remote string
	// Branch of the remote. Defaults to what the current one follows, or else
	// to its name.
	Branch string
	// Credentials default to what is stored.
	Credentials *GitCredentials
}

// GitLogOptions refine a history.
type GitLogOptions struct {
	// Limit is how many commits are wanted at most. Defaults to 0: all of them.
	Limit int
}

// GitRemote is a remote repository.
type GitRemote struct{ Name, URL string }

// GitAddRemoteOptions refine the addition of a remote.
type GitAddRemoteOptions struct {
	// Fetch fetches its branches at once. Defaults to false.
	Fetch bool
	// Overwrite replaces a remote of the same name. Defaults to false.
	Overwrite bool
}

// GitScope says whose configuration is meant. The zero scope is that of the
// sandbox's user.
type GitScope struct {
	// Repository is a repository's path, for its own configuration.
	Repository string
	// System is the configuration of the whole sandbox.
	System bool
}

// GitStoreOptions say what credentials are for.
type GitStoreOptions struct {
	// Host, with its port if it has one. Defaults to "github.com".
	Host string
	// Protocol is "https" or "http". Defaults to "https".
	Protocol string
}

// Commit describes a commit to make.
type Commit struct {
	// Author and Email default to those of the configuration.
	Message, Author, Email string
	// Committer and CommitterEmail default to the author.
	Committer, CommitterEmail string
	// AllowEmpty permits a commit without changes. Defaults to false.
	AllowEmpty bool
}

// GitCommit is a commit of the history.
type GitCommit struct {
	Hash, Author, Email, Message string
	Time                         time.Time // of the author
	Parents                      []string
}

// GitStatus describes a working tree.
type GitStatus struct {
	Branch        string // "HEAD" when Detached
	Detached      bool
	Upstream      string // such as "origin/main"; empty if none is configured
	Published     bool   // the branch has an upstream, or origin a branch of its name
	Ahead, Behind int    // commits, compared with it
	Files         []GitFileStatus
}

// GitFileStatus is a file's status. Staging and Worktree are words of the
// wire: Unmodified, Untracked, Modified, Added, Deleted, Renamed, Copied,
// "Updated but unmerged".
type GitFileStatus struct {
	Path, Staging, Worktree string
	Extra                   string // the old name of a renamed file
}
