package repository

import (
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// matchSteps bounds the work on one pattern: those with many stars could take
// for ever.
const matchSteps = 100_000

// wildmatch matches as git's wildmatch.c does; with paths, "*" and "?" do not
// match a slash, and "**" between slashes matches directories.
func wildmatch(pattern, name string, paths bool) bool {
	steps := matchSteps
	return match(pattern, name, paths, 0, &steps)
}

// match is for the rest of a pattern and a name; before is 0 where a name of the
// path begins.
func match(p, s string, paths bool, before int, steps *int) bool {
	for len(p) > 0 {
		if *steps--; *steps < 0 {
			return false
		}
		switch c := p[0]; c {
		case '*':
			stars := len(p) - len(strings.TrimLeft(p, "*"))
			rest := p[stars:]
			deep := !paths
			if paths && stars == 2 {
				// "**" counts only as a whole name of the path.
				deep = before == 0 && (rest == "" || rest[0] == '/')
				if deep && rest != "" {
					// "**/" may be nothing at all.
					if match(rest[1:], s, paths, 0, steps) {
						return true
					}
				}
			}
			if rest == "" {
				return deep || strings.IndexByte(s, '/') < 0
			}
			for i := 0; ; i++ {
				if (rest[0] == '*' || rest[0] == '?' || rest[0] == '[' || rest[0] == '\\' || i < len(s) && s[i] == rest[0]) && match(rest, s[i:], paths, 1, steps) {
					return true
				}
				if *steps--; *steps < 0 || i >= len(s) || !deep && s[i] == '/' {
					return false
				}
			}
		case '?':
			if s == "" || paths && s[0] == '/' {
				return false
			}
			p, s = p[1:], s[1:]
		case '[':
			if s == "" || paths && s[0] == '/' {
				return false
			}
			n, ok := class(p, s[0])
			if n == 0 || !ok {
				return false
			}
			p, s = p[n:], s[1:]
		case '\\':
			if len(p) > 1 {
				p = p[1:]
			}
			fallthrough
		default:
			if s == "" || s[0] != p[0] {
				return false
			}
			before = 1
			if p[0] == '/' {
				before = 0 // a name begins
			}
			p, s = p[1:], s[1:]
			continue
		}
		before = 1
	}
	return s == ""
}

// class matches "[...]" at the beginning of p; n is its length, 0 if it has no
// end.
func class(p string, c byte) (n int, ok bool) {
	i := 1
	negate := i < len(p) && (p[i] == '!' || p[i] == '^')
	if negate {
		i++
	}
	found := false
	for first := true; ; first = false {
		if i >= len(p) {
			return 0, false
		}
		lo := p[i]
		if lo == ']' && !first {
			return i + 1, found != negate
		}
		if lo == '[' && i+1 < len(p) && p[i+1] == ':' {
			end := strings.Index(p[i+2:], ":]")
			if end >= 0 {
				if named(p[i+2:i+2+end], c) {
					found = true
				}
				i += end + 4
				continue
			}
		}
		if lo == '\\' && i+1 < len(p) {
			i++
			lo = p[i]
		}
		i++
		hi := lo
		if i+1 < len(p) && p[i] == '-' && p[i+1] != ']' {
			i++
			if hi = p[i]; hi == '\\' && i+1 < len(p) {
				i++
				hi = p[i]
			}
			i++
		}
		if lo <= c && c <= hi {
			found = true
		}
	}
}

func named(name string, c byte) bool {
	lower, upper, digit := c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9'
	switch name {
	case "alnum":
		return lower || upper || digit
	case "alpha":
		return lower || upper
	case "blank":
		return c == ' ' || c == '\t'
	case "cntrl":
		return c < 32 || c == 127
	case "digit":
		return digit
	case "graph":
		return c > 32 && c < 127
	case "lower":
		return lower
	case "print":
		return c >= 32 && c < 127
	case "punct":
		return c > 32 && c < 127 && !lower && !upper && !digit
	case "space":
		return c == ' ' || c >= 9 && c <= 13
	case "upper":
		return upper
	case "xdigit":
		return digit || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'
	}
	return false
}

// pattern is a line of .gitignore or .gitattributes.
type pattern struct {
	text    string
	negate  bool
	dirOnly bool
	// whole says that the pattern is for the path from the file's directory,
	// not for the last name alone.
	whole bool
	// suffix says that text is "*" and this, without further wildcards; plain
	// that it has none at all.
	suffix string
	plain  bool
}

func newPattern(text string) pattern {
	p := pattern{text: text}
	if rest, ok := strings.CutSuffix(p.text, "/"); ok {
		p.dirOnly, p.text = true, rest
	}
	p.whole = strings.Contains(p.text, "/")
	p.text = strings.TrimPrefix(p.text, "/")
	p.plain = !strings.ContainsAny(p.text, `*?[\`)
	if s, ok := strings.CutPrefix(p.text, "*"); ok && !p.whole && !strings.ContainsAny(s, `*?[\`) {
		p.suffix = s
	}
	return p
}

// match is for a path relative to the pattern's directory.
func (p *pattern) match(rel, base string, dir bool) bool {
	if p.dirOnly && !dir {
		return false
	}
	switch {
	case p.suffix != "":
		return strings.HasSuffix(base, p.suffix)
	case p.whole && p.plain:
		return rel == p.text
	case p.plain:
		return base == p.text
	case p.whole:
		return wildmatch(p.text, rel, true)
	}
	return wildmatch(p.text, base, false)
}

// parseIgnore reads the syntax of gitignore(5).
func parseIgnore(text string) []pattern {
	var patterns []pattern
	text = strings.TrimPrefix(text, "\xef\xbb\xbf")
	for line := range strings.SplitSeq(text, "\n") {
		line = strings.TrimSuffix(line, "\r")
		if line == "" || line[0] == '#' {
			continue
		}
		// Spaces at the end do not count unless they are escaped.
		for strings.HasSuffix(line, " ") {
			if n := len(line) - 1; n > 0 && (n-len(strings.TrimRight(line[:n], `\`)))%2 == 1 {
				break
			}
			line = line[:len(line)-1]
		}
		negate := strings.HasPrefix(line, "!")
		if negate {
			line = line[1:]
		} else if strings.HasPrefix(line, `\!`) || strings.HasPrefix(line, `\#`) {
			line = line[1:]
		}
		if line == "" || line == "/" {
			continue
		}
		p := newPattern(line)
		p.negate = negate
		patterns = append(patterns, p)
	}
	return patterns
}

// ignores are the patterns that hold in a directory.
type ignores struct {
	parent   *ignores
	dir      string // of the patterns, with a slash at the end, or ""
	patterns []pattern
}

// match says whether a path is ignored, if not by a directory that it is in.
func (g *ignores) match(p string, dir bool) bool {
	base := path.Base(p)
	for ; g != nil; g = g.parent {
		rel := strings.TrimPrefix(p, g.dir)
		for i := len(g.patterns) - 1; i >= 0; i-- {
			if q := &g.patterns[i]; q.match(rel, base, dir) {
				return !q.negate
			}
		}
	}
	return false
}

// maxPatterns bounds a file of patterns, in bytes.
const maxPatterns = 4 << 20

// ignoreFile adds the patterns of a directory of the working tree, given as for
// [ignores], if it has any. A link is not followed: it is the repository's.
func (r *Repository) ignoreFile(parent *ignores, dir string) *ignores {
	f, err := openRegular(r.dir+"/"+dir+".gitignore", unix.O_NOFOLLOW)
	if err != nil {
		return parent
	}
	f.Close()
	text, err := readRegular(r.dir+"/"+dir+".gitignore", maxPatterns)
	if err != nil {
		return parent
	}
	if patterns := parseIgnore(string(text)); len(patterns) > 0 {
		return &ignores{parent: parent, dir: dir, patterns: patterns}
	}
	return parent
}

// ignoreRoot has the patterns from outside of the working tree, and those of
// its uppermost directory.
func (r *Repository) ignoreRoot() *ignores {
	var g *ignores
	add := func(file string) {
		if text, err := readRegular(file, maxPatterns); err == nil {
			if patterns := parseIgnore(string(text)); len(patterns) > 0 {
				g = &ignores{parent: g, patterns: patterns}
			}
		}
	}
	add(r.userFile("excludesfile", "ignore"))
	add(r.commonDir + "/info/exclude")
	return r.ignoreFile(g, "")
}

// userFile is the file that core.KEY names, or else git/NAME in the user's
// configuration directory.
func (r *Repository) userFile(key, name string) string {
	if v, ok := r.config.get("core", "", key); ok {
		return r.loader().expand(v, r.gitDir)
	}
	return xdg(r.user.Home) + "/git/" + name
}

func xdg(home string) string {
	if dir := os.Getenv("XDG_CONFIG_HOME"); dir != "" {
		return dir
	}
	return home + "/.config"
}
