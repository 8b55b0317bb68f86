// Package escape takes out of a terminal's output what could harm whoever looks
// at it. Programs of a sandbox are hostile, and terminals do much for them that
// nobody wants: put text into the clipboard, answer questions with text that the
// program chose, which then is as if typed, or show a link as what it is not.
//
// It knows what terminals do, and nothing of where the output comes from.
package escape

import (
	"bytes"
	"net/url"
	"strconv"
	"unicode/utf8"
)

const (
	// maxParameters bounds a control sequence, maxString the text of an
	// operating system command, in bytes. What is longer is left out.
	maxParameters = 256
	maxString     = 2048
	// maxTitle bounds a title, in bytes.
	maxTitle = 256
)

// state is where in a sequence the output is.
type state int

const (
	text state = iota
	escaped
	intermediate // of an escape sequence
	control      // a control sequence: CSI
	command      // an operating system command: OSC
	commandEnd   // ESC in it
	ignored      // a string whose content nobody gets: DCS, SOS, PM, APC
	ignoredEnd
)

// Filter filters one terminal's output. The zero value is at its beginning. It
// takes in whatever comes in pieces cut anywhere, and keeps what it cannot
// decide on yet, which is bounded.
//
// What it gives out is valid UTF-8 without any C1 control character, and of
// escape sequences only those that it knows, in one form each: nothing depends
// on how the terminal reads doubtful ones.
type Filter struct {
	state state
	// held is the beginning of a character, or what the sequence has so far.
	partial  [utf8.UTFMax]byte
	partials int
	held     []byte
	tooLong  bool
	// linked says that a hyperlink of ours is open.
	linked bool
}

// Append filters src and appends what is left of it to dst.
func (f *Filter) Append(dst, src []byte) []byte {
	for len(src) > 0 {
		if f.partials > 0 {
			f.partial[f.partials] = src[0]
			f.partials++
			src = src[1:]
			// Only a whole one, or none, is decided on.
			if !utf8.FullRune(f.partial[:f.partials]) {
				continue
			}
			b := f.partial
			n := f.partials
			f.partials = 0
			r, size := utf8.DecodeRune(b[:n])
			dst = f.next(dst, r, r == utf8.RuneError && size == 1)
			if size < n {
				// What follows the broken one, at most three bytes.
				dst = f.Append(dst, b[size:n])
			}
			continue
		}
		if c := src[0]; c < utf8.RuneSelf {
			if f.state == text && c >= ' ' && c != 0x7f {
				n := 1
				for n < len(src) && src[n] >= ' ' && src[n] < 0x7f {
					n++
				}
				dst = append(dst, src[:n]...)
				src = src[n:]
				continue
			}
			dst = f.next(dst, rune(c), false)
			src = src[1:]
			continue
		}
		if !utf8.FullRune(src) {
			f.partials = copy(f.partial[:], src)
			return dst
		}
		r, size := utf8.DecodeRune(src)
		dst = f.next(dst, r, r == utf8.RuneError && size == 1)
		src = src[size:]
	}
	return dst
}

// next takes one character. broken says that it stands for a byte that is none,
// such as a C1 control character of eight bits: in UTF-8 it has no meaning, and
// a terminal shows it as what cannot be shown.
func (f *Filter) next(dst []byte, r rune, broken bool) []byte {
	switch {
	case r == 0x18 || r == 0x1a: // CAN and SUB end every sequence
		f.begin(text)
		return dst
	case r == 0x9c && !broken: // ST
		return f.terminate(dst)
	case r >= 0x80 && r < 0xa0:
		// The C1 control characters: each is ESC and another, whatever it
		// interrupts.
		f.begin(escaped)
		return f.next(dst, r-0x40, false)
	}
	switch f.state {
	case text:
		switch {
		case r == 0x1b:
			f.begin(escaped)
		case r >= '\a' && r <= '\x0f': // BEL, BS, HT, LF, VT, FF, CR, SO, SI
			dst = append(dst, byte(r))
		case r < ' ' || r == 0x7f:
			// Among them ENQ, which is a question.
		default:
			dst = utf8.AppendRune(dst, r)
		}
	case escaped:
		return f.escape(dst, r)
	case intermediate:
		switch {
		case r == 0x1b:
			f.begin(escaped)
		case r < ' ':
			return f.inside(dst, r)
		case r < '0':
			f.hold(r, maxParameters)
		default:
			dst = f.designate(dst, r)
			f.begin(text)
		}
	case control:
		switch {
		case r == 0x1b:
			f.begin(escaped)
		case r < ' ':
			return f.inside(dst, r)
		case r < '@':
			f.hold(r, maxParameters)
		case r < 0x7f:
			if !f.tooLong {
				dst = f.sequence(dst, byte(r))
			}
			f.begin(text)
		case r == 0x7f:
		default:
			// No character of a sequence: it is none.
			f.begin(text)
		}
	case command:
		switch {
		case r == 0x1b:
			f.state = commandEnd
		case r == '\a':
			return f.terminate(dst)
		case r < ' ' || r == 0x7f:
		default:
			f.hold(r, maxString)
		}
	case ignored:
		if r == 0x1b {
			f.state = ignoredEnd
		}
	case commandEnd, ignoredEnd:
		if r == '\\' {
			return f.terminate(dst)
		}
		// Anything else after ESC ends the string, and begins a sequence.
		f.begin(escaped)
		return f.next(dst, r, broken)
	}
	return dst
}

func (f *Filter) begin(s state) { f.state, f.held, f.tooLong = s, f.held[:0], false }

func (f *Filter) hold(r rune, limit int) {
	if len(f.held)+utf8.RuneLen(r) > limit {
		f.tooLong = true
		return
	}
	f.held = utf8.AppendRune(f.held, r)
}

// inside is a control character in the middle of a sequence, which takes effect
// at once.
func (f *Filter) inside(dst []byte, r rune) []byte {
	if r >= '\a' && r <= '\x0f' {
		dst = append(dst, byte(r))
	}
	return dst
}

// terminate is the end of a string.
func (f *Filter) terminate(dst []byte) []byte {
	if (f.state == command || f.state == commandEnd) && !f.tooLong {
		dst = f.command(dst, f.held)
	}
	f.begin(text)
	return dst
}

// escape takes the character after ESC.
func (f *Filter) escape(dst []byte, r rune) []byte {
	switch {
	case r == 0x1b:
		return dst
	case r < ' ':
		return f.inside(dst, r)
	}
	f.begin(text)
	switch {
	case r == '[':
		f.begin(control)
	case r == ']':
		f.begin(command)
	case r == 'P' || r == 'X' || r == '^' || r == '_':
		f.begin(ignored)
	case r < '0':
		f.begin(intermediate)
		f.hold(r, maxParameters)
	case r < 0x7f && bytes.IndexByte([]byte("78=>DEHMNOc"), byte(r)) >= 0:
		// Cursor and keypad, lines, single shifts, reset. Among the others is
		// "Z", a question.
		dst = append(dst, 0x1b, byte(r))
	}
	return dst
}

// designate is an escape sequence with intermediate characters.
func (f *Filter) designate(dst []byte, r rune) []byte {
	if len(f.held) != 1 || r >= 0x7f {
		return dst
	}
	switch c := f.held[0]; c {
	case '(', ')', '*', '+': // character sets
		if r == '0' || r == 'A' || r == 'B' {
			dst = append(dst, 0x1b, c, byte(r))
		}
	case '#': // alignment test
		if r == '8' {
			dst = append(dst, 0x1b, c, byte(r))
		}
	}
	return dst
}

// sequence is a control sequence. Questions whose answer is a few fixed numbers
// are let through, since shells and editors ask them: what and where (c and n),
// and a mode's state ($p).
func (f *Filter) sequence(dst []byte, final byte) []byte {
	prefix, parameters, between := byte(0), f.held, []byte(nil)
	if len(parameters) > 0 && parameters[0] >= '<' {
		prefix, parameters = parameters[0], parameters[1:]
	}
	for i, c := range parameters {
		if c < '0' {
			parameters, between = parameters[:i], parameters[i:]
			break
		}
	}
	for _, c := range parameters {
		if c > ';' {
			return dst
		}
	}
	for _, c := range between {
		if c >= '0' {
			return dst
		}
	}
	known := ""
	switch string(prefix) + string(between) {
	case "\x00":
		known = "@ABCDEFGHIJKLMPSTXZ`abcdefghlmnrsu"
	case "?":
		known = "JKhlnrs"
	case ">":
		known = "c"
	case "\x00 ":
		known = "q@A" // the cursor's style, scrolling sideways
	case "\x00!":
		known = "p" // soft reset
	case "\x00$", "?$":
		known = "p"
	}
	if bytes.IndexByte([]byte(known), final) < 0 {
		return dst
	}
	dst = append(dst, 0x1b, '[')
	return append(append(dst, f.held...), final)
}

// command is an operating system command: a number, a semicolon and text.
func (f *Filter) command(dst, s []byte) []byte {
	number, rest, _ := bytes.Cut(s, []byte{';'})
	if len(number) > 4 {
		return dst
	}
	n, err := strconv.ParseUint(string(number), 10, 16)
	if err != nil {
		return dst
	}
	switch n {
	case 0, 1, 2: // titles
		if len(rest) > maxTitle {
			rest = bytes.ToValidUTF8(rest[:maxTitle], nil)
		}
		return osc(dst, n, rest)
	case 4, 10, 11, 12: // colours; with "?" they are questions
		for _, c := range rest {
			if !(c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || bytes.IndexByte([]byte("#:;/,.% "), c) >= 0) {
				return dst
			}
		}
		return osc(dst, n, rest)
	case 104, 110, 111, 112: // back to the usual colours
		for _, c := range rest {
			if c != ';' && (c < '0' || c > '9') {
				return dst
			}
		}
		return osc(dst, n, rest)
	case 8:
		_, target, _ := bytes.Cut(rest, []byte{';'})
		target = link(string(target)) // without one, the text stays and leads nowhere
		if len(target) == 0 && !f.linked {
			return dst
		}
		f.linked = len(target) > 0
		return osc(dst, n, append([]byte{';'}, target...))
	}
	return dst
}

func osc(dst []byte, n uint64, s []byte) []byte {
	dst = strconv.AppendUint(append(dst, 0x1b, ']'), n, 10)
	dst = append(append(dst, ';'), s...)
	return append(dst, 0x1b, '\\')
}

// link returns a link that leads to a page or writes a letter, if it is written
// so that everybody reads the same, with its scheme in the one form it has; nil
// for any other.
func link(s string) []byte {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] >= 0x7f || s[i] == '"' || s[i] == '<' || s[i] == '>' || s[i] == '\\' || s[i] == '`' {
			return nil
		}
	}
	u, err := url.Parse(s)
	if err != nil || u.User != nil {
		return nil
	}
	switch u.Scheme { // in small letters, whatever s has
	case "http", "https":
		if u.Host == "" {
			return nil
		}
	case "mailto":
		if u.Opaque == "" {
			return nil
		}
	default:
		return nil
	}
	return []byte(u.Scheme + s[len(u.Scheme):])
}
