package filesystem

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona/toolbox/wire"
)

// upload stores one file: the part "file" of a multipart form, or else the
// whole body. Extension: the query parameter "mode" sets the permission bits.
func (s *Service) upload(w http.ResponseWriter, r *http.Request) error {
	err := s.uploadOne(w, r)
	if err == nil {
		return nil
	}
	if r.Context().Err() != nil {
		return err
	}
	// The answer goes out at once; then the rest of the body is read away, as
	// many clients hear nothing before they have sent all of it.
	status, code, message := describe(err)
	wire.WriteError(w, r, status, code, message)
	_ = http.NewResponseController(w).Flush()
	_, _ = io.Copy(io.Discard, r.Body)
	return nil
}

func (s *Service) uploadOne(w http.ResponseWriter, r *http.Request) error {
	// Reading on after the answer is only possible in HTTP/1 if said so;
	// HTTP/2 needs no saying and answers an error.
	_ = http.NewResponseController(w).EnableFullDuplex()
	p, err := s.queryPath(r, "path")
	if err != nil {
		return err
	}
	mode, hasMode, err := queryMode(r)
	if err != nil {
		return err
	}
	body := io.Reader(r.Body)
	parts, err := multipartReader(r)
	if err != nil {
		return err
	}
	if parts != nil {
		if body, err = filePart(parts); err != nil {
			return err
		}
	}
	if _, err := s.store(p, body, mode&0o7777, hasMode); err != nil {
		if _, ok := errors.AsType[*sourceError](err); ok {
			return invalid("%v", err)
		}
		return err
	}
	if parts != nil {
		// What follows the file is of no interest, but must be read for the
		// connection to be used again.
		_, _ = io.Copy(io.Discard, r.Body)
	}
	wire.WriteJSON(w, http.StatusOK, wire.UploadedFile{Name: path.Base(p), Path: p, Type: "file"})
	return nil
}

// multipartReader returns the parts of a request, nil if it has none.
func multipartReader(r *http.Request) (*multipart.Reader, error) {
	mediaType, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || !strings.HasPrefix(mediaType, "multipart/") {
		return nil, nil
	}
	boundary := params["boundary"]
	if boundary == "" || len(boundary) > 70 { // RFC 2046, 5.1.1
		return nil, invalid("content type %q: a multipart body needs a boundary of 1 to 70 characters", clip(r.Header.Get("Content-Type")))
	}
	// The multipart reader asks for 4 KiB at a time.
	return multipart.NewReader(bufio.NewReaderSize(r.Body, 64<<10), boundary), nil
}

func filePart(parts *multipart.Reader) (io.Reader, error) {
	for {
		part, err := parts.NextRawPart()
		if err == io.EOF {
			return nil, invalid(`multipart body: has no part "file"`)
		}
		if err != nil {
			return nil, invalid("multipart body: %v", err)
		}
		if part.FormName() == "file" {
			return part, nil
		}
	}
}

// pendingLimit bounds the paths whose file did not come yet, in bytes.
const pendingLimit = 16 << 20

// bulkUpload stores many files as they arrive. The path of each, a part
// "files[<i>].path", must come before the file, "files[<i>].file"; right
// before, or all paths first.
func (s *Service) bulkUpload(w http.ResponseWriter, r *http.Request) error {
	_ = http.NewResponseController(w).EnableFullDuplex()
	parts, err := multipartReader(r)
	if err == nil && parts == nil {
		err = invalid("content type %q: a multipart/form-data body is wanted", clip(r.Header.Get("Content-Type")))
	}
	answer := wire.BulkUploadResponse{Files: []wire.UploadedPath{}}
	status := http.StatusOK
	if err == nil {
		err = s.storeParts(parts, &answer, &status)
	}
	if r.Context().Err() != nil {
		return r.Context().Err()
	}
	if err != nil {
		answer.Errors = append(answer.Errors, err.Error())
	}
	if len(answer.Errors) > 0 && status == http.StatusOK {
		status = http.StatusBadRequest
	}
	if status != http.StatusOK {
		_, _ = io.Copy(io.Discard, r.Body)
	}
	wire.WriteJSON(w, status, answer)
	return nil
}

// storeParts stores the files of a form, noting those that failed. The error
// is that of the form itself.
func (s *Service) storeParts(parts *multipart.Reader, answer *wire.BulkUploadResponse, status *int) error {
	pending := map[string]string{}
	size := 0
	for {
		part, err := parts.NextRawPart()
		if err == io.EOF {
			for index, p := range pending {
				answer.Errors = append(answer.Errors, fmt.Sprintf("files[%s].path: no file came for %q", clip(index), clip(p)))
			}
			return nil
		}
		if err != nil {
			return invalid("multipart body: %v", err)
		}
		index, kind, ok := fieldName(part.FormName())
		if !ok {
			continue
		}
		if kind == "path" {
			value, err := io.ReadAll(io.LimitReader(part, unix.PathMax+1))
			if err != nil {
				return invalid("multipart body: %v", err)
			}
			// What is too long gets its message from resolve, when the file
			// comes.
			size += len(value) + len(index)
			if size > pendingLimit {
				return invalid("multipart body: more than %d bytes of paths before their files", pendingLimit)
			}
			pending[index] = string(value)
			continue
		}
		given, ok := pending[index]
		if !ok {
			answer.Errors = append(answer.Errors, fmt.Sprintf("files[%s].file: files[%s].path must come before", clip(index), clip(index)))
			continue
		}
		delete(pending, index)
		size -= len(given) + len(index)
		p, err := s.resolve(given)
		var n int64
		if err == nil {
			n, err = s.store(p, part, 0, false)
		}
		if err != nil {
			if source, ok := errors.AsType[*sourceError](err); ok {
				answer.Errors = append(answer.Errors, err.Error())
				return invalid("multipart body: %v", source)
			}
			// The clients know 400 for all that can go wrong; a full disk is
			// told apart because there is something to do about it.
			if code, _, _ := describe(err); code == http.StatusInsufficientStorage {
				*status = code
			}
			answer.Errors = append(answer.Errors, err.Error())
			continue
		}
		answer.Files = append(answer.Files, wire.UploadedPath{Path: given, Bytes: n})
	}
}

// fieldName takes "files[<index>].<kind>" apart.
func fieldName(name string) (index, kind string, ok bool) {
	rest, ok := strings.CutPrefix(name, "files[")
	if !ok || len(name) > 64 {
		return "", "", false
	}
	index, kind, ok = strings.Cut(rest, "].")
	return index, kind, ok && (kind == "path" || kind == "file")
}
