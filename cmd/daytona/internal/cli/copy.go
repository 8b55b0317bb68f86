package cli

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/daytona-go/daytona"
)

const (
	// maxDepth bounds how deep a directory of a sandbox may be nested: the
	// other side may make up directories as long as it is asked for them.
	maxDepth = 256
	// downloadBatch is how many files are asked for in one request.
	downloadBatch = 256
)

func (a *app) copyCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "cp SOURCE DESTINATION",
		Short: "Copy files into or out of a sandbox",
		Long: `Copy a file or a directory with all that is in it into a sandbox or out of it.

One of SOURCE and DESTINATION is NAME:PATH, where a relative PATH begins in
the sandbox's working directory; the other is a local path, or "-" for standard
input or output. As with cp, an existing directory as DESTINATION gets the copy
put into it, and SOURCE ending in "/." means the directory's content.

Out of a sandbox come files and directories only: no links to directories, no
devices, no set-user-ID bits, and nothing is written outside of DESTINATION.`,
		Example: `  daytona sandbox cp ./project dev:/work
  daytona sandbox cp dev:/work/report.pdf .
  tar cz src | daytona sandbox cp - dev:src.tar.gz
  daytona sandbox cp dev:results.csv - | head`,
		Args:              exactArgs(2, "SOURCE and DESTINATION"),
		ValidArgsFunction: a.completeCopy,
		RunE: func(cmd *cobra.Command, args []string) error {
			from, to := parseEndpoint(args[0]), parseEndpoint(args[1])
			switch {
			case from.sandbox == "" && to.sandbox == "":
				return usageError(cmd, errors.New("neither SOURCE nor DESTINATION is in a sandbox: write NAME:PATH"))
			case from.sandbox != "" && to.sandbox != "":
				return usageError(cmd, fmt.Errorf("both are in sandboxes: copy in two steps, or pipe: daytona sandbox cp %s - | daytona sandbox cp - %s", args[0], args[1]))
			}
			name := cmp.Or(from.sandbox, to.sandbox)
			return a.withSandbox(cmd.Context(), name, func(ctx context.Context, sb daytona.Sandbox) error {
				if to.sandbox != "" {
					return a.copyIn(ctx, sb, from.path, to.path)
				}
				return a.copyOut(ctx, sb, from.path, to.path)
			})
		},
	}
}

// endpoint is one side of a copy; sandbox is empty for a local path.
type endpoint struct{ sandbox, path string }

// parseEndpoint takes NAME:PATH apart. A local path with a colon in its first
// element is written ./a:b.
func parseEndpoint(s string) endpoint {
	name, rest, ok := strings.Cut(s, ":")
	if !ok || !daytona.ValidName(name) {
		return endpoint{path: s}
	}
	return endpoint{sandbox: name, path: cmp.Or(rest, ".")}
}

func (a *app) copyIn(ctx context.Context, sb daytona.Sandbox, local, remote string) error {
	fsys := sb.FileSystem()
	info, statErr := fsys.Stat(ctx, remote)
	intoDir := strings.HasSuffix(remote, "/") || (statErr == nil && info.IsDir())
	if local == "-" {
		if intoDir {
			return fmt.Errorf("%s:%s is a directory: name the file that standard input is to become", sb.Name(), remote)
		}
		p := a.startProgress("copying to " + remote)
		defer p.finish()
		_, err := fsys.Upload(ctx, remote, p.count(a.Stdin))
		return err
	}
	if _, err := os.Stat(local); err != nil {
		return err
	}
	if intoDir && !contentsOf(local) {
		abs, err := filepath.Abs(local)
		if err != nil {
			return err
		}
		remote = path.Join(remote, filepath.Base(abs))
	}
	return a.upload(ctx, sb, []upload{{local: local, remote: remote}})
}

// contentsOf reports whether a path asks for a directory's content.
func contentsOf(p string) bool { return p == "." || strings.HasSuffix(p, "/.") }

func (a *app) copyOut(ctx context.Context, sb daytona.Sandbox, remote, local string) error {
	fsys := sb.FileSystem()
	p := a.startProgress("copying from " + remote)
	defer p.finish()
	if local == "-" {
		_, err := fsys.Download(ctx, remote, &countingWriter{w: a.Stdout, p: p})
		return err
	}
	info, err := fsys.Stat(ctx, remote)
	if err != nil {
		return err
	}
	d := &download{fsys: fsys, progress: p}
	if info.IsDir() {
		err = d.directory(ctx, remote, local)
	} else {
		err = d.single(ctx, remote, local, info)
	}
	p.finish()
	for _, s := range d.skipped {
		a.warn("%s", s)
	}
	return err
}

// download copies from a sandbox, all of whose answers are suspect: names
// must be plain, and everything is written beneath one directory.
type download struct {
	fsys     daytona.FileSystem
	progress *progress
	skipped  []string
}

// localTarget finds where a copy of remote goes.
func localTarget(remote, local string) (string, error) {
	info, err := os.Stat(local)
	intoDir := err == nil && info.IsDir()
	if !intoDir && strings.HasSuffix(local, "/") {
		return "", fmt.Errorf("%s is not an existing directory", local)
	}
	if !intoDir || contentsOf(remote) {
		return local, nil
	}
	base := path.Base(path.Clean(remote))
	if !plainName(base) {
		return "", fmt.Errorf("%s has no name that the copy could get: name a DESTINATION that does not exist yet, or end SOURCE in \"/.\"", remote)
	}
	return filepath.Join(local, base), nil
}

// plainName reports whether name is one element of a path, and a harmless one.
func plainName(name string) bool {
	return name != "." && filepath.IsLocal(name) && !strings.ContainsAny(name, "/\\\x00")
}

func (d *download) single(ctx context.Context, remote, local string, info fs.FileInfo) error {
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a file: %s", remote, info.Mode())
	}
	target, err := localTarget(remote, local)
	if err != nil {
		return err
	}
	// The user's own link is followed to what it names.
	if real, err := filepath.EvalSymlinks(target); err == nil {
		target = real
	}
	if have, err := os.Stat(target); err == nil && !have.Mode().IsRegular() {
		// A device or pipe such as /dev/null is written to, not replaced.
		f, err := os.OpenFile(target, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = d.fsys.Download(ctx, remote, &countingWriter{w: f, p: d.progress})
		return errors.Join(err, f.Close())
	}
	root, err := os.OpenRoot(filepath.Dir(target))
	if err != nil {
		return err
	}
	defer root.Close()
	return d.write(root, filepath.Base(target), info.Mode(), func(w io.Writer) error {
		_, err := d.fsys.Download(ctx, remote, w)
		return err
	})
}

func (d *download) directory(ctx context.Context, remote, local string) error {
	target, err := localTarget(remote, local)
	if err != nil {
		return err
	}
	if err := os.Mkdir(target, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	root, err := os.OpenRoot(target)
	if err != nil {
		return err
	}
	defer root.Close()
	return d.tree(ctx, root, remote, ".", 0)
}

// tree copies the directory remote to dir beneath root.
func (d *download) tree(ctx context.Context, root *os.Root, remote, dir string, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("%s: directories are nested more than %d deep; copy a part of them, or a tar archive", remote, maxDepth)
	}
	entries, err := d.fsys.ReadDir(ctx, remote)
	if err != nil {
		return err
	}
	var files []daytona.FileInfo
	for _, e := range entries {
		from := path.Join(remote, e.Name())
		if !plainName(e.Name()) {
			return fmt.Errorf("the sandbox claims that %s contains a file named %q: that is not a file name, and nothing of it was written", remote, e.Name())
		}
		if e.Mode()&fs.ModeSymlink != 0 {
			t, err := d.fsys.Stat(ctx, from)
			if err != nil || !t.Mode().IsRegular() {
				d.skipped = append(d.skipped, from+" was left out: it is a symbolic link, and not to a file")
				continue
			}
			t.FileName = e.FileName
			e = t
		}
		switch {
		case e.IsDir():
			to := filepath.Join(dir, e.Name())
			if err := root.Mkdir(to, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
			if err := d.tree(ctx, root, from, to, depth+1); err != nil {
				return err
			}
		case e.Mode().IsRegular():
			files = append(files, e)
		default:
			d.skipped = append(d.skipped, from+" was left out: it is not a file")
		}
	}
	for batch := range slices.Chunk(files, downloadBatch) {
		if err := d.batch(ctx, root, remote, dir, batch); err != nil {
			return err
		}
	}
	return nil
}

// batch copies files of the directory remote to dir beneath root.
func (d *download) batch(ctx context.Context, root *os.Root, remote, dir string, files []daytona.FileInfo) error {
	paths := make([]string, len(files))
	for i, f := range files {
		paths[i] = path.Join(remote, f.Name())
	}
	next := 0
	// Which file it is follows from the order, not from what the other side
	// says it is.
	err := d.fsys.DownloadFiles(ctx, paths, func(_ string, r io.Reader, err error) error {
		if next == len(files) {
			return fmt.Errorf("%s: the sandbox sent more files than it was asked for", remote)
		}
		f := files[next]
		next++
		if err != nil {
			return err
		}
		return d.write(root, filepath.Join(dir, f.Name()), f.Mode(), func(w io.Writer) error {
			_, err := io.Copy(w, r)
			return err
		})
	})
	if err == nil && next < len(files) {
		err = fmt.Errorf("%s: the sandbox sent %d of %d files", remote, next, len(files))
	}
	return err
}

// write makes or replaces a file beneath root, all or nothing.
func (d *download) write(root *os.Root, name string, mode fs.FileMode, content func(io.Writer) error) (err error) {
	part := filepath.Join(filepath.Dir(name), ".daytona-"+rand.Text()[:10])
	// Whatever its mode, the file is its owner's to read and write.
	f, err := root.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode.Perm()|0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, root.Remove(part))
		}
	}()
	if err := content(&countingWriter{w: f, p: d.progress}); err != nil {
		f.Close()
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return root.Rename(part, name)
}

type countingWriter struct {
	w io.Writer
	p *progress
}

func (c *countingWriter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.p.done.Add(int64(n))
	return n, err
}
