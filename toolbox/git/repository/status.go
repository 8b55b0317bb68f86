package repository

import (
	"container/heap"
	"slices"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"

	"github.com/daytona-go/daytona/toolbox/wire"
)

// Status is git status with every untracked file.
func (r *Repository) Status() (*wire.GitStatus, error) {
	if err := r.needWorktree(); err != nil {
		return nil, err
	}
	branch, head, err := r.head()
	if err != nil {
		return nil, err
	}
	x, err := readIndex(r.gitDir + "/index")
	if err != nil {
		return nil, err
	}
	type compared struct {
		staged []difference
		err    error
	}
	done := make(chan compared, 1)
	go func() {
		tree, err := r.treeOf(head)
		if err != nil {
			done <- compared{err: err}
			return
		}
		staged, err := r.diffIndex(tree, x)
		done <- compared{staged, err}
	}()
	changes, refreshed, err := r.scan(x, true, 0)
	c := <-done
	if err == nil {
		err = c.err
	}
	if err != nil {
		return nil, err
	}
	if refreshed {
		r.refresh(x)
	}
	out := &wire.GitStatus{FileStatus: []wire.GitFileStatus{}, CurrentBranch: "HEAD", Detached: branch == ""}
	files := map[string]*wire.GitFileStatus{}
	file := func(path string) *wire.GitFileStatus {
		f := files[path]
		if f == nil {
			f = &wire.GitFileStatus{Name: path, Staging: wire.GitUnmodified, Worktree: wire.GitUnmodified}
			files[path] = f
		}
		return f
	}
	renamed := r.renames(c.staged)
	for _, d := range c.staged {
		switch {
		case d.tree == nil:
			f := file(d.path)
			f.Staging = wire.GitAdded
			if from, ok := renamed[d.path]; ok {
				f.Staging, f.Extra = wire.GitRenamed, from
			}
		case d.idx == nil:
			file(d.path).Staging = wire.GitDeleted
		default:
			file(d.path).Staging = wire.GitModified
		}
	}
	for _, from := range renamed {
		if f := files[from]; f != nil && f.Staging == wire.GitDeleted {
			delete(files, from)
		}
	}
	for _, ch := range changes {
		f := file(ch.path)
		switch ch.kind {
		case changeModified:
			f.Worktree = wire.GitModified
		case changeDeleted:
			f.Worktree = wire.GitDeleted
		case changeNew:
			f.Worktree = wire.GitAdded
		case changeUntracked:
			if f.Staging == wire.GitUnmodified {
				f.Staging = wire.GitUntracked
			}
			f.Worktree = wire.GitUntracked
		}
	}
	for i := range x.entries {
		if x.entries[i].stage() != 0 {
			f := file(x.entries[i].path)
			f.Staging, f.Worktree = wire.GitUnmerged, wire.GitUnmerged
		}
	}
	for _, f := range files {
		out.FileStatus = append(out.FileStatus, *f)
	}
	slices.SortFunc(out.FileStatus, func(a, b wire.GitFileStatus) int { return strings.Compare(a.Name, b.Name) })
	if short, ok := strings.CutPrefix(branch, "refs/heads/"); ok {
		out.CurrentBranch = short
		if err := r.tracking(out, short, head); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// tracking compares a branch with its upstream: the one that is configured, or
// else the branch of the same name of origin.
func (r *Repository) tracking(out *wire.GitStatus, branch string, head plumbing.Hash) error {
	ref := r.upstream(branch)
	if ref != "" {
		out.Upstream = shortRef(ref)
	} else {
		ref = "refs/remotes/origin/" + branch
	}
	theirs, err := r.resolve(ref, 0)
	if err != nil {
		return nil // gone, or never fetched
	}
	out.BranchPublished = true
	if head == plumbing.ZeroHash {
		return nil
	}
	out.Ahead, out.Behind, err = r.aheadBehind(head, theirs)
	return err
}

func shortRef(ref string) string {
	for _, prefix := range []string{"refs/heads/", "refs/remotes/", "refs/tags/"} {
		if s, ok := strings.CutPrefix(ref, prefix); ok {
			return s
		}
	}
	return ref
}

// upstream is the reference here of what a branch is configured to be merged
// with, "" if none.
func (r *Repository) upstream(branch string) string {
	remote, _ := r.config.get("branch", branch, "remote")
	merge, _ := r.config.get("branch", branch, "merge")
	if remote == "" || merge == "" || !validRef(merge) {
		return ""
	}
	if remote == "." {
		return merge
	}
	for _, spec := range r.fetchSpecs(remote) {
		if spec.Match(plumbing.ReferenceName(merge)) {
			return string(spec.Dst(plumbing.ReferenceName(merge)))
		}
	}
	return ""
}

// treeOf is the tree of a commit; that of none is empty.
func (r *Repository) treeOf(commit plumbing.Hash) (plumbing.Hash, error) {
	if commit == plumbing.ZeroHash {
		return emptyTree, nil
	}
	c, err := r.commit(commit)
	if err != nil {
		return plumbing.ZeroHash, err
	}
	return c.tree, nil
}

// Sides of a walk from two commits.
const (
	ours = 1 << iota
	theirs
	both = ours | theirs
)

type walked struct {
	*commit
	order int
}

// byDate has the newest commit first, and those of one second as they came.
type byDate []walked

func (q byDate) Len() int { return len(q) }
func (q byDate) Less(i, j int) bool {
	if q[i].committed != q[j].committed {
		return q[i].committed > q[j].committed
	}
	return q[i].order < q[j].order
}
func (q byDate) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *byDate) Push(v any)   { *q = append(*q, v.(walked)) }
func (q *byDate) Pop() any {
	old := *q
	v := old[len(old)-1]
	*q = old[:len(old)-1]
	return v
}

// slop is how many commits of both sides are walked on after there seem to be
// no others, because dates lie.
const slop = 64

// walk visits the commits of two sides, newest first, until it has seen where
// they meet, and returns the side of each.
func (r *Repository) walk(a, b plumbing.Hash) (map[plumbing.Hash]uint8, error) {
	sides := map[plumbing.Hash]uint8{}
	parents := map[plumbing.Hash][]plumbing.Hash{}
	shallow, err := r.shallow()
	if err != nil {
		return nil, err
	}
	var q byDate
	order := 0
	push := func(h plumbing.Hash) error {
		c, err := r.commit(h)
		if err != nil {
			return err
		}
		if shallow[h] {
			c.parents = nil
		}
		parents[h] = c.parents
		heap.Push(&q, walked{c, order})
		order++
		return nil
	}
	// paint adds sides to what has been walked already, too.
	paint := func(h plumbing.Hash, side uint8) error {
		for todo := []plumbing.Hash{h}; len(todo) > 0; {
			h := todo[len(todo)-1]
			todo = todo[:len(todo)-1]
			was, seen := sides[h]
			if was|side == was && seen {
				continue
			}
			sides[h] = was | side
			if !seen {
				if err := push(h); err != nil {
					return err
				}
				continue
			}
			for _, p := range parents[h] {
				if _, ok := sides[p]; ok {
					todo = append(todo, p)
				}
			}
		}
		return nil
	}
	if err := paint(a, ours); err != nil {
		return nil, err
	}
	if err := paint(b, theirs); err != nil {
		return nil, err
	}
	extra := 0
	for len(q) > 0 {
		if !slices.ContainsFunc(q, func(w walked) bool { return sides[w.hash] != both }) {
			if extra++; extra > slop {
				break
			}
		} else {
			extra = 0
		}
		c := heap.Pop(&q).(walked)
		for _, p := range c.parents {
			if err := paint(p, sides[c.hash]); err != nil {
				return nil, err
			}
		}
	}
	return sides, nil
}

// aheadBehind counts the commits that only one of two has.
func (r *Repository) aheadBehind(a, b plumbing.Hash) (ahead, behind int, err error) {
	if a == b {
		return 0, 0, nil
	}
	sides, err := r.walk(a, b)
	for _, s := range sides {
		switch s {
		case ours:
			ahead++
		case theirs:
			behind++
		}
	}
	return ahead, behind, err
}

// shallow are the commits whose parents have not been fetched.
func (r *Repository) shallow() (map[plumbing.Hash]bool, error) {
	hashes, err := r.store.Shallow()
	if err != nil || len(hashes) == 0 {
		return nil, err
	}
	m := make(map[plumbing.Hash]bool, len(hashes))
	for _, h := range hashes {
		m[h] = true
	}
	return m, nil
}

// History calls f with the commits reachable from HEAD, newest first, limit at
// most unless that is 0.
func (r *Repository) History(limit int, f func(*wire.GitCommitInfo) error) error {
	_, head, err := r.head()
	if err != nil {
		return err
	}
	if head == plumbing.ZeroHash {
		return nil
	}
	shallow, err := r.shallow()
	if err != nil {
		return err
	}
	seen := map[plumbing.Hash]bool{head: true}
	var q byDate
	c, err := r.commit(head)
	if err != nil {
		return err
	}
	q = append(q, walked{c, 0})
	for n := 0; len(q) > 0 && (limit == 0 || n < limit); n++ {
		c := heap.Pop(&q).(walked)
		info := &wire.GitCommitInfo{
			Hash: c.hash.String(), Author: c.author.name, Email: c.author.email, Message: c.message,
			Timestamp: c.at.Format("2006-01-02T15:04:05Z07:00"), Parents: make([]string, 0, len(c.parents)),
		}
		for _, p := range c.parents {
			info.Parents = append(info.Parents, p.String())
			if seen[p] || shallow[c.hash] {
				continue
			}
			seen[p] = true
			next, err := r.commit(p)
			if err != nil {
				return err
			}
			heap.Push(&q, walked{next, len(seen)})
		}
		if err := f(info); err != nil {
			return err
		}
	}
	return nil
}
