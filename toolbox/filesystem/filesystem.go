// Package filesystem is the file part of the agent's HTTP API. Every operation
// runs with the file rights of the sandbox's user (see package account), and
// transfers of any size use constant memory. It knows nothing of programs,
// tokens or of who is calling.
//
// # Paths
//
// Relative paths resolve against the working directory. Symbolic links are
// followed as the kernel does, except the magic ones of procfs
// (/proc/self/fd/3, /proc/1/root): these would be resolved for the agent, not
// for the user, and are refused. Deletion, search and listing do not follow
// links at all below the given path.
//
// # Writing
//
// An upload becomes visible under its name when it is complete, by rename;
// until then, and when it fails, the old content stays. The target of a link,
// and the mode and owner of a file that exists, are kept. A file that cannot be
// replaced (its directory is not writable, it has several names, it belongs to
// somebody else, it is a mount point) is overwritten in place instead.
package filesystem

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona/toolbox/account"
	"github.com/daytona-go/daytona/toolbox/wire"
)

// Options of a Service. Account and WorkDir are required.
type Options struct {
	// Account whose rights on files apply.
	Account *account.Account
	// WorkDir that relative paths resolve against, absolute.
	WorkDir string
	// Logger for what no client is told. Defaults to none.
	Logger *slog.Logger
}

// Service answers the file routes.
type Service struct {
	account *account.Account
	workDir string
	logger  *slog.Logger
	open    opener
	buffers sync.Pool
	watches watchBudget
}

// bufferSize of a transfer, in bytes: measured, see the benchmarks.
const bufferSize = 256 << 10

// bodyLimit of a JSON request, in bytes.
const bodyLimit = 16 << 20

// New returns a Service.
func New(options Options) (*Service, error) {
	if options.Account == nil {
		return nil, errors.New("filesystem: no account given")
	}
	if !path.IsAbs(options.WorkDir) {
		return nil, fmt.Errorf("filesystem: working directory %q is not an absolute path", options.WorkDir)
	}
	s := &Service{account: options.Account, workDir: path.Clean(options.WorkDir), logger: options.Logger}
	if s.logger == nil {
		s.logger = slog.New(slog.DiscardHandler)
	}
	s.buffers.New = func() any { return new([bufferSize]byte) }
	if !s.open.probe() {
		s.logger.Warn("the kernel has no openat2: links of procfs are followed as the agent")
	}
	return s, nil
}

// Register adds the routes to mux.
func (s *Service) Register(mux *http.ServeMux) {
	for pattern, handle := range map[string]func(http.ResponseWriter, *http.Request) error{
		"GET /files":                s.list,
		"GET /files/{$}":            s.list,
		"DELETE /files":             s.remove,
		"DELETE /files/{$}":         s.remove,
		"GET /files/info":           s.info,
		"POST /files/folder":        s.folder,
		"POST /files/move":          s.move,
		"POST /files/permissions":   s.permissions,
		"GET /files/search":         s.search,
		"GET /files/find":           s.find,
		"POST /files/replace":       s.replace,
		"GET /files/download":       s.download,
		"POST /files/upload":        s.upload,
		"POST /files/upload-v2":     s.upload,
		"POST /files/bulk-upload":   s.bulkUpload,
		"POST /files/bulk-download": s.bulkDownload,
		"GET " + wire.WatchPath:     s.watch,
	} {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			err := handle(w, r)
			if err == nil {
				return
			}
			if r.Context().Err() != nil {
				// Nobody hears the answer; end the connection.
				panic(http.ErrAbortHandler)
			}
			status, code, message := describe(err)
			if status == http.StatusInternalServerError {
				s.logger.Error("file operation failed", "method", r.Method, "route", r.URL.Path, "error", err)
			}
			wire.WriteError(w, r, status, code, message)
		})
	}
}

// failure is an error with its own place on the wire.
type failure struct {
	status  int
	code    string // "" for the status's own
	message string
}

func (f *failure) Error() string { return f.message }

func invalid(format string, args ...any) error {
	return &failure{http.StatusBadRequest, "", fmt.Sprintf(format, args...)}
}

func invalidPath(format string, args ...any) error {
	return &failure{http.StatusBadRequest, wire.CodeInvalidFilePath, fmt.Sprintf(format, args...)}
}

func isDirectory(p string) error {
	return &failure{http.StatusBadRequest, wire.CodeDirectoryInPlace, fmt.Sprintf("%s: is a directory, not a file", p)}
}

// describe maps an error to the wire.
func describe(err error) (status int, code, message string) {
	message = err.Error()
	if f, ok := errors.AsType[*failure](err); ok {
		return f.status, f.code, message
	}
	errno, _ := errors.AsType[unix.Errno](err)
	switch errno {
	case unix.ENOENT, unix.ENOTDIR:
		return http.StatusNotFound, wire.CodeFileNotFound, message
	case unix.EACCES, unix.EPERM, unix.EROFS:
		return http.StatusForbidden, wire.CodeFileAccessDenied, message
	case unix.ELOOP:
		return http.StatusBadRequest, wire.CodeInvalidFilePath, message + " (or a link of procfs, which is not followed)"
	case unix.ENAMETOOLONG, unix.EINVAL, unix.EILSEQ:
		return http.StatusBadRequest, wire.CodeInvalidFilePath, message
	case unix.EISDIR:
		return http.StatusBadRequest, wire.CodeDirectoryInPlace, message
	case unix.ENOTEMPTY:
		return http.StatusBadRequest, wire.CodeNotEmpty, message
	case unix.EEXIST:
		return http.StatusConflict, "", message
	case unix.EBUSY, unix.ETXTBSY:
		return http.StatusConflict, "", message
	case unix.ENOSPC, unix.EDQUOT:
		return http.StatusInsufficientStorage, wire.CodeNoSpace, message
	}
	return http.StatusInternalServerError, "", message
}

// resolve makes the absolute, lexically clean form of a path from a client.
func (s *Service) resolve(p string) (string, error) {
	if p == "" {
		return "", invalidPath("path is empty")
	}
	if i := strings.IndexByte(p, 0); i >= 0 {
		return "", invalidPath("path %q: has a NUL byte at %d", clip(p), i)
	}
	if !path.IsAbs(p) {
		p = s.workDir + "/" + p
	}
	// PATH_MAX counts the final NUL.
	if len(p) >= unix.PathMax {
		return "", invalidPath("path %q: has %d bytes, at most %d are possible", clip(p), len(p), unix.PathMax-1)
	}
	p = path.Clean(p)
	for name := range strings.SplitSeq(p, "/") {
		if len(name) > unix.NAME_MAX {
			return "", invalidPath("path %q: has a name of %d bytes, at most %d are possible", clip(p), len(name), unix.NAME_MAX)
		}
	}
	return p, nil
}

// clip shortens hostile input for a message.
func clip(s string) string { return wire.Clip(s, 256) }

// queryPath resolves the path in a query parameter.
func (s *Service) queryPath(r *http.Request, name string) (string, error) {
	p := r.URL.Query().Get(name)
	if p == "" {
		return "", invalidPath("query parameter %q is missing: give the path of a file", name)
	}
	return s.resolve(p)
}

// queryMode parses an octal mode; 0 and false if the parameter is absent.
func queryMode(r *http.Request) (uint32, bool, error) {
	v := r.URL.Query().Get("mode")
	if v == "" {
		return 0, false, nil
	}
	n, err := strconv.ParseUint(strings.TrimPrefix(v, "0o"), 8, 32)
	if err != nil || n > 0o7777 {
		return 0, false, invalid("mode %q: give permission bits as octal digits, such as 0644", clip(v))
	}
	return uint32(n), true, nil
}

func queryBool(r *http.Request, name string) (bool, error) {
	v := r.URL.Query().Get(name)
	if v == "" {
		return false, nil
	}
	b, err := strconv.ParseBool(v)
	if err != nil {
		return false, invalid("%s %q: give true or false", name, clip(v))
	}
	return b, nil
}

// decode reads the JSON body of a request.
func decode(w http.ResponseWriter, r *http.Request, into any) error {
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, bodyLimit))
	if err := d.Decode(into); err != nil {
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return &failure{http.StatusRequestEntityTooLarge, "", fmt.Sprintf("request body: more than %d bytes", bodyLimit)}
		}
		return &failure{http.StatusBadRequest, wire.CodeInvalidBody, "invalid body request: " + err.Error()}
	}
	return nil
}

func (s *Service) info(w http.ResponseWriter, r *http.Request) error {
	p, err := s.queryPath(r, "path")
	if err != nil {
		return err
	}
	// Extension: follow=false describes a link instead of its target.
	follow := true
	if r.URL.Query().Has("follow") {
		if follow, err = queryBool(r, "follow"); err != nil {
			return err
		}
	}
	var st unix.Stat_t
	err = s.account.Do(func() error {
		flags := unix.O_PATH
		if !follow {
			flags |= unix.O_NOFOLLOW
		}
		fd, err := s.open.at(unix.AT_FDCWD, p, flags, 0)
		if err != nil {
			return &fs.PathError{Op: "stat", Path: p, Err: err}
		}
		defer unix.Close(fd)
		return pathError("stat", p, unix.Fstat(fd, &st))
	})
	if err != nil {
		return err
	}
	wire.WriteJSON(w, http.StatusOK, fileInfo(path.Base(p), p, &st))
	return nil
}

// fileInfo is the wire form of a file's metadata.
func fileInfo(name, p string, st *unix.Stat_t) wire.FileInfo {
	mode := goMode(st.Mode)
	modified := time.Unix(st.Mtim.Unix())
	return wire.FileInfo{
		Name: name, Path: p, Size: st.Size,
		Mode: mode.String(), IsDir: mode.IsDir(),
		ModTime: modified.String(), ModifiedAt: modified.UTC().Format(time.RFC3339Nano),
		Owner: strconv.FormatUint(uint64(st.Uid), 10), Group: strconv.FormatUint(uint64(st.Gid), 10),
		Permissions: fmt.Sprintf("%04o", st.Mode&0o7777),
	}
}

// goMode is the fs.FileMode of a mode of stat(2).
func goMode(mode uint32) fs.FileMode {
	m := fs.FileMode(mode & 0o777)
	switch mode & unix.S_IFMT {
	case unix.S_IFBLK:
		m |= fs.ModeDevice
	case unix.S_IFCHR:
		m |= fs.ModeDevice | fs.ModeCharDevice
	case unix.S_IFDIR:
		m |= fs.ModeDir
	case unix.S_IFIFO:
		m |= fs.ModeNamedPipe
	case unix.S_IFLNK:
		m |= fs.ModeSymlink
	case unix.S_IFSOCK:
		m |= fs.ModeSocket
	}
	if mode&unix.S_ISGID != 0 {
		m |= fs.ModeSetgid
	}
	if mode&unix.S_ISUID != 0 {
		m |= fs.ModeSetuid
	}
	if mode&unix.S_ISVTX != 0 {
		m |= fs.ModeSticky
	}
	return m
}

// depthLimit of a recursive listing; each level holds a file descriptor.
const depthLimit = 256

// list streams the entries of a directory, sorted by name, each followed by
// what is below it as deep as asked.
func (s *Service) list(w http.ResponseWriter, r *http.Request) error {
	query := r.URL.Query()
	given := query.Get("path")
	if given == "" {
		given = "."
	}
	p, err := s.resolve(given)
	if err != nil {
		return err
	}
	depth := 1
	if v := query.Get("depth"); v != "" {
		if depth, err = strconv.Atoi(v); err != nil || depth < 1 {
			return invalid("depth %q: give a number of at least 1", clip(v))
		}
		depth = min(depth, depthLimit)
	}
	var dir *directory
	err = s.account.Do(func() (err error) {
		dir, err = s.openDirectory(unix.AT_FDCWD, p, p, 0)
		return err
	})
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	out := &listing{w: w}
	err = s.listInto(r.Context(), out, dir, depth)
	if err != nil {
		// The answer has begun: the only honest end is a broken one.
		panic(http.ErrAbortHandler)
	}
	return out.end()
}

// listing writes a JSON array item by item.
type listing struct {
	w     io.Writer
	batch []byte
	some  bool
}

func (l *listing) add(item any) error {
	b, err := json.Marshal(item)
	if err != nil {
		return err
	}
	sep := byte('[')
	if l.some {
		sep = ','
	}
	l.some = true
	l.batch = append(append(l.batch, sep), b...)
	if len(l.batch) < 32<<10 {
		return nil
	}
	return l.flush()
}

func (l *listing) flush() error {
	_, err := l.w.Write(l.batch)
	l.batch = l.batch[:0]
	return err
}

func (l *listing) end() error {
	if !l.some {
		l.batch = append(l.batch, '[')
	}
	l.batch = append(l.batch, ']', '\n')
	return l.flush()
}

// listInto lists dir, and closes it.
func (s *Service) listInto(ctx context.Context, out *listing, dir *directory, depth int) error {
	defer dir.close()
	const batch = 256
	var infos [batch]wire.FileInfo
	for names := range slices.Chunk(dir.names, batch) {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := 0
		// One switch of identity for many files, and none while the network
		// is waited for.
		err := s.account.Do(func() error {
			for _, name := range names {
				var st unix.Stat_t
				if err := unix.Fstatat(dir.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
					continue // gone meanwhile
				}
				infos[n] = fileInfo(name, path.Join(dir.path, name), &st)
				n++
			}
			return nil
		})
		if err != nil {
			return err
		}
		for i := range n {
			if err := out.add(&infos[i]); err != nil {
				return err
			}
			if depth == 1 || !infos[i].IsDir {
				continue
			}
			var sub *directory
			err := s.account.Do(func() (err error) {
				sub, err = s.openDirectory(dir.fd, infos[i].Name, infos[i].Path, unix.O_NOFOLLOW)
				return err
			})
			if err != nil {
				continue // not readable, or gone
			}
			if err := s.listInto(ctx, out, sub, depth-1); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *Service) folder(w http.ResponseWriter, r *http.Request) error {
	p, err := s.queryPath(r, "path")
	if err != nil {
		return err
	}
	mode, given, err := queryMode(r)
	if err != nil {
		return err
	}
	if !given {
		mode = 0o755
	}
	if err := s.account.Do(func() error { return s.makeFolder(p, mode) }); err != nil {
		return err
	}
	w.WriteHeader(http.StatusCreated)
	return nil
}

// makeFolder makes a directory of exactly this mode and its missing parents;
// one that exists stays as it is.
func (s *Service) makeFolder(p string, mode uint32) error {
	if p == "/" {
		return nil
	}
	if _, err := s.makeParents(p); err != nil {
		return err
	}
	at, err := s.place(p)
	if err != nil {
		return err
	}
	defer at.close()
	switch err := unix.Mkdirat(at.dir, at.name, mode&0o777); {
	case errors.Is(err, unix.EEXIST):
		var st unix.Stat_t
		fd, err := s.open.at(at.dir, at.name, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err == nil {
			unix.Close(fd)
			return nil
		}
		if err := unix.Fstatat(at.dir, at.name, &st, unix.AT_SYMLINK_NOFOLLOW); err == nil {
			return &failure{http.StatusConflict, "", fmt.Sprintf("mkdir %s: a file with this name is there", p)}
		}
		return pathError("mkdir", p, err)
	case err != nil:
		return pathError("mkdir", p, err)
	}
	// mkdirat applied the umask.
	fd, err := s.open.at(at.dir, at.name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return pathError("open", p, err)
	}
	defer unix.Close(fd)
	return pathError("chmod", p, chmodFD(fd, mode))
}

func (s *Service) permissions(w http.ResponseWriter, r *http.Request) error {
	p, err := s.queryPath(r, "path")
	if err != nil {
		return err
	}
	mode, hasMode, err := queryMode(r)
	if err != nil {
		return err
	}
	uid, gid := -1, -1
	if v := r.URL.Query().Get("owner"); v != "" {
		if uid, err = account.LookupUser(v); err != nil {
			return invalid("%v", err)
		}
	}
	if v := r.URL.Query().Get("group"); v != "" {
		if gid, err = account.LookupGroup(v); err != nil {
			return invalid("%v", err)
		}
	}
	err = s.account.Do(func() error {
		fd, err := s.open.at(unix.AT_FDCWD, p, unix.O_PATH, 0)
		if err != nil {
			return pathError("open", p, err)
		}
		defer unix.Close(fd)
		if uid != -1 || gid != -1 {
			if err := unix.Fchownat(fd, "", uid, gid, unix.AT_EMPTY_PATH); err != nil {
				return pathError("chown", p, err)
			}
		}
		// After chown, which clears set-uid bits.
		if hasMode {
			return pathError("chmod", p, chmodFD(fd, mode))
		}
		return nil
	})
	if err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

// chmodFD changes the mode of an O_PATH descriptor's file.
func chmodFD(fd int, mode uint32) error {
	err := unix.Fchmodat(fd, "", mode, unix.AT_EMPTY_PATH)
	switch err {
	case unix.ENOSYS, unix.EINVAL, unix.EOPNOTSUPP, unix.EPERM:
		// fchmodat2(2) is of Linux 6.6, and system call filters that are older
		// than it answer EPERM.
		return unix.Chmod(procFD(fd), mode)
	}
	return err
}

func procFD(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// pathError adds operation and path to an errno; nil stays nil.
func pathError(op, p string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: p, Err: err}
}
