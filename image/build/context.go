//go:build linux

package build

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/moby/patternmatcher"
	"github.com/tonistiigi/fsutil"
	"github.com/tonistiigi/fsutil/types"
	"golang.org/x/sys/unix"
)

// special is what of a context is neither file, directory nor link, by its place
// in it: what it is.
type special map[string]string

// add notes what cannot be copied. It is refused when the build asks for it: a
// .dockerignore may leave it out.
func (s special) add(name string, mode fs.FileMode) bool {
	if mode.IsDir() || mode.IsRegular() || mode.Type() == fs.ModeSymlink {
		return false
	}
	s[name] = kindOf(mode)
	return true
}

func kindOf(mode fs.FileMode) string {
	switch mode.Type() {
	case fs.ModeSocket:
		return "a socket"
	case fs.ModeNamedPipe:
		return "a pipe"
	}
	return "a device"
}

// plainFS is a context as BuildKit is to see it: all belongs to root, and special
// files are refused by name, where BuildKit would leave out some and copy others.
type plainFS struct {
	fsutil.FS
	special special // what stands for them, if they are no such files themselves
}

func (f plainFS) Walk(ctx context.Context, target string, fn fs.WalkDirFunc) error {
	return f.FS.Walk(ctx, target, func(name string, d fs.DirEntry, err error) error {
		if d != nil {
			what := f.special[name]
			if m := d.Type(); what == "" && !m.IsDir() && !m.IsRegular() && m != fs.ModeSymlink {
				what = kindOf(m)
			}
			if what != "" {
				d = refusedEntry{d, fmt.Errorf(refusedFile, name, what)}
			} else {
				d = rootEntry{d}
			}
		}
		return fn(name, d, err)
	})
}

// refusedFile is how failure finds that error in what BuildKit says.
const refusedFile = "the context's file %q is %s, which is never copied"

type rootEntry struct{ fs.DirEntry }

func (e rootEntry) Info() (fs.FileInfo, error) {
	fi, err := e.DirEntry.Info()
	if err == nil {
		if st, ok := fi.Sys().(*types.Stat); ok {
			st.Uid, st.Gid = 0, 0
		}
	}
	return fi, err
}

// refusedEntry is an entry that nothing may be known of but its name.
type refusedEntry struct {
	fs.DirEntry
	err error
}

func (e refusedEntry) Info() (fs.FileInfo, error) { return nil, e.err }

// copyContext copies one part of a context to its place beneath root. Links are
// copied as links. What is neither file, directory nor link becomes an empty file
// that is noted in odd.
func copyContext(ctx context.Context, root *os.Root, c daytona.BuildContext, odd special) error {
	files := c.Files
	if files == nil {
		st, err := os.Stat(c.Source)
		if err != nil {
			return err
		}
		if !st.IsDir() {
			f, err := os.OpenFile(c.Source, os.O_RDONLY|unix.O_NONBLOCK, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			if err := root.MkdirAll(path.Dir(c.Path), 0o755); err != nil {
				return err
			}
			if !st.Mode().IsRegular() {
				return fmt.Errorf("%s is %s", c.Source, kindOf(st.Mode()))
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
	left := map[string]fs.FileInfo{} // directories that were left out
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
			if out && d.IsDir() {
				if !ignored.Exclusions() {
					return fs.SkipDir
				}
				if left[to], err = d.Info(); err != nil {
					return err
				}
			}
			if out {
				return nil
			}
			// A directory that is left out may have what is not: it is itself then.
			if err := root.MkdirAll(path.Dir(to), 0o755); err != nil {
				return err
			}
			for up := path.Dir(to); left[up] != nil; up = path.Dir(up) {
				if err := root.Chmod(up, left[up].Mode().Perm()|0o700); err != nil {
					return err
				}
				dirs = append(dirs, dir{up, left[up].ModTime()})
				delete(left, up)
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
		case odd.add(to, d.Type()):
			f, err := root.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
			if err != nil {
				return err
			}
			return f.Close()
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
