// Package repository is what a git helper does with repositories: everything
// but the HTTP API. It runs in a process of the sandbox's user that lives for
// one request, see [Main]; package git starts that.
//
// Objects, packs and the protocols between repositories are go-git's. What
// meets the working tree is this package's own, because there go-git's answers
// are not git's: the index with its locks and its cache tree, the state of
// files, ignored files, the ends of lines, and what may be written where.
//
// A repository is hostile. No program is ever started on its behalf: no hook,
// filter, credential helper, ssh or file system monitor that a configuration
// names, and none of git's own. Paths from trees are checked as git checks
// them, and nothing is written through a link.
package repository

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/go-git/go-billy/v5"
	"github.com/go-git/go-billy/v5/osfs"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/cache"
	"github.com/go-git/go-git/v5/storage/filesystem"

	"github.com/daytona-go/daytona/toolbox/wire"
)

// Error is an answer that is no success.
type Error struct {
	Status        int
	Code, Message string
}

func (e *Error) Error() string { return e.Message }

func failf(status int, code, format string, args ...any) error {
	return &Error{Status: status, Code: code, Message: fmt.Sprintf(format, args...)}
}

func invalid(format string, args ...any) error { return failf(400, "", format, args...) }

func unsupported(format string, args ...any) error {
	return failf(501, wire.CodeUnsupported, format, args...)
}

// User is whom the helper works for.
type User struct {
	Name, Home string
}

// Repository is an open repository.
type Repository struct {
	// dir is the working tree, "" for a bare repository. gitDir has HEAD and
	// the index, commonDir the rest; they differ in linked working trees.
	dir, gitDir, commonDir string

	user   User
	config settings
	store  *store

	objects sync.Mutex // guards store: go-git's packs are not for several goroutines
}

// store is go-git's storage with this package's way to write references.
type store struct {
	*filesystem.Storage
	repo *Repository
}

// Open opens the repository in a directory, which is its working tree or, if it
// is bare, itself.
func Open(dir string, user User) (*Repository, error) {
	r := &Repository{dir: dir, gitDir: dir + "/.git", user: user}
	info, err := os.Stat(r.gitDir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if !isGitDir(dir) {
			if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
				return nil, failf(404, wire.CodeGitRepoNotFound, "repository not found: %s does not exist", dir)
			}
			return nil, failf(404, wire.CodeGitRepoNotFound, "repository not found: %s is no git repository", dir)
		}
		r.dir, r.gitDir = "", dir
	case err != nil:
		return nil, fileError(err)
	case !info.IsDir():
		// A linked working tree or a submodule.
		text, err := readRegular(r.gitDir, 64<<10)
		target, ok := strings.CutPrefix(strings.TrimRight(string(text), "\n"), "gitdir: ")
		if err != nil || !ok {
			return nil, failf(404, wire.CodeGitRepoNotFound, "repository not found: %s says nothing about where it is", r.gitDir)
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(dir, target)
		}
		r.gitDir = target
	}
	r.commonDir = r.gitDir
	if text, err := readRegular(r.gitDir+"/commondir", 64<<10); err == nil {
		if r.commonDir = strings.TrimRight(string(text), "\n"); !filepath.IsAbs(r.commonDir) {
			r.commonDir = filepath.Join(r.gitDir, r.commonDir)
		}
	}
	if !isGitDir(r.gitDir) {
		return nil, failf(404, wire.CodeGitRepoNotFound, "repository not found: %s is no git repository", r.gitDir)
	}
	if err := r.loadConfig(); err != nil {
		return nil, err
	}
	if v, ok := r.config.get("extensions", "", "objectformat"); ok && !strings.EqualFold(v, "sha1") {
		return nil, unsupported("the repository names its objects by %s, not by SHA-1: use git in the sandbox", clip(v))
	}
	if v, ok := r.config.get("extensions", "", "refstorage"); ok && !strings.EqualFold(v, "files") {
		return nil, unsupported("the repository keeps its references as %s, not as files: use git in the sandbox", clip(v))
	}
	if r.dir != "" && r.config.bool("core", "", "bare", false) {
		r.dir = ""
	}
	r.open()
	return r, nil
}

func (r *Repository) open() {
	fs := regularFiles{osfs.New(r.commonDir, osfs.WithBoundOS())}
	r.store = &store{Storage: filesystem.NewStorageWithOptions(fs, cache.NewObjectLRU(32*cache.MiByte), filesystem.Options{
		KeepDescriptors: true, LargeObjectThreshold: largeObject,
	}), repo: r}
}

// regularFiles opens nothing else: a pipe in a file's place would be waited for,
// for ever.
type regularFiles struct{ billy.Filesystem }

func (f regularFiles) check(name string) error {
	if info, err := f.Stat(name); err == nil && !info.Mode().IsRegular() {
		return &fs.PathError{Op: "open", Path: name, Err: fs.ErrInvalid}
	}
	return nil
}

func (f regularFiles) Open(name string) (billy.File, error) {
	if err := f.check(name); err != nil {
		return nil, err
	}
	return f.Filesystem.Open(name)
}

func (f regularFiles) OpenFile(name string, flag int, perm os.FileMode) (billy.File, error) {
	if err := f.check(name); err != nil {
		return nil, err
	}
	return f.Filesystem.OpenFile(name, flag, perm)
}

// largeObject is from which size on, in bytes, an object is not held in memory
// unless it has to be.
const largeObject = 32 << 20

// Close gives back descriptors.
func (r *Repository) Close() { _ = r.store.Close() }

// isGitDir says whether a directory is what .git is.
func isGitDir(dir string) bool {
	if _, err := os.Lstat(dir + "/HEAD"); err != nil {
		return false
	}
	if _, err := os.Stat(dir + "/commondir"); err == nil {
		return true
	}
	for _, name := range []string{"/objects", "/refs"} {
		if info, err := os.Stat(dir + name); err != nil || !info.IsDir() {
			return false
		}
	}
	return true
}

func (r *Repository) loader() *loader {
	branch, _ := r.headBranch()
	return &loader{home: r.user.Home, gitDir: r.gitDir, branch: branch}
}

func (r *Repository) loadConfig() error {
	l := r.loader()
	all, err := userConfig(l)
	if err == nil {
		all, err = l.load(all, r.commonDir+"/config", 0)
	}
	if err == nil && all.bool("extensions", "", "worktreeconfig", false) {
		all, err = l.load(all, r.gitDir+"/config.worktree", 0)
	}
	if err != nil {
		return failf(500, "", "read the configuration: %v", err)
	}
	r.config = all
	return nil
}

// Files of configuration outside of repositories.
const systemConfig = "/etc/gitconfig"

func globalConfig(home string) string { return home + "/.gitconfig" }

func userConfig(l *loader) (settings, error) {
	var all settings
	var err error
	for _, file := range []string{systemConfig, xdg(l.home) + "/git/config", globalConfig(l.home)} {
		if all, err = l.load(all, file, 0); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// needWorktree is an error if there is none.
func (r *Repository) needWorktree() error {
	if r.dir == "" {
		return invalid("%s is a bare repository: it has no working tree", r.gitDir)
	}
	return nil
}

// head is what HEAD says: a branch's full name, or a commit.
func (r *Repository) head() (branch string, hash plumbing.Hash, err error) {
	text, err := r.readRef("HEAD")
	if err != nil {
		return "", plumbing.ZeroHash, failf(404, wire.CodeGitRepoNotFound, "repository not found: HEAD of %s: %v", r.gitDir, err)
	}
	if target, ok := strings.CutPrefix(text, "ref:"); ok {
		branch = strings.TrimSpace(target)
		if !strings.HasPrefix(branch, "refs/") || !validRef(branch) {
			return "", plumbing.ZeroHash, failf(500, "", "HEAD of %s leads to %q, which is no reference", r.gitDir, clip(branch))
		}
		hash, err := r.resolve(branch, 0)
		if err != nil && !errors.Is(err, errNoRef) {
			return "", plumbing.ZeroHash, err
		}
		return branch, hash, nil
	}
	if !plumbing.IsHash(text) {
		return "", plumbing.ZeroHash, failf(500, "", "HEAD of %s is neither a reference nor a commit", r.gitDir)
	}
	return "", plumbing.NewHash(text), nil
}

// headBranch is the short name of the branch that is checked out.
func (r *Repository) headBranch() (string, bool) {
	text, err := r.readRef("HEAD")
	if err != nil {
		return "", false
	}
	target, ok := strings.CutPrefix(text, "ref:")
	if !ok {
		return "", false
	}
	return strings.CutPrefix(strings.TrimSpace(target), "refs/heads/")
}

// refDir is where a reference is kept: what is a working tree's own, or shared.
func (r *Repository) refDir(name string) string {
	if !strings.HasPrefix(name, "refs/") || strings.HasPrefix(name, "refs/bisect/") || strings.HasPrefix(name, "refs/worktree/") || strings.HasPrefix(name, "refs/rewritten/") {
		return r.gitDir
	}
	return r.commonDir
}

func (r *Repository) readRef(name string) (string, error) {
	file := r.refDir(name) + "/" + name
	if target, err := os.Readlink(file); err == nil && strings.HasPrefix(target, "refs/") {
		return "ref: " + target, nil // HEAD of old
	}
	text, err := readRegular(file, 64<<10)
	return strings.TrimSpace(string(text)), err
}

var errNoRef = errors.New("no such reference")

// resolve follows a reference to the object that it names.
func (r *Repository) resolve(name string, depth int) (plumbing.Hash, error) {
	if depth > 5 {
		return plumbing.ZeroHash, fmt.Errorf("%s: too many symbolic references", name)
	}
	text, err := r.readRef(name)
	if err == nil {
		if target, ok := strings.CutPrefix(text, "ref:"); ok {
			if target = strings.TrimSpace(target); !validRef(target) {
				return plumbing.ZeroHash, errNoRef
			}
			return r.resolve(target, depth+1)
		}
		if plumbing.IsHash(text) {
			return plumbing.NewHash(text), nil
		}
		return plumbing.ZeroHash, errNoRef
	}
	packed, err := r.packedRefs()
	if err != nil {
		return plumbing.ZeroHash, err
	}
	if h, ok := packed[name]; ok {
		return h, nil
	}
	return plumbing.ZeroHash, errNoRef
}

// maxPackedRefs bounds packed-refs, in bytes.
const maxPackedRefs = 256 << 20

func (r *Repository) packedRefs() (map[string]plumbing.Hash, error) {
	text, err := readRegular(r.commonDir+"/packed-refs", maxPackedRefs)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	refs := map[string]plumbing.Hash{}
	for line := range strings.SplitSeq(string(text), "\n") {
		hash, name, ok := strings.Cut(line, " ")
		if ok && plumbing.IsHash(hash) && validRef(name) {
			refs[name] = plumbing.NewHash(hash)
		}
	}
	return refs, nil
}

// refs returns all references below a prefix such as "refs/heads/".
func (r *Repository) refs(prefix string) (map[string]plumbing.Hash, error) {
	out := map[string]plumbing.Hash{}
	packed, err := r.packedRefs()
	if err != nil {
		return nil, err
	}
	for name, h := range packed {
		if strings.HasPrefix(name, prefix) {
			out[name] = h
		}
	}
	err = filepath.WalkDir(r.commonDir+"/"+strings.TrimSuffix(prefix, "/"), func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}
		name := strings.TrimPrefix(p, r.commonDir+"/")
		if d.IsDir() || !strings.HasPrefix(name, prefix) || strings.HasSuffix(name, ".lock") || !validRef(name) {
			return nil
		}
		if h, err := r.resolve(name, 0); err == nil {
			out[name] = h
		}
		return nil
	})
	return out, err
}

// validRef checks a full name as git-check-ref-format(1) does.
func validRef(name string) bool {
	if name == "" || len(name) > 1024 || strings.HasSuffix(name, ".") || strings.Contains(name, "..") || strings.Contains(name, "@{") || name == "@" || name[0] == '/' || name[0] == '-' ||
		strings.ContainsFunc(name, func(c rune) bool { return c < 33 || c == 127 || strings.ContainsRune(`~^:?*[\`, c) }) {
		return false
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == "" || part[0] == '.' || strings.HasSuffix(part, ".lock") {
			return false
		}
	}
	return true
}

// checkBranch is an error unless name can be a branch's.
func checkBranch(name string) error {
	if !validRef("refs/heads/"+name) || strings.HasPrefix(name, "-") || name == "HEAD" {
		return invalid("%q is not a valid name of a branch", clip(name))
	}
	return nil
}

// setRef points a reference at an object, if it is still at old; any will do if
// old is nil. reason is for the reflog.
func (r *Repository) setRef(name string, hash plumbing.Hash, old *plumbing.Hash, reason string) error {
	if name != "HEAD" && !validRef(name) {
		return invalid("%q is not a valid name of a reference", clip(name))
	}
	file := r.refDir(name) + "/" + name
	// A name that is a directory of others.
	taken, err := r.refs(name + "/")
	if err != nil {
		return err
	}
	if len(taken) > 0 {
		return failf(409, wire.CodeGitBranchExists, "%s exists as the beginning of other references' names", name)
	}
	for i := len(name); ; {
		if i = strings.LastIndexByte(name[:i], '/'); i < 0 || name[:i] == "refs" {
			break
		}
		if _, err := r.resolve(name[:i], 0); err == nil {
			return failf(409, wire.CodeGitBranchExists, "%s exists: %s cannot", name[:i], name)
		}
	}
	// Directories that others have left empty.
	if info, err := os.Lstat(file); err == nil && info.IsDir() {
		removeEmpty(file)
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o777); err != nil {
		return err
	}
	was, err := r.resolve(name, 0)
	if err != nil && !errors.Is(err, errNoRef) {
		return err
	}
	err = locked(file, 0o666&^umask(), func(w io.Writer) error {
		now, err := r.resolve(name, 0)
		if err != nil && !errors.Is(err, errNoRef) {
			return err
		}
		if old != nil && now != *old {
			return failf(409, "", "%s has been changed by somebody else meanwhile", name)
		}
		was = now
		_, err = io.WriteString(w, hash.String()+"\n")
		return err
	})
	if err != nil {
		return err
	}
	r.reflog(name, was, hash, reason)
	if branch, _, err := r.head(); err == nil && branch == name {
		r.reflog("HEAD", was, hash, reason)
	}
	return nil
}

// setHead makes HEAD a branch, or, without one, a commit.
func (r *Repository) setHead(branch string, hash plumbing.Hash, reason string) error {
	_, was, _ := r.head()
	text := hash.String()
	if branch != "" {
		text = "ref: " + branch
	}
	err := locked(r.gitDir+"/HEAD", 0o666&^umask(), func(w io.Writer) error {
		_, err := io.WriteString(w, text+"\n")
		return err
	})
	if err == nil && (hash != plumbing.ZeroHash || was != plumbing.ZeroHash) {
		r.reflog("HEAD", was, hash, reason)
	}
	return err
}

// deleteRef removes a reference with its log.
func (r *Repository) deleteRef(name string) error {
	packed, err := r.packedRefs()
	if err != nil {
		return err
	}
	if _, ok := packed[name]; ok {
		err := locked(r.commonDir+"/packed-refs", 0o666&^umask(), func(w io.Writer) error {
			text, err := readRegular(r.commonDir+"/packed-refs", maxPackedRefs)
			if err != nil {
				return err
			}
			skip := false
			for line := range strings.SplitAfterSeq(string(text), "\n") {
				if !strings.HasPrefix(line, "^") {
					_, ref, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
					skip = ref == name
				}
				if skip {
					continue
				}
				if _, err := io.WriteString(w, line); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	file := r.refDir(name) + "/" + name
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// Directories are left to be reused, except empty ones above it.
	for dir := filepath.Dir(file); strings.Count(strings.TrimPrefix(dir, r.commonDir+"/"), "/") > 1; dir = filepath.Dir(dir) {
		if os.Remove(dir) != nil {
			break
		}
	}
	_ = os.Remove(r.refDir(name) + "/logs/" + name)
	return nil
}

// removeEmpty removes a directory that has nothing but directories.
func removeEmpty(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if e.IsDir() {
			removeEmpty(filepath.Join(dir, e.Name()))
		}
	}
	_ = os.Remove(dir)
}

// reflog notes a change. It is for people to find what they have lost: that it
// cannot be written ends nothing.
func (r *Repository) reflog(name string, old, hash plumbing.Hash, reason string) {
	logged := name == "HEAD" || strings.HasPrefix(name, "refs/heads/") || strings.HasPrefix(name, "refs/remotes/")
	file := r.refDir(name) + "/logs/" + name
	if _, err := os.Stat(file); err != nil && (!logged || !r.config.bool("core", "", "logallrefupdates", r.dir != "")) {
		return
	}
	if os.MkdirAll(filepath.Dir(file), 0o777) != nil {
		return
	}
	if info, err := os.Lstat(file); err == nil && info.IsDir() {
		removeEmpty(file)
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o666)
	if err != nil {
		return
	}
	defer f.Close()
	who := r.identity()
	fmt.Fprintf(f, "%s %s %s\t%s\n", old, hash, who.line(time.Now()), strings.Map(func(c rune) rune {
		if c == '\n' || c == '\r' {
			return ' '
		}
		return c
	}, reason))
}

// identity is who acts where a request names nobody.
func (r *Repository) identity() person {
	name, _ := r.config.get("user", "", "name")
	email, _ := r.config.get("user", "", "email")
	if name == "" {
		name = r.user.Name
	}
	if email == "" {
		host, _ := os.Hostname()
		email = r.user.Name + "@" + host
	}
	return person{clean(name), clean(email)}
}

type person struct{ name, email string }

func (p person) line(at time.Time) string {
	return fmt.Sprintf("%s <%s> %d %s", p.name, p.email, at.Unix(), at.Format("-0700"))
}

// clean takes out of a name or an address what would end it in an object.
func clean(s string) string {
	s = strings.Map(func(c rune) rune {
		if c == '<' || c == '>' || c == '\n' || c == 0 {
			return -1
		}
		return c
	}, s)
	return strings.Trim(s, " .,:;\"\\'\t\r")
}

// SetReference is what go-git calls for each reference that it has fetched.
func (s *store) SetReference(ref *plumbing.Reference) error {
	name := string(ref.Name())
	if ref.Type() == plumbing.SymbolicReference {
		if !validRef(name) && name != "HEAD" || !validRef(string(ref.Target())) {
			return invalid("the remote has a reference %q", clip(name))
		}
		return s.Storage.SetReference(ref)
	}
	return s.repo.setRef(name, ref.Hash(), nil, "fetch")
}

// CheckAndSetReference is SetReference if the reference is still at old.
func (s *store) CheckAndSetReference(ref, old *plumbing.Reference) error {
	if old == nil || ref.Type() == plumbing.SymbolicReference {
		return s.SetReference(ref)
	}
	h := old.Hash()
	return s.repo.setRef(string(ref.Name()), ref.Hash(), &h, "fetch")
}

// RemoveReference removes one.
func (s *store) RemoveReference(name plumbing.ReferenceName) error {
	return s.repo.deleteRef(string(name))
}

// object reads one of a kind and of at most limit bytes.
func (r *Repository) object(kind plumbing.ObjectType, hash plumbing.Hash, limit int64) ([]byte, error) {
	r.objects.Lock()
	defer r.objects.Unlock()
	o, err := r.store.EncodedObject(kind, hash)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", kind, hash, err)
	}
	if o.Size() > limit {
		return nil, failf(413, "", "%s %s has %d bytes, more than %d", kind, hash, o.Size(), limit)
	}
	rd, err := o.Reader()
	if err != nil {
		return nil, err
	}
	defer rd.Close()
	b := make([]byte, o.Size())
	if _, err := io.ReadFull(rd, b); err != nil {
		return nil, fmt.Errorf("%s %s: %w", kind, hash, err)
	}
	return b, nil
}

const (
	maxCommit = 64 << 20
	maxTree   = 512 << 20
)

// commit is a commit without what nobody asks for here.
type commit struct {
	hash      plumbing.Hash
	tree      plumbing.Hash
	parents   []plumbing.Hash
	author    person
	at        time.Time // of the author
	committed int64     // Unix time
	message   string
}

func (r *Repository) commit(hash plumbing.Hash) (*commit, error) {
	b, err := r.object(plumbing.CommitObject, hash, maxCommit)
	if err != nil {
		return nil, err
	}
	return parseCommit(hash, b)
}

func parseCommit(hash plumbing.Hash, b []byte) (*commit, error) {
	c := &commit{hash: hash}
	head, message, _ := strings.Cut(string(b), "\n\n")
	c.message = message
	for line := range strings.SplitSeq(head, "\n") {
		key, value, _ := strings.Cut(line, " ")
		switch key {
		case "tree":
			c.tree = plumbing.NewHash(value)
		case "parent":
			c.parents = append(c.parents, plumbing.NewHash(value))
		case "author":
			c.author, c.at = parsePerson(value)
		case "committer":
			_, at := parsePerson(value)
			c.committed = at.Unix()
		}
	}
	if c.tree == plumbing.ZeroHash {
		return nil, fmt.Errorf("commit %s has no tree", hash)
	}
	return c, nil
}

func parsePerson(s string) (person, time.Time) {
	var p person
	open, end := strings.IndexByte(s, '<'), strings.LastIndexByte(s, '>')
	if open < 0 || end < open {
		return person{name: s}, time.Unix(0, 0).UTC()
	}
	p.name, p.email = strings.TrimSpace(s[:open]), s[open+1:end]
	var sec int64
	var zone int
	_, _ = fmt.Sscanf(strings.TrimSpace(s[end+1:]), "%d %d", &sec, &zone)
	if zone <= -10000 || zone >= 10000 {
		zone = 0
	}
	const year9999 = 253402300799
	if sec < 0 || sec > year9999-86400 {
		sec = 0 // no date that JSON could carry
	}
	offset := zone/100*3600 + zone%100*60
	if zone == 0 {
		return p, time.Unix(sec, 0).UTC()
	}
	return p, time.Unix(sec, 0).In(time.FixedZone("", offset))
}

// revision finds the commit that a name means: a branch, a tag, a remote's
// branch, a hash or the beginning of one, with ~N and ^N after it.
func (r *Repository) revision(name string) (plumbing.Hash, error) {
	notFound := func() (plumbing.Hash, error) {
		return plumbing.ZeroHash, failf(404, wire.CodeGitBranchNotFound, "%q is neither a branch, a tag nor a commit of the repository", clip(name))
	}
	base, steps := name, ""
	if i := strings.IndexAny(name, "~^"); i >= 0 {
		base, steps = name[:i], name[i:]
	}
	if base == "@" {
		base = "HEAD"
	}
	if base == "" || strings.HasPrefix(base, "-") || strings.ContainsAny(base, ":\x00\n") {
		return notFound()
	}
	hash, err := r.base(base)
	if err != nil {
		return plumbing.ZeroHash, err
	}
	if hash == plumbing.ZeroHash {
		return notFound()
	}
	if hash, err = r.peel(hash); err != nil {
		return notFound()
	}
	for steps != "" {
		op := steps[0]
		digits := 0
		for digits+1 < len(steps) && steps[1+digits] >= '0' && steps[1+digits] <= '9' {
			digits++
		}
		n := 1
		if digits > 0 {
			if _, err := fmt.Sscanf(steps[1:1+digits], "%d", &n); err != nil || n > 1<<20 {
				return notFound()
			}
		}
		steps = steps[1+digits:]
		if steps != "" && steps[0] != '~' && steps[0] != '^' {
			return notFound() // ^{…}
		}
		for ; n > 0; n-- {
			c, err := r.commit(hash)
			if err != nil {
				return plumbing.ZeroHash, err
			}
			which := 0
			if op == '^' {
				which, n = n-1, 1
			}
			if which >= len(c.parents) {
				return notFound()
			}
			hash = c.parents[which]
		}
	}
	return hash, nil
}

// base finds what a name without operators means; zero if nothing.
func (r *Repository) base(name string) (plumbing.Hash, error) {
	if plumbing.IsHash(name) {
		return plumbing.NewHash(name), nil
	}
	if name == "HEAD" || validRef(name) {
		for _, prefix := range []string{"", "refs/", "refs/tags/", "refs/heads/", "refs/remotes/"} {
			if prefix == "" && name != "HEAD" && !strings.HasPrefix(name, "refs/") && strings.ToUpper(name) != name {
				continue
			}
			if h, err := r.resolve(prefix+name, 0); err == nil {
				return h, nil
			} else if !errors.Is(err, errNoRef) {
				return plumbing.ZeroHash, err
			}
		}
		if h, err := r.resolve("refs/remotes/"+name+"/HEAD", 0); err == nil {
			return h, nil
		}
	}
	if len(name) >= 4 && len(name) < 40 && strings.Trim(name, "0123456789abcdefABCDEF") == "" {
		return r.abbreviated(strings.ToLower(name))
	}
	return plumbing.ZeroHash, nil
}

// abbreviated finds the one commit whose hash begins like this.
func (r *Repository) abbreviated(prefix string) (plumbing.Hash, error) {
	var b [20]byte
	n := 0
	for ; 2*n+1 < len(prefix); n++ {
		fmt.Sscanf(prefix[2*n:2*n+2], "%02x", &b[n])
	}
	r.objects.Lock()
	hashes, err := r.store.HashesWithPrefix(b[:n])
	r.objects.Unlock()
	if err != nil {
		return plumbing.ZeroHash, err
	}
	var found plumbing.Hash
	for _, h := range hashes {
		if !strings.HasPrefix(h.String(), prefix) || h == found {
			continue
		}
		if _, err := r.peel(h); err != nil {
			continue
		}
		if found != plumbing.ZeroHash {
			return plumbing.ZeroHash, invalid("%s is the beginning of several commits' hashes", prefix)
		}
		found = h
	}
	return found, nil
}

// peel follows tags to a commit.
func (r *Repository) peel(hash plumbing.Hash) (plumbing.Hash, error) {
	for range 10 {
		r.objects.Lock()
		o, err := r.store.EncodedObject(plumbing.AnyObject, hash)
		r.objects.Unlock()
		if err != nil {
			return plumbing.ZeroHash, err
		}
		switch o.Type() {
		case plumbing.CommitObject:
			return hash, nil
		case plumbing.TagObject:
			b, err := r.object(plumbing.TagObject, hash, maxCommit)
			if err != nil {
				return plumbing.ZeroHash, err
			}
			line, _, _ := strings.Cut(string(b), "\n")
			target, ok := strings.CutPrefix(line, "object ")
			if !ok {
				return plumbing.ZeroHash, fmt.Errorf("tag %s is of nothing", hash)
			}
			hash = plumbing.NewHash(target)
		default:
			return plumbing.ZeroHash, fmt.Errorf("%s is a %s", hash, o.Type())
		}
	}
	return plumbing.ZeroHash, fmt.Errorf("%s: too many tags of tags", hash)
}

// fileError gives an error of the file system its status.
func fileError(err error) error {
	var known *Error
	switch {
	case err == nil || errors.As(err, &known):
		return err
	case errors.Is(err, fs.ErrPermission):
		return failf(403, "", "%v", err)
	case errors.Is(err, fs.ErrNotExist):
		return failf(404, "", "%v", err)
	case errors.Is(err, errNoSpace):
		return failf(507, wire.CodeNoSpace, "%v", err)
	case errors.Is(err, context.Canceled):
		return err
	}
	return failf(500, "", "%v", err)
}

func clip(s string) string { return wire.Clip(s, 256) }
