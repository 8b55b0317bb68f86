package daytona

import (
	"archive/tar"
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/patternmatcher"
)

// Ref is the image's name on the wire and in a store: one for all images with
// the same text and the same hashes of contexts. It reads all contexts.
func (m *Image) Ref() (string, error) {
	if m.err != nil {
		return "", m.err
	}
	hashes := make([]string, len(m.contexts))
	for i, c := range m.contexts {
		var err error
		if hashes[i], err = c.Hash(); err != nil {
			return "", err
		}
	}
	slices.Sort(hashes)
	sum := sha256.Sum256([]byte(m.dockerfile + strings.Join(hashes, "")))
	return "daytona-" + hex.EncodeToString(sum[:]) + ":daytona", nil
}

// Hash is the context's key in an object storage, in hexadecimal: the MD5 of its
// ArchivePath, and the names and bytes of its files. Modes, times and links
// are not part of it. It is no defence against who can choose the files.
func (c BuildContext) Hash() (string, error) {
	h := md5.New()
	at := c.ArchivePath
	if at == "" && c.Path != "." {
		at = c.Path
	}
	io.WriteString(h, at)
	err := c.read(func(fsys fs.FS, name string) error {
		w, err := newContextWalk(fsys, c)
		if err != nil {
			return err
		}
		if name != "." { // a single file
			return w.copyFile(h, name, -1)
		}
		return w.hash(h, ".")
	})
	if err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// WriteTar writes an uncompressed tar of the context: entries in the order of
// their names, beginning with Path, with their modes and times, owned by root,
// symbolic links as links. What is neither file, directory nor link, and a file
// that changes its size meanwhile, is refused with KindInvalid.
func (c BuildContext) WriteTar(w io.Writer) error {
	tw := tar.NewWriter(w)
	err := c.read(func(fsys fs.FS, name string) error {
		walk, err := newContextWalk(fsys, c)
		if err != nil {
			return err
		}
		if name == "." {
			return walk.tar(tw, ".", nil)
		}
		info, err := fs.Stat(fsys, name) // not the link: it is what was named
		if err != nil {
			return walk.fail(name, err)
		}
		return walk.entry(tw, name, c.Path, info)
	})
	if err != nil {
		return err
	}
	return tw.Close()
}

// read calls f with the files and the name of the context among them: "." or
// that of a single file.
func (c BuildContext) read(f func(fsys fs.FS, name string) error) error {
	if !fs.ValidPath(c.Path) {
		return invalid(buildOp, "Path", c.Path, `must be relative and clean, without ".."`)
	}
	if c.Files != nil {
		return f(c.Files, ".")
	}
	info, err := os.Stat(c.Source)
	if err != nil {
		return localError("Source", c.Source, err)
	}
	dir, name := c.Source, "."
	if !info.IsDir() {
		if !info.Mode().IsRegular() {
			return invalid(buildOp, "Source", c.Source, "is neither a file nor a directory")
		}
		if c.Path == "." {
			return invalid(buildOp, "Path", c.Path, "must be a name: "+c.Source+" is a file")
		}
		// It may be a link, to wherever it likes: it is what was named.
		if dir, err = filepath.EvalSymlinks(c.Source); err != nil {
			return localError("Source", c.Source, err)
		}
		dir, name = filepath.Dir(dir), filepath.Base(dir)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return localError("Source", c.Source, err)
	}
	defer root.Close()
	return f(root.FS(), name)
}

// contextWalk goes through a context.
type contextWalk struct {
	fsys    fs.FS
	context BuildContext
	ignored *patternmatcher.PatternMatcher
}

func newContextWalk(fsys fs.FS, c BuildContext) (*contextWalk, error) {
	ignored, err := patternmatcher.New(c.Exclude)
	if err != nil {
		return nil, invalid(buildOp, "Exclude", c.Exclude, err.Error())
	}
	return &contextWalk{fsys, c, ignored}, nil
}

func (w *contextWalk) fail(name string, err error) error {
	if _, ok := errors.AsType[*Error](err); ok {
		return err
	}
	return localError("Contexts", path.Join(filepath.ToSlash(w.context.Source), name), err)
}

// kept are the entries of a directory that are not left out, by name. entered
// says of a directory that it is left out but something in it may not be.
func (w *contextWalk) kept(dir string) (list []fs.DirEntry, entered map[string]bool, err error) {
	all, err := fs.ReadDir(w.fsys, dir)
	if err != nil {
		return nil, nil, w.fail(dir, err)
	}
	if len(w.context.Exclude) == 0 {
		return all, nil, nil
	}
	entered = map[string]bool{}
	for _, e := range all {
		out, err := w.ignored.MatchesOrParentMatches(path.Join(w.context.Path, dir, e.Name()))
		if err != nil {
			return nil, nil, w.fail(path.Join(dir, e.Name()), err)
		}
		switch {
		case !out:
			list = append(list, e)
		case e.IsDir() && w.ignored.Exclusions():
			list = append(list, e)
			entered[e.Name()] = true
		}
	}
	return list, entered, nil
}

// hash is the SDKs': files by their names, and the names of directories that
// have neither files nor directories.
func (w *contextWalk) hash(h io.Writer, dir string) error {
	list, _, err := w.kept(dir)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(list, func(e fs.DirEntry) bool { return e.IsDir() || e.Type().IsRegular() }) && dir != "." {
		io.WriteString(h, dir)
	}
	for _, e := range list {
		name := path.Join(dir, e.Name())
		switch {
		case e.IsDir():
			err = w.hash(h, name)
		case e.Type().IsRegular():
			io.WriteString(h, name)
			err = w.copyFile(h, name, -1)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// copyFile copies a file, which must be size long; -1 is any size.
func (w *contextWalk) copyFile(to io.Writer, name string, size int64) error {
	f, err := w.fsys.Open(name)
	if err != nil {
		return w.fail(name, err)
	}
	defer f.Close()
	if size < 0 {
		if _, err = io.Copy(to, f); err != nil {
			return w.fail(name, err)
		}
		return nil
	}
	n, err := io.CopyN(to, f, size)
	if err == nil {
		var more int
		if more, _ = f.Read(make([]byte, 1)); more == 0 {
			return nil
		}
	}
	if err == nil || errors.Is(err, io.EOF) {
		return invalid(buildOp, "Contexts", path.Join(filepath.ToSlash(w.context.Source), name),
			fmt.Sprintf("changed while it was read: %d of %d bytes", n, size))
	}
	return err
}

// tar writes what is in a directory. parents are the entries of directories that
// are left out unless something in them is written.
func (w *contextWalk) tar(tw *tar.Writer, dir string, parents []func() error) error {
	list, entered, err := w.kept(dir)
	if err != nil {
		return err
	}
	if dir == "." {
		info, err := fs.Stat(w.fsys, ".")
		if err != nil {
			return w.fail(dir, err)
		}
		if err := w.entry(tw, dir, w.context.Path, info); err != nil {
			return err
		}
	}
	for _, e := range list {
		name := path.Join(dir, e.Name())
		info, err := e.Info()
		if err != nil {
			return w.fail(name, err)
		}
		write := func() error { return w.entry(tw, name, path.Join(w.context.Path, name), info) }
		below := parents
		if entered[e.Name()] {
			done := false
			below = append(slices.Clip(parents), func() error {
				if done {
					return nil
				}
				done = true
				return write()
			})
		} else {
			for _, p := range parents {
				if err := p(); err != nil {
					return err
				}
			}
			if err := write(); err != nil {
				return err
			}
		}
		if e.IsDir() {
			if err := w.tar(tw, name, below); err != nil {
				return err
			}
		}
	}
	return nil
}

// entry writes one file, directory or link.
func (w *contextWalk) entry(tw *tar.Writer, name, as string, info fs.FileInfo) error {
	var target string
	switch {
	case info.IsDir(), info.Mode().IsRegular():
	case info.Mode().Type() == fs.ModeSymlink:
		var err error
		if target, err = fs.ReadLink(w.fsys, name); err != nil {
			return w.fail(name, err)
		}
	default:
		return invalid(buildOp, "Contexts", path.Join(filepath.ToSlash(w.context.Source), name),
			"is neither a file, a directory nor a symbolic link")
	}
	h, err := tar.FileInfoHeader(info, target)
	if err != nil {
		return w.fail(name, err)
	}
	// Owners are this machine's, and of no meaning in an image.
	h.Uid, h.Gid, h.Uname, h.Gname = 0, 0, "", ""
	h.Name = as
	if info.IsDir() {
		h.Name += "/"
	}
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return nil
	}
	return w.copyFile(tw, name, h.Size)
}
