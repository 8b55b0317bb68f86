package desktop

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jezek/xgb/xproto"

	"github.com/daytona-go/daytona/toolbox/computeruse/display"
	"github.com/daytona-go/daytona/toolbox/wire"
)

const (
	// textLimit is how much is typed at once, in characters, delayLimit the
	// pause between them.
	textLimit  = 64 << 10
	delayLimit = 10 * time.Second
	// chordLimit is how many keys may be held at once.
	chordLimit = 8
	// settleTime is given to programs to notice that the keyboard has other
	// keys: they are told by an event, and then ask.
	settleTime = 120 * time.Millisecond
)

// keyboard is the X server's keyboard.
type keyboard struct {
	s     *screen
	first byte
	per   int
	syms  []xproto.Keysym
	caps  bool
	// spare are keycodes without a keysym; used are those of them that have been
	// lent to characters which the keyboard does not have.
	spare, used []byte
}

// stroke is a key, with Shift held or not.
type stroke struct {
	code  byte
	shift bool
}

func (s *screen) keyboard() (*keyboard, error) {
	if err := s.input(); err != nil {
		return nil, err
	}
	first, last := byte(s.setup.MinKeycode), byte(s.setup.MaxKeycode)
	m, err := xproto.GetKeyboardMapping(s.conn, s.setup.MinKeycode, last-first+1).Reply()
	if err != nil {
		return nil, fmt.Errorf("read the keyboard: %w", err)
	}
	per := int(m.KeysymsPerKeycode)
	if per < 1 || len(m.Keysyms) < per*(int(last-first)+1) {
		return nil, errors.New("the X server has no keyboard")
	}
	p, err := xproto.QueryPointer(s.conn, s.root).Reply()
	if err != nil {
		return nil, fmt.Errorf("read the keyboard's state: %w", err)
	}
	k := &keyboard{s: s, first: first, per: per, syms: m.Keysyms, caps: p.Mask&xproto.ModMaskLock != 0}
	for code := int(first); code <= int(last); code++ {
		if !slices.ContainsFunc(k.of(byte(code)), func(sym xproto.Keysym) bool { return sym != 0 }) {
			k.spare = append(k.spare, byte(code))
		}
	}
	return k, nil
}

// of are a key's keysyms.
func (k *keyboard) of(code byte) []xproto.Keysym {
	i := int(code-k.first) * k.per
	return k.syms[i : i+k.per]
}

// find returns the key that has a keysym, without Shift if one has.
func (k *keyboard) find(sym xproto.Keysym) (stroke, bool) {
	shifted := stroke{}
	for i := 0; i < len(k.syms); i += k.per {
		if k.syms[i] == sym {
			return stroke{code: k.first + byte(i/k.per)}, true
		}
		if shifted.code == 0 && k.per > 1 && k.syms[i+1] == sym {
			shifted = stroke{k.first + byte(i/k.per), true}
		}
	}
	return shifted, shifted.code != 0
}

// lend gives spare keys to keysyms that no key has; as many as there are. It
// returns how many of syms the keyboard has then.
func (k *keyboard) lend(syms []xproto.Keysym) (int, error) {
	lent := 0
	done := len(syms)
	for i, sym := range syms {
		if _, ok := k.find(sym); ok {
			continue
		}
		if lent == len(k.spare) {
			done = i
			break
		}
		code := k.spare[lent]
		lent++
		if err := k.assign(code, sym); err != nil {
			return 0, err
		}
	}
	k.used = append(k.used, k.spare[:lent]...)
	k.spare = k.spare[lent:]
	if lent > 0 {
		if err := k.s.sleep(settleTime); err != nil {
			return 0, err
		}
	}
	return done, nil
}

func (k *keyboard) assign(code byte, sym xproto.Keysym) error {
	// Twice, so that Shift and Caps Lock change nothing.
	err := xproto.ChangeKeyboardMappingChecked(k.s.conn, 1, xproto.Keycode(code), 2, []xproto.Keysym{sym, sym}).Check()
	if err != nil {
		return fmt.Errorf("give a key to a character: %w", err)
	}
	clear(k.of(code))
	k.of(code)[0] = sym
	return nil
}

// restore takes back what was lent.
func (k *keyboard) restore() {
	if len(k.used) == 0 {
		return
	}
	// What was typed must have been read by then.
	_ = k.s.sleep(settleTime)
	for _, code := range k.used {
		_ = k.assign(code, 0)
	}
	k.spare, k.used = append(k.spare, k.used...), nil
}

// strike presses keys in order and lets go of them.
func (k *keyboard) strike(codes ...byte) error {
	var events []event
	for _, code := range codes {
		events = append(events, event{kind: keyPress, detail: code})
	}
	for _, code := range slices.Backward(codes) {
		events = append(events, event{kind: keyRelease, detail: code})
	}
	return k.s.fake(events...)
}

func (s *screen) typeText(req *wire.KeyboardTypeRequest) (any, error) {
	n := utf8.RuneCountInString(req.Text)
	delay := time.Duration(req.Delay) * time.Millisecond
	switch {
	case n > textLimit:
		return nil, bad("text has %d characters, more than %d: type it in parts, or write a file", n, textLimit)
	case req.Delay < 0 || req.Delay > int(delayLimit/time.Millisecond):
		return nil, bad("delay %d: must be from 0 to %d milliseconds", req.Delay, delayLimit/time.Millisecond)
	case time.Duration(n)*delay > display.TypingLimit:
		return nil, bad("%d characters with %v between them take longer than %v: type them in parts", n, delay, display.TypingLimit)
	}
	var syms []xproto.Keysym
	text := strings.ReplaceAll(req.Text, "\r\n", "\n")
	for i, r := range text {
		sym, ok := symOf(r)
		if !ok {
			return nil, bad("text has %q at byte %d, which no key types", r, i)
		}
		syms = append(syms, sym)
	}
	k, err := s.keyboard()
	if err != nil {
		return nil, err
	}
	defer k.restore()
	shift, ok := k.find(symShift)
	if !ok {
		return nil, errors.New("the keyboard has no Shift")
	}
	for begin := 0; begin < len(syms); {
		ready, err := k.lend(syms[begin:])
		if err != nil {
			return nil, err
		}
		if ready == 0 {
			if len(k.used) == 0 {
				return nil, errors.New("the keyboard has no key to spare for what it lacks")
			}
			k.restore()
			continue
		}
		for i, sym := range syms[begin : begin+ready] {
			if begin+i > 0 && delay > 0 {
				if err := s.sleep(delay); err != nil {
					return nil, err
				}
			}
			if err := s.ctx.Err(); err != nil {
				return nil, err
			}
			at, _ := k.find(sym)
			if k.caps && letter(sym) {
				at.shift = !at.shift
			}
			codes := []byte{at.code}
			if at.shift {
				codes = []byte{shift.code, at.code}
			}
			if err := k.strike(codes...); err != nil {
				return nil, err
			}
		}
		begin += ready
	}
	return struct{}{}, nil
}

// letter says whether Caps Lock changes what a key types.
func letter(sym xproto.Keysym) bool {
	return 'a' <= sym && sym <= 'z' || 'A' <= sym && sym <= 'Z'
}

func (s *screen) press(req *wire.KeyboardPressRequest) (any, error) {
	if req.Key == "" {
		return nil, bad("key is required")
	}
	names := make([]string, 0, len(req.Modifiers)+1)
	for _, name := range req.Modifiers {
		if _, ok := modifiers()[strings.ToLower(name)]; !ok {
			return nil, bad("modifier %.100q: there are ctrl, alt, shift, cmd and altgr", name)
		}
		names = append(names, name)
	}
	return s.chord(append(names, req.Key))
}

func (s *screen) hotkey(req *wire.KeyboardHotkeyRequest) (any, error) {
	names, err := splitHotkey(req.Keys)
	if err != nil {
		return nil, err
	}
	return s.chord(names)
}

// splitHotkey takes "ctrl+shift+t" apart. A plus is a key where it can be no
// sign between keys, as in "ctrl++".
func splitHotkey(keys string) ([]string, error) {
	if len(keys) > 256 {
		return nil, bad("keys is longer than 256 bytes")
	}
	var names []string
	for rest := strings.TrimSpace(keys); ; {
		i := strings.IndexByte(rest, '+')
		if i == 0 {
			i = 1
			if len(rest) > 1 {
				if j := strings.IndexByte(rest[1:], '+'); j != 0 {
					return nil, bad("keys %q: a key is missing before a +", keys)
				}
			}
		}
		if i < 0 {
			i = len(rest)
		}
		name := rest[:i]
		if trimmed := strings.TrimSpace(name); trimmed != "" {
			name = trimmed
		}
		if name == "" {
			return nil, bad("keys %q: want keys with + between them, such as ctrl+c", keys)
		}
		names = append(names, name)
		if i == len(rest) {
			return names, nil
		}
		rest = rest[i+1:]
	}
}

// chord presses keys together, the last one last.
func (s *screen) chord(names []string) (any, error) {
	if len(names) > chordLimit {
		return nil, bad("%d keys at once, more than %d", len(names), chordLimit)
	}
	syms := make([]xproto.Keysym, len(names))
	for i, name := range names {
		sym, ok := keysym(name)
		if !ok {
			return nil, bad("key %.100q: want a character or the name of a key, such as Return, Page_Up, F5 or ctrl", name)
		}
		syms[i] = sym
	}
	k, err := s.keyboard()
	if err != nil {
		return nil, err
	}
	defer k.restore()
	if ready, err := k.lend(syms); err != nil {
		return nil, err
	} else if ready < len(syms) {
		return nil, errors.New("the keyboard has no key to spare for what it lacks")
	}
	var codes []byte
	shifted := slices.Contains(syms, symShift) || slices.Contains(syms, 0xffe2)
	for _, sym := range syms {
		at, _ := k.find(sym)
		if at.shift && !shifted {
			// "A" and "?" are keys that need Shift.
			shift, ok := k.find(symShift)
			if !ok {
				return nil, errors.New("the keyboard has no Shift")
			}
			codes = append(codes, shift.code)
			shifted = true
		}
		codes = append(codes, at.code)
	}
	if err := k.strike(codes...); err != nil {
		return nil, err
	}
	return struct{}{}, nil
}
