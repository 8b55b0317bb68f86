package git_test

import (
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
)

// TestHostileTrees clones repositories whose trees have paths that no git would
// write.
func TestHostileTrees(t *testing.T) {
	for name, tree := range map[string]string{
		".git":          `printf "100755 blob $h\thooks" > x; d=$(git mktree < x); printf "040000 tree $d\t.git\n"`,
		".GIT":          `printf "040000 tree $e\t.GIT\n"`,
		"git~1":         `printf "040000 tree $e\tgit~1\n"`,
		".git::$INDEX":  `printf '040000 tree %s\t.git::$INDEX_ALLOCATION\n' $e`,
		"ignorable":     `printf "040000 tree $e\t.g\u200cit\n"`,
		"..":            `printf "040000 tree $e\t..\n"`,
		".":             `printf "100644 blob $h\t.\n"`,
		"deep ..":       `printf "040000 tree $e\t..\n" > x; d=$(git mktree < x); printf "040000 tree $d\tsub\n"`,
		".gitmodules":   `printf "120000 blob $h\t.gitmodules\n"`,
		"link and dir":  `printf "120000 blob $l\ta\n040000 tree $e\ta\n"`,
		"twice":         `printf "100644 blob $h\ta\n100644 blob $l\ta\n"`,
		"a bomb":        `d=$e; for i in $(seq 10); do for j in 0 1 2 3 4 5 6 7 8 9; do printf "040000 tree $d\t$j\n"; done > x; d=$(git mktree < x); done; cat x`,
		"a deep hole":   `d=$e; for i in $(seq 1100); do printf "040000 tree $d\td\n" > x; d=$(git mktree < x); done; cat x`,
		"a long name":   `printf "100644 blob $h\t%05000d\n" 1`,
		"a blob's name": `printf "100644 blob 0123456789012345678901234567890123456789\tmissing\n"`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBox(t)
			b.sh("", `mkdir outside; git init -q evil; cd evil; h=$(echo pwned | git hash-object -w --stdin); l=$(printf ../outside | git hash-object -w --stdin)
				e=$(printf "100644 blob $h\tpwned\n" | git mktree); t=$( (`+tree+`) | git mktree --missing); c=$(git commit-tree -m evil $t); git update-ref refs/heads/main $c`)
			begin := time.Now()
			_, err := b.git.Clone(t.Context(), b.path("evil"), "deep/clone", nil)
			if err == nil {
				t.Error("it was cloned")
			} else if k := daytona.KindOf(err); k != daytona.KindUnsupported && k != daytona.KindInternal {
				t.Errorf("%v of kind %s", err, k)
			}
			if d := time.Since(begin); d > 30*time.Second {
				t.Errorf("it took %v", d)
			}
			if out := b.sh("", "ls outside; ls -a | grep -v evil; ls deep 2>&1 || true"); strings.Contains(out, "pwned") || !strings.Contains(out, "cannot access 'deep'") {
				t.Error(out)
			}
		})
	}
}

func TestLinksAreNotWrittenThrough(t *testing.T) {
	b := newBox(t)
	b.sh("", `mkdir outside; git init -q r; cd r; ln -s ../outside d; git add d; git commit -qm link; git checkout -q -b dir; git rm -q d; mkdir d; echo > d/pwned; git add d; git commit -qm dir; git checkout -q main`)
	for _, to := range []string{"dir", "main", "dir"} {
		b.ok("checkout", b.git.Checkout(t.Context(), "r", to))
		b.agree("r")
	}
	b.sh("r", "rm -r d; ln -s ../outside d")
	b.ok("restore", b.git.Restore(t.Context(), "r", []string{"."}, nil))
	b.agree("r")
	b.sh("r", "rm -r d; ln -s ../outside d; echo theirs > ../outside/pwned")
	b.ok("reset", b.git.Reset(t.Context(), "r", &daytona.GitResetOptions{Mode: daytona.GitHard, Target: "main"}))
	b.agree("r")
	if b.read("outside/pwned") != "theirs\n" {
		t.Error("a file was changed through a link")
	}
	b.sh("r", "ln -sfn ../outside l")
	b.wantKind("add through a link", b.git.Add(t.Context(), "r", "l/pwned"), daytona.KindInvalid)
	b.wantKind("add from outside", b.git.Add(t.Context(), "r", "../outside/pwned"), daytona.KindInvalid)
	b.wantKind("add absolute from outside", b.git.Add(t.Context(), "r", b.path("outside")), daytona.KindInvalid)
	b.ok("add absolute", b.git.Add(t.Context(), "r", b.path("r/l")))
	b.agree("r")
}

// TestNoProgramIsStarted has every program that a repository can name in place.
func TestNoProgramIsStarted(t *testing.T) {
	b := newBox(t)
	b.sh("", history)
	b.write("touch", "#!/bin/sh\necho $0 $* >> "+b.path("pwned")+"\n")
	b.sh("", `chmod +x touch; git clone -q origin.git r; git clone -q origin.git other; cd other; echo n > n; git add n; git commit -qm n; git push -q; cd ..
		for d in r origin.git/.; do h=$d/.git/hooks; test -d $d/.git || h=$d/hooks; for k in pre-commit post-commit prepare-commit-msg commit-msg post-checkout post-merge pre-push reference-transaction post-index-change fsmonitor-watchman pre-receive update post-receive post-update; do cp touch $h/$k; done; done
		cd r; T=~/touch; for k in core.fsmonitor core.sshCommand core.gitProxy core.pager core.editor core.askPass core.hooksPath filter.x.clean filter.x.smudge filter.x.process diff.external uploadpack.packObjectsHook core.alternateRefsCommand gpg.program remote.origin.uploadpack remote.origin.receivepack remote.origin.vcs; do git config $k $T; done
		git config credential.helper '!~/touch'; git config --add credential.helper ~/touch; git config commit.gpgSign true`)
	// git itself is not asked: it would start them.
	_, err := b.git.Status(t.Context(), "r")
	b.ok("status", err)
	b.write("r/f", "f")
	b.ok("add", b.git.Add(t.Context(), "r", "f"))
	_, err = b.git.Commit(t.Context(), "r", daytona.Commit{Message: "m"})
	b.ok("commit", err)
	b.ok("reset", b.git.Reset(t.Context(), "r", &daytona.GitResetOptions{Mode: daytona.GitHard, Target: "HEAD~1"}))
	b.ok("pull", b.git.Pull(t.Context(), "r", nil))
	b.ok("branch", b.git.CreateBranch(t.Context(), "r", "b"))
	b.write("r/f", "f")
	b.ok("add", b.git.Add(t.Context(), "r", "f"))
	_, err = b.git.Commit(t.Context(), "r", daytona.Commit{Message: "m", Author: "A", Email: "a@example.com"})
	b.ok("commit", err)
	b.ok("push", b.git.Push(t.Context(), "r", nil))
	b.ok("checkout", b.git.Checkout(t.Context(), "r", "main"))
	_, err = b.git.Clone(t.Context(), b.path("r"), "c", nil)
	b.ok("clone", err)
	// A filter is not run, and what it would do is not made up.
	b.write("r/.git/info/attributes", "* filter=x\n")
	b.write("r/g", "g")
	b.wantKind("add through a filter", b.git.Add(t.Context(), "r", "g"), daytona.KindUnsupported)
	if data, err := os.ReadFile(b.path("pwned")); err == nil {
		t.Errorf("started:\n%s", data)
	}
}

// TestOddFiles has what is no regular file, or none of git's, where git's files
// are.
func TestOddFiles(t *testing.T) {
	for name, c := range map[string]struct {
		script string
		kind   daytona.Kind // of status; "" for none
	}{
		"pipe as .gitignore":      {`mkfifo .gitignore`, ""},
		"pipe as .gitattributes":  {`mkfifo .gitattributes; echo >> a`, ""},
		"link as .gitignore":      {`ln -s /dev/zero .gitignore`, ""},
		"pipe as config":          {`rm .git/config; mkfifo .git/config`, daytona.KindInternal},
		"pipe as index":           {`rm .git/index; mkfifo .git/index`, daytona.KindInternal},
		"pipe as HEAD":            {`rm .git/HEAD; mkfifo .git/HEAD`, daytona.KindNotFound},
		"pipe as branch":          {`rm .git/refs/heads/main; mkfifo .git/refs/heads/main`, ""},
		"pipe as packed-refs":     {`mkfifo .git/packed-refs; rm .git/refs/heads/main`, daytona.KindInternal},
		"pipe as object":          {`f=$(find .git/objects -type f | sort | head -1); for f in $(find .git/objects -type f); do rm -f $f; mkfifo $f; done; rm .git/index`, daytona.KindInternal},
		"endless exclude":         {`ln -sf /dev/zero .git/info/exclude`, ""},
		"includes in a circle":    {`git config include.path config`, daytona.KindInternal},
		"no configuration at all": {`echo '[core' > .git/config`, daytona.KindInternal},
		"cut index":               {`truncate -s 100 .git/index`, daytona.KindInternal},
		"huge count in the index": {`printf 'DIRC\0\0\0\2\377\377\377\377aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa' > .git/index`, daytona.KindInternal},
		"HEAD outside":            {`echo 'ref: refs/heads/../../../x' > .git/HEAD`, daytona.KindInternal},
		"HEAD nonsense":           {`echo nonsense > .git/HEAD`, daytona.KindInternal},
		"symbolic circle":         {`echo 'ref: refs/heads/b' > .git/refs/heads/a; echo 'ref: refs/heads/a' > .git/refs/heads/b; echo 'ref: refs/heads/a' > .git/HEAD`, daytona.KindInternal},
		"sha256":                  {`rm -rf .git; git init -q --object-format=sha256`, daytona.KindUnsupported},
		"split index":             {`git update-index --split-index`, daytona.KindUnsupported},
		"gitdir nowhere":          {`rm -rf .git; echo 'gitdir: /nowhere' > .git`, daytona.KindNotFound},
		"gitdir nonsense":         {`rm -rf .git; echo nonsense > .git`, daytona.KindNotFound},
		"bare":                    {`git config core.bare true`, daytona.KindInvalid},
		"patterns that explode":   {`for i in $(seq 50); do echo '*a*a*a*a*a*a*a*a*a*a*a*a*b'; echo '**/a/**/a/**/a/**/a/**/a/**/b'; done > .gitignore; touch $(printf 'a%.0s' $(seq 200))`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBox(t)
			b.sh("", `git init -q r; cd r; echo a > a; git add a; git commit -qm a; `+c.script)
			begin := time.Now()
			_, err := b.git.Status(t.Context(), "r")
			if c.kind == "" {
				b.ok("status", err)
			} else {
				b.wantKind("status", err, c.kind)
			}
			if d := time.Since(begin); d > 20*time.Second {
				t.Errorf("it took %v", d)
			}
		})
	}
	b := newBox(t)
	b.sh("", `git init -q r; cd r; echo a > a; git add a; git commit -qm a; f=$(find .git/objects -type f | head -1); mv $f ../object; ln -s ../../../../object $f`)
	_, err := b.git.Clone(t.Context(), b.path("r"), "c", nil)
	b.wantKind("a link as object", err, daytona.KindUnsupported)
	b.sh("r", "touch .git/index.lock; echo b > b")
	b.wantKind("a lock", b.git.Add(t.Context(), "r", "b"), daytona.KindConflict)
}

func TestConfiguration(t *testing.T) {
	b := newBox(t)
	ctx := t.Context()
	b.ok("init", b.git.Init(ctx, "new/repo", &daytona.GitInitOptions{Branch: "trunk"}))
	b.ok("init again", b.git.Init(ctx, "new/repo", nil))
	b.ok("init bare", b.git.Init(ctx, "bare", &daytona.GitInitOptions{Bare: true}))
	if got := b.sh("new/repo", "git symbolic-ref HEAD; git -C ~/bare rev-parse --is-bare-repository; git -C ~/bare symbolic-ref HEAD; git fsck"); !strings.HasPrefix(got, "refs/heads/trunk\ntrue\nrefs/heads/main\n") {
		t.Error(got)
	}
	b.agree("new/repo")
	for _, bad := range []string{"-x", "a..b", "a b", "a.lock", "HEAD", "@{1}", "x/"} {
		b.wantKind("branch "+bad, b.git.Init(ctx, "other", &daytona.GitInitOptions{Branch: bad}), daytona.KindInvalid)
	}
	global, local := daytona.GitScope{}, daytona.GitScope{Repository: "new/repo"}
	for _, v := range []string{"plain", " spaces ", `quo"ted \ back`, "new\nline\ttab", "# ; comment", "ünï", ""} {
		for name, s := range map[string]daytona.GitScope{"global": global, "local": local} {
			b.ok("set", b.git.SetConfig(ctx, s, "some.Sub.Section.Key", v))
			got, ok, err := b.git.Config(ctx, s, "some.Sub.Section.key")
			if err != nil || !ok || got != v {
				t.Errorf("%s: %q %v %v, want %q", name, got, ok, err, v)
			}
			if out := b.sh("new/repo", "git config --"+name+" some.Sub.Section.key"); out != v+"\n" {
				t.Errorf("git reads %q, want %q", out, v)
			}
		}
	}
	// What git writes is read, and what a person wrote stays.
	b.write(".gitconfig", "# mine\n[user]\n\tname = Me ; really\n[alias \"x\"] st = status\n")
	b.ok("user", b.git.SetUser(ctx, global, "Some Body", "some@example.com"))
	b.sh("new/repo", `git config --global x.y 'a "b" # c'; git config --local --add multi.v 1; git config --local --add multi.v 2`)
	if got := b.read(".gitconfig"); !strings.Contains(got, "# mine\n") || !strings.Contains(got, "[alias \"x\"] st = status\n") {
		t.Error(got)
	}
	for key, want := range map[string]string{"user.name": "Some Body", "x.y": `a "b" # c`, "alias.x.st": "status"} {
		if got, ok, err := b.git.Config(ctx, global, key); err != nil || !ok || got != want {
			t.Errorf("%s: %q %v %v", key, got, ok, err)
		}
	}
	if got, _, err := b.git.Config(ctx, local, "multi.v"); err != nil || got != "2" {
		t.Errorf("the last of several: %q %v", got, err)
	}
	if _, ok, err := b.git.Config(ctx, global, "not.set"); ok || err != nil {
		t.Errorf("not set: %v %v", ok, err)
	}
	for _, bad := range []string{"", "nosection", ".x", "x.", "a.b\n.c", "a.1", "a.b_c"} {
		b.wantKind("key "+bad, b.git.SetConfig(ctx, global, bad, "x"), daytona.KindInvalid)
	}
	b.wantKind("NUL", b.git.SetConfig(ctx, global, "a.b", "x\x00y"), daytona.KindInvalid)
	b.wantKind("no repository", b.git.SetConfig(ctx, daytona.GitScope{Repository: "nope"}, "a.b", "x"), daytona.KindNotFound)
	// Who commits if nobody is named.
	b.write("new/repo/f", "f")
	b.ok("add", b.git.Add(ctx, "new/repo", "."))
	_, err := b.git.Commit(ctx, "new/repo", daytona.Commit{Message: "s  \n\n\n\nbody \n\n", Committer: "C", CommitterEmail: "c@example.com"})
	b.ok("commit", err)
	if got := b.sh("new/repo", "git log --format='%an|%ae|%cn|%ce|%B'; git reflog --format=%gs"); got != "Some Body|some@example.com|C|c@example.com|s\n\nbody\n\ncommit (initial): s\n" {
		t.Errorf("%q", got)
	}
	for what, c := range map[string]daytona.Commit{"message": {Message: " \n"}, "author": {Message: "m", Author: "<>", Email: "e"}, "NUL": {Message: "a\x00b"}} {
		_, err := b.git.Commit(ctx, "new/repo", c)
		b.wantKind("commit without "+what, err, daytona.KindInvalid)
	}
	_, err = b.git.Commit(ctx, "new/repo", daytona.Commit{Message: "m", Author: "A\nparent 123", Email: "e>\nx"})
	b.wantKind("nothing to commit", err, daytona.KindConflict)
	_, err = b.git.Commit(ctx, "new/repo", daytona.Commit{Message: "m", Author: "A\nparent 123", Email: "e>\nx", AllowEmpty: true})
	b.ok("commit with lines in the author", err)
	b.agree("new/repo")

	branches, err := b.git.Branches(ctx, "new/repo")
	if err != nil || len(branches) != 1 || branches[0] != "trunk" {
		t.Errorf("%v %v", branches, err)
	}
	b.wantKind("delete the current branch", b.git.DeleteBranch(ctx, "new/repo", "trunk"), daytona.KindConflict)
	b.wantKind("delete no branch", b.git.DeleteBranch(ctx, "new/repo", "nope"), daytona.KindNotFound)
	b.wantKind("create one that exists", b.git.CreateBranch(ctx, "new/repo", "trunk"), daytona.KindConflict)
	b.wantKind("check nothing out", b.git.Checkout(ctx, "new/repo", "-f"), daytona.KindNotFound)
	b.wantKind("check a range out", b.git.Checkout(ctx, "new/repo", "trunk..trunk"), daytona.KindNotFound)
	b.sh("new/repo", "git branch a/b; git branch c; git pack-refs --all; git config branch.c.remote origin")
	b.ok("delete", b.git.DeleteBranch(ctx, "new/repo", "a/b"))
	b.ok("delete", b.git.DeleteBranch(ctx, "new/repo", "c"))
	if got := b.sh("new/repo", "git branch --format='%(refname)'; git config --get-regexp branch || true"); got != "refs/heads/trunk\n" {
		t.Error(got)
	}
	b.agree("new/repo")
}

// TestLFS looks at files that Git LFS keeps.
func TestLFS(t *testing.T) {
	b := newBox(t)
	if _, err := b.try("", "git lfs version"); err != nil {
		t.Skip("git-lfs is not installed")
	}
	b.sh("", `git lfs install --skip-repo >/dev/null; git init -q r; cd r; git lfs track '*.bin' >/dev/null; head -c 100000 /dev/urandom > big.bin; echo small > s.bin; echo t > t; git add .; git commit -qm lfs`)
	b.agree("r")
	b.sh("r", "touch big.bin s.bin")
	b.agree("r")
	b.sh("r", "head -c 100000 /dev/urandom > big.bin")
	b.agree("r")
	b.wantKind("add", b.git.Add(t.Context(), "r", "big.bin"), daytona.KindUnsupported)
	r, err := b.git.Clone(t.Context(), b.path("r"), "c", nil)
	b.ok("clone", err)
	if r.LFSPointers != 2 {
		t.Errorf("%+v, want 2 pointers", r)
	}
	b.agree("c")
}

// TestRequests sends what no client of ours does.
func TestRequests(t *testing.T) {
	b := newBox(t)
	b.sh("", `git init -q r; cd r; echo a > a; git add a; git commit -qm a`)
	for name, c := range map[string]struct {
		method, path, body string
		status             int
		want               string
	}{
		"no path":         {"GET", "/git/status", "", 400, "path"},
		"NUL":             {"GET", "/git/status?path=a%00b", "", 400, "NUL"},
		"no JSON":         {"POST", "/git/add", "{", 400, "INVALID_REQUEST_BODY"},
		"wrong type":      {"POST", "/git/add", `{"path":"r","files":"a"}`, 400, "INVALID_REQUEST_BODY"},
		"no files":        {"POST", "/git/add", `{"path":"r"}`, 400, "files"},
		"not there":       {"GET", "/git/status?path=nope", "", 404, "GIT_REPO_NOT_FOUND"},
		"no branch":       {"POST", "/git/checkout", `{"path":"r","branch":"nope"}`, 404, "GIT_BRANCH_NOT_FOUND"},
		"branch exists":   {"POST", "/git/branches", `{"path":"r","name":"main"}`, 409, "GIT_BRANCH_EXISTS"},
		"history":         {"GET", "/git/history?path=r", "", 200, `"timestamp":"20`},
		"limit":           {"GET", "/git/history?path=r&limit=-1", "", 400, "limit"},
		"branches":        {"GET", "/git/branches?path=r", "", 200, `{"branches":["main"],"current":"main"}`},
		"remotes":         {"GET", "/git/remotes?path=r", "", 200, `{"remotes":[]}`},
		"status":          {"GET", "/git/status?path=r", "", 200, `"fileStatus":[]`},
		"config":          {"GET", "/git/config?key=not.set", "", 200, `{"value":null}`},
		"no key":          {"GET", "/git/config", "", 400, "key"},
		"config of scope": {"GET", "/git/config?key=a.b&scope=mine", "", 400, "scope"},
		"local config":    {"GET", "/git/config?key=a.b&scope=local", "", 400, "path"},
		"a mode":          {"POST", "/git/reset", `{"path":"r","mode":"harder"}`, 400, "harder"},
		"hard with files": {"POST", "/git/reset", `{"path":"r","mode":"hard","files":["a"]}`, 400, "mixed"},
		"no file":         {"POST", "/git/restore", `{"path":"r","files":["nope"]}`, 400, "nope"},
		"magic":           {"POST", "/git/add", `{"path":"r","files":[":(exclude)a"]}`, 501, "NOT_SUPPORTED"},
		"no such route":   {"PUT", "/git/status?path=r", "", 405, ""},
	} {
		req, err := http.NewRequestWithContext(t.Context(), c.method, "http://agent"+c.path, strings.NewReader(c.body))
		b.ok(name, err)
		resp, err := b.http.Do(req)
		b.ok(name, err)
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		b.ok(name, err)
		if resp.StatusCode != c.status || !strings.Contains(string(body), c.want) {
			t.Errorf("%s: %d %s, want %d with %q", name, resp.StatusCode, body, c.status, c.want)
		}
	}
}
