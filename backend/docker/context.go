//go:build linux

package docker

import (
	"archive/tar"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"

	"github.com/daytona-go/daytona"
)

// dockerfileName is what the Dockerfile is called in the archive that the engine
// gets, where no file of a context is expected.
const dockerfileName = ".daytona-dockerfile"

// writeContext writes the archive that the engine builds from.
func writeContext(w io.Writer, contexts []daytona.BuildContext, dockerfile string, files bool) error {
	t := tar.NewWriter(w)
	if err := t.WriteHeader(&tar.Header{Name: dockerfileName, Typeflag: tar.TypeReg, Mode: 0o600, Size: int64(len(dockerfile))}); err != nil {
		return err
	}
	if _, err := io.WriteString(t, dockerfile); err != nil {
		return err
	}
	if files {
		ignored, err := ignorePatterns(contexts)
		if err != nil {
			return err
		}
		for _, c := range contexts {
			if err := addContext(t, c, ignored); err != nil {
				return err
			}
		}
	}
	return t.Close()
}

// open gives a context as a file system: the whole of it, or the directory of the
// one file that it is.
func open(c daytona.BuildContext) (fsys fs.FS, name string, done func(), err error) {
	if c.Files != nil {
		return c.Files, ".", func() {}, nil
	}
	info, err := os.Stat(c.Source)
	if err != nil {
		return nil, "", nil, err
	}
	dir, name := c.Source, "."
	if !info.IsDir() {
		dir, name = filepath.Dir(c.Source), filepath.Base(c.Source)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, "", nil, err
	}
	return root.FS(), name, func() { root.Close() }, nil
}

// ignorePatterns reads the .dockerignore of the whole context; nil if there is
// none.
func ignorePatterns(contexts []daytona.BuildContext) (*patternmatcher.PatternMatcher, error) {
	const ignore = ".dockerignore"
	for _, c := range contexts {
		if c.Path != "." && c.Path != ignore {
			continue
		}
		fsys, name, done, err := open(c)
		if err != nil {
			return nil, err
		}
		if name == "." && c.Path == "." {
			name = ignore
		}
		f, err := fsys.Open(name)
		if errors.Is(err, fs.ErrNotExist) {
			done()
			continue
		}
		if err != nil {
			done()
			return nil, err
		}
		patterns, err := ignorefile.ReadAll(io.LimitReader(f, 1<<20))
		f.Close()
		done()
		if err != nil {
			return nil, err
		}
		return patternmatcher.New(patterns)
	}
	return nil, nil
}

func addContext(t *tar.Writer, c daytona.BuildContext, ignored *patternmatcher.PatternMatcher) error {
	fsys, start, done, err := open(c)
	if err != nil {
		return err
	}
	defer done()
	return fs.WalkDir(fsys, start, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := c.Path
		if p != start {
			name = path.Join(c.Path, strings.TrimPrefix(p, start+"/"))
		}
		if name == "." {
			return nil
		}
		if ignored != nil {
			skip, err := ignored.MatchesOrParentMatches(name)
			if err != nil {
				return err
			}
			// Something below may be excepted.
			if skip && d.IsDir() && !ignored.Exclusions() {
				return fs.SkipDir
			}
			if skip {
				return nil
			}
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if p == start && info.Mode()&fs.ModeSymlink != 0 {
			if info, err = fs.Stat(fsys, p); err != nil {
				return err
			}
		}
		link := ""
		switch {
		case info.Mode()&fs.ModeSymlink != 0:
			if link, err = fs.ReadLink(fsys, p); err != nil {
				return err
			}
		case info.IsDir(), info.Mode().IsRegular():
		default:
			return nil // sockets, pipes and devices are not copied
		}
		h, err := tar.FileInfoHeader(info, link)
		if err != nil {
			return err
		}
		h.Name, h.Uid, h.Gid, h.Uname, h.Gname = name, 0, 0, "", ""
		if info.IsDir() {
			h.Name += "/"
		}
		if err := t.WriteHeader(h); err != nil || !info.Mode().IsRegular() {
			return err
		}
		f, err := fsys.Open(p)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(t, f)
		return err
	})
}
