package wire

// Error codes of the git routes.
const (
	CodeGitAuth           = "GIT_AUTH_FAILED"
	CodeGitRepoNotFound   = "GIT_REPO_NOT_FOUND"
	CodeGitBranchNotFound = "GIT_BRANCH_NOT_FOUND"
	CodeGitBranchExists   = "GIT_BRANCH_EXISTS"
	CodeGitPushRejected   = "GIT_PUSH_REJECTED"
	CodeGitDirtyWorktree  = "GIT_DIRTY_WORKTREE"
	CodeGitMergeConflict  = "GIT_MERGE_CONFLICT"
	CodeGitTransport      = "GIT_TRANSPORT_FAILED"
	CodeGitRemoteRejected = "GIT_REMOTE_REJECTED"
)

// Words of GitFileStatus.
const (
	GitUnmodified = "Unmodified"
	GitUntracked  = "Untracked"
	GitModified   = "Modified"
	GitAdded      = "Added"
	GitDeleted    = "Deleted"
	GitRenamed    = "Renamed"
	GitUnmerged   = "Updated but unmerged"
)

// GitCloneRequest is the body of POST /git/clone.
type GitCloneRequest struct {
	URL             string `json:"url"`
	Path            string `json:"path"`
	Branch          string `json:"branch,omitempty"`
	CommitID        string `json:"commit_id,omitempty"`
	Depth           int    `json:"depth,omitempty"`
	Username        string `json:"username,omitempty"`
	Password        string `json:"password,omitempty"`
	InsecureSkipTLS bool   `json:"insecure_skip_tls,omitempty"`
	// AllBranches (Extension) fetches every branch, not only the one that is
	// checked out.
	AllBranches bool `json:"all_branches,omitempty"`
}

// GitCloneResponse (Extension) is the answer of POST /git/clone, which has none
// in the public API.
type GitCloneResponse struct {
	Hash   string `json:"hash"`
	Branch string `json:"branch"` // empty if a commit or a tag is checked out
	// LFSPointers is how many files are there as pointers of Git LFS only.
	LFSPointers int `json:"lfsPointers"`
}

// GitInitRequest is the body of POST /git/init.
type GitInitRequest struct {
	Path          string `json:"path"`
	Bare          bool   `json:"bare,omitempty"`
	InitialBranch string `json:"initial_branch,omitempty"`
}

// GitAddRequest is the body of POST /git/add.
type GitAddRequest struct {
	Path  string   `json:"path"`
	Files []string `json:"files"`
}

// GitCommitRequest is the body of POST /git/commit.
type GitCommitRequest struct {
	Path       string `json:"path"`
	Message    string `json:"message"`
	Author     string `json:"author"`
	Email      string `json:"email"`
	AllowEmpty bool   `json:"allow_empty,omitempty"`
	// Extension: whom the commit is made by. Defaults to the author.
	Committer      string `json:"committer,omitempty"`
	CommitterEmail string `json:"committer_email,omitempty"`
}

// GitCommitResponse is the answer of POST /git/commit.
type GitCommitResponse struct {
	Hash string `json:"hash"`
}

// GitBranchRequest is the body of POST and DELETE /git/branches.
type GitBranchRequest struct {
	Path string `json:"path"`
	Name string `json:"name"`
}

// GitBranchList is the answer of GET /git/branches.
type GitBranchList struct {
	Branches []string `json:"branches"`
	Current  string   `json:"current"` // empty when HEAD is detached
}

// GitCheckoutRequest is the body of POST /git/checkout.
type GitCheckoutRequest struct {
	Path   string `json:"path"`
	Branch string `json:"branch"`
}

// GitSyncRequest is the body of POST /git/push and /git/pull.
type GitSyncRequest struct {
	Path        string `json:"path"`
	Remote      string `json:"remote,omitempty"`
	Branch      string `json:"branch,omitempty"`
	Username    string `json:"username,omitempty"`
	Password    string `json:"password,omitempty"`
	SetUpstream bool   `json:"set_upstream,omitempty"` // of a push
}

// GitResetRequest is the body of POST /git/reset.
type GitResetRequest struct {
	Path   string   `json:"path"`
	Mode   string   `json:"mode,omitempty"`
	Target string   `json:"target,omitempty"`
	Files  []string `json:"files,omitempty"`
}

// GitRestoreRequest is the body of POST /git/restore.
type GitRestoreRequest struct {
	Path     string   `json:"path"`
	Files    []string `json:"files"`
	Source   string   `json:"source,omitempty"`
	Staged   bool     `json:"staged,omitempty"`
	Worktree bool     `json:"worktree,omitempty"`
}

// GitRemote is a remote repository.
type GitRemote struct {
	Name string `json:"name"`
	URL  string `json:"url"`
}

// GitRemoteList is the answer of GET /git/remotes.
type GitRemoteList struct {
	Remotes []GitRemote `json:"remotes"`
}

// GitAddRemoteRequest is the body of POST /git/remotes.
type GitAddRemoteRequest struct {
	Path      string `json:"path"`
	Name      string `json:"name"`
	URL       string `json:"url"`
	Fetch     bool   `json:"fetch,omitempty"`
	Overwrite bool   `json:"overwrite,omitempty"`
}

// GitConfigRequest is the body of POST /git/config, and, without the value, the
// query of GET /git/config.
type GitConfigRequest struct {
	Path  string `json:"path,omitempty"`
	Key   string `json:"key"`
	Value string `json:"value"`
	Scope string `json:"scope,omitempty"`
}

// GitConfigResponse is the answer of GET /git/config.
type GitConfigResponse struct {
	Value *string `json:"value"`
}

// GitConfigureUserRequest is the body of POST /git/config/user.
type GitConfigureUserRequest struct {
	Path  string `json:"path,omitempty"`
	Name  string `json:"name"`
	Email string `json:"email"`
	Scope string `json:"scope,omitempty"`
}

// GitAuthenticateRequest is the body of POST /git/credentials.
type GitAuthenticateRequest struct {
	Username string `json:"username"`
	Password string `json:"password"`
	Host     string `json:"host,omitempty"`
	Protocol string `json:"protocol,omitempty"`
}

// GitStatus is the answer of GET /git/status.
type GitStatus struct {
	CurrentBranch   string          `json:"currentBranch"` // "HEAD" when detached
	Detached        bool            `json:"detached"`
	Upstream        string          `json:"upstream"`
	BranchPublished bool            `json:"branchPublished"`
	Ahead           int             `json:"ahead"`
	Behind          int             `json:"behind"`
	FileStatus      []GitFileStatus `json:"fileStatus"`
}

// GitFileStatus is a file that differs from HEAD or the index, or is in neither.
type GitFileStatus struct {
	Name     string `json:"name"`
	Extra    string `json:"extra"` // the old name of a renamed file
	Staging  string `json:"staging"`
	Worktree string `json:"worktree"`
}

// GitCommitInfo is a commit in the answer of GET /git/history.
type GitCommitInfo struct {
	Hash      string `json:"hash"`
	Author    string `json:"author"`
	Email     string `json:"email"`
	Message   string `json:"message"`
	Timestamp string `json:"timestamp"` // RFC 3339
	// Extension.
	Parents []string `json:"parents"`
}

// GitHistoryLimit (Extension) is the query parameter of GET /git/history that
// says how many commits are wanted at most; 0 is all of them.
const GitHistoryLimit = "limit"
