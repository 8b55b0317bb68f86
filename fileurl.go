package daytona

import (
	"crypto/rand"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/daytona-go/daytona/internal/fileurl"
)

// FileURLs makes and checks URLs with which anyone, without other credentials,
// can download or upload one file of a sandbox, until they expire. They are those
// that the Daytona SDKs make.
type FileURLs struct {
	// Base is where the sandbox's toolbox API is, or Handler, such as
	// "https://example.com/toolbox/4c1f".
	Base string
	// Key signs them. With another key, those made before are void. Make one with
	// [NewFileURLKey].
	Key string
}

// NewFileURLKey returns a key for [FileURLs], of 128 random bits or more.
func NewFileURLKey() string { return strings.ToLower(rand.Text()) }

// DownloadURL returns a URL to GET the file at path, for ttl; 0 is without end.
// It gives KindInvalid for an empty path, a negative ttl or no key.
func (u FileURLs) DownloadURL(path string, ttl time.Duration) (string, error) {
	return u.sign("sign download URL", fileurl.DownloadRoute, path, ttl)
}

// UploadURL is [FileURLs.DownloadURL] for a POST of the file's content, as it is
// or as the part "file" of a form, which makes or replaces it.
func (u FileURLs) UploadURL(path string, ttl time.Duration) (string, error) {
	return u.sign("sign upload URL", fileurl.UploadRoute, path, ttl)
}

func (u FileURLs) sign(op, route, path string, ttl time.Duration) (string, error) {
	switch base, err := url.Parse(u.Base); {
	case u.Key == "":
		return "", invalid(op, "Key", "", "must not be empty; see NewFileURLKey")
	case path == "":
		return "", invalid(op, "path", path, "must not be empty")
	case ttl < 0:
		return "", invalid(op, "ttl", ttl, "must not be negative; 0 is without end")
	case err != nil || base.RawQuery != "" || base.Fragment != "":
		return "", invalid(op, "Base", u.Base, "must be a URL without a query")
	}
	var expires int64
	if ttl > 0 {
		expires = time.Now().Add(ttl + time.Second - 1).Unix()
	}
	return strings.TrimRight(u.Base, "/") + route + "?" + fileurl.Query(u.Key, fileurl.MethodOf(route), path, expires).Encode(), nil
}

// Handler serves the URLs of one sandbox, whose files these are, where nothing
// else does. It expects what comes after Base as the request's path: see
// [http.StripPrefix]. Downloads are marked not to be shown by browsers, since what
// is in a sandbox is not to be trusted.
func (u FileURLs) Handler(files FileSystem) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		method := fileurl.MethodOf(r.URL.Path)
		if method == "" {
			http.NotFound(w, r)
			return
		}
		if r.Method != method && (r.Method != http.MethodHead || method != http.MethodGet) {
			w.Header().Set("Allow", method)
			http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
			return
		}
		name, err := fileurl.Verify(u.Key, method, r.URL.Query(), time.Now())
		if err != nil {
			http.Error(w, err.Error(), http.StatusForbidden)
			return
		}
		if method == http.MethodPost {
			err = receiveFile(files, r, name)
		} else {
			err = sendFile(files, w, r, name)
		}
		if err != nil {
			status := KindOf(err).HTTPStatus()
			http.Error(w, http.StatusText(status), status)
		}
	})
}

// sendFile returns an error only if the answer has not begun.
func sendFile(files FileSystem, w http.ResponseWriter, r *http.Request, name string) error {
	f, err := files.Open(r.Context(), name)
	if err != nil {
		return err
	}
	defer f.Close()
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Content-Length", strconv.FormatInt(f.Size(), 10))
	h.Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": path.Base(name)}))
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	if r.Method == http.MethodHead {
		return nil
	}
	if _, err := io.Copy(w, f); err != nil {
		panic(http.ErrAbortHandler) // the only way to tell of it now
	}
	return nil
}

func receiveFile(files FileSystem, r *http.Request, name string) error {
	var body io.Reader = r.Body
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err == nil && kind == "multipart/form-data" {
		form, err := r.MultipartReader()
		if err != nil {
			return invalid("upload", "form", "", err.Error())
		}
		for {
			part, err := form.NextPart()
			if errors.Is(err, io.EOF) {
				return invalid("upload", "form", "", `has no part "file"`)
			}
			if err != nil {
				return invalid("upload", "form", "", err.Error())
			}
			if part.FormName() == "file" {
				body = part
				break
			}
		}
	}
	_, err := files.Upload(r.Context(), name, body)
	return err
}
