//go:build linux

package docker

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/build"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/jsonstream"
	apinetwork "github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/image"
	"github.com/daytona-go/daytona/internal/lifecycle"
)

const buildOp = "build image"

// A RUN step is a sandbox of its own, of the image so far, which is committed:
// the engine's builder would give it more rights than sandboxes have, and a
// network without a policy. All other instructions are the engine's classic
// builder's, a few at a time.

// builder is one build.
type builder struct {
	b       *backend
	img     *daytona.Image
	opts    daytona.BuildOptions
	escape  rune
	steps   []step
	stages  map[string]string // image ids, by name and number
	global  map[string]string // ARGs before the first FROM
	bases   map[string]string // BuildOptions.Bases
	cached  bool
	current *step
	tail    []byte // of what the current step wrote
}

// step is an instruction of the Dockerfile.
type step struct {
	node  *parser.Node
	n     int
	name  string
	word  string // the instruction, in capitals
	stage int
}

// BuildImage implements daytona.ImageBuilder.
func (b *backend) BuildImage(ctx context.Context, img *daytona.Image, opts daytona.BuildOptions) (daytona.BuiltImage, error) {
	if err := img.Err(); err != nil {
		return daytona.BuiltImage{}, err
	}
	if b.Closed() {
		return daytona.BuiltImage{}, &daytona.Error{Kind: daytona.KindState, Op: buildOp, Message: "the backend is closed"}
	}
	if opts.OnLog == nil {
		opts.OnLog = func(daytona.BuildLog) {}
	}
	if err := b.admitBuild(ctx, opts); err != nil {
		return daytona.BuiltImage{}, err
	}
	x := &builder{b: b, escape: '\\', img: img, opts: opts, bases: opts.Bases, stages: map[string]string{}, global: map[string]string{}, cached: true}
	if err := x.parse(); err != nil {
		return daytona.BuiltImage{}, err
	}
	id, err := x.build(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return daytona.BuiltImage{}, ctx.Err()
		}
		return daytona.BuiltImage{}, b.explain(buildOp, "", err)
	}
	tag := importName + ":build-" + strings.TrimPrefix(id, "sha256:")
	uncut, cancel := uncut(ctx)
	defer cancel()
	if _, err := b.api.ImageTag(uncut, client.ImageTagOptions{Source: id, Target: tag}); err != nil {
		return daytona.BuiltImage{}, b.explain(buildOp, "", err)
	}
	found, err := b.api.ImageInspect(uncut, tag)
	if err != nil {
		return daytona.BuiltImage{}, b.explain(buildOp, "", err)
	}
	b.collect(uncut, tag)
	return daytona.BuiltImage{Ref: tag, Digest: found.ID, SizeBytes: found.Size, Cached: x.cached}, nil
}

// admitBuild refuses options that cannot be kept.
func (b *backend) admitBuild(ctx context.Context, opts daytona.BuildOptions) error {
	refuse := func(field string, value any, why string) error {
		return &daytona.Error{Kind: daytona.KindUnsupported, Op: buildOp, Field: field, Value: value, Message: why}
	}
	if err := opts.Network.Validate(buildOp); err != nil {
		return err
	}
	if err := opts.Resources.Validate(buildOp); err != nil {
		return err
	}
	if err := daytona.ValidateEnv(buildOp, "Args", opts.Args); err != nil {
		return err
	}
	if len(opts.Secrets) > 0 {
		return refuse("Secrets", slices.Sorted(maps.Keys(opts.Secrets)), "the docker backend's builds have no RUN --mount, which is what shows secrets")
	}
	if opts.Platform != "" {
		v, err := b.api.ServerVersion(ctx, client.ServerVersionOptions{})
		if err != nil {
			return b.explain(buildOp, "", err)
		}
		if own := v.Os + "/" + v.Arch; opts.Platform != own {
			return refuse("Platform", opts.Platform, "RUN steps run on the engine's machine, which is "+own)
		}
	}
	spec := daytona.Spec{Network: opts.Network, Resources: opts.Resources}
	return b.admit(&spec)
}

// unsupportedAt refuses something of the Dockerfile.
func unsupportedAt(n *parser.Node, what, why string) error {
	return &daytona.Error{Kind: daytona.KindUnsupported, Op: buildOp, Field: fmt.Sprintf("Dockerfile line %d", n.StartLine), Value: what, Message: why}
}

func invalidAt(line int, what, why string) error {
	return &daytona.Error{Kind: daytona.KindInvalid, Op: buildOp, Field: fmt.Sprintf("Dockerfile line %d", line), Value: what, Message: why}
}

// flagsOf are the flags that the engine's classic builder, or this package, knows.
var flagsOf = map[string][]string{
	"COPY": {"chown", "from"}, "ADD": {"chown"}, "FROM": {"platform"}, "RUN": nil,
	"HEALTHCHECK": {"interval", "timeout", "start-period", "retries"},
}

// parse reads the Dockerfile and refuses, before anything is built, what cannot
// be done.
func (x *builder) parse() error {
	text := x.img.Dockerfile()
	if syntax, _, _, ok := parser.DetectSyntax([]byte(text)); ok && !strings.HasPrefix(strings.TrimPrefix(syntax, "docker.io/"), "docker/dockerfile") {
		return &daytona.Error{Kind: daytona.KindUnsupported, Op: buildOp, Field: "Dockerfile", Value: "# syntax=" + syntax, Message: "the docker backend has no other language than Docker's own"}
	}
	parsed, err := parser.Parse(strings.NewReader(text))
	if err != nil {
		line := 0
		if at, ok := errors.AsType[*parser.LocationError](err); ok && len(at.Locations) > 0 && len(at.Locations[0]) > 0 {
			line = at.Locations[0][0].Start.Line
		}
		return invalidAt(line, "", err.Error())
	}
	x.escape = parsed.EscapeToken
	stage, names := -1, map[string]int{}
	for _, n := range parsed.AST.Children {
		s := step{node: n, word: strings.ToUpper(n.Value)}
		known := flagsOf[s.word]
		for _, f := range n.Flags {
			name, value, _ := strings.Cut(strings.TrimPrefix(f, "--"), "=")
			if s.word == "RUN" && name == "network" && value == "default" {
				continue
			}
			if !slices.Contains(known, name) {
				return unsupportedAt(n, s.word+" --"+name, "the docker backend's builds cannot do that")
			}
		}
		if len(n.Heredocs) > 0 {
			return unsupportedAt(n, s.word+" <<"+n.Heredocs[0].Name, "the docker backend's builds take no heredocs; put it into a file")
		}
		switch s.word {
		case "FROM":
			stage++
			if name := stageName(n); name != "" {
				names[name] = stage
			}
			for _, f := range n.Flags {
				if value, ok := strings.CutPrefix(f, "--platform="); ok && !strings.Contains(value, "BUILDPLATFORM") && !strings.Contains(value, "TARGETPLATFORM") && value != x.opts.Platform {
					return unsupportedAt(n, f, "RUN steps run on the engine's machine; leave it to its platform")
				}
			}
		case "ADD":
			for a := n.Next; a != nil && a.Next != nil; a = a.Next {
				// What the engine makes of it, quotes and all.
				source, err := x.expand(n, a.Value, variables{})
				if err != nil {
					return err
				}
				if strings.Contains(a.Value, "$") {
					return unsupportedAt(n, "ADD "+a.Value, "what it stands for is not known before the build, and must not be a URL; write it out, or use COPY")
				}
				if strings.Contains(source, "://") || strings.Contains(a.Value, "://") || strings.HasPrefix(source, "git@") {
					return unsupportedAt(n, "ADD "+a.Value, "the engine would fetch it from where sandboxes may not go; use RUN with a program that fetches it")
				}
			}
		case "COPY", "RUN", "ENV", "LABEL", "EXPOSE", "CMD", "ENTRYPOINT", "WORKDIR", "USER", "VOLUME", "STOPSIGNAL", "HEALTHCHECK", "SHELL", "MAINTAINER", "ARG":
		case "ONBUILD":
			return unsupportedAt(n, "ONBUILD", "the engine would do it in the next steps of this build already, and not as sandboxes do")
		default:
			return invalidAt(n.StartLine, n.Value, "there is no such instruction")
		}
		if stage < 0 && s.word != "ARG" {
			return invalidAt(n.StartLine, n.Value, "FROM must be the first instruction, but for ARG")
		}
		s.stage = stage
		x.steps = append(x.steps, s)
	}
	if stage < 0 {
		return invalidAt(0, "", "there is no FROM")
	}
	last := stage
	if t := x.opts.Target; t != "" {
		n, ok := names[strings.ToLower(t)]
		if !ok {
			if i, err := strconv.Atoi(t); err == nil && i >= 0 && i <= stage {
				n, ok = i, true
			}
		}
		if !ok {
			return &daytona.Error{Kind: daytona.KindInvalid, Op: buildOp, Field: "Target", Value: t, Message: "the Dockerfile has no such stage"}
		}
		last = n
	}
	x.steps = slices.DeleteFunc(x.steps, func(s step) bool { return s.stage > last })
	total := 0
	for _, s := range x.steps {
		if s.stage >= 0 {
			total++
		}
	}
	n := 0
	for i := range x.steps {
		if x.steps[i].stage >= 0 {
			n++
			x.steps[i].n, x.steps[i].name = n, fmt.Sprintf("[%d/%d] %s", n, total, x.steps[i].node.Original)
		}
	}
	return nil
}

func stageName(n *parser.Node) string {
	if as := n.Next.Next; as != nil && as.Next != nil && strings.EqualFold(as.Value, "as") {
		return strings.ToLower(as.Next.Value)
	}
	return ""
}

// variables is what an instruction's variables are resolved with.
type variables map[string]string

func (v variables) Get(k string) (string, bool) { s, ok := v[k]; return s, ok }
func (v variables) Keys() []string              { return slices.Collect(maps.Keys(v)) }

func (x *builder) expand(n *parser.Node, word string, vars variables) (string, error) {
	s, _, err := shell.NewLex(x.escape).ProcessWord(word, vars)
	if err != nil {
		return "", invalidAt(n.StartLine, word, err.Error())
	}
	return s, nil
}

// build builds all stages and returns the id of the last one's image.
func (x *builder) build(ctx context.Context) (id string, err error) {
	var batch []step
	args := map[string]string{} // of the stage
	flush := func() error {
		if len(batch) == 0 {
			return nil
		}
		id, err = x.byEngine(ctx, id, batch, args)
		batch = nil
		return err
	}
	end := func(s step) {
		x.stages[strconv.Itoa(s.stage)] = id
	}
	for i, s := range x.steps {
		n := s.node
		switch s.word {
		case "ARG":
			for a := n.Next; a != nil; a = a.Next {
				name, def, has := strings.Cut(a.Value, "=")
				vars := variables(x.global)
				if s.stage >= 0 {
					if strings.Contains(def, "$") {
						if err := flush(); err != nil {
							return "", err
						}
					}
					if vars, err = x.variables(ctx, id, args); err != nil {
						return "", err
					}
				}
				value, set := x.opts.Args[name]
				if !set && has {
					if value, err = x.expand(n, def, vars); err != nil {
						return "", err
					}
					set = true
				}
				if s.stage < 0 {
					if set {
						x.global[name] = value
					}
					continue
				}
				if !set {
					value, set = x.global[name]
				}
				if set {
					args[name] = value
				}
			}
			if s.stage >= 0 {
				x.begin(s)
				x.finish(s, true, nil)
			}
		case "FROM":
			if err := flush(); err != nil {
				return "", err
			}
			if i > 0 && x.steps[i-1].stage >= 0 {
				end(x.steps[i-1])
			}
			args = map[string]string{}
			x.begin(s)
			if id, err = x.from(ctx, n); err != nil {
				x.finish(s, false, err)
				return "", err
			}
			x.finish(s, true, nil)
		case "RUN":
			if err := flush(); err != nil {
				return "", err
			}
			if id, err = x.run(ctx, id, s, args); err != nil {
				return "", err
			}
		default:
			batch = append(batch, s)
		}
		// Names lead to what their stage has become so far; it is complete when
		// another one asks.
		if next := i + 1; next == len(x.steps) || x.steps[next].word == "FROM" {
			if err := flush(); err != nil {
				return "", err
			}
			for j := i; j >= 0 && x.steps[j].stage == s.stage; j-- {
				if x.steps[j].word == "FROM" {
					if name := stageName(x.steps[j].node); name != "" {
						x.stages[name] = id
					}
				}
			}
			if s.stage >= 0 {
				end(s)
			}
		}
	}
	if id == "" {
		return "", invalidAt(x.steps[len(x.steps)-1].node.StartLine, "FROM scratch", "an image must have at least one instruction")
	}
	return id, nil
}

// variables are those that are set in an image and by ARG.
func (x *builder) variables(ctx context.Context, id string, args map[string]string) (variables, error) {
	vars := variables(maps.Clone(args))
	if id == "" {
		return vars, nil
	}
	config, err := x.config(ctx, id)
	if err != nil {
		return nil, err
	}
	for _, kv := range config.Env {
		if k, v, ok := strings.Cut(kv, "="); ok {
			vars[k] = v
		}
	}
	return vars, nil
}

func (x *builder) config(ctx context.Context, id string) (*dockerspec.DockerOCIImageConfig, error) {
	found, err := x.b.api.ImageInspect(ctx, id)
	if err != nil {
		return nil, err
	}
	if found.Config == nil {
		return &dockerspec.DockerOCIImageConfig{}, nil
	}
	return found.Config, nil
}

// from finds the image that a stage begins with; "" is nothing at all.
func (x *builder) from(ctx context.Context, n *parser.Node) (string, error) {
	ref, err := x.expand(n, n.Next.Value, variables(x.global))
	if err != nil {
		return "", err
	}
	switch id, ok := x.stages[strings.ToLower(ref)]; {
	case ok && id != "":
		return id, nil
	case ref == "scratch":
		return "", nil
	case ref == "":
		return "", invalidAt(n.StartLine, n.Next.Value, "it names no image")
	}
	return x.base(ctx, n, ref)
}

// base finds an image that is not of this Dockerfile.
func (x *builder) base(ctx context.Context, n *parser.Node, ref string) (string, error) {
	if given, ok := x.bases[ref]; ok {
		ref = given
	} else if parsed, err := image.ParseReference(ref); err == nil && parsed.Local() {
		// Whoever wrote the Dockerfile must not read this machine's files.
		return "", unsupportedAt(n, ref, "a Dockerfile cannot name paths of this machine; name an image of the engine or of a registry, or one of BuildOptions.Bases")
	}
	r := &record{Info: daytona.Info{Image: ref}}
	if x.opts.Pull {
		if parsed, err := image.ParseReference(ref); err == nil && parsed.Scheme() == image.SchemeRegistry && !strings.HasPrefix(ref, "daytona.local/") {
			if err := x.b.pull(ctx, strings.TrimPrefix(parsed.String(), "docker://"), ref, func(daytona.Progress) {}); err != nil {
				return "", err
			}
		}
	}
	if err := x.b.findImage(ctx, buildOp, r, nil); err != nil {
		return "", err
	}
	config, err := x.config(ctx, r.Own.Image)
	if err != nil {
		return "", err
	}
	if n.Value != "" && strings.EqualFold(n.Value, "FROM") && len(config.OnBuild) > 0 {
		return "", unsupportedAt(n, "FROM "+ref, "the image has ONBUILD instructions, which the docker backend cannot run as sandboxes do")
	}
	return r.Own.Image, nil
}

func (x *builder) begin(s step) {
	x.current, x.tail = &s, nil
	x.opts.OnLog(daytona.BuildLog{Step: s.n, Name: s.name})
}

func (x *builder) finish(s step, cached bool, err error) {
	l := daytona.BuildLog{Step: s.n, Name: s.name, Cached: cached && err == nil, Done: true}
	if err != nil {
		l.Error = err.Error()
	}
	x.opts.OnLog(l)
}

// tailLimit bounds what is kept of a step's output for its error, in bytes.
const tailLimit = 32 << 10

func (x *builder) say(line string, stderr bool) {
	if x.tail = append(x.tail, line+"\n"...); len(x.tail) > 2*tailLimit {
		x.tail = slices.Clone(x.tail[len(x.tail)-tailLimit:])
	}
	x.opts.OnLog(daytona.BuildLog{Step: x.current.n, Name: x.current.name, Line: line, Stderr: stderr})
}

// failed is the error of a step.
func (x *builder) failed(s step, code int, err error) error {
	tail := x.tail[max(0, len(x.tail)-tailLimit):]
	x.finish(s, false, err)
	return &daytona.BuildError{Step: s.n, Name: s.name, Line: s.node.StartLine, ExitCode: code, Log: tail, Err: err}
}

// stepLine is how the classic builder tells of the beginning of an instruction.
var stepLine = regexp.MustCompile(`^Step (\d+)/\d+ : `)

// byEngine has the engine's classic builder do some instructions.
func (x *builder) byEngine(ctx context.Context, id string, batch []step, args map[string]string) (string, error) {
	var text strings.Builder
	if x.escape != '\\' {
		fmt.Fprintf(&text, "# escape=%c\n", x.escape)
	}
	fmt.Fprintf(&text, "FROM %s\n", cmp.Or(id, "scratch"))
	before := 1
	values := map[string]*string{}
	for _, name := range slices.Sorted(maps.Keys(args)) {
		fmt.Fprintf(&text, "ARG %s\n", name)
		values[name] = new(args[name])
		before++
	}
	withContext := false
	for _, s := range batch {
		line := s.node.Original
		if s.word == "COPY" || s.word == "ADD" {
			from := ""
			for _, f := range s.node.Flags {
				if v, ok := strings.CutPrefix(f, "--from="); ok {
					from = v
				}
			}
			if from == "" {
				withContext = true
			} else {
				src, ok := x.stages[strings.ToLower(from)]
				if !ok {
					var err error
					if src, err = x.base(ctx, &parser.Node{StartLine: s.node.StartLine}, from); err != nil {
						return "", err
					}
				}
				if src == "" {
					return "", invalidAt(s.node.StartLine, from, "there are no files in it")
				}
				given := line
				if line = strings.Replace(line, "--from="+from, "--from="+src, 1); line == given && from != src {
					return "", unsupportedAt(s.node, "--from="+from, "write it without quotes")
				}
			}
		}
		text.WriteString(line + "\n")
	}
	pr, pw := io.Pipe()
	defer pr.Close()
	go func() { pw.CloseWithError(writeContext(pw, x.img.Contexts(), text.String(), withContext)) }()
	resp, err := x.b.api.ImageBuild(ctx, pr, client.ImageBuildOptions{
		Version: build.BuilderV1, Dockerfile: dockerfileName, Remove: true, ForceRemove: true, NoCache: x.opts.NoCache,
		NetworkMode: "none", BuildArgs: values,
	})
	if err != nil {
		return "", x.engineFailed(batch, -1, err)
	}
	defer resp.Body.Close()
	at, hit := -1, false
	done := func() {
		if at >= 0 && at < len(batch) {
			x.cached = x.cached && hit
			x.finish(batch[at], hit, nil)
		}
	}
	made := ""
	for d := json.NewDecoder(resp.Body); ; {
		var m jsonstream.Message
		if err := d.Decode(&m); err == io.EOF {
			break
		} else if err != nil {
			return "", x.engineFailed(batch, at, err)
		}
		if m.Error != nil {
			return "", x.engineFailed(batch, at, m.Error)
		}
		if m.Aux != nil {
			var r build.Result
			if json.Unmarshal(*m.Aux, &r) == nil && r.ID != "" {
				made = r.ID
			}
		}
		for line := range strings.Lines(m.Stream) {
			line = strings.TrimRight(line, "\n")
			if found := stepLine.FindStringSubmatch(line); found != nil {
				n, _ := strconv.Atoi(found[1])
				if i := n - before - 1; i >= 0 && i < len(batch) {
					done()
					at, hit = i, false
					x.begin(batch[at])
				}
				continue
			}
			switch {
			case strings.Contains(line, "---> Using cache"):
				hit = true
			case line == "", strings.HasPrefix(line, " ---> "), strings.HasPrefix(line, "Successfully "), strings.HasPrefix(line, "Removing intermediate"), at < 0:
			default:
				x.say(line, false)
			}
		}
	}
	done()
	if made == "" {
		return "", errors.New("the engine does not say what it has built")
	}
	// So that it is found, and goes, as imported images do.
	uncut, cancel := uncut(ctx)
	defer cancel()
	_, err = x.b.api.ImageTag(uncut, client.ImageTagOptions{Source: made, Target: importName + ":step-" + strings.TrimPrefix(made, "sha256:")})
	return made, err
}

func (x *builder) engineFailed(batch []step, at int, err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || lost(err) {
		return err
	}
	if at < 0 {
		at = 0
		x.begin(batch[0])
	}
	return x.failed(batch[at], 0, err)
}

// run does a RUN step.
func (x *builder) run(ctx context.Context, id string, s step, args map[string]string) (_ string, err error) {
	b := x.b
	x.begin(s)
	if id == "" {
		return "", x.failed(s, 0, errors.New("there is nothing to run in: the stage is from scratch and has no files"))
	}
	config, err := x.config(ctx, id)
	if err != nil {
		return "", err
	}
	var argv []string
	if s.node.Attributes["json"] {
		for a := s.node.Next; a != nil; a = a.Next {
			argv = append(argv, a.Value)
		}
	} else {
		argv = append(slices.Clone(config.Shell), s.node.Next.Value)
		if len(config.Shell) == 0 {
			argv = []string{"/bin/sh", "-c", s.node.Next.Value}
		}
	}
	env := maps.Clone(args)
	for _, kv := range config.Env { // ENV is stronger than ARG
		k, _, _ := strings.Cut(kv, "=")
		delete(env, k)
	}
	key, err := json.Marshal([]any{id, argv, env})
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(key)
	tag := importName + ":run-" + hex.EncodeToString(sum[:])
	if !x.opts.NoCache {
		if found, err := b.api.ImageInspect(ctx, tag); err == nil {
			_, _ = b.api.ImageTag(ctx, client.ImageTagOptions{Source: tag, Target: tag}) // used: see collect
			x.finish(s, true, nil)
			return found.ID, nil
		}
	}
	x.cached = false
	spec := daytona.Spec{Env: env, Network: x.opts.Network, Resources: x.opts.Resources}
	if err := spec.Validate(); err != nil {
		return "", x.failed(s, 0, err)
	}
	if err := b.admit(&spec); err != nil {
		return "", err
	}
	r := b.NewRecord(spec)
	r.Own = own{Image: id, Build: config, Config: image.Config{Env: config.Env}}
	r.User, r.WorkDir = cmp.Or(config.User, "root"), cmp.Or(config.WorkingDir, "/")
	if err := b.Make(ctx, r, lifecycle.PhaseWarm, func(context.Context) error { return nil }); err != nil {
		return "", err
	}
	defer func() {
		r, unlock, lerr := b.Locked(r.ID, true)
		if lerr != nil {
			return
		}
		defer unlock()
		if rerr := b.Remove(r); rerr != nil {
			b.log.Warn("the sandbox of a build step could not be removed; it will be tried again", "sandbox", r.ID, "err", rerr)
		}
	}()
	stepCtx := ctx
	if x.opts.StepTimeout > 0 {
		var cancel context.CancelFunc
		stepCtx, cancel = context.WithTimeoutCause(ctx, x.opts.StepTimeout, &daytona.Error{Kind: daytona.KindTimeout, Op: buildOp, Field: "StepTimeout", Value: x.opts.StepTimeout, Message: "the step took longer"})
		defer cancel()
	}
	toolbox := b.Connect(r.ID)
	defer toolbox.Close()
	out, errs := x.lines()
	cmd := toolbox.Process().Command(stepCtx, argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = out, errs
	err = cmd.Run()
	out.end()
	errs.end()
	if err != nil {
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		if stepCtx.Err() != nil {
			return "", x.failed(s, 0, context.Cause(stepCtx))
		}
		code := 0
		if e, ok := errors.AsType[*daytona.ExitError](err); ok {
			code = e.ExitCode
		}
		return "", x.failed(s, code, err)
	}
	uncut, cancel := uncutFor(ctx, commitTimeout)
	defer cancel()
	if err := b.kill(uncut, r.ID); err != nil {
		return "", err
	}
	labels := maps.Clone(config.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	labels[sandboxLabel] = ""
	made, err := b.api.ContainerCommit(uncut, b.containerName(r.ID), client.ContainerCommitOptions{Reference: tag, Comment: s.node.Original, Config: asImage(config, labels)})
	if err != nil {
		return "", err
	}
	x.finish(s, false, nil)
	return made.ID, nil
}

// asImage is an image's configuration as the engine takes it for a commit. What
// is missing in it the engine takes from the container.
func asImage(c *dockerspec.DockerOCIImageConfig, labels map[string]string) *container.Config {
	config := &container.Config{User: c.User, Env: c.Env, Cmd: c.Cmd, Entrypoint: c.Entrypoint, WorkingDir: c.WorkingDir,
		Labels: labels, StopSignal: c.StopSignal, Volumes: c.Volumes, Shell: c.Shell, OnBuild: c.OnBuild}
	if config.Entrypoint == nil {
		config.Entrypoint = []string{}
	}
	if config.Cmd == nil {
		config.Cmd = []string{}
	}
	for p := range c.ExposedPorts {
		if port, err := apinetwork.ParsePort(p); err == nil {
			if config.ExposedPorts == nil {
				config.ExposedPorts = apinetwork.PortSet{}
			}
			config.ExposedPorts[port] = struct{}{}
		}
	}
	if h := c.Healthcheck; h != nil {
		config.Healthcheck = (*container.HealthConfig)(h)
	}
	return config
}

// lines are writers for the two outputs of a step.
func (x *builder) lines() (out, errs *lineWriter) {
	lock := make(chan struct{}, 1)
	return &lineWriter{x: x, lock: lock}, &lineWriter{x: x, lock: lock, stderr: true}
}

// lineWriter tells of each line that is written to it; very long ones in pieces.
type lineWriter struct {
	x      *builder
	lock   chan struct{}
	stderr bool
	rest   []byte
}

func (w *lineWriter) Write(p []byte) (int, error) {
	w.lock <- struct{}{}
	defer func() { <-w.lock }()
	w.rest = append(w.rest, p...)
	for {
		i := slices.Index(w.rest, '\n')
		if i < 0 && len(w.rest) < 64<<10 {
			return len(p), nil
		}
		line := w.rest
		if i >= 0 {
			line, w.rest = w.rest[:i], w.rest[i+1:]
		} else {
			w.rest = nil
		}
		w.x.say(strings.TrimSuffix(string(line), "\r"), w.stderr)
	}
}

func (w *lineWriter) end() {
	w.lock <- struct{}{}
	defer func() { <-w.lock }()
	if len(w.rest) > 0 {
		w.x.say(string(w.rest), w.stderr)
		w.rest = nil
	}
}

// commitTimeout bounds the making of an image, or the loading of one.
const commitTimeout = time.Hour

// uncutFor is uncut for what takes long.
func uncutFor(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), d)
}
