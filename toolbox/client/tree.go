package client

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"path"

	"github.com/daytona-go/daytona"
)

func (f *fileSystem) FS(ctx context.Context, dir string) fs.FS {
	if dir == "" {
		dir = "."
	}
	return &tree{fs: f, ctx: ctx, dir: dir}
}

// tree is a directory as an fs.FS. Symbolic links are followed, also those
// that lead out of it, as os.DirFS does: it is a view, not a fence.
type tree struct {
	fs  *fileSystem
	ctx context.Context
	dir string
}

var _ interface {
	fs.StatFS
	fs.ReadDirFS
	fs.ReadFileFS
	fs.SubFS
} = (*tree)(nil)

// place is where a name of the tree is in the sandbox.
func (t *tree) place(op, name string) (string, error) {
	if !fs.ValidPath(name) {
		return "", pathError(op, name, fs.ErrInvalid)
	}
	return path.Join(t.dir, name), nil
}

// rename puts the name that the caller used into an error.
func rename(name string, err error) error {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return pathError(p.Op, name, p.Err)
	}
	return err
}

func (t *tree) Open(name string) (fs.File, error) {
	at, err := t.place("open", name)
	if err != nil {
		return nil, err
	}
	f, err := t.fs.open(t.ctx, at)
	if err == nil {
		f.label = name
		return f, nil
	}
	// A directory cannot be downloaded.
	if errors.Is(err, fs.ErrInvalid) {
		if info, statErr := t.fs.stat(t.ctx, at); statErr == nil && info.IsDir() {
			return &dirFile{tree: t, at: at, name: name, info: info}, nil
		}
	}
	return nil, pathError("open", name, err)
}

func (t *tree) Stat(name string) (fs.FileInfo, error) {
	at, err := t.place("stat", name)
	if err != nil {
		return nil, err
	}
	info, err := t.fs.stat(t.ctx, at)
	if err != nil {
		return nil, pathError("stat", name, err)
	}
	return info, nil
}

func (t *tree) ReadDir(name string) ([]fs.DirEntry, error) {
	at, err := t.place("readdir", name)
	if err != nil {
		return nil, err
	}
	infos, err := t.fs.readDir(t.ctx, at)
	if err != nil {
		return nil, pathError("readdir", name, err)
	}
	return entries(infos), nil
}

func entries(infos []daytona.FileInfo) []fs.DirEntry {
	list := make([]fs.DirEntry, len(infos))
	for i, info := range infos {
		list[i] = info
	}
	return list
}

func (t *tree) ReadFile(name string) ([]byte, error) {
	at, err := t.place("open", name)
	if err != nil {
		return nil, err
	}
	b, err := t.fs.ReadFile(t.ctx, at)
	return b, rename(name, err)
}

func (t *tree) Sub(dir string) (fs.FS, error) {
	at, err := t.place("sub", dir)
	if err != nil {
		return nil, err
	}
	return &tree{fs: t.fs, ctx: t.ctx, dir: at}, nil
}

// dirFile is an open directory. It is listed when it is first read.
type dirFile struct {
	tree   *tree
	at     string
	name   string
	info   daytona.FileInfo
	listed bool
	rest   []daytona.FileInfo
	closed bool
}

var _ fs.ReadDirFile = (*dirFile)(nil)

func (d *dirFile) Stat() (fs.FileInfo, error) {
	if d.closed {
		return nil, pathError("stat", d.name, fs.ErrClosed)
	}
	return d.info, nil
}

func (d *dirFile) Read([]byte) (int, error) {
	if d.closed {
		return 0, pathError("read", d.name, fs.ErrClosed)
	}
	return 0, pathError("read", d.name, &daytona.Error{Kind: daytona.KindInvalid, Message: "it is a directory", Err: fs.ErrInvalid})
}

func (d *dirFile) Close() error {
	if d.closed {
		return pathError("close", d.name, fs.ErrClosed)
	}
	d.closed = true
	return nil
}

func (d *dirFile) ReadDir(n int) ([]fs.DirEntry, error) {
	if d.closed {
		return nil, pathError("readdir", d.name, fs.ErrClosed)
	}
	if !d.listed {
		infos, err := d.tree.fs.readDir(d.tree.ctx, d.at)
		if err != nil {
			return nil, pathError("readdir", d.name, err)
		}
		d.listed, d.rest = true, infos
	}
	count := len(d.rest)
	if n > 0 {
		if count == 0 {
			return nil, io.EOF
		}
		count = min(count, n)
	}
	list := entries(d.rest[:count])
	d.rest = d.rest[count:]
	return list, nil
}
