package daytona

import (
	"cmp"
	"context"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/moby/patternmatcher"
)

// Images are named by strings in [Spec.Image]; package image describes the
// forms every backend takes:
//
//	debian:12                   a registry reference, pulled when missing
//	oci:/path/to/layout:tag     an OCI layout directory
//	docker-archive:/image.tar   the output of "docker save"
//	dir:/path                   a root filesystem, used read-only in place
//	tar:/rootfs.tar.gz          a root filesystem in a tarball
//
// ImageHost is one more, of backends that run on this machine.

// ImageHost names the machine's own /usr, read-only, beneath a private and
// fresh root: nothing to download, every tool of the host at hand, none of
// its data. It is the default image of the local backend.
const ImageHost = "host"

// Image is the description of an image to build: a Dockerfile and the files that
// it copies. Its methods return a new Image and leave the one they are called on
// as it is, so that one can be the base of several.
//
//	img := daytona.DebianSlim("3.12").
//		PipInstall("requests").
//		AddLocalFile("app.py", "/app/app.py").
//		WorkDir("/app")
//	sb, err := client.Create(ctx, daytona.Spec{Build: img})
//
// What is wrong with an argument, such as a local file that is not there, is
// kept and returned by Err, and by whoever builds the image. Arguments are data:
// none can end its instruction and begin another. Texts of Dockerfiles and of
// shell commands are what they are, in the methods that say that they take them.
type Image struct {
	dockerfile string
	contexts   []BuildContext
	open       bool // dockerfile ends inside of an instruction
	err        error
}

// BuildContext is a file or directory that a Dockerfile copies from.
type BuildContext struct {
	// Source is its path on this machine, when Files is nil.
	Source string
	// Files, if not nil, is the directory itself: for contexts that are not
	// files of this machine.
	Files fs.FS
	// Path is its place in the build context, relative and clean; "." is the
	// whole context.
	Path string
	// ArchivePath is Path as it was spelled by the caller, such as "./app.py" or
	// "/srv/app.py": the SDKs compute their hash over it. Defaults to Path, and to
	// "" for ".".
	ArchivePath string
	// Exclude are patterns of what is left out, as in a .dockerignore: of names
	// in the whole context, which begin with Path. Defaults to none.
	Exclude []string
}

// NewImage is the image of a Dockerfile's text. Its COPY and ADD find what is in
// contexts and nothing else. Defaults to no context.
func NewImage(dockerfile string, contexts ...BuildContext) *Image {
	m := &Image{dockerfile: dockerfile, contexts: slices.Clone(contexts)}
	if strings.TrimSpace(dockerfile) == "" {
		m.err = invalid(buildOp, "Dockerfile", dockerfile, "must not be empty")
	}
	_, m.open = parseDockerfile(dockerfile, dockerfileEscape(dockerfile))
	for _, c := range contexts {
		if !fs.ValidPath(c.Path) {
			m.err = cmp.Or(m.err, invalid(buildOp, "Contexts", c.Path, `must be relative and clean, without ".."`))
		}
		if (c.Source == "") == (c.Files == nil) {
			m.err = cmp.Or(m.err, invalid(buildOp, "Contexts", c.Source, "must have either Source or Files"))
		}
		if _, err := patternmatcher.New(c.Exclude); err != nil {
			m.err = cmp.Or(m.err, invalid(buildOp, "Contexts", c.Exclude, err.Error()))
		}
	}
	return m
}

// Dockerfile returns the text.
func (m *Image) Dockerfile() string { return m.dockerfile }

// Contexts returns what the Dockerfile copies from.
func (m *Image) Contexts() []BuildContext { return slices.Clone(m.contexts) }

// Err returns the first thing that was wrong with an argument, as an [*Error] of
// KindInvalid, or of KindNotFound for a local file that is not there.
func (m *Image) Err() error { return m.err }

// BuildOptions are what an [Image] does not say.
type BuildOptions struct {
	// Args are the values of ARG instructions. Defaults to none.
	Args map[string]string
	// Target is the stage to build. Defaults to the last.
	Target string
	// Secrets are what RUN --mount=type=secret shows, by id. They are in no
	// layer and in no log. Defaults to none.
	Secrets map[string][]byte
	// Platform is such as "linux/arm64". Defaults to that of the machine.
	Platform string
	// Bases are images of the caller's choice, by the names that FROM and --from
	// have for them: references as in [Spec.Image], also those of files of this
	// machine, which a Dockerfile itself cannot name. Defaults to none.
	Bases map[string]string
	// NoCache builds every step anew. Defaults to false.
	NoCache bool
	// Pull asks registries for newer base images. Defaults to false: what is
	// there already is used.
	Pull bool
	// Network is what RUN steps may reach. Defaults to what sandboxes may.
	Network NetworkPolicy
	// Resources limit RUN steps, each. Defaults to the backend's defaults.
	Resources Resources
	// StepTimeout ends a RUN step that takes longer. Defaults to 0: no limit but
	// that of the context.
	StepTimeout time.Duration
	// OnLog, if set, is told what the build says. It must not block. Defaults to
	// nil.
	OnLog func(BuildLog)
}

// BuildLog is a line of a build's output, or the beginning or end of a step.
type BuildLog struct {
	// Step counts the Dockerfile's steps from 1; 0 is what belongs to none.
	Step int
	// Name is the step's instruction, such as "[2/3] RUN make".
	Name string
	// Line is a line of output, without its end; "" for the beginning and end
	// of a step.
	Line string
	// Stderr says that Line was written to standard error.
	Stderr bool
	// Cached says that the step was not done but found. Done says that it ended,
	// and Error why if it failed.
	Cached, Done bool
	Error        string
}

// BuiltImage is the result of a build.
type BuiltImage struct {
	// Ref is what [Spec.Image] takes.
	Ref string `json:"ref"`
	// Digest of the image, "sha256:…".
	Digest string `json:"digest"`
	// SizeBytes of its layers, unpacked.
	SizeBytes int64 `json:"sizeBytes"`
	// Cached says that nothing had to be done.
	Cached bool `json:"cached"`
}

// ImageBuilder builds images from Dockerfiles.
type ImageBuilder interface {
	// BuildImage builds an image whose Err is nil. RUN steps must be as isolated
	// as sandboxes are. What of a Dockerfile the backend cannot do must be
	// refused with KindUnsupported naming the line. A step that fails must give
	// a [*BuildError]. On error there must be no image.
	BuildImage(ctx context.Context, img *Image, opts BuildOptions) (BuiltImage, error)
}

const buildOp = "build image"
