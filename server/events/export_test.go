package events

// Roundtrip parses a packet and encodes it again.
func Roundtrip(s string) (string, bool) {
	p, err := parse(s)
	if err != nil {
		return "", false
	}
	return string(p.encode()[1:]), true
}
