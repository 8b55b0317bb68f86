//go:build linux

package build

import (
	"bytes"
	"errors"
	"regexp"
	"strconv"
	"strings"

	"github.com/daytona-go/daytona"
	"github.com/moby/buildkit/client"
	gatewayapi "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/opencontainers/go-digest"
)

// maxLog is how much of a step's output a BuildError has.
const maxLog = 32 << 10

// maxLine bounds a line that never ends.
const maxLine = 64 << 10

// journal turns what BuildKit says into lines of a log.
type journal struct {
	tell  func(daytona.BuildLog)
	steps map[digest.Digest]*stepLog
	text  string
	plan  plan
}

type stepLog struct {
	number        int
	name          string
	started, done bool
	cached        bool
	failed        string
	partial       [3][]byte // by stream
	tail          []byte
}

func newJournal(dockerfile string, tell func(daytona.BuildLog)) *journal {
	if tell == nil {
		tell = func(daytona.BuildLog) {}
	}
	return &journal{tell: tell, steps: map[digest.Digest]*stepLog{}, text: dockerfile, plan: planOf(dockerfile)}
}

// stepName is how BuildKit names what a Dockerfile says, as opposed to what it
// does of its own: "[2/3] RUN make", "[builder 1/2] FROM …".
var stepName = regexp.MustCompile(`^\[(?:([^\] ]+) +)?(\d+)/\d+\] `)

func (j *journal) step(d digest.Digest, name string) *stepLog {
	s := j.steps[d]
	if s == nil {
		s = &stepLog{name: name}
		if m := stepName.FindStringSubmatch(name); m != nil {
			n, _ := strconv.Atoi(m[2])
			s.number = j.plan.before[m[1]] + n
		}
		j.steps[d] = s
	}
	return s
}

func (j *journal) add(status *client.SolveStatus) {
	for _, v := range status.Vertexes {
		s := j.step(v.Digest, v.Name)
		if v.Started != nil && !s.started {
			s.started = true
			if !v.Cached {
				j.tell(daytona.BuildLog{Step: s.number, Name: s.name})
			}
		}
		s.cached = s.cached || v.Cached
		if v.Completed != nil && !s.done {
			s.done = true
			s.failed = v.Error
			j.flush(s)
			j.tell(daytona.BuildLog{Step: s.number, Name: s.name, Cached: v.Cached, Done: true, Error: v.Error})
		}
	}
	for _, l := range status.Logs {
		s := j.steps[l.Vertex]
		if s == nil || l.Stream < 0 || l.Stream > 2 {
			continue
		}
		s.tail = append(s.tail, l.Data...)
		if len(s.tail) > 2*maxLog {
			s.tail = append([]byte(nil), s.tail[len(s.tail)-maxLog:]...)
		}
		rest := append(s.partial[l.Stream], l.Data...)
		for {
			i := bytes.IndexByte(rest, '\n')
			if i < 0 {
				if len(rest) < maxLine {
					break
				}
				i = maxLine - 1
			}
			j.line(s, l.Stream, rest[:i])
			rest = rest[i+1:]
		}
		s.partial[l.Stream] = append([]byte(nil), rest...)
	}
}

func (j *journal) line(s *stepLog, stream int, line []byte) {
	j.tell(daytona.BuildLog{Step: s.number, Name: s.name, Line: strings.TrimSuffix(string(line), "\r"), Stderr: stream == 2})
}

func (j *journal) flush(s *stepLog) {
	for stream, rest := range s.partial {
		if len(rest) > 0 {
			j.line(s, stream, rest)
			s.partial[stream] = nil
		}
	}
}

// worked reports whether a step of the Dockerfile had to be done.
func (j *journal) worked() bool {
	for _, s := range j.steps {
		if s.number > 0 && s.started && !s.cached && !strings.Contains(s.name, "] FROM ") {
			return true
		}
	}
	return false
}

// unreachable reports whether a registry, or what ADD fetches from, could not be
// asked or did not finish its answer. Over the connection to BuildKit an error
// arrives as text.
func unreachable(message string) bool {
	for _, s := range []string{"failed to do request", "connection refused", "connection reset by peer", "no such host", "unexpected EOF", "i/o timeout",
		"500 Internal Server Error", "502 Bad Gateway", "503 Service Unavailable", "504 Gateway Timeout", "429 Too Many Requests"} {
		if strings.Contains(message, s) {
			return true
		}
	}
	return false
}

// failure makes a typed error of a failed solve.
func (e *engine) failure(err error, j *journal, dir string) error {
	line := 0
	if sources := errdefs.Sources(err); len(sources) > 0 {
		for _, r := range sources[0].Ranges {
			if line == 0 || int(r.Start.Line) < line {
				line = int(r.Start.Line)
			}
		}
	}
	var vertex *errdefs.VertexError
	var s *stepLog
	if errors.As(err, &vertex) {
		s = j.steps[digest.Digest(vertex.Digest)]
	}
	if s != nil && line == 0 && s.number > 0 && s.number <= len(j.plan.lines) {
		line = j.plan.lines[s.number-1]
	}
	message := strings.TrimPrefix(err.Error(), "failed to solve: ")
	var exit *gatewayapi.ExitError
	failed := errors.As(err, &exit)
	kind := daytona.KindInvalid
	switch {
	case failed && !full(dir) && (s == nil || !bytes.Contains(s.tail, []byte("No space left on device"))):
		// The message has the command in it, which can say anything.
	case strings.Contains(message, "is not supported"):
		kind = daytona.KindUnsupported
	case strings.Contains(message, "the step took longer and was killed"):
		kind = daytona.KindTimeout
	case full(dir), strings.Contains(message, "no space left on device"), s != nil && bytes.Contains(s.tail, []byte("No space left on device")):
		kind = daytona.KindNoSpace
	case strings.Contains(message, "does not allow this address"):
		kind = daytona.KindForbidden
	case strings.Contains(message, "401 Unauthorized"), strings.Contains(message, "authorization failed"), strings.Contains(message, "pull access denied"):
		kind = daytona.KindUnauthorized
	case unreachable(message):
		kind = daytona.KindUnavailable
	case strings.Contains(message, ": not found"):
		kind = daytona.KindNotFound
	}
	cause := &daytona.Error{Kind: kind, Op: op, Message: message}
	if i := strings.Index(message, `the context's file "`); i >= 0 {
		cause = &daytona.Error{Kind: daytona.KindInvalid, Op: op, Field: "Contexts", Message: message[i:]}
	}
	if path, ok := hostPathIn(message); ok {
		if line == 0 { // that of a mount, which can have no variables
			line = 1 + strings.Count(j.text[:max(0, strings.Index(j.text, path))], "\n")
		}
		cause = &daytona.Error{Kind: daytona.KindUnsupported, Op: op, Field: "Dockerfile", Value: path,
			Message: "a Dockerfile cannot name paths of this machine; name an image of a registry, " + LocalName + "@ and the digest of a build, or one of BuildOptions.Bases"}
	}
	if kind == daytona.KindNoSpace {
		cause.Message = "the disk is full: " + message
	}
	if s == nil {
		if line > 0 {
			return &daytona.BuildError{Name: "Dockerfile", Line: line, Err: cause}
		}
		return cause
	}
	b := &daytona.BuildError{Step: s.number, Name: s.name, Line: line, Err: cause, Log: append([]byte(nil), s.tail[max(0, len(s.tail)-maxLog):]...)}
	if failed {
		b.ExitCode = int(exit.ExitCode)
	}
	return b
}
