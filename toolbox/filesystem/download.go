package filesystem

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona/toolbox/account"
	"github.com/daytona-go/daytona/toolbox/wire"
)

// endlessLimit bounds what is sent of a file that does not tell its size, such
// as those of procfs, in bytes. Beyond it the transfer is broken off.
const endlessLimit = 64 << 20

// content is an open regular file.
type content struct {
	*os.File
	size     int64 // -1 if the file does not tell
	modified time.Time
	head     []byte // read already; only if size is -1
	account  *account.Account
}

// openContent opens a file for reading, and only a regular one: opening a pipe
// or a device could hang, or have an effect.
func (s *Service) openContent(p string) (*content, error) {
	var c *content
	err := s.account.Do(func() error {
		// First look, then touch.
		fd, err := s.open.at(unix.AT_FDCWD, p, unix.O_PATH, 0)
		if err != nil {
			return pathError("open", p, err)
		}
		var st unix.Stat_t
		err = unix.Fstat(fd, &st)
		unix.Close(fd)
		if err != nil {
			return pathError("stat", p, err)
		}
		if err := notRegular(p, st.Mode); err != nil {
			return err
		}
		fd, err = s.open.at(unix.AT_FDCWD, p, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
		if err != nil {
			return pathError("open", p, err)
		}
		err = unix.Fstat(fd, &st) // it may be another file by now
		if err == nil {
			err = notRegular(p, st.Mode)
		}
		if err != nil {
			unix.Close(fd)
			return err
		}
		c = &content{size: st.Size, modified: time.Unix(st.Mtim.Unix()), account: s.account}
		if st.Size == 0 || pseudo(fd) {
			c.size = -1
		} else {
			_ = unix.SetNonblock(fd, false)
			_ = unix.Fadvise(fd, 0, 0, unix.FADV_SEQUENTIAL)
		}
		c.File = os.NewFile(uintptr(fd), p)
		return nil
	})
	if err != nil || c.size >= 0 {
		return c, err
	}
	// A file that tells no size tells its errors on the first read, too.
	head := make([]byte, 64<<10)
	n, err := (&endless{c: c}).Read(head)
	if err != nil && err != io.EOF {
		c.Close()
		return nil, cleaned("read", p, err)
	}
	if c.head = head[:n]; n == 0 {
		c.size = 0
	}
	return c, nil
}

// endless reads a file of unknown size up to endlessLimit.
type endless struct {
	c    *content
	ctx  context.Context
	head []byte
	n    int64
}

func (e *endless) Read(b []byte) (int, error) {
	if e.ctx != nil && e.ctx.Err() != nil {
		return 0, e.ctx.Err()
	}
	if e.n >= endlessLimit {
		return 0, fmt.Errorf("%s: more than %d bytes of a file without a size", e.c.Name(), endlessLimit)
	}
	if len(e.head) > 0 {
		n := copy(b, e.head)
		e.head, e.n = e.head[n:], e.n+int64(n)
		return n, nil
	}
	// Not through package os, which would wait where the file has no more to
	// say for now, as /proc/kmsg does.
	var n int
	err := errors.New("closed")
	raw, rawErr := e.c.SyscallConn()
	if rawErr != nil {
		return 0, rawErr
	}
	rawErr = raw.Control(func(fd uintptr) {
		// procfs asks who reads, not only who opened.
		err = e.c.account.Do(func() (err error) {
			n, err = ignoringEINTR(func() (int, error) { return unix.Read(int(fd), b) })
			return err
		})
	})
	switch {
	case rawErr != nil:
		return 0, rawErr
	case err == unix.EAGAIN, err == nil && n == 0:
		return 0, io.EOF
	case err != nil:
		return 0, err
	}
	e.n += int64(n)
	return n, nil
}

func (s *Service) download(w http.ResponseWriter, r *http.Request) error {
	p, err := s.queryPath(r, "path")
	if err != nil {
		return err
	}
	c, err := s.openContent(p)
	if err != nil {
		return err
	}
	defer c.Close()
	name := path.Base(p)
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Disposition", "attachment; "+fileNames(name))
	if c.size >= 0 {
		// This handles ranges and conditions. The size is that of now: what
		// the file loses meanwhile breaks the transfer off.
		http.ServeContent(&wide{ResponseWriter: w, s: s}, r, "", c.modified, io.NewSectionReader(c, 0, c.size))
		return nil
	}
	h.Set("Last-Modified", c.modified.UTC().Format(http.TimeFormat))
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodHead {
		return nil
	}
	if _, err := s.copy(w, &endless{c: c, ctx: r.Context(), head: c.head}); err != nil {
		panic(http.ErrAbortHandler)
	}
	return nil
}

// wide is a ResponseWriter that copies with large buffers.
type wide struct {
	http.ResponseWriter
	s *Service
}

func (w *wide) ReadFrom(r io.Reader) (int64, error) { return w.s.copy(w.ResponseWriter, r) }

// copy is io.Copy with a large buffer and without short cuts.
func (s *Service) copy(w io.Writer, r io.Reader) (int64, error) {
	buf := s.buffers.Get().(*[bufferSize]byte)
	defer s.buffers.Put(buf)
	return io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{r}, buf[:])
}

// fileNames are the Content-Disposition parameters of a file name: a quoted
// string for all, and RFC 5987 for what it cannot say.
func fileNames(name string) string {
	var quoted, percent strings.Builder
	for _, b := range []byte(name) {
		switch {
		case b == '"' || b == '\\':
			quoted.WriteByte('\\')
			quoted.WriteByte(b)
		case b < ' ' || b == 0x7f:
			fmt.Fprintf(&quoted, "%%%02X", b)
		default:
			quoted.WriteByte(b)
		}
		// attr-char of RFC 5987
		if 'a' <= b && b <= 'z' || 'A' <= b && b <= 'Z' || '0' <= b && b <= '9' || strings.IndexByte("!#$&+-.^_`|~", b) >= 0 {
			percent.WriteByte(b)
		} else {
			fmt.Fprintf(&percent, "%%%02X", b)
		}
	}
	return `filename="` + quoted.String() + `"; filename*=utf-8''` + percent.String()
}

// bulkDownload sends many files as the parts of one answer. Extension: the
// query parameter "boundary" (16 to 70 letters and digits) replaces the
// well-known one, so that no file can pretend to be several.
func (s *Service) bulkDownload(w http.ResponseWriter, r *http.Request) error {
	boundary := wire.DownloadBoundary
	if v := r.URL.Query().Get("boundary"); v != "" {
		if boundary = v; len(v) < 16 || len(v) > 70 || strings.Trim(v, "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz") != "" {
			return invalid("boundary %q: give 16 to 70 letters and digits", clip(v))
		}
	}
	var request wire.FilesDownloadRequest
	if err := decode(w, r, &request); err != nil {
		return err
	}
	if len(request.Paths) == 0 {
		err := wire.NewError(r, http.StatusBadRequest, "", "paths is empty: give the paths of the files")
		err.Error = err.Message
		wire.WriteJSON(w, http.StatusBadRequest, err)
		return nil
	}
	w.Header().Set("Content-Type", "multipart/form-data; boundary="+boundary)
	w.WriteHeader(http.StatusOK)
	out := bufio.NewWriterSize(w, 32<<10)
	for i, given := range request.Paths {
		separator := "\r\n--" + boundary + "\r\n"
		if i == 0 {
			separator = separator[2:]
		}
		_, _ = out.WriteString(separator)
		if err := s.sendPart(r, w, out, given); err != nil {
			// There is no way to say it inside the part: the answer ends
			// without its final boundary.
			if r.Context().Err() == nil {
				s.logger.Warn("bulk download broken off", "path", given, "error", err)
			}
			panic(http.ErrAbortHandler)
		}
	}
	_, _ = out.WriteString("\r\n--" + boundary + "--\r\n")
	return out.Flush()
}

// sendPart writes one part. The error is one that spoils the answer.
func (s *Service) sendPart(r *http.Request, w io.Writer, out *bufio.Writer, given string) error {
	if err := r.Context().Err(); err != nil {
		return err
	}
	p, err := s.resolve(given)
	var c *content
	if err == nil {
		c, err = s.openContent(p)
	}
	if err != nil {
		status, code, message := describe(err)
		switch {
		case code == wire.CodeDirectoryInPlace:
			code = wire.CodeInvalidFilePath
		case status == http.StatusInternalServerError:
			code = wire.CodeFileReadFailed
		}
		body, _ := json.Marshal(wire.NewError(r, status, code, message))
		partHeader(out, "error", given, "application/json", int64(len(body)))
		_, err := out.Write(body)
		return err
	}
	defer c.Close()
	partHeader(out, "file", given, typeOf(given), c.size)
	src := io.Reader(io.LimitReader(c, c.size))
	if c.size < 0 {
		src = &endless{c: c, ctx: r.Context(), head: c.head}
	}
	if c.size >= 0 && c.size <= 16<<10 {
		var n int64
		if n, err = io.Copy(out, src); err == nil && n < c.size {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	if err := out.Flush(); err != nil {
		return err
	}
	n, err := s.copy(w, src)
	if err == nil && n < c.size {
		err = fmt.Errorf("%s shrank from %d to %d bytes while it was sent", p, c.size, n)
	}
	return err
}

func partHeader(out *bufio.Writer, name, filename, contentType string, size int64) {
	_, _ = out.WriteString(`Content-Disposition: form-data; name="` + name + `"; ` + fileNames(filename) + "\r\n")
	_, _ = out.WriteString("Content-Type: " + contentType + "\r\n")
	if size >= 0 {
		_, _ = out.WriteString("Content-Length: " + strconv.FormatInt(size, 10) + "\r\n")
	}
	_, _ = out.WriteString("\r\n")
}

// typeOf is the media type of common names. (Package mime would read the
// image's own tables, some hundred KiB, into memory.)
func typeOf(name string) string {
	switch strings.ToLower(path.Ext(name)) {
	case ".txt", ".log", ".py", ".go", ".sh", ".toml", ".yaml", ".yml", ".ini", ".cfg":
		return "text/plain; charset=utf-8"
	case ".md":
		return "text/markdown; charset=utf-8"
	case ".html", ".htm":
		return "text/html; charset=utf-8"
	case ".css":
		return "text/css; charset=utf-8"
	case ".csv":
		return "text/csv; charset=utf-8"
	case ".js", ".mjs":
		return "text/javascript; charset=utf-8"
	case ".json":
		return "application/json"
	case ".xml":
		return "text/xml; charset=utf-8"
	case ".pdf":
		return "application/pdf"
	case ".zip":
		return "application/zip"
	case ".gz":
		return "application/gzip"
	case ".wasm":
		return "application/wasm"
	case ".png":
		return "image/png"
	case ".jpg", ".jpeg":
		return "image/jpeg"
	case ".gif":
		return "image/gif"
	case ".svg":
		return "image/svg+xml"
	case ".webp":
		return "image/webp"
	case ".mp4":
		return "video/mp4"
	}
	return "application/octet-stream"
}
