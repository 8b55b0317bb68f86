package git_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/toolbox/account"
	"github.com/daytona-go/daytona/toolbox/client"
	"github.com/daytona-go/daytona/toolbox/git"
	"github.com/daytona-go/daytona/toolbox/process"
	"github.com/daytona-go/daytona/toolbox/reexec"
)

// This program is also its own helper.
func TestMain(m *testing.M) {
	reexec.Main(os.Args[1:])
	os.Exit(m.Run())
}

// box is a home directory with the routes of git over it, and the real git
// beside them.
type box struct {
	t    testing.TB
	dir  string
	env  []string
	git  daytona.Git
	http *http.Client
}

func newBox(t testing.TB, extra ...string) *box {
	t.Helper()
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("git, which answers are compared with, is not installed")
	}
	dir := t.TempDir()
	b := &box{t: t, dir: dir, env: append([]string{
		"HOME=" + dir, "PATH=" + os.Getenv("PATH"), "LANG=C.UTF-8", "GIT_CONFIG_NOSYSTEM=1", "GIT_TERMINAL_PROMPT=0",
		"GIT_AUTHOR_NAME=A", "GIT_AUTHOR_EMAIL=a@example.com", "GIT_COMMITTER_NAME=A", "GIT_COMMITTER_EMAIL=a@example.com",
	}, extra...)}
	b.write(".gitconfig", "[init]\n\tdefaultBranch = main\n[protocol \"file\"]\n\tallow = always\n[advice]\n\tdetachedHead = false\n")
	spawner, err := process.NewSpawner(process.Options{Account: account.Current(), WorkDir: dir, Environ: func() []string { return b.env }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(spawner.Close)
	service := git.New(git.Options{Spawner: spawner})
	t.Cleanup(service.Close)
	mux := http.NewServeMux()
	service.Register(mux)
	short, err := os.MkdirTemp("", "g")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(short) })
	l, err := net.Listen("unix", short+"/s")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: mux}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	dial := func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", short+"/s")
	}
	tb := client.New(dial, nil)
	t.Cleanup(func() { tb.Close() })
	b.git = tb.Git()
	b.http = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) }}}
	t.Cleanup(b.http.CloseIdleConnections)
	return b
}

func (b *box) write(name, content string) {
	b.t.Helper()
	full := b.path(name)
	if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(full, []byte(content), 0o644); err != nil {
		b.t.Fatal(err)
	}
}

func (b *box) path(name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(b.dir, name)
}

func (b *box) read(name string) string {
	b.t.Helper()
	data, err := os.ReadFile(b.path(name))
	if err != nil {
		b.t.Fatal(err)
	}
	return string(data)
}

// sh runs a script in a directory; it must succeed.
func (b *box) sh(dir, script string) string {
	b.t.Helper()
	out, err := b.try(dir, script)
	if err != nil {
		b.t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return out
}

func (b *box) try(dir, script string) (string, error) {
	cmd := exec.Command("bash", "-ec", script)
	cmd.Dir, cmd.Env = b.path(dir), b.env
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// ok fails the test if err is not nil.
func (b *box) ok(what string, err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatalf("%s: %v", what, err)
	}
}

func (b *box) wantKind(what string, err error, kind daytona.Kind) {
	b.t.Helper()
	if daytona.KindOf(err) != kind || err == nil {
		b.t.Errorf("%s: %v of kind %q, want %q", what, err, daytona.KindOf(err), kind)
	}
}

// words of the wire for the letters of git status --short.
var words = map[byte]string{
	' ': "Unmodified", 'M': "Modified", 'T': "Modified", 'A': "Added", 'D': "Deleted", 'R': "Renamed", '?': "Untracked", 'U': "Updated but unmerged",
}

// agree compares a repository's status with what git says, and has git check its
// objects. dir is a repository's directory.
func (b *box) agree(dir string) daytona.GitStatus {
	b.t.Helper()
	got, err := b.git.Status(b.t.Context(), dir)
	b.ok("status", err)
	cmd := exec.Command("git", "status", "--porcelain=v1", "-uall", "-z")
	cmd.Dir, cmd.Env = b.path(dir), b.env
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		b.t.Fatalf("git status: %v %s", err, stderr.String())
	}
	var want []daytona.GitFileStatus
	fields := strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")
	for i := 0; i < len(fields); i++ {
		f := fields[i]
		if f == "" {
			continue
		}
		s := daytona.GitFileStatus{Path: f[3:], Staging: words[f[0]], Worktree: words[f[1]]}
		if f[0] == 'R' {
			i++
			s.Extra = fields[i]
		}
		if f[0] == 'U' || f[1] == 'U' || f[:2] == "AA" || f[:2] == "DD" {
			s.Staging, s.Worktree = words['U'], words['U']
		}
		want = append(want, s)
	}
	// A path that is both deleted and untracked has one entry on the wire.
	for i := range want {
		if j := slices.IndexFunc(want, func(f daytona.GitFileStatus) bool { return f.Path == want[i].Path }); j < i {
			want[j].Worktree = want[i].Worktree
			want[i].Path = ""
		}
	}
	want = slices.DeleteFunc(want, func(f daytona.GitFileStatus) bool { return f.Path == "" })
	slices.SortFunc(want, func(a, b daytona.GitFileStatus) int { return strings.Compare(a.Path, b.Path) })
	if !slices.Equal(got.Files, want) {
		b.t.Errorf("status of %s:\n got %+v\nwant %+v", dir, got.Files, want)
	}
	branch, err := b.try(dir, "git symbolic-ref -q --short HEAD || echo HEAD")
	if err != nil || got.Branch != strings.TrimSpace(branch) || got.Detached != (got.Branch == "HEAD") {
		b.t.Errorf("branch of %s: %q (detached %v), want %q", dir, got.Branch, got.Detached, branch)
	}
	if counts, err := b.try(dir, "git rev-list --left-right --count HEAD...@{upstream} 2>/dev/null"); err == nil {
		if said := fmt.Sprintf("%d\t%d\n", got.Ahead, got.Behind); said != counts {
			b.t.Errorf("ahead and behind of %s: %q, want %q", dir, said, counts)
		}
		if up := strings.TrimSpace(b.sh(dir, "git rev-parse --abbrev-ref @{upstream}")); up != got.Upstream || !got.Published {
			b.t.Errorf("upstream of %s: %q (%v), want %q", dir, got.Upstream, got.Published, up)
		}
	}
	if out, err := b.try(dir, "git fsck --strict --no-dangling --no-progress"); err != nil || strings.Contains(out, "error") || strings.Contains(out, "missing") {
		b.t.Errorf("git fsck in %s: %v %s", dir, err, out)
	}
	return got
}

// someFiles makes a repository "r" with a commit.
const someFiles = `git init -q r && cd r && mkdir -p dir/sub && echo a > a && echo b > dir/b && echo c > dir/sub/c && seq 100 > long &&
	ln -s a link && echo x > run && chmod +x run && git add -A && git commit -qm first && `

func TestStatusIsThatOfGit(t *testing.T) {
	for name, script := range map[string]string{
		"clean":                     `true`,
		"changed":                   `echo more >> a; echo more >> dir/sub/c; rm dir/b`,
		"same size":                 `printf 'z\n' > a`,
		"touched":                   `sleep 0.01; touch a dir/b`,
		"staged":                    `echo more >> a; git add a; git rm -q dir/b; echo new > n; git add n; echo again >> a`,
		"deleted but staged":        `git rm -q --cached a`,
		"renamed":                   `git mv a moved; git mv dir/b dir/sub/d`,
		"renamed and changed":       `git mv long long2; seq 90 > long2; echo x >> long2; git add -A`,
		"renamed beyond likeness":   `git mv long long2; seq 300 400 > long2; git add -A`,
		"several renamed":           `for i in 1 2 3 4; do seq $i 200 > f$i; done; git add -A; git commit -qm more; for i in 1 2 3 4; do git mv f$i dir/g$i; echo $i >> dir/g$i; done; git add -A`,
		"untracked":                 `mkdir -p new/er empty/ier; echo 1 > new/er/f; echo 2 > new/g; echo 3 > h; ln -s nowhere dangling; mkfifo pipe`,
		"mode":                      `chmod +x a; chmod -x run`,
		"filemode off":              `git config core.filemode false; chmod +x a; chmod -x run`,
		"link becomes file":         `rm link; echo a > link`,
		"file becomes link":         `rm a; ln -s dir a`,
		"link elsewhere":            `rm link; ln -s b link`,
		"file becomes directory":    `rm a; mkdir a; echo > a/x`,
		"directory becomes file":    `rm -r dir; echo > dir`,
		"directory becomes link":    `mv dir other; ln -s other dir`,
		"directory gone":            `rm -r dir`,
		"intent to add":             `echo n > n; git add -N n; echo m > m; git add -N m; rm m`,
		"odd names":                 `echo > "with space"; echo > $'new\nline'; echo > 'quote"'; echo > ünï; echo > -dash; mkdir -p 'x y'; echo > 'x y/z'`,
		"nested repository":         `git init -q inner; echo > inner/f; git init -q inner2; cd inner2; git commit -q --allow-empty -m x`,
		"not quite a repository":    `mkdir -p inner/.git; echo > inner/f`,
		"skip worktree":             `git update-index --skip-worktree a; rm a; git update-index --assume-unchanged dir/b; echo >> dir/b`,
		"index version 4":           `git update-index --index-version 4; echo >> a; git add a; echo > dir/new; git add dir/new`,
		"no cache tree":             `git update-index --force-remove a; git update-index --add a; git read-tree HEAD; git update-index -q --refresh || true`,
		"unborn":                    `git checkout -q --orphan other; echo >> a`,
		"detached":                  `git commit -q --allow-empty -m x; git checkout -q HEAD~1; echo >> a`,
		"conflict":                  `git checkout -q -b o; echo o > a; git rm -q dir/b; echo o > both; git add -A; git commit -qam o; git checkout -q main; echo m > a; echo m >> dir/b; echo m > both; git add -A; git commit -qam m; git merge -q o >/dev/null || true`,
		"merge under way":           `git checkout -q -b o; echo o > a; git commit -qam o; git checkout -q main; git merge -q --no-commit --no-ff o`,
		"packed":                    `git branch other; git tag t; git pack-refs --all; git gc -q; echo >> a`,
		"linked working tree":       `git worktree add -q ../w; cd ../w; echo >> a; echo > n`,
		"behind":                    `git clone -q . ../c; cd ../c; git commit -q --allow-empty -m 1; git commit -q --allow-empty -m 2; cd ../r; git commit -q --allow-empty -m 3; cd ../c; git fetch -q`,
		"upstream of another name":  `git branch topic; git clone -q . ../c; cd ../c; git checkout -q -b mine --track origin/topic; git commit -q --allow-empty -m 1`,
		"racy":                      `echo 1 > q; git add q; git commit -qm q; printf '2\n' > q`,
		"autocrlf":                  `git config core.autocrlf true; printf 'a\r\n' > a; printf 'x\r\ny\n' > mixed; git add mixed 2>/dev/null; printf 'x\ny\n' > mixed; printf 'b\r\nx\n' > dir/b`,
		"autocrlf input":            `git config core.autocrlf input; printf 'a\r\n' > a; printf 'b\r\r\n' > dir/b`,
		"text auto":                 `printf '* text=auto\n*.bin -text\n' > .gitattributes; printf 'a\r\n' > a; printf 'b\r\n' > x.bin; git add .gitattributes x.bin; printf 'b\n' > x.bin; touch -d 2001-01-01 a`,
		"crlf in the repository":    `printf 'a\r\nb\r\n' > crlf; git add crlf; git commit -qm crlf; echo '* text=auto' > .gitattributes; touch -d 2001-01-01 crlf; git add .gitattributes; git commit -qm attr`,
		"eol":                       `printf 'a eol=crlf\ndir/** eol=crlf\ndir/sub/* -text\n' > .gitattributes; printf 'a\r\n' > a; printf 'b\r\n' > dir/b; printf 'c\r\n' > dir/sub/c`,
		"attributes of directories": `echo '* -text' > .gitattributes; printf 'b text\n' > dir/.gitattributes; printf 'a\r\n' > a; printf 'b\r\n' > dir/b`,
		"quoted attributes":         `mv a 'a "b'; mv long ü; git add -A; git commit -qm names; printf '"a \\"b" text\n"\\303\\274" text\n"" text\n"dir text\n' > .gitattributes; printf 'a\r\n' > 'a "b'; seq 100 | sed 's/$/\r/' > ü; printf 'b\r\n' > dir/b`,
		"ident":                     `printf '$Id: whatever $\n' > id; echo 'id ident' > .gitattributes; git add -A; git commit -qm id; printf '$Id: something else $\n' > id`,
		"ignored":                   `printf '*.o\n!keep.o\nbuild/\n/top\nsub/only\n# comment\n\\#hash\ntrail \nq\\ \n**/deep/x\na/**/z\n[abc].txt\n' > .gitignore; mkdir -p build/x dir/build n/sub sub n/deep a1 n/top; touch x.o keep.o build/x/y dir/build/z top n/top/f n/sub/only sub/only '#hash' trail 'trail ' 'q ' n/deep/x d.txt a.txt b.txt; mkdir -p n/a/b/c a2; touch n/a/z n/a/b/c/z`,
		"ignored in directories":    `mkdir -p p/q; printf '*.log\n' > .gitignore; printf '!important.log\nsecret\n/local\n' > p/.gitignore; touch x.log p/important.log p/other.log p/q/secret p/secret secret p/local p/q/local`,
		"ignored elsewhere":         `printf 'glob\n' > ~/ign; git config --global core.excludesFile '~/ign'; printf 'ex\n' > .git/info/exclude; touch glob ex seen`,
		"ignored by default file":   `mkdir -p ~/.config/git; echo dflt > ~/.config/git/ignore; touch dflt seen`,
		"tracked though ignored":    `echo 'dir' > .gitignore; echo >> dir/b; echo > dir/new; echo > dir/sub/new; git add .gitignore`,
		"ignored then not":          `printf 'd/*\n!d/keep\n' > .gitignore; mkdir -p d/keep d/no; touch d/keep/f d/no/f d/f`,
		"reinclude below ignored":   `printf 'd\n!d/keep\n' > .gitignore; mkdir -p d; touch d/keep d/f`,
		"submodule":                 `git init -q ../s; (cd ../s; echo > f; git add f; git commit -qm s); git submodule add -q ../s sm; git commit -qm sm`,
		"submodule changed":         `git init -q ../s; (cd ../s; echo > f; git add f; git commit -qm s); git submodule add -q ../s sm; git commit -qm sm; echo >> sm/f`,
		"submodule untracked":       `git init -q ../s; (cd ../s; echo > f; git add f; git commit -qm s); git submodule add -q ../s sm; git commit -qm sm; echo > sm/g`,
		"submodule moved on":        `git init -q ../s; (cd ../s; echo > f; git add f; git commit -qm s); git submodule add -q ../s sm; git commit -qm sm; cd sm; git commit -q --allow-empty -m x`,
		"submodule not there":       `git init -q ../s; (cd ../s; echo > f; git add f; git commit -qm s); git submodule add -q ../s sm; git commit -qm sm; git submodule -q deinit -f sm; rmdir sm`,
		"submodule not checked out": `git init -q ../s; (cd ../s; echo > f; git add f; git commit -qm s); git submodule add -q ../s sm; git commit -qm sm; git submodule -q deinit -f sm`,
		"configuration included":    `printf '[core]\n\tautocrlf = true\n' > ~/inc; git config --local include.path '~/inc'; printf 'a\r\n' > a`,
		"included if":               `printf '[core]\n\tautocrlf = true\n' > ~/inc; git config --global "includeIf.gitdir:~/r/.path" '~/inc'; printf 'a\r\n' > a`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBox(t)
			b.sh("", someFiles+script)
			for _, dir := range []string{"r", "c", "w", "r/inner2"} {
				if _, err := os.Stat(b.path(dir) + "/.git"); err == nil {
					b.agree(dir)
					b.agree(dir) // what it may have noted in the index is right
				}
			}
		})
	}
}

// state is all that an operation may change: HEAD, branches, the index and the
// files.
const state = `git symbolic-ref -q HEAD || git rev-parse HEAD; git for-each-ref --format='%(refname) %(tree)' refs/heads; git rev-parse -q --verify HEAD^{tree} || true; git ls-files -s -v;
	find . -path ./.git -prune -o -name .git -prune -o -printf '%y %m %p %l\n' | sort; find . -name .git -prune -o -type f -print0 | sort -z | xargs -0 sha1sum; ls .git/MERGE_HEAD 2>/dev/null || true`

// TestOperationsLeaveWhatGitLeaves does the same to two copies of a repository.
func TestOperationsLeaveWhatGitLeaves(t *testing.T) {
	type op struct {
		name, git string
		ours      func(context.Context, daytona.Git) error
	}
	add := func(files ...string) op {
		return op{"add " + strings.Join(files, " "), "git add -A -- '" + strings.Join(files, "' '") + "'", func(ctx context.Context, g daytona.Git) error { return g.Add(ctx, "ours", files...) }}
	}
	checkout := func(to string) op {
		return op{"checkout " + to, "git checkout -q " + to, func(ctx context.Context, g daytona.Git) error { return g.Checkout(ctx, "ours", to) }}
	}
	reset := func(mode daytona.GitResetMode, to string, files ...string) op {
		script := "git reset -q"
		if mode != "" {
			script += " --" + string(mode)
		}
		if to != "" {
			script += " " + to
		}
		if len(files) > 0 {
			script += " -- " + strings.Join(files, " ")
		}
		return op{script, script, func(ctx context.Context, g daytona.Git) error {
			return g.Reset(ctx, "ours", &daytona.GitResetOptions{Mode: mode, Target: to, Files: files})
		}}
	}
	restore := func(source string, staged, worktree bool, files ...string) op {
		script := "git restore"
		if source != "" {
			script += " --source=" + source
		}
		if staged {
			script += " --staged"
		}
		if worktree {
			script += " --worktree"
		}
		script += " -- " + strings.Join(files, " ")
		return op{script, script, func(ctx context.Context, g daytona.Git) error {
			return g.Restore(ctx, "ours", files, &daytona.GitRestoreOptions{Source: source, Staged: staged, Worktree: worktree})
		}}
	}
	commit := op{"commit", "git commit -qm message", func(ctx context.Context, g daytona.Git) error {
		_, err := g.Commit(ctx, "ours", daytona.Commit{Message: "message", Author: "A", Email: "a@example.com"})
		return err
	}}
	branch := func(name string) op {
		return op{"branch " + name, "git checkout -q -b " + name, func(ctx context.Context, g daytona.Git) error { return g.CreateBranch(ctx, "ours", name) }}
	}
	// A second branch with files changed, deleted, added, and of other kinds.
	const other = `git checkout -q -b other; echo other > a; git rm -q dir/sub/c; mkdir fresh; echo f > fresh/f; rm link; echo no link > link; chmod +x dir/b; rm run; mkdir run; echo r > run/r; git add -A; git commit -qm other; git checkout -q main; `
	for name, c := range map[string]struct {
		script string
		ops    []op
	}{
		"clean":                       {other, []op{checkout("other"), checkout("main"), checkout("other~1"), checkout("main"), branch("x/y"), checkout("main"), checkout("nope"), reset(daytona.GitHard, "other"), reset(daytona.GitMixed, "main~0"), commit}},
		"unrelated":                   {other + `echo new >> long; echo u > untracked; echo s > staged; git add staged`, []op{checkout("other"), checkout("main"), add("."), commit, checkout("other"), checkout("main")}},
		"dirty":                       {other + `echo mine >> a`, []op{checkout("other"), reset(daytona.GitKeep, "other"), reset(daytona.GitMerge, "other"), add("a"), checkout("other"), reset(daytona.GitKeep, "other"), reset(daytona.GitMerge, "other")}},
		"staged same":                 {other + `echo other > a; git add a`, []op{checkout("other")}},
		"untracked in the way":        {other + `mkdir fresh; echo mine > fresh/f`, []op{checkout("other"), reset(daytona.GitKeep, "other"), reset(daytona.GitHard, "other")}},
		"the same untracked":          {other + `mkdir fresh; echo f > fresh/f`, []op{checkout("other")}},
		"ignored in the way":          {other + `echo fresh > .gitignore; mkdir fresh; echo mine > fresh/f`, []op{checkout("other")}},
		"file for a directory":        {other + `echo mine > fresh`, []op{checkout("other"), reset(daytona.GitHard, "other")}},
		"link for a directory":        {other + `mkdir ../outside; ln -s ../outside fresh`, []op{checkout("other"), reset(daytona.GitHard, "other")}},
		"directory for a file":        {other + `rm run; mkdir run; echo mine > run/mine`, []op{checkout("other"), reset(daytona.GitHard, "")}},
		"deleted here":                {other + `rm a dir/b; rm -r dir/sub`, []op{checkout("other"), checkout("main"), reset(daytona.GitHard, "")}},
		"deleted and staged":          {other + `git rm -q a`, []op{checkout("other"), reset(daytona.GitKeep, "other"), reset("", "", "a"), restore("", false, true, "a")}},
		"add":                         {`echo x >> a; rm dir/b; echo n > n; mkdir e; echo e > e/e; rm run; ln -s a run; chmod +x long; echo '*.o' > .gitignore; touch x.o`, []op{add("a", "e"), add("*.o"), add("x.o"), add("nope"), add("dir"), add("."), commit, commit}},
		"add patterns":                {`mkdir -p s/t; touch x.c s/y.c s/t/z.c s/k.h; echo >> a`, []op{add("*.c"), add("s/*"), add("?"), commit}},
		"add kinds":                   {`rm a; mkdir a; echo > a/x; rm -r dir; echo > dir; rm link; mkdir link; echo > link/y`, []op{add("."), commit, checkout("main~1"), checkout("main")}},
		"add a repository":            {`git init -q in; (cd in; echo > f; git add f; git commit -qm in)`, []op{add("in"), commit}},
		"add crlf":                    {`git config core.autocrlf true; printf 'x\r\ny\r\n' > n; printf 'a\r\n' > a; printf 'bin\0\r\n' > bin`, []op{add("."), commit, reset(daytona.GitHard, "HEAD~1"), reset(daytona.GitHard, "HEAD")}},
		"attributes":                  {`printf '*.txt text eol=crlf\n*.sh text eol=lf\n*.bin -text\nid ident\n' > .gitattributes; printf 'x\n' > a.txt; printf 'x\r\n' > b.sh; printf 'x\r\n' > c.bin; printf '$Id: old$\n' > id; git add .; git commit -qm attr; rm a.txt b.sh c.bin id`, []op{restore("", false, true, "."), add("."), checkout("HEAD~1"), checkout("main")}},
		"attributes come and go":      {`git checkout -q -b crlf; echo '* text eol=crlf' > .gitattributes; echo n > new.txt; git add .; git commit -qm attr; git checkout -q main`, []op{checkout("crlf"), checkout("main"), checkout("crlf")}},
		"reset modes":                 {other + `echo i > i; git add i; echo w >> long`, []op{reset(daytona.GitSoft, "other"), reset(daytona.GitSoft, "main"), reset(daytona.GitMixed, "other"), reset("", "main"), reset(daytona.GitKeep, "other"), reset(daytona.GitKeep, "main"), reset(daytona.GitMerge, "other"), reset(daytona.GitHard, "main")}},
		"reset merge with unstaged":   {other + `echo w >> long; echo s > dir/sub/s; git add dir/sub/s`, []op{reset(daytona.GitMerge, "other"), reset(daytona.GitMerge, "main")}},
		"reset files":                 {`echo 1 >> a; echo 2 >> dir/b; git rm -q --cached long; echo n > n; git add -A`, []op{reset("", "", "a"), reset("", "", "dir"), reset("", "", "n", "long"), reset("", "", "nope")}},
		"restore":                     {other + `echo 1 >> a; echo 2 >> dir/b; git add dir/b; echo 3 >> dir/b; rm dir/sub/c; echo u > u`, []op{restore("", false, true, "a"), restore("", true, false, "dir/b"), restore("", false, false, "dir"), restore("other", true, true, "a", "dir", "fresh"), restore("main", false, true, "."), restore("other", true, false, "."), restore("", true, true, "."), restore("", false, true, "nope")}},
		"merge":                       {`git checkout -q -b o; echo o > o; git add o; git commit -qm o; git checkout -q main; echo m > m; git add m; git commit -qm m; git merge -q --no-commit --no-ff o`, []op{commit}},
		"conflict":                    {`git checkout -q -b o; echo o > a; git commit -qam o; git checkout -q main; echo m > a; git commit -qam m; git merge -q o >/dev/null || true`, []op{commit, checkout("o"), restore("", false, true, "a"), add("a"), commit}},
		"conflict given up":           {`git checkout -q -b o; echo o > a; git commit -qam o; git checkout -q main; echo m > a; git commit -qam m; git merge -q o >/dev/null || true`, []op{reset(daytona.GitSoft, ""), reset(daytona.GitMerge, ""), commit}},
		"conflict thrown away":        {`git checkout -q -b o; git rm -q a; git commit -qam o; git checkout -q main; echo m > a; git commit -qam m; git merge -q o >/dev/null || true`, []op{reset(daytona.GitHard, "")}},
		"unborn":                      {`git checkout -q --orphan fresh`, []op{commit, branch("next"), checkout("main"), checkout("fresh")}},
		"unborn branch":               {`git checkout -q --orphan fresh; git rm -rqf .`, []op{branch("next"), commit, reset("", ""), checkout("main")}},
		"submodule":                   {`git init -q ../s; (cd ../s; echo > f; git add f; git commit -qm s); git submodule -q add ../s sm 2>/dev/null; git commit -qm sm; git branch with; git reset -q --hard HEAD~1; rm -rf sm`, []op{checkout("with"), checkout("main"), checkout("with"), reset(daytona.GitHard, "main")}},
		"remote's branch":             {`git branch theirs; git remote add origin .; git fetch -q; git branch -D theirs -q`, []op{checkout("theirs")}},
		"hash, tag and parents":       {`echo 2 > a; git commit -qam 2; git tag -a -m t t; echo 3 > a; git commit -qam 3`, []op{checkout("t"), checkout("main^"), checkout("main~2"), checkout("t~1"), checkout("HEAD"), checkout("main")}},
		"intent to add":               {`echo n > n; git add -N n`, []op{commit, add("n"), commit}},
		"packed refs":                 {`git branch a/b; git pack-refs --all`, []op{branch("a/c"), branch("a/b/c"), branch("a"), checkout("a/b")}},
		"executable without filemode": {`git config core.filemode false; chmod -x run; chmod +x a; echo >> a; echo >> run`, []op{add("."), commit}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBox(t)
			b.sh("", someFiles+c.script)
			b.sh("", "cp -a r ours; mv r theirs")
			for _, o := range c.ops {
				out, want := b.try("theirs", o.git)
				got := o.ours(t.Context(), b.git)
				if (got == nil) != (want == nil) {
					t.Fatalf("%s: %v, but git: %v %s", o.name, got, want, out)
				}
				if got, want := b.sh("ours", state), b.sh("theirs", state); got != want {
					t.Fatalf("after %s:\n%s", o.name, diff(got, want))
				}
				b.agree("ours")
			}
			if t.Failed() {
				t.Log(c.script)
			}
		})
	}
}

// diff shows the lines that only one of two texts has.
func diff(got, want string) string {
	a, b := strings.Split(got, "\n"), strings.Split(want, "\n")
	var out strings.Builder
	for _, l := range a {
		if !slices.Contains(b, l) {
			fmt.Fprintln(&out, "got ", l)
		}
	}
	for _, l := range b {
		if !slices.Contains(a, l) {
			fmt.Fprintln(&out, "want", l)
		}
	}
	return out.String()
}
