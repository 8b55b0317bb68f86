package process

import (
	"net/http"
	"strconv"
	"strings"

	"github.com/daytona-go/daytona/toolbox/wire"
)

// logFormat is how a session's output is shown to a client; it depends on the
// client's version.
type logFormat int

const (
	// combined has no markers and does not tell the streams apart.
	combined logFormat = iota
	// marked has the markers; the client takes it apart.
	marked
	// split is JSON with the streams apart.
	split
)

// Versions of the public SDKs from which on an answer has another form.
var (
	versionMarked  = [3]int{0, 27, 0}
	versionWorkDir = [3]int{0, 103, 0}
	versionSplit   = [3]int{0, 167, 0}
)

func formatFor(r *http.Request) logFormat {
	v, dev, ok := parseVersion(wire.ClientVersion(r.Header))
	switch {
	case dev:
		return split
	case !ok:
		if strings.EqualFold(r.Header.Get(wire.HeaderSplitOutput), "true") {
			return marked
		}
		return combined
	case before(v, versionMarked):
		return combined
	case before(v, versionSplit):
		return marked
	}
	return split
}

// startsInHome says whether the client is of a time when sessions began in the
// home directory.
func startsInHome(r *http.Request) bool {
	v, dev, ok := parseVersion(wire.ClientVersion(r.Header))
	return ok && !dev && before(v, versionWorkDir)
}

// parseVersion reads "v1.2.3-pre+build". Marks of a pre-release do not count:
// 0.167.0-alpha.1 is of the new kind. ok is false for what is no version.
func parseVersion(s string) (v [3]int, dev, ok bool) {
	if strings.Contains(s, "dev") {
		return v, true, true
	}
	s = strings.TrimPrefix(strings.TrimSpace(s), "v")
	if i := strings.IndexAny(s, "-+"); i >= 0 {
		s = s[:i]
	}
	parts := strings.Split(s, ".")
	if len(parts) > 3 {
		return v, false, false
	}
	for i, p := range parts {
		n, err := strconv.Atoi(p)
		if err != nil || n < 0 || p[0] == '+' {
			return [3]int{}, false, false
		}
		v[i] = n
	}
	return v, false, true
}

func before(a, b [3]int) bool {
	for i := range a {
		if a[i] != b[i] {
			return a[i] < b[i]
		}
	}
	return false
}
