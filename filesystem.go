package daytona

import (
	"context"
	"io"
	"io/fs"
	"iter"
	"time"
)

// FileSystem is the files of a sandbox, read and written with the rights of
// the sandbox's user. Paths are slash-separated; relative ones resolve
// against the sandbox's working directory. Errors about a path are
// [*fs.PathError] values that wrap an [*Error], so both
// errors.Is(err, fs.ErrNotExist) and errors.Is(err, ErrNotFound) work. A
// full disk gives KindNoSpace.
type FileSystem interface {
	// Open opens a file for reading, streamed: memory use does not depend on
	// its size. The context governs the whole transfer.
	Open(ctx context.Context, path string) (File, error)
	// Create makes or truncates a file and returns a writer that streams into
	// it. Missing parent directories are made. What was written is complete
	// and visible under path only once Close returns nil.
	Create(ctx context.Context, path string) (io.WriteCloser, error)
	// ReadFile returns the whole content of a file.
	ReadFile(ctx context.Context, path string) ([]byte, error)
	// WriteFile makes or replaces a file, and missing parent directories, and
	// gives it the permission bits of perm; 0 means 0644.
	WriteFile(ctx context.Context, path string, data []byte, perm fs.FileMode) error
	// Upload streams r into a file and returns the number of bytes. Missing
	// parent directories are made.
	Upload(ctx context.Context, path string, r io.Reader) (int64, error)
	// Download streams a file to w and returns the number of bytes.
	Download(ctx context.Context, path string, w io.Writer) (int64, error)
	// UploadFiles uploads many files in one request. The error joins the
	// errors of all files that failed; the others are there.
	UploadFiles(ctx context.Context, files []FileUpload) error
	// DownloadFiles downloads many files in one request, calling each for
	// every one in order; err is what went wrong with that file, and r is
	// valid until each returns. An error of each ends the transfer.
	DownloadFiles(ctx context.Context, paths []string, each func(path string, r io.Reader, err error) error) error

	// Stat describes a file, following symbolic links.
	Stat(ctx context.Context, path string) (FileInfo, error)
	// ReadDir lists a directory, sorted by name.
	ReadDir(ctx context.Context, path string) ([]FileInfo, error)
	// Mkdir makes a directory and its missing parents; one that exists is no
	// error. perm 0 means 0755.
	Mkdir(ctx context.Context, path string, perm fs.FileMode) error
	// Remove removes a file or an empty directory; it does not follow
	// symbolic links.
	Remove(ctx context.Context, path string) error
	// RemoveAll removes a file or a whole directory tree. A missing path is
	// no error.
	RemoveAll(ctx context.Context, path string) error
	// Rename moves a file or directory. An existing destination gives
	// KindConflict.
	Rename(ctx context.Context, oldPath, newPath string) error
	// Chmod sets the permission bits.
	Chmod(ctx context.Context, path string, mode fs.FileMode) error
	// Chown sets owner and group, by name or number; an empty one stays.
	Chown(ctx context.Context, path, owner, group string) error

	// Glob returns the paths below dir whose base name matches a shell
	// pattern, in the order of a directory walk.
	Glob(ctx context.Context, dir, pattern string) ([]string, error)
	// Grep returns the lines below path (a file or directory) that contain
	// text, literally. Binary files are skipped.
	Grep(ctx context.Context, path, text string) ([]Match, error)
	// Replace replaces text by another in files, literally, everywhere. The
	// result has one entry a file, in order.
	Replace(ctx context.Context, paths []string, old, new string) ([]Replaced, error)

	// Watch reports what changes in a directory and all below it, or what
	// happens to one file, from its return on until ctx ends or it is closed. It
	// is told of what the sandbox's user may see, by the kernel of the sandbox:
	// not of what another machine does to a volume. Directories of procfs and the
	// like are left out. Nil options are defaults. It gives KindNotFound for a
	// missing path, KindExhausted if there are more directories than can be
	// watched, KindUnsupported where the agent does not know how to.
	Watch(ctx context.Context, path string, opts *WatchOptions) (FileWatch, error)

	// FS returns the tree below dir as an [fs.FS] that also implements
	// fs.StatFS, fs.ReadDirFS, fs.ReadFileFS and fs.SubFS. ctx governs all
	// of its use.
	FS(ctx context.Context, dir string) fs.FS
}

// WatchOptions say how to watch files.
type WatchOptions struct {
	// Shallow leaves out what is below the directories of a directory. Defaults to
	// false.
	Shallow bool
	// Window is for how long changes are collected, in which several of a file
	// become one; at least a millisecond, at most 10 s. Defaults to 50 ms.
	Window time.Duration
	// Exclude has shell patterns of names, such as "node_modules" or "*.tmp",
	// that are left out with all that is below them. Defaults to none.
	Exclude []string
}

// FileWatch is a watch of files; see [FileSystem].
type FileWatch interface {
	// Events yields what happened, in order, and waits for more. It ends with an
	// error: that of the context, KindNotFound when the path itself was removed
	// or moved away, KindUnavailable when the agent cannot be reached any more
	// (what happens from then on is lost: watch anew, and look at the files), or
	// [fs.ErrClosed]. It is for one caller at a time; one that breaks off may call
	// it again.
	Events() iter.Seq2[FileEvent, error]
	// Close ends the watch.
	Close() error
}

// FileEventType says what happened to a file.
type FileEventType string

// The events of [FileWatch].
const (
	// FileCreated: it is new, or was put in the place of another.
	FileCreated FileEventType = "create"
	// FileWritten: its content changed. Writes through a memory mapping go
	// unnoticed.
	FileWritten FileEventType = "write"
	// FileRemoved: it was removed, or moved to where is not watched; a directory
	// with all that was below it.
	FileRemoved FileEventType = "remove"
	// FileRenamed: it was moved from OldPath, a directory with all below it. What
	// was in its place is gone.
	FileRenamed FileEventType = "rename"
	// FileAttributes: its mode, owner or times changed.
	FileAttributes FileEventType = "attributes"
	// FilesLost: more happened below Path than could be told, for Reason. Look at
	// the files again.
	FilesLost FileEventType = "lost"
)

// FileEvent is a change of a file.
type FileEvent struct {
	Type    FileEventType
	Path    string // absolute
	OldPath string // of FileRenamed
	IsDir   bool
	Reason  string // of FilesLost
}

// File is an open file of a sandbox.
type File interface {
	fs.File
	// Size in bytes when the file was opened.
	Size() int64
}

// FileInfo describes a file of a sandbox. It implements [fs.FileInfo] and
// [fs.DirEntry].
type FileInfo struct {
	FileName string      // base name
	Bytes    int64       // size
	FileMode fs.FileMode // type and permissions
	Modified time.Time
	Owner    string // user id, as a decimal number
	Group    string // group id, as a decimal number
}

func (i FileInfo) Name() string               { return i.FileName }
func (i FileInfo) Size() int64                { return i.Bytes }
func (i FileInfo) Mode() fs.FileMode          { return i.FileMode }
func (i FileInfo) ModTime() time.Time         { return i.Modified }
func (i FileInfo) IsDir() bool                { return i.FileMode.IsDir() }
func (i FileInfo) Sys() any                   { return nil }
func (i FileInfo) Type() fs.FileMode          { return i.FileMode.Type() }
func (i FileInfo) Info() (fs.FileInfo, error) { return i, nil }
func (i FileInfo) String() string             { return fs.FormatFileInfo(i) }

// FileUpload is one file of [FileSystem.UploadFiles].
type FileUpload struct {
	Path    string
	Content io.Reader
}

// Match is a line found by [FileSystem.Grep].
type Match struct {
	Path string
	Line int // from 1
	Text string
}

// Replaced is the outcome of [FileSystem.Replace] for one file.
type Replaced struct {
	Path string
	Err  error // nil if all went well
}

var (
	_ fs.FileInfo = FileInfo{}
	_ fs.DirEntry = FileInfo{}
)
