package desktop

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/jezek/xgb/xproto"
)

// Keysyms of the modifiers, as in X11/keysymdef.h.
const (
	symShift   xproto.Keysym = 0xffe1
	symControl xproto.Keysym = 0xffe3
	symCaps    xproto.Keysym = 0xffe5
	symAlt     xproto.Keysym = 0xffe9
	symSuper   xproto.Keysym = 0xffeb
	symLevel3  xproto.Keysym = 0xfe03
	// unicodeSyms is where the keysyms begin that are characters of Unicode.
	unicodeSyms xproto.Keysym = 0x01000000
)

// modifiers by the names that callers use. They are a function, as keys are, for
// the agent not to make them when it starts: only a helper needs them.
func modifiers() map[string]xproto.Keysym {
	return map[string]xproto.Keysym{
		"ctrl": symControl, "control": symControl, "control_l": symControl, "ctrl_l": symControl, "lctrl": symControl,
		"control_r": 0xffe4, "ctrl_r": 0xffe4, "rctrl": 0xffe4,
		"alt": symAlt, "alt_l": symAlt, "lalt": symAlt, "option": symAlt,
		"alt_r": 0xffea, "ralt": 0xffea, "altgr": symLevel3, "iso_level3_shift": symLevel3,
		"shift": symShift, "shift_l": symShift, "lshift": symShift, "shift_r": 0xffe2, "rshift": 0xffe2,
		"cmd": symSuper, "command": symSuper, "super": symSuper, "super_l": symSuper, "win": symSuper, "windows": symSuper,
		"meta": symSuper, "lcmd": symSuper, "super_r": 0xffec, "rcmd": 0xffec,
	}
}

// keys are those without a character of their own, by X's names and by the
// names that callers use, in lower case.
func keys() map[string]xproto.Keysym {
	return map[string]xproto.Keysym{
		"backspace": 0xff08, "tab": 0xff09, "iso_left_tab": 0xfe20, "linefeed": 0xff0a, "clear": 0xff0b,
		"return": 0xff0d, "enter": 0xff0d, "pause": 0xff13, "scroll_lock": 0xff14, "scrolllock": 0xff14, "sys_req": 0xff15,
		"escape": 0xff1b, "esc": 0xff1b, "delete": 0xffff, "del": 0xffff,
		"home": 0xff50, "left": 0xff51, "arrowleft": 0xff51, "up": 0xff52, "arrowup": 0xff52,
		"right": 0xff53, "arrowright": 0xff53, "down": 0xff54, "arrowdown": 0xff54,
		"prior": 0xff55, "page_up": 0xff55, "pageup": 0xff55, "next": 0xff56, "page_down": 0xff56, "pagedown": 0xff56,
		"end": 0xff57, "begin": 0xff58, "select": 0xff60, "print": 0xff61, "printscreen": 0xff61, "execute": 0xff62,
		"insert": 0xff63, "ins": 0xff63, "undo": 0xff65, "redo": 0xff66, "menu": 0xff67, "contextmenu": 0xff67,
		"find": 0xff68, "cancel": 0xff69, "help": 0xff6a, "break": 0xff6b, "num_lock": 0xff7f, "numlock": 0xff7f,
		"caps_lock": symCaps, "capslock": symCaps, "space": ' ', "spacebar": ' ', "plus": '+', "minus": '-',
		"kp_enter": 0xff8d, "numpad_enter": 0xff8d, "kp_equal": 0xffbd, "kp_multiply": 0xffaa, "numpad_multiply": 0xffaa,
		"kp_add": 0xffab, "numpad_add": 0xffab, "kp_subtract": 0xffad, "numpad_subtract": 0xffad,
		"kp_decimal": 0xffae, "numpad_decimal": 0xffae, "kp_divide": 0xffaf, "numpad_divide": 0xffaf,
		"audio_mute": 0x1008ff12, "xf86audiomute": 0x1008ff12, "audio_vol_down": 0x1008ff11, "xf86audiolowervolume": 0x1008ff11,
		"audio_vol_up": 0x1008ff13, "xf86audioraisevolume": 0x1008ff13, "xf86back": 0x1008ff26, "xf86forward": 0x1008ff27,
	}
}

// keysym finds a key by its name or its character.
func keysym(name string) (xproto.Keysym, bool) {
	if r, n := utf8.DecodeRuneInString(name); n == len(name) && n > 0 {
		return symOf(r)
	}
	if len(name) > 64 {
		return 0, false
	}
	lower := strings.ToLower(name)
	if sym, ok := modifiers()[lower]; ok {
		return sym, true
	}
	if sym, ok := keys()[lower]; ok {
		return sym, true
	}
	number := func(prefix string, most int) (int, bool) {
		digits, ok := strings.CutPrefix(lower, prefix)
		if !ok || len(digits) < 1 || len(digits) > 2 || digits[0] == '0' && len(digits) > 1 {
			return 0, false
		}
		n := 0
		for _, d := range []byte(digits) {
			if d < '0' || d > '9' {
				return 0, false
			}
			n = 10*n + int(d-'0')
		}
		return n, n <= most
	}
	if n, ok := number("f", 35); ok && n > 0 {
		return 0xffbd + xproto.Keysym(n), true
	}
	for _, prefix := range []string{"kp_", "num", "numpad_"} {
		if n, ok := number(prefix, 9); ok {
			return 0xffb0 + xproto.Keysym(n), true
		}
	}
	return 0, false
}

// symOf is the keysym of a character; false for those that no key has.
func symOf(r rune) (xproto.Keysym, bool) {
	switch {
	case r == '\n' || r == '\r':
		return 0xff0d, true
	case r == '\t':
		return 0xff09, true
	case r == '\b':
		return 0xff08, true
	case r == 0x1b:
		return 0xff1b, true
	case r == utf8.RuneError || unicode.IsControl(r):
		return 0, false
	case r < 0x100:
		return xproto.Keysym(r), true // Latin 1 is itself
	}
	return unicodeSyms + xproto.Keysym(r), true
}
