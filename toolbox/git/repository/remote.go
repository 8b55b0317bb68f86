package repository

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	git "github.com/go-git/go-git/v5"
	"github.com/go-git/go-git/v5/config"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/transport"

	"github.com/daytona-go/daytona/toolbox/wire"
)

// maxURL bounds a remote's URL, in bytes.
const maxURL = 8 << 10

// address is a remote's URL, taken apart.
type address struct {
	// scheme is http, https, ssh, git or file.
	scheme, host string
	// text is the URL without what is secret in it, as it is stored; dial is
	// what go-git is told.
	text, dial string
	// user and password of the URL.
	user, password string
	path           string // of a file URL
}

// parseAddress checks a remote's URL. Schemes that git hands to a program, such
// as ext::, are refused, and so is what a program could take for an option. A
// path is relative to dir.
func parseAddress(raw, dir string) (*address, error) {
	bad := func(format string, args ...any) (*address, error) {
		return nil, invalid("url: "+format, args...)
	}
	switch {
	case raw == "":
		return bad("is empty")
	case len(raw) > maxURL:
		return bad("has more than %d bytes", maxURL)
	case strings.ContainsFunc(raw, func(c rune) bool { return c < 32 || c == 127 }):
		return bad("has a control character")
	case raw[0] == '-':
		return bad("begins with a dash")
	}
	if i := strings.Index(raw, "::"); i >= 0 && !strings.ContainsAny(raw[:i], "/[:@.") {
		return bad("%s:: is for a program that git would start: use http, https, ssh, git or file", clip(raw[:i]))
	}
	if scheme, _, ok := strings.Cut(raw, "://"); ok && !strings.ContainsAny(scheme, "/:@") {
		return parseURL(raw, strings.ToLower(scheme))
	}
	// host:path, unless a slash comes before the colon.
	host, p, ok := strings.Cut(raw, ":")
	if strings.HasPrefix(raw, "[") || strings.Contains(host, "@[") {
		if end := strings.Index(raw, "]:"); end > 0 {
			host, p, ok = raw[:end+1], raw[end+2:], true
		}
	}
	if ok && !strings.Contains(host, "/") {
		user := ""
		if i := strings.LastIndexByte(host, '@'); i >= 0 {
			user, host = host[:i], host[i+1:]
		}
		bare := strings.Trim(host, "[]")
		if bare == "" || bare[0] == '-' || p == "" || p[0] == '-' || strings.HasPrefix(user, "-") || strings.ContainsAny(bare, " \t'\"`$;&|<>()\\") {
			return bad("%q is neither a host and a path nor a URL", clip(host+":"+p))
		}
		name, password, secret := strings.Cut(user, ":")
		if secret {
			return bad("an address like host:path cannot have a password: give it apart")
		}
		a := &address{scheme: "ssh", host: bare, user: name, password: password, text: raw, dial: raw}
		return a, nil
	}
	if !filepath.IsAbs(raw) {
		raw = filepath.Join(dir, raw)
	}
	raw = filepath.Clean(raw)
	return &address{scheme: "file", text: raw, path: raw, dial: "file://" + raw}, nil
}

func parseURL(raw, scheme string) (*address, error) {
	bad := func(format string, args ...any) (*address, error) {
		return nil, invalid("url: "+format, args...)
	}
	switch scheme {
	case "git+ssh", "ssh+git":
		scheme = "ssh"
	case "http", "https", "ssh", "git":
	case "file":
		p := raw[len("file://"):]
		if !strings.HasPrefix(p, "/") {
			host, rest, _ := strings.Cut(p, "/")
			if host != "localhost" {
				return bad("a file URL has no host: file:///PATH")
			}
			p = "/" + rest
		}
		p = filepath.Clean(p)
		return &address{scheme: "file", path: p, text: "file://" + p, dial: "file://" + p}, nil
	default:
		return bad("%q is not supported: use http, https, ssh, git or file", clip(scheme))
	}
	u, err := url.Parse(raw)
	if err != nil {
		// Its error has the URL, and with it the password.
		return bad("is malformed")
	}
	host := u.Hostname()
	if host == "" || host[0] == '-' || strings.ContainsAny(host, " \t'\"`$;&|<>()\\") {
		return bad("has no valid host")
	}
	if port := u.Port(); strings.HasPrefix(port, "-") {
		return bad("has no valid port")
	}
	if strings.HasPrefix(strings.TrimPrefix(u.Path, "/"), "-") && scheme == "ssh" {
		return bad("its path begins with a dash")
	}
	a := &address{scheme: scheme, host: u.Host}
	if u.User != nil {
		a.user = u.User.Username()
		a.password, _ = u.User.Password()
		if strings.HasPrefix(a.user, "-") {
			return bad("the user begins with a dash")
		}
	}
	u.Scheme = scheme
	u.Fragment, u.RawFragment = "", ""
	u.User = nil
	if scheme == "ssh" && a.user != "" {
		u.User = url.User(a.user) // whom to log in as is no secret
	}
	a.text = u.String()
	a.dial = a.text
	return a, nil
}

// redact takes a password out of a URL that is shown.
func redact(raw string) string {
	scheme, rest, ok := strings.Cut(raw, "://")
	if !ok {
		return raw
	}
	authority, _, _ := strings.Cut(rest, "/")
	at := strings.LastIndexByte(authority, '@')
	if at < 0 {
		return raw
	}
	user, _, secret := strings.Cut(authority[:at], ":")
	if !secret {
		return raw
	}
	return scheme + "://" + user + ":xxxxx" + rest[at:]
}

// session is what one request needs to talk to a remote.
type session struct {
	user     User
	config   settings
	insecure bool

	username, password string

	mu      sync.Mutex
	secrets []string
}

// secret notes what must be in no message.
func (s *session) secret(texts ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range texts {
		if t == "" {
			continue
		}
		for _, form := range []string{t, url.QueryEscape(t), url.PathEscape(t), url.UserPassword("", t).String()[1:]} {
			if !slices.Contains(s.secrets, form) {
				s.secrets = append(s.secrets, form)
			}
		}
	}
	// Long ones first: one may be part of another.
	slices.SortFunc(s.secrets, func(a, b string) int { return len(b) - len(a) })
}

// scrub takes all secrets out of a text.
func (s *session) scrub(text string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, secret := range s.secrets {
		text = strings.ReplaceAll(text, secret, "***")
	}
	return text
}

// rewrite applies url.BASE.insteadOf.
func (s *session) rewrite(raw string, push bool) string {
	find := func(key string) (string, bool) {
		best, base := "", ""
		for _, b := range s.config.subs("url") {
			for _, prefix := range s.config.all("url", b, key) {
				if len(prefix) > len(best) && strings.HasPrefix(raw, prefix) {
					best, base = prefix, b
				}
			}
		}
		return base + raw[len(best):], best != ""
	}
	if push {
		if to, ok := find("pushinsteadof"); ok {
			return to
		}
	}
	to, _ := find("insteadof")
	return to
}

// remote is one that go-git can talk to.
type remote struct {
	*git.Remote
	address *address
	auth    transport.AuthMethod
	session *session
}

// dial prepares for talking to a remote. local is its own address, for a
// repository of this machine.
func (r *Repository) dial(s *session, name, raw string, specs []config.RefSpec, push bool) (*remote, error) {
	a, err := parseAddress(s.rewrite(raw, push), r.top())
	if err != nil {
		return nil, err
	}
	s.secret(s.password, a.password)
	if a.user != "" && a.password == "" && a.scheme != "ssh" {
		s.secret(a.user) // a token
	}
	auth, err := s.auth(a)
	if err != nil {
		return nil, err
	}
	cfg := &config.RemoteConfig{Name: name, URLs: []string{a.dial}, Fetch: specs}
	return &remote{git.NewRemote(r.store, cfg), a, auth, s}, nil
}

// top is what relative addresses are relative to.
func (r *Repository) top() string {
	if r.dir != "" {
		return r.dir
	}
	return r.gitDir
}

// fail gives an error of a remote its status and code.
func (m *remote) fail(err error) error {
	var known *Error
	if err == nil || errors.As(err, &known) {
		return err
	}
	where := m.address.text
	text := m.session.scrub(clipLong(err.Error()))
	switch {
	case errors.Is(err, context.Canceled):
		return err
	case errors.Is(err, transport.ErrAuthenticationRequired), strings.Contains(text, "unable to authenticate"), strings.Contains(text, "invalid auth method"):
		return failf(401, wire.CodeGitAuth, "authentication failed for %s: %s", where, text)
	case errors.Is(err, transport.ErrAuthorizationFailed):
		return failf(403, wire.CodeGitAuth, "not allowed by %s: %s", where, text)
	case errors.Is(err, transport.ErrRepositoryNotFound):
		return failf(404, wire.CodeGitRepoNotFound, "repository not found: %s", where)
	case errors.Is(err, git.NoMatchingRefSpecError{}):
		return failf(404, wire.CodeGitBranchNotFound, "%s: %s", where, text)
	case strings.Contains(text, "non-fast-forward update"), errors.Is(err, plumbing.ErrObjectNotFound):
		return failf(409, wire.CodeGitPushRejected, "push to %s rejected: it has commits that this repository has not: pull first (%s)", where, text)
	case strings.Contains(text, "command error on"), strings.Contains(text, "unpack error"):
		return failf(409, wire.CodeGitRemoteRejected, "push rejected by %s: %s", where, text)
	case errors.Is(err, errNoSpace):
		return failf(507, wire.CodeNoSpace, "%s", text)
	case errors.Is(err, fs.ErrPermission):
		return failf(403, "", "%s", text)
	}
	return failf(500, wire.CodeGitTransport, "talk to %s: %s", where, text)
}

func clipLong(s string) string {
	const limit = 2 << 10
	if len(s) > limit {
		s = s[:limit] + "…"
	}
	return strings.ToValidUTF8(s, "�")
}

// fetchSpecs are what a remote's references are called here.
func (r *Repository) fetchSpecs(name string) []config.RefSpec {
	var specs []config.RefSpec
	for _, v := range r.config.all("remote", name, "fetch") {
		if spec := config.RefSpec(v); spec.Validate() == nil && !strings.HasPrefix(v, "^") {
			specs = append(specs, spec)
		}
	}
	return specs
}

// remoteURL is where a remote is; a name that is none may be an address.
func (r *Repository) remoteURL(name string, push bool) (string, error) {
	if push {
		if v, ok := r.config.get("remote", name, "pushurl"); ok {
			return v, nil
		}
	}
	if all := r.config.all("remote", name, "url"); len(all) > 0 {
		return all[0], nil
	}
	return "", failf(404, wire.CodeGitRepoNotFound, "remote %q not found: add it first", clip(name))
}

// fetch gets what refspecs name. Nothing new is no error.
func (m *remote) fetch(ctx context.Context, specs []config.RefSpec, depth int, tags git.TagMode) error {
	err := m.FetchContext(ctx, &git.FetchOptions{RemoteName: m.Config().Name, RefSpecs: specs, Depth: depth, Auth: m.auth, Tags: tags, InsecureSkipTLS: m.session.insecure, Force: true})
	if errors.Is(err, git.NoErrAlreadyUpToDate) {
		err = nil
	}
	return err
}

// Clone clones a repository into a directory that is empty or not there. A path
// as the URL is relative to workDir.
func Clone(ctx context.Context, q *wire.GitCloneRequest, workDir string, s *session) (_ *wire.GitCloneResponse, err error) {
	dir := q.Path
	if q.Depth < 0 {
		return nil, invalid("depth is %d; it must be 0 (everything) or more", q.Depth)
	}
	if q.Branch != "" {
		if err := checkBranch(q.Branch); err != nil {
			return nil, err
		}
	}
	if c := q.CommitID; c != "" && (len(c) < 4 || len(c) > 40 || strings.Trim(c, "0123456789abcdefABCDEF") != "") {
		return nil, invalid("commit_id %q: not a commit's hash", clip(c))
	}
	a, err := parseAddress(q.URL, workDir)
	if err != nil {
		return nil, err
	}
	s.secret(a.password)
	existed := false
	if entries, err := os.ReadDir(dir); err == nil {
		if len(entries) > 0 {
			return nil, failf(409, "", "%s exists and is not empty", dir)
		}
		existed = true
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, fileError(err)
	}
	made, err := mkdirAll(dir)
	if err != nil {
		return nil, fileError(err)
	}
	defer func() {
		if err == nil {
			return
		}
		// As if nothing had been.
		if existed {
			entries, _ := os.ReadDir(dir)
			for _, e := range entries {
				_ = os.RemoveAll(filepath.Join(dir, e.Name()))
			}
			return
		}
		_ = os.RemoveAll(dir)
		for _, d := range made {
			_ = os.Remove(d)
		}
	}()
	r, err := create(dir, "", false, s.user)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	s.config = r.config
	stored := a.text
	all := config.RefSpec("+refs/heads/*:refs/remotes/origin/*")
	if a.scheme == "file" {
		q.URL = a.text // absolute
	}
	m, err := r.dial(s, "origin", q.URL, []config.RefSpec{all}, false)
	if err != nil {
		return nil, err
	}
	out, err := r.clone(ctx, m, q, stored, all)
	if err != nil {
		return nil, m.fail(err)
	}
	return out, nil
}

// mkdirAll makes a directory and returns those above it that it had to make,
// the innermost first.
func mkdirAll(dir string) ([]string, error) {
	var made []string
	for d := filepath.Dir(dir); ; d = filepath.Dir(d) {
		if _, err := os.Lstat(d); err == nil || d == "/" || d == "." {
			break
		}
		made = append(made, d)
	}
	return made, os.MkdirAll(dir, 0o777)
}

func (r *Repository) clone(ctx context.Context, m *remote, q *wire.GitCloneRequest, stored string, all config.RefSpec) (*wire.GitCloneResponse, error) {
	refs, err := m.ListContext(ctx, &git.ListOptions{Auth: m.auth, InsecureSkipTLS: m.session.insecure, PeelingOption: git.IgnorePeeled})
	if errors.Is(err, transport.ErrEmptyRemoteRepository) || err == nil && len(refs) == 0 {
		if q.Branch != "" || q.CommitID != "" {
			return nil, failf(404, wire.CodeGitBranchNotFound, "%s is empty: it has no branch and no commit", stored)
		}
		return r.cloneEmpty(m, stored, all)
	}
	if err != nil {
		return nil, err
	}
	var theirHead *plumbing.Reference
	known := map[plumbing.ReferenceName]plumbing.Hash{}
	for _, ref := range refs {
		if ref.Name() == plumbing.HEAD {
			theirHead = ref
		}
		if ref.Type() == plumbing.HashReference {
			known[ref.Name()] = ref.Hash()
		}
	}
	byDefault := defaultBranch(theirHead, known)
	want := byDefault
	tag := false
	if q.Branch != "" {
		want = plumbing.NewBranchReferenceName(q.Branch)
		if _, ok := known[want]; !ok {
			want = plumbing.NewTagReferenceName(q.Branch)
			if _, tag = known[want]; !tag {
				return nil, failf(404, wire.CodeGitBranchNotFound, "branch %s not found in %s", q.Branch, stored)
			}
		}
	}
	var specs []config.RefSpec
	spec := all
	switch {
	case tag:
		specs = append(specs, config.RefSpec("+"+string(want)+":"+string(want)))
		if q.AllBranches {
			specs = append(specs, all)
		}
	case q.AllBranches || want == "":
		specs = append(specs, all)
	default:
		short := want.Short()
		if checkBranch(short) != nil {
			return nil, failf(422, "", "%s: its branch %q has a name that git does not allow", stored, clip(short))
		}
		spec = config.RefSpec("+" + string(want) + ":refs/remotes/origin/" + short)
		specs = append(specs, spec)
	}
	if m.address.scheme == "file" {
		if ok, err := r.copyObjects(m.address.path); err != nil {
			return nil, err
		} else if ok {
			q.Depth = 0 // as git ignores it for a repository of this machine
		}
	}
	if err := m.fetch(ctx, specs, q.Depth, git.TagFollowing); err != nil {
		return nil, err
	}
	var to plumbing.Hash
	switch {
	case want == "":
		if theirHead == nil {
			return nil, failf(404, wire.CodeGitBranchNotFound, "%s has no HEAD: name a branch", stored)
		}
		if to = theirHead.Hash(); !r.has(to) {
			if err := r.fetchCommit(ctx, m, to.String(), q.Depth); err != nil {
				return nil, err
			}
		}
	case tag:
		if to, err = r.peel(known[want]); err != nil {
			return nil, err
		}
	default:
		if to, err = r.resolve("refs/remotes/origin/"+want.Short(), 0); err != nil {
			return nil, err
		}
	}
	branch := want
	if tag || want == "" {
		branch = ""
	}
	if q.CommitID != "" {
		if to, err = r.cloneCommit(ctx, m, q, all); err != nil {
			return nil, err
		}
	}
	if err := r.addRemote("origin", stored, spec); err != nil {
		return nil, err
	}
	reason := "clone: from " + stored
	if branch != "" {
		tip, err := r.resolve("refs/remotes/origin/"+branch.Short(), 0)
		if err != nil {
			return nil, err
		}
		if err := r.setRef(string(branch), tip, nil, reason); err != nil {
			return nil, err
		}
		if err := r.setUpstream(branch.Short(), "origin", string(branch)); err != nil {
			return nil, err
		}
		if branch == byDefault {
			ref := plumbing.NewSymbolicReference("refs/remotes/origin/HEAD", plumbing.NewRemoteReferenceName("origin", branch.Short()))
			if err := r.store.SetReference(ref); err != nil {
				return nil, err
			}
		}
	}
	if q.CommitID != "" {
		branch = ""
	}
	if err := r.setHead(string(branch), to, reason); err != nil {
		return nil, err
	}
	if err := r.loadConfig(); err != nil {
		return nil, err
	}
	tree, err := r.treeOf(to)
	if err != nil {
		return nil, err
	}
	out := &wire.GitCloneResponse{Hash: to.String(), Branch: strings.TrimPrefix(string(branch), "refs/heads/")}
	err = r.lockedIndex(func(x *index) error {
		out.LFSPointers, err = r.move(x, emptyTree, tree, moveForce)
		return err
	})
	return out, err
}

// cloneEmpty clones a repository that has no commit: what its first one will be
// on is known of those of this machine.
func (r *Repository) cloneEmpty(m *remote, stored string, all config.RefSpec) (*wire.GitCloneResponse, error) {
	if m.address.scheme == "file" {
		from, err := openLocal(m.address.path, r.user)
		if err != nil {
			return nil, err
		}
		theirs, ok := from.headBranch()
		from.Close()
		if ok && checkBranch(theirs) == nil {
			if err := r.setHead("refs/heads/"+theirs, plumbing.ZeroHash, ""); err != nil {
				return nil, fileError(err)
			}
		}
	}
	branch, _ := r.headBranch()
	if err := r.addRemote("origin", stored, all); err != nil {
		return nil, err
	}
	return &wire.GitCloneResponse{Branch: branch}, fileError(r.setUpstream(branch, "origin", "refs/heads/"+branch))
}

// defaultBranch is the branch that a remote's HEAD is at, "" if none.
func defaultBranch(head *plumbing.Reference, known map[plumbing.ReferenceName]plumbing.Hash) plumbing.ReferenceName {
	if head == nil {
		return ""
	}
	if head.Type() == plumbing.SymbolicReference {
		if _, ok := known[head.Target()]; ok && head.Target().IsBranch() {
			return head.Target()
		}
		return ""
	}
	// A server of old does not say.
	for _, name := range []plumbing.ReferenceName{"refs/heads/main", "refs/heads/master"} {
		if known[name] == head.Hash() {
			return name
		}
	}
	var found []plumbing.ReferenceName
	for name, h := range known {
		if name.IsBranch() && h == head.Hash() {
			found = append(found, name)
		}
	}
	if len(found) == 0 {
		return ""
	}
	return slices.Min(found)
}

// cloneCommit finds the commit that a clone is to check out, which the branch
// need not have.
func (r *Repository) cloneCommit(ctx context.Context, m *remote, q *wire.GitCloneRequest, all config.RefSpec) (plumbing.Hash, error) {
	id := strings.ToLower(q.CommitID)
	find := func() (plumbing.Hash, bool) {
		h, err := r.revision(id)
		return h, err == nil && r.has(h)
	}
	if h, ok := find(); ok {
		return h, nil
	}
	if len(id) == 40 && q.Depth > 0 {
		if err := r.fetchCommit(ctx, m, id, q.Depth); err == nil {
			if h, ok := find(); ok {
				return h, nil
			}
		}
	}
	// Elsewhere than on the branch, or beyond the depth.
	if err := m.fetch(ctx, []config.RefSpec{all}, fullDepth(q.Depth), git.TagFollowing); err != nil {
		return plumbing.ZeroHash, err
	}
	if h, ok := find(); ok {
		return h, nil
	}
	if len(id) == 40 {
		if err := r.fetchCommit(ctx, m, id, 0); err == nil {
			if h, ok := find(); ok {
				return h, nil
			}
		}
	}
	return plumbing.ZeroHash, failf(404, wire.CodeGitBranchNotFound, "commit %s not found in %s", id, m.address.text)
}

// fullDepth is what makes a shallow repository a complete one.
func fullDepth(depth int) int {
	if depth > 0 {
		return 1<<31 - 1
	}
	return 0
}

// fetchCommit fetches a commit by its hash, where the server allows it.
func (r *Repository) fetchCommit(ctx context.Context, m *remote, id string, depth int) error {
	const ref = "refs/daytona/fetched"
	err := m.fetch(ctx, []config.RefSpec{config.RefSpec(id + ":" + ref)}, depth, git.NoTags)
	_ = r.deleteRef(ref)
	return err
}

// addRemote writes a remote into the configuration.
func (r *Repository) addRemote(name, address string, spec config.RefSpec) error {
	return editConfig(r.commonDir+"/config", 0o666&^umask(), func(f *configFile) ([]byte, error) {
		for _, p := range [][2]string{{"url", address}, {"fetch", string(spec)}} {
			text, err := f.set("remote", name, p[0], p[1])
			if err != nil {
				return nil, err
			}
			if f, err = parseConfig(text); err != nil {
				return nil, err
			}
		}
		return f.text, nil
	})
}

// copyObjects takes the objects of a repository of this machine as they are,
// which is what git does, too, and many times faster than to pack them anew. It
// leaves the repository alone if its objects are also elsewhere. Links are not
// followed: they could lead to any file of the user's.
func (r *Repository) copyObjects(path string) (bool, error) {
	from, err := openLocal(path, r.user)
	if err != nil {
		return false, err
	}
	defer from.Close()
	objects := from.commonDir + "/objects"
	for _, p := range []string{"/info/alternates", "/info/http-alternates"} {
		if _, err := os.Lstat(objects + p); err == nil {
			return false, nil
		}
	}
	if s, err := from.shallow(); err != nil || len(s) > 0 {
		return false, err
	}
	root, err := os.OpenRoot(objects)
	if err != nil {
		return false, fileError(err)
	}
	defer root.Close()
	err = fs.WalkDir(root.FS(), ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		dir, name := filepath.Split(p)
		dir = strings.TrimSuffix(dir, "/")
		if d.IsDir() {
			if p == "." || p == "pack" || len(p) == 2 && strings.Trim(p, "0123456789abcdef") == "" {
				return nil
			}
			return fs.SkipDir
		}
		pack := dir == "pack" && strings.HasPrefix(name, "pack-") && (strings.HasSuffix(name, ".pack") || strings.HasSuffix(name, ".idx"))
		loose := len(dir) == 2 && len(name) == 38 && strings.Trim(name, "0123456789abcdef") == ""
		if !pack && !loose {
			return nil
		}
		if !d.Type().IsRegular() {
			return failf(422, "", "%s/%s is not a regular file", objects, p)
		}
		return copyFile(root, p, r.commonDir+"/objects/"+p)
	})
	if err != nil {
		return false, fileError(err)
	}
	// The storage looks for packs once.
	r.store.Close()
	r.open()
	return true, nil
}

func copyFile(root *os.Root, name, to string) error {
	in, err := root.Open(name)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := os.MkdirAll(filepath.Dir(to), 0o777); err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// openLocal opens what a path leads to as git does for a remote: the directory
// itself, its .git, or the same with .git at the end.
func openLocal(path string, user User) (*Repository, error) {
	r, err := Open(path, user)
	if err != nil {
		if r, err2 := Open(path+".git", user); err2 == nil {
			return r, nil
		}
		return nil, err
	}
	return r, nil
}

// Pull fetches and fast-forwards the current branch.
func (r *Repository) Pull(ctx context.Context, q *wire.GitSyncRequest, s *session) error {
	if err := r.needWorktree(); err != nil {
		return err
	}
	branch, head, err := r.head()
	if err != nil {
		return err
	}
	current := strings.TrimPrefix(branch, "refs/heads/")
	name := q.Remote
	if name == "" {
		if name, _ = r.config.get("branch", current, "remote"); name == "" || name == "." {
			name = "origin"
		}
	}
	merge := ""
	switch {
	case q.Branch != "":
		if err := checkBranch(q.Branch); err != nil {
			return err
		}
		merge = "refs/heads/" + q.Branch
	case current == "":
		return failf(409, "", "HEAD is detached: check out a branch, or name one to pull")
	default:
		if configured, _ := r.config.get("branch", current, "remote"); configured == name {
			merge, _ = r.config.get("branch", current, "merge")
		}
		if merge == "" || !validRef(merge) {
			merge = branch
		}
	}
	raw, err := r.remoteURL(name, false)
	if err != nil {
		return err
	}
	specs := r.fetchSpecs(name)
	m, err := r.dial(s, name, raw, specs, false)
	if err != nil {
		return err
	}
	here := ""
	for _, spec := range specs {
		if spec.Match(plumbing.ReferenceName(merge)) {
			here = string(spec.Dst(plumbing.ReferenceName(merge)))
		}
	}
	if here == "" {
		here = "refs/remotes/" + name + "/" + shortRef(merge)
		specs = append(slices.Clone(specs), config.RefSpec("+"+merge+":"+here))
	}
	if !validRef(here) {
		return invalid("remote %q: its name cannot be in a reference", clip(name))
	}
	if err := m.fetch(ctx, specs, 0, git.TagFollowing); err != nil {
		return m.fail(err)
	}
	to, err := r.resolve(here, 0)
	if err != nil {
		return failf(404, wire.CodeGitBranchNotFound, "branch %s not found in %s", shortRef(merge), m.address.text)
	}
	return r.fastForward(branch, head, to, m.address.text)
}

// fastForward moves the current branch on to a commit that has it as an
// ancestor.
func (r *Repository) fastForward(branch string, head, to plumbing.Hash, from string) error {
	if head == to {
		return nil
	}
	if head != plumbing.ZeroHash {
		sides, err := r.walk(head, to)
		if err != nil {
			return err
		}
		if sides[to]&ours != 0 {
			return nil // nothing new
		}
		if sides[head]&theirs == 0 {
			return failf(409, wire.CodeGitMergeConflict, "the branch and that of %s have diverged: it cannot be fast-forwarded; merge or rebase with git in the sandbox, or reset it", from)
		}
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
		const reason = "pull: Fast-forward"
		if branch == "" {
			return r.setHead("", to, reason)
		}
		return r.setRef(branch, to, &head, reason)
	})
	return fileError(err)
}

// Push sends a branch to a remote.
func (r *Repository) Push(ctx context.Context, q *wire.GitSyncRequest, s *session) error {
	branch, _ := r.headBranch()
	if q.Branch != "" {
		branch = q.Branch
	}
	if branch == "" {
		return failf(409, "", "HEAD is detached: check out a branch, or name one to push")
	}
	if err := checkBranch(branch); err != nil {
		return err
	}
	ref := "refs/heads/" + branch
	tip, err := r.resolve(ref, 0)
	if err != nil {
		if errors.Is(err, errNoRef) {
			return failf(404, wire.CodeGitBranchNotFound, "branch %s not found: it has no commit", branch)
		}
		return err
	}
	name := q.Remote
	if name == "" {
		if name, _ = r.config.get("branch", branch, "pushremote"); name == "" {
			if name, _ = r.config.get("remote", "", "pushdefault"); name == "" {
				if name, _ = r.config.get("branch", branch, "remote"); name == "" || name == "." {
					name = "origin"
				}
			}
		}
	}
	raw, err := r.remoteURL(name, true)
	if err != nil {
		return err
	}
	m, err := r.dial(s, name, raw, r.fetchSpecs(name), true)
	if err != nil {
		return err
	}
	if m.address.scheme == "file" {
		to, err := openLocal(m.address.path, r.user)
		if err != nil {
			return m.fail(err)
		}
		at, _ := to.headBranch()
		deny, set := to.config.get("receive", "", "denycurrentbranch")
		bare := to.dir == ""
		theirs, _ := to.resolve(ref, 0)
		to.Close()
		if !bare && at == branch && theirs != tip && (!set || truth(deny) || deny == "refuse" || deny == "updateInstead") {
			return failf(409, wire.CodeGitRemoteRejected, "push rejected by %s: its branch %s is checked out there", m.address.text, branch)
		}
	}
	said := &tail{}
	err = m.PushContext(ctx, &git.PushOptions{RemoteName: name, RemoteURL: m.address.dial, RefSpecs: []config.RefSpec{config.RefSpec(ref + ":" + ref)},
		Auth: m.auth, InsecureSkipTLS: s.insecure, Progress: said})
	if errors.Is(err, git.NoErrAlreadyUpToDate) {
		err = nil
	}
	if err != nil {
		if text := strings.TrimSpace(said.String()); text != "" && strings.Contains(err.Error(), "command error on") {
			err = fmt.Errorf("%w: the remote says: %s", err, text)
		}
		return m.fail(err)
	}
	if q.SetUpstream {
		return fileError(r.setUpstream(branch, name, ref))
	}
	return nil
}

// tail keeps the last bytes that a remote has said.
type tail struct{ b []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	if n := len(t.b) - 1024; n > 0 {
		t.b = t.b[n:]
	}
	return len(p), nil
}

func (t *tail) String() string { return string(t.b) }

// Remotes lists the remotes, without passwords.
func (r *Repository) Remotes() *wire.GitRemoteList {
	out := &wire.GitRemoteList{Remotes: []wire.GitRemote{}}
	for _, name := range r.config.subs("remote") {
		if all := r.config.all("remote", name, "url"); len(all) > 0 {
			out.Remotes = append(out.Remotes, wire.GitRemote{Name: name, URL: redact(all[0])})
		}
	}
	slices.SortFunc(out.Remotes, func(a, b wire.GitRemote) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// AddRemote adds a remote. The URL is stored as it is given: whoever puts a
// password into it wants that stored.
func (r *Repository) AddRemote(ctx context.Context, q *wire.GitAddRemoteRequest, s *session) error {
	if !validRef("refs/remotes/"+q.Name+"/x") || strings.HasPrefix(q.Name, "-") || strings.ContainsAny(q.Name, "\"\\") {
		return invalid("name %q: cannot be a remote's", clip(q.Name))
	}
	a, err := parseAddress(q.URL, r.top())
	if err != nil {
		return err
	}
	s.secret(a.password)
	if len(r.config.all("remote", q.Name, "url")) > 0 && !q.Overwrite {
		return failf(409, "", "remote %s exists", q.Name)
	}
	spec := config.RefSpec("+refs/heads/*:refs/remotes/" + q.Name + "/*")
	if err := r.addRemote(q.Name, q.URL, spec); err != nil {
		return fileError(err)
	}
	if !q.Fetch {
		return nil
	}
	if err := r.loadConfig(); err != nil {
		return err
	}
	s.config = r.config
	m, err := r.dial(s, q.Name, q.URL, []config.RefSpec{spec}, false)
	if err != nil {
		return err
	}
	err = m.fetch(ctx, []config.RefSpec{spec}, 0, git.TagFollowing)
	if errors.Is(err, transport.ErrEmptyRemoteRepository) {
		return nil
	}
	return m.fail(err)
}
