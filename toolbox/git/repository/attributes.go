package repository

import (
	"bytes"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"
)

// attribute is a rule of gitattributes(5): a pattern and what it sets.
type attribute struct {
	pattern pattern
	set     [][2]string // name and value; "\x01" is set, "\x00" unset, "" unspecified
}

const (
	attrSet   = "\x01"
	attrUnset = "\x00"
)

// parseAttributes reads the syntax of gitattributes(5).
func parseAttributes(text string) (rules []attribute, macros map[string][][2]string) {
	text = strings.TrimPrefix(text, "\xef\xbb\xbf")
	for line := range strings.SplitSeq(text, "\n") {
		line = strings.Trim(line, " \t\r")
		if line == "" || line[0] == '#' || len(line) > 2048 {
			continue
		}
		var pat, rest string
		if q, err := strconv.QuotedPrefix(line); err == nil && line[0] == '"' {
			pat, _ = strconv.Unquote(q)
			rest = line[len(q):]
		} else if i := strings.IndexAny(line, " \t"); i >= 0 {
			pat, rest = line[:i], line[i:]
		} else {
			continue
		}
		var set [][2]string
		for _, f := range strings.Fields(rest) {
			switch {
			case f[0] == '-':
				set = append(set, [2]string{f[1:], attrUnset})
			case f[0] == '!':
				set = append(set, [2]string{f[1:], ""})
			default:
				name, value, ok := strings.Cut(f, "=")
				if !ok {
					value = attrSet
				}
				set = append(set, [2]string{name, value})
			}
		}
		if name, ok := strings.CutPrefix(pat, "[attr]"); ok {
			if macros == nil {
				macros = map[string][][2]string{}
			}
			macros[name] = set
			continue
		}
		if pat == "" || pat[0] == '!' {
			continue // nothing has no name, and git refuses to negate here
		}
		rules = append(rules, attribute{newPattern(pat), set})
	}
	return rules, macros
}

// attributes answers for the attributes of paths.
type attributes struct {
	// read returns the attributes file of a directory, which has a slash at
	// its end or is "".
	read   func(dir string) string
	macros map[string][][2]string
	dirs   map[string][]attribute
	// last are of $GIT_DIR/info, before are the user's own.
	last, before []attribute
}

func (r *Repository) attributes(read func(dir string) string) *attributes {
	a := &attributes{read: read, dirs: map[string][]attribute{}, macros: map[string][][2]string{
		"binary": {{"diff", attrUnset}, {"merge", attrUnset}, {"text", attrUnset}},
	}}
	load := func(file string) []attribute {
		text, err := readRegular(file, maxPatterns)
		if err != nil {
			return nil
		}
		rules, macros := parseAttributes(string(text))
		for name, set := range macros {
			a.macros[name] = set
		}
		return rules
	}
	a.before = load(r.userFile("attributesfile", "attributes"))
	a.last = load(r.commonDir + "/info/attributes")
	return a
}

func (a *attributes) dir(dir string) []attribute {
	rules, ok := a.dirs[dir]
	if !ok {
		if text := a.read(dir); text != "" {
			var macros map[string][][2]string
			rules, macros = parseAttributes(text)
			if dir == "" {
				for name, set := range macros {
					a.macros[name] = set
				}
			}
		}
		a.dirs[dir] = rules
	}
	return rules
}

// get returns the attributes of a path that are wanted here.
func (a *attributes) get(p string) map[string]string {
	var out map[string]string
	apply := func(rules []attribute, rel string) {
		base := path.Base(rel)
		for i := range rules {
			if rules[i].pattern.match(rel, base, false) {
				if out == nil {
					out = map[string]string{}
				}
				a.apply(out, rules[i].set, 0)
			}
		}
	}
	apply(a.before, p)
	apply(a.dir(""), p)
	for i := 0; ; {
		next := strings.IndexByte(p[i:], '/')
		if next < 0 {
			break
		}
		i += next + 1
		apply(a.dir(p[:i]), p[i:])
	}
	apply(a.last, p)
	return out
}

func (a *attributes) apply(out map[string]string, set [][2]string, depth int) {
	for _, s := range set {
		if macro, ok := a.macros[s[0]]; ok && s[1] == attrSet && depth < 8 {
			a.apply(out, macro, depth+1)
		}
		if s[1] == "" {
			delete(out, s[0])
		} else {
			out[s[0]] = s[1]
		}
	}
}

// eol is what becomes of the ends of lines.
type eol int

const (
	eolKeep     eol = iota
	eolLF           // LF in the repository
	eolCRLF         // and CRLF in the working tree
	eolAutoLF       // the same if it is text
	eolAutoCRLF     //
)

// conversion is what happens to a file between the working tree and the
// repository.
type conversion struct {
	eol      eol
	ident    bool
	filter   string // its name, if the configuration has such a filter
	encoding string
}

// conversion of a path.
func (r *Repository) conversion(a *attributes, p string) conversion {
	set := a.get(p)
	var c conversion
	text := set["text"]
	if text == "" {
		switch set["crlf"] { // its name of old
		case attrSet:
			text = attrSet
		case attrUnset:
			text = attrUnset
		case "input":
			text = "input"
		}
	}
	end := set["eol"]
	autocrlf, _ := r.config.get("core", "", "autocrlf")
	autocrlf = strings.ToLower(autocrlf)
	crlf := false // how lines end in the working tree by default
	switch {
	case autocrlf == "input":
	case truth(autocrlf):
		crlf = true
	default:
		v, _ := r.config.get("core", "", "eol")
		crlf = strings.EqualFold(v, "crlf")
	}
	pick := func(yes bool, a, b eol) eol {
		if yes {
			return a
		}
		return b
	}
	switch text {
	case attrUnset:
	case "auto":
		c.eol = pick(end == "crlf" || end != "lf" && crlf, eolAutoCRLF, eolAutoLF)
	case "input":
		c.eol = eolLF
	case attrSet:
		c.eol = pick(end == "crlf" || end != "lf" && crlf, eolCRLF, eolLF)
	default:
		switch {
		case end == "crlf":
			c.eol = eolCRLF
		case end == "lf":
			c.eol = eolLF
		case autocrlf == "input":
			c.eol = eolAutoLF
		case truth(autocrlf):
			c.eol = eolAutoCRLF
		}
	}
	c.ident = set["ident"] == attrSet
	if f := set["filter"]; f != "" && f != attrSet && f != attrUnset {
		_, clean := r.config.get("filter", f, "clean")
		_, process := r.config.get("filter", f, "process")
		if clean || process {
			c.filter = f
		}
	}
	if e := set["working-tree-encoding"]; e != attrSet && e != attrUnset && !strings.EqualFold(e, "UTF-8") && !strings.EqualFold(e, "UTF8") {
		c.encoding = e
	}
	return c
}

// lines counts what decides whether content is text.
type lines struct {
	loneCR, loneLF, crlf, nul, printable, other int
}

func countLines(b []byte) lines {
	var n lines
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case c == '\r':
			if i+1 < len(b) && b[i+1] == '\n' {
				n.crlf++
				i++
			} else {
				n.loneCR++
			}
		case c == '\n':
			n.loneLF++
		case c == 127:
			n.other++
		case c < 32:
			switch c {
			case '\b', '\t', 27, '\f':
				n.printable++
			case 0:
				n.nul++
				n.other++
			default:
				n.other++
			}
		default:
			n.printable++
		}
	}
	// A DOS end of file does not make it binary.
	if len(b) > 0 && b[len(b)-1] == 26 {
		n.other--
	}
	return n
}

func (n lines) binary() bool {
	return n.loneCR > 0 || n.nul > 0 || n.printable>>7 < n.other
}

// clean turns the content of a file into that of a blob. blob returns what the
// index has for it, which decides whether a file of a doubtful kind is changed;
// it may be nil.
func (c conversion) clean(b []byte, blob func() []byte) []byte {
	switch c.eol {
	case eolAutoLF, eolAutoCRLF:
		n := countLines(b)
		if n.crlf == 0 || n.binary() {
			break
		}
		if blob != nil {
			if old := countLines(blob()); !old.binary() && old.crlf > 0 {
				break
			}
		}
		b = bytes.ReplaceAll(b, []byte("\r\n"), []byte("\n"))
	case eolLF, eolCRLF:
		b = bytes.ReplaceAll(b, []byte("\r\n"), []byte("\n"))
	}
	if c.ident {
		b = replaceIdent(b, "$Id$")
	}
	return b
}

// smudge turns the content of a blob into that of a file.
func (c conversion) smudge(b []byte, hash plumbing.Hash) []byte {
	if c.ident {
		b = replaceIdent(b, "$Id: "+hash.String()+" $")
	}
	if c.eol != eolCRLF && c.eol != eolAutoCRLF {
		return b
	}
	n := countLines(b)
	if n.loneLF == 0 || c.eol == eolAutoCRLF && (n.crlf > 0 || n.binary()) {
		return b
	}
	out := make([]byte, 0, len(b)+n.loneLF)
	for i, ch := range b {
		if ch == '\n' && (i == 0 || b[i-1] != '\r') {
			out = append(out, '\r')
		}
		out = append(out, ch)
	}
	return out
}

// replaceIdent replaces "$Id$" and "$Id: …$" on one line.
func replaceIdent(b []byte, with string) []byte {
	if !bytes.Contains(b, []byte("$Id")) {
		return b
	}
	var out []byte
	for {
		i := bytes.Index(b, []byte("$Id"))
		if i < 0 {
			return append(out, b...)
		}
		rest := b[i+3:]
		end := 0
		if len(rest) > 0 && rest[0] == '$' {
			end = 1
		} else if len(rest) > 0 && rest[0] == ':' {
			if j := bytes.IndexAny(rest, "$\n"); j >= 0 && rest[j] == '$' {
				end = j + 1
			}
		}
		if end == 0 {
			out = append(out, b[:i+3]...)
			b = rest
			continue
		}
		out = append(append(out, b[:i]...), with...)
		b = rest[end:]
	}
}

// lfsPointer says whether content is a pointer of Git LFS.
func lfsPointer(b []byte) bool {
	return len(b) < 1024 && bytes.HasPrefix(b, []byte("version https://git-lfs.github.com/spec/v1\n")) && slices.ContainsFunc(strings.Split(string(b), "\n"), func(l string) bool {
		return strings.HasPrefix(l, "oid sha256:")
	})
}
