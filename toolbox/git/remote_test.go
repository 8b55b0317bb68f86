package git_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
)

// secret is a password with what has to be escaped in a URL.
const secret = "s3cr3t/päss %word"

// web is git http-backend over the box's repositories. Below /private, it wants
// the user "u" and the secret; below /forbidden, it lets nobody in.
func (b *box) web(tls bool) *httptest.Server {
	out, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		b.t.Fatal(err)
	}
	backend := &cgi.Handler{Path: strings.TrimSpace(string(out)) + "/git-http-backend", Root: "/", Env: append([]string{
		"GIT_PROJECT_ROOT=" + b.dir, "GIT_HTTP_EXPORT_ALL=1", "REMOTE_USER=u"}, b.env...)}
	var server *httptest.Server
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Body != nil && r.ContentLength < 0 { // CGI has to be told the length
			body, err := io.ReadAll(r.Body)
			if err != nil {
				return
			}
			r.Body, r.ContentLength, r.TransferEncoding = io.NopCloser(bytes.NewReader(body)), int64(len(body)), nil
		}
		if rest, ok := strings.CutPrefix(r.URL.Path, "/private"); ok {
			if u, p, ok := r.BasicAuth(); !ok || u != "u" || p != secret {
				w.Header().Set("WWW-Authenticate", "Basic realm=git")
				http.Error(w, "no: "+p, http.StatusUnauthorized) // a server that gives away what it got
				return
			}
			r.URL.Path = rest
		}
		if strings.HasPrefix(r.URL.Path, "/forbidden") {
			http.Error(w, "no", http.StatusForbidden)
			return
		}
		backend.ServeHTTP(w, r)
	})
	if tls {
		server = httptest.NewTLSServer(h)
	} else {
		server = httptest.NewServer(h)
	}
	b.t.Cleanup(server.Close)
	return server
}

// history makes a bare repository "origin.git" with two branches that meet, a
// tag, a submodule and ends of lines of both kinds.
const history = `git init -q seed; cd seed; mkdir d; echo 1 > a; printf 'x\r\n' > d/crlf; seq 1000 > long; git add .; git commit -qm 1
	git checkout -q -b side; echo side > side; git add .; git commit -qm side; git checkout -q main; echo 2 > a; git commit -qam 2; git merge -q --no-ff -m merge side
	git tag -a -m v1 v1; printf '*.txt text eol=crlf\n' > .gitattributes; echo t > t.txt; git add .; git commit -qm attributes
	git init -q ../sub; (cd ../sub; echo > f; git add f; git commit -qm s); git submodule -q add ../sub sm 2>/dev/null; git commit -qm sub
	git checkout -q side; echo only here >> side; git commit -qam 'only on side'; git checkout -q main
	cd ..; git clone -q --bare seed origin.git; git -C origin.git config http.receivepack true; git -C origin.git config uploadpack.allowAnySHA1InWant true; git init -q --bare empty.git`

func TestClone(t *testing.T) {
	b := newBox(t)
	b.sh("", history)
	url := b.web(false).URL
	clone := func(name, url string, opts *daytona.CloneOptions) daytona.CloneResult {
		t.Helper()
		r, err := b.git.Clone(t.Context(), url, name, opts)
		b.ok("clone "+url, err)
		b.agree(name)
		return r
	}
	tip := strings.TrimSpace(b.sh("seed", "git rev-parse main"))
	for name, url := range map[string]string{"http": url + "/origin.git", "file": "file://" + b.path("origin.git"), "path": "origin.git", "working tree": b.path("seed")} {
		dir := "cloned " + name
		if r := clone(dir, url, nil); r != (daytona.CloneResult{Hash: tip, Branch: "main"}) {
			t.Errorf("%s: %+v", name, r)
		}
		// git's clone has the same files, remote, branches and configuration.
		b.sh("", "rm -rf real; git clone -q --single-branch "+url+" real")
		same := `git ls-files -s; git for-each-ref | grep -v refs/tags; git rev-list --all | sort; git config --get-regexp 'branch|remote.*fetch' | sort; find . -path ./.git -prune -o -type f -print0 | sort -z | xargs -0 sha1sum`
		if got, want := b.sh(dir, same), b.sh("real", same); got != want {
			t.Errorf("%s:\n%s", name, diff(got, want))
		}
		if got := b.read(dir + "/t.txt"); got != "t\r\n" {
			t.Errorf("%s: %q", name, got)
		}
		log, err := b.git.Log(t.Context(), dir, nil)
		b.ok("log", err)
		var hashes string
		for _, c := range log {
			hashes += c.Hash + "\n"
		}
		if want := b.sh(dir, "git log --format=%H"); hashes != want {
			t.Errorf("%s: log\n%s, want\n%s", name, hashes, want)
		}
		if log[len(log)-1].Message != "1\n" || log[0].Author != "A" || log[0].Email != "a@example.com" || time.Since(log[0].Time) > time.Hour {
			t.Errorf("log: %+v", log[0])
		}
	}
	if log, err := b.git.Log(t.Context(), "cloned http", &daytona.GitLogOptions{Limit: 2}); err != nil || len(log) != 2 {
		t.Errorf("limited log: %v %v", log, err)
	}

	if r := clone("branch", url+"/origin.git", &daytona.CloneOptions{Branch: "side"}); r.Branch != "side" {
		t.Errorf("%+v", r)
	}
	if r := clone("tag", url+"/origin.git", &daytona.CloneOptions{Branch: "v1"}); r.Branch != "" || r.Hash != strings.TrimSpace(b.sh("seed", "git rev-parse v1^{}")) {
		t.Errorf("%+v", r)
	}
	only := strings.TrimSpace(b.sh("seed", "git rev-parse side"))
	for name, opts := range map[string]*daytona.CloneOptions{
		"commit": {Commit: only}, "short commit": {Commit: only[:8]}, "commit at depth": {Commit: only, Depth: 1}, "old commit at depth": {Commit: strings.TrimSpace(b.sh("seed", "git rev-parse main~4")), Depth: 1},
	} {
		if r := clone(name, url+"/origin.git", opts); r.Branch != "" || !strings.HasPrefix(r.Hash, opts.Commit) {
			t.Errorf("%s: %+v", name, r)
		}
	}
	clone("shallow", url+"/origin.git", &daytona.CloneOptions{Depth: 2})
	if got := b.sh("shallow", "git rev-parse --is-shallow-repository; git rev-list --count HEAD"); got != "true\n2\n" {
		t.Errorf("shallow: %q", got)
	}
	if log, err := b.git.Log(t.Context(), "shallow", nil); err != nil || len(log) != 2 {
		t.Errorf("log of a shallow clone: %d, %v", len(log), err)
	}
	clone("all", url+"/origin.git", &daytona.CloneOptions{AllBranches: true})
	if got := b.sh("all", "git branch -r | wc -l"); got != "3\n" {
		t.Errorf("all branches: %q", got)
	}
	if r := clone("nothing", url+"/empty.git", nil); r != (daytona.CloneResult{Branch: "main"}) {
		t.Errorf("empty: %+v", r)
	}
	b.sh("", "git -C empty.git symbolic-ref HEAD refs/heads/trunk; git clone -q empty.git 'real nothing' 2>/dev/null")
	if r := clone("local nothing", "empty.git", nil); r != (daytona.CloneResult{Branch: "trunk"}) {
		t.Errorf("empty: %+v", r)
	}
	if got, want := b.sh("local nothing", "cat .git/HEAD; git config --get-regexp 'branch|remote'"), b.sh("real nothing", "cat .git/HEAD; git config --get-regexp 'branch|remote'"); got != want {
		t.Errorf("empty:\n%s", diff(got, want))
	}
	b.sh("", "mkdir there")
	clone("there", url+"/origin.git", nil)

	for name, c := range map[string]struct {
		url  string
		opts *daytona.CloneOptions
		kind daytona.Kind
	}{
		"no repository":       {url + "/nope.git", nil, daytona.KindNotFound},
		"no local repository": {b.path("nope"), nil, daytona.KindNotFound},
		"no branch":           {url + "/origin.git", &daytona.CloneOptions{Branch: "nope"}, daytona.KindNotFound},
		"no commit":           {url + "/origin.git", &daytona.CloneOptions{Commit: strings.Repeat("ab", 20)}, daytona.KindNotFound},
		"no such commit":      {url + "/origin.git", &daytona.CloneOptions{Commit: "--upload-pack=x"}, daytona.KindInvalid},
		"option as branch":    {url + "/origin.git", &daytona.CloneOptions{Branch: "--upload-pack=x"}, daytona.KindInvalid},
		"depth":               {url + "/origin.git", &daytona.CloneOptions{Depth: -1}, daytona.KindInvalid},
		"nobody there":        {"http://127.0.0.1:1/x.git", nil, daytona.KindUnavailable},
		"forbidden":           {url + "/forbidden/x.git", nil, daytona.KindForbidden},
		"a program":           {"ext::sh -c 'touch " + b.path("pwned") + "'", nil, daytona.KindInvalid},
		"another program":     {"fd::7", nil, daytona.KindInvalid},
		"an option":           {"--upload-pack=touch " + b.path("pwned"), nil, daytona.KindInvalid},
		"an option as host":   {"ssh://-oProxyCommand=touch%20pwned/x", nil, daytona.KindInvalid},
		"an option as host 2": {"-oProxyCommand=touch pwned:x", nil, daytona.KindInvalid},
		"ftp":                 {"ftp://example.com/x.git", nil, daytona.KindInvalid},
		"a line":              {"https://example.com/x.git\nhost=evil", nil, daytona.KindInvalid},
		"empty":               {"", nil, daytona.KindInvalid},
	} {
		_, err := b.git.Clone(t.Context(), c.url, "deep/er/failed", c.opts)
		b.wantKind(name, err, c.kind)
		if _, err := os.Lstat(b.path("deep")); err == nil {
			t.Errorf("%s: something is left", name)
		}
	}
	if _, err := os.Lstat(b.path("pwned")); err == nil {
		t.Error("a program was started")
	}
	_, err := b.git.Clone(t.Context(), url+"/origin.git", "seed", nil)
	b.wantKind("clone over a repository", err, daytona.KindConflict)
}

// everything below the box is searched for the secret in all its forms.
func (b *box) searchSecret(except ...string) {
	b.t.Helper()
	_ = filepath.WalkDir(b.dir, func(p string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil
		}
		data, _ := os.ReadFile(p)
		for _, form := range []string{secret, "s3cr3t"} {
			if bytes.Contains(data, []byte(form)) && !strings.HasSuffix(p, strings.Join(except, "|")) {
				b.t.Errorf("%s has the secret", p)
			}
		}
		return nil
	})
}

func (b *box) noSecret(what string, err error) {
	b.t.Helper()
	if err != nil && strings.Contains(fmt.Sprintf("%v %+v %#v", err, err, err), "s3cr3t") {
		b.t.Errorf("%s: the secret is in the error: %v", what, err)
	}
}

func TestCredentials(t *testing.T) {
	b := newBox(t)
	b.sh("", history)
	server := b.web(false)
	host := strings.TrimPrefix(server.URL, "http://")
	private := server.URL + "/private/origin.git"
	// Not as url.UserPassword escapes it, but as people do.
	inURL := "http://u:s3cr3t%2Fp%C3%A4ss%20%25word@" + host + "/private/origin.git"
	cred := &daytona.GitCredentials{Username: "u", Password: secret}

	_, err := b.git.Clone(t.Context(), private, "c", nil)
	b.wantKind("without", err, daytona.KindUnauthorized)
	_, err = b.git.Clone(t.Context(), private, "c", &daytona.CloneOptions{Credentials: &daytona.GitCredentials{Username: "x", Password: secret}})
	b.wantKind("wrong", err, daytona.KindUnauthorized)
	b.noSecret("wrong", err)
	_, err = b.git.Clone(t.Context(), inURL+"x", "c", nil)
	b.wantKind("no repository", err, daytona.KindNotFound)
	b.noSecret("no repository", err)
	_, err = b.git.Clone(t.Context(), strings.Replace(inURL, host, "127.0.0.1:1", 1), "c", nil)
	b.noSecret("nobody there", err)
	_, err = b.git.Clone(t.Context(), "http://u:s3cr3t%zz@"+host+"/x", "c", nil)
	b.wantKind("malformed", err, daytona.KindInvalid)
	b.noSecret("malformed", err)

	_, err = b.git.Clone(t.Context(), private, "c", &daytona.CloneOptions{Credentials: cred})
	b.ok("clone", err)
	_, err = b.git.Clone(t.Context(), inURL, "c2", nil)
	b.ok("clone with a URL", err)
	if got := strings.TrimSpace(b.sh("c2", "git config remote.origin.url")); got != private {
		t.Errorf("stored URL: %q", got)
	}
	b.sh("c", "echo n > n; git add n; git commit -qm n")
	b.wantKind("push without", b.git.Push(t.Context(), "c", nil), daytona.KindUnauthorized)
	b.ok("push", b.git.Push(t.Context(), "c", &daytona.GitPushOptions{Credentials: cred}))
	b.wantKind("pull without", b.git.Pull(t.Context(), "c2", nil), daytona.KindUnauthorized)
	b.ok("pull", b.git.Pull(t.Context(), "c2", &daytona.GitPullOptions{Credentials: cred}))
	if b.read("c2/n") != "n\n" {
		t.Error("the pull brought nothing")
	}
	b.searchSecret()

	// A redirect to another host is not told.
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			t.Errorf("the credentials went to another host: %s", r.URL)
		}
		http.NotFound(w, r)
	}))
	defer other.Close()
	away := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, other.URL+r.URL.RequestURI(), http.StatusFound)
	}))
	defer away.Close()
	if _, err = b.git.Clone(t.Context(), away.URL+"/x.git", "c3", &daytona.CloneOptions{Credentials: cred}); err == nil {
		t.Error("a clone of nothing")
	}

	// Asked to be stored: in one file, for this host, for git as well.
	b.ok("store", b.git.StoreCredentials(t.Context(), *cred, &daytona.GitStoreOptions{Host: host, Protocol: "http"}))
	b.ok("store again", b.git.StoreCredentials(t.Context(), *cred, &daytona.GitStoreOptions{Host: host, Protocol: "http"}))
	if info, err := os.Stat(b.path(".git-credentials")); err != nil || info.Mode().Perm() != 0o600 || strings.Count(b.read(".git-credentials"), "\n") != 1 {
		t.Errorf("the file: %v %v %q", info, err, b.read(".git-credentials"))
	}
	b.ok("pull with what is stored", b.git.Pull(t.Context(), "c", nil))
	b.sh("c", "git fetch -q; git ls-remote -q origin")
	_, err = b.git.Clone(t.Context(), private, "c4", nil)
	b.ok("clone with what is stored", err)
	_, err = b.git.Clone(t.Context(), strings.Replace(private, "127.0.0.1", "localhost", 1), "c5", nil)
	b.wantKind("another host", err, daytona.KindUnauthorized)
	b.searchSecret(".git-credentials")

	for name, bad := range map[string]daytona.GitStoreOptions{"protocol": {Protocol: "ssh"}, "host": {Host: "a/b"}, "line": {Host: "a\nb"}, "user": {Host: "u@h"}} {
		b.wantKind("store: "+name, b.git.StoreCredentials(t.Context(), *cred, &bad), daytona.KindInvalid)
	}
	b.wantKind("store nothing", b.git.StoreCredentials(t.Context(), daytona.GitCredentials{}, nil), daytona.KindInvalid)

	// A remote's URL is stored as given, but shown without the password.
	b.ok("add remote", b.git.AddRemote(t.Context(), "c", daytona.GitRemote{Name: "with", URL: inURL}, &daytona.GitAddRemoteOptions{Fetch: true}))
	remotes, err := b.git.Remotes(t.Context(), "c")
	if err != nil || len(remotes) != 2 || strings.Contains(fmt.Sprint(remotes), "s3cr3t") {
		t.Errorf("remotes: %v %v", remotes, err)
	}
}

func TestTLS(t *testing.T) {
	b := newBox(t)
	b.sh("", history)
	url := b.web(true).URL + "/origin.git"
	_, err := b.git.Clone(t.Context(), url, "c", nil)
	b.wantKind("a certificate of nobody", err, daytona.KindUnavailable)
	_, err = b.git.Clone(t.Context(), url, "c", &daytona.CloneOptions{InsecureSkipTLS: true})
	b.ok("any certificate", err)
	b.agree("c")
}

func TestPushAndPull(t *testing.T) {
	for _, scheme := range []string{"http", "file", "ssh"} {
		t.Run(scheme, func(t *testing.T) {
			b := newBox(t)
			b.sh("", history)
			var base string
			switch scheme {
			case "http":
				base = b.web(false).URL + "/"
			case "file":
				base = "file://" + b.dir + "/"
			case "ssh":
				base = b.sshd()
			}
			url := base + "origin.git"
			for _, c := range []string{"one", "two"} {
				_, err := b.git.Clone(t.Context(), url, c, nil)
				b.ok("clone", err)
				b.agree(c)
			}
			commit := func(dir, file string) {
				t.Helper()
				b.write(dir+"/"+file, file)
				b.ok("add", b.git.Add(t.Context(), dir, "."))
				_, err := b.git.Commit(t.Context(), dir, daytona.Commit{Message: file, Author: "A", Email: "a@example.com"})
				b.ok("commit", err)
				b.agree(dir)
			}
			b.ok("pull nothing", b.git.Pull(t.Context(), "one", nil))
			b.ok("push nothing", b.git.Push(t.Context(), "one", nil))
			commit("one", "n/1")
			commit("one", "n/2")
			b.ok("push", b.git.Push(t.Context(), "one", nil))
			b.agree("one")
			b.sh("origin.git", "git fsck --strict")
			b.ok("pull", b.git.Pull(t.Context(), "two", nil))
			b.agree("two")
			if b.read("two/n/2") != "n/2" {
				t.Error("the pull brought nothing")
			}
			// Diverged.
			commit("one", "o")
			b.ok("push", b.git.Push(t.Context(), "one", nil))
			commit("two", "t")
			b.wantKind("push of diverged", b.git.Push(t.Context(), "two", nil), daytona.KindConflict)
			b.wantKind("pull of diverged", b.git.Pull(t.Context(), "two", nil), daytona.KindConflict)
			if s := b.agree("two"); s.Ahead != 1 || s.Behind != 1 {
				t.Errorf("ahead %d, behind %d", s.Ahead, s.Behind)
			}
			b.ok("reset", b.git.Reset(t.Context(), "two", &daytona.GitResetOptions{Mode: daytona.GitHard, Target: "origin/main"}))
			b.agree("two")
			// In the way of a pull.
			commit("one", "way")
			b.ok("push", b.git.Push(t.Context(), "one", nil))
			b.write("two/way", "mine")
			b.wantKind("pull over a file", b.git.Pull(t.Context(), "two", nil), daytona.KindConflict)
			if b.read("two/way") != "mine" {
				t.Error("the pull overwrote a file")
			}
			b.sh("two", "rm way")
			b.ok("pull", b.git.Pull(t.Context(), "two", nil))
			// Another branch.
			b.ok("branch", b.git.CreateBranch(t.Context(), "one", "topic/x"))
			commit("one", "topic")
			b.ok("push a branch", b.git.Push(t.Context(), "one", &daytona.GitPushOptions{SetUpstream: true}))
			if s := b.agree("one"); s.Upstream != "origin/topic/x" && s.Upstream != "" {
				t.Errorf("upstream %q", s.Upstream)
			}
			b.ok("pull another branch", b.git.Pull(t.Context(), "two", &daytona.GitPullOptions{Branch: "topic/x"}))
			b.agree("two")
			b.wantKind("pull no branch", b.git.Pull(t.Context(), "two", &daytona.GitPullOptions{Branch: "nope"}), daytona.KindNotFound)
			b.wantKind("push no branch", b.git.Push(t.Context(), "two", &daytona.GitPushOptions{Branch: "nope"}), daytona.KindNotFound)
			b.wantKind("push to no remote", b.git.Push(t.Context(), "two", &daytona.GitPushOptions{Remote: "nope"}), daytona.KindNotFound)
			b.wantKind("an option as remote", b.git.Push(t.Context(), "two", &daytona.GitPushOptions{Remote: "--receive-pack=x"}), daytona.KindNotFound)
			// The other repository's hook says no, with a reason.
			if scheme != "file" {
				b.sh("origin.git", `printf '#!/bin/sh\necho because of reasons >&2; exit 1\n' > hooks/pre-receive; chmod +x hooks/pre-receive`)
				commit("one", "refused")
				err := b.git.Push(t.Context(), "one", nil)
				b.wantKind("push against a hook", err, daytona.KindConflict)
				if err != nil && !strings.Contains(err.Error(), "because of reasons") {
					t.Errorf("the hook's reason is not in %v", err)
				}
				b.sh("origin.git", "rm hooks/pre-receive")
			}
			// Many remotes.
			b.ok("remote", b.git.AddRemote(t.Context(), "two", daytona.GitRemote{Name: "up", URL: url}, &daytona.GitAddRemoteOptions{Fetch: true}))
			b.wantKind("the same again", b.git.AddRemote(t.Context(), "two", daytona.GitRemote{Name: "up", URL: url}, nil), daytona.KindConflict)
			b.ok("overwrite", b.git.AddRemote(t.Context(), "two", daytona.GitRemote{Name: "up", URL: base + "empty.git"}, &daytona.GitAddRemoteOptions{Overwrite: true, Fetch: true}))
			b.ok("push elsewhere", b.git.Push(t.Context(), "two", &daytona.GitPushOptions{Remote: "up", Branch: "main"}))
			if got, want := b.sh("empty.git", "git rev-parse main"), b.sh("two", "git rev-parse main"); got != want {
				t.Errorf("pushed %s, want %s", got, want)
			}
			b.wantKind("a program", b.git.AddRemote(t.Context(), "two", daytona.GitRemote{Name: "evil", URL: "ext::sh -c touch% pwned"}, nil), daytona.KindInvalid)
			b.wantKind("a name", b.git.AddRemote(t.Context(), "two", daytona.GitRemote{Name: "-x", URL: url}, nil), daytona.KindInvalid)
			// Somebody else's configuration is looked at in the same way.
			b.sh("two", `git config remote.up.url 'ext::sh -c touch% pwned'`)
			b.wantKind("pull by a program", b.git.Pull(t.Context(), "two", &daytona.GitPullOptions{Remote: "up"}), daytona.KindInvalid)
			b.sh("two", `git config remote.up.url here:x; git config url.ext::sh.insteadOf here`)
			b.wantKind("push by a program", b.git.Push(t.Context(), "two", &daytona.GitPushOptions{Remote: "up"}), daytona.KindInvalid)
			b.agree("two")
		})
	}
}

func TestPushToACheckedOutBranch(t *testing.T) {
	b := newBox(t)
	b.sh("", history+"; git clone -q seed c")
	b.ok("push nothing", b.git.Push(t.Context(), "c", nil))
	b.sh("c", "git commit -q --allow-empty -m x")
	b.wantKind("push", b.git.Push(t.Context(), "c", nil), daytona.KindConflict)
	b.agree("seed")
}

// sshd starts a real one and returns the beginning of URLs of the box's
// repositories.
func (b *box) sshd() string {
	b.t.Helper()
	path := "/usr/sbin/sshd"
	if _, err := os.Stat(path); err != nil {
		b.t.Skip("sshd is not installed")
	}
	me, err := user.Current()
	if err != nil {
		b.t.Fatal(err)
	}
	if me.Uid == "0" {
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
			b.t.Skip(err)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	b.sh("", fmt.Sprintf(`mkdir -m 700 .ssh; ssh-keygen -q -t ed25519 -N '' -f .ssh/id_ed25519; ssh-keygen -q -t ed25519 -N '' -f hostkey; cp .ssh/id_ed25519.pub authorized
		echo "[127.0.0.1]:%d $(cut -d' ' -f1,2 hostkey.pub)" > .ssh/known_hosts
		printf 'HostKey %s/hostkey\nAuthorizedKeysFile %s/authorized\nStrictModes no\nPermitRootLogin yes\nUsePAM no\nListenAddress 127.0.0.1:%d\nPidFile none\nPasswordAuthentication no\nLogLevel ERROR\n' > sshd_config`, port, b.dir, b.dir, port))
	cmd := exec.Command(path, "-D", "-e", "-f", b.path("sshd_config"))
	var log lockedBuffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if b.t.Failed() {
			b.t.Log(log.String())
		}
	})
	address := fmt.Sprintf("127.0.0.1:%d", port)
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if c, err := net.Dial("tcp", address); err == nil {
			c.Close()
			break
		} else if time.Now().After(deadline) {
			b.t.Fatalf("sshd: %v %s", err, log.String())
		}
	}
	return fmt.Sprintf("ssh://%s@%s%s/", me.Username, address, b.dir)
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestSSHChecks(t *testing.T) {
	b := newBox(t)
	b.sh("", history)
	base := b.sshd()
	_, err := b.git.Clone(t.Context(), base+"nope.git", "c", nil)
	b.wantKind("no repository", err, daytona.KindNotFound)
	b.sh("", "mv .ssh/id_ed25519 .ssh/other")
	_, err = b.git.Clone(t.Context(), base+"origin.git", "c", nil)
	b.wantKind("no key", err, daytona.KindUnauthorized)
	b.sh("", "mv .ssh/other .ssh/id_ed25519; mv .ssh/known_hosts known")
	_, err = b.git.Clone(t.Context(), base+"origin.git", "c", nil)
	b.wantKind("unknown host", err, daytona.KindForbidden)
	b.sh("", "ssh-keygen -q -t ed25519 -N '' -f fake; sed \"s#ssh-ed25519 .*#$(cut -d' ' -f1,2 fake.pub)#\" known > .ssh/known_hosts")
	_, err = b.git.Clone(t.Context(), base+"origin.git", "c", nil)
	b.wantKind("another host's key", err, daytona.KindForbidden)
	b.sh("", "cp known .ssh/known_hosts")
	// As scp has it.
	_, err = b.git.Clone(t.Context(), base+"origin.git", "c", nil)
	b.ok("clone", err)
	b.agree("c")
}

// TestClientGoes has the client of a clone that would never end go away.
func TestClientGoes(t *testing.T) {
	b := newBox(t)
	asked := make(chan struct{}, 1)
	hang := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case asked <- struct{}{}:
		default:
		}
		select {
		case <-hang:
		case <-r.Context().Done():
			close(hang)
		}
	}))
	defer server.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := b.git.Clone(ctx, server.URL+"/x.git", "c", nil)
		done <- err
	}()
	<-asked
	cancel()
	if err := <-done; err == nil {
		t.Error("a clone of nothing")
	}
	select {
	case <-hang: // the helper has let go of the server
	case <-time.After(10 * time.Second):
		t.Error("the helper lives on")
	}
}
