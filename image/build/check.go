//go:build linux

package build

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/image"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

// knownSyntax are the frontends that the one linked in stands for.
var knownSyntax = regexp.MustCompile(`^(docker\.io/)?docker/dockerfile(:1(\.\d+){0,2}|:latest)?(@sha256:[0-9a-f]{64})?$`)

// hostPath is what a Dockerfile says where it names a path of this machine.
// BuildKit finds out, when it has put in the values of variables: such a name is
// none of an image in a registry.
var hostPath = regexp.MustCompile(`failed to parse stage name "((?:[^"\\\\]|\\\\.)*)"|invalid context name ((?:oci|oci-archive|docker-archive|dir|tar):\S*):`)

// hostPathIn finds in an error of BuildKit the path that a Dockerfile named.
func hostPathIn(message string) (string, bool) {
	m := hostPath.FindStringSubmatch(message)
	if m == nil {
		return "", false
	}
	named := m[1] + m[2]
	ref, err := image.ParseReference(named)
	scheme, _, _ := strings.Cut(named, ":")
	return named, err == nil && ref.Local() || strings.HasPrefix(named, "/") || strings.HasPrefix(named, ".") ||
		err != nil && slices.Contains([]string{"oci", "oci-archive", "docker-archive", "dir", "tar", "oci-layout"}, scheme)
}

// check refuses what of a Dockerfile cannot be done here.
func check(text string, args map[string]string) error {
	refuse := func(line int, what, why string) error {
		return &daytona.BuildError{Name: what, Line: line, Err: &daytona.Error{Kind: daytona.KindUnsupported, Op: op, Subject: fmt.Sprintf("line %d", line), Field: what, Message: why}}
	}
	if ref, _, loc, ok := parser.DetectSyntax([]byte(text)); ok && !knownSyntax.MatchString(ref) {
		line := 1
		if len(loc) > 0 {
			line = loc[0].Start.Line
		}
		return refuse(line, "# syntax="+ref, "only docker/dockerfile is linked in; remove the directive")
	}
	parsed, err := parser.Parse(strings.NewReader(text))
	if err != nil {
		return &daytona.Error{Kind: daytona.KindInvalid, Op: op, Field: "Dockerfile", Err: err}
	}
	stages, _, err := instructions.Parse(parsed.AST, nil)
	if err != nil {
		return nil // the frontend says where and why
	}
	for _, s := range stages {
		for _, c := range s.Commands {
			line := 0
			if at := c.Location(); len(at) > 0 {
				line = at[0].Start.Line
			}
			run, ok := c.(*instructions.RunCommand)
			if !ok {
				continue
			}
			// Variables in them count for nothing here: the executor refuses what
			// they turn out to be.
			_ = run.Expand(func(word string) (string, error) { return word, nil })
			if instructions.GetNetwork(run) == instructions.NetworkHost {
				return refuse(line, "RUN --network=host", "a step never has the host's network; leave it out, or say --network=none")
			}
			if instructions.GetSecurity(run) == instructions.SecurityInsecure {
				return refuse(line, "RUN --security=insecure", "a step is always as isolated as a sandbox; leave it out")
			}
			if len(instructions.GetDevices(run)) > 0 {
				return refuse(line, "RUN --device", "a step has no devices; leave it out")
			}
			for _, m := range instructions.GetMounts(run) {
				if m.Type == instructions.MountTypeSSH {
					return refuse(line, "RUN --mount=type=ssh", "there is no SSH agent for a step; use type=secret")
				}
			}
		}
	}
	return nil
}

// plan is what a Dockerfile's steps are numbered by.
type plan struct {
	before map[string]int // by stage, as BuildKit names it: the steps of those before
	lines  []int          // of each step
}

func planOf(text string) plan {
	p := plan{before: map[string]int{}}
	parsed, err := parser.Parse(strings.NewReader(text))
	if err != nil {
		return p
	}
	stages, _, err := instructions.Parse(parsed.AST, nil)
	if err != nil {
		return p
	}
	add := func(at []parser.Range) {
		line := 0
		if len(at) > 0 {
			line = at[0].Start.Line
		}
		p.lines = append(p.lines, line)
	}
	for i, s := range stages {
		name := s.Name
		if name == "" {
			name = fmt.Sprintf("stage-%d", i)
		}
		p.before[name] = len(p.lines)
		add(s.Location)
		for _, c := range s.Commands {
			switch c.(type) {
			case *instructions.RunCommand, *instructions.CopyCommand, *instructions.AddCommand, *instructions.WorkdirCommand:
				add(c.Location())
			}
		}
	}
	return p
}
