//go:build linux

package build

import (
	"context"
	"io"
	"io/fs"
	"os"
	"path"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/moby/patternmatcher"
)

// copyContext copies one part of a context to its place beneath root. Links are
// copied as links; what is neither file, directory nor link is left out.
func copyContext(ctx context.Context, root *os.Root, c daytona.BuildContext) error {
	files := c.Files
	if files == nil {
		st, err := os.Stat(c.Source)
		if err != nil {
			return err
		}
		if !st.IsDir() {
			f, err := os.Open(c.Source)
			if err != nil {
				return err
			}
			defer f.Close()
			if err := root.MkdirAll(path.Dir(c.Path), 0o755); err != nil {
				return err
			}
			return copyFile(root, c.Path, f, st)
		}
		files = os.DirFS(c.Source)
	}
	type dir struct {
		name string
		when time.Time
	}
	var dirs []dir
	ignored, err := patternmatcher.New(c.Exclude)
	if err != nil {
		return err
	}
	err = fs.WalkDir(files, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		to := path.Join(c.Path, name)
		if len(c.Exclude) > 0 && name != "." {
			out, err := ignored.MatchesOrParentMatches(to)
			if err != nil {
				return err
			}
			if out && d.IsDir() && !ignored.Exclusions() {
				return fs.SkipDir
			}
			if out {
				return nil
			}
			// A directory that is left out may have what is not.
			if err := root.MkdirAll(path.Dir(to), 0o755); err != nil {
				return err
			}
		}
		st, err := d.Info()
		if err != nil {
			return err
		}
		switch {
		case d.IsDir():
			if err := root.MkdirAll(to, 0o755); err != nil {
				return err
			}
			if to != "." {
				if err := root.Chmod(to, st.Mode().Perm()|0o700); err != nil {
					return err
				}
			}
			dirs = append(dirs, dir{to, st.ModTime()})
		case d.Type() == fs.ModeSymlink:
			target, err := fs.ReadLink(files, name)
			if err != nil {
				return err
			}
			return root.Symlink(target, to)
		case d.Type().IsRegular():
			f, err := files.Open(name)
			if err != nil {
				return err
			}
			defer f.Close()
			return copyFile(root, to, f, st)
		}
		return nil
	})
	for _, d := range dirs {
		_ = root.Chtimes(d.name, d.when, d.when)
	}
	return err
}

func copyFile(root *os.Root, to string, from io.Reader, st fs.FileInfo) error {
	w, err := root.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if _, err = io.Copy(w, from); err == nil {
		err = w.Chmod(st.Mode().Perm())
	}
	if cerr := w.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return root.Chtimes(to, st.ModTime(), st.ModTime())
}
