package repository

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// maxConfig bounds a configuration file, in bytes.
const maxConfig = 8 << 20

// setting is a line of a configuration file.
type setting struct {
	section, key string // in lower case
	sub          string
	value        string
	bare         bool // a key without a value, which is true
	// The bytes that it is written in.
	start, end int
}

// configFile is a file in the syntax of git-config(1).
type configFile struct {
	text     []byte
	settings []setting
	// headers says after which byte each "[section]" ends.
	headers []setting
}

// parseConfig reads the syntax of git-config(1). It keeps the text, so that a
// change touches nothing but what it is about.
func parseConfig(text []byte) (*configFile, error) {
	f := &configFile{text: text}
	p := &configParser{text: text}
	if bytes.HasPrefix(text, []byte("\xef\xbb\xbf")) {
		p.at = 3
	}
	var section, sub string
	in := false
	for {
		p.space()
		c := p.peek()
		switch {
		case c < 0:
			return f, nil
		case c == '#' || c == ';':
			p.line()
		case c == '[':
			start := p.at
			var err error
			if section, sub, err = p.header(); err != nil {
				return nil, err
			}
			in = true
			f.headers = append(f.headers, setting{section: section, sub: sub, start: start, end: p.at})
		case letter(byte(c)):
			if !in {
				return nil, p.fail("a key before the first section")
			}
			start := p.at
			key := strings.ToLower(p.word())
			for p.peek() == ' ' || p.peek() == '\t' {
				p.at++
			}
			s := setting{section: section, sub: sub, key: key, start: start}
			switch p.peek() {
			case '=':
				p.at++
				v, err := p.value()
				if err != nil {
					return nil, err
				}
				s.value = v
			case '\n', '\r', '#', ';', -1:
				s.bare = true
				s.value = "true"
				p.line()
			default:
				return nil, p.fail("neither a value nor the end of the line after a key")
			}
			s.end = p.at
			f.settings = append(f.settings, s)
		default:
			return nil, p.fail("neither a section, a key nor a comment")
		}
	}
}

type configParser struct {
	text []byte
	at   int
}

func (p *configParser) peek() int {
	if p.at >= len(p.text) {
		return -1
	}
	return int(p.text[p.at])
}

func (p *configParser) fail(what string) error {
	return fmt.Errorf("line %d: %s", 1+bytes.Count(p.text[:min(p.at, len(p.text))], []byte("\n")), what)
}

func (p *configParser) space() {
	for p.at < len(p.text) && strings.IndexByte(" \t\r\n", p.text[p.at]) >= 0 {
		p.at++
	}
}

// line skips to the beginning of the next line.
func (p *configParser) line() {
	if i := bytes.IndexByte(p.text[p.at:], '\n'); i >= 0 {
		p.at += i + 1
	} else {
		p.at = len(p.text)
	}
}

func letter(c byte) bool { return c|0x20 >= 'a' && c|0x20 <= 'z' }

func wordByte(c byte) bool { return letter(c) || c >= '0' && c <= '9' || c == '-' }

func (p *configParser) word() string {
	start := p.at
	for p.at < len(p.text) && wordByte(p.text[p.at]) {
		p.at++
	}
	return string(p.text[start:p.at])
}

func (p *configParser) header() (section, sub string, err error) {
	p.at++
	start := p.at
	for p.at < len(p.text) && (wordByte(p.text[p.at]) || p.text[p.at] == '.') {
		p.at++
	}
	section = strings.ToLower(string(p.text[start:p.at]))
	if section == "" {
		return "", "", p.fail("a section without a name")
	}
	if p.peek() == ']' {
		p.at++
		section, sub, _ = strings.Cut(section, ".")
		return section, sub, nil
	}
	for p.peek() == ' ' || p.peek() == '\t' {
		p.at++
	}
	if p.peek() != '"' {
		return "", "", p.fail("a section's name with a letter that it may not have")
	}
	p.at++
	var b strings.Builder
	for {
		c := p.peek()
		p.at++
		switch c {
		case -1, '\n', 0:
			return "", "", p.fail("a subsection's name without an end")
		case '"':
			if p.peek() != ']' {
				return "", "", p.fail("a section without an end")
			}
			p.at++
			return section, b.String(), nil
		case '\\':
			if c = p.peek(); c == -1 || c == '\n' {
				return "", "", p.fail("a subsection's name without an end")
			}
			p.at++
		}
		b.WriteByte(byte(c))
	}
}

func (p *configParser) value() (string, error) {
	var b strings.Builder
	quoted := false
	keep := 0 // length without trailing space
	for {
		c := p.peek()
		p.at++
		switch {
		case c == -1 || c == '\n':
			if quoted {
				return "", p.fail("a value without a closing quote")
			}
			p.at = min(p.at, len(p.text))
			return b.String()[:keep], nil
		case c == '\r' && p.peek() == '\n':
			continue
		case !quoted && (c == '#' || c == ';'):
			p.line()
			return b.String()[:keep], nil
		case !quoted && (c == ' ' || c == '\t' || c == '\r'):
			if b.Len() > 0 {
				b.WriteByte(byte(c))
			}
			continue
		case c == '"':
			quoted = !quoted
			keep = b.Len()
			continue
		case c == '\\':
			e := p.peek()
			p.at++
			switch e {
			case '\n', -1: // git takes the end of the file for one of a line
				continue
			case '\r':
				if p.peek() == '\n' {
					p.at++
					continue
				}
				return "", p.fail("an escape that there is not")
			case 'n':
				c = '\n'
			case 't':
				c = '\t'
			case 'b':
				c = '\b'
			case '\\', '"':
				c = e
			default:
				return "", p.fail("an escape that there is not")
			}
		case c == 0:
			return "", p.fail("a NUL byte")
		}
		b.WriteByte(byte(c))
		keep = b.Len()
	}
}

// splitKey takes "section.sub.key" apart; sub may have dots.
func splitKey(name string) (section, sub, key string, err error) {
	first, last := strings.IndexByte(name, '.'), strings.LastIndexByte(name, '.')
	if first < 0 {
		return "", "", "", fmt.Errorf("key %q: has no section, as user.name has", name)
	}
	section, key = strings.ToLower(name[:first]), strings.ToLower(name[last+1:])
	if first < last {
		sub = name[first+1 : last]
	}
	if section == "" || key == "" || !letter(key[0]) || strings.ContainsFunc(section+key, func(r rune) bool { return r > 127 || !wordByte(byte(r)) }) || strings.ContainsAny(sub, "\n\x00") {
		return "", "", "", fmt.Errorf("key %q: not a section, an optional subsection and a key of letters, digits and dashes", name)
	}
	return section, sub, key, nil
}

func quoteValue(v string) (string, error) {
	if strings.IndexByte(v, 0) >= 0 {
		return "", errors.New("a value must not have a NUL byte")
	}
	quote := v != strings.TrimSpace(v) || strings.ContainsAny(v, "#;\r")
	v = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`, "\t", `\t`, "\b", `\b`).Replace(v)
	if quote {
		v = `"` + v + `"`
	}
	return v, nil
}

func quoteHeader(section, sub string) string {
	if sub == "" {
		return "[" + section + "]"
	}
	return "[" + section + ` "` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(sub) + `"]`
}

// set returns the text with a key's last value replaced, or with it added.
func (f *configFile) set(section, sub, key, value string) ([]byte, error) {
	quoted, err := quoteValue(value)
	if err != nil {
		return nil, err
	}
	line := []byte(key + " = " + quoted + "\n")
	for _, s := range slices.Backward(f.settings) {
		if s.section == section && s.sub == sub && s.key == key {
			return slices.Concat(f.text[:s.start], line, f.text[s.end:]), nil
		}
	}
	for i, h := range slices.Backward(f.headers) {
		if h.section != section || h.sub != sub {
			continue
		}
		end := h.end
		for _, s := range f.settings {
			if s.start > h.end && (i+1 == len(f.headers) || s.start < f.headers[i+1].start) {
				end = s.end
			}
		}
		before := f.text[:end]
		if end == h.end {
			// Whatever else is on the header's line stays on it.
			if i := bytes.IndexByte(f.text[end:], '\n'); i >= 0 && len(bytes.TrimSpace(f.text[end:end+i])) == 0 {
				end += i + 1
				before = f.text[:end]
			}
		}
		return slices.Concat(endLine(before), []byte("\t"), line, f.text[end:]), nil
	}
	return slices.Concat(endLine(f.text), []byte(quoteHeader(section, sub)+"\n\t"), line), nil
}

// endLine returns the text with its last line at an end, if need be. What ends in
// a backslash goes on in the next line, also where the file ends there.
func endLine(text []byte) []byte {
	text = slices.Clip(text)
	if len(text) > 0 && text[len(text)-1] != '\n' {
		text = append(text, '\n')
	}
	if bytes.HasSuffix(text, []byte("\\\n")) || bytes.HasSuffix(text, []byte("\\\r\n")) {
		text = append(text, '\n')
	}
	return text
}

// unset returns the text without the settings of a key, or, with an empty key,
// without the section.
func (f *configFile) unset(section, sub, key string) []byte {
	type span struct{ start, end int }
	var gone []span
	lineStart := func(at int) int {
		for at > 0 && (f.text[at-1] == ' ' || f.text[at-1] == '\t') {
			at--
		}
		return at
	}
	for _, s := range f.settings {
		if s.section == section && s.sub == sub && (key == "" || s.key == key) {
			gone = append(gone, span{lineStart(s.start), s.end})
		}
	}
	if key == "" {
		for _, h := range f.headers {
			if h.section == section && h.sub == sub {
				end := h.end
				if end < len(f.text) && f.text[end] == '\n' {
					end++
				}
				gone = append(gone, span{h.start, end})
			}
		}
		slices.SortFunc(gone, func(a, b span) int { return a.start - b.start })
	}
	var out []byte
	at := 0
	for _, g := range gone {
		out = append(out, f.text[at:max(at, g.start)]...)
		at = max(at, g.end)
	}
	return append(out, f.text[at:]...)
}

// settings are those of several files, in order: later ones win.
type settings []setting

func (s settings) get(section, sub, key string) (string, bool) {
	for _, e := range slices.Backward(s) {
		if e.key == key && e.section == section && e.sub == sub {
			return e.value, true
		}
	}
	return "", false
}

func (s settings) all(section, sub, key string) []string {
	var values []string
	for _, e := range s {
		if e.key == key && e.section == section && e.sub == sub {
			values = append(values, e.value)
		}
	}
	return values
}

// bool is a key's truth as git-config(1) has it.
func (s settings) bool(section, sub, key string, byDefault bool) bool {
	v, ok := s.get(section, sub, key)
	if !ok {
		return byDefault
	}
	return truth(v)
}

func truth(v string) bool {
	switch strings.ToLower(v) {
	case "true", "yes", "on":
		return true
	case "false", "no", "off", "":
		return false
	}
	n, err := strconv.Atoi(v)
	return err == nil && n != 0
}

// subs are the subsections of a section in order of appearance.
func (s settings) subs(section string) []string {
	var subs []string
	for _, e := range s {
		if e.section == section && e.sub != "" && !slices.Contains(subs, e.sub) {
			subs = append(subs, e.sub)
		}
	}
	return subs
}

// maxIncludes bounds how deep files include others; git's own limit.
const maxIncludes = 10

// loader reads configuration files and those that they include.
type loader struct {
	home           string
	gitDir, branch string // for includeIf; may be empty
}

// load appends the settings of a file, which need not exist.
func (l *loader) load(into settings, file string, depth int) (settings, error) {
	f, err := readConfigFile(file)
	if err != nil {
		return into, err
	}
	for _, s := range f.settings {
		into = append(into, s)
		if s.key != "path" || !(s.section == "include" && s.sub == "" || s.section == "includeif" && l.condition(s.sub, file)) {
			continue
		}
		if depth >= maxIncludes {
			return into, fmt.Errorf("%s: includes are nested more than %d deep", file, maxIncludes)
		}
		if into, err = l.load(into, l.expand(s.value, filepath.Dir(file)), depth+1); err != nil {
			return into, err
		}
	}
	return into, nil
}

// expand makes a path of a configuration file absolute.
func (l *loader) expand(p, dir string) string {
	if rest, ok := strings.CutPrefix(p, "~/"); ok {
		return filepath.Join(l.home, rest)
	}
	if !filepath.IsAbs(p) {
		return filepath.Join(dir, p)
	}
	return p
}

func (l *loader) condition(c, file string) bool {
	kind, pattern, _ := strings.Cut(c, ":")
	switch kind {
	case "onbranch":
		if strings.HasSuffix(pattern, "/") {
			pattern += "**"
		}
		return l.branch != "" && wildmatch(pattern, l.branch, true)
	case "gitdir", "gitdir/i":
		if l.gitDir == "" {
			return false
		}
		if rest, ok := strings.CutPrefix(pattern, "./"); ok {
			pattern = filepath.Dir(file) + "/" + rest
		} else if rest, ok := strings.CutPrefix(pattern, "~/"); ok {
			pattern = l.home + "/" + rest
		} else if !filepath.IsAbs(pattern) {
			pattern = "**/" + pattern
		}
		if strings.HasSuffix(pattern, "/") {
			pattern += "**"
		}
		dir := l.gitDir
		if kind == "gitdir/i" {
			pattern, dir = strings.ToLower(pattern), strings.ToLower(dir)
		}
		return wildmatch(pattern, dir, true)
	}
	return false
}

func readConfigFile(file string) (*configFile, error) {
	text, err := readRegular(file, maxConfig)
	if errors.Is(err, fs.ErrNotExist) {
		return &configFile{}, nil
	}
	if err != nil {
		return nil, err
	}
	f, err := parseConfig(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return f, nil
}

// readRegular reads a file of at most limit bytes. Anything but a regular file
// is refused: a pipe would never end.
func readRegular(file string, limit int64) ([]byte, error) {
	f, err := openRegular(file, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%s: more than %d bytes", file, limit)
	}
	return b, nil
}

// editConfig changes a configuration file under its lock.
func editConfig(file string, mode fs.FileMode, change func(*configFile) ([]byte, error)) error {
	if real, err := filepath.EvalSymlinks(file); err == nil {
		file = real
	}
	return locked(file, mode, func(w io.Writer) error {
		f, err := readConfigFile(file)
		if err != nil {
			return err
		}
		text, err := change(f)
		if err != nil {
			return err
		}
		_, err = w.Write(text)
		return err
	})
}

// locked replaces a file as git does: what is new is written to a lock file
// beside it, which nobody else can hold meanwhile.
func locked(file string, mode fs.FileMode, write func(io.Writer) error) error {
	if info, err := os.Stat(file); err == nil {
		mode = info.Mode().Perm()
	}
	lock := file + ".lock"
	f, err := os.OpenFile(lock, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if errors.Is(err, fs.ErrExist) {
		return failf(409, "", "%s exists: another git process is at work in this repository; if there is none, it was killed, and the file can be removed", lock)
	}
	if err != nil {
		return err
	}
	_ = f.Chmod(mode)
	err = write(f)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(lock, file)
	}
	if err != nil {
		os.Remove(lock)
	}
	return err
}
