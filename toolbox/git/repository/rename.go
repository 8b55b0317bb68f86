package repository

import (
	"bytes"
	"hash/maphash"
	"slices"
)

const (
	// renameLimit bounds pairs: each may have to be read and compared.
	renameLimit = 1000 * 1000
	// renameSize bounds what is compared, in bytes.
	renameSize = 8 << 20
	// similar is from which likeness on, of maxScore, a file was renamed: half.
	maxScore = 60000
	similar  = maxScore / 2
)

// renames finds, for files that are new in the index, the file that is gone
// from it whose content they have, at least half of it.
func (r *Repository) renames(staged []difference) map[string]string {
	var gone, fresh []difference
	for _, d := range staged {
		switch {
		case d.idx == nil && d.tree.mode != modeModule:
			gone = append(gone, d)
		case d.tree == nil && d.idx.mode != modeModule:
			fresh = append(fresh, d)
		}
	}
	out := map[string]string{}
	if len(gone) == 0 || len(fresh) == 0 {
		return out
	}
	used := map[string]bool{}
	// The same content: of several, the one of the same name.
	for _, f := range fresh {
		best := -1
		for i, g := range gone {
			if g.tree.hash == f.idx.hash && !used[g.path] && (g.tree.mode == modeLink) == (f.idx.mode == modeLink) {
				if best < 0 || baseName(g.path) == baseName(f.path) && baseName(gone[best].path) != baseName(f.path) {
					best = i
				}
			}
		}
		if best >= 0 {
			out[f.path] = gone[best].path
			used[gone[best].path] = true
		}
	}
	gone = slices.DeleteFunc(gone, func(d difference) bool { return used[d.path] || d.tree.mode == modeLink })
	fresh = slices.DeleteFunc(fresh, func(d difference) bool { return out[d.path] != "" || d.idx.mode == modeLink })
	if len(gone)*len(fresh) == 0 || len(gone)*len(fresh) > renameLimit {
		return out
	}
	type pair struct {
		from, to string
		score    int
		name     bool
	}
	seed := maphash.MakeSeed()
	spans := make([]spanCount, len(gone))
	for i, g := range gone {
		spans[i] = countSpans(seed, r.small(g.tree))
	}
	var pairs []pair
	for _, f := range fresh {
		to := countSpans(seed, r.small(&treeEntry{hash: f.idx.hash}))
		for i, g := range gone {
			if score := spans[i].score(to); score >= similar {
				pairs = append(pairs, pair{g.path, f.path, score, baseName(g.path) == baseName(f.path)})
			}
		}
	}
	slices.SortStableFunc(pairs, func(a, b pair) int {
		if a.score != b.score {
			return b.score - a.score
		}
		if a.name != b.name {
			if a.name {
				return -1
			}
			return 1
		}
		return 0
	})
	for _, p := range pairs {
		if used[p.from] || out[p.to] != "" {
			continue
		}
		out[p.to], used[p.from] = p.from, true
	}
	return out
}

func baseName(p string) string { return p[1+bytes.LastIndexByte([]byte(p), '/'):] }

// small is the content of a blob that is worth comparing.
func (r *Repository) small(e *treeEntry) []byte {
	b := r.blob(e.hash)
	if len(b) > renameSize {
		return nil
	}
	return b
}

// spanCount counts bytes by the hash of the line, or of the 64 bytes, that they
// are in: git's measure of likeness.
type spanCount struct {
	size  int
	spans map[uint64]int
}

func countSpans(seed maphash.Seed, b []byte) spanCount {
	c := spanCount{size: len(b), spans: map[uint64]int{}}
	text := bytes.IndexByte(b[:min(len(b), 8000)], 0) < 0
	for len(b) > 0 {
		n := bytes.IndexByte(b[:min(len(b), 64)], '\n') + 1
		if n == 0 {
			n = min(len(b), 64)
		}
		span := b[:n]
		b = b[n:]
		if text && len(span) > 1 && span[len(span)-2] == '\r' && span[len(span)-1] == '\n' {
			// The end of a line does not count.
			span = append(slices.Clone(span[:len(span)-2]), '\n')
		}
		c.spans[maphash.Bytes(seed, span)] += n
	}
	return c
}

func (c spanCount) score(to spanCount) int {
	if c.size == 0 || to.size == 0 {
		return 0
	}
	big, little := max(c.size, to.size), min(c.size, to.size)
	if little*maxScore < similar*big {
		return 0
	}
	copied := 0
	for h, n := range c.spans {
		copied += min(n, to.spans[h])
	}
	return copied * maxScore / big
}
