package repository

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/go-git/go-git/v5/plumbing"

	"github.com/daytona-go/daytona/toolbox/wire"
)

// Init makes a repository, or leaves the one that is there as it is.
func Init(dir, branch string, bare bool, user User) error {
	if _, err := Open(dir, user); err == nil {
		return nil
	}
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return fileError(err)
	}
	_, err := create(dir, branch, bare, user)
	return err
}

// create makes the files of an empty repository.
func create(dir, branch string, bare bool, user User) (*Repository, error) {
	global, err := userConfig(&loader{home: user.Home})
	if err != nil {
		return nil, failf(500, "", "read the configuration: %v", err)
	}
	if branch == "" {
		if v, ok := global.get("init", "", "defaultbranch"); ok && checkBranch(v) == nil {
			branch = v
		} else {
			branch = "master"
		}
	}
	if err := checkBranch(branch); err != nil {
		return nil, err
	}
	gitDir := dir + "/.git"
	if bare {
		gitDir = dir
	}
	for _, d := range []string{"", "/objects/info", "/objects/pack", "/refs/heads", "/refs/tags", "/info", "/hooks"} {
		if err := os.MkdirAll(gitDir+d, 0o777); err != nil {
			return nil, fileError(err)
		}
	}
	config := "[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = " + fmt.Sprint(bare) + "\n"
	if !bare {
		config += "\tlogallrefupdates = true\n"
	}
	for _, f := range [][2]string{
		{"/config", config}, {"/info/exclude", "# Patterns of files that are ignored here and nowhere else; see gitignore(5).\n"},
		{"/description", "Unnamed repository; edit this file 'description' to name the repository.\n"}, {"/HEAD", "ref: refs/heads/" + branch + "\n"},
	} {
		file, err := os.OpenFile(gitDir+f[0], os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err == nil {
			_, err = file.WriteString(f[1])
			err = errors.Join(err, file.Close())
		}
		if err != nil {
			return nil, fileError(err)
		}
	}
	return Open(dir, user)
}

// cleanMessage is git's --cleanup=whitespace.
func cleanMessage(m string) string {
	var out []string
	for line := range strings.SplitSeq(strings.ReplaceAll(m, "\r\n", "\n"), "\n") {
		line = strings.TrimRight(line, " \t\r\v\f")
		if line == "" && (len(out) == 0 || out[len(out)-1] == "") {
			continue
		}
		out = append(out, line)
	}
	m = strings.TrimRight(strings.Join(out, "\n"), "\n")
	if m == "" {
		return ""
	}
	return m + "\n"
}

// Commit records the index.
func (r *Repository) Commit(q *wire.GitCommitRequest) (string, error) {
	if err := r.needWorktree(); err != nil {
		return "", err
	}
	message := cleanMessage(q.Message)
	if message == "" {
		return "", invalid("message is empty")
	}
	if strings.IndexByte(message, 0) >= 0 {
		return "", invalid("message has a NUL byte")
	}
	author := person{clean(q.Author), clean(q.Email)}
	if author.name == "" || author.email == "" {
		known := r.identity()
		if q.Author == "" && author.name == "" {
			author.name = known.name
		}
		if q.Email == "" && author.email == "" {
			author.email = known.email
		}
	}
	if author.name == "" {
		return "", invalid("author %q: has nothing that can be a name", clip(q.Author))
	}
	committer := author
	if q.Committer != "" || q.CommitterEmail != "" {
		if committer = (person{clean(q.Committer), clean(q.CommitterEmail)}); committer.name == "" || committer.email == "" {
			return "", invalid("committer: give a name and an address")
		}
	}
	branch, head, err := r.head()
	if err != nil {
		return "", err
	}
	var hash plumbing.Hash
	err = r.lockedIndex(func(x *index) error {
		before, err := r.treeOf(head)
		if err != nil {
			return err
		}
		parents := []plumbing.Hash{}
		if head != plumbing.ZeroHash {
			parents = append(parents, head)
		}
		merged, err := readRegular(r.gitDir+"/MERGE_HEAD", 64<<10)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, line := range strings.Fields(string(merged)) {
			if !plumbing.IsHash(line) {
				return fmt.Errorf("%s/MERGE_HEAD: not a commit", r.gitDir)
			}
			if h := plumbing.NewHash(line); !slices.Contains(parents, h) {
				parents = append(parents, h)
			}
		}
		tree, err := r.writeTree(x)
		if err != nil {
			return err
		}
		if tree == before && len(parents) < 2 && !q.AllowEmpty {
			return failf(409, "", "nothing to commit: no change is staged")
		}
		var b strings.Builder
		fmt.Fprintf(&b, "tree %s\n", tree)
		for _, p := range parents {
			fmt.Fprintf(&b, "parent %s\n", p)
		}
		now := time.Now()
		fmt.Fprintf(&b, "author %s\ncommitter %s\n\n%s", author.line(now), committer.line(now), message)
		if hash, err = r.write(plumbing.CommitObject, []byte(b.String())); err != nil {
			return err
		}
		subject, _, _ := strings.Cut(message, "\n")
		reason := "commit: " + subject
		switch len(parents) {
		case 0:
			reason = "commit (initial): " + subject
		case 1:
		default:
			reason = "commit (merge): " + subject
		}
		if branch == "" {
			return r.setHead("", hash, reason)
		}
		return r.setRef(branch, hash, &head, reason)
	})
	if err != nil {
		return "", fileError(err)
	}
	r.forgetMerge()
	return hash.String(), nil
}

// Branches lists the local branches.
func (r *Repository) Branches() (*wire.GitBranchList, error) {
	refs, err := r.refs("refs/heads/")
	if err != nil {
		return nil, err
	}
	out := &wire.GitBranchList{Branches: []string{}}
	for name := range refs {
		out.Branches = append(out.Branches, strings.TrimPrefix(name, "refs/heads/"))
	}
	slices.Sort(out.Branches)
	out.Current, _ = r.headBranch()
	return out, nil
}

// CreateBranch makes a branch at HEAD and checks it out.
func (r *Repository) CreateBranch(name string) error {
	if err := checkBranch(name); err != nil {
		return err
	}
	ref := "refs/heads/" + name
	branch, head, err := r.head()
	if err != nil {
		return err
	}
	if _, err := r.resolve(ref, 0); err == nil {
		return failf(409, wire.CodeGitBranchExists, "branch %s exists", name)
	}
	if head == plumbing.ZeroHash {
		return r.setHead(ref, plumbing.ZeroHash, "")
	}
	from := strings.TrimPrefix(branch, "refs/heads/")
	if from == "" {
		from = head.String()
	}
	if err := r.setRef(ref, head, &plumbing.ZeroHash, "branch: Created from HEAD"); err != nil {
		return err
	}
	return r.setHead(ref, head, "checkout: moving from "+from+" to "+name)
}

// DeleteBranch deletes one that is not checked out.
func (r *Repository) DeleteBranch(name string) error {
	if err := checkBranch(name); err != nil {
		return err
	}
	ref := "refs/heads/" + name
	if branch, _, err := r.head(); err != nil {
		return err
	} else if branch == ref {
		return failf(409, "", "branch %s is checked out: check out another one first", name)
	}
	trees, _ := filepath.Glob(r.commonDir + "/worktrees/*/HEAD")
	for _, file := range append(trees, r.commonDir+"/HEAD") {
		if text, err := readRegular(file, 64<<10); err == nil && strings.TrimSpace(string(text)) == "ref: "+ref {
			return failf(409, "", "branch %s is checked out in another working tree", name)
		}
	}
	if _, err := r.resolve(ref, 0); err != nil {
		if errors.Is(err, errNoRef) {
			return failf(404, wire.CodeGitBranchNotFound, "branch %s not found", name)
		}
		return err
	}
	if err := r.deleteRef(ref); err != nil {
		return err
	}
	if slices.Contains(r.config.subs("branch"), name) {
		return editConfig(r.commonDir+"/config", 0o666&^umask(), func(f *configFile) ([]byte, error) { return f.unset("branch", name, ""), nil })
	}
	return nil
}

// Checkout switches to a branch, or, detached, to another commit. A branch that
// only one remote has is made here first.
func (r *Repository) Checkout(name string) error {
	if err := r.needWorktree(); err != nil {
		return err
	}
	if name == "" {
		return invalid("branch is empty")
	}
	branch, head, err := r.head()
	if err != nil {
		return err
	}
	from := strings.TrimPrefix(branch, "refs/heads/")
	if from == "" {
		from = head.String()
	}
	var to plumbing.Hash
	ref, remote := "", ""
	if checkBranch(name) == nil {
		h, err := r.resolve("refs/heads/"+name, 0)
		switch {
		case err == nil:
			to, ref = h, "refs/heads/"+name
		case !errors.Is(err, errNoRef):
			return err
		default:
			if known, err := r.base(name); err != nil {
				return err
			} else if known != plumbing.ZeroHash {
				break
			}
			for _, candidate := range r.config.subs("remote") {
				h, err := r.resolve("refs/remotes/"+candidate+"/"+name, 0)
				if err != nil {
					continue
				}
				if remote != "" && candidate != "origin" {
					continue // origin's goes first
				}
				remote, to, ref = candidate, h, "refs/heads/"+name
			}
		}
	}
	if ref == "" {
		if to, err = r.revision(name); err != nil {
			return err
		}
	}
	if ref != "" && ref == branch {
		return nil
	}
	before, err := r.treeOf(head)
	if err != nil {
		return err
	}
	after, err := r.treeOf(to)
	if err != nil {
		return err
	}
	err = r.lockedIndex(func(x *index) error {
		if _, err := r.move(x, before, after, moveSafe); err != nil {
			return err
		}
		if remote != "" {
			if err := r.setRef(ref, to, &plumbing.ZeroHash, "branch: Created from "+remote+"/"+name); err != nil {
				return err
			}
		}
		return r.setHead(ref, to, "checkout: moving from "+from+" to "+name)
	})
	if err == nil && remote != "" {
		err = r.setUpstream(name, remote, ref)
	}
	return fileError(err)
}

// setUpstream says what a branch is merged with.
func (r *Repository) setUpstream(branch, remote, merge string) error {
	return editConfig(r.commonDir+"/config", 0o666&^umask(), func(f *configFile) ([]byte, error) {
		text, err := f.set("branch", branch, "remote", remote)
		if err != nil {
			return nil, err
		}
		if f, err = parseConfig(text); err != nil {
			return nil, err
		}
		return f.set("branch", branch, "merge", merge)
	})
}

// configPath is the file of a scope.
func configPath(scope, dir string, user User) (string, fs.FileMode, error) {
	switch scope {
	case "", "global":
		if _, err := os.Stat(globalConfig(user.Home)); err != nil {
			if x := xdg(user.Home) + "/git/config"; regular(x) {
				return x, 0o644, nil
			}
		}
		return globalConfig(user.Home), 0o644, nil
	case "system":
		return systemConfig, 0o644, nil
	case "local":
		if dir == "" {
			return "", 0, invalid("path is empty: the local scope is a repository's")
		}
		r, err := Open(dir, user)
		if err != nil {
			return "", 0, err
		}
		r.Close()
		return r.commonDir + "/config", 0o644, nil
	}
	return "", 0, invalid("scope is %q; there are global, local and system", clip(scope))
}

func regular(file string) bool {
	info, err := os.Stat(file)
	return err == nil && info.Mode().IsRegular()
}

// GetConfig returns the value of a key in a scope, nil if it is not set.
func GetConfig(scope, dir, key string, user User) (*string, error) {
	section, sub, name, err := splitKey(key)
	if err != nil {
		return nil, invalid("%v", err)
	}
	file, _, err := configPath(scope, dir, user)
	if err != nil {
		return nil, err
	}
	l := &loader{home: user.Home}
	if scope == "local" {
		l.gitDir = filepath.Dir(file)
	}
	all, err := l.load(nil, file, 0)
	if err != nil {
		return nil, failf(500, "", "read the configuration: %v", err)
	}
	if v, ok := all.get(section, sub, name); ok {
		return &v, nil
	}
	return nil, nil
}

// SetConfig sets keys in a scope.
func SetConfig(scope, dir string, user User, pairs ...[2]string) error {
	file, mode, err := configPath(scope, dir, user)
	if err != nil {
		return err
	}
	return fileError(editConfig(file, mode, func(f *configFile) ([]byte, error) {
		for _, p := range pairs {
			section, sub, key, err := splitKey(p[0])
			if err != nil {
				return nil, invalid("%v", err)
			}
			text, err := f.set(section, sub, key, p[1])
			if err != nil {
				return nil, invalid("%s: %v", p[0], err)
			}
			if f, err = parseConfig(text); err != nil {
				return nil, err
			}
		}
		return f.text, nil
	}))
}
