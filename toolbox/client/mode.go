package client

import (
	"errors"
	"io/fs"
	"strconv"
	"strings"
)

// typeLetters are the letters that fs.FileMode.String uses, for the bits from
// the highest downwards.
const typeLetters = "dalTLDpSugct?"

// parseMode is the inverse of fs.FileMode.String.
func parseMode(s string) (fs.FileMode, error) {
	if len(s) < 10 {
		return 0, errors.New("file mode " + strconv.Quote(s) + ": shorter than 10 characters")
	}
	head, tail := s[:len(s)-9], s[len(s)-9:]
	var m fs.FileMode
	if head != "-" {
		next := 0
		for i := range len(head) {
			at := strings.IndexByte(typeLetters[next:], head[i])
			if at < 0 {
				return 0, errors.New("file mode " + strconv.Quote(s) + ": unknown or misplaced type letter")
			}
			next += at
			m |= 1 << (31 - next)
			next++
		}
	}
	for i := range 9 {
		switch tail[i] {
		case "rwxrwxrwx"[i]:
			m |= 1 << (8 - i)
		case '-':
		default:
			return 0, errors.New("file mode " + strconv.Quote(s) + ": unknown permission letter")
		}
	}
	return m, nil
}

// octal formats permission bits, with set-id and sticky bits, as the wire
// has them: four octal digits.
func octal(m fs.FileMode) string {
	n := uint64(m.Perm())
	if m&fs.ModeSetuid != 0 {
		n |= 0o4000
	}
	if m&fs.ModeSetgid != 0 {
		n |= 0o2000
	}
	if m&fs.ModeSticky != 0 {
		n |= 0o1000
	}
	s := strconv.FormatUint(n, 8)
	return strings.Repeat("0", max(0, 4-len(s))) + s
}
