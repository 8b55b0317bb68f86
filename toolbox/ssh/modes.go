package ssh

import (
	"encoding/binary"
	"os"

	"golang.org/x/sys/unix"
)

// Opcodes of terminal modes: RFC 4254, section 8, and RFC 8160.
const (
	modeEnd      = 0
	modeReserved = 160 // and above: of no known length
)

// characters are the opcodes of special characters.
var characters = map[byte]int{
	1: unix.VINTR, 2: unix.VQUIT, 3: unix.VERASE, 4: unix.VKILL, 5: unix.VEOF, 6: unix.VEOL, 7: unix.VEOL2,
	8: unix.VSTART, 9: unix.VSTOP, 10: unix.VSUSP, 12: unix.VREPRINT, 13: unix.VWERASE, 14: unix.VLNEXT, 18: unix.VDISCARD,
}

// flags are the opcodes of flags, by the word they are in.
var inputFlags = map[byte]uint32{
	30: unix.IGNPAR, 31: unix.PARMRK, 32: unix.INPCK, 33: unix.ISTRIP, 34: unix.INLCR, 35: unix.IGNCR, 36: unix.ICRNL,
	37: unix.IUCLC, 38: unix.IXON, 39: unix.IXANY, 40: unix.IXOFF, 41: unix.IMAXBEL, 42: unix.IUTF8,
}
var localFlags = map[byte]uint32{
	50: unix.ISIG, 51: unix.ICANON, 52: unix.XCASE, 53: unix.ECHO, 54: unix.ECHOE, 55: unix.ECHOK, 56: unix.ECHONL,
	57: unix.NOFLSH, 58: unix.TOSTOP, 59: unix.IEXTEN, 60: unix.ECHOCTL, 61: unix.ECHOKE, 62: unix.PENDIN,
}
var outputFlags = map[byte]uint32{70: unix.OPOST, 71: unix.OLCUC, 72: unix.ONLCR, 73: unix.OCRNL, 74: unix.ONOCR, 75: unix.ONLRET}

// setModes changes t as the encoded modes say. What is not known, or makes no
// difference to a pseudo-terminal, is left out.
func setModes(t *unix.Termios, encoded string) {
	for len(encoded) >= 5 && encoded[0] != modeEnd && encoded[0] < modeReserved {
		op, value := encoded[0], binary.BigEndian.Uint32([]byte(encoded[1:5]))
		encoded = encoded[5:]
		if i, ok := characters[op]; ok {
			c := byte(value)
			if value == 255 {
				c = 0 // _POSIX_VDISABLE of Linux
			}
			t.Cc[i] = c
			continue
		}
		for _, word := range []struct {
			flags map[byte]uint32
			of    *uint32
		}{{inputFlags, &t.Iflag}, {localFlags, &t.Lflag}, {outputFlags, &t.Oflag}} {
			if bit, ok := word.flags[op]; ok {
				*word.of &^= bit
				if value != 0 {
					*word.of |= bit
				}
			}
		}
	}
}

// applyModes sets a terminal's modes. One that takes none is used as it is.
func applyModes(terminal *os.File, encoded string) {
	fd := int(terminal.Fd())
	if t, err := unix.IoctlGetTermios(fd, unix.TCGETS); err == nil {
		setModes(t, encoded)
		_ = unix.IoctlSetTermios(fd, unix.TCSETS, t)
	}
}
