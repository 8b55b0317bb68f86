package client

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime"
	"mime/multipart"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/toolbox/wire"
)

// fileSystem implements daytona.FileSystem.
type fileSystem struct{ t *toolbox }

func query(pairs ...string) url.Values {
	q := make(url.Values, len(pairs)/2)
	for i := 0; i < len(pairs); i += 2 {
		q.Set(pairs[i], pairs[i+1])
	}
	return q
}

// get asks about a path; op is for the fs.PathError.
func (f *fileSystem) get(ctx context.Context, op, path, route string, q url.Values, out any) error {
	return pathError(op, path, f.t.call(ctx, request{file: true, method: http.MethodGet, path: route, query: q}, out))
}

func (f *fileSystem) Open(ctx context.Context, path string) (daytona.File, error) {
	file, err := f.open(ctx, path)
	if err != nil {
		return nil, pathError("open", path, err)
	}
	return file, nil
}

// open opens a file; the error is not yet a fs.PathError.
func (f *fileSystem) open(ctx context.Context, path string) (*file, error) {
	resp, err := f.t.open(ctx, request{file: true, method: http.MethodGet, path: "/files/download", query: query("path", path)})
	if err != nil {
		return nil, err
	}
	file := &file{fs: f, ctx: ctx, path: path, label: path, body: resp.Body, size: resp.ContentLength}
	if file.size < 0 {
		info, err := f.stat(ctx, path)
		if err != nil {
			resp.Body.Close()
			return nil, err
		}
		file.info, file.size = &info, info.Bytes
	}
	return file, nil
}

// file implements daytona.File.
type file struct {
	fs    *fileSystem
	ctx   context.Context
	path  string // where it is in the sandbox
	label string // what the caller calls it
	size  int64

	body   io.ReadCloser
	info   *daytona.FileInfo
	closed atomic.Bool
}

func (f *file) Size() int64 { return f.size }

func (f *file) Stat() (fs.FileInfo, error) {
	if f.closed.Load() {
		return nil, pathError("stat", f.label, fs.ErrClosed)
	}
	if f.info == nil {
		info, err := f.fs.stat(f.ctx, f.path)
		if err != nil {
			return nil, pathError("stat", f.label, err)
		}
		f.info = &info
	}
	return *f.info, nil
}

func (f *file) Read(p []byte) (int, error) {
	if f.closed.Load() {
		return 0, pathError("read", f.label, fs.ErrClosed)
	}
	n, err := f.body.Read(p)
	if err != nil && err != io.EOF {
		err = pathError("read", f.label, lost(f.ctx, "", "", err))
	}
	return n, err
}

// WriteTo makes io.Copy move the file in large pieces.
func (f *file) WriteTo(w io.Writer) (int64, error) {
	return f.fs.t.copy(w, f)
}

func (f *file) Close() error {
	if f.closed.Swap(true) {
		return pathError("close", f.label, fs.ErrClosed)
	}
	return f.body.Close()
}

// copy is io.Copy with a large buffer and without the shortcuts of either
// side, which would use a small one.
func (t *toolbox) copy(w io.Writer, r io.Reader) (int64, error) {
	buf := t.buffers.Get().(*[]byte)
	defer t.buffers.Put(buf)
	var total int64
	for {
		n, err := r.Read(*buf)
		if n > 0 {
			wrote, werr := w.Write((*buf)[:n])
			total += int64(wrote)
			if werr != nil {
				return total, werr
			}
			if wrote < n {
				return total, io.ErrShortWrite
			}
		}
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

func (f *fileSystem) ReadFile(ctx context.Context, path string) ([]byte, error) {
	resp, err := f.t.open(ctx, request{file: true, method: http.MethodGet, path: "/files/download", query: query("path", path)})
	if err != nil {
		return nil, pathError("open", path, err)
	}
	defer resp.Body.Close()
	b, err := readAll(resp.Body, resp.ContentLength, maxReadFile)
	if errors.Is(err, errTooLarge) {
		return nil, pathError("read", path, &daytona.Error{Kind: daytona.KindInvalid,
			Message: "larger than 1 GiB, which ReadFile does not hold in memory; use Open or Download", Err: fs.ErrInvalid})
	}
	if err != nil {
		return nil, pathError("read", path, lost(ctx, "", "", err))
	}
	return b, nil
}

func (f *fileSystem) Download(ctx context.Context, path string, w io.Writer) (int64, error) {
	file, err := f.open(ctx, path)
	if err != nil {
		return 0, pathError("open", path, err)
	}
	defer file.Close()
	n, err := file.WriteTo(w)
	if err != nil && !isPathError(err) {
		err = pathError("download", path, err) // w's
	}
	return n, err
}

func isPathError(err error) bool {
	_, ok := errors.AsType[*fs.PathError](err)
	return ok
}

// upload is the body of an upload: it counts, keeps the error of the reader,
// and lets net/http take large pieces.
type upload struct {
	t   *toolbox
	r   io.Reader
	n   atomic.Int64
	err atomic.Pointer[error]
	// stopped ends it before the next read of r.
	stopped atomic.Bool
	reading chan struct{} // holds an element while r is read
}

func newUpload(t *toolbox, r io.Reader) *upload {
	return &upload{t: t, r: r, reading: make(chan struct{}, 1)}
}

func (u *upload) Read(p []byte) (int, error) {
	u.reading <- struct{}{}
	defer func() { <-u.reading }()
	if u.stopped.Load() {
		return 0, context.Canceled
	}
	n, err := u.r.Read(p)
	u.n.Add(int64(n))
	if err != nil && err != io.EOF {
		u.err.CompareAndSwap(nil, &err)
	}
	return n, err
}

func (u *upload) WriteTo(w io.Writer) (int64, error) { return u.t.copy(w, struct{ io.Reader }{u}) }

// release gives r back to whoever the upload is for: an answer may come before all
// has been sent, and net/http goes on for a moment. It does not wait for a read
// that blocks.
func (u *upload) release() {
	u.stopped.Store(true)
	grace := time.NewTimer(cancelGrace)
	defer grace.Stop()
	select {
	case u.reading <- struct{}{}:
		<-u.reading
	case <-grace.C:
	}
}

// failed is the error that the reader gave, if any.
func (u *upload) failed() error {
	if p := u.err.Load(); p != nil {
		return *p
	}
	return nil
}

func (f *fileSystem) WriteFile(ctx context.Context, path string, data []byte, perm fs.FileMode) error {
	if perm == 0 {
		perm = 0o644
	}
	return pathError("write", path, f.t.call(ctx, request{
		file: true, method: http.MethodPost, path: "/files/upload-v2", query: query("path", path, "mode", octal(perm)),
		body: bytes.NewReader(data), length: int64(len(data)), contentType: "application/octet-stream", idempotent: true,
	}, nil))
}

func (f *fileSystem) Upload(ctx context.Context, path string, r io.Reader) (int64, error) {
	body, err := f.send(ctx, path, r)
	body.release()
	if err != nil {
		return 0, pathError("upload", path, err)
	}
	return body.n.Load(), nil
}

// send streams r into a file. The agent puts the file in place only when it
// has seen the end of the body, so that whatever breaks the request leaves
// what was there before.
func (f *fileSystem) send(ctx context.Context, path string, r io.Reader) (*upload, error) {
	length := int64(-1)
	switch r := r.(type) {
	case *bytes.Reader:
		length = int64(r.Len())
	case *bytes.Buffer:
		length = int64(r.Len())
	case *strings.Reader:
		length = int64(r.Len())
	}
	u := newUpload(f.t, r)
	err := f.t.call(ctx, request{
		file: true, method: http.MethodPost, path: "/files/upload-v2", query: query("path", path),
		body: u, length: length, contentType: "application/octet-stream",
	}, nil)
	if failed := u.failed(); err != nil && failed != nil && ctx.Err() == nil {
		err = failed
	}
	return u, err
}

func (f *fileSystem) Create(ctx context.Context, path string) (io.WriteCloser, error) {
	if err := ctx.Err(); err != nil {
		return nil, pathError("create", path, err)
	}
	r, w := io.Pipe()
	c := &creation{path: path, pipe: w, buf: bufio.NewWriterSize(w, 64<<10), done: make(chan struct{})}
	// A writer blocked in the pipe must see the end of ctx at once.
	stop := context.AfterFunc(ctx, func() { w.CloseWithError(ctx.Err()); r.CloseWithError(ctx.Err()) })
	go func() {
		defer close(c.done)
		defer stop()
		_, c.err = f.send(ctx, path, r)
		if c.err != nil {
			r.CloseWithError(c.err)
			return
		}
		// If bytes are left the answer came too early.
		r.CloseWithError(malformed("", "", errors.New("it answered before the end of the file")))
	}()
	return c, nil
}

// creation is a file being written by FileSystem.Create.
type creation struct {
	path string

	mu     sync.Mutex
	buf    *bufio.Writer
	closed bool

	pipe *io.PipeWriter
	done chan struct{} // closed when the request is over
	err  error         // its outcome, then
}

func (c *creation) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return 0, pathError("write", c.path, fs.ErrClosed)
	}
	n, err := c.buf.Write(p)
	return n, pathError("write", c.path, err)
}

func (c *creation) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return pathError("close", c.path, fs.ErrClosed)
	}
	c.closed = true
	err := c.buf.Flush()
	if err != nil {
		c.pipe.CloseWithError(err) // an error, not the end: the file must not appear
	} else {
		c.pipe.Close()
	}
	<-c.done
	return pathError("close", c.path, cmp.Or(c.err, err))
}

// UploadFiles sends the files as one multipart body. When the content of a
// file cannot be read, the body ends in the middle of its part, which the
// agent reports as that file's error, and the files after it go into another
// request.
func (f *fileSystem) UploadFiles(ctx context.Context, files []daytona.FileUpload) error {
	const op = "upload"
	var errs []error
	for len(files) > 0 {
		sent, readErr, err := f.uploadSome(ctx, files)
		errs = append(errs, err...)
		if readErr == nil {
			break
		}
		errs = append(errs, pathError(op, files[sent].Path, readErr))
		files = files[sent+1:]
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(errs...)
}

// uploadSome uploads files until the content of one, with index sent, cannot
// be read. errs are the errors of the other files.
func (f *fileSystem) uploadSome(ctx context.Context, files []daytona.FileUpload) (sent int, readErr error, errs []error) {
	const op = "upload"
	pr, pw := io.Pipe()
	stop := context.AfterFunc(ctx, func() { pr.CloseWithError(ctx.Err()) })
	defer stop()
	// Parts are small writes: gather them.
	buf := bufio.NewWriterSize(pw, 64<<10)
	form := multipart.NewWriter(buf)
	written := make(chan struct{})
	var failedAt int // written before written is closed
	var failure error
	go func() {
		defer close(written)
		for i, file := range files {
			index := "files[" + strconv.Itoa(i) + "]"
			err := form.WriteField(index+".path", file.Path)
			var part io.Writer
			if err == nil {
				part, err = form.CreateFormFile(index+".file", file.Path)
			}
			if err != nil {
				return // the request is over
			}
			u := newUpload(f.t, file.Content)
			if file.Content == nil {
				u.r = strings.NewReader("")
			}
			if _, err := f.t.copy(part, u); err != nil {
				if failure = u.failed(); failure != nil {
					failedAt = i
					if buf.Flush() == nil {
						pw.Close()
					}
				}
				return
			}
		}
		if form.Close() == nil && buf.Flush() == nil {
			pw.Close()
		}
	}()
	r := request{op: "upload files", method: http.MethodPost, path: "/files/bulk-upload",
		body: newUpload(f.t, pr), length: -1, contentType: form.FormDataContentType()}
	resp, err := f.t.do(ctx, r)
	if err != nil {
		pr.CloseWithError(err)
		select {
		case <-written:
		case <-ctx.Done(): // a reader may be stuck for good
			return 0, nil, []error{err}
		}
		return failedAt, failure, []error{err}
	}
	var answer wire.BulkUploadResponse
	var body []byte
	if resp.StatusCode == http.StatusBadRequest || resp.StatusCode == http.StatusInsufficientStorage {
		body, err = readAnswer(ctx, r, resp)
		resp.Body.Close()
		if err == nil && (json.Unmarshal(body, &answer) != nil || len(answer.Errors) == 0) {
			err = answerError(r.op, "", false, resp.StatusCode, body)
		}
	} else if resp.StatusCode != http.StatusOK {
		err, _ = f.t.refused(ctx, r, resp)
	} else {
		err = decode(ctx, r, resp, &answer)
	}
	pr.CloseWithError(io.ErrClosedPipe)
	select {
	case <-written:
	case <-ctx.Done():
		return 0, nil, []error{ended(r.op, "", ctx.Err())}
	}
	sent, readErr = failedAt, failure
	if err != nil {
		return sent, readErr, []error{err}
	}
	texts := answer.Errors
	attempted := files
	if readErr != nil {
		attempted = files[:sent]
	}
	if len(texts) == 0 {
		return sent, readErr, nil
	}

	// The wire has the errors as texts. They are about the files which are
	// not among the stored ones, in order.
	stored := make(map[string]int, len(answer.Files))
	for _, file := range answer.Files {
		stored[file.Path]++
	}
	var missing []string
	for _, file := range attempted {
		if stored[file.Path] > 0 {
			stored[file.Path]--
		} else {
			missing = append(missing, file.Path)
		}
	}
	if readErr != nil {
		// What follows is about the part that was cut short.
		texts = texts[:min(len(texts), len(missing))]
	}
	for i, text := range texts {
		kind := kindOfText(text)
		if len(missing) == len(texts) {
			errs = append(errs, pathError(op, missing[i], &daytona.Error{Kind: kind, Message: text, Err: fileCause(kind)}))
		} else {
			errs = append(errs, &daytona.Error{Kind: kind, Op: r.op, Message: text, Err: fileCause(kind)})
		}
	}
	return sent, readErr, errs
}

// kindOfText classifies an error of which the wire has only the text, by the
// words that the C library has for it.
func kindOfText(text string) daytona.Kind {
	t := strings.ToLower(text)
	for _, k := range []struct {
		words string
		kind  daytona.Kind
	}{
		{"no space left", daytona.KindNoSpace},
		{"quota exceeded", daytona.KindNoSpace},
		{"permission denied", daytona.KindForbidden},
		{"not permitted", daytona.KindForbidden},
		{"read-only file system", daytona.KindForbidden},
		{"no such file", daytona.KindNotFound},
		{"directory", daytona.KindInvalid}, // is a, not a
		{"invalid", daytona.KindInvalid},
		{"file name too long", daytona.KindInvalid},
	} {
		if strings.Contains(t, k.words) {
			return k.kind
		}
	}
	return daytona.KindInternal
}

func (f *fileSystem) DownloadFiles(ctx context.Context, paths []string, each func(path string, r io.Reader, err error) error) error {
	if len(paths) == 0 {
		return nil
	}
	// Files may contain the boundary that the protocol has by default.
	r := request{op: "download files", method: http.MethodPost, path: "/files/bulk-download", query: query("boundary", rand.Text()),
		in: wire.FilesDownloadRequest{Paths: paths}, idempotent: true}
	resp, err := f.t.open(ctx, r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	kind, params := mediaType(resp)
	if !strings.HasPrefix(kind, "multipart/") || params["boundary"] == "" {
		return malformed(r.op, "", fmt.Errorf("content type %q is not multipart", resp.Header.Get("Content-Type")))
	}
	parts := multipart.NewReader(resp.Body, params["boundary"])
	for _, p := range paths {
		part, err := parts.NextRawPart()
		if err == io.EOF {
			return malformed(r.op, p, errors.New("the answer ends before this file"))
		}
		if err != nil {
			return lost(ctx, r.op, p, err)
		}
		_, disposition, _ := mime.ParseMediaType(part.Header.Get("Content-Disposition"))
		// The files come in order; make sure of it.
		if name := disposition["filename"]; name != p && slices.Contains(paths, name) {
			return malformed(r.op, p, fmt.Errorf("the answer has %q in its place", name))
		}
		var eachErr error
		if disposition["name"] == "error" {
			b, err := io.ReadAll(io.LimitReader(part, maxErrorBody))
			if err != nil {
				return lost(ctx, r.op, p, err)
			}
			var e wire.ErrorResponse
			_ = json.Unmarshal(b, &e)
			eachErr = each(p, nil, pathError("download", p, answerError("", "", true, e.StatusCode, b)))
		} else {
			content := &partReader{ctx: ctx, path: p, r: part, left: -1}
			if n, err := strconv.ParseInt(part.Header.Get("Content-Length"), 10, 64); err == nil && n >= 0 {
				content.left = n
			}
			if eachErr = each(p, content, nil); eachErr == nil {
				// What each left unread.
				_, eachErr = f.t.copy(io.Discard, content)
			}
			content.r = nil
		}
		if eachErr != nil {
			return eachErr
		}
	}
	return nil
}

// partReader reads one file of a bulk download and notices when it ends
// before its announced length.
type partReader struct {
	ctx  context.Context
	path string
	r    io.Reader
	left int64 // negative: unknown
}

func (p *partReader) Read(b []byte) (int, error) {
	if p.r == nil {
		return 0, pathError("read", p.path, fs.ErrClosed)
	}
	n, err := p.r.Read(b)
	if p.left >= 0 {
		p.left = max(0, p.left-int64(n))
		if err == io.EOF && p.left > 0 {
			err = io.ErrUnexpectedEOF
		}
	}
	if err != nil && err != io.EOF {
		err = pathError("read", p.path, lost(p.ctx, "", "", err))
	}
	return n, err
}

func (f *fileSystem) Stat(ctx context.Context, path string) (daytona.FileInfo, error) {
	info, err := f.stat(ctx, path)
	return info, pathError("stat", path, err)
}

func (f *fileSystem) stat(ctx context.Context, p string) (daytona.FileInfo, error) {
	var w wire.FileInfo
	if err := f.t.call(ctx, request{file: true, method: http.MethodGet, path: "/files/info", query: query("path", p)}, &w); err != nil {
		return daytona.FileInfo{}, err
	}
	if w.Name == "" {
		w.Name = path.Base(p)
	}
	return fileInfo(w)
}

// fileInfo checks and converts what the agent tells of a file.
func fileInfo(w wire.FileInfo) (daytona.FileInfo, error) {
	mode, err := parseMode(w.Mode)
	if err != nil {
		return daytona.FileInfo{}, malformed("", "", err)
	}
	if mode.IsDir() != w.IsDir {
		return daytona.FileInfo{}, malformed("", "", fmt.Errorf("file mode %q contradicts isDir %v", w.Mode, w.IsDir))
	}
	modified, err := time.Parse(time.RFC3339Nano, w.ModifiedAt)
	if err != nil {
		return daytona.FileInfo{}, malformed("", "", err)
	}
	return daytona.FileInfo{FileName: w.Name, Bytes: w.Size, FileMode: mode, Modified: modified, Owner: w.Owner, Group: w.Group}, nil
}

func (f *fileSystem) ReadDir(ctx context.Context, path string) ([]daytona.FileInfo, error) {
	infos, err := f.readDir(ctx, path)
	return infos, pathError("readdir", path, err)
}

func (f *fileSystem) readDir(ctx context.Context, path string) ([]daytona.FileInfo, error) {
	var list []wire.FileInfo
	if err := f.t.call(ctx, request{file: true, method: http.MethodGet, path: "/files", query: query("path", path)}, &list); err != nil {
		return nil, err
	}
	infos := make([]daytona.FileInfo, len(list))
	for i, w := range list {
		// Callers join these names to paths, possibly to paths of the host.
		if w.Name == "" || w.Name == "." || w.Name == ".." || strings.ContainsAny(w.Name, "/\x00") {
			return nil, malformed("", "", fmt.Errorf("%q is not the name of a file in a directory", w.Name))
		}
		var err error
		if infos[i], err = fileInfo(w); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(infos, func(a, b daytona.FileInfo) int { return cmp.Compare(a.FileName, b.FileName) })
	return infos, nil
}

func (f *fileSystem) Mkdir(ctx context.Context, path string, perm fs.FileMode) error {
	if perm == 0 {
		perm = 0o755
	}
	return pathError("mkdir", path, f.t.call(ctx, request{file: true, method: http.MethodPost, path: "/files/folder",
		query: query("path", path, "mode", octal(perm)), idempotent: true}, nil))
}

func (f *fileSystem) Remove(ctx context.Context, path string) error {
	return pathError("remove", path, f.t.call(ctx, request{file: true, method: http.MethodDelete, path: "/files",
		query: query("path", path)}, nil))
}

func (f *fileSystem) RemoveAll(ctx context.Context, path string) error {
	err := f.t.call(ctx, request{file: true, method: http.MethodDelete, path: "/files",
		query: query("path", path, "recursive", "true"), idempotent: true}, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return pathError("removeall", path, err)
}

func (f *fileSystem) Rename(ctx context.Context, oldPath, newPath string) error {
	err := f.t.call(ctx, request{file: true, method: http.MethodPost, path: "/files/move",
		query: query("source", oldPath, "destination", newPath)}, nil)
	about := oldPath
	if errors.Is(err, fs.ErrExist) {
		about = newPath
	}
	return pathError("rename", about, err)
}

func (f *fileSystem) Chmod(ctx context.Context, path string, mode fs.FileMode) error {
	return pathError("chmod", path, f.t.call(ctx, request{file: true, method: http.MethodPost, path: "/files/permissions",
		query: query("path", path, "mode", octal(mode)), idempotent: true}, nil))
}

func (f *fileSystem) Chown(ctx context.Context, path, owner, group string) error {
	q := query("path", path)
	if owner != "" {
		q.Set("owner", owner)
	}
	if group != "" {
		q.Set("group", group)
	}
	return pathError("chown", path, f.t.call(ctx, request{file: true, method: http.MethodPost, path: "/files/permissions",
		query: q, idempotent: true}, nil))
}

func (f *fileSystem) Glob(ctx context.Context, dir, pattern string) ([]string, error) {
	var found wire.SearchFilesResponse
	err := f.get(ctx, "glob", dir, "/files/search", query("path", dir, "pattern", pattern), &found)
	return found.Files, err
}

func (f *fileSystem) Grep(ctx context.Context, path, text string) ([]daytona.Match, error) {
	var found []wire.Match
	if err := f.get(ctx, "grep", path, "/files/find", query("path", path, "pattern", text), &found); err != nil {
		return nil, err
	}
	matches := make([]daytona.Match, len(found))
	for i, m := range found {
		matches[i] = daytona.Match{Path: m.File, Line: m.Line, Text: m.Content}
	}
	return matches, nil
}

func (f *fileSystem) Replace(ctx context.Context, paths []string, old, new string) ([]daytona.Replaced, error) {
	const op = "replace in files"
	if len(paths) == 0 {
		return nil, nil
	}
	var results []wire.ReplaceResult
	if err := f.t.call(ctx, request{op: op, method: http.MethodPost, path: "/files/replace",
		in: wire.ReplaceRequest{Files: paths, Pattern: old, NewValue: new}}, &results); err != nil {
		return nil, err
	}
	if len(results) != len(paths) {
		return nil, malformed(op, "", fmt.Errorf("%d results for %d files", len(results), len(paths)))
	}
	replaced := make([]daytona.Replaced, len(paths))
	for i, r := range results {
		replaced[i].Path = paths[i]
		if !r.Success {
			kind := kindOfText(r.Error)
			replaced[i].Err = pathError("replace", paths[i], &daytona.Error{Kind: kind, Message: r.Error, Err: fileCause(kind)})
		}
	}
	return replaced, nil
}
