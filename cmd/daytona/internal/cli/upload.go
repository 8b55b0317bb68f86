package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/daytona-go/daytona"
)

const (
	// autoUploadLimit is the size in bytes up to which a file that a command
	// names is copied in unasked.
	autoUploadLimit = 64 << 20
	// uploadBatch is how many files go into one request.
	uploadBatch = 1000
)

// upload is a local file or directory and its path in the sandbox. For a
// directory, remote is the directory that gets its content.
type upload struct{ local, remote string }

// parseUploads parses the values of --upload.
func parseUploads(values []string) ([]upload, error) {
	var list []upload
	for _, v := range values {
		local, remote := v, ""
		// A file may have a colon in its name.
		if _, err := os.Stat(v); err != nil {
			if i := strings.LastIndexByte(v, ':'); i > 0 {
				local, remote = v[:i], v[i+1:]
			}
		}
		info, err := os.Stat(local)
		if err != nil {
			return nil, fmt.Errorf("--upload: %w", err)
		}
		if !info.IsDir() && !info.Mode().IsRegular() {
			return nil, fmt.Errorf("--upload %s: is neither a file nor a directory", local)
		}
		list = append(list, upload{local: local, remote: uploadTarget(local, remote)})
	}
	return list, nil
}

// uploadTarget is where --upload puts local: what lies below the current
// directory keeps its relative path, all else its base name.
func uploadTarget(local, remote string) string {
	name := filepath.Base(local)
	if filepath.IsLocal(local) {
		name = filepath.Clean(local)
	} else if abs, err := filepath.Abs(local); err == nil {
		name = filepath.Base(abs)
	}
	name = filepath.ToSlash(name)
	switch {
	case remote == "":
		return name
	case strings.HasSuffix(remote, "/"):
		return path.Join(remote, path.Base(name))
	}
	return remote
}

// namedFiles returns the files below the current directory that the arguments
// of a command name by a relative path.
func (a *app) namedFiles(args []string) ([]upload, error) {
	cwd, err := os.OpenRoot(".")
	if err != nil {
		a.note("not looking for files that the command names: %v", err)
		return nil, nil
	}
	defer cwd.Close()
	var list []upload
	for i, arg := range args {
		// The first is looked up in PATH, unless it has a slash.
		if arg == "" || (i == 0 && !strings.Contains(arg, "/")) || !filepath.IsLocal(arg) || strings.HasSuffix(arg, "/") {
			continue
		}
		// Through the root: a symbolic link must not lead elsewhere.
		info, err := cwd.Stat(arg)
		if err != nil || !info.Mode().IsRegular() {
			continue
		}
		if info.Size() > autoUploadLimit {
			return nil, fmt.Errorf("%s is larger than the %s that are copied in unasked; say --upload %s, or --no-auto-upload", arg, byteSize(autoUploadLimit), arg)
		}
		u := upload{local: arg, remote: path.Clean(filepath.ToSlash(arg))}
		if !slices.Contains(list, u) {
			a.note("copying %s into the sandbox, since the command names it (--no-auto-upload prevents it)", arg)
			list = append(list, u)
		}
	}
	return list, nil
}

// upload copies files and directories into a sandbox. Symbolic links to files
// become the files; other links and special files are left out with a warning.
func (a *app) upload(ctx context.Context, sb daytona.Sandbox, list []upload) error {
	if len(list) == 0 {
		return nil
	}
	p := a.startProgress("copying files in")
	defer p.finish()
	var t uploadTree
	for _, u := range list {
		if err := t.add(u); err != nil {
			return err
		}
	}
	p.total.Store(t.bytes)
	fsys := sb.FileSystem()
	for _, dir := range t.dirs {
		if err := fsys.Mkdir(ctx, dir, 0); err != nil {
			return err
		}
	}
	for batch := range slices.Chunk(t.files, uploadBatch) {
		files := make([]daytona.FileUpload, len(batch))
		for i, f := range batch {
			files[i] = daytona.FileUpload{Path: f.remote, Content: p.count(&lazyFile{name: f.local})}
		}
		if err := fsys.UploadFiles(ctx, files); err != nil {
			return err
		}
	}
	if err := t.chmod(ctx, fsys); err != nil {
		return err
	}
	p.finish()
	for _, s := range t.skipped {
		a.warn("%s", s)
	}
	a.note("copied in %d files, %s", len(t.files), byteSize(t.bytes))
	return nil
}

// uploadTree is all that uploads amount to.
type uploadTree struct {
	files   []uploadFile
	dirs    []string // remote; those that are made by no file in them
	bytes   int64
	skipped []string
}

type uploadFile struct {
	upload
	mode fs.FileMode
}

func (t *uploadTree) add(u upload) error {
	info, err := os.Stat(u.local)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return t.addFile(u, info)
	}
	return t.addDir(u)
}

func (t *uploadTree) addFile(u upload, info fs.FileInfo) error {
	t.files = append(t.files, uploadFile{upload: u, mode: info.Mode().Perm()})
	t.bytes += info.Size()
	return nil
}

func (t *uploadTree) addDir(u upload) error {
	entries, err := os.ReadDir(u.local)
	if err != nil {
		return err
	}
	if len(entries) == 0 {
		t.dirs = append(t.dirs, u.remote)
	}
	for _, e := range entries {
		child := upload{local: filepath.Join(u.local, e.Name()), remote: path.Join(u.remote, e.Name())}
		if e.IsDir() {
			if err := t.addDir(child); err != nil {
				return err
			}
			continue
		}
		info, err := os.Stat(child.local)
		switch {
		case err != nil && e.Type()&fs.ModeSymlink != 0:
			t.skipped = append(t.skipped, child.local+" was left out: it is a broken symbolic link")
		case err != nil:
			return err
		case info.IsDir():
			t.skipped = append(t.skipped, child.local+" was left out: it is a symbolic link to a directory")
		case !info.Mode().IsRegular():
			t.skipped = append(t.skipped, child.local+" was left out: it is not a file")
		default:
			if err := t.addFile(child, info); err != nil {
				return err
			}
		}
	}
	return nil
}

// chmod sets the permissions of files that are not just plain ones.
func (t *uploadTree) chmod(ctx context.Context, fsys daytona.FileSystem) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for _, f := range t.files {
		if f.mode == 0o644 || f.mode == 0o664 {
			continue
		}
		g.Go(func() error { return fsys.Chmod(ctx, f.remote, f.mode) })
	}
	return g.Wait()
}

// lazyFile opens a file when it is first read and closes it at its end, so
// that a thousand uploads need one file descriptor.
type lazyFile struct {
	name string
	f    *os.File
	err  error
}

func (l *lazyFile) Read(b []byte) (int, error) {
	if l.err != nil {
		return 0, l.err
	}
	if l.f == nil {
		if l.f, l.err = os.Open(l.name); l.err != nil {
			return 0, l.err
		}
	}
	n, err := l.f.Read(b)
	if err != nil {
		l.err = err
		if cerr := l.f.Close(); errors.Is(err, io.EOF) && cerr != nil {
			l.err = cerr
		}
	}
	return n, err
}
