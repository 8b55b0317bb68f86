package daytona

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/BurntSushi/toml"
	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
)

// maxDescription is the greatest size in bytes of a Dockerfile, a .dockerignore
// and a pyproject.toml.
const maxDescription = 1 << 20

// pythons are the versions of Python that DebianSlim knows, as the SDKs do.
func pythons() map[string]string {
	return map[string]string{"3.9": "3.9.22", "3.10": "3.10.17", "3.11": "3.11.12", "3.12": "3.12.10", "3.13": "3.13.3"}
}

// Base is an image as it is: "FROM ref".
func Base(ref string) *Image {
	m := &Image{}
	if err := plainText("Base", ref); err != nil {
		return m.fail(err)
	}
	if ref == "" || strings.HasPrefix(ref, "-") || strings.ContainsFunc(ref, scriptSpace) || strings.HasSuffix(ref, `\`) {
		return m.fail(invalid(buildOp, "Base", ref, "must be an image's reference"))
	}
	return m.add("FROM " + ref)
}

// DebianSlim is Debian with Python and compilers. python is "3.9" to "3.13";
// "" is "3.13".
func DebianSlim(python string) *Image {
	if python == "" {
		python = "3.13"
	}
	version, ok := pythons()[python]
	if !ok {
		return (&Image{}).fail(invalid(buildOp, "DebianSlim", python, "must be one of 3.9, 3.10, 3.11, 3.12 and 3.13"))
	}
	return (&Image{}).add(
		"FROM python:"+version+"-slim-bookworm",
		"RUN apt-get update",
		"RUN apt-get install -y gcc gfortran build-essential",
		"RUN pip install --upgrade pip",
		"RUN echo 'debconf debconf/frontend select Noninteractive' | debconf-set-selections",
	)
}

// FromDockerfile is the image of a Dockerfile, at most 1 MiB long. What it
// copies is looked for in its directory, and nowhere else: as for Docker, "/"
// and ".." do not lead out of it. A .dockerignore beside it is minded.
//
// Sources with wildcards are looked up now. One with a variable makes the
// directory before it a context as a whole.
func FromDockerfile(name string) *Image {
	m := &Image{}
	name, err := localPath("FromDockerfile", name, false)
	if err != nil {
		return m.fail(err)
	}
	text, err := readDescription("FromDockerfile", name)
	if err != nil {
		return m.fail(err)
	}
	m = NewImage(text)
	if m.err != nil {
		return m
	}
	exclude, err := dockerignore(name)
	if err != nil {
		return m.fail(err)
	}
	escape := dockerfileEscape(text)
	list, _ := parseDockerfile(text, escape)
	contexts, err := findSources("FromDockerfile", copySources(list, escape), filepath.Dir(name), "", exclude)
	if err != nil {
		return m.fail(err)
	}
	return m.with(contexts...)
}

// PipOptions are how pip installs. The zero PipOptions are pip's defaults.
type PipOptions struct {
	// FindLinks are places to look for archives, besides indexes.
	FindLinks []string
	// IndexURL is the package index in place of PyPI.
	IndexURL string
	// ExtraIndexURLs are indexes besides that.
	ExtraIndexURLs []string
	// Pre installs pre-releases too. Defaults to false.
	Pre bool
	// ExtraOptions is the rest of the command line, as a shell reads it.
	ExtraOptions string
}

// args are the options as text, with a blank before each.
func (o PipOptions) args(method string, escape byte) (string, error) {
	var b strings.Builder
	flag := func(name, value string) error {
		if err := plainText(method, value); err != nil {
			return err
		}
		b.WriteString(" --" + name + " " + runWord(value, escape))
		return nil
	}
	for _, l := range o.FindLinks {
		if err := flag("find-links", l); err != nil {
			return "", err
		}
	}
	if o.IndexURL != "" {
		if err := flag("index-url", o.IndexURL); err != nil {
			return "", err
		}
	}
	for _, u := range o.ExtraIndexURLs {
		if err := flag("extra-index-url", u); err != nil {
			return "", err
		}
	}
	if o.Pre {
		b.WriteString(" --pre")
	}
	if o.ExtraOptions != "" {
		if err := plainText(method, o.ExtraOptions); err != nil {
			return "", err
		}
		b.WriteString(" " + strings.TrimSpace(o.ExtraOptions))
	}
	return b.String(), nil
}

// PipInstall installs Python packages, such as "requests" or "numpy>=2". No
// package at all is nothing to do.
func (m *Image) PipInstall(packages ...string) *Image {
	return m.PipInstallWith(PipOptions{}, packages...)
}

// PipInstallWith is PipInstall with options.
func (m *Image) PipInstallWith(opts PipOptions, packages ...string) *Image {
	return m.pip("PipInstall", opts, packages)
}

func (m *Image) pip(method string, opts PipOptions, packages []string) *Image {
	if len(packages) == 0 {
		return m
	}
	words, err := m.packages(method, packages)
	if err != nil {
		return m.fail(err)
	}
	args, err := opts.args(method, m.escape())
	if err != nil {
		return m.fail(err)
	}
	return m.add("RUN python -m pip install " + words + args)
}

// PipInstallRequirements installs what a local requirements.txt lists.
func (m *Image) PipInstallRequirements(file string, opts PipOptions) *Image {
	args, err := opts.args("PipInstallRequirements", m.escape())
	if err != nil {
		return m.fail(err)
	}
	n := m.copyIn("PipInstallRequirements", file, "/.requirements.txt", false)
	if n.err != nil {
		return n
	}
	return n.add("RUN python -m pip install -r /.requirements.txt" + args)
}

// PipInstallPyproject installs the dependencies of a local pyproject.toml, at
// most 1 MiB long, and those of its optional groups that are named.
func (m *Image) PipInstallPyproject(file string, opts PipOptions, groups ...string) *Image {
	const method = "PipInstallPyproject"
	name, err := localPath(method, file, false)
	if err != nil {
		return m.fail(err)
	}
	text, err := readDescription(method, name)
	if err != nil {
		return m.fail(err)
	}
	var doc struct {
		Project struct {
			Dependencies []string            `toml:"dependencies"`
			Optional     map[string][]string `toml:"optional-dependencies"`
		} `toml:"project"`
	}
	meta, err := toml.Decode(text, &doc)
	if err != nil {
		return m.fail(&Error{Kind: KindInvalid, Op: buildOp, Field: method, Value: file, Message: "is not a pyproject.toml", Err: err})
	}
	if !meta.IsDefined("project", "dependencies") {
		return m.fail(invalid(buildOp, method, file, "has no dependencies in its table [project]"))
	}
	packages := slices.Clone(doc.Project.Dependencies)
	for _, g := range groups {
		more, ok := doc.Project.Optional[g]
		if !ok {
			return m.fail(invalid(buildOp, method, g, "is not among the optional dependencies of "+file))
		}
		packages = append(packages, more...)
	}
	return m.pip(method, opts, packages)
}

// AptInstall installs Debian packages, such as "git" or "curl=8.*", without what
// they merely recommend. It leaves no package lists behind.
func (m *Image) AptInstall(packages ...string) *Image {
	if len(packages) == 0 {
		return m
	}
	words, err := m.packages("AptInstall", packages)
	if err != nil {
		return m.fail(err)
	}
	return m.add("RUN apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends " + words + " && rm -rf /var/lib/apt/lists/*")
}

// NpmInstall installs Node packages for everybody, such as "typescript" or
// "@scope/name@2". The image must have npm.
func (m *Image) NpmInstall(packages ...string) *Image {
	if len(packages) == 0 {
		return m
	}
	words, err := m.packages("NpmInstall", packages)
	if err != nil {
		return m.fail(err)
	}
	return m.add("RUN npm install -g " + words)
}

// packages are names of packages, sorted and quoted for a shell.
func (m *Image) packages(method string, names []string) (string, error) {
	names = slices.Sorted(slices.Values(names))
	for i, n := range names {
		if err := plainText(method, n); err != nil {
			return "", err
		}
		if n == "" || n[0] == '-' {
			return "", invalid(buildOp, method, n, "must be a package, not an option")
		}
		names[i] = runWord(n, m.escape())
	}
	return strings.Join(names, " "), nil
}

// AddLocalFile copies a file of this machine. A remote that ends with "/" is the
// directory that it goes to. A leading "~/" of local is the home directory.
func (m *Image) AddLocalFile(local, remote string) *Image {
	if strings.HasSuffix(remote, "/") {
		remote += path.Base(filepath.ToSlash(local))
	}
	return m.copyIn("AddLocalFile", local, remote, false)
}

// AddLocalDir copies what is in a directory of this machine into remote, which
// is made if it is missing. A leading "~/" of local is the home directory.
func (m *Image) AddLocalDir(local, remote string) *Image {
	return m.copyIn("AddLocalDir", local, remote, true)
}

func (m *Image) copyIn(method, local, remote string, dir bool) *Image {
	for _, s := range []string{local, remote} {
		if err := plainText(method, s); err != nil {
			return m.fail(err)
		}
	}
	if remote == "" {
		return m.fail(invalid(buildOp, method, remote, "must say where to in the image"))
	}
	name, err := localPath(method, local, dir)
	if err != nil {
		return m.fail(err)
	}
	source, err := filepath.Abs(name)
	if err != nil {
		return m.fail(invalid(buildOp, method, local, err.Error()))
	}
	name = filepath.ToSlash(name)
	if strings.Contains(name, `\`) {
		return m.fail(invalid(buildOp, method, local, "must not contain a backslash, which a Dockerfile takes for an escape"))
	}
	at := contextPath(name)
	if at == "." && !dir {
		return m.fail(invalid(buildOp, method, local, "must be a file"))
	}
	n := m.add("COPY " + copyArgs(name, remote, m.escape()))
	return n.with(BuildContext{Source: source, Path: at, ArchivePath: name})
}

// RunCommands runs commands of the image's shell, one RUN each. Each is a text
// for the shell, verbatim; it may have several lines if it is a single
// instruction: with "\" before a line's end, or as a heredoc.
func (m *Image) RunCommands(commands ...string) *Image {
	for _, c := range commands {
		if err := validText("RunCommands", c); err != nil {
			return m.fail(err)
		}
		list, open := parseDockerfile("RUN "+c, m.escape())
		if len(list) != 1 || open || strings.TrimSpace(c) == "" {
			return m.fail(invalid(buildOp, "RunCommands", c, "must be one whole instruction"))
		}
		m = m.add("RUN " + c)
	}
	return m
}

// RunWords runs one program with arguments, each of them a word: no shell
// expands anything in them.
func (m *Image) RunWords(words ...string) *Image {
	if len(words) == 0 || words[0] == "" {
		return m.fail(invalid(buildOp, "RunWords", strings.Join(words, " "), "must name a program"))
	}
	quoted := make([]string, len(words))
	plain := true
	for i, w := range words {
		if err := validText("RunWords", w); err != nil {
			return m.fail(err)
		}
		// In these a shell or a line would see more than the word.
		plain = plain && !strings.ContainsAny(w, "\"'$`\\\r\n")
		quoted[i] = `"` + w + `"`
	}
	if !plain {
		return m.add("RUN " + jsonWords(words))
	}
	return m.add("RUN " + strings.Join(quoted, " "))
}

// Env sets environment variables, in the order of their names. Values are taken
// as they are: nothing in them is expanded. They must not have line breaks,
// which a Dockerfile cannot say.
func (m *Image) Env(env map[string]string) *Image {
	if err := ValidateEnv(buildOp, "Env", env); err != nil {
		return m.fail(err)
	}
	for _, k := range slices.Sorted(maps.Keys(env)) {
		if err := plainText("Env["+k+"]", env[k]); err != nil {
			return m.fail(err)
		}
		m = m.add("ENV " + k + "=" + valueWord(env[k], m.escape()))
	}
	return m
}

// WorkDir sets the directory that later steps and programs start in.
func (m *Image) WorkDir(dir string) *Image { return m.value("WorkDir", "WORKDIR", dir) }

// User sets who later steps and programs run as: a name, "uid" or "uid:gid".
func (m *Image) User(user string) *Image { return m.value("User", "USER", user) }

func (m *Image) value(method, instruction, value string) *Image {
	if err := plainText(method, value); err != nil {
		return m.fail(err)
	}
	if value == "" {
		return m.fail(invalid(buildOp, method, value, "must not be empty"))
	}
	return m.add(instruction + " " + valueWord(value, m.escape()))
}

// Entrypoint sets the program of the image; no words remove it.
func (m *Image) Entrypoint(words ...string) *Image { return m.words("Entrypoint", "ENTRYPOINT", words) }

// Cmd sets the entrypoint's arguments, or the program where the image has none;
// no words remove them.
func (m *Image) Cmd(words ...string) *Image { return m.words("Cmd", "CMD", words) }

func (m *Image) words(method, instruction string, words []string) *Image {
	for _, w := range words {
		if err := validText(method, w); err != nil {
			return m.fail(err)
		}
	}
	return m.add(instruction + " " + jsonWords(words))
}

// DockerfileCommands adds lines of a Dockerfile, verbatim: whole instructions,
// which may be of a new stage. What they copy is looked for in contextDir, as
// FromDockerfile does in the Dockerfile's; contextDir defaults to "", the
// current directory.
func (m *Image) DockerfileCommands(lines []string, contextDir string) *Image {
	const method = "DockerfileCommands"
	text := strings.Join(lines, "\n")
	if err := validText(method, text); err != nil {
		return m.fail(err)
	}
	dir, whole := contextDir, ""
	if dir == "" {
		dir, whole = ".", "." // what the SDKs call the whole of it
	}
	dir, err := localPath(method, dir, true)
	if err != nil {
		return m.fail(err)
	}
	escape := m.escape()
	if m.dockerfile == "" {
		escape = dockerfileEscape(text)
	}
	list, open := parseDockerfile(text, escape)
	if open {
		return m.fail(invalid(buildOp, method, lines[len(lines)-1], "ends inside of an instruction"))
	}
	exclude, err := dockerignore(filepath.Join(dir, "Dockerfile"))
	if err != nil {
		return m.fail(err)
	}
	contexts, err := findSources(method, copySources(list, escape), dir, whole, exclude)
	if err != nil {
		return m.fail(err)
	}
	return m.add(text).with(contexts...)
}

func (m *Image) escape() byte { return dockerfileEscape(m.dockerfile) }

// fail is m with an error, unless it has one.
func (m *Image) fail(err error) *Image {
	if m.err != nil {
		return m
	}
	n := *m
	n.err = err
	return &n
}

// add is m with more lines.
func (m *Image) add(lines ...string) *Image {
	if m.err != nil {
		return m
	}
	if m.open {
		return m.fail(invalid(buildOp, "Dockerfile", m.dockerfile, "ends inside of an instruction: nothing can be added"))
	}
	n := *m
	if n.dockerfile != "" && !strings.HasSuffix(n.dockerfile, "\n") {
		n.dockerfile += "\n"
	}
	n.dockerfile += strings.Join(lines, "\n") + "\n"
	return &n
}

// with is m with more contexts.
func (m *Image) with(contexts ...BuildContext) *Image {
	if m.err != nil || len(contexts) == 0 {
		return m
	}
	n := *m
	n.contexts = slices.Concat(m.contexts, contexts)
	sources := make(map[string]string, len(n.contexts))
	for _, c := range n.contexts {
		if source, taken := sources[c.Path]; taken && source != c.Source {
			return m.fail(invalid(buildOp, "Contexts", c.Source, "has the same place in the build context as "+source+": "+c.Path))
		}
		sources[c.Path] = c.Source
	}
	return &n
}

// plainText refuses what cannot be a part of a line of a Dockerfile.
func plainText(method, value string) error {
	if strings.ContainsAny(value, "\r\n") {
		return invalid(buildOp, method, value, "must not contain a line break")
	}
	return validText(method, value)
}

// validText refuses what cannot be in a Dockerfile.
func validText(method, value string) error {
	if strings.ContainsRune(value, 0) || !utf8.ValidString(value) {
		return invalid(buildOp, method, value, "must be UTF-8 without NUL")
	}
	return nil
}

// contextPath is the place in the build context that a source of COPY names:
// "/" is the context's root, and ".." does not lead out of it.
func contextPath(source string) string {
	if p := path.Clean("/" + source); p != "/" {
		return p[1:]
	}
	return "."
}

// localPath checks that a file or directory of this machine is there, and
// replaces the "~" of a leading "~/".
func localPath(method, name string, dir bool) (string, error) {
	if err := plainText(method, name); err != nil {
		return "", err
	}
	p := name
	if rest, ok := strings.CutPrefix(p, "~"); ok && (rest == "" || rest[0] == '/') {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", invalid(buildOp, method, name, err.Error())
		}
		p = filepath.Join(home, rest)
	}
	info, err := os.Stat(p)
	switch {
	case err != nil:
		return "", localError(method, name, err)
	case dir && !info.IsDir():
		return "", invalid(buildOp, method, name, "is not a directory")
	case !dir && !info.Mode().IsRegular():
		return "", invalid(buildOp, method, name, "is not a regular file")
	}
	return p, nil
}

// localError is what went wrong with a file of this machine.
func localError(method, name string, err error) error {
	e := &Error{Kind: KindInvalid, Op: buildOp, Field: method, Value: name, Err: err}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		e.Kind = KindNotFound
	case errors.Is(err, fs.ErrPermission):
		e.Kind = KindForbidden
	}
	return e
}

// readDescription reads a small text file.
func readDescription(method, name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", localError(method, name, err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxDescription+1))
	if err != nil {
		return "", localError(method, name, err)
	}
	if len(data) > maxDescription {
		return "", invalid(buildOp, method, name, fmt.Sprintf("must not be longer than %d bytes", maxDescription))
	}
	return string(data), validText(method, string(data))
}

// dockerignore reads the patterns that go with a Dockerfile: those of its own
// file, or those of its directory.
func dockerignore(dockerfile string) ([]string, error) {
	for _, name := range []string{dockerfile + ".dockerignore", filepath.Join(filepath.Dir(dockerfile), ".dockerignore")} {
		text, err := readDescription("dockerignore", name)
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		patterns, err := ignorefile.ReadAll(strings.NewReader(text))
		if err == nil {
			_, err = patternmatcher.New(patterns)
		}
		if err != nil {
			return nil, invalid(buildOp, "dockerignore", name, err.Error())
		}
		return patterns, nil
	}
	return nil, nil
}

// findSources makes contexts of what a Dockerfile copies from dir. whole is the
// archive path of all of it.
func findSources(method string, sources []copySource, dir, whole string, exclude []string) ([]BuildContext, error) {
	if len(sources) == 0 {
		return nil, nil
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, localError(method, dir, err)
	}
	// Beneath it, whatever the links in it say: the files may be a stranger's.
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, localError(method, dir, err)
	}
	defer root.Close()
	ignored, err := patternmatcher.New(exclude)
	if err != nil {
		return nil, invalid(buildOp, "dockerignore", dir, err.Error())
	}
	var found []BuildContext
	for _, s := range sources {
		p := contextPath(s.pattern)
		matches := []string{p}
		if strings.ContainsAny(p, "*?[") {
			if matches, err = fs.Glob(root.FS(), p); err != nil {
				return nil, invalid(buildOp, method, s.pattern, fmt.Sprintf("is not a pattern (line %d)", s.line))
			}
		}
		before := len(found)
		for _, at := range matches {
			info, err := root.Stat(filepath.FromSlash(at))
			switch {
			case err != nil && errors.Is(err, fs.ErrNotExist):
				continue
			case err != nil:
				return nil, &Error{Kind: KindInvalid, Op: buildOp, Field: method, Value: s.pattern, Message: fmt.Sprintf("cannot be copied from %s (line %d)", dir, s.line), Err: err}
			case !info.IsDir() && !info.Mode().IsRegular():
				return nil, invalid(buildOp, method, s.pattern, fmt.Sprintf("is neither a file nor a directory: %s (line %d)", at, s.line))
			}
			if at != "." {
				out, err := ignored.MatchesOrParentMatches(at)
				if err != nil {
					return nil, invalid(buildOp, "dockerignore", at, err.Error())
				}
				if out && (!info.IsDir() || !ignored.Exclusions()) {
					continue
				}
			}
			c := BuildContext{Source: filepath.Join(dir, filepath.FromSlash(at)), Path: at, ArchivePath: at, Exclude: exclude}
			switch {
			case at == ".":
				c.ArchivePath = whole
			case strings.HasSuffix(s.pattern, "/") && len(matches) == 1 && matches[0] == p:
				c.ArchivePath += "/" // as the SDKs have it
			}
			found = append(found, c)
		}
		if len(found) == before {
			return nil, &Error{Kind: KindNotFound, Op: buildOp, Field: method, Value: s.pattern,
				Message: fmt.Sprintf("is not in %s, or excluded by .dockerignore (line %d)", dir, s.line)}
		}
	}
	return found, nil
}
