package toolbox_test

import (
	"os"
	"slices"
	"strings"

	"github.com/daytona-go/daytona/toolbox/wire"
)

// sdkGit works on a clone of a repository without history, and on one that the
// agent makes where the generation can ask for it.
func sdkGit(c *sdkClient, dir, home string) {
	const api = "GitApi"
	sh := func(command string) string {
		c.Helper()
		var r wire.ExecuteResponse
		c.call(200, "ProcessApi", "executeCommand", &r, object{"command": command})
		return r.Result
	}
	if out := sh("git init -q --bare -b main origin.git && echo made"); out != "made\n" {
		c.Fatalf("git, which makes the other side, says %q", out)
	}
	var e wire.ErrorResponse
	c.call(404, api, "cloneRepository", &e, object{"url": "nothing.git", "path": "none"})
	if e.Code != wire.CodeGitRepoNotFound {
		c.Errorf("clone of nothing: %+v", e)
	}
	c.call(200, api, "cloneRepository", nil, object{"url": "origin.git", "path": "r"})
	c.call(200, "FileSystemApi", "uploadFile", nil, "r/a.txt", object{"$file": "one\n"})
	status := func() (s wire.GitStatus) {
		c.Helper()
		c.call(200, api, "getStatus", &s, "r")
		return s
	}
	if s := status(); s.CurrentBranch != "main" || len(s.FileStatus) != 1 || s.FileStatus[0] != (wire.GitFileStatus{Name: "a.txt", Staging: wire.GitUntracked, Worktree: wire.GitUntracked}) {
		c.Errorf("status with a new file: %+v", s)
	}
	c.call(200, api, "addFiles", nil, object{"path": "r", "files": []string{"a.txt"}})
	if s := status(); len(s.FileStatus) != 1 || s.FileStatus[0].Staging != wire.GitAdded {
		c.Errorf("status of what was added: %+v", s)
	}
	var made wire.GitCommitResponse
	c.call(200, api, "commitChanges", &made, object{"path": "r", "message": "first", "author": "Ada", "email": "ada@example.com"})
	var log []wire.GitCommitInfo
	c.call(200, api, "getCommitHistory", &log, "r")
	if len(log) != 1 || log[0].Hash != made.Hash || log[0].Author != "Ada" || strings.TrimSpace(log[0].Message) != "first" {
		c.Errorf("history: %+v, want one commit %s", log, made.Hash)
	}

	c.call(200, api, "pushChanges", nil, object{"path": "r"})
	c.call(201, api, "createBranch", nil, object{"path": "r", "name": "side"})
	c.call(409, api, "createBranch", nil, object{"path": "r", "name": "side"})
	c.call(200, api, "checkoutBranch", nil, object{"path": "r", "branch": "main"})
	branches := func() []string {
		c.Helper()
		var list struct{ Branches []string }
		c.call(200, api, "listBranches", &list, "r")
		slices.Sort(list.Branches)
		return list.Branches
	}
	if list := branches(); !slices.Equal(list, []string{"main", "side"}) {
		c.Errorf("branches: %q", list)
	}
	c.call(204, api, "deleteBranch", nil, object{"path": "r", "name": "side"})
	if list := branches(); !slices.Equal(list, []string{"main"}) {
		c.Errorf("branches after one is deleted: %q", list)
	}
	sh(`git clone -q origin.git other && cd other && git config user.name B && git config user.email b@example.com && git commit -q --allow-empty -m second && git push -q`)
	c.call(200, api, "pullChanges", nil, object{"path": "r"})
	c.call(200, api, "getCommitHistory", &log, "r")
	if len(log) != 2 || log[0].Author != "B" || len(status().FileStatus) != 0 {
		c.Errorf("after the pull: %+v, %+v", log, status())
	}
	if out := sh("cd r && git status --porcelain && git fsck --strict 2>&1 && git rev-parse --abbrev-ref @{u}"); out != "origin/main\n" {
		c.Errorf("git says %q", out)
	}

	if c.generation != "0.205" {
		return
	}
	c.call(201, api, "initRepository", nil, object{"path": "made", "initial_branch": "trunk"})
	c.call(200, api, "configureUser", nil, object{"name": "Ada", "email": "ada@example.com"})
	c.call(200, api, "setGitConfig", nil, object{"path": "made", "key": "pull.rebase", "value": "false", "scope": "local"})
	for _, want := range [][]any{{"Ada", "user.name"}, {"false", "pull.rebase", "made", "local"}} {
		var got wire.GitConfigResponse
		c.call(200, api, "getGitConfig", &got, want[1:]...)
		if got.Value == nil || *got.Value != want[0] {
			c.Errorf("configuration %v: %v", want, got.Value)
		}
	}
	var none wire.GitConfigResponse
	if c.call(200, api, "getGitConfig", &none, "no.such"); none.Value != nil {
		c.Errorf("what is not configured is %q", *none.Value)
	}
	c.call(200, api, "authenticate", nil, object{"username": "u", "password": "p", "host": "git.example.com"})
	if b, err := os.ReadFile(home + "/.git-credentials"); err != nil || string(b) != "https://u:p@git.example.com\n" {
		c.Errorf("credentials: %q %v", b, err)
	}
	c.call(201, api, "addRemote", nil, object{"path": "made", "name": "origin", "url": dir + "/origin.git", "fetch": true})
	var remotes wire.GitRemoteList
	c.call(200, api, "listRemotes", &remotes, "made")
	if len(remotes.Remotes) != 1 || remotes.Remotes[0] != (wire.GitRemote{Name: "origin", URL: dir + "/origin.git"}) {
		c.Errorf("remotes: %+v", remotes)
	}
	c.call(200, api, "resetChanges", nil, object{"path": "made", "mode": "hard", "target": "origin/main"})
	c.call(200, "FileSystemApi", "uploadFile", nil, "made/a.txt", object{"$file": "two\n"})
	c.call(200, api, "restoreFiles", nil, object{"path": "made", "files": []string{"a.txt"}, "worktree": true})
	if b, err := os.ReadFile(dir + "/made/a.txt"); err != nil || string(b) != "one\n" {
		c.Errorf("restored: %q %v", b, err)
	}
	if out := sh("cd made && git status --porcelain --branch"); out != "## trunk\n" {
		c.Errorf("git says %q", out)
	}
}
