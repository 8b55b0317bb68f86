package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/daytona-go/daytona"
)

func (a *app) imageCommand() *cobra.Command {
	return parent(&cobra.Command{
		Use:     "image",
		Aliases: []string{"images"},
		Short:   "Build images",
		Long: `Build images from Dockerfiles. "daytona run", "daytona sandbox create" and
"daytona snapshot create" build as well, with --dockerfile.`,
	}, a.imageBuildCommand())
}

// buildFlags are the flags that name an image to build.
type buildFlags struct {
	dockerfile string
	contexts   []string
}

func (f *buildFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVarP(&f.dockerfile, "dockerfile", "f", "", "build the image of this `file` first, unless it was built before")
	flags.StringArrayVarP(&f.contexts, "context", "c", nil, "with --dockerfile: a file or directory that it copies from, at the same relative `path`; may be repeated (default: the Dockerfile's directory)")
	must(cmd.MarkFlagFilename("dockerfile"))
}

// image reads the Dockerfile; it returns nil if there is none to be built.
func (f *buildFlags) image() (*daytona.Image, error) {
	if f.dockerfile == "" {
		if len(f.contexts) > 0 {
			return nil, errors.New("--context needs --dockerfile")
		}
		return nil, nil
	}
	text, err := os.ReadFile(f.dockerfile)
	if err != nil {
		return nil, fmt.Errorf("--dockerfile: %w", err)
	}
	var contexts []daytona.BuildContext
	for _, c := range f.contexts {
		if _, err := os.Stat(c); err != nil {
			return nil, fmt.Errorf("--context: %w", err)
		}
		// As with --upload: what lies below the current directory keeps its path.
		contexts = append(contexts, daytona.BuildContext{Source: c, Path: uploadTarget(c, "")})
	}
	if len(contexts) == 0 {
		contexts = []daytona.BuildContext{{Source: filepath.Dir(f.dockerfile), Path: "."}}
	}
	img := daytona.NewImage(string(text), contexts...)
	return img, flagNames(img.Err())
}

func (a *app) imageBuildCommand() *cobra.Command {
	var (
		build     buildFlags
		opts      daytona.BuildOptions
		args      []string
		secrets   []string
		resources daytona.Resources
	)
	cmd := &cobra.Command{
		Use:   "build",
		Short: "Build an image from a Dockerfile",
		Long: `Build an image from a Dockerfile and print its reference, which --image takes.
What the build says goes to standard error. RUN steps are as isolated as
sandboxes are.`,
		Example: `  daytona image build
  daytona image build -f deploy/Dockerfile -c src -c go.mod --build-arg VERSION=3
  daytona run --image "$(daytona image build)" -- ./app`,
		Args:              exactArgs(0, ""),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			img, err := build.image()
			if err != nil {
				return usageError(cmd, err)
			}
			if opts.Args, err = keyValues("--build-arg", args); err != nil {
				return usageError(cmd, err)
			}
			if opts.Secrets, err = readSecrets(secrets); err != nil {
				return usageError(cmd, err)
			}
			opts.Resources = resources
			if err := (daytona.Spec{Resources: opts.Resources, Network: opts.Network}).Validate(); err != nil {
				return usageError(cmd, flagNames(err))
			}
			if opts.StepTimeout < 0 {
				return usageError(cmd, fmt.Errorf("--step-timeout %v: must not be negative", opts.StepTimeout))
			}
			client, err := a.open(cmd.Context())
			if err != nil {
				return err
			}
			defer a.closeClient(client)
			built, err := a.buildImage(cmd.Context(), client, img, opts)
			if err != nil {
				return err
			}
			return a.emit(built, func(w io.Writer) error {
				_, err := fmt.Fprintln(w, printable(built.Ref))
				return err
			})
		},
	}
	build.register(cmd)
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.Lookup("dockerfile").DefValue, build.dockerfile = "Dockerfile", "Dockerfile"
	flags.Lookup("dockerfile").Usage = "the `file` to build"
	flags.StringArrayVar(&args, "build-arg", nil, "value of an ARG: `KEY=VALUE`")
	flags.StringVar(&opts.Target, "target", "", "build this `stage` (default: the last)")
	flags.StringArrayVar(&secrets, "secret", nil, "show RUN --mount=type=secret a file or variable: `id=ID,src=FILE` or id=ID,env=NAME")
	flags.StringVar(&opts.Platform, "platform", "", "build for this `platform`, such as linux/arm64 (default: this machine's)")
	flags.BoolVar(&opts.NoCache, "no-cache", false, "do every step anew")
	flags.BoolVar(&opts.Pull, "pull", false, "ask for newer base images")
	flags.Float64Var(&resources.CPU, "cpus", 0, "number of CPU `cores` of a RUN step (default: the backend's)")
	flags.Var((*sizeValue)(&resources.Memory), "memory", "memory limit of a RUN step (default: the backend's)")
	flags.Var((*networkValue)(&opts.Network), "net", "what RUN steps may reach: default (the public internet), none, or a list such as pypi.org")
	durationFlag(flags, &opts.StepTimeout, "step-timeout", "end a RUN step that takes longer than this `time`")
	for _, name := range []string{"build-arg", "target", "secret", "platform", "cpus", "memory"} {
		must(cmd.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions))
	}
	must(cmd.RegisterFlagCompletionFunc("net", cobra.FixedCompletions([]string{"default", "none"}, cobra.ShellCompDirectiveNoFileComp)))
	return cmd
}

// readSecrets reads what --secret names; the values are never on the command
// line, where other users of the machine see them.
func readSecrets(values []string) (map[string][]byte, error) {
	secrets := map[string][]byte{}
	for _, v := range values {
		var id, src, env string
		for part := range strings.SplitSeq(v, ",") {
			key, value, _ := strings.Cut(part, "=")
			switch key {
			case "id":
				id = value
			case "src", "source":
				src = value
			case "env":
				env = value
			default:
				return nil, fmt.Errorf("--secret %q: %q is not known; write id=ID,src=FILE or id=ID,env=NAME", v, key)
			}
		}
		if id == "" || (src == "") == (env == "") {
			return nil, fmt.Errorf("--secret %q: write id=ID,src=FILE or id=ID,env=NAME", v)
		}
		if env != "" {
			value, ok := os.LookupEnv(env)
			if !ok {
				return nil, fmt.Errorf("--secret %q: variable %q has no value here", v, env)
			}
			secrets[id] = []byte(value)
			continue
		}
		data, err := os.ReadFile(src)
		if err != nil {
			return nil, fmt.Errorf("--secret: %w", err)
		}
		secrets[id] = data
	}
	return secrets, nil
}

// buildImage builds an image and shows what the build says.
func (a *app) buildImage(ctx context.Context, client *daytona.Client, img *daytona.Image, opts daytona.BuildOptions) (daytona.BuiltImage, error) {
	log := &buildLog{w: a.Stderr}
	opts.OnLog = log.line
	started := time.Now()
	built, err := client.Build(ctx, img, opts)
	if e, ok := err.(*daytona.BuildError); ok && log.said() {
		// The end of its output has been seen already.
		short := *e
		short.Log = nil
		return built, &short
	}
	if err != nil {
		return built, flagNames(err)
	}
	a.note("built %s in %s", built.Ref, time.Since(started).Round(time.Millisecond))
	return built, nil
}

// buildLog writes what a build says, with the number of the step before each
// line.
type buildLog struct {
	w io.Writer

	mu sync.Mutex
	// begun are the steps that have begun: their empty lines are output.
	begun map[int]bool
	any   bool
}

func (b *buildLog) said() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.any
}

// line is a [daytona.BuildOptions.OnLog].
func (b *buildLog) line(l daytona.BuildLog) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.begun == nil {
		b.begun = map[int]bool{}
	}
	b.any = true
	say := func(text string) {
		if l.Step > 0 {
			text = fmt.Sprintf("#%d %s", l.Step, text)
		}
		fmt.Fprintln(b.w, printable(strings.TrimRight(text, " \t\r")))
	}
	if !b.begun[l.Step] && l.Name != "" {
		b.begun[l.Step] = true
		say(l.Name)
		if l.Line == "" && !l.Done {
			return
		}
	}
	switch {
	case l.Done && l.Error != "":
		say("FAILED: " + l.Error)
	case l.Done && l.Cached:
		say("CACHED")
	case l.Done:
		say("DONE")
	default:
		say(l.Line)
	}
}
