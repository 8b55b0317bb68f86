package client

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/toolbox/wire"
)

// git implements daytona.Git.
type git struct{ t *toolbox }

var _ daytona.Git = git{}

// post sends a request that changes something.
func (g git) post(ctx context.Context, op, subject, path string, in, out any) error {
	return g.t.call(ctx, request{op: op, subject: subject, method: http.MethodPost, path: path, in: in}, out)
}

func (g git) get(ctx context.Context, op, subject, path string, query url.Values, out any) error {
	return g.t.call(ctx, request{op: op, subject: subject, method: http.MethodGet, path: path, query: query}, out)
}

func of(c *daytona.GitCredentials) daytona.GitCredentials {
	if c == nil {
		return daytona.GitCredentials{}
	}
	return *c
}

func (g git) Clone(ctx context.Context, address, path string, opts *daytona.CloneOptions) (daytona.CloneResult, error) {
	var o daytona.CloneOptions
	if opts != nil {
		o = *opts
	}
	cred := of(o.Credentials)
	var r wire.GitCloneResponse
	// The subject is the path: the URL may have a password.
	err := g.post(ctx, "git clone", path, "/git/clone", wire.GitCloneRequest{
		URL: address, Path: path, Branch: o.Branch, CommitID: o.Commit, Depth: o.Depth, AllBranches: o.AllBranches,
		Username: cred.Username, Password: cred.Password, InsecureSkipTLS: o.InsecureSkipTLS,
	}, &optional{&r})
	return daytona.CloneResult{Hash: r.Hash, Branch: r.Branch, LFSPointers: r.LFSPointers}, err
}

func (g git) Init(ctx context.Context, path string, opts *daytona.GitInitOptions) error {
	var o daytona.GitInitOptions
	if opts != nil {
		o = *opts
	}
	return g.post(ctx, "git init", path, "/git/init", wire.GitInitRequest{Path: path, Bare: o.Bare, InitialBranch: o.Branch}, nil)
}

func (g git) Status(ctx context.Context, path string) (daytona.GitStatus, error) {
	var s wire.GitStatus
	if err := g.get(ctx, "git status", path, "/git/status", url.Values{"path": {path}}, &s); err != nil {
		return daytona.GitStatus{}, err
	}
	out := daytona.GitStatus{Branch: s.CurrentBranch, Detached: s.Detached, Upstream: s.Upstream, Published: s.BranchPublished, Ahead: s.Ahead, Behind: s.Behind}
	for _, f := range s.FileStatus {
		out.Files = append(out.Files, daytona.GitFileStatus{Path: f.Name, Staging: f.Staging, Worktree: f.Worktree, Extra: f.Extra})
	}
	return out, nil
}

func (g git) Add(ctx context.Context, path string, files ...string) error {
	if len(files) == 0 {
		return &daytona.Error{Kind: daytona.KindInvalid, Op: "git add", Subject: path, Field: "files", Message: `must not be empty; "." is everything`}
	}
	return g.post(ctx, "git add", path, "/git/add", wire.GitAddRequest{Path: path, Files: files}, nil)
}

func (g git) Reset(ctx context.Context, path string, opts *daytona.GitResetOptions) error {
	var o daytona.GitResetOptions
	if opts != nil {
		o = *opts
	}
	return g.post(ctx, "git reset", path, "/git/reset", wire.GitResetRequest{Path: path, Mode: string(o.Mode), Target: o.Target, Files: o.Files}, nil)
}

func (g git) Restore(ctx context.Context, path string, files []string, opts *daytona.GitRestoreOptions) error {
	var o daytona.GitRestoreOptions
	if opts != nil {
		o = *opts
	}
	return g.post(ctx, "git restore", path, "/git/restore", wire.GitRestoreRequest{Path: path, Files: files, Source: o.Source, Staged: o.Staged, Worktree: o.Worktree}, nil)
}

func (g git) Commit(ctx context.Context, path string, c daytona.Commit) (string, error) {
	var r wire.GitCommitResponse
	err := g.post(ctx, "git commit", path, "/git/commit", wire.GitCommitRequest{
		Path: path, Message: c.Message, Author: c.Author, Email: c.Email, AllowEmpty: c.AllowEmpty, Committer: c.Committer, CommitterEmail: c.CommitterEmail,
	}, &r)
	return r.Hash, err
}

func (g git) Push(ctx context.Context, path string, opts *daytona.GitPushOptions) error {
	var o daytona.GitPushOptions
	if opts != nil {
		o = *opts
	}
	cred := of(o.Credentials)
	return g.post(ctx, "git push", path, "/git/push", wire.GitSyncRequest{
		Path: path, Remote: o.Remote, Branch: o.Branch, SetUpstream: o.SetUpstream, Username: cred.Username, Password: cred.Password,
	}, nil)
}

func (g git) Pull(ctx context.Context, path string, opts *daytona.GitPullOptions) error {
	var o daytona.GitPullOptions
	if opts != nil {
		o = *opts
	}
	cred := of(o.Credentials)
	return g.post(ctx, "git pull", path, "/git/pull", wire.GitSyncRequest{
		Path: path, Remote: o.Remote, Branch: o.Branch, Username: cred.Username, Password: cred.Password,
	}, nil)
}

func (g git) Branches(ctx context.Context, path string) ([]string, error) {
	var list wire.GitBranchList
	err := g.get(ctx, "git list branches", path, "/git/branches", url.Values{"path": {path}}, &list)
	return list.Branches, err
}

func (g git) CreateBranch(ctx context.Context, path, name string) error {
	return g.post(ctx, "git create branch", path, "/git/branches", wire.GitBranchRequest{Path: path, Name: name}, nil)
}

func (g git) DeleteBranch(ctx context.Context, path, name string) error {
	return g.t.call(ctx, request{op: "git delete branch", subject: path, method: http.MethodDelete, path: "/git/branches", in: wire.GitBranchRequest{Path: path, Name: name}}, nil)
}

func (g git) Checkout(ctx context.Context, path, branch string) error {
	return g.post(ctx, "git checkout", path, "/git/checkout", wire.GitCheckoutRequest{Path: path, Branch: branch}, nil)
}

func (g git) Log(ctx context.Context, path string, opts *daytona.GitLogOptions) ([]daytona.GitCommit, error) {
	const op = "git log"
	query := url.Values{"path": {path}}
	limit := 0
	if opts != nil && opts.Limit != 0 {
		limit = opts.Limit
		if limit < 0 {
			return nil, &daytona.Error{Kind: daytona.KindInvalid, Op: op, Subject: path, Field: "Limit", Value: limit, Message: "must not be negative; 0 is no limit"}
		}
		query.Set(wire.GitHistoryLimit, strconv.Itoa(limit))
	}
	var list []wire.GitCommitInfo
	if err := g.get(ctx, op, path, "/git/history", query, &list); err != nil {
		return nil, err
	}
	if limit > 0 && len(list) > limit {
		list = list[:limit] // an agent that knows no limit
	}
	out := make([]daytona.GitCommit, len(list))
	for i, c := range list {
		at, err := time.Parse(time.RFC3339Nano, c.Timestamp)
		if err != nil {
			return nil, malformed(op, path, err)
		}
		out[i] = daytona.GitCommit{Hash: c.Hash, Author: c.Author, Email: c.Email, Message: c.Message, Time: at, Parents: c.Parents}
	}
	return out, nil
}

func (g git) Remotes(ctx context.Context, path string) ([]daytona.GitRemote, error) {
	var list wire.GitRemoteList
	if err := g.get(ctx, "git list remotes", path, "/git/remotes", url.Values{"path": {path}}, &list); err != nil {
		return nil, err
	}
	out := make([]daytona.GitRemote, len(list.Remotes))
	for i, r := range list.Remotes {
		out[i] = daytona.GitRemote{Name: r.Name, URL: r.URL}
	}
	return out, nil
}

func (g git) AddRemote(ctx context.Context, path string, remote daytona.GitRemote, opts *daytona.GitAddRemoteOptions) error {
	var o daytona.GitAddRemoteOptions
	if opts != nil {
		o = *opts
	}
	return g.post(ctx, "git add remote", path, "/git/remotes", wire.GitAddRemoteRequest{Path: path, Name: remote.Name, URL: remote.URL, Fetch: o.Fetch, Overwrite: o.Overwrite}, nil)
}

// scope is a scope's name on the wire.
func scope(op string, s daytona.GitScope) (string, error) {
	switch {
	case s.System && s.Repository != "":
		return "", &daytona.Error{Kind: daytona.KindInvalid, Op: op, Field: "Scope", Message: "is both a repository's and the system's"}
	case s.System:
		return "system", nil
	case s.Repository != "":
		return "local", nil
	}
	return "global", nil
}

func (g git) Config(ctx context.Context, s daytona.GitScope, key string) (string, bool, error) {
	const op = "git config"
	name, err := scope(op, s)
	if err != nil {
		return "", false, err
	}
	query := url.Values{"key": {key}, "scope": {name}}
	if s.Repository != "" {
		query.Set("path", s.Repository)
	}
	var r wire.GitConfigResponse
	if err := g.get(ctx, op, key, "/git/config", query, &r); err != nil || r.Value == nil {
		return "", false, err
	}
	return *r.Value, true, nil
}

func (g git) SetConfig(ctx context.Context, s daytona.GitScope, key, value string) error {
	const op = "git set config"
	name, err := scope(op, s)
	if err != nil {
		return err
	}
	return g.post(ctx, op, key, "/git/config", wire.GitConfigRequest{Path: s.Repository, Key: key, Value: value, Scope: name}, nil)
}

func (g git) SetUser(ctx context.Context, s daytona.GitScope, user, email string) error {
	const op = "git set user"
	name, err := scope(op, s)
	if err != nil {
		return err
	}
	return g.post(ctx, op, s.Repository, "/git/config/user", wire.GitConfigureUserRequest{Path: s.Repository, Name: user, Email: email, Scope: name}, nil)
}

func (g git) StoreCredentials(ctx context.Context, cred daytona.GitCredentials, opts *daytona.GitStoreOptions) error {
	var o daytona.GitStoreOptions
	if opts != nil {
		o = *opts
	}
	return g.post(ctx, "git store credentials", o.Host, "/git/credentials", wire.GitAuthenticateRequest{
		Username: cred.Username, Password: cred.Password, Host: o.Host, Protocol: o.Protocol,
	}, nil)
}
