package daytona

import (
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"unicode"
)

// instruction is one of a Dockerfile's, its continued lines joined.
type instruction struct {
	line int    // of the Dockerfile, from 1
	name string // in capitals
	args string // the rest, without what stands in heredocs
}

// A Dockerfile's escape characters: the default, and the one other that the
// directive "# escape=" may choose.
const (
	backslash = '\\'
	backquote = '`'
)

var (
	directiveRule = regexp.MustCompile(`^#\s*([A-Za-z][A-Za-z0-9]*)\s*=\s*(.+?)\s*$`)
	heredocRule   = regexp.MustCompile(`^[0-9]*<<(-?)\s*([^<\s][^<]*)$`)
	remoteRule    = regexp.MustCompile(`^([A-Za-z][A-Za-z0-9+.-]*://|git@|github\.com/)`)
)

// dockerfileEscape finds the escape character that the directives at a
// Dockerfile's beginning choose.
func dockerfileEscape(text string) byte {
	escape := byte(backslash)
	for line := range strings.Lines(strings.TrimPrefix(text, "\ufeff")) {
		d := directiveRule.FindStringSubmatch(strings.TrimSpace(line))
		if d == nil {
			break
		}
		switch strings.ToLower(d[1]) {
		case "escape":
			if d[2] == "`" {
				escape = backquote
			}
		case "syntax", "check":
		default: // a comment like others, which ends the directives
			return escape
		}
	}
	return escape
}

// parseDockerfile splits a Dockerfile's text into instructions. open says that
// the last of them is not at its end: that it would go on in a line after text.
func parseDockerfile(text string, escape byte) (list []instruction, open bool) {
	lines := strings.Split(strings.TrimPrefix(text, "\ufeff"), "\n")
	if lines[len(lines)-1] == "" {
		lines = lines[:len(lines)-1]
	}
	for i := 0; i < len(lines); i++ {
		first, more := i, true
		var b strings.Builder
		for ; i < len(lines); i++ {
			line := strings.TrimSuffix(lines[i], "\r")
			trimmed := strings.TrimSpace(line)
			if trimmed == "" || trimmed[0] == '#' {
				if first == i { // between instructions
					more = false
					break
				}
				continue
			}
			line, more = cutContinuation(line, escape)
			b.WriteString(line)
			if !more {
				break
			}
		}
		joined := strings.TrimSpace(b.String())
		if joined == "" {
			open = open || more
			continue
		}
		in := instruction{line: first + 1}
		end := strings.IndexAny(joined, " \t\v\f\r")
		if end < 0 {
			end = len(joined)
		}
		in.name, in.args = strings.ToUpper(joined[:end]), strings.TrimSpace(joined[end:])
		list = append(list, in)
		open = more
		if more {
			break // the text ended
		}
		for _, h := range heredocs(in) {
			closed := false
			for i++; i < len(lines) && !closed; i++ {
				line := strings.TrimSuffix(lines[i], "\r")
				if h.tabs {
					line = strings.TrimLeft(line, "\t")
				}
				closed = line == h.end
			}
			i-- // the loops count on
			open = open || !closed
		}
	}
	return list, open
}

// cutContinuation removes the escape character that continues a line, if that
// is its last. Two of them are one that stands for itself.
func cutContinuation(line string, escape byte) (string, bool) {
	l := strings.TrimRight(line, " \t")
	if l == "" || l[len(l)-1] != escape || len(l) > 1 && l[len(l)-2] == escape {
		return line, false
	}
	return l[:len(l)-1], true
}

// heredoc is a text in the lines after an instruction.
type heredoc struct {
	end  string // the line that ends it
	tabs bool   // lines may be indented by tabs
}

func heredocs(in instruction) (list []heredoc) {
	name, args := in.name, in.args
	if name == "ONBUILD" {
		name, args, _ = strings.Cut(args, " ")
		name = strings.ToUpper(name)
	}
	if name != "RUN" && name != "COPY" && name != "ADD" {
		return nil
	}
	if strings.HasPrefix(args, "[") && json.Unmarshal([]byte(args), &[]string{}) == nil {
		return nil
	}
	for _, w := range rawWords(args, backslash) { // BuildKit knows no other escape here
		if h := heredocRule.FindStringSubmatch(w); h != nil {
			if end, _, ok := unquote(h[2], backslash); ok && end != "" {
				list = append(list, heredoc{end: end, tabs: h[1] != ""})
			}
		}
	}
	return list
}

// rawWords splits at blanks outside of quotes, and leaves the quotes.
func rawWords(s string, escape byte) (words []string) {
	var quote byte
	start := -1
	for i := 0; i < len(s); i++ {
		c := s[i]
		blank := quote == 0 && (c == ' ' || c == '\t' || c == '\v' || c == '\f' || c == '\r')
		switch {
		case blank && start >= 0:
			words, start = append(words, s[start:i]), -1
		case !blank && start < 0:
			start = i
		}
		switch {
		case blank:
		case c == escape && quote != '\'':
			i++
		case c == quote:
			quote = 0
		case quote == 0 && (c == '"' || c == '\''):
			quote = c
		case quote == 0 && strings.HasPrefix(s[i:], "<<"):
			// A heredoc's name may follow after blanks.
			i = len(s) - len(strings.TrimLeft(s[i+2:], " \t\v\f\r")) - 1
		}
	}
	if start >= 0 {
		words = append(words, s[start:])
	}
	return words
}

// unquote reads a word as a Dockerfile's instructions do, which is nearly as a
// shell does. vars says that it has variables, which are left as they are; ok
// is false if a quote is not closed.
func unquote(word string, escape byte) (value string, vars, ok bool) {
	var b strings.Builder
	var quote byte
	for i := 0; i < len(word); i++ {
		c := word[i]
		switch {
		case quote == '\'' && c != '\'':
			b.WriteByte(c)
		case c == quote && quote != 0:
			quote = 0
		case c == escape:
			i++
			if i == len(word) {
				break
			}
			if next := word[i]; quote == '"' && next != '"' && next != '$' && next != escape {
				b.WriteByte(c)
			}
			b.WriteByte(word[i])
		case quote == 0 && (c == '"' || c == '\''):
			quote = c
		default:
			vars = vars || c == '$'
			b.WriteByte(c)
		}
	}
	return b.String(), vars, quote == 0
}

// cutFlags takes the flags off the beginning of an instruction's arguments.
func cutFlags(args string, escape byte) (flags []string, rest string) {
	if !strings.HasPrefix(args, "--") {
		return nil, args
	}
	for _, w := range rawWords(args, escape) {
		if !strings.HasPrefix(w, "--") {
			break
		}
		args = strings.TrimSpace(args[len(w):])
		if w == "--" {
			break
		}
		if v, _, ok := unquote(w, escape); ok {
			w = v
		}
		flags = append(flags, w)
	}
	return flags, args
}

// copySource is what an instruction reads from the build context.
type copySource struct {
	line int
	// pattern is what the instruction says, unquoted. With a variable or "**" in
	// it, it is cut to the directory that all it can stand for is in.
	pattern string
}

// copySources finds what a Dockerfile reads from its build context: the
// sources of COPY and ADD, and the bind mounts of RUN.
func copySources(list []instruction, escape byte) (found []copySource) {
	for _, in := range list {
		if in.name != "COPY" && in.name != "ADD" && in.name != "RUN" {
			continue
		}
		flags, rest := cutFlags(in.args, escape)
		if in.name == "RUN" {
			for _, f := range flags {
				if p, ok := bindSource(f); ok {
					found = append(found, copySource{in.line, widen(p, escape)})
				}
			}
			continue
		}
		if slices.ContainsFunc(flags, func(f string) bool { return strings.HasPrefix(f, "--from=") || f == "--from" }) {
			continue
		}
		var words []string
		array := strings.HasPrefix(rest, "[") && json.Unmarshal([]byte(rest), &words) == nil
		if !array {
			words = strings.FieldsFunc(rest, func(r rune) bool { return strings.ContainsRune(" \t\v\f\r", r) })
		}
		if len(words) < 2 {
			continue
		}
		for _, w := range words[:len(words)-1] {
			if !array && heredocRule.MatchString(w) || in.name == "ADD" && remoteRule.MatchString(w) {
				continue
			}
			found = append(found, copySource{in.line, widen(w, escape)})
		}
	}
	return found
}

// widen unquotes a word, after cutting it before the first part that can stand
// for any number of names.
func widen(word string, escape byte) string {
	value, vars, ok := unquote(word, escape)
	if ok && !vars && !strings.Contains(value, "**") {
		return value
	}
	if i := strings.IndexByte(word, '$'); i >= 0 {
		word = word[:i]
	}
	before, _, _ := strings.Cut(word, "**")
	before = before[:strings.LastIndexByte(before, '/')+1]
	if value, _, ok := unquote(before, escape); ok && value != "" {
		return value
	}
	return "."
}

// bindSource is what a flag of RUN mounts from the build context, if it does.
func bindSource(flag string) (source string, ok bool) {
	mount, ok := strings.CutPrefix(flag, "--mount=")
	if !ok {
		return "", false
	}
	source = "."
	for f := range strings.SplitSeq(mount, ",") {
		switch k, v, _ := strings.Cut(f, "="); strings.ToLower(strings.TrimSpace(k)) {
		case "type":
			if v != "bind" {
				return "", false
			}
		case "from":
			return "", false
		case "source", "src":
			source = v
		}
	}
	return source, true
}

// shellQuote quotes a word for a shell the way of shell-quote, the library of
// the TypeScript SDK: the texts of Dockerfiles are compared, so that how a word
// is quoted matters as much as that it is.
func shellQuote(s string) string {
	const special = "#!\"$&'()*,:;<=>?@[\\]^`{|}~"
	apostrophe := strings.Contains(s, "'")
	switch {
	case s == "":
		return "''"
	case apostrophe && strings.Contains(s, "!"):
		return singleQuote(s)
	case apostrophe:
		return `"` + strings.NewReplacer(`"`, `\"`, `\`, `\\`, "$", `\$`, "`", "\\`").Replace(s) + `"`
	case strings.ContainsFunc(s, func(r rune) bool { return r == '"' || r == '\\' || scriptSpace(r) }):
		return "'" + s + "'"
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		// What stands before a special character may be a drive's letter, whose
		// colon is left alone.
		if c := s[i] | 0x20; c >= 'a' && c <= 'z' && i+2 < len(s) && s[i+1] == ':' && strings.IndexByte(special, s[i+2]) >= 0 {
			b.WriteString(s[i : i+2])
			i += 2
		}
		if strings.IndexByte(special, s[i]) >= 0 {
			b.WriteByte('\\')
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// scriptSpace is what \s matches in JavaScript.
func scriptSpace(r rune) bool {
	return strings.ContainsRune("\t\n\v\f\r \u00a0\u1680\u2028\u2029\u202f\u205f\u3000\ufeff", r) || r >= 0x2000 && r <= 0x200a
}

// singleQuote quotes a word so that shells and Dockerfiles read it the same,
// whatever the escape character.
func singleQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'"'"'`) + "'" }

// runWord quotes a word of a RUN instruction's shell command.
func runWord(s string, escape byte) string {
	q := shellQuote(s)
	// The escape character would continue the line, and blanks that are none for
	// a shell would be trimmed off its end.
	if escape == backquote && strings.ContainsRune(s, backquote) || strings.TrimSpace(q) != q {
		return singleQuote(s)
	}
	return q
}

// valueWord quotes a word that the Dockerfile itself reads, as ENV and WORKDIR
// do. It is quoted as for a shell where that is read the same.
func valueWord(s string, escape byte) string {
	q := shellQuote(s)
	if v, vars, ok := unquote(q, escape); ok && !vars && v == s && strings.TrimSpace(q) == q {
		if _, more := cutContinuation(q, escape); !more {
			return q
		}
	}
	return singleQuote(s)
}

// jsonWords is the JSON array of words, as the SDKs space it.
func jsonWords(words []string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		var b strings.Builder
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false)
		_ = e.Encode(w) // a string can always be
		quoted[i] = strings.TrimSuffix(b.String(), "\n")
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}

// copyArgs are the arguments of a COPY of exactly one file or directory.
func copyArgs(from, to string, escape byte) string {
	plain := func(s string) bool {
		return !strings.HasPrefix(s, "--") && !strings.ContainsFunc(s, func(r rune) bool {
			return strings.ContainsRune("\"'$\\`<*?[", r) || scriptSpace(r) || unicode.IsSpace(r) || r < ' '
		})
	}
	if plain(from) && plain(to) {
		return from + " " + to
	}
	word := func(s string, wildcards string) string {
		var b strings.Builder
		for _, r := range s {
			switch {
			case strings.ContainsRune(wildcards, r):
				b.WriteString("[" + string(r) + "]")
				continue
			case r == '"' || r == '\'' || r == '$' || r == rune(escape):
				b.WriteByte(escape)
			}
			b.WriteRune(r)
		}
		return b.String()
	}
	return jsonWords([]string{word(from, "*?["), word(to, "")})
}
