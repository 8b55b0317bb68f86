package proxy

import (
	"strconv"
	"strings"
)

// host is a preview host: {port}-{label}.{domain}.
type host struct {
	port int
	// label is a sandbox's id, or else a signed token.
	label  string
	signed bool
	// domain is the one of the configuration, suffix how the host went on after
	// the label: the domain and the port of the URL, as they were sent.
	domain, suffix string
}

// maxLabel is the length of a label of a host name, by DNS.
const maxLabel = 63

// parseHost takes the host of a request apart. ok is false where it is no host
// of a preview, of any domain; that is not an error, since all else is served
// under other hosts. Only one way to write a host means something: what names
// the same thing in two ways is not taken, but for the case of letters and one
// final dot, which browsers send.
func parseHost(s string, domains []string) (h host, ok bool) {
	if len(s) > 253+len(":65535") {
		return host{}, false
	}
	for i := range len(s) {
		if s[i] >= 0x80 { // there are others whose lower case is a letter of these
			return host{}, false
		}
	}
	name, suffix := strings.ToLower(s), ""
	if i := strings.IndexByte(name, ':'); i >= 0 {
		if p := name[i+1:]; !isPort(p) {
			return host{}, false
		}
		name, suffix = name[:i], name[i:]
	}
	name = strings.TrimSuffix(name, ".")
	first, rest, found := strings.Cut(name, ".")
	if !found || len(first) > maxLabel {
		return host{}, false
	}
	for _, d := range domains {
		if rest != d {
			continue
		}
		port, label, found := strings.Cut(first, "-")
		if !found || !isPort(port) || !isLabel(label) {
			return host{}, false
		}
		n, _ := strconv.Atoi(port)
		return host{port: n, label: label, signed: !isUUID(label), domain: d, suffix: "." + rest + suffix}, true
	}
	return host{}, false
}

// isPort reports whether s is a port, written in the one way.
func isPort(s string) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && n > 0 && s == strconv.FormatUint(n, 10)
}

// isLabel reports whether s can be a sandbox's id or a signed token.
func isLabel(s string) bool {
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && (c != '-' || i == 0 || i == len(s)-1) {
			return false
		}
	}
	return s != ""
}

// isUUID reports whether s has the form of a sandbox's id.
func isUUID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case i == 8 || i == 13 || i == 18 || i == 23:
			if c != '-' {
				return false
			}
		case (c < '0' || c > '9') && (c < 'a' || c > 'f'):
			return false
		}
	}
	return true
}

// name is the host as the sandbox is to see it: with its id, never with a token.
func (h host) name(sandboxID string) string {
	return strconv.Itoa(h.port) + "-" + sandboxID + h.suffix
}

// own is the host as it was asked for, in the one form.
func (h host) own() string { return h.name(h.label) }

// system says that a port is one of the sandbox's own: the toolbox, the web
// terminal, the recordings. No sandbox makes them public.
func system(port int) bool {
	return port == toolboxPort || port == terminalPort || port == recordingPort
}

const (
	toolboxPort   = 2280
	terminalPort  = 22222
	recordingPort = 33333
)
